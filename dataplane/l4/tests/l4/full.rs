//! What happens when the table is full?

use std::collections::HashMap;

use weir_l4::engine::Ended;
use weir_l4::{DropReason, Mode, Verdict};

use crate::packets::{ACK, Packet, SYN, TCP, UDP};
use crate::world::{World, client, first, names, pair};

fn establish(
    world: &mut World,
    protocol: u8,
    family: u8,
    numbers: std::ops::Range<u32>,
) -> Vec<(Packet, u32)> {
    let flows = numbers.map(|n| {
        let packet = first(protocol, &client(family, n), names(family).vip);
        let backend = world.backend_of(&packet);
        assert_eq!(world.backend_of(&packet.with(ACK)), backend);
        (packet.with(ACK), backend)
    });
    flows.collect()
}

#[test]
fn modes_without_replies_fall_back_to_the_hash() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue] {
        for (protocol, family) in [(TCP, 4), (UDP, 6)] {
            let mut world = World::new(pair(mode, protocol, family), 20);
            establish(&mut world, protocol, family, 0..20);
            let mut without_table = World::new(pair(mode, protocol, family), 1_000);
            let mut seen = HashMap::new();
            for n in 100..200 {
                let packet = first(protocol, &client(family, n), names(family).vip);
                let expected = without_table.backend_of(&packet);
                for flags in [packet.flags, ACK, ACK] {
                    let (delivery, _) = world.packet(&packet.with(flags)).to_backend();
                    assert!(delivery.fallback);
                    assert_eq!(delivery.backend, expected, "{mode:?}: as with room");
                }
                *seen.entry(expected).or_insert(0) += 1;
            }
            assert!(seen[&0] > 20 && seen[&1] > 20, "{seen:?}");
            assert_eq!(world.live(), 20);
            assert!(world.ledger.ended.is_empty(), "no flow made room");
        }
    }
}

#[test]
fn a_round_robin_pool_falls_back_to_the_hash_too() {
    use weir_l4::services::Algorithm;
    let mut parts = pair(Mode::Dsr, TCP, 4);
    parts.pools = vec![crate::world::pool(0, Algorithm::RoundRobin, &[(0, 1), (1, 1)])];
    let mut world = World::new(parts, 20);
    establish(&mut world, TCP, 4, 0..20);
    for n in 100..200 {
        let packet = Packet::tcp(&client(4, n), names(4).vip, ACK);
        let backends: Vec<u32> = (0..4).map(|_| world.backend_of(&packet)).collect();
        assert!(backends.windows(2).all(|two| two[0] == two[1]), "{backends:?}");
    }
}

#[test]
fn modes_with_replies_end_embryonic_flows_else_refuse() {
    for mode in [Mode::Nat, Mode::Fullnat] {
        for family in [4, 6] {
            let mut world = World::new(pair(mode, TCP, family), 20);
            let established = establish(&mut world, TCP, family, 0..15);
            for n in 15..20 {
                world.packet(&first(TCP, &client(family, n), names(family).vip)).to_backend();
            }
            assert_eq!(world.live(), 20);
            // five new flows that go on, each in the place of an embryonic one
            let more = establish(&mut world, TCP, family, 20..25);
            assert_eq!(world.ledger.ended, [Ended::Evicted; 5]);
            for n in 100..120 {
                let outcome = world.packet(&first(TCP, &client(family, n), names(family).vip));
                assert_eq!(outcome.drop_reason(), DropReason::TableFull);
            }
            for (packet, backend) in established.iter().chain(&more) {
                assert_eq!(world.backend_of(packet), *backend);
            }
            assert_eq!((world.live(), world.ledger.ended.len()), (20, 5));
        }
    }
}

#[test]
fn an_evicted_flow_of_dsr_is_found_again_by_hash() {
    let mut world = World::new(pair(Mode::Dsr, TCP, 4), 8);
    let flows: Vec<(Packet, u32)> = (0..200)
        .map(|n| {
            let packet = first(TCP, &client(4, n), names(4).vip);
            let backend = world.backend_of(&packet);
            (packet, backend)
        })
        .collect();
    for (packet, backend) in flows {
        assert_eq!(world.backend_of(&packet.with(ACK)), backend);
    }
}

#[test]
fn a_syn_flood_leaves_established_flows_alone() {
    const RECORDS: u32 = 1_000;
    for mode in [Mode::Dsr, Mode::Nat] {
        let mut world = World::new(pair(mode, TCP, 4), RECORDS as usize);
        let flows = establish(&mut world, TCP, 4, 200_000..200_500);
        let mut delivered = 0;
        for n in 0..100_000u32 {
            let source = format!("198.19.{}.{}:{}", n >> 8 & 0xff, n & 0xff, 1_024 + (n >> 16));
            let outcome = world.packet(&Packet::tcp(&source, names(4).vip, SYN));
            match outcome.verdict {
                Verdict::ToBackend(_) => delivered += 1,
                other => assert_eq!(other, Verdict::Drop(DropReason::TableFull)),
            }
            assert!(world.live() <= RECORDS);
            if n % 20_000 == 0 {
                world.now += 1;
            }
        }
        assert!(
            mode == Mode::Nat || delivered == 100_000,
            "{delivered}: a flood costs precision, not service"
        );
        for (packet, backend) in &flows {
            assert_eq!(world.backend_of(packet), *backend);
            if mode == Mode::Nat {
                let server = if *backend == 0 { names(4).backend } else { names(4).second };
                let reply = Packet { src: server.parse().unwrap(), dst: packet.src, ..packet.answer(ACK) };
                world.packet(&reply).to_client();
            }
        }
        // an honest client still gets through, first try, in the middle of it
        establish(&mut world, TCP, 4, 300_000..300_100);
        world.now += 20;
        world.sweep_all();
        assert_eq!(world.live(), 600, "the flood is forgotten, the flows are not");
    }
}
