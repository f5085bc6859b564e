//! How long do heads take? `cargo run --release --package weir-http --example head_cost`
//!
//! Heads stay in the first-level cache: this is the cost of the code alone. httparse's parser is measured beside ours; it neither checks
//! framing nor knows fields.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use weir_http::chunked::{Decoder, Trailers};
use weir_http::head::{Body, Limits, Method, Request, Response, Version};
use weir_http::write::{self, RequestOut, ResponseOut, Tell, Variables};

const ROUNDS: u32 = 1_000_000;

const SMALL: &[u8] =
    b"GET /index.html HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: wrk/4.2.0\r\nAccept: */*\r\n\r\n";

const TYPICAL: &[u8] = b"GET /catalogue/items/4711?colour=blue&size=m HTTP/1.1\r\n\
    Host: shop.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.5\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=8d1f2c9a77e04b6c; theme=dark\r\n\
    Sec-Fetch-Dest: document\r\n\
    Cache-Control: no-cache\r\n\r\n";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\n\
    Server: nginx/1.26.3\r\n\
    Date: Mon, 23 Nov 2026 16:00:00 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 1024\r\n\
    Connection: keep-alive\r\n\
    ETag: \"65f1a2b3-400\"\r\n\
    Cache-Control: max-age=60\r\n\
    Accept-Ranges: bytes\r\n\r\n";

/// The best of seven, in nanoseconds per call.
fn measure(name: &str, mut call: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..7 {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            call();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
    }
    println!("{name:<52} {best:7.1} ns");
}

fn request_out(body: Body) -> RequestOut<'static> {
    RequestOut {
        path: None,
        host: None,
        edits: &[],
        variables: Variables { request_id: b"0123456789abcdef0123456789abcdef", ..Variables::default() },
        tell: Tell {
            x_forwarded: true,
            forwarded: false,
            via: "weir",
            request_id: "x-request-id",
            is_trusted: false,
            client: IpAddr::V4(Ipv4Addr::new(198, 18, 7, 77)),
            port: 80,
            is_tls: false,
        },
        body,
        close: false,
        upgrade: true,
        expect: true,
    }
}

fn main() {
    let limits = Limits::default();
    let mut request = Request::default();
    let mut out = Vec::with_capacity(64 << 10);
    for (name, head) in [("small", SMALL), ("typical", TYPICAL)] {
        println!("{name} request, {} bytes", head.len());
        let how = request_out(Body::None);
        measure("  parse", || {
            let _ = black_box(request.parse(black_box(head), &limits));
        });
        measure("  write, X-Forwarded-*, Via and request id", || {
            out.clear();
            let _ = black_box(write::request(&mut out, black_box(head), &request, &how));
        });
        println!("  {} bytes written, bound {}", out.len(), write::request_bound(&request, &how));
        let mut plain = how;
        plain.tell.x_forwarded = false;
        plain.tell.via = "";
        plain.tell.request_id = "";
        measure("  write, nothing added", || {
            out.clear();
            let _ = black_box(write::request(&mut out, black_box(head), &request, &plain));
        });
        measure("  parse and write", || {
            let _ = black_box(request.parse(black_box(head), &limits));
            out.clear();
            let _ = black_box(write::request(&mut out, black_box(head), &request, &how));
        });
        measure("  httparse, parse", || {
            let mut fields = [httparse::EMPTY_HEADER; 32];
            let mut parsed = httparse::Request::new(&mut fields);
            let _ = black_box(parsed.parse(black_box(head)));
            black_box(&parsed);
        });
    }

    println!("response, {} bytes", ANSWER.len());
    let mut response = Response::default();
    let how = ResponseOut {
        edits: &[],
        variables: Variables::default(),
        via: "weir",
        version: Version::Http11,
        body: Body::Length(1024),
        keep_alive: true,
        sticky: None,
        date: None,
    };
    measure("  parse", || {
        let _ = black_box(response.parse(black_box(ANSWER), &limits, Method::Get));
    });
    measure("  write", || {
        out.clear();
        let _ = black_box(write::response(&mut out, black_box(ANSWER), &response, &how));
    });
    measure("  httparse, parse", || {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Response::new(&mut fields);
        let _ = black_box(parsed.parse(black_box(ANSWER)));
        black_box(&parsed);
    });

    let chunk = [b"400\r\n", &[b'x'; 1024][..], b"\r\n"].concat();
    let mut decoder = Decoder::new();
    measure("chunk of 1 KiB, pass", || {
        let _ = black_box(decoder.pass(black_box(&chunk), Trailers::Pass));
    });
}
