//! What must survive a restart of the daemon: the configuration in force, runtime overrides, indices, the generation.
//!
//! Indices are pinned by flow entries, so they follow identities, not positions: a backend is (pool, name, address, port), a
//! listener (name, vip, protocol, mode). One that leaves the configuration keeps its index until no flow can hold it:
//!
//! ```text
//! Active ── left the configuration ─▶ Removed ── no flows ─▶ Quarantined ── every worker acked its absence ─▶ free
//!    ▲                                   │                        │
//!    └────────── is configured again ────┴────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use weir_abi::record::{AdminState, MAX_LISTENERS, MAX_POOLS};

use crate::history::Entry;
use crate::model::Model;

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// The last generation that was published, or was about to be.
    pub generation: u64,
    /// Text of the configuration in force.
    pub config: Arc<str>,
    /// Text of the file that was applied last; what is in force may have drifted from it.
    pub applied: Arc<str>,
    /// What the files held that it names, when it was applied.
    pub bodies: Arc<Bodies>,
    /// Runtime overrides.
    pub overrides: Overrides,
    /// Who has which index.
    pub indices: Arc<Indices>,
    /// Number of the last change in history.
    pub number: u64,
    /// Changes that are not safe in history's own file yet.
    pub pending: Vec<Arc<Entry>>,
    /// What comes back unless somebody confirms what is in force.
    pub confirm: Option<Confirm>,
}

/// A change that waits to be confirmed, and what it replaced.
#[derive(Clone, Debug, PartialEq)]
pub struct Confirm {
    /// By the wall clock, in Unix milliseconds: it passes while the machine is down, too.
    pub deadline_unix_ms: u64,
    /// Number of the change that comes back.
    pub number: u64,
    /// Its text,
    pub config: Arc<str>,
    /// what its files held
    pub bodies: Arc<Bodies>,
    /// and its overrides.
    pub overrides: Overrides,
}

/// Contents of files, by their paths.
pub type Bodies = BTreeMap<String, Arc<[u8]>>;

/// By pool, then by backend; listeners and the node have names that no pool can have ([`crate::drain`]).
pub type Overrides = BTreeMap<String, BTreeMap<String, Override>>;

/// What the operator set at run time, over the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// Instead of the file's weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// Instead of the file's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Admin>,
}

/// [`AdminState`] as the operator writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    /// Takes new flows.
    #[default]
    Ready,
    /// No new flows.
    Drain,
    /// No new flows; established ones by `on_down`, those of a listener end.
    Maint,
}

impl From<Admin> for AdminState {
    fn from(admin: Admin) -> Self {
        match admin {
            Admin::Ready => Self::Ready,
            Admin::Drain => Self::Drain,
            Admin::Maint => Self::Maint,
        }
    }
}

impl Admin {
    /// The word of the configuration.
    pub fn name(self) -> &'static str {
        AdminState::from(self).name()
    }
}

/// Where an index is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// In the configuration.
    Active,
    /// Out of the configuration since this generation; flows may hold it.
    Removed(u64),
    /// Out of the tables since this generation; some worker may not have seen that.
    Quarantined(u64),
}

/// All index assignments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indices {
    /// Listeners.
    pub listeners: Vec<ListenerEntry>,
    /// Pools by name.
    pub pools: BTreeMap<String, PoolEntry>,
    /// Rises with each change in this process: tells caches and the store what is new.
    #[serde(skip)]
    pub revision: u64,
}

/// A listener's index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerEntry {
    /// Identity: its name,
    pub name: String,
    /// the vip's address,
    pub vip: IpAddr,
    /// the protocol
    pub protocol: u8,
    /// and the mode's word.
    pub mode: String,
    /// Its index.
    pub index: u32,
    /// Its life.
    pub phase: Phase,
}

/// A pool's index and its backends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolEntry {
    /// Its index.
    pub index: u32,
    /// Its life.
    pub phase: Phase,
    /// Its backends, in order of first appearance.
    pub backends: Vec<BackendEntry>,
    /// [`Indices::revision`] of the last change here.
    #[serde(skip)]
    pub revision: u64,
}

/// A backend's index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendEntry {
    /// Identity: its name in the pool,
    pub name: String,
    /// its address
    pub address: IpAddr,
    /// and its port (0 = the client's).
    pub port: u16,
    /// Its index.
    pub index: u32,
    /// Its life.
    pub phase: Phase,
}

