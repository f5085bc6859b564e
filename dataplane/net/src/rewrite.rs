//! How does a packet get another address, port or TTL without anyone summing it again?
//!
//! Every change goes into one [`Delta`], which mends the IP and the transport checksum (RFC 1624). A later fragment has
//! neither ports nor checksum: only its addresses change. All functions return false, having changed nothing, where the
//! frame is not the one that was parsed, or is of the other family.

use std::net::IpAddr;

use crate::bytes::{be16, chunk_mut};
use crate::checksum::{Delta, udp_transmit};
use crate::icmp::{self, InnerFlow};
use crate::ipv4;
use crate::ipv6;
use crate::parse::{Kind, Parsed};
use crate::tcp;
use crate::types::{Family, Protocol};
use crate::udp;

/// What one hop adds to the sum of the IPv4 header's changes, whatever TTL and protocol are: ~m + m' with m' = m - 0x100.
const HOP: u32 = 0xfeff;

/// New IPv4 source address and port.
#[inline]
pub fn set_src_v4(frame: &mut [u8], parsed: &Parsed, address: u32, port: u16) -> bool {
    edit_v4::<false>(frame, parsed, Some((address, port)), None)
}

/// New IPv4 destination address and port.
#[inline]
pub fn set_dst_v4(frame: &mut [u8], parsed: &Parsed, address: u32, port: u16) -> bool {
    edit_v4::<false>(frame, parsed, None, Some((address, port)))
}

/// New IPv4 addresses and ports on both sides, each an address and a port.
#[inline]
pub fn set_both_v4(frame: &mut [u8], parsed: &Parsed, src: (u32, u16), dst: (u32, u16)) -> bool {
    edit_v4::<false>(frame, parsed, Some(src), Some(dst))
}

/// New IPv4 addresses and ports where given, and one off the TTL: what a forwarded packet gets, with one change of the
/// checksum. False, and no change, where the TTL would reach zero.
#[inline(always)]
pub fn pass_v4(frame: &mut [u8], parsed: &Parsed, src: Option<(u32, u16)>, dst: Option<(u32, u16)>) -> bool {
    edit_v4::<true>(frame, parsed, src, dst)
}

/// New IPv6 source address and port.
#[inline]
pub fn set_src_v6(frame: &mut [u8], parsed: &Parsed, address: &[u8; 16], port: u16) -> bool {
    edit_v6(frame, parsed, Some((address, port)), None)
}

/// New IPv6 destination address and port.
#[inline]
pub fn set_dst_v6(frame: &mut [u8], parsed: &Parsed, address: &[u8; 16], port: u16) -> bool {
    edit_v6(frame, parsed, None, Some((address, port)))
}

/// New IPv6 addresses and ports on both sides, each an address and a port.
#[inline]
pub fn set_both_v6(frame: &mut [u8], parsed: &Parsed, src: (&[u8; 16], u16), dst: (&[u8; 16], u16)) -> bool {
    edit_v6(frame, parsed, Some(src), Some(dst))
}

/// New IPv6 addresses and ports where given.
#[inline(always)]
pub fn set_v6(
    frame: &mut [u8],
    parsed: &Parsed,
    src: Option<(&[u8; 16], u16)>,
    dst: Option<(&[u8; 16], u16)>,
) -> bool {
    edit_v6(frame, parsed, src, dst)
}

/// Takes one off the TTL or hop limit; false, and no change, where it would reach zero: the packet must not be forwarded
/// (RFC 1812 §5.3.1, RFC 8200 §3).
#[inline(always)]
pub fn decrement_ttl(frame: &mut [u8], parsed: &Parsed) -> bool {
    match parsed.kind {
        Kind::Ipv4 => decrement_ttl_v4(frame, parsed),
        Kind::Ipv6 => decrement_hop_limit(frame, parsed),
        Kind::Arp | Kind::Other => false,
    }
}

/// [`decrement_ttl`] of what is known to be IPv4.
#[inline(always)]
pub fn decrement_ttl_v4(frame: &mut [u8], parsed: &Parsed) -> bool {
    let Some(header) = chunk_mut::<{ ipv4::HEADER_LEN }>(frame, parsed.l3_offset()) else { return false };
    let ttl = header[ipv4::field::TTL];
    if ttl <= 1 {
        return false;
    }
    header[ipv4::field::TTL] = ttl - 1;
    // RFC 1624 §3 with ~m + m' = HOP: at most 0x1fefe, so that one fold is enough
    let sum = u32::from(!be16(header[10], header[11])) + HOP;
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    true
}

