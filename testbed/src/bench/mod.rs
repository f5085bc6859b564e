//! How fast is Weir? `cargo testbed bench l4|tcp|http|control`: the packet loop beside `dpdk-testpmd` on the same capture,
//! the TCP engine beside smoltcp, the HTTP proxy, and how quickly changes reach the workers.
//!
//! ```text
//! reference  reference/testpmd-null, reference/random-lines: the machine beside the one of the targets
//! forward    MODE/FAMILY/FLOWS: packets of established flows   capture, check   what is played; whether it came out right
//! new_flows  new-flows/FAMILY/MODE/room|full                   instance         Weir on a capture, its counters
//! tables     flow-table, publish                               testpmd          the peer
//! live       latency/MODE, restart (a lab of namespaces)       result           figures and targets
//! tcp        echo/CONNS, churn, idle, bulk-*, relay-bulk
//! http       memory/*, testbed/*
//! control    acl-100k/FAMILY/KIND
//! ```

mod capture;
mod check;
mod control;
mod forward;
mod goodput;
mod http;
mod instance;
mod live;
mod new_flows;
mod probes;
mod reference;
mod result;
mod tables;
mod tcp;
mod testpmd;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::interrupt;
use crate::setup::{Binaries, Ready, cargo, target};
use result::Figure;
pub(crate) use result::percentile;

/// Load of the machine above which figures can't be trusted.
const BUSY: f64 = 0.7;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Packets: cost by mode, family and number of flows; new flows; latency; publishing.
    L4,
    /// TCP in memory, one core: transactions, set-up and teardown, memory, bulk.
    Tcp,
    /// HTTP: what a request costs, in memory, and in a lab beside HAProxy and nginx.
    Http,
    /// Changes: from a request to the acknowledgement of every worker; back after a crash.
    Control,
}

/// What to run and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct Choice {
    /// What to measure.
    #[arg(value_enum)]
    kind: Kind,
    /// Shorter windows; the same cases.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this; may be repeated.
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,
    /// Writes the results there as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Decides the order of the flows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What every case needs.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    /// Weir's programs.
    pub(crate) binaries: Binaries,
    /// Decides the order of the flows.
    pub(crate) seed: u64,
    /// Length of a window.
    pub(crate) window: Duration,
    /// For a process to get going again after it was stopped.
    pub(crate) thaw: Duration,
    /// How long a port's ceiling is looked for.
    pub(crate) ceiling: Duration,
    /// Windows per case.
    pub(crate) windows: usize,
    /// Runs of what needs a fresh start each time.
    pub(crate) runs: usize,
    /// Changes of the publish case.
    pub(crate) changes: usize,
    /// Requests of a latency case.
    pub(crate) requests: usize,
}

impl Context {
    fn new(binaries: &Binaries, choice: &Choice) -> Self {
        let quick = choice.quick;
        Self {
            binaries: binaries.clone(),
            seed: choice.seed,
            window: Duration::from_millis(if quick { 60 } else { 1_000 }),
            thaw: Duration::from_millis(if quick { 15 } else { 40 }),
            ceiling: Duration::from_millis(if quick { 500 } else { 1_500 }),
            windows: if quick { 3 } else { 7 },
            runs: if quick { 3 } else { 5 },
            changes: if quick { 200 } else { 1_000 },
            requests: if quick { 4_000 } else { 40_000 },
        }
    }
}

/// Where the time of a case goes.
#[derive(Debug)]
pub(crate) struct Laps {
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Laps {
    /// Starts the first.
    pub(crate) fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// Ends one and starts the next.
    pub(crate) fn lap(&mut self, name: &'static str) {
        self.laps.push((name, self.last.elapsed()));
        self.last = Instant::now();
    }
}

impl std::fmt::Display for Laps {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = self.laps.iter().map(|(name, took)| format!("{name} {:.2} s", took.as_secs_f64()));
        formatter.write_str(&parts.collect::<Vec<_>>().join(", "))
    }
}

/// A run of the bench: what was wanted, measured, and failed.
pub(crate) struct Bench<'a> {
    /// What every case needs.
    pub(crate) context: Context,
    only: &'a [String],
    figures: Vec<Figure>,
    failures: Vec<String>,
    cases: usize,
}

