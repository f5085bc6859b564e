//! Does any sequence of bytes make this crate panic, or break what it promises?
//!
//! The bodies of fuzz targets: a runner feeds them arbitrary bytes; a failed promise is a panic there.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::chunked::{ChunkError, Decoder, Kind, Pass, Trailers};
use crate::head::{
    Body, Fields, Limits, Method, Progress, Refusal, Request, Response, Span, Version, head_end,
};
use crate::name::Known;
use crate::routes::spec::FieldEdit;
use crate::target::{self, Form};
use crate::write::{self, RequestOut, ResponseOut, Tell, Variables};

const WIDE: Limits = Limits { head_bytes: u16::MAX as u32, headers: 128, target_bytes: 60_000 };

/// Reads a request from arbitrary bytes, whole and in part, and writes it for a backend in several ways. The first two bytes choose
/// ways and cuts.
pub fn request(data: &[u8]) {
    let Some(([choice, cut], bytes)) = data.split_first_chunk::<2>() else { return };
    let mut read = Request::default();
    let whole = read.parse(bytes, &WIDE);
    let mut part = Request::default();
    check_beginnings(bytes, *cut, whole, (read.len, read.body), |beginning| {
        let progress = part.parse(beginning, &WIDE);
        (progress, (part.len, part.body))
    });
    if whole != Ok(Progress::Complete) {
        return;
    }
    let head = bytes.get(..read.len).unwrap_or_default();
    check_head(head, &read.fields);
    for span in [
        read.method_name,
        read.target.whole,
        read.target.path,
        read.target.query,
        read.host.authority,
        read.host.name,
    ] {
        check_span(span, head);
    }
    check_path(&read, head);
    let edits = [
        FieldEdit::Set("X-Edit".into(), "%{client} %{path} %{host} %{backend_address}".into()),
        FieldEdit::Remove("cookie".into()),
        FieldEdit::Add("transfer-encoding".into(), "chunked".into()),
    ];
    let bits = |bit: u8| choice >> bit & 1 != 0;
    let client: IpAddr = if bits(0) {
        Ipv6Addr::from_bits(u128::MAX - 1).into()
    } else {
        Ipv4Addr::from_bits(u32::MAX).into()
    };
    let how = RequestOut {
        path: bits(1).then_some(read.target.path.of(head)),
        host: None,
        edits: if bits(2) { &edits } else { &[] },
        variables: Variables {
            client: Some(client),
            host: read.host.authority.of(head),
            path: read.target.path.of(head),
            // anything at all
            backend: bytes,
            request_id: head,
            ..Variables::default()
        },
        tell: Tell {
            x_forwarded: bits(3),
            forwarded: bits(4),
            via: if bits(5) { "weir" } else { "" },
            request_id: if bits(6) { "x-request-id" } else { "" },
            is_trusted: bits(7),
            client,
            port: u16::MAX,
            is_tls: bits(0),
        },
        body: read.body,
        close: bits(1),
        upgrade: bits(5),
        expect: bits(4),
    };
    check_written_request(&read, head, &how);
}

/// What is parsed of beginnings agrees with what is parsed of the whole; `parse` tells how far a head goes and how its body ends as well.
fn check_beginnings(
    bytes: &[u8],
    cut: u8,
    whole: Result<Progress, Refusal>,
    read: (usize, Body),
    mut parse: impl FnMut(&[u8]) -> (Result<Progress, Refusal>, (usize, Body)),
) {
    for end in cuts(bytes.len(), cut) {
        let (progress, part) = parse(bytes.get(..end).unwrap_or_default());
        match progress {
            Ok(Progress::Complete) => {
                assert_eq!(whole, Ok(Progress::Complete), "a beginning is complete, the whole isn't");
                assert_eq!(part, read, "it ends elsewhere in part");
            }
            Ok(Progress::Incomplete) => {
                assert!(whole.is_err() || read.0 > end || whole == Ok(Progress::Incomplete))
            }
            Err(refusal) => {
                assert_eq!(whole, Err(refusal), "a beginning is refused, the whole is something else")
            }
        }
    }
}

