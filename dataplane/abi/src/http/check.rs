//! Is what an HTTP table says possible? Every stretch, text, enum value and range, once the bytes are proved.
//!
//! Regular expressions are not compiled here: who makes an index of the routes does.

use std::ops::RangeInclusive;

use super::table::part;
use super::{
    ALL_OF_TEN_THOUSAND, ActionKind, Compare, ConditionKind, ConditionRecord, EditKind, EditRecord, HashKind,
    HostEditKind, HostKind, HttpPoolRecord, HttpTable, MAX_BODY_BYTES, MAX_BURST, MAX_COLLECTED,
    MAX_HEADER_BYTES, MAX_HEADERS, MAX_MESSAGE_BUFFER, MAX_MILLIS_PER_SECOND, MAX_RATE_LIMITS,
    MAX_REGEX_BYTES, MAX_ROUTES, MAX_SPLIT_WEIGHT, MAX_SPLITS, MIN_HEADER_BYTES, MIN_URI_BYTES, PathEditKind,
    PathKind, RateKeyKind, RouteRecord, Scheme, Stretch, WhenFullKind,
};
use crate::check::{check_address, ensure, value};
use crate::image::SnapshotError;
use crate::proxy::{MAX_RETRIES, MAX_TIME_MS, MIN_TIME_MS};
use crate::record::{MAX_LISTENERS, MAX_POOLS, NO_INDEX};

/// Whether a text may name a field or a method: RFC 9110 §5.6.2.
pub fn is_token(text: &[u8]) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(token)
}

/// Whether a text may be a field's value, RFC 9110 §5.5: nothing in it ends the line.
fn is_value(text: &[u8]) -> bool {
    text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..))
}

const PERCENT: RangeInclusive<u64> = 0..=100;
const FLAG: RangeInclusive<u64> = 0..=1;

/// One table being proved.
struct Proof<'a> {
    table: &'a HttpTable,
    what: &'a str,
}

type Proved = Result<(), SnapshotError>;

impl HttpTable {
    /// Proves the table.
    pub(super) fn check(&self, what: &str) -> Proved {
        let proof = Proof { table: self, what };
        proof.head()?;
        proof.rates()?;
        for route in &self.routes {
            proof.route(route)?;
        }
        for condition in &self.conditions {
            proof.condition(condition)?;
        }
        for split in &self.splits {
            proof.pool("split.pool", split.pool)?;
            proof.number("split.weight", split.weight.into(), 1..=MAX_SPLIT_WEIGHT.into())?;
        }
        for edit in &self.edits {
            proof.edit(edit)?;
        }
        for page in &self.pages {
            proof.number("page.status", page.status.into(), 400..=599)?;
            proof.value("page.content_type", page.content_type)?;
            proof.body("page.body", page.body)?;
            proof.number("page.reserved", page.reserved.into(), 0..=0)?;
        }
        for word in &self.words {
            proof.token("word", *word)?;
        }
        for prefix in &self.prefixes {
            check_address(prefix, what, "prefix")?;
        }
        let rates = self.rates.len();
        match self.numbers.iter().find(|number| usize::from(**number) >= rates) {
            Some(number) => proof.wrong("rate_limits", u64::from(*number), "must be a rate limit"),
            None => Ok(()),
        }
    }
}

