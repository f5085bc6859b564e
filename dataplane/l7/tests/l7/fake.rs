//! Connections without TCP: a test says what happens to each, and sees what the proxy does with it.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use weir_l7::connections::{
    Accepted, Accounts, BackendCount, Cause, Connections, ListenerCount, Surroundings,
};
use weir_l7::http::event::{BackendHttpCount, BreakerChange, Event, HttpCount, HttpGauge};
use weir_tcp::buffer::HeapBuffer;
use weir_tcp::{Buffer, Chunk, ConnectError, Ended, Endpoint, Events, Instant};

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) local: Endpoint,
    pub(crate) remote: Endpoint,
    pub(crate) listener: u16,
    pub(crate) token: u32,
    pub(crate) inbox: VecDeque<Chunk<HeapBuffer>>,
    /// What the proxy has sent, and not read by the peer.
    pub(crate) outbox: Vec<u8>,
    /// All that was ever sent.
    pub(crate) sent: Vec<u8>,
    pub(crate) limit: usize,
    pub(crate) wants_room: bool,
    pub(crate) is_shut: bool,
    pub(crate) is_aborted: bool,
    pub(crate) is_released: bool,
    pub(crate) is_open: bool,
    /// The peer has sent everything.
    pub(crate) is_finished: bool,
    pub(crate) ended: Ended,
    news: Events,
}

/// All connections; a handle is a place, never reused.
#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) connections: Vec<Connection>,
    queue: VecDeque<usize>,
    /// How many there may be at once.
    pub(crate) capacity: Option<usize>,
}

impl Fake {
    fn add(&mut self, local: Endpoint, remote: Endpoint, listener: u16, token: u32) -> usize {
        self.connections.push(Connection {
            local,
            remote,
            listener,
            token,
            inbox: VecDeque::new(),
            outbox: Vec::new(),
            sent: Vec::new(),
            limit: 1 << 16,
            wants_room: false,
            is_shut: false,
            is_aborted: false,
            is_released: false,
            is_open: true,
            is_finished: false,
            ended: Ended::No,
            news: Events::default(),
        });
        self.connections.len() - 1
    }

    pub(crate) fn tell(&mut self, handle: usize, events: Events) {
        self.connections[handle].news |= events;
        self.queue.push_back(handle);
    }

    /// A client's handshake is complete.
    pub(crate) fn client(&mut self, remote: Endpoint, local: Endpoint, listener: u16) -> usize {
        let handle = self.add(local, remote, listener, u32::MAX);
        self.tell(handle, Events::ACCEPTED);
        handle
    }

    /// The peer sends.
    pub(crate) fn arrives(&mut self, handle: usize, bytes: &[u8]) {
        self.connections[handle].inbox.push_back(Chunk::whole(HeapBuffer::from(bytes)));
        self.tell(handle, Events::READABLE);
    }

    /// The peer has sent everything.
    pub(crate) fn finishes(&mut self, handle: usize) {
        self.connections[handle].is_finished = true;
        self.tell(handle, Events::FINISHED);
        self.close_if_done(handle, true);
    }

    /// The connection ends, not in order.
    pub(crate) fn dies(&mut self, handle: usize, ended: Ended) {
        let connection = &mut self.connections[handle];
        connection.ended = ended;
        connection.is_open = false;
        connection.inbox.clear();
        // what was not acknowledged was not
        let lost = connection.outbox.len();
        connection.outbox.clear();
        connection.sent.truncate(connection.sent.len() - lost);
        self.tell(handle, Events::CLOSED);
    }

    /// Both FINs are there, all is acknowledged.
    pub(crate) fn close_if_done(&mut self, handle: usize, peer_is_done: bool) {
        let connection = &mut self.connections[handle];
        if peer_is_done && connection.is_shut && connection.is_open {
            connection.ended = Ended::Finished;
            connection.is_open = false;
            self.tell(handle, Events::CLOSED);
        }
    }

