//! What does the engine cost per packet, without a NIC?
//!
//! Established flows in random order, bursts of 32 fresh 64-byte frames (74 for IPv6) copied from a prepared array, through parse
//! and the engine's three steps as a worker does it. Copying is measured apart and taken off. Also the cost of a new flow,
//! with room for it and in a full table.
//!
//!     GLIBC_TUNABLES=glibc.malloc.hugetlb=1 cargo run --release -p weir-l4 --example engine_cost -- [FLOWS…] [MODE…]
//!
//! The tunable puts the tables on huge pages, as they are in the appliance.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark, not the appliance"
)]

use std::hint::black_box;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use weir_balance::maglev::{DEFAULT_SLOTS, Table};
use weir_index::{Bucket, buckets_for};
use weir_l4::engine::{Ended, HeapMemory, Lookup};
use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::table::Lifetimes;
use weir_l4::{
    Accounts, Backend, Engine, Listener, Mode, OnDown, Parts, Pool, Services, Tables, Verdict, bits_of,
};
use weir_net::parse::parse_into;
use weir_net::{PacketBuf, ParseOptions, Parsed, checksum, parse};
use zerocopy::FromZeros;

const BURST: usize = 32;
const HEADROOM: usize = 128;
const STRIDE: usize = 80;
const SYN: u8 = 2;
const ACK: u8 = 16;
/// Packets of one measurement, at least.
const PACKETS: usize = 4_000_000;

/// A buffer as the NIC would hand it out.
#[derive(Clone)]
struct Buffer {
    bytes: [u8; 2_176],
    start: usize,
    end: usize,
}

impl Buffer {
    #[inline]
    fn fill(&mut self, frame: &[u8]) {
        self.start = HEADROOM;
        self.end = HEADROOM + frame.len();
        self.bytes[HEADROOM..HEADROOM + frame.len()].copy_from_slice(frame);
    }
}

impl PacketBuf for Buffer {
    #[inline]
    fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }
    #[inline]
    fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(count)?;
        Some(&mut self.bytes[self.start..self.start + count])
    }
    fn trim_front(&mut self, count: usize) -> bool {
        self.start += count;
        true
    }
    #[inline]
    fn truncate(&mut self, len: usize) -> bool {
        let fits = self.start + len <= self.end;
        if fits {
            self.end = self.start + len;
        }
        fits
    }
    fn append(&mut self, _: usize) -> Option<&mut [u8]> {
        None
    }
}

/// Counts what a worker's counters count.
#[derive(Default)]
struct Counts {
    created: u64,
}

impl Accounts for Counts {
    fn flow_created(&mut self, _: u16, _: u32) {
        self.created += 1;
    }
    fn flow_ended(&mut self, _: u16, _: u32, _: Ended) {}
    fn reset_sent(&mut self, _: u16, _: u32) {}
    fn no_backend(&mut self, _: u16) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    mode: Mode,
    family: u8,
}

impl Case {
    fn vip(self) -> SocketAddr {
        if self.family == 4 { "198.18.0.100:80" } else { "[2001:db8::100]:80" }.parse().unwrap()
    }

    fn backend(self, index: u32) -> SocketAddr {
        let text = if self.family == 4 {
            format!("198.18.1.{}:80", index + 1)
        } else {
            format!("[2001:db8:1::{:x}]:80", index + 1)
        };
        text.parse().unwrap()
    }

    fn client(self, n: u32) -> SocketAddr {
        let port = 1_024 + (n % 60_000) as u16;
        let host = n / 16;
        let ip: IpAddr = if self.family == 4 {
            std::net::Ipv4Addr::from_bits(0xc613_0000 | host & 0xffff).into()
        } else {
            std::net::Ipv6Addr::from_bits(0x2001_0db8_0019 << 80 | u128::from(host)).into()
        };
        SocketAddr::new(ip, port)
    }

    fn services(self) -> Services {
        let members: Vec<u32> = (0..8).collect();
        let keys: Vec<(u64, u32)> = members.iter().map(|member| (u64::from(*member) + 1, 1)).collect();
        let source = bits_of(if self.family == 4 { "198.18.0.1" } else { "2001:db8::1" }.parse().unwrap());
        let backends = members.iter().map(|&index| {
            let address = self.backend(index);
            let backend = Backend {
                address: bits_of(address.ip()),
                port: address.port(),
                family: self.family,
                down: false,
                mtu: 1_500,
                egress: 0,
                next_hop: 0,
                tunnel_source: source,
            };
            (index, backend)
        });
        let snat = (0..16u32).map(|n| {
            let text = if self.family == 4 {
                format!("198.18.0.{}", n + 2)
            } else {
                format!("2001:db8::{:x}", n + 2)
            };
            bits_of(text.parse().unwrap())
        });
        Services::new(Parts {
            generation: 1,
            listeners: vec![Listener {
                index: 0,
                vip: bits_of(self.vip().ip()),
                protocol: 6,
                port_first: 80,
                port_last: 80,
                mode: self.mode,
                pool: 0,
                on_down: OnDown::Reselect,
                gue_variant: 1,
                gue_port: 6080,
                retired: false,
            }],
            pools: vec![Arc::new(Pool {
                index: 0,
                algorithm: Algorithm::Maglev,
                slots: Table::build(&keys, DEFAULT_SLOTS).unwrap().into(),
                members: members.clone().into(),
            })],
            backends: backends.collect(),
            vips: vec![bits_of(self.vip().ip())],
            own: vec![source],
            snat: snat.collect(),
            snat_ports: (1_024, 65_535),
            lifetimes: Some(Lifetimes { embryonic: 10, established: 900, closing: 30, udp: 60 }),
            fragment_ticks: 8,
            icmp_rate: 1_000,
            smallest_mtu: 1_500,
            ..Parts::default()
        })
    }

