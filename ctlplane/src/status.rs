//! How is the balancer? Read from shared memory alone, so that it can be answered with ctlplane down.

pub mod exception;
mod health;
pub mod http;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hugepages::generation::{ControlError, ControlPage};
use hugepages::segment::{SegmentDir, SegmentError};
use serde::{Deserialize, Serialize};
use weir_abi::columns::{
    BackendColumn, DROP_GROUP, ExceptionColumn, HttpBackendColumn, ListenerColumn, PortColumn, ProxyColumn,
    TcpColumn, UpstreamColumn, WorkerColumn,
};
use weir_abi::image::MAX_TABLE_BYTES;
use weir_abi::record::{AdminState, Algorithm, Application, Drain, Mode};
use weir_abi::{ListenersTable, NodeTable, PoolTable, Root, TableKind, table_name};

use crate::counters::Counters;
use crate::model::{algorithm_name, format_ports, protocol_name};
use crate::publish::{instance_directory, read_root};
use crate::units::format_backend_address;

pub use self::exception::Exception;
pub use self::health::BackendHealth;
pub use self::http::{BackendHttp, Http, ListenerHttp};

/// Version of the JSON form.
pub const SCHEMA: u32 = 1;

/// Counters of one row, by column name.
pub type Columns = BTreeMap<String, u64>;

/// Everything that `weir status` tells.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the instance.
    pub instance: String,
    /// When it was read, in Unix milliseconds: what has grown between two readings, by this, is a rate.
    #[serde(default)]
    pub unix_ms: u64,
    /// Since when counters count, in Unix milliseconds; 0 = nothing is counted.
    #[serde(default)]
    pub counted_since_unix_ms: u64,
    /// The published generation; 0 = none.
    pub generation: u64,
    /// The generation that each worker runs.
    pub acked: Vec<u64>,
    /// The packet process.
    pub dataplane: Dataplane,
    /// The daemon.
    pub ctlplane: Ctlplane,
    /// Ports.
    pub ports: Vec<Port>,
    /// Listeners.
    pub listeners: Vec<Listener>,
    /// Pools.
    pub pools: Vec<Pool>,
    /// Workers.
    pub workers: Vec<Worker>,
    /// HTTP, all workers; absent where no listener speaks it and nothing is left of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// Terminated TCP, all workers; absent where no listener is a proxy and nothing is left of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Tcp>,
    /// Packets dropped, by reason; all workers.
    pub drops: Columns,
    /// ready, drain or maint: the whole node's; absent while ctlplane, which knows, is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether what is in force differs from the operator's file; `null` while ctlplane, which knows, is down.
    pub drift: Option<bool>,
    /// How.
    pub drift_details: Vec<String>,
    /// What the operator should know and no traffic depends on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// A change that is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

/// A change that waits to be confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The change that comes back.
    pub back_to: u64,
    /// When, in Unix milliseconds.
    pub confirm_by_unix_ms: u64,
}

/// The packet process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Dataplane {
    /// starting, waiting, running, refused, stopping, down, or unknown where it may not be seen.
    pub state: String,
    /// 0 = there never was one.
    pub pid: u64,
    /// Number of workers.
    pub workers: usize,
    /// Why it would not take [`Self::refused_generation`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// The generation that it would not take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_generation: Option<u64>,
    /// The dataplane's code for the cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal_code: Option<u64>,
}

/// The daemon.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ctlplane {
    /// running, down, or unknown where it may not be seen.
    pub state: String,
    /// 0 = there never was one.
    pub pid: u64,
}

/// A port.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Name.
    pub name: String,
    /// Device.
    pub device: String,
    /// [`PortColumn`]s.
    pub counters: Columns,
    /// Where what is addressed to the port itself goes to the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception: Option<Exception>,
}

/// A listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listener {
    /// Name.
    pub name: String,
    /// Stable index.
    pub index: u32,
    /// Name of the vip.
    pub vip: String,
    /// Its address.
    pub address: String,
    /// tcp, udp or http.
    pub protocol: String,
    /// Port or range.
    pub port: String,
    /// Mode.
    pub mode: String,
    /// ready, drain or maint.
    #[serde(default)]
    pub state: String,
    /// Name of the pool.
    pub pool: String,
    /// [`ListenerColumn`]s.
    pub counters: Columns,
    /// [`ProxyColumn`]s; empty in the other modes.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub proxy: Columns,
    /// Where its protocol is http.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<ListenerHttp>,
}

