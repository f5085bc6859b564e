//! A packet and the tables in, a rewritten packet and a verdict out: L4 balancing of one worker.
//!
//! Called by the worker in three steps per burst, so that the misses of all its packets overlap: [`Engine::prepare`] (hash, ask
//! for the index line), [`Engine::guess`] (read the index line, ask for the record), [`Engine::process`] (decide and
//! rewrite). It knows no clock (`now` is in ticks), no NIC and no link addresses: the worker fills those in.
//!
//! ```text
//! tuple ─ found forward ─▶ state, on_down ─▶ TTL, MTU, rewrite or encapsulate ─▶ ToBackend
//!       ├ found reverse ─▶ state          ─▶ TTL, rewrite                     ─▶ ToClient
//!       ├ listener      ─▶ pick a backend, add a flow, as found forward
//!       └ none          ─▶ Local or a counted drop
//! ```

use std::ops::DerefMut;
use std::sync::Arc;

use weir_access::Refusal;
use weir_net::hash::StableKey;
use weir_net::{Kind, PacketBuf, ParseOptions, Parsed, Usual, icmp_reply, tcp, usual_v4, usual_v6};

use crate::entry::{Address, EntryV4, EntryV6, Tuple};
use crate::fragment::{Datagram, Fragments};
use crate::identity::{count_sources, purge, recover, reverse_hash};
use crate::lane::{Lane, Shared, tuple_of};
use crate::rate::RateLimit;
use crate::services::{Algorithm, Mode, Services};
use crate::snat::{ReplyOwner, Snat};
use crate::table::{FlowTable, Recovery};
use crate::verdict::{Delivery, DropReason, Verdict};
use weir_index::{Bucket, Index};

/// Where the tables of a worker live: hugepage segments in the appliance, vectors in tests.
pub trait Memory {
    /// Records of IPv4 flows.
    type V4: DerefMut<Target = [EntryV4]>;
    /// Records of IPv6 flows.
    type V6: DerefMut<Target = [EntryV6]>;
    /// An index.
    type Index: DerefMut<Target = [Bucket]>;
}

/// Tables in vectors.
#[derive(Debug)]
pub struct HeapMemory;

impl Memory for HeapMemory {
    type V4 = Vec<EntryV4>;
    type V6 = Vec<EntryV6>;
    type Index = Vec<Bucket>;
}

/// What the engine reports as it happens; the worker keeps counters with it.
pub trait Accounts {
    /// A flow was added.
    fn flow_created(&mut self, listener: u16, backend: u32);
    /// A flow ended.
    fn flow_ended(&mut self, listener: u16, backend: u32, why: Ended);
    /// The client was sent a RST because its backend is down.
    fn reset_sent(&mut self, listener: u16, backend: u32);
    /// A packet would have begun a flow of a listener that takes none; whether its sender was sent a RST.
    fn drained(&mut self, listener: u16, answered: bool) {
        let _ = (listener, answered);
    }
    /// A packet found no backend that could take it.
    fn no_backend(&mut self, listener: u16);
    /// A packet would have begun a flow that may not be.
    fn refused(&mut self, listener: u16, refusal: Refusal) {
        let _ = (listener, refusal);
    }
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Silent for longer than its state allows.
    Expired,
    /// Made room for a new one.
    Evicted,
    /// Its client began anew, its backend went down, or its listener changed.
    Replaced,
}

/// What is known of a packet's flow before its record is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup {
    pub(crate) hash: u32,
    pub(crate) guess: u32,
    /// Length of a usual packet (see [`Engine::prepare_usual`]), 0 of others.
    pub(crate) usual_len: u16,
    /// 4 or 6; 0 where there are no ports to look up.
    pub(crate) family: u8,
    pub(crate) foreseen: Foreseen,
}

/// What a SYN's flow will be if it is new, as far as [`Engine::prepare`] could tell: found once, for the index line that it
/// asks for and for the flow. Of other packets it means nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Foreseen {
    /// Index of the listener, or [`Foreseen::UNKNOWN`].
    pub(crate) listener: u32,
    /// Index of the backend, or [`Foreseen::UNKNOWN`].
    pub(crate) backend: u32,
    /// Hash of the reply's tuple, where mode and backend make it certain; else 0.
    pub(crate) reverse: u32,
}

