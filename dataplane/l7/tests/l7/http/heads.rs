//! What Weir says of its own: dates, ids, who asked whom, and how far a request may go.

use weir_http::routes::spec::{Action, PathEdit, Redirect};
use weir_l7::ListenerRules;
use weir_l7::http::event::HttpCount;
use weir_l7::proxy_protocol::{Ends, Expects, Version, WRITTEN_MAX, write};

use super::{get, ok, plan, route, with};
use crate::world::{Plan, VIP, World, end};

#[test]
fn responses_without_a_date_get_one_and_others_keep_theirs() {
    const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let mut world = World::new(plan());
    world.around.unix_s = 784_111_777;
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, &ok("x"));
    assert_eq!(world.got(client), format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n{DATE}\r\nx"));
    world.says(client, &get("/2"));
    let upstream = world.syn();
    world.answer(upstream);
    world.says(
        upstream,
        "HTTP/1.1 200 OK\r\nDate: Mon, 07 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n",
    );
    let response = world.got(client);
    assert!(response.contains("Mon, 07 Nov") && response.matches("Date: ").count() == 1, "{response}");
    world.ends();
    // its own: a refusal and a route's
    let redirect = Redirect {
        status: 301,
        scheme: None,
        host: Some("b.example".into()),
        port: None,
        path: PathEdit::Keep,
        keeps_query: true,
        relative: false,
    };
    let mut world = World::new(with(|listener| {
        listener.default_pool = None;
        listener.routes = [route("/old", Action::Redirect(redirect))].into();
    }));
    world.around.unix_s = 784_111_777;
    let client = world.client();
    for (path, status) in [("/", 404), ("/old", 301)] {
        world.says(client, &get(path));
        let response = world.got(client);
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")) && response.contains(DATE),
            "{response}"
        );
    }
    // who doesn't know the time says none (RFC 9110 §6.6.1)
    world.around.unix_s = 0;
    world.says(client, &get("/"));
    assert!(!world.got(client).contains("Date: "));
    world.ends();
}

#[test]
fn the_id_that_is_sent_is_the_one_that_is_told() {
    for (trusted, fields, kept) in [
        ("198.18.9.0/24", "X-Request-Id: theirs\r\n", true),
        ("198.18.9.0/24", "x-request-id:\r\nX-REQUEST-ID: theirs\r\nX-Request-Id: more\r\n", true),
        ("198.18.9.0/24", "", false),
        ("198.18.9.0/24", "X-Request-Id: \r\n", false),
        ("198.18.10.0/24", "X-Request-Id: theirs\r\n", false),
    ] {
        let mut world = World::new(with(|listener| {
            listener.tell.request_id = "x-request-id".into();
            listener.tell.trusted = vec![trusted.parse().unwrap()];
        }));
        let (client, upstream) = world.exchange(&format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        let request = world.got(upstream).to_ascii_lowercase();
        assert_eq!(request.matches("x-request-id").count(), 1, "{request}");
        let sent = request.split("x-request-id: ").nth(1).unwrap().split('\r').next().unwrap().to_owned();
        world.says(upstream, &ok(""));
        world.got(client);
        assert_eq!(world.around.told[0].request_id, sent, "{trusted} {fields:?}");
        assert_eq!(sent == "theirs", kept, "{trusted} {fields:?}");
        world.ends();
    }
    // also where no backend was asked
    let mut world = World::new(with(|listener| {
        listener.default_pool = None;
        listener.tell.request_id = "x-request-id".into();
        listener.tell.trusted = vec!["198.18.9.0/24".parse().unwrap()];
    }));
    let client = world.client();
    world.says(client, "GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: theirs\r\n\r\n");
    assert_eq!(world.around.told[0].request_id, "theirs");
    world.ends();
}

#[test]
fn a_request_goes_no_further_than_it_may() {
    let asks =
        |method: &str, most: &str| format!("{method} /a HTTP/1.1\r\nHost: a\r\nMax-Forwards: {most}\r\n\r\n");
    for (method, most, on) in [
        ("OPTIONS", "1", "0"),
        ("OPTIONS", "010", "9"),
        ("TRACE", "7", "6"),
        ("OPTIONS", "99999999999999999999", "4294967294"),
        // of others it means nothing
        ("GET", "0", "0"),
        ("GET", "x", "x"),
    ] {
        let mut world = World::new(plan());
        let (_, upstream) = world.exchange(&asks(method, most));
        let request = world.got(upstream);
        assert!(request.starts_with(&format!("{method} /a ")), "{request}");
        assert!(request.contains(&format!("\r\nMax-Forwards: {on}\r\n")), "{request}");
        world.ends();
    }
    for (request, status, field) in [
        (asks("OPTIONS", "0"), 200, "Allow: GET, HEAD,"),
        (asks("OPTIONS", "0").replace("/a", "*"), 200, "Content-Length: 0\r\n"),
        (asks("TRACE", "0"), 405, "Allow: GET, HEAD,"),
        (asks("OPTIONS", "-1"), 400, "weir-cause: request-malformed\r\n"),
        (asks("OPTIONS", "1\r\nMax-Forwards: 2"), 400, "weir-cause: request-malformed\r\n"),
    ] {
        let mut world = World::new(plan());
        let client = world.client();
        world.says(client, &request);
        let response = world.got(client);
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")) && response.contains(field),
            "{response}"
        );
        assert!(world.fake.upstreams().is_empty());
        world.says(client, &get("/"));
        assert_eq!(world.fake.upstreams().len(), 1, "the connection goes on");
        assert_eq!(world.books.http(HttpCount::Requests), 2);
        world.ends();
    }
}

