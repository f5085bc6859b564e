//! Checks of the other types: a connection, a datagram, a command.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{all_up, becomes, detected, recovered, spared, used};
use crate::config::{Mode, Protocol, Service};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{BACKENDS, Family, Io, Lab, backend, backend_name};
use crate::traffic::stream::Server;

const CHECK_PORT: u16 = 9_201;
const PATIENT: usize = 3;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("health/tcp", tcp),
        Scenario::new("health/udp", udp),
        Scenario::new("health/exec", exec),
    ]
}

fn start(context: &Context, family: Family, check: &str) -> Result<(Rig, Service)> {
    let times = super::TIMES;
    let service = Service {
        pool_lines: format!("health_check = {{ {check}, {times} }}\n"),
        ..Service::new(Mode::Fullnat, Protocol::Tcp, family)
    };
    let rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.timeouts = "tcp_closing = \"1s\"\ntcp_embryonic = \"2s\"\n".into();
    })?;
    Ok((rig, service))
}

fn comes_and_goes(
    rig: &mut Rig,
    service: &Service,
    mut set: impl FnMut(&Rig, bool) -> Result<()>,
) -> Result<()> {
    all_up(rig)?;
    for _ in 0..2 {
        set(rig, false)?;
        becomes(rig, service, PATIENT, "down", detected())?;
        spared(rig, service, PATIENT)?;
        set(rig, true)?;
        becomes(rig, service, PATIENT, "up", recovered())?;
        used(rig, service, PATIENT)?;
    }
    Ok(())
}

fn tcp(context: &Context) -> Result<()> {
    for family in Family::BOTH {
        let (mut rig, service) = start(context, family, &format!("type = \"tcp\", port = {CHECK_PORT}"))?;
        let listen = |lab: &Lab, number: usize| {
            let place = SocketAddr::new(backend(family, number), CHECK_PORT);
            Server::start(&lab.backends[number - 1], place, drop)
        };
        let mut servers =
            (1..=BACKENDS).map(|number| listen(&rig.lab, number).map(Some)).collect::<Result<Vec<_>>>()?;
        comes_and_goes(&mut rig, &service, |rig, on| {
            servers[PATIENT - 1] = if on { Some(listen(&rig.lab, PATIENT)?) } else { None };
            Ok(())
        })?;
        rig.finish()?;
    }
    Ok(())
}

/// Answers "ping" with "pong", as long as it may.
struct Pong {
    may: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pong {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let place = SocketAddr::new(backend(Family::Ipv4, number), CHECK_PORT);
        let socket = lab.backends[number - 1]
            .run(|| UdpSocket::bind(place))?
            .with_context(|| format!("bind {place}"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let (may, stop) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (may_now, stops) = (Arc::clone(&may), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stops.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if may_now.load(Ordering::Relaxed) && &buffer[..length] == b"ping" {
                    // lost datagrams are what checks are made for
                    let _ = socket.send_to(b"\x01pong\x02", from);
                }
            }
        });
        Ok(Self { may, stop, thread: Some(thread) })
    }
}

impl Drop for Pong {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn udp(context: &Context) -> Result<()> {
    let check =
        format!("type = \"udp\", port = {CHECK_PORT}, payload = \"ping\", expect = \"hex:01706f6e6702\"");
    let (mut rig, service) = start(context, Family::Ipv4, &check)?;
    let servers = (1..=BACKENDS).map(|number| Pong::start(&rig.lab, number)).collect::<Result<Vec<_>>>()?;
    comes_and_goes(&mut rig, &service, |_, on| {
        servers[PATIENT - 1].may.store(on, Ordering::Relaxed);
        Ok(())
    })?;
    rig.finish()
}

fn exec(context: &Context) -> Result<()> {
    let flag = std::env::temp_dir().join(format!("weir-health-{}", std::process::id()));
    let command = format!("test ! -e {}-$WEIR_BACKEND", flag.display());
    let (mut rig, service) = start(
        context,
        Family::Ipv4,
        &format!("type = \"exec\", command = [\"/bin/sh\", \"-c\", \"{command}\"]"),
    )?;
    let file = std::path::PathBuf::from(format!("{}-{}", flag.display(), backend_name(PATIENT)));
    let outcome = comes_and_goes(&mut rig, &service, |_, on| {
        if on {
            std::fs::remove_file(&file)?
        } else {
            std::fs::write(&file, "")?
        }
        Ok(())
    });
    let _ = std::fs::remove_file(&file);
    outcome?;
    rig.finish()
}
