//! What does the file say about proxied TCP? The settings of a listener, of its pool, and `tcp` of either side.

use std::net::IpAddr;
use std::time::Duration;

use toml::de::DeValue;
use weir_abi::proxy::{
    AcceptProxy, Congestion, MAX_BACKLOG, MAX_BUFFER_BYTES, MAX_INITIAL_WINDOW, MAX_KEEP_ALIVE_PROBES,
    MAX_MSS, MAX_QUEUE, MAX_RETRIES, MAX_TIME_MS, MIN_BUFFER_BYTES, MIN_MSS, MIN_TIME_MS, SendProxy,
    SynCookies,
};

use super::http::{self, Http};
use super::http_pool::{self, HttpPool};
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::reader::TableReader;
use crate::units;

/// What only listeners of mode `proxy` have.
#[derive(Debug, Default)]
pub struct Proxy {
    /// `[listener.tcp]`.
    pub tcp: Tcp,
    /// `timeouts`.
    pub timeouts: Timeouts,
    /// `queue`.
    pub queue: Option<Located<Queue>>,
    /// `max_connections`; 0 = unlimited.
    pub max_connections: Option<Located<u32>>,
    /// `retries`.
    pub retries: Option<Located<u32>>,
    /// `accept_proxy`.
    pub accept_proxy: Option<Located<AcceptProxy>>,
    /// `[listener.http]`.
    pub http: Http,
    /// `trusted`, as far as it was understood.
    pub trusted: Vec<Located<(IpAddr, u8)>>,
    /// How many prefixes `trusted` lists, wrong ones included.
    pub trusted_listed: usize,
    /// Each field that is there, with its place.
    pub given: Vec<(&'static str, Span)>,
}

/// `timeouts` of a listener.
#[derive(Debug, Default)]
pub struct Timeouts {
    /// `connect`.
    pub connect: Option<Located<Duration>>,
    /// `idle`.
    pub idle: Option<Located<Duration>>,
    /// `half_close`.
    pub half_close: Option<Located<Duration>>,
    /// `handshake`.
    pub handshake: Option<Located<Duration>>,
    /// Those of HTTP, by [`HTTP_TIMES`].
    pub http: [Option<Located<Duration>>; HTTP_TIMES.len()],
    /// Each field that is there, with its place.
    pub given: Vec<(&'static str, Span)>,
}

/// Timeouts that only listeners of protocol `http` have.
pub const HTTP_TIMES: [&str; 6] =
    ["request_header", "request_body", "response_header", "response_idle", "keep_alive", "tunnel"];
/// Timeouts that listeners of protocol `http` have not.
pub const TCP_TIMES: [&str; 2] = ["idle", "half_close"];

/// `queue` of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// `size`; 0 = none.
    pub size: u32,
    /// `timeout`.
    pub timeout: Option<Duration>,
}

/// `tcp` of a listener or a pool.
#[derive(Debug, Default)]
pub struct Tcp {
    /// Place of the section, where it is there.
    pub span: Option<Span>,
    /// `nodelay`.
    pub nodelay: Option<Located<bool>>,
    /// `keep_alive`; `None` inside = off.
    pub keep_alive: Option<Located<Option<KeepAlive>>>,
    /// `initial_window`.
    pub initial_window: Option<Located<u32>>,
    /// `congestion`.
    pub congestion: Option<Located<Congestion>>,
    /// `fast_open`.
    pub fast_open: Option<Located<bool>>,
    /// `mss`.
    pub mss: Option<Located<u32>>,
    /// `buffer`.
    pub buffer: Option<Located<u32>>,
    /// `slow_start_after_idle`.
    pub slow_start_after_idle: Option<Located<bool>>,
    /// `syn_cookies`.
    pub syn_cookies: Option<Located<SynCookies>>,
    /// `backlog`.
    pub backlog: Option<Located<u32>>,
    /// `ecn`.
    pub ecn: Option<Located<bool>>,
}

/// `keep_alive` where it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// `idle`.
    pub idle: Duration,
    /// `interval`.
    pub interval: Option<Duration>,
    /// `probes`.
    pub probes: Option<u32>,
}

