//! The shape of every answer, held against `tests/api/schema-N.txt` of the version that the answers name.
//!
//! A field that is new is written into that file (run with WEIR_RECORD=1, and look at the difference). Where a field went or
//! became of another kind, clients break: raise `api::SCHEMA`, and record the file of that number beside the old one.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::{Daemon, FakeDataplane, one_pool, until};
use weir_ctlplane::api::SCHEMA;

/// Maps by names of the operator's: their keys are no fields.
const NAMED: [&str; 6] = ["overrides", "bodies", "texts", "contents", "all", "indices.pools"];

fn config() -> String {
    format!(
        "{}[pool.health_check]\ntype = \"exec\"\ncommand = [\"/bin/true\"]\n\
         [[listener]]\nname = \"web-proxy\"\nvip = \"web\"\nport = 81\nprotocol = \"http\"\nmode = \"proxy\"\npool = \"app\"\n",
        one_pool(&[("one", 1, 100), ("two", 2, 50)])
    )
}

/// A line for each field that a value has.
fn flatten(path: &str, value: &Value, into: &mut BTreeSet<String>) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(list) => {
            into.insert(format!("{path}[]"));
            list.iter().for_each(|element| flatten(&format!("{path}[]"), element, into));
            return;
        }
        Value::Object(map) => {
            let is_named = NAMED.iter().any(|name| path.ends_with(&format!(".{name}")));
            into.insert(format!("{path}{{}}"));
            for (key, value) in map {
                let key = if is_named { "NAME" } else { key.as_str() };
                flatten(&format!("{path}.{key}"), value, into);
            }
            return;
        }
    };
    into.insert(format!("{path}: {kind}"));
}

fn answers() -> BTreeSet<String> {
    let daemon = Daemon::start(&config());
    let mut dataplane = FakeDataplane::start(&daemon.instance.segments(), 1);
    dataplane.ack(1);
    until("both backends are probed", || {
        let rows = daemon.send("GET", "/v1/health", "").1["backends"].clone();
        let rows = rows.as_array().unwrap();
        rows.len() == 2 && rows.iter().all(|row| row["state"] == "up")
    });
    drop(dataplane);
    let set = |weight: u16| {
        format!(
            "{{\"changes\":[{{\"op\":\"set\",\"kind\":\"backend\",\"name\":\"app/one\",\"fields\":{{\"weight\":{weight}}}}}]}}"
        )
    };
    let explain = "{\"url\":\"http://198.19.0.1:81/\",\"method\":\"GET\",\"source\":\"198.18.0.9\"}";
    let backup = daemon.send("POST", "/v1/backup", "").1.to_string();
    let mut lines = BTreeSet::new();
    for (method, path, body, expected) in [
        ("POST", "/v1/changes?dry_run=true", set(9), 200),
        ("POST", "/v1/changes?confirm=5m", set(9), 200),
        ("GET", "/v1/status", String::new(), 200),
        ("GET", "/v1/backends", String::new(), 200),
        ("GET", "/v1/health", String::new(), 200),
        ("GET", "/v1/history", String::new(), 200),
        ("GET", "/v1/diff?from=1&to=2", String::new(), 200),
        ("POST", "/v1/confirm", String::new(), 200),
        ("POST", "/v1/explain", explain.to_owned(), 200),
        ("GET", "/v1/explain/access/web-http/198.18.0.9", String::new(), 200),
        ("POST", "/v1/backup", String::new(), 200),
        ("POST", "/v1/restore", backup, 200),
        ("POST", "/v1/apply", "[[pool]]\nname = 3\n".to_owned(), 422),
    ] {
        let (status, answer) =
            daemon.try_send(method, path, "weir-comment: for%20the%20fair\r\n", body.as_bytes()).unwrap();
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert_eq!(answer["schema"], SCHEMA, "{method} {path}: {answer}");
        flatten(&format!("{method} {path} "), &answer, &mut lines);
    }
    lines
}

#[test]
fn answers_have_the_fields_of_their_version() {
    let found = answers();
    let file = format!("{}/tests/api/schema-{SCHEMA}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("WEIR_RECORD").is_some() {
        let text: String = found.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&file, text).unwrap();
    }
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("no record of schema {SCHEMA}: {file}: {error}"));
    let known: BTreeSet<String> = text.lines().map(str::to_owned).collect();
    let (gone, new): (Vec<_>, Vec<_>) =
        (known.difference(&found).collect(), found.difference(&known).collect());
    assert!(
        gone.is_empty(),
        "clients of schema {SCHEMA} miss {gone:#?}, and find {new:#?}; raise api::SCHEMA"
    );
    assert!(new.is_empty(), "{file} does not know {new:#?}; record them");
}

#[test]
fn the_command_line_prints_the_same_version() {
    let daemon = Daemon::start(&config());
    let file = daemon.instance.options.config.display().to_string();
    for arguments in [
        &["status", "--json"][..],
        &["check", "--json", &file],
        &["apply", "--json", "--dry-run", &file],
        &["history", "--json"],
        &["diff", "--json"],
        &["health", "--json"],
        &["plan", "--json", &file],
        &["backend", "set", "app/one", "weight=9", "--json"],
        &["backend", "set", "app/one", "wieght=9", "--json"],
        &["explain", "request", "--url", "http://198.19.0.1:81/", "--json"],
    ] {
        let output = daemon.weir(arguments);
        let answer: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"));
        assert_eq!(answer["schema"], SCHEMA, "{arguments:?}: {answer}");
    }
}
