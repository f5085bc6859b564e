//! The records of the snapshot: what each table holds, field by field.
//!
//! Sizes are asserted at compile time; a changed layout is a changed [`VERSION`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::http::HttpPoolRecord;
use crate::proxy::TcpRecord;
use crate::text::{Name, Text};

/// Version of every record and header here. Raised with each change of a layout or a meaning.
pub const VERSION: u32 = 6;
/// Most workers that a node can have.
pub const MAX_WORKERS: usize = 64;
/// Most ports that a node can have.
pub const MAX_PORTS: usize = 16;
/// No position: an empty slot of a slot table.
pub const NO_POSITION: u16 = u16::MAX;
/// No index: an absent reference.
pub const NO_INDEX: u32 = u32::MAX;
/// Most backends of one pool (slots are `u16` positions, [`NO_POSITION`] is taken).
pub const MAX_POOL_BACKENDS: usize = 65_534;
/// Most listeners of a node (a flow entry pins its listener in a `u16`).
pub const MAX_LISTENERS: usize = 65_535;
/// Most pools of a node.
pub const MAX_POOLS: usize = 65_535;

/// `workers` idle by polling without a pause.
pub const IDLE_SPIN: u8 = 0;
/// `workers` pause, then sleep, after some empty polls.
pub const IDLE_ADAPTIVE: u8 = 1;

/// Packets per second that one worker hands to the kernel where the configuration says nothing.
pub const EXCEPTION_RATE: u32 = 100_000;
/// Longest name of a kernel interface (IFNAMSIZ is 16 with the NUL).
pub const INTERFACE_NAME_LIMIT: usize = 15;

/// An IPv4 or IPv6 address: 16 bytes in network byte order, IPv4 in the first four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Address {
    /// 4 or 6; anything else is no address.
    pub family: u8,
    /// Prefix length in bits where the address stands for a prefix or an interface address, else 32 or 128.
    pub prefix_length: u8,
    /// A port number, host byte order; 0 where none is meant.
    pub port: u16,
    /// Network byte order; IPv4 in the first four bytes, the rest zero.
    pub bytes: [u8; 16],
}

impl Address {
    /// A host address without a port.
    pub fn host(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                let bytes = [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                Self { family: 4, prefix_length: 32, port: 0, bytes }
            }
            IpAddr::V6(v6) => Self { family: 6, prefix_length: 128, port: 0, bytes: v6.octets() },
        }
    }

    /// A prefix or an interface address.
    pub fn prefix(address: IpAddr, prefix_length: u8) -> Self {
        Self { prefix_length, ..Self::host(address) }
    }

    /// The same address with a port number.
    pub fn with_port(self, port: u16) -> Self {
        Self { port, ..self }
    }

    /// The address, unless the family is unknown.
    pub fn ip(&self) -> Option<IpAddr> {
        let [a, b, c, d, ..] = self.bytes;
        match self.family {
            4 => Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d))),
            6 => Some(IpAddr::V6(Ipv6Addr::from(self.bytes))),
            _ => None,
        }
    }
}

