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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_acknowledged_bytes_earns_a_segment() {
        let (mut window, mut credit) = (20_000, 0);
        for round in 0..10 {
            for _ in 0..window / 1_000 {
                window += growth(1_000, 1_000, window, &mut credit);
            }
            assert_eq!(window, 21_000 + round * 1_000);
        }
    }

    #[test]
    fn small_acknowledgements_earn_as_much_as_large_ones() {
        let (mut window, mut credit) = (20_000, 0);
        for _ in 0..200 {
            window += growth(100, 1_000, window, &mut credit);
        }
        assert_eq!(window, 21_000);
        window += growth(u32::MAX, 1_000, window, &mut credit);
        assert_eq!(window, 22_000, "and an absurd one a single segment");
        assert!(credit <= 21_000);
    }
}
