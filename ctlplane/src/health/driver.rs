//! The loop of the probing thread: lets probes out when they are due, hands what they find to the schedule, tells what changed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::check::{BackendName, Target};
use super::listing::Row;
use super::outbox::Outbox;
use super::probe::{Connectors, Outcome, Tools, probe};
use super::schedule::{Ended, Schedule, Standing, TargetId};
use super::tunnels::Tunnels;

/// Commands that run at once; more wait, within their timeout.
const MAX_COMMANDS: usize = 32;
/// Between two warnings that probes can't be made.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// When nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

/// What the daemon wants of the thread.
#[derive(Debug)]
pub(super) enum Command {
    /// Probe these; what the engine believes of those that are new.
    Set(Vec<Target>, Believed),
    /// Tell what is known.
    List(oneshot::Sender<Vec<Row>>),
}

/// Who is down, and why.
pub(super) type Believed = BTreeMap<BackendName, String>;

/// A target and what is known of it.
struct Entry {
    target: Rc<Target>,
    tls: Option<Arc<Result<TlsConnector, String>>>,
    /// What the engine was told, or believed before.
    down: bool,
    reason: String,
    since_unix_ms: u64,
    last: Option<Last>,
    probes: u64,
    failures: u64,
}

/// The last probe.
struct Last {
    result: Outcome,
    unix_ms: u64,
    took: Duration,
}