/// Terminated TCP.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tcp {
    /// [`TcpColumn`]s; empty while nothing is counted.
    pub counters: Columns,
    /// Bytes that the connections of all workers may hold.
    pub memory_ceiling: u64,
}

/// A pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Stable index.
    pub index: u32,
    /// Algorithm.
    pub algorithm: String,
    /// Backends, removed ones that may still hold flows included.
    pub backends: Vec<Backend>,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    /// Name.
    pub name: String,
    /// Stable index.
    pub index: u32,
    /// `ip`, `ip:port` or `[ipv6]:port`.
    pub address: String,
    /// Weight in force.
    pub weight: u32,
    /// ready, drain, maint or removed.
    pub state: String,
    /// Down by health.
    pub down: bool,
    /// What the checks say; absent where there are none, and while ctlplane, which knows, is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<BackendHealth>,
    /// Share of the pool's slots, 0 to 1.
    pub slot_share: f64,
    /// [`BackendColumn`]s.
    pub counters: Columns,
    /// [`UpstreamColumn`]s; empty where no listener of the pool is a proxy and no connection is left of one.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub upstream: Columns,
    /// Where there are HTTP listeners.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<BackendHttp>,
}

/// A worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    /// From 0.
    pub index: usize,
    /// Milliseconds since it was last round its loop; absent where it never was.
    pub silent_ms: Option<u64>,
    /// [`WorkerColumn`]s.
    pub counters: Columns,
    /// [`TcpColumn`]s; empty as [`Status::tcp`].
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub tcp: Columns,
    /// rx + steered_in + generated − tx − steered_out − consumed − held − dropped: 0 when quiet.
    pub balance: i64,
}

/// How the whole is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// All runs and agrees.
    Good,
    /// Something is down, refused or behind.
    Degraded,
    /// Nothing of this instance is there.
    Unreachable,
}

/// Longest that a worker may be silent before it counts as hanging.
const SILENT_MS: u64 = 2_000;

impl Status {
    /// Reads the shared memory of an instance; what is not there is in [`Status::missing`].
    pub fn read(shm: &Path, instance: &str) -> Self {
        let unix_ms =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let mut status = Self { schema: SCHEMA, instance: instance.to_owned(), unix_ms, ..Self::default() };
        "down".clone_into(&mut status.dataplane.state);
        "down".clone_into(&mut status.ctlplane.state);
        let directory = match SegmentDir::open_existing(instance_directory(shm, instance)) {
            Ok(directory) => directory,
            Err(error) => {
                status.unseen(shm, &error);
                return status;
            }
        };
        let control = match ControlPage::open_read_only(&directory) {
            Ok(control) => control,
            Err(ControlError::Segment(error)) => {
                status.unseen(shm, &error);
                return status;
            }
            Err(error) => {
                status.missing.push(error.to_string());
                return status;
            }
        };
        status.read_processes(&control);
        let counters = Counters::open(&directory)
            .map_err(|error| status.missing.push(format!("counters: {error}")))
            .ok();
        status.counted_since_unix_ms = counters.as_ref().map_or(0, Counters::start_unix_ms);
        status.read_workers(&control, counters.as_ref());
        status.read_tables(&directory, counters.as_ref());
        status
    }

    /// There is nothing to look at: never was, or not for this user.
    fn unseen(&mut self, shm: &Path, error: &SegmentError) {
        if error.is_not_found() {
            self.missing.push(format!(
                "there is no instance {} in {} (weir-ctlplane has never run here?)",
                self.instance,
                shm.display()
            ));
            return;
        }
        "unknown".clone_into(&mut self.dataplane.state);
        "unknown".clone_into(&mut self.ctlplane.state);
        self.missing.push(match error {
            SegmentError::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => format!(
                "unknown: permission denied; run as root or as a member of the group of {}",
                instance_directory(shm, &self.instance).display()
            ),
            other => other.to_string(),
        });
    }

