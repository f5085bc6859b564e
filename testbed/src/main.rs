//! `cargo testbed …`: Weir on a machine of its own making. Network namespaces hold the client, the balancer and the
//! backends; real programs talk through it; everything is cleaned up afterwards.
//!
//! ```text
//! setup     packages, hugepages, binaries: what is missing, nothing else
//! topology  namespaces, links and addresses (the only place that calls `ip`)
//! supervisor, run, weir   processes, what belongs to a run, Weir's two processes and its command line
//! traffic   clients, servers, frames
//! wire      the TCP engine against the kernel, over a link of our own
//! demo, scenario, bench, fuzz   what the user asked for
//! ```
#![forbid(unsafe_code)]
#![allow(
    clippy::indexing_slicing,
    reason = "a test program on its own data: a panic here is a failed test, not an outage"
)]

mod bench;
mod command;
mod config;
mod console;
mod demo;
mod fuzz;
mod interrupt;
mod random;
mod run;
mod scenario;
mod setup;
mod status;
mod supervisor;
mod topology;
mod traffic;
mod weir;
mod wire;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::demo::IoChoice;

/// Benches assert how often memory is allocated.
#[global_allocator]
static ALLOCATOR: weir_os::allocations::Counting = weir_os::allocations::Counting;

/// Weir's testbed: every test, demo and benchmark in network namespaces of its own.
#[derive(Debug, Parser)]
#[command(name = "cargo testbed", bin_name = "cargo testbed")]
struct Arguments {
    /// Use the programs as they were built last.
    #[arg(long, global = true)]
    no_build: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Install what is missing, reserve hugepages, build.
    Setup,
    /// Real HTTP through nat and dsr listeners over IPv4 and IPv6; a table of who answered.
    Demo {
        /// Through what Weir's ports reach the network.
        #[arg(long, value_enum, default_value = "auto")]
        io: IoChoice,
        /// Leave everything running.
        #[arg(long)]
        keep: bool,
    },
    /// Start the demo's lab and leave it running.
    Up {
        /// Through what Weir's ports reach the network.
        #[arg(long, value_enum, default_value = "auto")]
        io: IoChoice,
    },
    /// End what `up` or `demo --keep` left running.
    Down,
    /// Formatting, lints, unit tests, then every end-to-end scenario.
    Test(scenario::Choice),
    /// Measure packets and changes; compare with targets.
    Bench(bench::Choice),
    /// Run the parsers and the L4 engine on broken input.
    Fuzz(fuzz::Choice),
    /// A client or server of a scenario, in a process of its own.
    #[command(subcommand, hide = true)]
    Peer(traffic::peer::Peer),
    /// Remove what crashed runs left behind.
    Clean,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match act(arguments.action, !arguments.no_build) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Quiet>() {
                eprintln!("\nerror: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

/// A failure that has been told already.
#[derive(Debug)]
struct Quiet;

impl std::fmt::Display for Quiet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("failed")
    }
}

impl std::error::Error for Quiet {}

fn act(action: Action, build: bool) -> Result<()> {
    if let Action::Peer(peer) = &action {
        return traffic::peer::run(peer);
    }
    interrupt::install()?;
    if let Action::Fuzz(choice) = &action {
        return fuzz::run(choice);
    }
    setup::require()?;
    match action {
        Action::Setup => {
            setup::prepare(build).map(|ready| println!("  ready: {}", ready.binaries.weir.display()))
        }
        Action::Demo { io, keep } => demo::demo(setup::prepare(build)?, io, keep),
        Action::Up { io } => demo::up(setup::prepare(build)?, io),
        Action::Down => demo::down(),
        Action::Test(choice) if choice.only_lists() => {
            scenario::list();
            Ok(())
        }
        Action::Test(choice) => scenario::run(&setup::prepare(build)?, &choice),
        Action::Bench(choice) => bench::run(&setup::prepare(build)?, &choice),
        Action::Fuzz(_) | Action::Peer(_) => Ok(()),
        Action::Clean => clean(),
    }
}

fn clean() -> Result<()> {
    let removed = run::sweep()?;
    if removed.is_empty() {
        println!("  nothing was left behind");
    }
    for name in removed {
        println!("  removed {name}");
    }
    setup::settle_pages()
}
