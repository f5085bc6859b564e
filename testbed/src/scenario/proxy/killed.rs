//! Backends that die, refuse or don't answer.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{STREAM_PORT, connect, finish, flows, serve, service, streams};
use crate::config::Service;
use crate::interrupt::wait_for;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::supervisor::{Process, Program};
use crate::topology::lab::{Family, Io, backend};
use crate::traffic::servers::FILE;
use crate::traffic::stream::{self, End, end_of};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("proxy/backend/killed", killed),
        Scenario::new("proxy/backend/cut-off", cut_off),
        Scenario::new("proxy/backend/refuses", refuses),
        Scenario::new("proxy/backend/silent", silent),
        Scenario::new("proxy/backend/all-down", all_down),
    ]
}

/// kill -9 in mid-transfer, down and up: the client sees a RST within a second, not a hang.
fn killed(context: &Context) -> Result<()> {
    let down = Service { backends: vec![(1, 100)], ..service(Family::Ipv4) };
    let up = Service { backends: vec![(2, 100)], ..streams(Family::Ipv4) }.on_vip(2);
    let mut rig = Rig::start(context, Io::AfXdp, vec![down.clone(), up.clone()])?;
    let client = connect(&rig, &down)?;
    // requests that wait unread when it dies: its kernel answers with a RST, not with a FIN
    let request = format!("GET {FILE} HTTP/1.1\r\nHost: weir.test\r\n\r\n").repeat(200);
    (&client).write_all(request.as_bytes())?;
    (&client).read_exact(&mut vec![0u8; 256 << 10])?;
    rig.kill_nginx(0)?;
    let start = Instant::now();
    ensure!(
        end_of(&client, SECOND).context("a download")? == End::Reset,
        "a FIN in the middle of a download"
    );
    println!("      a download was reset after {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let place = SocketAddr::new(backend(Family::Ipv4, 2), STREAM_PORT).to_string();
    let program = Program::new("sink", std::env::current_exe()?, &["peer", "sink", &place]);
    let mut sink = Process::start(program.within(&rig.lab.backends[1]), &rig.run.logs())?;
    let client = wait_for("the sink to listen", Duration::from_secs(5), || {
        sink.must_run()?;
        let Ok(client) = connect(&rig, &up) else { return Ok(None) };
        Ok(stream::send(&client, 1 << 20, &AtomicU64::new(0)).is_ok().then_some(client))
    })?;
    let sent = AtomicU64::new(0);
    let ended = std::thread::scope(|scope| {
        let sender = scope.spawn(|| (stream::send(&client, 1 << 32, &sent), Instant::now()));
        flows(&sent)?;
        let start = Instant::now();
        sink.kill()?;
        let Ok((outcome, end)) = sender.join() else { bail!("the sender panicked") };
        ensure!(outcome.is_err(), "4 GiB went to a dead backend");
        Ok(end.saturating_duration_since(start))
    })?;
    ensure!(ended < SECOND, "an upload was reset only after {ended:?}");
    drop(client);
    let status = rig.emptied()?;
    ensure!(status.upstream(&down.name, "server_resets", |_| true) == 1, "the RST was not counted");
    rig.finish()
}

/// A backend's link goes down in mid-transfer: no FIN, no RST, and the user timeout ends it.
fn cut_off(context: &Context) -> Result<()> {
    let service = Service { backends: vec![(1, 100)], ..streams(Family::Ipv4) };
    let rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.timeouts = "tcp_user = \"1s\"\n".into();
    })?;
    let server = serve(&rig, Family::Ipv4, 1, |connection| drop(stream::receive(&connection, u64::MAX)))?;
    let client = connect(&rig, &service)?;
    let sent = AtomicU64::new(0);
    let outcome = std::thread::scope(|scope| {
        let sender = scope.spawn(|| stream::send(&client, 1 << 32, &sent));
        flows(&sent)?;
        rig.lab.backends[0].ip("link set eth0 down\n")?;
        let start = Instant::now();
        let Ok(outcome) = sender.join() else { bail!("the sender panicked") };
        ensure!(start.elapsed() < 4 * SECOND, "the client waited for {:?}", start.elapsed());
        Ok(outcome)
    })?;
    let error = outcome.err().context("4 GiB went to a backend that is cut off")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "the client saw {error}");
    drop((client, server));
    finish(rig)
}

/// One of three refuses: nobody notices, and the counters tell.
fn refuses(context: &Context) -> Result<()> {
    const CONNECTIONS: u64 = 30;
    let service = Service { pool_lines: "algorithm = \"round-robin\"\n".into(), ..streams(Family::Ipv6) };
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let servers = [2, 3].map(|number| serve(&rig, Family::Ipv6, number, stream::serve_echo));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    for number in 0..CONNECTIONS {
        let connection = connect(&rig, &service)?;
        stream::echo(&connection, b"hello").with_context(|| format!("connection {number}"))?;
    }
    let status = rig.emptied()?;
    let upstream = |counter: &str| status.upstream(&service.name, counter, |_| true);
    let failures = status.upstream(&service.name, "connect_failures", |name| name == "app-1");
    ensure!(failures >= 8, "only {failures} connects were refused");
    ensure!(upstream("connect_failures") == failures, "others refused too");
    ensure!(upstream("retries") == failures, "{failures} failures, {} retries", upstream("retries"));
    ensure!(upstream("connects") == CONNECTIONS, "{} connects", upstream("connects"));
    drop(servers);
    rig.finish()
}

/// One of three does not answer: the connect timeout passes, then another is asked.
fn silent(context: &Context) -> Result<()> {
    let service = Service {
        pool_lines: "algorithm = \"round-robin\"\n".into(),
        listener_lines: "timeouts = { connect = \"300ms\" }\n".into(),
        ..streams(Family::Ipv4)
    };
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let servers = [2, 3].map(|number| serve(&rig, Family::Ipv4, number, stream::serve_echo));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    rig.lab.backends[0].ip("link set eth0 down\n")?;
    let start = Instant::now();
    for number in 0..6 {
        let connection = connect(&rig, &service)?;
        stream::echo(&connection, b"hello").with_context(|| format!("connection {number}"))?;
    }
    let took = start.elapsed();
    ensure!(took < 3 * SECOND, "six connections took {took:?}");
    let status = rig.emptied()?;
    let timeouts = status.upstream(&service.name, "connect_timeouts", |name| name == "app-1");
    ensure!(timeouts >= 1, "no connect timeout was counted");
    let retries = status.upstream(&service.name, "retries", |_| true);
    ensure!(retries >= timeouts, "{timeouts} timeouts, {retries} retries");
    drop(servers);
    rig.finish()
}

/// Nobody is there: the client is reset, after as many attempts as are allowed.
fn all_down(context: &Context) -> Result<()> {
    let service = Service { listener_lines: "retries = 5\n".into(), ..streams(Family::Ipv4) };
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    for _ in 0..10 {
        // the RST may come before the client has looked at its connection
        let Ok(connection) = connect(&rig, &service) else { continue };
        ensure!(end_of(&connection, SECOND)? == End::Reset, "no RST");
    }
    let status = rig.emptied()?;
    let refused = status.proxy(&service.name, "no_backend");
    let failures = status.upstream(&service.name, "connect_failures", |_| true);
    ensure!((refused, failures) == (10, 30), "no_backend {refused}, connect_failures {failures}");
    ensure!(status.tcp("resets_aborted") >= 10, "resets_aborted {}", status.tcp("resets_aborted"));
    rig.finish()
}
