//! The node: taken out of service as a whole, ended, started again and taken back; and SIGTERM, which drains what is proxied.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{PATIENCE, WEB, Waiting, asking, finishes, refused, refuses, slow};
use crate::config::{Config, Mode, Protocol, Service};
use crate::interrupt::wait_for;
use crate::scenario::http::{IDLE, Scratch, Site, Text};
use crate::scenario::rig::who;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::Family;

/// How late slow answers are.
const SLOW_MS: u32 = 1_000;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("drain/node", node), Scenario::new("drain/sigterm", sigterm)]
}

/// Adds a listener of L4.
fn with_flows(config: &mut Config) -> Service {
    let service = Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv4).on_vip(2);
    config.timeouts = "tcp_closing = \"500ms\"\n".into();
    config.services.push(service.clone());
    service
}

/// `weir drain --wait --stop`, the start after it, and `weir ready`.
fn node(context: &Context) -> Result<()> {
    let scratch = Scratch::new()?;
    let told = scratch.file("told");
    let hook = |word: &str| format!("[\"/bin/sh\", \"-c\", \"echo {word} $WEIR_INSTANCE >> {told}\"]");
    let mut text = Text::new().listener("web", WEB, "app", "").scripted("app", IDLE);
    text.0 += &format!("\n[drain]\non_drain = {}\non_ready = {}\n", hook("withdrawn"), hook("announced"));
    let mut service = None;
    let mut site = Site::start_with(context, text, |config| service = Some(with_flows(config)))?;
    let service = service.context("no service")?;
    let instance = site.rig.run.name().to_owned();
    let mut kept = site.rig.connect(&service)?;
    let on = who(&mut kept)?;
    let (asked, drain) = asking(&mut site, "/who", 4, |site| {
        wait_for("the load", PATIENCE, || Ok((site.backends.seen_of("/who").len() > 300).then_some(())))?;
        let mut late = (0..3).map(|_| slow(site, SLOW_MS)).collect::<Result<Vec<_>>>()?;
        let mut drain =
            Waiting::start(site.rig.weir.cli(&["drain", "--wait", "--timeout", "10s", "--stop"]))?;
        wait_for("the listeners to be drained", PATIENCE, || Ok(refused(site, WEB).ok()))?;
        refuses(&site.rig.lab.client, service.target())?;
        ensure!(who(&mut kept)? == on, "an established flow left its backend");
        let text = std::fs::read_to_string(&told).context("on_drain did not run")?;
        ensure!(text == format!("withdrawn {instance}\n"), "on_drain wrote {text:?}");
        let screen = site.rig.weir.cli(&["status"]).output()?;
        let screen = String::from_utf8_lossy(&screen.stdout).into_owned();
        ensure!(screen.contains("drain"), "the status says nothing of it:\n{screen}");
        for client in &mut late {
            finishes(client)?;
        }
        ensure!(drain.waits()?, "the drain ended while a flow was open");
        Ok(drain)
    })?;
    ensure!(asked.told + asked.between == 4, "{asked:?}");
    drop(kept);
    let text = drain.good()?;
    ensure!(text.contains("the node has no active flows or connections"), "{text}");
    ensure!(text.contains("has ended"), "{text}");
    let ended = wait_for("the end of weir-dataplane", PATIENCE, || site.rig.weir.dataplane.exited())?;
    ensure!(ended.success(), "weir-dataplane ended with {ended}");

    site.rig.weir.restart_dataplane(&site.rig.lab)?;
    site.rig.weir.wait_until_serving(&site.rig.lab)?;
    refused(&site, WEB).context("after the start: the node is still drained")?;
    refuses(&site.rig.lab.client, service.target()).context("after the start")?;
    site.rig.weir.weir(&["ready"])?;
    site.get(WEB, "/who")?.must_be(200, "").context("the node is ready")?;
    let mut back = site.rig.connect(&service)?;
    who(&mut back).context("the node is ready")?;
    wait_for("on_ready to have run", PATIENCE, || {
        let text = std::fs::read_to_string(&told)?;
        Ok(text.ends_with(&format!("announced {instance}\n")).then_some(()))
    })?;
    drop(back);
    site.finish()
}

/// SIGTERM under load: requests in flight are answered, new connections refused, flows of L4 go on meanwhile; then it ends, and
/// sooner than its grace.
fn sigterm(context: &Context) -> Result<()> {
    const GRACE: Duration = Duration::from_secs(5);
    let text = Text::new().listener("web", WEB, "app", "").scripted("app", IDLE);
    let mut service = None;
    let mut site = Site::start_with(context, text, |config| service = Some(with_flows(config)))?;
    let service = service.context("no service")?;
    let mut kept = site.rig.connect(&service)?;
    let on = who(&mut kept)?;
    let (asked, (start, ended)) = asking(&mut site, "/who", 6, |site| {
        wait_for("the load", PATIENCE, || Ok((site.backends.seen_of("/who").len() > 500).then_some(())))?;
        let mut late = (0..5).map(|_| slow(site, SLOW_MS)).collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        site.rig.weir.dataplane.terminate()?;
        wait_for("new connections to be refused", PATIENCE, || Ok(refused(site, WEB).ok()))?;
        ensure!(who(&mut kept)? == on, "an established flow left its backend");
        let mut new = site.rig.connect(&service).context("L4 goes on while the proxy is drained")?;
        who(&mut new)?;
        for (number, client) in late.iter_mut().enumerate() {
            finishes(client).with_context(|| format!("slow client {number}"))?;
        }
        let ended = wait_for("the end of weir-dataplane", 2 * GRACE, || site.rig.weir.dataplane.exited())?;
        Ok((start, ended))
    })?;
    ensure!(ended.success(), "it ended with {ended}: {}", site.rig.weir.dataplane.last_words(10));
    ensure!(start.elapsed() < GRACE, "it ended after {:?}, nothing was left long before", start.elapsed());
    ensure!(asked.told + asked.between == 6, "{asked:?}");
    println!("      beside the signal: {asked:?}; it ended after {:.1?}", start.elapsed());
    site.rig.weir.restart_dataplane(&site.rig.lab)?;
    site.rig.weir.wait_until_serving(&site.rig.lab)?;
    ensure!(who(&mut kept).context("a flow over the restart")? == on, "it left its backend");
    site.get(WEB, "/who")?.must_be(200, "").context("after the start")?;
    drop(kept);
    site.finish()
}
