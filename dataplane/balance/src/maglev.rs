//! Which backend owns which slot, so that all nodes agree and a change moves few slots?
//!
//! Maglev hashing (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4): each
//! backend lists all slots in an order of its own and the backends take turns to claim their next free one. Weights make
//! turns rarer or more frequent, in proportion. Permutation and order of turns depend on the backends' keys alone, not
//! on where they stand in the configuration.

use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::{MAX_BACKENDS, NONE};

/// Slots of a table by default: the paper's small table (§3.4), over 100 slots for each of up to 655 backends.
pub const DEFAULT_SLOTS: u32 = 65_537;

/// The largest table: 16 MiB. The paper's large one has 655,373 slots.
pub const MAX_SLOTS: u32 = 8_388_593;

/// Seeds of the two hashes that make a permutation. Changing one moves every flow of every pool.
const OFFSET_SEED: u64 = 0x6f66_6673_6574;
const SKIP_SEED: u64 = 0x736b_6970;

/// What identifies a backend on all nodes: its name, or a number such as a hash of its address.
pub trait Key {
    /// 64 bits that stand for the backend, equal on every node.
    fn identity(&self) -> u64;
}

impl Key for u64 {
    fn identity(&self) -> u64 {
        *self
    }
}

impl Key for &str {
    fn identity(&self) -> u64 {
        xxh3_64(self.as_bytes())
    }
}

impl Key for String {
    fn identity(&self) -> u64 {
        xxh3_64(self.as_bytes())
    }
}

/// Why there is no table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BuildError {
    /// A permutation visits every slot only if the number of slots is prime.
    #[error("{slots} slots are not a prime number; {next} is the next one")]
    NotPrime {
        /// What was asked for.
        slots: u32,
        /// The smallest prime above it.
        next: u32,
    },
    /// The table would be too small or too large.
    #[error("{0} slots are out of range; choose a prime from 2 to {MAX_SLOTS}")]
    Slots(u32),
    /// Slots hold 16-bit indices.
    #[error("{0} backends are too many; a table holds at most {MAX_BACKENDS}")]
    TooManyBackends(usize),
}

/// Builder of Maglev tables.
#[derive(Debug)]
pub struct Table;

impl Table {
    /// Gives each of `slots` slots to a backend, in proportion to the weights; a slot holds the backend's position in
    /// `backends`. Equal weights differ by at most one slot. A weight of zero gets none; without any weight all slots
    /// are [`NONE`]. `slots` must be prime.
    pub fn build<K: Key>(backends: &[(K, u32)], slots: u32) -> Result<Vec<u16>, BuildError> {
        if !(2..=MAX_SLOTS).contains(&slots) {
            return Err(BuildError::Slots(slots));
        }
        if !is_prime(slots) {
            return Err(BuildError::NotPrime { slots, next: next_prime(slots) });
        }
        if backends.len() > MAX_BACKENDS {
            return Err(BuildError::TooManyBackends(backends.len()));
        }
        let mut claimants: Vec<(u64, Claimant)> = Vec::with_capacity(backends.len());
        for (index, (key, weight)) in (0..NONE).zip(backends) {
            if *weight > 0 {
                let identity = key.identity();
                let bytes = identity.to_le_bytes();
                let offset = xxh3_64_with_seed(&bytes, OFFSET_SEED) % u64::from(slots);
                let skip = xxh3_64_with_seed(&bytes, SKIP_SEED) % u64::from(slots - 1) + 1;
                let claimant = Claimant { index, weight: *weight, next: offset as u32, skip: skip as u32 };
                claimants.push((identity, claimant));
            }
        }
        // The turn within a round must not depend on the order in the configuration.
        claimants.sort_by_key(|(identity, claimant)| (*identity, claimant.index));
        Ok(fill(claimants.into_iter().map(|(_, claimant)| claimant).collect(), slots))
    }
}

/// A backend that claims slots.
#[derive(Clone, Debug)]
struct Claimant {
    index: u16,
    weight: u32,
    /// The slot that it tries next.
    next: u32,
    /// How far its permutation goes from one slot to the following.
    skip: u32,
}

