//! Two hosts with an engine each and an application that sends what its seed says.

use weir_net::{ParseOptions, parse, tcp};
use weir_tcp::buffer::HeapBuffer;
use weir_tcp::header::PayloadSum;
use weir_tcp::{
    Buffer, Chunk, ConnectionConfig, Ended, Endpoint, Engine, EngineConfig, Events, Handle, Handled, Header, Instant,
    Payload, State, Transmit,
};

use crate::link::{Link, Quality, Random};

/// What leaves a host.
#[derive(Debug, Default)]
pub(crate) struct Out(pub(crate) Vec<Vec<u8>>);

impl Transmit<HeapBuffer> for Out {
    fn transmit(&mut self, header: &Header, payload: Payload<'_, HeapBuffer>) -> bool {
        self.0.push(frame(header, payload));
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

/// The bytes of a stream: a function of its seed and the place.
fn byte(seed: u64, at: u64) -> u8 {
    (Random(seed ^ (at / 8)).next() >> (8 * (at % 8))) as u8
}

/// What each side does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) quality: Quality,
    pub(crate) config: ConnectionConfig,
    /// Bytes that the client and the server send.
    pub(crate) bytes: [u64; 2],
    pub(crate) is_v4: bool,
    /// Longest write.
    pub(crate) write: u64,
    /// How long after what the reader waits between reads, µs.
    pub(crate) reads_every_us: u64,
    pub(crate) deadline_s: u64,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) engine: Engine<HeapBuffer>,
    pub(crate) out: Out,
    pub(crate) handle: Option<Handle>,
    to_send: u64,
    sent: u64,
    received: u64,
    stream_out: u64,
    stream_in: u64,
    is_shut: bool,
    pub(crate) is_finished: bool,
    pub(crate) ended: Option<Ended>,
    next_read: u64,
}

/// Both, and the links between them.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) hosts: [Host; 2],
    pub(crate) links: [Link; 2],
    pub(crate) now: u64,
    plan: Plan,
    random: Random,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) took_us: u64,
    pub(crate) received: [u64; 2],
    pub(crate) ended: [Option<Ended>; 2],
}

