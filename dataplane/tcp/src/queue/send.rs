//! Which bytes were sent, which arrived, which are lost, which come next? A connection's send queue and scoreboard.
//!
//! ```text
//! first (SND.UNA) ─── sent, in the order of the stream ─── sent_end ─── never sent ─── first + len
//!        │ sacked: arrived (RFC 2018)      │ lost: to be sent again      │
//! ```
//!
//! Pieces that arrived stay until they are acknowledged cumulatively, since the peer may renege (RFC 2018 §8). Walks begin
//! at the front, jump over runs that arrived, and so cost the number of holes rather than of segments in flight.

mod delivered;
mod losses;

use arrayvec::ArrayVec;

use super::nodes::{LOST, NONE, Nodes, RETRANSMITTED, SACKED, SEGMENT_START, UNCOUNTED};
use crate::buffer::{Buffer, Chunk};
use crate::rack::DeliveredSegments;
use crate::seq::SeqNumber;
use crate::time::Instant;

pub use delivered::Delivered;
use delivered::Originals;
pub use losses::Losses;

/// Pieces that one segment may be made of.
pub const MAX_SLICES: usize = 8;
/// Bytes that a queue holds at most: half of what sequence numbers can order.
const MAX_BYTES: u32 = 1 << 30;
/// A selective acknowledgement that ends within a piece cuts it only where both parts have so many bytes, about the
/// smallest segment in use (RFC 9293 §3.7.1): a peer can't shred what is held.
const SMALLEST_CUT: u32 = 512;

/// The bytes of a stream from the first unacknowledged one on.
#[derive(Debug)]
pub struct SendQueue {
    head: u32,
    tail: u32,
    /// The first piece that was never sent.
    fresh: u32,
    /// No lost piece lies before this one; NONE: none is lost.
    resend: u32,
    first: SeqNumber,
    sent_end: SeqNumber,
    len: u32,
    sacked: u32,
    lost: u32,
    /// Bytes sent again in this episode that no D-SACK reported yet.
    resent: u32,
    /// Where the episode began.
    episode: SeqNumber,
    sacked_segments: u32,
}

const _: () = assert!(size_of::<SendQueue>() <= 48);

/// Why bytes were gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GatherKind {
    /// Never sent before.
    Fresh,
    /// Lost, and sent again.
    Resent,
    /// Sent again although not held for lost: a probe.
    Probe,
}

/// Bytes of one segment. Valid until the next change of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Gather {
    /// Sequence number of the first byte.
    pub seq: SeqNumber,
    /// Bytes; never 0.
    pub len: u32,
    /// Why.
    pub kind: GatherKind,
    slices: u8,
    node: u32,
}

impl Gather {
    /// Sequence number after the last byte.
    #[inline]
    pub fn end(&self) -> SeqNumber {
        self.seq + self.len
    }

    /// The pieces in order: buffer, offset, length. At most [`MAX_SLICES`].
    #[inline]
    pub const fn slices<'a, B>(&self, nodes: &'a Nodes<B>) -> Slices<'a, B> {
        Slices { nodes, node: self.node, left: self.slices }
    }
}

/// The pieces of a segment.
#[derive(Debug)]
pub struct Slices<'a, B> {
    nodes: &'a Nodes<B>,
    node: u32,
    left: u8,
}

impl<'a, B: Buffer> Iterator for Slices<'a, B> {
    type Item = (&'a B, u16, u16);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let node = self.nodes.get(self.node)?;
        self.node = node.next;
        Some((node.buffer()?, node.offset, node.len))
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(usize::from(self.left)))
    }
}

/// Which pieces a walk takes, and what it does to them.
#[derive(Clone, Copy)]
struct Take {
    kind: GatherKind,
    /// Only pieces with these of the flags `mask`.
    mask: u8,
    wanted: u8,
    stop: u32,
}

