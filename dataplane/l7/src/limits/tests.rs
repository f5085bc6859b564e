//! Do workers and ledger keep every limit, in whatever order their messages come?

use super::*;
use proptest::prelude::*;

const KEY: Key = Key::Backend(3);

/// Workers and a ledger with rings between them; `limited` is what the workers' generation says.
struct Node {
    ledger: Ledger,
    workers: Vec<Leases>,
    up: Vec<VecDeque<ToLedger>>,
    down: Vec<VecDeque<ToWorker>>,
}

impl Node {
    fn new(workers: usize, limit: u32) -> Self {
        let mut node = Self {
            ledger: Ledger::new(workers),
            workers: (0..workers).map(|_| Leases::default()).collect(),
            up: vec![VecDeque::new(); workers],
            down: vec![VecDeque::new(); workers],
        };
        node.ledger.set_limit(KEY, limit);
        node.workers.iter_mut().for_each(|leases| leases.set_limited(KEY, true));
        node
    }

    fn used(&self) -> u32 {
        self.workers.iter().map(|leases| leases.used(KEY)).sum()
    }

    /// One message of a worker into its ring, if it has one.
    fn send(&mut self, worker: usize) -> bool {
        let message = self.workers[worker].poll();
        message.map(|message| self.up[worker].push_back(message)).is_some()
    }

    fn ledger_step(&mut self, worker: usize) -> bool {
        if let Some(message) = self.up[worker].pop_front() {
            self.ledger.receive(worker, message);
            return true;
        }
        let message = self.ledger.poll(worker);
        message.map(|message| self.down[worker].push_back(message)).is_some()
    }

    fn worker_step(&mut self, worker: usize) -> bool {
        let Some(message) = self.down[worker].pop_front() else { return false };
        let key = self.workers[worker].receive(message);
        self.workers[worker].settle(key);
        true
    }

    /// Everything under way arrives.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut moved = false;
            for worker in 0..self.workers.len() {
                moved |= self.send(worker) | self.ledger_step(worker) | self.worker_step(worker);
            }
            if !moved {
                return;
            }
        }
        panic!("messages go round for ever");
    }

    /// A connection begins, whatever messages that takes.
    fn acquire(&mut self, worker: usize) -> Acquired {
        match self.workers[worker].acquire(KEY) {
            Acquired::Yes => return Acquired::Yes,
            Acquired::Pending | Acquired::Exhausted => {}
        }
        // someone waits for the grant, so it isn't given back before that one has tried
        for _ in 0..100 {
            for other in 0..self.workers.len() {
                self.send(other);
                self.ledger_step(other);
                if other != worker {
                    self.worker_step(other);
                }
            }
            if let Some(message) = self.down[worker].pop_front() {
                self.workers[worker].receive(message);
                let acquired = self.workers[worker].acquire(KEY);
                self.workers[worker].settle(KEY);
                if acquired == Acquired::Yes {
                    return acquired;
                }
            }
        }
        self.workers[worker].acquire(KEY)
    }
}

#[test]
fn without_a_limit_nobody_is_asked() {
    let mut leases = Leases::default();
    for _ in 0..1_000 {
        assert_eq!(leases.acquire(KEY), Acquired::Yes);
    }
    assert_eq!((leases.poll(), leases.used(KEY)), (None, 1_000));
}

#[test]
fn a_single_token_goes_where_it_is_needed() {
    let mut node = Node::new(4, 1);
    assert_eq!(node.workers[2].acquire(KEY), Acquired::Pending);
    for worker in [2, 0, 3, 3, 1] {
        assert_eq!(node.acquire(worker), Acquired::Yes);
        for other in (0..4).filter(|other| *other != worker) {
            assert_eq!(node.acquire(other), Acquired::Exhausted);
        }
        node.workers[worker].release(KEY);
        node.settle();
        // it has gone to one of those who had asked
        assert_eq!((node.used(), node.ledger.granted(KEY)), (0, 1));
    }
}

#[test]
fn a_worker_gets_all_that_others_leave_unused() {
    let mut node = Node::new(4, 1_000);
    for _ in 0..600 {
        assert_eq!(node.acquire(0), Acquired::Yes);
    }
    for _ in 0..600 {
        node.workers[0].release(KEY);
    }
    node.settle();
    for _ in 0..1_000 {
        assert_eq!(node.acquire(1), Acquired::Yes);
    }
    assert_eq!(node.acquire(1), Acquired::Exhausted);
    assert_eq!(node.acquire(0), Acquired::Exhausted);
    assert_eq!(node.used(), 1_000);
    // who waits gets the next one that is free, elsewhere
    node.workers[1].release(KEY);
    while node.send(1) {}
    while node.ledger_step(1) {}
    while node.ledger_step(0) {}
    assert!(node.down[0].iter().any(|message| matches!(message, ToWorker::Grant { count: 1, .. })));
}

#[test]
fn few_messages_for_many_connections() {
    let mut node = Node::new(2, 100_000);
    let mut messages = 0;
    for _ in 0..20_000 {
        assert_eq!(node.acquire(0), Acquired::Yes);
        while node.send(0) {
            messages += 1;
        }
        node.settle();
    }
    assert!(messages < 120, "{messages}");
    // connections that come and go cost none
    for _ in 0..10_000 {
        node.workers[0].release(KEY);
        assert_eq!(node.workers[0].acquire(KEY), Acquired::Yes);
    }
    assert_eq!(node.workers[0].poll(), None);
}

