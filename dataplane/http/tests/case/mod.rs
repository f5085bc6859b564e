//! What does a case say, and what happens?

use std::fmt;
use std::net::IpAddr;

use weir_http::chunked::{ChunkError, Decoder, Trailers};
use weir_http::head::{Body, Limits, Method, Progress, Request, Response, Version, head_end};
use weir_http::routes::spec::FieldEdit;
use weir_http::write::{
    self, RequestOut, ResponseOut, StickyCookie, Tell, Variables, request_bound, response_bound,
};

/// A case of a file.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) why: String,
    to: Option<String>,
    with: Vec<String>,
    input: Vec<u8>,
    pub(crate) expected: Expected,
}

/// What should happen, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Nothing,
    Incomplete,
    Refused(String),
    Accepted { what: String, out: Vec<u8>, left: Vec<u8> },
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => writeln!(f, "nothing"),
            Self::Incomplete => writeln!(f, "incomplete:"),
            Self::Refused(why) => writeln!(f, "refused: {why}"),
            Self::Accepted { what, out, left } => {
                writeln!(f, "accepted: {what}")?;
                writeln!(f, "out:")?;
                for line in out.split_inclusive(|&byte| byte == b'\n') {
                    match line.strip_suffix(b"\r\n") {
                        Some([]) => writeln!(f, "|")?,
                        Some(line) => writeln!(f, "| {}", escape(line))?,
                        None => writeln!(f, "| {}\\", escape(line))?,
                    }
                }
                if !left.is_empty() {
                    writeln!(f, "left: {}", escape(left))?;
                }
                Ok(())
            }
        }
    }
}

