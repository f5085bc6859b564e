//! The command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    weir_ctlplane::cli::run(&weir_ctlplane::cli::Arguments::parse()).into()
}
