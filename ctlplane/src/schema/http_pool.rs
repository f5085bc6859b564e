//! What does the file say about a pool's use for HTTP? `[pool.http]`.

use std::time::Duration;

use toml::de::DeValue;
use weir_abi::http::{MAX_RETRY_STATUSES, is_token};
use weir_abi::proxy::{MAX_RETRIES, MAX_TIME_MS, MIN_TIME_MS};
use weir_l7::http::rules::{self, BreakerRules, HashBy, Retry, Sticky};

use super::http::lower_token;
use super::proxy::time;
use crate::diagnostic::{Diagnostic, Span};
use crate::reader::TableReader;
use crate::units;

/// `[pool.http]`.
#[derive(Debug, Default)]
pub struct HttpPool {
    /// Place of the section, where it is there.
    pub span: Option<Span>,
    /// The rules, without backups; the defaults where the file says nothing.
    pub rules: rules::HttpPool,
    /// Place of `hash`, where it is there.
    pub hash: Option<Span>,
    /// Place of `sticky`, where it is there.
    pub sticky: Option<Span>,
}

const HASH_EXPECTED: &str = "\"source\", \"path\", \"header:NAME\" or \"cookie:NAME\", whose name has at most 63 letters, digits and !#$%&'*+-.^_`|~";
const OR_OFF: &str = "a duration from \"100ms\" to \"24h\", or \"off\"";

fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// `"off"` is 0.
fn time_or_off(table: &mut TableReader<'_, '_>, name: &'static str) -> Option<u32> {
    let time = table.parsed(name, OR_OFF, |text| match text {
        "off" => Ok(0),
        text => match milliseconds(units::parse_duration(text)?) {
            ms if (MIN_TIME_MS..=MAX_TIME_MS).contains(&ms) => Ok(ms),
            _ => Err(format!("\"{text}\" is out of range")),
        },
    });
    time.map(|time| time.value)
}

/// A whole number of percent.
fn percent(table: &mut TableReader<'_, '_>, name: &'static str) -> Option<u8> {
    let share = table.parsed(name, "a share from \"0%\" to \"100%\" in whole percent", |text| {
        match units::parse_share(text)? {
            share if share % 100 == 0 => Ok((share / 100) as u8),
            _ => Err(format!("\"{text}\" is not a whole number of percent")),
        }
    });
    share.map(|share| share.value)
}

fn set<T>(to: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *to = given;
    }
}

/// `[pool.http]`.
pub(super) fn read(table: &mut TableReader<'_, '_>) -> HttpPool {
    let mut pool = HttpPool::default();
    table.table("http", "pool.http", "http = { idle_connections = 64 }, or [pool.http]", |inner| {
        pool.span = Some(inner.span());
        let rules = &mut pool.rules;
        let number = |table: &mut TableReader<'_, '_>, name, unit| {
            table.integer(name, 0, u32::MAX, unit).map(|number| number.value)
        };
        let idle = "idle connections per worker and backend (0 = none)";
        set(&mut rules.idle_connections, number(inner, "idle_connections", idle));
        set(&mut rules.idle_ms, time(inner, "idle").map(|idle| milliseconds(idle.value)));
        set(&mut rules.lifetime_ms, time_or_off(inner, "lifetime"));
        set(&mut rules.requests, number(inner, "requests", "requests of a connection (0 = unlimited)"));
        set(&mut rules.slow_start_ms, time_or_off(inner, "slow_start"));
        set(&mut rules.panic_percent, percent(inner, "panic_threshold"));
        let hash = inner.parsed("hash", HASH_EXPECTED, |text| {
            match (text, text.strip_prefix("header:"), text.strip_prefix("cookie:")) {
                ("source", ..) => Ok(HashBy::Source),
                ("path", ..) => Ok(HashBy::Path),
                (_, Some(header), _) => Ok(HashBy::Header(lower_token(header)?)),
                (_, _, Some(cookie)) => Ok(HashBy::Cookie(cookie_name(cookie)?)),
                _ => Err(format!("\"{text}\" is nothing to hash")),
            }
        });
        pool.hash = hash.as_ref().map(|hash| hash.span);
        set(&mut rules.hash, hash.map(|hash| hash.value));
        inner.table("sticky", "sticky", "sticky = { cookie = \"weir\" }", |sticky| {
            pool.sticky = Some(sticky.span());
            rules.sticky = read_sticky(sticky);
        });
        inner.table("retry", "retry", "retry = { attempts = 1, on = [\"connect\"] }", |retry| {
            read_retry(retry, &mut rules.retry);
        });
        read_breaker(inner, &mut rules.breaker);
    });
    pool
}

/// RFC 6265 §4.1.1: a cookie's name is a token.
fn cookie_name(text: &str) -> Result<Box<str>, String> {
    let fits = is_token(text.as_bytes()) && text.len() <= 63;
    if fits { Ok(text.into()) } else { Err(format!("\"{text}\" cannot be a name")) }
}

