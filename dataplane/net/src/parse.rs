//! What is in this frame, and is it fit to be looked at further?
//!
//! One pass from the Ethernet header to the transport header. Every check that RFCs ask of a receiver before it acts on
//! a packet is made here, once, so that no later stage repeats it; what fails is a [`Malformed`] reason. What is no IP
//! is not an error but a [`Kind`].

use std::net::IpAddr;

use crate::bytes::{be16, chunk, u32_at};
use crate::checksum;
use crate::eth;
use crate::extension;
use crate::icmpv6;
use crate::ipv4;
use crate::ipv6;
use crate::malformed::Malformed;
use crate::tcp;
use crate::types::{Family, Protocol};
use crate::udp;

/// RFC 8504 §5.3 lets a node limit the chain; no packet that a balancer serves has more than two.
pub const MAX_EXTENSION_HEADERS: usize = 8;

/// What is already known about a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParseOptions {
    /// The NIC has verified the IPv4 header checksum.
    pub l3_checksum_ok: bool,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// ARP; [`Parsed::l3`] is where it starts.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Anything else; [`Parsed::ether_type`] tells.
    Other,
}

/// Where everything is in a frame, and the few values that decisions need. Offsets count from the frame's first byte.
///
/// For [`Kind::Arp`] and [`Kind::Other`] only `kind`, `ether_type`, `vlan` and `l3` mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What the frame carries.
    pub kind: Kind,
    /// The transport protocol, after any IPv6 extension headers.
    pub protocol: Protocol,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN: the IPv4 type of service or the IPv6 traffic class.
    pub tos: u8,
    /// TCP flags; zero for other protocols and later fragments.
    pub tcp_flags: u8,
    /// ICMP or ICMPv6 type; zero for other protocols and later fragments.
    pub icmp_type: u8,
    /// ICMP or ICMPv6 code; zero for other protocols and later fragments.
    pub icmp_code: u8,
    /// IPv4's don't fragment; true for IPv6.
    pub dont_fragment: bool,
    /// Whether fragments follow this one.
    pub more_fragments: bool,
    /// Whether `src_port` and `dst_port` were read: TCP or UDP, and no later fragment.
    pub has_ports: bool,
    /// Ether type, after the tag if there is one.
    pub ether_type: u16,
    /// The VLAN identifier of a frame with one 802.1Q tag (0 to 4095).
    pub vlan: Option<u16>,
    /// Offset of the IP header.
    pub l3: u16,
    /// Offset of the transport header, or of a later fragment's data.
    pub l4: u16,
    /// Length of the IP packet, header included. The frame may be longer: see [`Parsed::padding`].
    pub l3_len: u16,
    /// Offset of this fragment in its packet's payload, in bytes.
    pub fragment_offset: u16,
    /// Identification of the packet that fragments belong to; zero for IPv6 without a fragment header.
    pub identification: u32,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
}

impl Parsed {
    /// The IP version, if it is IP.
    #[inline(always)]
    pub const fn family(&self) -> Option<Family> {
        match self.kind {
            Kind::Ipv4 => Some(Family::V4),
            Kind::Ipv6 => Some(Family::V6),
            Kind::Arp | Kind::Other => None,
        }
    }

    /// Whether the packet is one of several fragments. An atomic fragment (RFC 6946) is a whole packet.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Whether the packet is the fragment that holds the transport header.
    #[inline(always)]
    pub const fn is_first_fragment(&self) -> bool {
        self.more_fragments && self.fragment_offset == 0
    }

