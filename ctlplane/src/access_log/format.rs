//! What does a line of the access log look like? Fields by name, in a format string or as JSON, and nothing that a client sends can
//! make a second line of one.

use std::fmt::Write as _;
use std::net::IpAddr;

use weir_abi::events::{Exchange, NEVER, NO_ROUTE, NONE};
use weir_http::cause::Cause;

use super::escape;
use super::names::Names;
use crate::diagnostic::closest;

/// The common log format, without identity and user, which nobody knows.
const CLF: &str = r#"%{client} - - [%{time_clf}] "%{request}" %{status} %{bytes_out}"#;
/// The same with what the client says of itself.
const COMBINED: &str =
    r#"%{client} - - [%{time_clf}] "%{request}" %{status} %{bytes_out} "%{referer}" "%{user_agent}""#;

macro_rules! fields {
    ($($(#[$doc:meta])* $field:ident $name:literal;)+) => {
        /// Something of an exchange that a line can tell.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $($(#[$doc])* $field),+ }

        impl Field {
            /// All of them, in the order of a JSON line.
            pub const ALL: &'static [Self] = &[$(Self::$field),+];

            /// Its name, in `%{name}` and in JSON.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$field => $name),+ }
            }
        }
    };
}

fields! {
    /// When it ended: RFC 3339, UTC, microseconds.
    Time "time";
    /// The same as seconds since 1970 with six decimals.
    TimeUnix "time_unix";
    /// The same as the common log format has it: `23/Nov/2026:16:05:09 +0000`.
    TimeClf "time_clf";
    /// Name of the listener.
    Listener "listener";
    /// Name of the route.
    Route "route";
    /// Name of the pool.
    Pool "pool";
    /// Name of the backend, without its pool.
    Backend "backend";
    /// The client's address.
    Client "client";
    /// The client's port.
    ClientPort "client_port";
    /// The request line: method, target, version.
    Request "request";
    /// The method.
    Method "method";
    /// The target, query included.
    Target "target";
    /// The version: `HTTP/1.1`.
    Version "version";
    /// The host as asked for, with its port.
    Host "host";
    /// The status that the client got; `000`: none.
    Status "status";
    /// Why Weir answered by itself or ended the exchange.
    Cause "cause";
    /// Bytes of the request's body.
    BytesIn "bytes_in";
    /// Bytes of the response's body.
    BytesOut "bytes_out";
    /// `User-Agent`.
    UserAgent "user_agent";
    /// `Referer`.
    Referer "referer";
    /// The request's id.
    RequestId "request_id";
    /// Attempts made; 0: no backend was asked.
    Attempts "attempts";
    /// Whether an idle connection to the backend was used.
    Reused "reused";
    /// Microseconds from the moment at which the worker saw the first byte of the request's head to the end of it; 0 where it came as one.
    HeadUs "head_us";
    /// Microseconds in the queue.
    QueueUs "queue_us";
    /// Microseconds until the last attempt's connection was there.
    ConnectUs "connect_us";
    /// Microseconds from passing the request on to the response's head.
    ResponseUs "response_us";
    /// Microseconds from the request's first byte to the response's end.
    TotalUs "total_us";
    /// The same in seconds, with six decimals.
    Duration "duration";
    /// The worker that had the connection.
    Worker "worker";
    /// The generation that the worker ran.
    Generation "generation";
}

/// What a field has to say.
enum Value<'a> {
    Absent,
    /// From the client: anything.
    Client(&'a [u8]),
    /// Several such words, with spaces between.
    Words([&'a [u8]; 3]),
    /// From the configuration or from here.
    Plain(&'a str),
    Made(String),
    Number(u64),
    /// A number in JSON, too.
    Decimal(String),
    /// `000` where there is none.
    Status(u16),
    Address(IpAddr),
    Truth(bool),
}

/// How lines are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// One object of all fields that there are.
    Json,
    /// Text and fields.
    Pieces(Vec<Piece>),
}

/// A piece of a format string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// A field.
    Field(Field),
}

/// What is wrong with a format string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FormatError {
    /// Where, in bytes from its beginning.
    pub start: usize,
    /// How many bytes.
    pub length: usize,
    /// What.
    pub message: String,
    /// What to do.
    pub help: String,
}

impl Format {
    /// `clf`, `combined`, `json`, or a format string with `%{field}` in it.
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        match text {
            "json" => Ok(Self::Json),
            "clf" | "common" => pieces(CLF).map(Self::Pieces),
            "combined" => pieces(COMBINED).map(Self::Pieces),
            _ if text.contains('%') => pieces(text).map(Self::Pieces),
            _ => Err(FormatError {
                start: 0,
                length: text.len(),
                message: format!("\"{text}\" is neither a format's name nor has it a field in it"),
                help: "write \"clf\", \"combined\", \"json\", or a format string like \"%{client} %{request} %{status}\""
                    .to_owned(),
            }),
        }
    }

    /// Appends the line of an exchange, its end included.
    pub fn write(&self, exchange: &Exchange<'_>, names: &Names, line: &mut Vec<u8>) {
        match self {
            Self::Json => write_json(exchange, names, line),
            Self::Pieces(pieces) => {
                for piece in pieces {
                    match piece {
                        Piece::Text(text) => line.extend_from_slice(text.as_bytes()),
                        Piece::Field(field) => write_text(&value(*field, exchange, names), line),
                    }
                }
            }
        }
        line.push(b'\n');
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, FormatError> {
    if let Some((start, control)) = text.char_indices().find(|(_, character)| character.is_control()) {
        return Err(FormatError {
            start,
            length: control.len_utf8(),
            message: "a control character in a format would break lines".to_owned(),
            help: "remove it; each line ends by itself".to_owned(),
        });
    }
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let start = text.len() - rest.len() + at;
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        if let Some(after) = from.strip_prefix("%%") {
            plain.push('%');
            rest = after;
            continue;
        }
        let Some((name, after)) = from.strip_prefix("%{").and_then(|inner| inner.split_once('}')) else {
            return Err(FormatError {
                start,
                length: from.chars().nth(1).map_or(1, |next| 1 + next.len_utf8()),
                message: "'%' begins no field here".to_owned(),
                help: "write %{field} for a field, %% for a percent sign".to_owned(),
            });
        };
        let Some(field) = Field::ALL.iter().find(|field| field.name() == name) else {
            let names: Vec<&str> = Field::ALL.iter().map(|field| field.name()).collect();
            let help = match closest(name, names.iter().copied()) {
                Some(near) => format!("did you mean %{{{near}}}?"),
                None => format!("the fields are {}", names.join(", ")),
            };
            let message = format!("there is no field \"{name}\"");
            return Err(FormatError { start, length: name.len() + 3, message, help });
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Field(*field));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

fn text(bytes: &[u8]) -> Value<'_> {
    if bytes.is_empty() { Value::Absent } else { Value::Client(bytes) }
}

fn time(us: u32) -> Value<'static> {
    if us == NEVER { Value::Absent } else { Value::Number(u64::from(us)) }
}

fn named<'a>(name: Option<&'a str>, index: u64) -> Value<'a> {
    name.map_or_else(|| Value::Made(index.to_string()), Value::Plain)
}

