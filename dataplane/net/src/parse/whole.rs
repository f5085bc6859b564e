//! What is wrong with a frame, and what is in one that is not ordinary?
//!
//! The whole parser: tags, options, fragments, extension headers, groups, ICMP, and a reason for every refusal.

use super::{Kind, ParseOptions, Parsed};
use crate::bytes::{be16, chunk};
use crate::checksum;
use crate::eth;
use crate::extension;
use crate::icmpv6;
use crate::ipv4;
use crate::ipv6;
use crate::malformed::Malformed;
use crate::tcp;
use crate::types::Protocol;
use crate::udp;

/// The whole parser. What the fast paths accept, it accepts with the same result; what they leave, it names.
pub(crate) fn parse_any(frame: &[u8], options: &ParseOptions, parsed: &mut Parsed) -> Result<(), Malformed> {
    let Some(header) = chunk::<{ eth::HEADER_LEN }>(frame, 0) else { return Err(Malformed::ShortFrame) };
    let mut link = Link { ether_type: be16(header[12], header[13]), vlan: None, l3: eth::HEADER_LEN };
    if link.ether_type == eth::VLAN {
        let Some(tag) = chunk::<{ eth::TAG_LEN }>(frame, eth::HEADER_LEN) else {
            return Err(Malformed::ShortFrame);
        };
        link.vlan = Some(be16(tag[0], tag[1]) & eth::VLAN_ID);
        link.ether_type = be16(tag[2], tag[3]);
        link.l3 += eth::TAG_LEN;
    }
    // Each family fills the result with one assignment at its end: until then, everything stays in registers.
    match link.ether_type {
        eth::IPV4 => parse_v4(frame, link, options, parsed),
        eth::IPV6 => parse_v6(frame, link, parsed),
        ether_type => {
            let kind = if ether_type == eth::ARP { Kind::Arp } else { Kind::Other };
            *parsed = Parsed { kind, ether_type, vlan: link.vlan, l3: link.l3 as u16, ..Parsed::default() };
            Ok(())
        }
    }
}

/// What the Ethernet header said.
#[derive(Clone, Copy)]
struct Link {
    ether_type: u16,
    vlan: Option<u16>,
    l3: usize,
}

/// What the IP headers say about the transport.
#[derive(Clone, Copy)]
struct Carried {
    kind: Kind,
    protocol: Protocol,
    more_fragments: bool,
    fragment_offset: u16,
    identification: u32,
}

/// What the transport header says; all zero for a later fragment or a protocol without one.
#[derive(Clone, Copy, Default)]
struct Transport {
    has_ports: bool,
    src_port: u16,
    dst_port: u16,
    tcp_flags: u8,
    icmp_type: u8,
    icmp_code: u8,
}

/// RFC 791 §3.1 and RFC 1122 §3.2.1.
#[inline(always)]
fn parse_v4(frame: &[u8], link: Link, options: &ParseOptions, parsed: &mut Parsed) -> Result<(), Malformed> {
    let packet = frame.get(link.l3..).unwrap_or_default();
    let Some(header) = chunk::<{ ipv4::HEADER_LEN }>(packet, 0) else { return Err(Malformed::ShortFrame) };
    let mut header_len = ipv4::HEADER_LEN;
    if header[0] != 0x45 {
        header_len = usize::from(header[0] & 0x0f) * 4;
        if header[0] >> 4 != 4 {
            return Err(Malformed::BadVersion);
        }
        if header_len < ipv4::HEADER_LEN || header_len > packet.len() {
            return Err(Malformed::BadHeaderLength);
        }
    }
    let total_len = be16(header[2], header[3]);
    let Some(packet) = packet.get(..usize::from(total_len)).filter(|packet| packet.len() >= header_len)
    else {
        return Err(Malformed::BadTotalLength);
    };
    if header_len == ipv4::HEADER_LEN {
        if !options.l3_checksum_ok && checksum::sum_20(header) != 0xffff {
            return Err(Malformed::BadHeaderChecksum);
        }
    } else {
        let whole = packet.get(..header_len).unwrap_or_default();
        if !options.l3_checksum_ok && checksum::sum(whole) != 0xffff {
            return Err(Malformed::BadHeaderChecksum);
        }
        options_v4(whole)?;
    }
    let src = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
    let dst = u32::from_be_bytes([header[16], header[17], header[18], header[19]]);
    if !ipv4::is_source(src) {
        return Err(Malformed::MartianSource);
    }
    if !ipv4::is_destination(dst) {
        return Err(Malformed::MartianDestination);
    }
    if src == dst {
        return Err(Malformed::Land);
    }
    let ttl = header[ipv4::field::TTL];
    if ttl == 0 {
        return Err(Malformed::TtlZero);
    }
    let fragment = be16(header[6], header[7]);
    let carried = Carried {
        kind: Kind::Ipv4,
        protocol: Protocol(header[ipv4::field::PROTOCOL]),
        more_fragments: fragment & ipv4::MORE_FRAGMENTS != 0,
        fragment_offset: (fragment & ipv4::FRAGMENT_OFFSET) << 3,
        identification: u32::from(be16(header[4], header[5])),
    };
    let payload = packet.get(header_len..).unwrap_or_default();
    if fragment & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) != 0 {
        // RFC 791 §3.1: the whole packet's length is a 16-bit number too.
        check_fragment(&carried, payload.len(), header_len)?;
    }
    let transport = transport(payload, carried)?;
    *parsed = Parsed {
        kind: Kind::Ipv4,
        protocol: carried.protocol,
        ttl,
        tos: header[ipv4::field::TOS],
        tcp_flags: transport.tcp_flags,
        icmp_type: transport.icmp_type,
        icmp_code: transport.icmp_code,
        dont_fragment: fragment & ipv4::DONT_FRAGMENT != 0,
        more_fragments: carried.more_fragments,
        has_ports: transport.has_ports,
        ether_type: eth::IPV4,
        vlan: link.vlan,
        l3: link.l3 as u16,
        l4: (link.l3 + header_len) as u16,
        l3_len: total_len,
        fragment_offset: carried.fragment_offset,
        identification: carried.identification,
        src_port: transport.src_port,
        dst_port: transport.dst_port,
    };
    Ok(())
}

