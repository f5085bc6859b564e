//! What no client should send: wrong sizes, types and encodings, at once and at random, to the socket and on the command line.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::Command;

use serde_json::json;
use support::{Daemon, one_pool};

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

#[test]
fn every_endpoint_refuses_what_it_does_not_understand() {
    let daemon = Daemon::start(&one_pool(TWO));
    for (method, path, body, status, says) in [
        ("POST", "/v1/node", &b""[..], 400, "not understood"),
        ("POST", "/v1/node", b"{}", 400, "missing field"),
        ("POST", "/v1/node", b"null", 400, "ready"),
        ("POST", "/v1/node", b"{\"state\":\"up\"}", 400, "up"),
        ("POST", "/v1/node", b"{\"state\":1}", 400, "not understood"),
        ("POST", "/v1/listeners/none", b"{\"state\":\"drain\"}", 404, "no listener none"),
        ("POST", "/v1/listeners/%ff", b"{\"state\":\"drain\"}", 400, "percent"),
        ("POST", "/v1/listeners/%+f", b"{\"state\":\"drain\"}", 400, "percent"),
        ("GET", "/v1/listeners/web-http", b"", 405, "not allowed"),
        ("POST", "/v1/explain", b"[]", 400, "weir explain request"),
        ("POST", "/v1/explain", b"[\"http://198.19.0.1/\"]", 400, "not understood"),
        ("GET", "/v1/explain/access/web-http/nowhere", b"", 400, "not an IP address"),
        ("GET", "/v1/explain/access/none/198.18.0.9", b"", 404, "none"),
        ("POST", "/v1/changes?expect=", b"{}", 400, "expect="),
        ("POST", "/v1/changes?frob=1", b"{}", 400, "frob=1"),
        ("POST", "/v1/changes?confirm=25h", b"{\"changes\":[]}", 400, "1s to 24h"),
        ("GET", "/v1/status?name=%zz", b"", 400, "name=%zz"),
        ("POST", "/v1/apply?revision=%ff", b"", 400, "revision"),
        ("POST", "/v1/apply", b"\xff\xfe[\0", 400, "save it as UTF-8"),
        ("POST", "/v1/apply", b"\0", 422, "error"),
        ("POST", "/v1/backends/app/one", b"\xff\xfe{\0}\0", 400, "not understood"),
        ("POST", "/v1/backends/app/one", b"\xef\xbb\xbf{\"weight\":1}", 400, "not understood"),
        ("POST", "/v1/backends/app/one", b"{\"weight\":1e999}", 400, "not understood"),
        ("POST", "/v1/backends/app/one", b"{\"weight\":1.5}", 400, "1.5"),
        ("POST", "/v1/backends/app/one", b"{\"weight\":\"1\"}", 400, "string"),
        ("POST", "/v1/backends/app/one", b"{\"weight\":1}{", 400, "not understood"),
        ("POST", "/v1/backends/app/one", b"{\"weight\":1,\"state\":\"ready\",\"x\":0}", 400, "x"),
        ("POST", "/v1/backends//one", b"{\"weight\":1}", 404, "no backend /one"),
        ("POST", "/v1/backends/app/..", b"{\"weight\":1}", 404, "no backend app/.."),
        ("POST", "/v1/backends/app/o%00ne", b"{\"weight\":1}", 404, "no backend app/o"),
        ("POST", "/v1/restore", b"[]", 400, "weir backup"),
        ("PUT", "/v1/changes", b"{}", 405, "PUT is not allowed"),
        ("HACK", "/v1/status", b"", 405, "HACK is not allowed"),
    ] {
        let told = format!("{method} {path} {}", String::from_utf8_lossy(body));
        let (got, answer) = daemon.try_send(method, path, "", body).unwrap_or_else(|| panic!("{told}"));
        let error = answer["error"].as_str().unwrap_or("");
        assert_eq!(got, status, "{told}: {answer}");
        assert!(error.contains(says), "{told}: {error}");
        assert_eq!(answer["schema"], 1, "{told}");
    }
    for name in ["", " ", "a b", "a/b", "\u{0}", "\u{1b}[2J", "\u{202e}x", &"x".repeat(300)] {
        let change = json!({ "changes": [{ "op": "add", "kind": "pool", "name": name }] }).to_string();
        let (status, answer) = daemon.send("POST", "/v1/changes", &change);
        assert_eq!(status, 422, "{name:?}: {answer}");
        assert!(!answer["error"].as_str().unwrap().is_empty());
    }
    for (request, status) in [
        // two lengths, a length and chunks, a chunk that is none, more of a head than is taken
        ("POST /v1/node HTTP/1.1\r\nHost: w\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_owned(), 400),
        ("POST /v1/node HTTP/1.1\r\nHost: w\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
        (
            "POST /v1/node HTTP/1.1\r\nHost: w\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n".to_owned(),
            400,
        ),
        (format!("GET /v1/status HTTP/1.1\r\nHost: w\r\nX: {}\r\n\r\n", "x".repeat(1_000_000)), 431),
        (format!("GET /{} HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n", "x".repeat(60_000)), 404),
        ("GET  HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /v1/status HTTP/9.9\r\n\r\n".to_owned(), 400),
    ] {
        let (got, body) = daemon.raw(request.as_bytes());
        assert_eq!(got, status, "{}: {body}", &request[..request.len().min(120)]);
    }
    assert_eq!(daemon.last_change()["number"], 1, "nothing changed");
}

#[test]
fn of_many_who_add_the_same_one_does() {
    let daemon = Daemon::start(&one_pool(TWO));
    let add = json!({ "changes": [{
        "op": "add", "kind": "backend", "name": "app/three", "fields": { "address": "198.18.1.3" }
    }] })
    .to_string();
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..12).map(|_| scope.spawn(|| daemon.send("POST", "/v1/changes", &add).0)).collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
    assert_eq!(answers.iter().filter(|status| **status == 409).count(), 11, "{answers:?}");
    // changes, rollbacks and questions at once: all answered, and each change has its number
    std::thread::scope(|scope| {
        for writer in 0..4u64 {
            let daemon = &daemon;
            scope.spawn(move || {
                for round in 0..10u64 {
                    let weight = format!("{{\"weight\":{}}}", 1 + writer * 100 + round);
                    let (path, body) = match writer {
                        0 => ("/v1/rollback?to=1", ""),
                        _ => ("/v1/backends/app/one", weight.as_str()),
                    };
                    let (status, answer) = daemon.send("POST", path, body);
                    assert_eq!(status, 200, "{path}: {answer}");
                    assert_eq!(daemon.send("GET", "/v1/diff?from=1", "").0, 200);
                }
            });
        }
    });
    let history = daemon.send("GET", "/v1/history", "").1;
    let numbers: Vec<u64> =
        history["changes"].as_array().unwrap().iter().map(|c| c["number"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] == pair[1] + 1), "{numbers:?}");
}

