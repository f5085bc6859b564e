//! Whose time has come? A hierarchical timing wheel over the slots of a slab: one entry per connection, all in O(1).
//!
//! Four levels of 256 places; a place is a doubly linked list through [`Link`]s that the records hold. The clock is in ticks, modulo
//! 2^32. An entry of an upper level moves down when its place comes round. Called by the engine and, for its sessions, by the
//! proxy.

/// Bits of a level.
const BITS: u32 = 8;
/// Places of a level.
const PLACES: usize = 1 << BITS;
/// Levels: together they cover all 32 bits of the clock.
const LEVELS: usize = 4;
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

    /// The tick that it is armed for.
    #[inline]
    pub const fn at(&self) -> u32 {
        self.at
    }
}

/// Records that the wheel can order.
pub trait Entries {
    /// The link of a slot.
    fn link(&self, slot: u32) -> Option<&Link>;
    /// The link of a slot, to change.
    fn link_mut(&mut self, slot: u32) -> Option<&mut Link>;
}

/// The wheel.
#[derive(Debug)]
pub struct Wheel {
    heads: Box<[[u32; PLACES]; LEVELS]>,
    /// Places that may hold something, a bit each.
    filled: [[u64; PLACES / 64]; LEVELS],
    now: u32,
    armed: usize,
}

impl Wheel {
    /// An empty wheel at a tick.
    pub fn new(now: u32) -> Self {
        let heads = Box::new([[NONE; PLACES]; LEVELS]);
        Self { heads, filled: [[0; PLACES / 64]; LEVELS], now, armed: 0 }
    }

    /// Entries in it.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Where an entry due at `at` belongs: the level of the highest byte that differs from now.
    #[inline]
    fn place(&self, at: u32) -> (usize, usize) {
        let differing = (at ^ self.now) | 1;
        let level = ((31 - differing.leading_zeros()) / BITS) as usize;
        (level, (at >> (level as u32 * BITS)) as usize & (PLACES - 1))
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
        let Some(head) = self.heads.get_mut(level).and_then(|level| level.get_mut(place)) else { return };
        let next = *head;
        let Some(link) = entries.link_mut(slot) else { return };
        *link = Link { next, previous: PLACE | (level as u32) << BITS | place as u32, at };
        *head = slot;
        if let Some(next) = entries.link_mut(next) {
            next.previous = slot;
        }
        if let Some(word) = self.filled.get_mut(level).and_then(|level| level.get_mut(place / 64)) {
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
            let (level, place) = ((previous >> BITS) as usize & 0xff, previous as usize & 0xff);
            if let Some(head) = self.heads.get_mut(level).and_then(|level| level.get_mut(place)) {
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
            let place = self.now as usize & (PLACES - 1);
            if let Some(&slot) = self.heads.first().and_then(|level| level.get(place))
                && slot != NONE
            {
                self.disarm(entries, slot);
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
        let place = self.now as usize & (PLACES - 1);
        let rest_of_turn = (PLACES - 1 - place) as u32;
        let ahead = self.next_filled(0, place + 1).map(|next| (next - place) as u32);
        let to_now = now.wrapping_sub(self.now);
        let jump = ahead.unwrap_or(rest_of_turn + 1).min(to_now);
        self.now = self.now.wrapping_add(jump.max(1));
        let mut level = 1;
        // a new turn of a level begins: what waits in the place above comes down
        while level < LEVELS && self.now & ((1 << (level as u32 * BITS)) - 1) == 0 {
            self.cascade(entries, level);
            level += 1;
        }
    }

    fn cascade(&mut self, entries: &mut impl Entries, level: usize) {
        let place = (self.now >> (level as u32 * BITS)) as usize & (PLACES - 1);
        let head = self.heads.get_mut(level).and_then(|level| level.get_mut(place));
        let mut slot = head.map_or(NONE, |head| std::mem::replace(head, NONE));
        while let Some(link) = entries.link(slot) {
            let Link { next, at, .. } = *link;
            self.armed -= 1;
            self.put(entries, slot, at);
            slot = next;
        }
    }

    /// The first place of a level from `from` on that holds something; clears marks of places that don't.
    fn next_filled(&mut self, level: usize, from: usize) -> Option<usize> {
        let heads = self.heads.get(level)?;
        let words = self.filled.get_mut(level)?;
        let mut place = from;
        while place < PLACES {
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

    /// The earliest tick at which something may be due: exact for the next 256 ticks, else when a place above comes down.
    pub fn next_due(&mut self) -> Option<u32> {
        if self.armed == 0 {
            return None;
        }
        for level in 0..LEVELS {
            let shift = level as u32 * BITS;
            let place = (self.now >> shift) as usize & (PLACES - 1);
            let from = if level == 0 { place } else { place + 1 };
            if let Some(found) = self.next_filled(level, from) {
                let base = if shift + BITS >= 32 { 0 } else { self.now >> (shift + BITS) << (shift + BITS) };
                return Some(base | (found as u32) << shift);
            }
        }
        // only places of the top level behind the clock's wrap are left
        self.next_filled(LEVELS - 1, 0).map(|found| (found as u32) << (BITS * 3))
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
