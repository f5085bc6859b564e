//! What an edit leaves of a text.

use serde_json::json;

use super::*;
use crate::state::{Admin, Override};

const TEXT: &str = r#"# the node
[[listener]]
name = "web"   # ours
port = 80      # plain
pool = "app"

# servers
[[pool]]
name = "app"
slots = 251

[[pool.backend]] # first
name = "one"
address = "198.18.1.1:8080"  # rack 1
weight = 10    # slow

[[pool.backend]]
name = "two"
address = "198.18.1.2:8080"

[[pool]]
name = "short"
backend = [{ name = "a", address = "198.18.1.3" }, { name = "b", address = "198.18.1.4" }]
"#;

fn edit(op: &str, kind: &str, name: &str, fields: Json) -> Edit {
    serde_json::from_value(json!({ "op": op, "kind": kind, "name": name, "fields": fields })).unwrap()
}

fn edited(edits: &[Edit]) -> Result<String, EditError> {
    let mut editor = Editor::new(TEXT)?;
    editor.apply(edits)?;
    Ok(editor.text())
}

fn lines_that_changed(text: &str) -> (Vec<&str>, Vec<&str>) {
    let gone = TEXT.lines().filter(|line| !text.lines().any(|other| other == *line)).collect();
    let new = text.lines().filter(|line| !TEXT.lines().any(|other| other == *line)).collect();
    (gone, new)
}

#[test]
fn a_value_changes_and_its_comment_stays() {
    let text = edited(&[edit("set", "backend", "app/one", json!({ "weight": 20 }))]).unwrap();
    assert_eq!(lines_that_changed(&text), (vec!["weight = 10    # slow"], vec!["weight = 20    # slow"]));
    let text =
        edited(&[edit("set", "listener", "web", json!({ "port": "80-89", "tcp.mss": 1400 }))]).unwrap();
    let new = vec!["port = \"80-89\"      # plain", "tcp = { mss = 1400 }"];
    assert_eq!(lines_that_changed(&text), (vec!["port = 80      # plain"], new));
    let text = edited(&[edit("set", "listener", "web", json!({ "port": null, "tcp.mss": null }))]).unwrap();
    assert_eq!(lines_that_changed(&text), (vec!["port = 80      # plain"], vec![]));
}

#[test]
fn what_is_added_stands_with_its_kind() {
    let text =
        edited(&[edit("add", "backend", "app/three", json!({ "address": "198.18.1.9", "weight": 3 }))]);
    let text = text.unwrap();
    let three = text.find("name = \"three\"\naddress = \"198.18.1.9\"\nweight = 3\n").unwrap();
    assert!(text.find("\"two\"").unwrap() < three && three < text.find("\"short\"").unwrap(), "{text}");
    let text = edited(&[edit("add", "backend", "short/c", json!({ "address": "198.18.1.9" }))]).unwrap();
    assert!(text.contains("{ name = \"b\", address = \"198.18.1.4\" }, { name = \"c\""), "{text}");
    let text = edited(&[
        edit("add", "pool", "new", json!({})),
        edit("add", "backend", "new/x", json!({ "address": "198.18.1.9" })),
        edit("add", "vip", "v", json!({ "address": "198.19.0.9" })),
    ]);
    let text = text.unwrap();
    let parsed: toml::Table = text.parse().unwrap();
    assert_eq!(parsed["pool"][2]["backend"][0]["name"].as_str(), Some("x"), "{text}");
    assert_eq!(parsed["vip"][0]["address"].as_str(), Some("198.19.0.9"));
    assert!(lines_that_changed(&text).0.is_empty());
}

#[test]
fn what_is_removed_takes_nothing_else_along() {
    let text = edited(&[edit("remove", "backend", "app/one", json!({}))]).unwrap();
    assert!(!text.contains("rack 1") && text.contains("\"two\"") && text.contains("# servers"), "{text}");
    let text = edited(&[edit("remove", "backend", "short/a", json!({}))]).unwrap();
    assert!(!text.contains("\"a\"") && text.contains("\"b\""), "{text}");
    let text = edited(&[edit("remove", "pool", "app", json!({}))]).unwrap();
    let parsed: toml::Table = text.parse().unwrap();
    assert_eq!(parsed["pool"].as_array().unwrap().len(), 1, "{text}");
}

