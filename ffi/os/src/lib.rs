//! Which parts of Linux does Weir use that no kept crate offers safely?
//!
//! - [`allocations`]: an allocator that counts
//! - [`cpu`]: pin a thread, and ask where it may run
//! - [`heap`]: what the C library does with memory that is free
//! - [`interface`]: state, MTU and address of a network interface
//! - [`namespace`]: move a thread into a named network namespace
//! - [`netlink`]: addresses, routes and rules of the kernel
//! - [`packet_socket`]: raw Ethernet frames, in and out of an interface
//! - [`spawn`]: start processes that die with their parent, in a namespace, on given CPUs, and wait for them in bounded time
//! - [`tun`]: TUN and TAP interfaces, also ones that outlive the process
//!
//! Where `rustix` has a safe call of the same meaning (signals, pidfds, umask, memory maps), use that instead.

pub mod allocations;
pub mod cpu;
pub mod heap;
pub mod interface;
pub mod namespace;
pub mod netlink;
pub mod packet_socket;
pub mod spawn;
pub mod tun;

/// What could not be done, and the kernel's reason.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation}: {source}")]
pub struct OsError {
    operation: String,
    source: std::io::Error,
}

impl OsError {
    pub(crate) fn new(operation: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self { operation: operation.into(), source: source.into() }
    }

    /// From the calling thread's errno.
    pub(crate) fn last(operation: impl Into<String>) -> Self {
        Self::new(operation, std::io::Error::last_os_error())
    }

    /// The kind of the kernel's reason, to tell "does not exist" from "not permitted".
    pub fn kind(&self) -> std::io::ErrorKind {
        self.source.kind()
    }
}
