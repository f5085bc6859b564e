//! What does the file say? Every field with its place, nothing resolved yet.
//!
//! Missing or wrong fields were reported already and are `None` here, so that validation can go on with the rest.

pub mod access;
pub mod control;
pub mod drain;
pub mod exception;
pub mod health;
pub mod http;
pub mod http_pool;
pub mod proxy;
pub mod route;

use std::net::IpAddr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use weir_abi::proxy::{MAX_TCP_CONNECTIONS, MAX_TCP_MEMORY, MIN_TCP_CONNECTIONS, MIN_TCP_MEMORY};
use weir_abi::record::{AdminState, Algorithm, Mode, OnDown, TIMEOUTS};

use self::http::AccessLog;
use self::route::HttpRoute;
use crate::diagnostic::{Diagnostic, Diagnostics, Located, Span};
use crate::reader::TableReader;
use crate::state::Admin;
use crate::units;

/// The whole file.
#[derive(Debug, Default)]
pub struct Schema {
    /// `[dataplane]`.
    pub dataplane: Dataplane,
    /// `[timeouts]`, by [`weir_abi::record::Timeout`].
    pub timeouts: [Option<Located<Duration>>; TIMEOUTS],
    /// `[[port]]`.
    pub ports: Vec<Port>,
    /// `[[vip]]`.
    pub vips: Vec<Vip>,
    /// `[[listener]]`.
    pub listeners: Vec<Listener>,
    /// `[[pool]]`.
    pub pools: Vec<Pool>,
    /// `[[route]]`.
    pub routes: Vec<HttpRoute>,
    /// `[access_log]`.
    pub access_log: Option<AccessLog>,
    /// `[[access_list]]`.
    pub access_lists: Vec<access::AccessList>,
    /// `[control]`.
    pub control: control::Control,
    /// `[drain]`.
    pub drain: drain::Drain,
}

/// Which CPUs run workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// As many as the machine can spare.
    Auto,
    /// So many.
    Count(u32),
    /// Exactly these CPUs.
    Cpus(Vec<u16>),
}

/// `[dataplane]`.
#[derive(Debug, Default)]
pub struct Dataplane {
    /// `workers`.
    pub workers: Option<Located<Workers>>,
    /// `idle`: true = adaptive.
    pub adaptive: Option<Located<bool>>,
    /// `flow_table.ipv4`.
    pub flows_ipv4: Option<Located<u32>>,
    /// `flow_table.ipv6`.
    pub flows_ipv6: Option<Located<u32>>,
    /// `buffers`.
    pub buffers: Option<Located<u32>>,
    /// `buffer_bytes`.
    pub buffer_bytes: Option<Located<u32>>,
    /// `hash_key`.
    pub hash_key: Option<Located<[u8; 16]>>,
    /// `icmp_rate`.
    pub icmp_rate: Option<Located<u32>>,
    /// `exception_rate`.
    pub exception_rate: Option<Located<u32>>,
    /// `max_backends`.
    pub max_backends: Option<Located<u32>>,
    /// `snat_ports`.
    pub snat_ports: Option<Located<(u16, u16)>>,
    /// `tcp_connections`.
    pub tcp_connections: Option<Located<u32>>,
    /// `tcp_memory`, bytes.
    pub tcp_memory: Option<Located<u64>>,
    /// `http_memory`, bytes.
    pub http_memory: Option<Located<u64>>,
}

/// `[[port]]`.
#[derive(Debug)]
pub struct Port {
    /// Place of the section.
    pub span: Span,
    /// `name`.
    pub name: Option<Located<String>>,
    /// `device`.
    pub device: Option<Located<String>>,
    /// `addresses`.
    pub addresses: Vec<Located<(IpAddr, u8)>>,
    /// `gateways`.
    pub gateways: Vec<Located<IpAddr>>,
    /// `snat`.
    pub snat: Vec<Located<IpAddr>>,
    /// `mtu`.
    pub mtu: Option<Located<u32>>,
    /// `vlan`.
    pub vlan: Option<Located<u32>>,
    /// `queues`.
    pub queues: Option<Located<u32>>,
    /// `descriptors`.
    pub descriptors: Option<Located<u32>>,
    /// `exception`; `None` inside = off.
    pub exception: Option<Located<Option<String>>>,
    /// `[[port.route]]`.
    pub routes: Vec<Route>,
}

/// `[[port.route]]`.
#[derive(Debug)]
pub struct Route {
    /// `prefix`.
    pub prefix: Option<Located<(IpAddr, u8)>>,
    /// `via`.
    pub via: Option<Located<IpAddr>>,
}

