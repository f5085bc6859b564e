//! Findings as the operator sees them: each `tests/diagnostics/NAME.toml` gives exactly `NAME.txt`.
//!
//! After a wanted change of the texts: `WEIR_BLESS=1 cargo test -p weir-ctlplane --test diagnostics`, and read the diff.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::path::Path;

use weir_ctlplane::diagnostic::{Severity, Source, render};
use weir_ctlplane::machine::Machine;
use weir_ctlplane::validate;

#[test]
fn findings_are_as_written_down() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let machine = Machine { cpus: vec![0, 1, 2, 3], memory: Some(16 << 30) };
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        seen += 1;
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let source = Source { name: &name, text: &text };
        let (model, diagnostics) = validate::load(source, &machine);
        let reports = source.reports(&diagnostics);
        assert_eq!(model.is_none(), reports.iter().any(|r| r.severity == Severity::Error), "{name}");
        let found = render(&reports, false);
        let expected_path = path.with_extension("txt");
        if std::env::var_os("WEIR_BLESS").is_some() {
            std::fs::write(&expected_path, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&expected_path).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{name}: expected\n{expected}\nfound\n{found}"));
        }
    }
    assert!(seen >= 8, "only {seen} files");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whatever the file holds: findings or a model, never a panic, and every place is inside the file.
#[test]
fn any_text_gives_findings_or_a_model() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics");
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/weir.example.toml");
    let proxy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/weir.proxy.example.toml");
    let http = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/weir.http.example.toml");
    let machine = Machine { cpus: vec![0, 1], memory: Some(1 << 30) };
    let files = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([example, proxy, http]);
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below.max(1) as u64) as usize
    };
    for path in files.filter(|path| path.extension().is_some_and(|e| e == "toml")) {
        let good: Vec<char> = std::fs::read_to_string(&path).unwrap().chars().collect();
        for _ in 0..if good.is_empty() { 0 } else { 60 } {
            let mut text = good.clone();
            for _ in 0..=random(4) {
                let length = text.len();
                let at = random(length);
                match random(4) {
                    0 => drop(text.drain(at..(at + random(40)).min(text.len()))),
                    1 => text.insert(at, ['"', '[', '\u{e9}', '\n', '=', '{', '0', '-'][random(8)]),
                    2 => text.truncate(at),
                    _ => text.swap(at, (at * 7 + 3) % length),
                }
                if text.is_empty() {
                    break;
                }
            }
            let text: String = text.into_iter().collect();
            let source = Source { name: "fuzzed", text: &text };
            let (model, diagnostics) = validate::load(source, &machine);
            let lines = text.split('\n').count();
            let reports = source.reports(&diagnostics);
            assert!(reports.iter().all(|report| (1..=lines).contains(&report.line)));
            assert_eq!(model.is_none(), reports.iter().any(|r| r.severity == Severity::Error));
        }
    }
}

/// The reference names every field of every section: the lists are what `unknown field` findings offer.
#[test]
fn the_reference_knows_every_field() {
    let text = "x = 1\n[dataplane]\nx = 1\nflow_table = { x = 1 }\n[timeouts]\nx = 1\n[access_log]\nx = 1\n[[port]]\nx = 1\n\
                [[port.route]]\nx = 1\n[[vip]]\nx = 1\n[[listener]]\nx = 1\nrate = [{ x = 1 }]\ntcp = { x = 1, keep_alive = { x = 1 } }\n\
                timeouts = { x = 1 }\nqueue = { x = 1 }\nhttp = { x = 1, limits = { x = 1 }, access_log = { x = 1 }, \
                rate_limit = [{ x = 1 }] }\n[[route]]\nx = 1\nsplit = [{ x = 1 }]\nredirect = { x = 1 }\nrespond = { x = 1 }\n\
                mirror = { x = 1 }\nrequest_headers = { x = 1 }\nresponse_headers = { x = 1 }\nrewrite = { x = 1 }\n\
                timeouts = { x = 1 }\n[[pool]]\nx = 1\ntcp = { x = 1 }\nhttp = { x = 1, sticky = { x = 1 }, retry = { x = 1 }, \
                breaker = { x = 1 } }\nhealth_check = { type = \"https\", x = 1 }\n[[pool.backend]]\nx = 1\n[[access_list]]\nx = 1\n";
    let source = Source { name: "all", text };
    let (_, diagnostics) = validate::load(source, &Machine::with_cpus(vec![0]));
    let reference = include_str!("../../docs/configuration.md");
    let example = [
        include_str!("../../docs/weir.example.toml"),
        include_str!("../../docs/weir.proxy.example.toml"),
        include_str!("../../docs/weir.http.example.toml"),
    ]
    .concat();
    let mut sections = 0;
    for report in source.reports(&diagnostics) {
        let Some(known) = report.help.as_deref().and_then(|help| help.strip_prefix("known here: ")) else {
            continue;
        };
        sections += 1;
        for field in known.split(", ") {
            // fields of small tables stand in braces
            let in_braces = reference.split('`').any(|code| {
                code.starts_with(['{', '['])
                    && code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == field)
            });
            let named = in_braces
                || reference.contains(&format!("`{field}`"))
                || reference.contains(&format!("[{field}]"))
                || reference.contains(&format!(".{field}]"));
            assert!(named, "docs/configuration.md does not name {field} of {}", report.message);
            let shown = example.contains(field) || field == "announce";
            assert!(shown, "docs/weir.example.toml does not show {field} of {}", report.message);
        }
    }
    assert_eq!(sections, 36);
}
