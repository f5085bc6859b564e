//! How do the rules of HTTP become records? Pools are positions in the model here and indices in the tables.

use weir_abi::http::{
    ActionKind, Arena, Compare, ConditionKind, ConditionRecord, EditKind, EditRecord, HashKind, HostEditKind,
    HostKind, HttpPoolRecord, HttpRecord, HttpTable, MAX_RETRY_STATUSES, PageRecord, PathEditKind, PathKind,
    RETRY_ON_CONNECT, RETRY_ON_RESET, RETRY_ON_TIMEOUT, RateKeyKind, RateRecord, RouteRecord, Scheme,
    SplitRecord, Stretch, WhenFullKind,
};
use weir_abi::record::{Address, NO_INDEX};
use weir_abi::text::Name;
use weir_http::routes::spec::{Action, Condition, FieldEdit, Host, HostEdit, Path, PathEdit, Route, Value};
use weir_l7::http::rules::{HashBy, HttpListener, HttpPool, RateKey, WhenFull};
use weir_net::Prefix;

/// The table of a listener; `pools` are the indices of the model's pools.
pub fn table(listener: u32, rules: &HttpListener, pools: &[u32]) -> HttpTable {
    let mut writer = Writer { table: HttpTable::default(), arena: Arena::default(), pools };
    writer.head(listener, rules);
    for limit in &rules.rate_limits {
        let (key, header) = match &limit.key {
            RateKey::All => (RateKeyKind::All, ""),
            RateKey::Client => (RateKeyKind::Client, ""),
            RateKey::Header(name) => (RateKeyKind::Header, &**name),
        };
        let record = RateRecord {
            millis_per_second: limit.millis_per_second,
            name: writer.arena.put(&*limit.name),
            header: writer.arena.put(header),
            burst: limit.burst,
            key: key as u8,
            reserved: [0; 3],
        };
        writer.table.rates.push(record);
    }
    for page in &rules.error_pages {
        let record = PageRecord {
            content_type: writer.arena.put(&*page.content_type),
            body: writer.arena.put(&page.body),
            status: page.status,
            reserved: 0,
        };
        writer.table.pages.push(record);
    }
    for route in rules.routes.iter() {
        let record = writer.route(route);
        writer.table.routes.push(record);
    }
    HttpTable { arena: writer.arena.into_bytes(), ..writer.table }
}

struct Writer<'a> {
    table: HttpTable,
    arena: Arena,
    pools: &'a [u32],
}

/// Puts elements at an array's end.
fn append<T>(array: &mut Vec<T>, elements: impl IntoIterator<Item = T>) -> Stretch {
    let first = array.len() as u32;
    array.extend(elements);
    match array.len() as u32 - first {
        0 => Stretch::default(),
        count => Stretch { first, count },
    }
}

