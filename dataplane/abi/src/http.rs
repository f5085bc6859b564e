//! The records of HTTP: what a listener of protocol `http` does, route by route, and how a pool is used for it.
//!
//! An [`HttpTable`] belongs to one listener. Its records have fixed sizes; what varies in length lies in arrays beside them,
//! of which a record names its [`Stretch`], and text lies in one arena of bytes. Times are milliseconds, sizes bytes, flags 0 or 1,
//! reserved fields zero. Ranges are part of the format: a table with a record outside of them is refused as a whole.

mod check;
mod table;
#[cfg(test)]
mod tests;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use self::check::is_token;
pub use self::table::{Arena, HttpTable};
use crate::record::{NO_INDEX, from_u8};
use crate::text::Name;

/// Most routes of a listener: an index of them is 16 bits, and one value says "none".
pub const MAX_ROUTES: usize = 65_534;
/// Most bytes of a body that the proxy itself answers with.
pub const MAX_BODY_BYTES: usize = 64 << 10;
/// Least bytes of a head that may be the limit.
pub const MIN_HEADER_BYTES: u32 = 1 << 10;
/// Most bytes of a head that may be the limit.
pub const MAX_HEADER_BYTES: u32 = 64 << 10;
/// Most fields of a head.
pub const MAX_HEADERS: u16 = 128;
/// Least bytes of a target that may be the limit.
pub const MIN_URI_BYTES: u16 = 256;
/// Most bytes of a response that are taken ahead of what the client reads.
pub const MAX_MESSAGE_BUFFER: u32 = 1 << 30;
/// Most bytes of a request's body that are collected before a backend is asked: with its head it lies in one buffer.
pub const MAX_COLLECTED: u32 = 64 << 10;
/// Most that a weight of a split may be.
pub const MAX_SPLIT_WEIGHT: u32 = 1_000_000;
/// All of ten thousand.
pub const ALL_OF_TEN_THOUSAND: u16 = 10_000;
/// Most pools of a split.
pub const MAX_SPLITS: usize = 64;
/// Most rate limits of a listener.
pub const MAX_RATE_LIMITS: usize = 256;
/// Most tokens of a bucket.
pub const MAX_BURST: u32 = 1_000_000_000;
/// Most tokens per second, times 1,000.
pub const MAX_MILLIS_PER_SECOND: u64 = 1_000_000_000_000;
/// Most statuses after which a request is tried again.
pub const MAX_RETRY_STATUSES: usize = 16;
/// Most bytes of a regular expression.
pub const MAX_REGEX_BYTES: u32 = 1_024;

/// `count` elements from `first` on: of an array of the table, or bytes of its arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Stretch {
    /// The first.
    pub first: u32,
    /// How many; an absent text has none.
    pub count: u32,
}

/// Which host a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HostKind {
    /// Every one.
    Any = 0,
    /// The one in [`RouteRecord::host`].
    Exact = 1,
    /// All that end in it: it begins with a dot.
    Suffix = 2,
}

/// Which path a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PathKind {
    /// Every one.
    Any = 0,
    /// The one in [`RouteRecord::path`].
    Exact = 1,
    /// It and what lies below.
    Prefix = 2,
    /// What matches it.
    Regex = 3,
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ConditionKind {
    /// The method: [`ConditionRecord::value`] is a stretch of the table's words.
    Method = 0,
    /// A header.
    Header = 1,
    /// A parameter of the query.
    Query = 2,
    /// The client: [`ConditionRecord::value`] is a stretch of the table's prefixes.
    Source = 3,
}

/// What a value must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Compare {
    /// Be there.
    Present = 0,
    /// Not be there.
    Absent = 1,
    /// Be this.
    Exact = 2,
    /// Begin so.
    Prefix = 3,
    /// Match as a whole.
    Regex = 4,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ActionKind {
    /// Passes on: [`RouteRecord::pools`].
    Pools = 0,
    /// Redirects: status, scheme, port, [`RouteRecord::first`] is the host and [`RouteRecord::second`] the path.
    Redirect = 1,
    /// Answers: status, [`RouteRecord::first`] is the content type and [`RouteRecord::second`] the body.
    Respond = 2,
}

/// The scheme of a redirection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scheme {
    /// As the request.
    Keep = 0,
    /// `http`.
    Http = 1,
    /// `https`.
    Https = 2,
}

/// A change of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PathEditKind {
    /// None.
    Keep = 0,
    /// All of it.
    Replace = 1,
    /// What the route's prefix matched.
    ReplacePrefix = 2,
}

