//! The engine: tables of connections and listeners, and the calls that a worker and its application make.
//!
//! Per burst: [`Engine::prepare`] and [`Engine::guess`] for each segment (they ask for memory), [`Engine::segment`] for each,
//! then the application reads [`Engine::poll_event`] and reacts, and [`Engine::transmit`] sends what all of that has
//! made due, one acknowledgement for all segments of a connection. [`Engine::advance`] runs the timers; it is due at
//! [`Engine::next_deadline`].

use std::collections::VecDeque;

use weir_index::{Bucket, Direction, Index};
use weir_net::hash::{flow_hash_2, flow_hash_5};
use weir_net::{Kind, Parsed, checksum, tcp};

use crate::buffer::{Buffer, Endpoint};
use crate::config::{ConnectionConfig, EngineConfig};
use crate::connection::{Flags, State};
use crate::counters::Counters;
use crate::event::{Ended, Events, Handle};
use crate::header::Header;
use crate::limit::ChallengeLimit;
use crate::options::TIMESTAMPS_LEN;
use crate::queue::Nodes;
use crate::secret::Secrets;
use crate::segment::Segment;
use crate::slab::Slab;
use crate::time::Instant;
use crate::time_wait::TimeWaits;
use crate::transmit::Transmit;
use crate::wheel::Wheel;

/// What is known of a segment's connection before its record is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup {
    pub(crate) hash: u32,
    pub(crate) guess: u32,
}

/// What became of a segment.
#[derive(Debug)]
pub enum Handled<B> {
    /// It was dealt with.
    Done,
    /// No connection has it: the caller finds its listener and calls [`Engine::unknown`].
    Unknown(B),
}

/// Why a connection can't be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// There is one with these addresses and ports.
    InUse,
    /// The table is full.
    Full,
    /// There is no such configuration.
    NoProfile,
}

/// A row of the listener table, and the configuration of connections that the application opens.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) config: ConnectionConfig,
    pub(crate) half_open: u32,
    /// Clients whose handshake was given up and of whom nobody was told.
    pub(crate) given_up: u64,
    /// Cookies were sent until then (tick); acknowledgements of unknown connections may be theirs.
    pub(crate) cookies_until: Option<u32>,
}

/// Connections by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Half open, either way.
    pub half_open: u32,
    /// Open both ways.
    pub established: u32,
    /// One side or both have closed.
    pub closing: u32,
    /// Over, not yet let go of by the application.
    pub closed: u32,
    /// In TIME_WAIT.
    pub time_wait: u32,
    states: States,
}

impl Census {
    /// Connections in a state; those that are [`State::Closed`] wait for the application to let go of them.
    pub fn of(&self, state: State) -> u32 {
        self.states.of(state)
    }
}

/// How many connections are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct States([u32; State::COUNT]);

impl States {
    fn of(&self, state: State) -> u32 {
        self.0.get(state as usize).copied().unwrap_or(0)
    }

    /// A connection goes from one state to another; `None` is none.
    #[inline]
    pub(crate) fn moves(&mut self, from: Option<State>, to: Option<State>) {
        if let Some(count) = from.and_then(|state| self.0.get_mut(state as usize)) {
            *count = count.saturating_sub(1);
        }
        if let Some(count) = to.and_then(|state| self.0.get_mut(state as usize)) {
            *count += 1;
        }
    }
}

/// TCP of one worker.
#[derive(Debug)]
pub struct Engine<B> {
    pub(crate) slab: Slab,
    pub(crate) index: Index<Vec<Bucket>>,
    pub(crate) wheel: Wheel,
    pub(crate) time_waits: TimeWaits,
    pub(crate) nodes: Nodes<B>,
    pub(crate) profiles: Vec<Option<Profile>>,
    pub(crate) secrets: Secrets,
    pub(crate) counters: Counters,
    pub(crate) states: States,
    pub(crate) config: EngineConfig,
    pub(crate) challenge: ChallengeLimit,
    /// Slots that may have something to send.
    pub(crate) ready: Vec<u32>,
    /// Slots with news.
    pub(crate) news: VecDeque<u32>,
    /// Slots that wait for pieces to send, the longest first.
    pub(crate) starved: VecDeque<u32>,
    /// Listeners that have given clients up.
    pub(crate) given_up: Vec<u16>,
    seed: [u64; 2],
    pub(crate) identification: u16,
    /// An empty list, kept for its memory.
    pub(crate) spare: Vec<u32>,
    /// The segment that is sent next, kept for its place.
    pub(crate) header: Header,
    /// Ticks of the last call that knew the time.
    pub(crate) clock: u32,
    /// Whether usual segments go the short way.
    pub(crate) is_steady: bool,
}

