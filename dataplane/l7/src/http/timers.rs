//! How long may it take? One moment per client at which something is due, one per idle connection to a backend. The wheel is asked to
//! look at the earliest it was told; what has moved meanwhile is armed again, so that a request need not.

use weir_http::cause::Cause;

use super::client::{Flags, Stage};
use super::event::HttpCount;
use super::upstream;
use crate::connections::{self, Accounts, BackendCount, Connections, ListenerCount, Surroundings};
use crate::proxy::{Run, tick};

/// Between two looks at buffers that are kept without need.
const TRIM_US: u64 = 10_000_000;

/// Whether a tick lies before another.
#[inline]
fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Something is due for a client after so many milliseconds.
    #[inline]
    pub(crate) fn set_due(&mut self, slot: u32, after_ms: u32) {
        let http = &mut self.proxy.http;
        let due = tick(self.now).wrapping_add(after_ms.clamp(1, i32::MAX as u32));
        let Some(client) = http.clients.at_mut(slot) else { return };
        client.due = due;
        if !http.clients.is_armed_by(slot, due) {
            http.client_wheel.arm(&mut http.clients, slot, due);
        }
    }

    /// Runs the timers that are due.
    pub(crate) fn http_advance(&mut self) {
        let now = tick(self.now);
        loop {
            let http = &mut self.proxy.http;
            let Some(slot) = http.client_wheel.expire(&mut http.clients, now) else { break };
            let Some(client) = http.clients.at(slot) else { continue };
            if is_before(now, client.due) {
                let due = client.due;
                http.client_wheel.arm(&mut http.clients, slot, due);
                continue;
            }
            self.client_due(slot);
        }
        loop {
            let http = &mut self.proxy.http;
            let Some(at) = http.upstream_wheel.expire(&mut http.upstreams, now) else { break };
            let Some(upstream) = http.upstreams.at(at) else { continue };
            // one that is in use is armed again when it is idle
            if upstream.stage == upstream::Stage::Active {
                continue;
            }
            if is_before(now, upstream.due) {
                let due = upstream.due;
                http.upstream_wheel.arm(&mut http.upstreams, at, due);
                continue;
            }
            self.drop_http_upstream(at, upstream_aborts(self.proxy.http.upstreams.at(at)));
        }
        self.http_again();
        let http = &mut self.proxy.http;
        if self.now >= http.trims_at {
            http.trims_at = self.now.after(TRIM_US);
            http.store.trim();
        }
    }

    /// Clients whose next requests have waited for others.
    pub(crate) fn http_again(&mut self) {
        let count = self.proxy.http.again.len();
        for at in 0..count {
            if let Some(slot) = self.proxy.http.again.get(at).copied() {
                self.http_serve(slot);
            }
        }
        self.proxy.http.again.drain(..count);
    }

    /// A client's time is up.
    fn client_due(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        let listener = client.listener;
        match client.stage {
            Stage::AwaitLease => {
                self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
                self.abort_client(slot, connections::Cause::Limit);
            }
            Stage::AwaitProxy => {
                self.accounts.listener(listener, ListenerCount::HandshakeTimeouts, 1);
                self.abort_client(slot, connections::Cause::Timeout);
            }
            Stage::Idle => {
                self.accounts.http(listener, HttpCount::KeepAliveTimeouts, 1);
                self.close_client(slot, false);
            }
            Stage::Head => {
                self.begin_refused(slot);
                self.refuse(slot, Cause::RequestHeaderTimeout);
            }
            Stage::Collect => self.refuse(slot, Cause::RequestBodyTimeout),
            Stage::Queued => {
                self.accounts.listener(listener, ListenerCount::QueueTimeouts, 1);
                self.refuse(slot, Cause::QueueTimeout);
            }
            Stage::Connecting => {
                let backend = client.exchange.backend;
                self.accounts.backend(backend, BackendCount::ConnectTimeouts, 1);
                self.attempt_failed(slot, Cause::ConnectTimeout);
            }
            Stage::Active => self.active_due(slot),
            Stage::Answer => self.cut(slot, Cause::ClientSlow),
            Stage::Tunnel => self.tunnel_due(slot),
            // nothing of it is a request, and it has its answer
            Stage::Drain => self.close_client(slot, false),
            Stage::Linger => self.end_client(slot, None),
        }
    }

    /// Request or response has been silent: who is it that is waited for?
    fn active_due(&mut self, slot: u32) {
        let now = self.tick();
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let unsent = self.connections.unsent(client.handle);
        let Some(upstream) = http.upstreams.at(client.exchange.upstream) else {
            return self.fail(slot, Cause::ResponseMissing);
        };
        if !client.flags.has(Flags::RESPONSE) {
            if client.flags.has(Flags::REQUEST_DONE) || self.connections.unsent(upstream.handle) > 0 {
                return self.attempt_failed(slot, Cause::ResponseTimeout);
            }
            return self.refuse(slot, Cause::RequestBodyTimeout);
        }
        let silent = client.exchange.silent(unsent, now);
        let idle_ms = client.exchange.idle_ms;
        if silent < idle_ms {
            return self.set_due(slot, idle_ms - silent);
        }
        let cause = if unsent > 0 { Cause::ClientSlow } else { Cause::ResponseIdle };
        self.response_cut(slot, cause);
    }

    fn tunnel_due(&mut self, slot: u32) {
        let now = self.tick();
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let far = http.upstreams.at(client.exchange.upstream);
        let residue = self
            .connections
            .unsent(client.handle)
            .wrapping_add(far.map_or(0, |upstream| self.connections.unsent(upstream.handle)));
        let silent = client.exchange.silent(residue, now);
        let tunnel_ms = client.exchange.tunnel_ms;
        if silent < tunnel_ms {
            return self.set_due(slot, tunnel_ms - silent);
        }
        self.cut(slot, Cause::TunnelTimeout);
    }
}

/// Whether a connection whose time is up ends with a RST: one that waits for a mirror's response does.
fn upstream_aborts<H>(upstream: Option<&upstream::Upstream<H>>) -> bool {
    upstream.is_some_and(|upstream| upstream.stage != upstream::Stage::Idle)
}
