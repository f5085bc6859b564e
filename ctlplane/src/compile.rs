//! What does the dataplane get? Pure: model, overrides and indices in, tables out.
//!
//! A table is rebuilt only when its input changed ([`TableCache`]): one weight among 500 pools costs one Maglev table.

pub mod access;
pub mod down;
pub mod http;

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;
use std::sync::Arc;

use weir_abi::http::HttpPoolRecord;
use weir_abi::image::TableImage;
use weir_abi::proxy::{ProxyRecord, SendProxy, TcpRecord};
use weir_abi::record::{
    Address, AddressUse, AdminState, Algorithm, Application, BackendRecord, Drain, IDLE_ADAPTIVE, IDLE_SPIN,
    InterfaceAddressRecord, ListenerRecord, MAX_WORKERS, NO_INDEX, NO_POSITION, NodeRecord, PoolRecord,
    PortRecord, PortRouteRecord, VipRecord,
};
use weir_abi::text::{Name, Text};
use weir_abi::{ListenersTable, NodeTable, PoolTable, TableRef};
use weir_balance::maglev::Builder;
use weir_l7::http::rules::HttpListener;

use self::down::{Acting, Down};
use crate::drain;
use crate::model::{Model, Node, Pool};
use crate::slots::{self, SlotsError};
use crate::state::{Admin, Indices, Override, Overrides, Phase, PoolEntry};

/// Most threads that make pools' tables.
const MOST_BUILDERS: usize = 4;
/// A Maglev table takes milliseconds, a thread a tenth of one.
const POOLS_PER_BUILDER: usize = 4;

/// The tables of a generation, in the root's order: node, listeners, pools by index, listeners of HTTP by index, access, its
/// lists.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Encoded.
    pub tables: Vec<Arc<TableImage>>,
}

impl Compiled {
    /// How a root names them.
    pub fn references(&self) -> Vec<TableRef> {
        self.tables.iter().map(|table| table.reference).collect()
    }
}

/// Why there are no tables: the model was checked, so these are bugs or limits.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// No slot table could be built.
    #[error("pool \"{pool}\": {source}")]
    Slots {
        /// Which pool.
        pool: String,
        /// Why.
        source: SlotsError,
    },
    /// [`Indices::assign`] was not called for this model.
    #[error("{0} has no index")]
    NoIndex(String),
}

/// Tables by what they were made of.
///
/// A clone shares the tables: what is tried with it costs the cache nothing.
#[derive(Clone, Debug, Default)]
pub struct TableCache {
    node: Option<(Node, Arc<TableImage>)>,
    listeners: Option<(ListenersInput, Arc<TableImage>)>,
    pools: BTreeMap<String, CachedPool>,
    https: HashMap<u32, CachedHttp>,
    lists: access::ListCache,
    slot_tables_built: u64,
    scratch: Scratch,
}

/// What a table takes to be made; a clone of the cache makes its own.
#[derive(Debug, Default)]
struct Scratch(Builder);

impl Clone for Scratch {
    fn clone(&self) -> Self {
        Self::default()
    }
}

#[derive(Clone, Debug)]
struct CachedHttp {
    rules: Arc<HttpListener>,
    /// Indices of the model's pools, by position.
    pools: Arc<[u32]>,
    image: Arc<TableImage>,
}

#[derive(Clone, Debug)]
struct ListenersInput {
    /// In the state that the operator wants now.
    listeners: Vec<crate::model::Listener>,
    vips: Vec<crate::model::Vip>,
    indices: Vec<(u32, u32)>,
}

impl ListenersInput {
    fn of(model: &Model, overrides: &Overrides, indices: &[(u32, u32)]) -> Self {
        let mut listeners = model.listeners.clone();
        for listener in &mut listeners {
            listener.state = drain::effective(listener, overrides);
        }
        Self { listeners, vips: model.vips.clone(), indices: indices.to_vec() }
    }

    /// Whether it is [`Self::of`] these.
    fn is_of(&self, model: &Model, overrides: &Overrides, indices: &[(u32, u32)]) -> bool {
        let is_same = |(mine, listener): (&crate::model::Listener, &crate::model::Listener)| {
            let state = drain::effective(listener, overrides);
            if state == listener.state {
                mine == listener
            } else {
                *mine == crate::model::Listener { state, ..listener.clone() }
            }
        };
        self.indices == indices
            && self.vips == model.vips
            && self.listeners.len() == model.listeners.len()
            && self.listeners.iter().zip(&model.listeners).all(is_same)
    }
}

