//! How long does it take to find a request's route? `cargo run --release --package weir-http --example route_time`
//!
//! Ten routes for each host: exact paths, prefixes of up to three segments, one expression, one with conditions, and routes for any
//! host beside them. Requests are for all of the routes, in an order that no cache foresees.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Instant;

use weir_http::routes::spec::{Action, Condition, Edits, Host, Path, Route, RouteTimes, Split, Value};
use weir_http::routes::{Question, RouteTable};

/// Requests of one round; the best of several rounds is told.
const REQUESTS: usize = 200_000;
const ROUNDS: usize = 7;

fn route(name: String, host: Host, path: Path, conditions: Vec<Condition>) -> Route {
    Route {
        name: name.into_boxed_str(),
        priority: 0,
        host,
        path,
        conditions,
        action: Action::Pools(vec![Split { pool: 0, weight: 1 }]),
        mirror: None,
        request: Edits::default(),
        response: Edits::default(),
        times: RouteTimes::default(),
        rate_limits: Vec::new(),
    }
}

/// A route, and a host and a path that it takes.
fn example(at: usize) -> (Route, String, String) {
    let name = format!("shop-{}.example.com", at / 10);
    let host = Host::Exact(name.as_str().into());
    let (path, asked) = match at % 10 {
        0 => (Path::Exact("/health".into()), "/health".to_owned()),
        1 => (Path::Regex("/users/[0-9]+/avatar".into()), "/users/4711/avatar".to_owned()),
        2 => (Path::Prefix("/".into()), "/index.html".to_owned()),
        3 => (Path::Exact("/v1/users/me".into()), "/v1/users/me".to_owned()),
        4 => (Path::Prefix("/v1".into()), "/v1/orders/991/lines".to_owned()),
        5 => (Path::Prefix("/v1/users".into()), "/v1/users/8f14e45f".to_owned()),
        other => {
            let prefix = format!("/v1/service-{other}/items");
            let asked = format!("{prefix}/c9f0f895fb98ab91");
            (Path::Prefix(prefix.into_boxed_str()), asked)
        }
    };
    let tier = Condition::Header("x-tier".into(), Value::Exact("gold".into()));
    let conditions = if at % 10 == 9 { vec![tier] } else { Vec::new() };
    (route(format!("r{at}"), host, path, conditions), name, asked)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let fields = [("accept", "*/*"), ("user-agent", "curl/8.0"), ("x-tier", "gold")];
    let mut first = 0.0;
    for count in [10, 100, 1_000, 10_000] {
        let examples: Vec<(Route, String, String)> = (0..count).map(example).collect();
        let routes: Vec<Route> = examples.iter().map(|(route, ..)| route.clone()).collect();
        let start = Instant::now();
        let table = RouteTable::new(routes)?;
        let built_ms = start.elapsed().as_secs_f64() * 1e3;
        let question = |at: usize| {
            let (_, host, path) = examples.get(at)?;
            let (host, path) = (host.as_bytes(), path.as_bytes());
            let source = IpAddr::from([198, 18, 0, 1]);
            Some(Question { host, path, query: b"", method: b"GET", source, fields: fields.as_slice() })
        };
        for at in 0..count {
            let found = question(at).and_then(|question| table.find(&question));
            assert_eq!(found, Some(at), "another route than meant");
        }
        // a request's host and path have just been read when its route is looked for: they are in the cache
        let order: Vec<usize> = (0..REQUESTS).map(|at| at.wrapping_mul(0x9e37_79b1) % count).collect();
        let mut best = f64::MAX;
        for _ in 0..ROUNDS {
            let mut nanoseconds = 0;
            for batch in order.chunks(16) {
                let batch: Vec<_> = batch.iter().filter_map(|at| question(*at)).collect();
                let warm = batch.iter().flat_map(|question| question.host.iter().chain(question.path));
                black_box(warm.fold(0u8, |sum, byte| sum ^ byte));
                let start = Instant::now();
                for question in &batch {
                    black_box(table.find(black_box(question)));
                }
                nanoseconds += start.elapsed().as_nanos();
            }
            best = f64::min(best, nanoseconds as f64 / REQUESTS as f64);
        }
        first = if first == 0.0 { best } else { first };
        let ratio = best / first;
        println!(
            "{count:>6} routes: {best:6.1} ns to find one ({ratio:.2} of the first), {built_ms:.1} ms to build"
        );
    }
    Ok(())
}
