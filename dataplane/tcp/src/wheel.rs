//! Whose time has come? A hierarchical timing wheel over the slots of a slab: one entry per connection, all in O(1).
//!
//! Four levels; a place is a doubly linked list through [`Link`]s that the records hold. The clock is in ticks, modulo 2^32. An
//! entry of an upper level moves down when its place comes round. The lowest level is wide enough for the time-outs of
//! ordinary connections, of which there are millions: they never move. Called by the engine and, for its sessions, by the
//! proxy.

/// A level: which bits of the clock say the place, where its places and their marks begin.
#[derive(Clone, Copy)]
struct Level {
    shift: u32,
    bits: u32,
    first: usize,
    first_word: usize,
}

impl Level {
    const fn places(self) -> usize {
        1 << self.bits
    }

    /// The place of a tick, counted from 0.
    #[inline(always)]
    const fn place(self, at: u32) -> usize {
        (at >> self.shift) as usize & (self.places() - 1)
    }
}

/// With ticks of a millisecond: 4 s, 65 s, 4 h 40, and the rest of the 32 bits. A place of the third, where keep-alive waits,
/// comes down with what was armed within a minute, not with all.
const LEVELS: [Level; 4] = [
    Level { shift: 0, bits: 12, first: 0, first_word: 0 },
    Level { shift: 12, bits: 4, first: 4_096, first_word: 64 },
    Level { shift: 16, bits: 8, first: 4_112, first_word: 65 },
    Level { shift: 24, bits: 8, first: 4_368, first_word: 69 },
];
/// The lowest.
const LOWEST: Level = LEVELS[0];
/// Places of all levels.
const PLACES: usize = 4_624;
/// Words of their marks.
const WORDS: usize = 73;
/// No entry.
pub const NONE: u32 = u32::MAX;
/// In [`Link::previous`], for the first of a list: the place, above all slots.
const PLACE: u32 = 0xffff_0000;

/// What a record holds for the wheel.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    next: u32,
    previous: u32,
    at: u32,
}

impl Link {
    /// In no list.
    pub const IDLE: Self = Self { next: NONE, previous: NONE, at: 0 };

    /// Whether it is in a list.
    #[inline]
    pub const fn is_armed(&self) -> bool {
        self.previous != NONE
    }

    /// Whether it comes at this tick or before.
    #[inline(always)]
    pub const fn is_armed_by(&self, at: u32) -> bool {
        self.is_armed() && at.wrapping_sub(self.at) as i32 >= 0
    }
}

/// Records that the wheel can order.
pub trait Entries {
    /// The link of a slot.
    fn link(&self, slot: u32) -> Option<&Link>;
    /// The link of a slot, to change.
    fn link_mut(&mut self, slot: u32) -> Option<&mut Link>;
    /// Asks for the memory of a slot that comes next.
    fn prefetch(&self, _slot: u32) {}
}

/// The wheel.
#[derive(Debug)]
pub struct Wheel {
    heads: Box<[u32; PLACES]>,
    /// Places that may hold something, a bit each.
    filled: [u64; WORDS],
    now: u32,
    armed: usize,
}

impl Wheel {
    /// An empty wheel at a tick.
    pub fn new(now: u32) -> Self {
        Self { heads: Box::new([NONE; PLACES]), filled: [0; WORDS], now, armed: 0 }
    }

    /// The tick that it has come to.
    #[inline]
    pub fn now(&self) -> u32 {
        self.now
    }

    /// Entries in it.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Where an entry due at `at` belongs: the level of the highest bit that differs from now, and the place in it.
    #[inline(always)]
    fn place(&self, at: u32) -> (Level, usize) {
        let differing = at ^ self.now;
        let [lowest, second, third, top] = LEVELS;
        let level = if differing >> second.shift == 0 {
            lowest
        } else if differing >> third.shift == 0 {
            second
        } else if differing >> top.shift == 0 {
            third
        } else {
            top
        };
        (level, level.place(at))
    }

