//! What is done with one packet: found by its tuple, given a flow where it has none, rewritten for its way.
//!
//! Called by the engine only, once for each packet and family.

use std::ops::DerefMut;

use weir_access::Policy;
use weir_net::hash::StableKey;
use weir_net::{Kind, PacketBuf, Parsed, Protocol, icmp_reply, tcp, tcp_reset};

use crate::engine::{Accounts, Ended, Lookup};
use crate::entry::{Address, Entry, Flow, NO_SNAT, State, Tuple};
use crate::identity::{end, forward_tuple, reverse_hash, reverse_of};
use crate::rate::RateLimit;
use crate::select::{hash_of, next_turn};
use crate::services::{Algorithm, Backend, Drain, Listener, Mode, OnDown, Services, address_of};
use crate::snat::Snat;
use crate::table::{FlowTable, Full};
use crate::tunnel;
use crate::verdict::{Delivery, DropReason, NO_LISTENER, Verdict};
use weir_index::{Bucket, Candidate, Direction, Index};

/// What both families use and change.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) snat: Snat,
    pub(crate) cursors: Vec<u32>,
    pub(crate) replies: RateLimit,
    pub(crate) key: StableKey,
    pub(crate) identification: u16,
    /// See [`crate::engine::Engine::set_clock`].
    pub(crate) now_ns: u64,
}

#[inline]
pub(crate) fn tuple_of<A: Address>(frame: &[u8], parsed: &Parsed) -> Tuple<A> {
    let (src, dst) = A::addresses(frame, parsed);
    Tuple { src, dst, src_port: parsed.src_port, dst_port: parsed.dst_port, protocol: parsed.protocol.0 }
}

impl Shared {
    /// Turns the packet into an ICMP error from `source` where the rate and the rules allow, else drops it.
    pub(crate) fn answer<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        source: Option<std::net::IpAddr>,
        problem: icmp_reply::Problem,
        reason: DropReason,
        now: u32,
    ) -> Verdict {
        let Some(source) = source else { return Verdict::Drop(reason) };
        if !self.replies.take(now) || icmp_reply::error(packet, parsed, source, problem).is_err() {
            return Verdict::Drop(reason);
        }
        Verdict::Reply
    }

    /// The backend that a new flow of the listener gets.
    fn select<A: Address>(
        &mut self,
        services: &Services,
        listener: &Listener,
        tuple: &Tuple<A>,
    ) -> Option<u32> {
        let pool = services.pool(listener.pool)?;
        let slot = if pool.algorithm == Algorithm::RoundRobin {
            let at = listener.pool as usize;
            if self.cursors.len() <= at {
                self.cursors.resize(at + 1, 0);
            }
            next_turn(self.cursors.get_mut(at)?, pool.slots.len())
        } else {
            weir_balance::slot(hash_of(pool.algorithm, self.key, tuple), pool.slots.len())
        };
        pool.member(slot)
    }

    /// The backend of a packet that gets no flow: by hash whatever the algorithm, so that it is the same each time.
    pub(crate) fn select_by_hash<A: Address>(
        &self,
        services: &Services,
        listener: &Listener,
        tuple: &Tuple<A>,
    ) -> Option<u32> {
        let pool = services.pool(listener.pool)?;
        let hash = hash_of(pool.algorithm, self.key, tuple);
        pool.member(weir_balance::slot(hash, pool.slots.len()))
    }
}

/// One packet's way through one family's table.
pub(crate) struct Lane<'a, A: Address, E, B, C> {
    pub(crate) services: &'a Services,
    pub(crate) shared: &'a mut Shared,
    pub(crate) table: &'a mut FlowTable<A, E, B>,
    pub(crate) now: u32,
    pub(crate) accounts: &'a mut C,
}

/// The way of a packet to a backend.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) listener: u16,
    pub(crate) backend: u32,
    pub(crate) snat: u16,
    pub(crate) snat_port: u16,
    pub(crate) hash: u32,
    pub(crate) fallback: bool,
}

