//! What becomes of a request? Methods and sizes that the listener allows, rates, routes.

use weir_http::cause::Cause;
use weir_http::cookie;
use weir_http::head::{Body, Method, Span};
use weir_http::routes::Question;
use weir_http::routes::edit;
use weir_http::routes::spec::Action;
use weir_http::target::normalise;
use weir_l4::address_of;
use weir_l4::services::Algorithm;

use super::choose::{hash_of, hash_of_source};
use super::client::{Flags, Stage};
use super::heads::HeadFields;
use super::rules::HashBy;
use crate::connections::{Accounts, Connections, Surroundings};
use crate::proxy::{Proxy, Run};

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Decision {
    /// A backend of this pool answers.
    Pool(u32),
    /// The proxy answers as the route says.
    Own,
    /// It is refused.
    Refused(Cause),
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Decides on the request that was just read.
    #[inline]
    pub(crate) fn decide(&mut self, slot: u32) {
        match self.decision(slot) {
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
            Some(Decision::Refused(cause)) => self.refuse(slot, cause),
            None => self.refuse(slot, Cause::NoRoute),
        }
    }

    #[inline]
    fn decision(&mut self, slot: u32) -> Option<Decision> {
        let random = self.proxy.http.next_random();
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
        let Ok(path) = normalise(request.target.path_or_root(head), &mut http.path) else {
            return Some(Decision::Refused(Cause::RequestMalformed));
        };
        let question = Question {
            host: request.host.name.of(head),
            path,
            query: request.target.query.of(head),
            method: request.method_name.of(head),
            source: address_of(client.source.address),
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
        if let Some(client) = self.proxy.http.clients.at_mut(slot) {
            client.stage = Stage::Collect;
        }
        self.collect(slot);
    }

    /// Collects a body in front of its request, up to the listener's buffer.
    pub(crate) fn collect(&mut self, slot: u32) {
        // collected bodies come with the buffers of their own; until then they pass as they come
        self.http_place(slot);
    }
}

/// Where a part of a head lies in it.
fn span_of(head: &[u8], part: &[u8]) -> Span {
    let start = part.as_ptr().addr().saturating_sub(head.as_ptr().addr());
    Span { start: start as u16, len: part.len() as u16 }
}
