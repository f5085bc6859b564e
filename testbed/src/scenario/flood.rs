//! A SYN flood from 100,000 sources into one listener, while another serves HTTP.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::rig::Rig;
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt;
use crate::random::Random;
use crate::topology::lab::{CLIENT, Family, Io};
use crate::traffic::frames::{Ip, Link, Tcp, flag};
use crate::traffic::http;
use crate::traffic::probe::{Probe, mac_of};
use crate::traffic::servers::VIP_PORT;

const SOURCES: u32 = 100_000;
const MEASURE: Duration = Duration::from_secs(2);
const FLOOD: Duration = Duration::from_secs(6);
/// Flow table of this scenario: far below the flood, so that it fills.
const ENTRIES: u64 = 16_384;
/// What the resident memory may grow by while everything is touched for the first time.
const GROWTH_KIB: u64 = 16 << 10;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for mode in [Mode::Nat, Mode::Dsr] {
        scenarios.push(Scenario::new(format!("flood/half/{}", mode.name()), move |context| {
            flood(context, mode, 2)
        }));
        scenarios.push(Scenario::long(format!("flood/all/{}", mode.name()), move |context| {
            flood(context, mode, 1)
        }));
    }
    scenarios
}

fn flood(context: &Context, mode: Mode, part: u64) -> Result<()> {
    let victim = Service::new(mode, Protocol::Tcp, Family::Ipv4);
    let served = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4).on_vip(9);
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![victim.clone(), served.clone()], |config| {
        config.dataplane = config.dataplane.replace("ipv4 = 65536", &format!("ipv4 = {ENTRIES}"));
        // the answers to spoofed sources leave through the client's host, which drops them
        config.wan = format!("gateways = [\"{}\"]\n", CLIENT.0);
    })?;
    rig.lab.client.ip("route add blackhole 198.19.0.0/16\nroute add blackhole 198.18.128.0/17\n")?;
    let frames = syn_frames(context, &rig, &victim)?;
    let probe = Probe::open(&rig.lab.client, "eth0")?;
    let ceiling = ceiling(&rig, &probe, &frames)?;
    let rate = ceiling / part;
    let id = rig.weir.dataplane.id().context("the dataplane does not run")?;
    let memory = resident_kib(id)?;
    let before = rig.weir.status()?;
    let sent = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let client = rig.client();
    let tally = std::thread::scope(|scope| {
        let flooder = scope.spawn(|| send_at(&probe, &frames, rate, &sent, &stop));
        let outcome = http::load_while(&client, served.target(), 2, |_| {
            let start = Instant::now();
            // every source has its turn, on a slow machine too
            let is_short =
                || sent.load(Ordering::Relaxed) < u64::from(SOURCES) && start.elapsed() < 4 * FLOOD;
            while start.elapsed() < FLOOD || is_short() {
                rig.weir.must_run()?;
                let flows = rig.weir.status()?.worker_sum("flows_ipv4");
                ensure!(flows <= ENTRIES, "{flows} flows in a table of {ENTRIES}");
                interrupt::pause(Duration::from_millis(200))?;
            }
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        flooder.join().map_err(|_| anyhow!("the flooder panicked"))??;
        outcome.map(|(tally, ())| tally)
    })?;
    tally.must_be_clean().with_context(|| format!("during {rate} SYNs per second"))?;
    ensure!(tally.answered() > 20, "only {} requests were answered", tally.answered());
    let sent = sent.load(Ordering::Relaxed);
    ensure!(sent >= u64::from(SOURCES), "only {sent} SYNs were sent, fewer than the sources");
    let status = rig.settle()?;
    let made = status.worker_sum("flows_created") - before.worker_sum("flows_created");
    ensure!(made > ENTRIES / 2, "the flood made only {made} flows: did it arrive?");
    let grown = resident_kib(id)?.saturating_sub(memory);
    ensure!(grown < GROWTH_KIB, "the dataplane's memory grew by {grown} KiB");
    rig.finish()
}

/// One SYN per source.
pub(super) fn syn_frames(context: &Context, rig: &Rig, victim: &Service) -> Result<Vec<Vec<u8>>> {
    let from = mac_of(&rig.lab.client, "eth0")?;
    let link = Link::new(from, mac_of(&rig.lab.lb, "wan")?);
    let mut random = Random::new(context.seed, "flood");
    let first = u32::from(Ipv4Addr::new(198, 18, 128, 0));
    let mut frames: Vec<Vec<u8>> = (0..SOURCES)
        .map(|number| {
            // 198.18.128.0/17 and 198.19.0.0/16 hold 98,304 addresses; the rest differ by their port
            let source = Ipv4Addr::from(first + number % 98_304);
            let port = 1_024 + random.below(60_000) as u16;
            let segment = Tcp::new((port, VIP_PORT), flag::SYN);
            link.ip(&Ip::new(source, victim.address()).tcp(&segment.options(&[2, 4, 5, 180])))
        })
        .collect();
    random.shuffle(&mut frames);
    Ok(frames)
}

/// Packets per second that the port takes in when it is sent as many as possible.
pub(super) fn ceiling(rig: &Rig, probe: &Probe, frames: &[Vec<u8>]) -> Result<u64> {
    let before = rig.weir.status()?.port("wan", "rx_packets");
    let start = Instant::now();
    for frame in frames.iter().cycle() {
        let _ = probe.send(frame);
        if start.elapsed() > MEASURE {
            break;
        }
    }
    let taken = rig.weir.status()?.port("wan", "rx_packets") - before;
    let rate = (taken as f64 / start.elapsed().as_secs_f64()) as u64;
    if rate < 1_000 {
        bail!("only {taken} SYNs arrived in {MEASURE:?}");
    }
    println!("      the port takes {rate} SYNs per second");
    Ok(rate)
}

pub(super) fn send_at(
    probe: &Probe,
    frames: &[Vec<u8>],
    rate: u64,
    sent: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let start = Instant::now();
    for frame in frames.iter().cycle() {
        if stop.load(Ordering::Relaxed) || interrupt::arrived() {
            break;
        }
        // a full queue is part of a flood
        let _ = probe.send(frame);
        let count = sent.fetch_add(1, Ordering::Relaxed) + 1;
        let due = Duration::from_secs_f64(count as f64 / rate as f64);
        if count.is_multiple_of(32)
            && let Some(early) = due.checked_sub(start.elapsed())
        {
            std::thread::sleep(early);
        }
    }
    Ok(())
}

/// The resident memory of a process.
pub(super) fn resident_kib(id: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok())
        .context("no VmRSS")
}
