//! What does TCP cost? Weir's engine alone, in memory, on one pinned core, beside smoltcp in the same run.
//!
//! ```text
//! echo, churn, bulk   the cases: what peers say, and that all of it happened     packet  buffers of a pool
//! idle                memory per connection                                      peer    frames of the other ends
//! drive               opens connections, runs and times batches                  wire    what left, sampled
//! stack               what a case asks of a stack: weir, shared_smoltcp      drive and wire are used by all
//! ```
//! Frames are written before the time is taken; what that costs is told beside. Time is virtual, a burst every 5 µs.

mod bulk;
mod churn;
mod drive;
mod echo;
mod idle;
pub(super) mod nic;
pub(super) mod packet;
mod peer;
mod shared_smoltcp;
mod stack;
mod weir;
mod wire;

use anyhow::{Context as _, Result};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::result::{Figure, median};
use super::{Bench, Context};
use crate::interrupt;
use bulk::Bulk;
use churn::Churn;
use drive::Lap;
use echo::Echo;
use shared_smoltcp::Smoltcp;
use stack::{Role, Stack};
use weir::Weir;

/// CPU of the loop; the worker's.
const CPU: usize = 1;
/// Names of the sizes.
const SIZES: [(&str, u32); 4] = [("100", 100), ("10k", 10_000), ("100k", 100_000), ("1m", 1_000_000)];
/// Connections up to which smoltcp takes part.
const SMOLTCP_MOST: u32 = 100_000;
/// Idle connections below those that come and go.
const CHURN_IDLE: u32 = 100_000;
/// Connections that are weighed.
const WEIGHED: u32 = 1_000_000;
/// What all figures have in common.
const SETUP: &str = "one thread on CPU 1, bursts of 32 packets in random order of connections, IPv4, checksums left to the NIC, \
    frames written beforehand, virtual time of 5 µs per burst; in the figure: parsing, the stack, its timers, an application and a \
    port that writes headers and keeps buffers for a burst; no driver. weir: timestamps, SACK, ECN, CUBIC, keep-alive. smoltcp \
    0.14: one Interface, a SocketSet per connection, CUBIC, no timestamps, no timers run";

/// What can be repeated and timed.
trait Case {
    /// A stretch of it.
    fn batch(&mut self) -> Result<Lap>;
    /// Fails where not all of it happened as it should.
    fn check(&mut self) -> Result<()>;
}

macro_rules! cases {
    ($($case:ident),*) => {
        $(impl<S: Stack> Case for $case<S> {
            fn batch(&mut self) -> Result<Lap> {
                $case::batch(self)
            }
            fn check(&mut self) -> Result<()> {
                $case::check(self)
            }
        })*
    };
}

cases!(Echo, Churn, Bulk);

/// A stack in a case, and its windows.
struct Entrant {
    name: &'static str,
    case: Box<dyn Case>,
    laps: Vec<Lap>,
}

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    // first: memory that another case gave back would be used again and not be seen
    bench.case("idle", |context| pinned(context, weigh));
    for (name, connections) in SIZES {
        let case = format!("echo/{name}");
        bench.case(&case, |context| pinned(context, |context| echo(context, &case, connections)));
    }
    bench.case("churn", |context| pinned(context, churn));
    for (case, role) in
        [("bulk-receive", Role::Receive), ("bulk-send", Role::Send), ("relay-bulk", Role::Relay)]
    {
        bench.case(case, |context| pinned(context, |context| bulk(context, case, role)));
    }
}

/// Runs on a thread of its own, so that only it is pinned.
pub(super) fn pinned(
    context: &Context,
    work: impl FnOnce(&Context) -> Result<Vec<Figure>> + Send,
) -> Result<Vec<Figure>> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut cpus = CpuSet::new();
            cpus.set(CPU);
            sched_setaffinity(None, &cpus).context("run on CPU 1")?;
            work(context)
        });
        thread.join().map_err(|_| anyhow::anyhow!("the loop panicked"))?
    })
}

fn entrant<S: Stack, C: Case + 'static>(case: C) -> Entrant {
    Entrant { name: S::NAME, case: Box::new(case), laps: Vec::new() }
}

/// Windows of all in turn, after one of each that does not count.
fn race(context: &Context, entrants: &mut [Entrant]) -> Result<()> {
    for window in 0..=context.windows {
        for entrant in &mut *entrants {
            interrupt::check()?;
            let mut sum = Lap::default();
            while sum.stack < context.window {
                sum.add(entrant.case.batch()?);
            }
            if window > 0 {
                entrant.laps.push(sum);
            }
        }
    }
    for entrant in entrants {
        entrant.case.check()?;
    }
    Ok(())
}

