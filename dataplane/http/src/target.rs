//! What is a request about? Forms of targets (RFC 9112 §3.2), paths for matching, parameters of the query.
//!
//! A target is ASCII without controls, spaces and `#`; `\`, `"`, `<` and `>` may stand in the query only. Other characters that
//! RFC 3986 wants encoded are tolerated (browsers send `|`, `{` and `^` as they are) and go on as they came.

use crate::head::{Method, Refusal, Span};
use crate::name::{class, class_of};

/// A form of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `host:port`, of CONNECT.
    Authority,
    /// `*`, of OPTIONS.
    Asterisk,
}

/// What a request is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Its form.
    pub form: Form,
    /// All of it.
    pub whole: Span,
    /// Host and port of the absolute and authority forms.
    pub authority: Span,
    /// The path; empty in the absolute form where it has none (which means `/`), and in the authority and asterisk forms.
    pub path: Span,
    /// The query, without its `?`.
    pub query: Span,
    /// Whether there is a query, which may be empty.
    pub has_query: bool,
}

impl Target {
    /// Of a target whose bytes have these classes.
    #[inline]
    pub(crate) fn parse(bytes: &[u8], whole: Span, seen: u8, method: Method) -> Result<Self, Refusal> {
        let text = whole.of(bytes);
        let start = whole.start as usize;
        let (form, authority, path) = match (method, text) {
            (Method::Connect, _) => {
                // RFC 9110 §9.3.6: the port is never left out.
                let port = text.rsplit(|&byte| byte == b':').next().unwrap_or_default();
                if seen & class::QUERY != 0 || port.len() == text.len() || port.is_empty() {
                    return Err(Refusal::Target);
                }
                return Ok(Self { form: Form::Authority, whole, authority: whole, ..Self::default() });
            }
            (_, [b'/', ..]) => (Form::Origin, Span::default(), start),
            (Method::Options, b"*") => return Ok(Self { form: Form::Asterisk, whole, ..Self::default() }),
            _ => {
                let authority = absolute(text)?;
                (Form::Absolute, Span::between(start + authority.0, start + authority.1), start + authority.1)
            }
        };
        let mut target =
            Self { form, whole, authority, path: Span::between(path, whole.end()), ..Self::default() };
        if seen & class::QUERY != 0
            && let Some(at) = memchr::memchr(b'?', target.path.of(bytes))
        {
            target.query = Span::between(path + at + 1, whole.end());
            target.path = Span::between(path, path + at);
            target.has_query = true;
        }
        if seen & class::BACKSLASH != 0 && memchr::memchr(b'\\', target.path.of(bytes)).is_some() {
            return Err(Refusal::Target);
        }
        Ok(target)
    }

    /// The path for matching; `/` where the absolute form has none.
    pub fn path_or_root<'a>(&self, head: &'a [u8]) -> &'a [u8] {
        if self.path.is_empty() && self.form == Form::Absolute { b"/" } else { self.path.of(head) }
    }
}

/// Where the authority of an absolute form begins and ends. User information is refused (RFC 9110 §4.2.4), as are schemes
/// other than http and https.
#[cold]
fn absolute(text: &[u8]) -> Result<(usize, usize), Refusal> {
    let starts = |with: &[u8]| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    let from = match text {
        _ if starts(b"http://") => 7,
        _ if starts(b"https://") => 8,
        _ => return Err(Refusal::Target),
    };
    let rest = text.get(from..).unwrap_or_default();
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'\\' | b'@')).unwrap_or(rest.len());
    if end == 0 || matches!(rest.get(end), Some(b'@' | b'\\')) {
        return Err(Refusal::Target);
    }
    Ok((from, from + end))
}

/// Why a path can't be matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PathError {
    /// `%` without two hexadecimal digits.
    #[error("a % isn't followed by two hexadecimal digits")]
    Escape,
    /// `%00` to `%1f` and `%7f`: names of files end at the first, logs break at others.
    #[error("an encoded control character")]
    Control,
    /// `%5c`: some take it for a `/`.
    #[error("an encoded backslash")]
    Backslash,
    /// `//..`: some resolve the `..` first, others merge the slashes first, and come to different paths.
    #[error("a .. behind an empty segment")]
    Empty,
    /// The caller's buffer is shorter than the path.
    #[error("the path is longer than the buffer")]
    TooLong,
}

/// The path as routes see it (RFC 3986 §6.2.2): `%xx` of unreserved characters decoded, others in capitals, `.` and `..` segments resolved (`..`
/// at the root stays there), and several slashes merged into one, as many servers do. `%2f` stays. Borrows the path where nothing is to be done, else writes into the buffer, which
/// must be as long as the path.
pub fn normalise<'a>(path: &'a [u8], buffer: &'a mut [u8]) -> Result<&'a [u8], PathError> {
    if memchr::memchr(b'%', path).is_none() && !has_odd_segment(path) {
        return Ok(path);
    }
    let buffer = buffer.get_mut(..path.len()).ok_or(PathError::TooLong)?;
    let length = decode(path, buffer)?;
    let length = resolve(buffer, length)?;
    let length = merge(buffer, length);
    Ok(buffer.get(..length).unwrap_or_default())
}

/// Whether a segment is empty or begins with a dot.
fn has_odd_segment(path: &[u8]) -> bool {
    memchr::memchr_iter(b'/', path).any(|at| matches!(path.get(at + 1), Some(b'.' | b'/')))
}

