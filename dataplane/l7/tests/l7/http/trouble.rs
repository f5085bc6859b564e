//! What happens when somebody is slow, gone, or makes no sense.

use weir_http::cause::Cause;
use weir_l7::ListenerRules;
use weir_l7::http::event::{BackendHttpCount, BreakerState, HttpCount};
use weir_l7::http::rules::{BreakerRules, HttpPool, Retry};
use weir_tcp::{Ended, Events};

use super::{get, ok, plan, with};
use crate::world::{Plan, World};

fn post() -> String {
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".to_owned()
}

#[test]
fn what_makes_no_sense_is_refused_and_the_connection_ends() {
    for (request, status, cause) in [
        ("\x16\x03\x01", 400, Cause::RequestMalformed),
        ("GET / HTTP/2.0\r\n\r\n", 505, Cause::VersionUnsupported),
        ("GET / HTTP/1.1\r\n\r\n", 400, Cause::RequestHost),
        ("GET / HTTP/1.1\nHost: a\n\n", 400, Cause::RequestMalformed),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            Cause::RequestFraming,
        ),
        ("CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", 405, Cause::MethodRefused),
    ] {
        let mut world = World::new(plan());
        let client = world.client();
        world.says(client, request);
        let response = world.got(client);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
        assert_eq!(world.last_cause(), Some(cause));
        assert_eq!(world.books.cause(cause), 1);
        assert!(world.fake.upstreams().is_empty());
        world.ends();
    }
}

#[test]
fn a_client_that_is_slow_with_its_head_is_told_and_a_silent_one_is_not() {
    let mut world = World::new(plan());
    let client = world.client();
    world.advance(5_000);
    world.says(client, "GET / HT");
    world.advance(4_999);
    assert_eq!(world.got(client), "");
    world.advance(2);
    assert!(world.got(client).starts_with("HTTP/1.1 408 "), "time runs from the connection's start");
    assert_eq!(world.last_cause(), Some(Cause::RequestHeaderTimeout));
    world.ends();

    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, &ok("x"));
    world.got(client);
    world.advance(74_000);
    assert!(!world.is_shut(client));
    world.advance(1_001);
    assert!(world.is_shut(client) && !world.is_reset(client));
    assert_eq!(world.got(client), "");
    assert_eq!(world.books.http(HttpCount::KeepAliveTimeouts), 1);
    world.ends();
}

#[test]
fn silence_ends_an_exchange_wherever_it_falls() {
    // within the request's body
    let mut world = World::new(with(|listener| listener.limits.body_min_rate = 0));
    let (client, upstream) = world.exchange("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
    world.got(upstream);
    world.advance(29_999);
    world.says(client, "c");
    world.got(upstream);
    world.advance(29_999);
    assert_eq!(world.got(client), "");
    world.advance(2);
    assert!(world.got(client).starts_with("HTTP/1.1 408 "));
    assert!(world.is_reset(upstream));
    assert_eq!(world.last_cause(), Some(Cause::RequestBodyTimeout));
    world.ends();
    // before the response
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.got(upstream);
    world.advance(60_001);
    assert!(world.got(client).starts_with("HTTP/1.1 504 "));
    assert!(world.is_reset(upstream));
    assert_eq!(world.last_cause(), Some(Cause::ResponseTimeout));
    world.ends();
    // within the response
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab");
    world.got(client);
    world.advance(59_000);
    world.says(upstream, "c");
    world.got(client);
    world.advance(59_000);
    assert!(!world.is_reset(client));
    world.advance(2_000);
    assert!(world.is_reset(client) && world.is_reset(upstream));
    assert_eq!(world.last_cause(), Some(Cause::ResponseIdle));
    world.ends();
    // at a client that doesn't read
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.says(upstream, "HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\n");
    (0..10).for_each(|_| world.arrives(upstream, &[7; 50_000]));
    world.advance(121_000);
    assert!(world.is_reset(client) && world.is_reset(upstream));
    assert_eq!(world.last_cause(), Some(Cause::ClientSlow));
    world.ends();
}

#[test]
fn a_refused_connection_leads_to_another_backend_once() {
    let mut world = World::new(plan());
    let client = world.client();
    world.says(client, &post());
    let first = world.syn();
    world.dies(first, Ended::Refused);
    let second = world.syn();
    assert_ne!(world.backend_of(first), world.backend_of(second));
    world.answer(second);
    assert!(world.got(second).ends_with("abc"), "the body was not lost");
    world.says(second, &ok("fine"));
    assert_eq!(world.got(client), ok("fine"));
    assert_eq!((world.books.http(HttpCount::Retries), world.around.told[0].attempts), (1, 2));

    world.ends();
    // lost with something acknowledged: a POST is not sent again
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&post());
    world.got(upstream);
    world.dies(upstream, Ended::Reset);
    assert!(world.got(client).starts_with("HTTP/1.1 502 "));
    assert_eq!(world.last_cause(), Some(Cause::ResponseMissing));
    world.ends();
}

