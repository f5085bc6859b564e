//! What does the configuration say of proxied connections? One generation, beside [`weir_l4::Services`] and of the same age.
//!
//! Built by the dataplane's management thread from a verified snapshot (or by a test), immutable, shared by all workers.

use std::sync::Arc;

use weir_balance::counted::weights_of;
use weir_l4::{Pool, Services};
use weir_net::Prefix;

use crate::http::rules::HttpPool;
use crate::http::site::Site;
use crate::proxy_protocol::{Expects, Version};

/// What a listener of mode `proxy` does. Times are milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerRules {
    /// One attempt to connect.
    pub connect_ms: u32,
    /// Silence in both directions.
    pub idle_ms: u32,
    /// Silence of the open direction once the other is closed.
    pub half_close_ms: u32,
    /// Until the PROXY header is there.
    pub handshake_ms: u32,
    /// Wait for a backend; without a queue, wait for the ledger.
    pub queue_ms: u32,
    /// Connections that may wait for a backend, of this worker: the node's share, rounded up.
    pub queue: u32,
    /// Whether client connections are limited (the ledger knows to how many).
    pub is_limited: bool,
    /// Further backends to try.
    pub retries: u8,
    /// The PROXY header that clients must send.
    pub accept_proxy: Option<Expects>,
    /// Whose header is believed; others are refused where one is expected.
    pub trusted: Box<[Prefix]>,
}

impl Default for ListenerRules {
    /// The configuration's defaults.
    fn default() -> Self {
        Self {
            connect_ms: 5_000,
            idle_ms: 3_600_000,
            half_close_ms: 60_000,
            handshake_ms: 10_000,
            queue_ms: 0,
            queue: 0,
            is_limited: false,
            retries: 1,
            accept_proxy: None,
            trusted: Box::default(),
        }
    }
}

/// Algorithms that count connections; the others are [`weir_l4::services::Algorithm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// The backend with the fewest for its weight.
    LeastConn,
    /// The better of two drawn by weight.
    RandomTwo,
}

/// How a pool's backends are reached by the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolRules {
    /// Whether connections are counted to choose.
    pub counted: Option<Counted>,
    /// Weights by position, as the slots have them.
    pub weights: Box<[u32]>,
    /// The PROXY header that backends get.
    pub send_proxy: Option<Version>,
    /// The engine's profile of connections to them.
    pub profile: u16,
}

impl PoolRules {
    /// The rules of a pool, its weights from its slots.
    pub fn new(pool: &Pool, counted: Option<Counted>, send_proxy: Option<Version>, profile: u16) -> Self {
        let weights = weights_of(&pool.slots, pool.members.len()).into_boxed_slice();
        Self { counted, weights, send_proxy, profile }
    }
}

/// One generation.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    listeners: Vec<Option<ListenerRules>>,
    pools: Vec<Option<PoolRules>>,
    sites: Vec<Option<Arc<Site>>>,
    http_pools: Vec<Option<Arc<HttpPool>>>,
    limited_backends: Vec<u32>,
}

impl Rules {
    /// Rules by the indices of the same generation's [`Services`]; backends by index that have a limit.
    pub fn new(
        listeners: impl IntoIterator<Item = (u16, ListenerRules)>,
        pools: impl IntoIterator<Item = (u32, PoolRules)>,
        mut limited_backends: Vec<u32>,
    ) -> Self {
        limited_backends.sort_unstable();
        let mut rules = Self { limited_backends, ..Self::default() };
        for (index, listener) in listeners {
            put(&mut rules.listeners, usize::from(index), listener);
        }
        for (index, pool) in pools {
            put(&mut rules.pools, index as usize, pool);
        }
        rules
    }

    /// The same, with what there is to say of HTTP: listeners with a site are HTTP, the others TCP. Every pool that a site names needs
    /// its entry.
    #[must_use]
    pub fn with_http(
        mut self,
        sites: impl IntoIterator<Item = (u16, Arc<Site>)>,
        pools: impl IntoIterator<Item = (u32, Arc<HttpPool>)>,
    ) -> Self {
        for (index, site) in sites {
            put(&mut self.sites, usize::from(index), site);
        }
        for (index, pool) in pools {
            put(&mut self.http_pools, index as usize, pool);
        }
        self
    }

    /// What an HTTP listener does; `None`: it is none.
    #[inline]
    pub fn http_listener(&self, index: u16) -> Option<&Arc<Site>> {
        self.sites.get(usize::from(index))?.as_ref()
    }

    /// How a pool's backends are used for HTTP.
    #[inline]
    pub fn http_pool(&self, index: u32) -> Option<&Arc<HttpPool>> {
        self.http_pools.get(index as usize)?.as_ref()
    }

    /// All pools of HTTP with their index.
    pub fn http_pools(&self) -> impl Iterator<Item = (u32, &Arc<HttpPool>)> {
        (0u32..).zip(&self.http_pools).filter_map(|(index, rules)| Some((index, rules.as_ref()?)))
    }

    /// The rules of a listener.
    #[inline]
    pub fn listener(&self, index: u16) -> Option<&ListenerRules> {
        self.listeners.get(usize::from(index))?.as_ref()
    }

    /// All listeners with their index.
    pub fn listeners(&self) -> impl Iterator<Item = (u16, &ListenerRules)> {
        (0u16..).zip(&self.listeners).filter_map(|(index, rules)| Some((index, rules.as_ref()?)))
    }

    /// The rules of a pool.
    #[inline]
    pub fn pool(&self, index: u32) -> Option<&PoolRules> {
        self.pools.get(index as usize)?.as_ref()
    }

    /// Whether connections to a backend are limited.
    pub fn is_limited(&self, backend: u32) -> bool {
        self.limited_backends.binary_search(&backend).is_ok()
    }

    /// The backends whose connections are limited.
    pub fn limited_backends(&self) -> &[u32] {
        &self.limited_backends
    }

    /// The pools to which `services` and these rules both have something to say.
    pub fn is_complete(&self, services: &Services) -> bool {
        self.listeners().all(|(index, _)| {
            services.listener(index).is_some_and(|listener| self.pool(listener.pool).is_some())
        })
    }
}

fn put<T>(places: &mut Vec<Option<T>>, at: usize, value: T) {
    if places.len() <= at {
        places.resize_with(at + 1, || None);
    }
    if let Some(place) = places.get_mut(at) {
        *place = Some(value);
    }
}
