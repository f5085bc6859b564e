//! May this backend be asked now? A circuit breaker per backend, of one worker.
//!
//! ```text
//!              failures in a row, too many of a window, or too slow
//!   Closed ──────────────────────────────────────────────────────────▶ Open
//!     ▲                                                             ▲    │ open_ms later, with
//!     │ the test succeeds                          the test fails   │    │ the next request
//!     └──────────────────────────── HalfOpen ◀──────────────────────┼────┘
//!                                      └────────────────────────────┘
//! ```
//!
//! Half open, one request at a time tests the backend, the others go elsewhere. A test whose client leaves says nothing: the next request
//! is one. What was begun before a change of state doesn't count after it.
//!
//! Each worker has its own breakers and learns by its own requests: a backend that fails is asked up to `consecutive` times by each worker.

use std::collections::VecDeque;

use weir_tcp::Instant;

use super::event::{BreakerChange, BreakerReason, BreakerState};
use super::rules::BreakerRules;

/// Parts of a window: it slides by a tenth.
const PARTS: usize = 10;
/// Changes that may wait to be told.
const WAITING: usize = 1_024;

/// Whether a backend may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Yes,
    /// It may, by one request that tests it.
    Test,
    /// It may not.
    No,
}

/// How a request to a backend ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a response that is no failure.
    Success {
        /// From passing the request on to the response's head.
        latency_us: u32,
    },
    /// Without a usable response, or with one that counts as failure.
    Failure,
    /// It says nothing about the backend: the client left.
    Aborted,
}

/// A request that was permitted, to be given back when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    backend: u32,
    epoch: u32,
    is_test: bool,
}

/// What requests of a part of the window came to.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    /// Which part it is: the time divided by a part's length.
    number: u64,
    requests: u32,
    failures: u32,
    latency_us: u64,
}

/// What requests of the window came to.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    requests: u32,
    failures: u32,
    latency_us: u64,
}

#[derive(Clone, Debug)]
struct Breaker {
    rules: BreakerRules,
    /// Address and port: an index that stands for another backend begins anew.
    identity: (u128, u16),
    state: BreakerState,
    /// Another one after each change of state.
    epoch: u32,
    opened_at: Instant,
    is_testing: bool,
    consecutive: u32,
    /// Only where a rule asks for a window.
    window: Option<Box<[Part; PARTS]>>,
}

/// The breakers of a worker, by backend.
#[derive(Debug, Default)]
pub struct Breakers {
    places: Vec<Option<Breaker>>,
    changes: VecDeque<BreakerChange>,
    /// Backends whose breaker is gone and was not closed.
    forgotten: Vec<u32>,
    epochs: u32,
}

impl Breakers {
    /// Takes over the backends of a generation that have a breaker: index, address and port, rules. Others are forgotten; a breaker
    /// whose backend stays keeps its state, but for one whose rules no longer exist.
    pub fn adopt(&mut self, backends: impl IntoIterator<Item = (u32, (u128, u16), BreakerRules)>) {
        let mut before = std::mem::take(&mut self.places);
        for (index, identity, rules) in backends {
            let at = index as usize;
            if self.places.len() <= at {
                self.places.resize_with(at + 1, || None);
            }
            self.epochs = self.epochs.wrapping_add(1);
            let known = before
                .get_mut(at)
                .filter(|place| place.as_ref().is_some_and(|known| known.identity == identity));
            let breaker = match known.and_then(Option::take) {
                Some(known) if known.rules == rules => known,
                Some(known) => Breaker { rules, window: window_of(&rules), ..known },
                None => Breaker::new(identity, rules, self.epochs),
            };
            if let Some(place) = self.places.get_mut(at) {
                *place = Some(breaker);
            }
        }
        for (index, gone) in (0..).zip(before) {
            if gone.is_some_and(|gone| gone.state != BreakerState::Closed) {
                self.forgotten.push(index);
            }
        }
        if self.changes.capacity() == 0 {
            self.changes.reserve(WAITING);
        }
    }

    fn at(&self, backend: u32) -> Option<&Breaker> {
        self.places.get(backend as usize)?.as_ref()
    }

    /// The state of a backend's breaker; closed where it has none.
    pub fn state(&self, backend: u32) -> BreakerState {
        self.at(backend).map_or(BreakerState::Closed, |breaker| breaker.state)
    }

