//! What does Weir answer to a ping, and to a packet that it can not deliver?
//!
//! Replies are made from the packet itself: the quotation stays where it is, the new headers go before it.

use std::net::IpAddr;

use thiserror::Error;

use crate::buffer::PacketBuf;
use crate::bytes::{be16, chunk, chunk_mut, put};
use crate::checksum;
use crate::eth;
use crate::icmp;
use crate::icmpv6;
use crate::ipv4;
use crate::ipv6;
use crate::parse::{Kind, Parsed};
use crate::types::Protocol;

/// RFC 1812 §4.3.2.3: an ICMP error is at most this long, IP header included.
pub const ERROR_MAX_V4: usize = 576;
/// RFC 4443 §2.4 (c): an ICMPv6 error is at most this long, IPv6 header included.
pub const ERROR_MAX_V6: usize = ipv6::MINIMUM_MTU;
/// RFC 1812 §4.3.2.5: errors carry precedence 6, internetwork control.
const ERROR_TOS_V4: u8 = 0xc0;

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is longer than the way allows: RFC 1191 §4 frag-needed, or RFC 4443 §3.2 packet-too-big, with the way's MTU.
    TooBig {
        /// The longest IP packet that would pass.
        mtu: u16,
    },
    /// Its TTL or hop limit ended here: RFC 792, RFC 4443 §3.3.
    TimeExceeded,
    /// There is no route to it: RFC 1812 §5.2.7.1, RFC 4443 §3.1.
    NoRoute,
    /// Nobody answers for the address: RFC 1812 §5.2.7.1, RFC 4443 §3.1.
    HostUnreachable,
    /// Nobody listens on the port: RFC 1122 §3.2.2.1, RFC 4443 §3.1.
    PortUnreachable,
    /// It is forbidden: RFC 1812 §5.2.7.1 code 13, RFC 4443 §3.1.
    Prohibited,
}

/// Why there is no answer to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoReply {
    /// RFC 1122 §3.2.2, RFC 4443 §2.4 (e): never to an ICMP error or redirect.
    #[error("the packet is itself an ICMP error")]
    IcmpError,
    /// RFC 1122 §3.2.2: never to a fragment without the transport header.
    #[error("the packet is a later fragment")]
    LaterFragment,
    /// RFC 1122 §3.2.2, RFC 4443 §2.4 (e): never to what was sent to many, nor from an address of none.
    #[error("the packet was sent to a group, or from the unspecified address")]
    Group,
    /// The source address is of the other family, or the frame is not IP.
    #[error("no address of the packet's family to answer from")]
    NoSource,
    /// The headroom is too small.
    #[error("the buffer has no room for the reply's headers")]
    NoRoom,
}

/// Turns an echo request into its reply (RFC 792, RFC 4443 §4.2), in place. The checksum is mended, not computed: a
/// request that was corrupt gives a reply that is.
///
/// False, and no change, where the packet is no echo request, a fragment, or sent to a group.
pub fn echo(frame: &mut [u8], parsed: &Parsed) -> bool {
    let (request, reply) = match (parsed.kind, parsed.protocol) {
        (Kind::Ipv4, Protocol::ICMP) => (icmp::ECHO_REQUEST, icmp::ECHO_REPLY),
        (Kind::Ipv6, Protocol::ICMPV6) => (icmpv6::ECHO_REQUEST, icmpv6::ECHO_REPLY),
        _ => return false,
    };
    if parsed.icmp_type != request
        || parsed.icmp_code != 0
        || parsed.is_fragment()
        || parsed.dst_is_group(frame)
    {
        return false;
    }
    let Some(message) = chunk_mut::<4>(frame, parsed.l4_offset()) else { return false };
    let checksum = checksum::update_u16(be16(message[2], message[3]), be16(request, 0), be16(reply, 0));
    let [high, low] = checksum.to_be_bytes();
    *message = [reply, 0, high, low];
    // Exchanging the addresses leaves every sum over both as it was.
    match parsed.kind {
        Kind::Ipv4 => {
            let Some(header) = chunk_mut::<{ ipv4::HEADER_LEN }>(frame, parsed.l3_offset()) else {
                return false;
            };
            let [.., ttl, protocol, sum_high, sum_low, a, b, c, d, e, f, g, h] = *header;
            let sum = checksum::update_u16(
                be16(sum_high, sum_low),
                be16(ttl, protocol),
                be16(ipv4::DEFAULT_TTL, protocol),
            );
            let [sum_high, sum_low] = sum.to_be_bytes();
            let tail = [ipv4::DEFAULT_TTL, protocol, sum_high, sum_low, e, f, g, h, a, b, c, d];
            header[8..].copy_from_slice(&tail);
        }
        _ => {
            let (src, dst) = (parsed.src_v6(frame), parsed.dst_v6(frame));
            let Some(header) = chunk_mut::<{ ipv6::HEADER_LEN }>(frame, parsed.l3_offset()) else {
                return false;
            };
            header[ipv6::field::HOP_LIMIT] = ipv6::DEFAULT_HOP_LIMIT;
            header[8..24].copy_from_slice(&dst);
            header[24..].copy_from_slice(&src);
        }
    }
    eth::swap_addresses(frame)
}