/// RFC 8200 §3 and §4.
#[inline(always)]
fn parse_v6(frame: &[u8], link: Link, parsed: &mut Parsed) -> Result<(), Malformed> {
    let packet = frame.get(link.l3..).unwrap_or_default();
    let Some(header) = chunk::<{ ipv6::HEADER_LEN }>(packet, 0) else { return Err(Malformed::ShortFrame) };
    if header[0] >> 4 != 6 {
        return Err(Malformed::BadVersion);
    }
    let payload_len = be16(header[4], header[5]);
    let next = Protocol(header[ipv6::field::NEXT_HEADER]);
    // RFC 2675 §3: a length of zero with hop-by-hop options announces a jumbogram.
    if payload_len == 0 && next == Protocol::HOP_BY_HOP {
        return Err(Malformed::JumboPayload);
    }
    let Some(total_len) = payload_len.checked_add(ipv6::HEADER_LEN as u16) else {
        return Err(Malformed::BadTotalLength);
    };
    let Some(packet) = packet.get(..usize::from(total_len)) else { return Err(Malformed::BadTotalLength) };
    let (Some(src), Some(dst)) =
        (chunk::<16>(header, ipv6::field::SRC), chunk::<16>(header, ipv6::field::DST))
    else {
        return Err(Malformed::ShortFrame);
    };
    if ipv6::is_multicast(src) || ipv6::is_martian(src) {
        return Err(Malformed::MartianSource);
    }
    if ipv6::is_unspecified(dst) || ipv6::is_martian(dst) {
        return Err(Malformed::MartianDestination);
    }
    if src == dst {
        return Err(Malformed::Land);
    }
    let ttl = header[ipv6::field::HOP_LIMIT];
    if ttl == 0 {
        return Err(Malformed::TtlZero);
    }
    let mut carried = Carried {
        kind: Kind::Ipv6,
        protocol: next,
        more_fragments: false,
        fragment_offset: 0,
        identification: 0,
    };
    let mut headers_len = ipv6::HEADER_LEN;
    if !matches!(next, Protocol::TCP | Protocol::UDP | Protocol::ICMPV6) {
        (carried, headers_len) = extensions(packet, next)?;
    }
    let transport = transport(packet.get(headers_len..).unwrap_or_default(), carried)?;
    if ipv6::is_unspecified(src)
        && !(carried.protocol == Protocol::ICMPV6 && icmpv6::may_be_unspecified(transport.icmp_type))
    {
        return Err(Malformed::MartianSource);
    }
    *parsed = Parsed {
        kind: Kind::Ipv6,
        protocol: carried.protocol,
        ttl,
        tos: header[0] << 4 | header[1] >> 4,
        tcp_flags: transport.tcp_flags,
        icmp_type: transport.icmp_type,
        icmp_code: transport.icmp_code,
        dont_fragment: true,
        more_fragments: carried.more_fragments,
        has_ports: transport.has_ports,
        ether_type: eth::IPV6,
        vlan: link.vlan,
        l3: link.l3 as u16,
        l4: (link.l3 + headers_len) as u16,
        l3_len: total_len,
        fragment_offset: carried.fragment_offset,
        identification: carried.identification,
        src_port: transport.src_port,
        dst_port: transport.dst_port,
    };
    Ok(())
}

