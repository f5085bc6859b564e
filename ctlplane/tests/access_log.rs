//! The access log of a real instance: names by the generation of an event, and what `weir status` tells.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::io::Read;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hugepages::events::Producer;
use serde_json::{Value, json};
use support::{FakeDataplane, Instance, one_pool};
use weir_abi::columns::{CAUSE_GROUP, HttpBackendColumn, HttpColumn, HttpWorkerColumn};
use weir_abi::events::{
    Breaker, BreakerReason, BreakerState, Exchange, MOST_BYTES, NEVER, NO_ROUTE, Stamp, Texts, Times,
};
use weir_ctlplane::access_log::{AccessLog, Format, Settings, Target};
use weir_http::cause::Cause;

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tell(ring: &mut Producer, generation: u64, backend: u32) {
    let exchange = Exchange {
        stamp: Stamp { unix_us: 1_700_000_000_000_000, generation, worker: 0 },
        listener: 0,
        route: NO_ROUTE,
        pool: 0,
        backend,
        client: IpAddr::from([198, 18, 0, 7]),
        client_port: 1,
        version: 11,
        status: 200,
        cause: 0,
        attempts: 1,
        is_reused: false,
        bytes_in: 0,
        bytes_out: 0,
        times: Times { head_us: 1, queue_us: NEVER, connect_us: NEVER, response_us: NEVER, total_us: 1 },
        texts: Texts { method: b"GET", target: b"/", ..Texts::default() },
        cut: 0,
    };
    let mut record = [0; MOST_BYTES];
    let length = exchange.encode(&mut record);
    assert!(ring.push(&record[..length]));
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn names_are_those_of_the_generation_that_an_event_carries() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let first = engine.generation();
    let segments = instance.segments();
    let mut ring = Producer::open(&segments, "events-0", 1 << 20).unwrap();
    let mut log = AccessLog::start(segments.path().to_owned()).unwrap();
    let path = instance.directory.path().join("access.log");
    let format = Format::parse("%{generation} %{listener} %{pool}/%{backend}").unwrap();
    log.set(Some(&Settings { target: Target::File(path.clone()), format }));
    until("set", || log.report().target.is_some());
    tell(&mut ring, first, 0);
    tell(&mut ring, first, 1);
    // an index that no table has
    tell(&mut ring, first, 77);
    until("three lines", || log.report().written == 3);
    // a backend of another name gets another index; the first generation's names stay known
    engine.apply(&one_pool(&[("one", 1, 100), ("three", 3, 50)]), "weir.toml").unwrap();
    let second = engine.generation();
    assert_ne!(first, second);
    let three =
        instance.read(second).pool("app").backends.iter().find(|b| b.name.as_str() == "three").unwrap().index;
    tell(&mut ring, second, three);
    tell(&mut ring, first, 1);
    // one that never was: answered by the nearest
    tell(&mut ring, second + 9, three);
    until("six lines", || log.report().written == 6);
    log.stop();
    let expected = [
        format!("{first} web-http app/one"),
        format!("{first} web-http app/two"),
        format!("{first} web-http app/77"),
        format!("{second} web-http app/three"),
        format!("{first} web-http app/two"),
        format!("{} web-http app/three", second + 9),
    ];
    assert_eq!(lines(&path), expected);
}

