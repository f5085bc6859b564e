//! How long do the packet path's primitives take? `cargo run --release --package weir-net --example packet_time`
//!
//! Frames stay in the first-level cache: this is the cost of the code alone.

use std::hint::black_box;
use std::time::Instant;

use weir_net::buffer::{PacketBuf, VecBuf};
use weir_net::encap::{self, Ends, GueUdp, Outer, Tunnel};
use weir_net::hash::{self, StableKey, Toeplitz};
use weir_net::{Kind, ParseOptions, Parsed, checksum, fuzz, parse, parse_into, rewrite};

const ROUNDS: u32 = 2_000_000;

/// The best of five, in nanoseconds per call.
fn measure(name: &str, mut call: impl FnMut(usize)) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        for round in 0..ROUNDS {
            call(round as usize);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
    }
    println!("{name:<40} {best:6.1} ns");
}

fn main() {
    let options = ParseOptions::default();
    let trusted = ParseOptions { l3_checksum_ok: true };
    for wanted in [Kind::Ipv4, Kind::Ipv6] {
        let found = fuzz::seeds().into_iter().find_map(|frame| {
            let parsed = parse(&frame, &options).ok()?;
            (parsed.kind == wanted && parsed.has_ports).then_some((frame, parsed))
        });
        let Some((mut frame, parsed)) = found else { continue };
        frame.resize(frame.len().max(60), 0);
        let mut frames = vec![frame.clone(); 32];
        println!("{wanted:?}, TCP, {} bytes", frame.len());
        measure("  parse, header checksum verified", |round| {
            let _ = black_box(parse(black_box(frames.get(round % 32).map_or(&[], Vec::as_slice)), &options));
        });
        let mut places = [Parsed::default(); 32];
        measure("  parse into place", |round| {
            if let (Some(place), Some(frame)) = (places.get_mut(round % 32), frames.get(round % 32)) {
                let _ = black_box(parse_into(black_box(frame), &options, place));
            }
        });
        measure("  parse, header checksum by the NIC", |round| {
            let _ = black_box(parse(black_box(frames.get(round % 32).map_or(&[], Vec::as_slice)), &trusted));
        });
        measure("  rewrite both sides", |round| {
            if let Some(frame) = frames.get_mut(round % 32) {
                black_box(rewrite_both(frame, &parsed, round as u16));
            }
        });
        measure("  decrement TTL", |round| {
            if let Some(frame) = frames.get_mut(round % 32) {
                if let Some(ttl) = frame.get_mut(if wanted == Kind::Ipv4 { 22 } else { 21 }) {
                    *ttl = 64;
                }
                black_box(rewrite::decrement_ttl(frame, &parsed));
            }
        });
        measure("  flow hash", |round| {
            let frame = frames.get(round % 32).map_or(&[][..], Vec::as_slice);
            black_box(flow_hash(frame, &parsed));
        });
        measure("  stable hash", |round| {
            let frame = frames.get(round % 32).map_or(&[][..], Vec::as_slice);
            black_box(stable_hash(frame, &parsed));
        });
        let toeplitz = Toeplitz::new(&hash::MICROSOFT_KEY);
        measure("  Toeplitz", |round| {
            let frame = frames.get(round % 32).map_or(&[][..], Vec::as_slice);
            black_box(toeplitz_hash(&toeplitz, frame, &parsed));
        });
        let gue = GueUdp { src_port: 50_000, dst_port: encap::GUE_PORT, checksum: true };
        let v4 = Ends::V4 { src: 0xc612_0001, dst: 0xc612_0002 };
        let v6 = Ends::V6 { src: [0x20; 16], dst: [0x21; 16] };
        for (name, tunnel, ends) in [
            ("  IPIP over IPv4", Tunnel::Ipip, v4),
            ("  GUE over IPv4, checksum", Tunnel::GueVariant1(gue), v4),
            ("  GUE over IPv6, checksum", Tunnel::GueVariant1(gue), v6),
        ] {
            let outer = Outer { tunnel, ends, ttl: 64, identification: 0, flow_label: 0 };
            let mut packet = VecBuf::new(&frame);
            let more = tunnel.overhead(ends.family());
            measure(name, |_| {
                let done = encap::encapsulate(&mut packet, &parsed, &outer);
                // back to where it was, so that the next round has the same work
                black_box(done && packet.trim_front(more));
            });
        }
    }
    let bytes = vec![0x5a; 1460];
    measure("checksum of 1,460 bytes", |_| {
        black_box(checksum::sum(black_box(&bytes)));
    });
}

fn rewrite_both(frame: &mut [u8], parsed: &Parsed, port: u16) -> bool {
    match parsed.kind {
        Kind::Ipv4 => rewrite::set_both_v4(frame, parsed, (0xc612_0001, port), (0xc612_0002, 80)),
        _ => rewrite::set_both_v6(frame, parsed, (&[0x20; 16], port), (&[0x21; 16], 80)),
    }
}

fn flow_hash(frame: &[u8], parsed: &Parsed) -> u64 {
    let (sport, dport, protocol) = (parsed.src_port, parsed.dst_port, parsed.protocol.0);
    match parsed.kind {
        Kind::Ipv4 => {
            hash::flow_hash_v4([1, 2], parsed.src_v4(frame), parsed.dst_v4(frame), sport, dport, protocol)
        }
        _ => hash::flow_hash_v6([1, 2], &parsed.src_v6(frame), &parsed.dst_v6(frame), sport, dport, protocol),
    }
}

fn stable_hash(frame: &[u8], parsed: &Parsed) -> u64 {
    let (sport, dport, protocol) = (parsed.src_port, parsed.dst_port, parsed.protocol.0);
    let key = StableKey::NONE;
    match parsed.kind {
        Kind::Ipv4 => {
            hash::stable_hash_v4(key, parsed.src_v4(frame), parsed.dst_v4(frame), sport, dport, protocol)
        }
        _ => hash::stable_hash_v6(key, &parsed.src_v6(frame), &parsed.dst_v6(frame), sport, dport, protocol),
    }
}

fn toeplitz_hash(table: &Toeplitz, frame: &[u8], parsed: &Parsed) -> u32 {
    let (sport, dport) = (parsed.src_port, parsed.dst_port);
    match parsed.kind {
        Kind::Ipv4 => table.hash_v4(parsed.src_v4(frame), parsed.dst_v4(frame), sport, dport),
        _ => table.hash_v6(&parsed.src_v6(frame), &parsed.dst_v6(frame), sport, dport),
    }
}
