//! What happens on each request and each tick? The daemon's core: no sockets, no async.
//!
//! Every change goes one way: candidate state → compile → save → publish. A step that fails leaves the old state in force.

mod apply;
mod backend;
mod backup;
mod drain;
mod file;
mod health;
mod past;
mod restart;

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::changes::Origin;
use crate::changes::blast::Blast;
use crate::changes::difference::Differences;
use crate::changes::edit::EditError;
use crate::compile::down::Down;
use crate::compile::{self, CompileError, Compiled, TableCache};
use crate::diagnostic::{Report, Severity, Source};
use crate::history::History;
use crate::machine::Machine;
use crate::model::Model;
use crate::publish::{PublishError, Published, Snapshots, instance_directory};
use crate::retirement::QuietTimers;
use crate::state::{Admin, IndexError, State};
use crate::store::{Store, StoreError};
use crate::validate::{self, Files};

pub use self::apply::Manner;
pub use self::backup::{Backup, BackupBody};

/// Where everything of one instance is.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the instance.
    pub instance: String,
    /// The operator's file.
    pub config: PathBuf,
    /// State that survives.
    pub state_dir: PathBuf,
    /// Shared memory.
    pub shm_dir: PathBuf,
    /// CPUs for workers.
    pub machine: Machine,
}

/// Why the daemon can't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file does not pass.
    #[error("{name} has {} error{}", errors(reports), if errors(reports) == 1 { "" } else { "s" })]
    Config {
        /// Which file.
        name: String,
        /// What is wrong.
        reports: Vec<Report>,
    },
    /// The file can't be read.
    #[error("cannot read {}: {source}; name an existing file with --config", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// State.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Shared memory.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// Indices.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// No such backend.
    #[error("there is no backend {pool}/{backend}{}", suggestion.as_ref().map_or(String::new(), |s| format!("; did you mean {s}?")))]
    UnknownBackend {
        /// Pool.
        pool: String,
        /// Backend.
        backend: String,
        /// A near name.
        suggestion: Option<String>,
    },
    /// No such listener.
    #[error("there is no listener {name}{}", suggestion.as_ref().map_or(String::new(), |s| format!("; did you mean {s}?")))]
    UnknownListener {
        /// Its name.
        name: String,
        /// A near name.
        suggestion: Option<String>,
    },
    /// An edit that can't be made.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// An edit that can be made, but not by this argument.
    #[error("{argument}: {message}")]
    Argument {
        /// As it was given.
        argument: String,
        /// What is wrong with it, and what to do.
        message: String,
        /// All that is wrong with the configuration that it makes.
        reports: Vec<Report>,
    },
    /// A change that is not remembered.
    #[error("change {number} is not in history, which has {first} to {last}; weir history shows them")]
    UnknownChange {
        /// Its number.
        number: u64,
        /// The oldest that is remembered.
        first: u64,
        /// The newest.
        last: u64,
    },
    /// Nothing waits.
    #[error("no change waits to be confirmed")]
    NothingToConfirm,
    /// Somebody else was faster.
    #[error(
        "the running configuration is at change {found}, not {expected}: somebody changed it meanwhile; look at weir history and ask again"
    )]
    Outpaced {
        /// What the caller knew.
        expected: u64,
        /// What is in force.
        found: u64,
    },
    /// The operator's file is not the one that was applied.
    #[error("{} is not what was applied: it was edited since, or another file was applied; weir diff shows how it differs from what is in force, weir save --force overwrites it", path.display())]
    FileChanged {
        /// Which file.
        path: PathBuf,
    },
    /// The operator's file can't be written.
    #[error("cannot {action} {}: {source}; nothing was saved{}", path.display(), crate::store::remedy(source))]
    Write {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not a backup.
    #[error("this is no backup that can be used: {0}; nothing was changed")]
    Backup(String),
    /// A safeguard.
    #[error(
        "{pool}/{backend} is the last backend of its pool that takes new flows; make another ready first, or use --force"
    )]
    LastUsable {
        /// Pool.
        pool: String,
        /// Backend.
        backend: String,
    },
}

fn errors(reports: &[Report]) -> usize {
    crate::diagnostic::count(reports, Severity::Error)
}

/// What a change did.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// The generation in force; equal to the one before where nothing changed.
    pub generation: u64,
    /// What was written; `None` where nothing changed.
    pub published: Option<Published>,
    /// Warnings of the file.
    pub warnings: Vec<Report>,
    /// Changes that the running dataplane can't adopt.
    pub needs_restart: Vec<String>,
    /// What else went wrong, without keeping the change from being made.
    pub notes: Vec<String>,
    /// Number of the last change in history.
    pub number: u64,
    /// When it is taken back unless it is confirmed, in Unix milliseconds.
    pub confirm_by_unix_ms: Option<u64>,
    /// What it would do, where it was only tried.
    pub plan: Option<Plan>,
}

