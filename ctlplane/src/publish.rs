//! How does a generation reach the other process? Tables first, then the root, then the number; retired files go.
//!
//! The directory is tmpfs and may be wiped or written by others between two lives of the daemon: what is there is used
//! only after it was read and compared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hugepages::generation::{ControlError, DataplaneState, Publisher};
use hugepages::segment::{SegmentDir, SegmentError};
use weir_abi::image::{MAX_ROOT_BYTES, MAX_TABLE_BYTES};
use weir_abi::{Root, TableRef, root_generation, root_name, table_name};

use crate::compile::Compiled;

/// The dataplane's refusal code for files that do not verify; its other codes are about files that are good.
const REFUSED_INVALID: u64 = 1;

/// Why nothing was published. The old generation runs on.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Shared memory refused.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// Another daemon, or a control page of another kind.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Two different tables with one content hash.
    #[error("two tables have the id {0:016x}; change any weight by one to get past this hash collision")]
    Collision(u64),
}

/// What a publication cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// The generation.
    pub generation: u64,
    /// Tables that were not there yet.
    pub tables_written: usize,
    /// Tables in all.
    pub tables: usize,
}

/// The writing end of one instance's shared memory.
#[derive(Debug)]
pub struct Snapshots {
    directory: SegmentDir,
    publisher: Publisher,
    /// Tables that this process wrote or compared.
    verified: HashMap<u64, TableRef>,
    /// Roots in the directory and what they need.
    roots: BTreeMap<u64, Vec<TableRef>>,
}

/// Where an instance's segments are.
pub fn instance_directory(shm: &Path, instance: &str) -> std::path::PathBuf {
    shm.join(format!("weir-{instance}"))
}

impl Snapshots {
    /// Opens, and makes where needed, the directory; refuses where another daemon has it.
    pub fn open(path: &Path) -> Result<Self, PublishError> {
        let directory = SegmentDir::open(path)?;
        let publisher = Publisher::open(&directory)?;
        directory.remove_partial()?;
        let mut snapshots = Self { directory, publisher, verified: HashMap::new(), roots: BTreeMap::new() };
        for generation in snapshots.directory.list()?.iter().filter_map(|name| root_generation(name)) {
            if let Some(root) = read_root(&snapshots.directory, generation) {
                snapshots.roots.insert(generation, root.tables);
            }
        }
        Ok(snapshots)
    }

    /// The generation that the control page names; 0 = none.
    pub fn published(&self) -> u64 {
        self.publisher.published()
    }

    /// The directory.
    pub fn directory(&self) -> &SegmentDir {
        &self.directory
    }

    /// The other process.
    pub fn dataplane(&self) -> DataplaneState {
        self.publisher.dataplane()
    }

    /// The lowest generation that any worker runs.
    pub fn acked_by_all(&self) -> Option<u64> {
        self.publisher.acked_by_all()
    }

    /// Says that the daemon lives.
    pub fn beat(&self) {
        self.publisher.beat(hugepages::generation::monotonic_ns());
    }

    /// Whether the directory still has the page that this process writes.
    pub fn is_current(&self) -> bool {
        self.publisher.control().is_current(&self.directory)
    }

    /// The published root, if its file is good.
    pub fn current(&self) -> Option<Root> {
        match self.published() {
            0 => None,
            generation => read_root(&self.directory, generation),
        }
    }

    /// Whether the published generation is exactly this, every table intact.
    pub fn holds(&mut self, compiled: &Compiled) -> bool {
        let Some(root) = self.current() else { return false };
        if root.tables != compiled.references() {
            return false;
        }
        compiled.tables.iter().all(|table| {
            let name = table_name(table.reference.id);
            let intact = self.directory.read(&name, MAX_TABLE_BYTES).is_ok_and(|bytes| bytes == table.bytes);
            if intact {
                self.verified.insert(table.reference.id, table.reference);
            }
            intact
        })
    }

    /// Whether the dataplane could not read the files of the published generation.
    pub fn is_refused_as_invalid(&self) -> bool {
        let published = self.published();
        let refusal = self.dataplane().refusal;
        refusal.is_some_and(|refusal| refusal.generation == published && refusal.code == REFUSED_INVALID)
    }

    /// Whether what this process once wrote may be taken to be there still: a dataplane that runs and complains of
    /// nothing has read it.
    fn is_proved(&self) -> bool {
        self.dataplane().is_alive && !self.is_refused_as_invalid()
    }

