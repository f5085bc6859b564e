//! The short way of nearly every packet: from the client of a settled flow, in a frame whose headers lie where they always lie.
//!
//! It has no case of its own: what it does with a packet is what [`Lane::process`] would do, and it leaves all that is
//! rare to that, having changed nothing. Without calls and with constant offsets it is a third of the instructions.

use std::ops::DerefMut;

use weir_net::{PacketBuf, Parsed, tcp};

use crate::engine::{Accounts, Lookup};
use crate::entry::{Address, Entry};
use crate::lane::{Lane, is_steady, matches, tuple_of};
use crate::services::Mode;
use crate::tunnel;
use crate::verdict::Delivery;
use weir_index::{Bucket, Candidate, Direction, Index};

/// Length of an Ethernet header without a tag.
const LINK_LEN: u16 = 14;
/// Flags that begin or end something, or let the MSS be read.
const RARE_FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;

impl<A, E, B, C> Lane<'_, A, E, B, C>
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
    C: Accounts,
{
    /// Rewrites the packets of this family for their backends. A delivery of `None`: its packet has not changed, and
    /// [`Lane::process`] has to decide.
    #[inline(never)]
    pub(crate) fn steady_burst<P: PacketBuf>(
        &mut self,
        packets: &mut [P],
        parsed: &[Parsed],
        lookups: &[Lookup],
        deliveries: &mut [Option<Delivery>],
    ) {
        let places = parsed.iter().zip(lookups).zip(deliveries);
        for (packet, ((parsed, lookup), delivery)) in packets.iter_mut().zip(places) {
            if parsed.kind == A::KIND {
                *delivery = self.steady(packet, parsed, lookup);
            }
        }
    }

    /// Rewrites the packet for its backend; `None`, and no change, where [`Lane::process`] has to.
    #[inline(always)]
    pub(crate) fn steady<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        lookup: &Lookup,
    ) -> Option<Delivery> {
        let l4 = LINK_LEN + A::HEADER_LEN;
        let usual = parsed.has_ports
            & (parsed.l3 == LINK_LEN)
            & (parsed.l4 == l4)
            & (parsed.fragment_offset == 0)
            & (parsed.tcp_flags & RARE_FLAGS == 0)
            & (parsed.ttl > 1);
        let Some(Candidate { slot, direction: Direction::Forward }) = Index::<B>::candidate(lookup.guess)
        else {
            return None;
        };
        if !usual {
            return None;
        }
        // what is known is said once more as constants, from which all offsets and checks below fold
        let parsed =
            &Parsed { kind: A::KIND, has_ports: true, l3: LINK_LEN, l4, fragment_offset: 0, ..*parsed };
        let frame = packet.data_mut().get_mut(..usize::from(l4) + tcp::HEADER_LEN)?;
        let tuple = tuple_of::<A>(frame, parsed);
        let services = self.services;
        let entry = self.table.entry_mut(slot)?;
        if !matches(services, &self.shared.snat, entry, Direction::Forward, &tuple)
            || !is_steady(entry.state(), 0)
        {
            return None;
        }
        let listener = services.listener(entry.listener())?;
        let backend = services.backend(entry.backend())?;
        if backend.down || parsed.l3_len > backend.mtu {
            return None;
        }
        // not a `match`: that becomes an indirect jump
        let rewritten = if listener.mode == Mode::Dsr {
            A::decrement_ttl(frame, parsed)
        } else if matches!(listener.mode, Mode::Ipip | Mode::Gue) {
            if usize::from(parsed.l3_len) + tunnel::overhead(listener, backend) > usize::from(backend.mtu) {
                return None;
            }
            let identification = self.shared.identification.wrapping_add(1);
            self.shared.identification = identification;
            tunnel::encapsulate(packet, parsed, listener, backend, lookup.hash, identification)
        } else {
            let server = (A::from_bits(backend.address), backend.serves(parsed.dst_port));
            let source = if listener.mode == Mode::Nat {
                None
            } else if listener.mode == Mode::Fullnat {
                Some((A::from_bits(self.shared.snat.address(entry.snat())?), entry.snat_port()))
            } else {
                return None;
            };
            A::pass(frame, parsed, source, Some(server))
        };
        if !rewritten {
            return None;
        }
        if entry.last_seen() != self.now {
            entry.set_last_seen(self.now);
        }
        Some(Delivery {
            listener: entry.listener(),
            backend: entry.backend(),
            l3: LINK_LEN,
            bytes: parsed.l3_len,
            egress: backend.egress,
            next_hop: backend.next_hop,
            fallback: false,
        })
    }
}
