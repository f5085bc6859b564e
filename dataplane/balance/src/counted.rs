//! Which backend has the least to do, for its weight?
//!
//! For whoever counts the connections of each backend: a worker, of its own ones. Backends are positions, as in tables; a
//! closure tells how many connections one has, or `None` where it can't take one now.

use crate::slot;

/// Draws of [`random_two`] before all backends are looked at.
const DRAWS: u64 = 4;

/// Whether `left` connections on a weight are fewer, in proportion, than `right` ones on another.
#[inline(always)]
const fn is_lighter(left: u32, left_weight: u32, right: u32, right_weight: u32) -> bool {
    (left as u64) * (right_weight as u64) < (right as u64) * (left_weight as u64)
}

/// The backend with the fewest connections for its weight; among equals `scheduled`, whose turn it is, else the next one
/// behind it. Weights of zero take none. Looks at every weight once.
pub fn least_connections(
    weights: &[u32],
    scheduled: u16,
    mut connections: impl FnMut(u16) -> Option<u32>,
) -> Option<u16> {
    let mut best: Option<(u16, u32, u32)> = None;
    let count = weights.len().min(usize::from(u16::MAX));
    let first = if usize::from(scheduled) < count { usize::from(scheduled) } else { 0 };
    for position in (first..count).chain(0..first) {
        let Some(&weight) = weights.get(position).filter(|weight| **weight > 0) else { continue };
        let Some(load) = connections(position as u16) else { continue };
        if best.is_none_or(|(_, least, of)| is_lighter(load, weight, least, of)) {
            best = Some((position as u16, load, weight));
        }
    }
    best.map(|(position, ..)| position)
}

/// Of two backends drawn from a table (so by weight) the one with fewer connections for its weight. Where no backend that
/// was drawn can take one, all are looked at. (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.)
///
/// `random` should be new and even for each call.
pub fn random_two(
    table: &[u16],
    weights: &[u32],
    random: u64,
    mut connections: impl FnMut(u16) -> Option<u32>,
) -> Option<u16> {
    let mut best: Option<(u16, u32, u32)> = None;
    let mut drawn = 0;
    for draw in 0..DRAWS {
        let Some(&position) = table.get(slot(scatter(random.wrapping_add(draw)), table.len())) else { break };
        let Some(&weight) = weights.get(usize::from(position)) else { continue };
        let Some(load) = connections(position) else { continue };
        drawn += 1;
        if best.is_none_or(|(_, least, of)| is_lighter(load, weight, least, of)) {
            best = Some((position, load, weight));
        }
        if drawn == 2 {
            break;
        }
    }
    let anyone = || least_connections(weights, slot(scatter(random), weights.len()) as u16, connections);
    best.map(|(position, ..)| position).or_else(anyone)
}

