//! How fast does slow start grow, and when has it found the path's rate? RFC 5681 §3.1, RFC 3465, HyStart++ (RFC 9406).

use super::AckSample;
use crate::seq::SeqNumber;

/// RFC 9406 §4.2, L for senders that do not pace: eight segments per acknowledgement. RFC 3465 §2.2 allowed two; peers
/// that coalesce segments acknowledge many at once, and two would halve their growth.
const SEGMENTS_PER_ACK: u32 = 8;
/// RFC 9406 §4.2, MIN_RTT_THRESH.
const LEAST_GROWTH_US: u32 = 4_000;
/// RFC 9406 §4.2, MAX_RTT_THRESH.
const MOST_GROWTH_US: u32 = 16_000;
/// RFC 9406 §4.2, MIN_RTT_DIVISOR.
const GROWTH_DIVISOR: u32 = 8;
/// RFC 9406 §4.2, N_RTT_SAMPLE.
const SAMPLES: u8 = 8;
/// RFC 9406 §4.2, CSS_GROWTH_DIVISOR.
const CONSERVATIVE_DIVISOR: u32 = 4;
/// RFC 9406 §4.2, CSS_ROUNDS.
const CONSERVATIVE_ROUNDS: u8 = 5;
/// A minimum without a sample.
const NONE: u32 = u32::MAX;

/// Bytes by which one acknowledgement widens the window in a later slow start. After a timeout, until the data of that
/// time is acknowledged, one segment: an acknowledgement may cover what arrived long before (RFC 3465 §2.3).
#[inline]
pub(super) fn growth(acked_bytes: u32, mss: u16, is_after_timeout: bool) -> u32 {
    let segments = if is_after_timeout { 1 } else { SEGMENTS_PER_ACK };
    acked_bytes.min(segments * u32::from(mss))
}

/// What one acknowledgement does in the first slow start.
pub(super) struct Step {
    /// Bytes for the window.
    pub(super) growth: u32,
    /// The path's rate is found: congestion avoidance follows.
    pub(super) is_last: bool,
}

/// HyStart++: compares the shortest round trip of each round with the one before.
#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    /// windowEnd.
    round_end: SeqNumber,
    /// currentRoundMinRTT.
    current_minimum_us: u32,
    /// lastRoundMinRTT.
    last_minimum_us: u32,
    /// cssBaselineMinRtt, while conservative.
    baseline_us: u32,
    /// rttSampleCount, up to what matters.
    samples: u8,
    /// Rounds left of conservative slow start; 0 outside it.
    conservative_rounds: u8,
    is_in_round: bool,
}

impl HyStart {
    pub(super) const fn new() -> Self {
        Self {
            round_end: SeqNumber(0),
            current_minimum_us: NONE,
            last_minimum_us: NONE,
            baseline_us: NONE,
            samples: 0,
            conservative_rounds: 0,
            is_in_round: false,
        }
    }

    #[inline]
    pub(super) fn on_ack(&mut self, ack: &AckSample, mss: u16) -> Step {
        if !self.is_in_round {
            self.is_in_round = true;
            self.round_end = ack.snd_nxt;
        }
        let mut growth = ack.acked_bytes.min(SEGMENTS_PER_ACK * u32::from(mss));
        if self.conservative_rounds != 0 {
            growth /= CONSERVATIVE_DIVISOR;
        }
        if let Some(rtt_us) = ack.rtt_us {
            self.current_minimum_us = self.current_minimum_us.min(rtt_us);
            self.samples = self.samples.saturating_add(1);
        }
        if self.samples >= SAMPLES {
            self.compare();
        }
        // Not by order: a round may have ended more than 2^31 bytes ago, while the window was not the limit.
        let rest = self.round_end.since(ack.snd_una);
        let is_over = rest == 0 || rest > ack.snd_nxt.since(ack.snd_una);
        let is_last = is_over && self.end_round(ack.snd_nxt);
        Step { growth, is_last }
    }

    /// RFC 9406 §4.2: delay that grew makes slow start conservative, delay that fell again was jitter.
    fn compare(&mut self) {
        if self.conservative_rounds != 0 {
            if self.current_minimum_us < self.baseline_us {
                self.baseline_us = NONE;
                self.conservative_rounds = 0;
            }
        } else if self.last_minimum_us != NONE && self.current_minimum_us != NONE {
            let tolerated = (self.last_minimum_us / GROWTH_DIVISOR).clamp(LEAST_GROWTH_US, MOST_GROWTH_US);
            if self.current_minimum_us >= self.last_minimum_us.saturating_add(tolerated) {
                self.baseline_us = self.current_minimum_us;
                self.conservative_rounds = CONSERVATIVE_ROUNDS;
            }
        }
    }

