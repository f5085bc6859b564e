//! What does Weir say to packets that are too long or too old, and what does it do so that they get rarer?

use weir_l4::{DropReason, Mode, Parts, Verdict};
use weir_net::{ParseOptions, VecBuf, parse};

use crate::packets::{ACK, Packet, SYN, TCP, UDP, framed, icmp_error};
use crate::world::{World, host, names, single};

/// A packet of `length` bytes from its IP header on.
fn sized(protocol: u8, src: &str, dst: &str, length: usize) -> Packet {
    let mut packet = Packet::new(protocol, src, dst);
    let empty = Packet { payload: vec![], ..packet.clone() }.datagram().len();
    packet.payload = (0..length - empty).map(|at| at as u8).collect();
    packet
}

/// Checks an answer to `about` from the vip, but for the IP header's own choices.
fn assert_error(reply: &[u8], about: &Packet, vip: &str, kind: u8, code: u8, rest: u32) {
    let family = if about.src.is_ipv4() { 4 } else { 6 };
    let datagram = about.datagram();
    // RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c): as much as fits
    let (header, most) = if family == 4 { (20, 576) } else { (40, 1_280) };
    let quote = &datagram[..datagram.len().min(most - header - 8)];
    let expected = icmp_error(vip, &about.src.ip().to_string(), kind, code, rest, quote);
    assert_eq!(reply[header..], expected[header..]);
    let addresses = if family == 4 { 12..20 } else { 8..40 };
    assert_eq!(reply[addresses.clone()], expected[addresses]);
}

#[test]
fn too_long_packets_are_told_the_mtu_that_fits() {
    let tunnels = [
        (Mode::Ipip, 0, 4, 20),
        (Mode::Ipip, 0, 6, 40),
        (Mode::Gue, 1, 4, 28),
        (Mode::Gue, 1, 6, 48),
        (Mode::Gue, 0, 4, 32),
        (Mode::Gue, 0, 6, 52),
        (Mode::Nat, 0, 0, 0),
        (Mode::Fullnat, 0, 0, 0),
        (Mode::Dsr, 0, 0, 0),
    ];
    for (mode, variant, outer, overhead) in tunnels {
        for inner in [4, 6] {
            for (protocol, mtu) in [(UDP, 1_500u16), (TCP, 1_400)] {
                let outer = if outer == 0 { inner } else { outer };
                let names_in = names(inner);
                let mut parts = single(mode, protocol, names_in.vip, names(outer).backend);
                parts.listeners[0].gue_variant = variant;
                parts.backends[0].1.mtu = mtu;
                let mut world = World::new(parts, 16);
                if mode == Mode::Fullnat && protocol == TCP {
                    world.packet(&Packet::tcp(names_in.client, names_in.vip, SYN)).to_backend();
                }
                let fits = usize::from(mtu) - overhead;
                let packet = sized(protocol, names_in.client, names_in.vip, fits);
                let (_, out) = world.packet(&packet).to_backend();
                assert_eq!(out.len(), usize::from(mtu), "{mode:?}: exactly");
                let packet = sized(protocol, names_in.client, names_in.vip, fits + 1);
                let reply = world.packet(&packet).reply();
                let (kind, code) = if inner == 4 { (3, 4) } else { (2, 0) };
                assert_error(&reply, &packet, &host(names_in.vip), kind, code, fits as u32);
            }
        }
    }
}

#[test]
fn a_packet_whose_time_is_over_ends_here() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
        for family in [4, 6] {
            let names = names(family);
            let mut world = World::new(single(mode, UDP, names.vip, names.backend), 16);
            let (kind, code) = if family == 4 { (11, 0) } else { (3, 0) };
            for known in [false, true] {
                let packet = Packet { ttl: 1, ..Packet::udp(names.client, names.vip) };
                let reply = world.packet(&packet).reply();
                assert_error(&reply, &packet, &host(names.vip), kind, code, 0);
                world.packet(&Packet { ttl: 2, ..packet }).to_backend();
                assert_eq!(world.live(), 1, "{known}");
            }
            if mode == Mode::Nat {
                let packet = Packet { ttl: 1, ..Packet::udp(names.backend, names.client) };
                let reply = world.packet(&packet).reply();
                assert_error(&reply, &packet, &host(names.vip), kind, code, 0);
            }
        }
    }
}

