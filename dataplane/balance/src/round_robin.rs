//! In which order do backends take turns?
//!
//! The smooth weighted round-robin of nginx: with weights 5, 1, 1 the order is a a b a c a a, not a a a a a b c.

use crate::NONE;

/// The longest schedule that is useful: shares of 100 backends stay within 1 %.
pub const DEFAULT_MAX_LEN: usize = 16_384;

/// One period of the schedule: positions in `weights`, each as often as its weight says after all are divided by their
/// greatest common divisor. Where that is longer than `max_len`, weights are scaled down to fit by largest remainder; a
/// weight that is too small beside the others for a turn in `max_len` still gets one, where there is room for all.
///
/// Empty where all weights are zero. Backends beyond the first 65,535 get no turn.
pub fn schedule(weights: &[u32], max_len: usize) -> Vec<u16> {
    let weights = weights.get(..usize::from(NONE)).unwrap_or(weights);
    let turns = scale(weights, max_len as u64);
    let total: i64 = turns.iter().map(|turns| *turns as i64).sum();
    let mut taking: Vec<Taker> = (0..NONE)
        .zip(&turns)
        .filter(|(_, turns)| **turns > 0)
        .map(|(index, turns)| Taker { index, turns: *turns as i64, credit: 0 })
        .collect();
    let mut order = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best: Option<&mut Taker> = None;
        for taker in &mut taking {
            taker.credit += taker.turns;
            if best.as_ref().is_none_or(|best| taker.credit > best.credit) {
                best = Some(taker);
            }
        }
        let Some(best) = best else { break };
        best.credit -= total;
        order.push(best.index);
    }
    order
}

/// A backend in nginx's algorithm.
struct Taker {
    index: u16,
    turns: i64,
    credit: i64,
}

/// Turns per period: weights without their common divisor, at most `max_len` together.
fn scale(weights: &[u32], max_len: u64) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight));
    if divisor == 0 {
        return vec![0; weights.len()];
    }
    let reduced: Vec<u64> = weights.iter().map(|weight| u64::from(weight / divisor)).collect();
    let total: u64 = reduced.iter().sum();
    if total <= max_len {
        return reduced;
    }
    // Everyone's first turn comes off the top where there is room, then the rest is shared by largest remainder.
    let present = reduced.iter().filter(|weight| **weight > 0).count() as u64;
    let exact = |weight: u64| u128::from(weight) * u128::from(max_len);
    let share = |weight: u64| (exact(weight) / u128::from(total)) as u64;
    let guaranteed = u64::from(present <= max_len);
    let mut turns: Vec<u64> =
        reduced.iter().map(|weight| share(*weight).max(guaranteed * u64::from(*weight > 0))).collect();
    let mut given: u64 = turns.iter().sum();
    // Too many only where small weights were lifted to one turn: the largest pay for them.
    while given > max_len {
        let Some(largest) = turns.iter_mut().max() else { break };
        let excess = (given - max_len).min(largest.div_ceil(64)).min(*largest - 1);
        if excess == 0 {
            break;
        }
        *largest -= excess;
        given -= excess;
    }
    let mut by_remainder: Vec<(u128, usize)> = reduced
        .iter()
        .enumerate()
        .filter(|(_, weight)| share(**weight) > 0 || guaranteed == 0)
        .map(|(place, weight)| (exact(*weight) % u128::from(total), place))
        .collect();
    by_remainder.sort_by_key(|(remainder, place)| (std::cmp::Reverse(*remainder), *place));
    for (_, place) in by_remainder {
        if given >= max_len {
            break;
        }
        if let Some(turns) = turns.get_mut(place) {
            *turns += 1;
            given += 1;
        }
    }
    turns
}

fn gcd(left: u32, right: u32) -> u32 {
    if right == 0 { left } else { gcd(right, left % right) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(order: &[u16], backends: usize) -> Vec<usize> {
        let mut counts = vec![0; backends];
        for index in order {
            counts[usize::from(*index)] += 1;
        }
        counts
    }

    #[test]
    fn nginx_example() {
        assert_eq!(schedule(&[5, 1, 1], 100), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(schedule(&[500, 100, 100], 100), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn equal_weights_take_turns() {
        assert_eq!(schedule(&[100, 100, 100], 100), [0, 1, 2]);
        assert_eq!(schedule(&[0, 100, 0, 100], 100), [1, 3]);
    }

    #[test]
    fn nobody_to_take_a_turn() {
        assert!(schedule(&[], 10).is_empty());
        assert!(schedule(&[0, 0], 10).is_empty());
        assert!(schedule(&[1, 2], 0).is_empty());
    }

    #[test]
    fn long_periods_are_cut_and_small_weights_kept() {
        let order = schedule(&[1_000_003, 2, 999_983], 1000);
        assert_eq!(order.len(), 1000);
        let counts = counts(&order, 3);
        assert_eq!(counts[1], 1);
        assert!((499..=500).contains(&counts[0]), "{counts:?}");
        // no room for everyone: the heaviest come first
        assert_eq!(self::counts(&schedule(&[7, 1, 5], 2), 3), [1, 0, 1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn shares_are_within_one_per_cent(weights in prop::collection::vec(1u32..=256, 1..60)) {
            let order = schedule(&weights, DEFAULT_MAX_LEN);
            prop_assert!(order.len() <= DEFAULT_MAX_LEN);
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (count, weight) in counts(&order, weights.len()).iter().zip(&weights) {
                let expected = order.len() as f64 * f64::from(*weight) / total;
                let off = (*count as f64 - expected).abs();
                prop_assert!(off <= 1.0 || off <= expected * 0.01, "{} for {}", count, expected);
            }
        }

        #[test]
        fn any_weights_fit(weights in prop::collection::vec(any::<u32>(), 0..50), max_len in 0usize..500) {
            let order = schedule(&weights, max_len);
            prop_assert!(order.len() <= max_len);
            prop_assert!(order.iter().all(|index| weights[usize::from(*index)] > 0));
        }
    }
}
