//! How do items go from one thread to another without a lock? A bounded ring for one producer and one consumer.
//!
//! Inside one process only: the items are Rust values. Used by workers to steer packets to their owner. A full ring
//! refuses the item and gives it back; the caller drops and counts it. Whatever is inside when both ends are gone is
//! dropped with the ring.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// Largest capacity; beyond it, a ring is a leak with extra steps.
pub const CAPACITY_LIMIT: usize = 1 << 24;

/// Makes a ring with room for `capacity` items, rounded up to a power of two between 1 and [`CAPACITY_LIMIT`].
#[must_use]
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.clamp(1, CAPACITY_LIMIT).next_power_of_two();
    let shared = Arc::new(Shared {
        slots: (0..capacity).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect(),
        mask: capacity - 1,
        head: CachePadded::new(AtomicUsize::new(0)),
        tail: CachePadded::new(AtomicUsize::new(0)),
    });
    let producer = Producer { shared: Arc::clone(&shared), tail: 0, known_head: 0 };
    (producer, Consumer { shared, head: 0, known_tail: 0 })
}

/// Positions count up for ever and wrap; `tail - head` is the number of items.
struct Shared<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    mask: usize,
    /// Next position to read; written by the consumer alone.
    head: CachePadded<AtomicUsize>,
    /// Next position to write; written by the producer alone.
    tail: CachePadded<AtomicUsize>,
}

// SAFETY: a slot is touched by the producer before `tail` passes it (Release) and by the consumer after it saw that
// (Acquire), and the other way round with `head`; so no two threads touch a slot at once, and T may change threads.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: as above: what is inside are items that may change threads.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    fn slot(&self, position: usize) -> *mut MaybeUninit<T> {
        // SAFETY: `mask` is the number of slots less one, a power of two less one, so the index is in range.
        unsafe { self.slots.get_unchecked(position & self.mask) }.get()
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        let tail = *self.tail.get_mut();
        let mut head = *self.head.get_mut();
        while head != tail {
            // SAFETY: both ends are gone, and positions from `head` to `tail` hold items that nobody took.
            unsafe { (*self.slot(head)).assume_init_drop() };
            head = head.wrapping_add(1);
        }
    }
}

/// The end that puts items in.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Own copy of `shared.tail`.
    tail: usize,
    /// `shared.head` as last seen: a lower bound, refreshed only when the ring looks full.
    known_head: usize,
}

impl<T: Send> Producer<T> {
    /// Puts `item` in, or gives it back if the ring is full.
    ///
    /// # Errors
    /// The item, if the ring is full.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(item);
        }
        // SAFETY: `room` proved that the consumer is done with this slot and cannot reach it before `tail` moves.
        unsafe { (*self.shared.slot(self.tail)).write(item) };
        self.tail = self.tail.wrapping_add(1);
        self.shared.tail.store(self.tail, Ordering::Release);
        Ok(())
    }

    /// Puts in as many of `items` as there is room for, in order, and makes them visible at once. Never takes an item
    /// out of the iterator that it can't keep: what is left is the caller's. Returns the number put in.
    #[inline]
    pub fn push_burst<I: Iterator<Item = T>>(&mut self, items: &mut I) -> usize {
        let room = self.room(self.capacity());
        let burst = PushBurst { before: self.tail, producer: self };
        for _ in 0..room {
            let Some(item) = items.next() else { break };
            // SAFETY: as in `push`; `room` counted the slots that the consumer is done with.
            unsafe { (*burst.producer.shared.slot(burst.producer.tail)).write(item) };
            burst.producer.tail = burst.producer.tail.wrapping_add(1);
        }
        burst.producer.tail.wrapping_sub(burst.before)
    }

    /// Items that surely can be pushed now; the consumer may make it more at any time.
    #[inline]
    pub fn free_slots(&mut self) -> usize {
        self.room(self.capacity())
    }

    /// Most items that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.mask + 1
    }

    /// Whether the consumer is gone: nothing pushed now will ever be read.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) < 2
    }

    /// Free slots, looking at the consumer's line only if fewer than `wanted` are known.
    #[inline]
    fn room(&mut self, wanted: usize) -> usize {
        let capacity = self.capacity();
        let known = capacity - self.tail.wrapping_sub(self.known_head);
        if known >= wanted {
            return known;
        }
        self.known_head = self.shared.head.load(Ordering::Acquire);
        capacity - self.tail.wrapping_sub(self.known_head)
    }
}

