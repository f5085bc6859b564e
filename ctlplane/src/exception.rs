//! How does the kernel come to have the ports' own addresses, and its answers to leave by the port that the question came by?
//!
//! The dataplane makes an interface per port (a TAP that outlives it); this module gives it the port's addresses and routes and keeps it
//! so: at each change of the configuration, and every second against what somebody else changed. It runs in a thread of its own, in
//! the daemon's network namespace, which must be the dataplane's.
//!
//! ```text
//! from OWN-ADDRESS  ─┐
//! oif weir-PORT     ─┴▶ table 7000000 + interface: the port's networks, [[port.route]], gateways, vips of `dsr`, `ipip` and `gue` (by a
//!                       next hop that is the dataplane itself: probes), and nothing else
//! main table            the port's networks, behind every other interface's (metric 4096)
//! ```
//!
//! The machine's own default route, of a management NIC say, stays what it is.

pub mod probes;
pub mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_abi::record::Mode;
use weir_os::netlink::Netlink;
use weir_os::{OsError, interface};

use crate::model::{Listener, Model, Route};

/// Between two looks at what the kernel has.
const TICK: Duration = Duration::from_secs(1);
/// Between two looks while an interface is not there yet.
const EAGER: Duration = Duration::from_millis(100);
/// How long an interface may be missing before that is said aloud.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a port's interface shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the interface.
    pub interface: String,
    /// Own addresses with their on-link prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Gateways are routes of length 0.
    pub routes: Vec<Route>,
    /// What probes are sent to, for backends that answer by themselves.
    pub vips: Vec<IpAddr>,
}

/// What a configuration wants.
pub fn wanted(model: &Model) -> Vec<Wanted> {
    let direct = |listener: &&Listener| matches!(listener.mode, Mode::Dsr | Mode::Ipip | Mode::Gue);
    let vip = |listener: &Listener| model.vips.get(listener.vip).map(|vip| vip.address);
    let vips: BTreeSet<IpAddr> = model.listeners.iter().filter(direct).filter_map(vip).collect();
    let vips: Vec<IpAddr> = vips.into_iter().collect();
    let ports = model.node.ports.iter();
    ports
        .filter_map(|port| {
            Some(Wanted {
                interface: port.exception.clone()?,
                addresses: port.addresses.clone(),
                routes: port.routes.clone(),
                vips: vips.clone(),
            })
        })
        .collect()
}

/// States of interfaces, in words, by name.
type States = BTreeMap<String, String>;

/// The thread that keeps the kernel so.
#[derive(Debug)]
pub struct Exceptions {
    wanted: mpsc::Sender<Vec<Wanted>>,
    states: Arc<Mutex<States>>,
}

impl Exceptions {
    /// Starts the thread. It ends with this value.
    pub fn start(first: Vec<Wanted>) -> std::io::Result<Self> {
        let (wanted, changes) = mpsc::channel();
        let states = Arc::new(Mutex::new(States::new()));
        let mut keeper = Keeper {
            wanted: first,
            states: Arc::clone(&states),
            missing_since: Instant::now(),
            complaint: String::new(),
        };
        std::thread::Builder::new().name("exception".to_owned()).spawn(move || {
            loop {
                let complete = keeper.keep();
                match changes.recv_timeout(if complete { TICK } else { EAGER }) {
                    Ok(next) => keeper.change(next),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Self { wanted, states })
    }

    /// Another configuration is in force.
    pub fn set(&self, wanted: Vec<Wanted>) {
        // the thread ends only with this value
        drop(self.wanted.send(wanted));
    }

    /// `ready`, or what is wrong, of an interface.
    pub fn state(&self, interface: &str) -> Option<String> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).get(interface).cloned()
    }
}

struct Keeper {
    wanted: Vec<Wanted>,
    states: Arc<Mutex<States>>,
    missing_since: Instant,
    /// What was said last: once is enough.
    complaint: String,
}

impl Keeper {
    fn change(&mut self, wanted: Vec<Wanted>) {
        if wanted != self.wanted {
            self.wanted = wanted;
            self.missing_since = Instant::now();
        }
    }