/// Head of the node table: what is fixed while a dataplane process lives (`workers`, sizes) and what is not (timeouts).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct NodeRecord {
    /// Ceiling of the data that the terminated connections of one worker hold, bytes,
    /// [`crate::proxy::MIN_TCP_MEMORY`] to [`crate::proxy::MAX_TCP_MEMORY`]. It may change while a process runs.
    pub tcp_memory_bytes: u64,
    /// Ceiling of what HTTP of one worker keeps for heads, collected bodies and answers, bytes, in the same range. It may change while
    /// a process runs.
    pub http_memory_bytes: u64,
    /// CPUs, one worker each, in worker order; the first `worker_count` count. `u16::MAX` is "any CPU, not pinned".
    pub worker_cpus: [u16; MAX_WORKERS],
    /// 1 to [`MAX_WORKERS`].
    pub worker_count: u32,
    /// Flow entries per worker for IPv4.
    pub flows_ipv4: u32,
    /// Flow entries per worker for IPv6.
    pub flows_ipv6: u32,
    /// Rows of the backend counters: one above the highest backend index that may ever be used.
    pub backend_capacity: u32,
    /// Packet buffers per port, for all workers together; 0 = the default, see [`crate::buffers::Buffers`].
    pub buffers: u32,
    /// Bytes of one buffer's data room without headroom; 0 = the default.
    pub buffer_bytes: u32,
    /// [`IDLE_SPIN`] or [`IDLE_ADAPTIVE`].
    pub idle: u8,
    /// 1 where `hash_key` is in use; 0 = the fixed hash.
    pub keyed_hash: u8,
    /// When the process is told to end: how long proxied connections may take to end in order, in units of 10 ms.
    pub drain_grace: u16,
    /// Packets per second and worker that go to the kernel by the exception path; 0 = [`EXCEPTION_RATE`].
    pub exception_rate: u32,
    /// Most generated ICMP errors per second and worker.
    pub icmp_rate: u32,
    /// Key of the flow hash that picks backends.
    pub hash_key: [u8; 16],
    /// Timeouts in milliseconds, by [`Timeout`]. Those of terminated TCP, from [`Timeout::TcpTimeWait`] on, are checked.
    pub timeouts_ms: [u32; TIMEOUTS],
    /// First source port that `fullnat` and `proxy` use.
    pub snat_port_first: u16,
    /// Last of them, inclusive.
    pub snat_port_last: u16,
    /// Number of [`PortRecord`]s that follow.
    pub ports: u32,
    /// Number of [`InterfaceAddressRecord`]s after the ports.
    pub addresses: u32,
    /// Number of [`PortRouteRecord`]s after the addresses.
    pub routes: u32,
    /// Connections that the TCP engine of one worker holds, both sides of a proxied one counted:
    /// [`crate::proxy::MIN_TCP_CONNECTIONS`] to [`crate::proxy::MAX_TCP_CONNECTIONS`]. Fixed while a process lives.
    pub tcp_connections: u32,
}

/// Number of [`Timeout`]s.
pub const TIMEOUTS: usize = 10;

/// Index into [`NodeRecord::timeouts_ms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Timeout {
    /// TCP: SYN seen, no answer to it confirmed.
    TcpEmbryonic = 0,
    /// TCP: data flows.
    TcpEstablished = 1,
    /// TCP: FIN or RST seen.
    TcpClosing = 2,
    /// UDP.
    Udp = 3,
    /// Fragments: how long a first fragment's ports are remembered.
    Fragment = 4,
    /// A neighbour that was not confirmed for so long is asked again.
    Neighbour = 5,
    /// Terminated TCP: TIME-WAIT (RFC 9293 §3.6.1); 100 ms to 24 h.
    TcpTimeWait = 6,
    /// Terminated TCP: FIN-WAIT-2 of a connection that nobody reads any more; 100 ms to 24 h.
    TcpFinWait = 7,
    /// Terminated TCP: sent data that stays unacknowledged so long ends the connection (RFC 9293 §3.8.3, the user
    /// timeout); 100 ms to 24 h.
    TcpUser = 8,
    /// Terminated TCP: least retransmission timeout (RFC 6298 §2.4 says 1 s, and is deviated from); 10 ms to 10 s.
    TcpMinimumRto = 9,
}

/// A NIC or virtual device.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PortRecord {
    /// Name in the configuration.
    pub name: Name,
    /// `pci:…`, `af_xdp:…`, `af_packet:…`, `tap:…`, `pcap:…`, `ring:…`, `null:`.
    pub device: Text<256>,
    /// Largest IP packet, bytes, without Ethernet header.
    pub mtu: u16,
    /// 802.1Q VLAN id for everything on this port; 0 = untagged.
    pub vlan: u16,
    /// Receive queues wanted; 0 = one per worker where the device can.
    pub queues: u16,
    /// Descriptors per queue; 0 = the dataplane's default.
    pub descriptors: u16,
    /// The kernel's interface for what is addressed to the port itself (a TAP that the dataplane makes); empty = none.
    pub exception: Text<16>,
}

/// What an address of a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AddressUse {
    /// The port's own address: answers ARP/NDP and echo, source of tunnels and of Weir's own packets; its prefix is on-link.
    Own = 0,
    /// A source address of `fullnat` and `proxy`: answers ARP/NDP; not on-link.
    Snat = 1,
}