fn version(exchange: &Exchange<'_>) -> Option<&'static str> {
    match exchange.version {
        10 => Some("HTTP/1.0"),
        11 => Some("HTTP/1.1"),
        _ => None,
    }
}

fn value<'a>(field: Field, exchange: &'a Exchange<'_>, names: &'a Names) -> Value<'a> {
    let Exchange { stamp, times, texts, .. } = exchange;
    match field {
        Field::Time => Value::Made(format_time(stamp.unix_us)),
        Field::TimeUnix => Value::Decimal(seconds(stamp.unix_us)),
        Field::TimeClf => Value::Made(format_clf_time(stamp.unix_us)),
        Field::Listener => named(names.listener(exchange.listener), u64::from(exchange.listener)),
        Field::Route if exchange.route == NO_ROUTE => Value::Absent,
        Field::Route => named(names.route(exchange.listener, exchange.route), u64::from(exchange.route)),
        Field::Pool if exchange.pool == NONE => Value::Absent,
        Field::Pool => named(names.pool(exchange.pool), u64::from(exchange.pool)),
        Field::Backend if exchange.backend == NONE => Value::Absent,
        Field::Backend => {
            named(names.backend(exchange.backend).map(|(_, name)| name), u64::from(exchange.backend))
        }
        Field::Client => Value::Address(exchange.client),
        Field::ClientPort => Value::Number(u64::from(exchange.client_port)),
        Field::Request if texts.method.is_empty() => Value::Absent,
        Field::Request => {
            Value::Words([texts.method, texts.target, version(exchange).unwrap_or_default().as_bytes()])
        }
        Field::Method => text(texts.method),
        Field::Target => text(texts.target),
        Field::Version => version(exchange).map_or(Value::Absent, Value::Plain),
        Field::Host => text(texts.host),
        Field::Status => Value::Status(exchange.status),
        Field::Cause if exchange.cause == 0 => Value::Absent,
        Field::Cause => named(Cause::from_u8(exchange.cause).map(Cause::code), u64::from(exchange.cause)),
        Field::BytesIn => Value::Number(exchange.bytes_in),
        Field::BytesOut => Value::Number(exchange.bytes_out),
        Field::UserAgent => text(texts.user_agent),
        Field::Referer => text(texts.referer),
        Field::RequestId => text(texts.request_id),
        Field::Attempts => Value::Number(u64::from(exchange.attempts)),
        Field::Reused => Value::Truth(exchange.is_reused),
        Field::HeadUs => time(times.head_us),
        Field::QueueUs => time(times.queue_us),
        Field::ConnectUs => time(times.connect_us),
        Field::ResponseUs => time(times.response_us),
        Field::TotalUs => time(times.total_us),
        Field::Duration if times.total_us == NEVER => Value::Absent,
        Field::Duration => Value::Decimal(seconds(u64::from(times.total_us))),
        Field::Worker => Value::Number(u64::from(stamp.worker)),
        Field::Generation => Value::Number(stamp.generation),
    }
}

