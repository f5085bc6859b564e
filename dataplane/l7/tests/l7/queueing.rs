//! Backends at their limits: who waits, how long, and in which order.

use weir_l7::{Cause, Key, ListenerCount, ListenerRules, ToLedger, ToWorker};
use weir_tcp::Ended;

use crate::world::{Plan, World};

fn plan(backends: u32, limit: u32, queue: u32) -> Plan {
    let rules = ListenerRules { queue, queue_ms: 2_000, ..ListenerRules::default() };
    Plan { backends, backend_limit: limit, rules, ..Plan::default() }
}

#[test]
fn who_waits_is_served_in_the_order_of_arrival() {
    let mut world = World::new(plan(1, 2, 10));
    let sessions: Vec<_> = (0..2).map(|_| world.session()).collect();
    let waiting: Vec<usize> = (0..3).map(|_| world.client()).collect();
    assert_eq!((world.books.queued(), world.fake.upstreams().len()), (3, 2));
    world.arrives(waiting[0], b"first");
    world.dies(sessions[0].0, Ended::Reset);
    assert_eq!((world.books.queued(), world.fake.upstreams().len()), (2, 3));
    world.answer(world.syn());
    assert_eq!(world.sent(world.syn()), b"first");
    // one in the middle of the queue leaves
    world.dies(waiting[1], Ended::Reset);
    assert_eq!(world.books.queued(), 1);
    world.arrives(waiting[2], b"third");
    world.dies(sessions[1].1, Ended::Reset);
    world.answer(world.syn());
    assert_eq!(world.sent(world.syn()), b"third");
    assert_eq!(world.books.queued(), 0);
}

#[test]
fn the_queue_is_bounded() {
    let mut world = World::new(plan(2, 1, 3));
    for _ in 0..2 {
        world.session();
    }
    let clients: Vec<usize> = (0..5).map(|_| world.client()).collect();
    let refused: Vec<bool> = clients.iter().map(|client| world.is_reset(*client)).collect();
    assert_eq!(refused, [false, false, false, true, true]);
    assert_eq!(world.count(ListenerCount::RefusedLimit), 2);
    assert_eq!(world.books.aborted(Cause::Limit), 2);
}

#[test]
fn who_waits_too_long_is_refused() {
    let mut world = World::new(plan(1, 1, 10));
    world.session();
    let client = world.client();
    world.advance(1_990);
    assert!(!world.is_reset(client));
    world.advance(20);
    assert!(world.is_reset(client));
    assert_eq!((world.count(ListenerCount::QueueTimeouts), world.books.queued()), (1, 0));
}

#[test]
fn without_a_queue_a_limit_refuses_but_the_first_connection_waits_for_the_ledger() {
    let mut world = World::new(plan(1, 1, 0));
    world.ledger_answers = false;
    let first = world.client();
    let second = world.client();
    assert!(!world.is_reset(first) && !world.is_reset(second));
    assert!(world.fake.upstreams().is_empty());
    world.ledger_answers = true;
    world.run();
    assert_eq!(world.fake.upstreams().len(), 1);
    assert!(!world.is_reset(first) && world.is_reset(second));
    let third = world.client();
    assert!(world.is_reset(third));
    assert_eq!(world.count(ListenerCount::RefusedLimit), 2);
}

#[test]
fn a_limit_of_one_backend_sends_the_flow_to_another() {
    let mut world = World::new(plan(3, 2, 10));
    for _ in 0..6 {
        world.session();
    }
    for index in 10..13 {
        assert_eq!(world.books.backend_active(index), 2);
    }
}

#[test]
fn a_connection_that_another_worker_gives_up_lets_ours_in() {
    let mut world = World::new(plan(1, 1, 10));
    let key = Key::Backend(10);
    world.ledger.receive(1, ToLedger::Request { key, wanted: 1 });
    assert!(matches!(world.ledger.poll(1), Some(ToWorker::Grant { count: 1, .. })));
    world.client();
    assert_eq!(world.ledger.poll(1), Some(ToWorker::Recall { key }));
    assert!(world.fake.upstreams().is_empty());
    world.ledger.receive(1, ToLedger::Return { key, count: 0 });
    world.run();
    assert!(world.fake.upstreams().is_empty());
    world.ledger.receive(1, ToLedger::Return { key, count: 1 });
    world.run();
    let Some(message) = world.ledger.poll(0) else {
        assert_eq!(world.fake.upstreams().len(), 1);
        return;
    };
    world.proxy.receive(message, &mut world.fake, &mut world.around, &mut world.books, world.now);
    assert_eq!(world.fake.upstreams().len(), 1);
}

#[test]
fn a_listeners_limit_refuses_and_frees() {
    let mut world = World::new(Plan { listener_limit: 2, ..Plan::default() });
    let sessions: Vec<_> = (0..2).map(|_| world.session()).collect();
    let third = world.client();
    assert!(world.is_reset(third));
    assert_eq!(world.count(ListenerCount::RefusedLimit), 1);
    world.dies(sessions[0].0, Ended::Reset);
    let (fourth, _) = world.session();
    assert!(!world.is_reset(fourth));
    assert_eq!(world.proxy.used(Key::Listener(2)), 2);
}

#[test]
fn who_waits_for_the_ledger_can_leave_or_run_out_of_time() {
    let mut world = World::new(Plan { listener_limit: 5, ..Plan::default() });
    world.ledger_answers = false;
    let leaver = world.client();
    let waiter = world.client();
    world.dies(leaver, Ended::Reset);
    assert_eq!(world.proxy.live(), 1);
    world.advance(10_010);
    assert!(world.is_reset(waiter));
    world.is_clean();
}

/// A place that becomes free in the same round as a client arrives is not the newcomer's.
#[test]
fn nobody_overtakes() {
    let mut world = World::new(plan(1, 1, 10));
    world.session();
    let waiting = world.client();
    world.arrives(waiting, b"waiting");
    let (services, rules) = plan(1, 0, 10).build();
    world.proxy.adopt(services, rules, &mut world.fake, &mut world.books);
    let newcomer = world.client();
    world.arrives(newcomer, b"newcomer");
    let [_, second, third] = world.fake.upstreams()[..] else { panic!("both go") };
    world.answer(second);
    world.answer(third);
    assert_eq!((world.sent(second), world.sent(third)), (b"waiting".as_slice(), b"newcomer".as_slice()));
    assert_eq!((world.books.queued(), world.proxy.pending()), (0, 0));
}
