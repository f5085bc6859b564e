//! Can a route do what it says? What the configuration can get wrong in one, found before it is indexed.

use std::fmt::Display;

use thiserror::Error;

use super::edit::Variable;
use super::hash::DEPTH;
use super::spec::{
    Action, Condition, Edits, FieldEdit, Host, HostEdit, Path, PathEdit, Redirect, Respond, Route, Split,
    Value,
};
use crate::name::is_token;

/// Most conditions of a route.
const CONDITIONS: usize = 32;
/// Most pools that a route splits requests among.
const SPLITS: usize = 64;
/// Largest weight of a split.
const WEIGHT: u32 = 1_000_000;
/// Most changes to fields of a message.
const FIELD_EDITS: usize = 32;
/// Longest value, name or path.
const TEXT_BYTES: usize = 2_048;
/// Largest body of a response.
const BODY_BYTES: usize = 64 << 10;
/// Longest host name (RFC 1035 §2.3.4).
const HOST_BYTES: usize = 255;
/// Most labels of a wildcard's host.
const LABELS: usize = 31;
/// Fields that say where a message ends or belong to one connection (RFC 9110 §7.6.1): the proxy's own.
const OWN_FIELDS: [&str; 11] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];
/// What is wrong with a route.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("route `{route}`: {field} `{value}` {flaw}")]
pub struct RouteError {
    /// Its name.
    pub route: Box<str>,
    /// Which of its fields.
    pub field: Box<str>,
    /// The value that is refused.
    pub value: Box<str>,
    /// Why.
    pub flaw: Flaw,
}

/// Why a value is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Flaw {
    /// More routes than events can name.
    #[error("is too many; a listener has at most {0} routes")]
    TooMany(usize),
    /// Two of one name.
    #[error("is there twice; names of routes differ")]
    Twice,
    /// Nothing where something must be.
    #[error("is empty")]
    Empty,
    /// Too many bytes.
    #[error("is longer than {0} bytes")]
    TooLong(usize),
    /// Too many of something.
    #[error("is too many; at most {0} are allowed")]
    TooManyOf(usize),
    /// Outside a range.
    #[error("is not within {0} to {1}")]
    Range(u64, u64),
    /// Upper case, a port, blanks, or a trailing dot.
    #[error("is not a host name in lower case without port and final dot")]
    Host,
    /// Too many labels.
    #[error("has more than {0} labels")]
    Labels(usize),
    /// No slash at the beginning.
    #[error("does not begin with `/`")]
    NoSlash,
    /// Blanks, control characters, `?` or `#`.
    #[error("holds `{0}`, which no path holds")]
    PathCharacter(char),
    /// `.` or `..` as a segment, an unreserved character written as `%xx`, or `//`: requests are compared without.
    #[error(
        "never matches: `.` and `..` segments, `%xx` of letters, digits, `-._~`, and `//` are resolved before"
    )]
    NotNormal,
    /// Too many segments.
    #[error("has more than {0} segments")]
    Depth(usize),
    /// The expression can't be built.
    #[error("is no usable expression: {0}")]
    Regex(String),
    /// Too many expressions of one host.
    #[error(
        "is one expression too many: a host has at most {0}; use prefixes, or one expression for several"
    )]
    TooManyRegexes(usize),
    /// All expressions need too much memory.
    #[error("bytes for the expressions of all routes are too many; they have at most {0}")]
    RegexesTooLarge(usize),
    /// Too many routes that differ in conditions only.
    #[error("has too many routes of the same host; at most {0} may differ in conditions only")]
    TooManyAlternatives(usize),
    /// Not a token (RFC 9110 §5.6.2).
    #[error("is not a name; letters, digits and !#$%&'*+-.^_`|~ are allowed")]
    Token,
    /// Control characters.
    #[error("holds a control character")]
    Value,
    /// Not one of the statuses.
    #[error("is not {0}")]
    Status(&'static str),
    /// Not a scheme.
    #[error("is neither `http` nor `https`")]
    Scheme,
    /// A relative location with what it can't name.
    #[error("names neither scheme nor host nor port; leave them out, or `relative`")]
    Relative,
    /// A field that the proxy writes itself.
    #[error("is a field that the proxy itself writes")]
    OwnField,
    /// An unknown variable.
    #[error(
        "names no variable; there are %{{client}}, %{{host}}, %{{path}}, %{{route}}, %{{backend_address}}, %{{request_id}}"
    )]
    Variable,
    /// Nothing was matched that could be replaced.
    #[error("needs a route with an exact path or a prefix")]
    NoPrefix,
    /// Something that only requests have.
    #[error("can be changed in requests only")]
    RequestOnly,
}

