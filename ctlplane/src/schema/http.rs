//! What does the file say about HTTP? `[listener.http]` and `[access_log]`.

use std::net::IpAddr;

use toml::de::DeValue;
use weir_abi::http::{
    ALL_OF_TEN_THOUSAND, MAX_BURST, MAX_COLLECTED, MAX_HEADER_BYTES, MAX_HEADERS, MAX_MESSAGE_BUFFER,
    MAX_MILLIS_PER_SECOND, MIN_HEADER_BYTES, MIN_URI_BYTES, is_token,
};
use weir_l7::http::rules::{HttpListener, RateKey, RateLimit, WhenFull};

use super::proxy::size;
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::reader::TableReader;
use crate::units;

/// `[listener.http]`.
#[derive(Debug, Default)]
pub struct Http {
    /// Place of the section, where it is there.
    pub span: Option<Span>,
    /// Limits, what backends are told, and switches; the defaults where the file says nothing.
    pub rules: HttpListener,
    /// `limits.header` and `limits.uri`, where they are there.
    pub sizes: [Option<Located<u64>>; 2],
    /// `limits.client_body_buffer` and `limits.body`, where they are there.
    pub bodies: [Option<Located<u64>>; 2],
    /// `trusted`.
    pub trusted: Vec<Located<(IpAddr, u8)>>,
    /// `error_page`: statuses and files.
    pub pages: Vec<(u16, Located<String>)>,
    /// `[[listener.http.rate_limit]]`.
    pub rate_limits: Vec<HttpRateLimit>,
    /// `access_log`, in hundredths of a percent.
    pub access_log: Option<Located<u16>>,
}

/// `[[listener.http.rate_limit]]`.
#[derive(Debug)]
pub struct HttpRateLimit {
    /// `name`.
    pub name: Option<Located<String>>,
    /// The limit, where all of it was understood.
    pub limit: Option<RateLimit>,
    /// `scope`: true = every request of the listener.
    pub for_all: bool,
    /// Place of the section.
    pub span: Span,
}

/// `[access_log]`.
#[derive(Debug)]
pub struct AccessLog {
    /// Place of the section.
    pub span: Span,
    /// `path`.
    pub path: Option<Located<String>>,
    /// `format`.
    pub format: Option<Located<String>>,
}

const HEADER_EXPECTED: &str = "a size from \"1KiB\" to \"64KiB\"";
const BUFFER_EXPECTED: &str = "a size of at most \"64KiB\", or \"off\"";
const TOKEN_EXPECTED: &str = "a name of at most 63 letters, digits and !#$%&'*+-.^_`|~";
const KEY_EXPECTED: &str = "\"client\", \"all\" or \"header:NAME\", whose name has at most 63 letters, digits and !#$%&'*+-.^_`|~, as \"header:X-Api-Key\"";
const RATE_EXPECTED: &str =
    "a rate like \"100/s\", \"30/m\" or \"20/h\", of 1/1000 to 1,000,000,000 per second";

/// `"off"` is 0.
fn size_or_off(
    table: &mut TableReader<'_, '_>,
    name: &'static str,
    most: u64,
    expected: &str,
) -> Option<Located<u64>> {
    table.parsed(name, expected, |text| match text {
        "off" => Ok(0),
        text => match units::parse_size(text)? {
            bytes if bytes <= most => Ok(bytes),
            _ => Err(format!("\"{text}\" is out of range")),
        },
    })
}

/// A field's name, in lower case.
pub(super) fn lower_token(text: &str) -> Result<Box<str>, String> {
    let fits = is_token(text.as_bytes()) && text.len() <= 63;
    if fits { Ok(text.to_ascii_lowercase().into()) } else { Err(format!("\"{text}\" cannot be a name")) }
}

