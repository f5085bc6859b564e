//! Which backend of its pool does a request go to?
//!
//! 1. The one that its sticky cookie names, where that can take it, also when it is being drained.
//! 2. Else one that the pool's algorithm picks among those with a weight. Passed over are those that are down, whose breaker doesn't permit
//!    it, that this request has tried, and that are at their limit.
//! 3. Else a backup, picked in the same way: backups serve when no other can.
//!
//! **Panic.** Where fewer than `panic_percent` of a pool's backends (those with a weight) are up and permitted, what is known of their
//! health is ignored until more are: the few that are left would break down under the load of all. Looked at every [`PANIC_US`].
//!
//! **Slow start.** A backend that was down, or whose breaker has closed, comes back with a tenth of its weight, which grows evenly to
//! the whole within `slow_start_ms`. Where backends take turns it lets that share of its turns pass; where a hash picks, that share of
//! hash values is its, and those it has it keeps; where connections are counted, its own count for more.
//!
//! Weights and turns are the pool's slots, as for connections ([`weir_l4::Pool`]); loads are those of this worker.

use weir_balance::counted::{least_connections, random_two, scatter};
use weir_balance::slot as slot_of_hash;
use weir_l4::Pool;
use weir_l4::select::next_turn;
use weir_l4::services::Algorithm;
use weir_net::hash::{StableKey, source_hash_v4, source_hash_v6};
use weir_tcp::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::rules::HttpPool;
use crate::rules::{Counted, PoolRules};

/// Further slots that are looked at when the backend of the first can't take a request, before all backends are.
const REHASHES: u64 = 8;
/// A whole share.
pub const WHOLE: u32 = 1_000;
/// The share that a backend comes back with.
const LEAST_SHARE: u32 = WHOLE / 10;
/// How often it is looked whether a pool is in panic where nothing has changed but time, microseconds.
pub const PANIC_US: u64 = 10_000;

/// What is known of a backend when a request wants one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// It is down, or in maintenance.
    pub is_down: bool,
    /// Its breaker does not permit a request.
    pub is_broken: bool,
    /// This request has tried it.
    pub is_tried: bool,
    /// It is at its limit; asked only where [`Standing::is_out`] doesn't hold.
    pub is_full: bool,
    /// Requests in progress.
    pub load: u32,
    /// Its share by slow start, 1 to [`WHOLE`]; [`Comebacks::share`].
    pub share: u32,
}

impl Standing {
    /// Up, permitted, with nothing to do.
    pub const FREE: Self =
        Self { is_down: false, is_broken: false, is_tried: false, is_full: false, load: 0, share: WHOLE };

    /// Whether it can't be asked, be it at its limit or not; `is_panic`: so many are down or broken that these may be.
    #[inline]
    pub fn is_out(&self, is_panic: bool) -> bool {
        self.is_tried || !is_panic && (self.is_down || self.is_broken)
    }
}

/// What a request says about its backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Its hash, where the pool's algorithm is one: [`hash_of`] or [`hash_of_source`].
    pub hash: u64,
    /// The position that its sticky cookie names.
    pub sticky: Option<u16>,
}

/// What became of a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The backend at this position of the pool.
    Position(u16),
    /// Those that are left are at their limits.
    Full,
    /// None is left.
    Nobody,
}

/// The hash of a header, a cookie, or a path: XXH3-64, equal on all nodes with the same key.
#[inline]
pub fn hash_of(key: StableKey, value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, key.seed())
}

/// The hash of a client's address; IPv4 in its mapped form (RFC 4291 §2.5.5.2).
#[inline]
pub fn hash_of_source(key: StableKey, address: u128) -> u64 {
    match std::net::Ipv6Addr::from_bits(address).to_ipv4_mapped() {
        Some(v4) => source_hash_v4(key, v4.to_bits()),
        None => source_hash_v6(key, &address.to_be_bytes()),
    }
}

/// Whether a pool was in panic when it was last looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Panic {
    /// [`PANIC_US`] since the start, and one.
    looked: u64,
    is_panic: bool,
}

/// What choices remember from one request to the next.
#[derive(Debug)]
pub struct Chooser {
    /// By pool: whose turn it is.
    cursors: Vec<u32>,
    panics: Vec<Panic>,
    random: u64,
}

impl Chooser {
    /// Begins with random numbers from a seed, another one for each worker.
    pub fn new(seed: u64) -> Self {
        Self { cursors: Vec::new(), panics: Vec::new(), random: scatter(seed) }
    }

    /// Makes room for so many pools, so that none has to be made for a request.
    pub fn adopt(&mut self, pools: usize) {
        if self.cursors.len() < pools {
            let random = self.random;
            // workers don't all begin with the same backend
            self.cursors.extend((self.cursors.len()..pools).map(|at| scatter(random ^ at as u64) as u32));
            self.panics.resize(pools, Panic::default());
        }
        self.look_again();
    }