/// What was written for a backend means what was read.
fn check_written_request(read: &Request, head: &[u8], how: &RequestOut<'_>) {
    let bound = write::request_bound(read, how);
    let mut out = Vec::with_capacity(bound);
    let room = out.capacity();
    assert_eq!(write::request(&mut out, head, read, how), Ok(()), "the bound of {bound} isn't enough");
    assert!(out.len() <= bound && out.capacity() == room, "{} bytes, bound {bound}", out.len());
    if out.len() > u16::MAX as usize || (read.host.authority.is_empty() && how.host.is_none()) {
        return;
    }
    let mut again = Request::default();
    match again.parse(&out, &WIDE) {
        Ok(progress) => assert_eq!(progress, Progress::Complete, "what was written isn't whole"),
        // Fields that the proxy adds may be too many for the limit, an encoded path too long.
        Err(refusal) => {
            let is_large = matches!(refusal, Refusal::TooLarge | Refusal::TargetTooLong);
            return assert!(is_large, "what was written is refused: {refusal}");
        }
    }
    assert_eq!(again.len, out.len(), "what was written goes on behind its head");
    assert_eq!((again.method, again.body), (read.method, read.body), "another message");
    assert_eq!(again.method_name.of(&out), read.method_name.of(head), "another method");
    assert_eq!(again.target.query.of(&out), read.target.query.of(head), "another query");
    assert_eq!(again.host.authority.of(&out), read.host.authority.of(head), "another host");
    assert_eq!(again.keep_alive, !how.close || (how.upgrade && read.upgrade), "another end");
    assert_eq!(again.version, Version::Http11);
    for known in [Known::KeepAlive, Known::ProxyConnection, Known::Proxy, Known::Http2Settings] {
        assert!(!again.fields.has(known), "{} went on", known.name());
    }
}

/// Reads a response from arbitrary bytes, whole and in part, and writes it for a client. The first two bytes choose ways and cuts.
pub fn response(data: &[u8]) {
    let Some(([choice, cut], bytes)) = data.split_first_chunk::<2>() else { return };
    let bits = |bit: u8| choice >> bit & 1 != 0;
    let method = match choice >> 6 {
        0 | 1 => Method::Get,
        2 => Method::Head,
        _ => Method::Connect,
    };
    let mut read = Response::default();
    let whole = read.parse(bytes, &WIDE, method);
    let mut part = Response::default();
    check_beginnings(bytes, *cut, whole, (read.len, read.body), |beginning| {
        let progress = part.parse(beginning, &WIDE, method);
        (progress, (part.len, part.body))
    });
    if whole != Ok(Progress::Complete) {
        return;
    }
    let head = bytes.get(..read.len).unwrap_or_default();
    check_head(head, &read.fields);
    check_span(read.reason, head);
    let edits = [FieldEdit::Set("Server".into(), "%{backend_address}".into())];
    let how = ResponseOut {
        edits: if bits(0) { &edits } else { &[] },
        variables: Variables { backend: bytes, ..Variables::default() },
        via: if bits(1) { "weir" } else { "" },
        version: if bits(2) { Version::Http10 } else { Version::Http11 },
        body: read.body,
        keep_alive: bits(3) && read.body != Body::UntilClose,
        sticky: None,
        date: bits(4).then_some(b"Mon, 23 Nov 2026 16:00:00 GMT".as_slice()),
    };
    let bound = write::response_bound(&read, &how);
    let mut out = Vec::with_capacity(bound);
    assert_eq!(write::response(&mut out, head, &read, &how), Ok(()), "the bound of {bound} isn't enough");
    assert!(out.len() <= bound, "{} bytes, bound {bound}", out.len());
    let mut again = Response::default();
    match again.parse(&out, &WIDE, method) {
        Ok(progress) => assert_eq!(progress, Progress::Complete, "what was written isn't whole"),
        Err(refusal) => {
            return assert_eq!(refusal, Refusal::TooLarge, "what was written is refused");
        }
    }
    assert_eq!((again.len, again.status, again.body), (out.len(), read.status, read.body), "another message");
    assert_eq!(again.content_length, read.content_length, "another length");
}

/// Decodes a chunked body, whole and in pieces, whose lengths the first eight bytes decide; what goes on means the same.
pub fn chunked(data: &[u8]) {
    let Some((pieces, body)) = data.split_first_chunk::<8>() else { return };
    let lengths = || pieces.iter().map(|&piece| usize::from(piece).max(1)).cycle();
    for trailers in [Trailers::Pass, Trailers::Drop] {
        let whole = decode(body, core::iter::repeat(usize::MAX), trailers);
        let in_pieces = decode(body, lengths(), trailers);
        match (&whole, &in_pieces) {
            (Ok(whole), Ok(in_pieces)) => {
                assert_eq!(whole, in_pieces, "the body reads differently in pieces")
            }
            _ => assert_eq!(whole.as_ref().err(), in_pieces.as_ref().err(), "another error in pieces"),
        }
        let Ok(whole) = whole else { continue };
        let again = decode(&whole.on, lengths(), Trailers::Pass);
        assert!(again.is_ok(), "what goes on is refused: {again:?}");
        let Ok(again) = again else { continue };
        assert_eq!((&again.data, &again.on, again.is_done), (&whole.data, &whole.on, whole.is_done));
        assert!(!whole.is_done || again.used == whole.on.len(), "what goes on has a tail");
        assert_eq!(whole.data.len() as u64, whole.counted, "data was counted wrongly");
    }
}

