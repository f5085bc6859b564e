//! What passes once request and response have agreed on another protocol? Bytes, whatever they mean, both ways, until both sides
//! have ended.

use weir_http::cause::Cause;
use weir_tcp::Ended;

use super::body::{Body, Halt, Manner, pump};
use super::client::{Flags, Stage};
use super::event::{HttpCount, HttpGauge};
use crate::connections::{Accounts, BackendCount, Connections, ListenerCount, Surroundings};
use crate::proxy::Run;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// The backend has agreed: from here on bytes pass.
    pub(crate) fn begin_tunnel(&mut self, slot: u32) {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        client.stage = Stage::Tunnel;
        client.flags.set(Flags::TUNNEL | Flags::REQUEST_DONE | Flags::CLOSES);
        client.exchange.request = Body::UntilClose;
        client.exchange.response = Body::UntilClose;
        let (listener, tunnel_ms) = (client.listener, client.exchange.tunnel_ms);
        // nothing in it depends on rules any more, and it may last
        http.generations.leave(std::mem::replace(&mut client.exchange.generation, super::generation::NONE));
        self.accounts.http(listener, HttpCount::Tunnels, 1);
        self.accounts.http_gauge(listener, HttpGauge::Tunnels, 1);
        self.set_due(slot, tunnel_ms);
        self.relay_tunnel(slot);
    }

    /// Passes on what is there, both ways, and the ends behind it.
    pub(crate) fn relay_tunnel(&mut self, slot: u32) {
        let now = self.tick();
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return };
        let Some(upstream) = http.upstreams.at_mut(client.exchange.upstream) else { return };
        let (near, far) = (client.handle, upstream.handle);
        let exchange = &mut client.exchange;
        let (mut to_client, mut to_backend) = (Halt::Blocked, Halt::Blocked);
        if client.outbox.is_empty() {
            let moved =
                pump(self.connections, far, Some(near), u32::MAX, &mut exchange.response, Manner::Raw);
            exchange.bytes_out += moved.data;
            to_client = moved.halt;
            if moved.data > 0 {
                exchange.moved_at = now;
                self.accounts.listener(client.listener, ListenerCount::BytesOut, moved.data);
                self.accounts.backend(exchange.backend, BackendCount::BytesOut, moved.data);
            }
        }
        if upstream.outbox.is_empty() {
            let moved = pump(self.connections, near, Some(far), u32::MAX, &mut exchange.request, Manner::Raw);
            exchange.bytes_in += moved.data;
            to_backend = moved.halt;
            if moved.data > 0 {
                exchange.moved_at = now;
                self.accounts.listener(client.listener, ListenerCount::BytesIn, moved.data);
                self.accounts.backend(exchange.backend, BackendCount::BytesIn, moved.data);
            }
        }
        if to_client == Halt::Refused || to_backend == Halt::Refused {
            return self.tunnel_refused(slot);
        }
        if to_client == Halt::Starved && upstream.is_finished && !client.flags.has(Flags::SHUT) {
            client.flags.set(Flags::SHUT);
            self.connections.shutdown(near);
        }
        if to_backend == Halt::Starved
            && client.flags.has(Flags::FINISHED)
            && !client.flags.has(Flags::UPSTREAM_SHUT)
        {
            client.flags.set(Flags::UPSTREAM_SHUT);
            self.connections.shutdown(far);
        }
        if client.flags.has(Flags::SHUT) && client.flags.has(Flags::UPSTREAM_SHUT) {
            let upstream = client.exchange.upstream;
            self.drop_http_upstream(upstream, false);
            self.end_client(slot, None);
        }
    }

    /// A side takes nothing more: it has died, or there is no memory.
    fn tunnel_refused(&mut self, slot: u32) {
        let http = &self.proxy.http;
        let Some(client) = http.clients.at(slot) else { return };
        let far = http.upstreams.at(client.exchange.upstream).map(|upstream| upstream.handle);
        let is_dead = |ended: Ended| !matches!(ended, Ended::No | Ended::Finished);
        let cause = if is_dead(self.connections.ended(client.handle)) {
            Cause::ClientClosed
        } else if far.is_some_and(|far| is_dead(self.connections.ended(far))) {
            Cause::ResponseTruncated
        } else {
            Cause::Memory
        };
        self.cut(slot, cause);
    }
}
