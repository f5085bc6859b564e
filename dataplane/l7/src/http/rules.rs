//! What does the configuration say of HTTP? Of a listener, and of a pool. Built off the packet path, immutable, shared by
//! all workers; sizes are bytes, times milliseconds.

use std::net::IpAddr;
use std::sync::Arc;

use weir_http::routes::spec::Route;

/// What a listener of protocol `http` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpListener {
    /// Its routes, in the order of the file. Built into a table once, by whoever makes the rules.
    pub routes: Arc<[Route]>,
    /// The pool of requests that no route takes; `None`: they are answered 404.
    pub default_pool: Option<u32>,
    /// Times.
    pub times: HttpTimes,
    /// Limits.
    pub limits: HttpLimits,
    /// What backends are told about clients.
    pub tell: Tell,
    /// Methods other than the registered ones and CONNECT.
    pub connect_allowed: bool,
    /// `Upgrade` is passed on and becomes a tunnel.
    pub upgrade_allowed: bool,
    /// Responses that the proxy makes itself name their cause in `weir-cause`.
    pub cause_header: bool,
    /// Bodies of the proxy's own responses, by status.
    pub error_pages: Vec<ErrorPage>,
    /// Rate limits of the listener; routes name them by index.
    pub rate_limits: Vec<RateLimit>,
    /// Those that hold for every request, by index.
    pub own_rate_limits: Vec<u16>,
    /// Of so many of 10,000 exchanges the access log hears; errors that the proxy makes are always told. 0: off.
    pub log_per_ten_thousand: u16,
    /// What happens to new connections when memory is at its ceiling.
    pub when_full: WhenFull,
}

impl Default for HttpListener {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            routes: Arc::default(),
            default_pool: None,
            times: HttpTimes::default(),
            limits: HttpLimits::default(),
            tell: Tell::default(),
            connect_allowed: false,
            upgrade_allowed: true,
            cause_header: true,
            error_pages: Vec::new(),
            rate_limits: Vec::new(),
            own_rate_limits: Vec::new(),
            log_per_ten_thousand: 0,
            when_full: WhenFull::Refuse,
        }
    }
}

/// What a client gets when memory is at its ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// 503 and the end of the connection.
    Refuse,
    /// RST.
    Reset,
}

/// Times of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpTimes {
    /// From a connection's start, or a request's first byte, to the end of its head.
    pub request_header_ms: u32,
    /// Silence within a request's body.
    pub request_body_ms: u32,
    /// Until the response's head is there, from the request's end.
    pub response_header_ms: u32,
    /// Silence within a response's body, whichever side is slow.
    pub response_idle_ms: u32,
    /// Between a response and the next request.
    pub keep_alive_ms: u32,
    /// Silence of a tunnel.
    pub tunnel_ms: u32,
}

impl Default for HttpTimes {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            request_header_ms: 10_000,
            request_body_ms: 30_000,
            response_header_ms: 60_000,
            response_idle_ms: 60_000,
            keep_alive_ms: 75_000,
            tunnel_ms: 3_600_000,
        }
    }
}

/// Limits of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Of a head, request line included.
    pub header_bytes: u32,
    /// Fields of a head, at most 128.
    pub headers: u16,
    /// Of a request's target.
    pub uri_bytes: u16,
    /// Of a request's body; 0: none.
    pub body_bytes: u64,
    /// Least bytes per second of a request's body, from its sixth second on; 0: none.
    pub body_min_rate: u32,
    /// Requests of a connection; 0: none.
    pub requests: u32,
    /// Connections of one client address, of this worker; 0: none.
    pub client_connections: u32,
    /// Of a request's body that is collected before a backend is asked; 0: it is passed on as it comes.
    pub client_body_buffer: u32,
    /// Of a response that is taken from the backend ahead of what the client reads; at most the client's TCP buffer acts.
    pub proxy_buffer: u32,
}

impl Default for HttpLimits {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            header_bytes: 16 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            body_bytes: 0,
            body_min_rate: 500,
            requests: 0,
            client_connections: 0,
            client_body_buffer: 0,
            proxy_buffer: 256 << 10,
        }
    }
}

