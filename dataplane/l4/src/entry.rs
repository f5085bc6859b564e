//! What the table remembers of a flow: one fixed-size record that survives the process.
//!
//! The identity of a flow (client, ports, listener, backend, source NAT) is covered by `check`; a record that a
//! killed process left half-written does not verify and is discarded. `state` and `last_seen` change with packets and are
//! range-checked instead. A free record has state [`State::Free`], links to the next free one in `last_seen`, and does not
//! verify: a flipped bit in its state must not revive a flow whose source port another one has by now.

use std::fmt::Debug;

use weir_net::hash::{
    StableKey, flow_hash_2, flow_hash_5, source_hash_v4, source_hash_v6, stable_hash_v4, stable_hash_v6,
};
use weir_net::parse::{parsed_usual_v4, parsed_usual_v6};
use weir_net::{InnerFlow, Parsed, rewrite};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// No source NAT, as index of a source address.
pub const NO_SNAT: u16 = u16::MAX;

/// `::ffff:0:0/96` (RFC 4291 §2.5.5.2).
const MAPPED: u128 = 0xffff_0000_0000;

/// Life of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Not in use.
    Free = 0,
    /// TCP: nothing but a SYN was seen from the client (or a first packet in mid-stream).
    Embryonic = 1,
    /// TCP: the client has gone on after its first packet.
    Established = 2,
    /// TCP: the client has sent a FIN.
    ClientClosed = 3,
    /// TCP: the server has sent a FIN.
    ServerClosed = 4,
    /// TCP: both have sent a FIN, or one a RST.
    Closing = 5,
    /// UDP.
    Udp = 6,
}

impl State {
    /// The state of that number.
    #[inline]
    pub fn from_u8(value: u8) -> Option<Self> {
        Some(match value {
            0 => Self::Free,
            1 => Self::Embryonic,
            2 => Self::Established,
            3 => Self::ClientClosed,
            4 => Self::ServerClosed,
            5 => Self::Closing,
            6 => Self::Udp,
            _ => return None,
        })
    }
}

/// The five fields that name a flow, as seen in one direction. Host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple<A> {
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// IP protocol.
    pub protocol: u8,
}

impl<A: Address> Tuple<A> {
    /// The other direction of the same packet exchange.
    #[inline]
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { src: self.dst, dst: self.src, src_port: self.dst_port, dst_port: self.src_port, ..self }
    }

    /// Keyed hash for the flow table.
    #[inline]
    pub fn hash(&self, seed: [u64; 2]) -> u32 {
        <A as Address>::hash(seed, self) as u32
    }
}

/// An address of one family as a number in host order: `u32` or `u128`.
pub trait Address: Copy + Eq + Debug + Send + std::hash::Hash + 'static {
    /// The record of this family.
    type Entry: Entry<Address = Self>;
    /// 4 or 6.
    const FAMILY: u8;
    /// Length of an IP header without options or extension headers.
    const HEADER_LEN: u16;
    /// Narrows the 128-bit form, in which an IPv4 address is IPv4-mapped.
    fn from_bits(bits: u128) -> Self;
    /// The 128-bit form.
    fn bits(self) -> u128;
    /// The hash that picks backends, equal on all nodes with the same key.
    fn stable_hash(key: StableKey, tuple: &Tuple<Self>) -> u64;
    /// The same, of the client's address alone.
    fn source_hash(key: StableKey, src: Self) -> u64;
    /// Reads source and destination address of a parsed frame of this family.
    fn addresses(frame: &[u8], parsed: &Parsed) -> (Self, Self);
    /// Reads source and destination address of the packet that an ICMP error quotes.
    fn inner_addresses(frame: &[u8], inner: &InnerFlow) -> (Self, Self);
    /// What is known of a usual frame of this family, by the length of its packet.
    fn parsed_usual(frame: &[u8], l3_len: u16) -> Option<Parsed>;
    /// Takes one off the TTL or hop limit; false where it would reach zero.
    fn decrement_ttl(frame: &mut [u8], parsed: &Parsed) -> bool;
    /// Rewrites addresses and ports where given and takes one off the TTL or hop limit, checksums mended; false where it would
    /// reach zero.
    fn pass(frame: &mut [u8], parsed: &Parsed, src: Option<(Self, u16)>, dst: Option<(Self, u16)>) -> bool;
    /// Keyed hash of a tuple.
    fn hash(seed: [u64; 2], tuple: &Tuple<Self>) -> u64;
}

