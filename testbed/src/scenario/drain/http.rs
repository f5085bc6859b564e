//! HTTP: a backend and a listener are drained under a load of kept connections.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{AT_ONCE, PATIENCE, WEB, Waiting, asking, finishes, refused, slow};
use crate::interrupt::wait_for;
use crate::scenario::http::{Site, Text, load};
use crate::scenario::{Context, Scenario};
use crate::traffic::exchange::get;
use crate::traffic::stream::End;

/// A listener that stays in service.
const OTHER: u16 = 81;
/// How late slow answers are: long enough for all that is looked at meanwhile.
const SLOW_MS: u32 = 1_200;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("drain/backend", backend), Scenario::new("drain/listener", listener)]
}

/// Nobody notices that a backend is drained; `--wait` ends with its last request, and its kept connections are gone.
fn backend(context: &Context) -> Result<()> {
    let pool = "algorithm = \"round-robin\"\nhttp = { idle = \"3s\" }\n";
    let text = Text::new().listener("web", WEB, "app", "").scripted("app", pool);
    let mut site = Site::start(context, text)?;
    let of = |site: &Site, counter: &str| -> Result<u64> {
        Ok(site.status()?.backend_http("app", counter, |name| name == "app-2"))
    };
    let (outcome, ()) = load::beside(&mut site, (WEB, "/who"), 4, |site, load| {
        load.more(300)?;
        // as many as there are backends, and some more, since others take their turns as well
        let mut late = (0..9).map(|_| slow(site, SLOW_MS)).collect::<Result<Vec<_>>>()?;
        let has_one = site.backends.seen_of("/wait").iter().any(|seen| seen.backend == "app-2");
        ensure!(has_one, "no slow request went to app-2");
        let drain = ["backend", "drain", "app/app-2", "--wait", "--timeout", "10s"];
        let mut drain = Waiting::start(site.rig.weir.cli(&drain))?;
        wait_for("only slow requests to be left", AT_ONCE, || {
            let status = site.status()?;
            let idle = status.backend_http("app", "idle", |name| name == "app-2");
            let active = status.upstream("app", "active", |name| name == "app-2");
            let slow = site.backends.seen_of("/wait").iter().filter(|seen| seen.backend == "app-2").count();
            Ok((idle == 0 && active == slow as u64).then_some(()))
        })?;
        ensure!(drain.waits()?, "the drain ended while requests were in flight");
        let before = of(site, "requests")?;
        load.more(300)?;
        ensure!(of(site, "requests")? == before, "the drained backend got requests");
        for client in &mut late {
            client.response("GET")?.must_be(200, "").context("a slow request")?;
        }
        let text = drain.good()?;
        ensure!(text.contains("app/app-2 has no active flows or connections"), "{text}");
        load.more(300)?;
        ensure!(of(site, "requests")? == before, "the drained backend got requests");
        ensure!(of(site, "idle")? == 0, "connections to the drained backend are kept");
        // who was slow goes on as any other
        for client in &mut late {
            client.get("/who")?.must_be(200, "").context("on a slow request's connection")?;
        }
        site.rig.weir.weir(&["backend", "ready", "app/app-2"])?;
        wait_for("requests to the backend that is back", PATIENCE, || {
            Ok((of(site, "requests")? > before + 50).then_some(()))
        })
    })?;
    println!("      {} requests, none failed; the slowest took {:.1?}", outcome.answered, outcome.slowest);
    site.finish()
}

/// Idle clients end at once, requests in flight are answered and told that it was the last, who has not asked yet may, and who
/// comes is refused; another listener of the same pool never notices.
fn listener(context: &Context) -> Result<()> {
    let text = Text::new()
        .listener("web", WEB, "app", "")
        .listener("other", OTHER, "app", "")
        .scripted("app", "http = { idle = \"3s\" }\n");
    let mut site = Site::start(context, text)?;
    let (outcome, ()) = load::beside(&mut site, (OTHER, "/who"), 2, |site, _| {
        let mut idle = (0..20).map(|_| site.client(WEB)).collect::<Result<Vec<_>>>()?;
        for client in &mut idle {
            client.get("/who")?.must_be(200, "")?;
        }
        let mut late = (0..5).map(|_| slow(site, SLOW_MS)).collect::<Result<Vec<_>>>()?;
        let mut silent = (0..2).map(|_| site.client(WEB)).collect::<Result<Vec<_>>>()?;
        let (asked, mut drain) = asking(site, "/who", 4, |site| {
            wait_for("the load", PATIENCE, || Ok((site.backends.seen_of("/who").len() > 500).then_some(())))?;
            let drain = ["listener", "drain", "web", "--wait", "--timeout", "10s"];
            let drain = Waiting::start(site.rig.weir.cli(&drain))?;
            for (number, client) in idle.iter_mut().enumerate() {
                let end = client.ended(AT_ONCE).with_context(|| format!("idle client {number}"))?;
                ensure!(end == End::Finished, "idle client {number} saw a RST");
            }
            Ok(drain)
        })?;
        ensure!(asked.told + asked.between == 4, "{asked:?}");
        println!("      beside the drain: {asked:?}");
        // within its second
        let [first, second] = silent.as_mut_slice() else { anyhow::bail!("not two silent clients") };
        first.send(get("/who", ""))?;
        finishes(first).context("who had connected and not asked")?;
        refused(site, WEB)?;
        ensure!(drain.waits()?, "the drain ended while requests were in flight");
        let listed = site.rig.weir.weir(&["listener", "list"])?;
        let line = listed.lines().find(|line| line.contains("web")).unwrap_or_default();
        ensure!(line.contains("drain"), "the list says nothing of it:\n{listed}");
        for (number, client) in late.iter_mut().enumerate() {
            finishes(client).with_context(|| format!("slow client {number}"))?;
        }
        second.rest(Duration::from_secs(2)).context("who connected and never asked")?;
        let text = drain.good()?;
        ensure!(text.contains("listener web has no active flows or connections"), "{text}");
        let status = site.status()?;
        ensure!(status.listener("web", "drained") > 0, "refused connections are not counted");
        refused(site, WEB)?;
        site.rig.weir.weir(&["listener", "ready", "web"])?;
        let mut back = site.client(WEB)?;
        for _ in 0..3 {
            back.get("/who")?.must_be(200, "").context("the listener is ready again")?;
        }
        Ok(())
    })?;
    println!("      {} requests to the other listener, none failed", outcome.answered);
    site.finish()
}
