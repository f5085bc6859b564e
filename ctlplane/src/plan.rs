//! What memory does a configuration ask for, and where are its ceilings? By the sizes that the packet path's own crates tell.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use weir_abi::buffers::Buffers;
use weir_abi::columns::{BackendColumn, HttpBackendColumn, UpstreamColumn};
use weir_access::Per;
use weir_access::counts::Counts;
use weir_access::policy::{RATED_SOURCES, counted_sources};
use weir_access::rate::Buckets;
use weir_l7::http::footprint::{RATE_KEYS, footprint as http_footprint};
use weir_tcp::{EngineConfig, Handle};

use crate::api::SCHEMA;
use crate::model::Model;
use crate::units::about_size;

/// Bytes of a huge page as `weir hugepages` reserves them.
const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of a backend's counters, per worker.
const COUNTERS: u64 = 8
    * (BackendColumn::COLUMNS.len() + UpstreamColumn::COLUMNS.len() + HttpBackendColumn::COLUMNS.len())
        as u64;

/// The budget of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Workers.
    pub workers: u64,
    /// What one worker takes, besides its share of the packet buffers.
    pub per_worker: Vec<Part>,
    /// What connections take, by their state; parts of what is above.
    pub per_connection: Vec<State>,
    /// Where connections and data end: what is beyond is refused.
    pub ceilings: Vec<Ceiling>,
    /// Bytes of packet buffers: of all ports, and those for small pieces of data.
    pub packet_buffers: u64,
    /// Bytes of flow tables, of all workers.
    pub flow_tables: u64,
    /// Huge pages of 2 MiB for both.
    pub huge_pages: u64,
    /// Bytes of ordinary memory, of all workers.
    pub ordinary: u64,
    /// What the workers share; part of the ordinary memory.
    #[serde(default)]
    pub shared: Vec<Part>,
}

/// Something that takes memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What.
    pub what: String,
    /// Bytes.
    pub bytes: u64,
    /// Whether it lies in huge pages.
    pub is_huge: bool,
    /// Which field of the configuration sizes it; empty: none does.
    pub field: String,
    /// What makes it as large.
    pub by: String,
}

/// A connection in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Which state.
    pub state: String,
    /// Bytes of records.
    pub bytes: u64,
    /// What comes on top while it lasts, at least and at most.
    pub on_top: [u64; 2],
}

/// A limit that admission enforces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Which field of the configuration.
    pub field: String,
    /// Per worker.
    pub per_worker: u64,
    /// `bytes` or `connections`.
    pub unit: String,
    /// What happens there.
    pub then: String,
}

impl Plan {
    /// Bytes of all of it, of which every worker has its own parts.
    pub fn total(&self) -> u64 {
        self.packet_buffers + self.flow_tables + self.ordinary
    }
}

