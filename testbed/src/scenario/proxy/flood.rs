//! Attackers that don't see the connection: a SYN flood, and segments with guessed numbers.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{STREAM_PORT, connect, finish, serve_everywhere, service, streams};
use crate::config::Service;
use crate::interrupt;
use crate::random::Random;
use crate::scenario::flood::{ceiling, resident_kib, send_at, syn_frames};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{CLIENT, Family, Io};
use crate::traffic::frames::{Ip, Link, Tcp, flag};
use crate::traffic::http;
use crate::traffic::probe::{Probe, mac_of, view};
use crate::traffic::stream;

const SOURCES: u64 = 100_000;
const BACKLOG: u64 = 256;
const FLOOD: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("proxy/flood/syn", syn), Scenario::new("proxy/flood/blind", blind)]
}

/// A flood into the very listener that serves: cookies keep it open, memory stays.
fn syn(context: &Context) -> Result<()> {
    let service = Service {
        listener_lines: format!("tcp = {{ backlog = {BACKLOG} }}\ntimeouts = {{ handshake = \"1s\" }}\n"),
        ..service(Family::Ipv4)
    };
    let echo = Service { vip: service.vip, name: "echo".into(), ..streams(Family::Ipv4) };
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service.clone(), echo.clone()], |config| {
        config.wan = format!("gateways = [\"{}\"]\n", CLIENT.0);
    })?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    rig.lab.client.ip("route add blackhole 198.19.0.0/16\nroute add blackhole 198.18.128.0/17\n")?;
    let frames = syn_frames(context, &rig, &service)?;
    let probe = Probe::open(&rig.lab.client, "eth0")?;
    let kept = connect(&rig, &echo)?;
    let rate = ceiling(&rig, &probe, &frames)? / 2;
    let id = rig.weir.dataplane.id().context("the dataplane does not run")?;
    let memory = resident_kib(id)?;
    let (sent, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let client = rig.client();
    let mut most = 0;
    let tally = std::thread::scope(|scope| {
        let flooder = scope.spawn(|| send_at(&probe, &frames, rate, &sent, &stop));
        let outcome = http::load_while(&client, service.target(), 2, |_| {
            let start = Instant::now();
            // every source has its turn, on a slow machine too
            let is_short = || sent.load(Ordering::Relaxed) < SOURCES && start.elapsed() < 4 * FLOOD;
            while start.elapsed() < FLOOD || is_short() {
                rig.weir.must_run()?;
                most = most.max(rig.weir.status()?.tcp("half_open"));
                stream::echo(&kept, b"through the flood")?;
                interrupt::pause(Duration::from_millis(100))?;
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
    ensure!(sent >= SOURCES, "only {sent} SYNs were sent, fewer than the sources");
    ensure!(most <= BACKLOG, "{most} half-open connections, the backlog is {BACKLOG}");
    let status = rig.weir.status()?;
    let (cookies, accepted) = (status.tcp("syn_cookies_sent"), status.tcp("syn_cookies_accepted"));
    println!("      {sent} SYNs, {cookies} cookies, {accepted} came back, {} requests", tally.answered());
    ensure!(cookies > sent / 2, "only {cookies} cookies for {sent} SYNs");
    ensure!(accepted > 0, "no connection was opened by a cookie");
    let grown = resident_kib(id)?.saturating_sub(memory);
    ensure!(grown < 16 << 10, "the dataplane's memory grew by {grown} KiB");
    drop((kept, servers));
    finish(rig)
}

/// What an attacker beside the path can send at a connection: neither end nor data are believed.
fn blind(context: &Context) -> Result<()> {
    let service = Service { backends: vec![(1, 100)], ..streams(Family::Ipv4) };
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let probe = Probe::open(&rig.lab.client, "eth0")?;
    let kept = connect(&rig, &service)?;
    let port = kept.local_addr()?.port();
    stream::echo(&kept, b"before")?;
    // what Weir sent shows its numbers; the attacker gets the worst of guesses: right but for what it can't know
    let (theirs, ours) = probe.expect("a segment of Weir", Duration::from_secs(2), |frame| {
        let (_, _, packet) = view::network(frame)?;
        let (protocol, segment) = view::transport(packet)?;
        let word = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
        let right = protocol == 6 && view::ports(segment)? == (STREAM_PORT, port);
        // it acknowledges the word that was sent: behind the handshake
        (right && segment.len() > usize::from(segment[12] >> 4) * 4).then_some((word(4)?, word(8)?))
    })?;
    let link = Link::new(probe.mac(), mac_of(&rig.lab.lb, "wan")?);
    let ip = Ip::new(CLIENT.0, service.address());
    let mut random = Random::new(context.seed, "blind");
    let before = rig.weir.status()?;
    let send = |flags, sequence: u32, acknowledgment: u32, data: &[u8]| -> Result<()> {
        let segment = Tcp { sequence, acknowledgment, ..Tcp::new((port, STREAM_PORT), flags).data(data) };
        probe.send(&link.ip(&ip.tcp(&segment)))
    };
    for round in 0..200u32 {
        // RFC 5961 §3.2: in the window, but not the next; §4.2: a SYN; §5.2: an acknowledgement of the distant past
        send(flag::RST, ours.wrapping_add(1 + round * 100), 0, &[])?;
        send(flag::SYN, ours.wrapping_add(round), 0, &[])?;
        send(flag::ACK | flag::PSH, ours, theirs.wrapping_sub(0x4000_0000), b"injected")?;
        send(flag::ACK | flag::PSH, ours, theirs.wrapping_add(0x4000_0000), b"injected")?;
        let sequence = random.next() as u32 | 1 << 31;
        let guess = ours.wrapping_add(sequence);
        send(flag::RST | flag::ACK, guess, random.next() as u32, &[])?;
        send(flag::FIN | flag::ACK, guess, random.next() as u32, b"injected")?;
        if round % 20 == 0 {
            stream::echo(&kept, format!("meanwhile {round}").as_bytes())
                .with_context(|| format!("in round {round}"))?;
        }
    }
    // and RSTs for connections that there are not
    for number in 0..200 {
        let stranger = Ip::new(Ipv4Addr::new(198, 18, 0, 1), service.address());
        let segment = Tcp::new((20_000 + number, STREAM_PORT), flag::RST);
        probe.send(&link.ip(&stranger.tcp(&segment)))?;
    }
    stream::echo(&kept, b"after")?;
    bulk(&kept)?;
    let status = rig.weir.status()?;
    let challenges = status.tcp("challenge_acks") - before.tcp("challenge_acks");
    let outside = status.tcp("out_of_window_drops") - before.tcp("out_of_window_drops");
    println!("      {challenges} challenge ACKs, {outside} segments outside of the window");
    ensure!(challenges > 0, "no challenge was sent");
    ensure!(outside > 0, "no segment was outside of the window");
    ensure!(status.proxy(&service.name, "client_resets") == 0, "a RST was believed");
    ensure!(status.proxy(&service.name, "connections_active") == 1, "the connection is gone");
    drop((kept, servers));
    finish(rig)
}

/// A quarter of a megabyte through the echo.
fn bulk(connection: &TcpStream) -> Result<()> {
    for round in 0..64u8 {
        let word: Vec<u8> = (0..4_096u32).map(|position| (position as u8) ^ round).collect();
        stream::echo(connection, &word)?;
    }
    Ok(())
}
