//! Do backends get what their weight, health and history say?

use proptest::prelude::*;
use weir_balance::maglev::Table;
use weir_balance::round_robin::schedule;

use super::*;

fn pool(weights: &[u32], algorithm: Algorithm) -> Pool {
    let slots = match algorithm {
        Algorithm::RoundRobin => schedule(weights, 1_000),
        Algorithm::Maglev | Algorithm::SourceHash => {
            let backends: Vec<(u64, u32)> = (1..).map(scatter).zip(weights.iter().copied()).collect();
            Table::build(&backends, 65_537).unwrap()
        }
    };
    let members = (0..weights.len() as u32).map(|at| 100 + at).collect();
    Pool { index: 0, algorithm, slots: slots.into_boxed_slice(), members }
}

/// A pool and what is known of its backends.
struct Scene {
    pool: Pool,
    rules: PoolRules,
    http: HttpPool,
    chooser: Chooser,
    standings: Vec<Standing>,
}

impl Scene {
    fn new(weights: &[u32], algorithm: Algorithm, counted: Option<Counted>) -> Self {
        let pool = pool(weights, algorithm);
        let rules = PoolRules::new(&pool, counted, None, 0);
        let mut chooser = Chooser::new(7);
        chooser.adopt(1);
        Self {
            rules,
            http: HttpPool::default(),
            chooser,
            standings: vec![Standing::FREE; weights.len()],
            pool,
        }
    }

    fn choose(&mut self, wanted: Wanted, now: u64) -> Choice {
        let standings = &self.standings;
        let known = |position: u16, _: bool| standings[usize::from(position)];
        self.chooser.choose(&self.pool, &self.rules, &self.http, wanted, Instant(now), known)
    }

    /// How many of `requests` each backend gets, all staying where they are counted.
    fn shares(&mut self, requests: u64) -> Vec<u32> {
        let mut shares = vec![0; self.standings.len()];
        for hash in 0..requests {
            let Choice::Position(at) = self.choose(Wanted { hash: scatter(hash), sticky: None }, 0) else {
                continue;
            };
            shares[usize::from(at)] += 1;
            if self.rules.counted.is_some() {
                self.standings[usize::from(at)].load += 1;
            }
        }
        shares
    }
}

const ALL: [(Algorithm, Option<Counted>); 4] = [
    (Algorithm::RoundRobin, None),
    (Algorithm::Maglev, None),
    (Algorithm::RoundRobin, Some(Counted::LeastConn)),
    (Algorithm::RoundRobin, Some(Counted::RandomTwo)),
];

#[test]
fn shares_follow_the_weights() {
    for (algorithm, counted) in ALL {
        let shares = Scene::new(&[1, 2, 3, 4], algorithm, counted).shares(10_000);
        for (share, expected) in shares.iter().zip([1_000u32, 2_000, 3_000, 4_000]) {
            assert!(share.abs_diff(expected) < 150, "{algorithm:?} {counted:?} {shares:?}");
        }
    }
}

#[test]
fn who_cannot_is_passed_over() {
    let broken: [fn(&mut Standing); 4] = [
        |one| one.is_down = true,
        |one| one.is_broken = true,
        |one| one.is_tried = true,
        |one| one.is_full = true,
    ];
    for (algorithm, counted) in ALL {
        for spoil in broken {
            let mut scene = Scene::new(&[1, 1, 1, 1, 0], algorithm, counted);
            spoil(&mut scene.standings[1]);
            spoil(&mut scene.standings[2]);
            let shares = scene.shares(2_000);
            assert_eq!((shares[1], shares[2], shares[4]), (0, 0, 0), "{algorithm:?} {counted:?}");
            assert!(shares[0] + shares[3] == 2_000 && shares[0] > 300 && shares[3] > 300, "{shares:?}");
            (0..5).for_each(|at| spoil(&mut scene.standings[at]));
            let expected = if scene.standings[0].is_full { Choice::Full } else { Choice::Nobody };
            assert_eq!(scene.choose(Wanted::default(), 0), expected);
        }
    }
}

#[test]
fn keys_stay_when_others_leave() {
    let mut scene = Scene::new(&[1, 1, 1, 1], Algorithm::Maglev, None);
    let before: Vec<Choice> =
        (0..2_000).map(|at| scene.choose(Wanted { hash: scatter(at), sticky: None }, 0)).collect();
    scene.standings[2].is_down = true;
    for (at, choice) in before.iter().enumerate() {
        let now = scene.choose(Wanted { hash: scatter(at as u64), sticky: None }, 0);
        assert!(now == *choice || *choice == Choice::Position(2), "{at}");
    }
}

