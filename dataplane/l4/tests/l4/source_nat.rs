//! Which source do `fullnat` flows leave with, and when does it run out?

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use weir_l4::services::Algorithm;
use weir_l4::{DropReason, Mode, Parts};

use crate::packets::{ACK, FIN, Packet, TCP, UDP};
use crate::world::{LIFETIMES, World, backend, bits, client, first, listener, names, parts, pool, single};

/// The source and destination of a datagram.
fn ends(datagram: &[u8]) -> (SocketAddr, SocketAddr) {
    let port = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    if datagram[0] >> 4 == 4 {
        let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&datagram[at..at + 4]).unwrap());
        ((v4(12), port(20)).into(), (v4(16), port(22)).into())
    } else {
        let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&datagram[at..at + 16]).unwrap());
        ((v6(8), port(40)).into(), (v6(24), port(42)).into())
    }
}

fn small(family: u8, protocol: u8, snat: &[&str], ports: (u16, u16)) -> Parts {
    Parts {
        snat: snat.iter().map(|address| bits(address)).collect(),
        snat_ports: ports,
        ..single(Mode::Fullnat, protocol, names(family).vip, names(family).backend)
    }
}

#[test]
fn every_source_is_used_once_then_flows_are_refused() {
    let cases: [(u8, &[&str]); 3] = [
        (4, &["198.18.0.2"]),
        (4, &["198.18.0.2", "198.18.0.3", "2001:db8::2", "198.18.0.4"]),
        (6, &["2001:db8::2", "198.18.0.2", "2001:db8::3"]),
    ];
    for (family, snat) in cases {
        let usable = snat.iter().filter(|address| address.contains(':') == (family == 6)).count();
        let mut world = World::new(small(family, TCP, snat, (30_000, 30_015)), 1_000);
        let mut sources = HashSet::new();
        for n in 0..usable as u32 * 16 {
            let packet = first(TCP, &client(family, n), names(family).vip);
            let (_, out) = world.packet(&packet).to_backend();
            let (source, destination) = ends(&out);
            assert!(snat.contains(&source.ip().to_string().as_str()), "{source}");
            assert!((30_000..=30_015).contains(&source.port()), "{source}");
            assert!(sources.insert((source, destination)), "{source} twice");
            // the reply finds this client and no other
            let reply = Packet { src: destination, dst: source, ..packet.answer(ACK) };
            let (_, back) = world.packet(&reply).to_client();
            assert_eq!(ends(&back), (packet.dst, packet.src));
        }
        let full = world.packet(&first(TCP, &client(family, 5_000), names(family).vip));
        assert_eq!(full.drop_reason(), DropReason::SnatExhausted);
        assert_eq!(world.live() as usize, usable * 16);
    }
}

#[test]
fn a_source_serves_each_backend_port_and_protocol_apart() {
    let mut all = Parts { snat: vec![bits("198.18.0.2")], snat_ports: (30_000, 30_003), ..parts() };
    for (index, (vip, protocol, server)) in [
        ("198.18.0.100:80", TCP, "198.18.1.1:80"),
        ("198.18.0.100:81", TCP, "198.18.1.2:80"),
        ("198.18.0.100:82", TCP, "198.18.1.1:81"),
        ("198.18.0.100:80", UDP, "198.18.1.1:80"),
    ]
    .into_iter()
    .enumerate()
    {
        all.listeners.push(listener(index as u16, vip, protocol, Mode::Fullnat, index as u32));
        all.pools.push(pool(index as u32, Algorithm::Maglev, &[(index as u32, 1)]));
        all.backends.push((index as u32, backend(server)));
    }
    let mut world = World::new(all, 100);
    let mut seen = HashSet::new();
    for (vip, protocol) in [
        ("198.18.0.100:80", TCP),
        ("198.18.0.100:81", TCP),
        ("198.18.0.100:82", TCP),
        ("198.18.0.100:80", UDP),
    ] {
        for n in 0..4 {
            let (_, out) = world.packet(&first(protocol, &client(4, n), vip)).to_backend();
            assert!(seen.insert((protocol, ends(&out))));
        }
        let full = world.packet(&first(protocol, &client(4, 9), vip));
        assert_eq!(full.drop_reason(), DropReason::SnatExhausted);
    }
    assert_eq!(seen.len(), 16);
}

#[test]
fn sources_are_free_again_when_their_flows_have_ended() {
    let mut world = World::new(small(4, TCP, &["198.18.0.2"], (30_000, 30_007)), 100);
    for round in 0..5 {
        for n in 0..8 {
            let packet = first(TCP, &client(4, round * 100 + n), names(4).vip);
            world.packet(&packet).to_backend();
            world.packet(&packet.with(ACK)).to_backend();
            world.packet(&packet.with(FIN | ACK)).to_backend();
        }
        let packet = first(TCP, &client(4, round * 100 + 50), names(4).vip);
        assert_eq!(world.packet(&packet).drop_reason(), DropReason::SnatExhausted);
        world.now += LIFETIMES.established + 1;
        world.sweep_all();
        assert_eq!(world.live(), 0);
    }
}

#[test]
fn flows_keep_a_source_address_that_is_not_configured_any_more() {
    let mut world = World::new(small(4, UDP, &["198.18.0.2"], (30_000, 30_999)), 100);
    let old = first(UDP, names(4).client, names(4).vip);
    let (_, before) = world.packet(&old).to_backend();
    world.adopt(small(4, UDP, &["198.18.0.3"], (40_000, 40_999)));
    let (_, after) = world.packet(&old).to_backend();
    assert_eq!(before, after);
    let (source, destination) = ends(&after);
    let reply = Packet { src: destination, dst: source, ..old.answer(0) };
    world.packet(&reply).to_client();
    let (_, new) = world.packet(&first(UDP, names(4).other_client, names(4).vip)).to_backend();
    assert_eq!(ends(&new).0.ip(), IpAddr::from([198, 18, 0, 3]));
    assert!((40_000..=40_999).contains(&ends(&new).0.port()));
}

#[test]
fn without_a_source_address_of_the_family_there_is_no_fullnat() {
    for snat in [&[][..], &["2001:db8::2"]] {
        let mut world = World::new(small(4, TCP, snat, (30_000, 30_999)), 100);
        let outcome = world.packet(&first(TCP, names(4).client, names(4).vip));
        assert_eq!(outcome.drop_reason(), DropReason::SnatExhausted);
        assert_eq!(world.live(), 0);
    }
}

#[test]
fn a_stranger_does_not_get_into_a_flow_by_its_source_port() {
    let mut world = World::new(small(4, UDP, &["198.18.0.2"], (30_000, 30_999)), 100);
    let (_, out) = world.packet(&first(UDP, names(4).client, names(4).vip)).to_backend();
    let (source, destination) = ends(&out);
    for from in ["198.18.1.1:8081", "198.18.7.7:8080"] {
        let outcome = world.packet(&Packet::udp(from, &source.to_string()));
        assert!(matches!(outcome.verdict, weir_l4::Verdict::Local | weir_l4::Verdict::Drop(_)), "{from}");
    }
    assert_eq!(destination.to_string(), names(4).backend);
}
