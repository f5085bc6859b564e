//! Which backend gets the next flow?
//!
//! Tables are built off the packet path, by whoever publishes them, and are plain `Vec<u16>`: each slot holds the index
//! of a backend, or [`NONE`]. The packet path only does [`slot`] and one load. A node builds the same table from the same
//! backends as every other node.
//!
//! - [`maglev`]: weighted consistent hashing; a changed pool moves few flows. Also `source-hash`, which is the same table
//!   looked up with a hash of the source address alone.
//! - [`round_robin`]: the order in which backends take turns.
//! - [`counted`]: the backend with the fewest connections, for whoever counts them.
#![forbid(unsafe_code)]

pub mod counted;
pub mod maglev;
pub mod round_robin;

/// The slot of a table that no backend takes: the pool is empty, or all its weights are zero.
pub const NONE: u16 = u16::MAX;

/// The most backends that a table can name.
pub const MAX_BACKENDS: usize = NONE as usize;

/// The slot that `hash` falls on in a table of `len` slots: its upper bits scaled to the table (Lemire, "Fast Random
/// Integer Generation in an Interval", 2019), which needs no division and works for any length. Zero for an empty table.
#[inline(always)]
pub const fn slot(hash: u64, len: usize) -> usize {
    ((hash as u128 * len as u128) >> 64) as usize
}

/// The backend that `hash` falls on, if the table names one there.
#[inline(always)]
pub fn look_up(table: &[u16], hash: u64) -> Option<u16> {
    table.get(slot(hash, table.len())).copied().filter(|index| *index != NONE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn slots_cover_the_table_evenly() {
        const LEN: usize = 7;
        let mut counts = [0u32; LEN];
        for step in 0..70_000u64 {
            counts[slot(step.wrapping_mul(0x9e37_79b9_7f4a_7c15), LEN)] += 1;
        }
        assert!(counts.iter().all(|count| (9_900..=10_100).contains(count)), "{counts:?}");
        assert_eq!(slot(u64::MAX, LEN), LEN - 1);
        assert_eq!(slot(u64::MAX, 0), 0);
    }

    #[test]
    fn empty_tables_name_nobody() {
        assert_eq!(look_up(&[], 5), None);
        assert_eq!(look_up(&[NONE; 3], 5), None);
        assert_eq!(look_up(&[4; 3], u64::MAX), Some(4));
    }

    proptest! {
        #[test]
        fn slots_are_in_range(hash in any::<u64>(), len in 1usize..1_000_000) {
            prop_assert!(slot(hash, len) < len);
        }
    }
}
