//! The model of a schema: names become positions, absent fields their defaults.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weir_abi::proxy::{AcceptProxy, ProxyRecord, SendProxy, TcpRecord};
use weir_abi::record::{AdminState, Algorithm, Mode, OnDown, TIMEOUTS};
use weir_balance::maglev::DEFAULT_SLOTS;
use weir_balance::round_robin::DEFAULT_MAX_LEN;

use weir_l7::http::rules::{HttpListener, HttpPool};

use super::{DEFAULT_MTU, health};
use crate::access_log;
use crate::diagnostic::Located;
use crate::drain::DEFAULT_GRACE;
use crate::health::check::{Check, Through};
use crate::model::{self, Model};
use crate::schema::drain::Drain;
use crate::schema::exception;
use crate::schema::health::HealthCheck;
use crate::schema::{self, Schema};
use crate::state::Admin;
use crate::units::network;

const DEFAULT_TIMEOUTS_MS: [u32; TIMEOUTS] =
    [10_000, 900_000, 30_000, 60_000, 2_000, 30_000, 60_000, 60_000, 300_000, 200];
const DEFAULT_WEIGHT: u32 = 100;
/// Flows of IPv4, per worker.
const DEFAULT_FLOWS_V4: u32 = 1_048_576;
/// Flows of IPv6, per worker.
const DEFAULT_FLOWS_V6: u32 = 262_144;
/// Backends, removed ones that still hold flows included.
const DEFAULT_MAX_BACKENDS: u32 = 65_536;
/// Those above are the kernel's own, for health checks.
const DEFAULT_SNAT_PORTS: (u16, u16) = (1_024, weir_abi::probes::FIRST_PORT - 1);
/// Connections of a worker's TCP engine.
pub(super) const DEFAULT_TCP_CONNECTIONS: u32 = 65_536;
/// Bytes that they hold at most.
pub(super) const DEFAULT_TCP_MEMORY: u64 = 256 << 20;
/// Bytes that HTTP keeps for heads, collected bodies and answers.
pub(super) const DEFAULT_HTTP_MEMORY: u64 = 64 << 20;
/// Idle timeout of a proxy listener.
pub(super) const DEFAULT_IDLE: Duration = Duration::from_millis(ProxyRecord::DEFAULT.idle_ms as u64);
/// As Linux: RFC 1122 §4.2.3.6 leaves it open.
const DEFAULT_KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(75);
/// As Linux.
const DEFAULT_KEEP_ALIVE_PROBES: u32 = 9;
/// Width of the window of a probe.
const DEFAULT_JITTER_PERCENT: u8 = 10;
/// Successes in a row that make a backend up.
const DEFAULT_RISE: u8 = 2;
/// Failures in a row that make it down.
const DEFAULT_FALL: u8 = 3;
/// How long a connection may wait in a queue.
const DEFAULT_QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The model of what was understood; `None` where something needed is missing (and was reported).
pub(super) fn build(
    schema: &Schema,
    worker_cpus: Vec<u16>,
    http: &HashMap<usize, Arc<HttpListener>>,
    access_log: Option<access_log::Settings>,
    access: super::access::Access,
) -> Option<Model> {
    let dataplane = &schema.dataplane;
    let or = |field: &Option<Located<u32>>, default: u32| field.as_ref().map_or(default, |f| f.value);
    let mut timeouts_ms = DEFAULT_TIMEOUTS_MS;
    for (slot, given) in timeouts_ms.iter_mut().zip(&schema.timeouts) {
        if let Some(given) = given {
            *slot = given.value.as_millis() as u32;
        }
    }
    let node = model::Node {
        worker_cpus,
        adaptive: dataplane.adaptive.as_ref().is_some_and(|adaptive| adaptive.value),
        flows_ipv4: or(&dataplane.flows_ipv4, DEFAULT_FLOWS_V4),
        flows_ipv6: or(&dataplane.flows_ipv6, DEFAULT_FLOWS_V6),
        buffers: or(&dataplane.buffers, 0),
        buffer_bytes: or(&dataplane.buffer_bytes, 0),
        hash_key: dataplane.hash_key.as_ref().map(|key| key.value),
        icmp_rate: or(&dataplane.icmp_rate, 1_000),
        exception_rate: or(&dataplane.exception_rate, 0),
        max_backends: or(&dataplane.max_backends, DEFAULT_MAX_BACKENDS),
        snat_ports: dataplane.snat_ports.as_ref().map_or(DEFAULT_SNAT_PORTS, |ports| ports.value),
        drain_grace_ms: milliseconds(schema.drain.grace.as_ref().map_or(DEFAULT_GRACE, |grace| grace.value)),
        timeouts_ms,
        tcp_connections: or(&dataplane.tcp_connections, DEFAULT_TCP_CONNECTIONS),
        tcp_memory_bytes: dataplane.tcp_memory.as_ref().map_or(DEFAULT_TCP_MEMORY, |memory| memory.value),
        http_memory_bytes: dataplane.http_memory.as_ref().map_or(DEFAULT_HTTP_MEMORY, |memory| memory.value),
        ports: schema.ports.iter().map(build_port).collect::<Option<_>>()?,
    };
    let vips = schema
        .vips
        .iter()
        .map(|vip| {
            Some(model::Vip { name: vip.name.as_ref()?.value.clone(), address: vip.address.as_ref()?.value })
        })
        .collect::<Option<_>>()?;
    let positions = Positions::of(schema);
    let listeners = schema
        .listeners
        .iter()
        .enumerate()
        .map(|(at, listener)| {
            let access = access.listeners.get(&at).cloned().unwrap_or_default();
            Some(model::Listener { access, ..build_listener(schema, &positions, listener, http.get(&at))? })
        })
        .collect::<Option<_>>()?;
    let pools = schema.pools.iter().map(build_pool).collect::<Option<_>>()?;
    let (access_lists, control) = (access.lists, schema.control.model());
    let (on_drain, on_ready) =
        (Drain::command(&schema.drain.on_drain), Drain::command(&schema.drain.on_ready));
    Some(Model { node, vips, listeners, pools, access_log, control, on_drain, on_ready, access_lists })
}

