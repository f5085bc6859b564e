//! The socket and the command line, as a client meets them.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Acking, Daemon, FakeDataplane, Instance, one_pool, until, weir};
use weir_abi::columns::{ProxyColumn, TcpColumn, UpstreamColumn};

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn bad_requests_are_answered_with_what_is_wrong() {
    let daemon = Daemon::start(&one_pool(TWO));
    for (method, path, body, status, says) in [
        ("GET", "/", "", 404, "speaks /v1/"),
        ("GET", "/v2/status", "", 404, "/v2/status"),
        ("DELETE", "/v1/status", "", 405, "DELETE is not allowed"),
        ("GET", "/v1/apply", "", 405, "not allowed"),
        ("POST", "/v1/apply?dry_run=maybe", "", 400, "dry_run=maybe"),
        ("POST", "/v1/apply?name=%zz", "", 400, "name=%zz"),
        ("POST", "/v1/apply", "[[port]", 422, "error"),
        ("POST", "/v1/apply", "\u{0}", 422, "error"),
        ("POST", "/v1/backends/app/one", "", 400, "the body is not understood"),
        ("POST", "/v1/backends/app/one", "{}", 400, "changes nothing"),
        ("POST", "/v1/backends/app/one", "[1]", 400, "not understood"),
        ("POST", "/v1/backends/app/one", r#"{"weight":65536}"#, 400, "65536"),
        ("POST", "/v1/backends/app/one", r#"{"weight":-1}"#, 400, "-1"),
        ("POST", "/v1/backends/app/one", r#"{"wieght":1}"#, 400, "wieght"),
        ("POST", "/v1/backends/app/one", r#"{"state":"up"}"#, 400, "up"),
        ("POST", "/v1/backends/app/%ff", r#"{"weight":1}"#, 400, "percent"),
        ("POST", "/v1/backends/app/noe", r#"{"weight":1}"#, 404, "did you mean app/one?"),
        ("POST", "/v1/backends/app", r#"{"weight":1}"#, 404, "there is no"),
        ("POST", "/v1/backends/app/one/x", "{}", 404, "there is no"),
    ] {
        let (got, answer) = daemon.send(method, path, body);
        assert_eq!(got, status, "{method} {path} {body}: {answer}");
        let error = answer["error"].as_str().unwrap();
        assert!(error.contains(says), "{method} {path} {body}: {error}");
        assert_eq!(answer["schema"], 1);
    }
    let (status, answer) = daemon.send("POST", "/v1/apply?name=my.toml", "[[port]]\nnmae = 1\n");
    assert_eq!(status, 422);
    let finding = &answer["diagnostics"][0];
    assert_eq!((finding["file"].as_str(), finding["line"].as_u64()), (Some("my.toml"), Some(1)));
    // not HTTP, not UTF-8, too large: answered or hung up on, never the end of the daemon
    daemon.raw(b"\x00\xff\xfe\r\n\r\n");
    daemon
        .raw(b"POST /v1/apply HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: 2\r\n\r\n\xff\xfe");
    let (status, _) = daemon.raw(
        b"POST /v1/apply HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n",
    );
    assert_eq!(status, 413);
    let huge = format!("GET /v1/status HTTP/1.1\r\nHost: w\r\nX: {}\r\n\r\n", "x".repeat(200_000));
    daemon.raw(huge.as_bytes());
    let (status, answer) = daemon.send("GET", "/v1/status", "");
    assert_eq!((status, answer["generation"].as_u64()), (200, Some(1)), "nothing was changed");
}

#[test]
fn changes_are_told_by_what_became_of_them() {
    let daemon = Daemon::start(&one_pool(TWO));
    let change = |weight: u16| {
        let (status, answer) =
            daemon.send("POST", "/v1/backends/app/two", &format!("{{\"weight\":{weight}}}"));
        assert_eq!(status, 200, "{answer}");
        answer["outcome"]["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(change(1), "no_dataplane");
    assert_eq!(change(1), "unchanged");
    let mut dataplane = FakeDataplane::start(&daemon.instance.segments(), 2);
    dataplane.ack(2);
    let acking = std::thread::spawn(move || {
        until("generation 3", || dataplane.published() == 3);
        dataplane.ack(3);
        until("generation 4", || dataplane.published() == 4);
        dataplane.refuse(4, "needs a restart of weir-dataplane: workers");
        dataplane
    });
    assert_eq!(change(2), "acked");
    assert_eq!(change(3), "refused");
    let dataplane = acking.join().unwrap();
    // nobody answers: the client is told after five seconds
    let start = Instant::now();
    drop(dataplane);
    let _silent = FakeDataplane::start(&daemon.instance.segments(), 2);
    assert_eq!(change(4), "pending");
    assert!(start.elapsed() >= Duration::from_secs(5));
}

#[test]
fn the_command_line_steers_a_daemon() {
    let daemon = Daemon::start(&one_pool(TWO));
    let ok = |arguments: &[&str]| {
        let output = daemon.weir(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let fails = |arguments: &[&str], code: i32| {
        let output = daemon.weir(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stderr)
    };
    assert!(ok(&["backend", "weight", "two", "70"]).contains("generation 2"));
    assert!(ok(&["backend", "drain", "app/one"]).contains("generation 3"));
    assert!(fails(&["backend", "drain", "two"], 1).contains("--force"));
    assert!(fails(&["backend", "weight", "app/tow", "1"], 1).contains("did you mean app/two?"));
    assert!(fails(&["backend", "weight", "tow", "1"], 1).contains("weir backend list"));
    fails(&["backend", "weight", "two", "70000"], 2);
    fails(&["frobnicate"], 2);
    let list = ok(&["backend", "list"]);
    assert!(list.contains("app/one") && list.contains("drain") && !list.contains('\u{1b}'), "{list}");
    ok(&["backend", "ready", "one"]);

    let config = daemon.instance.options.config.display().to_string();
    assert!(ok(&["check", &config]).contains("is good"));
    assert!(ok(&["apply", &config, "--dry-run"]).contains("nothing was changed"));
    assert!(ok(&["apply", &config]).contains("nothing to change"));
    let bad = daemon.instance.directory.path().join("bad.toml");
    std::fs::write(&bad, "[[port]]\nnmae = \"x\"\n").unwrap();
    let bad = bad.display().to_string();
    let checked = daemon.weir(&["check", &bad]);
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stdout).contains("bad.toml:2:1"));
    let json: Value = serde_json::from_slice(&daemon.weir(&["check", "--json", &bad]).stdout).unwrap();
    assert_eq!((json["ok"].as_bool(), json["diagnostics"][0]["line"].as_u64()), (Some(false), Some(1)));
    assert!(fails(&["apply", &bad], 1).contains("bad.toml:2:1"));
    assert!(fails(&["check", "/nonexistent"], 2).contains("cannot read"));
    let large = daemon.instance.directory.path().join("large.toml");
    std::fs::write(&large, "#".repeat((32 << 20) + 1)).unwrap();
    for command in ["check", "apply"] {
        let complaint = fails(&[command, &large.display().to_string()], 1);
        assert!(complaint.contains("large.toml is larger than the limit of 33554432 bytes"), "{complaint}");
    }

    let mut dataplane = FakeDataplane::start(&daemon.instance.segments(), 1);
    dataplane.ack(4);
    let status = daemon.weir(&["status", "--json"]);
    assert_eq!(status.status.code(), Some(0), "{}", text(&status.stdout));
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((status["generation"].as_u64(), status["drift"].as_bool()), (Some(4), Some(true)));
    assert_eq!(status["pools"][0]["backends"][1]["weight"], 70);
    assert_eq!(status["ctlplane"]["pid"].as_u64(), Some(u64::from(daemon.child.id())));
    let drained = daemon.weir(&["backend", "drain", "one", "--wait", "--timeout", "1s"]);
    assert!(text(&drained.stdout).contains("generation 5"), "{}", text(&drained.stdout));
}

#[test]
fn draining_waits_for_the_last_flow() {
    let daemon = Daemon::start(&one_pool(TWO));
    let mut dataplane = FakeDataplane::start(&daemon.instance.segments(), 1);
    dataplane.ack(1);
    dataplane.set_backend_flows(0, 3);
    let acking = Acking::start(dataplane);
    let late = daemon.weir(&["backend", "drain", "one", "--wait", "--timeout", "300ms"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(
        text(&late.stderr).contains("app/one still has 3 flows, 0 connections after 300ms"),
        "{}",
        text(&late.stderr)
    );
    acking.ask(|dataplane| dataplane.set_backend_flows(0, 0));
    let drained = daemon.weir(&["backend", "drain", "one", "--wait"]);
    assert!(drained.status.success(), "{}", text(&drained.stderr));
    assert!(text(&drained.stdout).contains("app/one has no active flows"));
    drop(acking.stop());
}

#[test]
fn proxied_connections_are_shown_and_waited_for() {
    let proxied = one_pool(TWO).replace("mode = \"nat\"", "mode = \"proxy\"");
    let daemon = Daemon::start(&proxied);
    let mut dataplane = FakeDataplane::start(&daemon.instance.segments(), 1);
    dataplane.ack(1);
    for (column, value) in [
        (TcpColumn::Established, 12_345),
        (TcpColumn::ConnectionsCapacity, 65_536),
        (TcpColumn::MemoryPinned, 3 << 20),
        (TcpColumn::Retransmitted, 77),
        (TcpColumn::ResetsBadAck, 4_321),
    ] {
        dataplane.set(0, TcpColumn::GROUP, 0, column as usize, value);
    }
    dataplane.set(0, ProxyColumn::GROUP, 0, ProxyColumn::IdleTimeouts as usize, 6_543);
    dataplane.set(0, UpstreamColumn::GROUP, 0, UpstreamColumn::Active as usize, 2);
    dataplane.set(0, UpstreamColumn::GROUP, 1, UpstreamColumn::ConnectFailures as usize, 9_876);
    let shown = text(&daemon.weir(&["status"]).stdout);
    let line = |wanted: &str| {
        let found = shown.lines().find(|line| line.contains(wanted));
        found.unwrap_or_else(|| panic!("no {wanted} in\n{shown}")).to_owned()
    };
    assert!(shown.contains("\ntcp\n") && shown.contains("\nproxies\n"), "{shown}");
    assert!(line("12345").contains("65536") && line("12345").contains("3MiB of 256MiB"), "{shown}");
    assert!(shown.contains("retransmitted") && shown.contains("77"), "{shown}");
    assert!(shown.contains("bad ack") && shown.contains("4321"), "{shown}");
    assert!(line("6543").contains("web-http"), "{shown}");
    assert!(line("9876").contains("app/two"), "{shown}");
    dataplane.ack(1);
    let acking = Acking::start(dataplane);
    let late = daemon.weir(&["backend", "drain", "one", "--wait", "--timeout", "300ms"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(
        text(&late.stderr).contains("app/one still has 0 flows, 2 connections after 300ms"),
        "{}",
        text(&late.stderr)
    );
    let dataplane = acking.stop();
    dataplane.set(0, UpstreamColumn::GROUP, 0, UpstreamColumn::Active as usize, 0);
    let listed = text(&daemon.weir(&["backend", "list"]).stdout);
    assert!(listed.contains("app/one"), "{listed}");
    drop(dataplane);
}

#[test]
fn a_killed_daemon_comes_back_and_status_works_meanwhile() {
    let mut daemon = Daemon::start(&one_pool(TWO));
    daemon.weir(&["backend", "weight", "two", "70"]);
    let mut dataplane = FakeDataplane::start(&daemon.instance.segments(), 1);
    dataplane.ack(2);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(daemon.socket().exists(), "a stale socket is left");
    let down = daemon.weir(&["status", "--json"]);
    assert_eq!(down.status.code(), Some(1));
    let status: Value = serde_json::from_slice(&down.stdout).unwrap();
    assert_eq!((status["ctlplane"]["state"].as_str(), status["drift"].clone()), (Some("down"), Value::Null));
    assert_eq!(status["pools"][0]["backends"][1]["weight"], 70);
    let refused = daemon.weir(&["backend", "list"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("start it"));
    daemon.again();
    let status = daemon.weir(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["generation"].as_u64(), Some(2), "the same generation");
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let daemon = Daemon::start(&one_pool(TWO));
    let connect = || UnixStream::connect(daemon.socket()).unwrap();
    let idle: Vec<UnixStream> = (0..300).map(|_| connect()).collect();
    let start = Instant::now();
    let (status, _) = daemon.send("GET", "/v1/status", "");
    assert_eq!(status, 200);
    assert!(start.elapsed() < Duration::from_millis(4_500), "{:?}", start.elapsed());
    drop(idle);
}

#[test]
fn one_daemon_per_instance() {
    let daemon = Daemon::start(&one_pool(TWO));
    let second = support::spawn(&daemon.instance, "warn").wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("runs already"), "{}", text(&second.stderr));
    let (status, _) = daemon.send("GET", "/v1/status", "");
    assert_eq!(status, 200, "the first goes on");
}

#[test]
fn completions_and_manual_are_there() {
    let instance = Instance::new("");
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&weir(&instance, &["completion", shell]).stdout).contains("weir"));
    }
    assert!(text(&weir(&instance, &["man"]).stdout).contains(".TH"));
    let status = weir(&instance, &["status"]);
    assert_eq!(status.status.code(), Some(2));
    let shown = text(&status.stdout);
    assert!(shown.contains("unreachable") && shown.contains("there is no instance test in"), "{shown}");
    assert!(!shown.contains("start it"), "{shown}");
}