    /// Backends went down or came back, or breakers have changed: whether pools are in panic is looked at with their next requests.
    pub fn look_again(&mut self) {
        self.panics.fill(Panic::default());
    }

    /// Chooses among a pool's backends; `standing` tells what is known of the one at a position. Without [`Self::adopt`] of a pool its
    /// turns begin anew with each request.
    pub fn choose(
        &mut self,
        pool: &Pool,
        rules: &PoolRules,
        http: &HttpPool,
        wanted: Wanted,
        now: Instant,
        mut standing: impl FnMut(u16, bool) -> Standing,
    ) -> Choice {
        let members = pool.members.len().min(usize::from(u16::MAX)) as u16;
        let is_panic = self.is_panic(pool, rules, http, now, &mut standing);
        let is_out = |one: &Standing| one.is_out(is_panic);
        if let Some(position) = wanted.sticky.filter(|position| *position < members) {
            let one = standing(position, is_panic);
            if !is_out(&one) && !one.is_full {
                return Choice::Position(position);
            }
        }
        let mut is_full = false;
        for wants_backups in [false, true] {
            if wants_backups && http.backups.is_empty() {
                break;
            }
            let candidate = |position: u16| {
                if position >= members || http.backups.binary_search(&position).is_ok() != wants_backups {
                    return None;
                }
                let one = standing(position, is_panic);
                if is_out(&one) {
                    return None;
                }
                is_full |= one.is_full;
                (!one.is_full).then_some(one)
            };
            if let Some(position) = self.pick(pool, rules, http, wanted.hash, candidate) {
                return Choice::Position(position);
            }
        }
        if is_full { Choice::Full } else { Choice::Nobody }
    }

    /// Lets the algorithm pick one; `candidate` tells what is known of those that can take the request.
    fn pick(
        &mut self,
        pool: &Pool,
        rules: &PoolRules,
        http: &HttpPool,
        hash: u64,
        mut candidate: impl FnMut(u16) -> Option<Standing>,
    ) -> Option<u16> {
        let position = |slot: usize| pool.slots.get(slot).copied().unwrap_or(u16::MAX);
        let is_slow = http.slow_start_ms > 0;
        let load = |one: &Standing| if is_slow { weighed(one) } else { one.load };
        match rules.counted {
            Some(Counted::LeastConn) => {
                let scheduled = position(self.next_turn(pool));
                return least_connections(&rules.weights, scheduled, |position| {
                    candidate(position).map(|one| load(&one))
                });
            }
            Some(Counted::RandomTwo) => {
                let random = self.next_random();
                // a pool may be so small that both draws are the slow one: they must not always count
                let seen = |one: &Standing, position| {
                    let drawn = scatter(random ^ !u64::from(position));
                    one.share >= WHOLE || slot_of_hash(drawn, WHOLE as usize) < one.share as usize
                };
                let seldom =
                    |position| candidate(position).filter(|one| seen(one, position)).map(|one| load(&one));
                let chosen = random_two(&pool.slots, &rules.weights, random, seldom);
                let scheduled = slot_of_hash(random, rules.weights.len()) as u16;
                let anyone = |position| candidate(position).map(|one| load(&one));
                return chosen.or_else(|| least_connections(&rules.weights, scheduled, anyone));
            }
            None => {}
        }
        let is_turns = pool.algorithm == Algorithm::RoundRobin;
        let mut first = None;
        for attempt in 0..=REHASHES {
            let slot = match attempt {
                _ if is_turns => self.next_turn(pool),
                0 => slot_of_hash(hash, pool.slots.len()),
                // a key moves to the same other backend on each node
                _ => slot_of_hash(scatter(hash.wrapping_add(attempt)), pool.slots.len()),
            };
            let position = position(slot);
            let Some(one) = candidate(position) else {
                first.get_or_insert(position);
                continue;
            };
            if one.share >= WHOLE {
                return Some(position);
            }
            let drawn = if is_turns { self.next_random() } else { scatter(hash ^ u64::from(position) << 32) };
            if slot_of_hash(drawn, WHOLE as usize) < one.share as usize {
                return Some(position);
            }
            first.get_or_insert(position);
        }
        // any that can, who stands behind the first choice before others
        let anyone = |position| candidate(position).map(|_| 0);
        least_connections(&rules.weights, first.unwrap_or(0), anyone)
    }

