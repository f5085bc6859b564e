//! Which link address has a next hop? The neighbour cache (RFC 826, RFC 4861 §7.3), sans-IO, run by the management thread.
//!
//! Next hops that the configuration names (gateways, backends) are asked for until they answer and never forgotten;
//! clients on the link are asked for when a worker wants them and forgotten after a while. Bounded: [`LIMIT`] dynamic
//! entries, the oldest makes room. Workers hold copies that [`Neighbours::poll`] keeps current.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use weir_l4::services::FoldState;
use weir_net::Mac;

/// Most dynamic entries.
pub const LIMIT: usize = 4_096;
/// First wait for an answer, milliseconds; doubles up to [`RETRY_MOST_MS`]. Below RFC 4861's RETRANS_TIMER of a second, because traffic waits.
const RETRY_FIRST_MS: u64 = 100;
/// RFC 4861 §10: RETRANS_TIMER.
const RETRY_MOST_MS: u64 = 1_000;
/// RFC 4861 §10: MAX_UNICAST_SOLICIT and MAX_MULTICAST_SOLICIT are 3; two more, because retries start early.
const TRIES: u32 = 5;
/// Between two claims of the same address that are looked into, milliseconds: forged ones cost at most a question a second.
const DOUBT_MS: u64 = 1_000;
/// Dynamic entries are forgotten after so long, milliseconds.
const FORGET_MS: u64 = 300_000;

/// Number of a next hop, stable while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourId(pub u32);

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask for the link address: everyone, or where it was last seen.
    Ask {
        /// Port to ask on.
        port: u16,
        /// Whose address is asked for.
        address: IpAddr,
        /// Where it was last seen.
        known: Option<Mac>,
    },
    /// Tell the workers.
    Tell(Update),
}

/// A change of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// Which.
    pub id: NeighbourId,
    /// Its port.
    pub port: u16,
    /// Its address.
    pub address: IpAddr,
    /// Its link address; `None` is unreachable.
    pub mac: Option<Mac>,
    /// Nobody needs it any more: forget the id.
    pub forgotten: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Asked, no answer yet.
    Incomplete,
    /// Answered a short while ago.
    Reachable,
    /// Asked again; the old link address is still used.
    Probe,
    /// Somebody else claimed the address: everyone is asked; the old link address is still used.
    Doubt,
}

#[derive(Clone, Debug)]
struct Entry {
    id: NeighbourId,
    port: u16,
    address: IpAddr,
    mac: Option<Mac>,
    state: State,
    tries: u32,
    due_ms: u64,
    configured: bool,
    born_ms: u64,
    changed: bool,
    /// When a claim was last doubted.
    doubted_ms: Option<u64>,
    /// The workers were told that it does not answer.
    failed: bool,
}

/// The cache.
#[derive(Clone, Debug)]
pub struct Neighbours {
    by_id: HashMap<NeighbourId, Entry, FoldState>,
    by_address: HashMap<(u16, IpAddr), NeighbourId>,
    next_id: u32,
    /// Ids that the workers have been told to forget. They index by id, so ids must stay few, whatever addresses are asked for.
    free_ids: Vec<NeighbourId>,
    reachable_ms: u64,
    forgotten: Vec<Update>,
}

impl Neighbours {
    /// An empty cache whose answers are good for `reachable_ms`.
    pub fn new(reachable_ms: u64) -> Self {
        Self {
            by_id: HashMap::default(),
            by_address: HashMap::new(),
            next_id: 0,
            free_ids: Vec::new(),
            reachable_ms,
            forgotten: Vec::new(),
        }
    }

    /// Changes for how long an answer is good.
    pub fn set_reachable_ms(&mut self, reachable_ms: u64) {
        self.reachable_ms = reachable_ms;
    }

    /// The id of a next hop that the configuration names.
    pub fn configured(&mut self, port: u16, address: IpAddr, now_ms: u64) -> NeighbourId {
        let id = self.entry(port, address, now_ms);
        if let Some(entry) = self.by_id.get_mut(&id) {
            entry.configured = true;
        }
        id
    }

