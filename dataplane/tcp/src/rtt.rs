//! How long does the path take, and how long is too long? RTT estimate and retransmission timeout (RFC 6298).
//!
//! The connection feeds every valid sample (from timestamps, or from a segment that was sent once: Karn's rule is the
//! caller's) and asks for the timeout whenever it arms its timer. The shortest round trip of the last seconds is kept
//! beside, for RACK's reordering window. Nothing here reads a clock.

use crate::time::Instant;

/// RFC 6298 §2.1: until a round trip was measured, the timeout is 1 s.
const INITIAL_TIMEOUT_S: u8 = 1;
/// RFC 6298 §5.7: 3 s, if the SYN had to be sent again and no round trip is known when data begins.
const FALLBACK_TIMEOUT_S: u8 = 3;
/// RFC 6298 §2, G: timestamps and the timer wheel count milliseconds.
const GRANULARITY_US: u32 = 1_000;
/// What one sample can say at most; the scaled estimate of it still fits 32 bits.
const LONGEST_SAMPLE_US: u32 = 120_000_000;
/// Estimates are kept in 1/32 µs, so that small gains do not round to nothing.
const SCALE_SHIFT: u32 = 5;
/// RFC 6298 §2.3: alpha = 1/8.
const ALPHA_SHIFT: u32 = 3;
/// RFC 6298 §2.3: beta = 1/4.
const BETA_SHIFT: u32 = 2;
/// A round trip that got shorter by more than the usual variation is no reason to wait longer: its deviation counts an
/// eighth of beta, as in Linux (after the Eifel algorithm's finding).
const SHORTENING_SHIFT: u32 = 3;
/// RFC 7323 appendix G divides the gains by the samples per round trip; here by at most 32 of them.
const MOST_SAMPLES_SHIFT: u32 = 5;
/// Doublings after which every timeout has met its ceiling.
const MOST_DOUBLINGS: u8 = 20;
/// Half of the window of the minimum: two such buckets remember between 5 and 10 s.
const BUCKET_US: u32 = 5_000_000;
/// No sample in a bucket.
const NONE: u32 = u32::MAX;

/// Limits of the retransmission timeout, one pair per listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    floor_us: u32,
    ceiling_us: u32,
}

impl Bounds {
    /// Limits in milliseconds. The floor is the least time beyond the smoothed round trip, at least the clock's
    /// granularity; a ceiling below the floor is raised to it. RFC 6298 §2.5 wants a ceiling of at least 60 s.
    pub const fn new(floor_ms: u32, ceiling_ms: u32) -> Self {
        let floor_us = floor_ms.saturating_mul(1_000);
        let floor_us = if floor_us < GRANULARITY_US { GRANULARITY_US } else { floor_us };
        let ceiling_us = ceiling_ms.saturating_mul(1_000);
        Self { floor_us, ceiling_us: if ceiling_us < floor_us { floor_us } else { ceiling_us } }
    }
}

impl Default for Bounds {
    /// 200 ms to 120 s, as Linux. RFC 6298 §2.4 asks for 1 s at least: a deviation, with RACK-TLP, timestamps and
    /// undo as its safety net.
    fn default() -> Self {
        Self::new(200, 120_000)
    }
}

/// Estimate of one connection's round trip.
#[derive(Clone, Copy, Debug)]
pub struct RttEstimator {
    /// SRTT in 1/32 µs; 0 before the first sample.
    smoothed: u32,
    /// RTTVAR in 1/32 µs.
    variance: u32,
    /// Shortest sample of the bucket that began at `bucket_started`.
    current_minimum_us: u32,
    /// Shortest sample of the bucket before.
    previous_minimum_us: u32,
    /// Low 32 bits of the clock.
    bucket_started: u32,
    timeouts: u8,
    initial_timeout_s: u8,
}

const _: () = assert!(size_of::<RttEstimator>() <= 24);

impl Default for RttEstimator {
    fn default() -> Self {
        Self::new()
    }
}

impl RttEstimator {
    /// Knows nothing yet.
    pub const fn new() -> Self {
        Self {
            smoothed: 0,
            variance: 0,
            current_minimum_us: NONE,
            previous_minimum_us: NONE,
            bucket_started: 0,
            timeouts: 0,
            initial_timeout_s: INITIAL_TIMEOUT_S,
        }
    }

