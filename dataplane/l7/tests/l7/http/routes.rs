//! What routes, limits and collected bodies do to requests.

use weir_http::cause::Cause;
use weir_http::routes::spec::{
    Action, FieldEdit, Host, HostEdit, Path, PathEdit, Redirect, Respond, RouteTimes,
};
use weir_l4::services::Algorithm;
use weir_l7::http::event::HttpCount;
use weir_l7::http::rules::{ErrorPage, HashBy, HttpPool, RateKey, RateLimit, Sticky, Tell, WhenFull};

use super::{get, ok, plan, route, to_pool, with};
use crate::world::{Plan, World};

#[test]
fn redirects_and_fixed_responses_are_answered_here() {
    let redirect = Redirect {
        status: 301,
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: PathEdit::ReplacePrefix("/new".into()),
        keeps_query: true,
        relative: false,
    };
    let respond = Respond { status: 200, content_type: "text/html".into(), body: b"<p>".as_slice().into() };
    let mut world = World::new(with(|listener| {
        listener.default_pool = None;
        let routes = [route("/old", Action::Redirect(redirect)), route("/fixed", Action::Respond(respond))];
        listener.routes = routes.into();
    }));
    let client = world.client();
    world.says(client, &get("/old/x?y=1"));
    let response = world.got(client);
    assert!(response.starts_with("HTTP/1.1 301 "), "{response}");
    assert!(response.contains("Location: https://a.example/new/x?y=1\r\n"), "{response}");
    world.says(client, &get("/fixed"));
    let response = world.got(client);
    assert!(
        response.contains("Content-Type: text/html\r\n") && response.ends_with("\r\n\r\n<p>"),
        "{response}"
    );
    assert_eq!((world.books.http(HttpCount::Redirection), world.books.http(HttpCount::Own)), (1, 0));
    world.ends();
}

#[test]
fn requests_and_responses_are_edited() {
    let mut edited = route("/v1", to_pool());
    edited.host = Host::Exact("a.example".into());
    edited.request.fields = vec![
        FieldEdit::Set("X-From".into(), "%{client} by %{route}".into()),
        FieldEdit::Remove("x-gone".into()),
    ];
    edited.request.path = PathEdit::ReplacePrefix("/".into());
    edited.request.host = HostEdit::Backend;
    edited.response.fields = vec![FieldEdit::Set("X-Served".into(), "%{backend_address}".into())];
    let mut world = World::new(Plan { backends: 1, ..with(|listener| listener.routes = [edited].into()) });
    let (client, upstream) =
        world.exchange("GET /v1/a?b HTTP/1.1\r\nHost: a.example\r\nX-Gone: 1\r\nX-From: me\r\n\r\n");
    let sent = world.got(upstream);
    assert!(sent.starts_with("GET /a?b HTTP/1.1\r\nHost: 198.18.1.1:80\r\n"), "{sent}");
    assert!(sent.contains("X-From: 198.18.9.9 by /v1\r\n") && !sent.contains("X-Gone"), "{sent}");
    world.says(upstream, &ok("x"));
    assert!(world.got(client).contains("X-Served: 198.18.1.1:80\r\n"));
    world.ends();
}

#[test]
fn backends_are_told_about_clients() {
    let mut world = World::new(with(|listener| listener.tell = Tell { forwarded: true, ..Tell::default() }));
    let (client, upstream) = world.exchange("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n");
    let sent = world.got(upstream);
    for line in [
        "X-Forwarded-For: 198.18.9.9\r\n",
        "X-Forwarded-Proto: http\r\n",
        "X-Forwarded-Port: 80\r\n",
        "Via: 1.1 weir\r\n",
        "Forwarded: for=198.18.9.9",
    ] {
        assert!(sent.contains(line), "{line} is missing in {sent}");
    }
    world.says(upstream, &ok("x"));
    let id = &world.around.told[0].request_id;
    assert!(sent.contains(&format!("x-request-id: {id}\r\n")) && id.len() == 32, "{sent}");
    assert!(world.got(client).contains("Via: 1.1 weir\r\n"));
    world.ends();
}

