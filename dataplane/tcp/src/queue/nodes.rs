//! Where do the pieces of all queues lie? In one slab per worker, as singly linked lists.
//!
//! A node's id means the same piece until it is released; the slab grows as it fills and never shrinks. Freed nodes are
//! used again newest first, since those are still in the cache.

use crate::buffer::{Buffer, Chunk};
use crate::seq::SeqNumber;

/// No node: the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// Said by a selective acknowledgement to have arrived.
pub(super) const SACKED: u8 = 1;
/// Held for lost, and not sent again since.
pub(super) const LOST: u8 = 2;
/// Sent more than once.
pub(super) const RETRANSMITTED: u8 = 4;
/// The first piece of a segment, as it was sent last.
pub(super) const SEGMENT_START: u8 = 8;
/// Shares its buffer with a later piece, which answers for the buffer's cost.
pub(super) const UNCOUNTED: u8 = 16;

/// Nodes for which memory is set aside at once; it is taken as they are first used.
const MOST_AT_ONCE: usize = 1 << 20;

/// A piece of a stream. 32 bytes with a buffer of 8, so that two share a cache line.
#[derive(Debug)]
pub(super) struct Node<B> {
    buffer: Option<B>,
    /// The next piece of its queue, or the next free node.
    pub(super) next: u32,
    /// Sequence number of its first byte.
    pub(super) seq: u32,
    /// Send queue: when it was sent last, in µs. Receive queue: when its run changed last, in insertions.
    pub(super) stamp: u32,
    /// Send queue: of a piece with [`SACKED`], a piece at or behind it up to which all are. Receive queue: of the first piece
    /// of a run without gaps, its last.
    pub(super) last: u32,
    /// Where it begins in its buffer.
    pub(super) offset: u16,
    /// Its bytes; 0 only where it is free.
    pub(super) len: u16,
    pub(super) flags: u8,
}

const _: () = assert!(size_of::<Node<&'static u8>>() == 32);

impl<B> Node<B> {
    #[inline(always)]
    pub(super) const fn start(&self) -> SeqNumber {
        SeqNumber(self.seq)
    }

    #[inline(always)]
    pub(super) const fn end(&self) -> SeqNumber {
        SeqNumber(self.seq.wrapping_add(self.len as u32))
    }

    #[inline(always)]
    pub(super) const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    #[inline(always)]
    pub(super) const fn buffer(&self) -> Option<&B> {
        self.buffer.as_ref()
    }

    /// Cuts bytes off its front; fewer than it has.
    #[inline(always)]
    pub(super) const fn trim(&mut self, bytes: u16) {
        self.seq = self.seq.wrapping_add(bytes as u32);
        self.offset = self.offset.wrapping_add(bytes);
        self.len = self.len.saturating_sub(bytes);
    }
}

impl<B: Buffer> Node<B> {
    /// Its bytes; empty where it is free or the piece does not lie within its buffer.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        let start = usize::from(self.offset);
        self.buffer
            .as_ref()
            .and_then(|buffer| buffer.bytes().get(start..start + usize::from(self.len)))
            .unwrap_or_default()
    }
}

/// The pieces of all queues of one worker.
#[derive(Debug)]
pub struct Nodes<B> {
    slots: Vec<Node<B>>,
    free: u32,
    used: u32,
    limit: u32,
    insertions: u32,
    pinned: u64,
}

impl<B: Buffer> Nodes<B> {
    /// At most that many pieces that come from outside. What splits a piece that is held already may exceed the limit:
    /// at most once per segment sent, and per 512 bytes that a selective acknowledgement cuts; so may the first piece that a
    /// receive queue holds for its application.
    pub const fn new(limit: u32) -> Self {
        Self { slots: Vec::new(), free: NONE, used: 0, limit, insertions: 0, pinned: 0 }
    }

    /// Pieces held.
    #[inline]
    pub const fn used(&self) -> u32 {
        self.used
    }

    /// Pieces that may be held.
    #[inline]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether the limit is reached.
    #[inline(always)]
    pub const fn is_full(&self) -> bool {
        self.used >= self.limit
    }

