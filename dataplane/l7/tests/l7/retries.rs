//! A backend that doesn't take a connection: another one may.

use weir_l7::{BackendCount, Cause, ListenerCount, ListenerRules};
use weir_tcp::Ended;

use crate::world::{Plan, World, end};

fn plan(backends: u32, retries: u8) -> Plan {
    Plan { backends, rules: ListenerRules { retries, ..ListenerRules::default() }, ..Plan::default() }
}

#[test]
fn a_refused_connect_goes_to_another_backend() {
    let mut world = World::new(plan(3, 2));
    let client = world.client();
    world.arrives(client, b"request");
    let mut backends = Vec::new();
    for ended in [Ended::Refused, Ended::Unreachable] {
        let upstream = world.syn();
        backends.push(world.backend_of(upstream));
        world.dies(upstream, ended);
    }
    let upstream = world.syn();
    backends.push(world.backend_of(upstream));
    world.answer(upstream);
    assert_eq!(world.sent(upstream), b"request");
    assert_eq!(world.books.backend(backends[0], BackendCount::ConnectFailures), 1);
    assert_eq!(world.books.backend(backends[1], BackendCount::ConnectFailures), 1);
    assert_eq!(world.books.backend(backends[2], BackendCount::Retries), 1);
    assert_eq!(world.books.backend(backends[2], BackendCount::Connects), 1);
    backends.sort_unstable();
    assert_eq!(backends, [10, 11, 12]);
    assert!(!world.is_reset(client));
}

#[test]
fn a_silent_backend_is_given_up_after_the_connect_timeout() {
    let mut world = World::new(plan(2, 1));
    let client = world.client();
    let first = world.syn();
    world.advance(4_990);
    assert_eq!(world.syn(), first);
    world.advance(20);
    let second = world.syn();
    assert_ne!(world.backend_of(first), world.backend_of(second));
    assert!(world.fake.connections[first].is_released);
    assert_eq!(world.books.backend(world.backend_of(first), BackendCount::ConnectTimeouts), 1);
    // its own full time
    world.advance(4_980);
    assert!(!world.is_reset(client));
    world.advance(30);
    assert!(world.is_reset(client));
    assert_eq!(world.count(ListenerCount::NoBackend), 1);
    world.is_clean();
}

#[test]
fn retries_are_bounded_and_never_go_to_the_same_backend() {
    for (backends, retries, attempts) in [(5, 0, 1), (5, 2, 3), (2, 10, 2), (20, 10, 11)] {
        let mut world = World::new(plan(backends, retries));
        let client = world.client();
        for _ in 0..20 {
            if !world.is_reset(client) {
                world.dies(world.syn(), Ended::Refused);
            }
        }
        let upstreams = world.fake.upstreams();
        let mut tried: Vec<u32> = upstreams.iter().map(|at| world.backend_of(*at)).collect();
        tried.sort_unstable();
        tried.dedup();
        assert_eq!((upstreams.len(), tried.len()), (attempts, attempts), "{backends} {retries}");
        assert!(world.is_reset(client));
        assert_eq!(world.books.aborted(Cause::Aborted), 1);
        world.is_clean();
    }
}

#[test]
fn a_connection_that_was_established_is_not_retried() {
    let mut world = World::new(plan(2, 1));
    let (client, upstream) = world.session();
    world.dies(upstream, Ended::Reset);
    assert!(world.is_reset(client));
    assert_eq!(world.fake.upstreams().len(), 1);
}

#[test]
fn a_pool_without_backends_refuses() {
    let mut world = World::new(Plan { backends: 2, down: vec![0, 1], ..Plan::default() });
    let client = world.client();
    assert!(world.is_reset(client));
    assert_eq!(world.count(ListenerCount::NoBackend), 1);
    world.is_clean();
}

#[test]
fn exhausted_source_ports_are_counted_and_another_backend_is_tried() {
    let mut world = World::new(Plan { backends: 2, snat_ports: (2_000, 2_001), ..plan(2, 1) });
    // someone else, a fullnat flow, has one of the two ports towards the first backend
    world.around.taken.push((end("198.18.0.1", 2_001), end("198.18.1.1", 80)));
    let backends: Vec<u32> = (0..3)
        .map(|_| {
            let (_, upstream) = world.session();
            world.backend_of(upstream)
        })
        .collect();
    assert_eq!(backends, [10, 11, 11]);
    assert_eq!(world.books.snat_exhausted(), 1);
    let locals = world.fake.connections.iter().map(|connection| (connection.local, connection.remote));
    let mut locals: Vec<_> = locals.map(|(l, r)| (l.address, l.port, r.address, r.port)).collect();
    locals.sort_unstable();
    locals.dedup();
    assert_eq!(locals.len(), 6, "each pair of ends is unique");
    // now nobody has one
    let client = world.client();
    assert!(world.is_reset(client));
    assert_eq!((world.books.snat_exhausted(), world.count(ListenerCount::NoBackend)), (3, 1));
}

#[test]
fn a_full_engine_refuses_without_trying_everybody() {
    let mut world = World::new(plan(5, 4));
    world.fake.capacity = Some(1);
    let client = world.client();
    assert!(world.is_reset(client));
    assert_eq!(world.books.aborted(Cause::Memory), 1);
    assert_eq!(world.count(ListenerCount::NoBackend), 0);
    world.is_clean();
}

#[test]
fn a_v4_client_reaches_a_v6_backend() {
    let mut world = World::new(Plan { is_v6: true, ..Plan::default() });
    let (client, upstream) = world.session();
    assert_eq!(world.fake.connections[upstream].local.address, end("2001:db8::1", 0).address);
    world.arrives(client, b"x");
    assert_eq!(world.sent(upstream), b"x");
}
