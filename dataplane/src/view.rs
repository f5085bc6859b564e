//! What a worker runs: one generation's services, addresses and routes, made from a verified snapshot.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use weir_abi::record::{AddressUse, AdminState, Algorithm, ListenerRecord, Mode, OnDown, Timeout};
use weir_abi::{NodeTable, PoolTable};
use weir_l4::rate::TICKS_PER_SECOND;
use weir_l4::services::{self, FoldState};
use weir_l4::table::Lifetimes;
use weir_l4::{Backend, Listener, Parts, Pool, Services, bits_of};
use weir_net::Prefix;

use crate::neighbour::{NeighbourId, Neighbours};
use crate::snapshot::Snapshot;

/// One generation for the workers.
#[derive(Debug)]
pub struct View {
    /// Number of the generation.
    pub generation: u64,
    /// What is balanced.
    pub services: Arc<Services>,
    /// Ports by index.
    pub ports: Vec<PortView>,
    /// Addresses that ARP and NDP are answered for on every port: vips.
    pub vips: HashSet<u128, FoldState>,
    /// Longest prefix first.
    routes: Vec<Route>,
    /// Next hops that this generation names.
    pub next_hops: HashSet<NeighbourId>,
}

/// A port's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortView {
    /// Name in the configuration.
    pub name: String,
    /// Largest IP packet.
    pub mtu: u16,
    /// VLAN of all its frames.
    pub vlan: Option<u16>,
    /// Own addresses with their on-link prefix.
    pub own: Vec<Prefix>,
    /// Source addresses of `fullnat` on this port.
    pub snat: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Route {
    network: u128,
    mask: u128,
    is_v4: bool,
    /// Prefix length within the 128-bit form.
    length: u32,
    port: u16,
    gateway: Option<(NeighbourId, IpAddr)>,
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To a gateway.
    Gateway(u16, NeighbourId, IpAddr),
    /// To the destination itself, on this port.
    OnLink(u16),
}

impl View {
    /// The way to an address.
    #[inline]
    pub fn route(&self, address: u128) -> Option<Hop> {
        // IPv4 addresses are IPv4-mapped here, which `::/0` would match too
        let is_v4 = address >> 32 == 0xffff;
        let fits = |route: &&Route| address & route.mask == route.network && route.is_v4 == is_v4;
        let route = self.routes.iter().find(fits)?;
        Some(match route.gateway {
            Some((id, address)) => Hop::Gateway(route.port, id, address),
            None => Hop::OnLink(route.port),
        })
    }

    /// Makes a generation runnable. `retired` are listeners of the running one, so that flows of removed ones go on.
    pub fn build(
        snapshot: &Snapshot,
        previous: Option<&Services>,
        neighbours: &mut Neighbours,
        now_ms: u64,
    ) -> Self {
        let node = &snapshot.node;
        let ports = ports_of(node);
        let mut next_hops = HashSet::new();
        let mut routes = Vec::new();
        for (index, port) in (0u16..).zip(&ports) {
            routes.extend(port.own.iter().map(|prefix| Route::new(prefix, index, None)));
        }
        for record in &node.routes {
            let (Some(prefix), Some(gateway)) = (record.prefix.ip(), record.gateway.ip()) else { continue };
            let Ok(prefix) = Prefix::new(prefix, record.prefix.prefix_length) else { continue };
            let id = neighbours.configured(record.port, gateway, now_ms);
            next_hops.insert(id);
            routes.push(Route::new(&prefix, record.port, Some((id, gateway))));
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.length));

        let mut view = Self {
            generation: snapshot.generation,
            services: Arc::new(Services::new(Parts::default())),
            vips: snapshot.listeners.vips.iter().filter_map(|vip| vip.address.ip().map(bits_of)).collect(),
            routes,
            ports,
            next_hops,
        };
        let mut backends = Vec::new();
        for table in &snapshot.pools {
            for record in &table.1.backends {
                if let Some(backend) = view.backend(record, neighbours, now_ms) {
                    backends.push((record.index, backend));
                }
            }
        }
        let addresses = |usage| {
            let wanted =
                move |record: &&weir_abi::record::InterfaceAddressRecord| record.usage == usage as u8;
            node.addresses.iter().filter(wanted).filter_map(|record| record.address.ip()).map(bits_of)
        };
        let parts = Parts {
            generation: snapshot.generation,
            listeners: listeners_of(snapshot, previous),
            pools: snapshot.pools.iter().map(|(_, table)| pool_of(table)).collect(),
            backends,
            vips: view.vips.iter().copied().collect(),
            own: addresses(AddressUse::Own).collect(),
            snat: addresses(AddressUse::Snat).collect(),
            snat_ports: (node.node.snat_port_first, node.node.snat_port_last),
            hash_key: (node.node.keyed_hash == 1).then_some(node.node.hash_key),
            lifetimes: Some(lifetimes_of(node)),
            fragment_ticks: timeout_of(node, Timeout::Fragment),
            icmp_rate: node.node.icmp_rate,
            smallest_mtu: view.ports.iter().map(|port| port.mtu).min().unwrap_or(1_500),
        };
        view.services = Arc::new(Services::new(parts));
        view
    }

    fn backend(
        &mut self,
        record: &weir_abi::record::BackendRecord,
        neighbours: &mut Neighbours,
        now_ms: u64,
    ) -> Option<Backend> {
        let address = record.address.ip()?;
        let (egress, id) = match self.route(bits_of(address)) {
            Some(Hop::Gateway(port, id, _)) => (port, id),
            Some(Hop::OnLink(port)) => (port, neighbours.configured(port, address, now_ms)),
            // the control plane refuses such a backend; a packet for it is dropped as unroutable
            None => (0, NeighbourId(u32::MAX)),
        };
        self.next_hops.insert(id);
        let port = self.ports.get(usize::from(egress))?;
        let same_family = |prefix: &&Prefix| prefix.addr.is_ipv4() == address.is_ipv4();
        let near = port.own.iter().find(|prefix| prefix.contains(address));
        let source = near.or_else(|| port.own.iter().find(same_family)).map(|prefix| bits_of(prefix.addr));
        Some(Backend {
            address: bits_of(address),
            port: record.address.port,
            family: record.address.family,
            down: record.down != 0 || record.admin == AdminState::Maint as u8,
            mtu: port.mtu,
            egress,
            next_hop: id.0,
            tunnel_source: source.unwrap_or(0),
        })
    }
}

