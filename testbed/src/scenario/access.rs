//! Who may begin flows: prefix lists, rates and limits per source, in L4 and where connections end in Weir.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol as Ip, Socket, Type};

use super::rig::Rig;
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::topology::lab::{CLIENT, Family, Io};
use crate::topology::namespace::Namespace;
use crate::traffic::exchange::Client;
use crate::traffic::http::load_while;

/// A second client of each family, beside the lab's own.
const OTHER: [&str; 2] = ["198.18.0.66", "2001:db8:18::66"];
/// Shorter than the time to a SYN's first repetition: what waits so long was not answered.
const SILENCE: Duration = Duration::from_millis(700);
/// Port of the listener of HTTP.
const HTTP_PORT: u16 = 8_081;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for workers in [1u32, 2] {
        scenarios
            .push(Scenario::new(format!("access/lists/{workers}"), move |context| lists(context, workers)));
        scenarios
            .push(Scenario::new(format!("access/rate/{workers}"), move |context| rate(context, workers)));
        scenarios.push(Scenario::new(format!("access/connections/{workers}"), move |context| {
            connections(context, workers)
        }));
        scenarios.push(Scenario::new(format!("access/connections/{workers}/restart"), move |context| {
            counted_again(context, workers)
        }));
    }
    scenarios
}

/// The lab with the second client, and listeners that all have these lines.
fn rig(context: &Context, workers: u32, lines: &str, lists: &str) -> Result<Rig> {
    let service = |protocol, family| Service {
        listener_lines: lines.to_owned(),
        ..Service::new(Mode::Nat, protocol, family)
    };
    let services = vec![
        service(Protocol::Tcp, Family::Ipv4),
        service(Protocol::Tcp, Family::Ipv6),
        service(Protocol::Udp, Family::Ipv4),
    ];
    let http = format!(
        "\n[[listener]]\nname = \"http\"\nvip = \"ipv4-1\"\nprotocol = \"http\"\nport = {HTTP_PORT}\nmode = \"proxy\"\n\
         pool = \"nat-tcp-ipv4\"\n{lines}{lists}"
    );
    let rig = Rig::start_with(context, Io::AfXdp, services, |config| {
        // one round over a small table is short, so that what ended is soon given back
        let table = |text: &str| text.replace("65536", "1024");
        config.dataplane = table(&config.dataplane).replace("workers = 1", &format!("workers = {workers}"));
        config.timeouts = "tcp_closing = \"300ms\"\n".to_owned();
        config.more = http;
    })?;
    let [v4, v6] = OTHER;
    rig.lab.client.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"))?;
    Ok(rig)
}

fn other(target: SocketAddr) -> Result<IpAddr> {
    let [v4, v6] = OTHER;
    Ok(if target.is_ipv4() { v4 } else { v6 }.parse()?)
}

fn own(target: SocketAddr) -> IpAddr {
    if target.is_ipv4() { CLIENT.0.into() } else { CLIENT.1.into() }
}

/// Listeners of TCP with where clients connect.
fn streams(rig: &Rig) -> Vec<(String, SocketAddr)> {
    let tcp = rig.config.services.iter().filter(|service| service.protocol == Protocol::Tcp);
    let mut all: Vec<_> = tcp.map(|service| (service.name.clone(), service.target())).collect();
    let http = rig.config.services.first().map(|service| SocketAddr::new(service.address(), HTTP_PORT));
    all.extend(http.map(|target| ("http".to_owned(), target)));
    all
}

/// Connects from that address; `None` where nobody answers.
fn connect(client: &Namespace, from: IpAddr, target: SocketAddr) -> Result<Option<TcpStream>> {
    client.run(|| -> Result<Option<TcpStream>> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Ip::TCP))?;
        socket.bind(&SocketAddr::new(from, 0).into()).with_context(|| format!("bind {from}"))?;
        match socket.connect_timeout(&target.into(), SILENCE) {
            Ok(()) => Ok(Some(socket.into())),
            Err(error) if error.kind() == std::io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error).with_context(|| format!("connect from {from} to {target}")),
        }
    })?
}

/// A connection that serves.
fn served(client: &Namespace, from: IpAddr, target: SocketAddr) -> Result<Client> {
    let stream =
        connect(client, from, target)?.with_context(|| format!("{from} was not let in to {target}"))?;
    let mut exchange = Client::of(stream);
    get(&mut exchange)?;
    Ok(exchange)
}

fn get(exchange: &mut Client) -> Result<()> {
    let answer = exchange.get("/")?;
    ensure!(answer.status == 200, "status {}", answer.status);
    Ok(())
}