#[derive(Clone, Debug)]
struct CachedPool {
    model: Option<Arc<Pool>>,
    overrides: Option<BTreeMap<String, Override>>,
    acting: Acting,
    revision: u64,
    image: Arc<TableImage>,
    slots: Arc<SlotsInput>,
}

/// What a slot table was made of; it is at the end of its pool's image.
#[derive(Debug, PartialEq, Eq)]
struct SlotsInput {
    algorithm: Algorithm,
    slots: u32,
    weights: Vec<(String, u32)>,
}

impl SlotsInput {
    fn table(&self, pool: &str, scratch: &mut Builder) -> Result<Vec<u16>, CompileError> {
        if self.weights.is_empty() {
            return Ok(vec![NO_POSITION]);
        }
        slots::build(scratch, self.algorithm, &self.weights, self.slots)
            .map_err(|source| CompileError::Slots { pool: pool.to_owned(), source })
    }
}

/// A pool's table as it was made.
struct Built {
    image: TableImage,
    slots: Arc<SlotsInput>,
    /// Not taken from the pool's earlier table.
    has_new_slots: bool,
}

impl TableCache {
    /// How many slot tables were ever built: what a change costs.
    pub fn slot_tables_built(&self) -> u64 {
        self.slot_tables_built
    }

    fn node(&mut self, node: &Node) -> Arc<TableImage> {
        if let Some((input, image)) = &self.node
            && input == node
        {
            return image.clone();
        }
        let image = Arc::new(node_table(node).encode());
        self.node = Some((node.clone(), image.clone()));
        image
    }

    fn listeners(&mut self, model: &Model, overrides: &Overrides, indices: &[(u32, u32)]) -> Arc<TableImage> {
        if let Some((input, image)) = &self.listeners
            && input.is_of(model, overrides, indices)
        {
            return image.clone();
        }
        let input = ListenersInput::of(model, overrides, indices);
        let image = Arc::new(listeners_table(&input).encode());
        self.listeners = Some((input, image.clone()));
        image
    }

    /// A pool's table, where what it would be made of is what it was made of.
    fn pool(&self, input: &PoolInput<'_>) -> Option<Arc<TableImage>> {
        let cached = self.pools.get(input.name)?;
        let is_same = cached.revision == input.entry.revision
            && cached.overrides.as_ref() == input.overrides
            && cached.acting == input.acting
            && same_pool(cached.model.as_ref(), input.model);
        is_same.then(|| cached.image.clone())
    }

    /// Makes the tables of `inputs` anew, on all cores where there are many.
    fn build(&mut self, inputs: Vec<PoolInput<'_>>) -> Result<(), CompileError> {
        let builders = std::thread::available_parallelism().map_or(1, NonZero::get);
        let builders = builders.min(MOST_BUILDERS).min(inputs.len() / POOLS_PER_BUILDER).max(1);
        let (pools, scratch) = (&self.pools, &mut self.scratch.0);
        let build = |inputs: &[PoolInput<'_>], scratch: &mut Builder| -> Result<Vec<Built>, CompileError> {
            inputs.iter().map(|input| input.build(pools.get(input.name), scratch)).collect()
        };
        let (here, there) = inputs.split_at(inputs.len().div_ceil(builders));
        let built: Vec<Built> = std::thread::scope(|scope| {
            let others: Vec<_> = there
                .chunks(here.len().max(1))
                .map(|inputs| {
                    let started = std::thread::Builder::new().name("weir-tables".to_owned());
                    // without another thread it takes longer
                    started.spawn_scoped(scope, || build(inputs, &mut Builder::default())).map_err(|_| inputs)
                })
                .collect();
            let mut built = build(here, scratch)?;
            for other in others {
                built.extend(match other {
                    Ok(thread) => match thread.join() {
                        Ok(built) => built?,
                        Err(panic) => std::panic::resume_unwind(panic),
                    },
                    Err(inputs) => build(inputs, scratch)?,
                });
            }
            Ok(built)
        })?;
        for (input, built) in inputs.into_iter().zip(built) {
            self.slot_tables_built += u64::from(built.has_new_slots);
            let cached = CachedPool {
                model: input.model.cloned(),
                overrides: input.overrides.cloned(),
                acting: input.acting,
                revision: input.entry.revision,
                image: Arc::new(built.image),
                slots: built.slots,
            };
            self.pools.insert(input.name.to_owned(), cached);
        }
        Ok(())
    }
}

