//! A small node for tests: two ports, a `nat` and a `dsr` listener, and how a generation of it is published.
//!
//! ```text
//! clients 198.18.2.0/24 ── gateway 198.18.0.1 ── wan 198.18.0.254/24 ▌▌ lan 198.18.1.254/24 ── backends 198.18.1.11 …
//!                                                2001:db8::fe/64        2001:db8:1::fe/64
//! ```
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "several tests share it, and stop where something goes wrong"
)]

use std::net::IpAddr;

use hugepages::segment::SegmentDir;
use weir_abi::http::{Arena, HttpPoolRecord, HttpRecord, PathKind, RouteRecord, SplitRecord, Stretch};
use weir_abi::proxy::{ProxyRecord, TcpRecord};
use weir_abi::record::{
    Address, AddressUse, AdminState, Application, BackendRecord, InterfaceAddressRecord, ListenerRecord,
    Mode, NO_INDEX, NodeRecord, OnDown, PoolRecord, PortRecord, PortRouteRecord, VipRecord,
};
use weir_abi::text::{Name, Text};
use weir_abi::{HttpTable, ListenersTable, NodeTable, PoolTable, Root, root_name, table_name};
use zerocopy::FromZeros;

pub(crate) const WAN: u16 = 0;
pub(crate) const LAN: u16 = 1;
pub(crate) const VIP: &str = "198.18.100.1";
pub(crate) const VIP_V6: &str = "2001:db8:100::1";
pub(crate) const SNAT: &str = "198.18.1.200";
pub(crate) const GATEWAY: &str = "198.18.0.1";

/// What a control plane would publish.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) node: NodeTable,
    pub(crate) listeners: ListenersTable,
    pub(crate) pools: Vec<PoolTable>,
    pub(crate) sites: Vec<HttpTable>,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn port(name: &str, device: &str) -> PortRecord {
    let mut port = PortRecord::new_zeroed();
    port.name = Name::new(name);
    port.device = Text::new(device);
    port.mtu = 1_500;
    port
}

pub(crate) fn address(port: u16, text: &str, length: u8, usage: AddressUse) -> InterfaceAddressRecord {
    InterfaceAddressRecord {
        address: Address::prefix(ip(text), length),
        port,
        usage: usage as u8,
        reserved: 0,
    }
}

pub(crate) fn route(port: u16, prefix: &str, length: u8, gateway: &str) -> PortRouteRecord {
    let gateway = Address::host(ip(gateway));
    PortRouteRecord { prefix: Address::prefix(ip(prefix), length), gateway, port, reserved: 0 }
}

pub(crate) fn backend(index: u32, address: &str, port: u16) -> BackendRecord {
    BackendRecord {
        name: Name::new(&format!("b{index}")),
        index,
        weight: 1,
        address: Address::host(ip(address)).with_port(port),
        max_connections: 0,
        admin: AdminState::Ready as u8,
        down: 0,
        backup: 0,
        reserved: 0,
    }
}

/// A pool whose slots are its backends in turn.
pub(crate) fn pool(index: u32, backends: Vec<BackendRecord>) -> PoolTable {
    let mut record = PoolRecord::new_zeroed();
    record.name = Name::new(&format!("pool{index}"));
    record.index = index;
    record.upstream = TcpRecord::POOL;
    record.http = HttpPoolRecord::DEFAULT;
    let slots = (0..backends.len() as u16).collect();
    PoolTable { pool: record, backends, slots }
}

pub(crate) fn vip(text: &str) -> VipRecord {
    VipRecord { name: Name::new(text), address: Address::host(ip(text)) }
}

pub(crate) fn listener(index: u32, protocol: u8, port: u16, mode: Mode, pool: u32) -> ListenerRecord {
    ListenerRecord {
        name: Name::new(&format!("listener{index}")),
        index,
        vip: 0,
        pool,
        port_first: port,
        port_last: port,
        protocol,
        mode: mode as u8,
        gue_variant: 0,
        on_down: OnDown::Reselect as u8,
        gue_port: 6_080,
        application: Application::None as u8,
        drain: 0,
        proxy: NO_INDEX,
    }
}