/// `[[vip]]`.
#[derive(Debug)]
pub struct Vip {
    /// `name`.
    pub name: Option<Located<String>>,
    /// `address`.
    pub address: Option<Located<IpAddr>>,
}

/// `[[listener]]`.
#[derive(Debug)]
pub struct Listener {
    /// Place of the section.
    pub span: Span,
    /// `name`.
    pub name: Option<Located<String>>,
    /// `vip`, by name.
    pub vip: Option<Located<String>>,
    /// `port`.
    pub ports: Option<Located<(u16, u16)>>,
    /// `protocol`: 6 or 17.
    pub protocol: Option<Located<u8>>,
    /// Place of `protocol = "http"`.
    pub of_http: Option<Span>,
    /// `mode`.
    pub mode: Option<Located<Mode>>,
    /// `pool`, by name.
    pub pool: Option<Located<String>>,
    /// `gue_port`.
    pub gue_port: Option<Located<u32>>,
    /// `gue_variant`.
    pub gue_variant: Option<Located<u32>>,
    /// `on_down`.
    pub on_down: Option<Located<OnDown>>,
    /// `state`.
    pub state: Option<Located<Admin>>,
    /// What is for mode `proxy`.
    pub proxy: proxy::Proxy,
    /// What it asks of new flows.
    pub access: access::Access,
}

/// `[[pool]]`.
#[derive(Debug)]
pub struct Pool {
    /// Place of the section.
    pub span: Span,
    /// `name`.
    pub name: Option<Located<String>>,
    /// `algorithm`.
    pub algorithm: Option<Located<Algorithm>>,
    /// `slots`.
    pub slots: Option<Located<u32>>,
    /// `on_down`.
    pub on_down: Option<Located<OnDown>>,
    /// `panic_threshold`, percent; `None` inside = off.
    pub panic_threshold: Option<Located<Option<u8>>>,
    /// `slow_start`; 0 = off.
    pub slow_start: Option<Located<Duration>>,
    /// `[pool.health_check]`.
    pub health_check: Option<health::HealthCheck>,
    /// What is for listeners of mode `proxy`.
    pub upstream: proxy::Upstream,
    /// `[[pool.backend]]`.
    pub backends: Vec<Backend>,
}

/// `[[pool.backend]]`.
#[derive(Debug)]
pub struct Backend {
    /// `name`.
    pub name: Option<Located<String>>,
    /// `address`; port 0 = the client's.
    pub address: Option<Located<(IpAddr, u16)>>,
    /// `weight`.
    pub weight: Option<Located<u32>>,
    /// `state`.
    pub state: Option<Located<AdminState>>,
    /// `max_connections`; 0 = unlimited.
    pub max_connections: Option<Located<u32>>,
    /// `backup`.
    pub backup: Option<Located<bool>>,
}

const ON_DOWN: &[(&str, OnDown)] =
    &[("reselect", OnDown::Reselect), ("reset", OnDown::Reset), ("keep", OnDown::Keep)];

/// Reads the file; every mistake goes to `diagnostics`. `None` where it is not TOML.
pub fn parse(text: &str, diagnostics: &mut Diagnostics) -> Option<Schema> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0).into();
        diagnostics.push(Diagnostic::error(span, format!("TOML syntax: {}", error.message())));
    }
    if !errors.is_empty() {
        return None;
    }
    let root = Span { start: 0, end: 0 };
    let mut reader = TableReader::new("the file", document.get_ref(), root, diagnostics);
    let mut schema = Schema::default();
    reader.table("dataplane", "[dataplane]", "[dataplane] and its fields below it", |table| {
        schema.dataplane = read_dataplane(table);
    });
    reader.table("timeouts", "[timeouts]", "[timeouts] and its fields below it", |table| {
        schema.timeouts = read_timeouts(table);
    });
    schema.ports = reader.tables("port", "port", read_port);
    schema.vips = reader.tables("vip", "vip", read_vip);
    schema.listeners = reader.tables("listener", "listener", read_listener);
    schema.pools = reader.tables("pool", "pool", read_pool);
    schema.routes = reader.tables("route", "route", route::read);
    schema.access_lists = reader.tables("access_list", "access_list", access::read_list);
    reader.table("access_log", "[access_log]", "[access_log] and its fields below it", |table| {
        schema.access_log = Some(http::read_access_log(table));
    });
    reader.table("control", "[control]", "[control] and its fields below it", |table| {
        schema.control = control::read(table);
    });
    reader.table("drain", "[drain]", "[drain] and its fields below it", |table| {
        schema.drain = drain::read(table);
    });
    reader.not_built("bgp", "remove [bgp]: route the vips to this node statically");
    reader.misplaced("health", "there is no [health]", "write [pool.health_check] below the pool");
    reader.finish();
    Some(schema)
}

