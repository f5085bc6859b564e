//! Is what a table says possible? Every count, reference, enum value and range, once the bytes are proved.
//!
//! Called by the tables' `parse`: what passes can be used without further checks.

use crate::image::{ListenersTable, NodeTable, PoolTable, SnapshotError};
use crate::proxy::{
    MAX_TCP_CONNECTIONS, MAX_TCP_MEMORY, MAX_TIME_MS, MIN_TCP_CONNECTIONS, MIN_TCP_MEMORY, MIN_TIME_MS,
    SendProxy,
};
use crate::record::{
    Address, AddressUse, AdminState, Algorithm, Application, Drain, IDLE_ADAPTIVE, INTERFACE_NAME_LIMIT,
    ListenerRecord, MAX_LISTENERS, MAX_POOL_BACKENDS, MAX_POOLS, MAX_PORTS, MAX_WORKERS, Mode, NO_INDEX,
    NO_POSITION, NodeRecord, OnDown, Timeout,
};

/// Proves a node table.
pub(crate) fn node(table: &NodeTable, what: &str) -> Result<(), SnapshotError> {
    let node = &table.node;
    let workers = node.worker_count as usize;
    ensure((1..=MAX_WORKERS).contains(&workers), what, "worker_count", workers as u64, "must be 1 to 64")?;
    ensure(node.idle <= IDLE_ADAPTIVE, what, "idle", u64::from(node.idle), "must be 0 or 1")?;
    ensure(node.keyed_hash <= 1, what, "keyed_hash", u64::from(node.keyed_hash), "must be 0 or 1")?;
    let flows = 1..=(1u32 << 24) - 1;
    ensure(
        flows.contains(&node.flows_ipv4),
        what,
        "flows_ipv4",
        u64::from(node.flows_ipv4),
        "must be 1 to 2^24 - 1",
    )?;
    ensure(
        flows.contains(&node.flows_ipv6),
        what,
        "flows_ipv6",
        u64::from(node.flows_ipv6),
        "must be 1 to 2^24 - 1",
    )?;
    let capacity = node.backend_capacity;
    ensure(
        (1..=1 << 22).contains(&capacity),
        what,
        "backend_capacity",
        u64::from(capacity),
        "must be 1 to 2^22",
    )?;
    ensure(node.buffers <= 1 << 24, what, "buffers", u64::from(node.buffers), "must be at most 2^24")?;
    ensure(
        node.buffer_bytes <= 65_000,
        what,
        "buffer_bytes",
        u64::from(node.buffer_bytes),
        "must be at most 65,000",
    )?;
    ensure(
        node.snat_port_first >= 1 && node.snat_port_first <= node.snat_port_last,
        what,
        "snat_port_first",
        u64::from(node.snat_port_first),
        "must be at least 1 and at most snat_port_last",
    )?;
    check_tcp(node, what)?;
    let ports = table.ports.len();
    ensure((1..=MAX_PORTS).contains(&ports), what, "ports", ports as u64, "must be 1 to 16")?;
    for port in &table.ports {
        ensure((68..=9_216).contains(&port.mtu), what, "mtu", u64::from(port.mtu), "must be 68 to 9,216")?;
        ensure(port.vlan < 4_095, what, "vlan", u64::from(port.vlan), "must be 0 to 4094")?;
        ensure(!port.device.is_empty(), what, "device", 0, "must not be empty")?;
        let exception = port.exception.as_str();
        ensure(
            exception.len() <= INTERFACE_NAME_LIMIT && !exception.contains(['/', '%', ':']),
            what,
            "exception",
            exception.len() as u64,
            "must be the name of an interface",
        )?;
    }
    for address in &table.addresses {
        check_address(&address.address, what, "address")?;
        ensure(
            usize::from(address.port) < ports,
            what,
            "address.port",
            u64::from(address.port),
            "must be a port",
        )?;
        ensure(
            AddressUse::from_u8(address.usage).is_some(),
            what,
            "usage",
            u64::from(address.usage),
            "must be known",
        )?;
    }
    for route in &table.routes {
        check_address(&route.prefix, what, "prefix")?;
        check_address(&route.gateway, what, "gateway")?;
        ensure(
            route.prefix.family == route.gateway.family,
            what,
            "gateway.family",
            u64::from(route.gateway.family),
            "must be the prefix's",
        )?;
        ensure(usize::from(route.port) < ports, what, "route.port", u64::from(route.port), "must be a port")?;
    }
    Ok(())
}

