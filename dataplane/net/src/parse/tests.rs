//! Frames by smoltcp, read here; and one frame for each reason of refusal.

use smoltcp::wire::{IpProtocol, TcpControl};

use super::*;
use crate::buffer::{PacketBuf, VecBuf};
use crate::icmpv6;
use crate::sample::{self, CLIENT_PORT, VIP_PORT, client, edit_v4, vip};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

fn read(frame: &[u8]) -> Result<Parsed, Malformed> {
    parse(frame, &ParseOptions::default())
}

fn refused(frame: &[u8]) -> Malformed {
    read(frame).expect_err("a malformed frame was accepted")
}

/// An IPv6 frame whose payload is `chain` after a fixed header of type `next`.
fn v6(next: u8, chain: &[u8]) -> Vec<u8> {
    sample::ip(Family::V6, IpProtocol::from(next), chain)
}

fn tcp_header() -> Vec<u8> {
    sample::tcp(Family::V6, TcpControl::None, Some(1), b"")[54..].to_vec()
}

#[test]
fn it_is_small() {
    assert!(size_of::<Parsed>() <= 40, "{}", size_of::<Parsed>());
}

#[test]
fn tcp_and_udp_of_both_families() {
    for family in BOTH {
        let frame = sample::tcp(family, TcpControl::Syn, None, b"");
        let parsed = read(&frame).unwrap();
        assert_eq!((parsed.family(), parsed.protocol), (Some(family), Protocol::TCP));
        assert_eq!((parsed.src(&frame), parsed.dst(&frame)), (Some(client(family)), Some(vip(family))));
        assert_eq!((parsed.src_port, parsed.dst_port, parsed.tcp_flags), (CLIENT_PORT, VIP_PORT, tcp::SYN));
        assert_eq!((parsed.ttl, parsed.vlan, parsed.end()), (61, None, frame.len()));
        assert!(parsed.has_ports && !parsed.is_fragment());
        assert!(checksum::l4_is_valid(&frame, &parsed));

        let mut frame = sample::udp(family, b"hello");
        frame.extend([0; 9]);
        let parsed = read(&frame).unwrap();
        assert_eq!((parsed.protocol, parsed.padding(&frame)), (Protocol::UDP, 9));
        assert_eq!(&parsed.segment(&frame)[8..], b"hello");
        assert!(checksum::l4_is_valid(&frame, &parsed));
        let last = parsed.end() - 1;
        frame[last] ^= 1;
        assert!(!checksum::l4_is_valid(&frame, &parsed));
    }
}

#[test]
fn usual_is_what_changes_nothing_about_a_flow() {
    let usual = |frame: &[u8]| {
        let v4 = usual_v4(frame, &ParseOptions::default()).map(|usual| (usual.l3_len, usual.dst_port));
        v4.or_else(|| usual_v6(frame).map(|usual| (usual.l3_len, usual.dst_port)))
    };
    for family in BOTH {
        let ack = sample::tcp(family, TcpControl::None, Some(1), b"hello");
        let datagram = sample::udp(family, b"hello, hello, hello");
        for frame in [&ack, &datagram] {
            let parsed = read(frame).unwrap();
            assert_eq!(usual(frame), Some((parsed.l3_len, VIP_PORT)));
            let known = match family {
                Family::V4 => parsed_usual_v4(frame, parsed.l3_len),
                Family::V6 => parsed_usual_v6(frame, parsed.l3_len),
            };
            assert_eq!(known, Some(parsed));
            assert_eq!(usual(&frame[..frame.len() - 1]), None, "cut");
            let mut tagged = VecBuf::new(frame);
            assert!(eth::push_vlan(&mut tagged, 42));
            assert_eq!(usual(tagged.data()), None);
        }
        for control in [TcpControl::Syn, TcpControl::Fin, TcpControl::Rst] {
            assert_eq!(usual(&sample::tcp(family, control, Some(1), b"hello")), None);
        }
    }
    let ack = sample::tcp(Family::V4, TcpControl::None, Some(1), b"hello");
    let edits: [fn(&mut [u8]); 3] =
        [|header| header[8] = 1, |header| header[6] = 0x20, |header| header[7] = 1];
    for edit in edits {
        assert_eq!(usual(&edit_v4(ack.clone(), edit)), None);
    }
    let mut corrupt = ack;
    corrupt[24] ^= 1;
    assert_eq!(usual(&corrupt), None);
    assert!(usual_v4(&corrupt, &ParseOptions { l3_checksum_ok: true }).is_some());
}

