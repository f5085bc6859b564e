//! How is each backend reached? Told anew only of pools whose table is new: there may be a hundred thousand backends, and most
//! generations change one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weir_abi::record::BackendRecord;
use weir_l4::Backend;
use weir_l4::services::{Backends, FoldState};

use crate::neighbour::NeighbourId;
use crate::snapshot::Snapshot;

/// Next hops that a generation names.
pub type NextHops = Arc<HashSet<NeighbourId, FoldState>>;

/// Backends with their index.
type Told = Arc<[(u32, Backend)]>;

/// The ways to all backends of a generation.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Of the table with the ports and routes that lead there.
    node_id: u64,
    /// By the id of their pool's table.
    pools: Vec<(u64, Told)>,
    /// All of them.
    pub backends: Backends,
    /// Theirs and the gateways'.
    pub next_hops: NextHops,
}

impl Reach {
    /// Asks `resolve` for each backend that `previous` does not know.
    pub fn of(
        snapshot: &Snapshot,
        previous: Option<&Self>,
        gateways: &[NeighbourId],
        mut resolve: impl FnMut(&BackendRecord) -> Option<Backend>,
    ) -> Self {
        let previous = previous.filter(|previous| previous.node_id == snapshot.node_id);
        let known: HashMap<u64, &Told> =
            previous.iter().flat_map(|previous| &previous.pools).map(|(id, pool)| (*id, pool)).collect();
        let mut told = |pool: &crate::snapshot::LoadedPool| {
            let records = pool.table.backends.iter();
            records.filter_map(|record| Some((record.index, resolve(record)?))).collect()
        };
        let pools: Vec<(u64, Told)> = snapshot
            .pools
            .iter()
            .map(|pool| (pool.id, known.get(&pool.id).map_or_else(|| told(pool), |known| Arc::clone(known))))
            .collect();
        let same = previous.map_or(Same::Nothing, |previous| Same::between(&previous.pools, &pools));
        let list = || pools.iter().flat_map(|(_, pool)| pool.iter().cloned()).collect::<Vec<_>>();
        let (backends, next_hops) = match (previous, same) {
            (Some(previous), Same::All) => (previous.backends.clone(), Arc::clone(&previous.next_hops)),
            (Some(previous), Same::Ways) => {
                (previous.backends.at_same_addresses(&list()), Arc::clone(&previous.next_hops))
            }
            _ => {
                let list = list();
                let hops = list.iter().map(|(_, backend)| NeighbourId(backend.next_hop));
                (Backends::new(&list), Arc::new(hops.chain(gateways.iter().copied()).collect()))
            }
        };
        Self { node_id: snapshot.node_id, pools, backends, next_hops }
    }
}

/// How much two generations have in common.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Same {
    Nothing,
    /// Where the backends are and how they are reached.
    Ways,
    All,
}

impl Same {
    fn between(before: &[(u64, Told)], after: &[(u64, Told)]) -> Self {
        if before.len() != after.len() {
            return Self::Nothing;
        }
        let pools = before.iter().zip(after).filter(|((_, old), (_, new))| !Arc::ptr_eq(old, new));
        pools.map(|((_, old), (_, new))| Self::of_pool(old, new)).min().unwrap_or(Self::All)
    }

    fn of_pool(before: &[(u32, Backend)], after: &[(u32, Backend)]) -> Self {
        let ways = |(index, backend): &(u32, Backend)| (*index, backend.address, backend.next_hop);
        if before == after {
            Self::All
        } else if before.iter().map(ways).eq(after.iter().map(ways)) {
            Self::Ways
        } else {
            Self::Nothing
        }
    }
}
