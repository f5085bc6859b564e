//! Which segments are lost, judged by time? RFC 8985: RACK's state, its reordering window, and the tail loss probe.
//!
//! The segments themselves are in the send queue, which asks [`Rack::is_sent_after`] of each.

use crate::seq::SeqNumber;
use crate::time::Instant;

/// RFC 8985 §3.2: segments that are selectively acknowledged before reordering was ever seen end the wait for it.
pub const DUP_THRESHOLD: u32 = 3;
/// RFC 8985 §6.2 step 4: recoveries without a D-SACK after which the reordering window is small again.
const WINDOW_RECOVERIES: u8 = 16;
/// RFC 8985 §7.2: the probe timeout without a sample of the round trip.
const PROBE_TIMEOUT_WITHOUT_SAMPLE_US: u32 = 1_000_000;
/// Added to the probe timeout for the grain of both ends' clocks, as Linux does (two of its ticks); RFC 8985 leaves it open.
const PROBE_MARGIN_US: u32 = 2_000;

const HAS_NEWEST: u8 = 1;
const HAS_HIGHEST: u8 = 2;
const REORDERING_SEEN: u8 = 4;
const IN_DUPLICATE_ROUND: u8 = 8;
const PROBING: u8 = 16;
const PROBE_IS_RETRANSMISSION: u8 = 32;

/// RFC 8985 §5.2 and §7.1: a connection's RACK-TLP state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rack {
    /// RACK.xmit_ts.
    sent_at: u32,
    /// RACK.end_seq.
    end_seq: SeqNumber,
    /// RACK.rtt.
    rtt_us: u32,
    /// RACK.fack.
    highest: SeqNumber,
    /// RACK.dsack_round.
    duplicate_round: SeqNumber,
    /// TLP.end_seq.
    probe_end: SeqNumber,
    /// RACK.reo_wnd_mult, less one.
    extra_windows: u8,
    /// RACK.reo_wnd_persist.
    persistence: u8,
    flags: u8,
}

const _: () = assert!(size_of::<Rack>() <= 28);

/// What an acknowledgement newly delivered, cumulatively or selectively, as far as RACK asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeliveredSegments {
    /// When the one of those sent once was sent that was sent last, and its end.
    pub original: Option<(u32, SeqNumber)>,
    /// The same of those sent more than once.
    pub retransmitted: Option<(u32, SeqNumber)>,
    /// The lowest end of those sent once.
    pub lowest_original_end: Option<SeqNumber>,
    /// The highest end of all.
    pub highest_end: Option<SeqNumber>,
}

/// RFC 8985 §6.2 step 2, RACK_sent_after: later in time, or at the same time and further in the stream.
#[inline(always)]
const fn is_sent_after(sent_at: u32, end_seq: SeqNumber, than: u32, than_end: SeqNumber) -> bool {
    let later = sent_at.wrapping_sub(than) as i32;
    later > 0 || later == 0 && end_seq.is_after(than_end)
}

impl Rack {
    #[inline(always)]
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    #[inline(always)]
    const fn set(&mut self, flag: u8, to: bool) {
        self.flags = if to { self.flags | flag } else { self.flags & !flag };
    }

    /// Whether neither a probe nor anything delivered is remembered.
    #[inline(always)]
    pub(crate) const fn is_blank(&self) -> bool {
        !self.has(HAS_NEWEST | HAS_HIGHEST | PROBING)
    }

    /// Whether anything was delivered that segments can be compared with.
    #[inline(always)]
    pub const fn is_valid(&self) -> bool {
        self.has(HAS_NEWEST)
    }

    /// Round trip of the most recently sent segment that was delivered (RACK.rtt); 0 without one.
    #[inline(always)]
    pub const fn rtt_us(&self) -> u32 {
        self.rtt_us
    }

    /// Whether reordering was seen on this connection.
    #[inline(always)]
    pub const fn is_reordering_seen(&self) -> bool {
        self.has(REORDERING_SEEN)
    }