    /// Arms an entry for a tick, or moves it there. What is due already comes with the next tick.
    #[inline]
    pub fn arm(&mut self, entries: &mut impl Entries, slot: u32, at: u32) {
        let at = if at.wrapping_sub(self.now) as i32 <= 0 { self.now.wrapping_add(1) } else { at };
        if let Some(link) = entries.link(slot)
            && link.is_armed()
        {
            if link.at == at {
                return;
            }
            self.disarm(entries, slot);
        }
        self.put(entries, slot, at);
    }

    fn put(&mut self, entries: &mut impl Entries, slot: u32, at: u32) {
        let (level, place) = self.place(at);
        let Some(head) = self.heads.get_mut(level.first + place) else { return };
        let next = *head;
        let Some(link) = entries.link_mut(slot) else { return };
        *link = Link { next, previous: PLACE | (level.first + place) as u32, at };
        *head = slot;
        if let Some(next) = entries.link_mut(next) {
            next.previous = slot;
        }
        if let Some(word) = self.filled.get_mut(level.first_word + place / 64) {
            *word |= 1 << (place % 64);
        }
        self.armed += 1;
    }

    /// Takes an entry out, if it is in.
    #[inline]
    pub fn disarm(&mut self, entries: &mut impl Entries, slot: u32) {
        let Some(link) = entries.link_mut(slot) else { return };
        if !link.is_armed() {
            return;
        }
        let Link { next, previous, .. } = std::mem::replace(link, Link::IDLE);
        if previous >= PLACE {
            if let Some(head) = self.heads.get_mut((previous & !PLACE) as usize) {
                *head = next;
            }
        } else if let Some(previous) = entries.link_mut(previous) {
            previous.next = next;
        }
        if let Some(next) = entries.link_mut(next) {
            next.previous = previous;
        }
        self.armed -= 1;
    }

    /// Takes all entries out that are due by `now`, one a call; `None`: the clock stands at `now`. An entry that is armed
    /// meanwhile for a tick up to `now` comes later in the same run or at the next tick.
    pub fn expire(&mut self, entries: &mut impl Entries, now: u32) -> Option<u32> {
        loop {
            let place = LOWEST.place(self.now);
            if let Some(&slot) = self.heads.get(place)
                && slot != NONE
            {
                self.disarm(entries, slot);
                if let Some(&next) = self.heads.get(place) {
                    entries.prefetch(next);
                }
                return Some(slot);
            }
            if now.wrapping_sub(self.now) as i32 <= 0 {
                return None;
            }
            if self.armed == 0 {
                self.now = now;
                return None;
            }
            self.step(entries, now);
        }
    }

    /// Moves the clock to the next place that holds something, at most to `now`; entries of upper levels come down where
    /// the clock passes them.
    fn step(&mut self, entries: &mut impl Entries, now: u32) {
        let place = LOWEST.place(self.now);
        let rest_of_turn = (LOWEST.places() - 1 - place) as u32;
        let ahead = self.next_filled(LOWEST, place + 1).map(|next| (next - place) as u32);
        let to_now = now.wrapping_sub(self.now);
        let jump = ahead.unwrap_or(rest_of_turn + 1).min(to_now);
        self.now = self.now.wrapping_add(jump.max(1));
        // a new turn of a level begins: what waits in the place above comes down
        for level in LEVELS.into_iter().skip(1) {
            if self.now & ((1 << level.shift) - 1) != 0 {
                break;
            }
            self.cascade(entries, level);
        }
    }

    fn cascade(&mut self, entries: &mut impl Entries, level: Level) {
        let head = self.heads.get_mut(level.first + level.place(self.now));
        let mut slot = head.map_or(NONE, |head| std::mem::replace(head, NONE));
        while let Some(link) = entries.link(slot) {
            let Link { next, at, .. } = *link;
            self.armed -= 1;
            self.put(entries, slot, at);
            slot = next;
        }
    }

