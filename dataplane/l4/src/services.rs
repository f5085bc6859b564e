//! What the workers balance: one generation of listeners, pools and backends in the form that a packet needs.
//!
//! Built by the dataplane's management thread from a verified snapshot (or by a test), immutable, shared by all workers.
//! Addresses are 128-bit numbers in host order; IPv4 ones in their IPv4-mapped form (RFC 4291 §2.5.5.2), which never
//! appears on the wire, so that the families can't be confused.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use weir_access::{Policy, Shared};

use crate::table::Lifetimes;

/// An address as a number: IPv6, or IPv4-mapped IPv6.
pub fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a number.
pub fn address_of(bits: u128) -> IpAddr {
    std::net::Ipv6Addr::from_bits(bits).to_canonical()
}

/// How packets reach their backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only the MAC addresses are rewritten.
    Dsr,
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip,
    /// Generic UDP Encapsulation.
    Gue,
    /// The destination is rewritten.
    Nat,
    /// Source and destination are rewritten.
    Fullnat,
    /// Terminated by the worker; what reaches this engine all the same is dropped.
    Proxy,
}

impl Mode {
    /// Whether replies come back through Weir.
    #[inline]
    pub fn sees_replies(self) -> bool {
        matches!(self, Self::Nat | Self::Fullnat)
    }
}

/// What happens to flows of a backend that is down or in maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDown {
    /// Another backend takes over.
    Reselect,
    /// The client gets a RST (TCP) or nothing.
    Reset,
    /// Packets keep going to it.
    Keep,
}

/// Whether a listener takes new flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// It does.
    #[default]
    No,
    /// It takes none; those that there are go on.
    Yes,
    /// It takes none, and those that there are end.
    Cut,
}

/// How a new flow picks its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// Hash of the flow.
    Maglev,
    /// The worker's next slot.
    RoundRobin,
    /// Hash of the client's address.
    SourceHash,
}

/// A vip, protocol and ports with a mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Stable index.
    pub index: u16,
    /// The vip.
    pub vip: u128,
    /// IP protocol: 6 or 17.
    pub protocol: u8,
    /// First port.
    pub port_first: u16,
    /// Last port, inclusive.
    pub port_last: u16,
    /// How packets reach the backend.
    pub mode: Mode,
    /// Index of the pool.
    pub pool: u32,
    /// For flows of backends that are down.
    pub on_down: OnDown,
    /// GUE variant, 0 or 1.
    pub gue_variant: u8,
    /// GUE's UDP destination port.
    pub gue_port: u16,
    /// Not in the configuration any more: established flows go on, new ones find no listener.
    pub retired: bool,
}

impl Listener {
    /// What must stay the same while flows name the listener by its index.
    pub fn identity(&self) -> (u128, u8, Mode) {
        (self.vip, self.protocol, self.mode)
    }
}

/// Backends with an algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Stable index.
    pub index: u32,
    /// How slots are picked.
    pub algorithm: Algorithm,
    /// Positions in `members`; `u16::MAX` where no backend takes new flows. Never empty.
    pub slots: Box<[u16]>,
    /// Backend indices by position.
    pub members: Box<[u32]>,
}

impl Pool {
    /// The backend of a slot.
    #[inline]
    pub fn member(&self, slot: usize) -> Option<u32> {
        let position = *self.slots.get(slot)?;
        self.members.get(usize::from(position)).copied()
    }
}

/// One server, and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its address.
    pub address: u128,
    /// Its port; 0 keeps the client's.
    pub port: u16,
    /// 4 or 6; 0 stands for no backend of this index.
    pub family: u8,
    /// In maintenance or down by health: its flows follow the listener's [`OnDown`].
    pub down: bool,
    /// Largest IP packet on the way to it.
    pub mtu: u16,
    /// Index of the port that leads to it.
    pub egress: u16,
    /// The dataplane's id of the next hop.
    pub next_hop: u32,
    /// Source address of tunnels to it; 0 where there is none.
    pub tunnel_source: u128,
}

impl Backend {
    /// No backend.
    pub const NONE: Self = Self {
        address: 0,
        port: 0,
        family: 0,
        down: true,
        mtu: 0,
        egress: 0,
        next_hop: u32::MAX,
        tunnel_source: 0,
    };

