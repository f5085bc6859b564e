//! What does a flow weigh, and how long until one changed weight among 50,000 backends is in force?

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::capture::{Content, Traffic};
use super::forward::{Plan, pages_for, room_for};
use super::instance::Instance;
use super::result::{Figure, percentile};
use super::{Bench, Context};
use crate::config::Mode;
use crate::interrupt;
use crate::random::Random;
use crate::run::{Run, hugetlb_mounts};
use crate::setup::Pages;
use crate::topology::lab::Family;

/// Entries of the table that is weighed.
const ENTRIES: u32 = 1_000_000;
/// VIPs, each with a listener and a pool.
const VIPS: usize = 500;
/// Backends of each pool.
const BACKENDS: usize = 100;
/// Patience with an answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>, publish: &str) {
    if publish == "publish" {
        for family in Family::BOTH {
            let name = format!("flow-table/{}", family.name());
            bench.case(&name, |context| flow_table(context, &name, family));
        }
    }
    bench.case(publish, |context| changes(context, publish));
}

fn flow_table(context: &Context, case: &str, family: Family) -> Result<Vec<Figure>> {
    let plan = Plan {
        mode: Mode::Nat,
        traffic: Traffic { family, content: Content::Ack, flows: 1 },
        entries: ENTRIES,
        device: "null:sink".to_owned(),
        buffers: 4_096,
        room: room_for(0),
    };
    let _pages = Pages::reserve(pages_for(plan.buffers, plan.room.0, ENTRIES))?;
    let run = Run::new()?;
    let weir = Instance::start(&run, &context.binaries, &plan.toml())?;
    let version = if family == Family::Ipv4 { "v4" } else { "v6" };
    let directory = hugetlb_mounts()
        .into_iter()
        .map(|mount| mount.join(format!("weir-{}", run.name())))
        .find(|directory| directory.is_dir())
        .context("no flow tables in a hugetlbfs mount")?;
    let size = |part: &str| -> Result<u64> {
        let path = directory.join(format!("flow-0-{part}{version}"));
        Ok(std::fs::metadata(&path).with_context(|| format!("no {}", path.display()))?.len())
    };
    let bytes = size("")? + size("index-")?;
    weir.stop()?;
    let value = bytes as f64 / f64::from(ENTRIES);
    println!("      {value:.1} bytes per flow");
    Ok(vec![Figure {
        case: case.to_owned(),
        implementation: "weir",
        metric: "bytes_per_flow",
        unit: "B",
        values: vec![value],
        setup: format!(
            "records, index of both directions, headers and rounding to pages of a table of {ENTRIES}"
        ),
    }])
}

fn backend_address(number: usize) -> String {
    format!("198.19.{}.{}", number / 250, 1 + number % 250)
}

fn configuration() -> String {
    let mut text = format!(
        "[dataplane]\nworkers = 2\nidle = \"adaptive\"\nflow_table = {{ ipv4 = 65536, ipv6 = 1024 }}\n\
         buffers = 4096\nmax_backends = {}\n\
         [[port]]\nname = \"wan\"\ndevice = \"null:sink\"\naddresses = [\"198.18.0.254/16\"]\n\
         gateways = [\"198.18.0.1\"]\n",
        VIPS * BACKENDS + 1_024
    );
    for vip in 0..VIPS {
        let (high, low) = (100 + vip / 250, 1 + vip % 250);
        text += &format!(
            "[[vip]]\nname = \"v{vip}\"\naddress = \"198.18.{high}.{low}\"\n\
             [[listener]]\nname = \"l{vip}\"\nvip = \"v{vip}\"\nprotocol = \"tcp\"\nport = 80\nmode = \"nat\"\n\
             pool = \"p{vip}\"\n[[pool]]\nname = \"p{vip}\"\n"
        );
        for backend in 0..BACKENDS {
            let address = backend_address(vip * BACKENDS + backend);
            text += &format!("[[pool.backend]]\nname = \"b{backend}\"\naddress = \"{address}:8080\"\n");
        }
    }
    text
}

/// The part of an answer that tells what became of a change.
#[derive(Debug, Deserialize)]
struct Answer {
    tables_written: usize,
    outcome: Outcome,
}

#[derive(Debug, Deserialize)]
struct Outcome {
    state: String,
    #[serde(default)]
    workers: usize,
    #[serde(default)]
    microseconds: u64,
}

/// Sets a weight through the API, as `weir backend weight` does, and waits for the answer.
fn set_weight(socket: &Path, backend: &str, weight: usize) -> Result<Answer> {
    post(socket, &format!("/v1/backends/{backend}"), "application/json", &format!("{{\"weight\":{weight}}}"))
}

fn post(socket: &Path, path: &str, kind: &str, body: &str) -> Result<Answer> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "the change was refused: {body}");
    serde_json::from_str(body).with_context(|| format!("the answer {body}"))
}

/// Applies a file through the API, as `weir apply` does.
fn apply(socket: &Path, text: &str) -> Result<Answer> {
    post(socket, "/v1/apply?name=weir.toml", "text/plain", text)
}

