//! What is left at the deadline: it goes on, or is cut, as the operator says.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{AT_ONCE, WEB, Waiting, refused, slow};
use crate::scenario::http::{IDLE, Site, Text};
use crate::scenario::{Context, Scenario};
use crate::traffic::exchange::{Client, get};
use crate::traffic::stream::{End, end_of};

/// Later than all deadlines here.
const SLOW_MS: u32 = 1_500;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("drain/then-cut/listener", listener),
        Scenario::new("drain/then-cut/backend", backend),
        Scenario::new("drain/then-keep", keep),
    ]
}

/// A tunnel, which ends by itself only when its peers want it.
fn tunnel(site: &Site) -> Result<Client> {
    let mut client = site.client(WEB)?;
    let answer = client.ask(&get("/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n"))?;
    ensure!(answer.status == 101, "{answer:?}");
    talks(&mut client)?;
    Ok(client)
}

fn talks(client: &mut Client) -> Result<()> {
    client.send("word")?;
    ensure!(client.bytes(4)? == b"word", "no echo");
    Ok(())
}

/// Tunnels and unanswered requests of a listener are reset at the deadline, on both sides.
fn listener(context: &Context) -> Result<()> {
    let text = Text::new().listener("web", WEB, "app", "").scripted("app", IDLE);
    let site = Site::start(context, text)?;
    let mut tunnels = (0..3).map(|_| tunnel(&site)).collect::<Result<Vec<_>>>()?;
    let late = (0..2).map(|_| slow(&site, 20 * SLOW_MS)).collect::<Result<Vec<_>>>()?;
    let drain = ["listener", "drain", "web", "--wait", "--timeout", "700ms", "--then", "cut"];
    let start = Instant::now();
    let mut drain = Waiting::start(site.rig.weir.cli(&drain))?;
    tunnels.iter_mut().try_for_each(talks)?;
    ensure!(drain.waits()?, "cut before the deadline");
    let text = drain.good()?;
    ensure!(start.elapsed() >= Duration::from_millis(700), "cut after {:?}", start.elapsed());
    ensure!(text.contains("still has 0 flows, 5 connections after 700ms"), "{text}");
    ensure!(text.contains("cutting them") && text.contains("no active flows or connections"), "{text}");
    for (number, client) in tunnels.iter().chain(&late).enumerate() {
        ensure!(end_of(&client.stream, AT_ONCE)? == End::Reset, "client {number} saw a FIN");
    }
    refused(&site, WEB)?;
    site.rig.weir.weir(&["listener", "ready", "web"])?;
    site.get(WEB, "/who")?.must_be(200, "")?;
    site.finish()
}

/// Those of a backend are cut; those of the others are not.
fn backend(context: &Context) -> Result<()> {
    let pool = "algorithm = \"round-robin\"\nhttp = { idle = \"1s\" }\n";
    let text = Text::new().listener("web", WEB, "app", "").scripted("app", pool);
    let site = Site::start(context, text)?;
    let mut tunnels = (0..6).map(|_| tunnel(&site)).collect::<Result<Vec<_>>>()?;
    let seen = site.backends.seen_of("/upgrade");
    let is_cut: Vec<bool> = seen.iter().map(|seen| seen.backend == "app-2").collect();
    let cut = is_cut.iter().filter(|cut| **cut).count();
    ensure!(cut == 2 && seen.len() == 6, "{cut} of {} tunnels lead to app-2", seen.len());
    let drain = ["backend", "drain", "app/app-2", "--wait", "--timeout", "500ms", "--then", "cut"];
    let text = Waiting::start(site.rig.weir.cli(&drain))?.good()?;
    ensure!(text.contains("still has 0 flows, 2 connections after 500ms"), "{text}");
    for (number, (client, is_cut)) in tunnels.iter_mut().zip(is_cut).enumerate() {
        if is_cut {
            let end = end_of(&client.stream, AT_ONCE)?;
            ensure!(end == End::Reset, "client {number} of the cut backend saw a FIN");
        } else {
            talks(client)?;
        }
    }
    for _ in 0..9 {
        site.get(WEB, "/who")?.must_be(200, "")?;
    }
    ensure!(site.backends.seen_of("/who").iter().all(|seen| seen.backend != "app-2"), "it got requests");
    drop(tunnels);
    site.finish()
}

/// Without `--then cut` what is left goes on, and the exit code says that something is.
fn keep(context: &Context) -> Result<()> {
    let text = Text::new().listener("web", WEB, "app", "").scripted("app", IDLE);
    let site = Site::start(context, text)?;
    let mut kept = tunnel(&site)?;
    let drain = ["listener", "drain", "web", "--wait", "--timeout", "500ms"];
    let (code, text) = Waiting::start(site.rig.weir.cli(&drain))?.end()?;
    ensure!(code == 1, "exit code {code}: {text}");
    ensure!(text.contains("listener web still has 0 flows, 1 connection after 500ms"), "{text}");
    talks(&mut kept)?;
    refused(&site, WEB)?;
    drop(kept);
    site.finish()
}
