//! Upgrades and CONNECT.

use weir_http::cause::Cause;
use weir_l7::http::event::{HttpCount, HttpGauge};

use super::{plan, with};
use crate::world::World;

const UPGRADE: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";

#[test]
fn an_upgrade_becomes_a_tunnel_both_ways() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(UPGRADE);
    let sent = world.got(upstream);
    assert!(sent.contains("Upgrade: websocket\r\n") && sent.contains("Connection: upgrade\r\n"), "{sent}");
    world.says(upstream, &(AGREED.to_owned() + "\x01first"));
    let got = world.got(client);
    assert!(got.starts_with("HTTP/1.1 101 ") && got.ends_with("\r\n\r\n\x01first"), "{got}");
    assert_eq!(got.matches("HTTP/1.1").count(), 1, "{got}");
    world.says(client, "GET / not a request");
    assert_eq!(world.got(upstream), "GET / not a request");
    assert_eq!((world.books.http(HttpCount::Tunnels), world.books.gauge(HttpGauge::Tunnels)), (1, 1));
    world.finishes(client);
    assert!(world.fake.connections[upstream].is_shut);
    world.says(upstream, "last");
    world.finishes(upstream);
    assert!(world.got(client).ends_with("last"));
    assert!(!world.is_reset(client) && !world.is_reset(upstream));
    assert_eq!(world.last_cause(), None);
    world.ends();
}

#[test]
fn a_refused_upgrade_is_a_response_like_others() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(UPGRADE);
    world.says(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    assert!(world.got(client).ends_with("no"));
    assert_eq!(world.books.gauge(HttpGauge::Tunnels), 0);
    world.says(client, &super::get("/next"));
    assert!(world.got(upstream).contains("GET /next ") || world.fake.upstreams().len() > 1);
    world.ends();
    let mut world = World::new(with(|listener| listener.upgrade_allowed = false));
    let client = world.client();
    world.says(client, UPGRADE);
    assert!(world.got(client).starts_with("HTTP/1.1 400 "));
    assert_eq!(world.last_cause(), Some(Cause::UpgradeRefused));
    world.ends();
}

#[test]
fn a_silent_tunnel_ends_and_a_busy_one_does_not() {
    let mut world = World::new(with(|listener| listener.times.tunnel_ms = 10_000));
    let (client, upstream) = world.exchange(UPGRADE);
    world.says(upstream, AGREED);
    world.got(client);
    world.got(upstream);
    for _ in 0..5 {
        world.advance(9_000);
        world.says(client, "ping");
        assert_eq!(world.got(upstream), "ping");
    }
    world.advance(10_001);
    assert!(world.is_reset(client) && world.is_reset(upstream));
    assert_eq!(world.last_cause(), Some(Cause::TunnelTimeout));
    world.ends();
}

#[test]
fn connect_is_a_tunnel_where_it_is_allowed() {
    let mut world = World::new(with(|listener| listener.connect_allowed = true));
    let (client, upstream) = world.exchange("CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n");
    assert!(world.got(upstream).starts_with("CONNECT b.example:443 HTTP/1.1\r\n"));
    world.says(upstream, "HTTP/1.1 200 Connected\r\n\r\n");
    assert!(world.got(client).starts_with("HTTP/1.1 200 Connected\r\n"));
    world.says(client, "\x16\x03\x01");
    assert_eq!(world.got(upstream), "\x16\x03\x01");
    world.ends();
}
