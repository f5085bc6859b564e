//! What else a user expects to be answered: ping, port ranges, ICMP errors, bulk data, every algorithm.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::carry::carry;
use super::rig::{Rig, every_kind, who};
use super::{Context, Scenario};
use crate::command;
use crate::config::{Mode, Protocol, Service};
use crate::supervisor::{Process, Program};
use crate::topology::lab::{BACKENDS, Family, Io, LAN, WAN, backend, vip};
use crate::traffic::servers::FILE;
use crate::traffic::{datagram, http};
use crate::weir::Options;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = vec![
        Scenario::new("reach/ping", ping),
        Scenario::new("reach/round-robin", round_robin),
        Scenario::new("reach/bulk-source-hash", bulk),
        Scenario::new("reach/curl-large-file", curl),
        Scenario::new("reach/without-hugepages", without_hugepages),
    ];
    for mode in [Mode::Nat, Mode::Dsr, Mode::Gue] {
        scenarios.push(Scenario::new(format!("reach/port-range/{}", mode.name()), move |context| {
            port_range(context, mode)
        }));
    }
    for mode in [Mode::Nat, Mode::Fullnat, Mode::Dsr] {
        scenarios.push(Scenario::new(format!("icmp/port-unreachable/{}", mode.name()), move |context| {
            unreachable(context, mode)
        }));
    }
    scenarios
}

/// VIPs and Weir's own addresses answer, small and large.
fn ping(context: &Context) -> Result<()> {
    let rig = Rig::start(context, Io::AfXdp, every_kind(Mode::Nat))?;
    let pings = [vip(Family::Ipv4, 1), vip(Family::Ipv6, 1), WAN.0.into(), WAN.1.into()]
        .map(|address| (&rig.lab.client, address))
        .into_iter()
        .chain([LAN.0.into(), LAN.1.into()].map(|address: IpAddr| (&rig.lab.backends[0], address)));
    for (from, address) in pings {
        for size in ["8", "1400"] {
            let mut command = from.command("ping");
            command.args(["-c", "3", "-i", "0.01", "-W", "2", "-s", size, &address.to_string()]);
            command::run(&mut command).with_context(|| format!("{address} with {size} bytes"))?;
        }
    }
    rig.finish()
}

/// Requests in a row go to the backends in turn, by weight.
fn round_robin(context: &Context) -> Result<()> {
    let service = Service {
        pool_lines: "algorithm = \"round-robin\"\n".into(),
        backends: vec![(1, 3), (2, 2), (3, 1)],
        ..Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4)
    };
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let tally = http::load(&rig.lab.client, service.target(), 60, 1)?;
    tally.must_be_clean()?;
    let got = ["app-1", "app-2", "app-3"].map(|name| tally.of(name));
    ensure!(got == [30, 20, 10], "weights 3, 2, 1 got {got:?} of 60");
    rig.finish()
}

/// curl fetches a megabyte through every mode, to the byte.
fn curl(context: &Context) -> Result<()> {
    let services: Vec<Service> = Mode::ALL
        .into_iter()
        .zip(1..)
        .flat_map(|(mode, number)| {
            Family::BOTH.map(|family| Service::new(mode, Protocol::Tcp, family).on_vip(number))
        })
        .collect();
    let rig = Rig::start(context, Io::AfXdp, services.clone())?;
    let original = rig.run.path("servers/file");
    let copy = rig.run.path("copy").display().to_string();
    for service in &services {
        let url = format!("http://{}{FILE}", service.target());
        let mut command = rig.lab.client.command("curl");
        command.args([
            "--silent",
            "--show-error",
            "--fail",
            "--globoff",
            "--max-time",
            "10",
            "-o",
            &copy,
            &url,
        ]);
        command::run(&mut command).with_context(|| service.name.clone())?;
        ensure!(
            std::fs::read(&copy)? == std::fs::read(&original)?,
            "{}: the file came changed",
            service.name
        );
    }
    rig.finish()
}

