//! Which request is it, is it one at all, and what is answered?

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Daemon, REQUEST_LIMIT, changes};
use crate::api::{
    self, BackendRequest, Backends, COMMAND_HEADER, COMMENT_HEADER, CONFIRM, ChangeRequest, Failure,
    MAX_BACKUP_BYTES, MAX_BODY_BYTES, SCHEMA, StateRequest, percent_decode,
};
use crate::changes::edit::EditError;
use crate::changes::{Origin, Who};
use crate::engine::{Backup, EngineError, Manner};
use crate::explain;
use crate::health::Health;
use crate::health::listing::Listing;
use crate::socket::Access;
use crate::state::{BackendEntry, Phase};
use crate::status::{self, Status};
use crate::units::parse_duration;

const EXPECTED_STATE: &str = r#"send {"state": "ready" | "drain" | "maint"}"#;

/// An answer that is not a success.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    failure: Failure,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, failure: Failure { schema: SCHEMA, error: error.into(), diagnostics: Vec::new() } }
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::Config { .. } | EngineError::Argument { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            EngineError::Edit(EditError::Missing { .. })
            | EngineError::UnknownBackend { .. }
            | EngineError::UnknownListener { .. }
            | EngineError::UnknownChange { .. } => StatusCode::NOT_FOUND,
            EngineError::LastUsable { .. }
            | EngineError::Index(_)
            | EngineError::NothingToConfirm
            | EngineError::Outpaced { .. }
            | EngineError::FileChanged { .. }
            | EngineError::Edit(EditError::Exists { .. }) => StatusCode::CONFLICT,
            EngineError::Edit(_) | EngineError::Backup(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut refused = Self::new(status, error.to_string());
        if let EngineError::Config { reports, .. } | EngineError::Argument { reports, .. } = error {
            refused.failure.diagnostics = reports;
        }
        refused
    }
}

pub(super) type Answer = Response<Full<Bytes>>;

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(body).unwrap_or_else(|_| b"{}".to_vec());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// Answers one request; `uid` is whose process asks.
pub(super) async fn answer(
    daemon: &Daemon,
    request: Request<Incoming>,
    access: Access,
    uid: Option<u32>,
) -> Answer {
    if access == Access::ReadOnly && !is_question(&request) {
        let message = format!(
            "{} {} would change something, and this socket only answers questions; use the other one, as a member of its group",
            request.method(),
            request.uri().path()
        );
        let refused = Refused::new(StatusCode::FORBIDDEN, message);
        return json(refused.status, &refused.failure);
    }
    match route(daemon, request, uid).await {
        Ok(answer) => answer,
        Err(refused) => json(refused.status, &refused.failure),
    }
}

/// Whether a request leaves everything as it is.
fn is_question(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET || matches!(request.uri().path(), "/v1/check" | "/v1/explain")
}

