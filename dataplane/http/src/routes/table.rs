//! How is the first fitting route found without asking all of them?
//!
//! Routes get ranks by the order that [`crate::routes`] explains; the fitting route with the lowest rank is the one. A question is put to
//! at most three kinds of hosts (its exact name, wildcards over it, any host), each found by hash. Of each, routes are found by the hash
//! of the whole path, by the hashes of the path's beginnings (only for numbers of segments that the host's prefixes have), and among the
//! host's few expressions. Whatever ranks behind the best so far is not looked at.
//!
//! A host and a route are one line of the cache each, in the place that their number names: what a question needs of a large table is
//! asked of memory at once, before the first of it is looked at.
//!
//! Bounds: [`REGEXES`] expressions and [`ALTERNATIVES`] routes of one path for each host; so the cost of a question doesn't grow with the
//! number of routes.

use std::fmt;
use std::sync::Arc;

use super::build::Build;
use super::check::RouteError;
use super::hash::{NONE, Steps, host as host_number, mix};
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
const EXACT_HOST: u64 = 1;
const WILDCARD: u64 = 2;
/// The number of any host.
pub(super) const ANY_HOST: u64 = 3;
/// Mixed into a path's number.
pub(super) const EXACT_PATH: u64 = 4;
pub(super) const PREFIX: u64 = 5;
/// Instead of segments: an exact path.
pub(super) const EXACT: u8 = u8::MAX;
/// Beginnings of a path whose routes are asked of memory before they are needed.
const AHEAD: usize = 6;

/// A host's number.
#[inline]
pub(super) fn number_of(name: &[u8], is_wildcard: bool) -> u64 {
    mix(host_number(name), if is_wildcard { WILDCARD } else { EXACT_HOST })
}

/// A route's rank in the upper, its place in the lower half: what is compared is the rank.
pub(super) type Key = u32;

/// A text, short ones in place, so that they lie in the same line of the cache as what they belong to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text<const N: usize> {
    len: u16,
    /// The text, or where it begins among the long ones.
    inline: [u8; N],
}

impl<const N: usize> Text<N> {
    /// A text; a long one is put behind the others.
    pub(super) fn new(text: &[u8], long: &mut Vec<u8>) -> Self {
        let mut inline = [0; N];
        match inline.get_mut(..text.len()) {
            Some(place) => place.copy_from_slice(text),
            None => {
                if let Some(start) = inline.first_chunk_mut::<4>() {
                    *start = (long.len() as u32).to_le_bytes();
                }
                long.extend_from_slice(text);
            }
        }
        // bounded by the check of each route
        Self { len: text.len() as u16, inline }
    }

    #[inline]
    pub(super) fn bytes<'a>(&'a self, long: &'a [u8]) -> &'a [u8] {
        let len = usize::from(self.len);
        if let Some(text) = self.inline.get(..len) {
            return text;
        }
        let start = self.inline.first_chunk::<4>().map_or(0, |start| u32::from_le_bytes(*start) as usize);
        long.get(start..start + len).unwrap_or_default()
    }
}

/// The routes of one host.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct HostRoutes {
    pub(super) name: Text<22>,
    pub(super) is_wildcard: bool,
    pub(super) has_exact: bool,
    /// All have the same priority: whatever is found first is the best.
    pub(super) is_even: bool,
    /// How many expressions it has, and where they begin among the table's.
    pub(super) regexes: u8,
    pub(super) first_regex: u32,
    /// The first of its routes, which is another one for each host; [`NONE`]: a free place.
    pub(super) first: Key,
    /// Numbers of segments that prefixes have, one bit each.
    pub(super) depths: u32,
    /// Where the first route for any path stands.
    pub(super) any: u32,
    /// A bit for each path's number: most paths that aren't there are known by it.
    pub(super) paths: u64,
    /// What all its expressions begin with, at most eight bytes, and which bits of them count.
    pub(super) beginning: u64,
    pub(super) beginning_len: u8,
}

impl HostRoutes {
    /// Of a free place.
    pub(super) const FREE: Self = Self {
        name: Text { len: 0, inline: [0; 22] },
        is_wildcard: false,
        has_exact: false,
        is_even: true,
        regexes: 0,
        first_regex: 0,
        first: NONE,
        depths: 0,
        any: NONE,
        paths: 0,
        beginning: 0,
        beginning_len: 0,
    };
}

/// The bit of a path's number.
#[inline(always)]
pub(super) const fn bit(number: u64) -> u64 {
    1 << (number >> 58)
}

/// The first bytes of a text as a number, as many as are asked for and at most eight.
#[inline]
pub(super) fn beginning_of(text: &[u8], len: u8) -> u64 {
    let word = match text.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => text.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    if len >= 8 { word } else { word & ((1 << (8 * len)) - 1) }
}

