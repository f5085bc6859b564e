//! How are listeners, routes, pools and backends called that an event names by index? As in the snapshot of its generation.
//!
//! Read from shared memory, where tables are named by their content: what two generations share is read once. Indices are stable, so that
//! a generation whose files are gone already is answered by a neighbour; only routes, which have no stable index, may then be
//! those of another time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use hugepages::segment::SegmentDir;
use weir_abi::image::MAX_TABLE_BYTES;
use weir_abi::{HttpTable, ListenersTable, PoolTable, TableKind, TableRef, table_name};

use crate::publish::read_root;

/// Generations that are kept: events of the one before the last are rare already.
const KEPT: usize = 8;

/// Names of one generation.
#[derive(Clone, Debug, Default)]
pub struct Names {
    listeners: HashMap<u16, String>,
    routes: HashMap<u16, Vec<String>>,
    pools: HashMap<u32, String>,
    /// Position in `of_pools`, and of the backend there.
    backends: HashMap<u32, (usize, usize)>,
    of_pools: Vec<Arc<PoolNames>>,
}

/// Names of a pool table.
#[derive(Debug)]
struct PoolNames {
    index: u32,
    name: String,
    backends: Vec<(u32, String)>,
}

/// Names of a table, whichever it is.
#[derive(Clone, Debug)]
enum TableNames {
    Listeners(Arc<Vec<(u16, String)>>),
    Routes(Arc<(u16, Vec<String>)>),
    Pool(Arc<PoolNames>),
    Nothing,
}

impl Names {
    /// The name of a listener.
    pub fn listener(&self, index: u16) -> Option<&str> {
        self.listeners.get(&index).map(String::as_str)
    }

    /// The name of a route by its place in its listener's.
    pub fn route(&self, listener: u16, route: u16) -> Option<&str> {
        self.routes.get(&listener)?.get(usize::from(route)).map(String::as_str)
    }

    /// The name of a pool.
    pub fn pool(&self, index: u32) -> Option<&str> {
        self.pools.get(&index).map(String::as_str)
    }

    /// The names of a backend: its pool's and its own.
    pub fn backend(&self, index: u32) -> Option<(&str, &str)> {
        let &(pool, backend) = self.backends.get(&index)?;
        let pool = self.of_pools.get(pool)?;
        Some((&pool.name, &pool.backends.get(backend)?.1))
    }

    fn add(&mut self, table: &TableNames) {
        match table {
            TableNames::Listeners(listeners) => {
                self.listeners.extend(listeners.iter().cloned());
            }
            TableNames::Routes(routes) => {
                self.routes.insert(routes.0, routes.1.clone());
            }
            TableNames::Pool(pool) => {
                let at = self.of_pools.len();
                self.pools.insert(pool.index, pool.name.clone());
                let places = pool.backends.iter().enumerate();
                self.backends.extend(places.map(|(place, (index, _))| (*index, (at, place))));
                self.of_pools.push(Arc::clone(pool));
            }
            TableNames::Nothing => {}
        }
    }
}

/// Names by generation.
#[derive(Debug, Default)]
pub(super) struct Directory {
    generations: VecDeque<(u64, Arc<Names>)>,
    /// What the tables of the newest generation say, by id.
    tables: BTreeMap<u64, TableNames>,
    /// Could not be read: not tried again for each event.
    missing: Option<u64>,
}

impl Directory {
    /// The names of a generation, or of the nearest that is known.
    pub(super) fn of(&mut self, segments: &SegmentDir, generation: u64) -> Arc<Names> {
        if let Some((_, names)) = self.generations.iter().find(|(known, _)| *known == generation) {
            return Arc::clone(names);
        }
        if self.missing != Some(generation) {
            match self.load(segments, generation) {
                Some(names) => return names,
                None => self.missing = Some(generation),
            }
        }
        let nearest = self.generations.iter().min_by_key(|(known, _)| known.abs_diff(generation));
        nearest.map(|(_, names)| Arc::clone(names)).unwrap_or_default()
    }

    fn load(&mut self, segments: &SegmentDir, generation: u64) -> Option<Arc<Names>> {
        let root = read_root(segments, generation)?;
        let (mut names, mut tables) = (Names::default(), BTreeMap::new());
        for reference in &root.tables {
            let known = self.tables.get(&reference.id).cloned();
            let table = known.or_else(|| read(segments, reference))?;
            names.add(&table);
            tables.insert(reference.id, table);
        }
        self.tables = tables;
        let names = Arc::new(names);
        self.generations.push_back((generation, Arc::clone(&names)));
        if self.generations.len() > KEPT {
            self.generations.pop_front();
        }
        Some(names)
    }
}

fn read(segments: &SegmentDir, reference: &TableRef) -> Option<TableNames> {
    let bytes = || segments.read(&table_name(reference.id), MAX_TABLE_BYTES).ok();
    let kind = |kind: TableKind| reference.kind == kind as u32;
    if kind(TableKind::Listeners) {
        let table = ListenersTable::parse(reference, &bytes()?).ok()?;
        let named = table.listeners.iter().map(|listener| (listener.index as u16, listener.name.to_string()));
        return Some(TableNames::Listeners(Arc::new(named.collect())));
    }
    if kind(TableKind::Http) {
        let table = HttpTable::parse(reference, &bytes()?).ok()?;
        let routes = table.routes.iter().map(|route| table.text(route.name).to_owned()).collect();
        return Some(TableNames::Routes(Arc::new((table.head.listener as u16, routes))));
    }
    if kind(TableKind::Pool) {
        let table = PoolTable::parse(reference, &bytes()?).ok()?;
        let backends =
            table.backends.iter().map(|backend| (backend.index, backend.name.to_string())).collect();
        let (index, name) = (table.pool.index, table.pool.name.to_string());
        return Some(TableNames::Pool(Arc::new(PoolNames { index, name, backends })));
    }
    Some(TableNames::Nothing)
}

#[cfg(test)]
impl Names {
    /// For tests: listener 1 with two routes, pool 2 with backend 3.
    pub(super) fn sample() -> Self {
        let mut names = Self::default();
        names.add(&TableNames::Listeners(Arc::new(vec![(1, "web".to_owned())])));
        names.add(&TableNames::Routes(Arc::new((1, vec!["all".to_owned(), "api \"v1\"".to_owned()]))));
        let backends = vec![(3, "app-1".to_owned())];
        names.add(&TableNames::Pool(Arc::new(PoolNames { index: 2, name: "app".to_owned(), backends })));
        names
    }
}
