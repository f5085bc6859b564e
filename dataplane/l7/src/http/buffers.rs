//! Where do heads, answers and collected bodies lie that outlast a call? In buffers of four sizes, within one budget.
//!
//! A buffer has one of [`CLASSES`]; one that becomes too small is exchanged for the next larger one, and its bytes are copied. Buffers that
//! were given back are kept for the next, so that nothing is allocated while the same number is in use again and again. All together,
//! used or kept, stay within the budget: where it is spent, kept buffers of other classes make room first. What was kept without need since
//! the last [`Buffers::trim`] goes back to the allocator then.

/// Bytes of a small, a medium, a large, and a largest buffer.
pub const CLASSES: [usize; 4] = [1 << 10, 4 << 10, 16 << 10, 64 << 10];
/// What keeping a buffer costs beside its bytes.
const OVERHEAD: u64 = 32;

/// A buffer that somebody holds. It must be given back with [`Buffers::give`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Held(u32);

/// A buffer in somebody's hands.
#[derive(Debug, Default)]
struct Place {
    bytes: Vec<u8>,
    class: u8,
}

/// Buffers of one size that nobody holds.
#[derive(Debug, Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    /// The fewest that there were since the last trim: so many were not needed.
    fewest: usize,
}

/// The buffers of a worker.
#[derive(Debug)]
pub struct Buffers {
    places: Vec<Place>,
    free: Vec<u32>,
    kept: [Kept; CLASSES.len()],
    /// Bytes of buffers that are held.
    used: u64,
    /// Those, and the kept ones.
    allocated: u64,
    budget: u64,
}

/// What a buffer of a class counts.
fn cost(class: usize) -> u64 {
    CLASSES.get(class).map_or(0, |bytes| *bytes as u64 + OVERHEAD)
}

/// The smallest class that has room for so many bytes.
fn class_of(bytes: usize) -> Option<usize> {
    CLASSES.iter().position(|class| *class >= bytes)
}

impl Buffers {
    /// Buffers that take at most so many bytes together.
    pub fn new(budget: u64) -> Self {
        let (places, free, kept) = Default::default();
        Self { places, free, kept, used: 0, allocated: 0, budget }
    }

