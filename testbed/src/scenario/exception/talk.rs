//! Connections of the kernel's, both ways, beside Weir's own.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::SockRef;

use super::{PORT, any, exception, lossless, own, own_lan, ready, server};
use crate::command;
use crate::config::{Mode, Protocol, Service};
use crate::interrupt;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io, backend};
use crate::traffic::http;
use crate::traffic::stream::{Server, connect, echo, receive, send, serve_echo};

/// Bytes each way.
const BULK: u64 = 16_000_000;
/// How long words are exchanged beside a load.
const BESIDE: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("exception/tcp/af_xdp", |context| tcp(context, Io::AfXdp, Mode::Nat, 1)),
        Scenario::new("exception/tcp/tap", |context| tcp(context, Io::Tap, Mode::Dsr, 1)),
        Scenario::new("exception/tcp/beside-proxy", |context| tcp(context, Io::AfXdp, Mode::Proxy, 1)),
        Scenario::new("exception/tcp/beside-fullnat", |context| tcp(context, Io::AfXdp, Mode::Fullnat, 1)),
        Scenario::new("exception/tcp/two-workers", |context| tcp(context, Io::AfXdp, Mode::Proxy, 2)),
        Scenario::new("exception/beside-load", beside_load),
        Scenario::new("exception/restart", restart),
    ]
}

/// Reads all that comes, and sends as much.
fn both_ways(stream: TcpStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sent = send(&stream, BULK, &AtomicU64::new(0));
            let _ = sent.and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        });
        let _ = receive(&stream, u64::MAX);
    });
}

/// The pattern from the one side and the other at once.
fn bulk(stream: &TcpStream) -> Result<()> {
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| -> Result<()> {
            send(stream, BULK, &AtomicU64::new(0)).context("send")?;
            Ok(stream.shutdown(std::net::Shutdown::Write)?)
        });
        let received = receive(stream, u64::MAX)?;
        ensure!(received == BULK, "{received} of {BULK} bytes came");
        sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })
}

/// A packet of the kernel's lives for one hop, as BGP's may be told to, and so must not be routed on its way.
fn for_one_hop(stream: &TcpStream, family: Family) -> Result<()> {
    let socket = SockRef::from(stream);
    match family {
        Family::Ipv4 => socket.set_ttl_v4(1)?,
        Family::Ipv6 => socket.set_unicast_hops_v6(1)?,
    }
    Ok(())
}

/// Much data in both directions, from the client and to a backend; fragments, and what nobody listens for.
fn tcp(context: &Context, io: Io, mode: Mode, workers: u16) -> Result<()> {
    let services: Vec<Service> =
        Family::BOTH.into_iter().map(|family| Service::new(mode, Protocol::Tcp, family)).collect();
    let mut rig = Rig::start_with(context, io, services.clone(), |config| {
        config.dataplane = config.dataplane.replace("workers = 1", &format!("workers = {workers}"));
    })?;
    ready(&mut rig)?;
    let before = [exception(&rig, "wan")?, exception(&rig, "lan")?];
    for family in Family::BOTH {
        let of = |error: &'static str| format!("{}: {error}", family.name());
        let listening = Server::start(&rig.lab.lb, server(family), both_ways)?;
        let stream = connect(&rig.lab.client, server(family)).with_context(|| of("from the client"))?;
        bulk(&stream).with_context(|| of("bulk from the client"))?;
        ensure!(listening.accepted() == 1, "{} connections came", listening.accepted());
        drop(listening);
        // the kernel begins: its connection leaves by the port of the backends' network
        let place = SocketAddr::new(backend(family, 1), PORT);
        let listening = Server::start(rig.lab.backends.first().context("no backend")?, place, both_ways)?;
        let stream = connect(&rig.lab.lb, place).with_context(|| of("to a backend"))?;
        let from = stream.local_addr()?.ip();
        ensure!(from == own_lan(family), "the connection to a backend comes from {from}");
        bulk(&stream).with_context(|| of("bulk to a backend"))?;
        drop(listening);
        let listening = Server::start(&rig.lab.lb, server(family), move |stream| {
            let _ = for_one_hop(&stream, family);
            serve_echo(stream);
        })?;
        let stream = connect(&rig.lab.client, server(family))?;
        for_one_hop(&stream, family)?;
        echo(&stream, b"one hop").with_context(|| of("with a TTL of 1"))?;
        drop((stream, listening));
        whatever_else(&rig, family).with_context(|| of("beside TCP"))?;
        for service in services.iter().filter(|service| service.family == family) {
            http::load(&rig.lab.client, service.target(), 20, 2)?.must_be_clean()?;
        }
    }
    for (port, before) in ["wan", "lan"].into_iter().zip(before) {
        let exception = exception(&rig, port)?;
        lossless(&before, &exception).with_context(|| port)?;
        ensure!(exception.count("punted") > 1_000 && exception.count("from_kernel") > 1_000, "{exception:?}");
    }
    rig.finish()
}

