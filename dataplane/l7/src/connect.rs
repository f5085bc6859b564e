//! Which backend does a session get, and when? Selection, limits, source ports, retries and the queue.

use weir_balance::counted::{least_connections, random_two, scatter};
use weir_balance::slot as slot_of_hash;
use weir_l4::entry::{Address, Tuple};
use weir_l4::select::{hash_of, next_turn};
use weir_l4::services::Algorithm;
use weir_l4::{Backend, Pool};
use weir_net::Protocol;
use weir_net::hash::StableKey;
use weir_tcp::{ConnectError, Ended, Endpoint, Events};

use crate::connections::{Accounts, BackendCount, Cause, Connections, ListenerCount, Surroundings};
use crate::limits::{Acquired, Key};
use crate::proxy::{Proxy, Run};
use crate::rules::{Counted, PoolRules, Rules};
use crate::session::{Fifo, NO_BACKEND, Side, Stage, Token};

/// Further slots that a flow's hash falls on when the backend of the first can't take it, before all are looked at.
const REHASHES: u64 = 8;
/// Sessions or exchanges of a queue that are looked at when one can go: the first may wait for a backend that others don't want.
pub(crate) const LOOK_AHEAD: usize = 16;

/// How long is waited for a backend where the listener is gone: the default of a connect.
pub(crate) const ORPHAN_MS: u32 = 5_000;

/// What became of an attempt to find a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// A SYN is on its way.
    Connecting,
    /// Those that are left are at their limits.
    Full {
        /// The ledger may have more; it was asked.
        is_pending: bool,
    },
    /// No backend is left.
    Nowhere,
    /// The engine has no room.
    NoMemory,
}

/// A place in the queue of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    /// How long to wait.
    pub(crate) wait_ms: u32,
    /// It is beyond the queue's bound, until the ledger has answered.
    pub(crate) is_beyond: bool,
}

/// Counts one more of a listener that waits for a backend; `None`: the queue is full.
pub(crate) fn admit(
    rules: &Rules,
    queued: &mut Vec<u32>,
    listener: u16,
    is_pending: bool,
) -> Option<Admitted> {
    let (size, wait_ms) = rules.listener(listener).map_or((0, ORPHAN_MS), |rules| {
        (rules.queue, if rules.queue == 0 { rules.connect_ms } else { rules.queue_ms })
    });
    let at = usize::from(listener);
    if queued.len() <= at {
        queued.resize(at + 1, 0);
    }
    // while the ledger may still have tokens the answer is waited for, not the limit assumed
    let queued = queued.get_mut(at).filter(|queued| is_pending || **queued < size)?;
    let is_beyond = *queued >= size;
    *queued += 1;
    Some(Admitted { wait_ms, is_beyond })
}

/// What selection remembers from one session to the next.
#[derive(Debug)]
pub(crate) struct Selector {
    pub(crate) key: StableKey,
    /// By pool: whose turn it is.
    pub(crate) cursors: Vec<u32>,
    pub(crate) random: u64,
}

impl Selector {
    fn next_turn(&mut self, pool: &Pool) -> usize {
        let at = pool.index as usize;
        if self.cursors.len() <= at {
            self.cursors.resize(at + 1, 0);
        }
        self.cursors.get_mut(at).map_or(0, |cursor| next_turn(cursor, pool.slots.len()))
    }

    /// The hash that picks a session's backend: of the client as a PROXY header tells it, so that it stays on its backend
    /// whatever proxy it comes through.
    fn hash(&self, pool: &Pool, client: Endpoint, vip: Endpoint) -> u64 {
        fn of<F: Address>(key: StableKey, pool: &Pool, client: Endpoint, vip: Endpoint) -> u64 {
            let (src, dst) = (F::from_bits(client.address), F::from_bits(vip.address));
            let (src_port, dst_port, protocol) = (client.port, vip.port, Protocol::TCP.0);
            hash_of(pool.algorithm, key, &Tuple { src, dst, src_port, dst_port, protocol })
        }
        let hash = if client.is_v4() && vip.is_v4() { of::<u32> } else { of::<u128> };
        hash(self.key, pool, client, vip)
    }

