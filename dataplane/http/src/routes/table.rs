//! How is the first fitting route found without asking all of them?
//!
//! Routes get ranks by the order that [`crate::routes`] explains; the fitting route with the lowest rank is the one. A question is put to
//! at most three kinds of hosts (its exact name, wildcards over it, any host), each found by hash. Of each, routes are found by the hash
//! of the whole path, by the hashes of the path's beginnings (only for numbers of segments that the host's prefixes have), and among the
//! host's few expressions. Whatever ranks behind the best so far is not looked at.
//!
//! Bounds: [`REGEXES`] expressions and [`ALTERNATIVES`] routes of one path for each host; so the cost of a question doesn't grow with the
//! number of routes.

use std::fmt;
use std::sync::Arc;

use super::build::Build;
use super::check::RouteError;
use super::hash::{NONE, Slots, Steps, host as host_number, mix};
use super::pattern::Pattern;
use super::question::{Fields, Question, Test};
use super::spec::Route;

/// Most routes of a listener: events name them with 16 bits.
pub const ROUTES: usize = 65_534;
/// Most expressions for paths of one host.
pub const REGEXES: usize = 32;
/// Most routes that differ in their conditions only: of one host and one exact path, prefix, or any path.
pub const ALTERNATIVES: usize = 256;
/// Most memory of all expressions of a table.
pub const REGEX_BYTES: usize = 32 << 20;

/// Mixed into a host's number: exact names, wildcards.
pub(super) const EXACT_HOST: u64 = 1;
pub(super) const WILDCARD: u64 = 2;
/// Mixed into a path's number.
pub(super) const EXACT_PATH: u64 = 3;
pub(super) const PREFIX: u64 = 4;

/// A text, short ones in place, so that they lie in the same line of the cache as what they belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<const N: usize> {
    len: u16,
    inline: [u8; N],
    start: u32,
}

impl<const N: usize> Text<N> {
    /// A text; a long one is put behind the others.
    pub(super) fn new(text: &[u8], long: &mut Vec<u8>) -> Self {
        let mut inline = [0; N];
        let start = long.len() as u32;
        match inline.get_mut(..text.len()) {
            Some(place) => place.copy_from_slice(text),
            None => long.extend_from_slice(text),
        }
        // bounded by the check of each route
        Self { len: text.len() as u16, inline, start }
    }

    #[inline]
    pub(super) fn bytes<'a>(&'a self, long: &'a [u8]) -> &'a [u8] {
        let len = usize::from(self.len);
        let start = self.start as usize;
        self.inline.get(..len).or_else(|| long.get(start..start + len)).unwrap_or_default()
    }
}

/// The routes of one host.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct HostRoutes {
    pub(super) name: Text<24>,
    pub(super) is_wildcard: bool,
    pub(super) has_exact: bool,
    /// All have the same priority: whatever is found first is the best.
    pub(super) is_even: bool,
    /// How many expressions it has, and where they begin among the table's.
    pub(super) regexes: u8,
    pub(super) first_regex: u32,
    /// Rank of the first of them.
    pub(super) first: u32,
    /// Numbers of segments that prefixes have, one bit each.
    pub(super) depths: u32,
    /// The first route for any path.
    pub(super) any: u32,
    /// The next one whose number looks the same.
    pub(super) next: u32,
    /// A bit for each path's number: most paths that aren't there are known by it.
    pub(super) paths: u64,
}

/// The bit of a path's number.
#[inline(always)]
pub(super) const fn bit(number: u64) -> u64 {
    1 << (number >> 58)
}

/// What finding needs of a route.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Ranked {
    /// Its place in the list.
    pub(super) place: u32,
    /// Rank of the first route of its host.
    pub(super) host: u32,
    /// The next one of the same host and path, or whose number looks the same.
    pub(super) next: u32,
    pub(super) path: Text<36>,
    pub(super) is_prefix: bool,
    /// Where its conditions stand, and how many there are.
    pub(super) first_test: u32,
    pub(super) tests: u8,
}

