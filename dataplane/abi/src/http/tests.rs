//! Round trips, and every field of an HTTP table outside of its range.
#![allow(clippy::indexing_slicing, reason = "tests")]

use super::*;
use crate::image::{SnapshotError, TableKind, seal_raw};
use crate::record::Address;
use zerocopy::FromZeros;

/// One listener with a route of each kind.
fn table() -> HttpTable {
    let mut arena = Arena::default();
    let mut put = |text: &str| arena.put(text);
    let head = HttpRecord {
        default_pool: 0,
        request_header_ms: 10_000,
        request_body_ms: 10_000,
        response_header_ms: 10_000,
        response_idle_ms: 10_000,
        keep_alive_ms: 10_000,
        tunnel_ms: 10_000,
        header_bytes: 16 << 10,
        headers: 100,
        uri_bytes: 8 << 10,
        via: put("weir"),
        request_id: put("x-request-id"),
        trusted: Stretch { first: 0, count: 1 },
        own_rate_limits: Stretch { first: 0, count: 1 },
        log_per_ten_thousand: 10_000,
        ..HttpRecord::default()
    };
    let rate = RateRecord {
        millis_per_second: 1_000,
        name: put("each"),
        header: put("x-key"),
        burst: 10,
        key: RateKeyKind::Header as u8,
        reserved: [0; 3],
    };
    let passes = RouteRecord {
        name: put("api"),
        host: put("shop.example.com"),
        host_kind: HostKind::Exact as u8,
        path: put("/v1"),
        path_kind: PathKind::Prefix as u8,
        conditions: Stretch { first: 0, count: 4 },
        pools: Stretch { first: 0, count: 1 },
        request_fields: Stretch { first: 0, count: 2 },
        request_path: put("/"),
        request_path_kind: PathEditKind::ReplacePrefix as u8,
        request_host_kind: HostEditKind::Backend as u8,
        rate_limits: Stretch { first: 0, count: 1 },
        mirror_pool: 2,
        mirror_per_ten_thousand: 100,
        ..RouteRecord::new()
    };
    let redirects = RouteRecord {
        name: put("old"),
        host: put(".example.com"),
        host_kind: HostKind::Suffix as u8,
        path: put("/[a-z]+"),
        path_kind: PathKind::Regex as u8,
        action: ActionKind::Redirect as u8,
        status: 308,
        scheme: Scheme::Https as u8,
        first: put("example.com"),
        second: put("/new"),
        path_edit: PathEditKind::Replace as u8,
        keeps_query: 1,
        ..RouteRecord::new()
    };
    let answers = RouteRecord {
        name: put("robots"),
        path: put("/robots.txt"),
        path_kind: PathKind::Exact as u8,
        action: ActionKind::Respond as u8,
        status: 200,
        first: put("text/plain"),
        second: put("no\r\n"),
        ..RouteRecord::new()
    };
    let condition =
        |kind, name, value, compare| ConditionRecord { name, value, kind, compare, reserved: [0; 2] };
    let one = Stretch { first: 0, count: 1 };
    let conditions = vec![
        condition(ConditionKind::Method as u8, Stretch::default(), one, 0),
        condition(ConditionKind::Header as u8, put("x-canary"), put("yes"), Compare::Exact as u8),
        condition(ConditionKind::Query as u8, put("v"), put("[0-9]"), Compare::Regex as u8),
        condition(ConditionKind::Source as u8, Stretch::default(), one, 0),
    ];
    let edit = |kind, name, value| EditRecord { name, value, kind, reserved: [0; 3] };
    let edits = vec![
        edit(EditKind::Set as u8, put("X-A"), put("%{client}")),
        edit(EditKind::Remove as u8, put("cookie"), Stretch::default()),
    ];
    let page = PageRecord { content_type: put("text/html"), body: put("<p>"), status: 503, reserved: 0 };
    let words = vec![put("GET")];
    HttpTable {
        head,
        rates: vec![rate],
        routes: vec![passes, redirects, answers],
        conditions,
        splits: vec![SplitRecord { pool: 1, weight: 1 }],
        edits,
        pages: vec![page],
        words,
        prefixes: vec![Address::prefix([198, 18, 0, 0].into(), 24)],
        numbers: vec![0],
        arena: arena.into_bytes(),
    }
}