/// `[listener.http]`.
pub(super) fn read_listener(table: &mut TableReader<'_, '_>) -> Http {
    let mut http = Http::default();
    table.table("http", "listener.http", "http = { cause_header = true }, or [listener.http]", |inner| {
        http.span = Some(inner.span());
        read_limits(inner, &mut http);
        read_tell(inner, &mut http);
        let rules = &mut http.rules;
        let set = |to: &mut bool, given: Option<Located<bool>>| {
            if let Some(given) = given {
                *to = given.value;
            }
        };
        set(&mut rules.upgrade_allowed, inner.boolean("upgrade"));
        set(&mut rules.connect_allowed, inner.boolean("connect"));
        set(&mut rules.cause_header, inner.boolean("cause_header"));
        let full = [("refuse", WhenFull::Refuse), ("reset", WhenFull::Reset)];
        if let Some(when_full) = inner.word("when_full", &full, &[]) {
            rules.when_full = when_full.value;
        }
        http.access_log = read_sample(inner);
        let example = "error_page = { 503 = \"/etc/weir/503.html\" }";
        inner.table("error_page", "error_page", example, |pages| read_pages(pages, &mut http.pages));
        http.rate_limits = inner.tables("rate_limit", "listener.http.rate_limit", read_rate_limit);
    });
    http
}

fn read_limits(table: &mut TableReader<'_, '_>, http: &mut Http) {
    table.table("limits", "limits", "limits = { header = \"16KiB\" }", |inner| {
        let header = u64::from(MIN_HEADER_BYTES)..=u64::from(MAX_HEADER_BYTES);
        let header = size(inner, "header", header, HEADER_EXPECTED);
        let uri = size(
            inner,
            "uri",
            MIN_URI_BYTES.into()..=u64::from(u16::MAX),
            "a size from \"1KiB\" to \"63KiB\"",
        );
        let body = size_or_off(inner, "body", u64::MAX, "a size like \"10MiB\", or \"off\"");
        let collected = size_or_off(inner, "client_body_buffer", MAX_COLLECTED.into(), BUFFER_EXPECTED);
        let ahead = size(
            inner,
            "proxy_buffer",
            4 << 10..=MAX_MESSAGE_BUFFER.into(),
            "a size from \"4KiB\" to \"1GiB\"",
        );
        let headers = inner.integer("headers", 1, MAX_HEADERS.into(), "fields");
        let rate = inner.integer("body_min_rate", 0, u32::MAX, "bytes per second (0 = none)");
        let requests = inner.integer("requests", 0, u32::MAX, "requests of a connection (0 = unlimited)");
        let connections = inner.integer(
            "client_connections",
            0,
            u32::MAX,
            "connections of one client address per worker (0 = unlimited)",
        );
        let limits = &mut http.rules.limits;
        let number = |to: &mut u32, given: &Option<Located<u32>>| {
            if let Some(given) = given {
                *to = given.value;
            }
        };
        let small = |to: &mut u32, given: &Option<Located<u64>>| {
            if let Some(given) = given {
                *to = given.value as u32;
            }
        };
        small(&mut limits.header_bytes, &header);
        limits.uri_bytes = uri.as_ref().map_or(limits.uri_bytes, |uri| uri.value as u16);
        limits.body_bytes = body.as_ref().map_or(limits.body_bytes, |body| body.value);
        small(&mut limits.client_body_buffer, &collected);
        small(&mut limits.proxy_buffer, &ahead);
        limits.headers = headers.map_or(limits.headers, |headers| headers.value as u16);
        number(&mut limits.body_min_rate, &rate);
        number(&mut limits.requests, &requests);
        number(&mut limits.client_connections, &connections);
        http.sizes = [header, uri];
        http.bodies = [collected, body];
    });
}

fn read_tell(table: &mut TableReader<'_, '_>, http: &mut Http) {
    let tell = &mut http.rules.tell;
    if let Some(x_forwarded) = table.boolean("x_forwarded") {
        tell.x_forwarded = x_forwarded.value;
    }
    if let Some(forwarded) = table.boolean("forwarded") {
        tell.forwarded = forwarded.value;
    }
    let name = |table: &mut TableReader<'_, '_>, field: &'static str| {
        table.parsed(field, &format!("{TOKEN_EXPECTED}, or \"off\""), |text| match text {
            "off" => Ok(Box::default()),
            text => lower_token(text).map(|lower| if field == "via" { text.into() } else { lower }),
        })
    };
    if let Some(via) = name(table, "via") {
        tell.via = via.value;
    }
    if let Some(request_id) = name(table, "request_id") {
        tell.request_id = request_id.value;
    }
    http.trusted = table.parsed_list("trusted", "\"address/length\"", units::parse_prefixed);
}

