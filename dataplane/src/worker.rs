//! The loop: packets in, stage by stage, packets out. One per worker thread; shares nothing but rings.
//!
//! ```text
//! round:  messages ─▶ bursts of each receive queue ─┬▶ steered packets ─▶ lent transmissions ─▶ flush ─▶ idle
//!         burst:  parse, steer │ prepare │ guess │ rewrite, dispatch
//! ```
//!
//! No allocation, lock, system call or formatting per packet. (A round that finds nothing may sleep; housekeeping every
//! millisecond reads the clock.)

use std::sync::Arc;
use std::time::Duration;

use dpdk::ring::{Consumer, Producer};
use dpdk::{ArrayVec, BURST, Burst, Mbuf, PacketPool, RxQueue, lcore, mbuf};
use hugepages::generation::{WorkerAck, monotonic_ns};
use hugepages::spsc;
use weir_abi::columns::{ExceptionColumn, PortColumn, WorkerColumn};
use weir_abi::probes::Probe;
use weir_l4::engine::Engine;
use weir_l4::rate::TICKS_PER_SECOND;
use weir_l4::{Delivery, DropReason, Lookup, Owner, Spread, Verdict};
use weir_net::{Kind, Mac, PacketBuf, ParseOptions, Parsed, Protocol, eth, icmpv6, parse_into};

use crate::books::{Books, Way};
use crate::drops::{Drop, WorkerReason};
use crate::links::Links;
use crate::local::{self, Outcome};
use crate::memory::{SegmentMemory, remember_snat};
use crate::messages::{FromWorker, ToWorker};
use crate::neighbour::NeighbourId;
use crate::output::{Output, PortOut};
use crate::packet::Packet;
use crate::punt::{Frame, Punts};
use crate::terminate::{self, Terminator, Wire};
use crate::view::{Hop, View};

/// Nanoseconds of a tick of the engine's clock.
pub const TICK_NS: u64 = 1_000_000_000 / TICKS_PER_SECOND as u64;
/// Between two rounds of housekeeping.
const HOUSEKEEPING_NS: u64 = 1_000_000;
/// The whole table is looked at for silent flows in so many rounds of housekeeping: two seconds.
const SWEEP_ROUNDS: usize = 2_000;
/// Empty rounds before an adaptive worker sleeps.
const SPIN_ROUNDS: u32 = 256;
/// First and longest sleep of an adaptive worker. A queue of 1,024 overflows after 200 µs only above 5 Mpps, and a worker
/// under such load does not sleep.
const SLEEP_FIRST: Duration = Duration::from_micros(20);
const SLEEP_MOST: Duration = Duration::from_micros(200);

/// On a steered packet: its ports are in the low 32 bits (it is a later fragment).
const STEERED_PORTS: u64 = 1 << 63;
/// On a steered packet: the receiver is the home of its fragments.
const STEERED_HOME: u64 = 1 << 62;
/// On a steered packet: the index of the port that it came from is in these 16 bits.
const STEERED_PORT_SHIFT: u32 = 32;

/// A receive queue and what its frames must look like.
#[derive(Debug)]
pub struct Input {
    /// Index of the port.
    pub port: u16,
    /// The queue.
    pub queue: RxQueue,
    /// Whether frames for other stations can arrive (not on captures and loopbacks, whose frames have any address).
    pub filter: bool,
}

/// Rings to and from the other workers, by worker; `None` at this worker's own place.
#[derive(Debug)]
pub struct Peers {
    /// Packets for their owner.
    pub steer_out: Vec<Option<Producer>>,
    /// Packets of ours that others received.
    pub steer_in: Vec<Consumer>,
    /// Packets that others send through our queues.
    pub transmit_in: Vec<Consumer>,
    /// How the owner is found.
    pub spread: Arc<Spread>,
}

/// All that a worker has.
pub struct Worker {
    /// Which one.
    pub index: u16,
    /// Receive queues.
    pub inputs: Vec<Input>,
    /// Ports.
    pub output: Output,
    /// Other workers.
    pub peers: Peers,
    /// Pools by port, for packets that Weir makes.
    pub pools: Vec<PacketPool>,
    /// Balancing.
    pub engine: Engine<SegmentMemory>,
    /// The generation in use.
    pub view: Arc<View>,
    /// Counters.
    pub books: Books,
    /// From the management thread.
    pub orders: spsc::Consumer<ToWorker>,
    /// To the management thread.
    pub reports: spsc::Producer<FromWorker>,
    /// This worker's line of the control page.
    pub ack: WorkerAck,
    /// Sleep when there is nothing to do.
    pub adaptive: bool,
    /// Link addresses.
    pub links: Links,
    /// Connections that end here, once a generation has a proxy.
    pub terminator: Option<Box<Terminator>>,
    /// Buffers for small pieces of their data.
    pub small: PacketPool,
    /// To the kernel and back.
    pub punts: Punts,
}

