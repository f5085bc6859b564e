//! How is a whole IP packet carried to a backend inside another one?
//!
//! `ipip` is IP in IP (RFC 2003, RFC 2473). `gue` is Generic UDP Encapsulation (draft-ietf-intarea-gue): variant 1 puts
//! the IP packet directly into UDP, variant 0 puts a four-byte header between. DSCP is copied (RFC 2983 §3.2, the
//! uniform model) and so is ECN (RFC 6040 §4.1, normal mode).

use crate::buffer::PacketBuf;
use crate::bytes::put;
use crate::checksum;
use crate::eth;
use crate::ipv4;
use crate::ipv6;
use crate::parse::Parsed;
use crate::rewrite;
use crate::types::{Family, Mac, Protocol};
use crate::udp;

/// IANA's UDP port for GUE.
pub const GUE_PORT: u16 = 6080;
/// Length of the header of GUE variant 0 without optional fields.
pub const GUE_HEADER_LEN: usize = 4;

/// What stands between the outer IP header and the inner one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Nothing.
    Ipip,
    /// UDP and a four-byte header that names the inner protocol.
    GueVariant0(GueUdp),
    /// UDP alone; the inner version's bits are variant 1's.
    GueVariant1(GueUdp),
}

/// The outer UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GueUdp {
    /// Source port: see [`entropy_port`].
    pub src_port: u16,
    /// Destination port, usually [`GUE_PORT`].
    pub dst_port: u16,
    /// Whether the checksum is computed; without it, it is zero. RFC 8200 §8.1 wants it over IPv6, but for RFC 6936.
    pub checksum: bool,
}

impl Tunnel {
    /// Length of everything before the inner packet, from the outer IP header on.
    #[inline(always)]
    pub const fn overhead(self, outer: Family) -> usize {
        overhead_of_ip(outer)
            + match self {
                Tunnel::Ipip => 0,
                Tunnel::GueVariant0(_) => udp::HEADER_LEN + GUE_HEADER_LEN,
                Tunnel::GueVariant1(_) => udp::HEADER_LEN,
            }
    }
}

const fn overhead_of_ip(outer: Family) -> usize {
    match outer {
        Family::V4 => ipv4::HEADER_LEN,
        Family::V6 => ipv6::HEADER_LEN,
    }
}

/// Ends of the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Over IPv4.
    V4 {
        /// Our address.
        src: u32,
        /// The backend's address.
        dst: u32,
    },
    /// Over IPv6.
    V6 {
        /// Our address.
        src: [u8; 16],
        /// The backend's address.
        dst: [u8; 16],
    },
}

impl Ends {
    /// The outer family.
    #[inline(always)]
    pub const fn family(&self) -> Family {
        match self {
            Ends::V4 { .. } => Family::V4,
            Ends::V6 { .. } => Family::V6,
        }
    }
}

/// The outer headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// What stands between the IP headers.
    pub tunnel: Tunnel,
    /// The outer addresses.
    pub ends: Ends,
    /// TTL or hop limit of the outer header.
    pub ttl: u8,
    /// Identification of an outer IPv4 packet that may be fragmented.
    pub identification: u16,
    /// Flow label of an outer IPv6 header, 20 bits: the flow's entropy (RFC 6438 §3).
    pub flow_label: u32,
}

/// A source port from a flow's hash, in the dynamic range (RFC 6335 §6) as draft-ietf-intarea-gue §5.11 asks, so that
/// routers and NICs spread the flows of one tunnel.
#[inline(always)]
pub const fn entropy_port(hash: u64) -> u16 {
    0xc000 | (hash >> 50) as u16
}

