//! What does a route make of a request: which pool, which path, which `Location`, which value?
//!
//! Writers append to a buffer and never make it grow: what doesn't fit is [`NoRoom`], and the buffer is as it was.

use core::fmt::Write as _;
use core::net::IpAddr;

use arrayvec::ArrayString;
use thiserror::Error;

use super::spec::{Mirror, Path, PathEdit, Redirect, Split};
use super::table::trimmed;
use crate::head::{Request, host_and_port};
use crate::name::Known;

/// The buffer's capacity is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the buffer has no room left")]
pub struct NoRoom;

/// Draws a pool by weight; `random` is new and even for each request. `None` without splits.
#[inline]
pub fn split(splits: &[Split], random: u64) -> Option<u32> {
    if let [only] = splits {
        return Some(only.pool);
    }
    let sum: u64 = splits.iter().map(|split| u64::from(split.weight)).sum();
    let mut drawn = ((u128::from(random) * u128::from(sum)) >> 64) as u64;
    for split in splits {
        match drawn.checked_sub(u64::from(split.weight)) {
            Some(rest) => drawn = rest,
            None => return Some(split.pool),
        }
    }
    splits.last().map(|split| split.pool)
}

/// Whether a request is copied to the mirror; `random` as for [`split`], but another number.
#[inline]
pub fn is_mirrored(mirror: &Mirror, random: u64) -> bool {
    ((u128::from(random) * 10_000) >> 64) < u128::from(mirror.per_ten_thousand)
}

/// What a redirect needs to know of a request.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// The host without port; empty where there is none.
    pub host: &'a [u8],
    /// The port that the request has named.
    pub port: Option<u16>,
    /// The address that it has asked: the host where it names none and `Location` has to (HTTP/1.0 needs no `Host`).
    pub address: IpAddr,
    /// The path as routes see it.
    pub path: &'a [u8],
    /// What follows the `?`; empty where there is none.
    pub query: &'a [u8],
}

impl<'a> Asked<'a> {
    /// What a request says. Of a trusted client `X-Forwarded-Proto` and `X-Forwarded-Host` say what its own client has asked: the first
    /// element of the first field counts, and what is neither a scheme nor a host doesn't.
    pub fn of(request: &Request, head: &'a [u8], path: &'a [u8], address: IpAddr, is_trusted: bool) -> Self {
        let told = |known: Known| {
            let value = if is_trusted { request.fields.value(known, head) } else { &[] };
            value.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii()
        };
        let own = (request.host.name.of(head), request.host.port);
        let (host, port) = host_and_port(told(Known::XForwardedHost)).unwrap_or(own);
        let is_tls = told(Known::XForwardedProto).eq_ignore_ascii_case(b"https");
        Self {
            scheme: if is_tls { "https" } else { "http" },
            host,
            port,
            address,
            path,
            query: request.target.query.of(head),
        }
    }
}

/// Writes the `Location` of a redirect; `matched` is the route's path. It names scheme and host (RFC 9110 §10.2.2), so that a path
/// that begins with two slashes leads nowhere else; a relative one, and one without any host whose scheme and port stay, is a path with
/// one slash at its beginning. Where scheme or port change and nobody has named a host, it is the address that was asked.
pub fn write_location(
    redirect: &Redirect,
    matched: &Path,
    asked: &Asked<'_>,
    out: &mut Vec<u8>,
) -> Result<(), NoRoom> {
    whole(out, |out| {
        let host = redirect.host.as_ref().map_or(asked.host, |host| host.as_bytes());
        let scheme = redirect.scheme.as_deref().unwrap_or(asked.scheme);
        let is_other_scheme = scheme != asked.scheme;
        let is_relative = redirect.relative || host.is_empty() && !is_other_scheme && redirect.port.is_none();
        if !is_relative {
            put(out, scheme.as_bytes())?;
            put(out, b"://")?;
            match host {
                [] => put_address(asked.address, out)?,
                host => put(out, host)?,
            }
            let is_elsewhere = redirect.host.is_some() || is_other_scheme;
            if let Some(port) = redirect.port.or(if is_elsewhere { None } else { asked.port }) {
                let mut digits = [0; 5];
                put(out, b":")?;
                put(out, decimal(port, &mut digits))?;
            }
        }
        let start = out.len();
        write_path(&redirect.path, matched, asked.path, out)?;
        if is_relative {
            merge_slashes(out, start);
        }
        let query = if redirect.keeps_query { asked.query } else { b"" };
        write_query(query, out)
    })
}

