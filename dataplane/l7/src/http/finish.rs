//! How does an exchange end, and what becomes of its connections then?

use weir_http::cause::Cause;
use weir_l4::address_of;
use weir_tcp::{Ended, Instant};

use super::breaker::Outcome;
use super::client::{Client, Exchange, Flags, NEVER, NO_ROUTE, NOBODY, Stage};
use super::event::{self, HttpCount, HttpGauge};
use super::rules;
use super::upstream;
use crate::admission;
use crate::connections::{self, Accounts, Connections, ListenerCount, Surroundings};
use crate::limits::Key;
use crate::proxy::{Run, tick};
use crate::session::NO_BACKEND;

/// Bytes that are read and discarded behind a last response, so that the client can read it (RFC 9112 §9.6).
pub(crate) const LINGER_BYTES: u32 = 1 << 20;
/// For how long.
pub(crate) const LINGER_MS: u32 = 1_000;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// The exchange is over: it is told and forgotten. Its connection to a backend is let go of, at once if it still has it.
    pub(crate) fn finish_exchange(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        if !client.flags.has(Flags::EXCHANGE) {
            return;
        }
        let upstream = client.exchange.upstream;
        if upstream != NOBODY {
            self.end_attempt(slot, Outcome::Aborted);
            self.drop_http_upstream(upstream, true);
        }
        self.tell_exchange(slot);
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        self.accounts.http_gauge(client.listener, HttpGauge::Exchanges, -1);
        if client.flags.has(Flags::TUNNEL) {
            self.accounts.http_gauge(client.listener, HttpGauge::Tunnels, -1);
        }
        http.generations.leave(client.exchange.generation);
        client.exchange.generation = super::generation::NONE;
        if let Some(held) = client.exchange.head.take() {
            http.store.give(held);
        }
        client.flags.forget_exchange();
    }

    /// Tells the log, where it should hear of it.
    fn tell_exchange(&mut self, slot: u32) {
        let http = &self.proxy.http;
        let Some(client) = http.clients.at(slot) else { return };
        let exchange = &client.exchange;
        if let Some(cause) = exchange.cause {
            self.accounts.http(client.listener, HttpCount::Own, 1);
            self.accounts.cause(client.listener, cause);
        } else if !client.flags.has(Flags::LOGGED) {
            return;
        }
        let head = exchange.head.as_ref().map_or(&[][..], |held| http.store.bytes(held));
        let mut id = [0; 32];
        let request_id = exchange.id(head, &mut id);
        let event = told(client, head, request_id, self.now);
        self.surroundings.tell(event::Event::Exchange(&event));
    }

    /// The response is complete: the connections go on, or end.
    pub(crate) fn response_done(&mut self, slot: u32) {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let is_read = client.flags.has(Flags::REQUEST_DONE);
        let upstream = client.exchange.upstream;
        if is_read && client.flags.has(Flags::REUSABLE) {
            client.exchange.upstream = NOBODY;
            self.keep_upstream(upstream);
        } else {
            self.drop_http_upstream(upstream, !is_read);
        }
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        // a request whose body is still coming can't be followed by another
        client.flags.put(Flags::DISCARDS, !is_read);
        self.next_or_close(slot);
    }

    /// After a response: the next request, or the end.
    pub(crate) fn next_or_close(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let discards = client.flags.has(Flags::DISCARDS);
        let closes = client.flags.has(Flags::CLOSES) || discards;
        let waits = client.flags.has(Flags::DRAINS) && !closes && !self.drain(slot);
        self.finish_exchange(slot);
        if closes {
            return self.close_client(slot, discards);
        }
        if waits {
            return self.await_body(slot);
        }
        self.rest(slot);
    }

    /// The client's connection waits for its next request.
    pub(super) fn rest(&mut self, slot: u32) {
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at_mut(slot) else { return };
        let Some(site) = proxy.rules.http_listener(client.listener) else {
            return self.close_client(slot, false);
        };
        client.stage = Stage::Idle;
        let keep_alive_ms = site.rules.times.keep_alive_ms;
        // what was sent ahead comes as soon as the news have been read
        if self.connections.receivable(client.handle) > 0 || client.flags.has(Flags::FINISHED) {
            proxy.http.again.push(slot);
        }
        self.set_due(slot, keep_alive_ms);
        self.count_idle(slot, true);
    }

    /// Ends a client's connection in order. Where it may still send, what it sends is discarded for a while, so that no RST overtakes the
    /// response.
    pub(crate) fn close_client(&mut self, slot: u32, lingers: bool) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        let handle = client.handle;
        let waits = self.connections.receivable(handle) > 0;
        let may_come = lingers && !client.flags.has(Flags::FINISHED);
        if !waits && !may_come {
            return self.end_client(slot, None);
        }
        client.stage = Stage::Linger;
        client.discarded = 0;
        self.connections.shutdown(handle);
        self.count_idle(slot, false);
        self.set_due(slot, LINGER_MS);
        self.discard(slot);
    }

    /// Discards what a client sends behind its last response.
    pub(crate) fn discard(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        let handle = client.handle;
        let waiting = self.connections.receivable(handle);
        self.connections.consume(handle, waiting);
        client.discarded = client.discarded.saturating_add(waiting);
        if client.flags.has(Flags::FINISHED) || client.discarded > LINGER_BYTES {
            self.end_client(slot, None);
        }
    }

    /// The client's connection is over.
    pub(crate) fn client_gone(&mut self, slot: u32, handle: C::Handle) {
        let ended = self.connections.ended(handle);
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        if ended == Ended::Reset {
            self.accounts.listener(client.listener, ListenerCount::ClientResets, 1);
        }
        // a tunnel's other side may not have read everything
        if client.stage == Stage::Tunnel && ended == Ended::Finished {
            client.flags.set(Flags::FINISHED);
            return self.relay_tunnel(slot);
        }
        let in_exchange = client.flags.has(Flags::EXCHANGE);
        if in_exchange && client.stage != Stage::Tunnel && client.exchange.cause.is_none() {
            client.exchange.cause = Some(Cause::ClientClosed);
        }
        self.end_client(slot, None);
    }

    /// Ends a client's connection with a RST.
    pub(crate) fn abort_client(&mut self, slot: u32, cause: connections::Cause) {
        self.end_client(slot, Some(cause));
    }

    /// Ends the exchange with a RST to the client, since its response has begun.
    pub(crate) fn cut(&mut self, slot: u32, cause: Cause) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        client.exchange.cause = Some(cause);
        let of_connection = match cause {
            Cause::ResponseIdle | Cause::ClientSlow | Cause::TunnelTimeout => connections::Cause::Timeout,
            Cause::Memory => connections::Cause::Memory,
            _ => connections::Cause::Aborted,
        };
        self.abort_client(slot, of_connection);
    }

    /// Lets go of a client's connection and of everything that belongs to it.
    pub(crate) fn end_client(&mut self, slot: u32, abort: Option<connections::Cause>) {
        self.http_dequeue(slot);
        self.finish_exchange(slot);
        self.count_idle(slot, false);
        self.drop_parser(slot);
        let proxy = &mut *self.proxy;
        let http = &mut proxy.http;
        http.client_wheel.disarm(&mut http.clients, slot);
        if http.request_of == slot {
            http.request_of = NOBODY;
        }
        let Some(mut client) = http.clients.remove(slot) else { return };
        client.outbox.clear(&mut http.store);
        // of a head that was never complete
        if let Some(held) = client.exchange.head.take() {
            http.store.give(held);
        }
        if let Some(cause) = abort {
            self.connections.abort(client.handle);
            self.accounts.aborted(cause);
        }
        admission::release(&proxy.services, self.connections, client.handle);
        self.accounts.listener_active(client.listener, -1);
        if client.flags.has(Flags::LEASED) {
            proxy.leases.release(Key::Listener(client.listener));
        }
        if client.flags.has(Flags::ADDRESS) {
            proxy.http.addresses.leave(client.listener, client.source.address);
        }
    }

    /// A backend's connection waits for another exchange, if it may.
    pub(crate) fn keep_upstream(&mut self, at: u32) {
        let proxy = &mut *self.proxy;
        let http = &mut proxy.http;
        let Some(upstream) = http.upstreams.at_mut(at) else { return };
        let (backend, pool) = (upstream.backend, upstream.pool);
        let now = tick(self.now);
        let age = now.wrapping_sub(upstream.opened_at);
        let is_open = self.connections.is_quiet(upstream.handle);
        let may = |rules: &rules::HttpPool| {
            !upstream.closes
                && !upstream.is_bound
                && is_open
                && (rules.requests == 0 || upstream.requests < rules.requests)
                && (rules.lifetime_ms == 0 || age < rules.lifetime_ms)
                && http.idle.len(backend) < rules.idle_connections
        };
        let kept = proxy.rules.http_pool(pool).filter(|rules| may(rules)).map(|rules| {
            let left = if rules.lifetime_ms == 0 { u32::MAX } else { rules.lifetime_ms - age };
            rules.idle_ms.min(left).max(1)
        });
        let is_tight = proxy.leases.is_tight(Key::Backend(backend));
        let Some(idle_ms) = kept.filter(|_| !is_tight) else { return self.drop_http_upstream(at, false) };
        upstream.stage = upstream::Stage::Idle;
        upstream.client = NOBODY;
        let due = now.wrapping_add(idle_ms);
        upstream.due = due;
        if !http.upstreams.is_armed_by(at, due) {
            http.upstream_wheel.arm(&mut http.upstreams, at, due);
        }
        http.idle.push(&mut http.upstreams, backend, at);
        self.accounts.backend_idle(backend, 1);
        self.proxy.wake(pool);
    }

    /// Lets go of a connection to a backend, idle or not; its limit has room for another.
    pub(crate) fn drop_http_upstream(&mut self, at: u32, aborts: bool) {
        let proxy = &mut *self.proxy;
        let http = &mut proxy.http;
        let Some(upstream) = http.upstreams.at(at) else { return };
        let (backend, pool) = (upstream.backend, upstream.pool);
        if upstream.stage == upstream::Stage::Idle && http.idle.remove(&mut http.upstreams, backend, at) {
            self.accounts.backend_idle(backend, -1);
        }
        http.upstream_wheel.disarm(&mut http.upstreams, at);
        let Some(mut upstream) = http.upstreams.remove(at) else { return };
        upstream.outbox.clear(&mut http.store);
        if let Some(client) = http.clients.at_mut(upstream.client)
            && client.exchange.upstream == at
        {
            client.exchange.upstream = NOBODY;
        }
        // what isn't open yet, or has unread data, ends with a RST anyway
        if aborts {
            self.connections.abort(upstream.handle);
        }
        self.connections.release(upstream.handle);
        self.accounts.backend_active(backend, -1);
        proxy.leases.release(Key::Backend(backend));
        proxy.wake(pool);
    }
}

