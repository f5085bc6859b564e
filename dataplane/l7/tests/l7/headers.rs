//! PROXY headers: who must send one, and who gets one.

use weir_l7::proxy_protocol::{Ends, Expects, Version, WRITTEN_MAX, write};
use weir_l7::{Cause, ListenerCount, ListenerRules};
use weir_net::Prefix;

use crate::world::{Plan, VIP, World, end};

fn expecting(expects: Expects, trusted: &str) -> Plan {
    let trusted: Vec<Prefix> = trusted.split(' ').map(|prefix| prefix.parse().unwrap()).collect();
    let rules = ListenerRules {
        accept_proxy: Some(expects),
        trusted: trusted.into_boxed_slice(),
        ..ListenerRules::default()
    };
    Plan { rules, send_proxy: Some(Version::V2), ..Plan::default() }
}

fn header(version: Version, source: &str) -> Vec<u8> {
    let mut out = [0; WRITTEN_MAX];
    let ends = Ends { source: end(source, 4_711), destination: end("198.18.200.1", 443) };
    let len = write(version, Some(ends), &mut out);
    out[..len].to_vec()
}

#[test]
fn a_header_is_taken_out_and_told_on_in_whatever_pieces_it_comes() {
    let told = header(Version::V2, "198.18.77.1");
    for version in [Version::V1, Version::V2] {
        let stream = [header(version, "198.18.77.1").as_slice(), b"hello"].concat();
        for piece in 1..=stream.len() {
            let mut world = World::new(expecting(Expects::Any, "198.18.9.0/24"));
            let client = world.client();
            stream.chunks(piece).for_each(|piece| world.arrives(client, piece));
            let upstream = world.syn();
            world.answer(upstream);
            assert_eq!(world.sent(upstream), [told.as_slice(), b"hello"].concat(), "pieces of {piece}");
            assert_eq!(world.count(ListenerCount::BytesIn), 5);
        }
    }
}

#[test]
fn without_a_header_the_clients_own_ends_are_told() {
    let mut world = World::new(Plan { send_proxy: Some(Version::V1), ..Plan::default() });
    let (_, upstream) = world.session();
    assert_eq!(world.sent(upstream), format!("PROXY TCP4 198.18.9.9 {VIP} 1 80\r\n").as_bytes());
    // LOCAL: the proxy before us speaks for itself
    let mut world = World::new(expecting(Expects::V2, "198.18.9.0/24"));
    let client = world.client();
    world.arrives(client, b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    world.answer(world.syn());
    let mut out = [0; WRITTEN_MAX];
    let ends = Ends { source: end("198.18.9.9", 1), destination: end(VIP, 80) };
    let len = write(Version::V2, Some(ends), &mut out);
    assert_eq!(world.sent(world.syn()), &out[..len]);
}

#[test]
fn an_untrusted_client_is_refused_at_once() {
    let mut world = World::new(expecting(Expects::Any, "198.18.8.0/24 2001:db8::/32"));
    let client = world.client();
    assert!(world.is_reset(client));
    assert_eq!(world.count(ListenerCount::ProxyHeaderRefused), 1);
    assert!(world.fake.upstreams().is_empty());
    world.is_clean();
}

#[test]
fn what_is_no_header_is_refused() {
    for (expects, bytes) in [
        (Expects::Any, b"GET / HTTP/1.1\r\n".to_vec()),
        (Expects::V2, header(Version::V1, "198.18.77.1")),
        (Expects::V1, header(Version::V2, "198.18.77.1")),
    ] {
        let mut world = World::new(expecting(expects, "198.18.9.0/24"));
        let client = world.client();
        world.arrives(client, &bytes);
        assert!(world.is_reset(client));
        assert_eq!(world.count(ListenerCount::ProxyHeaderRefused), 1);
        world.is_clean();
    }
    // the stream ends within it
    let mut world = World::new(expecting(Expects::Any, "198.18.9.0/24"));
    let client = world.client();
    world.arrives(client, b"PROXY TCP4");
    world.finishes(client);
    assert!(world.is_reset(client));
    world.is_clean();
}

#[test]
fn a_header_that_does_not_come_ends_the_wait() {
    let mut world = World::new(expecting(Expects::Any, "198.18.9.0/24"));
    let client = world.client();
    world.arrives(client, b"PROXY ");
    world.advance(9_990);
    assert!(!world.is_reset(client));
    world.advance(20);
    assert!(world.is_reset(client));
    assert_eq!(world.count(ListenerCount::HandshakeTimeouts), 1);
    assert_eq!(world.books.aborted(Cause::Timeout), 1);
    world.is_clean();
}

#[test]
fn without_a_buffer_for_the_header_nothing_is_sent() {
    let mut world = World::new(Plan { send_proxy: Some(Version::V1), ..Plan::default() });
    world.around.has_no_buffers = true;
    let (client, upstream) = world.session();
    assert!(world.is_reset(client) && world.is_reset(upstream));
    assert_eq!(world.books.aborted(Cause::Memory), 2);
    world.is_clean();
}
