//! The control daemon: reads the configuration, publishes it, answers on a socket.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use weir_ctlplane::daemon::{self, DaemonError};
use weir_ctlplane::diagnostic;
use weir_ctlplane::engine::{EngineError, Options};
use weir_ctlplane::machine::Machine;
use weir_ctlplane::socket::Groups;

/// Decides what weir-dataplane does.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration for the first start; later starts go on with what was applied.
    #[arg(long)]
    config: PathBuf,
    /// Name of this instance.
    #[arg(long, default_value = "weir", value_parser = weir_ctlplane::cli::parse_instance)]
    instance: String,
    /// Where the state that survives restarts is kept.
    #[arg(long, default_value = "/var/lib/weir")]
    state_dir: PathBuf,
    /// Where the socket is.
    #[arg(long, default_value = "/run/weir")]
    run_dir: PathBuf,
    /// Where shared memory is.
    #[arg(long, default_value = "/dev/shm")]
    shm_dir: PathBuf,
    /// Group whose members may change everything through the socket [default: the daemon's own]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Group whose members may look but not change, through a socket of their own, INSTANCE.ro.sock
    #[arg(long, value_name = "NAME")]
    read_only_group: Option<String>,
    /// error, warn, info, debug or trace.
    #[arg(long, default_value = "info")]
    log: String,
}

fn main() -> ExitCode {
    weir_os::heap::return_large_blocks();
    let arguments = Arguments::parse();
    let filter = match EnvFilter::try_new(&arguments.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("weir-ctlplane: --log {}: {error}", arguments.log);
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let options = Options {
        instance: arguments.instance,
        config: arguments.config,
        state_dir: arguments.state_dir,
        shm_dir: arguments.shm_dir,
        machine: Machine::detect(),
    };
    let groups = Groups { full: arguments.group, read_only: arguments.read_only_group };
    match daemon::run(options, &arguments.run_dir, &groups) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let DaemonError::Engine(EngineError::Config { reports, .. }) = &error {
                eprint!("{}", diagnostic::render(reports, false));
            }
            eprintln!("weir-ctlplane: {error}");
            ExitCode::FAILURE
        }
    }
}
