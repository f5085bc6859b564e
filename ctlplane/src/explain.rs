//! Which route and which backends would a request get, and why not others? Asked of a model, with the packet path's own parser and routes.

mod access;
mod backends;
mod location;
mod mirror;
mod words;

pub use self::access::{AccessExplanation, UnknownListener, explain_access, render_access};
pub use self::backends::Known;
pub use self::words::render;

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use weir_http::cause::Cause;
use weir_http::head::Request as Head;
use weir_http::head::{Limits, Progress};
use weir_http::routes::edit::Asked;
use weir_http::routes::spec::Action;
use weir_http::routes::{Question, RouteTable};
use weir_http::target::normalise;
use weir_l7::http::rules::HttpListener;

use self::backends::{Wishes, pool_share};
use self::words::{action, asks, verdict};
use crate::api::SCHEMA;
use crate::diagnostic::closest;
use crate::drain;
use crate::model::{Listener, Model};
use crate::state::Admin;

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
    /// Where copies go, and whether one of this request does.
    pub mirror: Option<String>,
    /// The pool of copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<PoolShare>,
    /// The listener's state where it takes no new connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener_state: Option<String>,
    /// Whether it is known which backends are down: the daemon knows, a file doesn't.
    #[serde(default)]
    pub health_known: bool,
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
    /// The one that gets the request, where that does not depend on the moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Why that one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
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
    /// Its share of the pool's requests, where it could get this one and no other is certain to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
}

/// Why nothing can be explained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Neither a listener nor a URL nor a host.
    #[error(
        "which listener? name it with --listener, give --url http://host/path, or its host with --header \"Host: shop.example.com\""
    )]
    NoListener,
    /// A listener, but no host: RFC 9112 §3.2 wants one in each request.
    #[error(
        "the request to {target} names no host: add --header \"Host: shop.example.com\", or give --url http://shop.example.com{target}"
    )]
    NoHost {
        /// Its path.
        target: String,
    },
    /// No such listener.
    #[error("there is no listener named \"{name}\" of protocol http{}", near.as_ref().map_or(String::new(), |near| format!("; did you mean \"{near}\"?")))]
    UnknownListener {
        /// The name.
        name: String,
        /// A near one.
        near: Option<String>,
    },
    /// None that fits the URL.
    #[error("no listener of protocol http has this host and port {port}; name one with --listener")]
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
        let port = Some(port_of(authority).ok_or_else(|| wrong("its port is not a port"))?);
        let slash = if target.starts_with('/') { "" } else { "/" };
        Ok(Self { authority: authority.to_owned(), port, target: format!("{slash}{target}") })
    }
}

/// The port that an authority names, else that of `http` (RFC 9110 §4.2.1); `None`: what it names is no port.
fn port_of(authority: &str) -> Option<u16> {
    match authority.rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => port.parse().ok(),
        _ => Some(80),
    }
}

/// What the request's target is and whose it is: `Host` says what the URL does not.
fn url_of(request: &Request) -> Result<Url, ExplainError> {
    let url = request.url.as_deref().map(Url::parse).transpose()?;
    let url = url.unwrap_or_else(|| Url { target: "/".to_owned(), ..Url::default() });
    let host = request.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    match host {
        Some((_, value)) if url.authority.is_empty() && !value.is_empty() => {
            let reason = "its port is not a port";
            let port = port_of(value).ok_or_else(|| ExplainError::Url { url: value.clone(), reason })?;
            Ok(Url { authority: value.clone(), port: Some(port), ..url })
        }
        // `Host:` without a value is how somebody asks what becomes of such a request
        None if url.authority.is_empty() && request.listener.is_some() => {
            Err(ExplainError::NoHost { target: url.target })
        }
        _ => Ok(url),
    }
}

/// Explains a request by what a model says, and by what is known beside it.
pub fn explain(model: &Model, known: &Known<'_>, request: &Request) -> Result<Explanation, ExplainError> {
    if let Some(name) = &request.listener {
        // a name that is wrong is told first
        listener_named(model, name)?;
    }
    let url = url_of(request)?;
    let (listener, rules) = listener_of(model, request, &url)?;
    let head = head_of(request, &url)?;
    let mut explanation = Explanation {
        schema: SCHEMA,
        listener: listener.name.clone(),
        method: request.method.clone(),
        source: request.source.to_string(),
        listener_state: Some(drain::effective(listener, known.overrides))
            .filter(|state| *state != Admin::Ready)
            .map(|state| state.name().to_owned()),
        health_known: known.health.is_some(),
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
    let wishes = Wishes { head: &parsed, bytes, source: request.source };
    let share = |pool: u32, share: u32| pool_share(model, known, Some(wishes), pool, share);
    match taken {
        Some(route) => {
            explanation.route = Some(route.name.to_string());
            explanation.action = action(route);
            if let Action::Redirect(redirect) = &route.action {
                let is_trusted = rules.tell.trusts(request.source);
                let vip = model.vips.get(listener.vip).map_or(request.source, |vip| vip.address);
                let asked = Asked::of(&parsed, bytes, path, vip, is_trusted);
                let location = location::of(redirect, &route.path, &asked);
                let _ = write!(explanation.action, ": Location: {location}");
            }
            explanation.pools = found.pools.iter().filter_map(|(pool, part)| share(*pool, *part)).collect();
            if let Some(mirror) = route.mirror {
                explanation.mirror = mirror::copies(model, rules, mirror, &parsed);
                let per_ten_thousand = u32::from(mirror.per_ten_thousand);
                explanation.copies = pool_share(model, known, None, mirror.pool, per_ten_thousand);
            }
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

fn of_http(model: &Model) -> impl Iterator<Item = (&Listener, &HttpListener)> {
    model.listeners.iter().filter_map(|listener| Some((listener, listener.http.as_deref()?)))
}

fn listener_named<'a>(
    model: &'a Model,
    name: &str,
) -> Result<(&'a Listener, &'a HttpListener), ExplainError> {
    of_http(model).find(|(listener, _)| listener.name == name).ok_or_else(|| {
        let near = closest(name, of_http(model).map(|(listener, _)| listener.name.as_str()));
        ExplainError::UnknownListener { name: name.to_owned(), near: near.map(str::to_owned) }
    })
}

fn listener_of<'a>(
    model: &'a Model,
    request: &Request,
    url: &Url,
) -> Result<(&'a Listener, &'a HttpListener), ExplainError> {
    if let Some(name) = &request.listener {
        return listener_named(model, name);
    }
    let Some(port) = url.port else { return Err(ExplainError::NoListener) };
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
    let found: Vec<_> = of_http(model).filter(|(listener, _)| fits(listener)).collect();
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

#[cfg(test)]
mod tests;
