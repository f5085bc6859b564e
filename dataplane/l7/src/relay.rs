//! How do bytes, ends and resets get from one side to the other? And when has it lasted long enough?
//!
//! Chunks move from one connection's receive queue to the other's send queue, not their bytes. What the other side has no
//! room for stays in the receive queue, whose window closes: backpressure needs no memory here.
//!
//! | one side | the other |
//! |---|---|
//! | data | the same data, in order |
//! | FIN | FIN, behind all data that came before it |
//! | RST, or lost (time-out, unreachable) | RST |
//! | both FINs, all acknowledged | both FINs: the session is over |

use weir_tcp::{Chunk, Ended, Events};

use crate::admission;
use crate::connections::{Accounts, BackendCount, Cause, Connections, ListenerCount, Surroundings};
use crate::proxy::{Run, tick};
use crate::proxy_protocol::{WRITTEN_MAX, write};
use crate::session::{Flags, Side, Stage};

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// News of a client's connection.
    pub(crate) fn client_news(&mut self, slot: u32, handle: C::Handle, events: Events) {
        self.relay_news(slot, Side::Client, handle, events);
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        if session.stage == Stage::AwaitHeader && events.has(Events::READABLE | Events::FINISHED) {
            self.read_header(slot);
        }
    }

    /// What is the same for both sides.
    pub(crate) fn relay_news(&mut self, slot: u32, side: Side, handle: C::Handle, events: Events) {
        let Some(session) = self.proxy.sessions.at_mut(slot) else { return };
        if events.has(Events::CLOSED) {
            let ended = self.connections.ended(handle);
            if ended != Ended::Finished {
                return self.lost(slot, side, ended);
            }
            session.flags.set(Flags::CLOSED, side);
        }
        if events.has(Events::FINISHED) && !session.flags.has(Flags::FINISHED, side) {
            let was_half_closed = session.flags.is_half_closed();
            session.flags.set(Flags::FINISHED, side);
            if session.stage == Stage::Relaying && !was_half_closed {
                session.active_at = tick(self.now);
                let half_close_ms = session.half_close_ms;
                self.arm(slot, half_close_ms);
            }
        }
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        if session.stage != Stage::Relaying {
            return;
        }
        let may_hold_data = Events::READABLE | Events::FINISHED | Events::CLOSED;
        if events.has(may_hold_data) {
            self.pump(slot, side);
        }
        if events.has(Events::WRITABLE) {
            self.pump(slot, side.other());
        }
        self.settle(slot);
    }

    /// A side is gone without a FIN: so goes the other.
    fn lost(&mut self, slot: u32, side: Side, ended: Ended) {
        let Some(session) = self.proxy.sessions.at_mut(slot) else { return };
        match (side, ended) {
            (Side::Client, Ended::Reset) => {
                self.accounts.listener(session.listener, ListenerCount::ClientResets, 1);
            }
            (Side::Upstream, Ended::Reset) => {
                self.accounts.backend(session.backend, BackendCount::ServerResets, 1);
            }
            _ => {}
        }
        // the lost one has nothing to abort any more
        match side {
            Side::Client => {
                if let Some(handle) = session.client.take() {
                    admission::release(&self.proxy.services, self.connections, handle);
                }
            }
            Side::Upstream => self.drop_upstream(slot, None),
        }
        self.end(slot, Some(Cause::Aborted));
    }

    /// The backend has answered: its PROXY header first, then what the client has sent so far.
    pub(crate) fn connected(&mut self, slot: u32, handle: C::Handle) {
        let proxy = &mut *self.proxy;
        let Some(session) = proxy.sessions.at_mut(slot) else { return };
        session.stage = Stage::Relaying;
        session.active_at = tick(self.now);
        self.accounts.backend(session.backend, BackendCount::Connects, 1);
        let is_half_closed = session.flags.is_half_closed();
        let timeout_ms = if is_half_closed { session.half_close_ms } else { session.idle_ms };
        let (setup, pool) = (std::mem::replace(&mut session.setup, u32::MAX), session.pool);
        let version = proxy.rules.pool(pool).and_then(|rules| rules.send_proxy);
        let ends = proxy.setups.at(setup).map(|setup| setup.ends);
        proxy.setups.remove(setup);
        if let Some(version) = version {
            let mut header = [0; WRITTEN_MAX];
            let len = write(version, ends, &mut header);
            let buffer = self.surroundings.copy(header.get(..len).unwrap_or_default());
            let sent =
                buffer.is_some_and(|buffer| self.connections.send(handle, Chunk::whole(buffer)).is_ok());
            if !sent {
                return self.end(slot, Some(Cause::Memory));
            }
        }
        self.arm(slot, timeout_ms);
        self.pump(slot, Side::Client);
    }

    /// Moves what has arrived on one side to the other, as far as there is room, and the FIN behind it.
    #[inline]
    fn pump(&mut self, slot: u32, from: Side) {
        let Some(session) = self.proxy.sessions.at_mut(slot) else { return };
        let to = from.other();
        let Some((source, target)) = session.handle(from).zip(session.handle(to)) else { return };
        if session.flags.has(Flags::SHUT, to) {
            return;
        }
        let mut bytes = 0;
        let mut is_blocked = false;
        while self.connections.receivable(source) > 0 {
            if self.connections.room(target) == 0 {
                self.connections.await_room(target);
                is_blocked = true;
                break;
            }
            let Some(chunk) = self.connections.receive(source) else { break };
            let len = u64::from(chunk.len);
            if self.connections.send(target, chunk).is_err() {
                // there was room: the target has just died, its news are behind these; else there is no memory, and
                // what can't be kept must not be passed over
                return match self.connections.ended(target) {
                    Ended::No | Ended::Finished => self.end(slot, Some(Cause::Memory)),
                    ended => self.lost(slot, to, ended),
                };
            }
            bytes += len;
        }
        if bytes > 0 {
            session.active_at = tick(self.now);
            let (listener, backend) = (session.listener, session.backend);
            let (of_listener, of_backend) = match from {
                Side::Client => (ListenerCount::BytesIn, BackendCount::BytesIn),
                Side::Upstream => (ListenerCount::BytesOut, BackendCount::BytesOut),
            };
            self.accounts.listener(listener, of_listener, bytes);
            self.accounts.backend(backend, of_backend, bytes);
        }
        if !is_blocked && session.flags.has(Flags::FINISHED, from) {
            session.flags.set(Flags::SHUT, to);
            self.connections.shutdown(target);
        }
    }

    /// Lets go of what is over and empty; the session ends with the second.
    fn settle(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at_mut(slot) else { return };
        let flags = session.flags;
        // a closed side's last bytes wait for room on the other: its FIN has then not been passed on
        let is_over = |side: Side| flags.has(Flags::CLOSED, side) && flags.has(Flags::SHUT, side.other());
        if is_over(Side::Client)
            && let Some(handle) = session.client.take()
        {
            admission::release(&self.proxy.services, self.connections, handle);
        }
        if is_over(Side::Upstream) {
            self.drop_upstream(slot, None);
        }
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        if session.client.is_none() && session.upstream.is_none() {
            self.end(slot, None);
        }
    }

    /// The session's timer has run out.
    pub(crate) fn timed_out(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        let listener = session.listener;
        match session.stage {
            Stage::Relaying => self.relay_timed_out(slot),
            Stage::Connecting => self.connect_timed_out(slot),
            Stage::AwaitLease => {
                self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
                self.end(slot, Some(Cause::Limit));
            }
            Stage::AwaitHeader => {
                self.accounts.listener(listener, ListenerCount::HandshakeTimeouts, 1);
                self.end(slot, Some(Cause::Timeout));
            }
            Stage::Queued => {
                self.accounts.listener(listener, ListenerCount::QueueTimeouts, 1);
                self.end(slot, Some(Cause::Timeout));
            }
        }
    }

    /// Whether it was really silent: what the proxy moved is known; whether the rest of it is on its way to a slow reader, only
    /// the connections know.
    fn relay_timed_out(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at_mut(slot) else { return };
        let unsent = |side| session.handle(side).map_or(0, |handle| self.connections.unsent(handle));
        let residue = unsent(Side::Client).wrapping_add(unsent(Side::Upstream));
        if residue != session.residue {
            session.residue = residue;
            // it has moved at some time since the last look
            if residue != 0 {
                session.active_at = tick(self.now);
            }
        }
        let is_half_closed = session.flags.is_half_closed();
        let (period, count) = if is_half_closed {
            (session.half_close_ms, ListenerCount::HalfCloseTimeouts)
        } else {
            (session.idle_ms, ListenerCount::IdleTimeouts)
        };
        let silent = tick(self.now).wrapping_sub(session.active_at);
        if silent < period {
            return self.arm(slot, period - silent);
        }
        let listener = session.listener;
        self.accounts.listener(listener, count, 1);
        self.end(slot, Some(Cause::Timeout));
    }
}
