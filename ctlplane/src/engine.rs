//! What happens on each request and each tick? The daemon's core: no sockets, no async.
//!
//! Every change goes one way: candidate state → compile → save → publish. A step that fails leaves the old state in force.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_abi::record::AdminState;

use crate::compile::down::Down;
use crate::compile::{self, CompileError, Compiled, TableCache};
use crate::diagnostic::{Report, Severity, Source};
use crate::machine::Machine;
use crate::model::{Model, Node, Port};
use crate::publish::{PublishError, Published, Snapshots, instance_directory};
use crate::retirement::QuietTimers;
use crate::state::{Admin, IndexError, Override, State, reconcile_overrides};
use crate::store::{Store, StoreError};
use crate::validate::{self, Files};

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
#[derive(Clone, Debug)]
pub struct Change {
    /// The generation in force; equal to the one before where nothing changed.
    pub generation: u64,
    /// What was written; `None` where nothing changed.
    pub published: Option<Published>,
    /// Warnings of the file.
    pub warnings: Vec<Report>,
    /// Changes that the running dataplane can't adopt.
    pub needs_restart: Vec<String>,
}

/// A runtime change of one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChange {
    /// New weight.
    Weight(u16),
    /// New state.
    State(Admin),
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
    model: Model,
    cache: TableCache,
    /// What health found since this process began.
    down: Down,
    snapshots: Snapshots,
    quiet: QuietTimers,
    /// The last generation that [`Self::repair`] published or gave up.
    repaired: u64,
}

fn check(
    text: &str,
    name: &str,
    machine: &Machine,
    files: &mut Files,
) -> Result<(Model, Vec<Report>), EngineError> {
    let source = Source { name, text };
    let (model, diagnostics) = validate::load_with(source, machine, files);
    let reports = source.reports(&diagnostics);
    model.map(|model| (model, reports.clone())).ok_or(EngineError::Config { name: name.to_owned(), reports })
}

