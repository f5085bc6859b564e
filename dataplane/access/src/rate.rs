//! May another flow begin now? Token buckets as one word each: the time at which the bucket will be full again.
//!
//! This is the generic cell rate algorithm (ITU-T I.371, annex A): a token moves that time on by the interval between tokens, and
//! a bucket that would be full later than its burst allows has none. As the word is atomic and the clock one for all workers,
//! a bucket is one bucket whichever worker asks: in any time `t` at most `burst + t / interval` tokens are given, and a worker
//! whose clock is late by some milliseconds gives fewer, never more.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often a token is tried for again that another worker was quicker to take.
const ATTEMPTS: usize = 64;

/// Rate and burst in the units of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Between two tokens, nanoseconds.
    interval_ns: u64,
    /// What a bucket may be behind of full when a token is asked for: all tokens of the burst but one.
    tolerance_ns: u64,
}

/// Most tokens per second: one each nanosecond is too many to count, one each ten is not.
pub const MAX_PER_SECOND: u32 = 100_000_000;
/// Most tokens per second of a source.
pub const MAX_PER_SECOND_OF_SOURCE: u32 = 100_000;
/// Most seconds that a bucket may take to fill.
pub const MAX_FILL_SECONDS: u64 = 3_600;

impl Limit {
    /// So many tokens per second, and at most `burst` at once; both at least 1.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval_ns = 1_000_000_000 / u64::from(per_second.clamp(1, MAX_PER_SECOND));
        Self { interval_ns, tolerance_ns: interval_ns * u64::from(burst.max(1) - 1) }
    }

    fn microseconds(self) -> (u64, u64) {
        let interval = self.interval_ns.div_ceil(1_000);
        (interval, self.tolerance_ns.div_ceil(1_000))
    }
}

/// A bucket.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Takes a token, or says that there is none. The clock must not be at 0.
    #[inline]
    pub fn take(&self, limit: Limit, now_ns: u64) -> bool {
        let mut full_at = self.0.load(Relaxed);
        for _ in 0..ATTEMPTS {
            let from = full_at.max(now_ns);
            if from - now_ns > limit.tolerance_ns {
                return false;
            }
            match self.0.compare_exchange_weak(full_at, from + limit.interval_ns, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(other) => full_at = other,
            }
        }
        false
    }
}

/// Words of a line.
const LINE: usize = 8;
/// Bits of a word that are a time, in microseconds: it wraps after 203 days.
const TIME_BITS: u32 = 44;
const TIME: u64 = (1 << TIME_BITS) - 1;

/// Buckets of sources, of a fixed number: a word holds 20 bits of the source's hash and the time at which its bucket is full.
///
/// A bucket that is full is the same as none, so its word is free. Where all eight of a line are in use, the fullest gives way: that
/// source gets a full bucket early. Two workers that meet a source in the same instant may each begin one: so a source gets a
/// burst more at most.
#[derive(Debug)]
pub struct Buckets {
    lines: Box<[Line]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; LINE]);

impl Buckets {
    /// Room for about `sources` at once: rounded up to a power of two, at least 8.
    pub fn new(sources: usize) -> Self {
        let lines = sources.max(LINE).next_power_of_two() / LINE;
        Self { lines: (0..lines).map(|_| Line::default()).collect() }
    }

    /// Sources that there is room for at most.
    pub fn capacity(&self) -> usize {
        self.lines.len() * LINE
    }

    /// Bytes of a table for so many sources.
    pub fn bytes(sources: usize) -> usize {
        sources.max(LINE).next_power_of_two() * size_of::<u64>()
    }

