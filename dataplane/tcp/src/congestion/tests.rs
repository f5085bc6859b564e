//! Both algorithms over simulated round trips: curves, reductions, and what undoes them.

use super::*;
use proptest::prelude::*;

const MSS: u16 = 1_000;
const SEGMENT: u32 = MSS as u32;

/// A sender whose every segment is acknowledged one round trip later, without loss, as long as the window lasts.
struct Path {
    congestion: Congestion,
    now: Instant,
    una: SeqNumber,
    rtt_us: u32,
}

impl Path {
    fn new(algorithm: Algorithm, rtt_us: u32) -> Self {
        let congestion = Congestion::new(algorithm, MSS, 10);
        Self {
            congestion,
            now: Instant(u64::from(u32::MAX) - 2_000_000),
            una: SeqNumber(u32::MAX - 5_000),
            rtt_us,
        }
    }

    fn ack(&mut self, bytes: u32, in_flight: u32, is_window_limited: bool) {
        self.una += bytes;
        self.congestion.on_ack(&AckSample {
            now: self.now,
            acked_bytes: bytes,
            in_flight_before: in_flight,
            rtt_us: Some(self.rtt_us),
            srtt_us: self.rtt_us,
            snd_una: self.una,
            snd_nxt: self.una + in_flight,
            is_window_limited,
        });
    }

    /// A window's worth of acknowledgements, spread over one round trip.
    fn round(&mut self) {
        let segments = self.congestion.window() / SEGMENT;
        let start = self.now;
        for segment in 1..=segments {
            self.now = start.after(u64::from(self.rtt_us) * u64::from(segment) / u64::from(segments));
            self.ack(SEGMENT, self.congestion.window(), true);
        }
    }

    /// Slow start up to so many segments, then a loss that is repaired at once.
    fn lose_at(&mut self, segments: u32) {
        while self.congestion.window() < segments * SEGMENT {
            self.ack(SEGMENT, self.congestion.window(), true);
        }
        self.lose();
    }

    fn lose(&mut self) {
        let window = self.congestion.window();
        self.congestion.enter_recovery(window, self.una + window, self.now);
        self.una += window;
        self.congestion.leave_recovery();
    }

    fn segments(&self) -> u32 {
        self.congestion.window() / SEGMENT
    }
}

#[test]
fn the_initial_window_follows_the_segment_size() {
    for (mss, segments, window) in [
        (1_460, 10, 14_600),
        (536, 10, 5_360),
        (8_960, 10, 17_920),
        (2_000, 10, 14_600),
        (1_460, 4, 5_840),
        (1_460, 0, 1_460),
        (0, 10, 10),
    ] {
        let mut congestion = Congestion::new(Algorithm::Cubic, mss, segments);
        assert_eq!(congestion.window(), window, "{mss} {segments}");
        congestion.set_mss(1_000);
        assert_eq!(
            congestion.window(),
            1_000 * u32::from(segments.max(1)),
            "nothing was sent by the old size"
        );
    }
    let mut congestion = Congestion::new(Algorithm::Cubic, 1_460, 10);
    congestion.on_handshake_loss();
    assert_eq!(congestion.window(), 1_460);
}

#[test]
fn slow_start_doubles_per_round_trip() {
    for algorithm in [Algorithm::Cubic, Algorithm::NewReno] {
        let mut path = Path::new(algorithm, 50_000);
        for doubling in 0..8 {
            assert_eq!(path.segments(), 10 << doubling);
            assert!(path.congestion.is_in_slow_start());
            path.round();
        }
    }
}