/// A burst between the stages: arrays that are written in place, because copying a record that was just written field by field stalls.
struct Stage {
    packets: ArrayVec<Packet, BURST>,
    parsed: [Parsed; BURST],
    lookups: [Lookup; BURST],
    deliveries: [Option<Delivery>; BURST],
    ports: [u16; BURST],
    /// Packets for other workers, by owner.
    steering: Vec<Burst>,
}

/// Where a packet came from.
#[derive(Clone, Copy)]
enum Origin {
    Nic { filter: bool },
    Peer(u64),
}

/// Of the frames of one burst: all are addressed to this port, and this worker owns all flows.
#[derive(Clone, Copy)]
struct Station {
    /// Index of the port.
    port: u16,
    mac: Mac,
    /// See [`Input::filter`].
    filter: bool,
}

/// Clocks of a worker.
struct Clock {
    tick: u32,
    housekeeping_tsc: u64,
    period_tsc: u64,
    start_tsc: u64,
}

impl Worker {
    /// Runs until told to stop.
    pub fn run(mut self, tsc_hz: u64) {
        // flows that were recovered
        self.books.settle();
        self.engine.set_clock(monotonic_ns());
        self.ack.ack(self.view.generation);
        let period_tsc = (tsc_hz / 1_000_000_000 * HOUSEKEEPING_NS).max(tsc_hz / 1_000);
        let now = lcore::tsc();
        let mut clock = Clock { tick: tick_now(), housekeeping_tsc: now, period_tsc, start_tsc: now };
        let mut stage = Stage {
            packets: ArrayVec::new(),
            parsed: [Parsed::default(); BURST],
            lookups: [Lookup::default(); BURST],
            deliveries: [None; BURST],
            ports: [0; BURST],
            steering: self.peers.steer_out.iter().map(|_| Burst::new()).collect(),
        };
        let mut empty_rounds = 0;
        let mut round_start = now;
        while self.take_orders() {
            let found = self.round(&clock, &mut stage);
            let round_end = lcore::tsc();
            self.books.add(WorkerColumn::Polls, 1);
            if found {
                self.books.add(WorkerColumn::BusyCycles, round_end - round_start);
                empty_rounds = 0;
            } else {
                self.books.add(WorkerColumn::EmptyPolls, 1);
                empty_rounds += 1;
                self.idle(empty_rounds);
            }
            round_start = round_end;
            if round_end.wrapping_sub(clock.housekeeping_tsc) >= clock.period_tsc {
                self.housekeep(&mut clock, round_end);
            }
        }
        self.end();
    }

    /// One round; whether it found packets.
    fn round(&mut self, clock: &Clock, stage: &mut Stage) -> bool {
        let mut found = false;
        for at in 0..self.inputs.len() {
            let mut burst = Burst::new();
            let Some(input) = self.inputs.get_mut(at) else { continue };
            let (port, filter) = (input.port, input.filter);
            if input.queue.burst(&mut burst) == 0 {
                continue;
            }
            found = true;
            let bytes: u64 = burst.iter().map(|packet| packet.packet_len() as u64).sum();
            self.books.add(WorkerColumn::RxPackets, burst.len() as u64);
            self.books.port(usize::from(port), PortColumn::RxPackets, burst.len() as u64);
            self.books.port(usize::from(port), PortColumn::RxBytes, bytes);
            self.burst(&mut burst, |_| (port, Origin::Nic { filter }), clock.tick, stage);
        }
        if !self.peers.steer_in.is_empty() {
            found |= self.peer_packets(clock.tick, stage);
        }
        if found {
            self.flush_steering(&mut stage.steering);
        }
        found |= self.kernel_frames();
        if self.terminator.as_ref().is_some_and(|terminator| terminator.is_busy()) {
            found = true;
            self.terminated(Terminator::run);
        }
        if found {
            self.output.flush(&self.books);
        }
        self.books.settle_seldom(found);
        found
    }

    /// What the kernel sends.
    #[inline]
    fn kernel_frames(&mut self) -> bool {
        let mut found = false;
        while let Some(frame) = self.punts.take() {
            found = true;
            self.kernel_frame(&frame);
            self.punts.sent(frame);
        }
        found
    }

    #[cold]
    fn kernel_frame(&mut self, frame: &Frame) {
        if let Some(probe) = frame.probe {
            self.probe(frame, probe);
            return;
        }
        let port = usize::from(frame.port);
        let vlan = self.output.ports.get(port).and_then(|out| out.vlan);
        let packet = self.pools.get(port).and_then(PacketPool::alloc).map(Packet);
        let filled = packet.and_then(|mut packet| {
            let fits =
                packet.0.fill(frame.bytes()) && vlan.is_none_or(|vlan| eth::push_vlan(&mut packet, vlan));
            fits.then_some(packet)
        });
        match filled {
            Some(packet) => {
                self.books.add(WorkerColumn::Generated, 1);
                self.books.exception(port, ExceptionColumn::FromKernel, 1);
                self.output.send(frame.port, packet.0, &self.books);
            }
            None => self.books.exception(port, ExceptionColumn::KernelRefused, 1),
        }
    }

