//! Where connections end: TCP of one worker over its packets, and the proxy that relays between connections.
//!
//! The worker hands over what L4 found to end here ([`Terminator::take`]) and calls [`Terminator::run`] once a round; segments leave by
//! [`Wire`]. The engine keeps received packets, shared and unchanged, until they are read and acknowledged.

use std::sync::Arc;

use dpdk::{Mbuf, PacketPool, SharedMbuf, lcore, mbuf};
use weir_abi::columns::{HttpWorkerColumn, TcpColumn, WorkerColumn};
use weir_l4::NO_LISTENER;
use weir_l4::snat::ReplyOwner;
use weir_l7::http::event::Event;
use weir_l7::http::footprint::RATE_KEYS;
use weir_l7::{
    Accounts, HttpConfig, ListenerCount, Proxy, ProxyConfig, RateMessage, Surroundings, ToLedger, ToWorker,
};
use weir_net::{PacketBuf, Parsed, Protocol, eth, icmp, tcp};
use weir_tcp::header::PayloadSum;
use weir_tcp::icmp::Problem;
use weir_tcp::{
    Buffer, Endpoint, Engine, EngineConfig, Handle, Handled, Header, Instant, Payload, State, Transmit,
};

use crate::books::Books;
use crate::drops::WorkerReason;
use crate::events::Events;
use crate::links::Links;
use crate::memory::SegmentMemory;
use crate::messages::FromWorker;
use crate::output::Output;
use crate::packet::Packet;
use crate::punt::Punts;
use crate::view::{Hop, View};
use crate::worker::{destination_bits, source_bits};
use hugepages::spsc;

/// Places of the ring that messages about rate limits leave to others.
const RESERVED_SLOTS: usize = 1_024;
/// Segments that wait for their turn; more than a burst, for steered ones.
const BATCH: usize = 64;
/// Between two secrets of SYN cookies, µs: a cookie is good for about two minutes, and the secret before is still known then.
const ROTATION_US: u64 = 600_000_000;
/// Sessions are as many as connections at most: some wait for their second one.
const CONNECTIONS_PER_SESSION: usize = 2;

/// A packet that several may own.
#[derive(Debug)]
pub struct PacketBuffer(SharedMbuf);

impl Buffer for PacketBuffer {
    #[inline]
    fn bytes(&self) -> &[u8] {
        self.0.data()
    }

    #[inline]
    fn share(&self) -> Self {
        Self(self.0.share())
    }

    #[inline]
    fn cost(&self) -> u32 {
        self.0.cost()
    }
}

/// What a terminator is made with.
#[derive(Debug)]
pub struct Sizes {
    /// Which worker it is for.
    pub worker: u16,
    /// Of how many.
    pub workers: u16,
    /// Connections of the worker.
    pub connections: usize,
    /// Bytes that its queues may hold, whatever the configuration says.
    pub most_memory: u64,
}

/// A segment that waits for its turn.
#[derive(Debug)]
struct Taken {
    packet: Packet,
    parsed: Parsed,
    listener: u16,
}

/// TCP and the proxy of one worker.
#[derive(Debug)]
pub struct Terminator {
    engine: Engine<PacketBuffer>,
    proxy: Proxy<Handle>,
    taken: Vec<Taken>,
    lookups: Vec<weir_tcp::Lookup>,
    /// For small pieces of data.
    small: PacketPool,
    /// To the control process.
    events: Events,
    most_memory: u64,
    /// What of it the configuration allows.
    memory: u64,
    clock: Microseconds,
    /// When the secrets change next.
    rotates: Instant,
    /// Something may be due to be sent.
    is_busy: bool,
}

/// A clock for TCP, from the CPU's.
#[derive(Clone, Copy, Debug)]
pub struct Microseconds {
    /// Microseconds per tick of the CPU's clock, times 2^32.
    scale: u64,
}

impl Microseconds {
    /// The clock of a CPU with so many ticks a second.
    pub fn new(tsc_hz: u64) -> Self {
        Self { scale: ((1_000_000u128 << 32) / u128::from(tsc_hz.max(1))) as u64 }
    }

    /// Now.
    #[inline]
    pub fn now(self) -> Instant {
        Instant(((u128::from(lcore::tsc()) * u128::from(self.scale)) >> 32) as u64)
    }
}

