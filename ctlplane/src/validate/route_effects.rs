//! Does a route do what its author wanted? Redirects that lead back, prefixes that nothing matched, copies, rate limits without requests.

use std::collections::HashSet;

use weir_abi::proxy::SendProxy;
use weir_http::routes::spec::{Action, Condition, FieldEdit, Host, Path, PathEdit, Redirect, Route, Value};

use super::Rules;
use super::remedies::place_of;
use crate::diagnostic::Diagnostic;
use crate::schema;
use crate::schema::route::HttpRoute;
use crate::units::{format_share, format_size};

/// Where a redirect to `http` leads that names no port (RFC 9110 §4.2.1).
const HTTP_PORT: u16 = 80;
/// Of `https` (RFC 9110 §4.2.2).
const HTTPS_PORT: u16 = 443;

impl Rules<'_> {
    /// `path_prefix` of a redirect or a rewrite replaces what the route's path matched.
    pub(super) fn prefix_is_matched(&mut self, route: &HttpRoute) {
        let redirected = match &route.draft.action {
            Action::Redirect(redirect) => Some(("redirect", "redirect.path", &redirect.path)),
            Action::Pools(_) | Action::Respond(_) => None,
        };
        let rewritten = ("rewrite", "request.path", &route.draft.request.path);
        for (field, place, edit) in redirected.into_iter().chain([rewritten]) {
            if !matches!(edit, PathEdit::ReplacePrefix(_)) {
                continue;
            }
            let span = place_of(route, place).unwrap_or(route.span);
            let finding = match route.paths.first() {
                Some(("path_regex", regex)) => Diagnostic::error(
                    span,
                    format!("{field}.path_prefix and path_regex exclude each other: an expression has no prefix to replace"),
                )
                .related(*regex, "path_regex here")
                .help(format!("match with path_prefix, or set {field}.path, which replaces all of the path")),
                Some(_) => continue,
                None => Diagnostic::error(
                    span,
                    format!("{field}.path_prefix has nothing to replace: the route has neither path nor path_prefix"),
                )
                .help(format!("add path_prefix = \"/\" to the route, or set {field}.path, which replaces all of the path")),
            };
            self.push(finding);
        }
    }

    /// A redirect that the same route would get again never ends.
    pub(super) fn leads_elsewhere(&mut self, route: &HttpRoute, listener: &schema::Listener) {
        let (Action::Redirect(redirect), Some(ports)) = (&route.draft.action, &listener.ports) else {
            return;
        };
        let back = Back { ports: ports.value, is_trusting: !listener.proxy.http.trusted.is_empty() };
        let action = route.actions.iter().find(|(name, _)| *name == "redirect").map(|(_, span)| *span);
        let span = place_of(route, "redirect.path").or(action).unwrap_or(route.span);
        if !route.is_understood {
            return;
        }
        if back.is_led_to(&route.draft, redirect) {
            let message =
                "the redirect leads to where the request came from: clients would go round for ever";
            let mut finding = Diagnostic::error(span, message);
            if let Some((name, span)) = route.paths.first() {
                finding = finding.related(*span, format!("{name} of the route"));
            }
            self.push(finding.help("change one of scheme, host, port, path and path_prefix"));
        } else if back.is_led_to_by_tls(&route.draft, redirect) {
            let message = "clients that came by https would go round for ever: what terminates TLS for them sends their next \
                           request here as well";
            let mut finding = Diagnostic::warning(span, message);
            if let Some(prefix) = listener.proxy.http.trusted.first() {
                finding = finding.related(prefix.span, "who is trusted to say how clients came");
            }
            self.push(finding.help("add headers = { X-Forwarded-Proto = \"http\" } to the route"));
        }
    }

    /// What a mirror costs, and what it does not do.
    pub(super) fn mirror_is_meant(&mut self, route: &HttpRoute) {
        let Some((name, share)) = &route.mirror else { return };
        let is_it = |pool: &&schema::Pool| pool.name.as_ref().is_some_and(|own| own.value == name.value);
        // a name that is wrong, or a route that passes nothing on, is an error of its own
        let Some(pool) = self.schema.pools.iter().find(is_it).filter(|_| !route.pools.is_empty()) else {
            return;
        };
        if let Some((own, _)) = route.pools.iter().find(|(own, _)| own.value == name.value) {
            let message = format!(
                "the mirror's pool \"{}\" is the route's own: its backends get requests twice",
                name.value
            );
            self.push(
                Diagnostic::warning(name.span, message)
                    .related(own.span, "the route's pool")
                    .help("name another pool in mirror, or remove it"),
            );
        }
        if let Some(send_proxy) =
            pool.upstream.send_proxy.as_ref().filter(|send| send.value != SendProxy::Off)
        {
            let message = format!(
                "nothing is copied to the pool \"{}\": it has send_proxy, and copies have no client",
                name.value
            );
            self.push(
                Diagnostic::warning(name.span, message)
                    .related(send_proxy.span, "send_proxy here")
                    .help("use a pool without send_proxy for copies, or remove mirror"),
            );
            return;
        }
        let message = format!(
            "{} of these requests are sent a second time, to the pool \"{}\"; its responses are dropped",
            format_share((*share).into()),
            name.value
        );
        self.push(Diagnostic::note(name.span, message).help(self.what_is_copied(route)));
    }

    /// Which requests a mirror can't copy, by the listener that holds the least.
    fn what_is_copied(&self, route: &HttpRoute) -> String {
        let names: HashSet<&str> = route.listeners.iter().map(|name| name.value.as_str()).collect();
        let of_route = |listener: &&schema::Listener| {
            listener.name.as_ref().is_some_and(|name| names.contains(name.value.as_str()))
        };
        let listeners = self.schema.listeners.iter().filter(of_route);
        let least = listeners.map(|listener| listener.proxy.http.rules.limits.client_body_buffer).min();
        let bodies = match least {
            Some(bytes @ 1..) => format!(
                "a request with a body is copied where client_body_buffer = \"{}\" holds all of it",
                format_size(bytes.into())
            ),
            _ => "a request with a body is not copied: client_body_buffer of [listener.http.limits] is off"
                .to_owned(),
        };
        format!("{bodies}; a copy needs a connection and memory at once, else it is dropped and counted")
    }

    /// Rate limits of `scope = "route"` that no route names.
    pub(super) fn unused_rate_limits(&mut self) {
        let schema = self.schema;
        let known: HashSet<&str> =
            schema.listeners.iter().filter_map(|l| Some(l.name.as_ref()?.value.as_str())).collect();
        let of_unknown =
            |route: &HttpRoute| route.listeners.iter().any(|name| !known.contains(name.value.as_str()));
        for listener in schema.listeners.iter().filter(|listener| listener.of_http.is_some()) {
            let Some(own) = &listener.name else { continue };
            let limits = &listener.proxy.http.rate_limits;
            let is_limit = |name: &str| {
                limits.iter().any(|limit| limit.name.as_ref().is_some_and(|own| own.value == name))
            };
            let is_of = |route: &&HttpRoute| {
                of_unknown(route) || route.listeners.iter().any(|name| name.value == own.value)
            };
            let routes = schema.routes.iter().filter(is_of);
            let used: HashSet<&str> =
                routes.flat_map(|route| &route.rate_limits).map(|name| name.value.as_str()).collect();
            // a name that is wrong may be meant to be any of them
            if used.iter().any(|name| !is_limit(name)) {
                continue;
            }
            for limit in limits.iter().filter(|limit| !limit.for_all) {
                let Some(name) = limit.name.as_ref().filter(|name| !used.contains(name.value.as_str()))
                else {
                    continue;
                };
                let message = format!("the rate limit \"{}\" limits nothing: no route names it", name.value);
                let help = format!(
                    "add rate_limit = \"{}\" to a [[route]] of the listener \"{}\", or use scope = \"listener\"",
                    name.value, own.value
                );
                self.push(Diagnostic::warning(name.span, message).help(help));
            }
        }
    }
}

