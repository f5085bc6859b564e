//! Which route and which backends would a request get, and why not others? Asked of a model, with the packet path's own parser and routes.

mod access;

pub use self::access::{AccessExplanation, UnknownListener, explain_access, render_access};

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weir_abi::record::AdminState;
use weir_http::cause::Cause;
use weir_http::head::Request as Head;
use weir_http::head::{Limits, Progress};
use weir_http::routes::spec::{Action, Condition, Host, HostEdit, Path, PathEdit, Redirect, Route, Value};
use weir_http::routes::{Question, RouteTable, Verdict};
use weir_http::target::normalise;
use weir_l7::http::rules::{HashBy, HttpListener};

use crate::api::SCHEMA;
use crate::compile::effective;
use crate::diagnostic::closest;
use crate::model::{Listener, Model, Pool, algorithm_name};
use crate::state::Overrides;
use crate::units::{format_backend_address, format_share};

/// A request that somebody wonders about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Name of the listener; found by the URL's port and host where it is left out.
    #[serde(default)]
    pub listener: Option<String>,
    /// `http://host:port/path?query`, or `/path?query` alone.
    #[serde(default)]
    pub url: Option<String>,
    /// The method.
    pub method: String,
    /// Fields, name and value.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The client.
    pub source: IpAddr,
}

/// What becomes of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The listener that gets it.
    pub listener: String,
    /// What routes compare: the host,
    pub host: String,
    /// the path, normalised,
    pub path: String,
    /// the method
    pub method: String,
    /// and the client.
    pub source: String,
    /// The route that takes it.
    pub route: Option<String>,
    /// What is done, in words.
    pub action: String,
    /// Cause code where the proxy answers by itself because it must.
    pub cause: Option<String>,
    /// Routes in the order in which they are asked; those that came closest.
    pub considered: Vec<Considered>,
    /// Routes that are not told of.
    pub left_off: usize,
    /// Rate limits that count it.
    pub rate_limits: Vec<String>,
    /// Where it may go.
    pub pools: Vec<PoolShare>,
    /// Where copies go.
    pub mirror: Option<String>,
}

/// A route and what it says to the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    /// Its name.
    pub route: String,
    /// What it asks for.
    pub asks: String,
    /// Whether it takes the request, and why not.
    pub verdict: String,
}

/// A pool with its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolShare {
    /// Its name.
    pub pool: String,
    /// Its share.
    pub share: String,
    /// What picks a backend.
    pub picks: String,
    /// Its backends.
    pub backends: Vec<BackendVerdict>,
}

/// A backend and whether it could get the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendVerdict {
    /// Its name.
    pub backend: String,
    /// Its address.
    pub address: String,
    /// Its weight.
    pub weight: u16,
    /// Whether it could.
    pub usable: bool,
    /// Why not, or when.
    pub why: String,
}

/// Why nothing can be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Neither a listener nor a URL.
    #[error("which listener? name it with --listener, or give --url http://host/path")]
    NoListener,
    /// No such listener.
    #[error("there is no listener named \"{name}\" of protocol http{}", near.as_ref().map_or(String::new(), |near| format!("; did you mean \"{near}\"?")))]
    UnknownListener {
        /// The name.
        name: String,
        /// A near one.
        near: Option<String>,
    },
    /// None that fits the URL.
    #[error("no listener of protocol http has port {port}; name one with --listener")]
    NoneFits {
        /// The URL's port.
        port: u16,
    },
    /// More than one fits the URL.
    #[error("the listeners {names} have port {port}; name one with --listener")]
    ManyFit {
        /// Their names.
        names: String,
        /// The URL's port.
        port: u16,
    },
    /// A URL that is none.
    #[error("\"{url}\" is no URL: {reason}; write http://host/path or /path")]
    Url {
        /// The text.
        url: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Line breaks and the like, which no client could send as one request.
    #[error("\"{text}\" cannot stand in a request; leave out control characters and blanks")]
    Text {
        /// The text.
        text: String,
    },
    /// Routes that can't be indexed: the model was checked, so this is a bug.
    #[error("{0}")]
    Routes(String),
}

/// A URL in parts.
#[derive(Debug, Default)]
struct Url {
    /// With its port, as in `Host`.
    authority: String,
    port: Option<u16>,
    target: String,
}

impl Url {
    fn parse(text: &str) -> Result<Self, ExplainError> {
        let wrong = |reason| ExplainError::Url { url: text.to_owned(), reason };
        let text_without_fragment = text.split('#').next().unwrap_or("");
        if text_without_fragment.starts_with('/') {
            return Ok(Self { target: text_without_fragment.to_owned(), ..Self::default() });
        }
        let rest = match text_without_fragment.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(wrong("TLS is not terminated here")),
            Some(_) => return Err(wrong("its scheme is not http")),
            None => return Err(wrong("it has no scheme")),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(at);
        if authority.is_empty() {
            return Err(wrong("it has no host"));
        }
        let port = match authority.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => {
                Some(port.parse().map_err(|_| wrong("its port is not a port"))?)
            }
            _ => Some(80),
        };
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self { authority: authority.to_owned(), port, target: format!("{slash}{target}") })
    }
}

