//! Does the send queue do what a plain list of pieces would, walked from end to end for each question?

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::buffer::{Buffer, Chunk, HeapBuffer};
use crate::rack::Rack;
use crate::seq::SeqNumber;
use crate::time::Instant;

/// Bytes before the wrap of sequence numbers, and µs before the wrap of the clock, at which a run begins.
const BEFORE_WRAP: u32 = 30_000;
const MIN_RTT_US: u32 = 2_000;

#[derive(Clone, Debug)]
enum Step {
    Push(u16),
    Fresh {
        limit: u32,
        is_refused: bool,
    },
    Resend {
        limit: u32,
        is_refused: bool,
    },
    Head(u32),
    Tail(u32),
    /// To the end of the n-th piece, that many bytes further.
    Acknowledge {
        piece: usize,
        beyond: i32,
    },
    /// From the n-th piece, of so many pieces, cut by so many bytes at either end.
    Sack(Vec<(usize, usize, u32, u32)>),
    Rack(u32),
    Timeout(bool),
    LoseHead,
    Spurious,
    Wait(u32),
}

#[derive(Clone, Debug)]
struct Piece {
    chunk: usize,
    start: u32,
    len: u32,
    stamp: u32,
    is_sent: bool,
    is_sacked: bool,
    is_lost: bool,
    is_resent: bool,
    is_first: bool,
}

/// Offsets count from the first byte of the stream, so they never wrap.
#[derive(Default)]
struct Model {
    pieces: Vec<Piece>,
    costs: BTreeMap<usize, u64>,
    pushed: u32,
    first: u32,
}

fn seq(offset: u32) -> SeqNumber {
    SeqNumber(u32::MAX - BEFORE_WRAP) + offset
}

fn offset(seq_number: SeqNumber) -> u32 {
    seq_number.since(seq(0))
}

/// The stream's byte at an offset.
fn byte(offset: u32) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 24) as u8
}

fn later(one: Option<(u32, u32)>, other: (u32, u32)) -> Option<(u32, u32)> {
    let Some(first) = one else { return Some(other) };
    let age = other.0.wrapping_sub(first.0) as i32;
    if age > 0 || age == 0 && other.1 > first.1 { Some(other) } else { one }
}

#[derive(Default, Debug, PartialEq)]
struct Told {
    acked: u32,
    delivered: u32,
    original: Option<(u32, u32)>,
    retransmitted: Option<(u32, u32)>,
    lowest: Option<u32>,
    highest: Option<u32>,
}

impl Told {
    fn note(&mut self, piece: &Piece) {
        let end = piece.start + piece.len;
        self.delivered += piece.len;
        if piece.is_resent {
            self.retransmitted = later(self.retransmitted, (piece.stamp, end));
        } else {
            self.original = later(self.original, (piece.stamp, end));
            self.lowest = Some(self.lowest.map_or(end, |lowest| lowest.min(end)));
        }
        self.highest = self.highest.max(Some(end));
    }

    fn of(delivered: &Delivered) -> Self {
        let place = |(stamp, end)| (stamp, offset(end));
        Self {
            acked: delivered.acked_bytes,
            delivered: delivered.delivered_bytes,
            original: delivered.segments.original.map(place),
            retransmitted: delivered.segments.retransmitted.map(place),
            lowest: delivered.segments.lowest_original_end.map(offset),
            highest: delivered.segments.highest_end.map(offset),
        }
    }
}

impl Model {
    fn push(&mut self, len: u32) {
        let chunk = self.costs.len();
        self.costs.insert(chunk, u64::from(len));
        let flags = (false, false, false, false, false);
        let (is_sent, is_sacked, is_lost, is_resent, is_first) = flags;
        let start = self.pushed;
        self.pieces.push(Piece {
            chunk,
            start,
            len,
            stamp: 0,
            is_sent,
            is_sacked,
            is_lost,
            is_resent,
            is_first,
        });
        self.pushed += len;
    }

    fn split(&mut self, index: usize, at: u32) {
        let mut rest = self.pieces[index].clone();
        rest.start += at;
        rest.len -= at;
        self.pieces[index].len = at;
        self.pieces.insert(index + 1, rest);
    }

    fn sum(&self, of: impl Fn(&Piece) -> bool) -> u32 {
        self.pieces.iter().filter(|piece| of(piece)).map(|piece| piece.len).sum()
    }

    fn sent_end(&self) -> u32 {
        self.first + self.sum(|piece| piece.is_sent)
    }

    fn pinned(&self) -> u64 {
        let mut chunks: Vec<_> = self.pieces.iter().map(|piece| piece.chunk).collect();
        chunks.dedup();
        chunks.iter().map(|chunk| self.costs[chunk]).sum()
    }