// one line of the cache for each host and each route that is looked at
const _: () =
    assert!(size_of::<HostRoutes>() == 64 && size_of::<Ranked>() == 64 && size_of::<Expression>() == 32);

/// An expression for paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expression {
    /// Of its route.
    pub(super) rank: u32,
    /// What a path must begin with.
    pub(super) literal: Text<20>,
}

/// The routes of a listener, indexed.
#[derive(Clone)]
pub struct RouteTable {
    pub(super) routes: Arc<[Route]>,
    pub(super) ranked: Box<[Ranked]>,
    pub(super) tests: Box<[Test]>,
    /// Texts that are too long for where they belong.
    pub(super) long: Box<[u8]>,
    pub(super) hosts: Box<[HostRoutes]>,
    pub(super) host_slots: Slots,
    pub(super) path_slots: Slots,
    pub(super) regexes: Box<[Expression]>,
    pub(super) patterns: Box<[Pattern]>,
    /// Routes for any host.
    pub(super) any_host: u32,
    /// Numbers of labels that wildcards have, one bit each.
    pub(super) labels: u32,
    /// Most segments of a prefix.
    pub(super) deepest: usize,
    /// Longest exact path.
    pub(super) longest: usize,
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteTable({} routes, {} hosts)", self.ranked.len(), self.hosts.len())
    }
}

impl RouteTable {
    /// Checks the routes and indexes them.
    pub fn new(routes: impl Into<Arc<[Route]>>) -> Result<Self, RouteError> {
        Build::new(routes.into())?.table()
    }

    /// The routes, in the order in which they were given.
    pub fn routes(&self) -> &Arc<[Route]> {
        &self.routes
    }

    /// A route by its place.
    #[inline]
    pub fn route(&self, place: usize) -> Option<&Route> {
        self.routes.get(place)
    }

    /// The place of the route that a request takes.
    pub fn find<F: Fields + ?Sized>(&self, question: &Question<'_, F>) -> Option<usize> {
        let steps = Steps::new(question.path, self.deepest, self.longest);
        let mut best = NONE;
        let name = question.host.strip_suffix(b".").unwrap_or(question.host);
        if !name.is_empty() {
            best = self.best_of(self.host(name, false), question, &steps, best);
            best = self.best_of_wildcards(name, question, &steps, best);
        }
        best = self.best_of(self.hosts.get(self.any_host as usize), question, &steps, best);
        self.ranked.get(best as usize).map(|ranked| ranked.place as usize)
    }

    /// The places of all routes, in the order in which they are asked.
    pub(super) fn in_order(&self) -> impl Iterator<Item = usize> {
        self.ranked.iter().map(|ranked| ranked.place as usize)
    }

    fn host(&self, name: &[u8], is_wildcard: bool) -> Option<&HostRoutes> {
        let kind = if is_wildcard { WILDCARD } else { EXACT_HOST };
        let mut at = self.host_slots.find(mix(host_number(name), kind))?;
        loop {
            let host = self.hosts.get(at as usize)?;
            if host.is_wildcard == is_wildcard && host.name.bytes(&self.long).eq_ignore_ascii_case(name) {
                return Some(host);
            }
            at = host.next;
        }
    }

    fn best_of_wildcards<F: Fields + ?Sized>(
        &self,
        name: &[u8],
        question: &Question<'_, F>,
        steps: &Steps,
        mut best: u32,
    ) -> u32 {
        let mut labels = 0;
        let mut end = name.len();
        // from the right, as far as a wildcard reaches
        while self.labels >> labels > 1 {
            let Some(dot) = name.get(..end).and_then(|rest| memchr::memrchr(b'.', rest)) else { break };
            if dot == 0 {
                break;
            }
            labels += 1;
            end = dot;
            if self.labels >> labels & 1 == 1 {
                let wildcard = self.host(name.get(dot + 1..).unwrap_or_default(), true);
                best = self.best_of(wildcard, question, steps, best);
            }
        }
        best
    }