    fn next_turn(&mut self, pool: &Pool) -> usize {
        let cursor = self.cursors.get_mut(pool.index as usize);
        cursor.map_or(0, |cursor| next_turn(cursor, pool.slots.len()))
    }

    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(1);
        scatter(self.random)
    }

    /// Whether too few of a pool's backends may be used.
    fn is_panic(
        &mut self,
        pool: &Pool,
        rules: &PoolRules,
        http: &HttpPool,
        now: Instant,
        mut standing: impl FnMut(u16, bool) -> Standing,
    ) -> bool {
        if http.panic_percent == 0 {
            return false;
        }
        let looked = now.0 / PANIC_US + 1;
        let known = self.panics.get(pool.index as usize).copied().unwrap_or_default();
        if known.looked == looked {
            return known.is_panic;
        }
        let (mut all, mut good) = (0u64, 0u64);
        for (position, _) in (0..u16::MAX).zip(&rules.weights).filter(|(_, weight)| **weight > 0) {
            let one = standing(position, false);
            all += 1;
            good += u64::from(!one.is_down && !one.is_broken);
        }
        let is_panic = good * 100 < all * u64::from(http.panic_percent);
        if let Some(panic) = self.panics.get_mut(pool.index as usize) {
            *panic = Panic { looked, is_panic };
        }
        is_panic
    }
}

/// The load of a backend that has only a share of its weight; for all backends of a pool with slow start, so that they compare.
fn weighed(one: &Standing) -> u32 {
    let load = (u64::from(one.load) + 1) * u64::from(WHOLE) / u64::from(one.share.clamp(1, WHOLE));
    u32::try_from(load).unwrap_or(u32::MAX)
}

/// When backends came back, for slow start.
#[derive(Debug, Default)]
pub struct Comebacks {
    /// By backend.
    backends: Vec<Comeback>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Comeback {
    was_down: bool,
    since: Option<Instant>,
}

impl Comebacks {
    /// Takes over which backends of a generation are up: index, and whether it is. Who was down and is up comes back now; who was not
    /// there before begins as it is, at once.
    pub fn adopt(&mut self, backends: impl IntoIterator<Item = (u32, bool)>, now: Instant) {
        for (index, is_up) in backends {
            let at = index as usize;
            if self.backends.len() <= at {
                self.backends.resize(at + 1, Comeback::default());
            }
            let Some(backend) = self.backends.get_mut(at) else { continue };
            if is_up && backend.was_down {
                backend.since = Some(now);
            }
            backend.was_down = !is_up;
        }
    }

    /// A backend comes back without having been down: its breaker has closed.
    pub fn came_back(&mut self, backend: u32, now: Instant) {
        if let Some(backend) = self.backends.get_mut(backend as usize) {
            backend.since = Some(now);
        }
    }

    /// The share of its weight that a backend has, of [`WHOLE`].
    #[inline]
    pub fn share(&self, backend: u32, slow_start_ms: u32, now: Instant) -> u32 {
        let since = self.backends.get(backend as usize).and_then(|backend| backend.since);
        let Some(since) = since.filter(|_| slow_start_ms > 0) else { return WHOLE };
        let grown = now.since(since) * u64::from(WHOLE) / (u64::from(slow_start_ms) * 1_000);
        grown.clamp(u64::from(LEAST_SHARE), u64::from(WHOLE)) as u32
    }
}

/// The ids of a pool's backends that sticky cookies hold. Built off the packet path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StickyIds {
    /// Id and position, in the order of ids.
    by_id: Box<[(u64, u16)]>,
    by_position: Box<[u64]>,
}

/// Bytes of an id as a cookie's value.
pub const STICKY_BYTES: usize = 16;

impl StickyIds {
    /// Ids of backends by position: hashes of address (IPv4 in its mapped form) and port, so that they stay when the configuration
    /// is changed around them, and are equal on all nodes with the same key. A client that guesses addresses can tell which backend it
    /// has, unless the key is secret.
    pub fn new(key: StableKey, backends: impl IntoIterator<Item = (u128, u16)>) -> Self {
        let id = |(address, port): (u128, u16)| {
            let mut bytes = [0; 18];
            for (to, from) in
                bytes.iter_mut().zip(address.to_be_bytes().into_iter().chain(port.to_be_bytes()))
            {
                *to = from;
            }
            hash_of(key, &bytes)
        };
        let by_position: Box<[u64]> = backends.into_iter().take(usize::from(u16::MAX)).map(id).collect();
        let mut by_id: Box<[(u64, u16)]> = by_position.iter().copied().zip(0..).collect();
        by_id.sort_unstable();
        Self { by_id, by_position }
    }

    /// The value of a backend's cookie: 16 hexadecimal digits.
    pub fn value(&self, position: u16) -> Option<[u8; STICKY_BYTES]> {
        let id = *self.by_position.get(usize::from(position))?;
        let mut value = [0; STICKY_BYTES];
        for (at, digit) in (0..STICKY_BYTES as u32).rev().zip(&mut value) {
            let nibble = (id >> (4 * at) & 15) as u8;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        Some(value)
    }

    /// The position of the backend that a cookie's value names.
    pub fn position(&self, value: &[u8]) -> Option<u16> {
        if value.len() != STICKY_BYTES {
            return None;
        }
        let id = value.iter().try_fold(0u64, |id, digit| {
            let nibble = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            Some(id << 4 | u64::from(nibble))
        })?;
        let at = self.by_id.partition_point(|(other, _)| *other < id);
        self.by_id.get(at).filter(|(other, _)| *other == id).map(|(_, position)| *position)
    }
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;
