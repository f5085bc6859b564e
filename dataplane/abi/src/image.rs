//! How roots and tables become bytes and are proved before use.
//!
//! ctlplane calls `encode`, the dataplane (and the CLI) `parse` on a private copy. `parse` checks magic, version, length,
//! checksum, then every count, reference and enum value: what it returns can be used without further checks.

use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::proxy::{
    MAX_TCP_CONNECTIONS, MAX_TCP_MEMORY, MAX_TIME_MS, MIN_TCP_MEMORY, MIN_TIME_MS, ProxyRecord, SendProxy,
};
use crate::record::{
    Address, AddressUse, AdminState, Algorithm, BackendRecord, IDLE_ADAPTIVE, InterfaceAddressRecord,
    ListenerRecord, MAX_LISTENERS, MAX_POOL_BACKENDS, MAX_POOLS, MAX_PORTS, MAX_WORKERS, Mode, NO_INDEX,
    NO_POSITION, NodeRecord, OnDown, PoolRecord, PortRecord, PortRouteRecord, Timeout, VERSION, VipRecord,
};

const ROOT_MAGIC: [u8; 8] = *b"WEIRROOT";
const TABLE_MAGIC: [u8; 8] = *b"WEIRTABL";
const CHECKSUM_SEED: u64 = 0x7765_6972_5f63_6b73;
const ID_SEED: u64 = 0x7765_6972_5f69_645f;

/// Most tables that a root may name: pools, node and listeners.
pub const MAX_TABLES: usize = MAX_POOLS + 2;
/// Largest table, bytes: a pool of 65,534 backends with a large slot table stays below it.
pub const MAX_TABLE_BYTES: usize = 64 << 20;
/// Largest root, bytes.
pub const MAX_ROOT_BYTES: usize = size_of::<RootHeader>() + MAX_TABLES * size_of::<TableRef>();

/// Why bytes are not a snapshot. Each is refused as a whole; the running generation stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Torn, truncated or not ours.
    #[error("{what} is {got} bytes long, expected {expected}")]
    Length {
        /// Which file.
        what: String,
        /// Bytes there.
        got: usize,
        /// Bytes promised.
        expected: usize,
    },
    /// Not a file of this kind.
    #[error("{0} does not start with the magic of its kind")]
    Magic(String),
    /// Written by another release.
    #[error("{what} has layout version {got}, this program reads version {VERSION}")]
    Version {
        /// Which file.
        what: String,
        /// Version found.
        got: u32,
    },
    /// Corrupt content.
    #[error("{what}: checksum {got:016x}, expected {expected:016x}")]
    Checksum {
        /// Which file.
        what: String,
        /// Computed.
        got: u64,
        /// Promised.
        expected: u64,
    },
    /// A record that contradicts itself: a bug of the writer, or forged.
    #[error("{what}: {field} is {value}, {rule}")]
    Value {
        /// Which file.
        what: String,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
}

/// Head of a root file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RootHeader {
    magic: [u8; 8],
    version: u32,
    tables: u32,
    length: u64,
    /// xxh3-64 of everything after this field.
    checksum: u64,
    generation: u64,
    created_unix_ms: u64,
}

/// Names one immutable table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TableRef {
    /// Content-derived: equal tables have equal ids.
    pub id: u64,
    /// Bytes of the file, header included.
    pub length: u64,
    /// xxh3-64 of the content.
    pub checksum: u64,
    /// [`TableKind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct TableHeader {
    magic: [u8; 8],
    version: u32,
    kind: u32,
    length: u64,
    checksum: u64,
}

const _: () = {
    assert!(size_of::<RootHeader>() == 48);
    assert!(size_of::<TableRef>() == 32);
    assert!(size_of::<TableHeader>() == 32);
};

/// What a table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum TableKind {
    /// [`NodeTable`].
    Node = 1,
    /// [`ListenersTable`].
    Listeners = 2,
    /// [`PoolTable`].
    Pool = 3,
}

/// File name of a generation's root.
pub fn root_name(generation: u64) -> String {
    format!("root-{generation}")
}

/// The generation of a root's file name.
pub fn root_generation(name: &str) -> Option<u64> {
    name.strip_prefix("root-")?.parse().ok()
}

/// File name of a table.
pub fn table_name(id: u64) -> String {
    format!("table-{id:016x}")
}

/// One generation: which tables make it up, in order: node, listeners, pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Number of the generation, rising.
    pub generation: u64,
    /// When it was made, for people.
    pub created_unix_ms: u64,
    /// Exactly one node table, one listeners table, any number of pools.
    pub tables: Vec<TableRef>,
}