    /// Whether the delivered segment that was sent last was sent after this one.
    #[inline(always)]
    pub const fn is_sent_after(&self, sent_at: u32, end_seq: SeqNumber) -> bool {
        self.has(HAS_NEWEST) && is_sent_after(self.sent_at, self.end_seq, sent_at, end_seq)
    }

    /// RFC 8985 §6.2 steps 1 to 3, on each acknowledgement that delivers anything.
    ///
    /// `echoed_at` is when the timestamp that the peer echoes was made, in µs (modulo 2^32) rounded down to a millisecond:
    /// `(echo - offset).wrapping_mul(1000)`. `is_idle`: nothing is outstanding any more.
    #[inline(always)]
    pub fn on_delivered(
        &mut self,
        delivered: &DeliveredSegments,
        now: Instant,
        min_rtt_us: u32,
        echoed_at: Option<u32>,
        is_idle: bool,
    ) {
        // Step 3, before `highest` moves: an original below what was delivered earlier came late.
        if let Some(highest_end) = delivered.highest_end {
            if self.has(HAS_HIGHEST) {
                if delivered.lowest_original_end.is_some_and(|end| end.is_before(self.highest)) {
                    self.set(REORDERING_SEEN, true);
                }
                self.highest = self.highest.max(highest_end);
            } else {
                self.highest = highest_end;
                self.set(HAS_HIGHEST, true);
            }
        }
        if let Some((sent_at, end_seq)) = delivered.original {
            self.update(sent_at, end_seq, now);
        }
        if let Some((sent_at, end_seq)) = delivered.retransmitted {
            // Step 2: the acknowledgement may be for the original, if it echoes an older timestamp, or comes too soon.
            let echoes_older =
                echoed_at.is_some_and(|at| (at.wrapping_add(999).wrapping_sub(sent_at) as i32) < 0);
            if !echoes_older && now.low().wrapping_sub(sent_at) >= min_rtt_us {
                self.update(sent_at, end_seq, now);
            }
        }
        if is_idle {
            // All that is sent from now on is newer, and a µs clock of 32 bits can't tell after half an hour of silence.
            self.set(HAS_NEWEST | HAS_HIGHEST, false);
        }
    }

    #[inline(always)]
    fn update(&mut self, sent_at: u32, end_seq: SeqNumber, now: Instant) {
        if !self.has(HAS_NEWEST) || is_sent_after(sent_at, end_seq, self.sent_at, self.end_seq) {
            self.sent_at = sent_at;
            self.end_seq = end_seq;
            self.rtt_us = now.low().wrapping_sub(sent_at);
            self.set(HAS_NEWEST, true);
        }
    }

    /// RFC 8985 §6.2 step 4: on an acknowledgement with a D-SACK, the window grows, once per round trip.
    pub fn on_duplicate(&mut self, snd_una: SeqNumber, snd_nxt: SeqNumber) {
        if self.has(IN_DUPLICATE_ROUND) && !snd_una.is_before(self.duplicate_round) {
            self.set(IN_DUPLICATE_ROUND, false);
        }
        if !self.has(IN_DUPLICATE_ROUND) {
            self.set(IN_DUPLICATE_ROUND, true);
            self.duplicate_round = snd_nxt;
            self.extra_windows = self.extra_windows.saturating_add(1);
            self.persistence = WINDOW_RECOVERIES;
        }
    }

    /// RFC 8985 §6.2 step 4: on leaving fast or RTO recovery, the 16th of them without a D-SACK shrinks the window.
    pub const fn on_recovery_end(&mut self) {
        self.persistence = self.persistence.saturating_sub(1);
        if self.persistence == 0 {
            self.extra_windows = 0;
        }
    }

    /// RFC 8985 §6.2 step 4, RACK_update_reo_wnd: how much later than its successors a segment may arrive, in µs.
    #[inline]
    pub fn reordering_window(
        &self,
        min_rtt_us: u32,
        srtt_us: u32,
        in_recovery: bool,
        sacked_segments: u32,
    ) -> u32 {
        if !self.has(REORDERING_SEEN) && (in_recovery || sacked_segments >= DUP_THRESHOLD) {
            return 0;
        }
        let windows = u64::from(self.extra_windows) + 1;
        (windows * u64::from(min_rtt_us) / 4).min(u64::from(srtt_us)) as u32
    }