    /// The first place of a level from `from` on that holds something; clears marks of places that don't.
    fn next_filled(&mut self, level: Level, from: usize) -> Option<usize> {
        let heads = self.heads.get(level.first..)?;
        let words = self.filled.get_mut(level.first_word..)?;
        let mut place = from;
        while place < level.places() {
            let word = words.get_mut(place / 64)?;
            let rest = *word >> (place % 64);
            if rest == 0 {
                place = (place / 64 + 1) * 64;
                continue;
            }
            place += rest.trailing_zeros() as usize;
            if heads.get(place).is_some_and(|head| *head != NONE) {
                return Some(place);
            }
            *word &= !(1 << (place % 64));
        }
        None
    }

    /// The earliest tick at which something may be due: exact for the rest of the lowest level's turn, else when a place above comes down.
    pub fn next_due(&mut self) -> Option<u32> {
        if self.armed == 0 {
            return None;
        }
        for level in LEVELS {
            let place = level.place(self.now);
            let from = if level.shift == 0 { place } else { place + 1 };
            if let Some(found) = self.next_filled(level, from) {
                let above = level.shift + level.bits;
                let base = self.now.checked_shr(above).map_or(0, |upper| upper << above);
                return Some(base | (found as u32) << level.shift);
            }
        }
        // only places of the top level behind the clock's wrap are left
        let [.., top] = LEVELS;
        self.next_filled(top, 0).map(|found| (found as u32) << top.shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slots(Vec<Link>);

    impl Entries for Slots {
        fn link(&self, slot: u32) -> Option<&Link> {
            self.0.get(slot as usize)
        }
        fn link_mut(&mut self, slot: u32) -> Option<&mut Link> {
            self.0.get_mut(slot as usize)
        }
    }

    #[test]
    fn each_entry_comes_at_its_tick_and_not_before() {
        for start in [0u32, 200, u32::MAX - 70_000, u32::MAX - 3] {
            let mut wheel = Wheel::new(start);
            let mut slots = Slots(vec![Link::IDLE; 1_000]);
            let mut due: Vec<u32> = Vec::new();
            let mut x = 88_172_645_463_325_252u64;
            for slot in 0..1_000u32 {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                let spread = [300, 70_000, 20_000_000][slot as usize % 3];
                let at = start.wrapping_add(1 + (x % spread) as u32);
                wheel.arm(&mut slots, slot, at);
                due.push(at.wrapping_sub(start));
            }
            // a third is moved, a third of the rest taken out
            for slot in (0..1_000u32).step_by(3) {
                let at = due[slot as usize] / 2 + 1;
                wheel.arm(&mut slots, slot, start.wrapping_add(at));
                due[slot as usize] = at;
            }
            for slot in (1..1_000u32).step_by(3) {
                wheel.disarm(&mut slots, slot);
                due[slot as usize] = u32::MAX;
            }
            let mut left = due.iter().filter(|at| **at != u32::MAX).count();
            assert_eq!(wheel.armed(), left);
            let mut now = 0u32;
            while left > 0 {
                let next = wheel.next_due().unwrap().wrapping_sub(start);
                let earliest = due.iter().min().copied().unwrap();
                assert!(next <= earliest, "promised {next}, earliest {earliest}");
                assert!(next >= now);
                now = next.max(now + 1).min(earliest);
                while let Some(slot) = wheel.expire(&mut slots, start.wrapping_add(now)) {
                    assert_eq!(due[slot as usize], now, "slot {slot} at {now}");
                    due[slot as usize] = u32::MAX;
                    left -= 1;
                }
            }
            assert_eq!(wheel.next_due(), None);
        }
    }

    #[test]
    fn a_long_jump_brings_all_and_what_is_due_already_comes_with_the_next_tick() {
        let mut wheel = Wheel::new(10);
        let mut slots = Slots(vec![Link::IDLE; 4]);
        for (slot, at) in [(0, 11), (1, 5_000), (2, 3_000_000), (3, 4)] {
            wheel.arm(&mut slots, slot, at);
        }
        let mut order = Vec::new();
        while let Some(slot) = wheel.expire(&mut slots, 9_000_000) {
            order.push(slot);
        }
        order[..2].sort_unstable();
        assert_eq!(order, [0, 3, 1, 2]);
        assert_eq!(wheel.armed(), 0);
    }
}
