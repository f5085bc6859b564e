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
        let is_last = !ack.snd_una.is_before(self.round_end) && self.end_round(ack.snd_nxt);
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