/// Replaces the link header of a parsed IP packet by one without a tag, whose addresses are zero for now, and the outer headers,
/// and takes one off the TTL or hop limit of the inner packet, which must be above one. Ethernet padding goes away.
///
/// False where the headroom or the 16-bit outer length does not suffice; then nothing but the padding has changed.
/// The outer IPv4 packet may be fragmented only where the inner one may be (RFC 2003 §3.1).
#[inline(always)]
pub fn encapsulate<B: PacketBuf>(packet: &mut B, parsed: &Parsed, outer: &Outer) -> bool {
    let Some(inner) = parsed.family() else { return false };
    let overhead = outer.tunnel.overhead(outer.ends.family());
    let Some(total_len) = parsed.l3_len.checked_add(overhead as u16) else { return false };
    // At least 20 bytes of IP header and 14 of Ethernet: more than the 18 of any header that was parsed.
    let before = eth::HEADER_LEN + overhead;
    let Some(frame) = packet.reframe(before - parsed.l3_offset(), parsed.end()) else { return false };
    let ether_type = match outer.ends {
        Ends::V4 { .. } => eth::IPV4,
        Ends::V6 { .. } => eth::IPV6,
    };
    if !rewrite::decrement_ttl(frame, &Parsed { l3: before as u16, ..*parsed }) {
        return false;
    }
    let Some(l3) = eth::write(frame, Mac::ZERO, Mac::ZERO, None, ether_type) else { return false };
    let Some(datagram) = frame.get_mut(l3..) else { return false };
    write(datagram, total_len, outer, inner, parsed.tos, parsed.dont_fragment).is_some()
}

/// Writes the outer headers to the start of `datagram`, whose inner packet is already in place.
#[inline(always)]
fn write(
    datagram: &mut [u8],
    total_len: u16,
    outer: &Outer,
    inner: Family,
    tos: u8,
    dont_fragment: bool,
) -> Option<()> {
    let (protocol, carried) = match inner {
        Family::V4 => (Protocol::IPIP, Protocol::IPIP),
        Family::V6 => (Protocol::IPV6, Protocol::IPV6),
    };
    let protocol = if matches!(outer.tunnel, Tunnel::Ipip) { protocol } else { Protocol::UDP };
    let ip_len = overhead_of_ip(outer.ends.family());
    match outer.ends {
        Ends::V4 { src, dst } => {
            let header = ipv4::Header {
                tos,
                total_len,
                identification: outer.identification,
                // RFC 2003 §3.1 and RFC 2473 §7.2: what the inner packet forbids, the outer does too.
                dont_fragment,
                ttl: outer.ttl,
                protocol,
                src,
                dst,
            };
            put(datagram, 0, header.bytes())?;
        }
        Ends::V6 { src, dst } => {
            let header = ipv6::Header {
                traffic_class: tos,
                flow_label: outer.flow_label,
                payload_len: total_len - ipv6::HEADER_LEN as u16,
                next_header: protocol,
                hop_limit: outer.ttl,
                src,
                dst,
            };
            put(datagram, 0, header.bytes())?;
        }
    }
    let (ports, gue_header) = match outer.tunnel {
        Tunnel::Ipip => return Some(()),
        Tunnel::GueVariant1(ports) => (ports, 0),
        Tunnel::GueVariant0(ports) => {
            // Version 0, no control message, no optional fields; the inner protocol; no flags.
            put(datagram, ip_len + udp::HEADER_LEN, [0, carried.0, 0, 0])?;
            (ports, GUE_HEADER_LEN)
        }
    };
    let len = total_len - ip_len as u16;
    put(datagram, ip_len, udp::header(ports.src_port, ports.dst_port, len, 0))?;
    if ports.checksum {
        let pseudo = match &outer.ends {
            Ends::V4 { src, dst } => checksum::pseudo_v4(*src, *dst, Protocol::UDP, len),
            Ends::V6 { src, dst } => checksum::pseudo_v6(src, dst, Protocol::UDP, u32::from(len)),
        };
        // The headers' words are added as numbers: loading back what was just stored in pieces would wait for it.
        let between = if gue_header == 0 { 0 } else { u64::from(carried.0) };
        let headers = u64::from(ports.src_port) + u64::from(ports.dst_port) + u64::from(len) + between;
        let inner_packet = datagram.get(ip_len + udp::HEADER_LEN + gue_header..usize::from(total_len))?;
        let sum = headers + u64::from(checksum::sum(inner_packet));
        let checksum = checksum::udp_transmit(!checksum::fold(sum + u64::from(pseudo)));
        put(datagram, ip_len + udp::field::CHECKSUM, checksum.to_be_bytes())?;
    }
    Some(())
}

