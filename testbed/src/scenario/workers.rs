//! Two workers behind one RX queue: a flow stays with its owner, whichever worker its packets arrive at.

use anyhow::{Result, ensure};

use super::carry::carry;
use super::rig::{Rig, every_kind};
use super::{Context, Scenario};
use crate::config::Mode;
use crate::topology::lab::Io;

pub(super) fn scenarios() -> Vec<Scenario> {
    [Mode::Nat, Mode::Fullnat, Mode::Dsr, Mode::Gue]
        .into_iter()
        .map(|mode| {
            Scenario::new(format!("workers/two-on-one-queue/{}", mode.name()), move |context| {
                two(context, mode)
            })
        })
        .collect()
}

fn two(context: &Context, mode: Mode) -> Result<()> {
    let services = every_kind(mode);
    let mut rig = Rig::start_with(context, Io::AfXdp, services.clone(), |config| {
        config.dataplane = config.dataplane.replace("workers = 1", "workers = 2");
    })?;
    for service in &services {
        carry(&rig, service)?;
    }
    let status = rig.settle()?;
    ensure!(status.workers.len() == 2, "{} workers run", status.workers.len());
    for worker in &status.workers {
        let count = |name: &str| worker.counters.get(name).copied().unwrap_or(0);
        ensure!(count("flows_created") > 0, "worker {} owns no flow", worker.index);
        ensure!(
            count("steered_in") + count("steered_out") > 0,
            "worker {} neither gave nor got a packet",
            worker.index
        );
    }
    // a packet that met the wrong worker would have made a second flow
    let made = status.worker_sum("flows_created");
    let counted: u64 = services.iter().map(|service| status.listener(&service.name, "flows_total")).sum();
    ensure!(made == counted, "{counted} flows of listeners, {made} entries made");
    rig.finish()
}
