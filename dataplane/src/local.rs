//! What Weir answers itself: ARP, neighbour discovery and echo for its addresses.
//!
//! The worker that receives the question answers in the question's own buffer; what it learns goes to the management thread.

use std::net::{IpAddr, Ipv6Addr};

use weir_l4::bits_of;
use weir_net::{Kind, Mac, Parsed, Protocol, arp, icmp_reply, icmpv6, ndp};

use crate::drops::WorkerReason;
use crate::messages::FromWorker;
use crate::packet::Packet;
use crate::view::View;

/// What became of a packet for Weir itself.
#[derive(Debug)]
pub enum Outcome {
    /// The buffer holds the answer, for the port that the question came from.
    Answer,
    /// Taken note of.
    Consumed,
    /// Taken note of, and the kernel of that port may see it too.
    Shown,
    /// The kernel's, if it has the address.
    Kernel,
    /// Not for us, or not believed.
    Drop(WorkerReason),
}

/// Whether ARP and NDP are answered for an address on a port.
pub fn answers_for(view: &View, port: u16, address: IpAddr) -> bool {
    let own = view.ports.get(usize::from(port)).is_some_and(|port| {
        port.own.iter().any(|prefix| prefix.addr == address) || port.snat.contains(&address)
    });
    own || view.vips.contains(&bits_of(address))
}

/// An ARP message.
pub fn arp(
    view: &View,
    port: u16,
    mac: Mac,
    packet: &mut Packet,
    parsed: &Parsed,
    mut learn: impl FnMut(FromWorker),
) -> Outcome {
    let Ok(message) = arp::parse(packet.0.data(), parsed) else { return Outcome::Drop(WorkerReason::BadArp) };
    let answers = message.operation == arp::Operation::Reply && message.target_mac == mac;
    if !message.sender_ip.is_unspecified() {
        let address = IpAddr::V4(message.sender_ip);
        learn(FromWorker::Seen { port, address, mac: message.sender_mac, answers });
    }
    let asked = message.operation == arp::Operation::Request && message.sender_ip != message.target_ip;
    if !asked || !answers_for(view, port, IpAddr::V4(message.target_ip)) {
        return if answers { Outcome::Shown } else { Outcome::Consumed };
    }
    let vlan = view.ports.get(usize::from(port)).and_then(|port| port.vlan);
    let reply = arp::reply(mac, message.target_ip, message.sender_mac, message.sender_ip, vlan);
    if packet.0.fill(&reply) { Outcome::Answer } else { Outcome::Drop(WorkerReason::NoHeadroom) }
}

/// A neighbour solicitation or advertisement.
pub fn ndp(
    view: &View,
    port: u16,
    mac: Mac,
    packet: &mut Packet,
    parsed: &Parsed,
    mut learn: impl FnMut(FromWorker),
) -> Outcome {
    let message = match ndp::parse(packet.0.data(), parsed) {
        Ok(message) => message,
        Err(_) => return Outcome::Drop(WorkerReason::BadNdp),
    };
    match message {
        ndp::Message::Solicitation { source, target, source_mac } => {
            if let Some(sender) = source_mac {
                learn(FromWorker::Seen { port, address: IpAddr::V6(source), mac: sender, answers: false });
            }
            if !answers_for(view, port, IpAddr::V6(target)) && !is_kernels_link_local(view, port, mac, target)
            {
                return Outcome::Consumed;
            }
            let asker = source_mac.unwrap_or_else(|| weir_net::eth::source(packet.0.data()));
            let vlan = view.ports.get(usize::from(port)).and_then(|port| port.vlan);
            let reply = ndp::advertise(mac, target, asker, source, vlan);
            if packet.0.fill(&reply) { Outcome::Answer } else { Outcome::Drop(WorkerReason::NoHeadroom) }
        }
        ndp::Message::Advertisement { target, target_mac, solicited, .. } => {
            // RFC 4861 §4.4: the option may be left out where the solicitation was unicast, because the asker had it
            let mac = target_mac.unwrap_or_else(|| weir_net::eth::source(packet.0.data()));
            learn(FromWorker::Seen { port, address: IpAddr::V6(target), mac, answers: solicited });
            Outcome::Shown
        }
    }
}

