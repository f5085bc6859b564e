//! A link in virtual time that treats frames badly, as its seed says.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// True so many times in a million.
    pub(crate) fn chance(&mut self, per_million: u32) -> bool {
        self.below(1_000_000) < u64::from(per_million)
    }
}

/// How a link treats its frames; chances per million.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quality {
    pub(crate) delay_us: u64,
    pub(crate) jitter_us: u64,
    pub(crate) loss: u32,
    pub(crate) duplicate: u32,
    pub(crate) corrupt: u32,
    /// Held back by up to four times the delay.
    pub(crate) reorder: u32,
    /// Bytes per second; 0: no limit.
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

/// One direction.
#[derive(Debug)]
pub(crate) struct Link {
    quality: Quality,
    random: Random,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
    busy_until: u64,
    pub(crate) lost: u64,
}

impl Link {
    pub(crate) fn new(quality: Quality, seed: u64) -> Self {
        Self { quality, random: Random(seed), flying: BinaryHeap::new(), order: 0, busy_until: 0, lost: 0 }
    }

    pub(crate) fn send(&mut self, mut frame: Vec<u8>, now: u64) {
        let quality = self.quality;
        if self.random.chance(quality.loss) {
            self.lost += 1;
            return;
        }
        let mut at = now;
        if quality.rate > 0 {
            let waiting = self.busy_until.saturating_sub(now) * quality.rate / 1_000_000;
            if waiting + frame.len() as u64 > quality.queue {
                self.lost += 1;
                return;
            }
            let long = frame.len() as u64 * 1_000_000 / quality.rate;
            self.busy_until = self.busy_until.max(now) + long;
            at = self.busy_until;
        }
        at += quality.delay_us + self.random.below(quality.jitter_us + 1);
        if self.random.chance(quality.reorder) {
            at += self.random.below(4 * quality.delay_us + 1);
        }
        if self.random.chance(quality.corrupt) && frame.len() > 14 {
            let place = 14 + self.random.below(frame.len() as u64 - 14) as usize;
            frame[place] ^= 1 << self.random.below(8);
        }
        if self.random.chance(quality.duplicate) {
            let late = self.random.below(quality.delay_us + 1);
            self.fly(frame.clone(), at + late);
        }
        self.fly(frame, at);
    }

    fn fly(&mut self, frame: Vec<u8>, at: u64) {
        self.order += 1;
        self.flying.push(Reverse(Flying { at, order: self.order, frame }));
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.flying.peek().map(|flying| flying.0.at)
    }

    /// The next frame that has arrived by now.
    pub(crate) fn arrived(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.flying.pop().map(|flying| flying.0.frame)
    }
}
