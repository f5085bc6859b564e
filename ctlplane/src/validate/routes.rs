//! Do the routes make sense, alone and beside each other? Names become positions, and each listener gets its list.

use std::collections::{HashMap, HashSet};

use weir_http::routes::RouteTable;
use weir_http::routes::spec::{Action, Condition, Host, Mirror, Path, Respond, Route, Split};
use xxhash_rust::xxh3::xxh3_64;

use super::Rules;
use super::files::{self, Files};
use super::http::prefixes_of;
use super::remedies::placed;
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::schema;
use crate::schema::route::HttpRoute;

/// Positions of pools by name.
pub(super) type Pools<'a> = HashMap<&'a str, u32>;
/// Routes by the position of their listener.
type ByListener = HashMap<usize, Vec<Route>>;

/// Longest name that is made of a route's host and path.
const MOST_NAME: usize = 50;

impl Rules<'_> {
    /// The routes of each listener, in the order of the file.
    pub(super) fn routes(&mut self, pools: &Pools<'_>, files: &mut Files) -> ByListener {
        let schema = self.schema;
        let listeners: HashMap<&str, (usize, &schema::Listener)> = schema
            .listeners
            .iter()
            .enumerate()
            .filter_map(|(at, listener)| Some((listener.name.as_ref()?.value.as_str(), (at, listener))))
            .collect();
        let mut resolved = ByListener::new();
        let mut sources: HashMap<usize, Vec<&HttpRoute>> = HashMap::new();
        for route in &schema.routes {
            let errors = self.diagnostics.errors();
            self.one_action(route);
            self.one_path(route);
            self.prefix_is_matched(route);
            let draft = self.draft(route, pools, files);
            if self.diagnostics.errors() == errors {
                // alone: what is wrong with one shouldn't hide what is wrong with the next
                if let Err(error) = RouteTable::new(vec![draft.clone()]) {
                    self.push(placed(route, &error));
                }
            }
            let names: HashMap<&str, Span> =
                route.listeners.iter().map(|name| (name.value.as_str(), name.span)).collect();
            if names.len() < route.listeners.len() {
                let finding = Diagnostic::error(route.span, "the route names a listener twice");
                self.push(finding.help("name each listener once"));
                continue;
            }
            for name in &route.listeners {
                let Some((at, listener)) = self.lookup("listener", name, &listeners, "listener") else {
                    continue;
                };
                if listener.of_http.is_none() {
                    let mut finding = Diagnostic::error(
                        name.span,
                        format!("the listener \"{}\" is not of protocol http", name.value),
                    );
                    if let Some(protocol) = &listener.protocol {
                        finding = finding.related(protocol.span, "protocol here");
                    }
                    self.push(finding.help("use protocol = \"http\" there, or another listener here"));
                    continue;
                }
                let rate_limits = self.rate_limits(route, listener);
                self.leads_elsewhere(route, listener);
                // what was not understood is no condition: it would look like another route
                if self.diagnostics.errors() > errors {
                    continue;
                }
                resolved.entry(at).or_default().push(Route { rate_limits, ..draft.clone() });
                sources.entry(at).or_default().push(route);
            }
        }
        for route in &schema.routes {
            self.mirror_is_meant(route);
        }
        self.unused_rate_limits();
        for (at, routes) in &resolved {
            let sources = sources.get(at).map(Vec::as_slice).unwrap_or_default();
            self.beside_each_other(routes, sources);
        }
        resolved
    }

    fn one_action(&mut self, route: &HttpRoute) {
        match route.actions.as_slice() {
            [] => self.push(
                Diagnostic::error(route.span, "the route does nothing")
                    .help("add one of pool, split, redirect and respond"),
            ),
            [("split", span)] if route.pools.is_empty() => self.push(
                Diagnostic::error(*span, "no pool of the split has a share")
                    .help("give one a weight above 0, or answer with respond"),
            ),
            [_] => {}
            [(first, place), (second, span), ..] => self.push(
                Diagnostic::error(*span, format!("{first} and {second} exclude each other"))
                    .related(*place, "first here")
                    .help("keep one of them, or make two routes"),
            ),
        }
    }

    fn one_path(&mut self, route: &HttpRoute) {
        if let [(first, place), (second, span), ..] = route.paths.as_slice() {
            self.push(
                Diagnostic::error(*span, format!("{first} and {second} exclude each other"))
                    .related(*place, "first here")
                    .help("keep one of them, or make two routes"),
            );
        }
    }

    /// The route with pools by position, and a name.
    fn draft(&mut self, route: &HttpRoute, pools: &Pools<'_>, files: &mut Files) -> Route {
        let mut draft = route.draft.clone();
        for prefix in &route.sources {
            self.is_network(prefix);
        }
        if !route.sources.is_empty() {
            draft.conditions.push(Condition::Source(prefixes_of(&route.sources)));
        }
        if !route.pools.is_empty() {
            let splits = route.pools.iter().filter_map(|(name, weight)| {
                Some(Split { pool: self.lookup("pool", name, pools, "pool")?, weight: *weight })
            });
            draft.action = Action::Pools(splits.collect());
        }
        draft.mirror = route.mirror.as_ref().and_then(|(name, share)| {
            Some(Mirror { pool: self.lookup("pool", name, pools, "pool")?, per_ten_thousand: *share })
        });
        if let (Some((name, _)), Some((_, span))) =
            (&route.mirror, route.actions.iter().find(|(name, _)| !matches!(*name, "pool" | "split")))
        {
            self.push(
                Diagnostic::error(name.span, "nothing is passed on that could be copied")
                    .related(*span, "the route's action")
                    .help("remove mirror, or give the route a pool"),
            );
        }
        if let (Some(file), Action::Respond(respond)) = (&route.body_file, &mut draft.action) {
            match files.body(file) {
                Ok(body) => {
                    let given = route.places.iter().any(|(field, ..)| *field == "respond.content_type");
                    let by_name = files::content_type(&file.value).into();
                    let content_type = if given { respond.content_type.clone() } else { by_name };
                    *respond = Respond { body, content_type, status: respond.status };
                }
                Err(finding) => self.push(*finding),
            }
        }
        draft.name = match &route.name {
            Some(name) => name.value.as_str().into(),
            None => generated_name(&draft).into(),
        };
        draft
    }

    fn rate_limits(&mut self, route: &HttpRoute, listener: &schema::Listener) -> Vec<u16> {
        let mut found = Vec::new();
        for name in &route.rate_limits {
            let limits = &listener.proxy.http.rate_limits;
            let is = |limit: &schema::http::HttpRateLimit| {
                limit.name.as_ref().is_some_and(|own| own.value == name.value)
            };
            let Some(at) = limits.iter().position(is) else {
                let known =
                    limits.iter().filter_map(|limit| limit.name.as_ref()).map(|name| name.value.as_str());
                let owner = listener.name.as_ref().map_or("", |name| name.value.as_str());
                let message = format!("the listener \"{owner}\" has no rate limit named \"{}\"", name.value);
                let mut finding = Diagnostic::error(name.span, message);
                if let Some(near) = crate::diagnostic::closest(&name.value, known) {
                    finding = finding.label(format!("did you mean \"{near}\"?"));
                }
                let help = format!("add [[listener.http.rate_limit]] with name = \"{}\" to it", name.value);
                self.push(finding.help(help));
                continue;
            };
            if let Some(limit) = limits.get(at).filter(|limit| limit.for_all) {
                let message = format!("the rate limit \"{}\" holds for every request already", name.value);
                let mut finding = Diagnostic::error(name.span, message);
                if let Some(own) = &limit.name {
                    finding = finding.related(own.span, "the rate limit");
                }
                self.push(finding.help("remove it here, or give it scope = \"route\""));
            }
            found.push(at as u16);
        }
        found
    }

    /// What only the whole list can tell: names, hidden routes, and limits of the index.
    fn beside_each_other(&mut self, routes: &[Route], sources: &[&HttpRoute]) {
        let mut names: HashMap<&str, Span> = HashMap::new();
        let mut conditions: HashMap<String, Span> = HashMap::new();
        let mut is_clean = true;
        for (route, source) in routes.iter().zip(sources) {
            let place = source.name.as_ref().map_or(source.span, |name| name.span);
            if let Some(first) = conditions.insert(conditions_of(route), source.span) {
                is_clean = false;
                self.push(
                    Diagnostic::error(
                        source.span,
                        "the route is never taken: an earlier one has the same conditions",
                    )
                    .related(first, "the earlier one")
                    .help("remove one, or give it another condition or priority"),
                );
                continue;
            }
            if let Some(first) = names.insert(&route.name, place) {
                is_clean = false;
                self.push(
                    Diagnostic::error(
                        place,
                        format!("two routes of a listener are named \"{}\"", route.name),
                    )
                    .related(first, "first here")
                    .help("rename one of them"),
                );
            }
        }
        if !is_clean || self.diagnostics.errors() > 0 {
            return;
        }
        if let Err(error) = RouteTable::new(routes.to_vec()) {
            let at = routes.iter().position(|route| route.name == error.route);
            match at.and_then(|at| sources.get(at)) {
                Some(source) => self.push(placed(source, &error)),
                None => self.push(Diagnostic::error(Span::default(), error.to_string())),
            }
        }
    }
}