impl Lookup {
    /// Whether [`Engine::prepare_usual`] took the packet.
    #[inline(always)]
    pub fn is_usual(&self) -> bool {
        self.usual_len != 0
    }

    /// Of a packet that nothing was foreseen for.
    pub(crate) fn of(hash: u32) -> Self {
        Self { hash, ..Self::default() }
    }
}

impl Foreseen {
    /// No index.
    const UNKNOWN: u32 = u32::MAX;
    /// Nothing.
    pub(crate) const NOTHING: Self = Self { listener: Self::UNKNOWN, backend: Self::UNKNOWN, reverse: 0 };
}

impl Default for Foreseen {
    fn default() -> Self {
        Self::NOTHING
    }
}

/// Storage for [`Engine::new`].
#[derive(Debug)]
pub struct Tables<M: Memory> {
    /// Records of IPv4 flows, perhaps of a previous process.
    pub v4: M::V4,
    /// Records of IPv6 flows, perhaps of a previous process.
    pub v6: M::V6,
    /// Index of the IPv4 flows: [`weir_index::buckets_for`] tells its length.
    pub v4_index: M::Index,
    /// Index of the IPv6 flows.
    pub v6_index: M::Index,
    /// Source addresses that the records name by number.
    pub snat: Vec<u128>,
}

/// L4 balancing of one worker.
#[derive(Debug)]
pub struct Engine<M: Memory> {
    services: Arc<Services>,
    shared: Shared,
    v4: FlowTable<u32, M::V4, M::Index>,
    v6: FlowTable<u128, M::V6, M::Index>,
    fragments: Fragments,
}

impl<M: Memory> Engine<M> {
    /// Takes the tables over with the flows in them that still mean something. `seed` keys the tables' hash.
    pub fn new(
        services: Arc<Services>,
        tables: Tables<M>,
        owner: ReplyOwner,
        seed: [u64; 2],
        now: u32,
        accounts: &mut impl Accounts,
    ) -> (Self, Recovery) {
        let mut snat = Snat::new(tables.snat, owner);
        snat.adopt(&services);
        let (v4, first) =
            recover::<u32, _, _>(&services, &snat, tables.v4, tables.v4_index, seed, now, accounts);
        let (v6, second) =
            recover::<u128, _, _>(&services, &snat, tables.v6, tables.v6_index, seed, now, accounts);
        let recovery = Recovery {
            recovered: first.recovered + second.recovered,
            discarded: first.discarded + second.discarded,
        };
        let fragments = Fragments::new(seed[0] ^ seed[1].rotate_left(17));
        let replies = RateLimit::new(services.icmp_rate);
        let key = key_of(&services);
        let (cursors, identification) = (Vec::new(), seed[0] as u16);
        let shared = Shared { snat, cursors, replies, key, identification, now_ns: 0 };
        (Self { services, shared, v4, v6, fragments }, recovery)
    }

    /// Runs a new generation from here on; returns the old one, to be dropped elsewhere.
    ///
    /// Flows whose listener or backend now means something else (an index was reused), and those of a listener that is cut, are
    /// ended first.
    pub fn adopt(&mut self, services: Arc<Services>, accounts: &mut impl Accounts) -> Arc<Services> {
        if services.cuts_anew(&self.services) || self.services.identities_differ(&services) {
            purge(&self.services, &services, &mut self.v4, accounts);
            purge(&self.services, &services, &mut self.v6, accounts);
        }
        if services.counts_anew(&self.services) {
            count_sources(&services, &self.v4);
            count_sources(&services, &self.v6);
        }
        self.shared.key = key_of(&services);
        self.shared.replies.set_rate(services.icmp_rate);
        self.shared.snat.adopt(&services);
        std::mem::replace(&mut self.services, services)
    }

