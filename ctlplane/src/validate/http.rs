//! Do listeners of protocol `http` make sense, and what do they come to once names are resolved?

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use weir_abi::http::MAX_RATE_LIMITS;
use weir_abi::record::{Algorithm, Mode};
use weir_l7::http::rules::{ErrorPage, HashBy, HttpListener, HttpTimes};
use weir_net::Prefix;

use super::Rules;
use super::files::{self, Files};
use super::routes::Pools;
use crate::access_log::{self, Format, Target};
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::model::algorithm_name;
use crate::schema;
use crate::schema::proxy::TCP_TIMES;

/// Of the access log.
const DEFAULT_FORMAT: &str = "combined";
/// Bodies that one listener may hold: its table has a size.
const MOST_BODIES: usize = 32 << 20;

impl Rules<'_> {
    /// Fields that are for the other protocol.
    pub(super) fn http_fields(&mut self, listener: &schema::Listener) {
        let (proxy, times) = (&listener.proxy, &listener.proxy.timeouts);
        let Some(protocol) = listener.of_http else {
            // one that was not understood may have been meant to be http
            if listener.protocol.is_none() {
                return;
            }
            let places = proxy.given.iter().filter(|(name, _)| *name == "http").copied();
            let times = times.given.iter().filter(|(name, _)| !TCP_TIMES.contains(name)).copied();
            for (name, span) in places.chain(times) {
                let mut finding =
                    Diagnostic::error(span, format!("{name} has no meaning here: the protocol is not http"));
                if let Some(protocol) = &listener.protocol {
                    finding = finding.related(protocol.span, "protocol here");
                }
                self.push(finding.help("remove it, or set protocol = \"http\""));
            }
            return;
        };
        if let Some(mode) = listener.mode.as_ref().filter(|mode| mode.value != Mode::Proxy) {
            self.push(
                Diagnostic::error(mode.span, format!("mode \"{}\" knows nothing of http", mode.value.name()))
                    .related(protocol, "protocol here")
                    .help("set mode = \"proxy\", or protocol = \"tcp\""),
            );
        }
        let retries = proxy.given.iter().filter(|(name, _)| *name == "retries");
        for (_, span) in retries {
            self.push(
                Diagnostic::error(*span, "retries has no meaning here: the protocol is http")
                    .related(protocol, "protocol here")
                    .help("remove it, and set retry in [pool.http]"),
            );
        }
        for (name, span) in times.given.iter().filter(|(name, _)| TCP_TIMES.contains(name)) {
            self.push(
                Diagnostic::error(*span, format!("{name} has no meaning here: the protocol is http"))
                    .related(protocol, "protocol here")
                    .help("use keep_alive, request_body, response_idle or tunnel, which say what is silent"),
            );
        }
        self.http_limits(&proxy.http);
        for prefix in &proxy.http.trusted {
            self.is_network(prefix);
        }
    }

    fn http_limits(&mut self, http: &schema::http::Http) {
        let limits = &http.rules.limits;
        if u32::from(limits.uri_bytes) > limits.header_bytes {
            let [header, uri] = &http.sizes;
            let place = uri.as_ref().or(header.as_ref()).map_or(Span::default(), |size| size.span);
            self.push(
                Diagnostic::error(place, "uri is more than header: a head holds its request line")
                    .help("use a smaller limits.uri, or a larger limits.header"),
            );
        }
        let [collected, body] = &http.bodies;
        if let (Some(collected), Some(body)) = (collected, body)
            && body.value > 0
            && collected.value > body.value
        {
            self.push(
                Diagnostic::warning(collected.span, "client_body_buffer is more than a body may have")
                    .related(body.span, "body here")
                    .help("use a smaller client_body_buffer"),
            );
        }
    }

    /// What the listeners of HTTP do, by their position; pools are named by position too.
    pub(super) fn http(&mut self, files: &mut Files) -> HashMap<usize, Arc<HttpListener>> {
        let schema = self.schema;
        let pools: Pools<'_> = schema
            .pools
            .iter()
            .enumerate()
            .filter_map(|(at, pool)| Some((pool.name.as_ref()?.value.as_str(), at as u32)))
            .collect();
        let mut routes = self.routes(&pools, files);
        let mut listeners = HashMap::new();
        for (at, listener) in schema.listeners.iter().enumerate() {
            if listener.of_http.is_none() {
                continue;
            }
            let resolved = routes.remove(&at).unwrap_or_default();
            if resolved.is_empty() && listener.pool.is_none() && !self.may_have_routes(listener) {
                self.push(
                    Diagnostic::warning(listener.span, "every request will be answered 404")
                        .label("no route, and no pool")
                        .help("add a [[route]] with this listener, or a pool for all requests"),
                );
            }
            let pool = listener.pool.as_ref().and_then(|name| pools.get(name.value.as_str()).copied());
            let rules = self.http_listener(listener, pool, files);
            let rules = HttpListener { routes: resolved.into(), ..rules };
            self.bodies_fit(listener, &rules);
            listeners.insert(at, Arc::new(rules));
        }
        listeners
    }

    /// Whether a route names the listener, or none that there is.
    fn may_have_routes(&self, listener: &schema::Listener) -> bool {
        let name = |listener: &'_ schema::Listener| Some(listener.name.as_ref()?.value.clone());
        let all: HashSet<String> = self.schema.listeners.iter().filter_map(name).collect();
        let own = name(listener);
        self.schema.routes.iter().any(|route| {
            route.listeners.is_empty()
                || route
                    .listeners
                    .iter()
                    .any(|named| Some(&named.value) == own.as_ref() || !all.contains(&named.value))
        })
    }

    fn http_listener(
        &mut self,
        listener: &schema::Listener,
        default_pool: Option<u32>,
        files: &mut Files,
    ) -> HttpListener {
        let http = &listener.proxy.http;
        let mut rules = HttpListener { default_pool, times: times_of(listener), ..http.rules.clone() };
        rules.tell.trusted = prefixes_of(&http.trusted);
        let mut seen: HashMap<u16, Span> = HashMap::new();
        for (status, file) in &http.pages {
            if let Some(first) = seen.insert(*status, file.span) {
                let finding = Diagnostic::error(file.span, format!("error_page {status} is there twice"));
                self.push(finding.related(first, "first here").help("keep one of them"));
            }
            match files.body(file) {
                Ok(body) => rules.error_pages.push(ErrorPage {
                    status: *status,
                    content_type: files::content_type(&file.value).into(),
                    body,
                }),
                Err(finding) => self.push(*finding),
            }
        }
        for limit in &http.rate_limits {
            let Some(rate_limit) = &limit.limit else { continue };
            if limit.for_all {
                rules.own_rate_limits.push(rules.rate_limits.len() as u16);
            }
            rules.rate_limits.push(rate_limit.clone());
        }
        self.unique_names(
            "rate limits of this listener",
            http.rate_limits.iter().filter_map(|l| l.name.as_ref()),
        );
        if http.rate_limits.len() > MAX_RATE_LIMITS {
            let message = format!("{} rate limits in one listener are too many", http.rate_limits.len());
            let place = http.span.unwrap_or(listener.span);
            self.push(Diagnostic::error(place, message).help(format!("use at most {MAX_RATE_LIMITS}")));
        }
        if let Some(log) =
            http.access_log.as_ref().filter(|log| log.value > 0 && self.schema.access_log.is_none())
        {
            self.push(
                Diagnostic::error(log.span, "there is no access log")
                    .help("add [access_log] with its path, or remove access_log here"),
            );
        }
        let all = if self.schema.access_log.is_some() { weir_abi::http::ALL_OF_TEN_THOUSAND } else { 0 };
        rules.log_per_ten_thousand = http.access_log.as_ref().map_or(all, |log| log.value);
        rules
    }

    fn bodies_fit(&mut self, listener: &schema::Listener, rules: &HttpListener) {
        let mut seen: HashSet<&[u8]> = HashSet::new();
        let pages = rules.error_pages.iter().map(|page| &page.body);
        let responses = rules.routes.iter().filter_map(|route| match &route.action {
            weir_http::routes::spec::Action::Respond(respond) => Some(&respond.body),
            _ => None,
        });
        let bytes: usize =
            pages.chain(responses).filter(|body| seen.insert(body)).map(|body| body.len()).sum();
        if bytes > MOST_BODIES {
            let message = format!("{bytes} bytes of bodies in one listener are too many");
            self.push(
                Diagnostic::error(listener.span, message)
                    .help("use at most 32 MiB in all; a backend serves larger ones"),
            );
        }
    }

    /// Where the access log goes, and how its lines look.
    pub(super) fn access_log(&mut self) -> Option<access_log::Settings> {
        let log = self.schema.access_log.as_ref()?;
        let format = match &log.format {
            None => Format::parse(DEFAULT_FORMAT).ok(),
            Some(text) => match Format::parse(&text.value) {
                Ok(format) => Some(format),
                Err(error) => {
                    // a string with escapes is longer in the file than what it says
                    let plain = text.span.end - text.span.start == text.value.len() + 2;
                    let start = text.span.start + 1 + error.start;
                    let part = Span { start, end: start + error.length.max(1) };
                    let place = if plain { part } else { text.span };
                    self.push(
                        Diagnostic::error(place, format!("format: {}", error.message)).help(error.help),
                    );
                    None
                }
            },
        };
        let may_be_http =
            |listener: &schema::Listener| listener.of_http.is_some() || listener.protocol.is_none();
        if !self.schema.listeners.iter().any(may_be_http) {
            self.push(
                Diagnostic::warning(log.span, "nothing is logged: there is no listener of protocol http")
                    .help("remove [access_log], or set protocol = \"http\" in a listener"),
            );
        }
        let path = log.path.as_ref()?;
        let target = Target::parse(&path.value);
        if let Target::File(file) = &target
            && let Some(directory) = file.parent().filter(|directory| !directory.is_dir())
            && !directory.as_os_str().is_empty()
        {
            let directory = directory.display();
            self.push(
                Diagnostic::warning(
                    path.span,
                    format!("nothing can be logged here: there is no directory {directory}"),
                )
                .help("make it, so that weir-ctlplane may write in it"),
            );
        }
        Some(access_log::Settings { target, format: format? })
    }

    /// What pools say of HTTP, and whether a listener of HTTP uses them.
    pub(super) fn http_pools(&mut self, used: &HashSet<&str>) {
        let uses_are_known = self.uses_are_known();
        for pool in &self.schema.pools {
            let http = &pool.upstream.http;
            let is_used = pool.name.as_ref().is_some_and(|name| used.contains(name.value.as_str()));
            let backups = pool.backends.iter().filter_map(|backend| backend.backup.as_ref());
            let backups: Vec<_> = backups.filter(|backup| backup.value).collect();
            if !is_used && !uses_are_known {
                continue;
            }
            if !is_used {
                let places = http.span.map(|span| ("http", span)).into_iter();
                for (name, span) in places.chain(backups.iter().map(|backup| ("backup", backup.span))) {
                    self.push(
                        Diagnostic::error(
                            span,
                            format!("{name} has no effect: no listener of protocol http uses the pool"),
                        )
                        .related(pool.span, "pool here")
                        .help("remove it, or name the pool in such a listener or its routes"),
                    );
                }
                continue;
            }
            let algorithm = pool.algorithm.as_ref().map_or(Algorithm::Maglev, |algorithm| algorithm.value);
            let fits = match algorithm {
                Algorithm::Maglev => true,
                Algorithm::SourceHash => http.rules.hash == HashBy::Source,
                _ => false,
            };
            if let Some(span) = http.hash.filter(|_| !fits) {
                let message =
                    format!("hash has no effect: the algorithm is \"{}\"", algorithm_name(algorithm));
                let mut finding = Diagnostic::error(span, message);
                if let Some(algorithm) = &pool.algorithm {
                    finding = finding.related(algorithm.span, "algorithm here");
                }
                self.push(finding.help("remove it, or use algorithm = \"maglev\""));
            }
            if let Some(first) = backups.first().filter(|_| backups.len() == pool.backends.len()) {
                self.push(
                    Diagnostic::warning(first.span, "every backend of the pool is a backup")
                        .related(pool.span, "pool here")
                        .help("leave backup out of those that serve usually"),
                );
            }
        }
    }
}

fn times_of(listener: &schema::Listener) -> HttpTimes {
    let mut times = HttpTimes::default();
    let fields = [
        &mut times.request_header_ms,
        &mut times.request_body_ms,
        &mut times.response_header_ms,
        &mut times.response_idle_ms,
        &mut times.keep_alive_ms,
        &mut times.tunnel_ms,
    ];
    for (field, given) in fields.into_iter().zip(&listener.proxy.timeouts.http) {
        if let Some(given) = given {
            *field = given.value.as_millis() as u32;
        }
    }
    times
}

/// As the packet path has them.
pub(super) fn prefixes_of(prefixes: &[Located<(IpAddr, u8)>]) -> Vec<Prefix> {
    prefixes.iter().filter_map(|prefix| Prefix::new(prefix.value.0, prefix.value.1).ok()).collect()
}
