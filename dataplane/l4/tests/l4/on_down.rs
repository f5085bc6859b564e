//! What happens to flows of a backend that goes down?

use weir_l4::engine::{Ended, Lookup};
use weir_l4::services::Algorithm;
use weir_l4::{DropReason, Mode, OnDown, Parts};
use weir_net::{PacketBuf, ParseOptions, VecBuf, parse};

use crate::packets::{ACK, FIN, Packet, RST, SYN, TCP, UDP};
use crate::world::{World, client, first, names, pair, pool};

fn parts(mode: Mode, protocol: u8, family: u8, on_down: OnDown, down: bool) -> Parts {
    let mut parts = pair(mode, protocol, family);
    parts.listeners[0].on_down = on_down;
    parts.backends[0].1.down = down;
    if down {
        parts.pools = vec![pool(0, Algorithm::Maglev, &[(0, 0), (1, 1)])];
    }
    parts
}

/// A world with one flow at backend 0, which has just gone down, and the flow's next packet.
fn fallen(mode: Mode, protocol: u8, family: u8, on_down: OnDown) -> (World, Packet) {
    let mut world = World::new(parts(mode, protocol, family, on_down, false), 100);
    let packet = (0..100)
        .map(|n| first(protocol, &client(family, n), names(family).vip))
        .find(|packet| world.backend_of(packet) == 0)
        .unwrap();
    world.packet(&packet.with(ACK)).to_backend();
    world.adopt(parts(mode, protocol, family, on_down, true));
    (world, packet.with(ACK))
}

#[test]
fn reselect_gives_the_flow_to_another_for_good() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            let (mut world, packet) = fallen(mode, protocol, family, OnDown::Reselect);
            let live = world.live();
            assert_eq!(world.backend_of(&packet), 1, "{mode:?}");
            assert_eq!(world.ledger.ended, [Ended::Replaced]);
            assert_eq!(world.live(), live);
            world.adopt(parts(mode, protocol, family, OnDown::Reselect, false));
            assert_eq!(world.backend_of(&packet), 1, "{mode:?}: it stays when the first comes back");
            // it was established and still is: silence as long as an embryonic flow's does not end it
            world.now = 25;
            world.sweep_all();
            assert_eq!(world.backend_of(&packet.with(ACK)), 1, "{mode:?}");
        }
    }
}

#[test]
fn reset_tells_a_tcp_client_within_its_window() {
    for mode in [Mode::Nat, Mode::Fullnat, Mode::Dsr] {
        for family in [4, 6] {
            for (flags, payload) in [(ACK, 7u32), (ACK | FIN, 0), (SYN, 0)] {
                let (mut world, packet) = fallen(mode, TCP, family, OnDown::Reset);
                let packet = Packet { payload: vec![0; payload as usize], ..packet.with(flags) };
                let reset = world.packet(&packet).reply();
                // RFC 9293 §3.10.7.1: <SEQ=SEG.ACK> where there is an ACK, else <SEQ=0><ACK=SEG.SEQ+SEG.LEN>
                let expected = Packet {
                    tos: 0,
                    ttl: 64,
                    identification: 0,
                    sequence: if flags & ACK == 0 { 0 } else { packet.acknowledgment },
                    acknowledgment: if flags & ACK == 0 { packet.sequence + 1 } else { 0 },
                    payload: vec![],
                    ..packet.answer(if flags & ACK == 0 { RST | ACK } else { RST })
                };
                let mut expected = expected.datagram();
                let window = if family == 4 { 34 } else { 54 };
                assert_eq!(reset[window..window + 2], [0, 0]);
                // our builder announces a window; the checksum behind it was verified by smoltcp
                expected[window..window + 4].copy_from_slice(&reset[window..window + 4]);
                assert_eq!(reset, expected, "{mode:?} {flags:#x}");
                assert_eq!((world.ledger.resets, world.ledger.ended.last()), (1, Some(&Ended::Replaced)));
                // the client begins anew, elsewhere
                assert_eq!(world.backend_of(&packet.with(SYN)), 1);
            }
        }
    }
}

#[test]
fn a_reset_is_never_answered_and_udp_is_dropped() {
    let (mut world, packet) = fallen(Mode::Nat, TCP, 4, OnDown::Reset);
    let reset = Packet { payload: vec![], ..packet.with(RST) };
    assert_eq!(world.packet(&reset).drop_reason(), DropReason::BackendDown);
    assert_eq!(world.ledger.resets, 0);
    let (mut world, packet) = fallen(Mode::Nat, UDP, 4, OnDown::Reset);
    assert_eq!(world.packet(&packet).drop_reason(), DropReason::BackendDown);
    assert_eq!(world.backend_of(&packet), 1, "a new flow");
}

