//! What a worker runs: one generation's services, addresses and routes, made from a verified snapshot.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use weir_abi::NodeTable;
use weir_abi::record::{AddressUse, AdminState, Drain, ListenerRecord, Mode, OnDown, Timeout};
use weir_l4::rate::TICKS_PER_SECOND;
use weir_l4::services::{self, FoldState};
use weir_l4::table::Lifetimes;
use weir_l4::{Backend, Listener, Parts, Services, bits_of};
use weir_net::Prefix;

use crate::neighbour::{NeighbourId, Neighbours};
use crate::proxied::Proxied;
use crate::reach::Reach;
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
    /// What is proxied.
    pub proxied: Proxied,
    /// Packets that a worker may hand to the kernel, per second.
    pub exception_rate: u32,
    /// The ways to its backends.
    pub reach: Reach,
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
    /// Whether the kernel has its own addresses too.
    pub has_exception: bool,
    /// Own addresses with their on-link prefix.
    pub own: Vec<Prefix>,
    /// Source addresses of `fullnat` for backends behind this port: those configured, else the port's own of that family.
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
        Ways { routes: &self.routes, ports: &self.ports }.route(address)
    }

    /// Makes a generation runnable. What it has in common with the running one is shared, and flows of listeners that are gone
    /// go on.
    pub fn build(
        snapshot: &Snapshot,
        previous: Option<&Self>,
        neighbours: &mut Neighbours,
        now_ms: u64,
    ) -> Self {
        let services = previous.map(|previous| &*previous.services);
        let node = &snapshot.node;
        let ports = ports_of(node);
        let mut gateways = Vec::new();
        let mut routes = Vec::new();
        for (index, port) in (0u16..).zip(&ports) {
            routes.extend(port.own.iter().map(|prefix| Route::new(prefix, index, None)));
        }
        for record in &node.routes {
            let (Some(prefix), Some(gateway)) = (record.prefix.ip(), record.gateway.ip()) else { continue };
            let Ok(prefix) = Prefix::new(prefix, record.prefix.prefix_length) else { continue };
            let id = neighbours.configured(record.port, gateway, now_ms);
            gateways.push(id);
            routes.push(Route::new(&prefix, record.port, Some((id, gateway))));
        }
        routes.sort_by_key(|route| std::cmp::Reverse(route.length));

        let ways = Ways { routes: &routes, ports: &ports };
        let reach = Reach::of(snapshot, previous.map(|previous| &previous.reach), &gateways, |record| {
            ways.backend(record, neighbours, now_ms)
        });
        let mut view = Self {
            generation: snapshot.generation,
            services: Arc::new(Services::new(Parts::default())),
            vips: snapshot.listeners.vips.iter().filter_map(|vip| vip.address.ip().map(bits_of)).collect(),
            routes,
            ports,
            reach,
            exception_rate: node.node.exception_rate,
            proxied: Proxied::default(),
        };
        let addresses = |usage| {
            let wanted =
                move |record: &&weir_abi::record::InterfaceAddressRecord| record.usage == usage as u8;
            node.addresses.iter().filter(wanted).filter_map(|record| record.address.ip()).map(bits_of)
        };
        let snat: Vec<(u128, u16)> = (0u16..)
            .zip(&view.ports)
            .flat_map(|(index, port)| port.snat.iter().map(move |address| (bits_of(*address), index)))
            .collect();
        let flows = (u64::from(node.node.flows_ipv4) + u64::from(node.node.flows_ipv6))
            * u64::from(node.node.worker_count);
        let named: HashSet<u32> =
            snapshot.listeners.listeners.iter().map(|listener| listener.index).collect();
        let (policies, access) =
            snapshot.access.policies(services, flows, |index| named.contains(&index.into()));
        let parts = Parts {
            generation: snapshot.generation,
            listeners: listeners_of(snapshot, services),
            policies,
            access,
            pools: snapshot.pools.iter().map(|pool| Arc::clone(&pool.pool)).collect(),
            backends: Vec::new(),
            vips: view.vips.iter().copied().collect(),
            own: addresses(AddressUse::Own).collect(),
            kernel: view.kernel_addresses().map(bits_of).collect(),
            snat: snat.iter().map(|(address, _)| *address).collect(),
            snat_egress: snat,
            snat_ports: (node.node.snat_port_first, node.node.snat_port_last),
            hash_key: (node.node.keyed_hash == 1).then_some(node.node.hash_key),
            lifetimes: Some(lifetimes_of(node)),
            fragment_ticks: timeout_of(node, Timeout::Fragment),
            drains: drains_of(snapshot),
            icmp_rate: node.node.icmp_rate,
            smallest_mtu: view.ports.iter().map(|port| port.mtu).min().unwrap_or(1_500),
        };
        let mtu = parts.smallest_mtu;
        view.proxied = Proxied::of(snapshot, mtu);
        view.services = Arc::new(Services::with_backends(parts, view.reach.backends.clone()));
        view
    }

    /// Addresses that the kernel has too.
    fn kernel_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ports = self.ports.iter().filter(|port| port.has_exception);
        ports.flat_map(|port| port.own.iter().map(|prefix| prefix.addr))
    }

    /// The port whose own address this is.
    pub fn port_of(&self, address: u128) -> Option<u16> {
        let is_own = |port: &PortView| port.own.iter().any(|prefix| bits_of(prefix.addr) == address);
        (0u16..).zip(&self.ports).find(|(_, port)| is_own(port)).map(|(index, _)| index)
    }
}