fn write_text(value: &Value<'_>, line: &mut Vec<u8>) {
    match value {
        Value::Absent => line.push(b'-'),
        Value::Client(bytes) => escape::text(bytes, line),
        Value::Words(words) => {
            for (at, word) in words.iter().filter(|word| !word.is_empty()).enumerate() {
                if at > 0 {
                    line.push(b' ');
                }
                escape::text(word, line);
            }
        }
        Value::Plain(plain) => escape::text(plain.as_bytes(), line),
        Value::Made(made) | Value::Decimal(made) => line.extend_from_slice(made.as_bytes()),
        Value::Number(number) => push(line, format_args!("{number}")),
        Value::Status(status) => push(line, format_args!("{status:03}")),
        Value::Address(address) => push(line, format_args!("{address}")),
        Value::Truth(truth) => push(line, format_args!("{truth}")),
    }
}

fn push(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    use std::io::Write as _;
    // writing to memory does not fail
    let _ = line.write_fmt(text);
}

fn write_json(exchange: &Exchange<'_>, names: &Names, line: &mut Vec<u8>) {
    let mut separator = b'{';
    // what can be had from the others is left out
    let told = Field::ALL.iter().copied().filter(|field| {
        !matches!(field, Field::TimeUnix | Field::TimeClf | Field::Request | Field::Duration)
    });
    for field in told {
        let value = value(field, exchange, names);
        if matches!(value, Value::Absent | Value::Status(0)) {
            continue;
        }
        line.push(separator);
        separator = b',';
        push(line, format_args!("\"{}\":", field.name()));
        match &value {
            Value::Client(bytes) => escape::json(bytes, line),
            Value::Plain(plain) => escape::json(plain.as_bytes(), line),
            Value::Made(made) => escape::json(made.as_bytes(), line),
            Value::Address(address) => push(line, format_args!("\"{address}\"")),
            Value::Status(status) => push(line, format_args!("{status}")),
            // words and absence have no place in JSON: see above
            other => write_text(other, line),
        }
    }
    if exchange.cut != 0 {
        line.extend_from_slice(b",\"cut\":[");
        let cut = ["method", "target", "host", "user_agent", "referer", "request_id"];
        let cut = cut.iter().enumerate().filter(|(at, _)| exchange.cut & 1 << at != 0);
        let mut text = String::new();
        for (at, (_, name)) in cut.enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(text, "{comma}\"{name}\"");
        }
        line.extend_from_slice(text.as_bytes());
        line.push(b']');
    }
    line.push(b'}');
}

fn seconds(us: u64) -> String {
    format!("{}.{:06}", us / 1_000_000, us % 1_000_000)
}

/// A moment of the Gregorian calendar, UTC.
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    fn of(unix_s: u64) -> Self {
        // days since 0000-03-01, in eras of 400 years: Howard Hinnant, "chrono-compatible low-level date algorithms"
        let days = unix_s / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let of_day = unix_s % 86_400;
        Self { year, month, day, hour: of_day / 3_600, minute: of_day / 60 % 60, second: of_day % 60 }
    }
}

pub(crate) fn format_time(unix_us: u64) -> String {
    let Civil { year, month, day, hour, minute, second } = Civil::of(unix_us / 1_000_000);
    let us = unix_us % 1_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{us:06}Z")
}

fn format_clf_time(unix_us: u64) -> String {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let Civil { year, month, day, hour, minute, second } = Civil::of(unix_us / 1_000_000);
    let month = MONTHS.get(month as usize - 1).copied().unwrap_or("???");
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
