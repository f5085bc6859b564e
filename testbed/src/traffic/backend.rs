//! Backends of HTTP that behave as the path of a request asks: well, slowly, or badly in the ways that a proxy must survive.
//!
//! ```text
//! /who /echo            the backend's name; the request as it came          /status/N      that status, without a body
//! /bytes/N /chunked     a body of a pattern; chunks with a trailer          /close /old    a body until the end; HTTP/1.0
//! /wait/MS /trickle/N/MS  late; a byte at a time                            /never         nothing
//! /short /short-chunked /short-reset   less than announced                  /long          more than announced
//! /early /early-close   an answer before the body is there                  /hint /storm/N 103, once or often
//! /garbage/KIND /bad-chunk/KIND /fat   no HTTP, or too much of it           /gone /gone-reset  no answer at all
//! /odd/KIND             not as it should be, but with one meaning               /fields       200 fields
//! /race /parting        the next request, or none, finds the connection closed
//! /flaky/KEY/N/WHAT     the first N attempts, whichever backend gets them, are WHAT; then the name
//! CONNECT               200, then bytes come back as they are
//! /upgrade              101, then bytes come back as they are; a WebSocket's frames as frames
//! ```
//! Everything that arrives is remembered, in order.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;

use crate::topology::lab::{Family, Lab, backend, backend_name};
use crate::traffic::stream::{self, Server};
use crate::traffic::websocket;

/// Port of these backends.
pub(crate) const SCRIPT_PORT: u16 = 9_100;
/// Largest body that is remembered.
const REMEMBERED: usize = 1 << 20;
/// What is no head of a response.
pub(crate) const GARBAGE: [&str; 8] = [
    "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "HTTP/1.1 2xx OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nBad Name: x\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Nul: a\0b\r\n\r\n",
    "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
];
/// Responses that are not as they should be, but mean one thing: `hello`.
pub(crate) const ODD: [&str; 5] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Folded: one\r\n two\r\n\r\nhello",
    "HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\ncontent-length:5\r\nX-Empty:\r\n\r\nhello",
];
/// Fields of `/fields`.
pub(crate) const FIELDS: usize = 200;
/// Chunked bodies that are none.
pub(crate) const BAD_CHUNKS: [&str; 5] = [
    "5\r\nhello\r\nxyz\r\n",
    "5\r\nhelloGET / HTTP/1.1\r\n\r\n",
    "5\r\nhello\r\nFFFFFFFFFFFFFFFFF\r\n",
    "5\r\nhello\r\n-1\r\n",
    "5\nhello\n0\n\n",
];

/// A request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// Its place in the order in which all came.
    pub(crate) number: u64,
    /// Whose it was.
    pub(crate) backend: String,
    /// On which of its connections.
    pub(crate) connection: u64,
    /// Request line and fields.
    pub(crate) head: String,
    /// The body, as far as it came; its beginning where it is large.
    pub(crate) body: Vec<u8>,
    /// Fields behind a chunked body.
    pub(crate) trailers: String,
    /// Whether all of it came.
    pub(crate) is_whole: bool,
}

impl Seen {
    /// The request's target.
    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Memory {
    numbers: AtomicU64,
    seen: Mutex<Vec<Seen>>,
    attempts: Mutex<BTreeMap<String, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lab's backends, with one memory.
#[derive(Debug)]
pub(crate) struct Backends {
    servers: Vec<Server>,
    memory: Arc<Memory>,
}

impl Backends {
    /// One in each namespace of the lab.
    pub(crate) fn start(lab: &Lab, family: Family) -> Result<Self> {
        let memory: Arc<Memory> = Arc::default();
        let one = |number: usize| {
            let place = SocketAddr::new(backend(family, number), SCRIPT_PORT);
            let (memory, connections, name) = (Arc::clone(&memory), AtomicU64::new(0), backend_name(number));
            Server::start(&lab.backends[number - 1], place, move |stream| {
                let connection = connections.fetch_add(1, Ordering::Relaxed);
                let (stream, memory, name) = (Some(stream), Arc::clone(&memory), name.clone());
                let mut talk = Talk { stream, name, connection, memory, received: Vec::new() };
                // a peer that goes away is no finding here
                let _ = talk.serve();
            })
        };
        let servers = (1..=lab.backends.len()).map(one).collect::<Result<Vec<_>>>()?;
        Ok(Self { servers, memory })
    }

    /// Connections that came to the nth.
    pub(crate) fn accepted(&self, number: usize) -> u64 {
        self.servers[number - 1].accepted()
    }

    /// What has arrived, in order.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        lock(&self.memory.seen).clone()
    }

    /// Those whose target begins so.
    pub(crate) fn seen_of(&self, target: &str) -> Vec<Seen> {
        lock(&self.memory.seen).iter().filter(|seen| seen.target().starts_with(target)).cloned().collect()
    }

    /// Forgets what has arrived.
    pub(crate) fn forget(&self) {
        lock(&self.memory.seen).clear();
    }
}

struct Request {
    number: u64,
    method: String,
    target: String,
    fields: Vec<(String, String)>,
}

impl Request {
    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    fn closes(&self) -> bool {
        self.field("connection").is_some_and(|value| value.to_ascii_lowercase().contains("close"))
    }
}

/// A connection.
struct Talk {
    stream: Option<TcpStream>,
    name: String,
    connection: u64,
    memory: Arc<Memory>,
    received: Vec<u8>,
}

/// What becomes of the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Request,
    End,
    Reset,
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what.to_owned())
}