/// Positions by name; the first where there are two.
struct Positions<'a> {
    vips: HashMap<&'a str, usize>,
    pools: HashMap<&'a str, usize>,
}

impl<'a> Positions<'a> {
    fn of(schema: &'a Schema) -> Self {
        fn by_name<'a>(names: impl Iterator<Item = &'a Option<Located<String>>>) -> HashMap<&'a str, usize> {
            let mut positions = HashMap::new();
            for (at, name) in names.enumerate() {
                if let Some(name) = name {
                    positions.entry(name.value.as_str()).or_insert(at);
                }
            }
            positions
        }
        Self {
            vips: by_name(schema.vips.iter().map(|vip| &vip.name)),
            pools: by_name(schema.pools.iter().map(|pool| &pool.name)),
        }
    }
}

fn build_port(port: &schema::Port) -> Option<model::Port> {
    let or = |field: &Option<Located<u32>>, default: u32| field.as_ref().map_or(default, |f| f.value) as u16;
    let routes = port.routes.iter().filter_map(|route| {
        let (prefix, length) = route.prefix.as_ref()?.value;
        Some(model::Route { prefix, length, gateway: route.via.as_ref()?.value })
    });
    let gateways = port.gateways.iter().map(|gateway| model::Route {
        prefix: network(gateway.value, 0),
        length: 0,
        gateway: gateway.value,
    });
    Some(model::Port {
        name: port.name.as_ref()?.value.clone(),
        device: port.device.as_ref()?.value.clone(),
        mtu: or(&port.mtu, DEFAULT_MTU),
        vlan: or(&port.vlan, 0),
        queues: or(&port.queues, 0),
        descriptors: or(&port.descriptors, 0),
        exception: exception::name(port),
        addresses: port.addresses.iter().map(|a| a.value).collect(),
        snat: port.snat.iter().map(|a| a.value).collect(),
        routes: gateways.chain(routes).collect(),
    })
}