fn escape(bytes: &[u8]) -> String {
    // Spaces at the end are seen by nobody.
    if let Some(before) = bytes.strip_suffix(b" ") {
        return escape(before) + "\\x20";
    }
    bytes
        .iter()
        .map(|&byte| match byte {
            b'\\' => "\\\\".to_owned(),
            b'\r' => "\\r".to_owned(),
            b'\n' => "\\n".to_owned(),
            b'\t' => "\\t".to_owned(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect()
}

fn unescape(text: &str) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        match rest {
            [b'r', ..] => bytes.push(b'\r'),
            [b'n', ..] => bytes.push(b'\n'),
            [b't', ..] => bytes.push(b'\t'),
            [b'\\', ..] => bytes.push(b'\\'),
            [b'x', ..] => {
                bytes.push(u8::from_str_radix(std::str::from_utf8(&rest[1..3]).unwrap(), 16).unwrap());
                rest = &rest[2..];
            }
            _ => panic!("unknown escape in {text:?}"),
        }
        rest = &rest[1..];
    }
    bytes
}

/// A line of a message.
fn line(text: &str) -> Vec<u8> {
    let text = text.strip_prefix(' ').unwrap_or(text);
    let slashes = text.bytes().rev().take_while(|&byte| byte == b'\\').count();
    if slashes % 2 == 1 {
        return unescape(&text[..text.len() - 1]);
    }
    let mut bytes = unescape(text);
    bytes.extend(b"\r\n");
    bytes
}

impl Case {
    pub(crate) fn read(text: &str) -> Vec<Self> {
        let mut cases: Vec<Self> = Vec::new();
        let mut is_out = false;
        for text in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(name) = text.strip_prefix("case: ") {
                cases.push(Self {
                    name: name.to_owned(),
                    why: String::new(),
                    to: None,
                    with: Vec::new(),
                    input: Vec::new(),
                    expected: Expected::Nothing,
                });
                is_out = false;
                continue;
            }
            let case = cases.last_mut().unwrap_or_else(|| panic!("{text:?} comes before a case"));
            if let Some(text) = text.strip_prefix('|') {
                match &mut case.expected {
                    Expected::Accepted { out, .. } if is_out => out.extend(line(text)),
                    _ => case.input.extend(line(text)),
                }
                continue;
            }
            let (key, value) =
                text.split_once(':').unwrap_or_else(|| panic!("{text:?} is no line of a case"));
            let value = value.trim();
            match (key, &mut case.expected) {
                ("why", _) => value.clone_into(&mut case.why),
                ("to", _) => case.to = Some(value.to_owned()),
                ("with", _) => case.with = value.split_whitespace().map(str::to_owned).collect(),
                ("in", _) => {}
                ("out", _) => is_out = true,
                ("incomplete", expected) => *expected = Expected::Incomplete,
                ("refused", expected) => *expected = Expected::Refused(value.to_owned()),
                ("accepted", expected) => {
                    *expected =
                        Expected::Accepted { what: value.to_owned(), out: Vec::new(), left: Vec::new() };
                }
                ("left", Expected::Accepted { left, .. }) => *left = unescape(value),
                _ => panic!("{text:?} is no line of a case"),
            }
        }
        cases
    }

    fn has(&self, word: &str) -> bool {
        self.with.iter().any(|other| other == word)
    }

    fn value(&self, key: &str) -> Option<&str> {
        self.with.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    fn limits(&self) -> Limits {
        let number = |key| self.value(key).map(|text| text.parse::<u16>().unwrap());
        let default = Limits::default();
        Limits {
            head_bytes: number("head").map_or(default.head_bytes, u32::from),
            headers: number("headers").unwrap_or(default.headers),
            target_bytes: number("target").unwrap_or(default.target_bytes),
        }
    }

    fn edits(&self) -> Vec<FieldEdit> {
        let split = |text: &str| {
            let (name, value) = text.split_once(':').unwrap();
            (name.into(), String::from_utf8(unescape(value)).unwrap().into())
        };
        let edit = |word: &String| {
            Some(match word.split_once('=')? {
                ("set", text) => {
                    let (name, value) = split(text);
                    FieldEdit::Set(name, value)
                }
                ("add", text) => {
                    let (name, value) = split(text);
                    FieldEdit::Add(name, value)
                }
                ("remove", name) => FieldEdit::Remove(name.into()),
                _ => return None,
            })
        };
        self.with.iter().filter_map(edit).collect()
    }

    fn client(&self) -> IpAddr {
        if self.has("v6") { "2001:db8::77" } else { "192.0.2.7" }.parse().unwrap()
    }

    /// What happens to the whole input.
    pub(crate) fn run(&self) -> Expected {
        match &self.to {
            Some(method) => self.run_response(Method::of(method.as_bytes())),
            None => self.run_request(),
        }
    }

    fn run_request(&self) -> Expected {
        let mut request = Request::default();
        match request.parse(&self.input, &self.limits()) {
            Ok(Progress::Incomplete) => return Expected::Incomplete,
            Err(refusal) => {
                return Expected::Refused(format!("{} {refusal:?}", refusal.request_cause().code()));
            }
            Ok(Progress::Complete) => {}
        }
        assert_eq!(head_end(&self.input, 0), Some(request.len), "{}", self.name);
        let head = &self.input[..request.len];
        let text = |bytes: &[u8]| {
            if bytes.is_empty() { "-".to_owned() } else { String::from_utf8_lossy(bytes).into_owned() }
        };
        let mut what = format!(
            "{} {:?} {} {:?} {}",
            text(request.method_name.of(head)),
            request.target.form,
            text(request.host.name.of(head)),
            request.body,
            if request.keep_alive { "keep" } else { "close" }
        );
        for (is_so, word) in [(request.upgrade, " upgrade"), (request.expect_continue, " expect")] {
            if is_so {
                what.push_str(word);
            }
        }
        let edits = self.edits();
        let how = self.request_out(&request, head, &edits);
        let mut out = Vec::with_capacity(request_bound(&request, &how));
        let room = out.capacity();
        write::request(&mut out, head, &request, &how).expect("the bound is enough");
        assert_eq!(out.capacity(), room);
        self.check_again(&request, head, &how, &out);
        match self.body(request.body, &self.input[request.len..], &mut out) {
            Ok(left) => Expected::Accepted { what, out, left },
            Err(error) => Expected::Refused(format!("request-chunk {error:?}")),
        }
    }

    fn request_out<'a>(
        &'a self,
        request: &Request,
        head: &'a [u8],
        edits: &'a [FieldEdit],
    ) -> RequestOut<'a> {
        RequestOut {
            path: self.value("path").map(str::as_bytes),
            host: self.value("host").map(str::as_bytes),
            edits,
            variables: Variables {
                client: Some(self.client()),
                host: request.host.name.of(head),
                path: request.target.path.of(head),
                route: b"a-route",
                backend: b"198.18.0.1:80\r\nX-Evil: 1",
                request_id: b"id-1",
            },
            tell: Tell {
                x_forwarded: self.has("x-forwarded"),
                forwarded: self.has("forwarded"),
                via: if self.has("via") { "weir" } else { "" },
                request_id: if self.has("id") { "x-request-id" } else { "" },
                is_trusted: self.has("trusted"),
                client: self.client(),
                port: 8080,
                is_tls: self.has("tls"),
            },
            body: request.body,
            close: self.has("close"),
            upgrade: !self.has("no-upgrade"),
            expect: self.has("expect"),
        }
    }

    /// What was written means what was read.
    fn check_again(&self, request: &Request, head: &[u8], how: &RequestOut<'_>, out: &[u8]) {
        let mut again = Request::default();
        let wide = Limits { head_bytes: 65_535, headers: 256, target_bytes: 65_000 };
        // A 1.0 request without a host becomes one with an empty host, which only we may send.
        if request.host.authority.is_empty() && how.host.is_none() {
            return;
        }
        assert_eq!(again.parse(out, &wide), Ok(Progress::Complete), "{}: {}", self.name, escape(out));
        assert_eq!(
            (again.method, again.body, again.len),
            (request.method, request.body, out.len()),
            "{}",
            self.name
        );
        assert_eq!(again.target.query.of(out), request.target.query.of(head), "{}", self.name);
        assert_eq!(again.keep_alive, !how.close, "{}", self.name);
        assert_eq!(again.upgrade, request.upgrade && how.upgrade, "{}", self.name);
        if how.host.is_none() {
            assert_eq!(again.host.authority.of(out), request.host.authority.of(head), "{}", self.name);
        }
    }

    fn run_response(&self, method: Method) -> Expected {
        let mut response = Response::default();
        match response.parse(&self.input, &self.limits(), method) {
            Ok(Progress::Incomplete) => return Expected::Incomplete,
            Err(refusal) => {
                return Expected::Refused(format!("{} {refusal:?}", refusal.response_cause().code()));
            }
            Ok(Progress::Complete) => {}
        }
        assert_eq!(head_end(&self.input, 0), Some(response.len), "{}", self.name);
        let head = &self.input[..response.len];
        let keep = if response.keep_alive { "keep" } else { "close" };
        let what = format!("{} {:?} {keep}", response.status, response.body);
        let edits = self.edits();
        let how = ResponseOut {
            edits: &edits,
            variables: Variables { route: b"a-route", ..Variables::default() },
            via: if self.has("via") { "weir" } else { "" },
            version: if self.has("http10") { Version::Http10 } else { Version::Http11 },
            body: response.body,
            keep_alive: !self.has("client-close") && response.body != Body::UntilClose,
            sticky: self.has("sticky").then_some(StickyCookie {
                name: "weir",
                value: b"b1",
                max_age_s: 60,
                secure: true,
            }),
            date: self.has("date").then_some(b"Mon, 23 Nov 2026 16:00:00 GMT".as_slice()),
        };
        let mut out = Vec::with_capacity(response_bound(&response, &how));
        let room = out.capacity();
        write::response(&mut out, head, &response, &how).expect("the bound is enough");
        assert_eq!(out.capacity(), room);
        let mut again = Response::default();
        let wide = Limits { head_bytes: 65_535, headers: 256, target_bytes: 65_000 };
        assert_eq!(again.parse(&out, &wide, method), Ok(Progress::Complete), "{}", self.name);
        assert_eq!(
            (again.status, again.body, again.len),
            (response.status, response.body, out.len()),
            "{}",
            self.name
        );
        match self.body(response.body, &self.input[response.len..], &mut out) {
            Ok(left) => Expected::Accepted { what, out, left },
            Err(error) => Expected::Refused(format!("response-truncated {error:?}")),
        }
    }

    /// Adds what goes on of a body; what is left.
    fn body(&self, body: Body, bytes: &[u8], out: &mut Vec<u8>) -> Result<Vec<u8>, ChunkError> {
        let trailers = if self.has("drop-trailers") { Trailers::Drop } else { Trailers::Pass };
        match body {
            Body::None => Ok(bytes.to_vec()),
            Body::Length(length) => {
                let end = usize::try_from(length).unwrap().min(bytes.len());
                out.extend(&bytes[..end]);
                Ok(bytes[end..].to_vec())
            }
            Body::UntilClose => {
                out.extend(bytes);
                Ok(Vec::new())
            }
            Body::Chunked => {
                let mut decoder = Decoder::new();
                let mut rest = bytes;
                while !rest.is_empty() && !decoder.is_done() {
                    let passed = decoder.pass(rest, trailers)?;
                    out.extend(&rest[..passed.pass]);
                    rest = &rest[passed.pass + passed.skip..];
                }
                Ok(rest.to_vec())
            }
        }
    }

    /// A beginning is incomplete or refused, never something else than the whole is.
    pub(crate) fn run_in_pieces(&self, whole: &Expected) {
        let (mut request, mut response) = (Request::default(), Response::default());
        let limits = self.limits();
        let (mut end, mut ended) = (0, None);
        for length in 0..=self.input.len() {
            let beginning = &self.input[..length];
            let (progress, len) = match &self.to {
                Some(method) => {
                    (response.parse(beginning, &limits, Method::of(method.as_bytes())), response.len)
                }
                None => (request.parse(beginning, &limits), request.len),
            };
            ended = ended.or(head_end(beginning, end));
            end = length;
            match (progress, whole) {
                (Ok(Progress::Incomplete), _) => {
                    assert_eq!(
                        ended.filter(|_| !matches!(whole, Expected::Refused(_))),
                        None,
                        "{}",
                        self.name
                    );
                }
                (Ok(Progress::Complete), Expected::Accepted { .. }) => {
                    assert!(len <= length, "{}", self.name);
                    assert_eq!(ended, Some(len), "{}", self.name);
                }
                // Its body may be.
                (Ok(Progress::Complete), Expected::Refused(why)) => {
                    let of_body = why.starts_with("request-chunk") || why.starts_with("response-truncated");
                    assert!(of_body, "{}: {length} bytes are complete", self.name);
                }
                (Err(refusal), Expected::Refused(why)) => {
                    let word = format!("{refusal:?}");
                    assert!(why.ends_with(&format!(" {word}")), "{}: {word} after {length} bytes", self.name);
                }
                (happened, _) => panic!("{}: {happened:?} after {length} bytes", self.name),
            }
        }
    }
}