fn read_name(table: &mut TableReader<'_, '_>) -> Option<Located<String>> {
    table.require("name", "\"...\"");
    read_optional_name(table)
}

fn read_optional_name(table: &mut TableReader<'_, '_>) -> Option<Located<String>> {
    table.parsed("name", "1 to 63 letters, digits, '.', '_' or '-'", |text| {
        let fits = (1..=63).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits { Ok(text.to_owned()) } else { Err(format!("\"{text}\" cannot be a name")) }
    })
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not an IP address"))
}

const MEMORY_EXPECTED: &str = "a size from \"1MiB\" to \"1024GiB\": a whole number and KiB, MiB or GiB";

fn read_dataplane(table: &mut TableReader<'_, '_>) -> Dataplane {
    const MOST_FLOWS: u32 = (1 << 24) - 1;
    let mut flows = (None, None);
    let workers = read_workers(table);
    let adaptive = table.word("idle", &[("spin", false), ("adaptive", true)], &[]);
    table.table("flow_table", "flow_table", "flow_table = { ipv4 = 1048576, ipv6 = 262144 }", |inner| {
        flows.0 = inner.integer("ipv4", 1, MOST_FLOWS, "entries per worker");
        flows.1 = inner.integer("ipv6", 1, MOST_FLOWS, "entries per worker");
    });
    Dataplane {
        workers,
        adaptive,
        flows_ipv4: flows.0,
        flows_ipv6: flows.1,
        buffers: table.integer("buffers", 512, 1 << 24, "packet buffers per port"),
        buffer_bytes: table.integer("buffer_bytes", 1_024, 65_000, "bytes"),
        hash_key: table.parsed(
            "hash_key",
            "32 hexadecimal digits, or any text of 16 bytes or fewer",
            parse_key,
        ),
        icmp_rate: table.integer("icmp_rate", 0, 10_000_000, "ICMP errors per second and worker"),
        exception_rate: table.integer("exception_rate", 1, 10_000_000, "packets per second and worker"),
        max_backends: table.integer("max_backends", 1, 1 << 22, "backends"),
        snat_ports: table.parsed("snat_ports", "a range like \"1024-65535\"", units::parse_port_range),
        tcp_connections: table.integer(
            "tcp_connections",
            MIN_TCP_CONNECTIONS,
            MAX_TCP_CONNECTIONS,
            "connections per worker: a proxied one takes two, the client's and the backend's",
        ),
        tcp_memory: proxy::size(table, "tcp_memory", MIN_TCP_MEMORY..=MAX_TCP_MEMORY, MEMORY_EXPECTED),
        http_memory: proxy::size(table, "http_memory", MIN_TCP_MEMORY..=MAX_TCP_MEMORY, MEMORY_EXPECTED),
    }
}

/// 32 hex digits are the key's bytes; a shorter text is its bytes, zero-padded.
fn parse_key(text: &str) -> Result<[u8; 16], String> {
    let mut key = [0u8; 16];
    if text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        for (byte, pair) in key.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(pair).unwrap_or("");
            *byte = u8::from_str_radix(digits, 16).map_err(|_| "the key is not hexadecimal".to_owned())?;
        }
        return Ok(key);
    }
    if text.is_empty() || text.len() > 16 {
        return Err(format!("a key of {} bytes does not fit", text.len()));
    }
    for (byte, from) in key.iter_mut().zip(text.bytes()) {
        *byte = from;
    }
    Ok(key)
}

fn read_workers(table: &mut TableReader<'_, '_>) -> Option<Located<Workers>> {
    const EXPECTED: &str = "\"auto\", a number, or CPUs as \"1-3\" or [1, 2, 3]";
    let (_, value) = table.take("workers")?;
    let span: Span = value.span().into();
    let workers = match value.get_ref() {
        DeValue::String(text) if text == "auto" => Ok(Workers::Auto),
        DeValue::String(text) => units::parse_cpu_list(text).map(Workers::Cpus),
        DeValue::Integer(_) => {
            let count = table.integer_of("workers", value, 1, 64, "workers")?;
            Ok(Workers::Count(count.value))
        }
        DeValue::Array(array) => {
            let mut cpus = Vec::new();
            for element in array.iter() {
                let cpu = table.integer_of("workers", element, 0, 65_534, "(a CPU number)")?;
                cpus.push(cpu.value as u16);
            }
            let twice = cpus.iter().enumerate().find(|(at, cpu)| cpus.iter().take(*at).any(|c| c == *cpu));
            match twice {
                Some((_, cpu)) => Err(format!("CPU {cpu} is listed twice")),
                None => Ok(Workers::Cpus(cpus)),
            }
        }
        _ => Err("the value is of the wrong type".to_owned()),
    };
    let bounded = workers.and_then(|workers| match &workers {
        Workers::Cpus(cpus) if cpus.is_empty() || cpus.len() > 64 => {
            Err(format!("{} CPUs are listed, 1 to 64 can be", cpus.len()))
        }
        _ => Ok(workers),
    });
    match bounded {
        Ok(workers) => Some(Located::new(workers, span)),
        Err(error) => {
            let finding = Diagnostic::error(span, format!("workers: {error}"));
            table.diagnostics().push(finding.help(format!("write {EXPECTED}")));
            None
        }
    }
}