/// Connections that may each begin with the usual window, however little memory there is.
const FEW: u64 = 64;
/// Of a connection's share of the memory, however many there are: some full segments.
const LEAST_SHARE: u32 = 4 << 10;

/// The clock of the timers: milliseconds modulo 2^32.
#[inline(always)]
pub(crate) fn tick(now: Instant) -> u32 {
    now.milliseconds()
}

/// Whether a tick has come.
#[inline(always)]
pub(crate) fn is_due(at: u32, now: u32) -> bool {
    now.wrapping_sub(at) as i32 >= 0
}

impl<B: Buffer> Engine<B> {
    /// An engine without listeners. `secret` must be random and unknown to peers.
    pub fn new(config: EngineConfig, secret: [u8; 32], now: Instant) -> Self {
        let words: [u64; 4] = std::array::from_fn(|word| {
            let bytes = secret.get(word * 8..word * 8 + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or_default())
        });
        let [a, b, c, d] = words;
        let count = config.index_buckets();
        let mut buckets = Vec::with_capacity(count);
        hugepages::advise::huge(buckets.spare_capacity_mut());
        buckets.resize(count, Bucket::EMPTY);
        Self {
            slab: Slab::new(config.connections),
            index: Index::new(buckets),
            wheel: Wheel::new(tick(now)),
            time_waits: TimeWaits::new(config.time_waits),
            nodes: Nodes::new(config.pieces as u32),
            profiles: Vec::new(),
            secrets: Secrets::new(secret),
            counters: Counters::default(),
            states: States::default(),
            challenge: ChallengeLimit::new(config.challenge_acks, a ^ d),
            config,
            ready: Vec::new(),
            news: VecDeque::new(),
            starved: VecDeque::new(),
            given_up: Vec::new(),
            seed: [a.rotate_left(13) ^ c, b.rotate_left(29) ^ d],
            identification: a as u16,
            spare: Vec::new(),
            header: Header::default(),
            clock: tick(now),
            is_steady: true,
        }
    }

    /// Whether usual segments go the short way, as they do from the start. It does the same as the long one; tests compare them.
    pub fn set_steady(&mut self, to: bool) {
        self.is_steady = to;
    }

    /// Sets the configuration of a listener, or of connections that the application opens. Connections that are open go
    /// on with it.
    pub fn set_listener(&mut self, index: u16, config: ConnectionConfig) {
        let at = usize::from(index);
        if self.profiles.len() <= at {
            self.profiles.resize_with(at + 1, || None);
        }
        if let Some(place) = self.profiles.get_mut(at) {
            match place {
                Some(profile) => profile.config = config,
                None => *place = Some(Profile { config, half_open: 0, given_up: 0, cookies_until: None }),
            }
        }
    }

    /// Puts new secrets under SYN cookies (RFC 4987 §3.6) and fast open cookies (RFC 7413 §4.1.2); what was given under the
    /// ones before stays good. To be called every few minutes, not within two minutes.
    pub fn rotate_secrets(&mut self, now: Instant) {
        self.secrets.rotate(now);
        self.secrets.rotate_fast_open();
    }

    /// What has happened since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections by state.
    pub fn census(&self) -> Census {
        let states = self.states;
        let (half_open, established) =
            (states.of(State::SynSent) + states.of(State::SynReceived), states.of(State::Established));
        let closed = states.of(State::Closed);
        Census {
            half_open,
            established,
            closing: states.0.iter().sum::<u32>() - half_open - established - closed,
            closed,
            time_wait: self.time_waits.live() as u32,
            states,
        }
    }

    /// Records in use; the capacity is [`EngineConfig::connections`].
    pub fn live(&self) -> usize {
        self.slab.live()
    }

    /// Sets how much memory buffers in queues may keep from other use: [`EngineConfig::memory`].
    pub fn set_memory(&mut self, bytes: u64) {
        self.config.memory = bytes;
    }