#[test]
fn what_cannot_be_edited_is_told_by_name() {
    for (edit, says) in [
        (
            edit("set", "backend", "app/oen", json!({ "weight": 1 })),
            "no backend app/oen; did you mean app/one?",
        ),
        (edit("set", "backend", "ap/one", json!({ "weight": 1 })), "no pool ap; did you mean app?"),
        (edit("set", "backend", "one", json!({ "weight": 1 })), "write POOL/NAME"),
        (edit("set", "backend", "/one", json!({ "weight": 1 })), "write POOL/NAME"),
        (edit("add", "pool", "app", json!({})), "a pool app already"),
        (edit("add", "backend", "app/x", json!({ "name": "y" })), "name: the name is given"),
        (edit("remove", "route", "r", json!({})), "no route r"),
        (edit("remove", "pool", "app", json!({ "slots": 1 })), "remove takes no fields"),
        (edit("set", "pool", "app", json!({})), "nothing to set"),
        (edit("set", "pool", "app", json!({ "slots.x": 1 })), "slots is no table"),
        (edit("set", "pool", "app", json!({ "a..b": 1 })), "no empty part"),
        (edit("set", "pool", "app", json!({ "slots": 18_446_744_073_709_551_615u64 })), "too large"),
        (edit("set", "pool", "app", json!({ "slots": [null] })), "null is only"),
        (
            edit("set", "pool", "app", json!({ "slots": nested(100) })),
            "slots: it is nested more than 16 deep",
        ),
        (edit("set", "pool", "app", json!({ "a.".repeat(16) + "b": 1 })), "more than 16 parts"),
    ] {
        let error = edited(std::slice::from_ref(&edit)).unwrap_err().to_string();
        assert!(error.contains(says), "{edit:?}: {error}");
    }
    let many = vec![edit("set", "pool", "app", json!({ "slots": 1 })); MOST_EDITS + 1];
    assert!(matches!(edited(&many), Err(EditError::TooMany { .. })));
}

/// So many arrays in each other.
fn nested(depth: usize) -> Json {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}

#[test]
fn weights_and_states_of_run_time_are_written_in() {
    let mut overrides = Overrides::new();
    let entry = Override { weight: Some(7), state: Some(Admin::Drain) };
    overrides.entry("app".to_owned()).or_default().insert("one".to_owned(), entry);
    overrides.entry("short".to_owned()).or_default().insert("b".to_owned(), entry);
    let mut editor = Editor::new(TEXT).unwrap();
    editor.write_overrides(&overrides);
    let text = editor.text();
    assert!(text.contains("weight = 7    # slow\nstate = \"drain\"\n"), "{text}");
    let parsed: toml::Table = text.parse().unwrap();
    let inline = &parsed["pool"][1]["backend"][1];
    assert_eq!((inline["weight"].as_integer(), inline["state"].as_str()), (Some(7), Some("drain")), "{text}");
}

#[test]
fn arguments_are_toml_or_plain_words() {
    for (argument, field, value) in [
        ("weight=5", "weight", json!(5)),
        ("address=198.18.1.1:80", "address", json!("198.18.1.1:80")),
        ("port=80-89", "port", json!("80-89")),
        ("mode=\"nat\"", "mode", json!("nat")),
        ("a.b=[1, \"x\"]", "a.b", json!([1, "x"])),
        ("t={ a = true }", "t", json!({ "a": true })),
        ("queue=", "queue", Json::Null),
        ("idle=5m", "idle", json!("5m")),
        ("url=a=b", "url", json!("a=b")),
    ] {
        assert_eq!(parse_argument(argument), Ok((field.to_owned(), value)), "{argument}");
    }
    for argument in ["weight", "=5", "", "a=[1", "a=\"x"] {
        assert!(parse_argument(argument).is_err(), "{argument}");
    }
}

#[test]
fn a_place_in_the_text_is_known_by_its_argument() {
    let edits = [edit("set", "listener", "web", json!({ "port": 70_000, "tcp.mss": 1 }))];
    let text = edited(&edits).unwrap();
    let places = places(&text, &edits);
    let at = text.find("70000").unwrap();
    let found = places.iter().find(|(range, _)| range.contains(&at)).unwrap();
    assert_eq!(found.1, "port=70000");
    let at = text.find("mss").unwrap();
    assert!(places.iter().any(|(range, argument)| range.contains(&at) && argument == "tcp.mss=1"));
}
