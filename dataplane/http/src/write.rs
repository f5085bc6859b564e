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
        let is_bad = |byte: &u8| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f;
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(is_bad) {
            self.put(rest.get(..at).unwrap_or_default());
            self.put(b"?");
            rest = rest.get(at + 1..).unwrap_or_default();
        }
        self.put(rest);
    }

    /// A path; what may not stand in one is percent-encoded.
    fn put_path(&mut self, path: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        for byte in path {
            if class_of(*byte) & (class::TARGET | class::QUERY | class::BACKSLASH) == class::TARGET {
                self.put(core::slice::from_ref(byte));
            } else {
                let digit = |value: u8| DIGITS.get(value as usize).copied().unwrap_or(b'0');
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
                for (at, octet) in address.octets().into_iter().enumerate() {
                    if at > 0 {
                        self.put(b".");
                    }
                    self.put_number(u64::from(octet));
                }
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
