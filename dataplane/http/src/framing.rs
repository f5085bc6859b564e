//! Where does a message's body end? RFC 9112 §6, without what two recipients could read in two ways.
//!
//! Refused in requests, though RFC 9112 would let us repair it: several `Content-Length` (equal ones too, as fields or as a list), both
//! `Content-Length` and `Transfer-Encoding`, `Transfer-Encoding` under HTTP/1.0, any transfer coding but one `chunked`. Of responses the
//! first two are repaired (§6.3): what goes on has one meaning, and a connection whose response had both lengths isn't used again.

use crate::head::{Body, Fields, Method, Refusal, Version};
use crate::name::{Known, is_token};

/// Digits that a length may have. 10^18 - 1 is more than anybody sends, and fits a signed number of 64 bits everywhere.
const MAX_DIGITS: usize = 18;

/// How a request's body ends (RFC 9112 §6.3).
#[inline]
pub(crate) fn request(
    fields: &Fields,
    head: &[u8],
    method: Method,
    version: Version,
) -> Result<Body, Refusal> {
    if fields.has(Known::TransferEncoding) && fields.has(Known::ContentLength) {
        return Err(Refusal::BothLengths);
    }
    let body = match coded(fields, head, version)? {
        None if !fields.has(Known::ContentLength) => Body::None,
        None if fields.is_repeated(Known::ContentLength) => return Err(Refusal::ContentLength),
        None => Body::Length(content_length(fields.value(Known::ContentLength, head))?),
        Some(body) => body,
    };
    if method == Method::Connect && body != Body::None {
        return Err(Refusal::BodyForbidden);
    }
    Ok(body)
}

/// How the body of a response to this method ends (RFC 9112 §6.3).
#[inline]
pub(crate) fn response(
    fields: &Fields,
    head: &[u8],
    status: u16,
    method: Method,
    version: Version,
) -> Result<Body, Refusal> {
    let coded = coded(fields, head, version)?;
    let length = if coded.is_none() { told_length(fields, head)? } else { None };
    Ok(match status {
        100..=199 | 204 | 304 => Body::None,
        200..=299 if method == Method::Connect => Body::None,
        _ if method == Method::Head => Body::None,
        _ => coded.or(length.map(Body::Length)).unwrap_or(Body::UntilClose),
    })
}

/// Whether a response has both lengths, of which the coding wins (RFC 9112 §6.3): who sent it may mean something else.
#[inline]
pub(crate) fn is_doubtful(fields: &Fields) -> bool {
    fields.has(Known::TransferEncoding) && fields.has(Known::ContentLength)
}

/// The length that a response tells; the same one several times, as fields or as a list, is one (RFC 9112 §6.3).
pub(crate) fn told_length(fields: &Fields, head: &[u8]) -> Result<Option<u64>, Refusal> {
    if !fields.has(Known::ContentLength) {
        return Ok(None);
    }
    let told = fields.iter().filter(|field| field.known == Known::ContentLength);
    let mut values =
        told.flat_map(|field| field.value.of(head).split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
    let length = content_length(values.next().unwrap_or_default())?;
    for value in values {
        if content_length(value)? != length {
            return Err(Refusal::ContentLength);
        }
    }
    Ok(Some(length))
}

/// The body that `Transfer-Encoding` tells, if it is there.
#[inline]
fn coded(fields: &Fields, head: &[u8], version: Version) -> Result<Option<Body>, Refusal> {
    if !fields.has(Known::TransferEncoding) {
        return Ok(None);
    }
    if version == Version::Http10 {
        return Err(Refusal::TransferEncoding10);
    }
    if fields.is_repeated(Known::TransferEncoding) {
        return Err(Refusal::TransferEncoding);
    }
    transfer_encoding(fields.value(Known::TransferEncoding, head))?;
    Ok(Some(Body::Chunked))
}

/// RFC 9110 §8.6: digits, and nothing else.
pub(crate) fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > MAX_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::ContentLength);
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// `chunked`, once and alone.
fn transfer_encoding(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let codings = || value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let is_last = codings().next_back().is_some_and(is_chunked);
    let is_once = codings().filter(|coding| is_chunked(coding)).count() == 1;
    if is_last && is_once && codings().all(is_token) {
        return Err(Refusal::CodingUnsupported);
    }
    Err(Refusal::TransferEncoding)
}

/// The elements of a list (RFC 9110 §5.6.1), empty ones left out. For lists whose elements hold no quoted strings.
pub(crate) fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_digits() {
        assert_eq!(content_length(b"0"), Ok(0));
        assert_eq!(content_length(b"007"), Ok(7));
        assert_eq!(content_length(b"999999999999999999"), Ok(999_999_999_999_999_999));
        for value in
            ["", "+1", "-1", "1 ", "1,1", "0x1", "1.0", "1e3", "1000000000000000000", "18446744073709551617"]
        {
            assert_eq!(content_length(value.as_bytes()), Err(Refusal::ContentLength), "{value}");
        }
    }

    #[test]
    fn the_coding_is_chunked() {
        assert_eq!(transfer_encoding(b"ChunKed"), Ok(()));
        for value in ["gzip, chunked", "identity,chunked"] {
            assert_eq!(transfer_encoding(value.as_bytes()), Err(Refusal::CodingUnsupported), "{value}");
        }
        let refused = [
            "",
            "gzip",
            "chunked, chunked",
            "chunked, gzip",
            "xchunked",
            "chunked;a=b",
            "\"chunked\"",
            ",chunked",
            "chunked,",
            "chunked\x0b",
        ];
        for value in refused {
            assert_eq!(transfer_encoding(value.as_bytes()), Err(Refusal::TransferEncoding), "{value}");
        }
    }
}
