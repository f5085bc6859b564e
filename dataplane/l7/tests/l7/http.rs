//! What does a user of an HTTP listener notice? Set-up and words for the tests below.

use std::sync::Arc;

use weir_http::cause::Cause;
use weir_http::routes::spec::{Action, Edits, Host, Path, Route, RouteTimes, Split};
use weir_l7::http::event::HttpGauge;
use weir_l7::http::rules::{HttpLimits, HttpListener, HttpTimes, Tell, WhenFull};
use weir_tcp::Events;

use crate::world::{POOL, Plan, World};

mod bodies;
mod drain;
mod exchanges;
mod heads;
mod own;
mod random;
mod routes;
mod trouble;
mod tunnels;

/// A listener without routes that passes everything to the pool and tells backends nothing.
pub(crate) fn listener() -> HttpListener {
    HttpListener {
        routes: Arc::new([]),
        default_pool: Some(POOL),
        times: HttpTimes::default(),
        limits: HttpLimits::default(),
        tell: Tell {
            x_forwarded: false,
            forwarded: false,
            via: "".into(),
            request_id: "".into(),
            trusted: vec![],
        },
        connect_allowed: false,
        upgrade_allowed: true,
        cause_header: true,
        error_pages: vec![],
        rate_limits: vec![],
        own_rate_limits: vec![],
        log_per_ten_thousand: 10_000,
        when_full: WhenFull::Refuse,
    }
}

/// A route of a path's prefix.
pub(crate) fn route(prefix: &str, action: Action) -> Route {
    Route {
        name: prefix.into(),
        priority: 0,
        host: Host::Any,
        path: Path::Prefix(prefix.into()),
        conditions: vec![],
        action,
        mirror: None,
        request: Edits::default(),
        response: Edits::default(),
        times: RouteTimes::default(),
        rate_limits: vec![],
    }
}

pub(crate) fn to_pool() -> Action {
    Action::Pools(vec![Split { pool: POOL, weight: 1 }])
}

pub(crate) fn plan() -> Plan {
    Plan { http: Some(listener()), ..Plan::default() }
}

pub(crate) fn with(change: impl FnOnce(&mut HttpListener)) -> Plan {
    let mut listener = listener();
    change(&mut listener);
    Plan { http: Some(listener), ..Plan::default() }
}

pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n\r\n")
}

pub(crate) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

impl World {
    /// What a connection's peer was sent and has not read yet, as text.
    pub(crate) fn got(&mut self, handle: usize) -> String {
        let read = self.reads(handle, usize::MAX);
        String::from_utf8_lossy(&read).into_owned()
    }

    pub(crate) fn says(&mut self, handle: usize, text: &str) {
        self.arrives(handle, text.as_bytes());
    }

    /// A client asks, and a new connection to a backend gets the request.
    pub(crate) fn exchange(&mut self, request: &str) -> (usize, usize) {
        let client = self.client();
        self.says(client, request);
        let upstream = self.syn();
        self.answer(upstream);
        (client, upstream)
    }

    /// The client gives up, backends close, time passes: nothing is left.
    pub(crate) fn ends(&mut self) {
        for handle in 0..self.fake.connections.len() {
            if !self.fake.connections[handle].is_released && self.fake.connections[handle].is_open {
                self.fake.tell(handle, Events::FINISHED);
                self.dies(handle, weir_tcp::Ended::Reset);
            }
        }
        self.advance(100_000);
        self.is_clean();
    }

    pub(crate) fn is_shut(&self, handle: usize) -> bool {
        let connection = &self.fake.connections[handle];
        connection.is_shut || connection.is_released && !connection.is_aborted
    }

    /// The cause of the exchange that was told last.
    pub(crate) fn last_cause(&self) -> Option<Cause> {
        self.around.told.last().unwrap().cause
    }

    pub(crate) fn exchanges(&self) -> i64 {
        self.books.gauge(HttpGauge::Exchanges)
    }
}