    /// Tells the time, by a clock that all workers share: rates of new flows go by it, so a millisecond late is early enough.
    pub fn set_clock(&mut self, now_ns: u64) {
        self.shared.now_ns = now_ns;
    }

    /// Whether a connection of a listener that ends here may begin: what [`Engine::process`] asks of flows itself.
    pub fn admit(&self, listener: u16, source: u128) -> Result<(), Refusal> {
        self.services.policy(listener).map_or(Ok(()), |policy| policy.admit(source, self.shared.now_ns))
    }

    /// The generation in use.
    pub fn services(&self) -> &Arc<Services> {
        &self.services
    }

    /// Source addresses by the numbers that the records use.
    pub fn snat_addresses(&self) -> &[u128] {
        self.shared.snat.interned()
    }

    /// The storage of the IPv4 records, for a header that is kept with them.
    pub fn storage_v4(&mut self) -> &mut M::V4 {
        self.v4.storage()
    }

    /// Live flows, IPv4 and IPv6.
    pub fn live(&self) -> (u32, u32) {
        (self.v4.live(), self.v6.live())
    }

    /// Live flows, IPv4 and IPv6, counted record by record: equal to [`Engine::live`], or the tables are broken.
    pub fn count(&self) -> (usize, usize) {
        (self.v4.flows().count(), self.v6.flows().count())
    }

    /// Capacity, IPv4 and IPv6.
    pub fn capacity(&self) -> (usize, usize) {
        (self.v4.capacity(), self.v6.capacity())
    }

    /// Whether packets from `src` to `dst` belong to a flow: a connection with these ends would never hear of its peer.
    pub fn has_flow(&self, src: (u128, u16), dst: (u128, u16), protocol: u8) -> bool {
        fn in_table<A, E, B>(
            engine: (&Services, &Snat),
            table: &FlowTable<A, E, B>,
            (src, src_port): (u128, u16),
            (dst, dst_port): (u128, u16),
            protocol: u8,
        ) -> bool
        where
            A: Address,
            E: DerefMut<Target = [A::Entry]>,
            B: DerefMut<Target = [Bucket]>,
        {
            let tuple =
                Tuple { src: A::from_bits(src), dst: A::from_bits(dst), src_port, dst_port, protocol };
            let hash = tuple.hash(table.seed());
            table
                .find(hash, |entry, direction| {
                    crate::lane::matches(engine.0, engine.1, entry, direction, &tuple)
                })
                .is_some()
        }
        let engine = (&*self.services, &self.shared.snat);
        if src.0 >> 32 == 0xffff {
            in_table::<u32, _, _>(engine, &self.v4, src, dst, protocol)
        } else {
            in_table::<u128, _, _>(engine, &self.v6, src, dst, protocol)
        }
    }

    /// First step of nearly every packet, shorter: where the frame is a usual one, does as [`Engine::prepare`] and lets
    /// [`Engine::steady`] have it, and nobody needs it parsed before. `false`: it is not, and nothing has changed.
    #[inline(always)]
    pub fn prepare_usual(&self, frame: &[u8], options: &ParseOptions, lookup: &mut Lookup) -> bool {
        if let Some(usual) = usual_v4(frame, options) {
            prepare_usual(&self.v4, usual, lookup);
        } else if let Some(usual) = usual_v6(frame) {
            prepare_usual(&self.v6, usual, lookup);
        } else {
            return false;
        }
        true
    }

    /// First step: hashes the packet's tuple and asks for the index line. `lookup` may be an earlier packet's.
    #[inline(always)]
    pub fn prepare(&self, frame: &[u8], parsed: &Parsed, lookup: &mut Lookup) {
        (lookup.usual_len, lookup.family) = (0, 0);
        if !parsed.has_ports {
            return;
        }
        // not a `match`: that becomes an indirect jump
        if parsed.kind == Kind::Ipv4 {
            prepare(&self.services, &self.shared, &self.v4, frame, parsed, lookup);
        } else {
            prepare(&self.services, &self.shared, &self.v6, frame, parsed, lookup);
        }
    }

