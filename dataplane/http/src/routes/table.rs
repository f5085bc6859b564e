//! How is the first fitting route found without asking all of them?
//!
//! Routes get ranks by the order that [`crate::routes`] explains; the fitting route with the lowest rank is the one. A question is put to
//! at most three kinds of hosts (its exact name, wildcards over it, any host), each found by hash. Of each, routes are found by the hash
//! of the whole path, by the hashes of the path's beginnings (only for numbers of segments that the host's prefixes have), and among the
//! host's few expressions. Whatever ranks behind the best so far is not looked at.
//!
//! Bounds: [`REGEXES`] expressions and [`ALTERNATIVES`] routes of one path for each host; so the cost of a question doesn't grow with the
//! number of routes.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::check::{self, Flaw, RouteError};
use super::hash::{NONE, Slots, Steps, host as host_number, mix};
use super::pattern::Pattern;
use super::question::{Fields, Question, Test};
use super::spec::{Host, Path, Route};

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
/// Mixed into a path's number.
const EXACT_PATH: u64 = 3;
const PREFIX: u64 = 4;

/// Where a text stands in the table's.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    start: u32,
    len: u32,
}

/// The routes of one host.
#[derive(Clone, Debug)]
struct HostRoutes {
    name: Place,
    is_wildcard: bool,
    has_exact: bool,
    /// Rank of the first of them.
    first: u32,
    /// Numbers of segments that prefixes have, one bit each.
    depths: u32,
    /// The first route for any path.
    any: u32,
    /// The table's expressions that are its.
    regexes: std::ops::Range<u32>,
    /// The next one whose number looks the same.
    next: u32,
}

/// What finding needs of a route.
#[derive(Clone, Copy, Debug)]
struct Ranked {
    /// Its place in the list.
    place: u32,
    host: u32,
    path: Place,
    is_prefix: bool,
    tests: Place,
    /// The next one of the same host and path, or whose number looks the same.
    next: u32,
}

/// An expression for paths, and the rank of its route.
#[derive(Clone, Debug)]
struct Expression {
    rank: u32,
    pattern: Pattern,
}

/// The routes of a listener, indexed.
#[derive(Clone)]
pub struct RouteTable {
    routes: Arc<[Route]>,
    ranked: Box<[Ranked]>,
    tests: Box<[Test]>,
    texts: Box<[u8]>,
    hosts: Box<[HostRoutes]>,
    host_slots: Slots,
    path_slots: Slots,
    regexes: Box<[Expression]>,
    /// Routes for any host.
    any_host: u32,
    /// Numbers of labels that wildcards have, one bit each.
    labels: u32,
    /// Most segments of a prefix.
    deepest: usize,
    /// Longest exact path.
    longest: usize,
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

    fn text(&self, place: Place) -> &[u8] {
        let start = place.start as usize;
        self.texts.get(start..start + place.len as usize).unwrap_or_default()
    }