impl RouteError {
    /// An error of a route.
    pub(super) fn of(route: &Route, field: &str, value: &(impl Display + ?Sized), flaw: Flaw) -> Self {
        let mut value = value.to_string();
        // long values are told by their beginning
        if let Some((end, _)) = value.char_indices().nth(80) {
            value.truncate(end);
            value.push('…');
        }
        Self { route: route.name.clone(), field: field.into(), value: value.into_boxed_str(), flaw }
    }
}

/// What is refused, in which field, and why.
type Refusal<'a> = (&'a str, String, Flaw);

fn refuse<'a, T>(field: &'a str, value: impl Display, flaw: Flaw) -> Result<T, Refusal<'a>> {
    Err((field, value.to_string(), flaw))
}

/// Checks all of a route but its expressions.
pub(super) fn route(route: &Route) -> Result<(), RouteError> {
    parts(route).map_err(|(field, value, flaw)| RouteError::of(route, field, &value, flaw))
}

fn parts(route: &Route) -> Result<(), Refusal<'static>> {
    text("name", &route.name)?;
    match &route.host {
        Host::Any => {}
        Host::Exact(name) => host("host", name)?,
        Host::Suffix(suffix) => match suffix.strip_prefix('.') {
            Some(name) if labels(suffix) <= LABELS => host("host", name)?,
            Some(_) => return refuse("host", suffix, Flaw::Labels(LABELS)),
            None => return refuse("host", suffix, Flaw::Host),
        },
    }
    match &route.path {
        Path::Any | Path::Regex(_) => {}
        // OPTIONS of the server itself (RFC 9112 §3.2.4)
        Path::Exact(exact) if **exact == *"*" => {}
        Path::Exact(exact) => path_text("path", exact)?,
        Path::Prefix(prefix) => {
            path_text("path", prefix)?;
            if depth(super::table::trimmed(prefix)) > DEPTH {
                return refuse("path", prefix, Flaw::Depth(DEPTH));
            }
        }
    }
    if route.conditions.len() > CONDITIONS {
        return refuse("conditions", route.conditions.len(), Flaw::TooManyOf(CONDITIONS));
    }
    route.conditions.iter().try_for_each(condition)?;
    match &route.action {
        Action::Pools(splits) => pools(splits)?,
        Action::Redirect(to) => redirect(to, &route.path)?,
        Action::Respond(answer) => respond(answer)?,
    }
    if let Some(mirror) = route.mirror {
        range("mirror", u64::from(mirror.per_ten_thousand), 1, 10_000)?;
    }
    edits(&route.request)?;
    path_edit("request.path", &route.request.path, &route.path)?;
    if let HostEdit::Replace(name) = &route.request.host {
        host_and_port("request.host", name)?;
    }
    edits(&route.response)?;
    if route.response.path != PathEdit::Keep || route.response.host != HostEdit::Keep {
        return refuse("response", "path or host", Flaw::RequestOnly);
    }
    Ok(())
}

