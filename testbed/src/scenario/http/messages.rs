//! Messages of every form, from client to backend and back.

use std::collections::BTreeSet;
use std::net::Shutdown;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{Checks, IDLE, Site, Text};
use crate::command;
use crate::scenario::{Context, Scenario};
use crate::traffic::backend::pattern;
use crate::traffic::exchange::{get, post};
use crate::traffic::http;
use crate::traffic::servers::FILE;
use crate::traffic::stream::End;
use crate::traffic::websocket;

/// Listener of the scripted backends.
const WEB: u16 = 80;
/// Listener of nginx.
const FILES: u16 = 81;
/// Listener that allows CONNECT and no upgrades, and tells backends other things.
const OTHER: u16 = 82;
const SECOND: Duration = Duration::from_secs(1);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/messages", messages)]
}

fn messages(context: &Context) -> Result<()> {
    let text = Text::new()
        .listener("web", WEB, "script", "")
        .listener("files", FILES, "nginx", "")
        .listener("other", OTHER, "script", "http = { connect = true, upgrade = false, via = \"off\", forwarded = true, x_forwarded = false, request_id = \"off\" }\n")
        .scripted("script", IDLE)
        .nginx("nginx", IDLE);
    let mut site = Site::start(context, text)?;
    let mut checks = Checks::of(&mut site);
    checks.check("curl", curl);
    checks.check("wrk", |site| ["keep-alive", "close"].iter().try_for_each(|token| wrk(site, token)));
    checks.check("a connection per request", |site| {
        http::load(&site.rig.lab.client, site.place(FILES), 200, 4)?.must_be_clean()
    });
    checks.check("what backends are told", told);
    checks.check("what backends are told otherwise", told_otherwise);
    checks.check("hop by hop", hop_by_hop);
    checks.check("chunks to the backend", chunks_in);
    checks.check("chunks from the backend", chunks_out);
    checks.check("HEAD, 204, 304", without_bodies);
    checks.check("interim responses", interim);
    checks.check("HTTP/1.0", old);
    checks.check("a body until the end", until_the_end);
    checks.check("pipelining", pipelining);
    checks.check("expectations", expectations);
    checks.check("CONNECT", connect);
    checks.check("upgrade", upgrade);
    checks.check("WebSocket", web_socket);
    checks.check("large bodies", large);
    checks.check("targets", targets);
    checks.check("half-closed clients", half_closed);
    checks.check("connections are kept", kept);
    checks.done()?;
    site.finish()
}

/// A megabyte to the byte.
fn curl(site: &mut Site) -> Result<()> {
    let copy = site.rig.run.path("copy").display().to_string();
    let url = format!("http://{}{FILE}", site.place(FILES));
    let mut command = site.rig.lab.client.command("curl");
    command.args(["--silent", "--show-error", "--fail", "--max-time", "10", "-o", &copy, &url]);
    command::run(&mut command)?;
    let right = std::fs::read(&copy)? == std::fs::read(site.rig.run.path("servers/file"))?;
    ensure!(right, "the file came changed");
    Ok(())
}

fn wrk(site: &Site, token: &str) -> Result<()> {
    let mut command = site.rig.lab.client.command("wrk");
    let (header, url) = (format!("Connection: {token}"), format!("http://{}/", site.place(FILES)));
    command.args(["-t", "1", "-c", "32", "-d", "1s", "-H", &header, &url]);
    let said = command::run(&mut command)?;
    let bad = ["Socket errors", "Non-2xx"].iter().any(|words| said.contains(words));
    let requests = said.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok());
    ensure!(!bad && requests.is_some_and(|requests: u64| requests > 200), "with {token}: {said}");
    Ok(())
}

fn told(site: &mut Site) -> Result<()> {
    let forged = "X-Forwarded-For: 1.2.3.4\r\nX-Request-Id: mine\r\nX-Mine: yes\r\n";
    let answer = site.ask(WEB, &get("/echo", forged))?;
    answer.must_be(200, "")?;
    let head = answer.text().to_ascii_lowercase();
    for line in [
        "get /echo http/1.1",
        "host: weir.test",
        "x-forwarded-for: 198.18.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: weir.test",
        "via: 1.1 weir",
        "x-mine: yes",
    ] {
        ensure!(head.lines().any(|other| other.trim() == line), "no {line:?} in {head}");
    }
    let ids = head.lines().filter(|line| line.starts_with("x-request-id: ")).count();
    ensure!(ids == 1 && !head.contains("1.2.3.4"), "forged fields came through: {head}");
    Ok(())
}

