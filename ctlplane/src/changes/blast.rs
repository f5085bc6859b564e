//! What would a change do to traffic? Compares the tables that two configurations make.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weir_abi::columns::{BackendColumn, UpstreamColumn};
use weir_abi::record::{AdminState, BackendRecord};
use weir_abi::{PoolTable, TableKind};
use zerocopy::IntoBytes as _;

use crate::compile::Compiled;
use crate::counters::Counters;
use crate::model::{Listener, Model};
use crate::state::{Indices, Phase};

/// What a change touches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Blast {
    /// Listeners whose traffic is treated otherwise, each with why.
    pub listeners: Vec<TouchedListener>,
    /// Pools whose new flows go elsewhere.
    pub pools: Vec<TouchedPool>,
    /// Backends that are there otherwise, or no more.
    pub backends: Vec<TouchedBackend>,
    /// Flows and connections on them now; absent where nothing is counted.
    pub flows: Option<u64>,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedListener {
    /// Its name.
    pub name: String,
    /// added, removed, changed, or the pools that it sends to.
    pub why: String,
}

/// A pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TouchedPool {
    /// Its name.
    pub name: String,
    /// Of its slots, so many percent name another backend than before; 0 to 100. For other algorithms than `maglev` and
    /// `source-hash` that is no more than the share of turns.
    pub slots_moved_percent: f64,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchedBackend {
    /// `POOL/NAME`.
    pub name: String,
    /// What becomes of it: added, removed, weight 100 → 50, ready → drain, …
    pub change: String,
    /// Flows and connections on it now; absent where nothing is counted.
    pub flows: Option<u64>,
}

/// One of the two configurations.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// What it says.
    pub model: &'a Model,
    /// Who has which index.
    pub indices: &'a Indices,
    /// Its tables.
    pub compiled: &'a Compiled,
}

impl Side<'_> {
    /// Pools, removed ones included, whose tables are not among `other`.
    fn pools(&self, other: &HashSet<u64>) -> BTreeMap<String, PoolTable> {
        let tables = self.compiled.tables.iter().map(|image| (&image.reference, &image.bytes));
        tables
            .filter(|(reference, _)| {
                reference.kind == TableKind::Pool as u32 && !other.contains(&reference.id)
            })
            .filter_map(|(reference, bytes)| PoolTable::parse(reference, bytes).ok())
            .map(|table| (table.pool.name.to_string(), table))
            .collect()
    }

    fn ids(&self) -> HashSet<u64> {
        self.compiled.tables.iter().map(|table| table.reference.id).collect()
    }

    /// Ids of the tables of HTTP by the listener's name. They are in the order of the listeners' indices.
    fn https(&self) -> HashMap<&str, u64> {
        let mut listeners: Vec<(u32, &str)> = self
            .model
            .listeners
            .iter()
            .filter(|listener| listener.http.is_some())
            .filter_map(|listener| {
                let entries = self.indices.listeners.iter().filter(|entry| entry.phase == Phase::Active);
                let entry = entries.into_iter().find(|entry| entry.name == listener.name)?;
                Some((entry.index, listener.name.as_str()))
            })
            .collect();
        listeners.sort_unstable();
        let images = self.compiled.tables.iter().filter(|t| t.reference.kind == TableKind::Http as u32);
        listeners.iter().zip(images).map(|((_, name), image)| (*name, image.reference.id)).collect()
    }

    /// What a listener is, but for its rules of HTTP: with the vip's address and the pool's name for their positions.
    fn listeners(&self) -> BTreeMap<&str, (Listener, Option<IpAddr>, Option<&str>)> {
        let meaning = |listener: &Listener| {
            let vip = self.model.vips.get(listener.vip).map(|vip| vip.address);
            let pool = listener.pool.and_then(|pool| Some(self.model.pools.get(pool)?.name.as_str()));
            (Listener { vip: 0, pool: None, http: None, ..listener.clone() }, vip, pool)
        };
        self.model.listeners.iter().map(|listener| (listener.name.as_str(), meaning(listener))).collect()
    }
}

