//! What does HTTP cost? `memory/…`: one worker in memory, its real TCP engine and proxy between peers that are only played.
//! `testbed/…`: Weir over AF_XDP in a lab, beside HAProxy and nginx and beside no proxy at all.
//!
//! ```text
//! memory  the cases and their figures      peers   clients and backends: what they say next, their frames
//! worker  engine, proxy and rules          wire    what the worker sends, and whether it is right
//! beside  testbed/*                        rivals  servers and proxies of the lab, and what their CPUs did
//! slow    testbed/slow-attack, its attackers
//! ```

mod beside;
mod memory;
mod peers;
mod rivals;
mod slow;
mod wire;
mod worker;

use super::Bench;

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    memory::run(bench);
    beside::run(bench);
}