    /// Most connections.
    pub fn capacity(&self) -> usize {
        self.config.connections
    }

    /// Bytes of buffers that the queues hold.
    pub fn pinned(&self) -> u64 {
        self.nodes.pinned()
    }

    /// Pieces of data in queues.
    pub fn pieces(&self) -> usize {
        self.nodes.used() as usize
    }

    #[inline(always)]
    pub(crate) fn hash(&self, remote: Endpoint, local: Endpoint) -> u32 {
        let ports = u64::from(remote.port) << 16 | u64::from(local.port);
        let (remote, local) = (remote.address, local.address);
        let hash = if remote >> 32 == 0xffff && local >> 32 == 0xffff {
            flow_hash_2(self.seed, [(remote as u64) << 32 | (local as u64 & 0xffff_ffff), ports])
        } else {
            let words = [remote as u64, (remote >> 64) as u64, local as u64, (local >> 64) as u64, ports];
            flow_hash_5(self.seed, words)
        };
        (hash >> 32) as u32
    }

    /// First step for a segment: hashes its addresses and asks for the index line.
    #[inline]
    pub fn prepare(&self, frame: &[u8], parsed: &Parsed) -> Lookup {
        let (remote, local) = endpoints(frame, parsed);
        let hash = self.hash(remote, local);
        self.index.prefetch(hash);
        // behind the IP header, where options lie, another line may begin
        hugepages::prefetch::read_slice_at(frame, parsed.l4_offset() + tcp::HEADER_LEN + TIMESTAMPS_LEN - 1);
        Lookup { hash, guess: 0 }
    }

    /// Second step: reads the index line and asks for the record.
    #[inline]
    pub fn guess(&self, lookup: &mut Lookup) {
        lookup.guess = self.index.guess(lookup.hash);
        if let Some(candidate) = Index::<Vec<Bucket>>::candidate(lookup.guess)
            && candidate.direction == Direction::Forward
            && let Some(record) = self.slab.records().get(candidate.slot as usize)
        {
            record.prefetch();
        }
    }

    /// Third step, where memory may have arrived: asks for what the record names.
    #[inline]
    pub fn warm(&self, lookup: &Lookup) {
        if let Some(candidate) = Index::<Vec<Bucket>>::candidate(lookup.guess)
            && candidate.direction == Direction::Forward
            && let Some(record) = self.slab.records().get(candidate.slot as usize)
        {
            record.send.prefetch(&self.nodes);
            record.receive.prefetch(&self.nodes);
        }
    }

    /// The record of these addresses.
    #[inline(always)]
    pub(crate) fn find(&self, lookup: Lookup, remote: Endpoint, local: Endpoint) -> Option<u32> {
        // the guess is nearly always right, and its line was asked for
        if let Some(candidate) = Index::<Vec<Bucket>>::candidate(lookup.guess)
            && candidate.direction == Direction::Forward
            && let Some(record) = self.slab.at(candidate.slot)
            && record.state != State::Closed
            && record.is_between(remote, local)
        {
            return Some(candidate.slot);
        }
        self.look_up(lookup.hash, remote, local)
    }

    /// As [`Engine::find`], without a guess.
    #[inline(never)]
    pub(crate) fn look_up(&self, hash: u32, remote: Endpoint, local: Endpoint) -> Option<u32> {
        let records = self.slab.records();
        let found = self.index.find(hash, |candidate| {
            candidate.direction == Direction::Forward
                && records.get(candidate.slot as usize).is_some_and(|record| record.is_between(remote, local))
        });
        found.map(|candidate| candidate.slot)
    }

    /// The place in TIME-WAIT of these addresses.
    #[inline]
    pub(crate) fn find_time_wait(&self, hash: u32, remote: Endpoint, local: Endpoint) -> Option<u32> {
        if self.time_waits.live() == 0 {
            return None;
        }
        let found = self.index.find(hash, |candidate| {
            candidate.direction == Direction::Reverse
                && self
                    .time_waits
                    .entry(candidate.slot)
                    .is_some_and(|entry| entry.remote == remote && entry.local == local)
        });
        found.map(|candidate| candidate.slot)
    }