/// A listener that a redirect may lead back to.
struct Back {
    ports: (u16, u16),
    /// Some clients are proxies that may terminate TLS.
    is_trusting: bool,
}

impl Back {
    /// Whether the request that a client makes by the redirect is redirected in the same way.
    fn is_led_to(&self, route: &Route, redirect: &Redirect) -> bool {
        let serves = |port: u16| (self.ports.0..=self.ports.1).contains(&port);
        // nobody terminates TLS here, but the request may have come by it
        let is_scheme = match redirect.scheme.as_deref() {
            None => true,
            Some(scheme) => scheme == "http" && !self.is_trusting,
        };
        let is_port = match redirect.port {
            Some(port) => serves(port),
            None => redirect.host.is_none() || serves(HTTP_PORT),
        };
        is_scheme && is_port && asks_the_same(route, redirect)
    }

    /// The same for a client whose proxy terminates TLS.
    fn is_led_to_by_tls(&self, route: &Route, redirect: &Redirect) -> bool {
        let tells = |condition: &Condition| matches!(condition, Condition::Header(name, _) if **name == *"x-forwarded-proto");
        self.is_trusting
            && redirect.scheme.as_deref() == Some("https")
            && redirect.port.is_none_or(|port| port == HTTPS_PORT)
            && !route.conditions.iter().any(tells)
            && asks_the_same(route, redirect)
    }
}

