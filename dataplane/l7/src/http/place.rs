//! Which backend does an exchange get, by which connection, and when? Idle connections first, then new ones within limits, else the
//! queue of the pool.

use weir_http::cause::Cause;
use weir_l4::{Backend, Pool, Services};
use weir_tcp::{ConnectError, Endpoint};

use super::Http;
use super::breaker::Permit;
use super::choose::{Choice, Standing, Wanted};
use super::client::{Flags, NEVER, NOBODY, Stage};
use super::rules::HttpPool;
use super::slab::Queue;
use super::upstream::{self, Upstream};
use crate::connect::{LOOK_AHEAD, ORPHAN_MS, admit};
use crate::connections::{Accounts, Connections, ListenerCount, Surroundings};
use crate::limits::{Acquired, Key};
use crate::proxy::{Proxy, Run, tick};
use crate::rules::{PoolRules, Rules};
use crate::session::Token;

/// Idle connections to a backend that may turn out to be closed before a new one is opened.
const STALE: usize = 64;
/// What became of an attempt to find a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// It has a connection, or a SYN is on its way.
    Yes,
    /// Those that are left are at their limits.
    Full {
        /// The ledger may have more; it was asked.
        is_pending: bool,
    },
    /// No backend is left, or there is no way to it.
    Nowhere(Cause),
}

