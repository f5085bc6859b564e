//! What does the proxy need of the world? Connections, buffers, and somebody who counts.
//!
//! [`weir_tcp::Engine`] is [`Connections`]; tests put others in its place.

use std::fmt::Debug;

use crate::http::event::{BackendHttpCount, BreakerState, Event, HttpCount, HttpGauge};
use weir_tcp::{Buffer, Chunk, ConnectError, Ended, Endpoint, Engine, Events, Handle, Instant};

/// A connection that a client has opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Index of the listener.
    pub listener: u16,
    /// Our end.
    pub local: Endpoint,
    /// The client's end.
    pub remote: Endpoint,
}

/// TCP connections, as [`Engine`] has them; its documentation holds for the methods of the same names.
pub trait Connections {
    /// Buffers of the data.
    type Buffer: Buffer;
    /// Names a connection; a stale one is refused everywhere.
    type Handle: Copy + Eq + Debug;
    /// News of a connection.
    fn poll_event(&mut self) -> Option<(Self::Handle, Events)>;
    /// What is known of a connection that a client has opened.
    fn accepted(&self, handle: Self::Handle) -> Option<Accepted>;
    /// The number that [`Self::set_token`] or [`Self::connect`] gave.
    fn token(&self, handle: Self::Handle) -> Option<u32>;
    /// Gives a number.
    fn set_token(&mut self, handle: Self::Handle, token: u32);
    /// Why a connection ended.
    fn ended(&self, handle: Self::Handle) -> Ended;
    /// Whether a connection with these ends can't be opened.
    fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool;
    /// Opens a connection.
    fn connect(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        profile: u16,
        token: u32,
        now: Instant,
    ) -> Result<Self::Handle, ConnectError>;
    /// The next piece of data, in order.
    fn receive(&mut self, handle: Self::Handle) -> Option<Chunk<Self::Buffer>>;
    /// The first piece of what waits to be received; it stays there.
    fn peek(&self, handle: Self::Handle) -> Option<&[u8]>;
    /// Takes bytes away from the beginning of what waits to be received.
    fn consume(&mut self, handle: Self::Handle, bytes: u32);
    /// As [`Self::receive`], but at most so many bytes; 0 takes none.
    fn receive_part(&mut self, handle: Self::Handle, most: u32) -> Option<Chunk<Self::Buffer>>;
    /// All pieces of what waits to be received, in order; they stay there.
    fn waiting(&self, handle: Self::Handle) -> impl Iterator<Item = &[u8]>;
    /// How far the peer has acknowledged, modulo 2^32; stays when the connection ends.
    fn acknowledged(&self, handle: Self::Handle) -> u32;
    /// Whether the connection is open both ways and nothing is on its way or waits, as far as has arrived.
    fn is_quiet(&self, handle: Self::Handle) -> bool;
    /// Bytes that wait to be received.
    fn receivable(&self, handle: Self::Handle) -> u32;
    /// Bytes that may be sent before the send buffer is full.
    fn room(&self, handle: Self::Handle) -> u32;
    /// Asks for [`Events::WRITABLE`] once there is room.
    fn await_room(&mut self, handle: Self::Handle);
    /// Bytes that wait to be sent or acknowledged.
    fn unsent(&self, handle: Self::Handle) -> u32;
    /// Sends a piece of data.
    fn send(&mut self, handle: Self::Handle, chunk: Chunk<Self::Buffer>) -> Result<(), Chunk<Self::Buffer>>;
    /// Ends our side.
    fn shutdown(&mut self, handle: Self::Handle);
    /// Ends the connection at once, with a RST.
    fn abort(&mut self, handle: Self::Handle);
    /// Lets go of it.
    fn release(&mut self, handle: Self::Handle);
}

impl<B: Buffer> Connections for Engine<B> {
    type Buffer = B;
    type Handle = Handle;

    #[inline]
    fn poll_event(&mut self) -> Option<(Handle, Events)> {
        Engine::poll_event(self)
    }

    fn accepted(&self, handle: Handle) -> Option<Accepted> {
        let info = self.info(handle)?;
        let listener = self.profile_of(handle)?;
        Some(Accepted { listener, local: info.local, remote: info.remote })
    }

    #[inline]
    fn token(&self, handle: Handle) -> Option<u32> {
        Engine::token(self, handle)
    }

    fn set_token(&mut self, handle: Handle, token: u32) {
        Engine::set_token(self, handle, token);
    }

    fn ended(&self, handle: Handle) -> Ended {
        self.info(handle).map_or(Ended::No, |info| info.ended)
    }

    fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool {
        Engine::is_taken(self, local, remote)
    }

    fn connect(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        profile: u16,
        token: u32,
        now: Instant,
    ) -> Result<Handle, ConnectError> {
        Engine::connect(self, local, remote, profile, token, now)
    }

    #[inline]
    fn receive(&mut self, handle: Handle) -> Option<Chunk<B>> {
        Engine::receive(self, handle)
    }

    fn peek(&self, handle: Handle) -> Option<&[u8]> {
        Engine::peek(self, handle)
    }

    fn consume(&mut self, handle: Handle, bytes: u32) {
        Engine::consume(self, handle, bytes);
    }

    #[inline]
    fn receive_part(&mut self, handle: Handle, most: u32) -> Option<Chunk<B>> {
        Engine::receive_part(self, handle, most)
    }

    fn waiting(&self, handle: Handle) -> impl Iterator<Item = &[u8]> {
        Engine::waiting(self, handle)
    }