impl Engine {
    /// Takes over where the last daemon stopped, or starts with the file.
    pub fn start(options: Options) -> Result<Self, EngineError> {
        let snapshots = Snapshots::open(&instance_directory(&options.shm_dir, &options.instance))?;
        let mut store = Store::open(options.state_dir.join(&options.instance))?;
        let loaded = store.load()?;
        let (text, name) = match &loaded {
            Some(state) => (state.config.to_string(), "the applied configuration".to_owned()),
            None => {
                let path = options.config.clone();
                let text =
                    std::fs::read_to_string(&path).map_err(|source| EngineError::Read { path, source })?;
                (text, options.config.display().to_string())
            }
        };
        // files that are gone since they were applied keep nobody from serving what they held
        let mut files = loaded.as_ref().map_or_else(Files::default, |state| Files::kept(&state.bodies));
        let (model, reports) = check(&text, &name, &options.machine, &mut files)?;
        for report in &reports {
            tracing::warn!("{}", report.render(false).trim_end());
        }
        let mut state = loaded.unwrap_or_default();
        state.config = text.into();
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
        };
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
        model: Model,
        compiled: &Compiled,
    ) -> Result<Published, EngineError> {
        state.generation = self.state.generation.max(self.snapshots.published()) + 1;
        self.store.save(&state)?;
        let published = self.snapshots.publish(compiled, state.generation)?;
        tracing::info!(
            "generation {}: {} of {} tables written",
            published.generation,
            published.tables_written,
            published.tables
        );
        self.state = state;
        self.model = model;
        Ok(published)
    }

    /// Checks `text` and puts it in force.
    pub fn apply(&mut self, text: &str, name: &str) -> Result<Change, EngineError> {
        self.apply_or_try(text, name, false)
    }

    /// What [`Self::apply`] would do, without doing it.
    pub fn dry_run(&mut self, text: &str, name: &str) -> Result<Change, EngineError> {
        self.apply_or_try(text, name, true)
    }

    fn apply_or_try(&mut self, text: &str, name: &str, dry_run: bool) -> Result<Change, EngineError> {
        let mut files = Files::default();
        let (model, warnings) = check(text, name, &self.options.machine, &mut files)?;
        let mut state = self.state.clone();
        state.config = text.into();
        state.bodies = files.into_bodies().into();
        reconcile_overrides(&mut state.overrides, Some(&self.model), &model);
        state.indices.assign(&model, self.snapshots.published().max(state.generation) + 1)?;
        let needs_restart = if self.snapshots.dataplane().is_alive {
            static_differences(&self.model.node, &model.node)
        } else {
            Vec::new()
        };
        if dry_run {
            compile::compile(&model, &state.overrides, &self.down, &state.indices, &mut self.cache.clone())?;
            return Ok(Change { generation: self.generation(), published: None, warnings, needs_restart });
        }
        let compiled =
            compile::compile(&model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
        let published = self.put_in_force(state, model, &compiled)?;
        Ok(Change { generation: self.generation(), published, warnings, needs_restart })
    }

    /// Publishes where the tables changed or their files are damaged, else only keeps the state.
    fn put_in_force(
        &mut self,
        state: State,
        model: Model,
        compiled: &Compiled,
    ) -> Result<Option<Published>, EngineError> {
        if !self.snapshots.needs_nothing(compiled) {
            return self.commit(state, model, compiled).map(Some);
        }
        self.store.save(&state)?;
        self.state = state;
        self.model = model;
        Ok(None)
    }

    /// Changes one backend at run time.
    pub fn set_backend(
        &mut self,
        pool: &str,
        backend: &str,
        changes: &[BackendChange],
        force: bool,
    ) -> Result<Change, EngineError> {
        let configured = self
            .model
            .pools
            .iter()
            .find(|p| p.name == pool)
            .and_then(|p| p.backends.iter().find(|b| b.name == backend).cloned())
            .ok_or_else(|| self.unknown_backend(pool, backend))?;
        let mut state = self.state.clone();
        let entry =
            state.overrides.entry(pool.to_owned()).or_default().entry(backend.to_owned()).or_default();
        for change in changes {
            match *change {
                BackendChange::Weight(weight) => {
                    entry.weight = Some(weight).filter(|weight| *weight != configured.weight);
                }
                BackendChange::State(admin) => {
                    entry.state = Some(admin).filter(|admin| AdminState::from(*admin) != configured.state);
                }
            }
        }
        prune(&mut state.overrides, pool);
        let takes_flows = |state: &State, name: &str| {
            let set = state.overrides.get(pool).and_then(|backends| backends.get(name));
            let file = self.model.pools.iter().find(|p| p.name == pool);
            let file = file.and_then(|p| p.backends.iter().find(|b| b.name == name));
            file.is_some_and(|file| {
                let (weight, admin) = compile::effective(file, set);
                weight > 0 && admin == AdminState::Ready
            })
        };
        let names = self.model.pools.iter().filter(|p| p.name == pool).flat_map(|p| &p.backends);
        let left = names.filter(|b| takes_flows(&state, &b.name)).count();
        if left == 0 && takes_flows(&self.state, backend) && !force {
            return Err(EngineError::LastUsable { pool: pool.to_owned(), backend: backend.to_owned() });
        }
        let compiled =
            compile::compile(&self.model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
        let published = self.put_in_force(state, self.model.clone(), &compiled)?;
        Ok(Change {
            generation: self.generation(),
            published,
            warnings: Vec::new(),
            needs_restart: Vec::new(),
        })
    }

    /// Takes over what health found, all of it as one generation. It is in force until the daemon ends and is never kept;
    /// what is said of a backend that is not configured has no effect.
    pub fn set_health(&mut self, changes: &[HealthChange]) -> Result<Change, EngineError> {
        let before = self.down.clone();
        for HealthChange { pool, backend, down, reason } in changes {
            let of_pool = self.down.entry(pool.clone()).or_default();
            let was = if *down {
                of_pool.insert(backend.clone(), reason.clone()).is_some()
            } else {
                of_pool.remove(backend).is_some()
            };
            if was != *down {
                let word = if *down { "down" } else { "up" };
                tracing::info!("{pool}/{backend} is {word}: {reason}");
            }
        }
        self.down.retain(|_, backends| !backends.is_empty());
        self.publish_again().inspect_err(|_| self.down = before)
    }

    /// What health found: reasons by pool and backend.
    pub fn down(&self) -> &Down {
        &self.down
    }

    /// Compiles the state as it is and puts that in force where it differs.
    fn publish_again(&mut self) -> Result<Change, EngineError> {
        let State { overrides, indices, .. } = &self.state;
        let compiled = compile::compile(&self.model, overrides, &self.down, indices, &mut self.cache)?;
        let published = if self.snapshots.needs_nothing(&compiled) {
            None
        } else {
            // nothing of it has to survive: no disk is waited for
            let generation = self.state.generation.max(self.snapshots.published()) + 1;
            let published = self.snapshots.publish(&compiled, generation)?;
            self.state.generation = generation;
            Some(published)
        };
        Ok(Change {
            generation: self.generation(),
            published,
            warnings: Vec::new(),
            needs_restart: Vec::new(),
        })
    }

    fn unknown_backend(&self, pool: &str, backend: &str) -> EngineError {
        let wanted = format!("{pool}/{backend}");
        let all: Vec<String> = self
            .model
            .pools
            .iter()
            .flat_map(|p| p.backends.iter().map(move |b| format!("{}/{}", p.name, b.name)))
            .collect();
        let suggestion = crate::diagnostic::closest(&wanted, all.iter().map(String::as_str));
        EngineError::UnknownBackend {
            pool: pool.to_owned(),
            backend: backend.to_owned(),
            suggestion: suggestion.map(str::to_owned),
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
        self.repair()?;
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
    pub fn model(&self) -> &Model {
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

    /// How what is in force differs from the operator's file.
    pub fn drift(&self) -> Vec<String> {
        let mut drift = Vec::new();
        match std::fs::read_to_string(&self.options.config) {
            Ok(text) if *text == *self.state.config => {}
            Ok(_) => drift.push(format!(
                "{} differs from the applied configuration; weir apply puts it in force",
                self.options.config.display()
            )),
            Err(error) => drift.push(format!("{} cannot be read: {error}", self.options.config.display())),
        }
        drift.extend(validate::differences(&self.state.bodies));
        for (pool, backends) in &self.state.overrides {
            for (backend, Override { weight, state }) in backends {
                let weight = weight.map(|weight| format!("weight {weight}"));
                let state = state.map(|state| format!("state {}", state.name()));
                let set: Vec<String> = weight.into_iter().chain(state).collect();
                drift.push(format!("{pool}/{backend} was set to {} at run time", set.join(", ")));
            }
        }
        drift
    }

    /// The options it was started with.
    pub fn options(&self) -> &Options {
        &self.options
    }
}

fn prune(overrides: &mut crate::state::Overrides, pool: &str) {
    if let Some(backends) = overrides.get_mut(pool) {
        backends.retain(|_, entry| *entry != Override::default());
        if backends.is_empty() {
            overrides.remove(pool);
        }
    }
}

/// What a running dataplane can't change.
fn static_differences(old: &Node, new: &Node) -> Vec<String> {
    let mut list = Vec::new();
    let mut compare = |what: &str, old: String, new: String| {
        if old != new {
            list.push(format!("{what}: {old} to {new}"));
        }
    };
    let cpus = |cpus: &[u16]| {
        let names: Vec<String> = cpus
            .iter()
            .map(|cpu| if *cpu == u16::MAX { "any".to_owned() } else { cpu.to_string() })
            .collect();
        format!("CPUs {}", names.join(", "))
    };
    let idle = |adaptive: bool| if adaptive { "adaptive" } else { "spin" };
    compare("workers", cpus(&old.worker_cpus), cpus(&new.worker_cpus));
    compare("idle", idle(old.adaptive).to_owned(), idle(new.adaptive).to_owned());
    compare("flow_table.ipv4", old.flows_ipv4.to_string(), new.flows_ipv4.to_string());
    compare("flow_table.ipv6", old.flows_ipv6.to_string(), new.flows_ipv6.to_string());
    compare("buffers", or_default(old.buffers), or_default(new.buffers));
    compare("buffer_bytes", or_default(old.buffer_bytes), or_default(new.buffer_bytes));
    compare("max_backends", old.max_backends.to_string(), new.max_backends.to_string());
    compare("tcp_connections", old.tcp_connections.to_string(), new.tcp_connections.to_string());
    port_differences(&old.ports, &new.ports, &mut compare);
    list
}

/// Each field of each port that differs; ports are told apart by name.
fn port_differences(old: &[Port], new: &[Port], compare: &mut impl FnMut(&str, String, String)) {
    let named = |ports: &[Port]| ports.iter().map(|port| port.name.clone()).collect::<Vec<_>>().join(", ");
    let none = |names: String| if names.is_empty() { "none".to_owned() } else { names };
    compare("ports", none(named(old)), none(named(new)));
    for new in new {
        let Some(old) = old.iter().find(|port| port.name == new.name) else { continue };
        let mut field = |field: &str, old: String, new_value: String| {
            compare(&format!("port {}: {field}", new.name), old, new_value);
        };
        field("device", old.device.clone(), new.device.clone());
        field("mtu", old.mtu.to_string(), new.mtu.to_string());
        field("queues", or_default(old.queues.into()), or_default(new.queues.into()));
        let exception = |port: &Port| port.exception.clone().unwrap_or_else(|| "off".to_owned());
        field("exception", exception(old), exception(new));
        field("descriptors", or_default(old.descriptors.into()), or_default(new.descriptors.into()));
    }
}

fn or_default(number: u32) -> String {
    if number == 0 { "default".to_owned() } else { number.to_string() }
}

/// How long a change may wait for the dataplane.
pub const ACK_LIMIT: Duration = Duration::from_secs(5);
