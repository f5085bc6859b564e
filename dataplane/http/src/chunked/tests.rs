//! Bodies in pieces of every size, what is refused of them, and what goes on.

use super::*;

/// Feeds a body in pieces of this size; its data and what goes on, or the error.
fn feed(body: &[u8], piece: usize, trailers: Trailers) -> Result<(Vec<u8>, Vec<u8>, usize), ChunkError> {
    let (mut data, mut on, mut used) = (Vec::new(), Vec::new(), 0);
    let (mut by_run, mut by_pass) = (Decoder::new(), Decoder::new());
    for piece in body.chunks(piece) {
        let mut rest = piece;
        while let Some(run) = by_run.next(rest)? {
            assert!(run.len > 0 && run.len <= rest.len());
            if run.kind == Kind::Data {
                data.extend(&rest[..run.len]);
            }
            rest = &rest[run.len..];
            used += run.len;
        }
        let mut rest = piece;
        loop {
            let passed = by_pass.pass(rest, trailers)?;
            if passed == Pass::default() {
                break;
            }
            on.extend(&rest[..passed.pass]);
            rest = &rest[passed.pass + passed.skip..];
        }
        assert_eq!(by_run.is_done(), by_pass.is_done());
    }
    Ok((data, on, if by_run.is_done() { used } else { usize::MAX }))
}

/// The same in all splits.
fn decode(body: &[u8], trailers: Trailers) -> Result<(Vec<u8>, Vec<u8>, usize), ChunkError> {
    let whole = feed(body, body.len().max(1), trailers);
    for piece in 1..body.len() {
        assert_eq!(feed(body, piece, trailers), whole, "{} in pieces of {piece}", body.escape_ascii());
    }
    whole
}

#[test]
fn bodies_are_read_and_go_on_as_they_came() {
    for (body, data) in [
        (&b"0\r\n\r\n"[..], &b""[..]),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"0005\r\nhello\r\n1\r\n!\r\n000\r\n\r\n", b"hello!"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"01234567890123456789"),
        (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        (b"0\r\nX-Sum: 1\r\nY:\r\n\r\n", b""),
    ] {
        let expected = (data.to_vec(), body.to_vec(), body.len());
        assert_eq!(decode(body, Trailers::Pass), Ok(expected), "{}", body.escape_ascii());
    }
}

#[test]
fn what_follows_is_left() {
    let (data, on, used) = decode(b"1\r\nx\r\n0\r\n\r\nGET / HTTP/1.1\r\n", Trailers::Pass).unwrap();
    assert_eq!((&data[..], &on[..], used), (&b"x"[..], &b"1\r\nx\r\n0\r\n\r\n"[..], 11));
}

#[test]
fn extensions_and_trailers_are_dropped() {
    let body = b"1;a=b; c=\"d\"\r\nx\r\n0;last\r\nX-Sum: 1\r\nY: 2\r\n\r\n";
    let (data, on, used) = decode(body, Trailers::Drop).unwrap();
    assert_eq!((&data[..], &on[..], used), (&b"x"[..], &b"1\r\nx\r\n0\r\n\r\n"[..], body.len()));
    let (_, on, _) = decode(body, Trailers::Pass).unwrap();
    assert_eq!(on, b"1\r\nx\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n");
}

#[test]
fn an_unfinished_body_is_not_done() {
    let body = b"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n";
    for end in 0..body.len() {
        assert_eq!(decode(&body[..end], Trailers::Pass).unwrap().2, usize::MAX, "{end}");
    }
}