/// Publishes what was written, also if the caller's iterator panics.
struct PushBurst<'a, T> {
    producer: &'a mut Producer<T>,
    before: usize,
}

impl<T> Drop for PushBurst<'_, T> {
    fn drop(&mut self) {
        if self.producer.tail != self.before {
            self.producer.shared.tail.store(self.producer.tail, Ordering::Release);
        }
    }
}

/// The end that takes items out.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// Own copy of `shared.head`.
    head: usize,
    /// `shared.tail` as last seen: a lower bound, refreshed only when the ring looks empty.
    known_tail: usize,
}

impl<T: Send> Consumer<T> {
    /// The oldest item, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.waiting(1) == 0 {
            return None;
        }
        // SAFETY: `waiting` proved that the producer wrote this slot and leaves it alone until `head` moves.
        let item = unsafe { (*self.shared.slot(self.head)).assume_init_read() };
        self.head = self.head.wrapping_add(1);
        self.shared.head.store(self.head, Ordering::Release);
        Some(item)
    }

    /// Hands up to `limit` items to `take`, oldest first, and frees their slots at once. Returns their number.
    #[inline]
    pub fn pop_burst(&mut self, limit: usize, mut take: impl FnMut(T)) -> usize {
        let count = self.waiting(limit).min(limit);
        let burst = PopBurst { before: self.head, consumer: self };
        for _ in 0..count {
            // SAFETY: as in `pop`; `waiting` counted the slots that the producer wrote. `head` moves before `take`
            // runs, so that an item is never read twice, even if `take` panics.
            let item = unsafe { (*burst.consumer.shared.slot(burst.consumer.head)).assume_init_read() };
            burst.consumer.head = burst.consumer.head.wrapping_add(1);
            take(item);
        }
        count
    }

    /// Items that surely can be popped now; the producer may make it more at any time.
    #[inline]
    pub fn available(&mut self) -> usize {
        self.waiting(self.capacity())
    }

    /// Most items that the ring holds.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.mask + 1
    }

    /// Whether the producer is gone: once empty, the ring stays empty.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        Arc::strong_count(&self.shared) < 2
    }

    /// Waiting items, looking at the producer's line only if fewer than `wanted` are known.
    #[inline]
    fn waiting(&mut self, wanted: usize) -> usize {
        let known = self.known_tail.wrapping_sub(self.head);
        if known >= wanted {
            return known;
        }
        self.known_tail = self.shared.tail.load(Ordering::Acquire);
        self.known_tail.wrapping_sub(self.head)
    }
}

/// Frees the slots that were read, also if the caller's closure panics.
struct PopBurst<'a, T> {
    consumer: &'a mut Consumer<T>,
    before: usize,
}

