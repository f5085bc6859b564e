//! `weir listener …`, `weir drain` and `weir ready`: what is taken out of service, what is left of it, and when is it empty?

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use weir_abi::columns::{BackendColumn, ListenerColumn, ProxyColumn, UpstreamColumn};

use super::changes::{self, SectionCommand};
use super::{Exit, complain, failed, print, print_json, report, screen};
use crate::api::{Applied, BackendRequest, StateRequest, percent_encode};
use crate::changes::edit::Kind;
use crate::client::{Client, ClientError};
use crate::state::Admin;
use crate::status::{Columns, Status};
use crate::units::{format_duration, parse_duration};

/// How often it is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often progress is told.
const PROGRESS: Duration = Duration::from_secs(2);
/// How long what is cut may take to be gone.
const CUT: Duration = Duration::from_secs(3);
/// How long weir-dataplane may take to end beyond the longest grace.
const END: Duration = Duration::from_secs(75);

/// What to do with listeners.
#[derive(Debug, Subcommand)]
pub enum ListenerCommand {
    /// All listeners with their state, flows and connections.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// No new flows or connections; established ones go on, idle HTTP connections end.
    Drain {
        /// Its name.
        listener: String,
        /// How long to wait.
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Takes new flows again.
    Ready {
        /// Its name.
        listener: String,
    },
    /// No new flows, and established ones end now.
    Maint {
        /// Its name.
        listener: String,
    },
    /// Change the configuration.
    #[command(flatten)]
    Section(SectionCommand),
}

/// What becomes of what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Then {
    /// It goes on.
    Keep,
    /// It ends: what was drained goes into maintenance.
    Cut,
}

/// How to wait for what is drained.
#[derive(Clone, Copy, Debug, Args)]
pub struct Waiting {
    /// Wait until nothing is left.
    #[arg(long)]
    pub wait: bool,
    /// Longest wait.
    #[arg(long, default_value = "5m", value_parser = parse_duration, requires = "wait")]
    pub timeout: Duration,
    /// What becomes of what is left then.
    #[arg(long, value_enum, default_value_t = Then::Keep, requires = "wait")]
    pub then: Then,
}

/// What is drained.
#[derive(Debug)]
pub(super) enum Target {
    /// Its pool and name.
    Backend(String, String),
    /// Its name.
    Listener(String),
    Node,
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Backend(pool, name) => write!(formatter, "{pool}/{name}"),
            Self::Listener(name) => write!(formatter, "listener {name}"),
            Self::Node => write!(formatter, "the node"),
        }
    }
}

/// What is not over yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    flows: u64,
    connections: u64,
}

impl Left {
    fn is_nothing(self) -> bool {
        self == Self::default()
    }

    fn of(flows: &Columns, flow_column: &str, proxied: &Columns, column: &str) -> Option<Self> {
        let flows = flows.get(flow_column).copied()?;
        Some(Self { flows, connections: proxied.get(column).copied().unwrap_or(0) })
    }

    fn with(self, other: Self) -> Self {
        Self {
            flows: self.flows.wrapping_add(other.flows),
            connections: self.connections.wrapping_add(other.connections),
        }
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        let Self { flows, connections } = *self;
        write!(formatter, "{flows} flow{}, {connections} connection{}", plural(flows), plural(connections))
    }
}

impl Target {
    /// What is left of it; `None` where nothing is counted.
    fn left(&self, status: &Status) -> Option<Left> {
        let of_listener = |listener: &crate::status::Listener| {
            let (flows, active) = (ListenerColumn::FlowsActive.name(), ProxyColumn::ConnectionsActive.name());
            Left::of(&listener.counters, flows, &listener.proxy, active)
        };
        match self {
            Self::Backend(pool, name) => {
                let pools = status.pools.iter().filter(|p| p.name == *pool);
                let backend = pools.flat_map(|p| &p.backends).find(|backend| backend.name == *name)?;
                let (flows, active) = (BackendColumn::FlowsActive.name(), UpstreamColumn::Active.name());
                Left::of(&backend.counters, flows, &backend.upstream, active)
            }
            Self::Listener(name) => {
                status.listeners.iter().find(|listener| listener.name == *name).and_then(of_listener)
            }
            Self::Node => status
                .listeners
                .iter()
                .try_fold(Left::default(), |left, listener| Some(left.with(of_listener(listener)?))),
        }
    }

    /// Sets its state.
    pub(super) fn set(&self, client: &Client, state: Admin, force: bool) -> Result<Exit, ClientError> {
        let applied: Applied = match self {
            Self::Backend(pool, name) => {
                let path = format!("/v1/backends/{}/{}", percent_encode(pool), percent_encode(name));
                client.post(&path, &BackendRequest { weight: None, state: Some(state), force })?
            }
            Self::Listener(name) => {
                client.post(&format!("/v1/listeners/{}", percent_encode(name)), &StateRequest { state })?
            }
            Self::Node => client.post("/v1/node", &StateRequest { state })?,
        };
        applied.notes.iter().for_each(|note| complain(note));
        Ok(report(&applied, false))
    }

    /// Drains it, and waits where that is wanted.
    pub(super) fn drain(&self, client: &Client, waiting: Waiting, force: bool) -> Result<Exit, ClientError> {
        match self.set(client, Admin::Drain, force)? {
            Exit::Good if waiting.wait => self.wait(client, waiting),
            exit => Ok(exit),
        }
    }