    /// Whether `compiled` is in force already, so that it need not be published.
    pub fn needs_nothing(&mut self, compiled: &Compiled) -> bool {
        if self.is_refused_as_invalid() {
            return false;
        }
        if !self.is_proved() {
            return self.holds(compiled);
        }
        self.current().is_some_and(|root| root.tables == compiled.references())
    }

    /// Publishes `compiled` as `generation`. Files of an earlier generation are used again; where that one is in doubt,
    /// only after they were read and compared.
    pub fn publish(&mut self, compiled: &Compiled, generation: u64) -> Result<Published, PublishError> {
        let mut tables_written = 0;
        let is_proved = self.is_proved();
        let mut compared: HashSet<u64> = HashSet::new();
        for table in &compiled.tables {
            let reference = table.reference;
            match self.verified.get(&reference.id) {
                Some(known) if *known != reference => return Err(PublishError::Collision(reference.id)),
                Some(_) if is_proved || compared.contains(&reference.id) => continue,
                _ => {}
            }
            let name = table_name(reference.id);
            let there = self.directory.exists(&name)
                && self.directory.read(&name, MAX_TABLE_BYTES).is_ok_and(|bytes| bytes == table.bytes);
            if !there {
                self.directory.publish(&name, &table.bytes)?;
                tables_written += 1;
            }
            self.verified.insert(reference.id, reference);
            compared.insert(reference.id);
        }
        let created_unix_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let root = Root { generation, created_unix_ms, tables: compiled.references() };
        self.directory.publish(&root_name(generation), &root.encode())?;
        self.roots.insert(generation, root.tables);
        self.publisher.publish(generation);
        self.forget()?;
        Ok(Published { generation, tables_written, tables: compiled.tables.len() })
    }

    /// Removes roots and tables that nobody can need: kept are the newest two, what the dataplane adopted, and everything from
    /// the lowest acked generation on. Files of earlier lives too: it looks through the directory.
    pub fn retire(&mut self) -> Result<usize, PublishError> {
        let mut removed = self.forget()?;
        let kept: HashSet<u64> = self.roots.values().flatten().map(|table| table.id).collect();
        for name in self.directory.list()? {
            let unneeded = match root_generation(&name) {
                Some(generation) => !self.roots.contains_key(&generation),
                None => name
                    .strip_prefix("table-")
                    .and_then(|id| u64::from_str_radix(id, 16).ok())
                    .is_some_and(|id| !kept.contains(&id)),
            };
            if unneeded && self.directory.remove(&name)? {
                removed += 1;
            }
        }
        self.verified.retain(|id, _| kept.contains(id));
        Ok(removed)
    }

    /// As [`Self::retire`], of what this process knows: a change waits for no listing.
    fn forget(&mut self) -> Result<usize, PublishError> {
        let dataplane = self.publisher.dataplane();
        let lowest = self.publisher.acked_by_all();
        let newest: Vec<u64> = self.roots.keys().rev().take(2).copied().collect();
        let keep = |generation: u64| {
            newest.contains(&generation)
                || generation == dataplane.adopted_generation
                || dataplane.workers.iter().any(|worker| worker.acked_generation == generation)
                || lowest.is_some_and(|lowest| generation >= lowest && lowest > 0)
        };
        let gone: BTreeMap<u64, Vec<TableRef>> =
            self.roots.extract_if(.., |generation, _| !keep(*generation)).collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let mut unneeded: HashSet<u64> = gone.values().flatten().map(|table| table.id).collect();
        for table in self.roots.values().flatten() {
            unneeded.remove(&table.id);
        }
        let names = gone.into_keys().map(root_name).chain(unneeded.iter().copied().map(table_name));
        let mut removed = 0;
        for name in names {
            removed += usize::from(self.directory.remove(&name)?);
        }
        self.verified.retain(|id, _| !unneeded.contains(id));
        Ok(removed)
    }
}

/// A root's file, proved.
pub fn read_root(directory: &SegmentDir, generation: u64) -> Option<Root> {
    let bytes = directory.read(&root_name(generation), MAX_ROOT_BYTES).ok()?;
    match Root::parse(generation, &bytes) {
        Ok(root) => Some(root),
        Err(error) => {
            tracing::warn!("{error}");
            None
        }
    }
}