/// What a change would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In the words of the file.
    pub differences: Differences,
    /// To traffic.
    pub blast: Blast,
}

/// A runtime change of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChange {
    /// New weight.
    Weight(u16),
    /// New state.
    State(Admin),
}

/// Two texts, and how they differ.
#[derive(Debug)]
struct Compared {
    old: Arc<str>,
    new: Arc<str>,
    lines: Vec<String>,
}

/// What health found about one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChange {
    /// Pool.
    pub pool: String,
    /// Backend.
    pub backend: String,
    /// Whether it is down.
    pub down: bool,
    /// Why, for the log and the status.
    pub reason: String,
}

/// The daemon's core.
#[derive(Debug)]
pub struct Engine {
    options: Options,
    store: Store,
    state: State,
    model: Arc<Model>,
    cache: TableCache,
    /// What health found since this process began.
    down: Down,
    snapshots: Snapshots,
    quiet: QuietTimers,
    /// The last generation that [`Self::repair`] published or gave up.
    repaired: u64,
    history: History,
    /// A backup is being taken over: that is a change whatever it changes.
    restored: bool,
    /// A text was read since the last tick: that needed memory which is free now.
    is_swollen: bool,
    /// Who asks for the next change.
    origin: Option<Origin>,
    /// Texts that were compared last, and how they differ: for the status.
    compared: RefCell<Option<Compared>>,
}

fn check(
    text: &str,
    name: &str,
    machine: &Machine,
    files: &mut Files,
) -> Result<(Arc<Model>, Vec<Report>), EngineError> {
    let source = Source { name, text };
    let (model, diagnostics) = validate::load_with(source, machine, files);
    let reports = source.reports(&diagnostics);
    model
        .map(|model| (model.into(), reports.clone()))
        .ok_or(EngineError::Config { name: name.to_owned(), reports })
}

impl Engine {
    /// Takes over where the last daemon stopped, or starts with the file.
    pub fn start(options: Options) -> Result<Self, EngineError> {
        let snapshots = Snapshots::open(&instance_directory(&options.shm_dir, &options.instance))?;
        let mut store = Store::open(options.state_dir.join(&options.instance))?;
        let loaded = store.load()?;
        let is_first = loaded.is_none();
        let history = History::open(store.directory());
        let (text, name) = match &loaded {
            Some(state) => (state.config.clone(), "the applied configuration".to_owned()),
            None => {
                let path = options.config.clone();
                let text =
                    std::fs::read_to_string(&path).map_err(|source| EngineError::Read { path, source })?;
                (text.into(), options.config.display().to_string())
            }
        };
        // files that are gone since they were applied keep nobody from serving what they held
        let mut files = loaded.as_ref().map_or_else(Files::default, |state| Files::kept(&state.bodies));
        let (model, reports) = check(&text, &name, &options.machine, &mut files)?;
        for report in &reports {
            tracing::warn!("{}", report.render(false).trim_end());
        }
        let mut state = loaded.unwrap_or_default();
        if is_first {
            state.config = text;
            state.applied = state.config.clone();
        }
        for difference in validate::differences(&state.bodies) {
            tracing::warn!("{difference}");
        }
        state.bodies = files.into_bodies().into();
        if state.indices.pools.is_empty() && state.indices.listeners.is_empty() {
            crate::recover::take_over_indices(&snapshots, &mut state);
        }
        let down = crate::recover::take_over_health(&snapshots, &model);
        let mut engine = Self {
            options,
            store,
            state,
            model,
            cache: TableCache::default(),
            down,
            snapshots,
            quiet: QuietTimers::default(),
            repaired: 0,
            history,
            restored: false,
            is_swollen: true,
            origin: None,
            compared: RefCell::new(None),
        };
        engine.take_over_history(is_first);
        engine.resume()?;
        Ok(engine)
    }

