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
        // The first acknowledgement always releases the fast retransmission.
        if self.sent == 0 && allowance == 0 { mss } else { allowance }
    }
}
