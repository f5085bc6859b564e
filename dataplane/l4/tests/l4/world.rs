//! An engine with its accounts and its clock, and the services that most tests balance.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weir_balance::maglev::Table;
use weir_balance::round_robin;
use weir_l4::engine::{Ended, HeapMemory, Lookup};
use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::table::Lifetimes;
use weir_l4::{
    Accounts, Backend, Delivery, DropReason, Engine, Listener, Memory, Mode, OnDown, Parts, Pool, Services,
    Tables, Verdict, bits_of, fuzz,
};
use weir_net::{PacketBuf, ParseOptions, VecBuf, parse};

use crate::packets::{Packet, TCP, verify};

/// Ticks of flows in each state.
pub const LIFETIMES: Lifetimes = Lifetimes { embryonic: 10, established: 100, closing: 20, udp: 30 };
/// Slots of a Maglev table that is quick to build.
pub const SLOTS: u32 = 1_009;
pub const WEIR_V4: &str = "198.18.0.1";
pub const WEIR_V6: &str = "2001:db8::1";
pub const SNAT_V4: &str = "198.18.0.2";
pub const SNAT_V6: &str = "2001:db8::2";

/// What makes one generation of another.
pub type Change = fn(&mut Parts);

/// Everything that the engine reports.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub live: i64,
    pub created: Vec<(u16, u32)>,
    pub ended: Vec<Ended>,
    pub resets: usize,
    pub no_backend: usize,
}

impl Accounts for Ledger {
    fn flow_created(&mut self, listener: u16, backend: u32) {
        self.live += 1;
        self.created.push((listener, backend));
    }
    fn flow_ended(&mut self, _: u16, _: u32, why: Ended) {
        self.live -= 1;
        self.ended.push(why);
    }
    fn reset_sent(&mut self, _: u16, _: u32) {
        self.resets += 1;
    }
    fn no_backend(&mut self, _: u16) {
        self.no_backend += 1;
    }
}

pub struct World<M: Memory = HeapMemory> {
    pub engine: Engine<M>,
    pub ledger: Ledger,
    pub now: u32,
    /// The same engine again, which is asked the short way first, as the worker does: both must do the same with every packet.
    pub twin: Option<Box<(Engine<HeapMemory>, Ledger)>>,
    /// Packets that took the short way.
    pub short: u64,
}

impl World {
    pub fn new(parts: Parts, records: usize) -> Self {
        let mut ledger = Ledger::default();
        let engine = fuzz::engine(Services::new(parts.clone()), records, &mut ledger);
        let mut twins = Ledger::default();
        let twin = fuzz::engine(Services::new(parts), records, &mut twins);
        Self { engine, ledger, now: 0, twin: Some(Box::new((twin, twins))), short: 0 }
    }

    /// As [`World::new`], with another hash seed and owner of replies.
    pub fn seeded(parts: Parts, records: usize, owner: ReplyOwner, seed: [u64; 2]) -> Self {
        let mut ledger = Ledger::default();
        let engine =
            Engine::new(Arc::new(Services::new(parts)), tables(records), owner, seed, 0, &mut ledger).0;
        Self { engine, ledger, now: 0, twin: None, short: 0 }
    }
}

impl<M: Memory> World<M> {
    /// One frame through parse, fragments and the engine's three steps.
    pub fn send(&mut self, frame: &[u8]) -> Outcome {
        let mut parsed = parse(frame, &ParseOptions::default()).unwrap();
        if parsed.is_fragment() && !self.engine.follow_fragment(frame, &mut parsed, self.now) {
            return Outcome {
                verdict: Verdict::Drop(DropReason::FragmentWithoutFirst),
                frame: frame.to_vec(),
            };
        }
        let mut lookup = Lookup::default();
        self.engine.prepare(frame, &parsed, &mut lookup);
        self.engine.guess(&mut lookup);
        let mut packet = VecBuf::new(frame);
        let verdict = self.engine.process(&mut packet, &parsed, &lookup, self.now, &mut self.ledger);
        let (v4, v6) = self.engine.live();
        assert_eq!(self.ledger.live, i64::from(v4 + v6), "accounts and tables agree");
        let outcome = Outcome { verdict, frame: packet.data().to_vec() };
        if let Some(twin) = &mut self.twin {
            let (engine, ledger) = &mut **twin;
            let (short, other) = short_way(engine, ledger, frame, self.now);
            assert_eq!(
                (other.verdict, &other.frame),
                (outcome.verdict, &outcome.frame),
                "short way: {short}"
            );
            assert_eq!((ledger.live, &ledger.ended), (self.ledger.live, &self.ledger.ended));
            self.short += u64::from(short);
        }
        outcome
    }

    pub fn packet(&mut self, packet: &Packet) -> Outcome {
        self.send(&packet.frame())
    }