fn check_tcp(node: &NodeRecord, what: &str) -> Result<(), SnapshotError> {
    let connections = node.tcp_connections;
    ensure(
        (MIN_TCP_CONNECTIONS..=MAX_TCP_CONNECTIONS).contains(&connections),
        what,
        "tcp_connections",
        u64::from(connections),
        "must be 2 to 2^24",
    )?;
    let memory = node.tcp_memory_bytes;
    ensure(
        (MIN_TCP_MEMORY..=MAX_TCP_MEMORY).contains(&memory),
        what,
        "tcp_memory_bytes",
        memory,
        "must be 1 MiB to 1 TiB",
    )?;
    let memory = node.http_memory_bytes;
    ensure(
        (MIN_TCP_MEMORY..=MAX_TCP_MEMORY).contains(&memory),
        what,
        "http_memory_bytes",
        memory,
        "must be 1 MiB to 1 TiB",
    )?;
    for timeout in [Timeout::TcpTimeWait, Timeout::TcpFinWait, Timeout::TcpUser, Timeout::TcpMinimumRto] {
        let time = node.timeouts_ms.get(timeout as usize).copied().unwrap_or(0);
        let (range, rule) = match timeout {
            Timeout::TcpMinimumRto => (10..=10_000, "must be 10 ms to 10 s for the least RTO"),
            _ => (MIN_TIME_MS..=MAX_TIME_MS, "must be 100 ms to 24 h for terminated TCP"),
        };
        ensure(range.contains(&time), what, "timeouts_ms", u64::from(time), rule)?;
    }
    Ok(())
}

/// Proves a listeners table. That pools exist is checked by the reader of the whole root.
pub(crate) fn listeners(table: &ListenersTable, what: &str) -> Result<(), SnapshotError> {
    for vip in &table.vips {
        check_address(&vip.address, what, "vip.address")?;
    }
    for listener in &table.listeners {
        check_listener(listener, table.vips.len(), what)?;
        check_proxy(listener, table.proxies.len(), what)?;
    }
    for proxy in &table.proxies {
        proxy.check(table.trusted.len(), what)?;
    }
    for prefix in &table.trusted {
        check_address(prefix, what, "trusted")?;
    }
    Ok(())
}

fn check_listener(listener: &ListenerRecord, vips: usize, what: &str) -> Result<(), SnapshotError> {
    let index = listener.index as usize;
    ensure(index < MAX_LISTENERS, what, "listener.index", index as u64, "must be below 65,535")?;
    ensure((listener.vip as usize) < vips, what, "listener.vip", u64::from(listener.vip), "must be a vip")?;
    let http = listener.application == Application::Http as u8;
    ensure(
        (listener.pool as usize) < MAX_POOLS || listener.pool == NO_INDEX && http,
        what,
        "listener.pool",
        u64::from(listener.pool),
        "must be a pool, but for HTTP",
    )?;
    let application = Application::from_u8(listener.application);
    let fits = application.is_some() && (!http || listener.mode == Mode::Proxy as u8);
    ensure(
        fits,
        what,
        "application",
        u64::from(listener.application),
        "must be known, and none in a mode other than proxy",
    )?;
    ensure(
        listener.port_first >= 1 && listener.port_first <= listener.port_last,
        what,
        "port_first",
        u64::from(listener.port_first),
        "must be at least 1 and at most port_last",
    )?;
    ensure(
        matches!(listener.protocol, 6 | 17),
        what,
        "protocol",
        u64::from(listener.protocol),
        "must be 6 or 17",
    )?;
    ensure(Mode::from_u8(listener.mode).is_some(), what, "mode", u64::from(listener.mode), "must be known")?;
    ensure(
        listener.gue_variant <= 1,
        what,
        "gue_variant",
        u64::from(listener.gue_variant),
        "must be 0 or 1",
    )?;
    ensure(
        OnDown::from_u8(listener.on_down).is_some(),
        what,
        "on_down",
        u64::from(listener.on_down),
        "must be known",
    )?;
    ensure(
        Drain::from_u8(listener.drain).is_some(),
        what,
        "listener.drain",
        u64::from(listener.drain),
        "must be 0 to 2",
    )?;
    ensure(listener.gue_port >= 1, what, "gue_port", u64::from(listener.gue_port), "must be at least 1")
}

