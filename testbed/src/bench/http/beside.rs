//! `testbed/fixed-10k`, `testbed/fixed-20k`: what a request costs the whole machine at a fixed rate. `testbed/keep-alive`,
//! `testbed/close`: how many there are at most. All of `testbed/…` share one stage.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::super::result::Figure;
use super::super::{Bench, Context};
use super::rivals::{BODY, OTHERS, PROXY, Rival, Stage};
use super::slow;
use crate::command;
use crate::interrupt;
use crate::traffic::rate::Outcome;

/// Connections of clients.
pub(super) const CONNECTIONS: usize = 64;
/// Cases at a fixed rate.
const RATES: [(&str, u32); 2] = [("testbed/fixed-10k", 10_000), ("testbed/fixed-20k", 20_000)];
/// Cases without one: name, what requests say of the connection.
const SATURATED: [(&str, &str); 2] = [("testbed/keep-alive", "keep-alive"), ("testbed/close", "close")];

/// One run of one of them.
#[derive(Clone, Debug, Default)]
struct Run {
    rate: f64,
    /// Busy CPU time of the machine per request, µs.
    busy: f64,
    /// CPU time of the proxy per request: outside system calls, and all, µs.
    own: (f64, f64),
    p50: f64,
    p99: f64,
    p999: f64,
}

/// Runs the cases that are wanted.
pub(super) fn run(bench: &mut Bench<'_>) {
    let all = RATES.iter().map(|(case, _)| case).chain(SATURATED.iter().map(|(case, _)| case));
    if !all.chain([&slow::CASE]).any(|case| bench.wants(case)) || interrupt::arrived() {
        return;
    }
    let stage = match Stage::start(&bench.context) {
        Ok(stage) => stage,
        Err(error) => return bench.failed("testbed", &error),
    };
    for (case, rate) in RATES {
        bench.case(case, |context| fixed(context, &stage, case, rate));
    }
    for (case, token) in SATURATED {
        bench.case(case, |context| saturated(context, &stage, case, token));
    }
    bench.case(slow::CASE, |context| slow::slow(context, &stage));
    if let Err(error) = stage.finish() {
        bench.failed("testbed", &error);
    }
}

/// Windows of all in turn.
pub(super) fn race<T>(
    context: &Context,
    rivals: &[Rival],
    mut one: impl FnMut(Rival) -> Result<T>,
) -> Result<Vec<(Rival, Vec<T>)>> {
    let mut runs: Vec<(Rival, Vec<T>)> = rivals.iter().map(|rival| (*rival, Vec::new())).collect();
    for _ in 0..context.runs {
        for (rival, runs) in &mut runs {
            interrupt::check()?;
            runs.push(one(*rival).with_context(|| rival.name())?);
        }
    }
    Ok(runs)
}

/// Requests at a fixed rate, by a process on the CPU of clients.
pub(super) fn ask(stage: &Stage, rival: Rival, rate: u32, length: Duration) -> Result<Outcome> {
    let program = std::env::current_exe()?.display().to_string();
    let (target, rate) = (rival.place().to_string(), rate.to_string());
    let (connections, ms) = (CONNECTIONS.to_string(), length.as_millis().to_string());
    let mut command = stage.client_command(&program);
    let said = command::run(command.args(["peer", "rate", &target, &rate, &connections, &ms]))?;
    serde_json::from_str(said.trim()).context(said)
}

fn fixed(context: &Context, stage: &Stage, case: &str, rate: u32) -> Result<Vec<Figure>> {
    let length = length(context);
    let runs = race(context, &Rival::ALL, |rival| {
        stage.only(rival)?;
        let (busy, used, start) = (busy()?, stage.used(rival)?, Instant::now());
        let outcome = ask(stage, rival, rate, length)?;
        let took = start.elapsed();
        let (busy, used) = (self::busy()? - busy, minus(stage.used(rival)?, used));
        ensure!(
            outcome.missing == 0,
            "{} of {} requests were not answered",
            outcome.missing,
            outcome.answered
        );
        let each = 1e6 / outcome.answered as f64;
        Ok(Run {
            rate: outcome.answered as f64 / took.as_secs_f64(),
            busy: busy * each,
            own: (used.0 * each, used.1 * each),
            p50: outcome.p50_us,
            p99: outcome.p99_us,
            p999: outcome.p999_us,
        })
    })?;
    let setup = format!(
        "{rate} GETs a second over {CONNECTIONS} kept connections, due in even steps whether or not the last were answered, times from \
         when they were due; {}; added: the machine's busy CPU time per request less that of direct; own: CPU time of the proxy's process, \
         of Weir without its system calls, which are the driver's and run the peers' stacks",
        setup()
    );
    let direct: Vec<f64> = runs[0].1.iter().map(|run| run.busy).collect();
    let mut figures = Vec::new();
    for (rival, runs) in &runs {
        let mut push =
            |metric, values: Vec<f64>| figures.push(figure(case, *rival, metric, "us", values, &setup));
        push("busy_cpu_us_per_request", runs.iter().map(|run| run.busy).collect());
        if *rival != Rival::Direct {
            push(
                "added_cpu_us_per_request",
                runs.iter().zip(&direct).map(|(run, direct)| run.busy - direct).collect(),
            );
            let own = |run: &Run| if *rival == Rival::Weir { run.own.0 } else { run.own.1 };
            push("own_cpu_us_per_request", runs.iter().map(own).collect());
            push("process_cpu_us_per_request", runs.iter().map(|run| run.own.1).collect());
        }
        push("p50_us", runs.iter().map(|run| run.p50).collect());
        push("p99_us", runs.iter().map(|run| run.p99).collect());
        push("p999_us", runs.iter().map(|run| run.p999).collect());
    }
    figures.extend(beside_the_better(case, &runs, &setup));
    Ok(figures)
}

