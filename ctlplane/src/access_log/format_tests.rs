//! Lines, field by field.

use super::*;
use weir_abi::events::{Stamp, Texts, Times};

/// 23 November 2026, 16:05:09.000042 UTC.
const WHEN: u64 = 1_795_449_909_000_042;

fn exchange() -> Exchange<'static> {
    Exchange {
        stamp: Stamp { unix_us: WHEN, generation: 42, worker: 1 },
        listener: 1,
        route: 1,
        pool: 2,
        backend: 3,
        client: IpAddr::from([198, 18, 0, 7]),
        client_port: 50_123,
        version: 11,
        status: 200,
        cause: 0,
        attempts: 1,
        is_reused: true,
        bytes_in: 5,
        bytes_out: 1_024,
        times: Times { head_us: 1, queue_us: NEVER, connect_us: 3, response_us: 4, total_us: 1_500_000 },
        texts: Texts {
            method: b"GET",
            target: b"/a?b=c",
            host: b"example.org",
            user_agent: b"curl/8",
            referer: b"",
            request_id: b"77",
        },
        cut: 0,
    }
}

/// A request whose head was refused: nothing is known of it.
fn refused() -> Exchange<'static> {
    Exchange {
        route: NO_ROUTE,
        pool: NONE,
        backend: NONE,
        version: 0,
        status: 400,
        cause: Cause::RequestMalformed as u8,
        attempts: 0,
        is_reused: false,
        texts: Texts::default(),
        times: Times {
            head_us: NEVER,
            queue_us: NEVER,
            connect_us: NEVER,
            response_us: NEVER,
            total_us: NEVER,
        },
        ..exchange()
    }
}