/// The budget of a model.
pub fn plan(model: &Model) -> Plan {
    let node = &model.node;
    let workers = node.worker_cpus.len().max(1) as u64;
    let connections = node.tcp_connections as usize;
    let config = EngineConfig { connections, time_waits: connections, ..EngineConfig::default() };
    let tcp = config.footprint();
    let http = http_footprint::<Handle>(workers as u16);
    let flows = weir_l4::footprint::footprint(node.flows_ipv4, node.flows_ipv6);
    let buffers = Buffers::new(node.buffers, node.buffer_bytes);
    let packet_buffers = buffers.of_port() * node.ports.len() as u64 + Buffers::SMALL.of_port();
    let data = node.tcp_memory_bytes.min(buffers.of_queues(workers as u32));
    let proxied = model.listeners.iter().any(|listener| listener.proxy.is_some());
    let of_http = model.listeners.iter().any(|listener| listener.http.is_some());
    let part = |what: &str, bytes: u64, field: &str, value: String| Part {
        what: what.to_owned(),
        bytes,
        is_huge: field.starts_with("flow_table."),
        field: field.to_owned(),
        by: format!("{field} = {value}"),
    };
    let mut per_worker = vec![
        part(
            "flow table of IPv4",
            flows.records_v4 + flows.index_v4,
            "flow_table.ipv4",
            node.flows_ipv4.to_string(),
        ),
        part(
            "flow table of IPv6",
            flows.records_v6 + flows.index_v6,
            "flow_table.ipv6",
            node.flows_ipv6.to_string(),
        ),
        part(
            "counters of backends",
            u64::from(node.max_backends) * COUNTERS,
            "max_backends",
            node.max_backends.to_string(),
        ),
    ];
    if proxied {
        let of_connections = |what, bytes| part(what, bytes, "tcp_connections", connections.to_string());
        per_worker.push(of_connections("TCP connections and their index", tcp.total));
        per_worker.push(of_connections("TCP sessions", connections as u64 / 2 * http.session));
        per_worker.push(Part {
            what: "buckets of rate limits".to_owned(),
            bytes: http.rates,
            is_huge: false,
            field: String::new(),
            by: format!("{RATE_KEYS} keys"),
        });
        if of_http {
            let records = connections as u64 * (http.client + http.upstream);
            per_worker.push(of_connections("HTTP clients and upstreams", records));
            let (what, bytes) = ("heads, bodies and answers of HTTP", node.http_memory_bytes);
            per_worker.push(part(what, bytes, "http_memory", about_size(bytes)));
        }
    }
    let shared = shared(model, (u64::from(node.flows_ipv4) + u64::from(node.flows_ipv6)) * workers);
    let huge: u64 = per_worker.iter().filter(|part| part.is_huge).map(|part| part.bytes).sum();
    let ordinary: u64 = per_worker.iter().filter(|part| !part.is_huge).map(|part| part.bytes).sum();
    let pages = |bytes: u64| bytes.div_ceil(HUGE_PAGE);
    // each table is a file of its own, in whole pages
    let tables = [flows.records_v4, flows.records_v6, flows.index_v4, flows.index_v6];
    let huge_pages = pages(packet_buffers) + workers * tables.into_iter().map(pages).sum::<u64>();
    Plan {
        schema: SCHEMA,
        workers,
        per_worker,
        per_connection: if proxied { states(model, tcp, http, of_http) } else { Vec::new() },
        ceilings: if proxied { ceilings(model, data, of_http) } else { Vec::new() },
        packet_buffers,
        flow_tables: huge * workers,
        huge_pages,
        ordinary: ordinary * workers + shared.iter().map(|part| part.bytes).sum::<u64>(),
        shared,
    }
}

/// Access: lists that some listener names, once each, and what remembers sources.
fn shared(model: &Model, flows: u64) -> Vec<Part> {
    let part = |what: String, bytes: usize, by: String| Part {
        what,
        bytes: bytes as u64,
        is_huge: false,
        field: String::new(),
        by,
    };
    let named = |at: usize| model.listeners.iter().any(|listener| listener.access.list == Some(at));
    let lists = model.access_lists.iter().enumerate().filter(|(at, _)| named(*at));
    let mut parts: Vec<Part> = lists
        .map(|(_, list)| {
            let by = format!("{} prefixes", list.prefixes.len());
            part(format!("access list {}", list.name), list.built.bytes(), by)
        })
        .collect();
    let mut access = model.listeners.iter().map(|listener| &listener.access);
    if access.clone().any(|access| access.connections_per_source != 0) {
        let sources = counted_sources(flows);
        let by = format!("{sources} sources at most");
        parts.push(part("counts of flows by source".to_owned(), Counts::bytes(sources), by));
    }
    if access.any(|access| access.rates.iter().any(|rate| rate.per == Per::Source)) {
        let by = format!("{RATED_SOURCES} sources at once");
        parts.push(part("rates of new flows by source".to_owned(), Buckets::bytes(RATED_SOURCES), by));
    }
    parts
}

