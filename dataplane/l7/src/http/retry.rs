//! An attempt has failed: is there another, or what does the client get?

use weir_http::cause::Cause;
use weir_tcp::Ended;

use super::client::{Flags, NOBODY, Stage};
use super::event::{BackendHttpCount, HttpCount};
use crate::connections::{Accounts, BackendCount, Connections, Surroundings};
use crate::proxy::Run;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// No connection came about.
    pub(crate) fn connect_refused(&mut self, slot: u32, at: u32, handle: C::Handle) {
        let Some(upstream) = self.proxy.http.upstreams.at(at) else { return };
        let (count, cause) = match self.connections.ended(handle) {
            Ended::TimedOut => (BackendCount::ConnectTimeouts, Cause::ConnectTimeout),
            _ => (BackendCount::ConnectFailures, Cause::ConnectFailed),
        };
        self.accounts.backend(upstream.backend, count, 1);
        if self.proxy.http.clients.at(slot).is_none() {
            return self.drop_http_upstream(at, false);
        }
        self.attempt_failed(slot, cause);
    }

    /// The attempt came to nothing: another one follows where it is safe and allowed, else the client is told.
    pub(crate) fn attempt_failed(&mut self, slot: u32, cause: Cause) {
        let may = self.may_retry(slot, cause);
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let (backend, upstream) = (client.exchange.backend, client.exchange.upstream);
        let (listener, was_reused) = (client.listener, client.flags.has(Flags::REUSED));
        self.accounts.backend_http(backend, BackendHttpCount::Failures, 1);
        self.end_attempt(slot, Some(cause));
        if upstream != NOBODY {
            self.drop_http_upstream(upstream, true);
        }
        if !may {
            return self.refuse(slot, cause);
        }
        // an idle connection that turned out to be closed says nothing about its backend
        if !was_reused || cause != Cause::ResponseMissing {
            self.note_tried(slot, backend);
        }
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        client.flags.clear(Flags::REUSED | Flags::BODY_GONE);
        client.stage = Stage::Queued;
        self.accounts.http(listener, HttpCount::Retries, 1);
        self.accounts.backend(backend, BackendCount::Retries, 1);
        self.http_place(slot);
    }

    /// Whether another attempt is safe and allowed.
    fn may_retry(&mut self, slot: u32, cause: Cause) -> bool {
        let proxy = &*self.proxy;
        let http = &proxy.http;
        let Some(client) = http.clients.at(slot) else { return false };
        let exchange = &client.exchange;
        let began = http.generations.rules(exchange.generation);
        let rules = proxy
            .rules
            .http_pool(exchange.pool)
            .or_else(|| began.and_then(|rules| rules.http_pool(exchange.pool)));
        let Some(retry) = rules.map(|rules| &rules.retry) else { return false };
        if exchange.attempts > retry.attempts || client.flags.has(Flags::BODY_GONE | Flags::RESPONSE) {
            return false;
        }
        let is_connecting = client.stage == Stage::Connecting;
        let upstream = http.upstreams.at(exchange.upstream);
        let is_untouched = is_connecting
            || upstream.is_some_and(|upstream| {
                self.connections.acknowledged(upstream.handle) == exchange.acknowledged
            });
        let is_wanted = match cause {
            Cause::ConnectFailed | Cause::ConnectTimeout | Cause::SourceExhausted => retry.on_connect,
            Cause::ResponseMissing => retry.on_reset,
            Cause::ResponseTimeout => retry.on_timeout,
            Cause::BackendDown => is_connecting && retry.on_connect || retry.on_reset,
            _ => false,
        };
        is_wanted && (is_untouched || exchange.method.is_idempotent())
    }

    /// Whether the pool's rules want another backend's answer instead of this status.
    pub(crate) fn wants_other(&mut self, slot: u32, status: u16) -> bool {
        let Some(client) = self.proxy.http.clients.at(slot) else { return false };
        let exchange = &client.exchange;
        let Some(rules) = self.proxy.rules.http_pool(exchange.pool) else { return false };
        rules.retry.on_status.contains(&status)
            && exchange.method.is_idempotent()
            && exchange.attempts <= rules.retry.attempts
            && !client.flags.has(Flags::BODY_GONE)
    }

    /// What the response says about its backend.
    pub(crate) fn judge_response(&mut self, slot: u32) {
        self.end_attempt(slot, None);
    }

    /// The attempt is over; why it failed, if it did.
    pub(crate) fn end_attempt(&mut self, slot: u32, cause: Option<Cause>) {
        let _ = (slot, cause);
    }
}
