//! How does a packet look when it leaves, in every mode?

use std::net::IpAddr;

use weir_l4::{Mode, Parts, Verdict};

use crate::packets::{ACK, Ip, LINK, Packet, RST, SYN, TCP, UDP, framed, transport_checksum};
use crate::world::{WEIR_V4, WEIR_V6, World, address, names, single};

/// DSCP AF41 with ECN CE: all eight bits matter.
const TOS: u8 = 0x8b;

#[derive(Clone, Copy, Debug)]
struct Case {
    mode: Mode,
    variant: u8,
    protocol: u8,
    inner: u8,
    outer: u8,
}

fn cases() -> Vec<Case> {
    let modes =
        [(Mode::Dsr, 0), (Mode::Ipip, 0), (Mode::Gue, 0), (Mode::Gue, 1), (Mode::Nat, 0), (Mode::Fullnat, 0)];
    let mut cases = Vec::new();
    for (mode, variant) in modes {
        for protocol in [TCP, UDP] {
            for inner in [4, 6] {
                for outer in [4, 6] {
                    if inner == outer || matches!(mode, Mode::Ipip | Mode::Gue) {
                        cases.push(Case { mode, variant, protocol, inner, outer });
                    }
                }
            }
        }
    }
    assert_eq!(cases.len(), 4 * 3 + 8 * 3);
    cases
}

impl Case {
    fn parts(&self) -> Parts {
        let mut parts = single(self.mode, self.protocol, names(self.inner).vip, names(self.outer).backend);
        parts.listeners[0].gue_variant = self.variant;
        parts
    }

    fn request(&self) -> Packet {
        let names = names(self.inner);
        Packet { tos: TOS, ttl: 9, ..Packet::new(self.protocol, names.client, names.vip) }
    }

    /// The datagram that must leave for `request`; what is Weir's to choose is taken from `out`.
    fn expected(&self, request: &Packet, out: &[u8]) -> Vec<u8> {
        let mut inner = Packet { ttl: request.ttl - 1, ..request.clone() };
        let backend = names(self.outer).backend.parse().unwrap();
        match self.mode {
            Mode::Dsr => inner.datagram(),
            Mode::Nat => {
                inner.dst = backend;
                inner.datagram()
            }
            Mode::Fullnat => {
                let at = if self.inner == 4 { 20 } else { 40 };
                let port = u16::from_be_bytes([out[at], out[at + 1]]);
                assert!((20_000..=29_999).contains(&port), "{self:?}: source port {port}");
                inner.src = (address(names(self.inner).snat), port).into();
                inner.dst = backend;
                inner.datagram()
            }
            Mode::Ipip => self.tunnelled(if self.inner == 4 { 4 } else { 41 }, &inner.datagram(), out),
            Mode::Gue => {
                let at = if self.outer == 4 { 20 } else { 40 };
                let source = u16::from_be_bytes([out[at], out[at + 1]]);
                assert!(source >= 0xc000, "{self:?}: RFC 6335 dynamic port, not {source}");
                let mut udp = source.to_be_bytes().to_vec();
                udp.extend(6080u16.to_be_bytes());
                let header: &[u8] = match (self.variant, self.inner) {
                    (1, _) => &[],
                    (_, 4) => &[0, 4, 0, 0],
                    (_, _) => &[0, 41, 0, 0],
                };
                let payload = [header, &inner.datagram()].concat();
                udp.extend((payload.len() as u16 + 8).to_be_bytes());
                udp.extend([0, 0]);
                udp.extend(payload);
                if self.outer == 6 {
                    let sum = transport_checksum(address(WEIR_V6), backend.ip(), UDP, &udp);
                    udp[6..8].copy_from_slice(&sum.to_be_bytes());
                }
                self.tunnelled(UDP, &udp, out)
            }
            Mode::Proxy => unreachable!("carries no packets"),
        }
    }

