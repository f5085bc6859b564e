//! Where does a request end? Over the wire, the cases of `dataplane/http/tests/cases`: Weir refuses them, or agrees with whoever stands
//! behind it, be it a strict recorder, nginx or HAProxy before nginx. After each case follows a marker on the same connection: it
//! is answered as a request of its own, or the connection ends; it is never part of another request.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Scratch, Site, Text};
use crate::interrupt::{self, wait_for};
use crate::scenario::{Context, Scenario};
use crate::supervisor::{Process, Program};
use crate::topology::lab::{Family, backend};

/// Files with requests.
const FILES: [&str; 7] = ["request-line", "host", "fields", "framing", "chunked", "connection", "forwarding"];
/// Listeners before the recorder, nginx, and HAProxy before nginx.
const RECORDER: u16 = 80;
const NGINX: u16 = 81;
const HAPROXY: u16 = 82;
/// Port of nginx and of HAProxy.
const SERVER: u16 = 9_200;
/// Cases whose body goes on behind what the file has: what follows would be part of it.
const UNFINISHED: [&str; 3] = ["length-overflow-32", "chunk-unfinished", "chunk-size-unfinished"];
/// Least number of cases: fewer mean that the table was not found.
const LEAST: usize = 200;
const SECOND: Duration = Duration::from_secs(1);

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("http/smuggling", smuggling)]
}

/// What Weir should do.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// Refuse it, for a cause.
    Refused(String),
    /// Pass it on; whether the client's connection goes on.
    Accepted { keeps: bool },
}

#[derive(Clone, Debug)]
struct Case {
    name: String,
    input: Vec<u8>,
    expected: Expected,
}

impl Case {
    fn method(&self) -> &str {
        if self.input.starts_with(b"HEAD ") { "HEAD" } else { "GET" }
    }
}

fn unescape(text: &str) -> Result<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::new(), text.chars());
    while let Some(next) = rest.next() {
        if next != '\\' {
            bytes.extend(next.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        bytes.push(match rest.next() {
            Some('r') => b'\r',
            Some('n') => b'\n',
            Some('t') => b'\t',
            Some('\\') => b'\\',
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                u8::from_str_radix(&digits, 16).with_context(|| text.to_owned())?
            }
            other => bail!("{other:?} after a backslash in {text:?}"),
        });
    }
    Ok(bytes)
}

fn line(text: &str) -> Result<Vec<u8>> {
    let text = text.strip_prefix(' ').unwrap_or(text);
    let slashes = text.bytes().rev().take_while(|byte| *byte == b'\\').count();
    if slashes % 2 == 1 {
        return unescape(&text[..text.len() - 1]);
    }
    Ok([unescape(text)?, b"\r\n".to_vec()].concat())
}

/// Requests of a file that need nothing but the defaults and say what is to become of them.
fn read(text: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for block in text.split("\ncase: ").skip(1) {
        let mut lines = block.lines();
        let name = lines.next().unwrap_or_default().to_owned();
        let (mut input, mut expected, mut left) = (Vec::new(), None, Vec::new());
        let (mut is_out, mut is_plain) = (false, true);
        for text in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(text) = text.strip_prefix('|') {
                if !is_out {
                    input.extend(line(text)?);
                }
                continue;
            }
            let (key, value) = text.split_once(':').with_context(|| format!("{name}: {text}"))?;
            let value = value.trim();
            match key {
                "with" | "to" => is_plain = false,
                "out" => is_out = true,
                "refused" => {
                    let cause = value.split(' ').next().unwrap_or_default().to_owned();
                    expected = Some(Expected::Refused(cause));
                }
                "accepted" => {
                    let keeps = value.split(' ').any(|word| word == "keep");
                    expected = Some(Expected::Accepted { keeps });
                }
                "left" => left = unescape(value)?,
                _ => {}
            }
        }
        // what belongs to the next message is the marker's place
        if input.ends_with(&left) {
            input.truncate(input.len() - left.len());
        } else {
            is_plain = false;
        }
        is_plain &= !UNFINISHED.contains(&name.as_str());
        if let (true, Some(expected)) = (is_plain, expected) {
            cases.push(Case { name, input, expected });
        }
    }
    Ok(cases)
}