fn figure(
    case: &str,
    entrant: &Entrant,
    (metric, unit): (&'static str, &'static str),
    value: impl Fn(&Lap) -> f64,
    setup: &str,
) -> Figure {
    let values: Vec<f64> = entrant.laps.iter().map(value).collect();
    println!("      {} {metric} {:.1} {unit}", entrant.name, median(&values));
    Figure {
        case: case.to_owned(),
        implementation: entrant.name,
        metric,
        unit,
        values,
        setup: setup.to_owned(),
    }
}

fn echo(context: &Context, case: &str, connections: u32) -> Result<Vec<Figure>> {
    let mut entrants = vec![entrant::<Weir, _>(Echo::<Weir>::open(connections, context.seed)?)];
    if connections <= SMOLTCP_MOST {
        entrants.push(entrant::<Smoltcp, _>(Echo::<Smoltcp>::open(connections, context.seed)?));
    }
    race(context, &mut entrants)?;
    let how = format!(
        "128 B in, 1 KiB out, its acknowledgement in, {} transactions later at most; {SETUP}",
        echo::LAG
    );
    let mut figures = figures(case, &entrants, ("ns_per_transaction", "ns"), &how);
    if let [weir, smoltcp] = &entrants[..] {
        let ratio = |(ours, theirs): (&Lap, &Lap)| theirs.ns() / ours.ns();
        let values: Vec<f64> = weir.laps.iter().zip(&smoltcp.laps).map(ratio).collect();
        println!("      {:.2} times smoltcp's rate", median(&values));
        figures.push(Figure {
            case: case.to_owned(),
            implementation: Weir::NAME,
            metric: "times_smoltcp",
            unit: "",
            values,
            setup: how,
        });
    }
    Ok(figures)
}

/// Time per unit of every stack, and that of the peers beside.
fn figures(case: &str, entrants: &[Entrant], metric: (&'static str, &'static str), how: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    for entrant in entrants {
        figures.push(figure(case, entrant, metric, Lap::ns, how));
        figures.push(figure(case, entrant, ("generator_ns", "ns"), Lap::generator_ns, how));
    }
    figures
}

fn churn(context: &Context) -> Result<Vec<Figure>> {
    let seed = context.seed;
    let mut entrants = vec![
        entrant::<Weir, _>(Churn::<Weir>::open(CHURN_IDLE, seed)?),
        entrant::<Smoltcp, _>(Churn::<Smoltcp>::open(CHURN_IDLE, seed)?),
    ];
    race(context, &mut entrants)?;
    let how = format!(
        "SYN, SYN+ACK, ACK, FIN, FIN+ACK, ACK of {} connections at once, step by step, over {CHURN_IDLE} idle ones; {SETUP}",
        churn::AT_ONCE
    );
    Ok(figures("churn", &entrants, ("ns_per_connection", "ns"), &how))
}

fn weigh(context: &Context) -> Result<Vec<Figure>> {
    let figure = |implementation, value: f64, how: String| {
        println!("      {implementation} {value:.1} bytes per connection");
        Figure {
            case: "idle".to_owned(),
            implementation,
            metric: "bytes_per_connection",
            unit: "B",
            values: vec![value],
            setup: how,
        }
    };
    let ours = idle::bytes_per_connection::<Weir>(WEIGHED, context.seed)?;
    let theirs = idle::bytes_per_connection::<Smoltcp>(SMOLTCP_MOST, context.seed)?;
    Ok(vec![
        figure(
            Weir::NAME,
            ours,
            format!(
                "memory that the process gains with {WEIGHED} open connections: records, index, timer, lists"
            ),
        ),
        figure(Smoltcp::NAME, theirs, format!("the same with {SMOLTCP_MOST}, each with two rings of 2 KiB")),
    ])
}

fn bulk(context: &Context, case: &str, role: Role) -> Result<Vec<Figure>> {
    let (ours, theirs) =
        (Bulk::<Weir>::open(role, context.seed)?, Bulk::<Smoltcp>::open(role, context.seed)?);
    let bytes = [ours.segment_bytes(), theirs.segment_bytes()];
    let mut entrants = vec![entrant::<Weir, _>(ours), entrant::<Smoltcp, _>(theirs)];
    race(context, &mut entrants)?;
    let how = format!(
        "{} connections, trains of {} segments of 1,500 B ({} B of data; smoltcp: {} B), their acknowledgements included; {SETUP}",
        bulk::CONNECTIONS,
        bulk::TRAIN,
        bytes[0],
        bytes[1]
    );
    let mut figures = figures(case, &entrants, ("ns_per_segment", "ns"), &how);
    for (entrant, bytes) in entrants.iter().zip(bytes) {
        let rate = |lap: &Lap| f64::from(bytes) * 8.0 / lap.ns();
        figures.push(figure(case, entrant, ("gbit_per_second", "Gbit/s"), rate, &how));
    }
    Ok(figures)
}