    /// Takes a token of the source of this hash.
    #[inline]
    pub fn take(&self, hash: u64, limit: Limit, now_ns: u64) -> bool {
        let (interval, tolerance) = limit.microseconds();
        let now = (now_ns / 1_000) & TIME;
        let tag = hash & !TIME;
        let Some(line) = self.lines.get(hash as usize & (self.lines.len() - 1)) else { return true };
        // no bucket is ever further behind than this: what seems so has been full for a hundred days
        let most = tolerance + interval;
        let behind = |word: u64| {
            let behind = word.wrapping_sub(now) & TIME;
            if behind > most.max(MAX_FILL_SECONDS * 1_000_000) { 0 } else { behind }
        };
        for _ in 0..ATTEMPTS {
            let mut fullest = None;
            let mut of_source = None;
            for word in &line.0 {
                let value = word.load(Relaxed);
                let behind = behind(value & TIME);
                if value & !TIME == tag {
                    of_source = Some((word, value, behind));
                    break;
                }
                if fullest.is_none_or(|(_, _, least)| behind < least) {
                    fullest = Some((word, value, behind));
                }
            }
            let (word, value, behind) = match (of_source, fullest) {
                (Some(found), _) => found,
                (None, Some((word, value, _))) => (word, value, 0),
                (None, None) => return true,
            };
            if behind > tolerance {
                return false;
            }
            let next = tag | (now + behind + interval) & TIME;
            if word.compare_exchange(value, next, Relaxed, Relaxed).is_ok() {
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Seed;

    const SECOND: u64 = 1_000_000_000;

    fn count(mut take: impl FnMut(u64) -> bool, from: u64, to: u64, step: u64) -> u64 {
        (from..to).step_by(step as usize).map(|now| u64::from(take(now))).sum()
    }

    #[test]
    fn a_burst_then_the_rate() {
        for (per_second, burst) in [(1, 1), (10, 1), (1_000, 2_000), (3, 7), (50_000, 100)] {
            let limit = Limit::new(per_second, burst);
            let bucket = Bucket::default();
            let at_once = (0..10_000).filter(|_| bucket.take(limit, SECOND)).count();
            assert_eq!(at_once, burst as usize, "{per_second}/s");
            let got = count(|now| bucket.take(limit, now), SECOND, 11 * SECOND, 10_000);
            let expected = 10 * u64::from(per_second);
            assert!(got.abs_diff(expected) <= 1 + expected / 1_000, "{per_second}/s: {got}");
            // what was not used is kept up to the burst
            let at_once = (0..10_000).filter(|_| bucket.take(limit, 9_000 * SECOND)).count();
            assert_eq!(at_once, burst as usize, "{per_second}/s, later");
        }
    }

    #[test]
    fn each_source_has_its_own() {
        let buckets = Buckets::new(1 << 12);
        let limit = Limit::new(10, 5);
        let seed = Seed::fixed([1, 2]);
        for source in 0..400 {
            let hash = seed.hash(9, source);
            let at_once = (0..20).filter(|_| buckets.take(hash, limit, SECOND)).count();
            assert_eq!(at_once, 5, "source {source}");
        }
        let hash = seed.hash(9, 77);
        assert_eq!(count(|now| buckets.take(hash, limit, now), SECOND, 4 * SECOND + 1, 1_000_000), 30);
    }

    #[test]
    fn a_crowded_line_forgets_the_fullest() {
        let buckets = Buckets::new(8);
        let limit = Limit::new(1, 100);
        let heavy = 1 << 60;
        assert_eq!((0..200).filter(|_| buckets.take(heavy, limit, SECOND)).count(), 100);
        // a thousand others with a flow each
        for other in 2..1_000u64 {
            assert!(buckets.take(other << TIME_BITS, limit, SECOND));
        }
        assert!(!buckets.take(heavy, limit, SECOND), "the one that spent most is remembered");
    }

    #[test]
    fn the_clock_may_wrap() {
        let buckets = Buckets::new(8);
        let limit = Limit::new(1, 3);
        let wrap_ns = (1u64 << TIME_BITS) * 1_000;
        let before = wrap_ns - SECOND;
        assert_eq!((0..9).filter(|_| buckets.take(5 << TIME_BITS, limit, before)).count(), 3);
        assert!(!buckets.take(5 << TIME_BITS, limit, wrap_ns - 1_000_000));
        assert_eq!(
            count(
                |now| buckets.take(5 << TIME_BITS, limit, now),
                before,
                before + 10 * SECOND + 1,
                1_000_000
            ),
            10
        );
        assert_eq!((0..9).filter(|_| buckets.take(5 << TIME_BITS, limit, before + wrap_ns / 2)).count(), 3);
    }

    /// A random load on one bucket by workers whose clocks differ: never more than burst + rate × time.
    #[test]
    fn workers_together_keep_the_rate() {
        for seed in 0..50u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let (per_second, burst) = (1 + next(5_000) as u32, 1 + next(3_000) as u32);
            let limit = Limit::new(per_second, burst);
            let (bucket, buckets) = (Bucket::default(), Buckets::new(64));
            let (mut given, mut given_to_source) = (Vec::new(), Vec::new());
            let mut now = SECOND;
            for _ in 0..50_000 {
                now += next(200_000);
                // clocks are late by up to two milliseconds
                let seen = now - next(2_000_000);
                if bucket.take(limit, seen) {
                    given.push(now);
                }
                if buckets.take(7, limit, seen) {
                    given_to_source.push(now);
                }
            }
            for given in [given, given_to_source] {
                for (from, first) in given.iter().enumerate().step_by(97) {
                    for (to, last) in given.iter().enumerate().skip(from).step_by(89) {
                        let time = (last - first + 2_000_000) as f64 / 1e9;
                        let most = f64::from(burst) + time * f64::from(per_second) + 1.0;
                        let got = (to - from + 1) as f64;
                        assert!(got <= most * 1.001, "seed {seed}: {got} in {time} s, {most} are allowed");
                    }
                }
            }
        }
    }

    #[test]
    fn threads_share_a_bucket() {
        let limit = Limit::new(1, 10_000);
        let bucket = Bucket::default();
        let taken = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mine = (0..20_000).filter(|_| bucket.take(limit, SECOND)).count() as u64;
                    taken.fetch_add(mine, Relaxed);
                });
            }
        });
        assert_eq!(taken.load(Relaxed), 10_000);
    }
}