/// Lets claimants take turns until every slot is taken.
///
/// A claimant's turn number k (from 0) comes at time (k + ½) · w_max / w: for equal weights this is the paper's
/// algorithm, for others it apportions slots as Sainte-Laguë apportions seats, without favour for light or heavy ones. A
/// weight too small for a slot takes its first turn at once: only a weight of zero means none.
fn fill(mut claimants: Vec<Claimant>, slots: u32) -> Vec<u16> {
    let mut table =
        Claims { owners: vec![NONE; slots as usize], taken: vec![0; slots.div_ceil(64) as usize], slots };
    let Some(heaviest) = claimants.iter().map(|claimant| claimant.weight).max() else { return table.owners };
    let mut left = slots;
    if claimants.iter().all(|claimant| claimant.weight == heaviest) {
        while left > 0 {
            for claimant in claimants.iter_mut().take(left as usize) {
                table.claim(claimant);
                left -= 1;
            }
        }
        return table.owners;
    }
    for turn in turns(&claimants, heaviest, slots).iter().take(slots as usize) {
        if let Some(claimant) = claimants.get_mut((turn & u64::from(u16::MAX)) as usize) {
            table.claim(claimant);
        }
    }
    table.owners
}

/// At least `slots` turns in the order of their time, each with the claimant's place in its lower 16 bits.
fn turns(claimants: &[Claimant], heaviest: u32, slots: u32) -> Vec<u64> {
    let total: u64 = claimants.iter().map(|claimant| u64::from(claimant.weight)).sum();
    // By this time each claimant had its share and half a turn more, so that rounding down leaves enough for all slots.
    // It is below 2^32, as the heaviest weight is at most the total.
    let enough = u128::from(slots) + claimants.len() as u128;
    let end = (((enough * u128::from(heaviest)) << 7) / u128::from(total) + 1) as u64;
    let mut turns = Vec::with_capacity(slots as usize + 2 * claimants.len());
    for (place, claimant) in (0u64..).zip(claimants) {
        let light = u64::from(claimant.weight) * u64::from(slots) < total;
        if light {
            turns.push(place);
        }
        let times = Times::of(claimant.weight, heaviest).skip(usize::from(light));
        turns.extend(times.take_while(|time| *time <= end).map(|time| time << 16 | place));
    }
    in_order(&turns, end, slots)
}

/// When a claimant's turns come: ((2k + 1) · heaviest · 2^6) / weight, rounded down, without a division for each.
///
/// Halves of turns, at most 2^24, times a weight below 2^32, leave six bits for fractions.
struct Times {
    time: u64,
    rest: u64,
    step: u64,
    step_rest: u64,
    weight: u64,
}

impl Times {
    fn of(weight: u32, heaviest: u32) -> Self {
        let (half, weight) = (u64::from(heaviest) << 6, u64::from(weight));
        let turn = 2 * half;
        Self {
            time: half / weight,
            rest: half % weight,
            step: turn / weight,
            step_rest: turn % weight,
            weight,
        }
    }
}

impl Iterator for Times {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let now = self.time;
        self.time += self.step;
        self.rest += self.step_rest;
        if self.rest >= self.weight {
            self.rest -= self.weight;
            self.time += 1;
        }
        Some(now)
    }
}

/// Sorts turns of times up to `end`: about one to a bucket, as times are spread evenly, and then within the buckets.
fn in_order(turns: &[u64], end: u64, slots: u32) -> Vec<u64> {
    let shift = (end / u64::from(slots)).checked_ilog2().unwrap_or(0);
    let bucket = |turn: u64| (turn >> 16 >> shift) as usize;
    let mut starts = vec![0u32; bucket(end << 16) + 2];
    for turn in turns {
        if let Some(count) = starts.get_mut(bucket(*turn) + 1) {
            *count += 1;
        }
    }
    let mut sum = 0;
    for start in &mut starts {
        sum += *start;
        *start = sum;
    }
    let mut sorted = vec![0; turns.len()];
    for turn in turns {
        if let Some(next) = starts.get_mut(bucket(*turn)) {
            if let Some(place) = sorted.get_mut(*next as usize) {
                *place = *turn;
            }
            *next += 1;
        }
    }
    // each start has moved to its bucket's end
    let mut first = 0;
    for last in starts {
        if last - first > 1
            && let Some(bucket) = sorted.get_mut(first as usize..last as usize)
        {
            bucket.sort_unstable();
        }
        first = last;
    }
    sorted
}

