//! Peers on one side, a stack on the other: opens connections, and measures batches of bursts.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::packet::Packet;
use super::peer::{Peer, Writer};
use super::stack::{BURST, STEP_US, Setup, Stack};
use crate::interrupt;
use crate::random::Random;

/// Time and work of a stretch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lap {
    /// In the stack, its application and its port.
    pub(super) stack: Duration,
    /// In the peers: writing frames.
    pub(super) generator: Duration,
    /// What was done.
    pub(super) units: u64,
}

impl Lap {
    /// Adds another stretch.
    pub(super) fn add(&mut self, other: Lap) {
        self.stack += other.stack;
        self.generator += other.generator;
        self.units += other.units;
    }

    /// Nanoseconds of the stack per unit.
    pub(super) fn ns(&self) -> f64 {
        self.stack.as_nanos() as f64 / self.units.max(1) as f64
    }

    /// Nanoseconds of the peers per unit.
    pub(super) fn generator_ns(&self) -> f64 {
        self.generator.as_nanos() as f64 / self.units.max(1) as f64
    }
}

/// A stack and its peers.
pub(super) struct Drive<S> {
    pub(super) stack: S,
    pub(super) peers: Vec<Peer>,
    pub(super) writer: Writer,
    /// Bursts that are ready; used again and again for their memory.
    bursts: Vec<Vec<Packet>>,
    ready: usize,
}

impl<S: Stack> Drive<S> {
    /// A stack with all its connections open, and so many peers beyond.
    pub(super) fn open(setup: Setup, more_peers: u32, seed: u64) -> Result<Self> {
        let mut drive = Self::new(setup, more_peers)?;
        drive.establish(setup, seed)?;
        Ok(drive)
    }

    /// A stack without connections.
    pub(super) fn new(setup: Setup, more_peers: u32) -> Result<Self> {
        Ok(Self {
            stack: S::start(setup)?,
            peers: vec![Peer::default(); (setup.connections + more_peers) as usize],
            writer: Writer::new(S::TIMESTAMPS),
            bursts: Vec::new(),
            ready: 0,
        })
    }

    /// Opens all connections, in random order.
    pub(super) fn establish(&mut self, setup: Setup, seed: u64) -> Result<()> {
        let mut order: Vec<u32> = (0..setup.connections).collect();
        Random::new(seed, "establish").shuffle(&mut order);
        for peers in order.chunks(BURST) {
            interrupt::check()?;
            self.syn(peers)?;
            self.run();
            self.learn()?;
            for &peer in peers {
                self.say(peer, 0, 0)?;
            }
            self.run();
        }
        let open = self.stack.open();
        ensure!(open == u64::from(setup.connections), "{}: {open} connections are open", S::NAME);
        self.stack.check()
    }

    /// Puts SYNs of peers into bursts.
    pub(super) fn syn(&mut self, peers: &[u32]) -> Result<()> {
        for &peer in peers {
            let time = self.time();
            let state = &mut self.peers[peer as usize];
            let packet = self.writer.syn(peer, state, time)?;
            self.put(packet);
        }
        Ok(())
    }

    /// Takes over what the answers to SYNs said.
    pub(super) fn learn(&mut self) -> Result<()> {
        let now = self.stack.next_us() - STEP_US;
        let wire = self.stack.wire();
        for answer in wire.answers.drain(..) {
            let peer = &mut self.peers[answer.peer as usize];
            peer.ack = answer.seq.wrapping_add(1);
            peer.offset = answer.timestamp.wrapping_sub((now / 1_000) as u32);
        }
        Ok(())
    }

    /// Puts a segment of a peer into a burst.
    #[inline(always)]
    pub(super) fn say(&mut self, peer: u32, flags: u8, len: u32) -> Result<()> {
        let time = self.time();
        let packet = self.writer.segment(peer, &mut self.peers[peer as usize], flags, len, time)?;
        self.put(packet);
        Ok(())
    }

    /// When the burst that is being filled will be taken in.
    #[inline(always)]
    fn time(&self) -> u64 {
        self.stack.next_us() + (self.ready as u64).saturating_sub(1) * STEP_US
    }

    /// The next segment begins a burst of its own.
    pub(super) fn cut(&mut self) {
        if self.ready > 0 && !self.bursts[self.ready - 1].is_empty() {
            self.next_burst();
        }
    }

    fn next_burst(&mut self) {
        if self.ready == self.bursts.len() {
            self.bursts.push(Vec::with_capacity(BURST));
        }
        self.ready += 1;
    }

    #[inline(always)]
    fn put(&mut self, packet: Packet) {
        if self.ready == 0 || self.bursts[self.ready - 1].len() == BURST {
            self.next_burst();
        }
        self.bursts[self.ready - 1].push(packet);
    }

    /// Gives all bursts to the stack; how long it took.
    pub(super) fn run(&mut self) -> Duration {
        let start = Instant::now();
        for burst in &mut self.bursts[..self.ready] {
            self.stack.burst(burst);
        }
        let took = start.elapsed();
        self.ready = 0;
        took
    }
}
