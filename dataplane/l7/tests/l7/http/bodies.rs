//! Where bodies end, both ways, and what of them goes on.

use weir_http::cause::Cause;
use weir_l7::http::event::HttpCount;

use super::{get, ok, plan, with};
use crate::world::{Plan, World};

fn post(framing: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nHost: a.example\r\n{framing}\r\n\r\n{body}")
}

#[test]
fn a_body_of_a_length_passes_in_any_pieces_and_no_further() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, upstream) = world.exchange(&post("Content-Length: 10", "0123"));
    world.says(client, "45");
    world.says(client, &("6789".to_owned() + &get("/next")));
    let sent = world.got(upstream);
    assert!(sent.ends_with("\r\n\r\n0123456789"), "{sent}");
    world.says(upstream, &ok("a"));
    assert!(world.got(upstream).starts_with("GET /next "));
    world.says(upstream, &ok("b"));
    assert_eq!(world.got(client), ok("a") + &ok("b"));
    assert_eq!(world.around.told[0].bytes_in, 10);
    world.ends();
}

#[test]
fn chunks_pass_as_they_are_but_for_extensions() {
    for step in [1, 3, 1_000] {
        let mut world = World::new(Plan { backends: 1, ..plan() });
        let text = post("Transfer-Encoding: chunked", "3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 9\r\n\r\n")
            + &get("/2");
        let client = world.client();
        let mut upstream = None;
        for piece in text.as_bytes().chunks(step) {
            world.arrives(client, piece);
            if upstream.is_none()
                && let Some(syn) = world.fake.upstreams().last().copied()
            {
                world.answer(syn);
                upstream = Some(syn);
            }
        }
        let upstream = upstream.unwrap();
        let sent = world.got(upstream);
        assert!(sent.contains("Transfer-Encoding: chunked\r\n"), "{sent}");
        assert!(sent.ends_with("\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 9\r\n\r\n"), "{sent}");
        let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\n\r\n";
        for piece in response.as_bytes().chunks(step) {
            world.arrives(upstream, piece);
        }
        assert_eq!(world.got(client), response);
        assert_eq!((world.around.told[0].bytes_in, world.around.told[0].bytes_out), (5, 4));
        assert!(world.got(upstream).starts_with("GET /2 "), "the connection goes on");
        world.ends();
    }
}

#[test]
fn a_malformed_chunk_ends_both() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&post("Transfer-Encoding: chunked", "3\r\nabc\r\n"));
    world.says(client, "zz\r\n");
    assert!(world.is_reset(upstream), "the backend must not wait for the rest");
    let response = world.got(client);
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
    assert!(response.contains("Connection: close\r\n"), "{response}");
    assert_eq!(world.last_cause(), Some(Cause::RequestChunk));
    world.ends();

    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwx");
    world.says(upstream, "yzz");
    assert!(world.is_shut(client) && !world.is_reset(client));
    let passed = world.got(client);
    assert!(passed.starts_with("HTTP/1.1 200 OK\r\n") && passed.contains("4\r\nwx"), "{passed}");
    assert!(!passed.ends_with("\r\n"), "a client must not take it for complete: {passed}");
    assert_eq!(world.last_cause(), Some(Cause::ResponseTruncated));
    world.ends();
}

#[test]
fn a_body_until_the_end_of_the_connection_ends_with_it() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, "HTTP/1.1 200 OK\r\n\r\nsome");
    world.says(upstream, " more");
    assert_eq!(world.got(client), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome more");
    assert!(!world.is_shut(client));
    world.finishes(upstream);
    assert!(world.is_shut(client) && !world.is_reset(client));
    assert_eq!(world.last_cause(), None);
    world.ends();
}