/// An HTTP listener with a pool of two, and an access log.
fn http(log: &Path, format: &str) -> String {
    let text = one_pool(TWO)
        .replace("protocol = \"tcp\"", "protocol = \"http\"")
        .replace("mode = \"nat\"", "mode = \"proxy\"")
        .replace("addresses =", "snat = [\"198.18.0.253\"]\naddresses =");
    format!("{text}[access_log]\npath = {:?}\nformat = {format:?}\n", log.display().to_string())
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Daemon {
    fn start(instance: &Instance) -> Self {
        let child = support::spawn(instance, "info");
        let daemon = Self(child);
        until("socket", || UnixStream::connect(instance.run_dir().join("test.sock")).is_ok());
        daemon
    }

    /// Ends it as an operator does; what it wrote to its log.
    fn stop(mut self) -> String {
        let id = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(self.0.wait().unwrap().success());
        text
    }
}

fn weir(instance: &Instance, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["--instance", "test", "--run-dir"])
        .arg(instance.run_dir())
        .arg("--shm-dir")
        .arg(instance.shm())
        .args(arguments)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn a_daemon_writes_rotates_and_tells() {
    let directory = tempfile::tempdir().unwrap();
    let [first, moved, second] =
        ["access.log", "access.log.1", "other.log"].map(|name| directory.path().join(name));
    let instance = Instance::new(&http(&first, "%{listener} %{pool}/%{backend} %{status}"));
    let daemon = Daemon::start(&instance);
    let mut dataplane = FakeDataplane::start(&instance.segments(), 2);
    dataplane.ack(1);
    let mut ring = Producer::open(&instance.segments(), "events-0", 1 << 20).unwrap();
    tell(&mut ring, 1, 0);
    until("a line", || lines(&first) == ["web-http app/one 200"]);
    std::fs::rename(&first, &moved).unwrap();
    let id = daemon.0.id().to_string();
    assert!(Command::new("kill").args(["-USR1", &id]).status().unwrap().success());
    until("opened again", || first.exists());
    tell(&mut ring, 1, 1);
    until("a line", || lines(&first) == ["web-http app/two 200"]);
    assert_eq!(lines(&moved).len(), 1);
    // a breaker opens
    let stamp = Stamp { unix_us: 1_700_000_000_000_000, generation: 1, worker: 0 };
    let (state, reason) = (BreakerState::Open, BreakerReason::Consecutive);
    let change = Breaker { stamp, backend: 1, state, reason, consecutive: 5, requests: 9, failures: 6 };
    let mut record = [0; MOST_BYTES];
    let length = change.encode(&mut record);
    assert!(ring.push(&record[..length]));
    dataplane.set(0, HttpBackendColumn::GROUP, 1, HttpBackendColumn::BreakerOpen as usize, 1);
    dataplane.set(0, HttpColumn::GROUP, 0, HttpColumn::Requests as usize, 40);
    dataplane.set(1, HttpColumn::GROUP, 0, HttpColumn::Requests as usize, 2);
    let no_route = Cause::NoRoute as usize - 1;
    dataplane.set(1, CAUSE_GROUP, 0, no_route, 7);
    dataplane.set(1, HttpWorkerColumn::GROUP, 0, HttpWorkerColumn::EventsRefused as usize, 3);
    let status = || -> Value { serde_json::from_str(&weir(&instance, &["status", "--json"])).unwrap() };
    until("breaker", || status()["pools"][0]["backends"][1]["http"]["changes"]["state"] == "open");
    let json = status();
    let listener = &json["listeners"][0];
    assert_eq!(
        (&listener["protocol"], &listener["http"]["counters"]["requests"]),
        (&json!("http"), &json!(42))
    );
    assert_eq!(listener["http"]["causes"], json!({ "no-route": 7 }));
    let backend = &json["pools"][0]["backends"][1]["http"];
    assert_eq!(
        (&backend["breaker"], &backend["changes"]["reason"]),
        (&json!("open"), &json!("failures in a row"))
    );
    assert_eq!(json["pools"][0]["backends"][0]["http"]["breaker"], "closed");
    let log = &json["http"]["access_log"];
    assert_eq!((&log["written"], &log["reopened"], &log["dropped_slow"]), (&json!(2), &json!(1), &json!(0)));
    assert_eq!(json["http"]["counters"]["events_refused"], 3);
    assert!(json["unix_ms"].as_u64() > json["counted_since_unix_ms"].as_u64());
    let screen = weir(&instance, &["status"]);
    for part in ["no-route", "open at 1 of 2, failures in a row, for ", "events dropped", "access.log"] {
        assert!(screen.contains(part), "{part} in\n{screen}");
    }
    // another file and another format, at once
    instance.write_config(&http(&second, "json"));
    let applied = weir(&instance, &["apply", instance.options.config.to_str().unwrap()]);
    assert!(applied.contains("nothing to change"), "the dataplane has no part in it: {applied}");
    until("the other target", || status()["http"]["access_log"]["target"] == json!(second));
    tell(&mut ring, 1, 0);
    until("a line of JSON", || lines(&second).len() == 1);
    let line: Value = serde_json::from_str(&lines(&second)[0]).unwrap();
    assert_eq!((&line["listener"], &line["backend"]), (&json!("web-http"), &json!("one")));
    // what was told just before the end is written
    tell(&mut ring, 1, 1);
    let said = daemon.stop();
    assert_eq!(lines(&second).len(), 2);
    assert!(said.contains("breaker of app/two at worker 0: open: failures in a row"), "{said}");
    // with the daemon down the counters still tell
    let json = status();
    assert_eq!(json["pools"][0]["backends"][1]["http"]["breaker"], "open");
    assert!(json["http"]["access_log"].is_null());
}
