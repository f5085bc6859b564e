//! Too much for the kernel, no interface, somebody else's, and what somebody changed.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use weir_os::tun::{Layer, Tun};

use super::{PORT, any, exception, own, ready, server};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::http;
use crate::traffic::stream::{Server, connect, echo, serve_echo};

/// Packets per second that the kernel gets in the flood.
const RATE: u64 = 500;
/// How long it is flooded.
const FLOOD: Duration = Duration::from_secs(2);
/// How long a repair may take: a look a second.
const REPAIR: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("exception/rate-limit", rate_limit),
        Scenario::new("exception/off", off),
        Scenario::new("exception/taken", taken),
        Scenario::new("exception/repair", repair),
    ]
}

fn service() -> Service {
    Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4)
}

/// A flood to Weir's own address costs what its rate allows, and each packet beyond it is counted.
fn rate_limit(context: &Context) -> Result<()> {
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service()], |config| {
        config.dataplane += &format!("exception_rate = {RATE}\n");
    })?;
    ready(&mut rig)?;
    let _listening = Server::start(&rig.lab.lb, server(Family::Ipv4), serve_echo)?;
    let before = exception(&rig, "wan")?;
    let start = Instant::now();
    let sent = rig.lab.client.run(|| -> Result<u64> {
        let socket = UdpSocket::bind("198.18.0.1:0")?;
        let mut sent = 0;
        while start.elapsed() < FLOOD {
            sent +=
                u64::from(socket.send_to(b"nobody listens", SocketAddr::new(own(Family::Ipv4), 9)).is_ok());
        }
        Ok(sent)
    })??;
    let seconds = start.elapsed().as_secs_f64();
    let status = rig.settle()?;
    let after = exception(&rig, "wan")?;
    let punted = after.count("punted") - before.count("punted");
    // and what it began with
    let most = (RATE as f64 * (seconds + 1.0)) as u64 + 32;
    ensure!(punted <= most, "{punted} packets in {seconds:.1} s, {most} are allowed");
    ensure!(punted > RATE, "only {punted} packets came through");
    let limited = after.count("rate_limited");
    // answers to Weir's own questions are shown to the kernel as copies, which are no packets of their own
    let dropped = status.dropped("punt_limited");
    let of_both = limited + exception(&rig, "lan")?.count("rate_limited");
    ensure!(dropped > 0 && dropped <= of_both, "{after:?}, {}", status.drops_in_words());
    ensure!(limited + punted <= sent + 100, "{sent} sent, {punted} taken, {limited} refused");
    std::thread::sleep(Duration::from_millis(100));
    let stream = connect(&rig.lab.client, server(Family::Ipv4))?;
    echo(&stream, b"after the flood")?;
    http::load(&rig.lab.client, service().target(), 20, 2)?.must_be_clean()?;
    drop(stream);
    rig.finish()
}

/// Turned off: counted drops, no interface, and one that was there goes with the next start.
fn off(context: &Context) -> Result<()> {
    let mut rig = Rig::start(context, Io::AfXdp, vec![service()])?;
    ready(&mut rig)?;
    for lines in [&mut rig.config.wan, &mut rig.config.lan] {
        *lines += "exception = \"off\"\n";
    }
    rig.weir.kill_dataplane()?;
    ensure!(rig.lab.lb.ip("link show dev weir-wan\n").is_ok(), "the interface went with its process");
    // nobody acks, so the exit code may complain
    let _ = rig.weir.apply(&rig.config.toml());
    rig.weir.restart_dataplane(&rig.lab)?;
    rig.weir.wait_until_serving(&rig.lab)?;
    for name in ["weir-wan", "weir-lan"] {
        ensure!(rig.lab.lb.ip(&format!("link show dev {name}\n")).is_err(), "{name} is still there");
    }
    wait_for("the rules to go", REPAIR, || {
        let rules = rig.lab.lb.ip("rule show\n")?;
        Ok((!rules.contains("70000")).then_some(()))
    })?;
    let status = rig.weir.status()?;
    ensure!(status.ports.iter().all(|port| port.exception.is_none()), "{:?}", status.ports);
    let nobody = rig
        .lab
        .client
        .run(|| TcpStream::connect_timeout(&server(Family::Ipv4), Duration::from_millis(500)))?;
    ensure!(nobody.is_err(), "somebody answered");
    http::load(&rig.lab.client, service().target(), 20, 2)?.must_be_clean()?;
    let status = rig.settle()?;
    ensure!(status.dropped("punt") > 0, "{}", status.drops_in_words());
    rig.finish()
}