    /// Takes one valid sample, and ends the back-off (RFC 6298 §5.7, Karn). `in_flight` is what was outstanding before
    /// the acknowledgement, in bytes; with `mss` it says how many samples one round trip gives (RFC 7323 appendix G).
    #[inline(always)]
    pub fn sample(&mut self, now: Instant, rtt_us: u32, in_flight: u32, mss: u16) {
        let rtt_us = rtt_us.clamp(1, LONGEST_SAMPLE_US);
        self.timeouts = 0;
        self.keep_minimum(now.low(), rtt_us);
        let sample = rtt_us << SCALE_SHIFT;
        if self.smoothed == 0 {
            // RFC 6298 §2.2
            self.smoothed = sample;
            self.variance = sample / 2;
            return;
        }
        let samples_shift = samples_per_round_shift(in_flight, mss);
        // RFC 6298 §2.3: the variance first, by the old mean.
        let error = i64::from(sample) - i64::from(self.smoothed);
        let excess = error.abs() - i64::from(self.variance);
        // As Linux: the variance rises with each sample and falls once per round trip, whatever their number.
        let variance_shift = match (excess > 0, error < 0) {
            (true, true) => BETA_SHIFT + SHORTENING_SHIFT,
            (true, false) => BETA_SHIFT,
            (false, _) => BETA_SHIFT + samples_shift,
        };
        self.variance = moved(self.variance, excess, variance_shift);
        self.smoothed = moved(self.smoothed, error, ALPHA_SHIFT + samples_shift).max(1);
    }

    /// SRTT; 0 before the first sample.
    #[inline]
    pub const fn smoothed_us(&self) -> u32 {
        self.smoothed >> SCALE_SHIFT
    }

    /// RTTVAR; 0 before the first sample.
    #[inline]
    pub const fn variance_us(&self) -> u32 {
        self.variance >> SCALE_SHIFT
    }

    /// Whether a round trip was ever measured.
    #[inline]
    pub const fn has_sample(&self) -> bool {
        self.smoothed != 0
    }

    /// The shortest round trip of the last 5 to 10 s in which there were samples; `None` before the first one.
    #[inline]
    pub fn minimum_us(&self) -> Option<u32> {
        let minimum = self.current_minimum_us.min(self.previous_minimum_us);
        (minimum != NONE).then_some(minimum)
    }

    /// The retransmission timeout, back-off included (RFC 6298 §5.5). As in Linux the floor is what is waited beyond
    /// the smoothed round trip: SRTT + max(floor, 4 · RTTVAR), never less than RFC 6298 §2.3 with the same floor.
    #[inline]
    pub fn timeout_us(&self, bounds: &Bounds) -> u32 {
        let once = if self.smoothed == 0 {
            u32::from(self.initial_timeout_s) * 1_000_000
        } else {
            self.smoothed_us() + (self.variance_us() * 4).max(bounds.floor_us)
        };
        let backed_off = u64::from(once) << self.timeouts.min(MOST_DOUBLINGS);
        backed_off.min(u64::from(bounds.ceiling_us)) as u32
    }

    /// The timer expired: the next timeout is twice as long (RFC 6298 §5.5).
    pub fn back_off(&mut self) {
        self.timeouts = self.timeouts.saturating_add(1);
    }

    /// Expiries of the timer since the last valid sample.
    #[inline]
    pub const fn timeouts(&self) -> u8 {
        self.timeouts
    }

    /// Takes the back-off away without a sample: the timeout proved spurious, or the peer's window opened again.
    pub fn reset_back_off(&mut self) {
        self.timeouts = 0;
    }

    /// The handshake ended after its SYN had to be sent again: unless a round trip could be measured, data starts with
    /// 3 s (RFC 6298 §5.7) and without the back-off of the SYN.
    pub fn finish_slow_handshake(&mut self) {
        self.timeouts = 0;
        self.initial_timeout_s = FALLBACK_TIMEOUT_S;
    }

    /// A bucket that the clock's wrap (71 min) makes look young lives for 5 s too long: harmless.
    #[inline(always)]
    fn keep_minimum(&mut self, now: u32, rtt_us: u32) {
        let age = now.wrapping_sub(self.bucket_started);
        if age < BUCKET_US && self.current_minimum_us != NONE {
            self.current_minimum_us = self.current_minimum_us.min(rtt_us);
            return;
        }
        self.previous_minimum_us = if age < 2 * BUCKET_US { self.current_minimum_us } else { NONE };
        self.current_minimum_us = rtt_us;
        self.bucket_started = now;
    }
}

