//! Every mode carries real connections of every kind, over every kind of port.

use std::sync::atomic::Ordering;

use anyhow::{Result, bail};

use super::rig::{Rig, every_kind};
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::status::Status;
use crate::topology::lab::{BACKENDS, Family, Io, backend_name};
use crate::traffic::{datagram, http};

const REQUESTS: u64 = 60;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for mode in Mode::ALL {
        for protocol in Protocol::BOTH {
            for family in Family::BOTH {
                let name = format!("carry/{}/{}/{}", mode.name(), protocol.name(), family.name());
                scenarios.push(Scenario::new(name, move |context| {
                    one(context, Io::AfXdp, vec![Service::new(mode, protocol, family)])
                }));
            }
        }
    }
    for mode in [Mode::Ipip, Mode::Gue] {
        scenarios.push(Scenario::new(format!("carry/{}/mixed-families", mode.name()), move |context| {
            let mixed =
                |family, outer| Service { outer: Some(outer), ..Service::new(mode, Protocol::Tcp, family) };
            one(
                context,
                Io::AfXdp,
                vec![mixed(Family::Ipv4, Family::Ipv6), mixed(Family::Ipv6, Family::Ipv4)],
            )
        }));
    }
    scenarios.push(Scenario::new("carry/gue/variant-0", |context| {
        let services = every_kind(Mode::Gue).into_iter();
        let variant_0 = |service| Service { listener_lines: "gue_variant = 0\n".into(), ..service };
        one(context, Io::AfXdp, services.map(variant_0).collect())
    }));
    scenarios.push(Scenario::new("carry/fullnat/own-address", |context| {
        let services = every_kind(Mode::Fullnat);
        let rig = Rig::start_with(context, Io::AfXdp, services.clone(), |config| {
            config.lan = "# no snat: Weir connects from its own address\n".into();
        })?;
        services.iter().try_for_each(|service| carry(&rig, service))?;
        rig.finish()
    }));
    for io in [Io::AfPacket, Io::Tap] {
        scenarios.push(Scenario::new(format!("carry/nat/over-{}", io.name()), move |context| {
            one(context, io, every_kind(Mode::Nat))
        }));
    }
    scenarios
}

fn one(context: &Context, io: Io, services: Vec<Service>) -> Result<()> {
    let mut rig = Rig::start(context, io, services.clone())?;
    for service in &services {
        carry(&rig, service)?;
    }
    let status = rig.settle()?;
    for service in &services {
        books(&status, service)?;
    }
    check_tunnels(&rig, &services)?;
    rig.finish()
}

/// New connections reach every backend and none fails.
pub(super) fn carry(rig: &Rig, service: &Service) -> Result<()> {
    let tally = match service.protocol {
        Protocol::Tcp => http::load(&rig.lab.client, service.target(), REQUESTS, 4)?,
        Protocol::Udp => datagram::load(&rig.lab.client, service.target(), REQUESTS)?,
    };
    if let Err(error) = tally.must_be_clean() {
        let drops = rig.weir.status().map(|status| status.drops_in_words()).unwrap_or_default();
        bail!("{}: {error:#}; drops: {drops}", service.name);
    }
    for number in 1..=BACKENDS {
        if tally.of(&backend_name(number)) == 0 {
            bail!(
                "{}: {} got none of {REQUESTS} requests: {:?}",
                service.name,
                backend_name(number),
                tally.answers
            );
        }
    }
    Ok(())
}

/// The counters tell what happened: one flow per request, and answers only where the mode sees them.
fn books(status: &Status, service: &Service) -> Result<()> {
    let flows = status.listener(&service.name, "flows_total");
    if flows < REQUESTS {
        bail!("{}: {REQUESTS} requests, but {flows} flows were counted", service.name);
    }
    let answers = status.listener(&service.name, "packets_out");
    if (answers > 0) != service.mode.rewrites() {
        bail!("{}: {answers} packets to clients were counted", service.name);
    }
    let to_backends: u64 = (1..=BACKENDS)
        .filter_map(|number| status.backend(&service.name, &backend_name(number)))
        .filter_map(|backend| backend.counters.get("packets_in"))
        .sum();
    let from_clients = status.listener(&service.name, "packets_in");
    if to_backends != from_clients {
        bail!("{}: {from_clients} packets from clients, {to_backends} to backends", service.name);
    }
    Ok(())
}

fn check_tunnels(rig: &Rig, services: &[Service]) -> Result<()> {
    for (position, decapsulator) in rig.decapsulators.iter().enumerate() {
        let seen = &decapsulator.seen;
        let (ipip, gue) = (seen.ipip.load(Ordering::Relaxed), seen.gue.load(Ordering::Relaxed));
        let bad = seen.bad.load(Ordering::Relaxed);
        if bad > 0 {
            bail!("backend {} got {bad} packets that it could not unwrap", position + 1);
        }
        for (mode, count) in [(Mode::Ipip, ipip), (Mode::Gue, gue)] {
            if services.iter().any(|service| service.mode == mode) != (count > 0) {
                bail!("backend {} unwrapped {count} packets of {}", position + 1, mode.name());
            }
        }
        let ports = seen.source_ports.lock().map(|ports| ports.len()).unwrap_or(0);
        // a flow keeps its outer port, and different flows spread
        if gue > 0 && ports < 5 {
            bail!(
                "backend {}: all flows came from {ports} outer source ports, which RSS can't spread",
                position + 1
            );
        }
    }
    Ok(())
}
