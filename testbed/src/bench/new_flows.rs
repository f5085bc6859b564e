//! How many new TCP connections per second does one worker take? With room for all of them, and with a full table where
//! each must first end another one.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::capture::{BACKENDS, Content, Traffic};
use super::forward::{Plan, entries_for, pages_for, room_for};
use super::instance::{Counters, Instance, Moment};
use super::result::{Figure, median};
use super::{Bench, Context};
use crate::config::Mode;
use crate::interrupt;
use crate::run::Run;
use crate::setup::Pages;
use crate::topology::lab::Family;

/// Connections in the capture, each a SYN of its own.
const FLOWS: u32 = 2_000_000;
/// Entries of the table that is always full: a flow is gone before its SYN comes round again, but for a few. The oldest of some
/// makes room, not the oldest of all.
const FULL: u32 = 1_000_000;
/// Buffers beside those that hold the capture.
const SPARE: u32 = 16_384;

/// Shortest window of a full table: the worker tells packets and flows at different moments, milliseconds apart.
const SHORTEST: Duration = Duration::from_millis(200);

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    for family in Family::BOTH {
        for mode in [Mode::Dsr, Mode::Nat] {
            let name = format!("new-flows/{}/{}", family.name(), mode.name());
            let room = format!("{name}/room");
            bench.case(&room, |context| with_room(context, &room, family, mode));
            let full = format!("{name}/full");
            bench.case(&full, |context| without_room(context, &full, family, mode));
        }
    }
}

struct Stage {
    plan: Plan,
    run: Run,
    _pages: Pages,
}

fn set(context: &Context, family: Family, mode: Mode, entries: u32) -> Result<Stage> {
    let traffic = Traffic { family, content: Content::Syn, flows: FLOWS };
    let run = Run::new()?;
    let capture = run.path("syns.pcap");
    let frames = traffic.write(&capture, context.seed, "new flows", 1)?;
    let plan = Plan {
        mode,
        traffic,
        entries,
        device: format!("pcap:{},,infinite", capture.display()),
        buffers: frames + SPARE,
        room: room_for(FLOWS),
    };
    let pages = Pages::reserve(pages_for(plan.buffers, plan.room.0, entries))?;
    Ok(Stage { plan, run, _pages: pages })
}

fn figure(case: &str, rates: Vec<f64>, plan: &Plan, how: &str) -> Vec<Figure> {
    println!("      {:.2} million per second", median(&rates) / 1e6);
    vec![Figure {
        case: case.to_owned(),
        implementation: "weir",
        metric: "flows_per_second",
        unit: "1/s",
        values: rates,
        setup: format!(
            "1 worker on CPU 1, {FLOWS} connections of one {} B {} each, {BACKENDS} backends, net_pcap infinite_rx (its \
             copy included), tx discarded; {how}",
            plan.traffic.frame_bytes(),
            plan.traffic.content.name(),
        ),
    }]
}

/// The first pass over the capture: every packet makes a flow, and there is room for all.
fn with_room(context: &Context, case: &str, family: Family, mode: Mode) -> Result<Vec<Figure>> {
    let entries = entries_for(FLOWS);
    let stage = set(context, family, mode, entries)?;
    let mut rates = Vec::new();
    for _ in 0..context.runs {
        // a run of its own, so that no flow is left from the one before
        let run = Run::new()?;
        let mut weir = Instance::launch(&run, &context.binaries, &stage.plan.toml())?;
        rates.push(first_pass(&mut weir)?);
        weir.await_serving()?;
        weir.stop()?;
    }
    drop(stage.run);
    let how =
        format!("empty table of {entries} entries, rate of the first pass from one to nine tenths of it");
    Ok(figure(case, rates, &stage.plan, &how))
}

/// Looks from the start on: the pass is over before `weir status` has said that anything runs.
fn first_pass(weir: &mut Instance) -> Result<f64> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut counters: Option<Counters> = None;
    let mut first: Option<Moment> = None;
    let part = |tenths: u64| u64::from(FLOWS) / 10 * tenths;
    loop {
        interrupt::check()?;
        std::thread::sleep(Duration::from_millis(1));
        if counters.is_none() {
            weir.dataplane.must_run()?;
            // there are none before the process has made them
            counters = weir.counters().ok();
        }
        let now = counters.as_ref().map(Counters::now);
        match (now, first) {
            (Some(now), None) if now.created >= part(1) => {
                ensure!(now.created < part(5), "{} flows were there before the first look", now.created);
                first = Some(now);
            }
            (Some(now), Some(first)) if now.created >= part(9) => {
                return Ok((now.created - first.created) as f64 / (now.at - first.at).as_secs_f64());
            }
            _ => {}
        }
        if Instant::now() > deadline {
            let drops = counters.map_or("unknown".to_owned(), |counters| counters.drops());
            bail!("only {} of {FLOWS} flows were made; drops: {drops}", now.map_or(0, |now| now.created));
        }
    }
}

/// Every packet makes a flow and ends the oldest unfinished one.
fn without_room(context: &Context, case: &str, family: Family, mode: Mode) -> Result<Vec<Figure>> {
    let stage = set(context, family, mode, FULL)?;
    let weir = Instance::start(&stage.run, &context.binaries, &stage.plan.toml())?;
    let counters = weir.counters()?;
    crate::interrupt::wait_for("the table to be full", Duration::from_secs(20), || {
        Ok((counters.now().evicted > u64::from(FULL)).then_some(()))
    })?;
    let (mut rates, mut kept) = (Vec::new(), Vec::new());
    for _ in 0..context.windows {
        let before = counters.now();
        interrupt::pause(context.window.max(SHORTEST))?;
        let after = counters.now();
        let (made, rx) = (after.created - before.created, after.rx - before.rx);
        let lost = after.dropped - before.dropped + after.fallback - before.fallback;
        ensure!(lost * 100 <= rx, "{lost} of {rx} SYNs got no flow; drops: {}", counters.drops());
        ensure!(made * 100 >= rx * 90, "{rx} SYNs made only {made} flows, though {lost} were lost");
        kept.push(rx.saturating_sub(made) as f64 * 100.0 / rx.max(1) as f64);
        ensure!(after.flows <= u64::from(FULL), "{} flows in a table of {FULL}", after.flows);
        rates.push(made as f64 / (after.at - before.at).as_secs_f64());
    }
    weir.stop()?;
    let how = format!(
        "table of {FULL} entries, full: each connection ends an unfinished one; {:.1} % of the SYNs found the flow of the \
         round before, and are not counted",
        median(&kept)
    );
    Ok(figure(case, rates, &stage.plan, &how))
}
