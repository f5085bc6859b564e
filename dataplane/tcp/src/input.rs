//! What does a segment mean for its connection? RFC 9293 §3.10.7.3 and §3.10.7.4, in their order.

use weir_net::tcp;

use crate::buffer::Buffer;
use crate::config::ConnectionConfig;
use crate::connection::{Connection, Flags, State, Waiting};
use crate::counters::Counters;
use crate::engine::{Engine, tick};
use crate::event::{Ended, Events};
use crate::header::Header;
use crate::limit::{ChallengeLimit, OUT_OF_PLACE_MS};
use crate::queue::Nodes;
use crate::rtt::Bounds;
use crate::secret::Secrets;
use crate::segment::Segment;
use crate::time::Instant;
use crate::transmit::Transmit;

/// RFC 7323 §5.5: a timestamp that is older than this says nothing.
const TIMESTAMP_LIFE_MS: u32 = 24 * 24 * 3_600 * 1_000;

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
    /// Most bytes that wait for the application: see [`Engine::share`].
    pub(crate) share: u32,
    pub(crate) now: Instant,
    /// The segment that is sent next, kept for its place.
    pub(crate) header: &'a mut Header,
}

impl<B: Buffer> Engine<B> {
    /// What a connection's code works on.
    #[inline(always)]
    pub(crate) fn work(&mut self, slot: u32, now: Instant) -> Option<Work<'_, B>> {
        let share = self.share();
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
            share,
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
        // what is over sends nothing more but a RST, which sees to itself
        let has_to_send = matches!(outcome, Outcome::Alive | Outcome::Refuse) && !work.is_at_rest();
        let c = &mut *work.c;
        let (after, flags) = (c.state, c.flags);
        let has_news = !c.events.is_empty() && !flags.has(Flags::NEWS);
        c.flags.put(Flags::READY, has_to_send || flags.has(Flags::READY));
        c.flags.put(Flags::NEWS, has_news || flags.has(Flags::NEWS));
        if before != after {
            self.entered(slot, before, after);
        }
        if has_news {
            self.news.push_back(slot);
        }
        if has_to_send && !flags.has(Flags::READY) {
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
        if c.state == State::SynReceived {
            // §3.10.7.4, fifth: the acknowledgement of our SYN completes the handshake, whose time nothing else prolongs
            if !segment.ack.is_after(c.snd_una) || segment.ack.is_after(c.snd_nxt) {
                return Outcome::Refuse;
            }
            self.complete(segment);
        }
        let c = &mut *self.c;
        c.heard_at = tick(self.now);
        c.keep_alives = 0;
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
            // what it acknowledges has arrived there, though nothing is sent any more: an application may ask
            let is_new = segment.ack.is_after(c.snd_una) && !segment.ack.is_after(c.snd_nxt);
            if segment.has(tcp::ACK) && is_new {
                c.snd_una = segment.ack;
            }
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

    /// The bounds of the retransmission timer.
    #[inline(always)]
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds::new(self.config.rto_min_ms, self.config.rto_max_ms)
    }
}
