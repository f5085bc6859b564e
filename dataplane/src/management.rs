//! The thread that is not on the packet path: adopts generations, resolves neighbours, watches workers, keeps port counters.
//!
//! It talks to workers over rings, to the control plane through shared memory, and needs nobody: without a control
//! plane it runs the newest snapshot that verifies.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hugepages::generation::{Adopter, RunState, monotonic_ns};
use hugepages::segment::SegmentDir;
use weir_abi::columns::{HttpWorkerColumn, PortColumn, ProxyColumn, TcpColumn};
use weir_abi::record::Timeout;
use weir_l4::Mode;
use weir_l7::Ledger;
use weir_net::arp::NeighborFrame;
use weir_net::{Mac, arp, ndp};

use crate::launch::{LaunchError, Place, Running, launch};
use crate::messages::{FromWorker, ToWorker};
use crate::neighbour::{Action, NeighbourId, Neighbours};
use crate::snapshot::Snapshot;
use crate::supervisor::Supervisor;
use crate::view::View;

/// Between two rounds. A published generation waits at most this long.
const ROUND: Duration = Duration::from_millis(1);
/// How often addresses are announced when they are new (RFC 5227 §2.3 says two).
const ANNOUNCEMENTS: u32 = 2;
/// Between two announcements of the same address: RFC 5227 §1.1, ANNOUNCE_INTERVAL, is 2 s.
const ANNOUNCE_INTERVAL_MS: u64 = 2_000;
/// Announcements of one round, so that many vips don't flood the link.
const ANNOUNCE_BURST: usize = 64;
/// Codes of refusals, for programs.
const REFUSED_INVALID: u64 = 1;
const REFUSED_RESTART: u64 = 2;
const REFUSED_LAUNCH: u64 = 3;

/// Runs the dataplane until it is told to `stop`, which counts how often it was: from the first time on proxied connections may
/// end in order, the second ends at once. The process's exit depends on the result.
pub fn run(place: &Place<'_>, stop: &AtomicU32) -> Result<(), LaunchError> {
    let mut adopter = Adopter::open(place.shared).map_err(LaunchError::control)?;
    let mut supervisor = Supervisor::default();
    let first = first_snapshot(place.shared, &mut adopter, &mut supervisor, stop);
    let Some(snapshot) = first else { return Ok(()) };
    let mut neighbours = Neighbours::new(u64::from(timeout_ms(&snapshot, Timeout::Neighbour)));
    let view = Arc::new(View::build(&snapshot, None, &mut neighbours, now_ms()));
    adopter.set_state(RunState::Starting);
    let running = match launch(place, &snapshot, &view, &mut adopter) {
        Ok(running) => running,
        Err(error) => {
            adopter.refuse(snapshot.generation, REFUSED_LAUNCH, &error.to_string());
            adopter.set_state(RunState::Refused);
            return Err(error);
        }
    };
    adopter.adopted(snapshot.generation);
    adopter.set_state(RunState::Running);
    tracing::info!("running generation {}, {} workers", snapshot.generation, running.workers.len());
    let ledger = Ledger::new(running.workers.len());
    let terminates = view.services.has_proxy();
    let mut management = Management {
        directory: place.shared,
        adopter,
        running,
        snapshot,
        view,
        neighbours,
        ledger,
        rates: Vec::new(),
        terminates,
        refused: 0,
        is_ending: false,
        announced: HashSet::new(),
        announcements: VecDeque::new(),
        next_statistics_ms: 0,
    };
    let view = Arc::clone(&management.view);
    management.limit(&view);
    management.announce();
    while stop.load(Ordering::Relaxed) == 0 {
        management.round();
        let Management { adopter, snapshot, .. } = &management;
        supervisor.running(now_ms(), monotonic_ns(), snapshot.generation, || adopter.control().dataplane());
        std::thread::sleep(ROUND);
    }
    tracing::info!("stopping");
    Supervisor::stopping();
    management.adopter.set_state(RunState::Stopping);
    management.end_in_order(stop);
    management.statistics();
    let lost = management.running.stop();
    if lost > 0 {
        tracing::error!("{lost} packet buffers were not given back");
    }
    Ok(())
}

fn now_ms() -> u64 {
    monotonic_ns() / 1_000_000
}

fn timeout_ms(snapshot: &Snapshot, timeout: Timeout) -> u32 {
    snapshot.node.node.timeouts_ms.get(timeout as usize).copied().unwrap_or(0)
}

