//! What an application does with one connection: sends and expects the bytes that its seed says, and reacts to events only.

use weir_tcp::buffer::HeapBuffer;
use weir_tcp::{Chunk, Ended, Engine, Events, Handle, State};

use crate::link::Random;
use crate::plan::{Break, Plan};

/// The bytes of a stream: a function of its seed and the place.
pub(crate) fn byte(seed: u64, at: u64) -> u8 {
    (Random(seed ^ (at / 8)).next() >> (8 * (at % 8))) as u8
}

/// The seed of what a side of a conversation sends.
pub(crate) fn stream_seed(plan: &Plan, number: usize, side: usize) -> u64 {
    plan.seed.wrapping_mul(0x9e37_79b9).wrapping_add((number * 2 + side) as u64) << 32
}

/// One side of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) number: usize,
    side: usize,
    pub(crate) handle: Option<Handle>,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    out: u64,
    into: u64,
    is_readable: bool,
    is_writable: bool,
    is_finished: bool,
    is_closed: bool,
    is_shut: bool,
    has_stalled: bool,
    has_paused: bool,
    next_read: u64,
    next_write: u64,
    pub(crate) ended: Option<Ended>,
    /// It broke the connection off itself.
    pub(crate) has_broken: bool,
}

impl Stream {
    pub(crate) fn new(plan: &Plan, number: usize, side: usize, handle: Handle) -> Self {
        Self {
            number,
            side,
            handle: Some(handle),
            sent: 0,
            received: 0,
            out: stream_seed(plan, number, side),
            into: stream_seed(plan, number, 1 - side),
            is_readable: true,
            is_writable: true,
            is_finished: false,
            is_closed: false,
            is_shut: false,
            has_stalled: false,
            has_paused: false,
            next_read: 0,
            next_write: 0,
            ended: None,
            has_broken: false,
        }
    }

    /// What the engine has said.
    pub(crate) fn hears(&mut self, events: Events) {
        self.is_readable |= events.has(Events::READABLE | Events::FINISHED | Events::CLOSED);
        self.is_writable |= events.has(Events::WRITABLE);
        self.is_finished |= events.has(Events::FINISHED);
        self.is_closed |= events.has(Events::CLOSED);
    }

    /// When it wants to go on by itself.
    pub(crate) fn next(&self, now: u64) -> Option<u64> {
        self.handle?;
        let read = (self.is_readable && self.next_read > now).then_some(self.next_read);
        let write = (self.is_writable && self.next_write > now).then_some(self.next_write);
        read.into_iter().chain(write).min()
    }

    pub(crate) fn work(
        &mut self,
        engine: &mut Engine<HeapBuffer>,
        plan: &Plan,
        random: &mut Random,
        now: u64,
    ) {
        let Some(handle) = self.handle else { return };
        self.read(engine, handle, plan, random, now);
        self.write(engine, handle, plan, random, now);
        let talk = &plan.conversations[self.number];
        if let Some((side, how, after)) = talk.broken
            && side == self.side
            && self.sent.max(self.received) >= after
        {
            self.has_broken = true;
            if how == Break::Abort {
                engine.abort(handle);
            }
            self.let_go(engine, handle, Ended::Aborted);
            return;
        }
        if self.is_closed && !self.is_readable {
            let info = engine.info(handle).expect("a handle that was not released");
            assert_eq!(info.state, State::Closed, "closed, it said");
            assert_ne!(info.ended, Ended::No, "it must say why");
            self.let_go(engine, handle, info.ended);
        }
    }

    fn let_go(&mut self, engine: &mut Engine<HeapBuffer>, handle: Handle, ended: Ended) {
        self.ended = Some(ended);
        self.handle = None;
        engine.release(handle);
    }

    fn read(
        &mut self,
        engine: &mut Engine<HeapBuffer>,
        handle: Handle,
        plan: &Plan,
        random: &mut Random,
        now: u64,
    ) {
        let stall = plan.conversations[self.number].stall.filter(|stall| stall.side == self.side);
        while self.is_readable && now >= self.next_read {
            if let Some(stall) = stall.filter(|stall| self.received >= stall.after && !self.has_stalled) {
                self.has_stalled = true;
                self.next_read = now + 1 + stall.length_us;
                return;
            }
            let Some(chunk) = engine.receive(handle) else {
                self.is_readable = false;
                return;
            };
            for &got in chunk.bytes() {
                assert_eq!(got, byte(self.into, self.received), "byte {} of {}", self.received, self.number);
                self.received += 1;
            }
            if plan.reads_every_us > 0 {
                self.next_read = now + 1 + random.below(plan.reads_every_us);
            }
        }
    }

    fn write(
        &mut self,
        engine: &mut Engine<HeapBuffer>,
        handle: Handle,
        plan: &Plan,
        random: &mut Random,
        now: u64,
    ) {
        let talk = &plan.conversations[self.number];
        let has_heard_all = self.is_finished && !self.is_readable;
        if self.is_shut || (talk.order.waits(self.side) && !has_heard_all) {
            return;
        }
        let silence = talk.silence.filter(|silence| silence.side == self.side);
        let total = talk.bytes[self.side];
        while self.is_writable && self.sent < total && now >= self.next_write {
            if let Some(silence) = silence.filter(|silence| self.sent >= silence.after && !self.has_paused) {
                self.has_paused = true;
                self.next_write = now + 1 + silence.length_us;
                return;
            }
            let len = (1 + random.below(plan.write)).min(total - self.sent);
            let bytes: Vec<u8> = (0..len).map(|at| byte(self.out, self.sent + at)).collect();
            match engine.send(handle, Chunk::whole(HeapBuffer::from(&bytes[..]))) {
                Ok(()) => self.sent += len,
                Err(_) => self.is_writable = false,
            }
        }
        if self.sent == total && now >= self.next_write {
            self.is_shut = true;
            engine.shutdown(handle);
        }
    }
}