    /// Makes the kernel have what is wanted; `false`: something is missing.
    fn keep(&mut self) -> bool {
        let mut states = States::new();
        let mut complaint = String::new();
        let mut complete = true;
        let mut netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(error) => {
                self.say(format!("the exception path is not kept in order: {error}"));
                return true;
            }
        };
        for wanted in &self.wanted {
            let state = match keep(&mut netlink, wanted) {
                Ok(true) => "ready".to_owned(),
                Ok(false) => {
                    complete = false;
                    format!(
                        "there is no interface {}: weir-dataplane makes it, in its own network namespace",
                        wanted.interface
                    )
                }
                Err(error) => {
                    let remedy = match error.kind() {
                        ErrorKind::PermissionDenied => "; give weir-ctlplane CAP_NET_ADMIN",
                        _ => "",
                    };
                    complaint = format!("exception path by {}: {error}{remedy}", wanted.interface);
                    format!("{error}{remedy}")
                }
            };
            states.insert(wanted.interface.clone(), state);
        }
        if let Err(error) = table::remove_stale_rules(&mut netlink) {
            tracing::debug!("{error}");
        }
        if complete {
            self.missing_since = Instant::now();
        } else if complaint.is_empty() && self.missing_since.elapsed() > PATIENCE {
            complaint = states.values().find(|state| *state != "ready").cloned().unwrap_or_default();
        }
        self.say(complaint);
        *self.states.lock().unwrap_or_else(PoisonError::into_inner) = states;
        complete || self.missing_since.elapsed() > PATIENCE
    }

    fn say(&mut self, complaint: String) {
        if complaint != self.complaint && !complaint.is_empty() {
            tracing::warn!("{complaint}");
        }
        self.complaint = complaint;
    }
}

/// Makes one interface what it shall be; `false`: there is none.
fn keep(netlink: &mut Netlink, wanted: &Wanted) -> Result<bool, OsError> {
    let name = wanted.interface.as_str();
    let index = match interface::index(name) {
        Ok(index) => index,
        Err(error) if is_absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    settle_parameters(name, wanted.addresses.iter().any(|(address, _)| address.is_ipv6()));
    if !interface::is_up(name)? {
        interface::set_up(name, true)?;
    }
    table::keep_addresses(netlink, index, wanted)?;
    table::keep_next_hops(netlink, index, wanted)?;
    table::keep_routes(netlink, index, wanted)?;
    table::keep_rules(netlink, index, wanted)?;
    Ok(true)
}

fn is_absent(error: &OsError) -> bool {
    // ENODEV has no kind of its own
    error.kind() == ErrorKind::NotFound || error.to_string().contains("No such device")
}

/// The kernel's parameters of an interface: nobody on the link tells this host where to send or what it is called, and addresses
/// stay when the dataplane is away. What can't be read or written is left as it is: the addresses matter more.
fn settle_parameters(name: &str, has_ipv6: bool) {
    let set = |family: &str, parameter: &str, value: &str| {
        let path = Path::new("/proc/sys/net").join(family).join("conf").join(name).join(parameter);
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim() != value => {
                if let Err(error) = std::fs::write(&path, value) {
                    tracing::debug!("cannot write {value} to {}: {error}", path.display());
                }
            }
            _ => {}
        }
    };
    // a question for a neighbour names an address of this interface, not the management NIC's
    set("ipv4", "arp_announce", "2");
    set("ipv4", "accept_redirects", "0");
    for (parameter, value) in
        [("accept_ra", "0"), ("accept_redirects", "0"), ("accept_dad", "0"), ("keep_addr_on_down", "1")]
    {
        set("ipv6", parameter, value);
    }
    if has_ipv6 {
        set("ipv6", "disable_ipv6", "0");
    }
}

#[cfg(test)]
mod tests;
