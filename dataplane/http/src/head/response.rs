//! What does a response's head say? RFC 9112 §4.

use super::{Body, Connection, Fields, Limits, Method, Progress, Refusal, Span, Version, fields};
use crate::framing;
use crate::name::Known;
use crate::scan;

/// A response's head.
#[derive(Clone, Debug, Default)]
pub struct Response {
    /// Its status, 100 to 999.
    pub status: u16,
    /// Its reason; may be empty.
    pub reason: Span,
    /// Its version.
    pub version: Version,
    /// Its fields.
    pub fields: Fields,
    /// Bytes of the head, its empty line included.
    pub len: usize,
    /// How its body ends.
    pub body: Body,
    /// What it says about its connection.
    pub connection: Connection,
    /// Whether the connection may be used again after its body.
    pub keep_alive: bool,
    /// What `Content-Length` says, also where there is no body but the field has a meaning (HEAD, 304; RFC 9110 §8.6).
    pub content_length: Option<u64>,
}

impl Response {
    /// Parses the head of a response to this method from its first byte on. What follows it may be there as well.
    #[inline]
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits, method: Method) -> Result<Progress, Refusal> {
        let view = limits.view(bytes);
        match self.parse_lines(view, limits)? {
            Some(end) => {
                self.len = end;
                self.judge(view, method)?;
                Ok(Progress::Complete)
            }
            None if bytes.len() >= limits.most() => Err(Refusal::TooLarge),
            None => Ok(Progress::Incomplete),
        }
    }

    #[inline]
    fn parse_lines(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        let Some(line) = bytes.first_chunk::<12>() else { return begun(bytes) };
        self.version = match line.first_chunk::<9>() {
            Some(b"HTTP/1.1 ") => Version::Http11,
            Some(b"HTTP/1.0 ") => Version::Http10,
            _ => return Err(Refusal::StatusLine),
        };
        let [.., hundreds, tens, ones] = *line;
        if !(hundreds.is_ascii_digit() && tens.is_ascii_digit() && ones.is_ascii_digit()) || hundreds == b'0'
        {
            return Err(Refusal::StatusLine);
        }
        let digit = |byte: u8| u16::from(byte - b'0');
        self.status = digit(hundreds) * 100 + digit(tens) * 10 + digit(ones);
        // The space before an empty reason is often forgotten.
        let reason = match bytes.get(12) {
            Some(b' ') => 13,
            Some(b'\r') => 12,
            Some(b'\n') => return Err(Refusal::BareLf),
            Some(_) => return Err(Refusal::StatusLine),
            None => return Ok(None),
        };
        let Some(stop) = scan::control(bytes, reason) else { return Ok(None) };
        let Some(next) = fields::line_end(bytes, stop)? else { return Ok(None) };
        self.reason = Span::between(reason, stop);
        self.fields.parse(bytes, next, limits)
    }

    #[inline]
    fn judge(&mut self, head: &[u8], method: Method) -> Result<(), Refusal> {
        self.body = framing::response(&self.fields, head, self.status, method, self.version)?;
        let is_meaningless = self.status < 200
            || self.status == 204
            || (method == Method::Connect && matches!(self.status, 200..=299));
        let is_doubtful = framing::is_doubtful(&self.fields);
        self.content_length = None;
        if !is_meaningless && !is_doubtful {
            self.content_length = framing::told_length(&self.fields, head)?;
        }
        self.connection = Connection::default();
        if self.fields.has(Known::Connection) {
            self.connection = Connection::read(&mut self.fields, head, false)?;
        }
        let is_11 = self.version == Version::Http11;
        self.keep_alive = !self.connection.close
            && !is_doubtful
            && (is_11 || self.connection.keep_alive)
            && self.body != Body::UntilClose
            && self.status != 101;
        Ok(())
    }

    /// Whether another response follows (RFC 9110 §15.2); 101 is the last one.
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Replaces folds of the fields of a response, or of what is there of it, by spaces (RFC 9112 §5.2); bytes behind its empty line stay. A
/// line of white space before the first field stays as well, and is refused.
pub fn unfold(head: &mut [u8]) {
    let Some(first) = memchr::memchr(b'\n', head) else { return };
    let mut at = first + 1;
    while let Some(end) = head.get(at..).and_then(|rest| memchr::memchr(b'\n', rest)).map(|end| at + end) {
        match head.get(at..=end) {
            Some(b"\r\n" | b"\n") => return,
            Some([.., b'\r', b'\n']) if matches!(head.get(end + 1), Some(b' ' | b'\t')) => {
                if let Some(fold) = head.get_mut(end - 1..end + 2) {
                    fold.fill(b' ');
                }
            }
            _ => at = end + 1,
        }
    }
}

/// Refuses what isn't the beginning of a status line.
fn begun(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    let matches = |line: &[u8]| bytes.iter().zip(line).all(|(left, right)| left == right);
    let digits = bytes.iter().skip(9).all(u8::is_ascii_digit);
    if digits && (matches(b"HTTP/1.1 ") || matches(b"HTTP/1.0 ")) {
        Ok(None)
    } else {
        Err(Refusal::StatusLine)
    }
}