impl Terminator {
    /// TCP without connections; it serves a generation once [`Terminator::adopt`] has it.
    pub fn new(
        sizes: &Sizes,
        view: &View,
        owner: ReplyOwner,
        secret: [u8; 32],
        small: PacketPool,
        clock: Microseconds,
        events: Events,
    ) -> Self {
        let now = clock.now();
        let most_memory = sizes.most_memory;
        let memory = most_memory.min(view.proxied.memory);
        let config = EngineConfig {
            connections: sizes.connections,
            time_waits: sizes.connections,
            // no piece is smaller than a small buffer
            pieces: (most_memory / 512).clamp(1 << 12, 1 << 24) as usize,
            memory,
            ..EngineConfig::default()
        };
        let seed = secret.iter().fold(0u64, |seed, byte| seed.rotate_left(7) ^ u64::from(*byte));
        let mut engine = Engine::new(config, secret, now);
        set_profiles(&mut engine, view);
        let sessions = (sizes.connections / CONNECTIONS_PER_SESSION).max(1);
        let proxy_config = ProxyConfig { sessions, owner, seed };
        let services = Arc::clone(&view.services);
        let mut proxy = Proxy::new(proxy_config, services, Arc::clone(&view.proxied.rules), now);
        proxy.configure_http(http_config(sizes, secret, view.proxied.http_memory));
        let (taken, lookups) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        Self {
            engine,
            proxy,
            taken,
            lookups,
            small,
            events,
            most_memory,
            memory,
            clock,
            rotates: now.after(ROTATION_US),
            is_busy: false,
        }
    }

    /// Runs a new generation from here on.
    pub fn adopt(&mut self, view: &View, mut books: &Books) {
        set_profiles(&mut self.engine, view);
        self.events.set_generation(view.generation);
        self.memory = self.most_memory.min(view.proxied.memory);
        self.engine.set_memory(self.memory);
        self.proxy.set_http_memory(view.proxied.http_memory);
        let services = Arc::clone(&view.services);
        let rules = Arc::clone(&view.proxied.rules);
        // the old ones are still the old view's, which is dropped elsewhere
        drop(self.proxy.adopt(services, rules, &mut self.engine, &mut books));
        self.is_busy = true;
    }

    /// Takes a packet that ends here. Full: [`Terminator::arrive`] first.
    #[inline]
    pub fn take(&mut self, packet: Packet, parsed: &Parsed, listener: u16) {
        self.taken.push(Taken { packet, parsed: *parsed, listener });
    }

    /// Whether packets wait.
    #[inline]
    pub fn has_taken(&self) -> bool {
        !self.taken.is_empty()
    }

