//! Is this frame one of the very many that change nothing about their flow?
//!
//! Fewer fields and fewer conditions than [`parse`](super::parse), and the result fits into registers. A frame that is not
//! usual is not wrong: it takes the other way, which begins anew.

use super::{Kind, ParseOptions, Parsed};
use crate::bytes::{be16, chunk, u32_at};
use crate::eth;
use crate::ipv4;
use crate::ipv6;
use crate::tcp;
use crate::types::Protocol;
use crate::udp;

/// Flags that begin or end something, or let the MSS be read.
const RARE_FLAGS: u8 = tcp::SYN | tcp::FIN | tcp::RST;
/// Of which one at least must be set where none of [`RARE_FLAGS`] is: see [`tcp::flags_are_bad`].
const PLAIN_FLAGS: u8 = tcp::ACK | tcp::PSH | tcp::URG;

/// What a usual frame says: untagged IP without options or extension headers, no fragment, to be forwarded once more at least;
/// TCP that neither begins nor ends a connection, or UDP; at least as long as the headers with TCP.
///
/// The addresses are not judged: who acts on the frame must have found them in a record of what [`parse`](super::parse) let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usual<A> {
    /// Source address in host order.
    pub src: A,
    /// Destination address in host order.
    pub dst: A,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Length of the IP packet, header included.
    pub l3_len: u16,
}

/// What a usual IPv4 frame says; `None` of all others.
#[inline(always)]
pub fn usual_v4(frame: &[u8], options: &ParseOptions) -> Option<Usual<u32>> {
    const L3: usize = eth::HEADER_LEN;
    const L4: usize = L3 + ipv4::HEADER_LEN;
    let head = frame.first_chunk::<{ L4 + tcp::HEADER_LEN }>()?;
    let word = |at: usize| u32_at(head, at).unwrap_or(0);
    // ether type, version and header length in one
    if word(L3 - 2) & 0xffff_ff00 != u32::from(eth::IPV4) << 16 | 0x4500 {
        return None;
    }
    let transport = chunk::<{ tcp::HEADER_LEN }>(head, L4)?;
    let protocol = Protocol(head[L3 + ipv4::field::PROTOCOL]);
    if is_rare(transport, protocol) {
        return None;
    }
    let words = [word(L3), word(L3 + 4), word(L3 + 8), word(L3 + 12), word(L3 + 16)];
    let sum: u64 = words.iter().map(|word| u64::from(*word)).sum();
    let [first, second, third, src, dst] = words;
    let (l3_len, ttl) = (first as u16, third >> 24);
    let payload_len = usize::from(l3_len).wrapping_sub(ipv4::HEADER_LEN);
    // RFC 1071: a right header sums to a multiple of 0xffff; not to 0, because the version is not
    let usual = (options.l3_checksum_ok | sum.is_multiple_of(0xffff))
        & (ttl > 1)
        & (second as u16 & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) == 0)
        & (payload_len <= frame.len() - L4);
    if !usual || !is_usual_transport(transport, protocol, payload_len) {
        return None;
    }
    let (src_port, dst_port) = (be16(transport[0], transport[1]), be16(transport[2], transport[3]));
    Some(Usual { src, dst, src_port, dst_port, protocol, l3_len })
}

/// What a usual IPv6 frame says; `None` of all others.
#[inline(always)]
pub fn usual_v6(frame: &[u8]) -> Option<Usual<u128>> {
    const L3: usize = eth::HEADER_LEN;
    const L4: usize = L3 + ipv6::HEADER_LEN;
    let head = frame.first_chunk::<{ L4 + tcp::HEADER_LEN }>()?;
    let word = |at: usize| u32_at(head, at).unwrap_or(0);
    if word(L3 - 2) & 0xffff_f000 != u32::from(eth::IPV6) << 16 | 0x6000 {
        return None;
    }
    let transport = chunk::<{ tcp::HEADER_LEN }>(head, L4)?;
    let second = word(L3 + 4);
    let (payload_len, protocol, hop_limit) = (second >> 16, Protocol((second >> 8) as u8), second & 0xff);
    if is_rare(transport, protocol) {
        return None;
    }
    let payload = payload_len as usize;
    let usual = (hop_limit > 1)
        & (payload_len <= u32::from(u16::MAX) - ipv6::HEADER_LEN as u32)
        & (payload <= frame.len() - L4);
    if !usual || !is_usual_transport(transport, protocol, payload) {
        return None;
    }
    let addresses = chunk::<32>(head, L3 + ipv6::field::SRC)?;
    let number = |half: Option<&[u8; 16]>| half.map(|raw| u128::from_be_bytes(*raw));
    let (src, dst) = (number(addresses.first_chunk())?, number(addresses.last_chunk())?);
    let (src_port, dst_port) = (be16(transport[0], transport[1]), be16(transport[2], transport[3]));
    let l3_len = payload_len as u16 + ipv6::HEADER_LEN as u16;
    Some(Usual { src, dst, src_port, dst_port, protocol, l3_len })
}

