//! One `mmap` of a whole file, unmapped on drop. Never hands out references: its users know what is inside.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// How the pages relate to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Writes reach the file; all pages are present when the call returns.
    Shared,
    /// The file's changes are seen, own writes go to a private copy of the page. This is what a reader without the
    /// right to write gets, because a store through `&AtomicU64` must never fault.
    Private,
}

/// A mapped file. The descriptor is kept, because the locks hang on it.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    length: usize,
    file: OwnedFd,
}

// SAFETY: a mapping belongs to the process, not to a thread; `Mapping` itself gives out nothing but a raw pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above: shared access reads two immutable fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of `file`; `length` is a multiple of the page size, and not zero.
    pub(super) fn new(file: OwnedFd, length: usize, sharing: Sharing) -> io::Result<Self> {
        let flags = match sharing {
            Sharing::Shared => MapFlags::SHARED | MapFlags::POPULATE,
            // Populating a private, writable mapping would copy every page at once and never see the file change.
            Sharing::Private => MapFlags::PRIVATE,
        };
        // SAFETY: the kernel chooses the address, so no existing mapping is touched.
        let base = unsafe {
            mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, flags, file.as_fd(), 0)?
        };
        let base =
            NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, length, file })
    }

    /// First byte; aligned to a page. Valid for `length()` bytes as long as `self` lives.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn file(&self) -> &OwnedFd {
        &self.file
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `length` are exactly what `mmap` returned, and no reference outlives `self`.
        let _unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}