/// What follows the extension headers, and the length of all IPv6 headers.
#[cold]
fn extensions(packet: &[u8], next: Protocol) -> Result<(Carried, usize), Malformed> {
    let chain = extension::walk(packet, ipv6::HEADER_LEN, next)?;
    let carried = Carried {
        kind: Kind::Ipv6,
        protocol: chain.protocol,
        more_fragments: chain.more_fragments,
        fragment_offset: chain.fragment_offset,
        identification: chain.identification,
    };
    if carried.more_fragments || carried.fragment_offset != 0 {
        // RFC 8200 §4.5: the reassembled payload length is a 16-bit number; the fixed header does not count.
        check_fragment(&carried, packet.len() - chain.offset, 0)?;
    }
    Ok((carried, chain.offset))
}

/// Refuses fragments whose only use is to slip something past a receiver.
#[cold]
fn check_fragment(carried: &Carried, payload_len: usize, header_len: usize) -> Result<(), Malformed> {
    let offset = usize::from(carried.fragment_offset);
    if payload_len == 0 || (carried.more_fragments && !payload_len.is_multiple_of(8)) {
        return Err(Malformed::BadFragment);
    }
    if offset + payload_len + header_len > usize::from(u16::MAX) {
        return Err(Malformed::FragmentTooLong);
    }
    // RFC 1858 §4.2, RFC 3128: no honest sender cuts within a transport header, and such a fragment overwrites flags.
    if offset != 0 && offset < tcp::HEADER_LEN && carried.protocol == Protocol::TCP {
        return Err(Malformed::TinyFragment);
    }
    Ok(())
}

/// Walks IPv4 options, at most 40 bytes of them. RFC 7126 §4: source routes are refused, the rest is passed.
#[cold]
fn options_v4(header: &[u8]) -> Result<(), Malformed> {
    let mut at = ipv4::HEADER_LEN;
    while let Some(kind) = header.get(at) {
        match *kind {
            ipv4::OPTION_END => return Ok(()),
            ipv4::OPTION_NOP => at += 1,
            ipv4::OPTION_LOOSE_SOURCE_ROUTE | ipv4::OPTION_STRICT_SOURCE_ROUTE => {
                return Err(Malformed::SourceRoute);
            }
            _ => {
                let len = usize::from(*header.get(at + 1).ok_or(Malformed::BadOptions)?);
                if len < 2 || at + len > header.len() {
                    return Err(Malformed::BadOptions);
                }
                at += len;
            }
        }
    }
    Ok(())
}

/// Reads ports, flags, type and code. `payload` is what the IP packet carries from the transport header on.
#[inline(always)]
fn transport(payload: &[u8], carried: Carried) -> Result<Transport, Malformed> {
    if carried.fragment_offset != 0 {
        return Ok(Transport::default());
    }
    let short = if carried.more_fragments { Malformed::TinyFragment } else { Malformed::ShortL4 };
    match carried.protocol {
        Protocol::TCP => {
            let Some(header) = chunk::<{ tcp::HEADER_LEN }>(payload, 0) else { return Err(short) };
            let header_len = usize::from(header[tcp::field::DATA_OFFSET] >> 4) * 4;
            if header_len < tcp::HEADER_LEN {
                return Err(Malformed::BadTcpOffset);
            }
            if header_len > payload.len() {
                return Err(if carried.more_fragments { short } else { Malformed::BadTcpOffset });
            }
            let tcp_flags = header[tcp::field::FLAGS];
            if tcp::flags_are_bad(tcp_flags) {
                return Err(Malformed::BadTcpFlags);
            }
            let (src_port, dst_port) = tcp::ports(&[header[0], header[1], header[2], header[3]]);
            Ok(Transport { has_ports: true, src_port, dst_port, tcp_flags, ..Transport::default() })
        }
        Protocol::UDP => {
            let Some(header) = chunk::<{ udp::HEADER_LEN }>(payload, 0) else { return Err(short) };
            let len = usize::from(be16(header[4], header[5]));
            if len < udp::HEADER_LEN || (len > payload.len() && !carried.more_fragments) {
                return Err(Malformed::BadUdpLength);
            }
            let (src_port, dst_port) = tcp::ports(&[header[0], header[1], header[2], header[3]]);
            Ok(Transport { has_ports: true, src_port, dst_port, ..Transport::default() })
        }
        // ICMPv6 in IPv4 and the reverse mean nothing to anyone; they carry no type.
        Protocol::ICMP | Protocol::ICMPV6
            if (carried.protocol == Protocol::ICMP) == (carried.kind == Kind::Ipv4) =>
        {
            let Some(header) = chunk::<8>(payload, 0) else { return Err(short) };
            Ok(Transport { icmp_type: header[0], icmp_code: header[1], ..Transport::default() })
        }
        _ => Ok(Transport::default()),
    }
}
