//! Changes under load: drain, weights, maintenance, backends and listeners that go. Established connections go on while
//! their clients can be heard.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{connect, finish, serve, serve_everywhere, service, streams};
use crate::config::{Mode, Service};
use crate::interrupt::{self, wait_for};
use crate::scenario::change::{self, AT_ONCE, BETWEEN};
use crate::scenario::rig::{Rig, who};
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::http;
use crate::traffic::stream::{self, End, end_of};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("proxy/change/drain", drain),
        Scenario::new("proxy/change/weight", weight),
        Scenario::new("proxy/change/maint-reset", |context| maint(context, "reset")),
        Scenario::new("proxy/change/maint-keep", |context| maint(context, "keep")),
        Scenario::new("proxy/change/remove-backend", remove_backend),
        Scenario::new("proxy/change/remove-listener", remove_listener),
        Scenario::new("proxy/change/remove-vip", |context| lose(context, None)),
        Scenario::new("proxy/change/to-nat", |context| lose(context, Some(Mode::Nat))),
        Scenario::new("proxy/change/to-fullnat", |context| lose(context, Some(Mode::Fullnat))),
    ]
}

/// A drained backend finishes its connections and gets no new one, until it is ready again.
fn drain(context: &Context) -> Result<()> {
    let service = service(Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let backend = format!("{}/app-2", service.name);
    let mut kept = rig.connect_to(&service, "app-2")?;
    let client = rig.client();
    let (tally, during) = http::load_while(&client, service.target(), AT_ONCE, |load| {
        load.more(BETWEEN)?;
        rig.weir.weir(&["backend", "drain", &backend])?;
        rig.wait_until_adopted()?;
        let of_backend = |rig: &Rig, counter: &str| -> Result<u64> {
            Ok(rig.weir.status()?.upstream(&service.name, counter, |name| name == "app-2"))
        };
        // a SYN may have been on its way: it is over when only the connection that stays is left
        wait_for("the load to leave the drained backend", Duration::from_secs(5), || {
            Ok((of_backend(&rig, "active")? == 1).then_some(()))
        })?;
        let at_drain = of_backend(&rig, "connects")?;
        load.more(BETWEEN)?;
        let new = of_backend(&rig, "connects")? - at_drain;
        ensure!(who(&mut kept)? == "app-2", "a connection of the drained backend left it");
        rig.weir.weir(&["backend", "ready", &backend])?;
        rig.wait_until_adopted()?;
        load.more(BETWEEN)?;
        Ok(new)
    })?;
    tally.must_be_clean()?;
    ensure!(during == 0, "the drained backend got {during} new connections");
    let after = http::load(&rig.lab.client, service.target(), BETWEEN, AT_ONCE)?;
    ensure!(after.of("app-2") > 0, "the backend is ready again and gets nothing: {:?}", after.answers);
    ensure!(who(&mut kept)? == "app-2", "a connection left its backend");
    drop(kept);
    finish(rig)
}

/// A weight of a fifth takes a fifth of the new connections, and moves no old one.
fn weight(context: &Context) -> Result<()> {
    let service = service(Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    change::shift_weight(&mut rig, &service)?;
    finish(rig)
}

/// A backend in maintenance: its connections are reset, or kept, as the listener says; others never notice.
fn maint(context: &Context, on_down: &str) -> Result<()> {
    let service = Service {
        listener_lines: format!("on_down = \"{on_down}\"\n"),
        pool_lines: "algorithm = \"round-robin\"\n".into(),
        ..streams(Family::Ipv4)
    };
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let kept = (0..30).map(|_| connect(&rig, &service)).collect::<Result<Vec<TcpStream>>>()?;
    kept.iter().try_for_each(|connection| stream::echo(connection, b"before"))?;
    rig.weir.weir(&["backend", "maint", &format!("{}/app-2", service.name)])?;
    rig.wait_until_adopted()?;
    if on_down == "reset" {
        wait_for("the backend's connections to end", Duration::from_secs(3), || {
            let active = rig.weir.status()?.upstream(&service.name, "active", |name| name == "app-2");
            Ok((active == 0).then_some(()))
        })?;
    } else {
        // no condition tells that nothing will happen: this is far beyond the time that a reset takes
        interrupt::pause(Duration::from_millis(500))?;
    }
    let mut reset = 0;
    for connection in &kept {
        if let Err(error) = stream::echo(connection, b"after") {
            let kind = error.chain().find_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
            ensure!(
                matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)),
                "it ended otherwise than by a RST: {error:#}"
            );
            reset += 1;
        }
    }
    let expected = if on_down == "reset" { 10 } else { 0 };
    ensure!(reset == expected, "{reset} of 30 connections were reset, {expected} should be");
    let before = servers[1].accepted();
    for _ in 0..10 {
        stream::echo(&connect(&rig, &service)?, b"new")?;
    }
    ensure!(servers[1].accepted() == before, "a backend in maintenance got new connections");
    drop((kept, servers));
    finish(rig)
}

/// A removed backend's connections go on until they end; then it is forgotten.
fn remove_backend(context: &Context) -> Result<()> {
    let service = change::two_of_three(service(Family::Ipv4));
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    change::come_and_go(&mut rig, &service)?;
    finish(rig)
}