/// Ports and protocol in one word. The shifts are such that each port is loaded as the two bytes that the parser has just
/// stored: a wider load, which the compiler likes where it may ignore the upper half, would wait for the store.
#[inline(always)]
fn tail<A>(tuple: &Tuple<A>) -> u64 {
    u64::from(tuple.dst_port) | u64::from(tuple.src_port) << 20 | u64::from(tuple.protocol) << 40
}

impl Address for u32 {
    type Entry = EntryV4;
    const FAMILY: u8 = 4;
    const HEADER_LEN: u16 = weir_net::ipv4::HEADER_LEN as u16;
    #[inline]
    fn from_bits(bits: u128) -> Self {
        bits as u32
    }
    #[inline]
    fn bits(self) -> u128 {
        MAPPED | u128::from(self)
    }
    #[inline]
    fn stable_hash(key: StableKey, tuple: &Tuple<Self>) -> u64 {
        stable_hash_v4(key, tuple.src, tuple.dst, tuple.src_port, tuple.dst_port, tuple.protocol)
    }
    #[inline]
    fn source_hash(key: StableKey, src: Self) -> u64 {
        source_hash_v4(key, src)
    }
    #[inline]
    fn addresses(frame: &[u8], parsed: &Parsed) -> (Self, Self) {
        parsed.addresses_v4(frame)
    }
    fn inner_addresses(frame: &[u8], inner: &InnerFlow) -> (Self, Self) {
        (inner.src_v4(frame), inner.dst_v4(frame))
    }
    #[inline(always)]
    fn parsed_usual(frame: &[u8], l3_len: u16) -> Option<Parsed> {
        parsed_usual_v4(frame, l3_len)
    }
    #[inline(always)]
    fn decrement_ttl(frame: &mut [u8], parsed: &Parsed) -> bool {
        rewrite::decrement_ttl_v4(frame, parsed)
    }
    #[inline(always)]
    fn pass(frame: &mut [u8], parsed: &Parsed, src: Option<(Self, u16)>, dst: Option<(Self, u16)>) -> bool {
        rewrite::pass_v4(frame, parsed, src, dst)
    }
    #[inline(always)]
    fn hash(seed: [u64; 2], tuple: &Tuple<Self>) -> u64 {
        flow_hash_2(seed, [u64::from(tuple.src) << 32 | u64::from(tuple.dst), tail(tuple)])
    }
}

impl Address for u128 {
    type Entry = EntryV6;
    const FAMILY: u8 = 6;
    const HEADER_LEN: u16 = weir_net::ipv6::HEADER_LEN as u16;
    #[inline]
    fn from_bits(bits: u128) -> Self {
        bits
    }
    #[inline]
    fn bits(self) -> u128 {
        self
    }
    #[inline]
    fn stable_hash(key: StableKey, tuple: &Tuple<Self>) -> u64 {
        let (src, dst) = (tuple.src.to_be_bytes(), tuple.dst.to_be_bytes());
        stable_hash_v6(key, &src, &dst, tuple.src_port, tuple.dst_port, tuple.protocol)
    }
    #[inline]
    fn source_hash(key: StableKey, src: Self) -> u64 {
        source_hash_v6(key, &src.to_be_bytes())
    }
    #[inline]
    fn addresses(frame: &[u8], parsed: &Parsed) -> (Self, Self) {
        parsed.addresses_v6(frame)
    }
    fn inner_addresses(frame: &[u8], inner: &InnerFlow) -> (Self, Self) {
        (u128::from_be_bytes(inner.src_v6(frame)), u128::from_be_bytes(inner.dst_v6(frame)))
    }
    #[inline(always)]
    fn parsed_usual(frame: &[u8], l3_len: u16) -> Option<Parsed> {
        parsed_usual_v6(frame, l3_len)
    }
    #[inline(always)]
    fn decrement_ttl(frame: &mut [u8], parsed: &Parsed) -> bool {
        rewrite::decrement_hop_limit(frame, parsed)
    }
    #[inline(always)]
    fn pass(frame: &mut [u8], parsed: &Parsed, src: Option<(Self, u16)>, dst: Option<(Self, u16)>) -> bool {
        // no header checksum to share
        let bytes = |end: Option<(u128, u16)>| end.map(|(address, port)| (address.to_be_bytes(), port));
        let (src, dst) = (bytes(src), bytes(dst));
        let [src, dst] = [&src, &dst].map(|end| end.as_ref().map(|(address, port)| (address, *port)));
        rewrite::decrement_hop_limit(frame, parsed) && rewrite::set_v6(frame, parsed, src, dst)
    }
    #[inline(always)]
    fn hash(seed: [u64; 2], tuple: &Tuple<Self>) -> u64 {
        let (src, dst) = (tuple.src, tuple.dst);
        flow_hash_5(seed, [src as u64, (src >> 64) as u64, dst as u64, (dst >> 64) as u64, tail(tuple)])
    }
}