    /// Second step: reads the index line and asks for the record.
    #[inline(always)]
    pub fn guess(&self, lookup: &mut Lookup) {
        if lookup.family == u32::FAMILY {
            guess(&self.v4, lookup);
        } else if lookup.family == u128::FAMILY {
            guess(&self.v6, lookup);
        }
    }

    /// Third step of nearly every packet, shorter: rewrites those of the burst that are usual for their backends, as
    /// [`Engine::process`] would. A delivery of `None`: nothing has changed, and that has to decide.
    #[inline]
    pub fn steady<P: PacketBuf>(
        &mut self,
        packets: &mut [P],
        lookups: &[Lookup],
        deliveries: &mut [Option<Delivery>],
        now: u32,
        accounts: &mut impl Accounts,
    ) {
        let (services, shared) = (&*self.services, &mut self.shared);
        let others = Lane { services, shared, table: &mut self.v4, now, accounts }
            .steady_burst(packets, lookups, deliveries, true);
        if others {
            Lane { services, shared, table: &mut self.v6, now, accounts }
                .steady_burst(packets, lookups, deliveries, false);
        }
    }

    /// Third step: decides, and rewrites the packet for its way. The link header is the caller's.
    #[inline(always)]
    pub fn process<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        lookup: &Lookup,
        now: u32,
        accounts: &mut impl Accounts,
    ) -> Verdict {
        let (services, shared) = (&*self.services, &mut self.shared);
        if parsed.kind == Kind::Ipv4 {
            Lane { services, shared, table: &mut self.v4, now, accounts }.process(packet, parsed, lookup)
        } else if parsed.kind == Kind::Ipv6 {
            Lane { services, shared, table: &mut self.v6, now, accounts }.process(packet, parsed, lookup)
        } else {
            Verdict::Drop(DropReason::UnsupportedProtocol)
        }
    }

    /// A probe of Weir's own to a vip: sends it to that backend as a client's packet would go, without a flow. Only for modes whose
    /// backends answer by themselves.
    pub fn probe<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        listener: u16,
        backend: u32,
        now: u32,
        accounts: &mut impl Accounts,
    ) -> Verdict {
        let (services, shared) = (&*self.services, &mut self.shared);
        let direct = |mode| matches!(mode, Mode::Dsr | Mode::Ipip | Mode::Gue);
        if !parsed.has_ports || !services.listener(listener).is_some_and(|listener| direct(listener.mode)) {
            return Verdict::Drop(DropReason::NoListener);
        }
        if parsed.kind == Kind::Ipv4 {
            Lane { services, shared, table: &mut self.v4, now, accounts }
                .probe(packet, parsed, listener, backend)
        } else {
            Lane { services, shared, table: &mut self.v6, now, accounts }
                .probe(packet, parsed, listener, backend)
        }
    }

    /// For fragments, at their home worker: a first one leaves its ports, a later one gets them. `false`: a later fragment
    /// whose first is unknown.
    pub fn follow_fragment(&mut self, frame: &[u8], parsed: &mut Parsed, now: u32) -> bool {
        let Some(datagram) = datagram_of(frame, parsed) else { return false };
        if parsed.is_first_fragment() {
            self.fragments.first(datagram, (parsed.src_port, parsed.dst_port), now);
            return true;
        }
        match self.fragments.later(&datagram, now, self.services.fragment_ticks) {
            Some((src_port, dst_port)) => {
                parsed.src_port = src_port;
                parsed.dst_port = dst_port;
                parsed.has_ports = true;
                true
            }
            None => false,
        }
    }

    /// Looks at the next `count` records of each family and ends those that have been silent for too long.
    pub fn sweep(&mut self, count: usize, now: u32, accounts: &mut impl Accounts) {
        Lane { services: &self.services, shared: &mut self.shared, table: &mut self.v4, now, accounts }
            .sweep(count);
        Lane { services: &self.services, shared: &mut self.shared, table: &mut self.v6, now, accounts }
            .sweep(count);
    }

    /// Turns a packet that is too long for its way into the ICMP error that says so, within the rate.
    pub fn answer_too_big<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        mtu: u16,
        now: u32,
    ) -> Verdict {
        let source = parsed.dst(packet.data());
        self.shared.answer(
            packet,
            parsed,
            source,
            icmp_reply::Problem::TooBig { mtu },
            DropReason::TooBig,
            now,
        )
    }
}