#[test]
fn tables_round_trip_and_tell_their_pools() {
    let image = table().encode();
    let parsed = HttpTable::parse(&image.reference, &image.bytes).unwrap();
    assert_eq!(parsed.encode(), image);
    assert_eq!(parsed.text(parsed.routes[0].host), "shop.example.com");
    assert_eq!(parsed.bytes(parsed.routes[2].second), b"no\r\n");
    assert_eq!(parsed.pools().collect::<Vec<_>>(), [0, 1, 2]);
    for cut in 0..image.bytes.len() {
        assert!(HttpTable::parse(&image.reference, &image.bytes[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn the_same_text_lies_in_the_arena_once() {
    let mut arena = Arena::default();
    assert_eq!(arena.put("abc"), arena.put("abc"));
    assert_eq!(arena.put("").count, 0);
    assert_eq!(arena.put("d"), Stretch { first: 3, count: 1 });
    assert_eq!(arena.into_bytes(), b"abcd");
}

/// Each byte of a well-sealed table set to what it must not be: refused or another table, never a panic.
#[test]
fn sealed_nonsense_is_refused_or_consistent() {
    let content = table().encode().bytes[32..].to_vec();
    let mut refused = 0;
    for at in 0..content.len() {
        for byte in [0, 1, 0x7f, 0xff] {
            let mut content = content.clone();
            content[at] = byte;
            let image = seal_raw(TableKind::Http, &content);
            match HttpTable::parse(&image.reference, &image.bytes) {
                Ok(table) => assert_eq!(table.encode(), image),
                Err(_) => refused += 1,
            }
        }
        crate::fuzz::snapshot(&content);
    }
    assert!(refused > content.len());
}

#[test]
fn fields_out_of_range_are_refused_by_name() {
    type Change = (&'static str, fn(&mut HttpTable));
    let cases: &[Change] = &[
        ("listener", |t| t.head.listener = 65_535),
        ("default_pool", |t| t.head.default_pool = 65_535),
        ("request_header_ms", |t| t.head.request_header_ms = 99),
        ("request_body_ms", |t| t.head.request_body_ms = 0),
        ("response_header_ms", |t| t.head.response_header_ms = 86_400_001),
        ("response_idle_ms", |t| t.head.response_idle_ms = 0),
        ("keep_alive_ms", |t| t.head.keep_alive_ms = 0),
        ("tunnel_ms", |t| t.head.tunnel_ms = 0),
        ("header_bytes", |t| t.head.header_bytes = 1_023),
        ("headers", |t| t.head.headers = 0),
        ("headers", |t| t.head.headers = 129),
        ("uri_bytes", |t| t.head.uri_bytes = 255),
        ("uri_bytes", |t| t.head.uri_bytes = (16 << 10) + 1),
        ("client_body_buffer", |t| t.head.client_body_buffer = u32::MAX),
        ("proxy_buffer", |t| t.head.proxy_buffer = u32::MAX),
        ("via", |t| t.head.via.count = u32::MAX),
        ("request_id", |t| t.head.request_id = t.routes[0].path),
        ("trusted", |t| t.head.trusted.count = 2),
        ("own_rate_limits", |t| t.head.own_rate_limits.first = 1),
        ("x_forwarded", |t| t.head.x_forwarded = 2),
        ("connect", |t| t.head.connect = 2),
        ("when_full", |t| t.head.when_full = 2),
        ("log_per_ten_thousand", |t| t.head.log_per_ten_thousand = 10_001),
        ("reserved", |t| t.head.reserved = 1),
        ("rate.name", |t| t.rates[0].name = Stretch::default()),
        ("rate.millis_per_second", |t| t.rates[0].millis_per_second = 0),
        ("rate.burst", |t| t.rates[0].burst = 0),
        ("rate.key", |t| t.rates[0].key = 3),
        ("rate.header", |t| t.rates[0].key = RateKeyKind::All as u8),
        ("rate.header", |t| t.rates[0].header = t.edits[0].name),
        ("route.name", |t| t.routes[0].name = Stretch::default()),
        ("route.host_kind", |t| t.routes[0].host_kind = 3),
        ("route.host", |t| t.routes[0].host_kind = HostKind::Any as u8),
        ("route.host", |t| t.routes[0].host_kind = HostKind::Suffix as u8),
        ("route.path_kind", |t| t.routes[0].path_kind = 4),
        ("route.path", |t| t.routes[0].path = t.routes[0].host),
        ("route.path", |t| t.routes[1].path = Stretch { first: 0, count: 2_000 }),
        ("route.conditions", |t| t.routes[0].conditions.count = 5),
        ("route.request_fields", |t| t.routes[0].request_fields.count = 3),
        ("route.response_fields", |t| t.routes[0].response_fields.first = 3),
        ("route.rate_limits", |t| t.routes[0].rate_limits.count = 2),
        ("route.tunnel_ms", |t| t.routes[0].tunnel_ms = 1),
        ("route.mirror", |t| t.routes[0].mirror_per_ten_thousand = 0),
        ("route.mirror", |t| t.routes[0].mirror_pool = NO_INDEX),
        ("route.mirror_pool", |t| t.routes[0].mirror_pool = 65_535),
        ("route.request_path", |t| t.routes[0].request_path_kind = 3),
        ("route.request_path", |t| t.routes[0].request_path_kind = 0),
        ("route.request_host_kind", |t| t.routes[0].request_host_kind = 3),
        ("route.reserved", |t| t.routes[0].reserved = 1),
        ("route.action", |t| t.routes[0].action = 3),
        ("route.pools", |t| t.routes[0].pools.count = 0),
        ("route.pools", |t| t.routes[0].pools.first = 1),
        ("route.pools", |t| t.routes[1].pools = t.routes[0].pools),
        ("route.redirect", |t| t.routes[0].port = 80),
        ("route.status", |t| t.routes[0].status = 200),
        ("route.status", |t| t.routes[1].status = 300),
        ("route.status", |t| t.routes[2].status = 199),
        ("route.scheme", |t| t.routes[1].scheme = 3),
        ("route.second", |t| t.routes[1].path_edit = PathEditKind::Keep as u8),
        ("route.first", |t| t.routes[2].first = t.routes[2].second),
        ("condition.kind", |t| t.conditions[0].kind = 4),
        ("condition.compare", |t| t.conditions[0].compare = 1),
        ("condition.compare", |t| t.conditions[1].compare = 5),
        ("condition.value", |t| t.conditions[0].value.count = 2),
        ("condition.value", |t| t.conditions[3].value.count = 0),
        ("condition.value", |t| t.conditions[1].compare = Compare::Present as u8),
        ("condition.name", |t| t.conditions[1].name = t.edits[0].name),
        ("condition.reserved", |t| t.conditions[0].reserved = [1, 0]),
        ("split.pool", |t| t.splits[0].pool = NO_INDEX),
        ("split.weight", |t| t.splits[0].weight = 0),
        ("edit.kind", |t| t.edits[0].kind = 3),
        ("edit.name", |t| t.edits[0].name = Stretch::default()),
        ("edit.value", |t| t.edits[0].value = t.routes[2].second),
        ("edit.value", |t| t.edits[1].value = t.edits[0].value),
        ("page.status", |t| t.pages[0].status = 200),
        ("page.body", |t| t.pages[0].body.first = u32::MAX),
        ("word", |t| t.words[0] = t.routes[0].path),
        ("prefix", |t| t.prefixes[0].prefix_length = 33),
        ("rate_limits", |t| t.numbers[0] = 1),
    ];
    for (at, (expected, change)) in cases.iter().enumerate() {
        let mut table = table();
        change(&mut table);
        let image = table.encode();
        match HttpTable::parse(&image.reference, &image.bytes) {
            Err(SnapshotError::Value { field, .. }) => assert_eq!(field, *expected, "case {at}"),
            other => panic!("case {at}, {expected}: {other:?}"),
        }
    }
}

#[test]
fn pools_out_of_range_are_refused_by_name() {
    type Change = (&'static str, fn(&mut HttpPoolRecord));
    let cases: &[Change] = &[
        ("http.hash", |p| p.hash = 4),
        ("http.hash_name", |p| p.hash = HashKind::Header as u8),
        ("http.hash_name", |p| p.hash_name = Name::new("x")),
        ("http.cookie", |p| p.cookie = Name::new("a b")),
        ("http.cookie_secure", |p| p.cookie_secure = 1),
        ("http.cookie_max_age_s", |p| p.cookie_max_age_s = 1),
        ("http.idle_ms", |p| p.idle_ms = 0),
        ("http.lifetime_ms", |p| p.lifetime_ms = 99),
        ("http.slow_start_ms", |p| p.slow_start_ms = u32::MAX),
        ("http.panic_percent", |p| p.panic_percent = 101),
        ("http.retry_attempts", |p| p.retry_attempts = 11),
        ("http.retry_on", |p| p.retry_on = 8),
        ("http.retry_budget_percent", |p| p.retry_budget_percent = 101),
        ("http.retry_statuses", |p| p.retry_statuses[0] = 200),
        ("http.retry_statuses", |p| p.retry_statuses[1] = 503),
        ("http.reserved", |p| p.reserved[0] = 1),
        ("http.breaker", |p| p.breaker = 2),
        ("http.breaker", |p| p.breaker = 0),
        ("http.breaker_ratio_percent", |p| p.breaker_ratio_percent = 101),
        ("http.breaker_window_ms", |p| p.breaker_window_ms = 0),
        ("http.breaker_open_ms", |p| p.breaker_open_ms = 0),
    ];
    assert!(HttpPoolRecord::DEFAULT.check("pool").is_ok());
    assert!(HttpPoolRecord::new_zeroed().check("pool").is_err());
    for (expected, change) in cases {
        let mut record = HttpPoolRecord::DEFAULT;
        change(&mut record);
        match record.check("pool") {
            Err(SnapshotError::Value { field, .. }) => assert_eq!(field, *expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}