    fn tunnelled(&self, protocol: u8, payload: &[u8], out: &[u8]) -> Vec<u8> {
        let backend: std::net::SocketAddr = names(self.outer).backend.parse().unwrap();
        let mut outer = Ip { ttl: 64, tos: TOS, fragment: 0x4000, ..Ip::default() };
        let source: IpAddr = address(if self.outer == 4 { WEIR_V4 } else { WEIR_V6 });
        if self.outer == 4 {
            outer.identification = u16::from_be_bytes([out[4], out[5]]);
        } else {
            outer.label = u32::from_be_bytes([0, out[1] & 0x0f, out[2], out[3]]);
        }
        outer.packet(source, backend.ip(), protocol, payload)
    }
}

#[test]
fn requests_leave_byte_for_byte_as_the_mode_says() {
    for case in cases() {
        let mut world = World::new(case.parts(), 16);
        if case.protocol == TCP {
            world.packet(&Packet { payload: vec![], ..case.request().with(SYN) }).to_backend();
        }
        let request = case.request();
        let (delivery, out) = world.packet(&request).to_backend();
        assert_eq!(out, case.expected(&request, &out), "{case:?}");
        assert_eq!((delivery.listener, delivery.backend, delivery.fallback), (0, 0, false));
        assert_eq!(usize::from(delivery.bytes), request.datagram().len(), "{case:?}");
        assert_eq!(world.live(), 1, "{case:?}");
    }
}

#[test]
fn padding_and_vlan_tags_do_not_get_into_the_packet() {
    for case in cases() {
        let mut world = World::new(case.parts(), 16);
        world.packet(&case.request().with(SYN)).to_backend();
        let request = Packet { payload: b"x".to_vec(), ..case.request() };
        let mut frame = request.frame();
        frame.extend([0xee; 30]);
        for (at, tag) in [(usize::MAX, &[][..]), (12, &[0x81, 0, 0x20, 5][..])] {
            let mut frame = frame.clone();
            if at < frame.len() {
                frame.splice(at..at, tag.iter().copied());
            }
            let outcome = world.send(&frame);
            let (delivery, out) = outcome.to_backend();
            assert_eq!(out, case.expected(&request, &out), "{case:?}");
            if matches!(case.mode, Mode::Ipip | Mode::Gue) {
                assert_eq!(
                    outcome.frame.len(),
                    LINK + out.len(),
                    "{case:?}: no padding behind the inner packet"
                );
                assert_eq!(delivery.l3, 14);
                assert_eq!(
                    outcome.frame[12..14],
                    framed(&out)[12..14],
                    "{case:?}: the ether type is the outer's"
                );
            } else {
                assert_eq!(outcome.frame.len(), frame.len());
            }
        }
    }
}

#[test]
fn replies_leave_byte_for_byte_as_the_client_expects_them() {
    for case in cases().into_iter().filter(|case| case.mode.sees_replies()) {
        let mut world = World::new(case.parts(), 16);
        let (_, out) = world.packet(&case.request().with(SYN)).to_backend();
        let at = if case.inner == 4 { 20 } else { 40 };
        let (backend, source) = if case.mode == Mode::Nat {
            (names(case.inner).backend.to_owned(), names(case.inner).client.to_owned())
        } else {
            let port = u16::from_be_bytes([out[at], out[at + 1]]);
            let snat = std::net::SocketAddr::new(address(names(case.inner).snat), port);
            (names(case.inner).backend.to_owned(), snat.to_string())
        };
        for flags in [SYN | ACK, ACK] {
            let reply = Packet { flags, tos: TOS, ttl: 33, ..Packet::new(case.protocol, &backend, &source) };
            let mut frame = reply.frame();
            frame.extend([0; 9]);
            let (delivery, out) = world.send(&frame).to_client();
            let request = case.request();
            let expected = Packet { src: request.dst, dst: request.src, ttl: 32, ..reply };
            assert_eq!(out, expected.datagram(), "{case:?}");
            assert_eq!((delivery.listener, delivery.backend), (0, 0));
        }
    }
}