    /// Start and length of what is gathered, from a piece on while it is wanted.
    fn take(
        &mut self,
        from: Option<usize>,
        limit: u32,
        now: u32,
        wanted: impl Fn(&Piece) -> bool,
    ) -> Option<(u32, u32)> {
        let from = from?;
        let (mut index, mut left, mut len) = (from, limit, 0);
        while left > 0
            && index < from + MAX_SLICES
            && index < self.pieces.len()
            && wanted(&self.pieces[index])
        {
            if self.pieces[index].len > left {
                self.split(index, left);
            }
            let piece = &mut self.pieces[index];
            piece.stamp = now;
            piece.is_first = index == from;
            piece.is_resent |= piece.is_sent;
            piece.is_sent = true;
            piece.is_lost = false;
            left -= piece.len;
            len += piece.len;
            index += 1;
        }
        (len > 0).then(|| (self.pieces[from].start, len))
    }

    fn position(&self, of: impl Fn(&Piece) -> bool) -> Option<usize> {
        self.pieces.iter().position(of)
    }

    fn tail(&mut self, limit: u32, now: u32) -> Option<(u32, u32)> {
        let end = self.sent_end();
        let sent = self.position(|piece| !piece.is_sent).unwrap_or(self.pieces.len());
        let mut from = sent;
        while from > 0 && sent - from < MAX_SLICES && !self.pieces[from - 1].is_sacked {
            let piece = &self.pieces[from - 1];
            if end - piece.start > limit {
                if from == sent && limit > 0 {
                    let at = piece.len - limit;
                    self.split(from - 1, at);
                    return self.take(Some(from), limit, now, |piece| piece.is_sent);
                }
                break;
            }
            from -= 1;
        }
        self.take(Some(from), limit, now, |piece| piece.is_sent && !piece.is_sacked)
    }

    fn acknowledge(&mut self, ack: u32) -> Told {
        let mut told = Told::default();
        let ack = ack.min(self.sent_end());
        while let Some(piece) = self.pieces.first_mut() {
            if piece.start + piece.len <= ack {
                let piece = self.pieces.remove(0);
                if !piece.is_sacked {
                    told.note(&piece);
                }
            } else {
                let cut = ack.saturating_sub(piece.start);
                if !piece.is_sacked {
                    told.delivered += cut;
                }
                piece.start += cut;
                piece.len -= cut;
                break;
            }
        }
        told.acked = ack.saturating_sub(self.first);
        self.first = self.first.max(ack);
        told
    }

    fn sack(&mut self, blocks: &[(u32, u32)]) -> Told {
        let mut told = Told::default();
        let mut blocks: Vec<_> = blocks.to_vec();
        blocks.sort_unstable();
        for (start, end) in blocks {
            if start < self.first || start >= end || end > self.sent_end() {
                continue;
            }
            for edge in [start, end] {
                let cut = self.position(|piece| {
                    let end_of_piece = piece.start + piece.len;
                    let is_of_block = edge == start || piece.start >= start;
                    edge >= piece.start + 512 && edge + 512 <= end_of_piece && is_of_block && !piece.is_sacked
                });
                if let Some(index) = cut {
                    self.split(index, edge - self.pieces[index].start);
                }
            }
            for piece in &mut self.pieces {
                if !piece.is_sacked && piece.start >= start && piece.start + piece.len <= end {
                    told.note(piece);
                    piece.is_sacked = true;
                    piece.is_lost = false;
                }
            }
        }
        told
    }

    fn rack(&mut self, rack: &Rack, window: u32, now: u32) -> Losses {
        let mut losses = Losses::default();
        for piece in &mut self.pieces {
            let end = seq(piece.start + piece.len);
            if !piece.is_sent || piece.is_sacked || piece.is_lost || !rack.is_sent_after(piece.stamp, end) {
                continue;
            }
            let remaining =
                i64::from(rack.rtt_us()) + i64::from(window) - i64::from(now.wrapping_sub(piece.stamp));
            if remaining <= 0 {
                piece.is_lost = true;
                losses.lost_bytes += piece.len;
            } else {
                losses.wait_us = losses.wait_us.max(Some(remaining as u32));
            }
        }
        losses
    }

    fn timeout(&mut self, rack: &Rack, window: u32, now: u32, without_rack: bool) -> u32 {
        let is_reneged = self.pieces.first().is_some_and(|piece| piece.is_sacked);
        let mut lost = 0;
        for (index, piece) in self.pieces.iter_mut().enumerate().filter(|(_, piece)| piece.is_sent) {
            piece.is_sacked &= !is_reneged;
            let waited = now.wrapping_sub(piece.stamp);
            let is_late = waited >= rack.rtt_us() + window;
            let is_now_lost = is_reneged || without_rack || !rack.is_valid() || index == 0 || is_late;
            if !piece.is_sacked && !piece.is_lost && is_now_lost {
                piece.is_lost = true;
                lost += piece.len;
            }
        }
        lost
    }
}

