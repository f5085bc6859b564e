//! From the published generation's number to verified tables: what the management thread reads from shared memory.
//!
//! Each file is copied out before it is verified, so that a hostile or buggy writer can't change it afterwards. Tables that
//! the running generation has already are neither read nor verified again.

use std::collections::HashMap;
use std::sync::Arc;

use hugepages::segment::{SegmentDir, SegmentError};
use weir_abi::image::{MAX_ROOT_BYTES, MAX_TABLE_BYTES};
use weir_abi::record::{Algorithm, Application, Drain, Mode, NO_INDEX};
use weir_abi::{
    HttpTable, ListenersTable, NodeTable, PoolTable, Root, SnapshotError, TableKind, TableRef,
    root_generation, root_name, table_name,
};
use weir_l4::{Pool, services};
use weir_l7::http::site::Site;

use crate::access::Access;
use crate::proxied::http::listener_of;

/// A verified generation.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its number.
    pub generation: u64,
    /// Ports, addresses, routes, sizes.
    pub node: Arc<NodeTable>,
    /// Id of the node table.
    pub node_id: u64,
    /// Vips and listeners.
    pub listeners: Arc<ListenersTable>,
    listeners_id: u64,
    /// Pools, by their tables.
    pub pools: Vec<LoadedPool>,
    /// Listeners of HTTP with the id of their table.
    pub sites: Vec<(u64, HttpSite)>,
    /// What listeners ask of new flows.
    pub access: Access,
}

impl Snapshot {
    /// Lets listeners of mode `proxy` take no new connections.
    pub fn drain_proxies(&mut self) {
        let listeners = Arc::make_mut(&mut self.listeners);
        let proxies = listeners.listeners.iter_mut().filter(|record| record.mode == Mode::Proxy as u8);
        for record in proxies.filter(|record| record.drain == Drain::No as u8) {
            record.drain = Drain::Yes as u8;
        }
    }
}

/// A pool as workers balance with it: made once for each table, as its slots may be many.
#[derive(Clone, Debug)]
pub struct LoadedPool {
    /// Of the table.
    pub id: u64,
    /// The table, without its slots.
    pub table: Arc<PoolTable>,
    /// The slots and whom they name.
    pub pool: Arc<Pool>,
}

impl LoadedPool {
    fn of(id: u64, mut table: PoolTable) -> Self {
        let pool = Pool {
            index: table.pool.index,
            algorithm: match Algorithm::from_u8(table.pool.algorithm) {
                // the latter two are for proxied connections; their slots are a schedule too
                Some(Algorithm::RoundRobin | Algorithm::LeastConn | Algorithm::RandomTwo) => {
                    services::Algorithm::RoundRobin
                }
                Some(Algorithm::SourceHash) => services::Algorithm::SourceHash,
                Some(Algorithm::Maglev) | None => services::Algorithm::Maglev,
            },
            slots: std::mem::take(&mut table.slots).into_boxed_slice(),
            members: table.backends.iter().map(|backend| backend.index).collect(),
        };
        Self { id, table: Arc::new(table), pool: Arc::new(pool) }
    }
}

/// A listener of HTTP, its routes indexed: that takes time, and is done once for each table.
#[derive(Clone, Debug)]
pub struct HttpSite {
    /// Index of the listener.
    pub listener: u32,
    /// Indices of the pools that it names, each once.
    pub pools: Arc<[u32]>,
    /// What it does.
    pub site: Arc<Site>,
}

impl HttpSite {
    fn of(table: &HttpTable) -> Result<Self, String> {
        let mut pools: Vec<u32> = table.pools().collect();
        pools.sort_unstable();
        pools.dedup();
        let site = Site::new(listener_of(table)).map_err(|error| error.to_string())?;
        Ok(Self { listener: table.head.listener, pools: pools.into(), site: Arc::new(site) })
    }
}