#[test]
fn backups_serve_when_no_other_can() {
    for (algorithm, counted) in ALL {
        let mut scene = Scene::new(&[1, 1, 1, 1], algorithm, counted);
        scene.http.backups = vec![2, 3];
        let shares = scene.shares(1_000);
        assert_eq!((shares[2], shares[3]), (0, 0), "{algorithm:?} {counted:?}");
        scene.standings[0].is_down = true;
        assert_eq!(scene.choose(Wanted::default(), 0), Choice::Position(1));
        scene.standings[1].is_full = true;
        assert!(matches!(scene.choose(Wanted::default(), 0), Choice::Position(2 | 3)));
        scene.standings[2].is_broken = true;
        assert_eq!(scene.choose(Wanted::default(), 0), Choice::Position(3));
        scene.standings[3].is_tried = true;
        assert_eq!(scene.choose(Wanted::default(), 0), Choice::Full);
    }
}

#[test]
fn in_panic_health_is_ignored() {
    let mut scene = Scene::new(&[1, 1, 1, 1, 0], Algorithm::RoundRobin, None);
    scene.http.panic_percent = 50;
    scene.standings[0].is_down = true;
    scene.standings[1].is_broken = true;
    let shares = scene.shares(400);
    assert_eq!(shares[0] + shares[1], 0, "half is enough: {shares:?}");
    scene.standings[2].is_down = true;
    // not looked at again before its time
    assert_eq!(scene.choose(Wanted::default(), PANIC_US - 1), Choice::Position(3));
    let mut shares = [0; 5];
    for _ in 0..400 {
        if let Choice::Position(at) = scene.choose(Wanted::default(), PANIC_US) {
            shares[usize::from(at)] += 1;
        }
    }
    assert_eq!(shares, [100, 100, 100, 100, 0]);
    // what was tried and who is full stays out
    (scene.standings[0].is_tried, scene.standings[1].is_full) = (true, true);
    assert!((0..50).all(|_| matches!(scene.choose(Wanted::default(), PANIC_US), Choice::Position(2 | 3))));
    scene.standings[2].is_down = false;
    assert!((0..50).all(|_| scene.choose(Wanted::default(), 2 * PANIC_US) != Choice::Position(0)));
    // but at once where something is known to have changed
    (scene.standings[0].is_tried, scene.standings[2].is_down) = (false, true);
    scene.chooser.look_again();
    assert!((0..50).any(|_| scene.choose(Wanted::default(), 2 * PANIC_US) == Choice::Position(0)));
}

#[test]
fn backends_start_slowly() {
    let mut comebacks = Comebacks::default();
    let at = |milliseconds: u64| Instant(5_000_000 + milliseconds * 1_000);
    comebacks.adopt([(4, true), (5, false)], at(0));
    comebacks.adopt([(4, true), (5, true)], at(100));
    let share = |comebacks: &Comebacks, backend, now| comebacks.share(backend, 10_000, at(now));
    assert_eq!((share(&comebacks, 4, 100), share(&comebacks, 99, 100)), (WHOLE, WHOLE));
    let growing: Vec<u32> =
        [100, 600, 2_100, 5_100, 10_000, 10_100].map(|now| share(&comebacks, 5, now)).into();
    assert_eq!(growing, [100, 100, 200, 500, 990, 1_000]);
    assert_eq!(comebacks.share(5, 0, at(200)), WHOLE);
    comebacks.adopt([(5, true)], at(20_000));
    assert_eq!(share(&comebacks, 5, 20_000), WHOLE);
    comebacks.came_back(5, at(30_000));
    assert_eq!(share(&comebacks, 5, 30_000), LEAST_SHARE);
}

#[test]
fn a_share_is_what_a_slow_backend_gets() {
    for (algorithm, counted) in ALL {
        for share in [100, 250, 500, 750] {
            let mut scene = Scene::new(&[1, 1, 1], algorithm, counted);
            scene.http.slow_start_ms = 1_000;
            scene.standings[1].share = share;
            let shares = scene.shares(9_000);
            // of what the others get; where a hash picks, of the hashes that are its
            let whole =
                if algorithm == Algorithm::Maglev { 3_000.0 } else { f64::from(shares[0] + shares[2]) / 2.0 };
            let expected = whole * f64::from(share) / 1_000.0;
            let off = (f64::from(shares[1]) - expected).abs();
            assert!(off < 0.15 * expected + 20.0, "{algorithm:?} {counted:?} {share}: {shares:?}");
        }
    }
    // the keys that it has it keeps while its share grows
    let mut scene = Scene::new(&[1, 1, 1], Algorithm::Maglev, None);
    scene.http.slow_start_ms = 1_000;
    let mut had: Vec<u64> = Vec::new();
    for share in [100, 300, 700, 1_000] {
        scene.standings[1].share = share;
        let has = |scene: &mut Scene, hash: u64| {
            scene.choose(Wanted { hash: scatter(hash), sticky: None }, 0) == Choice::Position(1)
        };
        let lost = had.iter().filter(|hash| !has(&mut scene, **hash)).count();
        // but for keys that came to it by a second slot and now go to their first: none, its own slots only gain
        assert_eq!(lost, 0, "{share}");
        had = (0..3_000).filter(|hash| has(&mut scene, *hash)).collect();
    }
    // alone it gets everything
    let mut scene = Scene::new(&[1, 1], Algorithm::RoundRobin, None);
    scene.standings[0].is_down = true;
    scene.standings[1].share = LEAST_SHARE;
    assert_eq!(scene.shares(100), [0, 100]);
}

