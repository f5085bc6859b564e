//! Does any sequence of bytes make this crate panic, or break what it promises?
//!
//! [`fuzz_parse`] is the body of a fuzz target: a runner feeds it arbitrary bytes; a failed promise is a panic there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::arp;
use crate::buffer::{PacketBuf, VecBuf};
use crate::checksum;
use crate::encap::{self, Ends, GueUdp, Outer, Tunnel};
use crate::eth;
use crate::icmp;
use crate::icmp_reply::{self, Problem};
use crate::icmpv6;
use crate::ipv4;
use crate::ipv6;
use crate::ndp;
use crate::parse::{
    Kind, ParseOptions, Parsed, Usual, parse, parse_any, parsed_usual_v4, parsed_usual_v6, usual_v4, usual_v6,
};
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
        let outcome = parse(data, &options);
        let mut slowly = Parsed::default();
        assert_eq!(outcome, parse_any(data, &options, &mut slowly).map(|()| slowly), "the fast path differs");
        fuzz_usual(data, &options, outcome.as_ref().ok());
        let Ok(parsed) = outcome else { continue };
        match parsed.kind {
            Kind::Arp => {
                let _ = arp::parse(data, &parsed);
            }
            Kind::Other => {}
            Kind::Ipv4 | Kind::Ipv6 => fuzz_ip(data, &parsed, &options),
        }
    }
}

/// Valid frames of every kind that the parser knows, for a runner to mutate.
pub fn seeds() -> Vec<Vec<u8>> {
    let tcp_syn = [
        [0x9c, 0x40, 0, 80, 0, 0, 3, 0xe8, 0, 0, 0, 0, 0x60, tcp::SYN, 2, 0, 0, 0, 0, 0].as_slice(),
        &[2, 4, 5, 0xb4],
    ]
    .concat();
    let udp = [0x9c, 0x40, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4].to_vec();
    let chain = |next: u8, payload: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat();
    let fragment = |next: u8, payload: &[u8]| [&[next, 0, 0, 1, 0, 0, 0, 7], payload].concat();
    let quoted = |frame: Vec<u8>| frame.get(eth::HEADER_LEN..).unwrap_or_default().to_vec();
    let error =
        |kind: u8, code: u8, quote: Vec<u8>| [&[kind, code, 0, 0, 0, 0, 5, 0xdc], quote.as_slice()].concat();
    let echo = |kind: u8| vec![kind, 0, 0, 0, 0, 1, 0, 1, 9, 9];
    let mut seeds = vec![
        seed_v4(Protocol::TCP, &tcp_syn),
        seed_v4(Protocol::UDP, &udp),
        seed_v4(Protocol::ICMP, &echo(icmp::ECHO_REQUEST)),
        seed_v4(Protocol::ICMP, &error(3, 4, quoted(seed_v4(Protocol::TCP, &tcp_syn)))),
        seed_v4(Protocol::ICMP, &error(11, 0, quoted(seed_v4(Protocol::UDP, &udp)))),
        seed_v6(Protocol::TCP, &tcp_syn),
        seed_v6(Protocol::UDP, &udp),
        seed_v6(Protocol::ICMPV6, &echo(icmpv6::ECHO_REQUEST)),
        seed_v6(Protocol::ICMPV6, &error(2, 0, quoted(seed_v6(Protocol::TCP, &tcp_syn)))),
        seed_v6(Protocol::ICMPV6, &error(1, 4, quoted(seed_v6(Protocol::UDP, &udp)))),
        seed_v6(Protocol::HOP_BY_HOP, &chain(60, &chain(6, &tcp_syn))),
        seed_v6(Protocol::FRAGMENT, &fragment(6, &tcp_syn)),
    ];
    let (mac, ip) = (Mac([2, 0, 0, 0, 0, 1]), Ipv6Addr::from(V6.0));
    seeds.push(arp::request(mac, V4.0.into(), (V4.0 + 1).into(), Some(5)).to_vec());
    seeds.push(ndp::solicit(mac, ip, Ipv6Addr::LOCALHOST, None).to_vec());
    seeds.push(ndp::advertise(mac, ip, mac, Ipv6Addr::LOCALHOST, Some(5)).to_vec());
    seeds
}

fn seed_v4(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let header = ipv4::Header {
        tos: 0,
        total_len: (ipv4::HEADER_LEN + payload.len()) as u16,
        identification: 7,
        dont_fragment: false,
        ttl: 64,
        protocol,
        src: V4.0 + 2,
        dst: V4.0 + 3,
    };
    seed(eth::IPV4, &header.bytes(), payload)
}

fn seed_v6(protocol: Protocol, payload: &[u8]) -> Vec<u8> {
    let mut dst = V6.0;
    dst[15] = 11;
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: payload.len() as u16,
        next_header: protocol,
        hop_limit: 64,
        src: V6.0,
        dst,
    };
    seed(eth::IPV6, &header.bytes(), payload)
}

