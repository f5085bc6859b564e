//! Which ICMP messages does a balancer meet (RFC 792), and which flow is an error about?
//!
//! [`inner`] serves both ICMP and ICMPv6: the quoted packet is what a neighbour saw of ours, cut off after at least eight
//! bytes of its transport header (RFC 792), so that its lengths and checksums can't be verified.

use std::net::IpAddr;

use crate::bytes::{be16, chunk, put, u32_at};
use crate::checksum;
use crate::extension;
use crate::icmpv6;
use crate::ipv4;
use crate::malformed::Malformed;
use crate::parse::{Kind, Parsed};
use crate::tcp;
use crate::types::{Family, Protocol};

/// Length of the header that all messages share here: type, code, checksum and four bytes by type.
pub const HEADER_LEN: usize = 8;
/// RFC 792.
pub const ECHO_REPLY: u8 = 0;
/// RFC 792.
pub const DESTINATION_UNREACHABLE: u8 = 3;
/// RFC 792, deprecated by RFC 6633.
pub const SOURCE_QUENCH: u8 = 4;
/// RFC 792.
pub const REDIRECT: u8 = 5;
/// RFC 792.
pub const ECHO_REQUEST: u8 = 8;
/// RFC 792.
pub const TIME_EXCEEDED: u8 = 11;
/// RFC 792.
pub const PARAMETER_PROBLEM: u8 = 12;
/// RFC 1191 §4: code of destination unreachable, with the next hop's MTU.
pub const FRAGMENTATION_NEEDED: u8 = 4;

/// Whether a type is an error, which quotes a packet (RFC 1122 §3.2.2).
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    matches!(kind, DESTINATION_UNREACHABLE | SOURCE_QUENCH | REDIRECT | TIME_EXCEEDED | PARAMETER_PROBLEM)
}

/// The flow of the packet that an ICMP error quotes, seen from the frame that carries the error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerFlow {
    /// Version of the quoted packet.
    pub family: Family,
    /// Its transport protocol.
    pub protocol: Protocol,
    /// Offset of the quoted IP header from the start of the frame.
    pub l3: u16,
    /// Offset of the quoted transport header from the start of the frame.
    pub l4: u16,
    /// End of the quotation, from the start of the frame; at least eight bytes after `l4`.
    pub end: u16,
    /// Whether the transport is TCP or UDP.
    pub has_ports: bool,
    /// Source port, zero without ports.
    pub src_port: u16,
    /// Destination port, zero without ports.
    pub dst_port: u16,
}

impl InnerFlow {
    /// The quoted source address, for IPv4; `frame` must be the one that was parsed.
    #[inline]
    pub fn src_v4(&self, frame: &[u8]) -> u32 {
        u32_at(frame, usize::from(self.l3) + ipv4::field::SRC).unwrap_or(0)
    }

    /// The quoted destination address, for IPv4; `frame` must be the one that was parsed.
    #[inline]
    pub fn dst_v4(&self, frame: &[u8]) -> u32 {
        u32_at(frame, usize::from(self.l3) + ipv4::field::DST).unwrap_or(0)
    }

    /// The quoted source address, for IPv6; `frame` must be the one that was parsed.
    #[inline]
    pub fn src_v6(&self, frame: &[u8]) -> [u8; 16] {
        chunk(frame, usize::from(self.l3) + crate::ipv6::field::SRC).copied().unwrap_or_default()
    }

    /// The quoted destination address, for IPv6; `frame` must be the one that was parsed.
    #[inline]
    pub fn dst_v6(&self, frame: &[u8]) -> [u8; 16] {
        chunk(frame, usize::from(self.l3) + crate::ipv6::field::DST).copied().unwrap_or_default()
    }

    /// The quoted source address; `frame` must be the one that was parsed.
    pub fn src(&self, frame: &[u8]) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(self.src_v4(frame).into()),
            Family::V6 => IpAddr::V6(self.src_v6(frame).into()),
        }
    }

    /// The quoted destination address; `frame` must be the one that was parsed.
    pub fn dst(&self, frame: &[u8]) -> IpAddr {
        match self.family {
            Family::V4 => IpAddr::V4(self.dst_v4(frame).into()),
            Family::V6 => IpAddr::V6(self.dst_v6(frame).into()),
        }
    }
}

