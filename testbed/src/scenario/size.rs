//! Packets too long for the way: fragments, MSS, path MTU.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::rig::{Rig, every_kind};
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::topology::lab::{Family, Io, Lab, WAN};
use crate::topology::namespace::{Namespace, link};
use crate::traffic::datagram;
use crate::traffic::http::Connection;
use crate::traffic::probe::{Probe, view};
use crate::traffic::servers::{FILE, FILE_BYTES};

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for mode in Mode::ALL {
        scenarios.push(Scenario::new(format!("size/fragments/{}", mode.name()), move |context| {
            fragments(context, mode)
        }));
        scenarios.push(Scenario::new(format!("size/path-mtu/{}", mode.name()), move |context| {
            path_mtu(context, mode)
        }));
    }
    for mode in [Mode::Nat, Mode::Fullnat] {
        scenarios.push(Scenario::new(format!("size/mss/{}", mode.name()), move |context| mss(context, mode)));
    }
    for mode in [Mode::Ipip, Mode::Gue] {
        scenarios.push(Scenario::new(format!("size/too-big-for-tunnel/{}", mode.name()), move |context| {
            too_big(context, mode)
        }));
    }
    scenarios
}

/// Datagrams of several fragments go out and come back whole.
fn fragments(context: &Context, mode: Mode) -> Result<()> {
    let services: Vec<Service> =
        every_kind(mode).into_iter().filter(|service| service.protocol == Protocol::Udp).collect();
    let rig = Rig::start(context, Io::AfXdp, services.clone())?;
    // room for an outer header, so that fragments fit into the tunnels
    rig.lab.client.ip(&format!(
        "route replace 198.18.100.0/24 via {} mtu 1400\nroute replace 2001:db8:100::/64 via {} mtu 1400\n",
        WAN.0, WAN.1
    ))?;
    for service in &services {
        for length in [1_500usize, 3_000, 9_000] {
            let question: Vec<u8> = (0..length).map(|position| (position % 253) as u8 + 1).collect();
            for _ in 0..5 {
                let socket = datagram::socket(&rig.lab.client, service.target())?;
                datagram::ask(&socket, &question).with_context(|| {
                    let drops = rig.weir.status().map(|status| status.drops_in_words()).unwrap_or_default();
                    format!("{} with {length} bytes; drops: {drops}", service.name)
                })?;
            }
        }
    }
    rig.finish()
}

/// With a smaller MTU behind Weir, both ends hear an MSS that fits.
fn mss(context: &Context, mode: Mode) -> Result<()> {
    const MTU: u16 = 1_400;
    let services = Family::BOTH
        .map(|family| Service { backends: vec![(1, 100)], ..Service::new(mode, Protocol::Tcp, family) });
    let rig = Rig::start_with(context, Io::AfXdp, services.to_vec(), |config| {
        config.lan = format!("mtu = {MTU}\n");
    })?;
    for service in &services {
        let headers = if service.family == Family::Ipv4 { 40 } else { 60 };
        let at_client = Probe::open(&rig.lab.client, "eth0")?;
        let at_backend = Probe::open(&rig.lab.backends[0], "eth0")?;
        let mut connection = rig.connect(service)?;
        connection.get("/", true)?;
        for (place, probe) in [("the backend", &at_backend), ("the client", &at_client)] {
            let mss = probe.expect(&format!("a SYN at {place}"), Duration::from_secs(2), |frame| {
                let (_, _, packet) = view::network(frame)?;
                let (protocol, segment) = view::transport(packet)?;
                let family = if packet.first()? >> 4 == 4 { Family::Ipv4 } else { Family::Ipv6 };
                if protocol != 6 || segment.get(13)? & 0x02 == 0 || family != service.family {
                    return None;
                }
                view::mss(segment)
            })?;
            ensure!(
                mss == MTU - headers,
                "{}: {place} heard an MSS of {mss}, {} fits",
                service.name,
                MTU - headers
            );
        }
    }
    rig.finish()
}

