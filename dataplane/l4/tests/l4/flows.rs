//! Does a flow stay where it began while the world around it changes?

use std::collections::HashMap;
use std::sync::Arc;

use weir_l4::engine::Ended;
use weir_l4::services::Algorithm;
use weir_l4::{Drain, DropReason, Mode, OnDown, Parts, Verdict};

use crate::packets::{ACK, Packet, SYN, TCP, UDP};
use crate::world::{Change, World, backend, client, first, listener, names, pair, pool};

const MODES: [Mode; 5] = [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat];

/// `count` flows of `parts`' listener and the backend that each went to.
fn begin(world: &mut World, protocol: u8, family: u8, count: u32) -> Vec<(Packet, u32)> {
    let flows = (0..count).map(|n| {
        let packet = first(protocol, &client(family, n), names(family).vip);
        let backend = world.backend_of(&packet);
        if protocol == TCP {
            assert_eq!(world.backend_of(&packet.with(ACK)), backend);
        }
        (packet.with(ACK), backend)
    });
    flows.collect()
}

fn assert_all_stay(world: &mut World, flows: &[(Packet, u32)], what: &str) {
    for (packet, backend) in flows {
        assert_eq!(world.backend_of(packet), *backend, "{what}: {packet:?}");
    }
}

#[test]
fn a_changed_pool_moves_new_flows_only() {
    for mode in MODES {
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            let mut world = World::new(pair(mode, protocol, family), 1_000);
            let flows = begin(&mut world, protocol, family, 100);
            let to_second = flows.iter().filter(|(_, backend)| *backend == 1).count();
            assert!((25..=75).contains(&to_second), "{to_second} of 100");

            // all slots to the second: the first drains
            let drained = || Parts {
                generation: 2,
                pools: vec![pool(0, Algorithm::Maglev, &[(0, 0), (1, 1)])],
                ..pair(mode, protocol, family)
            };
            let old = world.adopt(drained());
            assert_eq!((old.generation(), world.engine.services().generation()), (1, 2));
            assert_eq!(Arc::strong_count(&old), 1, "nothing keeps the old generation");
            assert_all_stay(&mut world, &flows, "drain");
            let ended = world.ledger.ended.len();
            for n in 1_000..1_100 {
                let packet = first(protocol, &client(family, n), names(family).vip);
                assert_eq!(world.backend_of(&packet), 1, "a drained backend gets no new flow");
            }

            // out of the pool altogether, but still forwardable
            world.adopt(Parts { pools: vec![pool(0, Algorithm::Maglev, &[(1, 1)])], ..drained() });
            assert_all_stay(&mut world, &flows, "removed");
            assert_eq!(world.ledger.ended.len(), ended, "no flow ended");
        }
    }
}

#[test]
fn an_empty_pool_refuses_new_flows_and_says_so() {
    let mut world = World::new(pair(Mode::Nat, TCP, 4), 100);
    let flows = begin(&mut world, TCP, 4, 10);
    world.adopt(Parts {
        pools: vec![pool(0, Algorithm::Maglev, &[(0, 0), (1, 0)])],
        ..pair(Mode::Nat, TCP, 4)
    });
    assert_all_stay(&mut world, &flows, "empty pool");
    let refused = world.packet(&first(TCP, &client(4, 99), names(4).vip));
    assert_eq!(refused.drop_reason(), DropReason::NoBackend);
    assert_eq!(world.ledger.no_backend, 1);
}

#[test]
fn a_retired_listener_serves_its_flows_until_they_end() {
    for mode in MODES {
        let mut world = World::new(pair(mode, TCP, 4), 100);
        let flows = begin(&mut world, TCP, 4, 10);
        let mut retired = pair(mode, TCP, 4);
        retired.listeners[0].retired = true;
        world.adopt(retired);
        assert_all_stay(&mut world, &flows, "retired");
        for packet in
            [first(TCP, &client(4, 99), names(4).vip), Packet::tcp(names(4).client, names(4).vip, ACK)]
        {
            assert_eq!(world.packet(&packet).drop_reason(), DropReason::NoListener);
        }
        assert_eq!(world.live(), 10);

        // a listener in its place gets what is new, under its own index
        let mut replaced = pair(mode, TCP, 4);
        replaced.listeners[0].retired = true;
        replaced.listeners.push(listener(1, names(4).vip, TCP, Mode::Dsr, 0));
        world.adopt(replaced);
        assert_all_stay(&mut world, &flows, "replaced");
        let (delivery, _) = world.packet(&first(TCP, &client(4, 99), names(4).vip)).to_backend();
        assert_eq!(delivery.listener, 1);
    }
}