/// What all fragments of this one's datagram share.
pub fn datagram_of(frame: &[u8], parsed: &Parsed) -> Option<Datagram> {
    let (src, dst) = match parsed.kind {
        Kind::Ipv4 => {
            let (src, dst) = u32::addresses(frame, parsed);
            (src.bits(), dst.bits())
        }
        Kind::Ipv6 => u128::addresses(frame, parsed),
        Kind::Arp | Kind::Other => return None,
    };
    Some(Datagram { src, dst, identification: parsed.identification, protocol: parsed.protocol.0 })
}

fn key_of(services: &Services) -> StableKey {
    services.hash_key.map_or(StableKey::NONE, |key| StableKey::from_bytes(&key))
}

#[inline(always)]
fn prepare_usual<A, E, B>(table: &FlowTable<A, E, B>, usual: Usual<A>, lookup: &mut Lookup)
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    let Usual { src, dst, src_port, dst_port, protocol, l3_len } = usual;
    let hash = Tuple { src, dst, src_port, dst_port, protocol: protocol.0 }.hash(table.seed());
    table.index().prefetch(hash);
    (lookup.hash, lookup.usual_len, lookup.family) = (hash, l3_len, A::FAMILY);
}

#[inline(always)]
fn prepare<A, E, B>(
    services: &Services,
    shared: &Shared,
    table: &FlowTable<A, E, B>,
    frame: &[u8],
    parsed: &Parsed,
    lookup: &mut Lookup,
) where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    let tuple = tuple_of::<A>(frame, parsed);
    let hash = tuple.hash(table.seed());
    table.index().prefetch(hash);
    lookup.hash = hash;
    lookup.family = A::FAMILY;
    if parsed.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        // else what an earlier packet has left stays there, and nobody looks at it
        foresee(services, shared, table, tuple, &mut lookup.foreseen);
    }
}

/// Finds what a new flow will be, and asks for the index line that its reply will be found by. The turn of round-robin is
/// not known yet. (Writes in place: a copy of what was just written field by field would wait for it.)
#[inline(never)]
fn foresee<A, E, B>(
    services: &Services,
    shared: &Shared,
    table: &FlowTable<A, E, B>,
    tuple: Tuple<A>,
    foreseen: &mut Foreseen,
) where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    *foreseen = Foreseen::NOTHING;
    let listener = services.listener_for(tuple.dst.bits(), tuple.protocol, tuple.dst_port);
    let Some(listener) = listener else { return };
    foreseen.listener = u32::from(listener.index);
    let turns = services.pool(listener.pool).is_none_or(|pool| pool.algorithm == Algorithm::RoundRobin);
    if turns {
        return;
    }
    let Some(index) = shared.select_by_hash(services, listener, &tuple) else { return };
    let Some(backend) = services.backend(index) else { return };
    foreseen.backend = index;
    let reply = |to, port| reverse_hash(backend, tuple.dst_port, to, port, tuple.protocol, table.seed());
    if listener.mode == Mode::Nat {
        foreseen.reverse = reply(tuple.src, tuple.src_port);
        table.index().prefetch(foreseen.reverse);
    } else if listener.mode == Mode::Fullnat {
        let server = (backend.address, backend.serves(tuple.dst_port));
        if let Some((to, port)) = shared.snat.foresee::<A>(backend.egress, server) {
            table.index().prefetch(reply(to, port));
        }
    }
}

#[inline(always)]
fn guess<A, E, B>(table: &FlowTable<A, E, B>, lookup: &mut Lookup)
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    lookup.guess = table.index().guess(lookup.hash);
    match Index::<B>::candidate(lookup.guess) {
        Some(candidate) => table.prefetch(candidate.slot),
        None => table.prefetch_free(),
    }
}