    /// Chooses a position among the backends that can take a connection; `load` tells how many one has, or `None`.
    pub(crate) fn choose(
        &mut self,
        pool: &Pool,
        rules: &PoolRules,
        client: Endpoint,
        vip: Endpoint,
        mut load: impl FnMut(u16) -> Option<u32>,
    ) -> Option<u16> {
        let position = |slot: usize| pool.slots.get(slot).copied().unwrap_or(u16::MAX);
        match rules.counted {
            Some(Counted::LeastConn) => {
                let scheduled = position(self.next_turn(pool));
                return least_connections(&rules.weights, scheduled, load);
            }
            Some(Counted::RandomTwo) => {
                self.random = self.random.wrapping_add(1);
                return random_two(&pool.slots, &rules.weights, scatter(self.random), load);
            }
            None => {}
        }
        let hash = self.hash(pool, client, vip);
        let mut first = None;
        for attempt in 0..=REHASHES {
            let slot = match (pool.algorithm, attempt) {
                (Algorithm::RoundRobin, _) => self.next_turn(pool),
                (Algorithm::Maglev | Algorithm::SourceHash, 0) => slot_of_hash(hash, pool.slots.len()),
                // a flow moves to the same other backend on each node
                _ => slot_of_hash(scatter(hash.wrapping_add(attempt)), pool.slots.len()),
            };
            let position = position(slot);
            if load(position).is_some() {
                return Some(position);
            }
            first.get_or_insert(position);
        }
        // any that can, who stands behind the first choice before others
        least_connections(&rules.weights, first.unwrap_or(0), |position| load(position).map(|_| 0))
    }
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Finds the session a backend, a place in the queue, or its end.
    pub(crate) fn place(&mut self, slot: u32) {
        // those who wait come first
        if let Some(session) = self.proxy.sessions.at(slot) {
            let pool = session.pool;
            if self.proxy.queues.get(pool as usize).is_some_and(|queue| !queue.is_empty()) {
                self.serve_queue(pool);
            }
        }
        let placed = self.try_connect(slot);
        match placed {
            Placed::Connecting => {}
            Placed::Full { is_pending } => self.enqueue(slot, is_pending),
            Placed::Nowhere | Placed::NoMemory => self.give_up(slot, placed),
        }
    }

    /// No backend takes it: the client gets a RST.
    fn give_up(&mut self, slot: u32, placed: Placed) {
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        let no_memory = placed == Placed::NoMemory;
        self.accounts.listener(session.listener, ListenerCount::NoBackend, u64::from(!no_memory));
        self.end(slot, Some(if no_memory { Cause::Memory } else { Cause::Aborted }));
    }

    /// Tries backends until a SYN can be sent to one, or none is left.
    fn try_connect(&mut self, slot: u32) -> Placed {
        loop {
            let Proxy { services, rules, sessions, setups, leases, selector, .. } = &mut *self.proxy;
            let Some(session) = sessions.at(slot) else { return Placed::Nowhere };
            let Some(setup) = setups.at(session.setup) else { return Placed::Nowhere };
            let Some((pool, pool_rules)) = services.pool(session.pool).zip(rules.pool(session.pool)) else {
                return Placed::Nowhere;
            };
            let listener = rules.listener(session.listener);
            let (retries, connect_ms) =
                listener.map_or((0, ORPHAN_MS), |rules| (rules.retries, rules.connect_ms));
            if setup.tried.len() > usize::from(retries) || setup.tried.is_full() {
                return Placed::Nowhere;
            }
            let (mut is_full, mut is_pending) = (false, false);
            let chosen = selector.choose(pool, pool_rules, setup.ends.source, setup.vip, |position| {
                let index = *pool.members.get(usize::from(position))?;
                let is_up = services.backend(index).is_some_and(|backend| !backend.down);
                if !is_up || setup.tried.contains(&index) {
                    return None;
                }
                match leases.probe(Key::Backend(index)) {
                    Acquired::Yes => Some(leases.used(Key::Backend(index))),
                    other => {
                        is_full = true;
                        is_pending |= other == Acquired::Pending;
                        None
                    }
                }
            });
            let index = chosen.and_then(|position| pool.members.get(usize::from(position)).copied());
            let Some((index, backend)) = index.and_then(|index| Some((index, services.backend(index)?)))
            else {
                return if is_full { Placed::Full { is_pending } } else { Placed::Nowhere };
            };
            let (backend, profile, vip_port) = (backend.clone(), pool_rules.profile, setup.vip.port);
            match self.connect(slot, index, &backend, profile, vip_port) {
                Ok(()) => {
                    self.arm(slot, connect_ms);
                    return Placed::Connecting;
                }
                Err(ConnectError::Full) => return Placed::NoMemory,
                Err(ConnectError::InUse | ConnectError::NoProfile) => self.tried(slot, index),
            }
        }
    }

