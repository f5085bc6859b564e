//! How roots and tables become bytes and are proved before use.
//!
//! ctlplane calls `encode`, the dataplane (and the CLI) `parse` on a private copy. `parse` checks magic, version, length,
//! checksum, then every count, reference and enum value: what it returns can be used without further checks.

use xxhash_rust::xxh3::xxh3_64_with_seed;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::access::MAX_LISTS;
use crate::check::{self, value};
use crate::proxy::ProxyRecord;
use crate::record::{
    Address, BackendRecord, InterfaceAddressRecord, ListenerRecord, MAX_LISTENERS, MAX_POOLS, NodeRecord,
    PoolRecord, PortRecord, PortRouteRecord, VERSION, VipRecord,
};

const ROOT_MAGIC: [u8; 8] = *b"WEIRROOT";
const TABLE_MAGIC: [u8; 8] = *b"WEIRTABL";
const CHECKSUM_SEED: u64 = 0x7765_6972_5f63_6b73;
const ID_SEED: u64 = 0x7765_6972_5f69_645f;

/// Most tables that a root may name: node, listeners, pools, listeners of HTTP, access and its lists.
pub const MAX_TABLES: usize = 2 + MAX_POOLS + MAX_LISTENERS + 1 + MAX_LISTS;
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
    /// [`crate::HttpTable`].
    Http = 4,
    /// [`crate::AccessTable`].
    Access = 5,
    /// [`crate::AccessList`].
    AccessList = 6,
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

/// One generation: which tables make it up, in order: node, listeners, pools, listeners of HTTP,
/// access, its lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Number of the generation, rising.
    pub generation: u64,
    /// When it was made, for people.
    pub created_unix_ms: u64,
    /// Exactly one node table, one listeners table, any number of pools and of listeners of HTTP, one access table at most, and
    /// any number of its lists.
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
        let mut last = TableKind::Pool as u32;
        for (position, table) in tables.iter().enumerate() {
            let fits = match position {
                0 => table.kind == TableKind::Node as u32,
                1 => table.kind == TableKind::Listeners as u32,
                _ => (last..=TableKind::AccessList as u32).contains(&table.kind),
            };
            if !fits {
                let rule = "must be node, listeners, pools, listeners of HTTP, access, its lists in order";
                return Err(value(&what(), "kind", u64::from(table.kind), rule));
            }
            last = last.max(table.kind);
        }
        if count < 2 {
            return Err(value(&what(), "tables", count as u64, "must be at least node and listeners"));
        }
        Ok(Self { generation, created_unix_ms: header.created_unix_ms, tables })
    }

    /// The tables of a kind.
    pub fn of_kind(&self, kind: TableKind) -> impl Iterator<Item = &TableRef> {
        self.tables.iter().filter(move |table| table.kind == kind as u32)
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
    pub(crate) fn seal(kind: TableKind, content: &[u8]) -> Self {
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
pub(crate) fn wrong_length(reference: &TableRef, bytes: &[u8]) -> SnapshotError {
    SnapshotError::Length {
        what: table_name(reference.id),
        got: bytes.len(),
        expected: reference.length as usize,
    }
}

/// Proves a table's bytes against the root's reference and returns its content.
pub(crate) fn unseal<'a>(
    kind: TableKind,
    reference: &TableRef,
    bytes: &'a [u8],
) -> Result<&'a [u8], SnapshotError> {
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
    if header.kind != reference.kind || header.kind != kind as u32 {
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
        let content = unseal(TableKind::Node, reference, bytes)?;
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
        check::node(&table, &what)?;
        Ok(table)
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
        let content = unseal(TableKind::Listeners, reference, bytes)?;
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
        let table = Self { vips, listeners, proxies, trusted };
        check::listeners(&table, &what)?;
        Ok(table)
    }
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
        let content = unseal(TableKind::Pool, reference, bytes)?;
        let what = table_name(reference.id);
        let length = || wrong_length(reference, bytes);
        let (pool, rest) = PoolRecord::read_from_prefix(content).map_err(|_| length())?;
        let (backends, rest) = records::<BackendRecord>(rest, pool.backends as usize).ok_or_else(length)?;
        let (slots, rest) = records::<u16>(rest, pool.slots as usize).ok_or_else(length)?;
        if !rest.is_empty() {
            return Err(length());
        }
        let table = Self { pool, backends, slots };
        check::pool(&table, &what)?;
        Ok(table)
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, CHECKSUM_SEED)
}

/// Copies `count` records off the front; `None` where the bytes don't hold so many.
pub(crate) fn records<T: FromBytes + IntoBytes + Immutable>(
    bytes: &[u8],
    count: usize,
) -> Option<(Vec<T>, &[u8])> {
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