    /// A health check of one backend, as a client's packet would reach it.
    fn probe(&mut self, frame: &Frame, Probe { listener, backend }: Probe) {
        let mut packet = match self.pools.get(usize::from(frame.port)).and_then(PacketPool::alloc).map(Packet)
        {
            Some(packet) => packet,
            None => return self.books.exception(frame.port.into(), ExceptionColumn::KernelRefused, 1),
        };
        let mut parsed = Parsed::default();
        if !packet.0.fill(frame.bytes())
            || parse_into(packet.data(), &ParseOptions::default(), &mut parsed).is_err()
        {
            return self.books.exception(frame.port.into(), ExceptionColumn::KernelRefused, 1);
        }
        self.books.add(WorkerColumn::Generated, 1);
        self.books.exception(frame.port.into(), ExceptionColumn::FromKernel, 1);
        let books = &mut self.books;
        match self.engine.probe(&mut packet, &parsed, listener, backend, tick_now(), books) {
            Verdict::ToBackend(delivery) => match self.links.of_id(NeighbourId(delivery.next_hop)) {
                Some(mac) => self.output.forward(delivery.egress, packet, delivery.l3, mac, &self.books),
                None => self.hold_for_backend(packet, delivery),
            },
            Verdict::Reply => match self.punt(&packet, &Parsed { vlan: None, ..parsed }, frame.port) {
                // too long for the way: the kernel will send shorter ones
                Ok(()) => self.books.add(WorkerColumn::Consumed, 1),
                Err(reason) => self.drop_one(reason),
            },
            Verdict::Drop(reason) => self.drop_one(reason),
            // none of these is for a packet without a flow that has a backend
            Verdict::ToClient(_) | Verdict::Terminate(_) | Verdict::Local => {
                self.drop_one(DropReason::NoListener);
            }
        }
    }

    /// Hands a packet to the kernel by the port of the address that it is for.
    #[cold]
    #[inline(never)]
    fn punt_own(&mut self, packet: &Packet, parsed: &Parsed) -> Result<(), WorkerReason> {
        match self.view.port_of(destination_bits(packet.data(), parsed)) {
            Some(port) => self.punt(packet, parsed, port),
            None => Err(WorkerReason::Punt),
        }
    }

    #[cold]
    fn punt(&mut self, packet: &Packet, parsed: &Parsed, port: u16) -> Result<(), WorkerReason> {
        self.punts.punt(port, packet.data(), parsed, lcore::tsc(), &self.books)
    }

    /// Packets that other workers handed over.
    fn peer_packets(&mut self, tick: u32, stage: &mut Stage) -> bool {
        let mut found = false;
        for at in 0..self.peers.steer_in.len() {
            let mut burst = Burst::new();
            let popped = self.peers.steer_in.get_mut(at).map_or(0, |ring| ring.pop_burst(&mut burst));
            self.books.add(WorkerColumn::SteeredIn, popped as u64);
            found |= popped > 0;
            let origin = |packet: &Mbuf| {
                let tag = packet.user();
                ((tag >> STEERED_PORT_SHIFT) as u16, Origin::Peer(tag))
            };
            self.burst(&mut burst, origin, tick, stage);
        }
        for at in 0..self.peers.transmit_in.len() {
            let mut burst = Burst::new();
            let popped = self.peers.transmit_in.get_mut(at).map_or(0, |ring| ring.pop_burst(&mut burst));
            self.books.add(WorkerColumn::SteeredIn, popped as u64);
            found |= popped > 0;
            for packet in burst.drain(..) {
                let port = packet.user() as u16;
                self.output.send(port, packet, &self.books);
            }
        }
        found
    }

    fn flush_steering(&mut self, steering: &mut [Burst]) {
        for (ring, batch) in self.peers.steer_out.iter_mut().zip(steering) {
            if batch.is_empty() {
                continue;
            }
            let handed = ring.as_mut().map_or(0, |ring| ring.push_burst(batch));
            self.books.add(WorkerColumn::SteeredOut, handed as u64);
            if !batch.is_empty() {
                self.books.dropped(WorkerReason::SteerRingFull, batch.len() as u64);
                mbuf::free_bulk(batch);
            }
        }
    }

    /// A burst through the stages. `origin` tells of a packet its port and where it came from.
    #[inline]
    fn burst(
        &mut self,
        burst: &mut Burst,
        origin: impl Fn(&Mbuf) -> (u16, Origin) + Clone,
        tick: u32,
        stage: &mut Stage,
    ) {
        for packet in burst.iter() {
            hugepages::prefetch::read_slice_at(packet.data(), 0);
        }
        let station = burst.first().map(origin.clone()).and_then(|(port, origin)| self.station(port, origin));
        let usual = match station {
            Some(station) => self.usual(burst, station, &mut stage.lookups),
            None => {
                stage.lookups.fill(Lookup::default());
                0
            }
        };
        if usual == burst.len() {
            stage.packets.extend(burst.drain(..).map(Packet));
        } else {
            self.accept(burst, origin, tick, stage);
        }
        let Stage { packets, lookups, deliveries, .. } = stage;
        self.guess(lookups.get_mut(..packets.len()).unwrap_or_default());
        self.engine.steady(packets, lookups, deliveries, tick, &mut self.books);
        if !self.dispatch_alike(packets, deliveries) {
            self.dispatch(stage, station, tick);
        }
        if self.terminator.as_ref().is_some_and(|terminator| terminator.has_taken()) {
            self.terminated(Terminator::arrive);
        }
    }

