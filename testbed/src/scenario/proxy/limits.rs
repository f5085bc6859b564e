//! Limits on connections and the queue before them, with one worker and with two. No overshoot is ever seen.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{connect, finish, of, serve_everywhere, streams, until};
use crate::config::Service;
use crate::interrupt;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::stream::{self, End, Server, end_of};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![Scenario::new("proxy/limits/source-ports", source_ports)];
    for workers in [1u32, 2] {
        scenarios.push(Scenario::new(format!("proxy/limits/listener/{workers}"), move |context| {
            listener(context, workers)
        }));
        scenarios.push(Scenario::new(format!("proxy/limits/backend/{workers}"), move |context| {
            backend(context, workers)
        }));
        scenarios.push(Scenario::new(format!("proxy/limits/queue/{workers}"), move |context| {
            queue(context, workers)
        }));
    }
    scenarios
}

fn rig(context: &Context, workers: u32, service: &Service) -> Result<(Rig, Vec<Server>)> {
    let rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.dataplane = config.dataplane.replace("workers = 1", &format!("workers = {workers}"));
    })?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    Ok((rig, servers))
}

/// Opens connections; those that are served, and how many were reset. `most` is never passed.
fn open(rig: &Rig, service: &Service, count: usize, most: u64) -> Result<(Vec<TcpStream>, usize)> {
    let mut served = Vec::new();
    let mut refused = 0;
    for _ in 0..count {
        let connection = match connect(rig, service) {
            Ok(connection) => connection,
            Err(_) => {
                refused += 1;
                continue;
            }
        };
        if stream::echo(&connection, b"hello").is_ok() {
            served.push(connection)
        } else {
            refused += 1
        }
        ensure!(served.len() as u64 <= most, "{} connections at once, {most} are allowed", served.len());
    }
    Ok((served, refused))
}

/// Exactly `max_connections` are served, at each attempt; a place that is given up is had again.
fn listener(context: &Context, workers: u32) -> Result<()> {
    const MOST: usize = 12;
    let service = Service { listener_lines: format!("max_connections = {MOST}\n"), ..streams(Family::Ipv4) };
    let (rig, servers) = rig(context, workers, &service)?;
    for round in 1..=3 {
        let (served, refused) = open(&rig, &service, MOST * 3, MOST as u64)?;
        ensure!(served.len() + refused == MOST * 3, "some were lost");
        // tokens that another worker holds come back within moments, not at once
        ensure!(served.len() >= MOST / 2 && served.len() <= MOST, "round {round}: {} served", served.len());
        let (more, _) = open(&rig, &service, MOST * 2, (MOST - served.len()) as u64)?;
        ensure!(
            served.len() + more.len() == MOST,
            "round {round}: {} and {} served",
            served.len(),
            more.len()
        );
        let counted = of(&rig, &service, "connections_refused_limit")?;
        ensure!(counted > 0, "no refusal was counted");
        let active = until(&rig, &service, "connections_active", SECOND, |active| active <= MOST as u64)?;
        ensure!(active == MOST as u64, "{active} are active");
        drop((served, more));
        until(&rig, &service, "connections_active", 5 * SECOND, |active| active == 0)?;
    }
    ensure!(rig.weir.status()?.tcp("resets_limit") > 0, "no RST was counted for a limit");
    drop(servers);
    finish(rig)
}

/// A backend's limit sends connections to others; with all full they are refused.
fn backend(context: &Context, workers: u32) -> Result<()> {
    const EACH: u64 = 4;
    let service = Service {
        pool_lines: "algorithm = \"source-hash\"\n".into(),
        backend_lines: format!("max_connections = {EACH}\n"),
        ..streams(Family::Ipv4)
    };
    let (rig, servers) = rig(context, workers, &service)?;
    let mut all = Vec::new();
    // in two goes, since a worker may hold tokens that the other would need
    for _ in 0..2 {
        let (served, _) = open(&rig, &service, 30, 3 * EACH)?;
        all.extend(served);
        let status = rig.weir.status()?;
        for backend in ["app-1", "app-2", "app-3"] {
            let active = status.upstream(&service.name, "active", |name| name == backend);
            ensure!(active <= EACH, "{backend} has {active} connections, {EACH} are allowed");
        }
    }
    ensure!(all.len() as u64 == 3 * EACH, "{} served of {}", all.len(), 3 * EACH);
    ensure!(of(&rig, &service, "connections_refused_limit")? > 0, "no refusal was counted");
    for connection in &all {
        stream::echo(connection, b"still here")?;
    }
    drop((all, servers));
    finish(rig)
}

