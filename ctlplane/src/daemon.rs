//! The daemon around the engine: socket, requests, ticks, signals. One thread; the engine is never shared.

mod changes;
mod requests;

use std::cell::RefCell;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Semaphore};

use crate::access_log::AccessLog;
use crate::announcements;
use crate::changes::{Origin, Who};
use crate::engine::{Engine, EngineError, Manner, Options};
use crate::exception::{self, Exceptions};
use crate::git;
use crate::health::targets::targets;
use crate::health::{self, Health};
use crate::publish::instance_directory;
use crate::socket::{Access, Groups, SocketError, Sockets, socket_path};
use crate::state::Admin;
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

/// Whether it is a query that requests may have: for those who try what it must refuse.
pub fn is_query(text: &str) -> bool {
    requests::Query::parse(text).is_ok()
}

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
    /// The operator's file.
    config: PathBuf,
    /// The node changes its state once at a time, for the network is told about it.
    node: Mutex<()>,
    /// Why the last commit of that file failed.
    git_trouble: RefCell<Option<String>>,
}

impl Daemon {
    fn new(engine: Engine) -> Self {
        let options = engine.options();
        let directory = instance_directory(&options.shm_dir, &options.instance);
        let mut log = AccessLog::start(directory.clone())
            .map_err(|error| tracing::error!("no access log and no changes of breakers: {error}"))
            .ok();
        if let Some(log) = &mut log {
            log.set(engine.model().access_log.as_ref());
        }
        let exceptions = Exceptions::start(exception::wanted(engine.model()))
            .map_err(|error| tracing::error!("the exception path is not kept in order: {error}"))
            .ok();
        let found = targets(engine.model(), &engine.state().indices);
        let health = Health::start(found, engine.down(), Some(directory))
            .map_err(|error| tracing::error!("no health checks: {error}"))
            .ok();
        Self {
            config: engine.options().config.clone(),
            engine: Mutex::new(engine),
            log: RefCell::new(log),
            exceptions,
            health: RefCell::new(health),
            node: Mutex::new(()),
            git_trouble: RefCell::new(None),
        }
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
            health.set(targets(engine.model(), &engine.state().indices), engine.down());
        }
    }

    /// Tells the network whether traffic may come; what went wrong.
    async fn tell(&self, may_come: bool) -> Option<String> {
        let announcements = {
            let engine = self.engine.lock().await;
            announcements::of(engine.model(), &engine.options().instance)
        };
        let tell = move || if may_come { announcements.announce() } else { announcements.withdraw() };
        let failed = match tokio::task::spawn_blocking(tell).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!("{failed}");
        Some(failed)
    }

    /// A daemon that died while the network was told may not have told it.
    async fn tell_again(&self) {
        let _alone = self.node.lock().await;
        if self.engine.lock().await.node() != Admin::Ready {
            tracing::warn!("the node is drained; weir ready takes it back");
            self.tell(false).await;
        }
    }

    /// Commits the operator's file to its git work tree, where that is wanted. A change that is in force is not held up: a
    /// failure is a warning.
    async fn commit_file(&self, origin: Origin) {
        let engine = self.engine.lock().await;
        if !engine.model().control.git {
            *self.git_trouble.borrow_mut() = None;
            return;
        }
        let (file, applied) = (self.config.clone(), engine.state().applied.clone());
        let number = engine.state().number;
        drop(engine);
        let commit = move || git::commit(&file, &applied, &origin, number);
        let failed = match tokio::task::spawn_blocking(commit).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(failed) = &failed {
            tracing::warn!("{failed}");
        }
        *self.git_trouble.borrow_mut() = failed;
    }

    /// Reads the operator's file again, as `weir apply` does.
    async fn reload(&self) {
        let mut engine = self.engine.lock().await;
        let origin = Origin::new(Who::daemon(), "SIGHUP", None);
        engine.attribute(origin.clone());
        match engine.apply_file(&Manner::default()) {
            Ok(change) => {
                tracing::info!("{} was read again: generation {}", self.config.display(), change.generation);
                self.set_log(&engine);
                drop(engine);
                self.commit_file(origin).await;
            }
            Err(error) => {
                if let EngineError::Config { reports, .. } = &error {
                    tracing::error!("{}", crate::diagnostic::render(reports, false).trim_end());
                }
                tracing::error!("{error}; the configuration in force stays");
            }
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
    let mut reload = signal(SignalKind::hangup()).map_err(DaemonError::Runtime)?;
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
    {
        let daemon = daemon.clone();
        tokio::task::spawn_local(async move { daemon.tell_again().await });
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
            _ = reload.recv() => {
                let daemon = daemon.clone();
                tokio::task::spawn_local(async move { daemon.reload().await });
            }
            _ = ticks.tick() => {
                let mut engine = daemon.engine.lock().await;
                let before = engine.state().number;
                if let Err(error) = engine.tick(Instant::now()) {
                    tracing::error!("{error}");
                }
                // what nobody confirmed was taken back
                if engine.state().number != before {
                    daemon.set_log(&engine);
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
    let uid = stream.peer_cred().ok().map(|peer| peer.uid());
    let service = hyper::service::service_fn(move |request| {
        let daemon = daemon.clone();
        async move { Ok::<_, Infallible>(requests::answer(&daemon, request, access, uid).await) }
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