impl Talk {
    fn serve(&mut self) -> std::io::Result<()> {
        self.stream()?.set_read_timeout(None)?;
        loop {
            let Some(request) = self.request()? else { return Ok(()) };
            match self.answer(&request)? {
                Next::Request if request.closes() => return Ok(()),
                Next::Request => {}
                Next::End => return Ok(()),
                Next::Reset => {
                    if let Some(stream) = self.stream.take() {
                        let _ = stream::reset(stream);
                    }
                    return Ok(());
                }
            }
        }
    }

    fn stream(&self) -> std::io::Result<&TcpStream> {
        self.stream.as_ref().ok_or_else(|| ErrorKind::NotConnected.into())
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        (&mut self.stream()?).write_all(bytes)
    }

    /// Whether more came.
    fn read(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0u8; 16_384];
        let count = (&mut self.stream()?).read(&mut buffer)?;
        self.received.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    fn line(&mut self) -> std::io::Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.received.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).map_err(|_| malformed("a line that is no text"));
            }
            if !self.read()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The next head; `None` at the end.
    fn request(&mut self) -> std::io::Result<Option<Request>> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|part| part == b"\r\n\r\n") {
                break end + 4;
            }
            if !self.read()? {
                return Ok(None);
            }
        };
        let head: Vec<u8> = self.received.drain(..end).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let number = self.memory.numbers.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            number,
            method: method.to_owned(),
            target: target.to_owned(),
            fields: fields
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect(),
        };
        lock(&self.memory.seen).push(Seen {
            number,
            backend: self.name.clone(),
            connection: self.connection,
            head,
            body: Vec::new(),
            trailers: String::new(),
            is_whole: false,
        });
        Ok(Some(request))
    }

    /// The body, remembered, and its trailers.
    fn body(&mut self, request: &Request) -> std::io::Result<(Vec<u8>, String)> {
        if request.field("expect").is_some() {
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let (mut body, mut trailers) = (Vec::new(), String::new());
        let outcome = if request.field("transfer-encoding").is_some() {
            self.chunks(&mut body, &mut trailers)
        } else {
            let length = request.field("content-length").map_or(Ok(0), str::parse);
            let length: usize = length.map_err(|_| malformed("a length that is none"))?;
            self.take(length, &mut body)
        };
        if let Some(seen) =
            lock(&self.memory.seen).iter_mut().rev().find(|seen| seen.number == request.number)
        {
            seen.body = body[..body.len().min(REMEMBERED)].to_vec();
            seen.trailers.clone_from(&trailers);
            seen.is_whole = outcome.is_ok();
        }
        outcome.map(|()| (body, trailers))
    }

    fn take(&mut self, length: usize, body: &mut Vec<u8>) -> std::io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.received.is_empty() && !self.read()? {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let count = left.min(self.received.len());
            body.extend(self.received.drain(..count));
            left -= count;
        }
        Ok(())
    }

    fn chunks(&mut self, body: &mut Vec<u8>, trailers: &mut String) -> std::io::Result<()> {
        loop {
            let line = self.line()?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).map_err(|_| malformed("no size of a chunk"))?;
            if size == 0 {
                break;
            }
            self.take(size, body)?;
            if !self.line()?.is_empty() {
                return Err(malformed("a chunk that is longer than it says"));
            }
        }
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(());
            }
            *trailers += &line;
            *trailers += "\r\n";
        }
    }

    fn respond(&self, request: &Request, status: &str, fields: &str, body: &[u8]) -> std::io::Result<Next> {
        let mut bytes =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n{fields}\r\n", body.len()).into_bytes();
        if request.method != "HEAD" {
            bytes.extend_from_slice(body);
        }
        self.write(&bytes)?;
        Ok(Next::Request)
    }

    fn answer(&mut self, request: &Request) -> std::io::Result<Next> {
        let path = request.target.split(['?', '#']).next().unwrap_or_default().to_owned();
        let mut words = path.trim_start_matches('/').split('/').map(str::to_owned);
        let what = words.next().unwrap_or_default();
        let rest: Vec<String> = words.collect();
        let number = |at: usize| rest.get(at).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        if request.method == "CONNECT" {
            self.write(format!("HTTP/1.1 200 Connected\r\nX-Backend: {}\r\n\r\n", self.name).as_bytes())?;
            return self.echo(std::mem::take);
        }
        // those that don't wait for a body
        match what.as_str() {
            "early" | "early-close" => return self.early(request, what == "early-close"),
            "never" => {
                while self.read()? {}
                return Ok(Next::End);
            }
            _ => {}
        }
        let (body, trailers) = self.body(request)?;
        match what.as_str() {
            "echo" => {
                let head = lock(&self.memory.seen)
                    .iter()
                    .rev()
                    .find(|seen| seen.number == request.number)
                    .map_or_else(String::new, |seen| seen.head.clone());
                let answer = [head.as_bytes(), &body, trailers.as_bytes()].concat();
                self.respond(request, "200 OK", &format!("X-Backend: {}\r\n", self.name), &answer)
            }
            "status" => match number(0) {
                status @ (204 | 304) => {
                    self.write(format!("HTTP/1.1 {status} So\r\nETag: \"x\"\r\n\r\n").as_bytes())?;
                    Ok(Next::Request)
                }
                status => self.respond(request, &format!("{status} So"), "", b""),
            },
            "bytes" => self.respond(request, "200 OK", "", &pattern(number(0) as usize)),
            "wait" => {
                std::thread::sleep(Duration::from_millis(number(0).min(20_000)));
                self.who(request)
            }
            "trickle" => self.trickle(number(0), number(1)),
            "flaky" => self.flaky(request, &path, number(1), rest.get(2).map_or("", String::as_str)),
            "storm" => {
                for hint in 0..number(0) {
                    self.write(format!("HTTP/1.1 103 Early Hints\r\nX-Hint: {hint}\r\n\r\n").as_bytes())?;
                }
                self.who(request)
            }
            "garbage" => {
                self.write(GARBAGE[number(0) as usize % GARBAGE.len()].as_bytes())?;
                while self.read()? {}
                Ok(Next::End)
            }
            "bad-chunk" => {
                let chunks = BAD_CHUNKS[number(0) as usize % BAD_CHUNKS.len()];
                self.write(
                    format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes(),
                )?;
                while self.read()? {}
                Ok(Next::End)
            }
            "odd" => self.write(ODD[number(0) as usize % ODD.len()].as_bytes()).map(|()| Next::Request),
            "fields" => {
                let fields: String = (0..FIELDS).map(|at| format!("X-Field-{at}: {at}\r\n")).collect();
                self.respond(request, "200 OK", &fields, b"hello")
            }
            "upgrade" => self.upgrade(request),
            "race" => {
                self.who(request)?;
                // whatever comes next finds the connection closed
                let _ = self.read()?;
                Ok(Next::Reset)
            }
            what => self.plain(request, what),
        }
    }

    fn who(&self, request: &Request) -> std::io::Result<Next> {
        self.respond(request, "200 OK", &format!("X-Backend: {}\r\n", self.name), self.name.as_bytes())
    }

    /// Those that take no parameters.
    fn plain(&mut self, request: &Request, what: &str) -> std::io::Result<Next> {
        const CHUNKS: &str = "Transfer-Encoding: chunked\r\nTrailer: X-Check\r\n\r\n";
        let (text, next) = match what {
            "chunked" => (
                format!("HTTP/1.1 200 OK\r\n{CHUNKS}9\r\nchunk-one\r\nA;ext=1\r\n,chunk-two\r\n0\r\nX-Check: done\r\n\r\n"),
                Next::Request,
            ),
            "close" => ("HTTP/1.1 200 OK\r\n\r\nuntil the end".to_owned(), Next::End),
            "old" => ("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold".to_owned(), Next::End),
            "short" => (format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{:50}", "x"), Next::End),
            "short-chunked" => {
                ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhello".to_owned(), Next::End)
            }
            "short-reset" => {
                (format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{:50}", "x"), Next::Reset)
            }
            "long" => (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen"
                    .to_owned(),
                Next::Request,
            ),
            "hint" => {
                let hint = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
                (format!("{hint}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), Next::Request)
            }
            "fat" => (format!("HTTP/1.1 200 OK\r\nX-Fat: {}\r\nContent-Length: 0\r\n\r\n", "x".repeat(90_000)), Next::End),
            "gone" => (String::new(), Next::End),
            "gone-reset" => (String::new(), Next::Reset),
            "parting" => {
                // held back until the FIN: both come in one segment
                SockRef::from(self.stream()?).set_tcp_cork(true)?;
                ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(), Next::End)
            }
            "cookies" => (
                "HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: script\r\nX-Secret: s\r\nContent-Length: 2\r\n\r\nok"
                    .to_owned(),
                Next::Request,
            ),
            _ => return self.who(request),
        };
        let text = match text.split_once("\r\n\r\n") {
            Some((head, _)) if request.method == "HEAD" => format!("{head}\r\n\r\n"),
            _ => text,
        };
        self.write(text.as_bytes())?;
        Ok(next)
    }

    fn early(&mut self, request: &Request, closes: bool) -> std::io::Result<Next> {
        let fields = if closes { "Connection: close\r\n" } else { "" };
        self.respond(request, "413 Early", fields, b"early")?;
        if closes {
            return Ok(Next::End);
        }
        self.body(request)?;
        Ok(Next::Request)
    }

    fn trickle(&self, bytes: u64, ms: u64) -> std::io::Result<Next> {
        self.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n").as_bytes())?;
        for _ in 0..bytes {
            std::thread::sleep(Duration::from_millis(ms.min(10_000)));
            self.write(b"t")?;
        }
        Ok(Next::Request)
    }

    fn flaky(&mut self, request: &Request, path: &str, times: u64, what: &str) -> std::io::Result<Next> {
        let attempt = {
            let mut attempts = lock(&self.memory.attempts);
            let attempt = attempts.entry(path.to_owned()).or_default();
            *attempt += 1;
            *attempt
        };
        if attempt > times {
            return self.who(request);
        }
        match what.parse::<u16>() {
            Ok(status) => self.respond(request, &format!("{status} So"), "", b"not yet"),
            Err(_) if what == "never" => {
                while self.read()? {}
                Ok(Next::End)
            }
            Err(_) => self.plain(request, what),
        }
    }

    fn upgrade(&mut self, request: &Request) -> std::io::Result<Next> {
        let Some(protocol) = request.field("upgrade") else {
            return self.respond(request, "426 Upgrade Required", "Upgrade: echo\r\n", b"");
        };
        let accept = match request.field("sec-websocket-key") {
            Some(websocket::KEY) => format!("Sec-WebSocket-Accept: {}\r\n", websocket::ACCEPT),
            _ => String::new(),
        };
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n";
        self.write(format!("{head}Upgrade: {protocol}\r\n{accept}\r\n").as_bytes())?;
        if accept.is_empty() { self.echo(std::mem::take) } else { self.echo(websocket::answer) }
    }

    /// Sends what a function takes from the bytes that came, until no more come.
    fn echo(&mut self, take: impl Fn(&mut Vec<u8>) -> Vec<u8>) -> std::io::Result<Next> {
        loop {
            let bytes = take(&mut self.received);
            self.write(&bytes)?;
            if !self.read()? {
                return Ok(Next::End);
            }
        }
    }
}

/// A body of that length.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Sends bytes to a backend and ends its side; all that comes back.
    fn ask(bytes: &[u8]) -> (String, Vec<Seen>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let memory = Arc::new(Memory::default());
        let mut talk = Talk {
            stream: Some(stream),
            name: "app-1".into(),
            connection: 0,
            memory: Arc::clone(&memory),
            received: Vec::new(),
        };
        (&mut &client).write_all(bytes).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = talk.serve();
        drop(talk);
        let mut text = String::new();
        let _ = (&mut &client).read_to_string(&mut text);
        let seen = lock(&memory.seen).clone();
        (text, seen)
    }

    #[test]
    fn pipelined_requests_are_told_apart_and_remembered() {
        let (text, seen) = ask(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET /who HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(text.contains("\r\n\r\nhello") && text.ends_with("app-1"), "{text}");
        assert_eq!(seen.len(), 2);
        assert!(seen.iter().all(|seen| seen.is_whole));
        assert_eq!((seen[0].body.as_slice(), seen[1].target()), (&b"hello"[..], "/who"));
    }

    #[test]
    fn chunks_with_trailers_are_read() {
        let (_, seen) = ask(
            b"POST /who HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
        );
        assert_eq!((seen[0].body.as_slice(), seen[0].trailers.as_str()), (&b"abc"[..], "X-Sum: 1\r\n"));
    }

    #[test]
    fn a_flaky_path_recovers() {
        let one = "GET /flaky/k/1/503 HTTP/1.1\r\n\r\n";
        let (text, _) = ask(format!("{one}{one}").as_bytes());
        assert!(text.starts_with("HTTP/1.1 503") && text.ends_with("app-1"), "{text}");
    }

    #[test]
    fn a_body_cut_short_is_not_whole() {
        let (_, seen) = ask(b"POST /who HTTP/1.1\r\nContent-Length: 50\r\n\r\nabc");
        assert!(!seen[0].is_whole && seen[0].body == b"abc");
    }
}