impl TableCache {
    /// The tables of all listeners of HTTP, by index.
    fn https(&mut self, model: &Model, indices: &Indices, listeners: &[(u32, u32)]) -> Vec<Arc<TableImage>> {
        let pools = |pool: &Arc<Pool>| indices.pools.get(&pool.name).map_or(NO_INDEX, |entry| entry.index);
        let pools: Arc<[u32]> = model.pools.iter().map(pools).collect();
        let mut tables = BTreeMap::new();
        for (listener, (index, _)) in model.listeners.iter().zip(listeners) {
            let Some(rules) = &listener.http else { continue };
            let cached = self.https.get(index).filter(|cached| {
                cached.pools == pools && (Arc::ptr_eq(&cached.rules, rules) || cached.rules == *rules)
            });
            let image = match cached {
                Some(cached) => cached.image.clone(),
                None => Arc::new(http::table(*index, rules, &pools).encode()),
            };
            tables.insert(*index, CachedHttp { rules: rules.clone(), pools: pools.clone(), image });
        }
        let images = tables.values().map(|cached| cached.image.clone()).collect();
        self.https = tables.into_iter().collect();
        images
    }
}

fn same_pool(left: Option<&Arc<Pool>>, right: Option<&Arc<Pool>>) -> bool {
    match (left, right) {
        (Some(left), Some(right)) => Arc::ptr_eq(left, right) || left == right,
        (None, None) => true,
        _ => false,
    }
}

/// Makes the tables; `indices` must have been assigned for `model`.
pub fn compile(
    model: &Model,
    overrides: &Overrides,
    down: &Down,
    indices: &Indices,
    cache: &mut TableCache,
) -> Result<Compiled, CompileError> {
    let listeners = listener_indices(model, indices)?;
    let mut tables = vec![cache.node(&model.node), cache.listeners(model, overrides, &listeners)];
    let models: HashMap<&str, &Arc<Pool>> = model.pools.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut entries: Vec<_> =
        indices.pools.iter().filter(|(_, entry)| !matches!(entry.phase, Phase::Quarantined(_))).collect();
    entries.sort_by_key(|(_, entry)| entry.index);
    let changed = entries
        .iter()
        .map(|(name, entry)| {
            let (model, overrides) = (models.get(name.as_str()).copied(), overrides.get(*name));
            let acting =
                model.map_or_else(Acting::default, |pool| down::acting(pool, overrides, down.of(name)));
            PoolInput { name, model, overrides, acting, entry }
        })
        .filter(|input| cache.pool(input).is_none())
        .collect();
    cache.build(changed)?;
    let image = |name: &String| cache.pools.get(name).map(|cached| cached.image.clone());
    tables.extend(entries.iter().filter_map(|(name, _)| image(name)));
    tables.extend(cache.https(model, indices, &listeners));
    let listeners: Vec<u32> = listeners.into_iter().map(|(listener, _)| listener).collect();
    tables.extend(cache.lists.tables(model, &listeners));
    cache.pools.retain(|name, _| indices.pools.contains_key(name));
    Ok(Compiled { tables })
}

/// (listener index, pool index) for each listener.
fn listener_indices(model: &Model, indices: &Indices) -> Result<Vec<(u32, u32)>, CompileError> {
    let known: HashMap<_, _> = indices
        .listeners
        .iter()
        .filter(|entry| entry.phase == Phase::Active)
        .map(|entry| ((entry.name.as_str(), entry.vip, entry.protocol, entry.mode.as_str()), entry.index))
        .collect();
    let find = |listener: &crate::model::Listener| {
        let vip = model.vips.get(listener.vip)?.address;
        let identity = (listener.name.as_str(), vip, listener.protocol, listener.mode.name());
        let pool = match listener.pool {
            Some(pool) => indices.pools.get(&model.pools.get(pool)?.name)?.index,
            None => NO_INDEX,
        };
        Some((*known.get(&identity)?, pool))
    };
    model
        .listeners
        .iter()
        .map(|listener| {
            find(listener).ok_or_else(|| CompileError::NoIndex(format!("listener \"{}\"", listener.name)))
        })
        .collect()
}