/// Where the conditions of a route stand, and how many they are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tests {
    pub(super) first: u32,
    pub(super) count: u32,
}

/// What finding needs of a route for a path, a prefix or any path.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Ranked {
    /// [`NONE`]: a free place.
    pub(super) key: Key,
    /// The first route of its host.
    pub(super) host: Key,
    /// Where the next one of the same host and path stands.
    pub(super) next: u32,
    pub(super) tests: Tests,
    pub(super) path: Text<40>,
    /// Segments of a prefix; [`EXACT`].
    pub(super) depth: u8,
}

impl Ranked {
    /// Of a free place.
    pub(super) const FREE: Self = Self {
        key: NONE,
        host: NONE,
        next: NONE,
        tests: Tests { first: 0, count: 0 },
        path: Text { len: 0, inline: [0; 40] },
        depth: EXACT,
    };
}

/// An expression for paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expression {
    pub(super) key: Key,
    pub(super) tests: Tests,
    /// What a path must begin with.
    pub(super) literal: Text<18>,
}

// one line of the cache for each host and each route that is looked at
const _: () =
    assert!(size_of::<HostRoutes>() == 64 && size_of::<Ranked>() == 64 && size_of::<Expression>() == 32);

/// The routes of a listener, indexed.
#[derive(Clone)]
pub struct RouteTable {
    pub(super) routes: Arc<[Route]>,
    /// By rank.
    pub(super) order: Box<[(Key, Tests)]>,
    /// Open addressing by [`number_of`] the name; a power of two, some free.
    pub(super) hosts: Box<[HostRoutes]>,
    pub(super) any_host: HostRoutes,
    /// Open addressing by the number of host and path in a part that is a power of two; behind it those that are linked from
    /// elsewhere.
    pub(super) ranked: Box<[Ranked]>,
    pub(super) slots: usize,
    pub(super) tests: Box<[Test]>,
    /// Texts that are too long for where they belong.
    pub(super) long: Box<[u8]>,
    pub(super) regexes: Box<[Expression]>,
    pub(super) patterns: Box<[Pattern]>,
    /// Numbers of labels that wildcards have, one bit each.
    pub(super) labels: u32,
    /// Most segments of a prefix.
    pub(super) deepest: usize,
    /// Longest exact path.
    pub(super) longest: usize,
}