    fn read_processes(&mut self, control: &ControlPage) {
        let dataplane = control.dataplane();
        self.generation = control.published();
        let known = dataplane.state.map_or_else(|| "down".to_owned(), |state| state.to_string());
        self.dataplane = Dataplane {
            state: if dataplane.is_alive { known } else { "down".to_owned() },
            pid: dataplane.pid,
            workers: dataplane.workers.len(),
            refused_generation: dataplane.refusal.as_ref().map(|refusal| refusal.generation),
            refusal_code: dataplane.refusal.as_ref().map(|refusal| refusal.code),
            refusal: dataplane.refusal.map(|refusal| refusal.text),
        };
        let ctlplane = control.ctlplane();
        self.ctlplane = Ctlplane {
            state: if ctlplane.is_alive { "running" } else { "down" }.to_owned(),
            pid: ctlplane.pid,
        };
        self.acked = dataplane.workers.iter().map(|worker| worker.acked_generation).collect();
    }

    fn read_workers(&mut self, control: &ControlPage, counters: Option<&Counters>) {
        let now = hugepages::generation::monotonic_ns();
        for (index, worker) in control.dataplane().workers.iter().enumerate() {
            let row_of = |group: &str| {
                counters
                    .filter(|counters| index + 1 < counters.areas())
                    .map(|counters| counters.row_of_area(group, 0, index))
                    .unwrap_or_default()
            };
            let (row, tcp) = (row_of(WorkerColumn::GROUP), row_of(TcpColumn::GROUP));
            let silent_ms =
                (worker.heartbeat_ns != 0).then(|| now.saturating_sub(worker.heartbeat_ns) / 1_000_000);
            self.workers.push(Worker { index, silent_ms, balance: balance(&row), counters: row, tcp });
        }
        if let Some(counters) = counters {
            self.drops = counters.row(DROP_GROUP, 0);
        }
    }

    fn read_tables(&mut self, directory: &SegmentDir, counters: Option<&Counters>) {
        if self.generation == 0 {
            self.missing.push("nothing was published yet: start weir-ctlplane --config FILE".to_owned());
            return;
        }
        let Some(root) = read_root(directory, self.generation) else {
            self.missing.push(format!("the root of generation {} cannot be read", self.generation));
            return;
        };
        match self.read_node(directory, &root, counters) {
            Ok(configured) => {
                let counters = row(counters, TcpColumn::GROUP, 0);
                // the dataplane knows what its packet buffers leave of it
                let real = counters.get(TcpColumn::MemoryCeiling.name()).copied().filter(|bytes| *bytes > 0);
                self.tcp = Some(Tcp { counters, memory_ceiling: real.unwrap_or(configured) });
            }
            Err(error) => self.missing.push(format!("ports: {error}")),
        }
        for reference in root.of_kind(TableKind::Pool) {
            let table = read_table(directory, reference.id)
                .and_then(|bytes| PoolTable::parse(reference, &bytes).map_err(|error| error.to_string()));
            match table {
                Ok(table) => self.pools.push(pool(&table, counters)),
                Err(error) => self.missing.push(format!("a pool: {error}")),
            }
        }
        if let Err(error) = self.read_listeners(directory, &root, counters) {
            self.missing.push(format!("listeners: {error}"));
        }
        self.read_http(counters);
        self.leave_out_unused_tcp();
    }

    /// The ports; gives the ceiling of TCP's memory.
    fn read_node(
        &mut self,
        directory: &SegmentDir,
        root: &Root,
        counters: Option<&Counters>,
    ) -> Result<u64, String> {
        let reference = root.tables.first().ok_or("the root names no node table")?;
        let bytes = read_table(directory, reference.id)?;
        let node = NodeTable::parse(reference, &bytes).map_err(|error| error.to_string())?;
        self.ports = (0u32..)
            .zip(&node.ports)
            .map(|(index, port)| Port {
                name: port.name.to_string(),
                device: port.device.to_string(),
                counters: row(counters, PortColumn::GROUP, index),
                exception: Exception::of(
                    port.exception.as_str(),
                    row(counters, ExceptionColumn::GROUP, index),
                ),
            })
            .collect();
        Ok(node.node.tcp_memory_bytes.saturating_mul(u64::from(node.node.worker_count)))
    }

