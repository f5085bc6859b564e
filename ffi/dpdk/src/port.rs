//! How is a NIC or a virtual device opened, configured and started, and who owns its queues?
//!
//! ```text
//!   Port::open ─▶ configure ─▶ start ─▶ take_queues ─▶ (workers burst) ─▶ queues dropped ─▶ stop
//! ```
//!
//! A queue keeps its port alive; the device is stopped and closed when the port and all of its queues are gone.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::device::DeviceSpec;
use crate::eal::EalHandle;
use crate::ethtool;
use crate::mbuf::{self, Mbuf};
use crate::mempool::PacketPool;
use crate::ring::forget_front;
use crate::text::{Errno, c_string};

mod configure;
mod statistics;
mod xdp_socket;

pub use configure::{Capabilities, ConfigureError, Offloads, PortConfig, Rss};
pub use statistics::{Link, Stats};

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// One port per device.
    #[error("device {0} is open already")]
    AlreadyOpen(DeviceSpec),
    /// Likely a wrong name, or the interface is in another network namespace.
    #[error("device {device}: no interface {interface} in this network namespace: {errno}")]
    NoInterface {
        /// The device.
        device: DeviceSpec,
        /// The interface it names.
        interface: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// Packets that arrive on a queue without a socket would be lost.
    #[error(
        "device {device}: the interface has {receive} receive queues but AF_XDP can bind {bindable} of this driver; \
         reduce them: ethtool -L {interface} rx {bindable}"
    )]
    UnboundQueues {
        /// The device.
        device: DeviceSpec,
        /// The interface it names.
        interface: String,
        /// Its receive queues.
        receive: u32,
        /// How many can be bound.
        bindable: u32,
    },
    /// DPDK's driver did not start; its own message is on standard error.
    #[error("device {device}: DPDK's driver refused it: {errno}; {remedy}")]
    Driver {
        /// The device.
        device: DeviceSpec,
        /// What DPDK reported.
        errno: Errno,
        /// What to look at.
        remedy: &'static str,
    },
}

/// Why a port did not start, stop or hand out its queues.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A call out of order.
    #[error("port {device} is {state}, which does not allow this: {operation}")]
    Order {
        /// The port.
        device: DeviceSpec,
        /// Where it is in its life.
        state: &'static str,
        /// What was asked for.
        operation: &'static str,
    },
    /// A worker still holds a queue.
    #[error("port {0} can't be stopped or reconfigured while its queues are in use: drop them first")]
    QueuesInUse(DeviceSpec),
    /// The driver's refusal.
    #[error("port {device}: {operation}: {errno}")]
    Driver {
        /// The port.
        device: DeviceSpec,
        /// What was asked for.
        operation: &'static str,
        /// What DPDK reported.
        errno: Errno,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Opened,
    Configured,
    Started,
    /// Started, and its queues have been taken.
    Running,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Opened => "not configured",
            Self::Configured => "not started",
            Self::Started => "started",
            Self::Running => "running with its queues handed out",
        }
    }
}

