//! Which hugepages does this machine have, and can Weir have some? Sysfs, hugetlbfs mounts and NUMA nodes.
//!
//! Called by `weir hugepages …`, by the testbed and at start-up; never by a worker. All paths hang below a root, so
//! that a test can bring its own machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

/// Where [`Host::mount_default`] mounts.
const DEFAULT_MOUNT: &str = "dev/hugepages";

/// Where [`Host::reserve`] remembers the counts that it found, for [`Host::release`].
const RECORDS: &str = "run/weir/hugepages";

/// One size of hugepages on one NUMA node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePages {
    /// The node; 0 on a machine without NUMA.
    pub node: u32,
    /// Bytes of one page.
    pub size_bytes: u64,
    /// Pages that the kernel holds, surplus included.
    pub total: u64,
    /// Pages that no file and no process uses; some may be promised to mappings that did not touch them yet.
    pub free: u64,
    /// Pages above the reservation, that go back to the kernel when their user ends.
    pub surplus: u64,
}

/// A mounted hugetlbfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub path: PathBuf,
    /// Bytes of one page.
    pub page_size: u64,
    /// Whether it is mounted read-only.
    pub is_read_only: bool,
}

/// What a reservation changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Pages of that size (and node) before.
    pub before: u64,
    /// Pages now; at least what was asked for.
    pub after: u64,
}

/// What a release changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    /// Pages of that size (and node) before.
    pub before: u64,
    /// Pages now.
    pub after: u64,
    /// Pages that are still used, so that more of them could not be given back.
    pub in_use: u64,
}

/// Why hugepages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// Likely cause: 1 GiB pages on a processor without pdpe1gb, or a typing error.
    #[error(
        "this machine has no hugepages of {} kB{}; it has: {}",
        size_bytes / 1024,
        node.map_or_else(String::new, |node| format!(" on NUMA node {node}")),
        sizes_text(available)
    )]
    NoSuchSize {
        /// The size that was asked for, in bytes.
        size_bytes: u64,
        /// The node that was asked for.
        node: Option<u32>,
        /// Sizes that there are, in bytes.
        available: Vec<u64>,
    },
    /// Likely cause: memory is full or fragmented.
    #[error(
        "got {got} of {wanted} hugepages of {} kB: {}",
        size_bytes / 1024,
        shortage_remedy(*size_bytes)
    )]
    Shortage {
        /// Pages there are now.
        got: u64,
        /// Pages that were asked for.
        wanted: u64,
        /// Bytes of one page.
        size_bytes: u64,
    },
    /// Likely cause: not root, or /sys is read-only as in most containers.
    #[error("got {got} of {wanted} hugepages: not allowed to write {} ({source}); run as root, outside of a container", path.display())]
    NotAllowed {
        /// Pages there are now.
        got: u64,
        /// Pages that were asked for.
        wanted: u64,
        /// The file that decides.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Likely cause: reserved on another node than the one that the NIC and the workers are on.
    #[error(
        "NUMA node {node} has {free} free hugepages of {} kB, {needed} are needed; run `weir hugepages reserve` for that node",
        size_bytes / 1024
    )]
    NodeIsShort {
        /// The node.
        node: u32,
        /// Its free pages.
        free: u64,
        /// Pages that are needed there.
        needed: u64,
        /// Bytes of one page.
        size_bytes: u64,
    },
    /// Likely cause: a kernel without hugetlbfs, or a /sys that hides it.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Likely cause: not a sysfs.
    #[error("{} says {text:?}, expected a number", path.display())]
    NotANumber {
        /// The file.
        path: PathBuf,
        /// Its contents.
        text: String,
    },
}

fn sizes_text(sizes: &[u64]) -> String {
    if sizes.is_empty() {
        return "none (a kernel without hugetlbfs, or a container that hides it; use --no-huge)".to_owned();
    }
    sizes.iter().map(|size| format!("{} kB", size / 1024)).collect::<Vec<_>>().join(", ")
}

fn shortage_remedy(size_bytes: u64) -> String {
    let size = if size_bytes >= 1 << 30 {
        format!("{}G", size_bytes >> 30)
    } else {
        format!("{}M", size_bytes >> 20)
    };
    format!(
        "memory is full or fragmented; free some, or reserve at boot with the kernel parameters \
         hugepagesz={size} hugepages=N"
    )
}

