//! The outer headers of `ipip` and `gue`.

use weir_net::encap::{self, Ends, GueUdp, Outer, Tunnel, entropy_port};
use weir_net::{Family, PacketBuf, Parsed, eth, udp};

use crate::engine::Lookup;
use crate::entry::Address;
use crate::services::{Backend, Listener, Mode};

/// Length of the link header that an encapsulated frame starts with.
pub(crate) const LINK_LEN: u16 = eth::HEADER_LEN as u16;
/// What `ipip` over IPv4 adds.
const OVERHEAD_IPIP: usize = Tunnel::Ipip.overhead(Family::V4);
/// What `gue` over IPv4 adds in variant 1.
const OVERHEAD_GUE: usize = OVERHEAD_IPIP + udp::HEADER_LEN;
/// RFC 2003 §3.1: the outer TTL is that of a packet that starts here.
const OUTER_TTL: u8 = 64;

#[inline(always)]
fn gue_udp(listener: &Listener, hash: u32) -> GueUdp {
    GueUdp { src_port: entropy_port(u64::from(hash) << 32), dst_port: listener.gue_port, checksum: true }
}

fn tunnel_of(listener: &Listener, hash: u32) -> Option<Tunnel> {
    let udp = gue_udp(listener, hash);
    match (listener.mode, listener.gue_variant) {
        (Mode::Ipip, _) => Some(Tunnel::Ipip),
        (Mode::Gue, 0) => Some(Tunnel::GueVariant0(udp)),
        (Mode::Gue, _) => Some(Tunnel::GueVariant1(udp)),
        (Mode::Dsr | Mode::Nat | Mode::Fullnat | Mode::Proxy, _) => None,
    }
}

/// Bytes that the listener's tunnel to this backend adds to each packet; 0 without one.
#[inline]
pub(crate) fn overhead(listener: &Listener, backend: &Backend) -> usize {
    let family = if backend.family == 4 { Family::V4 } else { Family::V6 };
    tunnel_of(listener, 0).map_or(0, |tunnel| tunnel.overhead(family))
}

/// Whether these bits are an IPv4-mapped address.
#[inline]
fn is_v4(bits: u128) -> bool {
    bits >> 32 == 0xffff
}

/// The outer headers; `None` without a source address of the backend's family.
#[inline]
fn outer(listener: &Listener, backend: &Backend, hash: u32, identification: u16) -> Option<Outer> {
    let (src, dst) = (backend.tunnel_source, backend.address);
    let (v4_src, v4_dst) = (is_v4(src), is_v4(dst));
    if src == 0 || v4_src != v4_dst {
        return None;
    }
    let ends = if v4_dst {
        Ends::V4 { src: src as u32, dst: dst as u32 }
    } else {
        Ends::V6 { src: src.to_be_bytes(), dst: dst.to_be_bytes() }
    };
    let mut tunnel = tunnel_of(listener, hash)?;
    if let (Ends::V4 { .. }, Tunnel::GueVariant0(udp) | Tunnel::GueVariant1(udp)) = (&ends, &mut tunnel) {
        // RFC 768: over IPv4 the checksum may be left out, and the inner packet has its own
        udp.checksum = false;
    }
    Some(Outer { tunnel, ends, ttl: OUTER_TTL, identification, flow_label: hash & 0x000f_ffff })
}

/// Whether the listener's packets travel to this backend in a usual tunnel: over IPv4, without a header between UDP and IP.
#[inline(always)]
fn is_usual(listener: &Listener, backend: &Backend) -> bool {
    let is_headed = listener.mode == Mode::Gue && listener.gue_variant == 0;
    backend.family == 4 && is_v4(backend.tunnel_source) && !is_headed
}

/// Puts the outer headers before the packet of a listener with a tunnel and takes one off its TTL; the link addresses are filled
/// in by the worker. Where it returns false, nothing but Ethernet padding has changed.
#[inline(never)]
pub(crate) fn encapsulate<P: PacketBuf>(
    packet: &mut P,
    parsed: &Parsed,
    listener: &Listener,
    backend: &Backend,
    hash: u32,
    identification: u16,
) -> bool {
    if is_usual(listener, backend) {
        encapsulate_v4(packet, parsed, listener, backend, hash, identification)
    } else {
        encapsulate_any(packet, parsed, listener, backend, hash, identification)
    }
}

/// [`encapsulate`] for a usual packet, which may be too long for its way: then nothing has changed. (Not part of its caller, which
/// has no registers to spare; nor is what is known of the packet, which would have to stand in memory.)
#[inline(never)]
pub(crate) fn encapsulate_usual<A: Address, P: PacketBuf>(
    packet: &mut P,
    lookup: &Lookup,
    listener: &Listener,
    backend: &Backend,
    identification: &mut u16,
) -> bool {
    let Some(parsed) = A::parsed_usual(packet.data(), lookup.usual_len) else { return false };
    let is_usual = is_usual(listener, backend);
    let overhead = match is_usual {
        true if listener.mode == Mode::Ipip => OVERHEAD_IPIP,
        true => OVERHEAD_GUE,
        false => overhead(listener, backend),
    };
    if usize::from(parsed.l3_len) + overhead > usize::from(backend.mtu) {
        return false;
    }
    *identification = identification.wrapping_add(1);
    if is_usual {
        return encapsulate_v4(packet, &parsed, listener, backend, lookup.hash, *identification);
    }
    // once more: what is handed on must stand in memory, and above it need not
    A::parsed_usual(packet.data(), lookup.usual_len).is_some_and(|parsed| {
        encapsulate_any(packet, &parsed, listener, backend, lookup.hash, *identification)
    })
}

/// [`encapsulate`] for the usual tunnels: what [`outer`] would say, of which most is known here and folds into constants.
#[inline(always)]
fn encapsulate_v4<P: PacketBuf>(
    packet: &mut P,
    parsed: &Parsed,
    listener: &Listener,
    backend: &Backend,
    hash: u32,
    identification: u16,
) -> bool {
    let ends = Ends::V4 { src: backend.tunnel_source as u32, dst: backend.address as u32 };
    let outer = |tunnel| Outer { tunnel, ends, ttl: OUTER_TTL, identification, flow_label: 0 };
    if listener.mode == Mode::Ipip {
        encap::encapsulate(packet, parsed, &outer(Tunnel::Ipip))
    } else {
        let udp = GueUdp { checksum: false, ..gue_udp(listener, hash) };
        encap::encapsulate(packet, parsed, &outer(Tunnel::GueVariant1(udp)))
    }
}

/// [`encapsulate`] for all tunnels.
#[inline(never)]
fn encapsulate_any<P: PacketBuf>(
    packet: &mut P,
    parsed: &Parsed,
    listener: &Listener,
    backend: &Backend,
    hash: u32,
    identification: u16,
) -> bool {
    outer(listener, backend, hash, identification)
        .is_some_and(|outer| encap::encapsulate(packet, parsed, &outer))
}
