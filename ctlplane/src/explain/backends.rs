//! Which backends could get a request, and which one does, as far as that can be told before it comes?
//!
//! Asks what the workers ask: tables of slots, hashes, cookies and the choice itself are theirs. What only they know (loads, turns,
//! limits) is not made up: there the answer is a share.

use std::net::IpAddr;

use weir_abi::record::{AdminState, Algorithm, NO_POSITION};
use weir_balance::maglev::Builder;
use weir_http::cookie;
use weir_http::head::Request as Head;
use weir_l4::{bits_of, services};
use weir_l7::http::choose::{Choice, Chooser, Standing, StickyIds, Wanted, hash_of, hash_of_source};
use weir_l7::http::rules::{HashBy, HttpPool};
use weir_l7::{Counted, PoolRules};
use weir_net::hash::StableKey;
use weir_tcp::Instant;

use super::{BackendVerdict, PoolShare};
use crate::compile::down::{Acting, Down, PoolHealth, acting};
use crate::compile::effective;
use crate::model::{Backend, Model, Pool, algorithm_name};
use crate::slots;
use crate::state::Overrides;
use crate::units::{format_backend_address, format_share};

/// What is known of backends beside the configuration.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// What operators have set.
    pub overrides: &'a Overrides,
    /// What checks have found; `None`: nobody was asked.
    pub health: Option<&'a Down>,
    /// Why a backend's breakers permit no requests, by pool and backend.
    pub breaker: &'a dyn Fn(&str, &str) -> Option<String>,
}

impl<'a> Known<'a> {
    /// Nothing but what the file says.
    pub fn nothing(overrides: &'a Overrides) -> Self {
        Self { overrides, health: None, breaker: &|_, _| None }
    }
}

/// A request, as far as it has to do with the choice of a backend.
#[derive(Clone, Copy)]
pub(super) struct Wishes<'a> {
    pub(super) head: &'a Head,
    pub(super) bytes: &'a [u8],
    pub(super) source: IpAddr,
}

impl<'a> Wishes<'a> {
    fn cookie(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.head.fields.named(self.bytes, b"cookie");
        values.find_map(|value| cookie::find(value, name.as_bytes()))
    }

    /// The hash that picks a slot, and of what it is.
    fn hash(&self, key: StableKey, by: &HashBy) -> (u64, String) {
        let (value, what) = match by {
            HashBy::Source => (None, String::new()),
            HashBy::Header(name) => {
                let value = self.head.fields.named(self.bytes, name.as_bytes()).next();
                (value, format!("header {name}"))
            }
            HashBy::Cookie(name) => (self.cookie(name), format!("cookie {name}")),
            HashBy::Path => (Some(self.head.target.path_or_root(self.bytes)), "the path".to_owned()),
        };
        match value {
            Some(value) => (hash_of(key, value), what),
            None if what.is_empty() => {
                (hash_of_source(key, bits_of(self.source)), "the client's address".to_owned())
            }
            None => {
                let what = format!("the client's address, for there is no {what}");
                (hash_of_source(key, bits_of(self.source)), what)
            }
        }
    }
}

/// A pool as the workers have it, with what is known of its backends.
struct Site<'a> {
    pool: &'a Pool,
    slots: weir_l4::Pool,
    rules: PoolRules,
    acting: Acting,
    health: Option<&'a PoolHealth>,
    /// Effective weight and state, and what its breaker says, by position.
    backends: Vec<(u16, AdminState, Option<String>)>,
    key: StableKey,
}