/// Whether this is the address that the kernel makes for its interface of the port from the link address (RFC 4291 appendix A): the
/// kernel asks for neighbours from it, and neighbours ask for it.
fn is_kernels_link_local(view: &View, port: u16, mac: Mac, address: Ipv6Addr) -> bool {
    let [a, b, c, d, e, f] = mac.0;
    let made = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    view.ports.get(usize::from(port)).is_some_and(|port| port.has_exception) && address.octets() == made
}

/// Anything else for Weir's own addresses or for a vip: echo is answered, what would lead the kernel's traffic elsewhere is dropped, the
/// rest is the kernel's.
pub fn other(packet: &mut Packet, parsed: &Parsed) -> Outcome {
    if icmp_reply::echo(packet.0.data_mut(), parsed) {
        Outcome::Answer
    } else if is_misleading(parsed) {
        Outcome::Drop(WorkerReason::Punt)
    } else {
        Outcome::Kernel
    }
}

/// Redirects, and what routers say and hear: the way of the kernel's traffic is configured.
fn is_misleading(parsed: &Parsed) -> bool {
    /// RFC 792.
    const REDIRECT_V4: u8 = 5;
    match (parsed.kind, parsed.protocol) {
        (Kind::Ipv4, Protocol::ICMP) => parsed.icmp_type == REDIRECT_V4,
        (Kind::Ipv6, Protocol::ICMPV6) => matches!(
            parsed.icmp_type,
            icmpv6::ROUTER_SOLICITATION | icmpv6::ROUTER_ADVERTISEMENT | icmpv6::REDIRECT
        ),
        _ => false,
    }
}