/// How often each of `backends` positions stands in a table: its weight, as far as the table tells.
pub fn weights_of(table: &[u16], backends: usize) -> Vec<u32> {
    let mut weights = vec![0; backends];
    for position in table {
        if let Some(weight) = weights.get_mut(usize::from(*position)) {
            *weight += 1;
        }
    }
    weights
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014): numbers that
/// follow each other become unrelated ones.
#[inline]
pub const fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round_robin::schedule;
    use proptest::prelude::*;

    #[test]
    fn the_least_loaded_for_its_weight_is_taken() {
        let choose = |loads: &[u32], weights: &[u32], scheduled| {
            least_connections(weights, scheduled, |position| Some(loads[usize::from(position)]))
        };
        assert_eq!(choose(&[3, 2, 4], &[1, 1, 1], 0), Some(1));
        assert_eq!(choose(&[3, 2, 4], &[3, 1, 1], 2), Some(0));
        // equals: whose turn it is, then who follows
        assert_eq!(choose(&[5, 5, 5], &[1, 1, 1], 2), Some(2));
        assert_eq!(choose(&[5, 5, 5], &[1, 1, 0], 2), Some(0));
        assert_eq!(choose(&[0, 0, 0], &[1, 9, 1], 0), Some(0));
        assert_eq!(choose(&[0, 0, 0], &[0, 0, 0], 0), None);
        assert_eq!(choose(&[], &[], 3), None);
        assert_eq!(choose(&[9, 1], &[1, 1], u16::MAX), Some(1));
        let heavy = choose(&[u32::MAX, u32::MAX - 1], &[u32::MAX, u32::MAX], 0);
        assert_eq!(heavy, Some(1));
    }

    #[test]
    fn who_can_take_none_is_passed_over() {
        let loads = [None, Some(7), None, Some(3)];
        let load = |position: u16| loads[usize::from(position)];
        assert_eq!(least_connections(&[1; 4], 0, load), Some(3));
        assert_eq!(least_connections(&[1; 4], 0, |_| None), None);
        for random in 0..1_000 {
            let chosen = random_two(&[0, 1, 2, 3], &[1; 4], random, load);
            assert!(matches!(chosen, Some(1 | 3)), "{chosen:?}");
            assert_eq!(random_two(&[0, 1, 2, 3], &[1; 4], random, |_| None), None);
        }
        assert_eq!(random_two(&[], &[], 1, |_| Some(0)), None);
    }

    /// Connections that stay: shares follow the weights, as closely as each algorithm promises.
    #[test]
    fn shares_follow_the_weights() {
        let weights = [10u32, 20, 30, 40];
        let table = schedule(&weights, 100);
        let weights = weights_of(&table, 4);
        assert_eq!(weights, [1, 2, 3, 4]);
        let mut least = [0u32; 4];
        let mut two = [0u32; 4];
        for step in 0..10_000usize {
            let turn = table[step % table.len()];
            let chosen = least_connections(&weights, turn, |at| Some(least[usize::from(at)])).unwrap();
            least[usize::from(chosen)] += 1;
            let chosen = random_two(&table, &weights, step as u64, |at| Some(two[usize::from(at)])).unwrap();
            two[usize::from(chosen)] += 1;
        }
        for (position, share) in [1_000u32, 2_000, 3_000, 4_000].into_iter().enumerate() {
            assert!(least[position].abs_diff(share) <= 1, "{least:?}");
            assert!(two[position].abs_diff(share) <= 30, "{two:?}");
        }
    }

    #[test]
    fn two_choices_level_what_one_leaves_uneven() {
        let table: Vec<u16> = (0..100).collect();
        let weights = weights_of(&table, 100);
        let mut loads = [0u32; 100];
        for step in 0..10_000u64 {
            let chosen = random_two(&table, &weights, step, |at| Some(loads[usize::from(at)])).unwrap();
            loads[usize::from(chosen)] += 1;
        }
        // one choice leaves about 100 ± 30; theory says log log 100 for two
        assert!(loads.iter().all(|load| (93..=105).contains(load)), "{loads:?}");
    }

    proptest! {
        #[test]
        fn no_other_backend_is_lighter(
            backends in proptest::collection::vec((0u32..50, proptest::option::of(0u32..50)), 0..20),
            scheduled in 0u16..25,
        ) {
            let weights: Vec<u32> = backends.iter().map(|(weight, _)| *weight).collect();
            let chosen = least_connections(&weights, scheduled, |at| backends[usize::from(at)].1);
            let candidates = || backends.iter().filter_map(|(weight, load)| Some((*weight, (*load)?)));
            let candidates = || candidates().filter(|(weight, _)| *weight > 0);
            match chosen {
                None => prop_assert_eq!(candidates().count(), 0),
                Some(at) => {
                    let (weight, load) = backends[usize::from(at)];
                    let load = load.unwrap();
                    prop_assert!(weight > 0);
                    prop_assert!(!candidates().any(|(w, l)| is_lighter(l, w, load, weight)));
                }
            }
        }
    }
}
