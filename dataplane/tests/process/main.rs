//! The real `weir-dataplane`, with captures for ports and a snapshot that the test publishes: no root, no hugepages.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test stops where it goes wrong"
)]

mod frames;
mod rig;
#[path = "../../src/sample.rs"]
mod sample;

use std::net::{IpAddr, Ipv4Addr};

use frames::{Seen, mac, seen, tcp, udp};
use hugepages::generation::RunState;
use rig::{Rig, wait_for};
use sample::{GATEWAY, Generation, VIP, ip};
use weir_abi::record::{AdminState, PortRecord};
use weir_abi::text::Text;
use weir_abi::{PoolTable, root_name, table_name};
use weir_net::{Mac, arp};

const GATEWAY_MAC: Mac = mac(0xee);
const CLIENT: &str = "198.18.2.7";
const B0: &str = "198.18.1.11";
const B2: &str = "198.18.1.13";
const B3: &str = "198.18.1.14";

fn v4(text: &str) -> Ipv4Addr {
    match ip(text) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => unreachable!("{text} is written as IPv4"),
    }
}

/// Hosts say where they are: an answer to whoever asked.
fn here(mac: Mac, address: &str) -> Vec<u8> {
    arp::reply(mac, v4(address), rig::ANY_MAC, v4("198.18.1.254"), None).to_vec()
}

fn client(port: u16) -> (&'static str, u16) {
    (CLIENT, port)
}

/// What came out of a port, without Weir's own ARP and NDP.
fn packets(frames: &[Vec<u8>]) -> Vec<Seen> {
    frames.iter().filter_map(|frame| seen(frame)).collect()
}

/// One backend per listener, so that there is one right answer.
fn lone(rig: &Rig) -> Generation {
    let mut generation = rig.generation();
    for (pool, slot) in generation.pools.iter_mut().zip([0, 0]) {
        pool.slots = vec![slot];
    }
    generation
}