    /// RFC 8985 §7.2, TLP_calc_PTO: how long to wait for an acknowledgement before a probe, in µs; never beyond the
    /// retransmission timeout.
    #[inline]
    pub fn probe_timeout(
        srtt_us: Option<u32>,
        is_one_segment: bool,
        max_ack_delay_us: u32,
        until_rto_us: u32,
    ) -> u32 {
        let timeout = match srtt_us {
            Some(srtt) => {
                let margin = if is_one_segment { max_ack_delay_us } else { PROBE_MARGIN_US };
                srtt.saturating_mul(2).saturating_add(margin)
            }
            None => PROBE_TIMEOUT_WITHOUT_SAMPLE_US,
        };
        timeout.min(until_rto_us)
    }

    /// Whether a probe is outstanding: another one must wait (RFC 8985 §7.3).
    #[inline(always)]
    pub const fn is_probing(&self) -> bool {
        self.has(PROBING)
    }

    /// RFC 8985 §7.3: a probe was sent; `snd_nxt` with it counted.
    pub const fn on_probe(&mut self, snd_nxt: SeqNumber, is_retransmission: bool) {
        self.probe_end = snd_nxt;
        self.set(PROBING, true);
        self.set(PROBE_IS_RETRANSMISSION, is_retransmission);
    }

    /// RFC 8985 §7.4.2, TLP_process_ack. Whether the probe repaired a loss, to which congestion control must react.
    ///
    /// `duplicate` is the D-SACK block, where the segment has one. `is_bare_duplicate`: a duplicate acknowledgement
    /// without any SACK option.
    #[inline]
    pub fn on_probe_ack(
        &mut self,
        ack: SeqNumber,
        duplicate: Option<(SeqNumber, SeqNumber)>,
        is_bare_duplicate: bool,
    ) -> bool {
        if !self.has(PROBING) || ack.is_before(self.probe_end) {
            return false;
        }
        let is_original_delivered = duplicate.is_some_and(|(_, end)| end == self.probe_end);
        if !self.has(PROBE_IS_RETRANSMISSION) || is_original_delivered {
            self.set(PROBING, false);
        } else if ack.is_after(self.probe_end) {
            self.set(PROBING, false);
            return true;
        } else if is_bare_duplicate {
            self.set(PROBING, false);
        }
        false
    }

