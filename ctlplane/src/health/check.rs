//! What is a health check, once it cannot be wrong any more? Made by validation, used by the probes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::schedule::Rhythm;

/// How the backends of a pool are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// With what.
    pub kind: Kind,
    /// Between two probes of a backend.
    pub interval: Duration,
    /// Width of the window in which a probe lies, in percent of the interval.
    pub jitter_percent: u8,
    /// Between two probes while the last result contradicts what is believed.
    pub fast_interval: Duration,
    /// Longest that a probe may take.
    pub timeout: Duration,
    /// Successes in a row that make a backend up.
    pub rise: u8,
    /// Failures in a row that make it down.
    pub fall: u8,
    /// Instead of the backend's port.
    pub port: Option<u16>,
    /// Instead of the backend's address.
    pub address: Option<IpAddr>,
    /// Where probes come from.
    pub source: Option<IpAddr>,
    /// Whether backends are taken as down until their first probe.
    pub initially_down: bool,
    /// Whether probes are addressed to the vip and go through the listener's tunnel.
    pub through: Through,
}

/// Which way probes take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Through {
    /// Through the tunnel where a listener of mode `dsr`, `ipip` or `gue` uses the pool, else directly.
    #[default]
    Auto,
    /// As the listener's packets.
    Tunnel,
    /// To the backend's address.
    Direct,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection is accepted.
    Tcp,
    /// A request is answered as expected.
    Http(Http),
    /// The same inside TLS.
    Https(Http, Tls),
    /// A datagram is answered as expected.
    Udp(Udp),
    /// A command exits with 0.
    Exec(Exec),
}

impl Kind {
    /// The word of the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(_) => "http",
            Self::Https(..) => "https",
            Self::Udp(_) => "udp",
            Self::Exec(_) => "exec",
        }
    }
}

/// A request and what is expected of its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Instead of the probed address.
    pub host: Option<String>,
    /// Statuses that are good, both ends inclusive.
    pub statuses: Vec<(u16, u16)>,
    /// Names in small letters, with text that their value contains; an empty text: that there is one.
    pub headers: Vec<(String, String)>,
    /// Text that the body's first 64 KiB contain; empty: the body is not read.
    pub body: String,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Whether the certificate has to be good.
    pub verify: bool,
    /// Certificates of authorities, PEM; the system's where none is named.
    pub ca_file: Option<String>,
    /// The name that the certificate has to have, and that is sent; the address where none is given.
    pub server_name: Option<String>,
    /// Certificate chain and key that are shown, PEM.
    pub client: Option<(String, String)>,
}

/// A datagram and what is expected of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Udp {
    /// What is sent.
    pub payload: Vec<u8>,
    /// What the answer contains; empty: anything.
    pub expect: Vec<u8>,
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exec {
    /// The program, an absolute path, and its arguments.
    pub command: Vec<String>,
}

impl Check {
    /// For the schedule.
    pub fn rhythm(&self) -> Rhythm {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1);
        Rhythm {
            interval_us: micros(self.interval),
            fast_us: micros(self.fast_interval),
            timeout_us: micros(self.timeout),
            jitter_percent: self.jitter_percent,
            rise: self.rise,
            fall: self.fall,
        }
    }
}

/// A backend that is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub name: BackendName,
    /// Where probes go.
    pub to: SocketAddr,
    /// Where they come from, where that is given or the kernel has the NIC's own address.
    pub source: Option<IpAddr>,
    /// The kernel's interface of the NIC that reaches the backend; used where it exists.
    pub interface: Option<Arc<str>>,
    /// Set where probes are addressed to a vip and reach this backend by the listener's mode.
    pub tunnel: Option<Tunnel>,
    /// How.
    pub check: Arc<Check>,
}

/// Whose mode a probe takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Index of the listener.
    pub listener: u32,
    /// Index of the backend.
    pub backend: u32,
}

/// A pool and a backend of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendName {
    /// Pool.
    pub pool: Arc<str>,
    /// Backend.
    pub backend: Arc<str>,
}

impl std::fmt::Display for BackendName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.pool, self.backend)
    }
}
