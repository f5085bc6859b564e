//! The thread between the workers and the kernel: it writes punted packets to the ports' TAPs and reads what the kernel sends.
//!
//! It sleeps in the kernel until a TAP has something; workers don't wake it, so it looks after them every [`BUSY_WAIT`] while
//! there is traffic, and after up to [`IDLE_WAIT`] when there was none for a while.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hugepages::segment::{Access, AtomicWords, SegmentDir};
use weir_abi::columns::ExceptionColumn;
use weir_abi::probes::{self, Probe};
use weir_net::{Kind, Mac, ParseOptions, Parsed, Protocol, arp, eth, icmpv6, parse};
use weir_os::tun::{self, Layer, Tun};
use weir_os::{OsError, interface};

use super::{Attached, Frame, Lane};
use crate::books::Books;
use crate::view::View;

/// Between two looks at the workers' rings while packets come.
const BUSY_WAIT: Duration = Duration::from_micros(50);
/// Longest time between two looks.
const IDLE_WAIT: Duration = Duration::from_millis(1);
/// Packets of one worker, or of one TAP, at a time.
const AT_ONCE: usize = 64;
/// Between two tries to have a missing interface.
const RETRY: Duration = Duration::from_secs(2);
/// Between two looks for the table of probes.
const TABLE_RETRY: Duration = Duration::from_millis(100);
/// In the instance's directory: names of the interfaces that were made, one a line.
const LIST: &str = "exception-interfaces";

/// A port's interface, as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name; empty = none.
    pub name: String,
    /// The port's link address.
    pub mac: Mac,
    /// The port's MTU.
    pub mtu: u16,
}

/// The running thread.
#[derive(Debug)]
pub struct Exception {
    views: mpsc::Sender<Arc<View>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Exception {
    /// Starts the thread, in the network namespace of the caller. `directory` is the instance's.
    pub fn start(
        wanted: Vec<Wanted>,
        directory: PathBuf,
        wiring: (Vec<Lane>, Vec<Frame>, Attached),
        view: Arc<View>,
        books: Books,
    ) -> std::io::Result<Option<Self>> {
        remove_others(&wanted, &directory);
        if wanted.iter().all(|wanted| wanted.name.is_empty()) {
            return Ok(None);
        }
        let (lanes, idle, attached) = wiring;
        let (views, views_in) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let mut kernel = Kernel {
            ports: wanted.into_iter().map(|wanted| Port { wanted, tap: None, said: false }).collect(),
            lanes,
            idle,
            attached,
            ours: Ours::of(&view),
            probes: ProbeTable { directory: directory.clone(), words: None, retry: Instant::now() },
            books,
            views: views_in,
            retry: Instant::now(),
        };
        kernel.attach();
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("weir-exception".to_owned())
            .spawn(move || kernel.run(&stopping))?;
        Ok(Some(Self { views, stop, thread }))
    }

    /// Tells it a new generation.
    pub fn adopt(&self, view: &Arc<View>) {
        // it ends only when it is told to
        drop(self.views.send(Arc::clone(view)));
    }

    /// Ends it; the interfaces stay.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.join().is_err() {
            tracing::error!("the exception thread ended by a panic; its message is above");
        }
    }
}

/// Removes interfaces that an earlier process of this instance made and that are not wanted any more, and writes down those that are.
fn remove_others(wanted: &[Wanted], directory: &std::path::Path) {
    let path = directory.join(LIST);
    let names = std::fs::read_to_string(&path).unwrap_or_default();
    let kept = |name: &str| wanted.iter().any(|wanted| wanted.name == name);
    for name in names.lines().filter(|name| !kept(name) && interface::index(name).is_ok()) {
        let removed = Tun::open(name, Layer::Ethernet, true).and_then(|tun| tun.set_persistent(false));
        match removed {
            Ok(()) => {
                tracing::info!("removed interface {name}: no port has it as its exception path any more")
            }
            Err(error) => tracing::warn!("interface {name} stays, although no port has it any more: {error}"),
        }
    }
    let mut text = String::new();
    for wanted in wanted.iter().filter(|wanted| !wanted.name.is_empty()) {
        text.push_str(&wanted.name);
        text.push('\n');
    }
    if names == text {
        return;
    }
    if let Err(error) = std::fs::write(&path, text) {
        tracing::warn!(
            "cannot write {}: {error}; the next process will not remove what this one makes",
            path.display()
        );
    }
}

#[derive(Debug)]
struct Port {
    wanted: Wanted,
    tap: Option<Tun>,
    /// Its absence was told.
    said: bool,
}