/// The ECN field of a packet that leaves a tunnel, or `None` where it must be dropped, RFC 6040 §4.2 figure 4. Both
/// arguments are the two low bits of the type of service or traffic class.
pub const fn ecn_after_tunnel(outer: u8, inner: u8) -> Option<u8> {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => None,
        (NOT_ECT, _) => Some(NOT_ECT),
        (_, CE) => Some(CE),
        (ECT_0, ECT_1) => Some(ECT_1),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::VecBuf;
    use crate::sample::{self, edit_v4, parsed, smoltcp_accepts};
    use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpControl, UdpPacket};

    const V4: Ends = Ends::V4 { src: 0xc612_00fe, dst: 0xc612_0109 };
    const V6: Ends = Ends::V6 { src: [0x20; 16], dst: [0x21; 16] };
    const GUE: GueUdp = GueUdp { src_port: 0xc123, dst_port: GUE_PORT, checksum: true };

    fn outer(tunnel: Tunnel, ends: Ends) -> Outer {
        Outer { tunnel, ends, ttl: 64, identification: 0x77, flow_label: 0x12345 }
    }

    /// The frame after one hop.
    fn hopped(frame: &[u8]) -> Vec<u8> {
        let mut hopped = frame.to_vec();
        assert!(rewrite::decrement_ttl(&mut hopped, &parsed(frame)));
        hopped
    }

    /// Everything from the outer IP header on, its payload after the outer IP header, and its protocol.
    fn carried(frame: &[u8]) -> (IpProtocol, Vec<u8>) {
        match frame[14] >> 4 {
            4 => {
                let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                assert!(packet.verify_checksum());
                assert_eq!(usize::from(packet.total_len()), frame.len() - 14);
                (packet.next_header(), packet.payload().to_vec())
            }
            _ => {
                let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
                assert_eq!(packet.total_len(), frame.len() - 14);
                assert_eq!(packet.flow_label(), 0x12345);
                (packet.next_header(), packet.payload().to_vec())
            }
        }
    }

    #[test]
    fn the_inner_packet_arrives_unchanged_in_every_tunnel() {
        for family in [Family::V4, Family::V6] {
            let frame = sample::tcp(family, TcpControl::Psh, Some(5), b"GET / HTTP/1.1");
            let shape = parsed(&frame);
            let inner_protocol = IpProtocol::from(if family == Family::V4 { 4 } else { 41 });
            for ends in [V4, V6] {
                for tunnel in [Tunnel::Ipip, Tunnel::GueVariant0(GUE), Tunnel::GueVariant1(GUE)] {
                    let mut packet = VecBuf::new(&frame);
                    packet.append(3).unwrap().fill(0xee);
                    assert!(encapsulate(&mut packet, &shape, &outer(tunnel, ends)));
                    let out = packet.data();
                    assert_eq!(out.len(), frame.len() + tunnel.overhead(ends.family()));
                    assert_eq!(out[..12], [0; 12]);
                    assert!(smoltcp_accepts(out));
                    let (protocol, payload) = carried(out);
                    let inner = match tunnel {
                        Tunnel::Ipip => {
                            assert_eq!(protocol, inner_protocol);
                            payload
                        }
                        Tunnel::GueVariant0(_) => {
                            let datagram = UdpPacket::new_checked(&payload[..]).unwrap();
                            assert_eq!((datagram.src_port(), datagram.dst_port()), (0xc123, 6080));
                            assert_eq!(
                                datagram.payload()[..4],
                                [0, if family == Family::V4 { 4 } else { 41 }, 0, 0]
                            );
                            datagram.payload()[4..].to_vec()
                        }
                        Tunnel::GueVariant1(_) => {
                            let datagram = UdpPacket::new_checked(&payload[..]).unwrap();
                            assert_ne!(datagram.checksum(), 0);
                            // variant 1 is told by the first two bits, which both IP versions begin with
                            assert_eq!(datagram.payload()[0] >> 6, 1);
                            datagram.payload().to_vec()
                        }
                    };
                    assert_eq!(inner, hopped(&frame)[14..]);
                }
            }
        }
    }

    #[test]
    fn a_tag_goes() {
        let frame = sample::udp(Family::V4, b"x");
        let mut packet = VecBuf::new(&frame);
        assert!(eth::push_vlan(&mut packet, 3));
        let shape = parsed(packet.data());
        assert!(encapsulate(&mut packet, &shape, &outer(Tunnel::Ipip, V4)));
        assert_eq!(packet.data()[12..14], [8, 0]);
        assert_eq!(packet.data()[34..], hopped(&frame)[14..]);
    }

    #[test]
    fn dscp_ecn_and_dont_fragment_are_copied() {
        let frame = edit_v4(sample::udp(Family::V4, b"x"), |ip| {
            ip[1] = 0xbb;
            ip[6] = 0;
        });
        let mut packet = VecBuf::new(&frame);
        assert!(encapsulate(&mut packet, &parsed(&frame), &outer(Tunnel::Ipip, V4)));
        let ip = Ipv4Packet::new_checked(&packet.data()[14..]).unwrap();
        assert_eq!((ip.dscp(), ip.ecn(), ip.dont_frag(), ip.ident()), (0xbb >> 2, 3, false, 0x77));
        let mut packet = VecBuf::new(&frame);
        assert!(encapsulate(&mut packet, &parsed(&frame), &outer(Tunnel::Ipip, V6)));
        assert_eq!(Ipv6Packet::new_checked(&packet.data()[14..]).unwrap().traffic_class(), 0xbb);
        let frame = sample::udp(Family::V6, b"x");
        let mut packet = VecBuf::new(&frame);
        assert!(encapsulate(&mut packet, &parsed(&frame), &outer(Tunnel::Ipip, V4)));
        assert!(Ipv4Packet::new_checked(&packet.data()[14..]).unwrap().dont_frag());
    }

    #[test]
    fn without_a_checksum_the_field_is_zero() {
        let frame = sample::udp(Family::V4, b"x");
        let mut packet = VecBuf::new(&frame);
        let tunnel = Tunnel::GueVariant1(GueUdp { checksum: false, ..GUE });
        assert!(encapsulate(&mut packet, &parsed(&frame), &outer(tunnel, V4)));
        assert_eq!(packet.data()[40..42], [0, 0]);
    }

    #[test]
    fn no_room_changes_nothing() {
        let frame = sample::udp(Family::V4, b"x");
        let mut packet = VecBuf::with_room(&frame, 19, 0);
        assert!(!encapsulate(&mut packet, &parsed(&frame), &outer(Tunnel::Ipip, V4)));
        assert_eq!(packet.data(), frame);
        let mut packet = VecBuf::with_room(&frame, 20, 0);
        assert!(encapsulate(&mut packet, &parsed(&frame), &outer(Tunnel::Ipip, V4)));
        // 65,535 bytes are the most
        let long = sample::udp(Family::V4, &vec![0; 65_535 - 28]);
        let mut packet = VecBuf::new(&long);
        assert!(!encapsulate(&mut packet, &parsed(&long), &outer(Tunnel::Ipip, V4)));
        assert_eq!(packet.data(), long);
        assert!(rewrite::decrement_ttl(packet.data_mut(), &parsed(&long)));
    }

    #[test]
    fn entropy_ports_are_dynamic_ones() {
        assert_eq!((entropy_port(0), entropy_port(u64::MAX)), (49_152, 65_535));
    }

    /// RFC 6040 §4.2, figure 4, row by row: inner Not-ECT, ECT(0), ECT(1), CE; outer in the same order.
    #[test]
    fn ecn_leaves_a_tunnel_as_rfc_6040_says() {
        let (not, zero, one, ce) = (0, 2, 1, 3);
        let rows = [
            (not, [Some(not), Some(not), Some(not), None]),
            (zero, [Some(zero), Some(zero), Some(one), Some(ce)]),
            (one, [Some(one), Some(one), Some(one), Some(ce)]),
            (ce, [Some(ce), Some(ce), Some(ce), Some(ce)]),
        ];
        for (inner, results) in rows {
            for (outer, expected) in [not, zero, one, ce].into_iter().zip(results) {
                assert_eq!(ecn_after_tunnel(outer, inner), expected, "{outer} over {inner}");
            }
        }
    }
}