    fn host(&self, name: &[u8], is_wildcard: bool) -> Option<&HostRoutes> {
        let kind = if is_wildcard { WILDCARD } else { EXACT_HOST };
        let mut at = self.host_slots.find(mix(host_number(name), kind))?;
        loop {
            let host = self.hosts.get(at as usize)?;
            if host.is_wildcard == is_wildcard && self.text(host.name).eq_ignore_ascii_case(name) {
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
        let id = u64::from(host.first);
        if host.has_exact
            && let Some(first) = self.path_slots.find(mix(steps.whole, id << 8 | EXACT_PATH))
        {
            best = self.best_in(first, host, question, best);
        }
        let (start, end) = (host.regexes.start as usize, host.regexes.end as usize);
        for expression in self.regexes.get(start..end).unwrap_or_default() {
            if expression.rank >= best {
                break;
            }
            if expression.pattern.matches(question.path) && self.passes(expression.rank, question) {
                best = expression.rank;
                break;
            }
        }
        let mut depths = host.depths & steps.depths();
        while depths != 0 {
            let depth = depths.ilog2();
            depths &= !(1 << depth);
            if let Some(number) = steps.prefix(depth as usize)
                && let Some(first) = self.path_slots.find(mix(number, id << 8 | PREFIX))
            {
                best = self.best_in(first, host, question, best);
            }
        }
        self.best_in(host.any, host, question, best)
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
            let text = self.text(ranked.path);
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
        let Some(ranked) = self.ranked.get(rank as usize) else { return false };
        let start = ranked.tests.start as usize;
        let tests = self.tests.get(start..start + ranked.tests.len as usize).unwrap_or_default();
        tests.iter().all(|test| test.passes(question))
    }

    /// The expression of a route's path: for reasons, not for speed.
    pub(super) fn regex_of(&self, rank: usize) -> Option<&Pattern> {
        let at = self.regexes.iter().find(|expression| expression.rank as usize == rank)?;
        Some(&at.pattern)
    }

    /// The conditions of a route, in the order of the configuration.
    pub(super) fn tests_of(&self, rank: usize) -> &[Test] {
        let Some(ranked) = self.ranked.get(rank) else { return &[] };
        let start = ranked.tests.start as usize;
        self.tests.get(start..start + ranked.tests.len as usize).unwrap_or_default()
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

/// What orders routes: less is asked earlier.
fn precedence(route: &Route, place: usize) -> impl Ord + use<> {
    let host = match &route.host {
        Host::Exact(_) => (0, Reverse(0)),
        Host::Suffix(suffix) => (1, Reverse(suffix.len())),
        Host::Any => (2, Reverse(0)),
    };
    let path = match &route.path {
        Path::Exact(_) => (0, Reverse(0)),
        Path::Regex(_) => (1, Reverse(0)),
        Path::Prefix(prefix) => (2, Reverse(trimmed(prefix).len())),
        Path::Any => (3, Reverse(0)),
    };
    (Reverse(route.priority), host, path, Reverse(route.conditions.len()), place)
}

/// A table in the making.
struct Build {
    routes: Arc<[Route]>,
    /// Places by rank.
    order: Vec<u32>,
    texts: Vec<u8>,
    tests: Vec<Test>,
    hosts: Vec<HostRoutes>,
    host_of: HashMap<Host, usize>,
    expressions: Vec<(usize, Expression)>,
    /// How many expressions each host has.
    expressions_of: HashMap<usize, usize>,
    regex_bytes: usize,
}

impl Build {
    fn new(routes: Arc<[Route]>) -> Result<Self, RouteError> {
        if let Some(route) = routes.get(ROUTES) {
            return Err(RouteError::of(route, "route", &routes.len(), Flaw::TooMany(ROUTES)));
        }
        let mut names = HashSet::new();
        for route in routes.iter() {
            check::route(route)?;
            if !names.insert(&*route.name) {
                return Err(RouteError::of(route, "name", &route.name, Flaw::Twice));
            }
        }
        let mut order: Vec<u32> = (0..routes.len() as u32).collect();
        order.sort_by_cached_key(|place| {
            let place = *place as usize;
            routes.get(place).map(|route| precedence(route, place))
        });
        Ok(Self {
            routes,
            order,
            texts: Vec::new(),
            tests: Vec::new(),
            hosts: Vec::new(),
            host_of: HashMap::new(),
            expressions: Vec::new(),
            expressions_of: HashMap::new(),
            regex_bytes: 0,
        })
    }

    fn keep(&mut self, text: &str) -> Place {
        let start = self.texts.len() as u32;
        self.texts.extend_from_slice(text.as_bytes());
        Place { start, len: text.len() as u32 }
    }

    /// The place of a host's routes; `rank` is of the first of them where there were none.
    fn host(&mut self, host: &Host, rank: u32) -> usize {
        if let Some(at) = self.host_of.get(host) {
            return *at;
        }
        let (name, is_wildcard) = match host {
            Host::Any => ("", false),
            Host::Exact(name) => (&**name, false),
            Host::Suffix(suffix) => (suffix.strip_prefix('.').unwrap_or(suffix), true),
        };
        let name = self.keep(name);
        self.hosts.push(HostRoutes {
            name,
            is_wildcard,
            has_exact: false,
            first: rank,
            depths: 0,
            any: NONE,
            regexes: 0..0,
            next: NONE,
        });
        self.host_of.insert(host.clone(), self.hosts.len() - 1);
        self.hosts.len() - 1
    }

    fn pattern(&mut self, route: &Route, text: &str) -> Result<Pattern, RouteError> {
        let pattern =
            Pattern::new(text).map_err(|why| RouteError::of(route, "path", &text, Flaw::Regex(why)))?;
        self.weigh(route, "path", pattern.bytes())?;
        Ok(pattern)
    }

    fn weigh(&mut self, route: &Route, field: &str, bytes: usize) -> Result<(), RouteError> {
        self.regex_bytes += bytes;
        if self.regex_bytes > REGEX_BYTES {
            return Err(RouteError::of(route, field, &self.regex_bytes, Flaw::RegexesTooLarge(REGEX_BYTES)));
        }
        Ok(())
    }

    /// Puts one route where its host has it; what finding needs of it.
    fn rank(&mut self, rank: u32, place: u32, route: &Route) -> Result<(Ranked, Option<u64>), RouteError> {
        let at = self.host(&route.host, rank);
        let tests = Place { start: self.tests.len() as u32, len: route.conditions.len() as u32 };
        for condition in &route.conditions {
            let test = Test::new(condition).map_err(|why| {
                let (field, text) = check::described(condition);
                RouteError::of(route, field, &text, Flaw::Regex(why))
            })?;
            self.weigh(route, "conditions", test.bytes())?;
            self.tests.push(test);
        }
        let path = match &route.path {
            Path::Exact(path) => self.keep(path),
            Path::Prefix(prefix) => self.keep(trimmed(prefix)),
            Path::Regex(_) | Path::Any => Place::default(),
        };
        if let Path::Regex(text) = &route.path {
            let pattern = self.pattern(route, text)?;
            self.expressions.push((at, Expression { rank, pattern }));
            let count = self.expressions_of.entry(at).or_default();
            *count += 1;
            if *count > REGEXES {
                return Err(RouteError::of(route, "path", text, Flaw::TooManyRegexes(REGEXES)));
            }
        }
        let Some(host) = self.hosts.get_mut(at) else {
            return Err(RouteError::of(route, "host", &at, Flaw::Twice));
        };
        let id = u64::from(host.first) << 8;
        let number = match &route.path {
            Path::Exact(path) => {
                host.has_exact = true;
                Some(mix(Steps::new(path.as_bytes(), 0, usize::MAX).whole, id | EXACT_PATH))
            }
            Path::Prefix(prefix) => {
                let depth = check::depth(trimmed(prefix));
                host.depths |= 1 << depth;
                let number = Steps::new(prefix.as_bytes(), depth, 0).prefix(depth);
                number.map(|number| mix(number, id | PREFIX))
            }
            Path::Regex(_) | Path::Any => None,
        };
        let is_prefix = matches!(route.path, Path::Prefix(_));
        Ok((Ranked { place, host: host.first, path, is_prefix, tests, next: NONE }, number))
    }

    fn table(mut self) -> Result<RouteTable, RouteError> {
        let routes = self.routes.clone();
        let mut ranked = Vec::with_capacity(routes.len());
        let mut numbers = Vec::with_capacity(routes.len());
        let mut alternatives: HashMap<(&Host, &Path), usize> = HashMap::new();
        for (rank, place) in (0..).zip(std::mem::take(&mut self.order)) {
            let Some(route) = routes.get(place as usize) else { continue };
            let count = alternatives.entry((&route.host, &route.path)).or_default();
            *count += 1;
            if *count > ALTERNATIVES && !matches!(route.path, Path::Regex(_)) {
                return Err(RouteError::of(
                    route,
                    "path",
                    &check::path(route),
                    Flaw::TooManyAlternatives(ALTERNATIVES),
                ));
            }
            let (entry, number) = self.rank(rank, place, route)?;
            ranked.push(entry);
            numbers.push(number);
        }
        let path_slots = self.link(&mut ranked, &numbers);
        // a host's expressions stand together, in the order of their ranks
        self.expressions.sort_by_key(|(host, expression)| (*host, expression.rank));
        for (at, (host, _)) in (0..).zip(&self.expressions) {
            if let Some(host) = self.hosts.get_mut(*host) {
                let start = if host.regexes.is_empty() { at } else { host.regexes.start };
                host.regexes = start..at + 1;
            }
        }
        let host_slots = self.link_hosts();
        let labels = routes.iter().fold(0, |labels, route| match &route.host {
            Host::Suffix(suffix) => labels | 1 << check::labels(suffix),
            _ => labels,
        });
        let exact = routes.iter().filter_map(|route| match &route.path {
            Path::Exact(path) => Some(path.len()),
            _ => None,
        });
        Ok(RouteTable {
            longest: exact.max().unwrap_or(0),
            deepest: self.hosts.iter().map(|host| host.depths.checked_ilog2().unwrap_or(0)).max().unwrap_or(0)
                as usize,
            labels,
            any_host: self.host_of.get(&Host::Any).map_or(NONE, |at| *at as u32),
            routes,
            ranked: ranked.into_boxed_slice(),
            tests: self.tests.into_boxed_slice(),
            texts: self.texts.into_boxed_slice(),
            hosts: self.hosts.into_boxed_slice(),
            host_slots,
            path_slots,
            regexes: self.expressions.into_iter().map(|(_, expression)| expression).collect(),
        })
    }

    /// Links routes of the same number in the order of their ranks, from the last to the first.
    fn link(&mut self, ranked: &mut [Ranked], numbers: &[Option<u64>]) -> Slots {
        let mut slots = Slots::new(numbers.iter().flatten().count());
        for (rank, entry) in ranked.iter_mut().enumerate().rev() {
            match numbers.get(rank).copied().flatten() {
                Some(number) => entry.next = slots.replace(number, rank as u32).unwrap_or(NONE),
                None => {
                    let route = self.routes.get(entry.place as usize);
                    let host = route.filter(|route| route.path == Path::Any).map(|route| &route.host);
                    let at = host.and_then(|host| self.host_of.get(host)).copied();
                    if let Some(host) = at.and_then(|at| self.hosts.get_mut(at)) {
                        entry.next = std::mem::replace(&mut host.any, rank as u32);
                    }
                }
            }
        }
        slots
    }

    fn link_hosts(&mut self) -> Slots {
        let mut slots = Slots::new(self.hosts.len());
        let texts = &self.texts;
        for (at, host) in (0..).zip(&mut self.hosts) {
            let start = host.name.start as usize;
            let name = texts.get(start..start + host.name.len as usize).unwrap_or_default();
            if name.is_empty() {
                continue;
            }
            let kind = if host.is_wildcard { WILDCARD } else { EXACT_HOST };
            host.next = slots.replace(mix(host_number(name), kind), at).unwrap_or(NONE);
        }
        slots
    }
}