/// [`decrement_ttl`] of what is known to be IPv6.
#[inline(always)]
pub fn decrement_hop_limit(frame: &mut [u8], parsed: &Parsed) -> bool {
    let Some(header) = chunk_mut::<{ ipv6::HEADER_LEN }>(frame, parsed.l3_offset()) else { return false };
    let limit = header[ipv6::field::HOP_LIMIT];
    if limit <= 1 {
        return false;
    }
    header[ipv6::field::HOP_LIMIT] = limit - 1;
    true
}

/// New source address and port of the packet that an ICMP error quotes. The ICMP checksum is wrong until
/// [`icmp::refresh_checksum`]; several changes can share one refresh.
pub fn set_inner_src(frame: &mut [u8], inner: &InnerFlow, address: IpAddr, port: u16) -> bool {
    edit_inner(frame, inner, address, port, true)
}

/// New destination address and port of the packet that an ICMP error quotes, as [`set_inner_src`].
pub fn set_inner_dst(frame: &mut [u8], inner: &InnerFlow, address: IpAddr, port: u16) -> bool {
    edit_inner(frame, inner, address, port, false)
}

/// New outer addresses of an ICMP error, and after its quotation was changed, its checksum. `None` keeps an address.
pub fn finish_icmp_error(
    frame: &mut [u8],
    parsed: &Parsed,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
) -> bool {
    let v4 = |address: Option<IpAddr>| match address {
        None => Some(None),
        Some(IpAddr::V4(address)) => Some(Some((u32::from(address), 0))),
        Some(IpAddr::V6(_)) => None,
    };
    let v6 = |address: Option<IpAddr>| match address {
        None => Some(None),
        Some(IpAddr::V6(address)) => Some(Some(address.octets())),
        Some(IpAddr::V4(_)) => None,
    };
    let moved = match parsed.kind {
        Kind::Ipv4 => {
            let (Some(src), Some(dst)) = (v4(src), v4(dst)) else { return false };
            edit_v4::<false>(frame, parsed, src, dst)
        }
        Kind::Ipv6 => {
            let (Some(src), Some(dst)) = (v6(src), v6(dst)) else { return false };
            edit_v6(frame, parsed, src.as_ref().map(|raw| (raw, 0)), dst.as_ref().map(|raw| (raw, 0)))
        }
        Kind::Arp | Kind::Other => false,
    };
    moved && icmp::refresh_checksum(frame, parsed)
}

#[inline(always)]
fn edit_v4<const HOPS: bool>(
    frame: &mut [u8],
    parsed: &Parsed,
    src: Option<(u32, u16)>,
    dst: Option<(u32, u16)>,
) -> bool {
    if parsed.kind != Kind::Ipv4 || !holds_transport(frame, parsed) {
        return false;
    }
    let Some(header) = chunk_mut::<{ ipv4::HEADER_LEN }>(frame, parsed.l3_offset()) else { return false };
    let ttl = header[ipv4::field::TTL];
    if HOPS && ttl <= 1 {
        return false;
    }
    let mut delta = Delta::new();
    if let Some((address, _)) = src {
        delta.u32(u32::from_be_bytes([header[12], header[13], header[14], header[15]]), address);
        header[12..16].copy_from_slice(&address.to_be_bytes());
    }
    if let Some((address, _)) = dst {
        delta.u32(u32::from_be_bytes([header[16], header[17], header[18], header[19]]), address);
        header[16..20].copy_from_slice(&address.to_be_bytes());
    }
    let mut of_header = delta;
    if HOPS {
        header[ipv4::field::TTL] = ttl - 1;
        of_header.u32(!HOP, 0);
    }
    mend_v4(header, of_header);
    // ICMP for IPv4 has no pseudo-header: addresses are not in its checksum.
    if parsed.has_ports {
        edit_ports(frame, parsed, delta, src.map(|(_, port)| port), dst.map(|(_, port)| port));
    }
    true
}

