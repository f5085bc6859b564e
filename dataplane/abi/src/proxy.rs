//! The records of proxied TCP: how connections behave, and what a proxy listener does with them.
//!
//! Times are milliseconds, sizes bytes, flags 0 or 1, reserved fields zero. Ranges are part of the format: a record
//! outside of them is refused as a whole.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::check::ensure;
use crate::image::SnapshotError;
use crate::record::from_u8;

/// Most that a time here may be: 24 hours.
pub const MAX_TIME_MS: u32 = 86_400_000;
/// Least that a time here may be.
pub const MIN_TIME_MS: u32 = 100;
/// Least bytes that a connection may hold per direction.
pub const MIN_BUFFER_BYTES: u32 = 4 << 10;
/// Most bytes that a connection may hold per direction. RFC 7323 §2.3: no window is larger than 2^30.
pub const MAX_BUFFER_BYTES: u32 = 1 << 30;
/// Smallest MSS that may be configured. RFC 9293 §3.7.1: what every IPv4 host accepts.
pub const MIN_MSS: u16 = 536;
/// Largest MSS that may be configured: a jumbo frame's.
pub const MAX_MSS: u16 = 9_000;
/// Most segments of an initial window (RFC 6928 proposes 10).
pub const MAX_INITIAL_WINDOW: u16 = 100;
/// Most keep-alive probes without an answer.
pub const MAX_KEEP_ALIVE_PROBES: u8 = 100;
/// Most half-open connections of a listener.
pub const MAX_BACKLOG: u32 = 1 << 20;
/// Most connections that may wait for a backend of a listener.
pub const MAX_QUEUE: u32 = 1 << 20;
/// Most further backends that a connection is tried on.
pub const MAX_RETRIES: u8 = 10;
/// Least connections of a worker: a proxied one takes two.
pub const MIN_TCP_CONNECTIONS: u32 = 2;
/// Most connections of one worker.
pub const MAX_TCP_CONNECTIONS: u32 = 1 << 24;
/// Least bytes of [`crate::record::NodeRecord::tcp_memory_bytes`].
pub const MIN_TCP_MEMORY: u64 = 1 << 20;
/// Most bytes of [`crate::record::NodeRecord::tcp_memory_bytes`].
pub const MAX_TCP_MEMORY: u64 = 1 << 40;

/// Which congestion control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Congestion {
    /// RFC 9438.
    Cubic = 0,
    /// RFC 5681 with RFC 6582.
    NewReno = 1,
}

/// When a SYN is answered without keeping anything (RFC 4987 §3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SynCookies {
    /// Once the backlog is full.
    Auto = 0,
    /// Each SYN.
    Always = 1,
    /// Never: what the backlog has no room for is dropped.
    Never = 2,
}

/// Which PROXY protocol header a client's connection starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AcceptProxy {
    /// None: what looks like one is data.
    Off = 0,
    /// Version 1, the line of text.
    V1 = 1,
    /// Version 2, binary.
    V2 = 2,
    /// Either version; one of them must be there.
    Any = 3,
}

/// Which PROXY protocol header a backend's connection starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SendProxy {
    /// None.
    Off = 0,
    /// Version 1, the line of text.
    V1 = 1,
    /// Version 2, binary.
    V2 = 2,
}

from_u8!(Congestion: Cubic, NewReno);
from_u8!(SynCookies: Auto, Always, Never);
from_u8!(AcceptProxy: Off, V1, V2, Any);
from_u8!(SendProxy: Off, V1, V2);

/// How the connections of one side behave: a listener's with its clients, or a pool's with its backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TcpRecord {
    /// Ceiling of what one connection holds per direction, receive window included: [`MIN_BUFFER_BYTES`] to
    /// [`MAX_BUFFER_BYTES`].
    pub buffer_bytes: u32,
    /// Connections that may be half-open at once per worker, 1 to [`MAX_BACKLOG`]; 0 in a pool's record.
    pub backlog: u32,
    /// Silence before the first keep-alive probe, [`MIN_TIME_MS`] to [`MAX_TIME_MS`]; 0 = no keep-alive.
    pub keep_alive_idle_ms: u32,
    /// Time between probes, in the same range; 0 without keep-alive.
    pub keep_alive_interval_ms: u32,
    /// Largest segment to send and to ask for, bytes of payload, [`MIN_MSS`] to [`MAX_MSS`]; 0 = by the path's MTU.
    pub mss: u16,
    /// Segments that may be sent before the first acknowledgement, 1 to [`MAX_INITIAL_WINDOW`].
    pub initial_window: u16,
    /// Unanswered probes after which the peer is given up, 1 to [`MAX_KEEP_ALIVE_PROBES`]; 0 without keep-alive.
    pub keep_alive_probes: u8,
    /// [`Congestion`].
    pub congestion: u8,
    /// 1: small segments are sent at once; 0: Nagle's algorithm (RFC 9293 §3.7.4).
    pub nodelay: u8,
    /// 1: data in a SYN with a valid cookie is taken (RFC 7413, server side); 0 in a pool's record.
    pub fast_open: u8,
    /// 1: an idle connection starts again from the initial window (RFC 5681 §4.1).
    pub slow_start_after_idle: u8,
    /// 1: explicit congestion notification is negotiated (RFC 3168).
    pub ecn: u8,
    /// [`SynCookies`]; 0 in a pool's record.
    pub syn_cookies: u8,
    /// Zero.
    pub reserved: u8,
}