/// Whether a packet is for a group that never leaves its link (RFC 5771 §4, RFC 4291 §2.7): queries for group members, and
/// whatever the kernel has joined.
pub fn is_for_link(frame: &[u8], parsed: &Parsed) -> bool {
    let group = match parsed.kind {
        Kind::Ipv4 => parsed.dst_v4(frame) >> 8 == 0x00e0_0000,
        Kind::Ipv6 => parsed.dst_v6(frame).first_chunk() == Some(&[0xff, 0x02]),
        Kind::Arp | Kind::Other => false,
    };
    group && !is_misleading(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::neighbour::Neighbours;
    use crate::packet::tests::packet;
    use crate::sample::{Generation, LAN, SNAT, VIP, VIP_V6, WAN, ip};
    use crate::snapshot::Snapshot;
    use hugepages::segment::SegmentDir;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv6Packet, Icmpv6Repr, Ipv6Packet, Ipv6Repr, NdiscNeighborFlags, NdiscRepr};
    use std::net::{Ipv4Addr, Ipv6Addr};
    use weir_net::{PacketBuf, ParseOptions, eth, parse};

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const ASKER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 11);
    const ASKER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xb);

    fn view(vlan: u16) -> View {
        let parent = tempfile::tempdir().unwrap();
        let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
        let mut generation = Generation::new("null:", "null:");
        generation.node.ports[usize::from(LAN)].vlan = vlan;
        generation.write(&directory, 1);
        let snapshot = Snapshot::load(&directory, 1, None).unwrap();
        View::build(&snapshot, None, &mut Neighbours::new(1_000), 0)
    }

    fn v4(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn parsed(frame: &[u8]) -> Parsed {
        parse(frame, &ParseOptions::default()).unwrap()
    }

    /// What was learned: address, link address, and whether it answered us.
    type Learned = Vec<(IpAddr, Mac, bool)>;

    /// The answer's frame, or what became of the question instead.
    fn ask(view: &View, port: u16, frame: &[u8]) -> (Result<Vec<u8>, Outcome>, Learned) {
        let mut packet = packet(frame);
        let what = parsed(frame);
        let mut learned = vec![];
        let learn = |report| match report {
            FromWorker::Seen { port: on, address, mac, answers } if on == port => {
                learned.push((address, mac, answers));
            }
            other => panic!("{other:?}"),
        };
        let outcome = if what.kind == weir_net::Kind::Arp {
            arp(view, port, OURS, &mut packet, &what, learn)
        } else {
            ndp(view, port, OURS, &mut packet, &what, learn)
        };
        let answer = match outcome {
            Outcome::Answer => Ok(packet.data().to_vec()),
            other => Err(other),
        };
        (answer, learned)
    }

    fn consumed(answer: &Result<Vec<u8>, Outcome>) -> bool {
        matches!(answer, Err(Outcome::Consumed | Outcome::Shown))
    }

    #[test]
    fn addresses_are_answered_for_on_their_port_and_vips_everywhere() {
        let view = view(0);
        let answers = |address: &str| [WAN, LAN, 2].map(|port| answers_for(&view, port, ip(address)));
        assert_eq!(answers("198.18.0.254"), [true, false, false]);
        assert_eq!(answers("2001:db8:1::fe"), [false, true, false]);
        assert_eq!(answers(SNAT), [false, true, false]);
        assert_eq!(answers(VIP)[..2], [true, true]);
        assert_eq!(answers(VIP_V6)[..2], [true, true]);
        assert_eq!(answers("198.18.1.253"), [false; 3], "on the link is not ours");
        // the IPv4-mapped form of a vip is another address, which never appears on a wire
        assert_eq!(answers("0.0.0.0"), [false; 3]);
    }

    #[test]
    fn arp_is_answered_for_own_source_and_virtual_addresses() {
        let view = view(0);
        for target in ["198.18.1.254", SNAT, VIP] {
            let request = arp::request(THEIRS, ASKER, v4(target), None);
            let (answer, learned) = ask(&view, LAN, &request);
            let answer = answer.unwrap();
            assert_eq!(answer, arp::reply(OURS, v4(target), THEIRS, ASKER, None).as_slice());
            assert_eq!(learned, [(ASKER.into(), THEIRS, false)]);
        }
        for target in ["198.18.1.253", "198.18.0.254"] {
            let (answer, learned) = ask(&view, LAN, &arp::request(THEIRS, ASKER, v4(target), None));
            assert!(consumed(&answer), "{target}: {answer:?}");
            assert_eq!(learned, [(ASKER.into(), THEIRS, false)]);
        }
    }

    #[test]
    fn a_probe_is_answered_and_teaches_nothing() {
        // RFC 5227 §2.1.1: somebody checks whether the address is free
        let probe = arp::request(THEIRS, Ipv4Addr::UNSPECIFIED, v4(VIP), None);
        let (answer, learned) = ask(&view(0), LAN, &probe);
        let reply = arp::reply(OURS, v4(VIP), THEIRS, Ipv4Addr::UNSPECIFIED, None);
        assert_eq!(answer.unwrap(), reply.as_slice());
        assert_eq!(learned, []);
    }

    #[test]
    fn announcements_and_replies_are_taken_note_of() {
        let view = view(0);
        let (answer, learned) = ask(&view, LAN, &arp::gratuitous(THEIRS, ASKER, None));
        assert!(consumed(&answer));
        assert_eq!(learned, [(ASKER.into(), THEIRS, false)]);
        // another station announces our vip: no fight, and no answer
        assert!(consumed(&ask(&view, LAN, &arp::gratuitous(THEIRS, v4(VIP), None)).0));
        let reply = arp::reply(THEIRS, ASKER, OURS, v4("198.18.1.254"), None);
        let (answer, learned) = ask(&view, LAN, &reply);
        assert!(consumed(&answer));
        assert_eq!(learned, [(ASKER.into(), THEIRS, true)]);
        let overheard = arp::reply(THEIRS, ASKER, Mac([2, 0, 0, 0, 0, 3]), v4("198.18.1.254"), None);
        assert_eq!(ask(&view, LAN, &overheard).1, [(ASKER.into(), THEIRS, false)]);
    }

    #[test]
    fn arp_that_is_not_believed_is_dropped_and_teaches_nothing() {
        let mut frame = arp::request(THEIRS, ASKER, v4(VIP), None);
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]); // not who the message says
        let (answer, learned) = ask(&view(0), LAN, &frame);
        assert!(matches!(answer, Err(Outcome::Drop(WorkerReason::BadArp))), "{answer:?}");
        assert_eq!(learned, []);
    }

    #[test]
    fn answers_carry_the_ports_tag() {
        let view = view(42);
        let request = arp::request(THEIRS, ASKER, v4(VIP), Some(42));
        let reply = arp::reply(OURS, v4(VIP), THEIRS, ASKER, Some(42));
        assert_eq!(ask(&view, LAN, &request).0.unwrap(), reply.as_slice());
        let solicitation = ndp::solicit(THEIRS, ASKER_V6, v6(VIP_V6), Some(42));
        let answer = ask(&view, LAN, &solicitation).0.unwrap();
        assert_eq!(answer, ndp::advertise(OURS, v6(VIP_V6), THEIRS, ASKER_V6, Some(42)).as_slice());
        assert_eq!(parsed(&answer).vlan, Some(42));
    }

    #[test]
    fn solicitations_are_answered_for_own_and_virtual_addresses() {
        let view = view(0);
        for target in ["2001:db8:1::fe", VIP_V6] {
            for solicitation in [
                ndp::solicit(THEIRS, ASKER_V6, v6(target), None),
                ndp::solicit_unicast(THEIRS, ASKER_V6, OURS, v6(target), None),
            ] {
                let (answer, learned) = ask(&view, LAN, &solicitation);
                let advertisement = ndp::advertise(OURS, v6(target), THEIRS, ASKER_V6, None);
                assert_eq!(answer.unwrap(), advertisement.as_slice());
                assert_eq!(learned, [(ASKER_V6.into(), THEIRS, false)]);
            }
        }
        for target in ["2001:db8:1::77", "2001:db8::fe"] {
            let (answer, learned) = ask(&view, LAN, &ndp::solicit(THEIRS, ASKER_V6, v6(target), None));
            assert!(consumed(&answer), "{target}: {answer:?}");
            assert_eq!(learned, [(ASKER_V6.into(), THEIRS, false)]);
        }
    }

    fn message(source: Ipv6Addr, destination: (Mac, Ipv6Addr), repr: NdiscRepr<'_>) -> Vec<u8> {
        icmp(source, destination, &Icmpv6Repr::Ndisc(repr))
    }

    /// A frame as smoltcp writes it.
    fn icmp(source: Ipv6Addr, destination: (Mac, Ipv6Addr), icmp: &Icmpv6Repr<'_>) -> Vec<u8> {
        let length = icmp.buffer_len();
        let mut frame = vec![0; 54 + length];
        eth::write(&mut frame, destination.0, THEIRS, None, eth::IPV6).unwrap();
        let ip = Ipv6Repr {
            src_addr: source,
            dst_addr: destination.1,
            next_header: smoltcp::wire::IpProtocol::Icmpv6,
            payload_len: length,
            hop_limit: 255,
        };
        ip.emit(&mut Ipv6Packet::new_unchecked(&mut frame[14..]));
        let mut packet = Icmpv6Packet::new_unchecked(&mut frame[54..]);
        icmp.emit(&source, &destination.1, &mut packet, &ChecksumCapabilities::default());
        frame
    }

    #[test]
    fn a_check_for_duplicates_is_answered_to_all() {
        // RFC 4862 §5.4.2, RFC 4861 §7.2.4
        let target = v6(VIP_V6);
        let group = Ipv6Addr::from(weir_net::ipv6::solicited_node(&target.octets()));
        let repr = NdiscRepr::NeighborSolicit { target_addr: target, lladdr: None };
        let mac = Mac::of_ipv6_multicast(group.octets());
        let (answer, learned) = ask(&view(0), LAN, &message(Ipv6Addr::UNSPECIFIED, (mac, group), repr));
        assert_eq!(answer.unwrap(), ndp::unsolicited(OURS, target, None).as_slice());
        assert_eq!(learned, []);
    }

    #[test]
    fn a_solicitation_without_a_link_address_is_answered_to_its_sender() {
        let repr = NdiscRepr::NeighborSolicit { target_addr: v6(VIP_V6), lladdr: None };
        let (answer, learned) = ask(&view(0), LAN, &message(ASKER_V6, (OURS, v6(VIP_V6)), repr));
        assert_eq!(answer.unwrap(), ndp::advertise(OURS, v6(VIP_V6), THEIRS, ASKER_V6, None).as_slice());
        assert_eq!(learned, []);
    }

    #[test]
    fn advertisements_are_taken_note_of_with_and_without_a_link_address() {
        let view = view(0);
        let ours = v6("2001:db8:1::fe");
        let (answer, learned) = ask(&view, LAN, &ndp::advertise(THEIRS, ASKER_V6, OURS, ours, None));
        assert!(consumed(&answer));
        assert_eq!(learned, [(ASKER_V6.into(), THEIRS, true)]);
        let (_, learned) = ask(&view, LAN, &ndp::unsolicited(THEIRS, ASKER_V6, None));
        assert_eq!(learned, [(ASKER_V6.into(), THEIRS, false)]);
        // RFC 4861 §4.4: an answer to a unicast question may leave the option out
        let repr = NdiscRepr::NeighborAdvert {
            flags: NdiscNeighborFlags::SOLICITED,
            target_addr: ASKER_V6,
            lladdr: None,
        };
        let (answer, learned) = ask(&view, LAN, &message(ASKER_V6, (OURS, ours), repr));
        assert!(consumed(&answer), "{answer:?}");
        assert_eq!(learned, [(ASKER_V6.into(), THEIRS, true)]);
    }

    #[test]
    fn ndp_that_is_not_believed_is_dropped_and_teaches_nothing() {
        let mut frame = ndp::solicit(THEIRS, ASKER_V6, v6(VIP_V6), None);
        frame[21] = 254; // it was forwarded
        let (answer, learned) = ask(&view(0), LAN, &frame);
        assert!(matches!(answer, Err(Outcome::Drop(WorkerReason::BadNdp))), "{answer:?}");
        assert_eq!(learned, []);
    }

    #[test]
    fn echo_is_answered_and_all_else_is_punted() {
        let vip = v6(VIP_V6);
        let (ident, seq_no, data) = (7, 1, &b"hello"[..]);
        let request = Icmpv6Repr::EchoRequest { ident, seq_no, data };
        let frame = icmp(ASKER_V6, (OURS, vip), &request);
        let mut question = packet(&frame);
        assert!(matches!(other(&mut question, &parsed(&frame)), Outcome::Answer));
        let answer = Icmpv6Packet::new_checked(&question.data()[54..]).unwrap();
        let repr = Icmpv6Repr::parse(&vip, &ASKER_V6, &answer, &ChecksumCapabilities::default()).unwrap();
        assert_eq!(repr, Icmpv6Repr::EchoReply { ident, seq_no, data });
        assert_eq!((eth::destination(question.data()), eth::source(question.data())), (THEIRS, OURS));
        let frame = icmp(ASKER_V6, (OURS, vip), &Icmpv6Repr::EchoReply { ident, seq_no, data });
        let outcome = other(&mut packet(&frame), &parsed(&frame));
        assert!(matches!(outcome, Outcome::Kernel), "{outcome:?}");
    }
}