/// Writes the path that a request has after an edit; `matched` is the route's path. A replaced prefix and what follows meet in one
/// slash, and nothing left is `/`.
pub fn write_path(edit: &PathEdit, matched: &Path, path: &[u8], out: &mut Vec<u8>) -> Result<(), NoRoom> {
    whole(out, |out| match edit {
        PathEdit::Keep => put(out, path),
        PathEdit::Replace(replacement) => put(out, replacement.as_bytes()),
        PathEdit::ReplacePrefix(replacement) => {
            let matched = match matched {
                Path::Exact(_) => path.len(),
                Path::Prefix(prefix) => trimmed(prefix).len(),
                // refused when the table is built
                Path::Any | Path::Regex(_) => 0,
            };
            let rest = path.get(matched..).unwrap_or_default();
            let start = out.len();
            put(out, if rest.is_empty() { replacement } else { trimmed(replacement) }.as_bytes())?;
            put(out, rest)?;
            if out.len() == start {
                put(out, b"/")?;
            }
            merge_slashes(out, start);
            Ok(())
        }
    })
}

/// Writes `?` and the query, where there is one.
pub fn write_query(query: &[u8], out: &mut Vec<u8>) -> Result<(), NoRoom> {
    if query.is_empty() {
        return Ok(());
    }
    whole(out, |out| {
        put(out, b"?")?;
        put(out, query)
    })
}

/// Something that a field's value stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// `%{client}`: the client's address.
    Client,
    /// `%{host}`: the request's host.
    Host,
    /// `%{path}`: its path.
    Path,
    /// `%{route}`: the route's name.
    Route,
    /// `%{backend_address}`: the backend's address and port. (`%{backend}` is its name, which only the access log knows.)
    Backend,
    /// `%{request_id}`: the request's id.
    RequestId,
}

impl Variable {
    /// The one of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "client" => Self::Client,
            "host" => Self::Host,
            "path" => Self::Path,
            "route" => Self::Route,
            "backend_address" => Self::Backend,
            "request_id" => Self::RequestId,
            _ => return None,
        })
    }
}

/// A part of a configured value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Is written as it is.
    Text(&'a str),
    /// Stands for something.
    Variable(Variable),
}

/// The parts of a configured value.
pub fn pieces(value: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = value;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let variable = rest.strip_prefix("%{").and_then(|from| from.split_once('}'));
        if let Some((name, tail)) = variable
            && let Some(variable) = Variable::named(name)
        {
            rest = tail;
            return Some(Piece::Variable(variable));
        }
        // what looks like a variable and is none is text; a table's check refuses it before
        let skip = rest.chars().next().map_or(0, char::len_utf8);
        let end = rest.get(skip..).and_then(|tail| tail.find("%{")).map_or(rest.len(), |at| at + skip);
        let (text, tail) = rest.split_at_checked(end)?;
        rest = tail;
        Some(Piece::Text(text))
    })
}

