//! Clients that misbehave, and ends of every kind: what one side does, the other side sees.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::{connect, finish, of, serve, streams, until};
use crate::config::Service;
use crate::interrupt::{self, wait_for};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{CLIENT, Family, Io};
use crate::traffic::frames::{Ip, Link, Tcp, flag};
use crate::traffic::probe::{Probe, mac_of};
use crate::traffic::stream::{self, End, end_of};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("proxy/client/never-reads", never_reads),
        Scenario::new("proxy/client/many-never-read", many_never_read),
        Scenario::new("proxy/client/hundreds-never-read", hundreds_never_read),
        Scenario::new("proxy/client/never-sends", never_sends),
        Scenario::new("proxy/client/vanishes", vanishes),
        Scenario::new("proxy/client/half-close", half_close),
        Scenario::new("proxy/client/reset", resets),
    ]
}

fn one_backend(family: Family) -> Service {
    Service { backends: vec![(1, 100)], ..streams(family) }
}

/// The backend is stopped, Weir holds little; when the clients read at last, every byte is there.
fn never_reads(context: &Context) -> Result<()> {
    const CLIENTS: usize = 4;
    const BYTES: u64 = 48 << 20;
    let buffer = "tcp = { buffer = \"128KiB\" }\n";
    let service =
        Service { listener_lines: buffer.into(), pool_lines: buffer.into(), ..one_backend(Family::Ipv4) };
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let sent: Arc<Mutex<Vec<Arc<AtomicU64>>>> = Arc::default();
    let counters = Arc::clone(&sent);
    let server = serve(&rig, Family::Ipv4, 1, move |connection| {
        let counter = Arc::new(AtomicU64::new(0));
        if let Ok(mut counters) = counters.lock() {
            counters.push(Arc::clone(&counter));
        }
        let _ = connection.set_write_timeout(None);
        let _ = stream::send(&connection, BYTES, &counter);
    })?;
    let clients = (0..CLIENTS).map(|_| connect(&rig, &service)).collect::<Result<Vec<_>>>()?;
    let total = || -> Result<u64> {
        let sent = sent.lock().map_err(|_| anyhow!("a server panicked"))?;
        Ok(sent.iter().map(|counter| counter.load(Ordering::Relaxed)).sum())
    };
    let mut last = 0;
    let mut quiet = 0;
    wait_for("the backends to be stopped", Duration::from_secs(10), || {
        interrupt::pause(Duration::from_millis(200))?;
        let now = total()?;
        quiet = if now == last && now > 0 { quiet + 1 } else { 0 };
        last = now;
        Ok((quiet >= 3).then_some(()))
    })?;
    ensure!(last < BYTES * CLIENTS as u64, "the backends sent everything to clients that don't read");
    let status = rig.weir.status()?;
    let pinned = status.tcp("memory_pinned");
    // two buffers per client, and what packet buffers are larger than their content
    let most = (CLIENTS as u64) * 2 * (128 << 10) * 2;
    ensure!(pinned > 0 && pinned <= most, "{pinned} bytes are held, at most {most} are expected");
    for client in &clients {
        let received = stream::receive(client, u64::MAX)?;
        ensure!(received == BYTES, "{received} of {BYTES} bytes came");
    }
    drop((clients, server));
    finish(rig)
}

/// More of them than there is memory for: what they hold is bounded, and others are served as ever.
fn many_never_read(context: &Context) -> Result<()> {
    const CLIENTS: usize = 80;
    let greedy = one_backend(Family::Ipv4);
    let web = super::service(Family::Ipv4).on_vip(2);
    let mut rig = Rig::start(context, Io::AfXdp, vec![greedy.clone(), web.clone()])?;
    let server = serve(&rig, Family::Ipv4, 1, send_for_ever)?;
    let clients = never_read(&rig, &greedy, CLIENTS)?;
    let tally = crate::traffic::http::load(&rig.lab.client, web.target(), 200, 4)?;
    tally.must_be_clean().context("beside clients that never read")?;
    buffers_lasted(&rig)?;
    drop((clients, server));
    rig.emptied()?;
    rig.finish()
}