#[test]
fn keep_keeps() {
    for (mode, protocol) in [(Mode::Dsr, UDP), (Mode::Nat, TCP), (Mode::Fullnat, UDP)] {
        let (mut world, packet) = fallen(mode, protocol, 4, OnDown::Keep);
        assert_eq!(world.backend_of(&packet), 0);
        assert_eq!(
            world.backend_of(&first(protocol, "198.18.7.7:7", names(4).vip)),
            1,
            "new flows go elsewhere"
        );
        assert!(world.ledger.ended.is_empty());
    }
}

#[test]
fn with_nobody_left_the_flow_ends() {
    let (mut world, packet) = fallen(Mode::Nat, TCP, 4, OnDown::Reselect);
    world.adopt(Parts {
        pools: vec![pool(0, Algorithm::Maglev, &[(0, 0), (1, 0)])],
        ..parts(Mode::Nat, TCP, 4, OnDown::Reselect, true)
    });
    let live = world.live();
    for _ in 0..3 {
        assert_eq!(world.packet(&packet).drop_reason(), DropReason::NoBackend);
        assert_eq!(world.live(), live - 1);
    }
}

#[test]
fn resets_are_limited_in_rate() {
    let limited = |down| Parts { icmp_rate: 8, ..parts(Mode::Nat, TCP, 4, OnDown::Reset, down) };
    let mut world = World::new(limited(false), 1_000);
    let flows: Vec<Packet> = (0..400)
        .map(|n| first(TCP, &client(4, n), names(4).vip))
        .filter(|packet| world.backend_of(packet) == 0)
        .collect();
    assert!(flows.len() > 100);
    world.adopt(limited(true));
    let (mut replies, mut drops) = (0, 0);
    for (n, packet) in flows.iter().enumerate() {
        // 64 packets in the first tick, then 8 ticks of 4 packets
        world.now = (n.saturating_sub(64) / 4).min(8) as u32;
        match world.packet(&packet.with(ACK)).verdict {
            weir_l4::Verdict::Reply => replies += 1,
            other => {
                assert_eq!(other, weir_l4::Verdict::Drop(DropReason::BackendDown));
                drops += 1;
            }
        }
    }
    // 8 at once, then 2 a tick
    assert_eq!(replies, 8 + 8 * 2, "{drops} dropped");
    assert_eq!(world.ledger.resets, replies);
}

/// Both packets of a burst are looked up before the first of them is processed.
#[test]
fn the_second_packet_of_a_burst_does_not_revive_what_the_first_ended() {
    let (mut world, packet) = fallen(Mode::Nat, TCP, 4, OnDown::Reset);
    // the steps are this test's own
    world.twin = None;
    let reply = Packet { src: names(4).backend.parse().unwrap(), dst: packet.src, ..packet.answer(ACK) };
    let before = world.live();
    let frames = [packet.frame(), reply.frame(), packet.frame()];
    let looked_up: Vec<_> = frames
        .iter()
        .map(|frame| {
            let parsed = parse(frame, &ParseOptions::default()).unwrap();
            let mut lookup = Lookup::default();
            world.engine.prepare(frame, &parsed, &mut lookup);
            world.engine.guess(&mut lookup);
            (frame, parsed, lookup)
        })
        .collect();
    world.now = 5;
    let verdicts: Vec<_> = looked_up
        .into_iter()
        .map(|(frame, parsed, lookup)| {
            let mut packet = VecBuf::new(frame);
            let verdict = world.engine.process(&mut packet, &parsed, &lookup, world.now, &mut world.ledger);
            assert!(!packet.data().is_empty());
            verdict
        })
        .collect();
    assert_eq!(verdicts[0], weir_l4::Verdict::Reply);
    assert_eq!(verdicts[1], weir_l4::Verdict::Drop(DropReason::BackendNoFlow), "its flow is over");
    assert!(
        matches!(verdicts[2], weir_l4::Verdict::ToBackend(delivery) if delivery.backend == 1),
        "{verdicts:?}"
    );
    assert_eq!(world.live(), before);
    // the list of free records is whole: the table fills up to its capacity and each flow keeps its backend
    let mut flows = Vec::new();
    while world.live() < 100 {
        let packet = first(TCP, &client(4, 5_000 + flows.len() as u32), names(4).vip).with(ACK);
        flows.push((packet.clone(), world.backend_of(&packet)));
        assert!(flows.len() <= 100);
    }
    for (packet, backend) in &flows {
        assert_eq!(world.backend_of(packet), *backend);
    }
    assert_eq!(world.ledger.live, 100);
}
