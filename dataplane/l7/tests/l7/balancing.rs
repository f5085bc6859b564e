//! Which backend do clients get?

use std::collections::HashMap;

use weir_l4::services::Algorithm;
use weir_l7::Counted;
use weir_tcp::Ended;

use crate::world::{LISTENER, Plan, VIP, World, end};

fn backends(world: &mut World, clients: usize) -> HashMap<u32, usize> {
    let mut backends = HashMap::new();
    for _ in 0..clients {
        let (_, upstream) = world.session();
        *backends.entry(world.backend_of(upstream)).or_default() += 1;
    }
    backends
}

#[test]
fn round_robin_takes_turns_by_weight() {
    let mut world = World::new(Plan { weights: Some(vec![3, 1]), ..Plan::default() });
    assert_eq!(backends(&mut world, 80), HashMap::from([(10, 60), (11, 20)]));
}

#[test]
fn least_conn_fills_up_who_has_few() {
    let mut world = World::new(Plan { backends: 3, counted: Some(Counted::LeastConn), ..Plan::default() });
    let sessions: Vec<_> = (0..30).map(|_| world.session()).collect();
    // all of one backend's connections end
    for (client, upstream) in sessions {
        if world.backend_of(upstream) == 11 {
            world.dies(client, Ended::Reset);
        }
    }
    assert_eq!(backends(&mut world, 10), HashMap::from([(11, 10)]));
    assert_eq!(backends(&mut world, 30), HashMap::from([(10, 10), (11, 10), (12, 10)]));
}

#[test]
fn random_two_stays_close_to_the_weights() {
    let plan = Plan {
        weights: Some(vec![1, 3]),
        counted: Some(Counted::RandomTwo),
        sessions: 500,
        ..Plan::default()
    };
    let mut world = World::new(plan);
    let backends = backends(&mut world, 400);
    assert!(backends[&10].abs_diff(100) < 12, "{backends:?}");
}

#[test]
fn hashes_keep_a_client_on_its_backend() {
    for algorithm in [Algorithm::Maglev, Algorithm::SourceHash] {
        let mut world = World::new(Plan { backends: 5, algorithm, sessions: 500, ..Plan::default() });
        let mut chosen: HashMap<u16, u32> = HashMap::new();
        let mut by_address: HashMap<u8, u32> = HashMap::new();
        for round in 0..2 {
            for port in 0..50 {
                let host = port as u8 % 10 + 1;
                let client = end(&format!("198.18.3.{host}"), port);
                world.fake.client(client, end(VIP, 80), LISTENER);
                world.run();
                let backend = world.backend_of(world.syn());
                if round > 0 {
                    assert_eq!(chosen[&port], backend);
                }
                chosen.insert(port, backend);
                if algorithm == Algorithm::SourceHash {
                    assert_eq!(*by_address.entry(host).or_insert(backend), backend);
                }
            }
        }
        let mut used: Vec<u32> = chosen.into_values().collect();
        used.sort_unstable();
        used.dedup();
        assert!(used.len() >= 4, "{used:?}");
    }
}

/// With its backend at the limit a flow goes to another one, the same each time.
#[test]
fn a_hash_whose_backend_is_full_falls_on_another() {
    let choose = || {
        let plan =
            Plan { backends: 4, algorithm: Algorithm::SourceHash, backend_limit: 1, ..Plan::default() };
        let mut world = World::new(plan);
        (0..4)
            .map(|_| {
                let (_, upstream) = world.session();
                world.backend_of(upstream)
            })
            .collect::<Vec<u32>>()
    };
    let mut backends = choose();
    assert_eq!(backends, choose());
    backends.sort_unstable();
    assert_eq!(backends, [10, 11, 12, 13]);
}
