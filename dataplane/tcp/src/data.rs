//! What becomes of a segment's data and its FIN? RFC 9293 §3.10.7.4, seventh and eighth.

use weir_net::tcp;

use crate::buffer::{Buffer, Chunk};
use crate::connection::{Connection, Flags, State};
use crate::engine::tick;
use crate::event::Events;
use crate::input::{Outcome, Work};
use crate::queue::Nodes;
use crate::segment::Segment;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::transmit::Transmit;

/// Data in a buffer that is at least so many times larger is copied out, so that small writes don't pin large buffers.
const COPY_RATIO: u32 = 4;

/// Whether so many bytes are copied out of a buffer that costs so much, where they have to wait.
#[inline(always)]
pub(crate) const fn is_small(len: u32, cost: u32) -> bool {
    len * COPY_RATIO < cost
}

/// How long an application may leave data where it is, milliseconds, while memory is short: who reads now and then does so more often,
/// and what is promised to who doesn't read would keep the memory from those who do. Longer than acknowledgements are delayed, for which
/// who reads may wait; a tenth of it where there is [`MUCH`].
const PATIENCE_MS: u32 = 100;

/// Bytes that nobody leaves for long who reads.
const MUCH: u32 = 16 << 10;

/// Least bytes that what is read may go beyond the budget.
const LEAST_SLACK: u64 = 8 << 20;

impl<B: Buffer> Work<'_, B> {
    /// A block of bytes that arrived again is told with the next acknowledgement (RFC 2883 §4).
    pub(crate) fn note_duplicate(&mut self, start: SeqNumber, end: SeqNumber) {
        let c = &mut *self.c;
        if c.flags.has(Flags::SACK) && start != end {
            c.duplicate = start;
            c.duplicate_len = end.since(start).min(u32::from(u16::MAX)) as u16;
            c.flags.set(Flags::DUPLICATE);
        }
    }

    /// RFC 9293 §3.10.7.4, seventh: the data.
    #[inline(always)]
    pub(crate) fn data(&mut self, buffer: B, segment: &Segment, tx: &mut impl Transmit<B>) {
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
        let is_stale = c.is_stale(self.nodes, self.memory, tick(self.now));
        let in_order = start == c.rcv_nxt;
        // what is read goes beyond the budget, and a segment for who has none, so that two such hosts don't wait for each other for ever;
        // but not so far that very many could take what the NIC needs
        let is_beyond = self.nodes.pinned() > self.memory + (self.memory / 2).max(LEAST_SLACK);
        if is_beyond
            || (is_over_budget && !in_order)
            || (is_stale && !c.receive.is_empty())
            || (!in_order && self.nodes.is_scarce())
        {
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
            && is_small(len, chunk.buffer.cost())
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
                c.adapt_space(self.config.receive_buffer, self.nodes.pinned(), self.memory, self.now);
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
        c.flags = c.acknowledge_later(c.flags, len, self.config.delayed_ack_ms, self.now);
        c.adapt_space(self.config.receive_buffer, self.nodes.pinned(), self.memory, self.now);
    }

    /// Cuts off what arrived before and what lies beyond the window.
    #[inline(never)]
    pub(crate) fn trim(
        &mut self,
        mut start: SeqNumber,
        mut chunk: Chunk<B>,
    ) -> Option<(SeqNumber, Chunk<B>)> {
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
    pub(crate) fn out_of_order(&mut self, start: SeqNumber, chunk: Chunk<B>) {
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

    /// RFC 9293 §3.10.7.4, eighth: the FIN, once all before it is here.
    pub(crate) fn fin(&mut self, segment: &Segment) -> Outcome {
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
}

impl Connection {
    /// RFC 9293 §3.8.6.3, RFC 5681 §4.2: every second full segment is acknowledged at once, others within the delay. The flags
    /// after it.
    #[inline(always)]
    pub(crate) fn acknowledge_later(
        &mut self,
        mut flags: Flags,
        len: u32,
        delay_ms: u16,
        now: Instant,
    ) -> Flags {
        self.unacked_bytes += len;
        if self.quick_acks > 0 {
            self.quick_acks -= 1;
            flags.set(Flags::ACK_NOW);
        } else if self.unacked_bytes >= 2 * u32::from(self.mss) {
            flags.set(Flags::ACK_NOW);
        } else if !flags.has(Flags::ACK_DELAYED) {
            flags.set(Flags::ACK_DELAYED);
            self.acknowledge_at = tick(now).wrapping_add(u32::from(delay_ms));
        }
        flags
    }

    /// The application has taken data: remembers when, where that will be asked. Whether the peer has to hear of the room.
    #[inline(always)]
    pub(crate) fn was_read<B: Buffer>(&mut self, nodes: &Nodes<B>, memory: u64, now: u32) -> bool {
        if nodes.pinned() > memory / 4 {
            self.read_at = now;
        }
        let opened = self.window_opened();
        if opened {
            self.flags.set(Flags::ACK_NOW);
        }
        opened
    }

    /// Whether memory is too short for data that nobody has read for a while.
    #[inline(always)]
    pub(crate) fn is_stale<B: Buffer>(&self, nodes: &Nodes<B>, memory: u64, now: u32) -> bool {
        let patience = if self.receive.len() > MUCH { PATIENCE_MS / 10 } else { PATIENCE_MS };
        nodes.pinned() > memory / 4 * 3 && now.wrapping_sub(self.read_at) > patience
    }

    /// Lets the window grow with what the application reads in a round trip, up to the ceiling and within the memory.
    #[inline(always)]
    pub(crate) fn adapt_space(&mut self, ceiling: u32, pinned: u64, memory: u64, now: Instant) {
        let elapsed = now.low().wrapping_sub(self.rate_at);
        if self.receive_space < ceiling && elapsed >= self.rtt.smoothed_us().max(1_000) {
            let has_read = self.rcv_nxt - self.receive.len();
            // twice what was read, so that the sender's slow start is not held back
            let wanted = has_read.since(self.rate_from).saturating_mul(2);
            if wanted > self.receive_space && pinned < memory / 4 * 3 {
                self.receive_space = wanted.max(self.receive_space * 2).min(ceiling);
            }
            self.rate_from = has_read;
            self.rate_at = now.low();
        }
    }
}
