//! Changes as a client meets them: bad requests, races, kills at any moment, disks that are full.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Daemon, Instance, one_pool, until};

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

/// How a command ended, and all that it said.
fn run(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let output = daemon.weir(arguments);
    let both = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&both).into_owned())
}

fn set(name: &str, weight: u64) -> String {
    json!({ "changes": [{ "op": "set", "kind": "backend", "name": name, "fields": { "weight": weight } }] })
        .to_string()
}

#[test]
fn bad_changes_are_answered_with_what_is_wrong() {
    let daemon = Daemon::start(&one_pool(TWO));
    let long = format!(
        r#"{{"changes":[{{"op":"set","kind":"pool","name":"{}","fields":{{"a":1}}}}]}}"#,
        "x".repeat(5_000)
    );
    let many =
        json!({ "changes": vec![json!({ "op": "remove", "kind": "pool", "name": "x" }); 1_001] }).to_string();
    let deep = format!(
        r#"{{"changes":[{{"op":"set","kind":"pool","name":"app","fields":{{"a":{}}}}}]}}"#,
        "[".repeat(300)
    );
    for (method, path, body, status, says) in [
        ("GET", "/v1/changes", "", 405, "not allowed"),
        ("GET", "/v1/backup", "", 405, "not allowed"),
        ("POST", "/v1/history", "", 405, "not allowed"),
        ("POST", "/v1/changes", "", 400, "not understood"),
        ("POST", "/v1/changes", "{}", 400, "changes"),
        ("POST", "/v1/changes", "[]", 400, "not understood"),
        ("POST", "/v1/changes", r#"{"changes":[]}"#, 400, "changes nothing"),
        ("POST", "/v1/changes", r#"{"changes":[{}]}"#, 400, "missing field"),
        ("POST", "/v1/changes", r#"{"changes":[{"op":"eat","kind":"pool","name":"app"}]}"#, 400, "eat"),
        ("POST", "/v1/changes", r#"{"changes":[{"op":"set","kind":"pod","name":"app"}]}"#, 400, "pod"),
        ("POST", "/v1/changes", r#"{"changes":[{"op":"set","kind":"pool","name":7}]}"#, 400, "7"),
        ("POST", "/v1/changes", r#"{"changes":[{"op":"set","kind":"pool","name":"app","x":1}]}"#, 400, "x"),
        (
            "POST",
            "/v1/changes",
            r#"{"changes":[{"op":"set","kind":"pool","name":"app"}]}"#,
            400,
            "nothing to set",
        ),
        ("POST", "/v1/changes", &set("app/one", 65_536), 422, "weight=65536: weight = 65536 is out of range"),
        ("POST", "/v1/changes", &set("app/noe", 1), 404, "did you mean app/one?"),
        ("POST", "/v1/changes", &set("one", 1), 400, "write POOL/NAME"),
        ("POST", "/v1/changes", &long, 404, "there is no pool"),
        ("POST", "/v1/changes", &many, 400, "1001 edits at once are too many"),
        ("POST", "/v1/changes", &deep, 400, "not understood"),
        ("POST", "/v1/changes?expect=9", &set("app/one", 1), 409, "is at change 1, not 9"),
        ("POST", "/v1/changes?confirm=0s", &set("app/one", 1), 400, "1s to 24h"),
        ("POST", "/v1/changes?confirm=soon", &set("app/one", 1), 400, "confirm=soon"),
        ("POST", "/v1/changes?dry_run=2", &set("app/one", 1), 400, "dry_run=2"),
        ("POST", "/v1/confirm", "", 409, "no change waits"),
        ("POST", "/v1/rollback", "", 400, "to=NUMBER"),
        ("POST", "/v1/rollback?to=0", "", 404, "change 0 is not in history, which has 1 to 1"),
        ("POST", "/v1/rollback?to=-1", "", 400, "to=-1"),
        ("POST", "/v1/rollback?to=99999999999999999999", "", 400, "to=9999"),
        ("GET", "/v1/diff?from=1&to=7", "", 404, "change 7"),
        ("GET", "/v1/diff?to=1", "", 400, "needs from="),
        ("POST", "/v1/restore", "{}", 400, "missing field"),
        ("POST", "/v1/restore", "\u{0}", 400, "not understood"),
        ("POST", "/v1/apply?revision=-x", "", 422, "no revision"),
        ("POST", "/v1/apply?revision=HEAD", "x", 400, "not both"),
        ("POST", "/v1/save?force=perhaps", "", 400, "force=perhaps"),
    ] {
        let (got, answer) = daemon.send(method, path, body);
        let error = answer["error"].as_str().unwrap_or("");
        assert_eq!(got, status, "{method} {path} {}: {answer}", body.get(..90).unwrap_or(body));
        assert!(error.contains(says), "{method} {path}: {error}");
        assert_eq!(answer["schema"], 1);
    }
    for (headers, body) in
        [("weir-comment: %zz\r\n", set("app/one", 1).as_bytes().to_vec()), ("", vec![0xff, 0xfe])]
    {
        assert_eq!(daemon.try_send("POST", "/v1/changes", headers, &body).unwrap().0, 400);
    }
    assert_eq!(
        daemon.send("GET", "/v1/history", "").1["changes"].as_array().unwrap().len(),
        1,
        "nothing changed"
    );
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn answers_have_the_shape_of_their_schema() {
    let daemon = Daemon::start(&one_pool(TWO));
    let headers = "weir-command: weir%20x\r\nweir-comment: why%20not\r\n";
    let body = set("app/one", 7);
    let (_, applied) = daemon.try_send("POST", "/v1/changes", headers, body.as_bytes()).unwrap();
    let fields = [
        "changed",
        "diagnostics",
        "generation",
        "needs_restart",
        "number",
        "outcome",
        "schema",
        "tables_written",
    ];
    assert_eq!(keys(&applied), fields);
    let (_, waiting) = daemon.send("POST", "/v1/changes?confirm=5m", &set("app/one", 8));
    assert!(keys(&waiting).contains(&"confirm_by_unix_ms"));
    let (_, status) = daemon.send("GET", "/v1/status", "");
    assert_eq!(keys(&status["waiting"]), ["back_to", "confirm_by_unix_ms"]);
    assert_eq!(status["drift"], true);
    let (_, history) = daemon.send("GET", "/v1/history", "");
    assert_eq!(keys(&history), ["changes", "schema"]);
    let change = &history["changes"][1];
    assert_eq!(keys(change), ["comment", "generation", "how", "number", "uid", "unix_ms", "user"]);
    assert_eq!((change["how"].as_str(), change["comment"].as_str()), (Some("weir x"), Some("why not")));
    let (_, diff) = daemon.send("GET", "/v1/diff?from=1&to=2", "");
    assert_eq!(keys(&diff["differences"]), ["omitted", "sections"]);
    let section = &diff["differences"]["sections"][0];
    assert_eq!(keys(section), ["change", "fields", "kind", "name"]);
    assert_eq!(section["fields"][0], json!({ "field": "weight", "old": "100", "new": "7" }));
    let (_, tried) = daemon.send("POST", "/v1/changes?dry_run=true", &set("app/one", 9));
    assert_eq!(keys(&tried["plan"]["blast"]), ["backends", "flows", "listeners", "pools"]);
    for answer in [&applied, &status, &history, &diff, &tried] {
        assert_eq!(answer["schema"], 1);
    }
    let (_, backup) = daemon.send("POST", "/v1/backup", "");
    assert_eq!(keys(&backup), ["body", "checksum", "instance", "kind", "schema", "unix_ms"]);
}

#[test]
fn of_two_writers_who_saw_the_same_one_is_refused() {
    let daemon = Daemon::start(&one_pool(TWO));
    for round in 1..=10u64 {
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let write = |weight| {
                daemon.send("POST", &format!("/v1/changes?expect={round}"), &set("app/one", weight)).0
            };
            let writers: Vec<_> = (0..4).map(|n| scope.spawn(move || write(1 + n + 10 * round))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|status| **status == 409).count(), 3, "{answers:?}");
    }
}

#[test]
fn the_command_line_changes_looks_back_and_saves() {
    let daemon = Daemon::start(&one_pool(TWO));
    let good = |arguments: &[&str], says: &str| {
        let (code, text) = run(&daemon, arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    };
    good(&["backend", "add", "app/three", "--address", "198.18.1.3:80", "--weight", "5"], "generation 2");
    good(&["backend", "set", "three", "weight=6", "--comment", "more of it"], "generation 3");
    good(
        &["listener", "set", "web-http", "port=80-81", "--dry-run"],
        "listener web-http: port 80 \u{2192} 80-81",
    );
    good(&["vip", "add", "v2", "address=198.19.0.9"], "generation 4");
    good(
        &["listener", "add", "l2", "vip=v2", "port=81", "protocol=tcp", "mode=nat", "pool=app"],
        "generation 5",
    );
    good(&["pool", "set", "app", "algorithm=source-hash", "--confirm", "5m"], "unless you run: weir confirm");
    assert!(run(&daemon, &["status"]).1.contains("waiting: back to change 5 in "));
    good(&["confirm"], "not taken back any more: generation");
    good(&["history"], "\"more of it\"");
    good(&["diff", "1", "3"], "backend app/three added: address 198.18.1.3:80, weight 6");
    good(&["diff"], "listener l2 added");
    good(&["backend", "remove", "app/three"], "");
    good(&["rollback", "3"], "");
    good(&["save"], "the file says what is in force");
    let history = daemon.send("GET", "/v1/history", "").1;
    let first = history["changes"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((first["number"].as_u64(), first["generation"].as_u64()), (Some(1), Some(1)));
    good(&["diff"], "no difference");
    let file = daemon.instance.directory.path().join("backup");
    good(&["backup", file.to_str().unwrap()], "/backup has a backup of test at generation ");
    good(&["backend", "weight", "app/one", "1"], "");
    good(&["discard"], "");
    good(&["restore", file.to_str().unwrap()], "");
    for (arguments, exit, says) in [
        (&["backend", "set", "app/one", "wieght=5"][..], 1, "wieght=5: unknown field wieght"),
        (&["backend", "set", "app/one", "weight"], 2, "\"weight\" is not KEY=VALUE"),
        (&["backend", "set", "app/one", "weight=1", "weight=2"], 2, "given twice"),
        (&["pool", "remove", "app"], 1, "no pool named"),
        (&["rollback", "99"], 1, "change 99 is not in history"),
        (&["apply"], 2, "required"),
    ] {
        let (code, text) = run(&daemon, arguments);
        assert_eq!(code, Some(exit), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
    let history = daemon.send("GET", "/v1/history", "").1;
    let how = history["changes"].as_array().unwrap().iter();
    let how =
        how.map(|change| change["how"].as_str().unwrap()).any(|how| how == "weir backend set three weight=6");
    assert!(how, "{history}");
}

#[test]
fn a_daemon_killed_at_any_moment_comes_back_whole() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut daemon = Daemon::start(&one_pool(TWO));
    let mut made = 0u64;
    for kill in 0..100 {
        let number = daemon.send("GET", "/v1/history", "").1["changes"][0]["number"].as_u64().unwrap();
        let mut answered = number;
        let pid = daemon.child.id().to_string();
        let after = Duration::from_micros(random(12_000));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            let _ = Command::new("kill").args(["-9", &pid]).status();
        });
        loop {
            made += 1;
            let (path, body) = match random(4) {
                0 => ("/v1/changes".to_owned(), set("app/one", 1 + made % 60_000)),
                1 => {
                    let name = format!("app/n{made}");
                    let fields =
                        json!({ "address": format!("198.18.2.{}:{}", 1 + made % 250, 1 + made % 60_000) });
                    let add = json!({ "op": "add", "kind": "backend", "name": name, "fields": fields });
                    let remove = json!({ "op": "remove", "kind": "backend", "name": name });
                    let list = if made.is_multiple_of(2) { vec![add] } else { vec![add, remove] };
                    ("/v1/changes".to_owned(), json!({ "changes": list }).to_string())
                }
                2 => (format!("/v1/rollback?to={}", 1 + random(answered)), String::new()),
                _ => ("/v1/save?force=true".to_owned(), String::new()),
            };
            match daemon.try_send("POST", &path, "", body.as_bytes()) {
                Some((200, answer)) => answered = answer["number"].as_u64().unwrap(),
                // a number that was pruned, an index that is not free yet
                Some((404 | 409, _)) => {}
                Some((status, answer)) => panic!("{path}: {status} {answer}"),
                None => break,
            }
        }
        killer.join().unwrap();
        daemon.child.wait().unwrap();
        // what is published is whole before anybody mends anything
        let segments = daemon.instance.segments();
        let control = hugepages::generation::ControlPage::open_read_only(&segments).unwrap();
        daemon.instance.read(control.published());
        let text = std::fs::read_to_string(&daemon.instance.options.config).unwrap();
        assert!(text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("pool")), "a whole file");
        drop(control);
        daemon.again();
        let history = daemon.send("GET", "/v1/history", "").1;
        let now = history["changes"][0]["number"].as_u64().unwrap();
        assert!(
            (answered..=answered + 1).contains(&now),
            "kill {kill}: {answered} was answered, {now} is there"
        );
        assert!(history.get("note").is_none(), "{history}");
        let (_, status) = daemon.send("GET", "/v1/status", "");
        daemon.instance.read(status["generation"].as_u64().unwrap());
        assert_eq!(status["missing"].as_array().unwrap().len(), 1, "counters only: {status}");
    }
    // a timer goes on over a kill
    let before = daemon.send("GET", "/v1/history", "").1["changes"][0]["number"].as_u64().unwrap();
    assert_eq!(daemon.send("POST", "/v1/changes?confirm=1s", &set("app/two", 4_711)).0, 200);
    daemon.again();
    let taken_back = format!("not confirmed in time: back to change {before}");
    until("the change is taken back", || daemon.last_change()["how"] == taken_back.as_str());
}

#[test]
fn a_full_disk_refuses_changes_and_keeps_what_is_in_force() {
    let instance = Instance::new(&one_pool(TWO));
    // no file may grow beyond 64 KiB: what a full disk does, without one
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_weir-ctlplane")])
        .args(support::arguments(&instance, "off"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Daemon::with(instance, child);
    let large = format!("# {}\n{}", "x".repeat(200_000), one_pool(&[("two", 2, 50)]));
    let (status, answer) = daemon.send("POST", "/v1/apply", &large);
    assert_eq!(status, 500, "{answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("cannot write") && error.contains("config-"), "{error}");
    let backends = daemon.send("GET", "/v1/backends", "").1;
    assert_eq!(backends["pools"][0]["backends"].as_array().unwrap().len(), 2);
    assert_eq!(daemon.send("POST", "/v1/changes", &set("app/one", 3)).0, 200, "small ones go on");
    // no directory to write to
    let directory = daemon.instance.options.state_dir.join("test");
    let aside = daemon.instance.options.state_dir.join("aside");
    std::fs::rename(&directory, &aside).unwrap();
    let (status, answer) = daemon.send("POST", "/v1/changes", &set("app/one", 4));
    assert_eq!(status, 500, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("state.json"), "{answer}");
    let weight = |daemon: &Daemon| {
        daemon.send("GET", "/v1/backends", "").1["pools"][0]["backends"][0]["weight"].clone()
    };
    assert_eq!(weight(&daemon), 3);
    std::fs::rename(&aside, &directory).unwrap();
    assert_eq!(daemon.send("POST", "/v1/changes", &set("app/one", 5)).0, 200);
    assert_eq!(weight(&daemon), 5);
}

#[test]
fn a_hang_up_reads_the_file_again() {
    let instance = Instance::new(&one_pool(TWO));
    let child = support::spawn(&instance, "error");
    let mut daemon = Daemon::with(instance, child);
    let hang_up = |daemon: &Daemon| {
        Command::new("kill").args(["-HUP", &daemon.child.id().to_string()]).status().unwrap()
    };
    daemon.instance.write_config("[[pool]]\nname = 3\n");
    hang_up(&daemon);
    let mut said = BufReader::new(daemon.child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("the configuration in force stays")));
    assert_eq!(daemon.last_change()["number"], 1);
    daemon.instance.write_config(&one_pool(&[("one", 1, 3)]));
    hang_up(&daemon);
    until("the file is read again", || daemon.last_change()["how"] == "SIGHUP");
    assert_eq!(daemon.last_change()["number"], 2);
}
