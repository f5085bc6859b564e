//! Where in the table is the flow of this hash? A bucketed index of 32-bit words, one cache line a look-up.
//!
//! A bucket is a line: a count of words that overflowed to the next buckets, then 15 words of tag (7 bits), direction
//! (1 bit) and slot + 1 (24 bits); 0 is empty. A word that finds its home bucket full goes to one of the next
//! [`REACH`] - 1 buckets, and the home bucket counts it, so that a look-up leaves the line only where something did.
//! The index is rebuilt from the records at start and is never trusted across processes.

#![forbid(unsafe_code)]

use std::ops::DerefMut;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Words of a bucket.
const WIDTH: usize = 15;
/// Of a mask of a line's words: the count of overflows is none.
const WORDS: u32 = ((1 << WIDTH) - 1) << 1;
/// Words that a vector register holds.
const LANES: usize = 8;
/// Buckets that a word may be in: its home and the seven after it.
const REACH: usize = 8;
/// Words per bucket that [`buckets_for`] plans with; the rest is air against overflow.
const FILL: usize = 9;
/// Most slots: 24 bits hold slot + 1.
pub const MAX_SLOTS: usize = (1 << 24) - 2;

/// Which of a flow's two tuples a word stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    Forward,
    /// From the backend.
    Reverse,
}

/// One cache line of the index.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(64))]
pub struct Bucket {
    overflowed: u32,
    words: [u32; WIDTH],
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    /// A bucket without words.
    pub const EMPTY: Self = Self { overflowed: 0, words: [0; WIDTH] };

    /// Which of the line's words do: one bit each, without a branch (a few vector instructions).
    #[inline(always)]
    fn which(&self, does: impl Fn(u32) -> bool) -> u32 {
        let line: &[u32; WIDTH + 1] = zerocopy::transmute_ref!(self);
        let bits = line.iter().enumerate().map(|(at, word)| u32::from(does(*word)) << at);
        bits.fold(0, |mask, bit| mask | bit) & WORDS
    }

    /// The word of the lowest bit of a mask, which is not 0.
    #[inline(always)]
    fn word_mut(&mut self, mask: u32) -> Option<&mut u32> {
        self.words.get_mut((mask.trailing_zeros() as usize).wrapping_sub(1))
    }
}

/// Buckets for a table of `slots` records, each with up to two words.
pub fn buckets_for(slots: usize) -> usize {
    (slots * 2).div_ceil(FILL).max(REACH)
}

/// A found word: the slot that it names and the direction; compare the record before believing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Slot of the record.
    pub slot: u32,
    /// Which tuple matched by hash.
    pub direction: Direction,
}

/// The index over storage `B`.
#[derive(Debug)]
pub struct Index<B> {
    buckets: B,
}

#[inline]
fn tag_of(hash: u32) -> u32 {
    // the home bucket takes the high bits, so the tag takes the low ones; never 0, so that it matches no empty word
    (hash & 0x7f).max(1)
}

#[inline]
fn candidate_of(word: u32) -> Candidate {
    let direction = if word & (1 << 24) == 0 { Direction::Forward } else { Direction::Reverse };
    Candidate { slot: (word & 0x00ff_ffff).wrapping_sub(1), direction }
}

#[inline]
fn word_of(hash: u32, slot: u32, direction: Direction) -> u32 {
    let bit = match direction {
        Direction::Forward => 0,
        Direction::Reverse => 1 << 24,
    };
    (tag_of(hash) << 25) | bit | (slot + 1)
}

impl<B: DerefMut<Target = [Bucket]>> Index<B> {
    /// Takes the storage over and empties it. At least [`REACH`] buckets ([`buckets_for`] gives as many).
    pub fn new(mut buckets: B) -> Self {
        buckets.fill(Bucket::EMPTY);
        Self { buckets }
    }

