//! What does a connection send now? RFC 9293 §3.10.8 and §3.8, within the windows of the peer and of the path.

use weir_net::tcp;

use crate::buffer::Buffer;
use crate::config::ConnectionConfig;
use crate::connection::{Connection, Flags, State, Waiting};
use crate::engine::{Engine, tick};
use crate::header::{ECT_0, Header, NOT_ECT};
use crate::input::Work;
use crate::listen::our_mss;
use crate::options::{FastOpen, OptionBytes, Options, Timestamps};
use crate::queue::{Gather, Nodes};
use crate::rack::Rack;
use crate::rtt::Bounds;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::transmit::{Payload, Transmit};

impl<B: Buffer> Engine<B> {
    /// Sends what has become due since the last call: data, acknowledgements, resets. What the network does not take stays due.
    pub fn transmit(&mut self, now: Instant, tx: &mut impl Transmit<B>) {
        self.clock = tick(now);
        if !self.starved.is_empty() {
            self.feed();
        }
        let mut ready = std::mem::replace(&mut self.ready, std::mem::take(&mut self.spare));
        let mut done = 0;
        for &slot in &ready {
            if let Some(record) = self.slab.at_mut(slot) {
                record.flags.clear(Flags::READY);
            }
            if !self.output(slot, now, tx) {
                break;
            }
            done += 1;
        }
        for &slot in ready.get(done..).unwrap_or_default() {
            if let Some(record) = self.slab.at_mut(slot) {
                record.flags.clear(Flags::READY);
            }
            self.mark_ready(slot);
        }
        ready.clear();
        self.spare = ready;
    }

    /// Whether [`Engine::transmit`] has something to look at.
    #[inline]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// One connection. `false`: the network takes nothing more.
    #[inline]
    fn output(&mut self, slot: u32, now: Instant, tx: &mut impl Transmit<B>) -> bool {
        self.identification = self.identification.wrapping_add(1);
        let identification = self.identification;
        if self.is_steady
            && let Some(went) = self.steady_output(slot, now, tx)
        {
            return went;
        }
        self.output_any(slot, identification, now, tx)
    }

    #[inline(never)]
    fn output_any(
        &mut self,
        slot: u32,
        identification: u16,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) -> bool {
        let Some(mut work) = self.work(slot, now) else { return true };
        let before = work.c.state;
        if before == State::Closed {
            return self.output_closed(slot, now, tx);
        }
        let went = work.output(identification, tx);
        let after = work.c.state;
        let deadline = work.deadline();
        if before != after {
            self.entered(slot, before, after);
        }
        if let Some(at) = deadline {
            self.arm(slot, at);
        }
        went
    }

    /// Arms the wheel where it would come too late.
    #[inline(always)]
    pub(crate) fn arm(&mut self, slot: u32, at: u32) {
        let Some(record) = self.slab.at(slot) else { return };
        if !record.link.is_armed_by(at) {
            self.wheel.arm(&mut self.slab, slot, at);
        }
    }

    /// The RST of a connection that is over.
    fn output_closed(&mut self, slot: u32, now: Instant, tx: &mut impl Transmit<B>) -> bool {
        let identification = self.identification;
        let Some(mut work) = self.work(slot, now) else { return true };
        if !work.c.flags.has(Flags::RST_DUE) {
            return true;
        }
        if !work.send_reset(identification, tx) {
            return false;
        }
        work.c.flags.clear(Flags::RST_DUE);
        if !work.c.flags.has(Flags::OWNED) {
            self.free(slot);
        }
        true
    }
}

