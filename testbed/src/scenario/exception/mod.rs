//! The exception path: what is addressed to Weir itself reaches sockets of the kernel in Weir's namespace, and their words the wire.

mod probes;
mod talk;
mod trouble;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Scenario;
use super::rig::Rig;
use crate::interrupt::wait_for;
use crate::status::Exception;
use crate::topology::lab::{Family, LAN, WAN};

/// Where the kernel's servers listen.
const PORT: u16 = 2_222;
/// How long the interfaces may take to be there, with addresses and routes.
const READY: Duration = Duration::from_secs(10);

pub(super) fn scenarios() -> Vec<Scenario> {
    [talk::scenarios(), trouble::scenarios(), probes::scenarios()].into_iter().flatten().collect()
}

/// Weir's own address on the client's side.
fn own(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => WAN.0.into(),
        Family::Ipv6 => WAN.1.into(),
    }
}

/// Weir's own address on the backends' side.
fn own_lan(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => LAN.0.into(),
        Family::Ipv6 => LAN.1.into(),
    }
}

/// Any address.
fn any(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// A server of the kernel's.
fn server(family: Family) -> SocketAddr {
    SocketAddr::new(own(family), PORT)
}

/// What is told of a port's exception path.
fn exception(rig: &Rig, port: &str) -> Result<Exception> {
    let status = rig.weir.status()?;
    let port = status.ports.iter().find(|found| found.name == port);
    port.and_then(|port| port.exception.clone()).context("the port has no exception path")
}

/// Waits until both interfaces have what they need.
fn ready(rig: &mut Rig) -> Result<()> {
    let mut last = String::new();
    let outcome = wait_for("the exception path to be ready", READY, || {
        rig.weir.must_run()?;
        for port in ["wan", "lan"] {
            let exception = exception(rig, port)?;
            if !exception.attached || exception.kernel.as_deref() != Some("ready") {
                last = format!("{port}: {exception:?}");
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    outcome.with_context(|| last)
}

/// Next to nothing was lost on the way to the kernel since `before` (what came before the interface was up was): a burst may exceed the
/// rate or the ring, which TCP makes up for.
fn lossless(before: &Exception, after: &Exception) -> Result<()> {
    let lost: u64 = ["rate_limited", "ring_full", "not_written"]
        .into_iter()
        .map(|name| after.count(name) - before.count(name))
        .sum();
    ensure!(lost * 20 <= after.count("punted"), "{:?}, before: {:?}", after.counters, before.counters);
    Ok(())
}