fn told_otherwise(site: &mut Site) -> Result<()> {
    let answer = site.ask(OTHER, &get("/echo", ""))?;
    let head = answer.text().to_ascii_lowercase();
    ensure!(head.contains("forwarded: for=198.18.0.1"), "no Forwarded in {head}");
    for name in ["x-forwarded-", "via:", "x-request-id"] {
        ensure!(!head.contains(name), "{name} in {head}");
    }
    Ok(())
}

fn hop_by_hop(site: &mut Site) -> Result<()> {
    let fields = "Connection: x-drop, keep-alive\r\nX-Drop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Keep: 1\r\n";
    let head = site.ask(WEB, &get("/echo", fields))?.text().to_ascii_lowercase();
    ensure!(head.contains("x-keep: 1"), "{head}");
    for name in ["x-drop", "keep-alive: timeout", "proxy-connection"] {
        ensure!(!head.contains(name), "{name} went on: {head}");
    }
    Ok(())
}

fn chunks_in(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    for round in 0..2 {
        let head = "POST /who HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
        client.send(head)?;
        for chunk in
            ["5;name=\"v\"\r\nhello\r\n", "1\r\n", ",\r\n", "6\r\n world\r\n", "0\r\nX-Sum: 12\r\n\r\n"]
        {
            client.send(chunk)?;
        }
        client.response("POST")?.must_be(200, "").with_context(|| format!("round {round}"))?;
    }
    let seen = site.backends.seen_of("/who");
    ensure!(seen.len() == 2 && seen.iter().all(|seen| seen.is_whole), "{seen:?}");
    ensure!(seen[0].body == b"hello, world", "{:?}", String::from_utf8_lossy(&seen[0].body));
    ensure!(seen[0].trailers.to_ascii_lowercase().contains("x-sum: 12"), "trailers {:?}", seen[0].trailers);
    Ok(())
}

fn chunks_out(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    for _ in 0..2 {
        let answer = client.get("/chunked")?;
        ensure!(answer.status == 200 && answer.text() == "chunk-one,chunk-two", "{answer:?}");
        ensure!(answer.trailers == [("x-check".to_owned(), "done".to_owned())], "{answer:?}");
    }
    Ok(())
}