    /// Whether pieces are so few that windows close and nothing more is taken out of order. The last eighth is for what
    /// arrives in order, which makes progress where all else waits.
    #[inline(always)]
    pub const fn is_scarce(&self) -> bool {
        self.used >= self.limit - self.limit / 8
    }

    /// Pieces that may still be given to be sent: a quarter stays for what arrives, without which two such hosts could wait
    /// for each other for ever.
    #[inline(always)]
    pub const fn left_to_send(&self) -> u32 {
        (self.limit - self.limit / 4).saturating_sub(self.used)
    }

    /// Bytes of memory that the pieces keep from other use: the cost of their buffers. A buffer that a queue split counts
    /// once; one that the caller shared counts as often as it was handed in.
    #[inline]
    pub const fn pinned(&self) -> u64 {
        self.pinned
    }

    #[inline(always)]
    pub(super) fn get(&self, id: u32) -> Option<&Node<B>> {
        self.slots.get(id as usize)
    }

    #[inline(always)]
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Node<B>> {
        self.slots.get_mut(id as usize)
    }

    /// Asks for the node's cache line.
    #[inline(always)]
    pub(super) fn prefetch(&self, id: u32) {
        hugepages::prefetch::read_slice_at(&self.slots, id as usize);
    }

    /// Links one node behind another.
    #[inline(always)]
    pub(super) fn link(&mut self, id: u32, next: u32) {
        if let Some(node) = self.get_mut(id) {
            node.next = next;
        }
    }

    /// Counts insertions into receive queues, so that runs can be ordered by their last change.
    #[inline]
    pub(super) const fn next_insertion(&mut self) -> u32 {
        self.insertions = self.insertions.wrapping_add(1);
        self.insertions
    }

    /// Insertions so far.
    #[inline]
    pub(super) const fn insertions(&self) -> u32 {
        self.insertions
    }

    /// Holds a piece; gives it back where the slab is full.
    #[inline(always)]
    pub(super) fn insert(&mut self, chunk: Chunk<B>, seq: SeqNumber) -> Result<u32, Chunk<B>> {
        if self.is_full() {
            return Err(chunk);
        }
        Ok(self.insert_anyway(chunk, seq))
    }

    /// Holds a piece, even beyond the limit.
    #[inline(always)]
    pub(super) fn insert_anyway(&mut self, chunk: Chunk<B>, seq: SeqNumber) -> u32 {
        let Chunk { buffer, offset, len } = chunk;
        self.pinned += u64::from(buffer.cost());
        let node = Node {
            buffer: Some(buffer),
            next: NONE,
            seq: seq.0,
            stamp: 0,
            last: NONE,
            offset,
            len,
            flags: 0,
        };
        self.place(node)
    }

    #[inline(always)]
    fn place(&mut self, node: Node<B>) -> u32 {
        self.used += 1;
        let id = self.free;
        if let Some(slot) = self.slots.get_mut(id as usize) {
            self.free = slot.next;
            // part by part: a node that is built and moved waits for its own narrow stores
            slot.buffer = node.buffer;
            slot.next = node.next;
            slot.seq = node.seq;
            slot.stamp = node.stamp;
            slot.last = node.last;
            slot.offset = node.offset;
            slot.len = node.len;
            slot.flags = node.flags;
            return id;
        }
        self.extend(node)
    }

    #[cold]
    fn extend(&mut self, node: Node<B>) -> u32 {
        if self.slots.capacity() == 0 {
            self.slots.reserve_exact((self.limit as usize).min(MOST_AT_ONCE));
            hugepages::advise::huge(self.slots.spare_capacity_mut());
        }
        let id = self.slots.len() as u32;
        self.slots.push(node);
        id
    }

