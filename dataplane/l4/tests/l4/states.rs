//! How long does a flow live, and what do its packets' flags do to it?

use weir_l4::entry::State;
use weir_l4::{DropReason, Mode, Verdict};

use crate::packets::{ACK, FIN, Packet, RST, SYN, TCP, UDP};
use crate::world::{LIFETIMES, World, names, single};

#[derive(Clone, Copy, Debug)]
enum Step {
    Client(u8),
    Server(u8),
}
use Step::{Client, Server};

/// The lifetime that a flow has after its last packet, found by silence.
fn lifetime(world: &mut World) -> u32 {
    let began = world.now;
    while world.live() > 0 {
        world.now += 1;
        world.sweep_all();
        assert!(world.now - began < 1_000, "it never ends");
    }
    // it is still there when its time has passed exactly
    world.now - began - 1
}

fn take(world: &mut World, packet: &Packet, steps: &[Step]) {
    let reply = Packet { src: names(4).backend.parse().unwrap(), dst: packet.src, ..packet.answer(0) };
    for step in steps {
        match step {
            Client(flags) => drop(world.packet(&packet.with(*flags)).to_backend()),
            Server(flags) => drop(world.packet(&reply.with(*flags)).to_client()),
        }
    }
}

#[test]
fn flags_of_both_sides_move_a_nat_flow_through_its_states() {
    let table: &[(&[Step], State)] = &[
        (&[Client(SYN)], State::Embryonic),
        (&[Client(SYN), Client(SYN)], State::Embryonic),
        (&[Client(SYN), Server(SYN | ACK)], State::Embryonic),
        (&[Client(SYN), Server(SYN | ACK), Client(ACK)], State::Established),
        (&[Client(SYN), Server(RST | ACK)], State::Closing),
        (&[Client(SYN), Client(RST)], State::Closing),
        (&[Client(SYN), Client(ACK), Client(RST)], State::Closing),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK)], State::ClientClosed),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK), Client(FIN | ACK)], State::ClientClosed),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK), Server(ACK)], State::ClientClosed),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK), Server(FIN | ACK)], State::Closing),
        (&[Client(SYN), Client(ACK), Server(FIN | ACK)], State::ServerClosed),
        (&[Client(SYN), Client(ACK), Server(FIN | ACK), Server(FIN | ACK)], State::ServerClosed),
        (&[Client(SYN), Client(ACK), Server(FIN | ACK), Client(FIN | ACK)], State::Closing),
        (&[Client(SYN), Client(ACK), Server(FIN | ACK), Client(FIN | ACK), Client(ACK)], State::Closing),
        (&[Client(SYN), Server(SYN | ACK), Client(FIN | ACK)], State::ClientClosed),
        // in mid-stream: its first packet proves nothing yet
        (&[Client(ACK)], State::Embryonic),
        (&[Client(ACK), Client(ACK)], State::Established),
    ];
    for (steps, state) in table {
        let mut world = World::new(single(Mode::Nat, TCP, names(4).vip, names(4).backend), 4);
        take(&mut world, &Packet::tcp(names(4).client, names(4).vip, 0), steps);
        assert_eq!(lifetime(&mut world), LIFETIMES.of(*state), "{steps:?}");
    }
}

#[test]
fn a_mode_that_sees_one_side_ends_with_its_fin() {
    let table: &[(&[Step], State)] = &[
        (&[Client(SYN)], State::Embryonic),
        (&[Client(SYN), Client(ACK)], State::Established),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK)], State::Closing),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK), Client(ACK)], State::Closing),
        (&[Client(SYN), Client(RST)], State::Closing),
        (&[Client(ACK), Client(ACK)], State::Established),
    ];
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue] {
        for (steps, state) in table {
            let mut world = World::new(single(mode, TCP, names(4).vip, names(4).backend), 4);
            take(&mut world, &Packet::tcp(names(4).client, names(4).vip, 0), steps);
            assert_eq!(lifetime(&mut world), LIFETIMES.of(*state), "{mode:?} {steps:?}");
        }
    }
}

