//! Do backends get their share, and does a flow's choice depend on what it should and nothing else?

use std::collections::{HashMap, HashSet};

use weir_balance::maglev::{DEFAULT_SLOTS, Table};
use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::{Mode, Parts, Pool};

use crate::packets::{Packet, TCP, UDP};
use crate::world::{World, backend, client, first, names, pair, parts, pool};

fn three(mode: Mode, protocol: u8, family: u8, algorithm: Algorithm, weights: [u32; 3]) -> Parts {
    let third = if family == 4 { "198.18.1.3:8080" } else { "[2001:db8:1::3]:8080" };
    let mut parts = pair(mode, protocol, family);
    parts.backends.push((2, backend(third)));
    parts.pools = vec![pool(0, algorithm, &[(0, weights[0]), (1, weights[1]), (2, weights[2])])];
    parts
}

#[test]
fn weighted_shares_are_within_one_percent() {
    for family in [4, 6] {
        let weights = [1u32, 2, 5];
        let mut parts = three(Mode::Dsr, UDP, family, Algorithm::Maglev, weights);
        let keys: Vec<(u64, u32)> = (1..).zip(weights).collect();
        parts.pools = vec![std::sync::Arc::new(Pool {
            slots: Table::build(&keys, DEFAULT_SLOTS).unwrap().into(),
            ..(*parts.pools[0]).clone()
        })];
        let flows = 100_000;
        let mut world = World::new(parts, flows as usize);
        let mut counts = [0u32; 3];
        for n in 0..flows {
            let (delivery, _) = world.packet(&first(UDP, &client(family, n), names(family).vip)).to_backend();
            assert!(!delivery.fallback);
            counts[delivery.backend as usize] += 1;
        }
        assert_eq!(world.live(), flows);
        for (count, weight) in counts.iter().zip(weights) {
            let share = f64::from(*count) / f64::from(flows);
            let expected = f64::from(weight) / 8.0;
            assert!((share - expected).abs() < 0.01 * expected.max(0.5), "{counts:?} for {weights:?}");
        }
    }
}

#[test]
fn turns_are_taken_exactly() {
    for mode in [Mode::Dsr, Mode::Nat, Mode::Fullnat] {
        let mut world = World::new(three(mode, TCP, 4, Algorithm::RoundRobin, [3, 1, 2]), 2_000);
        let mut counts = [0; 3];
        for n in 0..1_200 {
            let packet = first(TCP, &client(4, n), names(4).vip);
            let backend = world.backend_of(&packet);
            assert_eq!(world.backend_of(&packet.with(crate::packets::ACK)), backend, "a flow stays");
            counts[backend as usize] += 1;
            // what begins no flow takes no turn
            drop(world.packet(&Packet::tcp("198.18.8.8:8", names(4).vip, crate::packets::RST)));
        }
        assert_eq!(counts, [600, 200, 400], "{mode:?}");
    }
}

#[test]
fn a_client_sticks_to_its_backend_under_source_hash() {
    for (protocol, family) in [(TCP, 4), (UDP, 6)] {
        let parts = three(Mode::Nat, protocol, family, Algorithm::SourceHash, [1, 1, 1]);
        let mut world = World::new(parts, 10_000);
        let mut seen = HashSet::new();
        for n in 0..60 {
            let mut packet = first(protocol, &client(family, n), names(family).vip);
            let backends: HashSet<u32> = (0..20)
                .map(|port| {
                    packet.src.set_port(2_000 + port * 97);
                    world.backend_of(&packet)
                })
                .collect();
            assert_eq!(backends.len(), 1, "{}", packet.src);
            seen.extend(backends);
        }
        assert_eq!(seen.len(), 3);
    }
}

#[test]
fn a_key_makes_the_choice_its_own() {
    for (family, algorithm) in [(4, Algorithm::Maglev), (6, Algorithm::Maglev), (4, Algorithm::SourceHash)] {
        let choose = |key: Option<[u8; 16]>| {
            let parts = Parts { hash_key: key, ..three(Mode::Dsr, TCP, family, algorithm, [1, 1, 1]) };
            let mut world = World::new(parts, 2_000);
            let flows =
                (0..1_000).map(|n| world.backend_of(&first(TCP, &client(family, n), names(family).vip)));
            flows.collect::<Vec<u32>>()
        };
        let moved = |left: &[u32], right: &[u32]| left.iter().zip(right).filter(|(l, r)| l != r).count();
        let (none, one, two) = (choose(None), choose(Some([1; 16])), choose(Some([2; 16])));
        for (left, right) in [(&none, &one), (&one, &two), (&none, &two)] {
            // two of three, were they independent
            assert!((550..=780).contains(&moved(left, right)), "{} moved", moved(left, right));
        }
        assert_eq!(one, choose(Some([1; 16])));
    }
}

#[test]
fn two_nodes_agree_whatever_their_secrets() {
    for family in [4, 6] {
        let mut nodes = [[1, 2], [0xdead_beef, 77]].map(|seed| {
            let parts = three(Mode::Dsr, TCP, family, Algorithm::Maglev, [1, 2, 3]);
            World::seeded(parts, 2_000, ReplyOwner::Alone, seed)
        });
        let mut counts = HashMap::new();
        for n in 0..1_000 {
            let packet = first(TCP, &client(family, n), names(family).vip);
            let [one, two] = &mut nodes;
            let backend = one.backend_of(&packet);
            assert_eq!(two.backend_of(&packet), backend);
            *counts.entry(backend).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 3);
    }
}

#[test]
fn a_pool_of_nobody_serves_nobody() {
    let mut world = World::new(Parts { pools: vec![], ..pair(Mode::Dsr, TCP, 4) }, 4);
    let outcome = world.packet(&first(TCP, names(4).client, names(4).vip));
    assert_eq!(outcome.drop_reason(), weir_l4::DropReason::NoBackend);
    let mut world = World::new(parts(), 4);
    let outcome = world.packet(&first(TCP, names(4).client, names(4).vip));
    assert_eq!(outcome.drop_reason(), weir_l4::DropReason::NoListener);
}