/// An address that a port answers for.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InterfaceAddressRecord {
    /// Address and, for [`AddressUse::Own`], the on-link prefix length.
    pub address: Address,
    /// Index of the port.
    pub port: u16,
    /// [`AddressUse`].
    pub usage: u8,
    /// Zero.
    pub reserved: u8,
}

/// A route: gateways are routes of prefix length 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PortRouteRecord {
    /// Destination prefix.
    pub prefix: Address,
    /// Next hop, on-link on the port.
    pub gateway: Address,
    /// Index of the port.
    pub port: u16,
    /// Zero.
    pub reserved: u16,
}

/// An address that Weir answers for.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct VipRecord {
    /// Name in the configuration.
    pub name: Name,
    /// The address.
    pub address: Address,
}

/// How packets of a listener reach their backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mode {
    /// Direct server return: only the MAC addresses are rewritten.
    Dsr = 0,
    /// IP in IP (RFC 2003, RFC 2473).
    Ipip = 1,
    /// Generic UDP Encapsulation (draft-ietf-intarea-gue).
    Gue = 2,
    /// The destination is rewritten; replies come back through Weir.
    Nat = 3,
    /// Source and destination are rewritten.
    Fullnat = 4,
    /// The client's TCP connection ends here, and another one leads to the backend.
    Proxy = 5,
}

/// What a proxy listener understands of what it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Application {
    /// Nothing: bytes.
    None = 0,
    /// HTTP/1.1.
    Http = 1,
}

/// Whether a listener takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Drain {
    /// It does.
    No = 0,
    /// It takes no new flow or connection; those that there are go on.
    Yes = 1,
    /// It takes none, and those that there are end now.
    Cut = 2,
}

/// What happens to the flows of a backend that is down or in maintenance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OnDown {
    /// Another backend takes the flow over.
    Reselect = 0,
    /// TCP: the client gets a RST. UDP: the packet is dropped.
    Reset = 1,
    /// Packets keep going to the backend.
    Keep = 2,
}

/// A vip, protocol and port (range) with a mode.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ListenerRecord {
    /// Name in the configuration.
    pub name: Name,
    /// Stable index, row of the listener counters, at most [`MAX_LISTENERS`] - 1.
    pub index: u32,
    /// Position in the table's vips.
    pub vip: u32,
    /// Index of the pool ([`PoolRecord::index`]); [`NO_INDEX`] in an HTTP listener without a default pool.
    pub pool: u32,
    /// First port, host byte order.
    pub port_first: u16,
    /// Last port, inclusive.
    pub port_last: u16,
    /// IP protocol: 6 or 17; 6 in [`Mode::Proxy`].
    pub protocol: u8,
    /// [`Mode`].
    pub mode: u8,
    /// GUE variant 0 or 1.
    pub gue_variant: u8,
    /// [`OnDown`]; not [`OnDown::Reselect`] in [`Mode::Proxy`].
    pub on_down: u8,
    /// UDP destination port of GUE.
    pub gue_port: u16,
    /// [`Application`]; [`Application::Http`] only in [`Mode::Proxy`], with a table of its own ([`crate::HttpTable`]).
    pub application: u8,
    /// [`Drain`].
    pub drain: u8,
    /// Position in the table's proxies; [`NO_INDEX`] exactly in the other modes.
    pub proxy: u32,
}

/// How a new flow picks its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Algorithm {
    /// The flow's hash into a Maglev table.
    Maglev = 0,
    /// Next slot of a smooth weighted schedule, per worker.
    RoundRobin = 1,
    /// The client address's hash into a Maglev table.
    SourceHash = 2,
    /// Proxy: the backend with the fewest connections of this worker for its weight. Its slots are a schedule as
    /// [`Self::RoundRobin`]'s, which decides between equals.
    LeastConn = 3,
    /// Proxy: of two random slots of a schedule as [`Self::RoundRobin`]'s (so drawn by weight), the backend with fewer
    /// connections of this worker for its weight.
    RandomTwo = 4,
}