#[test]
fn a_window_that_is_not_used_does_not_grow() {
    for algorithm in [Algorithm::Cubic, Algorithm::NewReno] {
        let mut path = Path::new(algorithm, 50_000);
        for _ in 0..100 {
            path.ack(SEGMENT, 5 * SEGMENT, false);
        }
        assert_eq!(path.segments(), 10);
        path.ack(SEGMENT, 6 * SEGMENT, false);
        assert_eq!(path.segments(), 11, "slow start grows while more than half is in use");
        path.lose_at(100);
        let window = path.congestion.window();
        for _ in 0..100 {
            path.now = path.now.after(100_000);
            path.ack(SEGMENT, window - SEGMENT, false);
        }
        assert_eq!(path.congestion.window(), window);
    }
}

#[test]
fn new_reno_halves_and_grows_by_a_segment_per_round_trip() {
    let mut path = Path::new(Algorithm::NewReno, 50_000);
    path.lose_at(40);
    for rounds in 0..30 {
        assert_eq!(path.segments(), 20 + rounds);
        path.round();
    }
    // The flight, not the window, is what counts (RFC 5681 §3.1 (4)).
    assert_eq!(path.congestion.enter_recovery(10 * SEGMENT, path.una + 10 * SEGMENT, path.now), 5 * SEGMENT);
}

/// W_cubic(t) of RFC 9438 §4.2, in segments, by the book.
fn curve(seconds: f64, plateau: f64, window: f64) -> f64 {
    let origin = ((plateau - window) / 0.4).cbrt();
    0.4 * (seconds - origin).powi(3) + plateau
}

#[test]
fn cubic_follows_its_formula_below_and_beyond_the_plateau() {
    for (rtt_us, plateau) in [(100_000, 1_000_u32), (20_000, 2_000), (300_000, 500)] {
        let mut path = Path::new(Algorithm::Cubic, rtt_us);
        path.lose_at(plateau);
        assert_eq!(path.segments(), plateau * 7 / 10);
        let start = path.now;
        let window = f64::from(path.segments());
        while path.now.since(start) < 14_000_000 {
            path.round();
            let seconds = path.now.since(start) as f64 / 1e6;
            let rtt = f64::from(rtt_us) / 1e6;
            // The window is between the curve now and where it is a round trip later, within a segment or two.
            let low = curve(seconds - rtt, f64::from(plateau), window);
            let high = curve(seconds + rtt, f64::from(plateau), window);
            let got = f64::from(path.segments());
            assert!(low - 2.0 <= got && got <= high + 1.0, "{rtt_us} {seconds}: {low} {got} {high}");
        }
        assert!(path.segments() > plateau);
    }
}

#[test]
fn cubic_is_no_slower_than_reno_where_round_trips_are_short() {
    // 5 ms, 20 segments: the curve takes seconds, W_est 0.53 segments per round trip, then one (RFC 9438 §4.3).
    let mut path = Path::new(Algorithm::Cubic, 5_000);
    path.lose_at(20);
    let before = path.segments();
    assert_eq!(before, 14);
    let mut rounds = 0;
    while path.segments() < 20 {
        path.round();
        rounds += 1;
    }
    let expected = 6.0 * 17.0 / 9.0;
    assert!((f64::from(rounds) - expected).abs() <= 2.0, "{rounds} for {expected}");
    for _ in 0..20 {
        path.round();
    }
    assert!(path.segments().abs_diff(40) <= 1, "{}", path.segments());
}

#[test]
fn an_early_loss_releases_bandwidth() {
    let mut path = Path::new(Algorithm::Cubic, 100_000);
    path.lose_at(1_000);
    assert_eq!(path.congestion.plateau, 1_000 * SEGMENT);
    path.lose();
    assert_eq!(
        path.congestion.plateau,
        700 * SEGMENT * 85 / 100,
        "below the old plateau: less (RFC 9438 §4.7)"
    );
    assert_eq!(path.segments(), 490);
    while path.segments() < 700 {
        path.round();
    }
    path.lose();
    assert_eq!(path.congestion.plateau / SEGMENT, 700, "beyond it: all of it");
}