#[test]
fn a_body_that_ends_early_is_not_taken_for_whole() {
    for framing in ["Content-Length: 10", "Transfer-Encoding: chunked"] {
        let mut world = World::new(plan());
        let (client, upstream) = world.exchange(&get("/"));
        world.says(upstream, &format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n4\r\nwx"));
        world.finishes(upstream);
        assert!(world.is_shut(client) && !world.is_reset(client), "what came is the client's");
        let passed = world.got(client);
        assert!(passed.ends_with("\r\n\r\n4\r\nwx"), "{passed}");
        assert_eq!(world.last_cause(), Some(Cause::ResponseTruncated));
        world.ends();
    }
    // to a client that is not told the length a FIN would say that all came
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange("GET / HTTP/1.0\r\nHost: a\r\n\r\n");
    world.says(upstream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nwx");
    world.finishes(upstream);
    assert!(world.is_reset(client));
    assert_eq!(world.last_cause(), Some(Cause::ResponseTruncated));
    world.ends();
}

#[test]
fn some_responses_have_no_body_whatever_they_say() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, upstream) = world.exchange("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    world.got(upstream);
    world.says(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    assert_eq!(world.got(client), "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
    for head in ["204 No Content\r\n", "304 Not Modified\r\nETag: \"x\"\r\n"] {
        world.says(client, &get("/"));
        world.got(upstream);
        world.says(upstream, &format!("HTTP/1.1 {head}\r\n"));
        assert_eq!(world.got(client), format!("HTTP/1.1 {head}\r\n"));
    }
    assert_eq!(world.fake.upstreams().len(), 1);
    world.ends();
}

#[test]
fn a_client_of_1_0_gets_no_chunks() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange("GET / HTTP/1.0\r\n\r\n");
    assert!(world.got(upstream).starts_with("GET / HTTP/1.1\r\n"));
    world.says(upstream, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
    world.says(upstream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    world.says(upstream, "2\r\nde\r\n0\r\nX-T: 1\r\n\r\n");
    assert_eq!(world.got(client), "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcde");
    assert!(world.is_shut(client));
    world.ends();

    let mut world = World::new(plan());
    let (client, upstream) = world.exchange("GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n");
    world.says(upstream, &ok("x"));
    assert_eq!(world.got(client), "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx");
    assert!(!world.is_shut(client));
    world.ends();
}

#[test]
fn interim_responses_pass_in_bounds() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&post("Content-Length: 3\r\nExpect: 100-continue", ""));
    assert!(world.got(upstream).contains("Expect: 100-continue\r\n"));
    world.says(upstream, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    let interim = world.got(client);
    assert_eq!(interim, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    world.says(client, "abc");
    assert_eq!(world.got(upstream), "abc");
    world.says(upstream, &ok("done"));
    assert_eq!(world.got(client), ok("done"));
    assert_eq!(world.books.http(HttpCount::Informational), 2);
    world.ends();

    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, &"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(40));
    assert_eq!(world.last_cause(), Some(Cause::ResponseInterim));
    assert!(world.got(client).contains("HTTP/1.1 502 "));
    world.ends();
}

#[test]
fn a_response_before_the_request_is_whole_ends_the_connection() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&post("Content-Length: 100", "some"));
    world.says(upstream, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
    let response = world.got(client);
    assert!(response.contains("Connection: close\r\n") && response.ends_with("no"), "{response}");
    assert!(world.is_reset(upstream), "what is left of the body would be taken for a request");
    // what the client goes on sending is read, so that no RST destroys the response
    assert!(world.fake.connections[client].is_shut && !world.fake.connections[client].is_released);
    world.says(client, "more of the body");
    assert!(!world.is_reset(client));
    world.finishes(client);
    assert!(world.fake.connections[client].is_released && !world.is_reset(client));
    world.ends();
}

#[test]
fn a_body_beyond_the_limit_is_refused() {
    let plan = || with(|listener| listener.limits.body_bytes = 10);
    let mut world = World::new(plan());
    let client = world.client();
    world.says(client, &post("Content-Length: 11", ""));
    assert!(world.got(client).starts_with("HTTP/1.1 413 "));
    assert_eq!(world.last_cause(), Some(Cause::BodyTooLarge));
    world.ends();

    let mut world = World::new(plan());
    let (client, _upstream) = world.exchange(&post("Transfer-Encoding: chunked", "8\r\n01234567\r\n"));
    world.says(client, "8\r\n01234567\r\n");
    assert!(world.got(client).starts_with("HTTP/1.1 413 "));
    world.ends();
}

#[test]
fn a_slow_reader_holds_its_backend_back() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, upstream) = world.exchange(&get("/"));
    world.got(upstream);
    world.says(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n");
    for _ in 0..20 {
        world.arrives(upstream, &[b'x'; 10_000]);
    }
    let mut read = 0;
    assert!(world.fake.connections[upstream].inbox.len() > 5, "it waits where its window closes");
    for _ in 0..100 {
        read += world.reads(client, 5_000).len();
    }
    assert!(read > 200_000);
    assert_eq!(world.around.told.last().unwrap().bytes_out, 200_000);
    assert_eq!(world.books.idle(), 1);
    world.ends();
}

#[test]
fn so_much_of_a_response_is_taken_ahead_as_is_configured() {
    const AHEAD: usize = 4 << 10;
    let mut world = World::new(with(|listener| listener.limits.proxy_buffer = AHEAD as u32));
    let (client, upstream) = world.exchange(&get("/"));
    world.fake.connections[client].limit = 1 << 20;
    world.arrives(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n");
    for _ in 0..20 {
        world.arrives(upstream, &[b'x'; 1_000]);
    }
    let waits = world.fake.connections[client].outbox.len();
    assert!((AHEAD..AHEAD + 1_000).contains(&waits), "{waits}");
    let mut got = Vec::new();
    while got.len() < 20_000 {
        let read = world.reads(client, 700);
        assert!(!read.is_empty(), "{} bytes came", got.len());
        got.extend(read);
        assert!(world.fake.connections[client].outbox.len() < AHEAD + 1_000);
    }
    got.extend(world.reads(client, 1_000));
    assert!(got.ends_with(&[b'x'; 20_000]));
    world.ends();
}
