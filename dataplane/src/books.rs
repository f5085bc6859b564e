//! A worker's counters: what it writes into the shared segment, and how packets of one burst become few additions.

mod proxy;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hugepages::segment::AtomicWords;
use weir_abi::columns::{
    BackendColumn, CAUSE_GROUP, DROP_GROUP, ExceptionColumn, HttpBackendColumn, HttpColumn, HttpWorkerColumn,
    ListenerColumn, PortColumn, ProxyColumn, TcpColumn, UpstreamColumn, WorkerColumn,
};
use weir_abi::counters::{GroupSpec, Layout, Writer};
use weir_abi::record::MAX_PORTS;
use weir_access::Refusal;
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
            group(ExceptionColumn::GROUP, MAX_PORTS, ExceptionColumn::COLUMNS),
            group(ListenerColumn::GROUP, LISTENER_ROWS, ListenerColumn::COLUMNS),
            group(BackendColumn::GROUP, backend_rows, BackendColumn::COLUMNS),
            group(TcpColumn::GROUP, 1, TcpColumn::COLUMNS),
            group(ProxyColumn::GROUP, LISTENER_ROWS, ProxyColumn::COLUMNS),
            group(UpstreamColumn::GROUP, backend_rows, UpstreamColumn::COLUMNS),
            group(HttpColumn::GROUP, LISTENER_ROWS, HttpColumn::COLUMNS),
            GroupSpec { name: CAUSE_GROUP, rows: LISTENER_ROWS, columns: cause_names() },
            group(HttpBackendColumn::GROUP, backend_rows, HttpBackendColumn::COLUMNS),
            group(HttpWorkerColumn::GROUP, 1, HttpWorkerColumn::COLUMNS),
        ],
    )
}

/// Codes of all causes, in the order of their numbers, which begin at 1.
fn cause_names() -> Vec<&'static str> {
    weir_http::cause::Cause::ALL.iter().map(|cause| cause.code()).collect()
}

/// Which way a delivered packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the backend.
    In,
    /// To the client.
    Out,
}

/// Deliveries of one kind, and flows made and evicted, that are not written out yet.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Listener, backend and way: see [`key_of`].
    key: u64,
    packets: u64,
    bytes: u64,
    fallback: u64,
    created: u32,
    evicted: u32,
}

/// How many kinds of deliveries are kept apart before one is written out: a bit of [`Books::pending`] each.
const TALLIES: usize = 32;
/// Busy rounds whose deliveries are written out together: some ten microseconds.
const UNSETTLED_ROUNDS: u32 = 16;
/// In a tally's key: to the client.
const KEY_OUT: u64 = 1 << 48;

#[inline(always)]
fn key_of(listener: u16, backend: u32, way: Way) -> u64 {
    let out = if way == Way::Out { KEY_OUT } else { 0 };
    out | u64::from(listener) << 32 | u64::from(backend)
}

/// One area of the segment.
#[derive(Debug)]
pub struct Books {
    worker: Writer<Words>,
    drop: Writer<Words>,
    port: Writer<Words>,
    exception: Writer<Words>,
    listener: Writer<Words>,
    backend: Writer<Words>,
    tcp: Writer<Words>,
    proxy: Writer<Words>,
    upstream: Writer<Words>,
    http: Writer<Words>,
    cause: Writer<Words>,
    http_backend: Writer<Words>,
    http_worker: Writer<Words>,
    /// By backend and way, so that the few backends of one pool don't meet.
    tallies: [Tally; TALLIES],
    /// Which of them hold something.
    pending: u32,
    /// Busy rounds since [`Books::settle_seldom`] wrote out.
    unsettled: u32,
}

