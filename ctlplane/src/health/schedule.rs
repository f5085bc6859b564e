//! When is which target probed, and what do the results say? Sans-IO: time is an argument, in microseconds since any origin.
//!
//! ```text
//! insert ─▶ due ─▶ (the probe) ─▶ finished ─▶ a change of standing, or none
//!            ▲                        │
//!            └────────────────────────┘
//! ```
//!
//! **Never in bursts.** Each target has a phase of its own: multiples of the golden ratio, which lie evenly over the interval
//! however many there are, also while targets come and go. Probes keep to that grid, give or take the jitter; the first
//! one comes within [`START_US`]. Where the process was held up, what is overdue is let out at twice the usual rate.
//!
//! **Hysteresis.** The first result decides alone. After that `fall` failures in a row make a target down, and `rise` successes in a row make it
//! up; while the last result contradicts the standing, the next probe comes after the fast interval.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Within this the first probes of all targets are spread, where their interval is not shorter.
pub const START_US: u64 = 1_000_000;
/// Longest time between two probes that are overdue.
const MOST_GAP_US: u64 = 1_000;
/// Probes may be early against the usual rate by this much time: timers are that coarse.
const SLACK_US: u64 = 2_000;
/// The golden ratio's fraction, of 2^64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// How a target is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rhythm {
    /// Between two probes; above 0.
    pub interval_us: u64,
    /// Between two probes while in doubt; above 0.
    pub fast_us: u64,
    /// Longest that a probe may take.
    pub timeout_us: u64,
    /// Width of the window in which a probe lies, in percent of its interval; 0 to 100.
    pub jitter_percent: u8,
    /// Successes in a row that make it up; at least 1.
    pub rise: u8,
    /// Failures in a row that make it down; at least 1.
    pub fall: u8,
}

/// What is known of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No probe has ended yet.
    Unknown,
    /// It answers.
    Up,
    /// It does not.
    Down,
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Good,
    /// Not as it should.
    Bad,
    /// It could not be made, for a reason that is this machine's: it says nothing about the target.
    Untold,
}

/// A target, as long as it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId {
    slot: u32,
    life: u32,
}

/// A probe that is to be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Of which target.
    pub id: TargetId,
    /// When it has failed unless it has ended.
    pub deadline_us: u64,
}

#[derive(Clone, Copy, Debug)]
struct Target {
    rhythm: Rhythm,
    /// Of the interval, of 2^64.
    phase: u64,
    standing: Standing,
    /// Results in a row that contradict the standing.
    against: u8,
    /// When the next probe comes, or the one in flight began.
    at_us: u64,
    in_flight: bool,
}

#[derive(Debug)]
struct Slot {
    life: u32,
    target: Option<Target>,
}

/// All targets.
#[derive(Debug)]
pub struct Schedule {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Those that wait; entries of targets that are gone, or wait for another time, are passed over.
    queue: BinaryHeap<Reverse<(u64, TargetId)>>,
    /// Targets ever inserted.
    inserted: u64,
    /// Probes per 1000 seconds, all targets at their fast rate.
    rate: u64,
    /// Before this no probe is let out.
    paced_us: u64,
    random: u64,
}