#[test]
fn backends_are_told_what_the_first_proxy_was_asked() {
    let rules = ListenerRules {
        accept_proxy: Some(Expects::Any),
        trusted: ["198.18.9.0/24".parse().unwrap()].into(),
        ..ListenerRules::default()
    };
    let told = |destination: &str, port| {
        let mut out = [0; WRITTEN_MAX];
        let ends = Ends { source: end("198.18.77.1", 4_711), destination: end(destination, port) };
        let len = write(Version::V1, Some(ends), &mut out);
        out[..len].to_vec()
    };
    let x_forwarded = with(|listener| listener.tell.x_forwarded = true);
    let mut world = World::new(Plan { rules, send_proxy: Some(Version::V1), ..x_forwarded });
    let client = world.client();
    world.arrives(client, &told("198.18.200.1", 443));
    world.says(client, &get("/"));
    let upstream = world.syn();
    world.answer(upstream);
    let sent = world.got(upstream);
    let header = String::from_utf8(told("198.18.200.1", 443)).unwrap();
    assert!(sent.starts_with(&header), "{sent}");
    assert!(sent.contains("X-Forwarded-Port: 443\r\n"), "{sent}");
    world.ends();
    // without a header it is the vip
    let mut world = World::new(Plan { send_proxy: Some(Version::V1), ..plan() });
    let (_, upstream) = world.exchange(&get("/"));
    assert!(world.got(upstream).starts_with(&format!("PROXY TCP4 198.18.9.9 {VIP} 1 80\r\n")));
    world.ends();
}

#[test]
fn folded_lines_of_responses_become_one_line() {
    for step in [1, 3, 1_000] {
        let mut world = World::new(plan());
        let (client, upstream) = world.exchange(&get("/"));
        let response = "HTTP/1.1 200 OK\r\nX-A: 1\r\n 2\r\n\t3\r\nContent-Length: 7\r\n\r\na\r\n b\r\n";
        for piece in response.as_bytes().chunks(step) {
            world.arrives(upstream, piece);
        }
        let expected = "HTTP/1.1 200 OK\r\nX-A: 1   2   3\r\nContent-Length: 7\r\n\r\na\r\n b\r\n";
        assert_eq!(world.got(client), expected, "in pieces of {step}");
        world.ends();
    }
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, "HTTP/1.1 200 OK\r\n X: y\r\n\r\n");
    assert!(world.got(client).starts_with("HTTP/1.1 502 "), "before the first field it isn't one");
    world.ends();
}

#[test]
fn a_backend_with_two_lengths_is_not_asked_again_on_its_connection() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, upstream) = world.exchange(&get("/"));
    world.says(
        upstream,
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    );
    assert_eq!(world.got(client), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n");
    assert!(world.fake.connections[upstream].is_released && !world.is_shut(client));
    world.ends();
}