/// Turns a packet into the ICMP or ICMPv6 error that tells its sender of `problem`, sent from `source`. The link header's
/// addresses are swapped and a VLAN tag is kept. The caller limits the rate (RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f)).
pub fn error<B: PacketBuf>(
    packet: &mut B,
    parsed: &Parsed,
    source: IpAddr,
    problem: Problem,
) -> Result<(), NoReply> {
    let frame = packet.data();
    let link = chunk::<{ eth::HEADER_LEN + eth::TAG_LEN }>(frame, 0).copied().ok_or(NoReply::NoSource)?;
    if parsed.is_later_fragment() {
        return Err(NoReply::LaterFragment);
    }
    if parsed.dst_is_group(frame) || eth::destination(frame).is_multicast() {
        return Err(NoReply::Group);
    }
    let l3 = parsed.l3_offset();
    match (parsed.kind, source) {
        (Kind::Ipv4, IpAddr::V4(source)) => {
            if parsed.protocol == Protocol::ICMP && icmp::is_error(parsed.icmp_type) {
                return Err(NoReply::IcmpError);
            }
            let (kind, code, rest) = message_v4(problem);
            let quote_len =
                usize::from(parsed.l3_len).min(ERROR_MAX_V4 - ipv4::HEADER_LEN - icmp::HEADER_LEN);
            let total_len = ipv4::HEADER_LEN + icmp::HEADER_LEN + quote_len;
            let header = ipv4::Header {
                tos: ERROR_TOS_V4,
                total_len: total_len as u16,
                identification: 0,
                dont_fragment: true,
                ttl: ipv4::DEFAULT_TTL,
                protocol: Protocol::ICMP,
                src: source.into(),
                dst: parsed.src_v4(frame),
            };
            quote(packet, l3, quote_len, link, header.bytes(), 0, [kind, code], rest)
        }
        (Kind::Ipv6, IpAddr::V6(source)) => {
            let dst = parsed.src_v6(frame);
            if ipv6::is_unspecified(&dst) {
                return Err(NoReply::Group);
            }
            let is_icmp = parsed.protocol == Protocol::ICMPV6;
            if is_icmp && (icmpv6::is_error(parsed.icmp_type) || parsed.icmp_type == icmpv6::REDIRECT) {
                return Err(NoReply::IcmpError);
            }
            let (kind, code, rest) = message_v6(problem);
            let quote_len =
                usize::from(parsed.l3_len).min(ERROR_MAX_V6 - ipv6::HEADER_LEN - icmp::HEADER_LEN);
            let payload_len = icmp::HEADER_LEN + quote_len;
            let header = ipv6::Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: payload_len as u16,
                next_header: Protocol::ICMPV6,
                hop_limit: ipv6::DEFAULT_HOP_LIMIT,
                src: source.octets(),
                dst,
            };
            let pseudo = checksum::pseudo_v6(&header.src, &dst, Protocol::ICMPV6, payload_len as u32);
            quote(packet, l3, quote_len, link, header.bytes(), pseudo, [kind, code], rest)
        }
        _ => Err(NoReply::NoSource),
    }
}