#[test]
fn a_worker_that_ends_returns_everything() {
    let mut node = Node::new(2, 10);
    for _ in 0..10 {
        assert_eq!(node.acquire(0), Acquired::Yes);
    }
    assert_eq!(node.acquire(1), Acquired::Exhausted);
    node.ledger.end(0);
    node.workers[0] = Leases::default();
    (node.up[0], node.down[0]) = (VecDeque::new(), VecDeque::new());
    for _ in 0..10 {
        assert_eq!(node.acquire(1), Acquired::Yes);
    }
    assert_eq!(node.acquire(1), Acquired::Exhausted);
}

#[test]
fn a_limit_that_goes_away_leaves_no_tokens_behind() {
    let mut node = Node::new(2, 10);
    assert_eq!(node.acquire(0), Acquired::Yes);
    assert_eq!(node.acquire(1), Acquired::Yes);
    node.ledger.set_limit(KEY, 0);
    node.workers.iter_mut().for_each(|leases| leases.set_limited(KEY, false));
    node.settle();
    assert_eq!(node.ledger.granted(KEY), 0);
    // introduced again below what there is: nothing new until the old ones have gone
    assert_eq!(node.acquire(0), Acquired::Yes);
    node.ledger.set_limit(KEY, 1);
    node.workers.iter_mut().for_each(|leases| leases.set_limited(KEY, true));
    node.workers[0].release(KEY);
    assert_eq!(node.acquire(1), Acquired::Exhausted);
    node.workers[1].release(KEY);
    node.settle();
    assert_eq!(node.used(), 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Acquire(usize),
    Release(usize),
    Send(usize),
    Ledger(usize),
    Worker(usize),
    Limit(u32),
    End(usize),
}

fn steps(changes: bool) -> impl Strategy<Value = Vec<Step>> {
    let worker = || 0usize..3;
    let rare = if changes { 1 } else { 0 };
    let step = prop_oneof![
        6 => worker().prop_map(Step::Acquire),
        4 => worker().prop_map(Step::Release),
        5 => worker().prop_map(Step::Send),
        8 => worker().prop_map(Step::Ledger),
        5 => worker().prop_map(Step::Worker),
        rare => (1u32..30).prop_map(Step::Limit),
        1 => worker().prop_map(Step::End),
    ];
    proptest::collection::vec(step, 0..400)
}

fn run(node: &mut Node, step: Step) {
    match step {
        Step::Acquire(worker) => {
            node.workers[worker].acquire(KEY);
        }
        Step::Release(worker) if node.workers[worker].used(KEY) > 0 => node.workers[worker].release(KEY),
        Step::Release(_) => {}
        Step::Send(worker) => {
            node.send(worker);
        }
        Step::Ledger(worker) => {
            node.ledger_step(worker);
        }
        Step::Worker(worker) => {
            node.worker_step(worker);
        }
        Step::Limit(limit) => node.ledger.set_limit(KEY, limit),
        Step::End(worker) => {
            node.ledger.end(worker);
            node.workers[worker] = Leases::default();
            node.workers[worker].set_limited(KEY, true);
            (node.up[worker], node.down[worker]) = (VecDeque::new(), VecDeque::new());
        }
    }
}

/// Whatever is free can be had by anyone, after a finite number of messages.
fn everything_can_be_had(node: &mut Node, limit: u32) {
    node.settle();
    for worker in 0..node.workers.len() {
        while node.used() < limit {
            assert_eq!(node.acquire(worker), Acquired::Yes, "{} of {limit}", node.used());
        }
        assert_eq!(node.acquire(worker), Acquired::Exhausted);
        while node.workers[worker].used(KEY) > 0 {
            node.workers[worker].release(KEY);
        }
        node.settle();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// The bound: never more connections than the limit, however messages are delayed.
    #[test]
    fn never_more_than_the_limit(limit in 1u32..30, steps in steps(false)) {
        let mut node = Node::new(3, limit);
        for step in steps {
            run(&mut node, step);
            prop_assert!(node.used() <= limit, "{} of {limit} after {step:?}", node.used());
            prop_assert!(node.ledger.granted(KEY) <= u64::from(limit));
        }
        everything_can_be_had(&mut node, limit);
    }

    /// The bound of a lowered limit: tokens that are out already, which only grow fewer.
    #[test]
    fn a_lowered_limit_is_exceeded_by_what_was_out_at_most(limit in 1u32..30, steps in steps(true)) {
        let mut node = Node::new(3, limit);
        let mut limit = limit;
        let mut out = 0;
        for step in steps {
            run(&mut node, step);
            if let Step::Limit(new) = step {
                limit = new;
            }
            let granted = node.ledger.granted(KEY);
            prop_assert!(granted <= u64::from(limit).max(out), "{granted} of {limit}, {out} before");
            prop_assert!(u64::from(node.used()) <= granted);
            out = granted;
        }
        // unused tokens come back by themselves
        node.settle();
        prop_assert!(node.ledger.granted(KEY) <= u64::from(limit.max(node.used())));
        if node.used() <= limit {
            everything_can_be_had(&mut node, limit);
        }
    }
}
