//! Named memory in a directory: how do two processes, or a process and its successor, find the same bytes?
//!
//! Three kinds, by who may write:
//! - an immutable file ([`SegmentDir::publish`], [`SegmentDir::read`]): written once, renamed into place, always read
//!   as a copy, because its writer is not trusted to leave it alone while it is being verified;
//! - a table with one owner at a time ([`SegmentDir::map_shared`]): survives its process, in hugepages or in a tmpfs;
//! - words that several processes write ([`SegmentDir::map_atomics`]).
//!
//! Names never contain `map_`, and every mapping holds a shared flock: a starting DPDK process deletes all unlocked
//! `*map_*` files of a hugetlbfs mount.
//!
//! A mapped file that someone truncates kills its readers with SIGBUS. Nothing here truncates, and only the owner of
//! the directory can.

mod atomics;
mod error;
mod lock;
mod mapping;
mod shared;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags, fallocate, fchmod, flock, fstat,
    fstatfs, mkdir, open, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use atomics::AtomicWords;
pub use error::SegmentError;
pub(crate) use lock::{ClaimError, Role};
pub use shared::SharedSlice;

use lock::claim;
use mapping::{Mapping, Sharing};
use shared::Layout;

use crate::reserve::Host;

/// Linux `HUGETLBFS_MAGIC` (include/uapi/linux/magic.h).
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// Files that were being written when their process died start with this.
const PARTIAL_PREFIX: &str = ".partial-";

/// Longest segment name: leaves room for the prefix and pid of a partial file under NAME_MAX.
const NAME_LIMIT: usize = 200;

/// Times that a segment is opened again because somebody removed it between two steps.
const OPEN_ATTEMPTS: usize = 16;

/// What a caller of a mapping may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write; makes the segment if it is not there.
    Create,
    /// Read and write what is there.
    Open,
    /// Look at what is there.
    ReadOnly,
}

/// A directory of named segments, on a tmpfs or a hugetlbfs.
#[derive(Debug)]
pub struct SegmentDir {
    path: PathBuf,
    directory: OwnedFd,
    page_size: u64,
    is_hugetlbfs: bool,
    /// Whether its group may write: the two processes run as different users.
    is_shared: bool,
}

