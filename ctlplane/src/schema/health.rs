//! How are a pool's backends probed? `[pool.health_check]`.

use std::net::IpAddr;
use std::time::Duration;

use toml::de::DeValue;
use weir_abi::http::is_token;

use super::parse_ip;
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::health::check::{Exec, Http, Kind, Through, Tls, Udp};
use crate::reader::TableReader;
use crate::units;

/// Most texts of an array.
const MAX_LIST: usize = 64;
/// Longest text that is sent, expected or run.
const MAX_TEXT_BYTES: usize = 4_096;
/// Largest payload or answer of a datagram.
const MAX_DATAGRAM_BYTES: usize = 1_400;

/// `[pool.health_check]`.
#[derive(Debug)]
pub struct HealthCheck {
    /// Place of the section.
    pub span: Span,
    /// `type` with what is for it alone.
    pub kind: Option<Located<Kind>>,
    /// `interval`.
    pub interval: Option<Located<Duration>>,
    /// `jitter`, percent.
    pub jitter: Option<Located<u8>>,
    /// `fast_interval`.
    pub fast_interval: Option<Located<Duration>>,
    /// `timeout`.
    pub timeout: Option<Located<Duration>>,
    /// `rise`.
    pub rise: Option<Located<u32>>,
    /// `fall`.
    pub fall: Option<Located<u32>>,
    /// `port`.
    pub port: Option<Located<u32>>,
    /// `address`.
    pub address: Option<Located<IpAddr>>,
    /// `source`.
    pub source: Option<Located<IpAddr>>,
    /// `initial`: true = down.
    pub initial: Option<Located<bool>>,
    /// `through`.
    pub through: Option<Located<Through>>,
    /// Places of files that are named, with the words for them.
    pub files: Vec<(&'static str, Located<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Tcp,
    Http,
    Https,
    Udp,
    Exec,
}

const TYPES: &[(&str, Type)] = &[
    ("tcp", Type::Tcp),
    ("http", Type::Http),
    ("https", Type::Https),
    ("udp", Type::Udp),
    ("exec", Type::Exec),
];
const OF_HTTP: [&str; 6] = ["method", "path", "host", "expect_status", "expect_headers", "expect_body"];
const OF_HTTPS: [&str; 5] = ["verify", "ca_file", "server_name", "client_certificate", "client_key"];
const OF_UDP: [&str; 2] = ["payload", "expect"];
const OF_EXEC: [&str; 1] = ["command"];
const TIME: &str = "a duration from \"100ms\" to \"1h\": a whole number and ms, s, m or h";
const EXAMPLE: &str = "health_check = { type = \"tcp\" }, or [pool.health_check]";

/// A duration that a probe's clock can keep.
fn time(table: &mut TableReader<'_, '_>, name: &'static str) -> Option<Located<Duration>> {
    table.parsed(name, TIME, |text| {
        let duration = units::parse_duration(text)?;
        let inside = (100..=3_600_000).contains(&duration.as_millis());
        if inside { Ok(duration) } else { Err(format!("\"{text}\" is out of range")) }
    })
}

/// `[pool.health_check]`; `None` where there is none.
pub(super) fn read(table: &mut TableReader<'_, '_>) -> Option<HealthCheck> {
    let mut check = None;
    table.table("health_check", "pool.health_check", EXAMPLE, |inner| check = Some(read_check(inner)));
    check
}

/// `panic_threshold` of a pool; `None` inside is `"off"`.
pub(super) fn read_panic_threshold(table: &mut TableReader<'_, '_>) -> Option<Located<Option<u8>>> {
    table.parsed("panic_threshold", "a share from \"0%\" to \"100%\" in whole percent, or \"off\"", |text| {
        match text {
            "off" => Ok(None),
            text => parse_percent(text).map(Some),
        }
    })
}

/// `slow_start` of a pool; 0 is `"off"`.
pub(super) fn read_slow_start(table: &mut TableReader<'_, '_>) -> Option<Located<Duration>> {
    table.parsed("slow_start", "a duration from \"1s\" to \"1h\", or \"off\"", |text| match text {
        "off" => Ok(Duration::ZERO),
        text => match units::parse_duration(text)? {
            time if (1_000..=3_600_000).contains(&time.as_millis()) => Ok(time),
            _ => Err(format!("\"{text}\" is out of range")),
        },
    })
}

fn parse_percent(text: &str) -> Result<u8, String> {
    match units::parse_share(text)? {
        share if share % 100 == 0 => Ok((share / 100) as u8),
        _ => Err(format!("\"{text}\" is not a whole number of percent")),
    }
}

fn read_check(table: &mut TableReader<'_, '_>) -> HealthCheck {
    table.require("type", "\"tcp\"");
    let kind = table.word("type", TYPES, &["grpc"]);
    let mut files = Vec::new();
    // only what the type has is read: the rest would be guesswork beside an unknown type
    let kind = kind.and_then(|kind| {
        refuse_others(table, kind.value);
        let read = match kind.value {
            Type::Tcp => Some(Kind::Tcp),
            Type::Http => Some(Kind::Http(read_http(table))),
            Type::Https => Some(Kind::Https(read_http(table), read_tls(table, &mut files))),
            Type::Udp => read_udp(table).map(Kind::Udp),
            Type::Exec => read_exec(table).map(Kind::Exec),
        };
        read.map(|read| Located::new(read, kind.span))
    });
    if kind.is_none() {
        for name in OF_HTTP.iter().chain(&OF_HTTPS).chain(&OF_UDP).chain(&OF_EXEC) {
            table.take(name);
        }
    }
    HealthCheck {
        span: table.span(),
        kind,
        interval: time(table, "interval"),
        jitter: table.parsed("jitter", "a share from \"0%\" to \"100%\" in whole percent", parse_percent),
        fast_interval: time(table, "fast_interval"),
        timeout: time(table, "timeout"),
        rise: table.integer("rise", 1, 100, "successes in a row"),
        fall: table.integer("fall", 1, 100, "failures in a row"),
        port: table.integer("port", 1, 65_535, ""),
        address: table.parsed("address", "an IP address", parse_ip),
        source: table.parsed("source", "an IP address", parse_ip),
        initial: table.word("initial", &[("up", false), ("down", true)], &[]),
        through: table.word(
            "through",
            &[("auto", Through::Auto), ("tunnel", Through::Tunnel), ("direct", Through::Direct)],
            &[],
        ),
        files,
    }
}

/// Fields of other types are mistakes, not to be passed over.
fn refuse_others(table: &mut TableReader<'_, '_>, kind: Type) {
    let word = TYPES.iter().find(|(_, each)| *each == kind).map_or("", |(word, _)| word);
    let of = [
        (&OF_HTTP[..], &[Type::Http, Type::Https][..], "http\" or \"https"),
        (&OF_HTTPS[..], &[Type::Https][..], "https"),
        (&OF_UDP[..], &[Type::Udp][..], "udp"),
        (&OF_EXEC[..], &[Type::Exec][..], "exec"),
    ];
    for (names, kinds, owner) in of.into_iter().filter(|(_, kinds, _)| !kinds.contains(&kind)) {
        debug_assert!(!kinds.is_empty(), "every field is of a type");
        for name in names {
            let message = format!("{name} is not for a check of type \"{word}\"");
            table.misplaced(name, &message, &format!("remove it, or use type = \"{owner}\""));
        }
    }
}

fn visible(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn read_http(table: &mut TableReader<'_, '_>) -> Http {
    let method = table.parsed("method", "a method like \"GET\", but not CONNECT", |text| {
        let fits = is_token(text.as_bytes()) && text.len() <= 32 && text != "CONNECT";
        if fits { Ok(text.to_owned()) } else { Err(format!("\"{text}\" cannot be the method of a check")) }
    });
    if let Some(method) = &method {
        table.diagnostics().extend(super::route::lower_case_method(&method.value, method.span));
    }
    let path = table.parsed(
        "path",
        "a path that begins with / and has no blanks, like \"/health?full=1\"",
        |text| {
            if text.starts_with('/') && visible(text) {
                Ok(text.to_owned())
            } else {
                Err(format!("\"{text}\" is not a path"))
            }
        },
    );
    let host = table.parsed(
        "host",
        "a host without blanks, with a port if need be: \"app.example.com:8080\"",
        |text| {
            if visible(text) { Ok(text.to_owned()) } else { Err(format!("\"{text}\" is not a host")) }
        },
    );
    let statuses = read_statuses(table);
    let headers = read_headers(table);
    let body = table.parsed("expect_body", "the text that the body contains", |text| {
        let fits = (1..=MAX_TEXT_BYTES).contains(&text.len());
        if fits {
            Ok(text.to_owned())
        } else {
            Err(format!("{} bytes are not 1 to {MAX_TEXT_BYTES}", text.len()))
        }
    });
    Http {
        method: method.map_or_else(|| "GET".to_owned(), |method| method.value),
        path: path.map_or_else(|| "/".to_owned(), |path| path.value),
        host: host.map(|host| host.value),
        statuses: if statuses.is_empty() { vec![(200, 399)] } else { statuses },
        headers,
        body: body.map_or_else(String::new, |body| body.value),
    }
}

/// A status, a range as text, or an array of them.
fn read_statuses(table: &mut TableReader<'_, '_>) -> Vec<(u16, u16)> {
    const EXPECTED: &str = "200, \"200-299\", or an array of such";
    let Some((_, value)) = table.take("expect_status") else { return Vec::new() };
    let elements: Vec<_> = match value.get_ref() {
        DeValue::Array(array) => array.iter().collect(),
        _ => vec![value],
    };
    let mut list = Vec::new();
    if elements.is_empty() || elements.len() > MAX_LIST {
        let message = format!("expect_status: {} elements", elements.len());
        let finding = Diagnostic::error(value.span().into(), message);
        table.diagnostics().push(finding.help(format!("write 1 to {MAX_LIST} of them: {EXPECTED}")));
    }
    for element in elements {
        let range = match element.get_ref() {
            DeValue::Integer(number) if number.radix() == 10 => {
                number.as_str().parse().ok().map(|status: u16| (status, status))
            }
            DeValue::String(text) => units::parse_port_range(text).ok(),
            _ => None,
        };
        match range.filter(|(first, last)| (200..=599).contains(first) && (200..=599).contains(last)) {
            Some(range) => list.push(range),
            None => {
                let finding =
                    Diagnostic::error(element.span().into(), "expect_status: no status from 200 to 599");
                table.diagnostics().push(finding.help(format!("write {EXPECTED}")));
            }
        }
    }
    list
}

fn read_headers(table: &mut TableReader<'_, '_>) -> Vec<(String, String)> {
    let mut list = Vec::new();
    let example = "expect_headers = { x-role = \"primary\" }";
    table.table("expect_headers", "expect_headers", example, |inner| {
        for (name, value) in inner.rest() {
            if !is_token(name.value.as_bytes()) || list.len() >= MAX_LIST {
                let finding = Diagnostic::error(name.span, format!("\"{}\" cannot be expected", name.value));
                inner.diagnostics().push(finding.help(format!(
                    "name at most {MAX_LIST} headers; their names have letters, digits and !#$%&'*+-.^_`|~"
                )));
                continue;
            }
            let text = inner.string_of("a header's text", value, "text that its value contains (\"\": any)");
            list.extend(text.map(|text| (name.value.to_ascii_lowercase(), text.value)));
        }
    });
    list
}

fn read_tls(table: &mut TableReader<'_, '_>, files: &mut Vec<(&'static str, Located<String>)>) -> Tls {
    let mut file = |table: &mut TableReader<'_, '_>, name: &'static str| {
        let path = table.parsed(name, "an absolute path", |text| {
            if text.starts_with('/') {
                Ok(text.to_owned())
            } else {
                Err(format!("\"{text}\" is not absolute"))
            }
        })?;
        files.push((name, path.clone()));
        Some(path)
    };
    let verify = table.boolean("verify");
    let ca_file = file(table, "ca_file");
    let certificate = file(table, "client_certificate");
    let key = file(table, "client_key");
    let server_name = table.parsed(
        "server_name",
        "at most 253 letters, digits, '-' and '.', like \"app.example.com\"",
        |text| {
            let fits = (1..=253).contains(&text.len())
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b':'));
            if fits { Ok(text.to_owned()) } else { Err(format!("\"{text}\" is not a host name")) }
        },
    );
    if let (Some(lonely), None) | (None, Some(lonely)) = (&certificate, &key) {
        let finding = Diagnostic::error(lonely.span, "client_certificate and client_key belong together");
        table.diagnostics().push(finding.help("set both, or none of them"));
    }
    if let (Some(verify), Some(ca_file)) = (verify.as_ref().filter(|verify| !verify.value), &ca_file) {
        let finding = Diagnostic::error(ca_file.span, "ca_file has no use where verify = false");
        table.diagnostics().push(finding.related(verify.span, "here").help("remove one of them"));
    }
    Tls {
        verify: verify.is_none_or(|verify| verify.value),
        ca_file: ca_file.map(|file| file.value),
        server_name: server_name.map(|name| name.value),
        client: certificate.zip(key).map(|(certificate, key)| (certificate.value, key.value)),
    }
}