/// Head of a pool table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PoolRecord {
    /// Name in the configuration.
    pub name: Name,
    /// Stable index.
    pub index: u32,
    /// [`Algorithm`].
    pub algorithm: u8,
    /// [`crate::proxy::SendProxy`]: what proxied connections to its backends start with.
    pub send_proxy: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Number of [`BackendRecord`]s that follow.
    pub backends: u32,
    /// Number of `u16` slots after them: positions among this pool's backends, or [`NO_POSITION`].
    pub slots: u32,
    /// Proxied connections to its backends.
    pub upstream: TcpRecord,
    /// How HTTP uses them.
    pub http: HttpPoolRecord,
}

/// A backend's administrative state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum AdminState {
    /// Takes new flows.
    Ready = 0,
    /// No new flows; established ones go on.
    Drain = 1,
    /// No new flows; established ones by the listener's [`OnDown`].
    Maint = 2,
    /// Not in the configuration any more; forwardable until its flows end.
    Removed = 3,
}

/// One server of a pool.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct BackendRecord {
    /// Name in the configuration, unique in its pool.
    pub name: Name,
    /// Stable index on this node: what a flow entry pins; row of the backend counters.
    pub index: u32,
    /// 0 to 65535; 0 = no new flows.
    pub weight: u32,
    /// Address and port; port 0 = the port that the client used.
    pub address: Address,
    /// Proxied connections at once, per node; 0 = unlimited.
    pub max_connections: u32,
    /// [`AdminState`].
    pub admin: u8,
    /// 1 = down by health; 0 = up.
    pub down: u8,
    /// 1 = gets HTTP requests only when no other can; 0 = usual.
    pub backup: u8,
    /// Zero.
    pub reserved: u8,
}

/// Gives an enum `from_u8`.
macro_rules! from_u8 {
    ($name:ident: $($variant:ident),+) => {
        impl $name {
            /// The value, or `None` for a number that stands for none.
            pub fn from_u8(value: u8) -> Option<Self> {
                $(if value == Self::$variant as u8 { return Some(Self::$variant); })+
                None
            }
        }
    };
}
pub(crate) use from_u8;
from_u8!(Mode: Dsr, Ipip, Gue, Nat, Fullnat, Proxy);
from_u8!(Application: None, Http);
from_u8!(OnDown: Reselect, Reset, Keep);
from_u8!(Drain: No, Yes, Cut);
from_u8!(Algorithm: Maglev, RoundRobin, SourceHash, LeastConn, RandomTwo);
from_u8!(AdminState: Ready, Drain, Maint, Removed);
from_u8!(AddressUse: Own, Snat);

impl Mode {
    /// The word of the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Nat => "nat",
            Self::Fullnat => "fullnat",
            Self::Proxy => "proxy",
        }
    }
}

impl AdminState {
    /// The word of the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
            Self::Removed => "removed",
        }
    }
}

const _: () = {
    assert!(size_of::<Address>() == 20 && align_of::<Address>() == 2);
    assert!(size_of::<NodeRecord>() == 16 + 128 + 32 + 4 + 16 + 40 + 4 + 16);
    assert!(size_of::<PortRecord>() == 64 + 256 + 8 + 16);
    assert!(size_of::<InterfaceAddressRecord>() == 24);
    assert!(size_of::<PortRouteRecord>() == 44);
    assert!(size_of::<VipRecord>() == 84);
    assert!(size_of::<ListenerRecord>() == 64 + 12 + 4 + 8 + 4);
    assert!(size_of::<PoolRecord>() == 64 + 16 + 28 + 216);
    assert!(size_of::<BackendRecord>() == 64 + 8 + 20 + 4 + 4);
    assert!(std::mem::offset_of!(NodeRecord, worker_count) == 144);
    assert!(std::mem::offset_of!(NodeRecord, tcp_connections) == 252);
    assert!(std::mem::offset_of!(ListenerRecord, index) == 64);
    assert!(std::mem::offset_of!(ListenerRecord, proxy) == 88);
    assert!(std::mem::offset_of!(PoolRecord, upstream) == 80);
    assert!(std::mem::offset_of!(PoolRecord, http) == 108);
    assert!(std::mem::offset_of!(BackendRecord, address) == 72);
    assert!(std::mem::offset_of!(BackendRecord, max_connections) == 92);
};
