//! What does a listener ask of new flows? Its list, its rates and its limit per source, in one answer.

use std::net::IpAddr;
use std::sync::Arc;

use crate::build::Prefix;
use crate::counts::Counts;
use crate::hash::Seed;
use crate::list::List;
use crate::rate::{Bucket, Buckets, Limit};

/// Why a flow may not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its source is denied.
    Denied,
    /// Too many began.
    Rate,
    /// Its source has as many as it may.
    Connections,
}

/// Whether a number stands for an IPv4 address (RFC 4291 §2.5.5.2).
#[inline]
pub(crate) fn is_v4(source: u128) -> bool {
    source >> 32 == 0xffff
}

pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Whose bucket a rate fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Per {
    /// One for each source of the prefix.
    Source,
    /// One for all of the prefix.
    Prefix,
}

/// How fast flows may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// From these sources.
    pub prefix: Prefix,
    /// Per second, at least 1.
    pub per_second: u32,
    /// At once, at least 1.
    pub burst: u32,
    /// Whose.
    pub per: Per,
}

#[derive(Debug)]
struct RateRule {
    network: u128,
    mask: u128,
    is_v4: bool,
    rate: Rate,
    limit: Limit,
    bucket: Bucket,
}

/// Most rates of a listener: they are tried one after the other.
pub const MAX_RATES: usize = 64;

/// The rates of a listener, with what is left of them. The longest prefix decides; where it has one rate for each source and one
/// for all, both do.
#[derive(Debug, Default)]
pub struct Rates {
    /// Longest first; of one prefix, that of each source first.
    rules: Box<[RateRule]>,
}

impl Rates {
    /// Full buckets for these; what is beyond [`MAX_RATES`] is left out.
    pub fn new(rates: &[Rate]) -> Self {
        let rule = |rate: &Rate| {
            let bits = 128 - if rate.prefix.network.is_ipv4() { 32 } else { 128 };
            let mask = u128::MAX.checked_shl(128 - bits - u32::from(rate.prefix.length)).unwrap_or(0);
            RateRule {
                network: number(rate.prefix.network) & mask,
                mask,
                is_v4: rate.prefix.network.is_ipv4(),
                rate: *rate,
                limit: Limit::new(rate.per_second, rate.burst),
                bucket: Bucket::default(),
            }
        };
        let mut rules: Vec<_> = rates.iter().take(MAX_RATES).map(rule).collect();
        rules.sort_by_key(|rule| (std::cmp::Reverse(rule.mask), rule.network, rule.rate.per));
        Self { rules: rules.into() }
    }

    fn are(&self, rates: &[Rate]) -> bool {
        Self::new(rates).rules.iter().map(|rule| rule.rate).eq(self.rules.iter().map(|rule| rule.rate))
    }

    /// The rates that decide for a source.
    pub fn of(&self, source: IpAddr) -> impl Iterator<Item = &Rate> {
        self.matching(number(source)).map(|rule| &rule.rate)
    }

    #[inline]
    fn matching(&self, source: u128) -> impl Iterator<Item = &RateRule> {
        let fits = move |rule: &&RateRule| source & rule.mask == rule.network && rule.is_v4 == is_v4(source);
        let first = self.rules.iter().position(|rule| fits(&rule)).unwrap_or(self.rules.len());
        let rest = self.rules.get(first..).unwrap_or_default();
        let mask = rest.first().map_or(0, |rule| rule.mask);
        rest.iter().take_while(move |rule| rule.mask == mask && fits(rule))
    }
}

/// What all workers and listeners share.
#[derive(Debug)]
pub struct Shared {
    seed: Seed,
    /// Flows of sources.
    pub counts: Arc<Counts>,
    buckets: Arc<Buckets>,
    counted: Box<[u16]>,
}

/// Sources whose rates are remembered at once.
pub const RATED_SOURCES: usize = 1 << 18;
/// Most sources whose flows are counted at once.
pub const MAX_COUNTED_SOURCES: usize = 1 << 20;

/// Words for the sources of so many flows: twice as many, that few of them have to share a line with too many others.
pub fn counted_sources(flows: u64) -> usize {
    usize::try_from(flows.saturating_mul(2)).unwrap_or(usize::MAX).min(MAX_COUNTED_SOURCES)
}

impl Shared {
    /// For the listeners `counted` that have a limit per source, and at most `flows` flows. What `previous` remembers is kept, but the
    /// counts only where the same listeners have a limit: those of others were not counted, so all are counted anew.
    pub fn new(mut counted: Vec<u16>, flows: u64, previous: Option<&Self>) -> Self {
        counted.sort_unstable();
        let same = previous.filter(|previous| *previous.counted == *counted);
        // without limits nothing is remembered, and next to no memory taken
        let sources = if counted.is_empty() { 0 } else { counted_sources(flows) };
        Self {
            seed: previous.map_or_else(Seed::random, |previous| previous.seed),
            counts: same.map_or_else(|| Arc::new(Counts::new(sources)), |same| Arc::clone(&same.counts)),
            buckets: previous
                .map_or_else(|| Arc::new(Buckets::new(0)), |previous| Arc::clone(&previous.buckets)),
            counted: counted.into(),
        }
    }

