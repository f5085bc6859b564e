//! Is the response as expected? One request on a connection of its own.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{Outcome, Steps, contains, failed, shown};
use crate::health::check::{Http, Target};

/// Largest head of a response.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Most fields of a response.
const MAX_FIELDS: usize = 128;
/// How much of the body is looked at.
pub(crate) const MAX_BODY_BYTES: usize = 64 << 10;
/// Longest line before a chunk, and all that frames chunks: more is not for us.
const MAX_CHUNK_LINE_BYTES: usize = 1 << 10;

pub(super) async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    expected: &Http,
    target: &Target,
    usual_port: u16,
) -> Steps<()> {
    let request = request(expected, target, usual_port);
    stream.write_all(&request).await.map_err(|error| failed("send", &error))?;
    stream.flush().await.map_err(|error| failed("send", &error))?;
    let mut received = Vec::with_capacity(2 << 10);
    loop {
        match parse(&received, expected)? {
            // RFC 9110 §15.2: interim responses come before the one that counts
            Head::Interim(length) => {
                received.drain(..length);
                continue;
            }
            Head::Final { length, framing } => {
                received.drain(..length);
                return body(stream, received, framing, expected).await;
            }
            Head::Partial if received.len() >= MAX_HEAD_BYTES => {
                return Err(Outcome::Bad(format!("the head of the response exceeds {MAX_HEAD_BYTES} bytes")));
            }
            Head::Partial => {}
        }
        if read(stream, &mut received).await? == 0 {
            let seen = if received.is_empty() { "without a response" } else { "within the response's head" };
            return Err(Outcome::Bad(format!("the connection was closed {seen}")));
        }
    }
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, into: &mut Vec<u8>) -> Steps<usize> {
    into.reserve(2 << 10);
    stream.read_buf(into).await.map_err(|error| failed("receive", &error))
}

