//! What did the workers tell? Exchanges become lines of the access log, changes of breakers are logged and kept for `weir status`.
//!
//! ```text
//! event rings ─ reader ─┬─ exchange ─ format (+ names) ─▶ chunks ─ sink ─▶ file or stdout
//!   one per worker      └─ breaker ─▶ breakers ─▶ status
//! ```
//!
//! Two threads beside the daemon's, which never waits for them. The reader never waits for the sink either: a sink that can't keep up, or
//! can't write, costs lines, which are counted. A reader that can't keep up leaves rings full, and the workers count that.

mod breakers;
mod escape;
pub mod format;
mod names;
mod reader;
mod sink;

pub(crate) use self::format::format_time;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::breakers::Breakers;
pub use self::breakers::{BackendBreaker, WorkerBreaker};
pub use self::format::{Field, Format, FormatError};
pub use self::names::Names;
use self::reader::Reader;
use self::sink::Sink;

/// Longest that [`AccessLog::stop`] waits for the last lines.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Where lines go, and how they look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where they go.
    pub target: Target,
    /// How they look.
    pub format: Format,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, made where it is missing and appended to.
    File(PathBuf),
}

impl Target {
    /// `-` is standard output.
    pub fn parse(text: &str) -> Self {
        if text == "-" { Self::Stdout } else { Self::File(text.into()) }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => formatter.write_str("standard output"),
            Self::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// How the log is, for `weir status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Where lines go; absent where no access log is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Lines written since the daemon's start.
    pub written: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Lines that were dropped because the target could not keep up.
    pub dropped_slow: u64,
    /// Lines that were dropped because the target could not be opened or written.
    pub dropped_error: u64,
    /// Why it can't be written now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Times that it was opened again: rotation.
    pub reopened: u64,
    /// Records that made no sense, and rings that had to be begun anew.
    pub damaged: u64,
    /// Records that found a worker's ring full, since it was made.
    pub refused: u64,
}

/// Numbers that the threads keep.
#[derive(Debug, Default)]
struct Shared {
    written: AtomicU64,
    bytes: AtomicU64,
    dropped_slow: AtomicU64,
    dropped_error: AtomicU64,
    reopened: AtomicU64,
    damaged: AtomicU64,
    refused: AtomicU64,
    /// Rises with each wish to open the file again.
    reopen: AtomicU64,
    target: Mutex<Option<String>>,
    error: Mutex<Option<String>>,
    breakers: Mutex<Breakers>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // what is inside is replaced as a whole, and good whoever panicked
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn add(counter: &AtomicU64, by: u64) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

/// What the reader is told.
#[derive(Debug)]
enum Order {
    Set(Option<Settings>),
    Stop,
}

/// The log of an instance: its threads.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    orders: mpsc::Sender<Order>,
    set: Option<Settings>,
    ended: mpsc::Receiver<()>,
    threads: Vec<JoinHandle<()>>,
}

impl AccessLog {
    /// Starts reading the rings of the instance whose directory in shared memory this is.
    pub fn start(directory: PathBuf) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (orders, inbox) = mpsc::channel();
        let (chunks, to_write) = mpsc::sync_channel(sink::QUEUE);
        let (end, ended) = mpsc::channel();
        let sink = Sink::new(Arc::clone(&shared), to_write);
        let reader = Reader::new(directory, Arc::clone(&shared), inbox, chunks);
        let spawn = |name: &str, body: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(body)
        };
        let threads = vec![
            spawn(
                "access-log",
                Box::new(move || {
                    sink.run();
                    // nobody may be there to hear it
                    let _ = end.send(());
                }),
            )?,
            spawn("events", Box::new(move || reader.run()))?,
        ];
        Ok(Self { shared, orders, set: None, ended, threads })
    }

    /// What holds from the next event on; `None`: no access log.
    pub fn set(&mut self, settings: Option<&Settings>) {
        if self.set.as_ref() != settings {
            self.set = settings.cloned();
            // a reader that is gone has said why
            let _ = self.orders.send(Order::Set(self.set.clone()));
        }
    }

    /// Opens the file again: somebody has moved it away.
    pub fn reopen(&self) {
        Shared::add(&self.shared.reopen, 1);
    }

    /// How it is.
    pub fn report(&self) -> Report {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let shared = &self.shared;
        Report {
            target: locked(&shared.target).clone(),
            written: load(&shared.written),
            bytes: load(&shared.bytes),
            dropped_slow: load(&shared.dropped_slow),
            dropped_error: load(&shared.dropped_error),
            error: locked(&shared.error).clone(),
            reopened: load(&shared.reopened),
            damaged: load(&shared.damaged),
            refused: load(&shared.refused),
        }
    }

    /// The breakers of a backend that have ever changed.
    pub fn breaker(&self, backend: u32) -> Option<BackendBreaker> {
        locked(&self.shared.breakers).of(backend)
    }

    /// Writes what was told so far and ends; a target that blocks is waited for a second at most.
    pub fn stop(self) {
        let _ = self.orders.send(Order::Stop);
        if self.ended.recv_timeout(STOP_LIMIT).is_ok() {
            for thread in self.threads {
                // a panic has been printed already
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests;
