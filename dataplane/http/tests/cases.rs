//! What is refused, what goes on, and in which bytes? The cases of `tests/cases/`, each in every split as well.
#![cfg(test)]

mod case;

use std::path::Path;

use case::{Case, Expected};

/// Runs all cases of a file; says which fail, with what happened instead.
fn run(file: &str) -> usize {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(file);
    let cases = Case::read(&std::fs::read_to_string(&path).unwrap());
    let mut failed = Vec::new();
    for case in &cases {
        let happened = case.run();
        if happened != case.expected {
            failed.push(format!("{}: {}\n{happened}", case.name, case.why));
        }
        case.run_in_pieces(&happened);
    }
    assert!(failed.is_empty(), "{} of {file} failed:\n{}", failed.len(), failed.join("\n"));
    cases.len()
}

macro_rules! files {
    ($($name:ident = $file:literal, $least:literal;)+) => {
        $(#[test]
        fn $name() {
            let cases = run($file);
            assert!(cases >= $least, "only {cases} cases");
        })+

        #[test]
        fn names_are_unique_and_reasons_given() {
            let mut names = std::collections::BTreeSet::new();
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
            for file in [$($file),+] {
                for case in Case::read(&std::fs::read_to_string(folder.join(file)).unwrap()) {
                    assert!(!case.why.is_empty(), "{} has no reason", case.name);
                    assert!(!matches!(case.expected, Expected::Nothing), "{} expects nothing", case.name);
                    assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
                }
            }
            assert!(names.len() >= 200, "only {} cases", names.len());
        }
    };
}

files! {
    request_lines = "request-line.txt", 30;
    hosts_and_targets = "host.txt", 20;
    fields = "fields.txt", 25;
    lengths = "framing.txt", 50;
    chunks = "chunked.txt", 35;
    connections = "connection.txt", 15;
    what_backends_are_told = "forwarding.txt", 10;
    responses = "response.txt", 35;
}