/// Why indices ran out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Removed ones count until their flows end.
    #[error(
        "no backend index is free: max_backends = {most}, {active} are configured and {leaving} removed ones may still \
         hold flows; raise [dataplane] max_backends (needs a restart of weir-dataplane) or wait for those flows"
    )]
    Backends {
        /// The limit.
        most: u32,
        /// Configured.
        active: usize,
        /// On their way out.
        leaving: usize,
    },
    /// As above.
    #[error(
        "no listener index is free: {MAX_LISTENERS} are taken, removed ones included; wait for their flows to end"
    )]
    Listeners,
    /// As above.
    #[error(
        "no pool index is free: {MAX_POOLS} are taken, removed ones included; wait for their flows to end"
    )]
    Pools,
}

/// The lowest free numbers, in order.
struct FreeNumbers {
    taken: BTreeSet<u32>,
    next: u32,
    end: u32,
}

impl FreeNumbers {
    fn new(taken: BTreeSet<u32>, end: u32) -> Self {
        Self { taken, next: 0, end }
    }

    fn take(&mut self) -> Option<u32> {
        while self.next < self.end {
            let number = self.next;
            self.next += 1;
            if !self.taken.contains(&number) {
                return Some(number);
            }
        }
        None
    }
}

impl Indices {
    /// Gives everything in `model` an index, and marks what left it as removed since `generation`.
    pub fn assign(self: &mut Arc<Self>, model: &Model, generation: u64) -> Result<(), IndexError> {
        let mut next = Self::clone(self);
        next.revision += 1;
        next.assign_listeners(model, generation)?;
        next.assign_pools(model, generation)?;
        if next.listeners == self.listeners && next.pools == self.pools {
            return Ok(());
        }
        *self = Arc::new(next);
        Ok(())
    }

    fn assign_listeners(&mut self, model: &Model, generation: u64) -> Result<(), IndexError> {
        let mut known: HashMap<(String, IpAddr, u8, String), usize> = HashMap::new();
        for (at, entry) in self.listeners.iter_mut().enumerate() {
            known.insert((entry.name.clone(), entry.vip, entry.protocol, entry.mode.clone()), at);
            if entry.phase == Phase::Active {
                entry.phase = Phase::Removed(generation);
            }
        }
        let taken = self.listeners.iter().map(|entry| entry.index).collect();
        let mut free = FreeNumbers::new(taken, MAX_LISTENERS as u32);
        for listener in &model.listeners {
            let Some(vip) = model.vips.get(listener.vip) else { continue };
            let mode = listener.mode.name().to_owned();
            let identity = (listener.name.clone(), vip.address, listener.protocol, mode);
            if let Some(entry) = known.get(&identity).and_then(|at| self.listeners.get_mut(*at)) {
                entry.phase = Phase::Active;
                continue;
            }
            let index = free.take().ok_or(IndexError::Listeners)?;
            let (name, vip, protocol, mode) = identity;
            self.listeners.push(ListenerEntry { name, vip, protocol, mode, index, phase: Phase::Active });
        }
        Ok(())
    }

    fn assign_pools(&mut self, model: &Model, generation: u64) -> Result<(), IndexError> {
        let taken = self.pools.values().map(|entry| entry.index).collect();
        let mut free_pools = FreeNumbers::new(taken, MAX_POOLS as u32);
        let taken = self.pools.values().flat_map(|pool| &pool.backends).map(|entry| entry.index).collect();
        let mut free = FreeNumbers::new(taken, model.node.max_backends);
        let configured: HashMap<&str, &crate::model::Pool> =
            model.pools.iter().map(|pool| (pool.name.as_str(), pool.as_ref())).collect();
        for (name, entry) in &mut self.pools {
            if !configured.contains_key(name.as_str()) && entry.phase == Phase::Active {
                entry.phase = Phase::Removed(generation);
                entry.revision = self.revision;
                for backend in &mut entry.backends {
                    if backend.phase == Phase::Active {
                        backend.phase = Phase::Removed(generation);
                    }
                }
            }
        }
        for pool in &model.pools {
            if !self.pools.contains_key(&pool.name) {
                let index = free_pools.take().ok_or(IndexError::Pools)?;
                let entry =
                    PoolEntry { index, phase: Phase::Active, backends: Vec::new(), revision: self.revision };
                self.pools.insert(pool.name.clone(), entry);
            }
            let revision = self.revision;
            let Some(entry) = self.pools.get_mut(&pool.name) else { continue };
            if !entry.assign(pool, generation, revision, &mut free) {
                return Err(self.exhausted(model));
            }
        }
        Ok(())
    }

