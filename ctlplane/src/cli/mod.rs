//! The command line `weir`: what was asked, and with which exit code does it end?
//!
//! 0 ok · 1 an error in what was asked, or degraded · 2 unreachable, or a wrong command line.

mod backend;
mod changes;
mod drain;
mod explain;
mod health;
mod hugepages;
mod screen;

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::api::MAX_BODY_BYTES;
use crate::changes::edit::Kind;
use crate::client::{Client, ClientError};
use crate::diagnostic::{self, Report, Source};
use crate::machine::Machine;
use crate::status::{Health, Status};
use crate::units::parse_cpu_list;
use crate::{plan, socket, validate};

pub use backend::BackendCommand;
pub(crate) use changes::report;
pub use changes::{Manner, SectionCommand};
pub use drain::{ListenerCommand, Then, Waiting};
pub use explain::{ExplainCommand, RequestArguments};
pub use health::HealthArguments;
pub use hugepages::HugepagesCommand;

/// Watch and steer a Weir load balancer.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100)]
pub struct Arguments {
    /// Name of the instance.
    #[arg(long, global = true, default_value = "weir", value_parser = parse_instance)]
    pub instance: String,
    /// Where weir-ctlplane's socket is.
    #[arg(long, global = true, default_value = "/run/weir")]
    pub run_dir: PathBuf,
    /// Where shared memory is.
    #[arg(long, global = true, default_value = "/dev/shm")]
    pub shm_dir: PathBuf,
    /// Kept in history with a change.
    #[arg(long, global = true, value_name = "TEXT")]
    pub comment: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check a configuration file; changes nothing and needs no daemon.
    Check {
        /// The file; "-" reads standard input.
        file: PathBuf,
        /// Check as for another machine with these CPUs ("0-31"); as for this machine, its memory included, where it is left out.
        #[arg(long, value_parser = parse_machine)]
        cpus: Option<Machine>,
        /// Findings as JSON.
        #[arg(long)]
        json: bool,
    },
    /// How the balancer is. Exit code 0: ok, 1: degraded, 2: unreachable.
    Status {
        /// All of it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// What the health checks find. Exit code 0: all are up, 1: some are not.
    Health(HealthArguments),
    /// Put a configuration file in force; a bad one changes nothing.
    Apply {
        /// The file; "-" reads standard input.
        #[arg(required_unless_present = "revision", conflicts_with = "revision")]
        file: Option<PathBuf>,
        /// weir-ctlplane's own file as it was in this revision of its git work tree.
        #[arg(long)]
        revision: Option<String>,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Keep what was changed with --confirm.
    Confirm {
        /// The answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Write what is in force to weir-ctlplane's file; its comments stay.
    Save {
        /// Also over a file that was edited since it was applied.
        #[arg(long)]
        force: bool,
        /// The answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Go back to what was applied, without what was changed at run time since.
    Discard {
        /// The answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Who changed what, when and how; newest first.
    History {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// What differs: from weir-ctlplane's file to what is in force, or between two changes of history.
    Diff {
        /// From this change; from the file where it is left out.
        from: Option<u64>,
        /// To this one; to what is in force where it is left out.
        to: Option<u64>,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Put in force what a change of history left.
    Rollback {
        /// Its number in weir history.
        to: u64,
        /// How.
        #[command(flatten)]
        manner: Manner,
    },
    /// Write configuration, history, states and indices to one file.
    Backup {
        /// The file; "-" writes to standard output.
        file: PathBuf,
    },
    /// Take over everything of a backup.
    Restore {
        /// The file; "-" reads standard input.
        file: PathBuf,
        /// The answer as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Change vips at run time.
    Vip {
        /// What to do with them.
        #[command(subcommand)]
        command: SectionCommand,
    },
    /// List and change listeners at run time.
    Listener {
        /// What to do with them.
        #[command(subcommand)]
        command: ListenerCommand,
    },
    /// Change pools at run time.
    Pool {
        /// What to do with them.
        #[command(subcommand)]
        command: SectionCommand,
    },
    /// Change routes of HTTP at run time; they need names.
    Route {
        /// What to do with them.
        #[command(subcommand)]
        command: SectionCommand,
    },
    /// Take the node out of service: withdraw it from the network, take no new flows or connections, end idle ones.
    Drain {
        /// How long to wait.
        #[command(flatten)]
        waiting: drain::Waiting,
        /// End weir-dataplane when nothing is left.
        #[arg(long, requires = "wait")]
        stop: bool,
    },
    /// Take the node back into service.
    Ready,
    /// Say why something is as it is.
    Explain {
        /// What.
        #[command(subcommand)]
        command: ExplainCommand,
    },
    /// Print the memory budget of a configuration file; changes nothing and needs no daemon.
    Plan {
        /// The file; "-" reads standard input.
        file: PathBuf,
        /// Plan as for a machine with these CPUs ("0-31"); this machine's where it is left out.
        #[arg(long, value_parser = parse_machine)]
        cpus: Option<Machine>,
        /// The plan as JSON.
        #[arg(long)]
        json: bool,
    },
    /// List and change backends at run time.
    Backend {
        /// What to do with them.
        #[command(subcommand)]
        command: BackendCommand,
    },
    /// Reserve hugepages for weir-dataplane.
    Hugepages {
        /// What to do with them.
        #[command(subcommand)]
        command: HugepagesCommand,
    },
    /// Print shell completions.
    Completion {
        /// Which shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

/// Most characters of a command line that history is told.
const MOST_COMMAND: usize = 500;

/// What history tells of a command: without what only says where the daemon is, or is told beside it.
fn command_line(arguments: impl Iterator<Item = String>) -> String {
    const LEFT_OUT: [&str; 4] = ["--instance", "--run-dir", "--shm-dir", "--comment"];
    let mut line = "weir".to_owned();
    let mut is_value = false;
    for argument in arguments {
        let name = argument.split('=').next().unwrap_or("");
        if std::mem::take(&mut is_value) {
            continue;
        }
        if LEFT_OUT.contains(&name) {
            is_value = name.len() == argument.len();
            continue;
        }
        line.push(' ');
        line.push_str(&argument);
    }
    line.chars().take(MOST_COMMAND).collect()
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0.
    Good,
    /// 1.
    Bad,
    /// 2.
    Unreachable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Good => Self::SUCCESS,
            Exit::Bad => Self::FAILURE,
            Exit::Unreachable => Self::from(2),
        }
    }
}

/// Names of instances become file names.
pub fn parse_instance(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !text.contains("map_");
    if fits {
        Ok(text.to_owned())
    } else {
        Err("an instance's name is 1 to 32 letters, digits, '-' or '_', without \"map_\"".to_owned())
    }
}

/// Prints to standard output; a closed pipe is no error.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        // whoever read has gone
    }
}

pub(crate) fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    if writeln!(err, "weir: {text}").is_err() {
        // nobody to tell
    }
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&format!("{text}\n")),
        Err(error) => complain(&error.to_string()),
    }
}

/// Explains a failed request and gives the exit code.
pub(crate) fn failed(error: &ClientError) -> Exit {
    match error {
        ClientError::Refused(failure) => {
            let colour = std::io::stderr().is_terminal();
            let findings = diagnostic::render(&failure.diagnostics, colour);
            if !findings.is_empty() && std::io::stderr().lock().write_all(findings.as_bytes()).is_err() {
                return Exit::Bad;
            }
            complain(&failure.error);
            Exit::Bad
        }
        other => {
            complain(&other.to_string());
            Exit::Unreachable
        }
    }
}

/// Runs a command.
pub fn run(arguments: &Arguments) -> Exit {
    let command =
        command_line(std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()));
    let client = Client::new(&socket::socket_path(&arguments.run_dir, &arguments.instance))
        .described(command, arguments.comment.clone());
    match &arguments.command {
        Command::Check { file, cpus, json } => {
            check(file, &cpus.clone().unwrap_or_else(Machine::detect), *json)
        }
        Command::Explain { command } => explain::run(&client, command),
        Command::Plan { file, cpus, json } => {
            budget(file, &cpus.clone().unwrap_or_else(Machine::detect), *json)
        }
        Command::Health(arguments) => health::run(&client, arguments),
        Command::Status { json } => status(arguments, &client, *json),
        Command::Apply { file, revision, manner } => {
            changes::apply(&client, file.as_deref(), revision.as_deref(), manner)
        }
        Command::Confirm { json } => {
            let answer = client.post_text("/v1/confirm", "");
            changes::answered_as(answer, *json, "confirmed, it is not taken back any more")
        }
        Command::Save { force, json } => {
            let answer = client.post_text(&format!("/v1/save?force={force}"), "");
            changes::answered_as(answer, *json, "saved, the file says what is in force")
        }
        Command::Discard { json } => changes::answered(client.post_text("/v1/discard", ""), *json),
        Command::History { json } => changes::history(&client, *json),
        Command::Diff { from, to, json } => changes::differences(&client, *from, *to, *json),
        Command::Rollback { to, manner } => {
            let path = format!("/v1/rollback?to={to}&{}", manner.query());
            changes::answered(client.post_text(&path, ""), manner.json)
        }
        Command::Backup { file } => changes::backup(&client, file),
        Command::Restore { file, json } => changes::restore(&client, file, *json),
        Command::Vip { command } => changes::section(&client, Kind::Vip, command),
        Command::Listener { command } => drain::listener(&client, command),
        Command::Drain { waiting, stop } => drain::node(&client, *waiting, *stop),
        Command::Ready => drain::ready(&client),
        Command::Pool { command } => changes::section(&client, Kind::Pool, command),
        Command::Route { command } => changes::section(&client, Kind::Route, command),
        Command::Backend { command } => backend::run(&client, command),
        Command::Hugepages { command } => hugepages::run(command),
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "weir", &mut text);
            print(&String::from_utf8_lossy(&text));
            Exit::Good
        }
        Command::Man => {
            let mut text = Vec::new();
            if let Err(error) = clap_mangen::Man::new(Arguments::command()).render(&mut text) {
                complain(&error.to_string());
                return Exit::Bad;
            }
            print(&String::from_utf8_lossy(&text));
            Exit::Good
        }
    }
}

