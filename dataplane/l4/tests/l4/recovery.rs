//! What does the next process make of the records that a killed one left?

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;

use weir_index::{Bucket, buckets_for};
use weir_l4::entry::{EntryV4, EntryV6};
use weir_l4::services::Algorithm;
use weir_l4::snat::ReplyOwner;
use weir_l4::table::Recovery;
use weir_l4::{DropReason, Engine, Memory, Mode, Parts, Services, Tables, Verdict};
use zerocopy::IntoBytes;

use crate::packets::{ACK, FIN, Packet, TCP, UDP};
use crate::world::{
    Change, LIFETIMES, Ledger, World, address, bits, client, first, names, pair, pool, zeroed,
};

/// Memory that outlives its engine, as a hugepage segment does.
#[derive(Debug)]
struct Kept<T> {
    records: Vec<T>,
    segment: Rc<RefCell<Vec<T>>>,
}

impl<T> Kept<T> {
    fn map(segment: &Rc<RefCell<Vec<T>>>) -> Self {
        Self { records: segment.take(), segment: Rc::clone(segment) }
    }
}

impl<T> Deref for Kept<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.records
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.records
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        self.segment.replace(std::mem::take(&mut self.records));
    }
}

#[derive(Debug)]
struct Segments;

impl Memory for Segments {
    type V4 = Kept<EntryV4>;
    type V6 = Kept<EntryV6>;
    type Index = Vec<Bucket>;
}

/// The segments of one worker.
struct Machine {
    v4: Rc<RefCell<Vec<EntryV4>>>,
    v6: Rc<RefCell<Vec<EntryV6>>>,
    snat: Vec<u128>,
    seed: u64,
    buckets: usize,
}

impl Machine {
    fn new(records: usize) -> Self {
        let v4 = Rc::new(RefCell::new(vec![zeroed(); records]));
        let v6 = Rc::new(RefCell::new(vec![zeroed(); records]));
        Self { v4, v6, snat: Vec::new(), seed: 1, buckets: buckets_for(records) }
    }

    /// Starts a process on the segments; the one before must be gone. Each has its own hash seed.
    fn start(&mut self, parts: Parts, now: u32) -> (World<Segments>, Recovery) {
        self.seed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let tables = Tables {
            v4: Kept::map(&self.v4),
            v6: Kept::map(&self.v6),
            v4_index: vec![Bucket::EMPTY; self.buckets],
            v6_index: vec![Bucket::EMPTY; self.buckets],
            snat: self.snat.clone(),
        };
        let mut ledger = Ledger::default();
        let services = Arc::new(Services::new(parts));
        let seed = [self.seed, !self.seed];
        let (engine, recovery) = Engine::new(services, tables, ReplyOwner::Alone, seed, now, &mut ledger);
        assert_eq!(ledger.live, i64::from(recovery.recovered), "what is taken over is counted as live");
        self.snat = engine.snat_addresses().to_vec();
        (World { engine, ledger, now, twin: None, short: 0 }, recovery)
    }
}

/// A flow as its three parties see it.
#[derive(Clone, Debug)]
struct Seen {
    request: Packet,
    backend: u32,
    /// From the backend to whom it takes for the client.
    reply: Packet,
}

fn establish<M: Memory>(world: &mut World<M>, mode: Mode, protocol: u8, family: u8, n: u32) -> Seen {
    let names = names(family);
    let request = first(protocol, &client(family, n), names.vip);
    let (delivery, out) = world.packet(&request).to_backend();
    world.packet(&request.with(ACK)).to_backend();
    let server: SocketAddr =
        if delivery.backend == 0 { names.backend } else { names.second }.parse().unwrap();
    let to = if mode == Mode::Fullnat {
        let at = if family == 4 { 20 } else { 40 };
        (address(names.snat), u16::from_be_bytes([out[at], out[at + 1]])).into()
    } else {
        request.src
    };
    let reply = Packet { src: server, dst: to, ..request.answer(ACK) };
    Seen { request: request.with(ACK), backend: delivery.backend, reply }
}

/// The client that a reply was delivered to.
fn receiver(datagram: &[u8]) -> SocketAddr {
    let port = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    if datagram[0] >> 4 == 4 {
        SocketAddr::new(<[u8; 4]>::try_from(&datagram[16..20]).unwrap().into(), port(22))
    } else {
        SocketAddr::new(<[u8; 16]>::try_from(&datagram[24..40]).unwrap().into(), port(42))
    }
}