impl Port {
    /// Makes the interface or takes it over.
    fn open(&self) -> Result<Tun, OsError> {
        let Wanted { name, mac, mtu } = &self.wanted;
        let tap = Tun::open(name, Layer::Ethernet, true)?;
        tap.set_persistent(true)?;
        if interface::mac(name)? != mac.0 {
            interface::set_mac(name, mac.0)?;
        }
        if interface::mtu(name)? != u32::from(*mtu) {
            interface::set_mtu(name, u32::from(*mtu))?;
        }
        Ok(tap)
    }
}

struct Kernel {
    ports: Vec<Port>,
    lanes: Vec<Lane>,
    idle: Vec<Frame>,
    attached: Attached,
    ours: Ours,
    probes: ProbeTable,
    books: Books,
    views: mpsc::Receiver<Arc<View>>,
    retry: Instant,
}

impl Kernel {
    fn run(mut self, stop: &AtomicBool) {
        let mut wait = BUSY_WAIT;
        while !stop.load(Ordering::Relaxed) {
            while let Ok(view) = self.views.try_recv() {
                self.ours = Ours::of(&view);
            }
            let busy = self.write() | self.read();
            if busy {
                wait = BUSY_WAIT;
                continue;
            }
            if self.ports.iter().any(|port| port.tap.is_none() && !port.wanted.name.is_empty())
                && Instant::now() >= self.retry
            {
                self.attach();
            }
            let taps = self.ports.iter().filter_map(|port| port.tap.as_ref());
            if let Err(error) = tun::wait(taps, wait) {
                tracing::debug!("{error}");
                std::thread::sleep(wait);
            }
            wait = (wait * 2).min(IDLE_WAIT);
        }
    }

    /// Tries to have the interfaces that are missing.
    fn attach(&mut self) {
        self.retry = Instant::now() + RETRY;
        for (at, port) in self.ports.iter_mut().enumerate() {
            if port.tap.is_some() || port.wanted.name.is_empty() {
                continue;
            }
            match port.open() {
                Ok(tap) => {
                    port.tap = Some(tap);
                    port.said = false;
                    tracing::info!("exception path: interface {}", port.wanted.name);
                }
                Err(error) if !port.said => {
                    port.said = true;
                    tracing::warn!("{}", missing(&port.wanted.name, &error));
                }
                Err(_) => {}
            }
            self.attached.set(at, port.tap.is_some());
            self.books.set_exception(at, ExceptionColumn::Attached, u64::from(port.tap.is_some()));
        }
    }

    /// An interface that somebody removed.
    fn detach(&mut self, at: usize, error: &OsError) {
        let Some(port) = self.ports.get_mut(at) else { return };
        tracing::warn!("exception path: {error}; trying to make it again");
        port.tap = None;
        self.attached.set(at, false);
        self.books.set_exception(at, ExceptionColumn::Attached, 0);
        self.retry = Instant::now();
    }

    /// Writes what the workers handed over.
    fn write(&mut self) -> bool {
        let Self { lanes, ports, books, .. } = self;
        let mut busy = false;
        for Lane { full, spare, .. } in lanes {
            busy |= full.pop_burst(AT_ONCE, |mut frame| {
                let at = usize::from(frame.port);
                if frame.length > 0
                    && let Some(port) = ports.get(at)
                {
                    address(&mut frame, port.wanted.mac);
                    let written = port.tap.as_ref().map_or(Ok(false), |tap| tap.write(frame.bytes()));
                    // an interface that is down says so for each packet
                    if !matches!(written, Ok(true)) {
                        books.exception(at, ExceptionColumn::NotWritten, 1);
                    }
                }
                // as many places as frames
                drop(spare.push(frame));
            }) > 0;
        }
        busy
    }

    /// Reads what the kernel sends and hands it to the first worker.
    fn read(&mut self) -> bool {
        let mut gone = None;
        let Self { lanes, ports, idle, ours, probes, books, .. } = self;
        let Some(Lane { outgoing, used, .. }) = lanes.first_mut() else { return false };
        used.pop_burst(usize::MAX, |frame| idle.push(frame));
        let mut busy = false;
        for (at, port) in ports.iter().enumerate() {
            let Some(tap) = &port.tap else { continue };
            for _ in 0..AT_ONCE {
                // without a frame left the kernel's queue holds the rest
                let Some(mut frame) = idle.pop() else { break };
                match tap.read(&mut frame.room) {
                    Ok(Some(length)) => {
                        busy = true;
                        (frame.port, frame.length) = (at as u16, length);
                        let way = way_of(frame.bytes(), ours, probes);
                        frame.probe = if let Way::Backend(probe) = way { Some(probe) } else { None };
                        if way == Way::Nowhere {
                            books.exception(at, ExceptionColumn::KernelRefused, 1);
                            idle.push(frame);
                        } else if let Err(frame) = outgoing.push(frame) {
                            books.exception(at, ExceptionColumn::KernelRefused, 1);
                            idle.push(frame);
                        }
                    }
                    Ok(None) => {
                        idle.push(frame);
                        break;
                    }
                    Err(error) => {
                        idle.push(frame);
                        gone = Some((at, error));
                        break;
                    }
                }
            }
        }
        if let Some((at, error)) = gone {
            self.detach(at, &error);
        }
        busy
    }
}