impl<'a> Site<'a> {
    fn new(model: &Model, known: &Known<'a>, pool: &'a Pool) -> Self {
        let set = known.overrides.get(&pool.name);
        let health = known.health.and_then(|health| health.of(&pool.name));
        let acting = acting(pool, set, health);
        let backends: Vec<_> = pool
            .backends
            .iter()
            .map(|backend| {
                let (weight, state) = effective(backend, set.and_then(|set| set.get(&backend.name)));
                (weight, state, (known.breaker)(&pool.name, &backend.name))
            })
            .collect();
        let weight = |(backend, (weight, state, _)): (&Backend, &(u16, AdminState, _))| {
            let is_ready = *state == AdminState::Ready;
            let weight = if is_ready { acting.weight(&backend.name, *weight) } else { 0 };
            (format_backend_address(backend.address, backend.port), weight)
        };
        let weights: Vec<(String, u32)> = pool.backends.iter().zip(&backends).map(weight).collect();
        let built = if weights.is_empty() {
            None
        } else {
            slots::build(&mut Builder::default(), pool.algorithm, &weights, pool.slots).ok()
        };
        let (algorithm, counted) = match pool.algorithm {
            Algorithm::Maglev => (services::Algorithm::Maglev, None),
            Algorithm::SourceHash => (services::Algorithm::SourceHash, None),
            Algorithm::RoundRobin => (services::Algorithm::RoundRobin, None),
            Algorithm::LeastConn => (services::Algorithm::RoundRobin, Some(Counted::LeastConn)),
            Algorithm::RandomTwo => (services::Algorithm::RoundRobin, Some(Counted::RandomTwo)),
        };
        let slots = weir_l4::Pool {
            index: 0,
            algorithm,
            slots: built.unwrap_or_else(|| vec![NO_POSITION]).into_boxed_slice(),
            members: (0..pool.backends.len() as u32).collect(),
        };
        let rules = PoolRules::new(&slots, counted, None, 0);
        let key = model.node.hash_key.map_or(StableKey::NONE, |key| StableKey::from_bytes(&key));
        Self { pool, slots, rules, acting, health, backends, key }
    }

    /// The worker's choice, for what is known here: nobody has tried anything, and nobody is at a limit.
    fn choose(&self, http: &HttpPool, wanted: Wanted) -> Option<u16> {
        let standing = |position: u16, _| {
            let at = usize::from(position);
            let is_maint = self.backends.get(at).is_none_or(|(_, state, _)| *state == AdminState::Maint);
            let is_down = self.pool.backends.get(at).is_none_or(|one| self.acting.down.contains(&one.name));
            let is_broken = self.backends.get(at).is_some_and(|(.., breaker)| breaker.is_some());
            Standing { is_down: is_down || is_maint, is_broken, ..Standing::FREE }
        };
        let mut chooser = Chooser::new(0);
        match chooser.choose(&self.slots, &self.rules, http, wanted, Instant(0), standing) {
            Choice::Position(position) => Some(position),
            Choice::Full | Choice::Nobody => None,
        }
    }

    /// Whether the one at a position may be asked at all, its weight aside: what the worker finds for a cookie that names it.
    fn may_be_asked(&self, position: u16) -> bool {
        let wanted = Wanted { hash: 0, sticky: Some(position) };
        self.choose(&self.pool.http, wanted) == Some(position)
    }

    fn weight_of(&self, position: u16) -> u32 {
        self.rules.weights.get(usize::from(position)).copied().unwrap_or(0)
    }

    /// Whether it could get a request, and why not or how.
    fn verdict(&self, position: u16, backend: &Backend) -> (bool, String) {
        let Some((weight, state, breaker)) = self.backends.get(usize::from(position)) else {
            return (false, String::new());
        };
        let found = self.health.and_then(|health| health.down.get(&backend.name));
        let is_usable = self.may_be_asked(position) && self.weight_of(position) > 0;
        let why = match (state, found, breaker) {
            (AdminState::Ready, Some(reason), _) if is_usable => {
                format!("down ({reason}), but so many of the pool are that health is ignored")
            }
            (AdminState::Ready, None, Some(reason)) if is_usable => {
                format!("{reason}, but so many of the pool are out that this is ignored")
            }
            (AdminState::Ready, Some(reason), _) => format!("it is down: {reason}"),
            (AdminState::Ready, None, Some(reason)) => reason.clone(),
            (AdminState::Ready, None, None) if is_usable => match self.acting.tenths.get(&backend.name) {
                Some(tenths) => format!("it came back, and has {tenths} tenths of its weight"),
                None if *weight == 0 => "its weight is 0, but those that have one are down".to_owned(),
                None => String::new(),
            },
            (AdminState::Ready, None, None) => "its weight is 0".to_owned(),
            (AdminState::Drain, ..) if self.pool.http.sticky.is_some() => {
                "its state is drain: only clients whose cookie names it".to_owned()
            }
            (other, ..) => format!("its state is {}", other.name()),
        };
        (is_usable, why)
    }
}

