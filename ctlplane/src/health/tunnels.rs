//! Which local port does a probe leave from, and how does the dataplane know which backend a probe that is addressed to a vip is
//! for? By that port: it is written down before the probe's first packet.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use hugepages::segment::SegmentDir;
use weir_abi::probes::{FIRST_PORT, Probe};

use super::check::Tunnel;
use crate::exception::probes::Probes;

/// How long a port stands for its backend after its probe: the last packets are still on their way.
const LINGER: Duration = Duration::from_millis(500);
/// Ports that no flow of the dataplane's own has.
const PORTS: u16 = u16::MAX - FIRST_PORT;

/// The ports from which probes leave.
#[derive(Debug)]
pub(super) struct Tunnels {
    /// The table that the dataplane reads, or why there is none.
    table: Result<Probes, String>,
    next: Cell<u16>,
    taken: RefCell<HashSet<u16>>,
    leaving: RefCell<VecDeque<(Instant, u16)>>,
}

/// A local port that stands for a backend until a while after this is dropped.
#[derive(Debug)]
pub(super) struct Registered {
    tunnels: Rc<Tunnels>,
    /// The port.
    pub(super) port: u16,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.tunnels.leaving.borrow_mut().push_back((Instant::now() + LINGER, self.port));
    }
}

impl Tunnels {
    /// With the table of an instance; `None`: there is no instance.
    pub(super) fn open(directory: Option<&Path>) -> Self {
        let table = directory.ok_or_else(|| "there is no instance".to_owned()).and_then(|directory| {
            let directory = SegmentDir::open(directory).map_err(|error| error.to_string())?;
            Probes::open(&directory).map_err(|error| error.to_string())
        });
        if let (Err(error), true) = (&table, directory.is_some()) {
            tracing::error!("no probes through tunnels: {error}");
        }
        Self {
            table,
            next: Cell::new(0),
            taken: RefCell::new(HashSet::new()),
            leaving: RefCell::new(VecDeque::new()),
        }
    }

    /// The next port in turn, for a probe that goes directly.
    pub(super) fn port(&self) -> u16 {
        let next = self.next.get();
        self.next.set((next + 1) % PORTS);
        FIRST_PORT + next
    }

    /// Makes a port stand for a backend.
    pub(super) fn register(self: &Rc<Self>, tunnel: Tunnel) -> Result<Registered, String> {
        let table = self.table.as_ref().map_err(|error| format!("no probes through tunnels: {error}"))?;
        let listener = u16::try_from(tunnel.listener)
            .map_err(|_| format!("listener {} has too high an index to be probed", tunnel.listener))?;
        self.release(table);
        for _ in 0..PORTS {
            let port = self.port();
            if self.taken.borrow_mut().insert(port) {
                table.set(port, Probe { listener, backend: tunnel.backend });
                return Ok(Registered { tunnels: Rc::clone(self), port });
            }
        }
        Err(format!("all {PORTS} ports for probes through tunnels are taken: probe less often"))
    }

    fn release(&self, table: &Probes) {
        let now = Instant::now();
        let mut leaving = self.leaving.borrow_mut();
        while let Some((at, port)) = leaving.front().copied().filter(|(at, _)| *at <= now) {
            debug_assert!(at <= now);
            leaving.pop_front();
            table.clear(port);
            self.taken.borrow_mut().remove(&port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_taken_until_their_last_packets_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let tunnels = Rc::new(Tunnels::open(Some(directory.path())));
        let tunnel = Tunnel { listener: 1, backend: 2 };
        let all: Vec<_> = (0..PORTS).map(|_| tunnels.register(tunnel).unwrap()).collect();
        assert!(all.iter().all(|one| one.port >= FIRST_PORT));
        assert!(tunnels.register(tunnel).is_err(), "all are taken");
        drop(all);
        assert!(tunnels.register(tunnel).is_err(), "their last packets are on their way");
        std::thread::sleep(LINGER + Duration::from_millis(10));
        assert!(tunnels.register(tunnel).is_ok());
        let none = Rc::new(Tunnels::open(None));
        assert!(none.register(tunnel).is_err());
    }
}