#[test]
fn who_asks_too_often_is_told_when_to_come_again() {
    let limit = |name: &str, key| RateLimit { name: name.into(), key, millis_per_second: 500, burst: 2 };
    let mut own = route("/own", to_pool());
    own.rate_limits = vec![1];
    let mut world = World::new(with(|listener| {
        listener.rate_limits =
            vec![limit("all", RateKey::Client), limit("key", RateKey::Header("x-key".into()))];
        listener.own_rate_limits = vec![0];
        listener.routes = [
            own,
            route("/", Action::Respond(Respond { status: 204, content_type: "".into(), body: [].into() })),
        ]
        .into();
    }));
    let client = world.client();
    for expected in ["204", "204", "429"] {
        world.says(client, &get("/"));
        let response = world.got(client);
        assert!(response.starts_with(&format!("HTTP/1.1 {expected} ")), "{response}");
        assert_eq!(response.contains("Retry-After: 2\r\n"), expected == "429", "{response}");
    }
    assert_eq!(world.last_cause(), Some(Cause::RateLimited));
    world.advance(2_000);
    world.says(client, &get("/"));
    assert!(world.got(client).starts_with("HTTP/1.1 204 "));
    assert_eq!(world.books.http(HttpCount::RateLimited), 1);
    world.ends();
}

#[test]
fn a_body_is_collected_before_a_backend_is_asked() {
    for (framing, body) in
        [("Content-Length: 10", "0123456789"), ("Transfer-Encoding: chunked", "a\r\n0123456789\r\n0\r\n\r\n")]
    {
        let mut world = World::new(with(|listener| listener.limits.client_body_buffer = 1_000));
        let client = world.client();
        world.says(client, &format!("PUT / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"));
        let (last, first) = body.as_bytes().split_last().unwrap();
        world.arrives(client, first);
        assert!(world.fake.upstreams().is_empty(), "not before it is whole");
        world.arrives(client, &[*last]);
        let first = world.syn();
        world.answer(first);
        assert!(world.got(first).ends_with(&format!("\r\n\r\n{body}")));
        // it can be sent again
        world.dies(first, weir_tcp::Ended::Reset);
        let second = world.syn();
        world.answer(second);
        assert!(world.got(second).ends_with(&format!("\r\n\r\n{body}")));
        world.says(second, &ok("x"));
        assert_eq!(world.got(client), ok("x"));
        assert_eq!(world.around.told[0].bytes_in, 10);
        world.ends();
    }
    // what is larger than the buffer passes as it comes
    let mut world = World::new(with(|listener| listener.limits.client_body_buffer = 4));
    let (client, upstream) =
        world.exchange("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234567");
    world.says(client, "89");
    assert!(world.got(upstream).ends_with("\r\n\r\n0123456789"));
    world.says(upstream, &ok("x"));
    assert_eq!(world.got(client), ok("x"));
    world.ends();
}

#[test]
fn a_body_slower_than_the_least_rate_is_refused() {
    let mut world = World::new(with(|listener| listener.limits.body_min_rate = 100));
    let (client, upstream) = world.exchange("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n01");
    for _ in 0..5 {
        world.advance(1_000);
        world.says(client, "01234567890123456789");
        world.got(upstream);
        assert_eq!(world.got(client), "");
    }
    world.advance(1_000);
    world.says(client, "x");
    assert!(world.got(client).starts_with("HTTP/1.1 408 "));
    assert_eq!(world.last_cause(), Some(Cause::RequestBodyTimeout));
    world.ends();
}

