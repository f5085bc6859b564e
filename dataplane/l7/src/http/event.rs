//! What does the proxy tell about its exchanges? To the access log, and to who looks after backends; and what is counted.

use weir_http::cause::Cause;

use super::rules::Client;

/// Something that the control process should hear of.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// An exchange is over.
    Exchange(&'a Exchange<'a>),
    /// A breaker has changed.
    Breaker(BreakerChange),
}

/// An exchange that is over, for the access log. Times are microseconds; `u32::MAX`: it didn't come so far.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// The generation that it began with, by which the indices below are to be understood.
    pub generation: u64,
    /// Index of the listener.
    pub listener: u16,
    /// The route, by its place in the listener's; `u16::MAX`: none.
    pub route: u16,
    /// The pool; `u32::MAX`: none.
    pub pool: u32,
    /// The last backend; `u32::MAX`: none.
    pub backend: u32,
    /// Who asked.
    pub client: Client,
    /// As the client has sent them; empty where the head was refused.
    pub method: &'a [u8],
    /// The request's target.
    pub target: &'a [u8],
    /// The host with its port.
    pub host: &'a [u8],
    /// `User-Agent`.
    pub user_agent: &'a [u8],
    /// `Referer`.
    pub referer: &'a [u8],
    /// The request's id.
    pub request_id: &'a [u8],
    /// 10 or 11.
    pub version: u8,
    /// The status that the client got; 0: none.
    pub status: u16,
    /// Why the proxy answered itself or ended it.
    pub cause: Option<Cause>,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body, chunk framing not counted.
    pub bytes_out: u64,
    /// Attempts made: 1 without retries, 0 where no backend was asked.
    pub attempts: u8,
    /// Whether an idle connection was used.
    pub is_reused: bool,
    /// From the moment at which the first byte of the request was seen to the end of its head; 0 where it came as one.
    pub head_us: u32,
    /// In the queue.
    pub queue_us: u32,
    /// Until the last attempt's connection was there.
    pub connect_us: u32,
    /// From passing the request on to the response's head.
    pub response_us: u32,
    /// From the first byte of the request to the end of the response.
    pub total_us: u32,
}

/// A state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BreakerState {
    /// The backend is used.
    Closed = 0,
    /// It isn't.
    Open = 1,
    /// One request at a time tests it.
    HalfOpen = 2,
}

/// Why a breaker has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BreakerReason {
    /// Failures in a row.
    Consecutive = 0,
    /// Too many failures of a window's requests.
    Ratio = 1,
    /// Too slow.
    Latency = 2,
    /// It was open for its time.
    Elapsed = 3,
    /// The test succeeded.
    TestSucceeded = 4,
    /// The test failed.
    TestFailed = 5,
}

/// A breaker has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerChange {
    /// Index of the backend.
    pub backend: u32,
    /// The state that it has now.
    pub state: BreakerState,
    /// Why.
    pub reason: BreakerReason,
    /// Failures in a row.
    pub consecutive: u32,
    /// Requests of the window.
    pub requests: u32,
    /// Failures of the window.
    pub failures: u32,
}

/// What is counted of an HTTP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpCount {
    /// Requests whose head was read.
    Requests,
    /// Responses by the hundred, the proxy's own included: 1xx.
    Informational,
    /// 2xx.
    Successful,
    /// 3xx.
    Redirection,
    /// 4xx.
    ClientError,
    /// 5xx.
    ServerError,
    /// Responses or ends of the proxy's own making; [`Accounts::cause`] says why.
    ///
    /// [`Accounts::cause`]: crate::connections::Accounts
    Own,
    /// Attempts after a first.
    Retries,
    /// Retries that the budget did not allow.
    RetriesDenied,
    /// Requests that a rate limit refused.
    RateLimited,
    /// Requests whose rate limit's key found no place among those that are remembered.
    RateCrowded,
    /// Connections that became tunnels.
    Tunnels,
    /// Copies sent to mirrors.
    Mirrored,
    /// Copies that were not sent: no connection, or memory.
    MirrorsDropped,
    /// Requests that would have been copied, but for a body that was not there as a whole.
    MirrorsSkipped,
    /// Keep-alive connections ended for their silence.
    KeepAliveTimeouts,
}

/// What is counted of a backend for HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendHttpCount {
    /// Requests sent.
    Requests,
    /// Requests on a connection that was idle before.
    Reused,
    /// Responses 5xx.
    ServerErrors,
    /// Requests without a usable response.
    Failures,
    /// Times that the breaker opened.
    BreakerOpened,
}

/// What there are of now: gauges, told by their changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HttpGauge {
    /// Exchanges in progress.
    Exchanges,
    /// Idle client connections.
    IdleClients,
    /// Tunnels.
    Tunnels,
}