    /// Remembers that a backend failed.
    fn tried(&mut self, slot: u32, backend: u32) {
        if let Some(session) = self.proxy.sessions.at(slot)
            && let Some(setup) = self.proxy.setups.at_mut(session.setup)
        {
            // bounded by the check before each attempt
            let _ = setup.tried.try_push(backend);
        }
    }

    /// Sends a SYN to a backend, from a source to which the answer comes back to this worker.
    fn connect(
        &mut self,
        slot: u32,
        index: u32,
        backend: &Backend,
        profile: u16,
        vip_port: u16,
    ) -> Result<(), ConnectError> {
        let remote = Endpoint { address: backend.address, port: backend.serves(vip_port) };
        let Some(local) = self.source_for(backend, remote) else {
            self.accounts.snat_exhausted();
            return Err(ConnectError::InUse);
        };
        let token = Token::Tcp(Side::Upstream, slot).number();
        let handle = self.connections.connect(local, remote, profile, token, self.now)?;
        let proxy = &mut *self.proxy;
        proxy.leases.acquire(Key::Backend(index));
        self.accounts.backend_active(index, 1);
        proxy.dequeue(slot, self.accounts);
        if let Some(session) = proxy.sessions.at_mut(slot) {
            session.upstream = Some(handle);
            session.backend = index;
            session.stage = Stage::Connecting;
            let is_retry = proxy.setups.at(session.setup).is_some_and(|setup| !setup.tried.is_empty());
            self.accounts.backend(index, BackendCount::Retries, u64::from(is_retry));
        }
        Ok(())
    }

    /// A source address and port from which answers come back to this worker.
    pub(crate) fn source_for(&mut self, backend: &Backend, remote: Endpoint) -> Option<Endpoint> {
        if backend.family == 4 {
            self.source::<u32>(backend, remote)
        } else {
            self.source::<u128>(backend, remote)
        }
    }

    fn source<F: Address>(&mut self, backend: &Backend, remote: Endpoint) -> Option<Endpoint> {
        let Self { proxy, connections, surroundings, .. } = self;
        let local = |address: F, port| Endpoint { address: address.bits(), port };
        let to = (remote.address, remote.port);
        let (index, port) = proxy.snat.choose::<F>(backend.egress, to, |address, port| {
            let local = local(address, port);
            connections.is_taken(local, remote) || surroundings.is_taken(local, remote)
        })?;
        Some(Endpoint { address: proxy.snat.address(index)?, port })
    }

    /// News of a connection to a backend.
    pub(crate) fn upstream_news(&mut self, slot: u32, handle: C::Handle, events: Events) {
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        if session.stage == Stage::Connecting {
            if events.has(Events::CONNECTED) {
                self.connected(slot, handle);
            } else if events.has(Events::CLOSED) {
                let count = match self.connections.ended(handle) {
                    Ended::TimedOut => BackendCount::ConnectTimeouts,
                    _ => BackendCount::ConnectFailures,
                };
                self.accounts.backend(session.backend, count, 1);
                return self.connect_failed(slot);
            }
        }
        self.relay_news(slot, Side::Upstream, handle, events);
    }