    /// Takes a segment in. `buffer` holds the whole frame, `parsed` tells what is in it.
    /// `checksum_is_verified`: the NIC has done so.
    #[inline]
    pub fn segment(
        &mut self,
        buffer: B,
        parsed: &Parsed,
        lookup: Lookup,
        checksum_is_verified: bool,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) -> Handled<B> {
        if !checksum_is_verified && !checksum::l4_is_valid(buffer.bytes(), parsed) {
            self.malformed();
            return Handled::Done;
        }
        if self.is_steady {
            return match self.steady(buffer, parsed, lookup, now) {
                Ok(()) => Handled::Done,
                Err(buffer) => self.segment_any(buffer, parsed, lookup, now, tx),
            };
        }
        self.segment_any(buffer, parsed, lookup, now, tx)
    }

    #[cold]
    fn malformed(&mut self) {
        self.counters.segments_in += 1;
        self.counters.malformed += 1;
    }

    /// Any segment whose checksum is right.
    #[inline(never)]
    fn segment_any(
        &mut self,
        buffer: B,
        parsed: &Parsed,
        lookup: Lookup,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) -> Handled<B> {
        let frame = buffer.bytes();
        let mut segment = Segment::default();
        if segment.read_again(frame, parsed, true).is_err() {
            self.malformed();
            return Handled::Done;
        }
        let (remote, local) = endpoints(frame, parsed);
        if let Some(slot) = self.find(lookup, remote, local) {
            self.counters.segments_in += 1;
            self.arrived(slot, buffer, &segment, now, tx);
            return Handled::Done;
        }
        if let Some(slot) = self.find_time_wait(lookup.hash, remote, local)
            && self.in_time_wait(slot, &segment, now, tx)
        {
            self.counters.segments_in += 1;
            return Handled::Done;
        }
        Handled::Unknown(buffer)
    }

    /// News of a connection, the oldest first.
    #[inline]
    pub fn poll_event(&mut self) -> Option<(Handle, Events)> {
        while let Some(slot) = self.news.pop_front() {
            let handle = self.slab.handle(slot)?;
            let Some(record) = self.slab.at_mut(slot) else { continue };
            record.flags.clear(Flags::NEWS);
            let events = std::mem::take(&mut record.events);
            if !events.is_empty() && record.flags.has(Flags::OWNED) {
                return Some((handle, events));
            }
        }
        None
    }

    /// A listener, and how many clients it has given up since the last call that named it because their handshake was not complete in
    /// time. The application never saw them.
    #[inline]
    pub fn poll_given_up(&mut self) -> Option<(u16, u64)> {
        let index = self.given_up.pop()?;
        let profile = self.profile_mut(index)?;
        Some((index, std::mem::take(&mut profile.given_up)))
    }

    /// Tells the application of something, once it asks.
    #[inline]
    pub(crate) fn announce(&mut self, slot: u32, events: Events) {
        if let Some(record) = self.slab.at_mut(slot) {
            record.events |= events;
            if !record.flags.has(Flags::NEWS) {
                record.flags.set(Flags::NEWS);
                self.news.push_back(slot);
            }
        }
    }

    /// Puts a connection among those that [`Engine::transmit`] looks at.
    #[inline(always)]
    pub(crate) fn mark_ready(&mut self, slot: u32) {
        if let Some(record) = self.slab.at_mut(slot)
            && !record.flags.has(Flags::READY)
        {
            record.flags.set(Flags::READY);
            self.ready.push(slot);
        }
    }

    /// The window of a new connection before anything is known of it: less the more there are, so that very many that begin at once
    /// and are never read leave most of the memory to the others.
    pub(crate) fn first_share(&self) -> u32 {
        let live = self.slab.live() as u64;
        if live <= FEW {
            return u32::MAX;
        }
        let share = self.config.memory / 8 / live;
        u32::try_from(share).unwrap_or(u32::MAX).max(LEAST_SHARE)
    }

    /// What one connection may hold per direction: as much as it is configured to while three quarters of the memory are free, then
    /// an equal share of a quarter of it, since buffers are larger than the data in them.
    #[inline(always)]
    pub(crate) fn share(&self) -> u32 {
        share_of(self.nodes.pinned(), self.config.memory, self.slab.live())
    }