#[inline(always)]
fn edit_v6(
    frame: &mut [u8],
    parsed: &Parsed,
    src: Option<(&[u8; 16], u16)>,
    dst: Option<(&[u8; 16], u16)>,
) -> bool {
    if parsed.kind != Kind::Ipv6 || !holds_transport(frame, parsed) {
        return false;
    }
    let Some(header) = chunk_mut::<{ ipv6::HEADER_LEN }>(frame, parsed.l3_offset()) else { return false };
    let mut delta = Delta::new();
    if let (Some((address, _)), Some(field)) = (src, chunk_mut::<16>(header, ipv6::field::SRC)) {
        delta.bytes_16(field, address);
        *field = *address;
    }
    if let (Some((address, _)), Some(field)) = (dst, chunk_mut::<16>(header, ipv6::field::DST)) {
        delta.bytes_16(field, address);
        *field = *address;
    }
    if parsed.has_ports {
        edit_ports(frame, parsed, delta, src.map(|(_, port)| port), dst.map(|(_, port)| port));
    } else if parsed.protocol == Protocol::ICMPV6
        && !parsed.is_later_fragment()
        && let Some(header) = chunk_mut::<4>(frame, parsed.l4_offset())
    {
        let checksum = delta.apply(be16(header[2], header[3]));
        header[2..].copy_from_slice(&checksum.to_be_bytes());
    }
    true
}

/// Whether the transport header that was parsed still fits, so that an edit is done whole or not at all.
#[inline(always)]
fn holds_transport(frame: &[u8], parsed: &Parsed) -> bool {
    let needed = match parsed.protocol {
        _ if parsed.is_later_fragment() => 0,
        Protocol::TCP => tcp::HEADER_LEN,
        Protocol::UDP => udp::HEADER_LEN,
        Protocol::ICMPV6 if parsed.kind == Kind::Ipv6 => icmp::HEADER_LEN,
        _ => 0,
    };
    frame.len() >= parsed.l4_offset() + needed
}

/// Ports and the TCP or UDP checksum, which `addresses` changes too.
#[inline(always)]
fn edit_ports(frame: &mut [u8], parsed: &Parsed, addresses: Delta, src: Option<u16>, dst: Option<u16>) {
    let mut delta = addresses;
    let Some(ports) = chunk_mut::<4>(frame, parsed.l4_offset()) else { return };
    if let Some(port) = src {
        delta.u16(be16(ports[0], ports[1]), port);
        ports[..2].copy_from_slice(&port.to_be_bytes());
    }
    if let Some(port) = dst {
        delta.u16(be16(ports[2], ports[3]), port);
        ports[2..].copy_from_slice(&port.to_be_bytes());
    }
    if parsed.protocol == Protocol::TCP {
        if let Some(field) = chunk_mut::<2>(frame, parsed.l4_offset() + tcp::field::CHECKSUM) {
            *field = delta.apply(u16::from_be_bytes(*field)).to_be_bytes();
        }
    } else if let Some(field) = chunk_mut::<2>(frame, parsed.l4_offset() + udp::field::CHECKSUM) {
        *field = delta.apply_udp(u16::from_be_bytes(*field)).to_be_bytes();
    }
}