/// The machine whose hugepages are meant.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn system() -> Self {
        Self::at("/")
    }

    /// A machine whose `sys`, `proc`, `dev` and `run` are below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All hugepages by node and size, sorted; a size without pages is listed with zeroes.
    ///
    /// # Errors
    /// [`ReserveError::Io`] where sysfs has no hugepages at all.
    pub fn status(&self) -> Result<Vec<NodePages>, ReserveError> {
        let mut all = Vec::new();
        for node in self.nodes() {
            self.status_of(&self.node_pools(node), node, &mut all)?;
        }
        if all.is_empty() {
            self.status_of(&self.machine_pools(), 0, &mut all)?;
        }
        all.sort_by_key(|pages| (pages.node, pages.size_bytes));
        Ok(all)
    }

    fn status_of(&self, pools: &Path, node: u32, all: &mut Vec<NodePages>) -> Result<(), ReserveError> {
        for size_bytes in page_sizes(pools)? {
            let pool = pool(pools, size_bytes);
            all.push(NodePages {
                node,
                size_bytes,
                total: read_number(&pool.join("nr_hugepages"))?,
                free: read_number(&pool.join("free_hugepages"))?,
                surplus: read_number(&pool.join("surplus_hugepages"))?,
            });
        }
        Ok(())
    }

    /// Bytes of the page size that is used where none is named; 2 MiB where the system does not say.
    #[must_use]
    pub fn default_page_size(&self) -> u64 {
        fs::read_to_string(self.root.join("proc/meminfo"))
            .ok()
            .and_then(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
                line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
            })
            .map_or(2 << 20, |kilobytes| kilobytes.saturating_mul(1024))
    }

    /// Pages of that size that are free and not promised to a mapping that will touch them later.
    ///
    /// # Errors
    /// [`ReserveError::Io`] if there are no pages of that size.
    pub fn unpromised(&self, size_bytes: u64) -> Result<u64, ReserveError> {
        let pool = pool(&self.machine_pools(), size_bytes);
        let free = read_number(&pool.join("free_hugepages"))?;
        Ok(free.saturating_sub(read_number(&pool.join("resv_hugepages"))?))
    }

    /// Makes sure that there are at least `count` pages of `size_bytes` in all, on one node or spread by the kernel;
    /// never takes any away. A reservation lasts until the next boot.
    ///
    /// # Errors
    /// [`ReserveError::Shortage`] if the kernel could not find all of them, after one try to compact memory: what it
    /// found stays reserved. [`ReserveError::NotAllowed`] without the right to ask.
    pub fn reserve(&self, size_bytes: u64, count: u64, node: Option<u32>) -> Result<Reserved, ReserveError> {
        let pool = self.existing_pool(size_bytes, node)?;
        let knob = pool.join("nr_hugepages");
        let before = read_number(&knob)?;
        if before >= count {
            return Ok(Reserved { before, after: before });
        }
        self.record(size_bytes, node, before);
        let mut after = before;
        for is_retry in [false, true] {
            if is_retry {
                // moves pages together so that whole hugepages become free; not all kernels can
                let _compacted = fs::write(self.root.join("proc/sys/vm/compact_memory"), "1");
            }
            write_count(&knob, count, after)?;
            after = read_number(&knob)?;
            if after >= count {
                return Ok(Reserved { before, after });
            }
        }
        Err(ReserveError::Shortage { got: after, wanted: count, size_bytes })
    }

    /// Goes back to the number of pages that the first [`Self::reserve`] found, or to none if it never ran since
    /// boot. Pages in use are left alone, and reported.
    ///
    /// # Errors
    /// [`ReserveError::NotAllowed`] without the right to ask.
    pub fn release(&self, size_bytes: u64, node: Option<u32>) -> Result<Released, ReserveError> {
        let pool = self.existing_pool(size_bytes, node)?;
        let knob = pool.join("nr_hugepages");
        let before = read_number(&knob)?;
        let free = read_number(&pool.join("free_hugepages"))?;
        let in_use = before.saturating_sub(free);
        let record = self.record_path(size_bytes, node);
        let found_then = fs::read_to_string(&record).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let wanted = found_then.unwrap_or(0).max(in_use);
        let mut after = before;
        if wanted < before {
            write_count(&knob, wanted, before)?;
            after = read_number(&knob)?;
        }
        if after <= found_then.unwrap_or(0) {
            let _removed = fs::remove_file(&record);
        }
        Ok(Released { before, after, in_use })
    }

    /// Checks that each of `nodes` has `needed` free pages of its own.
    ///
    /// # Errors
    /// [`ReserveError::NodeIsShort`] for the first that has not.
    pub fn check_nodes(&self, size_bytes: u64, needed: u64, nodes: &[u32]) -> Result<(), ReserveError> {
        let status = self.status()?;
        for &node in nodes {
            let pages = status.iter().find(|pages| pages.node == node && pages.size_bytes == size_bytes);
            let free = pages.map_or(0, |pages| pages.free);
            if free < needed {
                return Err(ReserveError::NodeIsShort { node, free, needed, size_bytes });
            }
        }
        Ok(())
    }

    /// The node of a logical CPU; `None` on a machine without NUMA.
    #[must_use]
    pub fn node_of_cpu(&self, cpu: u32) -> Option<u32> {
        let directory = self.root.join(format!("sys/devices/system/cpu/cpu{cpu}"));
        directory_numbers(&directory, "node").first().copied()
    }

    /// The node of a PCI device such as `0000:3b:00.0`; `None` where the machine does not say.
    #[must_use]
    pub fn node_of_pci(&self, address: &str) -> Option<u32> {
        if address.contains('/') {
            return None;
        }
        let path = self.root.join("sys/bus/pci/devices").join(address).join("numa_node");
        // -1: the firmware did not tell
        fs::read_to_string(path).ok()?.trim().parse::<u32>().ok()
    }

    /// NUMA nodes of the machine, sorted; empty where sysfs has none.
    #[must_use]
    pub fn nodes(&self) -> Vec<u32> {
        directory_numbers(&self.root.join("sys/devices/system/node"), "node")
    }

    /// The mounted hugetlbfs, in the order of /proc/mounts.
    ///
    /// # Errors
    /// [`ReserveError::Io`] if /proc/mounts cannot be read.
    pub fn mounts(&self) -> Result<Vec<Mount>, ReserveError> {
        let path = self.root.join("proc/mounts");
        let text =
            fs::read_to_string(&path).map_err(|source| ReserveError::Io { action: "read", path, source })?;
        let default_page_size = self.default_page_size();
        Ok(text.lines().filter_map(|line| parse_mount(line, default_page_size)).collect())
    }

    /// The mount that Weir uses where none is named: writable and with the most free memory.
    ///
    /// # Errors
    /// As [`Self::mounts`].
    pub fn best_mount(&self) -> Result<Option<Mount>, ReserveError> {
        let mut best = None;
        let mut best_free = 0;
        for mount in self.mounts()? {
            let free = self.unpromised(mount.page_size).unwrap_or(0).saturating_mul(mount.page_size);
            if !mount.is_read_only && (best.is_none() || free > best_free) {
                best_free = free;
                best = Some(mount);
            }
        }
        Ok(best)
    }

    /// The best mount; if there is no writable one, a new one of the default page size at /dev/hugepages.
    ///
    /// # Errors
    /// [`ReserveError::Io`] if it cannot be mounted: not root, or a kernel without hugetlbfs.
    pub fn mount_default(&self) -> Result<Mount, ReserveError> {
        if let Some(mount) = self.best_mount()? {
            return Ok(mount);
        }
        let path = self.root.join(DEFAULT_MOUNT);
        self.mount_at(&path, self.default_page_size())
    }

    /// Mounts a hugetlbfs of that page size at `path`, making the directory.
    ///
    /// # Errors
    /// [`ReserveError::Io`] if it cannot be mounted: not root, or no such size.
    pub fn mount_at(&self, path: &Path, page_size: u64) -> Result<Mount, ReserveError> {
        let io = |action, source| ReserveError::Io { action, path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(|source| io("create", source))?;
        let options = std::ffi::CString::new(format!("pagesize={page_size},mode=0755"))
            .map_err(|error| io("mount a hugetlbfs at", error.into()))?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("hugetlbfs", path, "hugetlbfs", flags, options.as_c_str())
            .map_err(|errno| io("mount a hugetlbfs at", errno.into()))?;
        Ok(Mount { path: path.to_owned(), page_size, is_read_only: false })
    }

    fn machine_pools(&self) -> PathBuf {
        self.root.join("sys/kernel/mm/hugepages")
    }

    fn node_pools(&self, node: u32) -> PathBuf {
        self.root.join(format!("sys/devices/system/node/node{node}/hugepages"))
    }

    fn existing_pool(&self, size_bytes: u64, node: Option<u32>) -> Result<PathBuf, ReserveError> {
        let pools = node.map_or_else(|| self.machine_pools(), |node| self.node_pools(node));
        let pool = pool(&pools, size_bytes);
        if pool.is_dir() {
            return Ok(pool);
        }
        let available = page_sizes(&pools).unwrap_or_default();
        Err(ReserveError::NoSuchSize { size_bytes, node, available })
    }

    fn record_path(&self, size_bytes: u64, node: Option<u32>) -> PathBuf {
        let place = node.map_or_else(|| "all".to_owned(), |node| format!("node{node}"));
        self.root.join(RECORDS).join(format!("{place}-{}kB", size_bytes / 1024))
    }

    /// Remembers a count, unless an earlier one is remembered. Without /run, `release` goes to zero: no harm done.
    fn record(&self, size_bytes: u64, node: Option<u32>, count: u64) {
        let path = self.record_path(size_bytes, node);
        if let Some(directory) = path.parent()
            && fs::create_dir_all(directory).is_ok()
            && let Ok(mut file) = fs::File::create_new(&path)
        {
            let _written = io::Write::write_all(&mut file, format!("{count}\n").as_bytes());
        }
    }
}

