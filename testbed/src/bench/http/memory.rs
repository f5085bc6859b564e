//! `memory/keep-alive`, `memory/close`, `memory/routes-N`: nanoseconds of one worker per request, both TCP sides included.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::super::result::{Figure, median};
use super::super::tcp::pinned;
use super::super::{Bench, Context};
use super::peers::{BODY, IN_FLIGHT, Peers, REQUEST, Use};
use super::worker::{BURST, STEP_US, Worker};
use crate::interrupt;

/// Clients with kept connections.
const CLIENTS: u32 = 10_000;
/// Clients that take turns where each connection carries one request.
const PASSING: u32 = 1 << 17;
/// Routes of the first two cases.
const ROUTES: usize = 100;
/// Routes of `routes-N`.
const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
/// Rounds between two looks at samples and signals.
const ROUNDS: usize = 256;

/// A worker between its peers.
struct Drive {
    worker: Worker,
    peers: Peers,
    burst: Vec<super::super::tcp::packet::Packet>,
}

/// Time of a stretch.
#[derive(Clone, Copy, Default)]
struct Lap {
    worker: Duration,
    peers: Duration,
    requests: u64,
    allocations: u64,
}

impl Lap {
    fn ns(&self) -> f64 {
        self.worker.as_nanos() as f64 / self.requests.max(1) as f64
    }
}

impl Drive {
    fn open(clients: u32, routes: usize, uses: Use, seed: u64) -> Result<Self> {
        let worker = Worker::new(if uses == Use::Kept { clients } else { CLIENTS }, routes)?;
        let mut drive =
            Self { worker, peers: Peers::new(clients, routes, uses, seed), burst: Vec::with_capacity(BURST) };
        if uses == Use::Kept {
            for some in drive.peers.order().chunks(BURST) {
                drive.peers.open(some);
                while !drive.peers.is_silent() {
                    drive.round(false)?;
                }
            }
            let open = drive.worker.established();
            ensure!(open == u64::from(clients), "{open} connections are open, {clients} were opened");
        }
        Ok(drive)
    }

    /// One burst; what the worker took for it, and allocated.
    fn round(&mut self, asks: bool) -> Result<(Duration, u64)> {
        let time = self.worker.now.0 + STEP_US;
        self.peers.fill(&mut self.burst, time, asks)?;
        let before = weir_os::allocations::count();
        let start = Instant::now();
        self.worker.burst(&mut self.burst);
        let took = start.elapsed();
        let allocations = weir_os::allocations::count() - before;
        self.peers.see(&mut self.worker.wire.sent, time)?;
        Ok((took, allocations))
    }

    /// Requests for at least so long.
    fn lap(&mut self, length: Duration) -> Result<Lap> {
        let (start, answered) = (Instant::now(), self.peers.answered);
        let mut lap = Lap::default();
        while lap.worker < length {
            interrupt::check()?;
            let before = self.peers.answered;
            for _ in 0..ROUNDS {
                let (took, allocations) = self.round(true)?;
                lap.worker += took;
                lap.allocations += allocations;
            }
            ensure!(self.peers.answered > before, "nothing is answered: {:?}", self.worker.books);
            self.peers.compare(&mut self.worker.wire.samples)?;
        }
        lap.requests = self.peers.answered - answered;
        lap.peers = start.elapsed().saturating_sub(lap.worker);
        Ok(lap)
    }

    fn check(&self) -> Result<()> {
        self.worker.check()?;
        self.peers.check()?;
        let (asked, answered) = (self.peers.asked, self.peers.answered);
        ensure!(asked - answered <= IN_FLIGHT as u64, "{asked} asked, {answered} answered");
        Ok(())
    }
}

/// Runs the cases that are wanted.
pub(super) fn run(bench: &mut Bench<'_>) {
    for (case, clients, uses) in
        [("memory/keep-alive", CLIENTS, Use::Kept), ("memory/close", PASSING, Use::Once)]
    {
        bench.case(case, |context| pinned(context, |context| one(context, case, clients, ROUTES, uses)));
    }
    let mut fewest: Option<Figure> = None;
    for routes in SIZES {
        let case = format!("memory/routes-{routes}");
        bench.case(&case, |context| {
            let mut figures = pinned(context, |context| one(context, &case, CLIENTS, routes, Use::Kept))?;
            let Some(cost) = figures.first().cloned() else { return Ok(figures) };
            let of_fewest = fewest.get_or_insert_with(|| cost.clone()).median();
            let values = cost.values.iter().map(|value| value / of_fewest).collect();
            figures.push(Figure { metric: "times_fewest_routes", unit: "", values, ..cost });
            Ok(figures)
        });
    }
}

fn one(context: &Context, case: &str, clients: u32, routes: usize, uses: Use) -> Result<Vec<Figure>> {
    let mut drive = Drive::open(clients, routes, uses, context.seed)?;
    // one that does not count: buffers grow to their sizes
    drive.lap(context.window)?;
    let laps = (0..context.windows).map(|_| drive.lap(context.window)).collect::<Result<Vec<_>>>()?;
    drive.check()?;
    let kept = match uses {
        Use::Kept => format!("{clients} kept client connections in random order"),
        Use::Once => "a client connection per request: SYN to the last ACK".to_owned(),
    };
    let setup = format!(
        "{kept}, {} kept connections to 8 backends, {IN_FLIGHT} requests in flight, {routes} routes; requests of {REQUEST} B, bodies of \
         {BODY} B; one thread on CPU 1, bursts of up to {BURST} packets, virtual time of {STEP_US} µs per burst; in the figure: parsing, TCP \
         of both sides, HTTP, timers, a port that writes headers and keeps buffers for a burst; not in it: driver, checksums (the NIC's), \
         and the peers, which take their time between two bursts",
        drive.peers.upstreams()
    );
    let figure = |metric, unit, value: &dyn Fn(&Lap) -> f64| {
        let values: Vec<f64> = laps.iter().map(value).collect();
        println!("      {metric} {:.3} {unit}", median(&values));
        Figure { case: case.to_owned(), implementation: "weir", metric, unit, values, setup: setup.clone() }
    };
    Ok(vec![
        figure("ns_per_request", "ns", &Lap::ns),
        figure("requests_per_second", "1/s", &|lap| 1e9 / lap.ns()),
        figure("allocations_per_request", "", &|lap| lap.allocations as f64 / lap.requests.max(1) as f64),
        figure("generator_ns", "ns", &|lap| lap.peers.as_nanos() as f64 / lap.requests.max(1) as f64),
    ])
}