    /// What must stay the same while flows name the backend by its index.
    pub fn identity(&self) -> (u128, u16) {
        (self.address, self.port)
    }

    /// The port on which it serves flows of `vip_port`.
    #[inline]
    pub fn serves(&self, vip_port: u16) -> u16 {
        if self.port == 0 { vip_port } else { self.port }
    }
}

/// What a new generation is made of.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Number of the generation.
    pub generation: u64,
    /// All listeners.
    pub listeners: Vec<Listener>,
    /// All pools.
    pub pools: Vec<Arc<Pool>>,
    /// Backends with their index; those of [`Services::with_backends`] are in their place.
    pub backends: Vec<(u32, Backend)>,
    /// Vips, also those without listeners: they answer echo.
    pub vips: Vec<u128>,
    /// Weir's own addresses.
    pub own: Vec<u128>,
    /// Those of them that the kernel has too, by the exception path.
    pub kernel: Vec<u128>,
    /// Source addresses of `fullnat`.
    pub snat: Vec<u128>,
    /// Which of them serve backends behind which port; behind other ports all do.
    pub snat_egress: Vec<(u128, u16)>,
    /// Source ports of `fullnat`, inclusive.
    pub snat_ports: (u16, u16),
    /// Key of the hash that picks backends; `None` is the fixed hash.
    pub hash_key: Option<[u8; 16]>,
    /// Timeouts in ticks.
    pub lifetimes: Option<Lifetimes>,
    /// Ticks for which a fragment's ports are remembered.
    pub fragment_ticks: u32,
    /// Generated ICMP errors and RSTs per second and worker.
    pub icmp_rate: u32,
    /// Smallest MTU of all ports: what MSS is clamped to.
    pub smallest_mtu: u16,
    /// Listeners, by their index, that take no new flows.
    pub drains: Vec<(u16, Drain)>,
    /// What listeners, removed ones included, ask of new flows, by their index.
    pub policies: Vec<(u16, Policy)>,
    /// What the policies share.
    pub access: Option<Arc<Shared>>,
}

/// All backends, as generations that have the same ones share them.
#[derive(Clone, Debug)]
pub struct Backends {
    by_index: Arc<[Backend]>,
    addresses: Arc<HashSet<u128, FoldState>>,
}

impl Backends {
    /// From backends with their index.
    pub fn new(list: &[(u32, Backend)]) -> Self {
        let addresses = list.iter().filter(|(_, backend)| backend.family != 0);
        let addresses = addresses.map(|(_, backend)| backend.address).collect();
        Self { by_index: by_index(list), addresses: Arc::new(addresses) }
    }

    /// Whether these are the same ones, not only equal ones.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.by_index, &other.by_index)
    }

    /// As [`Self::new`], where the list has the addresses that these have.
    pub fn at_same_addresses(&self, list: &[(u32, Backend)]) -> Self {
        Self { by_index: by_index(list), addresses: Arc::clone(&self.addresses) }
    }
}

fn by_index(list: &[(u32, Backend)]) -> Arc<[Backend]> {
    let highest = list.iter().map(|(index, _)| *index as usize + 1).max().unwrap_or(0);
    let mut backends = vec![Backend::NONE; highest];
    for (index, backend) in list {
        if let Some(place) = backends.get_mut(*index as usize) {
            place.clone_from(backend);
        }
    }
    backends.into()
}

/// One generation.
#[derive(Debug)]
pub struct Services {
    generation: u64,
    has_nat: bool,
    has_proxy: bool,
    has_fullnat: bool,
    listeners: Vec<Option<Listener>>,
    ranges: HashMap<(u128, u8), Box<[PortRange]>, FoldState>,
    pools: Vec<Option<Arc<Pool>>>,
    backends: Backends,
    vips: HashSet<u128, FoldState>,
    own: HashSet<u128, FoldState>,
    kernel: HashSet<u128, FoldState>,
    /// See [`Parts::snat`].
    pub snat: Vec<u128>,
    /// See [`Parts::snat_egress`].
    pub snat_egress: Vec<(u128, u16)>,
    /// See [`Parts::snat_ports`].
    pub snat_ports: (u16, u16),
    /// See [`Parts::hash_key`].
    pub hash_key: Option<[u8; 16]>,
    /// See [`Parts::lifetimes`].
    pub lifetimes: Lifetimes,
    /// See [`Parts::fragment_ticks`].
    pub fragment_ticks: u32,
    /// See [`Parts::icmp_rate`].
    pub icmp_rate: u32,
    /// See [`Parts::smallest_mtu`].
    pub smallest_mtu: u16,
    drains: Vec<Drain>,
    policies: Vec<Option<Policy>>,
    access: Option<Arc<Shared>>,
}