/// What only pools of proxy listeners have.
#[derive(Debug, Default)]
pub struct Upstream {
    /// `[pool.tcp]`.
    pub tcp: Tcp,
    /// `send_proxy`.
    pub send_proxy: Option<Located<SendProxy>>,
    /// `[pool.http]`.
    pub http: HttpPool,
    /// Each field that is there, with its place.
    pub given: Vec<(&'static str, Span)>,
}

const TIME_EXPECTED: &str = "a duration from \"100ms\" to \"24h\": a whole number and ms, s, m or h";
const ACCEPT: &[(&str, AcceptProxy)] =
    &[("off", AcceptProxy::Off), ("v1", AcceptProxy::V1), ("v2", AcceptProxy::V2), ("any", AcceptProxy::Any)];
const SEND: &[(&str, SendProxy)] = &[("off", SendProxy::Off), ("v1", SendProxy::V1), ("v2", SendProxy::V2)];
const CONGESTION: &[(&str, Congestion)] = &[("cubic", Congestion::Cubic), ("newreno", Congestion::NewReno)];
const COOKIES: &[(&str, SynCookies)] =
    &[("auto", SynCookies::Auto), ("always", SynCookies::Always), ("never", SynCookies::Never)];

/// Reads a duration that may be used for connections.
pub(super) fn time(table: &mut TableReader<'_, '_>, name: &'static str) -> Option<Located<Duration>> {
    table.parsed(name, TIME_EXPECTED, |text| {
        let duration = units::parse_duration(text)?;
        let inside = (u128::from(MIN_TIME_MS)..=u128::from(MAX_TIME_MS)).contains(&duration.as_millis());
        if inside { Ok(duration) } else { Err(format!("\"{text}\" is out of range")) }
    })
}

/// Reads a size within bounds; `expected` names them.
pub(super) fn size(
    table: &mut TableReader<'_, '_>,
    name: &'static str,
    bounds: std::ops::RangeInclusive<u64>,
    expected: &str,
) -> Option<Located<u64>> {
    table.parsed(name, expected, |text| {
        let bytes = units::parse_size(text)?;
        if bounds.contains(&bytes) { Ok(bytes) } else { Err(format!("\"{text}\" is out of range")) }
    })
}

/// The fields of a `[[listener]]` that are for mode `proxy`.
pub(super) fn read_proxy(table: &mut TableReader<'_, '_>) -> Proxy {
    let names = ["tcp", "timeouts", "queue", "max_connections", "retries", "accept_proxy", "trusted", "http"];
    let given = table.places(&names);
    let mut proxy = Proxy { given, ..Proxy::default() };
    table.table("tcp", "listener.tcp", "tcp = { nodelay = true }, or [listener.tcp]", |inner| {
        proxy.tcp = read_tcp(inner, true);
    });
    table.table("timeouts", "timeouts of the listener", "timeouts = { idle = \"1h\" }", |inner| {
        let given = inner.places(&[HTTP_TIMES.as_slice(), &TCP_TIMES].concat());
        proxy.timeouts = Timeouts {
            given,
            connect: time(inner, "connect"),
            idle: time(inner, "idle"),
            half_close: time(inner, "half_close"),
            handshake: time(inner, "handshake"),
            http: HTTP_TIMES.map(|name| time(inner, name)),
        };
    });
    table.table("queue", "queue", "queue = { size = 1000, timeout = \"5s\" }", |inner| {
        inner.require("size", "1000");
        let span = inner.span();
        let size = inner.integer("size", 0, MAX_QUEUE, "connections (0 = no queue)");
        let timeout = time(inner, "timeout").map(|timeout| timeout.value);
        proxy.queue = size.map(|size| Located::new(Queue { size: size.value, timeout }, span));
    });
    proxy.http = http::read_listener(table);
    proxy.max_connections =
        table.integer("max_connections", 0, u32::MAX, "connections of this node (0 = unlimited)");
    proxy.retries = table.integer("retries", 0, MAX_RETRIES.into(), "further backends");
    proxy.accept_proxy = table.word("accept_proxy", ACCEPT, &[]);
    proxy.trusted_listed = table.array_length("trusted").unwrap_or(0);
    proxy.trusted = table.parsed_list("trusted", "\"address/length\"", units::parse_prefixed);
    proxy
}

/// The fields of a `[[pool]]` that are for listeners of mode `proxy`.
pub(super) fn read_upstream(table: &mut TableReader<'_, '_>) -> Upstream {
    let mut upstream = Upstream { given: table.places(&["tcp", "send_proxy"]), ..Upstream::default() };
    table.table("tcp", "pool.tcp", "tcp = { nodelay = true }, or [pool.tcp]", |inner| {
        upstream.tcp = read_tcp(inner, false);
    });
    upstream.send_proxy = table.word("send_proxy", SEND, &[]);
    upstream.http = http_pool::read(table);
    upstream
}

fn read_tcp(table: &mut TableReader<'_, '_>, of_listener: bool) -> Tcp {
    let mut tcp = Tcp {
        span: Some(table.span()),
        nodelay: table.boolean("nodelay"),
        keep_alive: read_keep_alive(table),
        initial_window: table.integer("initial_window", 1, MAX_INITIAL_WINDOW.into(), "segments"),
        congestion: table.word("congestion", CONGESTION, &["bbr"]),
        mss: table.integer("mss", MIN_MSS.into(), MAX_MSS.into(), "bytes of payload"),
        buffer: size(
            table,
            "buffer",
            u64::from(MIN_BUFFER_BYTES)..=u64::from(MAX_BUFFER_BYTES),
            "a size from \"4KiB\" to \"1GiB\": a whole number and KiB, MiB or GiB",
        )
        .map(|buffer| buffer.map(|bytes| bytes as u32)),
        slow_start_after_idle: table.boolean("slow_start_after_idle"),
        ecn: table.boolean("ecn"),
        ..Tcp::default()
    };
    if of_listener {
        tcp.fast_open = table.boolean("fast_open");
        tcp.syn_cookies = table.word("syn_cookies", COOKIES, &[]);
        tcp.backlog = table.integer("backlog", 1, MAX_BACKLOG, "half-open connections per worker");
    } else {
        for name in ["fast_open", "syn_cookies", "backlog"] {
            let message = format!("{name} is about clients, not about connections to backends");
            table.misplaced(name, &message, "remove it here and set it in [listener.tcp]");
        }
    }
    tcp
}

/// `"off"`, or a table.
fn read_keep_alive(table: &mut TableReader<'_, '_>) -> Option<Located<Option<KeepAlive>>> {
    let (key, value) = table.take("keep_alive")?;
    let span: Span = value.span().into();
    match value.get_ref() {
        DeValue::String(text) if text == "off" => Some(Located::new(None, span)),
        DeValue::Table(inner) => {
            let mut reader = table.inside("keep_alive", inner, key);
            reader.require("idle", "\"5m\"");
            let idle = time(&mut reader, "idle");
            let interval = time(&mut reader, "interval").map(|interval| interval.value);
            let probes = reader.integer("probes", 1, MAX_KEEP_ALIVE_PROBES.into(), "probes");
            reader.finish();
            let probes = probes.map(|probes| probes.value);
            idle.map(|idle| Located::new(Some(KeepAlive { idle: idle.value, interval, probes }), span))
        }
        _ => {
            table.diagnostics().push(
                Diagnostic::error(span, "keep_alive is neither \"off\" nor a table")
                    .help("write \"off\" or { idle = \"5m\", interval = \"75s\", probes = 9 }"),
            );
            None
        }
    }
}
