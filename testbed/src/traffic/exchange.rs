//! A client of HTTP that sends what a test wrote, byte for byte, and takes answers apart strictly: interim responses, fields in order,
//! chunks, trailers, and how the connection ended.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::topology::namespace::Namespace;
use crate::traffic::stream::{self, End};

/// An answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Response {
    /// Interim responses before it: status and fields.
    pub(crate) interim: Vec<(u16, Vec<(String, String)>)>,
    /// Status.
    pub(crate) status: u16,
    /// `HTTP/1.1`.
    pub(crate) version: String,
    /// Fields, names in lower case, in order.
    pub(crate) fields: Vec<(String, String)>,
    /// The body, chunks put together.
    pub(crate) body: Vec<u8>,
    /// Fields behind a chunked body.
    pub(crate) trailers: Vec<(String, String)>,
}

impl Response {
    /// The first field of that name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// All fields of that name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.fields.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// Why Weir answered by itself; empty where it did not.
    pub(crate) fn cause(&self) -> &str {
        self.field("weir-cause").unwrap_or_default()
    }

    /// An error unless the status and the cause are these.
    pub(crate) fn must_be(&self, status: u16, cause: &str) -> Result<()> {
        ensure!(
            self.status == status && self.cause() == cause,
            "{} with cause {:?} instead of {status} with {cause:?}; body {:?}",
            self.status,
            self.cause(),
            self.text()
        );
        Ok(())
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Client {
    /// The socket.
    pub(crate) stream: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Connects from the namespace.
    pub(crate) fn open(from: &Namespace, target: SocketAddr) -> Result<Self> {
        Ok(Self::of(stream::connect(from, target)?))
    }

    /// Over a connection that stands.
    pub(crate) fn of(stream: TcpStream) -> Self {
        Self { stream, received: Vec::new() }
    }

    /// Sends bytes.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        self.stream.write_all(bytes.as_ref()).context("send a request")
    }

    /// Sends a whole request and reads its answer.
    pub(crate) fn ask(&mut self, request: &str) -> Result<Response> {
        self.send(request)?;
        let method = request.split(' ').next().unwrap_or_default();
        self.response(method)
            .with_context(|| format!("answer to {:?}", request.lines().next().unwrap_or_default()))
    }

    /// Asks for a path of host `weir.test`.
    pub(crate) fn get(&mut self, path: &str) -> Result<Response> {
        self.ask(&get(path, ""))
    }

    /// Reads more; an error at the end.
    fn read(&mut self) -> Result<()> {
        let mut buffer = [0u8; 16_384];
        match self.stream.read(&mut buffer).context("read an answer")? {
            0 => bail!("the connection ended within an answer, after {:?}", self.came()),
            count => self.received.extend_from_slice(&buffer[..count]),
        }
        Ok(())
    }

    fn came(&self) -> String {
        String::from_utf8_lossy(&self.received[..self.received.len().min(200)]).into_owned()
    }

    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.received.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).context("a line that is no text");
            }
            self.read()?;
        }
    }

    fn fields(&mut self) -> Result<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let (name, value) = line.split_once(':').with_context(|| format!("no field: {line:?}"))?;
            ensure!(!name.is_empty() && !name.contains([' ', '\t']), "no field: {line:?}");
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next head.
    pub(crate) fn head(&mut self) -> Result<Response> {
        let line = self.line()?;
        let mut words = line.splitn(3, ' ');
        let version = words.next().unwrap_or_default().to_owned();
        let status = words.next().and_then(|word| word.parse().ok());
        let status = status
            .filter(|_| version.starts_with("HTTP/1."))
            .ok_or_else(|| anyhow!("no status line: {line:?}"))?;
        Ok(Response { status, version, fields: self.fields()?, ..Response::default() })
    }

    /// The answer to a request of that method.
    pub(crate) fn response(&mut self, method: &str) -> Result<Response> {
        let mut interim = Vec::new();
        let mut response = loop {
            let head = self.head()?;
            if head.status >= 200 || head.status == 101 {
                break head;
            }
            interim.push((head.status, head.fields));
        };
        response.interim = interim;
        let has_none = method == "HEAD" || matches!(response.status, 101 | 204 | 304);
        let is_tunnel = method == "CONNECT" && response.status / 100 == 2;
        if has_none || is_tunnel {
            return Ok(response);
        }
        let coding = response.all("transfer-encoding").join(",");
        let lengths = response.all("content-length");
        ensure!(
            lengths.len() <= 1 && (lengths.is_empty() || coding.is_empty()),
            "two lengths: {:?}",
            response.fields
        );
        if coding == "chunked" {
            self.chunks(&mut response)?;
        } else if let Some(length) = lengths.first() {
            let length: usize = length.parse().with_context(|| format!("Content-Length: {length}"))?;
            while self.received.len() < length {
                self.read()?;
            }
            response.body = self.received.drain(..length).collect();
        } else {
            ensure!(coding.is_empty(), "Transfer-Encoding: {coding}");
            let (body, end) = self.rest(Duration::from_secs(10))?;
            ensure!(end == End::Finished, "a body without a length ended with a RST");
            response.body = body;
        }
        Ok(response)
    }

    fn chunks(&mut self, response: &mut Response) -> Result<()> {
        loop {
            let line = self.line()?;
            let size =
                usize::from_str_radix(&line, 16).with_context(|| format!("no chunk size: {line:?}"))?;
            if size == 0 {
                break;
            }
            while self.received.len() < size + 2 {
                self.read()?;
            }
            response.body.extend(self.received.drain(..size));
            ensure!(self.line()?.is_empty(), "a chunk without its end");
        }
        response.trailers = self.fields()?;
        Ok(())
    }

    /// Exactly so many bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.received.len() < count {
            self.read()?;
        }
        Ok(self.received.drain(..count).collect())
    }

    /// All that comes until the connection ends, and how it does.
    pub(crate) fn rest(&mut self, patience: Duration) -> Result<(Vec<u8>, End)> {
        let start = Instant::now();
        let mut buffer = [0u8; 16_384];
        let end = loop {
            let left = patience.saturating_sub(start.elapsed());
            ensure!(
                !left.is_zero(),
                "the connection is still open after {patience:?}; came {:?}",
                self.came()
            );
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut buffer) {
                Ok(0) => break End::Finished,
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => break End::Reset,
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(error.into()),
                },
            }
        };
        Ok((std::mem::take(&mut self.received), end))
    }

    /// Waits for the end of the connection, before which nothing may come.
    pub(crate) fn ended(&mut self, patience: Duration) -> Result<End> {
        let (bytes, end) = self.rest(patience)?;
        ensure!(bytes.is_empty(), "before its end came {:?}", String::from_utf8_lossy(&bytes));
        Ok(end)
    }
}

/// A GET of a path with more fields, each with its end of line.
pub(crate) fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: weir.test\r\n{fields}\r\n")
}

/// A POST with a body of a known length.
pub(crate) fn post(path: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: weir.test\r\nContent-Length: {length}\r\n{fields}\r\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn said(bytes: &'static [u8]) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.accept().unwrap().0.write_all(bytes).unwrap());
        Client::of(TcpStream::connect(address).unwrap())
    }

    #[test]
    fn interim_chunks_and_trailers_are_told_apart() {
        let mut client = said(
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
              3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
        );
        let first = client.response("GET").unwrap();
        assert_eq!((first.interim[0].0, first.text().as_str()), (103, "abcde"));
        assert_eq!(first.trailers, [("x-sum".to_owned(), "5".to_owned())]);
        assert_eq!(client.response("GET").unwrap().status, 204);
        assert_eq!(client.ended(Duration::from_secs(1)).unwrap(), End::Finished);
    }

    #[test]
    fn a_body_cut_short_is_an_error() {
        let mut client = said(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc");
        assert!(format!("{:#}", client.response("GET").unwrap_err()).contains("ended within an answer"));
    }
}
