//! What does the client ask? From the first byte of a head to the request that is decided on.

use weir_http::cause::Cause;
use weir_http::head::{Limits, Method, Progress, Refusal, RefusedLine, Request, Span, Version, head_end};
use weir_http::name::Known;
use weir_l4::{Drain, address_of};
use weir_tcp::Endpoint;

use super::Held;
use super::body::Body;
use super::client::{Exchange, Flags, Stage, Told};
use super::event::{HttpCount, HttpGauge};
use super::rules::Tell;
use crate::connections::{Accounts, Connections, Surroundings};
use crate::proxy::{Proxy, Run, tick};

/// Requests that a client has sent ahead of which so many are served before others have their turn.
const AT_ONCE: usize = 32;
/// What is there of a head is parsed while it is shorter than this, so that noise is not waited for.
const BEGINNING: usize = 64;
/// Bytes of a refused head in which its first line is looked for, so that it can be told: a little more than the log keeps of it.
const REFUSED_LINE: usize = 4_608;

/// What became of an attempt to read a head.
enum Read {
    /// More must come.
    Waits,
    /// It is there.
    Whole(Held),
    /// It is none, or too large.
    Refused(Cause),
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Serves what a client asks, as long as answers are complete at once.
    pub(crate) fn http_serve(&mut self, slot: u32) {
        for _ in 0..AT_ONCE {
            let Some(client) = self.proxy.http.clients.at(slot) else { return };
            if !matches!(client.stage, Stage::Idle | Stage::Head) || !self.serve_one(slot) {
                return;
            }
        }
        self.proxy.http.again.push(slot);
    }