    #[inline]
    fn home(&self, hash: u32) -> usize {
        // multiply-shift onto the buckets (Lemire's fast range)
        ((u64::from(hash) * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline]
    fn step(&self, home: usize, step: usize) -> usize {
        let at = home + step;
        if at >= self.buckets.len() { at - self.buckets.len() } else { at }
    }

    /// Asks for the home bucket's line.
    #[inline]
    pub fn prefetch(&self, hash: u32) {
        hugepages::prefetch::read_slice_at(&self.buckets, self.home(hash));
    }

    /// A word with the hash's tag in its home bucket: what to prefetch next. 0 is none.
    #[inline(always)]
    pub fn guess(&self, hash: u32) -> u32 {
        let tag = tag_of(hash);
        let Some(bucket) = self.buckets.get(self.home(hash)) else { return 0 };
        // the count of overflows is far below any tag, so the whole line can be looked at; the greatest word of several,
        // lane by lane, is a few vector instructions without a branch
        let line: &[u32; WIDTH + 1] = zerocopy::transmute_ref!(bucket);
        let (halves, _) = line.as_chunks::<LANES>();
        let mut best = [0; LANES];
        for half in halves {
            for (best, word) in best.iter_mut().zip(half) {
                let kept = if word >> 25 == tag { *word } else { 0 };
                *best = kept.max(*best);
            }
        }
        best.into_iter().fold(0, u32::max)
    }

    /// What a word of [`Index::guess`] names.
    #[inline]
    pub fn candidate(word: u32) -> Option<Candidate> {
        if word == 0 { None } else { Some(candidate_of(word)) }
    }

    /// The first candidate that `accept` takes.
    #[inline]
    pub fn find(&self, hash: u32, mut accept: impl FnMut(Candidate) -> bool) -> Option<Candidate> {
        let tag = tag_of(hash);
        let home = self.home(hash);
        let overflowed = self.buckets.get(home).map_or(0, |bucket| bucket.overflowed);
        let reach = if overflowed == 0 { 1 } else { REACH };
        for step in 0..reach {
            let Some(bucket) = self.buckets.get(self.step(home, step)) else { continue };
            let mut same = bucket.which(|word| word >> 25 == tag);
            while same != 0 {
                let at = (same.trailing_zeros() as usize).wrapping_sub(1);
                if let Some(candidate) = bucket.words.get(at).map(|word| candidate_of(*word))
                    && accept(candidate)
                {
                    return Some(candidate);
                }
                same &= same - 1;
            }
        }
        None
    }

    /// Adds a word; `false` where the home bucket and the ones in reach are full.
    pub fn insert(&mut self, hash: u32, slot: u32, direction: Direction) -> bool {
        let home = self.home(hash);
        let word = word_of(hash, slot, direction);
        for step in 0..REACH {
            let at = self.step(home, step);
            let Some(bucket) = self.buckets.get_mut(at) else { continue };
            if let Some(empty) = bucket.word_mut(bucket.which(|word| word == 0)) {
                *empty = word;
                if step > 0
                    && let Some(home) = self.buckets.get_mut(home)
                {
                    home.overflowed += 1;
                }
                return true;
            }
        }
        false
    }

    /// Removes a word; `false` where there is none such.
    pub fn remove(&mut self, hash: u32, slot: u32, direction: Direction) -> bool {
        let home = self.home(hash);
        let word = word_of(hash, slot, direction);
        let overflowed = self.buckets.get(home).map_or(0, |bucket| bucket.overflowed);
        let reach = if overflowed == 0 { 1 } else { REACH };
        for step in 0..reach {
            let at = self.step(home, step);
            let Some(bucket) = self.buckets.get_mut(at) else { continue };
            if let Some(found) = bucket.word_mut(bucket.which(|found| found == word)) {
                *found = 0;
                if step > 0
                    && let Some(home) = self.buckets.get_mut(home)
                {
                    home.overflowed = home.overflowed.saturating_sub(1);
                }
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u32 {
        let x = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32) as u32
    }

    #[test]
    fn finds_all_that_went_in_at_full_planned_load() {
        let slots = 20_000;
        let mut index = Index::new(vec![Bucket::EMPTY; buckets_for(slots)]);
        for slot in 0..slots as u32 {
            assert!(index.insert(hash(u64::from(slot)), slot, Direction::Forward), "forward {slot}");
            assert!(index.insert(hash(u64::from(slot) << 32), slot, Direction::Reverse), "reverse {slot}");
        }
        for slot in 0..slots as u32 {
            let found = index.find(hash(u64::from(slot)), |candidate| candidate.slot == slot);
            assert_eq!(found.map(|found| found.direction), Some(Direction::Forward));
            let found = index.find(hash(u64::from(slot) << 32), |candidate| {
                candidate.slot == slot && candidate.direction == Direction::Reverse
            });
            assert!(found.is_some());
        }
        for slot in 0..slots as u32 {
            assert!(index.remove(hash(u64::from(slot)), slot, Direction::Forward));
            assert!(!index.remove(hash(u64::from(slot)), slot, Direction::Forward));
            assert!(index.remove(hash(u64::from(slot) << 32), slot, Direction::Reverse));
        }
        assert!(index.buckets.iter().all(|b| b.overflowed == 0 && b.words == [0; WIDTH]));
    }

    #[test]
    fn one_bucket_overflows_into_its_neighbours_and_then_refuses() {
        let mut index = Index::new(vec![Bucket::EMPTY; 64]);
        let same = 0xffff_ff05;
        let mut inserted = 0;
        while index.insert(same, inserted, Direction::Forward) {
            inserted += 1;
        }
        assert_eq!(inserted as usize, WIDTH * REACH);
        for slot in 0..inserted {
            assert!(index.find(same, |candidate| candidate.slot == slot).is_some());
        }
        for slot in (0..inserted).rev() {
            assert!(index.remove(same, slot, Direction::Forward));
        }
        assert!(index.find(same, |_| true).is_none());
    }

    #[test]
    fn the_guess_is_in_the_home_bucket() {
        let mut index = Index::new(vec![Bucket::EMPTY; 8]);
        assert_eq!(index.guess(hash(1)), 0);
        assert!(index.insert(hash(1), 77, Direction::Reverse));
        let candidate = Index::<Vec<Bucket>>::candidate(index.guess(hash(1))).unwrap();
        assert_eq!(candidate, Candidate { slot: 77, direction: Direction::Reverse });
    }
}