/// What backends are told about clients. Fields of the same names that clients send are replaced, unless they come from `trusted`, whose are
/// continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tell {
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`.
    pub x_forwarded: bool,
    /// `Forwarded` (RFC 7239).
    pub forwarded: bool,
    /// The pseudonym in `Via` (RFC 9110 §7.6.3); empty: no `Via`.
    pub via: Box<str>,
    /// The request id's field, lower case; empty: none.
    pub request_id: Box<str>,
    /// Whose fields are continued.
    pub trusted: Vec<weir_net::Prefix>,
}

impl Tell {
    /// Whether an address's own fields are continued.
    #[inline]
    pub fn trusts(&self, address: std::net::IpAddr) -> bool {
        self.trusted.iter().any(|prefix| prefix.contains(address))
    }
}

impl Default for Tell {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            x_forwarded: true,
            forwarded: false,
            via: "weir".into(),
            request_id: "x-request-id".into(),
            trusted: Vec::new(),
        }
    }
}

/// A body for the proxy's own responses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPage {
    /// Of this status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: Box<str>,
    /// At most 64 KiB.
    pub body: Box<[u8]>,
}

/// A token bucket for each key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Its name.
    pub name: Box<str>,
    /// Whose bucket a request takes from.
    pub key: RateKey,
    /// Tokens that come per second, times 1,000.
    pub millis_per_second: u64,
    /// Most tokens of a bucket.
    pub burst: u32,
}

/// Whose bucket a request takes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// One for all.
    All,
    /// The client's address (IPv6: its first 64 bits).
    Client,
    /// The value of a header (lower case); requests without it have one bucket.
    Header(Box<str>),
}

/// How the backends of a pool are used for HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpPool {
    /// What picks a backend, where the pool's algorithm hashes.
    pub hash: HashBy,
    /// Keeps clients at their backend.
    pub sticky: Option<Sticky>,
    /// Idle connections that a worker keeps per backend; 0: none.
    pub idle_connections: u32,
    /// For how long.
    pub idle_ms: u32,
    /// How old a connection may become; 0: as it likes.
    pub lifetime_ms: u32,
    /// Requests of a connection; 0: as many as come.
    pub requests: u32,
    /// When another attempt is made.
    pub retry: Retry,
    /// When a backend is not used for a while.
    pub breaker: Option<BreakerRules>,
    /// How long a backend that came back takes to its full weight; 0: none.
    pub slow_start_ms: u32,
    /// Percent of backends that may be used, below which all are; 0: never.
    pub panic_percent: u8,
    /// Positions of members that serve only when no other can.
    pub backups: Vec<u16>,
}

impl Default for HttpPool {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            hash: HashBy::Source,
            sticky: None,
            idle_connections: 64,
            idle_ms: 60_000,
            lifetime_ms: 0,
            requests: 0,
            retry: Retry::default(),
            breaker: Some(BreakerRules::default()),
            slow_start_ms: 0,
            panic_percent: 0,
            backups: Vec::new(),
        }
    }
}

/// What of a request picks its backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    Source,
    /// A header's value (lower case); without it the client's address.
    Header(Box<str>),
    /// A cookie's value; without it the client's address.
    Cookie(Box<str>),
    /// The path.
    Path,
}

/// A cookie that names the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub cookie: Box<str>,
    /// Its `Max-Age`, seconds; 0: until the browser closes.
    pub max_age_s: u32,
    /// `Secure`.
    pub secure: bool,
}

/// When another attempt is made: only where the backend can't have acted on the request (no byte of it acknowledged, or it is
/// idempotent), and only within the budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Further attempts.
    pub attempts: u8,
    /// No connection.
    pub on_connect: bool,
    /// The connection ended before a response.
    pub on_reset: bool,
    /// No response in time.
    pub on_timeout: bool,
    /// These statuses, of idempotent requests.
    pub on_status: Vec<u16>,
    /// Percent of the last seconds' requests that may be retries, at least [`Self::budget_floor`] of them.
    pub budget_percent: u8,
    /// Retries per second that are always allowed.
    pub budget_floor: u16,
}

impl Default for Retry {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            attempts: 1,
            on_connect: true,
            on_reset: true,
            on_timeout: false,
            on_status: Vec::new(),
            budget_percent: 20,
            budget_floor: 10,
        }
    }
}

/// When a backend is not used for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures in a row; 0: don't count.
    pub consecutive: u32,
    /// Percent of failures in a window; 0: don't count.
    pub ratio_percent: u8,
    /// The window.
    pub window_ms: u32,
    /// Least requests of a window whose ratio counts.
    pub least_requests: u32,
    /// Mean time to the response's head within a window above which it opens; 0: don't measure.
    pub latency_ms: u32,
    /// How long it stays open before one request may test the backend.
    pub open_ms: u32,
}

impl Default for BreakerRules {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            consecutive: 5,
            ratio_percent: 0,
            window_ms: 10_000,
            least_requests: 20,
            latency_ms: 0,
            open_ms: 30_000,
        }
    }
}

/// Who the client is: as a trusted PROXY header tells, or as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}