/// The interface's name is another process's: one warning, counted drops, and traffic goes on; once it is free it is taken.
fn taken(context: &Context) -> Result<()> {
    let mut rig = Rig::start(context, Io::AfXdp, vec![service()])?;
    ready(&mut rig)?;
    rig.weir.kill_dataplane()?;
    let other = rig.lab.lb.run(|| Tun::open("weir-wan", Layer::Ethernet, true))??;
    rig.weir.restart_dataplane(&rig.lab)?;
    rig.weir.wait_until_serving(&rig.lab)?;
    http::load(&rig.lab.client, service().target(), 20, 2)?.must_be_clean()?;
    ensure!(
        !exception(&rig, "wan")?.attached && exception(&rig, "lan")?.attached,
        "{:?}",
        exception(&rig, "wan")
    );
    let words = rig.weir.dataplane.last_words(200);
    let warnings = words.matches("no exception path by weir-wan").count();
    ensure!(warnings == 1 && words.contains("another process has it"), "{warnings} warnings:\n{words}");
    drop(other);
    ready(&mut rig)?;
    let _listening = Server::start(&rig.lab.lb, server(Family::Ipv4), serve_echo)?;
    let stream = connect(&rig.lab.client, server(Family::Ipv4))?;
    echo(&stream, b"taken back")?;
    drop(stream);
    rig.finish()
}

/// Addresses, routes, rules, the interface itself: what somebody took away comes back.
fn repair(context: &Context) -> Result<()> {
    let mut rig = Rig::start(context, Io::AfXdp, vec![service()])?;
    ready(&mut rig)?;
    // of both families
    let listening = Server::start(&rig.lab.lb, SocketAddr::new(any(Family::Ipv6), PORT), serve_echo)?;
    for damage in [
        "addr del 198.18.0.254/24 dev weir-wan\n",
        "addr del 2001:db8:18::254/64 dev weir-wan\n",
        "addr add 198.18.0.77/24 dev weir-wan\n",
        "link set weir-wan down\n",
        "rule del priority 7000\n",
        "route flush dev weir-wan\n",
        "link del weir-wan\n",
    ] {
        rig.lab.lb.ip(damage).with_context(|| damage)?;
        let mut last = String::new();
        let repaired = wait_for("the repair", REPAIR, || {
            rig.weir.must_run()?;
            let addresses = rig.lab.lb.ip("addr show dev weir-wan up\n").unwrap_or_default();
            let rules = rig.lab.lb.ip("rule show\n")?;
            let routes = rig.lab.lb.ip("route show table all dev weir-wan\n").unwrap_or_default();
            let sound = addresses.contains("198.18.0.254/24")
                && addresses.contains("2001:db8:18::254/64")
                && !addresses.contains("198.18.0.77")
                && rules.contains("from 198.18.0.254 lookup")
                && routes.contains("198.18.0.0/24 table");
            last = format!("{addresses}\n{rules}\n{routes}");
            Ok(sound.then_some(()))
        });
        repaired.with_context(|| format!("after {damage}: {last}"))?;
        for family in Family::BOTH {
            let stream = connect(&rig.lab.client, server(family)).with_context(|| damage)?;
            echo(&stream, b"repaired").with_context(|| damage)?;
        }
    }
    drop(listening);
    rig.finish()
}
