//! A connection from its SYN to its end: 6 packets, the peer closes first. Others are open and idle meanwhile.

use std::time::Instant;

use anyhow::{Result, ensure};
use weir_net::tcp;

use super::drive::{Drive, Lap};
use super::stack::{Role, Setup, Stack};
use crate::random::Random;

/// Connections that come and go at once.
pub(super) const AT_ONCE: u32 = 512;
/// Peers that take turns; each has been gone for long when its turn comes again.
const PEERS: u32 = 1 << 18;

/// Connections that come and go over others that stay.
pub(super) struct Churn<S> {
    drive: Drive<S>,
    idle: u32,
    next: u32,
    random: Random,
    connections: u64,
    before: (u64, u64),
}

impl<S: Stack> Churn<S> {
    pub(super) fn open(idle: u32, seed: u64) -> Result<Self> {
        let setup = Setup { connections: idle, passing: AT_ONCE, buffer: 2_048, role: Role::Close };
        let mut drive = Drive::<S>::open(setup, PEERS, seed)?;
        let before = (drive.stack.work().segments, drive.stack.wire().segments);
        Ok(Self { drive, idle, next: 0, random: Random::new(seed, "churn"), connections: 0, before })
    }

    /// Lets all of them say something, in random order, and gives it to the stack.
    fn step(&mut self, lap: &mut Lap, peers: &mut [u32], flags: u8, moves: u32) -> Result<()> {
        self.random.shuffle(peers);
        let start = Instant::now();
        for &peer in &*peers {
            let state = &mut self.drive.peers[peer as usize];
            state.ack = state.ack.wrapping_add(moves);
            self.drive.say(peer, flags, 0)?;
        }
        lap.generator += start.elapsed();
        lap.stack += self.drive.run();
        Ok(())
    }

    /// Opens and closes [`AT_ONCE`] connections.
    pub(super) fn batch(&mut self) -> Result<Lap> {
        let mut lap = Lap { units: u64::from(AT_ONCE), ..Lap::default() };
        let mut peers: Vec<u32> = (0..AT_ONCE).map(|at| self.idle + (self.next + at) % PEERS).collect();
        self.next = (self.next + AT_ONCE) % PEERS;
        let start = Instant::now();
        self.drive.syn(&peers)?;
        lap.generator += start.elapsed();
        lap.stack += self.drive.run();
        self.drive.learn()?;
        self.step(&mut lap, &mut peers, 0, 0)?;
        self.step(&mut lap, &mut peers, tcp::FIN, 0)?;
        self.step(&mut lap, &mut peers, 0, 1)?;
        self.connections += u64::from(AT_ONCE);
        Ok(lap)
    }

    /// Whether all of it happened.
    pub(super) fn check(&mut self) -> Result<()> {
        self.drive.stack.check()?;
        let work = self.drive.stack.work();
        let (arrived, left) =
            (work.segments - self.before.0, self.drive.stack.wire().segments - self.before.1);
        let (open, count) = (self.drive.stack.open(), self.connections);
        ensure!(
            open == u64::from(self.idle) && work.closed == count && arrived == 4 * count && left == 2 * count,
            "{}: {count} connections came and went, {open} are open, {arrived} segments in and {left} out: {work:?}",
            S::NAME
        );
        Ok(())
    }
}