/// Why a generation can't be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file is missing or unreadable.
    #[error("can't read {name}: {source}")]
    Read {
        /// Which file.
        name: String,
        /// The system's reason.
        source: SegmentError,
    },
    /// A file is not what it should be.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A list that nobody can look up in.
    #[error("{name}: {source}")]
    List {
        /// Which table.
        name: String,
        /// Why.
        source: weir_access::TableError,
    },
    /// Routes that can't be indexed.
    #[error("{name}: {reason}")]
    Routes {
        /// Which table.
        name: String,
        /// Why.
        reason: String,
    },
    /// Tables that contradict each other.
    #[error("root-{generation}: {problem} {value}")]
    Reference {
        /// Of which generation.
        generation: u64,
        /// What is wrong.
        problem: &'static str,
        /// With which value.
        value: u64,
    },
}

impl Snapshot {
    /// Reads and verifies a generation; unchanged tables are taken from `previous`.
    pub fn load(directory: &SegmentDir, generation: u64, previous: Option<&Self>) -> Result<Self, LoadError> {
        let bytes = read(directory, &root_name(generation), MAX_ROOT_BYTES)?;
        let root = Root::parse(generation, &bytes)?;
        let [node_ref, listeners_ref, ..] = root.tables.as_slice() else {
            return Err(LoadError::Reference { generation, problem: "too few tables:", value: 0 });
        };
        let previous_pools: HashMap<u64, &LoadedPool> =
            previous.iter().flat_map(|previous| &previous.pools).map(|pool| (pool.id, pool)).collect();
        let node = match previous.filter(|previous| previous.node_id == node_ref.id) {
            Some(previous) => Arc::clone(&previous.node),
            None => Arc::new(NodeTable::parse(node_ref, &table(directory, node_ref)?)?),
        };
        let listeners = match previous.filter(|previous| previous.listeners_id == listeners_ref.id) {
            Some(previous) => Arc::clone(&previous.listeners),
            None => Arc::new(ListenersTable::parse(listeners_ref, &table(directory, listeners_ref)?)?),
        };
        let mut pools = Vec::new();
        for reference in root.of_kind(TableKind::Pool) {
            let pool = match previous_pools.get(&reference.id) {
                Some(pool) => LoadedPool::clone(pool),
                None => {
                    LoadedPool::of(reference.id, PoolTable::parse(reference, &table(directory, reference)?)?)
                }
            };
            pools.push(pool);
        }
        let known: HashMap<u64, &HttpSite> =
            previous.iter().flat_map(|previous| &previous.sites).map(|(id, site)| (*id, site)).collect();
        let mut sites = Vec::new();
        for reference in root.of_kind(TableKind::Http) {
            let site = match known.get(&reference.id) {
                Some(site) => HttpSite::clone(site),
                None => HttpSite::of(&HttpTable::parse(reference, &table(directory, reference)?)?)
                    .map_err(|reason| LoadError::Routes { name: table_name(reference.id), reason })?,
            };
            sites.push((reference.id, site));
        }
        let (node_id, listeners_id) = (node_ref.id, listeners_ref.id);
        let access = Access::load(&root, previous.map(|previous| &previous.access), |reference| {
            table(directory, reference)
        })?;
        let snapshot = Self { generation, node, node_id, listeners, listeners_id, pools, sites, access };
        snapshot.check()?;
        Ok(snapshot)
    }

