//! From a snapshot to running workers: DPDK, ports, queues, tables, rings, threads. Runs once per process.

mod ports;
mod wiring;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use dpdk::{DeviceSpec, Eal, EalConfig, EalHandle, PacketPool, Port, lcore};
use hugepages::generation::{Adopter, WorkerAck};
use hugepages::segment::{Access, SegmentDir};
use hugepages::spsc;
use weir_abi::buffers::Buffers;
use weir_abi::counters::{Layout, Reader};
use weir_abi::record::{IDLE_ADAPTIVE, NodeRecord};
use weir_l4::snat::ReplyOwner;
use weir_l4::{Engine, Spread};
use weir_net::Mac;

use self::ports::{device_of, lock_interface, open_port};
use self::wiring::{Lot, Wiring, deal_queues, reply_owner, spread_of};
use crate::books::{self, Books, Words};
use crate::events::{self, Events};
use crate::links::Links;
use crate::memory::{self, remember_snat};
use crate::messages::{FromWorker, ToWorker};
use crate::output::Output;
use crate::punt::kernel::{Exception, Wanted};
use crate::punt::{self, Punts};
use crate::snapshot::Snapshot;
use crate::terminate::{Microseconds, Sizes, Terminator};
use crate::view::View;
use crate::worker::{Peers, Worker, tick_now};

/// Messages between the management thread and a worker.
const MESSAGES: usize = 4_096;
/// Buffers that each worker's cache of a pool holds.
const POOL_CACHE: u32 = 256;
/// What ctlplane warns by is what DPDK does.
const _: () = assert!(Buffers::HEADROOM == dpdk::mempool::HEADROOM as u32);
const _: () = assert!(Buffers::DEFAULT_BYTES == dpdk::mempool::DATA_ROOM as u32);

/// Why the dataplane can't start.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {why}")]
pub struct LaunchError {
    what: String,
    why: String,
}