/// A table of HTTP for a listener, with a route to each of these pools and a path of its own.
pub(crate) fn site(listener: u32, paths: &[(&str, u32)]) -> HttpTable {
    let mut arena = Arena::default();
    let mut table = HttpTable {
        head: HttpRecord {
            listener,
            default_pool: NO_INDEX,
            request_header_ms: 10_000,
            request_body_ms: 10_000,
            response_header_ms: 10_000,
            response_idle_ms: 10_000,
            keep_alive_ms: 10_000,
            tunnel_ms: 10_000,
            header_bytes: 16 << 10,
            headers: 100,
            uri_bytes: 8 << 10,
            ..HttpRecord::default()
        },
        ..HttpTable::default()
    };
    for (position, (path, pool)) in (0u32..).zip(paths) {
        table.splits.push(SplitRecord { pool: *pool, weight: 1 });
        table.routes.push(RouteRecord {
            name: arena.put(format!("route{position}")),
            path: arena.put(path),
            path_kind: PathKind::Regex as u8,
            pools: Stretch { first: position, count: 1 },
            ..RouteRecord::new()
        });
    }
    HttpTable { arena: arena.into_bytes(), ..table }
}

impl Generation {
    /// The same with an HTTP listener of index 2, without a pool of its own, on port 81.
    pub(crate) fn with_http(mut self, paths: &[(&str, u32)]) -> Self {
        let mut http = listener(2, 6, 81, Mode::Proxy, NO_INDEX);
        (http.application, http.on_down, http.proxy) = (Application::Http as u8, OnDown::Reset as u8, 0);
        self.listeners.listeners.push(http);
        self.listeners.proxies.push(ProxyRecord::DEFAULT);
        self.sites.push(site(2, paths));
        self
    }

    /// `nat` for TCP 80 to b0 and b1 (port 8080), `dsr` for UDP 53 to b2 and b3.
    pub(crate) fn new(wan: &str, lan: &str) -> Self {
        let mut node = NodeRecord::new_zeroed();
        node.worker_cpus = [u16::MAX; 64];
        node.worker_count = 1;
        node.flows_ipv4 = 1_024;
        node.flows_ipv6 = 256;
        node.backend_capacity = 16;
        node.buffers = 2_047;
        node.idle = weir_abi::record::IDLE_ADAPTIVE;
        node.icmp_rate = 100;
        node.timeouts_ms = [60_000, 900_000, 60_000, 60_000, 30_000, 300_000, 60_000, 60_000, 300_000, 200];
        node.snat_port_first = 1_024;
        node.snat_port_last = 65_535;
        node.tcp_connections = 1_024;
        node.tcp_memory_bytes = 1 << 20;
        node.http_memory_bytes = 1 << 20;
        let node = NodeTable {
            node,
            ports: vec![port("wan", wan), port("lan", lan)],
            addresses: vec![
                address(WAN, "198.18.0.254", 24, AddressUse::Own),
                address(WAN, "2001:db8::fe", 64, AddressUse::Own),
                address(LAN, "198.18.1.254", 24, AddressUse::Own),
                address(LAN, "2001:db8:1::fe", 64, AddressUse::Own),
                address(LAN, SNAT, 32, AddressUse::Snat),
            ],
            routes: vec![route(WAN, "0.0.0.0", 0, GATEWAY)],
        };
        let listeners = ListenersTable {
            vips: vec![vip(VIP), vip(VIP_V6)],
            listeners: vec![listener(0, 6, 80, Mode::Nat, 0), listener(1, 17, 53, Mode::Dsr, 1)],
            proxies: vec![],
            trusted: vec![],
        };
        let pools = vec![
            pool(0, vec![backend(0, "198.18.1.11", 8_080), backend(1, "198.18.1.12", 8_080)]),
            pool(1, vec![backend(2, "198.18.1.13", 0), backend(3, "198.18.1.14", 0)]),
        ];
        Self { node, listeners, pools, sites: vec![] }
    }

    /// Writes the tables and the root, as a control plane does before it publishes the number.
    pub(crate) fn write(&self, directory: &SegmentDir, generation: u64) -> Root {
        let mut images = vec![self.node.encode(), self.listeners.encode()];
        images.extend(self.pools.iter().map(PoolTable::encode));
        images.extend(self.sites.iter().map(HttpTable::encode));
        for image in &images {
            directory.publish(&table_name(image.reference.id), &image.bytes).unwrap();
        }
        let tables = images.iter().map(|image| image.reference).collect();
        let root = Root { generation, created_unix_ms: 1, tables };
        directory.publish(&root_name(generation), &root.encode()).unwrap();
        root
    }
}
