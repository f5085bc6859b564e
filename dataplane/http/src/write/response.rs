//! What does a client get of a backend's response?

use super::edit::Edits;
use super::{Lines, NoRoom, Sink, Variables};
use crate::head::{Body, Response, Version};
use crate::name::Known;
use crate::routes::spec::FieldEdit;

/// A cookie that names the backend.
#[derive(Clone, Copy, Debug)]
pub struct StickyCookie<'a> {
    /// Its name, a token.
    pub name: &'a str,
    /// Its value.
    pub value: &'a [u8],
    /// `Max-Age`, seconds; 0: none.
    pub max_age_s: u32,
    /// `Secure`.
    pub secure: bool,
}

/// How a response goes on.
#[derive(Clone, Copy, Debug)]
pub struct ResponseOut<'a> {
    /// Edits of fields; none of interim responses.
    pub edits: &'a [FieldEdit],
    /// What stands in their values.
    pub variables: Variables<'a>,
    /// The pseudonym in `Via`; empty: none is added.
    pub via: &'a str,
    /// The version of the request.
    pub version: Version,
    /// How the body goes on; never chunked to a 1.0 client.
    pub body: Body,
    /// Whether the client may go on with its connection.
    pub keep_alive: bool,
    /// A cookie for the client.
    pub sticky: Option<StickyCookie<'a>>,
    /// A date (RFC 9110 §5.6.7) for responses without one.
    pub date: Option<&'a [u8]>,
}

/// Fields of a response that never go on as they came.
const DROPPED: u64 = Known::Connection.bit()
    | Known::ContentLength.bit()
    | Known::TransferEncoding.bit()
    | Known::Te.bit()
    | Known::Upgrade.bit()
    | Known::KeepAlive.bit()
    | Known::ProxyConnection.bit()
    | Known::Http2Settings.bit()
    | Known::WeirCause.bit();

/// Bytes that [`response`] writes at most.
pub fn response_bound(response: &Response, how: &ResponseOut<'_>) -> usize {
    const OWN: usize = 160;
    const COOKIE: usize = 80;
    let sticky = how.sticky.map_or(0, |sticky| sticky.name.len() + sticky.value.len() + COOKIE);
    response.len
        + response.fields.len()
        + OWN
        + sticky
        + how.via.len()
        + how.date.map_or(0, <[u8]>::len)
        + Edits(how.edits).bound(&how.variables)
}

/// Writes a response's head for a client, always as HTTP/1.1 (RFC 9110 §6.2).
#[inline]
pub fn response(
    out: &mut Vec<u8>,
    head: &[u8],
    response: &Response,
    how: &ResponseOut<'_>,
) -> Result<(), NoRoom> {
    let mut sink = Sink::new(out);
    sink.put(b"HTTP/1.1 ");
    sink.put_number(u64::from(response.status));
    sink.put(b" ");
    sink.put(response.reason.of(head));
    sink.put(b"\r\n");
    write_fields(&mut sink, head, response, how);
    write_framing(&mut sink, response, how);
    let edits = Edits(how.edits);
    if !how.via.is_empty() && !edits.replaces("via") {
        sink.put(if response.version == Version::Http11 { b"Via: 1.1 " } else { b"Via: 1.0 " });
        sink.put(how.via.as_bytes());
        sink.put(b"\r\n");
    }
    if !response.is_interim() {
        if let Some(date) = how.date
            && !response.fields.has(Known::Date)
        {
            sink.put_line(b"Date", date);
        }
        if let Some(sticky) = &how.sticky {
            write_sticky(&mut sink, sticky);
        }
        if !how.edits.is_empty() {
            edits.write(&how.variables, &mut sink);
        }
    }
    sink.put(b"\r\n");
    sink.finish()
}

#[inline(always)]
fn write_fields(sink: &mut Sink<'_>, head: &[u8], response: &Response, how: &ResponseOut<'_>) {
    let mut dropped = DROPPED;
    if names_protocols(response) {
        dropped &= !Known::Upgrade.bit();
    }
    if how.body != Body::Chunked {
        dropped |= Known::Trailer.bit();
    }
    let edits = Edits(if response.is_interim() { &[] } else { how.edits });
    let mut lines = Lines::new(head);
    for field in response.fields.iter() {
        if dropped & field.known.bit() != 0 || field.is_hop || edits.removes(field, head) {
            continue;
        }
        lines.keep(field, sink);
    }
    lines.flush(sink);
}

/// 101 and 426 say which protocols (RFC 9110 §7.8, §15.5.22).
fn names_protocols(response: &Response) -> bool {
    matches!(response.status, 101 | 426) && response.fields.has(Known::Upgrade)
}

/// How the body ends, and how the connection goes on.
#[inline(always)]
fn write_framing(sink: &mut Sink<'_>, response: &Response, how: &ResponseOut<'_>) {
    match (how.body, response.content_length) {
        (Body::Length(length), _) => sink.put_length(length),
        (Body::Chunked, _) => sink.put(b"Transfer-Encoding: chunked\r\n"),
        // HEAD and 304 tell of the body that GET would have had.
        (Body::None, Some(length)) => sink.put_length(length),
        (Body::None | Body::UntilClose, _) => {}
    }
    if response.is_interim() {
        return;
    }
    let protocols = names_protocols(response);
    match (response.status, how.keep_alive, how.version) {
        (101, ..) => sink.put(b"Connection: upgrade\r\n"),
        (_, true, Version::Http11) if protocols => sink.put(b"Connection: upgrade\r\n"),
        (_, true, Version::Http11) => {}
        (_, true, Version::Http10) => sink.put(b"Connection: keep-alive\r\n"),
        (_, false, _) if protocols => sink.put(b"Connection: close, upgrade\r\n"),
        (_, false, _) => sink.put(b"Connection: close\r\n"),
    }
}

fn write_sticky(sink: &mut Sink<'_>, sticky: &StickyCookie<'_>) {
    sink.put(b"Set-Cookie: ");
    sink.put_value(sticky.name.as_bytes());
    sink.put(b"=");
    sink.put_value(sticky.value);
    sink.put(b"; Path=/; HttpOnly; SameSite=Lax");
    if sticky.max_age_s > 0 {
        sink.put(b"; Max-Age=");
        sink.put_number(u64::from(sticky.max_age_s));
    }
    if sticky.secure {
        sink.put(b"; Secure");
    }
    sink.put(b"\r\n");
}