#[test]
fn an_idle_connection_that_was_closed_costs_no_request() {
    let mut world = World::new(Plan { backends: 1, ..plan() });
    let (client, first) = world.exchange(&get("/1"));
    world.got(first);
    world.says(first, &ok("1"));
    world.got(client);
    // FIN and next request come in one poll, the request's news first
    world.fake.arrives(client, get("/2").as_bytes());
    world.fake.connections[first].is_finished = true;
    world.fake.tell(first, Events::FINISHED);
    world.run();
    let second = world.syn();
    assert_ne!(first, second);
    world.answer(second);
    world.got(second);
    world.says(second, &ok("2"));
    world.got(client);
    // the request crosses the backend's RST: nothing of it was acknowledged
    world.says(client, "POST /3 HTTP/1.1\r\nHost: a\r\n\r\n");
    world.dies(second, Ended::Reset);
    let third = world.syn();
    world.answer(third);
    assert!(world.got(third).starts_with("POST /3 "));
    world.says(third, &ok("3"));
    assert_eq!(world.got(client), ok("3"));
    assert_eq!(
        world.books.backend_http(10, BackendHttpCount::Failures),
        0,
        "it says nothing about the backend"
    );
    world.ends();
}

#[test]
fn configured_statuses_lead_to_another_backend() {
    let retry = Retry { on_status: vec![503], ..Retry::default() };
    let mut world = World::new(Plan { http_pool: HttpPool { retry, ..HttpPool::default() }, ..plan() });
    let (client, first) = world.exchange(&get("/"));
    world.says(first, "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
    let second = world.syn();
    assert_ne!(world.backend_of(first), world.backend_of(second));
    world.answer(second);
    world.says(second, "HTTP/1.1 503 Busy too\r\nContent-Length: 0\r\n\r\n");
    assert!(world.got(client).starts_with("HTTP/1.1 503 Busy too\r\n"), "the last answer is the answer");
    world.ends();
}

#[test]
fn retries_end_with_their_budget() {
    let retry = Retry { budget_percent: 10, budget_floor: 2, ..Retry::default() };
    let breaker = None;
    let mut world =
        World::new(Plan { http_pool: HttpPool { retry, breaker, ..HttpPool::default() }, ..plan() });
    for _ in 0..10 {
        let client = world.client();
        world.says(client, &get("/"));
        while !world.fake.connections[world.syn()].is_released {
            world.dies(world.syn(), Ended::Refused);
        }
        assert!(world.got(client).starts_with("HTTP/1.1 502 "));
    }
    assert_eq!((world.books.http(HttpCount::Retries), world.books.http(HttpCount::RetriesDenied)), (2, 8));
    world.ends();
}

#[test]
fn a_failing_backend_is_left_alone_for_a_while() {
    let breaker = Some(BreakerRules { consecutive: 3, open_ms: 1_000, ..BreakerRules::default() });
    let retry = Retry { attempts: 0, ..Retry::default() };
    let mut world = World::new(Plan {
        backends: 1,
        http_pool: HttpPool { retry, breaker, ..HttpPool::default() },
        ..plan()
    });
    let client = world.client();
    for _ in 0..3 {
        world.says(client, &get("/"));
        world.dies(world.syn(), Ended::Refused);
        assert!(world.got(client).starts_with("HTTP/1.1 502 "));
    }
    assert_eq!(world.around.breakers.last().unwrap().state, BreakerState::Open);
    world.says(client, &get("/"));
    assert!(world.got(client).starts_with("HTTP/1.1 503 "));
    assert_eq!(world.last_cause(), Some(Cause::NoBackend));
    world.advance(1_000);
    world.says(client, &get("/"));
    let upstream = world.syn();
    world.answer(upstream);
    world.says(upstream, &ok("again"));
    assert_eq!(world.got(client), ok("again"));
    assert_eq!(world.around.breakers.last().unwrap().state, BreakerState::Closed);
    assert_eq!(world.books.backend_http(10, BackendHttpCount::BreakerOpened), 1);
    world.ends();
}

#[test]
fn a_client_that_leaves_takes_its_request_along() {
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.dies(client, Ended::Reset);
    assert!(world.is_reset(upstream));
    assert_eq!(world.last_cause(), Some(Cause::ClientClosed));
    world.ends();
    // who only says that no more comes gets the answer
    let mut world = World::new(plan());
    let (client, upstream) = world.exchange(&get("/"));
    world.finishes(client);
    world.says(upstream, &ok("still"));
    assert!(world.got(client).ends_with("still"));
    assert!(world.is_shut(client) && !world.is_reset(client));
    world.ends();
}

#[test]
fn a_backend_that_makes_no_sense_is_bad_gateway() {
    for response in
        ["SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n"]
    {
        let mut world = World::new(plan());
        let (client, upstream) = world.exchange(&get("/"));
        world.says(upstream, response);
        assert!(world.got(client).starts_with("HTTP/1.1 502 "), "{response}");
        assert_eq!(world.last_cause(), Some(Cause::ResponseMalformed));
        world.ends();
    }
}

#[test]
fn heads_beyond_the_limits_are_refused() {
    let mut world = World::new(with(|listener| listener.limits.header_bytes = 1_000));
    let client = world.client();
    world.says(client, "GET / HTTP/1.1\r\nHost: a\r\n");
    for _ in 0..20 {
        world.says(client, &format!("X-Fill: {}\r\n", "x".repeat(100)));
    }
    assert!(world.got(client).starts_with("HTTP/1.1 431 "));
    world.ends();
    let mut world = World::new(with(|listener| listener.limits.uri_bytes = 20));
    let client = world.client();
    world.says(client, &get("/01234567890123456789"));
    assert!(world.got(client).starts_with("HTTP/1.1 414 "));
    world.ends();
}

/// Sessions and exchanges wait for the same backends, each for what the other has.
#[test]
fn a_session_that_ends_lets_an_exchange_in_and_the_other_way_round() {
    let rules = ListenerRules { queue: 10, queue_ms: 2_000, ..ListenerRules::default() };
    let of_tcp = Plan { backends: 1, backend_limit: 1, rules: rules.clone(), ..Plan::default() };
    let of_http = Plan { backends: 1, backend_limit: 1, rules, ..plan() };
    let mut world = World::new(of_tcp.clone());
    let (session, _) = world.session();
    // the listener is HTTP from here on; what it had goes on
    world.adopt(of_http);
    let client = world.client();
    world.says(client, &get("/"));
    assert_eq!((world.books.queued(), world.fake.upstreams().len()), (1, 1));
    world.dies(session, Ended::Reset);
    assert_eq!((world.books.queued(), world.fake.upstreams().len()), (0, 2), "at once, not with the timer");
    world.answer(world.syn());
    assert!(world.got(world.syn()).starts_with("GET / "));

    world.adopt(of_tcp);
    let waiting = world.client();
    world.arrives(waiting, b"session");
    assert_eq!(world.books.queued(), 1);
    world.says(world.syn(), &ok("x"));
    assert_eq!(world.books.queued(), 0);
    world.answer(world.syn());
    assert_eq!(world.sent(world.syn()), b"session");
    world.ends();
}

/// What became of the last attempt is told, not that nobody is left.
#[test]
fn the_last_failure_is_the_answer_where_nobody_is_left() {
    let once = |backends: u32, attempts: u8, end: &dyn Fn(&mut World, usize)| {
        let retry = Retry { attempts, ..Retry::default() };
        let http_pool = HttpPool { retry, ..HttpPool::default() };
        let mut world = World::new(Plan { backends, http_pool, ..plan() });
        let client = world.client();
        world.says(client, &get("/"));
        for _ in 0..4 {
            let upstream = world.syn();
            if !world.fake.connections[upstream].is_released {
                end(&mut world, upstream);
            }
        }
        let response = world.got(client);
        let told = world.around.told.last().unwrap();
        let result = (response[9..12].to_owned(), told.cause.unwrap(), told.attempts);
        assert_eq!(world.books.http(HttpCount::Retries), u64::from(told.attempts) - 1);
        world.ends();
        result
    };
    let refuses = |world: &mut World, upstream: usize| world.dies(upstream, Ended::Refused);
    let closes = |world: &mut World, upstream: usize| {
        world.answer(upstream);
        world.finishes(upstream);
    };
    for backends in [1, 2, 3] {
        let attempts = backends as u8;
        assert_eq!(once(backends, 3, &refuses), ("502".to_owned(), Cause::ConnectFailed, attempts));
        assert_eq!(once(backends, 3, &closes), ("502".to_owned(), Cause::ResponseMissing, attempts));
    }
    assert_eq!(once(3, 1, &refuses), ("502".to_owned(), Cause::ConnectFailed, 2));
}

#[test]
fn a_response_is_given_up_only_for_another_backend() {
    let retry = Retry { attempts: 5, on_status: vec![503], ..Retry::default() };
    for (backends, limit) in [(1, 0), (2, 1)] {
        let http_pool = HttpPool { retry: retry.clone(), ..HttpPool::default() };
        let mut world = World::new(Plan { backends, backend_limit: limit, http_pool, ..plan() });
        // the second, where there is one, is at its limit
        let others: Vec<_> = (1..backends).map(|_| world.exchange(&get("/other"))).collect();
        let (client, upstream) = world.exchange(&get("/"));
        world.says(upstream, "HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno");
        let response = world.got(client);
        assert!(response.starts_with("HTTP/1.1 503 Busy\r\n") && response.ends_with("no"), "{response}");
        let told = world.around.told.last().unwrap();
        assert_eq!((told.cause, told.attempts), (None, 1));
        assert_eq!(world.books.http(HttpCount::Retries), 0);
        drop(others);
        world.ends();
    }
}