fn states(
    model: &Model,
    tcp: weir_tcp::Footprint,
    http: weir_l7::http::footprint::Footprint,
    of_http: bool,
) -> Vec<State> {
    let buffer = |of: &dyn Fn(&crate::model::Listener) -> Option<u32>| {
        model.listeners.iter().filter_map(of).max().map_or(0, u64::from)
    };
    let client = buffer(&|listener| Some(listener.proxy.as_ref()?.settings.client.buffer_bytes));
    let upstream = model.pools.iter().map(|pool| u64::from(pool.upstream.buffer_bytes)).max().unwrap_or(0);
    let head = buffer(&|listener| Some(listener.http.as_ref()?.limits.header_bytes));
    let body = buffer(&|listener| Some(listener.http.as_ref()?.limits.client_body_buffer));
    let state = |state: &str, bytes: u64, least: u64, most: u64| State {
        state: state.to_owned(),
        bytes,
        on_top: [least, most],
    };
    let mut states = vec![
        state("half-open", tcp.connection, 0, 0),
        state("TIME-WAIT", tcp.time_wait, 0, 0),
        state("TCP session, both connections", 2 * tcp.connection + http.session, 0, client + upstream),
    ];
    if of_http {
        let (small, large) = http.buffers;
        let most = client + upstream + head.min(large) * 2 + body;
        states.push(state("idle client of HTTP", tcp.connection + http.client, 0, 0));
        states.push(state("idle upstream of HTTP", tcp.connection + http.upstream, 0, 0));
        let both = 2 * tcp.connection + http.client + http.upstream;
        states.push(state("exchange of HTTP, both connections", both, small, most));
    }
    states
}

fn ceilings(model: &Model, data: u64, of_http: bool) -> Vec<Ceiling> {
    let ceiling = |field: &str, per_worker: u64, unit: &str, then: &str| Ceiling {
        field: field.to_owned(),
        per_worker,
        unit: unit.to_owned(),
        then: then.to_owned(),
    };
    let node = &model.node;
    let mut ceilings = vec![
        ceiling(
            "tcp_connections",
            node.tcp_connections.into(),
            "connections",
            "further SYNs are dropped; a proxied connection takes two",
        ),
        ceiling("tcp_memory", data, "bytes", "windows close, and data out of order is dropped"),
    ];
    if of_http {
        let then = "new connections are refused: 503, or RST with when_full = \"reset\"";
        ceilings.push(ceiling("http_memory", node.http_memory_bytes, "bytes", then));
    }
    ceilings
}

/// As text for people.
pub fn render(plan: &Plan) -> String {
    let mut text = String::new();
    let plural = if plan.workers == 1 { "" } else { "s" };
    let _ = writeln!(text, "{} worker{plural}; each takes", plan.workers);
    for part in &plan.per_worker {
        let place = if part.is_huge { "huge pages" } else { "memory" };
        let _ =
            writeln!(text, "  {:<36} {:>10}  {place:<10}  {}", part.what, about_size(part.bytes), part.by);
    }
    if !plan.shared.is_empty() {
        let _ = writeln!(text, "the workers share");
    }
    for part in &plan.shared {
        let _ = writeln!(text, "  {:<36} {:>10}  memory      {}", part.what, about_size(part.bytes), part.by);
    }
    if !plan.per_connection.is_empty() {
        let _ = writeln!(text, "a connection takes, of that and of its ceilings");
    }
    for state in &plan.per_connection {
        let [least, most] = state.on_top;
        let more = match most {
            0 => String::new(),
            most if least == 0 => format!(", and up to {} of data", about_size(most)),
            most => format!(", and {} to {} of heads and data", about_size(least), about_size(most)),
        };
        let _ = writeln!(text, "  {:<36} {:>6} bytes{more}", state.state, state.bytes);
    }
    if !plan.ceilings.is_empty() {
        let _ = writeln!(text, "ceilings, per worker");
    }
    for ceiling in &plan.ceilings {
        let number = match ceiling.unit.as_str() {
            "bytes" => about_size(ceiling.per_worker),
            unit => format!("{} {unit}", ceiling.per_worker),
        };
        let _ = writeln!(text, "  {:<16} {number:>20}  {}", ceiling.field, ceiling.then);
    }
    let _ = writeln!(text, "the node takes");
    let _ = writeln!(text, "  {:<36} {:>10}", "packet buffers", about_size(plan.packet_buffers));
    let _ = writeln!(text, "  {:<36} {:>10}", "flow tables", about_size(plan.flow_tables));
    let _ = writeln!(
        text,
        "  {:<36} {:>10}  {} of 2 MiB: weir hugepages reserve",
        "huge pages for both",
        about_size(plan.huge_pages * HUGE_PAGE),
        plan.huge_pages
    );
    let _ = writeln!(text, "  {:<36} {:>10}", "ordinary memory of workers", about_size(plan.ordinary));
    text
}
