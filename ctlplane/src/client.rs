//! How does the command line talk to the daemon? One request per connection, with a deadline.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::api::{COMMAND_HEADER, COMMENT_HEADER, Failure, percent_encode};
use crate::socket;

/// Longest wait for the answer to a change: longer than the daemon waits for acks.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for the answer to a question.
const QUESTION_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot reach weir-ctlplane at {}: {source}; start it, or name its place with --run-dir and --instance", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Somebody listens, but not to this user.
    #[error("{0}")]
    Denied(String),
    /// Somebody who does not speak this protocol, or died while speaking.
    #[error("weir-ctlplane at {} did not answer properly: {reason}; see its log", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// It refused, and says why.
    #[error("{}", .0.error)]
    Refused(Box<Failure>),
}

/// A daemon's socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    /// What history is to tell of changes: the command, and the operator's words.
    command: Option<String>,
    comment: Option<String>,
}

impl Client {
    /// The daemon that listens on `path`.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), command: None, comment: None }
    }

    /// The same, for changes that history tells so.
    pub fn described(self, command: String, comment: Option<String>) -> Self {
        Self { command: Some(command), comment, ..self }
    }

    /// `GET` of a path under the socket.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Vec::new())
    }

    /// `POST` of a text.
    pub fn post_text<T: DeserializeOwned>(&self, path: &str, body: &str) -> Result<T, ClientError> {
        self.request(Method::POST, path, body.as_bytes().to_vec())
    }

    /// `POST` of a JSON value.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.protocol(error.to_string()))?;
        self.request(Method::POST, path, body)
    }

    fn protocol(&self, reason: String) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), reason }
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| self.protocol(error.to_string()))?;
        let limit = if method == Method::GET { QUESTION_LIMIT } else { CHANGE_LIMIT };
        let (status, body) = runtime
            .block_on(async { timeout(limit, self.exchange(method, path, body)).await })
            .map_err(|_| self.protocol(format!("no answer within {} s", limit.as_secs())))??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| self.protocol(error.to_string()));
        }
        if status == hyper::StatusCode::FORBIDDEN {
            return Err(ClientError::Denied(socket::denied(&self.path)));
        }
        match serde_json::from_slice::<Failure>(&body) {
            Ok(failure) => Err(ClientError::Refused(Box::new(failure))),
            Err(_) => Err(self.protocol(format!("status {status}"))),
        }
    }

    /// Who may not use the socket gets answers from the read-only one, which refuses changes by itself.
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let source = match UnixStream::connect(&self.path).await {
            Ok(stream) => return Ok(stream),
            Err(source) => source,
        };
        if source.kind() != std::io::ErrorKind::PermissionDenied {
            return Err(ClientError::Unreachable { path: self.path.clone(), source });
        }
        let read_only = socket::read_only_path(&self.path);
        UnixStream::connect(read_only).await.map_err(|_| ClientError::Denied(socket::denied(&self.path)))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(hyper::StatusCode, Bytes), ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.protocol(error.to_string()))?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(hyper::header::HOST, "weir");
        for (name, words) in [(COMMAND_HEADER, &self.command), (COMMENT_HEADER, &self.comment)] {
            if let Some(words) = words {
                request = request.header(name, percent_encode(words));
            }
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| self.protocol(error.to_string()))?;
        let response =
            sender.send_request(request).await.map_err(|error| self.protocol(error.to_string()))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.protocol(error.to_string()))?;
        driver.abort();
        Ok((status, body.to_bytes()))
    }
}
