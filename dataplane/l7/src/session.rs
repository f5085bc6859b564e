//! What is known of one proxied connection, and where does it lie? Slabs of fixed-size records, linked into queues.

use arrayvec::ArrayVec;
use weir_tcp::wheel::{Entries, Link, NONE};

use crate::proxy_protocol::{Ends, Parser};

/// Most backends that a session is tried on: the configuration allows ten retries.
pub(crate) const MAX_ATTEMPTS: usize = 11;

/// No backend.
pub(crate) const NO_BACKEND: u32 = u32::MAX;

/// One of the two connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Side {
    /// The client's.
    Client = 0,
    /// The backend's.
    Upstream = 1,
}

impl Side {
    #[inline]
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Upstream,
            Self::Upstream => Self::Client,
        }
    }
}

/// What a connection's number means: a kind in the two low bits, the slot of its record above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// A side of a session.
    Tcp(Side, u32),
    /// A client of HTTP.
    HttpClient(u32),
    /// A connection to a backend of HTTP.
    HttpUpstream(u32),
}

impl Token {
    /// Slots there may be of each kind.
    pub(crate) const SLOTS: usize = (u32::MAX >> 2) as usize;

    /// The number that the connection carries for the engine.
    #[inline]
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Tcp(Side::Client, slot) => slot << 2,
            Self::Tcp(Side::Upstream, slot) => slot << 2 | 1,
            Self::HttpClient(slot) => slot << 2 | 2,
            Self::HttpUpstream(slot) => slot << 2 | 3,
        }
    }

    /// What [`Token::number`] made.
    #[inline]
    pub(crate) fn of(number: u32) -> Self {
        let slot = number >> 2;
        match number & 3 {
            0 => Self::Tcp(Side::Client, slot),
            1 => Self::Tcp(Side::Upstream, slot),
            2 => Self::HttpClient(slot),
            _ => Self::HttpUpstream(slot),
        }
    }
}

/// How far a session has come.
///
/// ```text
/// accepted ─▶ AwaitLease ─▶ AwaitHeader ─▶ Queued ⇄ Connecting ─▶ Relaying ─▶ gone
/// ```
/// Each but `Relaying` may be skipped; from each a reset, a limit or a timeout leads out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    /// The ledger was asked for the listener's limit.
    AwaitLease,
    /// The client has to send a PROXY header.
    AwaitHeader,
    /// All backends are at their limits.
    Queued,
    /// A SYN is on its way to a backend.
    Connecting,
    /// Both connections stand, or close.
    Relaying,
}

/// Yes or no, a bit for each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u8);

impl Flags {
    /// The peer has sent its FIN.
    pub(crate) const FINISHED: u8 = 1;
    /// We have ended our side after the other side's peer had.
    pub(crate) const SHUT: u8 = 4;
    /// The connection is over, in order.
    pub(crate) const CLOSED: u8 = 16;

    #[inline]
    pub(crate) fn has(self, flag: u8, side: Side) -> bool {
        self.0 & flag << side as u8 != 0
    }

    #[inline]
    pub(crate) fn set(&mut self, flag: u8, side: Side) {
        self.0 |= flag << side as u8;
    }

    /// Whether a direction is closed.
    #[inline]
    pub(crate) fn is_half_closed(self) -> bool {
        self.0 & (Self::FINISHED | Self::FINISHED << 1) != 0
    }
}

/// A proxied connection.
#[derive(Debug)]
pub(crate) struct Session<H> {
    pub(crate) client: Option<H>,
    pub(crate) upstream: Option<H>,
    pub(crate) link: Link,
    /// Its [`Setup`], until it relays; in a free record the next free one.
    pub(crate) setup: u32,
    pub(crate) pool: u32,
    /// The backend on whose limit it counts.
    pub(crate) backend: u32,
    /// Tick of the last byte either way.
    pub(crate) active_at: u32,
    /// Bytes that waited to be acknowledged when the timer last looked.
    pub(crate) residue: u32,
    pub(crate) idle_ms: u32,
    pub(crate) half_close_ms: u32,
    pub(crate) listener: u16,
    pub(crate) stage: Stage,
    pub(crate) flags: Flags,
    /// Whether it counts on the listener's limit.
    pub(crate) is_leased: bool,
    pub(crate) is_live: bool,
}

