//! Does any request make a table panic, or find another route than the reasons tell?
//!
//! The body of a fuzz target: the bytes choose routes from a small vocabulary, and what is left is the request.

use std::net::{IpAddr, Ipv4Addr};

use super::spec::{
    Action, Condition, Edits, Host, Path, PathEdit, Redirect, Route, RouteTimes, Split, Value,
};
use super::{Question, RouteTable, edit};

/// Routes of arbitrary bytes: four for each, then the request's host, path, query and method.
pub fn fuzz_routes(data: &[u8]) {
    let Some((&count, data)) = data.split_first() else { return };
    let count = usize::from(count % 32);
    let Some((choices, request)) = data.split_at_checked(count * 4) else { return };
    let (choices, _) = choices.as_chunks::<4>();
    let routes: Vec<Route> = choices.iter().enumerate().map(|(place, bytes)| route(place, *bytes)).collect();
    let table = match RouteTable::new(routes) {
        Ok(table) => table,
        Err(error) => {
            assert!(error.to_string().contains(&*error.route), "an error without its route");
            return;
        }
    };
    let mut parts = request.split(|byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (host, path, query, method) = (part(), part(), part(), part());
    let fields = [("x-a", part()), ("x-b", part()), ("x-a", part())];
    let source = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 | u32::from(path.len() as u16)));
    let question = Question { host, path, query, method, source, fields: fields.as_slice() };
    let found = table.find(&question);
    let explanation = table.explain(&question);
    assert_eq!(found, explanation.taken, "{question:?}");
    assert!(explanation.considered.len() + explanation.left_off == count, "routes are missing");
    if let Some(route) = found.and_then(|place| table.route(place)) {
        let mut out = Vec::with_capacity(path.len() + 64);
        let _ = edit::write_path(&route.request.path, &route.path, path, &mut out);
        if let Action::Redirect(redirect) = &route.action {
            let asked = edit::Asked {
                scheme: "http",
                host,
                port: Some(80),
                address: [192, 0, 2, 1].into(),
                path,
                query,
            };
            let mut out = Vec::with_capacity(request.len() + 64);
            let written = edit::write_location(redirect, &route.path, &asked, &mut out);
            assert!(written.is_ok(), "{} bytes for {}", out.capacity(), request.len());
            assert!(!out.starts_with(b"//"), "leads to another host");
        }
    }
}

fn route(place: usize, [host, path, more, last]: [u8; 4]) -> Route {
    const NAMES: [&str; 4] = ["example.com", "a.example.com", "b.a.example.com", "com"];
    const PATHS: [&str; 8] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "//", "/a//b"];
    const REGEXES: [&str; 4] = ["/[ab]+", "/a/.*", "(?i)/A(/b)*", ".*b"];
    let name = NAMES.get(usize::from(host >> 2) % NAMES.len()).copied().unwrap_or_default();
    let text = PATHS.get(usize::from(path >> 2) % PATHS.len()).copied().unwrap_or_default();
    let regex = REGEXES.get(usize::from(path >> 2) % REGEXES.len()).copied().unwrap_or_default();
    let value = match last >> 6 {
        0 => Value::Present,
        1 => Value::Absent,
        2 => Value::Exact("1".into()),
        _ => Value::Regex("[0-9]+".into()),
    };
    let conditions = [
        Condition::Method(vec!["GET".into(), "PUT".into()]),
        Condition::Header("x-a".into(), value.clone()),
        Condition::Query("q".into(), value),
        Condition::Header("x-b".into(), Value::Prefix("v".into())),
    ];
    let pools = Action::Pools(vec![Split { pool: 1, weight: 1 }, Split { pool: 2, weight: 3 }]);
    let replaced = PathEdit::ReplacePrefix("/".into());
    let redirect = Redirect {
        status: 302,
        scheme: None,
        host: None,
        port: None,
        path: if more & 0x40 == 0 { PathEdit::Keep } else { replaced.clone() },
        keeps_query: more & 0x20 == 0,
        relative: more & 0x10 == 0,
    };
    Route {
        name: place.to_string().into(),
        priority: i32::from(more % 3) - 1,
        host: match host % 4 {
            0 => Host::Any,
            1 => Host::Suffix(format!(".{name}").into()),
            _ => Host::Exact(name.into()),
        },
        path: match path % 4 {
            0 => Path::Any,
            1 => Path::Exact(text.into()),
            2 => Path::Prefix(text.into()),
            _ => Path::Regex(regex.into()),
        },
        conditions: conditions
            .into_iter()
            .enumerate()
            .filter_map(|(bit, condition)| (last >> bit & 1 == 1).then_some(condition))
            .collect(),
        action: if more & 0x80 == 0 { pools } else { Action::Redirect(redirect) },
        mirror: None,
        request: Edits { path: if more & 0x10 == 0 { PathEdit::Keep } else { replaced }, ..Edits::default() },
        response: Edits::default(),
        times: RouteTimes::default(),
        rate_limits: Vec::new(),
    }
}

/// Tables of each kind of route with requests that they take, for a runner to mutate.
pub fn seeds() -> Vec<Vec<u8>> {
    let request = b"b.a.example.com:\n/a/b/c\nq=1&x\nGET\n1\nv2\n7";
    let mut seeds = Vec::new();
    for host in 0..4 {
        for path in 0..4 {
            let mut seed = vec![2, host, path, 1, 0, host | 4, path | 8, 0x80, 0x8f];
            seed.extend_from_slice(request);
            seeds.push(seed);
        }
    }
    seeds
}