    /// Whether the packet is a fragment without a transport header.
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.fragment_offset != 0
    }

    /// [`Parsed::l3`] for slicing.
    #[inline(always)]
    pub const fn l3_offset(&self) -> usize {
        self.l3 as usize
    }

    /// [`Parsed::l4`] for slicing.
    #[inline(always)]
    pub const fn l4_offset(&self) -> usize {
        self.l4 as usize
    }

    /// Where the IP packet ends.
    #[inline(always)]
    pub const fn end(&self) -> usize {
        self.l3 as usize + self.l3_len as usize
    }

    /// How many bytes of Ethernet padding follow the IP packet.
    #[inline(always)]
    pub const fn padding(&self, frame: &[u8]) -> usize {
        frame.len().saturating_sub(self.end())
    }

    /// The IPv4 source address; `frame` must be the one that was parsed, and IPv4.
    #[inline(always)]
    pub fn src_v4(&self, frame: &[u8]) -> u32 {
        u32_at(frame, self.l3_offset() + ipv4::field::SRC).unwrap_or(0)
    }

    /// The IPv4 destination address; `frame` must be the one that was parsed, and IPv4.
    #[inline(always)]
    pub fn dst_v4(&self, frame: &[u8]) -> u32 {
        u32_at(frame, self.l3_offset() + ipv4::field::DST).unwrap_or(0)
    }

    /// The IPv6 source address; `frame` must be the one that was parsed, and IPv6.
    #[inline(always)]
    pub fn src_v6(&self, frame: &[u8]) -> [u8; 16] {
        chunk(frame, self.l3_offset() + ipv6::field::SRC).copied().unwrap_or_default()
    }

    /// The IPv6 destination address; `frame` must be the one that was parsed, and IPv6.
    #[inline(always)]
    pub fn dst_v6(&self, frame: &[u8]) -> [u8; 16] {
        chunk(frame, self.l3_offset() + ipv6::field::DST).copied().unwrap_or_default()
    }

    /// The source address of either family, for slow paths.
    pub fn src(&self, frame: &[u8]) -> Option<IpAddr> {
        Some(match self.family()? {
            Family::V4 => IpAddr::V4(self.src_v4(frame).into()),
            Family::V6 => IpAddr::V6(self.src_v6(frame).into()),
        })
    }

    /// The destination address of either family, for slow paths.
    pub fn dst(&self, frame: &[u8]) -> Option<IpAddr> {
        Some(match self.family()? {
            Family::V4 => IpAddr::V4(self.dst_v4(frame).into()),
            Family::V6 => IpAddr::V6(self.dst_v6(frame).into()),
        })
    }

    /// Whether the destination is a multicast group or the limited broadcast.
    pub fn dst_is_group(&self, frame: &[u8]) -> bool {
        match self.family() {
            Some(Family::V4) => ipv4::is_group(self.dst_v4(frame)),
            Some(Family::V6) => ipv6::is_multicast(&self.dst_v6(frame)),
            None => false,
        }
    }

    /// The transport header and its data.
    #[inline(always)]
    pub fn segment<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        frame.get(self.l4_offset()..self.end()).unwrap_or_default()
    }

    /// The transport header and its data, to be changed.
    #[inline(always)]
    pub fn segment_mut<'a>(&self, frame: &'a mut [u8]) -> &'a mut [u8] {
        frame.get_mut(self.l4_offset()..self.end()).unwrap_or_default()
    }

    /// The same packet after its Ethernet header became `l3` bytes long; `vlan` as it is now.
    #[must_use]
    pub fn moved(&self, l3: u16, vlan: Option<u16>) -> Parsed {
        Parsed { l3, l4: self.l4 - self.l3 + l3, vlan, ..*self }
    }
}

/// Reads a frame from its Ethernet header to its transport header.
#[inline]
pub fn parse(frame: &[u8], options: &ParseOptions) -> Result<Parsed, Malformed> {
    let Some(header) = chunk::<{ eth::HEADER_LEN }>(frame, 0) else { return Err(Malformed::ShortFrame) };
    let mut parsed = Parsed {
        kind: Kind::Other,
        protocol: Protocol(0),
        ttl: 0,
        tos: 0,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
        dont_fragment: false,
        more_fragments: false,
        has_ports: false,
        ether_type: be16(header[12], header[13]),
        vlan: None,
        l3: eth::HEADER_LEN as u16,
        l4: 0,
        l3_len: 0,
        fragment_offset: 0,
        identification: 0,
        src_port: 0,
        dst_port: 0,
    };
    if parsed.ether_type == eth::VLAN {
        let Some(tag) = chunk::<{ eth::TAG_LEN }>(frame, eth::HEADER_LEN) else {
            return Err(Malformed::ShortFrame);
        };
        parsed.vlan = Some(be16(tag[0], tag[1]) & eth::VLAN_ID);
        parsed.ether_type = be16(tag[2], tag[3]);
        parsed.l3 += eth::TAG_LEN as u16;
    }
    match parsed.ether_type {
        eth::IPV4 => parse_v4(frame, &mut parsed, options)?,
        eth::IPV6 => parse_v6(frame, &mut parsed)?,
        eth::ARP => parsed.kind = Kind::Arp,
        _ => {}
    }
    Ok(parsed)
}

/// RFC 791 §3.1 and RFC 1122 §3.2.1.
#[inline(always)]
fn parse_v4(frame: &[u8], parsed: &mut Parsed, options: &ParseOptions) -> Result<(), Malformed> {
    let packet = frame.get(parsed.l3_offset()..).unwrap_or_default();
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
    parsed.ttl = header[ipv4::field::TTL];
    if parsed.ttl == 0 {
        return Err(Malformed::TtlZero);
    }
    parsed.kind = Kind::Ipv4;
    parsed.tos = header[ipv4::field::TOS];
    parsed.protocol = Protocol(header[ipv4::field::PROTOCOL]);
    parsed.l3_len = total_len;
    parsed.l4 = parsed.l3 + header_len as u16;
    parsed.identification = u32::from(be16(header[4], header[5]));
    let fragment = be16(header[6], header[7]);
    parsed.dont_fragment = fragment & ipv4::DONT_FRAGMENT != 0;
    let payload = packet.get(header_len..).unwrap_or_default();
    if fragment & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) != 0 {
        parsed.more_fragments = fragment & ipv4::MORE_FRAGMENTS != 0;
        parsed.fragment_offset = (fragment & ipv4::FRAGMENT_OFFSET) << 3;
        // RFC 791 §3.1: the whole packet's length is a 16-bit number too.
        check_fragment(parsed, payload.len(), header_len)?;
    }
    transport(payload, parsed)
}

