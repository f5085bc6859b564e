//! What of a request counts where Weir answers by itself: who it says it is, its line, its body; and what it can still say of a backend.

use weir_http::cause::Cause;
use weir_http::routes::spec::{Action, PathEdit, Redirect, Respond};
use weir_l7::http::rules::HttpPool;
use weir_tcp::Ended;

use super::{get, ok, plan, route, with};
use crate::world::{Plan, VIP, World};

fn redirects(scheme: Option<&str>, relative: bool, trusted: &str) -> World {
    let redirect = Redirect {
        status: 308,
        scheme: scheme.map(Into::into),
        host: None,
        port: None,
        path: PathEdit::ReplacePrefix("/new".into()),
        keeps_query: true,
        relative,
    };
    World::new(with(|listener| {
        listener.tell.trusted = vec![trusted.parse().unwrap()];
        listener.routes = [route("/old", Action::Redirect(redirect))].into();
    }))
}

#[test]
fn a_location_is_what_trusted_clients_were_asked() {
    const US: &str = "198.18.9.0/24";
    const OTHERS: &str = "198.18.10.0/24";
    let forwarded = "GET /old?q HTTP/1.1\r\nHost: a:81\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: b.example\r\n\r\n";
    let nameless = "GET /old?q HTTP/1.0\r\n\r\n";
    for (scheme, relative, trusted, request, expected) in [
        (None, false, US, forwarded, "https://b.example/new?q".to_owned()),
        (None, false, OTHERS, forwarded, "http://a:81/new?q".to_owned()),
        (None, true, US, forwarded, "/new?q".to_owned()),
        (None, true, OTHERS, nameless, "/new?q".to_owned()),
        (None, false, OTHERS, nameless, "/new?q".to_owned()),
        (Some("https"), false, OTHERS, nameless, format!("https://{VIP}/new?q")),
        (Some("https"), false, OTHERS, forwarded, "https://a/new?q".to_owned()),
    ] {
        let mut world = redirects(scheme, relative, trusted);
        let client = world.client();
        world.says(client, request);
        let response = world.got(client);
        assert!(response.contains(&format!("\r\nLocation: {expected}\r\n")), "{expected}: {response}");
        world.ends();
    }
}

#[test]
fn the_line_of_a_refused_request_is_told() {
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(9_000));
    for (request, method, target, version) in [
        ("GET /a HTTP/1.1\r\n\r\n", "GET", "/a", 11),
        ("GET /a HTTP/1.0\r\nX : 1\r\n\r\n", "GET", "/a", 10),
        ("GET /a b HTTP/1.1\r\n\r\n", "GET", "/a b", 11),
        ("GET /a HTTP/2.0\r\n\r\n", "GET", "/a HTTP/2.0", 0),
        ("\x16\x03\x01", "\x16\x03\x01", "", 0),
        (&long, "GET", &long[4..4_608], 0),
    ] {
        // in one piece, and in many
        for step in [10_000, 7] {
            let mut world = World::new(plan());
            let client = world.client();
            for piece in request.as_bytes().chunks(step) {
                world.arrives(client, piece);
            }
            if step == 7 && request == long {
                // looked at again when it ends, or its time does
                world.advance(10_001);
            }
            let told = &world.around.told[0];
            assert_eq!(told.method, method, "{request:?}");
            if step == 7 {
                // what came after the refusal isn't there
                let rest = request.split_once(' ').map_or("", |(_, rest)| rest);
                assert!(rest.starts_with(&told.target), "{:?}", told.target);
            } else {
                assert_eq!((told.target.as_str(), told.version), (target, version), "{request:?}");
            }
            world.ends();
        }
    }
    // one that never ended
    let mut world = World::new(plan());
    let client = world.client();
    world.says(client, "HEAD /half");
    world.advance(10_001);
    let told = &world.around.told[0];
    assert_eq!((told.method.as_str(), told.target.as_str()), ("HEAD", "/half"));
    assert!(world.got(client).ends_with("\r\n\r\n"), "an answer to HEAD has no body");
    world.ends();
}

fn answers() -> Plan {
    let respond = Respond { status: 200, content_type: "".into(), body: b"own".as_slice().into() };
    with(|listener| listener.routes = [route("/own", Action::Respond(respond))].into())
}

