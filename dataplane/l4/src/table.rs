//! The flow table of one worker and one family: records in a slab, an index over them, and the rules for when it is full.
//!
//! Records never move; the index holds one word per tuple (two where replies come back through Weir). Only the
//! records are kept across processes: [`FlowTable::recover`] proves each and builds the index anew. Bounded: when the slab is full,
//! [`FlowTable::make_room`] names an expired, an embryonic or a closing flow near its clock hand, oldest first, never an
//! established one. It chooses several at a time and ahead of need, so that their index lines are there when they are ended.

use std::collections::VecDeque;
use std::ops::DerefMut;

use crate::entry::{Address, Entry, Flow, State};
use weir_index::{Bucket, Candidate, Direction, Index, MAX_SLOTS};

/// Records that [`FlowTable::make_room`] looks at before it gives up: a table half full of established flows, which lie
/// together, must not hide the flood behind them.
const EVICTION_REACH: usize = 512;
/// Records among which it compares ages: from so many it chooses up to [`EVICTION_CHOICE`].
const EVICTION_STRETCH: usize = 32;
/// Flows that it chooses at a time.
const EVICTION_CHOICE: usize = 8;
/// Records below which it chooses only once nothing chosen is left: its hand could come round to a record that already waits.
const EVICTION_AHEAD: usize = 4 * EVICTION_REACH;
/// States by their numbers, padded.
const STATES: usize = 8;
/// End of the list of free records.
const NO_SLOT: u32 = u32::MAX;

/// Ticks that a flow in each state may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// [`State::Embryonic`].
    pub embryonic: u32,
    /// [`State::Established`], and half-closed flows.
    pub established: u32,
    /// [`State::Closing`].
    pub closing: u32,
    /// [`State::Udp`].
    pub udp: u32,
}

impl Lifetimes {
    /// Ticks for a state; a free record lives for ever.
    #[inline]
    pub fn of(&self, state: State) -> u32 {
        match state {
            State::Free => u32::MAX,
            State::Embryonic => self.embryonic,
            State::Established | State::ClientClosed | State::ServerClosed => self.established,
            State::Closing => self.closing,
            State::Udp => self.udp,
        }
    }
}

/// What recovery found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Records taken over.
    pub recovered: u32,
    /// Records that were in use but did not verify or were not wanted any more.
    pub discarded: u32,
}

/// Why a flow could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// No free record; [`FlowTable::make_room`] may make one.
    Slab,
    /// The index has no room within reach of the flow's hash.
    Index,
}

/// A flow that was chosen to make room.
#[derive(Clone, Copy, Debug)]
struct Victim {
    slot: u32,
    /// Its last tick then: a later one means that it was heard of since, or is another flow.
    last_seen: u32,
}

/// What may go, by state: see [`Ranks::of`].
struct Ranks {
    now: u32,
    lifetimes: [u32; STATES],
}

impl Ranks {
    const EXPIRED: u64 = 3;
    const EMBRYONIC: u64 = 2;
    const CLOSING: u64 = 1;
    /// By state, before it expires.
    const EARLY: [u64; STATES] = [0, Self::EMBRYONIC, 0, 0, 0, Self::CLOSING, 0, 0];

    fn new(now: u32, lifetimes: &Lifetimes) -> Self {
        let of = |state| lifetimes.of(State::from_u8(state).unwrap_or(State::Closing));
        Self { now, lifetimes: [0, 1, 2, 3, 4, 5, 6, 7].map(of) }
    }

    /// 0: it must stay. Else the greater, the sooner it goes.
    #[inline(always)]
    fn of(&self, state: u8, last_seen: u32) -> u64 {
        let state = usize::from(state) % STATES;
        let lifetime = self.lifetimes.get(state).copied().unwrap_or(u32::MAX);
        if self.now.saturating_sub(last_seen) > lifetime {
            return Self::EXPIRED;
        }
        Self::EARLY.get(state).copied().unwrap_or(0)
    }
}

/// Records and index.
#[derive(Debug)]
pub struct FlowTable<A: Address, E, B> {
    entries: E,
    index: Index<B>,
    free: u32,
    live: u32,
    hand: usize,
    victims: VecDeque<Victim>,
    sweep: usize,
    seed: [u64; 2],
    family: std::marker::PhantomData<A>,
}