fn request(http: &Http, target: &Target, usual_port: u16) -> Vec<u8> {
    let host = http.host.clone().unwrap_or_else(|| {
        let ip = match target.to.ip() {
            std::net::IpAddr::V4(v4) => v4.to_string(),
            std::net::IpAddr::V6(v6) => format!("[{v6}]"),
        };
        if target.to.port() == usual_port { ip } else { format!("{ip}:{}", target.to.port()) }
    });
    let (method, path) = (&http.method, &http.path);
    let length =
        if matches!(method.as_str(), "POST" | "PUT" | "PATCH") { "content-length: 0\r\n" } else { "" };
    format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nuser-agent: weir-health\r\naccept: */*\r\n{length}connection: close\r\n\r\n")
        .into_bytes()
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// There is none.
    None,
    Length(u64),
    Chunked,
    /// With the connection.
    Close,
}

enum Head {
    Partial,
    /// Its length.
    Interim(usize),
    Final {
        length: usize,
        framing: Framing,
    },
}

/// Status and fields against what is expected.
fn parse(received: &[u8], expected: &Http) -> Steps<Head> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(received) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(Head::Partial),
        Err(error) => {
            return Err(Outcome::Bad(format!("\"{}\" is no HTTP response: {error}", shown(received))));
        }
    };
    let status = response.code.unwrap_or(0);
    if (100..200).contains(&status) && status != 101 {
        return Ok(Head::Interim(length));
    }
    if !expected.statuses.iter().any(|(first, last)| (*first..=*last).contains(&status)) {
        let wanted: Vec<String> = expected.statuses.iter().map(|range| format_range(*range)).collect();
        return Err(Outcome::Bad(format!("status {status}, expected {}", wanted.join(", "))));
    }
    let values = |name: &str| {
        let name = name.to_owned();
        response
            .headers
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(&name))
            .map(|field| field.value)
    };
    for (name, text) in &expected.headers {
        let Some(value) = values(name).next() else {
            return Err(Outcome::Bad(format!("the response has no header {name}")));
        };
        if !values(name).any(|value| contains(value, text.as_bytes())) {
            let message = format!("header {name} is \"{}\", which does not contain \"{text}\"", shown(value));
            return Err(Outcome::Bad(message));
        }
    }
    let is_chunked = values("transfer-encoding")
        .next_back()
        .is_some_and(|value| value.trim_ascii().to_ascii_lowercase().ends_with(b"chunked"));
    let content_length = values("content-length")
        .next()
        .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
    let framing = match content_length {
        _ if expected.method == "HEAD" || matches!(status, 204 | 304) => Framing::None,
        _ if is_chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    Ok(Head::Final { length, framing })
}

/// `200` or `200-399`.
fn format_range((first, last): (u16, u16)) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

/// Reads until the text is found, or can't be any more.
async fn body<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut received: Vec<u8>,
    framing: Framing,
    expected: &Http,
) -> Steps<()> {
    if expected.body.is_empty() {
        return Ok(());
    }
    let mut chunks = Chunks::default();
    let mut text = Vec::new();
    loop {
        let is_whole = match framing {
            Framing::None => true,
            Framing::Close | Framing::Length(_) => {
                text.append(&mut received);
                let length = if let Framing::Length(length) = framing { length } else { u64::MAX };
                let is_whole = text.len() as u64 >= length;
                text.truncate(usize::try_from(length).unwrap_or(usize::MAX));
                is_whole
            }
            Framing::Chunked => chunks.take(&mut received, &mut text)?,
        };
        text.truncate(MAX_BODY_BYTES);
        if contains(&text, expected.body.as_bytes()) {
            return Ok(());
        }
        if is_whole || text.len() >= MAX_BODY_BYTES || read(stream, &mut received).await? == 0 {
            return Err(Outcome::Bad(format!(
                "the body, which begins with \"{}\", does not contain \"{}\"",
                shown(&text),
                expected.body
            )));
        }
    }
}

/// Where in a chunked body we are (RFC 9112 §7.1).
#[derive(Debug, Default)]
struct Chunks {
    /// Bytes that the chunk still has, the line's end after it included.
    left: u64,
}

impl Chunks {
    /// Moves data from `received`; true after the last chunk.
    fn take(&mut self, received: &mut Vec<u8>, text: &mut Vec<u8>) -> Steps<bool> {
        loop {
            if self.left > 0 {
                let now = usize::try_from(self.left).unwrap_or(usize::MAX).min(received.len());
                // the two last bytes end the line
                let data = usize::try_from(self.left.saturating_sub(2)).unwrap_or(usize::MAX).min(now);
                text.extend(received.drain(..now).take(data));
                self.left -= now as u64;
                if self.left > 0 {
                    return Ok(false);
                }
            }
            let Some(end) = memchr::memmem::find(received, b"\r\n") else {
                if received.len() > MAX_CHUNK_LINE_BYTES {
                    return Err(Outcome::Bad("the body's chunks are malformed".to_owned()));
                }
                return Ok(false);
            };
            let line: Vec<u8> = received.drain(..end + 2).take(end).collect();
            let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
            let size = std::str::from_utf8(digits.trim_ascii())
                .ok()
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .filter(|size| *size < u64::MAX - 2)
                .ok_or_else(|| Outcome::Bad("the body's chunks are malformed".to_owned()))?;
            if size == 0 {
                return Ok(true);
            }
            self.left = size + 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expected() -> Http {
        Http {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            host: None,
            statuses: vec![(200, 399)],
            headers: Vec::new(),
            body: String::new(),
        }
    }

    fn ended(response: &[u8], expected: &Http) -> Steps<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let target = crate::health::tests::target();
        let (mut here, mut there) = tokio::io::duplex(1 << 20);
        runtime.block_on(async move {
            there.write_all(response).await.unwrap();
            there.shutdown().await.unwrap();
            let result = exchange(&mut here, expected, &target, 80).await;
            drop(there);
            result
        })
    }

    #[test]
    fn responses_are_held_against_what_is_expected() {
        let bad = |response: &str, expected: &Http| match ended(response.as_bytes(), expected) {
            Err(Outcome::Bad(reason)) => reason,
            other => panic!("{other:?}"),
        };
        let any = expected();
        assert_eq!(ended(b"HTTP/1.1 204 No Content\r\n\r\n", &any), Ok(()));
        assert_eq!(ended(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n", &any), Ok(()));
        assert_eq!(bad("HTTP/1.1 503 Busy\r\n\r\n", &any), "status 503, expected 200-399");
        assert_eq!(bad("", &any), "the connection was closed without a response");
        assert_eq!(bad("HTTP/1.1 200", &any), "the connection was closed within the response's head");
        assert!(bad("SSH-2.0-x\r\n", &any).contains("is no HTTP response"));
        let headed = Http { headers: vec![("x-role".to_owned(), "primary".to_owned())], ..any.clone() };
        assert_eq!(ended(b"HTTP/1.1 200 OK\r\nX-Role: primary-1\r\n\r\n", &headed), Ok(()));
        assert_eq!(bad("HTTP/1.1 200 OK\r\n\r\n", &headed), "the response has no header x-role");
        assert!(bad("HTTP/1.1 200 OK\r\nx-role: replica\r\n\r\n", &headed).contains("does not contain"));
        let body = Http { body: "all good".to_owned(), ..any };
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nall \r\n4;x\r\ngood\r\n0\r\n\r\n";
        assert_eq!(ended(chunked.as_bytes(), &body), Ok(()));
        assert_eq!(ended(b"HTTP/1.1 200 OK\r\n\r\nit is all good", &body), Ok(()));
        assert!(bad("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nall good", &body).contains("\"all g\""));
        assert!(
            bad("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n", &body).contains("malformed")
        );
        let late = format!("HTTP/1.1 200 OK\r\n\r\n{}all good", "x".repeat(MAX_BODY_BYTES));
        assert!(bad(&late, &body).contains("does not contain"));
    }

    proptest! {
        /// However a chunked body is cut into chunks and reads, its text is the same.
        #[test]
        fn chunks_join(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..20), cut in 1usize..40) {
            let mut wire = Vec::new();
            for part in &parts {
                wire.extend(format!("{:x}\r\n", part.len()).into_bytes());
                wire.extend(part);
                wire.extend(b"\r\n");
            }
            wire.extend(b"0\r\n\r\n");
            let (mut chunks, mut text, mut received, mut is_whole) = (Chunks::default(), Vec::new(), Vec::new(), false);
            for piece in wire.chunks(cut) {
                if is_whole {
                    break;
                }
                received.extend(piece);
                is_whole = chunks.take(&mut received, &mut text).unwrap();
            }
            prop_assert!(is_whole);
            prop_assert_eq!(text, parts.concat());
        }

        #[test]
        fn any_response_ends(response: Vec<u8>, body in "[a-z]{0,3}") {
            let expected = Http { body, ..expected() };
            drop(ended(&response, &expected));
            let mut headed = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            headed.extend(&response);
            drop(ended(&headed, &expected));
        }
    }
}