/// A pool's share, its backends, and which of them gets the request; without wishes it is for a copy.
pub(super) fn pool_share(
    model: &Model,
    known: &Known<'_>,
    wishes: Option<Wishes<'_>>,
    position: u32,
    share: u32,
) -> Option<PoolShare> {
    let pool = model.pools.get(position as usize)?;
    let site = Site::new(model, known, pool);
    let mut verdicts: Vec<(bool, String)> =
        (0u16..).zip(&pool.backends).map(|(position, backend)| site.verdict(position, backend)).collect();
    let serves =
        pool.backends.iter().zip(&verdicts).any(|(backend, (is_usable, _))| *is_usable && !backend.backup);
    for (backend, (is_usable, why)) in pool.backends.iter().zip(&mut verdicts) {
        if backend.backup && *is_usable && serves {
            (*is_usable, *why) = (false, "a backup, and others can serve".to_owned());
        }
    }
    let chosen = wishes.and_then(|wishes| certain(&site, &wishes));
    let parts: u64 = (0u16..)
        .zip(&verdicts)
        .filter(|(_, (is_usable, _))| *is_usable)
        .map(|(position, _)| u64::from(site.weight_of(position)))
        .sum();
    let backends =
        (0u16..).zip(pool.backends.iter().zip(verdicts)).map(|(position, (backend, (usable, why)))| {
            let weight = u64::from(site.weight_of(position));
            let share =
                (weight * 10_000 + parts / 2).checked_div(parts).filter(|_| usable && chosen.is_none());
            let is_chosen = chosen.as_ref().is_some_and(|(chosen, _)| *chosen == position);
            BackendVerdict {
                backend: backend.name.clone(),
                address: format_backend_address(backend.address, backend.port),
                weight: site.backends.get(usize::from(position)).map_or(0, |(weight, ..)| *weight),
                // a cookie's client gets the one that is drained, too
                usable: usable || is_chosen,
                why: match backend.max_connections {
                    most @ 1.. if is_chosen => format!("unless it has its {most} connections"),
                    _ => why,
                },
                share: share.map(|share| format_share(share as u32)),
            }
        });
    let backends = backends.collect();
    let (backend, because) = match chosen {
        Some((position, because)) => {
            (pool.backends.get(usize::from(position)).map(|backend| backend.name.clone()), because)
        }
        None => (None, String::new()),
    };
    let picks = if wishes.is_some() { picks(pool) } else { "drawn by weight".to_owned() };
    Some(PoolShare { pool: pool.name.clone(), share: format_share(share), picks, backend, because, backends })
}

/// The backend that gets the request, and why, where that does not depend on the moment.
fn certain(site: &Site<'_>, wishes: &Wishes<'_>) -> Option<(u16, String)> {
    let pool = site.pool;
    let (hash, what) = wishes.hash(site.key, &pool.http.hash);
    let mut refused = "";
    if let Some(sticky) = &pool.http.sticky
        && let Some(value) = wishes.cookie(&sticky.cookie)
    {
        let identity = |backend: &Backend| (bits_of(backend.address), backend.port);
        let named = StickyIds::new(site.key, pool.backends.iter().map(identity)).position(value);
        match named {
            Some(position) if site.choose(&pool.http, Wanted { hash, sticky: named }) == named => {
                return Some((position, format!("its cookie {} names it", sticky.cookie)));
            }
            Some(_) => refused = "; the backend that its cookie names can't take it",
            None => refused = "; its cookie names no backend of the pool",
        }
    }
    let is_hashed = matches!(pool.algorithm, Algorithm::Maglev | Algorithm::SourceHash);
    if !is_hashed {
        return None;
    }
    let position = site.choose(&pool.http, Wanted { hash, sticky: None })?;
    Some((position, format!("by the hash of {what}{refused}")))
}

/// What picks a backend.
fn picks(pool: &Pool) -> String {
    let by = match &pool.http.hash {
        HashBy::Source => "the client's address".to_owned(),
        HashBy::Header(name) => format!("header {name}"),
        HashBy::Cookie(name) => format!("cookie {name}"),
        HashBy::Path => "the path".to_owned(),
    };
    let name = algorithm_name(pool.algorithm);
    let text = match pool.algorithm {
        Algorithm::Maglev | Algorithm::SourceHash => format!("{name} by {by}"),
        Algorithm::RoundRobin => format!("{name}: whose turn it is depends on the worker and the moment"),
        Algorithm::LeastConn => {
            format!("{name}: who has the fewest requests depends on the worker and the moment")
        }
        Algorithm::RandomTwo => format!("{name}: two are drawn, and their loads are compared at the moment"),
    };
    match &pool.http.sticky {
        Some(sticky) => format!("cookie {} first, then {text}", sticky.cookie),
        None => text,
    }
}