    /// Reads one head and acts on it; false: nothing more can be done now.
    #[inline]
    fn serve_one(&mut self, slot: u32) -> bool {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return false };
        let handle = client.handle;
        if !client.outbox.is_empty() {
            return false;
        }
        if self.connections.receivable(handle) == 0 {
            // nobody answers half a head to who has said that no more will come
            if client.flags.has(Flags::FINISHED) {
                self.close_client(slot, false);
            }
            return false;
        }
        if self.connections.room(handle) == 0 {
            self.connections.await_room(handle);
            return false;
        }
        match self.read_head(slot) {
            Read::Waits => {
                let Some(client) = self.proxy.http.clients.at(slot) else { return false };
                if client.flags.has(Flags::FINISHED) {
                    self.close_client(slot, false);
                }
                false
            }
            Read::Whole(held) => {
                self.begin_exchange(slot, held);
                true
            }
            Read::Refused(cause) => {
                self.begin_refused(slot);
                self.refuse(slot, cause);
                true
            }
        }
    }

    /// Looks for a whole head: in the first piece, where it usually is, else it is gathered.
    #[inline]
    fn read_head(&mut self, slot: u32) -> Read {
        let Proxy { http, rules, .. } = &mut *self.proxy;
        let Some(client) = http.clients.at_mut(slot) else { return Read::Waits };
        let Some(site) = rules.http_listener(client.listener) else { return Read::Refused(Cause::NoRoute) };
        let limits = limits(&site.rules.limits);
        if client.exchange.head.is_some() {
            return self.gather_head(slot, &limits);
        }
        let Some(piece) = self.connections.peek(client.handle) else { return Read::Waits };
        http.request_of = slot;
        match http.request.parse(piece, &limits) {
            Ok(Progress::Complete) => {
                let len = http.request.len;
                let Some(held) = http.store.hold(piece.get(..len).unwrap_or_default()) else {
                    return Read::Refused(Cause::Memory);
                };
                client.exchange = Exchange::new(self.now);
                client.exchange.head_len = len as u32;
                self.connections.consume(client.handle, len as u32);
                Read::Whole(held)
            }
            Ok(Progress::Incomplete) => {
                let Some(held) = http.store.hold(&[]) else { return Read::Refused(Cause::Memory) };
                client.exchange = Exchange::new(self.now);
                client.exchange.head = Some(held);
                client.stage = Stage::Head;
                let header_ms = site.rules.times.request_header_ms;
                // of a connection's first request the time began with the connection
                let is_first = client.requests == 0;
                self.count_idle(slot, false);
                if !is_first {
                    self.set_due(slot, header_ms);
                }
                self.gather_head(slot, &limits)
            }
            Err(refusal) => Read::Refused(refusal.request_cause()),
        }
    }

    /// Gathers a head that comes in pieces.
    fn gather_head(&mut self, slot: u32, limits: &Limits) -> Read {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return Read::Waits };
        let handle = client.handle;
        let Some(held) = client.exchange.head.as_ref() else { return Read::Waits };
        let most = (limits.head_bytes as usize).min(usize::from(u16::MAX));
        while let Some(piece) = self.connections.peek(handle) {
            let before = http.store.bytes(held).len();
            let piece = piece.get(..(most + 1 - before.min(most)).min(piece.len())).unwrap_or_default();
            let len = piece.len();
            if !http.store.append(held, piece) {
                return Read::Refused(Cause::Memory);
            }
            let bytes = http.store.bytes(held);
            let may_end = bytes.len() < BEGINNING || bytes.len() >= most || head_end(bytes, before).is_some();
            let progress = if may_end { http.request.parse(bytes, limits) } else { Ok(Progress::Incomplete) };
            http.request_of = slot;
            match progress {
                Ok(Progress::Incomplete) => self.connections.consume(handle, len as u32),
                Ok(Progress::Complete) => {
                    let whole = http.request.len;
                    http.store.truncate(held, whole);
                    self.connections.consume(handle, whole.saturating_sub(before) as u32);
                    client.exchange.head_len = whole as u32;
                    return client.exchange.head.take().map_or(Read::Waits, Read::Whole);
                }
                Err(refusal) => return Read::Refused(refusal.request_cause()),
            }
        }
        Read::Waits
    }

    /// The head is there: the exchange is known and decided on.
    #[inline]
    fn begin_exchange(&mut self, slot: u32, held: Held) {
        let random = self.proxy.http.next_random();
        let id = u128::from(self.proxy.http.next_random()) << 64 | u128::from(random);
        let Proxy { http, rules, services, .. } = &mut *self.proxy;
        let Some(client) = http.clients.at_mut(slot) else { return http.store.give(held) };
        let Some(site) = rules.http_listener(client.listener) else { return http.store.give(held) };
        let request = &http.request;
        client.requests = client.requests.saturating_add(1);
        let limits = &site.rules.limits;
        let flags = &mut client.flags;
        flags.forget_exchange();
        flags.set(Flags::EXCHANGE);
        flags.put(Flags::HTTP10, request.version == Version::Http10);
        flags.put(Flags::EXPECTS, request.expect_continue);
        let is_last = limits.requests != 0 && client.requests >= limits.requests;
        let drains = services.drain(client.listener) != Drain::No;
        if !request.keep_alive || is_last || drains {
            flags.set(Flags::CLOSES);
        }
        let sampled = random % 10_000 < u64::from(site.rules.log_per_ten_thousand);
        flags.put(Flags::LOGGED, sampled);
        let exchange = &mut client.exchange;
        exchange.request = Body::from(request.body);
        flags.put(Flags::HAS_BODY, !exchange.request.is_done());
        flags.put(Flags::REQUEST_DONE, exchange.request.is_done());
        exchange.method = request.method;
        exchange.generation = http.generations.enter();
        exchange.number = http.generations.number();
        exchange.request_id = id;
        exchange.head_us = exchange.since(self.now);
        let span = |known| request.fields.find(known).map(|field| field.value).unwrap_or_default();
        exchange.told = Told {
            method: request.method_name,
            target: request.target.whole,
            host: request.host.authority,
            user_agent: span(Known::UserAgent),
            referer: span(Known::Referer),
            request_id: given_id(&site.rules.tell, request, http.store.bytes(&held), client.source),
        };
        exchange.head = Some(held);
        let listener = client.listener;
        self.accounts.http(listener, HttpCount::Requests, 1);
        self.accounts.http_gauge(listener, HttpGauge::Exchanges, 1);
        self.count_idle(slot, false);
        self.decide(slot);
    }

    /// What was sent is no head: an exchange without a request, for the answer. Of what has come the log hears the first line.
    pub(crate) fn begin_refused(&mut self, slot: u32) {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let began = if client.stage == Stage::Head { client.exchange.began } else { self.now };
        let mut held = client.exchange.head.take();
        let there = match &held {
            Some(held) => http.store.bytes(held),
            None => self.connections.peek(client.handle).unwrap_or_default(),
        };
        let there = there.get(..REFUSED_LINE.min(there.len())).unwrap_or_default();
        let line = RefusedLine::of(there);
        let method = Method::of(line.method.of(there));
        // of what was refused where it lies only that much is kept
        if held.is_none()
            && !line.method.is_empty()
            && let Some(piece) = self.connections.peek(client.handle)
        {
            let end = usize::from(line.target.start) + usize::from(line.target.len);
            held = http.store.hold(piece.get(..end).unwrap_or_default());
        }
        client.exchange = Exchange::new(began);
        client.exchange.head = held;
        client.exchange.told = Told { method: line.method, target: line.target, ..Told::default() };
        // an answer to HEAD has no body, whatever else is wrong with it
        if method == Method::Head {
            client.exchange.method = method;
        }
        client.exchange.generation = http.generations.enter();
        client.exchange.number = http.generations.number();
        client.flags.forget_exchange();
        client.flags.set(Flags::EXCHANGE | Flags::CLOSES | Flags::DISCARDS);
        client.flags.put(Flags::HTTP10, line.version == Some(Version::Http10));
        client.flags.put(Flags::NO_VERSION, line.version.is_none());
        self.accounts.http_gauge(client.listener, HttpGauge::Exchanges, 1);
        self.count_idle(slot, false);
    }

    /// Makes the exchange's head the one that was parsed last: others may have been since.
    pub(crate) fn recall_request(&mut self, slot: u32) -> Option<()> {
        let Proxy { http, .. } = &mut *self.proxy;
        if http.request_of == slot {
            return Some(());
        }
        let client = http.clients.at(slot)?;
        let bytes = http.store.bytes(client.exchange.head.as_ref()?);
        let head = bytes.get(..client.exchange.head_len as usize)?;
        // it was parsed with the limits of its listener before
        let progress: Result<Progress, Refusal> = http.request.parse(head, &Limits::WIDEST);
        http.request_of = slot;
        matches!(progress, Ok(Progress::Complete)).then_some(())
    }

    /// The tick of now.
    #[inline]
    pub(crate) fn tick(&self) -> u32 {
        tick(self.now)
    }
}

/// The id that a trusted client has given its request.
#[inline]
fn given_id(tell: &Tell, request: &Request, head: &[u8], source: Endpoint) -> Span {
    // most listeners trust nobody
    if tell.trusted.is_empty() || tell.request_id.is_empty() || !tell.trusts(address_of(source.address)) {
        return Span::default();
    }
    let field = request.fields.first_named(head, tell.request_id.as_bytes());
    field.map(|field| field.value).unwrap_or_default()
}

/// A listener's limits, as the parser takes them.
#[inline]
fn limits(limits: &super::rules::HttpLimits) -> Limits {
    Limits { head_bytes: limits.header_bytes, headers: limits.headers, target_bytes: limits.uri_bytes }
}