    fn exhausted(&self, model: &Model) -> IndexError {
        let leaving = self
            .pools
            .values()
            .flat_map(|pool| &pool.backends)
            .filter(|backend| backend.phase != Phase::Active)
            .count();
        let active = model.pools.iter().map(|pool| pool.backends.len()).sum();
        IndexError::Backends { most: model.node.max_backends, active, leaving }
    }

    /// Marks the pool as changed.
    pub fn touch(&mut self, pool: &str) {
        self.revision += 1;
        if let Some(entry) = self.pools.get_mut(pool) {
            entry.revision = self.revision;
        }
    }
}

impl PoolEntry {
    /// False where no index is free.
    fn assign(
        &mut self,
        pool: &crate::model::Pool,
        generation: u64,
        revision: u64,
        free: &mut FreeNumbers,
    ) -> bool {
        let before = (self.phase, self.backends.clone());
        self.phase = Phase::Active;
        let known: HashMap<(String, IpAddr, u16), usize> = self
            .backends
            .iter()
            .enumerate()
            .map(|(at, entry)| ((entry.name.clone(), entry.address, entry.port), at))
            .collect();
        for backend in &mut self.backends {
            if backend.phase == Phase::Active {
                backend.phase = Phase::Removed(generation);
            }
        }
        for backend in &pool.backends {
            let identity = (backend.name.clone(), backend.address, backend.port);
            if let Some(entry) = known.get(&identity).and_then(|at| self.backends.get_mut(*at)) {
                entry.phase = Phase::Active;
                continue;
            }
            let Some(index) = free.take() else { return false };
            let (name, address, port) = identity;
            self.backends.push(BackendEntry { name, address, port, index, phase: Phase::Active });
        }
        if before != (self.phase, self.backends.clone()) {
            self.revision = revision;
        }
        true
    }

    /// The index of a configured backend, by identity.
    pub fn active_indices(&self) -> HashMap<(&str, IpAddr, u16), u32> {
        self.backends
            .iter()
            .filter(|entry| entry.phase == Phase::Active)
            .map(|entry| ((entry.name.as_str(), entry.address, entry.port), entry.index))
            .collect()
    }

    /// Backends that left the configuration and may hold flows, by index.
    pub fn removed(&self) -> Vec<&BackendEntry> {
        let mut list: Vec<_> =
            self.backends.iter().filter(|entry| matches!(entry.phase, Phase::Removed(_))).collect();
        list.sort_by_key(|entry| entry.index);
        list
    }
}

/// Drops overrides that have lost their backend, and those whose field the new file changed: the file is newer.
pub fn reconcile_overrides(overrides: &mut Overrides, old: Option<&Model>, new: &Model) {
    let index = |model: &Model| -> HashMap<(String, String), (u16, AdminState)> {
        let all = model.pools.iter().flat_map(|pool| {
            pool.backends.iter().map(|b| ((pool.name.clone(), b.name.clone()), (b.weight, b.state)))
        });
        all.collect()
    };
    if overrides.is_empty() {
        return;
    }
    crate::drain::reconcile(overrides, old, new);
    let (before, after) = (old.map(index).unwrap_or_default(), index(new));
    for (pool, backends) in overrides.iter_mut().filter(|(pool, _)| crate::drain::is_pool(pool)) {
        backends.retain(|backend, entry| {
            let key = (pool.clone(), backend.clone());
            let Some((weight, state)) = after.get(&key) else { return false };
            let was = before.get(&key);
            if was.is_some_and(|(old_weight, _)| old_weight != weight) || entry.weight == Some(*weight) {
                entry.weight = None;
            }
            let same_state = entry.state.is_some_and(|set| AdminState::from(set) == *state);
            if was.is_some_and(|(_, old_state)| old_state != state) || same_state {
                entry.state = None;
            }
            *entry != Override::default()
        });
    }
    overrides.retain(|_, backends| !backends.is_empty());
}
