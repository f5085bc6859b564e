//! How does a response get to its client? Interim ones and the final one's head written anew, its body as it comes.

use weir_http::cause::Cause;
use weir_http::chunked::{Decoder, Trailers};
use weir_http::head::{self, Limits, Method, Progress, Refusal, Version};
use weir_http::name::Known;
use weir_http::write::{self, ResponseOut, StickyCookie, Variables};
use weir_l4::address_of;
use weir_tcp::{Ended, Events};

use super::body::{Body, Halt, Manner, pump};
use super::client::{Flags, NOBODY, Stage};
use super::event::{BackendHttpCount, HttpCount};
use super::heads::authority;
use super::outbox::Sent;
use super::upstream;
use crate::connections::{Accounts, BackendCount, Connections, ListenerCount, Surroundings};
use crate::proxy::{Proxy, Run};

/// Interim responses to one request that are passed on; who sends more is not answering.
const INTERIM: u8 = 32;
/// Bytes of a response's head that may lie in several pieces.
const MOST: usize = u16::MAX as usize;

/// What became of an attempt to read a response's head.
enum Read {
    /// More must come.
    Waits,
    /// It was dealt with; what follows may be there.
    Interim,
    /// The final one was passed on.
    Final,
    /// The exchange is over or begins anew.
    Gone,
}

/// What follows a final head that was passed on.
enum Passed {
    /// Its body.
    Response,
    /// Whatever both sides send; it begins behind the head.
    Tunnel,
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// News of a connection to a backend.
    pub(crate) fn http_upstream_news(&mut self, at: u32, handle: C::Handle, events: Events) {
        let http = &mut self.proxy.http;
        let Some(upstream) = http.upstreams.at_mut(at).filter(|upstream| upstream.handle == handle) else {
            return;
        };
        let (slot, stage) = (upstream.client, upstream.stage);
        match stage {
            // data that nobody asked for, a FIN or a RST: it is no good any more
            upstream::Stage::Idle => return self.drop_http_upstream(at, false),
            upstream::Stage::Mirror => return self.mirror_news(at, handle, events),
            upstream::Stage::Connecting if events.has(Events::CONNECTED) => self.http_connected(at),
            upstream::Stage::Connecting if events.has(Events::CLOSED) => {
                return self.connect_refused(slot, at, handle);
            }
            upstream::Stage::Connecting | upstream::Stage::Active => {}
        }
        // it may have gone with its exchange
        let http = &mut self.proxy.http;
        let Some(upstream) = http.upstreams.at_mut(at).filter(|upstream| upstream.handle == handle) else {
            return;
        };
        if events.has(Events::FINISHED) {
            upstream.is_finished = true;
        }
        if events.has(Events::CLOSED) {
            upstream.is_finished = true;
            if self.connections.ended(handle) != Ended::Finished {
                return self.upstream_lost(slot, at, handle);
            }
        }
        let Some(client) = http.clients.at(slot) else { return };
        if client.stage == Stage::Tunnel {
            return self.relay_tunnel(slot);
        }
        if events.has(Events::WRITABLE) {
            self.flush_upstream(slot);
        }
        if events.has(Events::READABLE | Events::FINISHED | Events::CLOSED) {
            self.response_news(slot);
        }
    }

    /// There is room at the backend again.
    fn flush_upstream(&mut self, slot: u32) {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at(slot) else { return };
        let Some(upstream) = http.upstreams.at_mut(client.exchange.upstream) else { return };
        let handle = upstream.handle;
        match upstream.outbox.flush(handle, self.connections, self.surroundings, &mut http.store) {
            Sent::All => self.pump_request(slot),
            Sent::Some => {}
            Sent::Refused => self.upstream_refuses(slot),
        }
    }

    /// The connection ended without order.
    fn upstream_lost(&mut self, slot: u32, at: u32, handle: C::Handle) {
        let Some(upstream) = self.proxy.http.upstreams.at(at) else { return };
        if self.connections.ended(handle) == Ended::Reset {
            self.accounts.backend(upstream.backend, BackendCount::ServerResets, 1);
        }
        let Some(client) = self.proxy.http.clients.at(slot) else {
            return self.drop_http_upstream(at, false);
        };
        if client.stage == Stage::Tunnel {
            return self.cut(slot, Cause::ResponseTruncated);
        }
        if client.flags.has(Flags::RESPONSE) {
            return self.response_cut(slot, Cause::ResponseTruncated);
        }
        self.attempt_failed(slot, Cause::ResponseMissing);
    }

