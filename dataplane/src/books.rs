//! A worker's counters: what it writes into the shared segment, and how packets of one burst become few additions.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hugepages::segment::AtomicWords;
use weir_abi::columns::{BackendColumn, DROP_GROUP, ListenerColumn, PortColumn, WorkerColumn};
use weir_abi::counters::{GroupSpec, Layout, Writer};
use weir_abi::record::MAX_PORTS;
use weir_l4::{Accounts, Delivery, Ended};

use crate::drops::{self, Drop};

/// Rows of the listener group: more listeners than this are forwarded but not counted apart.
const LISTENER_ROWS: usize = 8_192;

/// The counters segment, shared by all writers of the process.
#[derive(Clone, Debug)]
pub struct Words(pub Arc<AtomicWords>);

impl Deref for Words {
    type Target = [AtomicU64];
    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// The segment's layout for `workers` workers and the management thread.
pub fn layout(workers: usize, backend_rows: usize) -> Layout {
    let group = |name, rows, columns: &[&'static str]| GroupSpec { name, rows, columns: columns.to_vec() };
    Layout::new(
        workers + 1,
        vec![
            group(WorkerColumn::GROUP, 1, WorkerColumn::COLUMNS),
            GroupSpec { name: DROP_GROUP, rows: 1, columns: drops::names() },
            group(PortColumn::GROUP, MAX_PORTS, PortColumn::COLUMNS),
            group(ListenerColumn::GROUP, LISTENER_ROWS, ListenerColumn::COLUMNS),
            group(BackendColumn::GROUP, backend_rows, BackendColumn::COLUMNS),
        ],
    )
}

/// Which way a delivered packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the backend.
    In,
    /// To the client.
    Out,
}

#[derive(Clone, Copy, Debug)]
struct Tally {
    listener: u16,
    backend: u32,
    way: Way,
    packets: u64,
    bytes: u64,
    fallback: u64,
}

/// One area of the segment.
#[derive(Debug)]
pub struct Books {
    worker: Writer<Words>,
    drop: Writer<Words>,
    port: Writer<Words>,
    listener: Writer<Words>,
    backend: Writer<Words>,
    tally: Tally,
}

impl Books {
    /// The books of an area; `None` where the layout has no such area.
    pub fn open(layout: &Layout, words: &Words, area: usize) -> Option<Self> {
        let writer = |group| layout.writer(words.clone(), area, group);
        Some(Self {
            worker: writer(WorkerColumn::GROUP)?,
            drop: writer(DROP_GROUP)?,
            port: writer(PortColumn::GROUP)?,
            listener: writer(ListenerColumn::GROUP)?,
            backend: writer(BackendColumn::GROUP)?,
            tally: Tally { listener: 0, backend: 0, way: Way::In, packets: 0, bytes: 0, fallback: 0 },
        })
    }

    /// Adds to a column of the worker group.
    #[inline]
    pub fn add(&self, column: WorkerColumn, amount: u64) {
        self.worker.add(0, column as usize, amount);
    }

    /// Sets a gauge of the worker group.
    #[inline]
    pub fn set(&self, column: WorkerColumn, value: u64) {
        self.worker.set(0, column as usize, value);
    }

    /// Adds to a column of a port.
    #[inline]
    pub fn port(&self, port: usize, column: PortColumn, amount: u64) {
        self.port.add(port, column as usize, amount);
    }

    /// Sets a column of a port (the driver's own counters).
    pub fn set_port(&self, port: usize, column: PortColumn, value: u64) {
        self.port.set(port, column as usize, value);
    }

    /// Sets whether a backend's next hop is unknown.
    pub fn set_unreachable(&self, backend: u32, unreachable: bool) {
        self.backend.set(backend as usize, BackendColumn::Unreachable as usize, u64::from(unreachable));
    }

    /// Counts dropped packets.
    #[inline]
    pub fn dropped(&self, reason: impl Into<Drop>, packets: u64) {
        self.worker.add(0, WorkerColumn::Dropped as usize, packets);
        self.drop.add(0, usize::from(reason.into().0), packets);
    }

    /// Counts a delivered packet; written out by [`Books::settle`] at the latest.
    #[inline]
    pub fn delivered(&mut self, delivery: &Delivery, way: Way) {
        let same = self.tally.listener == delivery.listener
            && self.tally.backend == delivery.backend
            && self.tally.way == way;
        if !same {
            self.settle();
            self.tally.listener = delivery.listener;
            self.tally.backend = delivery.backend;
            self.tally.way = way;
        }
        self.tally.packets += 1;
        self.tally.bytes += u64::from(delivery.bytes);
        self.tally.fallback += u64::from(delivery.fallback);
    }

    /// Writes out what was delivered.
    #[inline]
    pub fn settle(&mut self) {
        let tally = self.tally;
        if tally.packets == 0 {
            return;
        }
        let (listener, backend) = (usize::from(tally.listener), tally.backend as usize);
        let (packets, bytes) = match tally.way {
            Way::In => (ListenerColumn::PacketsIn, ListenerColumn::BytesIn),
            Way::Out => (ListenerColumn::PacketsOut, ListenerColumn::BytesOut),
        };
        self.listener.add(listener, packets as usize, tally.packets);
        self.listener.add(listener, bytes as usize, tally.bytes);
        let (packets, bytes) = match tally.way {
            Way::In => (BackendColumn::PacketsIn, BackendColumn::BytesIn),
            Way::Out => (BackendColumn::PacketsOut, BackendColumn::BytesOut),
        };
        self.backend.add(backend, packets as usize, tally.packets);
        self.backend.add(backend, bytes as usize, tally.bytes);
        if tally.fallback > 0 {
            self.listener.add(listener, ListenerColumn::HashFallback as usize, tally.fallback);
            self.add(WorkerColumn::HashFallback, tally.fallback);
        }
        self.tally.packets = 0;
        self.tally.bytes = 0;
        self.tally.fallback = 0;
    }
}

impl Accounts for Books {
    #[inline]
    fn flow_created(&mut self, listener: u16, backend: u32) {
        self.add(WorkerColumn::FlowsCreated, 1);
        self.listener.add(usize::from(listener), ListenerColumn::FlowsTotal as usize, 1);
        self.listener.add(usize::from(listener), ListenerColumn::FlowsActive as usize, 1);
        self.backend.add(backend as usize, BackendColumn::FlowsTotal as usize, 1);
        self.backend.add(backend as usize, BackendColumn::FlowsActive as usize, 1);
    }

    fn flow_ended(&mut self, listener: u16, backend: u32, why: Ended) {
        match why {
            Ended::Expired => self.add(WorkerColumn::FlowsExpired, 1),
            Ended::Evicted => self.add(WorkerColumn::FlowsEvicted, 1),
            Ended::Replaced => {}
        }
        self.listener.subtract(usize::from(listener), ListenerColumn::FlowsActive as usize, 1);
        self.backend.subtract(backend as usize, BackendColumn::FlowsActive as usize, 1);
    }

    fn reset_sent(&mut self, _listener: u16, backend: u32) {
        self.backend.add(backend as usize, BackendColumn::Resets as usize, 1);
    }

    fn no_backend(&mut self, listener: u16) {
        self.listener.add(usize::from(listener), ListenerColumn::NoBackend as usize, 1);
    }
}