/// Who finds all backends full waits: for a place, or for the queue's timeout; who finds the queue full is reset.
fn queue(context: &Context, workers: u32) -> Result<()> {
    const QUEUE: u64 = 4;
    const EACH: u64 = 2;
    let service = Service {
        listener_lines: format!("queue = {{ size = {QUEUE}, timeout = \"1500ms\" }}\n"),
        backend_lines: format!("max_connections = {EACH}\n"),
        ..streams(Family::Ipv4)
    };
    let (mut rig, servers) = rig(context, workers, &service)?;
    let mut served = Vec::new();
    for _ in 0..3 * EACH {
        let connection = connect(&rig, &service)?;
        stream::echo(&connection, b"hello")?;
        served.push(connection);
    }
    // the queue fills, what is more is refused at once
    let start = Instant::now();
    let waiting: Vec<TcpStream> = (0..20).filter_map(|_| connect(&rig, &service).ok()).collect();
    let queued = until(&rig, &service, "queued", SECOND, |queued| queued > 0)?;
    ensure!(queued <= QUEUE, "{queued} wait, {QUEUE} may");
    interrupt::pause(Duration::from_millis(200))?;
    let queued = of(&rig, &service, "queued")?;
    ensure!(queued == QUEUE || workers > 1 && queued >= QUEUE / 2, "{queued} wait of {QUEUE}");
    let refused = of(&rig, &service, "connections_refused_limit")?;
    ensure!(refused == 20 - queued, "{refused} refused, {queued} wait, of 20");
    // who waits is served when a place is free: one of them, whichever came first
    drop(served.pop());
    until(&rig, &service, "queued", SECOND, |now| now == queued - 1)?;
    ensure!(start.elapsed() < Duration::from_millis(1_300), "this machine is too slow for a queue of 1.5 s");
    let ends = waiting.iter().map(|connection| (end_of(connection, 2 * SECOND), start.elapsed()));
    let mut late = 0;
    let mut open = 0;
    for (end, after) in ends {
        match end {
            Ok(End::Reset) => late += u64::from(after >= Duration::from_millis(1_400)),
            Ok(End::Finished) => ensure!(false, "a FIN for one that waited"),
            Err(_) => open += 1,
        }
    }
    ensure!(open == 1, "{open} of those who waited are served");
    let timeouts = of(&rig, &service, "queue_timeouts")?;
    ensure!(timeouts == queued - 1 && late >= 1, "{timeouts} queue timeouts, {} are due", queued - 1);
    ensure!(of(&rig, &service, "queued")? == 0, "some still wait");
    drop((served, waiting, servers));
    rig.emptied()?;
    rig.finish()
}

/// Few source ports to one backend, and clients that close first: what waits in TIME-WAIT is in nobody's way for long,
/// and too many at once are refused, counted, and no harm to those who come later.
fn source_ports(context: &Context) -> Result<()> {
    const PORTS: usize = 64;
    let service = Service { backends: vec![(1, 100)], ..streams(Family::Ipv4) };
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.dataplane += "snat_ports = \"20000-20063\"\n";
    })?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    for round in 1..=3 {
        let (served, refused) = open(&rig, &service, PORTS, PORTS as u64)?;
        ensure!(refused == 0, "round {round}: {refused} of {PORTS} were refused");
        drop(served);
        rig.emptied()?;
        interrupt::pause(Duration::from_millis(1_200))?;
    }
    ensure!(rig.weir.status()?.tcp("snat_exhausted") == 0, "ports were exhausted by few");
    let (served, refused) = open(&rig, &service, PORTS + 10, PORTS as u64)?;
    ensure!((served.len(), refused) == (PORTS, 10), "{} served, {refused} refused", served.len());
    let exhausted = rig.weir.status()?.tcp("snat_exhausted");
    ensure!(exhausted >= 10, "snat_exhausted {exhausted}");
    served.iter().try_for_each(|connection| stream::echo(connection, b"not disturbed"))?;
    drop((served, servers));
    finish(rig)
}