impl Root {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        seal_root(
            RootHeader {
                magic: ROOT_MAGIC,
                version: VERSION,
                tables: 0,
                length: 0,
                checksum: 0,
                generation: self.generation,
                created_unix_ms: self.created_unix_ms,
            },
            self.tables.as_bytes(),
        )
    }

    /// Verifies a private copy of the file of `generation`.
    pub fn parse(generation: u64, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let what = || root_name(generation);
        let Ok((header, body)) = RootHeader::read_from_prefix(bytes) else {
            return Err(SnapshotError::Length {
                what: what(),
                got: bytes.len(),
                expected: size_of::<RootHeader>(),
            });
        };
        if header.magic != ROOT_MAGIC {
            return Err(SnapshotError::Magic(what()));
        }
        if header.version != VERSION {
            return Err(SnapshotError::Version { what: what(), got: header.version });
        }
        let count = header.tables as usize;
        if count > MAX_TABLES {
            return Err(value(&what(), "tables", count as u64, "more than a root may name"));
        }
        let expected = size_of::<RootHeader>() + count * size_of::<TableRef>();
        if bytes.len() != expected || header.length != expected as u64 {
            return Err(SnapshotError::Length { what: what(), got: bytes.len(), expected });
        }
        let got = checksum(bytes.get(CHECKSUMMED_ROOT..).unwrap_or(&[]));
        if got != header.checksum {
            return Err(SnapshotError::Checksum { what: what(), got, expected: header.checksum });
        }
        if header.generation != generation {
            return Err(value(&what(), "generation", header.generation, "must be that of the file name"));
        }
        let Some((tables, _)) = records::<TableRef>(body, count) else {
            return Err(SnapshotError::Length { what: what(), got: bytes.len(), expected });
        };
        for (position, table) in tables.iter().enumerate() {
            let kind = match position {
                0 => TableKind::Node,
                1 => TableKind::Listeners,
                _ => TableKind::Pool,
            };
            if table.kind != kind as u32 {
                return Err(value(
                    &what(),
                    "kind",
                    u64::from(table.kind),
                    "must be node, listeners, pools in order",
                ));
            }
        }
        if count < 2 {
            return Err(value(&what(), "tables", count as u64, "must be at least node and listeners"));
        }
        Ok(Self { generation, created_unix_ms: header.created_unix_ms, tables })
    }
}

/// A root's bytes: the header with count, length and checksum of this body, which is whole references, then the body.
fn seal_root(mut header: RootHeader, body: &[u8]) -> Vec<u8> {
    header.tables = (body.len() / size_of::<TableRef>()) as u32;
    header.length = (size_of::<RootHeader>() + body.len()) as u64;
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(body);
    header.checksum = checksum(bytes.get(CHECKSUMMED_ROOT..).unwrap_or(&[]));
    if let Some(head) = bytes.get_mut(..size_of::<RootHeader>()) {
        head.copy_from_slice(header.as_bytes());
    }
    bytes
}

/// Bytes before the checksummed part of a root: magic, version, tables, length, checksum.
const CHECKSUMMED_ROOT: usize = 32;

/// An encoded table and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableImage {
    /// How a root names it.
    pub reference: TableRef,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}

impl TableImage {
    fn seal(kind: TableKind, content: &[u8]) -> Self {
        let header = TableHeader {
            magic: TABLE_MAGIC,
            version: VERSION,
            kind: kind as u32,
            length: (size_of::<TableHeader>() + content.len()) as u64,
            checksum: checksum(content),
        };
        let mut bytes = Vec::with_capacity(size_of::<TableHeader>() + content.len());
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        let id = xxh3_64_with_seed(content, ID_SEED ^ kind as u64);
        let reference = TableRef {
            id,
            length: bytes.len() as u64,
            checksum: header.checksum,
            kind: kind as u32,
            reserved: 0,
        };
        Self { reference, bytes }
    }
}

/// A table whose bytes are fewer or more than the reference or its own counts say.
fn wrong_length(reference: &TableRef, bytes: &[u8]) -> SnapshotError {
    SnapshotError::Length {
        what: table_name(reference.id),
        got: bytes.len(),
        expected: reference.length as usize,
    }
}

