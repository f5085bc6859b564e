//! What does a new generation end? Clients of listeners that are gone, connections to backends that take no more, exchanges whose
//! backend is down.

use std::sync::Arc;

use weir_http::cause::Cause;
use weir_l4::{Drain, OnDown};

use super::choose::StickyIds;
use super::client::{Flags, Stage};
use super::rules::HttpPool;
use super::upstream;
use crate::connections::{self, Accounts, Connections, Surroundings};
use crate::limits::Key;
use crate::proxy::{Proxy, Run};
use crate::session::NO_BACKEND;

/// How long a client of a drained listener that has not asked anything yet may take to.
const FIRST_REQUEST_MS: u32 = 1_000;
/// Records that are looked at per call.
const AT_ONCE: u32 = 1_024;

/// Whether a pool's backend takes new requests under the rules in force.
fn is_usable<H>(proxy: &Proxy<H>, upstream: &upstream::Upstream<H>) -> bool {
    let (pool, index) = (upstream.pool, upstream.backend);
    let Some((pool, rules)) = proxy.services.pool(pool).zip(proxy.rules.pool(pool)) else { return false };
    let Some(at) = pool.members.iter().position(|member| *member == index) else { return false };
    let takes = rules.weights.get(at).is_some_and(|weight| *weight > 0);
    let is_up = proxy.services.backend(index).is_some_and(|backend| !backend.down);
    takes && is_up
}

impl<C: Connections, S: Surroundings<C::Buffer>, A: Accounts> Run<'_, C, S, A> {
    /// Looks for what a new generation ends, some at a time.
    pub(crate) fn http_sweep(&mut self) {
        let Some(first) = self.proxy.http.sweep else { return };
        let slots = self.proxy.http.clients.slots().max(self.proxy.http.upstreams.slots());
        let last = first.saturating_add(AT_ONCE).min(slots);
        for slot in first..last {
            self.sweep_client(slot);
            self.sweep_upstream(slot);
        }
        self.proxy.http.sweep = (last < slots).then_some(last);
    }

    /// The ledger wants tokens back: idle connections to a backend end, so that other workers can have theirs.
    pub(crate) fn yield_idle(&mut self, backend: u32) {
        if !self.proxy.leases.is_tight(Key::Backend(backend)) {
            return;
        }
        while let Some(at) = self.proxy.http.idle.oldest(backend) {
            self.drop_http_upstream(at, false);
        }
    }

    fn sweep_upstream(&mut self, at: u32) {
        let Some(upstream) = self.proxy.http.upstreams.at(at) else { return };
        if is_usable(self.proxy, upstream) {
            return;
        }
        if upstream.stage == upstream::Stage::Idle {
            return self.drop_http_upstream(at, false);
        }
        if let Some(upstream) = self.proxy.http.upstreams.at_mut(at) {
            upstream.closes = true;
        }
    }

    fn sweep_client(&mut self, slot: u32) {
        let Some(client) = self.proxy.http.clients.at_mut(slot) else { return };
        if client.flags.has(Flags::DOOMED) {
            return self.abort_client(slot, connections::Cause::Aborted);
        }
        let (listener, stage, backend) = (client.listener, client.stage, client.exchange.backend);
        let (handle, requests) = (client.handle, client.requests);
        let is_gone = self.proxy.rules.http_listener(listener).is_none();
        if !is_gone && self.proxy.services.drain(listener) != Drain::No {
            if let Some(client) = self.proxy.http.clients.at_mut(slot) {
                client.flags.set(Flags::CLOSES);
            }
            // what is asked already is answered, and the answer says that it is the last
            if stage == Stage::Idle && self.connections.receivable(handle) == 0 {
                if requests > 0 {
                    return self.close_client(slot, false);
                }
                self.set_due(slot, FIRST_REQUEST_MS);
            }
        }
        if is_gone {
            if let Some(client) = self.proxy.http.clients.at_mut(slot) {
                client.flags.set(Flags::CLOSES);
            }
            match stage {
                Stage::Idle | Stage::Head => return self.close_client(slot, false),
                Stage::AwaitLease | Stage::AwaitProxy => {
                    return self.abort_client(slot, connections::Cause::Aborted);
                }
                _ => {}
            }
        }
        if !matches!(stage, Stage::Connecting | Stage::Active | Stage::Tunnel) || backend == NO_BACKEND {
            return;
        }
        let services = &self.proxy.services;
        if services.backend(backend).is_some_and(|backend| !backend.down) {
            return;
        }
        let on_down = services.listener(listener).map(|listener| listener.on_down);
        if stage != Stage::Connecting && on_down == Some(OnDown::Keep) {
            return;
        }
        let has_begun =
            self.proxy.http.clients.at(slot).is_some_and(|client| client.flags.has(Flags::RESPONSE));
        match stage {
            Stage::Tunnel => self.cut(slot, Cause::BackendDown),
            _ if has_begun => self.response_cut(slot, Cause::BackendDown),
            _ => self.attempt_failed(slot, Cause::BackendDown),
        }
    }
}

impl<H: Copy + Eq> Proxy<H> {
    /// Marks what a generation ends at once: clients of listeners and connections to backends of which no segment comes any more, or whose
    /// index means something else. It looks at every record, so it is for generations that have such a listener or backend.
    pub(crate) fn http_doom(
        &mut self,
        listener_is_lost: impl Fn(u16) -> bool,
        backend_is_lost: impl Fn(u32) -> bool,
    ) {
        let http = &mut self.http;
        for slot in 0..http.clients.slots() {
            let Some(client) = http.clients.at_mut(slot) else { continue };
            let in_use = client.flags.has(Flags::EXCHANGE);
            if listener_is_lost(client.listener) || in_use && backend_is_lost(client.exchange.backend) {
                client.flags.set(Flags::DOOMED);
            }
        }
        for at in 0..http.upstreams.slots() {
            if let Some(upstream) = http.upstreams.at_mut(at)
                && backend_is_lost(upstream.backend)
            {
                upstream.closes = true;
            }
        }
    }

    /// Takes over the generation that is now in force.
    pub(crate) fn http_adopt(&mut self) {
        let http = &mut self.http;
        http.generations.adopt(self.services.clone(), self.rules.clone());
        http.sweep = Some(0);
    }

    /// Tells the machines which backends and pools there are.
    pub(crate) fn http_prepare(&mut self) {
        let Self { services, rules, http, selector, .. } = self;
        let services = &**services;
        let of_pool = |(index, rules): (u32, &Arc<HttpPool>)| Some((services.pool(index)?, rules.breaker?));
        let breakers = rules.http_pools().filter_map(of_pool).flat_map(|(pool, rules)| {
            let identity = move |index: &u32| Some((*index, services.backend(*index)?.identity(), rules));
            pool.members.iter().filter_map(identity)
        });
        http.breakers.adopt(breakers);
        let pools = rules.http_pools().map(|(index, _)| index as usize + 1).max().unwrap_or(0);
        http.budgets.adopt(pools);
        http.chooser.adopt(pools);
        http.comebacks.adopt(services.backends().map(|(index, backend)| (index, !backend.down)), http.now);
        http.sticky.clear();
        http.sticky.resize(pools, None);
        for (index, _) in rules.http_pools().filter(|(_, rules)| rules.sticky.is_some()) {
            let Some(pool) = services.pool(index) else { continue };
            let identity = |index: &u32| services.backend(*index).map_or((0, 0), weir_l4::Backend::identity);
            let ids = StickyIds::new(selector.key, pool.members.iter().map(identity));
            if let Some(place) = http.sticky.get_mut(index as usize) {
                *place = Some(ids);
            }
        }
    }
}
