//! What a new configuration does to connections that stand.

use weir_l4::{Drain, OnDown};
use weir_l7::{Cause, ListenerRules};

use crate::world::{Plan, World};

#[test]
fn a_drained_backend_finishes_its_sessions_and_gets_no_new_ones() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    assert_eq!(world.backend_of(upstream), 10);
    world.adopt(Plan { drained: vec![0], ..Plan::default() });
    world.advance(100_000);
    world.arrives(client, b"still");
    assert_eq!(world.sent(upstream), b"still");
    for _ in 0..5 {
        let (_, upstream) = world.session();
        assert_eq!(world.backend_of(upstream), 11);
    }
}

#[test]
fn a_drained_listener_keeps_its_sessions_until_it_is_cut() {
    let mut world = World::new(Plan::default());
    let (client, upstream) = world.session();
    world.adopt(Plan { drain: Drain::Yes, ..Plan::default() });
    world.advance(10_000);
    world.arrives(client, b"still");
    assert_eq!(world.sent(upstream), b"still");
    world.adopt(Plan { drain: Drain::Cut, ..Plan::default() });
    assert!(world.is_reset(client) && world.is_reset(upstream));
    let late = world.client();
    assert!(world.is_reset(late), "its handshake had begun before");
}

#[test]
fn a_backend_that_goes_down_resets_its_sessions_or_keeps_them() {
    for on_down in [OnDown::Reset, OnDown::Keep] {
        let mut world = World::new(Plan { on_down, sessions: 3_000, ..Plan::default() });
        let sessions: Vec<_> = (0..2_000).map(|_| world.session()).collect();
        world.adopt(Plan { on_down, down: vec![0], ..Plan::default() });
        for (client, upstream) in sessions {
            let expected = on_down == OnDown::Reset && world.backend_of(upstream) == 10;
            assert_eq!(world.is_reset(client), expected);
            assert_eq!(world.is_reset(upstream), expected);
        }
        assert_eq!(world.books.aborted(Cause::Aborted), if on_down == OnDown::Reset { 2_000 } else { 0 });
        assert_eq!(world.proxy.next_deadline(world.now).map(|due| due > world.now), Some(true));
    }
}

#[test]
fn a_connect_to_a_backend_that_goes_down_moves() {
    let mut world = World::new(Plan::default());
    let client = world.client();
    let first = world.syn();
    let down = vec![world.backend_of(first) - 10];
    world.adopt(Plan { down, ..Plan::default() });
    let second = world.syn();
    assert_ne!(world.backend_of(first), world.backend_of(second));
    world.answer(second);
    assert!(!world.is_reset(client));
}

#[test]
fn sessions_keep_the_timeouts_that_they_began_with() {
    let idle =
        |idle_ms| Plan { rules: ListenerRules { idle_ms, ..ListenerRules::default() }, ..Plan::default() };
    let mut world = World::new(idle(100_000));
    let (old, _) = world.session();
    world.adopt(idle(1_000));
    let (new, _) = world.session();
    world.advance(2_000);
    assert!(world.is_reset(new) && !world.is_reset(old));
    world.advance(100_000);
    assert!(world.is_reset(old));
}

#[test]
fn a_raised_limit_lets_those_in_who_wait() {
    let plan = |limit| Plan {
        backends: 1,
        backend_limit: limit,
        rules: ListenerRules { queue: 10, queue_ms: 2_000, ..ListenerRules::default() },
        ..Plan::default()
    };
    let mut world = World::new(plan(1));
    world.session();
    for _ in 0..4 {
        world.client();
    }
    assert_eq!(world.books.queued(), 4);
    world.adopt(plan(3));
    assert_eq!(world.books.queued(), 2);
    world.adopt(plan(0));
    assert_eq!((world.books.queued(), world.fake.upstreams().len()), (0, 5));
}

#[test]
fn a_backend_index_that_means_something_else_ends_its_sessions_at_once() {
    let mut world = World::new(Plan::default());
    let (client, _) = world.session();
    // the same index, another address
    let (services, rules) = Plan { is_v6: true, ..Plan::default() }.build();
    world.proxy.adopt(services, rules, &mut world.fake, &mut world.books);
    assert!(world.is_reset(client));
    world.is_clean();
}
