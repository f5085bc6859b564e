//! Pools: which backend, over which connection, and how many at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Checks, IDLE, Site, Text};
use crate::interrupt::wait_for;
use crate::scenario::{Context, Scenario};
use crate::traffic::backend::SCRIPT_PORT;
use crate::traffic::exchange::{Client, get, post};
use crate::traffic::servers::PROXIED_PORT;

const SECOND: Duration = Duration::from_secs(1);
/// Listeners and pools of the same names, from port 80 on: lines of the listener, lines of the pool.
const POOLS: [(&str, &str, &str); 14] = [
    ("round-robin", "", "algorithm = \"round-robin\"\nhttp = { idle = \"1s\" }\n"),
    ("by-header", "", "http = { idle = \"1s\", hash = \"header:X-User\" }\n"),
    ("by-cookie", "", "http = { idle = \"1s\", hash = \"cookie:user\" }\n"),
    ("by-path", "", "http = { idle = \"1s\", hash = \"path\" }\n"),
    ("by-source", "", "http = { idle = \"1s\", hash = \"source\" }\n"),
    (
        "sticky",
        "",
        "algorithm = \"round-robin\"\nhttp = { idle = \"1s\", sticky = { cookie = \"srv\", max_age = \"1h\" } }\n",
    ),
    ("least-conn", "", "algorithm = \"least-conn\"\nhttp = { idle = \"1s\" }\n"),
    ("random-two", "", "algorithm = \"random-two\"\nhttp = { idle = \"1s\" }\n"),
    ("short-idle", "", "http = { idle = \"300ms\" }\n"),
    ("few-requests", "", "http = { idle = \"1s\", requests = 3 }\n"),
    ("none-idle", "", "http = { idle_connections = 0 }\n"),
    ("young", "", "http = { idle = \"5s\", lifetime = \"300ms\" }\n"),
    (
        "panic",
        "",
        "algorithm = \"round-robin\"\nhttp = { idle = \"1s\", panic_threshold = \"50%\", slow_start = \"1s\" }\n",
    ),
    ("slow-start", "", "algorithm = \"round-robin\"\nhttp = { idle = \"1s\", slow_start = \"2s\" }\n"),
];
const BACKUP: u16 = 100;
const NARROW: u16 = 101;
const TOLD_V1: u16 = 102;
const TOLD_V2: u16 = 103;
const TELLS: u16 = 104;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/pools", pools)]
}

fn port(name: &str) -> u16 {
    POOLS.iter().position(|(other, ..)| *other == name).map_or(0, |at| 80 + at as u16)
}

fn pools(context: &Context) -> Result<()> {
    let mut text = Text::new();
    for (name, listener, _) in POOLS {
        text = text.listener(name, port(name), name, listener);
    }
    let queue = "queue = { size = 2, timeout = \"700ms\" }\n";
    text = text
        .listener("backup", BACKUP, "backup", "")
        .listener("narrow", NARROW, "narrow", queue)
        .listener("told-v1", TOLD_V1, "told-v1", "")
        .listener("told-v2", TOLD_V2, "told-v2", "")
        .listener("tells", TELLS, "round-robin", "accept_proxy = \"any\"\ntrusted = [\"198.18.0.0/24\"]\n");
    for (name, _, pool) in POOLS {
        text = text.scripted(name, pool);
    }
    text = text
        .pool("backup", IDLE, SCRIPT_PORT, &[(1, ""), (2, ""), (3, "backup = true\n")])
        .pool("narrow", IDLE, SCRIPT_PORT, &[(1, "max_connections = 1\n")])
        .pool("told-v1", "send_proxy = \"v1\"\nhttp = { idle = \"1s\" }\n", PROXIED_PORT, &[(1, "")])
        .pool("told-v2", "send_proxy = \"v2\"\nhttp = { idle = \"1s\" }\n", PROXIED_PORT, &[(1, "")]);
    let mut site = Site::start(context, text)?;
    let mut checks = Checks::of(&mut site);
    checks.check("round-robin", round_robin);
    checks.check("hashes", hashes);
    checks.check("sticky", sticky);
    checks.check("least-conn and random-two", counted);
    checks.check("idle connections end", idle);
    checks.check("connections with few requests", few_requests);
    checks.check("no idle connections", none_idle);
    checks.check("old connections", lifetime);
    checks.check("backups", backups);
    checks.check("slow start", slow_start);
    checks.check("panic threshold", panic_threshold);
    checks.check("queue", queue_of_pool);
    checks.check("PROXY to backends", told);
    checks.check("PROXY from clients", tells);
    checks.done()?;
    site.finish()
}