/// What a decoder has made of a body.
#[derive(Debug, Default, PartialEq, Eq)]
struct Decoded {
    data: Vec<u8>,
    on: Vec<u8>,
    counted: u64,
    used: usize,
    is_done: bool,
}

fn decode(
    body: &[u8],
    lengths: impl Iterator<Item = usize>,
    trailers: Trailers,
) -> Result<Decoded, ChunkError> {
    let mut decoded = Decoded::default();
    let (mut runs, mut passes) = (Decoder::new(), Decoder::new());
    let mut rest = body;
    for length in lengths {
        if rest.is_empty() || runs.is_done() {
            break;
        }
        let (piece, behind) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        rest = behind;
        let mut left = piece;
        while let Some(run) = runs.next(left)? {
            assert!(run.len > 0 && run.len <= left.len(), "a run of {} of {}", run.len, left.len());
            let (bytes, behind) = left.split_at_checked(run.len).unwrap_or_default();
            if run.kind == Kind::Data {
                decoded.data.extend_from_slice(bytes);
            }
            decoded.used += run.len;
            left = behind;
        }
        let mut left = piece;
        loop {
            let passed = passes.pass(left, trailers)?;
            if passed == Pass::default() {
                break;
            }
            decoded.on.extend_from_slice(left.get(..passed.pass).unwrap_or_default());
            decoded.counted += passed.data;
            left = left.get(passed.pass + passed.skip..).unwrap_or_default();
        }
    }
    decoded.is_done = runs.is_done();
    assert_eq!(decoded.is_done, passes.is_done(), "runs and passes end differently");
    Ok(decoded)
}

/// Some beginnings, all where there are few.
fn cuts(length: usize, cut: u8) -> impl Iterator<Item = usize> {
    let step = if length < 256 { 1 } else { 61 + usize::from(cut) };
    (0..length).step_by(step)
}

/// What every head that was accepted must be, whatever the parser thinks.
fn check_head(head: &[u8], fields: &Fields) {
    assert!(head.ends_with(b"\r\n\r\n"), "the head has no end");
    assert_eq!(head_end(head, 0), Some(head.len()), "its end is found elsewhere");
    let mut before = 0;
    for &byte in head {
        assert!(byte != b'\n' || before == b'\r', "a bare LF");
        assert!(before != b'\r' || byte == b'\n', "a bare CR");
        assert!((byte >= 0x20 || matches!(byte, b'\r' | b'\n' | b'\t')) && byte != 0x7f, "a control");
        before = byte;
    }
    let mut at = 0;
    for field in fields.iter() {
        check_span(field.name, head);
        check_span(field.value, head);
        assert!(field.name.start >= at && field.value.start as usize > field.name.end(), "out of order");
        at = field.value.start;
        assert!(crate::name::is_token(field.name.of(head)), "a name that is none");
        let value = field.value.of(head);
        assert_eq!(value, value.trim_ascii(), "white space around a value");
        assert!(!value.contains(&b'\r'), "a value of two lines");
        assert_eq!(field.known, Known::of(field.name.of(head)));
    }
}

fn check_span(span: Span, head: &[u8]) {
    assert!(span.end() <= head.len(), "a span beyond the head");
}

/// A path has one normal form, without dot segments.
fn check_path(request: &Request, head: &[u8]) {
    let path = request.target.path_or_root(head);
    let (mut buffer, mut again) = (vec![0; path.len()], vec![0; path.len()]);
    let Ok(normal) = target::normalise(path, &mut buffer) else { return };
    assert!(normal.len() <= path.len());
    assert_eq!(target::normalise(normal, &mut again), Ok(normal), "the normal form has another");
    if matches!(request.target.form, Form::Origin | Form::Absolute) {
        assert!(normal.starts_with(b"/"), "a path without a slash");
        let is_dots = |segment: &[u8]| matches!(segment, b"." | b"..");
        assert!(!normal.split(|&byte| byte == b'/').any(is_dots), "dot segments are left");
    }
    assert!(target::parameters(request.target.query.of(head)).count() <= head.len());
}

