//! What does a connection weigh that does nothing? Measured as the memory that the process gained.

use anyhow::{Context as _, Result};

use super::drive::Drive;
use super::stack::{Role, Setup, Stack};

/// Pages of this process that are in memory, in bytes.
fn resident() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").context("read /proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).context("an odd statm")?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// Bytes per open connection, all tables and the timer included; the application's buffers and the peers are not.
pub(super) fn bytes_per_connection<S: Stack>(connections: u32, seed: u64) -> Result<f64> {
    let nothing = Setup { connections: 0, passing: 0, buffer: 2_048, role: Role::Close };
    // twice without connections: pools, rings and peers, which are not the stack's; all stay, so that no memory is used again
    let first = Drive::<S>::new(nothing, connections)?;
    let before = resident()?;
    let second = Drive::<S>::new(nothing, connections)?;
    let fixed = resident()?.saturating_sub(before);
    let before = resident()?;
    let full = Drive::<S>::open(Setup { connections, ..nothing }, 0, seed)?;
    let gained = resident()?.saturating_sub(before).saturating_sub(fixed);
    drop((first, second, full));
    // the wire remembers where each stream begins
    Ok(gained as f64 / f64::from(connections) - size_of::<u32>() as f64)
}
