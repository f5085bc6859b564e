//! Which AF_XDP sockets did net_af_xdp leave behind?
//!
//! The driver (22.11 with libxdp 1.3) closes a port without closing the socket that its packet memory is registered
//! with, so that the interface stays busy for as long as the process lives. This notes the sockets that setting up a
//! queue opens, and closes those that are still there once the driver says that the port is closed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The kernel frees an interface's queue some time after its socket is closed, from a work queue behind an RCU grace
/// period. Without a pause, one in 50 attempts to open the interface again at once found it busy, on two loaded cores.
const RELEASE: Duration = Duration::from_millis(200);

/// Descriptors, and the kernel's names of the sockets behind them, which are never used twice.
#[derive(Debug, Default)]
pub(super) struct XdpSockets(BTreeMap<i32, PathBuf>);

/// Notes which sockets come into being while it is alive.
pub(super) struct Watch {
    before: BTreeMap<i32, PathBuf>,
    _alone: MutexGuard<'static, ()>,
}

impl Watch {
    /// Starts watching; one at a time, so that each finds its own.
    pub(super) fn start() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Self { before: open_sockets(), _alone: alone }
    }

    /// Adds those that are new.
    pub(super) fn finish(self, sockets: &mut XdpSockets) {
        sockets
            .0
            .extend(open_sockets().into_iter().filter(|(file, name)| self.before.get(file) != Some(name)));
    }
}

impl XdpSockets {
    /// Closes those that the driver has not closed. Only after it has closed the port.
    pub(super) fn close_leftovers(&mut self) {
        let now = open_sockets();
        let mut closed = false;
        for (file, name) in std::mem::take(&mut self.0) {
            if now.get(&file) == Some(&name) {
                // SAFETY: the descriptor is still the AF_XDP socket that the driver opened for this port, and the
                // driver, its one owner, is done with the port.
                unsafe { libc::close(file) };
                closed = true;
            }
        }
        if closed {
            thread::sleep(RELEASE);
        }
    }
}

/// The process's AF_XDP sockets. None where /proc is missing: nothing is closed then.
fn open_sockets() -> BTreeMap<i32, PathBuf> {
    let Ok(directory) = fs::read_dir("/proc/self/fd") else { return BTreeMap::new() };
    let files = directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    files
        .filter(|&file| is_xdp(file))
        .filter_map(|file| Some((file, fs::read_link(format!("/proc/self/fd/{file}")).ok()?)))
        .collect()
}

fn is_xdp(file: i32) -> bool {
    let mut domain = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: writes one integer; on what is no socket, or no descriptor, it fails.
    let code = unsafe {
        libc::getsockopt(file, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &raw mut length)
    };
    code == 0 && domain == libc::AF_XDP
}
