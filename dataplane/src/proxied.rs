//! What does a snapshot say of proxied connections? Rules, connection profiles and limits of one generation.

pub mod http;

use std::collections::HashSet;
use std::sync::Arc;

use weir_abi::proxy::{AcceptProxy, Congestion, ProxyRecord, SendProxy, SynCookies, TcpRecord};
use weir_abi::record::{Algorithm, ListenerRecord, Mode, Timeout};
use weir_abi::{NodeTable, PoolTable};
use weir_l4::Pool;
use weir_l7::proxy_protocol::{Expects, Version};
use weir_l7::{Counted, Key, ListenerRules, PoolRules, Rules};
use weir_net::Prefix;
use weir_tcp::{ConnectionConfig, KeepAlive};

use crate::snapshot::{LoadedPool, Snapshot};

/// Profiles of the engine below this are those of listeners, by their index; a pool's is this and its index.
const POOL_PROFILES: u32 = 16_384;

/// One generation.
#[derive(Debug, Default)]
pub struct Proxied {
    /// What sessions do.
    pub rules: Arc<Rules>,
    /// How connections behave, by the engine's number.
    pub profiles: Vec<(u16, ConnectionConfig)>,
    /// Most connections of what is limited.
    pub limits: Vec<(Key, u32)>,
    /// Bytes that the queues of a worker's connections may hold.
    pub memory: u64,
    /// Bytes that HTTP of a worker may keep for heads, collected bodies and answers.
    pub http_memory: u64,
}

impl Proxied {
    /// What a snapshot says; `pools` are those of the same generation's services.
    pub fn of(snapshot: &Snapshot, mtu: u16) -> Self {
        let node = &snapshot.node;
        let workers = node.node.worker_count.max(1);
        let (memory, http_memory) = (node.node.tcp_memory_bytes, node.node.http_memory_bytes);
        let mut proxied = Self { memory, http_memory, ..Self::default() };
        let mut listeners = Vec::new();
        let sites =
            snapshot.sites.iter().filter_map(|(_, site)| Some((u16::try_from(site.listener).ok()?, site)));
        let of_http: HashSet<u32> = sites.clone().flat_map(|(_, site)| site.pools.iter().copied()).collect();
        let mut used = of_http.clone();
        for record in &snapshot.listeners.listeners {
            let Some((index, proxy)) = proxy_of(snapshot, record) else { continue };
            used.insert(record.pool);
            let connection = connection_of(&proxy.client, node, mtu);
            let handshake_ms = Some(proxy.handshake_ms).filter(|ms| *ms > 0);
            proxied.profiles.push((index, ConnectionConfig { handshake_ms, ..connection }));
            if proxy.max_connections > 0 {
                proxied.limits.push((Key::Listener(index), proxy.max_connections));
            }
            listeners.push((index, rules_of(snapshot, proxy, workers)));
        }
        let mut rules = Vec::new();
        let mut http_pools = Vec::new();
        let mut limited = Vec::new();
        for LoadedPool { table, pool, .. } in &snapshot.pools {
            let profile = u16::try_from(POOL_PROFILES + table.pool.index).ok();
            let Some(profile) = profile.filter(|_| used.contains(&table.pool.index)) else { continue };
            proxied.profiles.push((profile, connection_of(&table.pool.upstream, node, mtu)));
            for backend in table.backends.iter().filter(|backend| backend.max_connections > 0) {
                proxied.limits.push((Key::Backend(backend.index), backend.max_connections));
                limited.push(backend.index);
            }
            rules.push((table.pool.index, pool_of(table, pool, profile)));
            if of_http.contains(&table.pool.index) {
                http_pools.push((table.pool.index, Arc::new(http::pool_of(table))));
            }
        }
        let sites = sites.map(|(index, site)| (index, Arc::clone(&site.site)));
        let rules = Rules::new(listeners, rules, limited).with_http(sites, http_pools);
        proxied.rules = Arc::new(rules);
        proxied
    }
}