fn who(client: &mut Client, request: &str) -> Result<String> {
    let answer = client.ask(request)?;
    answer.must_be(200, "")?;
    Ok(answer.text())
}

fn round_robin(site: &mut Site) -> Result<()> {
    let mut client = site.client(port("round-robin"))?;
    let mut answers: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..60 {
        *answers.entry(who(&mut client, &get("/who", ""))?).or_default() += 1;
    }
    ensure!(answers.len() == 3 && answers.values().all(|count| *count == 20), "{answers:?}");
    Ok(())
}

/// What is hashed decides, whoever asks over whichever connection.
fn hashes(site: &mut Site) -> Result<()> {
    type Ask = fn(usize) -> String;
    let kinds: [(&str, Ask); 3] = [
        ("by-header", |user| get("/who", &format!("X-User: user-{user}\r\n"))),
        ("by-cookie", |user| get("/who", &format!("Cookie: a=b; user=user-{user}; c=d\r\n"))),
        ("by-path", |user| get(&format!("/who/{user}"), "")),
    ];
    for (name, ask) in kinds {
        let mut all = BTreeSet::new();
        for user in 0..12 {
            let first = who(&mut site.client(port(name))?, &ask(user))?;
            for _ in 0..2 {
                let again = who(&mut site.client(port(name))?, &ask(user))?;
                ensure!(again == first, "{name}: user {user} was at {first}, then at {again}");
            }
            all.insert(first);
        }
        ensure!(all.len() == 3, "{name}: all users are at {all:?}");
    }
    let first = who(&mut site.client(port("by-source"))?, &get("/who", ""))?;
    for _ in 0..5 {
        let again = who(&mut site.client(port("by-source"))?, &get("/who", ""))?;
        ensure!(again == first, "by-source: at {first}, then at {again}");
    }
    Ok(())
}

fn sticky(site: &mut Site) -> Result<()> {
    let mut at = BTreeSet::new();
    for _ in 0..6 {
        let answer = site.get(port("sticky"), "/who")?;
        let cookie = answer.all("set-cookie").join(";");
        ensure!(cookie.starts_with("srv=") && cookie.contains("Max-Age=3600"), "{answer:?}");
        let pair = cookie.split(';').next().unwrap_or_default().to_owned();
        let request = get("/who", &format!("Cookie: x=y; {pair}\r\n"));
        for _ in 0..3 {
            let again = site.ask(port("sticky"), &request)?;
            ensure!(again.text() == answer.text(), "{pair} was {}, then {}", answer.text(), again.text());
        }
        at.insert(answer.text());
    }
    ensure!(at.len() == 3, "new clients all got {at:?}");
    let answer = site.ask(port("sticky"), &get("/who", "Cookie: srv=nonsense\r\n"))?;
    ensure!(answer.status == 200 && !answer.all("set-cookie").is_empty(), "{answer:?}");
    Ok(())
}

fn counted(site: &mut Site) -> Result<()> {
    for name in ["least-conn", "random-two"] {
        // who is busy gets no more
        let mut busy = (0..6).map(|_| site.client(port(name))).collect::<Result<Vec<_>>>()?;
        busy.iter_mut().try_for_each(|client| client.send(get("/wait/400", "")))?;
        let mut answers: BTreeMap<String, u32> = BTreeMap::new();
        for client in &mut busy {
            *answers.entry(client.response("GET")?.text()).or_default() += 1;
        }
        let most = if name == "least-conn" { 2 } else { 5 };
        ensure!(answers.values().all(|count| *count <= most), "{name}: {answers:?}");
    }
    Ok(())
}