impl SendQueue {
    /// Empty; `first` is the sequence number of the first byte that will be pushed (ISS + 1).
    pub const fn new(first: SeqNumber) -> Self {
        Self {
            head: NONE,
            tail: NONE,
            fresh: NONE,
            resend: NONE,
            first,
            sent_end: first,
            len: 0,
            sacked: 0,
            lost: 0,
            resent: 0,
            episode: first,
            sacked_segments: 0,
        }
    }

    /// Bytes held.
    #[inline(always)]
    pub const fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing is held.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sequence number of the first byte held, or to be pushed.
    #[inline(always)]
    pub const fn first(&self) -> SeqNumber {
        self.first
    }

    /// Sequence number of the first byte that was never sent.
    #[inline(always)]
    pub const fn sent_end(&self) -> SeqNumber {
        self.sent_end
    }

    /// Sequence number after the last byte held: where FIN goes.
    #[inline(always)]
    pub fn end(&self) -> SeqNumber {
        self.first + self.len
    }

    /// Bytes sent and not yet acknowledged cumulatively.
    #[inline(always)]
    pub const fn sent(&self) -> u32 {
        self.sent_end.since(self.first)
    }

    /// Bytes never sent.
    #[inline(always)]
    pub const fn unsent(&self) -> u32 {
        self.len - self.sent()
    }

    /// Bytes held for lost and not sent again.
    #[inline(always)]
    pub const fn lost(&self) -> u32 {
        self.lost
    }

    /// Bytes that arrived beyond a gap.
    #[inline(always)]
    pub const fn sacked(&self) -> u32 {
        self.sacked
    }

    /// Segments, as sent, that arrived beyond a gap.
    #[inline(always)]
    pub const fn sacked_segments(&self) -> u32 {
        self.sacked_segments
    }

    /// RFC 6675 §4, pipe: bytes in the network, as far as is known.
    #[inline(always)]
    pub const fn in_flight(&self) -> u32 {
        self.sent() - self.sacked - self.lost
    }

    /// Asks for the cache line of the first piece, ahead of an acknowledgement.
    #[inline(always)]
    pub fn prefetch<B: Buffer>(&self, nodes: &Nodes<B>) {
        nodes.prefetch(self.head);
    }

    /// Adds bytes at the end; gives them back where the slab has no more for sending, or the queue is full. Nothing of an empty piece is kept.
    #[inline(always)]
    pub fn push<B: Buffer>(&mut self, nodes: &mut Nodes<B>, chunk: Chunk<B>) -> Result<(), Chunk<B>> {
        let len = u32::from(chunk.len);
        if len == 0 {
            return Ok(());
        }
        if self.len + len > MAX_BYTES || nodes.left_to_send() == 0 {
            return Err(chunk);
        }
        let id = nodes.insert(chunk, self.end())?;
        if self.tail == NONE {
            self.head = id;
        } else {
            nodes.link(self.tail, id);
        }
        self.tail = id;
        if self.fresh == NONE {
            self.fresh = id;
        }
        self.len += len;
        Ok(())
    }

    /// Takes bytes that were never sent, and holds them for sent now. Fewer than the limit only where there are no more,
    /// or they lie in too many pieces for one segment.
    #[inline(always)]
    pub fn fresh<B: Buffer>(&mut self, nodes: &mut Nodes<B>, limit: u32, now: Instant) -> Option<Gather> {
        let take = Take { kind: GatherKind::Fresh, mask: 0, wanted: 0, stop: NONE };
        let (gather, next) = self.take(nodes, self.fresh, limit, now, take)?;
        self.fresh = next;
        self.sent_end += gather.len;
        Some(gather)
    }

    /// Takes the first bytes that are lost, and holds them for sent again now.
    pub fn resend<B: Buffer>(&mut self, nodes: &mut Nodes<B>, limit: u32, now: Instant) -> Option<Gather> {
        if self.lost == 0 {
            return None;
        }
        let mut id = self.resend;
        while id != self.fresh {
            let node = nodes.get(id)?;
            if node.has(LOST) {
                break;
            }
            id = if node.has(SACKED) { run_end(nodes, id) } else { node.next };
        }
        self.resend = id;
        let take = Take { kind: GatherKind::Resent, mask: LOST, wanted: LOST, stop: self.fresh };
        let (gather, next) = self.take(nodes, id, limit, now, take)?;
        self.resend = if self.lost == 0 { NONE } else { next };
        Some(gather)
    }