#[test]
fn answers_are_limited_in_rate_and_never_to_errors() {
    let mut world =
        World::new(Parts { icmp_rate: 8, ..single(Mode::Nat, UDP, names(4).vip, names(4).backend) }, 16);
    let old = Packet { ttl: 1, ..Packet::udp(names(4).client, names(4).vip) };
    let long = sized(UDP, names(4).client, names(4).vip, 1_501);
    let mut replies = |now: u32| {
        world.now = now;
        let mut count = 0;
        for _ in 0..50 {
            for (packet, reason) in [(&old, DropReason::TtlExpired), (&long, DropReason::TooBig)] {
                match world.packet(packet).verdict {
                    Verdict::Reply => count += 1,
                    other => assert_eq!(other, Verdict::Drop(reason)),
                }
            }
        }
        count
    };
    assert_eq!(replies(0), 8);
    assert_eq!(replies(1), 2);
    assert_eq!(replies(4), 6);
    assert_eq!(replies(400), 8);

    let mut world = World::new(single(Mode::Dsr, UDP, names(4).vip, names(4).backend), 16);
    let quote = Packet::udp(names(4).vip, names(4).client).datagram();
    let mut error = icmp_error(names(4).router, &host(names(4).vip), 3, 3, 0, &quote);
    error[8] = 1;
    error[10..12].fill(0);
    let sum = !crate::packets::ones_sum(&error[..20]);
    error[10..12].copy_from_slice(&sum.to_be_bytes());
    assert!(matches!(world.send(&framed(&error)).verdict, Verdict::Drop(DropReason::TtlExpired)));
}

#[test]
fn a_later_fragment_is_never_answered() {
    let mut parts = single(Mode::Ipip, UDP, names(4).vip, names(4).backend);
    parts.backends[0].1.mtu = 600;
    let mut world = World::new(parts, 16);
    let pieces = sized(UDP, names(4).client, names(4).vip, 1_400).fragments(640);
    assert_eq!(world.send(&pieces[0]).verdict, Verdict::Reply);
    assert_eq!(world.send(&pieces[1]).drop_reason(), DropReason::TooBig);
}

#[test]
fn the_worker_can_say_that_a_reply_is_too_long() {
    let mut world = World::new(single(Mode::Nat, UDP, names(4).vip, names(4).backend), 16);
    let reply = sized(UDP, names(4).backend, names(4).client, 1_450);
    let frame = reply.frame();
    let parsed = parse(&frame, &ParseOptions::default()).unwrap();
    let mut packet = VecBuf::new(&frame);
    assert_eq!(world.engine.answer_too_big(&mut packet, &parsed, 1_400, 0), Verdict::Reply);
    let answer = weir_net::PacketBuf::data(&packet);
    crate::packets::verify(&answer[14..]);
    assert_error(&answer[14..], &reply, &host(names(4).client), 3, 4, 1_400);
}

#[test]
fn segments_are_announced_no_longer_than_the_smallest_link_carries() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
        for (family, clamped) in [(4, 1_360), (6, 1_340)] {
            let names = names(family);
            let parts = Parts { smallest_mtu: 1_400, ..single(mode, TCP, names.vip, names.backend) };
            let mut world = World::new(parts, 16);
            for (mss, expected) in [
                (Some(1_460), Some(clamped)),
                (Some(clamped), Some(clamped)),
                (Some(536), Some(536)),
                (None, None),
            ] {
                let syn = Packet { mss, ..Packet::tcp(names.client, names.vip, SYN) };
                let (_, out) = world.packet(&syn).to_backend();
                let expected = if mode.sees_replies() { expected } else { mss };
                assert_eq!(mss_of(&out, mode), expected, "{mode:?} {family} {mss:?}");
                if mode.sees_replies() {
                    let at = if family == 4 { 20 } else { 40 };
                    let port = u16::from_be_bytes([out[at], out[at + 1]]);
                    let source = if mode == Mode::Nat { host(names.client) } else { names.snat.to_owned() };
                    let to = std::net::SocketAddr::new(source.parse().unwrap(), port).to_string();
                    let reply = Packet { mss, ..Packet::tcp(names.backend, &to, SYN | ACK) };
                    let (_, back) = world.packet(&reply).to_client();
                    assert_eq!(mss_of(&back, mode), expected, "{mode:?}: the server's");
                    // past the handshake the option means nothing
                    let data = Packet { mss: Some(1_460), ..Packet::tcp(names.client, names.vip, ACK) };
                    let (_, out) = world.packet(&data).to_backend();
                    assert_eq!(mss_of(&out, mode), Some(1_460));
                }
            }
        }
    }
}

/// The MSS option that our builder puts first; tunnels carry it at the same place from the end.
fn mss_of(datagram: &[u8], mode: Mode) -> Option<u16> {
    let inner = match (mode, datagram[0] >> 4) {
        (Mode::Ipip, 4) => &datagram[20..],
        (Mode::Ipip, _) => &datagram[40..],
        (Mode::Gue, 4) => &datagram[28..],
        (Mode::Gue, _) => &datagram[48..],
        _ => datagram,
    };
    let segment = &inner[if inner[0] >> 4 == 4 { 20 } else { 40 }..];
    (segment[12] >> 4 > 5).then(|| u16::from_be_bytes([segment[22], segment[23]]))
}