#[inline(always)]
fn mend_v4(header: &mut [u8; ipv4::HEADER_LEN], delta: Delta) {
    let checksum = delta.apply(be16(header[10], header[11]));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

fn edit_inner(frame: &mut [u8], inner: &InnerFlow, address: IpAddr, port: u16, source: bool) -> bool {
    let l3 = usize::from(inner.l3);
    let mut delta = Delta::new();
    match (address, inner.family) {
        (IpAddr::V4(address), Family::V4) => {
            let Some(header) = chunk_mut::<{ ipv4::HEADER_LEN }>(frame, l3) else { return false };
            let at = if source { ipv4::field::SRC } else { ipv4::field::DST };
            let Some(field) = chunk_mut::<4>(header, at) else { return false };
            delta.u32(u32::from_be_bytes(*field), address.into());
            *field = address.octets();
            mend_v4(header, delta);
        }
        (IpAddr::V6(address), Family::V6) => {
            let at = l3 + if source { ipv6::field::SRC } else { ipv6::field::DST };
            let Some(field) = chunk_mut::<16>(frame, at) else { return false };
            delta.bytes_16(field, &address.octets());
            *field = address.octets();
        }
        _ => return false,
    }
    // What follows the quotation is not the quoted packet's.
    let Some(segment) = frame.get_mut(usize::from(inner.l4)..usize::from(inner.end)) else { return true };
    if inner.has_ports {
        let Some(field) = chunk_mut::<2>(segment, if source { 0 } else { 2 }) else { return true };
        delta.u16(u16::from_be_bytes(*field), port);
        *field = port.to_be_bytes();
    }
    match inner.protocol {
        Protocol::TCP => {
            // Quotations of eight bytes end before the TCP checksum.
            if let Some(field) = chunk_mut::<2>(segment, tcp::field::CHECKSUM) {
                *field = delta.apply(u16::from_be_bytes(*field)).to_be_bytes();
            }
        }
        Protocol::UDP => {
            if let Some(field) = chunk_mut::<2>(segment, udp::field::CHECKSUM) {
                *field = delta.apply_udp(u16::from_be_bytes(*field)).to_be_bytes();
            }
        }
        Protocol::ICMPV6 => {
            if let Some(field) = chunk_mut::<2>(segment, 2) {
                *field = delta.apply(u16::from_be_bytes(*field)).to_be_bytes();
            }
        }
        _ => {}
    }
    true
}

/// Computes the TCP or UDP checksum of an unfragmented packet anew; false where it has none to compute. For packets whose
/// sender left it to an offload that they never met (veth without checksum offload turned off).
pub fn refresh_l4_checksum(frame: &mut [u8], parsed: &Parsed) -> bool {
    let at = match parsed.protocol {
        Protocol::TCP => tcp::field::CHECKSUM,
        Protocol::UDP => udp::field::CHECKSUM,
        _ => return false,
    };
    if parsed.is_fragment() {
        return false;
    }
    let Some(segment) = frame.get_mut(parsed.l4_offset()..parsed.end()) else { return false };
    let Some(field) = chunk_mut::<2>(segment, at) else { return false };
    *field = [0, 0];
    let len = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    let body = u64::from(crate::checksum::sum(segment));
    let mut checksum = !crate::checksum::fold(body + u64::from(crate::checksum::pseudo(frame, parsed, len)));
    if parsed.protocol == Protocol::UDP {
        checksum = udp_transmit(checksum);
    }
    crate::bytes::put(frame, parsed.l4_offset() + at, checksum.to_be_bytes()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{self, client, edit_v4, parsed, smoltcp_accepts, vip};
    use proptest::prelude::*;
    use smoltcp::wire::TcpControl;

    fn set_both(frame: &mut [u8], parsed: &Parsed, src: (IpAddr, u16), dst: (IpAddr, u16)) -> bool {
        match (src.0, dst.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                set_both_v4(frame, parsed, (from.into(), src.1), (to.into(), dst.1))
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                set_both_v6(frame, parsed, (&from.octets(), src.1), (&to.octets(), dst.1))
            }
            _ => false,
        }
    }

    fn family(six: bool) -> Family {
        if six { Family::V6 } else { Family::V4 }
    }

    fn unicast(six: bool, bits: u128) -> IpAddr {
        match six {
            false => IpAddr::V4((0xc612_0000 | (bits as u32 & 0x1_ffff)).into()),
            true => IpAddr::V6((0x2001_0db8 << 96 | bits >> 32 << 1 | 2).into()),
        }
    }

    proptest! {
        #[test]
        fn incremental_is_what_smoltcp_computes(six: bool, udp: bool, src: u128, dst: u128, sport: u16, dport: u16,
                                                payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut frame = if udp { sample::udp(family(six), &payload) } else { sample::tcp(family(six), TcpControl::None, Some(9), &payload) };
            let before = parsed(&frame);
            let (src, dst) = (unicast(six, src), unicast(six, dst));
            prop_assume!(src != dst);
            prop_assert!(set_both(&mut frame, &before, (src, sport), (dst, dport)));
            prop_assert!(decrement_ttl(&mut frame, &before));
            let after = parsed(&frame);
            prop_assert_eq!((after.src(&frame), after.dst(&frame)), (Some(src), Some(dst)));
            prop_assert_eq!((after.src_port, after.dst_port, after.ttl), (sport, dport, 60));
            prop_assert!(smoltcp_accepts(&frame));
            // a full recomputation changes nothing
            let incremental = frame.clone();
            prop_assert!(refresh_l4_checksum(&mut frame, &after));
            prop_assert_eq!(frame, incremental);
        }

        #[test]
        fn a_pass_is_a_hop_and_the_same_edits(src: Option<(u32, u16)>, dst: Option<(u32, u16)>, udp: bool, ttl: u8, sum: u16) {
            let mut frame = if udp { sample::udp(Family::V4, b"x") } else { sample::tcp(Family::V4, TcpControl::None, Some(9), b"x") };
            let shape = parsed(&frame);
            // any TTL and any checksum, right or wrong: both ways change it alike
            frame[shape.l3_offset() + ipv4::field::TTL] = ttl;
            frame[shape.l3_offset() + 10..][..2].copy_from_slice(&sum.to_be_bytes());
            let (mut apart, original) = (frame.clone(), frame.clone());
            if !pass_v4(&mut frame, &shape, src, dst) {
                prop_assert!(ttl <= 1);
                prop_assert_eq!(frame, original);
                return Ok(());
            }
            prop_assert!(decrement_ttl_v4(&mut apart, &shape));
            if let Some((address, port)) = src {
                prop_assert!(set_src_v4(&mut apart, &shape, address, port));
            }
            if let Some((address, port)) = dst {
                prop_assert!(set_dst_v4(&mut apart, &shape, address, port));
            }
            prop_assert_eq!(apart, frame);
        }

        #[test]
        fn there_and_back_is_the_same_frame(six: bool, bits: u128, port: u16) {
            let mut frame = sample::tcp(family(six), TcpControl::Syn, None, b"");
            let original = frame.clone();
            let shape = parsed(&frame);
            match (unicast(six, bits), vip(family(six))) {
                (IpAddr::V4(new), IpAddr::V4(old)) => {
                    prop_assert!(set_dst_v4(&mut frame, &shape, new.into(), port));
                    prop_assert!(set_dst_v4(&mut frame, &shape, old.into(), sample::VIP_PORT));
                }
                (IpAddr::V6(new), IpAddr::V6(old)) => {
                    prop_assert!(set_dst_v6(&mut frame, &shape, &new.octets(), port));
                    prop_assert!(set_dst_v6(&mut frame, &shape, &old.octets(), sample::VIP_PORT));
                }
                _ => unreachable!(),
            }
            prop_assert_eq!(frame, original);
        }
    }

    #[test]
    fn one_side_leaves_the_other() {
        let mut frame = sample::udp(Family::V4, b"x");
        let shape = parsed(&frame);
        assert!(set_src_v4(&mut frame, &shape, 0xc612_0909, 1));
        let after = parsed(&frame);
        assert_eq!((after.src_v4(&frame), after.src_port), (0xc612_0909, 1));
        assert_eq!((after.dst(&frame), after.dst_port), (Some(vip(Family::V4)), sample::VIP_PORT));
        assert!(smoltcp_accepts(&frame));
        let mut frame = sample::udp(Family::V6, b"x");
        let shape = parsed(&frame);
        assert!(set_src_v6(&mut frame, &shape, &[0x20; 16], 1));
        assert_eq!(parsed(&frame).src_v6(&frame), [0x20; 16]);
        assert_eq!(parsed(&frame).dst(&frame), Some(vip(Family::V6)));
        assert!(smoltcp_accepts(&frame));
    }

    #[test]
    fn udp_without_a_checksum_stays_without() {
        let mut frame = sample::udp(Family::V4, b"x");
        frame[40..42].fill(0);
        let shape = parsed(&frame);
        assert!(set_dst_v4(&mut frame, &shape, 0xc612_0909, 1));
        assert_eq!(frame[40..42], [0, 0]);
    }

    #[test]
    fn a_later_fragment_changes_addresses_only() {
        let mut frame = edit_v4(sample::udp(Family::V4, &[9; 16]), |ip| ip[7] = 50);
        let shape = parsed(&frame);
        let data = frame[34..].to_vec();
        assert!(set_both_v4(&mut frame, &shape, (0xc612_0001, 1), (0xc612_0009, 2)));
        assert_eq!(frame[34..], data);
        assert_eq!(parsed(&frame).dst_v4(&frame), 0xc612_0009);
    }

    #[test]
    fn the_last_hop_is_not_taken() {
        for family in [Family::V4, Family::V6] {
            let mut frame = sample::udp(family, b"x");
            let shape = parsed(&frame);
            let mut hops = 61;
            while decrement_ttl(&mut frame, &shape) {
                hops -= 1;
                assert_eq!(parsed(&frame).ttl, hops);
            }
            assert_eq!(hops, 1);
        }
    }

    #[test]
    fn the_wrong_frame_is_left_alone() {
        let frame = sample::udp(Family::V4, b"x");
        let shape = parsed(&frame);
        let mut short = frame[..41].to_vec();
        assert!(!set_dst_v4(&mut short, &shape, 1, 1));
        assert_eq!(short, frame[..41]);
        let mut frame = frame;
        assert!(!set_dst_v6(&mut frame, &shape, &[1; 16], 1));
        assert!(!set_both(&mut frame, &shape, (client(Family::V4), 1), (vip(Family::V6), 1)));
    }
}
