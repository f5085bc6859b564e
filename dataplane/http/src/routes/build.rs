//! How is a table made of routes? Off the packet path: order, numbers, links.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::check::{self, Flaw, RouteError};
use super::hash::{NONE, Steps, places};
use super::pattern::Pattern;
use super::question::Test;
use super::spec::{Host, Path, Route};
use super::table::{
    ALTERNATIVES, ANY_HOST, EXACT, EXACT_PATH, Expression, HostRoutes, Key, PREFIX, REGEX_BYTES, REGEXES,
    ROUTES, Ranked, RouteTable, Tests, Text, beginning_of, bit, number_of, path_number, slot, trimmed,
};

/// Most bytes of an expression's beginning that are compared before it is asked.
const LITERAL: usize = 18;

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

/// Routes that differ in their conditions only have the same host and path.
type OneOf<'a> = (&'a Host, (u8, &'a str));

/// What makes paths the same: `/v1/` and `/v1` are one prefix.
fn same(path: &Path) -> (u8, &str) {
    match path {
        Path::Any => (0, ""),
        Path::Exact(path) => (1, path),
        Path::Prefix(prefix) => (2, trimmed(prefix)),
        Path::Regex(text) => (3, text),
    }
}

/// A table in the making.
pub(super) struct Build {
    routes: Arc<[Route]>,
    /// Places by rank.
    order: Vec<u32>,
    long: Vec<u8>,
    tests: Vec<Test>,
    hosts: Vec<(u64, HostRoutes)>,
    host_of: HashMap<Host, usize>,
    /// With the place of the host.
    expressions: Vec<(usize, Expression, Pattern)>,
    /// How many expressions each host has.
    expressions_of: HashMap<usize, usize>,
    regex_bytes: usize,
}

/// Where a route will stand.
enum Where {
    /// By the number of its host and path.
    Number(u64),
    /// As one of the place of a host's that are for any path.
    Any(usize),
    /// Among the expressions.
    Expression,
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

    /// The place of a host's routes; `first` is the first of them where there were none.
    fn host(&mut self, host: &Host, first: Key) -> usize {
        if let Some(at) = self.host_of.get(host) {
            return *at;
        }
        let (name, is_wildcard) = match host {
            Host::Any => ("", false),
            Host::Exact(name) => (&**name, false),
            Host::Suffix(suffix) => (suffix.strip_prefix('.').unwrap_or(suffix), true),
        };
        let number = if *host == Host::Any { ANY_HOST } else { number_of(name.as_bytes(), is_wildcard) };
        let name = Text::new(name.as_bytes(), &mut self.long);
        self.hosts.push((number, HostRoutes { name, is_wildcard, first, ..HostRoutes::FREE }));
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

    fn conditions(&mut self, route: &Route) -> Result<Tests, RouteError> {
        let first = self.tests.len() as u32;
        for condition in &route.conditions {
            let test = Test::new(condition).map_err(|why| {
                let (field, text) = check::described(condition);
                RouteError::of(route, field, &text, Flaw::Regex(why))
            })?;
            self.weigh(route, "conditions", test.bytes())?;
            self.tests.push(test);
        }
        Ok(Tests { first, count: route.conditions.len() as u32 })
    }

    /// Puts one route where its host has it; what finding needs of it.
    fn rank(&mut self, key: Key, route: &Route) -> Result<(Ranked, Where), RouteError> {
        let at = self.host(&route.host, key);
        let tests = self.conditions(route)?;
        let path = match &route.path {
            Path::Exact(path) => path,
            Path::Prefix(prefix) => trimmed(prefix),
            Path::Regex(_) | Path::Any => "",
        };
        let path = Text::new(path.as_bytes(), &mut self.long);
        if let Path::Regex(text) = &route.path {
            let pattern = self.pattern(route, text)?;
            let literal = Text::new(&pattern.beginning(LITERAL), &mut self.long);
            self.expressions.push((at, Expression { key, tests, literal }, pattern));
            let count = self.expressions_of.entry(at).or_default();
            *count += 1;
            if *count > REGEXES {
                return Err(RouteError::of(route, "path", text, Flaw::TooManyRegexes(REGEXES)));
            }
        }
        let first = self.hosts.get(at).map_or(NONE, |(_, host)| host.first);
        let first_priority = self.routes.get((first & 0xffff) as usize).map(|first| first.priority);
        let ranked = Ranked {
            key,
            host: first,
            next: NONE,
            tests,
            path,
            depth: match &route.path {
                Path::Prefix(prefix) => check::depth(trimmed(prefix)) as u8,
                _ => EXACT,
            },
        };
        let Some((number, host)) = self.hosts.get_mut(at) else { return Ok((ranked, Where::Expression)) };
        host.is_even &= first_priority == Some(route.priority);
        let path = match &route.path {
            Path::Exact(path) => {
                host.has_exact = true;
                path_number(*number, Steps::new(path.as_bytes(), 0, usize::MAX).whole, EXACT_PATH)
            }
            Path::Prefix(prefix) => {
                let depth = check::depth(trimmed(prefix));
                host.depths |= 1 << depth;
                let steps = Steps::new(prefix.as_bytes(), depth, 0);
                path_number(*number, steps.prefix(depth).unwrap_or_default(), PREFIX)
            }
            Path::Regex(_) => return Ok((ranked, Where::Expression)),
            Path::Any => return Ok((ranked, Where::Any(at))),
        };
        host.paths |= bit(path);
        Ok((ranked, Where::Number(path)))
    }

    /// Indexes them.
    pub(super) fn table(mut self) -> Result<RouteTable, RouteError> {
        let routes = self.routes.clone();
        let distinct: HashSet<OneOf<'_>> =
            routes.iter().map(|route| (&route.host, same(&route.path))).collect();
        let slots = places(distinct.len());
        let mut ranked = vec![Ranked::FREE; slots];
        let mut order = Vec::with_capacity(routes.len());
        // of routes of the same host and path: how many, and where the last of them stands
        let mut alternatives: HashMap<OneOf<'_>, (usize, u32)> = HashMap::new();
        for (rank, place) in (0u32..).zip(self.order.clone()) {
            let Some(route) = routes.get(place as usize) else { continue };
            let key = rank << 16 | place;
            let (entry, stands) = self.rank(key, route)?;
            order.push((key, entry.tests));
            let (count, last) = alternatives.entry((&route.host, same(&route.path))).or_insert((0, NONE));
            *count += 1;
            if *count > ALTERNATIVES && !matches!(stands, Where::Expression) {
                let flaw = Flaw::TooManyAlternatives(ALTERNATIVES);
                return Err(RouteError::of(route, "path", check::path(route), flaw));
            }
            let at = match stands {
                Where::Expression => continue,
                Where::Number(number) if *last == NONE => {
                    let mut at = slot(number, slots);
                    while ranked.get(at).is_some_and(|taken| taken.key != NONE) {
                        at = slot(at as u64 + 1, slots);
                    }
                    at
                }
                Where::Number(_) | Where::Any(_) => ranked.len(),
            };
            match ranked.get_mut(at) {
                Some(free) => *free = entry,
                None => ranked.push(entry),
            }
            if let Some(before) = ranked.get_mut(*last as usize) {
                before.next = at as u32;
            } else if let Where::Any(host) = stands
                && let Some((_, host)) = self.hosts.get_mut(host)
            {
                host.any = at as u32;
            }
            *last = at as u32;
        }
        self.place_expressions();
        let (hosts, any_host) = self.place_hosts();
        let labels = routes.iter().fold(0, |labels, route| match &route.host {
            Host::Suffix(suffix) => labels | 1 << check::labels(suffix),
            _ => labels,
        });
        let exact = routes.iter().filter_map(|route| match &route.path {
            Path::Exact(path) => Some(path.len()),
            _ => None,
        });
        let depths = self.hosts.iter().fold(0, |depths, (_, host)| depths | host.depths);
        Ok(RouteTable {
            longest: exact.max().unwrap_or(0),
            deepest: depths.checked_ilog2().unwrap_or(0) as usize,
            labels,
            order: order.into_boxed_slice(),
            hosts,
            any_host,
            ranked: ranked.into_boxed_slice(),
            slots,
            tests: self.tests.into_boxed_slice(),
            long: self.long.into_boxed_slice(),
            regexes: self.expressions.iter().map(|(_, expression, _)| *expression).collect(),
            patterns: self.expressions.into_iter().map(|(.., pattern)| pattern).collect(),
            routes,
        })
    }

    /// Puts a host's expressions together, in the order of their ranks.
    fn place_expressions(&mut self) {
        self.expressions.sort_by_key(|(host, expression, _)| (*host, expression.key));
        for (at, (host, expression, _)) in (0..).zip(&self.expressions) {
            let Some((_, host)) = self.hosts.get_mut(*host) else { continue };
            let literal = expression.literal.bytes(&self.long);
            let len = literal.len().min(8) as u8;
            if host.regexes == 0 {
                host.first_regex = at;
                (host.beginning, host.beginning_len) = (beginning_of(literal, len), len);
            } else {
                let unlike = (host.beginning ^ beginning_of(literal, 8)).trailing_zeros() / 8;
                host.beginning_len = host.beginning_len.min(len).min(unlike as u8);
                let shared = host.beginning.to_le_bytes();
                host.beginning = beginning_of(&shared, host.beginning_len);
            }
            // at most as many as a host may have
            host.regexes += 1;
        }
    }

    /// Hosts by their number, and any host.
    fn place_hosts(&self) -> (Box<[HostRoutes]>, HostRoutes) {
        let mut places = vec![HostRoutes::FREE; places(self.hosts.len())];
        let mut any_host = HostRoutes::FREE;
        for (number, host) in &self.hosts {
            if host.name.bytes(&self.long).is_empty() {
                any_host = *host;
                continue;
            }
            let mut at = slot(*number, places.len());
            while places.get(at).is_some_and(|taken| taken.first != NONE) {
                at = slot(at as u64 + 1, places.len());
            }
            if let Some(free) = places.get_mut(at) {
                *free = *host;
            }
        }
        (places.into_boxed_slice(), any_host)
    }
}