    /// The newest generation in the directory that verifies: what a dataplane without a control plane starts from.
    pub fn newest(directory: &SegmentDir, rejected: &mut dyn FnMut(u64, LoadError)) -> Option<Self> {
        let mut generations: Vec<u64> =
            directory.list().unwrap_or_default().iter().filter_map(|name| root_generation(name)).collect();
        generations.sort_unstable_by(|a, b| b.cmp(a));
        generations.into_iter().find_map(|generation| match Self::load(directory, generation, None) {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                rejected(generation, error);
                None
            }
        })
    }

    fn check(&self) -> Result<(), LoadError> {
        let error =
            |problem, value| Err(LoadError::Reference { generation: self.generation, problem, value });
        let mut pools = HashMap::new();
        let mut is_backend = vec![false; self.node.node.backend_capacity as usize];
        for pool in self.pools.iter().map(|pool| &pool.table) {
            if pools.insert(pool.pool.index, ()).is_some() {
                return error("two pools have index", u64::from(pool.pool.index));
            }
            for backend in &pool.backends {
                let index = u64::from(backend.index);
                let Some(is_known) = is_backend.get_mut(backend.index as usize) else {
                    return error("a backend's index is beyond backend_capacity:", index);
                };
                if std::mem::replace(is_known, true) {
                    return error("two backends have index", index);
                }
            }
        }
        let mut sites = HashMap::new();
        for (_, site) in &self.sites {
            if let Some(pool) = site.pools.iter().find(|pool| !pools.contains_key(pool)) {
                return error("a route names a pool that is not there:", u64::from(*pool));
            }
            if sites.insert(site.listener, ()).is_some() {
                return error("two tables of HTTP are for listener", u64::from(site.listener));
            }
        }
        let mut indices = HashMap::new();
        for listener in &self.listeners.listeners {
            let http = listener.application == Application::Http as u8;
            let may_have_none = http && listener.pool == NO_INDEX;
            if !may_have_none && !pools.contains_key(&listener.pool) {
                return error("a listener names a pool that is not there:", u64::from(listener.pool));
            }
            if indices.insert(listener.index, ()).is_some() {
                return error("two listeners have index", u64::from(listener.index));
            }
            if sites.remove(&listener.index).is_some() != http {
                return error(
                    "routes and protocol http don't go together in listener",
                    u64::from(listener.index),
                );
            }
        }
        if let Some(listener) = self.access.unknown_listener(|index| indices.contains_key(&index)) {
            return error("access is for a listener that is not there, or twice:", listener.into());
        }
        if let Some(list) = self.access.unknown_list() {
            return error("access names a list that is not there:", list);
        }
        match sites.keys().next() {
            Some(listener) => error("routes are for a listener that is not there:", u64::from(*listener)),
            None => Ok(()),
        }
    }

    /// What of the node table can't change while the process runs; the first difference is named.
    pub fn needs_restart(&self, running: &Self) -> Option<&'static str> {
        if self.node_id == running.node_id {
            return None;
        }
        let (new, old) = (&self.node, &running.node);
        let devices = |table: &NodeTable| -> Vec<(String, u16, u16, u16, String)> {
            let key = |port: &weir_abi::record::PortRecord| {
                let (device, exception) =
                    (port.device.as_str().to_owned(), port.exception.as_str().to_owned());
                (device, port.mtu, port.queues, port.descriptors, exception)
            };
            table.ports.iter().map(key).collect()
        };
        let workers = |table: &NodeTable| {
            let count = table.node.worker_count as usize;
            table.node.worker_cpus.iter().copied().take(count).collect::<Vec<u16>>()
        };
        if workers(new) != workers(old) {
            Some("dataplane.workers")
        } else if new.node.idle != old.node.idle {
            Some("dataplane.idle")
        } else if (new.node.flows_ipv4, new.node.flows_ipv6) != (old.node.flows_ipv4, old.node.flows_ipv6) {
            Some("dataplane.flow_table")
        } else if new.node.backend_capacity != old.node.backend_capacity {
            Some("dataplane.max_backends")
        } else if new.node.tcp_connections != old.node.tcp_connections {
            Some("dataplane.tcp_connections")
        } else if (new.node.buffers, new.node.buffer_bytes) != (old.node.buffers, old.node.buffer_bytes) {
            Some("dataplane.buffers")
        } else if devices(new) != devices(old) {
            Some("the list of ports, a port's device, mtu, queues, descriptors or exception")
        } else {
            None
        }
    }
}

fn read(directory: &SegmentDir, name: &str, limit: usize) -> Result<Vec<u8>, LoadError> {
    directory.read(name, limit).map_err(|source| LoadError::Read { name: name.to_owned(), source })
}