impl LaunchError {
    /// The control page can't be used.
    pub fn control(error: hugepages::generation::ControlError) -> Self {
        Self { what: "control page".to_owned(), why: error.to_string() }
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(&dyn std::fmt::Display) -> LaunchError {
    let what = what.into();
    move |why| LaunchError { what, why: why.to_string() }
}

/// Where segments live and how memory is taken.
#[derive(Debug)]
pub struct Place<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// The instance's directory in shared memory.
    pub shared: &'a SegmentDir,
    /// The instance's directory for flow tables: hugetlbfs, or `shared`.
    pub tables: &'a SegmentDir,
    /// Without hugepages.
    pub no_huge: bool,
    /// DPDK's own log level.
    pub log_level: dpdk::eal::LogLevel,
}

/// Makes terminators: at the start, or with the first generation that has a proxy.
#[derive(Clone, Debug)]
pub struct Foundry {
    small: PacketPool,
    spread: Arc<Spread>,
    workers: u16,
    secret: [u8; 32],
    tsc_hz: u64,
    connections: usize,
    /// What the buffers of a port allow: half of them may wait in queues, the rest is for receiving and sending.
    memory: u64,
    /// Where event rings are.
    shared: PathBuf,
}

impl Foundry {
    /// The terminator of a worker.
    pub fn terminator(&self, worker: u16, view: &View) -> Box<Terminator> {
        let owner = reply_owner(&self.spread, worker, self.workers);
        let (connections, most_memory) = (self.connections, self.memory);
        let sizes = Sizes { worker, workers: self.workers, connections, most_memory };
        let (small, clock) = (self.small.clone(), Microseconds::new(self.tsc_hz));
        let events = Events::open(&self.shared, worker, view.generation, clock.now());
        Box::new(Terminator::new(&sizes, view, owner, self.secret, small, clock, events))
    }
}

/// A worker as the management thread knows it.
pub struct Handle {
    /// Orders to it.
    pub orders: spsc::Producer<ToWorker>,
    /// Reports from it.
    pub reports: spsc::Consumer<FromWorker>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Whether its thread has ended, which it does only when told to.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// All that runs.
pub struct Running {
    /// Workers by index.
    pub workers: Vec<Handle>,
    /// Ports by index.
    pub ports: Vec<Port>,
    /// Link addresses of the ports.
    pub macs: Vec<Mac>,
    /// Makes terminators.
    pub foundry: Foundry,
    /// The management thread's counters.
    pub books: Books,
    /// Everybody's counters.
    pub counted: Reader<Words>,
    /// Between workers and the kernel.
    pub exception: Option<Exception>,
    /// DPDK; must be dropped last.
    eal: Eal,
    /// Keep other instances off the interfaces.
    _locks: Vec<Option<UnixListener>>,
}

impl Running {
    /// Stops workers and ports, in order. Returns how many packets were not given back: zero, or there is a leak.
    pub fn stop(self) -> u64 {
        let Self { mut workers, mut ports, foundry, exception, eal, _locks, .. } = self;
        for worker in &mut workers {
            while worker.orders.push(ToWorker::Stop).is_err() && !worker.thread.is_finished() {
                std::thread::yield_now();
            }
        }
        for worker in workers {
            if worker.thread.join().is_err() {
                tracing::error!("a worker ended by a panic; its message is above");
            }
        }
        if let Some(exception) = exception {
            exception.stop();
        }
        for port in &mut ports {
            if let Err(error) = port.stop() {
                tracing::warn!("{error}");
            }
        }
        drop((ports, foundry));
        let lost = dpdk::mbuf::ledger_total();
        if let Err(error) = eal.end() {
            tracing::warn!("{error}");
        }
        lost.unsigned_abs()
    }
}

/// Starts everything.
pub fn launch(
    place: &Place<'_>,
    snapshot: &Snapshot,
    view: &Arc<View>,
    adopter: &mut Adopter,
) -> Result<Running, LaunchError> {
    let node = &snapshot.node.node;
    let workers = node.worker_count as usize;
    let devices = snapshot
        .node
        .ports
        .iter()
        .map(|port| device_of(port.device.as_str()))
        .collect::<Result<Vec<_>, _>>()?;
    let buffers = buffers_of(node);
    let locks = devices.iter().map(lock_interface).collect::<Result<Vec<_>, _>>()?;
    let eal = start_eal(place, &devices, buffers)?;
    let mut parts = Vec::new();
    for (port, device) in snapshot.node.ports.iter().zip(&devices) {
        parts.push(open_port(&eal.handle(), port, device, workers as u16, buffers)?);
    }
    let spread = Arc::new(spread_of(workers as u16, &parts));
    let layout = books::layout(workers, node.backend_capacity as usize);
    let words = open_counters(place.shared, &layout)?;
    let macs: Vec<Mac> = parts.iter().map(|part| part.mac).collect();
    let books = Books::open(&layout, &words, workers).ok_or_else(|| failed("counters")(&"no area"))?;
    let counted = Reader::open(words.clone()).map_err(|error| failed("counters")(&error))?;
    let mut wiring = Wiring::new(&eal.handle(), workers)?;
    let mut lots: Vec<Lot> = (0..workers).map(|_| Lot::default()).collect();
    for (index, part) in parts.iter_mut().enumerate() {
        deal_queues(index as u16, part, &mut lots, &mut wiring)?;
    }
    let pools: Vec<PacketPool> = parts.iter().map(|part| part.pool.clone()).collect();
    let foundry = foundry(&eal.handle(), &spread, workers as u16, buffers, node, place.shared)?;
    let longest =
        snapshot.node.ports.iter().filter(|port| !port.exception.is_empty()).map(|port| port.mtu).max();
    let tsc_hz = lcore::tsc_hz(&eal.handle());
    let punt::Wiring { punts, lanes, idle, attached } =
        punt::Wiring::new(workers, longest.unwrap_or(0), node.exception_rate, tsc_hz);
    adopter.set_workers(workers);
    let mut handles = Vec::new();
    for ((index, lot), punts) in lots.into_iter().enumerate().zip(punts) {
        let (orders, orders_in) = spsc::ring(MESSAGES);
        let (reports_out, reports) = spsc::ring(MESSAGES);
        let ack = adopter.worker(index).ok_or_else(|| failed("workers")(&"at most 64 workers can be"))?;
        let books = Books::open(&layout, &words, index).ok_or_else(|| failed("counters")(&"no area"))?;
        let plan = Plan {
            index: index as u16,
            workers: workers as u16,
            cpu: node.worker_cpus.get(index).copied().unwrap_or(u16::MAX),
            adaptive: node.idle == IDLE_ADAPTIVE,
            flows: (node.flows_ipv4, node.flows_ipv6),
            lot,
            peers: wiring.peers_of(index, &spread),
            pools: pools.clone(),
            view: Arc::clone(view),
            books,
            orders: orders_in,
            reports: reports_out,
            ack,
            reply_owner: reply_owner(&spread, index as u16, workers as u16),
            foundry: foundry.clone(),
            punts,
        };
        handles.push(Handle { orders, reports, thread: spawn(plan, place.tables.path(), eal.handle())? });
    }
    let wanted = snapshot.node.ports.iter().zip(&macs).map(|(port, mac)| Wanted {
        name: port.exception.as_str().to_owned(),
        mac: *mac,
        mtu: port.mtu,
    });
    let directory = place.shared.path().to_owned();
    let kernel_books = Books::open(&layout, &words, workers).ok_or_else(|| failed("counters")(&"no area"))?;
    let wiring = (lanes, idle, attached);
    let exception = Exception::start(wanted.collect(), directory, wiring, Arc::clone(view), kernel_books)
        .map_err(|error| failed("exception path")(&error))?;
    let ports = parts.into_iter().map(|part| part.port).collect();
    Ok(Running { workers: handles, ports, macs, foundry, books, counted, exception, eal, _locks: locks })
}

fn start_eal(place: &Place<'_>, devices: &[DeviceSpec], buffers: Buffers) -> Result<Eal, LaunchError> {
    let pci: Vec<String> = devices
        .iter()
        .filter_map(|device| if let DeviceSpec::Pci(address) = device { Some(address.clone()) } else { None })
        .collect();
    let bytes = devices.len() as u64 * buffers.of_port() + Buffers::SMALL.of_port();
    let megabytes = bytes / (1 << 20) + 64;
    let config = EalConfig {
        file_prefix: format!("weir-{}", place.instance),
        no_huge: place.no_huge,
        no_pci: pci.is_empty(),
        pci_allow: pci,
        memory_mb: place.no_huge.then_some(megabytes as u32),
        log_level: place.log_level,
        ..EalConfig::default()
    };
    Eal::init(&config).map_err(|error| failed("DPDK")(&error))
}

/// What terminators of any worker are made from.
fn foundry(
    environment: &EalHandle,
    spread: &Arc<Spread>,
    workers: u16,
    buffers: Buffers,
    node: &NodeRecord,
    shared: &SegmentDir,
) -> Result<Foundry, LaunchError> {
    events::remove_others(shared, workers).map_err(|error| failed("event rings")(&error))?;
    let Buffers { count, bytes } = Buffers::SMALL;
    let small = PacketPool::new(environment, "small", count, POOL_CACHE, bytes as u16, None)
        .map_err(|error| failed("buffers for small pieces")(&error))?;
    let mut secret = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut secret))
        .map_err(|error| failed("/dev/urandom")(&error))?;
    Ok(Foundry {
        small,
        spread: Arc::clone(spread),
        workers,
        secret,
        tsc_hz: lcore::tsc_hz(environment),
        connections: node.tcp_connections as usize,
        memory: buffers.of_queues(workers.into()),
        shared: shared.path().to_owned(),
    })
}

