//! What does a message's head say? Strict: what two recipients could read in two ways is refused.
//!
//! A head is parsed where it lies and remembered as [`Span`]s; nothing is copied or allocated. The record of a
//! [`Request`] or [`Response`] is used again and again.
//!
//! Refused in any head: lines that don't end in CR LF, CR or NUL or other controls anywhere, folded lines (of responses
//! [`unfold`] mends them), names that aren't tokens, white
//! space before a colon, and (RFC 9112 §2.2, §5) white space before the first field. Bytes above 127 pass in values only.

mod connection;
mod fields;
mod request;
mod response;

use crate::cause::Cause;
pub use connection::Connection;
pub use fields::{Field, Fields, MAX_FIELDS};
pub use request::{Forwards, Host, RefusedLine, Request, host_and_port};
pub use response::{Response, unfold};

/// A part of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset from the head's first byte.
    pub start: u16,
    /// Bytes.
    pub len: u16,
}

impl Span {
    /// From one offset to another. Heads are at most 65,535 bytes, so offsets always fit.
    #[inline(always)]
    pub(crate) fn between(from: usize, to: usize) -> Self {
        debug_assert!(from <= to && to <= u16::MAX as usize);
        Self { start: from as u16, len: (to - from) as u16 }
    }

    /// Its bytes; none where this is another, shorter head.
    #[inline(always)]
    pub fn of<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        head.get(start..start + self.len as usize).unwrap_or_default()
    }

    /// The offset of the first byte behind it.
    #[inline(always)]
    pub(crate) fn end(&self) -> usize {
        self.start as usize + self.len as usize
    }

    /// Whether it has no bytes.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// A version of HTTP. A request of 1.2 to 1.9 is taken for 1.1 (RFC 9110 §2.5); others are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 1.0.
    Http10,
    /// 1.1.
    #[default]
    Http11,
}

/// A request's method. Case counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "RFC 9110 §9.3, RFC 5789: the names say it")]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    /// Another token.
    Other,
}

impl Method {
    /// The method of a name.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        match name {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"CONNECT" => Self::Connect,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }

    /// RFC 9110 §9.2.1.
    pub const fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }

    /// Whether `Max-Forwards` says how far a request of it goes (RFC 9110 §7.6.2).
    #[inline]
    pub const fn counts_forwards(self) -> bool {
        matches!(self, Self::Options | Self::Trace)
    }

    /// RFC 9110 §9.2.2.
    pub const fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }
}

/// What a head may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the head, its empty line included; more than 65,535 is taken for that.
    pub head_bytes: u32,
    /// Fields; more than [`MAX_FIELDS`] is taken for that.
    pub headers: u16,
    /// Bytes of a request's target.
    pub target_bytes: u16,
}

impl Default for Limits {
    /// The configuration's defaults.
    fn default() -> Self {
        Self { head_bytes: 16 << 10, headers: 100, target_bytes: 8 << 10 }
    }
}

impl Limits {
    /// What is refused anyway.
    pub const WIDEST: Self = Self { head_bytes: u32::MAX, headers: u16::MAX, target_bytes: u16::MAX };

    /// The part of what is there in which the head must end.
    pub(crate) fn view<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(..self.most()).unwrap_or(bytes)
    }

    /// Bytes that a head may have.
    pub(crate) fn most(&self) -> usize {
        (self.head_bytes as usize).min(u16::MAX as usize)
    }
}

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// All of it was there.
    Complete,
    /// What is there is the beginning of a head; the record says nothing. Ask [`head_end`] about what comes before it is parsed
    /// again.
    Incomplete,
}