#[test]
fn sticky_ids_name_backends() {
    let backends = [(1u128, 80), (2, 80), (1, 81), (u128::MAX, 0)];
    let ids = StickyIds::new(StableKey::from_seed(9), backends);
    for (position, _) in (0..).zip(backends) {
        let value = ids.value(position).unwrap();
        assert!(value.iter().all(u8::is_ascii_hexdigit));
        assert_eq!(ids.position(&value), Some(position));
    }
    // they stay when others come and go, but not with another key
    let fewer = StickyIds::new(StableKey::from_seed(9), [backends[3], backends[1]]);
    assert_eq!(fewer.value(1), ids.value(1));
    assert_eq!(fewer.position(&ids.value(0).unwrap()), None);
    assert_ne!(StickyIds::new(StableKey::NONE, backends).value(0), ids.value(0));
    assert_eq!(ids.value(4), None);
    for wrong in ["", "0123", "0123456789abcdeg", "0123456789ABCDEF", "0123456789abcdef0"] {
        assert_eq!(ids.position(wrong.as_bytes()), None);
    }
}

#[test]
fn sticky_clients_stay_where_they_can() {
    let mut scene = Scene::new(&[1, 1, 0], Algorithm::RoundRobin, None);
    let wanted = Wanted { hash: 0, sticky: Some(2) };
    // weight 0: being drained
    assert!((0..9).all(|_| scene.choose(wanted, 0) == Choice::Position(2)));
    scene.standings[2].is_full = true;
    assert!(matches!(scene.choose(wanted, 0), Choice::Position(0 | 1)));
    scene.standings[2] = Standing { is_broken: true, ..Standing::FREE };
    assert!(matches!(scene.choose(wanted, 0), Choice::Position(0 | 1)));
    assert!(matches!(scene.choose(Wanted { hash: 0, sticky: Some(7) }, 0), Choice::Position(0 | 1)));
}

#[test]
fn sources_hash_as_connections_do() {
    let key = StableKey::from_seed(3);
    let v4 = std::net::Ipv4Addr::new(198, 18, 0, 7);
    assert_eq!(hash_of_source(key, v4.to_ipv6_mapped().to_bits()), source_hash_v4(key, v4.to_bits()));
    assert_eq!(hash_of_source(key, 1), source_hash_v6(key, &1u128.to_be_bytes()));
}

proptest! {
    /// Whatever is known of the backends: who is chosen can take it, and somebody is chosen where anybody can.
    #[test]
    fn who_is_chosen_can(
        backends in proptest::collection::vec((0u32..4, any::<[bool; 5]>(), 0u32..9, 100u32..=1_000), 1..12),
        which in 0usize..4,
        hash: u64,
        sticky in proptest::option::of(0u16..14),
        panic_percent in prop_oneof![Just(0u8), 1u8..=100],
        slow_start_ms in 0u32..2,
    ) {
        let (algorithm, counted) = ALL[which];
        let weights: Vec<u32> = backends.iter().map(|backend| backend.0).collect();
        let mut scene = Scene::new(&weights, algorithm, counted);
        scene.http = HttpPool { panic_percent, slow_start_ms, ..HttpPool::default() };
        for (at, (_, flags, load, share)) in backends.iter().enumerate() {
            let [is_down, is_broken, is_tried, is_full, is_backup] = *flags;
            scene.standings[at] = Standing { is_down, is_broken, is_tried, is_full, load: *load, share: *share };
            if is_backup {
                scene.http.backups.push(at as u16);
            }
        }
        let weights = scene.rules.weights.clone();
        let weighty: Vec<usize> = (0..backends.len()).filter(|at| weights[*at] > 0).collect();
        let is_good = |at: &&usize| !backends[**at].1[0] && !backends[**at].1[1];
        let good = weighty.iter().filter(is_good).count();
        let is_panic = good * 100 < weighty.len() * usize::from(panic_percent);
        let can = |at: usize| {
            let one = scene.standings[at];
            !one.is_tried && !one.is_full && (is_panic || !one.is_down && !one.is_broken)
        };
        let able: Vec<usize> = weighty.iter().copied().filter(|at| can(*at)).collect();
        let is_backup = |at: usize| backends[at].1[4];
        let is_sticky = sticky.is_some_and(|at| usize::from(at) < backends.len() && can(usize::from(at)));
        let primary = able.iter().any(|at| !is_backup(*at));
        match scene.choose(Wanted { hash, sticky }, 0) {
            Choice::Position(at) if is_sticky => prop_assert_eq!(Some(at), sticky),
            Choice::Position(at) => {
                let at = usize::from(at);
                prop_assert!(able.contains(&at) && is_backup(at) != primary, "{}", at);
            }
            Choice::Full | Choice::Nobody => prop_assert!(able.is_empty() && !is_sticky),
        }
    }
}