impl<A, E, B, C> Lane<'_, A, E, B, C>
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
    C: Accounts,
{
    #[inline(always)]
    pub(crate) fn process<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        lookup: &Lookup,
    ) -> Verdict {
        if !parsed.has_ports {
            return self.process_portless(packet, parsed);
        }
        let tuple = tuple_of::<A>(packet.data(), parsed);
        if parsed.is_later_fragment() {
            return self.process_later_fragment(packet, parsed, tuple, lookup);
        }
        // nearly always the guess is right; a path of its own lets what the comparison has read stay in registers
        let Some(Candidate { slot, direction }) = self.guessed(&tuple, lookup.guess) else {
            return self.process_tuple(packet, parsed, tuple, lookup);
        };
        match direction {
            Direction::Forward => self.forward(packet, parsed, &tuple, lookup.hash, slot),
            Direction::Reverse => self.reverse(packet, parsed, slot),
        }
    }

    /// Its ports are known from its first, but there are none in it to rewrite.
    #[cold]
    fn process_later_fragment<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: Tuple<A>,
        lookup: &Lookup,
    ) -> Verdict {
        self.process_tuple(packet, &Parsed { has_ports: false, ..*parsed }, tuple, lookup)
    }

    /// The way of a packet whose flow was not guessed. (The tuple comes by value, here and below, so that it is written to
    /// memory only where such a call is made.)
    #[inline(never)]
    fn process_tuple<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: Tuple<A>,
        lookup: &Lookup,
    ) -> Verdict {
        let hash = lookup.hash;
        match self.find(&tuple, hash) {
            Some(Candidate { slot, direction: Direction::Forward }) => {
                self.forward(packet, parsed, &tuple, hash, slot)
            }
            Some(Candidate { slot, direction: Direction::Reverse }) => self.reverse(packet, parsed, slot),
            None => {
                let begins = parsed.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
                let lookup = if begins { *lookup } else { Lookup::of(hash) };
                self.miss(packet, parsed, tuple, lookup)
            }
        }
    }

    /// The flow that a word of [`Index::guess`] names, if it is the tuple's.
    #[inline(always)]
    fn guessed(&self, tuple: &Tuple<A>, guess: u32) -> Option<Candidate> {
        let candidate = Index::<B>::candidate(guess)?;
        let entry = self.table.entry(candidate.slot)?;
        matches(self.services, &self.shared.snat, entry, candidate.direction, tuple).then_some(candidate)
    }

    /// The flow of a tuple, by its hash.
    #[inline(always)]
    pub(crate) fn find(&self, tuple: &Tuple<A>, hash: u32) -> Option<Candidate> {
        let (services, snat) = (self.services, &self.shared.snat);
        self.table.find(hash, |entry, direction| matches(services, snat, entry, direction, tuple))
    }

    #[inline(always)]
    fn forward<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: &Tuple<A>,
        hash: u32,
        slot: u32,
    ) -> Verdict {
        let services = self.services;
        let Some(entry) = self.table.entry_mut(slot) else { return Verdict::Drop(DropReason::NoFlow) };
        let Some(listener) = services.listener(entry.listener()) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        let steady = is_steady(entry.state(), parsed.tcp_flags);
        let begins = parsed.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if !steady && begins && is_ending(entry.state()) {
            return self.renew(packet, parsed, *tuple, hash, slot);
        }
        let backend = match services.backend(entry.backend()) {
            Some(backend) if !backend.down || listener.on_down == OnDown::Keep => backend,
            _ => return self.backend_down(packet, parsed, *tuple, hash, slot),
        };
        if entry.last_seen() != self.now {
            entry.set_last_seen(self.now);
        }
        if !steady {
            entry.set_state(next_state(entry.state(), parsed.tcp_flags, Direction::Forward, listener.mode));
        }
        let way = Way {
            listener: entry.listener(),
            backend: entry.backend(),
            snat: entry.snat(),
            snat_port: entry.snat_port(),
            hash,
            fallback: false,
        };
        self.deliver_to(packet, parsed, listener, backend, &way)
    }

    /// RFC 9293 §3.6.1: a client may reuse its port; its old flow is over.
    #[cold]
    fn renew<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: Tuple<A>,
        hash: u32,
        slot: u32,
    ) -> Verdict {
        end(self.services, self.table, slot, Ended::Replaced, self.accounts);
        self.miss(packet, parsed, tuple, Lookup::of(hash))
    }

    #[cold]
    fn backend_down<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: Tuple<A>,
        hash: u32,
        slot: u32,
    ) -> Verdict {
        let services = self.services;
        let Some(flow) = self.table.entry(slot).map(Entry::flow) else {
            return Verdict::Drop(DropReason::NoFlow);
        };
        let Some(listener) = services.listener(flow.listener) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        match listener.on_down {
            OnDown::Reselect | OnDown::Keep => {
                end(services, self.table, slot, Ended::Replaced, self.accounts);
                self.begin(packet, parsed, &tuple, Lookup::of(hash), listener, Some(flow.state))
            }
            OnDown::Reset => {
                end(services, self.table, slot, Ended::Replaced, self.accounts);
                if self.shared.replies.take(self.now) && tcp_reset::reply(packet, parsed) {
                    self.accounts.reset_sent(flow.listener, flow.backend);
                    return Verdict::Reply;
                }
                Verdict::Drop(DropReason::BackendDown)
            }
        }
    }

    #[inline(always)]
    fn reverse<P: PacketBuf>(&mut self, packet: &mut P, parsed: &Parsed, slot: u32) -> Verdict {
        let services = self.services;
        let Some(entry) = self.table.entry_mut(slot) else { return Verdict::Drop(DropReason::BackendNoFlow) };
        let Some(listener) = services.listener(entry.listener()) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        if parsed.ttl <= 1 {
            return self.refuse(packet, parsed, listener, 0);
        }
        if entry.last_seen() != self.now {
            entry.set_last_seen(self.now);
        }
        if !is_steady(entry.state(), parsed.tcp_flags) {
            entry.set_state(next_state(entry.state(), parsed.tcp_flags, Direction::Reverse, listener.mode));
        }
        let frame = packet.data_mut();
        let source = A::from_bits(listener.vip);
        let rewritten = match entry.snat() {
            NO_SNAT => A::pass(frame, parsed, Some((source, entry.vip_port())), None),
            _ => {
                let client = (entry.client(), entry.client_port());
                A::pass(frame, parsed, Some((source, entry.vip_port())), Some(client))
            }
        };
        if !rewritten {
            return Verdict::Drop(DropReason::Rewrite);
        }
        clamp_mss(frame, parsed, services.smallest_mtu);
        Verdict::ToClient(Delivery {
            listener: listener.index,
            backend: entry.backend(),
            l3: parsed.l3,
            bytes: parsed.l3_len,
            egress: u16::MAX,
            next_hop: u32::MAX,
            fallback: false,
        })
    }

    /// No record: a new flow, or a packet that is not for a listener.
    #[inline(never)]
    fn miss<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: Tuple<A>,
        lookup: Lookup,
    ) -> Verdict {
        let services = self.services;
        let destination = tuple.dst.bits();
        let listener =
            u16::try_from(lookup.foreseen.listener).ok().and_then(|index| services.listener(index));
        let found = || services.listener_for(destination, tuple.protocol, tuple.dst_port);
        if let Some(listener) = listener.or_else(found) {
            if services.drain(listener.index) != Drain::No
                && let Some(refused) = self.drained(packet, parsed, listener)
            {
                return refused;
            }
            if let Some(policy) = services.policy(listener.index)
                && let Some(refused) = self.refused(policy, listener, &tuple)
            {
                return refused;
            }
            return self.begin(packet, parsed, &tuple, lookup, listener, None);
        }
        let ends_here = services.has_proxy() && tuple.protocol == Protocol::TCP.0;
        if services.is_vip(destination) {
            // a connection of a removed listener may be left
            return if ends_here {
                Verdict::Terminate(NO_LISTENER)
            } else {
                Verdict::Drop(DropReason::NoListener)
            };
        }
        if ends_here && services.is_own(destination) {
            return Verdict::Terminate(NO_LISTENER);
        }
        let from_backend = services.is_backend(tuple.src.bits());
        if services.is_own(destination) {
            let is_lost = from_backend && !services.is_kernels(destination);
            return if is_lost { Verdict::Drop(DropReason::BackendNoFlow) } else { Verdict::Local };
        }
        Verdict::Drop(if from_backend { DropReason::BackendNoFlow } else { DropReason::NotForUs })
    }

    /// A packet without a flow for a listener that takes no new ones: a SYN is refused, also one for a proxy, whose other segments
    /// may be of connections that there are.
    #[cold]
    fn drained<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        listener: &Listener,
    ) -> Option<Verdict> {
        let is_tcp = parsed.protocol == Protocol::TCP && parsed.has_ports;
        let begins = is_tcp && parsed.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if listener.mode == Mode::Proxy && !begins {
            return None;
        }
        // the flows of a listener that is cut have ended just now: their clients are told too
        let is_cut = is_tcp && self.services.drain(listener.index) == Drain::Cut;
        let answered =
            (begins || is_cut) && self.shared.replies.take(self.now) && tcp_reset::reply(packet, parsed);
        self.accounts.drained(listener.index, answered);
        Some(if answered { Verdict::Reply } else { Verdict::Drop(DropReason::ListenerDrain) })
    }

    /// Picks a backend, remembers the flow where there is room, and sends the packet on. `state` is kept where a flow
    /// changes its backend.
    fn begin<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        tuple: &Tuple<A>,
        Lookup { hash, foreseen, .. }: Lookup,
        listener: &Listener,
        state: Option<State>,
    ) -> Verdict {
        if listener.mode == Mode::Proxy {
            return Verdict::Terminate(listener.index);
        }
        let is_tcp = tuple.protocol == Protocol::TCP.0;
        let is_syn = parsed.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
        if listener.mode == Mode::Fullnat && is_tcp && !is_syn && state.is_none() {
            return Verdict::Drop(DropReason::NoFlow);
        }
        // a RST begins nothing and takes nobody's turn
        let begins_nothing = is_tcp && parsed.tcp_flags & tcp::RST != 0;
        let selected = if self.services.backend(foreseen.backend).is_some() {
            Some(foreseen.backend)
        } else if begins_nothing {
            self.shared.select_by_hash(self.services, listener, tuple)
        } else {
            self.shared.select(self.services, listener, tuple)
        };
        let Some(index) = selected else { return self.no_backend(listener) };
        let services = self.services;
        let Some(backend) = services.backend(index) else { return self.no_backend(listener) };
        let mut way = Way {
            listener: listener.index,
            backend: index,
            snat: NO_SNAT,
            snat_port: 0,
            hash,
            fallback: false,
        };
        if begins_nothing {
            return if listener.mode == Mode::Fullnat {
                Verdict::Drop(DropReason::NoFlow)
            } else {
                self.deliver(packet, parsed, &way)
            };
        }
        let reverse = if foreseen.reverse != 0 {
            foreseen.reverse
        } else {
            match self.reserve_reply(listener, backend, tuple, &mut way) {
                Ok(reverse) => reverse,
                Err(reason) => return Verdict::Drop(reason),
            }
        };
        let state = state.unwrap_or(if is_tcp { State::Embryonic } else { State::Udp });
        let flow = Flow {
            client: tuple.src,
            client_port: tuple.src_port,
            vip_port: tuple.dst_port,
            protocol: tuple.protocol,
            listener: listener.index,
            backend: index,
            snat: way.snat,
            snat_port: way.snat_port,
            reverse,
            state,
            last_seen: self.now,
        };
        if self.insert(&flow, hash) {
            self.accounts.flow_created(listener.index, index);
            if let Some(policy) = services.policy(listener.index) {
                policy.opened(tuple.src.bits());
            }
        } else if listener.mode.sees_replies() {
            return Verdict::Drop(DropReason::TableFull);
        } else {
            // without memory of the flow the pure hash must decide, or packets of one flow would scatter
            let Some(index) = self.shared.select_by_hash(self.services, listener, tuple) else {
                return self.no_backend(listener);
            };
            way.backend = index;
            way.fallback = true;
        }
        self.deliver(packet, parsed, &way)
    }

    /// What becomes of a packet whose flow may not begin. Of connections that end here, the terminator asks: their segments all
    /// come this way.
    fn refused(&mut self, policy: &Policy, listener: &Listener, tuple: &Tuple<A>) -> Option<Verdict> {
        if listener.mode == Mode::Proxy {
            return None;
        }
        let refusal = policy.admit(tuple.src.bits(), self.shared.now_ns).err()?;
        self.accounts.refused(listener.index, refusal);
        Some(Verdict::Drop(refusal.into()))
    }

    fn no_backend(&mut self, listener: &Listener) -> Verdict {
        self.accounts.no_backend(listener.index);
        Verdict::Drop(DropReason::NoBackend)
    }

    /// The hash of the tuple that replies will have, 0 where none come; `fullnat` gets its source here.
    fn reserve_reply(
        &mut self,
        listener: &Listener,
        backend: &Backend,
        tuple: &Tuple<A>,
        way: &mut Way,
    ) -> Result<u32, DropReason> {
        let seed = self.table.seed();
        let port = backend.serves(tuple.dst_port);
        match listener.mode {
            Mode::Dsr | Mode::Ipip | Mode::Gue => Ok(0),
            Mode::Proxy => Err(DropReason::NoListener),
            Mode::Nat => {
                Ok(reverse_hash(backend, tuple.dst_port, tuple.src, tuple.src_port, tuple.protocol, seed))
            }
            Mode::Fullnat => {
                let src = A::from_bits(backend.address);
                let reply =
                    |dst, dst_port| Tuple { src, dst, src_port: port, dst_port, protocol: tuple.protocol };
                let services = self.services;
                let table = &*self.table;
                let chosen =
                    self.shared.snat.choose::<A>(backend.egress, (backend.address, port), |dst, dst_port| {
                        let tuple = reply(dst, dst_port);
                        table
                            .find(reverse_of(tuple.hash(seed)), |entry, direction| {
                                direction == Direction::Reverse
                                    && entry.snat_port() == dst_port
                                    && entry.protocol() == tuple.protocol
                                    && services.backend(entry.backend()).is_some_and(|other| {
                                        other.address == backend.address
                                            && other.serves(entry.vip_port()) == port
                                    })
                            })
                            .is_some()
                    });
                let (index, snat_port) = chosen.ok_or(DropReason::SnatExhausted)?;
                way.snat = index;
                way.snat_port = snat_port;
                let address = self.shared.snat.address(index).ok_or(DropReason::SnatExhausted)?;
                Ok(reverse_of(reply(A::from_bits(address), snat_port).hash(seed)))
            }
        }
    }

    fn insert(&mut self, flow: &Flow<A>, hash: u32) -> bool {
        match self.table.insert(flow, hash) {
            Ok(_) => true,
            Err(Full::Index) => false,
            Err(Full::Slab) => {
                let services = self.services;
                let seed = self.table.seed();
                let forward = |flow: &Flow<A>| {
                    services.listener(flow.listener).map(|listener| forward_tuple(listener, flow).hash(seed))
                };
                let victim = self.table.make_room(self.now, &services.lifetimes, forward);
                let Some(victim) = victim else { return false };
                end(services, self.table, victim, Ended::Evicted, self.accounts);
                self.table.insert(flow, hash).is_ok()
            }
        }
    }

    /// Finds listener and backend of a way, and sends the packet on.
    pub(crate) fn deliver<P: PacketBuf>(&mut self, packet: &mut P, parsed: &Parsed, way: &Way) -> Verdict {
        let Some(listener) = self.services.listener(way.listener) else {
            return Verdict::Drop(DropReason::NoListener);
        };
        let Some(backend) = self.services.backend(way.backend) else {
            return Verdict::Drop(DropReason::NoBackend);
        };
        self.deliver_to(packet, parsed, listener, backend, way)
    }

    /// See [`crate::Engine::probe`].
    pub(crate) fn probe<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        listener: u16,
        backend: u32,
    ) -> Verdict {
        let hash = tuple_of::<A>(packet.data(), parsed).hash(self.table.seed());
        let way = Way { listener, backend, snat: NO_SNAT, snat_port: 0, hash, fallback: false };
        self.deliver(packet, parsed, &way)
    }

    /// Rewrites the packet for its backend, or encapsulates it.
    #[inline(always)]
    fn deliver_to<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        listener: &Listener,
        backend: &Backend,
        way: &Way,
    ) -> Verdict {
        let is_tunnel = matches!(listener.mode, Mode::Ipip | Mode::Gue);
        let overhead = if is_tunnel { tunnel::overhead(listener, backend) } else { 0 };
        if usize::from(parsed.l3_len) + overhead > usize::from(backend.mtu) || parsed.ttl <= 1 {
            return self.refuse(packet, parsed, listener, backend.mtu.saturating_sub(overhead as u16));
        }
        let frame = packet.data_mut();
        let mut l3 = parsed.l3;
        let server = (A::from_bits(backend.address), backend.serves(parsed.dst_port));
        let rewritten = match listener.mode {
            Mode::Proxy => return Verdict::Drop(DropReason::NoListener),
            Mode::Dsr => A::decrement_ttl(frame, parsed),
            Mode::Nat => {
                clamp_mss(frame, parsed, self.services.smallest_mtu);
                A::pass(frame, parsed, None, Some(server))
            }
            Mode::Fullnat => {
                clamp_mss(frame, parsed, self.services.smallest_mtu);
                self.shared.snat.address(way.snat).is_some_and(|source| {
                    let source = (A::from_bits(source), way.snat_port);
                    A::pass(frame, parsed, Some(source), Some(server))
                })
            }
            Mode::Ipip | Mode::Gue => {
                let identification = self.shared.identification.wrapping_add(1);
                self.shared.identification = identification;
                if !tunnel::encapsulate(packet, parsed, listener, backend, way.hash, identification) {
                    return Verdict::Drop(DropReason::Encapsulation);
                }
                l3 = tunnel::LINK_LEN;
                true
            }
        };
        if !rewritten {
            return Verdict::Drop(DropReason::Rewrite);
        }
        Verdict::ToBackend(Delivery {
            listener: way.listener,
            backend: way.backend,
            l3,
            bytes: parsed.l3_len,
            egress: backend.egress,
            next_hop: backend.next_hop,
            fallback: way.fallback,
        })
    }

    /// Tells the sender why its packet ends here: its time is over, else it is longer than `mtu`.
    #[cold]
    fn refuse<P: PacketBuf>(
        &mut self,
        packet: &mut P,
        parsed: &Parsed,
        listener: &Listener,
        mtu: u16,
    ) -> Verdict {
        let source = Some(address_of(listener.vip));
        let (problem, reason) = if parsed.ttl <= 1 {
            (icmp_reply::Problem::TimeExceeded, DropReason::TtlExpired)
        } else {
            (icmp_reply::Problem::TooBig { mtu }, DropReason::TooBig)
        };
        self.shared.answer(packet, parsed, source, problem, reason, self.now)
    }

    pub(crate) fn sweep(&mut self, mut count: usize) {
        let services = self.services;
        let mut last = None;
        while let Some(slot) = self.table.next_expired(&mut count, self.now, &services.lifetimes) {
            // a record that can't be ended (its listener is unknown) must not be met for ever
            if last.replace(slot) == Some(slot) {
                break;
            }
            end(services, self.table, slot, Ended::Expired, self.accounts);
        }
    }
}