fn node_table(node: &Node) -> NodeTable {
    let mut worker_cpus = [0u16; MAX_WORKERS];
    for (slot, cpu) in worker_cpus.iter_mut().zip(&node.worker_cpus) {
        *slot = *cpu;
    }
    let record = NodeRecord {
        tcp_memory_bytes: node.tcp_memory_bytes,
        http_memory_bytes: node.http_memory_bytes,
        worker_cpus,
        worker_count: node.worker_cpus.len() as u32,
        flows_ipv4: node.flows_ipv4,
        flows_ipv6: node.flows_ipv6,
        backend_capacity: node.max_backends,
        buffers: node.buffers,
        buffer_bytes: node.buffer_bytes,
        idle: if node.adaptive { IDLE_ADAPTIVE } else { IDLE_SPIN },
        keyed_hash: u8::from(node.hash_key.is_some()),
        drain_grace: (node.drain_grace_ms / 10).min(u32::from(u16::MAX)) as u16,
        exception_rate: node.exception_rate,
        icmp_rate: node.icmp_rate,
        hash_key: node.hash_key.unwrap_or_default(),
        timeouts_ms: node.timeouts_ms,
        snat_port_first: node.snat_ports.0,
        snat_port_last: node.snat_ports.1,
        ports: 0,
        addresses: 0,
        routes: 0,
        tcp_connections: node.tcp_connections,
    };
    let mut table = NodeTable { node: record, ports: Vec::new(), addresses: Vec::new(), routes: Vec::new() };
    for (position, port) in node.ports.iter().enumerate() {
        let index = position as u16;
        table.ports.push(PortRecord {
            name: Name::new(&port.name),
            device: Text::new(&port.device),
            mtu: port.mtu,
            vlan: port.vlan,
            queues: port.queues,
            descriptors: port.descriptors,
            exception: Text::new(port.exception.as_deref().unwrap_or("")),
        });
        let address = |address: Address, usage: AddressUse| InterfaceAddressRecord {
            address,
            port: index,
            usage: usage as u8,
            reserved: 0,
        };
        let own = port.addresses.iter().map(|(ip, length)| Address::prefix(*ip, *length));
        table.addresses.extend(own.map(|own| address(own, AddressUse::Own)));
        table.addresses.extend(port.snat.iter().map(|ip| address(Address::host(*ip), AddressUse::Snat)));
        table.routes.extend(port.routes.iter().map(|route| PortRouteRecord {
            prefix: Address::prefix(route.prefix, route.length),
            gateway: Address::host(route.gateway),
            port: index,
            reserved: 0,
        }));
    }
    table
}

/// What the dataplane is told of a listener's state.
fn drain_of(state: Admin) -> Drain {
    match state {
        Admin::Ready => Drain::No,
        Admin::Drain => Drain::Yes,
        Admin::Maint => Drain::Cut,
    }
}

fn listeners_table(input: &ListenersInput) -> ListenersTable {
    let vips = input
        .vips
        .iter()
        .map(|vip| VipRecord { name: Name::new(&vip.name), address: Address::host(vip.address) })
        .collect();
    let mut proxies = Vec::new();
    let mut trusted: Vec<Address> = Vec::new();
    let mut settings = |listener: &crate::model::Listener| {
        let Some(proxy) = &listener.proxy else { return NO_INDEX };
        proxies.push(ProxyRecord { trusted_first: trusted.len() as u32, ..proxy.settings });
        trusted.extend(proxy.trusted.iter().map(|(network, length)| Address::prefix(*network, *length)));
        proxies.len() as u32 - 1
    };
    let listeners = input
        .listeners
        .iter()
        .zip(&input.indices)
        .map(|(listener, (index, pool))| ListenerRecord {
            name: Name::new(&listener.name),
            index: *index,
            vip: listener.vip as u32,
            pool: *pool,
            port_first: listener.ports.0,
            port_last: listener.ports.1,
            protocol: listener.protocol,
            mode: listener.mode as u8,
            gue_variant: listener.gue_variant,
            on_down: listener.on_down as u8,
            gue_port: listener.gue_port,
            application: listener.http.as_ref().map_or(Application::None, |_| Application::Http) as u8,
            drain: drain_of(listener.state) as u8,
            proxy: settings(listener),
        })
        .collect();
    ListenersTable { vips, listeners, proxies, trusted }
}