fn seed(ether_type: u16, header: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ether_type.to_be_bytes());
    frame.extend(header);
    frame.extend(payload);
    if let Ok(parsed) = parse(&frame, &ParseOptions::default()) {
        let done = match parsed.protocol {
            Protocol::ICMP | Protocol::ICMPV6 => icmp::refresh_checksum(&mut frame, &parsed),
            _ => rewrite::refresh_l4_checksum(&mut frame, &parsed) || parsed.is_fragment(),
        };
        debug_assert!(done, "{parsed:?}");
    }
    frame
}

/// A usual frame is what it says it is, but perhaps for its addresses.
fn fuzz_usual(data: &[u8], options: &ParseOptions, parsed: Option<&Parsed>) {
    if let Some(Usual { src, dst, src_port, dst_port, protocol, l3_len }) = usual_v4(data, options) {
        let known = parsed_usual_v4(data, l3_len);
        assert_eq!(
            known.map(|known| (known.src_port, known.dst_port, known.protocol)),
            Some((src_port, dst_port, protocol))
        );
        match parsed {
            Some(parsed) => {
                assert_eq!(known.as_ref(), Some(parsed));
                assert_eq!((src, dst), parsed.addresses_v4(data));
            }
            None => assert!(!ipv4::is_source(src) || !ipv4::is_source(dst) || src == dst, "{known:?}"),
        }
    }
    if let Some(Usual { src, dst, src_port, dst_port, protocol, l3_len }) = usual_v6(data) {
        let known = parsed_usual_v6(data, l3_len);
        assert_eq!(
            known.map(|known| (known.src_port, known.dst_port, known.protocol)),
            Some((src_port, dst_port, protocol))
        );
        match parsed {
            Some(parsed) => {
                assert_eq!(known.as_ref(), Some(parsed));
                assert_eq!((src, dst), parsed.addresses_v6(data));
            }
            // as `parse_plain_v6` has it
            None => {
                let ordinary = |address: u128| (0x20..0xfe).contains(&(address >> 120));
                assert!(!ordinary(src) || !ordinary(dst) || src == dst, "{known:?}");
            }
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

    let mut hopped = data.to_vec();
    if parsed.ttl <= 1 || !rewrite::decrement_ttl(&mut hopped, parsed) {
        return;
    }
    let udp = GueUdp { src_port: 50_000, dst_port: encap::GUE_PORT, checksum: true };
    for tunnel in [Tunnel::Ipip, Tunnel::GueVariant0(udp), Tunnel::GueVariant1(udp)] {
        for ends in [Ends::V4 { src: V4.0, dst: V4.0 + 1 }, Ends::V6 { src: V6.0, dst: [0x20; 16] }] {
            let outer = Outer { tunnel, ends, ttl: 64, identification: 1, flow_label: 1 };
            let mut packet = VecBuf::new(data);
            if encap::encapsulate(&mut packet, parsed, &outer) {
                let carried = parse(packet.data(), &default);
                assert!(carried.is_ok_and(|outer| checksum::l4_is_valid(packet.data(), &outer)));
                let inner = hopped.get(parsed.l3_offset()..parsed.end()).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A small generator whose seed is all a failure needs to be repeated.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % limit
        }
    }

    #[test]
    fn seeds_are_valid() {
        for frame in seeds() {
            let parsed = parse(&frame, &ParseOptions::default());
            let ip =
                parsed.is_ok_and(|parsed| checksum::l4_is_valid(&frame, &parsed) || parsed.kind == Kind::Arp);
            // the neighbour messages name the loopback address, which only stands for any other
            assert!(ip || frame.len() > 80, "{frame:02x?}");
        }
    }

    #[test]
    fn mutated_seeds_break_nothing() {
        let mut accepted = 0;
        let seeds = seeds();
        for round in 0..60_000u64 {
            let mut random = Random(round);
            let mut frame = seeds[random.below(seeds.len())].clone();
            for _ in 0..random.below(6) {
                let at = random.below(frame.len());
                frame[at] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    2 => frame[at] ^ (1 << random.below(8)),
                    _ => random.below(256) as u8,
                };
            }
            match random.below(8) {
                0 => frame.truncate(random.below(frame.len()) + 1),
                1 => frame.extend(std::iter::repeat_n(0x5a, random.below(40))),
                _ => {}
            }
            accepted += u32::from(parse(&frame, &ParseOptions { l3_checksum_ok: true }).is_ok());
            fuzz_parse(&frame);
        }
        assert!(accepted > 10_000, "only {accepted} mutants got past the parser");
    }

    #[test]
    fn noise_breaks_nothing() {
        let mut random = Random(1);
        for _ in 0..20_000 {
            let mut frame: Vec<u8> = (0..random.below(120)).map(|_| random.below(256) as u8).collect();
            let kind = [eth::IPV4, eth::IPV6, eth::ARP][random.below(3)].to_be_bytes();
            if let Some(field) = frame.get_mut(12..14) {
                field.copy_from_slice(&kind);
            }
            if let Some(version) = frame.get_mut(14) {
                *version = if kind[0] == 8 { 0x45 } else { 0x60 };
            }
            fuzz_parse(&frame);
        }
    }
}