/// Proves a table's bytes against the root's reference and returns its content.
fn unseal<'a>(reference: &TableRef, bytes: &'a [u8]) -> Result<&'a [u8], SnapshotError> {
    let what = || table_name(reference.id);
    let Ok((header, content)) = TableHeader::read_from_prefix(bytes) else {
        return Err(SnapshotError::Length {
            what: what(),
            got: bytes.len(),
            expected: size_of::<TableHeader>(),
        });
    };
    if header.magic != TABLE_MAGIC {
        return Err(SnapshotError::Magic(what()));
    }
    if header.version != VERSION {
        return Err(SnapshotError::Version { what: what(), got: header.version });
    }
    let length = bytes.len() as u64;
    if header.length != length || reference.length != length {
        return Err(wrong_length(reference, bytes));
    }
    if header.kind != reference.kind {
        return Err(value(&what(), "kind", u64::from(header.kind), "must be the kind that the root names"));
    }
    let got = checksum(content);
    if got != header.checksum || got != reference.checksum {
        return Err(SnapshotError::Checksum { what: what(), got, expected: reference.checksum });
    }
    Ok(content)
}

/// Workers, ports, their addresses and routes.
#[derive(Clone, Debug)]
pub struct NodeTable {
    /// Head; its counts are set by [`NodeTable::encode`].
    pub node: NodeRecord,
    /// Ports by index.
    pub ports: Vec<PortRecord>,
    /// Addresses of the ports.
    pub addresses: Vec<InterfaceAddressRecord>,
    /// Routes and gateways.
    pub routes: Vec<PortRouteRecord>,
}

impl NodeTable {
    /// The table's bytes.
    pub fn encode(&self) -> TableImage {
        let mut node = self.node;
        node.ports = self.ports.len() as u32;
        node.addresses = self.addresses.len() as u32;
        node.routes = self.routes.len() as u32;
        let mut content = node.as_bytes().to_vec();
        content.extend_from_slice(self.ports.as_bytes());
        content.extend_from_slice(self.addresses.as_bytes());
        content.extend_from_slice(self.routes.as_bytes());
        TableImage::seal(TableKind::Node, &content)
    }

    /// Verifies a private copy.
    pub fn parse(reference: &TableRef, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let content = unseal(reference, bytes)?;
        let what = table_name(reference.id);
        let length = || wrong_length(reference, bytes);
        let (node, rest) = NodeRecord::read_from_prefix(content).map_err(|_| length())?;
        let (ports, rest) = records(rest, node.ports as usize).ok_or_else(length)?;
        let (addresses, rest) = records(rest, node.addresses as usize).ok_or_else(length)?;
        let (routes, rest) = records(rest, node.routes as usize).ok_or_else(length)?;
        if !rest.is_empty() {
            return Err(length());
        }
        let table = Self { node, ports, addresses, routes };
        table.check(&what)?;
        Ok(table)
    }

    fn check(&self, what: &str) -> Result<(), SnapshotError> {
        let node = &self.node;
        let workers = node.worker_count as usize;
        ensure(
            (1..=MAX_WORKERS).contains(&workers),
            what,
            "worker_count",
            workers as u64,
            "must be 1 to 64",
        )?;
        ensure(node.idle <= IDLE_ADAPTIVE, what, "idle", u64::from(node.idle), "must be 0 or 1")?;
        ensure(node.keyed_hash <= 1, what, "keyed_hash", u64::from(node.keyed_hash), "must be 0 or 1")?;
        let flows = 1..=(1u32 << 24) - 1;
        ensure(
            flows.contains(&node.flows_ipv4),
            what,
            "flows_ipv4",
            u64::from(node.flows_ipv4),
            "must be 1 to 2^24 - 1",
        )?;
        ensure(
            flows.contains(&node.flows_ipv6),
            what,
            "flows_ipv6",
            u64::from(node.flows_ipv6),
            "must be 1 to 2^24 - 1",
        )?;
        let capacity = node.backend_capacity;
        ensure(
            (1..=1 << 22).contains(&capacity),
            what,
            "backend_capacity",
            u64::from(capacity),
            "must be 1 to 2^22",
        )?;
        ensure(node.buffers <= 1 << 24, what, "buffers", u64::from(node.buffers), "must be at most 2^24")?;
        ensure(
            node.buffer_bytes <= 65_000,
            what,
            "buffer_bytes",
            u64::from(node.buffer_bytes),
            "must be at most 65,000",
        )?;
        ensure(
            node.snat_port_first >= 1 && node.snat_port_first <= node.snat_port_last,
            what,
            "snat_port_first",
            u64::from(node.snat_port_first),
            "must be at least 1 and at most snat_port_last",
        )?;
        self.check_tcp(what)?;
        let ports = self.ports.len();
        ensure((1..=MAX_PORTS).contains(&ports), what, "ports", ports as u64, "must be 1 to 16")?;
        for port in &self.ports {
            ensure(
                (68..=9_216).contains(&port.mtu),
                what,
                "mtu",
                u64::from(port.mtu),
                "must be 68 to 9,216",
            )?;
            ensure(port.vlan < 4_095, what, "vlan", u64::from(port.vlan), "must be 0 to 4094")?;
            ensure(!port.device.is_empty(), what, "device", 0, "must not be empty")?;
        }
        for address in &self.addresses {
            check_address(&address.address, what, "address")?;
            ensure(
                usize::from(address.port) < ports,
                what,
                "address.port",
                u64::from(address.port),
                "must be a port",
            )?;
            ensure(
                AddressUse::from_u8(address.usage).is_some(),
                what,
                "usage",
                u64::from(address.usage),
                "must be known",
            )?;
        }
        for route in &self.routes {
            check_address(&route.prefix, what, "prefix")?;
            check_address(&route.gateway, what, "gateway")?;
            ensure(
                route.prefix.family == route.gateway.family,
                what,
                "gateway.family",
                u64::from(route.gateway.family),
                "must be the prefix's",
            )?;
            ensure(
                usize::from(route.port) < ports,
                what,
                "route.port",
                u64::from(route.port),
                "must be a port",
            )?;
        }
        Ok(())
    }
}

