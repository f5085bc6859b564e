//! What happens when nothing happens? Time-outs, probes, delayed acknowledgements, and the end of TIME_WAIT.

use crate::buffer::Buffer;
use crate::config::ConnectionConfig;
use crate::connection::{Connection, Flags, State, Waiting};
use crate::engine::{Engine, is_due, tick};
use crate::event::Ended;
use crate::input::{Outcome, Work};
use crate::time::Instant;
use crate::transmit::Transmit;

/// Probes of a closed window that a connection gets which the application has let go of, as Linux's tcp_orphan_retries. RFC 9293
/// §3.8.6.1 would go on for ever; RFC 6429 §3 allows to end it.
const RELEASED_PROBES: u8 = 8;

impl<B: Buffer> Engine<B> {
    /// Runs the timers that are due, and sends what that makes due.
    pub fn advance(&mut self, now: Instant, tx: &mut impl Transmit<B>) {
        let ticks = tick(now);
        self.clock = ticks;
        self.end_time_waits(ticks);
        while let Some(slot) = self.wheel.expire(&mut self.slab, ticks) {
            self.expired(slot, now, tx);
        }
        if self.is_ready() {
            self.transmit(now, tx);
        }
    }

    /// When [`Engine::advance`] is due next: never too late, perhaps too early.
    pub fn next_deadline(&mut self, now: Instant) -> Option<Instant> {
        let ticks = tick(now);
        let wait = |at: u32| (at.wrapping_sub(ticks) as i32).max(0) as u64;
        let timer = self.wheel.next_due().map(wait);
        let quiet = self.time_waits.oldest().map(|(_, entry)| entry.map_or(0, |entry| wait(entry.ends)));
        let milliseconds = match (timer, quiet) {
            (Some(one), Some(other)) => one.min(other),
            (one, other) => one.or(other)?,
        };
        Some(Instant((now.0 / 1_000 + milliseconds) * 1_000))
    }

    fn expired(&mut self, slot: u32, now: Instant, tx: &mut impl Transmit<B>) {
        let identification = self.next_identification();
        let Some(mut work) = self.work(slot, now) else { return };
        let before = work.c.state;
        if before == State::Closed {
            return;
        }
        let outcome = work.timers(identification, tx);
        let after = work.c.state;
        if before != after {
            self.entered(slot, before, after);
        }
        if outcome == Outcome::Alive {
            self.settle(slot, now);
        } else {
            if before == State::SynReceived {
                self.give_up(slot);
            }
            self.mark_ready(slot);
            self.conclude(slot, outcome, None, now, tx);
        }
    }

    /// A handshake takes too long: counts the client at its listener.
    #[cold]
    fn give_up(&mut self, slot: u32) {
        let Some(record) = self.slab.at(slot).filter(|record| record.flags.has(Flags::PASSIVE)) else {
            return;
        };
        let index = record.profile;
        self.counters.handshake_timeouts += 1;
        if let Some(profile) = self.profile_mut(index) {
            profile.given_up += 1;
            if profile.given_up == 1 {
                self.given_up.push(index);
            }
        }
    }

    /// After a timer: on to what it made due; where it came too early, as nearly always, only the wheel has to know.
    fn settle(&mut self, slot: u32, now: Instant) {
        let Some(work) = self.work(slot, now) else { return };
        if work.has_nothing_due() {
            if let Some(at) = work.deadline() {
                self.arm(slot, at);
            }
        } else {
            self.mark_ready(slot);
        }
    }
}

impl Connection {
    /// How long a client's handshake may still take, µs.
    fn patience_with_handshake(&self, config: &ConnectionConfig, now: Instant) -> u32 {
        let is_client = self.flags.has(Flags::PASSIVE);
        let limit_ms = config.handshake_ms.filter(|_| is_client).unwrap_or(u32::MAX);
        limit_ms.saturating_sub(tick(now).wrapping_sub(self.heard_at)).saturating_mul(1_000)
    }
}

