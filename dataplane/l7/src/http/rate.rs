//! May this key have one more token? Rate limits of the node, though workers share nothing.
//!
//! The bucket of a key is kept by one worker, its owner: `hash of the key × workers / 2^64`. The others keep an estimate of it: what the owner
//! last told, refilled since, less what they gave away themselves. They answer at once and tell the owner what they spent; it takes that
//! from the bucket, into debt if need be, and tells them its level. Nobody waits for a message.
//!
//! ```text
//! another worker                                     owner of the key
//!   takes of its estimate, at most LEASE untold
//!     Spent(tokens) ───────────────────────────────▶ takes them from the bucket
//!     estimate = level − spent since   ◀──────────── Level
//! ```
//!
//! **Bound.** A worker that isn't the owner has at most [`lease`] tokens given away that the owner hasn't confirmed. So within any time *T*
//! no more than `burst + rate × T + 2 × (workers − 1) × lease` tokens are given away: each worker may find the owner's bucket emptier than it
//! knew once, and leave it in debt once. What was given away too much is missing afterwards: the rate holds in the long run. With one
//! worker the limit is exact. To workers other than the owner a bucket seems to refill later by the time that messages take. Where a
//! message is lost, what it told is told again half a second later.
//!
//! **When the table is full.** Buckets that lost nothing (or have refilled) make place for others. Where all eight places of a key hold
//! buckets in use, the key shares one bucket with all others of its limit that found no place, of this worker and never told.
//!
//! A bucket is one number, the time at which it will be full again (the "theoretical arrival time" of GCRA, ITU-T I.371): a token
//! moves it, time alone refills it.

use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;
use weir_balance::slot;
use weir_tcp::Instant;

use super::rules::RateLimit;

/// Places in which the bucket of a key may stand.
const WAYS: usize = 8;
/// Shared buckets of limits whose keys found no place.
const OVERFLOWS: usize = 64;
/// Answers to other workers that may wait; what is beyond is not answered, and asked again.
const ANSWERS: usize = 4_096;
/// What a worker spent is told again when it wasn't confirmed for so long, microseconds.
const UNCONFIRMED_US: u64 = 500_000;
/// A lease covers the rate of so long: twice the time in which a message and its answer should come, as one is on its way while the next
/// gathers. A key that comes at its full rate to one worker is refused now and then where messages take longer than a quarter of this.
const COVERED_NS: u64 = 50_000_000;

/// Whether there was a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// There was.
    Yes,
    /// There wasn't.
    No {
        /// When there will be one if nobody else takes it, seconds, at least 1.
        retry_after_s: u32,
    },
}

/// Whose bucket a request takes from.
#[derive(Clone, Copy, Debug)]
pub enum KeyValue<'a> {
    /// The one for all.
    All,
    /// The client's; IPv6 clients of one /64 share it.
    Client(IpAddr),
    /// That of a header's value; without the header, that of all who have none.
    Header(Option<&'a [u8]>),
}

/// From one worker to another. Order doesn't matter; a lost one is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateMessage {
    /// To a key's owner: so many tokens were given away.
    Spent {
        /// The key.
        key: u64,
        /// How many.
        tokens: u32,
        /// Nanoseconds in which one token comes.
        cost_ns: u64,
        /// Comes back with the answer.
        sequence: u32,
    },
    /// From a key's owner.
    Level {
        /// The key.
        key: u64,
        /// In so many nanoseconds the bucket will be full.
        busy_ns: u64,
        /// Of the message that this answers.
        sequence: u32,
    },
}

/// A limit in the unit of buckets.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Nanoseconds in which one token comes.
    cost_ns: u64,
    /// Nanoseconds in which an empty bucket becomes full.
    full_ns: u64,
    burst: u32,
}

impl Rate {
    fn of(limit: &RateLimit) -> Self {
        let burst = limit.burst.max(1);
        let cost_ns = (1_000_000_000_000 / limit.millis_per_second.max(1)).max(1);
        Self { cost_ns, full_ns: cost_ns.saturating_mul(u64::from(burst)), burst }
    }