    /// Takes the first bytes again, whether lost or not: what probes a window that is closed while bytes are outstanding.
    pub fn head<B: Buffer>(&mut self, nodes: &mut Nodes<B>, limit: u32, now: Instant) -> Option<Gather> {
        let take = Take { kind: GatherKind::Probe, mask: SACKED, wanted: 0, stop: self.fresh };
        self.take(nodes, self.head, limit, now, take).map(|(gather, _)| gather)
    }

    /// Takes the last bytes that were sent again: RFC 8985 §7.3, where nothing new can be sent. None where they arrived:
    /// RFC 8985 §7.2 probes only where no selective acknowledgement is held.
    pub fn probe_tail<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        limit: u32,
        now: Instant,
    ) -> Option<Gather> {
        let from = self.sent_end - limit.min(self.sent());
        let mut recent: ArrayVec<u32, MAX_SLICES> = ArrayVec::new();
        let mut id = self.head;
        while id != self.fresh {
            let node = nodes.get(id)?;
            if node.has(SACKED) {
                recent.clear();
                id = run_end(nodes, id);
                continue;
            }
            if node.end().is_after(from) {
                if recent.is_full() {
                    recent.pop_at(0);
                }
                recent.push(id);
            }
            id = node.next;
        }
        let mut start = *recent.first()?;
        let first = nodes.get(start)?;
        if first.start().is_before(from) {
            let at = from.since(first.start()) as u16;
            start = match recent.get(1) {
                Some(&second) => second,
                None => self.split(nodes, start, at)?,
            };
        }
        let take = Take { kind: GatherKind::Probe, mask: SACKED, wanted: 0, stop: self.fresh };
        self.take(nodes, start, limit, now, take).map(|(gather, _)| gather)
    }

    /// Takes back what the latest [`Self::fresh`] or [`Self::resend`] gave and the network did not take. A probe needs no
    /// taking back: its timer tries again.
    pub fn unsend<B: Buffer>(&mut self, nodes: &mut Nodes<B>, gather: Gather) {
        match gather.kind {
            GatherKind::Fresh if gather.end() == self.sent_end => {
                self.fresh = gather.node;
                self.sent_end = gather.seq;
            }
            GatherKind::Resent => {
                let mut id = gather.node;
                for _ in 0..gather.slices {
                    let Some(node) = nodes.get_mut(id) else { return };
                    if !node.has(LOST | SACKED) {
                        node.flags |= LOST;
                        self.lost += u32::from(node.len);
                        self.resent = self.resent.saturating_sub(u32::from(node.len));
                    }
                    id = node.next;
                }
                self.resend = gather.node;
            }
            GatherKind::Fresh | GatherKind::Probe => {}
        }
    }

    /// Whether so many of the first bytes are whole pieces that were sent once and of which nothing is known.
    #[inline(always)]
    pub(crate) fn is_original_up_to<B: Buffer>(&self, nodes: &Nodes<B>, bytes: u32) -> bool {
        let mut left = bytes;
        let mut id = self.head;
        while left > 0
            && let Some(node) = nodes.get(id)
            && u32::from(node.len) <= left
            && node.flags & !SEGMENT_START & !UNCOUNTED == 0
        {
            left -= u32::from(node.len);
            id = node.next;
        }
        left == 0 && bytes <= self.sent()
    }

    /// The first part of [`Self::acknowledge`], for what nearly every acknowledgement covers: whole pieces that were sent once and
    /// of which nothing is known. It ends before the first other one.
    #[inline(always)]
    pub fn acknowledge_originals<B: Buffer>(&mut self, nodes: &mut Nodes<B>, ack: SeqNumber) -> Originals {
        let mut originals = Originals { bytes: 0, sent_at: 0, first_end: self.first, end: self.first };
        let acked = ack.since(self.first);
        if acked > self.sent() {
            return originals;
        }
        while let Some(node) = nodes.get(self.head) {
            let len = u32::from(node.len);
            if originals.bytes + len > acked || node.flags & !SEGMENT_START & !UNCOUNTED != 0 {
                break;
            }
            if originals.bytes == 0 {
                originals.first_end = node.end();
            }
            originals.bytes += len;
            originals.sent_at = node.stamp;
            let next = node.next;
            nodes.release(self.head);
            if self.resend == self.head {
                self.resend = next;
            }
            self.head = next;
        }
        originals.end = self.first + originals.bytes;
        self.first = originals.end;
        self.len -= originals.bytes;
        if self.head == NONE {
            self.tail = NONE;
        }
        originals
    }

    /// Lets go of what is acknowledged cumulatively. What lies outside the bytes sent (SYN, FIN) is the caller's.
    #[inline]
    pub fn acknowledge<B: Buffer>(&mut self, nodes: &mut Nodes<B>, ack: SeqNumber) -> Delivered {
        let mut delivered = Delivered::default();
        let mut acked = ack.since(self.first);
        let sent = self.sent();
        if acked > sent {
            if !ack.is_after(self.first) {
                return delivered;
            }
            acked = sent;
        }
        // One piece in order, as most acknowledgements in a conversation are.
        if let Some(node) = nodes.get(self.head)
            && u32::from(node.len) == acked
            && !node.has(SACKED | LOST | RETRANSMITTED)
        {
            let (stamp, end, next) = (node.stamp, node.end(), node.next);
            if self.resend == self.head {
                self.resend = next;
            }
            nodes.release(self.head);
            self.head = next;
            self.first = end;
            self.len -= acked;
            if next == NONE {
                self.tail = NONE;
            }
            return Delivered {
                acked_bytes: acked,
                delivered_bytes: acked,
                segments: DeliveredSegments {
                    original: Some((stamp, end)),
                    retransmitted: None,
                    lowest_original_end: Some(end),
                    highest_end: Some(end),
                },
            };
        }
        let mut left = acked;
        while left > 0 {
            let id = self.head;
            let Some(node) = nodes.get_mut(id) else { break };
            let len = u32::from(node.len);
            if left < len {
                // No sample from a part: the rest of the segment is still outstanding.
                node.trim(left as u16);
                if node.has(SACKED) {
                    self.sacked -= left;
                } else {
                    if node.has(LOST) {
                        self.lost -= left;
                    }
                    delivered.delivered_bytes += left;
                }
                break;
            }
            left -= len;
            if node.has(SACKED) {
                self.sacked -= len;
                self.sacked_segments -= u32::from(node.has(SEGMENT_START));
            } else {
                if node.has(LOST) {
                    self.lost -= len;
                }
                delivered.delivered_bytes += len;
                delivered.note(node);
            }
            self.head = node.next;
            if self.resend == id {
                self.resend = node.next;
            }
            nodes.release(id);
        }
        delivered.acked_bytes = acked;
        self.first += acked;
        self.len -= acked;
        if self.head == NONE {
            self.tail = NONE;
        }
        if self.lost == 0 {
            self.resend = NONE;
        }
        delivered
    }

    /// RFC 2018, RFC 6675 §5 (Update): holds for arrived what the blocks cover. Blocks that do not lie within the bytes
    /// sent and unacknowledged are ignored (a D-SACK's is told by [`Self::duplicate`]).
    pub fn sack<B: Buffer>(&mut self, nodes: &mut Nodes<B>, blocks: &[(SeqNumber, SeqNumber)]) -> Delivered {
        let mut delivered = Delivered::default();
        let mut sorted: ArrayVec<(u32, u32), 4> = ArrayVec::new();
        for &(start, end) in blocks {
            let (from, to) = (start.since(self.first), end.since(self.first));
            if from < to && to <= self.sent() && !sorted.is_full() {
                sorted.push((from, to));
            }
        }
        sorted.sort_unstable();
        let (mut id, mut previous_to) = (self.head, 0);
        for (from, to) in sorted {
            // Blocks are apart; where a peer's are not, what the earlier one passed over may matter to the later.
            if from < previous_to {
                id = self.head;
            }
            previous_to = to;
            id = self.sack_block(nodes, id, self.first + from, self.first + to, &mut delivered);
        }
        if self.lost == 0 {
            self.resend = NONE;
        }
        delivered
    }

    /// Marks what one block covers, from a piece on that does not begin behind the block; the piece where it stopped.
    fn sack_block<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        from: u32,
        start: SeqNumber,
        end: SeqNumber,
        delivered: &mut Delivered,
    ) -> u32 {
        let mut id = from;
        while id != self.fresh {
            let Some(node) = nodes.get(id) else { return id };
            if node.has(SACKED) {
                id = run_end(nodes, id);
                continue;
            }
            let (node_start, node_end) = (node.start(), node.end());
            if !node_start.is_before(end) {
                return id;
            }
            if !node_end.is_after(start) {
                id = node.next;
                continue;
            }
            if node_start.is_before(start) {
                let before = start.since(node_start);
                let after = node_end.since(start);
                if before < SMALLEST_CUT || after < SMALLEST_CUT {
                    if !node_end.is_before(end) {
                        return id;
                    }
                    id = node.next;
                } else if let Some(rest) = self.split(nodes, id, before as u16) {
                    id = rest;
                } else {
                    return id;
                }
                continue;
            }
            if node_end.is_after(end) {
                let within = end.since(node_start);
                let after = node_end.since(end);
                let is_cut = within >= SMALLEST_CUT
                    && after >= SMALLEST_CUT
                    && self.split(nodes, id, within as u16).is_some();
                if !is_cut {
                    return id;
                }
            }
            let Some(node) = nodes.get_mut(id) else { return id };
            let len = u32::from(node.len);
            if node.has(LOST) {
                self.lost -= len;
            }
            delivered.note(node);
            delivered.delivered_bytes += len;
            node.flags = node.flags & !LOST | SACKED;
            node.last = id;
            self.sacked += len;
            self.sacked_segments += u32::from(node.has(SEGMENT_START));
            id = node.next;
        }
        id
    }

    /// Lets everything go.
    pub fn clear<B: Buffer>(&mut self, nodes: &mut Nodes<B>) {
        nodes.release_list(self.head);
        *self = Self::new(self.sent_end);
    }

    fn split<B: Buffer>(&mut self, nodes: &mut Nodes<B>, id: u32, at: u16) -> Option<u32> {
        let behind = nodes.split(id, at)?;
        if self.tail == id {
            self.tail = behind;
        }
        Some(behind)
    }

    /// Gathers consecutive pieces, marks them sent now, and says which one follows.
    #[inline]
    fn take<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        from: u32,
        limit: u32,
        now: Instant,
        take: Take,
    ) -> Option<(Gather, u32)> {
        let mut id = from;
        let mut left = limit;
        let mut gather = Gather { seq: self.sent_end, len: 0, kind: take.kind, slices: 0, node: from };
        let mut is_first = true;
        while left > 0 && id != take.stop && usize::from(gather.slices) < MAX_SLICES {
            let Some(node) = nodes.get_mut(id) else { break };
            if node.flags & take.mask != take.wanted {
                break;
            }
            if u32::from(node.len) > left {
                if self.split(nodes, id, left as u16).is_none() {
                    break;
                }
                continue;
            }
            let len = u32::from(node.len);
            node.stamp = now.low();
            let mut flags = node.flags & !SEGMENT_START;
            if is_first {
                is_first = false;
                flags |= SEGMENT_START;
                gather.seq = node.start();
            }
            if !matches!(take.kind, GatherKind::Fresh) {
                if node.has(LOST) {
                    self.lost -= len;
                }
                self.resent = self.resent.saturating_add(len);
                flags = flags & !LOST | RETRANSMITTED;
            }
            node.flags = flags;
            gather.len += len;
            gather.slices += 1;
            left -= len;
            id = node.next;
        }
        (gather.len > 0).then_some((gather, id))
    }
}