/// Whether nobody answers any of those who connect, all at once; the first that was let in.
fn unanswered(client: &Namespace, tries: &[(String, SocketAddr)]) -> Result<()> {
    std::thread::scope(|scope| {
        let tries: Vec<_> = tries
            .iter()
            .map(|(name, target)| (name, scope.spawn(|| connect(client, other(*target)?, *target))))
            .collect();
        for (name, thread) in tries {
            let outcome = thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            ensure!(outcome.is_none(), "{name}: the denied client was let in");
        }
        Ok(())
    })
}

/// Sends datagrams from that address, each from a new port; how many were answered. Waits for all, or as long as an answer may take.
fn datagrams(client: &Namespace, from: IpAddr, target: SocketAddr, count: usize) -> Result<usize> {
    client.run(|| -> Result<usize> {
        let mut sockets = (0..count)
            .map(|_| -> Result<std::net::UdpSocket> {
                let socket = std::net::UdpSocket::bind((from, 0))?;
                socket.connect(target)?;
                socket.set_nonblocking(true)?;
                socket.send(b"?")?;
                Ok(socket)
            })
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        while !sockets.is_empty() && start.elapsed() < SILENCE {
            sockets.retain(|socket| socket.recv(&mut [0; 64]).is_err());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(count - sockets.len())
    })?
}

fn udp(rig: &Rig) -> Result<(String, SocketAddr)> {
    let udp = rig.config.services.iter().find(|service| service.protocol == Protocol::Udp);
    udp.map(|service| (service.name.clone(), service.target())).context("no listener of UDP")
}

/// Whom a list denies hears nothing and is counted; a list is changed under load, and established flows don't notice.
fn lists(context: &Context, workers: u32) -> Result<()> {
    let list = |deny: &str| format!("\n[[access_list]]\nname = \"clients\"\ndefault = \"allow\"\n{deny}");
    let [v4, v6] = OTHER;
    let denies = list(&format!("deny = [\"{v4}\", \"{v6}/128\"]\n"));
    let mut rig = rig(context, workers, "access = \"clients\"\n", &denies)?;
    let client = rig.client();
    unanswered(&client, &streams(&rig))?;
    for (name, target) in streams(&rig) {
        served(&client, own(target), target).with_context(|| name.clone())?;
        ensure!(rig.weir.status()?.listener(&name, "access_denied") > 0, "{name}: no denial was counted");
    }
    let (name, target) = udp(&rig)?;
    ensure!(datagrams(&client, other(target)?, target, 3)? == 0, "{name}: the denied client was answered");
    ensure!(datagrams(&client, own(target), target, 3)? == 3, "{name}: the allowed client was not answered");
    ensure!(rig.weir.status()?.listener(&name, "access_denied") == 3, "{name}: denials are not counted");

    // the same list from a file, the other client let in, then denied again: its connections stay
    let without = rig.config.more.replace(&denies, "");
    let path = rig.run.path("list.txt");
    rig.config.more = format!("{without}{}", list(&format!("files = [\"{}\"]\n", path.display())));
    let all = streams(&rig);
    let loaded = all.first().context("no listener")?.1;
    let (tally, kept) = load_while(&rig.client(), loaded, 4, |progress| {
        std::fs::write(&path, "# nobody\nallow 198.18.0.0/16\n")?;
        rig.apply()?;
        let mut kept = Vec::new();
        for (_, target) in &all {
            kept.push(served(&client, other(*target)?, *target)?);
        }
        for round in 0..20u8 {
            let noise: String =
                (0..=255u8).map(|host| format!("deny 198.19.{round}.{host} # {round}\n")).collect();
            std::fs::write(&path, format!("deny {v4}\ndeny {v6}\n{noise}"))?;
            rig.apply()?;
            progress.more(20)?;
            for exchange in &mut kept {
                get(exchange).with_context(|| format!("an established connection, round {round}"))?;
            }
        }
        Ok(kept)
    })?;
    tally.must_be_clean()?;
    unanswered(&client, &all).context("denied by file")?;
    let explained = rig.weir.weir(&["explain", "access", "nat-tcp-ipv4", v4])?;
    ensure!(explained.contains("denied") && explained.contains(v4), "explained: {explained}");
    drop(kept);
    // idle connections to backends stay
    rig.finish()
}

/// A source gets its burst at once and its rate after it, whichever worker it meets; others are not held back.
fn rate(context: &Context, workers: u32) -> Result<()> {
    const BURST: usize = 12;
    const RATE: usize = 4;
    let lines = format!(
        "rate = [{{ prefix = \"{}/32\", per_second = {RATE}, burst = {BURST}, per = \"source\" }}]\n",
        OTHER[0]
    );
    // IPv6 clients have no rate here, which is warned of
    let rig = rig(context, workers, &lines, "")?;
    let client = rig.client();
    let (name, target) = udp(&rig)?;
    let from = other(target)?;
    let asked = 60;
    let answered = datagrams(&client, from, target, asked)?;
    ensure!((BURST..=BURST + RATE).contains(&answered), "{name}: {answered} of {asked} were let in");
    let counted = rig.weir.status()?.listener(&name, "access_rate");
    ensure!(counted == (asked - answered) as u64, "{name}: {counted} counted, {} refused", asked - answered);
    ensure!(datagrams(&client, own(target), target, asked)? == asked, "{name}: others were held back");
    // connections that end in Weir, all at once
    let place = streams(&rig).into_iter().find(|(name, _)| name == "http").context("no http")?.1;
    let open = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..40).map(|_| scope.spawn(|| connect(&client, from, place))).collect();
        tries
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let got = open.iter().flatten().count();
    ensure!((BURST..=BURST + 2 * RATE).contains(&got), "http: {got} connections were let in");
    ensure!(rig.weir.status()?.listener("http", "access_rate") >= 40 - got as u64, "http: not counted");
    drop(open);
    // idle connections to backends stay
    rig.finish()
}