/// Whether host and path, and what else the route asks for, stay what they were.
fn asks_the_same(route: &Route, redirect: &Redirect) -> bool {
    let is_path = match (&redirect.path, &route.path) {
        (PathEdit::Keep, _) => true,
        (PathEdit::Replace(to) | PathEdit::ReplacePrefix(to), Path::Exact(from)) => to == from,
        _ => false,
    };
    let is_host =
        redirect.host.as_ref().is_none_or(|to| matches!(&route.host, Host::Exact(from) if from == to));
    is_path && is_host && route.conditions.iter().all(|one| still_holds(one, route, redirect))
}

/// Whether a condition that held for a request holds for the one that its redirect makes of it.
fn still_holds(condition: &Condition, route: &Route, redirect: &Redirect) -> bool {
    match condition {
        // a POST may become a GET (RFC 9110 §15.4.2 to §15.4.4)
        Condition::Method(methods) => {
            matches!(redirect.status, 307 | 308) || methods.iter().any(|method| matches!(&**method, "GET" | "HEAD"))
        }
        Condition::Query(_, Value::Absent) | Condition::Source(_) => true,
        Condition::Query(..) => redirect.keeps_query,
        // a cookie that comes with the redirect
        Condition::Header(name, _) if **name == *"cookie" => !route.response.fields.iter().any(|edit| {
            matches!(edit, FieldEdit::Set(name, _) | FieldEdit::Add(name, _) if name.eq_ignore_ascii_case("set-cookie"))
        }),
        Condition::Header(..) => true,
    }
}

#[cfg(test)]
mod tests {
    use weir_http::routes::spec::{Edits, RouteTimes};

    use super::*;

    fn redirect(status: u16, scheme: &str, host: &str, port: u16, path: PathEdit) -> Redirect {
        let some = |text: &str| (!text.is_empty()).then(|| text.into());
        let port = Some(port).filter(|port| *port > 0);
        Redirect {
            status,
            scheme: some(scheme),
            host: some(host),
            port,
            path,
            keeps_query: true,
            relative: false,
        }
    }

    fn route(host: Host, path: Path, conditions: Vec<Condition>) -> Route {
        Route {
            name: "r".into(),
            priority: 0,
            host,
            path,
            conditions,
            action: Action::Pools(Vec::new()),
            mirror: None,
            request: Edits::default(),
            response: Edits::default(),
            times: RouteTimes::default(),
            rate_limits: Vec::new(),
        }
    }