/// The piece behind a run that arrived, of which the given one is a member; the run's way is shorter next time.
fn run_end<B: Buffer>(nodes: &mut Nodes<B>, id: u32) -> u32 {
    let mut last = id;
    let mut next = NONE;
    while let Some(node) = nodes.get(last) {
        if node.last != last {
            last = node.last;
            continue;
        }
        next = node.next;
        if !nodes.get(next).is_some_and(|node| node.has(SACKED)) {
            break;
        }
        last = next;
    }
    if let Some(node) = nodes.get_mut(id) {
        node.last = last;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::HeapBuffer;
    use crate::rack::Rack;

    const MSS: u32 = 1_000;

    /// Segments of a thousand bytes, sent a millisecond apart from time 0 on.
    fn flight(segments: u32) -> (SendQueue, Nodes<HeapBuffer>) {
        let mut nodes = Nodes::new(1_000);
        let mut queue = SendQueue::new(SeqNumber(0));
        for segment in 0..segments {
            queue.push(&mut nodes, Chunk::whole(HeapBuffer::from(&[0; MSS as usize][..]))).unwrap();
            let _ = queue.fresh(&mut nodes, MSS, Instant(u64::from(segment) * 1_000)).unwrap();
        }
        (queue, nodes)
    }

    fn block(from: u32, to: u32) -> (SeqNumber, SeqNumber) {
        (SeqNumber(from * MSS), SeqNumber(to * MSS))
    }

    #[test]
    fn a_full_slab_or_queue_gives_the_piece_back() {
        let mut nodes = Nodes::new(1);
        let mut queue = SendQueue::new(SeqNumber(0));
        let chunk = || Chunk::whole(HeapBuffer::from(&b"bytes"[..]));
        queue.push(&mut nodes, chunk()).unwrap();
        assert!(queue.push(&mut nodes, chunk()).is_err());
        assert_eq!(queue.len(), 5);
        // What is held can be sent in parts nevertheless.
        assert_eq!(queue.fresh(&mut nodes, 2, Instant(0)).unwrap().len, 2);
        assert_eq!(queue.fresh(&mut nodes, 9, Instant(0)).unwrap().len, 3);
        assert!(queue.fresh(&mut nodes, 9, Instant(0)).is_none());
        let empty = Chunk { len: 0, ..chunk() };
        queue.push(&mut nodes, empty).unwrap();
        assert_eq!(nodes.used(), 2);
    }

    #[test]
    fn an_episode_is_undone_when_every_retransmission_was_reported_a_duplicate() {
        let (mut queue, mut nodes) = flight(6);
        queue.begin_episode(&mut nodes);
        queue.lose_head(&mut nodes);
        let _ = queue.resend(&mut nodes, MSS, Instant(10_000)).unwrap();
        queue.acknowledge(&mut nodes, SeqNumber(MSS));
        queue.lose_head(&mut nodes);
        let _ = queue.resend(&mut nodes, MSS, Instant(11_000)).unwrap();
        assert!(!queue.duplicate(block(7, 8)), "never sent");
        assert!(!queue.duplicate((SeqNumber(MSS), SeqNumber(0))), "backwards");
        assert!(!queue.duplicate(block(0, 1)));
        queue.acknowledge(&mut nodes, SeqNumber(6 * MSS));
        assert!(queue.duplicate(block(1, 2)), "the last of them");
        assert!(!queue.duplicate(block(1, 2)), "told once");
    }

    #[test]
    fn a_probe_before_the_episode_does_not_hide_that_a_loss_was_real() {
        let (mut queue, mut nodes) = flight(4);
        let _ = queue.probe_tail(&mut nodes, MSS, Instant(9_000)).unwrap();
        queue.begin_episode(&mut nodes);
        queue.lose_head(&mut nodes);
        let _ = queue.resend(&mut nodes, MSS, Instant(10_000)).unwrap();
        assert!(!queue.duplicate(block(3, 4)), "the probe was unneeded, the retransmission was not");
    }

    #[test]
    fn the_timeout_of_a_peer_that_reneged_forgets_what_it_said() {
        let (mut queue, mut nodes) = flight(4);
        queue.sack(&mut nodes, &[block(0, 2), block(3, 4)]);
        assert_eq!((queue.sacked(), queue.sacked_segments(), queue.in_flight()), (3 * MSS, 3, MSS));
        let lost = queue.lose_on_timeout(&mut nodes, &Rack::default(), 0, Instant(500_000), false);
        assert_eq!((lost, queue.sacked(), queue.in_flight()), (4 * MSS, 0, 0));
        let again = queue.resend(&mut nodes, MSS, Instant(500_000)).unwrap();
        assert_eq!((again.seq, again.kind), (SeqNumber(0), GatherKind::Resent));
    }

    #[test]
    fn segments_that_are_only_late_are_looked_at_again_and_then_lost() {
        let (mut queue, mut nodes) = flight(3);
        let mut rack = Rack::default();
        // The third arrives 50 ms after it was sent, the first two have not yet.
        let delivered = queue.sack(&mut nodes, &[block(2, 3)]);
        assert_eq!(delivered.rtt_sent_at(), Some(2_000));
        rack.on_delivered(&delivered.segments, Instant(52_000), 50_000, None, false);
        let losses = queue.lose_by_rack(&mut nodes, &rack, 12_500, Instant(52_000));
        assert_eq!(losses, Losses { lost_bytes: 0, wait_us: Some(11_500) });
        let losses = queue.lose_by_rack(&mut nodes, &rack, 12_500, Instant(63_000));
        assert_eq!(losses, Losses { lost_bytes: MSS, wait_us: Some(500) });
        let losses = queue.lose_by_rack(&mut nodes, &rack, 12_500, Instant(63_500));
        assert_eq!(losses, Losses { lost_bytes: MSS, wait_us: None });
        // Both were one segment each; together they fit a larger one.
        assert_eq!(queue.resend(&mut nodes, 1_500, Instant(64_000)).unwrap().len, 1_500);
        assert_eq!(queue.resend(&mut nodes, 1_500, Instant(64_000)).unwrap().len, 500);
        assert!(queue.resend(&mut nodes, 1_500, Instant(64_000)).is_none());
    }

    #[test]
    fn acknowledgements_beyond_or_before_what_was_sent_change_only_what_was() {
        let (mut queue, mut nodes) = flight(2);
        assert_eq!(queue.acknowledge(&mut nodes, SeqNumber(0)), Delivered::default());
        assert_eq!(queue.acknowledge(&mut nodes, SeqNumber(u32::MAX)), Delivered::default());
        // FIN behind the last byte.
        assert_eq!(queue.acknowledge(&mut nodes, SeqNumber(2 * MSS + 1)).acked_bytes, 2 * MSS);
        assert_eq!((queue.is_empty(), queue.first(), nodes.used()), (true, SeqNumber(2 * MSS), 0));
    }

    #[test]
    fn many_small_pieces_make_one_segment_of_eight() {
        let mut nodes = Nodes::new(100);
        let mut queue = SendQueue::new(SeqNumber(0));
        for piece in 0..10_u8 {
            queue.push(&mut nodes, Chunk::whole(HeapBuffer::from(&[piece][..]))).unwrap();
        }
        let first = queue.fresh(&mut nodes, MSS, Instant(0)).unwrap();
        let bytes: Vec<u8> = first.slices(&nodes).map(|(buffer, ..)| buffer.bytes()[0]).collect();
        assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(queue.fresh(&mut nodes, MSS, Instant(0)).unwrap().len, 2);
        queue.sack(&mut nodes, &[(SeqNumber(8), SeqNumber(10))]);
        assert_eq!(queue.sacked_segments(), 1, "two pieces, one segment");
    }
}