impl Pair {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut random = Random(plan.seed);
        let start = random.below(1 << 40);
        let mut host = |number: u64| {
            let mut secret = [0; 32];
            secret.iter_mut().for_each(|byte| *byte = random.next() as u8);
            let config = EngineConfig { connections: 16, time_waits: 16, ..EngineConfig::default() };
            let mut engine = Engine::new(config, secret, Instant(start));
            engine.set_listener(0, plan.config);
            Host {
                engine,
                out: Out::default(),
                handle: None,
                to_send: plan.bytes[number as usize],
                sent: 0,
                received: 0,
                stream_out: plan.seed.wrapping_mul(3) + number,
                stream_in: plan.seed.wrapping_mul(3) + 1 - number,
                is_shut: false,
                is_finished: false,
                ended: None,
                next_read: 0,
            }
        };
        let hosts = [host(0), host(1)];
        let links = [Link::new(plan.quality, random.next()), Link::new(plan.quality, random.next())];
        Self { hosts, links, now: start, plan, random }
    }

    pub(crate) fn ends(&self) -> (Endpoint, Endpoint) {
        let base = if self.plan.is_v4 { 0xffff_c612_0000 } else { 0x2001_0db8_u128 << 96 };
        (Endpoint { address: base | 1, port: 40_000 }, Endpoint { address: base | 2, port: 80 })
    }

    /// Runs until both sides are done or the time is over.
    pub(crate) fn run(&mut self) -> Report {
        let (client, server) = self.ends();
        let start = self.now;
        let handle = self.hosts[0].engine.connect(client, server, 0, 7, Instant(self.now));
        self.hosts[0].handle = Some(handle.expect("a free slot"));
        let deadline = start + self.plan.deadline_s * 1_000_000;
        loop {
            for number in 0..2 {
                self.turn(number);
            }
            if self.is_over() || self.now >= deadline {
                break;
            }
            self.now = self.next().unwrap_or(deadline).max(self.now + 1).min(deadline);
        }
        Report {
            took_us: self.now - start,
            received: [self.hosts[0].received, self.hosts[1].received],
            ended: [self.hosts[0].ended, self.hosts[1].ended],
        }
    }

    fn is_over(&self) -> bool {
        self.hosts.iter().all(|host| host.ended.is_some() || (host.handle.is_none() && host.is_finished))
    }

    fn next(&mut self) -> Option<u64> {
        let now = Instant(self.now);
        let mut next: Option<u64> = None;
        for host in &mut self.hosts {
            let deadline = host.engine.next_deadline(now).map(|at| at.0);
            let read = (host.next_read > self.now).then_some(host.next_read);
            next = [next, deadline, read].into_iter().flatten().min();
        }
        [next, self.links[0].next(), self.links[1].next()].into_iter().flatten().min()
    }

    /// One side takes in what has arrived, lets its application work, and sends.
    fn turn(&mut self, number: usize) {
        let now = Instant(self.now);
        let host = &mut self.hosts[number];
        while let Some(frame) = self.links[1 - number].arrived(self.now) {
            let Ok(parsed) = parse(&frame, &ParseOptions::default()) else { continue };
            if !parsed.has_ports || parsed.protocol.0 != 6 {
                continue;
            }
            let mut lookup = host.engine.prepare(&frame, &parsed);
            host.engine.guess(&mut lookup);
            let buffer = HeapBuffer::from(&frame[..]);
            let handled = host.engine.segment(buffer, &parsed, lookup, false, now, &mut host.out);
            if let Handled::Unknown(buffer) = handled {
                let listener = (number == 1 && parsed.dst_port == 80).then_some(0);
                host.engine.unknown(buffer, &parsed, listener, false, now, &mut host.out);
            }
        }
        if host.engine.next_deadline(now).is_some_and(|at| at <= now) {
            host.engine.advance(now, &mut host.out);
        }
        Self::application(host, &self.plan, &mut self.random, self.now);
        host.engine.transmit(now, &mut host.out);
        for frame in host.out.0.drain(..) {
            self.links[number].send(frame, self.now);
        }
    }

    fn application(host: &mut Host, plan: &Plan, random: &mut Random, now: u64) {
        while let Some((handle, events)) = host.engine.poll_event() {
            if events.has(Events::ACCEPTED) {
                host.handle = Some(handle);
            }
        }
        let Some(handle) = host.handle else { return };
        if now >= host.next_read {
            while let Some(chunk) = host.engine.receive(handle) {
                for &got in chunk.bytes() {
                    assert_eq!(got, byte(host.stream_in, host.received), "byte {}", host.received);
                    host.received += 1;
                }
                if plan.reads_every_us > 0 {
                    host.next_read = now + 1 + random.below(plan.reads_every_us);
                    break;
                }
            }
        }
        while host.sent < host.to_send {
            let len = (1 + random.below(plan.write)).min(host.to_send - host.sent);
            let bytes: Vec<u8> = (0..len).map(|at| byte(host.stream_out, host.sent + at)).collect();
            match host.engine.send(handle, Chunk::whole(HeapBuffer::from(&bytes[..]))) {
                Ok(()) => host.sent += len,
                Err(_) => break,
            }
        }
        if host.sent == host.to_send && !host.is_shut {
            host.is_shut = true;
            host.engine.shutdown(handle);
        }
        let Some(info) = host.engine.info(handle) else { return };
        let is_read = info.is_finished && host.engine.receivable(handle) == 0;
        if is_read {
            host.is_finished = true;
        }
        if info.state == State::Closed && (is_read || info.ended != Ended::Finished) {
            host.ended = Some(info.ended);
            host.engine.release(handle);
            host.handle = None;
        }
    }

    /// How both stand, for a failure's report.
    pub(crate) fn describe(&self) -> String {
        let one = |host: &Host| {
            let info = host.handle.and_then(|handle| host.engine.info(handle));
            format!("{info:#?}\nsent {} of {}\n{:?}", host.sent, host.to_send, host.engine.counters())
        };
        format!("client: {}\nserver: {}", one(&self.hosts[0]), one(&self.hosts[1]))
    }

    /// What must hold once all is over and TIME_WAIT has passed.
    pub(crate) fn assert_nothing_left(&mut self) {
        for round in 0..2_000 {
            let now = Instant(self.now);
            for host in &mut self.hosts {
                host.engine.advance(now, &mut host.out);
                host.out.0.clear();
            }
            let next = self.hosts.iter_mut().filter_map(|host| host.engine.next_deadline(now)).min();
            let Some(next) = next else { break };
            self.now = next.0.max(self.now + 1_000);
            assert!(round < 1_999, "timers never end");
        }
        for host in &self.hosts {
            assert_eq!(host.engine.live(), 0, "connections: {:?}", host.engine.census());
            assert_eq!(host.engine.pieces(), 0);
            assert_eq!(host.engine.pinned(), 0);
        }
    }
}

/// The flags of a frame, for looks at what leaves.
#[allow(dead_code)]
pub(crate) fn flags_of(frame: &[u8]) -> u8 {
    let parsed = parse(frame, &ParseOptions::default()).expect("our own frame");
    parsed.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST | tcp::ACK)
}