#[inline(always)]
pub(crate) fn matches<A: Address>(
    services: &Services,
    snat: &Snat,
    entry: &A::Entry,
    direction: Direction,
    tuple: &Tuple<A>,
) -> bool {
    // a guess may be older than the flow's end: an earlier packet of the same burst can have freed the record
    if entry.protocol() != tuple.protocol || entry.state() == State::Free as u8 {
        return false;
    }
    match direction {
        Direction::Forward => {
            // joined without branches: nearly always all of it holds
            let ports = |client: u16, vip: u16| u32::from(client) | u32::from(vip) << 16;
            (entry.client() == tuple.src)
                & (ports(entry.client_port(), entry.vip_port()) == ports(tuple.src_port, tuple.dst_port))
                && services.listener(entry.listener()).is_some_and(|l| A::from_bits(l.vip) == tuple.dst)
        }
        Direction::Reverse => {
            let ours = match entry.snat() {
                NO_SNAT => entry.client() == tuple.dst && entry.client_port() == tuple.dst_port,
                index => {
                    entry.snat_port() == tuple.dst_port
                        && snat.address(index).is_some_and(|address| A::from_bits(address) == tuple.dst)
                }
            };
            ours && services.backend(entry.backend()).is_some_and(|backend| {
                A::from_bits(backend.address) == tuple.src
                    && backend.serves(entry.vip_port()) == tuple.src_port
            })
        }
    }
}