#[test]
fn time_without_demand_does_not_move_the_curve() {
    let mut busy = Path::new(Algorithm::Cubic, 100_000);
    busy.lose_at(1_000);
    for _ in 0..20 {
        busy.round();
    }
    let mut idle = Path { congestion: busy.congestion, ..busy };
    idle.ack(SEGMENT, SEGMENT, false);
    idle.now = idle.now.after(3_600_000_000);
    for _ in 0..10 {
        busy.round();
        idle.round();
        assert!(busy.segments().abs_diff(idle.segments()) <= 1, "{} {}", busy.segments(), idle.segments());
    }
}

#[test]
fn an_epoch_older_than_its_clock_keeps_its_window() {
    let mut path = Path::new(Algorithm::Cubic, 600_000_000);
    path.lose_at(20);
    let mut last = path.segments();
    for _ in 0..200 {
        path.now = path.now.after(300_000_000);
        path.ack(SEGMENT, path.congestion.window(), true);
        assert!(path.segments() >= last);
        last = path.segments();
    }
    assert!(last > 20);
}

#[test]
fn a_timeout_starts_over_from_one_segment() {
    for (algorithm, kept) in [(Algorithm::Cubic, 70), (Algorithm::NewReno, 50)] {
        let mut path = Path::new(algorithm, 100_000);
        while path.segments() < 100 {
            path.ack(SEGMENT, path.congestion.window(), true);
        }
        let nxt = path.una + 100 * SEGMENT;
        path.congestion.on_timeout(100 * SEGMENT, nxt, path.now);
        assert_eq!((path.segments(), path.congestion.slow_start_threshold()), (1, kept * SEGMENT));
        path.congestion.on_timeout(100 * SEGMENT, nxt, path.now);
        assert_eq!(
            path.congestion.slow_start_threshold(),
            kept * SEGMENT,
            "the same data: the threshold stays"
        );
        // A jump of the acknowledgement is worth one segment while old data is repaired (RFC 3465 §2.3).
        path.ack(50 * SEGMENT, SEGMENT, true);
        assert_eq!(path.segments(), 2);
        path.ack(50 * SEGMENT, 2 * SEGMENT, true);
        assert!(path.segments() > 3);
        while path.congestion.is_in_slow_start() {
            path.round();
        }
        assert_eq!(path.segments(), kept);
        // CUBIC: no plateau to return to, so the convex part at once (RFC 9438 §4.8).
        let start = path.now;
        for _ in 0..50 {
            path.round();
        }
        let seconds = path.now.since(start) as f64 / 1e6;
        let expected = match algorithm {
            Algorithm::Cubic => 70.0 + (0.4 * seconds.powi(3)).max(50.0 * 9.0 / 17.0),
            Algorithm::NewReno => 100.0,
        };
        assert!(
            (f64::from(path.segments()) - expected).abs() < 0.1 * expected,
            "{} {expected}",
            path.segments()
        );
    }
}

#[test]
fn a_timeout_after_progress_lowers_the_threshold_again() {
    let mut path = Path::new(Algorithm::NewReno, 100_000);
    let nxt = path.una + 10 * SEGMENT;
    path.congestion.on_timeout(10 * SEGMENT, nxt, path.now);
    assert_eq!(path.congestion.slow_start_threshold(), 5 * SEGMENT);
    path.una = nxt - 10 * SEGMENT;
    for _ in 0..3 {
        path.ack(SEGMENT, 3 * SEGMENT, true);
    }
    path.congestion.on_timeout(7 * SEGMENT, nxt, path.now);
    assert_eq!(path.congestion.slow_start_threshold(), 2 * SEGMENT);
}

#[test]
fn a_repaired_timeout_does_not_shield_the_next_window() {
    // One acknowledgement covers everything, so that none is counted as growth.
    let mut path = Path::new(Algorithm::NewReno, 100_000);
    let nxt = path.una + 10 * SEGMENT;
    path.congestion.on_timeout(10 * SEGMENT, nxt, path.now);
    path.congestion.leave_recovery();
    assert_eq!((path.segments(), path.congestion.slow_start_threshold()), (1, 5 * SEGMENT));
    path.congestion.on_timeout(SEGMENT, nxt + SEGMENT, path.now);
    assert_eq!(path.congestion.slow_start_threshold(), 2 * SEGMENT);
}

