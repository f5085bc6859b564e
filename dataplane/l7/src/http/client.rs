//! What is known of a client's connection, and of the exchange on it? One record, so that an exchange costs one look-up.

use arrayvec::ArrayVec;
use weir_http::cause::Cause;
use weir_http::head::{Method, Span, Version};
use weir_tcp::{Endpoint, Instant};

use super::body::Body;
use super::breaker::Ticket;
use super::heads::hex_id;
use super::outbox::Outbox;
use crate::session::NO_BACKEND;

/// No record.
pub(crate) const NOBODY: u32 = u32::MAX;
/// No route.
pub(crate) const NO_ROUTE: u16 = u16::MAX;
/// No pool.
pub(crate) const NO_POOL: u32 = u32::MAX;
/// A time that was not reached.
pub(crate) const NEVER: u32 = u32::MAX;
/// Backends that an exchange remembers to have failed, the last ones.
pub(crate) const TRIED: usize = 4;

/// How far a client's connection has come.
///
/// ```text
/// AwaitLease ─▶ AwaitProxy ─▶ Idle ─▶ Head ─▶ Collect ─▶ Queued ⇄ Connecting ─▶ Active ─▶ Idle
///                              └────────┴────────┴─────────┴──────────┴─────────────┴─▶ Answer ─▶ Idle
/// Active ─▶ Tunnel ─▶ gone        Active, Answer ─▶ Linger ─▶ gone        Answer ─▶ Drain ─▶ Idle
/// ```
/// Each may be skipped; from each a reset, a limit or a timeout leads out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The ledger was asked for the listener's limit.
    AwaitLease,
    /// The client has to send a PROXY header.
    AwaitProxy,
    /// Nothing of a request has come.
    Idle,
    /// Some of a request's head has.
    Head,
    /// Its body is collected.
    Collect,
    /// All backends are at their limits.
    Queued,
    /// A SYN is on its way to a backend.
    Connecting,
    /// Request and response pass.
    Active,
    /// The proxy's own answer leaves.
    Answer,
    /// Bytes pass both ways, whatever they mean.
    Tunnel,
    /// The proxy's own answer has left; the rest of the request's body is read and let go of.
    Drain,
    /// The last response leaves; what the client still sends is discarded.
    Linger,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

impl Flags {
    /// It counts on the listener's limit.
    pub(crate) const LEASED: u32 = 1;
    /// It counts on its address's limit.
    pub(crate) const ADDRESS: u32 = 1 << 1;
    /// The client has sent its FIN.
    pub(crate) const FINISHED: u32 = 1 << 2;
    /// No request follows the one in progress.
    pub(crate) const CLOSES: u32 = 1 << 3;
    /// It counts as idle.
    pub(crate) const IDLE: u32 = 1 << 4;
    /// A new generation has no place for it.
    pub(crate) const DOOMED: u32 = 1 << 24;
    /// Of the connection, not of an exchange.
    const LASTING: u32 =
        Self::LEASED | Self::ADDRESS | Self::FINISHED | Self::CLOSES | Self::IDLE | Self::DOOMED;

