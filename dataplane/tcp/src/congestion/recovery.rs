//! How much may each acknowledgement release while losses are repaired? Proportional rate reduction (RFC 9937).

/// What fast recovery has delivered and sent, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    /// RecoverFS.
    flight_size: u32,
    /// prr_delivered.
    delivered: u32,
    /// prr_out.
    sent: u32,
}

impl Reduction {
    pub(super) const fn new(flight_size: u32) -> Self {
        Self { flight_size, delivered: 0, sent: 0 }
    }

    #[inline]
    pub(super) fn sent(&mut self, bytes: u32) {
        self.sent = self.sent.saturating_add(bytes);
    }

    /// sndcnt of RFC 9937 §6.2: proportional while more than the threshold is in flight, and back up to it, by slow
    /// start where recovery makes progress, when losses took more than that.
    pub(super) fn allowance(
        &mut self,
        newly_delivered: u32,
        in_flight: u32,
        is_safe: bool,
        threshold: u32,
        mss: u16,
    ) -> u32 {
        let mss = u32::from(mss);
        self.delivered = self.delivered.saturating_add(newly_delivered);
        let allowance = if in_flight > threshold {
            let share = u64::from(self.delivered) * u64::from(threshold);
            let target = share.div_ceil(u64::from(self.flight_size.max(1)));
            u32::try_from(target).unwrap_or(u32::MAX).saturating_sub(self.sent)
        } else {
            let mut bound = self.delivered.saturating_sub(self.sent).max(newly_delivered);
            if is_safe {
                bound = bound.saturating_add(mss);
            }
            bound.min(threshold - in_flight)
        };
        // The first acknowledgement always releases the fast retransmission. Beyond the RFC, so does an empty path: no
        // acknowledgement would come to release anything.
        if allowance == 0 && (self.sent == 0 || in_flight == 0) { mss } else { allowance }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: u16 = 1_000;

    /// One loss of 20 segments: every acknowledgement releases 0.7 segments, as the RFC's sum says, and no more.
    #[test]
    fn a_single_loss_is_paid_for_in_proportion() {
        let (flight_size, threshold) = (20_000, 14_000);
        let mut reduction = Reduction::new(flight_size);
        let (mut sent, mut delivered) = (0, 0);
        // The first is lost: 19 arrive, and one by one leave the path; segments go whole.
        let mut in_flight = 19_000;
        for place in 0..19 {
            delivered += 1_000;
            in_flight -= 1_000;
            let allowance = reduction.allowance(1_000, in_flight, false, threshold, MSS);
            if in_flight > threshold {
                let target = (delivered * threshold).div_ceil(flight_size);
                let expected = target.saturating_sub(sent);
                assert_eq!(allowance, if sent == 0 && expected == 0 { 1_000 } else { expected }, "{place}");
            }
            let whole = allowance / 1_000 * 1_000;
            reduction.sent(whole);
            sent += whole;
            in_flight += whole;
        }
        assert!(in_flight <= threshold && in_flight + 1_000 >= threshold, "{in_flight}");
    }

    #[test]
    fn the_rounding_is_upwards() {
        let mut reduction = Reduction::new(10_000);
        assert_eq!(reduction.allowance(1, 9_000, false, 7_000, MSS), 1, "0.7 bytes");
        reduction.sent(1);
        assert_eq!(reduction.allowance(1, 9_000, false, 7_000, MSS), 1, "1.4 bytes, one gone");
        reduction.sent(1);
        assert_eq!(reduction.allowance(1, 9_000, false, 7_000, MSS), 1, "2.1 bytes, two gone");
    }

    #[test]
    fn heavy_loss_leads_back_to_the_threshold() {
        // 20 in flight, 16 of them lost at once: pipe is far below the threshold.
        let mut reduction = Reduction::new(20_000);
        assert_eq!(reduction.allowance(1_000, 3_000, false, 10_000, MSS), 1_000, "conservation only");
        reduction.sent(1_000);
        assert_eq!(reduction.allowance(1_000, 3_000, true, 10_000, MSS), 2_000, "progress: as slow start");
        reduction.sent(2_000);
        assert_eq!(reduction.allowance(4_000, 9_500, true, 10_000, MSS), 500, "never beyond the threshold");
    }

    #[test]
    fn catching_up_is_allowed() {
        // The application was silent while 5 segments were delivered; then it may send what it left out.
        let mut reduction = Reduction::new(20_000);
        reduction.sent(1_000);
        assert_eq!(reduction.allowance(5_000, 4_000, false, 14_000, MSS), 5_000);
        assert_eq!(reduction.allowance(1_000, 3_000, false, 14_000, MSS), 5_000, "six delivered, one sent");
    }

    #[test]
    fn the_fast_retransmission_is_never_refused() {
        let mut reduction = Reduction::new(20_000);
        assert_eq!(reduction.allowance(0, 15_000, false, 10_000, MSS), 1_000);
        reduction.sent(1_000);
        assert_eq!(reduction.allowance(0, 15_000, false, 10_000, MSS), 0);
        assert_eq!(reduction.allowance(0, 0, false, 10_000, MSS), 1_000, "an empty path has no clock");
    }

    #[test]
    fn extremes_do_not_overflow() {
        let mut reduction = Reduction::new(0);
        assert_eq!(reduction.allowance(u32::MAX, u32::MAX, true, u32::MAX - 1, MSS), u32::MAX);
        reduction.sent(u32::MAX);
        reduction.sent(u32::MAX);
        assert_eq!(reduction.allowance(u32::MAX, 1, true, u32::MAX, u16::MAX), u32::MAX - 1);
    }
}
