//! Cases of `bench control` that need no running Weir.

mod access;

use super::Bench;

/// Runs the cases that are wanted.
pub(super) fn run(bench: &mut Bench<'_>) {
    access::run(bench);
}
