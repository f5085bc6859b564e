//! Frames that no kernel would send: broken ones by the thousand, and tagged ones.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::carry::carry;
use super::rig::{Rig, every_kind};
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::fuzz::frame_seeds;
use crate::interrupt::wait_for;
use crate::random::Random;
use crate::topology::lab::{CLIENT, Family, Io, WAN, vip};
use crate::traffic::frames::{BROADCAST, Ip, Link, Tcp, arp_reply, flag};
use crate::traffic::probe::{Probe, mac_of, view};
use crate::traffic::servers::VIP_PORT;

const FRAMES: usize = 12_000;
/// Frames between two looks at the counters: well below an XSK's ring.
const BURST: usize = 400;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("raw/malformed", |context| malformed(context, 1)),
        Scenario::new("raw/malformed/two-workers", |context| malformed(context, 2)),
        Scenario::new("raw/vlan", vlan),
    ]
}

/// Thousands of broken frames, seeded: nothing crashes, every one is counted, traffic goes on.
fn malformed(context: &Context, workers: u32) -> Result<()> {
    let services: Vec<Service> = Mode::ALL
        .into_iter()
        .zip(1..)
        .flat_map(|(mode, number)| every_kind(mode).into_iter().map(move |service| service.on_vip(number)))
        .collect();
    let mut rig = Rig::start_with(context, Io::AfXdp, services.clone(), |config| {
        config.dataplane = config.dataplane.replace("workers = 1", &format!("workers = {workers}"));
    })?;
    // from the switch's end of Weir's own cable: a bridge drops some broken frames itself
    let probe = Probe::open(&rig.lab.switch, "lb-wan")?;
    let client = mac_of(&rig.lab.client, "eth0")?;
    let weir = mac_of(&rig.lab.lb, "wan")?;
    let link = Link::new(client, weir);
    let mut random = Random::new(context.seed, "malformed");
    let mut seeds: Vec<Vec<u8>> = frame_seeds();
    for frame in &mut seeds {
        frame[..6].copy_from_slice(&weir);
        frame[6..12].copy_from_slice(&client);
    }
    for number in 1..=5 {
        for family in Family::BOTH {
            let client: IpAddr = if family == Family::Ipv4 { CLIENT.0.into() } else { CLIENT.1.into() };
            let ip = Ip::new(client, vip(family, number));
            seeds.push(link.ip(&ip.tcp(&Tcp::new((40_000, VIP_PORT), flag::SYN).options(&[2, 4, 5, 180]))));
            seeds.push(link.ip(&ip.tcp(&Tcp::new((40_000, VIP_PORT), flag::ACK).data(b"data"))));
            seeds.push(link.ip(&ip.udp((40_000, VIP_PORT), b"question")));
        }
    }
    let before = rig.settle()?.port("wan", "rx_packets");
    for sent in 0..FRAMES {
        let mut frame = random.pick(&seeds).clone();
        // the link addresses stay: frames for others are not Weir's
        random.mutate(&mut frame, 12);
        frame.truncate(1_514);
        frame.resize(frame.len().max(14), 0);
        probe.send(&frame)?;
        if sent % BURST == BURST - 1 {
            received(&mut rig, before + sent as u64 + 1)?;
        }
    }
    received(&mut rig, before + FRAMES as u64)?;
    let status = rig.settle()?;
    ensure!(status.worker_sum("dropped") > FRAMES as u64 / 10, "only {} drops", status.worker_sum("dropped"));
    let kinds = status.drops.values().filter(|&&count| count > 0).count();
    ensure!(kinds >= 10, "only {kinds} kinds of drops: {}", status.drops_in_words());
    for service in &services {
        carry(&rig, service)?;
    }
    rig.finish()
}

fn received(rig: &mut Rig, count: u64) -> Result<()> {
    let mut seen = 0;
    let arrived = wait_for("the frames to arrive", Duration::from_secs(5), || {
        rig.weir.must_run()?;
        seen = rig.weir.status()?.port("wan", "rx_packets");
        Ok((seen >= count).then_some(()))
    });
    arrived.with_context(|| format!("{seen} of {count} came"))
}

/// A tagged port: tagged frames are served, untagged ones are not.
fn vlan(context: &Context) -> Result<()> {
    const TAG: u16 = 100;
    let service = Service::new(Mode::Nat, Protocol::Udp, Family::Ipv4);
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.wan = format!("vlan = {TAG}\n");
    })?;
    let probe = Probe::open(&rig.lab.client, "eth0")?;
    let tagged = |to| Link { vlan: Some(TAG), ..Link::new(probe.mac(), to) };
    // who has Weir's address? tell the client
    let mut question = vec![0, 1, 8, 0, 6, 4, 0, 1];
    question.extend(probe.mac());
    question.extend(CLIENT.0.octets());
    question.extend([0; 6]);
    question.extend(WAN.0.octets());
    probe.send(&tagged(BROADCAST).frame(0x0806, &question))?;
    let weir = probe.expect("a tagged ARP answer", Duration::from_secs(3), |frame| {
        let (kind, tag, body) = view::network(frame)?;
        let answer = kind == 0x0806 && tag == Some(TAG) && body.get(7) == Some(&2);
        let from: [u8; 4] = body.get(14..18)?.try_into().ok()?;
        (answer && from == WAN.0.octets()).then_some(body.get(8..14)?.try_into().ok()?)
    })?;
    let packet = Ip::new(CLIENT.0, service.address()).udp((40_000, VIP_PORT), b"tagged");
    let answered = |probe: &Probe, wait: Duration| {
        probe.expect("a tagged answer", wait, |frame| {
            let (kind, tag, packet) = view::network(frame)?;
            // Weir asks where the client is; the kernel there has no VLAN to answer in
            if kind == 0x0806 && tag == Some(TAG) && packet.get(24..28)? == CLIENT.0.octets() {
                probe.send(&arp_reply(&tagged(weir), CLIENT.0, WAN.0)).ok()?;
            }
            let (protocol, segment) = view::transport(packet)?;
            let right = tag == Some(TAG) && protocol == 17 && view::ports(segment)? == (VIP_PORT, 40_000);
            (right && segment.ends_with(b" tagged")).then_some(())
        })
    };
    let mut outcome = Ok(());
    for _ in 0..3 {
        probe.send(&tagged(weir).ip(&packet))?;
        outcome = answered(&probe, Duration::from_secs(1));
        if outcome.is_ok() {
            break;
        }
    }
    outcome?;
    let untagged = Ip::new(CLIENT.0, service.address()).udp((40_001, VIP_PORT), b"untagged");
    let before = rig.settle()?;
    probe.send(&Link::new(probe.mac(), weir).ip(&untagged))?;
    received(&mut rig, before.port("wan", "rx_packets") + 1)?;
    let after = rig.settle()?;
    ensure!(
        after.listener(&service.name, "flows_total") == before.listener(&service.name, "flows_total"),
        "an untagged frame made a flow on a tagged port"
    );
    ensure!(after.worker_sum("dropped") > before.worker_sum("dropped"), "an untagged frame was not a drop");
    rig.finish()
}
