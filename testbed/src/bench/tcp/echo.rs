//! A request and its answer: 128 bytes in, 1 KiB out, and the acknowledgement of that; 2 segments in, 1 out.

use std::time::Instant;

use anyhow::{Result, ensure};
use weir_net::tcp;

use super::drive::{Drive, Lap};
use super::stack::{ANSWER, BURST, REQUEST, Role, Setup, Stack};
use crate::random::Random;

/// Transactions of a batch.
const BATCH: usize = 1_024;
/// Transactions between an answer and its acknowledgement, where there are connections enough.
pub(super) const LAG: usize = 1_024;

/// Connections with an echo behind them.
pub(super) struct Echo<S> {
    drive: Drive<S>,
    order: Vec<u32>,
    /// Transactions begun.
    place: usize,
    lag: usize,
    before: (u64, u64, u64),
}

impl<S: Stack> Echo<S> {
    pub(super) fn open(connections: u32, seed: u64) -> Result<Self> {
        let setup = Setup { connections, passing: 0, buffer: 2_048, role: Role::Echo };
        let mut drive = Drive::<S>::open(setup, 0, seed)?;
        let mut order: Vec<u32> = (0..connections).collect();
        Random::new(seed, "echo").shuffle(&mut order);
        // the acknowledgements come with other requests' bursts, never in the burst of their own
        let lag = LAG.min(connections as usize / 2) / BURST * BURST;
        let before = (drive.stack.work().segments, drive.stack.wire().segments, drive.stack.wire().bytes);
        Ok(Self { drive, order, place: 0, lag, before })
    }

    fn peer(&self, transaction: usize) -> u32 {
        self.order[transaction % self.order.len()]
    }

    /// A batch of transactions.
    pub(super) fn batch(&mut self) -> Result<Lap> {
        let start = Instant::now();
        for _ in 0..BATCH {
            let peer = self.peer(self.place);
            self.drive.say(peer, tcp::PSH, REQUEST)?;
            if self.place >= self.lag {
                let peer = self.peer(self.place - self.lag);
                let state = &mut self.drive.peers[peer as usize];
                state.ack = state.ack.wrapping_add(ANSWER);
                self.drive.say(peer, 0, 0)?;
            }
            self.place += 1;
        }
        let generator = start.elapsed();
        Ok(Lap { stack: self.drive.run(), generator, units: BATCH as u64 })
    }

    /// Whether all of it happened.
    pub(super) fn check(&mut self) -> Result<()> {
        self.drive.stack.check()?;
        let transactions = self.place as u64;
        let work = self.drive.stack.work();
        let (segments_in, segments_out, bytes_out) = self.before;
        let wire = self.drive.stack.wire();
        let (segments, bytes) = (wire.segments - segments_out, wire.bytes - bytes_out);
        let arrived = work.segments - segments_in;
        ensure!(
            work.read == transactions * u64::from(REQUEST) && bytes == transactions * u64::from(ANSWER),
            "{}: {} bytes in and {bytes} out in {transactions} transactions",
            S::NAME,
            work.read
        );
        ensure!(
            segments == transactions && arrived == 2 * transactions - self.lag as u64,
            "{}: {arrived} segments in and {segments} out in {transactions} transactions",
            S::NAME
        );
        ensure!(wire.compared.0 > 0 && work.compared.0 > 0, "{}: nothing was compared", S::NAME);
        Ok(())
    }
}