/// A laptop without hugepages: everything works, in ordinary memory and smaller.
fn without_hugepages(context: &Context) -> Result<()> {
    let services = every_kind(Mode::Nat);
    let options = Options { dataplane_arguments: vec!["--no-huge".into()], ..Options::default() };
    let smaller = |config: &mut crate::config::Config| {
        config.dataplane = "workers = 1\nidle = \"adaptive\"\nbuffers = 8192\n\
                            flow_table = { ipv4 = 4096, ipv6 = 4096 }\n"
            .into();
    };
    let mut rig = Rig::start_as(context, Io::AfXdp, services.clone(), smaller, &options)?;
    let mut kept = rig.connect(&services[0])?;
    let name = who(&mut kept)?;
    services.iter().try_for_each(|service| carry(&rig, service))?;
    rig.weir.kill_dataplane()?;
    rig.weir.restart_dataplane(&rig.lab)?;
    rig.weir.wait_until_serving(&rig.lab)?;
    ensure!(who(&mut kept)? == name, "a connection left its backend after a restart");
    drop(kept);
    rig.finish()
}

/// iperf3 opens two connections that must meet the same server: source-hash; then a few megabytes each way.
fn bulk(context: &Context) -> Result<()> {
    let services = Family::BOTH.map(|family| Service {
        port: "5201".into(),
        backend_port: Some(5201),
        pool_lines: "algorithm = \"source-hash\"\n".into(),
        ..Service::new(Mode::Nat, Protocol::Tcp, family)
    });
    let rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    let mut servers = Vec::new();
    for (position, namespace) in rig.lab.backends.iter().enumerate() {
        let program = Program::new(&format!("iperf3-{}", position + 1), "iperf3", &["-s"]).within(namespace);
        servers.push(Process::start(program, &rig.run.logs())?);
    }
    for (position, namespace) in rig.lab.backends.iter().enumerate() {
        let place = SocketAddr::new(backend(Family::Ipv4, position + 1), 5201);
        crate::interrupt::wait_for("iperf3 to listen", Duration::from_secs(5), || {
            namespace.run(|| std::net::TcpStream::connect(place).is_ok().then_some(()))
        })?;
    }
    for service in &services {
        for direction in [&[][..], &["-R"][..]] {
            let mut command = rig.lab.client.command("iperf3");
            command.args(["-c", &service.address().to_string(), "-n", "8M", "--connect-timeout", "5000"]);
            command::run(command.args(direction))?;
        }
    }
    drop(servers);
    rig.finish()
}

/// A range serves its first, middle and last port and nothing beside; the backend sees the port that was asked.
fn port_range(context: &Context, mode: Mode) -> Result<()> {
    let services = Family::BOTH.map(|family| Service {
        port: "\"8000-8009\"".into(),
        backend_port: None,
        ..Service::new(mode, Protocol::Udp, family)
    });
    let mut rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    let places: Vec<Vec<IpAddr>> = (1..=BACKENDS)
        .map(|number| {
            Family::BOTH
                .map(|family| if mode.rewrites() { backend(family, number) } else { vip(family, 1) })
                .to_vec()
        })
        .collect();
    let ports = [8_000u16, 8_005, 8_009];
    let servers = ports
        .iter()
        .map(|&port| datagram::Servers::start(&rig.lab, &places, port))
        .collect::<Result<Vec<_>>>()?;
    for service in &services {
        for port in ports {
            datagram::load(&rig.lab.client, SocketAddr::new(service.address(), port), 10)?.must_be_clean()?;
        }
    }
    let before = rig.weir.status()?.dropped("no_listener");
    for service in &services {
        for port in [7_999u16, 8_010] {
            let socket = datagram::socket(&rig.lab.client, SocketAddr::new(service.address(), port))?;
            socket.send(b"beside the range")?;
        }
    }
    crate::interrupt::wait_for("four drops beside the range", Duration::from_secs(5), || {
        Ok((rig.weir.status()?.dropped("no_listener") >= before + 4).then_some(()))
    })?;
    drop(servers);
    rig.settle()?;
    rig.finish()
}

/// A backend without a server says so, and the client hears it.
fn unreachable(context: &Context, mode: Mode) -> Result<()> {
    let services = Family::BOTH.map(|family| Service {
        port: "9".into(),
        backend_port: mode.rewrites().then_some(99),
        ..Service::new(mode, Protocol::Udp, family)
    });
    let rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    for service in &services {
        let socket = datagram::socket(&rig.lab.client, service.target())?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut heard = None;
        for _ in 0..4 {
            socket.send(b"anybody?")?;
            match socket.recv(&mut [0u8; 64]) {
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                    heard = Some(());
                    break;
                }
                Err(_) => {}
                Ok(length) => bail!("{}: {length} bytes from nobody", service.name),
            }
        }
        if heard.is_none() {
            let drops = rig.weir.status()?.drops_in_words();
            bail!("{}: the client never heard that the port is closed; drops: {drops}", service.name);
        }
    }
    rig.finish()
}
