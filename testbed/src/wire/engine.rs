//! The engine's side: a worker in miniature, with an application that talks on every connection.

use std::collections::HashMap;

use weir_net::{ParseOptions, parse};
use weir_tcp::buffer::HeapBuffer;
use weir_tcp::header::PayloadSum;
use weir_tcp::{
    Buffer as _, Chunk, ConnectionConfig, Counters, Ended, Endpoint, Engine, EngineConfig, Events, Handle,
    Handled, Header, Instant, Payload, State, Transmit,
};

use super::{Talk, address, mac};
use crate::topology::lab::Family;

/// Bytes that the application gives at once.
const WRITE: u64 = 30_000;

/// What the application does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    /// Takes connections to that port.
    Server(u16),
    /// Opens so many connections to that port of the kernel's, some at once.
    Client { family: Family, port: u16, connections: usize, at_once: usize },
}

/// How a connection went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) ended: Ended,
    /// Whether what arrived was what the peer said.
    pub(crate) is_right: bool,
}

#[derive(Debug)]
struct Side {
    sent: u64,
    received: u64,
    is_right: bool,
    is_finished: bool,
    is_shut: bool,
}

/// Frames that leave.
#[derive(Debug, Default)]
struct Out(Vec<Vec<u8>>);

impl Transmit<HeapBuffer> for Out {
    fn transmit(&mut self, header: &Header, payload: Payload<'_, HeapBuffer>) -> bool {
        let mut frame = vec![0; 14 + header.len()];
        frame[..6].copy_from_slice(&mac(1));
        frame[6..12].copy_from_slice(&mac(2));
        frame[12..14].copy_from_slice(if header.local.is_v4() { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        let (mut sum, len) = (PayloadSum::new(), payload.len());
        for (buffer, offset, len) in payload {
            let piece = &buffer.bytes()[usize::from(offset)..usize::from(offset) + usize::from(len)];
            sum.add(piece);
            frame.extend_from_slice(piece);
        }
        header.write(len, sum.finish(), &mut frame[14..]);
        self.0.push(frame);
        true
    }

    fn copy(&mut self, bytes: &[u8]) -> Option<HeapBuffer> {
        Some(HeapBuffer::from(bytes))
    }
}

/// The engine and its application. Made on the thread that runs it.
#[derive(Debug)]
pub(crate) struct EngineHost {
    engine: Engine<HeapBuffer>,
    out: Out,
    role: Role,
    talk: Talk,
    aborts_after: Option<u64>,
    begun: usize,
    open: HashMap<Handle, Side>,
    outcomes: Vec<Outcome>,
    /// Without a check: the same bytes again and again.
    filler: Option<HeapBuffer>,
}

impl EngineHost {
    /// A host that plays `role`.
    pub(crate) fn new(role: Role, talk: Talk, config: ConnectionConfig, now: u64) -> Self {
        let mut secret = [7; 32];
        secret[..8].copy_from_slice(&talk.seed.to_le_bytes());
        let limits = EngineConfig { connections: 4_096, time_waits: 16_384, ..EngineConfig::default() };
        let mut engine = Engine::new(limits, secret, Instant(now));
        engine.set_listener(0, config);
        Self {
            engine,
            out: Out::default(),
            role,
            talk,
            aborts_after: None,
            begun: 0,
            open: HashMap::new(),
            outcomes: Vec::new(),
            filler: None,
        }
    }

    /// Aborts each connection after so many bytes sent or received.
    pub(crate) fn aborting(mut self, after: u64) -> Self {
        self.aborts_after = Some(after);
        self
    }

    /// Sends bytes that nobody checks, for figures.
    pub(crate) fn careless(mut self) -> Self {
        self.filler = Some(HeapBuffer::from(&vec![0x5a; 60_000][..]));
        self
    }

    fn side(&self) -> usize {
        usize::from(matches!(self.role, Role::Server(_)))
    }

    pub(super) fn take(&mut self, frame: &[u8], now: u64) {
        let Ok(parsed) = parse(frame, &ParseOptions::default()) else { return };
        if !parsed.has_ports || parsed.protocol.0 != 6 {
            return;
        }
        let mut lookup = self.engine.prepare(frame, &parsed);
        self.engine.guess(&mut lookup);
        let buffer = HeapBuffer::from(frame);
        let handled = self.engine.segment(buffer, &parsed, lookup, false, Instant(now), &mut self.out);
        if let Handled::Unknown(buffer) = handled {
            let listener = matches!(self.role, Role::Server(port) if port == parsed.dst_port).then_some(0);
            self.engine.unknown(buffer, &parsed, listener, Instant(now), &mut self.out);
        }
    }

    /// Timers and application; the frames that leave.
    pub(super) fn turn(&mut self, now: u64) -> Vec<Vec<u8>> {
        let at = Instant(now);
        if self.engine.next_deadline(at).is_some_and(|deadline| deadline <= at) {
            self.engine.advance(at, &mut self.out);
        }
        self.begin(at);
        let mut has_news = true;
        while has_news {
            has_news = false;
            while let Some((handle, events)) = self.engine.poll_event() {
                has_news = true;
                if events.has(Events::ACCEPTED) {
                    self.open.insert(handle, Side::new());
                }
                self.work(handle);
            }
            self.engine.transmit(at, &mut self.out);
        }
        std::mem::take(&mut self.out.0)
    }

    pub(super) fn next(&mut self, now: u64) -> Option<u64> {
        self.engine.next_deadline(Instant(now)).map(|at| at.0)
    }

    fn begin(&mut self, now: Instant) {
        let Role::Client { family, port, connections, at_once } = self.role else { return };
        while self.begun < connections && self.open.len() < at_once {
            let local = endpoint(family, 2, 20_000 + self.begun as u16);
            self.begun += 1;
            if let Ok(handle) = self.engine.connect(local, endpoint(family, 1, port), 0, 0, now) {
                self.open.insert(handle, Side::new());
                self.work(handle);
            }
        }
    }

    fn work(&mut self, handle: Handle) {
        let me = self.side();
        let Some(side) = self.open.get_mut(&handle) else { return };
        while let Some(chunk) = self.engine.receive(handle) {
            side.is_right &= self.talk.is_said(1 - me, side.received, chunk.bytes());
            side.received += u64::from(chunk.len);
        }
        let Some(info) = self.engine.info(handle) else { return };
        side.is_finished |= info.is_finished;
        let total = self.talk.bytes[me];
        if !side.is_shut && (!self.talk.waits(me) || side.is_finished) {
            while side.sent < total {
                let len = (total - side.sent).min(WRITE) as usize;
                let chunk = match &self.filler {
                    Some(filler) => Chunk { buffer: filler.share(), offset: 0, len: len as u16 },
                    None => Chunk::whole(HeapBuffer::from(&self.talk.say(me, side.sent, len)[..])),
                };
                if self.engine.send(handle, chunk).is_err() {
                    break;
                }
                side.sent += len as u64;
            }
            if side.sent == total {
                side.is_shut = true;
                self.engine.shutdown(handle);
            }
        }
        let aborts = self.aborts_after.is_some_and(|after| side.sent.max(side.received) >= after);
        if aborts {
            self.engine.abort(handle);
        }
        let is_over = info.state == State::Closed || aborts;
        if is_over {
            let ended = self.engine.info(handle).map_or(Ended::No, |info| info.ended);
            let (sent, received, is_right) = (side.sent, side.received, side.is_right);
            self.outcomes.push(Outcome { sent, received, ended, is_right });
            self.open.remove(&handle);
            self.engine.release(handle);
        }
    }

    /// How all connections went that are over, and what the engine counted.
    pub(super) fn report(&mut self) -> (Vec<Outcome>, Counters, usize) {
        (std::mem::take(&mut self.outcomes), *self.engine.counters(), self.engine.live())
    }

    pub(super) fn is_over(&self, connections: usize) -> bool {
        self.outcomes.len() >= connections && self.engine.live() == 0
    }
}

impl Side {
    fn new() -> Self {
        Self { sent: 0, received: 0, is_right: true, is_finished: false, is_shut: false }
    }
}

fn endpoint(family: Family, side: u8, port: u16) -> Endpoint {
    let address = match address(family, side) {
        std::net::IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        std::net::IpAddr::V6(address) => u128::from(address),
    };
    Endpoint { address, port }
}