/// A removed listener's connections go on; new ones are refused.
fn remove_listener(context: &Context) -> Result<()> {
    let (goes, stays) = (service(Family::Ipv4), service(Family::Ipv4).on_vip(2));
    let mut rig = Rig::start(context, Io::AfXdp, vec![goes.clone(), stays.clone()])?;
    let mut kept = rig.connect_to(&goes, "app-3")?;
    let client = rig.client();
    let (tally, ()) = http::load_while(&client, stays.target(), AT_ONCE, |load| {
        load.more(BETWEEN)?;
        rig.config.services.remove(0);
        // the vip stays, for another port
        let other = Service { port: "81".into(), name: "other".into(), ..goes.clone() };
        rig.config.services.push(other);
        rig.apply()?;
        load.more(BETWEEN)
    })?;
    tally.must_be_clean().context("of the listener that stays")?;
    for _ in 0..3 {
        ensure!(who(&mut kept)? == "app-3", "a connection of the removed listener left its backend");
    }
    let target = goes.target();
    let new = rig.lab.client.run(|| TcpStream::connect_timeout(&target, Duration::from_millis(500)))?;
    if new.is_ok() {
        bail!("the removed listener took a new connection");
    }
    drop(kept);
    rig.emptied()?;
    rig.finish()
}

/// The vip goes, or L4 balances the listener from now on: no segment of a client comes for its sessions any more. Silent
/// ones, one in mid-transfer and one whose client does not read are reset on both sides, and nothing of them is left.
fn lose(context: &Context, to: Option<Mode>) -> Result<()> {
    const SILENT: usize = 20;
    let goes = Service { backends: vec![(1, 100)], ..streams(Family::Ipv4) };
    let stays = service(Family::Ipv4).on_vip(2);
    let mut rig = Rig::start(context, Io::AfXdp, vec![goes.clone(), stays.clone()])?;
    let (ends, ended) = mpsc::channel();
    let server = serve(&rig, Family::Ipv4, 1, move |connection| {
        let _ = ends.send(answer(&connection));
    })?;
    let open = |word: &[u8]| -> Result<TcpStream> {
        let client = connect(&rig, &goes)?;
        stream::echo(&client, word)?;
        Ok(client)
    };
    let silent = (0..SILENT).map(|_| open(b"s")).collect::<Result<Vec<_>>>()?;
    let (stuck, reading) = (open(b"d")?, open(b"d")?);
    let client = rig.client();
    let (tally, ()) = http::load_while(&client, stays.target(), AT_ONCE, |load| {
        let copy = reading.try_clone()?;
        let reader = std::thread::spawn(move || end_of(&copy, Duration::from_secs(20)));
        load.more(BETWEEN)?;
        match to {
            None => drop(rig.config.services.remove(0)),
            Some(mode) => rig.config.services[0].mode = mode,
        }
        rig.apply()?;
        for (number, client) in silent.iter().chain([&stuck]).enumerate() {
            let end = end_of(client, Duration::from_secs(2)).with_context(|| format!("client {number}"))?;
            ensure!(end == End::Reset, "client {number} saw a FIN");
        }
        let Ok(end) = reader.join() else { bail!("the reader panicked") };
        ensure!(end.context("in mid-transfer")? == End::Reset, "a FIN in mid-transfer");
        for _ in 0..SILENT + 2 {
            let end = ended.recv_timeout(Duration::from_secs(2)).context("a backend was not told")?;
            ensure!(end? == End::Reset, "a backend saw a FIN");
        }
        load.more(BETWEEN)
    })?;
    tally.must_be_clean().context("of the listener that stays")?;
    drop((silent, stuck, reading));
    let status = rig.emptied()?;
    let row = status.listeners.iter().find(|row| row.name == goes.name);
    match to {
        None => {
            ensure!(row.is_none(), "the removed listener is still in the status");
            let target = goes.target();
            let patience = Duration::from_millis(500);
            let new = rig.lab.client.run(|| TcpStream::connect_timeout(&target, patience))?;
            ensure!(new.is_err(), "the removed vip took a new connection");
        }
        Some(mode) => {
            let served = connect(&rig, &goes)?;
            stream::echo(&served, b"s").with_context(|| format!("a new connection by {}", mode.name()))?;
            ensure!(rig.weir.status()?.tcp("established") == 0, "Weir still terminates connections");
        }
    }
    // and back
    rig.config.services = vec![goes.clone(), stays];
    rig.apply()?;
    let again = connect(&rig, &goes)?;
    stream::echo(&again, b"s").context("the listener is a proxy again")?;
    ensure!(rig.weir.status()?.tcp("established") == 2, "the new connection is not the proxy's");
    drop((again, server));
    finish(rig)
}

/// Echoes a word and, after a `d`, sends more than anything between holds; how the connection ended.
fn answer(mut connection: &TcpStream) -> Result<End> {
    let mut word = [0u8; 1];
    connection.read_exact(&mut word)?;
    connection.write_all(&word)?;
    if word != *b"d" {
        return end_of(connection, Duration::from_secs(20));
    }
    connection.set_write_timeout(Some(Duration::from_secs(20)))?;
    match stream::send(connection, 1 << 40, &AtomicU64::new(0)) {
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
            Ok(End::Reset)
        }
        other => bail!("a body without an end ended by {other:?}"),
    }
}