    /// The better of the best so far and the best of a host's routes.
    fn best_of<F: Fields + ?Sized>(
        &self,
        host: Option<&HostRoutes>,
        question: &Question<'_, F>,
        steps: &Steps,
        mut best: u32,
    ) -> u32 {
        let Some(host) = host.filter(|host| host.first < best) else { return best };
        let before = best;
        let id = u64::from(host.first) << 8;
        if host.has_exact {
            best = self.best_at(mix(steps.whole, id | EXACT_PATH), host, question, best);
            if host.is_even && best < before {
                return best;
            }
        }
        if host.regexes > 0 {
            best = self.best_regex(host, question, best);
        }
        let mut depths = host.depths & steps.depths();
        while depths != 0 && !(host.is_even && best < before) {
            let depth = depths.ilog2();
            depths &= !(1 << depth);
            if let Some(number) = steps.prefix(depth as usize) {
                best = self.best_at(mix(number, id | PREFIX), host, question, best);
            }
        }
        self.best_in(host.any, host, question, best)
    }

    /// The better of the best so far and the best of the routes whose path has a number.
    #[inline]
    fn best_at<F: Fields + ?Sized>(
        &self,
        number: u64,
        host: &HostRoutes,
        question: &Question<'_, F>,
        best: u32,
    ) -> u32 {
        if host.paths & bit(number) == 0 {
            return best;
        }
        let first = self.path_slots.find(number);
        first.map_or(best, |first| self.best_in(first, host, question, best))
    }

    /// The better of the best so far and the best of a host's expressions.
    fn best_regex<F: Fields + ?Sized>(
        &self,
        host: &HostRoutes,
        question: &Question<'_, F>,
        best: u32,
    ) -> u32 {
        let start = host.first_regex as usize;
        let expressions = self.regexes.get(start..).unwrap_or_default();
        for (at, expression) in expressions.iter().take(usize::from(host.regexes)).enumerate() {
            if expression.rank >= best {
                break;
            }
            if question.path.starts_with(expression.literal.bytes(&self.long))
                && self.patterns.get(start + at).is_some_and(|pattern| pattern.matches(question.path))
                && self.passes(expression.rank, question)
            {
                return expression.rank;
            }
        }
        best
    }

    /// The better of the best so far and the first fitting of routes that are linked in the order of their ranks.
    fn best_in<F: Fields + ?Sized>(
        &self,
        first: u32,
        host: &HostRoutes,
        question: &Question<'_, F>,
        best: u32,
    ) -> u32 {
        let mut rank = first;
        while rank < best {
            let Some(ranked) = self.ranked.get(rank as usize) else { break };
            let text = ranked.path.bytes(&self.long);
            let fits = first == host.any
                || if ranked.is_prefix { covers(text, question.path) } else { question.path == text };
            if ranked.host == host.first && fits && self.passes(rank, question) {
                return rank;
            }
            rank = ranked.next;
        }
        best
    }

    fn passes<F: Fields + ?Sized>(&self, rank: u32, question: &Question<'_, F>) -> bool {
        self.tests_of(rank as usize).iter().all(|test| test.passes(question))
    }

    /// The expression of a route's path: for reasons, not for speed.
    pub(super) fn regex_of(&self, rank: usize) -> Option<&Pattern> {
        let at = self.regexes.iter().position(|expression| expression.rank as usize == rank)?;
        self.patterns.get(at)
    }

    /// The conditions of a route, in the order of the configuration.
    #[inline]
    pub(super) fn tests_of(&self, rank: usize) -> &[Test] {
        let Some(ranked) = self.ranked.get(rank).filter(|ranked| ranked.tests > 0) else { return &[] };
        let start = ranked.first_test as usize;
        self.tests.get(start..start + usize::from(ranked.tests)).unwrap_or_default()
    }
}

/// A prefix without the slash at its end: `/v1/` is for `/v1` as well, `/` for all.
pub(super) fn trimmed(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}

/// Whether a path is a (trimmed) prefix or lies below it.
#[inline]
pub(super) fn covers(prefix: &[u8], path: &[u8]) -> bool {
    path.first() == Some(&b'/')
        && path.strip_prefix(prefix).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')))
}
