//! Weir's engine, driven as a worker drives it.

use std::hint::black_box;

use anyhow::{Result, ensure};
use hugepages::prefetch;
use weir_net::{ParseOptions, Parsed, parse};
use weir_tcp::{
    Buffer as _, Chunk, ConnectionConfig, Engine, EngineConfig, Events, Handle, Handled, Instant, Lookup,
};

use super::packet::{Packet, Pool, pattern};
use super::peer::{Writer, number};
use super::stack::{ANSWER, BURST, Role, STEP_US, Setup, Stack, Work};
use super::wire::{SENT_FROM, Wire};

/// The listener.
const LISTENER: u16 = 0;
/// Every so many pieces one is compared.
const SAMPLE: u64 = 509;
/// What the NIC has done.
const VERIFIED: ParseOptions = ParseOptions { l3_checksum_ok: true };

/// The application of one engine.
struct Application {
    role: Role,
    handles: Vec<Option<Handle>>,
    answers: Pool,
    /// Bytes of the pieces that it sends.
    piece: u16,
    pieces: u64,
    work: Work,
}

/// An engine, its application and its port.
pub(super) struct Weir {
    engine: Engine<Packet>,
    application: Application,
    wire: Wire,
    parsed: [Parsed; BURST],
    lookups: [Lookup; BURST],
    now: Instant,
}

impl Application {
    #[inline(always)]
    fn answer(&mut self) -> Option<Chunk<Packet>> {
        let buffer = self.answers.take(|_| ())?;
        Some(Chunk { buffer, offset: SENT_FROM as u16, len: self.piece })
    }

    #[inline(always)]
    fn seen(&mut self, chunk: &Chunk<Packet>) {
        self.work.read += u64::from(chunk.len);
        self.pieces += 1;
        if self.pieces.is_multiple_of(SAMPLE) {
            self.compare(chunk.bytes());
        }
    }

    #[cold]
    fn compare(&mut self, bytes: &[u8]) {
        let from = Writer::data_offset(Weir::TIMESTAMPS);
        let is_right = bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(from + at));
        self.work.compared.0 += 1;
        self.work.compared.1 += u64::from(!is_right);
    }

    #[inline(always)]
    fn react(&mut self, engine: &mut Engine<Packet>, handle: Handle, events: Events) {
        if events.has(Events::ACCEPTED) {
            self.accepted(engine, handle);
        }
        if events.has(Events::READABLE) {
            while let Some(chunk) = engine.receive(handle) {
                self.seen(&chunk);
                match self.role {
                    Role::Echo => {
                        let sent = self.answer().map(|answer| engine.send(handle, answer).is_ok());
                        self.work.wrong += u64::from(sent != Some(true));
                    }
                    Role::Relay => {
                        let neighbour = engine.token(handle).map_or(0, |peer| peer ^ 1);
                        let to = self.handles.get(neighbour as usize).copied().flatten();
                        let sent = to.map(|to| engine.send(to, chunk).is_ok());
                        self.work.wrong += u64::from(sent != Some(true));
                    }
                    Role::Receive | Role::Send | Role::Close => drop(black_box(chunk)),
                }
            }
        }
        if events.has(Events::WRITABLE) && self.role == Role::Send {
            self.fill(engine, handle);
        }
        if events.has(Events::FINISHED) {
            self.work.wrong += u64::from(self.role != Role::Close);
            engine.release(handle);
            self.work.closed += 1;
        }
        if events.has(Events::CLOSED) {
            self.work.wrong += 1;
            engine.release(handle);
        }
    }

    #[inline(never)]
    fn accepted(&mut self, engine: &mut Engine<Packet>, handle: Handle) {
        self.work.accepted += 1;
        if self.role == Role::Close {
            return;
        }
        let Some(info) = engine.info(handle) else { return };
        let peer = number(info.remote);
        engine.set_token(handle, peer);
        if let Some(place) = self.handles.get_mut(peer as usize) {
            *place = Some(handle);
        }
    }

    #[inline(always)]
    fn fill(&mut self, engine: &mut Engine<Packet>, handle: Handle) {
        while let Some(answer) = self.answer() {
            if engine.send(handle, answer).is_err() {
                break;
            }
        }
    }
}

impl Stack for Weir {
    const NAME: &'static str = "weir";
    const TIMESTAMPS: bool = true;

