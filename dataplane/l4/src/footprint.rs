//! What do the flow tables of a worker take? For who plans memory.

use weir_index::{Bucket, buckets_for};

use crate::entry::{EntryV4, EntryV6};

/// Bytes of a worker's flow tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Records of IPv4.
    pub records_v4: u64,
    /// Records of IPv6.
    pub records_v6: u64,
    /// Index of IPv4.
    pub index_v4: u64,
    /// Index of IPv6.
    pub index_v6: u64,
}

/// What tables of so many flows take.
pub fn footprint(flows_v4: u32, flows_v6: u32) -> Footprint {
    let index = |flows: u32| (buckets_for(flows as usize) * size_of::<Bucket>()) as u64;
    Footprint {
        records_v4: u64::from(flows_v4) * size_of::<EntryV4>() as u64,
        records_v6: u64::from(flows_v6) * size_of::<EntryV6>() as u64,
        index_v4: index(flows_v4),
        index_v6: index(flows_v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_grow_with_their_flows() {
        let (small, large) = (footprint(1_000, 1_000), footprint(2_000, 1_000));
        assert_eq!(large.records_v4, 2 * small.records_v4);
        assert!(large.index_v4 > small.index_v4 && large.index_v6 == small.index_v6);
        assert!(small.records_v6 > small.records_v4);
    }
}
