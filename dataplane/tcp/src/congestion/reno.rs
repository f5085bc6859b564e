//! How fast does NewReno grow, and what does it give up? RFC 5681 §3.1 by counted bytes (RFC 3465 §2.1).

/// RFC 5681 §3.1 (4): half of the flight size, in thousandths.
pub(super) const KEPT_AFTER_LOSS: u32 = 500;
/// RFC 8511 §3: beta_ecn for a standard TCP, in thousandths.
pub(super) const KEPT_AFTER_MARK: u32 = 800;

/// Bytes by which one acknowledgement widens the window in congestion avoidance: a segment per window acknowledged.
#[inline]
pub(super) fn growth(acked_bytes: u32, mss: u16, window: u32, credit: &mut u32) -> u32 {
    *credit = credit.saturating_add(acked_bytes);
    if *credit < window {
        return 0;
    }
    // One segment per acknowledgement at most: what an oversized one leaves is not paid out in a burst.
    *credit = (*credit - window).min(window);
    u32::from(mss)
}