/// The published generation, or where it does not verify the newest that does; waits for one.
fn first_snapshot(
    directory: &SegmentDir,
    adopter: &mut Adopter,
    supervisor: &mut Supervisor,
    stop: &AtomicU32,
) -> Option<Snapshot> {
    let mut said = false;
    adopter.set_state(RunState::Waiting);
    let mut tried = u64::MAX;
    while stop.load(Ordering::Relaxed) == 0 {
        adopter.beat(monotonic_ns());
        supervisor.waiting(now_ms());
        let published = adopter.published();
        if published != tried {
            tried = published;
            if published != 0 {
                match Snapshot::load(directory, published, None) {
                    Ok(snapshot) => return Some(snapshot),
                    Err(error) => {
                        tracing::error!("generation {published} is refused: {error}");
                        adopter.refuse(published, REFUSED_INVALID, &error.to_string());
                        adopter.set_state(RunState::Refused);
                    }
                }
            }
            let mut rejected = |generation, error: crate::snapshot::LoadError| {
                tracing::warn!("generation {generation} does not verify: {error}");
            };
            if let Some(snapshot) = Snapshot::newest(directory, &mut rejected) {
                tracing::info!("starting from generation {}, the newest that verifies", snapshot.generation);
                return Some(snapshot);
            }
        }
        if !said {
            said = true;
            tracing::info!("waiting for the control plane to publish a configuration (start weir-ctlplane)");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

struct Management<'a> {
    directory: &'a SegmentDir,
    adopter: Adopter,
    running: Running,
    snapshot: Snapshot,
    view: Arc<View>,
    neighbours: Neighbours,
    /// Limits of connections, lent to workers.
    ledger: Ledger,
    /// Messages between workers, of this round.
    rates: Vec<(u16, ToWorker)>,
    /// Whether workers have terminators.
    terminates: bool,
    /// The last generation that was refused.
    refused: u64,
    /// Proxies take no connections any more.
    is_ending: bool,
    announced: HashSet<(u16, IpAddr)>,
    announcements: VecDeque<Announcement>,
    next_statistics_ms: u64,
}

struct Announcement {
    port: u16,
    address: IpAddr,
    left: u32,
    due_ms: u64,
}

impl Management<'_> {
    fn round(&mut self) {
        let now = now_ms();
        self.adopter.beat(monotonic_ns());
        let published = self.adopter.published();
        if published != self.snapshot.generation && published != self.refused && published != 0 {
            self.adopt(published);
        }
        self.reports(now);
        self.lend();
        self.resolve(now);
        self.send_announcements(now);
        if now >= self.next_statistics_ms {
            self.next_statistics_ms = now + 250;
            self.statistics();
        }
    }

    fn adopt(&mut self, generation: u64) {
        let snapshot = match Snapshot::load(self.directory, generation, Some(&self.snapshot)) {
            Ok(snapshot) => snapshot,
            Err(error) => return self.refuse(generation, REFUSED_INVALID, &error.to_string()),
        };
        if let Some(field) = snapshot.needs_restart(&self.snapshot) {
            let text = format!("{field} can't change while it runs: restart weir-dataplane");
            return self.refuse(generation, REFUSED_RESTART, &text);
        }
        self.put_in_force(snapshot);
        self.adopter.adopted(generation);
        self.announce();
    }

    /// Hands a generation to the workers.
    fn put_in_force(&mut self, mut snapshot: Snapshot) {
        if self.is_ending {
            snapshot.drain_proxies();
        }
        let now = now_ms();
        self.neighbours.set_reachable_ms(u64::from(timeout_ms(&snapshot, Timeout::Neighbour)));
        let view = Arc::new(View::build(&snapshot, Some(&self.view), &mut self.neighbours, now));
        if !Arc::ptr_eq(&view.reach.next_hops, &self.view.reach.next_hops) {
            self.neighbours.retain_configured(&view.reach.next_hops, now);
        }
        let terminates = view.services.has_proxy() && !self.view.services.has_proxy() && !self.terminates;
        for (index, worker) in (0u16..).zip(&mut self.running.workers) {
            if terminates {
                push(worker, ToWorker::Terminate(self.running.foundry.terminator(index, &view)));
            }
            push(worker, ToWorker::Adopt(Arc::clone(&view)));
        }
        self.terminates |= terminates;
        if let Some(exception) = &self.running.exception {
            exception.adopt(&view);
        }
        self.limit(&view);
        tracing::debug!("generation {} handed to the workers", snapshot.generation);
        self.view = view;
        self.snapshot = snapshot;
    }

    /// Lets proxied connections end in order, as those of drained listeners do, while all else goes on: for the configured time at
    /// most, and until it is told to stop once more.
    fn end_in_order(&mut self, stop: &AtomicU32) {
        let grace_ms = u64::from(self.snapshot.node.node.drain_grace) * 10;
        let until = now_ms() + grace_ms;
        if grace_ms == 0 || !self.view.services.has_proxy() || self.left() == 0 {
            return;
        }
        tracing::info!(
            "{} proxied connections may end in order, within {grace_ms} ms; the same signal again ends them at once",
            self.left()
        );
        self.is_ending = true;
        self.put_in_force(self.snapshot.clone());
        while now_ms() < until && stop.load(Ordering::Relaxed) < 2 {
            std::thread::sleep(ROUND);
            self.round();
            if self.left() == 0 {
                return;
            }
        }
        tracing::warn!("{} proxied connections are cut", self.left());
    }

    /// Proxied connections that are not over, and data of such that their peers have not acknowledged.
    fn left(&self) -> u64 {
        let counted = &self.running.counted;
        let Some((proxies, tcp)) = counted.group(ProxyColumn::GROUP).zip(counted.group(TcpColumn::GROUP))
        else {
            return 0;
        };
        let listeners = self.view.services.listeners().filter(|listener| listener.mode == Mode::Proxy);
        let active = ProxyColumn::ConnectionsActive as usize;
        let clients = listeners.map(|listener| proxies.sum(usize::from(listener.index), active));
        // connections that are let go of stay in these until all of their data has arrived
        let closing = [TcpColumn::FinWait1, TcpColumn::Closing, TcpColumn::LastAck];
        let closing = closing.into_iter().map(|column| tcp.sum(0, column as usize));
        clients.chain(closing).sum()
    }

    fn refuse(&mut self, generation: u64, code: u64, text: &str) {
        tracing::error!(
            "generation {generation} is refused, {} keeps running: {text}",
            self.snapshot.generation
        );
        self.refused = generation;
        self.adopter.refuse(generation, code, text);
    }

    fn reports(&mut self, now: u64) {
        for (index, worker) in self.running.workers.iter_mut().enumerate() {
            while let Some(report) = worker.reports.pop() {
                match report {
                    FromWorker::Retired(view) => drop(view),
                    FromWorker::Outlived(services, rules) => drop((services, rules)),
                    FromWorker::Seen { port, address, mac, answers } => {
                        self.neighbours.received(port, address, mac, answers, now);
                    }
                    FromWorker::Wanted { port, address } => self.neighbours.wanted(port, address, now),
                    FromWorker::Limit(message) => self.ledger.receive(index, message),
                    FromWorker::Rate { to, message } => {
                        self.rates.push((to, ToWorker::Rate { from: index as u16, message }));
                    }
                }
            }
        }
        self.forward_rates();
    }

    /// Hands on what workers tell each other about rate limits. What finds no room is lost: its sender tells it again.
    fn forward_rates(&mut self) {
        for (to, message) in self.rates.drain(..) {
            let worker = self.running.workers.get_mut(usize::from(to));
            if worker.is_none_or(|worker| worker.orders.push(message).is_err()) {
                self.running.books.add_http(HttpWorkerColumn::RateMessagesLost, 1);
            }
        }
    }

    /// Tells the ledger the limits of a generation.
    fn limit(&mut self, view: &View) {
        let gone: Vec<weir_l7::Key> = self
            .ledger
            .limits()
            .map(|(key, _)| key)
            .filter(|key| !view.proxied.limits.iter().any(|(kept, _)| kept == key))
            .collect();
        for key in gone {
            self.ledger.set_limit(key, 0);
        }
        for &(key, limit) in &view.proxied.limits {
            self.ledger.set_limit(key, limit);
        }
    }

    /// Sends the ledger's messages.
    fn lend(&mut self) {
        for (index, worker) in self.running.workers.iter_mut().enumerate() {
            while let Some(message) = self.ledger.poll(index) {
                if let Err(ToWorker::Limit(message)) = worker.orders.push(ToWorker::Limit(message)) {
                    self.ledger.unpoll(index, message);
                    break;
                }
            }
        }
    }

    fn resolve(&mut self, now: u64) {
        let (running, view) = (&mut self.running, &self.view);
        self.neighbours.poll(now, |action| match action {
            Action::Ask { port, address, known } => {
                let mac = running.macs.get(usize::from(port)).copied().unwrap_or(Mac::ZERO);
                if let Some(frame) = question(view, port, mac, address, known)
                    && let Some(worker) = running.workers.first_mut()
                {
                    push(worker, ToWorker::Send(port, frame));
                }
            }
            Action::Tell(update) => {
                for worker in &mut running.workers {
                    push(worker, ToWorker::Neighbour(update));
                }
            }
        });
    }

    /// Queues announcements of the addresses that are new since the last generation.
    fn announce(&mut self) {
        let mut wanted = HashSet::new();
        for (index, port) in (0u16..).zip(&self.view.ports) {
            let vips = self.view.vips.iter().map(|bits| weir_l4::address_of(*bits));
            let own = port.own.iter().map(|prefix| prefix.addr).chain(port.snat.iter().copied());
            wanted.extend(own.chain(vips).map(|address| (index, address)));
        }
        let due_ms = now_ms();
        for &(port, address) in wanted.difference(&self.announced) {
            self.announcements.push_back(Announcement { port, address, left: ANNOUNCEMENTS, due_ms });
        }
        self.announced = wanted;
    }

    fn send_announcements(&mut self, now: u64) {
        for _ in 0..ANNOUNCE_BURST {
            // in order of their time: the first that is not due ends the round
            let Some(announcement) = self.announcements.pop_front_if(|next| next.due_ms <= now) else {
                return;
            };
            let Announcement { port, address, left, .. } = announcement;
            if !self.announced.contains(&(port, address)) {
                continue;
            }
            let mac = self.running.macs.get(usize::from(port)).copied().unwrap_or(Mac::ZERO);
            let vlan = self.view.ports.get(usize::from(port)).and_then(|port| port.vlan);
            let frame = match address {
                IpAddr::V4(address) => arp::gratuitous(mac, address, vlan),
                IpAddr::V6(address) => ndp::unsolicited(mac, address, vlan),
            };
            if let Some(worker) = self.running.workers.first_mut() {
                push(worker, ToWorker::Send(port, frame));
            }
            if left > 1 {
                let due_ms = now + ANNOUNCE_INTERVAL_MS;
                self.announcements.push_back(Announcement { port, address, left: left - 1, due_ms });
            }
        }
    }

    fn statistics(&mut self) {
        for (index, port) in self.running.ports.iter().enumerate() {
            let stats = port.stats();
            let books = &self.running.books;
            books.set_port(index, PortColumn::RxMissed, stats.rx_missed);
            books.set_port(index, PortColumn::RxErrors, stats.rx_errors);
            books.set_port(index, PortColumn::RxNoBuffer, stats.rx_no_buffer);
            books.set_port(index, PortColumn::TxErrors, stats.tx_errors);
        }
        for (index, backend) in self.view.services.backends() {
            let resolved = self.neighbours.is_resolved(NeighbourId(backend.next_hop));
            self.running.books.set_unreachable(index, !resolved);
        }
        if self.running.workers.iter().any(crate::launch::Handle::is_finished) {
            tracing::error!("a worker has ended; the process ends so that its supervisor starts it again");
            std::process::exit(70);
        }
    }
}

/// Waits for room: the ring is as long as the messages of many rounds, and a worker empties it in each of its own.
fn push(worker: &mut crate::launch::Handle, message: ToWorker) {
    let mut message = message;
    while let Err(back) = worker.orders.push(message) {
        if worker.is_finished() {
            return;
        }
        message = back;
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// The frame that asks for a neighbour; `None` where the port has no address of the family to ask from.
fn question(view: &View, port: u16, mac: Mac, address: IpAddr, known: Option<Mac>) -> Option<NeighborFrame> {
    let port = view.ports.get(usize::from(port))?;
    let same_family = |prefix: &&weir_net::Prefix| prefix.addr.is_ipv4() == address.is_ipv4();
    let near = port.own.iter().find(|prefix| prefix.contains(address));
    let source = near.or_else(|| port.own.iter().find(same_family))?.addr;
    match (source, address) {
        (IpAddr::V4(source), IpAddr::V4(target)) => Some(match known {
            Some(known) => arp::request_unicast(mac, source, known, target, port.vlan),
            None => arp::request(mac, source, target, port.vlan),
        }),
        (IpAddr::V6(source), IpAddr::V6(target)) => Some(match known {
            Some(known) => ndp::solicit_unicast(mac, source, known, target, port.vlan),
            None => ndp::solicit(mac, source, target, port.vlan),
        }),
        _ => None,
    }
}