    /// A node that proxies nothing is told nothing about it.
    fn leave_out_unused_tcp(&mut self) {
        let is_proxy = |listener: &&Listener| listener.mode == Mode::Proxy.name();
        let proxied: Vec<&str> =
            self.listeners.iter().filter(is_proxy).map(|listener| listener.pool.as_str()).collect();
        let is_zero = |columns: &Columns| columns.values().all(|value| *value == 0);
        // the capacity is there before the first connection
        let unused = |columns: &Columns| {
            let capacity = TcpColumn::ConnectionsCapacity.name();
            columns.iter().all(|(name, value)| name == capacity || *value == 0)
        };
        for pool in self.pools.iter_mut().filter(|pool| !proxied.contains(&pool.name.as_str())) {
            for backend in pool.backends.iter_mut().filter(|backend| is_zero(&backend.upstream)) {
                backend.upstream.clear();
            }
        }
        if proxied.is_empty() && self.tcp.as_ref().is_some_and(|tcp| unused(&tcp.counters)) {
            self.tcp = None;
            self.workers.iter_mut().for_each(|worker| worker.tcp.clear());
        }
    }

    fn read_listeners(
        &mut self,
        directory: &SegmentDir,
        root: &Root,
        counters: Option<&Counters>,
    ) -> Result<(), String> {
        let reference = root.tables.get(1).ok_or("the root names no listeners table")?;
        let bytes = read_table(directory, reference.id)?;
        let table = ListenersTable::parse(reference, &bytes).map_err(|error| error.to_string())?;
        for listener in &table.listeners {
            let vip = table.vips.get(listener.vip as usize);
            let pool = self.pools.iter().find(|pool| pool.index == listener.pool);
            self.listeners.push(Listener {
                name: listener.name.to_string(),
                index: listener.index,
                vip: vip.map_or_else(String::new, |vip| vip.name.to_string()),
                address: vip
                    .and_then(|vip| vip.address.ip())
                    .map_or_else(String::new, |address| address.to_string()),
                protocol: if listener.application == Application::Http as u8 {
                    "http".to_owned()
                } else {
                    protocol_name(listener.protocol).to_owned()
                },
                port: format_ports((listener.port_first, listener.port_last)),
                mode: Mode::from_u8(listener.mode).map_or("unknown", Mode::name).to_owned(),
                state: match Drain::from_u8(listener.drain) {
                    Some(Drain::No) => "ready",
                    Some(Drain::Yes) => "drain",
                    Some(Drain::Cut) => "maint",
                    None => "unknown",
                }
                .to_owned(),
                pool: pool.map_or_else(String::new, |pool| pool.name.clone()),
                counters: row(counters, ListenerColumn::GROUP, listener.index),
                proxy: if listener.mode == Mode::Proxy as u8 {
                    row(counters, ProxyColumn::GROUP, listener.index)
                } else {
                    Columns::new()
                },
                http: http::listener(listener, counters),
            });
        }
        Ok(())
    }

    /// Good, degraded or unreachable: the exit code of `weir status`.
    pub fn health(&self) -> Health {
        let gone = |state: &str| matches!(state, "down" | "unknown");
        if gone(&self.dataplane.state) && gone(&self.ctlplane.state) {
            return Health::Unreachable;
        }
        if self.complaints().is_empty() { Health::Good } else { Health::Degraded }
    }

