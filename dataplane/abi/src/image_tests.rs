//! Round trips, and every way in which bytes can be wrong.
#![allow(clippy::indexing_slicing, reason = "tests")]

use super::*;
use crate::http::HttpPoolRecord;
use crate::proxy::{AcceptProxy, TcpRecord};
use crate::record::{Mode, NO_INDEX, NO_POSITION, OnDown};
use crate::text::{Name, Text};
use zerocopy::FromZeros;

fn node() -> NodeTable {
    let mut node = NodeRecord::new_zeroed();
    node.worker_count = 1;
    node.flows_ipv4 = 1024;
    node.flows_ipv6 = 1024;
    node.backend_capacity = 64;
    node.snat_port_first = 1024;
    node.snat_port_last = 65_535;
    node.tcp_connections = 2;
    node.tcp_memory_bytes = 1 << 20;
    node.http_memory_bytes = 1 << 20;
    node.timeouts_ms = [0, 0, 0, 0, 0, 0, 60_000, 60_000, 60_000, 200];
    let mut port = PortRecord::new_zeroed();
    port.name = Name::new("wan");
    port.device = Text::new("null:");
    port.mtu = 1500;
    NodeTable { node, ports: vec![port], addresses: vec![], routes: vec![] }
}

fn pool() -> PoolTable {
    let mut record = PoolRecord::new_zeroed();
    record.name = Name::new("app");
    record.upstream = TcpRecord::POOL;
    record.http = HttpPoolRecord::DEFAULT;
    let mut backend = BackendRecord::new_zeroed();
    backend.address = Address::host([198, 18, 1, 11].into()).with_port(80);
    backend.weight = 1;
    PoolTable { pool: record, backends: vec![backend], slots: vec![0, NO_POSITION, 0] }
}

fn listeners() -> ListenersTable {
    let mut vip = VipRecord::new_zeroed();
    vip.address = Address::host([198, 18, 100, 1].into());
    let mut listener = ListenerRecord::new_zeroed();
    listener.port_first = 80;
    listener.port_last = 80;
    listener.protocol = 6;
    listener.gue_port = 6080;
    listener.proxy = NO_INDEX;
    ListenersTable { vips: vec![vip], listeners: vec![listener], proxies: vec![], trusted: vec![] }
}

#[test]
fn tables_round_trip_and_equal_tables_share_an_id() {
    let image = pool().encode();
    let parsed = PoolTable::parse(&image.reference, &image.bytes).unwrap();
    assert_eq!(parsed.slots, vec![0, NO_POSITION, 0]);
    assert_eq!(parsed.encode(), image);
    let mut other = pool();
    other.slots[0] = NO_POSITION;
    assert_ne!(other.encode().reference.id, image.reference.id);
    let image = node().encode();
    assert_eq!(NodeTable::parse(&image.reference, &image.bytes).unwrap().ports[0].name.as_str(), "wan");
    let image = listeners().encode();
    assert_eq!(ListenersTable::parse(&image.reference, &image.bytes).unwrap().listeners.len(), 1);
}

