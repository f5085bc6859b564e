//! Does the engine do what the RFCs say, segment by segment? Scripts in virtual time: `tests/scripts/*.tcp`, in the language that
//! `tests/scripts/README.md` describes.
//!
//! `WEIR_CASE=words` runs only the cases whose title has these words, with `WEIR_TRACE=1` their ladders are shown although they
//! pass.
#![cfg(test)]

mod bound;
mod compare;
mod ladder;
mod language;
mod runner;
mod stack;
mod states;
mod talk;
mod wire;

use language::Case;

macro_rules! scripts {
    ($($file:ident)*) => {
        /// All files with scripts.
        const FILES: &[(&str, &str)] = &[
            $((
                concat!(stringify!($file), ".tcp"),
                include_str!(concat!("../scripts/", stringify!($file), ".tcp")),
            ),)*
        ];
        $(
            #[test]
            fn $file() {
                run_file(concat!(stringify!($file), ".tcp"));
            }
        )*
    };
}

scripts! {
    close congestion cookies corners fast_open handshake icmp keep_alive limits options receive recovery reset send tail_loss time_wait timeout
    timestamps window
}

const PROLOGUES: &str = include_str!("../scripts/prologues.tcp");

fn cases(file: &'static str, text: &str) -> Vec<Case> {
    let prologues =
        language::cases("prologues.tcp", PROLOGUES, &[]).unwrap_or_else(|problem| panic!("{problem}"));
    let cases = language::cases(file, text, &prologues).unwrap_or_else(|problem| panic!("{problem}"));
    cases.into_iter().filter(|case| !case.is_prologue).collect()
}

/// Runs all cases of a file, and tells of each that fails.
fn run_file(file: &str) {
    let (file, text) =
        FILES.iter().find(|(name, _)| *name == file).copied().expect("the file is in the list");
    run_cases(cases(file, text));
}

fn run_cases(cases: Vec<Case>) {
    let wanted = std::env::var("WEIR_CASE").unwrap_or_default();
    let mut failures = Vec::new();
    let mut ran = 0;
    for case in cases.iter().filter(|case| case.name.contains(&wanted)) {
        ran += 1;
        if let Some(report) = report(case) {
            failures.push(report);
        }
    }
    assert!(failures.is_empty(), "{} of {ran} cases fail\n\n{}", failures.len(), failures.join("\n"));
}

/// What is wrong with a case: at the first of all times at which it fails.
fn report(case: &Case) -> Option<String> {
    let fails = |start| runner::run(case, start, &|| Box::new(bound::EngineStack::new())).err();
    runner::STARTS.into_iter().find_map(fails)
}

#[test]
fn every_state_answers_every_kind_of_segment() {
    run_cases(cases("states", &states::text()));
}

#[test]
fn every_file_with_scripts_is_run() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts");
    for entry in std::fs::read_dir(folder).expect("the folder of scripts") {
        let name = entry.expect("its entry").file_name().into_string().expect("a name in UTF-8");
        let is_known = FILES.iter().any(|(file, _)| *file == name);
        assert!(
            is_known || name == "prologues.tcp" || !name.ends_with(".tcp"),
            "tests/scripts/{name} is not run: name it in tests/script/main.rs"
        );
    }
}

#[test]
fn there_are_hundreds_of_cases_with_names_of_their_own() {
    let mut names = std::collections::BTreeSet::new();
    for (file, text) in FILES {
        for case in cases(file, text) {
            assert!(!case.statements.is_empty(), "{}: case `{}` is empty", case.place, case.name);
            assert!(names.insert(case.name.clone()), "{}: a second case `{}`", case.place, case.name);
        }
    }
    assert!(names.len() >= 350, "only {} cases", names.len());
}

/// The report of a script that must fail.
fn failure(text: &str) -> String {
    let cases = cases("broken.tcp", text);
    report(&cases[0]).expect("the script fails")
}

#[test]
fn a_missing_segment_fails() {
    let report = failure("case x (RFC 1)\nlisten\n> S. 0:0 ack 1\n");
    assert!(report.contains("broken.tcp:3") && report.contains("nothing"), "{report}");
}

#[test]
fn an_unexpected_segment_fails_and_the_trace_shows_it() {
    let report = failure("case x (RFC 1)\nlisten\n< S 0:0 win 9 <mss 1000>\nadvance 1ms\n");
    assert!(report.contains("no further segment") && report.contains("> S. 0:0 ack 1"), "{report}");
    let report = failure("case x (RFC 1)\nlisten\n< S 0:0 win 9 <mss 1000>\n");
    assert!(report.contains("the end of the case"), "{report}");
}

#[test]
fn a_segment_that_differs_fails() {
    for expectation in [
        "> S 0:0",
        "> S. 1:1 ack 1",
        "> S. 0:0 ack 2",
        "> S. 0:0 ack 1 win 7",
        "> S. 0:0 ack 1 <>",
        "> S. 0:0 ack 1 <mss 1460,sackOK>",
        "> S. 0:0 ack 1 ect0",
        "> S. 0:0 ack 1 ttl 3",
        "[b] > S. 0:0 ack 1",
        "+5ms > S. 0:0 ack 1",
    ] {
        let report = failure(&format!("case x (RFC 1)\nlisten\n< S 0:0 win 9 <mss 1000>\n{expectation}\n"));
        assert!(report.contains("expected:") || report.contains("further"), "{expectation}: {report}");
    }
}

#[test]
fn a_segment_that_comes_too_early_or_too_late_fails() {
    let begin = "case x (RFC 1)\nlisten\n< S 0:0 win 9 <mss 1000>\n> S. 0:0 ack 1\n";
    let report = failure(&format!("{begin}+1.5s..2s > S. 0:0 ack 1\n"));
    assert!(report.contains("not before"), "{report}");
    let report = failure(&format!("{begin}+500ms > S. 0:0 ack 1\n"));
    assert!(report.contains("the next timer is due"), "{report}");
}

#[test]
fn wrong_bytes_and_missing_news_fail() {
    let begin = "case x (RFC 1)\nuse established\n";
    let report = failure(&format!("{begin}< P. 1:11 ack 1 win 9 other\npass 50ms\nread 10\n"));
    assert!(report.contains("of the stream"), "{report}");
    let report = failure(&format!("{begin}event finished\n"));
    assert!(report.contains("this event"), "{report}");
    let report = failure(&format!("{begin}< R 1:1\n"));
    assert!(report.contains("does not speak"), "{report}");
}

#[test]
fn a_script_that_says_nothing_sensible_is_refused_with_its_line() {
    for (line, problem) in [
        ("dance", "no such statement"),
        ("> X 0:0", "no flag"),
        ("> . 0:0", "go together"),
        ("< S 0 ack 1", "SEQ:END"),
        ("advance 5", "no unit"),
        ("advance 5h", "no unit of time"),
        ("< S 0:0 <moss 4>", "no option"),
        ("use nothing", "no prologue"),
        ("[ab] listen", "one letter"),
    ] {
        let report =
            language::cases("broken.tcp", &format!("case x (RFC 1)\n{line}\n"), &[]).expect_err(line);
        assert!(report.contains("broken.tcp:2") && report.contains(problem), "{line}: {report}");
    }
    let report = language::cases("broken.tcp", "case x\nlisten\n", &[]).expect_err("no citation");
    assert!(report.contains("cites nothing"), "{report}");
}