    /// Tells as many of those that wait for pieces as there are pieces: no acknowledgement would, where they have nothing
    /// outstanding.
    #[cold]
    pub(crate) fn feed(&mut self) {
        let mut left = self.nodes.left_to_send();
        while left > 0
            && let Some(slot) = self.starved.pop_front()
        {
            let Some(record) = self.slab.at_mut(slot) else { continue };
            // the slot may be another connection's by now
            if record.flags.has(Flags::STARVED) {
                record.flags.clear(Flags::STARVED);
                if record.flags.has(Flags::WANTS_ROOM) {
                    record.flags.clear(Flags::WANTS_ROOM);
                    self.announce(slot, Events::WRITABLE);
                    left -= 1;
                }
            }
        }
    }

    pub(crate) fn profile(&self, index: u16) -> Option<&Profile> {
        self.profiles.get(usize::from(index)).and_then(Option::as_ref)
    }

    pub(crate) fn profile_mut(&mut self, index: u16) -> Option<&mut Profile> {
        self.profiles.get_mut(usize::from(index)).and_then(Option::as_mut)
    }

    pub(crate) fn next_identification(&mut self) -> u16 {
        self.identification = self.identification.wrapping_add(1);
        self.identification
    }

    /// Books a change of state.
    #[cold]
    pub(crate) fn entered(&mut self, slot: u32, before: State, state: State) {
        let Some(record) = self.slab.at(slot) else { return };
        let profile = record.flags.has(Flags::PASSIVE).then_some(record.profile);
        if before == State::SynReceived
            && let Some(profile) = profile.and_then(|index| self.profile_mut(index))
        {
            profile.half_open = profile.half_open.saturating_sub(1);
        }
        self.states.moves(Some(before), Some(state));
    }

    /// The connection is over: out of the index and the wheel, its data to be sent freed. The record stays while the
    /// application holds it.
    pub(crate) fn finish(&mut self, slot: u32, ended: Ended) {
        let Some(record) = self.slab.at(slot) else { return };
        if record.state == State::Closed {
            return;
        }
        let hash = self.hash(record.remote(), record.local());
        self.index.remove(hash, slot, Direction::Forward);
        let before = record.state;
        self.wheel.disarm(&mut self.slab, slot);
        if let Some(record) = self.slab.at_mut(slot) {
            record.state = State::Closed;
        }
        self.entered(slot, before, State::Closed);
        let Some(record) = self.slab.at_mut(slot) else { return };
        record.ended = ended;
        record.send.clear(&mut self.nodes);
        if ended != Ended::Finished {
            record.receive.clear(&mut self.nodes);
        }
        if record.flags.has(Flags::OWNED) {
            self.announce(slot, Events::CLOSED);
        } else if !record.flags.has(Flags::RST_DUE) {
            self.free(slot);
        }
    }

    /// As [`Engine::finish`], and the peer is told with a RST.
    pub(crate) fn reset(&mut self, slot: u32, ended: Ended) {
        if let Some(record) = self.slab.at_mut(slot) {
            record.flags.set(Flags::RST_DUE);
        }
        self.mark_ready(slot);
        self.finish(slot, ended);
    }

    /// Gives the record back.
    pub(crate) fn free(&mut self, slot: u32) {
        let Some(record) = self.slab.at_mut(slot) else { return };
        record.receive.clear(&mut self.nodes);
        record.send.clear(&mut self.nodes);
        // lists may still name the slot: what they find there is another's or nothing, and harmless
        self.states.moves(Some(State::Closed), None);
        self.slab.remove(slot);
    }
}

/// [`Engine::share`] of so many.
#[inline(always)]
pub(crate) fn share_of(pinned: u64, memory: u64, live: usize) -> u32 {
    if pinned <= memory / 4 {
        return u32::MAX;
    }
    let share = memory / 4 / (live as u64).max(1);
    u32::try_from(share).unwrap_or(u32::MAX).max(LEAST_SHARE)
}

/// The ends of a packet as its receiver sees them: the sender is remote.
#[inline(always)]
pub(crate) fn endpoints(frame: &[u8], parsed: &Parsed) -> (Endpoint, Endpoint) {
    let (src, dst) = if parsed.kind == Kind::Ipv4 {
        let (src, dst) = parsed.addresses_v4(frame);
        (0xffff_0000_0000 | u128::from(src), 0xffff_0000_0000 | u128::from(dst))
    } else {
        parsed.addresses_v6(frame)
    };
    (Endpoint { address: src, port: parsed.src_port }, Endpoint { address: dst, port: parsed.dst_port })
}
