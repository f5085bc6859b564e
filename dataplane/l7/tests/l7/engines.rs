//! The proxy between two other engines, over a network that loses, in virtual time: clients, proxy and servers in one process.

use std::collections::{BTreeMap, HashMap};

use weir_l4::snat::ReplyOwner;
use weir_l7::proxy_protocol::{Expects, Progress, Version, parse as parse_header};
use weir_l7::{BackendCount, ListenerCount, ListenerRules, Proxy, ProxyConfig};
use weir_net::{ParseOptions, parse};
use weir_tcp::buffer::HeapBuffer;
use weir_tcp::header::PayloadSum;
use weir_tcp::{
    Buffer, Chunk, ConnectionConfig, Ended, Endpoint, Engine, EngineConfig, Events, Handle, Handled, Header,
    Instant, Payload, Transmit,
};

use crate::fake::{Around, Books};
use crate::world::{LISTENER, Plan, VIP, end};

const DELAY_US: u64 = 1_000;

/// Frames that leave an engine.
#[derive(Default)]
struct Wire(Vec<Vec<u8>>);

impl Transmit<HeapBuffer> for Wire {
    fn transmit(&mut self, header: &Header, payload: Payload<'_, HeapBuffer>) -> bool {
        let mut frame = vec![0; 14 + header.len()];
        frame[12..14].copy_from_slice(if header.local.is_v4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        let mut sum = PayloadSum::new();
        let mut data = Vec::new();
        for (buffer, offset, len) in payload {
            let piece = &buffer.bytes()[usize::from(offset)..][..usize::from(len)];
            sum.add(piece);
            data.extend_from_slice(piece);
        }
        header.write(data.len(), sum.finish(), &mut frame[14..]);
        frame.extend(data);
        self.0.push(frame);
        true
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<HeapBuffer> {
        Some(HeapBuffer::from(bytes))
    }
}

fn engine(secret: u8, now: Instant) -> Engine<HeapBuffer> {
    let mut engine = Engine::new(EngineConfig::default(), [secret; 32], now);
    let config =
        ConnectionConfig { receive_buffer: 256 << 10, time_wait_s: 1, ..ConnectionConfig::default() };
    [0, LISTENER, 7].iter().for_each(|index| engine.set_listener(*index, config));
    engine
}

/// What an end of a connection has done.
#[derive(Default)]
struct Talk {
    received: Vec<u8>,
    to_send: Vec<u8>,
    sent: usize,
    is_finished: bool,
    is_shut: bool,
    ended: Option<Ended>,
}

impl Talk {
    /// Sends what there is room for, and the FIN behind it where all is sent.
    fn write(&mut self, engine: &mut Engine<HeapBuffer>, handle: Handle, is_all: bool) {
        while self.sent < self.to_send.len() {
            let piece = &self.to_send[self.sent..(self.sent + 1_400).min(self.to_send.len())];
            if engine.send(handle, Chunk::whole(HeapBuffer::from(piece))).is_err() {
                return;
            }
            self.sent += piece.len();
        }
        if is_all && !self.is_shut {
            self.is_shut = true;
            engine.shutdown(handle);
        }
    }
}

/// What a server's address does.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// Sends everything back.
    Echo,
    /// Answers a SYN with a RST.
    Refuse,
    /// Nothing comes back from it.
    Silent,
    /// Resets once it has received so much.
    Reset(usize),
}

struct Lab {
    now: Instant,
    clients: Engine<HeapBuffer>,
    servers: Engine<HeapBuffer>,
    middle: Engine<HeapBuffer>,
    proxy: Proxy<Handle>,
    around: Around,
    books: Books,
    in_flight: BTreeMap<(u64, u64), Vec<u8>>,
    frames: u64,
    loss_per_mille: u64,
    random: u64,
    talks: HashMap<Handle, Talk>,
    server_talks: HashMap<Handle, Talk>,
    manners: Vec<Manner>,
    sends_proxy: bool,
    clients_read: bool,
    /// Most that the proxy's engine ever held.
    most_pinned: u64,
}

impl Lab {
    fn new(plan: Plan, manners: Vec<Manner>, loss_per_mille: u64, seed: u64) -> Self {
        let now = Instant(1_000_000);
        let sends_proxy = plan.send_proxy.is_some();
        let plan = Plan { backends: manners.len() as u32, sessions: 1_000, ..plan };
        let (services, rules) = plan.build();
        let config = ProxyConfig { sessions: plan.sessions, owner: ReplyOwner::Alone, seed };
        Self {
            now,
            clients: engine(1, now),
            servers: engine(2, now),
            middle: engine(3, now),
            proxy: Proxy::new(config, services, rules, now),
            around: Around::default(),
            books: Books::default(),
            in_flight: BTreeMap::new(),
            frames: 0,
            loss_per_mille,
            random: seed | 1,
            talks: HashMap::new(),
            server_talks: HashMap::new(),
            manners,
            sends_proxy,
            clients_read: true,
            most_pinned: 0,
        }
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn connect(&mut self, port: u16, to_send: Vec<u8>) -> Handle {
        let handle = self.clients.connect(end("198.18.9.9", port), end(VIP, 80), 0, 0, self.now).unwrap();
        self.talks.insert(handle, Talk { to_send, ..Talk::default() });
        handle
    }

    fn post(&mut self, wire: Wire) {
        for frame in wire.0 {
            self.frames += 1;
            if self.random() % 1_000 < self.loss_per_mille {
                continue;
            }
            // now and then one overtakes the next
            let jitter = if self.loss_per_mille > 0 { self.random() % 300 } else { 0 };
            self.in_flight.insert((self.now.0 + DELAY_US + jitter, self.frames), frame);
        }
    }

    /// Gives a frame to the engine that its destination belongs to.
    fn deliver(&mut self, frame: Vec<u8>) {
        let parsed = parse(&frame, &ParseOptions::default()).unwrap();
        let (_, dst) = parsed.addresses_v4(&frame);
        let destination = Endpoint { address: 0xffff << 32 | u128::from(dst), port: parsed.dst_port };
        let manner = |at: u32| self.manners.get(at as usize).copied();
        let (engine, listener) = match dst.to_be_bytes() {
            [198, 18, 1, host] => match manner(u32::from(host) - 1) {
                Some(Manner::Silent) | None => return,
                Some(Manner::Refuse) => (&mut self.servers, None),
                Some(_) => (&mut self.servers, Some(0)),
            },
            [198, 18, 9, _] => (&mut self.clients, None),
            _ => (&mut self.middle, (destination == end(VIP, 80)).then_some(LISTENER)),
        };
        let mut wire = Wire::default();
        let mut lookup = engine.prepare(&frame, &parsed);
        engine.guess(&mut lookup);
        let buffer = HeapBuffer::from(frame.as_slice());
        if let Handled::Unknown(buffer) = engine.segment(buffer, &parsed, lookup, false, self.now, &mut wire)
        {
            engine.unknown(buffer, &parsed, listener, self.now, &mut wire);
        }
        self.post(wire);
    }

    fn client_apps(&mut self) -> bool {
        let mut any = false;
        while let Some((handle, events)) = self.clients.poll_event() {
            any = true;
            let talk = self.talks.get_mut(&handle).unwrap();
            talk.is_finished |= events.has(Events::FINISHED);
            if events.has(Events::CLOSED) {
                talk.ended = self.clients.info(handle).map(|info| info.ended);
            }
            if events.has(Events::CONNECTED | Events::WRITABLE) {
                talk.write(&mut self.clients, handle, true);
            }
        }
        if self.clients_read {
            for (handle, talk) in &mut self.talks {
                while let Some(chunk) = self.clients.receive(*handle) {
                    talk.received.extend(chunk.bytes());
                    any = true;
                }
            }
        }
        any
    }

    fn server_apps(&mut self) -> bool {
        let mut any = false;
        while let Some((handle, events)) = self.servers.poll_event() {
            any = true;
            if events.has(Events::ACCEPTED) {
                self.server_talks.insert(handle, Talk::default());
            }
            let local = self.servers.info(handle).unwrap().local;
            let manner = self.manners[(local.address & 0xff) as usize - 1];
            let talk = self.server_talks.get_mut(&handle).unwrap();
            while let Some(chunk) = self.servers.receive(handle) {
                talk.received.extend(chunk.bytes());
            }
            if let Manner::Reset(after) = manner
                && talk.received.len() >= after
            {
                self.servers.abort(handle);
            }
            let header = if self.sends_proxy { header_len(&talk.received) } else { Some(0) };
            if let Some(data) = header.and_then(|len| talk.received.get(len..)) {
                talk.to_send = data.to_vec();
            }
            talk.is_finished |= events.has(Events::FINISHED);
            if events.has(Events::CLOSED) {
                talk.ended = self.servers.info(handle).map(|info| info.ended);
            } else {
                let is_all = talk.is_finished;
                talk.write(&mut self.servers, handle, is_all);
            }
        }
        any
    }

    /// One instant: timers, then events and segments until nothing happens.
    fn turn(&mut self) {
        let now = self.now;
        let mut wire = Wire::default();
        for engine in [&mut self.clients, &mut self.servers, &mut self.middle] {
            engine.advance(now, &mut wire);
        }
        self.proxy.advance(&mut self.middle, &mut self.around, &mut self.books, now);
        loop {
            let any = self.client_apps() | self.server_apps();
            self.proxy.run(&mut self.middle, &mut self.around, &mut self.books, now);
            let before = wire.0.len();
            for engine in [&mut self.clients, &mut self.servers, &mut self.middle] {
                engine.transmit(now, &mut wire);
            }
            if !any && wire.0.len() == before {
                break;
            }
        }
        self.most_pinned = self.most_pinned.max(self.middle.pinned());
        self.post(wire);
    }

    /// Until nothing is due before a time.
    fn run_for(&mut self, milliseconds: u64) {
        let end = self.now.after(milliseconds * 1_000);
        let mut turns = 0;
        loop {
            while let Some(entry) = self.in_flight.first_entry()
                && entry.key().0 <= self.now.0
            {
                let frame = entry.remove();
                self.deliver(frame);
            }
            self.turn();
            let next = [&mut self.clients, &mut self.servers, &mut self.middle]
                .into_iter()
                .filter_map(|engine| engine.next_deadline(self.now))
                .chain(self.proxy.next_deadline(self.now))
                .chain(self.in_flight.first_key_value().map(|(key, _)| Instant(key.0)))
                .min();
            match next {
                Some(next) if next <= end => self.now = next.max(self.now.after(1)),
                _ => break,
            }
            turns += 1;
            assert!(turns < 2_000_000, "time stands still");
        }
        self.now = end;
    }

    fn finish_clients(&mut self) {
        let handles: Vec<Handle> = self.talks.keys().copied().collect();
        handles.into_iter().for_each(|handle| self.clients.release(handle));
        let handles: Vec<Handle> = self.server_talks.keys().copied().collect();
        handles.into_iter().for_each(|handle| self.servers.release(handle));
    }

    /// Nothing is left in the middle.
    fn is_clean(&mut self) {
        self.finish_clients();
        self.run_for(400_000);
        assert_eq!((self.proxy.live(), self.middle.live()), (0, 0), "{:?}", self.middle.census());
        assert_eq!((self.middle.pieces(), self.middle.pinned()), (0, 0));
        assert_eq!((self.books.active(), self.books.queued(), self.books.all_backends_active()), (0, 0, 0));
    }
}

fn header_len(bytes: &[u8]) -> Option<usize> {
    match parse_header(bytes, Expects::V2) {
        Ok(Progress::Done(header)) => Some(usize::from(header.len)),
        Ok(Progress::Incomplete) => None,
        Err(refused) => panic!("{refused}"),
    }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(seed * 2 + 1) >> 3) as u8).collect()
}