impl<H: Copy> Session<H> {
    #[inline]
    pub(crate) fn handle(&self, side: Side) -> Option<H> {
        match side {
            Side::Client => self.client,
            Side::Upstream => self.upstream,
        }
    }
}

/// Sessions; the memory for all is set aside at the start. A slot is known by the handle that its connection's news come with:
/// the engine checks those by generation, so a slot needs none.
#[derive(Debug)]
pub(crate) struct Sessions<H> {
    records: Vec<Session<H>>,
    capacity: usize,
    free: u32,
    live: usize,
}

impl<H> Sessions<H> {
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.min(Token::SLOTS);
        Self { records: Vec::with_capacity(capacity), capacity, free: NONE, live: 0 }
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Slots that were ever used.
    pub(crate) fn slots(&self) -> u32 {
        self.records.len() as u32
    }

    #[inline]
    pub(crate) fn at(&self, slot: u32) -> Option<&Session<H>> {
        self.records.get(slot as usize).filter(|record| record.is_live)
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut Session<H>> {
        self.records.get_mut(slot as usize).filter(|record| record.is_live)
    }

    /// Takes a record; `None` where all are in use.
    pub(crate) fn insert(&mut self, record: Session<H>) -> Option<u32> {
        let slot = self.free;
        if let Some(place) = self.records.get_mut(slot as usize) {
            self.free = place.setup;
            *place = record;
            self.live += 1;
            return Some(slot);
        }
        if self.records.len() >= self.capacity {
            return None;
        }
        self.records.push(record);
        self.live += 1;
        Some(self.records.len() as u32 - 1)
    }

    /// Gives a record back; its link must be idle.
    pub(crate) fn remove(&mut self, slot: u32) {
        let free = self.free;
        let Some(record) = self.at_mut(slot) else { return };
        record.is_live = false;
        (record.client, record.upstream) = (None, None);
        record.setup = free;
        self.free = slot;
        self.live -= 1;
    }
}

impl<H> Entries for Sessions<H> {
    #[inline]
    fn link(&self, slot: u32) -> Option<&Link> {
        self.records.get(slot as usize).map(|record| &record.link)
    }

    #[inline]
    fn link_mut(&mut self, slot: u32) -> Option<&mut Link> {
        self.records.get_mut(slot as usize).map(|record| &mut record.link)
    }
}

/// What a session needs until it relays.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) session: u32,
    /// The client, as a PROXY header tells or as it is.
    pub(crate) ends: Ends,
    /// The vip's port to which it came: backends without a port of their own have this one.
    pub(crate) vip: weir_tcp::Endpoint,
    pub(crate) parser: Option<Parser>,
    /// Backends that failed.
    pub(crate) tried: ArrayVec<u32, MAX_ATTEMPTS>,
    pub(crate) next: u32,
    pub(crate) previous: u32,
    pub(crate) is_queued: bool,
}

/// Setups; as many as were ever needed at once.
#[derive(Debug)]
pub(crate) struct Setups {
    records: Vec<Setup>,
    free: u32,
    live: usize,
}