    /// The configuration names only these any more; the others become dynamic.
    pub fn retain_configured(&mut self, wanted: &HashSet<NeighbourId, FoldState>, now_ms: u64) {
        for entry in self.by_id.values_mut().filter(|entry| !wanted.contains(&entry.id)) {
            if entry.configured {
                entry.configured = false;
                entry.born_ms = now_ms;
            }
        }
    }

    /// A worker has a packet for this address.
    pub fn wanted(&mut self, port: u16, address: IpAddr, now_ms: u64) {
        // the cheap questions first: a flood of strangers asks this for each of its packets
        let is_new = self.by_id.len() >= LIMIT && !self.by_address.contains_key(&(port, address));
        if is_new && self.by_id.values().filter(|entry| !entry.configured).count() >= LIMIT {
            let oldest =
                self.by_id.values().filter(|entry| !entry.configured).min_by_key(|entry| entry.born_ms);
            if let Some(id) = oldest.map(|entry| entry.id) {
                self.forget(id);
            }
        }
        let id = self.entry(port, address, now_ms);
        if let Some(entry) = self.by_id.get_mut(&id) {
            if entry.mac.is_some() {
                // the worker that asks has not been told yet, or forgot
                entry.changed = true;
            } else if entry.failed {
                entry.failed = false;
                entry.tries = 0;
                entry.due_ms = now_ms;
            }
        }
    }

    fn entry(&mut self, port: u16, address: IpAddr, now_ms: u64) -> NeighbourId {
        if let Some(id) = self.by_address.get(&(port, address)) {
            return *id;
        }
        let id = self.free_ids.pop().unwrap_or_else(|| {
            let id = NeighbourId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
            id
        });
        self.by_address.insert((port, address), id);
        let entry = Entry {
            id,
            port,
            address,
            mac: None,
            state: State::Incomplete,
            tries: 0,
            due_ms: now_ms,
            configured: false,
            born_ms: now_ms,
            changed: false,
            doubted_ms: None,
            failed: false,
        };
        self.by_id.insert(id, entry);
        id
    }

    fn forget(&mut self, id: NeighbourId) {
        if let Some(entry) = self.by_id.remove(&id) {
            self.by_address.remove(&(entry.port, entry.address));
            let (port, address) = (entry.port, entry.address);
            self.forgotten.push(Update { id, port, address, mac: None, forgotten: true });
        }
    }

    /// A message showed where an address is. `answers`: it was sent to us in answer (RFC 4861 §7.3.1).
    ///
    /// A link address that differs from the one in use is believed only from an answer to a question of ours: hearsay
    /// (RFC 826 merge flag, RFC 4861 §7.2.5) and answers that nobody asked for make us ask everyone, at most once in
    /// [`DOUBT_MS`], while traffic goes on to where it went. So a gateway that moved is followed within a round trip, and a
    /// single forged message moves nothing. Stricter than RFC 4861 §7.2.5, which takes an override at once.
    pub fn received(&mut self, port: u16, address: IpAddr, mac: Mac, answers: bool, now_ms: u64) {
        let Some(entry) = self.by_address.get(&(port, address)).and_then(|id| self.by_id.get_mut(id)) else {
            return;
        };
        let asked = entry.state != State::Reachable;
        if entry.mac.is_some_and(|known| known != mac) && !(answers && asked) {
            if entry.doubted_ms.is_none_or(|at| now_ms.saturating_sub(at) >= DOUBT_MS) {
                entry.doubted_ms = Some(now_ms);
                entry.state = State::Doubt;
                entry.tries = 0;
                entry.due_ms = now_ms;
            }
            return;
        }
        if entry.mac != Some(mac) {
            entry.mac = Some(mac);
            entry.changed = true;
        }
        entry.failed = false;
        if answers || entry.state == State::Incomplete {
            entry.state = State::Reachable;
            entry.tries = 0;
            entry.due_ms = now_ms + self.reachable_ms;
        }
    }

    /// Whether this next hop's link address is known.
    pub fn is_resolved(&self, id: NeighbourId) -> bool {
        self.by_id.get(&id).is_some_and(|entry| entry.mac.is_some())
    }

