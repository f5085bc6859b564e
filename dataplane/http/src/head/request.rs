//! What does a request's head say? RFC 9112 §3.

use super::{Body, Connection, Fields, Limits, Method, Progress, Refusal, Span, Version};
use crate::framing::{self, elements};
use crate::name::{self, Known, class};
use crate::scan;
use crate::target::{Form, Target};

/// Bytes that a method may have; registered ones have at most 17.
const MAX_METHOD: usize = 32;
/// Empty lines that may come before a request: RFC 9112 §2.2 wants at least one tolerated.
const MAX_LEADING: usize = 8;

/// The host that a request is for: of its target where that has one, else of its `Host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// As sent, port included; empty where there is none.
    pub authority: Span,
    /// The name or address, IPv6 addresses in brackets; without a last dot.
    pub name: Span,
    /// The port, where one is named.
    pub port: Option<u16>,
}

/// How many more recipients a request of OPTIONS or TRACE may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwards {
    /// It doesn't say.
    Any,
    /// So many; larger numbers are taken for the largest that there is here.
    Most(u32),
    /// Not one number.
    Malformed,
}

/// A request's head.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// The method's name.
    pub method_name: Span,
    /// What it is about.
    pub target: Target,
    /// Its version.
    pub version: Version,
    /// Its fields.
    pub fields: Fields,
    /// Bytes of the head, its empty line and empty lines before it included.
    pub len: usize,
    /// How its body ends.
    pub body: Body,
    /// What it says about its connection.
    pub connection: Connection,
    /// Whether the client wants to go on with its connection: its version and `Connection` say so.
    pub keep_alive: bool,
    /// Whether the client waits for a 100.
    pub expect_continue: bool,
    /// Whether it asks for another protocol, other than HTTP/2 (which nobody should reach behind our back).
    pub upgrade: bool,
    /// The host.
    pub host: Host,
}

impl Request {
    /// Parses a head from its first byte on. What follows it may be there as well.
    #[inline]
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Progress, Refusal> {
        let view = limits.view(bytes);
        match self.parse_lines(view, limits)? {
            Some(end) => {
                self.len = end;
                self.judge(view)?;
                Ok(Progress::Complete)
            }
            None if bytes.len() >= limits.most() => Err(Refusal::TooLarge),
            None => Ok(Progress::Incomplete),
        }
    }

    /// What `Max-Forwards` says (RFC 9110 §7.6.2); it means something with methods for which [`Method::counts_forwards`] holds.
    pub fn forwards(&self, head: &[u8]) -> Forwards {
        if !self.fields.has(Known::MaxForwards) {
            return Forwards::Any;
        }
        let value = self.fields.value(Known::MaxForwards, head);
        if value.is_empty()
            || self.fields.is_repeated(Known::MaxForwards)
            || !value.iter().all(u8::is_ascii_digit)
        {
            return Forwards::Malformed;
        }
        let more = |most: u32, digit: &u8| most.saturating_mul(10).saturating_add(u32::from(digit - b'0'));
        Forwards::Most(value.iter().fold(0, more))
    }

    /// The first line and the fields.
    #[inline]
    fn parse_lines(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
        let Some(start) = leading(bytes)? else { return Ok(None) };
        let Some(method_end) = method_end(bytes, start)? else { return Ok(None) };
        self.method_name = Span::between(start, method_end);
        self.method = Method::of(self.method_name.of(bytes));
        let Some((target, seen)) = target(bytes, method_end + 1, limits)? else { return Ok(None) };
        self.target = Target::parse(bytes, target, seen, self.method)?;
        let Some((version, next)) = version(bytes, target.end() + 1)? else { return Ok(None) };
        self.version = version;
        self.fields.parse(bytes, next, limits)
    }

    /// What the fields mean together.
    #[inline]
    fn judge(&mut self, head: &[u8]) -> Result<(), Refusal> {
        self.body = framing::request(&self.fields, head, self.method, self.version)?;
        self.host = self.judge_host(head)?;
        self.connection = Connection::default();
        if self.fields.has(Known::Connection) {
            self.connection = Connection::read(&mut self.fields, head, true)?;
        }
        let is_11 = self.version == Version::Http11;
        self.keep_alive = !self.connection.close && (is_11 || self.connection.keep_alive);
        self.upgrade = is_11
            && self.connection.upgrade
            && self.method != Method::Connect
            && self.fields.has(Known::Upgrade)
            && self.is_upgrade_known(head);
        self.expect_continue = false;
        if self.fields.has(Known::Expect) {
            self.expect_continue = self.judge_expectation(head)? && is_11 && self.body != Body::None;
        }
        Ok(())
    }