fn table(directory: &SegmentDir, reference: &TableRef) -> Result<Vec<u8>, LoadError> {
    read(directory, &table_name(reference.id), MAX_TABLE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, Generation};
    use weir_abi::record::{Mode, PortRecord};
    use weir_abi::text::Text;

    fn directory() -> (tempfile::TempDir, SegmentDir) {
        let parent = tempfile::tempdir().unwrap();
        let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
        (parent, directory)
    }

    fn generation() -> Generation {
        Generation::new("null:", "null:")
    }

    #[test]
    fn sites_are_indexed_once_for_each_table() {
        let (_parent, directory) = directory();
        generation().with_http(&[("/a", 0), ("/b+", 1)]).write(&directory, 1);
        let first = Snapshot::load(&directory, 1, None).unwrap();
        let site = &first.sites[0].1;
        assert_eq!((site.listener, &*site.pools, site.site.rules.routes.len()), (2, &[0, 1][..], 2));
        let mut next = generation().with_http(&[("/a", 0), ("/b+", 1)]);
        next.pools[0].backends[0].weight = 7;
        next.write(&directory, 2);
        let second = Snapshot::load(&directory, 2, Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&second.sites[0].1.site, &site.site));
        generation().with_http(&[("/a", 0)]).write(&directory, 3);
        let third = Snapshot::load(&directory, 3, Some(&second)).unwrap();
        assert_eq!(third.sites[0].1.site.rules.routes.len(), 1);
    }

    #[test]
    fn routes_that_cannot_be_are_refused() {
        let (_parent, directory) = directory();
        let refused = |change: &dyn Fn(&mut Generation)| {
            let mut generation = generation().with_http(&[("/a", 0)]);
            change(&mut generation);
            generation.write(&directory, 9);
            reason(&directory, 9)
        };
        let missing = refused(&|g| g.sites[0].splits[0].pool = 77);
        assert!(missing.contains("a route names a pool that is not there: 77"), "{missing}");
        let expression = refused(&|g| g.sites = vec![sample::site(2, &[("/a(b", 0)])]);
        assert!(expression.contains("expression"), "{expression}");
        for change in [&(|g: &mut Generation| g.sites.clear()) as &dyn Fn(&mut Generation), &|g| {
            g.listeners.listeners[2].application = 0
        }] {
            let found = refused(change);
            assert!(found.contains("listener"), "{found}");
        }
        let twice = refused(&|g| g.sites.push(sample::site(2, &[])));
        assert!(twice.contains("two tables of HTTP are for listener 2"), "{twice}");
        let nobody = refused(&|g| g.sites.push(sample::site(5, &[])));
        assert!(nobody.contains("routes are for a listener that is not there: 5"), "{nobody}");
    }

    fn reason(directory: &SegmentDir, generation: u64) -> String {
        Snapshot::load(directory, generation, None).unwrap_err().to_string()
    }

    /// Replaces a file by what `edit` makes of it.
    fn edit(directory: &SegmentDir, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = directory.read(name, MAX_TABLE_BYTES).unwrap();
        edit(&mut bytes);
        directory.publish(name, &bytes).unwrap();
    }

    #[test]
    fn what_was_written_is_loaded() {
        let (_parent, directory) = directory();
        let root = generation().write(&directory, 7);
        let snapshot = Snapshot::load(&directory, 7, None).unwrap();
        assert_eq!((snapshot.generation, snapshot.node_id), (7, root.tables[0].id));
        assert_eq!(snapshot.node.ports[1].name.as_str(), "lan");
        assert_eq!(snapshot.listeners.listeners.len(), 2);
        let pools: Vec<u64> = snapshot.pools.iter().map(|pool| pool.id).collect();
        assert_eq!(pools, [root.tables[2].id, root.tables[3].id]);
        assert_eq!(snapshot.pools[1].table.backends[0].index, 2);
    }

    #[test]
    fn a_missing_file_is_named() {
        let (_parent, directory) = directory();
        assert!(reason(&directory, 1).contains("root-1"), "{}", reason(&directory, 1));
        let root = generation().write(&directory, 1);
        for table in &root.tables {
            let name = table_name(table.id);
            let bytes = directory.read(&name, MAX_TABLE_BYTES).unwrap();
            directory.remove(&name).unwrap();
            let text = reason(&directory, 1);
            assert!(text.starts_with(&format!("can't read {name}: ")), "{text}");
            directory.publish(&name, &bytes).unwrap();
        }
        assert!(Snapshot::load(&directory, 1, None).is_ok());
    }

    #[test]
    fn corrupt_truncated_and_foreign_files_are_refused_with_a_reason() {
        let (_parent, directory) = directory();
        let root = generation().write(&directory, 1);
        let mut files = vec![root_name(1)];
        files.extend(root.tables.iter().map(|table| table_name(table.id)));
        for name in &files {
            let good = directory.read(name, MAX_TABLE_BYTES).unwrap();
            let last = good.len() - 1;
            edit(&directory, name, |bytes| bytes[last] ^= 0x40);
            assert!(reason(&directory, 1).starts_with(&format!("{name}: checksum ")), "{name}");
            directory.publish(name, &good[..last]).unwrap();
            let text = reason(&directory, 1);
            assert!(text.starts_with(&format!("{name} is {last} bytes long, expected ")), "{text}");
            directory.publish(name, b"").unwrap();
            assert!(reason(&directory, 1).starts_with(&format!("{name} is 0 bytes long")), "{name}");
            let mut foreign = good.clone();
            foreign[8] = 99;
            directory.publish(name, &foreign).unwrap();
            let text = reason(&directory, 1);
            assert!(text.starts_with(&format!("{name} has layout version 99, ")), "{text}");
            foreign[0] ^= 1;
            directory.publish(name, &foreign).unwrap();
            assert!(reason(&directory, 1).contains("does not start with the magic"), "{name}");
            directory.publish(name, &good).unwrap();
        }
        // another generation's root under this one's name
        directory.publish(&root_name(2), &root.encode()).unwrap();
        assert!(reason(&directory, 2).contains("must be that of the file name"), "{}", reason(&directory, 2));
    }

    #[test]
    fn a_file_that_is_too_long_is_refused_before_it_is_read() {
        let (parent, directory) = directory();
        generation().write(&directory, 1);
        let path = parent.path().join("weir-test").join(root_name(1));
        std::fs::File::options().write(true).open(path).unwrap().set_len(1 << 40).unwrap();
        assert!(reason(&directory, 1).contains("more than the"), "{}", reason(&directory, 1));
    }

    #[test]
    fn tables_that_contradict_each_other_are_refused_with_the_value() {
        let (_parent, directory) = directory();
        let mut number = 0;
        let mut refused = |change: &dyn Fn(&mut Generation)| {
            number += 1;
            let mut generation = generation();
            change(&mut generation);
            generation.write(&directory, number);
            let text = reason(&directory, number);
            text.strip_prefix(&format!("root-{number}: ")).unwrap_or(&text).to_owned()
        };
        assert_eq!(refused(&|g| g.pools[1].pool.index = 0), "two pools have index 0");
        assert_eq!(refused(&|g| g.pools[1].backends[0].index = 1), "two backends have index 1");
        assert_eq!(
            refused(&|g| g.pools[1].backends[0].index = 16),
            "a backend's index is beyond backend_capacity: 16"
        );
        assert_eq!(refused(&|g| g.pools.truncate(1)), "a listener names a pool that is not there: 1");
        assert_eq!(
            refused(&|g| g.listeners.listeners.push(sample::listener(1, 6, 81, Mode::Nat, 0))),
            "two listeners have index 1"
        );
    }

    #[test]
    fn newest_falls_back_to_the_newest_that_verifies() {
        let (_parent, directory) = directory();
        let newest = |directory: &SegmentDir| {
            let mut rejected = vec![];
            let snapshot = Snapshot::newest(directory, &mut |generation, _| rejected.push(generation));
            (snapshot.map(|snapshot| snapshot.generation), rejected)
        };
        assert_eq!(newest(&directory), (None, vec![]));
        for number in [2, 9, 10] {
            generation().write(&directory, number);
        }
        directory.publish("root-x", b"no generation").unwrap();
        directory.publish("control", b"something else").unwrap();
        assert_eq!(newest(&directory), (Some(10), vec![]), "numbers are compared, not names");
        edit(&directory, "root-10", |bytes| bytes[40] ^= 1);
        directory.publish("root-9", b"").unwrap();
        assert_eq!(newest(&directory), (Some(2), vec![10, 9]));
        directory.remove("root-2").unwrap();
        assert_eq!(newest(&directory), (None, vec![10, 9]));
    }

    #[test]
    fn unchanged_tables_are_not_read_again() {
        let (_parent, directory) = directory();
        let root = generation().write(&directory, 1);
        let first = Snapshot::load(&directory, 1, None).unwrap();
        let mut changed = generation();
        changed.pools[1].backends[0].weight = 5;
        changed.write(&directory, 2);
        for table in &root.tables {
            directory.remove(&table_name(table.id)).unwrap();
        }
        let second = Snapshot::load(&directory, 2, Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&first.node, &second.node) && Arc::ptr_eq(&first.listeners, &second.listeners));
        assert!(Arc::ptr_eq(&first.pools[0].table, &second.pools[0].table));
        assert!(Arc::ptr_eq(&first.pools[0].pool, &second.pools[0].pool), "nor made again");
        assert_eq!(second.pools[1].table.backends[0].weight, 5);
        assert!(Snapshot::load(&directory, 2, None).is_err(), "the files are gone");
    }

    #[test]
    fn each_field_that_needs_a_restart_is_named() {
        let (_parent, directory) = directory();
        generation().write(&directory, 1);
        let running = Snapshot::load(&directory, 1, None).unwrap();
        assert_eq!(running.needs_restart(&running), None);
        let mut number = 1;
        let mut verdict = |change: &dyn Fn(&mut NodeTable)| {
            number += 1;
            let mut generation = generation();
            change(&mut generation.node);
            generation.write(&directory, number);
            Snapshot::load(&directory, number, Some(&running)).unwrap().needs_restart(&running)
        };
        let ports = Some("the list of ports, a port's device, mtu, queues, descriptors or exception");
        let flow_table = Some("dataplane.flow_table");
        assert_eq!(verdict(&|table| table.node.worker_count = 2), Some("dataplane.workers"));
        assert_eq!(verdict(&|table| table.node.worker_cpus[0] = 1), Some("dataplane.workers"));
        assert_eq!(verdict(&|table| table.node.idle = 0), Some("dataplane.idle"));
        assert_eq!(verdict(&|table| table.node.flows_ipv4 += 1), flow_table);
        assert_eq!(verdict(&|table| table.node.flows_ipv6 += 1), flow_table);
        assert_eq!(verdict(&|table| table.node.backend_capacity += 1), Some("dataplane.max_backends"));
        assert_eq!(verdict(&|table| table.node.tcp_connections += 1), Some("dataplane.tcp_connections"));
        assert_eq!(verdict(&|table| table.node.buffers += 1), Some("dataplane.buffers"));
        assert_eq!(verdict(&|table| table.node.buffer_bytes = 9_000), Some("dataplane.buffers"));
        let change = |edit: fn(&mut PortRecord)| move |table: &mut NodeTable| edit(&mut table.ports[1]);
        assert_eq!(verdict(&change(|port| port.device = Text::new("null:sink"))), ports);
        assert_eq!(verdict(&change(|port| port.mtu = 1_400)), ports);
        assert_eq!(verdict(&change(|port| port.queues = 1)), ports);
        assert_eq!(verdict(&change(|port| port.descriptors = 512)), ports);
        assert_eq!(verdict(&change(|port| port.exception = Text::new("weir-lan"))), ports);
        assert_eq!(verdict(&|table| table.ports.push(sample::port("third", "null:"))), ports);
        assert_eq!(verdict(&|table| table.ports.swap(0, 1)), None, "two devices of one kind are alike");
        // what a view carries
        assert_eq!(verdict(&|table| table.ports[0].vlan = 7), None);
        assert_eq!(verdict(&|table| table.node.timeouts_ms[0] += 1), None);
        assert_eq!(verdict(&|table| table.node.tcp_memory_bytes += 1), None);
        assert_eq!(verdict(&|table| table.node.worker_cpus[63] = 1), None, "there is no such worker");
        assert_eq!(verdict(&|table| table.routes.clear()), None);
    }
}