    /// Passes on what is there of the response.
    #[inline]
    pub(crate) fn response_news(&mut self, slot: u32) {
        loop {
            let http = &mut self.proxy.http;
            let Some(client) = http.clients.at(slot) else { return };
            if client.stage != Stage::Active || !client.outbox.is_empty() {
                return;
            }
            if client.flags.has(Flags::RESPONSE) {
                return self.pump_response(slot);
            }
            if self.connections.room(client.handle) == 0 {
                return self.connections.await_room(client.handle);
            }
            match self.read_response(slot) {
                Read::Interim | Read::Final => {}
                Read::Waits | Read::Gone => return,
            }
        }
    }

    /// Looks for the head of a response and passes it on.
    #[inline]
    fn read_response(&mut self, slot: u32) -> Read {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return Read::Gone };
        let Some(upstream) = http.upstreams.at(client.exchange.upstream) else { return Read::Gone };
        let (handle, is_finished) = (upstream.handle, upstream.is_finished);
        let method = client.exchange.method;
        let Some(piece) = self.connections.peek(handle) else {
            if is_finished {
                self.attempt_failed(slot, Cause::ResponseMissing);
                return Read::Gone;
            }
            return Read::Waits;
        };
        let parsed = http.response.parse(piece, &Limits::WIDEST, method);
        match parsed {
            Ok(Progress::Complete) => {}
            // a folded line is mended in a copy
            Ok(Progress::Incomplete) | Err(Refusal::Folded) => {
                return self.gather_response(slot, handle, is_finished);
            }
            Err(refusal) => {
                self.attempt_failed(slot, refusal.response_cause());
                return Read::Gone;
            }
        }
        let len = http.response.len;
        // the head is copied into the scratch while it is written; the piece may go only then
        self.pass_head(slot, handle, len, None)
    }

    /// A head that lies in several pieces: they are looked at as one.
    fn gather_response(&mut self, slot: u32, handle: C::Handle, is_finished: bool) -> Read {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at(slot) else { return Read::Gone };
        let method = client.exchange.method;
        let Some(held) = http.store.hold(&[]) else {
            self.fail(slot, Cause::Memory);
            return Read::Gone;
        };
        let (mut gathered, mut is_kept) = (0, true);
        for piece in self.connections.waiting(handle) {
            let piece = piece.get(..(MOST - gathered).min(piece.len())).unwrap_or_default();
            gathered += piece.len();
            is_kept = http.store.append(&held, piece);
            if gathered == MOST || !is_kept {
                break;
            }
        }
        if !is_kept {
            http.store.give(held);
            self.fail(slot, Cause::Memory);
            return Read::Gone;
        }
        let mut parsed = http.response.parse(http.store.bytes(&held), &Limits::WIDEST, method);
        if parsed == Err(Refusal::Folded) {
            head::unfold(http.store.bytes_mut(&held));
            parsed = http.response.parse(http.store.bytes(&held), &Limits::WIDEST, method);
        }
        let read = match parsed {
            Ok(Progress::Complete) => {
                let len = http.response.len;
                return self.pass_head(slot, handle, len, Some(held));
            }
            // it can't be waited for in a window that is closed
            Ok(Progress::Incomplete) if is_finished => Some(Cause::ResponseMissing),
            Ok(Progress::Incomplete) => None,
            Err(refusal) => Some(refusal.response_cause()),
        };
        http.store.give(held);
        match read {
            Some(cause) => {
                self.attempt_failed(slot, cause);
                Read::Gone
            }
            None => Read::Waits,
        }
    }

    /// A head is there, in the first piece or gathered: what it means, and on with it.
    #[inline]
    fn pass_head(&mut self, slot: u32, handle: C::Handle, len: usize, gathered: Option<super::Held>) -> Read {
        let status = self.proxy.http.response.status;
        if self.proxy.http.response.is_interim() {
            let read = self.pass_interim(slot, gathered.as_ref());
            self.connections.consume(handle, len as u32);
            self.give_back(gathered);
            return read;
        }
        if let Some(cause) = self.is_misplaced(slot, status) {
            self.give_back(gathered);
            self.attempt_failed(slot, cause);
            return Read::Gone;
        }
        if self.proxy.http.response.body == head::Body::Chunked && self.is_body_bad(handle, len) {
            self.give_back(gathered);
            self.attempt_failed(slot, Cause::ResponseMalformed);
            return Read::Gone;
        }
        if self.wants_other(slot, status) {
            self.give_back(gathered);
            self.judge_response(slot);
            self.try_again(slot);
            return Read::Gone;
        }
        let passed = self.pass_final(slot, gathered.as_ref());
        self.connections.consume(handle, len as u32);
        self.give_back(gathered);
        match passed {
            Some(Passed::Tunnel) => {
                self.begin_tunnel(slot);
                Read::Gone
            }
            Some(Passed::Response) => Read::Final,
            None => {
                self.fail(slot, Cause::ResponseTooLarge);
                Read::Gone
            }
        }
    }

    fn give_back(&mut self, held: Option<super::Held>) {
        if let Some(held) = held {
            self.proxy.http.store.give(held);
        }
    }

    /// Whether the chunks that came with their head are none: while the client has nothing of the response, it can still be told.
    fn is_body_bad(&self, handle: C::Handle, head_len: usize) -> bool {
        let (mut before, mut decoder) = (head_len, Decoder::new());
        for piece in self.connections.waiting(handle) {
            let mut rest = piece.get(before.min(piece.len())..).unwrap_or_default();
            before -= before.min(piece.len());
            while !rest.is_empty() && !decoder.is_done() {
                let Ok(passed) = decoder.pass(rest, Trailers::Pass) else { return true };
                rest = rest.get((passed.pass + passed.skip).max(1)..).unwrap_or_default();
            }
            // one that begins well may go bad later: that is what cutting it off is for
            if before == 0 {
                break;
            }
        }
        false
    }

    /// Whether a status means something that nobody asked for.
    fn is_misplaced(&self, slot: u32, status: u16) -> Option<Cause> {
        let client = self.proxy.http.clients.at(slot)?;
        let upgrades = client.flags.has(Flags::UPGRADE);
        (status == 101 && !upgrades).then_some(Cause::ResponseMalformed)
    }

    /// Passes an interim response on, to who may understand it.
    fn pass_interim(&mut self, slot: u32, gathered: Option<&super::Held>) -> Read {
        let Proxy { http, .. } = &mut *self.proxy;
        let Some(client) = http.clients.at_mut(slot) else { return Read::Gone };
        client.exchange.interim = client.exchange.interim.saturating_add(1);
        if client.exchange.interim > INTERIM {
            self.attempt_failed(slot, Cause::ResponseInterim);
            return Read::Gone;
        }
        // RFC 9110 §15.2: never to a 1.0 client; 100 only to who waits for it
        if client.flags.has(Flags::HTTP10) || http.response.status == 100 && !client.flags.has(Flags::EXPECTS)
        {
            return Read::Interim;
        }
        let Some(upstream) = http.upstreams.at(client.exchange.upstream) else { return Read::Gone };
        let head = match gathered {
            Some(held) => http.store.bytes(held),
            None => self.connections.peek(upstream.handle).unwrap_or_default(),
        };
        let how = ResponseOut {
            edits: &[],
            variables: Variables::default(),
            via: "",
            version: Version::Http11,
            body: head::Body::None,
            keep_alive: true,
            sticky: None,
            date: None,
        };
        http.scratch.clear();
        if write::response(&mut http.scratch, head, &http.response, &how).is_err() {
            self.fail(slot, Cause::ResponseTooLarge);
            return Read::Gone;
        }
        self.accounts.http(client.listener, HttpCount::Informational, 1);
        match self.send_scratch(slot) {
            Sent::Refused => Read::Gone,
            Sent::All | Sent::Some => Read::Interim,
        }
    }

    /// Sends the scratch to the client.
    #[inline]
    pub(crate) fn send_scratch(&mut self, slot: u32) -> Sent {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return Sent::Refused };
        let sent = client.outbox.send(
            &http.scratch,
            client.handle,
            self.connections,
            self.surroundings,
            &mut http.store,
        );
        if sent == Sent::Refused {
            self.client_refuses(slot);
        }
        sent
    }

    /// The client's connection takes nothing more: it has died and its news follow, or there is no memory.
    pub(crate) fn client_refuses(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        match self.connections.ended(client.handle) {
            Ended::No | Ended::Finished => self.cut(slot, Cause::Memory),
            _ => self.client_gone(slot, client.handle),
        }
    }

    /// Passes the final response's head on; `None`: it can't be written.
    #[inline]
    fn pass_final(&mut self, slot: u32, gathered: Option<&super::Held>) -> Option<Passed> {
        let now = self.now;
        self.judge_response(slot);
        let Proxy { http, services, rules, .. } = &mut *self.proxy;
        let client = http.clients.at_mut(slot)?;
        let response = &*http.response;
        let status = response.status;
        let exchange = &mut client.exchange;
        let upstream = http.upstreams.at(exchange.upstream)?;
        let site = http.generations.rules(exchange.generation)?.http_listener(client.listener)?;
        let is_10 = client.flags.has(Flags::HTTP10);
        let is_connected = exchange.method == Method::Connect && (200..300).contains(&status);
        let is_tunnel = status == 101 || is_connected;
        let out_body = match response.body {
            head::Body::Chunked if is_10 => head::Body::UntilClose,
            body => body,
        };
        if out_body == head::Body::UntilClose && !is_tunnel
            || !client.flags.has(Flags::REQUEST_DONE)
            || client.flags.has(Flags::FINISHED) && self.connections.receivable(client.handle) == 0
        {
            client.flags.set(Flags::CLOSES);
        }
        client.flags.put(Flags::PLAIN, is_10 && response.body == head::Body::Chunked);
        client.flags.put(Flags::REUSABLE, response.keep_alive && !is_tunnel);
        let request_head = exchange.head.as_ref().map_or(&[][..], |held| http.store.bytes(held));
        let route = site.table.route(usize::from(exchange.route));
        let edits = route.map_or(&[][..], |route| &route.response.fields);
        let backend = (!edits.is_empty())
            .then(|| services.backend(exchange.backend).map(|backend| authority(backend, client.vip_port)))
            .flatten();
        let mut id = [0; 32];
        // who comes with the right cookie already needs none
        let cookie = rules.http_pool(exchange.pool).and_then(|rules| rules.sticky.as_ref());
        let value = cookie.and_then(|_| {
            let members = &services.pool(exchange.pool)?.members;
            let position = members.iter().position(|member| *member == exchange.backend)?;
            let ids = http.sticky.get(exchange.pool as usize)?.as_ref()?;
            ids.value(position as u16).filter(|value| exchange.sticky.of(request_head) != value)
        });
        let sticky = cookie.zip(value.as_ref()).map(|(cookie, value)| StickyCookie {
            name: &cookie.cookie,
            value,
            max_age_s: cookie.max_age_s,
            secure: cookie.secure,
        });
        let head = match gathered {
            Some(held) => http.store.bytes(held),
            None => self.connections.peek(upstream.handle)?,
        };
        // RFC 9110 §6.6.1: a recipient with a clock adds it
        let unix_s = if response.fields.has(Known::Date) { 0 } else { self.surroundings.unix_s() };
        let how = ResponseOut {
            edits,
            variables: Variables {
                client: Some(address_of(client.source.address)),
                host: exchange.told.host.of(request_head),
                path: exchange.told.target.of(request_head),
                route: route.map_or(&[], |route| route.name.as_bytes()),
                backend: backend.as_ref().map_or(&[], |text| text.as_bytes()),
                request_id: exchange.id(request_head, &mut id),
            },
            via: &site.rules.tell.via,
            version: if is_10 { Version::Http10 } else { Version::Http11 },
            body: out_body,
            keep_alive: !client.flags.has(Flags::CLOSES),
            sticky,
            date: (unix_s > 0).then(|| http.date.at(unix_s).as_slice()),
        };
        http.scratch.clear();
        write::response(&mut http.scratch, head, response, &how).ok()?;
        exchange.response = Body::from(response.body);
        exchange.status = status;
        exchange.response_us = exchange.since(now).saturating_sub(exchange.connect_us);
        exchange.moved_at = crate::proxy::tick(now);
        client.flags.set(Flags::RESPONSE);
        let (listener, backend, idle_ms) = (client.listener, exchange.backend, exchange.idle_ms);
        self.count_status(listener, status);
        self.accounts.backend_http(backend, BackendHttpCount::ServerErrors, u64::from(status >= 500));
        if self.send_scratch(slot) == Sent::Refused {
            return Some(Passed::Response);
        }
        if is_tunnel {
            return Some(Passed::Tunnel);
        }
        self.set_due(slot, idle_ms);
        Some(Passed::Response)
    }

    /// Counts a status that a client got.
    #[inline]
    pub(crate) fn count_status(&mut self, listener: u16, status: u16) {
        let count = match status {
            0..200 => HttpCount::Informational,
            200..300 => HttpCount::Successful,
            300..400 => HttpCount::Redirection,
            400..500 => HttpCount::ClientError,
            _ => HttpCount::ServerError,
        };
        self.accounts.http(listener, count, 1);
    }

    /// Passes on what is there of the response's body.
    #[inline]
    fn pump_response(&mut self, slot: u32) {
        let now = self.tick();
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let exchange = &mut client.exchange;
        let Some(upstream) = http.upstreams.at(exchange.upstream) else { return };
        let manner = if client.flags.has(Flags::PLAIN) { Manner::Plain } else { Manner::Raw };
        let (from, to) = (upstream.handle, client.handle);
        let site = self.proxy.rules.http_listener(client.listener);
        let most = site.map_or(u32::MAX, |site| site.rules.limits.proxy_buffer);
        let moved = pump(self.connections, from, Some(to), most, &mut exchange.response, manner);
        if moved.data > 0 {
            exchange.bytes_out += moved.data;
            exchange.moved_at = now;
            self.accounts.listener(client.listener, ListenerCount::BytesOut, moved.data);
            self.accounts.backend(exchange.backend, BackendCount::BytesOut, moved.data);
        }
        let idle_ms = exchange.idle_ms;
        match moved.halt {
            Halt::Done => self.response_done(slot),
            Halt::Starved if upstream.is_finished => match exchange.response {
                Body::UntilClose => self.response_done(slot),
                _ => self.response_cut(slot, Cause::ResponseTruncated),
            },
            Halt::Starved | Halt::Blocked => {
                if moved.data > 0 {
                    self.set_due(slot, idle_ms);
                }
            }
            Halt::Malformed => self.response_cut(slot, Cause::ResponseTruncated),
            Halt::Refused => self.client_refuses(slot),
        }
    }

    /// The response can't be completed: the client must not take it for complete.
    pub(crate) fn response_cut(&mut self, slot: u32, cause: Cause) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let backend = client.exchange.backend;
        let is_seen = match client.exchange.response {
            Body::Length(_) => true,
            Body::Chunked(_) => !client.flags.has(Flags::PLAIN),
            Body::None | Body::UntilClose => false,
        };
        let is_sent = client.outbox.is_empty() && cause == Cause::ResponseTruncated;
        let lingers = !client.flags.has(Flags::REQUEST_DONE);
        self.accounts.backend_http(backend, BackendHttpCount::Failures, 1);
        if client.exchange.upstream != NOBODY {
            self.drop_http_upstream(client.exchange.upstream, true);
        }
        if !is_seen || !is_sent {
            return self.cut(slot, cause);
        }
        // the client gets what came, and its length says that something is missing (RFC 9112 §8)
        if let Some(client) = self.proxy.http.clients.at_mut(slot) {
            client.exchange.cause = Some(cause);
        }
        self.finish_exchange(slot);
        self.close_client(slot, lingers);
    }
}