/// The pool of an exchange: as it is now, else as it was when the exchange began.
fn pool_of<'a>(
    current: (&'a Services, &'a Rules),
    began: Option<(&'a Services, &'a Rules)>,
    pool: u32,
) -> Option<(&'a Pool, &'a PoolRules, &'a HttpPool)> {
    let of = |(services, rules): (&'a Services, &'a Rules)| {
        Some((services.pool(pool)?, rules.pool(pool)?, &**rules.http_pool(pool)?))
    };
    of(current).or_else(|| began.and_then(of))
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Finds the exchange a connection, a place in the queue, or its end.
    #[inline]
    pub(crate) fn http_place(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let pool = client.exchange.pool;
        // those who wait come first
        if self.proxy.http.waiting.get(pool as usize).is_some_and(|queue| !queue.is_empty()) {
            self.serve_http_queue(pool);
        }
        match self.try_place(slot) {
            Placed::Yes => {}
            Placed::Full { is_pending } => self.http_enqueue(slot, is_pending),
            Placed::Nowhere(cause) => self.refuse_placed(slot, cause),
        }
    }

    /// No backend takes the exchange: the client hears why, which is what became of the last attempt, if there was one.
    fn refuse_placed(&mut self, slot: u32, cause: Cause) {
        let failed = self.proxy.http.clients.at(slot).and_then(|client| client.exchange.failed);
        let is_about_choice = matches!(cause, Cause::NoBackend | Cause::QueueFull);
        self.refuse(slot, failed.filter(|_| is_about_choice).unwrap_or(cause));
    }

    /// Whether a backend is left that this request has not tried, be it at its limit or not.
    pub(super) fn is_somebody_left(&mut self, slot: u32, full_too: bool) -> bool {
        let (chosen, is_full, _) = self.choose_backend(slot);
        chosen.is_some() || full_too && is_full
    }

    /// Tries backends until one has a connection for the exchange or a SYN is on its way.
    #[inline]
    fn try_place(&mut self, slot: u32) -> Placed {
        let mut last = Cause::NoBackend;
        loop {
            let (chosen, is_full, is_pending) = self.choose_backend(slot);
            let Some(index) = chosen else {
                return if is_full { Placed::Full { is_pending } } else { Placed::Nowhere(last) };
            };
            if self.reuse(slot, index) {
                return Placed::Yes;
            }
            match self.http_connect(slot, index) {
                Ok(()) => return Placed::Yes,
                Err(Cause::Memory) => return Placed::Nowhere(Cause::Memory),
                Err(cause) => {
                    last = cause;
                    if !self.note_tried(slot, index) {
                        return Placed::Nowhere(last);
                    }
                }
            }
        }
    }

    /// The backend that is to answer, whether others are at their limits, and whether the ledger was asked for more.
    #[inline]
    fn choose_backend(&mut self, slot: u32) -> (Option<u32>, bool, bool) {
        let none = (None, false, false);
        let now = self.now;
        let Proxy { services, rules, http, leases, .. } = &mut *self.proxy;
        let Http { clients, generations, idle, store, breakers, comebacks, chooser, sticky, .. } = http;
        let Some(client) = clients.at(slot) else { return none };
        let exchange = &client.exchange;
        let began = generations.services(exchange.generation).zip(generations.rules(exchange.generation));
        let began = began.map(|(services, rules)| (&**services, &**rules));
        let current: (&Services, &Rules) = (services, rules);
        let Some((pool, pool_rules, http_rules)) = pool_of(current, began, exchange.pool) else {
            return none;
        };
        let ids = sticky.get(exchange.pool as usize).and_then(Option::as_ref);
        let head = exchange.head.as_ref().map_or(&[][..], |held| store.bytes(held));
        let wanted = Wanted {
            hash: exchange.hash,
            sticky: ids.and_then(|ids| ids.position(exchange.sticky.of(head))),
        };
        let mut is_pending = false;
        let chosen = chooser.choose(pool, pool_rules, http_rules, wanted, now, |position, is_panic| {
            let Some(index) = pool.members.get(usize::from(position)).copied() else {
                return Standing { is_down: true, ..Standing::FREE };
            };
            let used = leases.used(Key::Backend(index));
            let spare = idle.len(index);
            let mut standing = Standing {
                is_down: services.backend(index).is_none_or(|backend| backend.down),
                is_broken: breakers.permits(index, now) == Permit::No,
                is_tried: exchange.tried.contains(&index),
                is_full: false,
                load: used.saturating_sub(spare),
                share: comebacks.share(index, http_rules.slow_start_ms, now),
            };
            // the ledger is asked only for who could use what it grants: it would come and go for ever
            if spare == 0 && !standing.is_out(is_panic) {
                let probed = leases.probe(Key::Backend(index));
                is_pending |= probed == Acquired::Pending;
                standing.is_full = probed != Acquired::Yes;
            }
            standing
        });
        match chosen {
            Choice::Position(position) => (pool.members.get(usize::from(position)).copied(), false, false),
            Choice::Full => (None, true, is_pending),
            Choice::Nobody => none,
        }
    }

    /// Takes an idle connection to the backend; false: there is none that is good.
    #[inline]
    fn reuse(&mut self, slot: u32, backend: u32) -> bool {
        for _ in 0..STALE {
            let Proxy { services, http, .. } = &mut *self.proxy;
            let Some(client) = http.clients.at_mut(slot) else { return false };
            let Some(port) = services.backend(backend).map(|to| to.serves(client.vip_port)) else {
                return false;
            };
            let found = http.idle.find(&http.upstreams, backend, client.exchange.pool, port);
            let Some(at) = found else { return false };
            let Some(upstream) = http.upstreams.at_mut(at) else { return false };
            // whatever has arrived is known to the engine, also where its news have not been read: a FIN, a RST or data that nobody
            // asked for
            if !self.connections.is_quiet(upstream.handle) {
                self.drop_http_upstream(at, false);
                continue;
            }
            self.http_dequeue(slot);
            let http = &mut self.proxy.http;
            let Some(client) = http.clients.at_mut(slot) else { return false };
            let Some(upstream) = http.upstreams.at_mut(at) else { return false };
            upstream.stage = upstream::Stage::Active;
            upstream.client = slot;
            client.exchange.upstream = at;
            client.flags.set(Flags::REUSED);
            client.exchange.connect_us = client.exchange.since(self.now);
            http.idle.remove(&mut http.upstreams, backend, at);
            self.accounts.backend_idle(backend, -1);
            self.begin_attempt(slot, backend);
            self.forward(slot);
            return true;
        }
        false
    }

    /// An attempt at a backend begins.
    fn begin_attempt(&mut self, slot: u32, backend: u32) {
        let now = self.now;
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let exchange = &mut client.exchange;
        exchange.backend = backend;
        exchange.ticket = Some(http.breakers.started(backend, now));
        exchange.attempts = exchange.attempts.saturating_add(1);
        exchange.attempt_at = exchange.since(now);
        if exchange.queued_at != NEVER {
            exchange.queue_us = exchange.attempt_at.saturating_sub(exchange.queued_at);
        }
    }

    /// Remembers that a backend failed; false: it was known to have.
    pub(super) fn note_tried(&mut self, slot: u32, backend: u32) -> bool {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return false };
        let tried = &mut client.exchange.tried;
        if tried.contains(&backend) {
            return false;
        }
        if tried.is_full() {
            tried.remove(0);
        }
        tried.push(backend);
        true
    }

    /// Sends a SYN to a backend, from a source to which the answer comes back to this worker.
    fn http_connect(&mut self, slot: u32, index: u32) -> Result<(), Cause> {
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at(slot) else { return Err(Cause::Memory) };
        let (pool, vip_port, listener) = (client.exchange.pool, client.vip_port, client.listener);
        let Some(backend) = proxy.services.backend(index).cloned() else { return Err(Cause::NoBackend) };
        if !proxy.http.upstreams.has_room() {
            return Err(Cause::Memory);
        }
        let began = proxy.http.generations.rules(client.exchange.generation);
        let pool_rules = proxy.rules.pool(pool).or_else(|| began.and_then(|rules| rules.pool(pool)));
        let Some(pool_rules) = pool_rules else { return Err(Cause::NoBackend) };
        let (profile, is_bound) = (pool_rules.profile, pool_rules.send_proxy.is_some());
        let connect_ms = proxy.rules.listener(listener).map_or(ORPHAN_MS, |rules| rules.connect_ms);
        if proxy.leases.acquire(Key::Backend(index)) != Acquired::Yes {
            // the others are at their limits as well: selection has looked at them
            return Err(Cause::QueueFull);
        }
        let at = match self.open(&backend, index, vip_port, profile, pool, slot) {
            Ok(at) => at,
            Err(cause) => {
                self.proxy.leases.release(Key::Backend(index));
                return Err(cause);
            }
        };
        self.accounts.backend_active(index, 1);
        self.http_dequeue(slot);
        let http = &mut self.proxy.http;
        if let Some(upstream) = http.upstreams.at_mut(at) {
            upstream.is_bound = is_bound;
        }
        if let Some(client) = http.clients.at_mut(slot) {
            client.exchange.upstream = at;
            client.stage = Stage::Connecting;
        }
        self.begin_attempt(slot, index);
        self.set_due(slot, connect_ms);
        Ok(())
    }

    /// Opens a connection; its limit has room.
    pub(super) fn open(
        &mut self,
        backend: &Backend,
        index: u32,
        vip_port: u16,
        profile: u16,
        pool: u32,
        client: u32,
    ) -> Result<u32, Cause> {
        let remote = Endpoint { address: backend.address, port: backend.serves(vip_port) };
        let Some(local) = self.source_for(backend, remote) else {
            self.accounts.snat_exhausted();
            return Err(Cause::SourceExhausted);
        };
        let connected = self.connections.connect(local, remote, profile, u32::MAX, self.now);
        let handle = connected.map_err(|error| match error {
            ConnectError::Full => Cause::Memory,
            ConnectError::InUse | ConnectError::NoProfile => Cause::ConnectFailed,
        })?;
        let upstream = Upstream::new(handle, index, pool, remote.port, client, tick(self.now));
        match self.proxy.http.upstreams.insert(upstream) {
            Ok(at) => {
                self.connections.set_token(handle, Token::HttpUpstream(at).number());
                Ok(at)
            }
            Err(_) => {
                self.connections.release(handle);
                Err(Cause::Memory)
            }
        }
    }

    /// Lets an exchange wait for a backend.
    fn http_enqueue(&mut self, slot: u32, is_pending: bool) {
        let now = self.now;
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at_mut(slot) else { return };
        let (listener, pool) = (client.listener, client.exchange.pool);
        let Some(admitted) = admit(&proxy.rules, &mut proxy.queued, listener, is_pending) else {
            self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
            return self.refuse_placed(slot, Cause::QueueFull);
        };
        client.stage = Stage::Queued;
        client.exchange.queued_at = client.exchange.since(now);
        let waiting = &mut proxy.http.waiting;
        if waiting.len() <= pool as usize {
            waiting.resize(pool as usize + 1, Queue::default());
        }
        if let Some(queue) = waiting.get_mut(pool as usize) {
            queue.push(&mut proxy.http.clients, slot);
        }
        self.accounts.listener_queued(listener, 1);
        self.set_due(slot, admitted.wait_ms);
    }

    /// Takes a client out of the queue that it waits in, if it does.
    pub(crate) fn http_dequeue(&mut self, slot: u32) {
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at(slot) else { return };
        let (listener, pool, stage) = (client.listener, client.exchange.pool, client.stage);
        let http = &mut proxy.http;
        match stage {
            Stage::AwaitLease => {
                if let Some(queue) = http.arrivals.get_mut(usize::from(listener)) {
                    queue.remove(&mut http.clients, slot);
                }
            }
            Stage::Queued => {
                let queue = http.waiting.get_mut(pool as usize);
                if queue.is_some_and(|queue| queue.remove(&mut http.clients, slot)) {
                    if let Some(queued) = proxy.queued.get_mut(usize::from(listener)) {
                        *queued = queued.saturating_sub(1);
                    }
                    self.accounts.listener_queued(listener, -1);
                }
            }
            _ => {}
        }
    }

    /// Lets exchanges of a pool's queue go where backends have room again.
    pub(crate) fn serve_http_queue(&mut self, pool: u32) {
        let mut passed = 0;
        let mut may_come = false;
        let Some(queue) = self.proxy.http.waiting.get(pool as usize) else { return };
        let mut slot = queue.head;
        while let Some(client) = self.proxy.http.clients.at(slot) {
            let is_first_attempt = client.exchange.tried.is_empty();
            let next = Queue::next(&self.proxy.http.clients, slot);
            match self.try_place(slot) {
                Placed::Yes => {}
                Placed::Nowhere(cause) => {
                    self.http_dequeue(slot);
                    self.refuse_placed(slot, cause);
                }
                Placed::Full { is_pending } => {
                    passed += 1;
                    may_come |= is_pending;
                    // what a first attempt can't have nobody can
                    if is_first_attempt || passed == LOOK_AHEAD {
                        break;
                    }
                }
            }
            slot = next;
            if slot == NOBODY {
                break;
            }
        }
        if passed > 0 && !may_come {
            self.trim_http_queue(pool);
        }
    }

    /// The ledger has no more: who waits beyond the queue's bound, the last first, is refused.
    fn trim_http_queue(&mut self, pool: u32) {
        let Some(queue) = self.proxy.http.waiting.get(pool as usize) else { return };
        let mut slot = queue.tail;
        while let Some(client) = self.proxy.http.clients.at(slot) {
            let listener = client.listener;
            let previous = Queue::previous(&self.proxy.http.clients, slot);
            let size = self.proxy.rules.listener(listener).map_or(0, |rules| rules.queue);
            if self.proxy.queued.get(usize::from(listener)).is_none_or(|queued| *queued <= size) {
                return;
            }
            self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
            self.http_dequeue(slot);
            self.refuse(slot, Cause::QueueFull);
            slot = previous;
        }
    }
}
