//! Much data: iperf3, and bodies compared byte by byte in both directions at once.

use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{connect, finish, serve, service, streams, ways};
use crate::command;
use crate::config::Service;
use crate::interrupt::wait_for;
use crate::scenario::rig::Rig;
use crate::scenario::size::far_client;
use crate::scenario::{Context, Scenario};
use crate::supervisor::{Process, Program};
use crate::topology::lab::{Family, Io, backend};
use crate::traffic::stream;

const PORT: u16 = 5_201;
/// Each way of [`bodies`].
const BODY: u64 = 24 << 20;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("proxy/bulk/iperf3", iperf3),
        Scenario::new("proxy/bulk/bodies", bodies),
        Scenario::new("proxy/bulk/lossy", lossy),
        Scenario::new("proxy/path-mtu", path_mtu),
    ]
}

/// Both directions, 1 and 4 streams.
fn iperf3(context: &Context) -> Result<()> {
    // iperf3 opens several connections that must meet the same server
    let of = |family| Service {
        port: PORT.to_string(),
        backend_port: Some(PORT),
        backends: vec![(1, 100)],
        ..service(family)
    };
    let services = ways(of);
    let mut rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    let program = Program::new("iperf3", "iperf3", &["-s"]).within(&rig.lab.backends[0]);
    let server = Process::start(program, &rig.run.logs())?;
    let place = SocketAddr::new(backend(Family::Ipv4, 1), PORT);
    wait_for("iperf3 to listen", Duration::from_secs(5), || {
        rig.lab.backends[0].run(|| std::net::TcpStream::connect(place).is_ok().then_some(()))
    })?;
    for service in &services {
        for streams in ["1", "4"] {
            for direction in [&[][..], &["-R"][..]] {
                let mut command = rig.lab.client.command("iperf3");
                let address = service.address().to_string();
                command.args(["-c", &address, "-n", "16M", "-P", streams, "--connect-timeout", "5000"]);
                command::run(command.args(direction))
                    .with_context(|| format!("{}, {streams} streams {direction:?}", service.name))?;
            }
        }
    }
    let status = rig.emptied()?;
    for service in &services {
        for counter in ["bytes_in", "bytes_out"] {
            let bytes = status.proxy(&service.name, counter);
            // of 40 MiB; what iperf3 has not read at its end is lost
            ensure!(bytes >= 16 << 20, "{}: {counter} {bytes}", service.name);
        }
    }
    drop(server);
    rig.finish()
}

/// A body each way at the same time, each byte where it belongs.
fn bodies(context: &Context) -> Result<()> {
    let services = ways(streams).map(|service| Service { backends: vec![(1, 100)], ..service });
    let rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    carry(&rig, &services, BODY)?;
    finish(rig)
}

/// The same where the client's host loses each hundredth segment, on either way.
fn lossy(context: &Context) -> Result<()> {
    const CHAIN: &str = "meta l4proto tcp numgen random mod 100 < 1 drop";
    let services = [Service { backends: vec![(1, 100)], ..streams(Family::Ipv4) }];
    let mut rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    let rules = format!(
        "table inet loss {{\n chain in {{ type filter hook input priority 0; {CHAIN}; }}\n\
         \x20chain out {{ type filter hook output priority 0; {CHAIN}; }}\n}}\n"
    );
    command::run_with_input(rig.lab.client.command("nft").args(["-f", "-"]), Some(&rules))?;
    carry(&rig, &services, BODY / 4)?;
    let status = rig.emptied()?;
    let (again, fast) = (status.tcp("retransmitted"), status.tcp("fast_retransmits"));
    let timeouts = status.tcp("rto_timeouts");
    println!("      {again} segments were sent again, {fast} repairs without a timeout, {timeouts} timeouts");
    ensure!(again > 10 && fast > 5, "{again} segments were sent again, {fast} repairs without a timeout");
    // a repair by timeout is the exception
    ensure!(timeouts <= fast, "{timeouts} timeouts, {fast} repairs without one");
    rig.finish()
}

/// Sends a body each way through each service.
fn carry(rig: &Rig, services: &[Service], body: u64) -> Result<()> {
    let work = move |connection: std::net::TcpStream| {
        let is_whole = std::thread::scope(|scope| {
            let sender = scope.spawn(|| stream::send(&connection, body, &AtomicU64::new(0)).is_ok());
            let received = stream::receive(&connection, u64::MAX).is_ok_and(|bytes| bytes == body);
            sender.join().is_ok_and(|sent| sent) && received
        });
        // the FIN says that all came; a reset says that it did not
        if is_whole {
            let _ = connection.shutdown(Shutdown::Write);
        } else {
            let _ = stream::reset(connection);
        }
    };
    let servers =
        Family::BOTH.into_iter().map(|family| serve(rig, family, 1, work)).collect::<Result<Vec<_>>>()?;
    for service in services {
        let connection = connect(rig, service)?;
        let (sent, received) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let outcome = stream::send(&connection, body, &AtomicU64::new(0));
                outcome.and_then(|()| connection.shutdown(Shutdown::Write))
            });
            let received = stream::receive(&connection, u64::MAX);
            (sender.join(), received)
        });
        sent.map_err(|_| anyhow!("the sender panicked"))?.context("send")?;
        let received = received.with_context(|| service.name.clone())?;
        ensure!(received == body, "{}: {received} of {body} bytes came", service.name);
    }
    drop(servers);
    Ok(())
}

/// Clients behind a narrow link, whose router's errors name Weir as the sender.
fn path_mtu(context: &Context) -> Result<()> {
    let services = ways(service);
    let rig = crate::scenario::size::behind_a_router(context, &services)?;
    let far = far_client(&rig.lab, rig.run.name(), 1_300)?;
    for service in &services {
        for _ in 0..3 {
            crate::scenario::size::fetch_from_far(&rig, &far, service)?;
        }
    }
    drop(far);
    finish(rig)
}