/// From the request to the last worker's acknowledgement: a file that makes every table anew.
pub(crate) fn apply_all(context: &Context) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let full = configuration();
    let mut weir = Instance::start(&run, &context.binaries, &full)?;
    let socket = weir.socket();
    let mut times = Vec::new();
    for round in 0..context.runs {
        interrupt::check()?;
        // another weight of one backend of every pool: 500 slot tables are built, written, read, verified and adopted
        let changed = full.replace("name = \"b0\"\n", &format!("name = \"b0\"\nweight = {}\n", 200 + round));
        let start = Instant::now();
        let answer = apply(&socket, &changed)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.outcome.state == "acked", "run {round} was not acked by all workers: {answer:?}");
        ensure!(
            answer.tables_written >= VIPS,
            "run {round} wrote {} tables, not {VIPS} or more",
            answer.tables_written
        );
    }
    weir.dataplane.must_run()?;
    weir.stop()?;
    let setup = format!(
        "{VIPS} VIPs with {BACKENDS} backends each, {:.1} MB of TOML, one weight of every pool changed: request to answer \
         (acked by both workers)",
        full.len() as f64 / 1e6
    );
    Ok(vec![Figure {
        case: "apply".to_owned(),
        implementation: "weir",
        metric: "ms",
        unit: "ms",
        values: times,
        setup,
    }])
}

/// Resident memory of the control process with the same file, after it was applied and changed.
pub(crate) fn memory(context: &Context) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let full = configuration();
    let weir = Instance::start(&run, &context.binaries, &full)?;
    let socket = weir.socket();
    apply(&socket, &full.replace("name = \"b0\"\n", "name = \"b0\"\nweight = 200\n"))?;
    for number in 0..100 {
        set_weight(&socket, &format!("p{number}/b1"), 300)?;
    }
    let id = weir.ctlplane_id().context("the control process has ended")?;
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let field = |name: &str| -> Result<f64> {
        let line =
            status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
        let kilobytes = line.split_whitespace().nth(1).context("no number")?;
        Ok(kilobytes.parse::<f64>()? * 1_024.0 / 1e6)
    };
    // what it shares with the dataplane is counted where it is mapped only: RssShmem is the snapshot's own memory
    let (all, shared, peak) = (field("VmRSS:")?, field("RssShmem:")?, field("VmHWM:")?);
    weir.stop()?;
    println!("      {all:.0} MB resident, {shared:.0} of them shared memory; {peak:.0} MB at most");
    let setup = format!(
        "{VIPS} VIPs with {BACKENDS} backends each, after one full apply and 100 weights: resident memory of weir-ctlplane \
         ({shared:.0} MB of it shared memory; {peak:.0} MB at most while it applied)"
    );
    let figure = Figure {
        case: "memory".to_owned(),
        implementation: "weir",
        metric: "mbytes",
        unit: "MB",
        values: vec![all],
        setup,
    };
    Ok(vec![figure])
}

fn changes(context: &Context, case: &str) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let mut weir = Instance::start(&run, &context.binaries, &configuration())?;
    let socket = weir.socket();
    let mut random = Random::new(context.seed, "weights");
    let (mut whole, mut acked) = (Vec::new(), Vec::new());
    // the first one loads what later ones find in memory, and is told apart
    let mut first = 0.0;
    for number in 0..=context.changes {
        interrupt::check()?;
        let (vip, backend) = (random.below(VIPS), random.below(BACKENDS));
        // never the weight it has: 100 at first, and no other change sets the same one twice
        let weight = 101 + number;
        let start = Instant::now();
        let answer = set_weight(&socket, &format!("p{vip}/b{backend}"), weight)?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        if answer.outcome.state != "acked" || answer.outcome.workers != 2 {
            bail!("change {number} was not acked by both workers: {answer:?}");
        }
        ensure!(answer.tables_written == 1, "change {number} wrote {} tables, not 1", answer.tables_written);
        if number == 0 {
            first = took;
        } else {
            whole.push(took);
            acked.push(answer.outcome.microseconds as f64 / 1e3);
        }
    }
    weir.dataplane.must_run()?;
    let status = weir.status()?.context("no status")?;
    ensure!(status.serving(), "after the changes: {}", status.summary());
    weir.stop()?;
    let setup = format!(
        "{VIPS} VIPs with {BACKENDS} backends each (65,537 Maglev slots per pool), 2 adaptive workers, one weight per \
         request through the API, request to answer (acked by both workers); the first took {first:.1} ms; {:.2} ms \
         at the median were between publication and the last ack",
        percentile(&acked, 0.5)
    );
    println!("      p50 {:.1} ms, p99 {:.1} ms", percentile(&whole, 0.5), percentile(&whole, 0.99));
    let figure = |metric, share: f64| Figure {
        case: case.to_owned(),
        implementation: "weir",
        metric,
        unit: "ms",
        // one value per fifth of the changes, so that the spread shows
        values: whole.chunks(whole.len().div_ceil(5).max(1)).map(|part| percentile(part, share)).collect(),
        setup: setup.clone(),
    };
    let all = Figure { values: vec![percentile(&whole, 0.99)], ..figure("p99_ms", 0.99) };
    Ok(vec![figure("p50_ms", 0.5), all])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_backend_has_an_address_of_its_own() {
        let addresses: HashSet<std::net::Ipv4Addr> =
            (0..VIPS * BACKENDS).map(|number| backend_address(number).parse().unwrap()).collect();
        assert_eq!(addresses.len(), VIPS * BACKENDS);
    }
}