    /// See [`lease`].
    fn lease(&self, workers: u16) -> u32 {
        if workers < 2 {
            return 0;
        }
        let rate = u32::try_from(COVERED_NS / self.cost_ns).unwrap_or(u32::MAX);
        (self.burst / (2 * u32::from(workers))).max(rate.min(self.burst / 2)).max(1)
    }
}

/// The most tokens of one key that a worker gives away before the owner has confirmed them: a share of the burst, or what comes within
/// 50 ms, at most half the burst, at least one. A part of the bound that the module's documentation states.
pub fn lease(limit: &RateLimit, workers: u16) -> u32 {
    Rate::of(limit).lease(workers)
}

/// A bucket, or the estimate of one.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// When it will be full, nanoseconds of the worker's clock.
    full_at: u64,
    cost_ns: u64,
    /// When the owner was told, microseconds.
    told_at: u64,
    /// Tokens given away of which the owner was told, without an answer yet.
    unconfirmed: u32,
    /// Tokens given away of which the owner was not told.
    untold: u32,
    sequence: u32,
    /// It is in the queue of those with something to tell.
    is_queued: bool,
}

impl Bucket {
    /// Takes a token; nanoseconds until there is one where there is none.
    fn take(&mut self, rate: &Rate, now_ns: u64) -> Result<(), u64> {
        let full_at = self.full_at.max(now_ns).saturating_add(rate.cost_ns);
        let over = (full_at - now_ns).saturating_sub(rate.full_ns);
        if over > 0 {
            return Err(over);
        }
        self.full_at = full_at;
        Ok(())
    }

    /// Nobody would notice if it were new.
    fn is_idle(&self, now: Instant) -> bool {
        let is_lost = now.since(Instant(self.told_at)) > UNCONFIRMED_US;
        self.full_at <= nanoseconds(now)
            && self.untold == 0
            && !self.is_queued
            && (self.unconfirmed == 0 || is_lost)
    }
}

/// Sets of [`WAYS`] places for so many keys.
const fn sets_for(keys: usize) -> usize {
    keys.div_ceil(WAYS).next_power_of_two()
}

const fn nanoseconds(now: Instant) -> u64 {
    now.0.saturating_mul(1_000)
}

fn refused(wait_ns: u64) -> Taken {
    let seconds = wait_ns.div_ceil(1_000_000_000).max(1);
    Taken::No { retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX) }
}

/// The buckets of a worker.
pub struct Rates {
    worker: u16,
    workers: u16,
    secret: [u64; 2],
    /// By place; 0: free.
    keys: Box<[[u64; WAYS]]>,
    buckets: Box<[[Bucket; WAYS]]>,
    overflows: Box<[Bucket]>,
    /// Places of buckets of which something is to be told.
    telling: VecDeque<(u32, u8)>,
    answers: VecDeque<(u16, RateMessage)>,
    crowded: u64,
}

impl std::fmt::Debug for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // never the secret
        write!(f, "Rates({} of {}, {} places)", self.worker, self.workers, self.keys.len() * WAYS)
    }
}

impl Rates {
    /// Of worker `worker` of `workers`, with room for so many keys (rounded up). The secret must be the same for all workers, and unknown to
    /// clients, who could choose keys that meet otherwise.
    pub fn new(worker: u16, workers: u16, keys: usize, secret: [u64; 2]) -> Self {
        let sets = sets_for(keys);
        Self {
            worker,
            workers: workers.max(1),
            secret,
            keys: vec![[0; WAYS]; sets].into_boxed_slice(),
            buckets: vec![[Bucket::default(); WAYS]; sets].into_boxed_slice(),
            overflows: vec![Bucket::default(); OVERFLOWS].into_boxed_slice(),
            telling: VecDeque::with_capacity(if workers > 1 { sets * WAYS } else { 0 }),
            answers: VecDeque::with_capacity(if workers > 1 { ANSWERS } else { 0 }),
            crowded: 0,
        }
    }

