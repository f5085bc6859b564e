//! Which slot of its pool does a flow fall on? For the flows of this crate and for whoever balances connections.

use weir_net::hash::StableKey;

use crate::entry::{Address, Tuple};
use crate::services::Algorithm;

/// The hash that decides, the same each time: of the client's address alone, else of the whole tuple.
#[inline]
pub fn hash_of<A: Address>(algorithm: Algorithm, key: StableKey, tuple: &Tuple<A>) -> u64 {
    match algorithm {
        Algorithm::SourceHash => A::source_hash(key, tuple.src),
        Algorithm::Maglev | Algorithm::RoundRobin => A::stable_hash(key, tuple),
    }
}

/// The next slot of `slots` for whoever takes turns.
#[inline]
pub fn next_turn(cursor: &mut u32, slots: usize) -> usize {
    let slot = *cursor as usize % slots.max(1);
    *cursor = (slot + 1) as u32;
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_go_round() {
        let mut cursor = 0;
        let turns: Vec<usize> = (0..7).map(|_| next_turn(&mut cursor, 3)).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2, 0]);
        assert_eq!(next_turn(&mut cursor, 0), 0);
        // a table that has become shorter
        cursor = 9;
        assert_eq!(next_turn(&mut cursor, 4), 1);
    }

    #[test]
    fn source_hash_knows_the_client_only() {
        let tuple = Tuple { src: 7u32, dst: 8, src_port: 9, dst_port: 10, protocol: 6 };
        let other = Tuple { src_port: 11, dst: 12, ..tuple };
        let key = StableKey::NONE;
        let hash = |algorithm, tuple| hash_of(algorithm, key, &tuple);
        assert_eq!(hash(Algorithm::SourceHash, tuple), hash(Algorithm::SourceHash, other));
        assert_ne!(hash(Algorithm::Maglev, tuple), hash(Algorithm::Maglev, other));
    }
}
