//! The TCP engine against the kernel's, through a TAP and over a link that loses, reorders, duplicates and delays.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use socket2::SockRef;
use weir_tcp::{ConnectionConfig, Ended};

use super::{Context, Scenario};
use crate::run::Run;
use crate::topology::lab::Family;
use crate::wire::{Crossing, EngineHost, Kernel, Outcome, Quality, Role, Talk, Turn, exchange};

const PORT: u16 = 5_000;
/// Bytes each way of a bulk transfer.
const BULK: u64 = 2_000_000;
/// Connections of the many short ones, and how many at once.
const SHORT: (usize, usize) = (400, 20);

/// Who the engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    Client,
    Server,
}

/// One run of an engine beside kernel sockets.
struct Case {
    family: Family,
    engine: As,
    quality: Quality,
    talk: Talk,
    connections: (usize, usize),
    aborts_after: Option<u64>,
}

fn bad() -> Quality {
    Quality { delay_us: 3_000, loss: 5_000, duplicate: 5_000, reorder: 20_000, rate: 0, queue: 0 }
}

fn case(context: &Context, engine: As, bytes: [u64; 2], turn: Turn) -> Case {
    Case {
        family: Family::Ipv4,
        engine,
        quality: bad(),
        talk: Talk { seed: context.seed, bytes, turn },
        connections: (1, 1),
        aborts_after: None,
    }
}

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (role, engine) in [("client", As::Client), ("server", As::Server)] {
        let mut add = |name: &str, body: fn(&Context, As) -> Result<()>| {
            scenarios.push(Scenario::new(format!("tcp/{name}/{role}"), move |context| body(context, engine)));
        };
        add("bulk-ipv4", |context, engine| talked(case(context, engine, [BULK; 2], Turn::Together)));
        add("bulk-ipv6", |context, engine| {
            let case = case(context, engine, [BULK; 2], Turn::Together);
            talked(Case { family: Family::Ipv6, ..case })
        });
        add("short", |context, engine| {
            let case = case(context, engine, [200, 1_024], Turn::ServerLast);
            talked(Case { connections: SHORT, ..case })
        });
        add("half-close-first", |context, engine| {
            talked(case(context, engine, [BULK / 4; 2], Turn::ServerLast))
        });
        add("half-close-last", |context, engine| {
            talked(case(context, engine, [BULK / 4; 2], Turn::ClientLast))
        });
        add("aborts", |context, engine| {
            let case = case(context, engine, [BULK; 2], Turn::Together);
            broken_by_engine(&Case { aborts_after: Some(BULK / 4), connections: (8, 8), ..case })
        });
        add("is-reset", |context, engine| {
            let case = case(context, engine, [BULK; 2], Turn::Together);
            broken_by_kernel(&Case { connections: (8, 8), ..case })
        });
    }
    scenarios
}

impl Case {
    fn side(&self) -> usize {
        // the kernel's
        usize::from(self.engine == As::Client)
    }

    fn start(&self, run: &Run) -> Result<(Kernel, Option<std::net::TcpListener>, Crossing)> {
        let (kernel, tap) = Kernel::create(run.name(), 1)?;
        let (connections, at_once) = self.connections;
        let role = match self.engine {
            As::Server => Role::Server(PORT),
            As::Client => Role::Client { family: self.family, port: PORT, connections, at_once },
        };
        let listener = match self.engine {
            As::Client => Some(kernel.listen(self.family, PORT)?),
            As::Server => None,
        };
        let (talk, aborts_after) = (self.talk, self.aborts_after);
        let config = ConnectionConfig { time_wait_s: 1, ..ConnectionConfig::default() };
        let crossing = Crossing::to_engine(tap, [self.quality; 2], talk.seed, connections, move |now| {
            let host = EngineHost::new(role, talk, config, now);
            match aborts_after {
                Some(after) => host.aborting(after),
                None => host,
            }
        });
        Ok((kernel, listener, crossing))
    }

    /// Does `work` with each connection of the kernel's, as many at once as there should be.
    fn each(
        &self,
        kernel: &Kernel,
        listener: Option<&std::net::TcpListener>,
        work: impl Fn(std::net::TcpStream) -> Result<()> + Sync,
    ) -> Result<()> {
        let (connections, at_once) = self.connections;
        let open = || match listener {
            Some(listener) => Ok(listener.accept().context("nobody connected")?.0),
            None => kernel.connect(self.family, PORT),
        };
        let threads: Vec<usize> = (0..at_once).map(|number| (connections + number) / at_once).collect();
        std::thread::scope(|scope| {
            let started: Vec<_> = threads
                .into_iter()
                .map(|count| {
                    scope.spawn({
                        let (open, work) = (&open, &work);
                        move || (0..count).try_for_each(|_| work(open()?))
                    })
                })
                .collect();
            started
                .into_iter()
                .map(|thread| thread.join().map_err(|_| anyhow!("a connection's thread panicked"))?)
                .collect::<Result<Vec<()>>>()
                .map(drop)
        })
    }
}

/// Everything that is said arrives, both ways, and both ends close in peace.
fn talked(case: Case) -> Result<()> {
    let run = Run::new()?;
    let (kernel, listener, crossing) = case.start(&run)?;
    let side = case.side();
    if let Err(error) = case.each(&kernel, listener.as_ref(), |stream| exchange(stream, &case.talk, side)) {
        let report = crossing.end()?;
        bail!("{error:#}; the engine's side: {:?} {:?}", report.outcomes, report.counters);
    }
    let report = crossing.finish()?;
    let [client, server] = case.talk.bytes;
    let (sent, received) = if side == 1 { (client, server) } else { (server, client) };
    for outcome in &report.outcomes {
        let expected = Outcome { sent, received, ended: Ended::Finished, is_right: true };
        ensure!(*outcome == expected, "{outcome:?} instead of {expected:?}; {:?}", report.counters);
    }
    ensure!(report.outcomes.len() == case.connections.0, "{} connections", report.outcomes.len());
    ensure!(report.live == 0, "{} records are left", report.live);
    Ok(())
}

/// The engine aborts: the kernel's sockets are reset.
fn broken_by_engine(case: &Case) -> Result<()> {
    let run = Run::new()?;
    let (kernel, listener, crossing) = case.start(&run)?;
    let side = case.side();
    case.each(&kernel, listener.as_ref(), |stream| match exchange(stream, &case.talk, side) {
        Ok(()) => bail!("the whole talk went through"),
        Err(error) => {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            let is_reset =
                matches!(kind, Some(std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe));
            ensure!(is_reset, "no reset: {error:#}");
            Ok(())
        }
    })?;
    let report = crossing.finish()?;
    let has_aborted = |outcome: &Outcome| outcome.ended == Ended::Aborted && outcome.is_right;
    ensure!(report.outcomes.iter().all(has_aborted), "{:?}", report.outcomes);
    Ok(())
}

/// The kernel resets in mid-transfer: the engine's application hears of it.
fn broken_by_kernel(case: &Case) -> Result<()> {
    let run = Run::new()?;
    let (kernel, listener, crossing) = case.start(&run)?;
    case.each(&kernel, listener.as_ref(), |mut stream| {
        let mut buffer = vec![0; 100_000];
        std::io::Read::read_exact(&mut stream, &mut buffer)?;
        // a close that doesn't linger is a RST
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    })?;
    let report = crossing.finish()?;
    let is_reset = |outcome: &Outcome| outcome.ended == Ended::Reset && outcome.is_right;
    ensure!(report.outcomes.iter().all(is_reset), "{:?} {:?}", report.outcomes, report.counters);
    Ok(())
}