#[test]
fn flows_go_on_in_the_next_process_though_the_pool_has_changed() {
    for mode in [Mode::Dsr, Mode::Ipip, Mode::Gue, Mode::Nat, Mode::Fullnat] {
        for (protocol, family) in [(TCP, 4), (UDP, 4), (TCP, 6), (UDP, 6)] {
            let mut machine = Machine::new(64);
            let (mut world, recovery) = machine.start(pair(mode, protocol, family), 0);
            assert_eq!(recovery, Recovery::default());
            let flows: Vec<Seen> =
                (0..40).map(|n| establish(&mut world, mode, protocol, family, n)).collect();
            assert!(flows.iter().any(|flow| flow.backend == 0));
            drop(world);
            // killed; meanwhile backend 0 left the pool and the source address changed
            let changed = Parts {
                pools: vec![pool(0, Algorithm::Maglev, &[(1, 1)])],
                snat: vec![bits("198.18.0.77"), bits("2001:db8::77")],
                ..pair(mode, protocol, family)
            };
            let (mut world, recovery) = machine.start(changed, 3);
            assert_eq!(recovery, Recovery { recovered: 40, discarded: 0 }, "{mode:?}");
            for flow in &flows {
                assert_eq!(world.backend_of(&flow.request), flow.backend, "{mode:?}");
                if mode.sees_replies() {
                    let (_, back) = world.packet(&flow.reply).to_client();
                    assert_eq!(receiver(&back), flow.request.src);
                }
            }
            for n in 100..110 {
                assert_eq!(world.backend_of(&first(protocol, &client(family, n), names(family).vip)), 1);
            }
            assert_eq!(world.live(), 50);
            // states came along: an established flow outlives an embryonic one's time
            world.now = 3 + LIFETIMES.of(if protocol == TCP {
                weir_l4::entry::State::Established
            } else {
                weir_l4::entry::State::Udp
            });
            world.sweep_all();
            assert!(world.live() >= 40, "{}", world.live());
            world.now += 1;
            world.sweep_all();
            assert_eq!(world.live(), 0);
        }
    }
}

#[test]
fn a_source_port_in_use_is_not_given_to_another_after_a_restart() {
    let mut machine = Machine::new(64);
    let parts = || Parts {
        snat_ports: (30_000, 30_007),
        snat: vec![bits("198.18.0.2")],
        ..pair(Mode::Fullnat, TCP, 4)
    };
    let (mut world, _) = machine.start(parts(), 0);
    let mut flows: Vec<Seen> = (0..8).map(|n| establish(&mut world, Mode::Fullnat, TCP, 4, n)).collect();
    drop(world);
    let (mut world, _) = machine.start(parts(), 1);
    for n in 100..140 {
        let outcome = world.packet(&first(TCP, &client(4, n), names(4).vip));
        match outcome.verdict {
            Verdict::ToBackend(_) => flows.push(establish(&mut world, Mode::Fullnat, TCP, 4, n)),
            other => assert_eq!(other, Verdict::Drop(DropReason::SnatExhausted)),
        }
    }
    assert_eq!(flows.len(), 16, "8 ports towards each of 2 backends");
    for flow in &flows {
        let (_, back) = world.packet(&flow.reply).to_client();
        assert_eq!(receiver(&back), flow.request.src);
    }
}

#[test]
fn records_that_mean_nothing_any_more_are_discarded() {
    let cases: [(&str, Change, u32); 6] = [
        ("no listener", |parts| parts.listeners.clear(), 5),
        ("another vip's family", |parts| parts.listeners[0].vip = bits("2001:db8::100"), 5),
        ("another protocol", |parts| parts.listeners[0].protocol = UDP, 5),
        ("another port", |parts| (parts.listeners[0].port_first, parts.listeners[0].port_last) = (81, 89), 5),
        ("another kind of mode", |parts| parts.listeners[0].mode = Mode::Fullnat, 5),
        ("a clock that runs behind", |_| {}, 4),
    ];
    for (what, change, now) in cases {
        let mut machine = Machine::new(16);
        let (mut world, _) = machine.start(pair(Mode::Nat, TCP, 4), 5);
        for n in 0..10 {
            establish(&mut world, Mode::Nat, TCP, 4, n);
        }
        drop(world);
        let mut parts = pair(Mode::Nat, TCP, 4);
        change(&mut parts);
        let (world, recovery) = machine.start(parts, now);
        assert_eq!(recovery, Recovery { recovered: 0, discarded: 10 }, "{what}");
        assert_eq!(world.live(), 0);
        drop(world);
        // and are gone for good
        let (mut world, recovery) = machine.start(pair(Mode::Nat, TCP, 4), 5);
        assert_eq!(recovery, Recovery::default(), "{what}");
        for n in 0..16 {
            establish(&mut world, Mode::Nat, TCP, 4, n);
        }
    }
}

