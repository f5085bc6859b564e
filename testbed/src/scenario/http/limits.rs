//! Times, sizes, rates and connections: what is too slow, too large or too much is refused, and says why.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Checks, IDLE, Scratch, Site, Text};
use crate::interrupt::wait_for;
use crate::scenario::{Context, Scenario};
use crate::traffic::exchange::{get, post};
use crate::traffic::stream::End;

const SECOND: Duration = Duration::from_secs(1);
const TIMES: u16 = 80;
const SIZES: u16 = 81;
const FEW: u16 = 82;
const RATE_ALL: u16 = 83;
const RATE_CLIENT: u16 = 84;
const RATE_HEADER: u16 = 85;
const RATE_ROUTE: u16 = 86;
const PAGES: u16 = 87;
const COLLECTS: u16 = 88;
/// What the error page says.
const PAGE: &str = "<p>nothing here</p>";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("http/limits", limits),
        Scenario::new("http/limits/rate-of-two-workers", two_workers),
        Scenario::new("http/limits/memory", memory),
    ]
}

fn rate(name: &str, key: &str, scope: &str) -> String {
    format!(
        "http = {{ rate_limit = [{{ name = \"{name}\", key = \"{key}\", rate = \"1/s\", burst = 5, scope = \"{scope}\" }}] }}\n"
    )
}

fn limits(context: &Context) -> Result<()> {
    let scratch = Scratch::new()?;
    let page = scratch.file("404.html");
    std::fs::write(&page, PAGE)?;
    let times = "timeouts = { request_header = \"500ms\", request_body = \"500ms\", keep_alive = \"500ms\", tunnel = \"500ms\" }\n";
    let sizes = "http = { limits = { header = \"4KiB\", headers = 10, uri = \"1KiB\", body = \"10KiB\", requests = 3 } }\n";
    let pages = format!("http = {{ error_page = {{ 404 = \"{page}\" }}, cause_header = false }}\n");
    let text = Text::new()
        .listener("times", TIMES, "script", times)
        .listener("sizes", SIZES, "script", sizes)
        .listener("few", FEW, "script", "http = { limits = { client_connections = 2 } }\n")
        .listener("rate-all", RATE_ALL, "script", &rate("all", "all", "listener"))
        .listener("rate-client", RATE_CLIENT, "script", &rate("client", "client", "listener"))
        .listener("rate-header", RATE_HEADER, "script", &rate("key", "header:X-Key", "listener"))
        .listener("rate-route", RATE_ROUTE, "script", &rate("some", "all", "route"))
        .listener("pages", PAGES, "", &pages)
        .listener("collects", COLLECTS, "script", "http = { limits = { client_body_buffer = \"64KiB\" } }\n")
        .route("rate-route", "path_prefix = \"/limited\"\npool = \"script\"\nrate_limit = \"some\"\n")
        .scripted("script", IDLE);
    let mut site = Site::start(context, text)?;
    let mut checks = Checks::of(&mut site);
    checks.check("request header", request_header);
    checks.check("request body", request_body);
    checks.check("keep-alive", keep_alive);
    checks.check("tunnel", tunnel);
    checks.check("heads", heads);
    checks.check("bodies", bodies);
    checks.check("requests of a connection", requests);
    checks.check("connections of a client", connections);
    checks.check("rates", rates);
    checks.check("collected bodies", collected);
    checks.check("answers of Weir's own", own);
    checks.check("error pages", |site| {
        let answer = site.get(PAGES, "/x")?;
        ensure!(answer.status == 404 && answer.text() == PAGE && answer.cause().is_empty(), "{answer:?}");
        ensure!(answer.field("content-type").is_some_and(|kind| kind.starts_with("text/html")), "{answer:?}");
        Ok(())
    });
    checks.done()?;
    site.finish()
}