impl Books {
    /// The books of an area; `None` where the layout has no such area.
    pub fn open(layout: &Layout, words: &Words, area: usize) -> Option<Self> {
        let writer = |group| layout.writer(words.clone(), area, group);
        Some(Self {
            worker: writer(WorkerColumn::GROUP)?,
            drop: writer(DROP_GROUP)?,
            port: writer(PortColumn::GROUP)?,
            exception: writer(ExceptionColumn::GROUP)?,
            listener: writer(ListenerColumn::GROUP)?,
            backend: writer(BackendColumn::GROUP)?,
            tcp: writer(TcpColumn::GROUP)?,
            proxy: writer(ProxyColumn::GROUP)?,
            upstream: writer(UpstreamColumn::GROUP)?,
            http: writer(HttpColumn::GROUP)?,
            cause: writer(CAUSE_GROUP)?,
            http_backend: writer(HttpBackendColumn::GROUP)?,
            http_worker: writer(HttpWorkerColumn::GROUP)?,
            tallies: [Tally::default(); TALLIES],
            pending: 0,
            unsettled: 0,
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

    /// Adds to a column of a port's exception path.
    pub fn exception(&self, port: usize, column: ExceptionColumn, amount: u64) {
        self.exception.add(port, column as usize, amount);
    }

    /// Sets a column of a port's exception path.
    pub fn set_exception(&self, port: usize, column: ExceptionColumn, value: u64) {
        self.exception.set(port, column as usize, value);
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

    /// Counts a packet that would have begun a flow of a listener; it is counted as dropped by who drops it.
    pub fn access_refused(&self, listener: u16, refusal: Refusal) {
        let column = match refusal {
            Refusal::Denied => ListenerColumn::AccessDenied,
            Refusal::Rate => ListenerColumn::AccessRate,
            Refusal::Connections => ListenerColumn::AccessConnections,
        };
        self.listener.add(usize::from(listener), column as usize, 1);
    }

    /// Sets a column of the TCP engine.
    pub fn set_tcp(&self, column: TcpColumn, value: u64) {
        self.tcp.set(0, column as usize, value);
    }

    /// Adds to a column of the TCP engine.
    pub fn add_tcp(&self, column: TcpColumn, amount: u64) {
        self.tcp.add(0, column as usize, amount);
    }

    /// Sets a column of the worker's HTTP.
    pub fn set_http(&self, column: HttpWorkerColumn, value: u64) {
        self.http_worker.set(0, column as usize, value);
    }

    /// Adds to a column of the worker's HTTP.
    pub fn add_http(&self, column: HttpWorkerColumn, amount: u64) {
        self.http_worker.add(0, column as usize, amount);
    }

    /// Moves a gauge.
    fn shift(writer: &Writer<Words>, row: usize, column: usize, by: i64) {
        if by < 0 {
            writer.subtract(row, column, by.unsigned_abs());
        } else {
            writer.add(row, column, by.unsigned_abs());
        }
    }

    /// Counts a delivered packet; written out by [`Books::settle`] at the latest.
    #[inline(always)]
    pub fn delivered(&mut self, delivery: &Delivery, way: Way) {
        let Some(tally) = self.tally(delivery.listener, delivery.backend, way) else { return };
        tally.packets += 1;
        tally.bytes += u64::from(delivery.bytes);
        tally.fallback += u64::from(delivery.fallback);
    }

    /// The tally of a kind, to be written out; another kind's that has its place is written out at once.
    #[inline(always)]
    fn tally(&mut self, listener: u16, backend: u32, way: Way) -> Option<&mut Tally> {
        let key = key_of(listener, backend, way);
        let at = (backend as usize * 2 + usize::from(way == Way::Out)) % TALLIES;
        if self.tallies.get(at)?.key != key {
            self.displace(at, key);
        }
        self.pending |= 1 << at;
        self.tallies.get_mut(at)
    }

    #[inline(never)]
    fn displace(&mut self, at: usize, key: u64) {
        let Some(tally) = self.tallies.get_mut(at) else { return };
        let previous = std::mem::replace(tally, Tally { key, ..Tally::default() });
        self.write_out(previous);
    }

    /// At the end of a round: writes out after [`UNSETTLED_ROUNDS`] busy ones and as soon as one was not.
    #[inline]
    pub fn settle_seldom(&mut self, busy: bool) {
        self.unsettled = if busy { self.unsettled + 1 } else { UNSETTLED_ROUNDS };
        if self.unsettled >= UNSETTLED_ROUNDS {
            self.unsettled = 0;
            self.settle();
        }
    }

    /// Writes out what was delivered, made and evicted.
    #[inline]
    pub fn settle(&mut self) {
        while self.pending != 0 {
            let at = self.pending.trailing_zeros() as usize;
            self.pending &= self.pending - 1;
            let Some(tally) = self.tallies.get_mut(at) else { continue };
            let key = tally.key;
            let whole = std::mem::replace(tally, Tally { key, ..Tally::default() });
            self.write_out(whole);
        }
    }

    fn write_out(&self, tally: Tally) {
        if tally.created | tally.evicted != 0 {
            self.write_out_flows(&tally);
        }
        if tally.packets == 0 {
            return;
        }
        let (listener, backend) = ((tally.key >> 32) as usize & 0xffff, tally.key as u32 as usize);
        let out = tally.key & KEY_OUT != 0;
        let (packets, bytes) = if out {
            (ListenerColumn::PacketsOut, ListenerColumn::BytesOut)
        } else {
            (ListenerColumn::PacketsIn, ListenerColumn::BytesIn)
        };
        self.listener.add(listener, packets as usize, tally.packets);
        self.listener.add(listener, bytes as usize, tally.bytes);
        let (packets, bytes) = if out {
            (BackendColumn::PacketsOut, BackendColumn::BytesOut)
        } else {
            (BackendColumn::PacketsIn, BackendColumn::BytesIn)
        };
        self.backend.add(backend, packets as usize, tally.packets);
        self.backend.add(backend, bytes as usize, tally.bytes);
        if tally.fallback > 0 {
            self.listener.add(listener, ListenerColumn::HashFallback as usize, tally.fallback);
            self.add(WorkerColumn::HashFallback, tally.fallback);
        }
    }

    fn write_out_flows(&self, tally: &Tally) {
        let (listener, backend) = ((tally.key >> 32) as usize & 0xffff, tally.key as u32 as usize);
        let (created, evicted) = (u64::from(tally.created), u64::from(tally.evicted));
        let active = created.wrapping_sub(evicted);
        self.add(WorkerColumn::FlowsCreated, created);
        self.add(WorkerColumn::FlowsEvicted, evicted);
        self.listener.add(listener, ListenerColumn::FlowsTotal as usize, created);
        self.listener.add(listener, ListenerColumn::FlowsActive as usize, active);
        self.backend.add(backend, BackendColumn::FlowsTotal as usize, created);
        self.backend.add(backend, BackendColumn::FlowsActive as usize, active);
    }
}

impl Accounts for Books {
    #[inline]
    fn flow_created(&mut self, listener: u16, backend: u32) {
        if let Some(tally) = self.tally(listener, backend, Way::In) {
            tally.created += 1;
        }
    }

    #[inline]
    fn flow_ended(&mut self, listener: u16, backend: u32, why: Ended) {
        if why == Ended::Evicted {
            if let Some(tally) = self.tally(listener, backend, Way::In) {
                tally.evicted += 1;
            }
            return;
        }
        // nobody shall read that more flows ended than were made
        self.settle();
        if why == Ended::Expired {
            self.add(WorkerColumn::FlowsExpired, 1);
        }
        self.listener.subtract(usize::from(listener), ListenerColumn::FlowsActive as usize, 1);
        self.backend.subtract(backend as usize, BackendColumn::FlowsActive as usize, 1);
    }

    fn reset_sent(&mut self, _listener: u16, backend: u32) {
        self.backend.add(backend as usize, BackendColumn::Resets as usize, 1);
    }

    fn drained(&mut self, listener: u16, _answered: bool) {
        self.listener.add(usize::from(listener), ListenerColumn::Drained as usize, 1);
    }

    fn no_backend(&mut self, listener: u16) {
        self.listener.add(usize::from(listener), ListenerColumn::NoBackend as usize, 1);
    }

    fn refused(&mut self, listener: u16, refusal: Refusal) {
        self.access_refused(listener, refusal);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use hugepages::segment::{Access, SegmentDir};
    use weir_abi::counters::Reader;
    use weir_l4::DropReason;
    use weir_net::Malformed;

    use crate::drops::WorkerReason;

    /// Two workers' and the management thread's books in a segment, and its reader.
    pub(crate) fn books() -> (tempfile::TempDir, [Books; 3], Reader<Words>) {
        let parent = tempfile::tempdir().unwrap();
        let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
        let layout = layout(2, 4);
        let words = directory.map_atomics("counters", layout.words(), Access::Create).unwrap();
        let words = Words(Arc::new(words));
        layout.describe(&words, 7);
        let books = [0, 1, 2].map(|area| Books::open(&layout, &words, area).unwrap());
        assert!(Books::open(&layout, &words, 3).is_none());
        (parent, books, Reader::open(words).unwrap())
    }

    fn delivery(listener: u16, backend: u32, bytes: u16, fallback: bool) -> Delivery {
        Delivery { listener, backend, egress: 0, next_hop: 0, l3: 14, bytes, fallback }
    }

    #[test]
    fn a_reader_finds_every_group_and_column_by_name() {
        let (_parent, _books, reader) = books();
        let columns =
            |name| -> Vec<String> { reader.group(name).unwrap().columns().map(str::to_owned).collect() };
        assert_eq!(columns("worker"), WorkerColumn::COLUMNS);
        assert_eq!(columns("port"), PortColumn::COLUMNS);
        assert_eq!(columns("listener"), ListenerColumn::COLUMNS);
        assert_eq!(columns("backend"), BackendColumn::COLUMNS);
        assert_eq!(columns("drop"), drops::names());
        let rows = |name| reader.group(name).unwrap().rows();
        assert_eq!((rows("worker"), rows("drop"), rows("port"), rows("backend")), (1, 1, MAX_PORTS, 4));
        assert_eq!((reader.areas(), reader.start_unix_ms()), (3, 7));
    }

    #[test]
    fn each_amount_lands_in_its_column_and_area() {
        let (_parent, [first, second, management], reader) = books();
        first.add(WorkerColumn::Polls, 3);
        second.add(WorkerColumn::Polls, 4);
        second.set(WorkerColumn::Held, 9);
        second.set(WorkerColumn::Held, 2);
        first.port(1, PortColumn::TxBytes, 60);
        management.set_port(1, PortColumn::RxMissed, 5);
        management.set_unreachable(3, true);
        management.set_unreachable(2, true);
        management.set_unreachable(2, false);
        let sum = |group, row, column| reader.group(group).unwrap().sum_of(row, column);
        assert_eq!((sum("worker", 0, "polls"), sum("worker", 0, "held")), (7, 2));
        assert_eq!((sum("port", 1, "tx_bytes"), sum("port", 1, "rx_missed")), (60, 5));
        assert_eq!((sum("backend", 3, "unreachable"), sum("backend", 2, "unreachable")), (1, 0));
        let worker = reader.group("worker").unwrap();
        let polls = worker.column("polls").unwrap();
        assert_eq!([0, 1, 2].map(|area| worker.value(area, 0, polls)), [3, 4, 0]);
    }

    #[test]
    fn a_drop_is_counted_in_all_and_by_its_reason() {
        let (_parent, [books, ..], reader) = books();
        books.dropped(Malformed::ShortFrame, 2);
        books.dropped(DropReason::NoListener, 3);
        books.dropped(WorkerReason::Shutdown, 4);
        let drop = reader.group("drop").unwrap();
        let seen: Vec<(String, u64)> = drop
            .columns()
            .map(|column| (column.to_owned(), drop.sum_of(0, column)))
            .filter(|(_, packets)| *packets > 0)
            .collect();
        let expected = [(Malformed::ShortFrame.name(), 2), ("no_listener", 3), ("shutdown", 4)];
        assert_eq!(seen, expected.map(|(name, packets)| (name.to_owned(), packets)));
        assert_eq!(reader.group("worker").unwrap().sum_of(0, "dropped"), 9);
    }

    #[test]
    fn coalesced_deliveries_equal_counting_each() {
        let (_parent, [mut books, ..], reader) = books();
        let mut listeners = [[0u64; 5]; 3];
        let mut backends = [[0u64; 4]; 4];
        let mut random = 1u64;
        for packet in 0..10_000 {
            // runs of equal deliveries, of all lengths
            if packet % 7 == 0 || random >> 61 == 0 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            }
            let (listener, backend) = ((random >> 33) as usize % 3, (random >> 40) as usize % 4);
            let out = usize::from(random >> 50 & 1 == 1);
            let bytes = 40 + packet % 1_400;
            let fallback = packet % 13 == 0;
            let way = if out == 1 { Way::Out } else { Way::In };
            books.delivered(&delivery(listener as u16, backend as u32, bytes, fallback), way);
            listeners[listener][out * 2] += 1;
            listeners[listener][out * 2 + 1] += u64::from(bytes);
            listeners[listener][4] += u64::from(fallback);
            backends[backend][out * 2] += 1;
            backends[backend][out * 2 + 1] += u64::from(bytes);
            if packet % 32 == 0 {
                books.settle();
            }
        }
        books.settle();
        books.settle();
        let names = ["packets_in", "bytes_in", "packets_out", "bytes_out", "hash_fallback"];
        for (row, expected) in listeners.iter().enumerate() {
            let group = reader.group("listener").unwrap();
            assert_eq!(names.map(|name| group.sum_of(row, name)), *expected);
        }
        for (row, expected) in backends.iter().enumerate() {
            let group = reader.group("backend").unwrap();
            assert_eq!(names.map(|name| group.sum_of(row, name))[..4], *expected);
        }
        let fallback: u64 = listeners.iter().map(|row| row[4]).sum();
        assert_eq!(reader.group("worker").unwrap().sum_of(0, "hash_fallback"), fallback);
    }

    #[test]
    fn the_first_delivery_of_index_zero_is_counted_too() {
        let (_parent, [mut books, ..], reader) = books();
        books.delivered(&delivery(0, 0, 100, false), Way::In);
        assert_eq!(reader.group("backend").unwrap().sum_of(0, "packets_in"), 0, "not before it is settled");
        books.settle();
        assert_eq!(reader.group("backend").unwrap().sum_of(0, "packets_in"), 1);
        // an index beyond the table: no row, no harm
        books.delivered(&delivery(u16::MAX, u32::MAX, 100, true), Way::Out);
        books.settle();
        assert_eq!(reader.group("worker").unwrap().sum_of(0, "hash_fallback"), 1);
    }

    #[test]
    fn flows_come_and_go() {
        let (_parent, [mut books, mut other, _], reader) = books();
        for _ in 0..3 {
            books.flow_created(1, 2);
        }
        // a worker that takes records over may end more than it made
        other.flow_ended(1, 2, Ended::Expired);
        books.flow_ended(1, 2, Ended::Evicted);
        books.flow_ended(1, 2, Ended::Replaced);
        // another kind takes the place of the first one's tally
        books.flow_created(2, 2);
        books.flow_ended(2, 2, Ended::Evicted);
        books.settle();
        books.reset_sent(1, 2);
        books.no_backend(1);
        let sum = |group, row, column| reader.group(group).unwrap().sum_of(row, column);
        for (group, row, total) in [("listener", 1, 3), ("listener", 2, 1), ("backend", 2, 4)] {
            assert_eq!((sum(group, row, "flows_total"), sum(group, row, "flows_active")), (total, 0));
        }
        assert_eq!((sum("listener", 1, "no_backend"), sum("backend", 2, "resets")), (1, 1));
        let names = ["flows_created", "flows_expired", "flows_evicted"];
        assert_eq!(names.map(|name| sum("worker", 0, name)), [4, 1, 2]);
    }
}
