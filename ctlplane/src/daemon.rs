//! The daemon around the engine: socket, requests, ticks, signals. One thread; the engine is never shared.

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::access_log::AccessLog;
use crate::api::{
    Applied, BackendRequest, Backends, Failure, MAX_BODY_BYTES, Outcome, SCHEMA, percent_decode,
};
use crate::engine::{ACK_LIMIT, BackendChange, Change, Engine, EngineError, Options};
use crate::exception::{self, Exceptions};
use crate::explain;
use crate::health::listing::Listing;
use crate::health::targets::targets;
use crate::health::{self, Health};
use crate::publish::instance_directory;
use crate::socket::{Access, Groups, SocketError, Sockets, socket_path};
use crate::state::{BackendEntry, Phase};
use crate::status::Status;
use crate::supervisor;

/// How often the engine ticks: heartbeat, releases, retired files.
const TICK: Duration = Duration::from_millis(500);
/// Longest that a client may take to send a request's head, and that a connection may be idle: it holds a place.
const HEAD_LIMIT: Duration = Duration::from_secs(2);
/// Longest that a client may take to send a request's body.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Most connections at once; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 256;
/// How often acks are looked at while a request waits.
const ACK_POLL: Duration = Duration::from_millis(1);

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// It could not start.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Its sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No runtime or signal handler.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: Options, run_dir: &Path, groups: &Groups) -> Result<(), DaemonError> {
    // the engine holds the instance's lock, so a socket that is there after this is stale
    let engine = Engine::start(options)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(DaemonError::Runtime)?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, serve(engine, run_dir, groups))
}

/// What requests share. The daemon has one thread: nothing is borrowed over a wait.
struct Daemon {
    engine: Mutex<Engine>,
    /// Absent where its threads can't be started: traffic and requests go on without.
    log: RefCell<Option<AccessLog>>,
    /// Absent where its thread can't be started: the kernel's interfaces stay as they are.
    exceptions: Option<Exceptions>,
    /// Absent where its thread can't be started: backends stay as they are.
    health: RefCell<Option<Health>>,
}

impl Daemon {
    fn new(engine: Engine) -> Self {
        let options = engine.options();
        let directory = instance_directory(&options.shm_dir, &options.instance);
        let mut log = AccessLog::start(directory)
            .map_err(|error| tracing::error!("no access log and no changes of breakers: {error}"))
            .ok();
        if let Some(log) = &mut log {
            log.set(engine.model().access_log.as_ref());
        }
        let exceptions = Exceptions::start(exception::wanted(engine.model()))
            .map_err(|error| tracing::error!("the exception path is not kept in order: {error}"))
            .ok();
        let health = Health::start(targets(engine.model(), &engine.state().indices), engine.down())
            .map_err(|error| tracing::error!("no health checks: {error}"))
            .ok();
        Self { engine: Mutex::new(engine), log: RefCell::new(log), exceptions, health: RefCell::new(health) }
    }

    /// The access log, the kernel's interfaces and what is probed are as the configuration in force wants them.
    fn set_log(&self, engine: &Engine) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.set(engine.model().access_log.as_ref());
        }
        if let Some(exceptions) = &self.exceptions {
            exceptions.set(exception::wanted(engine.model()));
        }
        if let Some(health) = self.health.borrow_mut().as_mut() {
            health.set(targets(engine.model(), &engine.state().indices));
        }
    }

    fn reopen_log(&self) {
        if let Some(log) = self.log.borrow().as_ref() {
            log.reopen();
        }
    }
}