    /// Whether a backend may be asked. Nothing changes by asking.
    #[inline]
    pub fn permits(&self, backend: u32, now: Instant) -> Permit {
        let Some(breaker) = self.at(backend) else { return Permit::Yes };
        match breaker.state {
            BreakerState::Closed => Permit::Yes,
            BreakerState::Open if breaker.is_elapsed(now) => Permit::Test,
            BreakerState::HalfOpen if !breaker.is_testing => Permit::Test,
            BreakerState::Open | BreakerState::HalfOpen => Permit::No,
        }
    }

    /// A request goes to a backend. Where a breaker wants a test, this is it; who asks a backend in spite of its breaker (when too few of
    /// a pool are left) tests nothing.
    pub fn started(&mut self, backend: u32, now: Instant) -> Ticket {
        let permit = self.permits(backend, now);
        let mut ticket = Ticket { backend, epoch: 0, is_test: permit == Permit::Test };
        let Some(Some(breaker)) = self.places.get_mut(backend as usize) else { return ticket };
        if permit == Permit::Test {
            let is_open = breaker.state == BreakerState::Open;
            if is_open {
                self.epochs = self.epochs.wrapping_add(1);
                let (state, reason) = (BreakerState::HalfOpen, BreakerReason::Elapsed);
                let change = breaker.turn(self.epochs, backend, state, reason, Sums::default());
                breaker.is_testing = true;
                self.tell(change);
            } else {
                breaker.is_testing = true;
            }
        }
        ticket.epoch = self.at(backend).map_or(0, |breaker| breaker.epoch);
        ticket
    }

    /// A request has ended.
    pub fn finished(&mut self, ticket: Ticket, outcome: Outcome, now: Instant) {
        let Some(Some(breaker)) = self.places.get_mut(ticket.backend as usize) else { return };
        if breaker.epoch != ticket.epoch {
            return;
        }
        self.epochs = self.epochs.wrapping_add(1);
        let epoch = self.epochs;
        let change = match breaker.state {
            BreakerState::Closed => breaker.count(outcome, now).map(|(reason, sums)| {
                breaker.opened_at = now;
                breaker.turn(epoch, ticket.backend, BreakerState::Open, reason, sums)
            }),
            BreakerState::HalfOpen if ticket.is_test => {
                breaker.is_testing = false;
                let most = u64::from(breaker.rules.latency_ms) * 1_000;
                match outcome {
                    Outcome::Aborted => None,
                    Outcome::Success { latency_us } if most == 0 || u64::from(latency_us) <= most => {
                        breaker.forget();
                        let reason = BreakerReason::TestSucceeded;
                        Some(breaker.turn(
                            epoch,
                            ticket.backend,
                            BreakerState::Closed,
                            reason,
                            Sums::default(),
                        ))
                    }
                    Outcome::Success { .. } | Outcome::Failure => {
                        breaker.opened_at = now;
                        breaker.consecutive = breaker.consecutive.saturating_add(1);
                        let reason = BreakerReason::TestFailed;
                        Some(breaker.turn(epoch, ticket.backend, BreakerState::Open, reason, Sums::default()))
                    }
                }
            }
            BreakerState::HalfOpen | BreakerState::Open => None,
        };
        if let Some(change) = change {
            self.tell(change);
        }
    }

    /// The next change to be told.
    pub fn poll_change(&mut self) -> Option<BreakerChange> {
        self.changes.pop_front()
    }

    /// The next backend whose breaker is gone with its backend, without having been closed: nothing is told of it, but a gauge may have to
    /// be put back.
    pub fn poll_forgotten(&mut self) -> Option<u32> {
        self.forgotten.pop()
    }

    fn tell(&mut self, change: BreakerChange) {
        if self.changes.len() >= WAITING {
            self.changes.pop_front();
        }
        self.changes.push_back(change);
    }
}

fn window_of(rules: &BreakerRules) -> Option<Box<[Part; PARTS]>> {
    (rules.ratio_percent > 0 || rules.latency_ms > 0).then(Box::default)
}

impl Breaker {
    fn new(identity: (u128, u16), rules: BreakerRules, epoch: u32) -> Self {
        Self {
            rules,
            identity,
            state: BreakerState::Closed,
            epoch,
            opened_at: Instant(0),
            is_testing: false,
            consecutive: 0,
            window: window_of(&rules),
        }
    }

    fn is_elapsed(&self, now: Instant) -> bool {
        now.since(self.opened_at) >= u64::from(self.rules.open_ms) * 1_000
    }