fn read_file(file: &Path) -> Result<(String, String), Exit> {
    read_up_to(file, MAX_BODY_BYTES, "a configuration")
}

fn read_up_to(file: &Path, most: usize, what: &str) -> Result<(String, String), Exit> {
    // one byte more tells a file that is too large
    let limit = most as u64 + 1;
    let mut bytes = Vec::new();
    let (name, read) = if file == Path::new("-") {
        ("<stdin>".to_owned(), std::io::stdin().take(limit).read_to_end(&mut bytes))
    } else {
        let read = std::fs::File::open(file).and_then(|open| open.take(limit).read_to_end(&mut bytes));
        (file.display().to_string(), read)
    };
    if read.is_ok() && bytes.len() > most {
        complain(&format!(
            "{name} is larger than the limit of {most} bytes for {what}; remove what it does not need"
        ));
        return Err(Exit::Bad);
    }
    let text = read.and_then(|_| {
        String::from_utf8(bytes).map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))
    });
    match text {
        Ok(text) => Ok((text, name)),
        Err(error) => {
            complain(&format!("cannot read {name}: {error}; name a readable UTF-8 file"));
            Err(Exit::Unreachable)
        }
    }
}

#[derive(serde::Serialize)]
struct Checked<'a> {
    schema: u32,
    ok: bool,
    diagnostics: &'a [Report],
}