#[test]
fn tricks_are_refused() {
    for (body, expected) in [
        (&b"\r\n"[..], ChunkError::Size),
        (b"+5\r\nhello", ChunkError::Size),
        (b"-1\r\n", ChunkError::Size),
        (b"0x5\r\nhello", ChunkError::Size),
        (b" 5\r\nhello", ChunkError::Size),
        (b"5 \r\nhello", ChunkError::Size),
        (b"5\t;a\r\nhello", ChunkError::Size),
        (b"5_0\r\nhello", ChunkError::Size),
        (b"g\r\n", ChunkError::Size),
        (b";a\r\n", ChunkError::Size),
        (b"5\0\r\nhello", ChunkError::Size),
        (b"5\x0b\r\nhello", ChunkError::Size),
        (b"5,5\r\nhello", ChunkError::Size),
        (b"5\n", ChunkError::LineEnd),
        (b"5\rhello", ChunkError::LineEnd),
        (b"5\r\r\nhello", ChunkError::LineEnd),
        (b"5;a\nhello", ChunkError::LineEnd),
        (b"5;a\rb\r\nhello", ChunkError::LineEnd),
        (b"5;a\0b\r\nhello", ChunkError::Extension),
        (b"5;\x80\r\nhello", ChunkError::Extension),
        (b"5\r\nhello0\r\n\r\n", ChunkError::DataEnd),
        (b"5\r\nhell\r\n0\r\n\r\n", ChunkError::DataEnd),
        (b"5\r\nhello\n0\r\n\r\n", ChunkError::DataEnd),
        (b"5\r\nhello\rx0\r\n\r\n", ChunkError::DataEnd),
        (b"5\r\nhello\r\n\r\n0\r\n\r\n", ChunkError::Size),
        (b"ffffffffffffffff\r\n", ChunkError::TooLarge),
        (b"1000000000000000\r\n", ChunkError::TooLarge),
        (b"00000000000000000\r\n", ChunkError::TooLarge),
        (b"10000000000000005\r\nhello", ChunkError::TooLarge),
        (b"0\r\n\n", ChunkError::LineEnd),
        (b"0\r\n\rx", ChunkError::LineEnd),
        (b"0\r\nA: b\n\r\n", ChunkError::LineEnd),
        (b"0\r\nA: b\rc\r\n\r\n", ChunkError::LineEnd),
        (b"0\r\nA: b\r\n c\r\n\r\n", ChunkError::Trailer),
        (b"0\r\nA : b\r\n\r\n", ChunkError::Trailer),
        (b"0\r\n: b\r\n\r\n", ChunkError::Trailer),
        (b"0\r\nA\r\n\r\n", ChunkError::Trailer),
        (b"0\r\nA: \0\r\n\r\n", ChunkError::Trailer),
        (b"0\r\nContent-Length: 5\r\n\r\n", ChunkError::TrailerForbidden),
        (b"0\r\nTRANSFER-ENCODING: chunked\r\n\r\n", ChunkError::TrailerForbidden),
        (b"0\r\nX-Sum: 1\r\nHost: b\r\n\r\n", ChunkError::TrailerForbidden),
        (b"0\r\nContent_Length: 5\r\n\r\n", ChunkError::TrailerForbidden),
        (b"0\r\nX-Forwarded-For: ::1\r\n\r\n", ChunkError::TrailerForbidden),
        (b"0\r\nAuthorization: x\r\n\r\n", ChunkError::TrailerForbidden),
    ] {
        assert_eq!(decode(body, Trailers::Pass), Err(expected), "{}", body.escape_ascii());
    }
}

#[test]
fn extensions_and_trailers_are_bounded() {
    let mut body = Vec::new();
    for _ in 0..3 {
        body.extend(b"1;");
        body.extend([b'a'; 1364]);
        body.extend(b"\r\nx\r\n");
    }
    assert!(feed(&body, 999, Trailers::Pass).is_ok());
    body.extend(b"1;a\r\n");
    assert_eq!(feed(&body, 999, Trailers::Pass), Err(ChunkError::Extension));

    let line = [&b"A: "[..], &[b'b'; 8000]].concat();
    let body = [b"0\r\n", &line[..], b"\r\n\r\n"].concat();
    assert!(feed(&body, 100, Trailers::Pass).is_ok());
    let body = [b"0\r\n", &line[..], &[b'b'; 200]].concat();
    assert_eq!(feed(&body, 100, Trailers::Pass), Err(ChunkError::TrailersTooLarge));
    let body = [b"0\r\n".to_vec(), b"A: b\r\n".repeat(65)].concat();
    assert_eq!(feed(&body, 100, Trailers::Pass), Err(ChunkError::TrailersTooLarge));
}