    /// An exchange is in progress.
    pub(crate) const EXCHANGE: u32 = 1 << 5;
    /// HTTP/1.0.
    pub(crate) const HTTP10: u32 = 1 << 6;
    /// Upgrade was asked for, and is allowed.
    pub(crate) const UPGRADE: u32 = 1 << 7;
    /// The client waits for a 100.
    pub(crate) const EXPECTS: u32 = 1 << 8;
    /// It has a body.
    pub(crate) const HAS_BODY: u32 = 1 << 9;
    /// Some of the body was passed on, so that it can't be sent again.
    pub(crate) const BODY_GONE: u32 = 1 << 10;
    /// All of the request was passed on.
    pub(crate) const REQUEST_DONE: u32 = 1 << 11;
    /// The final response's head was passed on.
    pub(crate) const RESPONSE: u32 = 1 << 12;
    /// The response's chunks are taken apart for an HTTP/1.0 client.
    pub(crate) const PLAIN: u32 = 1 << 13;
    /// The connection to the backend was idle before.
    pub(crate) const REUSED: u32 = 1 << 14;
    /// The access log hears of it.
    pub(crate) const LOGGED: u32 = 1 << 15;
    /// The backend's connection is good for another request.
    pub(crate) const REUSABLE: u32 = 1 << 16;
    /// A FIN was passed on to the client.
    pub(crate) const SHUT: u32 = 1 << 18;
    /// A FIN was passed on to the backend.
    pub(crate) const UPSTREAM_SHUT: u32 = 1 << 19;
    /// The own answer is about a head or body that is in the way: what the client sends is discarded.
    pub(crate) const DISCARDS: u32 = 1 << 20;
    /// It counts as a tunnel.
    pub(crate) const TUNNEL: u32 = 1 << 21;
    /// The own answer leaves the rest of the request's body to be read and let go of; then the connection goes on.
    pub(crate) const DRAINS: u32 = 1 << 22;
    /// The head was refused before its version was known.
    pub(crate) const NO_VERSION: u32 = 1 << 23;

    #[inline(always)]
    pub(crate) fn has(self, flags: u32) -> bool {
        self.0 & flags != 0
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, flags: u32) {
        self.0 |= flags;
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self, flags: u32) {
        self.0 &= !flags;
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, flags: u32, yes: bool) {
        if yes {
            self.set(flags);
        } else {
            self.clear(flags);
        }
    }

    /// Forgets what belongs to an exchange.
    #[inline(always)]
    pub(crate) fn forget_exchange(&mut self) {
        self.0 &= Self::LASTING;
    }
}

/// Parts of a request's head that the log tells.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) method: Span,
    pub(crate) target: Span,
    pub(crate) host: Span,
    pub(crate) user_agent: Span,
    pub(crate) referer: Span,
    /// The id that a trusted client has given the request; empty: it has the proxy's own.
    pub(crate) request_id: Span,
}

/// A request and its response.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// When its first byte came.
    pub(crate) began: Instant,
    /// Its head, as the client has sent it, and the body that was collected behind it.
    pub(crate) head: Option<super::Held>,
    /// Bytes of the head alone.
    pub(crate) head_len: u32,
    /// Bytes of the body that were collected.
    pub(crate) collected: u32,
    /// Its connection to a backend.
    pub(crate) upstream: u32,
    pub(crate) pool: u32,
    /// The last backend that was tried.
    pub(crate) backend: u32,
    /// By its place in the listener's; [`NO_ROUTE`].
    pub(crate) route: u16,
    /// Rules that it began with; see [`super::generation`].
    pub(crate) generation: u16,
    /// Their generation's number.
    pub(crate) number: u64,
    pub(crate) method: Method,
    pub(crate) told: Told,
    pub(crate) request_id: u128,
    /// What is to come of the request's body.
    pub(crate) request: Body,
    /// What is to come of the response's body.
    pub(crate) response: Body,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// The status that the client got.
    pub(crate) status: u16,
    pub(crate) cause: Option<Cause>,
    /// What became of the attempt before, where it failed.
    pub(crate) failed: Option<Cause>,
    pub(crate) attempts: u8,
    /// 1xx responses that were passed on.
    pub(crate) interim: u8,
    pub(crate) tried: ArrayVec<u32, TRIED>,
    /// What picks its backend, where a hash does.
    pub(crate) hash: u64,
    /// The value of the cookie that names its backend.
    pub(crate) sticky: Span,
    /// The attempt, for the backend's breaker.
    pub(crate) ticket: Option<Ticket>,
    /// Where the backend's acknowledgements stood before the request.
    pub(crate) acknowledged: u32,
    /// Microseconds since it began, modulo 2^32; [`NEVER`].
    pub(crate) head_us: u32,
    pub(crate) queued_at: u32,
    pub(crate) queue_us: u32,
    pub(crate) attempt_at: u32,
    pub(crate) connect_us: u32,
    pub(crate) response_us: u32,
    /// Times of the route or listener, milliseconds.
    pub(crate) response_header_ms: u32,
    pub(crate) idle_ms: u32,
    pub(crate) tunnel_ms: u32,
    /// Since when the rate of the request's body counts (tick), and the bytes that had come before.
    pub(crate) rated_at: Option<(u32, u64)>,
    /// Tick of the last byte of a body.
    pub(crate) moved_at: u32,
    /// Bytes that waited for the client when the timer last looked.
    pub(crate) residue: u32,
}

