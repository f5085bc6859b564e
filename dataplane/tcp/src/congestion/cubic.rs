//! Where on CUBIC's curve is the window? RFC 9438 §4.2 to §4.5.
//!
//! The curve is evaluated in single precision: its offset from the plateau is exact to 2^-24, far below a segment.
//! There is no division per acknowledgement.

use super::AckSample;

/// RFC 9438 §4.6, beta_cubic = 0.7, in thousandths.
pub(super) const KEPT_AFTER_LOSS: u32 = 700;
/// RFC 8511 §3: beta_ecn for CUBIC, in thousandths.
pub(super) const KEPT_AFTER_MARK: u32 = 850;
/// RFC 9438 §5, C, in segments per second cubed.
const C: f32 = 0.4;
/// RFC 9438 §4.3: alpha_cubic = 3 · (1 - 0.7) / (1 + 0.7) = 9 / 17.
const ALPHA_NUMERATOR: u64 = 9;
const ALPHA_DENOMINATOR: u64 = 17;
/// An epoch's age stops there (36 min), below the wrap of its clock.
const OLDEST_EPOCH_US: u32 = 1 << 31;

/// A stage of congestion avoidance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    /// t_epoch: low 32 bits of the clock, moved forward by the time in which the window was not the limit.
    started: u32,
    /// K: when the curve meets its plateau.
    origin_us: u32,
    /// W_est: the window that Reno would have by now.
    reno_window: u32,
    /// Bytes acknowledged towards its next segment.
    reno_credit: u32,
    /// With `is_paused`: since when the window is not the limit.
    paused_at: u32,
    is_paused: bool,
}

impl Epoch {
    /// Begins with this window, at most the plateau (RFC 9438 §4.2: K).
    pub(super) fn new(now: u32, window: u32, plateau: u32, mss: u16) -> Self {
        let missing_segments = plateau.saturating_sub(window) as f32 / f32::from(mss);
        let origin_us = ((missing_segments / C).cbrt() * 1e6) as u32;
        Self::restore(now, origin_us, window)
    }

    /// One that a reduction broke off, as [`Self::kept`] gave it.
    pub(super) const fn restore(started: u32, origin_us: u32, reno_window: u32) -> Self {
        Self { started, origin_us, reno_window, reno_credit: 0, paused_at: 0, is_paused: false }
    }

    /// Start, origin and Reno's window.
    pub(super) const fn kept(&self) -> (u32, u32, u32) {
        (self.started, self.origin_us, self.reno_window)
    }

    /// The window is not the limit: time stands still (RFC 9438 §5.8).
    #[inline]
    pub(super) fn pause(&mut self, now: u32) {
        if !self.is_paused {
            self.is_paused = true;
            self.paused_at = now;
        }
    }

    /// It is the limit again.
    #[inline]
    pub(super) fn resume(&mut self, now: u32) {
        if self.is_paused {
            self.is_paused = false;
            self.started = self.started.wrapping_add(now.wrapping_sub(self.paused_at));
        }
    }

    /// Bytes by which one acknowledgement widens the window.
    #[inline]
    pub(super) fn growth(
        &mut self,
        ack: &AckSample,
        mss: u16,
        window: u32,
        plateau: u32,
        window_before: u32,
        credit: &mut u32,
    ) -> u32 {
        let now = ack.now.low();
        self.resume(now);
        let mut age_us = now.wrapping_sub(self.started);
        if age_us > OLDEST_EPOCH_US {
            self.started = now.wrapping_sub(OLDEST_EPOCH_US);
            age_us = OLDEST_EPOCH_US;
        }
        self.grow_reno(ack.acked_bytes, mss, window, window_before);
        let age_us = i64::from(age_us);
        if self.curve(age_us, mss, plateau) < i64::from(self.reno_window) {
            // RFC 9438 §4.3, the Reno-friendly region.
            *credit = 0;
            return self.reno_window.saturating_sub(window);
        }
        // RFC 9438 §4.4, §4.5: towards where the curve will be a round trip from now, at most half as much again.
        let target = self.curve(age_us + i64::from(ack.srtt_us), mss, plateau);
        let missing = (target - i64::from(window)).clamp(0, i64::from(window / 2)) as u64;
        // (target - window) / window of what is acknowledged, paid in whole segments. A plateau's credit is worth one
        // window at most, so that the slope behind it never passes its target.
        *credit = credit.saturating_add(ack.acked_bytes).min(window);
        let segment_price = u64::from(window) * u64::from(mss);
        let earned = u64::from(*credit) * missing;
        if earned < segment_price || missing == 0 {
            return 0;
        }
        let segments = earned / segment_price;
        *credit = ((earned - segments * segment_price) / missing) as u32;
        segments as u32 * u32::from(mss)
    }

    /// W_cubic(t), in bytes.
    #[inline]
    fn curve(&self, age_us: i64, mss: u16, plateau: u32) -> i64 {
        let seconds = (age_us - i64::from(self.origin_us)) as f32 * 1e-6;
        let offset = C * seconds * seconds * seconds * f32::from(mss);
        i64::from(plateau) + i64::from(offset as i32)
    }

    /// RFC 9438 §4.3: W_est grows by alpha segments per window acknowledged, and by whole ones once it passed the
    /// window before the last reduction.
    #[inline]
    fn grow_reno(&mut self, acked_bytes: u32, mss: u16, window: u32, window_before: u32) {
        self.reno_credit = self.reno_credit.saturating_add(acked_bytes);
        if self.reno_credit < window {
            return;
        }
        let price = if self.reno_window >= window_before {
            u64::from(window)
        } else {
            u64::from(window) * ALPHA_DENOMINATOR / ALPHA_NUMERATOR
        };
        if u64::from(self.reno_credit) >= price {
            self.reno_credit = (self.reno_credit - price as u32).min(window);
            self.reno_window = self.reno_window.saturating_add(u32::from(mss));
        }
    }
}