/// Connections that a source may have.
const MOST: usize = 5;

/// As many as a source may have, on that listener.
fn most(client: &Namespace, (name, target): &(String, SocketAddr)) -> Result<Vec<Client>> {
    let open = (0..MOST).map(|_| served(client, other(*target)?, *target));
    open.collect::<Result<Vec<_>>>().with_context(|| name.clone())
}

/// Waits until nothing is left of what ended on these listeners.
fn given_back(rig: &Rig, places: &[(String, SocketAddr)]) -> Result<()> {
    wait_for("ended connections to be given back", Duration::from_secs(15), || {
        let status = rig.weir.status()?;
        let left = places.iter().map(|(name, _)| {
            status.listener(name, "flows_active") + status.proxy(name, "connections_active")
        });
        Ok((left.sum::<u64>() == 0).then_some(()))
    })
}

/// A source has as many connections as it may, others have theirs; what ends is given back.
fn connections(context: &Context, workers: u32) -> Result<()> {
    let rig = rig(context, workers, &format!("connections_per_source = {MOST}\n"), "")?;
    let client = rig.client();
    let everywhere = streams(&rig);
    let open = everywhere.iter().map(|place| most(&client, place)).collect::<Result<Vec<_>>>()?;
    unanswered(&client, &everywhere).context("one too many")?;
    for (name, target) in &everywhere {
        let counted = rig.weir.status()?.listener(name, "access_connections");
        ensure!(counted > 0, "{name}: no refusal was counted");
        served(&client, own(*target), *target).with_context(|| format!("{name}: another source"))?;
    }
    drop(open);
    given_back(&rig, &everywhere)?;
    let again = everywhere.iter().map(|place| most(&client, place)).collect::<Result<Vec<_>>>();
    drop(again.context("again")?);
    // idle connections to backends stay
    rig.finish()
}

/// Flows are counted on after the dataplane was killed, and those that were there before their limit came.
fn counted_again(context: &Context, workers: u32) -> Result<()> {
    let mut rig = rig(context, workers, &format!("connections_per_source = {MOST}\n"), "")?;
    let client = rig.client();
    let flows: Vec<_> = streams(&rig).into_iter().filter(|(name, _)| name != "http").collect();
    let mut open = flows.iter().map(|place| most(&client, place)).collect::<Result<Vec<_>>>()?;
    rig.weir.kill_dataplane()?;
    rig.weir.restart_dataplane(&rig.lab)?;
    rig.weir.wait_until_serving(&rig.lab)?;
    open.iter_mut().flatten().try_for_each(get).context("after the restart")?;
    unanswered(&client, &flows).context("forgotten by the restart")?;
    drop(open);
    given_back(&rig, &flows)?;
    let &(_, place) = flows.first().context("no listener")?;
    let lines = format!("connections_per_source = {MOST}\n");
    let toml = rig.config.toml().replace(&lines, "");
    rig.weir.apply(&toml)?;
    rig.wait_until_adopted()?;
    let from = other(place)?;
    let open = (0..MOST + 2).map(|_| served(&client, from, place)).collect::<Result<Vec<_>>>()?;
    rig.apply()?;
    ensure!(connect(&client, from, place)?.is_none(), "flows from before the limit are not counted");
    drop(open);
    rig.finish()
}