    /// The first stage of nearly every packet: whether it is a usual one for this worker, and where its flow may be. Returns how
    /// many are; of others, the lookup says so. (A function for each stage, so that what its loop needs stays in registers.)
    #[inline(never)]
    fn usual(&self, burst: &Burst, station: Station, lookups: &mut [Lookup; BURST]) -> usize {
        let mut usual = 0;
        for (packet, lookup) in burst.iter().zip(lookups) {
            let frame = packet.data();
            let options = ParseOptions { l3_checksum_ok: packet.is_ip_checked() };
            let is_usual = ((packet.segment_count() == 1) & !packet.is_corrupt())
                && is_for_station(station.mac, frame, station.filter)
                && self.engine.prepare_usual(frame, &options, lookup);
            if is_usual {
                usual += 1;
            } else {
                *lookup = Lookup::default();
            }
        }
        usual
    }

    /// The first stage of a burst with others among the usual packets, which may end here: those that stay, side by side, and
    /// where their flows may be.
    #[inline(never)]
    fn accept(
        &mut self,
        burst: &mut Burst,
        origin: impl Fn(&Mbuf) -> (u16, Origin),
        tick: u32,
        stage: &mut Stage,
    ) {
        let Stage { packets, parsed, lookups, ports, steering, .. } = stage;
        let found = *lookups;
        let mut places = parsed.iter_mut().zip(lookups).zip(ports);
        let mut place = places.next();
        for (packet, found) in burst.drain(..).zip(found) {
            let Some(((parsed, lookup), kept_port)) = &mut place else { break };
            let (port, origin) = origin(&packet);
            let packet = Packet(packet);
            let packet = if found.is_usual() {
                **lookup = found;
                packet
            } else {
                let classified = self.classify(packet, port, origin, tick, parsed, steering);
                let Some(packet) = classified else { continue };
                self.engine.prepare(packet.data(), parsed, lookup);
                packet
            };
            **kept_port = port;
            packets.push(packet);
            place = places.next();
        }
    }

    /// The second stage: reads the index and asks for the records.
    #[inline(never)]
    fn guess(&self, lookups: &mut [Lookup]) {
        for lookup in lookups {
            self.engine.guess(lookup);
        }
    }

    /// The last stage of most bursts: all packets are usual ones and leave by one port, without a tag. `false`: they don't, and
    /// nothing has become of any of them.
    #[inline(never)]
    fn dispatch_alike(
        &mut self,
        packets: &mut ArrayVec<Packet, BURST>,
        deliveries: &[Option<Delivery>],
    ) -> bool {
        let Some(deliveries) = deliveries.get(..packets.len()) else { return false };
        let Some(Some(Delivery { egress, .. })) = deliveries.first() else { return false };
        let Some(source) = self.output.untagged(*egress) else { return false };
        for (packet, delivery) in packets.iter_mut().zip(deliveries) {
            let Some(delivery) = delivery.as_ref().filter(|delivery| delivery.egress == *egress) else {
                return false;
            };
            let Some(mac) = self.links.of_id(NeighbourId(delivery.next_hop)) else { return false };
            // what has no room for link addresses, if there is such a thing, is dropped as before
            if !eth::set_addresses(packet.data_mut(), mac, source) {
                return false;
            }
        }
        for delivery in deliveries.iter().flatten() {
            self.books.delivered(delivery, Way::In);
        }
        self.output.send_all(*egress, packets.drain(..).map(|packet| packet.0), &self.books);
        true
    }

    /// The last stage: packets leave in the order in which they came; those that are not usual are decided here.
    #[inline(never)]
    fn dispatch(&mut self, stage: &mut Stage, station: Option<Station>, tick: u32) {
        let Stage { packets, parsed, lookups, deliveries, ports, steering } = stage;
        for (at, (packet, delivery)) in packets.drain(..).zip(deliveries.iter()).enumerate() {
            if let Some(delivery) = delivery {
                self.send_usual(packet, delivery);
                continue;
            }
            let (Some(parsed), Some(lookup), Some(port)) =
                (parsed.get_mut(at), lookups.get(at), ports.get(at))
            else {
                continue;
            };
            let packet = match station {
                Some(Station { port, filter, .. }) if lookup.is_usual() => {
                    // a usual packet, but not of a settled flow: nobody has read all of it yet
                    let origin = Origin::Nic { filter };
                    let classified = self.classify(packet, port, origin, tick, parsed, steering);
                    let Some(packet) = classified else { continue };
                    packet
                }
                _ => packet,
            };
            let port = station.map_or(*port, |station| station.port);
            self.decide(packet, parsed, lookup, port, tick);
        }
    }