#[test]
fn packets_come_out_as_they_should() {
    let rig = Rig::new("packets");
    let syn = tcp(GATEWAY_MAC, client(40_000), (VIP, 80), "S");
    let echo = frames::echo(GATEWAY_MAC, CLIENT, VIP);
    let vip = arp::request(GATEWAY_MAC, v4(GATEWAY), v4(VIP), None).to_vec();
    let foreign = arp::request(GATEWAY_MAC, v4(GATEWAY), v4("198.18.0.77"), None).to_vec();
    let query = udp(GATEWAY_MAC, client(40_001), (VIP, 53), b"query");
    let nowhere = udp(GATEWAY_MAC, client(40_002), (VIP, 54), b"nobody listens");
    let mut torn = syn.clone();
    torn[24] ^= 1; // IPv4 header checksum
    let wan = [here(GATEWAY_MAC, GATEWAY), syn, query, nowhere, torn, echo, vip, foreign];
    let answer = tcp(mac(0), (B0, 8_080), client(40_000), "SA");
    let stray = tcp(mac(0), (B0, 8_080), client(50_000), "A");
    let lan = [answer, stray, here(mac(0), B0), here(mac(2), B2)];
    rig.inputs(&wan, &lan);
    rig.publish(1, &lone(&rig));

    let mut dataplane = rig.start();
    dataplane.until_acked(&rig, 1);
    wait_for("packets to be decided on", || {
        let came = rig.worker("rx_packets") == 12;
        (came && rig.backend(2, "packets_in") == 1 && rig.backend(0, "packets_out") == 1).then_some(())
    });
    wait_for("packets to have gone", || (rig.worker("held") == 0).then_some(()));
    wait_for("balance", || (rig.imbalance() == 0).then_some(()));
    assert_eq!(rig.backend(0, "packets_in"), 1);
    assert_eq!((rig.backend(0, "packets_out"), rig.backend(0, "flows_active")), (1, 1));
    assert_eq!((rig.backend(1, "packets_in"), rig.backend(3, "packets_in")), (0, 0));
    wait_for("reachability", || {
        let unreachable = |backend| rig.backend(backend, "unreachable");
        ((0..4).map(unreachable).collect::<Vec<_>>() == [0, 1, 0, 1]).then_some(())
    });
    dataplane.terminate();
    rig.assert_balanced();
    assert_eq!(rig.port(0, "rx_packets") + rig.port(1, "rx_packets"), 12);
    assert_eq!(
        rig.drops(),
        [
            ("bad_header_checksum".to_owned(), 1),
            ("no_listener".to_owned(), 1),
            ("backend_no_flow".to_owned(), 1)
        ]
    );

    // what left for the backends
    let (wan, lan) = rig.outputs();
    let mut out = packets(&lan);
    out.sort_by_key(|packet| packet.protocol);
    let [syn, query] = out.as_slice() else { panic!("{out:?}") };
    let ttl = frames::TTL - 1;
    let rewritten = Seen {
        to: mac(0),
        from: syn.from,
        ttl,
        source: client(40_000).into(),
        destination: (B0, 8_080).into(),
        ..syn.clone()
    };
    assert_eq!(*syn, rewritten);
    assert_eq!(syn.flags, "S");
    let untouched = Seen {
        to: mac(2),
        from: syn.from,
        ttl,
        source: client(40_001).into(),
        destination: (VIP, 53).into(),
        ..query.clone()
    };
    assert_eq!(*query, untouched);
    assert_eq!(query.payload, b"query");
    assert!(syn.from.is_unicast());

    // and for clients
    let mut out = packets(&wan);
    out.sort_by_key(|packet| packet.protocol);
    let [echo, answer] = out.as_slice() else { panic!("{out:?}") };
    let expected = Seen {
        to: GATEWAY_MAC,
        ttl,
        source: (VIP, 80).into(),
        destination: client(40_000).into(),
        ..answer.clone()
    };
    assert_eq!((answer, answer.flags.as_str()), (&expected, "SA"));
    assert_eq!((echo.to, echo.source.0, echo.destination.0), (GATEWAY_MAC, ip(VIP), ip(CLIENT)));

    // ARP: the vip was answered for, the foreign address was not; all own addresses were announced
    let told = frames::arp_senders(&wan);
    let answers: Vec<_> = told.iter().filter(|(to, _)| *to == GATEWAY_MAC).map(|(_, ip)| *ip).collect();
    assert_eq!(answers, [v4(VIP)]);
    for address in [VIP, "198.18.0.254"] {
        assert!(told.contains(&(Mac::BROADCAST, v4(address))), "{address}: {told:?}");
    }
    let told = frames::arp_senders(&lan);
    for address in [VIP, sample::SNAT, "198.18.1.254"] {
        assert!(told.contains(&(Mac::BROADCAST, v4(address))), "{address}: {told:?}");
    }
}