/// A port: the control side of one device, used by one thread at a time. Its packets go through its queues.
///
/// A closed port gives its packets back, with one exception: net_af_xdp keeps those of its fill and completion rings
/// (up to 2,048 each per queue) for good. A pool that such a port is opened on again and again runs dry.
pub struct Port {
    inner: Arc<Device>,
    state: State,
    capabilities: Option<Capabilities>,
    /// Buckets of the device's indirection table.
    reta_size: u16,
    /// ethdev's control functions of one port must not run in parallel.
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

/// What the port and its queues keep alive together.
struct Device {
    id: u16,
    spec: DeviceSpec,
    /// The bus and name to unplug.
    bus: &'static str,
    name: String,
    rx_queues: u16,
    started: bool,
    /// The pools that the receive queues fill themselves from.
    pools: Vec<PacketPool>,
    xdp_sockets: xdp_socket::XdpSockets,
    /// What transmit queues must check before the driver sees a packet.
    tx_limit: Option<TxLimit>,
    _environment: EalHandle,
}

/// What a driver takes on trust.
#[derive(Clone, Copy, Debug)]
struct TxLimit {
    /// Packets of several segments can't be sent: they are gathered into one before.
    gather: bool,
    /// net_af_xdp copies packets of other pools into buffers of its own without looking at their length.
    packet_len: usize,
}

/// DPDK's port numbers that a `Device` exists for.
static OPEN: Mutex<BTreeMap<u16, DeviceSpec>> = Mutex::new(BTreeMap::new());

impl Port {
    /// Opens a device. `queues` is the number of queue pairs wanted: packet sockets are opened for that many;
    /// AF_XDP binds all queues of the interface, however many there are.
    ///
    /// Kernel interfaces are looked up in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When the device does not exist, is open already, or its driver refuses it.
    pub fn open(environment: &EalHandle, spec: &DeviceSpec, queues: u16) -> Result<Self, OpenError> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        // These may be opened many times; a capture is read anew each time.
        let shareable = matches!(spec, DeviceSpec::Pcap { .. } | DeviceSpec::Null { .. });
        if !shareable && open.values().any(|other| other == spec) {
            return Err(OpenError::AlreadyOpen(spec.clone()));
        }
        let (bus, name, arguments) = plug(spec, queues)?;
        let id = match port_by_name(&name) {
            // A PCI device that EAL took at its start.
            Some(id) => id,
            None => {
                let driver = |errno| OpenError::Driver { device: spec.clone(), errno, remedy: remedy(spec) };
                let (c_bus, c_name, c_arguments) = (c_string(bus), c_string(&name), c_string(&arguments));
                // SAFETY: rte_eal_hotplug_add must follow rte_eal_init (the handle) and copies its strings.
                let code = unsafe {
                    sys::rte_eal_hotplug_add(c_bus.as_ptr(), c_name.as_ptr(), c_arguments.as_ptr())
                };
                Errno::check(code).map_err(driver)?;
                port_by_name(&name).ok_or_else(|| driver(Errno(libc::ENODEV)))?
            }
        };
        open.insert(id, spec.clone());
        let inner = Arc::new(Device {
            id,
            spec: spec.clone(),
            bus,
            name,
            rx_queues: 0,
            started: false,
            pools: Vec::new(),
            xdp_sockets: xdp_socket::XdpSockets::default(),
            tx_limit: None,
            _environment: environment.clone(),
        });
        Ok(Self { inner, state: State::Opened, capabilities: None, reta_size: 0, _not_sync: PhantomData })
    }

    /// DPDK's number of the port, which received packets carry.
    pub fn id(&self) -> u16 {
        self.inner.id
    }

    /// The device that was opened.
    pub fn spec(&self) -> &DeviceSpec {
        &self.inner.spec
    }

    /// What [`Self::configure`] got.
    pub fn capabilities(&self) -> Option<&Capabilities> {
        self.capabilities.as_ref()
    }

    /// Starts the device, promiscuous where it can be: Weir answers for addresses that the NIC does not know.
    ///
    /// # Errors
    /// When the port is not configured, runs already, or the driver refuses.
    pub fn start(&mut self) -> Result<(), PortError> {
        if self.state != State::Configured {
            return Err(self.order("start"));
        }
        let spec = self.inner.spec.clone();
        let device = Arc::get_mut(&mut self.inner).ok_or(PortError::QueuesInUse(spec))?;
        let id = device.id;
        // SAFETY: the port is configured, with all queues set up, and only this thread controls it (&mut, !Sync).
        let code = unsafe { sys::rte_eth_dev_start(id) };
        device.started = code == 0;
        self.driver("start", code)?;
        self.state = State::Started;
        // SAFETY: as above. Virtual devices that can't are promiscuous anyway.
        unsafe {
            sys::rte_eth_promiscuous_enable(id);
            sys::rte_eth_allmulticast_enable(id);
        }
        // Some drivers fill their indirection table only now.
        if let Some(capabilities) = self.capabilities.as_mut() {
            capabilities.refresh_rss(id, self.reta_size);
        }
        Ok(())
    }