/// What Weir takes of what the better of the others takes, run by run.
fn beside_the_better(case: &str, runs: &[(Rival, Vec<Run>)], setup: &str) -> Vec<Figure> {
    let [(_, direct), (_, weir), others @ ..] = runs else { return Vec::new() };
    let of_better = |value: &dyn Fn(&Run, &Run) -> f64, ours: &dyn Fn(&Run, &Run) -> f64| -> Vec<f64> {
        let each = weir.iter().zip(direct).enumerate().map(|(at, (run, direct))| {
            let theirs = others.iter().filter_map(|(_, runs)| Some(value(runs.get(at)?, direct)));
            ours(run, direct) / theirs.fold(f64::INFINITY, f64::min)
        });
        each.collect()
    };
    let added = |run: &Run, direct: &Run| run.busy - direct.busy;
    let p99 = |run: &Run, _: &Run| run.p99;
    let figure = |metric, values| figure(case, Rival::Weir, metric, "", values, setup);
    vec![
        figure("added_of_better", of_better(&added, &added)),
        figure("own_of_better", of_better(&|run, _| run.own.1, &|run, _| run.own.0)),
        figure("p99_of_better", of_better(&p99, &p99)),
    ]
}

fn saturated(context: &Context, stage: &Stage, case: &str, token: &str) -> Result<Vec<Figure>> {
    let length = length(context);
    let runs = race(context, &Rival::ALL, |rival| {
        stage.only(rival)?;
        let seconds = format!("{}s", length.as_secs().max(1));
        let url = format!("http://{}/", rival.place());
        let mut command = stage.client_command("wrk");
        let connections = CONNECTIONS.to_string();
        let header = format!("Connection: {token}");
        let said = command::run(command.args([
            "-t",
            "1",
            "-c",
            &connections,
            "-d",
            &seconds,
            "--latency",
            "-H",
            &header,
            &url,
        ]))?;
        ensure!(!said.contains("Non-2xx"), "{said}");
        let word = |name: &str| {
            said.lines().find_map(|line| line.trim().strip_prefix(name)).map(|rest| rest.trim().to_owned())
        };
        let rate = word("Requests/sec:").and_then(|word| word.parse().ok()).with_context(|| said.clone())?;
        let time = |name: &str| word(name).and_then(|word| microseconds(&word)).unwrap_or(0.0);
        Ok(Run { rate, p50: time("50%"), p99: time("99%"), ..Run::default() })
    })?;
    let setup = format!(
        "wrk with one thread and {CONNECTIONS} connections, as many requests as it can, Connection: {token}; {}",
        setup()
    );
    let mut figures = Vec::new();
    for (rival, runs) in &runs {
        for (metric, unit, value) in [
            ("requests_per_second", "1/s", (|run| run.rate) as fn(&Run) -> f64),
            ("p50_us", "us", |run| run.p50),
            ("p99_us", "us", |run| run.p99),
        ] {
            figures.push(figure(case, *rival, metric, unit, runs.iter().map(value).collect(), &setup));
        }
    }
    Ok(figures)
}

pub(super) fn figure(
    case: &str,
    rival: Rival,
    metric: &'static str,
    unit: &'static str,
    values: Vec<f64>,
    setup: &str,
) -> Figure {
    Figure {
        case: case.to_owned(),
        implementation: rival.name(),
        metric,
        unit,
        values,
        setup: setup.to_owned(),
    }
}

pub(super) fn setup() -> String {
    format!(
        "bodies of {BODY} B from three nginx; clients and backends on CPU {OTHERS}, the proxy on CPU {PROXY}, one thread or worker, no log; Weir over \
         AF_XDP on veths with adaptive idling, its empty polls included, the others over the kernel's TCP on the same bridges; direct: one \
         nginx over a veth of its own; who is not asked is stopped"
    )
}

fn length(context: &Context) -> Duration {
    if context.windows <= 3 { Duration::from_millis(1_200) } else { Duration::from_secs(4) }
}

fn minus(left: (f64, f64), right: (f64, f64)) -> (f64, f64) {
    (left.0 - right.0, left.1 - right.1)
}

/// Seconds for which the CPUs of the machine were not idle, since its start.
fn busy() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse().ok())
        .collect();
    ensure!(fields.len() >= 8, "/proc/stat begins with {:?}", text.lines().next());
    // user, nice, system, idle, iowait, irq, softirq, steal
    Ok((fields[..8].iter().sum::<f64>() - fields[3] - fields[4] - fields[7]) / 100.0)
}

/// `1.25ms` as wrk writes it.
fn microseconds(word: &str) -> Option<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = word.strip_suffix(unit) {
            return Some(number.parse::<f64>().ok()? * factor);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_wrk_are_read() {
        assert_eq!(
            ["431.00us", "1.25ms", "2s", "x"].map(microseconds),
            [Some(431.0), Some(1_250.0), Some(2e6), None]
        );
    }
}
