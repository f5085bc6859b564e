//! `weir hugepages …`: how many pages are there, and who gets more?

use clap::Subcommand;
use hugepages::reserve::{Host, ReserveError, parse_size};

use super::{Exit, complain, print};

/// What to do with hugepages. Needs no daemon.
#[derive(Debug, Subcommand)]
pub enum HugepagesCommand {
    /// Reserve pages and mount a hugetlbfs if there is none.
    Reserve {
        /// Page size: 2M or 1G; the system's default where it is left out.
        #[arg(long, value_parser = page_size)]
        size: Option<u64>,
        /// Number of pages in all.
        #[arg(long, conflicts_with = "bytes", required_unless_present = "bytes")]
        count: Option<u64>,
        /// Memory instead of a number of pages: 512M, 4G.
        #[arg(long, value_parser = page_size)]
        bytes: Option<u64>,
        /// On this NUMA node only.
        #[arg(long)]
        node: Option<u32>,
    },
    /// Pages by NUMA node and size.
    Status,
    /// Give back what was reserved.
    Release {
        /// Page size: 2M or 1G; all sizes where it is left out.
        #[arg(long, value_parser = page_size)]
        size: Option<u64>,
        /// On this NUMA node only.
        #[arg(long)]
        node: Option<u32>,
    },
}

fn page_size(text: &str) -> Result<u64, String> {
    parse_size(text).ok_or_else(|| format!("\"{text}\" is not a size; write 2M, 1G or bytes"))
}

fn format_size(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}G", b >> 30),
        b if b % (1 << 20) == 0 => format!("{}M", b >> 20),
        b => format!("{}K", b >> 10),
    }
}

pub(super) fn run(command: &HugepagesCommand) -> Exit {
    let host = Host::system();
    let result = match command {
        HugepagesCommand::Reserve { size, count, bytes, node } => {
            let size = size.unwrap_or_else(|| host.default_page_size());
            let count = count.or_else(|| bytes.map(|bytes| bytes.div_ceil(size))).unwrap_or(0);
            reserve(&host, size, count, *node)
        }
        HugepagesCommand::Status => status(&host),
        HugepagesCommand::Release { size, node } => release(&host, *size, *node),
    };
    match result {
        Ok(()) => Exit::Good,
        Err(error) => {
            complain(&error.to_string());
            Exit::Bad
        }
    }
}

fn reserve(host: &Host, size: u64, count: u64, node: Option<u32>) -> Result<(), ReserveError> {
    let reserved = host.reserve(size, count, node)?;
    let mount = host.mount_default()?;
    print(&format!(
        "{} pages of {} (there were {}), mounted on {}\n",
        reserved.after,
        format_size(size),
        reserved.before,
        mount.path.display()
    ));
    Ok(())
}

fn status(host: &Host) -> Result<(), ReserveError> {
    for pages in host.status()? {
        print(&format!(
            "node {}: {:>6} of {:>6} pages of {} are free\n",
            pages.node,
            pages.free,
            pages.total,
            format_size(pages.size_bytes)
        ));
    }
    let mounts = host.mounts()?;
    if mounts.is_empty() {
        print("no hugetlbfs is mounted: weir hugepages reserve mounts one\n");
    }
    for mount in mounts {
        let mode = if mount.is_read_only { ", read-only" } else { "" };
        print(&format!("{} ({}{mode})\n", mount.path.display(), format_size(mount.page_size)));
    }
    Ok(())
}

fn release(host: &Host, size: Option<u64>, node: Option<u32>) -> Result<(), ReserveError> {
    let mut sizes: Vec<u64> = match size {
        Some(size) => vec![size],
        None => host.status()?.iter().filter(|pages| pages.total > 0).map(|pages| pages.size_bytes).collect(),
    };
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.is_empty() {
        print("there are no pages to give back\n");
    }
    for size in sizes {
        let released = host.release(size, node)?;
        print(&format!(
            "{} pages of {} remain (there were {}), {} in use\n",
            released.after,
            format_size(size),
            released.before,
            released.in_use
        ));
    }
    Ok(())
}