impl Route {
    fn new(prefix: &Prefix, port: u16, gateway: Option<(NeighbourId, IpAddr)>) -> Self {
        let host_bits = match prefix.addr {
            IpAddr::V4(_) => 32u32.saturating_sub(u32::from(prefix.len)),
            IpAddr::V6(_) => 128u32.saturating_sub(u32::from(prefix.len)),
        };
        let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        let length = 128 - host_bits.min(128);
        Self {
            network: bits_of(prefix.addr) & mask,
            mask,
            is_v4: prefix.addr.is_ipv4(),
            length,
            port,
            gateway,
        }
    }
}

fn ports_of(node: &NodeTable) -> Vec<PortView> {
    let view = |(index, record): (u16, &weir_abi::record::PortRecord)| {
        let mine = |usage: AddressUse| {
            node.addresses.iter().filter(move |a| a.port == index && a.usage == usage as u8)
        };
        PortView {
            name: record.name.as_str().to_owned(),
            mtu: record.mtu,
            vlan: (record.vlan != 0).then_some(record.vlan),
            own: mine(AddressUse::Own)
                .filter_map(|a| Prefix::new(a.address.ip()?, a.address.prefix_length).ok())
                .collect(),
            snat: mine(AddressUse::Snat).filter_map(|a| a.address.ip()).collect(),
        }
    };
    (0u16..).zip(&node.ports).map(view).collect()
}

fn ticks(milliseconds: u32) -> u32 {
    (u64::from(milliseconds) * u64::from(TICKS_PER_SECOND)).div_ceil(1_000).min(u64::from(u32::MAX)) as u32
}

fn lifetimes_of(node: &NodeTable) -> Lifetimes {
    Lifetimes {
        embryonic: timeout_of(node, Timeout::TcpEmbryonic),
        established: timeout_of(node, Timeout::TcpEstablished),
        closing: timeout_of(node, Timeout::TcpClosing),
        udp: timeout_of(node, Timeout::Udp),
    }
}

/// A timeout in ticks of the engine's clock.
fn timeout_of(node: &NodeTable, timeout: Timeout) -> u32 {
    ticks(node.node.timeouts_ms.get(timeout as usize).copied().unwrap_or(0))
}

fn pool_of(table: &PoolTable) -> Arc<Pool> {
    Arc::new(Pool {
        index: table.pool.index,
        algorithm: match Algorithm::from_u8(table.pool.algorithm) {
            Some(Algorithm::RoundRobin) => services::Algorithm::RoundRobin,
            Some(Algorithm::SourceHash) => services::Algorithm::SourceHash,
            Some(Algorithm::Maglev) | None => services::Algorithm::Maglev,
        },
        slots: table.slots.clone().into_boxed_slice(),
        members: table.backends.iter().map(|backend| backend.index).collect(),
    })
}

fn listeners_of(snapshot: &Snapshot, previous: Option<&Services>) -> Vec<Listener> {
    let vips = &snapshot.listeners.vips;
    let listener = |record: &ListenerRecord| {
        Some(Listener {
            index: u16::try_from(record.index).ok()?,
            vip: bits_of(vips.get(record.vip as usize)?.address.ip()?),
            protocol: record.protocol,
            port_first: record.port_first,
            port_last: record.port_last,
            mode: match Mode::from_u8(record.mode)? {
                Mode::Dsr => services::Mode::Dsr,
                Mode::Ipip => services::Mode::Ipip,
                Mode::Gue => services::Mode::Gue,
                Mode::Nat => services::Mode::Nat,
                Mode::Fullnat => services::Mode::Fullnat,
            },
            pool: record.pool,
            on_down: match OnDown::from_u8(record.on_down)? {
                OnDown::Reselect => services::OnDown::Reselect,
                OnDown::Reset => services::OnDown::Reset,
                OnDown::Keep => services::OnDown::Keep,
            },
            gue_variant: record.gue_variant,
            gue_port: record.gue_port,
            retired: false,
        })
    };
    let mut listeners: Vec<Listener> = snapshot.listeners.listeners.iter().filter_map(listener).collect();
    let named: HashMap<u16, ()> = listeners.iter().map(|listener| (listener.index, ())).collect();
    if let Some(previous) = previous {
        let gone = previous.listeners().filter(|listener| !named.contains_key(&listener.index));
        listeners.extend(gone.map(|listener| Listener { retired: true, ..listener.clone() }));
    }
    listeners
}
