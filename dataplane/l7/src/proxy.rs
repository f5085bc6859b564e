//! The proxy of one worker: its sessions, and the calls that the worker makes.
//!
//! After each burst: [`Proxy::run`] reacts to the news of all connections. [`Proxy::advance`] runs the timers; it is due at
//! [`Proxy::next_deadline`]. Messages of the ledger go in by [`Proxy::receive`], those to it come out of
//! [`Proxy::poll_message`]. A new generation comes with [`Proxy::adopt`].

use std::sync::Arc;

use weir_l4::snat::{ReplyOwner, Snat};
use weir_l4::{Backend, Drain, Listener, Mode, OnDown, Services};
use weir_net::hash::StableKey;
use weir_tcp::Instant;
use weir_tcp::wheel::Wheel;

use crate::admission;
use crate::connect::Selector;
use crate::connections::{Accounts, Cause, Connections, Surroundings};
use crate::http::rate::{RateMessage, Rates};
use crate::http::{Http, HttpConfig};
use crate::limits::{Key, Leases, ToLedger, ToWorker};
use crate::rules::Rules;
use crate::session::{Fifo, NO_BACKEND, Sessions, Setups, Stage};

/// Sessions that are looked at per call after backends went down.
const SWEEP: u32 = 1_024;

/// What a proxy is made with.
#[derive(Debug)]
pub struct ProxyConfig {
    /// Most sessions: half of what the engine holds.
    pub sessions: usize,
    /// Which worker replies come back to.
    pub owner: ReplyOwner,
    /// Random.
    pub seed: u64,
}

/// The proxy of one worker. `H` names connections.
#[derive(Debug)]
pub struct Proxy<H> {
    pub(crate) services: Arc<Services>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) sessions: Sessions<H>,
    pub(crate) setups: Setups,
    pub(crate) wheel: Wheel,
    pub(crate) leases: Leases,
    pub(crate) snat: Snat,
    pub(crate) selector: Selector,
    /// By pool: sessions that wait for one of its backends.
    pub(crate) queues: Vec<Fifo>,
    /// By listener: sessions that wait for the ledger.
    pub(crate) arrivals: Vec<Fifo>,
    /// By listener: sessions in the queues of pools.
    pub(crate) queued: Vec<u32>,
    /// Pools whose queues may move.
    pub(crate) woken: Vec<u32>,
    /// Pools that sessions wait for beyond the queue's bound, until the ledger has answered.
    pub(crate) overfull: Vec<u32>,
    /// Where the search for sessions of backends that are down goes on.
    sweep: Option<u32>,
    pub(crate) http: Http<H>,
}

/// Whether connections of a listener can't hear of their clients under these services.
fn is_lost(listener: &Listener, services: &Services) -> bool {
    let heir = services.listener_for(listener.vip, listener.protocol, listener.port_first);
    !services.is_vip(listener.vip) || heir.is_some_and(|heir| heir.mode != Mode::Proxy)
}

/// A clock in milliseconds modulo 2^32.
#[inline]
pub(crate) fn tick(now: Instant) -> u32 {
    now.milliseconds()
}

impl<H: Copy + Eq> Proxy<H> {
    /// A proxy without sessions.
    pub fn new(config: ProxyConfig, services: Arc<Services>, rules: Arc<Rules>, now: Instant) -> Self {
        let http = Http::new(config.sessions, config.seed, Arc::clone(&services), Arc::clone(&rules), now);
        let mut proxy = Self {
            services,
            rules,
            http,
            sessions: Sessions::new(config.sessions),
            setups: Setups::new(),
            wheel: Wheel::new(tick(now)),
            leases: Leases::default(),
            snat: Snat::for_connections(config.owner),
            selector: Selector { key: StableKey::NONE, cursors: Vec::new(), random: config.seed },
            queues: Vec::new(),
            arrivals: Vec::new(),
            queued: Vec::new(),
            woken: Vec::new(),
            overfull: Vec::new(),
            sweep: None,
        };
        proxy.prepare();
        proxy
    }

    /// Sessions there are.
    pub fn live(&self) -> usize {
        self.sessions.live()
    }

    /// Sessions that don't relay yet.
    pub fn pending(&self) -> usize {
        self.setups.live()
    }

    /// Connections of a listener or to a backend, of this worker.
    pub fn used(&self, key: Key) -> u32 {
        self.leases.used(key)
    }