fn all() -> Result<Vec<Case>> {
    let folder = crate::setup::repository().join("dataplane/http/tests/cases");
    let mut cases = Vec::new();
    for file in FILES {
        let path = folder.join(format!("{file}.txt"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        cases.extend(read(&text).with_context(|| file.to_owned())?);
    }
    ensure!(cases.len() >= LEAST, "only {} cases in {}", cases.len(), folder.display());
    Ok(cases)
}

/// nginx at the second backend, HAProxy before it at the third; where they write down what they took for requests.
struct Servers {
    _processes: Vec<Process>,
    nginx: String,
    haproxy: String,
}

impl Servers {
    fn start(site: &Site, scratch: &Scratch) -> Result<Self> {
        let lab = &site.rig.lab;
        let log = scratch.file("nginx.log");
        let configuration = scratch.file("nginx.conf");
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {};\n", scratch.file(kind)))
            .collect();
        std::fs::write(
            &configuration,
            format!(
                "daemon off;\nmaster_process off;\npid {};\nerror_log stderr crit;\nevents {{ worker_connections 1024; }}\nhttp {{\n{temporary}\
                 log_format seen '$request_method $request_uri $status';\naccess_log {log} seen;\n\
                 server {{ listen {SERVER}; location / {{ return 200 \"$request_uri\"; }} }}\n}}\n",
                scratch.file("nginx.pid")
            ),
        )?;
        let arguments = ["-c", &configuration, "-e", "stderr", "-p", &scratch.file("")];
        let nginx = Program::new("nginx-smuggling", "nginx", &arguments).within(&lab.backends[1]);
        let configuration = scratch.file("haproxy.cfg");
        let server = SocketAddr::new(backend(Family::Ipv4, 2), SERVER);
        std::fs::write(
            &configuration,
            format!(
                "global\n nbthread 1\n maxconn 1000\n log stdout format raw local0 info\ndefaults\n mode http\n log global\n log-format \"%HM %HU %ST\"\n \
                 timeout connect 2s\n timeout client 10s\n timeout server 10s\n timeout http-keep-alive 10s\nlisten all\n bind :{SERVER}\n server nginx {server}\n"
            ),
        )?;
        let haproxy =
            Program::new("haproxy", "haproxy", &["-db", "-f", &configuration]).within(&lab.backends[2]);
        let logs = site.rig.run.logs();
        let mut processes = vec![Process::start(nginx, &logs)?, Process::start(haproxy, &logs)?];
        for (process, number) in processes.iter_mut().zip([2, 3]) {
            let place = SocketAddr::new(backend(Family::Ipv4, number), SERVER);
            wait_for("a server to listen", Duration::from_secs(5), || {
                process.must_run()?;
                lab.backends[number - 1].run(|| std::net::TcpStream::connect(place).is_ok().then_some(()))
            })?;
        }
        let haproxy = logs.join("haproxy.log").display().to_string();
        Ok(Self { _processes: processes, nginx: log, haproxy })
    }
}

fn smuggling(context: &Context) -> Result<()> {
    let cases = all()?;
    let scratch = Scratch::new()?;
    let idle = "http = { idle = \"1s\", breaker = \"off\", retry = { attempts = 0 } }\n";
    let text = Text::new()
        .listener("recorder", RECORDER, "recorder", "")
        .listener("nginx", NGINX, "nginx", "")
        .listener("haproxy", HAPROXY, "haproxy", "")
        .pool("recorder", idle, crate::traffic::backend::SCRIPT_PORT, &[(1, "")])
        .pool("nginx", idle, SERVER, &[(2, "")])
        .pool("haproxy", idle, SERVER, &[(3, "")]);
    let site = Site::start(context, text)?;
    let servers = Servers::start(&site, &scratch)?;
    let mut failed = Vec::new();
    let mut passed_on = 0;
    for (number, case) in cases.iter().enumerate() {
        interrupt::check()?;
        site.backends.forget();
        for port in [RECORDER, NGINX, HAPROXY] {
            match one(&site, &servers, port, case, number) {
                Ok(is_answered) => passed_on += usize::from(is_answered && port == RECORDER),
                Err(error) => failed.push(format!("{} at {port}: {error:#}", case.name)),
            }
        }
    }
    println!("      {} cases, {passed_on} of them passed on, before three backends each", cases.len());
    if !failed.is_empty() {
        let count = failed.len();
        failed.truncate(40);
        bail!("{count} failed\n{}", failed.join("\n"));
    }
    drop(servers);
    site.finish()
}

/// Sends a case and its marker; whether it was passed on.
fn one(site: &Site, servers: &Servers, port: u16, case: &Case, number: usize) -> Result<bool> {
    let marker = format!("/echo?marker-{port}-{number}");
    let request = format!("GET {marker} HTTP/1.1\r\nHost: marker\r\nX-Port: {port}\r\n\r\n");
    let before = [&servers.nginx, &servers.haproxy].map(|log| length(log));
    let mut client = site.client(port)?;
    client.send([case.input.as_slice(), request.as_bytes()].concat())?;
    let answer = client.response(case.method());
    let Expected::Accepted { keeps } = &case.expected else {
        let Expected::Refused(cause) = &case.expected else { return Ok(false) };
        let answer = answer.context("no answer to what is refused")?;
        ensure!(
            answer.cause() == cause,
            "{} {:?}, should be refused as {cause}",
            answer.status,
            answer.cause()
        );
        let (rest, _) = client.rest(3 * SECOND)?;
        ensure!(rest.is_empty(), "after it came {:?}", String::from_utf8_lossy(&rest));
        must_not_be_seen(site, servers, &before, &marker)?;
        return Ok(false);
    };
    let answer = answer.context("no answer to what is accepted")?;
    let refused_later = ["method-refused", "expectation-unsupported", "upgrade-refused"];
    if !answer.cause().is_empty() && !refused_later.contains(&answer.cause()) {
        // whoever stands behind may be stricter and end the connection instead of an answer
        let is_theirs = port != RECORDER && answer.cause().starts_with("response-");
        ensure!(is_theirs, "{} {:?}, should pass", answer.status, answer.cause());
    }
    let closes = answer.field("connection") == Some("close") || answer.version == "HTTP/1.0";
    if closes || !keeps {
        let (rest, _) = client.rest(3 * SECOND)?;
        ensure!(rest.is_empty(), "after the last answer came {:?}", String::from_utf8_lossy(&rest));
        ensure!(!*keeps || answer.status >= 400, "the connection was closed after {}", answer.status);
        must_not_be_seen(site, servers, &before, &marker)?;
        return Ok(true);
    }
    let second = client.response("GET").context("no answer to the marker")?;
    ensure!(second.status == 200 && second.text().contains(&marker), "the marker got {second:?}");
    let own = !answer.cause().is_empty();
    if port == RECORDER {
        let seen = site.backends.seen();
        let of_marker = seen.iter().filter(|seen| seen.target() == marker).count();
        ensure!(seen.iter().all(|seen| seen.is_whole), "a request is not whole: {seen:?}");
        ensure!(of_marker == 1 && seen.len() == if own { 1 } else { 2 }, "the recorder saw {seen:#?}");
    } else {
        let logs: &[(&str, u64)] = if port == NGINX {
            &[(&servers.nginx, before[0])]
        } else {
            &[(&servers.nginx, before[0]), (&servers.haproxy, before[1])]
        };
        for (log, from) in logs {
            let lines = wait_for("the marker in a log", 2 * SECOND, || {
                let lines = since(log, *from)?;
                Ok(lines.iter().any(|line| line.contains(&marker)).then_some(lines))
            });
            let lines = lines.with_context(|| format!("{log}: {:?}", since(log, *from)))?;
            let of_marker = lines.iter().filter(|line| line.contains(&marker)).count();
            ensure!(of_marker == 1 && lines.len() <= 2, "{log} has {lines:?}");
        }
    }
    Ok(true)
}

/// The marker of a connection that ended is nobody's request.
fn must_not_be_seen(site: &Site, servers: &Servers, before: &[u64; 2], marker: &str) -> Result<()> {
    let seen = site.backends.seen();
    ensure!(!seen.iter().any(|seen| seen.target() == marker), "the recorder saw the marker");
    let within = |seen: &&crate::traffic::backend::Seen| {
        String::from_utf8_lossy(&seen.body).contains(marker) && seen.is_whole
    };
    ensure!(!seen.iter().any(|seen| within(&seen)), "the marker became part of a body: {seen:?}");
    for (log, from) in [&servers.nginx, &servers.haproxy].into_iter().zip(before) {
        let lines = since(log, *from)?;
        ensure!(!lines.iter().any(|line| line.contains(marker)), "{log} has the marker: {lines:?}");
    }
    Ok(())
}

fn length(path: &str) -> u64 {
    Path::new(path).metadata().map_or(0, |data| data.len())
}

/// Lines that were written since then.
fn since(path: &str, from: u64) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| path.to_owned())?;
    let new = bytes.get(from as usize..).unwrap_or_default();
    Ok(String::from_utf8_lossy(new).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        let cases = all().unwrap();
        let refused = cases.iter().filter(|case| matches!(case.expected, Expected::Refused(_))).count();
        assert!(refused > 80 && cases.len() - refused > 50, "{refused} of {} are refused", cases.len());
        let length = cases.iter().find(|case| case.name == "length").unwrap();
        assert!(length.input.ends_with(b"\r\n\r\nhello"), "{:?}", String::from_utf8_lossy(&length.input));
        assert_eq!(length.expected, Expected::Accepted { keeps: true });
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(line(" a\\x00\\t\\\\").unwrap(), b"a\0\t\\\r\n");
        assert_eq!(line(" a\\").unwrap(), b"a");
    }
}
