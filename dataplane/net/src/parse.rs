//! What is in this frame, and is it fit to be looked at further?
//!
//! One pass from the Ethernet header to the transport header. Every check that RFCs ask of a receiver before it acts on
//! a packet is made here, once, so that no later stage repeats it; what fails is a [`Malformed`] reason. What is no IP
//! is not an error but a [`Kind`].

use std::net::IpAddr;

use crate::bytes::{be16, chunk, u32_at};
use crate::checksum;
use crate::eth;
use crate::ipv4;
use crate::ipv6;
use crate::malformed::Malformed;
use crate::tcp;
use crate::types::{Family, Protocol};
use crate::udp;

mod usual;
mod whole;
pub use usual::{Usual, parsed_usual_v4, parsed_usual_v6, usual_v4, usual_v6};
pub(crate) use whole::parse_any;

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

impl Default for Parsed {
    /// A frame of which nothing is known: [`Kind::Other`], all else zero.
    #[inline(always)]
    fn default() -> Parsed {
        Parsed {
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
            ether_type: 0,
            vlan: None,
            l3: 0,
            l4: 0,
            l3_len: 0,
            fragment_offset: 0,
            identification: 0,
            src_port: 0,
            dst_port: 0,
        }
    }
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

    /// Both IPv4 addresses, source first; `frame` must be the one that was parsed, and IPv4.
    #[inline(always)]
    pub fn addresses_v4(&self, frame: &[u8]) -> (u32, u32) {
        let both = chunk::<8>(frame, self.l3_offset() + ipv4::field::SRC);
        let bits = both.map_or(0, |raw| u64::from_be_bytes(*raw));
        ((bits >> 32) as u32, bits as u32)
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

    /// Both IPv6 addresses as numbers, source first; `frame` must be the one that was parsed, and IPv6.
    #[inline(always)]
    pub fn addresses_v6(&self, frame: &[u8]) -> (u128, u128) {
        let both = chunk::<32>(frame, self.l3_offset() + ipv6::field::SRC);
        let number = |half: Option<&[u8; 16]>| half.map_or(0, |raw| u128::from_be_bytes(*raw));
        both.map_or((0, 0), |both| (number(both.first_chunk()), number(both.last_chunk())))
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
    let mut parsed = Parsed::default();
    parse_into(frame, options, &mut parsed).map(|()| parsed)
}

/// As [`parse`], into a place that the caller has: for bursts, where copying the result out of a `Result` costs as much as
/// parsing (wide loads right after narrow stores wait for them). After an error `parsed` holds nothing of use.
#[inline]
pub fn parse_into(frame: &[u8], options: &ParseOptions, parsed: &mut Parsed) -> Result<(), Malformed> {
    if parse_plain_v4(frame, options, parsed) || parse_plain_v6(frame, parsed) {
        return Ok(());
    }
    parse_any(frame, options, parsed)
}

/// The frame that nearly every frame is: untagged, IPv4 without options, no fragment, TCP or UDP. All conditions are joined
/// into one branch without a reason; false leaves the frame, good or bad, to [`parse_into`], which begins with this.
#[inline(always)]
fn parse_plain_v4(frame: &[u8], options: &ParseOptions, parsed: &mut Parsed) -> bool {
    const L3: usize = eth::HEADER_LEN;
    const L4: usize = L3 + ipv4::HEADER_LEN;
    let Some(head) = frame.first_chunk::<{ L4 + udp::HEADER_LEN }>() else { return false };
    if [head[12], head[13], head[14]] != [0x08, 0x00, 0x45] {
        return false;
    }
    let word = |at: usize| u32_at(head, L3 + at).unwrap_or(0);
    let words = [word(0), word(4), word(8), word(12), word(16)];
    let sum = words.iter().map(|word| u64::from(*word)).sum();
    let [first, second, third, src, dst] = words;
    let (total_len, ttl, protocol) = (first as u16, (third >> 24) as u8, Protocol((third >> 16) as u8));
    let payload_len = usize::from(total_len).wrapping_sub(ipv4::HEADER_LEN);
    let plain = (options.l3_checksum_ok | checksum::is_all_ones(sum))
        & ipv4::is_source(src)
        & ipv4::is_source(dst)
        & (src != dst)
        & (ttl != 0)
        & (second as u16 & (ipv4::MORE_FRAGMENTS | ipv4::FRAGMENT_OFFSET) == 0)
        & (payload_len <= frame.len() - L4);
    if !plain {
        return false;
    }
    let Some(tcp_flags) = fast_transport(frame, L4, protocol, payload_len) else { return false };
    let (src_port, dst_port) = tcp::ports(&[head[L4], head[L4 + 1], head[L4 + 2], head[L4 + 3]]);
    *parsed = Parsed {
        kind: Kind::Ipv4,
        protocol,
        ttl,
        tos: (first >> 16) as u8,
        tcp_flags,
        dont_fragment: second as u16 & ipv4::DONT_FRAGMENT != 0,
        has_ports: true,
        ether_type: eth::IPV4,
        l3: L3 as u16,
        l4: L4 as u16,
        l3_len: total_len,
        identification: second >> 16,
        src_port,
        dst_port,
        ..Parsed::default()
    };
    true
}

/// As [`parse_plain_v4`], for IPv6 without extension headers.
#[inline(always)]
fn parse_plain_v6(frame: &[u8], parsed: &mut Parsed) -> bool {
    const L3: usize = eth::HEADER_LEN;
    const L4: usize = L3 + ipv6::HEADER_LEN;
    let Some(head) = frame.first_chunk::<{ L4 + udp::HEADER_LEN }>() else { return false };
    let Some(header) = chunk::<{ ipv6::HEADER_LEN }>(head, L3) else { return false };
    let (Some(src), Some(dst)) =
        (chunk::<16>(header, ipv6::field::SRC), chunk::<16>(header, ipv6::field::DST))
    else {
        return false;
    };
    let (payload_len, ttl) = (be16(header[4], header[5]), header[ipv6::field::HOP_LIMIT]);
    // Global and unique local unicast start with one of the bits 0010 to 1111 1101; the rest has ways of its own.
    let ordinary = |address: &[u8; 16]| (0x20..0xfe).contains(&address[0]);
    let plain = ([head[12], head[13]] == [0x86, 0xdd])
        & (header[0] >> 4 == 6)
        & ordinary(src)
        & ordinary(dst)
        & (src != dst)
        & (ttl != 0)
        & (usize::from(payload_len) <= frame.len() - L4);
    let Some(l3_len) = payload_len.checked_add(ipv6::HEADER_LEN as u16).filter(|_| plain) else {
        return false;
    };
    let protocol = Protocol(header[ipv6::field::NEXT_HEADER]);
    let Some(tcp_flags) = fast_transport(frame, L4, protocol, usize::from(payload_len)) else { return false };
    let (src_port, dst_port) = tcp::ports(&[head[L4], head[L4 + 1], head[L4 + 2], head[L4 + 3]]);
    *parsed = Parsed {
        kind: Kind::Ipv6,
        protocol,
        ttl,
        tos: header[0] << 4 | header[1] >> 4,
        tcp_flags,
        dont_fragment: true,
        has_ports: true,
        ether_type: eth::IPV6,
        l3: L3 as u16,
        l4: L4 as u16,
        l3_len,
        src_port,
        dst_port,
        ..Parsed::default()
    };
    true
}

/// The flags of a well-formed TCP segment, zero for a well-formed UDP datagram, `None` for all else.
#[inline(always)]
fn fast_transport(frame: &[u8], l4: usize, protocol: Protocol, payload_len: usize) -> Option<u8> {
    if protocol == Protocol::TCP {
        let header = chunk::<{ tcp::HEADER_LEN }>(frame, l4)?;
        let header_len = usize::from(header[tcp::field::DATA_OFFSET] >> 4) * 4;
        let flags = header[tcp::field::FLAGS];
        let fits = (header_len >= tcp::HEADER_LEN) & (header_len <= payload_len) & !tcp::flags_are_bad(flags);
        fits.then_some(flags)
    } else {
        let header = chunk::<{ udp::HEADER_LEN }>(frame, l4)?;
        let len = usize::from(be16(header[4], header[5]));
        ((protocol == Protocol::UDP) & (len >= udp::HEADER_LEN) & (len <= payload_len)).then_some(0)
    }
}

#[cfg(test)]
mod tests;