fn build_listener(
    schema: &Schema,
    positions: &Positions<'_>,
    listener: &schema::Listener,
    http: Option<&Arc<HttpListener>>,
) -> Option<model::Listener> {
    let vip = positions.vips.get(listener.vip.as_ref()?.value.as_str()).copied()?;
    let pool = match &listener.pool {
        Some(name) => Some(positions.pools.get(name.value.as_str()).copied()?),
        None if http.is_some() => None,
        None => return None,
    };
    let mode = listener.mode.as_ref()?.value;
    let protocol = listener.protocol.as_ref()?.value;
    let by_mode = match mode {
        Mode::Proxy => OnDown::Reset,
        Mode::Nat | Mode::Fullnat if protocol == 6 => OnDown::Reset,
        _ => OnDown::Reselect,
    };
    let of_pool = pool.and_then(|pool| schema.pools.get(pool)).and_then(|pool| pool.on_down.as_ref());
    let on_down = listener.on_down.as_ref().or(of_pool).map_or(by_mode, |on_down| on_down.value);
    Some(model::Listener {
        name: listener.name.as_ref()?.value.clone(),
        vip,
        ports: listener.ports.as_ref()?.value,
        protocol,
        mode,
        pool,
        gue_port: listener.gue_port.as_ref().map_or(6_080, |port| port.value as u16),
        gue_variant: listener.gue_variant.as_ref().map_or(1, |variant| variant.value as u8),
        on_down,
        state: listener.state.as_ref().map_or(Admin::Ready, |state| state.value),
        proxy: (mode == Mode::Proxy).then(|| build_proxy(&listener.proxy)),
        http: http.cloned(),
        access: model::Access::default(),
    })
}

fn milliseconds(duration: Duration) -> u32 {
    duration.as_millis() as u32
}

fn build_proxy(proxy: &schema::proxy::Proxy) -> model::Proxy {
    let time = |field: &Option<Located<Duration>>, default: u32| {
        field.as_ref().map_or(default, |field| milliseconds(field.value))
    };
    let default = ProxyRecord::DEFAULT;
    let queue = proxy.queue.as_ref().map(|queue| queue.value).filter(|queue| queue.size > 0);
    let settings = ProxyRecord {
        client: build_tcp(&proxy.tcp, TcpRecord::LISTENER),
        connect_ms: time(&proxy.timeouts.connect, default.connect_ms),
        idle_ms: time(&proxy.timeouts.idle, default.idle_ms),
        half_close_ms: time(&proxy.timeouts.half_close, default.half_close_ms),
        handshake_ms: time(&proxy.timeouts.handshake, default.handshake_ms),
        queue: queue.map_or(0, |queue| queue.size),
        queue_ms: queue.map_or(0, |queue| milliseconds(queue.timeout.unwrap_or(DEFAULT_QUEUE_TIMEOUT))),
        max_connections: proxy.max_connections.as_ref().map_or(0, |most| most.value),
        retries: proxy.retries.as_ref().map_or(default.retries, |retries| retries.value as u8),
        accept_proxy: proxy.accept_proxy.as_ref().map_or(AcceptProxy::Off, |accept| accept.value) as u8,
        trusted: proxy.trusted.len() as u32,
        ..default
    };
    model::Proxy { settings, trusted: proxy.trusted.iter().map(|prefix| prefix.value).collect() }
}

fn build_tcp(tcp: &schema::proxy::Tcp, default: TcpRecord) -> TcpRecord {
    let flag = |field: &Option<Located<bool>>, default: u8| {
        field.as_ref().map_or(default, |field| field.value.into())
    };
    let number = |field: &Option<Located<u32>>, default: u32| field.as_ref().map_or(default, |f| f.value);
    let keep_alive = tcp.keep_alive.as_ref().and_then(|keep_alive| keep_alive.value);
    let interval = |interval: Option<Duration>| interval.unwrap_or(DEFAULT_KEEP_ALIVE_INTERVAL);
    TcpRecord {
        buffer_bytes: number(&tcp.buffer, default.buffer_bytes),
        backlog: number(&tcp.backlog, default.backlog),
        keep_alive_idle_ms: keep_alive.map_or(0, |alive| milliseconds(alive.idle)),
        keep_alive_interval_ms: keep_alive.map_or(0, |alive| milliseconds(interval(alive.interval))),
        keep_alive_probes: keep_alive
            .map_or(0, |alive| alive.probes.unwrap_or(DEFAULT_KEEP_ALIVE_PROBES) as u8),
        mss: number(&tcp.mss, default.mss.into()) as u16,
        initial_window: number(&tcp.initial_window, default.initial_window.into()) as u16,
        congestion: tcp.congestion.as_ref().map_or(default.congestion, |congestion| congestion.value as u8),
        nodelay: flag(&tcp.nodelay, default.nodelay),
        fast_open: flag(&tcp.fast_open, default.fast_open),
        slow_start_after_idle: flag(&tcp.slow_start_after_idle, default.slow_start_after_idle),
        ecn: flag(&tcp.ecn, default.ecn),
        syn_cookies: tcp.syn_cookies.as_ref().map_or(default.syn_cookies, |cookies| cookies.value as u8),
        reserved: 0,
    }
}

