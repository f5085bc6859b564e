//! An attempt has failed: is there another, or what does the client get?

use weir_http::cause::Cause;
use weir_tcp::Ended;

use super::breaker::Outcome;
use super::client::{Flags, NOBODY, Stage};
use super::event::{BackendHttpCount, BreakerState, Event, HttpCount};
use crate::connections::{Accounts, BackendCount, Connections, Surroundings};
use crate::proxy::{Proxy, Run};

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// No connection came about.
    pub(crate) fn connect_refused(&mut self, slot: u32, at: u32, handle: C::Handle) {
        let Some(upstream) = self.proxy.http.upstreams.at(at) else { return };
        let (count, cause) = match self.connections.ended(handle) {
            // nobody has answered: neither the backend nor, where a router tells so, its address
            Ended::TimedOut | Ended::Unreachable => (BackendCount::ConnectTimeouts, Cause::ConnectTimeout),
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
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let (backend, upstream) = (client.exchange.backend, client.exchange.upstream);
        let listener = client.listener;
        // an idle connection that turns out to be closed says nothing about its backend
        let is_stale = client.flags.has(Flags::REUSED) && cause == Cause::ResponseMissing;
        if !is_stale {
            self.accounts.backend_http(backend, BackendHttpCount::Failures, 1);
            self.note_tried(slot, backend);
        }
        let may = self.may_retry(slot, cause);
        self.end_attempt(slot, outcome_of(cause, is_stale));
        if upstream != NOBODY {
            self.drop_http_upstream(upstream, true);
        }
        if !may {
            return self.refuse(slot, cause);
        }
        self.attempt_again(slot, listener, backend, Some(cause));
    }

    /// Asks another backend, since this one's answer is not wanted.
    pub(crate) fn try_again(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let (listener, backend) = (client.listener, client.exchange.backend);
        self.drop_http_upstream(client.exchange.upstream, true);
        self.attempt_again(slot, listener, backend, None);
    }

    fn attempt_again(&mut self, slot: u32, listener: u16, backend: u32, failed: Option<Cause>) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        client.exchange.failed = failed;
        client.flags.clear(Flags::REUSED | Flags::BODY_GONE);
        client.stage = Stage::Connecting;
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
        // a pool that is gone has no budget
        let Some(rules) = proxy.rules.http_pool(exchange.pool) else { return false };
        let retry = &rules.retry;
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
        if !is_wanted || !is_untouched && !exchange.method.is_idempotent() {
            return false;
        }
        self.is_somebody_left(slot, true) && self.is_within_budget(slot)
    }

    /// Whether the pool's budget has another attempt.
    fn is_within_budget(&mut self, slot: u32) -> bool {
        let now = self.now;
        let Proxy { http, rules, .. } = &mut *self.proxy;
        let Some(client) = http.clients.at(slot) else { return false };
        let pool = client.exchange.pool;
        let Some(rules) = rules.http_pool(pool) else { return false };
        let is_allowed = http.budgets.retry(pool, &rules.retry, now);
        self.accounts.http(client.listener, HttpCount::RetriesDenied, u64::from(!is_allowed));
        is_allowed
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
            && self.is_other_free(slot)
            && self.is_within_budget(slot)
    }

    /// Whether another backend takes the request at once: an answer that is there isn't given up for a place in a queue.
    fn is_other_free(&mut self, slot: u32) -> bool {
        let Some(client) = self.proxy.http.clients.at(slot) else { return false };
        let backend = client.exchange.backend;
        self.note_tried(slot, backend);
        self.is_somebody_left(slot, false)
    }

    /// The response's head says how the attempt went.
    #[inline]
    pub(crate) fn judge_response(&mut self, slot: u32) {
        let now = self.now;
        let status = self.proxy.http.response.status;
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let exchange = &client.exchange;
        let latency_us = exchange.since(now).saturating_sub(exchange.attempt_at);
        // 501 and 505 are about the request
        let is_failure = status >= 500 && status != 501 && status != 505;
        let outcome = if is_failure { Outcome::Failure } else { Outcome::Success { latency_us } };
        self.end_attempt(slot, outcome);
    }

    /// The attempt is over.
    #[inline]
    pub(crate) fn end_attempt(&mut self, slot: u32, outcome: Outcome) {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        if let Some(ticket) = client.exchange.ticket.take() {
            http.breakers.finished(ticket, outcome, self.now);
        }
    }

    /// Tells of breakers that have changed.
    #[inline]
    pub(crate) fn tell_breakers(&mut self) {
        while let Some(change) = self.proxy.http.breakers.poll_change() {
            self.proxy.http.chooser.look_again();
            self.accounts.breaker(change.backend, change.state);
            match change.state {
                BreakerState::Open => {
                    self.accounts.backend_http(change.backend, BackendHttpCount::BreakerOpened, 1);
                }
                BreakerState::Closed => self.proxy.http.comebacks.came_back(change.backend, self.now),
                BreakerState::HalfOpen => {}
            }
            self.surroundings.tell(Event::Breaker(change));
        }
        while let Some(backend) = self.proxy.http.breakers.poll_forgotten() {
            self.accounts.breaker(backend, BreakerState::Closed);
        }
    }
}

/// What a failed attempt says about its backend.
fn outcome_of(cause: Cause, is_stale: bool) -> Outcome {
    match cause {
        Cause::ConnectFailed
        | Cause::ConnectTimeout
        | Cause::ResponseMalformed
        | Cause::ResponseTooLarge
        | Cause::ResponseInterim
        | Cause::ResponseTimeout => Outcome::Failure,
        Cause::ResponseMissing if !is_stale => Outcome::Failure,
        _ => Outcome::Aborted,
    }
}