    /// The timer of an attempt has run out.
    pub(crate) fn connect_timed_out(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        self.accounts.backend(session.backend, BackendCount::ConnectTimeouts, 1);
        self.connect_failed(slot);
    }

    /// The attempt has failed, nothing was relayed: another backend may be tried.
    pub(crate) fn connect_failed(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        let backend = session.backend;
        if backend != NO_BACKEND {
            self.tried(slot, backend);
        }
        // to let go of what isn't open yet ends it
        self.drop_upstream(slot, None);
        self.place(slot);
    }

    /// Lets a session wait for a backend.
    fn enqueue(&mut self, slot: u32, is_pending: bool) {
        let proxy = &mut *self.proxy;
        let Some(session) = proxy.sessions.at_mut(slot) else { return };
        let (listener, pool, setup) = (session.listener, session.pool, session.setup);
        let Some(admitted) = admit(&proxy.rules, &mut proxy.queued, listener, is_pending) else {
            self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
            return self.end(slot, Some(Cause::Limit));
        };
        if admitted.is_beyond && !proxy.overfull.contains(&pool) {
            proxy.overfull.push(pool);
        }
        session.stage = Stage::Queued;
        if proxy.queues.len() <= pool as usize {
            proxy.queues.resize(pool as usize + 1, Fifo::default());
        }
        if let Some(queue) = proxy.queues.get_mut(pool as usize) {
            queue.push(&mut proxy.setups, setup);
        }
        self.accounts.listener_queued(listener, 1);
        self.arm(slot, admitted.wait_ms);
    }

    /// Lets sessions of queues go where backends have room again.
    pub(crate) fn serve_queues(&mut self) {
        while let Some(pool) = self.proxy.woken.pop() {
            self.serve_queue(pool);
            self.serve_http_queue(pool);
        }
    }

    fn serve_queue(&mut self, pool: u32) {
        let Some(queue) = self.proxy.queues.get(pool as usize) else { return };
        let mut at = queue.head;
        let mut passed = 0;
        let mut may_come = false;
        while let Some(setup) = self.proxy.setups.at(at) {
            let (slot, next, is_first_attempt) = (setup.session, setup.next, setup.tried.is_empty());
            at = next;
            match self.try_connect(slot) {
                Placed::Connecting => {}
                placed @ (Placed::Nowhere | Placed::NoMemory) => self.give_up(slot, placed),
                Placed::Full { is_pending } => {
                    passed += 1;
                    may_come |= is_pending;
                    // what a first attempt can't have nobody can
                    if is_first_attempt || passed == LOOK_AHEAD {
                        break;
                    }
                }
            }
        }
        if passed > 0
            && !may_come
            && let Some(place) = self.proxy.overfull.iter().position(|overfull| *overfull == pool)
        {
            self.proxy.overfull.swap_remove(place);
            self.trim_queue(pool);
        }
    }

    /// The ledger has no more: who waits beyond the queue's bound, the last first, is refused.
    fn trim_queue(&mut self, pool: u32) {
        let Some(queue) = self.proxy.queues.get(pool as usize) else { return };
        let mut at = queue.tail;
        while let Some(setup) = self.proxy.setups.at(at) {
            let (slot, previous) = (setup.session, setup.previous);
            at = previous;
            let Some(session) = self.proxy.sessions.at(slot) else { return };
            let listener = session.listener;
            let size = self.proxy.rules.listener(listener).map_or(0, |rules| rules.queue);
            let queued = self.proxy.queued.get(usize::from(listener)).copied().unwrap_or(0);
            if queued <= size {
                continue;
            }
            self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
            self.end(slot, Some(Cause::Limit));
        }
    }
}