impl Schedule {
    /// No targets; `seed` is for the jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            queue: BinaryHeap::new(),
            inserted: 0,
            rate: 0,
            paced_us: 0,
            random: seed | 1,
        }
    }

    /// Adds a target whose first result decides alone.
    pub fn insert(&mut self, rhythm: Rhythm, now_us: u64) -> TargetId {
        self.inserted = self.inserted.wrapping_add(1);
        let phase = self.inserted.wrapping_mul(GOLDEN);
        let at_us = now_us + share(phase, rhythm.interval_us.min(START_US));
        let target =
            Target { rhythm, phase, standing: Standing::Unknown, against: 0, at_us, in_flight: false };
        self.rate += rate_of(&rhythm);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { life: 0, target: None });
            self.slots.len() as u32 - 1
        });
        let mut id = TargetId { slot, life: 0 };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            id.life = place.life;
            place.target = Some(target);
        }
        self.queue.push(Reverse((at_us, id)));
        id
    }

    /// Forgets a target; what its probe in flight will tell is ignored.
    pub fn remove(&mut self, id: TargetId) {
        let Some(place) = self.slots.get_mut(id.slot as usize).filter(|slot| slot.life == id.life) else {
            return;
        };
        if let Some(target) = place.target.take() {
            place.life = place.life.wrapping_add(1);
            self.rate -= rate_of(&target.rhythm);
            self.free.push(id.slot);
        }
    }

    fn target(&self, id: TargetId) -> Option<&Target> {
        self.slots.get(id.slot as usize).filter(|slot| slot.life == id.life)?.target.as_ref()
    }

    /// What is known of a target.
    pub fn standing(&self, id: TargetId) -> Standing {
        self.target(id).map_or(Standing::Unknown, |target| target.standing)
    }

    /// Whether the last results contradict the standing.
    pub fn in_doubt(&self, id: TargetId) -> bool {
        self.target(id).is_some_and(|target| target.against > 0)
    }

    /// When its next probe comes; `None` while one is in flight.
    pub fn next_of(&self, id: TargetId) -> Option<u64> {
        self.target(id).filter(|target| !target.in_flight).map(|target| target.at_us)
    }

    /// When [`Self::due`] should be asked again.
    pub fn next_us(&mut self) -> Option<u64> {
        self.drop_stale();
        self.queue.peek().map(|Reverse((at_us, _))| (*at_us).max(self.paced_us.saturating_sub(SLACK_US)))
    }

    fn drop_stale(&mut self) {
        while let Some(Reverse((at_us, id))) = self.queue.peek() {
            if self.target(*id).is_some_and(|target| !target.in_flight && target.at_us == *at_us) {
                return;
            }
            self.queue.pop();
        }
    }

    /// The next probe to make; asked until it gives none.
    pub fn due(&mut self, now_us: u64) -> Option<Due> {
        if self.next_us()? > now_us {
            return None;
        }
        let Reverse((_, id)) = self.queue.pop()?;
        // 10^9 / 2 rate: thousandths of a second of a thousand seconds
        let gap = (500_000_000 / self.rate.max(1)).min(MOST_GAP_US);
        self.paced_us = self.paced_us.max(now_us) + gap;
        let target = self.slots.get_mut(id.slot as usize)?.target.as_mut()?;
        target.in_flight = true;
        target.at_us = now_us;
        Some(Due { id, deadline_us: now_us + target.rhythm.timeout_us })
    }

    /// Takes a result and plans the next probe; gives the standing where it has changed.
    pub fn finished(&mut self, id: TargetId, ended: Ended, now_us: u64) -> Option<Standing> {
        let width = self.next_random();
        let target =
            self.slots.get_mut(id.slot as usize).filter(|slot| slot.life == id.life)?.target.as_mut()?;
        if !target.in_flight {
            return None;
        }
        let before = target.standing;
        target.take(ended);
        target.in_flight = false;
        target.at_us = target.next_after(now_us, width);
        let (standing, at_us) = (target.standing, target.at_us);
        self.queue.push(Reverse((at_us, id)));
        (standing != before).then_some(standing)
    }

    /// xorshift: jitter needs no more.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

impl Target {
    fn take(&mut self, ended: Ended) {
        let (said, needed) = match ended {
            Ended::Good => (Standing::Up, self.rhythm.rise),
            Ended::Bad => (Standing::Down, self.rhythm.fall),
            Ended::Untold => return,
        };
        if said == self.standing {
            self.against = 0;
            return;
        }
        self.against = self.against.saturating_add(1);
        if self.standing == Standing::Unknown || self.against >= needed {
            self.standing = said;
            self.against = 0;
        }
    }

