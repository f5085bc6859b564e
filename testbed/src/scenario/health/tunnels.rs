//! A backend that has its address, but not what the listener's mode needs of it: found out by probes of the vip.

use anyhow::{Result, ensure};

use super::{all_up, becomes, detected, recovered, rows, spared, used};
use crate::config::{Mode, Protocol, Service};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::tunnel::Decapsulator;

const PATIENT: usize = 2;

pub(super) fn scenarios() -> Vec<Scenario> {
    [Mode::Dsr, Mode::Ipip, Mode::Gue]
        .into_iter()
        .map(|mode| {
            Scenario::new(format!("health/tunnel/{}", mode.name()), move |context| lacks(context, mode))
        })
        .collect()
}

/// Takes what the mode needs from the backend, or gives it back.
fn set(rig: &mut Rig, service: &Service, on: bool) -> Result<()> {
    let namespace = &rig.lab.backends[PATIENT - 1];
    match (service.mode.is_tunnel(), on) {
        (true, false) => drop(rig.decapsulators.remove(PATIENT - 1)),
        (true, true) => rig.decapsulators.insert(PATIENT - 1, Decapsulator::start(namespace)?),
        (false, false) => drop(namespace.ip(&format!("addr del {}/32 dev lo\n", service.address()))?),
        (false, true) => drop(namespace.ip(&format!("addr replace {}/32 dev lo\n", service.address()))?),
    }
    Ok(())
}

fn lacks(context: &Context, mode: Mode) -> Result<()> {
    let times = super::TIMES;
    let service = Service {
        pool_lines: format!("health_check = {{ type = \"http\", {times} }}\n"),
        ..Service::new(mode, Protocol::Tcp, Family::Ipv4)
    };
    let mut rig = Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.timeouts = "tcp_closing = \"1s\"\ntcp_embryonic = \"2s\"\n".into();
    })?;
    all_up(&mut rig)?;
    ensure!(rows(&rig)?.iter().all(|row| row.through == "tunnel"), "{:?}", rows(&rig)?);
    for _ in 0..2 {
        set(&mut rig, &service, false)?;
        becomes(&mut rig, &service, PATIENT, "down", detected())?;
        spared(&rig, &service, PATIENT)?;
        set(&mut rig, &service, true)?;
        becomes(&mut rig, &service, PATIENT, "up", recovered())?;
        used(&rig, &service, PATIENT)?;
    }
    rig.finish()
}