fn read_sticky(table: &mut TableReader<'_, '_>) -> Option<Sticky> {
    table.require("cookie", "\"weir\"");
    let cookie = table.parsed(
        "cookie",
        "the name of a cookie, at most 63 letters, digits and !#$%&'*+-.^_`|~",
        cookie_name,
    );
    const AGE_EXPECTED: &str =
        "a duration of whole seconds from \"1s\", such as \"90s\" or \"12h\", or \"off\"";
    let max_age = table.parsed("max_age", AGE_EXPECTED, |text| match text {
        "off" => Ok(0),
        text => {
            let age = units::parse_duration(text)?;
            match u32::try_from(age.as_secs()) {
                _ if age.subsec_nanos() > 0 => Err(format!(
                    "\"{text}\" is not in whole seconds, as Max-Age is (RFC 6265, section 4.1.2.2)"
                )),
                Ok(seconds) if seconds > 0 => Ok(seconds),
                _ => Err(format!("\"{text}\" is out of range")),
            }
        }
    });
    let secure = table.boolean("secure");
    Some(Sticky {
        cookie: cookie?.value,
        max_age_s: max_age.map_or(0, |age| age.value),
        secure: secure.is_some_and(|secure| secure.value),
    })
}

fn read_retry(table: &mut TableReader<'_, '_>, retry: &mut Retry) {
    let attempts = table.integer("attempts", 0, MAX_RETRIES.into(), "further attempts");
    set(&mut retry.attempts, attempts.map(|attempts| attempts.value as u8));
    set(&mut retry.budget_percent, percent(table, "budget"));
    let floor = table.integer("budget_floor", 0, u16::MAX.into(), "retries per second");
    set(&mut retry.budget_floor, floor.map(|floor| floor.value as u16));
    let Some((_, value)) = table.take("on") else { return };
    const EXPECTED: &str = "an array of \"connect\", \"reset\", \"timeout\" and statuses: 429, 500 to 599";
    let DeValue::Array(array) = value.get_ref() else {
        let finding = Diagnostic::error(value.span().into(), "on is not an array");
        table.diagnostics().push(finding.help(format!("write {EXPECTED}")));
        return;
    };
    (retry.on_connect, retry.on_reset, retry.on_timeout) = (false, false, false);
    retry.on_status.clear();
    for element in array.iter() {
        match element.get_ref() {
            DeValue::String(word) if word == "connect" => retry.on_connect = true,
            DeValue::String(word) if word == "reset" => retry.on_reset = true,
            DeValue::String(word) if word == "timeout" => retry.on_timeout = true,
            DeValue::Integer(number)
                if matches!(number.as_str().parse::<u16>(), Ok(429 | 500..=599)) && number.radix() == 10 =>
            {
                let status = number.as_str().parse().unwrap_or(0);
                if !retry.on_status.contains(&status) {
                    retry.on_status.push(status);
                }
            }
            _ => {
                let finding = Diagnostic::error(element.span().into(), "on: this is nothing to retry after");
                table.diagnostics().push(finding.help(format!("write {EXPECTED}")));
            }
        }
    }
    if retry.on_status.len() > MAX_RETRY_STATUSES {
        let message = format!("on: {} statuses are too many", retry.on_status.len());
        let finding = Diagnostic::error(value.span().into(), message);
        table.diagnostics().push(finding.help(format!("use at most {MAX_RETRY_STATUSES}")));
    }
}

/// `"off"`, or a table.
fn read_breaker(table: &mut TableReader<'_, '_>, breaker: &mut Option<BreakerRules>) {
    let Some((key, value)) = table.take("breaker") else { return };
    match value.get_ref() {
        DeValue::String(text) if text == "off" => *breaker = None,
        DeValue::Table(inner) => {
            let mut rules = BreakerRules::default();
            let mut reader = table.inside("breaker", inner, key);
            let table = &mut reader;
            let number = |table: &mut TableReader<'_, '_>, name, unit| {
                table.integer(name, 0, u32::MAX, unit).map(|number| number.value)
            };
            let errors = table.diagnostics().errors();
            let consecutive =
                table.integer("consecutive", 0, u32::MAX, "failures in a row (0 = not counted)");
            set(&mut rules.consecutive, consecutive.as_ref().map(|consecutive| consecutive.value));
            set(&mut rules.ratio_percent, percent(table, "ratio"));
            set(&mut rules.window_ms, time(table, "window").map(|time| milliseconds(time.value)));
            set(&mut rules.least_requests, number(table, "least_requests", "requests of a window"));
            set(&mut rules.latency_ms, time_or_off(table, "latency"));
            set(&mut rules.open_ms, time(table, "open").map(|time| milliseconds(time.value)));
            table.finish();
            let has_trigger = rules.consecutive > 0 || rules.ratio_percent > 0 || rules.latency_ms > 0;
            if let Some(consecutive) = consecutive.filter(|_| !has_trigger)
                && table.diagnostics().errors() == errors
            {
                let message =
                    "the breaker never opens: consecutive is 0, and neither ratio nor latency is set";
                let help = "set one of consecutive, ratio and latency, or write breaker = \"off\"";
                table.diagnostics().push(Diagnostic::warning(consecutive.span, message).help(help));
            }
            *breaker = Some(rules);
        }
        _ => {
            let finding = Diagnostic::error(value.span().into(), "breaker is neither \"off\" nor a table");
            let example = "{ consecutive = 5, open = \"30s\" }";
            table.diagnostics().push(finding.help(format!("write \"off\" or {example}")));
        }
    }
}
