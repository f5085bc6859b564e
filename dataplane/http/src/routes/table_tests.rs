//! Does the index find what asking every route would find?

use std::cmp::Ordering;
use std::net::IpAddr;

use proptest::prelude::*;

use super::spec::{Action, Condition, Edits, Host, Path, Route, RouteTimes, Split, Value};
use super::{ALTERNATIVES, Considered, Question, REGEXES, RouteTable, Verdict, explain, fuzz};

type Header = (&'static str, &'static str);

fn route(name: &str, host: &str, path: &str) -> Route {
    Route {
        name: name.into(),
        priority: 0,
        host: match host {
            "" => Host::Any,
            wildcard if wildcard.starts_with('*') => Host::Suffix(wildcard[1..].into()),
            exact => Host::Exact(exact.into()),
        },
        path: match path {
            "" => Path::Any,
            regex if regex.starts_with('~') => Path::Regex(regex[1..].into()),
            exact if exact.starts_with('=') => Path::Exact(exact[1..].into()),
            prefix => Path::Prefix(prefix.into()),
        },
        conditions: vec![],
        action: Action::Pools(vec![Split { pool: 0, weight: 1 }]),
        mirror: None,
        request: Edits::default(),
        response: Edits::default(),
        times: RouteTimes::default(),
        rate_limits: vec![],
    }
}

fn asking<'a>(host: &'a str, path: &'a str, fields: &'a [Header]) -> Question<'a, [Header]> {
    let source = IpAddr::from([198, 18, 0, 1]);
    Question { host: host.as_bytes(), path: path.as_bytes(), query: b"", method: b"GET", source, fields }
}

fn name_of<'a>(table: &'a RouteTable, host: &str, path: &str) -> &'a str {
    let found = table.find(&asking(host, path, &[]));
    found.and_then(|place| table.route(place)).map_or("", |route| &route.name)
}

#[test]
fn the_closest_route_is_taken() {
    let table = RouteTable::new(vec![
        route("any", "", ""),
        route("root", "", "/"),
        route("shop", "shop.example.com", ""),
        route("v1", "shop.example.com", "/v1"),
        route("v1-users", "shop.example.com", "/v1/users/"),
        route("v1-me", "shop.example.com", "=/v1/users/me"),
        route("v1-number", "shop.example.com", "~/v1/users/[0-9]+"),
        route("wild", "*.example.com", ""),
        route("wilder", "*.eu.example.com", "/x"),
        route("star", "", "=*"),
        Route { priority: 5, ..route("health", "", "=/health") },
        Route { priority: -5, ..route("last", "shop.example.com", "=/last") },
    ])
    .unwrap();
    for (host, path, expected) in [
        ("other.example", "/x", "root"),
        ("", "/x", "root"),
        ("", "*", "star"),
        ("shop.example.com", "*", "shop"),
        ("shop.example.com", "/", "shop"),
        ("SHOP.example.com.", "/v1", "v1"),
        ("shop.example.com", "/v1/", "v1"),
        ("shop.example.com", "/v10", "shop"),
        ("shop.example.com", "/v1/users", "v1-users"),
        ("shop.example.com", "/v1/users/", "v1-users"),
        ("shop.example.com", "/v1/users/a", "v1-users"),
        ("shop.example.com", "/v1/users/12", "v1-number"),
        ("shop.example.com", "/v1/users/12/a", "v1-users"),
        ("shop.example.com", "/v1/users/me", "v1-me"),
        ("shop.example.com", "/v1//users/me", "v1"),
        ("a.example.com", "/v1", "wild"),
        ("a.b.example.com", "/v1", "wild"),
        ("example.com", "/v1", "root"),
        ("aexample.com", "/v1", "root"),
        (".example.com", "/v1", "root"),
        ("a.eu.example.com", "/x/y", "wilder"),
        ("a.eu.example.com", "/y", "wild"),
        ("eu.example.com", "/x", "wild"),
        ("shop.example.com", "/health", "health"),
        ("shop.example.com", "/last", "root"),
        ("shop.example.com", "", "shop"),
        ("other.example", "", "any"),
    ] {
        // "last" has a lower priority than all others, so that even any host's routes come first
        let expected = if (host, path) == ("shop.example.com", "/last") { "shop" } else { expected };
        assert_eq!(name_of(&table, host, path), expected, "{host} {path}");
    }
    assert_eq!(RouteTable::new(vec![]).unwrap().find(&asking("a", "/", &[])), None);
}

