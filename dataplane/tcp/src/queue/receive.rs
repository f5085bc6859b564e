//! Which bytes can the application read, and which arrived ahead of a gap? A connection's receive queue.
//!
//! ```text
//! ready ─── bytes in order, not yet read ─── expected (RCV.NXT) ─ gap ─ run ─ gap ─ run ─ …
//! ```
//!
//! A run is a chain of pieces without a gap; its first piece knows the last one and when the run changed, so that finding a
//! place, telling SACK blocks and handing a run over cost the number of gaps, not of pieces. Where bytes arrive twice, those
//! that came first stay.

use arrayvec::ArrayVec;

use super::nodes::{NONE, Nodes};
use crate::buffer::{Buffer, Chunk};
use crate::seq::SeqNumber;

/// Gaps that a connection may have; a piece that would make one more is refused, and the peer sends it again.
pub const MAX_GAPS: u32 = 256;
/// Pieces, read or not, from which on nothing more is kept ahead of a gap. It bounds what tiny segments can pin; with
/// full ones the receive window ends first.
pub const MAX_PIECES: u32 = 16_384;

/// Bytes that arrived and were not read.
#[derive(Debug)]
pub struct ReceiveQueue {
    ready_head: u32,
    ready_tail: u32,
    /// The first piece of the first run.
    waiting: u32,
    ready_len: u32,
    pieces: u32,
    runs: u32,
}

const _: () = assert!(size_of::<ReceiveQueue>() <= 24);

/// What became of a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// The first part of it that was there before: what a D-SACK reports (RFC 2883 §4).
    pub duplicate: Option<(SeqNumber, SeqNumber)>,
    /// Whether any of it is new and kept.
    pub stored: bool,
}

impl Default for ReceiveQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl ReceiveQueue {
    /// Empty.
    pub const fn new() -> Self {
        Self { ready_head: NONE, ready_tail: NONE, waiting: NONE, ready_len: 0, pieces: 0, runs: 0 }
    }

    /// Bytes that can be read.
    #[inline(always)]
    pub const fn len(&self) -> u32 {
        self.ready_len
    }