/// A change of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HostEditKind {
    /// None.
    Keep = 0,
    /// To a text.
    Replace = 1,
    /// To the backend's address.
    Backend = 2,
}

/// A change to fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EditKind {
    /// Replaces all of the name.
    Set = 0,
    /// Adds one.
    Add = 1,
    /// Removes all of the name; there is no value.
    Remove = 2,
}

/// Whose bucket a request takes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RateKeyKind {
    /// One for all.
    All = 0,
    /// The client's address.
    Client = 1,
    /// A header's value.
    Header = 2,
}

/// What a client gets when memory is at its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum WhenFullKind {
    /// 503.
    Refuse = 0,
    /// RST.
    Reset = 1,
}

/// What picks a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HashKind {
    /// The client's address.
    Source = 0,
    /// A header.
    Header = 1,
    /// A cookie.
    Cookie = 2,
    /// The path.
    Path = 3,
}

from_u8!(HostKind: Any, Exact, Suffix);
from_u8!(PathKind: Any, Exact, Prefix, Regex);
from_u8!(ConditionKind: Method, Header, Query, Source);
from_u8!(Compare: Present, Absent, Exact, Prefix, Regex);
from_u8!(ActionKind: Pools, Redirect, Respond);
from_u8!(Scheme: Keep, Http, Https);
from_u8!(PathEditKind: Keep, Replace, ReplacePrefix);
from_u8!(HostEditKind: Keep, Replace, Backend);
from_u8!(EditKind: Set, Add, Remove);
from_u8!(RateKeyKind: All, Client, Header);
from_u8!(WhenFullKind: Refuse, Reset);
from_u8!(HashKind: Source, Header, Cookie, Path);

/// Head of an HTTP table: the listener's settings, and how long the arrays are that follow in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct HttpRecord {
    /// Of a request's body; 0 = none.
    pub body_bytes: u64,
    /// Index of the listener.
    pub listener: u32,
    /// Index of the pool of requests that no route takes; [`NO_INDEX`] = they are answered 404.
    pub default_pool: u32,
    /// Until a request's head is there, [`crate::proxy::MIN_TIME_MS`] to [`crate::proxy::MAX_TIME_MS`], as all times here.
    pub request_header_ms: u32,
    /// Silence within a request's body.
    pub request_body_ms: u32,
    /// Until a response's head is there.
    pub response_header_ms: u32,
    /// Silence within a response's body.
    pub response_idle_ms: u32,
    /// Between a response and the next request.
    pub keep_alive_ms: u32,
    /// Silence of a tunnel.
    pub tunnel_ms: u32,
    /// Of a head, [`MIN_HEADER_BYTES`] to [`MAX_HEADER_BYTES`].
    pub header_bytes: u32,
    /// Least bytes per second of a request's body; 0 = none.
    pub body_min_rate: u32,
    /// Requests of a connection; 0 = any number.
    pub requests: u32,
    /// Connections of one client address; 0 = any number.
    pub client_connections: u32,
    /// Of a request's body that is collected first, at most [`MAX_COLLECTED`]; 0 = it is passed on as it comes.
    pub client_body_buffer: u32,
    /// Of a response that is taken ahead, at most [`MAX_MESSAGE_BUFFER`].
    pub proxy_buffer: u32,
    /// Fields of a head, 1 to [`MAX_HEADERS`].
    pub headers: u16,
    /// Of a target, [`MIN_URI_BYTES`] or more.
    pub uri_bytes: u16,
    /// Pseudonym in `Via`; none where empty.
    pub via: Stretch,
    /// Name of the request id's field, lower case; none where empty.
    pub request_id: Stretch,
    /// Prefixes whose forwarding fields are continued.
    pub trusted: Stretch,
    /// Numbers of the rate limits that hold for every request.
    pub own_rate_limits: Stretch,
    /// 1: `X-Forwarded-*` are sent.
    pub x_forwarded: u8,
    /// 1: `Forwarded` is sent.
    pub forwarded: u8,
    /// 1: CONNECT is allowed.
    pub connect: u8,
    /// 1: `Upgrade` is passed on.
    pub upgrade: u8,
    /// 1: own responses name their cause.
    pub cause_header: u8,
    /// [`WhenFullKind`].
    pub when_full: u8,
    /// Of so many of 10,000 exchanges the log hears.
    pub log_per_ten_thousand: u16,
    /// Number of [`RateRecord`]s.
    pub rates: u32,
    /// Number of [`RouteRecord`]s.
    pub routes: u32,
    /// Number of [`ConditionRecord`]s.
    pub conditions: u32,
    /// Number of [`SplitRecord`]s.
    pub splits: u32,
    /// Number of [`EditRecord`]s.
    pub edits: u32,
    /// Number of [`PageRecord`]s.
    pub pages: u32,
    /// Number of words: stretches of the arena.
    pub words: u32,
    /// Number of prefixes.
    pub prefixes: u32,
    /// Number of `u16` numbers of rate limits.
    pub numbers: u32,
    /// Bytes of the arena.
    pub arena: u32,
    /// Zero.
    pub reserved: u32,
}