/// What a listener of mode `proxy` does. Its place in the table is [`crate::record::ListenerRecord::proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ProxyRecord {
    /// The connections with clients.
    pub client: TcpRecord,
    /// How long one attempt to connect to a backend may take, [`MIN_TIME_MS`] to [`MAX_TIME_MS`].
    pub connect_ms: u32,
    /// How long a connection may be silent in both directions, in the same range.
    pub idle_ms: u32,
    /// How long the open direction may be silent once the other is closed, in the same range.
    pub half_close_ms: u32,
    /// How long a client may take for its handshake and, where one is expected, its PROXY header, in the same range.
    pub handshake_ms: u32,
    /// Connections that may wait for a backend at its limit, per node, 0 to [`MAX_QUEUE`]; 0 = none may.
    pub queue: u32,
    /// How long one may wait, in the range of times; 0 without a queue.
    pub queue_ms: u32,
    /// Client connections at once, per node; 0 = as many as the engine holds.
    pub max_connections: u32,
    /// First of the table's trusted prefixes that are this listener's.
    pub trusted_first: u32,
    /// How many they are; 0 exactly where [`Self::accept_proxy`] is off.
    pub trusted: u32,
    /// Further backends to try when a connect fails, 0 to [`MAX_RETRIES`].
    pub retries: u8,
    /// [`AcceptProxy`]. Clients outside of the trusted prefixes are refused.
    pub accept_proxy: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = {
    assert!(size_of::<TcpRecord>() == 28 && align_of::<TcpRecord>() == 4);
    assert!(size_of::<ProxyRecord>() == 28 + 36 + 4 && align_of::<ProxyRecord>() == 4);
    assert!(std::mem::offset_of!(TcpRecord, mss) == 16);
    assert!(std::mem::offset_of!(TcpRecord, keep_alive_probes) == 20);
    assert!(std::mem::offset_of!(ProxyRecord, connect_ms) == 28);
    assert!(std::mem::offset_of!(ProxyRecord, retries) == 64);
};

impl TcpRecord {
    /// What the configuration's defaults are, of a listener.
    pub const LISTENER: Self = Self {
        buffer_bytes: 1 << 20,
        backlog: 4_096,
        keep_alive_idle_ms: 0,
        keep_alive_interval_ms: 0,
        mss: 0,
        initial_window: 10,
        keep_alive_probes: 0,
        congestion: Congestion::Cubic as u8,
        nodelay: 1,
        fast_open: 0,
        slow_start_after_idle: 0,
        ecn: 1,
        syn_cookies: SynCookies::Auto as u8,
        reserved: 0,
    };

    /// What the configuration's defaults are, of a pool.
    pub const POOL: Self = Self { backlog: 0, ..Self::LISTENER };

    /// The congestion control.
    pub fn congestion(&self) -> Congestion {
        Congestion::from_u8(self.congestion).unwrap_or(Congestion::Cubic)
    }

    /// When cookies are sent.
    pub fn syn_cookies(&self) -> SynCookies {
        SynCookies::from_u8(self.syn_cookies).unwrap_or(SynCookies::Auto)
    }

