//! kill -9 of either process.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::rig::{Rig, who};
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::topology::lab::{Family, Io};
use crate::traffic::http;

const AT_ONCE: usize = 4;
const BETWEEN: u64 = 60;
/// The bench asks for one second; tests allow ten times as much.
const BACK: Duration = Duration::from_secs(10);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("crash/ctlplane", ctlplane),
        Scenario::new("crash/dataplane/nat", |context| dataplane(context, Mode::Nat)),
        Scenario::new("crash/dataplane/fullnat", |context| dataplane(context, Mode::Fullnat)),
        Scenario::new("crash/dataplane/dsr", |context| dataplane(context, Mode::Dsr)),
        Scenario::new("crash/both", both),
    ]
}

/// Without ctlplane nothing happens to traffic, and it comes back to the generation that it left.
fn ctlplane(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let backend = format!("{}/app-1", service.name);
    rig.weir.weir(&["backend", "weight", &backend, "40"])?;
    rig.wait_until_adopted()?;
    let before = rig.weir.status()?;
    let client = rig.client();
    let (tally, ()) = http::load_while(&client, service.target(), AT_ONCE, |load| {
        load.more(BETWEEN)?;
        rig.weir.ctlplane.kill()?;
        load.more(BETWEEN)?;
        // the command line reads shared memory by itself, and says that something is missing
        let output = rig.weir.cli(&["status", "--json"]).output()?;
        ensure!(output.status.code() == Some(1), "status without ctlplane ended with {}", output.status);
        let status = rig.weir.status()?;
        ensure!(status.generation == before.generation, "status shows generation {}", status.generation);
        rig.weir.ctlplane.start_again()?;
        wait_for("ctlplane to come back", BACK, || {
            Ok(rig.weir.cli(&["backend", "list"]).output()?.status.success().then_some(()))
        })?;
        load.more(BETWEEN)
    })?;
    tally.must_be_clean()?;
    let after = rig.weir.status()?;
    ensure!(
        after.generation == before.generation,
        "it left at generation {} and came back with {}",
        before.generation,
        after.generation
    );
    let weight = after.backend(&service.name, "app-1").map(|backend| backend.weight);
    ensure!(weight == Some(40), "the weight set by hand is now {weight:?}");
    ensure!(
        after.dropped("no_backend") == 0 && after.port("wan", "rx_missed") == 0,
        "{}",
        after.drops_in_words()
    );
    rig.finish()
}

/// Killed, the pool changed meanwhile, ctlplane killed too: started again alone, it serves from the last snapshot, and
/// an established connection goes on.
fn dataplane(context: &Context, mode: Mode) -> Result<()> {
    let service = Service::new(mode, Protocol::Tcp, Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let mut kept = rig.connect_to(&service, "app-2")?;
    let before = rig.weir.status()?.generation;
    rig.weir.kill_dataplane()?;
    // nobody acks, so the exit code may complain; what counts is what was published
    rig.weir.cli(&["backend", "drain", &format!("{}/app-2", service.name)]).output()?;
    wait_for("the change to be published", BACK, || {
        Ok((rig.weir.status()?.generation > before).then_some(()))
    })?;
    rig.weir.ctlplane.kill()?;
    let restart = Instant::now();
    rig.weir.restart_dataplane(&rig.lab)?;
    wait_for("the dataplane to serve again", BACK, || {
        rig.weir.dataplane.must_run()?;
        Ok(rig.weir.try_status()?.is_some_and(|status| status.serving()).then_some(()))
    })?;
    let back = restart.elapsed();
    ensure!(who(&mut kept)? == "app-2", "an established connection left its backend");
    let after = http::load(&rig.lab.client, service.target(), BETWEEN, AT_ONCE)?;
    after.must_be_clean()?;
    ensure!(after.of("app-2") == 0, "the drained backend got new connections: {:?}", after.answers);
    let recovered = rig.weir.status()?.worker_sum("flows_recovered");
    ensure!(recovered > 0, "no flow was recovered");
    ensure!(back < BACK, "it took {back:?} to serve again");
    rig.weir.ctlplane.start_again()?;
    wait_for("ctlplane to come back", BACK, || {
        Ok(rig.weir.cli(&["backend", "list"]).output()?.status.success().then_some(()))
    })?;
    drop(kept);
    rig.finish()
}

/// Both at once, three times in a row.
fn both(context: &Context) -> Result<()> {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv6);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let mut kept = rig.connect(&service)?;
    let name = who(&mut kept)?;
    for _ in 0..3 {
        rig.weir.ctlplane.kill()?;
        rig.weir.kill_dataplane()?;
        rig.weir.restart_dataplane(&rig.lab)?;
        rig.weir.ctlplane.start_again()?;
        rig.weir.wait_until_serving(&rig.lab)?;
        ensure!(who(&mut kept)? == name, "an established connection left its backend");
        http::load(&rig.lab.client, service.target(), BETWEEN, AT_ONCE)?.must_be_clean()?;
    }
    drop(kept);
    rig.finish()
}