    /// The peer reads so much of what it was sent.
    pub(crate) fn peer_reads(&mut self, handle: usize, bytes: usize) -> Vec<u8> {
        let connection = &mut self.connections[handle];
        let bytes = bytes.min(connection.outbox.len());
        let read = connection.outbox.drain(..bytes).collect();
        if connection.wants_room && connection.outbox.len() < connection.limit {
            connection.wants_room = false;
            self.tell(handle, Events::WRITABLE);
        }
        read
    }

    /// Connections that the proxy still holds.
    pub(crate) fn held(&self) -> usize {
        self.connections.iter().filter(|connection| !connection.is_released).count()
    }

    /// The upstream connections, in the order of their SYNs.
    pub(crate) fn upstreams(&self) -> Vec<usize> {
        (0..self.connections.len()).filter(|at| self.connections[*at].listener == u16::MAX).collect()
    }
}

impl Connections for Fake {
    type Buffer = HeapBuffer;
    type Handle = usize;

    fn poll_event(&mut self) -> Option<(usize, Events)> {
        loop {
            let handle = self.queue.pop_front()?;
            let connection = &mut self.connections[handle];
            let news = std::mem::take(&mut connection.news);
            if !news.is_empty() && !connection.is_released {
                return Some((handle, news));
            }
        }
    }

    fn accepted(&self, handle: usize) -> Option<Accepted> {
        let connection = &self.connections[handle];
        Some(Accepted { listener: connection.listener, local: connection.local, remote: connection.remote })
    }

    fn token(&self, handle: usize) -> Option<u32> {
        Some(self.connections[handle].token)
    }

    fn set_token(&mut self, handle: usize, token: u32) {
        self.connections[handle].token = token;
    }

    fn ended(&self, handle: usize) -> Ended {
        self.connections[handle].ended
    }

    fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool {
        self.connections.iter().any(|other| other.is_open && other.local == local && other.remote == remote)
    }

    fn connect(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        _profile: u16,
        token: u32,
        _now: Instant,
    ) -> Result<usize, ConnectError> {
        if self.is_taken(local, remote) {
            return Err(ConnectError::InUse);
        }
        if self.capacity.is_some_and(|capacity| self.held() >= capacity) {
            return Err(ConnectError::Full);
        }
        Ok(self.add(local, remote, u16::MAX, token))
    }

    fn receive(&mut self, handle: usize) -> Option<Chunk<HeapBuffer>> {
        self.connections[handle].inbox.pop_front()
    }

    fn peek(&self, handle: usize) -> Option<&[u8]> {
        self.connections[handle].inbox.front().map(Chunk::bytes)
    }

    fn consume(&mut self, handle: usize, bytes: u32) {
        let mut left = bytes;
        while left > 0 {
            let Some(taken) = self.receive_part(handle, left) else { return };
            left -= u32::from(taken.len);
        }
    }

    fn receive_part(&mut self, handle: usize, most: u32) -> Option<Chunk<HeapBuffer>> {
        let inbox = &mut self.connections[handle].inbox;
        let chunk = inbox.front_mut().filter(|_| most > 0)?;
        let len = u32::from(chunk.len).min(most) as u16;
        let part = Chunk { buffer: chunk.buffer.share(), offset: chunk.offset, len };
        chunk.offset += len;
        chunk.len -= len;
        if chunk.len == 0 {
            inbox.pop_front();
        }
        Some(part)
    }

    fn waiting(&self, handle: usize) -> impl Iterator<Item = &[u8]> {
        self.connections[handle].inbox.iter().map(Chunk::bytes)
    }

    fn acknowledged(&self, handle: usize) -> u32 {
        let connection = &self.connections[handle];
        (connection.sent.len() - connection.outbox.len()) as u32
    }

    fn is_quiet(&self, handle: usize) -> bool {
        let connection = &self.connections[handle];
        connection.is_open
            && !connection.is_finished
            && connection.inbox.is_empty()
            && connection.outbox.is_empty()
    }

    fn receivable(&self, handle: usize) -> u32 {
        self.connections[handle].inbox.iter().map(|chunk| u32::from(chunk.len)).sum()
    }

