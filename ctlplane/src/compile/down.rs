//! Which backends does health keep from new flows?
//!
//! Precedence: an administrative `drain` or `maint` says what it says whatever health finds; then health; then weight 0.
//! A pool whose every backend that could take new flows is down fails open: health is ignored there, because all of them
//! being down says more about the checks than about the backends.

use std::collections::{BTreeMap, BTreeSet};

use weir_abi::record::AdminState;

use super::effective;
use crate::model::Pool;
use crate::state::Override;

/// Backends that are down by health, by pool, with the reason. Lives as long as the daemon: it is found out again, never kept.
pub type Down = BTreeMap<String, BTreeMap<String, String>>;

/// Names of the backends of `pool` for which being down has an effect.
pub fn acting(
    pool: &Pool,
    overrides: Option<&BTreeMap<String, Override>>,
    down: Option<&BTreeMap<String, String>>,
) -> BTreeSet<String> {
    let Some(down) = down.filter(|down| !down.is_empty()) else { return BTreeSet::new() };
    let could_take = pool.backends.iter().filter(|backend| {
        let set = overrides.and_then(|overrides| overrides.get(&backend.name));
        let (weight, state) = effective(backend, set);
        weight > 0 && state == AdminState::Ready
    });
    let mut candidates = could_take.peekable();
    if candidates.peek().is_some() && candidates.all(|backend| down.contains_key(&backend.name)) {
        return BTreeSet::new();
    }
    let configured = pool.backends.iter().map(|backend| &backend.name);
    configured.filter(|name| down.contains_key(*name)).cloned().collect()
}
