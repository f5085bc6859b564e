//! What can a route ask of a request, and what does it do with it? As the configuration says it; checked by
//! [`crate::routes`] when it is indexed.

use weir_net::Prefix;

/// One route of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name.
    pub name: Box<str>,
    /// Routes of a higher priority are asked first; 0 unless configured.
    pub priority: i32,
    /// Which host.
    pub host: Host,
    /// Which path.
    pub path: Path,
    /// Further conditions; all must hold.
    pub conditions: Vec<Condition>,
    /// What to do.
    pub action: Action,
    /// Where copies of requests go.
    pub mirror: Option<Mirror>,
    /// Changes to the request on its way to the backend.
    pub request: Edits,
    /// Changes to the response on its way to the client.
    pub response: Edits,
    /// Times that differ from the listener's, milliseconds.
    pub times: RouteTimes,
    /// Which of the listener's rate limits holds as well, by its index.
    pub rate_limits: Vec<u16>,
}

/// Times of a route, milliseconds; `None`: the listener's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteTimes {
    /// Until the response's head is there.
    pub response_header_ms: Option<u32>,
    /// Silence within a response's body.
    pub response_idle_ms: Option<u32>,
    /// Silence of a tunnel.
    pub tunnel_ms: Option<u32>,
}

/// Which host a route is for. Names are compared without case and without port; in lower case here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Every host, and requests without one.
    Any,
    /// This one: `shop.example.com`.
    Exact(Box<str>),
    /// All that end in this, with at least one label more: `.example.com` of `*.example.com`.
    Suffix(Box<str>),
}

/// Which path a route is for. The request's path without query, as the client has sent it, `.` and `..` segments resolved and `%xx` of
/// unreserved characters decoded (RFC 3986 §6.2.2).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Every path.
    Any,
    /// This one.
    Exact(Box<str>),
    /// This one and what lies below: `/v1` is for `/v1` and `/v1/x`, not for `/v10`.
    Prefix(Box<str>),
    /// Matched by the whole expression (anchored at both ends), in linear time and bounded size.
    Regex(Box<str>),
}

/// A further condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The method is one of these.
    Method(Vec<Box<str>>),
    /// A header with this name (lower case) whose value does.
    Header(Box<str>, Value),
    /// A parameter of the query with this name (not decoded) whose value does.
    Query(Box<str>, Value),
    /// The client, as a trusted PROXY header tells or as it is.
    Source(Vec<Prefix>),
}

/// What a value must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Be there.
    Present,
    /// Not be there.
    Absent,
    /// Be this.
    Exact(Box<str>),
    /// Begin so.
    Prefix(Box<str>),
    /// Match as a whole.
    Regex(Box<str>),
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Passes the request to one of these pools, by weight (1 to 1,000,000).
    Pools(Vec<Split>),
    /// Sends the client elsewhere.
    Redirect(Redirect),
    /// Answers itself.
    Respond(Respond),
}

/// A pool's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Index of the pool.
    pub pool: u32,
    /// Share of the requests.
    pub weight: u32,
}

/// A redirection (RFC 9110 §15.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`; `None`: as the request.
    pub scheme: Option<Box<str>>,
    /// Another host; `None`: as the request.
    pub host: Option<Box<str>>,
    /// Another port; `None`: none is named when scheme or host change, else as the request.
    pub port: Option<u16>,
    /// Another path.
    pub path: PathEdit,
    /// Whether the query goes along.
    pub keeps_query: bool,
    /// Whether `Location` names neither scheme nor host: they stay as they are, and none of the three above is there.
    pub relative: bool,
}

/// A fixed response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Its `Content-Type`.
    pub content_type: Box<str>,
    /// Its body, at most 64 KiB.
    pub body: Box<[u8]>,
}

/// Where copies go. Their responses are discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Index of the pool.
    pub pool: u32,
    /// Share of the requests, of 10,000.
    pub per_ten_thousand: u16,
}

/// Changes to a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Changes to fields, in order.
    pub fields: Vec<FieldEdit>,
    /// Change of the path (of requests).
    pub path: PathEdit,
    /// Change of the host (of requests).
    pub host: HostEdit,
}

/// A change to fields. Values may hold `%{client}`, `%{host}`, `%{path}`, `%{route}`, `%{backend_address}`, `%{request_id}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldEdit {
    /// Replaces all fields of the name by one.
    Set(Box<str>, Box<str>),
    /// Adds one more.
    Add(Box<str>, Box<str>),
    /// Removes all of the name.
    Remove(Box<str>),
}

/// A change of the path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathEdit {
    /// None.
    #[default]
    Keep,
    /// All of it.
    Replace(Box<str>),
    /// What the route's prefix (or exact path) matched.
    ReplacePrefix(Box<str>),
}

/// A change of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostEdit {
    /// None.
    #[default]
    Keep,
    /// To this.
    Replace(Box<str>),
    /// To the backend's address and port.
    Backend,
}