/// Connections of a pool there are.
fn active(site: &Site, pool: &str) -> Result<u64> {
    Ok(site.status()?.upstream(pool, "active", |_| true))
}

fn idle(site: &mut Site) -> Result<()> {
    let mut client = site.client(port("short-idle"))?;
    who(&mut client, &get("/who", ""))?;
    ensure!(active(site, "short-idle")? == 1, "no connection was kept");
    ensure!(site.status()?.backend_http("short-idle", "idle", |_| true) == 1, "it is not counted as idle");
    wait_for("the idle connection to end", 2 * SECOND, || {
        Ok((active(site, "short-idle")? == 0).then_some(()))
    })?;
    who(&mut client, &get("/who", "")).context("after that").map(drop)
}

fn few_requests(site: &mut Site) -> Result<()> {
    let before: u64 = (1..=3).map(|number| site.backends.accepted(number)).sum();
    let mut client = site.client(port("few-requests"))?;
    for _ in 0..27 {
        who(&mut client, &get("/who", ""))?;
    }
    let after: u64 = (1..=3).map(|number| site.backends.accepted(number)).sum();
    ensure!(after - before >= 9, "{} connections for 27 requests, 3 are allowed on each", after - before);
    Ok(())
}

fn none_idle(site: &mut Site) -> Result<()> {
    let before: u64 = (1..=3).map(|number| site.backends.accepted(number)).sum();
    let mut client = site.client(port("none-idle"))?;
    for _ in 0..10 {
        who(&mut client, &get("/who", ""))?;
    }
    let after: u64 = (1..=3).map(|number| site.backends.accepted(number)).sum();
    ensure!(after - before == 10, "{} connections for 10 requests", after - before);
    Ok(())
}

fn lifetime(site: &mut Site) -> Result<()> {
    let mut client = site.client(port("young"))?;
    who(&mut client, &get("/who", ""))?;
    wait_for("the connection to be too old", 3 * SECOND, || Ok((active(site, "young")? == 0).then_some(())))?;
    who(&mut client, &get("/who", "")).map(drop)
}

fn maint(site: &mut Site, command: &str, backend: &str) -> Result<()> {
    site.rig.weir.weir(&["backend", command, backend])?;
    site.rig.wait_until_adopted()
}

fn backups(site: &mut Site) -> Result<()> {
    let mut client = site.client(BACKUP)?;
    for _ in 0..20 {
        let who = who(&mut client, &get("/who", ""))?;
        ensure!(who != "app-3", "the backup served while others could");
    }
    maint(site, "maint", "backup/app-1")?;
    maint(site, "maint", "backup/app-2")?;
    for _ in 0..5 {
        let who = who(&mut client, &get("/who", "")).context("the backup alone")?;
        ensure!(who == "app-3", "{who} serves in maintenance");
    }
    maint(site, "ready", "backup/app-1")?;
    let who = who(&mut client, &get("/who", ""))?;
    ensure!(who == "app-1", "{who} serves after app-1 came back");
    maint(site, "maint", "backup/app-1")?;
    site.rig.weir.weir(&["backend", "maint", "backup/app-3", "--force"])?;
    site.rig.wait_until_adopted()?;
    client.get("/who")?.must_be(503, "no-backend")
}

