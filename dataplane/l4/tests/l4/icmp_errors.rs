//! Do ICMP errors reach the end that sent what they are about, in words that it understands?

use std::net::SocketAddr;

use weir_l4::{DropReason, Mode, Verdict};

use crate::packets::{ACK, LINK, Packet, SYN, TCP, UDP, aged, framed, icmp_error};
use crate::world::{World, address, client, first, host, names, pair, single};

/// Type, code and second word of the errors that say something about a flow.
fn kinds(family: u8) -> [(u8, u8, u32); 4] {
    if family == 4 {
        [(3, 4, 1_400), (3, 3, 0), (11, 0, 0), (12, 0, 0x0400_0000)]
    } else {
        [(2, 0, 1_400), (1, 4, 0), (3, 0, 0), (4, 1, 40)]
    }
}

/// How much of a packet of this family an error quotes: all, or the eight bytes of transport that RFC 792 asks for.
fn quotes(datagram: &[u8], family: u8) -> [&[u8]; 2] {
    [datagram, &datagram[..if family == 4 { 28 } else { 48 }]]
}

/// A world with one flow, the client's packet, and the same as the backend sees it.
fn flow(mode: Mode, protocol: u8, family: u8) -> (World, Packet, Packet) {
    let names = names(family);
    let mut world = World::new(single(mode, protocol, names.vip, names.backend), 16);
    let request = Packet { payload: (0..40).collect(), ..Packet::new(protocol, names.client, names.vip) };
    let (_, out) = world.packet(&Packet { payload: vec![], ..request.with(SYN) }).to_backend();
    let mut seen = Packet { dst: names.backend.parse().unwrap(), ..request.clone() };
    if mode == Mode::Fullnat {
        let at = if family == 4 { 20 } else { 40 };
        seen.src = SocketAddr::new(address(names.snat), u16::from_be_bytes([out[at], out[at + 1]]));
    }
    (world, request, seen)
}