fn echo_through(seed: u64, loss_per_mille: u64, clients: u16) {
    let rules = ListenerRules { connect_ms: 60_000, ..ListenerRules::default() };
    let plan = Plan { send_proxy: Some(Version::V2), rules, ..Plan::default() };
    let mut lab = Lab::new(plan, vec![Manner::Echo; 3], loss_per_mille, seed);
    let mut handles = Vec::new();
    for client in 0..clients {
        let len = (lab.random() % 200_000) as usize;
        handles.push((lab.connect(10_000 + client, pattern(len, u64::from(client))), client));
    }
    lab.run_for(300_000);
    for (handle, client) in handles {
        let talk = &lab.talks[&handle];
        assert!(
            talk.received == talk.to_send,
            "seed {seed}: client {client}: {} of {} bytes, {:?}",
            talk.received.len(),
            talk.to_send.len(),
            talk.ended
        );
        assert_eq!((talk.is_finished, talk.ended), (true, Some(Ended::Finished)), "seed {seed}");
    }
    // each server learnt who its client is, once
    let mut ports: Vec<u16> = lab
        .server_talks
        .values()
        .map(|talk| match parse_header(&talk.received, Expects::V2) {
            Ok(Progress::Done(header)) => header.ends.unwrap().source.port,
            other => panic!("{other:?}"),
        })
        .collect();
    ports.sort_unstable();
    assert_eq!(ports, (10_000..10_000 + clients).collect::<Vec<u16>>());
    assert_eq!(lab.books.of(ListenerCount::BytesIn), lab.books.of(ListenerCount::BytesOut));
    lab.is_clean();
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    echo_through(1, 0, 100);
}

