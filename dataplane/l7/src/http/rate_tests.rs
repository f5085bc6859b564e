//! Does the limit hold, on one worker and across several, and does nobody wait in vain?

use proptest::prelude::*;

use super::*;
use crate::http::rules::RateKey;

const SECRET: [u64; 2] = [3, 5];

fn limit(per_second: u64, burst: u32) -> RateLimit {
    RateLimit { name: "api".into(), key: RateKey::All, millis_per_second: per_second * 1_000, burst }
}

fn at(milliseconds: u64) -> Instant {
    Instant(1_000_000 + milliseconds * 1_000)
}

#[test]
fn a_bucket_empties_and_refills() {
    let mut rates = Rates::new(0, 1, 64, SECRET);
    let limit = limit(2, 3);
    let key = rates.key(1, &limit, KeyValue::All);
    let mut take = |now| rates.take(1, &limit, key, at(now));
    assert_eq!([take(0), take(0), take(0)], [Taken::Yes; 3]);
    assert_eq!(take(0), Taken::No { retry_after_s: 1 });
    assert_eq!(take(499), Taken::No { retry_after_s: 1 });
    assert_eq!([take(500), take(500)], [Taken::Yes, Taken::No { retry_after_s: 1 }]);
    assert_eq!([take(9_000), take(9_000), take(9_000)], [Taken::Yes; 3]);
    assert!(matches!(take(9_000), Taken::No { .. }));
    let slow = RateLimit { millis_per_second: 10, burst: 1, ..limit.clone() };
    let key = rates.key(2, &slow, KeyValue::All);
    assert_eq!(rates.take(2, &slow, key, at(0)), Taken::Yes);
    assert_eq!(rates.take(2, &slow, key, at(500)), Taken::No { retry_after_s: 100 });
    // rates and bursts at the ends of their ranges
    for (millis_per_second, burst) in [(0, 0), (1, u32::MAX), (u64::MAX, u32::MAX), (u64::MAX, 1)] {
        let odd = RateLimit { millis_per_second, burst, ..limit.clone() };
        let key = rates.key(3, &odd, KeyValue::Header(Some(&burst.to_be_bytes())));
        assert_eq!(rates.take(3, &odd, key, Instant(u64::MAX / 1_000)), Taken::Yes);
    }
}

#[test]
fn keys_are_told_apart() {
    let rates = Rates::new(0, 1, 64, SECRET);
    let (limit, other) = (limit(1, 1), RateLimit { name: "other".into(), ..limit(1, 1) });
    let client = |text: &str| KeyValue::Client(text.parse().unwrap());
    let keys = [
        rates.key(1, &limit, KeyValue::All),
        rates.key(2, &limit, KeyValue::All),
        rates.key(1, &other, KeyValue::All),
        rates.key(1, &limit, client("198.18.0.1")),
        rates.key(1, &limit, client("198.18.0.2")),
        rates.key(1, &limit, client("2001:db8::1")),
        rates.key(1, &limit, client("2001:db8:0:1::1")),
        rates.key(1, &limit, KeyValue::Header(None)),
        rates.key(1, &limit, KeyValue::Header(Some(b""))),
        rates.key(1, &limit, KeyValue::Header(Some(b"x"))),
    ];
    let distinct: std::collections::HashSet<u64> = keys.into_iter().collect();
    assert_eq!(distinct.len(), keys.len());
    assert_eq!(rates.key(1, &limit, client("2001:db8::1")), rates.key(1, &limit, client("2001:db8::ffff:1")));
    assert_ne!(Rates::new(0, 1, 64, [3, 6]).key(1, &limit, KeyValue::All), keys[0]);
}

#[test]
fn full_buckets_make_place_and_the_rest_share() {
    let mut rates = Rates::new(0, 1, WAYS, SECRET);
    let limit = limit(1, 2);
    let keys: Vec<u64> = (0u8..30).map(|at| rates.key(1, &limit, KeyValue::Header(Some(&[at])))).collect();
    for key in &keys[..WAYS] {
        assert_eq!(rates.take(1, &limit, *key, at(0)), Taken::Yes);
    }
    assert_eq!(rates.take_crowded(), 0);
    // no place: two tokens for all of them together
    let shared: Vec<Taken> =
        keys[WAYS..WAYS + 4].iter().map(|key| rates.take(1, &limit, *key, at(0))).collect();
    assert_eq!(
        shared,
        [Taken::Yes, Taken::Yes, Taken::No { retry_after_s: 1 }, Taken::No { retry_after_s: 1 }]
    );
    assert_eq!(rates.take_crowded(), 4);
    // who has a place keeps its bucket
    assert_eq!(rates.take(1, &limit, keys[0], at(0)), Taken::Yes);
    assert_eq!(rates.take(1, &limit, keys[0], at(0)), Taken::No { retry_after_s: 1 });
    // a second later the others have lost nothing
    for key in &keys[20..20 + WAYS - 1] {
        assert_eq!(rates.take(1, &limit, *key, at(1_000)), Taken::Yes);
        assert_eq!(rates.take(1, &limit, *key, at(1_000)), Taken::Yes);
    }
    assert_eq!(rates.take_crowded(), 0);
    assert_eq!(rates.take(1, &limit, keys[0], at(1_000)), Taken::Yes);
    assert_eq!(rates.take(1, &limit, keys[0], at(1_000)), Taken::No { retry_after_s: 1 });
}

/// Workers, and messages on their way.
struct Node {
    workers: Vec<Rates>,
    /// When it arrives, from, to.
    flying: Vec<(u64, u16, u16, RateMessage)>,
    limit: RateLimit,
    key: u64,
}