/// Names of the timeouts, by [`weir_abi::record::Timeout`].
pub const TIMEOUT_NAMES: [&str; TIMEOUTS] = [
    "tcp_embryonic",
    "tcp_established",
    "tcp_closing",
    "udp",
    "fragment",
    "neighbour",
    "tcp_time_wait",
    "tcp_fin_wait",
    "tcp_user",
    MINIMUM_RTO,
];
const MINIMUM_RTO: &str = "tcp_min_rto";

fn read_timeouts(table: &mut TableReader<'_, '_>) -> [Option<Located<Duration>>; TIMEOUTS] {
    TIMEOUT_NAMES.map(|name| {
        if name != MINIMUM_RTO {
            return proxy::time(table, name);
        }
        table.parsed(name, "a duration from \"10ms\" to \"10s\": a whole number and ms or s", |text| {
            let duration = units::parse_duration(text)?;
            let inside = (10..=10_000).contains(&duration.as_millis());
            if inside { Ok(duration) } else { Err(format!("\"{text}\" is out of range")) }
        })
    })
}

fn read_port(table: &mut TableReader<'_, '_>) -> Port {
    let name = read_name(table);
    table.require("device", "\"af_xdp:eth1\"");
    let device = table.parsed("device", DEVICE_EXPECTED, parse_device);
    Port {
        span: table.span(),
        name,
        device,
        addresses: table.parsed_list("addresses", "\"address/length\"", units::parse_prefixed),
        gateways: table.parsed_list("gateways", "an IP address", parse_ip),
        snat: table.parsed_list("snat", "an IP address", parse_ip),
        mtu: table.integer("mtu", 68, 9_216, "bytes"),
        vlan: table.integer("vlan", 1, 4_094, "(802.1Q; leave it out for untagged)"),
        queues: table.integer("queues", 1, 64, "receive queues"),
        descriptors: table.integer("descriptors", 64, 32_768, "descriptors per queue"),
        exception: exception::read(table),
        routes: table.tables("route", "port.route", |route| {
            route.require("prefix", "\"198.18.64.0/18\"");
            route.require("via", "\"198.18.0.2\"");
            Route {
                prefix: route.parsed("prefix", "\"address/length\"", units::parse_prefixed),
                via: route.parsed("via", "an IP address", parse_ip),
            }
        }),
    }
}

const DEVICE_EXPECTED: &str = "\"pci:0000:3b:00.0\", \"af_xdp:eth1\", \"af_packet:eth1\", \"tap:weir0\", \"pcap:in,out\", \"ring:name\" or \"null:\"";

fn parse_device(text: &str) -> Result<String, String> {
    let Some((kind, rest)) = text.split_once(':') else {
        return Err(format!("\"{text}\" does not name its driver"));
    };
    match kind {
        "pci" | "af_xdp" | "af_packet" | "tap" | "pcap" | "ring" if rest.is_empty() => {
            Err(format!("\"{text}\" names no device"))
        }
        "af_xdp" | "af_packet" | "tap" if rest.split(',').next().unwrap_or("").len() > 15 => {
            Err(format!("\"{text}\": an interface name has at most 15 bytes"))
        }
        "pci" | "af_xdp" | "af_packet" | "tap" | "pcap" | "ring" | "null" if text.len() <= 255 => {
            Ok(text.to_owned())
        }
        "pci" | "af_xdp" | "af_packet" | "tap" | "pcap" | "ring" | "null" => {
            Err(format!("a device of {} bytes is too long, 255 fit", text.len()))
        }
        _ => Err(format!("\"{kind}\" is not a driver")),
    }
}