impl<A: Address, E, B> FlowTable<A, E, B>
where
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    /// Takes the storage over. The records may hold flows of a previous process: each of them that verifies and that
    /// `keep` wants (which returns the hash of its forward tuple and, where replies are seen, of its reverse one) stays.
    ///
    /// At most [`MAX_SLOTS`] records are used.
    pub fn recover(
        entries: E,
        buckets: B,
        seed: [u64; 2],
        mut keep: impl FnMut(&Flow<A>) -> Option<(u32, Option<u32>)>,
    ) -> (Self, Recovery) {
        let family = std::marker::PhantomData;
        let index = Index::new(buckets);
        let victims = VecDeque::with_capacity(2 * EVICTION_CHOICE);
        let mut table =
            Self { entries, index, free: NO_SLOT, live: 0, hand: 0, victims, sweep: 0, seed, family };
        let mut recovery = Recovery::default();
        // from the end, so that the list of free records starts at the front and new flows fill memory in order
        for slot in (0..table.capacity()).rev() {
            let Some(entry) = table.entries.get(slot).copied() else { continue };
            if entry.state() == State::Free as u8 {
                table.release(slot as u32);
                continue;
            }
            let wanted = State::from_u8(entry.state()).is_some() && entry.verifies();
            let hashes = if wanted { keep(&entry.flow()) } else { None };
            if let Some((forward, reverse)) = hashes
                && table.restore(slot as u32, entry.flow(), forward, reverse)
            {
                recovery.recovered += 1;
            } else {
                recovery.discarded += 1;
                table.release(slot as u32);
            }
        }
        (table, recovery)
    }

    fn restore(&mut self, slot: u32, flow: Flow<A>, forward: u32, reverse: Option<u32>) -> bool {
        if !self.index.insert(forward, slot, Direction::Forward) {
            return false;
        }
        if let Some(hash) = reverse
            && !self.index.insert(hash, slot, Direction::Reverse)
        {
            self.index.remove(forward, slot, Direction::Forward);
            return false;
        }
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            *entry = A::Entry::new(&Flow { reverse: reverse.unwrap_or(0), ..flow });
        }
        self.live += 1;
        true
    }

    /// Records that the table can hold.
    pub fn capacity(&self) -> usize {
        self.entries.len().min(MAX_SLOTS)
    }

    /// The storage of the records.
    pub fn storage(&mut self) -> &mut E {
        &mut self.entries
    }

    /// Records in use.
    pub fn live(&self) -> u32 {
        self.live
    }

    /// The key of the table's hash.
    #[inline]
    pub fn seed(&self) -> [u64; 2] {
        self.seed
    }

    /// The index, to prefetch and to guess.
    #[inline]
    pub fn index(&self) -> &Index<B> {
        &self.index
    }

    /// Asks for a record's line.
    #[inline]
    pub fn prefetch(&self, slot: u32) {
        hugepages::prefetch::read_slice_at(&self.entries, slot as usize);
    }

    /// Asks for the record that the next flow will take.
    #[inline]
    pub fn prefetch_free(&self) {
        hugepages::prefetch::read_slice_at(&self.entries, self.free as usize);
    }

    /// The record of a slot.
    #[inline]
    pub fn entry(&self, slot: u32) -> Option<&A::Entry> {
        self.entries.get(slot as usize)
    }

    /// The record of a slot, to change its state.
    #[inline]
    pub fn entry_mut(&mut self, slot: u32) -> Option<&mut A::Entry> {
        self.entries.get_mut(slot as usize)
    }

    /// Finds the record for which `matches` holds.
    #[inline]
    pub fn find(
        &self,
        hash: u32,
        mut matches: impl FnMut(&A::Entry, Direction) -> bool,
    ) -> Option<Candidate> {
        let entries = &self.entries;
        self.index.find(hash, |candidate| {
            entries.get(candidate.slot as usize).is_some_and(|entry| matches(entry, candidate.direction))
        })
    }

    /// Adds a flow under the hash of its forward tuple and, where `flow.reverse` is not 0, of its reverse one.
    pub fn insert(&mut self, flow: &Flow<A>, forward: u32) -> Result<u32, Full> {
        let slot = self.free;
        let next = self.entries.get(slot as usize).map(|entry| entry.last_seen()).ok_or(Full::Slab)?;
        if !self.index.insert(forward, slot, Direction::Forward) {
            return Err(Full::Index);
        }
        if flow.reverse != 0 && !self.index.insert(flow.reverse, slot, Direction::Reverse) {
            self.index.remove(forward, slot, Direction::Forward);
            return Err(Full::Index);
        }
        self.free = next;
        self.live += 1;
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            // the state is the last byte of the record that a crash could leave without the others: they are under `check`
            *entry = A::Entry::new(flow);
        }
        Ok(slot)
    }

    /// Ends a flow. `forward` is the hash of its forward tuple. Returns what it was.
    pub fn remove(&mut self, slot: u32, forward: u32) -> Option<Flow<A>> {
        let flow = self.entries.get(slot as usize)?.flow();
        if flow.state == State::Free {
            return None;
        }
        self.index.remove(forward, slot, Direction::Forward);
        if flow.reverse != 0 {
            self.index.remove(flow.reverse, slot, Direction::Reverse);
        }
        self.live = self.live.saturating_sub(1);
        self.release(slot);
        Some(flow)
    }

    fn release(&mut self, slot: u32) {
        let free = self.free;
        if let Some(entry) = self.entries.get_mut(slot as usize) {
            entry.free(free);
            self.free = slot;
        }
    }

    /// Whether a record has been silent for longer than its state allows.
    #[inline]
    fn expired(entry: &A::Entry, now: u32, lifetimes: &Lifetimes) -> bool {
        let state = State::from_u8(entry.state()).unwrap_or(State::Closing);
        state != State::Free && now.saturating_sub(entry.last_seen()) > lifetimes.of(state)
    }

    /// Looks at the next `count` records and returns the slot of the first expired one among them, if any; the next call
    /// goes on behind it. `None`: the stretch is done.
    pub fn next_expired(&mut self, count: &mut usize, now: u32, lifetimes: &Lifetimes) -> Option<u32> {
        let capacity = self.capacity();
        while *count > 0 {
            *count -= 1;
            let slot = self.sweep;
            self.sweep = if slot + 1 >= capacity { 0 } else { slot + 1 };
            if self.entries.get(slot).is_some_and(|entry| Self::expired(entry, now, lifetimes)) {
                return Some(slot as u32);
            }
        }
        None
    }

    /// Names a flow to end for a new one: expired, else embryonic, else closing, oldest first of a stretch before the clock
    /// hand; established and UDP flows only once expired. `forward` tells the hash of a flow's forward tuple.
    pub fn make_room(
        &mut self,
        now: u32,
        lifetimes: &Lifetimes,
        forward: impl Fn(&Flow<A>) -> Option<u32>,
    ) -> Option<u32> {
        let ranks = Ranks::new(now, lifetimes);
        if self.victims.len() < EVICTION_CHOICE && self.capacity() >= EVICTION_AHEAD {
            self.choose(&ranks, &forward);
        }
        for _ in 0..=2 * EVICTION_CHOICE {
            let Some(victim) = self.victims.pop_front() else {
                if !self.choose(&ranks, &forward) {
                    return None;
                }
                continue;
            };
            let stays = |entry: &A::Entry| {
                entry.last_seen() != victim.last_seen || ranks.of(entry.state(), entry.last_seen()) == 0
            };
            if !self.entries.get(victim.slot as usize).is_none_or(stays) {
                return Some(victim.slot);
            }
        }
        None
    }

    /// Looks for a stretch with flows that may go, and remembers the best of it; whether there was one in reach.
    #[inline(never)]
    fn choose(&mut self, ranks: &Ranks, forward: &impl Fn(&Flow<A>) -> Option<u32>) -> bool {
        let capacity = self.capacity();
        let mut looked = 0;
        while looked < EVICTION_REACH.min(capacity) {
            let first = self.hand;
            let last = (first + EVICTION_STRETCH).min(capacity);
            self.hand = if last == capacity { 0 } else { last };
            looked += last - first;
            let best = best_of(self.entries.get(first..last).unwrap_or_default(), ranks);
            // what is closing goes only where nothing of a higher rank does
            let least = if rank_of(best[0]) > Ranks::CLOSING { Ranks::EMBRYONIC } else { Ranks::CLOSING };
            for key in best.into_iter().take_while(|key| rank_of(*key) >= least) {
                let slot = first + (EVICTION_STRETCH - 1 - key as usize % EVICTION_STRETCH);
                let Some(entry) = self.entries.get(slot) else { continue };
                if let Some(hash) = forward(&entry.flow()) {
                    self.index.prefetch(hash);
                }
                if entry.reverse() != 0 {
                    self.index.prefetch(entry.reverse());
                }
                self.victims.push_back(Victim { slot: slot as u32, last_seen: entry.last_seen() });
            }
            if best[0] != 0 {
                // the next stretch, for the next time
                for slot in
                    (self.hand..self.hand + EVICTION_STRETCH).step_by((64 / size_of::<A::Entry>()).max(1))
                {
                    self.prefetch(slot as u32);
                }
                return true;
            }
        }
        false
    }

    /// All records in use.
    pub fn flows(&self) -> impl Iterator<Item = (u32, Flow<A>)> {
        let used = |(slot, entry): (usize, &A::Entry)| {
            (entry.state() != State::Free as u8).then(|| (slot as u32, entry.flow()))
        };
        self.entries.iter().enumerate().take(self.capacity()).filter_map(used)
    }
}