/// Requests to begin with, behind the two bytes that choose.
pub fn request_seeds() -> Vec<Vec<u8>> {
    let heads: [&[u8]; 8] = [
        b"GET /a/../b?c=d&e HTTP/1.1\r\nHost: a.example:80\r\nUser-Agent: x\r\nCookie: a=b; c=d\r\n\r\n",
        b"POST http://b/%61%2f HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: [::1]\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nTE: trailers\r\nConnection: te, x-a\r\nX-A: 1\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\nProxy: x\r\n\r\n",
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x==\r\n\r\n\x81\x05",
        b"\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1, 2\r\nX_Forwarded_For: 3\r\nForwarded: for=a\r\nVia: 1.0 b\r\nX-Request-Id: 7\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
        b"DELETE /x HTTP/1.1\r\nHOST:a\r\nX-Tab:\t a \t\r\nX-Empty:\r\nX-High: \xc3\xa4\r\nContent-Length: 0\r\n\r\n",
    ];
    let choices = [[0, 0], [0xff, 7], [0x5a, 60], [0xa5, 200]];
    heads.iter().flat_map(|head| choices.map(|choice| [&choice[..], head].concat())).collect()
}

/// Responses to begin with, behind the two bytes that choose.
pub fn response_seeds() -> Vec<Vec<u8>> {
    let heads: [&[u8]; 6] = [
        b"HTTP/1.1 200 OK\r\nServer: x\r\nDate: now\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\nSet-Cookie: a=b\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 404 \r\nConnection: keep-alive, x-a\r\nX-A: 1\r\nKeep-Alive: 5\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"a\"\r\n\r\n",
        b"HTTP/1.1 103\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\nVia: 1.1 b\r\n\r\n",
    ];
    let choices = [[0, 0], [0xff, 7], [0x9a, 60], [0x45, 200]];
    heads.iter().flat_map(|head| choices.map(|choice| [&choice[..], head].concat())).collect()
}

/// Chunked bodies to begin with, behind the lengths of the pieces that they come in.
pub fn chunked_seeds() -> Vec<Vec<u8>> {
    let bodies: [&[u8]; 5] = [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"00A;a=b\r\n0123456789\r\n1;\r\n\n\r\n0;x=\"y\"\r\nX-Sum: 1\r\nY:\t2\r\n\r\nGET",
        b"0\r\n\r\n",
        b"ffffff\r\nabc",
        b"1\r\na\r\n2\r\nbc\r\n3\r\n\r\n\r\r\n0\r\nContent-Length: 5\r\n\r\n",
    ];
    let cuts = [[1; 8], [255; 8], [3, 9, 1, 28, 107, 2, 64, 16]];
    bodies.iter().flat_map(|body| cuts.map(|cut| [&cut[..], body].concat())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each seed as it is, and with bytes changed, removed and doubled; the same ones in every run.
    fn mutate(seeds: &[Vec<u8>], body: fn(&[u8])) {
        const WORDS: [&[u8]; 16] = [
            b"\r\n",
            b"\n",
            b"\r",
            b"\0",
            b" ",
            b"\t",
            b":",
            b",",
            b"chunked",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Host: b\r\n",
            b"Connection: x\r\n",
            b"\xff",
            b"%2e",
            b"0",
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % below.max(1)
        };
        for seed in seeds {
            body(seed);
            for _ in 0..3_000 {
                let mut input = seed.clone();
                for _ in 0..=random(4) {
                    let at = random(input.len());
                    match random(5) {
                        0 => input[at] = random(256) as u8,
                        1 => drop(input.remove(at)),
                        2 => input[at] ^= 0x20,
                        3 => drop(input.splice(at..at, WORDS[random(WORDS.len())].iter().copied())),
                        _ => {
                            let end = (at + random(40)).min(input.len());
                            let copy = input[at..end].to_vec();
                            drop(input.splice(at..at, copy));
                        }
                    }
                    if input.is_empty() {
                        break;
                    }
                }
                body(&input);
            }
        }
    }

    #[test]
    fn requests_keep_their_promises() {
        mutate(&request_seeds(), request);
    }

    #[test]
    fn responses_keep_their_promises() {
        mutate(&response_seeds(), response);
    }

    #[test]
    fn chunked_bodies_keep_their_promises() {
        mutate(&chunked_seeds(), chunked);
    }

    #[test]
    fn seeds_are_messages() {
        for seed in request_seeds() {
            assert_eq!(
                Request::default().parse(&seed[2..], &WIDE),
                Ok(Progress::Complete),
                "{}",
                seed.escape_ascii()
            );
        }
        for seed in response_seeds() {
            let mut response = Response::default();
            assert_eq!(response.parse(&seed[2..], &WIDE, Method::Get), Ok(Progress::Complete));
        }
    }
}