    fn room(&self, handle: usize) -> u32 {
        let connection = &self.connections[handle];
        connection.limit.saturating_sub(connection.outbox.len()) as u32
    }

    fn await_room(&mut self, handle: usize) {
        self.connections[handle].wants_room = true;
    }

    fn unsent(&self, handle: usize) -> u32 {
        self.connections[handle].outbox.len() as u32
    }

    fn send(&mut self, handle: usize, chunk: Chunk<HeapBuffer>) -> Result<(), Chunk<HeapBuffer>> {
        let room = self.room(handle);
        let connection = &mut self.connections[handle];
        if connection.is_shut || !connection.is_open || room == 0 {
            return Err(chunk);
        }
        connection.outbox.extend(chunk.bytes());
        connection.sent.extend(chunk.bytes());
        Ok(())
    }

    fn shutdown(&mut self, handle: usize) {
        assert!(!self.connections[handle].is_released, "shut after its release");
        self.connections[handle].is_shut = true;
    }

    fn abort(&mut self, handle: usize) {
        let connection = &mut self.connections[handle];
        assert!(!connection.is_released, "aborted after its release");
        connection.is_aborted |= connection.is_open;
        connection.is_open = false;
    }

    fn release(&mut self, handle: usize) {
        let connection = &mut self.connections[handle];
        assert!(!connection.is_released, "released twice");
        connection.is_released = true;
        connection.is_open = false;
    }
}

/// Buffers, and ends that others use.
#[derive(Debug, Default)]
pub(crate) struct Around {
    pub(crate) has_no_buffers: bool,
    pub(crate) taken: Vec<(Endpoint, Endpoint)>,
    /// The longest piece that is copied at once; 0: any.
    pub(crate) longest: usize,
    /// Seconds since 1970; 0: nobody knows.
    pub(crate) unix_s: u64,
    /// Exchanges that were told.
    pub(crate) told: Vec<Told>,
    /// Changes of breakers that were told.
    pub(crate) breakers: Vec<BreakerChange>,
}

/// An exchange that was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) host: String,
    pub(crate) request_id: String,
    pub(crate) version: u8,
    pub(crate) route: u16,
    pub(crate) backend: u32,
    pub(crate) status: u16,
    pub(crate) cause: Option<weir_http::cause::Cause>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) attempts: u8,
    pub(crate) is_reused: bool,
}

impl<B: Buffer + for<'a> From<&'a [u8]>> Surroundings<B> for Around {
    fn copy(&mut self, bytes: &[u8]) -> Option<B> {
        (!self.has_no_buffers).then(|| B::from(bytes))
    }

    fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool {
        self.taken.contains(&(local, remote))
    }

    fn longest(&self) -> usize {
        if self.longest == 0 { 2_048 } else { self.longest }
    }

    fn unix_s(&self) -> u64 {
        self.unix_s
    }

    fn tell(&mut self, event: Event<'_>) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match event {
            Event::Exchange(exchange) => self.told.push(Told {
                method: text(exchange.method),
                target: text(exchange.target),
                host: text(exchange.host),
                request_id: text(exchange.request_id),
                version: exchange.version,
                route: exchange.route,
                backend: exchange.backend,
                status: exchange.status,
                cause: exchange.cause,
                bytes_in: exchange.bytes_in,
                bytes_out: exchange.bytes_out,
                attempts: exchange.attempts,
                is_reused: exchange.is_reused,
            }),
            Event::Breaker(change) => self.breakers.push(change),
        }
    }
}

/// Who counts, for the test to read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Books(Rc<RefCell<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    listeners: HashMap<(u16, ListenerCount), u64>,
    backends: HashMap<(u32, BackendCount), u64>,
    active: HashMap<u16, i64>,
    queued: HashMap<u16, i64>,
    backend_active: HashMap<u32, i64>,
    snat_exhausted: u64,
    aborted: HashMap<Cause, u64>,
    http: HashMap<HttpCount, u64>,
    gauges: HashMap<HttpGauge, i64>,
    causes: HashMap<weir_http::cause::Cause, u64>,
    backend_http: HashMap<(u32, BackendHttpCount), u64>,
    backend_idle: HashMap<u32, i64>,
}

