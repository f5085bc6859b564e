//! What becomes of a request's body that nobody reads, since the proxy answers by itself? What is left of it would be taken for the next
//! request: a little is read and let go of, so that the client keeps its connection; for more the connection ends.

use super::body::{Body, Halt, Manner, pump};
use super::client::{Flags, Stage};
use crate::connections::{Accounts, Connections, ListenerCount, Surroundings};
use crate::proxy::Run;

/// Bytes of a body that are waited for and let go of.
const DRAINED: u64 = 16 << 10;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// An answer of the proxy's own is about to be written: whether the connection outlives it is known by then.
    pub(super) fn settle_body(&mut self, slot: u32, is_lost: bool) {
        let Some(client) = self.proxy.http.clients.at(slot) else { return };
        if client.flags.has(Flags::REQUEST_DONE) {
            return;
        }
        let is_little = !is_lost && self.is_little_left(slot);
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        if is_little {
            client.flags.set(Flags::DRAINS);
        } else {
            client.flags.set(Flags::CLOSES | Flags::DISCARDS);
        }
    }

    /// Whether the rest of a body is worth reading: it is short, or all of it is there. Who waits for a 100 may send none of it.
    fn is_little_left(&self, slot: u32) -> bool {
        let Some(client) = self.proxy.http.clients.at(slot) else { return false };
        if client.flags.has(Flags::CLOSES | Flags::DISCARDS | Flags::FINISHED | Flags::UPGRADE) {
            return false;
        }
        let mut left = client.exchange.request;
        match left {
            Body::Length(length) if !client.flags.has(Flags::EXPECTS) => length <= DRAINED,
            Body::Length(length) => {
                length <= DRAINED && length <= u64::from(self.connections.receivable(client.handle))
            }
            Body::Chunked(_) => {
                let mut most = DRAINED as usize;
                for piece in self.connections.waiting(client.handle) {
                    let mut rest = piece.get(..most.min(piece.len())).unwrap_or_default();
                    most -= rest.len();
                    while !rest.is_empty() && !left.is_done() {
                        let Some(step) = left.step(rest) else { return false };
                        rest = rest.get((step.pass + step.skip).max(1)..).unwrap_or_default();
                    }
                }
                left.is_done()
            }
            Body::None | Body::UntilClose => false,
        }
    }

    /// Lets go of what is there of the body; true: that was all of it.
    pub(super) fn drain(&mut self, slot: u32) -> bool {
        let http = &mut self.proxy.http;
        let Some(client) = http.clients.at_mut(slot) else { return false };
        let exchange = &mut client.exchange;
        let moved = pump(self.connections, client.handle, None, u32::MAX, &mut exchange.request, Manner::Raw);
        exchange.bytes_in += moved.data;
        self.accounts.listener(client.listener, ListenerCount::BytesIn, moved.data);
        moved.halt == Halt::Done
    }

    /// The answer is on its way, and a part of the body still isn't there.
    pub(super) fn await_body(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        client.stage = Stage::Drain;
        let site = self.proxy.rules.http_listener(client.listener);
        let body_ms = site.map_or(super::finish::LINGER_MS, |site| site.rules.times.request_body_ms);
        self.set_due(slot, body_ms);
    }

    /// News of a client whose body is let go of. Its time is one for all of the body: it is short.
    pub(super) fn drain_on(&mut self, slot: u32) {
        if self.drain(slot) {
            return self.rest(slot);
        }
        if self.proxy.http.clients.at(slot).is_some_and(|client| client.flags.has(Flags::FINISHED)) {
            self.close_client(slot, false);
        }
    }
}