fn read_vip(table: &mut TableReader<'_, '_>) -> Vip {
    let name = read_name(table);
    table.require("address", "\"198.18.100.1\"");
    let address = table.parsed("address", "an IP address", parse_ip);
    if let Some(announce) = table.boolean("announce")
        && announce.value
    {
        let finding = Diagnostic::error(announce.span, "announce = true is not built yet");
        table.diagnostics().push(finding.help("remove it and route the vip to this node statically"));
    }
    Vip { name, address }
}

fn read_listener(table: &mut TableReader<'_, '_>) -> Listener {
    let name = read_name(table);
    for (field, example) in [("vip", "\"...\""), ("port", "80"), ("protocol", "\"tcp\""), ("mode", "\"nat\"")]
    {
        table.require(field, example);
    }
    let protocol =
        table.word("protocol", &[("tcp", (6, false)), ("udp", (17, false)), ("http", (6, true))], &["https"]);
    let of_http = protocol.as_ref().filter(|protocol| protocol.value.1).map(|protocol| protocol.span);
    // requests that no route takes may be answered 404
    if of_http.is_none() {
        table.require("pool", "\"...\"");
    }
    let modes = [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat, Mode::Proxy]
        .map(|mode| (mode.name(), mode));
    Listener {
        span: table.span(),
        name,
        vip: table.string("vip", "the name of a vip"),
        ports: read_listener_port(table),
        protocol: protocol.map(|protocol| protocol.map(|(number, _)| number)),
        of_http,
        mode: table.word("mode", &modes, &[]),
        pool: table.string("pool", "the name of a pool"),
        gue_port: table.integer("gue_port", 1, 65_535, "(a UDP port)"),
        gue_variant: table.integer("gue_variant", 0, 1, ""),
        on_down: table.word("on_down", ON_DOWN, &[]),
        state: drain::read_state(table),
        proxy: proxy::read_proxy(table),
        access: access::read(table),
    }
}

fn read_listener_port(table: &mut TableReader<'_, '_>) -> Option<Located<(u16, u16)>> {
    let (_, value) = table.take("port")?;
    let value: &Spanned<DeValue<'_>> = value;
    if let DeValue::String(text) = value.get_ref() {
        return match units::parse_port_range(text) {
            Ok(range) => Some(Located::new(range, value.span().into())),
            Err(error) => {
                let finding = Diagnostic::error(value.span().into(), format!("port: {error}"));
                table.diagnostics().push(finding.help("write a port like 80 or a range like \"8000-8099\""));
                None
            }
        };
    }
    let port = table.integer_of("port", value, 1, 65_535, "(or a range like \"8000-8099\")")?;
    Some(port.map(|port| (port as u16, port as u16)))
}

fn read_pool(table: &mut TableReader<'_, '_>) -> Pool {
    let name = read_name(table);
    let algorithms = [
        ("maglev", Algorithm::Maglev),
        ("round-robin", Algorithm::RoundRobin),
        ("source-hash", Algorithm::SourceHash),
        ("least-conn", Algorithm::LeastConn),
        ("random-two", Algorithm::RandomTwo),
    ];
    table.misplaced("health", "health is not a field of a pool", "write [pool.health_check]");
    Pool {
        span: table.span(),
        name,
        algorithm: table.word("algorithm", &algorithms, &["least-latency", "ring-hash"]),
        slots: table.integer("slots", 2, weir_balance::maglev::MAX_SLOTS, "slots, a prime number"),
        on_down: table.word("on_down", ON_DOWN, &[]),
        panic_threshold: health::read_panic_threshold(table),
        slow_start: health::read_slow_start(table),
        health_check: health::read(table),
        upstream: proxy::read_upstream(table),
        backends: table.tables("backend", "pool.backend", read_backend),
    }
}

fn read_backend(table: &mut TableReader<'_, '_>) -> Backend {
    let name = read_name(table);
    table.require("address", "\"198.18.1.11:8080\"");
    let states = [("ready", AdminState::Ready), ("drain", AdminState::Drain), ("maint", AdminState::Maint)];
    table.misplaced(
        "health",
        "health is not a field of a backend",
        "its pool's [pool.health_check] is for all its backends",
    );
    Backend {
        name,
        address: table.parsed(
            "address",
            "\"ip:port\", \"[ipv6]:port\", or an address alone to keep the client's port",
            units::parse_backend_address,
        ),
        weight: table.integer("weight", 0, 65_535, "(0 = no new flows)"),
        state: table.word("state", &states, &[]),
        max_connections: table.integer(
            "max_connections",
            0,
            u32::MAX,
            "proxied connections of this node (0 = unlimited)",
        ),
        backup: table.boolean("backup"),
    }
}
