//! What can go wrong with a named segment, in words that name the file and the remedy.

use std::io;
use std::path::PathBuf;

/// A failed operation on a [`SegmentDir`](super::SegmentDir) or on a segment inside it.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// Likely cause: a name built from user input. Names are file names and must survive foreign DPDK processes.
    #[error("segment name {name:?} is not usable: {reason}")]
    BadName {
        /// The name as given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Likely cause: the other process has not created it yet, or its generation is retired.
    #[error("segment {} does not exist", path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Likely cause: it was made by another version or with another number of entries.
    #[error(
        "segment {} is {found} bytes, expected {expected}; remove it to start afresh (its contents are lost)",
        path.display()
    )]
    WrongSize {
        /// The segment.
        path: PathBuf,
        /// Size of the file, in bytes.
        found: u64,
        /// Size that the caller's layout needs, in bytes.
        expected: u64,
    },
    /// Likely cause: a corrupt or hostile file, or a bound that is too small.
    #[error("segment {} is {found} bytes, more than the {limit} bytes that are accepted", path.display())]
    TooLong {
        /// The segment.
        path: PathBuf,
        /// Size of the file, in bytes; one more than the limit where it grew while it was read.
        found: u64,
        /// The bound that the caller set, in bytes.
        limit: u64,
    },
    /// Likely cause: a second process of the same instance.
    #[error(
        "segment {} is in use by {}; stop that process or choose another --instance",
        path.display(),
        holder_text(*pid)
    )]
    InUse {
        /// The segment.
        path: PathBuf,
        /// Who holds it, where that is known.
        pid: Option<u32>,
    },
    /// Likely cause: none, or too few, were reserved; or other processes use them.
    #[error(
        "segment {} needs {needed} hugepages of {} kB, {free} are free; run `weir hugepages reserve` with at least {} more, \
         or start with --no-huge",
        path.display(),
        page_size / 1024,
        needed.saturating_sub(*free)
    )]
    NotEnoughHugepages {
        /// The segment.
        path: PathBuf,
        /// Pages that the segment takes.
        needed: u64,
        /// Pages that are free and not promised to anyone.
        free: u64,
        /// Size of one page in bytes.
        page_size: u64,
    },
    /// Likely cause: a full tmpfs.
    #[error("no room for the {needed} bytes of segment {}; free some or mount it larger", path.display())]
    NoSpace {
        /// The segment.
        path: PathBuf,
        /// Bytes that the segment takes.
        needed: u64,
    },
    /// Likely cause: a bug in the caller, or a count out of a corrupt file.
    #[error("segment {} cannot be laid out: {reason}", path.display())]
    BadLayout {
        /// The segment.
        path: PathBuf,
        /// What is wrong with the layout.
        reason: &'static str,
    },
    /// Likely cause: somebody else made a directory of this name in a world-writable place.
    #[error("segment directory {} is not trustworthy: {reason}", path.display())]
    Untrusted {
        /// The directory.
        path: PathBuf,
        /// Owner or mode, and what is expected.
        reason: String,
    },
    /// Hugetlbfs has no `write(2)`: immutable files belong on a tmpfs.
    #[error("cannot publish {}: a hugetlbfs holds mappings only, use the --shm-dir", path.display())]
    HugetlbfsIsNotForFiles {
        /// The file that was to be published.
        path: PathBuf,
    },
    /// Anything else that the operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl SegmentError {
    /// Whether the segment is simply not there (yet).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

fn holder_text(pid: Option<u32>) -> String {
    match pid {
        Some(pid) => format!("pid {pid}"),
        None => "another holder (in this process, or one that is just starting)".to_owned(),
    }
}