#[derive(Clone, Copy, Debug)]
struct PortRange {
    first: u16,
    last: u16,
    listener: u16,
}

impl Services {
    /// Indexes the parts.
    pub fn new(parts: Parts) -> Self {
        let backends = Backends::new(&parts.backends);
        Self::with_backends(parts, backends)
    }

    /// As [`Self::new`], where the backends are indexed already.
    pub fn with_backends(parts: Parts, backends: Backends) -> Self {
        let mut listeners: Vec<Option<Listener>> = Vec::new();
        let mut ranges: HashMap<(u128, u8), Vec<PortRange>, FoldState> = HashMap::default();
        for listener in parts.listeners {
            let at = usize::from(listener.index);
            if !listener.retired {
                ranges.entry((listener.vip, listener.protocol)).or_default().push(PortRange {
                    first: listener.port_first,
                    last: listener.port_last,
                    listener: listener.index,
                });
            }
            put(&mut listeners, at, listener);
        }
        let sorted = |mut ranges: Vec<PortRange>| {
            ranges.sort_by_key(|range| range.first);
            ranges.into_boxed_slice()
        };
        let mut pools: Vec<Option<Arc<Pool>>> = Vec::new();
        for pool in parts.pools {
            put(&mut pools, pool.index as usize, pool);
        }
        let mut drains = Vec::new();
        for (listener, drain) in parts.drains.into_iter().filter(|(_, drain)| *drain != Drain::No) {
            let at = usize::from(listener);
            drains.resize(drains.len().max(at + 1), Drain::No);
            if let Some(place) = drains.get_mut(at) {
                *place = drain;
            }
        }
        let mut policies = Vec::new();
        for (listener, policy) in parts.policies {
            put(&mut policies, usize::from(listener), policy);
        }
        Self {
            generation: parts.generation,
            has_fullnat: listeners.iter().flatten().any(|listener| listener.mode == Mode::Fullnat),
            has_proxy: listeners.iter().flatten().any(|listener| listener.mode == Mode::Proxy),
            has_nat: listeners.iter().flatten().any(|listener| listener.mode == Mode::Nat),
            listeners,
            ranges: ranges.into_iter().map(|(key, ranges)| (key, sorted(ranges))).collect(),
            pools,
            backends,
            vips: parts.vips.into_iter().collect(),
            own: parts.own.into_iter().collect(),
            kernel: parts.kernel.into_iter().collect(),
            snat: parts.snat,
            snat_egress: parts.snat_egress,
            snat_ports: parts.snat_ports,
            hash_key: parts.hash_key,
            lifetimes: parts.lifetimes.unwrap_or(Lifetimes {
                embryonic: 10,
                established: 900,
                closing: 30,
                udp: 60,
            }),
            fragment_ticks: parts.fragment_ticks,
            icmp_rate: parts.icmp_rate,
            smallest_mtu: parts.smallest_mtu,
            drains,
            policies,
            access: parts.access,
        }
    }

    /// Whether a listener takes new flows.
    #[inline]
    pub fn drain(&self, listener: u16) -> Drain {
        self.drains.get(usize::from(listener)).copied().unwrap_or_default()
    }

    /// Whether flows of some listener end now that `previous` is over.
    pub fn cuts_anew(&self, previous: &Self) -> bool {
        let cut = |(index, drain): (u16, &Drain)| *drain == Drain::Cut && previous.drain(index) != Drain::Cut;
        (0u16..).zip(&self.drains).any(cut)
    }

    /// What a listener asks of new flows.
    #[inline]
    pub fn policy(&self, listener: u16) -> Option<&Policy> {
        self.policies.get(usize::from(listener))?.as_ref()
    }

    /// All policies with the index of their listener.
    pub fn policies(&self) -> impl Iterator<Item = (u16, &Policy)> {
        (0u16..).zip(&self.policies).filter_map(|(index, policy)| Some((index, policy.as_ref()?)))
    }