/// One connection's queue and what it should be.
struct Pair {
    queue: SendQueue,
    model: Model,
    rack: Rack,
}

impl Pair {
    fn new() -> Self {
        Self { queue: SendQueue::new(seq(0)), model: Model::default(), rack: Rack::default() }
    }

    fn check_gather(nodes: &Nodes<HeapBuffer>, got: Option<Gather>, wanted: Option<(u32, u32)>) {
        assert_eq!(got.map(|gather| (offset(gather.seq), gather.len)), wanted);
        if let Some(gather) = got {
            let mut bytes = Vec::new();
            for (buffer, start, len) in gather.slices(nodes) {
                bytes.extend_from_slice(&buffer.bytes()[usize::from(start)..][..usize::from(len)]);
            }
            let start = offset(gather.seq);
            let stream: Vec<u8> = (start..start + gather.len).map(byte).collect();
            assert!(bytes == stream, "other bytes than pushed at offset {start}");
            assert!(gather.slices(nodes).count() <= MAX_SLICES);
        }
    }

    fn deliver(&mut self, delivered: &Delivered, now: Instant) {
        let is_idle = self.queue.sent() == 0;
        self.rack.on_delivered(&delivered.segments, now, MIN_RTT_US, None, is_idle);
    }

    fn step(&mut self, nodes: &mut Nodes<HeapBuffer>, step: &Step, clock: &mut Instant) {
        let now = *clock;
        let (queue, model) = (&mut self.queue, &mut self.model);
        match *step {
            Step::Wait(microseconds) => *clock = now.after(u64::from(microseconds)),
            Step::Push(len) => {
                let bytes: Vec<u8> = (model.pushed..model.pushed + u32::from(len)).map(byte).collect();
                queue.push(nodes, Chunk::whole(HeapBuffer::from(&bytes[..]))).unwrap();
                model.push(u32::from(len));
            }
            Step::Fresh { limit, is_refused } => {
                let got = queue.fresh(nodes, limit, now);
                let from = model.position(|piece| !piece.is_sent);
                let wanted = model.take(from, limit, now.low(), |piece| !piece.is_sent);
                Self::check_gather(nodes, got, wanted);
                if let (true, Some(gather), Some((start, _))) = (is_refused, got, wanted) {
                    queue.unsend(nodes, gather);
                    model
                        .pieces
                        .iter_mut()
                        .filter(|piece| piece.start >= start)
                        .for_each(|piece| piece.is_sent = false);
                }
            }
            Step::Resend { limit, is_refused } => {
                let got = queue.resend(nodes, limit, now);
                let from = model.position(|piece| piece.is_lost);
                let wanted = model.take(from, limit, now.low(), |piece| piece.is_lost);
                Self::check_gather(nodes, got, wanted);
                if let (true, Some(gather), Some((start, len))) = (is_refused, got, wanted) {
                    queue.unsend(nodes, gather);
                    let is_back = |piece: &&mut Piece| piece.start >= start && piece.start < start + len;
                    model.pieces.iter_mut().filter(is_back).for_each(|piece| piece.is_lost = true);
                }
            }
            Step::Head(limit) => {
                let got = queue.head(nodes, limit, now);
                let wanted = model.take(Some(0), limit, now.low(), |piece| piece.is_sent && !piece.is_sacked);
                Self::check_gather(nodes, got, wanted);
            }
            Step::Tail(limit) => {
                let got = queue.probe_tail(nodes, limit, now);
                let wanted = model.tail(limit, now.low());
                Self::check_gather(nodes, got, wanted);
            }
            Step::Acknowledge { piece, beyond } => {
                let end = model.pieces.get(piece).map_or(model.first, |piece| piece.start + piece.len);
                let ack = end.saturating_add_signed(beyond);
                let told = model.acknowledge(ack);
                let delivered = queue.acknowledge(nodes, seq(ack));
                assert_eq!(Told::of(&delivered), told);
                self.deliver(&delivered, now);
            }
            Step::Sack(ref places) => {
                let last = model.pieces.len().saturating_sub(1);
                let block = |&(from, count, early, short): &(usize, usize, u32, u32)| {
                    let start = model.pieces.get(from.min(last)).map_or(0, |piece| piece.start);
                    let end =
                        model.pieces.get((from + count).min(last)).map_or(0, |piece| piece.start + piece.len);
                    (start.saturating_sub(early), end.saturating_sub(short))
                };
                let blocks: Vec<_> = places.iter().map(block).collect();
                let numbers: Vec<_> = blocks.iter().map(|&(start, end)| (seq(start), seq(end))).collect();
                let told = model.sack(&blocks);
                let delivered = queue.sack(nodes, &numbers);
                assert_eq!(Told::of(&delivered), told);
                self.deliver(&delivered, now);
            }
            Step::Rack(window) => {
                let wanted = model.rack(&self.rack, window, now.low());
                assert_eq!(queue.lose_by_rack(nodes, &self.rack, window, now), wanted);
            }
            Step::Timeout(without_rack) => {
                let wanted = model.timeout(&self.rack, MIN_RTT_US, now.low(), without_rack);
                assert_eq!(queue.lose_on_timeout(nodes, &self.rack, MIN_RTT_US, now, without_rack), wanted);
            }
            Step::LoseHead => {
                let mut wanted = 0;
                for (index, piece) in model.pieces.iter_mut().enumerate() {
                    let is_other_segment = index > 0 && piece.is_first;
                    if !piece.is_sent || piece.is_sacked || piece.is_lost || is_other_segment {
                        break;
                    }
                    piece.is_lost = true;
                    wanted += piece.len;
                }
                assert_eq!(queue.lose_head(nodes), wanted);
            }
            Step::Spurious => {
                queue.recover_spurious(nodes);
                model.pieces.iter_mut().for_each(|piece| piece.is_lost = false);
            }
        }
    }