    /// Whether no more may be taken now.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.taken.len() >= BATCH
    }

    /// Whether [`Terminator::run`] has something to do.
    #[inline]
    pub fn is_busy(&self) -> bool {
        self.is_busy || self.engine.is_ready()
    }

    /// Lets the packets that wait reach their connections.
    pub fn arrive(&mut self, wire: &mut Wire<'_>) {
        let now = self.clock.now();
        self.lookups.clear();
        for taken in &self.taken {
            self.lookups.push(self.engine.prepare(taken.packet.data(), &taken.parsed));
        }
        for lookup in &mut self.lookups {
            self.engine.guess(lookup);
        }
        for lookup in &self.lookups {
            self.engine.warm(lookup);
        }
        let Self { engine, taken, lookups, .. } = self;
        for (Taken { packet, parsed, listener }, lookup) in taken.drain(..).zip(lookups.iter()) {
            if parsed.protocol != Protocol::TCP {
                let frame = packet.data();
                if let (Ok(inner), Some(problem)) = (icmp::inner(frame, &parsed), Problem::of(frame, &parsed))
                {
                    engine.icmp(frame, &inner, problem, now);
                }
                // it may be about a connection of the kernel's
                let _ = wire.punt(frame, &parsed);
                wire.books.add(WorkerColumn::Consumed, 1);
                continue;
            }
            let is_verified = packet.0.l4_checksum() == mbuf::Checksum::Good;
            let buffer = PacketBuffer(SharedMbuf::new(packet.0));
            match engine.segment(buffer, &parsed, *lookup, is_verified, now, wire) {
                Handled::Done => {}
                Handled::Unknown(buffer) => {
                    if listener == NO_LISTENER {
                        match wire.punt(buffer.bytes(), &parsed) {
                            Ok(()) => {
                                wire.books.add(WorkerColumn::Consumed, 1);
                                continue;
                            }
                            Err(WorkerReason::Punt) => {}
                            Err(reason) => {
                                wire.books.dropped(reason, 1);
                                continue;
                            }
                        }
                    }
                    let is_vip = wire.view.services.is_vip(destination_bits(buffer.bytes(), &parsed));
                    if listener == NO_LISTENER && is_vip {
                        wire.books.dropped(weir_l4::DropReason::NoListener, 1);
                        continue;
                    }
                    let begins = parsed.tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN;
                    if begins
                        && listener != NO_LISTENER
                        && let Err(refusal) = wire.flows.admit(listener, source_bits(buffer.bytes(), &parsed))
                    {
                        wire.books.access_refused(listener, refusal);
                        wire.books.dropped(weir_l4::DropReason::from(refusal), 1);
                        continue;
                    }
                    let listener = (listener != NO_LISTENER).then_some(listener);
                    engine.unknown(buffer, &parsed, listener, now, wire);
                }
            }
            wire.books.add(WorkerColumn::Consumed, 1);
        }
        self.is_busy = true;
    }

    /// Lets the proxy react and sends what is due.
    pub fn run(&mut self, wire: &mut Wire<'_>) {
        let now = self.clock.now();
        let mut books = wire.books;
        self.is_busy = false;
        let mut surroundings = around(&self.small, &mut self.events, wire, now);
        self.proxy.run(&mut self.engine, &mut surroundings, &mut books, now);
        self.engine.transmit(now, wire);
    }

    /// Runs the timers that are due.
    pub fn advance(&mut self, wire: &mut Wire<'_>) {
        let now = self.clock.now();
        let mut books = wire.books;
        self.engine.advance(now, wire);
        while let Some((listener, clients)) = self.engine.poll_given_up() {
            books.listener(listener, ListenerCount::HandshakeTimeouts, clients);
        }
        self.events.look_at_clock(now);
        if now >= self.rotates {
            self.rotates = now.after(ROTATION_US);
            self.engine.rotate_secrets(now);
        }
        if self.proxy.next_deadline(now).is_some_and(|due| due <= now) {
            let mut surroundings = around(&self.small, &mut self.events, wire, now);
            self.proxy.advance(&mut self.engine, &mut surroundings, &mut books, now);
        }
        self.run(wire);
    }

    /// A message of the ledger of limits.
    pub fn receive(&mut self, message: ToWorker, wire: &Wire<'_>) {
        let now = self.clock.now();
        let mut books = wire.books;
        let mut surroundings = around(&self.small, &mut self.events, wire, now);
        self.proxy.receive(message, &mut self.engine, &mut surroundings, &mut books, now);
        self.is_busy = true;
    }

    /// A message about rate limits, from another worker.
    pub fn receive_rate(&mut self, from: u16, message: RateMessage) {
        self.proxy.receive_rate(from, message, self.clock.now());
    }

    /// Sends messages to the ledger and to other workers, and rules that no exchange needs any more, as many as there is room for.
    pub fn report(&mut self, reports: &mut spsc::Producer<FromWorker>) {
        while reports.free_slots() > 0
            && let Some((services, rules)) = self.proxy.poll_retired()
        {
            // there is room: nothing comes back
            drop(reports.push(FromWorker::Outlived(services, rules)));
        }
        while reports.free_slots() > 0 {
            let Some(message) = self.proxy.poll_message() else { break };
            if let Err(FromWorker::Limit(message)) = reports.push(FromWorker::Limit(message)) {
                debug_assert!(matches!(message, ToLedger::Request { .. } | ToLedger::Return { .. }));
                return;
            }
        }
        let now = self.clock.now();
        while reports.free_slots() > RESERVED_SLOTS
            && let Some((to, message)) = self.proxy.poll_rate(now)
        {
            // there is room: nothing comes back
            drop(reports.push(FromWorker::Rate { to, message }));
        }
    }

    /// Writes gauges and counters of TCP and events. What the proxy aborts is counted by cause as it happens.
    pub fn publish(&self, books: &Books) {
        let (census, counters) = (self.engine.census(), self.engine.counters());
        for (column, state) in [
            (TcpColumn::SynSent, State::SynSent),
            (TcpColumn::HalfOpen, State::SynReceived),
            (TcpColumn::Established, State::Established),
            (TcpColumn::FinWait1, State::FinWait1),
            (TcpColumn::FinWait2, State::FinWait2),
            (TcpColumn::CloseWait, State::CloseWait),
            (TcpColumn::Closing, State::Closing),
            (TcpColumn::LastAck, State::LastAck),
        ] {
            books.set_tcp(column, u64::from(census.of(state)));
        }
        for (column, value) in [
            (TcpColumn::TimeWait, u64::from(census.time_wait)),
            (TcpColumn::ConnectionsCapacity, self.engine.capacity() as u64),
            (TcpColumn::MemoryPinned, self.engine.pinned()),
            (TcpColumn::MemoryCeiling, self.memory),
            (TcpColumn::SegmentsIn, counters.segments_in),
            (TcpColumn::SegmentsOut, counters.segments_out),
            (TcpColumn::Retransmitted, counters.retransmitted),
            (TcpColumn::RtoTimeouts, counters.rto_timeouts),
            (TcpColumn::FastRetransmits, counters.fast_retransmits),
            (TcpColumn::TlpProbes, counters.tlp_probes),
            (TcpColumn::Spurious, counters.spurious),
            (TcpColumn::ResetsNoListener, counters.resets_no_connection),
            (TcpColumn::ResetsBadAck, counters.resets_bad_ack),
            (TcpColumn::ResetsReceived, counters.resets_received + counters.refused),
            (TcpColumn::ChallengeAcks, counters.challenge_acks),
            (TcpColumn::SynCookiesSent, counters.syn_cookies_sent),
            (TcpColumn::SynCookiesAccepted, counters.syn_cookies_accepted),
            (TcpColumn::SynCookiesRefused, counters.syn_cookies_refused),
            (TcpColumn::FastOpenAccepted, counters.fast_open_accepted),
            (TcpColumn::ChecksumErrors, counters.malformed),
            (TcpColumn::PawsDrops, counters.paws_drops),
            (TcpColumn::OutOfWindowDrops, counters.out_of_window),
        ] {
            books.set_tcp(column, value);
        }
        let (used, ceiling) = self.proxy.http_memory();
        books.set_http(HttpWorkerColumn::MemoryUsed, used);
        books.set_http(HttpWorkerColumn::MemoryCeiling, ceiling);
        let events = self.events.counts();
        books.set_http(HttpWorkerColumn::EventsWritten, events.written);
        books.set_http(HttpWorkerColumn::EventsRefused, events.refused);
    }
}