fn missing(name: &str, error: &OsError) -> String {
    let remedy = match error.kind() {
        ErrorKind::PermissionDenied => "give weir-dataplane CAP_NET_ADMIN and /dev/net/tun",
        ErrorKind::ResourceBusy => {
            "another process has it: give this port another name (exception = \"...\") or stop that process"
        }
        ErrorKind::NotFound => "load the kernel module tun",
        _ => "set exception = \"off\" on the port if the kernel shall have nothing of it",
    };
    format!(
        "no exception path by {name}: {error}; what is addressed to the port itself is dropped ({remedy})"
    )
}

/// The kernel takes only what is addressed to its interface.
fn address(frame: &mut Frame, mac: Mac) {
    if let Some(to) = frame.bytes_mut().first_chunk_mut::<6>()
        && !Mac(*to).is_multicast()
    {
        *to = mac.0;
    }
}

/// Addresses of Weir's.
#[derive(Debug, Default)]
struct Ours {
    /// What the kernel may send from.
    own: HashSet<IpAddr>,
    /// What probes go to.
    vips: HashSet<IpAddr>,
}

impl Ours {
    fn of(view: &View) -> Self {
        Self {
            own: view.ports.iter().flat_map(|port| port.own.iter().map(|prefix| prefix.addr)).collect(),
            vips: view.vips.iter().map(|bits| weir_l4::address_of(*bits)).collect(),
        }
    }
}

/// The control process's table of probes, once it is there.
#[derive(Debug)]
struct ProbeTable {
    directory: PathBuf,
    words: Option<AtomicWords>,
    retry: Instant,
}

impl ProbeTable {
    fn of(&mut self, port: u16) -> Option<Probe> {
        if self.words.is_none() && Instant::now() >= self.retry {
            self.retry = Instant::now() + TABLE_RETRY;
            let directory = SegmentDir::open_existing(self.directory.clone()).ok()?;
            self.words = directory.map_atomics(probes::NAME, probes::WORDS, Access::ReadOnly).ok();
        }
        let word = self.words.as_ref()?.get(usize::from(port))?;
        Probe::of(word.load(Ordering::Acquire))
    }
}

/// Where a frame of the kernel goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// On the wire as it is.
    Wire,
    /// To a backend, by a listener's mode.
    Backend(Probe),
    /// Not from an address of Weir's, or an answer that the dataplane gives.
    Nowhere,
}

fn way_of(frame: &[u8], ours: &Ours, probes: &mut ProbeTable) -> Way {
    let Ok(parsed) = parse(frame, &ParseOptions { l3_checksum_ok: true }) else { return Way::Nowhere };
    let leaves = match parsed.kind {
        Kind::Arp => arp::parse(frame, &parsed).is_ok_and(|message| {
            message.operation == arp::Operation::Request && ours.own.contains(&IpAddr::V4(message.sender_ip))
        }),
        Kind::Ipv4 | Kind::Ipv6 => may_leave(frame, &parsed, &ours.own),
        Kind::Other => false,
    };
    if !leaves {
        return Way::Nowhere;
    }
    let to_vip = parsed.dst(frame).is_some_and(|address| ours.vips.contains(&address));
    if to_vip
        && parsed.has_ports
        && let Some(probe) = probes.of(parsed.src_port)
    {
        return Way::Backend(probe);
    }
    if eth::destination(frame).0 == probes::NEXT_HOP { Way::Nowhere } else { Way::Wire }
}

fn may_leave(frame: &[u8], parsed: &Parsed, own: &HashSet<IpAddr>) -> bool {
    /// RFC 2710 §3.
    const LISTENER_REPORT_V1: u8 = 131;
    let Some(source) = parsed.src(frame) else { return false };
    let is_own = own.contains(&source);
    let is_control = parsed.kind == Kind::Ipv6 && parsed.protocol == Protocol::ICMPV6;
    if !is_control || parsed.is_later_fragment() {
        return is_own;
    }
    // RFC 4861 §4: an interface's link-local address speaks to its link
    let of_link = matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_unspecified());
    match parsed.icmp_type {
        icmpv6::NEIGHBOR_ADVERTISEMENT
        | icmpv6::ROUTER_SOLICITATION
        | icmpv6::ROUTER_ADVERTISEMENT
        | icmpv6::REDIRECT => false,
        icmpv6::NEIGHBOR_SOLICITATION
        | LISTENER_REPORT_V1
        | icmpv6::LISTENER_DONE
        | icmpv6::LISTENER_REPORT_V2 => is_own || of_link,
        _ => is_own,
    }
}

#[cfg(test)]
mod tests;
