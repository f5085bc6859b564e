//! Connections on which nothing happens for long: keep-alive holds them, the idle timeout ends them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{connect, finish, of, serve_everywhere, streams, until};
use crate::config::Service;
use crate::interrupt;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::stream::{self, End, end_of};

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("proxy/idle/keep-alive", keep_alive), Scenario::new("proxy/idle/timeout", timeout)]
}

/// Silent for several keep-alive periods, then alive, as an ssh session is.
fn keep_alive(context: &Context) -> Result<()> {
    let alive = "tcp = { keep_alive = { idle = \"1s\", interval = \"1s\", probes = 2 } }\n";
    let service = Service { listener_lines: alive.into(), pool_lines: alive.into(), ..streams(Family::Ipv4) };
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let sessions = (0..20).map(|_| connect(&rig, &service)).collect::<Result<Vec<_>>>()?;
    for round in 0..2 {
        for (number, session) in sessions.iter().enumerate() {
            stream::echo(session, format!("key {round} {number}").as_bytes())?;
        }
        let before = rig.weir.status()?.tcp("segments_out");
        interrupt::pause(Duration::from_millis(3_500))?;
        let probes = rig.weir.status()?.tcp("segments_out") - before;
        // 40 connections, probed after 1, 2 and 3 seconds of silence
        ensure!((40..=200).contains(&probes), "{probes} segments were sent in silence");
    }
    for session in &sessions {
        stream::echo(session, b"exit").context("after two silences")?;
    }
    ensure!(of(&rig, &service, "connections_active")? == 20, "not 20 connections");
    drop(sessions);
    let status = rig.emptied()?;
    ensure!(status.proxy(&service.name, "idle_timeouts") == 0, "idle timeouts");
    drop(servers);
    rig.finish()
}

/// The idle timeout ends both connections and says so; traffic in either direction starts it anew.
fn timeout(context: &Context) -> Result<()> {
    let service = Service {
        listener_lines: "timeouts = { idle = \"1s\", half_close = \"500ms\" }\n".into(),
        ..streams(Family::Ipv6)
    };
    let rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv6, stream::serve_echo)?;
    let (silent, talking) = (connect(&rig, &service)?, connect(&rig, &service)?);
    stream::echo(&silent, b"last words")?;
    for _ in 0..6 {
        stream::echo(&talking, b"still here")?;
        interrupt::pause(Duration::from_millis(300))?;
    }
    ensure!(end_of(&silent, Duration::from_secs(2))? == End::Reset, "no RST after the idle timeout");
    ensure!(until(&rig, &service, "idle_timeouts", Duration::from_secs(1), |count| count > 0)? == 1, "more");
    stream::echo(&talking, b"and still")?;
    ensure!(rig.weir.status()?.tcp("resets_timeout") > 0, "no RST was counted for a timeout");
    ensure!(end_of(&talking, Duration::from_secs(3))? == End::Reset, "no RST after the idle timeout");
    drop(servers);
    finish(rig)
}