    /// Whether no bytes can be read.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.ready_len == 0
    }

    /// Whether anything arrived ahead of a gap.
    #[inline(always)]
    pub const fn has_out_of_order(&self) -> bool {
        self.waiting != NONE
    }

    /// Asks for the cache line that the next piece in order will be linked to.
    #[inline(always)]
    pub fn prefetch<B: Buffer>(&self, nodes: &Nodes<B>) {
        nodes.prefetch(self.ready_tail);
    }

    /// Adds the bytes that were expected next; gives them back where the slab is full and others wait to be read. The fast path while nothing is out of
    /// order: else [`Self::insert`] and [`Self::advance`], so that bytes which came first stay.
    #[inline(always)]
    pub fn append<B: Buffer>(&mut self, nodes: &mut Nodes<B>, chunk: Chunk<B>) -> Result<(), Chunk<B>> {
        if chunk.len == 0 {
            return Ok(());
        }
        // a connection without any can always take one, so that each makes progress
        if !self.is_empty() && nodes.is_full() {
            return Err(chunk);
        }
        self.append_anyway(nodes, chunk);
        Ok(())
    }

    /// As [`Self::append`], of some bytes, even beyond the slab's limit.
    #[inline(always)]
    pub(crate) fn append_anyway<B: Buffer>(&mut self, nodes: &mut Nodes<B>, chunk: Chunk<B>) {
        let len = u32::from(chunk.len);
        let id = nodes.insert_anyway(chunk, SeqNumber(0));
        self.link_ready(nodes, id, id);
        self.ready_len += len;
        self.pieces += 1;
    }

    /// Keeps a segment's bytes from anywhere in the window; `expected` is RCV.NXT. What lies before it is a duplicate;
    /// what lies beyond the window the caller cut off. [`Self::advance`] makes readable what has become so.
    pub fn insert<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        seq: SeqNumber,
        chunk: Chunk<B>,
        expected: SeqNumber,
    ) -> Inserted {
        let mut inserted = Inserted::default();
        let end = seq + u32::from(chunk.len);
        if end == seq {
            return inserted;
        }
        let mut start = seq;
        if start.is_before(expected) {
            start = expected.min(end);
            inserted.duplicate = Some((seq, start));
        }
        let mut chunk = Some(chunk);
        let mut before = NONE;
        let mut run = self.waiting;
        while start != end {
            let bounds = run_bounds(nodes, run);
            let gap_end = bounds.map_or(end, |(run_start, _)| run_start.min(end));
            if start.is_before(gap_end) {
                let Some(piece) = part(&mut chunk, seq, start, gap_end, end) else { break };
                let is_next = start == expected;
                let Some(first) = self.place(nodes, before, run, start, piece, is_next) else { break };
                inserted.stored = true;
                start = gap_end;
                run = first;
                continue;
            }
            let Some((_, run_end)) = bounds else { break };
            if start.is_before(run_end) {
                let twice = run_end.min(end);
                inserted.duplicate = inserted.duplicate.or(Some((start, twice)));
                start = twice;
                // RFC 2883 §4.2: the block that holds the duplicate follows the D-SACK.
                touch(nodes, run);
            }
            before = run;
            run = following_run(nodes, run);
        }
        inserted
    }

    /// Links a piece between two runs that it overlaps neither of, and joins it with those that it touches; the first
    /// piece of its run.
    fn place<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        before: u32,
        after: u32,
        start: SeqNumber,
        piece: Chunk<B>,
        is_next: bool,
    ) -> Option<u32> {
        let end = start + u32::from(piece.len);
        let touches_before = run_bounds(nodes, before).is_some_and(|(_, run_end)| run_end == start);
        let touches_after = run_bounds(nodes, after).is_some_and(|(run_start, _)| run_start == end);
        let makes_gap = !touches_before && !touches_after;
        // What fills the first gap is read at once, and so never refused but for memory.
        if !is_next && (self.pieces >= MAX_PIECES || makes_gap && self.runs >= MAX_GAPS) {
            return None;
        }
        let id = nodes.insert(piece, start).ok()?;
        self.pieces += 1;
        let last = if touches_after { nodes.get(after).map_or(id, |node| node.last) } else { id };
        nodes.link(id, after);
        let first = if before == NONE {
            self.waiting = id;
            id
        } else {
            let before_last = nodes.get(before).map_or(before, |node| node.last);
            nodes.link(before_last, id);
            if touches_before { before } else { id }
        };
        if let Some(node) = nodes.get_mut(first) {
            node.last = last;
        }
        touch(nodes, first);
        self.runs += 1;
        self.runs -= u32::from(touches_before) + u32::from(touches_after);
        Some(first)
    }

    /// Makes readable what now follows without a gap; RCV.NXT after it.
    #[inline]
    pub fn advance<B: Buffer>(&mut self, nodes: &mut Nodes<B>, expected: SeqNumber) -> SeqNumber {
        if self.waiting == NONE {
            return expected;
        }
        self.advance_runs(nodes, expected)
    }

    fn advance_runs<B: Buffer>(&mut self, nodes: &mut Nodes<B>, mut expected: SeqNumber) -> SeqNumber {
        while let Some(node) = nodes.get_mut(self.waiting) {
            let (start, end) = (node.start(), node.end());
            if start.is_after(expected) {
                break;
            }
            let (id, last, next, stamp) = (self.waiting, node.last, node.next, node.stamp);
            if !end.is_after(expected) {
                // Its bytes were appended meanwhile.
                self.waiting = next;
                if id == last {
                    self.runs -= 1;
                } else if let Some(node) = nodes.get_mut(next) {
                    node.last = last;
                    node.stamp = stamp;
                }
                self.release(nodes, id);
                continue;
            }
            let twice = expected.since(start);
            node.trim(twice as u16);
            let run_end = nodes.get(last).map_or(expected, |node| node.end());
            self.waiting = nodes.get(last).map_or(NONE, |node| node.next);
            self.runs -= 1;
            self.link_ready(nodes, id, last);
            let bytes = run_end.since(expected);
            self.ready_len += bytes;
            expected = run_end;
        }
        expected
    }

    /// RFC 2018 §4: what arrived ahead of gaps, the run that changed last first; at most `max` (and 4) blocks.
    pub fn sack_blocks<B: Buffer>(
        &self,
        nodes: &Nodes<B>,
        max: usize,
    ) -> ArrayVec<(SeqNumber, SeqNumber), 4> {
        let mut newest: ArrayVec<(u32, SeqNumber, SeqNumber), 4> = ArrayVec::new();
        let room = max.min(newest.capacity());
        let mut run = self.waiting;
        while let Some((start, end)) = run_bounds(nodes, run) {
            let age = nodes.insertions().wrapping_sub(nodes.get(run).map_or(0, |node| node.stamp));
            let place = newest.iter().position(|&(other, ..)| age < other).unwrap_or(newest.len());
            if place < room {
                newest.truncate(room - 1);
                newest.insert(place, (age, start, end));
            }
            run = following_run(nodes, run);
        }
        newest.into_iter().map(|(_, start, end)| (start, end)).collect()
    }

    /// Takes the first piece that can be read.
    #[inline(always)]
    pub fn pop<B: Buffer>(&mut self, nodes: &mut Nodes<B>) -> Option<Chunk<B>> {
        let id = self.ready_head;
        let next = nodes.get(id)?.next;
        self.ready_head = next;
        if next == NONE {
            self.ready_tail = NONE;
        }
        let chunk = self.release(nodes, id)?;
        self.ready_len -= u32::from(chunk.len);
        Some(chunk)
    }

    /// Takes at most so many bytes of the first piece that can be read; what is left of it shares its buffer.
    #[inline]
    pub fn take<B: Buffer>(&mut self, nodes: &mut Nodes<B>, most: u32) -> Option<Chunk<B>> {
        let node = nodes.get_mut(self.ready_head)?;
        if u32::from(node.len) <= most {
            return self.pop(nodes);
        }
        let (offset, len) = (node.offset, most as u16);
        let buffer = node.buffer()?.share();
        node.trim(len);
        self.ready_len -= u32::from(len);
        Some(Chunk { buffer, offset, len })
    }

    /// The bytes of the first piece that can be read.
    #[inline]
    pub fn peek<'a, B: Buffer>(&self, nodes: &'a Nodes<B>) -> Option<&'a [u8]> {
        nodes.get(self.ready_head).map(|node| node.bytes())
    }

    /// The bytes of all pieces that can be read, in order.
    pub fn pieces<'a, B: Buffer>(&self, nodes: &'a Nodes<B>) -> impl Iterator<Item = &'a [u8]> {
        let mut id = self.ready_head;
        std::iter::from_fn(move || {
            let node = nodes.get(id)?;
            id = node.next;
            Some(node.bytes())
        })
    }

    /// Lets so many of the first bytes go; how many there were.
    pub fn consume<B: Buffer>(&mut self, nodes: &mut Nodes<B>, bytes: u32) -> u32 {
        let wanted = bytes.min(self.ready_len);
        let mut left = wanted;
        while left > 0 {
            let Some(node) = nodes.get_mut(self.ready_head) else { break };
            let len = u32::from(node.len);
            if left < len {
                node.trim(left as u16);
                self.ready_len -= left;
                break;
            }
            left -= len;
            self.pop(nodes);
        }
        wanted
    }

    /// Lets go of what arrived ahead of gaps, though it was acknowledged selectively: RFC 2018 §8 allows it under memory
    /// pressure.
    pub fn drop_out_of_order<B: Buffer>(&mut self, nodes: &mut Nodes<B>) {
        let mut id = self.waiting;
        while let Some(node) = nodes.get(id) {
            let next = node.next;
            self.release(nodes, id);
            id = next;
        }
        self.waiting = NONE;
        self.runs = 0;
    }

    /// Lets everything go.
    pub fn clear<B: Buffer>(&mut self, nodes: &mut Nodes<B>) {
        nodes.release_list(self.ready_head);
        nodes.release_list(self.waiting);
        *self = Self::new();
    }

    #[inline(always)]
    fn release<B: Buffer>(&mut self, nodes: &mut Nodes<B>, id: u32) -> Option<Chunk<B>> {
        let chunk = nodes.release(id)?;
        self.pieces -= 1;
        Some(chunk)
    }

    #[inline(always)]
    fn link_ready<B: Buffer>(&mut self, nodes: &mut Nodes<B>, first: u32, last: u32) {
        if self.ready_tail == NONE {
            self.ready_head = first;
        } else {
            nodes.link(self.ready_tail, first);
        }
        self.ready_tail = last;
        nodes.link(last, NONE);
    }
}

