//! What does the proxy answer by itself?

use super::edit::Edits;
use super::{NoRoom, Sink, Variables};
use crate::cause::Cause;
use crate::head::Version;
use crate::routes::spec::FieldEdit;
use crate::status;

/// A response of the proxy's own.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Its status.
    pub status: u16,
    /// The version of the request; 1.1 where it wasn't understood.
    pub version: Version,
    /// Whether the client may go on with its connection.
    pub keep_alive: bool,
    /// Its body's type; empty: not told.
    pub content_type: &'a str,
    /// Its body.
    pub body: &'a [u8],
    /// Whether the body is only told of: the request was HEAD.
    pub is_head: bool,
    /// Why, where the client is told.
    pub cause: Option<Cause>,
    /// `Retry-After`, seconds.
    pub retry_after_s: Option<u32>,
    /// Where to ask instead, as [`crate::routes::edit::write_location`] has written it; empty: nowhere.
    pub location: &'a [u8],
    /// `Allow`, of a 405; empty: none.
    pub allow: &'a str,
    /// `Date` (RFC 9110 §6.6.1), where somebody knows.
    pub date: Option<&'a [u8]>,
    /// Edits of fields.
    pub edits: &'a [FieldEdit],
    /// What stands in their values.
    pub variables: Variables<'a>,
}

impl Own<'_> {
    /// One without anything special: no body, and the connection ends.
    pub const fn new(status: u16) -> Self {
        Self {
            status,
            version: Version::Http11,
            keep_alive: false,
            content_type: "",
            body: &[],
            is_head: false,
            cause: None,
            retry_after_s: None,
            location: &[],
            allow: "",
            date: None,
            edits: &[],
            variables: Variables {
                client: None,
                host: &[],
                path: &[],
                route: &[],
                backend: &[],
                request_id: &[],
            },
        }
    }
}

/// Bytes that [`own`] writes at most.
pub fn own_bound(own: &Own<'_>) -> usize {
    const OWN: usize = 320;
    OWN + own.content_type.len()
        + own.body.len()
        + own.allow.len()
        + own.date.map_or(0, <[u8]>::len)
        + own.location.len()
        + Edits(own.edits).bound(&own.variables)
}

/// Writes a response of the proxy's own with its body, whose bytes it returns. 1xx, 204 and 304 have none (RFC 9110 §6.4.1).
pub fn own(out: &mut Vec<u8>, own: &Own<'_>) -> Result<usize, NoRoom> {
    let mut sink = Sink::new(out);
    sink.put(b"HTTP/1.1 ");
    sink.put_number(u64::from(own.status));
    sink.put(b" ");
    sink.put(status::reason(own.status).as_bytes());
    sink.put(b"\r\n");
    let has_body = !matches!(own.status, 100..=199 | 204 | 304);
    if has_body {
        sink.put_length(own.body.len() as u64);
        if !own.content_type.is_empty() {
            put_checked(&mut sink, b"Content-Type: ", own.content_type.as_bytes());
        }
    }
    if !own.location.is_empty() {
        put_checked(&mut sink, b"Location: ", own.location);
    }
    if !own.allow.is_empty() {
        put_checked(&mut sink, b"Allow: ", own.allow.as_bytes());
    }
    if let Some(seconds) = own.retry_after_s {
        sink.put(b"Retry-After: ");
        sink.put_number(u64::from(seconds));
        sink.put(b"\r\n");
    }
    if let Some(cause) = own.cause {
        sink.put_line(b"weir-cause", cause.code().as_bytes());
    }
    if let Some(date) = own.date {
        put_checked(&mut sink, b"Date: ", date);
    }
    match (own.keep_alive, own.version) {
        _ if own.status < 200 => {}
        (true, Version::Http11) => {}
        (true, Version::Http10) => sink.put(b"Connection: keep-alive\r\n"),
        (false, _) => sink.put(b"Connection: close\r\n"),
    }
    Edits(own.edits).write(&own.variables, &mut sink);
    sink.put(b"\r\n");
    let body = if has_body && !own.is_head { own.body } else { &[] };
    sink.put(body);
    sink.finish().map(|()| body.len())
}

fn put_checked(sink: &mut Sink<'_>, start: &[u8], value: &[u8]) {
    sink.put(start);
    sink.put_value(value);
    sink.put(b"\r\n");
}