impl Writer<'_> {
    fn index_of(&self, position: u32) -> u32 {
        self.pools.get(position as usize).copied().unwrap_or(NO_INDEX)
    }

    fn prefixes(&mut self, prefixes: &[Prefix]) -> Stretch {
        let records = prefixes.iter().map(|prefix| Address::prefix(prefix.addr, prefix.len));
        append(&mut self.table.prefixes, records)
    }

    fn head(&mut self, listener: u32, rules: &HttpListener) {
        let (times, limits, tell) = (&rules.times, &rules.limits, &rules.tell);
        self.table.head = HttpRecord {
            body_bytes: limits.body_bytes,
            listener,
            default_pool: rules.default_pool.map_or(NO_INDEX, |pool| self.index_of(pool)),
            request_header_ms: times.request_header_ms,
            request_body_ms: times.request_body_ms,
            response_header_ms: times.response_header_ms,
            response_idle_ms: times.response_idle_ms,
            keep_alive_ms: times.keep_alive_ms,
            tunnel_ms: times.tunnel_ms,
            header_bytes: limits.header_bytes,
            body_min_rate: limits.body_min_rate,
            requests: limits.requests,
            client_connections: limits.client_connections,
            client_body_buffer: limits.client_body_buffer,
            proxy_buffer: limits.proxy_buffer,
            headers: limits.headers,
            uri_bytes: limits.uri_bytes,
            via: self.arena.put(&*tell.via),
            request_id: self.arena.put(&*tell.request_id),
            trusted: self.prefixes(&tell.trusted),
            own_rate_limits: append(&mut self.table.numbers, rules.own_rate_limits.iter().copied()),
            x_forwarded: tell.x_forwarded.into(),
            forwarded: tell.forwarded.into(),
            connect: rules.connect_allowed.into(),
            upgrade: rules.upgrade_allowed.into(),
            cause_header: rules.cause_header.into(),
            when_full: match rules.when_full {
                WhenFull::Refuse => WhenFullKind::Refuse,
                WhenFull::Reset => WhenFullKind::Reset,
            } as u8,
            log_per_ten_thousand: rules.log_per_ten_thousand,
            ..HttpRecord::default()
        };
    }

    fn route(&mut self, route: &Route) -> RouteRecord {
        let (host_kind, host) = match &route.host {
            Host::Any => (HostKind::Any, ""),
            Host::Exact(name) => (HostKind::Exact, &**name),
            Host::Suffix(suffix) => (HostKind::Suffix, &**suffix),
        };
        let (path_kind, path) = match &route.path {
            Path::Any => (PathKind::Any, ""),
            Path::Exact(path) => (PathKind::Exact, &**path),
            Path::Prefix(prefix) => (PathKind::Prefix, &**prefix),
            Path::Regex(regex) => (PathKind::Regex, &**regex),
        };
        let (request_path_kind, request_path) = self.path_edit(&route.request.path);
        let (request_host_kind, request_host) = match &route.request.host {
            HostEdit::Keep => (HostEditKind::Keep, Stretch::default()),
            HostEdit::Replace(host) => (HostEditKind::Replace, self.arena.put(&**host)),
            HostEdit::Backend => (HostEditKind::Backend, Stretch::default()),
        };
        let conditions: Vec<_> = route.conditions.iter().map(|condition| self.condition(condition)).collect();
        let record = RouteRecord {
            name: self.arena.put(&*route.name),
            host: self.arena.put(host),
            path: self.arena.put(path),
            conditions: append(&mut self.table.conditions, conditions),
            request_fields: self.fields(&route.request.fields),
            request_path,
            request_host,
            response_fields: self.fields(&route.response.fields),
            rate_limits: append(&mut self.table.numbers, route.rate_limits.iter().copied()),
            priority: route.priority,
            response_header_ms: route.times.response_header_ms.unwrap_or(0),
            response_idle_ms: route.times.response_idle_ms.unwrap_or(0),
            tunnel_ms: route.times.tunnel_ms.unwrap_or(0),
            mirror_pool: route.mirror.map_or(NO_INDEX, |mirror| self.index_of(mirror.pool)),
            mirror_per_ten_thousand: route.mirror.map_or(0, |mirror| mirror.per_ten_thousand),
            host_kind: host_kind as u8,
            path_kind: path_kind as u8,
            request_path_kind: request_path_kind as u8,
            request_host_kind: request_host_kind as u8,
            ..RouteRecord::new()
        };
        self.action(&route.action, record)
    }

    fn action(&mut self, action: &Action, record: RouteRecord) -> RouteRecord {
        match action {
            Action::Pools(splits) => {
                let splits: Vec<_> = splits
                    .iter()
                    .map(|split| SplitRecord { pool: self.index_of(split.pool), weight: split.weight })
                    .collect();
                let pools = append(&mut self.table.splits, splits);
                RouteRecord { action: ActionKind::Pools as u8, pools, ..record }
            }
            Action::Redirect(redirect) => {
                let (path_edit, second) = self.path_edit(&redirect.path);
                RouteRecord {
                    action: ActionKind::Redirect as u8,
                    status: redirect.status,
                    scheme: match redirect.scheme.as_deref() {
                        None => Scheme::Keep,
                        Some("https") => Scheme::Https,
                        Some(_) => Scheme::Http,
                    } as u8,
                    port: redirect.port.unwrap_or(0),
                    first: self.arena.put(redirect.host.as_deref().unwrap_or("")),
                    path_edit: path_edit as u8,
                    second,
                    keeps_query: redirect.keeps_query.into(),
                    relative: redirect.relative.into(),
                    ..record
                }
            }
            Action::Respond(respond) => RouteRecord {
                action: ActionKind::Respond as u8,
                status: respond.status,
                first: self.arena.put(&*respond.content_type),
                second: self.arena.put(&respond.body),
                ..record
            },
        }
    }

    fn condition(&mut self, condition: &Condition) -> ConditionRecord {
        let (kind, name, value) = match condition {
            Condition::Method(methods) => {
                let words: Vec<_> = methods.iter().map(|method| self.arena.put(&**method)).collect();
                let words = append(&mut self.table.words, words);
                return record_of(ConditionKind::Method, Stretch::default(), words);
            }
            Condition::Source(prefixes) => {
                let prefixes = self.prefixes(prefixes);
                return record_of(ConditionKind::Source, Stretch::default(), prefixes);
            }
            Condition::Header(name, value) => (ConditionKind::Header, name, value),
            Condition::Query(name, value) => (ConditionKind::Query, name, value),
        };
        let (compare, text) = match value {
            Value::Present => (Compare::Present, ""),
            Value::Absent => (Compare::Absent, ""),
            Value::Exact(text) => (Compare::Exact, &**text),
            Value::Prefix(text) => (Compare::Prefix, &**text),
            Value::Regex(text) => (Compare::Regex, &**text),
        };
        let record = record_of(kind, self.arena.put(&**name), self.arena.put(text));
        ConditionRecord { compare: compare as u8, ..record }
    }

    fn path_edit(&mut self, edit: &PathEdit) -> (PathEditKind, Stretch) {
        match edit {
            PathEdit::Keep => (PathEditKind::Keep, Stretch::default()),
            PathEdit::Replace(path) => (PathEditKind::Replace, self.arena.put(&**path)),
            PathEdit::ReplacePrefix(path) => (PathEditKind::ReplacePrefix, self.arena.put(&**path)),
        }
    }

    fn fields(&mut self, edits: &[FieldEdit]) -> Stretch {
        let record = |edit: &FieldEdit| {
            let (kind, name, value) = match edit {
                FieldEdit::Set(name, value) => (EditKind::Set, name, &**value),
                FieldEdit::Add(name, value) => (EditKind::Add, name, &**value),
                FieldEdit::Remove(name) => (EditKind::Remove, name, ""),
            };
            let (name, value) = (self.arena.put(&**name), self.arena.put(value));
            EditRecord { name, value, kind: kind as u8, reserved: [0; 3] }
        };
        let records: Vec<_> = edits.iter().map(record).collect();
        append(&mut self.table.edits, records)
    }
}