/// A record of the flow table, whatever its family.
pub trait Entry:
    Copy + Debug + Send + FromBytes + IntoBytes + KnownLayout + Immutable + Sync + 'static
{
    /// Address of the family.
    type Address: Address;
    /// A used record; `check` is computed.
    fn new(flow: &Flow<Self::Address>) -> Self;
    /// The record's identity, whether it verifies or not.
    fn flow(&self) -> Flow<Self::Address>;
    /// Whether `check` fits the identity.
    fn verifies(&self) -> bool;
    /// The client's address.
    fn client(&self) -> Self::Address;
    /// The client's port.
    fn client_port(&self) -> u16;
    /// The port that the client addressed.
    fn vip_port(&self) -> u16;
    /// IP protocol.
    fn protocol(&self) -> u8;
    /// Index of the listener.
    fn listener(&self) -> u16;
    /// Index of the backend.
    fn backend(&self) -> u32;
    /// Index of the source address of `fullnat`, or [`NO_SNAT`].
    fn snat(&self) -> u16;
    /// Source port of `fullnat`.
    fn snat_port(&self) -> u16;
    /// State as stored.
    fn state(&self) -> u8;
    /// Changes the state.
    fn set_state(&mut self, state: State);
    /// Frees the record; `next` is the next free one.
    fn free(&mut self, next: u32);
    /// Tick of the last packet; of a free record, the next free one.
    fn last_seen(&self) -> u32;
    /// Changes the tick.
    fn set_last_seen(&mut self, tick: u32);
    /// Hash of the reply's tuple, 0 without one.
    fn reverse(&self) -> u32;
}

/// A flow's identity, unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow<A> {
    /// The client's address.
    pub client: A,
    /// The client's port.
    pub client_port: u16,
    /// The port that the client addressed.
    pub vip_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Index of the listener.
    pub listener: u16,
    /// Index of the backend.
    pub backend: u32,
    /// Index of the source address of `fullnat`, or [`NO_SNAT`].
    pub snat: u16,
    /// Source port of `fullnat`.
    pub snat_port: u16,
    /// Hash of the reply's tuple, 0 where replies are not seen.
    pub reverse: u32,
    /// State to start in.
    pub state: State,
    /// Tick of the last packet.
    pub last_seen: u32,
}