impl fmt::Debug for RouteTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "RouteTable({} routes, {} hosts)",
            self.routes.len(),
            self.hosts.iter().filter(|host| host.first != NONE).count()
        )
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
        let name = question.host.strip_suffix(b".").unwrap_or(question.host);
        let number = number_of(name, false);
        // with many routes most of this is far away: all of it comes at the same time
        hugepages::prefetch::read_slice_at(&self.hosts, slot(number, self.hosts.len()));
        let steps = Steps::new(question.path, self.deepest, self.longest);
        self.prefetch(number, &steps);
        let mut best = NONE;
        if !name.is_empty() {
            best = self.best_of(self.host(name, number, false), number, question, &steps, best);
            best = self.best_of_wildcards(name, question, &steps, best);
        }
        best = self.best_of(Some(&self.any_host), ANY_HOST, question, &steps, best);
        (best != NONE).then_some((best & 0xffff) as usize)
    }

    #[inline]
    fn prefetch(&self, host: u64, steps: &Steps) {
        let ask = |number| hugepages::prefetch::read_slice_at(&self.ranked, slot(number, self.slots));
        if self.longest > 0 {
            ask(path_number(host, steps.whole, EXACT_PATH));
        }
        for number in (0..=self.deepest.min(AHEAD)).map_while(|depth| steps.prefix(depth)) {
            ask(path_number(host, number, PREFIX));
        }
    }

    /// The places of all routes, in the order in which they are asked.
    pub(super) fn in_order(&self) -> impl Iterator<Item = usize> {
        self.order.iter().map(|(key, _)| (key & 0xffff) as usize)
    }

    fn host(&self, name: &[u8], number: u64, is_wildcard: bool) -> Option<&HostRoutes> {
        let mut at = slot(number, self.hosts.len());
        loop {
            let host = self.hosts.get(at).filter(|host| host.first != NONE)?;
            if host.is_wildcard == is_wildcard && host.name.bytes(&self.long).eq_ignore_ascii_case(name) {
                return Some(host);
            }
            at = slot(at as u64 + 1, self.hosts.len());
        }
    }

    fn best_of_wildcards<F: Fields + ?Sized>(
        &self,
        name: &[u8],
        question: &Question<'_, F>,
        steps: &Steps,
        mut best: Key,
    ) -> Key {
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
                let name = name.get(dot + 1..).unwrap_or_default();
                let number = number_of(name, true);
                best = self.best_of(self.host(name, number, true), number, question, steps, best);
            }
        }
        best
    }

    /// The better of the best so far and the best of a host's routes.
    fn best_of<F: Fields + ?Sized>(
        &self,
        host: Option<&HostRoutes>,
        number: u64,
        question: &Question<'_, F>,
        steps: &Steps,
        mut best: Key,
    ) -> Key {
        let Some(host) = host.filter(|host| host.first < best) else { return best };
        let before = best;
        if host.has_exact {
            best = self.best_at(path_number(number, steps.whole, EXACT_PATH), EXACT, host, question, best);
            if host.is_even && best < before {
                return best;
            }
        }
        if host.regexes > 0 && beginning_of(question.path, host.beginning_len) == host.beginning {
            best = self.best_regex(host, question, best);
        }
        let mut depths = host.depths & steps.depths();
        while depths != 0 && !(host.is_even && best < before) {
            let depth = depths.ilog2();
            depths &= !(1 << depth);
            if let Some(path) = steps.prefix(depth as usize) {
                best = self.best_at(path_number(number, path, PREFIX), depth as u8, host, question, best);
            }
        }
        if host.any == NONE { best } else { self.best_in(host.any, question, best) }
    }

    /// The better of the best so far and the best of the routes of one host and path.
    #[inline]
    fn best_at<F: Fields + ?Sized>(
        &self,
        number: u64,
        depth: u8,
        host: &HostRoutes,
        question: &Question<'_, F>,
        best: Key,
    ) -> Key {
        if host.paths & bit(number) == 0 {
            return best;
        }
        let mut at = slot(number, self.slots);
        while let Some(ranked) = self.ranked.get(at).filter(|ranked| ranked.key != NONE) {
            if ranked.host == host.first && ranked.depth == depth {
                let text = ranked.path.bytes(&self.long);
                if if depth == EXACT { question.path == text } else { covers(text, question.path) } {
                    return self.best_in(at as u32, question, best);
                }
            }
            at = slot(at as u64 + 1, self.slots);
        }
        best
    }

    /// The better of the best so far and the first fitting of routes that are linked in the order of their ranks.
    #[inline]
    fn best_in<F: Fields + ?Sized>(&self, first: u32, question: &Question<'_, F>, best: Key) -> Key {
        let mut at = first;
        while let Some(ranked) = self.ranked.get(at as usize).filter(|ranked| ranked.key < best) {
            if self.passes(ranked.tests, question) {
                return ranked.key;
            }
            at = ranked.next;
        }
        best
    }

    /// The better of the best so far and the best of a host's expressions.
    fn best_regex<F: Fields + ?Sized>(
        &self,
        host: &HostRoutes,
        question: &Question<'_, F>,
        best: Key,
    ) -> Key {
        let start = host.first_regex as usize;
        let expressions = self.regexes.get(start..).unwrap_or_default();
        for (at, expression) in expressions.iter().take(usize::from(host.regexes)).enumerate() {
            if expression.key >= best {
                break;
            }
            if question.path.starts_with(expression.literal.bytes(&self.long))
                && self.patterns.get(start + at).is_some_and(|pattern| pattern.matches(question.path))
                && self.passes(expression.tests, question)
            {
                return expression.key;
            }
        }
        best
    }

    #[inline]
    fn passes<F: Fields + ?Sized>(&self, tests: Tests, question: &Question<'_, F>) -> bool {
        tests.count == 0 || self.tests(tests).iter().all(|test| test.passes(question))
    }

    fn tests(&self, tests: Tests) -> &[Test] {
        let first = tests.first as usize;
        self.tests.get(first..first + tests.count as usize).unwrap_or_default()
    }

    /// The expression of a route's path: for reasons, not for speed.
    pub(super) fn regex_of(&self, rank: usize) -> Option<&Pattern> {
        let at = self.regexes.iter().position(|expression| (expression.key >> 16) as usize == rank)?;
        self.patterns.get(at)
    }

    /// The conditions of a route, in the order of the configuration.
    pub(super) fn tests_of(&self, rank: usize) -> &[Test] {
        self.order.get(rank).map_or(&[], |(_, tests)| self.tests(*tests))
    }
}

/// The number of a path of a host.
#[inline(always)]
pub(super) const fn path_number(host: u64, path: u64, kind: u64) -> u64 {
    mix(host ^ kind, path)
}

/// Where a number belongs among so many places, a power of two.
#[inline(always)]
pub(super) const fn slot(number: u64, places: usize) -> usize {
    number as usize & places.wrapping_sub(1)
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
