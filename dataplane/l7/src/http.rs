//! HTTP between clients and backends: the exchanges of one worker, in the same [`crate::Proxy`] as its TCP sessions, over the same
//! connections, limits, source ports and generations.
//!
//! ```text
//! rules ── what the configuration says       site ── a listener's rules with its routes indexed
//! event ── what is told and counted          generation ── rules that exchanges began with
//!
//! arrive ─▶ request ─▶ decide ─▶ place ─▶ forward ─▶ response ─▶ finish
//!              │          │        └──────────┴─▶ retry ─▶ place
//!              └──────────┴─▶ answer ─▶ finish ─▶ request, or linger
//!                                     response ─▶ tunnel
//!   timers ── how long may it take?    sweep ── what a new generation ends    mirror ── copies
//!
//! client, upstream ── records     slab ── their places and queues
//! body ── what is to come of one  outbox, buffers ── what waits, and where it lies
//! drain ── what is left of a body that nobody reads
//! choose, breaker, budget ── which backend, and whether once more
//! ```
//!
//! A client's connection is a record with at most one exchange; a connection to a backend is another. An exchange's way through
//! both directions costs two look-ups; it takes no lock and, once buffers have grown, allocates nothing. Bytes of bodies stay in
//! their packets; heads are written anew. Requests that a client sends ahead wait in its receive queue, whose window closes.
//!
//! Each worker has its own idle connections, breakers and retry budgets.

mod answer;
mod arrive;
mod body;
pub mod breaker;
pub mod budget;
pub mod buffers;
pub mod choose;
mod client;
mod decide;
mod drain;
pub mod event;
mod finish;
pub mod footprint;
mod forward;
mod generation;
mod heads;
mod mirror;
mod outbox;
mod place;
pub mod rate;
mod request;
mod response;
mod retry;
pub mod rules;
pub mod site;
mod slab;
mod sweep;
mod timers;
mod tunnel;
mod upstream;

use std::collections::HashMap;
use std::sync::Arc;

use weir_balance::counted::scatter;
use weir_http::date::Date;
use weir_http::head::{Request, Response};
use weir_l4::Services;
use weir_tcp::Instant;
use weir_tcp::wheel::Wheel;

use crate::proxy::tick;
use crate::proxy_protocol::Parser;
use crate::rules::Rules;
use crate::session::Token;
use breaker::Breakers;
use budget::Budgets;
use buffers::{Buffers, Held};
use choose::{Chooser, Comebacks, StickyIds};
use client::Client;
use generation::Generations;
use rate::Rates;
use slab::{Queue, Slab};
use upstream::{Idle, Upstream};

/// Bytes of heads and answers that a worker may keep, unless it is told otherwise.
const MEMORY: u64 = 64 << 20;
/// The longest head or answer that is written: a head of the largest size that may come, what is added to it, and a body of the
/// proxy's own.
const SCRATCH: usize = 192 << 10;

/// Keys of rate limits that a worker remembers, unless it is told otherwise.
const RATE_KEYS: usize = 1 << 12;
/// Where only a seed is known.
const RATE_SECRET: u64 = 0x6a09_e667_f3bc_c908;

/// What HTTP of a worker is made with, beside what its [`crate::ProxyConfig`] says.
#[derive(Clone, Copy, Debug)]
pub struct HttpConfig {
    /// Which worker it is.
    pub worker: u16,
    /// Of how many.
    pub workers: u16,
    /// Keys of rate limits that it remembers.
    pub rate_keys: usize,
    /// Random, the same for all workers.
    pub secret: [u64; 2],
    /// Bytes that it may keep for heads, bodies and answers.
    pub memory: u64,
}