#[test]
fn a_tag_moves_everything_by_four() {
    for family in BOTH {
        let frame = sample::udp(family, b"x");
        let plain = read(&frame).unwrap();
        let mut packet = VecBuf::new(&frame);
        assert!(eth::push_vlan(&mut packet, 42));
        let tagged = read(packet.data()).unwrap();
        assert_eq!(tagged, plain.moved(18, Some(42)));
        assert_eq!(tagged.src(packet.data()), plain.src(&frame));
    }
    let mut frame = sample::udp(Family::V4, b"x");
    frame[12..14].copy_from_slice(&[0x81, 0]);
    assert_eq!(refused(&frame[..17]), Malformed::ShortFrame);
}

#[test]
fn what_is_no_ip_is_told_not_refused() {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&eth::ARP.to_be_bytes());
    assert_eq!(read(&frame).unwrap().kind, Kind::Arp);
    for other in [0x88cc_u16, 0x0026, 0x88a8] {
        frame[12..14].copy_from_slice(&other.to_be_bytes());
        let parsed = read(&frame).unwrap();
        assert_eq!((parsed.kind, parsed.ether_type), (Kind::Other, other));
    }
    assert_eq!(refused(&frame[..13]), Malformed::ShortFrame);
}

#[test]
fn ipv4_headers_that_are_refused() {
    let good = || sample::udp(Family::V4, b"payload");
    let edited = |at: usize, bytes: &[u8]| {
        refused(&edit_v4(good(), |ip| ip[at..at + bytes.len()].copy_from_slice(bytes)))
    };
    assert_eq!(edited(0, &[0x65]), Malformed::BadVersion);
    assert_eq!(edited(0, &[0x44]), Malformed::BadHeaderLength);
    assert_eq!(edited(0, &[0x4f]), Malformed::BadHeaderLength);
    assert_eq!(edited(2, &[0, 19]), Malformed::BadTotalLength);
    assert_eq!(edited(2, &[0, 36]), Malformed::BadTotalLength);
    assert_eq!(edited(8, &[0]), Malformed::TtlZero);
    for source in [[0, 0, 0, 0], [0, 1, 2, 3], [127, 0, 0, 1], [224, 0, 0, 1], [240, 0, 0, 1], [255; 4]] {
        assert_eq!(edited(12, &source), Malformed::MartianSource);
    }
    for destination in [[0, 0, 0, 0], [127, 0, 0, 1], [240, 0, 0, 1]] {
        assert_eq!(edited(16, &destination), Malformed::MartianDestination);
    }
    assert_eq!(edited(16, &[198, 18, 0, 2]), Malformed::Land);
    for destination in [[224, 0, 0, 1], [255; 4]] {
        let frame = edit_v4(good(), |ip| ip[16..20].copy_from_slice(&destination));
        assert!(read(&frame).unwrap().dst_is_group(&frame));
    }
    let mut frame = good();
    frame[14 + 10] ^= 1;
    assert_eq!(refused(&frame), Malformed::BadHeaderChecksum);
    assert!(parse(&frame, &ParseOptions { l3_checksum_ok: true }).is_ok());
    assert_eq!(refused(&good()[..33]), Malformed::ShortFrame);
}