/// A datagram in fragments, a question longer than a packet, and a port where nobody listens.
fn whatever_else(rig: &Rig, family: Family) -> Result<()> {
    let address = own(family).to_string();
    let mut ping = rig.lab.client.command("ping");
    command::run(ping.args(["-c", "3", "-i", "0.2", "-W", "2", "-s", "4000", &address]))
        .context("a long ping")?;
    let (lb, client) = (&rig.lab.lb, &rig.lab.client);
    let socket = lb.run(|| UdpSocket::bind(server(family)))??;
    let sender = client.run(|| UdpSocket::bind(SocketAddr::new(any(family), 0)))??;
    for socket in [&socket, &sender] {
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    }
    let long: Vec<u8> = (0..5_000u32).map(|number| number as u8).collect();
    sender.send_to(&long, server(family))?;
    let mut buffer = [0; 8_192];
    let (length, from) = socket.recv_from(&mut buffer).context("a datagram in fragments")?;
    ensure!(buffer.get(..length) == Some(&long), "{length} other bytes came");
    socket.send_to(&long, from)?;
    let length = sender.recv(&mut buffer).context("its answer")?;
    ensure!(buffer.get(..length) == Some(&long), "{length} other bytes came back");
    // the kernel says that nobody listens there, and Weir lets it
    let stranger = client.run(|| UdpSocket::bind(SocketAddr::new(any(family), 0)))??;
    stranger.set_read_timeout(Some(Duration::from_secs(3)))?;
    stranger.connect(SocketAddr::new(own(family), PORT + 1))?;
    stranger.send(b"anybody")?;
    let error = stranger.recv(&mut buffer).err().context("an answer came from nobody")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "a closed UDP port: {error}");
    let refused = client.run(|| {
        TcpStream::connect_timeout(&SocketAddr::new(own(family), PORT + 1), Duration::from_secs(3))
    })?;
    let error = refused.err().context("a connection to a closed port")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "a closed TCP port: {error}");
    Ok(())
}

/// A session as ssh's, word by word, while listeners get all that the client can send: it goes on, and neither loses anything.
fn beside_load(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    ready(&mut rig)?;
    let before = exception(&rig, "wan")?;
    for family in Family::BOTH {
        let _listening = Server::start(&rig.lab.lb, server(family), serve_echo)?;
        let stream = connect(&rig.lab.client, server(family))?;
        let (tally, words) = http::load_while(&rig.client(), service.target(), 8, |load| {
            load.more(50)?;
            let start = Instant::now();
            let mut words = 0u32;
            let mut slowest = Duration::ZERO;
            while start.elapsed() < BESIDE {
                interrupt::check()?;
                let asked = Instant::now();
                echo(&stream, &words.to_be_bytes())?;
                slowest = slowest.max(asked.elapsed());
                words += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            ensure!(slowest < Duration::from_secs(1), "a word took {slowest:?}");
            Ok(words)
        })?;
        tally.must_be_clean()?;
        ensure!(words > 100, "{words} words in {BESIDE:?}");
    }
    lossless(&before, &exception(&rig, "wan")?)?;
    rig.finish()
}

/// kill -9 of either process and of both: the kernel's connections wait and go on.
fn restart(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    ready(&mut rig)?;
    let mut streams = Vec::new();
    let mut servers = Vec::new();
    for family in Family::BOTH {
        servers.push(Server::start(&rig.lab.lb, server(family), serve_echo)?);
        streams.push(connect(&rig.lab.client, server(family))?);
    }
    let words = |streams: &[TcpStream], word: &[u8]| streams.iter().try_for_each(|stream| echo(stream, word));
    words(&streams, b"before")?;
    rig.weir.ctlplane.kill()?;
    words(&streams, b"without ctlplane")?;
    rig.weir.kill_dataplane()?;
    let links = rig.lab.lb.ip("addr show dev weir-wan\n")?;
    ensure!(links.contains(&own(Family::Ipv4).to_string()), "the interface lost its address: {links}");
    rig.weir.restart_dataplane(&rig.lab)?;
    words(&streams, b"with another dataplane, and no ctlplane")?;
    rig.weir.ctlplane.start_again()?;
    rig.weir.wait_until_serving(&rig.lab)?;
    words(&streams, b"with both")?;
    for _ in 0..2 {
        rig.weir.kill_dataplane()?;
        rig.weir.ctlplane.kill()?;
        rig.weir.restart_dataplane(&rig.lab)?;
        rig.weir.ctlplane.start_again()?;
        rig.weir.wait_until_serving(&rig.lab)?;
        words(&streams, b"after both were killed")?;
        http::load(&rig.lab.client, service.target(), 20, 2)?.must_be_clean()?;
    }
    ready(&mut rig)?;
    drop((streams, servers));
    rig.finish()
}