#[test]
fn every_byte_arrives_over_links_that_lose_and_reorder() {
    for seed in 1..=15 {
        echo_through(seed, 20, 12);
    }
}

#[test]
fn a_backend_that_resets_in_mid_transfer_resets_the_client() {
    let mut lab = Lab::new(Plan::default(), vec![Manner::Reset(100_000)], 0, 1);
    let client = lab.connect(1_000, pattern(1_000_000, 3));
    lab.run_for(10_000);
    assert_eq!(lab.talks[&client].ended, Some(Ended::Reset));
    assert_eq!(lab.books.backend(10, BackendCount::ServerResets), 1);
    lab.is_clean();
}

#[test]
fn a_client_that_resets_resets_the_backend() {
    let mut lab = Lab::new(Plan::default(), vec![Manner::Echo], 0, 1);
    let client = lab.connect(1_000, pattern(1_000_000, 3));
    lab.run_for(8);
    lab.clients.abort(client);
    lab.run_for(1_000);
    assert_eq!(lab.server_talks.values().next().unwrap().ended, Some(Ended::Reset));
    assert_eq!(lab.books.of(ListenerCount::ClientResets), 1);
    lab.is_clean();
}

#[test]
fn refused_and_silent_backends_are_passed_over() {
    let rules = ListenerRules { retries: 2, ..ListenerRules::default() };
    let plan = Plan { rules, ..Plan::default() };
    let mut lab = Lab::new(plan, vec![Manner::Refuse, Manner::Silent, Manner::Echo], 0, 1);
    let client = lab.connect(1_000, pattern(5_000, 3));
    lab.run_for(4_000);
    assert!(lab.talks[&client].received.is_empty());
    lab.run_for(2_000);
    assert_eq!(lab.talks[&client].received, pattern(5_000, 3));
    assert_eq!(lab.books.backend(10, BackendCount::ConnectFailures), 1);
    assert_eq!(lab.books.backend(11, BackendCount::ConnectTimeouts), 1);
    assert_eq!(lab.books.backend(12, BackendCount::Retries), 1);
    lab.is_clean();
}

