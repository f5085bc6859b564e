//! What the control plane writes is what the dataplane reads: any rules of HTTP, through sealed tables and back.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

/// The dataplane's own reader; its crate needs DPDK, this file does not.
#[path = "../../dataplane/src/proxied/http.rs"]
#[allow(unreachable_pub, reason = "public there")]
mod reader;

use std::sync::Arc;

use proptest::prelude::*;
use weir_abi::record::{Address, BackendRecord, PoolRecord};
use weir_abi::text::Name;
use weir_abi::{HttpTable, PoolTable};
use weir_ctlplane::compile::http;
use weir_http::routes::RouteTable;
use weir_http::routes::spec::{
    Action, Condition, Edits, FieldEdit, Host, HostEdit, Mirror, Path, PathEdit, Redirect, Respond, Route,
    RouteTimes, Split, Value,
};
use weir_l7::http::rules::{
    BreakerRules, ErrorPage, HashBy, HttpLimits, HttpListener, HttpPool, HttpTimes, RateKey, RateLimit,
    Retry, Sticky, Tell, WhenFull,
};
use weir_net::Prefix;
use zerocopy::FromZeros;

/// Indices of pools by position, in another order.
const POOLS: [u32; 4] = [7, 0, 65_534, 3];

fn text() -> impl Strategy<Value = Box<str>> {
    "[a-z][a-z0-9-]{0,12}".prop_map(String::into_boxed_str)
}

fn path() -> impl Strategy<Value = Box<str>> {
    "(/[a-z0-9]{1,6}){1,4}".prop_map(String::into_boxed_str)
}

fn prefix() -> impl Strategy<Value = Prefix> {
    let v4 = (any::<u32>(), 0u8..=32)
        .prop_map(|(bits, len)| Prefix::new(std::net::Ipv4Addr::from(bits).into(), len));
    let v6 = (any::<u128>(), 0u8..=128)
        .prop_map(|(bits, len)| Prefix::new(std::net::Ipv6Addr::from(bits).into(), len));
    prop_oneof![v4, v6].prop_map(Result::unwrap)
}

fn time() -> impl Strategy<Value = u32> {
    100u32..=86_400_000
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Present),
        Just(Value::Absent),
        "[ -~]{0,10}".prop_map(|text| Value::Exact(text.into())),
        text().prop_map(Value::Prefix),
        Just(Value::Regex("[a-z]+|x".into())),
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        prop::collection::vec(text(), 1..4).prop_map(Condition::Method),
        (text(), value()).prop_map(|(name, value)| Condition::Header(name, value)),
        (text(), value()).prop_map(|(name, value)| Condition::Query(name, value)),
        prop::collection::vec(prefix(), 1..3).prop_map(Condition::Source),
    ]
}