/// The records of a stretch that go first, best first: rank, age, then place (the first record has the greatest); 0 is none.
fn best_of<E: Entry>(stretch: &[E], ranks: &Ranks) -> [u64; EVICTION_CHOICE] {
    const OLDEST: u32 = 1 << 24;
    let mut best = [0; EVICTION_CHOICE];
    for (entry, place) in stretch.iter().zip((0..EVICTION_STRETCH as u64).rev()) {
        let rank = ranks.of(entry.state(), entry.last_seen());
        let age = u64::from(ranks.now.saturating_sub(entry.last_seen()).min(OLDEST));
        let mut key = rank << 56 | age << 16 | place;
        if rank == 0 || key <= best[EVICTION_CHOICE - 1] {
            continue;
        }
        for kept in &mut best {
            if key > *kept {
                std::mem::swap(&mut key, kept);
            }
        }
    }
    best
}

#[inline(always)]
fn rank_of(key: u64) -> u64 {
    key >> 56
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{EntryV4, NO_SNAT};
    use weir_index::buckets_for;

    type Table = FlowTable<u32, Vec<EntryV4>, Vec<Bucket>>;
    const LIFETIMES: Lifetimes = Lifetimes { embryonic: 10, established: 100, closing: 20, udp: 30 };

    fn empty(records: usize) -> (Vec<EntryV4>, Vec<Bucket>) {
        let zero = EntryV4::new(&flow(0, State::Free, 0));
        (vec![zero; records], vec![Bucket::EMPTY; buckets_for(records)])
    }

    fn flow(client: u32, state: State, last_seen: u32) -> Flow<u32> {
        Flow {
            client,
            client_port: 1,
            vip_port: 80,
            protocol: 6,
            listener: 0,
            backend: 0,
            snat: NO_SNAT,
            snat_port: 0,
            reverse: hash(client) ^ 0xffff_0000,
            state,
            last_seen,
        }
    }

    fn hash(client: u32) -> u32 {
        client.wrapping_mul(0x9e37_79b9)
    }

    fn table(records: usize) -> Table {
        let (entries, buckets) = empty(records);
        Table::recover(entries, buckets, [1, 2], |_| None).0
    }

    fn room(table: &mut Table, now: u32) -> Option<u32> {
        table.make_room(now, &LIFETIMES, |flow| Some(hash(flow.client)))
    }

    #[test]
    fn what_goes_in_is_found_both_ways_and_comes_out() {
        let mut table = table(100);
        for client in 0..100 {
            table.insert(&flow(client, State::Established, 0), hash(client)).unwrap();
        }
        assert_eq!(table.insert(&flow(100, State::Established, 0), hash(100)), Err(Full::Slab));
        for client in 0..100 {
            let found =
                table.find(hash(client), |e, d| d == Direction::Forward && e.client() == client).unwrap();
            let reverse = hash(client) ^ 0xffff_0000;
            let back = table.find(reverse, |e, d| d == Direction::Reverse && e.client() == client).unwrap();
            assert_eq!(found.slot, back.slot);
            assert_eq!(table.remove(found.slot, hash(client)).map(|f| f.client), Some(client));
            assert_eq!(table.remove(found.slot, hash(client)), None);
            assert!(table.find(hash(client), |e, _| e.client() == client).is_none());
        }
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn an_established_flow_is_never_chosen_for_a_new_one() {
        let mut table = table(64);
        for client in 0..64 {
            let state = if client == 40 { State::Embryonic } else { State::Established };
            table.insert(&flow(client, state, 5), hash(client)).unwrap();
        }
        let victim = room(&mut table, 6).unwrap();
        assert_eq!(table.entry(victim).unwrap().client(), 40);
        table.remove(victim, hash(40));
        table.insert(&flow(99, State::Established, 5), hash(99)).unwrap();
        assert_eq!(room(&mut table, 6), None);
        // silence ends them
        assert!(room(&mut table, 106).is_some());
    }

    #[test]
    fn embryonic_goes_before_closing_and_old_before_young() {
        let mut table = table(64);
        let states =
            [(State::Closing, 0), (State::Embryonic, 3), (State::Embryonic, 1), (State::Established, 0)];
        for (client, (state, seen)) in (0u32..).zip(states) {
            table.insert(&flow(client, state, seen), hash(client)).unwrap();
        }
        let mut order = vec![];
        while let Some(victim) = room(&mut table, 4) {
            let client = table.entry(victim).unwrap().client();
            order.push(client);
            table.remove(victim, hash(client));
        }
        assert_eq!(order, [2, 1, 0]);
    }

    #[test]
    fn what_was_chosen_ahead_is_asked_again_before_it_goes() {
        let mut table = table(EVICTION_AHEAD);
        for client in 0..EVICTION_AHEAD as u32 {
            table.insert(&flow(client, State::Embryonic, 5), hash(client)).unwrap();
        }
        assert_eq!(room(&mut table, 6), Some(0));
        let waiting: Vec<u32> = table.victims.iter().map(|victim| victim.slot).collect();
        assert!(waiting.starts_with(&[1, 2, 3]), "{waiting:?}");
        // established meanwhile, heard of again, and ended
        table.entry_mut(1).unwrap().set_state(State::Established);
        table.entry_mut(2).unwrap().set_last_seen(6);
        table.remove(3, hash(3));
        assert_eq!(room(&mut table, 6), Some(4));
        // all that waits is gone: others are chosen
        for slot in waiting.into_iter().filter(|slot| *slot > 3) {
            table.entry_mut(slot).unwrap().set_state(State::Established);
        }
        assert_eq!(room(&mut table, 6), Some(EVICTION_STRETCH as u32));
    }

    #[test]
    fn a_flood_goes_round_the_table_and_leaves_what_is_established() {
        for records in [40, 1_000, 5_000] {
            let mut table = table(records);
            let mut clients = 0..;
            for client in clients.by_ref().take(records) {
                let state = if client % 3 == 0 { State::Established } else { State::Embryonic };
                table.insert(&flow(client, state, 0), hash(client)).unwrap();
            }
            for client in clients.take(records * 3) {
                let now = client / records as u32;
                let victim = room(&mut table, now).unwrap();
                let ended = *table.entry(victim).unwrap();
                assert_eq!(ended.state(), State::Embryonic as u8, "{records} records, flow {client}");
                table.remove(victim, hash(ended.client())).unwrap();
                table.insert(&flow(client, State::Embryonic, now), hash(client)).unwrap();
            }
            let established = table.flows().filter(|(_, flow)| flow.state == State::Established).count();
            assert_eq!((established, table.live()), (records.div_ceil(3), records as u32));
        }
    }

    #[test]
    fn the_sweep_ends_each_state_at_its_own_time() {
        let mut table = table(16);
        for (client, state) in
            (0u32..).zip([State::Embryonic, State::Established, State::Closing, State::Udp])
        {
            table.insert(&flow(client, state, 0), hash(client)).unwrap();
        }
        let mut ended = vec![];
        for now in 0..=101 {
            let mut count = 16;
            while let Some(slot) = table.next_expired(&mut count, now, &LIFETIMES) {
                let client = table.entry(slot).unwrap().client();
                table.remove(slot, hash(client));
                ended.push((now, client));
            }
        }
        assert_eq!(ended, [(11, 0), (21, 2), (31, 3), (101, 1)]);
    }

    #[test]
    fn recovery_keeps_what_verifies_and_frees_the_rest() {
        let mut first = table(32);
        for client in 0..20 {
            first.insert(&flow(client, State::Established, 7), hash(client)).unwrap();
        }
        let mut entries = first.entries;
        // a record torn in the middle of a write: new client, old check
        let mut torn = entries[3];
        zerocopy::IntoBytes::as_mut_bytes(&mut torn)[0] ^= 0xff;
        entries[3] = torn;
        let keep = |flow: &Flow<u32>| (flow.client != 5).then(|| (hash(flow.client), Some(77)));
        let (mut second, recovery) =
            Table::recover(entries, vec![Bucket::EMPTY; buckets_for(32)], [1, 2], keep);
        assert_eq!(recovery, Recovery { recovered: 18, discarded: 2 });
        assert_eq!(second.live(), 18);
        let found = second.find(hash(6), |entry, _| entry.client() == 6).unwrap();
        assert_eq!(second.entry(found.slot).unwrap().reverse(), 77);
        for client in 100..114 {
            second.insert(&flow(client, State::Established, 7), hash(client)).unwrap();
        }
        assert_eq!(second.insert(&flow(200, State::Udp, 7), hash(200)), Err(Full::Slab));
    }
}
