//! The short way of nearly every packet: from the client of a settled flow, in a frame whose headers lie where they always lie.
//!
//! It has no case of its own: what it does with a packet is what [`Lane::process`] would do, and it leaves all that is
//! rare to that, having changed nothing. Without calls and with constant offsets it is a third of the instructions.

use std::ops::DerefMut;

use weir_net::{PacketBuf, tcp};

use crate::engine::{Accounts, Lookup};
use crate::entry::{Address, Entry};
use crate::lane::{Lane, is_steady, matches, tuple_of};
use crate::services::Mode;
use crate::tunnel::{self, LINK_LEN};
use crate::verdict::Delivery;
use weir_index::{Bucket, Candidate, Direction, Index};

impl<A, E, B, C> Lane<'_, A, E, B, C>
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
    C: Accounts,
{
    /// Rewrites the usual packets of this family for their backends. A delivery of `None`: its packet has not changed, and
    /// [`Lane::process`] has to decide. The other family's deliveries become `None` if this is the `first` to look at them.
    /// Returns whether there are such.
    #[inline(never)]
    pub(crate) fn steady_burst<P: PacketBuf>(
        &mut self,
        packets: &mut [P],
        lookups: &[Lookup],
        deliveries: &mut [Option<Delivery>],
        first: bool,
    ) -> bool {
        let mut others = false;
        for (packet, (lookup, delivery)) in packets.iter_mut().zip(lookups.iter().zip(deliveries)) {
            if lookup.family == A::FAMILY {
                *delivery = None;
                // writes in place: what a value passes through is memory
                self.steady(packet, lookup, delivery);
            } else if first {
                others = true;
                *delivery = None;
            }
        }
        others
    }

    /// Rewrites the packet for its backend; no delivery, and no change, where [`Lane::process`] has to.
    #[inline(always)]
    fn steady<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        lookup: &Lookup,
        delivery: &mut Option<Delivery>,
    ) -> Option<()> {
        let Some(Candidate { slot, direction: Direction::Forward }) = Index::<B>::candidate(lookup.guess)
        else {
            return None;
        };
        let l3_len = lookup.usual_len;
        if l3_len == 0 {
            return None;
        }
        // of constant length, so that all checks of offsets below fold: a usual frame has room for TCP at least
        let headers = usize::from(LINK_LEN + A::HEADER_LEN) + tcp::HEADER_LEN;
        let frame = packet.data_mut().get_mut(..headers)?;
        let parsed = &A::parsed_usual(frame, l3_len)?;
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
        if backend.down || l3_len > backend.mtu {
            return None;
        }
        // not a `match`: that becomes an indirect jump
        let rewritten = if listener.mode == Mode::Dsr {
            A::decrement_ttl(frame, parsed)
        } else if matches!(listener.mode, Mode::Ipip | Mode::Gue) {
            let identification = &mut self.shared.identification;
            tunnel::encapsulate_usual::<A, P>(packet, lookup, listener, backend, identification)
        } else {
            let server = (A::from_bits(backend.address), backend.serves(tuple.dst_port));
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
        *delivery = Some(Delivery {
            listener: entry.listener(),
            backend: entry.backend(),
            l3: LINK_LEN,
            bytes: l3_len,
            egress: backend.egress,
            next_hop: backend.next_hop,
            fallback: false,
        });
        Some(())
    }
}