async fn serve(engine: Engine, run_dir: &Path, groups: &Groups) -> Result<(), DaemonError> {
    use tokio::signal::unix::{SignalKind, signal};
    let instance = engine.options().instance.clone();
    let sockets = Sockets::bind(run_dir, &instance, groups)?;
    let mut rotate = signal(SignalKind::user_defined1()).map_err(DaemonError::Runtime)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(DaemonError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(DaemonError::Runtime)?;
    let path = socket_path(run_dir, &instance);
    tracing::info!("generation {}, listening on {}", engine.generation(), path.display());
    supervisor::ready(&in_force(&engine));
    let daemon = Rc::new(Daemon::new(engine));
    let verdicts = daemon.health.borrow().as_ref().map(Health::verdicts);
    if let Some(verdicts) = verdicts {
        let daemon = daemon.clone();
        tokio::task::spawn_local(async move { health::follow(&daemon.engine, &verdicts).await });
    }
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let accept = async {
            let permit = connections.clone().acquire_owned().await;
            (permit, sockets.accept().await)
        };
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = rotate.recv() => daemon.reopen_log(),
            _ = ticks.tick() => {
                let mut engine = daemon.engine.lock().await;
                if let Err(error) = engine.tick(Instant::now()) {
                    tracing::error!("{error}");
                }
                supervisor::alive(&in_force(&engine));
            }
            (permit, accepted) = accept => match accepted {
                Ok((stream, access)) => {
                    let daemon = daemon.clone();
                    tokio::task::spawn_local(async move {
                        connection(daemon, stream, access).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    supervisor::stopping();
    let generation = daemon.engine.lock().await.generation();
    tracing::info!("stopping; the dataplane goes on with generation {generation}");
    if let Some(log) = daemon.log.take() {
        log.stop();
    }
    Ok(())
}

/// What the supervisor shows beside the daemon.
fn in_force(engine: &Engine) -> String {
    format!("generation {} in force", engine.generation())
}

async fn connection(daemon: Rc<Daemon>, stream: UnixStream, access: Access) {
    let service = hyper::service::service_fn(move |request| {
        let daemon = daemon.clone();
        async move { Ok::<_, Infallible>(answer(&daemon, request, access).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!("connection: {error}");
    }
}

/// An answer that is not a success.
struct Refused {
    status: StatusCode,
    failure: Failure,
}

impl Refused {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, failure: Failure { schema: SCHEMA, error: error.into(), diagnostics: Vec::new() } }
    }
}

impl From<EngineError> for Refused {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::Config { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            EngineError::UnknownBackend { .. } => StatusCode::NOT_FOUND,
            EngineError::LastUsable { .. } | EngineError::Index(_) => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut refused = Self::new(status, error.to_string());
        if let EngineError::Config { reports, .. } = error {
            refused.failure.diagnostics = reports;
        }
        refused
    }
}

type Answer = Response<Full<Bytes>>;

fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(body).unwrap_or_else(|_| b"{}".to_vec());
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

async fn answer(daemon: &Daemon, request: Request<Incoming>, access: Access) -> Answer {
    if access == Access::ReadOnly && !is_question(&request) {
        let message = format!(
            "{} {} would change something, and this socket only answers questions; use the other one, as a member of its group",
            request.method(),
            request.uri().path()
        );
        let refused = Refused::new(StatusCode::FORBIDDEN, message);
        return json(refused.status, &refused.failure);
    }
    match route(daemon, request).await {
        Ok(answer) => answer,
        Err(refused) => json(refused.status, &refused.failure),
    }
}

/// Whether a request leaves everything as it is.
fn is_question(request: &Request<Incoming>) -> bool {
    request.method() == Method::GET || matches!(request.uri().path(), "/v1/check" | "/v1/explain")
}

async fn route(daemon: &Daemon, request: Request<Incoming>) -> Result<Answer, Refused> {
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
            let dry_run = query.dry_run || *endpoint == "check";
            let text = String::from_utf8(read_body(body).await?).map_err(|_| {
                Refused::new(StatusCode::BAD_REQUEST, "the file is not UTF-8; save it as UTF-8")
            })?;
            apply(daemon, &text, &query.name, dry_run).await
        }
        (&Method::POST, ["v1", "explain"]) => {
            let request =
                serde_json::from_slice::<explain::Request>(&read_body(body).await?).map_err(|error| {
                    let message =
                        format!("the body is not understood: {error}; send what weir explain request sends");
                    Refused::new(StatusCode::BAD_REQUEST, message)
                })?;
            let engine = engine.lock().await;
            let log = daemon.log.borrow();
            let open = |pool: &str, backend: &str| {
                let entries = &engine.state().indices.pools.get(pool)?.backends;
                let is = |entry: &&BackendEntry| entry.name == backend && entry.phase == Phase::Active;
                let breaker = log.as_ref()?.breaker(entries.iter().find(is)?.index)?;
                (breaker.state == "open").then(|| format!("its breaker is open: {}", breaker.reason))
            };
            explain::explain(engine.model(), &engine.state().overrides, &open, &request)
                .map(|explanation| json(StatusCode::OK, &explanation))
                .map_err(|error| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))
        }
        (&Method::POST, ["v1", "backends", pool, backend]) => {
            let decode = |text: &str| {
                percent_decode(text).ok_or_else(|| {
                    Refused::new(StatusCode::BAD_REQUEST, format!("\"{text}\" is not percent-encoded UTF-8"))
                })
            };
            let (pool, backend) = (decode(pool)?, decode(backend)?);
            let body = read_body(body).await?;
            // through a map: serde would read an array as the fields in order
            let object: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_slice(&body);
            let request = object.and_then(|map| serde_json::from_value::<BackendRequest>(map.into()));
            let request = request.map_err(|error| {
                let expected = r#"send {"weight": 0..65535} or {"state": "ready" | "drain" | "maint"}"#;
                Refused::new(
                    StatusCode::BAD_REQUEST,
                    format!("the body is not understood: {error}; {expected}"),
                )
            })?;
            set_backend(engine, &pool, &backend, &request).await
        }
        (
            _,
            ["v1", "status" | "health" | "backends" | "apply" | "check" | "explain"]
            | ["v1", "backends", _, _],
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

struct Query {
    name: String,
    dry_run: bool,
}

impl Query {
    fn parse(text: &str) -> Result<Self, Refused> {
        let mut query = Self { name: "weir.toml".to_owned(), dry_run: false };
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = || Refused::new(StatusCode::BAD_REQUEST, format!("the query {pair} is not understood"));
            match key {
                "name" => query.name = percent_decode(value).ok_or_else(bad)?,
                "dry_run" if matches!(value, "" | "true" | "1") => query.dry_run = true,
                "dry_run" if matches!(value, "false" | "0") => {}
                _ => return Err(bad()),
            }
        }
        Ok(query)
    }
}

async fn read_body(body: Incoming) -> Result<Vec<u8>, Refused> {
    let too_large = || {
        let message = format!("the body is larger than {MAX_BODY_BYTES} bytes");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    match timeout(REQUEST_LIMIT, Limited::new(body, MAX_BODY_BYTES).collect()).await {
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
    let (options, drift) = {
        let engine = daemon.engine.lock().await;
        (engine.options().clone(), engine.drift())
    };
    let read = tokio::task::spawn_blocking(move || Status::read(&options.shm_dir, &options.instance));
    let mut status = read.await.map_err(|error| {
        Refused::new(StatusCode::INTERNAL_SERVER_ERROR, format!("status could not be read: {error}"))
    })?;
    if let Some(log) = daemon.log.borrow().as_ref() {
        status.add_events(log);
    }
    if let Some(exceptions) = &daemon.exceptions {
        status.add_exceptions(exceptions);
    }
    status.drift = Some(!drift.is_empty());
    status.drift_details = drift;
    Ok(status)
}

async fn apply(daemon: &Daemon, text: &str, name: &str, dry_run: bool) -> Result<Answer, Refused> {
    let change = {
        let mut engine = daemon.engine.lock().await;
        if dry_run {
            engine.dry_run(text, name)?
        } else {
            let change = engine.apply(text, name)?;
            daemon.set_log(&engine);
            change
        }
    };
    finish(&daemon.engine, change, dry_run).await
}

async fn set_backend(
    engine: &Mutex<Engine>,
    pool: &str,
    backend: &str,
    request: &BackendRequest,
) -> Result<Answer, Refused> {
    let changes: Vec<BackendChange> = request
        .weight
        .map(BackendChange::Weight)
        .into_iter()
        .chain(request.state.map(BackendChange::State))
        .collect();
    if changes.is_empty() {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "the body changes nothing; send weight, state or both",
        ));
    }
    let change = engine.lock().await.set_backend(pool, backend, &changes, request.force)?;
    finish(engine, change, false).await
}

/// Waits for the dataplane and tells what became of the change.
async fn finish(engine: &Mutex<Engine>, change: Change, dry_run: bool) -> Result<Answer, Refused> {
    let outcome = match (dry_run, &change.published) {
        (true, _) => Outcome::DryRun,
        (false, None) => unchanged(engine, change.generation).await,
        (false, Some(_)) => wait_for_acks(engine, change.generation).await,
    };
    let applied = Applied {
        schema: SCHEMA,
        generation: change.generation,
        changed: change.published.is_some(),
        tables_written: change.published.map_or(0, |published| published.tables_written),
        outcome,
        diagnostics: change.warnings,
        needs_restart: change.needs_restart,
    };
    Ok(json(StatusCode::OK, &applied))
}

/// A generation that stands refused is not in force, changed or not.
async fn unchanged(engine: &Mutex<Engine>, generation: u64) -> Outcome {
    let dataplane = engine.lock().await.snapshots().dataplane();
    match dataplane.refusal.filter(|refusal| refusal.generation >= generation) {
        None => Outcome::Unchanged,
        Some(refusal) if dataplane.is_alive => Outcome::Refused { text: refusal.text },
        Some(_) => Outcome::NoDataplane,
    }
}

async fn wait_for_acks(engine: &Mutex<Engine>, generation: u64) -> Outcome {
    let started = Instant::now();
    loop {
        let dataplane = engine.lock().await.snapshots().dataplane();
        if !dataplane.is_alive {
            return Outcome::NoDataplane;
        }
        let workers = dataplane.workers.len();
        let acked = dataplane.workers.iter().filter(|worker| worker.acked_generation >= generation).count();
        if workers > 0 && acked == workers {
            let microseconds = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            return Outcome::Acked { workers, microseconds };
        }
        if let Some(refusal) = dataplane.refusal
            && refusal.generation >= generation
        {
            return Outcome::Refused { text: refusal.text };
        }
        if started.elapsed() > ACK_LIMIT {
            return Outcome::Pending { acked, workers };
        }
        tokio::time::sleep(ACK_POLL).await;
    }
}
