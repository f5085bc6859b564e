//! `test`: what the project promises, item by item, each on a fresh lab.
//!
//! A scenario is a function that fails with words. After each, the rig checks what must hold after every test: packets
//! are conserved, no buffer is owned, no process has crashed.

mod access;
mod capture;
mod carry;
mod change;
mod changes;
mod crash;
mod drain;
mod exception;
mod flood;
mod fuzzing;
mod health;
mod hostile;
mod http;
mod proxy;
mod raw;
mod reach;
mod rig;
mod size;
mod tcp;
mod workers;
mod workspace;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::interrupt;
use crate::setup::{Binaries, Ready};

/// What every scenario is given.
#[derive(Debug)]
pub(crate) struct Context {
    /// Weir's programs.
    pub(crate) binaries: Binaries,
    /// Seed of everything random.
    pub(crate) seed: u64,
}

/// A scenario's body.
type Body = Box<dyn Fn(&Context) -> Result<()>>;

/// One scenario.
pub(crate) struct Scenario {
    name: String,
    long: bool,
    body: Body,
}

impl Scenario {
    /// One that CI runs.
    fn new(name: impl Into<String>, body: impl Fn(&Context) -> Result<()> + 'static) -> Self {
        Self { name: name.into(), long: false, body: Box::new(body) }
    }

    /// One that only `--all` runs.
    fn long(name: impl Into<String>, body: impl Fn(&Context) -> Result<()> + 'static) -> Self {
        Self { long: true, ..Self::new(name, body) }
    }
}

/// What the user asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// The long ones too.
    #[arg(long)]
    all: bool,
    /// Only those whose name contains this.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only list them.
    #[arg(long)]
    list: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Choice {
    /// Whether nothing has to be built for it.
    pub(crate) fn only_lists(&self) -> bool {
        self.list
    }

    fn takes(&self, name: &str, long: bool) -> bool {
        match &self.only {
            Some(part) => name.contains(part.as_str()),
            None => self.all || !long,
        }
    }
}

fn all() -> Vec<Scenario> {
    let groups = [
        carry::scenarios(),
        access::scenarios(),
        capture::scenarios(),
        reach::scenarios(),
        size::scenarios(),
        change::scenarios(),
        changes::scenarios(),
        crash::scenarios(),
        drain::scenarios(),
        exception::scenarios(),
        health::scenarios(),
        workers::scenarios(),
        raw::scenarios(),
        flood::scenarios(),
        proxy::scenarios(),
        http::scenarios(),
        hostile::scenarios(),
        tcp::scenarios(),
        fuzzing::scenarios(),
    ];
    groups.into_iter().flatten().collect()
}

/// Prints the names.
pub(crate) fn list() {
    for name in workspace::NAMES {
        println!("  {name}");
    }
    for scenario in all() {
        println!("  {}{}", scenario.name, if scenario.long { "  (with --all)" } else { "" });
    }
}

/// Runs what was asked for; the last line printed is `N passed, N failed`.
pub(crate) fn run(ready: &Ready, choice: &Choice) -> Result<()> {
    let context = Context { binaries: ready.binaries.clone(), seed: choice.seed };
    println!("\n  seed {} (--seed repeats a run)\n", choice.seed);
    let mut passed = 0;
    let mut failed = Vec::new();
    let mut report = |name: &str, started: Instant, outcome: Result<()>| -> Result<()> {
        interrupt::check()?;
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                passed += 1;
                println!("  {name:<44} passed  {seconds:6.1} s");
            }
            Err(error) => {
                println!("  {name:<44} FAILED  {seconds:6.1} s");
                println!("      {}", format!("{error:#}").replace('\n', "\n      "));
                failed.push(name.to_owned());
            }
        }
        Ok(())
    };
    for name in workspace::NAMES.into_iter().filter(|name| choice.takes(name, false)) {
        let started = Instant::now();
        report(name, started, workspace::check(name))?;
    }
    for scenario in all().iter().filter(|scenario| choice.takes(&scenario.name, scenario.long)) {
        let started = Instant::now();
        report(&scenario.name, started, (scenario.body)(&context))?;
    }
    if passed + failed.len() == 0 {
        bail!("no test's name contains {:?}; `cargo testbed test --list` shows them", choice.only);
    }
    if !failed.is_empty() {
        println!("\n  failed: {}", failed.join(", "));
    }
    println!("\n{passed} passed, {} failed", failed.len());
    if failed.is_empty() { Ok(()) } else { Err(crate::Quiet.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_what_they_are_about() {
        let mut names: Vec<String> = all().into_iter().map(|scenario| scenario.name).collect();
        names.extend(workspace::NAMES.map(str::to_owned));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(names.iter().all(|name| name.contains('/')));
    }
}