/// Type, code and second word of an ICMP error.
fn message_v4(problem: Problem) -> (u8, u8, [u8; 4]) {
    match problem {
        Problem::TooBig { mtu } => {
            let [high, low] = mtu.to_be_bytes();
            (icmp::DESTINATION_UNREACHABLE, icmp::FRAGMENTATION_NEEDED, [0, 0, high, low])
        }
        Problem::TimeExceeded => (icmp::TIME_EXCEEDED, 0, [0; 4]),
        Problem::NoRoute => (icmp::DESTINATION_UNREACHABLE, 0, [0; 4]),
        Problem::HostUnreachable => (icmp::DESTINATION_UNREACHABLE, 1, [0; 4]),
        Problem::PortUnreachable => (icmp::DESTINATION_UNREACHABLE, 3, [0; 4]),
        Problem::Prohibited => (icmp::DESTINATION_UNREACHABLE, 13, [0; 4]),
    }
}

/// Type, code and second word of an ICMPv6 error.
fn message_v6(problem: Problem) -> (u8, u8, [u8; 4]) {
    match problem {
        Problem::TooBig { mtu } => (icmpv6::PACKET_TOO_BIG, 0, u32::from(mtu).to_be_bytes()),
        Problem::TimeExceeded => (icmpv6::TIME_EXCEEDED, 0, [0; 4]),
        Problem::NoRoute => (icmpv6::DESTINATION_UNREACHABLE, 0, [0; 4]),
        Problem::Prohibited => (icmpv6::DESTINATION_UNREACHABLE, 1, [0; 4]),
        Problem::HostUnreachable => (icmpv6::DESTINATION_UNREACHABLE, 3, [0; 4]),
        Problem::PortUnreachable => (icmpv6::DESTINATION_UNREACHABLE, 4, [0; 4]),
    }
}