#[test]
fn growing_delay_ends_the_first_slow_start_without_loss() {
    let mut path = Path::new(Algorithm::Cubic, 40_000);
    let mut rounds = 0;
    // The queue of the bottleneck begins at 80 segments, of 0.5 ms each.
    while path.congestion.is_in_slow_start() && rounds < 20 {
        path.rtt_us = 40_000 + path.segments().saturating_sub(80) * 500;
        path.round();
        rounds += 1;
    }
    assert!(!path.congestion.is_in_slow_start());
    assert!((80..640).contains(&path.segments()), "{}", path.segments());
    assert_eq!(path.congestion.slow_start_threshold(), path.congestion.window());
    assert!(!path.congestion.can_undo());
    // Without a loss to remember, the curve starts on its plateau, beside a Reno of full pace (RFC 9438 §4.10).
    let before = path.segments();
    path.round();
    path.round();
    assert!((before + 1..=before + 4).contains(&path.segments()), "{before} {}", path.segments());
}

#[test]
fn recovery_ends_at_the_threshold() {
    let mut path = Path::new(Algorithm::Cubic, 50_000);
    while path.segments() < 20 {
        path.ack(SEGMENT, path.congestion.window(), true);
    }
    let flight = 20 * SEGMENT;
    assert_eq!(path.congestion.enter_recovery(flight, path.una + flight, path.now), 14 * SEGMENT);
    let mut in_flight = 19 * SEGMENT;
    let mut sent = 0;
    for _ in 0..19 {
        in_flight -= SEGMENT;
        let allowance = path.congestion.on_recovery_ack(SEGMENT, in_flight, false);
        assert_eq!(path.congestion.window(), in_flight + allowance);
        if allowance >= SEGMENT {
            path.congestion.on_transmit(SEGMENT);
            in_flight += SEGMENT;
            sent += 1;
        }
    }
    assert_eq!((sent, in_flight), (14, 14 * SEGMENT), "the retransmission and 13 new ones");
    path.ack(SEGMENT, in_flight, true);
    assert!(path.congestion.is_recovering(), "acknowledgements alone do not end it");
    path.congestion.leave_recovery();
    assert_eq!(path.congestion.window(), 14 * SEGMENT);
    assert!(!path.congestion.is_in_slow_start());
}

#[test]
fn one_window_is_reduced_once() {
    let mut path = Path::new(Algorithm::Cubic, 50_000);
    path.lose_at(100);
    path.round();
    let (window, una) = (path.congestion.window(), path.una);
    let nxt = una + window;
    assert!(path.congestion.on_explicit_congestion(window, una, nxt, path.now));
    assert_eq!(path.congestion.window(), window / 100 * 85, "a mark in avoidance (RFC 8511)");
    assert!(!path.congestion.on_explicit_congestion(window, una + SEGMENT, nxt + SEGMENT, path.now));
    let threshold = path.congestion.slow_start_threshold();
    assert_eq!(path.congestion.enter_recovery(window, nxt, path.now), threshold, "loss beside the mark");
    assert!(!path.congestion.undo(), "a mark is never spurious");
    path.congestion.on_timeout(window, nxt, path.now);
    assert_eq!(path.congestion.slow_start_threshold(), threshold);
    path.una = nxt;
    path.ack(SEGMENT, SEGMENT, true);
    path.congestion.on_timeout(SEGMENT, nxt + 2 * SEGMENT, path.now);
    assert!(path.congestion.slow_start_threshold() < threshold, "the next window is another one");
}

