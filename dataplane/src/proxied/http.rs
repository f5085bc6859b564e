//! What does a snapshot say of HTTP? The rules of a listener and of a pool, out of verified records.

use weir_abi::PoolTable;
use weir_abi::http::{
    ActionKind, Compare, ConditionKind, ConditionRecord, EditKind, HashKind, HostEditKind, HostKind,
    HttpTable, PathEditKind, PathKind, RETRY_ON_CONNECT, RETRY_ON_RESET, RETRY_ON_TIMEOUT, RateKeyKind,
    RouteRecord, Scheme, Stretch, WhenFullKind,
};
use weir_abi::record::{Address, NO_INDEX};
use weir_http::routes::spec::{
    Action, Condition, Edits, FieldEdit, Host, HostEdit, Mirror, Path, PathEdit, Redirect, Respond, Route,
    RouteTimes, Split, Value,
};
use weir_l7::http::rules::{
    BreakerRules, ErrorPage, HashBy, HttpLimits, HttpListener, HttpPool, HttpTimes, RateKey, RateLimit,
    Retry, Sticky, Tell, WhenFull,
};
use weir_net::Prefix;

/// What a listener does.
pub fn listener_of(table: &HttpTable) -> HttpListener {
    let read = Reader { table };
    let head = &table.head;
    HttpListener {
        routes: table.routes.iter().map(|route| read.route(route)).collect(),
        default_pool: (head.default_pool != NO_INDEX).then_some(head.default_pool),
        times: HttpTimes {
            request_header_ms: head.request_header_ms,
            request_body_ms: head.request_body_ms,
            response_header_ms: head.response_header_ms,
            response_idle_ms: head.response_idle_ms,
            keep_alive_ms: head.keep_alive_ms,
            tunnel_ms: head.tunnel_ms,
        },
        limits: HttpLimits {
            header_bytes: head.header_bytes,
            headers: head.headers,
            uri_bytes: head.uri_bytes,
            body_bytes: head.body_bytes,
            body_min_rate: head.body_min_rate,
            requests: head.requests,
            client_connections: head.client_connections,
            client_body_buffer: head.client_body_buffer,
            proxy_buffer: head.proxy_buffer,
        },
        tell: Tell {
            x_forwarded: head.x_forwarded != 0,
            forwarded: head.forwarded != 0,
            via: read.text(head.via),
            request_id: read.text(head.request_id),
            trusted: read.prefixes(head.trusted),
        },
        connect_allowed: head.connect != 0,
        upgrade_allowed: head.upgrade != 0,
        cause_header: head.cause_header != 0,
        error_pages: table
            .pages
            .iter()
            .map(|page| ErrorPage {
                status: page.status,
                content_type: read.text(page.content_type),
                body: table.bytes(page.body).into(),
            })
            .collect(),
        rate_limits: table
            .rates
            .iter()
            .map(|rate| RateLimit {
                name: read.text(rate.name),
                key: match RateKeyKind::from_u8(rate.key) {
                    Some(RateKeyKind::Client) => RateKey::Client,
                    Some(RateKeyKind::Header) => RateKey::Header(read.text(rate.header)),
                    Some(RateKeyKind::All) | None => RateKey::All,
                },
                millis_per_second: rate.millis_per_second,
                burst: rate.burst,
            })
            .collect(),
        own_rate_limits: head.own_rate_limits.of(&table.numbers).to_vec(),
        log_per_ten_thousand: head.log_per_ten_thousand,
        when_full: match WhenFullKind::from_u8(head.when_full) {
            Some(WhenFullKind::Reset) => WhenFull::Reset,
            Some(WhenFullKind::Refuse) | None => WhenFull::Refuse,
        },
    }
}

struct Reader<'a> {
    table: &'a HttpTable,
}