impl NodeTable {
    fn check_tcp(&self, what: &str) -> Result<(), SnapshotError> {
        let connections = self.node.tcp_connections;
        ensure(
            (1..=MAX_TCP_CONNECTIONS).contains(&connections),
            what,
            "tcp_connections",
            u64::from(connections),
            "must be 1 to 2^24",
        )?;
        let memory = self.node.tcp_memory_bytes;
        ensure(
            (MIN_TCP_MEMORY..=MAX_TCP_MEMORY).contains(&memory),
            what,
            "tcp_memory_bytes",
            memory,
            "must be 1 MiB to 1 TiB",
        )?;
        for timeout in [Timeout::TcpTimeWait, Timeout::TcpFinWait, Timeout::TcpUser, Timeout::TcpMinimumRto] {
            let time = self.node.timeouts_ms.get(timeout as usize).copied().unwrap_or(0);
            let (range, rule) = match timeout {
                Timeout::TcpMinimumRto => (10..=10_000, "must be 10 ms to 10 s for the least RTO"),
                _ => (MIN_TIME_MS..=MAX_TIME_MS, "must be 100 ms to 24 h for terminated TCP"),
            };
            ensure(range.contains(&time), what, "timeouts_ms", u64::from(time), rule)?;
        }
        Ok(())
    }
}

/// Vips and listeners.
#[derive(Clone, Debug)]
pub struct ListenersTable {
    /// Addresses that Weir answers for.
    pub vips: Vec<VipRecord>,
    /// Listeners, in any order; no two claim the same vip, protocol and port.
    pub listeners: Vec<ListenerRecord>,
    /// What the listeners of mode `proxy` name by position.
    pub proxies: Vec<ProxyRecord>,
    /// Prefixes of clients whose PROXY header is believed; a proxy names its stretch of them.
    pub trusted: Vec<Address>,
}

impl ListenersTable {
    /// The table's bytes.
    pub fn encode(&self) -> TableImage {
        let mut content = Vec::new();
        content.extend_from_slice((self.vips.len() as u32).as_bytes());
        content.extend_from_slice((self.listeners.len() as u32).as_bytes());
        content.extend_from_slice((self.proxies.len() as u32).as_bytes());
        content.extend_from_slice((self.trusted.len() as u32).as_bytes());
        content.extend_from_slice(self.vips.as_bytes());
        content.extend_from_slice(self.listeners.as_bytes());
        content.extend_from_slice(self.proxies.as_bytes());
        content.extend_from_slice(self.trusted.as_bytes());
        TableImage::seal(TableKind::Listeners, &content)
    }