/// What is known of a backend beside the configuration: why it gets nothing, by pool and backend.
pub type Trouble<'a> = &'a dyn Fn(&str, &str) -> Option<String>;

/// Explains a request by what a model and the runtime overrides say.
pub fn explain(
    model: &Model,
    overrides: &Overrides,
    trouble: Trouble<'_>,
    request: &Request,
) -> Result<Explanation, ExplainError> {
    let url = request.url.as_deref().map(Url::parse).transpose()?;
    let (listener, rules) = listener_of(model, request, url.as_ref())?;
    let url = url.unwrap_or_else(|| Url { target: "/".to_owned(), ..Url::default() });
    let head = head_of(request, &url)?;
    let mut explanation = Explanation {
        schema: SCHEMA,
        listener: listener.name.clone(),
        method: request.method.clone(),
        source: request.source.to_string(),
        ..Explanation::default()
    };
    let mut refused = |cause: Cause, why: String| {
        explanation.action = format!("refused: {why}");
        explanation.cause = Some(cause.code().to_owned());
        Ok(explanation.clone())
    };
    let mut parsed = Head::default();
    let limits = Limits {
        head_bytes: rules.limits.header_bytes,
        headers: rules.limits.headers,
        target_bytes: rules.limits.uri_bytes,
    };
    match parsed.parse(head.as_bytes(), &limits) {
        Ok(Progress::Complete) => {}
        Ok(Progress::Incomplete) => {
            return refused(Cause::RequestMalformed, "the head does not end".to_owned());
        }
        Err(refusal) => return refused(refusal.request_cause(), refusal.to_string()),
    }
    let bytes = head.as_bytes();
    let mut buffer = vec![0; bytes.len()];
    let path = match normalise(parsed.target.path_or_root(bytes), &mut buffer) {
        Ok(path) => path,
        Err(error) => return refused(Cause::RequestMalformed, error.to_string()),
    };
    if parsed.method == weir_http::head::Method::Connect && !rules.connect_allowed {
        return refused(Cause::MethodRefused, "the listener does not allow CONNECT".to_owned());
    }
    if parsed.upgrade && !rules.upgrade_allowed {
        return refused(Cause::UpgradeRefused, "the listener does not allow upgrades".to_owned());
    }
    let question = Question {
        host: parsed.host.name.of(bytes),
        path,
        query: parsed.target.query.of(bytes),
        method: parsed.method_name.of(bytes),
        source: request.source,
        fields: request.headers.as_slice(),
    };
    explanation.host = String::from_utf8_lossy(question.host).into_owned();
    explanation.path = String::from_utf8_lossy(question.path).into_owned();
    let table =
        RouteTable::new(rules.routes.clone()).map_err(|error| ExplainError::Routes(error.to_string()))?;
    let found = table.explain(&question);
    explanation.left_off = found.left_off;
    explanation.considered = found
        .considered
        .iter()
        .filter_map(|one| {
            let route = table.route(one.route)?;
            Some(Considered {
                route: route.name.to_string(),
                asks: asks(route),
                verdict: verdict(route, one.verdict),
            })
        })
        .collect();
    let taken = found.taken.and_then(|place| table.route(place));
    let own = rules.own_rate_limits.iter().chain(taken.iter().flat_map(|route| &route.rate_limits));
    let named = |at: &u16| rules.rate_limits.get(usize::from(*at)).map(|limit| limit.name.to_string());
    explanation.rate_limits = own.filter_map(named).collect();
    let share = |pool: u32, share: u32| pool_share(model, overrides, trouble, pool, share);
    match taken {
        Some(route) => {
            explanation.route = Some(route.name.to_string());
            explanation.action = action(route);
            explanation.pools = found.pools.iter().filter_map(|(pool, part)| share(*pool, *part)).collect();
            explanation.mirror = route.mirror.and_then(|mirror| {
                let pool = model.pools.get(mirror.pool as usize)?;
                Some(format!(
                    "{} of the requests to {}",
                    format_share(mirror.per_ten_thousand.into()),
                    pool.name
                ))
            });
        }
        None => match rules.default_pool {
            Some(pool) => {
                explanation.action = "passed on by the listener's own pool: no route takes it".to_owned();
                explanation.pools = share(pool, 10_000).into_iter().collect();
            }
            None => {
                explanation.action =
                    "answered 404: no route takes it, and the listener has no pool".to_owned();
                explanation.cause = Some(Cause::NoRoute.code().to_owned());
            }
        },
    }
    if !explanation.pools.is_empty()
        && explanation.pools.iter().all(|pool| !pool.backends.iter().any(|b| b.usable))
    {
        explanation.cause = Some(Cause::NoBackend.code().to_owned());
    }
    Ok(explanation)
}