/// What a change from `old` to `new` touches.
pub fn radius(old: Side<'_>, new: Side<'_>, counters: Option<&Counters>) -> Blast {
    let (before, after) = (old.pools(&new.ids()), new.pools(&old.ids()));
    let mut blast = Blast::default();
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names {
        blast.pool(name, before.get(name), after.get(name), counters);
    }
    blast.touched_listeners(old, new);
    if counters.is_some() {
        blast.flows = Some(blast.backends.iter().filter_map(|backend| backend.flows).sum());
    }
    blast
}

/// Who a slot names.
fn owner(table: &PoolTable, slot: u16) -> Option<u32> {
    table.backends.get(usize::from(slot)).map(|backend| backend.index)
}

fn moved(old: &PoolTable, new: &PoolTable) -> f64 {
    let slots = old.slots.len().max(new.slots.len());
    let count = (0..slots).filter(|at| {
        // a shorter schedule begins anew; another number of Maglev slots is another table
        let of = |table: &PoolTable| {
            let slot = table.slots.get(at % table.slots.len().max(1))?;
            owner(table, *slot)
        };
        of(old) != of(new)
    });
    100.0 * count.count() as f64 / slots.max(1) as f64
}

fn configured(table: Option<&PoolTable>) -> BTreeMap<u32, &BackendRecord> {
    let all = table.map_or(&[][..], |table| &table.backends);
    let there = all.iter().filter(|backend| backend.admin != AdminState::Removed as u8);
    there.map(|backend| (backend.index, backend)).collect()
}

fn described(old: &BackendRecord, new: &BackendRecord) -> String {
    let mut list = Vec::new();
    let state =
        |record: &BackendRecord| AdminState::from_u8(record.admin).map_or("unknown", AdminState::name);
    if old.weight != new.weight {
        list.push(format!("weight {} \u{2192} {}", old.weight, new.weight));
    }
    if old.admin != new.admin {
        list.push(format!("{} \u{2192} {}", state(old), state(new)));
    }
    if list.is_empty() {
        list.push("changed".to_owned());
    }
    list.join(", ")
}

impl Blast {
    fn pool(
        &mut self,
        name: &str,
        old: Option<&PoolTable>,
        new: Option<&PoolTable>,
        counters: Option<&Counters>,
    ) {
        let flows = |index: u32| {
            let counters = counters?;
            let flows = counters.sum(BackendColumn::GROUP, index as usize, BackendColumn::FlowsActive.name());
            let proxied = counters.sum(UpstreamColumn::GROUP, index as usize, UpstreamColumn::Active.name());
            Some(flows.wrapping_add(proxied))
        };
        let (before, after) = (configured(old), configured(new));
        let indices: BTreeSet<u32> = before.keys().chain(after.keys()).copied().collect();
        for index in indices {
            let (record, change) = match (before.get(&index), after.get(&index)) {
                (Some(old), Some(new)) if old.as_bytes() == new.as_bytes() => continue,
                (Some(old), Some(new)) => (*new, described(old, new)),
                (Some(old), None) => (*old, "removed".to_owned()),
                (None, Some(new)) => (*new, "added".to_owned()),
                (None, None) => continue,
            };
            self.backends.push(TouchedBackend {
                name: format!("{name}/{}", record.name),
                change,
                flows: flows(index),
            });
        }
        let slots_moved_percent = match (old, new) {
            (Some(old), Some(new)) => moved(old, new),
            _ => 100.0,
        };
        self.pools.push(TouchedPool { name: name.to_owned(), slots_moved_percent });
    }

    fn touched_listeners(&mut self, old: Side<'_>, new: Side<'_>) {
        let (before, after) = (old.listeners(), new.listeners());
        let (https_before, https_after) = (old.https(), new.https());
        let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
        for name in names {
            let why = match (before.get(name), after.get(name)) {
                (None, _) => "added".to_owned(),
                (_, None) => "removed".to_owned(),
                (old, new) if old != new => "changed".to_owned(),
                _ if https_before.get(name) != https_after.get(name) => {
                    "its rules of HTTP changed".to_owned()
                }
                (Some((_, _, Some(pool))), _) if self.pools.iter().any(|touched| touched.name == *pool) => {
                    format!("its pool {pool} changed")
                }
                _ => continue,
            };
            self.listeners.push(TouchedListener { name: name.to_owned(), why });
        }
    }
}