impl<B: Buffer> Work<'_, B> {
    /// Sends all that is due. `false`: the network takes nothing more.
    #[inline(always)]
    fn output(&mut self, identification: u16, tx: &mut impl Transmit<B>) -> bool {
        let mut id = identification;
        if self.c.flags.has(Flags::SYN_DUE.and(Flags::RELEASED).and(Flags::PROBE_DUE))
            && !self.seldom(&mut id, tx)
        {
            return false;
        }
        let sends = self.c.state.sends()
            || (self.c.state == State::SynReceived && self.c.flags.has(Flags::FAST_OPEN));
        if sends
            && (!self.c.send.is_empty() || self.c.flags.has(Flags::FIN_QUEUED))
            && !self.send_data(&mut id, tx)
        {
            return false;
        }
        // in SYN-RECEIVED it is a challenge (RFC 5961 §3.2)
        let acknowledges = self.c.state.is_synchronized() || self.c.state == State::SynReceived;
        if self.c.flags.has(Flags::ACK_NOW) && acknowledges && !self.acknowledge_now(id, tx) {
            return false;
        }
        if self.c.flags.has(Flags::REARM) {
            self.rearm();
        }
        true
    }

    #[inline(never)]
    fn seldom(&mut self, id: &mut u16, tx: &mut impl Transmit<B>) -> bool {
        if self.c.flags.has(Flags::RELEASED) {
            self.c.flags.clear(Flags::RELEASED);
            self.c.heard_at = tick(self.now);
        }
        if self.c.flags.has(Flags::SYN_DUE) && !self.send_syn(*id, tx) {
            return false;
        }
        if self.c.flags.has(Flags::PROBE_DUE) {
            if !self.send_probe(*id, tx) {
                return false;
            }
            *id = id.wrapping_add(1);
        }
        true
    }

    /// Data, lost bytes first, then the FIN.
    #[inline(always)]
    fn send_data(&mut self, id: &mut u16, tx: &mut impl Transmit<B>) -> bool {
        let mss = self.segment_room();
        if self.c.send.lost() > 0 && !self.send_again(id, mss, tx) {
            return false;
        }
        let mut limited = false;
        while self.c.send.unsent() > 0 {
            let c = &mut *self.c;
            let unsent = c.send.unsent();
            let len = unsent.min(mss).min(c.usable_window());
            if len == 0 {
                break;
            }
            let in_flight = c.send.in_flight();
            let mut window = c.congestion.window();
            if c.duplicate_acks != 0 && !c.flags.has(Flags::RECOVERY) {
                // RFC 3042 §2: what has left the path without SACK telling; two segments at most
                window += u32::from(c.duplicate_acks.min(2)) * u32::from(c.mss);
            }
            if in_flight > 0 && window < in_flight + len {
                limited = true;
                break;
            }
            if len < mss && !c.may_send_small(len, unsent, self.config.no_delay) {
                break;
            }
            if self.config.slow_start_after_idle && self.c.send.sent() == 0 {
                self.restart_after_idle();
            }
            let Some(gather) = self.c.send.fresh(self.nodes, len, self.now) else { break };
            if !self.emit(&gather, *id, tx) {
                self.c.send.unsend(self.nodes, gather);
                return false;
            }
            *id = id.wrapping_add(1);
            self.counters.bytes_out += u64::from(gather.len);
            self.c.flags.set(Flags::REARM);
        }
        self.c.flags.put(Flags::WINDOW_LIMITED, limited);
        if self.c.flags.has(Flags::FIN_QUEUED) && !self.c.flags.has(Flags::FIN_SENT) {
            return self.send_fin_first(*id, tx);
        }
        if self.c.send.unsent() > 0 && self.c.waiting == Waiting::Nothing {
            self.c.flags.set(Flags::REARM);
        }
        true
    }

    /// The FIN alone, once all data has left.
    fn send_fin_first(&mut self, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let c = &mut *self.c;
        if c.send.unsent() > 0 || !c.state.sends() || c.usable_window() == 0 {
            // a timer that runs goes on (RFC 6298 §5): else whatever arrives would put it off
            let is_idle = c.waiting == Waiting::Nothing;
            c.flags.put(Flags::REARM, is_idle || c.flags.has(Flags::REARM));
            return true;
        }
        self.send_fin(id, tx)
    }

    /// RFC 5681 §4.1.
    fn restart_after_idle(&mut self) {
        let idle = self.now.low().wrapping_sub(self.c.sent_at);
        let timeout = self.c.rtt.timeout_us(&self.bounds());
        self.c.congestion.on_idle(u64::from(idle), timeout);
    }

    /// What was lost, within the congestion window.
    #[inline(never)]
    fn send_again(&mut self, id: &mut u16, mss: u32, tx: &mut impl Transmit<B>) -> bool {
        while self.c.send.lost() > 0 {
            let c = &mut *self.c;
            let in_flight = c.send.in_flight();
            let len = c.send.lost().min(mss);
            if in_flight > 0 && c.congestion.window() < in_flight + len {
                return true;
            }
            let Some(gather) = c.send.resend(self.nodes, mss, self.now) else { return true };
            if !self.emit(&gather, *id, tx) {
                self.c.send.unsend(self.nodes, gather);
                return false;
            }
            *id = id.wrapping_add(1);
            self.counters.retransmitted += 1;
            self.c.flags.set(Flags::REARM);
        }
        true
    }

    /// Data bytes that fit into a segment now.
    #[inline(always)]
    fn segment_room(&self) -> u32 {
        let c = &*self.c;
        let mss = u32::from(c.mss);
        if c.flags.has(Flags::DUPLICATE) || c.receive.has_out_of_order() {
            // three SACK blocks beside timestamps, four without
            let blocks = if c.flags.has(Flags::TIMESTAMPS) { 28 } else { 36 };
            return mss.saturating_sub(blocks).max(1);
        }
        mss
    }

    /// Writes the header of a segment: all that every segment says. It acknowledges all that has arrived.
    #[inline(always)]
    fn address(&mut self, seq: SeqNumber, flags: u8, id: u16) {
        let window = self.window();
        let c = &mut *self.c;
        let timestamps = Timestamps { value: c.ts_now(self.now), echo: c.ts_recent };
        let has_blocks = c.flags.has(Flags::DUPLICATE) || c.receive.has_out_of_order();
        if has_blocks {
            self.header.options = self.options_with_blocks(timestamps);
        } else if c.flags.has(Flags::TIMESTAMPS) {
            self.header.options.set_timestamps(timestamps);
        } else {
            self.header.options.clear();
        }
        let c = &mut *self.c;
        let echo = if c.flags.has(Flags::ECN_ECHO) { tcp::ECE } else { 0 };
        c.flags.clear(Flags::ACK_NOW.and(Flags::ACK_DELAYED));
        c.unacked_bytes = 0;
        c.last_ack = c.rcv_nxt;
        // field by field into a place that stays: a header that is built and moved costs as much as the rest
        let header = &mut *self.header;
        header.local = c.local();
        header.remote = c.remote();
        header.seq = seq;
        header.ack = c.rcv_nxt;
        header.window = window;
        header.identification = id;
        header.flags = flags | tcp::ACK | echo;
        header.ecn = NOT_ECT;
        header.hop_limit = self.config.hop_limit;
    }

    #[inline(never)]
    fn options_with_blocks(&mut self, timestamps: Timestamps) -> OptionBytes {
        let c = &mut *self.c;
        let timestamps = c.flags.has(Flags::TIMESTAMPS).then_some(timestamps);
        if !c.flags.has(Flags::SACK) {
            return OptionBytes::acknowledgment(timestamps, &[]);
        }
        let most = if timestamps.is_some() { 3 } else { 4 };
        let mut blocks = c.receive.sack_blocks(self.nodes, most);
        if c.flags.has(Flags::DUPLICATE) {
            // RFC 2883 §4: the duplicate comes first
            blocks.truncate(most - 1);
            blocks.insert(0, (c.duplicate, c.duplicate + u32::from(c.duplicate_len)));
            c.flags.clear(Flags::DUPLICATE);
        }
        OptionBytes::acknowledgment(timestamps, &blocks)
    }

    /// RFC 9293 §3.8.6.2.2: the window to announce. Its right edge never moves back, and forward only by a segment or half the
    /// space.
    #[inline(always)]
    fn window(&mut self) -> u16 {
        let c = &mut *self.c;
        let space = c.space(self.nodes, self.memory, self.share, tick(self.now));
        c.announce(space)
    }

    /// Sends gathered bytes; the FIN goes with the last ones.
    #[inline(always)]
    pub(crate) fn emit(&mut self, gather: &Gather, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let c = &mut *self.c;
        let is_last = gather.end() == c.send.end();
        let is_new = gather.seq == c.snd_nxt;
        let with_fin = is_last
            && c.flags.has(Flags::FIN_QUEUED)
            && c.state.sends()
            && (c.flags.has(Flags::FIN_SENT) || (c.snd_una + c.snd_wnd).is_after(gather.end()));
        let mut flags = if is_last { tcp::PSH } else { 0 };
        if with_fin {
            flags |= tcp::FIN;
        }
        let is_ecn = c.flags.has(Flags::ECN) && is_new;
        if is_ecn && c.flags.has(Flags::ECN_CWR) {
            flags |= tcp::CWR;
        }
        self.address(gather.seq, flags, id);
        if is_ecn {
            // RFC 3168 §6.1.5: not on what is sent again
            self.header.ecn = ECT_0;
        }
        if !tx.transmit(self.header, Payload::of(gather, self.nodes)) {
            self.c.flags.set(Flags::ACK_NOW);
            return false;
        }
        self.counters.segments_out += 1;
        let c = &mut *self.c;
        if is_ecn {
            c.flags.clear(Flags::ECN_CWR);
        }
        c.congestion.on_transmit(gather.len);
        c.sent_at = self.now.low();
        c.snd_nxt = c.snd_nxt.max(gather.end());
        if with_fin && !c.flags.has(Flags::FIN_SENT) {
            self.fin_sent();
        }
        true
    }

    /// RFC 9293 §3.10.4: the FIN has left.
    fn fin_sent(&mut self) {
        let c = &mut *self.c;
        c.flags.set(Flags::FIN_SENT.and(Flags::REARM));
        c.snd_nxt = c.send.end() + 1;
        c.state = match c.state {
            State::CloseWait => State::LastAck,
            State::Established => State::FinWait1,
            other => other,
        };
    }

    /// The FIN alone, for the first time or again.
    pub(crate) fn send_fin(&mut self, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let seq = self.c.fin_seq();
        self.address(seq, tcp::FIN, id);
        if !tx.transmit(self.header, Payload::empty()) {
            self.c.flags.set(Flags::ACK_NOW);
            return false;
        }
        self.counters.segments_out += 1;
        self.c.sent_at = self.now.low();
        if self.c.flags.has(Flags::FIN_SENT) {
            self.counters.retransmitted += 1;
            self.c.flags.set(Flags::REARM);
        } else {
            self.fin_sent();
        }
        true
    }

    /// An acknowledgement without data.
    #[inline(always)]
    pub(crate) fn acknowledge_now(&mut self, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let seq = self.c.snd_nxt;
        self.bare(seq, 0, id, tx)
    }

    fn bare(&mut self, seq: SeqNumber, flags: u8, id: u16, tx: &mut impl Transmit<B>) -> bool {
        self.address(seq, flags, id);
        if !tx.transmit(self.header, Payload::empty()) {
            self.c.flags.set(Flags::ACK_NOW);
            return false;
        }
        self.counters.segments_out += 1;
        true
    }

    /// A segment without data before the window, which a living peer answers: as Linux probes windows and silent peers (RFC 9293
    /// §3.8.4; §3.8.6.1 sends a byte of data instead).
    ///
    /// Where the window has some room, and only silly-window avoidance holds the data back, it is data that leaves (RFC 9293
    /// §3.8.6.2.1: the override time-out).
    fn send_probe(&mut self, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let c = &mut *self.c;
        let edge = c.snd_una + c.snd_wnd;
        if c.waiting == Waiting::Window && edge.is_after(c.snd_nxt) && c.send.unsent() > 0 {
            let room = edge.since(c.snd_nxt).min(u32::from(c.mss));
            if let Some(gather) = c.send.fresh(self.nodes, room, self.now) {
                if !self.emit(&gather, id, tx) {
                    self.c.send.unsend(self.nodes, gather);
                    return false;
                }
                self.counters.bytes_out += u64::from(gather.len);
                self.c.flags.clear(Flags::PROBE_DUE);
                self.c.flags.set(Flags::REARM);
                return true;
            }
        }
        let seq = self.c.snd_una - 1;
        if !self.bare(seq, 0, id, tx) {
            return false;
        }
        self.c.flags.clear(Flags::PROBE_DUE);
        true
    }

    /// The RST of a connection that we end (RFC 9293 §3.10.5).
    ///
    /// A peer that has taken its window back drops what lies beyond, RSTs as well (RFC 9293 §3.10.7.4): to it we say what it can still
    /// take, as Linux does.
    fn send_reset(&mut self, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let edge = self.c.snd_una + self.c.snd_wnd;
        let seq = if self.c.snd_nxt.is_after(edge) { edge } else { self.c.snd_nxt };
        self.address(seq, tcp::RST, id);
        self.header.window = 0;
        let went = tx.transmit(self.header, Payload::empty());
        self.counters.segments_out += u64::from(went);
        went
    }

    /// The SYN of a connection that we open, or the SYN+ACK of one that the peer does; both again when their timer says so.
    pub(crate) fn send_syn(&mut self, id: u16, tx: &mut impl Transmit<B>) -> bool {
        let c = &mut *self.c;
        let is_answer = c.state == State::SynReceived;
        let is_again = c.snd_nxt != c.snd_una;
        let wants_scale = c.receive_scale > 0 || c.send_scale > 0;
        if is_again && !is_answer {
            // RFC 3168 §6.1.1.1: perhaps it was ECN that the path did not let through
            c.flags.clear(Flags::ECN);
        }
        let timestamps = c.flags.has(Flags::TIMESTAMPS);
        let wanted = c.flags.has(Flags::COOKIE_WANTED).then(|| self.secrets.fast_open_cookie(c.remote));
        let fast_open = wanted.flatten().map(FastOpen::Cookie);
        let options = Options {
            mss: Some(our_mss(self.config, c.local().is_v4())),
            window_scale: (self.config.window_scaling && (!is_answer || wants_scale))
                .then_some(c.receive_scale),
            sack_permitted: c.flags.has(Flags::SACK),
            timestamps: timestamps.then(|| Timestamps { value: c.ts_now(self.now), echo: c.ts_recent }),
            fast_open,
            ..Options::default()
        };
        let ecn = match (c.flags.has(Flags::ECN), is_answer) {
            (true, true) => tcp::ECE,
            (true, false) => tcp::ECE | tcp::CWR,
            (false, _) => 0,
        };
        let window = c.receive_space.saturating_sub(c.receive.len()).min(0xffff);
        if is_answer {
            c.rcv_edge = c.rcv_edge.max(c.rcv_nxt + window);
        }
        let header = Header {
            local: c.local(),
            remote: c.remote(),
            seq: c.iss(),
            ack: if is_answer { c.rcv_nxt } else { SeqNumber(0) },
            // RFC 7323 §2.2: never scaled
            window: window as u16,
            identification: id,
            flags: tcp::SYN | ecn | if is_answer { tcp::ACK } else { 0 },
            ecn: NOT_ECT,
            hop_limit: self.config.hop_limit,
            options: OptionBytes::from(&options),
        };
        if !tx.transmit(&header, Payload::empty()) {
            return false;
        }
        self.counters.segments_out += 1;
        let c = &mut *self.c;
        c.flags.clear(Flags::SYN_DUE.and(Flags::ACK_NOW));
        c.last_ack = c.rcv_nxt;
        if is_again {
            self.counters.retransmitted += 1;
            c.flags.set(Flags::SYN_REPEATED);
        } else {
            c.snd_nxt = c.iss() + 1;
            c.sent_at = self.now.low();
        }
        if c.waiting != Waiting::Retransmit || !is_again {
            self.await_handshake();
        }
        true
    }

    /// Sets the retransmission timer.
    #[inline(always)]
    pub(crate) fn wait(&mut self, waiting: Waiting, microseconds: u32) {
        self.c.wait(waiting, microseconds, self.now);
    }

    #[inline(always)]
    pub(crate) fn rearm(&mut self) {
        self.c.flags.clear(Flags::REARM);
        let bounds = self.bounds();
        self.c.rearm(&bounds, self.now);
    }

    /// The tick at which the first of the timers is due.
    #[inline(always)]
    pub(crate) fn deadline(&self) -> Option<u32> {
        self.c.deadline(self.config)
    }
}

