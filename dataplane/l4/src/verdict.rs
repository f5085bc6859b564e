//! What becomes of a packet: a closed set of outcomes, and a counted reason for each drop.

use weir_access::Refusal;

/// What the worker does with a packet after the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Send it to the flow's backend, by the backend's next hop.
    ToBackend(Delivery),
    /// Send it to the flow's client, by the route of its destination address.
    ToClient(Delivery),
    /// The frame has become an answer to its sender (ICMP error, RST), link addresses swapped: send it where it came from.
    Reply,
    /// It belongs to a connection that ends here, or to a listener of mode `proxy` (its index; [`NO_LISTENER`] where none has
    /// it): an unchanged TCP segment, or an ICMP error about one of ours.
    Terminate(u16),
    /// It is addressed to Weir itself: echo requests are answered, the rest is the exception path's.
    Local,
    /// Count it and free it.
    Drop(DropReason),
}

/// In [`Verdict::Terminate`]: no listener.
pub const NO_LISTENER: u16 = u16::MAX;

/// Whose packet it is and where its IP header stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Index of the listener.
    pub listener: u16,
    /// Index of the backend.
    pub backend: u32,
    /// Offset of the IP header that goes on the wire.
    pub l3: u16,
    /// Bytes of the client's IP packet.
    pub bytes: u16,
    /// Index of the port that leads to the backend.
    pub egress: u16,
    /// The dataplane's id of the next hop to the backend.
    pub next_hop: u32,
    /// Balanced without a flow entry because the table was full.
    pub fallback: bool,
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied => Self::AccessDenied,
            Refusal::Rate => Self::AccessRate,
            Refusal::Connections => Self::AccessConnections,
        }
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident $name:literal),+ $(,)?) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $variant),+ }
        impl DropReason {
            /// All reasons, in order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Its name in `weir status`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

drop_reasons! {
    /// A vip, but no listener on this protocol and port.
    NoListener "no_listener",
    /// A vip, but neither TCP, UDP nor ICMP.
    UnsupportedProtocol "unsupported_protocol",
    /// The pool has no backend that takes new flows.
    NoBackend "no_backend",
    /// It would begin a flow of a listener that takes none (to a SYN a RST is the answer, within the rate).
    ListenerDrain "listener_drain",
    /// `fullnat`, not a SYN, and no such flow: its source port is unknown.
    NoFlow "no_flow",
    /// From a backend, but of no flow.
    BackendNoFlow "backend_no_flow",
    /// Neither for a vip nor for Weir itself.
    NotForUs "not_for_us",
    /// The flow table is full of flows that may not be evicted.
    TableFull "table_full",
    /// All source addresses and ports of `fullnat` are in use towards this backend.
    SnatExhausted "snat_exhausted",
    /// The backend is down and the listener resets its flows.
    BackendDown "backend_down",
    /// TTL or hop limit ended here (the sender was told, within the rate).
    TtlExpired "ttl_expired",
    /// Too long for the way (the sender was told, within the rate).
    TooBig "too_big",
    /// A fragment whose first was not seen or is forgotten.
    FragmentWithoutFirst "fragment_without_first",
    /// A tunnel's outer header found no room in the buffer, or no source address.
    Encapsulation "encapsulation",
    /// An ICMP error about no flow of ours.
    IcmpNoFlow "icmp_no_flow",
    /// An ICMP error that could not be translated.
    IcmpUntranslatable "icmp_untranslatable",
    /// A rewrite found the packet not to be what it was parsed as.
    Rewrite "rewrite",
    /// It would begin a flow, and the listener's list denies its source.
    AccessDenied "access_denied",
    /// It would begin a flow beyond a rate of the listener.
    AccessRate "access_rate",
    /// It would begin a flow, and its source has as many as the listener allows.
    AccessConnections "access_connections",
}
