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
    #[inline]
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
    #[inline]
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
#[inline]
fn samples_per_round_shift(in_flight: u32, mss: u16) -> u32 {
    let two_segments = u32::from(mss) * 2;
    two_segments.leading_zeros().saturating_sub(in_flight.leading_zeros()).min(MOST_SAMPLES_SHIFT)
}

/// `value` moved by difference / 2^shift, rounded to the nearest.
#[inline]
fn moved(value: u32, difference: i64, shift: u32) -> u32 {
    let step = (difference + (1 << (shift - 1))) >> shift;
    (i64::from(value) + step).clamp(0, i64::from(u32::MAX)) as u32
}