#[test]
fn long_texts_are_told_apart_to_their_ends() {
    let host = |end: &str| format!("{}.{end}.example.com", "long-label".repeat(9));
    let path = |end: &str| format!("/{}/{end}", "segment".repeat(20));
    let mut routes = vec![route("any", "", "")];
    for end in ["a", "b"] {
        routes.push(route(&format!("host-{end}"), &host(end), "/x"));
        routes.push(route(&format!("exact-{end}"), "", &format!("={}", path(end))));
        routes.push(route(&format!("prefix-{end}"), "", &path(&format!("{end}/p"))));
        routes.push(route(&format!("regex-{end}"), "", &format!("~{}/[0-9]+", path(end))));
    }
    let table = RouteTable::new(routes).unwrap();
    for end in ["a", "b"] {
        assert_eq!(name_of(&table, &host(end), "/x"), format!("host-{end}"));
        assert_eq!(name_of(&table, "", &path(end)), format!("exact-{end}"));
        assert_eq!(name_of(&table, "", &path(&format!("{end}/p/q"))), format!("prefix-{end}"));
        assert_eq!(name_of(&table, "", &path(&format!("{end}/12"))), format!("regex-{end}"));
    }
    assert_eq!(name_of(&table, &host("c"), &path("c")), "any");
}

#[test]
fn routes_whose_conditions_fail_are_passed_over() {
    let gold = Condition::Header("x-tier".into(), Value::Exact("gold".into()));
    let get = Condition::Method(vec!["GET".into()]);
    let put = Condition::Method(vec!["PUT".into()]);
    let table = RouteTable::new(vec![
        Route { conditions: vec![put], ..route("put", "a.example", "=/x") },
        route("prefix", "a.example", "/"),
        Route { conditions: vec![get.clone()], ..route("get", "", "=/y") },
        Route { conditions: vec![get, gold], ..route("gold", "", "=/y") },
        Route { priority: 1, conditions: vec![], ..route("lifted", "", "/y/z") },
    ])
    .unwrap();
    assert_eq!(name_of(&table, "a.example", "/x"), "prefix");
    assert_eq!(name_of(&table, "b.example", "/x"), "");
    assert_eq!(name_of(&table, "b.example", "/y"), "get");
    assert_eq!(name_of(&table, "a.example", "/y"), "prefix");
    assert_eq!(name_of(&table, "a.example", "/y/z"), "lifted");
    let found = table.find(&asking("b.example", "/y", &[("x-tier", "lead"), ("X-Tier", "gold")]));
    assert_eq!(found, Some(3));
}

#[test]
fn bounds_are_said() {
    let refusal = |routes: Vec<Route>| RouteTable::new(routes).unwrap_err().to_string();
    let many = |count: usize, path: &dyn Fn(usize) -> String| -> Vec<Route> {
        (0..count).map(|at| route(&format!("r{at}"), "a.example", &path(at))).collect()
    };
    let said = refusal(many(REGEXES + 1, &|at| format!("~/x{at}")));
    assert_eq!(said.split(" is ").next().unwrap(), "route `r32`: path `/x32`", "{said}");
    RouteTable::new(many(REGEXES, &|at| format!("~/x{at}"))).unwrap();
    let said = refusal(many(ALTERNATIVES + 1, &|_| "=/x".into()));
    assert!(said.starts_with("route `r256`: path `/x` has too many"), "{said}");
    let said = refusal(vec![route("a", "", "~/(")]);
    assert!(said.starts_with("route `a`: path `/(` is no usable expression: "), "{said}");
    let said = refusal(vec![route("a", "", ""), route("a", "", "/x")]);
    assert!(said.contains("name `a` is there twice"), "{said}");
    let bad = Condition::Header("a".into(), Value::Regex("[".into()));
    let said = refusal(vec![Route { conditions: vec![bad], ..route("a", "", "") }]);
    assert!(said.starts_with("route `a`: header `a ~ [` is no usable expression"), "{said}");
    let large = |at: usize| format!("~{at}(a|b)*a(a|b){{11}}");
    let routes = (0..400).map(|at| route(&format!("r{at}"), &format!("h{at}"), &large(at))).collect();
    let said = refusal(routes);
    assert!(said.contains("bytes for the expressions of all routes are too many"), "{said}");
}

