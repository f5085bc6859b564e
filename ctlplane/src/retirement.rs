//! When may an index be given to somebody else? When no flow can hold it any more.
//!
//! A removed backend (or listener) stays until every worker runs a generation that knows of its removal and its count of
//! active flows was zero for two seconds; then it leaves the tables, and once every worker acked that, its index is free.
//! Without a running dataplane nothing is released: the flow tables outlive the process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use weir_abi::columns::{BackendColumn, ListenerColumn, ProxyColumn, UpstreamColumn};

use crate::counters::Counters;
use crate::publish::Snapshots;
use crate::state::{Indices, Phase};

/// How long no flow must have been seen.
const QUIET: Duration = Duration::from_secs(2);

/// Since when removed ones have been without flows.
#[derive(Debug, Default)]
pub(crate) struct QuietTimers {
    backends: HashMap<u32, Instant>,
    listeners: HashMap<u32, Instant>,
    /// The writer's start that these timers are about.
    counters_start: u64,
}

impl Indices {
    /// A copy to work on, if anything is on its way out.
    pub(crate) fn clone_if_leaving(&self) -> Option<Self> {
        let leaving = self.listeners.iter().any(|entry| entry.phase != Phase::Active)
            || self.pools.values().any(|pool| {
                pool.phase != Phase::Active || pool.backends.iter().any(|b| b.phase != Phase::Active)
            });
        leaving.then(|| self.clone())
    }
}

fn is_quiet(timers: &mut HashMap<u32, Instant>, index: u32, flows: u64, now: Instant) -> bool {
    if flows != 0 {
        timers.remove(&index);
        return false;
    }
    let since = *timers.entry(index).or_insert(now);
    now.duration_since(since) > QUIET
}

impl QuietTimers {
    /// Moves what is quiet one phase on; says whether anything changed.
    pub(crate) fn release(
        &mut self,
        indices: &mut Indices,
        snapshots: &Snapshots,
        generation: u64,
        now: Instant,
    ) -> bool {
        let (Some(acked), Ok(counters)) = (snapshots.acked_by_all(), Counters::open(snapshots.directory()))
        else {
            self.backends.clear();
            self.listeners.clear();
            return false;
        };
        if self.counters_start != counters.start_unix_ms() {
            *self = Self { counters_start: counters.start_unix_ms(), ..Self::default() };
        }
        let flows = |group: &str, column: &str, index: u32| counters.sum(group, index as usize, column);
        self.step(indices, acked, generation, now, &|kind, index| match kind {
            // either gauge is a sum over workers that may wrap alone, but is a count in all
            Kind::Backend => {
                let proxied = flows(UpstreamColumn::GROUP, UpstreamColumn::Active.name(), index);
                flows(BackendColumn::GROUP, BackendColumn::FlowsActive.name(), index).wrapping_add(proxied)
            }
            Kind::Listener => {
                let proxied = flows(ProxyColumn::GROUP, ProxyColumn::ConnectionsActive.name(), index);
                flows(ListenerColumn::GROUP, ListenerColumn::FlowsActive.name(), index).wrapping_add(proxied)
            }
        })
    }

    fn step(
        &mut self,
        indices: &mut Indices,
        acked: u64,
        generation: u64,
        now: Instant,
        flows: &dyn Fn(Kind, u32) -> u64,
    ) -> bool {
        let next = generation + 1;
        let mut changed = false;
        indices.listeners.retain_mut(|entry| {
            if entry.phase == Phase::Active {
                self.listeners.remove(&entry.index);
                return true;
            }
            // a listener leaves the tables at once, so there is no quarantine to wait for
            let free = matches!(entry.phase, Phase::Removed(since) | Phase::Quarantined(since) if acked >= since)
                && is_quiet(&mut self.listeners, entry.index, flows(Kind::Listener, entry.index), now);
            changed |= free;
            !free
        });
        let mut touched = Vec::new();
        for (name, pool) in &mut indices.pools {
            let mut here = false;
            pool.backends.retain_mut(|backend| match backend.phase {
                Phase::Active => {
                    self.backends.remove(&backend.index);
                    true
                }
                Phase::Removed(since) => {
                    let count = flows(Kind::Backend, backend.index);
                    if acked >= since && is_quiet(&mut self.backends, backend.index, count, now) {
                        backend.phase = Phase::Quarantined(next);
                        here = true;
                    }
                    true
                }
                Phase::Quarantined(since) => {
                    let free = acked >= since && flows(Kind::Backend, backend.index) == 0;
                    if free {
                        self.backends.remove(&backend.index);
                    }
                    here |= free;
                    !free
                }
            });
            let holds_flows = pool.backends.iter().any(|b| matches!(b.phase, Phase::Removed(_)));
            if matches!(pool.phase, Phase::Removed(_)) && !holds_flows {
                pool.phase = Phase::Quarantined(next);
                here = true;
            }
            if here {
                touched.push(name.clone());
                changed = true;
            }
        }
        indices.pools.retain(|_, pool| {
            let free =
                matches!(pool.phase, Phase::Quarantined(since) if acked >= since) && pool.backends.is_empty();
            changed |= free;
            !free
        });
        touched.iter().for_each(|name| indices.touch(name));
        if changed {
            indices.revision += 1;
        }
        changed
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Backend,
    Listener,
}