impl<T> Drop for PopBurst<'_, T> {
    fn drop(&mut self) {
        if self.consumer.head != self.before {
            self.consumer.shared.head.store(self.consumer.head, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts how many of its kind are alive.
    struct Counted(Arc<AtomicUsize>, u64);

    impl Counted {
        fn new(alive: &Arc<AtomicUsize>, number: u64) -> Self {
            alive.fetch_add(1, Ordering::Relaxed);
            Self(Arc::clone(alive), number)
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_full_ring_gives_the_item_back() {
        let (mut producer, mut consumer) = ring(3);
        assert_eq!(producer.capacity(), 4);
        for number in 0..4 {
            assert_eq!(producer.push(number), Ok(()));
        }
        assert_eq!(producer.push(4), Err(4));
        assert_eq!(consumer.pop(), Some(0));
        assert_eq!(producer.push(4), Ok(()));
        assert_eq!(consumer.available(), 4);
        assert_eq!(
            (1..=5).map(|_| consumer.pop()).collect::<Vec<_>>(),
            [Some(1), Some(2), Some(3), Some(4), None]
        );
    }

    #[test]
    fn a_burst_takes_only_what_fits_and_leaves_the_rest() {
        let (mut producer, mut consumer) = ring(4);
        producer.push(100).unwrap();
        let mut items = 0..10;
        assert_eq!(producer.push_burst(&mut items), 3);
        assert_eq!(items, 3..10, "the fourth item was not taken out");
        assert_eq!(producer.push_burst(&mut items), 0);
        let mut seen = Vec::new();
        assert_eq!(consumer.pop_burst(2, |item| seen.push(item)), 2);
        assert_eq!(producer.free_slots(), 2);
        assert_eq!(consumer.pop_burst(9, |item| seen.push(item)), 2);
        assert_eq!(consumer.pop_burst(9, |item| seen.push(item)), 0);
        assert_eq!(seen, [100, 0, 1, 2]);
    }

    #[test]
    fn two_threads_lose_nothing_and_keep_the_order() {
        let total: u64 = if cfg!(miri) { 300 } else { 200_000 };
        let alive = Arc::new(AtomicUsize::new(0));
        let (mut producer, mut consumer) = ring(64);
        let for_producer = Arc::clone(&alive);
        let thread = std::thread::spawn(move || {
            let mut next = 0;
            while next < total {
                if next % 3 == 0 {
                    match producer.push(Counted::new(&for_producer, next)) {
                        Ok(()) => next += 1,
                        Err(_full) => std::thread::yield_now(),
                    }
                } else {
                    let mut burst =
                        (next..(next + 17).min(total)).map(|number| Counted::new(&for_producer, number));
                    next += producer.push_burst(&mut burst) as u64;
                }
            }
        });
        let mut expected = 0;
        while expected < total {
            let mut check = |item: Counted| {
                assert_eq!(item.1, expected);
                expected += 1;
            };
            if consumer.pop_burst(13, &mut check) == 0 {
                std::thread::yield_now();
            }
            if let Some(item) = consumer.pop() {
                check(item);
            }
        }
        thread.join().unwrap();
        assert!(consumer.pop().is_none());
        assert!(consumer.is_abandoned());
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_nobody_took_is_dropped_once() {
        let alive = Arc::new(AtomicUsize::new(0));
        let (mut producer, mut consumer) = ring(8);
        for number in 0..13 {
            let _full = producer.push(Counted::new(&alive, number));
            if number % 2 == 0 {
                drop(consumer.pop());
            }
        }
        assert!(alive.load(Ordering::Relaxed) > 0);
        assert!(!producer.is_abandoned());
        drop(consumer);
        assert!(producer.is_abandoned());
        drop(producer);
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_panic_in_a_burst_neither_loses_nor_repeats_an_item() {
        let alive = Arc::new(AtomicUsize::new(0));
        let (mut producer, mut consumer) = ring(8);
        for number in 0..5 {
            assert!(producer.push(Counted::new(&alive, number)).is_ok());
        }
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            consumer.pop_burst(5, |item| assert!(item.1 < 2, "stop at the third"));
        }));
        assert!(caught.is_err());
        assert_eq!(consumer.pop().map(|item| item.1), Some(3));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut items = (5..8).map(|number| {
                assert!(number < 7, "no more");
                Counted::new(&alive, number)
            });
            producer.push_burst(&mut items);
        }));
        assert!(caught.is_err());
        let mut rest = Vec::new();
        consumer.pop_burst(9, |item| rest.push(item.1));
        assert_eq!(rest, [4, 5, 6]);
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }
}
