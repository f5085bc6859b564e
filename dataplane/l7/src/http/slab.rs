//! Where do records lie? In slabs whose memory is set aside at the start; freed places are used again newest first.

use weir_tcp::wheel::{Entries, Link, NONE};

/// A place of a slab.
#[derive(Debug)]
struct Place<T> {
    record: Option<T>,
    link: Link,
    /// Of a queue the next place, of a free place the next free one.
    next: u32,
    previous: u32,
    is_queued: bool,
}

/// Records of one kind, each with an entry of a wheel and a link of at most one queue.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Place<T>>,
    capacity: usize,
    free: u32,
    live: usize,
}

impl<T> Slab<T> {
    /// What a place takes.
    pub(crate) const BYTES: usize = size_of::<Place<T>>();

    pub(crate) fn new(capacity: usize) -> Self {
        Self { places: Vec::with_capacity(capacity), capacity, free: NONE, live: 0 }
    }

    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Places that were ever used.
    pub(crate) fn slots(&self) -> u32 {
        self.places.len() as u32
    }

    #[inline]
    pub(crate) fn at(&self, slot: u32) -> Option<&T> {
        self.places.get(slot as usize)?.record.as_ref()
    }

    #[inline]
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.places.get_mut(slot as usize)?.record.as_mut()
    }

    /// Whether the wheel looks at a record at this tick or before.
    #[inline]
    pub(crate) fn is_armed_by(&self, slot: u32, at: u32) -> bool {
        self.places.get(slot as usize).is_some_and(|place| place.link.is_armed_by(at))
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        self.live < self.capacity
    }

    /// Takes a record; gives it back where all places are in use.
    pub(crate) fn insert(&mut self, record: T) -> Result<u32, T> {
        let slot = self.free;
        if let Some(place) = self.places.get_mut(slot as usize) {
            self.free = place.next;
            place.next = NONE;
            place.record = Some(record);
            self.live += 1;
            return Ok(slot);
        }
        if self.places.len() >= self.capacity {
            return Err(record);
        }
        self.places.push(Place {
            record: Some(record),
            link: Link::IDLE,
            next: NONE,
            previous: NONE,
            is_queued: false,
        });
        self.live += 1;
        Ok(self.places.len() as u32 - 1)
    }

    /// Gives a record back; it must be in no queue and not armed.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let free = self.free;
        let place = self.places.get_mut(slot as usize)?;
        let record = place.record.take()?;
        debug_assert!(!place.is_queued, "removed while it waits");
        place.next = free;
        self.free = slot;
        self.live -= 1;
        Some(record)
    }
}

impl<T> Entries for Slab<T> {
    #[inline]
    fn link(&self, slot: u32) -> Option<&Link> {
        self.places.get(slot as usize).map(|place| &place.link)
    }

    #[inline]
    fn link_mut(&mut self, slot: u32) -> Option<&mut Link> {
        self.places.get_mut(slot as usize).map(|place| &mut place.link)
    }
}

/// Records of a slab in an order. A record is in one queue at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) len: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, len: 0 }
    }
}

impl Queue {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == NONE
    }

    /// The one behind this.
    pub(crate) fn next<T>(slab: &Slab<T>, slot: u32) -> u32 {
        slab.places.get(slot as usize).map_or(NONE, |place| place.next)
    }

    /// The one before this.
    pub(crate) fn previous<T>(slab: &Slab<T>, slot: u32) -> u32 {
        slab.places.get(slot as usize).map_or(NONE, |place| place.previous)
    }

    /// Puts one at the end.
    pub(crate) fn push<T>(&mut self, slab: &mut Slab<T>, slot: u32) {
        let last = self.tail;
        let Some(place) = slab.places.get_mut(slot as usize).filter(|place| !place.is_queued) else { return };
        (place.next, place.previous, place.is_queued) = (NONE, last, true);
        match slab.places.get_mut(last as usize) {
            Some(last) => last.next = slot,
            None => self.head = slot,
        }
        self.tail = slot;
        self.len += 1;
    }

    /// Puts one at the front.
    #[inline]
    pub(crate) fn push_front<T>(&mut self, slab: &mut Slab<T>, slot: u32) {
        let first = self.head;
        let Some(place) = slab.places.get_mut(slot as usize).filter(|place| !place.is_queued) else { return };
        (place.next, place.previous, place.is_queued) = (first, NONE, true);
        match slab.places.get_mut(first as usize) {
            Some(first) => first.previous = slot,
            None => self.tail = slot,
        }
        self.head = slot;
        self.len += 1;
    }

    /// Takes one out, if it is in; whether it was. It must be in this queue or in none.
    #[inline]
    pub(crate) fn remove<T>(&mut self, slab: &mut Slab<T>, slot: u32) -> bool {
        let Some(place) = slab.places.get_mut(slot as usize).filter(|place| place.is_queued) else {
            return false;
        };
        let (next, previous) = (place.next, place.previous);
        (place.next, place.previous, place.is_queued) = (NONE, NONE, false);
        match slab.places.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.head = next,
        }
        match slab.places.get_mut(next as usize) {
            Some(next) => next.previous = previous,
            None => self.tail = previous,
        }
        self.len = self.len.saturating_sub(1);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(queue: &Queue, slab: &Slab<u32>) -> Vec<u32> {
        let mut order = Vec::new();
        let mut at = queue.head;
        while at != NONE {
            order.extend(slab.at(at));
            at = Queue::next(slab, at);
        }
        order
    }

    #[test]
    fn queues_keep_their_order_whoever_leaves() {
        for leaver in 0..5 {
            let mut slab = Slab::new(5);
            let mut queue = Queue::default();
            let all: Vec<u32> = (0..5).map(|record| slab.insert(record).unwrap()).collect();
            assert!(slab.insert(9).is_err() && !slab.has_room());
            all.iter().for_each(|slot| queue.push(&mut slab, *slot));
            assert!(queue.remove(&mut slab, leaver) && !queue.remove(&mut slab, leaver));
            let rest: Vec<u32> = (0..5).filter(|record| *record != leaver).collect();
            assert_eq!(order(&queue, &slab), rest);
            queue.push_front(&mut slab, leaver);
            assert_eq!((order(&queue, &slab)[0], queue.len), (leaver, 5));
            for slot in all {
                queue.remove(&mut slab, slot);
                slab.remove(slot).unwrap();
            }
            assert!(queue.is_empty() && queue.tail == NONE && queue.len == 0 && slab.live() == 0);
        }
    }
}
