//! Changes from the command line under load: nobody but the operator notices.

mod random;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use self::random::Operator;
use super::http::{Site, Text};
use super::rig::who;
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt;
use crate::topology::lab::Family;
use crate::traffic::exchange::{Client, get};
use crate::traffic::http::{Connection, Progress};
use crate::traffic::rate;

const WEB: u16 = 80;
const TUNNELS: u16 = 81;
/// A listener that nobody uses, to be drained and removed.
const SIDE: u16 = 82;
const CHANGES: usize = 200;
/// Changes between two looks at all that must stay.
const BETWEEN: usize = 10;
/// Requests per second, over so many connections.
const RATE: u32 = 10_000;
const CONNECTIONS: usize = 64;
/// Connections of each kind that are held.
const HELD: usize = 4;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("changes/under-load", under_load)]
}

/// Connections that no change may end: flows of L4, connections of the proxy, tunnels of HTTP.
struct Held {
    connections: Vec<(Connection, String)>,
    tunnels: Vec<Client>,
}

impl Held {
    fn open(site: &Site, services: &[Service]) -> Result<Self> {
        let mut connections = Vec::new();
        for service in services {
            for _ in 0..HELD {
                let mut connection = site.rig.connect(service)?;
                let on = who(&mut connection)?;
                connections.push((connection, on));
            }
        }
        let mut tunnels = Vec::new();
        for _ in 0..HELD {
            let mut client = site.client(TUNNELS)?;
            let answer = client.ask(&get("/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n"))?;
            ensure!(answer.status == 101, "{answer:?}");
            tunnels.push(client);
        }
        Ok(Self { connections, tunnels })
    }

    fn must_stay(&mut self) -> Result<()> {
        for (number, (connection, on)) in self.connections.iter_mut().enumerate() {
            let kind = if number < HELD { "a flow of L4" } else { "a connection of the proxy" };
            let now = who(connection).with_context(|| format!("{kind} was cut"))?;
            ensure!(now == *on, "{kind} went from {on} to {now}");
        }
        for tunnel in &mut self.tunnels {
            tunnel.send("word").and_then(|()| tunnel.bytes(4)).context("a tunnel was cut")?;
        }
        Ok(())
    }
}

/// Weights, backends, drains, routes and the way back, at random, while requests come at a fixed rate.
fn under_load(context: &Context) -> Result<()> {
    let services = [
        Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4).on_vip(2),
        Service::new(Mode::Proxy, Protocol::Tcp, Family::Ipv4).on_vip(3),
    ];
    let text = Text::new()
        .listener("web", WEB, "app", "")
        .listener("tunnels", TUNNELS, "script", "")
        .listener("side", SIDE, "other", "")
        .nginx("app", "http = { idle = \"1s\" }\n")
        .nginx("other", "http = { idle = \"1s\" }\n")
        .scripted("script", "");
    let mut site = Site::start_with(context, text, |config| config.services = services.to_vec())?;
    let mut held = Held::open(&site, &services)?;
    let mut operator = Operator::new(&site.rig, context.seed)?;
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    let (client, target) = (site.rig.client(), site.place(WEB));
    let (outcome, took) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            client.run(|| {
                rate::run_while(target, RATE, CONNECTIONS, |count, _| {
                    answered.store(count, Ordering::Relaxed);
                    !stop.load(Ordering::Relaxed) && !interrupt::arrived()
                })
            })?
        });
        let progress = Progress { count: &answered };
        let mut work = || -> Result<Duration> {
            progress.more(u64::from(RATE) / 2)?;
            let start = Instant::now();
            for number in 0..CHANGES {
                operator.change(&site.rig).with_context(|| format!("change {number}"))?;
                ensure!(!load.is_finished(), "the load has ended");
                if number % BETWEEN == 0 {
                    site.rig.weir.must_run()?;
                    held.must_stay().with_context(|| format!("after change {number}"))?;
                    operator.compare(&site.rig).with_context(|| format!("after change {number}"))?;
                }
            }
            let took = start.elapsed();
            progress.more(u64::from(RATE) / 2)?;
            Ok(took)
        };
        let took = work();
        stop.store(true, Ordering::Relaxed);
        let outcome = load.join().map_err(|_| anyhow!("the load panicked")).flatten();
        // a load that failed is why the work did
        let told = || format!("seed {}; the last changes:\n{}", context.seed, operator.last_words());
        let outcome = outcome.context("the load").with_context(told)?;
        Ok::<_, anyhow::Error>((outcome, took.with_context(told)?))
    })?;
    held.must_stay()?;
    operator.compare(&site.rig)?;
    println!(
        "      {CHANGES} changes in {:.1} s beside {} requests, {RATE} a second: none failed; p99 {:.1} ms, p99.9 {:.1} ms",
        took.as_secs_f64(),
        outcome.answered,
        outcome.p99_us / 1e3,
        outcome.p999_us / 1e3
    );
    println!("      {}", operator.summary());
    ensure!(outcome.missing == 0, "{} requests were never answered", outcome.missing);
    let accepted = site.status()?.proxy("web", "connections_accepted");
    ensure!(accepted == CONNECTIONS as u64, "{accepted} connections for {CONNECTIONS} of the load");
    drop(held);
    site.finish()
}