    /// What keeps the whole from being good, each with what to do.
    pub fn complaints(&self) -> Vec<String> {
        // processes that left no trace, or none that may be seen: only the reason for that helps
        if self.dataplane.pid == 0 && self.ctlplane.pid == 0 && !self.missing.is_empty() {
            return self.missing.clone();
        }
        let mut list = Vec::new();
        match self.dataplane.state.as_str() {
            "running" => {}
            "down" => list.push("weir-dataplane is not running: start it".to_owned()),
            state => list.push(format!("weir-dataplane is {state}: see its log")),
        }
        if self.ctlplane.state == "down" {
            list.push(
                "weir-ctlplane is not running: traffic goes on by the last generation; start it".to_owned(),
            );
        }
        if let Some(refusal) = &self.dataplane.refusal {
            let generation = self.dataplane.refused_generation.unwrap_or(0);
            list.push(format!("generation {generation} was refused: {refusal}"));
        }
        let up = self.dataplane.state == "running";
        for (worker, acked) in self.acked.iter().enumerate() {
            if up && *acked != self.generation {
                list.push(format!(
                    "worker {worker} runs generation {acked}, published is {}",
                    self.generation
                ));
            }
        }
        for worker in &self.workers {
            if let Some(silent) = worker.silent_ms
                && up
                && silent > SILENT_MS
            {
                list.push(format!(
                    "worker {} has been silent for {silent} ms: restart weir-dataplane",
                    worker.index
                ));
            }
        }
        for pool in &self.pools {
            let configured = pool.backends.iter().any(|backend| backend.state != "removed");
            if configured && pool.backends.iter().all(|backend| backend.slot_share == 0.0) {
                list.push(format!("pool {} has no backend that takes new flows: make one ready", pool.name));
            }
        }
        self.health_complaints(&mut list);
        self.http_complaints(&mut list);
        list.extend(self.missing.iter().cloned());
        list
    }
}

fn read_table(directory: &SegmentDir, id: u64) -> Result<Vec<u8>, String> {
    directory.read(&table_name(id), MAX_TABLE_BYTES).map_err(|error| error.to_string())
}

/// Counters of a row; empty where there are none.
fn row(counters: Option<&Counters>, group: &str, index: u32) -> Columns {
    counters.map(|counters| counters.row(group, index as usize)).unwrap_or_default()
}

fn pool(table: &PoolTable, counters: Option<&Counters>) -> Pool {
    let mut taken = vec![0u32; table.backends.len()];
    for slot in &table.slots {
        if let Some(count) = taken.get_mut(usize::from(*slot)) {
            *count += 1;
        }
    }
    let backends = table
        .backends
        .iter()
        .zip(&taken)
        .map(|(backend, taken)| Backend {
            name: backend.name.to_string(),
            index: backend.index,
            address: backend
                .address
                .ip()
                .map_or_else(String::new, |ip| format_backend_address(ip, backend.address.port)),
            weight: backend.weight,
            state: AdminState::from_u8(backend.admin).map_or("unknown", AdminState::name).to_owned(),
            down: backend.down != 0,
            health: None,
            slot_share: f64::from(*taken) / (table.slots.len().max(1) as f64),
            counters: row(counters, BackendColumn::GROUP, backend.index),
            upstream: row(counters, UpstreamColumn::GROUP, backend.index),
            http: Some(http::backend(row(counters, HttpBackendColumn::GROUP, backend.index))),
        })
        .collect();
    Pool {
        name: table.pool.name.to_string(),
        index: table.pool.index,
        algorithm: Algorithm::from_u8(table.pool.algorithm).map_or("unknown", algorithm_name).to_owned(),
        backends,
    }
}

/// What came in less what went out, by [`WorkerColumn`]'s equation.
fn balance(row: &Columns) -> i64 {
    use WorkerColumn::{Consumed, Dropped, Generated, Held, RxPackets, SteeredIn, SteeredOut, TxPackets};
    let sum = |columns: &[WorkerColumn]| {
        columns
            .iter()
            .fold(0u64, |sum, column| sum.wrapping_add(row.get(column.name()).copied().unwrap_or(0)))
    };
    let left = sum(&[RxPackets, SteeredIn, Generated]);
    let right = sum(&[TxPackets, SteeredOut, Consumed, Held, Dropped]);
    left.wrapping_sub(right).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(error: &SegmentError) -> Vec<String> {
        let mut status = Status { instance: "edge".to_owned(), ..Status::default() };
        status.unseen(Path::new("/dev/shm"), error);
        status.complaints()
    }

    #[test]
    fn what_may_not_be_seen_is_not_called_down() {
        let path = std::path::PathBuf::from("/dev/shm/weir-edge");
        let source = std::io::Error::from(ErrorKind::PermissionDenied);
        let denied = SegmentError::Io { action: "open", path: path.clone(), source };
        let text =
            "unknown: permission denied; run as root or as a member of the group of /dev/shm/weir-edge";
        assert_eq!(complaints(&denied), [text]);
        let text = "there is no instance edge in /dev/shm (weir-ctlplane has never run here?)";
        assert_eq!(complaints(&SegmentError::NotFound { path }), [text]);
    }
}
