//! Which connections must not come back yet? TIME_WAIT (RFC 9293 §3.3.2) in 96 bytes instead of a whole record.
//!
//! Entries lie in a ring by the time they end, since all wait equally long; the index names them beside the connections.
//! When the table is full the oldest makes room.

use crate::buffer::Endpoint;
use crate::seq::SeqNumber;

/// What is left of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeWait {
    pub(crate) local: Endpoint,
    pub(crate) remote: Endpoint,
    /// What we would send next.
    pub(crate) snd_nxt: SeqNumber,
    /// What the peer would send next, its FIN counted.
    pub(crate) rcv_nxt: SeqNumber,
    /// The window that was announced last, scaled.
    pub(crate) window: u16,
    /// Configuration of the connection.
    pub(crate) profile: u16,
    /// The peer's newest timestamp, where there are any.
    pub(crate) ts_recent: Option<u32>,
    pub(crate) ts_offset: u32,
    /// Hash of its tuple, to take it out of the index.
    pub(crate) hash: u32,
    /// Tick at which it ends.
    pub(crate) ends: u32,
    /// RFC 5961 §5: when it last answered something out of place.
    pub(crate) answered: u32,
}

/// The table: `Some` where a connection waits.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    ring: Box<[Option<TimeWait>]>,
    head: usize,
    len: usize,
    live: usize,
}

impl TimeWaits {
    pub(crate) fn new(capacity: usize) -> Self {
        let ring = std::iter::repeat_n(None, capacity.max(1)).collect();
        Self { ring, head: 0, len: 0, live: 0 }
    }

    /// Entries that wait.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn entry(&self, slot: u32) -> Option<&TimeWait> {
        self.ring.get(slot as usize)?.as_ref()
    }

    pub(crate) fn entry_mut(&mut self, slot: u32) -> Option<&mut TimeWait> {
        self.ring.get_mut(slot as usize)?.as_mut()
    }

    /// The slot that [`TimeWaits::push`] will use, `None` where the oldest has to go first.
    pub(crate) fn is_full(&self) -> bool {
        self.len == self.ring.len()
    }

    /// Adds the youngest one; returns its slot. The table must not be full.
    pub(crate) fn push(&mut self, entry: TimeWait) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let at = (self.head + self.len) % self.ring.len();
        *self.ring.get_mut(at)? = Some(entry);
        self.len += 1;
        self.live += 1;
        Some(at as u32)
    }

    /// Takes one out, wherever it is.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<TimeWait> {
        let taken = self.ring.get_mut(slot as usize)?.take();
        self.live -= usize::from(taken.is_some());
        taken
    }

    /// The oldest place: its slot and what waits there, if it was not taken out meanwhile.
    pub(crate) fn oldest(&self) -> Option<(u32, Option<&TimeWait>)> {
        let entry = if self.len == 0 { None } else { self.ring.get(self.head) };
        entry.map(|entry| (self.head as u32, entry.as_ref()))
    }

    /// Forgets the oldest place.
    pub(crate) fn pop(&mut self) -> Option<TimeWait> {
        if self.len == 0 {
            return None;
        }
        let slot = self.head as u32;
        self.head = (self.head + 1) % self.ring.len();
        self.len -= 1;
        self.remove(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(ends: u32) -> TimeWait {
        TimeWait {
            local: Endpoint::default(),
            remote: Endpoint::default(),
            snd_nxt: SeqNumber(0),
            rcv_nxt: SeqNumber(0),
            window: 0,
            profile: 0,
            ts_recent: None,
            ts_offset: 0,
            hash: 0,
            ends,
            answered: 0,
        }
    }

    #[test]
    fn the_oldest_goes_first_and_gaps_are_skipped() {
        let mut table = TimeWaits::new(3);
        let slots: Vec<u32> = (0..3).filter_map(|ends| table.push(entry(ends))).collect();
        assert!(table.is_full() && table.push(entry(9)).is_none());
        assert_eq!(table.remove(slots[1]).map(|e| e.ends), Some(1));
        assert_eq!(table.live(), 2);
        assert_eq!(table.pop().map(|e| e.ends), Some(0));
        assert!(table.pop().is_none());
        assert_eq!(table.oldest().and_then(|(_, e)| e).map(|e| e.ends), Some(2));
        assert_eq!(table.push(entry(3)), Some(0));
        assert_eq!(table.pop().map(|e| e.ends), Some(2));
        assert_eq!(table.pop().map(|e| e.ends), Some(3));
        assert!(table.oldest().is_none());
        assert_eq!(table.live(), 0);
    }
}
