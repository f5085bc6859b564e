//! Who owns a segment? Locks that die with their process, and tell its pid.
//!
//! Exclusion is an open-file-description lock on one byte of the file: it is released by the kernel when the last
//! descriptor closes, also after kill -9, and it excludes a second owner inside the same process too. Such locks do
//! not tell who holds them, so the byte beside it carries a classic POSIX lock, whose only use is to name the pid. (A
//! POSIX lock is lost when its process closes any descriptor of the file: then the pid is unknown, nothing else.)

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a holder is to the segment; each role has its own pair of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The one process that maps a `SharedSlice`.
    Owner = 0,
    /// The ctlplane on the control page.
    Publisher = 1,
    /// The dataplane on the control page.
    Adopter = 2,
}

/// Why a claim failed.
#[derive(Debug)]
pub(crate) enum ClaimError {
    /// Somebody has the role already.
    Held(Option<u32>),
    /// The lock call itself failed.
    Io(io::Error),
}

/// Takes `role` for as long as `fd`'s open file description lives; never waits.
pub(crate) fn claim(fd: BorrowedFd<'_>, role: Role) -> Result<(), ClaimError> {
    let mut exclusion = write_lock(role as i64 * 2);
    if let Err(error) = fcntl_lock(fd, libc::F_OFD_SETLK, &mut exclusion) {
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Err(ClaimError::Held(pid_of(fd, role))),
            _ => Err(ClaimError::Io(error)),
        };
    }
    let mut pid_tag = write_lock(role as i64 * 2 + 1);
    // Only for the text of someone else's error: a failure costs the pid there, nothing here.
    let _tagged = fcntl_lock(fd, libc::F_SETLK, &mut pid_tag);
    Ok(())
}

/// Whether somebody other than `fd` holds `role` now.
pub(crate) fn is_held(fd: BorrowedFd<'_>, role: Role) -> bool {
    let mut query = write_lock(role as i64 * 2);
    fcntl_lock(fd, libc::F_OFD_GETLK, &mut query).is_ok() && i32::from(query.l_type) != libc::F_UNLCK
}

fn pid_of(fd: BorrowedFd<'_>, role: Role) -> Option<u32> {
    let mut query = write_lock(role as i64 * 2 + 1);
    fcntl_lock(fd, libc::F_GETLK, &mut query).ok()?;
    if i32::from(query.l_type) == libc::F_UNLCK {
        return None;
    }
    u32::try_from(query.l_pid).ok().filter(|pid| *pid > 0)
}

fn write_lock(byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain C data, for which all zeroes is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

fn fcntl_lock(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: the descriptor is open for the length of the borrow, and the lock commands read and write exactly
        // one `struct flock`, which `lock` is.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