/// What [`parse`](super::parse) says of a usual IPv4 frame of this length. What is not looked at is not read.
#[inline(always)]
pub fn parsed_usual_v4(frame: &[u8], l3_len: u16) -> Option<Parsed> {
    const L3: usize = eth::HEADER_LEN;
    const L4: usize = L3 + ipv4::HEADER_LEN;
    let head = frame.first_chunk::<{ L4 + tcp::HEADER_LEN }>()?;
    let protocol = Protocol(head[L3 + ipv4::field::PROTOCOL]);
    Some(Parsed {
        kind: Kind::Ipv4,
        protocol,
        ttl: head[L3 + ipv4::field::TTL],
        tos: head[L3 + ipv4::field::TOS],
        tcp_flags: if protocol == Protocol::TCP { head[L4 + tcp::field::FLAGS] } else { 0 },
        dont_fragment: be16(head[L3 + 6], head[L3 + 7]) & ipv4::DONT_FRAGMENT != 0,
        has_ports: true,
        ether_type: eth::IPV4,
        l3: L3 as u16,
        l4: L4 as u16,
        l3_len,
        identification: u32::from(be16(head[L3 + 4], head[L3 + 5])),
        src_port: be16(head[L4], head[L4 + 1]),
        dst_port: be16(head[L4 + 2], head[L4 + 3]),
        ..Parsed::default()
    })
}

/// As [`parsed_usual_v4`], for IPv6.
#[inline(always)]
pub fn parsed_usual_v6(frame: &[u8], l3_len: u16) -> Option<Parsed> {
    const L3: usize = eth::HEADER_LEN;
    const L4: usize = L3 + ipv6::HEADER_LEN;
    let head = frame.first_chunk::<{ L4 + tcp::HEADER_LEN }>()?;
    let protocol = Protocol(head[L3 + ipv6::field::NEXT_HEADER]);
    Some(Parsed {
        kind: Kind::Ipv6,
        protocol,
        ttl: head[L3 + ipv6::field::HOP_LIMIT],
        tos: head[L3] << 4 | head[L3 + 1] >> 4,
        tcp_flags: if protocol == Protocol::TCP { head[L4 + tcp::field::FLAGS] } else { 0 },
        dont_fragment: true,
        has_ports: true,
        ether_type: eth::IPV6,
        l3: L3 as u16,
        l4: L4 as u16,
        l3_len,
        src_port: be16(head[L4], head[L4 + 1]),
        dst_port: be16(head[L4 + 2], head[L4 + 3]),
        ..Parsed::default()
    })
}

/// Whether this begins or ends a connection: asked first, because such packets come in floods.
#[inline(always)]
fn is_rare(header: &[u8; tcp::HEADER_LEN], protocol: Protocol) -> bool {
    (protocol == Protocol::TCP) & (header[tcp::field::FLAGS] & RARE_FLAGS != 0)
}

/// Whether this, which is not rare, is the start of a well-formed TCP segment, or of a well-formed UDP datagram.
#[inline(always)]
fn is_usual_transport(header: &[u8; tcp::HEADER_LEN], protocol: Protocol, payload_len: usize) -> bool {
    if protocol == Protocol::TCP {
        let header_len = usize::from(header[tcp::field::DATA_OFFSET] >> 4) * 4;
        let flags = header[tcp::field::FLAGS];
        (header_len >= tcp::HEADER_LEN) & (header_len <= payload_len) & (flags & PLAIN_FLAGS != 0)
    } else {
        let len = usize::from(be16(header[4], header[5]));
        (protocol == Protocol::UDP) & (len >= udp::HEADER_LEN) & (len <= payload_len)
    }
}