fn http_config(sizes: &Sizes, secret: [u8; 32], memory: u64) -> HttpConfig {
    let Sizes { worker, workers, .. } = *sizes;
    // the owner of a key is found by a hash that all workers share
    let words = secret.first_chunk::<16>().map_or(0, |bytes| u128::from_le_bytes(*bytes));
    let secret = [words as u64, (words >> 64) as u64];
    HttpConfig { worker, workers, rate_keys: RATE_KEYS, secret, memory }
}

/// How connections of a generation behave.
fn set_profiles(engine: &mut Engine<PacketBuffer>, view: &View) {
    for (index, profile) in &view.proxied.profiles {
        engine.set_listener(*index, *profile);
    }
}

/// Buffers for the proxy's own words, the flows of L4 that share its source addresses, and who is told what happens.
struct Around<'a> {
    small: &'a PacketPool,
    pools: &'a [PacketPool],
    flows: &'a weir_l4::Engine<SegmentMemory>,
    events: &'a mut Events,
    now: Instant,
}

fn around<'a>(small: &'a PacketPool, events: &'a mut Events, wire: &'a Wire<'_>, now: Instant) -> Around<'a> {
    Around { small, pools: wire.pools, flows: wire.flows, events, now }
}

impl Surroundings<PacketBuffer> for Around<'_> {
    /// What fits a small buffer takes one while there are any, the rest one of a port's, as received packets are.
    fn copy(&mut self, bytes: &[u8]) -> Option<PacketBuffer> {
        let small = if bytes.len() <= usize::from(self.small.data_room()) {
            copy_into(self.small, bytes)
        } else {
            None
        };
        small.or_else(|| self.pools.iter().find_map(|pool| copy_into(pool, bytes)))
    }

    fn longest(&self) -> usize {
        let small = usize::from(self.small.data_room());
        self.pools.iter().map(|pool| usize::from(pool.data_room())).max().unwrap_or(0).max(small)
    }

    #[inline]
    fn unix_s(&self) -> u64 {
        self.events.unix_s(self.now)
    }

    fn tell(&mut self, event: Event<'_>) {
        self.events.tell(event, self.now);
    }

    fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool {
        let (from, to) = ((remote.address, remote.port), (local.address, local.port));
        self.flows.has_flow(from, to, Protocol::TCP.0)
    }
}

fn copy_into(pool: &PacketPool, bytes: &[u8]) -> Option<PacketBuffer> {
    let mut packet = pool.alloc()?;
    packet.append_stale(bytes.len())?.copy_from_slice(bytes);
    Some(PacketBuffer(SharedMbuf::new(packet)))
}

