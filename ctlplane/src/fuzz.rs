//! What a client may send: bodies, paths and queries of the API, arguments of the command line, files that are read back.
//!
//! Nothing of it may panic, and whatever an edit accepts leaves a text that is TOML.

use toml::Table;

use crate::api::{self, BackendRequest, ChangeRequest, StateRequest, percent_decode, percent_encode};
use crate::changes::difference;
use crate::changes::edit::{self, Editor};
use crate::daemon;
use crate::diagnostic::Source;
use crate::engine::Backup;
use crate::explain;
use crate::history;
use crate::machine::Machine;
use crate::state::Overrides;
use crate::validate;

/// What is edited: sections in every spelling.
const TEXT: &str = "[dataplane]\nworkers = 1\nidle = \"adaptive\"\n[[port]]\nname = \"wan\"\ndevice = \"null:\"\n\
    addresses = [\"198.18.0.254/16\"]\n[[vip]]\nname = \"web\"\naddress = \"198.19.0.1\"\n[[listener]]\nname = \"web\"\n\
    vip = \"web\"\nport = 80\nprotocol = \"tcp\"\nmode = \"nat\"\npool = \"app\"\n[[pool]]\nname = \"app\" # ours\nslots = 251\n\
    [[pool.backend]]\nname = \"one\"\naddress = \"198.18.1.1\"\n[[pool]]\nname = \"b\"\n\
    backend = [{ name = \"x\", address = \"198.18.1.2\" }]\n";

/// One input; the first byte says where it goes.
pub fn requests(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 6 {
        0 => {
            if let Ok(request) = api::understand::<ChangeRequest>(rest) {
                changes(&request);
            }
        }
        1 => {
            let _understood = api::understand::<BackendRequest>(rest).is_ok();
            let _state = api::understand::<StateRequest>(rest).is_ok();
            let _asked = api::understand::<explain::Request>(rest).is_ok();
        }
        2 => {
            let text = String::from_utf8_lossy(rest);
            let _query = daemon::is_query(&text);
            if let Some(decoded) = percent_decode(&text) {
                assert_eq!(percent_decode(&percent_encode(&decoded)), Some(decoded));
            }
        }
        3 => {
            let _backup = api::understand::<Backup>(rest).is_ok_and(|backup| backup.verify().is_ok());
        }
        4 => {
            let text = String::from_utf8_lossy(rest);
            let _field = edit::parse_argument(&text).is_ok();
            let table = difference::table(&text, &Overrides::new());
            let differences = difference::between(&table, &difference::table(TEXT, &Overrides::new()));
            assert!(differences.lines().len() <= 1_001);
        }
        _ => {
            let _entries = history::is_history(rest);
        }
    }
}

fn changes(request: &ChangeRequest) {
    let Ok(mut editor) = Editor::new(TEXT) else { return };
    if editor.apply(&request.changes).is_err() {
        return;
    }
    let text = editor.text();
    assert!(text.parse::<Table>().is_ok(), "an edit made what is no TOML: {text}");
    let _places = edit::places(&text, &request.changes).len();
    let source = Source { name: "fuzz", text: &text };
    let (_model, diagnostics) = validate::load(source, &Machine::with_cpus(vec![0, 1]));
    let _reports = source.reports(&diagnostics).len();
}

/// Inputs to begin with.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let with = |kind: u8, text: &str| [&[kind], text.as_bytes()].concat();
    vec![
        with(
            0,
            r#"{"changes":[{"op":"set","kind":"backend","name":"app/one","fields":{"weight":5,"tcp.mss":1400}}]}"#,
        ),
        with(
            0,
            r#"{"changes":[{"op":"add","kind":"pool","name":"c"},{"op":"add","kind":"backend","name":"c/y","fields":{"address":"198.18.1.9"}}],"force":true}"#,
        ),
        with(
            0,
            r#"{"changes":[{"op":"remove","kind":"backend","name":"b/x"},{"op":"set","kind":"listener","name":"web","fields":{"port":"80-81","timeouts":{"idle":"5m"},"pool":null}}]}"#,
        ),
        with(
            0,
            r#"{"changes":[{"op":"add","kind":"route","name":"r","fields":{"listener":"web","paths":["/a"]}}]}"#,
        ),
        with(1, r#"{"weight":7,"state":"drain","force":true}"#),
        with(1, r#"{"url":"http://a/b?c","method":"GET","headers":{"a":"b"},"source":"198.18.0.9"}"#),
        with(2, "name=a%20b&dry_run=true&confirm=5m&expect=3&from=1&to=2&revision=HEAD~1"),
        with(
            3,
            r#"{"kind":"weir-backup","schema":1,"unix_ms":1,"instance":"a","checksum":"00","body":{"generation":1,"config":"0","applied":"0","overrides":{},"bodies":{},"indices":{"listeners":[],"pools":{}},"history":[],"texts":{},"contents":{}}}"#,
        ),
        with(4, "tcp.mss=[1, { a = \"x\" }]"),
        with(4, "[[pool]]\nname = \"p\"\n[[pool.backend]]\nname = \"b\"\n"),
        with(5, "0000000000000000 {\"number\":1}\n"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_and_their_beginnings_pass() {
        for seed in request_seeds() {
            for length in 0..=seed.len() {
                requests(&seed[..length]);
            }
            for at in 0..seed.len() {
                let mut flipped = seed.clone();
                flipped[at] ^= 1;
                requests(&flipped);
            }
        }
    }
}