/// What a route asks, as text: equal exactly for routes that ask the same.
fn conditions_of(route: &Route) -> String {
    let mut conditions: Vec<String> = route.conditions.iter().map(|one| format!("{one:?}")).collect();
    conditions.sort_unstable();
    format!("{} {:?} {:?} {conditions:?}", route.priority, route.host, route.path)
}

/// A name that stays as long as the route asks the same: `shop.example.com/v1/`, with a number where that doesn't say all.
fn generated_name(route: &Route) -> String {
    let host = match &route.host {
        Host::Any => "*".to_owned(),
        Host::Exact(name) => name.to_string(),
        Host::Suffix(suffix) => format!("*{suffix}"),
    };
    let (path, is_all) = match &route.path {
        Path::Any => ("/*".to_owned(), true),
        Path::Exact(path) => (path.to_string(), true),
        Path::Prefix(prefix) => (format!("{}/*", prefix.trim_end_matches('/')), true),
        Path::Regex(_) => ("/~".to_owned(), false),
    };
    let name = format!("{host}{path}");
    if is_all && route.conditions.is_empty() && route.priority == 0 && name.len() <= MOST_NAME {
        return name;
    }
    let number = xxh3_64(conditions_of(route).as_bytes()) as u32;
    let short: String = name.chars().take(MOST_NAME).collect();
    format!("{short}#{number:08x}")
}

