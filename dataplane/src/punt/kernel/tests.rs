//! What the kernel is given and what of its own traffic leaves: packet by packet, without a TAP.

use std::net::{Ipv4Addr, Ipv6Addr};

use weir_net::{icmp_reply, ipv4, ndp};

use super::*;

const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 9]);
const OWN: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 254);
const OWN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfe);
const VIP: Ipv4Addr = Ipv4Addr::new(198, 18, 100, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1);

fn ours() -> Ours {
    Ours { own: [OWN.into(), OWN_V6.into()].into(), vips: [VIP.into()].into() }
}

/// A table without a segment, or with these ports in one.
fn table(ports: &[(u16, Probe)]) -> (tempfile::TempDir, ProbeTable) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("weir-test");
    let directory = SegmentDir::open(path.clone()).unwrap();
    if !ports.is_empty() {
        let words = directory.map_atomics(probes::NAME, probes::WORDS, Access::Create).unwrap();
        for (port, probe) in ports {
            words[usize::from(*port)].store(probe.word(), Ordering::Release);
        }
    }
    (parent, ProbeTable { directory: path, words: None, retry: Instant::now() })
}

fn way(frame: &[u8]) -> Way {
    way_of(frame, &ours(), &mut table(&[]).1)
}

/// A UDP datagram without a checksum.
fn udp(to: Mac, source: Ipv4Addr, destination: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 8 + 4];
    eth::write(&mut frame, to, OURS, None, eth::IPV4).unwrap();
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17]);
    frame[26..30].copy_from_slice(&source.octets());
    frame[30..34].copy_from_slice(&destination.octets());
    let sum = weir_net::checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[34..36].copy_from_slice(&ports.0.to_be_bytes());
    frame[36..38].copy_from_slice(&ports.1.to_be_bytes());
    frame[38..40].copy_from_slice(&12u16.to_be_bytes());
    frame
}

#[test]
fn the_kernel_speaks_from_weirs_addresses_only() {
    assert_eq!(way(&udp(OTHER, OWN, PEER, (5, 6))), Way::Wire);
    // routed by this host, or from another interface's address
    assert_eq!(way(&udp(OTHER, PEER, OWN, (5, 6))), Way::Nowhere);
    assert_eq!(way(&udp(OTHER, VIP, PEER, (5, 6))), Way::Nowhere);
    assert_eq!(way(&udp(OTHER, OWN, VIP, (5, 6))), Way::Wire, "as its route says");
    assert_eq!(way(&[0; 9]), Way::Nowhere);
    let mut other = udp(OTHER, OWN, PEER, (5, 6));
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(way(&other), Way::Nowhere, "LLDP");
    assert!(ipv4::is_source(OWN.into()));
}

#[test]
fn the_kernel_asks_for_neighbours_and_never_answers() {
    assert_eq!(way(&arp::request(OURS, OWN, PEER, None)), Way::Wire);
    assert_eq!(way(&arp::request(OURS, PEER, OWN, None)), Way::Nowhere);
    assert_eq!(way(&arp::reply(OURS, OWN, OTHER, PEER, None)), Way::Nowhere);
    assert_eq!(way(&ndp::solicit(OURS, OWN_V6, PEER_V6, None)), Way::Wire);
    assert_eq!(way(&ndp::solicit(OURS, LINK_LOCAL, PEER_V6, None)), Way::Wire);
    assert_eq!(way(&ndp::solicit(OURS, PEER_V6, OWN_V6, None)), Way::Nowhere);
    assert_eq!(way(&ndp::advertise(OURS, OWN_V6, OTHER, PEER_V6, None)), Way::Nowhere);
    assert_eq!(way(&ndp::unsolicited(OURS, LINK_LOCAL, None)), Way::Nowhere);
}

#[test]
fn a_probe_goes_to_its_backend_and_an_unknown_one_nowhere() {
    let probe = Probe { listener: 3, backend: 77 };
    let (_parent, mut table) = table(&[(61_000, probe)]);
    let to = Mac(probes::NEXT_HOP);
    let mut way = |frame: &[u8]| way_of(frame, &ours(), &mut table);
    assert_eq!(way(&udp(to, OWN, VIP, (61_000, 80))), Way::Backend(probe));
    assert_eq!(way(&udp(to, OWN, VIP, (61_001, 80))), Way::Nowhere);
    assert_eq!(way(&udp(to, PEER, VIP, (61_000, 80))), Way::Nowhere, "not from here");
    assert_eq!(way(&udp(OTHER, OWN, PEER, (61_000, 80))), Way::Wire, "to no vip");
}

#[test]
fn the_table_of_probes_is_looked_for_again_but_not_all_the_time() {
    let (parent, mut table) = table(&[]);
    assert_eq!(table.of(61_000), None);
    let probe = Probe { listener: 0, backend: 1 };
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    let words = directory.map_atomics(probes::NAME, probes::WORDS, Access::Create).unwrap();
    words[61_000].store(probe.word(), Ordering::Release);
    assert_eq!(table.of(61_000), None, "looked for a moment ago");
    table.retry = Instant::now();
    assert_eq!(table.of(61_000), Some(probe));
    words[61_000].store(0, Ordering::Release);
    assert_eq!(table.of(61_000), None);
}

#[test]
fn a_unicast_frame_is_addressed_to_the_interface() {
    let mut frame = Frame::new(100);
    assert!(frame.copy(0, &udp(OTHER, PEER, OWN, (5, 6)), false));
    address(&mut frame, OURS);
    assert_eq!(eth::destination(frame.bytes()), OURS);
    let group = ndp::unsolicited(OTHER, PEER_V6, None);
    let mut frame = Frame::new(100);
    assert!(frame.copy(0, &group, false));
    address(&mut frame, OURS);
    assert_eq!(frame.bytes(), &group[..]);
    let mut echo = udp(OTHER, PEER, OWN, (5, 6));
    let parsed = parse(&echo, &ParseOptions::default()).unwrap();
    assert!(!icmp_reply::echo(&mut echo, &parsed));
}

#[test]
fn interfaces_are_written_down_for_the_next_process() {
    let parent = tempfile::tempdir().unwrap();
    let wanted = |name: &str| Wanted { name: name.to_owned(), mac: OURS, mtu: 1_500 };
    remove_others(&[wanted("weir-none1"), wanted("")], parent.path());
    assert_eq!(std::fs::read_to_string(parent.path().join(LIST)).unwrap(), "weir-none1\n");
    remove_others(&[wanted("")], parent.path());
    assert_eq!(std::fs::read_to_string(parent.path().join(LIST)).unwrap(), "");
}