#[test]
fn what_a_smaller_index_can_not_hold_is_discarded_and_not_counted() {
    let mut machine = Machine::new(200);
    let (mut world, _) = machine.start(pair(Mode::Nat, TCP, 4), 0);
    for n in 0..200 {
        establish(&mut world, Mode::Nat, TCP, 4, n);
    }
    drop(world);
    // 8 lines of 15 words, two words a flow
    machine.buckets = 8;
    let (world, recovery) = machine.start(pair(Mode::Nat, TCP, 4), 0);
    assert!((40..=60).contains(&recovery.recovered), "{recovery:?}");
    assert_eq!((recovery.recovered + recovery.discarded, world.live()), (200, recovery.recovered));
}

/// Flips every bit of every record, one at a time, and starts on it.
fn flip_every_bit(mode: Mode, family: u8) {
    let parts = || Parts { snat_ports: (30_000, 30_001), ..pair(mode, TCP, family) };
    // two old flows ended, one of their records is free again but still holds who it was, and its source port is
    // another's by now
    let mut machine = Machine::new(6);
    let (mut world, _) = machine.start(parts(), 0);
    let numbers: Vec<u32> = {
        let mut probe = World::new(pair(Mode::Dsr, TCP, family), 1_000);
        (0..500)
            .filter(|n| probe.backend_of(&first(TCP, &client(family, *n), names(family).vip)) == 0)
            .collect()
    };
    for &n in &numbers[..2] {
        let flow = establish(&mut world, mode, TCP, family, n);
        world.packet(&flow.request.with(FIN | ACK)).to_backend();
    }
    world.now = LIFETIMES.established + 1;
    world.sweep_all();
    assert_eq!(world.live(), 0);
    let flows: Vec<Seen> =
        numbers[2..3].iter().map(|&n| establish(&mut world, mode, TCP, family, n)).collect();
    let now = world.now;
    drop(world);
    let (v4, v6) = (machine.v4.borrow().clone(), machine.v6.borrow().clone());
    let bits = 8 * if family == 4 { v4.as_bytes().len() } else { v6.as_bytes().len() };
    for bit in 0..bits {
        machine.v4.replace(v4.clone());
        machine.v6.replace(v6.clone());
        if family == 4 {
            machine.v4.borrow_mut().as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        } else {
            machine.v6.borrow_mut().as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
        }
        let (mut world, recovery) = machine.start(parts(), now);
        let record = bit / 8 / if family == 4 { 32 } else { 48 };
        let whole = u32::from(recovery.recovered > 0);
        assert_eq!(recovery.recovered, whole, "{mode:?} bit {bit} of record {record} revived a dead flow");
        for flow in &flows {
            match world.packet(&flow.reply).verdict {
                Verdict::Drop(DropReason::BackendNoFlow) => {}
                Verdict::ToClient(_) => {
                    let (_, back) = world.packet(&flow.reply).to_client();
                    assert_eq!(receiver(&back), flow.request.src, "{mode:?} bit {bit} of record {record}");
                }
                other => panic!("{mode:?} bit {bit} of record {record}: {other:?}"),
            }
            let after = world.packet(&flow.request).verdict;
            match after {
                Verdict::ToBackend(delivery) => assert_eq!(delivery.backend, 0),
                other => assert_eq!(other, Verdict::Drop(DropReason::NoFlow), "{mode:?} bit {bit}"),
            }
        }
        // the table is whole: it fills up and empties
        world.now = now + 2 * LIFETIMES.established;
        world.sweep_all();
        assert_eq!(world.live(), 0, "{mode:?} bit {bit} of record {record}: immortal");
    }
}

#[test]
fn a_flipped_bit_never_brings_a_reply_to_the_wrong_client() {
    for mode in [Mode::Nat, Mode::Fullnat] {
        for family in [4, 6] {
            flip_every_bit(mode, family);
        }
    }
}

#[test]
fn arbitrary_memory_is_survived() {
    let mut word = 0x1234_5678_9abc_def1_u64;
    for round in 0..50 {
        let mut machine = Machine::new(64);
        for byte in machine.v4.borrow_mut().as_mut_bytes() {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            *byte = if round % 2 == 0 { word as u8 } else { (word % 7) as u8 };
        }
        let (mut world, recovery) = machine.start(pair(Mode::Fullnat, TCP, 4), u32::MAX - 5);
        assert_eq!(recovery.recovered, 0);
        for n in 0..64 {
            establish(&mut world, Mode::Fullnat, TCP, 4, n);
        }
        assert_eq!(world.live(), 64);
    }
}