/// `true`, `false` or `{ sample = "1%" }`.
fn read_sample(table: &mut TableReader<'_, '_>) -> Option<Located<u16>> {
    let (key, value) = table.take("access_log")?;
    let span: Span = value.span().into();
    match value.get_ref() {
        DeValue::Boolean(on) => Some(Located::new(if *on { ALL_OF_TEN_THOUSAND } else { 0 }, span)),
        DeValue::Table(inner) => {
            let mut reader = table.inside("access_log", inner, key);
            reader.require("sample", "\"1%\"");
            let sample =
                reader.parsed(
                    "sample",
                    "a share from \"0.01%\" to \"100%\"",
                    |text| match units::parse_share(text)? {
                        0 => Err(format!("\"{text}\" logs nothing")),
                        share => Ok(share),
                    },
                );
            reader.finish();
            sample.map(|sample| Located::new(sample.value, span))
        }
        _ => {
            let finding = Diagnostic::error(span, "access_log is neither true, false nor a table");
            table.diagnostics().push(finding.help("write true, false or { sample = \"1%\" }"));
            None
        }
    }
}

fn read_pages(table: &mut TableReader<'_, '_>, pages: &mut Vec<(u16, Located<String>)>) {
    for (status, value) in table.rest() {
        let file = table.string_of(&status.value, value, "the path of a file");
        match status.value.parse::<u16>() {
            Ok(number @ 400..=599) => pages.extend(file.map(|file| (number, file))),
            _ => {
                let message = format!("error_page {} is no status of an error", status.value);
                let finding = Diagnostic::error(status.span, message);
                table.diagnostics().push(finding.help("use 400 to 599, as in: 503 = \"/etc/weir/503.html\""));
            }
        }
    }
}

fn read_rate_limit(table: &mut TableReader<'_, '_>) -> HttpRateLimit {
    let name = super::read_name(table);
    table.require("key", "\"client\"");
    table.require("rate", "\"100/s\"");
    let key = table.parsed("key", KEY_EXPECTED, |text| match (text, text.strip_prefix("header:")) {
        ("client", _) => Ok(RateKey::Client),
        ("all", _) => Ok(RateKey::All),
        (_, Some(header)) => Ok(RateKey::Header(lower_token(header)?)),
        _ => Err(format!("\"{text}\" is no key")),
    });
    let rate = table.parsed("rate", RATE_EXPECTED, |text| match units::parse_rate(text)? {
        rate if rate <= MAX_MILLIS_PER_SECOND => Ok(rate),
        _ => Err(format!("\"{text}\" is out of range")),
    });
    let burst = table.integer("burst", 1, MAX_BURST, "requests at once");
    let scope = table.word("scope", &[("listener", true), ("route", false)], &[]);
    let limit = name.as_ref().zip(key).zip(rate).map(|((name, key), rate)| {
        let second = rate.value.div_ceil(1_000).clamp(1, MAX_BURST.into()) as u32;
        let burst = burst.map_or(second, |burst| burst.value);
        RateLimit { name: name.value.as_str().into(), key: key.value, millis_per_second: rate.value, burst }
    });
    HttpRateLimit { name, limit, for_all: scope.is_none_or(|scope| scope.value), span: table.span() }
}

/// `[access_log]`.
pub(super) fn read_access_log(table: &mut TableReader<'_, '_>) -> AccessLog {
    table.require("path", "\"/var/log/weir/access.log\"");
    AccessLog {
        span: table.span(),
        path: table.parsed("path", "the absolute path of a file, or \"-\" for standard output", |text| {
            let is_path = text.starts_with('/') && !text.ends_with('/') && !text.contains('\0');
            let fits = is_path || text == "-";
            if fits { Ok(text.to_owned()) } else { Err(format!("\"{text}\" is no absolute path of a file")) }
        }),
        format: table.string("format", "\"clf\", \"combined\", \"json\" or a format string"),
    }
}
