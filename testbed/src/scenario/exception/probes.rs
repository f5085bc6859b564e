//! Health checks by the vip: what a socket of the kernel's sends from a port that is written down reaches the one backend that it is
//! written down for, by the listener's mode, and the backend's own answer comes back.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hugepages::segment::{Access, AtomicWords, SegmentDir};
use socket2::{Domain, Socket, Type};
use weir_abi::probes::{FIRST_PORT, NAME, Probe, WORDS};

use super::{exception, own_lan, ready};
use crate::config::{Mode, Protocol, Service};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{BACKENDS, Family, Io, backend_name};

const PATIENCE: Duration = Duration::from_secs(3);
/// Shorter than the time to a SYN's first repetition: what waits so long was not answered.
const SILENCE: Duration = Duration::from_millis(700);

pub(super) fn scenarios() -> Vec<Scenario> {
    [Mode::Dsr, Mode::Ipip, Mode::Gue]
        .into_iter()
        .map(|mode| {
            Scenario::new(format!("exception/probe/{}", mode.name()), move |context| probe(context, mode))
        })
        .collect()
}

/// Who answers at the vip's port, asked from that local port by the backends' network.
fn ask(rig: &Rig, service: &Service, from: u16, patience: Duration) -> Result<String> {
    rig.lab.lb.run(|| -> Result<String> {
        let domain = if service.family == Family::Ipv4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind_device(Some(b"weir-lan"))?;
        socket.bind(&SocketAddr::new(own_lan(service.family), from).into())?;
        socket.connect_timeout(&service.target().into(), patience)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut socket = std::net::TcpStream::from(socket);
        socket.write_all(b"GET / HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
        body.with_context(|| format!("{text:?} has no body"))
    })?
}

fn indices(rig: &Rig, service: &Service) -> Result<(u16, Vec<u32>)> {
    let text = rig.weir.cli(&["status", "--json"]).output()?.stdout;
    let status: serde_json::Value = serde_json::from_slice(&text)?;
    let named = |list: &serde_json::Value, name: &str| -> Option<serde_json::Value> {
        list.as_array()?.iter().find(|entry| entry.get("name").is_some_and(|found| found == name)).cloned()
    };
    let index = |entry: &serde_json::Value| entry.get("index").and_then(serde_json::Value::as_u64);
    let listener = named(&status["listeners"], &service.name).context("the listener is not in the status")?;
    let pool = named(&status["pools"], &service.name).context("the pool is not in the status")?;
    let backends = (1..=BACKENDS).map(|number| {
        let backend = named(&pool["backends"], &backend_name(number)).context("a backend is not there")?;
        Ok(index(&backend).context("it has no index")? as u32)
    });
    Ok((index(&listener).context("it has no index")? as u16, backends.collect::<Result<_>>()?))
}

fn probe(context: &Context, mode: Mode) -> Result<()> {
    let services: Vec<Service> =
        Family::BOTH.into_iter().map(|family| Service::new(mode, Protocol::Tcp, family)).collect();
    let mut rig = Rig::start(context, Io::AfXdp, services.clone())?;
    ready(&mut rig)?;
    // drained: no flow may go there, and a check must all the same
    rig.weir.weir(&[
        "backend",
        "drain",
        &format!("{}/{}", services.first().context("none")?.name, backend_name(2)),
    ])?;
    let directory = SegmentDir::open_existing(rig.weir.segments())?;
    let table: AtomicWords = directory.map_atomics(NAME, WORDS, Access::Create)?;
    let mut port = FIRST_PORT;
    for service in &services {
        let of = |error: &str| format!("{}: {error}", service.name);
        let (listener, backends) = indices(&rig, service)?;
        for round in 0..2 {
            for (number, &backend) in (1..).zip(&backends) {
                port += 1;
                let word = table.get(usize::from(port)).context("no word")?;
                word.store(Probe { listener, backend }.word(), Ordering::Release);
                let name = ask(&rig, service, port, PATIENCE)
                    .with_context(|| of(&format!("round {round}, {number}")))?;
                ensure!(name == backend_name(number), "{}", of(&format!("{name} answered for {number}")));
                word.store(0, Ordering::Release);
            }
        }
        // from a port that is not written down
        let refused = exception(&rig, "lan")?.count("kernel_refused");
        if let Ok(name) = ask(&rig, service, port + 1_000, SILENCE) {
            bail!("{}", of(&format!("{name} answered a stranger")));
        }
        let after = exception(&rig, "lan")?.count("kernel_refused");
        ensure!(after > refused, "{}", of("nothing was refused"));
    }
    let status = rig.settle()?;
    ensure!(
        status.worker_sum("flows_created") == 0,
        "{} flows were made",
        status.worker_sum("flows_created")
    );
    rig.finish()
}
