//! Which backend does each slot of a pool's table name?

use weir_abi::record::{Algorithm, NO_POSITION};
use weir_balance::maglev::{BuildError, Builder};
use weir_balance::{NONE, round_robin};

// What the tables carry is what the builders make.
const _: () = assert!(NO_POSITION == NONE);

/// Why there is no slot table.
pub type SlotsError = BuildError;

/// A table of positions among `weights`: (identity, weight) by position; weight 0 gets no slot.
///
/// The order of the file does not matter to Maglev tables: they are built in order of identity, so that two nodes whose
/// files list the same backends differently agree.
pub fn build(
    builder: &mut Builder,
    algorithm: Algorithm,
    weights: &[(String, u32)],
    slots: u32,
) -> Result<Vec<u16>, SlotsError> {
    match algorithm {
        Algorithm::RoundRobin | Algorithm::LeastConn | Algorithm::RandomTwo => {
            let numbers: Vec<u32> = weights.iter().map(|(_, weight)| *weight).collect();
            let schedule = round_robin::schedule(&numbers, slots as usize);
            Ok(if schedule.is_empty() { vec![NO_POSITION] } else { schedule })
        }
        Algorithm::Maglev | Algorithm::SourceHash => {
            let mut order: Vec<(usize, (&str, u32))> =
                weights.iter().map(|(key, weight)| (key.as_str(), *weight)).enumerate().collect();
            order.sort_unstable_by_key(|(_, (key, _))| *key);
            let keyed: Vec<(&str, u32)> = order.iter().map(|(_, backend)| *backend).collect();
            let mut table = builder.build(&keyed, slots)?;
            for slot in &mut table {
                *slot = order.get(usize::from(*slot)).map_or(NO_POSITION, |(position, _)| *position as u16);
            }
            Ok(table)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(list: &[(&str, u32)]) -> Vec<(String, u32)> {
        list.iter().map(|(key, weight)| ((*key).to_owned(), *weight)).collect()
    }

    #[test]
    fn order_of_the_file_does_not_matter_to_maglev() {
        let one = weights(&[("a", 1), ("b", 2), ("c", 3)]);
        let other = weights(&[("c", 3), ("a", 1), ("b", 2)]);
        let named = |weights: &[(String, u32)]| -> Vec<String> {
            let table = build(&mut Builder::default(), Algorithm::Maglev, weights, 251).unwrap();
            table.iter().map(|slot| weights[usize::from(*slot)].0.clone()).collect()
        };
        assert_eq!(named(&one), named(&other));
    }

    #[test]
    fn nobody_to_take_flows_is_a_table_of_none() {
        for algorithm in [Algorithm::Maglev, Algorithm::RoundRobin, Algorithm::SourceHash] {
            let table =
                build(&mut Builder::default(), algorithm, &weights(&[("a", 0), ("b", 0)]), 251).unwrap();
            assert!(!table.is_empty() && table.iter().all(|slot| *slot == NO_POSITION));
        }
    }

    #[test]
    fn round_robin_interleaves() {
        let weights = weights(&[("a", 100), ("b", 0), ("c", 100)]);
        let table = build(&mut Builder::default(), Algorithm::RoundRobin, &weights, 16_384).unwrap();
        assert_eq!(table, vec![0, 2]);
    }
}
