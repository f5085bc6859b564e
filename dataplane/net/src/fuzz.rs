//! Does any sequence of bytes make this crate panic, or break what it promises?
//!
//! [`fuzz_parse`] is the body of a fuzz target: a runner feeds it arbitrary bytes; a failed promise is a panic there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::arp;
use crate::buffer::{PacketBuf, VecBuf};
use crate::checksum;
use crate::encap::{self, Ends, GueUdp, Link, Outer, Tunnel};
use crate::eth;
use crate::icmp;
use crate::icmp_reply::{self, Problem};
use crate::ndp;
use crate::parse::{Kind, ParseOptions, Parsed, parse};
use crate::rewrite;
use crate::tcp;
use crate::tcp_reset;
use crate::types::{Mac, Protocol};

const V4: (u32, u16) = (0xc612_0a0b, 4242);
const V6: ([u8; 16], u16) = ([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], 4242);

/// Parses arbitrary bytes and runs everything that changes or answers a packet over what was accepted.
pub fn fuzz_parse(data: &[u8]) {
    // Accepting a checksum as verified must be safe too, and lets mutated headers further in.
    for options in [ParseOptions { l3_checksum_ok: true }, ParseOptions::default()] {
        let Ok(parsed) = parse(data, &options) else { continue };
        match parsed.kind {
            Kind::Arp => {
                let _ = arp::parse(data, &parsed);
            }
            Kind::Other => {}
            Kind::Ipv4 | Kind::Ipv6 => fuzz_ip(data, &parsed, &options),
        }
    }
}

fn fuzz_ip(data: &[u8], parsed: &Parsed, options: &ParseOptions) {
    assert!(parsed.l3_offset() >= eth::HEADER_LEN && parsed.l3 < parsed.l4, "{parsed:?}");
    assert!(parsed.l4_offset() <= parsed.end() && parsed.end() <= data.len(), "{parsed:?}");
    assert!(parsed.ttl > 0 && !(parsed.has_ports && parsed.is_later_fragment()), "{parsed:?}");
    let valid = checksum::l4_is_valid(data, parsed);
    let _ = ndp::parse(data, parsed);

    // A packet that is rewritten stays the same packet but for its addresses and ports, with its checksums as right, or
    // as wrong, as they were.
    let mut frame = data.to_vec();
    let done = match parsed.kind {
        Kind::Ipv4 => rewrite::set_both_v4(&mut frame, parsed, V4, (V4.0 + 1, V4.1 + 1)),
        _ => {
            let mut dst = V6.0;
            dst[15] = 10;
            rewrite::set_both_v6(&mut frame, parsed, (&V6.0, V6.1), (&dst, V6.1 + 1))
        }
    };
    assert!(done, "{parsed:?}");
    let Ok(after) = parse(&frame, options) else {
        // The unspecified source of duplicate address detection is gone; nothing else may change the outcome.
        unreachable!("rewriting broke {parsed:?}")
    };
    let expected_ports = if parsed.has_ports { (V4.1, V4.1 + 1) } else { (0, 0) };
    assert_eq!((after.src_port, after.dst_port), expected_ports);
    assert_eq!(Parsed { src_port: parsed.src_port, dst_port: parsed.dst_port, ..after }, *parsed);
    assert_eq!(checksum::l4_is_valid(&frame, &after), valid, "{parsed:?}");
    assert_eq!(rewrite::decrement_ttl(&mut frame, parsed), parsed.ttl > 1);
    assert!(parse(&frame, options).is_ok());

    if parsed.protocol == Protocol::TCP && parsed.has_ports {
        let mut frame = data.to_vec();
        tcp::clamp_mss(parsed.segment_mut(&mut frame), 1000);
        assert_eq!(checksum::l4_is_valid(&frame, parsed), valid, "{parsed:?}");
    }
    fuzz_quote(data, parsed);
    fuzz_answers(data, parsed);
}

fn fuzz_quote(data: &[u8], parsed: &Parsed) {
    let Ok(inner) = icmp::inner(data, parsed) else { return };
    assert!(usize::from(inner.l4) + 8 <= usize::from(inner.end) && usize::from(inner.end) <= data.len());
    let (src, dst): (IpAddr, IpAddr) = match parsed.kind {
        Kind::Ipv4 => (Ipv4Addr::from(V4.0).into(), Ipv4Addr::from(V4.0 + 1).into()),
        _ => (Ipv6Addr::from(V6.0).into(), Ipv6Addr::LOCALHOST.into()),
    };
    let mut frame = data.to_vec();
    assert!(rewrite::set_inner_src(&mut frame, &inner, src, 7));
    assert!(rewrite::set_inner_dst(&mut frame, &inner, dst, 8));
    assert!(icmp::refresh_checksum(&mut frame, parsed));
    // A quoted ICMP message has no ports, but its own type and checksum stay readable.
    let again = icmp::inner(&frame, parsed);
    assert!(again.is_ok_and(|again| again.src(&frame) == src && again.dst(&frame) == dst), "{inner:?}");
}

fn fuzz_answers(data: &[u8], parsed: &Parsed) {
    let default = ParseOptions::default();
    let source: IpAddr = match parsed.kind {
        Kind::Ipv4 => Ipv4Addr::new(198, 18, 255, 254).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffe).into(),
    };
    for problem in [Problem::TooBig { mtu: 1400 }, Problem::TimeExceeded, Problem::PortUnreachable] {
        let mut packet = VecBuf::new(data);
        if icmp_reply::error(&mut packet, parsed, source, problem).is_ok() {
            check_answer(packet.data(), &default);
        }
    }
    let mut packet = VecBuf::new(data);
    if tcp_reset::reply(&mut packet, parsed) {
        check_answer(packet.data(), &default);
    }
    let mut frame = data.to_vec();
    let _ = icmp_reply::echo(&mut frame, parsed);

    let udp = GueUdp { src_port: 50_000, dst_port: encap::GUE_PORT, checksum: true };
    for tunnel in [Tunnel::Ipip, Tunnel::GueVariant0(udp), Tunnel::GueVariant1(udp)] {
        for ends in [Ends::V4 { src: V4.0, dst: V4.0 + 1 }, Ends::V6 { src: V6.0, dst: [0x20; 16] }] {
            let outer = Outer { tunnel, ends, ttl: 64, identification: 1, flow_label: 1 };
            let link = Link { destination: Mac::BROADCAST, source: Mac::ZERO, vlan: Some(1) };
            let mut packet = VecBuf::new(data);
            if encap::encapsulate(&mut packet, parsed, &outer, &link) {
                let carried = parse(packet.data(), &default);
                assert!(carried.is_ok_and(|outer| checksum::l4_is_valid(packet.data(), &outer)));
                let inner = data.get(parsed.l3_offset()..parsed.end()).unwrap_or_default();
                assert!(packet.data().ends_with(inner));
            }
        }
    }
}

/// An answer is a valid packet unless the asker was addressed in a way that makes its swap a martian.
fn check_answer(frame: &[u8], options: &ParseOptions) {
    if let Ok(answer) = parse(frame, options) {
        assert!(checksum::l4_is_valid(frame, &answer), "{answer:?}");
        assert_eq!(answer.end(), frame.len());
    }
}
