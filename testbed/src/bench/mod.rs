//! How fast is Weir? `cargo testbed bench l4|control`: the packet loop beside `dpdk-testpmd` on the same capture, and
//! how quickly changes reach the workers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::setup::Ready;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Packets: cost by mode, family and number of flows; new flows; latency; publishing.
    L4,
    /// Changes: from a request to the acknowledgement of every worker.
    Control,
}

/// What to run and how.
#[derive(Clone, Debug, Args)]
pub(crate) struct Choice {
    /// What to measure.
    #[arg(value_enum)]
    bench: Bench,
    /// Shorter windows; the same cases.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this; may be repeated.
    #[arg(long, value_name = "CASE")]
    only: Vec<String>,
    /// Writes the results there as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs what was chosen.
pub(crate) fn run(_ready: &Ready, choice: &Choice) -> Result<()> {
    bail!("no case of bench {:?} matches {:?}", choice.bench, choice.only)
}