fn build_check(check: &HealthCheck) -> Option<Check> {
    let interval = check.interval.as_ref().map_or(health::DEFAULT_INTERVAL, |interval| interval.value);
    let number =
        |field: &Option<Located<u32>>, default: u8| field.as_ref().map_or(default, |f| f.value as u8);
    let fast = check.fast_interval.as_ref().map_or_else(|| health::default_fast(interval), |fast| fast.value);
    let timeout = check.timeout.as_ref().map(|timeout| timeout.value);
    Some(Check {
        kind: check.kind.as_ref()?.value.clone(),
        interval,
        jitter_percent: check.jitter.as_ref().map_or(DEFAULT_JITTER_PERCENT, |jitter| jitter.value),
        fast_interval: fast.min(interval),
        timeout: timeout.unwrap_or_else(|| health::default_timeout(interval)),
        rise: number(&check.rise, DEFAULT_RISE),
        fall: number(&check.fall, DEFAULT_FALL),
        port: check.port.as_ref().map(|port| port.value as u16),
        address: check.address.as_ref().map(|address| address.value),
        source: check.source.as_ref().map(|source| source.value),
        initially_down: check.initial.as_ref().is_some_and(|initial| initial.value),
        through: check.through.as_ref().map_or(Through::Auto, |through| through.value),
    })
}

fn build_pool(pool: &schema::Pool) -> Option<Arc<model::Pool>> {
    let backends = pool
        .backends
        .iter()
        .map(|backend| {
            let (address, port) = backend.address.as_ref()?.value;
            Some(model::Backend {
                name: backend.name.as_ref()?.value.clone(),
                address,
                port,
                weight: backend.weight.as_ref().map_or(DEFAULT_WEIGHT, |weight| weight.value) as u16,
                state: backend.state.as_ref().map_or(AdminState::Ready, |state| state.value),
                max_connections: backend.max_connections.as_ref().map_or(0, |most| most.value),
                backup: backend.backup.as_ref().is_some_and(|backup| backup.value),
            })
        })
        .collect::<Option<Vec<model::Backend>>>()?;
    let backups = (0u16..).zip(&backends).filter(|(_, backend)| backend.backup).map(|(at, _)| at).collect();
    let algorithm = pool.algorithm.as_ref().map_or(Algorithm::Maglev, |algorithm| algorithm.value);
    let default_slots = match algorithm {
        Algorithm::RoundRobin | Algorithm::LeastConn | Algorithm::RandomTwo => DEFAULT_MAX_LEN as u32,
        Algorithm::Maglev | Algorithm::SourceHash => DEFAULT_SLOTS,
    };
    let slow_start_ms = pool.slow_start.as_ref().map_or(0, |time| milliseconds(time.value));
    Some(Arc::new(model::Pool {
        name: pool.name.as_ref()?.value.clone(),
        algorithm,
        slots: pool.slots.as_ref().map_or(default_slots, |slots| slots.value),
        upstream: build_tcp(&pool.upstream.tcp, TcpRecord::POOL),
        send_proxy: pool.upstream.send_proxy.as_ref().map_or(SendProxy::Off, |send| send.value),
        http: HttpPool { backups, ..pool.upstream.http.rules.clone() },
        health: match &pool.health_check {
            Some(check) => Some(Arc::new(build_check(check)?)),
            None => None,
        },
        panic_percent: pool.panic_threshold.as_ref().map_or(Some(0), |threshold| threshold.value),
        slow_start_ms,
        backends,
    }))
}