    /// The backend that a packet goes to.
    pub fn backend_of(&mut self, packet: &Packet) -> u32 {
        self.packet(packet).to_backend().0.backend
    }

    pub fn adopt(&mut self, parts: Parts) -> Arc<Services> {
        if let Some(twin) = &mut self.twin {
            twin.0.adopt(Arc::new(Services::new(parts.clone())), &mut twin.1);
        }
        self.engine.adopt(Arc::new(Services::new(parts)), &mut self.ledger)
    }

    pub fn live(&self) -> u32 {
        let (v4, v6) = self.engine.live();
        v4 + v6
    }

    pub fn sweep_all(&mut self) {
        let (v4, v6) = self.engine.live();
        assert_eq!(self.engine.count(), (v4 as usize, v6 as usize), "no record is lost or used twice");
        let (v4, v6) = self.engine.capacity();
        self.engine.sweep(v4.max(v6), self.now, &mut self.ledger);
        if let Some(twin) = &mut self.twin {
            twin.0.sweep(v4.max(v6), self.now, &mut twin.1);
        }
    }
}

/// A frame as the worker treats it: the short way, else the long one. Whether the short way took it.
fn short_way(
    engine: &mut Engine<HeapMemory>,
    ledger: &mut Ledger,
    frame: &[u8],
    now: u32,
) -> (bool, Outcome) {
    let mut parsed = parse(frame, &ParseOptions::default()).unwrap();
    if parsed.is_fragment() {
        engine.follow_fragment(frame, &mut parsed, now);
    }
    let mut lookup = Lookup::default();
    if !engine.prepare_usual(frame, &ParseOptions::default(), &mut lookup) {
        engine.prepare(frame, &parsed, &mut lookup);
    }
    engine.guess(&mut lookup);
    let mut packets = [VecBuf::new(frame)];
    let mut deliveries = [None];
    engine.steady(&mut packets, &[lookup], &mut deliveries, now, ledger);
    let [packet] = &mut packets;
    if let [Some(delivery)] = deliveries {
        return (true, Outcome { verdict: Verdict::ToBackend(delivery), frame: packet.data().to_vec() });
    }
    assert_eq!(packet.data(), frame, "what the short way leaves it has not touched");
    let verdict = engine.process(packet, &parsed, &lookup, now, ledger);
    (false, Outcome { verdict, frame: packet.data().to_vec() })
}

/// Empty tables.
pub fn tables(records: usize) -> Tables<HeapMemory> {
    use weir_index::{Bucket, buckets_for};
    use weir_l4::entry::{EntryV4, EntryV6};
    let v4: EntryV4 = zeroed();
    let v6: EntryV6 = zeroed();
    Tables {
        v4: vec![v4; records],
        v6: vec![v6; records],
        v4_index: vec![Bucket::EMPTY; buckets_for(records)],
        v6_index: vec![Bucket::EMPTY; buckets_for(records)],
        snat: Vec::new(),
    }
}

/// A record of a fresh segment.
pub fn zeroed<T: zerocopy::FromZeros>() -> T {
    T::new_zeroed()
}

pub struct Outcome {
    pub verdict: Verdict,
    pub frame: Vec<u8>,
}

impl Outcome {
    /// The delivery and the datagram that goes to a backend, its checksums verified.
    pub fn to_backend(&self) -> (Delivery, Vec<u8>) {
        let Verdict::ToBackend(delivery) = self.verdict else { panic!("{:?}", self.verdict) };
        (delivery, self.datagram(delivery.l3))
    }

    /// The same for a client.
    pub fn to_client(&self) -> (Delivery, Vec<u8>) {
        let Verdict::ToClient(delivery) = self.verdict else { panic!("{:?}", self.verdict) };
        (delivery, self.datagram(delivery.l3))
    }

    /// The answer to the sender; its link addresses are swapped.
    pub fn reply(&self) -> Vec<u8> {
        assert_eq!(self.verdict, Verdict::Reply);
        assert_eq!(self.frame[..12], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
        self.datagram(14)
    }

    pub fn drop_reason(&self) -> DropReason {
        let Verdict::Drop(reason) = self.verdict else { panic!("{:?}", self.verdict) };
        reason
    }

    fn datagram(&self, l3: u16) -> Vec<u8> {
        let bytes = &self.frame[usize::from(l3)..];
        let length = if bytes[0] >> 4 == 4 {
            usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))
        } else {
            usize::from(u16::from_be_bytes([bytes[4], bytes[5]])) + 40
        };
        verify(&bytes[..length]);
        bytes[..length].to_vec()
    }
}

pub fn bits(address: &str) -> u128 {
    bits_of(address.parse().unwrap())
}

/// `vip` is ADDRESS:PORT; flows of backends that are down go on to others.
pub fn listener(index: u16, vip: &str, protocol: u8, mode: Mode, pool: u32) -> Listener {
    let vip: SocketAddr = vip.parse().unwrap();
    Listener {
        index,
        vip: bits_of(vip.ip()),
        protocol,
        port_first: vip.port(),
        port_last: vip.port(),
        mode,
        pool,
        on_down: OnDown::Reselect,
        gue_variant: 1,
        gue_port: 6080,
        retired: false,
    }
}

