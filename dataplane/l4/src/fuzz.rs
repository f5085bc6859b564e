//! The body of this crate's fuzz target: arbitrary frames through an engine with every mode; no panic, nothing unbounded.

use std::sync::Arc;

use weir_net::{ParseOptions, VecBuf, parse};

use crate::engine::{Accounts, Ended, Engine, HeapMemory, Lookup, Tables};
use crate::entry::{Entry, EntryV4, EntryV6, Flow, NO_SNAT, State};
use crate::services::{Algorithm, Backend, Listener, Mode, OnDown, Parts, Pool, Services, bits_of};
use crate::snat::ReplyOwner;
use weir_index::{Bucket, buckets_for};

/// Flows minus ended flows; must equal what the tables hold.
#[derive(Debug, Default)]
pub struct Balance(pub i64);

impl Accounts for Balance {
    fn flow_created(&mut self, _: u16, _: u32) {
        self.0 += 1;
    }
    fn flow_ended(&mut self, _: u16, _: u32, _: Ended) {
        self.0 -= 1;
    }
    fn reset_sent(&mut self, _: u16, _: u32) {}
    fn no_backend(&mut self, _: u16) {}
}

/// A service on 198.18.0.100 and 2001:db8::100, TCP and UDP; port 1000 + n is mode n, ports 2000 to 2999 are a `nat` range.
pub fn services() -> Services {
    let address = |text: &str| text.parse().map_or(0, bits_of);
    let modes = [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat];
    let mut listeners = Vec::new();
    for (pool, vip) in [(0, "198.18.0.100"), (1, "2001:db8::100")] {
        for protocol in [6, 17] {
            for (ports, mode) in
                (1000..).map(|port| (port, port)).zip(modes).chain([((2000, 2999), Mode::Nat)])
            {
                let index = listeners.len() as u16;
                listeners.push(Listener {
                    index,
                    vip: address(vip),
                    protocol,
                    port_first: ports.0,
                    port_last: ports.1,
                    mode,
                    pool,
                    on_down: match index % 3 {
                        0 => OnDown::Reselect,
                        1 => OnDown::Reset,
                        _ => OnDown::Keep,
                    },
                    gue_variant: (index & 1) as u8,
                    gue_port: 6080,
                    retired: false,
                });
            }
        }
    }
    let backend = |text: &str, family, down| Backend {
        address: address(text),
        port: if down { 8080 } else { 0 },
        family,
        down,
        mtu: 1500,
        egress: 0,
        next_hop: 0,
        tunnel_source: address(if family == 4 { "198.18.0.1" } else { "2001:db8::1" }),
    };
    let pool = |index, members: [u32; 2]| {
        let slots = (0..=96u16).map(|slot| if slot == 50 { u16::MAX } else { slot % 2 }).collect();
        let algorithm = if index == 0 { Algorithm::Maglev } else { Algorithm::RoundRobin };
        Arc::new(Pool { index, algorithm, slots, members: members.into() })
    };
    Services::new(Parts {
        generation: 1,
        listeners,
        pools: vec![pool(0, [0, 1]), pool(1, [2, 3])],
        backends: vec![
            (0, backend("198.18.1.1", 4, false)),
            (1, backend("198.18.1.2", 4, true)),
            (2, backend("2001:db8:1::1", 6, false)),
            (3, backend("2001:db8:1::2", 6, true)),
        ],
        vips: vec![address("198.18.0.100"), address("2001:db8::100")],
        own: vec![address("198.18.0.1"), address("2001:db8::1")],
        snat: vec![address("198.18.0.2"), address("2001:db8::2")],
        snat_ports: (60_000, 60_063),
        fragment_ticks: 8,
        icmp_rate: 1_000_000,
        smallest_mtu: 1500,
        ..Parts::default()
    })
}

/// An engine with room for `records` flows of each family.
pub fn engine(services: Services, records: usize, accounts: &mut impl Accounts) -> Engine<HeapMemory> {
    fn free<A: Default + Copy>() -> Flow<A> {
        let (client, state) = (A::default(), State::Free);
        Flow {
            client,
            client_port: 0,
            vip_port: 0,
            protocol: 0,
            listener: 0,
            backend: 0,
            snat: NO_SNAT,
            snat_port: 0,
            reverse: 0,
            state,
            last_seen: 0,
        }
    }
    let tables = Tables::<HeapMemory> {
        v4: vec![EntryV4::new(&free()); records],
        v6: vec![EntryV6::new(&free()); records],
        v4_index: vec![Bucket::EMPTY; buckets_for(records)],
        v6_index: vec![Bucket::EMPTY; buckets_for(records)],
        snat: Vec::new(),
    };
    Engine::new(Arc::new(services), tables, ReplyOwner::Alone, [0x1234, 0x5678], 0, accounts).0
}

/// Frames of a burst: all are looked up before the first is processed, as the worker does.
const BURST: usize = 4;

/// `data` is a sequence of frames: two bytes of length (big-endian), then the frame. Time passes with each burst.
pub fn l4(data: &[u8]) {
    let mut accounts = Balance::default();
    let mut engine = engine(services(), 32, &mut accounts);
    let mut rest = data;
    let mut now = 0;
    while !rest.is_empty() {
        now += 1;
        let mut burst = Vec::with_capacity(BURST);
        while burst.len() < BURST
            && let Some((length, tail)) = rest.split_first_chunk::<2>()
        {
            let length = usize::from(u16::from_be_bytes(*length) % 2_000).min(tail.len());
            let (frame, tail) = tail.split_at(length);
            rest = tail;
            let Ok(mut parsed) = parse(frame, &ParseOptions::default()) else { continue };
            if parsed.is_fragment() && !engine.follow_fragment(frame, &mut parsed, now) {
                continue;
            }
            let mut lookup = Lookup::default();
            engine.prepare(frame, &parsed, &mut lookup);
            burst.push((VecBuf::new(frame), parsed, lookup));
        }
        if burst.is_empty() {
            break;
        }
        for (.., lookup) in &mut burst {
            engine.guess(lookup);
        }
        for (mut packet, parsed, lookup) in burst {
            let _ = engine.process(&mut packet, &parsed, &lookup, now, &mut accounts);
        }
        engine.sweep(8, now, &mut accounts);
        let (v4, v6) = engine.live();
        assert_eq!(accounts.0, i64::from(v4 + v6), "accounts and tables agree");
        assert_eq!(engine.count(), (v4 as usize, v6 as usize), "no record is lost or used twice");
        assert!(v4 <= 32 && v6 <= 32, "tables are bounded");
    }
}