impl Bench<'_> {
    /// Whether the user wants that case.
    pub(crate) fn wants(&self, case: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.contains(part.as_str()))
    }

    /// Runs a case if it is wanted; a failure is told and the next case follows.
    pub(crate) fn case(&mut self, name: &str, work: impl FnOnce(&Context) -> Result<Vec<Figure>>) {
        if !self.wants(name) || interrupt::arrived() {
            return;
        }
        println!("  {name}");
        let start = Instant::now();
        match work(&self.context) {
            Ok(figures) => {
                self.cases += 1;
                self.figures.extend(figures);
                println!("      took {:.1} s", start.elapsed().as_secs_f64());
            }
            Err(error) => self.failed(name, &error),
        }
    }

    /// Takes note of a case that could not be measured.
    pub(crate) fn failed(&mut self, name: &str, error: &anyhow::Error) {
        self.cases += 1;
        println!("  {name} failed: {error:#}");
        self.failures.push(name.to_owned());
    }
}

/// Runs what was chosen.
pub(crate) fn run(ready: &Ready, choice: &Choice) -> Result<()> {
    if cfg!(debug_assertions) {
        return in_release();
    }
    warn_of_load();
    let mut bench = Bench {
        context: Context::new(&ready.binaries, choice),
        only: &choice.only,
        figures: Vec::new(),
        failures: Vec::new(),
        cases: 0,
    };
    let name = match choice.kind {
        Kind::L4 => {
            reference::run(&mut bench);
            let _pages = forward::run(&mut bench);
            new_flows::run(&mut bench);
            tables::run(&mut bench, "publish");
            live::latency(&mut bench);
            "l4"
        }
        Kind::Tcp => {
            reference::run(&mut bench);
            tcp::run(&mut bench);
            goodput::run(&mut bench);
            "tcp"
        }
        Kind::Http => {
            reference::run(&mut bench);
            http::run(&mut bench);
            "http"
        }
        Kind::Control => {
            tables::run(&mut bench, "weight-to-ack");
            bench.case("apply", tables::apply_all);
            bench.case("memory", tables::memory);
            control::run(&mut bench);
            probes::run(&mut bench);
            live::restart(&mut bench);
            "control"
        }
    };
    let Bench { figures, failures, cases, .. } = bench;
    if let Some(path) = &choice.json {
        result::write_json(path, name, &figures)?;
    }
    let (table, missed) = result::report(&figures);
    println!("\n{table}\n{}", result::setups(&figures));
    if let Some(words) = reference::Factors::of(&figures).words() {
        println!(
            "  {words}\n  \"scaled\": by the first of these for 1k flows, which no cache misses, by the smaller of the first two for more, where \
             that is above 1; a figure that only this brings under its target counts as missed\n"
        );
    }
    warn_of_load();
    interrupt::check()?;
    if cases == 0 {
        bail!("no case of bench {name} has {} in its name", choice.only.join(" or "));
    }
    println!("  {cases} cases, {missed} targets missed");
    if !failures.is_empty() {
        bail!(
            "{} cases could not be measured: {}; the reasons are above",
            failures.len(),
            failures.join(", ")
        );
    }
    Ok(())
}

/// Has the same done by a testbed that was built for release: what is measured in memory is part of this program.
fn in_release() -> Result<()> {
    println!("  building the testbed (release)");
    let status = cargo(&["build", "--release", "-p", "testbed"]).status().context("could not start cargo")?;
    if !status.success() {
        bail!("the release build failed ({status}); what cargo printed above says why");
    }
    let program = target().join("release/testbed");
    let status = std::process::Command::new(&program)
        .arg("--no-build")
        .args(std::env::args_os().skip(1).filter(|argument| argument != "--no-build"))
        .status()
        .with_context(|| format!("could not start {}", program.display()))?;
    if status.success() { Ok(()) } else { Err(crate::Quiet.into()) }
}

/// Says so when the machine has something else to do.
fn warn_of_load() {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    println!("  load average {load}");
    if load > BUSY {
        println!(
            "  warning: something else runs on this machine; the figures will be worse and noisier than they are"
        );
    }
}