impl Proof<'_> {
    fn wrong(&self, field: &'static str, number: u64, rule: &'static str) -> Proved {
        Err(value(self.what, field, number, rule))
    }

    fn number(&self, field: &'static str, number: u64, range: RangeInclusive<u64>) -> Proved {
        ensure(range.contains(&number), self.what, field, number, "must be within its range")
    }

    fn known<T>(&self, field: &'static str, number: u8, found: Option<T>) -> Result<T, SnapshotError> {
        found.ok_or_else(|| value(self.what, field, number.into(), "must be known"))
    }

    fn pool(&self, field: &'static str, pool: u32) -> Proved {
        ensure((pool as usize) < MAX_POOLS, self.what, field, pool.into(), "must be a pool")
    }

    fn time(&self, field: &'static str, time: u32) -> Proved {
        self.number(field, time.into(), MIN_TIME_MS.into()..=MAX_TIME_MS.into())
    }

    fn time_or_none(&self, field: &'static str, time: u32) -> Proved {
        if time == 0 { Ok(()) } else { self.time(field, time) }
    }

    fn inside<T>(&self, field: &'static str, array: &[T], stretch: Stretch) -> Proved {
        let end = u64::from(stretch.first) + u64::from(stretch.count);
        let inside = part(array, stretch).is_some();
        ensure(inside, self.what, field, end, "must not leave the table")
    }

    fn text(&self, field: &'static str, stretch: Stretch, holds: impl Fn(&str) -> bool) -> Proved {
        self.inside(field, &self.table.arena, stretch)?;
        let text = std::str::from_utf8(self.table.bytes(stretch));
        let holds = text.is_ok_and(holds);
        ensure(holds, self.what, field, stretch.first.into(), "is the place of a text that can't be one")
    }

    fn token(&self, field: &'static str, stretch: Stretch) -> Proved {
        self.text(field, stretch, |text| is_token(text.as_bytes()))
    }

    /// A field's name as requests are asked for it.
    fn lower_token(&self, field: &'static str, stretch: Stretch) -> Proved {
        let lower = |text: &str| is_token(text.as_bytes()) && !text.bytes().any(|b| b.is_ascii_uppercase());
        self.text(field, stretch, lower)
    }

    fn value(&self, field: &'static str, stretch: Stretch) -> Proved {
        self.text(field, stretch, |text| is_value(text.as_bytes()))
    }

    fn filled(&self, field: &'static str, stretch: Stretch) -> Proved {
        self.text(field, stretch, |text| !text.is_empty() && is_value(text.as_bytes()))
    }

    fn empty(&self, field: &'static str, stretch: Stretch) -> Proved {
        ensure(stretch == Stretch::default(), self.what, field, stretch.count.into(), "must be none here")
    }

    fn path(&self, field: &'static str, stretch: Stretch) -> Proved {
        // OPTIONS of the server itself asks for "*": RFC 9112 §3.2.4
        let is_path = |text: &str| {
            (text.starts_with('/') || text == "*") && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        self.text(field, stretch, is_path)
    }

    fn body(&self, field: &'static str, stretch: Stretch) -> Proved {
        self.inside(field, &self.table.arena, stretch)?;
        self.number(field, stretch.count.into(), 0..=MAX_BODY_BYTES as u64)
    }

    fn head(&self) -> Proved {
        let head = &self.table.head;
        self.number("listener", head.listener.into(), 0..=MAX_LISTENERS as u64 - 1)?;
        if head.default_pool != NO_INDEX {
            self.pool("default_pool", head.default_pool)?;
        }
        self.time("request_header_ms", head.request_header_ms)?;
        self.time("request_body_ms", head.request_body_ms)?;
        self.time("response_header_ms", head.response_header_ms)?;
        self.time("response_idle_ms", head.response_idle_ms)?;
        self.time("keep_alive_ms", head.keep_alive_ms)?;
        self.time("tunnel_ms", head.tunnel_ms)?;
        let bytes = u64::from(MIN_HEADER_BYTES)..=u64::from(MAX_HEADER_BYTES);
        self.number("header_bytes", head.header_bytes.into(), bytes)?;
        self.number("headers", head.headers.into(), 1..=MAX_HEADERS.into())?;
        self.number("uri_bytes", head.uri_bytes.into(), MIN_URI_BYTES.into()..=head.header_bytes.into())?;
        self.number("client_body_buffer", head.client_body_buffer.into(), 0..=MAX_COLLECTED.into())?;
        self.number("proxy_buffer", head.proxy_buffer.into(), 0..=MAX_MESSAGE_BUFFER.into())?;
        self.value("via", head.via)?;
        if head.request_id != Stretch::default() {
            self.lower_token("request_id", head.request_id)?;
        }
        self.inside("trusted", &self.table.prefixes, head.trusted)?;
        self.inside("own_rate_limits", &self.table.numbers, head.own_rate_limits)?;
        for (field, flag) in [
            ("x_forwarded", head.x_forwarded),
            ("forwarded", head.forwarded),
            ("connect", head.connect),
            ("upgrade", head.upgrade),
            ("cause_header", head.cause_header),
        ] {
            self.number(field, flag.into(), FLAG)?;
        }
        self.known("when_full", head.when_full, WhenFullKind::from_u8(head.when_full))?;
        self.number(
            "log_per_ten_thousand",
            head.log_per_ten_thousand.into(),
            0..=ALL_OF_TEN_THOUSAND.into(),
        )?;
        self.number("routes", head.routes.into(), 0..=MAX_ROUTES as u64)?;
        self.number("rates", head.rates.into(), 0..=MAX_RATE_LIMITS as u64)?;
        self.number("reserved", head.reserved.into(), 0..=0)
    }

    fn rates(&self) -> Proved {
        for rate in &self.table.rates {
            self.filled("rate.name", rate.name)?;
            self.number("rate.millis_per_second", rate.millis_per_second, 1..=MAX_MILLIS_PER_SECOND)?;
            self.number("rate.burst", rate.burst.into(), 1..=MAX_BURST.into())?;
            match self.known("rate.key", rate.key, RateKeyKind::from_u8(rate.key))? {
                RateKeyKind::Header => self.lower_token("rate.header", rate.header)?,
                RateKeyKind::All | RateKeyKind::Client => self.empty("rate.header", rate.header)?,
            }
            ensure(rate.reserved == [0; 3], self.what, "rate.reserved", 1, "must be 0")?;
        }
        Ok(())
    }

    fn route(&self, route: &RouteRecord) -> Proved {
        let table = self.table;
        self.filled("route.name", route.name)?;
        match self.known("route.host_kind", route.host_kind, HostKind::from_u8(route.host_kind))? {
            HostKind::Any => self.empty("route.host", route.host)?,
            HostKind::Exact => self.filled("route.host", route.host)?,
            HostKind::Suffix => self.text("route.host", route.host, |text| text.starts_with('.'))?,
        }
        match self.known("route.path_kind", route.path_kind, PathKind::from_u8(route.path_kind))? {
            PathKind::Any => self.empty("route.path", route.path)?,
            PathKind::Exact | PathKind::Prefix => self.path("route.path", route.path)?,
            PathKind::Regex => self.regex("route.path", route.path)?,
        }
        self.inside("route.conditions", &table.conditions, route.conditions)?;
        self.inside("route.request_fields", &table.edits, route.request_fields)?;
        self.inside("route.response_fields", &table.edits, route.response_fields)?;
        self.inside("route.rate_limits", &table.numbers, route.rate_limits)?;
        self.time_or_none("route.response_header_ms", route.response_header_ms)?;
        self.time_or_none("route.response_idle_ms", route.response_idle_ms)?;
        self.time_or_none("route.tunnel_ms", route.tunnel_ms)?;
        if route.mirror_pool == NO_INDEX {
            self.number("route.mirror", route.mirror_per_ten_thousand.into(), 0..=0)?;
        } else {
            self.pool("route.mirror_pool", route.mirror_pool)?;
            let share = 1..=u64::from(ALL_OF_TEN_THOUSAND);
            self.number("route.mirror", route.mirror_per_ten_thousand.into(), share)?;
        }
        self.path_edit("route.request_path", route.request_path_kind, route.request_path)?;
        let kind = HostEditKind::from_u8(route.request_host_kind);
        match self.known("route.request_host_kind", route.request_host_kind, kind)? {
            HostEditKind::Replace => self.filled("route.request_host", route.request_host)?,
            HostEditKind::Keep | HostEditKind::Backend => {
                self.empty("route.request_host", route.request_host)?;
            }
        }
        self.number("route.reserved", route.reserved.into(), 0..=0)?;
        self.action(route)
    }

    fn action(&self, route: &RouteRecord) -> Proved {
        let kind = ActionKind::from_u8(route.action);
        let action = self.known("route.action", route.action, kind)?;
        let pools = if action == ActionKind::Pools { 1..=MAX_SPLITS as u64 } else { 0..=0 };
        self.number("route.pools", route.pools.count.into(), pools)?;
        self.inside("route.pools", &self.table.splits, route.pools)?;
        if action != ActionKind::Redirect {
            let settings = [route.scheme, route.path_edit, route.keeps_query, route.relative];
            ensure(
                settings == [0; 4] && route.port == 0,
                self.what,
                "route.redirect",
                1,
                "must be none here",
            )?;
        }
        let status = u64::from(route.status);
        match action {
            ActionKind::Pools => {
                self.number("route.status", status, 0..=0)?;
                self.empty("route.first", route.first)?;
                self.empty("route.second", route.second)
            }
            ActionKind::Redirect => {
                let statuses = [301, 302, 303, 307, 308];
                let rule = "must be a status of redirections";
                ensure(statuses.contains(&status), self.what, "route.status", status, rule)?;
                self.known("route.scheme", route.scheme, Scheme::from_u8(route.scheme))?;
                self.number("route.keeps_query", route.keeps_query.into(), FLAG)?;
                self.number("route.relative", route.relative.into(), FLAG)?;
                self.value("route.first", route.first)?;
                self.path_edit("route.second", route.path_edit, route.second)
            }
            ActionKind::Respond => {
                self.number("route.status", status, 200..=599)?;
                self.value("route.first", route.first)?;
                self.body("route.second", route.second)
            }
        }
    }

    fn path_edit(&self, field: &'static str, kind: u8, text: Stretch) -> Proved {
        match self.known(field, kind, PathEditKind::from_u8(kind))? {
            PathEditKind::Keep => self.empty(field, text),
            PathEditKind::Replace | PathEditKind::ReplacePrefix => self.path(field, text),
        }
    }

    fn regex(&self, field: &'static str, text: Stretch) -> Proved {
        self.number(field, text.count.into(), 0..=MAX_REGEX_BYTES.into())?;
        self.text(field, text, |_| true)
    }

    fn condition(&self, condition: &ConditionRecord) -> Proved {
        let table = self.table;
        let kind = ConditionKind::from_u8(condition.kind);
        let kind = self.known("condition.kind", condition.kind, kind)?;
        ensure(condition.reserved == [0; 2], self.what, "condition.reserved", 1, "must be 0")?;
        match kind {
            ConditionKind::Method | ConditionKind::Source => {
                self.empty("condition.name", condition.name)?;
                self.number("condition.compare", condition.compare.into(), 0..=0)?;
                self.number("condition.value", condition.value.count.into(), 1..=u64::from(u16::MAX))?;
                if kind == ConditionKind::Method {
                    return self.inside("condition.value", &table.words, condition.value);
                }
                return self.inside("condition.value", &table.prefixes, condition.value);
            }
            ConditionKind::Header => self.lower_token("condition.name", condition.name)?,
            ConditionKind::Query => self.value("condition.name", condition.name)?,
        }
        let compare = Compare::from_u8(condition.compare);
        match self.known("condition.compare", condition.compare, compare)? {
            Compare::Present | Compare::Absent => self.empty("condition.value", condition.value),
            Compare::Exact | Compare::Prefix => self.value("condition.value", condition.value),
            Compare::Regex => self.regex("condition.value", condition.value),
        }
    }

    fn edit(&self, edit: &EditRecord) -> Proved {
        self.token("edit.name", edit.name)?;
        ensure(edit.reserved == [0; 3], self.what, "edit.reserved", 1, "must be 0")?;
        match self.known("edit.kind", edit.kind, EditKind::from_u8(edit.kind))? {
            EditKind::Set | EditKind::Add => self.value("edit.value", edit.value),
            EditKind::Remove => self.empty("edit.value", edit.value),
        }
    }
}