    /// RFC 9112 §3.2: exactly one `Host` under 1.1, and a valid one always. The target's host wins (§3.2.2).
    #[inline]
    fn judge_host(&self, head: &[u8]) -> Result<Host, Refusal> {
        let named = match self.fields.find(Known::Host) {
            Some(field) if !self.fields.is_repeated(Known::Host) => host(head, field.value)?,
            None if self.version == Version::Http10 => Host::default(),
            _ => return Err(Refusal::Host),
        };
        match self.target.form {
            Form::Absolute | Form::Authority => {
                host(head, self.target.authority).map_err(|_| Refusal::Target)
            }
            Form::Origin | Form::Asterisk => Ok(named),
        }
    }

    /// RFC 9110 §10.1.1: 1.0 clients can't mean it.
    fn judge_expectation(&self, head: &[u8]) -> Result<bool, Refusal> {
        let expects = !self.fields.is_repeated(Known::Expect)
            && self.fields.value(Known::Expect, head).eq_ignore_ascii_case(b"100-continue");
        if expects || self.version == Version::Http10 { Ok(expects) } else { Err(Refusal::Expectation) }
    }

    /// Whether `Upgrade` lists a protocol, and none of them is HTTP or TLS.
    fn is_upgrade_known(&self, head: &[u8]) -> bool {
        let values = self.fields.iter().filter(|field| field.known == Known::Upgrade);
        let mut protocols = values.flat_map(|field| elements(field.value.of(head))).peekable();
        protocols.peek().is_some() && protocols.all(is_upgrade_allowed)
    }
}

fn is_upgrade_allowed(protocol: &[u8]) -> bool {
    let starts =
        |with: &[u8]| protocol.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    !starts(b"h2") && !starts(b"http/") && !starts(b"tls/")
}

/// Where the first line begins: behind empty lines, if there are some; `None`: more must come.
#[inline(always)]
fn leading(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    match bytes.first() {
        Some(b'\r' | b'\n') => empty_lines(bytes),
        Some(_) => Ok(Some(0)),
        None => Ok(None),
    }
}

#[cold]
fn empty_lines(bytes: &[u8]) -> Result<Option<usize>, Refusal> {
    for at in 0..=MAX_LEADING {
        match (bytes.get(2 * at), bytes.get(2 * at + 1)) {
            (Some(b'\r'), Some(b'\n')) if at == MAX_LEADING => return Err(Refusal::Method),
            (Some(b'\r'), Some(b'\n')) => {}
            (None, _) | (Some(b'\r'), None) => return Ok(None),
            (Some(b'\r'), _) => return Err(Refusal::BareCr),
            (Some(b'\n'), _) => return Err(Refusal::BareLf),
            (Some(_), _) => return Ok(Some(2 * at)),
        }
    }
    Err(Refusal::Method)
}

/// The end of the method, where a space follows it.
#[inline(always)]
fn method_end(bytes: &[u8], start: usize) -> Result<Option<usize>, Refusal> {
    let rest = bytes.get(start..).unwrap_or_default();
    match rest.first_chunk::<5>() {
        Some([b'G', b'E', b'T', b' ', _]) => return Ok(Some(start + 3)),
        Some(b"POST " | b"HEAD ") => return Ok(Some(start + 4)),
        _ => {}
    }
    for (offset, &byte) in rest.iter().take(MAX_METHOD + 1).enumerate() {
        if name::class_of(byte) & class::TOKEN != 0 {
            continue;
        }
        return if byte == b' ' && offset > 0 { Ok(Some(start + offset)) } else { Err(Refusal::Method) };
    }
    if rest.len() > MAX_METHOD { Err(Refusal::Method) } else { Ok(None) }
}