/// Whether a packet with these flags leaves the stored state as it is, for sure: nearly every packet.
#[inline(always)]
pub(crate) fn is_steady(stored: u8, flags: u8) -> bool {
    let lasting = (stored == State::Established as u8) | (stored == State::Udp as u8);
    lasting & (flags & (tcp::FIN | tcp::RST) == 0)
}

/// The state of a record; of what is none, the one that lasts shortest.
#[inline]
fn state_of(stored: u8) -> State {
    State::from_u8(stored).unwrap_or(State::Closing)
}

/// Whether a FIN or RST was seen, so that a SYN begins another connection.
#[inline(never)]
fn is_ending(stored: u8) -> bool {
    matches!(state_of(stored), State::Closing | State::ClientClosed | State::ServerClosed)
}

/// One line per transition; RFC 9293 §3.3.2 seen from the middle. Modes that see only the client's half end with its FIN.
#[inline(never)]
fn next_state(stored: u8, flags: u8, direction: Direction, mode: Mode) -> State {
    let state = state_of(stored);
    use Direction::{Forward, Reverse};
    let fin = flags & tcp::FIN != 0;
    match (state, direction) {
        (State::Udp | State::Free, _) => state,
        _ if flags & tcp::RST != 0 => State::Closing,
        (State::Embryonic | State::Established, Forward) if fin && !mode.sees_replies() => State::Closing,
        (State::Embryonic | State::Established, Forward) if fin => State::ClientClosed,
        (State::Embryonic | State::Established, Reverse) if fin => State::ServerClosed,
        (State::ClientClosed, Reverse) | (State::ServerClosed, Forward) if fin => State::Closing,
        (State::Embryonic, Forward) if flags & tcp::SYN == 0 => State::Established,
        _ => state,
    }
}

/// RFC 9293 §3.7.1: no segment longer than the smallest link on the way carries, whatever the ends believe.
#[inline]
fn clamp_mss(frame: &mut [u8], parsed: &Parsed, mtu: u16) {
    if parsed.tcp_flags & tcp::SYN == 0 || parsed.protocol != Protocol::TCP {
        return;
    }
    let headers = if parsed.kind == Kind::Ipv4 { 40 } else { 60 };
    tcp::clamp_mss(parsed.segment_mut(frame), mtu.saturating_sub(headers));
}
