//! Which bytes does the next one get? Heads of requests towards backends, of responses towards clients, and the proxy's own answers.
//!
//! Everything is written into a vector whose room the caller reserves; it never grows here. What doesn't fit is undone and answered with
//! [`NoRoom`]; with `*_bound(…)` bytes of room everything fits.
//!
//! Fields that frame a message or are for one connection only (RFC 9110 §7.6.1) are written anew and never copied; other fields go on in their
//! order, as `name: value` and otherwise as they came.

mod edit;
mod own;
mod request;
mod response;

use core::net::IpAddr;

use crate::name::{class, class_of};
pub use crate::routes::edit::NoRoom;
use crate::scan;
use crate::target::digit;
pub use edit::Variables;
pub use own::{Own, own, own_bound};
pub use request::{RequestOut, Tell, request, request_bound};
pub use response::{ResponseOut, StickyCookie, response, response_bound};

/// Writes into the room that is there.
struct Sink<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    is_full: bool,
}

impl<'a> Sink<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        Self { out, start, is_full: false }
    }

    #[inline(always)]
    fn put(&mut self, bytes: &[u8]) {
        if self.out.capacity() - self.out.len() < bytes.len() {
            self.is_full = true;
        } else {
            self.out.extend_from_slice(bytes);
        }
    }

    /// Bytes that come from elsewhere than a checked head: controls become `?`, so that no line ends early.
    fn put_value(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(at) = scan::control(rest, 0) {
            self.put(rest.get(..at).unwrap_or_default());
            self.put(b"?");
            rest = rest.get(at + 1..).unwrap_or_default();
        }
        self.put(rest);
    }

    /// A path; what may not stand in one is percent-encoded.
    fn put_path(&mut self, path: &[u8]) {
        for byte in path {
            if class_of(*byte) & (class::TARGET | class::QUERY | class::BACKSLASH) == class::TARGET {
                self.put(core::slice::from_ref(byte));
            } else {
                self.put(&[b'%', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }

    fn put_line(&mut self, name: &[u8], value: &[u8]) {
        self.put(name);
        self.put(b": ");
        self.put(value);
        self.put(b"\r\n");
    }

    fn put_number(&mut self, number: u64) {
        let mut digits = [0; 20];
        let mut left = number;
        let mut used = 0;
        for place in digits.iter_mut().rev() {
            *place = b'0' + (left % 10) as u8;
            left /= 10;
            used += 1;
            if left == 0 {
                break;
            }
        }
        self.put(digits.get(digits.len() - used..).unwrap_or_default());
    }

    fn put_address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                let mut block = Block::<15>::new();
                block.put_v4(address);
                block.flush(self);
            }
            IpAddr::V6(address) => {
                use core::fmt::Write as _;
                // Writing to the sink doesn't fail: it remembers that it is full.
                let _written = write!(self, "{address}");
            }
        }
    }

    fn put_length(&mut self, length: u64) {
        self.put(b"Content-Length: ");
        self.put_number(length);
        self.put(b"\r\n");
    }

    /// Ends it: all or nothing.
    fn finish(self) -> Result<(), NoRoom> {
        if self.is_full {
            self.out.truncate(self.start);
            return Err(NoRoom);
        }
        Ok(())
    }
}

impl core::fmt::Write for Sink<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

/// Short pieces on their way into a sink: put together here, they are copied once.
struct Block<const ROOM: usize> {
    bytes: [u8; ROOM],
    at: usize,
}

impl<const ROOM: usize> Block<ROOM> {
    #[inline(always)]
    fn new() -> Self {
        Self { bytes: [0; ROOM], at: 0 }
    }

    /// What doesn't fit is lost; the callers count, and their tests see each byte.
    #[inline(always)]
    fn put<const LENGTH: usize>(&mut self, piece: &[u8; LENGTH]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + LENGTH) {
            place.copy_from_slice(piece);
            self.at += LENGTH;
        }
    }

    /// At most 15 bytes.
    #[inline(always)]
    fn put_v4(&mut self, address: core::net::Ipv4Addr) {
        let [first, second, third, fourth] = address.octets();
        self.put_decimal(first.into());
        for octet in [second, third, fourth] {
            self.put(b".");
            self.put_decimal(octet.into());
        }
    }

    /// At most 5 bytes.
    #[inline(always)]
    fn put_decimal(&mut self, number: u16) {
        let digit = |value: u16| b'0' + (value % 10) as u8;
        let (tens, ones) = (digit(number / 10), digit(number));
        match number {
            0..10 => self.put(&[ones]),
            10..100 => self.put(&[tens, ones]),
            100..1000 => self.put(&[digit(number / 100), tens, ones]),
            1000..10_000 => self.put(&[digit(number / 1000), digit(number / 100), tens, ones]),
            _ => {
                let [first, second, third] = [10_000, 1000, 100].map(|unit| digit(number / unit));
                self.put(&[first, second, third, tens, ones]);
            }
        }
    }

    #[inline(always)]
    fn flush(&mut self, sink: &mut Sink<'_>) {
        sink.put(self.bytes.get(..self.at).unwrap_or_default());
        self.at = 0;
    }
}

