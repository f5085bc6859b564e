//! What does HTTP cost? `memory/…`: one worker in memory, its real TCP engine and proxy between peers that are only played.
//!
//! ```text
//! memory  the cases and their figures      peers   clients and backends: what they say next, their frames
//! worker  engine, proxy and rules          wire    what the worker sends, and whether it is right
//! ```

mod memory;
mod peers;
mod wire;
mod worker;

use super::Bench;

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    memory::run(bench);
}
