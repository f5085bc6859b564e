//! What is the configuration, once it cannot be wrong any more? Names are resolved, ranges checked, defaults filled in.

use std::net::IpAddr;
use std::sync::Arc;

use weir_abi::proxy::{ProxyRecord, SendProxy, TcpRecord};
use weir_abi::record::{AdminState, Algorithm, Mode, OnDown, TIMEOUTS};
use weir_access::{List, Prefix, Rate};
use weir_l7::http::rules::{HttpListener, HttpPool};

use crate::access_log;
use crate::health::check::Check;
use crate::state::Admin;

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// Workers, sizes, ports.
    pub node: Node,
    /// In the order of the file.
    pub vips: Vec<Vip>,
    /// In the order of the file.
    pub listeners: Vec<Listener>,
    /// In the order of the file.
    pub pools: Vec<Arc<Pool>>,
    /// Where exchanges are written down.
    pub access_log: Option<access_log::Settings>,
    /// `[control]`.
    pub control: Control,
    /// In the order of the file.
    pub access_lists: Vec<Arc<AccessList>>,
    /// `[drain]`: what is run when the node is drained, and when it is ready again.
    pub on_drain: Option<Vec<String>>,
    /// As above.
    pub on_ready: Option<Vec<String>>,
}

/// Prefixes of clients, the longest of which decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessList {
    /// Unique.
    pub name: String,
    /// What no prefix has is denied.
    pub default_deny: bool,
    /// Each once, with whether it is denied; by network, then length.
    pub prefixes: Vec<(Prefix, bool)>,
    /// Ready for look-ups.
    pub built: List,
}

/// What a listener asks of new flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Position among the lists.
    pub list: Option<usize>,
    /// At most 64.
    pub rates: Vec<Rate>,
    /// Flows at once of a source; 0 = unlimited.
    pub connections_per_source: u32,
}

/// How the daemon keeps the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Commits the operator's file to the git work tree that it is in.
    pub git: bool,
}

/// `[dataplane]`, `[timeouts]` and the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// One CPU per worker; `u16::MAX` = not pinned.
    pub worker_cpus: Vec<u16>,
    /// Sleep when idle.
    pub adaptive: bool,
    /// Entries per worker.
    pub flows_ipv4: u32,
    /// Entries per worker.
    pub flows_ipv6: u32,
    /// Buffers per port, for all workers together; 0 = the dataplane's default.
    pub buffers: u32,
    /// Bytes, 0 = the dataplane's default.
    pub buffer_bytes: u32,
    /// `None` = the fixed hash.
    pub hash_key: Option<[u8; 16]>,
    /// Per second and worker.
    pub icmp_rate: u32,
    /// Packets for the kernel per second and worker; 0 = the dataplane's default.
    pub exception_rate: u32,
    /// Backend indices are below this.
    pub max_backends: u32,
    /// First and last.
    pub snat_ports: (u16, u16),
    /// How long proxied connections may take to end in order when the dataplane is told to end.
    pub drain_grace_ms: u32,
    /// By [`weir_abi::record::Timeout`].
    pub timeouts_ms: [u32; TIMEOUTS],
    /// Connections of the TCP engine, per worker.
    pub tcp_connections: u32,
    /// Bytes that they may hold, per worker.
    pub tcp_memory_bytes: u64,
    /// Bytes that HTTP keeps for heads, collected bodies and answers, per worker.
    pub http_memory_bytes: u64,
    /// In the order of the file.
    pub ports: Vec<Port>,
}

/// A NIC or virtual device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Unique.
    pub name: String,
    /// Driver and device.
    pub device: String,
    /// Largest IP packet.
    pub mtu: u16,
    /// 0 = untagged.
    pub vlan: u16,
    /// 0 = one per worker.
    pub queues: u16,
    /// 0 = the dataplane's default.
    pub descriptors: u16,
    /// The kernel's interface for what is addressed to the port itself.
    pub exception: Option<String>,
    /// Own addresses with their on-link prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Sources of fullnat.
    pub snat: Vec<IpAddr>,
    /// Gateways are routes of length 0.
    pub routes: Vec<Route>,
}

/// Where a prefix goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network address.
    pub prefix: IpAddr,
    /// Prefix length.
    pub length: u8,
    /// On-link next hop of the same family.
    pub gateway: IpAddr,
}

/// An address that Weir answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vip {
    /// Unique.
    pub name: String,
    /// Unique.
    pub address: IpAddr,
}

/// A vip, protocol and ports with a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Unique.
    pub name: String,
    /// Position among the vips.
    pub vip: usize,
    /// First and last.
    pub ports: (u16, u16),
    /// 6 or 17.
    pub protocol: u8,
    /// How packets reach the backend.
    pub mode: Mode,
    /// Position among the pools; none only where an HTTP listener has no default pool.
    pub pool: Option<usize>,
    /// UDP port of GUE.
    pub gue_port: u16,
    /// 0 or 1.
    pub gue_variant: u8,
    /// Flows of a backend that is down.
    pub on_down: OnDown,
    /// As the file says.
    pub state: Admin,
    /// There exactly in mode `proxy`.
    pub proxy: Option<Proxy>,
    /// There exactly with protocol `http`; its pools are positions among the pools here.
    pub http: Option<Arc<HttpListener>>,
    /// Who may begin flows.
    pub access: Access,
}

/// What a proxy listener does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its settings, without the place of its trusted prefixes.
    pub settings: ProxyRecord,
    /// Network and prefix length of clients whose PROXY header is believed.
    pub trusted: Vec<(IpAddr, u8)>,
}

/// A set of backends with an algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Unique.
    pub name: String,
    /// How a new flow picks its slot.
    pub algorithm: Algorithm,
    /// Slots of the Maglev table, prime; longest schedule of round-robin.
    pub slots: u32,
    /// Proxied connections to its backends.
    pub upstream: TcpRecord,
    /// What they start with.
    pub send_proxy: SendProxy,
    /// How HTTP uses them.
    pub http: HttpPool,
    /// How backends are probed.
    pub health: Option<Arc<Check>>,
    /// Where fewer percent of the backends that may serve are up, health is ignored; 0: where none is; `None`: never.
    pub panic_percent: Option<u8>,
    /// Over this a backend that is up again comes back to its weight; 0 = at once.
    pub slow_start_ms: u32,
    /// In the order of the file.
    pub backends: Vec<Backend>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Unique in its pool.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// 0 = the client's.
    pub port: u16,
    /// As the file says.
    pub weight: u16,
    /// As the file says.
    pub state: AdminState,
    /// Proxied connections at once; 0 = unlimited.
    pub max_connections: u32,
    /// HTTP: serves only where no other can.
    pub backup: bool,
}

/// The word of the configuration.
pub fn algorithm_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Maglev => "maglev",
        Algorithm::RoundRobin => "round-robin",
        Algorithm::SourceHash => "source-hash",
        Algorithm::LeastConn => "least-conn",
        Algorithm::RandomTwo => "random-two",
    }
}

/// The word of the configuration.
pub fn protocol_name(protocol: u8) -> &'static str {
    match protocol {
        6 => "tcp",
        17 => "udp",
        _ => "unknown",
    }
}

/// `80` or `8000-8099`.
pub fn format_ports((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}