    /// What [`Rates::new`] sets aside, in bytes.
    pub(super) fn bytes(keys: usize, workers: u16) -> u64 {
        let places = sets_for(keys) * WAYS;
        let buckets = places * size_of::<u64>() + (places + OVERFLOWS) * size_of::<Bucket>();
        let messages = places * size_of::<(u32, u8)>() + ANSWERS * size_of::<(u16, RateMessage)>();
        (buckets + if workers > 1 { messages } else { 0 }) as u64
    }

    /// The key of a request. It depends on the limit's name, not on its place, so that a bucket outlives changes of the configuration.
    pub fn key(&self, listener: u16, limit: &RateLimit, value: KeyValue<'_>) -> u64 {
        let [left, right] = self.secret;
        let mut hasher = SipHasher13::new_with_keys(left, right);
        hasher.write_u16(listener);
        hasher.write(limit.name.as_bytes());
        // ends the name, and tells the kinds of values apart
        match value {
            KeyValue::All => hasher.write_u16(0xff00),
            KeyValue::Client(IpAddr::V4(address)) => {
                hasher.write_u16(0xff01);
                hasher.write_u32(address.to_bits());
            }
            KeyValue::Client(IpAddr::V6(address)) => {
                hasher.write_u16(0xff02);
                hasher.write_u64((address.to_bits() >> 64) as u64);
            }
            KeyValue::Header(None) => hasher.write_u16(0xff03),
            KeyValue::Header(Some(value)) => {
                hasher.write_u16(0xff04);
                hasher.write(value);
            }
        }
        // 0 is a free place
        hasher.finish().max(1)
    }

    /// The worker that keeps a key's bucket.
    pub fn owner(&self, key: u64) -> u16 {
        slot(key, usize::from(self.workers)) as u16
    }

    /// Takes a token of a key's bucket.
    pub fn take(&mut self, listener: u16, limit: &RateLimit, key: u64, now: Instant) -> Taken {
        let rate = Rate::of(limit);
        let now_ns = nanoseconds(now);
        let is_owner = self.owner(key) == self.worker;
        let lease = rate.lease(self.workers);
        let Some((set, way)) = self.place(key, now) else {
            self.crowded += 1;
            let limits = self.key(listener, limit, KeyValue::All);
            let at = slot(limits, OVERFLOWS);
            let bucket = self.overflows.get_mut(at);
            return bucket
                .map_or(Ok(()), |bucket| bucket.take(&rate, now_ns))
                .map_or_else(refused, |()| Taken::Yes);
        };
        let Some(bucket) = self.buckets.get_mut(set).and_then(|buckets| buckets.get_mut(way)) else {
            return Taken::Yes;
        };
        bucket.cost_ns = rate.cost_ns;
        if !is_owner {
            if bucket.unconfirmed > 0 && now.since(Instant(bucket.told_at)) > UNCONFIRMED_US {
                bucket.untold = bucket.untold.saturating_add(std::mem::take(&mut bucket.unconfirmed));
            }
            if bucket.untold.saturating_add(bucket.unconfirmed) >= lease {
                self.tell(set, way);
                return refused(0);
            }
        }
        if let Err(wait_ns) = bucket.take(&rate, now_ns) {
            return refused(wait_ns);
        }
        if !is_owner {
            bucket.untold += 1;
            self.tell(set, way);
        }
        Taken::Yes
    }