    fn turn(
        &mut self,
        epoch: u32,
        backend: u32,
        state: BreakerState,
        reason: BreakerReason,
        sums: Sums,
    ) -> BreakerChange {
        self.state = state;
        self.epoch = epoch;
        self.is_testing = false;
        let (requests, failures) = (sums.requests, sums.failures);
        BreakerChange { backend, state, reason, consecutive: self.consecutive, requests, failures }
    }

    fn forget(&mut self) {
        self.consecutive = 0;
        if let Some(window) = &mut self.window {
            **window = Default::default();
        }
    }

    /// Counts an outcome; why to open, and what there is in the window.
    fn count(&mut self, outcome: Outcome, now: Instant) -> Option<(BreakerReason, Sums)> {
        let latency_us = match outcome {
            Outcome::Aborted => return None,
            Outcome::Success { latency_us } => {
                self.consecutive = 0;
                Some(latency_us)
            }
            Outcome::Failure => {
                self.consecutive = self.consecutive.saturating_add(1);
                None
            }
        };
        let sums = self.slide(latency_us, now);
        let rules = &self.rules;
        if rules.consecutive > 0 && self.consecutive >= rules.consecutive {
            return Some((BreakerReason::Consecutive, sums));
        }
        if sums.requests < rules.least_requests.max(1) {
            return None;
        }
        let (requests, failures) = (u64::from(sums.requests), u64::from(sums.failures));
        if rules.ratio_percent > 0 && failures * 100 >= u64::from(rules.ratio_percent) * requests {
            return Some((BreakerReason::Ratio, sums));
        }
        let answered = requests - failures.min(requests);
        let most = u64::from(rules.latency_ms) * 1_000;
        let is_slow = most > 0 && answered > 0 && sums.latency_us / answered > most;
        is_slow.then_some((BreakerReason::Latency, sums))
    }