    /// Hands out the queues of a started port, once per start; each goes to one worker.
    ///
    /// # Errors
    /// When the port is not started or they were taken before.
    pub fn take_queues(&mut self) -> Result<(Vec<RxQueue>, Vec<TxQueue>), PortError> {
        let (State::Started, Some(capabilities)) = (self.state, self.capabilities.as_ref()) else {
            return Err(self.order("take its queues"));
        };
        let rx = (0..capabilities.rx_queues).map(|queue| RxQueue(Queue::new(&self.inner, queue))).collect();
        let tx = (0..capabilities.tx_queues)
            .map(|queue| TxQueue { queue: Queue::new(&self.inner, queue), limit: self.inner.tx_limit })
            .collect();
        self.state = State::Running;
        Ok((rx, tx))
    }

    /// Stops the device. It can be started again.
    ///
    /// # Errors
    /// When a queue is in use, the port does not run, or the driver refuses.
    pub fn stop(&mut self) -> Result<(), PortError> {
        if !matches!(self.state, State::Started | State::Running) {
            return Err(self.order("stop"));
        }
        let Some(device) = Arc::get_mut(&mut self.inner) else {
            return Err(PortError::QueuesInUse(self.inner.spec.clone()));
        };
        let code = device.stop();
        self.driver("stop", code)?;
        self.state = State::Configured;
        Ok(())
    }

    fn order(&self, operation: &'static str) -> PortError {
        PortError::Order { device: self.inner.spec.clone(), state: self.state.name(), operation }
    }