/// A token bucket for each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RateRecord {
    /// Tokens per second, times 1,000: 1 to [`MAX_MILLIS_PER_SECOND`].
    pub millis_per_second: u64,
    /// Its name.
    pub name: Stretch,
    /// Of [`RateKeyKind::Header`]: the header, lower case.
    pub header: Stretch,
    /// Most tokens, 1 to [`MAX_BURST`].
    pub burst: u32,
    /// [`RateKeyKind`].
    pub key: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RouteRecord {
    /// Its name.
    pub name: Stretch,
    /// By [`Self::host_kind`].
    pub host: Stretch,
    /// By [`Self::path_kind`].
    pub path: Stretch,
    /// Its conditions.
    pub conditions: Stretch,
    /// Its pools, of the table's splits.
    pub pools: Stretch,
    /// By [`Self::action`].
    pub first: Stretch,
    /// By [`Self::action`].
    pub second: Stretch,
    /// Changes to the request's fields.
    pub request_fields: Stretch,
    /// By [`Self::request_path_kind`].
    pub request_path: Stretch,
    /// By [`Self::request_host_kind`].
    pub request_host: Stretch,
    /// Changes to the response's fields.
    pub response_fields: Stretch,
    /// Numbers of the rate limits.
    pub rate_limits: Stretch,
    /// The higher are asked first.
    pub priority: i32,
    /// 0 = the listener's.
    pub response_header_ms: u32,
    /// 0 = the listener's.
    pub response_idle_ms: u32,
    /// 0 = the listener's.
    pub tunnel_ms: u32,
    /// Index of the pool that gets copies; [`NO_INDEX`] = none.
    pub mirror_pool: u32,
    /// Share of the requests that is copied, of 10,000.
    pub mirror_per_ten_thousand: u16,
    /// Of a redirection or a response.
    pub status: u16,
    /// Of a redirection; 0 = none.
    pub port: u16,
    /// [`HostKind`].
    pub host_kind: u8,
    /// [`PathKind`].
    pub path_kind: u8,
    /// [`ActionKind`].
    pub action: u8,
    /// [`Scheme`] of a redirection.
    pub scheme: u8,
    /// [`PathEditKind`] of a redirection.
    pub path_edit: u8,
    /// 1: a redirection keeps the query.
    pub keeps_query: u8,
    /// 1: a redirection names neither scheme nor host.
    pub relative: u8,
    /// [`PathEditKind`].
    pub request_path_kind: u8,
    /// [`HostEditKind`].
    pub request_host_kind: u8,
    /// Zero.
    pub reserved: u8,
}

/// A condition of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConditionRecord {
    /// Name of the header (lower case) or the parameter.
    pub name: Stretch,
    /// By [`Self::kind`] and [`Self::compare`].
    pub value: Stretch,
    /// [`ConditionKind`].
    pub kind: u8,
    /// [`Compare`]; 0 where a condition has no value.
    pub compare: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// A pool's share of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct SplitRecord {
    /// Index of the pool.
    pub pool: u32,
    /// 1 to [`MAX_SPLIT_WEIGHT`].
    pub weight: u32,
}

/// A change to fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct EditRecord {
    /// Name of the field.
    pub name: Stretch,
    /// Its value.
    pub value: Stretch,
    /// [`EditKind`].
    pub kind: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// A body of the proxy's own responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PageRecord {
    /// `Content-Type`.
    pub content_type: Stretch,
    /// At most [`MAX_BODY_BYTES`].
    pub body: Stretch,
    /// 400 to 599.
    pub status: u16,
    /// Zero.
    pub reserved: u16,
}