async fn route(daemon: &Daemon, request: Request<Incoming>, uid: Option<u32>) -> Result<Answer, Refused> {
    let engine = &daemon.engine;
    let (parts, body) = request.into_parts();
    let segments: Vec<&str> = parts.uri.path().trim_start_matches('/').split('/').collect();
    let query = Query::parse(parts.uri.query().unwrap_or(""))?;
    match (&parts.method, segments.as_slice()) {
        (&Method::GET, ["v1", "status"]) => Ok(json(StatusCode::OK, &status(daemon).await?)),
        (&Method::GET, ["v1", "backends"]) => {
            let status = status(daemon).await?;
            let backends = Backends { schema: SCHEMA, pools: status.pools, missing: status.missing };
            Ok(json(StatusCode::OK, &backends))
        }
        (&Method::GET, ["v1", "health"]) => {
            let answered = daemon.health.borrow().as_ref().map(Health::listing);
            let backends = match answered {
                Some(answered) => answered.await,
                None => Vec::new(),
            };
            Ok(json(StatusCode::OK, &Listing { schema: SCHEMA, backends }))
        }
        (&Method::POST, ["v1", endpoint @ ("apply" | "check")]) => {
            let manner = Manner { dry_run: query.manner.dry_run || *endpoint == "check", ..query.manner };
            let text = String::from_utf8(read_body(body).await?).map_err(|_| {
                Refused::new(StatusCode::BAD_REQUEST, "the file is not UTF-8; save it as UTF-8")
            })?;
            changes::apply(daemon, &text, &query, &manner, origin(&parts, uid)?).await
        }
        (&Method::GET, ["v1", "explain", "access", listener, address]) => {
            let (listener, address) = (decode(listener)?, decode(address)?);
            let address = address.parse().map_err(|_| {
                let message = format!("\"{address}\" is not an IP address");
                Refused::new(StatusCode::BAD_REQUEST, message)
            })?;
            explain::explain_access(engine.lock().await.model(), &listener, address)
                .map(|explanation| json(StatusCode::OK, &explanation))
                .map_err(|error| Refused::new(StatusCode::NOT_FOUND, error.to_string()))
        }
        (&Method::POST, ["v1", "explain"]) => {
            let expected = "send what weir explain request sends";
            let request = understand::<explain::Request>(&read_body(body).await?, expected)?;
            let engine = engine.lock().await;
            let log = daemon.log.borrow();
            let open = |pool: &str, backend: &str| {
                let entries = &engine.state().indices.pools.get(pool)?.backends;
                let is = |entry: &&BackendEntry| entry.name == backend && entry.phase == Phase::Active;
                let breaker = log.as_ref()?.breaker(entries.iter().find(is)?.index)?;
                (breaker.state == "open").then(|| format!("its breaker is open: {}", breaker.reason))
            };
            let overrides = &engine.state().overrides;
            let known = explain::Known { overrides, health: Some(engine.down()), breaker: &open };
            explain::explain(engine.model(), &known, &request)
                .map(|explanation| json(StatusCode::OK, &explanation))
                .map_err(|error| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
        }
        (&Method::POST, ["v1", "backends", pool, backend]) => {
            let (pool, backend) = (decode(pool)?, decode(backend)?);
            let expected = r#"send {"weight": 0..65535} or {"state": "ready" | "drain" | "maint"}"#;
            let request = understand::<BackendRequest>(&read_body(body).await?, expected)?;
            changes::set_backend(daemon, &pool, &backend, &request, origin(&parts, uid)?).await
        }
        (&Method::POST, ["v1", "listeners", name]) => {
            let request = understand::<StateRequest>(&read_body(body).await?, EXPECTED_STATE)?;
            changes::set_listener(daemon, &decode(name)?, request, origin(&parts, uid)?).await
        }
        (&Method::POST, ["v1", "node"]) => {
            let request = understand::<StateRequest>(&read_body(body).await?, EXPECTED_STATE)?;
            changes::set_node(daemon, request, origin(&parts, uid)?).await
        }
        (&Method::POST, ["v1", "changes"]) => {
            let expected = r#"send {"changes": [{"op": "add" | "set" | "remove", "kind": "…", "name": "…", "fields": {…}}]}"#;
            let request = understand::<ChangeRequest>(&read_body(body).await?, expected)?;
            changes::edit(daemon, &request, &query.manner, origin(&parts, uid)?).await
        }
        (&Method::POST, ["v1", "confirm"]) => changes::confirm(daemon, origin(&parts, uid)?).await,
        (&Method::POST, ["v1", "save"]) => {
            changes::save(daemon, query.manner.force, origin(&parts, uid)?).await
        }
        (&Method::POST, ["v1", "discard"]) => {
            changes::discard(daemon, &query.manner, origin(&parts, uid)?).await
        }
        (&Method::POST, ["v1", "rollback"]) => {
            let number = query.to.ok_or_else(|| {
                Refused::new(StatusCode::BAD_REQUEST, "name the change to go back to with to=NUMBER")
            })?;
            changes::rollback(daemon, number, &query.manner, origin(&parts, uid)?).await
        }
        (&Method::GET, ["v1", "history"]) => changes::history(daemon).await,
        (&Method::GET, ["v1", "diff"]) => changes::differences(daemon, query.from, query.to).await,
        // not GET: it has secrets, which are not for those who only look
        (&Method::POST, ["v1", "backup"]) => changes::backup(daemon).await,
        (&Method::POST, ["v1", "restore"]) => {
            let expected = "send what weir backup wrote";
            let backup = understand::<Backup>(&read_up_to(body, MAX_BACKUP_BYTES).await?, expected)?;
            changes::restore(daemon, backup, origin(&parts, uid)?).await
        }
        (
            _,
            [
                "v1",
                "status" | "health" | "backends" | "apply" | "check" | "explain" | "changes" | "confirm"
                | "save" | "discard" | "rollback" | "history" | "diff" | "backup" | "restore" | "node",
            ]
            | ["v1", "backends", _, _]
            | ["v1", "listeners", _],
        ) => {
            let message = format!("{} is not allowed on {}", parts.method, parts.uri.path());
            Err(Refused::new(StatusCode::METHOD_NOT_ALLOWED, message))
        }
        _ => {
            let message = format!("there is no {}; this daemon speaks /v1/", parts.uri.path());
            Err(Refused::new(StatusCode::NOT_FOUND, message))
        }
    }
}

/// What the query of a request says.
pub(super) struct Query {
    /// The file's name, for messages.
    pub(super) name: String,
    /// A revision of the file, instead of a body.
    pub(super) revision: Option<String>,
    manner: Manner,
    from: Option<u64>,
    to: Option<u64>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let manner = Manner::default();
        let mut query = Self { name: "weir.toml".to_owned(), revision: None, manner, from: None, to: None };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = || Refused::new(StatusCode::BAD_REQUEST, format!("the query {pair} is not understood"));
            let flag = match value {
                "" | "true" | "1" => Some(true),
                "false" | "0" => Some(false),
                _ => None,
            };
            let number = || value.parse::<u64>().map_err(|_| bad());
            match key {
                "name" => query.name = percent_decode(value).ok_or_else(bad)?,
                "revision" => query.revision = Some(percent_decode(value).ok_or_else(bad)?),
                "dry_run" => query.manner.dry_run = flag.ok_or_else(bad)?,
                "force" => query.manner.force = flag.ok_or_else(bad)?,
                "confirm" => query.manner.confirm = Some(parse_duration(value).map_err(|_| bad())?),
                "expect" => query.manner.expect = Some(number()?),
                "from" => query.from = Some(number()?),
                "to" => query.to = Some(number()?),
                _ => return Err(bad()),
            }
        }
        if query.manner.confirm.is_some_and(|limit| !CONFIRM.contains(&limit)) {
            return Err(Refused::new(StatusCode::BAD_REQUEST, "confirm is 1s to 24h"));
        }
        Ok(query)
    }
}

