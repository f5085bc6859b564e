//! How does a thread move into a named network namespace?
//!
//! Names are those of `ip netns`: files below `/run/netns`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::OsError;

/// Where `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";

/// A network namespace, held open: it stays alive although its name may go.
#[derive(Debug)]
pub struct NetworkNamespace {
    name: String,
    file: OwnedFd,
}

impl NetworkNamespace {
    /// The namespace of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(name: &str) -> Result<Self, OsError> {
        if name.is_empty() || name.contains(['/', '\0']) || name == "." || name == ".." {
            let reason =
                std::io::Error::new(std::io::ErrorKind::InvalidInput, "a name is one path component");
            return Err(OsError::new(format!("open network namespace {name:?}"), reason));
        }
        Self::at(&Path::new(DIRECTORY).join(name), name)
    }

    /// The namespace that the calling thread is in.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn current() -> Result<Self, OsError> {
        Self::at(Path::new("/proc/thread-self/ns/net"), "of this thread")
    }

    fn at(path: &Path, name: &str) -> Result<Self, OsError> {
        let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
            OsError::new(format!("open network namespace {name} ({})", path.display()), errno)
        })?;
        Ok(Self { name: name.to_owned(), file })
    }

    /// Moves the calling thread, and no other, into the namespace. Sockets and interfaces that it opened before stay
    /// where they are; `/sys` keeps showing the namespace that it was mounted in.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn enter(&self) -> Result<(), OsError> {
        move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|errno| OsError::new(format!("enter network namespace {}", self.name), errno))
    }

    /// Runs something inside, on a thread of its own, so that the caller stays where it is.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN, or when no thread can be started.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T, OsError> {
        let outcome = std::thread::scope(|scope| {
            let work = || self.enter().map(|()| inside());
            let thread = std::thread::Builder::new()
                .name(self.name.clone())
                .spawn_scoped(scope, work)
                .map_err(|error| {
                    OsError::new(format!("start a thread for network namespace {}", self.name), error)
                })?;
            Ok(thread.join())
        })?;
        match outcome {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl AsFd for NetworkNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Moves the calling thread into the namespace of that name; see [`NetworkNamespace::enter`].
///
/// # Errors
/// When there is none, or without CAP_SYS_ADMIN.
pub fn enter(name: &str) -> Result<(), OsError> {
    NetworkNamespace::open(name)?.enter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_namespace_is_named() {
        let error = enter("weir-none").unwrap_err();
        assert!(error.to_string().contains("/run/netns/weir-none"), "{error}");
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
        assert!(enter("../1/ns/net").is_err());
    }
}