fn record_of(kind: ConditionKind, name: Stretch, value: Stretch) -> ConditionRecord {
    ConditionRecord { name, value, kind: kind as u8, compare: 0, reserved: [0; 2] }
}

/// The record of a pool.
pub fn pool(rules: &HttpPool) -> HttpPoolRecord {
    let (hash, hash_name) = match &rules.hash {
        HashBy::Source => (HashKind::Source, ""),
        HashBy::Header(name) => (HashKind::Header, &**name),
        HashBy::Cookie(name) => (HashKind::Cookie, &**name),
        HashBy::Path => (HashKind::Path, ""),
    };
    let retry = &rules.retry;
    let mut retry_statuses = [0; MAX_RETRY_STATUSES];
    for (place, status) in retry_statuses.iter_mut().zip(&retry.on_status) {
        *place = *status;
    }
    let on = |is: bool, flag: u8| if is { flag } else { 0 };
    let sticky = rules.sticky.as_ref();
    let breaker = rules.breaker.as_ref();
    HttpPoolRecord {
        hash_name: Name::new(hash_name),
        cookie: Name::new(sticky.map_or("", |sticky| &sticky.cookie)),
        cookie_max_age_s: sticky.map_or(0, |sticky| sticky.max_age_s),
        idle_connections: rules.idle_connections,
        idle_ms: rules.idle_ms,
        lifetime_ms: rules.lifetime_ms,
        requests: rules.requests,
        slow_start_ms: rules.slow_start_ms,
        breaker_consecutive: breaker.map_or(0, |breaker| breaker.consecutive),
        breaker_window_ms: breaker.map_or(0, |breaker| breaker.window_ms),
        breaker_least_requests: breaker.map_or(0, |breaker| breaker.least_requests),
        breaker_latency_ms: breaker.map_or(0, |breaker| breaker.latency_ms),
        breaker_open_ms: breaker.map_or(0, |breaker| breaker.open_ms),
        retry_statuses,
        retry_budget_floor: retry.budget_floor,
        retry_budget_percent: retry.budget_percent,
        retry_attempts: retry.attempts,
        retry_on: on(retry.on_connect, RETRY_ON_CONNECT)
            | on(retry.on_reset, RETRY_ON_RESET)
            | on(retry.on_timeout, RETRY_ON_TIMEOUT),
        hash: hash as u8,
        cookie_secure: sticky.is_some_and(|sticky| sticky.secure).into(),
        breaker: breaker.is_some().into(),
        breaker_ratio_percent: breaker.map_or(0, |breaker| breaker.ratio_percent),
        panic_percent: rules.panic_percent,
        reserved: [0; 2],
    }
}