/// Routes and the ports that they lead to.
#[derive(Clone, Copy)]
struct Ways<'a> {
    /// Longest prefix first.
    routes: &'a [Route],
    ports: &'a [PortView],
}

impl Ways<'_> {
    #[inline]
    fn route(&self, address: u128) -> Option<Hop> {
        // IPv4 addresses are IPv4-mapped here, which `::/0` would match too
        let is_v4 = address >> 32 == 0xffff;
        let fits = |route: &&Route| address & route.mask == route.network && route.is_v4 == is_v4;
        let route = self.routes.iter().find(fits)?;
        Some(match route.gateway {
            Some((id, address)) => Hop::Gateway(route.port, id, address),
            None => Hop::OnLink(route.port),
        })
    }

    fn backend(
        &self,
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
        let own: Vec<Prefix> = mine(AddressUse::Own)
            .filter_map(|a| Prefix::new(a.address.ip()?, a.address.prefix_length).ok())
            .collect();
        PortView {
            name: record.name.as_str().to_owned(),
            mtu: record.mtu,
            vlan: (record.vlan != 0).then_some(record.vlan),
            has_exception: !record.exception.is_empty(),
            snat: sources(&own, mine(AddressUse::Snat).filter_map(|a| a.address.ip()).collect()),
            own,
        }
    };
    (0u16..).zip(&node.ports).map(view).collect()
}

fn sources(own: &[Prefix], mut configured: Vec<IpAddr>) -> Vec<IpAddr> {
    for family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
        if !configured.iter().any(family) {
            configured.extend(own.iter().map(|prefix| prefix.addr).filter(family));
        }
    }
    configured
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