/// What a backend's weight and state are once overrides are applied.
pub fn effective(backend: &crate::model::Backend, set: Option<&Override>) -> (u16, AdminState) {
    let weight = set.and_then(|set| set.weight).unwrap_or(backend.weight);
    let state = set.and_then(|set| set.state).map_or(backend.state, AdminState::from);
    (weight, state)
}

struct PoolInput<'a> {
    name: &'a str,
    /// `None`: the pool left the configuration and lives on for its flows.
    model: Option<&'a Arc<Pool>>,
    overrides: Option<&'a BTreeMap<String, Override>>,
    /// What health comes to.
    acting: Acting,
    entry: &'a PoolEntry,
}

impl PoolInput<'_> {
    fn build(&self, old: Option<&CachedPool>, scratch: &mut Builder) -> Result<Built, CompileError> {
        let mut backends = Vec::new();
        let mut weights = Vec::new();
        let indices = self.entry.active_indices();
        for backend in self.model.iter().flat_map(|pool| &pool.backends) {
            let index = indices
                .get(&(backend.name.as_str(), backend.address, backend.port))
                .ok_or_else(|| CompileError::NoIndex(format!("backend {}/{}", self.name, backend.name)))?;
            let set = self.overrides.and_then(|overrides| overrides.get(&backend.name));
            let (weight, state) = effective(backend, set);
            let key = crate::units::format_backend_address(backend.address, backend.port);
            let is_down = self.acting.down.contains(&backend.name);
            let is_ready = state == AdminState::Ready;
            weights.push((key, if is_ready { self.acting.weight(&backend.name, weight) } else { 0 }));
            backends.push(BackendRecord {
                name: Name::new(&backend.name),
                index: *index,
                weight: u32::from(weight),
                address: Address::host(backend.address).with_port(backend.port),
                max_connections: backend.max_connections,
                admin: state as u8,
                down: u8::from(is_down),
                backup: u8::from(backend.backup),
                reserved: 0,
            });
        }
        for backend in self.entry.removed() {
            backends.push(BackendRecord {
                name: Name::new(&backend.name),
                index: backend.index,
                weight: 0,
                address: Address::host(backend.address).with_port(backend.port),
                max_connections: 0,
                admin: AdminState::Removed as u8,
                down: 0,
                backup: 0,
                reserved: 0,
            });
        }
        let algorithm = self.model.map_or(Algorithm::Maglev, |pool| pool.algorithm);
        let slots = self.model.map_or(1, |pool| pool.slots);
        let slots = SlotsInput { algorithm, slots, weights };
        let (slots, kept) = match old.filter(|old| *old.slots == slots) {
            Some(old) => (old.slots.clone(), PoolTable::parse(&old.image.reference, &old.image.bytes).ok()),
            None => (Arc::new(slots), None),
        };
        let has_new_slots = kept.is_none();
        let table = match kept {
            Some(kept) => kept.slots,
            None => slots.table(self.name, scratch)?,
        };
        let pool = PoolRecord {
            name: Name::new(self.name),
            index: self.entry.index,
            algorithm: algorithm as u8,
            send_proxy: self.model.map_or(SendProxy::Off, |pool| pool.send_proxy) as u8,
            reserved: [0; 2],
            backends: 0,
            slots: 0,
            upstream: self.model.map_or(TcpRecord::POOL, |pool| pool.upstream),
            http: self.model.map_or(HttpPoolRecord::DEFAULT, |pool| http::pool(&pool.http)),
        };
        Ok(Built { image: PoolTable { pool, backends, slots: table }.encode(), slots, has_new_slots })
    }
}