/// How a message's body ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    #[default]
    None,
    /// After so many bytes.
    Length(u64),
    /// As [`crate::chunked`] tells.
    Chunked,
    /// With its connection (responses only).
    UntilClose,
}

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// TLS, a PROXY header that nobody configured, or noise.
    #[error("the first line doesn't begin with a method and a space")]
    Method,
    /// An odd byte, a fragment, a form that the method doesn't have, another scheme, or user information.
    #[error("the target isn't one of the forms of RFC 9112 §3.2")]
    Target,
    /// Or more than one space before it.
    #[error("the first line doesn't end in HTTP/1.0 or HTTP/1.1")]
    Version,
    /// HTTP/2 without upgrade or ALPN, for example.
    #[error("the version isn't 1.0 or 1.1")]
    VersionUnsupported,
    /// Of a response.
    #[error("the status line isn't a version, three digits and a reason")]
    StatusLine,
    /// RFC 9112 §2.2.
    #[error("a line ends in LF without CR")]
    BareLf,
    /// RFC 9112 §2.2.
    #[error("a CR isn't followed by LF")]
    BareCr,
    /// NUL, for example.
    #[error("a control character in a value")]
    Control,
    /// RFC 9112 §5.2; white space before the first field as well.
    #[error("a line begins with white space")]
    Folded,
    /// RFC 9112 §5.1; white space before the colon as well.
    #[error("a field's name isn't a token")]
    Name,
    /// `Content_Length`: gateways take it for the field with `-`.
    #[error("a field's name is that of a framing field but for an underscore")]
    Confusable,
    /// Bytes, or number of fields.
    #[error("the head is larger than the limit")]
    TooLarge,
    /// Of a request.
    #[error("the target is longer than the limit")]
    TargetTooLong,
    /// Missing (1.1), repeated, empty, or not a host with a port.
    #[error("not one valid Host")]
    Host,
    /// Repeated, a list, or not a number.
    #[error("Content-Length isn't one number")]
    ContentLength,
    /// Repeated, or not `chunked`.
    #[error("Transfer-Encoding isn't chunked, once and last")]
    TransferEncoding,
    /// RFC 9112 §6.1: chunked is last, but other codings come before.
    #[error("a transfer coding other than chunked")]
    CodingUnsupported,
    /// RFC 9112 §6.3.
    #[error("both Content-Length and Transfer-Encoding")]
    BothLengths,
    /// RFC 9112 §6.1.
    #[error("Transfer-Encoding under HTTP/1.0")]
    TransferEncoding10,
    /// A body with CONNECT, whose meaning nobody defines (RFC 9110 §9.3.6).
    #[error("a body where the method has none")]
    BodyForbidden,
    /// Not tokens, very many, or the name of a framing field.
    #[error("Connection lists what it must not")]
    Connection,
    /// RFC 9110 §10.1.1.
    #[error("an expectation other than 100-continue")]
    Expectation,
}

impl Refusal {
    /// The cause, where it was a request's head.
    pub const fn request_cause(self) -> Cause {
        match self {
            Self::VersionUnsupported => Cause::VersionUnsupported,
            Self::TooLarge => Cause::HeaderTooLarge,
            Self::TargetTooLong => Cause::UriTooLong,
            Self::Host => Cause::RequestHost,
            Self::CodingUnsupported => Cause::CodingUnsupported,
            Self::Expectation => Cause::ExpectationUnsupported,
            Self::ContentLength
            | Self::TransferEncoding
            | Self::BothLengths
            | Self::TransferEncoding10
            | Self::Confusable
            | Self::BodyForbidden => Cause::RequestFraming,
            _ => Cause::RequestMalformed,
        }
    }

    /// The cause, where it was a response's head.
    pub const fn response_cause(self) -> Cause {
        match self {
            Self::TooLarge => Cause::ResponseTooLarge,
            _ => Cause::ResponseMalformed,
        }
    }
}

/// The offset behind a head's empty line. `from`: so many bytes were looked at before. A head without CRs ends here as well, for
/// [`Request::parse`] to refuse it; what is there of the first line it should have seen once, so that noise isn't waited for.
pub fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(2).min(bytes.len());
    memchr::memchr_iter(b'\n', bytes.get(from..)?).map(|at| from + at + 1).find_map(|behind| {
        let before = bytes.get(..behind - 1)?;
        let before = before.strip_suffix(b"\r").unwrap_or(before);
        (before.ends_with(b"\n") && before.len() > 1 && !is_leading(before)).then_some(behind)
    })
}

/// Whether these are empty lines that may come before a request.
fn is_leading(before: &[u8]) -> bool {
    before.iter().all(|byte| matches!(byte, b'\r' | b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_ends_with_its_empty_line() {
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n\r\nx", 0), Some(18));
        assert_eq!(head_end(b"GET / HTTP/1.1\r\nA: b\r\n\r", 0), None);
        assert_eq!(head_end(b"GET / HTTP/1.1\n\nx", 0), Some(16));
        assert_eq!(head_end(b"\r\nGET / HTTP/1.1\r\n\r\n", 0), Some(20));
        assert_eq!(head_end(b"\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", 0), Some(24));
        assert_eq!(head_end(b"", 0), None);
        assert_eq!(head_end(b"\r\n", 7), None);
    }

    #[test]
    fn an_end_is_found_however_it_trickles_in() {
        for head in [&b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET"[..], b"GET / HTTP/1.1\r\n\r\n"] {
            let end = head_end(head, 0).unwrap();
            for from in 0..end {
                assert_eq!(head_end(&head[..end - 1], from), None);
                assert_eq!(head_end(head, from), Some(end), "{from}");
            }
        }
    }
}