impl Connection {
    /// RFC 9293 §3.8.6.2.1: whether a segment that is not full may leave: the last one, unless Nagle's algorithm holds it back
    /// (§3.7.4), or one of half the largest window that the peer ever had.
    #[inline(always)]
    pub(crate) fn may_send_small(&self, len: u32, unsent: u32, no_delay: bool) -> bool {
        if len < unsent {
            return len >= self.max_window / 2;
        }
        no_delay || !self.is_outstanding() || self.flags.has(Flags::FIN_QUEUED)
    }

    /// Bytes that may arrive now, of a share.
    #[inline(always)]
    pub(crate) fn space<B: Buffer>(&self, nodes: &Nodes<B>, memory: u64, share: u32, now: u32) -> u32 {
        let space = self.receive_space.min(share).saturating_sub(self.receive.len());
        if nodes.is_scarce() || self.is_stale(nodes, memory, now) {
            // one segment for who has none, so that two such hosts never wait for each other for ever
            return if self.receive.is_empty() { space.min(u32::from(self.mss)) } else { 0 };
        }
        space
    }

    /// The window that a segment tells where there is so much space; the edge moves with it.
    #[inline(always)]
    pub(crate) fn announce(&mut self, space: u32) -> u16 {
        let current = self.rcv_edge.since(self.rcv_nxt);
        let step = u32::from(self.mss).min(self.receive_space / 2);
        let target = if space >= current + step { space } else { current };
        // rounded up, so that the edge does not move back by what scaling cuts off
        let unit = (1 << self.receive_scale) - 1;
        let window = ((target + unit) >> self.receive_scale).min(0xffff);
        let announced = window << self.receive_scale;
        if announced > current {
            self.rcv_edge = self.rcv_nxt + announced;
        }
        window as u16
    }