fn path_edit() -> impl Strategy<Value = PathEdit> {
    prop_oneof![
        Just(PathEdit::Keep),
        path().prop_map(PathEdit::Replace),
        path().prop_map(PathEdit::ReplacePrefix),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let split = (0u32..4, 1u32..=1_000_000).prop_map(|(pool, weight)| Split { pool, weight });
    let scheme = prop::option::of(prop_oneof![Just("http".into()), Just("https".into())]);
    let statuses = prop::sample::select(vec![301u16, 302, 303, 307, 308]);
    let redirect = (
        statuses,
        scheme,
        prop::option::of(text()),
        prop::option::of(1u16..),
        path_edit(),
        any::<(bool, bool)>(),
    );
    prop_oneof![
        prop::collection::vec(split, 1..4).prop_map(Action::Pools),
        redirect.prop_map(|(status, scheme, host, port, path, (keeps_query, relative))| {
            Action::Redirect(Redirect { status, scheme, host, port, path, keeps_query, relative })
        }),
        (200u16..600, text(), prop::collection::vec(any::<u8>(), 0..50)).prop_map(
            |(status, content_type, body)| {
                Action::Respond(Respond { status, content_type, body: body.into() })
            }
        ),
    ]
}

fn fields() -> impl Strategy<Value = Vec<FieldEdit>> {
    let edit = prop_oneof![
        (text(), text()).prop_map(|(name, value)| FieldEdit::Set(name, value)),
        (text(), Just("".into())).prop_map(|(name, value)| FieldEdit::Add(name, value)),
        text().prop_map(FieldEdit::Remove),
    ];
    prop::collection::vec(edit, 0..4)
}

fn route() -> impl Strategy<Value = Route> {
    let host = prop_oneof![
        Just(Host::Any),
        text().prop_map(Host::Exact),
        text().prop_map(|name| Host::Suffix(format!(".{name}").into())),
    ];
    let path = prop_oneof![
        Just(Path::Any),
        Just(Path::Exact("*".into())),
        path().prop_map(Path::Exact),
        path().prop_map(Path::Prefix),
        Just(Path::Regex("/[0-9]+".into())),
    ];
    let asked = (text(), any::<i32>(), host, path, prop::collection::vec(condition(), 0..4));
    let mirror = prop::option::of(
        (0u32..4, 1u16..=10_000).prop_map(|(pool, per_ten_thousand)| Mirror { pool, per_ten_thousand }),
    );
    let to = prop_oneof![Just(HostEdit::Keep), Just(HostEdit::Backend), text().prop_map(HostEdit::Replace)];
    let request = (fields(), path_edit(), to).prop_map(|(fields, path, host)| Edits { fields, path, host });
    let times = (prop::option::of(time()), prop::option::of(time()), prop::option::of(time()));
    let done = (action(), mirror, request, fields(), times, prop::collection::vec(0u16..3, 0..3));
    (asked, done).prop_map(
        |(
            (name, priority, host, path, conditions),
            (action, mirror, request, fields, times, rate_limits),
        )| {
            Route {
                name,
                priority,
                host,
                path,
                conditions,
                action,
                mirror,
                request,
                response: Edits { fields, ..Edits::default() },
                times: RouteTimes {
                    response_header_ms: times.0,
                    response_idle_ms: times.1,
                    tunnel_ms: times.2,
                },
                rate_limits,
            }
        },
    )
}

fn listener() -> impl Strategy<Value = HttpListener> {
    let times = (time(), time(), time(), time(), time(), time()).prop_map(|times| HttpTimes {
        request_header_ms: times.0,
        request_body_ms: times.1,
        response_header_ms: times.2,
        response_idle_ms: times.3,
        keep_alive_ms: times.4,
        tunnel_ms: times.5,
    });
    let sizes = (8u32 << 10..=64 << 10, 1u16..=128, 256u16..=8 << 10, any::<u64>(), any::<[u32; 3]>());
    let limits = (sizes, 0u32..=64 << 10, 0u32..=1 << 30).prop_map(
        |((header_bytes, headers, uri_bytes, body_bytes, numbers), client_body_buffer, proxy_buffer)| {
            HttpLimits {
                header_bytes,
                headers,
                uri_bytes,
                body_bytes,
                body_min_rate: numbers[0],
                requests: numbers[1],
                client_connections: numbers[2],
                client_body_buffer,
                proxy_buffer,
            }
        },
    );
    let name = || prop_oneof![Just(Box::<str>::default()), text()];
    let tell = (any::<bool>(), any::<bool>(), name(), name(), prop::collection::vec(prefix(), 0..3))
        .prop_map(|(x_forwarded, forwarded, via, request_id, trusted)| Tell {
            x_forwarded,
            forwarded,
            via,
            request_id,
            trusted,
        });
    let page = (400u16..600, text(), prop::collection::vec(any::<u8>(), 0..20))
        .prop_map(|(status, content_type, body)| ErrorPage { status, content_type, body: body.into() });
    let key = prop_oneof![Just(RateKey::All), Just(RateKey::Client), text().prop_map(RateKey::Header)];
    let rate = (text(), key, 1u64..=1_000_000_000_000, 1u32..=1_000_000_000)
        .prop_map(|(name, key, millis_per_second, burst)| RateLimit { name, key, millis_per_second, burst });
    let lists = (
        prop::collection::vec(route(), 0..6),
        prop::collection::vec(page, 0..3),
        prop::collection::vec(rate, 3),
    );
    let rest =
        (prop::option::of(0u32..4), any::<[bool; 4]>(), 0u16..=10_000, prop::collection::vec(0u16..3, 0..3));
    (times, limits, tell, lists, rest).prop_map(
        |(
            times,
            limits,
            tell,
            (routes, error_pages, rate_limits),
            (default_pool, flags, log, own_rate_limits),
        )| {
            HttpListener {
                routes: routes.into(),
                default_pool,
                times,
                limits,
                tell,
                connect_allowed: flags[0],
                upgrade_allowed: flags[1],
                cause_header: flags[2],
                error_pages,
                rate_limits,
                own_rate_limits,
                log_per_ten_thousand: log,
                when_full: if flags[3] { WhenFull::Refuse } else { WhenFull::Reset },
            }
        },
    )
}

fn pool() -> impl Strategy<Value = HttpPool> {
    let hash = prop_oneof![
        Just(HashBy::Source),
        Just(HashBy::Path),
        text().prop_map(HashBy::Header),
        text().prop_map(HashBy::Cookie),
    ];
    let sticky = prop::option::of(
        (text(), any::<u32>(), any::<bool>()).prop_map(|(cookie, max_age_s, secure)| Sticky {
            cookie,
            max_age_s,
            secure,
        }),
    );
    let statuses = prop::collection::vec(500u16..600, 0..16);
    let retry = (0u8..=10, any::<[bool; 3]>(), statuses, 0u8..=100, any::<u16>()).prop_map(
        |(attempts, on, on_status, budget_percent, budget_floor)| Retry {
            attempts,
            on_connect: on[0],
            on_reset: on[1],
            on_timeout: on[2],
            on_status,
            budget_percent,
            budget_floor,
        },
    );
    let breaker =
        prop::option::of((any::<[u32; 2]>(), 0u8..=100, time(), 0u32..=86_400_000, time()).prop_map(
            |([consecutive, least_requests], ratio_percent, window_ms, latency_ms, open_ms)| BreakerRules {
                consecutive,
                ratio_percent,
                window_ms,
                least_requests,
                latency_ms,
                open_ms,
            },
        ));
    let none_or_time = || prop_oneof![Just(0), time()];
    let numbers = (any::<[u32; 2]>(), time(), none_or_time(), none_or_time(), 0u8..=100);
    (hash, sticky, retry, breaker, numbers, prop::collection::btree_set(0u16..4, 0..4)).prop_map(
        |(
            hash,
            sticky,
            retry,
            breaker,
            ([idle_connections, requests], idle_ms, lifetime_ms, slow_start_ms, panic_percent),
            backups,
        )| {
            HttpPool {
                hash,
                sticky,
                idle_connections,
                idle_ms,
                lifetime_ms,
                requests,
                retry,
                breaker,
                slow_start_ms,
                panic_percent,
                backups: backups.into_iter().collect(),
            }
        },
    )
}

/// Pools by index instead of position.
fn with_indices(rules: &HttpListener) -> HttpListener {
    let index = |position: u32| POOLS[position as usize];
    let routes = rules.routes.iter().map(|route| {
        let action = match &route.action {
            Action::Pools(splits) => Action::Pools(
                splits.iter().map(|split| Split { pool: index(split.pool), weight: split.weight }).collect(),
            ),
            other => other.clone(),
        };
        let mirror = route.mirror.map(|mirror| Mirror { pool: index(mirror.pool), ..mirror });
        Route { action, mirror, ..route.clone() }
    });
    HttpListener { routes: routes.collect(), default_pool: rules.default_pool.map(index), ..rules.clone() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn listeners_come_back_as_they_were(rules in listener(), index in 0u32..65_535) {
        let image = http::table(index, &rules, &POOLS).encode();
        let table = HttpTable::parse(&image.reference, &image.bytes).unwrap();
        prop_assert_eq!(table.head.listener, index);
        prop_assert_eq!(reader::listener_of(&table), with_indices(&rules));
        prop_assert_eq!(table.encode(), image);
    }

    #[test]
    fn pools_come_back_as_they_were(rules in pool()) {
        let mut record = PoolRecord::new_zeroed();
        record.name = Name::new("p");
        record.upstream = weir_abi::proxy::TcpRecord::POOL;
        record.http = http::pool(&rules);
        let backend = |position: u16| {
            let mut backend = BackendRecord::new_zeroed();
            backend.address = Address::host([198, 18, 0, 1].into());
            backend.backup = rules.backups.contains(&position).into();
            backend
        };
        let image = PoolTable { pool: record, backends: (0..4).map(backend).collect(), slots: vec![0] }.encode();
        let table = PoolTable::parse(&image.reference, &image.bytes).unwrap();
        prop_assert_eq!(reader::pool_of(&table), rules);
    }
}

/// What the index of routes accepts, the tables carry: no route is good for one and bad for the other.
#[test]
fn what_can_be_indexed_can_be_carried() {
    let route = |path: Path, action: Action| Route {
        name: "r".into(),
        priority: 0,
        host: Host::Any,
        path,
        conditions: vec![Condition::Header("x".into(), Value::Prefix("".into()))],
        action,
        mirror: None,
        request: Edits::default(),
        response: Edits::default(),
        times: RouteTimes::default(),
        rate_limits: Vec::new(),
    };
    let answer = || Action::Respond(Respond { status: 204, content_type: "".into(), body: Box::default() });
    for path in [Path::Any, Path::Exact("*".into()), Path::Exact("/%2F".into()), Path::Prefix("/".into())] {
        let routes: Arc<[Route]> = vec![route(path, answer())].into();
        assert!(RouteTable::new(routes.clone()).is_ok());
        let rules = HttpListener { routes, ..HttpListener::default() };
        let image = http::table(0, &rules, &[]).encode();
        let table = HttpTable::parse(&image.reference, &image.bytes).unwrap();
        assert_eq!(reader::listener_of(&table), rules);
    }
}