fn read_udp(table: &mut TableReader<'_, '_>) -> Option<Udp> {
    const EXPECTED: &str = "text, or bytes as \"hex:0a0b\"; 1400 bytes at most";
    table.require("payload", "\"ping\"");
    let payload = table.parsed("payload", EXPECTED, parse_bytes);
    let expect = table.parsed("expect", EXPECTED, parse_bytes);
    Some(Udp { payload: payload?.value, expect: expect.map_or_else(Vec::new, |expect| expect.value) })
}

fn parse_bytes(text: &str) -> Result<Vec<u8>, String> {
    let bytes = match text.strip_prefix("hex:") {
        None => text.as_bytes().to_vec(),
        Some(digits) => {
            let wrong = || format!("\"{digits}\" is not hexadecimal, two digits a byte");
            if digits.len() % 2 != 0 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap_or(""), 16);
            digits.as_bytes().chunks(2).map(byte).collect::<Result<_, _>>().map_err(|_| wrong())?
        }
    };
    if bytes.len() > MAX_DATAGRAM_BYTES {
        Err(format!("{} bytes are too many", bytes.len()))
    } else {
        Ok(bytes)
    }
}

fn read_exec(table: &mut TableReader<'_, '_>) -> Option<Exec> {
    table.require("command", "[\"/usr/local/bin/check\", \"--fast\"]");
    let place = table.places(&["command"]).first().map(|(_, place)| *place)?;
    let command = table.parsed_list("command", "an argument", |text| {
        let fits = text.len() <= MAX_TEXT_BYTES && !text.contains('\0');
        if fits { Ok(text.to_owned()) } else { Err("an argument is too long, or holds a NUL".to_owned()) }
    });
    let is_program = command.first().is_some_and(|program| program.value.starts_with('/'));
    if !is_program || command.len() > MAX_LIST {
        let span = command.first().map_or(place, |program| program.span);
        let finding = Diagnostic::error(span, "command does not begin with the absolute path of a program");
        let help = format!("write [\"/path/to/program\", \"argument\"], at most {MAX_LIST} of them");
        table.diagnostics().push(finding.help(help));
        return None;
    }
    Some(Exec { command: command.into_iter().map(|argument| argument.value).collect() })
}