impl SegmentDir {
    /// Opens the directory at `path`, made with mode 0750 if it is missing (its parent must exist).
    ///
    /// One that was made with the set-group-ID bit, mode 2770, is shared by its group: so the two processes can run as
    /// different users of one group. What both write is then writable for the group.
    ///
    /// # Errors
    /// [`SegmentError::Untrusted`] if it belongs to another user than this one or root, or if others may write to it.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SegmentError> {
        let path = path.as_ref();
        let io = |action, errno: Errno| io_error(action, path, errno);
        let was_created = match mkdir(path, Mode::from_raw_mode(0o750)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(io("create directory", errno)),
        };
        Self::open_at(path, was_created)
    }

    /// Opens the directory at `path` only if it exists: what a reader such as the command line wants.
    ///
    /// # Errors
    /// [`SegmentError::NotFound`] if there is none, else as [`Self::open`].
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Self, SegmentError> {
        Self::open_at(path.as_ref(), false)
    }

    fn open_at(path: &Path, was_created: bool) -> Result<Self, SegmentError> {
        let io = |action, errno: Errno| io_error(action, path, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty()).map_err(|errno| io("open directory", errno))?;
        if was_created {
            // the umask may have taken the group's bits
            fchmod(&directory, Mode::from_raw_mode(0o750)).map_err(|errno| io("set the mode of", errno))?;
        }
        let stat = fstat(&directory).map_err(|errno| io("examine", errno))?;
        let me = rustix::process::geteuid().as_raw();
        let untrusted = |reason| Err(SegmentError::Untrusted { path: path.to_owned(), reason });
        if stat.st_uid != me && stat.st_uid != 0 {
            return untrusted(format!("it belongs to uid {}, expected {me} or 0", stat.st_uid));
        }
        let mode = stat.st_mode & 0o7777;
        let is_shared = mode & 0o2020 == 0o2020;
        if mode & 0o002 != 0 || (mode & 0o020 != 0 && !is_shared) {
            return untrusted(format!(
                "its mode is {mode:04o}, others may write to it; run chmod 0750, or 2770 where a group shares it"
            ));
        }
        let filesystem = fstatfs(&directory).map_err(|errno| io("examine the filesystem of", errno))?;
        let is_hugetlbfs = filesystem.f_type as u32 == HUGETLBFS_MAGIC;
        let page_size =
            if is_hugetlbfs { filesystem.f_bsize as u64 } else { rustix::param::page_size() as u64 };
        Ok(Self { path: path.to_owned(), directory, page_size, is_hugetlbfs, is_shared })
    }

    /// Where the directory is, as it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether mappings here are made of hugepages.
    #[must_use]
    pub fn is_hugetlbfs(&self) -> bool {
        self.is_hugetlbfs
    }

    /// Bytes of one page of a mapping here.
    #[must_use]
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Makes the immutable file `name` (mode 0640) appear at once and complete, in place of one that may be there.
    ///
    /// # Errors
    /// [`SegmentError::HugetlbfsIsNotForFiles`] on a hugetlbfs; [`SegmentError::NoSpace`] on a full tmpfs.
    pub fn publish(&self, name: &str, contents: &[u8]) -> Result<(), SegmentError> {
        check_name(name)?;
        let path = self.path.join(name);
        if self.is_hugetlbfs {
            return Err(SegmentError::HugetlbfsIsNotForFiles { path });
        }
        let partial = format!("{PARTIAL_PREFIX}{name}-{}", std::process::id());
        let written = self.write_partial(&partial, contents).and_then(|()| {
            renameat(&self.directory, &partial, &self.directory, name).map_err(io::Error::from)
        });
        written.map_err(|source| {
            let _removed = unlinkat(&self.directory, &partial, AtFlags::empty());
            match source.raw_os_error() {
                Some(libc::ENOSPC) => SegmentError::NoSpace { path, needed: contents.len() as u64 },
                _ => SegmentError::Io { action: "publish", path, source },
            }
        })
    }

    fn write_partial(&self, partial: &str, contents: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o640);
        let file = openat(&self.directory, partial, flags, mode)?;
        fchmod(&file, mode)?;
        File::from(file).write_all(contents)
    }

    /// Removes files that a publisher left half-written when it died. For the publisher alone, before it publishes.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the directory cannot be read.
    pub fn remove_partial(&self) -> Result<usize, SegmentError> {
        let mut removed = 0;
        for name in self.names()?.iter().filter(|name| name.starts_with(PARTIAL_PREFIX)) {
            removed += usize::from(unlinkat(&self.directory, name, AtFlags::empty()).is_ok());
        }
        Ok(removed)
    }

    /// A copy of the file `name`, of at most `limit` bytes: what is verified afterwards cannot change any more.
    ///
    /// # Errors
    /// [`SegmentError::NotFound`], or [`SegmentError::TooLong`] before anything of that size is allocated.
    pub fn read(&self, name: &str, limit: usize) -> Result<Vec<u8>, SegmentError> {
        check_name(name)?;
        let path = self.path.join(name);
        let io = |source| SegmentError::Io { action: "read", path: path.clone(), source };
        // NONBLOCK: a FIFO of that name must not hang the reader
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = self.open_file(name, flags, Mode::empty())?;
        let stat = fstat(&file).map_err(|errno| io(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let found = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
        let limit = limit as u64;
        if found > limit {
            return Err(SegmentError::TooLong { path, found, limit });
        }
        let mut contents = Vec::with_capacity(usize::try_from(found).unwrap_or(0).saturating_add(1));
        File::from(file).take(limit.saturating_add(1)).read_to_end(&mut contents).map_err(io)?;
        if contents.len() as u64 > limit {
            return Err(SegmentError::TooLong { path, found: limit.saturating_add(1), limit });
        }
        Ok(contents)
    }

    /// Removes the segment `name`; whoever has it mapped keeps it. Says whether there was one.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if it cannot be removed.
    pub fn remove(&self, name: &str) -> Result<bool, SegmentError> {
        check_name(name)?;
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(io_error("remove", &self.path.join(name), errno)),
        }
    }

    /// Names of all segments, sorted; half-written ones are left out.
    ///
    /// # Errors
    /// [`SegmentError::Io`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<String>, SegmentError> {
        let mut names = self.names()?;
        names.retain(|name| check_name(name).is_ok());
        names.sort_unstable();
        Ok(names)
    }

    /// Whether there is a segment `name`.
    #[must_use]
    pub fn exists(&self, name: &str) -> bool {
        check_name(name).is_ok() && statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Maps a header `H` and `items` × `T` that outlive this process, as their only owner.
    ///
    /// All pages are present when this returns, taken from the NUMA node of the calling thread where the system's
    /// policy is the default one. A file that exists must have the size that this layout takes in whole pages; fewer
    /// or more items inside the same pages are not noticed, so the header should carry their number.
    ///
    /// # Errors
    /// [`SegmentError::InUse`] with the owner's pid, [`SegmentError::WrongSize`],
    /// [`SegmentError::NotEnoughHugepages`], [`SegmentError::NoSpace`]; [`SegmentError::BadLayout`] also for
    /// [`Access::ReadOnly`], since references to memory that someone else writes would not be sound.
    pub fn map_shared<H, T>(
        &self,
        name: &str,
        items: usize,
        access: Access,
    ) -> Result<SharedSlice<H, T>, SegmentError>
    where
        H: FromBytes + IntoBytes + KnownLayout + Immutable,
        T: FromBytes + IntoBytes + KnownLayout + Immutable,
    {
        check_name(name)?;
        let bad_layout = |reason| SegmentError::BadLayout { path: self.path.join(name), reason };
        if access == Access::ReadOnly {
            return Err(bad_layout("only its owner may map a table"));
        }
        let layout = Layout::of::<H, T>(items, self.page_size).map_err(bad_layout)?;
        let (file, size) = self.open_for_mapping(name, access, 0o600, Some(Role::Owner))?;
        let was_created = size == 0;
        self.allocate(name, &file, size, layout.file_bytes as u64)?;
        let mapping = self.map(name, file, layout.file_bytes, Sharing::Shared)?;
        Ok(SharedSlice::new(mapping, layout, was_created))
    }

    /// Maps words that several processes read and write.
    ///
    /// With [`Access::Create`] there are exactly `words` of them, and a file that exists must have that size in whole
    /// pages. Otherwise their number is the file's, whole pages too, and `words` is the most that is accepted.
    ///
    /// # Errors
    /// [`SegmentError::NotFound`], [`SegmentError::WrongSize`], [`SegmentError::TooLong`], [`SegmentError::NoSpace`].
    pub fn map_atomics(&self, name: &str, words: usize, access: Access) -> Result<AtomicWords, SegmentError> {
        check_name(name)?;
        let path = || self.path.join(name);
        let layout = Layout::of::<(), u64>(words, self.page_size)
            .map_err(|reason| SegmentError::BadLayout { path: path(), reason })?;
        let limit = layout.file_bytes as u64;
        let mode = if self.is_shared { 0o660 } else { 0o640 };
        let (file, size) = self.open_for_mapping(name, access, mode, None)?;
        if access == Access::Create {
            self.allocate(name, &file, size, limit)?;
            let mapping = self.map(name, file, layout.file_bytes, Sharing::Shared)?;
            return Ok(AtomicWords::new(mapping, words, size == 0, name));
        }
        if size > limit {
            return Err(SegmentError::TooLong { path: path(), found: size, limit });
        }
        if size == 0 || !size.is_multiple_of(self.page_size) {
            let expected = size.next_multiple_of(self.page_size).max(self.page_size);
            return Err(SegmentError::WrongSize { path: path(), found: size, expected });
        }
        let sharing = if access == Access::ReadOnly { Sharing::Private } else { Sharing::Shared };
        // no truncation: `size` is at most `file_bytes`, which is a usize
        let mapping = self.map(name, file, size as usize, sharing)?;
        let found_words = mapping.length() / size_of::<u64>();
        Ok(AtomicWords::new(mapping, found_words, false, name))
    }

    /// The directory's descriptor.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens `name`, locks it, and makes sure that the name still means the file that is locked. Returns its size.
    fn open_for_mapping(
        &self,
        name: &str,
        access: Access,
        mode: u32,
        role: Option<Role>,
    ) -> Result<(OwnedFd, u64), SegmentError> {
        let path = self.path.join(name);
        let base = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let flags = base
            | match access {
                Access::Create => OFlags::RDWR | OFlags::CREATE,
                Access::Open => OFlags::RDWR,
                Access::ReadOnly => OFlags::RDONLY,
            };
        for _ in 0..OPEN_ATTEMPTS {
            let file = self.open_file(name, flags, Mode::from_raw_mode(mode))?;
            match flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(SegmentError::InUse { path, pid: None }),
                Err(errno) => return Err(io_error("lock", &path, errno)),
            }
            if let Some(role) = role {
                claim(file.as_fd(), role).map_err(|error| match error {
                    ClaimError::Held(pid) => SegmentError::InUse { path: path.clone(), pid },
                    ClaimError::Io(source) => SegmentError::Io { action: "lock", path: path.clone(), source },
                })?;
            }
            let stat = fstat(&file).map_err(|errno| io_error("examine", &path, errno))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(io_error("map", &path, Errno::INVAL));
            }
            if stat.st_nlink == 0 {
                continue;
            }
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let is_mine = stat.st_uid == rustix::process::geteuid().as_raw();
            if size == 0 && access == Access::Create && is_mine {
                // the umask may have taken the group's bits
                fchmod(&file, Mode::from_raw_mode(mode))
                    .map_err(|errno| io_error("set the mode of", &path, errno))?;
            }
            return Ok((file, size));
        }
        Err(io_error("open (it is being removed again and again)", &path, Errno::BUSY))
    }

    fn open_file(&self, name: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, SegmentError> {
        openat(&self.directory, name, flags, mode).map_err(|errno| match errno {
            Errno::NOENT => SegmentError::NotFound { path: self.path.join(name) },
            _ => io_error("open", &self.path.join(name), errno),
        })
    }

    /// Gives an empty file its memory, or checks that one with contents has the right size. The size appears only
    /// once all of the memory is there, so that a process killed meanwhile leaves an empty file.
    fn allocate(&self, name: &str, file: &OwnedFd, size: u64, wanted: u64) -> Result<(), SegmentError> {
        let path = self.path.join(name);
        if size != 0 && size != wanted {
            return Err(SegmentError::WrongSize { path, found: size, expected: wanted });
        }
        let failure = loop {
            match fallocate(file, FallocateFlags::empty(), 0, wanted) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => break errno,
            }
        };
        if size == 0 {
            let _removed = unlinkat(&self.directory, name, AtFlags::empty());
        }
        Err(match failure {
            Errno::NOSPC | Errno::NOMEM if self.is_hugetlbfs => SegmentError::NotEnoughHugepages {
                path,
                needed: wanted / self.page_size,
                free: Host::system().unpromised(self.page_size).unwrap_or(0),
                page_size: self.page_size,
            },
            Errno::NOSPC | Errno::NOMEM => SegmentError::NoSpace { path, needed: wanted },
            errno => io_error("allocate", &path, errno),
        })
    }

    fn map(
        &self,
        name: &str,
        file: OwnedFd,
        bytes: usize,
        sharing: Sharing,
    ) -> Result<Mapping, SegmentError> {
        Mapping::new(file, bytes, sharing).map_err(|source| SegmentError::Io {
            action: "map",
            path: self.path.join(name),
            source,
        })
    }

    fn names(&self) -> Result<Vec<String>, SegmentError> {
        let io = |errno| io_error("list", &self.path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory).map_err(io)? {
            if let Ok(name) = entry.map_err(io)?.file_name().to_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

fn check_name(name: &str) -> Result<(), SegmentError> {
    let bad = |reason| Err(SegmentError::BadName { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > NAME_LIMIT {
        return bad("it must have 1 to 200 characters");
    }
    if name.starts_with('.') {
        return bad("it must not start with a dot");
    }
    if name.contains("map_") {
        return bad("a starting DPDK process deletes files whose name contains map_");
    }
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
        return bad("only letters, digits, '-', '_' and '.' are allowed");
    }
    Ok(())
}

fn io_error(action: &'static str, path: &Path, errno: Errno) -> SegmentError {
    if errno == Errno::NOENT && action.starts_with("open") {
        return SegmentError::NotFound { path: path.to_owned() };
    }
    SegmentError::Io { action, path: path.to_owned(), source: errno.into() }
}

#[cfg(test)]
mod tests;
