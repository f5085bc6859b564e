//! What becomes of a request, in words.

use std::fmt::Write as _;

use weir_http::routes::Verdict;
use weir_http::routes::spec::{Action, Condition, Host, HostEdit, Path, PathEdit, Redirect, Route, Value};

use super::{BackendVerdict, Explanation, PoolShare};

/// What a route asks for, in words.
pub(super) fn asks(route: &Route) -> String {
    let host = match &route.host {
        Host::Any => "any host".to_owned(),
        Host::Exact(name) => name.to_string(),
        Host::Suffix(suffix) => format!("*{suffix}"),
    };
    let path = match &route.path {
        Path::Any => "any path".to_owned(),
        Path::Exact(path) => format!("path {path}"),
        Path::Prefix(prefix) => format!("paths below {prefix}"),
        Path::Regex(regex) => format!("paths like {regex}"),
    };
    let mut text = format!("{host}, {path}");
    for condition in &route.conditions {
        let _ = write!(text, ", {}", condition_text(condition));
    }
    if route.priority != 0 {
        let _ = write!(text, ", priority {}", route.priority);
    }
    text
}

fn condition_text(condition: &Condition) -> String {
    let of = |what: &str, name: &str, value: &Value| match value {
        Value::Present => format!("{what} {name} there"),
        Value::Absent => format!("{what} {name} not there"),
        Value::Exact(text) => format!("{what} {name} = \"{text}\""),
        Value::Prefix(text) => format!("{what} {name} begins \"{text}\""),
        Value::Regex(text) => format!("{what} {name} like {text}"),
    };
    match condition {
        Condition::Method(methods) => format!("method {}", methods.join(" or ")),
        Condition::Header(name, value) => of("header", name, value),
        Condition::Query(name, value) => of("parameter", name, value),
        Condition::Source(prefixes) => {
            let texts: Vec<String> =
                prefixes.iter().map(|prefix| format!("{}/{}", prefix.addr, prefix.len)).collect();
            format!("client in {}", texts.join(" or "))
        }
    }
}

pub(super) fn verdict(route: &Route, verdict: Verdict) -> String {
    match verdict {
        Verdict::Taken => "takes the request".to_owned(),
        Verdict::Behind => "fits as well, but comes later".to_owned(),
        Verdict::OtherHost => "is for another host".to_owned(),
        Verdict::OtherPath => "is for another path".to_owned(),
        Verdict::Failed { condition } => {
            let text = route.conditions.get(condition).map(condition_text).unwrap_or_default();
            format!("wants {text}")
        }
    }
}

pub(super) fn action(route: &Route) -> String {
    let mut text = match &route.action {
        Action::Pools(_) => "passed on".to_owned(),
        Action::Redirect(redirect) => redirect_text(redirect),
        Action::Respond(respond) => {
            format!(
                "answered {} with {} bytes of {}",
                respond.status,
                respond.body.len(),
                respond.content_type
            )
        }
    };
    match &route.request.path {
        PathEdit::Keep => {}
        PathEdit::Replace(path) => {
            let _ = write!(text, ", its path replaced by {path}");
        }
        PathEdit::ReplacePrefix(prefix) => {
            let _ = write!(text, ", its prefix replaced by {prefix}");
        }
    }
    match &route.request.host {
        HostEdit::Keep => {}
        HostEdit::Replace(host) => {
            let _ = write!(text, ", its host replaced by {host}");
        }
        HostEdit::Backend => text.push_str(", its host replaced by the backend's address"),
    }
    text
}

fn redirect_text(redirect: &Redirect) -> String {
    let mut parts = Vec::new();
    parts.extend(redirect.scheme.as_ref().map(|scheme| format!("scheme {scheme}")));
    parts.extend(redirect.host.as_ref().map(|host| format!("host {host}")));
    parts.extend(redirect.port.map(|port| format!("port {port}")));
    match &redirect.path {
        PathEdit::Keep => {}
        PathEdit::Replace(path) => parts.push(format!("path {path}")),
        PathEdit::ReplacePrefix(prefix) => parts.push(format!("prefix {prefix}")),
    }
    if redirect.relative {
        parts.push("the same scheme and host".to_owned());
    }
    format!("redirected with {} to {}", redirect.status, parts.join(", "))
}

/// As text for people.
pub fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    let Explanation { listener, host, path, method, source, .. } = explanation;
    let host = if host.is_empty() { "(no host)" } else { host };
    let _ = writeln!(text, "{method} {host}{path} from {source}, listener {listener}");
    if let Some(state) = &explanation.listener_state {
        let _ = writeln!(text, "the listener's state is {state}: it takes no new connections");
    }
    match &explanation.route {
        Some(route) => {
            let _ = writeln!(text, "route {route}: {}", explanation.action);
        }
        None => {
            let _ = writeln!(text, "{}", explanation.action);
        }
    }
    if let Some(cause) = &explanation.cause {
        let _ = writeln!(text, "cause {cause}");
    }
    if !explanation.rate_limits.is_empty() {
        let _ = writeln!(text, "counted by {}", explanation.rate_limits.join(", "));
    }
    for pool in &explanation.pools {
        let _ = writeln!(text, "  {} to pool {} ({})", pool.share, pool.pool, pool.picks);
        render_backends(&mut text, pool);
    }
    if let Some(mirror) = &explanation.mirror {
        let _ = writeln!(text, "  copies: {mirror}");
        if let Some(pool) = &explanation.copies {
            render_backends(&mut text, pool);
        }
    }
    if !explanation.pools.is_empty() && !explanation.health_known {
        text.push_str(
            "  which backends are down is not known here: the daemon knows, asked without a FILE\n",
        );
    }
    if !explanation.considered.is_empty() {
        let _ = writeln!(text, "routes, in the order in which they are asked:");
    }
    for one in &explanation.considered {
        let _ = writeln!(text, "  {} ({}): {}", one.route, one.asks, one.verdict);
    }
    if explanation.left_off > 0 {
        let _ = writeln!(text, "  … and {} more, for other hosts or paths", explanation.left_off);
    }
    text
}

fn render_backends(text: &mut String, pool: &PoolShare) {
    for one in &pool.backends {
        let BackendVerdict { backend, address, weight, why, usable, share } = one;
        let is_chosen = pool.backend.as_ref() == Some(backend);
        let mut state = match (is_chosen, usable, share) {
            (true, ..) => format!("gets it, {}", pool.because),
            (_, true, Some(share)) => format!("can get it: {share} of these do"),
            (_, true, None) => "may take over".to_owned(),
            _ => "cannot".to_owned(),
        };
        if !why.is_empty() {
            let sign = if is_chosen || *usable { "," } else { ":" };
            let _ = write!(state, "{sign} {why}");
        }
        let _ = writeln!(text, "    {backend} {address} weight {weight}: {state}");
    }
}
