//! Words that two processes write: the control page and the counters.

use std::ops::Deref;
use std::os::fd::AsFd;
use std::sync::atomic::AtomicU64;

use rustix::fs::{AtFlags, fstat, statat};

use super::SegmentDir;
use super::lock::{ClaimError, Role, claim, is_held};
use super::mapping::Mapping;

/// A mapped array of `AtomicU64`. What is inside may change at any moment and mean anything: readers bound it.
///
/// Mapped [`ReadOnly`](super::Access::ReadOnly), stores stay in this process.
#[derive(Debug)]
pub struct AtomicWords {
    mapping: Mapping,
    words: usize,
    was_created: bool,
    name: String,
}

impl AtomicWords {
    pub(super) fn new(mapping: Mapping, words: usize, was_created: bool, name: &str) -> Self {
        debug_assert!(words * size_of::<AtomicU64>() <= mapping.length(), "the caller checked the size");
        Self { mapping, words, was_created, name: name.to_owned() }
    }

    /// Whether this call made the segment (all words are zero then), rather than finding it.
    #[must_use]
    pub fn was_created(&self) -> bool {
        self.was_created
    }

    /// Whether `directory` still has this very segment under its name: false once it was removed or replaced, and a
    /// reader should open it again.
    #[must_use]
    pub fn is_current(&self, directory: &SegmentDir) -> bool {
        let Ok(mine) = fstat(self.mapping.file()) else { return false };
        statat(directory.descriptor(), &self.name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|named| named.st_dev == mine.st_dev && named.st_ino == mine.st_ino)
    }

    pub(crate) fn claim(&self, role: Role) -> Result<(), ClaimError> {
        claim(self.mapping.file().as_fd(), role)
    }

    pub(crate) fn is_held(&self, role: Role) -> bool {
        is_held(self.mapping.file().as_fd(), role)
    }
}

impl Deref for AtomicWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, at least `words` * 8 bytes long and writable as long as `self` lives;
        // every bit pattern is a valid AtomicU64, and all access to it, in every process, is atomic.
        unsafe { std::slice::from_raw_parts(self.mapping.base().as_ptr().cast::<AtomicU64>(), self.words) }
    }
}