#[test]
fn a_mark_in_slow_start_takes_as_much_as_a_loss() {
    for (algorithm, kept) in [(Algorithm::Cubic, 7), (Algorithm::NewReno, 5)] {
        let mut path = Path::new(algorithm, 50_000);
        let nxt = path.una + 10 * SEGMENT;
        assert!(path.congestion.on_explicit_congestion(10 * SEGMENT, path.una, nxt, path.now));
        assert_eq!(path.segments(), kept);
        path.una = nxt;
        for mark in 1..20 {
            path.ack(SEGMENT, SEGMENT, false);
            let una = path.una;
            assert!(path.congestion.on_explicit_congestion(SEGMENT, una, una + 1, path.now), "{mark}");
            path.una += 1;
        }
        assert_eq!(path.segments(), 1, "down to one segment (RFC 9438 §4.6)");
        assert_eq!(path.congestion.slow_start_threshold(), 2 * SEGMENT);
    }
}

#[test]
fn a_spurious_reduction_leaves_no_trace() {
    let mut path = Path::new(Algorithm::Cubic, 100_000);
    path.lose_at(1_000);
    for _ in 0..30 {
        path.round();
    }
    let mut untouched = Path { congestion: path.congestion, ..path };
    let window = path.congestion.window();
    path.congestion.enter_recovery(window, path.una + window, path.now);
    path.congestion.on_recovery_ack(SEGMENT, window - SEGMENT, false);
    assert!(path.congestion.undo());
    assert!(!path.congestion.is_recovering());
    for _ in 0..60 {
        assert!(untouched.segments().abs_diff(path.segments()) <= 1);
        path.round();
        untouched.round();
    }
    assert!(!path.congestion.undo(), "once");
}

#[test]
fn a_spurious_timeout_in_the_first_slow_start_goes_on_with_it() {
    for algorithm in [Algorithm::Cubic, Algorithm::NewReno] {
        let mut path = Path::new(algorithm, 100_000);
        path.round();
        path.congestion.on_timeout(20 * SEGMENT, path.una + 20 * SEGMENT, path.now);
        path.ack(SEGMENT, 20 * SEGMENT, true);
        assert_eq!(path.segments(), 2);
        assert!(path.congestion.undo());
        assert_eq!((path.segments(), path.congestion.slow_start_threshold()), (20, u32::MAX));
        path.round();
        assert_eq!(path.segments(), 40);
    }
}

#[test]
fn an_undo_after_the_recovery_restores_the_window() {
    let mut path = Path::new(Algorithm::NewReno, 100_000);
    path.lose_at(100);
    assert_eq!(path.segments(), 50);
    path.round();
    assert!(path.congestion.undo());
    assert_eq!(path.segments(), 100);
    assert_eq!(path.congestion.slow_start_threshold(), u32::MAX);
}

#[test]
fn silence_halves_the_window_per_timeout_down_to_the_initial_one() {
    let mut path = Path::new(Algorithm::Cubic, 100_000);
    path.lose_at(200);
    for (idle_us, segments) in [(300_000, 140), (301_000, 70), (700_000, 35), (1_300_000, 10), (u64::MAX, 10)]
    {
        let mut congestion = path.congestion;
        congestion.on_idle(idle_us, 300_000);
        assert_eq!(congestion.window() / SEGMENT, segments, "{idle_us}");
        assert_eq!(congestion.slow_start_threshold(), 140 * SEGMENT);
    }
    path.congestion.on_timeout(SEGMENT, path.una + SEGMENT, path.now);
    path.congestion.on_idle(u64::MAX, 300_000);
    assert_eq!(path.segments(), 1, "never up");
}

#[test]
fn smaller_segments_shrink_the_window_larger_ones_do_not_widen_it() {
    let mut path = Path::new(Algorithm::Cubic, 100_000);
    path.round();
    path.congestion.set_mss(500);
    assert_eq!((path.congestion.window(), path.congestion.mss()), (10_000, 500));
    path.congestion.set_mss(1_000);
    assert_eq!(path.congestion.window(), 10_000);
}