fn listener_of<'a>(
    model: &'a Model,
    request: &Request,
    url: Option<&Url>,
) -> Result<(&'a Listener, &'a HttpListener), ExplainError> {
    let of_http =
        || model.listeners.iter().filter_map(|listener| Some((listener, listener.http.as_deref()?)));
    if let Some(name) = &request.listener {
        return of_http().find(|(listener, _)| listener.name == *name).ok_or_else(|| {
            let near = closest(name, of_http().map(|(listener, _)| listener.name.as_str()));
            ExplainError::UnknownListener { name: name.clone(), near: near.map(str::to_owned) }
        });
    }
    let Some((url, port)) = url.and_then(|url| Some((url, url.port?))) else {
        return Err(ExplainError::NoListener);
    };
    let host = url.authority.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(':');
    let host = if url.authority.starts_with('[') {
        &url.authority
    } else if url.authority.contains(':') {
        host
    } else {
        &url.authority
    };
    let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let fits = |listener: &Listener| {
        let vip = model.vips.get(listener.vip).map(|vip| vip.address);
        (listener.ports.0..=listener.ports.1).contains(&port) && literal.is_none_or(|ip| vip == Some(ip))
    };
    let found: Vec<_> = of_http().filter(|(listener, _)| fits(listener)).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(ExplainError::NoneFits { port }),
        many => {
            let names: Vec<&str> = many.iter().map(|(listener, _)| listener.name.as_str()).collect();
            Err(ExplainError::ManyFit { names: names.join(", "), port })
        }
    }
}

/// The head as a client would send it.
fn head_of(request: &Request, url: &Url) -> Result<String, ExplainError> {
    let odd = |text: &str| text.bytes().any(|byte| byte < b' ' || byte == 0x7f);
    let texts =
        request.headers.iter().flat_map(|(name, value)| [name, value]).chain([&request.method, &url.target]);
    if let Some(text) = texts.chain([&url.authority]).find(|text| odd(text)) {
        return Err(ExplainError::Text { text: text.escape_default().to_string() });
    }
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, url.target);
    if !request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        let _ = write!(head, "Host: {}\r\n", url.authority);
    }
    for (name, value) in &request.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    head.push_str("\r\n");
    Ok(head)
}

/// What a route asks for, in words.
fn asks(route: &Route) -> String {
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

fn verdict(route: &Route, verdict: Verdict) -> String {
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

fn action(route: &Route) -> String {
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
    format!("redirected with {} to {}", redirect.status, parts.join(", "))
}

fn pool_share(
    model: &Model,
    overrides: &Overrides,
    trouble: Trouble<'_>,
    position: u32,
    share: u32,
) -> Option<PoolShare> {
    let pool = model.pools.get(position as usize)?;
    let set = overrides.get(&pool.name);
    let verdicts: Vec<(BackendVerdict, bool)> = pool
        .backends
        .iter()
        .map(|backend| {
            let (weight, state) = effective(backend, set.and_then(|set| set.get(&backend.name)));
            let why = match state {
                AdminState::Ready if weight == 0 => Some("its weight is 0".to_owned()),
                AdminState::Ready => trouble(&pool.name, &backend.name),
                other => Some(format!("its state is {}", other.name())),
            };
            let verdict = BackendVerdict {
                backend: backend.name.clone(),
                address: format_backend_address(backend.address, backend.port),
                weight,
                usable: why.is_none(),
                why: why.unwrap_or_default(),
            };
            (verdict, backend.backup)
        })
        .collect();
    let serves = verdicts.iter().any(|(verdict, is_backup)| verdict.usable && !is_backup);
    let backends = verdicts.into_iter().map(|(verdict, is_backup)| match (is_backup, verdict.usable) {
        (true, true) if serves => {
            BackendVerdict { usable: false, why: "a backup, and others can serve".to_owned(), ..verdict }
        }
        _ => verdict,
    });
    Some(PoolShare {
        pool: pool.name.clone(),
        share: format_share(share),
        picks: picks(pool),
        backends: backends.collect(),
    })
}

fn picks(pool: &Pool) -> String {
    let by = match &pool.http.hash {
        HashBy::Source => "the client's address".to_owned(),
        HashBy::Header(name) => format!("header {name}"),
        HashBy::Cookie(name) => format!("cookie {name}"),
        HashBy::Path => "the path".to_owned(),
    };
    let algorithm = algorithm_name(pool.algorithm);
    let mut text = match algorithm {
        "maglev" | "source-hash" => format!("{algorithm} by {by}"),
        other => other.to_owned(),
    };
    if let Some(sticky) = &pool.http.sticky {
        let _ = write!(text, ", cookie {} first", sticky.cookie);
    }
    text
}

/// As text for people.
pub fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    let Explanation { listener, host, path, method, source, .. } = explanation;
    let host = if host.is_empty() { "(no host)" } else { host };
    let _ = writeln!(text, "{method} {host}{path} from {source}, listener {listener}");
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
        for backend in &pool.backends {
            let BackendVerdict { backend, address, weight, why, usable } = backend;
            let state = if *usable { "can get it".to_owned() } else { format!("cannot: {why}") };
            let _ = writeln!(text, "    {backend} {address} weight {weight}: {state}");
        }
    }
    if let Some(mirror) = &explanation.mirror {
        let _ = writeln!(text, "  copies: {mirror}");
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