#[test]
fn ipv4_options_are_walked() {
    let with = |options: &[u8]| {
        let mut frame = sample::udp(Family::V4, b"");
        frame.splice(34..34, options.iter().copied());
        let words = 5 + options.len() / 4;
        let frame = edit_v4(frame, |ip| {
            ip[0] = 0x40 | words as u8;
            ip[3] += options.len() as u8;
        });
        read(&frame)
    };
    let parsed = with(&[1, 1, 7, 5, 4, 0, 0, 0]).unwrap();
    assert_eq!((parsed.l4, parsed.src_port), (42, CLIENT_PORT));
    assert!(with(&[0, 131, 3, 4]).is_ok());
    assert_eq!(with(&[1, 131, 3, 4]), Err(Malformed::SourceRoute));
    assert_eq!(with(&[137, 3, 4, 0]), Err(Malformed::SourceRoute));
    assert_eq!(with(&[7, 0, 0, 0]), Err(Malformed::BadOptions));
    assert_eq!(with(&[7, 1, 0, 0]), Err(Malformed::BadOptions));
    assert_eq!(with(&[7, 5, 0, 0]), Err(Malformed::BadOptions));
    assert_eq!(with(&[1, 1, 1, 7]), Err(Malformed::BadOptions));
}

#[test]
fn ipv6_headers_that_are_refused() {
    let good = || sample::udp(Family::V6, b"payload");
    let edited = |at: usize, bytes: &[u8]| {
        let mut frame = good();
        frame[14 + at..14 + at + bytes.len()].copy_from_slice(bytes);
        refused(&frame)
    };
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
    assert_eq!(edited(0, &[0x45]), Malformed::BadVersion);
    assert_eq!(edited(4, &[0, 16]), Malformed::BadTotalLength);
    assert_eq!(edited(4, &[0xff, 0xff]), Malformed::BadTotalLength);
    assert_eq!(edited(4, &[0, 0, 0]), Malformed::JumboPayload);
    assert_eq!(edited(7, &[0]), Malformed::TtlZero);
    for source in ["::", "::1", "ff02::1", "::ffff:198.18.0.1"] {
        assert_eq!(edited(8, &address(source)), Malformed::MartianSource, "{source}");
    }
    for destination in ["::", "::1", "::ffff:198.18.0.1"] {
        assert_eq!(edited(24, &address(destination)), Malformed::MartianDestination, "{destination}");
    }
    assert_eq!(edited(24, &address("2001:db8::2")), Malformed::Land);
    assert_eq!(refused(&good()[..53]), Malformed::ShortFrame);
}