/// The target, where a space follows it, with the classes of its bytes.
#[inline(always)]
fn target(bytes: &[u8], start: usize, limits: &Limits) -> Result<Option<(Span, u8)>, Refusal> {
    let mut seen = 0;
    let most = limits.target_bytes as usize;
    let rest = bytes.get(start..).unwrap_or_default();
    let mut at = 0;
    loop {
        at = scan::target(rest, at);
        let Some(&byte) = rest.get(at) else { break };
        if at > most {
            break;
        }
        let class = name::class_of(byte);
        if class & class::TARGET != 0 || class & class::QUERY_ONLY != 0 && seen & class::QUERY != 0 {
            seen |= class;
            at += 1;
            continue;
        }
        return match byte {
            b' ' if at > 0 => Ok(Some((Span::between(start, start + at), seen))),
            b'\n' => Err(Refusal::BareLf),
            b'\r' => Err(Refusal::Version),
            _ => Err(Refusal::Target),
        };
    }
    if rest.len() > most { Err(Refusal::TargetTooLong) } else { Ok(None) }
}

/// The version, and the offset behind its line.
#[inline(always)]
fn version(bytes: &[u8], start: usize) -> Result<Option<(Version, usize)>, Refusal> {
    let rest = bytes.get(start..).unwrap_or_default();
    match rest.first_chunk::<10>() {
        Some(b"HTTP/1.1\r\n") => Ok(Some((Version::Http11, start + 10))),
        Some(b"HTTP/1.0\r\n") => Ok(Some((Version::Http10, start + 10))),
        _ => odd_version(rest, start),
    }
}

/// A higher minor version is taken for 1.1 (RFC 9110 §2.5); what isn't the beginning of one that we know is refused.
#[cold]
fn odd_version(rest: &[u8], start: usize) -> Result<Option<(Version, usize)>, Refusal> {
    let line = memchr::memchr2(b'\r', b'\n', rest).map_or(rest, |end| rest.get(..end).unwrap_or(rest));
    let form = b"HTTP/1.";
    let there = line.len().min(form.len());
    let is_one = line.get(..there) == form.get(..there);
    match (line.get(form.len()..), rest.get(line.len()..)) {
        (None, Some([])) if is_one => return Ok(None),
        (Some([] | [b'0'..=b'9']), Some([])) if is_one => return Ok(None),
        (Some([b'0'..=b'9']), Some([b'\n', ..])) if is_one => return Err(Refusal::BareLf),
        (Some([b'0'..=b'9']), Some([b'\r'])) if is_one => return Ok(None),
        (Some([b'2'..=b'9']), Some([b'\r', b'\n', ..])) if is_one => {
            return Ok(Some((Version::Http11, start + line.len() + 2)));
        }
        (Some([b'0'..=b'9']), Some([b'\r', ..])) if is_one => return Err(Refusal::BareCr),
        _ => {}
    }
    let is_whole = line.len() < rest.len();
    let digits = |bytes: &[u8]| bytes.iter().all(u8::is_ascii_digit);
    match line {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if digits(&[*major, *minor]) => {
            if is_whole {
                Err(Refusal::VersionUnsupported)
            } else {
                Ok(None)
            }
        }
        [b'H', b'T', b'T', b'P', b'/', major] | [b'H', b'T', b'T', b'P', b'/', major, b'.']
            if digits(&[*major]) && !is_whole =>
        {
            Ok(None)
        }
        _ => Err(Refusal::Version),
    }
}

/// Checks a host with its port. Names are letters, digits, `-`, `.`, `_` and `~`; what RFC 3986 allows beside them (`%xx`, `,`, `;`
/// …) is no name of the DNS and is refused.
#[inline]
fn host(head: &[u8], authority: Span) -> Result<Host, Refusal> {
    let text = authority.of(head);
    let name_length = match text.first() {
        None => return Err(Refusal::Host),
        Some(b'[') => bracketed(text)?,
        Some(_) => {
            let plain = scan::host(text, 0);
            let rest = text.get(plain..).unwrap_or_default();
            plain + rest.iter().take_while(|&&byte| name::class_of(byte) & class::HOST != 0).count()
        }
    };
    let port = match text.get(name_length..) {
        Some([]) => None,
        Some([b':']) => None,
        Some([b':', digits @ ..]) => Some(port(digits)?),
        _ => return Err(Refusal::Host),
    };
    let dots = usize::from(text.get(..name_length).is_some_and(|name| name.ends_with(b".")));
    if name_length == dots {
        return Err(Refusal::Host);
    }
    let start = authority.start as usize;
    Ok(Host { authority, name: Span::between(start, start + name_length - dots), port })
}

