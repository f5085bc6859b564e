//! `[drain]`, and the state of a listener.

use std::time::Duration;

use crate::diagnostic::Located;
use crate::drain::MOST_GRACE;
use crate::reader::TableReader;
use crate::state::Admin;
use crate::units;

/// Most words of a command.
const MOST_WORDS: usize = 100;

/// `[drain]`.
#[derive(Debug, Default)]
pub struct Drain {
    /// `grace`.
    pub grace: Option<Located<Duration>>,
    /// `on_drain`: a program and its arguments.
    pub on_drain: Vec<Located<String>>,
    /// `on_ready`, as above.
    pub on_ready: Vec<Located<String>>,
}

impl Drain {
    /// The words of a command; none where there is no program.
    pub(crate) fn command(words: &[Located<String>]) -> Option<Vec<String>> {
        (!words.is_empty()).then(|| words.iter().map(|word| word.value.clone()).collect())
    }
}

pub(super) fn read(table: &mut TableReader<'_, '_>) -> Drain {
    let grace = table.parsed("grace", "a duration from \"0s\" to \"60s\"", |text| {
        let grace = units::parse_duration(text)?;
        if grace > MOST_GRACE { Err(format!("\"{text}\" is longer than 60s")) } else { Ok(grace) }
    });
    Drain { grace, on_drain: command(table, "on_drain"), on_ready: command(table, "on_ready") }
}

fn command(table: &mut TableReader<'_, '_>, field: &'static str) -> Vec<Located<String>> {
    let expected = "a program's path and its arguments, as in [\"/usr/local/bin/withdraw\", \"now\"]";
    let words = table.parsed_list(field, expected, |text| {
        if text.contains('\0') { Err("a NUL byte".to_owned()) } else { Ok(text.to_owned()) }
    });
    words.into_iter().take(MOST_WORDS).collect()
}

/// `state` of `[[listener]]`.
pub(super) fn read_state(table: &mut TableReader<'_, '_>) -> Option<Located<Admin>> {
    let words = [("ready", Admin::Ready), ("drain", Admin::Drain), ("maint", Admin::Maint)];
    table.word("state", &words, &[])
}