/// How the backends of a pool are used for HTTP; part of a pool's record whether a listener of HTTP uses the pool or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct HttpPoolRecord {
    /// Name of the header (lower case) or cookie that [`Self::hash`] is of, else empty.
    pub hash_name: Name,
    /// Name of the cookie that keeps clients at their backend; empty = none.
    pub cookie: Name,
    /// `Max-Age` of that cookie, seconds; 0 = until the browser closes.
    pub cookie_max_age_s: u32,
    /// Idle connections that a worker keeps per backend.
    pub idle_connections: u32,
    /// For how long.
    pub idle_ms: u32,
    /// Age that a connection may reach; 0 = any.
    pub lifetime_ms: u32,
    /// Requests of a connection; 0 = any number.
    pub requests: u32,
    /// Time to full weight of a backend that came back; 0 = none.
    pub slow_start_ms: u32,
    /// Breaker: failures in a row; 0 = not counted.
    pub breaker_consecutive: u32,
    /// Breaker: its window.
    pub breaker_window_ms: u32,
    /// Breaker: least requests of a window.
    pub breaker_least_requests: u32,
    /// Breaker: mean time to the response's head; 0 = not measured.
    pub breaker_latency_ms: u32,
    /// Breaker: how long it stays open.
    pub breaker_open_ms: u32,
    /// Statuses after which a request is tried again, 500 to 599 or 429; zeroes after the last.
    pub retry_statuses: [u16; MAX_RETRY_STATUSES],
    /// Retries per second that are always allowed.
    pub retry_budget_floor: u16,
    /// Percent of requests that may be retries.
    pub retry_budget_percent: u8,
    /// Further attempts, at most [`crate::proxy::MAX_RETRIES`].
    pub retry_attempts: u8,
    /// Sum of [`RETRY_ON_CONNECT`], [`RETRY_ON_RESET`] and [`RETRY_ON_TIMEOUT`].
    pub retry_on: u8,
    /// [`HashKind`].
    pub hash: u8,
    /// 1: the cookie is `Secure`.
    pub cookie_secure: u8,
    /// 1: there is a breaker. Without one, its other fields are 0.
    pub breaker: u8,
    /// Breaker: percent of failures; 0 = not counted.
    pub breaker_ratio_percent: u8,
    /// Percent of usable backends below which all are used; 0 = never.
    pub panic_percent: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// No connection.
pub const RETRY_ON_CONNECT: u8 = 1;
/// The connection ended before a response.
pub const RETRY_ON_RESET: u8 = 2;
/// No response in time.
pub const RETRY_ON_TIMEOUT: u8 = 4;

impl HttpPoolRecord {
    /// What the configuration's defaults are.
    pub const DEFAULT: Self = Self {
        hash_name: Name::EMPTY,
        cookie: Name::EMPTY,
        cookie_max_age_s: 0,
        idle_connections: 64,
        idle_ms: 60_000,
        lifetime_ms: 0,
        requests: 0,
        slow_start_ms: 0,
        breaker_consecutive: 5,
        breaker_window_ms: 10_000,
        breaker_least_requests: 20,
        breaker_latency_ms: 0,
        breaker_open_ms: 30_000,
        retry_statuses: [0; MAX_RETRY_STATUSES],
        retry_budget_floor: 10,
        retry_budget_percent: 20,
        retry_attempts: 1,
        retry_on: RETRY_ON_CONNECT | RETRY_ON_RESET,
        hash: HashKind::Source as u8,
        cookie_secure: 0,
        breaker: 1,
        breaker_ratio_percent: 0,
        panic_percent: 0,
        reserved: [0; 2],
    };

    /// The statuses without the zeroes after the last.
    pub fn statuses(&self) -> impl Iterator<Item = u16> {
        self.retry_statuses.into_iter().take_while(|status| *status != 0)
    }
}

impl RouteRecord {
    /// A route for everything that does nothing yet.
    pub fn new() -> Self {
        Self { mirror_pool: NO_INDEX, ..Self::default() }
    }
}

const _: () = {
    assert!(size_of::<HttpRecord>() == 8 + 14 * 4 + 4 + 4 * 8 + 8 + 10 * 4 + 4);
    assert!(size_of::<RateRecord>() == 32);
    assert!(size_of::<RouteRecord>() == 12 * 8 + 5 * 4 + 3 * 2 + 8 + 2);
    assert!(size_of::<ConditionRecord>() == 20);
    assert!(size_of::<SplitRecord>() == 8);
    assert!(size_of::<EditRecord>() == 20);
    assert!(size_of::<PageRecord>() == 20);
    assert!(size_of::<HttpPoolRecord>() == 128 + 11 * 4 + 32 + 2 + 8 + 2);
};