#[test]
fn a_drained_listener_serves_its_flows_and_refuses_new_ones() {
    for mode in MODES {
        for protocol in [TCP, UDP] {
            let mut world = World::new(pair(mode, protocol, 4), 100);
            let flows = begin(&mut world, protocol, 4, 10);
            let drains = |drain| Parts { drains: vec![(0, drain)], ..pair(mode, protocol, 4) };
            world.adopt(drains(Drain::Yes));
            assert_all_stay(&mut world, &flows, "drained");
            let new = first(protocol, &client(4, 99), names(4).vip);
            if protocol == TCP {
                assert_eq!(world.packet(&new).verdict, Verdict::Reply, "a SYN is refused");
                let late = world.packet(&new.with(ACK));
                assert_eq!(late.drop_reason(), DropReason::ListenerDrain);
            } else {
                assert_eq!(world.packet(&new).drop_reason(), DropReason::ListenerDrain);
            }
            assert_eq!(world.live(), 10);

            world.adopt(drains(Drain::Cut));
            assert_eq!(world.live(), 0, "cut");
            for (packet, _) in &flows {
                let verdict = world.packet(packet).verdict;
                match protocol {
                    TCP => assert_eq!(verdict, Verdict::Reply),
                    _ => assert_eq!(verdict, Verdict::Drop(DropReason::ListenerDrain)),
                }
            }
            world.adopt(pair(mode, protocol, 4));
            world.packet(&new).to_backend();
        }
    }
}

#[test]
fn an_index_that_means_something_else_takes_no_flow_over() {
    let nat = || pair(Mode::Nat, TCP, 4);
    let changes: [(&str, Change, bool); 6] = [
        ("the backend's address", |parts| parts.backends[1].1 = backend("198.18.1.9:8080"), false),
        ("the backend's port", |parts| parts.backends[1].1 = backend("198.18.1.1:9090"), false),
        ("no such backend", |parts| parts.backends.truncate(1), false),
        ("the listener's mode", |parts| parts.listeners[0].mode = Mode::Dsr, true),
        ("the listener's vip", |parts| parts.listeners[0].vip += 1, true),
        ("no such listener", |parts| parts.listeners.clear(), true),
    ];
    for (what, change, all) in changes {
        let mut world = World::new(nat(), 100);
        let flows = begin(&mut world, TCP, 4, 40);
        let mut parts = nat();
        parts.backends.reverse();
        change(&mut parts);
        world.adopt(parts);
        let of_first = flows.iter().filter(|(_, backend)| *backend == 0).count();
        assert!(of_first > 0 && of_first < 40);
        let gone = if all { 40 } else { of_first };
        assert_eq!(world.ledger.ended, vec![Ended::Replaced; gone], "{what}");
        assert_eq!(world.live() as usize, 40 - gone, "{what}");
        assert_eq!(world.ledger.live as usize, 40 - gone, "{what}");
    }
}

#[test]
fn what_no_identity_depends_on_ends_no_flow() {
    let mut world = World::new(pair(Mode::Nat, TCP, 4), 100);
    let flows = begin(&mut world, TCP, 4, 40);
    let mut parts = pair(Mode::Nat, TCP, 4);
    parts.listeners[0].on_down = OnDown::Keep;
    parts.listeners[0].port_last = 90;
    parts.backends[0].1.mtu = 1_400;
    parts.backends[1].1.down = true;
    parts.backends.push((2, backend("198.18.1.3:8080")));
    parts.hash_key = Some([7; 16]);
    world.adopt(parts);
    assert_all_stay(&mut world, &flows, "other parts");
    assert!(world.ledger.ended.is_empty());
}

#[test]
fn packets_that_are_for_nobody_here_are_told_apart() {
    let mut world = World::new(pair(Mode::Nat, TCP, 4), 100);
    let mut drop_of = |src: &str, dst: &str| world.packet(&Packet::tcp(src, dst, SYN)).verdict;
    let names = names(4);
    assert_eq!(drop_of(names.client, "198.18.0.100:81"), Verdict::Drop(DropReason::NoListener));
    assert_eq!(drop_of(names.client, "198.18.77.7:80"), Verdict::Drop(DropReason::NotForUs));
    assert_eq!(drop_of(names.client, "198.18.0.1:22"), Verdict::Local);
    assert_eq!(drop_of(names.client, "198.18.0.2:22"), Verdict::Local);
    assert_eq!(drop_of(names.backend, names.client), Verdict::Drop(DropReason::BackendNoFlow));
    assert_eq!(drop_of(names.backend, "198.18.0.1:22"), Verdict::Drop(DropReason::BackendNoFlow));
    let udp = world.packet(&Packet::udp(names.client, names.vip));
    assert_eq!(udp.drop_reason(), DropReason::NoListener, "another protocol");
}

#[test]
fn two_listeners_of_one_client_port_are_two_flows() {
    let mut parts = pair(Mode::Nat, TCP, 4);
    parts.listeners.push(listener(1, "198.18.0.100:81", TCP, Mode::Nat, 0));
    parts.listeners.push(listener(2, names(4).vip, UDP, Mode::Nat, 0));
    let mut world = World::new(parts, 100);
    let mut listeners = HashMap::new();
    for (vip, protocol) in [(names(4).vip, TCP), ("198.18.0.100:81", TCP), (names(4).vip, UDP)] {
        let packet = first(protocol, names(4).client, vip);
        for packet in [packet.clone(), packet.with(ACK)] {
            let (delivery, _) = world.packet(&packet).to_backend();
            *listeners.entry(delivery.listener).or_insert(0) += 1;
        }
    }
    assert_eq!(listeners, HashMap::from([(0, 2), (1, 2), (2, 2)]));
}
