//! Twenty thousand clients that keep their connections: what they cost, beside what `weir plan` says that they may.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{IDLE, Site, Text};
use crate::scenario::flood::resident_kib;
use crate::scenario::proxy::many::Holder;
use crate::scenario::{Context, Scenario};

/// Clients are processes, since one may have 20,000 descriptors here.
const PROCESSES: usize = 4;
const EACH: usize = 5_000;
const ALL: u64 = (PROCESSES * EACH) as u64;
const WEB: u16 = 80;
/// Pages that are touched for the first time whatever the number of clients: buffers, queues, the allocator's own.
const SLACK_KIB: u64 = 8 << 10;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/many", many)]
}

fn many(context: &Context) -> Result<()> {
    let text = Text::new().listener("web", WEB, "app", "").nginx("app", IDLE);
    let mut site = Site::start(context, text)?;
    let id = site.rig.weir.dataplane.id().context("the dataplane does not run")?;
    site.get(WEB, "/")?.must_be(200, "")?;
    let (before, used) = (resident_kib(id)?, memory_used(&site)?);
    let target = site.place(WEB).to_string();
    let holders = (0..PROCESSES).map(|_| Holder::start(&site.rig, &target, EACH));
    let mut holders = holders.collect::<Result<Vec<_>>>()?;
    holders.iter_mut().try_for_each(|holder| holder.expect("open"))?;
    for _ in 0..2 {
        holders.iter_mut().try_for_each(Holder::ask)?;
        holders.iter_mut().try_for_each(|holder| holder.expect("answered"))?;
    }
    let status = site.status()?;
    let (active, idle) = (status.proxy("web", "connections_active"), status.http("web", "idle_clients"));
    ensure!((active, idle) == (ALL, ALL), "{active} connections are active, {idle} idle");
    let grown = resident_kib(id)?.saturating_sub(before);
    let each = planned(&site, "idle client of HTTP")?;
    println!(
        "      {ALL} clients: resident memory grew by {grown} KiB; `weir plan` has {each} bytes for each"
    );
    ensure!(grown << 10 <= ALL * each + (SLACK_KIB << 10), "{} bytes per client", (grown << 10) / ALL);
    let held = memory_used(&site)?;
    ensure!(held <= used + (1 << 20), "{held} bytes are held for silent clients, {used} before");
    holders.iter_mut().try_for_each(Holder::end)?;
    site.rig.emptied()?;
    let left = memory_used(&site)?;
    ensure!(left <= used, "{left} bytes are held after all have left, {used} before");
    let refused = site.status()?.cause("web", "memory");
    ensure!(refused == 0, "{refused} were refused for memory");
    site.finish()
}

/// Bytes that HTTP keeps for heads, bodies and answers.
fn memory_used(site: &Site) -> Result<u64> {
    let status = site.status()?;
    Ok(status.http.as_ref().and_then(|http| http.counters.get("memory_used")).copied().unwrap_or(0))
}

/// What `weir plan` says of a connection in that state.
fn planned(site: &Site, state: &str) -> Result<u64> {
    let file = site.rig.run.path("weir.toml").display().to_string();
    let plan: Value = serde_json::from_str(&site.rig.weir.weir(&["plan", &file, "--json"])?)?;
    let states = plan["per_connection"].as_array().context("no states in the plan")?;
    let row = states.iter().find(|row| row["state"] == state).with_context(|| plan.to_string())?;
    row["bytes"].as_u64().context("no bytes in the plan")
}