#[test]
fn a_cookie_keeps_a_client_at_its_backend() {
    let sticky = Some(Sticky { cookie: "srv".into(), max_age_s: 60, secure: true });
    let mut world =
        World::new(Plan { backends: 5, http_pool: HttpPool { sticky, ..HttpPool::default() }, ..plan() });
    let (client, upstream) = world.exchange(&get("/"));
    let backend = world.backend_of(upstream);
    world.got(upstream);
    world.says(upstream, &ok("x"));
    let response = world.got(client);
    let cookie = response.split("Set-Cookie: ").nth(1).unwrap().split(';').next().unwrap().to_owned();
    assert!(response.contains("Max-Age=60") && response.contains("Secure"), "{response}");
    for _ in 0..7 {
        world.says(client, &format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: a=b; {cookie}\r\n\r\n"));
        world.got(upstream);
        world.says(upstream, &ok("y"));
        let response = world.got(client);
        assert!(response.ends_with("y") && !response.contains("Set-Cookie"), "{response}");
    }
    assert!(world.around.told.iter().all(|told| told.backend == backend));
    world.ends();
}

#[test]
fn a_path_picks_its_backend_where_it_is_hashed() {
    let mut world = World::new(Plan {
        backends: 5,
        algorithm: Algorithm::Maglev,
        http_pool: HttpPool { hash: HashBy::Path, ..HttpPool::default() },
        ..plan()
    });
    let mut seen = std::collections::HashMap::new();
    for turn in 0..40 {
        let path = format!("/{}", turn % 20);
        let (_client, upstream) = world.exchange(&get(&path));
        let backend = world.backend_of(upstream);
        assert_eq!(*seen.entry(path).or_insert(backend), backend);
    }
    assert!(seen.values().collect::<std::collections::HashSet<_>>().len() > 2);
    world.ends();
}

#[test]
fn clients_and_memory_have_limits() {
    let mut world = World::new(with(|listener| listener.limits.client_connections = 2));
    let first = world.client();
    let _second = world.client();
    let third = world.client();
    assert!(world.got(third).starts_with("HTTP/1.1 429 "));
    assert_eq!(world.last_cause(), Some(Cause::ClientConnections));
    world.dies(first, weir_tcp::Ended::Reset);
    let fourth = world.client();
    assert_eq!(world.got(fourth), "");
    world.ends();

    for when_full in [WhenFull::Refuse, WhenFull::Reset] {
        let mut world = World::new(with(|listener| listener.when_full = when_full));
        world.proxy.set_http_memory(2_000);
        let (first, upstream) = world.exchange(&get("/held"));
        world.proxy.set_http_memory(1_000);
        let second = world.client();
        match when_full {
            WhenFull::Refuse => assert!(world.got(second).starts_with("HTTP/1.1 503 ")),
            WhenFull::Reset => assert!(world.is_reset(second)),
        }
        assert_eq!(world.books.cause(Cause::Memory), 1);
        world.says(upstream, &ok("fine"));
        assert_eq!(world.got(first), ok("fine"), "who is there goes on");
        world.proxy.set_http_memory(1 << 20);
        world.ends();
    }
}

#[test]
fn error_pages_are_the_configured_ones() {
    let mut world = World::new(with(|listener| {
        listener.default_pool = None;
        listener.cause_header = false;
        let page =
            ErrorPage { status: 404, content_type: "text/html".into(), body: b"<h1>".as_slice().into() };
        listener.error_pages = vec![page];
    }));
    let client = world.client();
    world.says(client, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    let response = world.got(client);
    assert!(response.contains("Content-Length: 4\r\nContent-Type: text/html\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\n") && !response.contains("weir-cause"), "{response}");
    world.ends();
}

#[test]
fn times_of_a_route_hold_for_it() {
    let mut quick = route("/quick", to_pool());
    quick.times = RouteTimes { response_header_ms: Some(1_000), ..RouteTimes::default() };
    quick.path = Path::Exact("/quick".into());
    let mut world = World::new(with(|listener| listener.routes = [quick].into()));
    let (client, _upstream) = world.exchange(&get("/quick"));
    world.advance(1_001);
    assert!(world.got(client).starts_with("HTTP/1.1 504 "));
    world.ends();
}

#[test]
fn copies_go_to_mirrors_and_their_responses_nowhere() {
    let mut copied = route("/", to_pool());
    copied.mirror =
        Some(weir_http::routes::spec::Mirror { pool: crate::world::POOL, per_ten_thousand: 10_000 });
    let http_pool = HttpPool { idle_ms: 1_000, ..HttpPool::default() };
    let plan = with(|listener| listener.routes = [copied].into());
    let mut world = World::new(Plan { backends: 2, http_pool, ..plan });
    let (client, upstream) = world.exchange(&get("/x"));
    let copy = world.syn();
    assert_ne!(copy, upstream);
    world.answer(copy);
    assert_eq!(world.got(copy), world.got(upstream));
    world.says(copy, &ok("discarded"));
    assert_eq!(world.got(client), "");
    world.says(upstream, &ok("kept"));
    assert_eq!(world.got(client), ok("kept"));
    assert_eq!((world.books.http(HttpCount::Mirrored), world.books.idle()), (1, 2));
    world.advance(1_001);
    assert_eq!(world.books.idle(), 0, "both are idle for too long");
    // a body that passes as it comes isn't copied, and that is told
    world.says(client, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    let upstream = world.syn();
    world.answer(upstream);
    assert!(world.got(upstream).ends_with("abc"));
    let counts = (world.books.http(HttpCount::Mirrored), world.books.http(HttpCount::MirrorsSkipped));
    assert_eq!((counts, world.fake.upstreams().len()), ((1, 1), 3));
    world.ends();
}