fn drains_of(snapshot: &Snapshot) -> Vec<(u16, services::Drain)> {
    let drain = |record: &ListenerRecord| {
        let drain = match Drain::from_u8(record.drain)? {
            Drain::No => return None,
            Drain::Yes => services::Drain::Yes,
            Drain::Cut => services::Drain::Cut,
        };
        Some((u16::try_from(record.index).ok()?, drain))
    };
    snapshot.listeners.listeners.iter().filter_map(drain).collect()
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
                Mode::Proxy => services::Mode::Proxy,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, GATEWAY, Generation, LAN, SNAT, VIP, VIP_V6, WAN, ip};
    use hugepages::segment::SegmentDir;
    use weir_abi::record::{AdminState as Admin, Algorithm};

    struct Built {
        snapshot: Snapshot,
        view: View,
        neighbours: Neighbours,
    }

    /// What follows on `previous`, or begins.
    fn build(change: impl FnOnce(&mut Generation), previous: Option<&Built>) -> Built {
        let parent = tempfile::tempdir().unwrap();
        let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
        let mut generation = Generation::new("null:", "null:");
        change(&mut generation);
        generation.write(&directory, 4);
        let snapshot = Snapshot::load(&directory, 4, None).unwrap();
        let mut neighbours =
            previous.map_or_else(|| Neighbours::new(1_000), |previous| previous.neighbours.clone());
        let view = View::build(&snapshot, previous.map(|previous| &previous.view), &mut neighbours, 0);
        Built { snapshot, view, neighbours }
    }

    /// The port of an address's way and the gateway on it.
    fn way(view: &View, address: &str) -> Option<(u16, Option<IpAddr>)> {
        Some(match view.route(bits_of(ip(address)))? {
            Hop::Gateway(port, _, gateway) => (port, Some(gateway)),
            Hop::OnLink(port) => (port, None),
        })
    }

    #[test]
    fn listeners_of_http_have_rules_for_all_their_pools() {
        let built =
            build(|generation| *generation = generation.clone().with_http(&[("/a", 0), ("/b+", 1)]), None);
        let rules = &built.view.proxied.rules;
        assert!(rules.http_listener(2).is_some() && rules.listener(2).is_some());
        assert!(rules.http_listener(0).is_none() && rules.listener(0).is_none());
        for pool in [0, 1] {
            assert!(rules.pool(pool).is_some() && rules.http_pool(pool).is_some(), "pool {pool}");
        }
        assert_eq!(built.view.proxied.http_memory, 1 << 20);
        let listener = built.view.services.listener(2).unwrap();
        assert!(built.view.services.pool(listener.pool).is_none());
    }

    #[test]
    fn the_longest_prefix_wins() {
        let near = "198.18.1.1";
        let Built { view, .. } = build(
            |generation| {
                generation.node.routes.extend([
                    sample::route(LAN, "203.0.113.0", 24, near),
                    sample::route(WAN, "203.0.113.128", 25, "198.18.0.2"),
                    sample::route(LAN, "203.0.113.200", 32, "198.18.1.2"),
                    // not on the link, although the same network is
                    sample::route(WAN, "198.18.1.64", 26, "198.18.0.3"),
                    // as long as the port's own network: on the link
                    sample::route(WAN, "198.18.1.0", 24, "198.18.0.4"),
                ]);
            },
            None,
        );
        let gateway = |port, gateway| Some((port, Some(ip(gateway))));
        assert_eq!(way(&view, "198.18.2.7"), gateway(WAN, GATEWAY));
        assert_eq!(way(&view, "203.0.113.1"), gateway(LAN, near));
        assert_eq!(way(&view, "203.0.113.129"), gateway(WAN, "198.18.0.2"));
        assert_eq!(way(&view, "203.0.113.200"), gateway(LAN, "198.18.1.2"));
        assert_eq!(way(&view, "198.18.1.65"), gateway(WAN, "198.18.0.3"));
        assert_eq!(way(&view, "198.18.1.11"), Some((LAN, None)));
        assert_eq!(way(&view, "198.18.0.9"), Some((WAN, None)));
        assert_eq!(way(&view, "2001:db8:1::77"), Some((LAN, None)));
        assert_eq!(way(&view, "2001:db8:2::77"), None);
    }

    #[test]
    fn a_default_route_is_for_its_family_only() {
        let Built { view, .. } = build(
            |generation| generation.node.routes = vec![sample::route(WAN, "::", 0, "2001:db8::1")],
            None,
        );
        assert_eq!(way(&view, "2001:db8:ffff::1"), Some((WAN, Some(ip("2001:db8::1")))));
        assert_eq!(way(&view, "203.0.113.1"), None);
        let Built { view, .. } = build(|_| (), None);
        assert_eq!(way(&view, "203.0.113.1"), Some((WAN, Some(ip(GATEWAY)))));
        assert_eq!(way(&view, "2001:db8:ffff::1"), None);
        assert_eq!(way(&view, "255.255.255.255"), Some((WAN, Some(ip(GATEWAY)))));
    }

    #[test]
    fn backends_are_reached_on_the_link_or_through_a_gateway() {
        let far = ["203.0.113.5", "203.0.113.6"];
        let Built { view, mut neighbours, .. } = build(
            |generation| {
                let record = |index, address: &str| sample::backend(index, address, 8_080);
                generation.pools[0].backends = vec![
                    record(0, "198.18.1.11"),
                    record(1, far[0]),
                    record(4, far[1]),
                    record(5, "2001:db8:1::5"),
                    record(6, "2001:db8:9::6"),
                ];
                generation.pools[0].slots = vec![0];
                generation.node.ports[usize::from(LAN)].mtu = 1_400;
            },
            None,
        );
        let backend = |index| view.services.backend(index).unwrap();
        let id =
            |port, address: &str, neighbours: &mut Neighbours| neighbours.configured(port, ip(address), 0).0;
        let near = backend(0);
        assert_eq!((near.egress, near.mtu, near.port, near.family), (LAN, 1_400, 8_080, 4));
        assert_eq!(near.next_hop, id(LAN, "198.18.1.11", &mut neighbours));
        assert_eq!(near.tunnel_source, bits_of(ip("198.18.1.254")));
        // both behind the same gateway: one next hop, and the address of the port that leads there
        for index in [1, 4] {
            assert_eq!((backend(index).egress, backend(index).mtu), (WAN, 1_500));
            assert_eq!(backend(index).next_hop, id(WAN, GATEWAY, &mut neighbours));
            assert_eq!(backend(index).tunnel_source, bits_of(ip("198.18.0.254")));
        }
        assert_eq!((backend(5).egress, backend(5).family), (LAN, 6));
        assert_eq!(backend(5).tunnel_source, bits_of(ip("2001:db8:1::fe")));
        // no way: known, and a next hop that never answers
        assert_eq!(backend(6).next_hop, u32::MAX);
        assert!(!neighbours.is_resolved(NeighbourId(backend(6).next_hop)));
        for next_hop in [near.next_hop, backend(1).next_hop, backend(5).next_hop] {
            assert!(view.reach.next_hops.contains(&NeighbourId(next_hop)));
        }
        assert_eq!(view.services.smallest_mtu, 1_400);
    }

    #[test]
    fn maintenance_and_health_take_a_backend_down_but_draining_does_not() {
        let states = [
            (Admin::Ready, 0, false),
            (Admin::Ready, 1, true),
            (Admin::Drain, 0, false),
            (Admin::Maint, 0, true),
            (Admin::Removed, 0, false),
        ];
        for (admin, down, expected) in states {
            let change = |generation: &mut Generation| {
                generation.pools[0].backends[0].admin = admin as u8;
                generation.pools[0].backends[0].down = down;
            };
            let Built { view, .. } = build(change, None);
            assert_eq!(view.services.backend(0).unwrap().down, expected, "{admin:?} {down}");
        }
    }

    #[test]
    fn ports_have_their_addresses_and_vips_belong_to_none() {
        let Built { view, .. } = build(|generation| generation.node.ports[1].vlan = 7, None);
        let [wan, lan] = view.ports.as_slice() else { panic!("{:?}", view.ports) };
        assert_eq!((wan.name.as_str(), wan.vlan, lan.name.as_str(), lan.vlan), ("wan", None, "lan", Some(7)));
        let own: Vec<String> =
            lan.own.iter().map(|prefix| format!("{}/{}", prefix.addr, prefix.len)).collect();
        assert_eq!(own, ["198.18.1.254/24", "2001:db8:1::fe/64"]);
        // sources of fullnat: the configured ones, and the port's own of a family without any
        assert_eq!(wan.snat, ["198.18.0.254", "2001:db8::fe"].map(ip));
        assert_eq!(lan.snat, [SNAT, "2001:db8:1::fe"].map(ip));
        assert_eq!(
            view.services.snat,
            ["198.18.0.254", "2001:db8::fe", SNAT, "2001:db8:1::fe"].map(|a| bits_of(ip(a)))
        );
        let vips = [VIP, VIP_V6].map(|vip| bits_of(ip(vip)));
        assert!(view.vips.len() == 2 && vips.iter().all(|vip| view.vips.contains(vip)));
        assert!(view.services.is_own(bits_of(ip("198.18.0.254"))) && view.services.is_own(bits_of(ip(SNAT))));
        assert!(!view.services.is_own(vips[0]) && view.services.is_vip(vips[0]));
    }

    #[test]
    fn removed_listeners_stay_for_their_flows_and_come_back() {
        let vip = bits_of(ip(VIP));
        let first = build(|_| (), None);
        let finds =
            |built: &Built| built.view.services.listener_for(vip, 17, 53).map(|listener| listener.index);
        assert_eq!((first.view.generation, finds(&first)), (4, Some(1)));
        let without = |generation: &mut Generation| generation.listeners.listeners.truncate(1);
        let second = build(without, Some(&first));
        assert_eq!(finds(&second), None, "new flows find none");
        let kept = second.view.services.listener(1).unwrap();
        let original = first.view.services.listener(1).unwrap();
        assert_eq!(*kept, Listener { retired: true, ..original.clone() });
        // and through further generations
        let third = build(without, Some(&second));
        assert!(third.view.services.listener(1).is_some_and(|listener| listener.retired));
        let fourth = build(|_| (), Some(&third));
        assert_eq!(finds(&fourth), Some(1));
        assert_eq!(fourth.view.services.listener(1), Some(original));
        // an index that means something else now is not carried over
        let reuse = |generation: &mut Generation| generation.listeners.listeners[1].port_first = 50;
        let fifth = build(reuse, Some(&fourth));
        assert_eq!(fifth.view.services.listener(1).unwrap().port_first, 50);
    }

    #[test]
    fn what_two_generations_have_in_common_is_shared() {
        let first = build(|_| (), None);
        let shares = |one: &Built, other: &Built| {
            let (one, other) = (&one.view.reach, &other.view.reach);
            (one.backends.is_same(&other.backends), Arc::ptr_eq(&one.next_hops, &other.next_hops))
        };
        let heavier = build(|g| g.pools[0].backends[0].weight = 7, Some(&first));
        assert_eq!(shares(&first, &heavier), (true, true), "a weight is no way");
        let down = build(|g| g.pools[0].backends[0].down = 1, Some(&heavier));
        assert_eq!(shares(&heavier, &down), (false, true));
        let index = down.view.services.backends().next().unwrap().0;
        assert!(down.view.services.backend(index).unwrap().down);
        assert!(!heavier.view.services.backend(index).unwrap().down);
        let elsewhere = |g: &mut Generation| {
            g.pools[0].backends[0].address = weir_abi::record::Address::host(ip("198.18.1.77"));
        };
        let moved = build(elsewhere, Some(&first));
        assert_eq!(shares(&first, &moved), (false, false));
        let [old, new] = [&first, &moved].map(|built| built.view.services.backend(index).unwrap().address);
        assert!(moved.view.services.is_backend(new) && !moved.view.services.is_backend(old));
        // over another gateway: no table of a pool is new, and yet each way is
        let gateway = |g: &mut Generation| {
            g.node.routes.iter_mut().for_each(|route| {
                if route.gateway.ip() == Some(ip(GATEWAY)) {
                    route.gateway = weir_abi::record::Address::host(ip("198.18.0.77"));
                }
            });
        };
        let rerouted = build(gateway, Some(&first));
        assert_eq!(shares(&first, &rerouted), (false, false));
        assert_ne!(way(&first.view, "198.51.100.1"), way(&rerouted.view, "198.51.100.1"));
        // a view that shares is the one that would be made alone
        for built in [&heavier, &down, &moved, &rerouted] {
            let alone = View::build(&built.snapshot, None, &mut built.neighbours.clone(), 0);
            let list = |view: &View| -> Vec<_> {
                view.services.backends().map(|(index, backend)| (index, backend.clone())).collect()
            };
            assert_eq!(list(&built.view), list(&alone));
            assert_eq!(built.view.reach.next_hops, alone.reach.next_hops);
        }
    }

    #[test]
    fn a_timeout_is_never_cut_short_by_the_clock() {
        let expected =
            [(0, 0), (1, 1), (250, 1), (251, 2), (999, 4), (1_000, 4), (60_000, 240), (60_001, 241)];
        for (milliseconds, expected) in expected {
            assert_eq!(ticks(milliseconds), expected, "{milliseconds} ms");
        }
        assert_eq!(ticks(u32::MAX), 17_179_870);
        let Built { view, .. } = build(
            |generation| {
                generation.node.node.timeouts_ms =
                    [1_000, 2_000, 3_000, 4_000, 5_001, 6_000, 1_000, 1_000, 1_000, 200]
            },
            None,
        );
        let lifetimes = Lifetimes { embryonic: 4, established: 8, closing: 12, udp: 16 };
        assert_eq!((view.services.lifetimes, view.services.fragment_ticks), (lifetimes, 21));
    }

    #[test]
    fn records_become_what_the_engine_knows() {
        let Built { view, .. } = build(
            |generation| {
                generation.node.node.keyed_hash = 1;
                generation.node.node.hash_key = [3; 16];
                generation.pools[0].pool.algorithm = Algorithm::RoundRobin as u8;
                generation.pools[1].pool.algorithm = Algorithm::SourceHash as u8;
                let listener = &mut generation.listeners.listeners[0];
                (listener.vip, listener.mode, listener.on_down) = (1, Mode::Gue as u8, OnDown::Keep as u8);
                (listener.port_last, listener.gue_variant) = (90, 1);
            },
            None,
        );
        let services = &view.services;
        assert_eq!(services.hash_key, Some([3; 16]));
        assert_eq!(services.pool(0).unwrap().algorithm, services::Algorithm::RoundRobin);
        assert_eq!(services.pool(1).unwrap().algorithm, services::Algorithm::SourceHash);
        assert_eq!(services.pool(1).unwrap().member(1), Some(3));
        let expected = Listener {
            index: 0,
            vip: bits_of(ip(VIP_V6)),
            protocol: 6,
            port_first: 80,
            port_last: 90,
            mode: services::Mode::Gue,
            pool: 0,
            on_down: services::OnDown::Keep,
            gue_variant: 1,
            gue_port: 6_080,
            retired: false,
        };
        assert_eq!(services.listener(0), Some(&expected));
        assert_eq!(build(|_| (), None).view.services.hash_key, None);
    }
}
