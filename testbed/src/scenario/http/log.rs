//! The access log: what stands in it, in which form, and that nothing is lost when it is rotated.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Checks, IDLE, Scratch, Site, Text};
use crate::command;
use crate::interrupt::wait_for;
use crate::scenario::{Context, Scenario};
use crate::traffic::exchange::{get, post};

const WEB: u16 = 80;
const SAMPLED: u16 = 81;
const SILENT: u16 = 82;
/// How long a line may take to its file.
const SOON: Duration = Duration::from_secs(5);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/access-log", access_log)]
}

fn text(path: &str, format: &str) -> Text {
    let mut text = Text::new()
        .listener("web", WEB, "script", "http = { access_log = true }\n")
        .listener("sampled", SAMPLED, "script", "http = { access_log = { sample = \"10%\" } }\n")
        .listener("silent", SILENT, "script", "http = { access_log = false }\n")
        .route("web", "name = \"nowhere\"\npath_prefix = \"/nowhere\"\nrespond = { status = 404 }\n")
        .scripted("script", IDLE);
    text.0 += &format!("\n[access_log]\npath = \"{path}\"\nformat = '{format}'\n");
    text
}

fn access_log(context: &Context) -> Result<()> {
    let scratch = Scratch::new()?;
    let path = scratch.file("access.log");
    let mut site = Site::start(context, text(&path, "json"))?;
    let mut checks = Checks::of(&mut site);
    checks.check("lines as JSON", |site| json(site, &path));
    checks.check("samples", |site| samples(site, &path));
    checks.check("rotation", |site| rotation(site, &path));
    checks.check("a format of one's own", |site| {
        site.rig.config.more = text(&path, "%{client} %{method} %{status} <%{user_agent}>").0;
        site.rig.apply()?;
        site.ask(WEB, &get("/who", "User-Agent: a\"b\\c d\r\n"))?.must_be(200, "")?;
        until(&path, "the line", |line| line.starts_with("198.18.0.1 GET 200 <a") && line.ends_with("d>"))
            .map(drop)
    });
    checks.check("combined", |site| {
        site.rig.config.more = text(&path, "combined").0;
        site.rig.apply()?;
        site.ask(WEB, &get("/who?q", "User-Agent: curl/8\r\nReferer: http://x/\r\n"))?.must_be(200, "")?;
        let end = "\"GET /who?q HTTP/1.1\" 200 5 \"http://x/\" \"curl/8\"";
        until(&path, "the line", |line| line.starts_with("198.18.0.1 - - [") && line.ends_with(end)).map(drop)
    });
    checks.done()?;
    site.finish()
}

fn lines(path: &str) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits for a line.
fn until(path: &str, what: &str, right: impl Fn(&str) -> bool) -> Result<String> {
    let found = wait_for(what, SOON, || Ok(lines(path).into_iter().find(|line| right(line))));
    found.with_context(|| {
        format!("the log's last lines: {:#?}", lines(path).iter().rev().take(4).collect::<Vec<_>>())
    })
}

/// Waits for the line of a target.
fn of(path: &str, target: &str) -> Result<Value> {
    let needle = format!("\"{target}\"");
    let line = until(path, &format!("the line of {target}"), |line| line.contains(&needle))?;
    serde_json::from_str(&line).with_context(|| line.clone())
}

