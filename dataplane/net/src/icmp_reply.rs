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