/// So many that each one's share is a segment: who reads what it asked for goes on promptly, whether it came before them or after.
fn hundreds_never_read(context: &Context) -> Result<()> {
    const CLIENTS: usize = 400;
    const BYTES: u64 = 1 << 20;
    const PROMPTLY: Duration = Duration::from_secs(1);
    let greedy = one_backend(Family::Ipv4);
    let echo = Service { backends: vec![(2, 100)], ..streams(Family::Ipv4) }.on_vip(2);
    let mut rig = Rig::start(context, Io::AfXdp, vec![greedy.clone(), echo.clone()])?;
    let servers =
        [serve(&rig, Family::Ipv4, 1, send_for_ever)?, serve(&rig, Family::Ipv4, 2, stream::serve_echo)?];
    let before = connect(&rig, &echo)?;
    stream::echo(&before, b"before the others")?;
    let clients = never_read(&rig, &greedy, CLIENTS)?;
    let after = connect(&rig, &echo)?;
    for (which, connection) in [("before", &before), ("after", &after), ("before", &before)] {
        let took = there_and_back(connection, BYTES, PROMPTLY)
            .with_context(|| format!("the connection that came {which} the others"))?;
        println!("      1 MiB and back on the connection that came {which} the others: {took:.0?}");
    }
    buffers_lasted(&rig)?;
    drop((before, after, clients, servers));
    rig.emptied()?;
    rig.finish()
}

/// How long so many bytes take to an echo and back; an error when that is more than `most`.
fn there_and_back(connection: &TcpStream, bytes: u64, most: Duration) -> Result<Duration> {
    let start = Instant::now();
    let received = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| stream::receive(connection, bytes));
        let sender = scope.spawn(|| stream::send(connection, bytes, &AtomicU64::new(0)));
        let is_over = wait_for("the bytes", most, || Ok(receiver.is_finished().then_some(())));
        // a trickle would go on for long: whoever waits is woken
        let ended = is_over.or_else(|error| connection.shutdown(Shutdown::Both).map(|()| Err(error))?);
        let received = receiver.join().map_err(|_| anyhow!("the receiver panicked"))?;
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        ended.with_context(|| format!("{received:?} of {bytes} bytes came back"))?;
        sent.context("send")?;
        received
    })?;
    ensure!(received == bytes, "{received} of {bytes} bytes came back");
    Ok(start.elapsed())
}

fn send_for_ever(connection: TcpStream) {
    let _ = connection.set_write_timeout(None);
    let _ = stream::send(&connection, 1 << 30, &AtomicU64::new(0));
}

/// Clients that never read, once what they hold has stopped growing; it is bounded.
fn never_read(rig: &Rig, service: &Service, count: usize) -> Result<Vec<TcpStream>> {
    let clients = (0..count).map(|_| connect(rig, service)).collect::<Result<Vec<_>>>()?;
    let mut most = 0;
    let mut last = 0;
    wait_for("what they hold to stop growing", Duration::from_secs(10), || {
        interrupt::pause(Duration::from_millis(500))?;
        let pinned = rig.weir.status()?.tcp("memory_pinned");
        most = most.max(pinned);
        let is_quiet = pinned > 1 << 20 && pinned.abs_diff(last) < last / 50 + 1;
        last = pinned;
        Ok(is_quiet.then_some(()))
    })?;
    let ceiling = rig.weir.status()?.tcp.map_or(0, |tcp| tcp.memory_ceiling);
    println!("      {count} clients that never read hold {} KiB, at most {} KiB", most >> 10, ceiling >> 10);
    // of 16,384 buffers half may wait, whatever the configuration says
    ensure!(ceiling < 64 << 20, "a ceiling of {ceiling} bytes is not what the buffers leave");
    // who has nothing waiting may still take a segment, so that nobody waits for ever
    ensure!(most <= ceiling + ceiling / 4, "{most} bytes are held, the ceiling is {ceiling}");
    Ok(clients)
}

/// Neither port was ever without a buffer to receive into.
fn buffers_lasted(rig: &Rig) -> Result<()> {
    let status = rig.weir.status()?;
    for port in ["wan", "lan"] {
        ensure!(status.port(port, "rx_no_buffer") == 0, "port {port} had no buffers to receive");
    }
    Ok(())
}