#[test]
fn no_backend_at_all_resets_the_client() {
    let mut lab = Lab::new(Plan::default(), vec![Manner::Refuse; 2], 0, 1);
    let client = lab.connect(1_000, pattern(10, 3));
    lab.run_for(1_000);
    assert_eq!(lab.talks[&client].ended, Some(Ended::Reset));
    assert_eq!(lab.books.of(ListenerCount::NoBackend), 1);
    lab.is_clean();
}

/// The proxy holds what its windows and send buffers allow, and all arrives once the client reads.
#[test]
fn a_client_that_does_not_read_costs_bounded_memory() {
    let mut lab = Lab::new(Plan::default(), vec![Manner::Echo], 0, 1);
    lab.clients_read = false;
    let bytes = pattern(4_000_000, 5);
    let client = lab.connect(1_000, bytes.clone());
    lab.run_for(20_000);
    let echoed = lab.server_talks.values().next().unwrap().sent;
    assert!(echoed < 2_000_000, "backpressure reaches the server: {echoed} bytes");
    // a receive window and a send buffer each way, in frames that are a little larger than their data
    let bound = 2 * (256 << 10) + 2 * (256 << 10);
    assert!(lab.most_pinned < bound * 12 / 10, "{} bytes held", lab.most_pinned);
    lab.clients_read = true;
    lab.run_for(120_000);
    assert!(lab.talks[&client].received == bytes);
    lab.is_clean();
}

#[test]
fn idle_connections_end_when_their_time_is_over() {
    let rules = ListenerRules { idle_ms: 10_000, ..ListenerRules::default() };
    let mut lab = Lab::new(Plan { rules, ..Plan::default() }, vec![Manner::Echo], 0, 1);
    let client = lab.clients.connect(end("198.18.9.9", 1), end(VIP, 80), 0, 0, lab.now).unwrap();
    // connects, and says nothing
    lab.talks.insert(client, Talk { is_shut: true, ..Talk::default() });
    lab.run_for(9_900);
    assert_eq!((lab.talks[&client].ended, lab.proxy.live()), (None, 1));
    lab.run_for(200);
    assert_eq!(lab.talks[&client].ended, Some(Ended::Reset));
    assert_eq!(lab.server_talks.values().next().unwrap().ended, Some(Ended::Reset));
    lab.is_clean();
}