    /// Publishes unless shared memory already has exactly this.
    fn resume(&mut self) -> Result<(), EngineError> {
        let published = self.snapshots.published();
        let mut state = self.state.clone();
        state.indices.assign(&self.model, state.generation.max(published) + 1)?;
        let compiled =
            compile::compile(&self.model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
        if published > 0 && self.snapshots.holds(&compiled) {
            state.generation = published;
            self.store.save(&state)?;
            self.state = state;
            self.snapshots.retire()?;
            tracing::info!("generation {published} is still in force");
            return Ok(());
        }
        self.commit(state, self.model.clone(), &compiled)?;
        Ok(())
    }

    /// Saves, then publishes as the next generation.
    fn commit(
        &mut self,
        mut state: State,
        model: Arc<Model>,
        compiled: &Compiled,
    ) -> Result<Published, EngineError> {
        state.generation = self.state.generation.max(self.snapshots.published()) + 1;
        self.keep(&mut state)?;
        let published = match self.snapshots.publish(compiled, state.generation) {
            Ok(published) => published,
            Err(error) => {
                self.keep_old();
                return Err(error.into());
            }
        };
        tracing::info!(
            "generation {}: {} of {} tables written",
            published.generation,
            published.tables_written,
            published.tables
        );
        self.adopt(state, model);
        Ok(published)
    }

    /// Publishes where the tables changed or their files are damaged, else only keeps the state.
    fn put_in_force(
        &mut self,
        mut state: State,
        model: Arc<Model>,
        compiled: &Compiled,
    ) -> Result<Option<Published>, EngineError> {
        if !self.snapshots.needs_nothing(compiled) {
            return self.commit(state, model, compiled).map(Some);
        }
        if state != self.state {
            self.keep(&mut state)?;
            self.adopt(state, model);
        }
        Ok(None)
    }

    /// Makes a state durable, with what history is to tell of it.
    fn keep(&mut self, state: &mut State) -> Result<(), EngineError> {
        self.record(state)?;
        self.store.save(state).map_err(|error| {
            self.keep_old();
            error.into()
        })
    }

    /// The state in force is what the next start finds, whatever came of a later one.
    fn keep_old(&mut self) {
        if let Err(error) = self.store.save(&self.state) {
            tracing::error!("the state on disk may be that of a change that failed: {error}");
        }
    }

    fn adopt(&mut self, state: State, model: Arc<Model>) {
        self.state = state;
        self.model = model;
        for entry in &self.state.pending {
            self.history.push(entry.clone());
        }
    }

    /// Once in a while: says that the daemon lives, lets go of what no flow holds, removes retired files.
    pub fn tick(&mut self, now: Instant) -> Result<(), EngineError> {
        if !self.snapshots.is_current() {
            tracing::warn!("the control page was removed by somebody: publishing again");
            self.snapshots = self.reopen()?;
            return self.resume();
        }
        self.snapshots.beat();
        self.tidy();
        if std::mem::take(&mut self.is_swollen) {
            weir_os::heap::trim();
        }
        self.expire(crate::changes::unix_ms())?;
        self.repair()?;
        if self.down.grow(now) {
            self.publish_again()?;
        }
        let mut indices = self.state.indices.clone_if_leaving();
        let Some(indices) = indices.as_mut() else {
            self.quiet = QuietTimers::default();
            self.snapshots.retire()?;
            return Ok(());
        };
        if self.quiet.release(indices, &self.snapshots, self.state.generation, now) {
            let state = State { indices: Arc::new(indices.clone()), ..self.state.clone() };
            let compiled =
                compile::compile(&self.model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
            self.put_in_force(state, self.model.clone(), &compiled)?;
        }
        self.snapshots.retire()?;
        Ok(())
    }

    /// Writes damaged files again, once for each generation that the dataplane refused as invalid.
    ///
    /// A repaired generation that is refused with all its files intact is left alone: another would be refused too.
    fn repair(&mut self) -> Result<(), EngineError> {
        let refused = self.snapshots.published();
        if !self.snapshots.is_refused_as_invalid() {
            return Ok(());
        }
        let state = self.state.clone();
        let compiled =
            compile::compile(&self.model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
        if self.repaired == refused {
            if !self.snapshots.holds(&compiled) {
                self.repaired = 0;
            }
            return Ok(());
        }
        tracing::warn!(
            "generation {refused} was refused as invalid: verifying its files and publishing again"
        );
        let published = self.commit(state, self.model.clone(), &compiled)?;
        self.repaired = published.generation;
        tracing::warn!(
            "generation {} replaces it; {} damaged tables were written again",
            published.generation,
            published.tables_written
        );
        Ok(())
    }

    fn reopen(&self) -> Result<Snapshots, EngineError> {
        Ok(Snapshots::open(&instance_directory(&self.options.shm_dir, &self.options.instance))?)
    }

    /// The generation in force.
    pub fn generation(&self) -> u64 {
        self.state.generation
    }

    /// The configuration in force.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The kept state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The writing end of shared memory.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Slot tables built in this process.
    pub fn slot_tables_built(&self) -> u64 {
        self.cache.slot_tables_built()
    }

    /// The options it was started with.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

/// How long a change may wait for the dataplane.
pub const ACK_LIMIT: Duration = Duration::from_secs(5);