    /// Verifies a private copy. That pools exist is checked by the reader of the whole root.
    pub fn parse(reference: &TableRef, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let content = unseal(reference, bytes)?;
        let what = table_name(reference.id);
        let length = || wrong_length(reference, bytes);
        let (counts, rest) = records::<u32>(content, 4).ok_or_else(length)?;
        let [vips, listeners, proxies, trusted] = counts.as_slice() else { return Err(length()) };
        let (vips, rest) = records::<VipRecord>(rest, *vips as usize).ok_or_else(length)?;
        let (listeners, rest) = records::<ListenerRecord>(rest, *listeners as usize).ok_or_else(length)?;
        let (proxies, rest) = records::<ProxyRecord>(rest, *proxies as usize).ok_or_else(length)?;
        let (trusted, rest) = records::<Address>(rest, *trusted as usize).ok_or_else(length)?;
        if !rest.is_empty() {
            return Err(length());
        }
        for vip in &vips {
            check_address(&vip.address, &what, "vip.address")?;
        }
        for listener in &listeners {
            check_listener(listener, vips.len(), &what)?;
            check_proxy(listener, proxies.len(), &what)?;
        }
        for proxy in &proxies {
            proxy.check(trusted.len(), &what)?;
        }
        for prefix in &trusted {
            check_address(prefix, &what, "trusted")?;
        }
        Ok(Self { vips, listeners, proxies, trusted })
    }
}

fn check_listener(listener: &ListenerRecord, vips: usize, what: &str) -> Result<(), SnapshotError> {
    let index = listener.index as usize;
    ensure(index < MAX_LISTENERS, what, "listener.index", index as u64, "must be below 65,535")?;
    ensure((listener.vip as usize) < vips, what, "listener.vip", u64::from(listener.vip), "must be a vip")?;
    ensure(
        (listener.pool as usize) < MAX_POOLS,
        what,
        "listener.pool",
        u64::from(listener.pool),
        "must be a pool",
    )?;
    ensure(
        listener.port_first >= 1 && listener.port_first <= listener.port_last,
        what,
        "port_first",
        u64::from(listener.port_first),
        "must be at least 1 and at most port_last",
    )?;
    ensure(
        matches!(listener.protocol, 6 | 17),
        what,
        "protocol",
        u64::from(listener.protocol),
        "must be 6 or 17",
    )?;
    ensure(Mode::from_u8(listener.mode).is_some(), what, "mode", u64::from(listener.mode), "must be known")?;
    ensure(
        listener.gue_variant <= 1,
        what,
        "gue_variant",
        u64::from(listener.gue_variant),
        "must be 0 or 1",
    )?;
    ensure(
        OnDown::from_u8(listener.on_down).is_some(),
        what,
        "on_down",
        u64::from(listener.on_down),
        "must be known",
    )?;
    ensure(listener.gue_port >= 1, what, "gue_port", u64::from(listener.gue_port), "must be at least 1")
}

fn check_proxy(listener: &ListenerRecord, proxies: usize, what: &str) -> Result<(), SnapshotError> {
    let at = u64::from(listener.proxy);
    if listener.mode != Mode::Proxy as u8 {
        let none = listener.proxy == NO_INDEX;
        return ensure(none, what, "listener.proxy", at, "must be none in a mode other than proxy");
    }
    ensure((listener.proxy as usize) < proxies, what, "listener.proxy", at, "must be a proxy")?;
    ensure(
        listener.protocol == 6,
        what,
        "protocol",
        u64::from(listener.protocol),
        "must be 6 in mode proxy",
    )?;
    let on_down = listener.on_down;
    let stays = on_down != OnDown::Reselect as u8;
    ensure(stays, what, "on_down", u64::from(on_down), "must not be reselect in mode proxy")
}

/// A pool, its backends and its slots.
#[derive(Clone, Debug)]
pub struct PoolTable {
    /// Head; its counts are set by [`PoolTable::encode`].
    pub pool: PoolRecord,
    /// Backends by position, removed ones that may still hold flows included.
    pub backends: Vec<BackendRecord>,
    /// Positions, or [`NO_POSITION`] where no backend takes new flows.
    pub slots: Vec<u16>,
}

impl PoolTable {
    /// The table's bytes.
    pub fn encode(&self) -> TableImage {
        let mut pool = self.pool;
        pool.backends = self.backends.len() as u32;
        pool.slots = self.slots.len() as u32;
        let mut content = Vec::with_capacity(
            size_of::<PoolRecord>()
                + size_of_val(self.backends.as_slice())
                + size_of_val(self.slots.as_slice()),
        );
        content.extend_from_slice(pool.as_bytes());
        content.extend_from_slice(self.backends.as_bytes());
        content.extend_from_slice(self.slots.as_bytes());
        TableImage::seal(TableKind::Pool, &content)
    }