#[test]
fn reasons_are_bounded_and_the_closest() {
    let mut routes: Vec<Route> =
        (0..200).map(|at| route(&format!("r{at}"), &format!("h{at}"), "/x")).collect();
    routes.push(route("path", "", "/y"));
    let fails = Condition::Query("a".into(), Value::Present);
    routes.push(Route { priority: 1, conditions: vec![fails], ..route("query", "", "/x") });
    routes.push(route("any", "", ""));
    let table = RouteTable::new(routes).unwrap();
    let said = table.explain(&asking("h7", "/x/y", &[]));
    assert_eq!((said.taken, said.pools.as_slice()), (Some(7), [(0, 10_000)].as_slice()));
    assert_eq!(said.considered.len(), explain::CONSIDERED);
    assert_eq!(said.left_off, 203 - explain::CONSIDERED);
    let of = |route| said.considered.iter().find(|one| one.route == route).unwrap().verdict;
    assert_eq!(of(201), Verdict::Failed { condition: 0 });
    assert_eq!((of(7), of(200), of(202)), (Verdict::Taken, Verdict::OtherPath, Verdict::Behind));
    assert_eq!(said.considered[0].route, 201);
    let same: Vec<Route> = (0..200)
        .map(|at| {
            let fails = Condition::Query(format!("q{at}").into(), Value::Present);
            let conditions = if at == 150 { vec![] } else { vec![fails] };
            Route { conditions, ..route(&format!("r{at}"), "", "/x") }
        })
        .collect();
    let said = RouteTable::new(same).unwrap().explain(&asking("", "/x", &[]));
    assert_eq!((said.considered.len(), said.taken), (explain::CONSIDERED, Some(150)));
    assert_eq!(said.considered[63], Considered { route: 150, verdict: Verdict::Taken });
}

type Meaning = fn(&str) -> bool;

/// The expressions of the property test, and what they mean.
const REGEXES_WITH_MEANING: [(&str, Meaning); 3] = [
    ("/a+", |path| path.len() > 1 && path.starts_with('/') && path[1..].bytes().all(|byte| byte == b'a')),
    ("/a(/.*)?", |path| path == "/a" || path.starts_with("/a/")),
    (".*b", |path| path.ends_with('b')),
];

/// Does this route fit? As the documentation has it, word by word.
fn fits(route: &Route, asked: &Question<'_, [Header]>) -> bool {
    let host = std::str::from_utf8(asked.host).unwrap().trim_end_matches('.').to_lowercase();
    let path = std::str::from_utf8(asked.path).unwrap();
    let host = match &route.host {
        Host::Any => true,
        Host::Exact(name) => **name == *host,
        Host::Suffix(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
    };
    let path = match &route.path {
        Path::Any => true,
        Path::Exact(exact) => **exact == *path,
        Path::Prefix(prefix) => {
            let prefix = prefix.trim_end_matches('/');
            path.starts_with('/') && (path == prefix || path.starts_with(&format!("{prefix}/")))
        }
        Path::Regex(regex) => {
            REGEXES_WITH_MEANING.iter().find(|(text, _)| *text == &**regex).unwrap().1(path)
        }
    };
    let conditions = route.conditions.iter().all(|condition| match condition {
        Condition::Method(methods) => methods.iter().any(|method| method.as_bytes() == asked.method),
        Condition::Header(name, Value::Exact(value)) => {
            asked.fields.contains(&(name_in(name), name_in(value)))
        }
        Condition::Header(name, Value::Absent) => asked.fields.iter().all(|(field, _)| **field != **name),
        other => panic!("{other:?}"),
    });
    host && path && conditions
}

fn name_in(text: &str) -> &'static str {
    ["x-a", "x-b", "1", "2"].into_iter().find(|known| *known == text).unwrap()
}