/// `address` is ADDRESS:PORT; port 0 keeps the client's.
pub fn backend(address: &str) -> Backend {
    let address: SocketAddr = address.parse().unwrap();
    let source = if address.is_ipv4() { WEIR_V4 } else { WEIR_V6 };
    Backend {
        address: bits_of(address.ip()),
        port: address.port(),
        family: if address.is_ipv4() { 4 } else { 6 },
        down: false,
        mtu: 1500,
        egress: 0,
        next_hop: 0,
        tunnel_source: bits(source),
    }
}

/// `members` are backend indices and weights.
pub fn pool(index: u32, algorithm: Algorithm, members: &[(u32, u32)]) -> Arc<Pool> {
    let weights: Vec<u32> = members.iter().map(|(_, weight)| *weight).collect();
    let slots = match algorithm {
        Algorithm::RoundRobin => round_robin::schedule(&weights, 1_000),
        Algorithm::Maglev | Algorithm::SourceHash => {
            let keys: Vec<(u64, u32)> =
                members.iter().map(|(backend, weight)| (u64::from(*backend) + 1, *weight)).collect();
            Table::build(&keys, SLOTS).unwrap()
        }
    };
    Arc::new(Pool {
        index,
        algorithm,
        slots: slots.into(),
        members: members.iter().map(|(backend, _)| *backend).collect(),
    })
}

/// What all tests share: addresses, rates, times; no listener yet.
pub fn parts() -> Parts {
    Parts {
        generation: 1,
        vips: vec![bits("198.18.0.100"), bits("2001:db8::100")],
        own: vec![bits(WEIR_V4), bits(WEIR_V6)],
        snat: vec![bits(SNAT_V4), bits(SNAT_V6)],
        snat_ports: (20_000, 29_999),
        lifetimes: Some(LIFETIMES),
        fragment_ticks: 8,
        icmp_rate: 1_000,
        smallest_mtu: 1_500,
        ..Parts::default()
    }
}

/// The two families' names for the same things.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    pub client: &'static str,
    pub other_client: &'static str,
    pub vip: &'static str,
    pub backend: &'static str,
    pub second: &'static str,
    pub router: &'static str,
    pub snat: &'static str,
}

pub fn names(family: u8) -> Names {
    if family == 4 {
        Names {
            client: "198.18.2.1:40000",
            other_client: "198.18.2.2:40000",
            vip: "198.18.0.100:80",
            backend: "198.18.1.1:8080",
            second: "198.18.1.2:8080",
            router: "198.18.9.9",
            snat: SNAT_V4,
        }
    } else {
        Names {
            client: "[2001:db8:2::1]:40000",
            other_client: "[2001:db8:2::2]:40000",
            vip: "[2001:db8::100]:80",
            backend: "[2001:db8:1::1]:8080",
            second: "[2001:db8:1::2]:8080",
            router: "2001:db8:9::9",
            snat: SNAT_V6,
        }
    }
}

/// The address of ADDRESS:PORT.
pub fn host(text: &str) -> String {
    text.parse::<SocketAddr>().unwrap().ip().to_string()
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// One listener, index 0, on one pool of one backend, index 0.
pub fn single(mode: Mode, protocol: u8, vip: &str, server: &str) -> Parts {
    Parts {
        listeners: vec![listener(0, vip, protocol, mode, 0)],
        pools: vec![pool(0, Algorithm::Maglev, &[(0, 1)])],
        backends: vec![(0, backend(server))],
        ..parts()
    }
}

/// One listener on a pool of the two backends of a family: index 0 and 1.
pub fn pair(mode: Mode, protocol: u8, family: u8) -> Parts {
    let names = names(family);
    Parts {
        listeners: vec![listener(0, names.vip, protocol, mode, 0)],
        pools: vec![pool(0, Algorithm::Maglev, &[(0, 1), (1, 1)])],
        backends: vec![(0, backend(names.backend)), (1, backend(names.second))],
        ..parts()
    }
}

/// The n-th of many clients of a family.
pub fn client(family: u8, n: u32) -> String {
    let (high, low, port) = (n >> 16 & 0xff, n & 0xffff, 1_024 + n % 60_000);
    if family == 4 {
        format!("198.19.{}.{}:{port}", low >> 8, low & 0xff)
    } else {
        format!("[2001:db8:19::{high:x}:{low:x}]:{port}")
    }
}

/// The first packet of a flow.
pub fn first(protocol: u8, src: &str, dst: &str) -> Packet {
    if protocol == TCP { Packet::tcp(src, dst, crate::packets::SYN) } else { Packet::udp(src, dst) }
}