#[test]
fn generations_are_adopted_or_refused_under_traffic() {
    let rig = Rig::new("generations");
    let query = udp(GATEWAY_MAC, client(40_001), (VIP, 53), b"query");
    rig.inputs(&[query], &[here(mac(0), B0), here(mac(2), B2), here(mac(3), B3)]);
    let endless = |generation: &Generation| {
        let mut generation = generation.clone();
        generation.node.ports[0].device =
            Text::new(&format!("pcap:{},,infinite", rig.path("wan-in").display()));
        generation
    };
    let first = endless(&lone(&rig));
    rig.publish(1, &first);
    let mut dataplane = rig.start();
    dataplane.until_acked(&rig, 1);
    let grows = |backend| {
        let before = rig.backend(backend, "packets_in");
        wait_for("packets to go on", || (rig.backend(backend, "packets_in") > before + 100).then_some(()));
    };
    grows(2);
    assert_eq!(rig.backend(3, "packets_in"), 0);

    // the backend goes into maintenance: its flow moves
    let mut second = first.clone();
    second.pools[1].backends[0].admin = AdminState::Maint as u8;
    second.pools[1].slots = vec![1];
    rig.publish(2, &second);
    dataplane.until_acked(&rig, 2);
    grows(3);
    assert_eq!(rig.publisher().dataplane().refusal, None);

    // a table that does not verify
    let mut third = first.clone();
    third.pools[1].backends[1].weight = 9;
    let refused = |number: u64, reason: &str| {
        let refusal = wait_for("a refusal", || {
            let state = rig.publisher().dataplane();
            state.refusal.filter(|refusal| refusal.generation == number)
        });
        assert!(refusal.text.contains(reason), "{} instead of {reason}", refusal.text);
        let state = rig.publisher().dataplane();
        assert_eq!((state.adopted_generation, state.state), (2, Some(RunState::Running)));
        assert_eq!(rig.publisher().acked_by_all(), Some(2));
        grows(3);
    };
    let root = third.write(rig.directory(), 3);
    let name = table_name(root.tables[3].id);
    let mut bytes = rig.directory().read(&name, 1 << 20).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    rig.directory().publish(&name, &bytes).unwrap();
    rig.publisher().publish(3);
    refused(3, &format!("{name}: checksum "));
    // a root that is not there
    rig.publisher().publish(4);
    refused(4, "can't read root-4: ");

    // what can't change
    let port =
        |edit: fn(&mut PortRecord)| move |generation: &mut Generation| edit(&mut generation.node.ports[1]);
    let ports = "the list of ports, a port's device, mtu, queues, descriptors or exception";
    type Change<'a> = (&'a str, &'a dyn Fn(&mut Generation));
    let changes: [Change<'_>; 5] = [
        ("dataplane.workers", &|generation| generation.node.node.worker_count = 2),
        ("dataplane.flow_table", &|generation| generation.node.node.flows_ipv4 = 2_048),
        ("dataplane.buffers", &|generation| generation.node.node.buffers = 4_095),
        (ports, &port(|port| port.mtu = 1_400)),
        (ports, &port(|port| port.device = Text::new("null:"))),
    ];
    for (number, (field, change)) in (5..).zip(changes) {
        let mut generation = second.clone();
        change(&mut generation);
        rig.publish(number, &generation);
        refused(number, &format!("{field} can't change while it runs: restart weir-dataplane"));
    }

    // and a good one again: the refusal is history
    rig.publish(20, &first);
    dataplane.until_acked(&rig, 20);
    assert_eq!(rig.publisher().dataplane().refusal, None);
    assert_eq!(rig.worker("generation"), 20);
    dataplane.terminate();
    rig.assert_balanced();
}

#[test]
fn a_killed_process_starts_again_alone_with_its_flows() {
    let rig = Rig::new("killed");
    let hosts = [here(mac(0), B0), here(mac(1), "198.18.1.12"), here(mac(2), B2), here(mac(3), B3)];
    let wan = |frames: &[Vec<u8>]| [&[here(GATEWAY_MAC, GATEWAY)], frames].concat();
    let syn = tcp(GATEWAY_MAC, client(40_000), (VIP, 80), "S");
    let ack = tcp(GATEWAY_MAC, client(40_000), (VIP, 80), "A");
    let answer = tcp(mac(0), (B0, 8_080), client(40_000), "SA");
    rig.inputs(&wan(&[syn, ack.clone()]), &[&[answer][..], &hosts].concat());
    rig.publish(1, &lone(&rig));
    let mut dataplane = rig.start();
    dataplane.until_acked(&rig, 1);
    wait_for("the flow", || (rig.backend(0, "packets_in") == 2).then_some(()));
    // new flows go elsewhere from now on
    let mut second = lone(&rig);
    second.pools[0].slots = vec![1];
    rig.publish(2, &second);
    dataplane.until_acked(&rig, 2);
    dataplane.kill();
    let epoch = rig.publisher().dataplane().start_epoch;
    // the control plane's last word before it died, too, is not usable
    rig.directory().publish(&root_name(3), b"torn").unwrap();
    rig.publisher().publish(3);
    rig.forget_publisher();

    let fresh = tcp(GATEWAY_MAC, client(40_009), (VIP, 80), "S");
    let push = tcp(GATEWAY_MAC, client(40_000), (VIP, 80), "PA");
    rig.inputs(&wan(&[push, ack, fresh]), &hosts);
    let mut dataplane = rig.start();
    let state = wait_for("it to run alone", || {
        let state = rig.control().dataplane();
        let acked = rig.control().acked_by_all() == Some(2);
        (acked && state.state == Some(RunState::Running)).then_some(state)
    });
    assert_eq!((state.adopted_generation, state.start_epoch), (2, epoch + 1));
    let refusal = wait_for("the refusal", || rig.control().dataplane().refusal);
    assert_eq!((refusal.generation, refusal.text.as_str()), (3, "root-3 is 4 bytes long, expected 48"));
    wait_for("the flow to go on", || (rig.backend(0, "packets_in") == 2).then_some(()));
    wait_for("a new one", || (rig.backend(1, "packets_in") == 1).then_some(()));
    wait_for("packets to have gone", || (rig.worker("held") == 0).then_some(()));
    assert_eq!((rig.worker("flows_recovered"), rig.worker("flows_discarded")), (1, 0));
    dataplane.terminate();
    rig.assert_balanced();
    let (_, lan) = rig.outputs();
    let flags: Vec<_> = packets(&lan).into_iter().map(|packet| (packet.to, packet.flags)).collect();
    let expected = [(mac(0), "PA"), (mac(0), "A"), (mac(1), "S")];
    for (to, flags_) in expected {
        assert!(flags.contains(&(to, flags_.to_owned())), "{flags:?}");
    }
}

