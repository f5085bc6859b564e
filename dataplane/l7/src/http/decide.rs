//! What becomes of a request? Methods and sizes that the listener allows, rates, routes.

use weir_http::cause::Cause;
use weir_http::cookie;
use weir_http::head::{Body, Forwards, Method, Span};
use weir_http::routes::Question;
use weir_http::routes::edit;
use weir_http::routes::spec::Action;
use weir_http::target::normalise;
use weir_l4::address_of;
use weir_l4::services::Algorithm;

use super::choose::{hash_of, hash_of_source};
use super::client::{Flags, Stage};
use super::event::HttpCount;
use super::heads::HeadFields;
use super::rate::{KeyValue, Taken};
use super::rules::{HashBy, RateKey};
use crate::connections::{Accounts, Connections, ListenerCount, Surroundings};
use crate::proxy::{Proxy, Run};

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Decision {
    /// A backend of this pool answers.
    Pool(u32),
    /// The proxy answers as the route says.
    Own,
    /// The proxy answers that it is there: the request must not go on.
    Options,
    /// It is refused.
    Refused(Cause),
    /// A rate limit has no token for so many seconds.
    Limited(u32),
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Decides on the request that was just read.
    #[inline]
    pub(crate) fn decide(&mut self, slot: u32) {
        let decision = self.decision(slot);
        let crowded = self.proxy.http.rates.take_crowded();
        if crowded > 0
            && let Some(client) = self.proxy.http.clients.at(slot)
        {
            self.accounts.http(client.listener, HttpCount::RateCrowded, crowded);
        }
        match decision {
            Some(Decision::Pool(pool)) => {
                let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
                client.exchange.pool = pool;
                self.note_wishes(slot, pool);
                if self.wants_collecting(slot) {
                    return self.begin_collecting(slot);
                }
                self.http_place(slot);
            }
            Some(Decision::Own) => self.answer_route(slot),
            Some(Decision::Options) => self.answer_options(slot),
            Some(Decision::Refused(cause)) => self.refuse(slot, cause),
            Some(Decision::Limited(retry_after_s)) => {
                let listener = self.proxy.http.clients.at(slot).map(|client| client.listener);
                self.accounts.http(listener.unwrap_or_default(), HttpCount::RateLimited, 1);
                self.refuse_for(slot, Cause::RateLimited, Some(retry_after_s));
            }
            None => self.refuse(slot, Cause::NoRoute),
        }
    }

    #[inline]
    fn decision(&mut self, slot: u32) -> Option<Decision> {
        let random = self.proxy.http.next_random();
        let now = self.now;
        let Proxy { http, rules, .. } = &mut *self.proxy;
        let client = http.clients.at_mut(slot)?;
        let site = rules.http_listener(client.listener)?;
        let (request, exchange) = (&http.request, &mut client.exchange);
        let head = http.store.bytes(exchange.head.as_ref()?);
        if request.method == Method::Connect && !site.rules.connect_allowed {
            return Some(Decision::Refused(Cause::MethodRefused));
        }
        if request.upgrade {
            if !site.rules.upgrade_allowed {
                return Some(Decision::Refused(Cause::UpgradeRefused));
            }
            client.flags.set(Flags::UPGRADE);
        }
        let most = site.rules.limits.body_bytes;
        if let Body::Length(length) = request.body
            && most != 0
            && length > most
        {
            return Some(Decision::Refused(Cause::BodyTooLarge));
        }
        let source = address_of(client.source.address);
        let rates = &mut http.rates;
        let mut limited = |listener: u16, limits: &[u16]| {
            limits.iter().find_map(|limit| {
                let limit = site.rules.rate_limits.get(usize::from(*limit))?;
                let value = match &limit.key {
                    RateKey::All => KeyValue::All,
                    RateKey::Client => KeyValue::Client(source),
                    RateKey::Header(name) => {
                        KeyValue::Header(request.fields.named(head, name.as_bytes()).next())
                    }
                };
                let key = rates.key(listener, limit, value);
                match rates.take(listener, limit, key, now) {
                    Taken::Yes => None,
                    Taken::No { retry_after_s } => Some(retry_after_s),
                }
            })
        };
        if let Some(retry_after_s) = limited(client.listener, &site.rules.own_rate_limits) {
            return Some(Decision::Limited(retry_after_s));
        }
        if request.method.counts_forwards() {
            match (request.forwards(head), request.method) {
                (Forwards::Malformed, _) => return Some(Decision::Refused(Cause::RequestMalformed)),
                (Forwards::Most(0), Method::Options) => return Some(Decision::Options),
                // nobody gets fields of a request back that its sender may not see
                (Forwards::Most(0), _) => return Some(Decision::Refused(Cause::MethodRefused)),
                (Forwards::Any | Forwards::Most(_), _) => {}
            }
        }
        let Ok(path) = normalise(request.target.path_or_root(head), &mut http.path) else {
            return Some(Decision::Refused(Cause::RequestMalformed));
        };
        let question = Question {
            host: request.host.name.of(head),
            path,
            query: request.target.query.of(head),
            method: request.method_name.of(head),
            source,
            fields: &HeadFields { request, head },
        };
        let times = &site.rules.times;
        exchange.response_header_ms = times.response_header_ms;
        exchange.idle_ms = times.response_idle_ms;
        exchange.tunnel_ms = times.tunnel_ms;
        let Some(place) = site.table.find(&question) else {
            return Some(match site.rules.default_pool {
                Some(pool) => Decision::Pool(pool),
                None => Decision::Refused(Cause::NoRoute),
            });
        };
        let route = site.table.route(place)?;
        exchange.route = place as u16;
        exchange.response_header_ms = route.times.response_header_ms.unwrap_or(exchange.response_header_ms);
        exchange.idle_ms = route.times.response_idle_ms.unwrap_or(exchange.idle_ms);
        exchange.tunnel_ms = route.times.tunnel_ms.unwrap_or(exchange.tunnel_ms);
        if let Some(retry_after_s) = limited(client.listener, &route.rate_limits) {
            return Some(Decision::Limited(retry_after_s));
        }
        Some(match &route.action {
            Action::Pools(splits) => match edit::split(splits, random) {
                Some(pool) => Decision::Pool(pool),
                None => Decision::Refused(Cause::NoRoute),
            },
            Action::Redirect(_) | Action::Respond(_) => Decision::Own,
        })
    }

    /// What the request says about its backend: a hash, or a cookie.
    #[inline]
    fn note_wishes(&mut self, slot: u32, pool: u32) {
        let now = self.now;
        let Proxy { http, rules, services, selector, .. } = &mut *self.proxy;
        http.budgets.request(pool, now);
        let Some((rules, pool)) = rules.http_pool(pool).zip(services.pool(pool)) else { return };
        let Some(client) = http.clients.at_mut(slot) else { return };
        let exchange = &mut client.exchange;
        let is_hashed = pool.algorithm != Algorithm::RoundRobin;
        if rules.sticky.is_none() && !is_hashed {
            return;
        }
        let head = exchange.head.as_ref().map_or(&[][..], |held| http.store.bytes(held));
        let fields = &http.request.fields;
        let cookie_of = |name: &str| {
            let mut values = fields.named(head, b"cookie");
            values.find_map(|value| cookie::find(value, name.as_bytes()))
        };
        if let Some(sticky) = &rules.sticky
            && let Some(value) = cookie_of(&sticky.cookie)
        {
            exchange.sticky = span_of(head, value);
        }
        if !is_hashed {
            return;
        }
        let value = match &rules.hash {
            HashBy::Source => None,
            HashBy::Header(name) => fields.named(head, name.as_bytes()).next(),
            HashBy::Cookie(name) => cookie_of(name),
            HashBy::Path => Some(http.request.target.path_or_root(head)),
        };
        exchange.hash = match value {
            Some(value) => hash_of(selector.key, value),
            None => hash_of_source(selector.key, client.source.address),
        };
    }

    /// Whether the body is to be there before a backend is asked.
    fn wants_collecting(&self, slot: u32) -> bool {
        let Some(client) = self.proxy.http.clients.at(slot) else { return false };
        let site = self.proxy.rules.http_listener(client.listener);
        let most = site.map_or(0, |site| site.rules.limits.client_body_buffer);
        // who waits for a 100 waits for the backend's word
        most > 0 && client.flags.has(Flags::HAS_BODY) && !client.flags.has(Flags::EXPECTS | Flags::UPGRADE)
    }

    fn begin_collecting(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        client.stage = Stage::Collect;
        let site = self.proxy.rules.http_listener(client.listener);
        let body_ms = site.map_or(0, |site| site.rules.times.request_body_ms);
        self.set_due(slot, body_ms);
        self.collect(slot);
    }

    /// Collects a body behind its head, up to the listener's buffer; what is beyond passes as it comes.
    pub(crate) fn collect(&mut self, slot: u32) {
        let Proxy { http, rules, .. } = &mut *self.proxy;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let site = rules.http_listener(client.listener);
        let (most, body_ms) = site
            .map_or((0, 0), |site| (site.rules.limits.client_body_buffer, site.rules.times.request_body_ms));
        let (handle, exchange) = (client.handle, &mut client.exchange);
        let Some(held) = exchange.head.as_ref() else { return };
        let mut halt = Collected::Waits;
        let mut gathered = 0;
        while let Some(piece) = self.connections.peek(handle) {
            let room = most.saturating_sub(exchange.collected) as usize;
            let piece = piece.get(..room.min(piece.len())).unwrap_or_default();
            if piece.is_empty() {
                halt = Collected::Full;
                break;
            }
            // it is put back where it can't be kept: the body is read again from there
            let mut next = exchange.request;
            let Some(step) = next.step(piece) else {
                halt = Collected::Malformed;
                break;
            };
            if !http.store.append(held, piece.get(..step.pass).unwrap_or_default()) {
                halt = Collected::Full;
                break;
            }
            exchange.request = next;
            exchange.collected += step.pass as u32;
            gathered += step.data;
            self.connections.consume(handle, (step.pass + step.skip) as u32);
            if exchange.request.is_done() {
                halt = Collected::Whole;
                break;
            }
        }
        exchange.bytes_in += gathered;
        let is_over = client.flags.has(Flags::FINISHED) && self.connections.receivable(handle) == 0;
        self.accounts.listener(client.listener, ListenerCount::BytesIn, gathered);
        match halt {
            Collected::Malformed => self.refuse(slot, Cause::RequestChunk),
            Collected::Waits if is_over => self.cut(slot, Cause::ClientClosed),
            Collected::Waits => {
                if gathered > 0 {
                    self.set_due(slot, body_ms);
                }
            }
            Collected::Full => self.http_place(slot),
            Collected::Whole => {
                client.flags.set(Flags::REQUEST_DONE);
                self.http_place(slot);
            }
        }
    }
}

/// How far a body was collected.
enum Collected {
    /// More must come.
    Waits,
    /// All of it is there.
    Whole,
    /// The buffer, or the memory, has no more room.
    Full,
    /// It is no chunked body.
    Malformed,
}

/// Where a part of a head lies in it.
fn span_of(head: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr().saturating_sub(head.as_ptr().addr());
    Span { start: start as u16, len: part.len() as u16 }
}