    /// Takes over what the generation says.
    fn prepare(&mut self) {
        let services = &self.services;
        self.selector.key = services.hash_key.map_or(StableKey::NONE, |key| StableKey::from_bytes(&key));
        self.snat.adopt(services);
        for listener in services.listeners() {
            let is_limited = self.rules.listener(listener.index).is_some_and(|rules| rules.is_limited);
            self.leases.set_limited(Key::Listener(listener.index), is_limited);
        }
        for (index, _) in services.backends() {
            self.leases.set_limited(Key::Backend(index), self.rules.is_limited(index));
        }
        self.http_prepare();
    }

    /// Runs a new generation from here on; returns the old one, to be dropped elsewhere.
    ///
    /// Sessions go on, with the timeouts that they began with, also those of listeners that are gone and of backends that are drained or
    /// removed. Those of a backend that is down follow the listener's `on_down`, within the next calls of
    /// [`Proxy::advance`]. Those whose listener or backend index now means something else, whose vip is gone, whose vip and
    /// port L4 balances now, or whose listener is cut, end at once. Clients of HTTP whose listener is drained end when they have no
    /// request.
    pub fn adopt(
        &mut self,
        services: Arc<Services>,
        rules: Arc<Rules>,
        connections: &mut impl Connections<Handle = H>,
        accounts: &mut impl Accounts,
    ) -> (Arc<Services>, Arc<Rules>) {
        // of these no segment of a client comes any more: the vip is gone, or L4 balances it now
        let lost: Vec<u16> = self
            .services
            .listeners()
            .filter(|old| old.mode == Mode::Proxy && is_lost(old, &services))
            .map(|old| old.index)
            .collect();
        let cuts = services.cuts_anew(&self.services);
        if !lost.is_empty() || cuts || self.services.identities_differ(&services) {
            let before = Arc::clone(&self.services);
            let listener_is_lost = |index: u16| {
                let of = |services: &Services| services.listener(index).map(Listener::identity);
                let is_cut = services.drain(index) == Drain::Cut;
                is_cut || lost.contains(&index) || of(&before) != of(&services)
            };
            let backend_is_lost = |index: u32| {
                let of = |services: &Services| services.backend(index).map(Backend::identity);
                index != NO_BACKEND && of(&before) != of(&services)
            };
            for slot in 0..self.sessions.slots() {
                let Some(session) = self.sessions.at(slot) else { continue };
                if listener_is_lost(session.listener) || backend_is_lost(session.backend) {
                    self.end(slot, Some(Cause::Aborted), connections, accounts);
                }
            }
            self.http_doom(listener_is_lost, backend_is_lost);
        }
        let old =
            (std::mem::replace(&mut self.services, services), std::mem::replace(&mut self.rules, rules));
        if self.services.counts_anew(&old.0) {
            let sessions = (0..self.sessions.slots()).filter_map(|slot| self.sessions.at(slot)?.client);
            let clients = &self.http.clients;
            let of_http = (0..clients.slots()).filter_map(|slot| Some(clients.at(slot)?.handle));
            admission::count_anew(&self.services, connections, sessions.chain(of_http));
        }
        self.http_adopt();
        self.prepare();
        self.sweep = Some(0);
        self.wake_all();
        old
    }

    /// Reacts to the news of all connections.
    pub fn run<C: Connections<Handle = H>>(
        &mut self,
        connections: &mut C,
        surroundings: &mut impl Surroundings<C::Buffer>,
        accounts: &mut impl Accounts,
        now: Instant,
    ) {
        self.http.now = now;
        let mut run = Run { proxy: self, connections, surroundings, accounts, now };
        while let Some((handle, events)) = run.connections.poll_event() {
            run.news(handle, events);
        }
        run.http_again();
        run.serve_queues();
        run.tell_breakers();
    }

    /// Runs the timers, and what waits for a new generation or for backends.
    pub fn advance<C: Connections<Handle = H>>(
        &mut self,
        connections: &mut C,
        surroundings: &mut impl Surroundings<C::Buffer>,
        accounts: &mut impl Accounts,
        now: Instant,
    ) {
        self.http.now = now;
        let mut run = Run { proxy: self, connections, surroundings, accounts, now };
        while let Some(slot) = run.proxy.wheel.expire(&mut run.proxy.sessions, tick(now)) {
            run.timed_out(slot);
        }
        run.http_advance();
        run.sweep();
        run.http_sweep();
        run.serve_queues();
        run.tell_breakers();
    }

