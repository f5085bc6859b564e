//! How many flows has a source? Shared by all workers: a word for each source, of a fixed number.
//!
//! A source has one of the sixteen words of two lines that its hash names: 40 bits tell it apart, 24 count. Workers change a word by
//! compare-and-swap, so what one took another may give back. Where all sixteen belong to others, the source is not counted:
//! it is let in, and what it gives back changes nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words of a line.
const LINE: usize = 8;
/// Bits of a word that count.
const COUNT_BITS: u32 = 24;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
/// How often a change is tried again that others were quicker than.
const ATTEMPTS: usize = 64;

/// Counts of flows by source.
#[derive(Debug)]
pub struct Counts {
    lines: Box<[Line]>,
}

/// A cache line, so that a look-up touches two at most.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; LINE]);

impl Counts {
    /// Room for about `sources` sources at once: rounded up to a power of two, at least 16.
    pub fn new(sources: usize) -> Self {
        let lines = sources.max(2 * LINE).next_power_of_two() / LINE;
        Self { lines: (0..lines).map(|_| Line::default()).collect() }
    }

    /// Sources that there is room for at most.
    pub fn capacity(&self) -> usize {
        self.lines.len() * LINE
    }

    /// Bytes of a table for so many sources.
    pub fn bytes(sources: usize) -> usize {
        sources.max(2 * LINE).next_power_of_two() * size_of::<u64>()
    }

    /// Both lines of a hash, and its bits as they stand in a word.
    #[inline]
    fn places(&self, hash: u64) -> (impl Iterator<Item = &AtomicU64> + Clone, u64) {
        let mask = self.lines.len() - 1;
        let first = hash as usize & mask;
        // the bits that tell apart are the upper 40; the second line comes from all
        let second = (hash ^ hash >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 20 & mask;
        let second = if second == first { first ^ 1 } else { second };
        let line = |at: usize| self.lines.get(at).into_iter().flat_map(|line| &line.0);
        (line(first).chain(line(second)), hash & !COUNT)
    }

    /// Flows of a source.
    #[inline]
    pub fn of(&self, hash: u64) -> u32 {
        let (words, tag) = self.places(hash);
        let count = |word: &AtomicU64| {
            let word = word.load(Relaxed);
            if word & !COUNT == tag { word & COUNT } else { 0 }
        };
        // two workers that met a source at once may have counted it in two words
        words.map(count).sum::<u64>().min(u64::from(u32::MAX)) as u32
    }

    /// One more; false where there is no room to count it.
    pub fn add(&self, hash: u64) -> bool {
        for _ in 0..ATTEMPTS {
            let (words, tag) = self.places(hash);
            let mut free = None;
            let mut taken = None;
            for word in words {
                let value = word.load(Relaxed);
                if value & COUNT == 0 {
                    free = free.or(Some((word, value)));
                } else if value & !COUNT == tag && value & COUNT < COUNT {
                    taken = Some((word, value));
                    break;
                }
            }
            let Some((word, value)) = taken.or(free) else { return false };
            let next = if value & COUNT == 0 { tag | 1 } else { value + 1 };
            if word.compare_exchange(value, next, Relaxed, Relaxed).is_ok() {
                return true;
            }
        }
        false
    }

    /// One fewer; nothing where it was not counted.
    pub fn remove(&self, hash: u64) {
        for _ in 0..ATTEMPTS {
            let (mut words, tag) = self.places(hash);
            let of_source = words.find_map(|word| {
                let value = word.load(Relaxed);
                (value & !COUNT == tag && value & COUNT > 0).then_some((word, value))
            });
            let Some((word, value)) = of_source else { return };
            let next = if value & COUNT == 1 { 0 } else { value - 1 };
            if word.compare_exchange(value, next, Relaxed, Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Flows of all sources, and sources; for tests and people.
    pub fn total(&self) -> (u64, usize) {
        let words = self.lines.iter().flat_map(|line| &line.0).map(|word| word.load(Relaxed) & COUNT);
        words.fold((0, 0), |(flows, sources), count| (flows + count, sources + usize::from(count > 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Seed;

    #[test]
    fn what_was_added_is_counted_until_it_is_removed() {
        let counts = Counts::new(4_096);
        let seed = Seed::fixed([5, 6]);
        let of = |source: u32| seed.hash(1, source.into());
        for round in 1..=3 {
            for source in 0..1_000 {
                assert!(counts.add(of(source)));
                assert_eq!(counts.of(of(source)), round);
            }
        }
        assert_eq!(counts.total(), (3_000, 1_000));
        for source in 0..1_000 {
            counts.remove(of(source));
            assert_eq!(counts.of(of(source)), 2);
        }
        for source in 0..1_000 {
            (0..2).for_each(|_| counts.remove(of(source)));
            // one too many changes nothing
            counts.remove(of(source));
        }
        assert_eq!(counts.total(), (0, 0));
    }

    #[test]
    fn a_full_table_lets_in_and_counts_nobody_wrongly() {
        let counts = Counts::new(16);
        let seed = Seed::fixed([1, 2]);
        let hashes: Vec<u64> = (0..100).map(|source| seed.hash(0, source)).collect();
        let counted: Vec<bool> = hashes.iter().map(|hash| counts.add(*hash)).collect();
        assert_eq!(counted.iter().filter(|counted| **counted).count(), 16);
        for (hash, counted) in hashes.iter().zip(&counted) {
            assert_eq!(counts.of(*hash), u32::from(*counted));
        }
        hashes.iter().for_each(|hash| counts.remove(*hash));
        assert_eq!(counts.total(), (0, 0));
        assert!(counts.add(hashes[99]));
    }

    #[test]
    fn workers_that_meet_lose_nothing() {
        let counts = Counts::new(1_024);
        let seed = Seed::fixed([3, 4]);
        std::thread::scope(|scope| {
            for worker in 0..4u32 {
                let counts = &counts;
                scope.spawn(move || {
                    for round in 0..20_000u32 {
                        let hash = seed.hash(0, u128::from((round ^ worker) % 16));
                        assert!(counts.add(hash));
                        if round % 3 != 0 {
                            counts.remove(hash);
                        }
                    }
                });
            }
        });
        assert_eq!(counts.total().0, 4 * 20_000u64.div_ceil(3));
        for _ in 0..40_000 {
            (0..16).for_each(|source| counts.remove(seed.hash(0, source)));
        }
        assert_eq!(counts.total(), (0, 0));
    }
}