    /// Calls the terminator with the worker's way out.
    #[inline(never)]
    fn terminated(&mut self, call: impl FnOnce(&mut Terminator, &mut Wire<'_>)) {
        let Some(mut terminator) = self.terminator.take() else { return };
        let Self { output, links, view, pools, small, engine, books, reports, punts, .. } = self;
        let mut wire = Wire { output, links, view, pools, small, flows: engine, books, reports, punts };
        call(&mut terminator, &mut wire);
        self.terminator = Some(terminator);
    }

    /// What usual frames of a burst must look like to be this worker's; `None` where that can't be told of all at once.
    fn station(&self, port: u16, origin: Origin) -> Option<Station> {
        let Origin::Nic { filter } = origin else { return None };
        let out = self.output.ports.get(usize::from(port))?;
        // a usual frame has no tag
        (matches!(*self.peers.spread, Spread::Alone) && out.vlan.is_none()).then_some(Station {
            port,
            mac: out.mac,
            filter,
        })
    }

    /// First stage: what is this packet, and is it ours? `None`: it was dealt with.
    #[inline(never)]
    fn classify(
        &mut self,
        mut packet: Packet,
        port: u16,
        origin: Origin,
        tick: u32,
        parsed: &mut Parsed,
        steering: &mut [Burst],
    ) -> Option<Packet> {
        if packet.0.segment_count() > 1 && !packet.0.linearize() {
            self.drop_one(WorkerReason::MultiSegment);
            return None;
        }
        if packet.0.is_corrupt() {
            let ip = packet.0.ip_checksum() == mbuf::Checksum::Bad;
            let reason = if ip { WorkerReason::BadIpChecksum } else { WorkerReason::BadL4Checksum };
            self.drop_one(reason);
            return None;
        }
        let options = ParseOptions { l3_checksum_ok: packet.0.is_ip_checked() };
        if let Err(reason) = parse_into(packet.data(), &options, parsed) {
            self.drop_one(reason);
            return None;
        }
        if let Origin::Nic { filter } = origin
            && !self.accept_link(&packet, parsed, port, filter)
        {
            return None;
        }
        match parsed.kind {
            Kind::Ipv4 => {}
            Kind::Ipv6 => {
                let ndp = matches!(
                    parsed.icmp_type,
                    icmpv6::NEIGHBOR_SOLICITATION | icmpv6::NEIGHBOR_ADVERTISEMENT
                );
                if parsed.protocol == Protocol::ICMPV6 && ndp {
                    self.neighbour_message(packet, parsed, port);
                    return None;
                }
            }
            Kind::Arp => {
                self.neighbour_message(packet, parsed, port);
                return None;
            }
            Kind::Other => {
                self.drop_one(WorkerReason::UnknownEtherType);
                return None;
            }
        }
        let alone = matches!(*self.peers.spread, Spread::Alone);
        if !alone || parsed.is_fragment() {
            return self.own(packet, parsed, port, origin, tick, steering);
        }
        Some(packet)
    }

    fn accept_link(&mut self, packet: &Packet, parsed: &Parsed, port: u16, filter: bool) -> bool {
        let Some(out) = self.output.ports.get(usize::from(port)) else { return false };
        if !is_for_station(out.mac, packet.data(), filter) {
            self.drop_one(WorkerReason::OtherStation);
            return false;
        }
        if !is_of_vlan(out, parsed) {
            self.drop_one(WorkerReason::WrongVlan);
            return false;
        }
        true
    }

    /// Fragments get their ports, and a packet of another worker's flow goes there.
    #[inline(never)]
    fn own(
        &mut self,
        mut packet: Packet,
        parsed: &mut Parsed,
        port: u16,
        origin: Origin,
        tick: u32,
        steering: &mut [Burst],
    ) -> Option<Packet> {
        let from_port = u64::from(port) << STEERED_PORT_SHIFT;
        let tag = match origin {
            Origin::Nic { .. } => 0,
            Origin::Peer(tag) => tag,
        };
        if tag & STEERED_PORTS != 0 {
            parsed.src_port = (tag >> 16) as u16;
            parsed.dst_port = tag as u16;
            parsed.has_ports = true;
            return Some(packet);
        }
        let steered = matches!(origin, Origin::Peer(_));
        if steered && tag & STEERED_HOME == 0 {
            return Some(packet);
        }
        if parsed.is_fragment() {
            let home = self.peers.spread.fragment_home(packet.data(), parsed);
            if let Owner::Worker(home) = home
                && home != self.index
                && !steered
            {
                packet.0.set_user(STEERED_HOME | from_port);
                self.steer(home, packet, steering);
                return None;
            }
            if !self.engine.follow_fragment(packet.data(), parsed, tick) {
                if self.view.services.is_kernels(destination_bits(packet.data(), parsed)) {
                    // the kernel can wait for the first one
                    self.conclude(Outcome::Kernel, packet, parsed, port);
                    return None;
                }
                self.books.dropped(weir_l4::DropReason::FragmentWithoutFirst, 1);
                return None;
            }
        }
        let own_hash = !parsed.is_fragment();
        match self.peers.spread.owner(&self.view.services, packet.data(), parsed, own_hash) {
            Owner::Worker(owner) if owner != self.index => {
                let ports = (u64::from(parsed.src_port) << 16) | u64::from(parsed.dst_port);
                packet.0.set_user(from_port | if parsed.is_fragment() { STEERED_PORTS | ports } else { 0 });
                self.steer(owner, packet, steering);
                None
            }
            Owner::Worker(_) | Owner::Any => Some(packet),
        }
    }

    fn steer(&mut self, owner: u16, packet: Packet, steering: &mut [Burst]) {
        let full = steering.get(usize::from(owner)).is_none_or(ArrayVec::is_full);
        if full {
            self.flush_steering(steering);
        }
        match steering.get_mut(usize::from(owner)) {
            Some(batch) => batch.push(packet.0),
            None => self.books.dropped(WorkerReason::SteerRingFull, 1),
        }
    }

    /// Last stage of a packet that is not of the usual kind.
    #[inline(never)]
    fn decide(&mut self, mut packet: Packet, parsed: &Parsed, lookup: &Lookup, port: u16, tick: u32) {
        let verdict = self.engine.process(&mut packet, parsed, lookup, tick, &mut self.books);
        // not a `match`: that becomes an indirect jump
        if let Verdict::ToBackend(delivery) = &verdict {
            self.send_to_backend(packet, delivery);
        } else {
            self.execute_other(packet, parsed, port, verdict, tick);
        }
    }

    #[inline(always)]
    fn send_to_backend(&mut self, packet: Packet, delivery: &Delivery) {
        self.books.delivered(delivery, Way::In);
        match self.links.of_id(NeighbourId(delivery.next_hop)) {
            Some(mac) => self.output.forward(delivery.egress, packet, delivery.l3, mac, &self.books),
            None => self.hold_for_backend(packet, *delivery),
        }
    }

    /// As [`Worker::send_to_backend`], for a packet whose link header is right but for the addresses.
    #[inline(always)]
    fn send_usual(&mut self, packet: Packet, delivery: &Delivery) {
        self.books.delivered(delivery, Way::In);
        match self.links.of_id(NeighbourId(delivery.next_hop)) {
            Some(mac) => self.output.readdress(delivery.egress, packet, delivery.l3, mac, &self.books),
            None => self.hold_for_backend(packet, *delivery),
        }
    }

    #[inline(never)]
    fn execute_other(&mut self, packet: Packet, parsed: &Parsed, port: u16, verdict: Verdict, tick: u32) {
        match verdict {
            Verdict::ToBackend(delivery) => self.send_to_backend(packet, &delivery),
            Verdict::ToClient(delivery) => {
                self.books.delivered(&delivery, Way::Out);
                self.deliver_to_client(packet, parsed, port, delivery.l3, tick);
            }
            Verdict::Reply => self.answer(packet, port),
            Verdict::Terminate(listener) => self.terminate(packet, parsed, listener),
            Verdict::Local => {
                let mut packet = packet;
                let outcome = local::other(&mut packet, parsed);
                self.conclude(outcome, packet, parsed, port);
            }
            Verdict::Drop(DropReason::NotForUs) if local::is_for_link(packet.data(), parsed) => {
                match self.punt(&packet, parsed, port) {
                    Ok(()) => self.books.add(WorkerColumn::Consumed, 1),
                    Err(WorkerReason::Punt) => self.drop_one(DropReason::NotForUs),
                    Err(reason) => self.drop_one(reason),
                }
            }
            Verdict::Drop(reason) => self.drop_one(reason),
        }
    }

    /// A packet of a connection that ends here.
    fn terminate(&mut self, packet: Packet, parsed: &Parsed, listener: u16) {
        match &mut self.terminator {
            Some(terminator) if !terminator.is_full() => terminator.take(packet, parsed, listener),
            // no burst is longer than the batch, so this is a generation without its terminator
            _ => self.drop_one(weir_l4::DropReason::NoListener),
        }
    }

    /// Counts a dropped packet, out of the way of those that are not.
    #[cold]
    #[inline(never)]
    fn drop_one(&self, reason: impl Into<Drop>) {
        self.books.dropped(reason, 1);
    }

    #[cold]
    fn hold_for_backend(&mut self, packet: Packet, delivery: Delivery) {
        let address = self.view.services.backend(delivery.backend).map(|backend| backend.address);
        let hop = address.and_then(|address| self.view.route(address));
        self.unresolved(packet, delivery.l3, hop, address.unwrap_or(0));
    }

    #[inline(never)]
    fn deliver_to_client(&mut self, mut packet: Packet, parsed: &Parsed, from: u16, l3: u16, tick: u32) {
        let destination = destination_bits(packet.data(), parsed);
        let Some(hop) = self.view.route(destination) else {
            self.books.dropped(WorkerReason::NoRoute, 1);
            return;
        };
        let (port, mac) = match hop {
            Hop::Gateway(port, id, _) => (port, self.links.of_id(id)),
            Hop::OnLink(port) => (port, self.links.of_address(port, destination)),
        };
        let mtu = self.output.ports.get(usize::from(port)).map_or(0, |out| out.mtu);
        if parsed.l3_len > mtu {
            match self.engine.answer_too_big(&mut packet, parsed, mtu, tick) {
                Verdict::Reply => self.answer(packet, from),
                _ => self.books.dropped(weir_l4::DropReason::TooBig, 1),
            }
            return;
        }
        match mac {
            Some(mac) => self.output.forward(port, packet, l3, mac, &self.books),
            None => self.unresolved(packet, l3, Some(hop), destination),
        }
    }

    #[cold]
    fn unresolved(&mut self, packet: Packet, l3: u16, hop: Option<Hop>, destination: u128) {
        let (port, address) = match hop {
            Some(Hop::Gateway(port, _, gateway)) => (port, weir_l4::bits_of(gateway)),
            Some(Hop::OnLink(port)) => (port, destination),
            None => {
                self.books.dropped(WorkerReason::NoRoute, 1);
                return;
            }
        };
        terminate::hold(&mut self.links, &mut self.reports, &self.books, packet, l3, port, address);
    }

    /// Sends an answer that stands in its question's buffer.
    fn answer(&mut self, packet: Packet, port: u16) {
        self.books.add(WorkerColumn::Consumed, 1);
        self.books.add(WorkerColumn::Generated, 1);
        self.output.send(port, packet.0, &self.books);
    }

    #[cold]
    fn neighbour_message(&mut self, mut packet: Packet, parsed: &Parsed, port: u16) {
        let mac = self.output.ports.get(usize::from(port)).map_or(Mac::ZERO, |out| out.mac);
        let reports = &mut self.reports;
        // a full ring loses hearsay, and answers come again
        let learn = |report| drop(reports.push(report));
        let outcome = if parsed.kind == Kind::Arp {
            local::arp(&self.view, port, mac, &mut packet, parsed, learn)
        } else {
            local::ndp(&self.view, port, mac, &mut packet, parsed, learn)
        };
        self.conclude(outcome, packet, parsed, port);
    }

    fn conclude(&mut self, outcome: Outcome, packet: Packet, parsed: &Parsed, port: u16) {
        match outcome {
            Outcome::Answer => self.answer(packet, port),
            Outcome::Consumed => self.books.add(WorkerColumn::Consumed, 1),
            Outcome::Shown => {
                // a copy: what becomes of it is counted with the port's exception path
                let _ = self.punt(&packet, parsed, port);
                self.books.add(WorkerColumn::Consumed, 1);
            }
            Outcome::Kernel => match self.punt_own(&packet, parsed) {
                Ok(()) => self.books.add(WorkerColumn::Consumed, 1),
                Err(reason) => self.books.dropped(reason, 1),
            },
            Outcome::Drop(reason) => self.books.dropped(reason, 1),
        }
    }

    /// Messages of the management thread; `false`: stop.
    #[inline]
    fn take_orders(&mut self) -> bool {
        while let Some(order) = self.orders.pop() {
            match order {
                ToWorker::Adopt(view) => self.adopt(view),
                ToWorker::Neighbour(update) => self.neighbour(&update),
                ToWorker::Send(port, frame) => self.send_frame(port, &frame),
                ToWorker::Terminate(terminator) => self.terminator = Some(terminator),
                ToWorker::Limit(message) => {
                    self.terminated(|terminator, wire| terminator.receive(message, wire));
                }
                ToWorker::Rate { from, message } => {
                    if let Some(terminator) = &mut self.terminator {
                        terminator.receive_rate(from, message);
                    }
                }
                ToWorker::Stop => return false,
            }
        }
        true
    }

    #[cold]
    fn adopt(&mut self, view: Arc<View>) {
        let old = self.engine.adopt(Arc::clone(&view.services), &mut self.books);
        let names: Vec<u128> = self.engine.snat_addresses().to_vec();
        remember_snat(self.engine.storage_v4().header_mut(), &names);
        for (out, port) in self.output.ports.iter_mut().zip(&view.ports) {
            out.vlan = port.vlan;
        }
        if let Some(terminator) = &mut self.terminator {
            terminator.adopt(&view, &self.books);
        }
        self.punts.set_rate(view.exception_rate, lcore::tsc());
        let generation = view.generation;
        let previous = std::mem::replace(&mut self.view, view);
        drop(old);
        if let Err(FromWorker::Retired(view)) = self.reports.push(FromWorker::Retired(previous)) {
            // the ring is full of hearsay: this generation's memory is freed here, once, rather than leaked
            drop(view);
        }
        self.books.set(WorkerColumn::Generation, generation);
        self.ack.ack(generation);
    }

    #[cold]
    fn neighbour(&mut self, update: &crate::neighbour::Update) {
        let (output, books) = (&mut self.output, &self.books);
        self.links.update(update, |packet, l3, port, mac| match mac {
            Some(mac) => output.forward(port, packet, l3, mac, books),
            None => books.dropped(WorkerReason::NeighbourFailed, 1),
        });
        self.output.flush(&self.books);
        self.books.set(WorkerColumn::Held, self.links.held() as u64);
    }

    #[cold]
    fn send_frame(&mut self, port: u16, frame: &[u8]) {
        let Some(mut packet) = self.pools.get(usize::from(port)).and_then(PacketPool::alloc) else { return };
        if packet.fill(frame) {
            self.books.add(WorkerColumn::Generated, 1);
            self.output.send(port, packet, &self.books);
            self.output.flush(&self.books);
        }
    }

    #[inline]
    fn idle(&mut self, empty_rounds: u32) {
        if !self.adaptive || empty_rounds < SPIN_ROUNDS {
            std::hint::spin_loop();
            return;
        }
        if empty_rounds == SPIN_ROUNDS {
            self.output.reclaim();
        }
        let step = ((empty_rounds - SPIN_ROUNDS) / 16).min(8);
        std::thread::sleep((SLEEP_FIRST * (1 << step)).min(SLEEP_MOST));
    }

    fn housekeep(&mut self, clock: &mut Clock, now_tsc: u64) {
        clock.housekeeping_tsc = now_tsc;
        let tick = tick_now();
        let new_tick = tick != clock.tick;
        clock.tick = tick;
        let now_ns = monotonic_ns();
        self.engine.set_clock(now_ns);
        self.ack.beat(now_ns);
        let (v4, v6) = self.engine.capacity();
        self.engine.sweep(v4.max(v6).div_ceil(SWEEP_ROUNDS), clock.tick, &mut self.books);
        for (port, address) in self.links.waiting_for().filter(|_| new_tick) {
            let _ = self.reports.push(FromWorker::Wanted { port, address });
        }
        if self.terminator.is_some() {
            self.terminated(|terminator, wire| {
                terminator.advance(wire);
                terminator.report(wire.reports);
                terminator.publish(wire.books);
            });
            self.output.flush(&self.books);
        }
        let (flows_v4, flows_v6) = self.engine.live();
        self.books.set(WorkerColumn::FlowsIpv4, u64::from(flows_v4));
        self.books.set(WorkerColumn::FlowsIpv6, u64::from(flows_v6));
        self.books.set(WorkerColumn::CapacityIpv4, v4 as u64);
        self.books.set(WorkerColumn::CapacityIpv6, v6 as u64);
        self.books.set(WorkerColumn::TotalCycles, now_tsc - clock.start_tsc);
        self.books.set(WorkerColumn::BuffersOwned, mbuf::ledger() as u64);
        self.books.set(WorkerColumn::Held, self.links.held() as u64);
    }

    /// Lets go of everything, so that the ledger ends at zero.
    fn end(mut self) {
        // packets that wait to be read or acknowledged were consumed when they came
        drop(self.terminator.take());
        let held = self.links.take_held();
        self.books.set(WorkerColumn::Held, 0);
        self.books.dropped(WorkerReason::Shutdown, held.len() as u64);
        drop(held);
        self.output.flush(&self.books);
        self.books.settle();
        self.books.set(WorkerColumn::BuffersOwned, mbuf::ledger() as u64);
    }
}

/// Whether a frame is addressed to the port, or to several stations.
#[inline(always)]
fn is_for_station(mac: Mac, frame: &[u8], filter: bool) -> bool {
    let to_us = |to: &[u8; 6]| *to == mac.0 || Mac(*to).is_multicast();
    !filter || frame.first_chunk().is_some_and(to_us)
}

/// IEEE 802.1Q §6.9: identifier 0 is a priority tag, no VLAN.
#[inline(always)]
fn is_of_vlan(out: &PortOut, parsed: &Parsed) -> bool {
    parsed.vlan.filter(|vlan| *vlan != 0) == out.vlan
}

#[inline]
pub(crate) fn destination_bits(frame: &[u8], parsed: &Parsed) -> u128 {
    match parsed.kind {
        Kind::Ipv4 => 0xffff_0000_0000 | u128::from(parsed.dst_v4(frame)),
        _ => u128::from_be_bytes(parsed.dst_v6(frame)),
    }
}

#[inline]
pub(crate) fn source_bits(frame: &[u8], parsed: &Parsed) -> u128 {
    match parsed.kind {
        Kind::Ipv4 => 0xffff_0000_0000 | u128::from(parsed.src_v4(frame)),
        _ => u128::from_be_bytes(parsed.src_v6(frame)),
    }
}

/// The engine's clock: ticks of CLOCK_MONOTONIC, which goes on across processes.
pub fn tick_now() -> u32 {
    (monotonic_ns() / TICK_NS) as u32
}