/// What the log hears.
fn told<'a, H>(
    client: &'a Client<H>,
    head: &'a [u8],
    request_id: &'a [u8],
    now: Instant,
) -> event::Exchange<'a> {
    let exchange: &Exchange = &client.exchange;
    let spans = &exchange.told;
    debug_assert!(exchange.route != NO_ROUTE || exchange.attempts == 0 || exchange.pool != u32::MAX);
    event::Exchange {
        generation: exchange.number,
        listener: client.listener,
        route: exchange.route,
        pool: exchange.pool,
        backend: if exchange.backend == NO_BACKEND { u32::MAX } else { exchange.backend },
        client: rules::Client { address: address_of(client.source.address), port: client.source.port },
        method: spans.method.of(head),
        target: spans.target.of(head),
        host: spans.host.of(head),
        user_agent: spans.user_agent.of(head),
        referer: spans.referer.of(head),
        request_id,
        version: match () {
            () if client.flags.has(Flags::NO_VERSION) => 0,
            () if client.flags.has(Flags::HTTP10) => 10,
            () => 11,
        },
        status: exchange.status,
        cause: exchange.cause,
        bytes_in: exchange.bytes_in,
        bytes_out: exchange.bytes_out,
        attempts: exchange.attempts,
        is_reused: client.flags.has(Flags::REUSED),
        head_us: exchange.head_us,
        queue_us: exchange.queue_us,
        connect_us: exchange.connect_us,
        response_us: exchange.response_us,
        total_us: exchange.since(now).min(NEVER - 1),
    }
}