impl Books {
    pub(crate) fn of(&self, count: ListenerCount) -> u64 {
        self.0.borrow().listeners.iter().filter(|((_, of), _)| *of == count).map(|(_, by)| by).sum()
    }

    pub(crate) fn backend(&self, backend: u32, count: BackendCount) -> u64 {
        self.0.borrow().backends.get(&(backend, count)).copied().unwrap_or(0)
    }

    pub(crate) fn active(&self) -> i64 {
        self.0.borrow().active.values().sum()
    }

    pub(crate) fn queued(&self) -> i64 {
        self.0.borrow().queued.values().sum()
    }

    pub(crate) fn backend_active(&self, backend: u32) -> i64 {
        self.0.borrow().backend_active.get(&backend).copied().unwrap_or(0)
    }

    pub(crate) fn all_backends_active(&self) -> i64 {
        self.0.borrow().backend_active.values().sum()
    }

    pub(crate) fn http(&self, count: HttpCount) -> u64 {
        self.0.borrow().http.get(&count).copied().unwrap_or(0)
    }

    pub(crate) fn gauge(&self, gauge: HttpGauge) -> i64 {
        self.0.borrow().gauges.get(&gauge).copied().unwrap_or(0)
    }

    pub(crate) fn cause(&self, cause: weir_http::cause::Cause) -> u64 {
        self.0.borrow().causes.get(&cause).copied().unwrap_or(0)
    }

    pub(crate) fn backend_http(&self, backend: u32, count: BackendHttpCount) -> u64 {
        self.0.borrow().backend_http.get(&(backend, count)).copied().unwrap_or(0)
    }

    pub(crate) fn idle(&self) -> i64 {
        self.0.borrow().backend_idle.values().sum()
    }

    pub(crate) fn snat_exhausted(&self) -> u64 {
        self.0.borrow().snat_exhausted
    }

    pub(crate) fn aborted(&self, cause: Cause) -> u64 {
        self.0.borrow().aborted.get(&cause).copied().unwrap_or(0)
    }
}

impl Accounts for Books {
    fn listener(&mut self, listener: u16, count: ListenerCount, by: u64) {
        *self.0.borrow_mut().listeners.entry((listener, count)).or_default() += by;
    }
    fn listener_active(&mut self, listener: u16, by: i64) {
        *self.0.borrow_mut().active.entry(listener).or_default() += by;
    }
    fn listener_queued(&mut self, listener: u16, by: i64) {
        *self.0.borrow_mut().queued.entry(listener).or_default() += by;
    }
    fn backend(&mut self, backend: u32, count: BackendCount, by: u64) {
        *self.0.borrow_mut().backends.entry((backend, count)).or_default() += by;
    }
    fn backend_active(&mut self, backend: u32, by: i64) {
        *self.0.borrow_mut().backend_active.entry(backend).or_default() += by;
    }
    fn snat_exhausted(&mut self) {
        self.0.borrow_mut().snat_exhausted += 1;
    }
    fn aborted(&mut self, cause: Cause) {
        *self.0.borrow_mut().aborted.entry(cause).or_default() += 1;
    }
    fn http(&mut self, _: u16, count: HttpCount, by: u64) {
        *self.0.borrow_mut().http.entry(count).or_default() += by;
    }
    fn http_gauge(&mut self, _: u16, gauge: HttpGauge, by: i64) {
        *self.0.borrow_mut().gauges.entry(gauge).or_default() += by;
    }
    fn cause(&mut self, _: u16, cause: weir_http::cause::Cause) {
        *self.0.borrow_mut().causes.entry(cause).or_default() += 1;
    }
    fn backend_http(&mut self, backend: u32, count: BackendHttpCount, by: u64) {
        *self.0.borrow_mut().backend_http.entry((backend, count)).or_default() += by;
    }
    fn backend_idle(&mut self, backend: u32, by: i64) {
        *self.0.borrow_mut().backend_idle.entry(backend).or_default() += by;
    }
}
