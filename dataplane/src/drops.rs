//! Every reason for which a packet is dropped, one column each in the counters.

use weir_l4::DropReason;
use weir_net::Malformed;

macro_rules! worker_reasons {
    ($($(#[$doc:meta])* $variant:ident $name:literal),+ $(,)?) => {
        /// Reasons of the worker itself, beside those of the parser and of the engine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum WorkerReason { $($(#[$doc])* $variant),+ }
        impl WorkerReason {
            const NAMES: &'static [&'static str] = &[$($name),+];
        }
    };
}

worker_reasons! {
    /// For Weir's own address, not answered here, and without an exception path to the kernel.
    Punt "punt",
    /// For the kernel, beyond the worker's rate.
    PuntLimited "punt_limited",
    /// For the kernel, and the way there is full.
    PuntFull "punt_full",
    /// Neither IPv4, IPv6 nor ARP.
    UnknownEtherType "unknown_ether_type",
    /// Tagged otherwise than the port.
    WrongVlan "wrong_vlan",
    /// For another station's link address (ports are promiscuous).
    OtherStation "other_station",
    /// The NIC found the TCP or UDP checksum wrong.
    BadL4Checksum "bad_l4_checksum",
    /// The NIC found the IPv4 header checksum wrong.
    BadIpChecksum "bad_ip_checksum",
    /// In several segments, and too long for one.
    MultiSegment "multi_segment",
    /// An ARP message that is not believed.
    BadArp "bad_arp",
    /// A neighbour discovery message that is not believed.
    BadNdp "bad_ndp",
    /// No route to the destination.
    NoRoute "no_route",
    /// The next hop does not answer.
    NeighbourFailed "neighbour_failed",
    /// Too many packets wait for next hops.
    NeighbourQueueFull "neighbour_queue_full",
    /// The flow's owner can't keep up.
    SteerRingFull "steer_ring_full",
    /// The worker that owns the port's transmit queue can't keep up.
    TransmitRingFull "transmit_ring_full",
    /// The port's transmit queue did not empty within the bound.
    TransmitFull "transmit_full",
    /// No headroom for the link header.
    NoHeadroom "no_headroom",
    /// Still held when the process ended.
    Shutdown "shutdown",
}

/// Column of a reason in the drop group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop(pub u16);

impl From<Malformed> for Drop {
    #[inline]
    fn from(reason: Malformed) -> Self {
        Self(reason as u16)
    }
}

impl From<DropReason> for Drop {
    #[inline]
    fn from(reason: DropReason) -> Self {
        Self(Malformed::ALL.len() as u16 + reason as u16)
    }
}

impl From<WorkerReason> for Drop {
    #[inline]
    fn from(reason: WorkerReason) -> Self {
        Self((Malformed::ALL.len() + DropReason::ALL.len()) as u16 + reason as u16)
    }
}

/// Names of all columns, in order.
pub fn names() -> Vec<&'static str> {
    let malformed = Malformed::ALL.iter().map(|reason| reason.name());
    let engine = DropReason::ALL.iter().map(|reason| reason.name());
    malformed.chain(engine).chain(WorkerReason::NAMES.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_column() {
        let names = names();
        let name = |drop: Drop| names[usize::from(drop.0)];
        assert_eq!(name(Malformed::ShortFrame.into()), Malformed::ShortFrame.name());
        assert_eq!(name(DropReason::NoListener.into()), "no_listener");
        assert_eq!(name(DropReason::Rewrite.into()), "rewrite");
        assert_eq!(name(WorkerReason::Punt.into()), "punt");
        assert_eq!(name(WorkerReason::Shutdown.into()), "shutdown");
        let unique: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert!(names.iter().all(|name| name.len() <= 32));
    }
}