    /// All of a round is acknowledged; true if that was the last conservative one. The round in which it became
    /// conservative counts (RFC 9406 §4.2).
    fn end_round(&mut self, snd_nxt: SeqNumber) -> bool {
        self.round_end = snd_nxt;
        self.last_minimum_us = self.current_minimum_us;
        self.current_minimum_us = NONE;
        self.samples = 0;
        if self.conservative_rounds == 0 {
            return false;
        }
        self.conservative_rounds -= 1;
        self.conservative_rounds == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Instant;

    const MSS: u16 = 1_000;

    /// One round of 16 segments, all with one round trip; what the window gained, and whether slow start ended.
    fn round(rounds: &mut HyStart, start: &mut u32, rtt_us: u32) -> (u32, bool) {
        let begin = SeqNumber(*start);
        *start = start.wrapping_add(16_000);
        let (mut gained, mut is_last) = (0, false);
        for segment in 1..=16 {
            // Before the first acknowledgement the round was sent; each releases a segment of the next one.
            let released = if segment == 1 { 0 } else { segment * 1_000 };
            let step = rounds.on_ack(
                &AckSample {
                    now: Instant(0),
                    acked_bytes: 1_000,
                    in_flight_before: 16_000,
                    rtt_us: Some(rtt_us),
                    srtt_us: rtt_us,
                    snd_una: begin + segment * 1_000,
                    snd_nxt: begin + 16_000 + released,
                    is_window_limited: true,
                },
                MSS,
            );
            gained += step.growth;
            is_last |= step.is_last;
        }
        (gained, is_last)
    }

    #[test]
    fn steady_delay_never_ends_slow_start() {
        let (mut rounds, mut start) = (HyStart::new(), u32::MAX - 40_000);
        for _ in 0..50 {
            assert_eq!(round(&mut rounds, &mut start, 100_000), (16_000, false));
        }
    }

    #[test]
    fn growing_delay_is_followed_by_five_careful_rounds() {
        let (mut rounds, mut start) = (HyStart::new(), 0);
        assert_eq!(round(&mut rounds, &mut start, 100_000), (16_000, false));
        assert_eq!(round(&mut rounds, &mut start, 111_000), (16_000, false), "less than an eighth");
        // The eighth sample of the next round tells; from then on growth is a quarter.
        let mut lengths = Vec::new();
        for _ in 0..6 {
            lengths.push(round(&mut rounds, &mut start, 130_000));
        }
        assert_eq!(lengths[0], (8_000 + 2_000, false), "{lengths:?}");
        assert!(lengths[1..4].iter().all(|length| *length == (4_000, false)), "{lengths:?}");
        assert_eq!(lengths.iter().filter(|length| length.1).count(), 1, "{lengths:?}");
        assert_eq!(lengths.iter().position(|length| length.1), Some(4), "{lengths:?}");
    }

    #[test]
    fn jitter_is_forgiven() {
        let (mut rounds, mut start) = (HyStart::new(), 0);
        round(&mut rounds, &mut start, 100_000);
        round(&mut rounds, &mut start, 130_000);
        assert!(rounds.conservative_rounds != 0);
        round(&mut rounds, &mut start, 101_000);
        assert_eq!(rounds.conservative_rounds, 0);
        assert_eq!(round(&mut rounds, &mut start, 101_000), (16_000, false));
    }

    #[test]
    fn thresholds_are_four_to_sixteen_milliseconds() {
        for (before, after, is_careful) in [
            (1_000, 4_900, false),
            (1_000, 5_100, true),
            (80_000, 89_900, false),
            (80_000, 90_100, true),
            (400_000, 415_900, false),
            (400_000, 416_100, true),
        ] {
            let (mut rounds, mut start) = (HyStart::new(), 0);
            round(&mut rounds, &mut start, before);
            round(&mut rounds, &mut start, after);
            assert_eq!(rounds.conservative_rounds != 0, is_careful, "{before} {after}");
        }
    }

    #[test]
    fn few_samples_say_nothing() {
        let mut rounds = HyStart::new();
        for step in 1..40 {
            let una = SeqNumber(step * 4_000);
            // Four samples a round, ever slower.
            let step = rounds.on_ack(
                &AckSample {
                    now: Instant(0),
                    acked_bytes: 4_000,
                    in_flight_before: 16_000,
                    rtt_us: Some(10_000 * step),
                    srtt_us: 10_000,
                    snd_una: una,
                    snd_nxt: una + 16_000,
                    is_window_limited: true,
                },
                MSS,
            );
            assert_eq!(step.growth, 4_000);
            assert!(!step.is_last);
        }
    }

    #[test]
    fn one_acknowledgement_is_worth_eight_segments_or_one() {
        assert_eq!(growth(700, MSS, false), 700);
        assert_eq!(growth(64_000, MSS, false), 8_000);
        assert_eq!(growth(64_000, MSS, true), 1_000);
    }
}
