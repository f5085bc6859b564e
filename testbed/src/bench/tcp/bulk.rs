//! Full segments, one way: taken in, sent, or taken in and sent on.

use std::time::Instant;

use anyhow::{Result, ensure};
use weir_net::tcp;

use super::drive::{Drive, Lap};
use super::peer::Writer;
use super::stack::{Role, Setup, Stack};
use crate::random::Random;

/// Connections; of a relay, half of them receive.
pub(super) const CONNECTIONS: u32 = 64;
/// Segments of a connection in a row.
pub(super) const TRAIN: usize = 8;
/// Trains of a burst.
const TRAINS: usize = 4;
/// Bursts of a batch.
const BURSTS: usize = 32;
/// Bytes that may wait in a connection.
const BUFFER: u32 = 256 << 10;

/// Bulk data.
pub(super) struct Bulk<S> {
    drive: Drive<S>,
    role: Role,
    random: Random,
    full: u32,
    segments: u64,
    read_before: u64,
    sent_before: u64,
}

impl<S: Stack> Bulk<S> {
    pub(super) fn open(role: Role, seed: u64) -> Result<Self> {
        let setup = Setup { connections: CONNECTIONS, passing: 0, buffer: BUFFER, role };
        let mut drive = Drive::<S>::open(setup, 0, seed)?;
        drive.stack.begin();
        let sent_before = drive.stack.wire().bytes;
        let random = Random::new(seed, "bulk");
        let full = Writer::full(S::TIMESTAMPS);
        Ok(Self { drive, role, random, full, segments: 0, read_before: 0, sent_before })
    }

    /// Bytes of a segment.
    pub(super) fn segment_bytes(&self) -> u32 {
        self.full
    }

    /// A batch of segments.
    pub(super) fn batch(&mut self) -> Result<Lap> {
        let start = Instant::now();
        let before = self.drive.stack.wire().bytes;
        match self.role {
            Role::Send => self.acknowledge_all()?,
            Role::Relay => self.both_ways()?,
            _ => {
                for _ in 0..BURSTS {
                    self.trains(1)?;
                }
            }
        }
        let generator = start.elapsed();
        let stack = self.drive.run();
        let units = match self.role {
            Role::Send => (self.drive.stack.wire().bytes - before) / u64::from(self.full),
            _ => (BURSTS * TRAINS * TRAIN) as u64,
        };
        self.segments += units;
        Ok(Lap { stack, generator, units })
    }

    /// A burst of trains of some connections; which ones. A relay's receiving ones have even numbers.
    fn trains(&mut self, step: u32) -> Result<[u32; TRAINS]> {
        let mut chosen = [0; TRAINS];
        // one of each quarter, so that they differ
        let quarter = CONNECTIONS / step / TRAINS as u32;
        for (at, peer) in chosen.iter_mut().enumerate() {
            *peer = (at as u32 * quarter + self.random.below(quarter as usize) as u32) * step;
            for _ in 0..TRAIN {
                self.drive.say(*peer, 0, self.full)?;
            }
        }
        Ok(chosen)
    }

    /// Trains from some, and acknowledgements of every second segment from their neighbours, one burst later.
    fn both_ways(&mut self) -> Result<()> {
        let mut owed: Option<[u32; TRAINS]> = None;
        for _ in 0..BURSTS {
            self.drive.cut();
            let chosen = self.trains(2)?;
            self.drive.cut();
            for peer in owed.into_iter().flatten() {
                self.acknowledge(peer ^ 1, TRAIN / 2)?;
            }
            owed = Some(chosen);
        }
        self.drive.cut();
        for peer in owed.into_iter().flatten() {
            self.acknowledge(peer ^ 1, TRAIN / 2)?;
        }
        Ok(())
    }

    fn acknowledge(&mut self, peer: u32, times: usize) -> Result<()> {
        for _ in 0..times {
            let state = &mut self.drive.peers[peer as usize];
            state.ack = state.ack.wrapping_add(2 * self.full);
            self.drive.say(peer, 0, 0)?;
        }
        Ok(())
    }

    /// Acknowledgements of all that is outstanding, every second segment, in turn.
    fn acknowledge_all(&mut self) -> Result<()> {
        let mut is_some_left = true;
        while is_some_left {
            is_some_left = false;
            for peer in 0..CONNECTIONS {
                let end = self.drive.stack.wire().ends[peer as usize];
                let state = &mut self.drive.peers[peer as usize];
                let step = end.wrapping_sub(state.ack).min(2 * self.full);
                if step > 0 {
                    state.ack = state.ack.wrapping_add(step);
                    self.drive.say(peer, tcp::ACK, 0)?;
                    is_some_left = true;
                }
            }
        }
        Ok(())
    }

    /// Whether all of it happened.
    pub(super) fn check(&mut self) -> Result<()> {
        self.drive.stack.check()?;
        let work = self.drive.stack.work();
        let (read, sent) = (work.read - self.read_before, self.drive.stack.wire().bytes - self.sent_before);
        let bytes = self.segments * u64::from(self.full);
        let waiting = u64::from(CONNECTIONS / 2 * BUFFER);
        let is_right = match self.role {
            Role::Send => sent >= bytes && bytes > 0,
            // what waits to be sent on is in the sending connections' buffers
            Role::Relay => read == bytes && sent <= read && read - sent <= waiting,
            _ => read == bytes && sent == 0,
        };
        ensure!(is_right, "{}: {} segments, but {read} bytes in and {sent} out", S::NAME, self.segments);
        let compared = work.compared.0 + self.drive.stack.wire().compared.0;
        ensure!(compared > 0, "{}: nothing was compared", S::NAME);
        Ok(())
    }
}