/// RFC 8200 §3 and §4.
#[inline(always)]
fn parse_v6(frame: &[u8], parsed: &mut Parsed) -> Result<(), Malformed> {
    let packet = frame.get(parsed.l3_offset()..).unwrap_or_default();
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
    parsed.ttl = header[ipv6::field::HOP_LIMIT];
    if parsed.ttl == 0 {
        return Err(Malformed::TtlZero);
    }
    parsed.kind = Kind::Ipv6;
    parsed.tos = header[0] << 4 | header[1] >> 4;
    parsed.l3_len = total_len;
    parsed.dont_fragment = true;
    parsed.protocol = next;
    let mut headers_len = ipv6::HEADER_LEN;
    if !matches!(next, Protocol::TCP | Protocol::UDP | Protocol::ICMPV6) {
        headers_len = extensions(packet, parsed, next)?;
    }
    parsed.l4 = parsed.l3 + headers_len as u16;
    transport(packet.get(headers_len..).unwrap_or_default(), parsed)?;
    if ipv6::is_unspecified(src)
        && !(parsed.protocol == Protocol::ICMPV6 && icmpv6::may_be_unspecified(parsed.icmp_type))
    {
        return Err(Malformed::MartianSource);
    }
    Ok(())
}

/// The length of the IPv6 header and its extensions.
#[cold]
fn extensions(packet: &[u8], parsed: &mut Parsed, next: Protocol) -> Result<usize, Malformed> {
    let chain = extension::walk(packet, ipv6::HEADER_LEN, next)?;
    parsed.protocol = chain.protocol;
    parsed.identification = chain.identification;
    parsed.more_fragments = chain.more_fragments;
    parsed.fragment_offset = chain.fragment_offset;
    if parsed.is_fragment() {
        // RFC 8200 §4.5: the reassembled payload length is a 16-bit number; the fixed header does not count.
        check_fragment(parsed, packet.len() - chain.offset, 0)?;
    }
    Ok(chain.offset)
}

/// Refuses fragments whose only use is to slip something past a receiver.
#[cold]
fn check_fragment(parsed: &Parsed, payload_len: usize, header_len: usize) -> Result<(), Malformed> {
    if payload_len == 0 || (parsed.more_fragments && !payload_len.is_multiple_of(8)) {
        return Err(Malformed::BadFragment);
    }
    if usize::from(parsed.fragment_offset) + payload_len + header_len > usize::from(u16::MAX) {
        return Err(Malformed::FragmentTooLong);
    }
    // RFC 1858 §4.2, RFC 3128: no honest sender cuts within a transport header, and such a fragment overwrites flags.
    if parsed.fragment_offset != 0
        && usize::from(parsed.fragment_offset) < tcp::HEADER_LEN
        && parsed.protocol == Protocol::TCP
    {
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
fn transport(payload: &[u8], parsed: &mut Parsed) -> Result<(), Malformed> {
    if parsed.fragment_offset != 0 {
        return Ok(());
    }
    match parsed.protocol {
        Protocol::TCP => {
            let Some(header) = chunk::<{ tcp::HEADER_LEN }>(payload, 0) else { return Err(short(parsed)) };
            let header_len = usize::from(header[tcp::field::DATA_OFFSET] >> 4) * 4;
            if header_len < tcp::HEADER_LEN {
                return Err(Malformed::BadTcpOffset);
            }
            if header_len > payload.len() {
                return Err(if parsed.more_fragments {
                    Malformed::TinyFragment
                } else {
                    Malformed::BadTcpOffset
                });
            }
            parsed.tcp_flags = header[tcp::field::FLAGS];
            if tcp::flags_are_bad(parsed.tcp_flags) {
                return Err(Malformed::BadTcpFlags);
            }
            (parsed.src_port, parsed.dst_port) = tcp::ports(&[header[0], header[1], header[2], header[3]]);
            parsed.has_ports = true;
        }
        Protocol::UDP => {
            let Some(header) = chunk::<{ udp::HEADER_LEN }>(payload, 0) else { return Err(short(parsed)) };
            let len = usize::from(be16(header[4], header[5]));
            if len < udp::HEADER_LEN || (len > payload.len() && !parsed.more_fragments) {
                return Err(Malformed::BadUdpLength);
            }
            (parsed.src_port, parsed.dst_port) = tcp::ports(&[header[0], header[1], header[2], header[3]]);
            parsed.has_ports = true;
        }
        // ICMPv6 in IPv4 and the reverse mean nothing to anyone; they carry no type.
        Protocol::ICMP | Protocol::ICMPV6
            if (parsed.protocol == Protocol::ICMP) == (parsed.kind == Kind::Ipv4) =>
        {
            let Some(header) = chunk::<8>(payload, 0) else { return Err(short(parsed)) };
            [parsed.icmp_type, parsed.icmp_code, ..] = *header;
        }
        _ => {}
    }
    Ok(())
}

/// A transport header that ends early.
#[cold]
fn short(parsed: &Parsed) -> Malformed {
    if parsed.more_fragments { Malformed::TinyFragment } else { Malformed::ShortL4 }
}

#[cfg(test)]
mod tests;