    /// Puts a request into the window; `None` failed. What there is in the window then.
    fn slide(&mut self, latency_us: Option<u32>, now: Instant) -> Sums {
        let part_us = (u64::from(self.rules.window_ms) * 1_000 / PARTS as u64).max(1);
        let Some(window) = &mut self.window else { return Sums::default() };
        // part 0 is what was never used
        let number = now.0 / part_us + 1;
        if let Some(part) = window.get_mut((number % PARTS as u64) as usize) {
            if part.number != number {
                *part = Part { number, ..Part::default() };
            }
            part.requests = part.requests.saturating_add(1);
            part.failures = part.failures.saturating_add(u32::from(latency_us.is_none()));
            part.latency_us += u64::from(latency_us.unwrap_or(0));
        }
        let recent = window.iter().filter(|part| part.number + PARTS as u64 > number && part.number > 0);
        recent.fold(Sums::default(), |sums, part| Sums {
            requests: sums.requests.saturating_add(part.requests),
            failures: sums.failures.saturating_add(part.failures),
            latency_us: sums.latency_us + part.latency_us,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use {BreakerReason as Why, BreakerState as State};

    const ME: (u128, u16) = (7, 80);
    const GOOD: Outcome = Outcome::Success { latency_us: 100 };
    const SLOW: Outcome = Outcome::Success { latency_us: 300_000 };
    const BAD: Outcome = Outcome::Failure;
    const GONE: Outcome = Outcome::Aborted;

    fn at(milliseconds: u64) -> Instant {
        Instant(1_000_000_000 + milliseconds * 1_000)
    }

    fn breakers(rules: BreakerRules) -> Breakers {
        let mut breakers = Breakers::default();
        breakers.adopt([(3, ME, rules)]);
        breakers
    }

    fn ask(breakers: &mut Breakers, outcome: Outcome, milliseconds: u64) -> Option<(State, Why)> {
        let ticket = breakers.started(3, at(milliseconds));
        breakers.finished(ticket, outcome, at(milliseconds));
        // the last one: a test may turn twice
        std::iter::from_fn(|| breakers.poll_change()).last().map(|change| (change.state, change.reason))
    }

    /// Requests one after the other, when they end, and what each turns the breaker to.
    #[test]
    fn states_follow_the_diagram() {
        let three = BreakerRules { consecutive: 3, open_ms: 1_000, ..BreakerRules::default() };
        let ratio = BreakerRules {
            consecutive: 0,
            ratio_percent: 50,
            window_ms: 1_000,
            least_requests: 4,
            open_ms: 1_000,
            ..three
        };
        let latency = BreakerRules { ratio_percent: 0, latency_ms: 200, ..ratio };
        type Step = (Outcome, u64, Option<(State, Why)>);
        let table: &[(&str, BreakerRules, &[Step])] = &[
            (
                "failures in a row",
                three,
                &[(BAD, 0, None), (BAD, 1, None), (BAD, 2, Some((State::Open, Why::Consecutive)))],
            ),
            (
                "a success between",
                three,
                &[(BAD, 0, None), (BAD, 1, None), (GOOD, 2, None), (BAD, 3, None), (BAD, 4, None)],
            ),
            (
                "who leaves says nothing",
                three,
                &[
                    (BAD, 0, None),
                    (BAD, 1, None),
                    (GONE, 2, None),
                    (BAD, 3, Some((State::Open, Why::Consecutive))),
                ],
            ),
            (
                "a test succeeds",
                three,
                &[
                    (BAD, 0, None),
                    (BAD, 0, None),
                    (BAD, 0, Some((State::Open, Why::Consecutive))),
                    (BAD, 999, None),
                    (GOOD, 1_000, Some((State::Closed, Why::TestSucceeded))),
                    (BAD, 1_001, None),
                    (BAD, 1_002, None),
                    (GOOD, 1_003, None),
                ],
            ),
            (
                "a test fails, then one succeeds",
                three,
                &[
                    (BAD, 0, None),
                    (BAD, 0, None),
                    (BAD, 0, Some((State::Open, Why::Consecutive))),
                    (BAD, 1_500, Some((State::Open, Why::TestFailed))),
                    (GOOD, 2_499, None),
                    (GONE, 2_500, Some((State::HalfOpen, Why::Elapsed))),
                    (GONE, 2_501, None),
                    (GOOD, 2_502, Some((State::Closed, Why::TestSucceeded))),
                ],
            ),
            (
                "half of a window",
                ratio,
                &[
                    (BAD, 0, None),
                    (BAD, 1, None),
                    (GOOD, 2, None),
                    (GOOD, 3, Some((State::Open, Why::Ratio))),
                ],
            ),
            (
                "less than half",
                ratio,
                &[
                    (BAD, 0, None),
                    (GOOD, 1, None),
                    (GOOD, 2, None),
                    (GOOD, 3, None),
                    (BAD, 4, None),
                    (GOOD, 5, None),
                ],
            ),
            (
                "the window slides",
                ratio,
                &[
                    (BAD, 0, None),
                    (BAD, 50, None),
                    (BAD, 60, None),
                    (BAD, 1_100, None),
                    (GOOD, 1_200, None),
                    (BAD, 1_300, None),
                    (GOOD, 2_250, None),
                    (GOOD, 2_260, None),
                ],
            ),
            (
                "slow",
                latency,
                &[
                    (SLOW, 0, None),
                    (SLOW, 1, None),
                    (GOOD, 2, None),
                    (SLOW, 3, Some((State::Open, Why::Latency))),
                    (SLOW, 1_003, Some((State::Open, Why::TestFailed))),
                    (GOOD, 2_003, Some((State::Closed, Why::TestSucceeded))),
                ],
            ),
            (
                "failures have no latency",
                latency,
                &[
                    (BAD, 0, None),
                    (BAD, 1, None),
                    (BAD, 2, None),
                    (BAD, 3, None),
                    (SLOW, 4, Some((State::Open, Why::Latency))),
                ],
            ),
        ];
        for (name, rules, steps) in table {
            let mut breakers = breakers(*rules);
            for (step, (outcome, when, expected)) in steps.iter().enumerate() {
                assert_eq!(ask(&mut breakers, *outcome, *when), *expected, "{name}, step {step}");
            }
        }
    }

    #[test]
    fn one_request_at_a_time_tests() {
        let mut breakers =
            breakers(BreakerRules { consecutive: 1, open_ms: 1_000, ..BreakerRules::default() });
        let early = breakers.started(3, at(0));
        let (other, late) = (breakers.started(3, at(0)), breakers.started(3, at(0)));
        breakers.finished(early, BAD, at(1));
        assert_eq!((breakers.state(3), breakers.permits(3, at(1_000))), (State::Open, Permit::No));
        // what began before the change doesn't count
        breakers.finished(other, BAD, at(500));
        assert_eq!(breakers.permits(3, at(1_001)), Permit::Test);
        let test = breakers.started(3, at(1_001));
        assert_eq!((breakers.state(3), breakers.permits(3, at(1_002))), (State::HalfOpen, Permit::No));
        // who asks nevertheless tests nothing
        let nevertheless = breakers.started(3, at(1_002));
        breakers.finished(nevertheless, GOOD, at(1_002));
        breakers.finished(late, GOOD, at(1_002));
        assert_eq!(breakers.state(3), State::HalfOpen);
        breakers.finished(test, GONE, at(1_003));
        assert_eq!((breakers.state(3), breakers.permits(3, at(1_003))), (State::HalfOpen, Permit::Test));
        let test = breakers.started(3, at(1_004));
        breakers.finished(test, GOOD, at(1_005));
        assert_eq!(breakers.permits(3, at(1_005)), Permit::Yes);
        let told: Vec<(State, Why)> = std::iter::from_fn(|| breakers.poll_change())
            .map(|change| (change.state, change.reason))
            .collect();
        assert_eq!(
            told,
            [
                (State::Open, Why::Consecutive),
                (State::HalfOpen, Why::Elapsed),
                (State::Closed, Why::TestSucceeded)
            ]
        );
    }

    #[test]
    fn generations_keep_who_stays() {
        let rules = BreakerRules { consecutive: 1, ..BreakerRules::default() };
        let mut breakers = breakers(rules);
        ask(&mut breakers, BAD, 0);
        breakers.adopt([(3, ME, BreakerRules { open_ms: 5, ratio_percent: 9, ..rules }), (9, ME, rules)]);
        assert_eq!((breakers.state(3), breakers.permits(3, at(5))), (State::Open, Permit::Test));
        let stale = breakers.started(9, at(6));
        // another backend of the same index
        breakers.adopt([(3, (8, 80), rules)]);
        assert_eq!((breakers.state(3), breakers.state(9)), (State::Closed, State::Closed));
        assert_eq!((breakers.poll_forgotten(), breakers.poll_forgotten()), (Some(3), None));
        let before = breakers.started(3, at(6));
        breakers.adopt([(3, (9, 80), rules)]);
        breakers.finished(before, BAD, at(6));
        assert_eq!(breakers.state(3), State::Closed);
        breakers.finished(stale, BAD, at(7));
        assert_eq!(breakers.state(9), State::Closed);
        // without a breaker everything goes
        assert_eq!(breakers.permits(70, at(0)), Permit::Yes);
        let ticket = breakers.started(70, at(0));
        breakers.finished(ticket, BAD, at(0));
        assert_eq!(breakers.poll_change(), None);
    }

    #[test]
    fn changes_that_nobody_hears_are_bounded() {
        let rules = BreakerRules { consecutive: 1, open_ms: 1, ..BreakerRules::default() };
        let mut breakers = breakers(rules);
        for step in 0..2_000 {
            let ticket = breakers.started(3, at(step * 2));
            breakers.finished(ticket, BAD, at(step * 2));
        }
        assert_eq!(std::iter::from_fn(|| breakers.poll_change()).count(), WAITING);
    }

    proptest! {
        /// However requests overlap: never two tests at once, and none while it is open and not elapsed.
        #[test]
        fn tests_never_overlap(steps in proptest::collection::vec((0u8..4, 0u64..700, any::<proptest::sample::Index>()), 1..300)) {
            let mut breakers = breakers(BreakerRules {
                consecutive: 2, ratio_percent: 40, least_requests: 5, window_ms: 500, open_ms: 1_000, latency_ms: 0,
            });
            let mut now = 0;
            let mut open: Vec<Ticket> = Vec::new();
            for (what, wait, which) in steps {
                now += wait;
                if what == 0 || open.is_empty() {
                    let permit = breakers.permits(3, at(now));
                    if permit != Permit::No {
                        let ticket = breakers.started(3, at(now));
                        prop_assert_eq!(ticket.is_test, permit == Permit::Test);
                        let epoch = ticket.epoch;
                        prop_assert!(!ticket.is_test || !open.iter().any(|other| other.is_test && other.epoch == epoch));
                        open.push(ticket);
                    }
                } else {
                    let ticket = open.swap_remove(which.index(open.len()));
                    breakers.finished(ticket, [GOOD, BAD, GONE][usize::from(what) - 1], at(now));
                }
                let testing = open.iter().any(|ticket| ticket.is_test && ticket.epoch == breakers.at(3).unwrap().epoch);
                prop_assert_eq!(testing, breakers.at(3).unwrap().is_testing);
            }
        }
    }
}
