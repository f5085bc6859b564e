//! What must be there before anything runs: root, packages, hugepages, binaries. Each step does only what is missing.

mod build;
mod hugepages;
mod packages;
mod root;

pub(crate) use build::{Binaries, cargo, repository, target};
pub(crate) use hugepages::{Pages, settle as settle_pages};
pub(crate) use root::require;

use anyhow::Result;

use crate::interrupt;

/// Pages of 2 MiB that demo and tests need.
pub(crate) const PAGES: u64 = 512;

/// What [`prepare`] made ready; dropping it gives the hugepages back.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Weir's programs.
    pub(crate) binaries: Binaries,
    /// The reservation.
    pub(crate) pages: Pages,
}

/// Makes everything ready.
pub(crate) fn prepare(build: bool) -> Result<Ready> {
    packages::install()?;
    interrupt::check()?;
    let pages = Pages::reserve(PAGES)?;
    interrupt::check()?;
    let binaries = build::release(build)?;
    interrupt::check()?;
    Ok(Ready { binaries, pages })
}