    fn wait(&self, client: &Client, waiting: Waiting) -> Result<Exit, ClientError> {
        let limit = format_duration(waiting.timeout);
        match self.wait_until_empty(client, waiting.timeout)? {
            None => Ok(Exit::Bad),
            Some(left) if left.is_nothing() => {
                print(&format!("{self} has no active flows or connections\n"));
                Ok(Exit::Good)
            }
            Some(left) if waiting.then == Then::Keep => {
                complain(&format!(
                    "{self} still has {left} after {limit}, all of them older than that; wait longer with --timeout, or end them with --then cut"
                ));
                Ok(Exit::Bad)
            }
            Some(left) => {
                print(&format!("{self} still has {left} after {limit}, all of them older: cutting them\n"));
                if self.set(client, Admin::Maint, true)? != Exit::Good {
                    return Ok(Exit::Bad);
                }
                match self.wait_until_empty(client, CUT)? {
                    Some(left) if left.is_nothing() => {
                        print(&format!("{self} has no active flows or connections\n"));
                        Ok(Exit::Good)
                    }
                    Some(left) => {
                        complain(&format!(
                            "{self} still has {left}: flows of a backend end with their next packet, by the listener's on_down"
                        ));
                        Ok(Exit::Bad)
                    }
                    None => Ok(Exit::Bad),
                }
            }
        }
    }

    /// What is left when nothing is, or the time is over; `None` (and said so): nothing is counted.
    fn wait_until_empty(&self, client: &Client, limit: Duration) -> Result<Option<Left>, ClientError> {
        let started = Instant::now();
        let mut told: Option<Instant> = None;
        let in_place = std::io::stdout().is_terminal();
        loop {
            let status: Status = client.get("/v1/status")?;
            let Some(left) = self.left(&status) else {
                complain("active flows are not known: weir-dataplane has not written its counters; start it");
                return Ok(None);
            };
            let is_over = left.is_nothing() || started.elapsed() >= limit;
            if is_over {
                if in_place && told.is_some() {
                    print("\r\x1b[K");
                }
                return Ok(Some(left));
            }
            if in_place {
                print(&format!("\r\x1b[K{self}: {left}, waiting"));
                told = Some(Instant::now());
            } else if told.is_none_or(|told| told.elapsed() >= PROGRESS) {
                print(&format!("{self}: {left}, waiting\n"));
                told = Some(Instant::now());
            }
            std::thread::sleep(POLL.min(limit.saturating_sub(started.elapsed())));
        }
    }
}

pub(super) fn listener(client: &Client, command: &ListenerCommand) -> Exit {
    let named = |name: &String| Target::Listener(name.clone());
    let result = match command {
        ListenerCommand::List { json } => list(client, *json),
        ListenerCommand::Drain { listener, waiting } => named(listener).drain(client, *waiting, false),
        ListenerCommand::Ready { listener } => named(listener).set(client, Admin::Ready, false),
        ListenerCommand::Maint { listener } => named(listener).set(client, Admin::Maint, false),
        ListenerCommand::Section(command) => return changes::section(client, Kind::Listener, command),
    };
    result.unwrap_or_else(|error| failed(&error))
}

fn list(client: &Client, json: bool) -> Result<Exit, ClientError> {
    let status: Status = client.get("/v1/status")?;
    if json {
        print_json(&status.listeners);
    } else {
        print(&screen::listener_table(&status));
    }
    Ok(Exit::Good)
}

/// `weir drain`.
pub(super) fn node(client: &Client, waiting: Waiting, stops: bool) -> Exit {
    let drained = Target::Node.drain(client, waiting, false);
    let stopped = drained.and_then(|exit| match exit {
        Exit::Good if stops => stop(client),
        exit => Ok(exit),
    });
    stopped.unwrap_or_else(|error| failed(&error))
}

/// `weir ready`.
pub(super) fn ready(client: &Client) -> Exit {
    Target::Node.set(client, Admin::Ready, false).unwrap_or_else(|error| failed(&error))
}

/// Ends weir-dataplane.
fn stop(client: &Client) -> Result<Exit, ClientError> {
    let dataplane = client.get::<Status>("/v1/status")?.dataplane;
    let pid = i32::try_from(dataplane.pid).ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|_| !matches!(dataplane.state.as_str(), "down" | "unknown")) else {
        print("weir-dataplane is not running\n");
        return Ok(Exit::Good);
    };
    // numbers are used again: it is asked whose this one is
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() != "weir-dataplane" {
        complain(&format!("process {pid} is not weir-dataplane in this namespace; end it where it runs"));
        return Ok(Exit::Bad);
    }
    if let Err(error) = kill_process(pid, Signal::TERM) {
        complain(&format!(
            "weir-dataplane (pid {pid}) can't be ended: {error}; end it as its user, as with systemctl stop weir-dataplane"
        ));
        return Ok(Exit::Bad);
    }
    let started = Instant::now();
    while started.elapsed() < END {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // one that has ended and was not waited for has ended
        if stat.is_empty() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')) {
            print(&format!("weir-dataplane (pid {pid}) has ended\n"));
            return Ok(Exit::Good);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    complain(&format!("weir-dataplane (pid {pid}) has not ended after {} s", END.as_secs()));
    Ok(Exit::Bad)
}