/// The table in the making.
struct Claims {
    owners: Vec<u16>,
    /// One bit per slot, so that probing stays within the first-level cache.
    taken: Vec<u64>,
    slots: u32,
}

impl Claims {
    /// Gives the claimant the next slot of its permutation that is free. There must be a free one.
    #[inline]
    fn claim(&mut self, claimant: &mut Claimant) {
        // A permutation modulo a prime visits every slot once in `slots` steps.
        for _ in 0..self.slots {
            let slot = claimant.next;
            let next = slot + claimant.skip;
            claimant.next = if next >= self.slots { next - self.slots } else { next };
            let bit = 1 << (slot % 64);
            if let Some(word) = self.taken.get_mut(slot as usize / 64)
                && *word & bit == 0
            {
                *word |= bit;
                if let Some(owner) = self.owners.get_mut(slot as usize) {
                    *owner = claimant.index;
                }
                return;
            }
        }
    }
}

/// Whether `number` is prime.
pub const fn is_prime(number: u32) -> bool {
    if number < 4 {
        return number >= 2;
    }
    if number.is_multiple_of(2) {
        return false;
    }
    let mut divisor = 3;
    while divisor as u64 * divisor as u64 <= number as u64 {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 2;
    }
    true
}

/// The smallest prime above `number`; beyond the last 32-bit prime, that one.
pub const fn next_prime(number: u32) -> u32 {
    const LAST: u32 = 4_294_967_291;
    let mut candidate = number;
    while candidate < LAST {
        candidate += 1;
        if is_prime(candidate) {
            return candidate;
        }
    }
    LAST
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(table: &[u16], backends: usize) -> Vec<u32> {
        let mut counts = vec![0; backends];
        for owner in table {
            counts[usize::from(*owner)] += 1;
        }
        counts
    }

    fn named(weights: impl IntoIterator<Item = u32>) -> Vec<(String, u32)> {
        weights.into_iter().enumerate().map(|(index, weight)| (format!("app-{index}"), weight)).collect()
    }

    /// Table 1 and 2 of the paper: B0 (offset 3, skip 4), B1 (0, 2), B2 (3, 1) over seven slots; then B1 is removed.
    #[test]
    fn the_example_of_the_paper() {
        let claimant = |index, next, skip| Claimant { index, weight: 1, next, skip };
        let all = vec![claimant(0, 3, 4), claimant(1, 0, 2), claimant(2, 3, 1)];
        assert_eq!(fill(all.clone(), 7), [1, 0, 1, 0, 2, 2, 0]);
        assert_eq!(fill(vec![all[0].clone(), all[2].clone()], 7), [0, 0, 0, 0, 2, 2, 2]);
    }

    #[test]
    fn equal_weights_differ_by_one_slot() {
        for backends in [1, 2, 3, 100, 655, 1000] {
            let table = Table::build(&named(vec![7; backends]), DEFAULT_SLOTS).unwrap();
            let counts = counts(&table, backends);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{backends}: {least} to {most}");
        }
    }

    #[test]
    fn weighted_shares_are_within_one_per_cent() {
        for weights in [
            vec![1, 2, 3],
            vec![100, 1, 50, 100],
            (1..=100).collect(),
            vec![1, 255],
            vec![u32::MAX, u32::MAX / 3],
        ] {
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            let table = Table::build(&named(weights.clone()), DEFAULT_SLOTS).unwrap();
            for (count, weight) in counts(&table, weights.len()).iter().zip(&weights) {
                let expected = f64::from(DEFAULT_SLOTS) * f64::from(*weight) / total;
                let off = (f64::from(*count) - expected).abs();
                // One slot is what no table can avoid.
                assert!(off <= expected * 0.01 || off <= 1.0, "{weights:?}: {count} for {expected}");
            }
        }
    }

    #[test]
    fn no_weight_gets_no_slot() {
        let table = Table::build(&[("a", 0), ("b", 5), ("c", 0)], 13).unwrap();
        assert_eq!(table, [1; 13]);
        assert_eq!(Table::build(&[("a", 0)], 13).unwrap(), [NONE; 13]);
        assert_eq!(Table::build::<&str>(&[], 13).unwrap(), [NONE; 13]);
    }

    #[test]
    fn the_least_weight_gets_a_slot() {
        let table = Table::build(&[("a", 1), ("b", 1_000_000), ("c", 0)], DEFAULT_SLOTS).unwrap();
        assert_eq!(counts(&table, 3), [1, DEFAULT_SLOTS - 1, 0]);
    }

    #[test]
    fn sizes_that_make_no_table_are_named() {
        let error = Table::build(&[("a", 1)], 65_536).unwrap_err();
        assert_eq!(error.to_string(), "65536 slots are not a prime number; 65537 is the next one");
        for slots in [0, 1, u32::MAX] {
            assert_eq!(Table::build(&[("a", 1)], slots), Err(BuildError::Slots(slots)));
        }
        assert!(is_prime(MAX_SLOTS) && is_prime(DEFAULT_SLOTS));
        let many = vec![(1u64, 1); MAX_BACKENDS + 1];
        assert_eq!(Table::build(&many, 13), Err(BuildError::TooManyBackends(MAX_BACKENDS + 1)));
        assert!(Table::build(&many[1..], 13).is_ok());
    }

    #[test]
    fn primes() {
        let primes: Vec<u32> = (0..40).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37]);
        assert_eq!((next_prime(0), next_prime(13), next_prime(u32::MAX)), (2, 17, 4_294_967_291));
        assert!(!is_prime(u32::MAX));
    }

    #[test]
    fn the_order_in_the_configuration_does_not_matter() {
        let backends = named((0..50).map(|index| 1 + index % 7));
        let mut reversed = backends.clone();
        reversed.reverse();
        let table = Table::build(&backends, 4_099).unwrap();
        let mirrored: Vec<u16> =
            Table::build(&reversed, 4_099).unwrap().iter().map(|owner| 49 - owner).collect();
        assert_eq!(table, mirrored);
    }

    /// A table that was built once and must never change, or nodes of different versions would disagree.
    #[test]
    fn tables_are_the_same_in_every_version() {
        let table = Table::build(&[("a", 1), ("b", 2), ("c", 3)], 13).unwrap();
        assert_eq!(table, GOLDEN);
        let numbers =
            Table::build(&[(xxh3_64(b"a"), 1), (xxh3_64(b"b"), 2), (xxh3_64(b"c"), 3)], 13).unwrap();
        assert_eq!(numbers, table);
    }

    const GOLDEN: [u16; 13] = [0, 2, 2, 1, 0, 2, 2, 1, 2, 1, 2, 1, 2];

    /// How many slots change hands among those that stay.
    fn moved(backends: usize, removed: usize) -> usize {
        let before = named(vec![1; backends]);
        let mut after = before.clone();
        after[removed].1 = 0;
        let (before, after) =
            (Table::build(&before, DEFAULT_SLOTS).unwrap(), Table::build(&after, DEFAULT_SLOTS).unwrap());
        before.iter().zip(&after).filter(|(old, new)| old != new && usize::from(**old) != removed).count()
    }

    #[test]
    fn removing_one_of_a_thousand_moves_less_than_one_per_cent_of_the_others() {
        for removed in [0, 1, 500, 999] {
            let moved = moved(1000, removed);
            assert!(moved < DEFAULT_SLOTS as usize / 100, "{removed}: {moved}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn removal_moves_few_slots_of_others(backends in 2usize..300, removed in any::<prop::sample::Index>()) {
            let moved = moved(backends, removed.index(backends));
            // The paper's figure 12 shows about 1 to 2 % at this size for few backends.
            prop_assert!(moved < DEFAULT_SLOTS as usize / 30, "{} of {}", moved, backends);
        }

        #[test]
        fn every_slot_is_taken_in_proportion(weights in prop::collection::vec(0u32..1000, 1..40)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let table = Table::build(&named(weights.clone()), 4_099).unwrap();
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (count, weight) in counts(&table, weights.len()).iter().zip(&weights) {
                let expected = 4_099.0 * f64::from(*weight) / total;
                prop_assert!((f64::from(*count) - expected).abs() <= 1.5, "{} for {}", count, expected);
            }
        }
    }
}
