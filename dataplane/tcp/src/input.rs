//! What does a segment mean for its connection? RFC 9293 §3.10.7.3 and §3.10.7.4, in their order.

use weir_net::tcp;

use crate::buffer::{Buffer, Chunk};
use crate::config::ConnectionConfig;
use crate::congestion::AckSample;
use crate::connection::{Connection, Flags, State, Waiting};
use crate::counters::Counters;
use crate::engine::{Engine, tick};
use crate::event::{Ended, Events};
use crate::header::Header;
use crate::limit::{ChallengeLimit, OUT_OF_PLACE_MS};
use crate::queue::{Delivered, Nodes};
use crate::rtt::Bounds;
use crate::secret::Secrets;
use crate::segment::Segment;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::transmit::Transmit;

/// RFC 7323 §5.5: a timestamp that is older than this says nothing.
const TIMESTAMP_LIFE_MS: u32 = 24 * 24 * 3_600 * 1_000;
/// Duplicate acknowledgements that mean a loss, for peers without SACK (RFC 5681 §3.2).
const DUPLICATES: u8 = 3;
/// Data in a buffer that is at least so many times larger is copied out, so that small writes don't pin large buffers. The
/// first piece is not, while there is memory: most applications read it at once.
const COPY_RATIO: u32 = 4;

/// What has to be done beyond the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing.
    Alive,
    /// The connection is over.
    Over(Ended),
    /// The connection is over, and the peer is told.
    Reset(Ended),
    /// TIME_WAIT begins.
    TimeWait,
    /// The segment is refused with a RST of its own; the connection goes on.
    Refuse,
}

/// A connection and what its code may touch.
pub(crate) struct Work<'a, B> {
    pub(crate) c: &'a mut Connection,
    pub(crate) nodes: &'a mut Nodes<B>,
    pub(crate) counters: &'a mut Counters,
    pub(crate) config: &'a ConnectionConfig,
    pub(crate) challenge: &'a mut ChallengeLimit,
    pub(crate) secrets: &'a Secrets,
    pub(crate) memory: u64,
    pub(crate) now: Instant,
    /// The segment that is sent next, kept for its place.
    pub(crate) header: &'a mut Header,
}

impl<B: Buffer> Engine<B> {
    /// What a connection's code works on.
    #[inline(always)]
    pub(crate) fn work(&mut self, slot: u32, now: Instant) -> Option<Work<'_, B>> {
        let c = self.slab.at_mut(slot)?;
        let profile = self.profiles.get(usize::from(c.profile))?.as_ref()?;
        Some(Work {
            c,
            nodes: &mut self.nodes,
            counters: &mut self.counters,
            config: &profile.config,
            challenge: &mut self.challenge,
            secrets: &self.secrets,
            memory: self.config.memory,
            now,
            header: &mut self.header,
        })
    }

    /// A segment of a connection.
    #[inline]
    pub(crate) fn arrived(
        &mut self,
        slot: u32,
        buffer: B,
        segment: &Segment,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        let Some(mut work) = self.work(slot, now) else { return };
        let before = work.c.state;
        let outcome = work.segment(buffer, segment, tx);
        let c = &mut *work.c;
        let (after, flags) = (c.state, c.flags);
        let has_news = !c.events.is_empty() && !flags.has(Flags::NEWS);
        c.flags.set(Flags::READY);
        c.flags.put(Flags::NEWS, has_news || flags.has(Flags::NEWS));
        if before != after {
            self.entered(slot, before, after);
        }
        if has_news {
            self.news.push_back(slot);
        }
        if !flags.has(Flags::READY) {
            self.ready.push(slot);
        }
        if outcome != Outcome::Alive {
            self.conclude(slot, outcome, Some(segment), now, tx);
        }
    }

    /// Does what is beyond the record.
    pub(crate) fn conclude(
        &mut self,
        slot: u32,
        outcome: Outcome,
        segment: Option<&Segment>,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        match outcome {
            Outcome::Alive => {}
            Outcome::Over(ended) => self.finish(slot, ended),
            Outcome::Reset(ended) => self.reset(slot, ended),
            Outcome::TimeWait => self.begin_time_wait(slot, now, tx),
            Outcome::Refuse => {
                let ends = self.slab.at(slot).map(|record| (record.local(), record.remote()));
                if let (Some(ends), Some(segment)) = (ends, segment) {
                    self.counters.resets_bad_ack += 1;
                    self.refuse(segment, ends, tx);
                }
            }
        }
    }

    /// Data of a SYN, once its cookie was found good.
    pub(crate) fn take_data(
        &mut self,
        slot: u32,
        buffer: B,
        segment: &Segment,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        if let Some(mut work) = self.work(slot, now) {
            work.data(buffer, segment, tx);
        }
        self.announce(slot, Events::default());
    }
}

