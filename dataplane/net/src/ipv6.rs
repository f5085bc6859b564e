//! What does an IPv6 header hold (RFC 8200 §3), and how is one written?

use crate::types::Protocol;

/// Length of the fixed header.
pub const HEADER_LEN: usize = 40;
/// Length of a fragment header, RFC 8200 §4.5.
pub const FRAGMENT_HEADER_LEN: usize = 8;
/// RFC 8200 §5: every link carries packets of this length.
pub const MINIMUM_MTU: usize = 1280;
/// RFC 1122 §3.2.1.7's assigned default, used for IPv6 alike (IANA "IP option numbers", RFC 4861 §6.3.2).
pub const DEFAULT_HOP_LIMIT: u8 = 64;

/// The offset of fields in the header.
pub mod field {
    /// Length of what follows the fixed header.
    pub const PAYLOAD_LEN: usize = 4;
    /// Type of the next header.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source address.
    pub const SRC: usize = 8;
    /// Destination address.
    pub const DST: usize = 24;
}

/// A fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits (RFC 6437).
    pub flow_label: u32,
    /// Length of what follows the header.
    pub payload_len: u16,
    /// Type of what follows the header.
    pub next_header: Protocol,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
}

impl Header {
    /// The header's bytes.
    #[inline]
    pub fn bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        out[..4].copy_from_slice(&first.to_be_bytes());
        out[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        out[field::NEXT_HEADER] = self.next_header.0;
        out[field::HOP_LIMIT] = self.hop_limit;
        out[8..24].copy_from_slice(&self.src);
        out[24..].copy_from_slice(&self.dst);
        out
    }
}

/// Whether an address is of a multicast group, RFC 4291 §2.7.
#[inline(always)]
pub const fn is_multicast(address: &[u8; 16]) -> bool {
    address[0] == 0xff
}

/// Whether an address is the unspecified one, RFC 4291 §2.5.2.
#[inline(always)]
pub const fn is_unspecified(address: &[u8; 16]) -> bool {
    u128::from_be_bytes(*address) == 0
}

/// Whether an address is link-local unicast, RFC 4291 §2.5.6.
#[inline(always)]
pub const fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Whether an address can be neither source nor destination on a wire: loopback (RFC 4291 §2.5.3) and IPv4-mapped
/// (RFC 4291 §2.5.5.2; RFC 6890 §2.2.3). The unspecified address is judged by who uses it.
#[inline(always)]
pub const fn is_martian(address: &[u8; 16]) -> bool {
    let value = u128::from_be_bytes(*address);
    value == 1 || value >> 32 == 0xffff
}

/// The group that a neighbour solicitation for `target` is sent to, RFC 4291 §2.7.1.
pub const fn solicited_node(target: &[u8; 16]) -> [u8; 16] {
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15]]
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpProtocol, Ipv6Address, Ipv6Packet};

    #[test]
    fn header_reads_as_smoltcp_reads_it() {
        let src: Ipv6Address = "2001:db8::1".parse().unwrap();
        let dst: Ipv6Address = "2001:db8::2".parse().unwrap();
        let header = Header {
            traffic_class: 0xb9,
            flow_label: 0xabcde,
            payload_len: 2,
            next_header: Protocol::TCP,
            hop_limit: 9,
            src: src.octets(),
            dst: dst.octets(),
        };
        let mut packet = header.bytes().to_vec();
        packet.extend([0, 0]);
        let view = Ipv6Packet::new_checked(&packet[..]).unwrap();
        assert_eq!((view.version(), view.traffic_class(), view.flow_label()), (6, 0xb9, 0xabcde));
        assert_eq!((view.payload_len(), view.hop_limit()), (2, 9));
        assert_eq!(view.next_header(), IpProtocol::Tcp);
        assert_eq!((view.src_addr(), view.dst_addr()), (src, dst));
        assert_eq!(solicited_node(&src.octets()), "ff02::1:ff00:1".parse::<Ipv6Address>().unwrap().octets());
    }
}
