//! Requests over the proxy: curl, wrk, keep-alive and a connection per request, every algorithm.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::{finish, service, ways};
use crate::command;
use crate::config::Service;
use crate::scenario::rig::{Rig, who};
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{BACKENDS, Family, Io, backend_name};
use crate::traffic::http;
use crate::traffic::servers::FILE;

const WEIGHTS: [(usize, u32); BACKENDS] = [(1, 30), (2, 20), (3, 10)];

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::new("proxy/http", requests),
        Scenario::new("proxy/workers", workers),
        Scenario::new("proxy/without-hugepages", without_hugepages),
    ];
    for io in [Io::AfPacket, Io::Tap] {
        scenarios.push(Scenario::new(format!("proxy/over-{}", io.name()), move |context| over(context, io)));
    }
    for algorithm in ["maglev", "source-hash", "round-robin", "least-conn", "random-two"] {
        scenarios.push(Scenario::new(format!("proxy/balance/{algorithm}"), move |context| {
            balance(context, algorithm)
        }));
    }
    scenarios
}

/// curl to the byte, wrk by the thousand, both kinds of connections, every mix of families.
fn requests(context: &Context) -> Result<()> {
    let services = ways(service);
    let mut rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    for service in &services {
        curl(&rig, service)?;
        for token in ["keep-alive", "close"] {
            wrk(&rig, service, token)?;
        }
    }
    let status = rig.emptied()?;
    for service in &services {
        let name = &service.name;
        let accepted = status.proxy(name, "connections_accepted");
        let connects = status.upstream(name, "connects", |_| true);
        ensure!(accepted > 100 && connects == accepted, "{name}: {accepted} accepted, {connects} connects");
        for (listener, backend) in [("bytes_in", "bytes_in"), ("bytes_out", "bytes_out")] {
            let (of_listener, of_backends) =
                (status.proxy(name, listener), status.upstream(name, backend, |_| true));
            ensure!(of_listener == of_backends, "{name}: {listener} {of_listener}, backends' {of_backends}");
        }
        for counter in ["connections_refused_limit", "no_backend", "idle_timeouts", "half_close_timeouts"] {
            ensure!(status.proxy(name, counter) == 0, "{name}: {counter} {}", status.proxy(name, counter));
        }
    }
    rig.finish()
}

/// Two workers behind one queue: a connection and the one that it leads to belong to the same worker.
fn workers(context: &Context) -> Result<()> {
    let services = ways(service);
    let mut rig = Rig::start_with(context, Io::AfXdp, services.to_vec(), |config| {
        config.dataplane = config.dataplane.replace("workers = 1", "workers = 2");
    })?;
    for service in &services {
        http::load(&rig.lab.client, service.target(), 200, 4)?
            .must_be_clean()
            .context(service.name.clone())?;
        curl(&rig, service)?;
    }
    // a segment that met the wrong worker would have been answered with a RST; later ones may be: wrk ends with requests on their way
    let status = rig.emptied()?;
    ensure!(status.tcp("resets_no_listener") == 0, "{} RSTs to strangers", status.tcp("resets_no_listener"));
    for service in &services {
        wrk(&rig, service, "keep-alive")?;
    }
    let status = rig.emptied()?;
    ensure!(status.workers.len() == 2, "{} workers run", status.workers.len());
    for worker in &status.workers {
        let segments = worker.tcp.get("segments_in").copied().unwrap_or(0);
        ensure!(segments > 1_000, "worker {} saw {segments} segments", worker.index);
    }
    rig.finish()
}

fn over(context: &Context, io: Io) -> Result<()> {
    let services = ways(service);
    let rig = Rig::start(context, io, services.to_vec())?;
    services.iter().try_for_each(|service| curl(&rig, service))?;
    finish(rig)
}

fn without_hugepages(context: &Context) -> Result<()> {
    let services = ways(service);
    let options =
        crate::weir::Options { dataplane_arguments: vec!["--no-huge".into()], ..Default::default() };
    let smaller = |config: &mut crate::config::Config| {
        config.dataplane = "workers = 1\nidle = \"adaptive\"\nbuffers = 8192\ntcp_connections = 4096\n\
                            tcp_memory = \"8MiB\"\nflow_table = { ipv4 = 4096, ipv6 = 4096 }\n"
            .into();
    };
    let rig = Rig::start_as(context, Io::AfXdp, services.to_vec(), smaller, &options)?;
    services.iter().try_for_each(|service| curl(&rig, service))?;
    finish(rig)
}