/// HTTP of one worker.
#[derive(Debug)]
pub(crate) struct Http<H> {
    pub(crate) clients: Slab<Client<H>>,
    pub(crate) upstreams: Slab<Upstream<H>>,
    pub(crate) client_wheel: Wheel,
    pub(crate) upstream_wheel: Wheel,
    pub(crate) generations: Generations,
    pub(crate) idle: Idle,
    /// By pool: exchanges that wait for one of its backends.
    pub(crate) waiting: Vec<Queue>,
    /// By listener: clients that wait for the ledger.
    pub(crate) arrivals: Vec<Queue>,
    pub(crate) parsers: Parsers,
    pub(crate) addresses: Addresses,
    pub(crate) store: Buffers,
    pub(crate) breakers: Breakers,
    pub(crate) budgets: Budgets,
    pub(crate) rates: Rates,
    pub(crate) chooser: Chooser,
    pub(crate) comebacks: Comebacks,
    /// By pool: ids of its backends, where cookies name them.
    pub(crate) sticky: Vec<Option<StickyIds>>,
    /// The head that was parsed last, and whose it is.
    pub(crate) request: Box<Request>,
    pub(crate) request_of: u32,
    pub(crate) response: Box<Response>,
    /// What is written before it is sent; never grows.
    pub(crate) scratch: Vec<u8>,
    /// A path or location that goes into it.
    pub(crate) text: Vec<u8>,
    /// A path as routes see it.
    pub(crate) path: Vec<u8>,
    /// Clients whose next requests are looked at with the next call.
    pub(crate) again: Vec<u32>,
    pub(crate) random: u64,
    /// The date of the responses of this second.
    pub(crate) date: Date,
    /// Where the search for what a new generation ends goes on.
    pub(crate) sweep: Option<u32>,
    /// When the worker last called.
    pub(crate) now: Instant,
    /// When buffers that are kept without need are given back next.
    pub(crate) trims_at: Instant,
}

impl<H> Http<H> {
    pub(crate) fn new(
        sessions: usize,
        seed: u64,
        services: Arc<Services>,
        rules: Arc<Rules>,
        now: Instant,
    ) -> Self {
        // clients that wait for nothing need no second connection
        let connections = (sessions * 2).min(Token::SLOTS);
        Self {
            clients: Slab::new(connections),
            upstreams: Slab::new(connections),
            client_wheel: Wheel::new(tick(now)),
            upstream_wheel: Wheel::new(tick(now)),
            generations: Generations::new(services, rules),
            idle: Idle::default(),
            waiting: Vec::new(),
            arrivals: Vec::new(),
            parsers: Parsers::default(),
            addresses: Addresses::default(),
            store: Buffers::new(MEMORY),
            breakers: Breakers::default(),
            budgets: Budgets::default(),
            rates: Rates::new(0, 1, RATE_KEYS, [seed, seed.rotate_left(32) ^ RATE_SECRET]),
            chooser: Chooser::new(seed),
            comebacks: Comebacks::default(),
            sticky: Vec::new(),
            request: Box::default(),
            request_of: client::NOBODY,
            response: Box::default(),
            scratch: Vec::with_capacity(SCRATCH),
            text: Vec::with_capacity(SCRATCH),
            path: vec![0; usize::from(u16::MAX)],
            again: Vec::new(),
            random: seed ^ 0x9e37_79b9_7f4a_7c15 ^ now.0,
            date: Date::default(),
            sweep: None,
            now,
            trims_at: now,
        }
    }

    /// Whether something waits for the next call.
    pub(crate) fn is_due(&self) -> bool {
        self.sweep.is_some() || !self.again.is_empty()
    }

    /// Whether no new connection should come.
    pub(crate) fn is_full(&self) -> bool {
        self.store.is_full()
    }

    /// The next number of a sequence that peers can't easily guess from few of them (SplitMix64).
    #[inline]
    pub(crate) fn next_random(&mut self) -> u64 {
        let number = scatter(self.random);
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        number
    }
}

/// Parsers of PROXY headers; as many as were ever needed at once.
#[derive(Debug, Default)]
pub(crate) struct Parsers {
    places: Vec<Option<Parser>>,
    free: Vec<u32>,
}

impl Parsers {
    fn insert(&mut self, parser: Parser) -> u32 {
        if let Some(at) = self.free.pop()
            && let Some(place) = self.places.get_mut(at as usize)
        {
            *place = Some(parser);
            return at;
        }
        self.places.push(Some(parser));
        self.places.len() as u32 - 1
    }

    fn at_mut(&mut self, at: u32) -> Option<&mut Parser> {
        self.places.get_mut(at as usize)?.as_mut()
    }

    fn remove(&mut self, at: u32) {
        if self.places.get_mut(at as usize).and_then(Option::take).is_some() {
            self.free.push(at);
        }
    }
}

/// Connections by client address, of listeners that limit them.
#[derive(Debug, Default)]
pub(crate) struct Addresses(HashMap<(u16, u128), u32>);

impl Addresses {
    /// One more, if the limit allows it.
    fn enter(&mut self, listener: u16, address: u128, most: u32) -> bool {
        let count = self.0.entry((listener, address)).or_default();
        // an entry that was just made is below any limit
        let may = *count < most;
        *count += u32::from(may);
        may
    }

    fn leave(&mut self, listener: u16, address: u128) {
        if let Some(count) = self.0.get_mut(&(listener, address)) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&(listener, address));
            }
        }
    }
}