/// All that the thread has.
pub(super) struct Driver {
    origin: Instant,
    schedule: Schedule,
    names: BTreeMap<BackendName, TargetId>,
    entries: HashMap<TargetId, Entry>,
    outbox: Arc<Outbox>,
    tools: Rc<Tools>,
    /// The loop sleeps until then.
    sleeps_until_us: u64,
    warned: Option<Instant>,
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Driver {
    /// Runs until the daemon hangs up.
    pub(super) async fn run(
        mut commands: mpsc::UnboundedReceiver<Command>,
        outbox: Arc<Outbox>,
        tunnels: Tunnels,
    ) {
        let tools = Tools {
            interfaces: super::interfaces::Interfaces::default(),
            tunnels: Rc::new(tunnels),
            commands: Semaphore::new(MAX_COMMANDS),
        };
        let driver = Rc::new(RefCell::new(Self {
            origin: Instant::now(),
            // phases are what matters; the jitter of two nodes must not be alike
            schedule: Schedule::new(unix_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            names: BTreeMap::new(),
            entries: HashMap::new(),
            outbox,
            tools: Rc::new(tools),
            sleeps_until_us: 0,
            warned: None,
        }));
        let sooner = Rc::new(Notify::new());
        loop {
            let until = Self::let_out(&driver, &sooner);
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Set(targets, believed)) => driver.borrow_mut().set(targets, believed),
                    // who asked may be gone
                    Some(Command::List(answer)) => drop(answer.send(driver.borrow().listing())),
                    None => return,
                },
                () = sooner.notified() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// Starts what is due; gives when to do so again.
    fn let_out(driver: &Rc<RefCell<Self>>, sooner: &Rc<Notify>) -> Instant {
        let mut this = driver.borrow_mut();
        loop {
            let now_us = this.now_us();
            let Some(due) = this.schedule.due(now_us) else { break };
            let Some(entry) = this.entries.get(&due.id) else { continue };
            let (target, tls, tools) = (Rc::clone(&entry.target), entry.tls.clone(), Rc::clone(&this.tools));
            let (driver, sooner) = (Rc::clone(driver), Rc::clone(sooner));
            let deadline = this.origin + Duration::from_micros(due.deadline_us);
            tokio::task::spawn_local(async move {
                let began = Instant::now();
                let probed = tokio::time::timeout_at(deadline, probe(&target, tls.as_deref(), &tools)).await;
                let outcome = probed.unwrap_or_else(|_| {
                    let timeout = crate::units::format_duration(target.check.timeout);
                    Outcome::Bad(format!("no answer within {timeout}"))
                });
                let mut driver = driver.borrow_mut();
                driver.finished(due.id, outcome, began.elapsed());
                if driver.schedule.next_us().is_some_and(|next| next < driver.sleeps_until_us) {
                    sooner.notify_one();
                }
            });
        }
        let next = this.schedule.next_us();
        this.sleeps_until_us = next.unwrap_or(u64::MAX);
        next.map_or_else(|| Instant::now() + IDLE, |next| this.origin + Duration::from_micros(next))
    }

    fn now_us(&self) -> u64 {
        self.origin.elapsed().as_micros() as u64
    }

    fn set(&mut self, targets: Vec<Target>, mut believed: Believed) {
        let mut connectors = Connectors::default();
        let mut gone = std::mem::take(&mut self.names);
        let now_us = self.now_us();
        for target in targets {
            let name = target.name.clone();
            let before = gone.remove(&name);
            let kept = believed.remove(&name);
            let tls = connectors.of(&target);
            if let Some(id) = before
                && let Some(entry) = self.entries.get_mut(&id)
                && *entry.target == target
            {
                entry.tls = tls;
                self.names.insert(name, id);
                continue;
            }
            let old = before.and_then(|id| {
                self.schedule.remove(id);
                self.entries.remove(&id)
            });
            let (down, reason) = match (old, kept) {
                (Some(old), _) => (old.down, old.reason),
                (None, Some(reason)) => (true, reason),
                (None, None) => (false, "not probed yet".to_owned()),
            };
            let id = self.schedule.insert(target.check.rhythm(), now_us);
            let entry = Entry {
                target: Rc::new(target),
                tls,
                down,
                reason,
                since_unix_ms: unix_ms(),
                last: None,
                probes: 0,
                failures: 0,
            };
            self.entries.insert(id, entry);
            self.names.insert(name, id);
        }
        for (name, id) in gone {
            self.schedule.remove(id);
            if self.entries.remove(&id).is_some_and(|entry| entry.down) {
                believed.insert(name, String::new());
            }
        }
        for (name, _) in believed {
            self.outbox.put(name, false, "no longer checked".to_owned());
        }
    }

    fn finished(&mut self, id: TargetId, outcome: Outcome, took: Duration) {
        let ended = match &outcome {
            Outcome::Good => Ended::Good,
            Outcome::Bad(_) => Ended::Bad,
            Outcome::Untold(_) => Ended::Untold,
        };
        let changed = self.schedule.finished(id, ended, self.now_us());
        // targets that are gone have no entry
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.probes += 1;
        entry.failures += u64::from(ended != Ended::Good);
        if let Some(standing) = changed {
            let down = standing == Standing::Down;
            let (rise, fall) = (entry.target.check.rise, entry.target.check.fall);
            let kind = entry.target.check.kind.name();
            let is_first = entry.last.is_none();
            entry.reason = match &outcome {
                Outcome::Bad(text) if is_first || fall == 1 => format!("{kind} check: {text}"),
                Outcome::Bad(text) => format!("{kind} check failed {fall} times: {text}"),
                _ if is_first || rise == 1 => format!("{kind} check passed"),
                _ => format!("{kind} check passed {rise} times"),
            };
            entry.since_unix_ms = unix_ms();
            if down != entry.down {
                entry.down = down;
                self.outbox.put(entry.target.name.clone(), down, entry.reason.clone());
            }
        }
        if let Outcome::Untold(text) = &outcome
            && self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL)
        {
            self.warned = Some(Instant::now());
            tracing::warn!("{} could not be probed, and maybe others: {text}", entry.target.name);
        }
        entry.last = Some(Last { result: outcome, unix_ms: unix_ms(), took });
    }

    fn listing(&self) -> Vec<Row> {
        let now_us = self.now_us();
        let row = |(name, id): (&BackendName, &TargetId)| {
            let entry = self.entries.get(id)?;
            let state = match self.schedule.standing(*id) {
                _ if entry.down => "down",
                Standing::Unknown => "unknown",
                _ => "up",
            };
            let last = entry.last.as_ref();
            Some(Row {
                pool: name.pool.to_string(),
                backend: name.backend.to_string(),
                check: entry.target.check.kind.name().to_owned(),
                address: crate::units::format_backend_address(entry.target.to.ip(), entry.target.to.port()),
                through: if entry.target.tunnel.is_some() { "tunnel" } else { "direct" }.to_owned(),
                state: state.to_owned(),
                reason: entry.reason.clone(),
                since_unix_ms: entry.since_unix_ms,
                in_doubt: self.schedule.in_doubt(*id),
                last_result: last.map_or_else(String::new, |last| match &last.result {
                    Outcome::Good => "good".to_owned(),
                    Outcome::Bad(text) => text.clone(),
                    Outcome::Untold(text) => format!("not probed: {text}"),
                }),
                last_unix_ms: last.map_or(0, |last| last.unix_ms),
                last_us: last.map_or(0, |last| last.took.as_micros() as u64),
                next_ms: self.schedule.next_of(*id).map_or(0, |next| next.saturating_sub(now_us) / 1_000),
                probes: entry.probes,
                failures: entry.failures,
            })
        };
        self.names.iter().filter_map(row).collect()
    }
}