    /// Sets the retransmission timer.
    #[inline(always)]
    pub(crate) fn wait(&mut self, waiting: Waiting, microseconds: u32, now: Instant) {
        self.waiting = waiting;
        self.retransmit_at = tick(now.after(u64::from(microseconds) + 999));
    }

    /// RFC 6298 §5, RFC 8985 §7.2: what the retransmission timer waits for, after something left or was acknowledged.
    #[inline(always)]
    pub(crate) fn rearm(&mut self, bounds: &Bounds, now: Instant) {
        if !self.state.is_synchronized() {
            return;
        }
        if !self.is_outstanding() {
            let has_more = self.send.unsent() > 0
                || (self.flags.has(Flags::FIN_QUEUED) && !self.flags.has(Flags::FIN_SENT));
            if !has_more {
                self.waiting = Waiting::Nothing;
            } else if self.waiting != Waiting::Window {
                // RFC 9293 §3.8.6.1: only the window keeps it
                self.wait(Waiting::Window, self.rtt.timeout_us(bounds), now);
            }
            return;
        }
        let repairing = self.flags.has(Flags::RECOVERY) || self.send.sacked() > 0 || self.send.lost() > 0;
        if self.waiting == Waiting::Reordering && repairing {
            return;
        }
        let timeout = self.rtt.timeout_us(bounds);
        let may_probe =
            self.flags.has(Flags::SACK) && !repairing && !self.is_probing() && self.send.sent() > 0;
        if may_probe && self.rtt.timeouts() == 0 {
            let srtt = self.rtt.has_sample().then(|| self.rtt.smoothed_us());
            let is_one = self.send.in_flight() <= u32::from(self.mss);
            // the peer may delay its acknowledgement by 200 ms (RFC 8985 §7.2: WCDelAckT)
            let pto = Rack::probe_timeout(srtt, is_one, 200_000, timeout);
            self.wait(if pto < timeout { Waiting::TailProbe } else { Waiting::Retransmit }, pto, now);
        } else {
            self.wait(Waiting::Retransmit, timeout, now);
        }
    }