/// Without a handshake, without a PROXY header, without a word.
fn never_sends(context: &Context) -> Result<()> {
    const HALF_OPEN: u16 = 50;
    let service = Service {
        listener_lines: "timeouts = { handshake = \"1s\", idle = \"1s\" }\n".into(),
        ..one_backend(Family::Ipv4)
    };
    let expects = Service {
        listener_lines: format!(
            "{}accept_proxy = \"any\"\ntrusted = [\"198.18.0.0/24\"]\n",
            service.listener_lines
        ),
        ..service.clone()
    }
    .on_vip(2);
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service.clone(), expects.clone()], |config| {
        config.wan = format!("gateways = [\"{}\"]\n", CLIENT.0);
    })?;
    let server = serve(&rig, Family::Ipv4, 1, stream::serve_echo)?;
    // addresses that answer nothing: the client's host drops what comes for them
    rig.lab.client.ip("route add blackhole 198.19.0.0/16\n")?;
    let probe = Probe::open(&rig.lab.client, "eth0")?;
    let link = Link::new(probe.mac(), mac_of(&rig.lab.lb, "wan")?);
    for number in 0..HALF_OPEN {
        let from = std::net::Ipv4Addr::new(198, 19, 0, number as u8 + 1);
        let syn = Tcp::new((40_000 + number, super::STREAM_PORT), flag::SYN);
        probe.send(&link.ip(&Ip::new(from, service.address()).tcp(&syn.options(&[2, 4, 5, 180]))))?;
    }
    let (silent, headless) = (connect(&rig, &service)?, connect(&rig, &expects)?);
    wait_for("half-open connections", SECOND, || {
        Ok((rig.weir.status()?.tcp("half_open") == u64::from(HALF_OPEN)).then_some(()))
    })?;
    for (what, connection, service, counter) in [
        ("no header", &headless, &expects, "handshake_timeouts"),
        ("no word", &silent, &service, "idle_timeouts"),
    ] {
        ensure!(end_of(connection, 3 * SECOND)? == End::Reset, "{what}: no RST");
        ensure!(of(&rig, service, counter)? == 1, "{what}: {counter} is not 1");
    }
    wait_for("half-open connections to be given up", 3 * SECOND, || {
        Ok((rig.weir.status()?.tcp("half_open") == 0).then_some(()))
    })
    .context("the handshake timeout is 1 s")?;
    let given_up = of(&rig, &service, "handshake_timeouts")?;
    ensure!(given_up == u64::from(HALF_OPEN), "{HALF_OPEN} half-open clients, {given_up} handshake timeouts");
    ensure!(server.accepted() == 1, "{} connections reached the backend", server.accepted());
    rig.emptied()?;
    drop(server);
    rig.finish()
}

/// The client's link goes down. A silent connection is found out by keep-alive, one with data by the user timeout.
fn vanishes(context: &Context) -> Result<()> {
    let service = Service {
        listener_lines: "tcp = { keep_alive = { idle = \"1s\", interval = \"1s\", probes = 2 } }\n".into(),
        ..one_backend(Family::Ipv4)
    };
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.timeouts = "tcp_user = \"2s\"\n".into();
    })?;
    let (ends, ended) = mpsc::channel();
    let server = serve(&rig, Family::Ipv4, 1, move |connection| {
        let mut word = [0u8; 1];
        let outcome = (|| -> Result<&str> {
            (&mut &connection).read_exact(&mut word)?;
            (&mut &connection).write_all(&word)?;
            if word == *b"d" {
                // far more than buffers hold: it ends by an error or not at all
                let outcome = stream::send(&connection, 1 << 30, &AtomicU64::new(0));
                ensure!(outcome.is_err(), "1 GiB was sent");
                return Ok("data");
            }
            ensure!(end_of(&connection, 10 * SECOND)? == End::Reset, "a FIN");
            Ok("silent")
        })();
        let _ = ends.send(outcome);
    })?;
    let (silent, data) = (connect(&rig, &service)?, connect(&rig, &service)?);
    stream::echo(&silent, b"s")?;
    stream::echo(&data, b"d")?;
    rig.lab.client.ip("link set eth0 down\n")?;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let outcome = ended.recv_timeout(8 * SECOND).context("a backend was not told within 8 s")?;
        seen.push(outcome?);
    }
    seen.sort_unstable();
    ensure!(seen == ["data", "silent"], "{seen:?}");
    rig.emptied()?;
    drop((silent, data, server));
    rig.finish()
}

