//! Data, half-close, reset and silence: what happens on one side happens on the other.

use weir_l7::{BackendCount, Cause, ListenerCount};
use weir_tcp::{Ended, Events};

use crate::world::{Plan, VIP, World, end};

#[test]
fn bytes_go_both_ways_and_are_counted() {
    let mut world = World::new(Plan::default());
    let client = world.client();
    // what comes before the backend has answered waits in the engine
    world.arrives(client, b"GET ");
    let upstream = world.syn();
    assert!(world.sent(upstream).is_empty());
    world.answer(upstream);
    world.arrives(client, b"/");
    world.arrives(upstream, b"200 OK");
    assert_eq!(world.sent(upstream), b"GET /");
    assert_eq!(world.sent(client), b"200 OK");
    assert_eq!((world.count(ListenerCount::BytesIn), world.count(ListenerCount::BytesOut)), (5, 6));
    let backend = world.backend_of(upstream);
    assert_eq!(world.books.backend(backend, BackendCount::BytesIn), 5);
    assert_eq!(world.books.backend(backend, BackendCount::BytesOut), 6);
    assert_eq!((world.books.active(), world.books.backend_active(backend)), (1, 1));
    // the backend without a port of its own is asked on the client's
    assert_eq!(world.fake.connections[upstream].remote, end("198.18.1.1", 80));
    assert_eq!(world.fake.connections[upstream].local.address, end("198.18.0.1", 0).address);
}

#[test]
fn each_side_closes_when_the_other_has() {
    for client_first in [true, false] {
        let mut world = World::new(Plan::default());
        let (client, upstream) = world.session();
        let (first, second) = if client_first { (client, upstream) } else { (upstream, client) };
        world.arrives(first, b"last words");
        world.finishes(first);
        assert_eq!(world.sent(second), b"last words");
        assert!(world.fake.connections[second].is_shut && !world.fake.connections[first].is_shut);
        // the other direction goes on
        world.arrives(second, b"answer");
        assert_eq!(world.sent(first), b"answer");
        world.finishes(second);
        assert!(world.fake.connections[first].is_shut);
        world.fake.close_if_done(first, true);
        world.run();
        world.is_clean();
        assert!(!world.is_reset(first) && !world.is_reset(second));
    }
}

#[test]
fn a_client_that_has_finished_before_the_backend_answers_is_served() {
    let mut world = World::new(Plan::default());
    let client = world.client();
    world.arrives(client, b"request");
    world.finishes(client);
    let upstream = world.syn();
    world.answer(upstream);
    assert_eq!(world.sent(upstream), b"request");
    assert!(world.fake.connections[upstream].is_shut);
    world.arrives(upstream, b"answer");
    world.finishes(upstream);
    assert_eq!(world.sent(client), b"answer");
    world.fake.close_if_done(client, true);
    world.run();
    world.is_clean();
}

#[test]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    world.dies(client, Ended::Reset);
    assert!(world.is_reset(upstream));
    assert_eq!(world.count(ListenerCount::ClientResets), 1);
    world.is_clean();
    let (client, upstream) = world.session();
    let backend = world.backend_of(upstream);
    world.dies(upstream, Ended::Reset);
    assert!(world.is_reset(client));
    assert_eq!(world.books.backend(backend, BackendCount::ServerResets), 1);
    world.is_clean();
    // lost, not reset: the other side is told all the same
    let (client, upstream) = world.session();
    world.dies(upstream, Ended::TimedOut);
    assert!(world.is_reset(client));
    assert_eq!(world.books.aborted(Cause::Aborted), 3);
    world.is_clean();
}

#[test]
fn a_client_that_leaves_early_takes_its_connect_along() {
    let mut world = World::new(Plan::default());
    let client = world.client();
    world.dies(client, Ended::Reset);
    assert!(world.fake.connections[world.syn()].is_released);
    assert_eq!(world.fake.upstreams().len(), 1);
    world.is_clean();
}

