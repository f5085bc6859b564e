//! A link in virtual time that treats frames badly, as its seed says.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::IpAddr;

use weir_net::icmp_reply::{self, Problem};
use weir_net::{PacketBuf, ParseOptions, VecBuf, checksum, parse};

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
    /// RFC 3168: marks instead of drops, on what is ECN-capable.
    pub(crate) mark: u32,
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
    /// Until when nothing passes, and since when.
    blackouts: Vec<(u64, u64)>,
    /// From when on packets are at most so long.
    mtu: Option<(u64, u16)>,
    pub(crate) lost: u64,
    pub(crate) carried: u64,
}

impl Link {
    pub(crate) fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            random: Random(seed),
            flying: BinaryHeap::new(),
            order: 0,
            busy_until: 0,
            blackouts: Vec::new(),
            mtu: None,
            lost: 0,
            carried: 0,
        }
    }

    /// Times in which nothing passes.
    pub(crate) fn blacked_out(mut self, times: &[(u64, u64)]) -> Self {
        self.blackouts = times.to_vec();
        self
    }

    /// From when on packets are at most so long.
    pub(crate) fn narrowed(mut self, mtu: Option<(u64, u16)>) -> Self {
        self.mtu = mtu;
        self
    }

    /// Takes a frame. What comes back is for its sender: the ICMP error about a packet that is too long.
    pub(crate) fn send(&mut self, mut frame: Vec<u8>, now: u64) -> Option<Vec<u8>> {
        let quality = self.quality;
        self.carried += 1;
        let is_dark = self.blackouts.iter().any(|&(from, to)| (from..to).contains(&now));
        if is_dark || self.random.chance(quality.loss) {
            self.lost += 1;
            return None;
        }
        if let Some((_, mtu)) =
            self.mtu.filter(|&(from, mtu)| now >= from && frame.len() > 14 + usize::from(mtu))
        {
            self.lost += 1;
            return too_big(&frame, mtu);
        }
        if self.random.chance(quality.mark) {
            mark(&mut frame);
        }
        let mut at = now;
        if quality.rate > 0 {
            let waiting = self.busy_until.saturating_sub(now) * quality.rate / 1_000_000;
            if waiting + frame.len() as u64 > quality.queue {
                self.lost += 1;
                return None;
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
        None
    }

    /// An ICMP error that a router sends against this link's direction of travel.
    pub(crate) fn answer(&mut self, frame: Vec<u8>, now: u64) {
        self.fly(frame, now + self.quality.delay_us);
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

/// RFC 3168 §5: the router's mark on an ECN-capable packet.
fn mark(frame: &mut [u8]) {
    if frame[12..14] == [0x08, 0x00] && frame[15] & 3 != 0 {
        frame[15] |= 3;
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else if frame[12..14] == [0x86, 0xdd] && frame[15] & 0x30 != 0 {
        frame[15] |= 0x30;
    }
}

/// RFC 1191 §4, RFC 4443 §3.2.
fn too_big(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let parsed = parse(frame, &ParseOptions::default()).ok()?;
    let router: IpAddr =
        if frame[12] == 0x08 { [198, 18, 0, 9].into() } else { "2001:db8::9".parse().ok()? };
    let mut packet = VecBuf::new(frame);
    icmp_reply::error(&mut packet, &parsed, router, Problem::TooBig { mtu }).ok()?;
    Some(packet.data().to_vec())
}