/// Lines of a head that go on as they are, collected as long as they lie beside each other.
struct Lines<'a> {
    head: &'a [u8],
    from: usize,
    to: usize,
}

impl<'a> Lines<'a> {
    fn new(head: &'a [u8]) -> Self {
        Self { head, from: 0, to: 0 }
    }

    /// A field that goes on.
    #[inline(always)]
    fn keep(&mut self, field: &crate::head::Field, sink: &mut Sink<'_>) {
        let start = field.name.start as usize;
        match field.plain_end(self.head) {
            Some(end) if start == self.to => self.to = end,
            Some(end) => {
                self.flush(sink);
                (self.from, self.to) = (start, end);
            }
            None => {
                self.flush(sink);
                sink.put_line(field.name.of(self.head), field.value.of(self.head));
            }
        }
    }

    #[inline(always)]
    fn flush(&mut self, sink: &mut Sink<'_>) {
        if self.from < self.to {
            sink.put(self.head.get(self.from..self.to).unwrap_or_default());
        }
        (self.from, self.to) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_decimal() {
        let mut out = Vec::with_capacity(1 << 20);
        for number in 0..=u16::MAX {
            let start = out.len();
            let mut block = Block::<5>::new();
            block.put_decimal(number);
            block.flush(&mut Sink::new(&mut out));
            assert_eq!(out[start..], *number.to_string().as_bytes());
        }
        for address in ["0.0.0.0", "255.255.255.255", "10.1.200.99", "2001:db8::1", "::ffff:192.0.2.1"] {
            let start = out.len();
            Sink::new(&mut out).put_address(address.parse().unwrap());
            assert_eq!(out[start..], *address.as_bytes());
        }
        for number in [0, 9, 10, 12_345, u64::MAX] {
            let start = out.len();
            Sink::new(&mut out).put_number(number);
            assert_eq!(out[start..], *number.to_string().as_bytes());
        }
    }

    #[test]
    fn what_does_not_fit_is_undone() {
        let mut request = crate::head::Request::default();
        let head = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\r\n";
        request.parse(head, &crate::head::Limits::default()).unwrap();
        let tell = Tell {
            x_forwarded: true,
            forwarded: true,
            via: "weir",
            request_id: "x-request-id",
            is_trusted: false,
            client: [192, 0, 2, 1].into(),
            port: 80,
            is_tls: false,
        };
        let how = RequestOut {
            path: None,
            host: None,
            edits: &[],
            variables: Variables::default(),
            tell,
            body: crate::head::Body::None,
            close: false,
            upgrade: false,
            expect: false,
        };
        let mut whole = Vec::with_capacity(1024);
        super::request(&mut whole, head, &request, &how).unwrap();
        for room in 0..whole.len() {
            let mut out = Vec::with_capacity(room + 6);
            out.extend(b"before");
            out.shrink_to(room + 6);
            if out.capacity() >= whole.len() + 6 {
                continue;
            }
            assert_eq!(super::request(&mut out, head, &request, &how), Err(NoRoom), "{room}");
            assert_eq!(out, b"before");
        }
        let mut out = Vec::with_capacity(16);
        assert_eq!(
            own(&mut out, &Own { cause: Some(crate::cause::Cause::NoRoute), ..Own::new(404) }),
            Err(NoRoom)
        );
    }

    #[test]
    fn own_responses_say_what_they_are_given() {
        let text = |own_response: &Own<'_>| {
            let mut out = Vec::with_capacity(own_bound(own_response));
            own(&mut out, own_response).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(&Own::new(502)),
            "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let full = Own {
            keep_alive: true,
            version: crate::head::Version::Http10,
            content_type: "text/plain",
            body: b"hello",
            cause: Some(crate::cause::Cause::RateLimited),
            retry_after_s: Some(7),
            location: b"http://a/\r\nX: y",
            allow: "GET, HEAD",
            date: Some(b"now"),
            ..Own::new(429)
        };
        let expected = "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\
            Location: http://a/??X: y\r\nAllow: GET, HEAD\r\nRetry-After: 7\r\nweir-cause: rate-limited\r\n\
            Date: now\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(text(&full), format!("{expected}hello"));
        assert_eq!(text(&Own { is_head: true, ..full }), expected, "HEAD: the body is only told of");
        let none = Own { body: b"hello", keep_alive: true, ..Own::new(204) };
        assert_eq!(text(&none), "HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(text(&Own::new(100)), "HTTP/1.1 100 Continue\r\n\r\n");
    }
}