impl<B: Buffer> Work<'_, B> {
    /// Whether a look at what may be sent would find nothing, and the wheel comes in time.
    #[inline(always)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.has_nothing_due() && self.deadline().is_none_or(|at| self.c.link.is_armed_by(at))
    }

    /// Whether a look at what may be sent would find nothing.
    #[inline(always)]
    fn has_nothing_due(&self) -> bool {
        let c = &*self.c;
        let due = Flags::ACK_NOW
            .and(Flags::SYN_DUE)
            .and(Flags::PROBE_DUE)
            .and(Flags::RST_DUE)
            .and(Flags::REARM)
            .and(Flags::RELEASED)
            .and(Flags::FIN_QUEUED);
        !c.flags.has(due) && c.send.unsent() == 0 && c.send.lost() == 0
    }

    fn timers(&mut self, id: u16, tx: &mut impl Transmit<B>) -> Outcome {
        let now = tick(self.now);
        if self.c.flags.has(Flags::ACK_DELAYED) && is_due(self.c.acknowledge_at, now) {
            self.c.flags.clear(Flags::ACK_DELAYED);
            self.c.flags.set(Flags::ACK_NOW);
            self.c.quick_acks = 0;
        }
        if self.c.waiting != Waiting::Nothing && is_due(self.c.retransmit_at, now) {
            return self.retransmission_timer(id, tx);
        }
        if self.c.waiting == Waiting::Nothing {
            return self.silence(now);
        }
        Outcome::Alive
    }

    fn retransmission_timer(&mut self, id: u16, tx: &mut impl Transmit<B>) -> Outcome {
        match self.c.waiting {
            Waiting::Nothing => Outcome::Alive,
            Waiting::Window => self.probe_window(),
            Waiting::Reordering => {
                // armed here, since the repair may have to wait for room in the transmit queue
                let timeout = self.c.rtt.timeout_us(&self.bounds());
                self.wait(Waiting::Retransmit, timeout);
                let flight = self.c.send.sent() - self.c.send.sacked();
                self.lose(flight);
                if self.c.waiting != Waiting::Reordering {
                    self.c.flags.set(Flags::REARM);
                }
                Outcome::Alive
            }
            Waiting::TailProbe => {
                self.probe_tail(id, tx);
                Outcome::Alive
            }
            Waiting::Retransmit => self.timed_out(id, tx),
        }
    }

    /// RFC 8985 §7.3: new data if there is any that may leave, else the last segment again.
    fn probe_tail(&mut self, id: u16, tx: &mut impl Transmit<B>) {
        self.counters.tlp_probes += 1;
        let c = &mut *self.c;
        let mss = u32::from(c.mss);
        let fresh = c.send.unsent().min(mss).min(c.usable_window());
        if fresh > 0
            && let Some(gather) = c.send.fresh(self.nodes, fresh, self.now)
        {
            if self.emit(&gather, id, tx) {
                self.counters.bytes_out += u64::from(gather.len);
                let snd_nxt = self.c.snd_nxt;
                self.c.rack_mut().on_probe(snd_nxt, false);
            } else {
                self.c.send.unsend(self.nodes, gather);
            }
        } else if let Some(gather) = self.c.send.probe_tail(self.nodes, mss, self.now)
            && self.emit(&gather, id, tx)
        {
            self.counters.retransmitted += 1;
            let snd_nxt = self.c.snd_nxt;
            self.c.rack_mut().on_probe(snd_nxt, true);
        }
        self.c.flags.clear(Flags::REARM);
        let timeout = self.c.rtt.timeout_us(&self.bounds());
        self.wait(Waiting::Retransmit, timeout);
    }

    /// RFC 6298 §5.4 to §5.7, RFC 8985 §6.3.
    fn timed_out(&mut self, id: u16, tx: &mut impl Transmit<B>) -> Outcome {
        if !self.c.state.is_synchronized() {
            return self.handshake_timed_out();
        }
        let c = &mut *self.c;
        self.counters.rto_timeouts += 1;
        c.retries = c.retries.saturating_add(1);
        if self.is_hopeless() {
            self.counters.timed_out += 1;
            return Outcome::Over(Ended::TimedOut);
        }
        let c = &mut *self.c;
        let flight = c.send.sent() - c.send.sacked();
        let window = c.rack().reordering_window(
            c.rtt.minimum_us().unwrap_or(0),
            c.rtt.smoothed_us(),
            true,
            c.send.sacked_segments(),
        );
        c.rack_mut().forget_probe();
        if c.retries == 1 && !c.flags.has(Flags::RECOVERY) {
            c.flags.set(Flags::UNDOABLE);
            c.undo_before = c.ts_now(self.now);
            c.send.begin_episode(self.nodes);
        } else if !c.flags.has(Flags::TIMED_OUT) {
            c.flags.clear(Flags::UNDOABLE);
        }
        let without_rack = !c.flags.has(Flags::SACK);
        let rack = *c.rack();
        c.send.lose_on_timeout(self.nodes, &rack, window, self.now, without_rack);
        c.congestion.on_timeout(flight, c.snd_nxt, self.now);
        c.flags.set(Flags::RECOVERY.and(Flags::TIMED_OUT));
        c.recover = c.snd_nxt;
        c.duplicate_acks = 0;
        c.rtt.back_off();
        if c.send.sent() == 0 && c.flags.has(Flags::FIN_SENT) {
            self.send_fin(id, tx);
        }
        // armed here, since the segment may have to wait for room in the transmit queue
        let timeout = self.c.rtt.timeout_us(&self.bounds());
        self.wait(Waiting::Retransmit, timeout);
        self.c.flags.set(Flags::REARM);
        Outcome::Alive
    }

    fn handshake_timed_out(&mut self) -> Outcome {
        let c = &mut *self.c;
        self.counters.rto_timeouts += 1;
        if c.retries >= self.config.syn_retries || c.patience_with_handshake(self.config, self.now) == 0 {
            self.counters.timed_out += 1;
            return Outcome::Over(Ended::TimedOut);
        }
        c.retries += 1;
        c.rtt.back_off();
        c.flags.set(Flags::SYN_DUE);
        self.await_handshake();
        Outcome::Alive
    }

    /// Sets the timer of a SYN or SYN+ACK that has left.
    pub(crate) fn await_handshake(&mut self) {
        let timeout = self.c.rtt.timeout_us(&self.bounds());
        self.wait(Waiting::Retransmit, timeout.min(self.c.patience_with_handshake(self.config, self.now)));
    }

    /// RFC 9293 §3.8.3: too many tries, or the user's time is over.
    fn is_hopeless(&mut self) -> bool {
        let c = &mut *self.c;
        let now = tick(self.now);
        if c.retries == 1 {
            c.trouble_since = now;
        }
        let is_over = |limit: u32| now.wrapping_sub(c.trouble_since) >= limit;
        c.retries > self.config.data_retries || self.config.user_timeout_ms.is_some_and(is_over)
    }

    /// RFC 9293 §3.8.6.1: asks whether the window is still closed, ever less often. A peer that answers is never given up.
    fn probe_window(&mut self) -> Outcome {
        let c = &mut *self.c;
        self.counters.window_probes += 1;
        c.retries = c.retries.saturating_add(1);
        if self.is_hopeless() {
            self.counters.timed_out += 1;
            return Outcome::Over(Ended::TimedOut);
        }
        let c = &mut *self.c;
        if !c.flags.has(Flags::OWNED) && c.rtt.timeouts() >= RELEASED_PROBES {
            // a peer that never reads would hold memory for ever that nobody asks for any more (CVE-2008-4609)
            self.counters.timed_out += 1;
            self.counters.resets_timeout += 1;
            return Outcome::Reset(Ended::TimedOut);
        }
        c.flags.set(Flags::PROBE_DUE);
        c.rtt.back_off();
        let timeout = self.c.rtt.timeout_us(&self.bounds());
        self.wait(Waiting::Window, timeout);
        Outcome::Alive
    }

    /// Nothing is outstanding: probes of a silent peer (RFC 9293 §3.8.4), and the end of waiting for its FIN.
    fn silence(&mut self, now: u32) -> Outcome {
        let silent = now.wrapping_sub(self.c.heard_at);
        if self.c.patience_ms(self.config).is_none_or(|patience| silent < patience) {
            return Outcome::Alive;
        }
        let c = &mut *self.c;
        if c.state == State::FinWait2 && !c.flags.has(Flags::OWNED) {
            return Outcome::Over(Ended::Finished);
        }
        if self.config.keep_alive.is_none_or(|keep_alive| c.keep_alives >= keep_alive.probes) {
            self.counters.timed_out += 1;
            self.counters.resets_timeout += 1;
            return Outcome::Reset(Ended::TimedOut);
        }
        c.keep_alives += 1;
        self.counters.keep_alive_probes += 1;
        c.flags.set(Flags::PROBE_DUE);
        Outcome::Alive
    }
}
