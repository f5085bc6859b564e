//! Listeners of L4: established flows go on while new ones are refused.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{AT_ONCE, Waiting, refuses};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::scenario::rig::{Rig, who};
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};

pub(super) fn scenarios() -> Vec<Scenario> {
    use Family::{Ipv4, Ipv6};
    let kinds = [(Mode::Nat, Ipv4), (Mode::Nat, Ipv6), (Mode::Fullnat, Ipv4), (Mode::Dsr, Ipv6)];
    let mut scenarios: Vec<Scenario> = kinds
        .map(|(mode, family)| {
            let name = format!("drain/flows/{}/{}", mode.name(), family.name());
            Scenario::new(name, move |context| flows(context, mode, family))
        })
        .into();
    scenarios.push(Scenario::new("drain/flows/then-cut", then_cut));
    scenarios
}

fn rig(context: &Context, services: Vec<Service>) -> Result<Rig> {
    Rig::start_with(context, Io::AfXdp, services, |config| {
        // one round over a small table is short, so that what ended is soon gone
        config.dataplane = config.dataplane.replace("65536", "1024");
        config.timeouts = "tcp_closing = \"300ms\"\nudp = \"1s\"\n".into();
    })
}

/// A datagram's answer; `None` where none comes soon.
fn answered(socket: &UdpSocket) -> Result<Option<Vec<u8>>> {
    let mut buffer = [0; 64];
    socket.send(b"?")?;
    match socket.recv(&mut buffer) {
        Ok(count) => Ok(Some(buffer[..count].to_vec())),
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("receive a datagram"),
    }
}

fn datagrams(rig: &Rig, service: &Service) -> Result<UdpSocket> {
    let target = service.target();
    rig.lab.client.run(|| -> Result<UdpSocket> {
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(socket)
    })?
}

/// TCP, then UDP.
fn flows(context: &Context, mode: Mode, family: Family) -> Result<()> {
    let [tcp, udp] = Protocol::BOTH.map(|protocol| Service::new(mode, protocol, family));
    let rig = rig(context, vec![tcp.clone(), udp.clone()])?;
    let mut kept = rig.connect(&tcp)?;
    let on = who(&mut kept)?;
    let drain = ["listener", "drain", &tcp.name, "--wait", "--timeout", "8s"];
    let mut drain = Waiting::start(rig.weir.cli(&drain))?;
    wait_for("the listener to be drained", AT_ONCE, || Ok(refuses(&rig.lab.client, tcp.target()).ok()))?;
    for _ in 0..3 {
        refuses(&rig.lab.client, tcp.target())?;
        ensure!(who(&mut kept)? == on, "an established flow left its backend");
    }
    ensure!(rig.weir.status()?.listener(&tcp.name, "drained") >= 4, "refusals are not counted");
    ensure!(drain.waits()?, "the drain ended while a flow was open");
    drop(kept);
    let text = drain.good()?;
    ensure!(text.contains("has no active flows or connections"), "{text}");
    rig.weir.weir(&["listener", "ready", &tcp.name])?;
    who(&mut rig.connect(&tcp).context("the listener is ready again")?)?;

    let kept = datagrams(&rig, &udp)?;
    ensure!(answered(&kept)?.is_some(), "no answer before the drain");
    let before = rig.weir.status()?.dropped("listener_drain");
    rig.weir.weir(&["listener", "drain", &udp.name])?;
    ensure!(answered(&kept)?.is_some(), "an established flow of UDP stopped");
    let new = datagrams(&rig, &udp)?;
    ensure!(answered(&new)?.is_none(), "a new flow of UDP was taken");
    let status = rig.weir.status()?;
    ensure!(status.listener(&udp.name, "drained") == 1, "the new datagram is not counted");
    ensure!(status.dropped("listener_drain") > before, "no drop was counted");
    rig.weir.weir(&["listener", "ready", &udp.name])?;
    ensure!(answered(&new)?.is_some(), "the listener of UDP is ready again and takes nothing");
    rig.finish()
}

/// At the deadline flows are forgotten and their clients reset.
fn then_cut(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let rig = rig(context, vec![service.clone()])?;
    let mut kept = (0..3).map(|_| rig.connect(&service)).collect::<Result<Vec<_>>>()?;
    for connection in &mut kept {
        who(connection)?;
    }
    let drain = ["listener", "drain", &service.name, "--wait", "--timeout", "500ms", "--then", "cut"];
    let text = Waiting::start(rig.weir.cli(&drain))?.good()?;
    ensure!(text.contains("still has 3 flows, 0 connections after 500ms"), "{text}");
    for connection in &mut kept {
        let error = who(connection).err().context("a flow that was cut goes on")?;
        ensure!(format!("{error:#}").to_lowercase().contains("reset"), "it ended otherwise: {error:#}");
    }
    rig.weir.weir(&["listener", "ready", &service.name])?;
    who(&mut rig.connect(&service)?)?;
    rig.finish()
}