    /// The next message, and the worker that it is for. To be asked only where it can be sent.
    pub fn poll_message(&mut self, now: Instant) -> Option<(u16, RateMessage)> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        while let Some((set, way)) = self.telling.pop_front() {
            let (set, way) = (set as usize, usize::from(way));
            let Some(bucket) = self.buckets.get_mut(set).and_then(|buckets| buckets.get_mut(way)) else {
                continue;
            };
            bucket.is_queued = false;
            // one message at a time: the answer to it asks for the next
            if bucket.untold == 0 || bucket.unconfirmed > 0 {
                continue;
            }
            bucket.sequence = bucket.sequence.wrapping_add(1);
            bucket.unconfirmed = std::mem::take(&mut bucket.untold);
            bucket.told_at = now.0;
            let (tokens, cost_ns, sequence) = (bucket.unconfirmed, bucket.cost_ns, bucket.sequence);
            let key = self.keys.get(set).and_then(|keys| keys.get(way)).copied()?;
            return Some((self.owner(key), RateMessage::Spent { key, tokens, cost_ns, sequence }));
        }
        None
    }

    /// A message of another worker.
    pub fn receive(&mut self, from: u16, message: RateMessage, now: Instant) {
        let now_ns = nanoseconds(now);
        match message {
            RateMessage::Spent { key, tokens, cost_ns, sequence } => {
                let spent_ns = cost_ns.saturating_mul(u64::from(tokens));
                let place = self.place(key, now);
                let bucket = place.and_then(|(set, way)| self.buckets.get_mut(set)?.get_mut(way));
                // without a place nothing is known but what the message says
                let busy_ns = bucket.map_or(spent_ns, |bucket| {
                    bucket.full_at = bucket.full_at.max(now_ns).saturating_add(spent_ns);
                    bucket.full_at - now_ns
                });
                if self.answers.len() < ANSWERS && from < self.workers {
                    self.answers.push_back((from, RateMessage::Level { key, busy_ns, sequence }));
                }
            }
            RateMessage::Level { key, busy_ns, sequence } => {
                let Some((set, way)) = self.find(key) else { return };
                let bucket = self.buckets.get_mut(set).and_then(|buckets| buckets.get_mut(way));
                let Some(bucket) =
                    bucket.filter(|bucket| bucket.sequence == sequence && bucket.unconfirmed > 0)
                else {
                    return;
                };
                bucket.unconfirmed = 0;
                let untold_ns = bucket.cost_ns.saturating_mul(u64::from(bucket.untold));
                bucket.full_at = now_ns.saturating_add(busy_ns).saturating_add(untold_ns);
                if bucket.untold > 0 {
                    self.tell(set, way);
                }
            }
        }
    }

    /// Requests whose key found no place since the last call.
    #[inline]
    pub fn take_crowded(&mut self) -> u64 {
        std::mem::take(&mut self.crowded)
    }

    /// Remembers that there is something to tell of a bucket.
    fn tell(&mut self, set: usize, way: usize) {
        let bucket = self.buckets.get_mut(set).and_then(|buckets| buckets.get_mut(way));
        if let Some(bucket) = bucket.filter(|bucket| !bucket.is_queued && bucket.unconfirmed == 0) {
            bucket.is_queued = true;
            self.telling.push_back((set as u32, way as u8));
        }
    }

    fn set_of(&self, key: u64) -> usize {
        key as usize & (self.keys.len() - 1)
    }

    fn find(&self, key: u64) -> Option<(usize, usize)> {
        let set = self.set_of(key);
        let way = self.keys.get(set)?.iter().position(|other| *other == key)?;
        Some((set, way))
    }

    /// The place of a key's bucket, perhaps one that was free or idle.
    fn place(&mut self, key: u64, now: Instant) -> Option<(usize, usize)> {
        if let Some(place) = self.find(key) {
            return Some(place);
        }
        let set = self.set_of(key);
        let (keys, buckets) = self.keys.get_mut(set).zip(self.buckets.get_mut(set))?;
        let mut places = keys.iter_mut().zip(buckets).enumerate();
        let (way, (place, bucket)) = places.find(|(_, (key, bucket))| **key == 0 || bucket.is_idle(now))?;
        *place = key;
        // an answer to who was there before must not be taken for one to it
        *bucket = Bucket { sequence: bucket.sequence, ..Bucket::default() };
        Some((set, way))
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
mod tests;
