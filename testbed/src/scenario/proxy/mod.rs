//! Proxied TCP: clients' connections end in Weir, its own lead to the backends. After each scenario no connection is
//! left, packets are conserved and no buffer is owned.

mod bulk;
mod crash;
mod drain;
mod flood;
mod hostile;
mod http;
mod idle;
mod killed;
mod limits;
pub(super) mod many;
mod protocol;
mod tell;

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::Scenario;
use super::rig::Rig;
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::topology::lab::{Family, backend};
use crate::traffic::stream::{self, Server};

/// Port of listeners and backends whose servers a scenario writes itself.
const STREAM_PORT: u16 = 9_000;

pub(super) fn scenarios() -> Vec<Scenario> {
    let groups = [
        http::scenarios(),
        bulk::scenarios(),
        idle::scenarios(),
        hostile::scenarios(),
        killed::scenarios(),
        drain::scenarios(),
        limits::scenarios(),
        protocol::scenarios(),
        many::scenarios(),
        flood::scenarios(),
        crash::scenarios(),
        tell::scenarios(),
    ];
    groups.into_iter().flatten().collect()
}

/// A proxy listener for HTTP.
fn service(family: Family) -> Service {
    Service::new(Mode::Proxy, Protocol::Tcp, family)
}

/// A proxy listener for streams.
fn streams(family: Family) -> Service {
    Service { port: STREAM_PORT.to_string(), backend_port: Some(STREAM_PORT), ..service(family) }
}

/// The three ways through: IPv4, IPv6, and IPv6 clients with IPv4 backends.
fn ways(of: fn(Family) -> Service) -> [Service; 3] {
    let mixed = Service { outer: Some(Family::Ipv4), ..of(Family::Ipv6) };
    [of(Family::Ipv4), of(Family::Ipv6), mixed.on_vip(2)]
}

/// A server of streams at the nth backend.
fn serve(
    rig: &Rig,
    family: Family,
    number: usize,
    work: impl Fn(TcpStream) + Send + Sync + 'static,
) -> Result<Server> {
    let place = SocketAddr::new(backend(family, number), STREAM_PORT);
    Server::start(&rig.lab.backends[number - 1], place, work)
}

/// The same at every backend.
fn serve_everywhere(rig: &Rig, family: Family, work: fn(TcpStream)) -> Result<Vec<Server>> {
    (1..=rig.lab.backends.len()).map(|number| serve(rig, family, number, work)).collect()
}

/// A connection from the client.
fn connect(rig: &Rig, service: &Service) -> Result<TcpStream> {
    stream::connect(&rig.lab.client, service.target())
}

/// A counter or gauge of a listener.
fn of(rig: &Rig, service: &Service, counter: &str) -> Result<u64> {
    Ok(rig.weir.status()?.proxy(&service.name, counter))
}

/// Waits until a counter or gauge of a listener is what it should be.
fn until(
    rig: &Rig,
    service: &Service,
    counter: &str,
    patience: Duration,
    right: impl Fn(u64) -> bool,
) -> Result<u64> {
    let mut last = 0;
    let outcome = wait_for(counter, patience, || {
        last = of(rig, service, counter)?;
        Ok(right(last).then_some(last))
    });
    outcome.with_context(|| format!("{}: {counter} is {last}", service.name))
}

/// Waits until a body is well under way: more is sent than all buffers on the way hold.
fn flows(sent: &AtomicU64) -> Result<()> {
    wait_for("a body to be under way", Duration::from_secs(10), || {
        Ok((sent.load(Ordering::Relaxed) >= 16 << 20).then_some(()))
    })
}

/// The end of every scenario here.
fn finish(mut rig: Rig) -> Result<()> {
    rig.emptied()?;
    rig.finish()
}