fn parse_machine(text: &str) -> Result<Machine, String> {
    parse_cpu_list(text).map(Machine::with_cpus)
}

fn check(file: &Path, machine: &Machine, json: bool) -> Exit {
    let (text, name) = match read_file(file) {
        Ok(read) => read,
        Err(exit) => return exit,
    };
    let source = Source { name: &name, text: &text };
    let (model, diagnostics) = validate::load(source, machine);
    let reports = source.reports(&diagnostics);
    if json {
        print_json(&Checked { schema: 1, ok: model.is_some(), diagnostics: &reports });
    } else {
        print(&diagnostic::render(&reports, std::io::stdout().is_terminal()));
        if let Some(model) = &model {
            let backends: usize = model.pools.iter().map(|pool| pool.backends.len()).sum();
            print(&format!(
                "{name} is good: {} ports, {} vips, {} listeners, {} pools, {backends} backends\n",
                model.node.ports.len(),
                model.vips.len(),
                model.listeners.len(),
                model.pools.len()
            ));
        }
    }
    if model.is_some() { Exit::Good } else { Exit::Bad }
}

fn budget(file: &Path, machine: &Machine, json: bool) -> Exit {
    let (text, name) = match read_file(file) {
        Ok(read) => read,
        Err(exit) => return exit,
    };
    let source = Source { name: &name, text: &text };
    let (model, diagnostics) = validate::load(source, machine);
    let Some(model) = model else {
        print(&diagnostic::render(&source.reports(&diagnostics), std::io::stdout().is_terminal()));
        return Exit::Bad;
    };
    let plan = plan::plan(&model);
    if json {
        print_json(&plan);
    } else {
        print(&plan::render(&plan));
    }
    Exit::Good
}

fn status(arguments: &Arguments, client: &Client, json: bool) -> Exit {
    let status: Status = match client.get("/v1/status") {
        Ok(status) => status,
        Err(error) => {
            let mut status = Status::read(&arguments.shm_dir, &arguments.instance);
            if status.ctlplane.state == "running" {
                status.missing.push(error.to_string());
            }
            status
        }
    };
    if json {
        print_json(&status);
    } else {
        print(&screen::render(&status, std::io::stdout().is_terminal()));
    }
    match status.health() {
        Health::Good => Exit::Good,
        Health::Degraded => Exit::Bad,
        Health::Unreachable => Exit::Unreachable,
    }
}
