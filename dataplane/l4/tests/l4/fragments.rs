//! Do later fragments go where their first went?

use weir_l4::{DropReason, Mode};

use crate::packets::{ACK, Packet, TCP, UDP, aged};
use crate::world::{World, names, single};

const SIZE: usize = 48;

fn long(protocol: u8, src: &str, dst: &str) -> Packet {
    let payload = (0..150).collect();
    Packet { payload, dont_fragment: false, identification: 0x1234, ..Packet::new(protocol, src, dst) }
}

#[test]
fn all_pieces_are_translated_alike() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            let names = names(family);
            let mut world = World::new(single(mode, protocol, names.vip, names.backend), 16);
            if mode == Mode::Fullnat && protocol == TCP {
                world.packet(&Packet::tcp(names.client, names.vip, crate::packets::SYN)).to_backend();
            }
            let request = long(protocol, names.client, names.vip);
            let pieces = request.fragments(SIZE);
            assert_eq!(pieces.len(), (request.segment().len()).div_ceil(SIZE));
            let out: Vec<Vec<u8>> = pieces.iter().map(|piece| world.send(piece).to_backend().1).collect();
            let mut expected = Packet { ttl: 63, ..request.clone() };
            let backend = names.backend.parse().unwrap();
            match mode {
                Mode::Dsr => {}
                Mode::Ipip | Mode::Gue => {
                    for (piece, out) in pieces.iter().zip(&out) {
                        assert!(out.ends_with(&aged(&piece[14..])), "{mode:?}");
                    }
                    continue;
                }
                Mode::Nat => expected.dst = backend,
                Mode::Fullnat => {
                    let at = if family == 4 { 20 } else { 48 };
                    let port = u16::from_be_bytes([out[0][at], out[0][at + 1]]);
                    expected.src = (crate::world::address(names.snat), port).into();
                    expected.dst = backend;
                }
                Mode::Proxy => unreachable!("carries no packets"),
            }
            let expected: Vec<Vec<u8>> =
                expected.fragments(SIZE).into_iter().map(|frame| frame[14..].to_vec()).collect();
            assert_eq!(out, expected, "{mode:?} {protocol} {family}");
            assert_eq!(world.live(), 1);

            if mode.sees_replies() {
                let source = if mode == Mode::Nat {
                    request.src
                } else {
                    let at = if family == 4 { 20 } else { 48 };
                    let port = u16::from_be_bytes([out[0][at], out[0][at + 1]]);
                    (crate::world::address(names.snat), port).into()
                };
                let reply = Packet { src: backend, dst: source, ..long(protocol, names.client, names.vip) };
                let back = Packet { src: request.dst, dst: request.src, ttl: 63, ..reply.clone() };
                let expected = back.fragments(SIZE).into_iter().map(|frame| frame[14..].to_vec());
                let out = reply.fragments(SIZE).into_iter().map(|piece| world.send(&piece).to_client().1);
                assert!(out.eq(expected), "{mode:?} {protocol} {family}");
            }
        }
    }
}

#[test]
fn a_later_fragment_without_its_first_is_dropped() {
    for family in [4, 6] {
        let names = names(family);
        let mut world = World::new(single(Mode::Nat, UDP, names.vip, names.backend), 16);
        let pieces = long(UDP, names.client, names.vip).fragments(SIZE);
        assert_eq!(world.send(&pieces[1]).drop_reason(), DropReason::FragmentWithoutFirst);
        world.send(&pieces[0]).to_backend();
        world.send(&pieces[1]).to_backend();
        // another datagram, another client: not these pieces
        let other = Packet { identification: 0x1235, ..long(UDP, names.client, names.vip) }.fragments(SIZE);
        assert_eq!(world.send(&other[1]).drop_reason(), DropReason::FragmentWithoutFirst);
        let other = long(UDP, names.other_client, names.vip).fragments(SIZE);
        assert_eq!(world.send(&other[1]).drop_reason(), DropReason::FragmentWithoutFirst);
    }
}

#[test]
fn a_first_fragment_is_forgotten_in_time() {
    let mut world = World::new(single(Mode::Nat, UDP, names(4).vip, names(4).backend), 16);
    let pieces = long(UDP, names(4).client, names(4).vip).fragments(SIZE);
    world.send(&pieces[0]).to_backend();
    world.now = 8;
    world.send(&pieces[1]).to_backend();
    world.now = 9;
    assert_eq!(world.send(&pieces[2]).drop_reason(), DropReason::FragmentWithoutFirst);
    // an identification that comes again names its new first
    let mut again = long(UDP, names(4).client, names(4).vip);
    again.src.set_port(1_111);
    let pieces = again.fragments(SIZE);
    world.send(&pieces[0]).to_backend();
    world.send(&pieces[2]).to_backend();
    assert_eq!(world.live(), 2);
}

#[test]
fn pieces_that_would_rewrite_a_header_are_malformed() {
    let packet = Packet::tcp(names(4).client, names(4).vip, ACK);
    let tiny = crate::packets::framed(&packet.fragment(8, true, &[0; 16]));
    let error = weir_net::parse(&tiny, &weir_net::ParseOptions::default()).unwrap_err();
    assert_eq!(error, weir_net::Malformed::TinyFragment);
}

#[test]
fn pieces_of_a_ping_are_nobodys_flow() {
    let mut world = World::new(single(Mode::Nat, UDP, names(4).vip, names(4).backend), 16);
    let ping = Packet { protocol: 1, ..long(UDP, names(4).client, names(4).vip) };
    for piece in ping.fragments(SIZE) {
        let verdict = world.send(&piece).verdict;
        assert!(!matches!(verdict, weir_l4::Verdict::ToBackend(_) | weir_l4::Verdict::ToClient(_)));
    }
    assert_eq!(world.live(), 0);
}
