//! One direction of a link: when does a frame arrive, if it does? Times are microseconds of the crossing's clock.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::random::Random;

/// How a link treats its frames; chances per million.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quality {
    /// One way.
    pub(crate) delay_us: u64,
    pub(crate) loss: usize,
    pub(crate) duplicate: usize,
    /// Held back by up to half of the delay, and 2 ms at least.
    pub(crate) reorder: usize,
    /// Bytes per second, Ethernet header included; 0: no limit.
    pub(crate) rate: u64,
    /// Bytes that wait at most where there is a rate.
    pub(crate) queue: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: u64,
    order: u64,
    frame: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Link {
    quality: Quality,
    random: Random,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
    busy_until: u64,
}

impl Link {
    pub(super) fn new(quality: Quality, random: Random) -> Self {
        Self { quality, random, flying: BinaryHeap::new(), order: 0, busy_until: 0 }
    }

    fn chance(&mut self, per_million: usize) -> bool {
        per_million > 0 && self.random.below(1_000_000) < per_million
    }

    pub(super) fn send(&mut self, frame: Vec<u8>, now: u64) {
        let quality = self.quality;
        if self.chance(quality.loss) {
            return;
        }
        let mut at = now;
        if quality.rate > 0 {
            let waiting = self.busy_until.saturating_sub(now) * quality.rate / 1_000_000;
            if waiting + frame.len() as u64 > quality.queue {
                return;
            }
            self.busy_until = self.busy_until.max(now) + frame.len() as u64 * 1_000_000 / quality.rate;
            at = self.busy_until;
        }
        at += quality.delay_us;
        if self.chance(quality.reorder) {
            at += self.random.below((quality.delay_us / 2).max(2_000) as usize) as u64;
        }
        if self.chance(quality.duplicate) {
            self.fly(frame.clone(), at);
        }
        self.fly(frame, at);
    }

    fn fly(&mut self, frame: Vec<u8>, at: u64) {
        self.order += 1;
        self.flying.push(Reverse(Flying { at, order: self.order, frame }));
    }

    pub(super) fn next(&self) -> Option<u64> {
        self.flying.peek().map(|flying| flying.0.at)
    }

    pub(super) fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.flying.pop().map(|flying| flying.0.frame)
    }
}
