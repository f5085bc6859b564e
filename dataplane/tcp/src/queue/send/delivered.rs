//! What has arrived, as one segment tells it: bytes, and what RACK and the round trip's estimator ask.

use crate::queue::nodes::{Node, RETRANSMITTED};
use crate::rack::DeliveredSegments;
use crate::seq::SeqNumber;

/// What an acknowledgement told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Bytes acknowledged cumulatively.
    pub acked_bytes: u32,
    /// Bytes that are now known to have arrived and were not before.
    pub delivered_bytes: u32,
    /// What RACK and the round trip's estimator ask.
    pub segments: DeliveredSegments,
}

/// What [`SendQueue::acknowledge_originals`] let go of.
#[derive(Clone, Copy, Debug)]
pub struct Originals {
    /// Bytes.
    pub bytes: u32,
    /// When the last of them was sent.
    pub(crate) sent_at: u32,
    /// Behind the first piece.
    pub(crate) first_end: SeqNumber,
    /// Behind the last.
    pub(super) end: SeqNumber,
}

impl Originals {
    /// The same as other acknowledgements tell it.
    #[inline(always)]
    pub fn delivered(&self) -> Delivered {
        if self.bytes == 0 {
            return Delivered::default();
        }
        Delivered {
            acked_bytes: self.bytes,
            delivered_bytes: self.bytes,
            segments: DeliveredSegments {
                original: Some((self.sent_at, self.end)),
                retransmitted: None,
                lowest_original_end: Some(self.first_end),
                highest_end: Some(self.end),
            },
        }
    }
}

impl Delivered {
    /// When the newest segment was sent that was sent once only: a sample of the round trip (RFC 6298 §3, Karn). None where
    /// bytes sent again are acknowledged with it: it may have arrived long ago and waited for them.
    #[inline]
    pub fn rtt_sent_at(&self) -> Option<u32> {
        if self.segments.retransmitted.is_some() {
            return None;
        }
        self.segments.original.map(|(sent_at, _)| sent_at)
    }

    /// Both of what one segment told: by its acknowledgement number, and by its SACK blocks.
    #[inline]
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.acked_bytes += other.acked_bytes;
        self.delivered_bytes += other.delivered_bytes;
        let (ours, theirs) = (&mut self.segments, &other.segments);
        ours.original = newest(ours.original, theirs.original);
        ours.retransmitted = newest(ours.retransmitted, theirs.retransmitted);
        ours.lowest_original_end = match (ours.lowest_original_end, theirs.lowest_original_end) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        ours.highest_end = match (ours.highest_end, theirs.highest_end) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
        self
    }

    /// Takes note of a piece that has arrived.
    #[inline(always)]
    pub(super) fn note<B>(&mut self, node: &Node<B>) {
        let end = node.end();
        let this = Some((node.stamp, end));
        let segments = &mut self.segments;
        if node.has(RETRANSMITTED) {
            segments.retransmitted = newest(segments.retransmitted, this);
        } else {
            segments.original = newest(segments.original, this);
            segments.lowest_original_end =
                Some(segments.lowest_original_end.map_or(end, |lowest| lowest.min(end)));
        }
        segments.highest_end = Some(segments.highest_end.map_or(end, |highest| highest.max(end)));
    }
}

#[inline(always)]
fn newest(one: Option<(u32, SeqNumber)>, other: Option<(u32, SeqNumber)>) -> Option<(u32, SeqNumber)> {
    let (Some(first), Some(second)) = (one, other) else { return one.or(other) };
    let later = second.0.wrapping_sub(first.0) as i32;
    if later > 0 || later == 0 && second.1.is_after(first.1) { other } else { one }
}