fn without_bodies(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    let answer = client.ask("HEAD /bytes/100 HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure!(answer.status == 200 && answer.field("content-length") == Some("100"), "{answer:?}");
    let answer = client.ask("HEAD /chunked HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure!(answer.status == 200, "{answer:?}");
    for status in [204, 304] {
        let answer = client.get(&format!("/status/{status}"))?;
        ensure!(answer.status == status && answer.field("etag") == Some("\"x\""), "{answer:?}");
        ensure!(answer.field("transfer-encoding").is_none(), "{answer:?}");
    }
    ensure!(client.get("/bytes/10")?.body == pattern(10), "the connection is out of step");
    Ok(())
}

fn interim(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    let answer = client.get("/hint")?;
    let link = answer.interim.first().and_then(|(status, fields)| {
        (*status == 103).then(|| fields.iter().find(|(name, _)| name == "link"))?
    });
    ensure!(link.is_some_and(|(_, value)| value.contains("preload")), "{answer:?}");
    let answer = client.get("/storm/30")?;
    ensure!(answer.status == 200 && answer.interim.len() <= 30, "{answer:?}");
    let answer = site.ask(WEB, "GET /hint HTTP/1.0\r\nHost: a\r\n\r\n")?;
    ensure!(answer.interim.is_empty() && answer.text() == "ok", "a client of 1.0 got {answer:?}");
    Ok(())
}

fn old(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    let answer = client.ask("GET /who HTTP/1.0\r\n\r\n")?;
    ensure!(answer.status == 200 && client.ended(SECOND)? == End::Finished, "{answer:?}");
    let mut client = site.client(WEB)?;
    for _ in 0..2 {
        let answer = client.ask("GET /who HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")?;
        ensure!(answer.status == 200 && answer.field("content-length").is_some(), "{answer:?}");
    }
    // a client of 1.0 knows no chunks: the end of the connection is the end of the body
    let answer = client.ask("GET /chunked HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")?;
    ensure!(answer.field("transfer-encoding").is_none(), "{answer:?}");
    ensure!(answer.text() == "chunk-one,chunk-two", "{answer:?}");
    let mut client = site.client(WEB)?;
    for _ in 0..2 {
        let answer = client.get("/old")?;
        ensure!(answer.version == "HTTP/1.1" && answer.text() == "old", "{answer:?}");
    }
    Ok(())
}

fn until_the_end(site: &mut Site) -> Result<()> {
    for _ in 0..2 {
        let answer = site.get(WEB, "/close")?;
        ensure!(answer.text() == "until the end", "{answer:?}");
        // the client can tell where it ends: by chunks, or by a connection that is said to close
        let ends = answer.field("transfer-encoding") == Some("chunked");
        ensure!(ends || answer.field("connection") == Some("close"), "{answer:?}");
    }
    Ok(())
}

fn pipelining(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    let paths: Vec<String> = (0..20)
        .map(|number| match number % 4 {
            0 => format!("/wait/30?{number}"),
            1 => format!("/bytes/{}", number * 100),
            2 => format!("/echo?{number}"),
            _ => format!("/chunked?{number}"),
        })
        .collect();
    let requests: String = paths
        .iter()
        .enumerate()
        .map(|(at, path)| if at % 4 == 2 { post(path, "", &format!("body {at}")) } else { get(path, "") })
        .collect();
    client.send(&requests)?;
    for (at, path) in paths.iter().enumerate() {
        let answer = client.response("GET").with_context(|| path.clone())?;
        let right = match at % 4 {
            0 => answer.text().starts_with("app-"),
            1 => answer.body == pattern(at * 100),
            2 => answer.text().contains(path) && answer.text().ends_with(&format!("body {at}")),
            _ => answer.text() == "chunk-one,chunk-two",
        };
        ensure!(answer.status == 200 && right, "{path} got {answer:?}");
    }
    Ok(())
}

fn expectations(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    let head = |path: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    };
    for _ in 0..2 {
        client.send(head("/echo"))?;
        let go_on = client.head()?;
        ensure!(go_on.status == 100, "{go_on:?}");
        client.send("hello")?;
        let answer = client.response("POST")?;
        ensure!(answer.status == 200 && answer.text().ends_with("hello"), "{answer:?}");
    }
    // the backend refuses before there is a body
    client.send(head("/early-close"))?;
    let answer = client.head()?;
    ensure!(answer.status == 413, "{answer:?}");
    let answer = site.ask(WEB, &get("/who", "Expect: something\r\n"))?;
    answer.must_be(417, "expectation-unsupported")
}

fn connect(site: &mut Site) -> Result<()> {
    let answer = site.ask(WEB, "CONNECT weir.test:443 HTTP/1.1\r\nHost: weir.test:443\r\n\r\n")?;
    answer.must_be(405, "method-refused")?;
    ensure!(site.backends.seen().is_empty(), "a backend saw it");
    // where it is allowed it is a tunnel, whatever goes through it
    let mut client = site.client(OTHER)?;
    client.send("CONNECT weir.test:443 HTTP/1.1\r\nHost: weir.test:443\r\n\r\nahead")?;
    let answer = client.head()?;
    ensure!(answer.status == 200 && answer.field("content-length").is_none(), "{answer:?}");
    ensure!(client.bytes(5)? == b"ahead", "what was sent ahead is lost");
    let word = "GET / HTTP/1.1\r\n\r\n\x16\x03\x01\0";
    client.send(word)?;
    ensure!(client.bytes(word.len())? == word.as_bytes(), "the tunnel changes bytes");
    ensure!(site.status()?.http("other", "tunnels") == 1, "the tunnel is not counted");
    client.stream.shutdown(Shutdown::Write)?;
    ensure!(client.ended(2 * SECOND)? == End::Finished, "a FIN became a RST");
    let seen = site.backends.seen();
    ensure!(seen.iter().any(|seen| seen.head.starts_with("CONNECT weir.test:443 HTTP/1.1\r\n")), "{seen:?}");
    Ok(())
}

fn upgrade(site: &mut Site) -> Result<()> {
    let request = get("/upgrade", "Connection: Upgrade\r\nUpgrade: echo\r\n");
    let mut client = site.client(WEB)?;
    let answer = client.ask(&request)?;
    ensure!(answer.status == 101 && answer.field("upgrade") == Some("echo"), "{answer:?}");
    for number in 0..20 {
        let word = format!("{number} GET / HTTP/1.1\r\n\r\n{}", "x".repeat(number * 300));
        client.send(&word)?;
        let came = client.bytes(word.len())?;
        ensure!(came == word.as_bytes(), "{number} came back as {:?}", String::from_utf8_lossy(&came));
    }
    client.stream.shutdown(Shutdown::Write)?;
    ensure!(client.ended(2 * SECOND)? == End::Finished, "a FIN became a RST");
    let refused = site.ask(OTHER, &request)?;
    ensure!(refused.status != 101, "a listener without upgrades: {refused:?}");
    Ok(())
}

fn web_socket(site: &mut Site) -> Result<()> {
    let fields = format!(
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n",
        websocket::KEY
    );
    let mut client = site.client(WEB)?;
    // the first frame comes with the request
    let first = websocket::frame(b"first", [1, 2, 3, 4]);
    client.send([get("/upgrade", &fields).as_bytes(), &first].concat())?;
    let answer = client.response("GET")?;
    ensure!(
        answer.status == 101 && answer.field("sec-websocket-accept") == Some(websocket::ACCEPT),
        "{answer:?}"
    );
    for text in [&b"first"[..], b"hello", b"world"] {
        if text != b"first" {
            client.send(websocket::frame(text, [9, 8, 7, 6]))?;
        }
        let expected = websocket::plain(text);
        let got = client.bytes(expected.len())?;
        ensure!(got == expected, "a frame came back as {got:02x?}");
    }
    Ok(())
}

fn large(site: &mut Site) -> Result<()> {
    const BYTES: usize = 6 << 20;
    let mut client = site.client(WEB)?;
    let answer = client.get(&format!("/bytes/{BYTES}"))?;
    ensure!(answer.body == pattern(BYTES), "{} bytes came, or others", answer.body.len());
    let body = pattern(BYTES);
    client.send(format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {BYTES}\r\n\r\n"))?;
    // the backend answers once it has all
    client.send(&body)?;
    let answer = client.response("POST")?;
    ensure!(answer.body.ends_with(&body), "an upload came back changed: {} bytes", answer.body.len());
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    for chunk in body.chunks(70_001) {
        client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat())?;
    }
    client.send("0\r\n\r\n")?;
    let answer = client.response("POST")?;
    ensure!(answer.body.ends_with(&body), "a chunked upload came back changed: {} bytes", answer.body.len());
    Ok(())
}

fn targets(site: &mut Site) -> Result<()> {
    let answer = site.ask(WEB, "GET http://Other.Test/echo?q=%20 HTTP/1.1\r\nHost: weir.test\r\n\r\n")?;
    let head = answer.text();
    ensure!(head.starts_with("GET /echo?q=%20 HTTP/1.1\r\n"), "{head}");
    ensure!(head.to_ascii_lowercase().contains("host: other.test\r\n"), "{head}");
    let answer = site.ask(WEB, "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")?;
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(site.backends.seen_of("*").len() == 1, "{:?}", site.backends.seen());
    site.ask(WEB, "GET / HTTP/1.1\r\n\r\n")?.must_be(400, "request-host")
}

fn half_closed(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    client.send(get("/wait/100", ""))?;
    client.stream.shutdown(Shutdown::Write)?;
    let answer = client.response("GET")?;
    ensure!(answer.status == 200 && client.ended(SECOND)? == End::Finished, "{answer:?}");
    Ok(())
}

/// One client, many requests: a connection to each backend, kept.
fn kept(site: &mut Site) -> Result<()> {
    let mut client = site.client(WEB)?;
    for _ in 0..60 {
        client.get("/who")?.must_be(200, "")?;
    }
    let seen = site.backends.seen_of("/who");
    let connections: BTreeSet<(String, u64)> =
        seen.into_iter().map(|seen| (seen.backend, seen.connection)).collect();
    ensure!(connections.len() <= 3, "60 requests over {connections:?}");
    Ok(())
}