#[test]
fn an_absent_udp_checksum_stays_absent() {
    for case in cases().into_iter().filter(|case| case.protocol == UDP && case.inner == 4) {
        let mut world = World::new(case.parts(), 16);
        let request = Packet { checksum: false, ..case.request() };
        let (_, out) = world.packet(&request).to_backend();
        assert_eq!(out, case.expected(&request, &out), "{case:?}");
        if case.mode == Mode::Nat {
            let reply = Packet { checksum: false, ..Packet::udp(names(4).backend, names(4).client) };
            let (_, out) = world.packet(&reply).to_client();
            assert_eq!(out[26..28], [0, 0]);
        }
    }
}

#[test]
fn a_packet_that_may_be_fragmented_stays_so_in_its_tunnel() {
    let case = Case { mode: Mode::Ipip, variant: 0, protocol: UDP, inner: 4, outer: 4 };
    let mut world = World::new(case.parts(), 16);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let (_, out) = world.packet(&Packet { dont_fragment: false, ..case.request() }).to_backend();
        assert_eq!(out[6..8], [0, 0]);
        assert!(seen.insert([out[4], out[5]]), "RFC 6864: identifications of packets that may be cut differ");
    }
}

#[test]
fn a_flow_keeps_its_entropy_and_flows_differ() {
    for (variant, outer) in [(0, 4), (1, 6)] {
        let case = Case { mode: Mode::Gue, variant, protocol: UDP, inner: 4, outer };
        let mut world = World::new(case.parts(), 256);
        let at = if outer == 4 { 20 } else { 40 };
        let mut ports = std::collections::HashSet::new();
        for n in 0..100u16 {
            let mut request = case.request();
            request.src.set_port(1_024 + n);
            let (_, first) = world.packet(&request).to_backend();
            let (_, second) = world.packet(&request).to_backend();
            assert_eq!(first[at..at + 2], second[at..at + 2]);
            ports.insert([first[at], first[at + 1]]);
        }
        assert!(ports.len() > 90, "{} source ports for 100 flows", ports.len());
    }
}

#[test]
fn a_backend_without_a_port_keeps_the_clients() {
    let mut parts = single(Mode::Nat, TCP, names(4).vip, "198.18.1.1:0");
    parts.listeners[0].port_first = 1;
    parts.listeners[0].port_last = 9_999;
    let mut world = World::new(parts, 16);
    for port in [1, 80, 9_999] {
        let vip = format!("198.18.0.100:{port}");
        let (_, out) = world.packet(&Packet::tcp(names(4).client, &vip, SYN)).to_backend();
        assert_eq!(out[16..20], [198, 18, 1, 1]);
        assert_eq!(out[22..24], u16::to_be_bytes(port));
        let reply = Packet::tcp(&format!("198.18.1.1:{port}"), names(4).client, SYN | ACK);
        let (_, out) = world.packet(&reply).to_client();
        assert_eq!(out[12..16], [198, 18, 0, 100]);
        assert_eq!(out[20..22], u16::to_be_bytes(port));
    }
}

/// What a proxy listener's connections are, others know: this engine keeps nothing of them and forwards nothing.
#[test]
fn packets_of_a_proxy_listener_end_here() {
    for family in [4, 6] {
        let names = names(family);
        let mut world = World::new(single(Mode::Proxy, TCP, names.vip, names.backend), 4);
        for flags in [SYN, ACK, RST] {
            let outcome = world.packet(&Packet::tcp(names.client, names.vip, flags));
            assert_eq!(outcome.verdict, Verdict::Terminate(0));
        }
        assert_eq!((world.live(), world.ledger.created.len()), (0, 0));
    }
}

/// The worker's short way (compared with the long one packet by packet in all tests here) takes what is usual.
#[test]
fn settled_flows_go_the_short_way_in_every_mode() {
    for family in [4, 6] {
        for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
            let names = names(family);
            let mut world = World::new(single(mode, TCP, names.vip, names.backend), 4);
            for flags in [SYN, ACK, ACK, ACK | RST] {
                world.packet(&Packet::tcp(names.client, names.vip, flags)).to_backend();
            }
            assert_eq!(world.short, 1, "{mode:?} {family}");
        }
    }
}