    /// The tick at which the first of the timers is due.
    #[inline(always)]
    pub(crate) fn deadline(&self, config: &ConnectionConfig) -> Option<u32> {
        let earlier = |first: Option<u32>, at: u32| match first {
            Some(first) if (first.wrapping_sub(at) as i32) <= 0 => Some(first),
            _ => Some(at),
        };
        let mut first = None;
        if self.waiting != Waiting::Nothing {
            first = Some(self.retransmit_at);
        }
        if self.flags.has(Flags::ACK_DELAYED) {
            first = earlier(first, self.acknowledge_at);
        }
        if first.is_some() {
            return first;
        }
        self.patience_ms(config).map(|patience| self.heard_at.wrapping_add(patience))
    }

    /// How long a peer may be silent that owes us nothing: until its FIN is waited for no more, or until the next keep-alive probe.
    #[inline(always)]
    pub(crate) fn patience_ms(&self, config: &ConnectionConfig) -> Option<u32> {
        if self.state == State::FinWait2 && !self.flags.has(Flags::OWNED) {
            return Some(config.fin_wait_s * 1_000);
        }
        let keep_alive = config.keep_alive.as_ref()?;
        if !matches!(self.state, State::Established | State::CloseWait | State::FinWait2) {
            return None;
        }
        let silent = keep_alive.idle_s + u32::from(self.keep_alives) * keep_alive.interval_s;
        Some(silent.saturating_mul(1_000))
    }
}