/// Lets `write` write all or nothing.
fn whole(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), NoRoom>) -> Result<(), NoRoom> {
    let start = out.len();
    let written = write(out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), NoRoom> {
    if out.capacity() - out.len() < bytes.len() {
        return Err(NoRoom);
    }
    out.extend_from_slice(bytes);
    Ok(())
}

/// Leaves one of the slashes at the beginning of what was written from `start` on.
fn merge_slashes(out: &mut Vec<u8>, start: usize) {
    let slashes = out.get(start..).unwrap_or_default().iter().take_while(|byte| **byte == b'/').count();
    if slashes > 1 {
        out.drain(start..start + slashes - 1);
    }
}

/// An address as a host; IPv6 in brackets (RFC 3986 §3.2.2).
fn put_address(address: IpAddr, out: &mut Vec<u8>) -> Result<(), NoRoom> {
    let mut text = ArrayString::<41>::new();
    // the longest address has 39 characters
    let _fits = match address {
        IpAddr::V4(address) => write!(text, "{address}"),
        IpAddr::V6(address) => write!(text, "[{address}]"),
    };
    put(out, text.as_bytes())
}

fn decimal(number: u16, digits: &mut [u8; 5]) -> &[u8] {
    let mut rest = number;
    let mut start = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        start -= 1;
        if rest == 0 {
            break;
        }
    }
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room() -> Vec<u8> {
        Vec::with_capacity(256)
    }

    #[test]
    fn pools_get_their_weight() {
        let splits = [(3, 1), (4, 2), (5, 7)].map(|(pool, weight)| Split { pool, weight });
        let mut counts = [0u32; 6];
        for step in 0..10_000u64 {
            let random = step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            counts[split(&splits, random).unwrap() as usize] += 1;
        }
        for (pool, expected) in [(3, 1_000u32), (4, 2_000), (5, 7_000)] {
            assert!(counts[pool].abs_diff(expected) < 20, "{counts:?}");
        }
        assert_eq!(split(&[], 7), None);
        assert_eq!(split(&splits, u64::MAX), Some(5));
        assert_eq!(split(&splits, 0), Some(3));
        assert_eq!(split(&splits[..1], 9), Some(3));
        let mirror = |per_ten_thousand| Mirror { pool: 0, per_ten_thousand };
        assert!(is_mirrored(&mirror(10_000), u64::MAX) && !is_mirrored(&mirror(0), 0));
        assert!(is_mirrored(&mirror(1), 0) && !is_mirrored(&mirror(1), u64::MAX / 5_000));
    }

    #[test]
    fn prefixes_are_replaced_up_to_one_slash() {
        for (matched, replacement, path, expected) in [
            ("/v1", "/v2", "/v1/x", "/v2/x"),
            ("/v1", "/v2", "/v1", "/v2"),
            ("/v1", "/v2/", "/v1/x", "/v2/x"),
            ("/v1", "/v2/", "/v1", "/v2/"),
            ("/v1/", "/v2", "/v1/x", "/v2/x"),
            ("/v1", "/v2", "/v1/", "/v2/"),
            ("/v1", "/", "/v1/x", "/x"),
            ("/v1", "/", "/v1", "/"),
            ("/v1", "/", "/v1/", "/"),
            ("/v1", "/", "/v1//evil.example", "/evil.example"),
            ("/v1", "/v2", "/v1//x", "/v2//x"),
            ("/", "/app", "/x", "/app/x"),
            ("/", "/app", "/", "/app/"),
        ] {
            let mut out = room();
            let edit = PathEdit::ReplacePrefix(replacement.into());
            write_path(&edit, &Path::Prefix(matched.into()), path.as_bytes(), &mut out).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{matched} {replacement} {path}");
        }
        let mut out = room();
        let edit = PathEdit::ReplacePrefix("/new".into());
        write_path(&edit, &Path::Exact("/old".into()), b"/old", &mut out).unwrap();
        write_query(b"a=1", &mut out).unwrap();
        write_query(b"", &mut out).unwrap();
        write_path(&PathEdit::Replace("/r".into()), &Path::Any, b"/old", &mut out).unwrap();
        write_path(&PathEdit::Keep, &Path::Any, b"/old", &mut out).unwrap();
        assert_eq!(out, b"/new?a=1/r/old");
    }

    #[test]
    fn locations_change_what_was_configured() {
        let plain = Redirect {
            status: 308,
            scheme: None,
            host: None,
            port: None,
            path: PathEdit::Keep,
            keeps_query: true,
            relative: false,
        };
        let asked = Asked {
            scheme: "http",
            host: b"a.example",
            port: Some(8080),
            address: [192, 0, 2, 1].into(),
            path: b"/v1/x",
            query: b"q=1",
        };
        let nowhere = Asked { host: b"", path: b"//evil.example/x", ..asked };
        let write = |redirect: &Redirect, asked: &Asked<'_>| {
            let mut out = room();
            write_location(redirect, &Path::Prefix("/v1".into()), asked, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(write(&plain, &asked), "http://a.example:8080/v1/x?q=1");
        let https = Redirect { scheme: Some("https".into()), ..plain.clone() };
        assert_eq!(write(&https, &asked), "https://a.example/v1/x?q=1");
        // what is configured and no other than before changes nothing
        let by_tls = Asked { scheme: "https", ..asked };
        assert_eq!(write(&https, &by_tls), "https://a.example:8080/v1/x?q=1");
        assert_eq!(write(&plain, &by_tls), "https://a.example:8080/v1/x?q=1");
        // nobody has named a host
        assert_eq!(write(&https, &nowhere), "https://192.0.2.1//evil.example/x?q=1");
        let by_v6 = Asked { address: "2001:db8::1".parse().unwrap(), ..nowhere };
        let elsewhere = Redirect { port: Some(8443), ..https.clone() };
        assert_eq!(write(&elsewhere, &by_v6), "https://[2001:db8::1]:8443//evil.example/x?q=1");
        let relative = Redirect { relative: true, ..plain.clone() };
        assert_eq!(write(&relative, &asked), "/v1/x?q=1");
        assert_eq!(write(&relative, &nowhere), "/evil.example/x?q=1");
        let port = Redirect { port: Some(443), keeps_query: false, ..https };
        assert_eq!(write(&port, &asked), "https://a.example:443/v1/x");
        let host = Redirect { host: Some("b.example".into()), ..plain.clone() };
        assert_eq!(write(&host, &nowhere), "http://b.example//evil.example/x?q=1");
        let shorter = Redirect { path: PathEdit::ReplacePrefix("/".into()), ..host };
        assert_eq!(write(&shorter, &asked), "http://b.example/x?q=1");
        assert_eq!(write(&plain, &nowhere), "/evil.example/x?q=1");
        assert_eq!(
            write(&Redirect { port: Some(65_535), ..plain }, &asked),
            "http://a.example:65535/v1/x?q=1"
        );
    }

    #[test]
    fn trusted_clients_say_what_was_asked() {
        let asked = |fields: &str, is_trusted: bool| {
            let head = format!("GET /a?b HTTP/1.1\r\nHost: a.example:81\r\n{fields}\r\n");
            let mut request = Request::default();
            request.parse(head.as_bytes(), &crate::head::Limits::WIDEST).unwrap();
            let asked = Asked::of(&request, head.as_bytes(), b"/a", [192, 0, 2, 1].into(), is_trusted);
            let port = asked.port.map_or(String::new(), |port| format!(":{port}"));
            format!("{}://{}{port}", asked.scheme, String::from_utf8_lossy(asked.host))
        };
        for (fields, expected) in [
            ("", "http://a.example:81"),
            ("X-Forwarded-Proto: https\r\n", "https://a.example:81"),
            ("X-Forwarded-Proto: HTTPS, http\r\nX-Forwarded-Host: b.example\r\n", "https://b.example"),
            ("X-Forwarded-Host: b.example:82 , c.example\r\n", "http://b.example:82"),
            ("X-Forwarded-Host: b.example/evil\r\nX-Forwarded-Proto: ftp\r\n", "http://a.example:81"),
        ] {
            assert_eq!(asked(fields, true), expected, "{fields:?}");
            assert_eq!(asked(fields, false), "http://a.example:81", "{fields:?}");
        }
    }

    #[test]
    fn a_full_buffer_stays_as_it_was() {
        let mut out = Vec::with_capacity(8);
        out.extend_from_slice(b"GET ");
        let edit = PathEdit::ReplacePrefix("/abc".into());
        let written = write_path(&edit, &Path::Prefix("/".into()), b"/de", &mut out);
        assert_eq!((written, &*out, out.capacity()), (Err(NoRoom), b"GET ".as_slice(), 8));
        assert_eq!(write_query(b"abcd", &mut out), Err(NoRoom));
        assert_eq!((write_query(b"abc", &mut out), &*out), (Ok(()), b"GET ?abc".as_slice()));
    }

    #[test]
    fn values_fall_into_pieces() {
        let all = |value| pieces(value).collect::<Vec<_>>();
        assert_eq!(
            all("a%{client}%{path}b%{no}%{c%"),
            [
                Piece::Text("a"),
                Piece::Variable(Variable::Client),
                Piece::Variable(Variable::Path),
                Piece::Text("b"),
                Piece::Text("%{no}"),
                Piece::Text("%{c%"),
            ]
        );
        assert_eq!(all(""), []);
        assert_eq!(all("üx"), [Piece::Text("üx")]);
    }
}