#[test]
fn random_requests_are_answered_and_never_end_the_daemon() {
    let seed: u64 = 0x9e37_79b9_7f4a_7c15;
    println!("seed {seed}");
    let mut state = seed;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut daemon = Daemon::start(&one_pool(TWO));
    let good: Vec<(&str, &str, Vec<u8>)> = vec![
        ("POST", "/v1/backends/app/one?force=1", b"{\"weight\":7,\"state\":\"drain\"}".to_vec()),
        (
            "POST",
            "/v1/changes?dry_run=false&expect=1&confirm=5m",
            b"{\"changes\":[{\"op\":\"set\",\"kind\":\"pool\",\"name\":\"app\",\"fields\":{\"slots\":509}}]}"
                .to_vec(),
        ),
        ("POST", "/v1/listeners/web-http", b"{\"state\":\"maint\"}".to_vec()),
        ("POST", "/v1/apply?name=a%20b", one_pool(TWO).into_bytes()),
        ("POST", "/v1/rollback?to=1", Vec::new()),
        ("POST", "/v1/discard", Vec::new()),
        ("GET", "/v1/diff?from=1&to=2", Vec::new()),
        ("GET", "/v1/explain/access/web-http/198.18.0.9", Vec::new()),
        ("POST", "/v1/restore", daemon.send("POST", "/v1/backup", "").1.to_string().into_bytes()),
    ];
    for round in 0..400 {
        let (method, path, body) = &good[random(good.len())];
        let (mut path, mut body) = (path.as_bytes().to_vec(), body.clone());
        for text in [&mut path, &mut body] {
            for _ in 0..random(4) {
                let length = text.len();
                match (random(4), length) {
                    (_, 0) | (0, _) => text.insert(random(length + 1), random(256) as u8),
                    (1, _) => text[random(length)] ^= 1 << random(8),
                    (2, _) => drop(text.remove(random(length))),
                    _ => text.truncate(random(length) + 1),
                }
            }
        }
        // what stands in a request line; anything else is the HTTP library's to refuse
        path.retain(|byte| byte.is_ascii_graphic());
        if path.first() != Some(&b'/') {
            path.insert(0, b'/');
        }
        let path = String::from_utf8(path).unwrap();
        let (status, text) = {
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: w\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            daemon.raw(&[head.as_bytes(), &body].concat())
        };
        assert!((200..500).contains(&status), "round {round}, seed {seed}: {method} {path}: {status} {text}");
        // and what is no HTTP at all: whoever sends it hangs up
        if round % 8 == 0 {
            let noise: Vec<u8> = (0..random(300)).map(|_| random(256) as u8).collect();
            let _ = daemon.connect().unwrap().write_all(&noise);
        }
    }
    assert!(daemon.child.try_wait().unwrap().is_none(), "seed {seed}");
    let (_, status) = daemon.send("GET", "/v1/status", "");
    daemon.instance.read(status["generation"].as_u64().unwrap());
    daemon.again();
    assert_eq!(daemon.send("GET", "/v1/status", "").1["generation"], status["generation"], "seed {seed}");
}