/// A megabyte to the byte.
fn curl(rig: &Rig, service: &Service) -> Result<()> {
    let copy = rig.run.path("copy").display().to_string();
    let url = format!("http://{}{FILE}", service.target());
    let mut command = rig.lab.client.command("curl");
    command.args(["--silent", "--show-error", "--fail", "--globoff", "--max-time", "10", "-o", &copy, &url]);
    command::run(&mut command).with_context(|| service.name.clone())?;
    let right = std::fs::read(&copy)? == std::fs::read(rig.run.path("servers/file"))?;
    ensure!(right, "{}: the file came changed", service.name);
    Ok(())
}

fn wrk(rig: &Rig, service: &Service, token: &str) -> Result<()> {
    let mut command = rig.lab.client.command("wrk");
    let header = format!("Connection: {token}");
    let url = format!("http://{}/", service.target());
    command.args(["-t", "1", "-c", "32", "-d", "1s", "-H", &header, &url]);
    let said = command::run(&mut command)?;
    let bad = ["Socket errors", "Non-2xx"].iter().any(|words| said.contains(words));
    let requests: u64 = said
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .with_context(|| format!("wrk said {said}"))?;
    ensure!(!bad && requests > 200, "{} with {token}: {said}", service.name);
    Ok(())
}

/// New connections spread by weight, in the way of each algorithm.
fn balance(context: &Context, algorithm: &str) -> Result<()> {
    let service = Service {
        pool_lines: format!("algorithm = \"{algorithm}\"\n"),
        backends: WEIGHTS.to_vec(),
        ..service(Family::Ipv4)
    };
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    match algorithm {
        "maglev" => {
            let tally = http::load(&rig.lab.client, service.target(), 600, 4)?;
            tally.must_be_clean()?;
            near(&tally.answers, 600, 50)?;
        }
        "round-robin" => {
            let tally = http::load(&rig.lab.client, service.target(), 60, 1)?;
            tally.must_be_clean()?;
            near(&tally.answers, 60, 0)?;
        }
        "source-hash" => source_hash(&rig, &service)?,
        // those that count connections need some to count
        _ => {
            let mut answers = BTreeMap::new();
            let mut kept = Vec::new();
            for _ in 0..120 {
                let mut connection = rig.connect(&service)?;
                *answers.entry(who(&mut connection)?).or_default() += 1;
                kept.push(connection);
            }
            near(&answers, 120, if algorithm == "least-conn" { 1 } else { 12 })?;
        }
    }
    finish(rig)
}

/// Weights 3, 2, 1, with a tolerance in connections.
fn near(answers: &BTreeMap<String, u64>, all: u64, tolerance: u64) -> Result<()> {
    for (number, weight) in WEIGHTS {
        let expected = all * u64::from(weight) / 60;
        let got = answers.get(&backend_name(number)).copied().unwrap_or(0);
        ensure!(got.abs_diff(expected) <= tolerance, "weights 3, 2, 1 got {answers:?} of {all}");
    }
    Ok(())
}

/// A client stays on its backend; other clients are on others.
fn source_hash(rig: &Rig, service: &Service) -> Result<()> {
    let mut backends = std::collections::BTreeSet::new();
    for last in 2..14 {
        let address = format!("198.18.0.{last}");
        rig.lab.client.ip(&format!("addr add {address}/24 dev eth0\n"))?;
        let mut answers = Vec::new();
        for _ in 0..3 {
            let mut command = rig.lab.client.command("curl");
            let url = format!("http://{}/", service.target());
            command.args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "5",
                "--interface",
                &address,
                &url,
            ]);
            answers.push(command::run(&mut command)?.trim().to_owned());
        }
        ensure!(answers.iter().all(|answer| *answer == answers[0]), "{address} got {answers:?}");
        backends.extend(answers);
    }
    ensure!(backends.len() > 1, "12 clients all went to {backends:?}");
    Ok(())
}