    /// What is to be done now. Call often: a timer is late by as much as the calls are apart.
    pub fn poll(&mut self, now_ms: u64, mut act: impl FnMut(Action)) {
        let mut dead = Vec::new();
        for entry in self.by_id.values_mut() {
            if entry.due_ms <= now_ms {
                entry.step(now_ms, &mut act);
            }
            if entry.changed {
                entry.changed = false;
                act(Action::Tell(entry.update()));
            }
            if !entry.configured && now_ms.saturating_sub(entry.born_ms) > FORGET_MS {
                dead.push(entry.id);
            }
        }
        dead.into_iter().for_each(|id| self.forget(id));
        for update in self.forgotten.drain(..) {
            act(Action::Tell(update));
            self.free_ids.push(update.id);
        }
    }
}

impl Entry {
    fn update(&self) -> Update {
        Update { id: self.id, port: self.port, address: self.address, mac: self.mac, forgotten: false }
    }

    fn step(&mut self, now_ms: u64, act: &mut impl FnMut(Action)) {
        if self.state == State::Reachable {
            self.state = State::Probe;
            self.tries = 0;
        }
        if self.tries >= TRIES {
            // unreachable: tell once, and go on asking slowly where the configuration wants it
            let news = self.mac.take().is_some() || !self.failed;
            self.failed = true;
            self.state = State::Incomplete;
            if news {
                self.changed = true;
            }
            if !self.configured {
                self.due_ms = u64::MAX;
                return;
            }
        }
        let known = if self.state == State::Probe { self.mac } else { None };
        act(Action::Ask { port: self.port, address: self.address, known });
        let wait = (RETRY_FIRST_MS << self.tries.min(8)).min(RETRY_MOST_MS);
        self.tries = (self.tries + 1).min(TRIES);
        self.due_ms = now_ms + wait;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn actions(cache: &mut Neighbours, now_ms: u64) -> Vec<Action> {
        let mut actions = vec![];
        cache.poll(now_ms, |action| actions.push(action));
        actions
    }

    fn host() -> IpAddr {
        "198.18.0.1".parse().unwrap()
    }

    #[test]
    fn a_configured_next_hop_is_asked_for_until_it_answers() {
        let mut cache = Neighbours::new(30_000);
        let id = cache.configured(1, host(), 0);
        let ask = Action::Ask { port: 1, address: host(), known: None };
        let mut asked = 0;
        for now in 0..20_000 {
            asked += actions(&mut cache, now).iter().filter(|action| **action == ask).count();
        }
        assert!((20..=24).contains(&asked), "{asked}");
        cache.received(1, host(), MAC, true, 20_000);
        let update = Update { id, port: 1, address: host(), mac: Some(MAC), forgotten: false };
        assert_eq!(actions(&mut cache, 20_000), [Action::Tell(update)]);
        assert_eq!(actions(&mut cache, 49_999), []);
        // good for 30 s, then probed where it was, and kept while probed
        assert_eq!(actions(&mut cache, 50_000), [Action::Ask { port: 1, address: host(), known: Some(MAC) }]);
        assert!(cache.is_resolved(id));
        cache.received(1, host(), MAC, true, 50_001);
        assert_eq!(actions(&mut cache, 50_200), []);
    }

    #[test]
    fn silence_makes_it_unreachable_once() {
        let mut cache = Neighbours::new(1_000);
        let id = cache.configured(0, host(), 0);
        cache.received(0, host(), MAC, true, 0);
        let mut gone = 0;
        for now in 0..60_000 {
            let unreachable =
                |action: &&Action| matches!(action, Action::Tell(update) if update.mac.is_none());
            gone += actions(&mut cache, now).iter().filter(unreachable).count();
        }
        assert_eq!(gone, 1);
        assert!(!cache.is_resolved(id));
    }

    #[test]
    fn hearsay_creates_nothing_and_moves_nothing_before_it_was_asked_about() {
        let mut cache = Neighbours::new(30_000);
        cache.received(0, host(), MAC, false, 0);
        assert_eq!(actions(&mut cache, 0), []);
        let id = cache.configured(0, host(), 0);
        cache.received(0, host(), MAC, true, 0);
        actions(&mut cache, 0);
        let other = Mac([2, 0, 0, 0, 0, 2]);
        // forged, as hearsay or as an answer that nobody asked for: a question to everyone, once a second, and no change
        cache.received(0, host(), other, false, 1);
        assert_eq!(actions(&mut cache, 1), [Action::Ask { port: 0, address: host(), known: None }]);
        cache.received(0, host(), MAC, true, 2);
        for now in 3..1_001 {
            cache.received(0, host(), other, now % 2 == 0, now);
            assert_eq!(actions(&mut cache, now), [], "at {now}");
        }
        // moved in truth: the new owner answers the question
        cache.received(0, host(), other, false, 2_000);
        assert_eq!(actions(&mut cache, 2_000), [Action::Ask { port: 0, address: host(), known: None }]);
        cache.received(0, host(), other, true, 2_001);
        let update = Update { id, port: 0, address: host(), mac: Some(other), forgotten: false };
        assert_eq!(actions(&mut cache, 2_001), [Action::Tell(update)]);
    }

    #[test]
    fn dynamic_entries_are_bounded_and_forgotten() {
        let mut cache = Neighbours::new(1_000);
        for host in 0..LIMIT as u32 + 10 {
            cache.wanted(0, IpAddr::V4((0xc612_0000 + host).into()), u64::from(host));
        }
        assert_eq!(cache.by_id.len(), LIMIT);
        let told =
            actions(&mut cache, 5_000).iter().filter(|a| matches!(a, Action::Tell(u) if u.forgotten)).count();
        assert_eq!(told, 10);
        actions(&mut cache, FORGET_MS + 10_000);
        assert!(cache.by_id.is_empty() && cache.by_address.is_empty());
    }

    #[test]
    fn ids_stay_few_whatever_is_asked_for() {
        let mut cache = Neighbours::new(1_000);
        let mut highest = 0;
        for round in 0..100u32 {
            for host in 0..LIMIT as u32 {
                cache.wanted(0, IpAddr::V4((0xc612_0000 + round * 1_000 + host).into()), u64::from(round));
            }
            for action in actions(&mut cache, u64::from(round)) {
                if let Action::Tell(update) = action {
                    highest = highest.max(update.id.0);
                }
            }
        }
        let id = cache.configured(0, host(), 100);
        assert!(highest.max(id.0) < 3 * LIMIT as u32, "{highest} {id:?}");
    }

    #[test]
    fn an_id_is_not_used_again_before_the_workers_forgot_it() {
        let mut cache = Neighbours::new(1_000);
        cache.wanted(0, host(), 0);
        let mut holders = HashMap::new();
        for now in (0..2 * FORGET_MS + 10_000).step_by(100) {
            if now == FORGET_MS + 5_000 {
                cache.wanted(0, "198.18.0.2".parse().unwrap(), now);
                cache.received(0, "198.18.0.2".parse().unwrap(), MAC, true, now);
            }
            for action in actions(&mut cache, now) {
                let Action::Tell(update) = action else { continue };
                let holder = holders.entry(update.id).or_insert(update.address);
                assert_eq!(*holder, update.address, "at {now}");
                if update.forgotten {
                    holders.remove(&update.id);
                }
            }
        }
        assert!(holders.is_empty() && cache.next_id == 1, "{holders:?}, {}", cache.next_id);
    }

    #[test]
    fn a_failed_dynamic_entry_is_asked_for_again_when_wanted_again() {
        let mut cache = Neighbours::new(1_000);
        cache.wanted(0, host(), 0);
        for now in 0..10_000 {
            actions(&mut cache, now);
        }
        assert_eq!(actions(&mut cache, 20_000), []);
        cache.wanted(0, host(), 20_000);
        assert_eq!(actions(&mut cache, 20_000), [Action::Ask { port: 0, address: host(), known: None }]);
    }
}
