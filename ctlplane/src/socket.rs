//! Who may talk to the daemon? Its sockets: one for members of a group who may change everything, one for those who only look.
//!
//! Both are Unix sockets whose mode and group decide; the daemon itself asks nobody for a password.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};
use tokio::net::UnixListener;

/// What those who reach a socket may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everything.
    Full,
    /// Ask, never change.
    ReadOnly,
}

/// Groups of the sockets.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// Of the one that may change everything; the daemon's own group where it is `None`.
    pub full: Option<String>,
    /// Of the read-only one, which exists only where this is given.
    pub read_only: Option<String>,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A system call.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name that the system does not know.
    #[error("there is no group {name}; make it (groupadd --system {name}), or name another with {option}")]
    UnknownGroup {
        /// The name,
        name: String,
        /// and where it was written.
        option: &'static str,
    },
    /// The system's list of groups can't be read.
    #[error("cannot look up group {name}: {source}")]
    Lookup {
        /// The name.
        name: String,
        /// Why not.
        source: nix::Error,
    },
}

/// Where the socket of an instance is.
pub fn socket_path(run_dir: &Path, instance: &str) -> PathBuf {
    run_dir.join(format!("{instance}.sock"))
}

/// Where its read-only one is.
pub fn read_only_path(socket: &Path) -> PathBuf {
    socket.with_extension("ro.sock")
}

/// Listening sockets. Their files go when this is dropped.
#[derive(Debug)]
pub struct Sockets {
    full: UnixListener,
    read_only: Option<UnixListener>,
    paths: Vec<PathBuf>,
}

impl Sockets {
    /// Binds them. The caller holds the instance's lock: a socket file that is there is stale.
    ///
    /// # Errors
    /// [`SocketError`]: an unknown group, a directory that can't be written to.
    pub fn bind(run_dir: &Path, instance: &str, groups: &Groups) -> Result<Self, SocketError> {
        fs::create_dir_all(run_dir).map_err(|source| SocketError::Io {
            action: "make the directory",
            path: run_dir.to_owned(),
            source,
        })?;
        let path = socket_path(run_dir, instance);
        let full = listen(&path, group(groups.full.as_deref(), "--group")?)?;
        let mut sockets = Self { full, read_only: None, paths: vec![path.clone()] };
        let other = read_only_path(&path);
        if let Some(name) = &groups.read_only {
            sockets.read_only = Some(listen(&other, group(Some(name), "--read-only-group")?)?);
            sockets.paths.push(other);
        } else if let Err(source) = fs::remove_file(&other)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(SocketError::Io { action: "remove the stale socket", path: other, source });
        }
        Ok(sockets)
    }

    /// Waits for the next connection on either.
    ///
    /// # Errors
    /// What `accept` says.
    pub async fn accept(&self) -> io::Result<(tokio::net::UnixStream, Access)> {
        let Some(read_only) = &self.read_only else {
            return self.full.accept().await.map(|(stream, _)| (stream, Access::Full));
        };
        tokio::select! {
            accepted = self.full.accept() => accepted.map(|(stream, _)| (stream, Access::Full)),
            accepted = read_only.accept() => accepted.map(|(stream, _)| (stream, Access::ReadOnly)),
        }
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.paths {
            if let Err(error) = fs::remove_file(path) {
                tracing::debug!("could not remove {}: {error}", path.display());
            }
        }
    }
}

fn group(name: Option<&str>, option: &'static str) -> Result<Option<Gid>, SocketError> {
    let Some(name) = name else { return Ok(None) };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid)),
        Ok(None) => Err(SocketError::UnknownGroup { name: name.to_owned(), option }),
        Err(source) => Err(SocketError::Lookup { name: name.to_owned(), source }),
    }
}

/// Listens on `path`, which appears only when its group and mode are right.
fn listen(path: &Path, group: Option<Gid>) -> Result<UnixListener, SocketError> {
    let hidden = path.with_extension(format!("{}.partial", std::process::id()));
    let error = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| SocketError::Io { action, path, source }
    };
    match fs::remove_file(&hidden) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(error("remove the stale socket", &hidden)(source));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(error("listen on", path))?;
    let finish = || {
        chown(&hidden, None, group.map(Gid::as_raw)).map_err(error("set the group of", path))?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o660))
            .map_err(error("set the mode of", path))?;
        fs::rename(&hidden, path).map_err(error("put in place", path))
    };
    finish().inspect_err(|_| {
        let _removed = fs::remove_file(&hidden);
    })?;
    Ok(listener)
}

/// What a user without rights on the socket at `path` is told.
pub fn denied(path: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let me = User::from_uid(Uid::effective()).ok().flatten();
    let me = me.map_or_else(|| format!("uid {}", Uid::effective()), |user| user.name);
    let group = fs::metadata(path).ok().and_then(|metadata| {
        let gid = Gid::from_raw(metadata.gid());
        Group::from_gid(gid).ok().flatten().map(|group| group.name)
    });
    match group.as_deref() {
        Some("root") => format!("{me} may not use {}: only root may; run it with sudo", path.display()),
        Some(group) => format!(
            "{me} may not use {}: it is for members of group {group}; ask to be added to it (usermod -aG {group} {me}, \
             then log in again), or run it with sudo",
            path.display()
        ),
        None => format!(
            "{me} may not enter {}; ask to be added to the group of that directory, or run it with sudo",
            path.parent().unwrap_or(path).display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn sockets_have_their_mode_and_tell_who_came() {
        let directory = tempfile::tempdir().unwrap();
        let own = Group::from_gid(Gid::effective()).unwrap().unwrap().name;
        let groups = Groups { full: None, read_only: Some(own) };
        runtime().block_on(async {
            let path = socket_path(directory.path(), "x");
            fs::write(&path, "stale").unwrap();
            let sockets = Sockets::bind(directory.path(), "x", &groups).unwrap();
            for (path, access) in [(path.clone(), Access::Full), (read_only_path(&path), Access::ReadOnly)] {
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660, "{}", path.display());
                let _client = tokio::net::UnixStream::connect(&path).await.unwrap();
                assert_eq!(sockets.accept().await.unwrap().1, access);
            }
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing half-made is left");
            drop(sockets);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        });
    }

    #[test]
    fn an_unknown_group_is_named_with_its_option() {
        let directory = tempfile::tempdir().unwrap();
        let groups = Groups { full: Some("weir-no-such-group".to_owned()), read_only: None };
        let _guard = runtime();
        let error = Sockets::bind(directory.path(), "x", &groups).unwrap_err().to_string();
        assert!(error.contains("weir-no-such-group") && error.contains("--group"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_read_only_socket_of_a_former_start_goes() {
        let directory = tempfile::tempdir().unwrap();
        let stale = read_only_path(&socket_path(directory.path(), "x"));
        fs::write(&stale, "").unwrap();
        runtime().block_on(async {
            let _sockets = Sockets::bind(directory.path(), "x", &Groups::default()).unwrap();
            assert!(!stale.exists());
        });
    }
}