fn check_proxy(listener: &ListenerRecord, proxies: usize, what: &str) -> Result<(), SnapshotError> {
    let at = u64::from(listener.proxy);
    if listener.mode != Mode::Proxy as u8 {
        let none = listener.proxy == NO_INDEX;
        return ensure(none, what, "listener.proxy", at, "must be none in a mode other than proxy");
    }
    ensure((listener.proxy as usize) < proxies, what, "listener.proxy", at, "must be a proxy")?;
    ensure(
        listener.protocol == 6,
        what,
        "protocol",
        u64::from(listener.protocol),
        "must be 6 in mode proxy",
    )?;
    let on_down = listener.on_down;
    let stays = on_down != OnDown::Reselect as u8;
    ensure(stays, what, "on_down", u64::from(on_down), "must not be reselect in mode proxy")
}

/// Proves a pool table.
pub(crate) fn pool(table: &PoolTable, what: &str) -> Result<(), SnapshotError> {
    let PoolTable { pool, backends, slots } = table;
    ensure(
        (pool.index as usize) < MAX_POOLS,
        what,
        "pool.index",
        u64::from(pool.index),
        "must be below 65,535",
    )?;
    ensure(
        Algorithm::from_u8(pool.algorithm).is_some(),
        what,
        "algorithm",
        u64::from(pool.algorithm),
        "must be known",
    )?;
    ensure(
        SendProxy::from_u8(pool.send_proxy).is_some(),
        what,
        "send_proxy",
        u64::from(pool.send_proxy),
        "must be known",
    )?;
    pool.upstream.check_pool(what)?;
    pool.http.check(what)?;
    ensure(
        backends.len() <= MAX_POOL_BACKENDS,
        what,
        "backends",
        backends.len() as u64,
        "must be at most 65,534",
    )?;
    ensure(!slots.is_empty(), what, "slots", 0, "must be at least 1")?;
    for backend in backends {
        check_address(&backend.address, what, "backend.address")?;
        ensure(
            AdminState::from_u8(backend.admin).is_some(),
            what,
            "admin",
            u64::from(backend.admin),
            "must be known",
        )?;
        ensure(backend.down <= 1, what, "down", u64::from(backend.down), "must be 0 or 1")?;
        ensure(backend.backup <= 1, what, "backup", u64::from(backend.backup), "must be 0 or 1")?;
    }
    let bound = backends.len() as u16;
    if let Some(&slot) = slots.iter().find(|&&slot| slot != NO_POSITION && slot >= bound) {
        return Err(value(what, "slot", u64::from(slot), "must be a backend's position"));
    }
    Ok(())
}

pub(crate) fn check_address(address: &Address, what: &str, field: &'static str) -> Result<(), SnapshotError> {
    let bits = match address.family {
        4 => 32,
        6 => 128,
        family => return Err(value(what, field, u64::from(family), "must be of family 4 or 6")),
    };
    ensure(
        address.prefix_length <= bits,
        what,
        field,
        u64::from(address.prefix_length),
        "is too long a prefix",
    )
}

pub(crate) fn ensure(
    holds: bool,
    what: &str,
    field: &'static str,
    number: u64,
    rule: &'static str,
) -> Result<(), SnapshotError> {
    if holds { Ok(()) } else { Err(value(what, field, number, rule)) }
}

pub(crate) fn value(what: &str, field: &'static str, number: u64, rule: &'static str) -> SnapshotError {
    SnapshotError::Value { what: what.to_owned(), field, value: number, rule }
}