/// Decodes what is unreserved; the bytes written.
fn decode(path: &[u8], out: &mut [u8]) -> Result<usize, PathError> {
    let (mut from, mut to) = (0, 0);
    let mut put = |byte: u8| {
        if let Some(place) = out.get_mut(to) {
            *place = byte;
            to += 1;
        }
    };
    while let Some(&byte) = path.get(from) {
        if byte != b'%' {
            put(byte);
            from += 1;
            continue;
        }
        let (Some(high), Some(low)) = (path.get(from + 1).and_then(hex), path.get(from + 2).and_then(hex))
        else {
            return Err(PathError::Escape);
        };
        match high << 4 | low {
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b'\\' => return Err(PathError::Backslash),
            decoded if class_of(decoded) & class::UNRESERVED != 0 => put(decoded),
            _ => {
                put(b'%');
                put(digit(high));
                put(digit(low));
            }
        }
        from += 3;
    }
    Ok(to)
}

/// The value of a hexadecimal digit.
pub(crate) fn hex(digit: &u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// A hexadecimal digit in capitals, as RFC 3986 §2.1 wants them; of values below 16.
pub(crate) const fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'A' + value - 10 }
}

/// Merges slashes in place; the bytes left.
fn merge(path: &mut [u8], length: usize) -> usize {
    let (mut to, mut last) = (0, 0);
    for from in 0..length {
        let Some(&byte) = path.get(from) else { break };
        if byte == b'/' && last == b'/' {
            continue;
        }
        if let Some(place) = path.get_mut(to) {
            *place = byte;
        }
        to += 1;
        last = byte;
    }
    to
}

/// Resolves `.` and `..` segments in place (RFC 3986 §5.2.4); the bytes left.
fn resolve(path: &mut [u8], length: usize) -> Result<usize, PathError> {
    let (mut from, mut to) = (0, 0);
    // `from` and `to` stand at a slash, or at the beginning of a path without one.
    while from < length {
        let end = path
            .get(from + 1..length)
            .and_then(|rest| memchr::memchr(b'/', rest))
            .map_or(length, |at| from + 1 + at);
        let segment = path.get(from..end).unwrap_or_default();
        match segment {
            b"/." | b"/.." => {
                if segment == b"/.." {
                    if to > 0 && path.get(to - 1) == Some(&b'/') {
                        return Err(PathError::Empty);
                    }
                    to = path.get(..to).and_then(|kept| memchr::memrchr(b'/', kept)).unwrap_or(0);
                }
                // The last one leaves its slash.
                if end == length {
                    if let Some(place) = path.get_mut(to) {
                        *place = b'/';
                    }
                    to += 1;
                }
            }
            _ => {
                path.copy_within(from..end, to);
                to += end - from;
            }
        }
        from = end;
    }
    Ok(to)
}

/// The parameters of a query: names and values as they were sent, not decoded. A parameter without `=` has an empty value.
pub fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|&byte| byte == b'&').filter(|parameter| !parameter.is_empty()).map(|parameter| {
        match memchr::memchr(b'=', parameter).and_then(|at| parameter.split_at_checked(at)) {
            Some((name, value)) => (name, value.get(1..).unwrap_or_default()),
            None => (parameter, &[][..]),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str) -> Result<String, PathError> {
        let mut buffer = [b'#'; 256];
        normalise(path.as_bytes(), &mut buffer).map(|path| String::from_utf8(path.to_vec()).unwrap())
    }

    #[test]
    fn paths_are_normalised() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a.b/.c/..d/e.", "/a.b/.c/..d/e."),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/../..", "/"),
            ("/.", "/"),
            ("/a//b/../c", "/a/c"),
            ("//a///b//", "/a/b/"),
            ("//", "/"),
            ("/a/.//b", "/a/b"),
            ("/x/..//a", "/a"),
            ("/%61%2D%7e", "/a-~"),
            ("/%2e%2e/admin", "/admin"),
            ("/x/%2E%2e/admin", "/admin"),
            ("/x/.%2e/admin", "/admin"),
            ("/a%2fb/%2f..", "/a%2Fb/%2F.."),
            ("/a%2f/../b", "/b"),
            ("/%c3%a4%20", "/%C3%A4%20"),
            ("/%252e", "/%252e"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
            let again = normal(expected).unwrap();
            assert_eq!(again, expected, "normal forms stay");
        }
    }

    #[test]
    fn ambiguous_paths_are_refused() {
        for (path, expected) in [
            ("/%", PathError::Escape),
            ("/%6", PathError::Escape),
            ("/%zz", PathError::Escape),
            ("/a%00b", PathError::Control),
            ("/a%0d%0ab", PathError::Control),
            ("/a%7f", PathError::Control),
            ("/a%5c..%5cb", PathError::Backslash),
            ("/a//../c", PathError::Empty),
            ("/a//%2e%2e/c", PathError::Empty),
            ("/a//b/../../c", PathError::Empty),
            ("//..", PathError::Empty),
        ] {
            assert_eq!(normal(path), Err(expected), "{path}");
        }
        assert_eq!(normalise(b"/%61", &mut [0; 3]), Err(PathError::TooLong));
    }

    #[test]
    fn parameters_are_split() {
        let found: Vec<_> = parameters(b"a=1&b&&c==2&=3").collect();
        let expected: [(&[u8], &[u8]); 4] = [(b"a", b"1"), (b"b", b""), (b"c", b"=2"), (b"", b"3")];
        assert_eq!(found, expected);
        assert_eq!(parameters(b"").count(), 0);
    }
}