    fn engine(self, records: usize) -> Engine<HeapMemory> {
        let (v4, v6) = if self.family == 4 { (records, 1) } else { (1, records) };
        let tables = Tables {
            v4: FromZeros::new_vec_zeroed(v4).unwrap(),
            v6: FromZeros::new_vec_zeroed(v6).unwrap(),
            v4_index: vec![Bucket::EMPTY; buckets_for(v4)],
            v6_index: vec![Bucket::EMPTY; buckets_for(v6)],
            snat: Vec::new(),
        };
        Engine::new(Arc::new(self.services()), tables, ReplyOwner::Alone, [3, 5], 0, &mut Counts::default()).0
    }
}

/// A minimal TCP frame, at least 60 bytes (64 with the checksum that the NIC strips).
fn frame(src: SocketAddr, dst: SocketAddr, flags: u8) -> Vec<u8> {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            bytes.extend([from.octets(), to.octets()].concat());
            let sum = checksum::of(&bytes[14..34]);
            bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            bytes.extend([from.octets(), to.octets()].concat());
        }
        _ => unreachable!("one family"),
    }
    bytes.extend(src.port().to_be_bytes());
    bytes.extend(dst.port().to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0x20, 0, 0, 0, 0, 0]);
    bytes.resize(bytes.len().max(60), 0);
    bytes
}

/// Frames side by side, in the order in which they arrive.
struct Frames {
    bytes: Vec<u8>,
    length: usize,
    count: usize,
}

impl Frames {
    fn collect(frames: impl Iterator<Item = Vec<u8>>) -> Self {
        let mut all = Self { bytes: Vec::new(), length: 0, count: 0 };
        for frame in frames {
            all.length = frame.len();
            all.count += 1;
            all.bytes.extend(&frame);
            all.bytes.resize(all.count * STRIDE, 0);
        }
        all
    }

    #[inline]
    fn get(&self, at: usize) -> &[u8] {
        &self.bytes[at * STRIDE..at * STRIDE + self.length]
    }
}

/// Runs all frames `rounds` times; returns nanoseconds per packet of the best of eight stretches: the machine may be shared.
fn run(frames: &Frames, rounds: usize, buffers: &mut [Buffer], mut each: impl FnMut(&mut [Buffer])) -> f64 {
    let mut best = f64::MAX;
    let stretch = rounds.div_ceil(8);
    let mut done = 0;
    while done < rounds {
        let stretch = stretch.min(rounds - done);
        let began = Instant::now();
        for _ in 0..stretch {
            let mut at = 0;
            while at < frames.count {
                let size = BURST.min(frames.count - at);
                for (offset, buffer) in buffers[..size].iter_mut().enumerate() {
                    buffer.fill(frames.get(at + offset));
                }
                each(&mut buffers[..size]);
                at += size;
            }
        }
        best = best.min(began.elapsed().as_nanos() as f64 / (stretch * frames.count) as f64);
        done += stretch;
    }
    best
}

/// What is known of the packets of a burst.
#[derive(Default)]
struct Scratch {
    parsed: [Parsed; BURST],
    lookups: [Lookup; BURST],
}

/// One burst as a worker handles it. Returns how many were delivered.
#[inline]
fn burst(
    engine: &mut Engine<HeapMemory>,
    buffers: &mut [Buffer],
    scratch: &mut Scratch,
    counts: &mut Counts,
    now: u32,
) -> usize {
    let Scratch { parsed, lookups } = scratch;
    for ((buffer, parsed), lookup) in buffers.iter().zip(parsed.iter_mut()).zip(lookups.iter_mut()) {
        parse_into(buffer.data(), &ParseOptions::default(), parsed).unwrap();
        engine.prepare(buffer.data(), parsed, lookup);
    }
    for lookup in lookups.iter_mut().take(buffers.len()) {
        engine.guess(lookup);
    }
    let mut delivered = 0;
    for ((buffer, parsed), lookup) in buffers.iter_mut().zip(parsed.iter()).zip(lookups.iter()) {
        let verdict = engine.process(buffer, parsed, lookup, now, counts);
        delivered += usize::from(matches!(verdict, Verdict::ToBackend(_) | Verdict::ToClient(_)));
    }
    delivered
}

