//! What does the file say about routes? `[[route]]`: conditions and actions, with pools and rate limits by name.
//!
//! Shapes and words are checked here; what a route may say is [`weir_http::routes`]' to check, which names a field and a value: a
//! route keeps where each stands.

use std::net::IpAddr;

use toml::Spanned;
use toml::de::DeValue;
use weir_abi::http::{ALL_OF_TEN_THOUSAND, MAX_SPLIT_WEIGHT};
use weir_http::routes::spec::{
    self, Action, Condition, FieldEdit, Host, HostEdit, Path, PathEdit, Redirect, Respond, Value,
};

use super::proxy::time;
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::reader::TableReader;
use crate::units;

/// `[[route]]`.
#[derive(Debug)]
pub struct HttpRoute {
    /// Place of the section.
    pub span: Span,
    /// `name`.
    pub name: Option<Located<String>>,
    /// `listener`, by name.
    pub listeners: Vec<Located<String>>,
    /// All but names: without its name, its pools and its rate limits.
    pub draft: spec::Route,
    /// `pool` or `split`: names and weights.
    pub pools: Vec<(Located<String>, u32)>,
    /// `mirror`: name and share.
    pub mirror: Option<(Located<String>, u16)>,
    /// `rate_limit`, by name.
    pub rate_limits: Vec<Located<String>>,
    /// `source`, as written.
    pub sources: Vec<Located<(IpAddr, u8)>>,
    /// `pool`, `split`, `redirect` and `respond`, where they are there.
    pub actions: Vec<(&'static str, Span)>,
    /// `path`, `path_prefix` and `path_regex`, where they are there.
    pub paths: Vec<(&'static str, Span)>,
    /// Files of bodies: they are read with the rest of what the file names.
    pub body_file: Option<Located<String>>,
    /// What routes' own check calls a field, its value, and where it stands.
    pub places: Vec<(&'static str, String, Span)>,
    /// All fields were: else what is missing may be what was not understood.
    pub is_understood: bool,
}

type Field<'a> = &'a Spanned<DeValue<'a>>;
type OfText<T> = fn(Box<str>) -> T;
type OfField = fn(Box<str>, Box<str>) -> FieldEdit;

/// Collects one route.
struct Draft {
    route: HttpRoute,
}

/// Reads `[[route]]`.
pub(super) fn read(table: &mut TableReader<'_, '_>) -> HttpRoute {
    let span = table.span();
    let errors = table.diagnostics().errors();
    let name = super::read_optional_name(table);
    if table.places(&["listener"]).is_empty() {
        table.require("listener", "\"...\"");
    }
    let listeners =
        table.parsed_one_or_many("listener", "the name of a listener, or an array of names", named);
    let draft = spec::Route {
        name: Box::default(),
        priority: read_priority(table),
        host: Host::Any,
        path: Path::Any,
        conditions: Vec::new(),
        action: Action::Pools(Vec::new()),
        mirror: None,
        request: spec::Edits::default(),
        response: spec::Edits::default(),
        times: spec::RouteTimes::default(),
        rate_limits: Vec::new(),
    };
    let route = HttpRoute {
        span,
        name,
        listeners,
        draft,
        pools: Vec::new(),
        mirror: None,
        rate_limits: Vec::new(),
        sources: Vec::new(),
        actions: table.places(&["pool", "split", "redirect", "respond"]),
        paths: table.places(&["path", "path_prefix", "path_regex"]),
        body_file: None,
        places: Vec::new(),
        is_understood: false,
    };
    let mut draft = Draft { route };
    draft.conditions(table);
    draft.pools(table);
    draft.redirect(table);
    draft.respond(table);
    draft.mirror(table);
    draft.edits(table);
    draft.times(table);
    draft.route.rate_limits =
        table.parsed_one_or_many("rate_limit", "an array of names of rate limits", named);
    draft.route.is_understood = table.diagnostics().errors() == errors;
    draft.route
}

fn named(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn anything(text: &str) -> Result<Box<str>, String> {
    Ok(text.into())
}

const MOST_PRIORITY: i32 = 1_000_000;

fn read_priority(table: &mut TableReader<'_, '_>) -> i32 {
    let Some((_, value)) = table.take("priority") else { return 0 };
    let number = match value.get_ref() {
        DeValue::Integer(integer) => i32::from_str_radix(integer.as_str(), integer.radix()).ok(),
        _ => None,
    };
    match number.filter(|number| (-MOST_PRIORITY..=MOST_PRIORITY).contains(number)) {
        Some(number) => number,
        None => {
            let finding =
                Diagnostic::error(value.span().into(), "priority is not an integer within its range");
            table.diagnostics().push(finding.help("use -1000000 to 1000000; the higher are asked first"));
            0
        }
    }
}

/// A warning about a method that is not in upper case, as all registered ones are (RFC 9110 §9.1, §16.1.1).
pub(super) fn lower_case_method(method: &str, span: Span) -> Option<Diagnostic> {
    let upper = method.to_ascii_uppercase();
    (upper != method).then(|| {
        let message =
            format!("method \"{method}\" is not {upper}: methods are case-sensitive (RFC 9110, section 9.1)");
        Diagnostic::warning(span, message).help(format!("write \"{upper}\""))
    })
}

/// Final statuses whose responses end with their header, and where RFC 9110 says so.
const BODILESS: [(u32, &str); 3] = [(204, "15.3.5"), (205, "15.3.6"), (304, "15.4.5")];

/// `status` of a redirect (RFC 9110 §15.4).
fn read_redirect_status(table: &mut TableReader<'_, '_>) -> Option<u16> {
    const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];
    let (_, value) = table.take("status")?;
    let DeValue::Integer(integer) = value.get_ref() else {
        return table.integer_of("status", value, 301, 308, "").map(|_| 302);
    };
    let number = u16::from_str_radix(integer.as_str(), integer.radix()).ok();
    let status = number.filter(|number| STATUSES.contains(number));
    if status.is_none() {
        let message = format!("redirect.status = {} is no redirect that clients follow", integer.as_str());
        let finding = Diagnostic::error(value.span().into(), message);
        table.diagnostics().push(finding.help("use 301, 302, 303, 307 or 308"));
    }
    status
}

impl Draft {
    fn place(&mut self, field: &'static str, value: impl Into<String>, span: Span) {
        self.route.places.push((field, value.into(), span));
    }

    fn placed(&mut self, field: &'static str, text: Located<Box<str>>) -> Box<str> {
        self.place(field, &*text.value, text.span);
        text.value
    }

    fn conditions(&mut self, table: &mut TableReader<'_, '_>) {
        if let Some(host) = table.string("host", "a host, or \"*.\" and a host") {
            let name = host.value.to_ascii_lowercase();
            let of = match name.strip_prefix('*') {
                Some("") => Host::Any,
                Some(suffix) => Host::Suffix(suffix.into()),
                None => Host::Exact(name.as_str().into()),
            };
            self.place("host", name.trim_start_matches('*'), host.span);
            self.route.draft.host = of;
        }
        let kinds: [(&str, OfText<Path>); 3] =
            [("path", Path::Exact), ("path_prefix", Path::Prefix), ("path_regex", Path::Regex)];
        for (field, kind) in kinds {
            if let Some(path) = table.parsed(field, "a path like \"/v1\"", anything) {
                self.route.draft.path = kind(self.placed("path", path));
            }
        }
        let listed = table.array_length("method") == Some(0);
        let methods =
            table.parsed_one_or_many("method", "a method like \"GET\", or an array of methods", anything);
        if listed {
            self.route.draft.conditions.push(Condition::Method(Vec::new()));
        }
        if !methods.is_empty() {
            for method in &methods {
                table.diagnostics().extend(lower_case_method(&method.value, method.span));
            }
            let methods = methods.into_iter().map(|method| self.placed("method", method)).collect();
            self.route.draft.conditions.push(Condition::Method(methods));
        }
        let example = "headers = { X-Canary = \"yes\" }";
        table.table("headers", "headers", example, |inner| {
            for (name, value) in inner.rest() {
                let found = self.value(inner, "header", &name, value);
                let name = name.value.to_ascii_lowercase().into();
                self.route.draft.conditions.extend(found.map(|value| Condition::Header(name, value)));
            }
        });
        table.table("query", "query", "query = { v = \"2\" }", |inner| {
            for (name, value) in inner.rest() {
                let found = self.value(inner, "query", &name, value);
                let name = name.value.into();
                self.route.draft.conditions.extend(found.map(|value| Condition::Query(name, value)));
            }
        });
        self.route.sources = table.parsed_one_or_many(
            "source",
            "\"address/length\", or an array of them",
            units::parse_prefixed,
        );
    }

    /// `"text"`, `true`, `false`, `{ prefix = "…" }` or `{ regex = "…" }`.
    fn value(
        &mut self,
        table: &mut TableReader<'_, '_>,
        field: &'static str,
        name: &Located<String>,
        value: Field<'_>,
    ) -> Option<Value> {
        self.place(field, &name.value, name.span);
        let span: Span = value.span().into();
        match value.get_ref() {
            DeValue::String(text) => {
                self.place(field, text.to_string(), span);
                return Some(Value::Exact(text.as_ref().into()));
            }
            DeValue::Boolean(true) => return Some(Value::Present),
            DeValue::Boolean(false) => return Some(Value::Absent),
            DeValue::Table(inner) if inner.len() == 1 => {
                for (key, value) in inner.iter() {
                    let DeValue::String(text) = value.get_ref() else { continue };
                    let span: Span = value.span().into();
                    match key.get_ref().as_ref() {
                        "prefix" => {
                            self.place(field, text.to_string(), span);
                            return Some(Value::Prefix(text.as_ref().into()));
                        }
                        "regex" => {
                            let lower = if field == "header" {
                                name.value.to_ascii_lowercase()
                            } else {
                                name.value.clone()
                            };
                            self.place(field, format!("{lower} ~ {text}"), span);
                            return Some(Value::Regex(text.as_ref().into()));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        let message = format!("{} is no condition", name.value);
        table.diagnostics().push(Diagnostic::error(span, message).help(
            "write \"text\", true (is there), false (is not there), { prefix = \"text\" } or { regex = \"expression\" }",
        ));
        None
    }

    fn pools(&mut self, table: &mut TableReader<'_, '_>) {
        if let Some(pool) = table.string("pool", "the name of a pool") {
            self.route.pools.push((pool, 1));
        }
        let splits = table.tables("split", "split", |split| {
            split.require("pool", "\"...\"");
            split.require("weight", "90");
            let pool = split.string("pool", "the name of a pool");
            let weight = split.integer("weight", 0, MAX_SPLIT_WEIGHT, "(its share beside the others')");
            pool.zip(weight).map(|(pool, weight)| (pool, weight.value))
        });
        // a share of nothing is how a pool is taken out for a while
        self.route.pools.extend(splits.into_iter().flatten().filter(|(_, weight)| *weight > 0));
    }

    fn redirect(&mut self, table: &mut TableReader<'_, '_>) {
        let example = "redirect = { status = 308, scheme = \"https\" }";
        table.table("redirect", "redirect", example, |inner| {
            let status = read_redirect_status(inner);
            let scheme = inner.parsed("scheme", "\"http\" or \"https\"", anything);
            let host =
                inner.parsed("host", "a host without port", |host| Ok(host.to_ascii_lowercase().into()));
            let port = inner.integer("port", 1, u16::MAX.into(), "(a TCP port)");
            let path = self.path_edit(inner, "redirect.path");
            let query = inner.boolean("query");
            let relative = inner.boolean("relative");
            if let Some(relative) = &relative {
                self.place("redirect.relative", relative.value.to_string(), relative.span);
            }
            self.route.draft.action = Action::Redirect(Redirect {
                status: status.unwrap_or(302),
                scheme: scheme.map(|scheme| self.placed("redirect.scheme", scheme)),
                host: host.map(|host| self.placed("redirect.host", host)),
                port: port.map(|port| port.value as u16),
                path,
                keeps_query: query.is_none_or(|query| query.value),
                relative: relative.is_some_and(|relative| relative.value),
            });
        });
    }

    /// `path` or `path_prefix`.
    fn path_edit(&mut self, table: &mut TableReader<'_, '_>, field: &'static str) -> PathEdit {
        let given = table.places(&["path", "path_prefix"]);
        let mut edit = PathEdit::Keep;
        if let Some(path) = table.parsed("path", "a path like \"/v2\"", anything) {
            edit = PathEdit::Replace(self.placed(field, path));
        }
        if let Some(path) = table.parsed("path_prefix", "a path like \"/v2\"", anything) {
            edit = PathEdit::ReplacePrefix(self.placed(field, path));
        }
        if let [(_, first), (_, second), ..] = given.as_slice() {
            let finding = Diagnostic::error(*second, "path and path_prefix exclude each other");
            table.diagnostics().push(finding.related(*first, "first here").help("keep one of them"));
        }
        edit
    }

    fn respond(&mut self, table: &mut TableReader<'_, '_>) {
        table.table("respond", "respond", "respond = { status = 200, body = \"ok\" }", |inner| {
            inner.require("status", "200");
            let final_status = "(1xx are not final: RFC 9110, section 15.2)";
            let status = inner.integer("status", 200, 599, final_status);
            let content_type = inner.parsed("content_type", "a media type like \"text/plain\"", anything);
            let body = inner.parsed("body", "text", anything);
            let file = inner.string("file", "the absolute path of a file");
            if let Some((body, file)) = body.as_ref().zip(file.as_ref()) {
                let finding = Diagnostic::error(file.span, "body and file exclude each other");
                inner.diagnostics().push(finding.related(body.span, "body here").help("keep one of them"));
            }
            let place = body.as_ref().filter(|body| !body.value.is_empty()).map(|body| body.span);
            if let (Some(status), Some(place)) = (&status, place.or(file.as_ref().map(|file| file.span)))
                && let Some((_, section)) = BODILESS.iter().find(|(bodiless, _)| *bodiless == status.value)
            {
                let message =
                    format!("a response {} has no body (RFC 9110, section {section})", status.value);
                inner.diagnostics().push(
                    Diagnostic::error(place, message)
                        .related(status.span, "status here")
                        .help("remove the body, or use another status, such as 200"),
                );
            }
            let content_type = match content_type {
                Some(content_type) => self.placed("respond.content_type", content_type),
                None => "text/plain; charset=utf-8".into(),
            };
            let body = body.map(|body| {
                self.place("respond.body", body.value.len().to_string(), body.span);
                body.value.into_boxed_bytes()
            });
            let status = status.map_or(200, |status| status.value as u16);
            self.route.body_file = file;
            let body = body.unwrap_or_default();
            self.route.draft.action = Action::Respond(Respond { status, content_type, body });
        });
    }

    fn mirror(&mut self, table: &mut TableReader<'_, '_>) {
        table.table("mirror", "mirror", "mirror = { pool = \"...\", share = \"1%\" }", |inner| {
            inner.require("pool", "\"...\"");
            let pool = inner.string("pool", "the name of a pool");
            let share =
                inner.parsed("share", "a share from \"0.01%\" to \"100%\"", |text| match units::parse_share(
                    text,
                )? {
                    0 => Err(format!("\"{text}\" copies nothing")),
                    share => Ok(share),
                });
            let share = share.map_or(ALL_OF_TEN_THOUSAND, |share| share.value);
            self.route.mirror = pool.map(|pool| (pool, share));
        });
    }

    fn edits(&mut self, table: &mut TableReader<'_, '_>) {
        for (field, of_request) in [("request_headers", true), ("response_headers", false)] {
            table.table(field, field, &format!("{field} = {{ set = {{ X-Name = \"value\" }} }}"), |inner| {
                let place = inner.span();
                let removed =
                    inner.parsed_one_or_many("remove", "the name of a field, or an array of names", anything);
                let mut edits: Vec<FieldEdit> =
                    removed.into_iter().map(|name| FieldEdit::Remove(self.placed("header", name))).collect();
                let kinds: [(&str, OfField); 2] = [("set", FieldEdit::Set), ("add", FieldEdit::Add)];
                for (name, kind) in kinds {
                    inner.table(name, name, &format!("{name} = {{ X-Name = \"value\" }}"), |fields| {
                        for (name, value) in fields.rest() {
                            let text = fields.string_of(&name.value, value, "a string");
                            self.place("header", &name.value, name.span);
                            let Some(text) = text else { continue };
                            self.place("header value", &text.value, text.span);
                            edits.push(kind(name.value.into(), text.value.into()));
                        }
                    });
                }
                self.place("header edits", edits.len().to_string(), place);
                let to = &mut self.route.draft;
                if of_request { to.request.fields = edits } else { to.response.fields = edits }
            });
        }
        table.table("rewrite", "rewrite", "rewrite = { path_prefix = \"/v2\" }", |inner| {
            self.route.draft.request.path = self.path_edit(inner, "request.path");
            if let Some(host) = inner.string("host", "a host, or \"backend\"") {
                self.place("request.host", &host.value, host.span);
                self.route.draft.request.host = match host.value.as_str() {
                    "backend" => HostEdit::Backend,
                    name => HostEdit::Replace(name.to_ascii_lowercase().into()),
                };
            }
        });
    }

    fn times(&mut self, table: &mut TableReader<'_, '_>) {
        table.table(
            "timeouts",
            "timeouts of the route",
            "timeouts = { response_header = \"5m\" }",
            |inner| {
                let mut read = |name| time(inner, name).map(|time| time.value.as_millis() as u32);
                self.route.draft.times = spec::RouteTimes {
                    response_header_ms: read("response_header"),
                    response_idle_ms: read("response_idle"),
                    tunnel_ms: read("tunnel"),
                };
            },
        );
    }
}