/// Which of two is asked earlier? As the documentation has it.
fn order(one: &Route, other: &Route) -> Ordering {
    let host = |route: &Route| match &route.host {
        Host::Exact(_) => 1_000,
        Host::Suffix(suffix) => suffix.len(),
        Host::Any => 0,
    };
    let path = |route: &Route| match &route.path {
        Path::Exact(_) => 10_001,
        Path::Regex(_) => 10_000,
        Path::Prefix(prefix) => 1 + prefix.trim_end_matches('/').len(),
        Path::Any => 0,
    };
    (other.priority.cmp(&one.priority))
        .then(host(other).cmp(&host(one)))
        .then(path(other).cmp(&path(one)))
        .then(other.conditions.len().cmp(&one.conditions.len()))
}

fn routes() -> impl Strategy<Value = Vec<Route>> {
    let host = prop_oneof![
        Just(Host::Any),
        "(a\\.)?(b\\.)?c".prop_map(|name| Host::Exact(name.into())),
        "\\.(b\\.)?c".prop_map(|suffix| Host::Suffix(suffix.into())),
    ];
    let path = prop_oneof![
        Just(Path::Any),
        "(/[ab]{1,2}){0,2}/([ab]{1,2})?".prop_map(|path| Path::Exact(path.into())),
        "(/[ab]{1,2}){0,3}/?".prop_map(|path| Path::Prefix(if path.is_empty() {
            "/".into()
        } else {
            path.into()
        })),
        (0usize..3).prop_map(|at| Path::Regex(REGEXES_WITH_MEANING[at].0.into())),
    ];
    let condition = prop_oneof![
        Just(Condition::Method(vec!["GET".into()])),
        Just(Condition::Method(vec!["PUT".into(), "POST".into()])),
        ("x-[ab]", "[12]")
            .prop_map(|(name, value)| Condition::Header(name.into(), Value::Exact(value.into()))),
        "x-[ab]".prop_map(|name| Condition::Header(name.into(), Value::Absent)),
    ];
    let one = (-1i32..2, host, path, proptest::collection::vec(condition, 0..3));
    proptest::collection::vec(one, 0..40).prop_map(|all| {
        all.into_iter()
            .enumerate()
            .map(|(at, (priority, host, path, conditions))| Route {
                priority: if at % 3 == 0 { priority } else { 0 },
                host,
                path,
                conditions,
                ..route(&at.to_string(), "", "")
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_index_finds_what_asking_all_finds(
        routes in routes(),
        host in "((a\\.)?(b\\.)?[cC]\\.?)?",
        path in "(/[ab]{0,2}){1,4}|\\*|",
        method in "GET|PUT",
        values in proptest::collection::vec(("x-[ab]", "[12]"), 0..3),
    ) {
        let fields: Vec<Header> = values.iter().map(|(name, value)| (name_in(name), name_in(value))).collect();
        let asked = Question { method: method.as_bytes(), ..asking(&host, &path, &fields) };
        let mut fitting: Vec<usize> = (0..routes.len()).filter(|at| fits(&routes[*at], &asked)).collect();
        fitting.sort_by(|one, other| order(&routes[*one], &routes[*other]));
        let table = RouteTable::new(routes).unwrap();
        prop_assert_eq!(table.find(&asked), fitting.first().copied());
        let said = table.explain(&asked);
        prop_assert_eq!(said.taken, fitting.first().copied());
        prop_assert_eq!(said.considered.len(), table.routes().len());
        let behind = said.considered.iter().filter(|one| one.verdict == Verdict::Behind).map(|one| one.route);
        prop_assert_eq!(behind.collect::<Vec<_>>(), fitting.iter().skip(1).copied().collect::<Vec<_>>());
    }

    #[test]
    fn arbitrary_bytes_break_nothing(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz::fuzz_routes(&data);
    }

    #[test]
    fn mutated_tables_break_nothing(seed in any::<proptest::sample::Index>(), at in any::<proptest::sample::Index>(), byte: u8) {
        let seeds = fuzz::seeds();
        let mut data = seeds[seed.index(seeds.len())].clone();
        let at = at.index(data.len());
        data[at] = byte;
        fuzz::fuzz_routes(&data);
    }
}