fn json(site: &mut Site, path: &str) -> Result<()> {
    let fields = "User-Agent: bench/1 \"x\"\r\nReferer: http://r/\r\nX-Request-Id: client-chosen\r\n";
    site.ask(WEB, &post("/echo/first?a=b", fields, "hello"))?.must_be(200, "")?;
    let line = of(path, "/echo/first?a=b")?;
    for (name, value) in [
        ("listener", "web"),
        ("pool", "script"),
        ("client", "198.18.0.1"),
        ("method", "POST"),
        ("version", "HTTP/1.1"),
        ("host", "weir.test"),
        ("user_agent", "bench/1 \"x\""),
        ("referer", "http://r/"),
    ] {
        ensure!(line[name] == value, "{name} of {line}");
    }
    ensure!(line["status"] == 200 && line["bytes_in"] == 5, "{line}");
    ensure!(line["backend"].as_str().is_some_and(|name| name.starts_with("app-")), "{line}");
    let id = line["request_id"].as_str().unwrap_or_default().to_owned();
    let told = site.backends.seen_of("/echo/first").first().map_or(String::new(), |seen| seen.head.clone());
    ensure!(!id.is_empty() && told.contains(&id), "id {id:?} is not the one that the backend got: {told}");

    site.get(WEB, "/nowhere/x")?.must_be(404, "")?;
    ensure!(of(path, "/nowhere/x")?["route"] == "nowhere", "the route is missing");
    site.ask(WEB, &post("/gone/x", "", ""))?.must_be(502, "response-missing")?;
    let line = of(path, "/gone/x")?;
    ensure!(line["cause"] == "response-missing" && line["status"] == 502, "{line}");
    site.ask(WEB, "GET / HTTP/1.1\r\nHost: a\r\nBad Name: x\r\n\r\n")?.must_be(400, "request-malformed")?;
    until(path, "the line of a refused head", |line| line.contains("request-malformed"))?;
    let _ = site.get(WEB, "/short/log");
    ensure!(of(path, "/short/log")?["cause"] == "response-truncated", "the cause is missing");
    // what a client sends can't make lines of its own
    site.ask(WEB, &get("/who/forged", "User-Agent: \"}\\\t{\r\n"))?.must_be(200, "")?;
    until(path, "the line of a quote", |line| line.contains("forged"))?;
    for line in lines(path) {
        serde_json::from_str::<Value>(&line).with_context(|| format!("no JSON: {line}"))?;
    }
    Ok(())
}

fn samples(site: &mut Site, path: &str) -> Result<()> {
    let mut client = site.client(SAMPLED)?;
    for _ in 0..400 {
        client.get("/who/sampled")?;
    }
    site.get(SILENT, "/who/silent")?;
    // own errors are always told
    site.ask(SAMPLED, &post("/gone/sampled", "", ""))?;
    of(path, "/gone/sampled")?;
    let count = lines(path).iter().filter(|line| line.contains("/who/sampled")).count();
    ensure!((10..=90).contains(&count), "{count} of 400 lines at 10 %");
    ensure!(!lines(path).iter().any(|line| line.contains("/who/silent")), "a silent listener told something");
    Ok(())
}

/// Every request has its line, in the old file or in the new one.
fn rotation(site: &mut Site, path: &str) -> Result<()> {
    let old = format!("{path}.1");
    let mut client = site.client(WEB)?;
    let mut ask = |from: u32, to: u32| -> Result<()> {
        (from..to).try_for_each(|number| client.get(&format!("/who/rotated-{number}")).map(drop))
    };
    ask(0, 100)?;
    std::fs::rename(path, &old)?;
    ask(100, 200)?;
    let id = site.rig.weir.ctlplane.id().context("ctlplane does not run")?;
    command::call("kill", &["-USR1", &id.to_string()])?;
    wait_for("a new file", SOON, || Ok(Path::new(path).exists().then_some(())))?;
    ask(200, 300)?;
    until(path, "the last line", |line| line.contains("rotated-299\""))?;
    let all: BTreeSet<String> = [lines(&old), lines(path)]
        .concat()
        .into_iter()
        .filter_map(|line| Some(line.split_once("/who/rotated-")?.1.split('"').next()?.to_owned()))
        .collect();
    ensure!(all.len() == 300, "{} of 300 requests have a line", all.len());
    let status = site.status()?;
    let refused = status.http.as_ref().and_then(|http| http.counters.get("events_refused")).copied();
    ensure!(refused == Some(0), "events_refused {refused:?}");
    Ok(())
}
