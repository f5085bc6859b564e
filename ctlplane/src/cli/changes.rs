//! Commands that change the configuration, and those that look at how it changed.

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value as Json;

use super::{Exit, complain, failed, print, print_json, read_file, read_up_to};
use crate::api::{
    Applied, ChangeRequest, DiffAnswer, HistoryAnswer, MAX_BACKUP_BYTES, Outcome, percent_encode,
};
use crate::changes::edit::{Edit, Kind, Operation, parse_argument};
use crate::client::{Client, ClientError};
use crate::diagnostic;
use crate::engine::{Backup, Plan};
use crate::units::parse_duration;

/// How a change is to be made.
#[derive(Clone, Debug, Default, Args)]
pub struct Manner {
    /// Only say what would happen: what differs, which slots and flows move.
    #[arg(long)]
    pub dry_run: bool,
    /// Take it back after so long, unless weir confirm comes before: 1s to 24h.
    #[arg(long, value_parser = parse_duration, conflicts_with = "dry_run")]
    pub confirm: Option<Duration>,
    /// The answer as JSON.
    #[arg(long)]
    pub json: bool,
}

impl Manner {
    pub(super) fn query(&self) -> String {
        let confirm = self.confirm.map(|limit| format!("&confirm={}ms", limit.as_millis()));
        format!("dry_run={}{}", self.dry_run, confirm.unwrap_or_default())
    }
}