impl Reader<'_> {
    fn text(&self, stretch: Stretch) -> Box<str> {
        self.table.text(stretch).into()
    }

    fn text_or_none(&self, stretch: Stretch) -> Option<Box<str>> {
        (stretch.count > 0).then(|| self.text(stretch))
    }

    fn prefixes(&self, stretch: Stretch) -> Vec<Prefix> {
        let prefix = |address: &Address| Prefix::new(address.ip()?, address.prefix_length).ok();
        stretch.of(&self.table.prefixes).iter().filter_map(prefix).collect()
    }

    fn route(&self, route: &RouteRecord) -> Route {
        let host = match HostKind::from_u8(route.host_kind) {
            Some(HostKind::Exact) => Host::Exact(self.text(route.host)),
            Some(HostKind::Suffix) => Host::Suffix(self.text(route.host)),
            Some(HostKind::Any) | None => Host::Any,
        };
        let path = match PathKind::from_u8(route.path_kind) {
            Some(PathKind::Exact) => Path::Exact(self.text(route.path)),
            Some(PathKind::Prefix) => Path::Prefix(self.text(route.path)),
            Some(PathKind::Regex) => Path::Regex(self.text(route.path)),
            Some(PathKind::Any) | None => Path::Any,
        };
        let time = |ms: u32| (ms > 0).then_some(ms);
        let mirror = Mirror { pool: route.mirror_pool, per_ten_thousand: route.mirror_per_ten_thousand };
        Route {
            name: self.text(route.name),
            priority: route.priority,
            host,
            path,
            conditions: route
                .conditions
                .of(&self.table.conditions)
                .iter()
                .map(|c| self.condition(c))
                .collect(),
            action: self.action(route),
            mirror: (route.mirror_pool != NO_INDEX).then_some(mirror),
            request: Edits {
                fields: self.fields(route.request_fields),
                path: self.path_edit(route.request_path_kind, route.request_path),
                host: match HostEditKind::from_u8(route.request_host_kind) {
                    Some(HostEditKind::Replace) => HostEdit::Replace(self.text(route.request_host)),
                    Some(HostEditKind::Backend) => HostEdit::Backend,
                    Some(HostEditKind::Keep) | None => HostEdit::Keep,
                },
            },
            response: Edits { fields: self.fields(route.response_fields), ..Edits::default() },
            times: RouteTimes {
                response_header_ms: time(route.response_header_ms),
                response_idle_ms: time(route.response_idle_ms),
                tunnel_ms: time(route.tunnel_ms),
            },
            rate_limits: route.rate_limits.of(&self.table.numbers).to_vec(),
        }
    }

    fn condition(&self, condition: &ConditionRecord) -> Condition {
        let value = || {
            let text = self.text(condition.value);
            match Compare::from_u8(condition.compare) {
                Some(Compare::Absent) => Value::Absent,
                Some(Compare::Exact) => Value::Exact(text),
                Some(Compare::Prefix) => Value::Prefix(text),
                Some(Compare::Regex) => Value::Regex(text),
                Some(Compare::Present) | None => Value::Present,
            }
        };
        match ConditionKind::from_u8(condition.kind) {
            Some(ConditionKind::Header) => Condition::Header(self.text(condition.name), value()),
            Some(ConditionKind::Query) => Condition::Query(self.text(condition.name), value()),
            Some(ConditionKind::Source) => Condition::Source(self.prefixes(condition.value)),
            Some(ConditionKind::Method) | None => {
                let words = condition.value.of(&self.table.words);
                Condition::Method(words.iter().map(|word| self.text(*word)).collect())
            }
        }
    }

    fn action(&self, route: &RouteRecord) -> Action {
        match ActionKind::from_u8(route.action) {
            Some(ActionKind::Redirect) => Action::Redirect(Redirect {
                status: route.status,
                scheme: match Scheme::from_u8(route.scheme) {
                    Some(Scheme::Http) => Some("http".into()),
                    Some(Scheme::Https) => Some("https".into()),
                    Some(Scheme::Keep) | None => None,
                },
                host: self.text_or_none(route.first),
                port: (route.port > 0).then_some(route.port),
                path: self.path_edit(route.path_edit, route.second),
                keeps_query: route.keeps_query != 0,
                relative: route.relative != 0,
            }),
            Some(ActionKind::Respond) => Action::Respond(Respond {
                status: route.status,
                content_type: self.text(route.first),
                body: self.table.bytes(route.second).into(),
            }),
            Some(ActionKind::Pools) | None => {
                let splits = route.pools.of(&self.table.splits).iter();
                Action::Pools(splits.map(|split| Split { pool: split.pool, weight: split.weight }).collect())
            }
        }
    }

    fn path_edit(&self, kind: u8, text: Stretch) -> PathEdit {
        match PathEditKind::from_u8(kind) {
            Some(PathEditKind::Replace) => PathEdit::Replace(self.text(text)),
            Some(PathEditKind::ReplacePrefix) => PathEdit::ReplacePrefix(self.text(text)),
            Some(PathEditKind::Keep) | None => PathEdit::Keep,
        }
    }

    fn fields(&self, stretch: Stretch) -> Vec<FieldEdit> {
        let edit = |edit: &weir_abi::http::EditRecord| {
            let name = self.text(edit.name);
            match EditKind::from_u8(edit.kind) {
                Some(EditKind::Set) => FieldEdit::Set(name, self.text(edit.value)),
                Some(EditKind::Add) => FieldEdit::Add(name, self.text(edit.value)),
                Some(EditKind::Remove) | None => FieldEdit::Remove(name),
            }
        };
        stretch.of(&self.table.edits).iter().map(edit).collect()
    }
}

/// How the backends of a pool are used for HTTP.
pub fn pool_of(table: &PoolTable) -> HttpPool {
    let record = &table.pool.http;
    let name = || record.hash_name.as_str().into();
    let on = |flag: u8| record.retry_on & flag != 0;
    HttpPool {
        hash: match HashKind::from_u8(record.hash) {
            Some(HashKind::Header) => HashBy::Header(name()),
            Some(HashKind::Cookie) => HashBy::Cookie(name()),
            Some(HashKind::Path) => HashBy::Path,
            Some(HashKind::Source) | None => HashBy::Source,
        },
        sticky: (!record.cookie.is_empty()).then(|| Sticky {
            cookie: record.cookie.as_str().into(),
            max_age_s: record.cookie_max_age_s,
            secure: record.cookie_secure != 0,
        }),
        idle_connections: record.idle_connections,
        idle_ms: record.idle_ms,
        lifetime_ms: record.lifetime_ms,
        requests: record.requests,
        retry: Retry {
            attempts: record.retry_attempts,
            on_connect: on(RETRY_ON_CONNECT),
            on_reset: on(RETRY_ON_RESET),
            on_timeout: on(RETRY_ON_TIMEOUT),
            on_status: record.statuses().collect(),
            budget_percent: record.retry_budget_percent,
            budget_floor: record.retry_budget_floor,
        },
        breaker: (record.breaker != 0).then_some(BreakerRules {
            consecutive: record.breaker_consecutive,
            ratio_percent: record.breaker_ratio_percent,
            window_ms: record.breaker_window_ms,
            least_requests: record.breaker_least_requests,
            latency_ms: record.breaker_latency_ms,
            open_ms: record.breaker_open_ms,
        }),
        slow_start_ms: record.slow_start_ms,
        panic_percent: record.panic_percent,
        backups: (0u16..).zip(&table.backends).filter(|(_, b)| b.backup != 0).map(|(at, _)| at).collect(),
    }
}
