//! Backends come, go, change weight and drain under load: established flows stay, no connection fails.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::rig::{Rig, who};
use super::{Context, Scenario};
use crate::config::{Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::topology::lab::{Family, Io};
use crate::traffic::http;

/// Threads of a load.
pub(super) const AT_ONCE: usize = 4;
/// Requests that pass before and after each change.
pub(super) const BETWEEN: u64 = 60;

pub(super) fn scenarios() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for mode in [Mode::Nat, Mode::Dsr, Mode::Fullnat] {
        scenarios.push(Scenario::new(format!("change/add-and-remove/{}", mode.name()), move |context| {
            add_and_remove(context, mode)
        }));
        scenarios.push(Scenario::new(format!("change/weight/{}", mode.name()), move |context| {
            weight(context, mode)
        }));
        scenarios.push(Scenario::new(format!("change/drain/{}", mode.name()), move |context| {
            drain(context, mode)
        }));
    }
    scenarios.push(Scenario::new("change/a-bad-file-changes-nothing", bad_file));
    scenarios
}

fn rig(context: &Context, mode: Mode) -> Result<(Rig, Service)> {
    let service = Service::new(mode, Protocol::Tcp, Family::Ipv4);
    Ok((start(context, &service)?, service))
}

fn start(context: &Context, service: &Service) -> Result<Rig> {
    Rig::start_with(context, Io::AfXdp, vec![service.clone()], |config| {
        config.timeouts = "tcp_closing = \"1s\"\ntcp_embryonic = \"2s\"\n".into();
    })
}

/// The service that [`come_and_go`] begins with.
pub(super) fn two_of_three(service: Service) -> Service {
    Service { backends: vec![(1, 100), (2, 100)], ..service }
}

fn add_and_remove(context: &Context, mode: Mode) -> Result<()> {
    let service = two_of_three(Service::new(mode, Protocol::Tcp, Family::Ipv4));
    let mut rig = start(context, &service)?;
    come_and_go(&mut rig, &service)?;
    rig.finish()
}

/// Adds the third backend to two, takes the second away; a connection on each survives, and the removed one is forgotten once its
/// connections have ended.
pub(super) fn come_and_go(rig: &mut Rig, service: &Service) -> Result<()> {
    let mut first = rig.connect_to(service, "app-1")?;
    let mut second = rig.connect_to(service, "app-2")?;
    let client = rig.client();
    let (tally, ()) = http::load_while(&client, service.target(), AT_ONCE, |load| {
        for backends in [vec![(1, 100), (2, 100), (3, 100)], vec![(1, 100), (3, 100)]] {
            load.more(BETWEEN)?;
            rig.config.services[0].backends = backends;
            rig.apply()?;
        }
        load.more(BETWEEN)
    })?;
    tally.must_be_clean()?;
    ensure!(tally.of("app-3") > 0, "the added backend got nothing: {:?}", tally.answers);
    let after = http::load(&rig.lab.client, service.target(), BETWEEN, AT_ONCE)?;
    after.must_be_clean()?;
    ensure!(after.of("app-2") == 0, "the removed backend got new connections: {:?}", after.answers);
    ensure!(who(&mut first)? == "app-1", "a connection left its backend");
    ensure!(who(&mut second)? == "app-2", "a connection of the removed backend left it");
    drop((first, second));
    wait_for("the removed backend to go once its connections ended", Duration::from_secs(30), || {
        Ok(rig.weir.status()?.backend(&service.name, "app-2").is_none().then_some(()))
    })
}

fn weight(context: &Context, mode: Mode) -> Result<()> {
    let (mut rig, service) = rig(context, mode)?;
    shift_weight(&mut rig, &service)?;
    rig.finish()
}