#[test]
fn errors_about_replies_reach_the_backend() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            let names = names(family);
            let (mut world, request, seen) = flow(mode, protocol, family);
            let to_client = Packet { ttl: 3, ..request.answer(ACK) };
            let from_backend = Packet { ttl: 3, ..seen.answer(ACK) };
            let (as_client, as_backend) = (to_client.datagram(), from_backend.datagram());
            for (kind, code, rest) in kinds(family) {
                for (quote, translated) in quotes(&as_client, family).iter().zip(quotes(&as_backend, family))
                {
                    for sender in [names.router.to_owned(), host(names.client)] {
                        let error = icmp_error(&sender, &host(names.vip), kind, code, rest, quote);
                        let mut frame = framed(&error);
                        frame.extend([0xee; 6]);
                        let (delivery, out) = world.send(&frame).to_backend();
                        assert_eq!((delivery.listener, delivery.backend, delivery.fallback), (0, 0, false));
                        if mode.sees_replies() {
                            let expected =
                                icmp_error(&sender, &host(names.backend), kind, code, rest, translated);
                            assert_eq!(out, aged(&expected), "{mode:?} {protocol} {kind}/{code}");
                        } else if mode == Mode::Dsr {
                            assert_eq!(out, aged(&error));
                        } else {
                            assert!(out.ends_with(&aged(&error)), "{mode:?} {kind}/{code}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn errors_about_requests_reach_the_client() {
    for mode in [Mode::Nat, Mode::Fullnat] {
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            let names = names(family);
            let (mut world, request, seen) = flow(mode, protocol, family);
            let as_backend = Packet { ttl: 3, ..seen.clone() }.datagram();
            let as_client = Packet { ttl: 3, ..request.clone() }.datagram();
            for (kind, code, rest) in kinds(family) {
                for (quote, translated) in quotes(&as_backend, family).iter().zip(quotes(&as_client, family))
                {
                    // the backend's own address is hidden behind the vip; a router keeps its
                    for (sender, shown) in [
                        (names.router.to_owned(), names.router.to_owned()),
                        (host(names.backend), host(names.vip)),
                    ] {
                        let error = icmp_error(&sender, &seen.src.ip().to_string(), kind, code, rest, quote);
                        let (delivery, out) = world.send(&framed(&error)).to_client();
                        let expected = icmp_error(&shown, &host(names.client), kind, code, rest, translated);
                        assert_eq!(out, aged(&expected), "{mode:?} {protocol} {kind}/{code}");
                        assert_eq!((delivery.listener, delivery.backend), (0, 0));
                    }
                }
            }
        }
    }
}

#[test]
fn a_quoted_udp_packet_without_checksum_keeps_none() {
    let (mut world, request, seen) = flow(Mode::Nat, UDP, 4);
    let quote = Packet { checksum: false, ..request.answer(0) }.datagram();
    let error = icmp_error(names(4).router, &host(names(4).vip), 3, 3, 0, &quote);
    let (_, out) = world.send(&framed(&error)).to_backend();
    let translated = Packet { checksum: false, ..seen.answer(0) }.datagram();
    assert!(out.ends_with(&translated));
}

#[test]
fn an_error_about_no_flow_is_dropped_or_follows_the_hash() {
    for (mode, family) in
        [(Mode::Dsr, 4), (Mode::Ipip, 6), (Mode::Gue, 4), (Mode::Nat, 4), (Mode::Fullnat, 6)]
    {
        let names = names(family);
        let mut world = World::new(pair(mode, TCP, family), 100);
        let mut with_flows = World::new(pair(mode, TCP, family), 100);
        for n in 0..50 {
            let packet = first(TCP, &client(family, n), names.vip);
            let quote = packet.answer(ACK).datagram();
            let outcome = world.send(&framed(&icmp_error(
                names.router,
                &host(names.vip),
                if family == 4 { 3 } else { 2 },
                if family == 4 { 4 } else { 0 },
                1_400,
                &quote,
            )));
            if mode.sees_replies() {
                assert_eq!(outcome.drop_reason(), DropReason::IcmpNoFlow);
            } else {
                let (delivery, _) = outcome.to_backend();
                assert!(delivery.fallback);
                assert_eq!(delivery.backend, with_flows.backend_of(&packet), "where the flow would be");
            }
        }
        assert_eq!(world.live(), 0, "an error begins no flow");
    }
}

#[test]
fn what_can_not_be_read_is_dropped_with_a_reason() {
    for family in [4, 6] {
        let (mut world, request, _) = flow(Mode::Nat, TCP, family);
        let names = names(family);
        let quote = request.answer(ACK).datagram();
        let kind = if family == 4 { 3 } else { 1 };
        let error = |quote: &[u8]| framed(&icmp_error(names.router, &host(names.vip), kind, 1, 0, quote));
        world.send(&error(&quote)).to_backend();

        let header = if family == 4 { 20 } else { 40 };
        for length in 0..header + 8 {
            let outcome = world.send(&error(&quote[..length]));
            assert_eq!(outcome.drop_reason(), DropReason::IcmpUntranslatable, "{length} bytes");
        }
        let mut corrupt = error(&quote);
        *corrupt.last_mut().unwrap() ^= 1;
        assert_eq!(world.send(&corrupt).drop_reason(), DropReason::IcmpUntranslatable, "checksum");

        // about a ping, about a flow of somebody else
        let ping = Packet { protocol: if family == 4 { 1 } else { 58 }, ..request.answer(ACK) }.datagram();
        assert_eq!(world.send(&error(&ping)).drop_reason(), DropReason::IcmpNoFlow);
        let other = Packet::tcp("198.18.3.3:3", "198.18.4.4:4", ACK).datagram();
        let foreign = if family == 4 { &other } else { &quote };
        let mut foreign = foreign.clone();
        if family == 6 {
            foreign[10] ^= 0xff;
        }
        assert_eq!(world.send(&error(&foreign)).drop_reason(), DropReason::IcmpNoFlow);

        let mut old = error(&quote);
        if family == 4 {
            old[LINK + 8] = 1;
            old[LINK + 10..LINK + 12].fill(0);
            let sum = !crate::packets::ones_sum(&old[LINK..LINK + 20]);
            old[LINK + 10..LINK + 12].copy_from_slice(&sum.to_be_bytes());
        } else {
            old[LINK + 7] = 1;
        }
        assert_eq!(world.send(&old).drop_reason(), DropReason::TtlExpired);
        assert_eq!(world.live(), 1);
    }
}

#[test]
fn an_error_does_not_keep_a_flow_alive() {
    let (mut world, request, _) = flow(Mode::Nat, UDP, 4);
    let error =
        framed(&icmp_error(names(4).router, &host(names(4).vip), 3, 3, 0, &request.answer(0).datagram()));
    world.now = crate::world::LIFETIMES.udp;
    world.send(&error).to_backend();
    world.now += 1;
    world.sweep_all();
    assert_eq!(world.live(), 0);
    assert_eq!(world.send(&error).drop_reason(), DropReason::IcmpNoFlow);
}

#[test]
fn pings_and_strangers() {
    for (family, kind) in [(4, 8), (6, 128)] {
        let names = names(family);
        let (mut world, ..) = flow(Mode::Nat, TCP, family);
        let mut verdict =
            |dst: &str| world.send(&framed(&icmp_error(names.router, dst, kind, 0, 1, b"ping"))).verdict;
        assert_eq!(verdict(&host(names.vip)), Verdict::Local);
        assert_eq!(verdict(if family == 4 { "198.18.0.1" } else { "2001:db8::1" }), Verdict::Local);
        assert_eq!(verdict(names.snat), Verdict::Local);
        assert_eq!(verdict(&host(names.client)), Verdict::Drop(DropReason::NotForUs));
        let from_backend =
            framed(&icmp_error(&host(names.backend), &host(names.client), kind, 0, 1, b"ping"));
        assert_eq!(world.send(&from_backend).verdict, Verdict::Drop(DropReason::BackendNoFlow));
        let other = Packet { protocol: 47, ..Packet::udp(names.client, names.vip) }.frame();
        assert_eq!(world.send(&other).drop_reason(), DropReason::UnsupportedProtocol);
    }
}