    /// RFC 8985 §7.4.1, TLP_init: recovery or a retransmission timeout takes over.
    #[inline]
    pub const fn forget_probe(&mut self) {
        self.set(PROBING, false);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u32 = 1_000;

    fn original(sent_at: u32, end: u32) -> DeliveredSegments {
        let end = SeqNumber(end);
        DeliveredSegments {
            original: Some((sent_at, end)),
            retransmitted: None,
            lowest_original_end: Some(end),
            highest_end: Some(end),
        }
    }

    fn retransmitted(sent_at: u32, end: u32) -> DeliveredSegments {
        let end = SeqNumber(end);
        DeliveredSegments {
            retransmitted: Some((sent_at, end)),
            highest_end: Some(end),
            ..Default::default()
        }
    }

    #[test]
    fn the_segment_sent_last_is_compared_with_also_across_the_clocks_wrap() {
        let mut rack = Rack::default();
        assert!(!rack.is_sent_after(0, SeqNumber(0)), "nothing was delivered");
        let before = u32::MAX - 10;
        rack.on_delivered(&original(before, 100), Instant(u64::from(before) + 5_000), 1, None, false);
        assert_eq!(rack.rtt_us(), 5_000);
        assert!(rack.is_sent_after(before, SeqNumber(99)) && !rack.is_sent_after(before, SeqNumber(100)));
        rack.on_delivered(&original(5, 200), Instant((1 << 32) + 4_005), 1, None, false);
        assert_eq!(rack.rtt_us(), 4_000);
        assert!(rack.is_sent_after(before, SeqNumber(300)) && !rack.is_sent_after(5, SeqNumber(200)));
        // What was sent earlier does not replace it.
        rack.on_delivered(&original(1, 150), Instant((1 << 32) + 9_005), 1, None, false);
        assert_eq!(rack.rtt_us(), 4_000);
    }

    #[test]
    fn an_acknowledgement_that_may_be_for_the_original_is_not_a_retransmissions() {
        let mut rack = Rack::default();
        rack.on_delivered(&original(0, 100), Instant(20_000), 20_000, None, false);
        // Too soon after it was sent again (RFC 8985 §6.2 step 2, second condition).
        rack.on_delivered(&retransmitted(30_000, 50), Instant(40_000), 20_000, None, false);
        assert_eq!(rack.rtt_us(), 20_000);
        // Late enough, but the echo is of a timestamp before it (first condition).
        rack.on_delivered(&retransmitted(30_000, 50), Instant(55_000), 20_000, Some(29_000), false);
        assert_eq!(rack.rtt_us(), 20_000);
        rack.on_delivered(&retransmitted(30_500, 50), Instant(55_500), 20_000, Some(30_000), false);
        assert_eq!(rack.rtt_us(), 25_000);
    }

    #[test]
    fn reordering_is_a_late_original_below_what_was_delivered() {
        let mut rack = Rack::default();
        rack.on_delivered(&original(0, 300), Instant(1_000), 1, None, false);
        rack.on_delivered(&retransmitted(500, 200), Instant(2_000), 1, None, false);
        assert!(!rack.is_reordering_seen(), "a retransmission fills a gap, it was not reordered");
        rack.on_delivered(&original(0, 100), Instant(2_000), 1, None, false);
        assert!(rack.is_reordering_seen());
    }

    #[test]
    fn after_half_an_hour_of_silence_the_next_segment_counts_at_once() {
        let mut rack = Rack::default();
        rack.on_delivered(&original(0, 100), Instant(1_000), 1, None, true);
        assert!(!rack.is_valid());
        let later = 2_400_000_000_u32;
        rack.on_delivered(&original(later, 200), Instant(u64::from(later) + 700), 1, None, false);
        assert_eq!(rack.rtt_us(), 700);
        assert!(rack.is_sent_after(later - 1, SeqNumber(300)));
    }

    #[test]
    fn the_window_is_zero_until_reordering_is_seen_and_then_a_quarter_of_the_round_trip() {
        let mut rack = Rack::default();
        let window =
            |rack: &Rack, in_recovery, sacked| rack.reordering_window(40 * MS, 50 * MS, in_recovery, sacked);
        assert_eq!(window(&rack, false, 2), 10 * MS);
        assert_eq!(window(&rack, false, DUP_THRESHOLD), 0);
        assert_eq!(window(&rack, true, 0), 0);
        rack.set(REORDERING_SEEN, true);
        assert_eq!(window(&rack, true, 9), 10 * MS);
        assert_eq!(
            rack.reordering_window(40 * MS, 5 * MS, true, 9),
            5 * MS,
            "never more than the round trip"
        );
    }

    #[test]
    fn the_window_grows_once_a_round_trip_and_shrinks_after_sixteen_recoveries() {
        let mut rack = Rack::default();
        rack.set(REORDERING_SEEN, true);
        let window = |rack: &Rack| rack.reordering_window(4 * MS, 100 * MS, true, 9);
        rack.on_duplicate(SeqNumber(10), SeqNumber(100));
        assert_eq!(window(&rack), 2 * MS);
        rack.on_duplicate(SeqNumber(99), SeqNumber(150));
        assert_eq!(window(&rack), 2 * MS, "same round trip");
        rack.on_duplicate(SeqNumber(100), SeqNumber(200));
        assert_eq!(window(&rack), 3 * MS);
        for _ in 0..15 {
            rack.on_recovery_end();
            assert_eq!(window(&rack), 3 * MS);
        }
        rack.on_recovery_end();
        assert_eq!(window(&rack), MS);
        for round in 2..400 {
            rack.on_duplicate(SeqNumber(round * 100), SeqNumber(round * 100 + 100));
        }
        assert_eq!(window(&rack), 100 * MS, "bounded by the round trip, without an overflow");
    }

    #[test]
    fn a_probe_waits_two_round_trips_but_not_beyond_the_timeout() {
        let rto = 900 * MS;
        assert_eq!(Rack::probe_timeout(None, false, 200 * MS, rto), rto);
        assert_eq!(Rack::probe_timeout(None, false, 200 * MS, 3_000 * MS), 1_000 * MS);
        assert_eq!(Rack::probe_timeout(Some(50 * MS), false, 200 * MS, rto), 102 * MS);
        assert_eq!(Rack::probe_timeout(Some(50 * MS), true, 200 * MS, rto), 300 * MS);
        assert_eq!(Rack::probe_timeout(Some(u32::MAX), true, u32::MAX, rto), rto);
    }

    #[test]
    fn a_probe_that_repaired_a_loss_is_told_from_one_that_did_not() {
        let end = SeqNumber(1_000);
        let probing = |is_retransmission| {
            let mut rack = Rack::default();
            rack.on_probe(end, is_retransmission);
            rack
        };
        let mut rack = probing(false);
        assert!(!rack.on_probe_ack(end - 1, None, false) && rack.is_probing());
        assert!(!rack.on_probe_ack(end, None, false) && !rack.is_probing());
        // Case 1: both the original and the probe arrived.
        let mut rack = probing(true);
        assert!(!rack.on_probe_ack(end, Some((end - 100, end)), false) && !rack.is_probing());
        // Case 3: the same, from a peer that sends no D-SACK.
        let mut rack = probing(true);
        assert!(!rack.on_probe_ack(end, None, false) && rack.is_probing());
        assert!(!rack.on_probe_ack(end, None, true) && !rack.is_probing());
        // Case 2: only the probe arrived.
        let mut rack = probing(true);
        assert!(!rack.on_probe_ack(end, None, false));
        assert!(rack.on_probe_ack(end + 1, None, false) && !rack.is_probing());
        assert!(!rack.on_probe_ack(end + 1, None, false), "told once");
        let mut rack = probing(true);
        rack.forget_probe();
        assert!(!rack.on_probe_ack(end + 1, None, false));
    }

    proptest! {
        /// The digest of an acknowledgement does what RFC 8985 §6.2 says of each segment in ascending order.
        #[test]
        fn a_digest_does_what_each_segment_would(
            rounds in prop::collection::vec(prop::collection::btree_map(0_u32..60, (0_u32..1_000, any::<bool>()), 1..8), 1..12)
        ) {
            let mut rack = Rack::default();
            let (mut newest, mut highest, mut is_reordered) = (None::<(u32, u32)>, None::<u32>, false);
            let base = u32::MAX - 30;
            for (round, segments) in rounds.iter().enumerate() {
                let now = Instant(1_000 + round as u64 * 500);
                let mut digest = DeliveredSegments::default();
                for (&end, &(sent_at, is_again)) in segments {
                    if highest.is_none_or(|highest| end > highest) {
                        highest = Some(end);
                    } else if highest.is_some_and(|highest| end < highest) && !is_again {
                        is_reordered = true;
                    }
                    newest = newest.max(Some((sent_at, end)));
                    let seq = SeqNumber(base) + end;
                    let this = Some((sent_at, seq));
                    let key = |of: Option<(u32, SeqNumber)>| of.map(|(at, seq)| (at, seq.since(SeqNumber(base))));
                    let place = if is_again { &mut digest.retransmitted } else { &mut digest.original };
                    if key(this) > key(*place) {
                        *place = this;
                    }
                    if !is_again {
                        digest.lowest_original_end.get_or_insert(seq);
                    }
                    digest.highest_end = Some(seq);
                }
                rack.on_delivered(&digest, now, 0, None, false);
                prop_assert_eq!(rack.is_reordering_seen(), is_reordered);
                let (sent_at, end) = newest.unwrap();
                prop_assert_eq!((rack.sent_at, rack.end_seq), (sent_at, SeqNumber(base) + end));
            }
        }
    }
}