/// A weight of a fifth takes a fifth of the new connections, and moves no old one.
pub(super) fn shift_weight(rig: &mut Rig, service: &Service) -> Result<()> {
    let mut kept = rig.connect_to(service, "app-1")?;
    let client = rig.client();
    let (tally, ()) = http::load_while(&client, service.target(), AT_ONCE, |load| {
        load.more(BETWEEN)?;
        for (backend, weight) in [("app-1", "10"), ("app-2", "20"), ("app-3", "20")] {
            rig.weir.weir(&["backend", "weight", &format!("{}/{backend}", service.name), weight])?;
        }
        rig.wait_until_adopted()?;
        load.more(BETWEEN)
    })?;
    tally.must_be_clean()?;
    let after = http::load(&rig.lab.client, service.target(), 600, AT_ONCE)?;
    after.must_be_clean()?;
    // 600 draws at 1 in 5: 120 on average, standard deviation 10
    let share = after.of("app-1");
    ensure!((75..=165).contains(&share), "weight 10 of 50 got {share} of 600: {:?}", after.answers);
    ensure!(who(&mut kept)? == "app-1", "a connection left its backend");
    Ok(())
}

/// A drained backend keeps its connection and gets no new one, until it is ready again.
fn drain(context: &Context, mode: Mode) -> Result<()> {
    let (mut rig, service) = rig(context, mode)?;
    let backend = format!("{}/app-2", service.name);
    let mut kept = rig.connect_to(&service, "app-2")?;
    let client = rig.client();
    let (tally, during) = http::load_while(&client, service.target(), AT_ONCE, |load| {
        load.more(BETWEEN)?;
        rig.weir.weir(&["backend", "drain", &backend])?;
        rig.wait_until_adopted()?;
        let before = rig.weir.status()?;
        let flows = |status: &crate::status::Status| {
            status
                .backend(&service.name, "app-2")
                .and_then(|backend| backend.counters.get("flows_total").copied())
                .unwrap_or(0)
        };
        let at_drain = flows(&before);
        load.more(BETWEEN)?;
        let new = flows(&rig.weir.status()?) - at_drain;
        ensure!(who(&mut kept)? == "app-2", "a connection of the drained backend left it");
        rig.weir.weir(&["backend", "ready", &backend])?;
        rig.wait_until_adopted()?;
        load.more(BETWEEN)?;
        Ok(new)
    })?;
    tally.must_be_clean()?;
    ensure!(during == 0, "the drained backend got {during} new flows");
    let after = http::load(&rig.lab.client, service.target(), BETWEEN, AT_ONCE)?;
    ensure!(after.of("app-2") > 0, "the backend is ready again and gets nothing: {:?}", after.answers);
    ensure!(who(&mut kept)? == "app-2", "a connection left its backend");
    drop(kept);
    rig.finish()
}

/// `weir check` and `weir apply` say what is wrong, and where; what runs keeps running.
fn bad_file(context: &Context) -> Result<()> {
    let (mut rig, service) = rig(context, Mode::Nat)?;
    let before = rig.weir.status()?.generation;
    let good = rig.config.toml();
    let bad = good.replace("mode = \"nat\"", "mode = \"natt\"").replace("weight = 100", "wieght = 100");
    let path = rig.run.path("bad.toml");
    std::fs::write(&path, &bad)?;
    for action in ["check", "apply"] {
        let output = rig.weir.cli(&[action, &path.display().to_string()]).output()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        ensure!(!output.status.success(), "weir {action} took a bad file");
        for word in ["natt", "wieght", "bad.toml:"] {
            ensure!(said.contains(word), "weir {action} does not mention {word}: {said}");
        }
    }
    if rig.weir.status()?.generation != before {
        bail!("a bad file was published");
    }
    http::load(&rig.lab.client, service.target(), BETWEEN, AT_ONCE)?.must_be_clean()?;
    std::fs::write(&path, &good)?;
    rig.weir.weir(&["check", &path.display().to_string()])?;
    rig.wait_until_adopted()?;
    rig.finish()
}