#[test]
fn duplicate_address_detection_has_no_source() {
    let mut frame =
        sample::ip(Family::V6, IpProtocol::Icmpv6, &[icmpv6::NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    frame[14 + 8..14 + 24].fill(0);
    assert!(read(&frame).is_ok());
    frame[54] = icmpv6::ECHO_REQUEST;
    assert_eq!(refused(&frame), Malformed::MartianSource);
}

#[test]
fn transport_headers_that_are_refused() {
    for family in BOTH {
        let l4 = if family == Family::V4 { 34 } else { 54 };
        let segment = |edit: &dyn Fn(&mut Vec<u8>), protocol| {
            let mut payload = sample::tcp(family, TcpControl::None, Some(1), b"data")[l4..].to_vec();
            edit(&mut payload);
            read(&sample::ip(family, protocol, &payload))
        };
        let tcp = |edit: &dyn Fn(&mut Vec<u8>)| segment(edit, IpProtocol::Tcp);
        assert!(tcp(&|_| ()).is_ok());
        assert_eq!(tcp(&|bytes| bytes.truncate(19)), Err(Malformed::ShortL4));
        assert_eq!(tcp(&|bytes| bytes[12] = 0x40), Err(Malformed::BadTcpOffset));
        assert_eq!(tcp(&|bytes| bytes[12] = 0x70), Err(Malformed::BadTcpOffset));
        for flags in [0, 3, 6, 7, 0xc0] {
            assert_eq!(tcp(&|bytes| bytes[13] = flags), Err(Malformed::BadTcpFlags), "{flags}");
        }
        let udp =
            |len: u16| segment(&|bytes| bytes[4..6].copy_from_slice(&len.to_be_bytes()), IpProtocol::Udp);
        assert!(udp(24).is_ok() && udp(8).is_ok());
        for len in [0, 7, 25, 0xffff] {
            assert_eq!(udp(len), Err(Malformed::BadUdpLength), "{len}");
        }
        assert_eq!(segment(&|bytes| bytes.truncate(7), IpProtocol::Udp), Err(Malformed::ShortL4));
        let icmp = if family == Family::V4 { IpProtocol::Icmp } else { IpProtocol::Icmpv6 };
        assert_eq!(segment(&|bytes| bytes.truncate(7), icmp), Err(Malformed::ShortL4));
        let parsed = segment(&|bytes| bytes[..2].copy_from_slice(&[128, 3]), icmp).unwrap();
        assert_eq!((parsed.icmp_type, parsed.icmp_code, parsed.has_ports), (128, 3, false));
    }
}

#[test]
fn ipv4_fragments() {
    let fragment = |frame: Vec<u8>, word: u16| {
        read(&edit_v4(frame, |ip| {
            ip[4..6].copy_from_slice(&[0xab, 0xcd]);
            ip[6..8].copy_from_slice(&word.to_be_bytes());
        }))
    };
    let udp = |len: usize| sample::udp(Family::V4, &vec![7; len]);
    let first = fragment(udp(24), ipv4::MORE_FRAGMENTS).unwrap();
    assert!(first.is_first_fragment() && first.has_ports && first.is_fragment());
    assert_eq!((first.identification, first.src_port), (0xabcd, CLIENT_PORT));
    let later = fragment(udp(20), 4).unwrap();
    assert!(later.is_later_fragment() && !later.has_ports && !later.more_fragments);
    assert_eq!((later.fragment_offset, later.src_port), (32, 0));
    assert!(
        fragment(udp(24), ipv4::DONT_FRAGMENT).is_ok_and(|whole| !whole.is_fragment() && whole.dont_fragment)
    );

    assert_eq!(fragment(udp(23), ipv4::MORE_FRAGMENTS), Err(Malformed::BadFragment));
    assert_eq!(fragment(udp(24), 0x1fff), Err(Malformed::FragmentTooLong));
    assert_eq!(fragment(sample::ip(Family::V4, IpProtocol::Udp, b""), 9), Err(Malformed::BadFragment));
    // 65,535 bytes in all is the most: 20 of header, 65,488 before this fragment, 27 in it
    assert!(fragment(udp(19), 65_488 / 8).is_ok());
    assert_eq!(fragment(udp(20), 65_488 / 8), Err(Malformed::FragmentTooLong));

    let tcp = |len: usize| {
        sample::ip(
            Family::V4,
            IpProtocol::Tcp,
            &sample::tcp(Family::V4, TcpControl::Syn, None, b"")[34..34 + len],
        )
    };
    assert_eq!(fragment(tcp(8), ipv4::MORE_FRAGMENTS), Err(Malformed::TinyFragment));
    assert_eq!(fragment(tcp(16), ipv4::MORE_FRAGMENTS), Err(Malformed::TinyFragment));
    for offset in [1, 2] {
        assert_eq!(fragment(tcp(8), offset), Err(Malformed::TinyFragment));
    }
    assert!(fragment(tcp(24), ipv4::MORE_FRAGMENTS).is_ok());
    assert!(fragment(tcp(8), 3).is_ok());
}

#[test]
fn ipv6_extension_headers() {
    let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |types: &[u8]| {
        let mut bytes = Vec::new();
        for next in types.iter().skip(1).chain(&[6]) {
            bytes.extend(options(*next));
        }
        bytes.extend(tcp_header());
        read(&v6(types[0], &bytes))
    };
    for count in 1..=8 {
        let parsed = chain(&vec![60; count]).unwrap();
        assert_eq!((parsed.protocol, usize::from(parsed.l4)), (Protocol::TCP, 54 + 8 * count));
        assert_eq!(parsed.src_port, CLIENT_PORT);
    }
    assert_eq!(chain(&[60; 9]), Err(Malformed::TooManyExtensionHeaders));
    assert!(chain(&[0, 60]).is_ok());
    assert_eq!(chain(&[60, 0]), Err(Malformed::BadExtensionHeader));
    let one = |next: u8, header: &[u8]| read(&v6(next, &[header, &tcp_header()].concat()));
    assert_eq!(one(43, &[6, 0, 0, 1, 0, 0, 0, 0]), Err(Malformed::SourceRoute));
    assert_eq!(one(43, &[6, 0, 4, 1, 0, 0, 0, 0]), Err(Malformed::BadExtensionHeader));
    assert!(one(43, &[6, 0, 4, 0, 0, 0, 0, 0]).is_ok());
    assert_eq!(one(0, &[6, 0, 0xc2, 4, 0, 1, 0, 0]), Err(Malformed::JumboPayload));
    assert_eq!(one(60, &[6, 0, 1, 5, 0, 0, 0, 0]), Err(Malformed::BadExtensionHeader));
    assert_eq!(one(60, &[6, 0, 0, 0, 0, 0, 0, 1]), Err(Malformed::BadExtensionHeader));
    assert_eq!(one(60, &[6, 200, 1, 4, 0, 0, 0, 0]), Err(Malformed::BadExtensionHeader));
    // authentication counts in words of four bytes
    assert_eq!(one(51, &[6, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]).unwrap().l4, 54 + 12);
    assert_eq!(read(&v6(60, &[6, 0, 1, 4])), Err(Malformed::BadExtensionHeader));
    // no next header, and a protocol nobody knows, end the chain without a transport
    for next in [59, 99] {
        assert_eq!(read(&v6(next, &[])).unwrap().protocol, Protocol(next));
    }
}

#[test]
fn ipv6_fragments() {
    let fragment = |next: u8, word: u16, data: &[u8]| {
        let [high, low] = word.to_be_bytes();
        read(&v6(44, &[&[next, 0, high, low, 0xde, 0xad, 0xbe, 0xef], data].concat()))
    };
    let first = fragment(6, 1, &[tcp_header(), vec![0; 4]].concat()).unwrap();
    assert!(first.is_first_fragment() && first.has_ports);
    assert_eq!((first.identification, first.l4, first.dst_port), (0xdead_beef, 62, VIP_PORT));
    let later = fragment(6, 24 | 1, &[0; 16]).unwrap();
    assert!(later.is_later_fragment() && !later.has_ports && later.more_fragments);
    assert_eq!((later.fragment_offset, later.protocol), (24, Protocol::TCP));
    // RFC 6946: an atomic fragment is a whole packet
    let atomic = fragment(6, 0, &tcp_header()).unwrap();
    assert!(!atomic.is_fragment() && atomic.has_ports);
    assert_eq!(fragment(6, 1, &tcp_header()[..16]), Err(Malformed::TinyFragment));
    assert_eq!(fragment(6, 8, &[0; 16]), Err(Malformed::TinyFragment));
    // RFC 7112: the chain must end within the first fragment
    assert_eq!(fragment(60, 1, &[6, 1, 1, 12, 0, 0, 0, 0]), Err(Malformed::TinyFragment));
    assert_eq!(fragment(6, 1, &[0; 23]), Err(Malformed::BadFragment));
    assert_eq!(fragment(6, 0xfff8, &[0; 8]), Err(Malformed::FragmentTooLong));
    let twice = [&[44, 0, 0, 1, 0, 0, 0, 1, 6, 0, 0, 1, 0, 0, 0, 1][..], &tcp_header(), &[0; 4]].concat();
    assert_eq!(read(&v6(44, &twice)), Err(Malformed::BadExtensionHeader));
}