fn buffers_of(node: &NodeRecord) -> Buffers {
    Buffers::new(node.buffers, node.buffer_bytes)
}

fn open_counters(shared: &SegmentDir, layout: &Layout) -> Result<Words, LaunchError> {
    // a reader keeps the old segment mapped and notices that it was replaced
    shared.remove("counters").map_err(|error| failed("counters")(&error))?;
    let words = shared
        .map_atomics("counters", layout.words(), Access::Create)
        .map_err(|error| failed("counters")(&error))?;
    let words = Words(Arc::new(words));
    let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    layout.describe(&words, start.map_or(0, |since| since.as_millis() as u64));
    Ok(words)
}

/// What a worker's thread needs to become one.
struct Plan {
    index: u16,
    workers: u16,
    cpu: u16,
    adaptive: bool,
    flows: (u32, u32),
    lot: Lot,
    peers: Peers,
    pools: Vec<PacketPool>,
    view: Arc<View>,
    books: Books,
    orders: spsc::Consumer<ToWorker>,
    reports: spsc::Producer<FromWorker>,
    ack: WorkerAck,
    reply_owner: ReplyOwner,
    foundry: Foundry,
    punts: Punts,
}

/// Starts a worker and waits until it is ready, so that its errors are the caller's.
fn spawn(plan: Plan, tables: &Path, environment: EalHandle) -> Result<JoinHandle<()>, LaunchError> {
    let name = format!("worker-{}", plan.index);
    let tables = tables.to_owned();
    let (ready, outcome) = mpsc::sync_channel(1);
    let body = move || {
        let tsc_hz = lcore::tsc_hz(&environment);
        match become_worker(plan, &tables, &environment) {
            Ok((worker, guard)) => {
                let _ = ready.send(Ok(()));
                worker.run(tsc_hz);
                drop(guard);
            }
            Err(error) => {
                let _ = ready.send(Err(error));
            }
        }
    };
    let thread = std::thread::Builder::new().name(name.clone()).spawn(body);
    let thread = thread.map_err(|error| failed(name.clone())(&error))?;
    match outcome.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(failed(name)(&"its thread ended before it was ready")),
    }
}

