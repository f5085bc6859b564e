//! Nothing grows without end, and nothing is left behind.

use proptest::prelude::*;
use weir_l7::{Cause, ListenerCount, ListenerRules};
use weir_tcp::{Ended, Events};

use crate::world::{Plan, World};

#[test]
fn sessions_are_bounded_and_reused() {
    let mut world = World::new(Plan { sessions: 3, ..Plan::default() });
    let clients: Vec<_> = (0..3).map(|_| world.session().0).collect();
    let refused = world.client();
    assert!(world.is_reset(refused));
    assert_eq!((world.books.aborted(Cause::Memory), world.books.aborted(Cause::Limit)), (1, 0));
    assert_eq!(world.count(ListenerCount::RefusedLimit), 0, "counted as a limit too");
    world.dies(clients[1], Ended::Reset);
    let (fresh, upstream) = world.session();
    world.arrives(fresh, b"x");
    assert_eq!((world.proxy.live(), world.sent(upstream)), (3, b"x".as_slice()));
}

#[test]
fn deadlines_are_told() {
    let mut world = World::new(Plan::default());
    assert_eq!(world.proxy.next_deadline(world.now), None);
    world.client();
    let due = world.proxy.next_deadline(world.now).unwrap();
    assert!(due > world.now && due <= world.now.after(5_000_000));
}

#[derive(Clone, Debug)]
enum Step {
    Client,
    Answer(usize),
    Dies(usize, Ended),
    Arrives(usize, u8),
    Finishes(usize),
    Reads(usize, usize),
    Advance(u64),
    Adopt(u32, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any = || 0usize..1_000;
    let ended = prop_oneof![
        Just(Ended::Reset),
        Just(Ended::Refused),
        Just(Ended::TimedOut),
        Just(Ended::Unreachable),
        Just(Ended::DataAfterClose),
    ];
    let step = prop_oneof![
        4 => Just(Step::Client),
        4 => any().prop_map(Step::Answer),
        2 => (any(), ended).prop_map(|(at, ended)| Step::Dies(at, ended)),
        6 => (any(), 1u8..).prop_map(|(at, len)| Step::Arrives(at, len)),
        3 => any().prop_map(Step::Finishes),
        4 => (any(), 1usize..500).prop_map(|(at, len)| Step::Reads(at, len)),
        2 => (1u64..20_000).prop_map(Step::Advance),
        1 => (0u32..8, 0u32..3).prop_map(|(down, limit)| Step::Adopt(down, limit)),
    ];
    proptest::collection::vec(step, 0..150)
}

/// Plays arbitrary events; whatever is open must stay consistent, and everything must be gone once all clients are.
fn play(steps: Vec<Step>, limit: u32) {
    let rules = ListenerRules { queue: 3, queue_ms: 2_000, retries: 2, ..ListenerRules::default() };
    let plan =
        Plan { backends: 3, backend_limit: limit, listener_limit: limit * 3, rules, ..Plan::default() };
    let mut world = World::new(plan.clone());
    // what each connection's peer may still do
    let mut finished = std::collections::HashSet::new();
    let mut answered = std::collections::HashSet::new();
    for step in steps {
        let open: Vec<usize> =
            (0..world.fake.connections.len()).filter(|at| world.fake.connections[*at].is_open).collect();
        let pick = |at: usize| (!open.is_empty()).then(|| open[at % open.len()]);
        let is_up = |world: &World, at: usize, answered: &std::collections::HashSet<usize>| {
            world.fake.connections[at].listener != u16::MAX || answered.contains(&at)
        };
        match step {
            Step::Client => {
                let client = world.client();
                world.fake.connections[client].limit = 600;
            }
            Step::Answer(at) => {
                if let Some(at) = pick(at).filter(|at| !is_up(&world, *at, &answered)) {
                    answered.insert(at);
                    world.answer(at);
                }
            }
            Step::Dies(at, ended) => {
                if let Some(at) = pick(at) {
                    world.dies(at, ended);
                }
            }
            Step::Arrives(at, len) => {
                let may = |at: &usize| is_up(&world, *at, &answered) && !finished.contains(at);
                if let Some(at) = pick(at).filter(may) {
                    world.arrives(at, &vec![len; usize::from(len)]);
                }
            }
            Step::Finishes(at) => {
                let may = |at: &usize| is_up(&world, *at, &answered) && !finished.contains(at);
                if let Some(at) = pick(at).filter(may) {
                    finished.insert(at);
                    world.finishes(at);
                }
            }
            Step::Reads(at, len) => {
                if let Some(at) = pick(at) {
                    world.reads(at, len);
                    if world.fake.connections[at].outbox.is_empty() && finished.contains(&at) {
                        world.fake.close_if_done(at, true);
                        world.run();
                    }
                }
            }
            Step::Advance(milliseconds) => world.advance(milliseconds),
            Step::Adopt(down, limit) => {
                let down = (0..3).filter(|index| down & 1 << index != 0).collect();
                world.adopt(Plan { down, backend_limit: limit, ..plan.clone() });
            }
        }
        let sessions = world.proxy.live() as i64;
        assert_eq!(world.books.active(), sessions);
        assert!(world.proxy.pending() as i64 <= sessions);
        assert!(world.books.all_backends_active() <= sessions);
        assert!(world.fake.held() as i64 <= sessions * 2);
        assert!(world.books.queued() <= sessions);
    }
    let clients: Vec<usize> = (0..world.fake.connections.len())
        .filter(|at| world.fake.connections[*at].listener != u16::MAX)
        .collect();
    for client in clients {
        if world.fake.connections[client].is_open {
            world.dies(client, Ended::Reset);
        } else if !world.fake.connections[client].is_released {
            world.fake.tell(client, Events::CLOSED);
            world.run();
        }
    }
    // those whose client has closed in order wait for their backend, but not for ever
    world.advance(3_700_000);
    world.advance(3_700_000);
    world.is_clean();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_events_leave_nothing_behind(steps in steps(), limit in 0u32..3) {
        play(steps, limit);
    }
}