    #[inline]
    fn acknowledged(&self, handle: Handle) -> u32 {
        Engine::acknowledged(self, handle)
    }

    #[inline]
    fn is_quiet(&self, handle: Handle) -> bool {
        Engine::is_quiet(self, handle)
    }

    #[inline]
    fn receivable(&self, handle: Handle) -> u32 {
        Engine::receivable(self, handle)
    }

    #[inline]
    fn room(&self, handle: Handle) -> u32 {
        Engine::room(self, handle)
    }

    #[inline]
    fn await_room(&mut self, handle: Handle) {
        Engine::await_room(self, handle);
    }

    fn unsent(&self, handle: Handle) -> u32 {
        self.queued(handle)
    }

    #[inline]
    fn send(&mut self, handle: Handle, chunk: Chunk<B>) -> Result<(), Chunk<B>> {
        Engine::send(self, handle, chunk)
    }

    fn shutdown(&mut self, handle: Handle) {
        Engine::shutdown(self, handle);
    }

    fn abort(&mut self, handle: Handle) {
        Engine::abort(self, handle);
    }

    fn release(&mut self, handle: Handle) {
        Engine::release(self, handle);
    }
}

/// What else the worker has.
pub trait Surroundings<B> {
    /// A buffer with a copy of these bytes, at most [`Self::longest`]; `None` where there is none.
    fn copy(&mut self, bytes: &[u8]) -> Option<B>;
    /// The most bytes that [`Self::copy`] takes, at least [`crate::proxy_protocol::WRITTEN_MAX`]. Heads that are longer become several
    /// buffers.
    fn longest(&self) -> usize {
        crate::proxy_protocol::WRITTEN_MAX
    }
    /// Seconds since the beginning of 1970; 0: nobody knows, and no date is told.
    fn unix_s(&self) -> u64 {
        0
    }
    /// Something for the control process. It must not block: what can't be kept is dropped and counted by whoever implements this.
    fn tell(&mut self, event: Event<'_>) {
        let _ = event;
    }
    /// Whether somebody but the TCP engine uses these ends: a `fullnat` flow of the same worker shares source addresses.
    fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool;
}

/// What is counted of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerCount {
    /// Client connections.
    Accepted,
    /// Refused at the limit, or because the queue was full.
    RefusedLimit,
    /// Refused because their source had as many as it may.
    RefusedSource,
    /// Waited too long for a backend.
    QueueTimeouts,
    /// No PROXY header in time.
    HandshakeTimeouts,
    /// Both directions silent.
    IdleTimeouts,
    /// One direction closed, the other silent.
    HalfCloseTimeouts,
    /// RSTs of clients.
    ClientResets,
    /// Bytes from clients, PROXY headers not counted.
    BytesIn,
    /// Bytes to clients.
    BytesOut,
    /// PROXY header missing, malformed, or from somebody who isn't trusted.
    ProxyHeaderRefused,
    /// No backend took it.
    NoBackend,
}

/// What is counted of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendCount {
    /// Connections established.
    Connects,
    /// Refused, or unreachable.
    ConnectFailures,
    /// Not answered in time.
    ConnectTimeouts,
    /// Attempts after another backend had failed.
    Retries,
    /// RSTs of the backend.
    ServerResets,
    /// Bytes to the backend, PROXY headers not counted.
    BytesIn,
    /// Bytes from the backend.
    BytesOut,
}

/// Why a connection was aborted by the proxy. The engine counts each as an abort; these say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The other side was reset or lost, no backend took it, a PROXY header was refused, or the backend is down.
    Aborted,
    /// A timeout.
    Timeout,
    /// A limit.
    Limit,
    /// No memory: sessions, connections or buffers.
    Memory,
}

/// Who counts. Gauges are told by their changes.
pub trait Accounts {
    /// Something has happened at a listener.
    fn listener(&mut self, listener: u16, count: ListenerCount, by: u64);
    /// Client connections there are more (+1) or fewer (-1).
    fn listener_active(&mut self, listener: u16, by: i64);
    /// Connections that wait for a backend are more or fewer.
    fn listener_queued(&mut self, listener: u16, by: i64);
    /// Something has happened at a backend.
    fn backend(&mut self, backend: u32, count: BackendCount, by: u64);
    /// Upstream connections are more or fewer.
    fn backend_active(&mut self, backend: u32, by: i64);
    /// No source address and port was free towards a backend.
    fn snat_exhausted(&mut self);
    /// A connection was aborted.
    fn aborted(&mut self, cause: Cause);
    /// Something has happened at an HTTP listener.
    fn http(&mut self, listener: u16, count: HttpCount, by: u64) {
        let _ = (listener, count, by);
    }
    /// Of something there are more or fewer at an HTTP listener.
    fn http_gauge(&mut self, listener: u16, gauge: HttpGauge, by: i64) {
        let _ = (listener, gauge, by);
    }
    /// An exchange was answered or ended by the proxy; with each goes one [`HttpCount::Own`].
    fn cause(&mut self, listener: u16, cause: weir_http::cause::Cause) {
        let _ = (listener, cause);
    }
    /// Something has happened at a backend of HTTP.
    fn backend_http(&mut self, backend: u32, count: BackendHttpCount, by: u64) {
        let _ = (backend, count, by);
    }
    /// Idle connections to a backend are more or fewer; they are among those of [`Self::backend_active`].
    fn backend_idle(&mut self, backend: u32, by: i64) {
        let _ = (backend, by);
    }
    /// A breaker is in this state now.
    fn breaker(&mut self, backend: u32, state: BreakerState) {
        let _ = (backend, state);
    }
}