/// Names of the pools that listeners of HTTP use, by routes or as their default.
pub(super) fn pools_of_http(schema: &schema::Schema) -> HashSet<&str> {
    let mirrors = schema.routes.iter().filter_map(|route| route.mirror.as_ref());
    let mirrors = mirrors.map(|(name, _)| name.value.as_str());
    pools_that_answer(schema).into_iter().chain(mirrors).collect()
}

/// Names of the pools whose responses clients of HTTP get: all but those of mirrors.
pub(super) fn pools_that_answer(schema: &schema::Schema) -> HashSet<&str> {
    let defaults = schema.listeners.iter().filter(|listener| listener.of_http.is_some());
    let defaults = defaults.filter_map(|listener| listener.pool.as_ref());
    let routed = schema.routes.iter().flat_map(|route| &route.pools).map(|(name, _)| name);
    defaults.chain(routed).map(|name| name.value.as_str()).collect()
}

/// Listeners of HTTP with the names of the pools that their routes name, each pair once.
pub(super) fn routed_pools(schema: &schema::Schema) -> Vec<(&schema::Listener, &str)> {
    let named = |listener: &'_ schema::Listener| listener.of_http.is_some();
    let listeners: HashMap<&str, (usize, &schema::Listener)> = schema
        .listeners
        .iter()
        .enumerate()
        .filter(|(_, listener)| named(listener))
        .filter_map(|(at, listener)| Some((listener.name.as_ref()?.value.as_str(), (at, listener))))
        .collect();
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for route in &schema.routes {
        for (at, listener) in route.listeners.iter().filter_map(|name| listeners.get(name.value.as_str())) {
            for pool in pools_of(route) {
                if seen.insert((*at, pool.value.as_str())) {
                    pairs.push((*listener, pool.value.as_str()));
                }
            }
        }
    }
    pairs
}

/// Names of the pools that a route names.
pub(super) fn pools_of(route: &HttpRoute) -> impl Iterator<Item = &Located<String>> {
    let mirror = route.mirror.as_ref().map(|(name, _)| name);
    route.pools.iter().map(|(name, _)| name).chain(mirror)
}
