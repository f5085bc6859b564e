//! TIME_WAIT: how a connection gets there, what late segments get, and when a new connection may take its place.

use weir_index::Direction;
use weir_net::tcp;

use crate::buffer::Buffer;
use crate::connection::Flags;
use crate::engine::{Engine, is_due, tick};
use crate::event::Ended;
use crate::header::{Header, NOT_ECT};
use crate::limit::OUT_OF_PLACE_MS;
use crate::options::{OptionBytes, Timestamps};
use crate::segment::Segment;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::time_wait::TimeWait;
use crate::transmit::{Payload, Transmit};

/// How long what waits in TIME-WAIT is left alone by connections that we open: a tick of the coarsest clock of timestamps
/// (RFC 7323 §5.4).
const REST_MS: u32 = 1_000;

impl<B: Buffer> Engine<B> {
    /// Both have closed, the peer last: its FIN is acknowledged, and what is left of the connection waits.
    pub(crate) fn begin_time_wait(&mut self, slot: u32, now: Instant, tx: &mut impl Transmit<B>) {
        let identification = self.next_identification();
        let Some(mut work) = self.work(slot, now) else { return };
        if work.c.flags.has(Flags::ACK_NOW) {
            // where the network does not take it, the peer's FIN comes again
            work.acknowledge_now(identification, tx);
        }
        let c = &*work.c;
        let window = (c.rcv_edge.since(c.rcv_nxt) >> c.receive_scale).min(0xffff) as u16;
        let ends = tick(now).wrapping_add(work.config.time_wait_s * 1_000);
        let entry = TimeWait {
            local: c.local(),
            remote: c.remote(),
            snd_nxt: c.snd_nxt,
            rcv_nxt: c.rcv_nxt,
            window,
            profile: c.profile,
            ts_recent: c.flags.has(Flags::TIMESTAMPS).then_some(c.ts_recent),
            ts_offset: c.ts_offset,
            hash: 0,
            ends,
            answered: tick(now).wrapping_sub(OUT_OF_PLACE_MS),
        };
        self.finish(slot, Ended::Finished);
        let hash = self.hash(entry.remote, entry.local);
        self.keep(TimeWait { hash, ..entry });
    }

    fn keep(&mut self, entry: TimeWait) {
        while self.time_waits.is_full() {
            if let Some((slot, Some(oldest))) = self.time_waits.oldest() {
                self.index.remove(oldest.hash, slot, Direction::Reverse);
                self.counters.time_wait_evicted += 1;
            }
            self.time_waits.pop();
        }
        if let Some(slot) = self.time_waits.push(entry)
            && !self.index.insert(entry.hash, slot, Direction::Reverse)
        {
            self.time_waits.remove(slot);
        }
    }

    fn forget(&mut self, slot: u32) -> Option<TimeWait> {
        let entry = self.time_waits.remove(slot)?;
        self.index.remove(entry.hash, slot, Direction::Reverse);
        Some(entry)
    }

    pub(crate) fn end_time_waits(&mut self, now: u32) {
        while let Some((slot, entry)) = self.time_waits.oldest() {
            match entry {
                Some(entry) if !is_due(entry.ends, now) => break,
                Some(entry) => {
                    let hash = entry.hash;
                    self.index.remove(hash, slot, Direction::Reverse);
                }
                None => {}
            }
            self.time_waits.pop();
        }
    }

    /// A new connection takes the place of an old one: the least initial sequence number that is beyond all that the old one
    /// has sent (RFC 9293 §3.6.1), with a window between as in Linux.
    pub(crate) fn succeed(&mut self, slot: u32) -> Option<SeqNumber> {
        let entry = self.forget(slot)?;
        self.counters.time_wait_reused += 1;
        Some(entry.snd_nxt + 65_537)
    }

    /// Whether a connection that we open may take the place of one that waits. RFC 6191 from the other end, as Linux's
    /// tcp_tw_reuse: after a second our timestamps are later than all that the peer has seen. Without it a proxy whose
    /// clients close first runs out of source ports at a thousand connections a second to one backend.
    pub(crate) fn may_succeed(&self, slot: u32) -> bool {
        let Some(entry) = self.time_waits.entry(slot) else { return true };
        let life = self.profile(entry.profile).map_or(60, |profile| profile.config.time_wait_s) * 1_000;
        let left = entry.ends.wrapping_sub(self.wheel.now());
        entry.ts_recent.is_some() && left.saturating_add(REST_MS) <= life
    }

    /// RFC 9293 §3.10.7.4 for TIME-WAIT. `false`: a SYN that may begin anew.
    pub(crate) fn in_time_wait(
        &mut self,
        slot: u32,
        segment: &Segment,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) -> bool {
        let Some(entry) = self.time_waits.entry(slot).copied() else { return false };
        // RFC 1337: a RST does not end TIME_WAIT
        if segment.has(tcp::RST) {
            return true;
        }
        if segment.has(tcp::SYN) && !segment.has(tcp::ACK) {
            // RFC 6191: newer timestamps, or else a higher sequence number
            let is_newer = match (segment.timestamps, entry.ts_recent) {
                (Some(timestamps), Some(recent)) => {
                    let ahead = timestamps.value.wrapping_sub(recent) as i32;
                    ahead > 0 || (ahead == 0 && segment.seq.is_after(entry.rcv_nxt))
                }
                _ => segment.seq.is_after(entry.rcv_nxt),
            };
            if is_newer {
                return false;
            }
        }
        let is_old = segment
            .timestamps
            .zip(entry.ts_recent)
            .is_some_and(|(timestamps, recent)| (timestamps.value.wrapping_sub(recent) as i32) < 0);
        let is_fin = segment.has(tcp::FIN) && !is_old;
        let ticks = tick(now);
        let is_expected = segment.is_empty() && segment.seq == entry.rcv_nxt && !is_old;
        if is_expected {
            return true;
        }
        if !is_fin && ticks.wrapping_sub(entry.answered) < OUT_OF_PLACE_MS {
            return true;
        }
        self.answer_late(&entry, now, tx);
        if is_fin {
            // RFC 9293 §3.10.7.4: the peer has not heard our acknowledgement: 2 MSL anew
            let life = self.profile(entry.profile).map_or(60, |profile| profile.config.time_wait_s);
            if let Some(entry) = self.forget(slot) {
                self.keep(TimeWait { ends: ticks.wrapping_add(life * 1_000), answered: ticks, ..entry });
            }
        } else if let Some(entry) = self.time_waits.entry_mut(slot) {
            entry.answered = ticks;
        }
        true
    }

    fn answer_late(&mut self, entry: &TimeWait, now: Instant, tx: &mut impl Transmit<B>) {
        let value = now.milliseconds().wrapping_add(entry.ts_offset);
        let timestamps = entry.ts_recent.map(|echo| Timestamps { value, echo });
        let header = Header {
            local: entry.local,
            remote: entry.remote,
            seq: entry.snd_nxt,
            ack: entry.rcv_nxt,
            window: entry.window,
            identification: self.next_identification(),
            flags: tcp::ACK,
            ecn: NOT_ECT,
            hop_limit: self.profile(entry.profile).map_or(64, |profile| profile.config.hop_limit),
            options: timestamps.map_or(OptionBytes::NONE, OptionBytes::timestamps),
        };
        self.counters.segments_out += u64::from(tx.transmit(&header, Payload::empty()));
    }
}