impl Exchange {
    pub(crate) fn new(began: Instant) -> Self {
        Self {
            began,
            head: None,
            head_len: 0,
            collected: 0,
            upstream: NOBODY,
            pool: NO_POOL,
            backend: NO_BACKEND,
            route: NO_ROUTE,
            generation: super::generation::NONE,
            number: 0,
            method: Method::Get,
            told: Told::default(),
            request_id: 0,
            request: Body::None,
            response: Body::None,
            bytes_in: 0,
            bytes_out: 0,
            status: 0,
            cause: None,
            failed: None,
            attempts: 0,
            interim: 0,
            tried: ArrayVec::new(),
            hash: 0,
            sticky: Span::default(),
            ticket: None,
            acknowledged: 0,
            head_us: NEVER,
            queued_at: NEVER,
            queue_us: NEVER,
            attempt_at: NEVER,
            connect_us: NEVER,
            response_us: NEVER,
            response_header_ms: 0,
            idle_ms: 0,
            tunnel_ms: 0,
            rated_at: None,
            moved_at: 0,
            residue: 0,
        }
    }

    /// Its id: the one that a trusted client has given it, else the proxy's own; none where its head was refused.
    #[inline]
    pub(crate) fn id<'a>(&self, head: &'a [u8], out: &'a mut [u8; 32]) -> &'a [u8] {
        match self.told.request_id.of(head) {
            [] if self.request_id != 0 => hex_id(self.request_id, out),
            given => given,
        }
    }

    /// For how many ticks no byte of a body has moved. `residue`: bytes that wait for peers now; what those have read since the last
    /// look only their connections know.
    pub(crate) fn silent(&mut self, residue: u32, now: u32) -> u32 {
        if residue != self.residue {
            self.residue = residue;
            if residue != 0 {
                self.moved_at = now;
            }
        }
        now.wrapping_sub(self.moved_at)
    }

    /// Microseconds since its first byte.
    #[inline]
    pub(crate) fn since(&self, now: Instant) -> u32 {
        now.0.saturating_sub(self.began.0).min(u64::from(NEVER - 1)) as u32
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Client<H> {
    pub(crate) handle: H,
    pub(crate) stage: Stage,
    pub(crate) flags: Flags,
    pub(crate) listener: u16,
    /// Requests so far.
    pub(crate) requests: u32,
    /// Who it is, as a PROXY header tells or as it is.
    pub(crate) source: Endpoint,
    /// What it has asked, as a PROXY header tells or as it is.
    pub(crate) destination: Endpoint,
    /// The vip's port to which it came.
    pub(crate) vip_port: u16,
    /// The tick at which something is due; the wheel may look before.
    pub(crate) due: u32,
    /// Of a PROXY header that is read, its parser.
    pub(crate) parser: u32,
    /// Bytes for the client that wait for room.
    pub(crate) outbox: Outbox,
    /// Bytes that were discarded.
    pub(crate) discarded: u32,
    pub(crate) exchange: Exchange,
}

impl<H> Client<H> {
    /// The version of its request.
    pub(crate) fn version(&self) -> Version {
        if self.flags.has(Flags::HTTP10) { Version::Http10 } else { Version::Http11 }
    }
}