/// log2 of the samples that one round trip gives: in flight / two segments (the peer acknowledges every other one).
#[inline(always)]
fn samples_per_round_shift(in_flight: u32, mss: u16) -> u32 {
    let two_segments = u32::from(mss) * 2;
    two_segments.leading_zeros().saturating_sub(in_flight.leading_zeros()).min(MOST_SAMPLES_SHIFT)
}

/// `value` moved by difference / 2^shift, rounded to the nearest.
#[inline(always)]
fn moved(value: u32, difference: i64, shift: u32) -> u32 {
    let step = (difference + (1 << (shift - 1))) >> shift;
    (i64::from(value) + step).clamp(0, i64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MSS: u16 = 1_460;
    /// One sample per round trip.
    const SPARSE: u32 = 2 * MSS as u32;

    fn fed(samples_us: &[u32]) -> RttEstimator {
        let mut rtt = RttEstimator::new();
        for (at, sample) in samples_us.iter().enumerate() {
            rtt.sample(Instant(at as u64 * 100_000), *sample, SPARSE, MSS);
        }
        rtt
    }

    #[test]
    fn the_first_sample_sets_the_estimate() {
        let rtt = fed(&[400_000]);
        assert_eq!(rtt.smoothed_us(), 400_000);
        assert_eq!(rtt.variance_us(), 200_000);
        assert_eq!(rtt.timeout_us(&Bounds::default()), 400_000 + 4 * 200_000);
    }

    #[test]
    fn estimates_follow_the_recurrence() {
        let samples = [50_000, 60_000, 55_000, 90_000, 100_000, 104_000, 103_000, 250_000, 240_000];
        let mut rtt = fed(&samples[..1]);
        let (mut smoothed, mut variance) = (50_000.0_f64, 25_000.0_f64);
        for sample in &samples[1..] {
            let error = f64::from(*sample) - smoothed;
            // All of these are rises or small falls: the RFC's gains hold.
            assert!(error > 0.0 || error.abs() < variance);
            variance += (error.abs() - variance) / 4.0;
            smoothed += error / 8.0;
            rtt.sample(Instant(0), *sample, SPARSE, MSS);
            assert!(
                (f64::from(rtt.smoothed_us()) - smoothed).abs() < 2.0,
                "{} {smoothed}",
                rtt.smoothed_us()
            );
            assert!(
                (f64::from(rtt.variance_us()) - variance).abs() < 2.0,
                "{} {variance}",
                rtt.variance_us()
            );
        }
    }

    #[test]
    fn a_steady_path_waits_its_round_trip_and_the_floor() {
        let rtt = fed(&[80_000; 100]);
        assert_eq!(rtt.smoothed_us(), 80_000);
        let timeout = rtt.timeout_us(&Bounds::default());
        assert_eq!(timeout, 280_000);
        assert_eq!(rtt.timeout_us(&Bounds::new(1_000, 120_000)), 1_080_000);
        assert!(rtt.timeout_us(&Bounds::new(0, 120_000)) >= 81_000, "the clock's granularity is the least");
    }

    #[test]
    fn back_off_doubles_to_the_ceiling_and_a_sample_ends_it() {
        let bounds = Bounds::default();
        let mut rtt = fed(&[80_000; 100]);
        for doublings in 0..8_u32 {
            assert_eq!(rtt.timeout_us(&bounds), 280_000 << doublings);
            rtt.back_off();
        }
        assert_eq!(rtt.timeouts(), 8);
        for _ in 0..500 {
            rtt.back_off();
            assert!(rtt.timeout_us(&bounds) <= 120_000_000);
        }
        assert_eq!(rtt.timeout_us(&bounds), 120_000_000);
        rtt.sample(Instant(0), 80_000, SPARSE, MSS);
        assert_eq!((rtt.timeouts(), rtt.timeout_us(&bounds)), (0, 280_000));
    }

    #[test]
    fn a_handshake_waits_one_second_and_a_lost_syn_makes_data_wait_three() {
        let bounds = Bounds::default();
        let mut rtt = RttEstimator::new();
        assert!(!rtt.has_sample());
        assert_eq!(rtt.timeout_us(&bounds), 1_000_000);
        rtt.back_off();
        assert_eq!(rtt.timeout_us(&bounds), 2_000_000);
        rtt.finish_slow_handshake();
        assert_eq!(rtt.timeout_us(&bounds), 3_000_000);
        rtt.sample(Instant(0), 1_000, SPARSE, MSS);
        assert_eq!(rtt.timeout_us(&bounds), 201_000);
    }

    #[test]
    fn a_full_window_of_samples_weighs_as_one() {
        let mut once = fed(&[100_000; 50]);
        let mut often = once;
        once.sample(Instant(0), 180_000, SPARSE, MSS);
        for _ in 0..8 {
            often.sample(Instant(0), 180_000, 16 * u32::from(MSS), MSS);
        }
        let (once, often) = (once.smoothed_us(), often.smoothed_us());
        assert_eq!(once, 110_000);
        assert!(often.abs_diff(once) < 1_000, "{often}");
    }

    #[test]
    fn many_samples_per_round_trip_do_not_hide_variation() {
        // Ten rounds of 16 samples, each round with one slow one: the timeout still covers it.
        let mut rtt = fed(&[50_000]);
        for _ in 0..10 {
            for place in 0..16 {
                let sample = if place == 0 { 400_000 } else { 50_000 };
                rtt.sample(Instant(0), sample, 32 * u32::from(MSS), MSS);
            }
        }
        let timeout = rtt.timeout_us(&Bounds::new(1, 120_000));
        assert!(timeout > 400_000, "{timeout}");
    }

    #[test]
    fn a_path_that_gets_shorter_is_not_waited_for_longer() {
        let mut rtt = fed(&[300_000; 100]);
        let before = rtt.timeout_us(&Bounds::default());
        rtt.sample(Instant(0), 50_000, SPARSE, MSS);
        assert!(rtt.timeout_us(&Bounds::default()) <= before);
    }

    #[test]
    fn the_minimum_is_forgotten_within_ten_seconds() {
        let mut rtt = RttEstimator::new();
        assert_eq!(rtt.minimum_us(), None);
        // Across the wrap of the low 32 bits.
        let start = Instant(u64::from(u32::MAX) - 3_000_000);
        rtt.sample(start, 10_000, SPARSE, MSS);
        for tenth in 1..49 {
            rtt.sample(start.after(tenth * 100_000), 30_000, SPARSE, MSS);
        }
        assert_eq!(rtt.minimum_us(), Some(10_000));
        rtt.sample(start.after(5_000_000), 20_000, SPARSE, MSS);
        assert_eq!(rtt.minimum_us(), Some(10_000), "the bucket before still counts");
        rtt.sample(start.after(10_000_000), 30_000, SPARSE, MSS);
        assert_eq!(rtt.minimum_us(), Some(20_000));
        rtt.sample(start.after(30_000_000), 40_000, SPARSE, MSS);
        assert_eq!(rtt.minimum_us(), Some(40_000), "silence empties both");
    }

    proptest! {
        #[test]
        fn any_samples_keep_the_timeout_in_bounds(
            events in prop::collection::vec((any::<u32>(), any::<u32>(), 0_u16.., any::<bool>()), 1..200),
            floor_ms in 0_u32..5_000,
            ceiling_ms in 0_u32..200_000,
        ) {
            let bounds = Bounds::new(floor_ms, ceiling_ms);
            let mut rtt = RttEstimator::new();
            let mut now = Instant(0);
            for (rtt_us, in_flight, mss, expired) in events {
                now = now.after(u64::from(in_flight));
                if expired {
                    rtt.back_off();
                } else {
                    rtt.sample(now, rtt_us, in_flight, mss);
                    prop_assert!(rtt.minimum_us().is_some_and(|minimum| minimum <= rtt_us.clamp(1, LONGEST_SAMPLE_US)));
                    prop_assert!(rtt.smoothed_us() <= LONGEST_SAMPLE_US);
                }
                let timeout = rtt.timeout_us(&bounds);
                prop_assert!(timeout >= 1_000 && timeout <= ceiling_ms.max(floor_ms).max(1) * 1_000);
            }
        }
    }
}