fn text(field: &'static str, value: &str) -> Result<(), Refusal<'static>> {
    if value.is_empty() {
        return refuse(field, value, Flaw::Empty);
    }
    long_text(field, value)
}

/// A value without control characters, perhaps empty (RFC 9110 §5.5).
fn long_text(field: &'static str, value: &str) -> Result<(), Refusal<'static>> {
    if value.len() > TEXT_BYTES {
        return refuse(field, value, Flaw::TooLong(TEXT_BYTES));
    }
    if value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
        return refuse(field, value.escape_default(), Flaw::Value);
    }
    Ok(())
}

fn range(field: &'static str, value: u64, least: u64, most: u64) -> Result<(), Refusal<'static>> {
    if (least..=most).contains(&value) { Ok(()) } else { refuse(field, value, Flaw::Range(least, most)) }
}

/// A registered name or a literal (RFC 3986 §3.2.2) in lower case.
fn host(field: &'static str, name: &str) -> Result<(), Refusal<'static>> {
    if name.len() > HOST_BYTES {
        return refuse(field, name, Flaw::TooLong(HOST_BYTES));
    }
    let literal = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_fine = match literal {
        Some(address) => {
            address.parse::<std::net::Ipv6Addr>().is_ok() && *address == address.to_ascii_lowercase()
        }
        None => {
            let allowed =
                |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._~".contains(&byte);
            name.bytes().all(allowed) && name.split('.').all(|label| !label.is_empty())
        }
    };
    if is_fine { Ok(()) } else { refuse(field, name, Flaw::Host) }
}

/// A host, perhaps with a port.
fn host_and_port(field: &'static str, name: &str) -> Result<(), Refusal<'static>> {
    let is_port = |port: &str| {
        !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
    };
    match name.rsplit_once(':') {
        Some((name, port)) if is_port(port) => host(field, name),
        _ => host(field, name),
    }
}

/// A path of a request, or of what becomes one.
fn path_text(field: &'static str, path: &str) -> Result<(), Refusal<'static>> {
    if path.len() > TEXT_BYTES {
        return refuse(field, path, Flaw::TooLong(TEXT_BYTES));
    }
    if !path.starts_with('/') {
        return refuse(field, path, Flaw::NoSlash);
    }
    let is_strange = |character: &char| !character.is_ascii_graphic() || "?#".contains(*character);
    if let Some(character) = path.chars().find(is_strange) {
        return refuse(field, path, Flaw::PathCharacter(character));
    }
    // slashes are merged before routes see a path, not behind them
    let is_split = field == "path" && path.contains("//");
    let is_dotted = path.split('/').any(|segment| segment == "." || segment == "..");
    if is_split || is_dotted || has_needless_escape(path) {
        return refuse(field, path, Flaw::NotNormal);
    }
    Ok(())
}

/// Whether an unreserved character (RFC 3986 §2.3) is written as `%xx`.
fn has_needless_escape(path: &str) -> bool {
    path.split('%').skip(1).any(|rest| {
        let byte = rest.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
    })
}

fn token(field: &'static str, name: &str) -> Result<(), Refusal<'static>> {
    if name.is_empty() {
        return refuse(field, name, Flaw::Empty);
    }
    if name.len() > HOST_BYTES {
        return refuse(field, name, Flaw::TooLong(HOST_BYTES));
    }
    if is_token(name.as_bytes()) { Ok(()) } else { refuse(field, name, Flaw::Token) }
}

fn condition(condition: &Condition) -> Result<(), Refusal<'static>> {
    let value = |field, value: &Value| match value {
        Value::Exact(text) | Value::Prefix(text) => long_text(field, text),
        Value::Present | Value::Absent | Value::Regex(_) => Ok(()),
    };
    match condition {
        Condition::Method(methods) if methods.is_empty() => refuse("method", "", Flaw::Empty),
        Condition::Method(methods) if methods.len() > CONDITIONS => {
            refuse("method", methods.len(), Flaw::TooManyOf(CONDITIONS))
        }
        Condition::Method(methods) => methods.iter().try_for_each(|method| token("method", method)),
        Condition::Header(name, test) => {
            token("header", name)?;
            value("header", test)
        }
        Condition::Query(name, test) => {
            long_text("query", name)?;
            value("query", test)
        }
        Condition::Source(prefixes) if prefixes.is_empty() => refuse("source", "", Flaw::Empty),
        Condition::Source(prefixes) if prefixes.len() > 256 => {
            refuse("source", prefixes.len(), Flaw::TooManyOf(256))
        }
        Condition::Source(_) => Ok(()),
    }
}

fn pools(splits: &[Split]) -> Result<(), Refusal<'static>> {
    if splits.is_empty() {
        return refuse("pools", "", Flaw::Empty);
    }
    if splits.len() > SPLITS {
        return refuse("pools", splits.len(), Flaw::TooManyOf(SPLITS));
    }
    splits.iter().try_for_each(|split| range("weight", u64::from(split.weight), 1, u64::from(WEIGHT)))
}

fn redirect(to: &Redirect, matched: &Path) -> Result<(), Refusal<'static>> {
    if ![301, 302, 303, 307, 308].contains(&to.status) {
        return refuse("redirect.status", to.status, Flaw::Status("301, 302, 303, 307 or 308"));
    }
    if let Some(scheme) = to.scheme.as_deref().filter(|scheme| !["http", "https"].contains(scheme)) {
        return refuse("redirect.scheme", scheme, Flaw::Scheme);
    }
    if let Some(name) = &to.host {
        host("redirect.host", name)?;
    }
    if let Some(port) = to.port {
        range("redirect.port", u64::from(port), 1, 65_535)?;
    }
    if to.relative && (to.scheme.is_some() || to.host.is_some() || to.port.is_some()) {
        return refuse("redirect.relative", "true", Flaw::Relative);
    }
    path_edit("redirect.path", &to.path, matched)
}

fn respond(answer: &Respond) -> Result<(), Refusal<'static>> {
    range("respond.status", u64::from(answer.status), 200, 599)?;
    long_text("respond.content_type", &answer.content_type)?;
    if answer.body.len() > BODY_BYTES {
        return refuse("respond.body", answer.body.len(), Flaw::TooLong(BODY_BYTES));
    }
    Ok(())
}

fn path_edit(field: &'static str, edit: &PathEdit, matched: &Path) -> Result<(), Refusal<'static>> {
    match edit {
        PathEdit::Keep => Ok(()),
        PathEdit::Replace(path) => path_text(field, path),
        PathEdit::ReplacePrefix(prefix) => {
            if !matches!(matched, Path::Exact(_) | Path::Prefix(_)) {
                return refuse(field, prefix, Flaw::NoPrefix);
            }
            path_text(field, prefix)
        }
    }
}

fn edits(edits: &Edits) -> Result<(), Refusal<'static>> {
    if edits.fields.len() > FIELD_EDITS {
        return refuse("header edits", edits.fields.len(), Flaw::TooManyOf(FIELD_EDITS));
    }
    for edit in &edits.fields {
        let (FieldEdit::Set(name, _) | FieldEdit::Add(name, _) | FieldEdit::Remove(name)) = edit;
        token("header", name)?;
        if OWN_FIELDS.contains(&name.to_ascii_lowercase().as_str()) {
            return refuse("header", name, Flaw::OwnField);
        }
        if let FieldEdit::Set(_, value) | FieldEdit::Add(_, value) = edit {
            long_text("header value", value)?;
            let is_known =
                |rest: &str| rest.split_once('}').is_some_and(|(name, _)| Variable::named(name).is_some());
            if !value.split("%{").skip(1).all(is_known) {
                return refuse("header value", value, Flaw::Variable);
            }
        }
    }
    Ok(())
}

/// Segments of a trimmed prefix.
pub(super) fn depth(prefix: &str) -> usize {
    prefix.bytes().filter(|byte| *byte == b'/').count()
}

/// Labels of a wildcard's host, `.example.com`: 2.
pub(super) fn labels(suffix: &str) -> usize {
    suffix.bytes().filter(|byte| *byte == b'.').count()
}

/// A condition's field and value, for an error.
pub(super) fn described(condition: &Condition) -> (&'static str, String) {
    let of = |name: &str, value: &Value| match value {
        Value::Exact(text) => format!("{name} = {text}"),
        Value::Prefix(text) => format!("{name} = {text}…"),
        Value::Regex(text) => format!("{name} ~ {text}"),
        Value::Present => format!("{name} present"),
        Value::Absent => format!("{name} absent"),
    };
    match condition {
        Condition::Method(methods) => ("method", methods.join(", ")),
        Condition::Header(name, value) => ("header", of(name, value)),
        Condition::Query(name, value) => ("query", of(name, value)),
        Condition::Source(prefixes) => {
            let texts: Vec<String> =
                prefixes.iter().map(|prefix| format!("{}/{}", prefix.addr, prefix.len)).collect();
            ("source", texts.join(", "))
        }
    }
}

/// A route's path as text.
pub(super) fn path(route: &Route) -> &str {
    match &route.path {
        Path::Any => "any",
        Path::Exact(path) | Path::Prefix(path) | Path::Regex(path) => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::spec::{Mirror, RouteTimes};

    fn fine() -> Route {
        Route {
            name: "shop".into(),
            priority: 0,
            host: Host::Exact("shop.example.com".into()),
            path: Path::Prefix("/v1".into()),
            conditions: vec![],
            action: Action::Pools(vec![Split { pool: 0, weight: 1 }]),
            mirror: None,
            request: Edits::default(),
            response: Edits::default(),
            times: RouteTimes::default(),
            rate_limits: vec![],
        }
    }

    fn refusal(change: impl FnOnce(&mut Route)) -> String {
        let mut changed = fine();
        change(&mut changed);
        route(&changed).map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    }

    #[test]
    fn each_field_is_refused_with_its_value() {
        assert_eq!(refusal(|_| {}), "fine");
        let redirect = Redirect {
            status: 301,
            scheme: None,
            host: None,
            port: None,
            path: PathEdit::Keep,
            keeps_query: true,
            relative: false,
        };
        let respond = |status, body: usize| Respond {
            status,
            content_type: "text/plain".into(),
            body: vec![0; body].into(),
        };
        let set = |name: &str, value: &str| Edits {
            fields: vec![FieldEdit::Set(name.into(), value.into())],
            ..Edits::default()
        };
        let deep = "/a".repeat(32);
        type Change = Box<dyn FnOnce(&mut Route)>;
        let cases: Vec<(Change, &str)> = vec![
            (Box::new(|r| r.name = "".into()), "route ``: name `` is empty"),
            (
                Box::new(|r| r.host = Host::Exact("Shop.example.com".into())),
                "host `Shop.example.com` is not a host name",
            ),
            (Box::new(|r| r.host = Host::Exact("a:80".into())), "host `a:80` is not"),
            (Box::new(|r| r.host = Host::Exact("a.".into())), "host `a.` is not"),
            (Box::new(|r| r.host = Host::Exact("[2001:db8::1]".into())), "fine"),
            (Box::new(|r| r.host = Host::Exact("[2001:DB8::1]".into())), "is not a host name"),
            (Box::new(|r| r.host = Host::Suffix("example.com".into())), "host `example.com` is not"),
            (Box::new(|r| r.host = Host::Suffix(".a".repeat(32).into())), "more than 31 labels"),
            (Box::new(|r| r.path = Path::Prefix("v1".into())), "path `v1` does not begin with `/`"),
            (Box::new(|r| r.path = Path::Exact("*".into())), "fine"),
            (Box::new(|r| r.path = Path::Exact("/a?b".into())), "holds `?`"),
            (Box::new(|r| r.path = Path::Exact("/a b".into())), "holds ` `"),
            (Box::new(|r| r.path = Path::Exact("/ü".into())), "holds `ü`"),
            (Box::new(|r| r.path = Path::Exact("/a/../b".into())), "never matches"),
            (Box::new(|r| r.path = Path::Prefix("//b".into())), "never matches"),
            (Box::new(|r| r.path = Path::Exact("/%41".into())), "never matches"),
            (Box::new(|r| r.path = Path::Exact("/%2F".into())), "fine"),
            (Box::new(move |r| r.path = Path::Prefix(deep.into())), "more than 31 segments"),
            (Box::new(|r| r.conditions = vec![Condition::Method(vec![])]), "method `` is empty"),
            (
                Box::new(|r| r.conditions = vec![Condition::Method(vec!["G T".into()])]),
                "method `G T` is not a name",
            ),
            (
                Box::new(|r| r.conditions = vec![Condition::Header("a:".into(), Value::Present)]),
                "header `a:`",
            ),
            (Box::new(|r| r.conditions = vec![Condition::Source(vec![])]), "source `` is empty"),
            (Box::new(|r| r.action = Action::Pools(vec![])), "pools `` is empty"),
            (
                Box::new(|r| r.action = Action::Pools(vec![Split { pool: 0, weight: 0 }])),
                "weight `0` is not within 1 to 1000000",
            ),
            (
                {
                    let redirect = Redirect { status: 304, ..redirect.clone() };
                    Box::new(|r| r.action = Action::Redirect(redirect))
                },
                "redirect.status `304` is not 301",
            ),
            (
                {
                    let redirect = Redirect { scheme: Some("ftp".into()), ..redirect.clone() };
                    Box::new(|r| r.action = Action::Redirect(redirect))
                },
                "redirect.scheme `ftp` is neither",
            ),
            (
                {
                    let redirect = Redirect { port: Some(0), ..redirect.clone() };
                    Box::new(|r| r.action = Action::Redirect(redirect))
                },
                "redirect.port `0`",
            ),
            (
                {
                    let redirect = Redirect { port: Some(80), relative: true, ..redirect.clone() };
                    Box::new(|r| r.action = Action::Redirect(redirect))
                },
                "redirect.relative `true` names neither scheme nor host",
            ),
            (
                {
                    let redirect = Redirect { path: PathEdit::ReplacePrefix("/x".into()), ..redirect };
                    Box::new(|r| {
                        r.path = Path::Any;
                        r.action = Action::Redirect(redirect);
                    })
                },
                "redirect.path `/x` needs a route with",
            ),
            (
                {
                    let respond = respond(199, 0);
                    Box::new(|r| r.action = Action::Respond(respond))
                },
                "respond.status `199`",
            ),
            (
                {
                    let respond = respond(200, 65_537);
                    Box::new(|r| r.action = Action::Respond(respond))
                },
                "respond.body `65537`",
            ),
            (Box::new(|r| r.mirror = Some(Mirror { pool: 1, per_ten_thousand: 10_001 })), "mirror `10001`"),
            (Box::new(move |r| r.request = set("X-A", "%{client} of %{host}")), "fine"),
            (
                Box::new(move |r| r.request = set("x-a", "%{clien}")),
                "header value `%{clien}` names no variable",
            ),
            (Box::new(move |r| r.request = set("x-a", "%{client")), "names no variable"),
            (Box::new(move |r| r.request = set("x-a", "a\r\nb")), r"header value `a\r\nb` holds a control"),
            (
                Box::new(move |r| r.request = set("Content-Length", "1")),
                "header `Content-Length` is a field that",
            ),
            (
                Box::new(|r| r.request.host = HostEdit::Replace("a:99999".into())),
                "request.host `a:99999` is not",
            ),
            (Box::new(|r| r.request.host = HostEdit::Replace("a.b:8080".into())), "fine"),
            (Box::new(|r| r.request.path = PathEdit::Replace("/x y".into())), "request.path `/x y` holds"),
            (Box::new(|r| r.response.path = PathEdit::Replace("/x".into())), "requests only"),
        ];
        for (change, expected) in cases {
            let refusal = refusal(change);
            assert!(refusal.contains(expected), "{refusal:?} instead of {expected:?}");
        }
        let long = refusal(|route| route.host = Host::Exact("a".repeat(3_000).into()));
        assert!(
            long.len() < 200 && long.ends_with("… is longer than 255 bytes") || long.contains("…`"),
            "{long}"
        );
    }
}