impl<B: Buffer> Work<'_, B> {
    #[inline(always)]
    fn segment(&mut self, buffer: B, segment: &Segment, tx: &mut impl Transmit<B>) -> Outcome {
        match self.c.state {
            State::Closed => Outcome::Alive,
            State::SynSent => self.in_syn_sent(buffer, segment, tx),
            _ => self.synchronized(buffer, segment, tx),
        }
    }

    /// RFC 9293 §3.10.7.3.
    #[inline(never)]
    fn in_syn_sent(&mut self, buffer: B, segment: &Segment, tx: &mut impl Transmit<B>) -> Outcome {
        let c = &mut *self.c;
        let has_ack = segment.has(tcp::ACK);
        // the SYN may not have left yet
        let is_acceptable = segment.ack.is_after(c.snd_una) && !segment.ack.is_after(c.snd_nxt);
        if has_ack && !is_acceptable {
            return if segment.has(tcp::RST) { Outcome::Alive } else { Outcome::Refuse };
        }
        if segment.has(tcp::RST) {
            if !has_ack {
                return Outcome::Alive;
            }
            self.counters.refused += 1;
            return Outcome::Over(Ended::Refused);
        }
        if !segment.has(tcp::SYN) {
            return Outcome::Alive;
        }
        let (wanted_timestamps, wanted_sack, wanted_ecn) =
            (c.flags.has(Flags::TIMESTAMPS), c.flags.has(Flags::SACK), c.flags.has(Flags::ECN));
        let options = segment.options(buffer.bytes());
        c.take_syn(segment, &options, self.config, self.now);
        c.flags.put(Flags::TIMESTAMPS, c.flags.has(Flags::TIMESTAMPS) && wanted_timestamps);
        c.flags.put(Flags::SACK, c.flags.has(Flags::SACK) && wanted_sack);
        if !has_ack {
            // RFC 9293 §3.5: simultaneous open
            c.state = State::SynReceived;
            c.flags.set(Flags::SYN_DUE);
            c.flags.clear(Flags::ECN);
            return Outcome::Alive;
        }
        // RFC 3168 §6.1.1: an ECN-setup SYN+ACK has ECE without CWR
        let agrees = segment.flags & (tcp::ECE | tcp::CWR) == tcp::ECE;
        c.flags.put(Flags::ECN, wanted_ecn && agrees);
        c.snd_una = segment.ack;
        c.snd_wl2 = segment.ack;
        c.events |= Events::CONNECTED;
        c.flags.set(Flags::ACK_NOW);
        self.counters.connected += 1;
        self.established();
        if segment.payload_len > 0 {
            self.data(buffer, segment, tx);
        }
        self.fin(segment)
    }

    /// The handshake is over: its round trip is the first sample, its timer ends.
    fn established(&mut self) {
        let c = &mut *self.c;
        c.state = State::Established;
        c.waiting = Waiting::Nothing;
        if !c.flags.has(Flags::SYN_REPEATED) && !c.flags.has(Flags::SYN_UNTIMED) {
            c.rtt.sample(self.now, self.now.low().wrapping_sub(c.sent_at), 0, c.mss);
        }
        if c.flags.has(Flags::SYN_REPEATED) {
            c.rtt.finish_slow_handshake();
            if c.retries > 1 {
                c.congestion.on_handshake_loss();
            }
        }
        c.rtt.reset_back_off();
        c.retries = 0;
        c.rate_at = self.now.low();
        c.events |= Events::WRITABLE;
    }

    /// RFC 9293 §3.10.7.4.
    #[inline(always)]
    fn synchronized(&mut self, buffer: B, segment: &Segment, tx: &mut impl Transmit<B>) -> Outcome {
        if let Some(outcome) = self.refused(segment) {
            return outcome;
        }
        let c = &mut *self.c;
        c.heard_at = tick(self.now);
        c.keep_alives = 0;
        if c.state == State::SynReceived {
            // §3.10.7.4, fifth: the acknowledgement of our SYN completes the handshake
            if !segment.ack.is_after(c.snd_una) || segment.ack.is_after(c.snd_nxt) {
                return Outcome::Refuse;
            }
            self.complete(segment);
        }
        let c = &mut *self.c;
        // RFC 5961 §5.2: what acknowledges the future, or the distant past, is not the peer
        let is_too_old = segment.ack.is_before(c.snd_una - c.max_window.max(1));
        if segment.ack.is_after(c.snd_nxt) || is_too_old {
            self.challenge();
            return Outcome::Alive;
        }
        if c.flags.has(Flags::TIMESTAMPS)
            && let Some(timestamps) = segment.timestamps
            && !segment.seq.is_after(c.last_ack)
        {
            // RFC 7323 §4.3
            c.ts_recent = timestamps.value;
            c.ts_recent_at = tick(self.now);
        }
        if c.flags.has(Flags::ECN) {
            self.congestion_marks(segment);
        }
        self.acknowledge(buffer.bytes(), segment);
        let c = &mut *self.c;
        if c.is_fin_acknowledged() {
            match c.state {
                State::FinWait1 => {
                    c.state = State::FinWait2;
                    c.waiting = Waiting::Nothing;
                    c.events |= Events::FLUSHED;
                }
                State::Closing => return Outcome::TimeWait,
                State::LastAck => return Outcome::Over(Ended::Finished),
                _ => {}
            }
        }
        if segment.payload_len > 0 {
            if !self.c.state.receives() {
                // §3.10.7.4, seventh: nothing comes after a FIN; it was sent again because our acknowledgement got lost
                self.c.flags.set(Flags::ACK_NOW);
                return Outcome::Alive;
            }
            let is_new = segment.end().is_after(self.c.rcv_nxt);
            if !self.c.flags.has(Flags::OWNED) && is_new {
                self.counters.resets_data_after_close += 1;
                return Outcome::Reset(Ended::DataAfterClose);
            }
            self.data(buffer, segment, tx);
        }
        if segment.has(tcp::FIN) || self.c.flags.has(Flags::FIN_PENDING) {
            self.fin(segment)
        } else {
            Outcome::Alive
        }
    }

    /// The checks that come before the acknowledgement: `Some` where the segment goes no further.
    #[inline(always)]
    fn refused(&mut self, segment: &Segment) -> Option<Outcome> {
        let c = &mut *self.c;
        if c.flags.has(Flags::TIMESTAMPS) && !segment.has(tcp::RST) {
            let is_old = match segment.timestamps {
                Some(timestamps) => (timestamps.value.wrapping_sub(c.ts_recent) as i32) < 0,
                // RFC 7323 §3.2: a segment without timestamps is dropped, where they were agreed on
                None => true,
            };
            if is_old && tick(self.now).wrapping_sub(c.ts_recent_at) < TIMESTAMP_LIFE_MS {
                return Some(self.paws(segment));
            }
        }
        // first: the sequence number. Like Linux, a segment is also looked at that ends where we last acknowledged, or begins
        // right behind the window: its acknowledgement counts, its data don't
        if segment.end().is_before(c.last_ack) || segment.seq.is_after(c.rcv_edge.max(c.rcv_nxt)) {
            self.counters.out_of_window += 1;
            return Some(self.out_of_place(segment));
        }
        let unusual = segment.flags & (tcp::RST | tcp::SYN) != 0 || !segment.has(tcp::ACK);
        if unusual { self.unusual(segment) } else { None }
    }

    #[cold]
    fn paws(&mut self, segment: &Segment) -> Outcome {
        self.counters.paws_drops += 1;
        if segment.timestamps.is_some() {
            return self.out_of_place(segment);
        }
        Outcome::Alive
    }

    /// RFC 9293 §3.10.7.4, first: an unacceptable segment is answered with an acknowledgement, unless it is a RST.
    #[inline(never)]
    fn out_of_place(&mut self, segment: &Segment) -> Outcome {
        if segment.has(tcp::RST) {
            return Outcome::Alive;
        }
        let c = &mut *self.c;
        if c.state == State::SynReceived {
            // the peer has not heard our SYN+ACK
            if segment.has(tcp::SYN) {
                c.flags.set(Flags::SYN_DUE);
            }
            return Outcome::Alive;
        }
        if segment.payload_len > 0 || segment.has(tcp::FIN) {
            // RFC 2883 §4: only what had arrived before is a duplicate; what is refused for its timestamp, or lies beyond the
            // window, must not look as if it were here
            let start = segment.payload_seq();
            let end = (start + u32::from(segment.payload_len)).min(c.rcv_nxt);
            if start.is_before(end) {
                self.note_duplicate(start, end);
            }
            self.c.flags.set(Flags::ACK_NOW);
        } else if segment.has(tcp::SYN) {
            self.challenge();
        } else {
            let now = tick(self.now);
            if now.wrapping_sub(c.challenged_at) >= OUT_OF_PLACE_MS {
                c.challenged_at = now;
                c.flags.set(Flags::ACK_NOW);
            }
        }
        Outcome::Alive
    }

    /// RST, SYN, or no ACK at all.
    #[inline(never)]
    fn unusual(&mut self, segment: &Segment) -> Option<Outcome> {
        let c = &mut *self.c;
        if segment.has(tcp::RST) {
            // RFC 5961 §3.2: only the exact number resets
            if segment.seq != c.rcv_nxt {
                self.challenge();
                return Some(Outcome::Alive);
            }
            self.counters.resets_received += 1;
            let refused = c.state == State::SynReceived && !c.flags.has(Flags::PASSIVE);
            return Some(Outcome::Over(if refused { Ended::Refused } else { Ended::Reset }));
        }
        if segment.has(tcp::SYN) {
            let is_of_handshake = c.state == State::SynReceived && segment.seq + 1 == c.rcv_nxt;
            if is_of_handshake && segment.has(tcp::ACK) && segment.ack == c.snd_nxt {
                // the answer of a simultaneous open (RFC 9293 §3.5, figure 8)
                return None;
            }
            // data of a fast open SYN has moved RCV.NXT on
            let is_again =
                is_of_handshake || (c.flags.has(Flags::FAST_OPEN) && segment.seq.is_before(c.rcv_nxt));
            if c.state == State::SynReceived && is_again && !segment.has(tcp::ACK) {
                c.flags.set(Flags::SYN_DUE);
                return Some(Outcome::Alive);
            }
            // RFC 5961 §4.2
            self.challenge();
            return Some(Outcome::Alive);
        }
        Some(Outcome::Alive)
    }

    /// RFC 5961 §3, §4, §5: an acknowledgement, within the rate of the connection and that of all (§7).
    #[cold]
    pub(crate) fn challenge(&mut self) {
        let now = tick(self.now);
        let is_soon = now.wrapping_sub(self.c.challenged_at) < OUT_OF_PLACE_MS;
        if !is_soon && self.challenge.take(now) {
            self.c.challenged_at = now;
            self.counters.challenge_acks += 1;
            self.c.flags.set(Flags::ACK_NOW);
        } else {
            self.counters.challenge_acks_withheld += 1;
        }
    }

    /// Our SYN+ACK is acknowledged.
    fn complete(&mut self, segment: &Segment) {
        let first = self.c.send.first();
        let c = &mut *self.c;
        c.snd_una = first;
        c.snd_wnd = u32::from(segment.window) << c.send_scale;
        c.max_window = c.max_window.max(c.snd_wnd);
        c.snd_wl1 = segment.seq;
        c.snd_wl2 = segment.ack;
        if !c.flags.has(Flags::PASSIVE) {
            c.events |= Events::CONNECTED;
            self.counters.connected += 1;
        } else if !c.flags.has(Flags::FAST_OPEN) {
            c.flags.set(Flags::OWNED);
            c.events |= Events::ACCEPTED;
            self.counters.accepted += 1;
        }
        self.established();
    }

    /// RFC 3168 §6.1.2, §6.1.3: the peer's echo of marks on our data, and marks on its data.
    fn congestion_marks(&mut self, segment: &Segment) {
        let c = &mut *self.c;
        if segment.has(tcp::CWR) && segment.payload_len > 0 {
            c.flags.clear(Flags::ECN_ECHO);
        }
        if segment.ecn_ce && segment.payload_len > 0 {
            self.counters.ecn_marks += 1;
            c.flags.set(Flags::ECN_ECHO.and(Flags::ACK_NOW));
        }
        if segment.has(tcp::ECE) && !segment.has(tcp::SYN) && segment.ack.is_after(c.snd_una) {
            let flight = c.send.sent() - c.send.sacked();
            if c.congestion.on_explicit_congestion(flight, segment.ack, c.snd_nxt, self.now) {
                c.flags.set(Flags::ECN_CWR);
            }
        }
    }

    /// RFC 9293 §3.10.7.4, fifth, and what RFC 5681, 6675, 8985 and 7323 do with an acknowledgement.
    #[inline(always)]
    fn acknowledge(&mut self, frame: &[u8], segment: &Segment) {
        let c = &mut *self.c;
        let ack = segment.ack;
        let advances = ack.is_after(c.snd_una);
        let window_before = c.snd_wnd;
        if !ack.is_before(c.snd_una) {
            // §3.10.7.4: SND.WL1 and SND.WL2 keep old segments from changing the window
            let is_newer =
                c.snd_wl1.is_before(segment.seq) || (c.snd_wl1 == segment.seq && !ack.is_before(c.snd_wl2));
            if is_newer {
                c.snd_wnd = u32::from(segment.window) << c.send_scale;
                c.max_window = c.max_window.max(c.snd_wnd);
                c.snd_wl1 = segment.seq;
                c.snd_wl2 = ack;
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
        let is_calm = !has_sack && !c.flags.has(Flags::RECOVERY) && !c.rack.is_probing();
        let mut delivered = Delivered::default();
        if advances {
            c.snd_una = ack;
            c.retries = 0;
            c.duplicate_acks = 0;
            let originals = c.send.acknowledge_originals(self.nodes, ack);
            if is_calm && c.send.first() == ack && c.send.sacked() == 0 {
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
    fn plain_acknowledgement(&mut self, segment: &Segment, delivered: &Delivered, in_flight_before: u32) {
        let rtt = self.round_trip(segment, delivered, in_flight_before);
        let c = &mut *self.c;
        let is_idle = c.send.sent() == 0;
        let min_rtt = c.rtt.minimum_us().unwrap_or(0);
        c.rack.on_delivered(&delivered.segments, self.now, min_rtt, None, is_idle);
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
    fn seldom_acknowledgement(&mut self, segment: &Segment, delivered: &Delivered, in_flight_before: u32) {
        self.plain_acknowledgement(segment, delivered, in_flight_before);
    }

    /// A valid sample of the round trip, if the acknowledgement gives one (RFC 6298 §3; RFC 7323 §4.3 where the data was sent
    /// twice).
    #[inline(always)]
    fn round_trip(&mut self, segment: &Segment, delivered: &Delivered, in_flight: u32) -> Option<u32> {
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
    fn make_room(&mut self) {
        let c = &mut *self.c;
        if c.flags.has(Flags::WANTS_ROOM) && c.send.len() <= self.config.send_buffer / 2 {
            c.flags.clear(Flags::WANTS_ROOM);
            c.events |= Events::WRITABLE;
        }
    }

    /// RFC 5681 §3.2, RFC 6582: the peer has no SACK, and something arrived out of order.
    #[inline(never)]
    fn duplicate_acknowledgement(&mut self, segment: &Segment) {
        let c = &mut *self.c;
        if c.rack.is_probing() && c.rack.on_probe_ack(segment.ack, None, true) {
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
    fn late_duplicate(&mut self, frame: &[u8], segment: &Segment) {
        let Some(block) = duplicate_block(&segment.sack_blocks(frame), segment.ack) else { return };
        let c = &mut *self.c;
        c.rack.on_probe_ack(segment.ack, Some(block), false);
        self.sent_needlessly(block);
    }

    /// A D-SACK (RFC 2883): more patience with reordering (RFC 8985 §6.2 step 4), and the reaction to the loss is undone once all
    /// that was sent again has proved needless (RFC 3708 §2).
    fn sent_needlessly(&mut self, block: (SeqNumber, SeqNumber)) {
        let c = &mut *self.c;
        c.rack.on_duplicate(c.snd_una, c.snd_nxt);
        if c.send.duplicate(block) && c.flags.has(Flags::UNDOABLE) {
            self.undo();
        }
    }

    /// RFC 8985 §7.4.2: the probe repaired a loss: one reaction to it.
    fn probe_repaired(&mut self) {
        let c = &mut *self.c;
        let flight = c.send.sent();
        c.congestion.enter_recovery(flight, c.snd_nxt, self.now);
        c.congestion.leave_recovery();
    }

    /// An acknowledgement with SACK blocks, or during a repair.
    #[inline(never)]
    fn eventful_acknowledgement(
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
        if c.rack.is_probing() && c.rack.on_probe_ack(segment.ack, duplicate, false) {
            self.probe_repaired();
        }
        let c = &mut *self.c;
        let echoed_at = segment
            .timestamps
            .filter(|_| c.flags.has(Flags::TIMESTAMPS))
            .map(|timestamps| timestamps.echo.wrapping_sub(c.ts_offset).wrapping_mul(1_000));
        let min_rtt = c.rtt.minimum_us().unwrap_or(0);
        let is_idle = c.send.sent() == 0;
        c.rack.on_delivered(&delivered.segments, self.now, min_rtt, echoed_at, is_idle);
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

    fn grow(&mut self, delivered: &Delivered, in_flight_before: u32, rtt_us: Option<u32>) {
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
        let window = c.rack.reordering_window(
            c.rtt.minimum_us().unwrap_or(0),
            c.rtt.smoothed_us(),
            c.flags.has(Flags::RECOVERY),
            c.send.sacked_segments(),
        );
        let losses = c.send.lose_by_rack(self.nodes, &c.rack, window, self.now);
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

    fn begin_recovery(&mut self, flight_size: u32) {
        let c = &mut *self.c;
        self.counters.fast_retransmits += 1;
        c.flags.set(Flags::RECOVERY.and(Flags::UNDOABLE));
        c.flags.clear(Flags::TIMED_OUT);
        c.recover = c.snd_nxt;
        c.undo_before = c.ts_now(self.now);
        c.rack.forget_probe();
        c.send.begin_episode(self.nodes);
        c.congestion.enter_recovery(flight_size, c.snd_nxt, self.now);
        if c.flags.has(Flags::ECN) {
            c.flags.set(Flags::ECN_CWR);
        }
    }

    fn end_recovery(&mut self) {
        let c = &mut *self.c;
        // what was needless may show after the repair (UNDOABLE stays until the next one begins)
        c.flags.clear(Flags::RECOVERY.and(Flags::TIMED_OUT));
        c.rack.on_recovery_end();
        c.congestion.leave_recovery();
        c.duplicate_acks = 0;
    }

    /// RFC 3522 (Eifel): the acknowledgement that first covers what was sent again echoes a timestamp from before: the
    /// original had arrived.
    fn detect_spurious(&mut self, segment: &Segment, delivered: &Delivered) {
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

    fn undo(&mut self) {
        let c = &mut *self.c;
        if c.congestion.undo() {
            self.counters.spurious += 1;
        }
        c.send.recover_spurious(self.nodes);
        c.flags.clear(Flags::RECOVERY.and(Flags::TIMED_OUT).and(Flags::UNDOABLE));
        c.rtt.reset_back_off();
    }

    /// The peer answers probes of its window: it is there (RFC 9293 §3.8.6.1).
    fn window_answered(&mut self) {
        let c = &mut *self.c;
        c.retries = 0;
        if c.snd_wnd > 0 {
            c.waiting = Waiting::Nothing;
            c.rtt.reset_back_off();
        }
    }

    /// A block of bytes that arrived again is told with the next acknowledgement (RFC 2883 §4).
    fn note_duplicate(&mut self, start: SeqNumber, end: SeqNumber) {
        let c = &mut *self.c;
        if c.flags.has(Flags::SACK) && start != end {
            c.duplicate = start;
            c.duplicate_len = end.since(start).min(u32::from(u16::MAX)) as u16;
            c.flags.set(Flags::DUPLICATE);
        }
    }

    /// RFC 9293 §3.10.7.4, seventh: the data.
    #[inline(always)]
    fn data(&mut self, buffer: B, segment: &Segment, tx: &mut impl Transmit<B>) {
        let c = &mut *self.c;
        let mut start = segment.payload_seq();
        let mut chunk = Chunk { buffer, offset: segment.payload_offset, len: segment.payload_len };
        if start != c.rcv_nxt || (start + u32::from(chunk.len)).is_after(c.rcv_edge) {
            let Some(trimmed) = self.trim(start, chunk) else { return };
            (start, chunk) = trimmed;
        }
        let c = &mut *self.c;
        let len = u32::from(chunk.len);
        let is_over_budget = self.nodes.pinned() > self.memory;
        let in_order = start == c.rcv_nxt;
        if (is_over_budget && (!in_order || !c.receive.is_empty())) || (!in_order && self.nodes.is_scarce()) {
            self.counters.no_memory += 1;
            c.flags.set(Flags::ACK_NOW);
            return;
        }
        if in_order && self.nodes.is_full() {
            // RFC 2018 §8: what waits behind a gap goes before what fills it
            c.receive.drop_out_of_order(self.nodes);
        }
        let is_kept = !c.receive.is_empty() || self.nodes.pinned() > self.memory / 4;
        if (is_kept || !in_order)
            && len * COPY_RATIO < chunk.buffer.cost()
            && let Some(small) = tx.copy(chunk.bytes())
        {
            chunk = Chunk { buffer: small, offset: 0, len: chunk.len };
        }
        if !in_order {
            return self.out_of_order(start, chunk);
        }
        if c.receive.has_out_of_order() {
            self.out_of_order(start, chunk);
            let c = &mut *self.c;
            let before = c.rcv_nxt;
            c.rcv_nxt = c.receive.advance(self.nodes, before);
            if c.rcv_nxt != before {
                self.counters.bytes_in += u64::from(c.rcv_nxt.since(before));
                c.events |= Events::READABLE;
                self.adapt_space();
            }
            return;
        }
        if c.receive.append(self.nodes, chunk).is_err() {
            self.counters.no_memory += 1;
            c.flags.set(Flags::ACK_NOW);
            return;
        }
        self.counters.bytes_in += u64::from(len);
        c.rcv_nxt += len;
        c.events |= Events::READABLE;
        self.acknowledge_later(len);
        self.adapt_space();
    }

    /// Cuts off what arrived before and what lies beyond the window.
    #[inline(never)]
    fn trim(&mut self, mut start: SeqNumber, mut chunk: Chunk<B>) -> Option<(SeqNumber, Chunk<B>)> {
        let c = &mut *self.c;
        let end = start + u32::from(chunk.len);
        if start.is_before(c.rcv_nxt) {
            let old = c.rcv_nxt.min(end).since(start);
            self.counters.duplicate_bytes += u64::from(old);
            self.note_duplicate(start, start + old);
            let c = &mut *self.c;
            c.flags.set(Flags::ACK_NOW);
            if old >= u32::from(chunk.len) {
                return None;
            }
            chunk.offset += old as u16;
            chunk.len -= old as u16;
            start += old;
        }
        let c = &mut *self.c;
        if end.is_after(c.rcv_edge) {
            let room = if start.is_before(c.rcv_edge) { c.rcv_edge.since(start) } else { 0 };
            self.counters.out_of_window += 1;
            c.flags.set(Flags::ACK_NOW);
            c.flags.set(Flags::CUT);
            if room == 0 {
                return None;
            }
            chunk.len = chunk.len.min(room as u16);
        }
        Some((start, chunk))
    }

    #[inline(never)]
    fn out_of_order(&mut self, start: SeqNumber, chunk: Chunk<B>) {
        let c = &mut *self.c;
        self.counters.out_of_order += 1;
        // RFC 5681 §4.2: at once, so that the sender sees the gap
        c.flags.set(Flags::ACK_NOW);
        let inserted = c.receive.insert(self.nodes, start, chunk, c.rcv_nxt);
        if let Some((start, end)) = inserted.duplicate {
            self.counters.duplicate_bytes += u64::from(end.since(start));
            self.note_duplicate(start, end);
        }
        if !inserted.stored && inserted.duplicate.is_none() {
            self.counters.no_memory += 1;
        }
    }

    /// RFC 9293 §3.8.6.3, RFC 5681 §4.2: every second full segment is acknowledged at once, others within the delay.
    #[inline(always)]
    fn acknowledge_later(&mut self, len: u32) {
        let c = &mut *self.c;
        c.unacked_bytes += len;
        if c.quick_acks > 0 {
            c.quick_acks -= 1;
            c.flags.set(Flags::ACK_NOW);
        } else if c.unacked_bytes >= 2 * u32::from(c.mss) {
            c.flags.set(Flags::ACK_NOW);
        } else if !c.flags.has(Flags::ACK_DELAYED) {
            c.flags.set(Flags::ACK_DELAYED);
            c.acknowledge_at = tick(self.now).wrapping_add(u32::from(self.config.delayed_ack_ms));
        }
    }

    /// Lets the window grow with what the application reads in a round trip, up to the ceiling and within the memory.
    #[inline(always)]
    fn adapt_space(&mut self) {
        let c = &mut *self.c;
        let elapsed = self.now.low().wrapping_sub(c.rate_at);
        if c.receive_space < self.config.receive_buffer && elapsed >= c.rtt.smoothed_us().max(1_000) {
            let read = (c.rcv_nxt - c.receive.len()).since(c.rate_from);
            // twice what was read, so that the sender's slow start is not held back
            let wanted = read.saturating_mul(2);
            if wanted > c.receive_space && self.nodes.pinned() < self.memory / 4 * 3 {
                c.receive_space = wanted.max(c.receive_space * 2).min(self.config.receive_buffer);
            }
            c.rate_from = c.rcv_nxt - c.receive.len();
            c.rate_at = self.now.low();
        }
    }

    /// RFC 9293 §3.10.7.4, eighth: the FIN, once all before it is here.
    fn fin(&mut self, segment: &Segment) -> Outcome {
        let c = &mut *self.c;
        if c.flags.has(Flags::FIN_RECEIVED) {
            // first check of §3.10.7.4: the peer has not heard our acknowledgement
            c.flags.set(Flags::ACK_NOW);
            return Outcome::Alive;
        }
        if segment.has(tcp::FIN) && !c.flags.has(Flags::CUT) {
            c.remote_fin = segment.payload_seq() + u32::from(segment.payload_len);
            c.flags.set(Flags::FIN_PENDING);
        }
        c.flags.clear(Flags::CUT);
        if !c.flags.has(Flags::FIN_PENDING) || c.remote_fin != c.rcv_nxt {
            return Outcome::Alive;
        }
        c.flags.clear(Flags::FIN_PENDING);
        c.flags.set(Flags::FIN_RECEIVED.and(Flags::ACK_NOW));
        c.rcv_nxt += 1;
        c.rcv_edge = c.rcv_edge.max(c.rcv_nxt);
        c.events |= Events::FINISHED;
        match c.state {
            State::Established | State::SynReceived => c.state = State::CloseWait,
            State::FinWait1 => c.state = State::Closing,
            State::FinWait2 => return Outcome::TimeWait,
            _ => {}
        }
        Outcome::Alive
    }

    /// The bounds of the retransmission timer.
    #[inline(always)]
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds::new(self.config.rto_min_ms, self.config.rto_max_ms)
    }
}

/// RFC 2883 §4: the first block is a D-SACK where it lies below the acknowledgement, or within the second block.
fn duplicate_block(blocks: &[(SeqNumber, SeqNumber)], ack: SeqNumber) -> Option<(SeqNumber, SeqNumber)> {
    let &(start, end) = blocks.first()?;
    let is_below = !end.is_after(ack);
    let is_within = blocks.get(1).is_some_and(|&(from, to)| !start.is_before(from) && !end.is_after(to));
    (is_below || is_within).then_some((start, end))
}