/// A run's first byte and the one after its last.
#[inline]
fn run_bounds<B: Buffer>(nodes: &Nodes<B>, run: u32) -> Option<(SeqNumber, SeqNumber)> {
    let first = nodes.get(run)?;
    Some((first.start(), nodes.get(first.last)?.end()))
}

#[inline]
fn following_run<B: Buffer>(nodes: &Nodes<B>, run: u32) -> u32 {
    nodes.get(run).and_then(|first| nodes.get(first.last)).map_or(NONE, |last| last.next)
}

/// The run changed, or bytes of it arrived again.
fn touch<B: Buffer>(nodes: &mut Nodes<B>, run: u32) {
    let stamp = nodes.next_insertion();
    if let Some(node) = nodes.get_mut(run) {
        node.stamp = stamp;
    }
}

/// The bytes from `start` to `until` of a segment from `seq` to `end`: the segment's own buffer where they are its last.
fn part<B: Buffer>(
    chunk: &mut Option<Chunk<B>>,
    seq: SeqNumber,
    start: SeqNumber,
    until: SeqNumber,
    end: SeqNumber,
) -> Option<Chunk<B>> {
    let (skipped, len) = (start.since(seq) as u16, until.since(start) as u16);
    if until == end {
        let Chunk { buffer, offset, .. } = chunk.take()?;
        return Some(Chunk { buffer, offset: offset.wrapping_add(skipped), len });
    }
    let whole = chunk.as_ref()?;
    Some(Chunk { buffer: whole.buffer.share(), offset: whole.offset.wrapping_add(skipped), len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::HeapBuffer;

    const EXPECTED: SeqNumber = SeqNumber(1_000);

    fn chunk(len: usize) -> Chunk<HeapBuffer> {
        Chunk::whole(HeapBuffer::from(&vec![7; len][..]))
    }

    fn insert(queue: &mut ReceiveQueue, nodes: &mut Nodes<HeapBuffer>, seq: u32, len: usize) -> Inserted {
        queue.insert(nodes, SeqNumber(seq), chunk(len), EXPECTED)
    }

    fn blocks(queue: &ReceiveQueue, nodes: &Nodes<HeapBuffer>, max: usize) -> Vec<(u32, u32)> {
        queue.sack_blocks(nodes, max).iter().map(|(start, end)| (start.0, end.0)).collect()
    }

    /// RFC 2018 §4: the block of the segment that came last leads, then the others by their last change.
    #[test]
    fn blocks_are_told_newest_first_and_the_oldest_left_out() {
        let (mut queue, mut nodes) = (ReceiveQueue::new(), Nodes::new(100));
        for seq in [2_000, 3_000, 4_000, 5_000, 6_000] {
            assert!(insert(&mut queue, &mut nodes, seq, 100).stored);
        }
        assert_eq!(blocks(&queue, &nodes, 3), [(6_000, 6_100), (5_000, 5_100), (4_000, 4_100)]);
        assert!(insert(&mut queue, &mut nodes, 3_100, 100).stored);
        assert_eq!(
            blocks(&queue, &nodes, 9),
            [(3_000, 3_200), (6_000, 6_100), (5_000, 5_100), (4_000, 4_100)]
        );
        // RFC 2883 §4.2: a duplicate's block follows its D-SACK, so it is the newest again.
        let again = insert(&mut queue, &mut nodes, 4_050, 20);
        assert_eq!(again, Inserted { duplicate: Some((SeqNumber(4_050), SeqNumber(4_070))), stored: false });
        assert_eq!(blocks(&queue, &nodes, 2), [(4_000, 4_100), (3_000, 3_200)]);
        // One that fills two gaps makes one of three.
        assert!(insert(&mut queue, &mut nodes, 3_200, 1_800).stored);
        assert_eq!(blocks(&queue, &nodes, 4), [(3_000, 5_100), (6_000, 6_100), (2_000, 2_100)]);
    }

    #[test]
    fn gaps_and_pieces_are_bounded_but_never_the_next_bytes() {
        let (mut queue, mut nodes) = (ReceiveQueue::new(), Nodes::new(100_000));
        for gap in 0..MAX_GAPS {
            assert!(insert(&mut queue, &mut nodes, 2_000 + gap * 10, 1).stored);
        }
        assert!(!insert(&mut queue, &mut nodes, 90_000, 1).stored, "one gap too many");
        assert!(insert(&mut queue, &mut nodes, 2_001, 1).stored, "no gap more");
        for _ in 0..MAX_PIECES - MAX_GAPS - 1 {
            queue.append(&mut nodes, chunk(1)).unwrap();
        }
        assert!(!insert(&mut queue, &mut nodes, 2_002, 1).stored, "one piece too many");
        assert!(insert(&mut queue, &mut nodes, EXPECTED.0, 5).stored, "what is read next");
        assert_eq!(queue.advance(&mut nodes, EXPECTED), EXPECTED + 5);
    }

    #[test]
    fn a_part_of_a_piece_leaves_the_rest_of_it_where_it_was() {
        let (mut queue, mut nodes) = (ReceiveQueue::new(), Nodes::new(8));
        queue.append(&mut nodes, Chunk::whole(HeapBuffer::from(b"abcdef".as_slice()))).unwrap();
        queue.append(&mut nodes, Chunk::whole(HeapBuffer::from(b"gh".as_slice()))).unwrap();
        assert_eq!(queue.take(&mut nodes, 2).unwrap().bytes(), b"ab");
        assert_eq!((queue.len(), queue.peek(&nodes)), (6, Some(b"cdef".as_slice())));
        assert_eq!(queue.take(&mut nodes, 100).unwrap().bytes(), b"cdef");
        assert_eq!(queue.take(&mut nodes, 2).unwrap().bytes(), b"gh");
        assert!(queue.take(&mut nodes, 1).is_none() && queue.is_empty());
        assert_eq!((nodes.used(), nodes.pinned()), (0, 0));
    }

    #[test]
    fn a_full_slab_refuses_and_loses_nothing_that_it_had() {
        let (mut queue, mut nodes) = (ReceiveQueue::new(), Nodes::new(2));
        assert!(insert(&mut queue, &mut nodes, 2_000, 10).stored);
        queue.append(&mut nodes, chunk(3)).unwrap();
        assert_eq!(queue.append(&mut nodes, chunk(4)).unwrap_err().len, 4);
        assert!(!insert(&mut queue, &mut nodes, 3_000, 10).stored);
        assert_eq!((queue.len(), queue.has_out_of_order(), nodes.pinned()), (3, true, 13));
        queue.drop_out_of_order(&mut nodes);
        assert_eq!((queue.len(), queue.has_out_of_order()), (3, false));
        assert_eq!((nodes.pinned(), nodes.used()), (3, 1));
    }
}