    /// The next time on the grid, or a fast interval after the last probe began.
    fn next_after(&self, now_us: u64, random: u64) -> u64 {
        let jittered = |at_us: u64, interval_us: u64| {
            let window = interval_us * u64::from(self.rhythm.jitter_percent) / 100;
            (at_us + share(random, window)).saturating_sub(window / 2)
        };
        if self.against > 0 {
            return jittered(self.at_us + self.rhythm.fast_us, self.rhythm.fast_us).max(now_us);
        }
        let interval_us = self.rhythm.interval_us;
        // at least half an interval away, so that one probe does not come right upon another
        let least = (self.at_us + interval_us / 2).max(now_us);
        let phase_us = share(self.phase, interval_us);
        let periods = least.saturating_sub(phase_us).div_ceil(interval_us);
        jittered(phase_us + periods * interval_us, interval_us).max(now_us)
    }
}

fn share(of_2_64: u64, whole: u64) -> u64 {
    ((u128::from(of_2_64) * u128::from(whole)) >> 64) as u64
}

fn rate_of(rhythm: &Rhythm) -> u64 {
    1_000_000_000 / rhythm.interval_us.min(rhythm.fast_us).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn rhythm(rise: u8, fall: u8) -> Rhythm {
        Rhythm {
            interval_us: 2 * SECOND,
            fast_us: SECOND / 2,
            timeout_us: SECOND,
            jitter_percent: 10,
            rise,
            fall,
        }
    }

    /// Lets time pass until the next probe, which takes `took_us`.
    fn probe(schedule: &mut Schedule, took_us: u64, ended: Ended) -> (u64, Option<Standing>) {
        let at = schedule.next_us().unwrap();
        let due = schedule.due(at).unwrap();
        assert_eq!(due.deadline_us, at + SECOND);
        (at, schedule.finished(due.id, ended, at + took_us))
    }

    #[test]
    fn detected_and_recovered_within_the_bounds() {
        let mut schedule = Schedule::new(1);
        schedule.insert(rhythm(2, 3), 0);
        assert_eq!(probe(&mut schedule, 10, Ended::Good).1, Some(Standing::Up));
        let (broken, _) = probe(&mut schedule, 10, Ended::Good);
        assert_eq!(probe(&mut schedule, SECOND, Ended::Bad).1, None);
        assert_eq!(probe(&mut schedule, SECOND, Ended::Bad).1, None);
        let (third, standing) = probe(&mut schedule, SECOND, Ended::Bad);
        assert_eq!(standing, Some(Standing::Down));
        // an interval with its jitter, then two fast ones, each of which waits for the timeout
        assert!(third + SECOND - broken <= 22 * SECOND / 10 + 3 * SECOND, "{}", third - broken);
        let (mended, standing) = probe(&mut schedule, 10, Ended::Good);
        assert_eq!(standing, None);
        let (second, standing) = probe(&mut schedule, 10, Ended::Good);
        assert_eq!(standing, Some(Standing::Up));
        assert!(second - mended <= 6 * SECOND / 10);
    }

    #[test]
    fn probes_are_spread_evenly_from_the_start_and_after_a_stall() {
        const TARGETS: usize = 10_000;
        let mut schedule = Schedule::new(7);
        for _ in 0..TARGETS {
            schedule.insert(rhythm(2, 3), 0);
        }
        let mut most = 0;
        let mut made = 0usize;
        // by the millisecond, as timers go
        let mut run = |schedule: &mut Schedule, from: u64, to: u64| {
            for now in (from..to).step_by(1_000) {
                let mut burst = 0;
                while let Some(due) = schedule.due(now) {
                    schedule.finished(due.id, Ended::Good, now);
                    burst += 1;
                }
                most = most.max(burst);
                made += burst;
            }
            (std::mem::take(&mut most), std::mem::take(&mut made))
        };
        let (most, made) = run(&mut schedule, 0, SECOND + 1_000);
        assert_eq!(made, TARGETS, "the first round takes a second");
        assert!(most <= 14, "{most} in one millisecond at the start");
        let (most, made) = run(&mut schedule, SECOND + 1_000, 21 * SECOND);
        assert!((90_000..110_000).contains(&made), "{made} in 20 s");
        assert!(most <= 20, "{most} in one millisecond");
        // nothing ran for three seconds: all are overdue
        let (most, made) = run(&mut schedule, 24 * SECOND, 25 * SECOND);
        assert!(most <= 85, "{most} in one millisecond after a stall");
        assert!(made >= TARGETS, "{made}");
    }

    #[test]
    fn few_targets_are_not_held_up() {
        let mut schedule = Schedule::new(3);
        for _ in 0..3 {
            schedule.insert(Rhythm { interval_us: 60 * SECOND, fast_us: 60 * SECOND, ..rhythm(1, 1) }, 0);
        }
        let made = std::iter::from_fn(|| schedule.due(60 * SECOND)).count();
        assert!(made >= 2, "{made}");
    }

    /// One that keeps all results and looks back.
    fn naive(results: &[Ended], rise: usize, fall: usize) -> Standing {
        let told: Vec<bool> =
            results.iter().filter(|r| **r != Ended::Untold).map(|r| *r == Ended::Good).collect();
        let Some(first) = told.first() else { return Standing::Unknown };
        let mut up = *first;
        for end in 1..=told.len() {
            let last =
                |count: usize, good: bool| end >= count && told[end - count..end].iter().all(|g| *g == good);
            if up && last(fall, false) {
                up = false;
            } else if !up && last(rise, true) {
                up = true;
            }
        }
        if up { Standing::Up } else { Standing::Down }
    }

    proptest! {
        #[test]
        fn as_the_naive_model(
            results in prop::collection::vec(prop_oneof![Just(Ended::Good), Just(Ended::Bad), Just(Ended::Untold)], 0..60),
            rise in 1u8..5, fall in 1u8..5, seed: u64, jitter in 0u8..=100,
        ) {
            let mut schedule = Schedule::new(seed);
            let id = schedule.insert(Rhythm { jitter_percent: jitter, ..rhythm(rise, fall) }, 0);
            let mut last = None;
            for made in 0..results.len() {
                let at = schedule.next_us().unwrap();
                prop_assert!(schedule.due(at - u64::from(at > 0)).is_none() || at == 0);
                let due = if at == 0 { schedule.due(0) } else { schedule.due(at) };
                let Some(due) = due else { prop_assert!(false, "not due"); break };
                prop_assert!(schedule.due(u64::MAX / 2).is_none(), "one probe in flight");
                prop_assert!(schedule.next_of(id).is_none());
                let in_doubt = schedule.in_doubt(id);
                let before = schedule.standing(id);
                let changed = schedule.finished(due.id, results[made], at + 5);
                let now = schedule.standing(id);
                prop_assert_eq!(changed, (now != before).then_some(now));
                prop_assert_eq!(now, naive(&results[..=made], rise.into(), fall.into()));
                if let Some(last) = last {
                    let most = if in_doubt { SECOND * 3 / 4 } else { 2 * SECOND * 2 };
                    prop_assert!(at - last <= most, "{} after the one before", at - last);
                }
                last = Some(at);
            }
        }

        #[test]
        fn targets_come_and_go(steps in prop::collection::vec((0u8..4, 0usize..8), 1..200), seed: u64) {
            let mut schedule = Schedule::new(seed);
            let (mut there, mut flying, mut now) = (Vec::new(), Vec::new(), 0);
            for (what, which) in steps {
                match what {
                    0 => there.push(schedule.insert(rhythm(1, 1), now)),
                    1 if !there.is_empty() => schedule.remove(there.remove(which % there.len())),
                    2 => {
                        if let Some(at) = schedule.next_us() {
                            now = at.max(now);
                            let due = schedule.due(now).unwrap();
                            prop_assert!(there.contains(&due.id));
                            flying.push(due.id);
                        }
                    }
                    _ if !flying.is_empty() => {
                        let id = flying.remove(which % flying.len());
                        let changed = schedule.finished(id, Ended::Bad, now);
                        prop_assert!(changed.is_none() || there.contains(&id));
                    }
                    _ => {}
                }
            }
            for id in there {
                schedule.remove(id);
            }
            prop_assert_eq!(schedule.next_us(), None);
            prop_assert_eq!(schedule.rate, 0);
        }
    }
}
