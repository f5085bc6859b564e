//! How does a request get to its backend? Its head written anew, its body as it comes.

use weir_http::cause::Cause;
use weir_http::head;
use weir_http::routes::edit::write_path;
use weir_http::routes::spec::{HostEdit, PathEdit};
use weir_http::target::normalise;
use weir_http::write::{self, RequestOut, Tell, Variables};
use weir_l4::address_of;
use weir_tcp::{Chunk, Ended};

use super::body::{Halt, Manner, pump};
use super::client::{Flags, Stage};
use super::event::BackendHttpCount;
use super::heads::authority;
use super::outbox::Sent;
use super::upstream;
use crate::connections::{Accounts, BackendCount, Connections, ListenerCount, Surroundings};
use crate::proxy::{Proxy, Run};
use crate::proxy_protocol::{Ends, WRITTEN_MAX};

/// A body's rate counts from its sixth second on.
const RATED_AFTER_MS: u64 = 5_000;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// The connection to the backend stands: the request goes on it.
    #[inline]
    pub(crate) fn forward(&mut self, slot: u32) {
        if self.recall_request(slot).and_then(|()| self.write_request(slot)).is_none() {
            return self.refuse(slot, Cause::Memory);
        }
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let Some(upstream) = http.upstreams.at_mut(client.exchange.upstream) else { return };
        let exchange = &mut client.exchange;
        exchange.acknowledged = self.connections.acknowledged(upstream.handle);
        upstream.stage = upstream::Stage::Active;
        upstream.requests = upstream.requests.saturating_add(1);
        client.stage = Stage::Active;
        let backend = exchange.backend;
        self.accounts.backend_http(backend, BackendHttpCount::Requests, 1);
        self.accounts.backend_http(
            backend,
            BackendHttpCount::Reused,
            u64::from(client.flags.has(Flags::REUSED)),
        );
        // what was collected of the body goes behind the head
        if exchange.collected > 0
            && let Some(held) = &exchange.head
        {
            let body = http.store.bytes(held).get(exchange.head_len as usize..).unwrap_or_default();
            http.scratch.extend_from_slice(body);
            self.accounts.backend(backend, BackendCount::BytesIn, body.len() as u64);
        }
        let sent = upstream.outbox.send(
            &http.scratch,
            upstream.handle,
            self.connections,
            self.surroundings,
            &mut http.store,
        );
        if sent == Sent::Refused {
            return self.upstream_refuses(slot);
        }
        exchange.moved_at = crate::proxy::tick(self.now);
        let is_whole = client.flags.has(Flags::REQUEST_DONE);
        self.mirror(slot);
        if is_whole { self.request_sent(slot) } else { self.pump_request(slot) }
    }

    /// All of the request is on its way: the response is waited for.
    #[inline]
    fn request_sent(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        client.flags.set(Flags::REQUEST_DONE);
        if !client.flags.has(Flags::RESPONSE) {
            let response_header_ms = client.exchange.response_header_ms;
            self.set_due(slot, response_header_ms);
        }
    }

    /// The backend's connection takes nothing more: it has died and its news follow, or there is no memory.
    pub(crate) fn upstream_refuses(&mut self, slot: u32) {
        let http = &self.proxy.http;
        let Some(client) = http.clients.at(slot) else { return };
        let Some(upstream) = http.upstreams.at(client.exchange.upstream) else { return };
        match self.connections.ended(upstream.handle) {
            Ended::No | Ended::Finished => self.fail(slot, Cause::Memory),
            _ => self.attempt_failed(slot, Cause::ResponseMissing),
        }
    }

    /// Passes on what is there of the request's body.
    pub(crate) fn pump_request(&mut self, slot: u32) {
        let now = self.tick();
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        if client.flags.has(Flags::REQUEST_DONE) {
            return;
        }
        let Some(upstream) = http.upstreams.at_mut(client.exchange.upstream) else { return };
        if !upstream.outbox.is_empty() {
            return;
        }
        let exchange = &mut client.exchange;
        let (from, to) = (client.handle, upstream.handle);
        let moved = pump(self.connections, from, Some(to), u32::MAX, &mut exchange.request, Manner::Raw);
        if moved.data > 0 || moved.halt == Halt::Done {
            client.flags.set(Flags::BODY_GONE);
            exchange.bytes_in += moved.data;
            exchange.moved_at = now;
            self.accounts.listener(client.listener, ListenerCount::BytesIn, moved.data);
            self.accounts.backend(exchange.backend, BackendCount::BytesIn, moved.data);
        }
        let is_finished = client.flags.has(Flags::FINISHED);
        let (in_all, listener) = (exchange.bytes_in, client.listener);
        match moved.halt {
            Halt::Done => self.request_sent(slot),
            Halt::Starved if is_finished => self.fail(slot, Cause::ClientClosed),
            Halt::Starved | Halt::Blocked => {
                let site = self.proxy.rules.http_listener(listener);
                let Some((body_ms, limits)) =
                    site.map(|site| (site.rules.times.request_body_ms, site.rules.limits))
                else {
                    return;
                };
                if limits.body_bytes != 0 && in_all > limits.body_bytes {
                    return self.fail(slot, Cause::BodyTooLarge);
                }
                if self.is_too_slow(slot, limits.body_min_rate, moved.halt == Halt::Blocked) {
                    return self.fail(slot, Cause::RequestBodyTimeout);
                }
                if !self.proxy.http.clients.at(slot).is_some_and(|client| client.flags.has(Flags::RESPONSE)) {
                    self.set_due(slot, body_ms);
                }
            }
            Halt::Malformed => self.fail(slot, Cause::RequestChunk),
            Halt::Refused => self.upstream_refuses(slot),
        }
    }

    /// Whether a client sends its body slower than the least rate. Time in which the backend has no room doesn't count.
    fn is_too_slow(&mut self, slot: u32, least: u32, is_blocked: bool) -> bool {
        let now = self.tick();
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return false };
        let exchange = &mut client.exchange;
        if is_blocked || exchange.rated_at.is_none() {
            exchange.rated_at = Some((now, exchange.bytes_in));
        }
        let Some((since, before)) = exchange.rated_at else { return false };
        let elapsed = u64::from(now.wrapping_sub(since));
        let bytes = exchange.bytes_in.saturating_sub(before);
        elapsed > RATED_AFTER_MS && bytes * 1_000 < u64::from(least) * elapsed
    }

    /// Writes the request's head, as its backend gets it, into the scratch.
    #[inline]
    fn write_request(&mut self, slot: u32) -> Option<()> {
        let Proxy { http, services, .. } = &mut *self.proxy;
        let client = http.clients.at(slot)?;
        let exchange = &client.exchange;
        let upstream = http.upstreams.at(exchange.upstream)?;
        let site = http.generations.rules(exchange.generation)?.http_listener(client.listener)?;
        let head = http.store.bytes(exchange.head.as_ref()?).get(..exchange.head_len as usize)?;
        let route = site.table.route(usize::from(exchange.route));
        let request = &*http.request;
        let peer = address_of(client.source.address);
        let told = &site.rules.tell;
        let mut id = [0; 32];
        let edits = route.map_or(&[][..], |route| &route.request.fields);
        let host_edit = route.map_or(&HostEdit::Keep, |route| &route.request.host);
        // written only where somebody asks for it
        // HTTP/1.0 needs no host, HTTP/1.1 does
        let is_nameless = request.host.authority.is_empty();
        let backend = (!edits.is_empty() || is_nameless || *host_edit == HostEdit::Backend)
            .then(|| services.backend(exchange.backend).map(|backend| authority(backend, client.vip_port)))
            .flatten();
        let backend = backend.as_ref().map_or(&[][..], |text| text.as_bytes());
        let path = match route {
            Some(route) if route.request.path != PathEdit::Keep => {
                let normal = normalise(request.target.path_or_root(head), &mut http.path).ok()?;
                http.text.clear();
                write_path(&route.request.path, &route.path, normal, &mut http.text).ok()?;
                Some(http.text.as_slice())
            }
            _ => None,
        };
        let how = RequestOut {
            path,
            host: match host_edit {
                HostEdit::Keep => is_nameless.then_some(backend),
                HostEdit::Replace(host) => Some(host.as_bytes()),
                HostEdit::Backend => Some(backend),
            },
            edits,
            variables: Variables {
                client: Some(peer),
                host: request.host.name.of(head),
                path: request.target.path.of(head),
                route: route.map_or(&[], |route| route.name.as_bytes()),
                backend,
                request_id: exchange.id(head, &mut id),
            },
            tell: Tell {
                x_forwarded: told.x_forwarded,
                forwarded: told.forwarded,
                via: &told.via,
                request_id: &told.request_id,
                is_trusted: told.trusts(peer),
                client: peer,
                port: client.destination.port,
                is_tls: false,
            },
            body: request.body,
            close: upstream.is_bound,
            upgrade: client.flags.has(Flags::UPGRADE),
            expect: client.flags.has(Flags::EXPECTS),
        };
        debug_assert!(!matches!(how.body, head::Body::UntilClose));
        http.scratch.clear();
        write::request(&mut http.scratch, head, request, &how).ok()
    }

    /// News of the connection to a backend that an exchange waits for: it stands.
    pub(crate) fn http_connected(&mut self, at: u32) {
        let http = &mut self.proxy.http;
        let Some(upstream) = http.upstreams.at_mut(at) else { return };
        let (slot, handle, backend, pool) =
            (upstream.client, upstream.handle, upstream.backend, upstream.pool);
        upstream.stage = upstream::Stage::Active;
        self.accounts.backend(backend, BackendCount::Connects, 1);
        let Some(client) = http.clients.at_mut(slot) else { return };
        client.exchange.connect_us = client.exchange.since(self.now);
        let ends = Ends { source: client.source, destination: client.destination };
        let version = self.proxy.rules.pool(pool).and_then(|rules| rules.send_proxy);
        if let Some(version) = version {
            let mut header = [0; WRITTEN_MAX];
            let len = crate::proxy_protocol::write(version, Some(ends), &mut header);
            let buffer = self.surroundings.copy(header.get(..len).unwrap_or_default());
            let sent =
                buffer.is_some_and(|buffer| self.connections.send(handle, Chunk::whole(buffer)).is_ok());
            if !sent {
                return self.refuse(slot, Cause::Memory);
            }
        }
        self.forward(slot);
    }
}