impl Setups {
    pub(crate) fn new() -> Self {
        Self { records: Vec::new(), free: NONE, live: 0 }
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    #[inline]
    pub(crate) fn at(&self, at: u32) -> Option<&Setup> {
        self.records.get(at as usize)
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, at: u32) -> Option<&mut Setup> {
        self.records.get_mut(at as usize)
    }

    pub(crate) fn insert(&mut self, setup: Setup) -> u32 {
        self.live += 1;
        let at = self.free;
        if let Some(place) = self.records.get_mut(at as usize) {
            self.free = place.next;
            *place = setup;
            return at;
        }
        self.records.push(setup);
        self.records.len() as u32 - 1
    }

    /// Gives a record back; it must be in no queue.
    pub(crate) fn remove(&mut self, at: u32) {
        let free = self.free;
        let Some(setup) = self.at_mut(at) else { return };
        setup.parser = None;
        setup.tried.clear();
        setup.next = free;
        self.free = at;
        self.live -= 1;
    }
}

/// Setups in the order of their arrival.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fifo {
    pub(crate) head: u32,
    pub(crate) tail: u32,
}

impl Default for Fifo {
    fn default() -> Self {
        Self { head: NONE, tail: NONE }
    }
}

impl Fifo {
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    pub(crate) fn push(&mut self, setups: &mut Setups, at: u32) {
        let last = self.tail;
        let Some(setup) = setups.at_mut(at) else { return };
        (setup.next, setup.previous, setup.is_queued) = (NONE, last, true);
        match setups.at_mut(last) {
            Some(last) => last.next = at,
            None => self.head = at,
        }
        self.tail = at;
    }

    pub(crate) fn remove(&mut self, setups: &mut Setups, at: u32) {
        let Some(setup) = setups.at_mut(at).filter(|setup| setup.is_queued) else { return };
        let (next, previous) = (setup.next, setup.previous);
        (setup.next, setup.previous, setup.is_queued) = (NONE, NONE, false);
        match setups.at_mut(previous) {
            Some(previous) => previous.next = next,
            None => self.head = next,
        }
        match setups.at_mut(next) {
            Some(next) => next.previous = previous,
            None => self.tail = previous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(session: u32) -> Setup {
        let end = weir_tcp::Endpoint::default();
        Setup {
            session,
            ends: Ends { source: end, destination: end },
            vip: end,
            parser: None,
            tried: ArrayVec::new(),
            next: NONE,
            previous: NONE,
            is_queued: false,
        }
    }

    fn order(fifo: &Fifo, setups: &Setups) -> Vec<u32> {
        let mut order = Vec::new();
        let mut at = fifo.head;
        while let Some(setup) = setups.at(at) {
            order.push(setup.session);
            at = setup.next;
        }
        order
    }

    #[test]
    fn queues_keep_their_order_whoever_leaves() {
        for leaver in 0..5 {
            let mut setups = Setups::new();
            let mut fifo = Fifo::default();
            let all: Vec<u32> = (0..5).map(|session| setups.insert(setup(session))).collect();
            all.iter().for_each(|at| fifo.push(&mut setups, *at));
            fifo.remove(&mut setups, all[leaver]);
            fifo.remove(&mut setups, all[leaver]);
            let rest: Vec<u32> = (0..5).filter(|session| *session != leaver as u32).collect();
            assert_eq!(order(&fifo, &setups), rest);
            fifo.push(&mut setups, all[leaver]);
            assert_eq!(order(&fifo, &setups).last(), Some(&(leaver as u32)));
            for at in all {
                fifo.remove(&mut setups, at);
                setups.remove(at);
            }
            assert!(fifo.is_empty() && fifo.tail == NONE);
        }
    }

    #[test]
    fn a_session_is_small() {
        // two connections have at most 400 bytes each; what the proxy adds should not show
        assert!(size_of::<Session<weir_tcp::event::Handle>>() <= 80);
    }

    #[test]
    fn tokens_name_slot_and_kind() {
        let last = Token::SLOTS as u32 - 1;
        for slot in [0, 1, last] {
            for token in [
                Token::Tcp(Side::Client, slot),
                Token::Tcp(Side::Upstream, slot),
                Token::HttpClient(slot),
                Token::HttpUpstream(slot),
            ] {
                assert_eq!(Token::of(token.number()), token);
            }
        }
        assert_eq!(Side::Client.other(), Side::Upstream);
    }
}