/// Cuts the packet to its quotation and puts ICMP, IP and the old link header before it.
#[expect(clippy::too_many_arguments, reason = "called twice, and each argument is one header's part")]
fn quote<B: PacketBuf, const N: usize>(
    packet: &mut B,
    l3: usize,
    quote_len: usize,
    link: [u8; eth::HEADER_LEN + eth::TAG_LEN],
    ip: [u8; N],
    pseudo: u16,
    kind_and_code: [u8; 2],
    rest: [u8; 4],
) -> Result<(), NoReply> {
    // Both new headers are at most 48 bytes: ask for the room before anything is changed.
    packet.prepend(N + icmp::HEADER_LEN).ok_or(NoReply::NoRoom)?;
    let before = N + icmp::HEADER_LEN + l3;
    if !packet.truncate(before + quote_len) {
        return Err(NoReply::NoRoom);
    }
    let frame = packet.data_mut();
    let start = l3 + N;
    let written = frame
        .get_mut(..l3)
        .zip(link.get(..l3))
        .map(|(to, from)| to.copy_from_slice(from))
        .and_then(|()| put(frame, l3, ip))
        .and_then(|()| put(frame, start, kind_and_code))
        .and_then(|()| put(frame, start + 2, [0, 0]))
        .and_then(|()| put(frame, start + 4, rest));
    let message = frame.get(start..).unwrap_or_default();
    let checksum = !checksum::fold(u64::from(checksum::sum(message)) + u64::from(pseudo));
    written
        .and_then(|()| put(frame, start + 2, checksum.to_be_bytes()))
        .filter(|()| eth::swap_addresses(frame))
        .ok_or(NoReply::NoRoom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::VecBuf;
    use crate::rewrite;
    use crate::sample::{self, client, edit_v4, parsed, vip};
    use crate::types::Family;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{
        Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet,
        Ipv6Packet, TcpControl,
    };
    use std::net::{Ipv4Addr, Ipv6Addr};

    const BOTH: [Family; 2] = [Family::V4, Family::V6];

    fn ours(family: Family) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(198, 18, 0, 254).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe).into(),
        }
    }

    fn ping(family: Family) -> Vec<u8> {
        let caps = ChecksumCapabilities::default();
        match (client(family), vip(family)) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: b"abcdefg" };
                let mut bytes = vec![0; repr.buffer_len()];
                repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..]), &caps);
                sample::ip(family, IpProtocol::Icmp, &bytes)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let repr = Icmpv6Repr::EchoRequest { ident: 7, seq_no: 9, data: b"abcdefg" };
                let mut bytes = vec![0; repr.buffer_len()];
                repr.emit(&src, &dst, &mut Icmpv6Packet::new_unchecked(&mut bytes[..]), &caps);
                sample::ip(family, IpProtocol::Icmpv6, &bytes)
            }
            _ => unreachable!(),
        }
    }

    #[test]
    fn a_ping_is_answered_as_smoltcp_would() {
        for family in BOTH {
            let mut frame = ping(family);
            let shape = parsed(&frame);
            assert!(echo(&mut frame, &shape));
            let shape = parsed(&frame);
            assert!(checksum::l4_is_valid(&frame, &shape));
            assert_eq!((shape.src(&frame), shape.dst(&frame)), (Some(vip(family)), Some(client(family))));
            assert_eq!((shape.ttl, eth::destination(&frame)), (64, sample::CLIENT_MAC));
            let caps = ChecksumCapabilities::default();
            if family == Family::V4 {
                let message = Icmpv4Packet::new_checked(&frame[34..]).unwrap();
                let expected = Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: b"abcdefg" };
                assert_eq!(Icmpv4Repr::parse(&message, &caps), Ok(expected));
            } else {
                let ip = Ipv6Packet::new_checked(&frame[14..]).unwrap();
                let message = Icmpv6Packet::new_checked(ip.payload()).unwrap();
                let expected = Icmpv6Repr::EchoReply { ident: 7, seq_no: 9, data: b"abcdefg" };
                assert_eq!(Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &message, &caps), Ok(expected));
            }
            // a reply is not answered
            assert!(!echo(&mut frame, &shape));
        }
    }

    #[test]
    fn pings_to_groups_and_in_pieces_are_not_answered() {
        let frame = edit_v4(ping(Family::V4), |ip| ip[16..20].copy_from_slice(&[224, 0, 0, 1]));
        assert!(!echo(&mut frame.clone(), &parsed(&frame)));
        let mut whole = ping(Family::V4);
        whole.push(b'h');
        let frame = edit_v4(whole, |ip| {
            ip[3] += 1;
            ip[6] = 0x20;
        });
        assert!(parsed(&frame).is_first_fragment());
        assert!(!echo(&mut frame.clone(), &parsed(&frame)));
    }

    #[test]
    fn frag_needed_quotes_576_bytes_and_names_the_mtu() {
        let frame = sample::tcp(Family::V4, TcpControl::None, Some(1), &[5; 1400]);
        let mut packet = VecBuf::new(&frame);
        assert_eq!(
            error(&mut packet, &parsed(&frame), ours(Family::V4), Problem::TooBig { mtu: 1480 }),
            Ok(())
        );
        let answer = packet.data();
        assert_eq!(answer.len(), 14 + ERROR_MAX_V4);
        let ip = Ipv4Packet::new_checked(&answer[14..]).unwrap();
        assert!(ip.verify_checksum());
        assert_eq!(IpAddr::from(ip.src_addr()), ours(Family::V4));
        assert_eq!(IpAddr::from(ip.dst_addr()), client(Family::V4));
        let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
        assert!(message.verify_checksum());
        assert_eq!(message.msg_code(), u8::from(Icmpv4DstUnreachable::FragRequired));
        assert_eq!(ip.payload()[4..8], [0, 0, 5, 200]);
        assert_eq!(answer[42..], frame[14..14 + 548]);
        assert_eq!(eth::destination(answer), sample::CLIENT_MAC);
    }

    #[test]
    fn packet_too_big_quotes_1280_bytes_and_names_the_mtu() {
        let frame = sample::tcp(Family::V6, TcpControl::None, Some(1), &[5; 1400]);
        let mut packet = VecBuf::new(&frame);
        assert_eq!(
            error(&mut packet, &parsed(&frame), ours(Family::V6), Problem::TooBig { mtu: 1460 }),
            Ok(())
        );
        let answer = packet.data();
        assert_eq!(answer.len(), 14 + 1280);
        let ip = Ipv6Packet::new_checked(&answer[14..]).unwrap();
        let message = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(message.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        assert_eq!(message.pkt_too_big_mtu(), 1460);
        assert_eq!(IpAddr::from(ip.dst_addr()), client(Family::V6));
        assert_eq!(answer[62..], frame[14..14 + 1232]);
    }

    #[test]
    fn every_problem_of_both_families_has_its_numbers() {
        let expect = [
            (Problem::TimeExceeded, (11, 0), (3, 0)),
            (Problem::NoRoute, (3, 0), (1, 0)),
            (Problem::HostUnreachable, (3, 1), (1, 3)),
            (Problem::PortUnreachable, (3, 3), (1, 4)),
            (Problem::Prohibited, (3, 13), (1, 1)),
        ];
        for (problem, four, six) in expect {
            for (family, numbers) in [(Family::V4, four), (Family::V6, six)] {
                let frame = sample::udp(family, b"short");
                let mut packet = VecBuf::new(&frame);
                packet.append(10).unwrap().fill(0xee);
                assert_eq!(error(&mut packet, &parsed(&frame), ours(family), problem), Ok(()));
                let shape = parsed(packet.data());
                assert_eq!((shape.icmp_type, shape.icmp_code), numbers);
                assert!(checksum::l4_is_valid(packet.data(), &shape));
                // padding is not quoted
                assert!(packet.data().ends_with(&frame[14..]));
                assert_eq!(shape.end(), packet.data().len());
            }
        }
    }

    #[test]
    fn the_tag_is_kept() {
        let mut packet = VecBuf::new(&sample::udp(Family::V4, b"x"));
        assert!(eth::push_vlan(&mut packet, 77));
        let shape = parsed(packet.data());
        assert_eq!(error(&mut packet, &shape, ours(Family::V4), Problem::TimeExceeded), Ok(()));
        assert_eq!(parsed(packet.data()).vlan, Some(77));
    }

    #[test]
    fn what_must_not_be_answered() {
        let refused = |frame: &[u8], source| {
            let mut packet = VecBuf::new(frame);
            let outcome = error(&mut packet, &parsed(frame), source, Problem::TimeExceeded);
            assert_eq!(packet.data(), frame);
            outcome.unwrap_err()
        };
        for family in BOTH {
            let udp = sample::udp(family, b"x");
            let mut packet = VecBuf::new(&udp);
            error(&mut packet, &parsed(&udp), ours(family), Problem::TimeExceeded).unwrap();
            assert_eq!(refused(packet.data(), ours(family)), NoReply::IcmpError);
            // a ping is no error and may be answered by one
            let ping = ping(family);
            assert_eq!(
                error(&mut VecBuf::new(&ping), &parsed(&ping), ours(family), Problem::NoRoute),
                Ok(())
            );
            let mut broadcast = udp.clone();
            broadcast[..6].fill(0xff);
            assert_eq!(refused(&broadcast, ours(family)), NoReply::Group);
        }
        let udp = sample::udp(Family::V4, &[0; 16]);
        assert_eq!(refused(&udp, ours(Family::V6)), NoReply::NoSource);
        let later = edit_v4(udp.clone(), |ip| ip[7] = 9);
        assert_eq!(refused(&later, ours(Family::V4)), NoReply::LaterFragment);
        let group = edit_v4(udp.clone(), |ip| ip[16..20].copy_from_slice(&[224, 0, 0, 9]));
        assert_eq!(refused(&group, ours(Family::V4)), NoReply::Group);
        let mut packet = VecBuf::with_room(&udp, 27, 0);
        let outcome = error(&mut packet, &parsed(&udp), ours(Family::V4), Problem::NoRoute);
        assert_eq!((outcome, packet.data()), (Err(NoReply::NoRoom), &udp[..]));
    }

    /// The way back of an error through NAT: the backend's flow is quoted, the client must see its own.
    #[test]
    fn nat_is_undone_inside_errors() {
        for family in BOTH {
            for segment in [sample::tcp(family, TcpControl::Syn, None, b""), sample::udp(family, b"data")] {
                let mut packet = VecBuf::new(&segment);
                error(&mut packet, &parsed(&segment), ours(family), Problem::HostUnreachable).unwrap();
                let shape = parsed(packet.data());
                let inner = icmp::inner(packet.data(), &shape).unwrap();
                assert_eq!(
                    (inner.src(packet.data()), inner.dst(packet.data())),
                    (client(family), vip(family))
                );
                assert_eq!((inner.src_port, inner.dst_port), (sample::CLIENT_PORT, sample::VIP_PORT));
                let frame = packet.data_mut();
                assert!(rewrite::set_inner_dst(frame, &inner, ours(family), 8080));
                assert!(rewrite::set_inner_src(frame, &inner, vip(family), 555));
                assert!(rewrite::finish_icmp_error(frame, &shape, Some(vip(family)), None));
                let after = parsed(frame);
                assert_eq!((after.src(frame), after.dst(frame)), (Some(vip(family)), Some(client(family))));
                let inner = icmp::inner(frame, &after).unwrap();
                assert_eq!((inner.src(frame), inner.dst(frame)), (vip(family), ours(family)));
                assert_eq!((inner.src_port, inner.dst_port), (555, 8080));
                // the quoted packet is as valid as it was: its header and, quoted whole, its transport
                let mut quoted = segment[..14].to_vec();
                quoted.extend(&frame[usize::from(inner.l3)..usize::from(inner.end)]);
                assert!(sample::smoltcp_accepts(&quoted));
            }
        }
    }

    #[test]
    fn quotations_may_end_after_eight_bytes_but_not_before() {
        for family in BOTH {
            let segment = sample::tcp(family, TcpControl::Syn, None, b"");
            let headers = if family == Family::V4 { 20 } else { 40 };
            for (quoted, fits) in [(8, true), (7, false)] {
                let mut packet = VecBuf::new(&segment);
                error(&mut packet, &parsed(&segment), ours(family), Problem::HostUnreachable).unwrap();
                let l4 = parsed(packet.data()).l4_offset();
                assert!(packet.truncate(l4 + 8 + headers + quoted));
                let mut frame = packet.data().to_vec();
                if family == Family::V4 {
                    let len = (frame.len() - 14) as u16;
                    frame = edit_v4(frame, |ip| ip[2..4].copy_from_slice(&len.to_be_bytes()));
                } else {
                    let len = (frame.len() - 54) as u16;
                    frame[18..20].copy_from_slice(&len.to_be_bytes());
                }
                let shape = parsed(&frame);
                assert!(icmp::refresh_checksum(&mut frame, &shape));
                match icmp::inner(&frame, &shape) {
                    Ok(inner) => {
                        assert!(fits);
                        assert_eq!(inner.src_port, sample::CLIENT_PORT);
                        assert!(rewrite::set_inner_src(&mut frame, &inner, vip(family), 1));
                    }
                    Err(reason) => assert!(!fits && reason == crate::Malformed::BadIcmpQuote),
                }
            }
            let ping = ping(family);
            assert_eq!(icmp::inner(&ping, &parsed(&ping)), Err(crate::Malformed::BadIcmpQuote));
        }
    }
}