/// A host's name and port, where it is one as `Host` may have it.
pub fn host_and_port(text: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let whole = Span { start: 0, len: u16::try_from(text.len()).ok()? };
    let host = host(text, whole).ok()?;
    Some((host.name.of(text), host.port))
}

/// What can be told of a request whose head was refused: its first line, as far as it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedLine {
    /// Up to the first space.
    pub method: Span,
    /// What follows; up to the version where that is known, else all of it.
    pub target: Span,
    /// 1.0 or 1.1; `None`: another, or none.
    pub version: Option<Version>,
}

impl RefusedLine {
    /// Of bytes that are no head, or not yet; any bytes may stand in its parts.
    pub fn of(bytes: &[u8]) -> Self {
        let bytes = bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes);
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let start = bytes.iter().take_while(|byte| is_end(byte)).count();
        let line = bytes.get(start..).unwrap_or_default();
        let line = line.get(..line.iter().position(is_end).unwrap_or(line.len())).unwrap_or_default();
        let method_len = memchr::memchr(b' ', line).unwrap_or(line.len());
        let from = (method_len + 1).min(line.len());
        let rest = line.get(from..).unwrap_or_default();
        let ended =
            |version: &[u8]| rest.len().checked_sub(version.len()).filter(|_| rest.ends_with(version));
        let (target_len, version) = match (ended(b" HTTP/1.1"), ended(b" HTTP/1.0")) {
            (Some(len), _) => (len, Some(Version::Http11)),
            (_, Some(len)) => (len, Some(Version::Http10)),
            _ => (rest.len(), None),
        };
        Self {
            method: Span::between(start, start + method_len),
            target: Span::between(start + from, start + from + target_len),
            version,
        }
    }
}

/// Bytes of an IPv6 address in brackets.
fn bracketed(text: &[u8]) -> Result<usize, Refusal> {
    let end = memchr::memchr(b']', text).ok_or(Refusal::Host)?;
    let address = text.get(1..end).and_then(|address| core::str::from_utf8(address).ok());
    match address.map(str::parse::<core::net::Ipv6Addr>) {
        Some(Ok(_)) => Ok(end + 1),
        _ => Err(Refusal::Host),
    }
}

fn port(digits: &[u8]) -> Result<u16, Refusal> {
    if digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Host);
    }
    let number = digits.iter().fold(0_u32, |number, digit| number * 10 + u32::from(digit - b'0'));
    u16::try_from(number).map_err(|_| Refusal::Host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_refused_head_the_line_is_told() {
        for (bytes, method, target, version) in [
            ("GET /a HTTP/1.1\r\nHost", "GET", "/a", Some(Version::Http11)),
            ("\r\n\r\nGET /a HTTP/1.0\n", "GET", "/a", Some(Version::Http10)),
            ("GET /a b HTTP/1.1\r\n", "GET", "/a b", Some(Version::Http11)),
            ("PRI * HTTP/2.0\r\n", "PRI", "* HTTP/2.0", None),
            ("GET  /a", "GET", " /a", None),
            ("GET HTTP/1.1\r\n", "GET", "HTTP/1.1", None),
            ("\x16\x03\x01", "\x16\x03\x01", "", None),
            ("G", "G", "", None),
            ("\r\n", "", "", None),
            ("", "", "", None),
        ] {
            let line = RefusedLine::of(bytes.as_bytes());
            let text = |span: Span| String::from_utf8_lossy(span.of(bytes.as_bytes())).into_owned();
            assert_eq!(
                (text(line.method), text(line.target), line.version),
                (method.to_owned(), target.to_owned(), version),
                "{bytes:?}"
            );
        }
        RefusedLine::of(&[b'a'; 70_000]);
    }

    #[test]
    fn hosts_are_names_or_addresses_with_ports() {
        for (text, expected) in [
            ("a.example", Some(("a.example", None))),
            ("a.example.:8080", Some(("a.example", Some(8_080)))),
            ("[2001:db8::1]:1", Some(("[2001:db8::1]", Some(1)))),
            ("", None),
            ("a/b", None),
            ("a b", None),
            ("a:99999", None),
            ("u@a", None),
        ] {
            let found = host_and_port(text.as_bytes());
            assert_eq!(found, expected.map(|(name, port)| (name.as_bytes(), port)), "{text}");
        }
    }
}