/// A client behind a narrow link: the router's errors, which name the VIP, must reach the backend that sent.
fn path_mtu(context: &Context, mode: Mode) -> Result<()> {
    let services = Family::BOTH.map(|family| Service::new(mode, Protocol::Tcp, family));
    let rig = behind_a_router(context, &services)?;
    let far = far_client(&rig.lab, rig.run.name(), 1_300)?;
    for service in &services {
        for _ in 0..3 {
            fetch_from_far(&rig, &far, service)?;
        }
    }
    rig.finish()
}

/// A rig whose routes lead to [`far_client`].
pub(super) fn behind_a_router(context: &Context, services: &[Service]) -> Result<Rig> {
    Rig::start_with(context, Io::AfXdp, services.to_vec(), |config| {
        config.wan = "\n[[port.route]]\nprefix = \"198.18.2.0/24\"\nvia = \"198.18.0.253\"\n\
                      \n[[port.route]]\nprefix = \"2001:db8:1a::/64\"\nvia = \"2001:db8:18::253\"\n"
            .into();
    })
}

/// A megabyte to the byte.
pub(super) fn fetch_from_far(rig: &Rig, far: &Namespace, service: &Service) -> Result<()> {
    let target = service.target();
    let answer = far
        .run(|| Connection::open(target).and_then(|mut connection| connection.get(FILE, true)))?
        .with_context(|| {
            let drops = rig.weir.status().map(|status| status.drops_in_words()).unwrap_or_default();
            format!("{}: a megabyte over a narrow link; drops: {drops}", service.name)
        })?;
    ensure!(answer.body.len() == FILE_BYTES, "{} bytes came", answer.body.len());
    let right = answer.body.iter().enumerate().all(|(position, &byte)| byte == (position % 251) as u8);
    ensure!(right, "{}: the megabyte came changed", service.name);
    Ok(())
}

/// A client behind the router, whose link the router can't fill: its own end still takes 1,500 bytes.
pub(super) fn far_client(lab: &Lab, run: &str, mtu: u16) -> Result<Namespace> {
    let far = Namespace::create(run, "far")?;
    link(&far, "eth0", &lab.router, "far", 1_500)?;
    far.plain_frames(&["eth0"])?;
    lab.router.plain_frames(&["far"])?;
    far.ip("addr add 198.18.2.1/24 dev eth0\naddr add 2001:db8:1a::1/64 dev eth0 nodad\n\
            route add 198.18.0.0/15 via 198.18.2.254\nroute add 2001:db8::/32 via 2001:db8:1a::254\n")?;
    lab.router.ip(&format!(
        "link set far mtu {mtu}\n\
         addr add 198.18.2.254/24 dev far\naddr add 2001:db8:1a::254/64 dev far nodad\n\
         route add 198.18.100.0/24 via 198.18.0.254\nroute add 2001:db8:100::/64 via 2001:db8:18::254\n"
    ))?;
    Ok(far)
}

/// A full-sized packet of the client does not fit into the tunnel: Weir says so, the client sends smaller ones.
fn too_big(context: &Context, mode: Mode) -> Result<()> {
    let services = Family::BOTH.map(|family| Service::new(mode, Protocol::Tcp, family));
    let rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    for service in &services {
        let mut connection = rig.connect(service)?;
        // a request head of several segments
        let path = format!("/{}", "x".repeat(6_000));
        let answer = connection.get(&path, true).with_context(|| {
            let drops = rig.weir.status().map(|status| status.drops_in_words()).unwrap_or_default();
            format!("{}: a request of 6,000 bytes; drops: {drops}", service.name)
        })?;
        ensure!(answer.status == 200, "{}: status {}", service.name, answer.status);
        // RFC 2003: 20 bytes of outer IPv4; RFC 2473: 40 of IPv6; GUE adds UDP's 8
        let outer = if service.family == Family::Ipv4 { 20 } else { 40 };
        let fits = 1_500 - outer - if mode == Mode::Gue { 8 } else { 0 };
        let route = rig.lab.client.ip(&format!("route get {}\n", service.address()))?;
        ensure!(
            route.contains(&format!("mtu {fits}")),
            "{}: the client did not learn mtu {fits}: {route}",
            service.name
        );
    }
    rig.finish()
}
