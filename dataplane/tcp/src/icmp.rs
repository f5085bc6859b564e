//! What does the network say of a connection? ICMP errors (RFC 1122 §4.2.3.9, RFC 5927, RFC 1191, RFC 8201).

use weir_net::{Family, InnerFlow, Parsed, Protocol, icmp, icmpv6};

use crate::buffer::{Buffer, Endpoint};
use crate::connection::{Flags, State};
use crate::engine::{Engine, tick};
use crate::event::Ended;
use crate::listen::header_bytes;
use crate::seq::SeqNumber;
use crate::time::Instant;

/// What an ICMP error means for TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Protocol, port or administration: final before the handshake ends, else a hint (RFC 5927 §6).
    Hard,
    /// Network, host, time exceeded: it may pass.
    Soft,
    /// The packet was too long; the next hop takes so many bytes.
    TooBig {
        /// MTU of the next hop, 0 where it did not say (RFC 1191 §3).
        mtu: u16,
    },
}

impl Problem {
    /// What the ICMP error in a frame means. `None`: nothing to TCP (source quench and redirects, RFC 6633 §3 and RFC 1122
    /// §3.2.2.2; parameter problems).
    pub fn of(frame: &[u8], parsed: &Parsed) -> Option<Self> {
        // RFC 1191 §4: the last two bytes of the header's second word; RFC 4443 §3.2: that whole word, of which no MTU needs more
        let at = parsed.l4_offset() + 6;
        let mtu =
            frame.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_be_bytes(*bytes));
        Some(match (parsed.family()?, parsed.icmp_type, parsed.icmp_code) {
            (Family::V4, icmp::DESTINATION_UNREACHABLE, icmp::FRAGMENTATION_NEEDED)
            | (Family::V6, icmpv6::PACKET_TOO_BIG, _) => Self::TooBig { mtu },
            // protocol, port, or prohibited (RFC 1122 §4.2.3.9, RFC 1812 §5.2.7.1; RFC 4443 §3.1)
            (Family::V4, icmp::DESTINATION_UNREACHABLE, 2 | 3 | 9 | 10 | 13)
            | (Family::V6, icmpv6::DESTINATION_UNREACHABLE, 1 | 4) => Self::Hard,
            (Family::V4, icmp::DESTINATION_UNREACHABLE | icmp::TIME_EXCEEDED, _)
            | (Family::V6, icmpv6::DESTINATION_UNREACHABLE | icmpv6::TIME_EXCEEDED, _) => Self::Soft,
            _ => return None,
        })
    }
}

/// RFC 1191 §3: no next hop is below this; RFC 8201 §4: nor below this for IPv6.
const LEAST_MTU: (u16, u16) = (552, 1_280);
/// RFC 1191 §7: what to try where the router did not say.
const PLATEAUS: [u16; 8] = [8_166, 4_352, 2_002, 1_492, 1_006, 576, 552, 552];

impl<B: Buffer> Engine<B> {
    /// An ICMP error about a packet that we have sent. Whether it was about one of our connections.
    ///
    /// The quoted sequence number must be one that is outstanding (RFC 5927 §4.1), so that a stranger can't guess.
    pub fn icmp(&mut self, frame: &[u8], inner: &InnerFlow, problem: Problem, now: Instant) -> bool {
        if inner.protocol != Protocol::TCP {
            return false;
        }
        let (local, remote) = match inner.family {
            Family::V4 => (mapped(inner.src_v4(frame)), mapped(inner.dst_v4(frame))),
            Family::V6 => {
                (u128::from_be_bytes(inner.src_v6(frame)), u128::from_be_bytes(inner.dst_v6(frame)))
            }
        };
        let local = Endpoint { address: local, port: inner.src_port };
        let remote = Endpoint { address: remote, port: inner.dst_port };
        let at = usize::from(inner.l4) + 4;
        let Some(seq) = frame.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) else {
            return false;
        };
        let seq = SeqNumber(u32::from_be_bytes(seq));
        let hash = self.hash(remote, local);
        let Some(slot) = self.look_up(hash, remote, local) else { return false };
        let Some(record) = self.slab.at(slot) else { return false };
        if seq.is_before(record.snd_una) || !seq.is_before(record.snd_nxt) {
            return true;
        }
        self.counters.icmp_errors += 1;
        match problem {
            Problem::Hard if matches!(record.state, State::SynSent | State::SynReceived) => {
                self.finish(slot, Ended::Unreachable);
            }
            Problem::Hard | Problem::Soft => {}
            Problem::TooBig { mtu } => self.shrink(slot, seq, mtu, now),
        }
        true
    }

    /// RFC 1191 §6, RFC 8201 §5.4: smaller segments from here on, and what did not fit again.
    fn shrink(&mut self, slot: u32, seq: SeqNumber, mtu: u16, now: Instant) {
        let Some(work) = self.work(slot, now) else { return };
        let c = &mut *work.c;
        let is_v4 = c.local().is_v4();
        let options = if c.flags.has(Flags::TIMESTAMPS) { 12 } else { 0 };
        let headers = header_bytes(is_v4) + options;
        let current = c.mss.saturating_add(headers);
        let told = if mtu == 0 {
            PLATEAUS.iter().copied().find(|plateau| *plateau < current).unwrap_or(LEAST_MTU.0)
        } else {
            mtu
        };
        let least = if is_v4 { LEAST_MTU.0 } else { LEAST_MTU.1 };
        let mss = told.max(least).saturating_sub(headers);
        if mss >= c.mss {
            return;
        }
        c.mss = mss;
        c.congestion.set_mss(mss);
        if seq == c.send.first() {
            c.send.lose_head(work.nodes);
        }
        c.flags.set(Flags::REARM);
        c.heard_at = tick(now);
        work.counters.mtu_reductions += 1;
        self.mark_ready(slot);
    }
}

fn mapped(address: u32) -> u128 {
    0xffff_0000_0000 | u128::from(address)
}