    /// Cuts a piece in two: it keeps its first `at` bytes, a new one behind it has the rest and the same flags.
    /// Nothing where `at` is 0 or not less than its length.
    pub(super) fn split(&mut self, id: u32, at: u16) -> Option<u32> {
        // The ids are 32 bits with one for "none"; 128 GiB of nodes come before that.
        if self.slots.len() as u64 >= u64::from(NONE) {
            return None;
        }
        let node = self.slots.get_mut(id as usize)?;
        if at == 0 || at >= node.len {
            return None;
        }
        let rest = Node {
            buffer: Some(node.buffer.as_ref()?.share()),
            next: node.next,
            seq: node.seq.wrapping_add(u32::from(at)),
            stamp: node.stamp,
            last: NONE,
            offset: node.offset.wrapping_add(at),
            len: node.len - at,
            flags: node.flags,
        };
        node.len = at;
        node.flags |= UNCOUNTED;
        let behind = self.place(rest);
        self.link(id, behind);
        Some(behind)
    }

    /// Lets a piece go; its buffer is the caller's.
    #[inline(always)]
    pub(super) fn release(&mut self, id: u32) -> Option<Chunk<B>> {
        let free = self.free;
        let node = self.slots.get_mut(id as usize)?;
        let buffer = node.buffer.take()?;
        let chunk = Chunk { buffer, offset: node.offset, len: node.len };
        let counts = node.flags & UNCOUNTED == 0;
        node.next = free;
        node.len = 0;
        self.free = id;
        self.used -= 1;
        if counts {
            self.pinned -= u64::from(chunk.buffer.cost());
        }
        Some(chunk)
    }

    /// Lets a whole list go.
    pub(super) fn release_list(&mut self, first: u32) {
        let mut id = first;
        while let Some(node) = self.get(id) {
            let next = node.next;
            if self.release(id).is_none() {
                break;
            }
            id = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::HeapBuffer;

    fn chunk(bytes: &[u8]) -> Chunk<HeapBuffer> {
        Chunk::whole(HeapBuffer::from(bytes))
    }

    #[test]
    fn a_full_slab_gives_the_piece_back_and_frees_are_used_again() {
        let mut nodes = Nodes::new(2);
        let first = nodes.insert(chunk(b"one"), SeqNumber(0)).unwrap();
        let second = nodes.insert(chunk(b"two"), SeqNumber(3)).unwrap();
        assert_eq!(nodes.insert(chunk(b"three"), SeqNumber(6)).unwrap_err().bytes(), b"three");
        assert_eq!((nodes.used(), nodes.pinned()), (2, 6));
        assert_eq!(nodes.release(first).unwrap().bytes(), b"one");
        assert!(nodes.release(first).is_none(), "a released piece is gone");
        assert_eq!((nodes.used(), nodes.pinned()), (1, 3));
        assert_eq!(nodes.insert(chunk(b"four"), SeqNumber(6)).unwrap(), first);
        assert_eq!(nodes.get(second).unwrap().bytes(), b"two");
    }

    #[test]
    fn a_split_buffer_counts_once_whatever_is_split_and_freed() {
        let mut nodes = Nodes::new(1);
        let first = nodes.insert(chunk(b"abcdefgh"), SeqNumber(u32::MAX - 1)).unwrap();
        let second = nodes.split(first, 4).unwrap();
        let third = nodes.split(second, 1).unwrap();
        let early = nodes.split(first, 1).unwrap();
        assert!(nodes.split(first, 1).is_none() && nodes.split(first, 0).is_none());
        let texts: Vec<_> =
            [first, early, second, third].map(|id| nodes.get(id).unwrap().bytes().to_vec()).into();
        assert_eq!(texts, [b"a".to_vec(), b"bcd".to_vec(), b"e".to_vec(), b"fgh".to_vec()]);
        assert_eq!(nodes.get(second).unwrap().seq, 2);
        assert_eq!((nodes.used(), nodes.pinned()), (4, 8));
        for id in [first, early, second] {
            nodes.release(id).unwrap();
            assert_eq!(nodes.pinned(), 8);
        }
        nodes.release(third).unwrap();
        assert_eq!((nodes.used(), nodes.pinned()), (0, 0));
    }
}