impl HttpPoolRecord {
    /// Proves a pool's record.
    pub(crate) fn check(&self, what: &str) -> Proved {
        let number = |field, number: u32, range: RangeInclusive<u64>| {
            ensure(range.contains(&number.into()), what, field, number.into(), "must be within its range")
        };
        let time = u64::from(MIN_TIME_MS)..=u64::from(MAX_TIME_MS);
        let time_or_none = |field, ms: u32| if ms == 0 { Ok(()) } else { number(field, ms, time.clone()) };
        let hash = HashKind::from_u8(self.hash);
        ensure(hash.is_some(), what, "http.hash", self.hash.into(), "must be known")?;
        let named = matches!(hash, Some(HashKind::Header | HashKind::Cookie));
        let fits =
            is_token(self.hash_name.as_str().as_bytes()) == named && named != self.hash_name.is_empty();
        ensure(fits, what, "http.hash_name", self.hash.into(), "must name what is hashed")?;
        let has_cookie = !self.cookie.is_empty();
        let fits = !has_cookie || is_token(self.cookie.as_str().as_bytes());
        ensure(fits, what, "http.cookie", 1, "must be a cookie's name")?;
        let settings = if has_cookie { FLAG } else { 0..=0 };
        number("http.cookie_secure", self.cookie_secure.into(), settings)?;
        if !has_cookie {
            number("http.cookie_max_age_s", self.cookie_max_age_s, 0..=0)?;
        }
        number("http.idle_ms", self.idle_ms, time.clone())?;
        time_or_none("http.lifetime_ms", self.lifetime_ms)?;
        time_or_none("http.slow_start_ms", self.slow_start_ms)?;
        number("http.panic_percent", self.panic_percent.into(), PERCENT)?;
        number("http.retry_attempts", self.retry_attempts.into(), 0..=MAX_RETRIES.into())?;
        number("http.retry_on", self.retry_on.into(), 0..=7)?;
        number("http.retry_budget_percent", self.retry_budget_percent.into(), PERCENT)?;
        let mut ended = false;
        for status in self.retry_statuses {
            let fits = status == 0 || !ended && matches!(status, 429 | 500..=599);
            ensure(fits, what, "http.retry_statuses", status.into(), "must be 429 or 500 to 599")?;
            ended |= status == 0;
        }
        ensure(self.reserved == [0; 2], what, "http.reserved", 1, "must be 0")?;
        number("http.breaker", self.breaker.into(), FLAG.clone())?;
        if self.breaker == 0 {
            let rest = [
                self.breaker_consecutive,
                self.breaker_window_ms,
                self.breaker_least_requests,
                self.breaker_latency_ms,
                self.breaker_open_ms,
                self.breaker_ratio_percent.into(),
            ];
            return ensure(rest == [0; 6], what, "http.breaker", 0, "must leave its other fields 0");
        }
        number("http.breaker_ratio_percent", self.breaker_ratio_percent.into(), PERCENT)?;
        number("http.breaker_window_ms", self.breaker_window_ms, time.clone())?;
        number("http.breaker_open_ms", self.breaker_open_ms, time)?;
        number("http.breaker_latency_ms", self.breaker_latency_ms, 0..=MAX_TIME_MS.into())
    }
}
