//! What do clients and backends notice while a listener, or a backend, is drained?

use weir_l4::Drain;

use super::{get, ok, plan};
use crate::world::{Plan, World};

fn drained() -> Plan {
    Plan { drain: Drain::Yes, ..plan() }
}

#[test]
fn idle_clients_of_a_drained_listener_end_at_once_and_the_others_after_their_response() {
    let mut world = World::new(plan());
    let (idle, first) = world.exchange(&get("/"));
    // a connection whose request is not acknowledged is not kept
    assert!(world.got(first).starts_with("GET / "));
    world.says(first, &ok("1"));
    let half = world.client();
    world.says(half, "GET /half HTTP/1.1\r\n");
    let (busy, upstream) = world.exchange(&get("/busy"));
    world.adopt(drained());
    assert!(world.is_shut(idle), "it has asked and waits for nothing");
    assert!(!world.is_shut(busy) && !world.is_shut(half));
    world.says(upstream, &ok("2"));
    let answer = world.got(busy);
    assert!(answer.contains("\r\nConnection: close\r\n") && answer.ends_with('2'), "{answer}");
    assert!(world.is_shut(busy));
    world.says(half, "Host: a\r\n\r\n");
    // its turn is the first backend's
    world.says(first, &ok("3"));
    let answer = world.got(half);
    assert!(answer.contains("\r\nConnection: close\r\n") && answer.ends_with('3'), "{answer}");
    assert!(world.is_shut(half));
    world.ends();
}

#[test]
fn who_connected_just_before_the_drain_may_ask_once() {
    for asks in [false, true] {
        let mut world = World::new(plan());
        let fresh = world.client();
        world.adopt(drained());
        world.advance(900);
        assert!(!world.is_shut(fresh));
        if asks {
            world.says(fresh, &get("/"));
            let upstream = world.syn();
            world.answer(upstream);
            world.says(upstream, &ok("1"));
            assert!(world.got(fresh).contains("\r\nConnection: close\r\n"));
        } else {
            world.advance(200);
        }
        assert!(world.is_shut(fresh));
        // and one whose handshake ends only now
        let late = world.client();
        world.says(late, &get("/"));
        let upstream = world.syn();
        world.answer(upstream);
        world.says(upstream, &ok("2"));
        assert!(world.got(late).contains("\r\nConnection: close\r\n"));
        world.ends();
    }
}

#[test]
fn a_response_that_has_begun_ends_whole_before_its_connection() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab");
    world.adopt(drained());
    assert!(!world.is_shut(client));
    world.says(upstream, "cd");
    assert!(world.got(client).ends_with("abcd"));
    assert!(world.is_shut(client));
    world.ends();
}

#[test]
fn a_cut_ends_exchanges() {
    let mut world = World::new(plan());
    let (busy, upstream) = world.exchange(&get("/"));
    world.adopt(Plan { drain: Drain::Cut, ..plan() });
    assert!(world.is_reset(busy) && world.is_reset(upstream));
    world.ends();
}

#[test]
fn idle_connections_to_a_drained_backend_end_at_once_and_used_ones_after_their_response() {
    let one = |drained: Vec<u32>| Plan { backends: 2, drained, ..plan() };
    let mut world = World::new(one(vec![1]));
    let (_, idle) = world.exchange(&get("/"));
    let (busy, used) = world.exchange(&get("/"));
    world.says(idle, &ok("1"));
    world.adopt(one(vec![0]));
    assert!(world.is_shut(idle), "nobody waits for it");
    assert!(!world.is_shut(used));
    world.says(used, &ok("2"));
    let answer = world.got(busy);
    assert!(answer.ends_with('2') && !answer.contains("close"), "its client notices nothing: {answer}");
    assert!(world.is_shut(used), "it is not kept");
    world.says(busy, &get("/"));
    assert_eq!(world.backend_of(world.syn()), 11);
    world.ends();
}