/// Below the threshold all are used, whatever breakers say of them.
/// Who comes back gets little at first, and its whole share once its time is over.
fn slow_start(site: &mut Site) -> Result<()> {
    const ASKED: usize = 120;
    let mut client = site.client(port("slow-start"))?;
    let mut share = |site: &Site| -> Result<usize> {
        site.backends.forget();
        for _ in 0..ASKED {
            client.get("/who")?.must_be(200, "")?;
        }
        Ok(site.backends.seen().iter().filter(|seen| seen.backend == "app-2").count())
    };
    let whole = share(site)?;
    ensure!(whole == ASKED / 3, "{whole} of {ASKED} before it left");
    maint(site, "maint", "slow-start/app-2")?;
    let without = share(site)?;
    ensure!(without == 0, "{without} of {ASKED} while it is in maintenance");
    let back = Instant::now();
    maint(site, "ready", "slow-start/app-2")?;
    let slow = share(site)?;
    // a slow machine has let it grow meanwhile
    let most = if back.elapsed() < SECOND { ASKED / 4 } else { ASKED / 3 };
    ensure!((1..most).contains(&slow), "{slow} of {ASKED} within {:?} of its return", back.elapsed());
    std::thread::sleep((2 * SECOND + SECOND / 10).saturating_sub(back.elapsed()));
    let whole = share(site)?;
    ensure!(whole == ASKED / 3, "{whole} of {ASKED} once its time is over");
    Ok(())
}

fn panic_threshold(site: &mut Site) -> Result<()> {
    let mut client = site.client(port("panic"))?;
    // five failures in a row open the breaker of each
    for _ in 0..15 {
        client.ask(&post("/gone", "", ""))?.must_be(502, "response-missing")?;
    }
    let status = site.status()?;
    let open = ["app-1", "app-2", "app-3"].into_iter().filter(|name| status.breaker("panic", name) == "open");
    ensure!(open.count() == 3, "not all breakers are open");
    // it is looked for now and then
    wait_for("somebody to be asked all the same", SECOND, || {
        Ok((client.get("/who")?.status == 200).then_some(()))
    })
}

fn queue_of_pool(site: &mut Site) -> Result<()> {
    let mut clients = (0..3).map(|_| site.client(NARROW)).collect::<Result<Vec<_>>>()?;
    clients.iter_mut().try_for_each(|client| client.send(get("/wait/150", "")))?;
    for client in &mut clients {
        client.response("GET")?.must_be(200, "")?;
    }
    // one is served, two wait and are too late, the fourth finds no room
    let mut first = site.client(NARROW)?;
    first.send(get("/wait/2000", ""))?;
    site.until("a request at the backend", SECOND, |status| {
        status.upstream("narrow", "active", |_| true) == 1 && status.http("narrow", "exchanges") == 1
    })?;
    let mut waiting = (0..2).map(|_| site.client(NARROW)).collect::<Result<Vec<_>>>()?;
    waiting.iter_mut().try_for_each(|client| client.send(get("/who", "")))?;
    site.until("two that wait", SECOND, |status| status.proxy("narrow", "queued") == 2)?;
    site.get(NARROW, "/who")?.must_be(503, "queue-full")?;
    for client in &mut waiting {
        client.response("GET")?.must_be(503, "queue-timeout")?;
    }
    first.response("GET")?.must_be(200, "")
}

/// nginx says whom the PROXY header named: never somebody else, whatever connections are kept.
fn told(site: &mut Site) -> Result<()> {
    for listener in [TOLD_V1, TOLD_V2] {
        let mut clients = (0..3).map(|_| site.client(listener)).collect::<Result<Vec<_>>>()?;
        for round in 0..3 {
            for client in &mut clients {
                let expected = format!("198.18.0.1 {}", client.stream.local_addr()?.port());
                let said = client.get("/")?.text();
                ensure!(said == expected, "round {round} at {listener}: {said:?}, not {expected:?}");
            }
        }
    }
    Ok(())
}

fn tells(site: &mut Site) -> Result<()> {
    let mut client = site.client(TELLS)?;
    client.send("PROXY TCP4 198.19.7.7 198.18.100.1 5555 80\r\n")?;
    for _ in 0..2 {
        let head = client.get("/echo")?.text().to_ascii_lowercase();
        ensure!(head.contains("x-forwarded-for: 198.19.7.7\r\n"), "{head}");
    }
    // without a header nobody gets in
    let mut client = site.client(TELLS)?;
    client.send(get("/echo", ""))?;
    client.rest(3 * SECOND)?;
    ensure!(site.status()?.proxy("tells", "proxy_header_refused") == 1, "no refusal was counted");
    Ok(())
}
