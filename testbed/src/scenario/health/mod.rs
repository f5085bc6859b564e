//! Health checks: a backend that fails in any of the ways that there are is found out, spared, and taken back.

mod faults;
mod kinds;
mod tunnels;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::Scenario;
use super::rig::Rig;
use crate::config::Service;
use crate::interrupt::wait_for;
use crate::topology::lab::backend_name;
use crate::traffic::http;

/// Requests that must not meet a backend that is down.
const REQUESTS: u64 = 150;
/// At once.
const AT_ONCE: usize = 3;
/// How long all backends may take to be known.
const KNOWN: Duration = Duration::from_secs(10);
/// `rise` and `fall` of the checks here.
const IN_A_ROW: u32 = 2;
/// Their `interval`, with its jitter.
const INTERVAL: Duration = Duration::from_millis(220);
/// Their `fast_interval`, with its jitter.
const FAST: Duration = Duration::from_millis(110);
/// Their `timeout`.
const TIMEOUT: Duration = Duration::from_millis(250);
/// For a busy machine, and to be told.
const SLACK: Duration = Duration::from_millis(600);
/// The times of the checks here.
const TIMES: &str =
    "interval = \"200ms\", fast_interval = \"100ms\", timeout = \"250ms\", rise = 2, fall = 2";

pub(super) fn scenarios() -> Vec<Scenario> {
    [faults::scenarios(), kinds::scenarios(), tunnels::scenarios()].into_iter().flatten().collect()
}

/// Longest time until a backend that fails is down: an interval, one fast one for each further failure, and every probe
/// takes its timeout.
fn detected() -> Duration {
    INTERVAL + FAST * (IN_A_ROW - 1) + TIMEOUT * IN_A_ROW + SLACK
}

/// Longest time until it is up again.
fn recovered() -> Duration {
    INTERVAL.max(TIMEOUT) + FAST * (IN_A_ROW - 1) + TIMEOUT + SLACK
}

/// What `weir health --json` tells of a backend.
#[derive(Clone, Debug, Deserialize)]
struct Row {
    pool: String,
    backend: String,
    state: String,
    reason: String,
    through: String,
    in_doubt: bool,
    probes: u64,
    failures: u64,
}

#[derive(Debug, Deserialize)]
struct Listing {
    backends: Vec<Row>,
}

fn rows(rig: &Rig) -> Result<Vec<Row>> {
    let output = rig.weir.cli(&["health", "--json"]).output()?;
    let listing: Listing = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("weir health: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(listing.backends)
}

fn row(rig: &Rig, service: &Service, number: usize) -> Result<Row> {
    let name = backend_name(number);
    let found = rows(rig)?.into_iter().find(|row| row.pool == service.name && row.backend == name);
    found.with_context(|| format!("{}/{name} is not probed", service.name))
}

/// Waits until every backend was found up, and all workers know.
fn all_up(rig: &mut Rig) -> Result<()> {
    let mut last = Vec::new();
    let outcome = wait_for("all backends to be up", KNOWN, || {
        rig.weir.must_run()?;
        last = rows(rig)?;
        Ok((!last.is_empty() && last.iter().all(|row| row.state == "up")).then_some(()))
    });
    outcome.with_context(|| format!("{last:#?}"))?;
    rig.wait_until_adopted()
}

/// Waits until a backend is in that state, which must not take longer than `most`; gives how long it took.
fn becomes(rig: &mut Rig, service: &Service, number: usize, state: &str, most: Duration) -> Result<Row> {
    let began = Instant::now();
    let mut last = None;
    let outcome = wait_for("health to be found", most + Duration::from_secs(5), || {
        rig.weir.must_run()?;
        let row = row(rig, service, number)?;
        let found = row.state == state;
        last = Some(row.clone());
        Ok(found.then_some(row))
    });
    let row = outcome.with_context(|| format!("{last:?} never became {state}"))?;
    let took = began.elapsed();
    ensure!(took <= most, "{}/{} became {state} after {took:?}, not within {most:?}", row.pool, row.backend);
    rig.wait_until_adopted()?;
    Ok(row)
}

/// No request fails, and none meets that backend.
fn spared(rig: &Rig, service: &Service, number: usize) -> Result<()> {
    let tally = http::load(&rig.lab.client, service.target(), REQUESTS, AT_ONCE)?;
    tally.must_be_clean()?;
    let met = tally.of(&backend_name(number));
    ensure!(met == 0, "{met} of {REQUESTS} requests met {}, which is down", backend_name(number));
    Ok(())
}

/// No request fails, and that backend gets its share.
fn used(rig: &Rig, service: &Service, number: usize) -> Result<()> {
    let tally = http::load(&rig.lab.client, service.target(), REQUESTS, AT_ONCE)?;
    tally.must_be_clean()?;
    let met = tally.of(&backend_name(number));
    ensure!(
        met * 8 > REQUESTS,
        "{met} of {REQUESTS} requests met {}, a third would be its share",
        backend_name(number)
    );
    Ok(())
}