/// A refusal without a page says in words what its status means, to HEAD only in its fields; the connection goes on, and the next
/// request is served.
fn own(site: &mut Site) -> Result<()> {
    let mut client = site.client(SIZES)?;
    for method in ["GET", "HEAD"] {
        let uri = format!("/{}", "x".repeat(1_100));
        let answer = client.ask(&format!("{method} {uri} HTTP/1.1\r\nHost: weir.test\r\n\r\n"))?;
        answer.must_be(414, "uri-too-long")?;
        let words = "URI Too Long";
        let body = if method == "HEAD" { "" } else { words };
        ensure!(answer.text() == body, "{method}: {answer:?}");
        ensure!(answer.field("content-length") == Some(&words.len().to_string()), "{method}: {answer:?}");
        ensure!(
            answer.field("content-type").is_some_and(|kind| kind.starts_with("text/plain")),
            "{answer:?}"
        );
        ensure!(answer.field("date").is_some(), "no Date: {answer:?}");
        if answer.field("connection") == Some("close") {
            ensure!(client.ended(SECOND)? == End::Finished, "a RST after the answer");
            client = site.client(SIZES)?;
        }
        client.get("/who")?.must_be(200, "").context("after a refusal")?;
    }
    // a page of one's own is as long for HEAD
    let answer = site.ask(PAGES, "HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure!(answer.status == 404 && answer.body.is_empty(), "{answer:?}");
    ensure!(answer.field("content-length") == Some(&PAGE.len().to_string()), "{answer:?}");
    Ok(())
}

/// Half a second, as this machine counts.
fn in_time(start: Instant) -> Result<()> {
    let took = start.elapsed();
    ensure!((SECOND * 2 / 5..3 * SECOND).contains(&took), "a timeout of 500 ms came after {took:?}");
    Ok(())
}

fn request_header(site: &mut Site) -> Result<()> {
    let mut client = site.client(TIMES)?;
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a\r\nX-Slow")?;
    client.response("GET")?.must_be(408, "request-header-timeout")?;
    in_time(start)?;
    ensure!(client.ended(SECOND)? == End::Finished, "a RST after the answer");
    // a byte now and then does not help
    let mut client = site.client(TIMES)?;
    let start = Instant::now();
    for byte in "GET / HTTP/1.1\r\nHost: a\r\n".bytes() {
        if client.send([byte]).is_err() || start.elapsed() > 2 * SECOND {
            break;
        }
        std::thread::sleep(Duration::from_millis(60));
    }
    client.response("GET")?.must_be(408, "request-header-timeout")?;
    // who says nothing at all is not answered
    let mut client = site.client(TIMES)?;
    let (bytes, _) = client.rest(3 * SECOND)?;
    ensure!(bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408"), "{:?}", String::from_utf8_lossy(&bytes));
    Ok(())
}

fn request_body(site: &mut Site) -> Result<()> {
    for framing in ["Content-Length: 100\r\n\r\nsome", "Transfer-Encoding: chunked\r\n\r\n64\r\nsome"] {
        let mut client = site.client(TIMES)?;
        let start = Instant::now();
        client.send(format!("POST /who HTTP/1.1\r\nHost: a\r\n{framing}"))?;
        client.response("POST")?.must_be(408, "request-body-timeout")?;
        in_time(start)?;
        client.ended(SECOND)?;
    }
    ensure!(site.backends.seen().iter().all(|seen| !seen.is_whole), "a backend took it for whole");
    Ok(())
}

fn keep_alive(site: &mut Site) -> Result<()> {
    let mut client = site.client(TIMES)?;
    client.get("/who")?.must_be(200, "")?;
    let start = Instant::now();
    ensure!(client.ended(3 * SECOND)? == End::Finished, "a RST");
    in_time(start)?;
    let counted = site.status()?.http("times", "keep_alive_timeouts");
    // who never said anything is counted as well
    ensure!(counted >= 1, "not counted");
    Ok(())
}

fn tunnel(site: &mut Site) -> Result<()> {
    let mut client = site.client(TIMES)?;
    let answer = client.ask(&get("/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n"))?;
    ensure!(answer.status == 101, "{answer:?}");
    for _ in 0..4 {
        client.send("word")?;
        ensure!(client.bytes(4)? == b"word", "no echo");
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(site.status()?.http("times", "tunnels") == 1, "the tunnel is not counted");
    let start = Instant::now();
    client.rest(3 * SECOND)?;
    ensure!(start.elapsed() < 2 * SECOND, "it came after {:?}", start.elapsed());
    ensure!(site.status()?.cause("times", "tunnel-timeout") == 1, "not counted");
    Ok(())
}

fn heads(site: &mut Site) -> Result<()> {
    let large = get("/who", &format!("X-Large: {}\r\n", "x".repeat(5_000)));
    site.ask(SIZES, &large)?.must_be(431, "header-too-large")?;
    let many: String = (0..12).map(|number| format!("X-{number}: 1\r\n")).collect();
    site.ask(SIZES, &get("/who", &many))?.must_be(431, "header-too-large")?;
    site.ask(SIZES, &get(&format!("/who/{}", "x".repeat(1_100)), ""))?.must_be(414, "uri-too-long")?;
    let fits = get("/who", &format!("X-Large: {}\r\n", "x".repeat(3_000)));
    site.ask(SIZES, &fits)?.must_be(200, "")?;
    // larger than a packet, in pieces
    let large = get("/echo", &format!("X-Large: {}\r\n", "x".repeat(12_000)));
    let mut client = site.client(TIMES)?;
    for piece in large.as_bytes().chunks(999) {
        client.send(piece)?;
    }
    let answer = client.response("GET")?;
    ensure!(answer.status == 200 && answer.text().contains(&"x".repeat(12_000)), "{}", answer.status);
    Ok(())
}

fn bodies(site: &mut Site) -> Result<()> {
    site.ask(SIZES, &post("/echo", "", &"x".repeat(10 << 10)))?.must_be(200, "")?;
    let announced = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10241\r\n\r\n";
    site.ask(SIZES, announced)?.must_be(413, "body-too-large")?;
    let mut client = site.client(SIZES)?;
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for _ in 0..11 {
        // it may be over before all is sent
        if client.send(format!("400\r\n{}\r\n", "x".repeat(1_024))).is_err() {
            break;
        }
    }
    client.response("POST")?.must_be(413, "body-too-large")?;
    ensure!(site.backends.seen().iter().filter(|seen| seen.is_whole).count() == 1, "a backend has it whole");
    Ok(())
}

fn requests(site: &mut Site) -> Result<()> {
    let mut client = site.client(SIZES)?;
    for number in 1..=3 {
        let answer = client.get("/who")?;
        let closes = answer.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        ensure!(answer.status == 200 && closes == (number == 3), "request {number}: {answer:?}");
    }
    ensure!(client.ended(SECOND)? == End::Finished, "a RST");
    Ok(())
}

fn connections(site: &mut Site) -> Result<()> {
    let mut first = (0..2).map(|_| site.client(FEW)).collect::<Result<Vec<_>>>()?;
    for client in &mut first {
        client.get("/who")?.must_be(200, "")?;
    }
    site.get(FEW, "/who")?.must_be(429, "client-connections")?;
    drop(first);
    wait_for("the places to be free", 2 * SECOND, || Ok((site.get(FEW, "/who")?.status == 200).then_some(())))
}

fn rates(site: &mut Site) -> Result<()> {
    for (port, path, fields) in [
        (RATE_ALL, "/who", ""),
        (RATE_CLIENT, "/who", ""),
        (RATE_HEADER, "/who", "X-Key: a\r\n"),
        (RATE_ROUTE, "/limited", ""),
    ] {
        let mut client = site.client(port)?;
        let (start, mut served, mut wait) = (Instant::now(), 0u64, 0);
        for _ in 0..30 {
            let answer = client.ask(&get(path, fields))?;
            if answer.status == 200 {
                served += 1;
                continue;
            }
            answer.must_be(429, "rate-limited").with_context(|| format!("at {port}"))?;
            let after = answer.field("retry-after").and_then(|seconds| seconds.parse::<u64>().ok());
            wait = after.with_context(|| format!("no Retry-After: {answer:?}"))?;
        }
        let most = 5 + start.elapsed().as_secs() + 1;
        ensure!((5..=most).contains(&served), "at {port}: {served} of 30 were served");
        ensure!((1..=2).contains(&wait), "at {port}: Retry-After: {wait}");
        wait_for("the next token", 3 * SECOND, || {
            Ok((client.ask(&get(path, fields))?.status == 200).then_some(()))
        })?;
    }
    // others have buckets of their own
    site.ask(RATE_HEADER, &get("/who", "X-Key: b\r\n"))?.must_be(200, "")?;
    for _ in 0..10 {
        site.get(RATE_ROUTE, "/who")?.must_be(200, "")?;
    }
    ensure!(site.status()?.http("rate-all", "rate_limited") >= 20, "not counted");
    Ok(())
}

/// The backend is asked once the body is there.
fn collected(site: &mut Site) -> Result<()> {
    let mut client = site.client(COLLECTS)?;
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")?;
    site.until("the exchange", SECOND, |status| status.http("collects", "exchanges") == 1)?;
    ensure!(site.backends.seen().is_empty(), "the backend was asked before the body was there");
    client.send("world")?;
    let answer = client.response("POST")?;
    ensure!(answer.status == 200 && answer.text().ends_with("helloworld"), "{answer:?}");
    Ok(())
}

/// One bucket for clients of both workers: the overshoot is a lease at most.
fn two_workers(context: &Context) -> Result<()> {
    const BURST: u64 = 40;
    let limit = "http = { rate_limit = [{ name = \"all\", key = \"all\", rate = \"10/s\", burst = 40 }] }\n";
    let text = Text::new().listener("web", TIMES, "script", limit).scripted("script", IDLE);
    let site = Site::start_with(context, text, |config| {
        config.dataplane = config.dataplane.replace("workers = 1", "workers = 2");
    })?;
    let mut clients = (0..16).map(|_| site.client(TIMES)).collect::<Result<Vec<_>>>()?;
    let (start, mut served) = (Instant::now(), 0u64);
    while start.elapsed() < 2 * SECOND {
        for client in &mut clients {
            served += u64::from(client.get("/who")?.status == 200);
        }
    }
    let due = BURST + (start.elapsed().as_secs_f64() * 10.0) as u64;
    println!("      {served} were served, {due} were due");
    ensure!((due * 7 / 10..=due + BURST).contains(&served), "{served} were served, {due} were due");
    drop(clients);
    site.finish()
}

/// At the ceiling of HTTP's memory newcomers are refused as their listener says, and nothing else fails.
fn memory(context: &Context) -> Result<()> {
    const REFUSES: u16 = 80;
    const RESETS: u16 = 81;
    let text = Text::new()
        .listener("refuses", REFUSES, "script", "")
        .listener("resets", RESETS, "script", "http = { when_full = \"reset\" }\n")
        .scripted("script", IDLE);
    let site = Site::start_with(context, text, |config| config.dataplane += "http_memory = \"1MiB\"\n")?;
    let mut settled = [site.client(REFUSES)?, site.client(RESETS)?];
    for client in &mut settled {
        client.get("/who")?.must_be(200, "")?;
    }
    // heads that are never complete, each in a buffer of the third size
    let begun = format!("GET /who HTTP/1.1\r\nHost: a\r\nX-Large: {}", "x".repeat(10_000));
    let mut hogs = Vec::new();
    while hogs.len() < 100 {
        // the last of them come too late, and some of these learn it while they connect
        let Ok(mut client) = site.client(RESETS) else { break };
        if client.send(&begun).is_err() {
            break;
        }
        hogs.push(client);
    }
    site.until("refusals", 3 * SECOND, |status| status.cause("resets", "memory") > 0)?;
    site.get(REFUSES, "/who")?.must_be(503, "memory")?;
    if let Ok(mut late) = site.client(RESETS) {
        ensure!(late.ended(2 * SECOND)? == End::Reset, "it was not reset");
    }
    for _ in 0..20 {
        for client in &mut settled {
            client.get("/who")?.must_be(200, "")?;
        }
    }
    let large = settled[0].get("/bytes/300000")?;
    ensure!(large.status == 200 && large.body.len() == 300_000, "{} bytes", large.body.len());
    drop(hogs);
    for port in [REFUSES, RESETS] {
        wait_for("room for newcomers", 3 * SECOND, || {
            let answer = site.client(port).and_then(|mut client| client.get("/who"));
            Ok(answer.is_ok_and(|answer| answer.status == 200).then_some(()))
        })?;
    }
    let status = site.status()?;
    let others = status.cause("refuses", "response-missing") + status.cause("resets", "response-missing");
    ensure!(others == 0, "{}", status.causes_in_words("resets"));
    drop(settled);
    site.finish()
}
