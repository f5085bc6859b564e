//! What does the proxy say by itself? Refusals with their cause, redirections, fixed responses.

use weir_http::cause::Cause;
use weir_http::date::Date;
use weir_http::head::Method;
use weir_http::routes::edit::{Asked, write_location};
use weir_http::routes::spec::Action;
use weir_http::target::normalise;
use weir_http::write::{self, Own, Variables};
use weir_l4::address_of;

use super::breaker::Outcome;
use super::client::{Flags, Stage};
use super::outbox::Sent;
use crate::connections::{self, Accounts, Connections, ListenerCount, Surroundings};
use crate::proxy::{Proxy, Run};

/// What the proxy says where nothing else is configured.
const PLAIN: &str = "text/plain";
/// Methods that are passed on everywhere.
const ALLOW: &str = "GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH, TRACE";

/// `Date`, where somebody knows (RFC 9110 §6.6.1).
fn date(unix_s: u64, date: &mut Date) -> Option<&[u8]> {
    (unix_s > 0).then(|| date.at(unix_s).as_slice())
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Ends the exchange with a refusal, or, where its response has begun, with its connection.
    pub(crate) fn fail(&mut self, slot: u32, cause: Cause) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        if client.flags.has(Flags::RESPONSE) || cause.status() == 0 {
            return self.cut(slot, cause);
        }
        self.refuse(slot, cause);
    }

    /// A connection is refused before its first request.
    pub(crate) fn refuse_connection(&mut self, slot: u32, cause: Cause) {
        self.begin_refused(slot);
        self.refuse(slot, cause);
    }

    /// Answers with a cause's status; nothing of a response was sent.
    pub(crate) fn refuse(&mut self, slot: u32, cause: Cause) {
        self.refuse_for(slot, cause, None);
    }

    /// As [`Self::refuse`], and says when to come again.
    pub(crate) fn refuse_for(&mut self, slot: u32, cause: Cause, retry_after_s: Option<u32>) {
        self.http_dequeue(slot);
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        if client.flags.has(Flags::RESPONSE) {
            return self.cut(slot, cause);
        }
        client.exchange.cause = Some(cause);
        // nobody knows where such a body ends, or waits for its rest
        let is_about_body =
            matches!(cause, Cause::RequestChunk | Cause::RequestBodyTimeout | Cause::BodyTooLarge);
        self.settle_body(slot, is_about_body);
        self.release_attempt(slot);
        let written = self.write_refusal(slot, cause, retry_after_s);
        self.answered(slot, cause.status(), written);
    }

    /// Lets go of the connection to a backend that an answer of the proxy's own makes needless.
    fn release_attempt(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let upstream = client.exchange.upstream;
        self.end_attempt(slot, Outcome::Aborted);
        self.drop_http_upstream(upstream, true);
    }

    fn write_refusal(&mut self, slot: u32, cause: Cause, retry_after_s: Option<u32>) -> Option<usize> {
        let Proxy { http, .. } = &mut *self.proxy;
        let client = http.clients.at(slot)?;
        let rules = http.generations.rules(client.exchange.generation);
        let site = rules.and_then(|rules| rules.http_listener(client.listener));
        let status = cause.status();
        let date = date(self.surroundings.unix_s(), &mut http.date);
        let page = site.and_then(|site| site.rules.error_pages.iter().find(|page| page.status == status));
        let text = weir_http::status::reason(status);
        let shows_cause = site.is_none_or(|site| site.rules.cause_header);
        let own = Own {
            version: client.version(),
            keep_alive: !client.flags.has(Flags::CLOSES),
            content_type: page.map_or(PLAIN, |page| &page.content_type),
            body: page.map_or(text.as_bytes(), |page| &page.body),
            is_head: client.exchange.method == Method::Head,
            cause: shows_cause.then_some(cause),
            retry_after_s,
            allow: if status == 405 { ALLOW } else { "" },
            date,
            ..Own::new(status)
        };
        http.scratch.clear();
        write::own(&mut http.scratch, &own).ok()
    }

    /// Answers a request of OPTIONS that must not go on (RFC 9110 §7.6.2, §9.3.7).
    pub(crate) fn answer_options(&mut self, slot: u32) {
        self.settle_body(slot, false);
        let Proxy { http, .. } = &mut *self.proxy;
        let Some(client) = http.clients.at(slot) else { return };
        let own = Own {
            version: client.version(),
            keep_alive: !client.flags.has(Flags::CLOSES),
            allow: ALLOW,
            date: date(self.surroundings.unix_s(), &mut http.date),
            ..Own::new(200)
        };
        http.scratch.clear();
        let written = write::own(&mut http.scratch, &own).ok();
        self.answered(slot, 200, written);
    }

    /// Answers as the exchange's route says.
    pub(crate) fn answer_route(&mut self, slot: u32) {
        self.settle_body(slot, false);
        let written = self.write_route_answer(slot);
        self.answered(slot, written.map_or(500, |(status, _)| status), written.map(|(_, body)| body));
    }

    /// Its status and the bytes of its body.
    fn write_route_answer(&mut self, slot: u32) -> Option<(u16, usize)> {
        let Proxy { http, .. } = &mut *self.proxy;
        let client = http.clients.at(slot)?;
        let exchange = &client.exchange;
        let site = http.generations.rules(exchange.generation)?.http_listener(client.listener)?;
        let route = site.table.route(usize::from(exchange.route))?;
        let head = http.store.bytes(exchange.head.as_ref()?);
        let request = &*http.request;
        let mut id = [0; 32];
        let shared = Own {
            version: client.version(),
            keep_alive: !client.flags.has(Flags::CLOSES),
            is_head: exchange.method == Method::Head,
            date: date(self.surroundings.unix_s(), &mut http.date),
            edits: &route.response.fields,
            variables: Variables {
                client: Some(address_of(client.source.address)),
                host: request.host.name.of(head),
                path: request.target.path.of(head),
                route: route.name.as_bytes(),
                backend: &[],
                request_id: exchange.id(head, &mut id),
            },
            ..Own::new(200)
        };
        let own = match &route.action {
            Action::Redirect(redirect) => {
                let path = normalise(request.target.path_or_root(head), &mut http.path).ok()?;
                let address = address_of(client.destination.address);
                let is_trusted = site.rules.tell.trusts(address_of(client.source.address));
                let asked = Asked::of(request, head, path, address, is_trusted);
                http.text.clear();
                write_location(redirect, &route.path, &asked, &mut http.text).ok()?;
                Own { status: redirect.status, location: &http.text, ..shared }
            }
            Action::Respond(respond) => Own {
                status: respond.status,
                content_type: &respond.content_type,
                body: &respond.body,
                ..shared
            },
            Action::Pools(_) => return None,
        };
        http.scratch.clear();
        let body = write::own(&mut http.scratch, &own).ok()?;
        Some((own.status, body))
    }

    /// The answer is in the scratch, with so many bytes of a body: on its way with it.
    fn answered(&mut self, slot: u32, status: u16, written: Option<usize>) {
        let Some(body) = written else {
            return self.abort_client(slot, connections::Cause::Memory);
        };
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        client.stage = Stage::Answer;
        client.flags.set(Flags::RESPONSE);
        client.exchange.status = status;
        let listener = client.listener;
        // what waits of an interim response comes before; nobody is that slow and well
        if !client.outbox.is_empty() {
            return self.cut(slot, Cause::ClientSlow);
        }
        client.exchange.bytes_out += body as u64;
        self.accounts.listener(listener, ListenerCount::BytesOut, body as u64);
        self.count_status(listener, status);
        let idle_ms = self
            .proxy
            .rules
            .http_listener(listener)
            .map_or(super::finish::LINGER_MS, |site| site.rules.times.response_idle_ms);
        match self.send_scratch(slot) {
            Sent::All => self.next_or_close(slot),
            Sent::Some => self.set_due(slot, idle_ms),
            Sent::Refused => {}
        }
    }

    /// There is room again for an answer.
    pub(crate) fn answer_left(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        if client.outbox.is_empty() {
            self.next_or_close(slot);
        }
    }

    /// There is room at the client again: what waits is sent first; false: the client is gone.
    pub(crate) fn flush_client(&mut self, slot: u32) -> bool {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return false };
        let handle = client.handle;
        let sent = client.outbox.flush(handle, self.connections, self.surroundings, &mut http.store);
        if sent == Sent::Refused {
            self.client_refuses(slot);
        }
        sent != Sent::Refused
    }
}