    fn check(&self, what: &str, backlog: std::ops::RangeInclusive<u32>) -> Result<(), SnapshotError> {
        let number = |field, value: u32, range: std::ops::RangeInclusive<u32>, rule| {
            ensure(range.contains(&value), what, field, u64::from(value), rule)
        };
        number(
            "tcp.buffer_bytes",
            self.buffer_bytes,
            MIN_BUFFER_BYTES..=MAX_BUFFER_BYTES,
            "must be 4 KiB to 1 GiB",
        )?;
        number("tcp.backlog", self.backlog, backlog, "must be 1 to 2^20 for a listener, 0 for a pool")?;
        let alive = self.keep_alive_idle_ms != 0;
        let times = if alive { MIN_TIME_MS..=MAX_TIME_MS } else { 0..=0 };
        let probes = if alive { 1..=u32::from(MAX_KEEP_ALIVE_PROBES) } else { 0..=0 };
        let rule = "must be 100 ms to 24 h, or all of keep-alive 0";
        number("tcp.keep_alive_idle_ms", self.keep_alive_idle_ms, times.clone(), rule)?;
        number("tcp.keep_alive_interval_ms", self.keep_alive_interval_ms, times, rule)?;
        let count = u32::from(self.keep_alive_probes);
        number("tcp.keep_alive_probes", count, probes, "must be 1 to 100, or all of keep-alive 0")?;
        let mss = if self.mss == 0 { MIN_MSS } else { self.mss };
        number("tcp.mss", mss.into(), MIN_MSS.into()..=MAX_MSS.into(), "must be 536 to 9,000, or 0")?;
        let window = u32::from(self.initial_window);
        number("tcp.initial_window", window, 1..=MAX_INITIAL_WINDOW.into(), "must be 1 to 100")?;
        number("tcp.congestion", self.congestion.into(), 0..=1, "must be known")?;
        number("tcp.nodelay", self.nodelay.into(), 0..=1, "must be 0 or 1")?;
        let ours = u32::from(self.backlog != 0);
        number("tcp.fast_open", self.fast_open.into(), 0..=ours, "must be 0 or 1, for a pool 0")?;
        number("tcp.slow_start_after_idle", self.slow_start_after_idle.into(), 0..=1, "must be 0 or 1")?;
        number("tcp.ecn", self.ecn.into(), 0..=1, "must be 0 or 1")?;
        number("tcp.syn_cookies", self.syn_cookies.into(), 0..=2 * ours, "must be known, for a pool 0")?;
        number("tcp.reserved", self.reserved.into(), 0..=0, "must be 0")
    }

    /// Proves a pool's record.
    pub(crate) fn check_pool(&self, what: &str) -> Result<(), SnapshotError> {
        self.check(what, 0..=0)
    }
}

impl ProxyRecord {
    /// What the configuration's defaults are.
    pub const DEFAULT: Self = Self {
        client: TcpRecord::LISTENER,
        connect_ms: 5_000,
        idle_ms: 3_600_000,
        half_close_ms: 60_000,
        handshake_ms: 10_000,
        queue: 0,
        queue_ms: 0,
        max_connections: 0,
        trusted_first: 0,
        trusted: 0,
        retries: 1,
        accept_proxy: AcceptProxy::Off as u8,
        reserved: [0; 2],
    };

    /// Which PROXY header is expected.
    pub fn accept_proxy(&self) -> AcceptProxy {
        AcceptProxy::from_u8(self.accept_proxy).unwrap_or(AcceptProxy::Off)
    }

    /// Proves the record; `trusted` is how many prefixes the table has.
    pub(crate) fn check(&self, trusted: usize, what: &str) -> Result<(), SnapshotError> {
        self.client.check(what, 1..=MAX_BACKLOG)?;
        for (field, value) in [
            ("proxy.connect_ms", self.connect_ms),
            ("proxy.idle_ms", self.idle_ms),
            ("proxy.half_close_ms", self.half_close_ms),
            ("proxy.handshake_ms", self.handshake_ms),
        ] {
            let inside = (MIN_TIME_MS..=MAX_TIME_MS).contains(&value);
            ensure(inside, what, field, value.into(), "must be 100 ms to 24 h")?;
        }
        ensure(self.queue <= MAX_QUEUE, what, "proxy.queue", self.queue.into(), "must be at most 2^20")?;
        let times = if self.queue == 0 { 0..=0 } else { MIN_TIME_MS..=MAX_TIME_MS };
        let rule = "must be 100 ms to 24 h, or 0 without a queue";
        ensure(times.contains(&self.queue_ms), what, "proxy.queue_ms", self.queue_ms.into(), rule)?;
        ensure(
            self.retries <= MAX_RETRIES,
            what,
            "proxy.retries",
            self.retries.into(),
            "must be at most 10",
        )?;
        let accept = AcceptProxy::from_u8(self.accept_proxy);
        ensure(accept.is_some(), what, "proxy.accept_proxy", self.accept_proxy.into(), "must be known")?;
        let end = u64::from(self.trusted_first) + u64::from(self.trusted);
        ensure(
            end <= trusted as u64,
            what,
            "proxy.trusted",
            end,
            "must not leave the table's trusted prefixes",
        )?;
        let paired = (accept == Some(AcceptProxy::Off)) == (self.trusted == 0);
        let rule = "must be 0 exactly where no PROXY header is expected";
        ensure(paired, what, "proxy.trusted", self.trusted.into(), rule)?;
        ensure(self.reserved == [0; 2], what, "proxy.reserved", 1, "must be 0")
    }
}