    fn start(setup: Setup) -> Result<Self> {
        let now = Instant(1_000_000_000);
        let connections = (setup.connections + setup.passing) as usize;
        let config = EngineConfig { connections, ..EngineConfig::default() };
        let mut engine = Engine::new(config, [7; 32], now);
        let listener = ConnectionConfig {
            backlog: setup.connections + setup.passing,
            send_buffer: setup.buffer,
            ..ConnectionConfig::default()
        };
        engine.set_listener(LISTENER, listener);
        let piece = match setup.role {
            Role::Echo => ANSWER,
            _ => Writer::full(Self::TIMESTAMPS),
        };
        let from = if setup.role == Role::Relay { Writer::data_offset(Self::TIMESTAMPS) } else { SENT_FROM };
        let has_handles = matches!(setup.role, Role::Send | Role::Relay);
        let application = Application {
            role: setup.role,
            handles: if has_handles { vec![None; setup.connections as usize] } else { Vec::new() },
            answers: Pool::new(),
            piece: piece as u16,
            pieces: 0,
            work: Work::default(),
        };
        Ok(Self {
            engine,
            application,
            wire: Wire::new(setup.connections as usize, (from, piece as usize), has_handles),
            parsed: [Parsed::default(); BURST],
            lookups: [Lookup::default(); BURST],
            now,
        })
    }

    #[inline(never)]
    fn burst(&mut self, packets: &mut Vec<Packet>) {
        let Self { engine, application, wire, parsed, lookups, now } = self;
        *now = now.after(STEP_US);
        let now = *now;
        for packet in packets.iter() {
            prefetch::read(packet.bytes());
        }
        for ((packet, parsed), lookup) in packets.iter().zip(parsed.iter_mut()).zip(lookups.iter_mut()) {
            if parse::parse_into(packet.bytes(), &VERIFIED, parsed).is_err() {
                application.work.wrong += 1;
            }
            *lookup = engine.prepare(packet.bytes(), parsed);
        }
        for lookup in lookups.iter_mut().take(packets.len()) {
            engine.guess(lookup);
        }
        for lookup in lookups.iter().take(packets.len()) {
            engine.warm(lookup);
        }
        for ((packet, parsed), lookup) in packets.drain(..).zip(parsed.iter()).zip(lookups.iter()) {
            if let Handled::Unknown(packet) = engine.segment(packet, parsed, *lookup, true, now, wire) {
                engine.unknown(packet, parsed, Some(LISTENER), now, wire);
            }
        }
        while let Some((handle, events)) = engine.poll_event() {
            application.react(engine, handle, events);
        }
        engine.transmit(now, wire);
        engine.advance(now, wire);
        wire.flush();
    }

    fn next_us(&self) -> u64 {
        self.now.0 + STEP_US
    }

    fn begin(&mut self) {
        if self.application.role == Role::Send {
            let handles: Vec<Handle> = self.application.handles.iter().copied().flatten().collect();
            for handle in handles {
                self.application.fill(&mut self.engine, handle);
            }
            self.engine.transmit(self.now, &mut self.wire);
            self.wire.flush();
        }
    }

    fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    fn work(&self) -> Work {
        let counters = self.engine.counters();
        let wrong = counters.malformed
            + counters.retransmitted
            + counters.out_of_window
            + counters.challenge_acks
            + counters.challenge_acks_withheld
            + counters.paws_drops
            + counters.no_memory
            + counters.out_of_order
            + counters.duplicate_bytes
            + counters.resets_no_connection
            + counters.syn_cookies_sent
            + counters.syn_dropped;
        let work = self.application.work;
        Work { segments: counters.segments_in, wrong: work.wrong + wrong, ..work }
    }

    fn open(&self) -> u64 {
        u64::from(self.engine.census().established)
    }

    fn check(&mut self) -> Result<()> {
        let (work, sent) = (self.work(), self.wire.compared);
        ensure!(work.wrong == 0, "weir: {work:?}, {:?}", self.engine.counters());
        ensure!(
            work.compared.1 == 0,
            "weir: {} of {} pieces arrived wrong",
            work.compared.1,
            work.compared.0
        );
        ensure!(sent.1 == 0, "weir: {} of {} segments left wrong", sent.1, sent.0);
        Ok(())
    }
}