    /// As [`Shared::new`] made it, with buckets for sources.
    pub fn with_buckets(self) -> Self {
        if self.buckets.capacity() >= RATED_SOURCES {
            return self;
        }
        Self { buckets: Arc::new(Buckets::new(RATED_SOURCES)), ..self }
    }

    /// Whether the counts are others than `previous` has, so that flows must be counted anew.
    pub fn counts_anew(&self, previous: &Self) -> bool {
        !Arc::ptr_eq(&self.counts, &previous.counts)
    }
}

/// What a listener asks.
#[derive(Clone, Debug)]
pub struct Policy {
    listener: u16,
    /// Its list and the list's identity.
    list: Option<(u64, Arc<List>)>,
    rates: Arc<Rates>,
    /// Flows at once of a source; 0 = unlimited.
    connections_per_source: u32,
    shared: Arc<Shared>,
}

/// Equal where they ask the same; what is left of the rates does not matter.
impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        let list = |policy: &Self| policy.list.as_ref().map(|(id, _)| *id);
        self.listener == other.listener
            && list(self) == list(other)
            && self.connections_per_source == other.connections_per_source
            && self.rates.rules.iter().map(|r| r.rate).eq(other.rates.rules.iter().map(|r| r.rate))
    }
}

impl Eq for Policy {}

impl Policy {
    /// What the listener of this index asks. Where `previous` had the same rates, what is left of them is kept.
    pub fn new(
        listener: u16,
        list: Option<(u64, Arc<List>)>,
        rates: &[Rate],
        connections_per_source: u32,
        shared: Arc<Shared>,
        previous: Option<&Self>,
    ) -> Self {
        let kept = previous.map(|previous| &previous.rates).filter(|kept| kept.are(rates));
        let rates = kept.map_or_else(|| Arc::new(Rates::new(rates)), Arc::clone);
        Self { listener, list, rates, connections_per_source, shared }
    }

    /// The same with what a later generation shares.
    pub fn with_shared(&self, shared: Arc<Shared>) -> Self {
        Self { shared, ..self.clone() }
    }

    /// Whether flows are counted by source.
    #[inline]
    pub fn counts_flows(&self) -> bool {
        self.connections_per_source != 0
    }

    /// The list.
    pub fn list(&self) -> Option<&Arc<List>> {
        self.list.as_ref().map(|(_, list)| list)
    }

    /// Whether a flow of this source may begin; IPv4 addresses in their IPv4-mapped form. What it is let in by is spent:
    /// of a flow that began, [`Policy::opened`] must be told.
    ///
    /// Where two workers ask for the last flow of a source at once, both may get it: a source can have as many too many as
    /// there are workers but one.
    #[inline]
    pub fn admit(&self, source: u128, now_ns: u64) -> Result<(), Refusal> {
        if self.list.as_ref().is_some_and(|(_, list)| list.denies(source)) {
            return Err(Refusal::Denied);
        }
        if !self.has_room(source) {
            return Err(Refusal::Connections);
        }
        if self.rates.rules.is_empty() || self.take(source, now_ns) { Ok(()) } else { Err(Refusal::Rate) }
    }

    fn take(&self, source: u128, now_ns: u64) -> bool {
        self.rates.matching(source).all(|rule| match rule.rate.per {
            Per::Prefix => rule.bucket.take(rule.limit, now_ns),
            Per::Source => {
                // another rate or listener has other buckets
                let what = u64::from(self.listener) << 32
                    ^ u64::from(rule.mask.leading_ones()) << 48
                    ^ u64::from(rule.rate.per_second) << 1
                    ^ u64::from(rule.rate.burst) << 9
                    ^ 1;
                self.shared.buckets.take(self.shared.seed.hash(what, source), rule.limit, now_ns)
            }
        })
    }

    /// Whether a source has fewer flows than it may.
    #[inline]
    pub fn has_room(&self, source: u128) -> bool {
        !self.counts_flows() || self.flows_of(source) < self.connections_per_source
    }

    /// Flows of a source that are counted.
    pub fn flows_of(&self, source: u128) -> u32 {
        self.shared.counts.of(self.hash(source))
    }

    #[inline]
    fn hash(&self, source: u128) -> u64 {
        self.shared.seed.hash(u64::from(self.listener) << 1, source)
    }

    /// A flow of this source began.
    #[inline]
    pub fn opened(&self, source: u128) {
        if self.counts_flows() {
            self.shared.counts.add(self.hash(source));
        }
    }

    /// A flow of this source ended.
    #[inline]
    pub fn closed(&self, source: u128) {
        if self.counts_flows() {
            self.shared.counts.remove(self.hash(source));
        }
    }
}