#[test]
fn it_waits_for_a_snapshot_and_says_what_is_wrong_with_one() {
    let rig = Rig::new("waits");
    rig.inputs(&[], &[]);
    let mut dataplane = rig.start();
    let state = |wanted| {
        wait_for("a state", || {
            let state = rig.publisher().dataplane();
            (state.is_alive && state.state == Some(wanted)).then_some(state)
        })
    };
    state(RunState::Waiting);
    rig.directory().publish(&root_name(1), b"").unwrap();
    rig.publisher().publish(1);
    let refusal = state(RunState::Refused).refusal.unwrap();
    assert_eq!(refusal.generation, 1);
    rig.publish(2, &lone(&rig));
    dataplane.until_acked(&rig, 2);
    assert_eq!(state(RunState::Running).refusal, None);
    dataplane.terminate();
    rig.assert_balanced();
}

#[test]
fn a_port_that_is_not_there_is_named() {
    let rig = Rig::new("port");
    rig.inputs(&[], &[]);
    let mut generation = lone(&rig);
    generation.node.ports[1].device = Text::new(&format!("pcap:{},", rig.path("missing").display()));
    rig.publish(1, &generation);
    let mut dataplane = rig.start();
    let (code, log) = dataplane.until_ended();
    assert_eq!(code, Some(1), "{log}");
    let state = rig.publisher().dataplane();
    assert_eq!((state.is_alive, state.state), (false, Some(RunState::Refused)));
    let refusal = state.refusal.unwrap();
    assert!(
        refusal.text.starts_with("port \"lan\": ") && refusal.text.contains("missing"),
        "{}",
        refusal.text
    );
    assert!(log.contains(&refusal.text), "{log}");
}

/// Captures have one queue: what belongs to the second worker goes over a ring, and comes back over another to be sent.
#[test]
fn two_workers_share_one_queue_and_lose_nothing() {
    let rig = Rig::new("workers");
    let query = |port| udp(GATEWAY_MAC, client(port), (VIP, 53), b"query");
    let queries: Vec<_> = (1_000..1_064).map(query).collect();
    rig.inputs(&queries, &[here(mac(2), B2), here(mac(3), B3)]);
    let mut generation = rig.generation();
    generation.node.node.worker_count = 2;
    generation.node.ports[0].device = Text::new(&format!("pcap:{},,infinite", rig.path("wan-in").display()));
    generation.node.ports[1].device = Text::new(&format!("pcap:{},", rig.path("lan-in").display()));
    // as many slots as spread 64 flows over both
    generation.pools[1] =
        PoolTable { slots: (0..64).map(|slot| slot % 2).collect(), ..generation.pools[1].clone() };
    rig.publish(1, &generation);
    let mut dataplane = rig.start();
    dataplane.until_acked(&rig, 1);
    wait_for("both workers", || {
        let flows = (0..2).map(|worker| rig.worker_of(worker, "flows_ipv4")).collect::<Vec<_>>();
        let steered = rig.worker_of(0, "steered_out") > 1_000 && rig.worker_of(1, "steered_in") > 1_000;
        (steered && flows.iter().sum::<u64>() == 64 && !flows.contains(&0)).then_some(())
    });
    wait_for("both backends", || {
        (rig.backend(2, "packets_in") > 1_000 && rig.backend(3, "packets_in") > 1_000).then_some(())
    });
    // in the middle of it
    dataplane.terminate();
    rig.assert_balanced();
    assert!(rig.worker_of(1, "steered_out") > 0, "worker 1 sends through worker 0's queue");
}