#[derive(Clone, Debug)]
enum Event {
    Ack { bytes: u32, in_flight: u32, rtt_us: Option<u32>, is_window_limited: bool, after_us: u64 },
    Lose { flight: u32 },
    RecoveryAck { delivered: u32, in_flight: u32, is_safe: bool, sent: u32 },
    Leave,
    Timeout { flight: u32 },
    Mark { flight: u32 },
    Undo,
    Idle { idle_us: u64, rto_us: u32 },
    SegmentSize(u16),
}

fn event() -> impl Strategy<Value = Event> {
    let bytes = prop_oneof![0_u32..100_000, any::<u32>()];
    prop_oneof![
        6 => (bytes.clone(), bytes.clone(), any::<Option<u32>>(), any::<bool>(), 0_u64..5_000_000_000).prop_map(
            |(bytes, in_flight, rtt_us, is_window_limited, after_us)| Event::Ack {
                bytes, in_flight, rtt_us, is_window_limited, after_us
            }
        ),
        1 => bytes.clone().prop_map(|flight| Event::Lose { flight }),
        3 => (bytes.clone(), bytes.clone(), any::<bool>(), bytes.clone()).prop_map(
            |(delivered, in_flight, is_safe, sent)| Event::RecoveryAck { delivered, in_flight, is_safe, sent }
        ),
        1 => Just(Event::Leave),
        1 => bytes.clone().prop_map(|flight| Event::Timeout { flight }),
        1 => bytes.prop_map(|flight| Event::Mark { flight }),
        1 => Just(Event::Undo),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(idle_us, rto_us)| Event::Idle { idle_us, rto_us }),
        1 => any::<u16>().prop_map(Event::SegmentSize),
    ]
}

proptest! {
    /// Whatever the peer and the path do, in whatever order: no overflow, and always something may be sent.
    #[test]
    fn any_events_leave_a_window(is_cubic: bool, mss: u16, events in prop::collection::vec(event(), 1..300)) {
        let algorithm = if is_cubic { Algorithm::Cubic } else { Algorithm::NewReno };
        let mut congestion = Congestion::new(algorithm, mss, 10);
        let (mut now, mut una) = (Instant(0), SeqNumber(0));
        for event in events {
            match event {
                Event::Ack { bytes, in_flight, rtt_us, is_window_limited, after_us } => {
                    now = now.after(after_us);
                    una += bytes;
                    let before = congestion.window();
                    congestion.on_ack(&AckSample {
                        now, acked_bytes: bytes, in_flight_before: in_flight, rtt_us, srtt_us: rtt_us.unwrap_or(0),
                        snd_una: una, snd_nxt: una + in_flight, is_window_limited,
                    });
                    prop_assert!(congestion.window() >= before);
                }
                Event::Lose { flight } => {
                    let threshold = congestion.enter_recovery(flight, una + flight, now);
                    prop_assert_eq!(threshold, congestion.slow_start_threshold());
                }
                Event::RecoveryAck { delivered, in_flight, is_safe, sent } => {
                    congestion.on_recovery_ack(delivered, in_flight, is_safe);
                    congestion.on_transmit(sent);
                }
                Event::Leave => congestion.leave_recovery(),
                Event::Timeout { flight } => {
                    congestion.on_timeout(flight, una + flight, now);
                    prop_assert_eq!(congestion.window(), u32::from(congestion.mss()));
                }
                Event::Mark { flight } => {
                    congestion.on_explicit_congestion(flight, una, una + flight, now);
                }
                Event::Undo => {
                    congestion.undo();
                }
                Event::Idle { idle_us, rto_us } => congestion.on_idle(idle_us, rto_us),
                Event::SegmentSize(mss) => congestion.set_mss(mss),
            }
            prop_assert!(congestion.window() >= 1 && congestion.window() <= LARGEST_WINDOW);
            prop_assert_eq!(congestion.algorithm(), algorithm);
        }
    }
}