    /// When [`Proxy::advance`] is due.
    pub fn next_deadline(&mut self, now: Instant) -> Option<Instant> {
        if self.sweep.is_some() || !self.woken.is_empty() || self.http.is_due() {
            return Some(now);
        }
        let http = &mut self.http;
        let wheels = [&mut self.wheel, &mut http.client_wheel, &mut http.upstream_wheel];
        let dues = wheels.into_iter().filter_map(Wheel::next_due);
        let ahead = dues.map(|due| {
            let ahead = due.wrapping_sub(tick(now));
            // behind by less than half of the clock's turn: overdue
            if ahead > u32::MAX / 2 { 0 } else { ahead }
        });
        ahead.min().map(|ahead| now.after(u64::from(ahead) * 1_000))
    }

    /// Takes a message of the ledger.
    pub fn receive<C: Connections<Handle = H>>(
        &mut self,
        message: ToWorker,
        connections: &mut C,
        surroundings: &mut impl Surroundings<C::Buffer>,
        accounts: &mut impl Accounts,
        now: Instant,
    ) {
        let key = self.leases.receive(message);
        let mut run = Run { proxy: self, connections, surroundings, accounts, now };
        match key {
            Key::Listener(listener) => {
                run.serve_arrivals(listener);
                run.serve_http_arrivals(listener);
            }
            Key::Backend(index) => {
                run.yield_idle(index);
                run.proxy.wake_all();
            }
        }
        run.serve_queues();
        self.leases.settle(key);
    }

    /// Rules that exchanges needed longer than their generation was in force, and need no more: to be dropped elsewhere, for their last
    /// drop takes time. Ask until there is none, after each call of [`Proxy::advance`].
    pub fn poll_retired(&mut self) -> Option<(Arc<Services>, Arc<Rules>)> {
        self.http.generations.retired()
    }

    /// Client connections of HTTP there are.
    pub fn http_clients(&self) -> usize {
        self.http.clients.live()
    }

    /// Connections to backends of HTTP there are, idle ones included.
    pub fn http_upstreams(&self) -> usize {
        self.http.upstreams.live()
    }

    /// Says which of how many workers this is, and how much HTTP may take. To be called once, before the first client.
    pub fn configure_http(&mut self, config: HttpConfig) {
        let HttpConfig { worker, workers, rate_keys, secret, memory } = config;
        self.http.rates = Rates::new(worker, workers, rate_keys, secret);
        self.http.store.set_ceiling(memory);
    }

    /// The next message about rate limits, and the worker that it is for. One that finds no room may be dropped: it is replaced.
    pub fn poll_rate(&mut self, now: Instant) -> Option<(u16, RateMessage)> {
        self.http.rates.poll_message(now)
    }

    /// Takes a message about rate limits from a worker.
    pub fn receive_rate(&mut self, from: u16, message: RateMessage, now: Instant) {
        self.http.rates.receive(from, message, now);
    }

    /// Sets how many bytes HTTP may keep for heads, bodies and answers.
    pub fn set_http_memory(&mut self, bytes: u64) {
        self.http.store.set_ceiling(bytes);
    }

    /// Bytes that HTTP keeps, and how many it may.
    pub fn http_memory(&self) -> (u64, u64) {
        (self.http.store.used(), self.http.store.ceiling())
    }

    /// The next message to the ledger; call it only where the ring has room.
    pub fn poll_message(&mut self) -> Option<ToLedger> {
        self.leases.poll()
    }

    /// Lets go of the upstream connection, if there is one; its limit has room for another.
    pub(crate) fn drop_upstream(
        &mut self,
        slot: u32,
        cause: Option<Cause>,
        connections: &mut impl Connections<Handle = H>,
        accounts: &mut impl Accounts,
    ) {
        let Some(session) = self.sessions.at_mut(slot) else { return };
        if let Some(handle) = session.upstream.take() {
            if let Some(cause) = cause {
                connections.abort(handle);
                accounts.aborted(cause);
            }
            connections.release(handle);
        }
        let backend = std::mem::replace(&mut session.backend, NO_BACKEND);
        if backend != NO_BACKEND {
            accounts.backend_active(backend, -1);
            self.leases.release(Key::Backend(backend));
            let pool = session.pool;
            self.wake(pool);
        }
    }