/// The flow that an ICMP or ICMPv6 error is about. Verifies the message's own checksum (RFC 1122 §3.2.2, RFC 4443 §2.3).
///
/// A message that is no error, a fragment, or a quotation that is itself a later fragment or too short for the ports is
/// [`Malformed::BadIcmpQuote`].
pub fn inner(frame: &[u8], parsed: &Parsed) -> Result<InnerFlow, Malformed> {
    let family = match (parsed.kind, parsed.protocol) {
        (Kind::Ipv4, Protocol::ICMP) if is_error(parsed.icmp_type) => Family::V4,
        (Kind::Ipv6, Protocol::ICMPV6) if icmpv6::is_error(parsed.icmp_type) => Family::V6,
        _ => return Err(Malformed::BadIcmpQuote),
    };
    if parsed.is_fragment() {
        return Err(Malformed::BadIcmpQuote);
    }
    if !checksum::l4_is_valid(frame, parsed) {
        return Err(Malformed::BadIcmpChecksum);
    }
    let start = parsed.l4_offset() + HEADER_LEN;
    let quote = frame.get(start..parsed.end()).ok_or(Malformed::BadIcmpQuote)?;
    let (protocol, header_len) = match family {
        Family::V4 => quoted_v4(quote),
        Family::V6 => quoted_v6(quote),
    }
    .ok_or(Malformed::BadIcmpQuote)?;
    let head = chunk::<8>(quote, header_len).ok_or(Malformed::BadIcmpQuote)?;
    let has_ports = matches!(protocol, Protocol::TCP | Protocol::UDP);
    let (src_port, dst_port) =
        if has_ports { tcp::ports(&[head[0], head[1], head[2], head[3]]) } else { (0, 0) };
    let offset = |at: usize| u16::try_from(at).map_err(|_| Malformed::BadIcmpQuote);
    Ok(InnerFlow {
        family,
        protocol,
        l3: offset(start)?,
        l4: offset(start + header_len)?,
        end: offset(parsed.end())?,
        has_ports,
        src_port,
        dst_port,
    })
}

/// Protocol and header length of a quoted IPv4 packet that is whole or a first fragment.
fn quoted_v4(quote: &[u8]) -> Option<(Protocol, usize)> {
    let header = chunk::<{ ipv4::HEADER_LEN }>(quote, 0)?;
    let header_len = usize::from(header[0] & 0x0f) * 4;
    let later = be16(header[6], header[7]) & ipv4::FRAGMENT_OFFSET != 0;
    if header[0] >> 4 != 4 || header_len < ipv4::HEADER_LEN || later {
        return None;
    }
    Some((Protocol(header[ipv4::field::PROTOCOL]), header_len))
}

/// Protocol and length of all headers of a quoted IPv6 packet that is whole or a first fragment.
fn quoted_v6(quote: &[u8]) -> Option<(Protocol, usize)> {
    let header = chunk::<{ crate::ipv6::HEADER_LEN }>(quote, 0)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let chain =
        extension::walk(quote, crate::ipv6::HEADER_LEN, Protocol(header[crate::ipv6::field::NEXT_HEADER]))
            .ok()?;
    (chain.fragment_offset == 0).then_some((chain.protocol, chain.offset))
}

/// Computes the checksum of an ICMP or ICMPv6 message anew, after its quotation was changed; false where the frame is
/// not the one that was parsed.
pub fn refresh_checksum(frame: &mut [u8], parsed: &Parsed) -> bool {
    let (start, end) = (parsed.l4_offset(), parsed.end());
    let Some(message) = frame.get_mut(start..end) else { return false };
    if put(message, 2, [0, 0]).is_none() {
        return false;
    }
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let body = u64::from(checksum::sum(message));
    let checksum = !checksum::fold(body + u64::from(checksum::pseudo(frame, parsed, len)));
    put(frame, start + 2, checksum.to_be_bytes()).is_some()
}
