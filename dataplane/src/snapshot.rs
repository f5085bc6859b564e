//! From the published generation's number to verified tables: what the management thread reads from shared memory.
//!
//! Each file is copied out before it is verified, so that a hostile or buggy writer can't change it afterwards. Tables that
//! the running generation has already are neither read nor verified again.

use std::collections::HashMap;
use std::sync::Arc;

use hugepages::segment::{SegmentDir, SegmentError};
use weir_abi::image::{MAX_ROOT_BYTES, MAX_TABLE_BYTES};
use weir_abi::{
    ListenersTable, NodeTable, PoolTable, Root, SnapshotError, TableRef, root_generation, root_name,
    table_name,
};

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
    /// Pools with the id of their table.
    pub pools: Vec<(u64, Arc<PoolTable>)>,
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
        let [node_ref, listeners_ref, pool_refs @ ..] = root.tables.as_slice() else {
            return Err(LoadError::Reference { generation, problem: "too few tables:", value: 0 });
        };
        let previous_pools: HashMap<u64, &Arc<PoolTable>> =
            previous.iter().flat_map(|previous| &previous.pools).map(|(id, pool)| (*id, pool)).collect();
        let node = match previous.filter(|previous| previous.node_id == node_ref.id) {
            Some(previous) => Arc::clone(&previous.node),
            None => Arc::new(NodeTable::parse(node_ref, &table(directory, node_ref)?)?),
        };
        let listeners = match previous.filter(|previous| previous.listeners_id == listeners_ref.id) {
            Some(previous) => Arc::clone(&previous.listeners),
            None => Arc::new(ListenersTable::parse(listeners_ref, &table(directory, listeners_ref)?)?),
        };
        let mut pools = Vec::with_capacity(pool_refs.len());
        for reference in pool_refs {
            let pool = match previous_pools.get(&reference.id) {
                Some(pool) => Arc::clone(pool),
                None => Arc::new(PoolTable::parse(reference, &table(directory, reference)?)?),
            };
            pools.push((reference.id, pool));
        }
        let snapshot =
            Self { generation, node, node_id: node_ref.id, listeners, listeners_id: listeners_ref.id, pools };
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
        let mut backends = HashMap::new();
        for (_, pool) in &self.pools {
            if pools.insert(pool.pool.index, ()).is_some() {
                return error("two pools have index", u64::from(pool.pool.index));
            }
            for backend in &pool.backends {
                if backends.insert(backend.index, ()).is_some() {
                    return error("two backends have index", u64::from(backend.index));
                }
                if backend.index >= self.node.node.backend_capacity {
                    return error("a backend's index is beyond backend_capacity:", u64::from(backend.index));
                }
            }
        }
        let mut indices = HashMap::new();
        for listener in &self.listeners.listeners {
            if !pools.contains_key(&listener.pool) {
                return error("a listener names a pool that is not there:", u64::from(listener.pool));
            }
            if indices.insert(listener.index, ()).is_some() {
                return error("two listeners have index", u64::from(listener.index));
            }
        }
        Ok(())
    }

    /// What of the node table can't change while the process runs; the first difference is named.
    pub fn needs_restart(&self, running: &Self) -> Option<&'static str> {
        if self.node_id == running.node_id {
            return None;
        }
        let (new, old) = (&self.node, &running.node);
        let devices = |table: &NodeTable| -> Vec<(String, u16, u16, u16)> {
            let key = |port: &weir_abi::record::PortRecord| {
                (port.device.as_str().to_owned(), port.mtu, port.queues, port.descriptors)
            };
            table.ports.iter().map(key).collect()
        };
        let workers = |table: &NodeTable| {
            let count = table.node.worker_count as usize;
            table.node.worker_cpus.iter().copied().take(count).collect::<Vec<u16>>()
        };
        if workers(new) != workers(old) {
            Some("dataplane.workers")
        } else if (new.node.flows_ipv4, new.node.flows_ipv6) != (old.node.flows_ipv4, old.node.flows_ipv6) {
            Some("dataplane.flow_table")
        } else if new.node.backend_capacity != old.node.backend_capacity {
            Some("dataplane.max_backends")
        } else if (new.node.buffers, new.node.buffer_bytes) != (old.node.buffers, old.node.buffer_bytes) {
            Some("dataplane.buffers")
        } else if devices(new) != devices(old) {
            Some("the list of ports, a port's device, mtu, queues or descriptors")
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
