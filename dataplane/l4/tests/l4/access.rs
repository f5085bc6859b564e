//! May this packet begin a flow, and what becomes of those that are there when the answer changes?

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use weir_access::{List, Per, Policy, Prefix, Rate, Shared};
use weir_l4::snat::ReplyOwner;
use weir_l4::{DropReason, Mode, Parts};

use crate::packets::{ACK, FIN, Packet, RST, SYN, TCP, UDP};
use crate::world::{LIFETIMES, Names, World, names, single};

const SECOND: u64 = 1_000_000_000;

/// A listener that asks this of new flows.
struct Asks {
    deny: Vec<IpAddr>,
    rates: Vec<Rate>,
    most: u32,
}

impl Asks {
    const NOTHING: Self = Self { deny: Vec::new(), rates: Vec::new(), most: 0 };

    fn parts(&self, mode: Mode, protocol: u8, names: &Names, previous: Option<&Shared>) -> Parts {
        let prefix = |address: &IpAddr| (Prefix::new(*address, 128), true);
        let denied: Vec<_> = self.deny.iter().map(prefix).collect();
        let list = List::build(&denied, false).unwrap();
        let counted = if self.most > 0 { vec![0] } else { vec![] };
        let shared = Arc::new(Shared::new(counted, 1_000, previous).with_buckets());
        let policy =
            Policy::new(0, Some((1, Arc::new(list))), &self.rates, self.most, Arc::clone(&shared), None);
        Parts {
            policies: vec![(0, policy)],
            access: Some(shared),
            ..single(mode, protocol, names.vip, names.backend)
        }
    }
}

fn world(parts: Parts) -> World {
    let mut world = World::seeded(parts, 64, ReplyOwner::Alone, [7, 8]);
    world.engine.set_clock(SECOND);
    world
}

fn from(address: &str, port: u16) -> String {
    format!("{}:{port}", address.rsplit_once(':').unwrap().0)
}

#[test]
fn a_denied_source_begins_nothing_and_keeps_what_it_has() {
    for family in [4, 6] {
        for mode in [Mode::Dsr, Mode::Nat, Mode::Fullnat] {
            let names = names(family);
            let syn = Packet::tcp(names.client, names.vip, SYN);
            let client: SocketAddr = names.client.parse().unwrap();
            let deny = Asks { deny: vec![client.ip()], ..Asks::NOTHING };
            let mut world = world(deny.parts(mode, TCP, &names, None));
            assert_eq!(world.packet(&syn).drop_reason(), DropReason::AccessDenied);
            let reset = syn.with(RST);
            assert_eq!(world.packet(&reset).drop_reason(), DropReason::AccessDenied);
            assert_eq!(world.live(), 0);
            world.packet(&Packet::tcp(names.other_client, names.vip, SYN)).to_backend();
            // let in, then denied again
            world.adopt(Asks::NOTHING.parts(mode, TCP, &names, None));
            world.packet(&syn).to_backend();
            world.packet(&syn.with(ACK)).to_backend();
            world.adopt(deny.parts(mode, TCP, &names, None));
            world.packet(&syn.with(ACK)).to_backend();
            assert_eq!(world.live(), 2);
            let another = Packet::tcp(&from(names.client, 40_001), names.vip, SYN);
            assert_eq!(world.packet(&another).drop_reason(), DropReason::AccessDenied);
        }
    }
}

#[test]
fn a_rate_holds_new_flows_only() {
    let names = names(4);
    let prefix = Prefix::new("198.18.2.0".parse().unwrap(), 24);
    let rate = Rate { prefix, per_second: 2, burst: 3, per: Per::Source };
    let parts = Asks { rates: vec![rate], ..Asks::NOTHING }.parts(Mode::Nat, UDP, &names, None);
    let mut world = world(parts);
    let datagram = |port| Packet::udp(&from(names.client, port), names.vip);
    for port in 1..=3 {
        world.packet(&datagram(port)).to_backend();
    }
    assert_eq!(world.packet(&datagram(4)).drop_reason(), DropReason::AccessRate);
    world.packet(&datagram(1)).to_backend();
    world.packet(&Packet::udp(names.other_client, names.vip)).to_backend();
    world.engine.set_clock(2 * SECOND);
    for port in 5..=6 {
        world.packet(&datagram(port)).to_backend();
    }
    assert_eq!(world.packet(&datagram(7)).drop_reason(), DropReason::AccessRate);
}

#[test]
fn flows_count_from_their_beginning_to_their_end() {
    for family in [4, 6] {
        let names = names(family);
        let two = Asks { most: 2, ..Asks::NOTHING };
        let parts = two.parts(Mode::Nat, TCP, &names, None);
        let shared = parts.access.clone().unwrap();
        let mut world = world(parts);
        let syn = |port| Packet::tcp(&from(names.client, port), names.vip, SYN);
        world.packet(&syn(1)).to_backend();
        world.packet(&syn(2)).to_backend();
        assert_eq!(world.packet(&syn(3)).drop_reason(), DropReason::AccessConnections);
        world.packet(&Packet::tcp(names.other_client, names.vip, SYN)).to_backend();
        assert_eq!(shared.counts.total(), (3, 2));
        // the same connection anew is no further one
        world.packet(&syn(1).with(ACK)).to_backend();
        world.packet(&syn(1).with(FIN | ACK)).to_backend();
        world.packet(&syn(1)).to_backend();
        assert_eq!(shared.counts.total(), (3, 2));
        world.now += LIFETIMES.embryonic + 1;
        world.sweep_all();
        assert_eq!((world.live(), shared.counts.total()), (0, (0, 0)));
        world.packet(&syn(3)).to_backend();
        assert_eq!(shared.counts.total(), (1, 1));
    }
}

#[test]
fn a_full_table_gives_back_what_it_evicts() {
    let names = names(4);
    let parts = Asks { most: 1_000, ..Asks::NOTHING }.parts(Mode::Nat, TCP, &names, None);
    let shared = parts.access.clone().unwrap();
    let mut world = world(parts);
    for port in 1..=500 {
        world.packet(&Packet::tcp(&from(names.client, port), names.vip, SYN)).to_backend();
        assert_eq!(shared.counts.total().0, u64::from(world.live()));
    }
    assert!(world.live() <= 64);
}

#[test]
fn flows_from_before_a_limit_are_counted_when_it_comes() {
    let names = names(4);
    let parts = Asks::NOTHING.parts(Mode::Nat, TCP, &names, None);
    let first = parts.access.clone().unwrap();
    let mut world = world(parts);
    let syn = |port| Packet::tcp(&from(names.client, port), names.vip, SYN);
    (1..=3).for_each(|port| drop(world.packet(&syn(port)).to_backend()));
    let limited = Asks { most: 3, ..Asks::NOTHING }.parts(Mode::Nat, TCP, &names, Some(&first));
    let second = limited.access.clone().unwrap();
    world.adopt(limited);
    assert_eq!(second.counts.total(), (3, 1));
    assert_eq!(world.packet(&syn(4)).drop_reason(), DropReason::AccessConnections);
    // another limit: the same counts
    let more = Asks { most: 4, ..Asks::NOTHING }.parts(Mode::Nat, TCP, &names, Some(&second));
    world.adopt(more);
    assert_eq!(second.counts.total(), (3, 1));
    world.packet(&syn(4)).to_backend();
    world.now += LIFETIMES.embryonic + 1;
    world.sweep_all();
    assert_eq!(second.counts.total(), (0, 0));
}
