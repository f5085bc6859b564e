//! Which backends answer? Active health checks, in a thread of their own so that neither they nor requests hold each other up.
//!
//! ```text
//! model ─ targets ─▶ driver (schedule, probes) ─ outbox ─▶ engine (set_health) ─▶ snapshot
//! ```
//!
//! What is found is never kept: a daemon that starts believes what the published snapshot says until it has probed again.

pub mod check;
mod driver;
mod interfaces;
pub mod listing;
mod outbox;
mod probe;
pub mod schedule;
pub mod targets;
mod tunnels;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::{Mutex, mpsc, oneshot};

use self::check::{BackendName, Target};
use self::driver::{Command, Driver};
use self::listing::Row;
use self::outbox::Outbox;
use self::tunnels::Tunnels;
use crate::compile::down::Down;
use crate::engine::{Engine, HealthChange};

/// The thread that probes. It ends with this value.
#[derive(Debug)]
pub struct Health {
    commands: mpsc::UnboundedSender<Command>,
    outbox: Arc<Outbox>,
    /// What was asked for last.
    targets: Vec<Target>,
}

impl Health {
    /// Starts probing `targets`; `down` is what the engine believes, `directory` the instance's shared memory.
    pub fn start(targets: Vec<Target>, down: &Down, directory: Option<PathBuf>) -> std::io::Result<Self> {
        allow_descriptors();
        let (commands, receiver) = mpsc::unbounded_channel();
        let outbox = Arc::new(Outbox::default());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let put = Arc::clone(&outbox);
        thread::Builder::new().name("weir-health".to_owned()).spawn(move || {
            let tunnels = Tunnels::open(directory.as_deref());
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, Driver::run(receiver, put, tunnels));
        })?;
        let mut health = Self { commands, outbox, targets: Vec::new() };
        health.send(targets, down);
        Ok(health)
    }

    /// Probes these from now on. What is known of targets that stay as they are stays known.
    pub fn set(&mut self, targets: Vec<Target>, down: &Down) {
        if targets != self.targets {
            self.send(targets, down);
        }
    }

    fn send(&mut self, targets: Vec<Target>, down: &Down) {
        self.targets.clone_from(&targets);
        let believed = down.iter().map(|(pool, backend, reason)| {
            (BackendName { pool: pool.into(), backend: backend.into() }, reason.to_owned())
        });
        // the thread ends only with this value
        drop(self.commands.send(Command::Set(targets, believed.collect())));
    }

    /// What is known of each target, where the thread answers.
    pub fn listing(&self) -> impl Future<Output = Vec<Row>> + use<> {
        let (answer, answered) = oneshot::channel();
        drop(self.commands.send(Command::List(answer)));
        async { answered.await.unwrap_or_default() }
    }

    /// A handle to wait for verdicts with.
    pub fn verdicts(&self) -> Verdicts {
        Verdicts(Arc::clone(&self.outbox))
    }
}

/// Descriptors that many hanging backends may take at once.
const DESCRIPTORS: u64 = 65_536;

/// As many descriptors as probes may want, or as many as this process may have.
fn allow_descriptors() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |maximum| maximum.min(DESCRIPTORS));
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::warn!("cannot allow {wanted} open files ({error}): many hanging backends may go unprobed");
    }
}

/// Verdicts that the engine has not heard of.
#[derive(Clone, Debug)]
pub struct Verdicts(Arc<Outbox>);

impl Verdicts {
    /// Ends when there are some.
    pub async fn wait(&self) {
        self.0.wait().await;
    }

    /// All of them: what came while the last were put in force goes into one generation.
    pub fn take(&self) -> Vec<HealthChange> {
        self.0.take()
    }

    /// They could not be put in force: they are there again for the next [`Self::take`].
    pub fn give_back(&self, changes: Vec<HealthChange>) {
        self.0.give_back(changes);
    }
}

/// How long to wait after verdicts could not be put in force.
const RETRY: Duration = Duration::from_millis(500);

/// Puts verdicts in force as they come, for ever. None waits for others: those that come while a generation is being
/// published are in the next one together.
pub async fn follow(engine: &Mutex<Engine>, verdicts: &Verdicts) {
    loop {
        verdicts.wait().await;
        let changes = verdicts.take();
        if changes.is_empty() {
            continue;
        }
        let done = engine.lock().await.set_health(&changes);
        if let Err(error) = done {
            tracing::error!("what health found could not be put in force, and will be tried again: {error}");
            tokio::time::sleep(RETRY).await;
            verdicts.give_back(changes);
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