fn proxy_of<'a>(snapshot: &'a Snapshot, record: &ListenerRecord) -> Option<(u16, &'a ProxyRecord)> {
    if Mode::from_u8(record.mode) != Some(Mode::Proxy) {
        return None;
    }
    let index = u16::try_from(record.index).ok().filter(|index| u32::from(*index) < POOL_PROFILES)?;
    Some((index, snapshot.listeners.proxies.get(record.proxy as usize)?))
}

fn rules_of(snapshot: &Snapshot, proxy: &ProxyRecord, workers: u32) -> ListenerRules {
    let first = proxy.trusted_first as usize;
    let trusted = snapshot.listeners.trusted.get(first..first + proxy.trusted as usize).unwrap_or_default();
    ListenerRules {
        connect_ms: proxy.connect_ms,
        idle_ms: proxy.idle_ms,
        half_close_ms: proxy.half_close_ms,
        handshake_ms: proxy.handshake_ms,
        queue_ms: proxy.queue_ms,
        queue: proxy.queue.div_ceil(workers),
        is_limited: proxy.max_connections > 0,
        retries: proxy.retries,
        accept_proxy: match proxy.accept_proxy() {
            AcceptProxy::Off => None,
            AcceptProxy::V1 => Some(Expects::V1),
            AcceptProxy::V2 => Some(Expects::V2),
            AcceptProxy::Any => Some(Expects::Any),
        },
        trusted: trusted
            .iter()
            .filter_map(|address| Prefix::new(address.ip()?, address.prefix_length).ok())
            .collect(),
    }
}

fn pool_of(table: &PoolTable, pool: &Pool, profile: u16) -> PoolRules {
    let counted = match Algorithm::from_u8(table.pool.algorithm) {
        Some(Algorithm::LeastConn) => Some(Counted::LeastConn),
        Some(Algorithm::RandomTwo) => Some(Counted::RandomTwo),
        _ => None,
    };
    let send_proxy = match SendProxy::from_u8(table.pool.send_proxy) {
        Some(SendProxy::V1) => Some(Version::V1),
        Some(SendProxy::V2) => Some(Version::V2),
        Some(SendProxy::Off) | None => None,
    };
    PoolRules::new(pool, counted, send_proxy, profile)
}

fn connection_of(record: &TcpRecord, node: &NodeTable, mtu: u16) -> ConnectionConfig {
    let defaults = ConnectionConfig::default();
    let timeout = |which: Timeout| node.node.timeouts_ms.get(which as usize).copied().filter(|ms| *ms > 0);
    let seconds = |milliseconds: u32| milliseconds.div_ceil(1_000);
    ConnectionConfig {
        no_delay: record.nodelay != 0,
        keep_alive: (record.keep_alive_idle_ms > 0).then(|| KeepAlive {
            idle_s: seconds(record.keep_alive_idle_ms),
            interval_s: seconds(record.keep_alive_interval_ms),
            probes: record.keep_alive_probes,
        }),
        initial_window: record.initial_window.min(u16::from(u8::MAX)) as u8,
        algorithm: match record.congestion() {
            Congestion::Cubic => weir_tcp::Algorithm::Cubic,
            Congestion::NewReno => weir_tcp::Algorithm::NewReno,
        },
        fast_open: record.fast_open != 0,
        mss: (record.mss > 0).then_some(record.mss),
        receive_buffer: record.buffer_bytes,
        send_buffer: record.buffer_bytes,
        slow_start_after_idle: record.slow_start_after_idle != 0,
        backlog: record.backlog,
        syn_cookies: match record.syn_cookies() {
            SynCookies::Auto => weir_tcp::SynCookies::Auto,
            SynCookies::Always => weir_tcp::SynCookies::Always,
            SynCookies::Never => weir_tcp::SynCookies::Never,
        },
        ecn: record.ecn != 0,
        rto_min_ms: timeout(Timeout::TcpMinimumRto).unwrap_or(defaults.rto_min_ms),
        user_timeout_ms: timeout(Timeout::TcpUser).or(defaults.user_timeout_ms),
        fin_wait_s: timeout(Timeout::TcpFinWait).map_or(defaults.fin_wait_s, seconds),
        time_wait_s: timeout(Timeout::TcpTimeWait).map_or(defaults.time_wait_s, seconds),
        mtu,
        ..defaults
    }
}