fn put(framing: &str, body: &str) -> String {
    format!("PUT /own HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{body}")
}

#[test]
fn short_bodies_of_answered_requests_leave_the_connection_open() {
    let chunked = "Transfer-Encoding: chunked";
    for (framing, now, later, bytes_in) in [
        ("Content-Length: 5", "01234", "", 5),
        ("Content-Length: 5", "01", "234", 2),
        ("Content-Length: 16384", "01", &*"x".repeat(16_382), 2),
        (chunked, "3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n", "", 5),
        ("Content-Length: 5\r\nExpect: 100-continue", "01234", "", 5),
    ] {
        let mut world = World::new(answers());
        let client = world.client();
        world.says(client, &put(framing, now));
        let response = world.got(client);
        assert!(response.ends_with("\r\n\r\nown") && !response.contains("close"), "{framing}: {response}");
        assert_eq!((world.around.told.len(), world.around.told[0].bytes_in), (1, bytes_in));
        // the next request right behind it
        world.says(client, &format!("{later}{}", get("/own")));
        assert!(world.got(client).ends_with("\r\n\r\nown"), "{framing}");
        assert!(!world.is_shut(client) && !world.is_reset(client));
        world.ends();
    }
}

#[test]
fn longer_bodies_end_it_and_missing_ones_are_not_waited_for_forever() {
    for (framing, body) in [
        ("Content-Length: 16385", "01"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n"),
        ("Transfer-Encoding: chunked", "3\r\nabcd\r\n0\r\n\r\n"),
        ("Content-Length: 5\r\nExpect: 100-continue", ""),
    ] {
        let mut world = World::new(answers());
        let client = world.client();
        world.says(client, &put(framing, body));
        let response = world.got(client);
        assert!(response.contains("Connection: close\r\n"), "{framing}: {response}");
        assert!(world.is_shut(client));
        world.ends();
    }
    let mut world = World::new(answers());
    let client = world.client();
    world.says(client, &put("Content-Length: 5", "01"));
    assert!(world.got(client).ends_with("own"));
    world.advance(29_999);
    world.says(client, "2");
    assert!(!world.is_shut(client));
    world.advance(2);
    assert!(world.is_shut(client), "its time is one for the whole body");
    world.ends();
}

#[test]
fn who_does_not_answer_is_no_bad_gateway() {
    for (ended, status, cause) in [
        (Ended::Unreachable, 504, Cause::ConnectTimeout),
        (Ended::TimedOut, 504, Cause::ConnectTimeout),
        (Ended::Refused, 502, Cause::ConnectFailed),
    ] {
        let mut world = World::new(Plan { backends: 1, http_pool: HttpPool::default(), ..plan() });
        let client = world.client();
        world.says(client, &get("/"));
        let syn = world.syn();
        world.dies(syn, ended);
        let response = world.got(client);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{ended:?}: {response}");
        assert!(response.contains(&format!("weir-cause: {}\r\n", cause.code())), "{response}");
        world.ends();
    }
}

#[test]
fn a_first_chunk_that_is_none_is_told_while_it_can_be() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in ["xyz\r\n", "3\r\nabcde\r\n0\r\n\r\n", "3;e=1\r\nabc\r\n-1\r\n"] {
        for step in [1_000, head.len() + 5] {
            let mut world = World::new(Plan { backends: 1, ..plan() });
            let (client, upstream) = world.exchange(&get("/"));
            let response = format!("{head}{body}");
            if step < response.len() && body.starts_with('3') {
                // what begins well has begun
                continue;
            }
            for piece in response.as_bytes().chunks(step) {
                world.arrives(upstream, piece);
            }
            let got = world.got(client);
            assert!(got.starts_with("HTTP/1.1 502 "), "{body:?}: {got}");
            assert_eq!(world.last_cause(), Some(Cause::ResponseMalformed));
            assert!(world.is_reset(upstream) && !world.is_shut(client), "only the backend's connection ends");
            world.says(client, &get("/2"));
            let upstream = world.syn();
            world.answer(upstream);
            world.says(upstream, &ok("fine"));
            assert_eq!(world.got(client), ok("fine"));
            world.ends();
        }
    }
}