    /// Sets the budget. Buffers that are held beyond a smaller one stay until they are given back.
    pub fn set_ceiling(&mut self, budget: u64) {
        self.budget = budget;
        self.make_room(0);
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes in use or kept.
    #[cfg(test)]
    fn allocated(&self) -> u64 {
        self.allocated
    }

    /// The budget.
    pub fn ceiling(&self) -> u64 {
        self.budget
    }

    /// Whether no new connection should come: seven eighths are in use, the rest is for those that are there.
    pub fn is_full(&self) -> bool {
        self.used > self.budget - self.budget / 8
    }

    /// A buffer with these bytes; `None`: the budget is spent, or they are more than the largest takes.
    pub fn hold(&mut self, bytes: &[u8]) -> Option<Held> {
        let class = class_of(bytes.len())?;
        let mut buffer = self.take(class)?;
        buffer.extend_from_slice(bytes);
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                let at = u32::try_from(self.places.len()).ok()?;
                self.places.push(Place::default());
                at
            }
        };
        let place = self.places.get_mut(at as usize)?;
        *place = Place { bytes: buffer, class: class as u8 };
        Some(Held(at))
    }

    /// Puts bytes behind those that are there, in a larger buffer if need be; false: the budget is spent, or it would be more than the
    /// largest takes. Then it is as it was.
    #[must_use]
    pub fn append(&mut self, held: &Held, bytes: &[u8]) -> bool {
        let Some(place) = self.places.get_mut(held.0 as usize) else { return false };
        let Some(class) = class_of(place.bytes.len() + bytes.len()) else { return false };
        let old = usize::from(place.class);
        if class > old {
            let Some(mut larger) = self.take(class) else { return false };
            let Some(place) = self.places.get_mut(held.0 as usize) else { return false };
            larger.extend_from_slice(&place.bytes);
            place.class = class as u8;
            let smaller = std::mem::replace(&mut place.bytes, larger);
            self.keep(smaller, old);
        }
        if let Some(place) = self.places.get_mut(held.0 as usize) {
            place.bytes.extend_from_slice(bytes);
        }
        true
    }

    /// The bytes.
    #[inline]
    pub fn bytes(&self, held: &Held) -> &[u8] {
        self.places.get(held.0 as usize).map_or(&[], |place| &place.bytes)
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self, held: &Held) -> &mut [u8] {
        self.places.get_mut(held.0 as usize).map_or(&mut [], |place| &mut place.bytes)
    }

    /// Lets go of what is behind so many bytes.
    pub fn truncate(&mut self, held: &Held, len: usize) {
        if let Some(place) = self.places.get_mut(held.0 as usize) {
            place.bytes.truncate(len);
        }
    }

    /// Takes a buffer back.
    #[expect(clippy::needless_pass_by_value, reason = "who gives it back must not have it any more")]
    pub fn give(&mut self, held: Held) {
        let Some(place) = self.places.get_mut(held.0 as usize).map(std::mem::take) else { return };
        self.free.push(held.0);
        self.keep(place.bytes, usize::from(place.class));
    }

    /// Gives what wasn't needed since the last call back to the allocator. To be called every few seconds, when there is time.
    pub fn trim(&mut self) {
        for (class, kept) in self.kept.iter_mut().enumerate() {
            let needless = kept.fewest;
            kept.buffers.truncate(kept.buffers.len() - needless.min(kept.buffers.len()));
            self.allocated -= needless as u64 * cost(class);
            kept.fewest = kept.buffers.len();
        }
    }

    /// An empty buffer of a class.
    fn take(&mut self, class: usize) -> Option<Vec<u8>> {
        let kept = self.kept.get_mut(class)?;
        let buffer = match kept.buffers.pop() {
            Some(buffer) => {
                kept.fewest = kept.fewest.min(kept.buffers.len());
                buffer
            }
            None => {
                if self.used + cost(class) > self.budget {
                    return None;
                }
                self.make_room(cost(class));
                self.allocated += cost(class);
                Vec::with_capacity(CLASSES.get(class).copied()?)
            }
        };
        self.used += cost(class);
        Some(buffer)
    }

    /// Keeps a buffer that nobody holds any more, or lets it go where the budget has become smaller.
    fn keep(&mut self, mut buffer: Vec<u8>, class: usize) {
        buffer.clear();
        self.used -= cost(class);
        if let Some(kept) = self.kept.get_mut(class) {
            kept.buffers.push(buffer);
        }
        self.make_room(0);
    }

    /// Lets kept buffers go, the largest first, until so many bytes may be allocated or none is left.
    fn make_room(&mut self, bytes: u64) {
        for (class, kept) in self.kept.iter_mut().enumerate().rev() {
            while self.allocated + bytes > self.budget && kept.buffers.pop().is_some() {
                self.allocated -= cost(class);
                kept.fewest = kept.fewest.min(kept.buffers.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_move_to_larger_buffers() {
        let mut buffers = Buffers::new(1 << 20);
        let held = buffers.hold(b"GET ").unwrap();
        let mut expected = b"GET ".to_vec();
        for step in 0..64u8 {
            assert!(buffers.append(&held, &[step; 1_000]));
            expected.extend([step; 1_000]);
            assert_eq!(buffers.bytes(&held), expected);
            assert_eq!(buffers.used(), CLASSES[class_of(expected.len()).unwrap()] as u64 + OVERHEAD);
        }
        assert!(!buffers.append(&held, &[0; 1_600]), "more than the largest");
        assert_eq!(buffers.bytes(&held), expected);
        assert_eq!(buffers.hold(&[0; (64 << 10) + 1]), None);
        buffers.give(held);
        assert_eq!(buffers.used(), 0);
    }

    #[test]
    fn nothing_is_allocated_again() {
        let mut buffers = Buffers::new(1 << 20);
        let mut round = || {
            let held: Vec<Held> = (0..100).map(|_| buffers.hold(&[7; 900]).unwrap()).collect();
            let first: Vec<*const u8> = held.iter().map(|held| buffers.bytes(held).as_ptr()).collect();
            held.into_iter().rev().for_each(|held| buffers.give(held));
            (first, buffers.allocated())
        };
        assert_eq!(round(), round());
    }

    #[test]
    fn the_budget_holds_for_all_sizes() {
        let mut buffers = Buffers::new(cost(3) * 2);
        let (one, two) = (buffers.hold(&[1; 60_000]).unwrap(), buffers.hold(&[1; 60_000]).unwrap());
        assert_eq!(buffers.hold(b"x"), None);
        assert!(buffers.is_full());
        buffers.give(two);
        assert!(!buffers.is_full());
        // what is kept makes room for other sizes
        let small: Vec<Held> = std::iter::from_fn(|| buffers.hold(b"x")).collect();
        assert_eq!(small.len() as u64, cost(3) / cost(0));
        assert!(!buffers.append(&small[0], &[2; 2_000]), "nothing is left to grow");
        assert_eq!(buffers.bytes(&small[0]), b"x");
        assert!(buffers.allocated() <= buffers.ceiling());
        small.into_iter().for_each(|held| buffers.give(held));
        buffers.set_ceiling(cost(0));
        assert_eq!(buffers.allocated(), cost(3), "what is held stays");
        buffers.give(one);
        assert_eq!((buffers.allocated(), buffers.used()), (0, 0));
    }

    #[test]
    fn what_is_not_needed_goes_back() {
        let mut buffers = Buffers::new(1 << 20);
        let held: Vec<Held> = (0..100).map(|_| buffers.hold(b"x").unwrap()).collect();
        held.into_iter().for_each(|held| buffers.give(held));
        assert_eq!(buffers.allocated(), 100 * cost(0));
        buffers.trim();
        // since then at most ten at a time
        for _ in 0..50 {
            let held: Vec<Held> = (0..10).map(|_| buffers.hold(b"x").unwrap()).collect();
            held.into_iter().for_each(|held| buffers.give(held));
        }
        buffers.trim();
        assert_eq!(buffers.allocated(), 10 * cost(0));
        buffers.trim();
        assert_eq!(buffers.allocated(), 0);
    }

    proptest! {
        /// Whatever is held, grown and given back: bytes stay, and the books are right.
        #[test]
        fn the_books_are_right(steps in proptest::collection::vec((0u8..5, 0usize..20_000, any::<prop::sample::Index>()), 0..200)) {
            let mut buffers = Buffers::new(200_000);
            let mut held: Vec<(Held, Vec<u8>)> = Vec::new();
            for (number, (what, len, which)) in steps.into_iter().enumerate() {
                let bytes = vec![number as u8; len];
                match what {
                    0 | 1 => held.extend(buffers.hold(&bytes).map(|one| (one, bytes))),
                    2 if !held.is_empty() => {
                        let at = which.index(held.len());
                        let (one, expected) = &mut held[at];
                        if buffers.append(one, &bytes) {
                            expected.extend(bytes);
                        }
                    }
                    3 if !held.is_empty() => buffers.give(held.swap_remove(which.index(held.len())).0),
                    4 => buffers.trim(),
                    _ => {}
                }
                for (one, expected) in &held {
                    prop_assert_eq!(buffers.bytes(one), expected.as_slice());
                }
                let classes = held.iter().map(|(one, _)| usize::from(buffers.places[one.0 as usize].class));
                let used: u64 = classes.map(cost).sum();
                let kept: u64 = (0..4).map(|class| buffers.kept[class].buffers.len() as u64 * cost(class)).sum();
                prop_assert_eq!((buffers.used(), buffers.allocated()), (used, used + kept));
                prop_assert!(buffers.allocated() <= buffers.ceiling());
                prop_assert!(buffers.places.iter().all(|place| CLASSES.contains(&place.bytes.capacity()) || place.bytes.capacity() == 0));
            }
        }
    }
}
