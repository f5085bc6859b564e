//! Is this client welcome, and who is it? From the accepted connection to the PROXY header's end.

use arrayvec::ArrayVec;
use weir_l4::{Drain, address_of};
use weir_tcp::Events;
use weir_tcp::wheel::{Link, NONE};

use crate::admission;
use crate::connections::{Accepted, Accounts, Cause, Connections, ListenerCount, Surroundings};
use crate::limits::{Acquired, Key};
use crate::proxy::{Run, tick};
use crate::proxy_protocol::{Ends, Parser, Progress};
use crate::session::{Fifo, Flags, NO_BACKEND, Session, Setup, Side, Stage, Token};

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Reacts to the news of one connection.
    pub(crate) fn news(&mut self, handle: C::Handle, events: Events) {
        if events.has(Events::ACCEPTED) {
            self.accept(handle);
        }
        let Some(token) = self.connections.token(handle) else { return };
        match Token::of(token) {
            Token::HttpClient(slot) => self.http_client_news(slot, handle, events),
            Token::HttpUpstream(slot) => self.http_upstream_news(slot, handle, events),
            Token::Tcp(side, slot) => {
                // stale news are of a slot that has another connection
                let session = self.proxy.sessions.at(slot);
                if session.is_none_or(|session| session.handle(side) != Some(handle)) {
                    return;
                }
                match side {
                    Side::Client => self.client_news(slot, handle, events),
                    Side::Upstream => self.upstream_news(slot, handle, events),
                }
            }
        }
    }

    fn accept(&mut self, handle: C::Handle) {
        let Some(accepted) = self.connections.accepted(handle) else {
            return self.connections.release(handle);
        };
        let index = accepted.listener;
        self.accounts.listener(index, ListenerCount::Accepted, 1);
        let proxy = &mut *self.proxy;
        let known = proxy.services.listener(index).zip(proxy.rules.listener(index));
        let Some((listener, rules)) = known else { return self.turn_away(handle, Cause::Aborted) };
        // its handshake had begun before
        if proxy.services.drain(index) == Drain::Cut {
            return self.turn_away(handle, Cause::Aborted);
        }
        let client = address_of(accepted.remote.address);
        let rules_are_http = proxy.rules.http_listener(index).is_some();
        let is_trusted = || rules.trusted.iter().any(|prefix| prefix.contains(client));
        if rules.accept_proxy.is_some() && !is_trusted() {
            self.accounts.listener(index, ListenerCount::ProxyHeaderRefused, 1);
            return self.turn_away(handle, Cause::Aborted);
        }
        if !admission::may_open(&proxy.services, &accepted, self.accounts) {
            return self.turn_away(handle, Cause::Limit);
        }
        if rules_are_http {
            return self.http_accept(handle, accepted);
        }
        let (pool, handshake_ms) = (listener.pool, rules.handshake_ms);
        let (idle_ms, half_close_ms) = (rules.idle_ms, rules.half_close_ms);
        let acquired = proxy.leases.acquire(Key::Listener(index));
        if acquired == Acquired::Exhausted {
            self.accounts.listener(index, ListenerCount::RefusedLimit, 1);
            return self.turn_away(handle, Cause::Limit);
        }
        let Accepted { local, remote, .. } = accepted;
        let parser = rules.accept_proxy.map(Parser::new);
        let setup = Setup {
            session: NONE,
            ends: Ends { source: remote, destination: local },
            vip: local,
            parser,
            tried: ArrayVec::new(),
            next: NONE,
            previous: NONE,
            is_queued: false,
        };
        let at = proxy.setups.insert(setup);
        let session = Session {
            client: Some(handle),
            upstream: None,
            link: Link::IDLE,
            setup: at,
            pool,
            backend: NO_BACKEND,
            active_at: tick(self.now),
            residue: 0,
            idle_ms,
            half_close_ms,
            listener: index,
            stage: Stage::AwaitLease,
            flags: Flags::default(),
            is_leased: acquired == Acquired::Yes,
            is_live: true,
        };
        let Some(slot) = proxy.sessions.insert(session) else {
            proxy.setups.remove(at);
            if acquired == Acquired::Yes {
                proxy.leases.release(Key::Listener(index));
            }
            // told as what it is: the listener's own limit was not reached
            return self.turn_away(handle, Cause::Memory);
        };
        if let Some(setup) = proxy.setups.at_mut(at) {
            setup.session = slot;
        }
        admission::opened(&proxy.services, &accepted);
        self.connections.set_token(handle, Token::Tcp(Side::Client, slot).number());
        self.accounts.listener_active(index, 1);
        self.arm(slot, handshake_ms);
        if acquired == Acquired::Yes {
            return self.begin(slot);
        }
        let proxy = &mut *self.proxy;
        if proxy.arrivals.len() <= usize::from(index) {
            proxy.arrivals.resize(usize::from(index) + 1, Fifo::default());
        }
        if let Some(arrivals) = proxy.arrivals.get_mut(usize::from(index)) {
            arrivals.push(&mut proxy.setups, at);
        }
    }

    pub(crate) fn turn_away(&mut self, handle: C::Handle, cause: Cause) {
        self.connections.abort(handle);
        self.connections.release(handle);
        self.accounts.aborted(cause);
    }

    /// The ledger has answered for a listener: who waits comes in, as far as there are tokens.
    pub(crate) fn serve_arrivals(&mut self, listener: u16) {
        loop {
            let proxy = &mut *self.proxy;
            let Some(fifo) = proxy.arrivals.get(usize::from(listener)) else { return };
            let Some(slot) = proxy.setups.at(fifo.head).map(|setup| setup.session) else { return };
            match proxy.leases.acquire(Key::Listener(listener)) {
                Acquired::Pending => return,
                Acquired::Exhausted => {
                    self.accounts.listener(listener, ListenerCount::RefusedLimit, 1);
                    self.end(slot, Some(Cause::Limit));
                }
                Acquired::Yes => {
                    proxy.dequeue(slot, self.accounts);
                    if let Some(session) = proxy.sessions.at_mut(slot) {
                        session.is_leased = true;
                    }
                    self.begin(slot);
                }
            }
        }
    }

    /// The session counts: next is its header, or a backend.
    fn begin(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at_mut(slot) else { return };
        session.stage = Stage::AwaitHeader;
        let expects = self.proxy.setups.at(session.setup).is_some_and(|setup| setup.parser.is_some());
        if expects { self.read_header(slot) } else { self.place(slot) }
    }

    /// Takes what has arrived of the PROXY header.
    pub(crate) fn read_header(&mut self, slot: u32) {
        let Some(session) = self.proxy.sessions.at(slot) else { return };
        let (at, listener, flags) = (session.setup, session.listener, session.flags);
        let Some(handle) = session.client else { return };
        while let Some(piece) = self.connections.peek(handle) {
            let setup = self.proxy.setups.at_mut(at);
            let Some((ends, parser)) =
                setup.and_then(|setup| Some((&mut setup.ends, setup.parser.as_mut()?)))
            else {
                return;
            };
            let len = piece.len() as u32;
            match parser.feed(piece) {
                Ok(Progress::Incomplete) => self.connections.consume(handle, len),
                Ok(Progress::Done(header)) => {
                    *ends = header.ends.unwrap_or(*ends);
                    self.connections.consume(handle, u32::from(header.len));
                    if let Some(setup) = self.proxy.setups.at_mut(at) {
                        setup.parser = None;
                    }
                    return self.place(slot);
                }
                Err(_) => {
                    self.accounts.listener(listener, ListenerCount::ProxyHeaderRefused, 1);
                    return self.end(slot, Some(Cause::Aborted));
                }
            }
        }
        if flags.has(Flags::FINISHED, Side::Client) {
            self.accounts.listener(listener, ListenerCount::ProxyHeaderRefused, 1);
            self.end(slot, Some(Cause::Aborted));
        }
    }
}