    /// Verifies a private copy.
    pub fn parse(reference: &TableRef, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let content = unseal(reference, bytes)?;
        let what = table_name(reference.id);
        let length = || wrong_length(reference, bytes);
        let (pool, rest) = PoolRecord::read_from_prefix(content).map_err(|_| length())?;
        let (backends, rest) = records::<BackendRecord>(rest, pool.backends as usize).ok_or_else(length)?;
        let (slots, rest) = records::<u16>(rest, pool.slots as usize).ok_or_else(length)?;
        if !rest.is_empty() {
            return Err(length());
        }
        ensure(
            (pool.index as usize) < MAX_POOLS,
            &what,
            "pool.index",
            u64::from(pool.index),
            "must be below 65,535",
        )?;
        ensure(
            Algorithm::from_u8(pool.algorithm).is_some(),
            &what,
            "algorithm",
            u64::from(pool.algorithm),
            "must be known",
        )?;
        ensure(
            SendProxy::from_u8(pool.send_proxy).is_some(),
            &what,
            "send_proxy",
            u64::from(pool.send_proxy),
            "must be known",
        )?;
        pool.upstream.check_pool(&what)?;
        ensure(
            backends.len() <= MAX_POOL_BACKENDS,
            &what,
            "backends",
            backends.len() as u64,
            "must be at most 65,534",
        )?;
        ensure(!slots.is_empty(), &what, "slots", 0, "must be at least 1")?;
        for backend in &backends {
            check_address(&backend.address, &what, "backend.address")?;
            ensure(
                AdminState::from_u8(backend.admin).is_some(),
                &what,
                "admin",
                u64::from(backend.admin),
                "must be known",
            )?;
            ensure(backend.down <= 1, &what, "down", u64::from(backend.down), "must be 0 or 1")?;
        }
        let bound = backends.len() as u16;
        if let Some(&slot) = slots.iter().find(|&&slot| slot != NO_POSITION && slot >= bound) {
            return Err(value(&what, "slot", u64::from(slot), "must be a backend's position"));
        }
        Ok(Self { pool, backends, slots })
    }
}

fn check_address(address: &Address, what: &str, field: &'static str) -> Result<(), SnapshotError> {
    let bits = match address.family {
        4 => 32,
        6 => 128,
        family => return Err(value(what, field, u64::from(family), "must be of family 4 or 6")),
    };
    ensure(
        address.prefix_length <= bits,
        what,
        field,
        u64::from(address.prefix_length),
        "is too long a prefix",
    )
}

pub(crate) fn ensure(
    holds: bool,
    what: &str,
    field: &'static str,
    number: u64,
    rule: &'static str,
) -> Result<(), SnapshotError> {
    if holds { Ok(()) } else { Err(value(what, field, number, rule)) }
}

fn value(what: &str, field: &'static str, number: u64, rule: &'static str) -> SnapshotError {
    SnapshotError::Value { what: what.to_owned(), field, value: number, rule }
}

fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, CHECKSUM_SEED)
}

/// Copies `count` records off the front; `None` where the bytes don't hold so many.
fn records<T: FromBytes + IntoBytes + Immutable>(bytes: &[u8], count: usize) -> Option<(Vec<T>, &[u8])> {
    let length = count.checked_mul(size_of::<T>())?;
    let (head, rest) = bytes.split_at_checked(length)?;
    let mut records = T::new_vec_zeroed(count).ok()?;
    records.as_mut_slice().as_mut_bytes().copy_from_slice(head);
    Some((records, rest))
}

/// Seals arbitrary content, for fuzzing what lies behind the checksum.
pub(crate) fn seal_raw(kind: TableKind, content: &[u8]) -> TableImage {
    TableImage::seal(kind, content)
}

/// Gives arbitrary bytes the magic, version, length and checksum of a root, for fuzzing.
pub(crate) fn reseal_root(data: &[u8]) -> Vec<u8> {
    let Ok((header, body)) = RootHeader::read_from_prefix(data) else { return data.to_vec() };
    let whole = body.len() / size_of::<TableRef>() * size_of::<TableRef>();
    seal_root(RootHeader { magic: ROOT_MAGIC, version: VERSION, ..header }, body.get(..whole).unwrap_or(&[]))
}

/// The generation that a root's header claims.
pub(crate) fn generation_of(bytes: &[u8]) -> u64 {
    RootHeader::read_from_prefix(bytes).map_or(0, |(header, _)| header.generation)
}

#[cfg(test)]
#[path = "image_tests.rs"]
mod tests;