    /// A pool's backends may have room: whoever waits for one, session or exchange, is looked at with the next
    /// [`Run::serve_queues`].
    #[inline]
    pub(crate) fn wake(&mut self, pool: u32) {
        let sessions_wait = self.queues.get(pool as usize).is_some_and(|queue| !queue.is_empty());
        let exchanges_wait = self.http.waiting.get(pool as usize).is_some_and(|queue| !queue.is_empty());
        if (sessions_wait || exchanges_wait) && self.woken.last() != Some(&pool) {
            self.woken.push(pool);
        }
    }

    /// All pools' backends may have room.
    pub(crate) fn wake_all(&mut self) {
        for pool in 0..self.queues.len().max(self.http.waiting.len()) {
            self.wake(pool as u32);
        }
    }

    /// Takes a session out of the queue that it waits in.
    pub(crate) fn dequeue(&mut self, slot: u32, accounts: &mut impl Accounts) {
        let Some(session) = self.sessions.at(slot) else { return };
        let (setup, listener) = (session.setup, session.listener);
        if !self.setups.at(setup).is_some_and(|setup| setup.is_queued) {
            return;
        }
        if session.stage == Stage::AwaitLease {
            if let Some(queue) = self.arrivals.get_mut(usize::from(listener)) {
                queue.remove(&mut self.setups, setup);
            }
            return;
        }
        if let Some(queue) = self.queues.get_mut(session.pool as usize) {
            queue.remove(&mut self.setups, setup);
        }
        if let Some(queued) = self.queued.get_mut(usize::from(listener)) {
            *queued = queued.saturating_sub(1);
        }
        accounts.listener_queued(listener, -1);
    }

    /// Ends a session: what stands is aborted for a cause, else left to end by itself.
    pub(crate) fn end(
        &mut self,
        slot: u32,
        cause: Option<Cause>,
        connections: &mut impl Connections<Handle = H>,
        accounts: &mut impl Accounts,
    ) {
        self.dequeue(slot, accounts);
        self.drop_upstream(slot, cause, connections, accounts);
        self.wheel.disarm(&mut self.sessions, slot);
        let Some(session) = self.sessions.at_mut(slot) else { return };
        if let Some(handle) = session.client.take() {
            if let Some(cause) = cause {
                connections.abort(handle);
                accounts.aborted(cause);
            }
            admission::release(&self.services, connections, handle);
        }
        let (listener, setup, is_leased) = (session.listener, session.setup, session.is_leased);
        self.setups.remove(setup);
        accounts.listener_active(listener, -1);
        if is_leased {
            self.leases.release(Key::Listener(listener));
        }
        self.sessions.remove(slot);
    }
}

/// One call of the worker: the proxy and what it is called with.
pub(crate) struct Run<'a, C: Connections, S, A> {
    pub(crate) proxy: &'a mut Proxy<C::Handle>,
    pub(crate) connections: &'a mut C,
    pub(crate) surroundings: &'a mut S,
    pub(crate) accounts: &'a mut A,
    pub(crate) now: Instant,
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Ends a session, see [`Proxy::end`].
    pub(crate) fn end(&mut self, slot: u32, cause: Option<Cause>) {
        self.proxy.end(slot, cause, self.connections, self.accounts);
    }

    /// See [`Proxy::drop_upstream`].
    pub(crate) fn drop_upstream(&mut self, slot: u32, cause: Option<Cause>) {
        self.proxy.drop_upstream(slot, cause, self.connections, self.accounts);
    }

    /// Arms the session's timer.
    pub(crate) fn arm(&mut self, slot: u32, after_ms: u32) {
        let at = tick(self.now).wrapping_add(after_ms.max(1));
        self.proxy.wheel.arm(&mut self.proxy.sessions, slot, at);
    }

    /// Looks for sessions whose backend is down, some at a time.
    fn sweep(&mut self) {
        let Some(first) = self.proxy.sweep else { return };
        let last = first.saturating_add(SWEEP).min(self.proxy.sessions.slots());
        for slot in first..last {
            let Some(session) = self.proxy.sessions.at(slot) else { continue };
            if session.backend == NO_BACKEND {
                continue;
            }
            let services = &self.proxy.services;
            if services.backend(session.backend).is_some_and(|backend| !backend.down) {
                continue;
            }
            match (session.stage, services.listener(session.listener).map(|listener| listener.on_down)) {
                (Stage::Connecting, _) => self.connect_failed(slot),
                (_, Some(OnDown::Keep)) => {}
                _ => self.end(slot, Some(Cause::Aborted)),
            }
        }
        self.proxy.sweep = (last < self.proxy.sessions.slots()).then_some(last);
    }
}