macro_rules! entry {
    ($(#[$doc:meta])* $name:ident, $address:ty, $size:literal $(, $spare:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        pub struct $name {
            client: $address,
            backend: u32,
            last_seen: u32,
            check: u32,
            reverse: u32,
            client_port: u16,
            vip_port: u16,
            snat_port: u16,
            snat: u16,
            listener: u16,
            protocol: u8,
            state: u8,
            $($spare: u32,)?
        }

        const _: () = assert!(size_of::<$name>() == $size);

        impl $name {
            /// The `reverse` hash is part of no check: it is made anew at recovery.
            #[inline]
            fn checksum(&self) -> u32 {
                let client = self.client.bits();
                let words = [
                    client as u64,
                    (client >> 64) as u64,
                    (u64::from(self.backend) << 32) | (u64::from(self.client_port) << 16) | u64::from(self.vip_port),
                    (u64::from(self.snat) << 48)
                        | (u64::from(self.snat_port) << 32)
                        | (u64::from(self.listener) << 16)
                        | u64::from(self.protocol),
                ];
                let mut sum = 0x9e37_79b9_7f4a_7c15_u64;
                for word in words {
                    sum = (sum ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
                    sum ^= sum >> 32;
                }
                sum as u32
            }
        }

        impl Entry for $name {
            type Address = $address;
            #[inline]
            fn new(flow: &Flow<$address>) -> Self {
                let mut entry = Self {
                    client: flow.client,
                    backend: flow.backend,
                    last_seen: flow.last_seen,
                    check: 0,
                    reverse: flow.reverse,
                    client_port: flow.client_port,
                    vip_port: flow.vip_port,
                    snat_port: flow.snat_port,
                    snat: flow.snat,
                    listener: flow.listener,
                    protocol: flow.protocol,
                    state: flow.state as u8,
                    $($spare: 0,)?
                };
                entry.check = entry.checksum();
                entry
            }
            #[inline]
            fn flow(&self) -> Flow<$address> {
                Flow {
                    client: self.client,
                    client_port: self.client_port,
                    vip_port: self.vip_port,
                    protocol: self.protocol,
                    listener: self.listener,
                    backend: self.backend,
                    snat: self.snat,
                    snat_port: self.snat_port,
                    reverse: self.reverse,
                    state: State::from_u8(self.state).unwrap_or(State::Free),
                    last_seen: self.last_seen,
                }
            }
            fn verifies(&self) -> bool {
                self.check == self.checksum()
            }
            #[inline]
            fn client(&self) -> $address {
                self.client
            }
            #[inline]
            fn client_port(&self) -> u16 {
                self.client_port
            }
            #[inline]
            fn vip_port(&self) -> u16 {
                self.vip_port
            }
            #[inline]
            fn protocol(&self) -> u8 {
                self.protocol
            }
            #[inline]
            fn listener(&self) -> u16 {
                self.listener
            }
            #[inline]
            fn backend(&self) -> u32 {
                self.backend
            }
            #[inline]
            fn snat(&self) -> u16 {
                self.snat
            }
            #[inline]
            fn snat_port(&self) -> u16 {
                self.snat_port
            }
            #[inline]
            fn state(&self) -> u8 {
                self.state
            }
            #[inline]
            fn set_state(&mut self, state: State) {
                self.state = state as u8;
            }
            #[inline]
            fn free(&mut self, next: u32) {
                self.state = State::Free as u8;
                self.check = 0;
                self.last_seen = next;
            }
            #[inline]
            fn last_seen(&self) -> u32 {
                self.last_seen
            }
            #[inline]
            fn set_last_seen(&mut self, tick: u32) {
                self.last_seen = tick;
            }
            #[inline]
            fn reverse(&self) -> u32 {
                self.reverse
            }
        }
    };
}

entry!(
    /// Record of an IPv4 flow.
    EntryV4,
    u32,
    32
);
entry!(
    /// Record of an IPv6 flow.
    EntryV6,
    u128,
    48,
    spare
);

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn flow() -> Flow<u32> {
        Flow {
            client: 0xc612_0001,
            client_port: 4711,
            vip_port: 80,
            protocol: 6,
            listener: 3,
            backend: 9,
            snat: NO_SNAT,
            snat_port: 0,
            reverse: 1,
            state: State::Established,
            last_seen: 5,
        }
    }

    #[test]
    fn a_changed_identity_does_not_verify() {
        let entry = EntryV4::new(&flow());
        assert!(entry.verifies());
        assert_eq!(entry.flow(), flow());
        let volatile = |at: usize| (8..12).contains(&at) || (16..20).contains(&at) || at == 31;
        for at in 0..size_of::<EntryV4>() {
            let mut bytes: [u8; 32] = entry.as_bytes().try_into().unwrap();
            bytes[at] ^= 0x10;
            let torn = EntryV4::read_from_bytes(&bytes).unwrap();
            assert_eq!(torn.verifies(), volatile(at), "byte {at}");
        }
    }

    #[test]
    fn a_zeroed_record_is_free() {
        let entry = EntryV6::read_from_bytes(&[0; 48]).unwrap();
        assert_eq!(State::from_u8(entry.state()), Some(State::Free));
        assert!(!entry.verifies());
    }
}
