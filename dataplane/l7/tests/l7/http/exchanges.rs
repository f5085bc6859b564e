//! Requests and responses by the simplest ways: kept connections, the proxy's own answers, bodies.

use weir_http::cause::Cause;
use weir_http::routes::spec::{Action, Respond};
use weir_l7::http::event::{BackendHttpCount, HttpCount, HttpGauge};

use super::{get, ok, plan, route, to_pool, with};
use crate::world::{Plan, World};

#[test]
fn a_request_passes_and_its_response_comes_back() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/a?b=c"));
    assert_eq!(world.got(upstream), "GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n");
    world.says(upstream, &ok("hello"));
    assert_eq!(world.got(client), "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello");
    let told = world.around.told.last().unwrap();
    assert_eq!((told.status, told.cause, told.attempts, told.bytes_out), (200, None, 1, 5));
    assert_eq!(
        (told.method.as_str(), told.target.as_str(), told.host.as_str()),
        ("GET", "/a?b=c", "a.example")
    );
    assert_eq!((told.route, told.is_reused), (u16::MAX, false));
    assert_eq!(world.exchanges(), 0);
    assert_eq!(world.books.gauge(HttpGauge::IdleClients), 1);
    world.ends();
}

#[test]
fn both_connections_are_used_again() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, upstream) = world.exchange(&get("/1"));
    for turn in 0..5 {
        let request = world.got(upstream);
        assert!(request.starts_with(&format!("GET /{}", turn + 1)), "{request}");
        world.says(upstream, &ok("x"));
        assert!(world.got(client).ends_with("\r\n\r\nx"));
        world.says(client, &get(&format!("/{}", turn + 2)));
    }
    assert_eq!(world.fake.upstreams().len(), 1);
    assert_eq!(world.books.backend_http(10, BackendHttpCount::Requests), 6);
    assert_eq!(world.books.backend_http(10, BackendHttpCount::Reused), 5);
    assert_eq!(world.books.http(HttpCount::Requests), 6);
    world.ends();
}

#[test]
fn the_connection_that_was_used_last_is_used_next() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (one, first) = world.exchange(&get("/1"));
    let (_two, second) = world.exchange(&get("/2"));
    world.got(first);
    world.got(second);
    world.says(second, &ok(""));
    world.says(first, &ok(""));
    world.says(one, &get("/3"));
    assert!(world.got(first).starts_with("GET /3"));
    assert_eq!(world.books.idle(), 1);
    world.ends();
}

#[test]
fn a_request_without_route_or_backend_is_answered_at_once() {
    let mut world = World::new(with(|listener| listener.default_pool = None));
    let client = world.client();
    world.says(client, &get("/"));
    let response = world.got(client);
    assert!(response.starts_with("HTTP/1.1 404 Not Found\r\n"), "{response}");
    assert!(response.contains("weir-cause: no-route\r\n"), "{response}");
    assert!(!response.contains("Connection: close"), "{response}");
    world.says(client, &get("/again"));
    assert!(world.got(client).starts_with("HTTP/1.1 404"), "the connection goes on");
    assert_eq!(world.books.cause(Cause::NoRoute), 2);
    world.ends();

    let mut world = World::new(Plan { down: vec![0, 1], ..plan() });
    let client = world.client();
    world.says(client, &get("/"));
    assert!(world.got(client).starts_with("HTTP/1.1 503 "));
    assert_eq!(world.last_cause(), Some(Cause::NoBackend));
    world.ends();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let respond =
        |body: &[u8]| Action::Respond(Respond { status: 200, content_type: "a/b".into(), body: body.into() });
    let mut world = World::new(Plan {
        backends: 1,
        ..with(|listener| listener.routes = [route("/own", respond(b"own")), route("/", to_pool())].into())
    });
    let client = world.client();
    world.says(client, &[get("/1"), get("/own"), get("/2"), get("/own"), get("/own")].concat());
    let upstream = world.syn();
    world.answer(upstream);
    assert!(world.got(upstream).starts_with("GET /1 "));
    assert_eq!(world.got(client), "");
    world.says(upstream, &ok("first"));
    assert!(world.got(upstream).starts_with("GET /2 "));
    let bodies = |text: String| {
        text.split("\r\n\r\n").map(|part| part.get(..3).unwrap_or("").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(bodies(world.got(client)), ["HTT", "fir", "own"]);
    world.says(upstream, &ok("second"));
    assert_eq!(bodies(world.got(client)), ["HTT", "sec", "own", "own"]);
    world.ends();
}

#[test]
fn very_many_pipelined_requests_are_all_answered() {
    let mut world = World::new(with(|listener| listener.default_pool = None));
    let client = world.client();
    world.says(client, &get("/").repeat(500));
    world.advance(1);
    world.advance(1);
    let count = (0..500).map(|_| world.got(client).matches("HTTP/1.1 404").count()).sum::<usize>();
    assert_eq!(count, 500);
    world.ends();
}

#[test]
fn a_head_in_pieces_is_put_together() {
    for step in [1, 2, 3, 7, 20] {
        let mut world = World::new(plan());
        let client = world.client();
        let text = get("/pieces") + &get("/next");
        for piece in text.as_bytes().chunks(step) {
            world.arrives(client, piece);
        }
        let upstream = world.syn();
        world.answer(upstream);
        assert_eq!(world.got(upstream), get("/pieces"));
        for piece in ok("body").as_bytes().chunks(step) {
            world.arrives(upstream, piece);
        }
        assert_eq!(world.got(client), ok("body"));
        world.ends();
    }
}

#[test]
fn what_came_whole_before_the_clients_fin_is_answered() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let client = world.client();
    world.fake.arrives(client, (get("/1") + &get("/2") + &get("/3") + "GET /half").as_bytes());
    world.finishes(client);
    let upstream = world.syn();
    world.answer(upstream);
    for turn in 1..=3 {
        let request = world.got(upstream);
        assert!(request.starts_with(&format!("GET /{turn} ")), "{request}");
        world.says(upstream, &ok(&format!("answer {turn}")));
        let response = world.got(client);
        assert!(response.ends_with(&format!("answer {turn}")), "{response}");
        // the half request isn't one
        assert_eq!(world.is_shut(client), turn == 3);
    }
    assert!(!world.is_reset(client));
    world.ends();
}

#[test]
fn a_request_without_a_host_names_its_backend() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, upstream) = world.exchange("GET /old HTTP/1.0\r\n\r\n");
    assert_eq!(world.got(upstream), "GET /old HTTP/1.1\r\nHost: 198.18.1.1:80\r\n\r\n");
    world.says(upstream, &ok("x"));
    assert!(world.got(client).ends_with("x"));
    world.ends();
}

#[test]
fn bytes_of_the_proxys_own_answers_are_told() {
    let respond = Respond { status: 200, content_type: "a/b".into(), body: b"12345".as_slice().into() };
    let mut world = World::new(with(|listener| {
        listener.default_pool = None;
        listener.routes = [route("/own", Action::Respond(respond))].into();
    }));
    let client = world.client();
    for (request, bytes) in [(get("/own"), 5), (get("/own").replace("GET", "HEAD"), 0), (get("/none"), 9)] {
        world.says(client, &request);
        let response = world.got(client);
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        assert_eq!((body.len() as u64, world.around.told.last().unwrap().bytes_out), (bytes, bytes));
    }
    assert_eq!(world.count(weir_l7::ListenerCount::BytesOut), 14);
    world.ends();
}