    /// What the policies share.
    pub fn access(&self) -> Option<&Arc<Shared>> {
        self.access.as_ref()
    }

    /// Whether flows that were counted by source in `previous`, or not at all, must be counted anew.
    pub fn counts_anew(&self, previous: &Self) -> bool {
        match (&self.access, &previous.access) {
            (Some(now), Some(before)) => now.counts_anew(before),
            (now, _) => now.is_some(),
        }
    }

    /// Number of the generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The listener of an index.
    #[inline]
    pub fn listener(&self, index: u16) -> Option<&Listener> {
        self.listeners.get(usize::from(index))?.as_ref()
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.iter().flatten()
    }

    /// The listener that serves a destination.
    #[inline]
    pub fn listener_for(&self, vip: u128, protocol: u8, port: u16) -> Option<&Listener> {
        let ranges = self.ranges.get(&(vip, protocol))?;
        let after = ranges.partition_point(|range| range.first <= port);
        let range = ranges.get(after.checked_sub(1)?)?;
        if port <= range.last { self.listener(range.listener) } else { None }
    }

    /// Whether some listener is in mode `nat`.
    pub fn has_nat(&self) -> bool {
        self.has_nat
    }

    /// Whether flows of `fullnat` and connections of a proxy share the source addresses.
    pub fn shares_sources(&self) -> bool {
        self.has_proxy && self.has_fullnat
    }

    /// Whether some listener, perhaps a removed one, is in mode `proxy`: then connections may end here.
    pub fn has_proxy(&self) -> bool {
        self.has_proxy
    }

    /// Whether an index of `self` means something else, or nothing, in `next`.
    pub fn identities_differ(&self, next: &Services) -> bool {
        let listeners = self
            .listeners()
            .any(|old| next.listener(old.index).map(Listener::identity) != Some(old.identity()));
        listeners
            || self
                .backends()
                .any(|(index, old)| next.backend(index).map(Backend::identity) != Some(old.identity()))
    }

    /// The pool of an index.
    #[inline]
    pub fn pool(&self, index: u32) -> Option<&Pool> {
        self.pools.get(index as usize)?.as_deref()
    }

    /// The backend of an index.
    #[inline]
    pub fn backend(&self, index: u32) -> Option<&Backend> {
        self.backends.by_index.get(index as usize).filter(|backend| backend.family != 0)
    }

    /// All backends with their index.
    pub fn backends(&self) -> impl Iterator<Item = (u32, &Backend)> {
        (0u32..).zip(&*self.backends.by_index).filter(|(_, backend)| backend.family != 0)
    }

    /// Whether Weir answers for this address as a vip.
    #[inline]
    pub fn is_vip(&self, address: u128) -> bool {
        self.vips.contains(&address)
    }

    /// Whether this is Weir's own address, source addresses of `fullnat` included.
    #[inline]
    pub fn is_own(&self, address: u128) -> bool {
        self.own.contains(&address) || self.snat.contains(&address)
    }

    /// Whether the kernel has this address too: what is sent to it and belongs to nobody here is the kernel's.
    #[inline]
    pub fn is_kernels(&self, address: u128) -> bool {
        self.kernel.contains(&address)
    }

    /// Whether some backend has this address.
    #[inline]
    pub fn is_backend(&self, address: u128) -> bool {
        self.backends.addresses.contains(&address)
    }
}

fn put<T>(places: &mut Vec<Option<T>>, at: usize, value: T) {
    if places.len() <= at {
        places.resize_with(at + 1, || None);
    }
    if let Some(place) = places.get_mut(at) {
        *place = Some(value);
    }
}

/// Hashes configured keys (never what a peer could choose freely) by folded multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub struct FoldState;

/// See [`FoldState`].
#[derive(Clone, Copy, Debug)]
pub struct FoldHasher(u64);

impl std::hash::BuildHasher for FoldState {
    type Hasher = FoldHasher;
    fn build_hasher(&self) -> FoldHasher {
        FoldHasher(0x243f_6a88_85a3_08d3)
    }
}

impl FoldHasher {
    #[inline]
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(0xf39c_c060_5ced_c835_u64);
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl std::hash::Hasher for FoldHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            self.mix(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.mix(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }
    fn write_u128(&mut self, value: u128) {
        self.mix(value as u64);
        self.mix((value >> 64) as u64);
    }
}