fn shuffled(flows: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..flows as u32).collect();
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..flows).rev() {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        order.swap(at, (word >> 16) as usize % (at + 1));
    }
    order
}

fn measure(case: Case, flows: usize) {
    let mut engine = case.engine(flows + flows / 4);
    let order = shuffled(flows);
    let rounds = PACKETS.div_ceil(flows);
    let empty = Buffer { bytes: [0; 2_176], start: 0, end: 0 };
    let mut buffers = vec![empty; BURST];
    let mut scratch = Scratch::default();
    let mut counts = Counts::default();
    let requests = |flags| Frames::collect(order.iter().map(|&n| frame(case.client(n), case.vip(), flags)));

    let syns = requests(SYN);
    let mut delivered = 0;
    let new = run(&syns, 1, &mut buffers, |buffers| {
        delivered += burst(&mut engine, buffers, &mut scratch, &mut counts, 1);
    });
    assert_eq!((delivered, counts.created as usize), (flows, flows), "every flow is new and delivered");
    // a table that is always full: most flows are gone before their SYN comes round again
    let mut small = case.engine(flows / 2);
    let mut counts = Counts::default();
    let mut seen = 0;
    let full = run(&syns, 8, &mut buffers, |buffers| {
        let now = 1 + (seen * 8 / flows) as u32;
        seen += burst(&mut small, buffers, &mut scratch, &mut counts, now);
    });
    assert_eq!(seen, 8 * flows);
    assert!(counts.created as usize * 10 > seen * 9, "{seen} SYNs made {} flows", counts.created);
    drop((syns, small));
    let acks = requests(ACK);
    let copy = run(&acks, rounds, &mut buffers, |buffers| {
        black_box(&buffers);
    });
    let parsing = run(&acks, rounds, &mut buffers, |buffers| {
        for (buffer, parsed) in buffers.iter().zip(&mut scratch.parsed) {
            parse_into(buffer.data(), &ParseOptions::default(), parsed).unwrap();
        }
        black_box(&scratch.parsed);
    });
    delivered = 0;
    let total = run(&acks, rounds, &mut buffers, |buffers| {
        delivered += burst(&mut engine, buffers, &mut scratch, &mut counts, 1);
    });
    assert_eq!(delivered, rounds * flows);
    drop(acks);
    // replies, from where the requests went
    let mut replies = None;
    if case.mode.sees_replies() {
        let mut answer = Vec::new();
        for &n in &order {
            let mut buffer = buffers[0].clone();
            buffer.fill(&frame(case.client(n), case.vip(), ACK));
            burst(&mut engine, std::slice::from_mut(&mut buffer), &mut scratch, &mut counts, 1);
            let parsed = parse(buffer.data(), &ParseOptions::default()).unwrap();
            let at = |ip: Option<IpAddr>, port| SocketAddr::new(ip.unwrap(), port);
            let from = at(parsed.dst(buffer.data()), parsed.dst_port);
            let to = at(parsed.src(buffer.data()), parsed.src_port);
            answer.push((from, to));
        }
        let frames = Frames::collect(answer.into_iter().map(|(from, to)| frame(from, to, ACK)));
        delivered = 0;
        replies = Some(run(&frames, rounds, &mut buffers, |buffers| {
            delivered += burst(&mut engine, buffers, &mut scratch, &mut counts, 1);
        }));
        assert_eq!(delivered, rounds * flows);
    }
    let reply = replies.map_or(String::from("     -"), |total| format!("{:6.1}", total - copy));
    println!(
        "{:>8} {:>8} IPv{} {copy:6.1} {:6.1} {:6.1} {reply} {:7.1} {:7.1}",
        flows,
        format!("{:?}", case.mode).to_lowercase(),
        case.family,
        parsing - copy,
        total - copy,
        new - copy,
        full - copy
    );
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut sizes: Vec<usize> = arguments.iter().filter_map(|text| text.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![1_000, 100_000, 1_000_000];
    }
    let names: Vec<&String> = arguments.iter().filter(|text| text.parse::<usize>().is_err()).collect();
    println!(
        "ns per packet; parse, engine (parse included), reply, new flow, and new flow in a full table without the copy"
    );
    println!("   flows     mode family copy  parse engine  reply     new    full");
    for flows in sizes {
        for family in [4, 6] {
            for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
                let name = format!("{mode:?}").to_lowercase();
                if names.is_empty() || names.iter().any(|wanted| **wanted == name) {
                    measure(Case { mode, family }, flows);
                }
            }
        }
    }
}