/// A worker's way out for segments.
pub struct Wire<'a> {
    /// Ports.
    pub output: &'a mut Output,
    /// Link addresses.
    pub links: &'a mut Links,
    /// Routes.
    pub view: &'a View,
    /// Pools by port.
    pub pools: &'a [PacketPool],
    /// For small pieces of data.
    pub small: &'a PacketPool,
    /// Flows of L4.
    pub flows: &'a weir_l4::Engine<SegmentMemory>,
    /// Counters.
    pub books: &'a Books,
    /// To the management thread.
    pub reports: &'a mut spsc::Producer<FromWorker>,
    /// To the kernel.
    pub punts: &'a mut Punts,
}

impl Wire<'_> {
    /// Hands what belongs to no connection to the kernel, if it has the address.
    #[cold]
    fn punt(&mut self, frame: &[u8], parsed: &Parsed) -> Result<(), WorkerReason> {
        let destination = destination_bits(frame, parsed);
        let is_kernels = self.view.services.is_kernels(destination);
        let port = self.view.port_of(destination).filter(|_| is_kernels).ok_or(WorkerReason::Punt)?;
        self.punts.punt(port, frame, parsed, lcore::tsc(), self.books)
    }
}

impl Transmit<PacketBuffer> for Wire<'_> {
    #[inline]
    fn transmit(&mut self, header: &Header, payload: Payload<'_, PacketBuffer>) -> bool {
        let Some(hop) = self.view.route(header.remote.address) else {
            // the engine's timers deal with it as with a loss
            self.books.add(WorkerColumn::Generated, 1);
            self.books.dropped(WorkerReason::NoRoute, 1);
            return true;
        };
        let (port, mac) = match hop {
            Hop::Gateway(port, id, _) => (port, self.links.of_id(id)),
            Hop::OnLink(port) => (port, self.links.of_address(port, header.remote.address)),
        };
        let Some(mut packet) = self.pools.get(usize::from(port)).and_then(PacketPool::alloc) else {
            return false;
        };
        if !write(&mut packet, header, payload) {
            return true;
        }
        self.books.add(WorkerColumn::Generated, 1);
        let (packet, l3) = (Packet(packet), eth::HEADER_LEN as u16);
        match mac {
            Some(mac) => self.output.forward(port, packet, l3, mac, self.books),
            None => {
                let address = match hop {
                    Hop::Gateway(_, _, gateway) => weir_l4::bits_of(gateway),
                    Hop::OnLink(_) => header.remote.address,
                };
                hold(self.links, self.reports, self.books, packet, l3, port, address);
            }
        }
        true
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<PacketBuffer> {
        copy_into(self.small, bytes)
    }
}

/// Lets a packet wait for its next hop's link address.
pub fn hold(
    links: &mut Links,
    reports: &mut spsc::Producer<FromWorker>,
    books: &Books,
    packet: Packet,
    l3: u16,
    port: u16,
    address: u128,
) {
    let (hold, refused) = links.hold(packet, l3, port, address);
    if hold == crate::links::Hold::First {
        let address = weir_l4::address_of(address);
        // a full ring costs a repetition: housekeeping asks again for all that wait
        let _ = reports.push(FromWorker::Wanted { port, address });
    }
    if let Some(refused) = refused {
        books.dropped(WorkerReason::NeighbourQueueFull, 1);
        drop(refused);
    }
    books.set(WorkerColumn::Held, links.held() as u64);
}

/// Writes a segment as an Ethernet frame without its link header's content. False where it does not fit, which no segment of a sane MTU
/// is.
#[inline]
fn write(packet: &mut Mbuf, header: &Header, payload: Payload<'_, PacketBuffer>) -> bool {
    let headers = eth::HEADER_LEN + header.len();
    let len = payload.len();
    let Some(frame) = packet.append_stale(headers + len) else { return false };
    let Some((head, mut body)) = frame.split_at_mut_checked(headers) else { return false };
    let mut sum = PayloadSum::new();
    for (buffer, offset, len) in payload {
        let (offset, len) = (usize::from(offset), usize::from(len));
        let Some(piece) = buffer.bytes().get(offset..offset + len) else { return false };
        let Some((place, rest)) = body.split_at_mut_checked(len) else { return false };
        place.copy_from_slice(piece);
        sum.add(piece);
        body = rest;
    }
    head.get_mut(eth::HEADER_LEN..).is_some_and(|out| header.write(len, sum.finish(), out) > 0)
}
