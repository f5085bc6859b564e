//! What does an acknowledgement mean? RFC 9293 §3.10.7.4, fifth, and what RFC 5681, 6675, 8985 and 7323 do with it: round trips,
//! losses, their repair, and the room that they make.

use crate::buffer::Buffer;
use crate::congestion::AckSample;
use crate::connection::{Flags, Waiting};
use crate::engine::tick;
use crate::event::Events;
use crate::input::Work;
use crate::queue::Delivered;
use crate::segment::Segment;
use crate::seq::SeqNumber;

/// Duplicate acknowledgements that mean a loss, for peers without SACK (RFC 5681 §3.2).
const DUPLICATES: u8 = 3;

impl<B: Buffer> Work<'_, B> {
    /// RFC 9293 §3.10.7.4, fifth, and what RFC 5681, 6675, 8985 and 7323 do with an acknowledgement.
    #[inline(always)]
    pub(crate) fn acknowledge(&mut self, frame: &[u8], segment: &Segment) {
        let c = &mut *self.c;
        let ack = segment.ack;
        let advances = ack.is_after(c.snd_una);
        let window_before = c.snd_wnd;
        if !ack.is_before(c.snd_una) {
            // §3.10.7.4: SND.WL1 keeps old segments from changing the window; SND.WL2 is never after SND.UNA and so asks nothing more
            if !segment.seq.is_before(c.snd_wl1) {
                c.snd_wnd = u32::from(segment.window) << c.send_scale;
                c.max_window = c.max_window.max(c.snd_wnd);
                c.snd_wl1 = segment.seq;
            }
        }
        if c.waiting == Waiting::Window {
            self.window_answered();
        }
        let c = &mut *self.c;
        if !c.is_outstanding() {
            if segment.has_more_options && c.flags.has(Flags::SACK) {
                self.late_duplicate(frame, segment);
            }
            return;
        }
        let has_sack = segment.has_more_options && c.flags.has(Flags::SACK);
        if !advances && !has_sack {
            // a duplicate only where it could be none of the ordinary (RFC 5681 §2)
            let is_duplicate = ack == c.snd_una && segment.is_empty() && c.snd_wnd == window_before;
            if is_duplicate {
                self.duplicate_acknowledgement(segment);
            }
            return;
        }
        let in_flight_before = c.send.in_flight();
        let flight_size = c.send.sent() - c.send.sacked();
        let is_calm = !has_sack && !c.flags.has(Flags::RECOVERY) && !c.is_probing();
        let mut delivered = Delivered::default();
        if advances {
            c.snd_una = ack;
            c.retries = 0;
            c.duplicate_acks = 0;
            let originals = c.send.acknowledge_originals(self.nodes, ack);
            if is_calm && (c.send.first() == ack || c.send.is_empty()) && c.send.sacked() == 0 {
                return self.plain_acknowledgement(segment, &originals.delivered(), in_flight_before);
            }
            delivered = originals.delivered().and(&c.send.acknowledge(self.nodes, ack));
        }
        if is_calm && c.send.sacked() == 0 {
            return self.seldom_acknowledgement(segment, &delivered, in_flight_before);
        }
        self.eventful_acknowledgement(frame, segment, delivered, (in_flight_before, flight_size), has_sack);
    }

    /// A cumulative acknowledgement while nothing is wrong: nearly every one.
    #[inline(always)]
    pub(crate) fn plain_acknowledgement(
        &mut self,
        segment: &Segment,
        delivered: &Delivered,
        in_flight_before: u32,
    ) {
        let rtt = self.round_trip(segment, delivered, in_flight_before);
        let c = &mut *self.c;
        let is_idle = c.send.sent() == 0;
        let min_rtt = c.rtt.minimum_us().unwrap_or(0);
        c.rack_mut().on_delivered(&delivered.segments, self.now, min_rtt, None, is_idle);
        if delivered.acked_bytes > 0 {
            let sample = AckSample {
                now: self.now,
                acked_bytes: delivered.acked_bytes,
                in_flight_before,
                rtt_us: rtt,
                srtt_us: c.rtt.smoothed_us(),
                snd_una: c.snd_una,
                snd_nxt: c.snd_nxt,
                is_window_limited: c.flags.has(Flags::WINDOW_LIMITED),
            };
            c.congestion.on_ack(&sample);
        }
        c.flags.set(Flags::REARM);
        self.make_room();
    }

    /// As [`Self::plain_acknowledgement`], of a FIN or part of a piece.
    #[inline(never)]
    pub(crate) fn seldom_acknowledgement(
        &mut self,
        segment: &Segment,
        delivered: &Delivered,
        in_flight_before: u32,
    ) {
        self.plain_acknowledgement(segment, delivered, in_flight_before);
    }

    /// A valid sample of the round trip, if the acknowledgement gives one (RFC 6298 §3; RFC 7323 §4.3 where the data was sent
    /// twice).
    #[inline(always)]
    pub(crate) fn round_trip(
        &mut self,
        segment: &Segment,
        delivered: &Delivered,
        in_flight: u32,
    ) -> Option<u32> {
        let c = &mut *self.c;
        let sample = match delivered.rtt_sent_at() {
            Some(sent_at) => self.now.low().wrapping_sub(sent_at),
            None => {
                let echo = segment.timestamps.filter(|timestamps| {
                    c.flags.has(Flags::TIMESTAMPS) && timestamps.echo != 0 && delivered.acked_bytes > 0
                })?;
                let elapsed = c.ts_now(self.now).wrapping_sub(echo.echo);
                if elapsed > 120_000 {
                    return None;
                }
                elapsed.max(1) * 1_000
            }
        };
        c.rtt.sample(self.now, sample, in_flight, c.mss);
        Some(sample)
    }

    /// The application was refused room and there is some now.
    #[inline(always)]
    pub(crate) fn make_room(&mut self) {
        let c = &mut *self.c;
        if c.flags.has(Flags::WANTS_ROOM) && c.send.len() <= self.config.send_buffer / 2 {
            c.flags.clear(Flags::WANTS_ROOM);
            c.events |= Events::WRITABLE;
        }
    }

    /// RFC 5681 §3.2, RFC 6582: the peer has no SACK, and something arrived out of order.
    #[inline(never)]
    pub(crate) fn duplicate_acknowledgement(&mut self, segment: &Segment) {
        let c = &mut *self.c;
        if c.is_probing() && c.rack_mut().on_probe_ack(segment.ack, None, true) {
            self.probe_repaired();
        }
        let c = &mut *self.c;
        if c.flags.has(Flags::SACK) || c.send.sent() == 0 {
            return;
        }
        c.duplicate_acks = c.duplicate_acks.saturating_add(1);
        let mss = u32::from(c.mss);
        if c.flags.has(Flags::RECOVERY) {
            let in_flight = c.send.in_flight();
            c.congestion.on_recovery_ack(mss.min(in_flight), in_flight.saturating_sub(mss), false);
        } else if c.duplicate_acks >= DUPLICATES && c.snd_una.is_after(c.recover) {
            let flight = c.send.sent();
            c.send.lose_head(self.nodes);
            self.begin_recovery(flight);
            let c = &mut *self.c;
            let in_flight = c.send.in_flight();
            c.congestion.on_recovery_ack(mss, in_flight, false);
        }
    }

    /// All is acknowledged, and a D-SACK tells that what was sent again had arrived before: a repair or a probe was needless.
    #[cold]
    pub(crate) fn late_duplicate(&mut self, frame: &[u8], segment: &Segment) {
        let Some(block) = duplicate_block(&segment.sack_blocks(frame), segment.ack) else { return };
        let c = &mut *self.c;
        c.rack_mut().on_probe_ack(segment.ack, Some(block), false);
        self.sent_needlessly(block);
    }

    /// A D-SACK (RFC 2883): more patience with reordering (RFC 8985 §6.2 step 4), and the reaction to the loss is undone once all
    /// that was sent again has proved needless (RFC 3708 §2).
    pub(crate) fn sent_needlessly(&mut self, block: (SeqNumber, SeqNumber)) {
        let c = &mut *self.c;
        let (snd_una, snd_nxt) = (c.snd_una, c.snd_nxt);
        c.rack_mut().on_duplicate(snd_una, snd_nxt);
        if c.send.duplicate(block) && c.flags.has(Flags::UNDOABLE) {
            self.undo();
        }
    }

    /// RFC 8985 §7.4.2: the probe repaired a loss: one reaction to it.
    pub(crate) fn probe_repaired(&mut self) {
        let c = &mut *self.c;
        let flight = c.send.sent();
        c.congestion.enter_recovery(flight, c.snd_nxt, self.now);
        c.congestion.leave_recovery();
    }

    /// An acknowledgement with SACK blocks, or during a repair.
    #[inline(never)]
    pub(crate) fn eventful_acknowledgement(
        &mut self,
        frame: &[u8],
        segment: &Segment,
        mut delivered: Delivered,
        (in_flight_before, flight_size): (u32, u32),
        has_sack: bool,
    ) {
        let mut duplicate = None;
        if has_sack {
            let mut blocks = segment.sack_blocks(frame);
            duplicate = duplicate_block(&blocks, segment.ack);
            if self.c.flags.has(Flags::FIN_SENT) {
                // the queue knows of data only, a block may reach over the FIN
                let end = self.c.send.sent_end();
                for block in &mut blocks {
                    block.1 = block.1.min(end);
                }
            }
            let sacked = self.c.send.sack(self.nodes, &blocks);
            delivered = delivered.and(&sacked);
        }
        let rtt = self.round_trip(segment, &delivered, in_flight_before);
        if let Some(block) = duplicate {
            self.sent_needlessly(block);
        }
        let c = &mut *self.c;
        if c.is_probing() && c.rack_mut().on_probe_ack(segment.ack, duplicate, false) {
            self.probe_repaired();
        }
        let c = &mut *self.c;
        let echoed_at = segment
            .timestamps
            .filter(|_| c.flags.has(Flags::TIMESTAMPS))
            .map(|timestamps| timestamps.echo.wrapping_sub(c.ts_offset).wrapping_mul(1_000));
        let min_rtt = c.rtt.minimum_us().unwrap_or(0);
        let is_idle = c.send.sent() == 0;
        c.rack_mut().on_delivered(&delivered.segments, self.now, min_rtt, echoed_at, is_idle);
        self.detect_spurious(segment, &delivered);
        let lost = self.lose(flight_size);
        let c = &mut *self.c;
        if c.flags.has(Flags::RECOVERY) {
            if !segment.ack.is_before(c.recover) {
                self.end_recovery();
            } else if !c.flags.has(Flags::TIMED_OUT) {
                if !c.flags.has(Flags::SACK) && delivered.acked_bytes > 0 {
                    // RFC 6582 §3.2: a partial acknowledgement shows the next loss
                    c.send.lose_head(self.nodes);
                }
                let is_safe = delivered.acked_bytes > 0 && lost == 0;
                let in_flight = c.send.in_flight();
                c.congestion.on_recovery_ack(delivered.delivered_bytes, in_flight, is_safe);
            } else {
                self.grow(&delivered, in_flight_before, rtt);
            }
        } else {
            self.grow(&delivered, in_flight_before, rtt);
        }
        if delivered.delivered_bytes > 0 || delivered.acked_bytes > 0 {
            self.c.flags.set(Flags::REARM);
        }
        self.make_room();
    }

    pub(crate) fn grow(&mut self, delivered: &Delivered, in_flight_before: u32, rtt_us: Option<u32>) {
        let c = &mut *self.c;
        if delivered.delivered_bytes == 0 {
            return;
        }
        let sample = AckSample {
            now: self.now,
            acked_bytes: delivered.delivered_bytes,
            in_flight_before,
            rtt_us,
            srtt_us: c.rtt.smoothed_us(),
            snd_una: c.snd_una,
            snd_nxt: c.snd_nxt,
            is_window_limited: c.flags.has(Flags::WINDOW_LIMITED),
        };
        c.congestion.on_ack(&sample);
    }

    /// Finds losses by RACK, and begins a repair where there are any. Bytes newly lost.
    pub(crate) fn lose(&mut self, flight_size: u32) -> u32 {
        let c = &mut *self.c;
        if !c.flags.has(Flags::SACK) {
            return 0;
        }
        let window = c.rack().reordering_window(
            c.rtt.minimum_us().unwrap_or(0),
            c.rtt.smoothed_us(),
            c.flags.has(Flags::RECOVERY),
            c.send.sacked_segments(),
        );
        let rack = *c.rack();
        let losses = c.send.lose_by_rack(self.nodes, &rack, window, self.now);
        if losses.lost_bytes > 0 && !c.flags.has(Flags::RECOVERY) {
            self.begin_recovery(flight_size);
        }
        let c = &mut *self.c;
        if c.waiting == Waiting::Reordering {
            c.waiting = Waiting::Retransmit;
        }
        if let Some(wait_us) = losses.wait_us {
            // RFC 8985 §6.2 step 5: what may only be late is looked at again
            c.waiting = Waiting::Reordering;
            c.retransmit_at = tick(self.now.after(u64::from(wait_us) + 999));
            c.flags.clear(Flags::REARM);
        }
        losses.lost_bytes
    }

    pub(crate) fn begin_recovery(&mut self, flight_size: u32) {
        let c = &mut *self.c;
        self.counters.fast_retransmits += 1;
        c.flags.set(Flags::RECOVERY.and(Flags::UNDOABLE));
        c.flags.clear(Flags::TIMED_OUT);
        c.recover = c.snd_nxt;
        c.undo_before = c.ts_now(self.now);
        c.rack_mut().forget_probe();
        c.send.begin_episode(self.nodes);
        c.congestion.enter_recovery(flight_size, c.snd_nxt, self.now);
        if c.flags.has(Flags::ECN) {
            c.flags.set(Flags::ECN_CWR);
        }
    }

    pub(crate) fn end_recovery(&mut self) {
        let c = &mut *self.c;
        // what was needless may show after the repair (UNDOABLE stays until the next one begins)
        c.flags.clear(Flags::RECOVERY.and(Flags::TIMED_OUT));
        c.rack_mut().on_recovery_end();
        c.congestion.leave_recovery();
        c.duplicate_acks = 0;
    }

    /// RFC 3522 (Eifel): the acknowledgement that first covers what was sent again echoes a timestamp from before: the
    /// original had arrived.
    pub(crate) fn detect_spurious(&mut self, segment: &Segment, delivered: &Delivered) {
        let c = &mut *self.c;
        if !c.flags.has(Flags::UNDOABLE) || !c.flags.has(Flags::TIMESTAMPS) || delivered.acked_bytes == 0 {
            return;
        }
        if delivered.segments.retransmitted.is_none() {
            return;
        }
        let Some(timestamps) = segment.timestamps else { return };
        if (timestamps.echo.wrapping_sub(c.undo_before) as i32) < 0 {
            self.undo();
        } else {
            c.flags.clear(Flags::UNDOABLE);
        }
    }

    pub(crate) fn undo(&mut self) {
        let c = &mut *self.c;
        if c.congestion.undo() {
            self.counters.spurious += 1;
        }
        c.send.recover_spurious(self.nodes);
        c.flags.clear(Flags::RECOVERY.and(Flags::TIMED_OUT).and(Flags::UNDOABLE));
        c.rtt.reset_back_off();
    }

    /// The peer answers probes of its window: it is there (RFC 9293 §3.8.6.1).
    pub(crate) fn window_answered(&mut self) {
        let c = &mut *self.c;
        c.retries = 0;
        if c.snd_wnd > 0 {
            c.waiting = Waiting::Nothing;
            c.rtt.reset_back_off();
        }
    }
}

/// RFC 2883 §4: the first block is a D-SACK where it lies below the acknowledgement, or within the second block.
fn duplicate_block(blocks: &[(SeqNumber, SeqNumber)], ack: SeqNumber) -> Option<(SeqNumber, SeqNumber)> {
    let &(start, end) = blocks.first()?;
    let is_below = !end.is_after(ack);
    let is_within = blocks.get(1).is_some_and(|&(from, to)| !start.is_before(from) && !end.is_after(to));
    (is_below || is_within).then_some((start, end))
}