impl Node {
    fn new(workers: u16, limit: RateLimit) -> Self {
        let workers: Vec<Rates> = (0..workers).map(|at| Rates::new(at, workers, 64, SECRET)).collect();
        let key = workers[0].key(1, &limit, KeyValue::All);
        Self { workers, flying: Vec::new(), limit, key }
    }

    fn owner(&self) -> usize {
        usize::from(self.workers[0].owner(self.key))
    }

    /// A worker that isn't the owner.
    fn other(&self) -> usize {
        (self.owner() + 1) % self.workers.len()
    }

    fn take(&mut self, worker: usize, now: u64) -> bool {
        self.workers[worker].take(1, &self.limit, self.key, at(now)) == Taken::Yes
    }

    /// Delivers what has arrived and sends what is to be told; `delay` tells how long it takes, `None`: it is lost.
    fn deliver(&mut self, now: u64, mut delay: impl FnMut() -> Option<u64>) {
        loop {
            for (from, worker) in (0..).zip(&mut self.workers) {
                while let Some((to, message)) = worker.poll_message(at(now)) {
                    assert_ne!(from, to);
                    if let Some(delay) = delay() {
                        self.flying.push((now + delay, from, to, message));
                    }
                }
            }
            let Some(place) = self.flying.iter().position(|(when, ..)| *when <= now) else { break };
            let (_, from, to, message) = self.flying.swap_remove(place);
            self.workers[usize::from(to)].receive(from, message, at(now));
        }
    }
}

#[test]
fn a_client_below_the_limit_is_never_refused_wherever_it_comes() {
    for (per_second, burst, every_ms) in [(100, 10, 11), (1, 2, 1_001), (1_000, 100, 2), (10, 5, 101)] {
        let mut node = Node::new(4, limit(per_second, burst));
        let worker = node.other();
        for now in 0..20_000 {
            node.deliver(now, || Some(10));
            if now % every_ms == 0 {
                assert!(node.take(worker, now), "{per_second} {burst} at {now} ms");
            }
        }
    }
}

#[test]
fn who_asks_too_much_gets_the_rate() {
    for workers in 1..6u16 {
        let mut node = Node::new(workers, limit(100, 20));
        let mut given = 0;
        for now in 0..20_000 {
            node.deliver(now, || Some(5));
            given += (0..usize::from(workers)).filter(|worker| node.take(*worker, now)).count();
        }
        assert!((1_980..2_060).contains(&given), "{given} of {workers} workers");
    }
}

#[test]
fn what_is_lost_is_told_again() {
    let mut node = Node::new(2, limit(10, 40));
    let (owner, other) = (node.owner(), node.other());
    let lease = lease(&node.limit, 2);
    let spent = (0..40).filter(|_| node.take(other, 0)).count();
    assert_eq!(spent, lease as usize);
    node.deliver(0, || None);
    assert!(!node.take(other, 400));
    // told again, with the next request
    assert!(!node.take(other, 501));
    node.deliver(501, || Some(0));
    let left = (0..40).filter(|_| node.take(owner, 501)).count();
    assert_eq!(left, 40 - lease as usize);
    // it knew of more than there is by now: once
    assert_eq!((0..40).filter(|_| node.take(other, 502)).count(), lease as usize);
    // answers that come late, twice, or for somebody else change nothing
    let level = RateMessage::Level { key: node.key, busy_ns: 0, sequence: 1 };
    node.workers[other].receive(owner as u16, level, at(502));
    node.workers[other].receive(
        owner as u16,
        RateMessage::Level { key: 99, busy_ns: 0, sequence: 1 },
        at(502),
    );
    assert!(!node.take(other, 502));
    let odd = RateMessage::Spent { key: 77, tokens: u32::MAX, cost_ns: u64::MAX, sequence: 0 };
    node.workers[owner].receive(u16::MAX, odd, at(503));
    assert_eq!(node.workers[owner].poll_message(at(503)), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever comes where and when, and however long messages take: the bound that the module states.
    #[test]
    fn the_bound_holds_in_any_window(
        workers in 1u16..6,
        per_second in 1u64..300,
        burst in 1u32..60,
        steps in proptest::collection::vec((0usize..6, 0u64..60, 1usize..40, 0u64..80), 1..150),
        loses in proptest::option::of(2u64..9),
        delay in 0u64..200,
        focus in any::<bool>(),
    ) {
        let mut node = Node::new(workers, limit(per_second, burst));
        let bound = u64::from(burst) + 2 * (u64::from(workers) - 1) * u64::from(lease(&node.limit, workers));
        let mut given: Vec<u64> = Vec::new();
        let (mut now, mut sent) = (0, 0u64);
        for (worker, wait, wanted, jitter) in steps {
            for _ in 0..wait {
                now += 1;
                node.deliver(now, || {
                    sent += 1;
                    let is_lost = loses.is_some_and(|every| sent % every == 0);
                    (!is_lost).then_some(delay + jitter)
                });
            }
            let worker = if focus { now as usize / 500 } else { worker } % usize::from(workers);
            for _ in 0..wanted {
                if node.take(worker, now) {
                    given.push(now);
                }
            }
        }
        for (first, from) in given.iter().enumerate() {
            for (last, to) in given.iter().enumerate().skip(first) {
                let tokens = (last - first + 1) as u64;
                let most = bound * 1_000 + per_second * (to - from);
                prop_assert!(tokens * 1_000 <= most, "{} tokens within {} ms, at most {}", tokens, to - from, most / 1_000);
            }
        }
    }
}
