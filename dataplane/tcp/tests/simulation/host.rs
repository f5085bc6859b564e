//! A host with an engine: what a worker and its applications do in a turn.

use std::collections::HashMap;
use std::rc::Rc;

use weir_net::{ParseOptions, parse};
use weir_tcp::buffer::HeapBuffer;
use weir_tcp::header::PayloadSum;
use weir_tcp::icmp::Problem;
use weir_tcp::{Buffer, Endpoint, Engine, Events, Handle, Handled, Header, Instant, Payload, Transmit};

use crate::link::Random;
use crate::plan::Plan;
use crate::stream::Stream;
use crate::world::Peer;

/// Client ports begin there, by conversation.
pub(crate) const FIRST_PORT: u16 = 40_000;
/// The server's.
pub(crate) const SERVER_PORT: u16 = 80;
/// How long a full ring keeps a host waiting.
const RING_US: u64 = 150;

/// What leaves a host.
#[derive(Debug)]
pub(crate) struct Out {
    pub(crate) frames: Vec<Vec<u8>>,
    refusals: u32,
    random: Random,
    was_refused: bool,
}

impl Transmit<HeapBuffer> for Out {
    fn transmit(&mut self, header: &Header, payload: Payload<'_, HeapBuffer>) -> bool {
        if self.random.chance(self.refusals) {
            self.was_refused = true;
            return false;
        }
        self.frames.push(frame(header, payload));
        true
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<HeapBuffer> {
        Some(HeapBuffer::from(bytes))
    }
}

/// An Ethernet frame of a segment.
pub(crate) fn frame(header: &Header, payload: Payload<'_, HeapBuffer>) -> Vec<u8> {
    let mut bytes = vec![0; 14 + header.len()];
    bytes[12..14].copy_from_slice(if header.local.is_v4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
    let mut sum = PayloadSum::new();
    let len = payload.len();
    let mut data = Vec::with_capacity(len);
    for (buffer, offset, len) in payload {
        let piece = &buffer.bytes()[usize::from(offset)..usize::from(offset) + usize::from(len)];
        sum.add(piece);
        data.extend_from_slice(piece);
    }
    assert_eq!(data.len(), len);
    assert_eq!(header.write(len, sum.finish(), &mut bytes[14..]), header.len());
    bytes.extend_from_slice(&data);
    bytes
}

/// Client and server of a conversation.
pub(crate) fn ends(plan: &Plan, number: usize) -> (Endpoint, Endpoint) {
    let is_v4 = plan.conversations[number].is_v4;
    let base = if is_v4 { 0xffff_c612_0000 } else { 0x2001_0db8_u128 << 96 };
    let client = Endpoint { address: base | 1, port: FIRST_PORT + number as u16 };
    (client, Endpoint { address: base | 2, port: SERVER_PORT })
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) engine: Engine<HeapBuffer>,
    out: Out,
    side: usize,
    plan: Rc<Plan>,
    random: Random,
    started_at: u64,
    /// Conversations that the client has begun.
    begun: usize,
    pub(crate) streams: Vec<Stream>,
    by_handle: HashMap<Handle, usize>,
    /// Turns in which nothing came and nothing went.
    pub(crate) idle_turns: u64,
}

impl Host {
    pub(crate) fn new(plan: &Rc<Plan>, side: usize, mut random: Random, now: u64) -> Self {
        let mut secret = [0; 32];
        secret.iter_mut().for_each(|byte| *byte = random.next() as u8);
        let mut engine = Engine::new(plan.engines[side], secret, Instant(now));
        engine.set_listener(0, plan.configs[side]);
        let out = Out {
            frames: Vec::new(),
            refusals: plan.refusals,
            random: Random(random.next()),
            was_refused: false,
        };
        Self {
            engine,
            out,
            side,
            plan: Rc::clone(plan),
            random,
            started_at: now,
            begun: 0,
            streams: Vec::new(),
            by_handle: HashMap::new(),
            idle_turns: 0,
        }
    }

    fn arrived(&mut self, frame: &[u8], now: Instant) {
        let Ok(parsed) = parse(frame, &ParseOptions::default()) else { return };
        if let Ok(inner) = weir_net::icmp::inner(frame, &parsed) {
            let at = usize::from(parsed.l4) + 6;
            let mtu = u16::from_be_bytes([frame[at], frame[at + 1]]);
            self.engine.icmp(frame, &inner, Problem::TooBig { mtu }, now);
            return;
        }
        if !parsed.has_ports || parsed.protocol.0 != 6 {
            return;
        }
        let mut lookup = self.engine.prepare(frame, &parsed);
        self.engine.guess(&mut lookup);
        self.engine.warm(&lookup);
        let buffer = HeapBuffer::from(frame);
        let handled = self.engine.segment(buffer, &parsed, lookup, false, now, &mut self.out);
        if let Handled::Unknown(buffer) = handled {
            let listener = (self.side == 1 && parsed.dst_port == SERVER_PORT).then_some(0);
            self.engine.unknown(buffer, &parsed, listener, now, &mut self.out);
        }
    }