fn pool(pools: &Path, size_bytes: u64) -> PathBuf {
    pools.join(format!("hugepages-{}kB", size_bytes / 1024))
}

/// Page sizes in bytes, ascending.
fn page_sizes(pools: &Path) -> Result<Vec<u64>, ReserveError> {
    let io = |source| ReserveError::Io { action: "list", path: pools.to_owned(), source };
    let mut sizes = Vec::new();
    for entry in fs::read_dir(pools).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let kilobytes = name
            .to_str()
            .and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok());
        sizes.extend(kilobytes.and_then(|kilobytes| kilobytes.checked_mul(1024)));
    }
    sizes.sort_unstable();
    Ok(sizes)
}

/// The N of every entry `prefixN`, ascending.
fn directory_numbers(directory: &Path, prefix: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

fn read_number(path: &Path) -> Result<u64, ReserveError> {
    let text = fs::read_to_string(path).map_err(|source| ReserveError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    text.trim().parse().map_err(|_| ReserveError::NotANumber { path: path.to_owned(), text })
}

fn write_count(knob: &Path, count: u64, now: u64) -> Result<(), ReserveError> {
    fs::write(knob, count.to_string()).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ReserveError::NotAllowed { got: now, wanted: count, path: knob.to_owned(), source }
        }
        _ => ReserveError::Io { action: "write", path: knob.to_owned(), source },
    })
}

/// One line of /proc/mounts (fstab(5)), if it is a hugetlbfs.
fn parse_mount(line: &str, default_page_size: u64) -> Option<Mount> {
    let mut fields = line.split(' ');
    let (_device, path, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    if kind != "hugetlbfs" {
        return None;
    }
    let page_size = options
        .split(',')
        .find_map(|option| option.strip_prefix("pagesize="))
        .map_or(Some(default_page_size), parse_size)?;
    let is_read_only = options.split(',').any(|option| option == "ro");
    Some(Mount { path: unescape(path), page_size, is_read_only })
}

/// A page size in bytes from `2M`, `1024M`, `1G`, `2048K` or plain bytes, as the kernel prints them and people write them.
#[must_use]
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)?.to_ascii_uppercase().as_str() {
        "" => 1,
        "K" | "KB" => 1 << 10,
        "M" | "MB" => 1 << 20,
        "G" | "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Undoes the `\040` style of /proc/mounts.
fn unescape(field: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or(&[]);
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests;