    fn driver(&self, operation: &'static str, code: i32) -> Result<(), PortError> {
        let device = || self.inner.spec.clone();
        Errno::check(code).map(|_| ()).map_err(|errno| PortError::Driver {
            device: device(),
            operation,
            errno,
        })
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Port")
            .field("id", &self.inner.id)
            .field("spec", &self.inner.spec)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Device {
    fn stop(&mut self) -> i32 {
        if !self.started {
            return 0;
        }
        self.drain();
        // SAFETY: exclusive access to the device: no queue is left that could be in a burst.
        let code = unsafe { sys::rte_eth_dev_stop(self.id) };
        self.started = code != 0;
        code
    }

    /// Frees what a loopback ring holds: net_ring frees its rings and forgets the packets in them.
    fn drain(&mut self) {
        if !matches!(self.spec, DeviceSpec::Ring(_)) {
            return;
        }
        for queue in 0..self.rx_queues {
            let mut raw: *mut sys::rte_mbuf = std::ptr::null_mut();
            // SAFETY: no queue is left, so this is the only receiver; there is room for one pointer.
            while unsafe { sys::weir_rx_burst(self.id, queue, &raw mut raw, 1) } == 1 {
                // SAFETY: a received packet is the receiver's alone.
                unsafe { sys::weir_mbuf_free(raw) };
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop();
        let (bus, name) = (c_string(self.bus), c_string(&self.name));
        // SAFETY: the port and its queues are gone; rte_eth_dev_close wants a stopped port, and unplugging one that
        // nobody uses. EAL is alive through the handle, and the pools until this returns.
        unsafe {
            sys::rte_eth_dev_close(self.id);
            sys::rte_eal_hotplug_remove(bus.as_ptr(), name.as_ptr());
        }
        self.xdp_sockets.close_leftovers();
        OPEN.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// One queue: not Clone, and used by one thread at a time.
struct Queue {
    port: u16,
    index: u16,
    device: Arc<Device>,
    _not_sync: PhantomData<std::cell::Cell<()>>,
}

impl Queue {
    fn new(device: &Arc<Device>, index: u16) -> Self {
        Self { port: device.id, index, device: Arc::clone(device), _not_sync: PhantomData }
    }

    fn describe(&self, name: &str, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct(name).field("device", &self.device.spec).field("index", &self.index).finish()
    }
}

/// A receive queue, for the worker that it is moved to.
pub struct RxQueue(Queue);

/// A transmit queue, for the worker that it is moved to.
pub struct TxQueue {
    queue: Queue,
    limit: Option<TxLimit>,
}

impl RxQueue {
    /// Adds received packets to the batch, up to its capacity, and returns how many. Never waits.
    #[inline]
    pub fn burst<const N: usize>(&mut self, batch: &mut ArrayVec<Mbuf, N>) -> usize {
        let held = batch.len();
        let room = u16::try_from(batch.remaining_capacity()).unwrap_or(u16::MAX);
        if room == 0 {
            return 0;
        }
        // SAFETY: `held` is within the batch's storage, and Mbuf is a transparent pointer to rte_mbuf.
        let spare = unsafe { batch.as_mut_ptr().add(held) }.cast::<*mut sys::rte_mbuf>();
        // SAFETY: rte_eth_rx_burst must not run on one queue in parallel: this is its only handle, borrowed
        // exclusively. The port is started while a queue exists. It writes at most `room` pointers.
        let received = unsafe { sys::weir_rx_burst(self.0.port, self.0.index, spare, room) };
        // SAFETY: that many slots have been filled, with packets that are now ours alone.
        unsafe { batch.set_len(held + usize::from(received)) };
        mbuf::count(i64::from(received));
        usize::from(received)
    }

    /// Which of the port's receive queues this is.
    pub fn index(&self) -> u16 {
        self.0.index
    }

    /// DPDK's number of the port.
    pub fn port_id(&self) -> u16 {
        self.0.port
    }
}

impl TxQueue {
    /// Takes what the device accepts out of the front of the batch; the rest stays, in order. Returns how many. A packet
    /// that the device can't send (longer than its buffers, or in segments that can't be gathered) stays first: drop
    /// what is still there after a bounded number of attempts.
    #[inline]
    pub fn burst<const N: usize>(&mut self, batch: &mut ArrayVec<Mbuf, N>) -> usize {
        let sendable = match self.limit {
            None => batch.len(),
            Some(limit) => sendable(batch, limit),
        };
        let offered = u16::try_from(sendable).unwrap_or(u16::MAX);
        let packets = batch.as_mut_ptr().cast::<*mut sys::rte_mbuf>();
        // SAFETY: rte_eth_tx_burst must not run on one queue in parallel: see RxQueue::burst. The driver owns the
        // packets that it reports as sent; the batch forgets exactly those.
        let sent = unsafe { sys::weir_tx_burst(self.queue.port, self.queue.index, packets, offered) };
        forget_front(batch, usize::from(sent));
        usize::from(sent)
    }

    /// Lets the driver give back packets that have left: some do that only in a burst, even an empty one.
    #[inline]
    pub fn flush(&mut self) {
        self.burst(&mut ArrayVec::<Mbuf, 1>::new());
    }

    /// Which of the port's transmit queues this is.
    pub fn index(&self) -> u16 {
        self.queue.index
    }

    /// DPDK's number of the port.
    pub fn port_id(&self) -> u16 {
        self.queue.port
    }
}

impl fmt::Debug for RxQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.describe("RxQueue", formatter)
    }
}

impl fmt::Debug for TxQueue {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.queue.describe("TxQueue", formatter)
    }
}

/// How many packets at the front of the batch the driver may see.
#[inline]
fn sendable(batch: &mut [Mbuf], limit: TxLimit) -> usize {
    let fits = |packet: &mut Mbuf| {
        packet.packet_len() <= limit.packet_len
            && (!limit.gather || packet.segment_count() == 1 || packet.linearize())
    };
    batch.iter_mut().position(|packet| !fits(packet)).unwrap_or(batch.len())
}

/// The bus, name and arguments that EAL plugs the device in with.
fn plug(spec: &DeviceSpec, queues: u16) -> Result<(&'static str, String, String), OpenError> {
    static SEQUENCE: AtomicU32 = AtomicU32::new(0);
    let fresh = |driver: &str| format!("{driver}{}", SEQUENCE.fetch_add(1, Ordering::Relaxed));
    Ok(match spec {
        DeviceSpec::Pci(address) => ("pci", address.clone(), String::new()),
        DeviceSpec::AfXdp(interface) => {
            let count = bindable_queues(spec, interface)?;
            // Without CAP_NET_ADMIN over the kernel's NAPI settings, preferred busy polling can't be had.
            let arguments = format!("iface={interface},start_queue=0,queue_count={count},busy_budget=0");
            ("vdev", format!("net_af_xdp_{interface}"), arguments)
        }
        DeviceSpec::AfPacket(interface) => {
            interface_queues(spec, interface)?;
            // Two frames of 2 KiB per page: the driver's limit is 1,518 bytes anyway.
            let arguments =
                format!("iface={interface},qpairs={},blocksz=4096,framesz=2048,framecnt=1024", queues.max(1));
            ("vdev", format!("net_af_packet_{interface}"), arguments)
        }
        DeviceSpec::Tap(name) => ("vdev", format!("net_tap_{name}"), format!("iface={name}")),
        DeviceSpec::Pcap { input, output, infinite } => {
            let words = [
                input.as_ref().map(|file| format!("rx_pcap={file}")),
                output.as_ref().map(|file| format!("tx_pcap={file}")),
                infinite.then(|| "infinite_rx=1".to_owned()),
            ];
            ("vdev", fresh("net_pcap"), words.into_iter().flatten().collect::<Vec<_>>().join(","))
        }
        // The driver builds names of 28 bytes at most from it: a number is short enough.
        DeviceSpec::Ring(_) => ("vdev", fresh("net_ring"), String::new()),
        DeviceSpec::Null { receive } => {
            ("vdev", fresh("net_null"), if *receive { String::new() } else { "no-rx=1".to_owned() })
        }
    })
}

fn interface_queues(spec: &DeviceSpec, interface: &str) -> Result<ethtool::Queues, OpenError> {
    ethtool::queues(interface).map_err(|errno| OpenError::NoInterface {
        device: spec.clone(),
        interface: interface.to_owned(),
        errno,
    })
}

fn bindable_queues(spec: &DeviceSpec, interface: &str) -> Result<u32, OpenError> {
    let ethtool::Queues { receive, bindable } = interface_queues(spec, interface)?;
    if receive > bindable {
        let interface = interface.to_owned();
        return Err(OpenError::UnboundQueues { device: spec.clone(), interface, receive, bindable });
    }
    Ok(bindable)
}

fn remedy(spec: &DeviceSpec) -> &'static str {
    match spec {
        DeviceSpec::Pci(_) => "is it bound to vfio-pci (dpdk-devbind.py --status)?",
        DeviceSpec::AfXdp(_) => {
            "AF_XDP needs root, locked memory (ulimit -l) and an interface without another XDP program (ip link show)"
        }
        DeviceSpec::AfPacket(_) => "packet sockets need CAP_NET_RAW",
        DeviceSpec::Tap(_) => "a TAP needs CAP_NET_ADMIN, /dev/net/tun and a name that is free",
        DeviceSpec::Pcap { .. } => "does the input exist, as a capture file, and may the output be written?",
        DeviceSpec::Ring(_) | DeviceSpec::Null { .. } => {
            "is its driver installed (librte-net-ring, librte-net-null)?"
        }
    }
}

fn port_by_name(name: &str) -> Option<u16> {
    let name = c_string(name);
    let mut id = 0;
    // SAFETY: reads the name and writes one integer.
    let code = unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) };
    (code == 0).then_some(id)
}