/// Edits of sections of one kind.
#[derive(Debug, Subcommand)]
pub enum SectionCommand {
    /// Add one.
    Add {
        /// Its name.
        name: String,
        /// Fields as in the file, KEY=VALUE; the value is TOML, and a plain word needs no quotes. A dot reaches into a table.
        fields: Vec<String>,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Change fields of one.
    Set {
        /// Its name.
        name: String,
        /// Fields as in the file, KEY=VALUE; KEY= takes a field away.
        #[arg(required = true)]
        fields: Vec<String>,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Remove one.
    Remove {
        /// Its name.
        name: String,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
}

pub(super) fn section(client: &Client, kind: Kind, command: &SectionCommand) -> Exit {
    let (op, name, fields, manner) = match command {
        SectionCommand::Add { name, fields, manner } => (Operation::Add, name, fields.as_slice(), manner),
        SectionCommand::Set { name, fields, manner } => (Operation::Set, name, fields.as_slice(), manner),
        SectionCommand::Remove { name, manner } => (Operation::Remove, name, &[][..], manner),
    };
    edit(client, op, kind, name, fields, Vec::new(), false, manner)
}

/// Sends one edit.
#[expect(clippy::too_many_arguments, reason = "the parts of one command line")]
pub(super) fn edit(
    client: &Client,
    op: Operation,
    kind: Kind,
    name: &str,
    arguments: &[String],
    mut fields: Vec<(String, Json)>,
    force: bool,
    manner: &Manner,
) -> Exit {
    for argument in arguments {
        match parse_argument(argument) {
            Ok(field) => fields.push(field),
            Err(error) => {
                complain(&format!("{error}; write KEY=VALUE with the fields of the file, as in weight=50"));
                return Exit::Unreachable;
            }
        }
    }
    let mut edit = Edit { op, kind, name: name.to_owned(), fields: Default::default() };
    for (field, value) in fields {
        if edit.fields.insert(field.clone(), value).is_some() {
            complain(&format!("{field} is given twice"));
            return Exit::Unreachable;
        }
    }
    let request = ChangeRequest { changes: vec![edit], force };
    answered(client.post(&format!("/v1/changes?{}", manner.query()), &request), manner.json)
}

/// Tells what became of a change, or why there was none.
pub(super) fn answered(answer: Result<Applied, ClientError>, json: bool) -> Exit {
    match answer {
        Ok(applied) => {
            if !json {
                print(&diagnostic::render(&applied.diagnostics, std::io::stdout().is_terminal()));
            }
            report(&applied, json)
        }
        Err(ClientError::Refused(failure)) if json => {
            print_json(&failure);
            Exit::Bad
        }
        Err(error) => failed(&error),
    }
}

/// As [`answered`]; what it did where no table had to change is told in its own words.
pub(super) fn answered_as(answer: Result<Applied, ClientError>, json: bool, done: &str) -> Exit {
    match answer {
        Ok(applied) if !json && applied.outcome == Outcome::Unchanged => {
            print(&format!("{done}: generation {} is in force\n", applied.generation));
            Exit::Good
        }
        answer => answered(answer, json),
    }
}

pub(super) fn apply(client: &Client, file: Option<&Path>, revision: Option<&str>, manner: &Manner) -> Exit {
    if let Some(revision) = revision {
        let path = format!("/v1/apply?revision={}&{}", percent_encode(revision), manner.query());
        return answered(client.post_text(&path, ""), manner.json);
    }
    let Some(file) = file else {
        complain("name a file, or a revision of weir-ctlplane's own with --revision");
        return Exit::Unreachable;
    };
    let (text, name) = match read_file(file) {
        Ok(read) => read,
        Err(exit) => return exit,
    };
    let path = format!("/v1/apply?name={}&{}", percent_encode(&name), manner.query());
    answered(client.post_text(&path, &text), manner.json)
}

pub(super) fn history(client: &Client, json: bool) -> Exit {
    let answer: HistoryAnswer = match client.get("/v1/history") {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    if json {
        print_json(&answer);
        return Exit::Good;
    }
    let mut text = String::new();
    for change in &answer.changes {
        let time: String =
            crate::access_log::format_time(change.unix_ms.saturating_mul(1_000)).chars().take(19).collect();
        let comment = change.comment.as_ref().map_or(String::new(), |comment| format!("  \"{comment}\""));
        let _ = writeln!(
            text,
            "{:>5}  generation {:<5} {time}Z  {}: {}{comment}",
            change.number, change.generation, change.user, change.how
        );
    }
    if let Some(note) = &answer.note {
        let _ = writeln!(text, "note: {note}");
    }
    print(&text);
    Exit::Good
}

pub(super) fn differences(client: &Client, from: Option<u64>, to: Option<u64>, json: bool) -> Exit {
    let path = match (from, to) {
        (Some(from), Some(to)) => format!("/v1/diff?from={from}&to={to}"),
        (Some(from), None) => format!("/v1/diff?from={from}"),
        (None, _) => "/v1/diff".to_owned(),
    };
    let answer: DiffAnswer = match client.get(&path) {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    if json {
        print_json(&answer);
    } else if answer.differences.is_empty() {
        print("no difference\n");
    } else {
        answer.differences.lines().iter().for_each(|line| print(&format!("{line}\n")));
    }
    Exit::Good
}

pub(super) fn backup(client: &Client, file: &Path) -> Exit {
    let backup: Backup = match client.post("/v1/backup", &()) {
        Ok(backup) => backup,
        Err(error) => return failed(&error),
    };
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let text = serde_json::to_vec(&backup)?;
        if file == Path::new("-") {
            return std::io::Write::write_all(&mut std::io::stdout().lock(), &text);
        }
        let mut options = std::fs::OpenOptions::new();
        // it has the hash key in it
        let mut open = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        std::io::Write::write_all(&mut open, &text)?;
        open.sync_all()?;
        std::fs::rename(&temporary, file)
    };
    match write() {
        Ok(()) => {
            if file != Path::new("-") {
                print(&format!("{} has a backup of {}\n", file.display(), backup.summary()));
            }
            Exit::Good
        }
        Err(error) => {
            if file != Path::new("-") {
                let _gone = std::fs::remove_file(&temporary);
            }
            let remedy = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make room there",
                ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                    "name a place that you may write to"
                }
                ErrorKind::NotFound => "make its directory first",
                _ => "name another file",
            };
            complain(&format!("cannot write {}: {error}; there is no new backup: {remedy}", file.display()));
            Exit::Bad
        }
    }
}

pub(super) fn restore(client: &Client, file: &Path, json: bool) -> Exit {
    match read_up_to(file, MAX_BACKUP_BYTES, "a backup") {
        Ok((text, _)) => answered(client.post_text("/v1/restore", &text), json),
        Err(exit) => exit,
    }
}

/// Tells what became of a change.
pub(crate) fn report(applied: &Applied, json: bool) -> Exit {
    if json {
        print_json(applied);
    } else {
        if let Some(plan) = &applied.plan {
            print(&describe_plan(plan));
        }
        print(&format!("{}\n", describe(applied)));
        for change in &applied.needs_restart {
            print(&format!("  needs a restart of weir-dataplane: {change}\n"));
        }
        if applied.confirm_by_unix_ms.is_some() && applied.outcome != Outcome::DryRun {
            let left = applied.confirm_by_unix_ms.unwrap_or(0).saturating_sub(crate::changes::unix_ms());
            print(&format!("  it is taken back in {} s unless you run: weir confirm\n", left / 1_000));
        }
    }
    match applied.outcome {
        Outcome::Refused { .. } | Outcome::Pending { .. } => Exit::Bad,
        _ => Exit::Good,
    }
}

fn describe_plan(plan: &Plan) -> String {
    let mut text = String::new();
    for line in plan.differences.lines() {
        let _ = writeln!(text, "{line}");
    }
    let blast = &plan.blast;
    for listener in &blast.listeners {
        let _ = writeln!(text, "  listener {}: {}", listener.name, listener.why);
    }
    for pool in &blast.pools {
        let _ = writeln!(text, "  pool {}: {:.1}% of its slots move", pool.name, pool.slots_moved_percent);
    }
    for backend in &blast.backends {
        let flows =
            backend.flows.map_or_else(|| "flows unknown".to_owned(), |flows| format!("{flows} flows now"));
        let _ = writeln!(text, "  backend {}: {}, {flows}", backend.name, backend.change);
    }
    match blast.flows {
        Some(flows) => {
            let _ = writeln!(text, "  {flows} flows and connections are on backends that change");
        }
        None => text.push_str("  flows and connections are not known: weir-dataplane counts nothing\n"),
    }
    text
}

fn describe(applied: &Applied) -> String {
    let generation = applied.generation;
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    match &applied.outcome {
        Outcome::DryRun => "the file is good; nothing was changed".to_owned(),
        Outcome::Unchanged => {
            format!("nothing to change for the workers: generation {generation} is in force")
        }
        Outcome::Acked { workers, microseconds } => {
            let milliseconds = *microseconds as f64 / 1_000.0;
            format!(
                "generation {generation} acked by {workers} worker{} in {milliseconds:.1} ms",
                plural(*workers)
            )
        }
        Outcome::NoDataplane => {
            format!(
                "generation {generation} published; weir-dataplane is not running and will adopt it at its start"
            )
        }
        Outcome::Refused { text } => format!(
            "generation {generation} was refused by weir-dataplane, which goes on with the one before: {text}"
        ),
        Outcome::Pending { acked, workers } => format!(
            "generation {generation} published, but only {acked} of {workers} workers acked it within 5 s; see weir status"
        ),
    }
}