/// Who asks, and how: the kernel's word for the first, the client's for the second.
fn origin(parts: &Parts, uid: Option<u32>) -> Result<Origin, Refused> {
    let header = |name: &str| -> Result<Option<String>, Refused> {
        let Some(value) = parts.headers.get(name) else { return Ok(None) };
        let bad = || {
            Refused::new(StatusCode::BAD_REQUEST, format!("the header {name} is not percent-encoded UTF-8"))
        };
        value.to_str().ok().and_then(percent_decode).map(Some).ok_or_else(bad)
    };
    let who = uid.map_or_else(|| Who { uid: None, name: "unknown".to_owned() }, Who::user);
    let how = header(COMMAND_HEADER)?.unwrap_or_else(|| format!("{} {}", parts.method, parts.uri.path()));
    Ok(Origin::new(who, &how, header(COMMENT_HEADER)?.as_deref()))
}

fn decode(text: &str) -> Result<String, Refused> {
    let bad = || Refused::new(StatusCode::BAD_REQUEST, format!("\"{text}\" is not percent-encoded UTF-8"));
    percent_decode(text).ok_or_else(bad)
}

fn understand<T: DeserializeOwned>(body: &[u8], expected: &str) -> Result<T, Refused> {
    api::understand(body).map_err(|error| {
        Refused::new(StatusCode::BAD_REQUEST, format!("the body is not understood: {error}; {expected}"))
    })
}

async fn read_body(body: Incoming) -> Result<Vec<u8>, Refused> {
    read_up_to(body, MAX_BODY_BYTES).await
}

async fn read_up_to(body: Incoming, most: usize) -> Result<Vec<u8>, Refused> {
    let too_large = || {
        let message = format!("the body is larger than {most} bytes");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    match timeout(REQUEST_LIMIT, Limited::new(body, most).collect()).await {
        Err(_) => Err(Refused::new(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive within 10 s; send it again",
        )),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => {
            Err(Refused::new(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}")))
        }
        Ok(Ok(collected)) => Ok(collected.to_bytes().to_vec()),
    }
}

/// Reads shared memory off this thread: with hundreds of pools that takes long enough to delay a change.
async fn status(daemon: &Daemon) -> Result<Status, Refused> {
    let (options, drift, notes, waiting, node) = {
        let engine = daemon.engine.lock().await;
        let notes = engine.history().trouble().map(str::to_owned).into_iter();
        let notes = notes.chain(daemon.git_trouble.borrow().clone()).collect();
        let waiting = engine.waiting().map(|confirm| status::Waiting {
            back_to: confirm.number,
            confirm_by_unix_ms: confirm.deadline_unix_ms,
        });
        (engine.options().clone(), engine.drift(), notes, waiting, engine.node())
    };
    let read = tokio::task::spawn_blocking(move || Status::read(&options.shm_dir, &options.instance));
    let mut status = read.await.map_err(|error| {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, format!("status could not be read: {error}"))
    })?;
    if let Some(log) = daemon.log.borrow().as_ref() {
        status.add_events(log);
    }
    let probed = daemon.health.borrow().as_ref().map(Health::listing);
    if let Some(probed) = probed {
        status.add_health(probed.await);
    }
    if let Some(exceptions) = &daemon.exceptions {
        status.add_exceptions(exceptions);
    }
    status.drift = Some(!drift.is_empty());
    status.drift_details = drift;
    status.node = Some(node.name().to_owned());
    status.notes = notes;
    status.waiting = waiting;
    Ok(status)
}
