//! Is this client welcome, and who is it? From the accepted connection to the first byte of its first request.

use weir_http::cause::Cause;
use weir_tcp::Events;

use super::client::{Client, Exchange, Flags, NOBODY, Stage};
use super::event::{HttpCount, HttpGauge};
use super::outbox::Outbox;
use super::rules::WhenFull;
use super::slab::Queue;
use crate::admission;
use crate::connections::{self, Accepted, Accounts, Connections, ListenerCount, Surroundings};
use crate::limits::{Acquired, Key};
use crate::proxy::{Run, tick};
use crate::proxy_protocol::{Parser, Progress};
use crate::session::Token;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// A client of an HTTP listener has connected; who sends PROXY headers was asked for before.
    pub(crate) fn http_accept(&mut self, handle: C::Handle, accepted: Accepted) {
        let index = accepted.listener;
        let proxy = &mut *self.proxy;
        let Some(site) = proxy.rules.http_listener(index) else {
            return self.turn_away(handle, connections::Cause::Aborted);
        };
        let (when_full, header_ms) = (site.rules.when_full, site.rules.times.request_header_ms);
        let is_full = proxy.http.is_full();
        if is_full && when_full == WhenFull::Reset || !proxy.http.clients.has_room() {
            self.count_cause(index, Cause::Memory);
            return self.turn_away(handle, connections::Cause::Memory);
        }
        let acquired = proxy.leases.acquire(Key::Listener(index));
        if acquired == Acquired::Exhausted {
            self.accounts.listener(index, ListenerCount::RefusedLimit, 1);
            return self.turn_away(handle, connections::Cause::Limit);
        }
        let mut flags = Flags::default();
        flags.put(Flags::LEASED, acquired == Acquired::Yes);
        let now = tick(self.now);
        let client = Client {
            handle,
            stage: Stage::AwaitLease,
            flags,
            listener: index,
            requests: 0,
            source: accepted.remote,
            destination: accepted.local,
            vip_port: accepted.local.port,
            due: now,
            parser: NOBODY,
            outbox: Outbox::default(),
            discarded: 0,
            exchange: Exchange::new(self.now),
        };
        let Ok(slot) = proxy.http.clients.insert(client) else { return };
        admission::opened(&proxy.services, &accepted);
        self.connections.set_token(handle, Token::HttpClient(slot).number());
        self.accounts.listener_active(index, 1);
        self.set_due(slot, header_ms);
        if is_full {
            // refused in words: the client is told and goes
            return self.refuse_connection(slot, Cause::Memory);
        }
        if acquired == Acquired::Yes {
            return self.http_begin(slot);
        }
        let proxy = &mut *self.proxy;
        let http = &mut proxy.http;
        if http.arrivals.len() <= usize::from(index) {
            http.arrivals.resize(usize::from(index) + 1, Queue::default());
        }
        if let Some(arrivals) = http.arrivals.get_mut(usize::from(index)) {
            arrivals.push(&mut http.clients, slot);
        }
    }

    /// The ledger has answered for a listener: who waits comes in, as far as there are tokens.
    pub(crate) fn serve_http_arrivals(&mut self, listener: u16) {
        loop {
            let proxy = &mut *self.proxy;
            let Some(queue) = proxy.http.arrivals.get_mut(usize::from(listener)) else { return };
            let slot = queue.head;
            if slot == NOBODY {
                return;
            }
            match proxy.leases.acquire(Key::Listener(listener)) {
                Acquired::Pending => return,
                Acquired::Exhausted => {
                    self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
                    self.abort_client(slot, connections::Cause::Limit);
                }
                Acquired::Yes => {
                    queue.remove(&mut proxy.http.clients, slot);
                    if let Some(client) = proxy.http.clients.at_mut(slot) {
                        client.flags.set(Flags::LEASED);
                    }
                    self.http_begin(slot);
                }
            }
        }
    }

    /// The connection counts: next is its PROXY header, or its first request.
    fn http_begin(&mut self, slot: u32) {
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at_mut(slot) else { return };
        client.stage = Stage::AwaitProxy;
        let rules = proxy.rules.listener(client.listener);
        let Some(expects) = rules.and_then(|rules| rules.accept_proxy) else {
            return self.http_welcome(slot);
        };
        let handshake_ms = rules.map_or(0, |rules| rules.handshake_ms);
        client.parser = proxy.http.parsers.insert(Parser::new(expects));
        self.set_due(slot, handshake_ms);
        self.read_proxy_header(slot);
    }

    /// Takes what has arrived of the PROXY header.
    pub(crate) fn read_proxy_header(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let (handle, listener, at) = (client.handle, client.listener, client.parser);
        while let Some(piece) = self.connections.peek(handle) {
            let Some(parser) = self.proxy.http.parsers.at_mut(at) else { return };
            let len = piece.len() as u32;
            match parser.feed(piece) {
                Ok(Progress::Incomplete) => self.connections.consume(handle, len),
                Ok(Progress::Done(header)) => {
                    self.connections.consume(handle, u32::from(header.len));
                    self.drop_parser(slot);
                    if let Some(client) = self.proxy.http.clients.at_mut(slot)
                        && let Some(ends) = header.ends
                    {
                        (client.source, client.destination) = (ends.source, ends.destination);
                    }
                    return self.http_welcome(slot);
                }
                Err(_) => {
                    self.accounts.listener(listener, ListenerCount::ProxyHeaderRefused, 1);
                    return self.abort_client(slot, connections::Cause::Aborted);
                }
            }
        }
        if self.proxy.http.clients.at(slot).is_some_and(|client| client.flags.has(Flags::FINISHED)) {
            self.accounts.listener(listener, ListenerCount::ProxyHeaderRefused, 1);
            self.abort_client(slot, connections::Cause::Aborted);
        }
    }

    /// Gives the parser of a PROXY header back, if there is one.
    pub(crate) fn drop_parser(&mut self, slot: u32) {
        if let Some(client) = self.proxy.http.clients.at_mut(slot) {
            let at = std::mem::replace(&mut client.parser, NOBODY);
            self.proxy.http.parsers.remove(at);
        }
    }

    /// The client is known: its address may have no more connections than the limit, then requests follow.
    fn http_welcome(&mut self, slot: u32) {
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at_mut(slot) else { return };
        let Some(site) = proxy.rules.http_listener(client.listener) else {
            return self.abort_client(slot, connections::Cause::Aborted);
        };
        let limits = (site.rules.limits.client_connections, site.rules.times.request_header_ms);
        let (most, header_ms) = limits;
        let is_welcome =
            most == 0 || proxy.http.addresses.enter(client.listener, client.source.address, most);
        if most != 0 && is_welcome {
            client.flags.set(Flags::ADDRESS);
        }
        client.stage = Stage::Idle;
        self.set_due(slot, header_ms);
        if !is_welcome {
            return self.refuse_connection(slot, Cause::ClientConnections);
        }
        self.count_idle(slot, true);
        self.http_serve(slot);
    }

    /// Counts a client among the idle ones, or no more.
    #[inline]
    pub(crate) fn count_idle(&mut self, slot: u32, is_idle: bool) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        if client.flags.has(Flags::IDLE) != is_idle {
            client.flags.put(Flags::IDLE, is_idle);
            self.accounts.http_gauge(client.listener, HttpGauge::IdleClients, if is_idle { 1 } else { -1 });
        }
    }

    /// Counts what the proxy did on its own account.
    pub(crate) fn count_cause(&mut self, listener: u16, cause: Cause) {
        self.accounts.http(listener, HttpCount::Own, 1);
        self.accounts.cause(listener, cause);
    }

    /// News of a client's connection.
    pub(crate) fn http_client_news(&mut self, slot: u32, handle: C::Handle, events: Events) {
        let Some(client) = self.proxy.http.clients.at_mut(slot).filter(|client| client.handle == handle)
        else {
            return;
        };
        if events.has(Events::CLOSED) {
            return self.client_gone(slot, handle);
        }
        if events.has(Events::FINISHED) {
            client.flags.set(Flags::FINISHED);
        }
        if events.has(Events::WRITABLE) && !self.flush_client(slot) {
            return;
        }
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let may_read = events.has(Events::READABLE | Events::FINISHED);
        match client.stage {
            Stage::AwaitLease | Stage::Queued | Stage::Connecting => {}
            Stage::AwaitProxy => self.read_proxy_header(slot),
            Stage::Idle | Stage::Head => self.http_serve(slot),
            Stage::Collect => self.collect(slot),
            Stage::Active => {
                if may_read {
                    self.pump_request(slot);
                }
                if events.has(Events::WRITABLE) {
                    self.response_news(slot);
                }
            }
            Stage::Answer => self.answer_left(slot),
            Stage::Drain => self.drain_on(slot),
            Stage::Linger => self.discard(slot),
            Stage::Tunnel => self.relay_tunnel(slot),
        }
    }
}