#[test]
fn each_packet_of_either_side_renews_a_flow() {
    let mut world = World::new(single(Mode::Nat, UDP, names(4).vip, names(4).backend), 4);
    let packet = Packet::udp(names(4).client, names(4).vip);
    for _ in 0..3 {
        take(&mut world, &packet, &[Client(0)]);
        world.now += LIFETIMES.udp;
        world.sweep_all();
        take(&mut world, &packet, &[Server(0)]);
        world.now += LIFETIMES.udp;
        world.sweep_all();
        assert_eq!(world.live(), 1);
    }
    assert_eq!(lifetime(&mut world), 0);
    assert_eq!(world.packet(&packet.answer(0)).drop_reason(), DropReason::NotForUs);
}

#[test]
fn a_client_may_use_its_port_again() {
    for (steps, anew) in [
        (&[Client(SYN), Client(ACK), Client(FIN | ACK), Server(FIN | ACK)][..], true),
        (&[Client(SYN), Client(ACK), Client(FIN | ACK)], true),
        (&[Client(SYN), Client(ACK), Server(FIN | ACK)], true),
        (&[Client(SYN), Client(ACK), Client(RST)], true),
        (&[Client(SYN)], false),
        (&[Client(SYN), Client(ACK)], false),
    ] {
        let mut world = World::new(single(Mode::Nat, TCP, names(4).vip, names(4).backend), 4);
        let packet = Packet::tcp(names(4).client, names(4).vip, 0);
        take(&mut world, &packet, steps);
        take(&mut world, &packet, &[Client(SYN)]);
        assert_eq!(world.ledger.created.len(), if anew { 2 } else { 1 }, "{steps:?}");
        assert_eq!(world.live(), 1);
        // a SYN-ACK is no beginning
        take(&mut world, &packet, &[Client(SYN | ACK), Server(SYN | ACK), Client(ACK)]);
        assert_eq!(lifetime(&mut world), LIFETIMES.established);
    }
}

#[test]
fn only_fullnat_refuses_what_began_elsewhere() {
    for (mode, refuses) in [
        (Mode::Dsr, false),
        (Mode::Ipip, false),
        (Mode::Gue, false),
        (Mode::Nat, false),
        (Mode::Fullnat, true),
    ] {
        for flags in [ACK, FIN | ACK, SYN | ACK] {
            let mut world = World::new(single(mode, TCP, names(4).vip, names(4).backend), 4);
            let outcome = world.packet(&Packet::tcp(names(4).client, names(4).vip, flags));
            if refuses {
                assert_eq!(outcome.drop_reason(), DropReason::NoFlow, "{flags:#x}");
                assert_eq!(world.live(), 0);
            } else {
                outcome.to_backend();
                assert_eq!(world.live(), 1, "{mode:?} {flags:#x}");
            }
        }
    }
}

#[test]
fn a_stray_reset_goes_on_but_is_not_remembered() {
    for mode in [Mode::Dsr, Mode::Nat, Mode::Fullnat] {
        let mut world = World::new(single(mode, TCP, names(4).vip, names(4).backend), 4);
        let outcome = world.packet(&Packet::tcp(names(4).client, names(4).vip, RST));
        match mode {
            Mode::Fullnat => assert_eq!(outcome.verdict, Verdict::Drop(DropReason::NoFlow)),
            _ => drop(outcome.to_backend()),
        }
        assert_eq!((world.live(), world.ledger.created.len()), (0, 0));
    }
}

#[test]
fn a_partial_sweep_gets_round_in_the_end() {
    let mut world = World::new(single(Mode::Dsr, UDP, names(4).vip, names(4).backend), 100);
    for n in 0..100 {
        world.packet(&Packet::udp(&crate::world::client(4, n), names(4).vip)).to_backend();
    }
    world.now = LIFETIMES.udp + 1;
    let mut rounds = 0;
    while world.live() > 0 {
        world.engine.sweep(7, world.now, &mut world.ledger);
        rounds += 1;
        assert!(rounds <= 100usize.div_ceil(7) + 1, "{} left", world.live());
    }
}
