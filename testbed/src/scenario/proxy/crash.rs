//! kill -9 of either process while connections stand.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{connect, finish, of, serve_everywhere, service, streams};
use crate::config::Service;
use crate::interrupt::wait_for;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};
use crate::traffic::http;
use crate::traffic::stream;

const AT_ONCE: usize = 4;
const BETWEEN: u64 = 60;
const BACK: Duration = Duration::from_secs(10);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("proxy/crash/ctlplane", ctlplane), Scenario::new("proxy/crash/dataplane", dataplane)]
}

/// Without ctlplane nothing happens to connections.
fn ctlplane(context: &Context) -> Result<()> {
    let echo = streams(Family::Ipv4);
    let web = service(Family::Ipv4).on_vip(2);
    let mut rig = Rig::start(context, Io::AfXdp, vec![echo.clone(), web.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let kept = (0..20).map(|_| connect(&rig, &echo)).collect::<Result<Vec<_>>>()?;
    let client = rig.client();
    let (tally, ()) = http::load_while(&client, web.target(), AT_ONCE, |load| {
        load.more(BETWEEN)?;
        rig.weir.ctlplane.kill()?;
        load.more(BETWEEN)?;
        kept.iter().try_for_each(|connection| stream::echo(connection, b"without ctlplane"))?;
        // what is counted is still told
        ensure!(of(&rig, &echo, "connections_active")? == 20, "the status is wrong without ctlplane");
        rig.weir.ctlplane.start_again()?;
        wait_for("ctlplane to come back", BACK, || {
            Ok(rig.weir.cli(&["backend", "list"]).output()?.status.success().then_some(()))
        })?;
        load.more(BETWEEN)
    })?;
    tally.must_be_clean()?;
    kept.iter().try_for_each(|connection| stream::echo(connection, b"and with it again"))?;
    drop(kept);
    let status = rig.emptied()?;
    let resets =
        status.proxy(&echo.name, "client_resets") + status.upstream(&echo.name, "server_resets", |_| true);
    ensure!(resets == 0, "{resets} RSTs");
    drop(servers);
    rig.finish()
}

/// The dataplane's connections die with it. Its successor says so to who speaks, and takes new ones at once.
fn dataplane(context: &Context) -> Result<()> {
    let echo = Service { pool_lines: "algorithm = \"round-robin\"\n".into(), ..streams(Family::Ipv4) };
    let web = service(Family::Ipv4).on_vip(2);
    let mut rig = Rig::start(context, Io::AfXdp, vec![echo.clone(), web.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let kept = (0..20).map(|_| connect(&rig, &echo)).collect::<Result<Vec<_>>>()?;
    kept.iter().try_for_each(|connection| stream::echo(connection, b"before"))?;
    rig.weir.kill_dataplane()?;
    let start = Instant::now();
    rig.weir.restart_dataplane(&rig.lab)?;
    let target = web.target();
    wait_for("a new connection to be served", BACK, || {
        rig.weir.dataplane.must_run()?;
        // a SYN that nobody took is sent again only after a second: ask with new ones
        let patience = Duration::from_millis(50);
        rig.lab.client.run(|| std::net::TcpStream::connect_timeout(&target, patience).is_ok().then_some(()))
    })?;
    let back = start.elapsed();
    println!("      the first new connection stands {:.0} ms after the restart", back.as_secs_f64() * 1e3);
    http::load(&rig.lab.client, web.target(), BETWEEN, AT_ONCE)?
        .must_be_clean()
        .context("after the restart")?;
    for connection in &kept {
        if stream::echo(connection, b"after").is_ok() {
            anyhow::bail!("a connection survived, with nobody who knows it");
        }
    }
    let status = rig.weir.status()?;
    ensure!(
        status.tcp("resets_no_listener") + status.tcp("syn_cookies_refused") >= 20,
        "{} RSTs were sent to connections of before",
        status.tcp("resets_no_listener")
    );
    drop((kept, servers));
    finish(rig)
}