    fn leads_back(route: &Route, redirect: &Redirect, ports: (u16, u16)) -> bool {
        Back { ports, is_trusting: false }.is_led_to(route, redirect)
    }

    #[test]
    fn redirects_that_lead_back_are_told_from_those_that_do_not() {
        let exact = || route(Host::Exact("a.example".into()), Path::Exact("/a".into()), Vec::new());
        let to = |path: &str| PathEdit::Replace(path.into());
        for (status, scheme, host, port, path, expected) in [
            (302, "", "", 0, to("/a"), true),
            (302, "", "", 0, PathEdit::ReplacePrefix("/a".into()), true),
            (302, "", "", 0, to("/b"), false),
            (302, "", "", 0, to("/a/"), false),
            (302, "http", "", 0, PathEdit::Keep, true),
            (302, "https", "", 0, to("/a"), false),
            (302, "", "a.example", 0, to("/a"), true),
            (302, "", "b.example", 0, to("/a"), false),
            (302, "", "", 81, to("/a"), true),
            (302, "", "", 82, to("/a"), false),
        ] {
            let redirect = redirect(status, scheme, host, port, path);
            assert_eq!(leads_back(&exact(), &redirect, (80, 81)), expected, "{redirect:?}");
        }
        // another host drops the port, the same scheme doesn't
        assert!(!leads_back(&exact(), &redirect(302, "", "a.example", 0, PathEdit::Keep), (8080, 8080)));
        assert!(leads_back(&exact(), &redirect(302, "http", "", 0, PathEdit::Keep), (8080, 8080)));
        let below = route(Host::Any, Path::Prefix("/a".into()), Vec::new());
        assert!(
            !leads_back(&below, &redirect(302, "", "", 0, to("/a")), (80, 80)),
            "another route may take it"
        );
    }

    #[test]
    fn a_redirect_may_take_away_what_a_condition_asked() {
        let with = |condition| route(Host::Any, Path::Exact("/a".into()), vec![condition]);
        let back = |status| redirect(status, "", "", 0, PathEdit::Replace("/a".into()));
        let post = || with(Condition::Method(vec!["POST".into()]));
        assert!(!leads_back(&post(), &back(303), (80, 80)), "POST, redirect, GET");
        assert!(leads_back(&post(), &back(307), (80, 80)));
        let query = || with(Condition::Query("utm".into(), Value::Present));
        assert!(leads_back(&query(), &back(302), (80, 80)));
        assert!(!leads_back(&query(), &Redirect { keeps_query: false, ..back(302) }, (80, 80)));
        let mut cookie = with(Condition::Header("cookie".into(), Value::Absent));
        assert!(leads_back(&cookie, &back(302), (80, 80)));
        cookie.response.fields.push(FieldEdit::Add("Set-Cookie".into(), "seen=1".into()));
        assert!(!leads_back(&cookie, &back(302), (80, 80)));
    }
    #[test]
    fn behind_what_terminates_tls_https_leads_back() {
        let behind = Back { ports: (80, 80), is_trusting: true };
        let mut all = route(Host::Any, Path::Any, Vec::new());
        let to_tls = redirect(308, "https", "", 0, PathEdit::Keep);
        assert!(behind.is_led_to_by_tls(&all, &to_tls) && !behind.is_led_to(&all, &to_tls));
        assert!(!Back { is_trusting: false, ..behind }.is_led_to_by_tls(&all, &to_tls));
        assert!(!behind.is_led_to_by_tls(&all, &redirect(308, "https", "", 8443, PathEdit::Keep)));
        assert!(!behind.is_led_to_by_tls(&all, &redirect(308, "https", "b.example", 0, PathEdit::Keep)));
        assert!(!behind.is_led_to(&all, &redirect(308, "http", "", 0, PathEdit::Keep)), "they came by https");
        all.conditions.push(Condition::Header("x-forwarded-proto".into(), Value::Exact("http".into())));
        assert!(!behind.is_led_to_by_tls(&all, &to_tls));
    }
}
