//! How is a table made of routes? Off the packet path: order, numbers, links.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::check::{self, Flaw, RouteError};
use super::hash::{NONE, Slots, Steps, host as host_number, mix};
use super::pattern::Pattern;
use super::question::Test;
use super::spec::{Host, Path, Route};
use super::table::{
    ALTERNATIVES, EXACT_HOST, EXACT_PATH, Expression, HostRoutes, PREFIX, REGEX_BYTES, REGEXES, ROUTES,
    Ranked, RouteTable, Text, WILDCARD, bit, trimmed,
};

/// Most bytes of an expression's beginning that are compared before it is asked.
const LITERAL: usize = 20;

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
pub(super) struct Build {
    routes: Arc<[Route]>,
    /// Places by rank.
    order: Vec<u32>,
    long: Vec<u8>,
    tests: Vec<Test>,
    hosts: Vec<HostRoutes>,
    host_of: HashMap<Host, usize>,
    /// With the place of the host.
    expressions: Vec<(usize, Expression, Pattern)>,
    /// How many expressions each host has.
    expressions_of: HashMap<usize, usize>,
    regex_bytes: usize,
}

impl Build {
    /// Checks the routes and orders them.
    pub(super) fn new(routes: Arc<[Route]>) -> Result<Self, RouteError> {
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
            long: Vec::new(),
            tests: Vec::new(),
            hosts: Vec::new(),
            host_of: HashMap::new(),
            expressions: Vec::new(),
            expressions_of: HashMap::new(),
            regex_bytes: 0,
        })
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
        self.hosts.push(HostRoutes {
            name: Text::new(name.as_bytes(), &mut self.long),
            is_wildcard,
            has_exact: false,
            is_even: true,
            regexes: 0,
            first_regex: 0,
            first: rank,
            depths: 0,
            any: NONE,
            next: NONE,
            paths: 0,
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
        let first_test = self.tests.len() as u32;
        for condition in &route.conditions {
            let test = Test::new(condition).map_err(|why| {
                let (field, text) = check::described(condition);
                RouteError::of(route, field, &text, Flaw::Regex(why))
            })?;
            self.weigh(route, "conditions", test.bytes())?;
            self.tests.push(test);
        }
        let path = match &route.path {
            Path::Exact(path) => path,
            Path::Prefix(prefix) => trimmed(prefix),
            Path::Regex(_) | Path::Any => "",
        };
        let path = Text::new(path.as_bytes(), &mut self.long);
        if let Path::Regex(text) = &route.path {
            let pattern = self.pattern(route, text)?;
            let literal = Text::new(&pattern.beginning(LITERAL), &mut self.long);
            self.expressions.push((at, Expression { rank, literal }, pattern));
            let count = self.expressions_of.entry(at).or_default();
            *count += 1;
            if *count > REGEXES {
                return Err(RouteError::of(route, "path", text, Flaw::TooManyRegexes(REGEXES)));
            }
        }
        let Some(host) = self.hosts.get_mut(at) else {
            return Err(RouteError::of(route, "host", &at, Flaw::Twice));
        };
        let first = self.order.get(host.first as usize).and_then(|place| self.routes.get(*place as usize));
        host.is_even &= first.is_some_and(|first| first.priority == route.priority);
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
        host.paths |= number.map_or(0, bit);
        let ranked = Ranked {
            place,
            host: host.first,
            next: NONE,
            path,
            is_prefix: matches!(route.path, Path::Prefix(_)),
            first_test,
            // bounded by the check of each route
            tests: route.conditions.len() as u8,
        };
        Ok((ranked, number))
    }

    /// Indexes them.
    pub(super) fn table(mut self) -> Result<RouteTable, RouteError> {
        let routes = self.routes.clone();
        let mut ranked = Vec::with_capacity(routes.len());
        let mut numbers = Vec::with_capacity(routes.len());
        let mut alternatives: HashMap<(&Host, &Path), usize> = HashMap::new();
        for (rank, place) in (0..).zip(self.order.clone()) {
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
        self.expressions.sort_by_key(|(host, expression, _)| (*host, expression.rank));
        for (at, (host, ..)) in (0..).zip(&self.expressions) {
            if let Some(host) = self.hosts.get_mut(*host) {
                host.first_regex = if host.regexes == 0 { at } else { host.first_regex };
                // at most as many as a host may have
                host.regexes += 1;
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
            long: self.long.into_boxed_slice(),
            hosts: self.hosts.into_boxed_slice(),
            host_slots,
            path_slots,
            regexes: self.expressions.iter().map(|(_, expression, _)| *expression).collect(),
            patterns: self.expressions.into_iter().map(|(.., pattern)| pattern).collect(),
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
        for (at, host) in (0..).zip(&mut self.hosts) {
            let name = host.name.bytes(&self.long);
            if name.is_empty() {
                continue;
            }
            let kind = if host.is_wildcard { WILDCARD } else { EXACT_HOST };
            let number = mix(host_number(name), kind);
            host.next = slots.replace(number, at).unwrap_or(NONE);
        }
        slots
    }
}