#[test]
fn bad_command_lines_are_answered_with_what_is_wrong() {
    let daemon = Daemon::start(&one_pool(TWO));
    let place = |name: &str, content: &[u8]| {
        let path = daemon.instance.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    };
    let (binary, text) = (place("binary", b"\xff\xfe\0"), place("text", b"nothing"));
    let directory = daemon.instance.directory.path().display().to_string();
    let nowhere = daemon.instance.directory.path().join("none/backup").display().to_string();
    let long = "x".repeat(5_000);
    for (arguments, exit, says) in [
        (&[][..], 2, "Usage"),
        (&["apply", &directory], 2, "cannot read"),
        (&["apply", &binary], 2, "name a readable UTF-8 file"),
        (&["apply", &text], 1, "text"),
        (&["apply", &text, "--revision", "HEAD"], 2, "cannot be used with"),
        (&["apply", "--revision=-x"], 1, "is no revision"),
        (&["apply", "--revision", "a b"], 1, "is no revision"),
        (&["apply", &text, "--confirm", "soon"], 2, "soon"),
        (&["apply", &text, "--confirm", "5m", "--dry-run"], 2, "cannot be used with"),
        (&["backend", "weight", "app/one", "65536"], 2, "65536"),
        (&["backend", "weight", "app/one", "1.5"], 2, "1.5"),
        (&["backend", "weight", "", "1"], 1, "weir backend list"),
        (&["backend", "weight", &long, "1"], 1, "weir backend list"),
        (&["backend", "drain", "app/one", "--wait", "--timeout", "soon"], 2, "soon"),
        (&["backend", "set", "app/one", "weight=1", "--confirm", "0s"], 1, "confirm is 1s to 24h"),
        (&["backend", "set", "app/one", "weight=[1"], 2, "is not TOML"),
        (&["backend", "set", "app/one", "=1"], 2, "is not KEY=VALUE"),
        (&["backend", "set", "app/one", "weight=99999999999999999999"], 1, "weight=99999999999999999999"),
        (&["backend", "set", "app/one", "a..b=1"], 1, "no empty part"),
        (&["pool", "add", ""], 1, "name"),
        (&["pool", "add", "a b"], 1, "a b"),
        (&["pool", "remove", "nope"], 1, "there is no pool nope"),
        (&["listener", "remove", "web-htpt"], 1, "did you mean web-http?"),
        (&["rollback", "-1"], 2, "-1"),
        (&["rollback", "0"], 1, "change 0 is not in history"),
        (&["diff", "1", "99"], 1, "change 99"),
        (&["diff", "one"], 2, "one"),
        (&["confirm"], 1, "no change waits"),
        (&["restore", &text], 1, "not understood"),
        (&["restore", &binary], 2, "UTF-8"),
        (&["restore", "/nonexistent"], 2, "cannot read /nonexistent"),
        (&["backup", &nowhere], 1, "make its directory first"),
        (&["backup", &directory], 1, "name another file"),
    ] {
        let output = daemon.weir(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        let told = error.get(..error.len().min(400)).unwrap_or(&error);
        let asked: Vec<&str> = arguments.iter().map(|a| a.get(..a.len().min(40)).unwrap_or(a)).collect();
        assert_eq!(output.status.code(), Some(exit), "{asked:?}: {told}");
        assert!(error.contains(says), "{asked:?}: {told}");
        assert!(!error.contains("panicked"), "{asked:?}: {told}");
    }
    for name in ["a/b", "", "..", "map_x", &long] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let output = command.args(["--instance", name, "status"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains("an instance's name is") || name.is_empty(), "{error}");
    }
    // bytes that are no text, where a name and where a file is expected
    for arguments in [&["backend", "weight"][..], &["apply"]] {
        let output = Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["--instance", "test", "--run-dir"])
            .arg(daemon.instance.run_dir())
            .args(arguments)
            .arg(OsStr::from_bytes(b"\xff\xfe"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
    assert_eq!(daemon.last_change()["number"], 1, "nothing changed");
}