    fn begin(&mut self, now: u64) {
        while self.side == 0
            && let Some(talk) = self.plan.conversations.get(self.begun)
            && now >= self.started_at + talk.starts_us
        {
            let number = self.begun;
            self.begun += 1;
            let (client, server) = ends(&self.plan, number);
            let handle =
                self.engine.connect(client, server, 0, number as u32, Instant(now)).expect("a free slot");
            self.add(number, handle);
        }
    }

    fn add(&mut self, number: usize, handle: Handle) {
        self.by_handle.insert(handle, self.streams.len());
        self.streams.push(Stream::new(&self.plan, number, self.side, handle));
    }

    /// Whether there was any.
    fn events(&mut self) -> bool {
        let mut any = false;
        while let Some((handle, events)) = self.engine.poll_event() {
            any = true;
            if events.has(Events::ACCEPTED) {
                assert!(!self.by_handle.contains_key(&handle), "accepted twice");
                let remote = self.engine.info(handle).expect("a new handle").remote;
                let number = usize::from(remote.port - FIRST_PORT);
                if self.streams.iter().any(|stream| stream.number == number) {
                    // an old cookie came back after all was over
                    self.engine.abort(handle);
                    self.engine.release(handle);
                    continue;
                }
                self.add(number, handle);
            }
            if let Some(&at) = self.by_handle.get(&handle) {
                self.streams[at].hears(events);
            }
        }
        any
    }

    fn check(&mut self, now: Instant) {
        let census = self.engine.census();
        let counted = census.half_open + census.established + census.closing + census.closed;
        assert_eq!(counted as usize, self.engine.live(), "{census:?}");
        // splits may exceed the limit, by one for each of the smallest segments in flight, and each connection by one
        let segments = (self.plan.configs[self.side].send_buffer as usize + 20_000) / 36;
        let most = self.plan.engines[self.side].pieces + self.streams.len() * (segments + 1);
        assert!(self.engine.pieces() <= most, "{} pieces", self.engine.pieces());
        let is_open = census.half_open + census.established + census.closing > 0;
        let is_awake = self.engine.is_ready() || self.engine.next_deadline(now).is_some();
        assert!(!is_open || is_awake, "a connection without a timer");
    }
}

impl Peer for Host {
    fn turn(&mut self, arrived: &[Vec<u8>], now: u64, out: &mut Vec<Vec<u8>>) {
        let at = Instant(now);
        for frame in arrived {
            self.arrived(frame, at);
        }
        if self.engine.next_deadline(at).is_some_and(|deadline| deadline <= at) {
            self.engine.advance(at, &mut self.out);
        }
        self.begin(now);
        self.out.was_refused = false;
        self.events();
        loop {
            for stream in &mut self.streams {
                stream.work(&mut self.engine, &self.plan, &mut self.random, now);
            }
            self.engine.transmit(at, &mut self.out);
            if !self.events() {
                break;
            }
        }
        if arrived.is_empty() && self.out.frames.is_empty() && !self.out.was_refused {
            self.idle_turns += 1;
        }
        out.append(&mut self.out.frames);
        self.check(at);
    }

    fn next(&mut self, now: u64) -> Option<u64> {
        let deadline = self.engine.next_deadline(Instant(now)).map(|at| at.0);
        let refused = self.engine.is_ready().then_some(now + RING_US);
        let starts = (self.side == 0).then(|| self.plan.conversations.get(self.begun)).flatten();
        let starts = starts.map(|talk| self.started_at + talk.starts_us);
        let streams = self.streams.iter().filter_map(|stream| stream.next(now)).min();
        [deadline, refused, starts, streams].into_iter().flatten().min()
    }

    fn is_over(&self) -> bool {
        let all = self.side == 1 || self.begun == self.plan.conversations.len();
        all && self.streams.iter().all(|stream| stream.handle.is_none())
    }

    /// What must hold once all is over and TIME_WAIT has passed.
    fn assert_nothing_left(&mut self, mut now: u64) {
        for round in 0..4_000 {
            let at = Instant(now);
            self.engine.advance(at, &mut self.out);
            self.engine.transmit(at, &mut self.out);
            self.out.frames.clear();
            let Some(next) = self.engine.next_deadline(at) else { break };
            now = next.0.max(now + 1_000);
            assert!(round < 3_999, "timers never end: {:?}", self.engine.census());
        }
        while self.engine.is_ready() {
            self.engine.transmit(Instant(now), &mut self.out);
        }
        assert_eq!(self.engine.live(), 0, "connections: {:?}", self.engine.census());
        assert_eq!(self.engine.pieces(), 0);
        assert_eq!(self.engine.pinned(), 0);
    }

    fn describe(&self) -> String {
        let streams: Vec<String> = self
            .streams
            .iter()
            .map(|stream| {
                let info = stream.handle.and_then(|handle| self.engine.info(handle));
                format!("{stream:?}\n    {info:?}")
            })
            .collect();
        format!(
            "pieces {}, pinned {}, {:?}\n  {}\n  {:?}",
            self.engine.pieces(),
            self.engine.pinned(),
            self.engine.census(),
            streams.join("\n  "),
            self.engine.counters()
        )
    }
}