    fn check(&self) {
        let (queue, model) = (&self.queue, &self.model);
        assert_eq!(offset(queue.first()), model.first);
        assert_eq!(queue.len(), model.sum(|_| true));
        assert_eq!(offset(queue.sent_end()), model.sent_end());
        assert_eq!(queue.unsent(), model.sum(|piece| !piece.is_sent));
        assert_eq!(queue.sacked(), model.sum(|piece| piece.is_sacked));
        assert_eq!(queue.lost(), model.sum(|piece| piece.is_lost));
        assert_eq!(queue.in_flight(), model.sum(|piece| piece.is_sent && !piece.is_sacked && !piece.is_lost));
        let sacked = model.pieces.iter().filter(|piece| piece.is_sacked && piece.is_first).count();
        assert_eq!(queue.sacked_segments() as usize, sacked);
    }
}

fn steps() -> impl Strategy<Value = Vec<(bool, Step)>> {
    let limit = || prop_oneof![Just(1_460_u32), 1_u32..5_000, Just(1_u32), Just(0_u32)];
    let few = || prop_oneof![3 => 0_usize..4, 1 => 0_usize..40];
    let cut = || prop_oneof![4 => Just(0_u32), 1 => 0_u32..2_000];
    let step = prop_oneof![
        6 => prop_oneof![Just(1_460_u16), 1_u16..100, 1_u16..9_000].prop_map(Step::Push),
        8 => (limit(), prop::bool::weighted(0.1)).prop_map(|(limit, is_refused)| Step::Fresh { limit, is_refused }),
        5 => (limit(), prop::bool::weighted(0.1)).prop_map(|(limit, is_refused)| Step::Resend { limit, is_refused }),
        1 => limit().prop_map(Step::Head),
        1 => limit().prop_map(Step::Tail),
        2 => (few(), prop_oneof![3 => Just(0_i32), 1 => -1_500_i32..1_500])
            .prop_map(|(piece, beyond)| Step::Acknowledge { piece, beyond }),
        5 => prop::collection::vec((few(), few(), cut(), cut()), 1..=4).prop_map(Step::Sack),
        4 => (0_u32..20_000).prop_map(Step::Rack),
        1 => prop::bool::ANY.prop_map(Step::Timeout),
        1 => Just(Step::LoseHead),
        1 => Just(Step::Spurious),
        4 => (0_u32..10_000).prop_map(Step::Wait),
    ];
    prop::collection::vec((prop::bool::ANY, step), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn queues_do_what_plain_lists_do(steps in steps()) {
        let mut nodes = Nodes::new(10_000);
        let mut clock = Instant(u64::from(u32::MAX - BEFORE_WRAP));
        let mut pairs = [Pair::new(), Pair::new()];
        for (which, step) in &steps {
            let pair = &mut pairs[usize::from(*which)];
            pair.step(&mut nodes, step, &mut clock);
            pair.check();
            let pinned: u64 = pairs.iter().map(|pair| pair.model.pinned()).sum();
            assert_eq!(nodes.pinned(), pinned);
            let used: usize = pairs.iter().map(|pair| pair.model.pieces.len()).sum();
            assert_eq!(nodes.used() as usize, used);
        }
        for pair in &mut pairs {
            pair.queue.clear(&mut nodes);
            assert!(pair.queue.is_empty() && pair.queue.sent() == 0);
        }
        assert_eq!((nodes.used(), nodes.pinned()), (0, 0));
    }
}
