//! What becomes of copies of requests? They go to a backend of the mirror's pool, and their responses are discarded. Nobody waits for them:
//! where there is no connection or memory to be had at once the copy is dropped, where the body was not collected the request is skipped; both are
//! counted.

use weir_http::head::{Limits, Method, Progress};
use weir_http::routes::edit::is_mirrored;
use weir_tcp::{Ended, Events};

use super::body::{Body, Halt, Manner, pump};
use super::choose::{Choice, Standing, Wanted};
use super::client::{Flags, NOBODY};
use super::event::HttpCount;
use super::outbox::Sent;
use super::upstream;
use crate::connections::{Accounts, BackendCount, Connections, Surroundings};
use crate::limits::{Acquired, Key};
use crate::proxy::{Proxy, Run, tick};

/// How long a copy may take, connecting included, milliseconds.
const MIRROR_MS: u32 = 60_000;

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Copies the request that was just passed on, and is still in the scratch, where its route wants that.
    #[inline]
    pub(crate) fn mirror(&mut self, slot: u32) {
        let proxy = &mut *self.proxy;
        let Some(client) = proxy.http.clients.at(slot) else { return };
        let exchange = &client.exchange;
        if exchange.attempts != 1 {
            return;
        }
        let rules = proxy.http.generations.rules(exchange.generation);
        let site = rules.and_then(|rules| rules.http_listener(client.listener));
        let route = site.and_then(|site| site.table.route(usize::from(exchange.route)));
        let Some(mirror) = route.and_then(|route| route.mirror) else { return };
        let (is_whole, is_upgrade) =
            (client.flags.has(Flags::REQUEST_DONE), client.flags.has(Flags::UPGRADE));
        let (listener, method, vip_port) = (client.listener, exchange.method, client.vip_port);
        if !is_mirrored(&mirror, proxy.http.next_random()) {
            return;
        }
        if !is_whole {
            return self.accounts.http(listener, HttpCount::MirrorsSkipped, 1);
        }
        let is_possible = !is_upgrade && method != Method::Connect && !self.proxy.http.is_full();
        let is_sent = is_possible && self.send_copy(mirror.pool, method, vip_port).is_some();
        let count = if is_sent { HttpCount::Mirrored } else { HttpCount::MirrorsDropped };
        self.accounts.http(listener, count, 1);
    }

    fn send_copy(&mut self, pool: u32, method: Method, vip_port: u16) -> Option<()> {
        let backend = self.choose_for_copy(pool)?;
        let at = match self.idle_for_copy(pool, backend, vip_port) {
            Some(at) => at,
            None => self.open_for_copy(pool, backend, vip_port)?,
        };
        let http = &mut self.proxy.http;
        let upstream = http.upstreams.at_mut(at)?;
        upstream.mirrored = method;
        upstream.response = Body::None;
        upstream.has_head = false;
        upstream.due = tick(self.now).wrapping_add(MIRROR_MS);
        upstream.requests = upstream.requests.saturating_add(1);
        let sent = if upstream.is_open {
            let handle = upstream.handle;
            upstream.outbox.send(&http.scratch, handle, self.connections, self.surroundings, &mut http.store)
        } else {
            upstream.outbox.wait(&http.scratch, &mut http.store)
        };
        if sent == Sent::Refused {
            self.drop_http_upstream(at, true);
            return None;
        }
        let http = &mut self.proxy.http;
        let due = http.upstreams.at(at)?.due;
        http.upstream_wheel.arm(&mut http.upstreams, at, due);
        Some(())
    }

    fn choose_for_copy(&mut self, pool: u32) -> Option<u32> {
        let now = self.now;
        let Proxy { services, rules, http, leases, .. } = &mut *self.proxy;
        let (pool_of, pool_rules) = services.pool(pool).zip(rules.pool(pool))?;
        // a PROXY header would have to tell of the client
        if pool_rules.send_proxy.is_some() {
            return None;
        }
        let http_rules = rules.http_pool(pool)?;
        let idle = &http.idle;
        let hash = http.random;
        let wanted = Wanted { hash, sticky: None };
        let chosen = http.chooser.choose(pool_of, pool_rules, http_rules, wanted, now, |position, _| {
            let Some(index) = pool_of.members.get(usize::from(position)).copied() else {
                return Standing { is_down: true, ..Standing::FREE };
            };
            let is_down = services.backend(index).is_none_or(|backend| backend.down);
            let is_free =
                is_down || idle.len(index) > 0 || leases.probe(Key::Backend(index)) == Acquired::Yes;
            Standing {
                is_down,
                is_full: !is_free,
                load: leases.used(Key::Backend(index)).saturating_sub(idle.len(index)),
                ..Standing::FREE
            }
        });
        match chosen {
            Choice::Position(position) => pool_of.members.get(usize::from(position)).copied(),
            Choice::Full | Choice::Nobody => None,
        }
    }

    fn idle_for_copy(&mut self, pool: u32, backend: u32, vip_port: u16) -> Option<u32> {
        let Proxy { services, http, .. } = &mut *self.proxy;
        let port = services.backend(backend)?.serves(vip_port);
        let at = http.idle.find(&http.upstreams, backend, pool, port)?;
        let upstream = http.upstreams.at_mut(at)?;
        if !self.connections.is_quiet(upstream.handle) {
            self.drop_http_upstream(at, false);
            return None;
        }
        upstream.stage = upstream::Stage::Mirror;
        http.idle.remove(&mut http.upstreams, backend, at);
        self.accounts.backend_idle(backend, -1);
        Some(at)
    }

    fn open_for_copy(&mut self, pool: u32, index: u32, vip_port: u16) -> Option<u32> {
        let proxy = &mut *self.proxy;
        let backend = proxy.services.backend(index).cloned()?;
        let profile = proxy.rules.pool(pool)?.profile;
        if !proxy.http.upstreams.has_room() || proxy.leases.acquire(Key::Backend(index)) != Acquired::Yes {
            return None;
        }
        let opened = self.open(&backend, index, vip_port, profile, pool, NOBODY);
        let Ok(at) = opened else {
            self.proxy.leases.release(Key::Backend(index));
            return None;
        };
        self.accounts.backend_active(index, 1);
        if let Some(upstream) = self.proxy.http.upstreams.at_mut(at) {
            upstream.stage = upstream::Stage::Mirror;
            upstream.is_open = false;
        }
        Some(at)
    }

    /// News of a connection that has a copy.
    pub(crate) fn mirror_news(&mut self, at: u32, handle: C::Handle, events: Events) {
        let http = &mut self.proxy.http;
        let Some(upstream) = http.upstreams.at_mut(at) else { return };
        if events.has(Events::CONNECTED) {
            upstream.is_open = true;
            self.accounts.backend(upstream.backend, BackendCount::Connects, 1);
        }
        upstream.is_finished |= events.has(Events::FINISHED | Events::CLOSED);
        if events.has(Events::CLOSED) && self.connections.ended(handle) != Ended::Finished {
            return self.drop_http_upstream(at, false);
        }
        if events.has(Events::CONNECTED | Events::WRITABLE)
            && upstream.outbox.flush(handle, self.connections, self.surroundings, &mut http.store)
                == Sent::Refused
        {
            return self.drop_http_upstream(at, true);
        }
        match self.discard_response(at, handle) {
            Some(true) => {}
            // the end, in order or not
            Some(false) => self.keep_upstream(at),
            None => self.drop_http_upstream(at, true),
        }
    }

    /// Discards what is there of a response; whether more must come, `None`: the connection is no good any more.
    fn discard_response(&mut self, at: u32, handle: C::Handle) -> Option<bool> {
        let http = &mut self.proxy.http;
        let upstream = http.upstreams.at_mut(at)?;
        while !upstream.has_head {
            let Some(piece) = self.connections.peek(handle) else {
                return (!upstream.is_finished).then_some(true);
            };
            // a head in several pieces isn't worth gathering
            let Ok(Progress::Complete) = http.response.parse(piece, &Limits::WIDEST, upstream.mirrored)
            else {
                return None;
            };
            let len = http.response.len as u32;
            self.connections.consume(handle, len);
            if !http.response.is_interim() {
                upstream.has_head = true;
                upstream.closes |= !http.response.keep_alive;
                upstream.response = Body::from(http.response.body);
            }
        }
        match pump(self.connections, handle, None, u32::MAX, &mut upstream.response, Manner::Raw).halt {
            Halt::Done => Some(false),
            Halt::Starved if upstream.is_finished => None,
            Halt::Starved | Halt::Blocked => Some(true),
            Halt::Malformed | Halt::Refused => None,
        }
    }
}