/// Who has said all may still listen, on either side.
fn half_close(context: &Context) -> Result<()> {
    const BYTES: u64 = 3 << 20;
    let service = Service {
        listener_lines: "timeouts = { half_close = \"1s\" }\n".into(),
        ..one_backend(Family::Ipv4)
    };
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let (is_over, over) = mpsc::channel::<()>();
    let over = Mutex::new(over);
    let server = serve(&rig, Family::Ipv4, 1, move |connection| {
        let mut word = [0u8; 1];
        let _ = (|| -> Result<()> {
            (&mut &connection).read_exact(&mut word)?;
            match &word {
                // the client ends first: all its bytes, then ours
                b"c" => {
                    let length = stream::receive(&connection, u64::MAX)?;
                    ensure!(length == BYTES, "{length}");
                    stream::send(&connection, BYTES, &AtomicU64::new(0))?;
                }
                // we end first
                b"s" => {
                    stream::send(&connection, BYTES, &AtomicU64::new(0))?;
                    connection.shutdown(Shutdown::Write)?;
                    let length = stream::receive(&connection, u64::MAX)?;
                    // the proof that all came goes another way than the closed one: no proof, a RST
                    if length != BYTES {
                        socket2::SockRef::from(&connection).set_linger(Some(Duration::ZERO))?;
                    }
                }
                // nobody says anything more, until the test is over
                _ => {
                    let _ = end_of(&connection, 10 * SECOND);
                    let _ = over.lock().map(|over| over.recv_timeout(10 * SECOND));
                }
            }
            Ok(())
        })();
    })?;
    let client_first = connect(&rig, &service)?;
    (&client_first).write_all(b"c")?;
    stream::send(&client_first, BYTES, &AtomicU64::new(0))?;
    client_first.shutdown(Shutdown::Write)?;
    let received = stream::receive(&client_first, u64::MAX).context("after the client's FIN")?;
    ensure!(received == BYTES, "{received} of {BYTES} bytes came after the client's FIN");
    let server_first = connect(&rig, &service)?;
    (&server_first).write_all(b"s")?;
    let received = stream::receive(&server_first, u64::MAX).context("before the server's FIN")?;
    ensure!(received == BYTES, "{received} of {BYTES} bytes came before the server's FIN");
    // silence, but not for as long as the timeout allows
    interrupt::pause(Duration::from_millis(300))?;
    stream::send(&server_first, BYTES, &AtomicU64::new(0)).context("after the server's FIN")?;
    server_first.shutdown(Shutdown::Write)?;
    let silent = connect(&rig, &service)?;
    (&silent).write_all(b"x")?;
    silent.shutdown(Shutdown::Write)?;
    ensure!(end_of(&silent, 3 * SECOND)? == End::Reset, "half closed and silent: no RST");
    let count = until(&rig, &service, "half_close_timeouts", SECOND, |count| count > 0)?;
    ensure!(count == 1, "half_close_timeouts {count}");
    ensure!(
        rig.weir.status()?.upstream(&service.name, "server_resets", |_| true) == 0,
        "a RST of the server"
    );
    drop((client_first, server_first, silent, is_over));
    let status = rig.weir.status()?;
    ensure!(status.upstream(&service.name, "bytes_in", |_| true) >= 2 * BYTES, "bytes are missing");
    drop(server);
    finish(rig)
}

/// A RST of either side reaches the other, in silence and in the middle of data.
fn resets(context: &Context) -> Result<()> {
    let service = one_backend(Family::Ipv6);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let (ends, ended) = mpsc::channel();
    let server = serve(&rig, Family::Ipv6, 1, move |connection: TcpStream| {
        let mut word = [0u8; 1];
        if (&mut &connection)
            .read_exact(&mut word)
            .and_then(|()| (&mut &connection).write_all(&word))
            .is_err()
        {
            return;
        }
        // a RST overtakes what is still on its way: where the server sends it, the client says first that it has the word
        let is_told = |connection: &TcpStream| (&mut &*connection).read_exact(&mut [0]).is_ok();
        match &word {
            b"r" if is_told(&connection) => {
                let _ = stream::reset(connection);
            }
            b"d" if is_told(&connection) => {
                let _ = stream::send(&connection, 1 << 20, &AtomicU64::new(0));
                let _ = stream::reset(connection);
            }
            b"b" => {
                let outcome = stream::send(&connection, 1 << 30, &AtomicU64::new(0));
                let _ = ends.send(if outcome.is_err() { Ok(End::Reset) } else { Ok(End::Finished) });
            }
            _ => {
                let _ = ends.send(end_of(&connection, 2 * SECOND));
            }
        }
    })?;
    for word in [b"r", b"d"] {
        let client = connect(&rig, &service)?;
        stream::echo(&client, word)?;
        (&client).write_all(b"!")?;
        ensure!(end_of(&client, 2 * SECOND)? == End::Reset, "the server's RST did not reach the client");
    }
    for word in [b"q", b"b"] {
        let client = connect(&rig, &service)?;
        stream::echo(&client, word)?;
        stream::reset(client)?;
        let seen = ended.recv_timeout(3 * SECOND).context("the server was not told")??;
        ensure!(seen == End::Reset, "the client's RST became a FIN");
    }
    let status = rig.emptied()?;
    let of_clients = status.proxy(&service.name, "client_resets");
    let of_servers = status.upstream(&service.name, "server_resets", |_| true);
    ensure!((of_clients, of_servers) == (2, 2), "{of_clients} resets of clients, {of_servers} of servers");
    ensure!(status.tcp("resets_received") >= 4, "resets_received {}", status.tcp("resets_received"));
    drop(server);
    rig.finish()
}
