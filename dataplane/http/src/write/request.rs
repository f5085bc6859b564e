//! What does a backend get of a request?

use core::net::IpAddr;

use super::edit::Edits;
use super::{Block, Lines, NoRoom, Sink, Variables};
use crate::forwarded::{self, Piece};
use crate::framing::elements;
use crate::head::{Body, Field, Forwards, Method, Request, Span, Version};
use crate::name::Known;
use crate::routes::spec::FieldEdit;
use crate::target::Form;

/// What backends are told about clients. Fields of these names that come from others than trusted clients don't go on, whatever is
/// told instead.
#[derive(Clone, Copy, Debug)]
pub struct Tell<'a> {
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port`.
    pub x_forwarded: bool,
    /// `Forwarded`.
    pub forwarded: bool,
    /// The pseudonym in `Via`; empty: none is added.
    pub via: &'a str,
    /// The request id's field; empty: none.
    pub request_id: &'a str,
    /// Whether the client's own fields of these names are continued.
    pub is_trusted: bool,
    /// Who asks.
    pub client: IpAddr,
    /// The port that it has asked.
    pub port: u16,
    /// Whether it asks by TLS.
    pub is_tls: bool,
}

/// How a request goes on.
#[derive(Clone, Copy, Debug)]
pub struct RequestOut<'a> {
    /// Another path, as [`crate::routes::edit::write_path`] has written it; `None`: as it came. What may not stand in a path is
    /// percent-encoded.
    pub path: Option<&'a [u8]>,
    /// Another host than the client asked for, with its port; `None`: that one.
    pub host: Option<&'a [u8]>,
    /// Edits of fields.
    pub edits: &'a [FieldEdit],
    /// What stands in their values; the request id comes from here as well.
    pub variables: Variables<'a>,
    /// What the backend is told.
    pub tell: Tell<'a>,
    /// How its body goes on: as it came, but for a chunked one that was collected.
    pub body: Body,
    /// Whether the backend is asked to close its connection.
    pub close: bool,
    /// Whether the wish for another protocol goes on.
    pub upgrade: bool,
    /// Whether the backend is asked for a 100.
    pub expect: bool,
}

/// Fields of a request that never go on as they came.
const DROPPED: u64 = Known::Host.bit()
    | Known::Connection.bit()
    | Known::ContentLength.bit()
    | Known::TransferEncoding.bit()
    | Known::Te.bit()
    | Known::Upgrade.bit()
    | Known::Expect.bit()
    | Known::KeepAlive.bit()
    | Known::ProxyConnection.bit()
    | Known::Proxy.bit()
    | Known::Http2Settings.bit();

/// Fields that say who the client is.
const ABOUT_CLIENT: u64 = Known::Forwarded.bit()
    | Known::XForwardedFor.bit()
    | Known::XForwardedProto.bit()
    | Known::XForwardedHost.bit()
    | Known::XForwardedPort.bit();

/// Bytes that [`request`] writes at most.
pub fn request_bound(request: &Request, how: &RequestOut<'_>) -> usize {
    const OWN: usize = 448;
    let host = how.host.map_or(0, <[u8]>::len).max(request.host.authority.len as usize);
    // A field without a space behind its colon gets one.
    request.len
        + request.fields.len()
        + OWN
        + how.path.map_or(0, |path| 3 * path.len() + 1)
        + 3 * host
        + how.tell.via.len()
        + how.tell.request_id.len()
        + how.variables.request_id.len()
        + forwarded::BOUND
        + Edits(how.edits).bound(&how.variables)
}

/// Writes a request's head for a backend, always as HTTP/1.1 in the origin form (RFC 9112 §3.2.1), CONNECT and `*` as they are.
#[inline]
pub fn request(
    out: &mut Vec<u8>,
    head: &[u8],
    request: &Request,
    how: &RequestOut<'_>,
) -> Result<(), NoRoom> {
    let mut sink = Sink::new(out);
    let kept_id = kept_id(head, request, how);
    write_line(&mut sink, head, request, how);
    sink.put(how.host.unwrap_or_else(|| request.host.authority.of(head)));
    sink.put(b"\r\n");
    write_fields(&mut sink, head, request, how, kept_id);
    write_framing(&mut sink, head, request, how);
    write_about_client(&mut sink, head, request, how, kept_id);
    if !how.tell.via.is_empty() && !Edits(how.edits).replaces("via") {
        sink.put(if request.version == Version::Http11 { b"Via: 1.1 " } else { b"Via: 1.0 " });
        sink.put(how.tell.via.as_bytes());
        sink.put(b"\r\n");
    }
    if !how.edits.is_empty() {
        Edits(how.edits).write(&how.variables, &mut sink);
    }
    sink.put(b"\r\n");
    sink.finish()
}

/// The first line, and the second up to the host.
#[inline(always)]
fn write_line(sink: &mut Sink<'_>, head: &[u8], request: &Request, how: &RequestOut<'_>) {
    const END: &[u8] = b" HTTP/1.1\r\nHost: ";
    let target = &request.target;
    let start = request.method_name.start as usize;
    match (target.form, how.path) {
        (Form::Origin, None) | (Form::Authority | Form::Asterisk, _) => {
            sink.put(head.get(start..target.whole.end()).unwrap_or_default());
            return sink.put(END);
        }
        _ => {}
    }
    sink.put(request.method_name.of(head));
    sink.put(b" ");
    // RFC 9112 §3.2.4.
    let is_server = request.method == Method::Options && !target.has_query;
    match (how.path, target.path.of(head)) {
        (Some(path), _) => {
            if !path.starts_with(b"/") {
                sink.put(b"/");
            }
            sink.put_path(path);
        }
        (None, []) => sink.put(if is_server { b"*" } else { b"/" }),
        (None, path) => sink.put(path),
    }
    if target.has_query {
        sink.put(b"?");
        sink.put(target.query.of(head));
    }
    sink.put(END);
}

/// The fields that go on.
#[inline(always)]
fn write_fields(
    sink: &mut Sink<'_>,
    head: &[u8],
    request: &Request,
    how: &RequestOut<'_>,
    kept_id: Option<Span>,
) {
    let mut dropped = DROPPED;
    if is_upgrading(request, how) {
        dropped &= !Known::Upgrade.bit();
    }
    if how.body != Body::Chunked {
        dropped |= Known::Trailer.bit();
    }
    // What is told instead is written below.
    if how.tell.x_forwarded || how.tell.forwarded || !how.tell.is_trusted {
        dropped |= about_client_dropped(how);
    }
    if request.method.counts_forwards() {
        dropped |= Known::MaxForwards.bit();
    }
    let edits = Edits(how.edits);
    let id_length = how.tell.request_id.len();
    // one id goes on, or none
    let is_id = |field: &Field| {
        field.name.len as usize == id_length
            && id_length > 0
            && kept_id != Some(field.value)
            && field.name.of(head).eq_ignore_ascii_case(how.tell.request_id.as_bytes())
    };
    let mut lines = Lines::new(head);
    for field in request.fields.iter() {
        if dropped & field.known.bit() != 0 || field.is_hop || is_id(field) || edits.removes(field, head) {
            continue;
        }
        lines.keep(field, sink);
    }
    lines.flush(sink);
}

/// Which fields about the client don't go on as they came: all of strangers'; of trusted clients' those that are continued.
fn about_client_dropped(how: &RequestOut<'_>) -> u64 {
    if !how.tell.is_trusted {
        return ABOUT_CLIENT;
    }
    let mut dropped = 0;
    if how.tell.x_forwarded {
        dropped |= Known::XForwardedFor.bit();
    }
    if how.tell.forwarded {
        dropped |= Known::Forwarded.bit();
    }
    dropped
}

/// The id that a trusted client has given the request.
fn kept_id(head: &[u8], request: &Request, how: &RequestOut<'_>) -> Option<Span> {
    if !how.tell.is_trusted || how.tell.request_id.is_empty() {
        return None;
    }
    request.fields.first_named(head, how.tell.request_id.as_bytes()).map(|field| field.value)
}

fn is_upgrading(request: &Request, how: &RequestOut<'_>) -> bool {
    how.upgrade && request.upgrade
}

/// How the body ends, and how the connection goes on.
#[inline(always)]
fn write_framing(sink: &mut Sink<'_>, head: &[u8], request: &Request, how: &RequestOut<'_>) {
    match how.body {
        Body::None | Body::UntilClose => {}
        Body::Length(length) => sink.put_length(length),
        Body::Chunked => sink.put(b"Transfer-Encoding: chunked\r\n"),
    }
    if how.expect && request.expect_continue {
        sink.put(b"Expect: 100-continue\r\n");
    }
    if request.method.counts_forwards()
        && let Forwards::Most(most) = request.forwards(head)
        && !Edits(how.edits).replaces("max-forwards")
    {
        sink.put(b"Max-Forwards: ");
        sink.put_number(u64::from(most.saturating_sub(1)));
        sink.put(b"\r\n");
    }
    let trailers = request.connection.te && request.fields.has(Known::Te) && takes_trailers(head, request);
    match (is_upgrading(request, how), how.close, trailers) {
        (false, false, false) => {}
        (true, _, false) => sink.put(b"Connection: upgrade\r\n"),
        (true, _, true) => sink.put(b"TE: trailers\r\nConnection: upgrade, te\r\n"),
        (false, true, false) => sink.put(b"Connection: close\r\n"),
        (false, true, true) => sink.put(b"TE: trailers\r\nConnection: close, te\r\n"),
        (false, false, true) => sink.put(b"TE: trailers\r\nConnection: te\r\n"),
    }
}

/// RFC 9110 §10.1.4: trailers pass through us, so the wish may as well.
fn takes_trailers(head: &[u8], request: &Request) -> bool {
    let is_te = |field: &&Field| field.known == Known::Te;
    let mut codings = request.fields.iter().filter(is_te).flat_map(|field| elements(field.value.of(head)));
    codings.any(|coding| coding.eq_ignore_ascii_case(b"trailers"))
}

/// Who asks.
#[inline(always)]
fn write_about_client(
    sink: &mut Sink<'_>,
    head: &[u8],
    request: &Request,
    how: &RequestOut<'_>,
    kept_id: Option<Span>,
) {
    let edits = Edits(how.edits);
    let tell = &how.tell;
    if tell.x_forwarded {
        write_x_forwarded(sink, head, request, how, edits);
    }
    if tell.forwarded && !edits.replaces("forwarded") {
        sink.put(b"Forwarded: ");
        put_continued(sink, head, request, Known::Forwarded, tell.is_trusted);
        let host = request.host.authority.of(head);
        forwarded::element(tell.client, host, tell.is_tls, |piece| match piece {
            Piece::Bytes(bytes) => sink.put(bytes),
            Piece::Address(address) => sink.put_address(address),
        });
        sink.put(b"\r\n");
    }
    if !tell.request_id.is_empty() && kept_id.is_none() && !edits.replaces(tell.request_id) {
        sink.put(tell.request_id.as_bytes());
        sink.put(b": ");
        sink.put_value(how.variables.request_id);
        sink.put(b"\r\n");
    }
}

fn write_x_forwarded(
    sink: &mut Sink<'_>,
    head: &[u8],
    request: &Request,
    how: &RequestOut<'_>,
    edits: Edits<'_>,
) {
    let tell = &how.tell;
    let host = request.host.authority.of(head);
    if !tell.is_trusted && how.edits.is_empty() && !host.is_empty() {
        return write_usual_x_forwarded(sink, host, tell);
    }
    if !edits.replaces("x-forwarded-for") {
        sink.put(b"X-Forwarded-For: ");
        put_continued(sink, head, request, Known::XForwardedFor, tell.is_trusted);
        sink.put_address(tell.client);
        sink.put(b"\r\n");
    }
    let is_wanted = |known: Known| {
        let is_kept = tell.is_trusted && request.fields.has(known);
        !is_kept && !edits.replaces(known.name())
    };
    if is_wanted(Known::XForwardedProto) {
        let line: &[u8] =
            if tell.is_tls { b"X-Forwarded-Proto: https\r\n" } else { b"X-Forwarded-Proto: http\r\n" };
        sink.put(line);
    }
    if is_wanted(Known::XForwardedHost) && !host.is_empty() {
        sink.put_line(b"X-Forwarded-Host", host);
    }
    if is_wanted(Known::XForwardedPort) {
        sink.put(b"X-Forwarded-Port: ");
        sink.put_number(u64::from(tell.port));
        sink.put(b"\r\n");
    }
}

/// The same where nothing is continued or edited: few copies, which cost more than their bytes.
#[inline(always)]
fn write_usual_x_forwarded(sink: &mut Sink<'_>, host: &[u8], tell: &Tell<'_>) {
    let mut block = Block::<112>::new();
    block.put(b"X-Forwarded-For: ");
    match tell.client {
        IpAddr::V4(address) => block.put_v4(address),
        IpAddr::V6(_) => {
            block.flush(sink);
            sink.put_address(tell.client);
        }
    }
    block.put(b"\r\nX-Forwarded-Proto: http");
    if tell.is_tls {
        block.put(b"s");
    }
    block.put(b"\r\nX-Forwarded-Host: ");
    block.flush(sink);
    sink.put(host);
    block.put(b"\r\nX-Forwarded-Port: ");
    block.put_decimal(tell.port);
    block.put(b"\r\n");
    block.flush(sink);
}

/// What a trusted client has said, for us to add to.
fn put_continued(sink: &mut Sink<'_>, head: &[u8], request: &Request, known: Known, is_trusted: bool) {
    if !is_trusted || !request.fields.has(known) {
        return;
    }
    for field in request.fields.iter().filter(|field| field.known == known && !field.value.is_empty()) {
        sink.put(field.value.of(head));
        sink.put(b", ");
    }
}