fn line(format: &str, exchange: &Exchange<'_>) -> String {
    let mut line = Vec::new();
    Format::parse(format).unwrap().write(exchange, &Names::sample(), &mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn the_named_formats_are_what_readers_of_logs_know() {
    let common = "198.18.0.7 - - [23/Nov/2026:16:05:09 +0000] \"GET /a?b=c HTTP/1.1\" 200 1024";
    assert_eq!(line("clf", &exchange()), format!("{common}\n"));
    assert_eq!(line("combined", &exchange()), format!("{common} \"-\" \"curl/8\"\n"));
    let refused = "198.18.0.7 - - [23/Nov/2026:16:05:09 +0000] \"-\" 400 1024\n";
    assert_eq!(line("clf", &self::refused()), refused);
    assert!(line("clf", &Exchange { status: 0, ..exchange() }).contains("\" 000 1024"));
}

#[test]
fn json_has_all_that_is_known_and_nothing_else() {
    let json: serde_json::Value = serde_json::from_str(&line("json", &exchange())).unwrap();
    let expected = serde_json::json!({
        "time": "2026-11-23T16:05:09.000042Z", "listener": "web", "route": "api \"v1\"", "pool": "app",
        "backend": "app-1", "client": "198.18.0.7", "client_port": 50_123, "method": "GET", "target": "/a?b=c",
        "version": "HTTP/1.1", "host": "example.org", "status": 200, "bytes_in": 5, "bytes_out": 1_024,
        "user_agent": "curl/8", "request_id": "77", "attempts": 1, "reused": true, "head_us": 1, "connect_us": 3,
        "response_us": 4, "total_us": 1_500_000, "worker": 1, "generation": 42,
    });
    assert_eq!(json, expected);
    let json: serde_json::Value = serde_json::from_str(&line("json", &refused())).unwrap();
    assert_eq!(json["cause"], "request-malformed");
    for absent in ["route", "pool", "backend", "method", "target", "total_us", "version"] {
        assert!(json.get(absent).is_none(), "{absent}");
    }
    let cut = Exchange { cut: 0b1010, status: 0, ..exchange() };
    let json: serde_json::Value = serde_json::from_str(&line("json", &cut)).unwrap();
    assert_eq!(json["cut"], serde_json::json!(["target", "user_agent"]));
    assert!(json.get("status").is_none());
}

#[test]
fn every_field_can_be_asked_for() {
    for field in Field::ALL {
        for exchange in [exchange(), refused()] {
            let text = line(&format!("<%{{{}}}>", field.name()), &exchange);
            assert!(text.starts_with('<') && text.ends_with(">\n") && text.len() > 3, "{text}");
        }
    }
    let text = line("100%% %{duration} %{time_unix} %{backend}/%{pool}", &exchange());
    assert_eq!(text, "100% 1.500000 1795449909.000042 app-1/app\n");
    assert_eq!(
        line(
            "%{listener} %{backend} %{cause}",
            &Exchange { listener: 9, backend: 8, cause: 99, ..exchange() }
        ),
        "9 8 99\n"
    );
    assert_eq!(line("%{route}", &Exchange { route: 7, ..exchange() }), "7\n");
}

#[test]
fn a_client_can_not_forge_a_line_or_leave_its_quotes() {
    let evil = b"x\" 200 1\n198.18.9.9 - - [now] \"GET / HTTP/1.1\" 200 \xff\x1b[2J\\";
    let texts =
        Texts { method: evil, target: evil, host: evil, user_agent: evil, referer: evil, request_id: evil };
    let exchange = Exchange { texts, ..exchange() };
    for format in ["clf", "combined", "json", "\"%{host}\" %{request_id}"] {
        let line = line(format, &exchange);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(line.chars().all(|character| character == '\n' || !character.is_control()), "{line:?}");
    }
    // each quote of the line that is not escaped is the format's
    let text = line("combined", &exchange);
    let quotes = text.match_indices('"').filter(|(at, _)| {
        text.as_bytes()[..*at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
    });
    assert_eq!(quotes.count(), 6, "{text}");
}

#[test]
fn a_format_that_can_not_be_is_refused_with_its_place() {
    let error = |text: &str| Format::parse(text).unwrap_err();
    let unknown = error("%{client} %{statu}");
    assert_eq!((unknown.start, unknown.length), (10, 8));
    assert_eq!(
        (unknown.to_string().as_str(), unknown.help.as_str()),
        ("there is no field \"statu\"", "did you mean %{status}?")
    );
    assert!(error("%{zzzzzzzzzz}").help.starts_with("the fields are time, "));
    for (text, start, length) in
        [("a %s", 2, 2), ("50%", 2, 1), ("%{client", 0, 2), ("%{client} \n", 10, 1), ("%é", 0, 3)]
    {
        let error = error(text);
        assert_eq!((error.start, error.length), (start, length), "{text}: {error}");
        assert!(text.get(error.start..error.start + error.length).is_some(), "{text}");
    }
    assert!(error("cfl").message.contains("\"cfl\" is neither"));
    assert!(error("").help.contains("combined"));
}

#[test]
fn days_of_the_calendar() {
    for (unix_s, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (951_782_400, "2000-02-29T00:00:00.000000Z"),
        (951_868_799, "2000-02-29T23:59:59.000000Z"),
        (951_868_800, "2000-03-01T00:00:00.000000Z"),
        (1_709_164_800, "2024-02-29T00:00:00.000000Z"),
        (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        (1_798_761_599, "2026-12-31T23:59:59.000000Z"),
    ] {
        assert_eq!(format_time(unix_s * 1_000_000), text);
    }
    // a clock that is wrong is not a reason to end
    assert!(!format_time(u64::MAX).is_empty() && !format_clf_time(u64::MAX).is_empty());
}

#[test]
fn the_operator_is_told_of_every_field() {
    let text = include_str!("../../../docs/operations.md");
    for field in Field::ALL {
        assert!(
            text.contains(&format!("`{}`", field.name())),
            "docs/operations.md does not name {}",
            field.name()
        );
    }
}