#[test]
fn each_flipped_bit_and_each_cut_is_refused() {
    let image = pool().encode();
    for at in 0..image.bytes.len() {
        let mut bytes = image.bytes.clone();
        bytes[at] ^= 1;
        assert!(PoolTable::parse(&image.reference, &bytes).is_err(), "flipped byte {at}");
        assert!(PoolTable::parse(&image.reference, &image.bytes[..at]).is_err(), "cut at {at}");
    }
    let root = Root {
        generation: 7,
        created_unix_ms: 1,
        tables: vec![node().encode().reference, listeners().encode().reference, image.reference],
    };
    let bytes = root.encode();
    assert_eq!(Root::parse(7, &bytes).unwrap(), root);
    assert!(Root::parse(8, &bytes).is_err());
    for at in 0..bytes.len() {
        let mut copy = bytes.clone();
        copy[at] ^= 1;
        assert!(Root::parse(7, &copy).is_err(), "flipped byte {at}");
        assert!(Root::parse(7, &bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn a_table_is_not_taken_for_one_of_another_kind() {
    let mut image = seal_raw(TableKind::Listeners, &node().encode().bytes[32..]);
    assert!(matches!(
        NodeTable::parse(&image.reference, &image.bytes),
        Err(SnapshotError::Value { field: "kind", .. })
    ));
    image.reference.kind = TableKind::Node as u32;
    assert!(NodeTable::parse(&image.reference, &image.bytes).is_err());
}

#[test]
fn another_version_is_named_in_the_error() {
    let mut bytes = Root { generation: 1, created_unix_ms: 0, tables: vec![] }.encode();
    bytes[8] = 9;
    let error = Root::parse(1, &bytes).unwrap_err().to_string();
    assert_eq!(error, format!("root-1 has layout version 9, this program reads version {VERSION}"));
}

#[test]
fn well_sealed_nonsense_is_refused() {
    let mut bad = pool();
    bad.slots[0] = 1;
    let image = bad.encode();
    let error = PoolTable::parse(&image.reference, &image.bytes).unwrap_err();
    assert!(matches!(error, SnapshotError::Value { field: "slot", value: 1, .. }), "{error}");
    let mut bad = node();
    bad.node.worker_count = 65;
    let image = bad.encode();
    assert!(NodeTable::parse(&image.reference, &image.bytes).is_err());
    let mut bad = listeners();
    bad.listeners[0].vip = 1;
    let image = bad.encode();
    assert!(ListenersTable::parse(&image.reference, &image.bytes).is_err());
    let root = Root { generation: 1, created_unix_ms: 0, tables: vec![pool().encode().reference] };
    assert!(Root::parse(1, &root.encode()).is_err());
}

/// One proxy listener that believes the PROXY headers of one network.
fn proxies() -> ListenersTable {
    let mut table = listeners();
    table.listeners[0].mode = Mode::Proxy as u8;
    table.listeners[0].proxy = 0;
    table.listeners[0].on_down = OnDown::Reset as u8;
    let accept_proxy = AcceptProxy::Any as u8;
    table.proxies = vec![ProxyRecord { trusted: 1, accept_proxy, ..ProxyRecord::DEFAULT }];
    table.trusted = vec![Address::prefix([198, 18, 0, 0].into(), 24)];
    table
}

#[test]
fn proxies_round_trip_and_cost_others_nothing() {
    let image = proxies().encode();
    let parsed = ListenersTable::parse(&image.reference, &image.bytes).unwrap();
    assert_eq!(parsed.proxies, proxies().proxies);
    assert_eq!(parsed.trusted, proxies().trusted);
    assert_eq!(parsed.encode(), image);
    let without = listeners().encode().bytes.len();
    assert_eq!(image.bytes.len() - without, size_of::<ProxyRecord>() + size_of::<Address>());
}

/// Each field outside of its range, sealed well: refused, by name.
#[test]
fn proxy_records_out_of_range_are_refused() {
    type Change = (&'static str, fn(&mut ListenersTable));
    let cases: &[Change] = &[
        ("listener.proxy", |t| t.listeners[0].proxy = 1),
        ("listener.proxy", |t| t.listeners[0].proxy = NO_INDEX),
        ("listener.proxy", |t| t.listeners[0].mode = Mode::Nat as u8),
        ("protocol", |t| t.listeners[0].protocol = 17),
        ("on_down", |t| t.listeners[0].on_down = OnDown::Reselect as u8),
        ("mode", |t| t.listeners[0].mode = 6),
        ("tcp.buffer_bytes", |t| t.proxies[0].client.buffer_bytes = 4_095),
        ("tcp.buffer_bytes", |t| t.proxies[0].client.buffer_bytes = (1 << 30) + 1),
        ("tcp.backlog", |t| t.proxies[0].client.backlog = 0),
        ("tcp.backlog", |t| t.proxies[0].client.backlog = (1 << 20) + 1),
        ("tcp.keep_alive_idle_ms", |t| t.proxies[0].client.keep_alive_idle_ms = 99),
        ("tcp.keep_alive_interval_ms", |t| t.proxies[0].client.keep_alive_idle_ms = 1_000),
        ("tcp.keep_alive_interval_ms", |t| t.proxies[0].client.keep_alive_interval_ms = 1_000),
        ("tcp.keep_alive_probes", |t| t.proxies[0].client.keep_alive_probes = 1),
        ("tcp.mss", |t| t.proxies[0].client.mss = 535),
        ("tcp.mss", |t| t.proxies[0].client.mss = 9_001),
        ("tcp.initial_window", |t| t.proxies[0].client.initial_window = 0),
        ("tcp.initial_window", |t| t.proxies[0].client.initial_window = 101),
        ("tcp.congestion", |t| t.proxies[0].client.congestion = 2),
        ("tcp.nodelay", |t| t.proxies[0].client.nodelay = 2),
        ("tcp.fast_open", |t| t.proxies[0].client.fast_open = 2),
        ("tcp.slow_start_after_idle", |t| t.proxies[0].client.slow_start_after_idle = 2),
        ("tcp.ecn", |t| t.proxies[0].client.ecn = 2),
        ("tcp.syn_cookies", |t| t.proxies[0].client.syn_cookies = 3),
        ("tcp.reserved", |t| t.proxies[0].client.reserved = 1),
        ("proxy.connect_ms", |t| t.proxies[0].connect_ms = 99),
        ("proxy.idle_ms", |t| t.proxies[0].idle_ms = 0),
        ("proxy.half_close_ms", |t| t.proxies[0].half_close_ms = 86_400_001),
        ("proxy.handshake_ms", |t| t.proxies[0].handshake_ms = u32::MAX),
        ("proxy.queue", |t| t.proxies[0].queue = (1 << 20) + 1),
        ("proxy.queue_ms", |t| t.proxies[0].queue = 1),
        ("proxy.queue_ms", |t| t.proxies[0].queue_ms = 1_000),
        ("proxy.retries", |t| t.proxies[0].retries = 11),
        ("proxy.accept_proxy", |t| t.proxies[0].accept_proxy = 4),
        ("proxy.trusted", |t| t.proxies[0].accept_proxy = 0),
        ("proxy.trusted", |t| t.proxies[0].trusted = 0),
        ("proxy.trusted", |t| t.proxies[0].trusted = 2),
        ("proxy.trusted", |t| t.proxies[0].trusted_first = u32::MAX),
        ("proxy.reserved", |t| t.proxies[0].reserved = [0, 1]),
        ("trusted", |t| t.trusted[0].family = 5),
        ("trusted", |t| t.trusted[0].prefix_length = 33),
    ];
    for (at, (expected, change)) in cases.iter().enumerate() {
        let mut table = proxies();
        change(&mut table);
        let image = table.encode();
        match ListenersTable::parse(&image.reference, &image.bytes) {
            Err(SnapshotError::Value { field, .. }) => assert_eq!(field, *expected, "case {at}"),
            other => panic!("case {at}, {expected}: {other:?}"),
        }
    }
    let mut off = proxies();
    (off.proxies[0].accept_proxy, off.proxies[0].trusted) = (0, 0);
    let image = off.encode();
    assert!(ListenersTable::parse(&image.reference, &image.bytes).is_ok(), "no PROXY header, nobody trusted");
}

#[test]
fn pools_and_nodes_out_of_range_are_refused() {
    type Change<T> = (&'static str, fn(&mut T));
    let cases: &[Change<PoolTable>] = &[
        ("algorithm", |t| t.pool.algorithm = 5),
        ("send_proxy", |t| t.pool.send_proxy = 3),
        ("tcp.backlog", |t| t.pool.upstream.backlog = 1),
        ("tcp.fast_open", |t| t.pool.upstream.fast_open = 1),
        ("tcp.syn_cookies", |t| t.pool.upstream.syn_cookies = 1),
        ("tcp.initial_window", |t| t.pool.upstream.initial_window = 0),
    ];
    for (expected, change) in cases {
        let mut table = pool();
        change(&mut table);
        let image = table.encode();
        let error = PoolTable::parse(&image.reference, &image.bytes).unwrap_err();
        assert!(matches!(error, SnapshotError::Value { field, .. } if field == *expected), "{error}");
    }
    let cases: &[Change<NodeTable>] = &[
        ("tcp_connections", |t| t.node.tcp_connections = 1),
        ("tcp_connections", |t| t.node.tcp_connections = (1 << 24) + 1),
        ("tcp_memory_bytes", |t| t.node.tcp_memory_bytes = (1 << 20) - 1),
        ("tcp_memory_bytes", |t| t.node.tcp_memory_bytes = u64::MAX),
        ("http_memory_bytes", |t| t.node.http_memory_bytes = 0),
        ("timeouts_ms", |t| t.node.timeouts_ms[6] = 0),
        ("timeouts_ms", |t| t.node.timeouts_ms[8] = 86_400_001),
        ("timeouts_ms", |t| t.node.timeouts_ms[9] = 9),
        ("timeouts_ms", |t| t.node.timeouts_ms[9] = 10_001),
    ];
    for (expected, change) in cases {
        let mut table = node();
        change(&mut table);
        let image = table.encode();
        let error = NodeTable::parse(&image.reference, &image.bytes).unwrap_err();
        assert!(matches!(error, SnapshotError::Value { field, .. } if field == *expected), "{error}");
    }
}