/// In the worker's thread: pinned first, so that its tables come from its own NUMA node.
fn become_worker(
    plan: Plan,
    tables: &Path,
    environment: &EalHandle,
) -> Result<(Worker, lcore::LcoreGuard), LaunchError> {
    let what = format!("worker {}", plan.index);
    if plan.cpu != u16::MAX {
        weir_os::cpu::pin_current_thread(&[usize::from(plan.cpu)]).map_err(|error| failed(&*what)(&error))?;
    }
    let guard = lcore::register_current_thread(environment).map_err(|error| failed(&*what)(&error))?;
    let directory = SegmentDir::open(tables).map_err(|error| failed(&*what)(&error))?;
    let opened =
        memory::open(&directory, u32::from(plan.index), u32::from(plan.workers), plan.flows.0, plan.flows.1)
            .map_err(|error| failed(&*what)(&error))?;
    if let Some(reason) = &opened.discarded {
        tracing::warn!("{what}: the flows of the previous process are discarded: {reason}");
    }
    let mut books = plan.books;
    let services = Arc::clone(&plan.view.services);
    let (mut engine, recovery) =
        Engine::new(services, opened.tables, plan.reply_owner, opened.seed, tick_now(), &mut books);
    let names = engine.snat_addresses().to_vec();
    remember_snat(engine.storage_v4().header_mut(), &names);
    books.add(weir_abi::columns::WorkerColumn::FlowsRecovered, u64::from(recovery.recovered));
    books.add(weir_abi::columns::WorkerColumn::FlowsDiscarded, u64::from(recovery.discarded));
    books.set(weir_abi::columns::WorkerColumn::Generation, plan.view.generation);
    tracing::info!(
        "{what}: ready, {} flows of the previous process recovered, {} discarded",
        recovery.recovered,
        recovery.discarded
    );
    let has_proxy = plan.view.services.has_proxy();
    let terminator = has_proxy.then(|| plan.foundry.terminator(plan.index, &plan.view));
    let worker = Worker {
        index: plan.index,
        inputs: plan.lot.inputs,
        output: Output { ports: plan.lot.outputs },
        peers: plan.peers,
        pools: plan.pools,
        engine,
        view: plan.view,
        books,
        orders: plan.orders,
        reports: plan.reports,
        ack: plan.ack,
        adaptive: plan.adaptive,
        links: Links::default(),
        terminator,
        small: plan.foundry.small,
        punts: plan.punts,
    };
    Ok((worker, guard))
}
