//! What does an IPv4 header hold (RFC 791 §3.1), and how is one written?

use crate::checksum;
use crate::types::Protocol;

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// The largest header.
pub const HEADER_MAX: usize = 60;
/// Don't fragment, in the flags and fragment offset word.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments, in the flags and fragment offset word.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in units of 8 bytes, in the flags and fragment offset word.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
/// RFC 1122 §3.2.1.7 with the assigned number: the default TTL.
pub const DEFAULT_TTL: u8 = 64;
/// RFC 791 §3.1: end of option list.
pub const OPTION_END: u8 = 0;
/// RFC 791 §3.1: no operation.
pub const OPTION_NOP: u8 = 1;
/// RFC 791 §3.1: loose source and record route.
pub const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
/// RFC 791 §3.1: strict source and record route.
pub const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// The offset of fields in the header.
pub mod field {
    /// DSCP (6 bits) and ECN (2 bits).
    pub const TOS: usize = 1;
    /// Length of header and data.
    pub const TOTAL_LEN: usize = 2;
    /// Identification.
    pub const IDENTIFICATION: usize = 4;
    /// Flags and fragment offset.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol.
    pub const PROTOCOL: usize = 9;
    /// Header checksum.
    pub const CHECKSUM: usize = 10;
    /// Source address.
    pub const SRC: usize = 12;
    /// Destination address.
    pub const DST: usize = 16;
}

/// A header without options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and data.
    pub total_len: u16,
    /// Identification; arbitrary where `dont_fragment` (RFC 6864 §4.1).
    pub identification: u16,
    /// Routers must not fragment.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the data.
    pub protocol: Protocol,
    /// Source address.
    pub src: u32,
    /// Destination address.
    pub dst: u32,
}

impl Header {
    /// The header's bytes with its checksum.
    #[inline(always)]
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = 0x45;
        out[field::TOS] = self.tos;
        out[2..4].copy_from_slice(&self.total_len.to_be_bytes());
        out[4..6].copy_from_slice(&self.identification.to_be_bytes());
        out[6] = if self.dont_fragment { 0x40 } else { 0 };
        out[field::TTL] = self.ttl;
        out[field::PROTOCOL] = self.protocol.0;
        out[12..16].copy_from_slice(&self.src.to_be_bytes());
        out[16..20].copy_from_slice(&self.dst.to_be_bytes());
        let checksum = !checksum::sum_20(&out);
        out[10..12].copy_from_slice(&checksum.to_be_bytes());
        out
    }
}

/// Whether an address can be the source of a packet on a wire.
///
/// RFC 1122 §3.2.1.3 and RFC 6890 §2.2.2: not 0.0.0.0/8 (this network), 127.0.0.0/8 (loopback), 224.0.0.0/4 (multicast), nor
/// 240.0.0.0/4 (reserved, and the limited broadcast).
#[inline(always)]
pub const fn is_source(address: u32) -> bool {
    let top = address >> 24;
    (top.wrapping_sub(1) < 223) & (top != 127)
}

/// Whether an address can be the destination of a packet on a wire: any source, any multicast group, the limited
/// broadcast.
#[inline(always)]
pub const fn is_destination(address: u32) -> bool {
    let top = address >> 24;
    top != 0 && top != 127 && (top < 240 || address == u32::MAX)
}

/// Whether an address is of a multicast group (RFC 5771) or the limited broadcast.
#[inline(always)]
pub const fn is_group(address: u32) -> bool {
    address >> 28 == 0xe || address == u32::MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpProtocol, Ipv4Packet};

    #[test]
    fn header_reads_as_smoltcp_reads_it() {
        let header = Header {
            tos: 0xb9,
            total_len: 24,
            identification: 0x1234,
            dont_fragment: true,
            ttl: 63,
            protocol: Protocol::UDP,
            src: 0xc612_0001,
            dst: 0xc612_6401,
        };
        let mut packet = header.bytes().to_vec();
        packet.extend([1, 2, 3, 4]);
        let view = Ipv4Packet::new_checked(&packet[..]).unwrap();
        assert!(view.verify_checksum() && view.dont_frag() && !view.more_frags());
        assert_eq!((view.dscp(), view.ecn(), view.hop_limit()), (0xb9 >> 2, 1, 63));
        assert_eq!((view.ident(), view.total_len(), view.frag_offset()), (0x1234, 24, 0));
        assert_eq!(view.next_header(), IpProtocol::Udp);
        assert_eq!(u32::from(view.src_addr()), header.src);
        assert_eq!(u32::from(view.dst_addr()), header.dst);
    }
}
