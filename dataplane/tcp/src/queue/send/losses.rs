//! Which segments are lost, and was that true? Marks on the send queue's pieces; when to look is the connection's to say.

use super::{SendQueue, run_end};
use crate::buffer::Buffer;
use crate::queue::nodes::{LOST, NONE, Node, Nodes, RETRANSMITTED, SACKED, SEGMENT_START};
use crate::rack::Rack;
use crate::seq::SeqNumber;
use crate::time::Instant;

/// What a look for losses found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Bytes newly held for lost.
    pub lost_bytes: u32,
    /// When to look again, from now, in µs: some segments may yet turn out late rather than lost.
    pub wait_us: Option<u32>,
}

impl SendQueue {
    /// RFC 8985 §6.2 step 5: holds for lost what was sent so long before a delivered segment that it is not just late.
    #[inline]
    pub fn lose_by_rack<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        rack: &Rack,
        reordering_window_us: u32,
        now: Instant,
    ) -> Losses {
        let mut losses = Losses::default();
        if !rack.is_valid() {
            return losses;
        }
        let patience = rack.rtt_us().saturating_add(reordering_window_us);
        let mut id = self.head;
        while id != self.fresh {
            let Some(node) = nodes.get(id) else { break };
            if node.has(SACKED) {
                id = run_end(nodes, id);
                continue;
            }
            let next = node.next;
            if !node.has(LOST) {
                if rack.is_sent_after(node.stamp, node.end()) {
                    let waited = now.low().wrapping_sub(node.stamp);
                    if waited >= patience {
                        losses.lost_bytes += self.lose(nodes, id);
                    } else {
                        losses.wait_us = losses.wait_us.max(Some(patience - waited));
                    }
                } else if !node.has(RETRANSMITTED) {
                    // All behind it were sent later still, first or again.
                    break;
                }
            }
            id = next;
        }
        losses
    }

    /// RFC 8985 §6.3: on a retransmission timeout the first segment is lost, and all that RACK would not wait for.
    ///
    /// Where the first one was said to have arrived, the peer reneged: no selective acknowledgement counts any more, and
    /// everything is lost (RFC 2018 §8). `without_rack`: everything is lost, as RFC 5681 has it without SACK.
    pub fn lose_on_timeout<B: Buffer>(
        &mut self,
        nodes: &mut Nodes<B>,
        rack: &Rack,
        reordering_window_us: u32,
        now: Instant,
        without_rack: bool,
    ) -> u32 {
        let is_reneged = nodes.get(self.head).is_some_and(|node| node.has(SACKED));
        if is_reneged && self.sent() > 0 {
            self.forget_sacks(nodes);
        }
        let loses_all = is_reneged || without_rack || !rack.is_valid();
        let patience = rack.rtt_us().saturating_add(reordering_window_us);
        let mut lost = 0;
        let mut id = self.head;
        while id != self.fresh {
            let Some(node) = nodes.get(id) else { break };
            if node.has(SACKED) {
                id = run_end(nodes, id);
                continue;
            }
            let next = node.next;
            let waited = now.low().wrapping_sub(node.stamp);
            if !node.has(LOST) && (loses_all || id == self.head || waited >= patience) {
                lost += self.lose(nodes, id);
            }
            id = next;
        }
        lost
    }

    /// Holds the first segment for lost: RFC 6582 on a partial acknowledgement, RFC 5681 §3.2 on the third duplicate,
    /// for peers without SACK; or on an explicit word that it did not fit (RFC 1191).
    pub fn lose_head<B: Buffer>(&mut self, nodes: &mut Nodes<B>) -> u32 {
        let is_candidate = |node: &Node<B>| !node.has(SACKED | LOST);
        if self.head == self.fresh || !nodes.get(self.head).is_some_and(is_candidate) {
            return 0;
        }
        let mut lost = self.lose(nodes, self.head);
        // The rest of the same segment, where it was made of several pieces.
        let mut id = nodes.get(self.head).map_or(NONE, |node| node.next);
        while id != self.fresh {
            let Some(node) = nodes.get(id) else { break };
            if node.has(SEGMENT_START) || !is_candidate(node) {
                break;
            }
            let next = node.next;
            lost += self.lose(nodes, id);
            id = next;
        }
        lost
    }

    /// The losses were none (RFC 5682, RFC 4015, D-SACK): what is not sent again yet counts as in flight.
    pub fn recover_spurious<B: Buffer>(&mut self, nodes: &mut Nodes<B>) {
        let mut id = self.resend;
        while self.lost > 0 && id != self.fresh {
            let Some(node) = nodes.get_mut(id) else { break };
            if node.has(LOST) {
                node.flags &= !LOST;
                self.lost -= u32::from(node.len);
            }
            id = node.next;
        }
        self.resend = NONE;
    }

    /// Recovery begins: from here on it counts which retransmissions turn out unneeded.
    pub fn begin_episode<B: Buffer>(&mut self, nodes: &mut Nodes<B>) {
        self.episode = self.first;
        self.resent = 0;
        let mut id = self.head;
        while id != self.fresh {
            let Some(node) = nodes.get(id) else { break };
            if node.has(SACKED) {
                id = run_end(nodes, id);
                continue;
            }
            // A probe on its way may be reported too, and must not be taken for a retransmission of this episode.
            if node.has(RETRANSMITTED) && !node.has(LOST) {
                self.resent += u32::from(node.len);
            }
            id = node.next;
        }
    }

    /// A D-SACK block (RFC 2883): the peer had these bytes already. Whether with it all that was sent again in this episode
    /// proved unneeded, so that the reaction to the loss can be undone (RFC 3708 §2, as Linux does).
    pub fn duplicate(&mut self, block: (SeqNumber, SeqNumber)) -> bool {
        let (start, end) = block;
        let is_ours = start.is_before(end) && !start.is_before(self.episode) && !end.is_after(self.sent_end);
        if !is_ours || self.resent == 0 {
            return false;
        }
        self.resent = self.resent.saturating_sub(end.since(start));
        self.resent == 0
    }

    fn forget_sacks<B: Buffer>(&mut self, nodes: &mut Nodes<B>) {
        let mut id = self.head;
        while id != self.fresh {
            let Some(node) = nodes.get_mut(id) else { break };
            node.flags &= !SACKED;
            id = node.next;
        }
        self.sacked = 0;
        self.sacked_segments = 0;
    }

    /// Marks a piece that is not lost yet.
    fn lose<B: Buffer>(&mut self, nodes: &mut Nodes<B>, id: u32) -> u32 {
        let resend = nodes.get(self.resend).map(Node::start);
        let Some(node) = nodes.get_mut(id) else { return 0 };
        node.flags |= LOST;
        if self.lost == 0 || resend.is_none_or(|seq| node.start().is_before(seq)) {
            self.resend = id;
        }
        let len = u32::from(node.len);
        self.lost += len;
        len
    }
}