#[test]
fn a_reader_that_does_not_read_stops_the_writer() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    world.fake.connections[client].limit = 1_000;
    for _ in 0..20 {
        world.arrives(upstream, &[7; 400]);
    }
    // one piece may begin below the limit; the rest stays where its window closes
    assert_eq!(world.sent(client).len(), 1_200);
    assert_eq!(world.fake.connections[upstream].inbox.len(), 17);
    world.finishes(upstream);
    assert!(!world.fake.connections[client].is_shut, "the FIN waits behind the data");
    while !world.reads(client, 300).is_empty() {}
    assert_eq!(world.sent(client).len(), 8_000);
    assert!(world.fake.connections[client].is_shut);
    assert_eq!(world.sent(upstream).len(), 0);
}

#[test]
fn the_last_bytes_of_a_closed_backend_reach_a_slow_client() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    world.fake.connections[client].limit = 100;
    world.finishes(client);
    for _ in 0..5 {
        world.arrives(upstream, &[1; 100]);
    }
    // both FINs are there: the engine has closed the upstream connection, its data is not read
    world.finishes(upstream);
    assert_eq!(world.fake.connections[upstream].ended, Ended::Finished);
    assert!(!world.fake.connections[upstream].is_released);
    while !world.reads(client, 100).is_empty() {}
    assert_eq!(world.sent(client).len(), 500);
    assert!(world.fake.connections[upstream].is_released);
    world.fake.close_if_done(client, true);
    world.run();
    world.is_clean();
}

#[test]
fn silence_ends_a_connection_but_a_byte_keeps_it() {
    let mut world = World::new(Plan::default());
    world.plan.rules.idle_ms = 10_000;
    let plan = world.plan.clone();
    world.adopt(plan);
    let (client, upstream) = world.session();
    for _ in 0..5 {
        world.advance(9_000);
        world.arrives(client, b"x");
        world.reads(upstream, 1);
    }
    world.advance(9_999);
    assert_eq!(world.proxy.live(), 1);
    world.advance(10);
    assert_eq!(world.count(ListenerCount::IdleTimeouts), 1);
    assert!(world.is_reset(client) && world.is_reset(upstream));
    assert_eq!(world.books.aborted(Cause::Timeout), 2);
    world.is_clean();
}

#[test]
fn a_half_closed_connection_has_less_time() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    world.advance(1_000_000);
    world.finishes(client);
    world.advance(50_000);
    world.arrives(upstream, b"still here");
    world.reads(client, 100);
    world.advance(59_000);
    assert_eq!(world.proxy.live(), 1);
    world.advance(1_010);
    assert_eq!(world.count(ListenerCount::HalfCloseTimeouts), 1);
    assert!(world.is_reset(client));
    world.is_clean();
}

/// What waits in the client's send queue is not silence as long as it shrinks.
#[test]
fn a_slow_reader_is_not_silent() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    world.arrives(upstream, &[9; 10_000]);
    world.finishes(upstream);
    for _ in 0..30 {
        world.advance(30_000);
        assert_eq!(world.reads(client, 10).len(), 10);
        assert_eq!(world.proxy.live(), 1);
    }
    world.advance(120_000);
    assert_eq!(world.count(ListenerCount::HalfCloseTimeouts), 1);
    world.is_clean();
}

#[test]
fn news_of_a_session_that_is_gone_touch_nobody() {
    let mut world = World::new(Plan::default());
    let (client, _) = world.session();
    world.dies(client, Ended::Reset);
    let (next, upstream) = world.session();
    // a token that now means another session
    world.fake.connections[client].is_released = false;
    world.fake.tell(client, Events::READABLE | Events::FINISHED | Events::CLOSED);
    world.run();
    world.fake.connections[client].is_released = true;
    assert_eq!(world.proxy.live(), 1);
    world.arrives(next, b"fine");
    assert_eq!(world.sent(upstream), b"fine");
    assert_eq!(world.fake.connections[next].local, end(VIP, 80));
}
