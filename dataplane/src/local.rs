//! What Weir answers itself: ARP, neighbour discovery and echo for its addresses.
//!
//! The worker that receives the question answers in the question's own buffer; what it learns goes to the management thread.

use std::net::IpAddr;

use weir_l4::bits_of;
use weir_net::{Mac, Parsed, arp, icmp_reply, ndp};

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
        return Outcome::Consumed;
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
            if !answers_for(view, port, IpAddr::V6(target)) {
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
            Outcome::Consumed
        }
    }
}

/// Anything else for Weir's own addresses or for a vip: echo is answered, the rest has nowhere to go yet.
pub fn other(packet: &mut Packet, parsed: &Parsed) -> Outcome {
    if icmp_reply::echo(packet.0.data_mut(), parsed) {
        Outcome::Answer
    } else {
        Outcome::Drop(WorkerReason::Punt)
    }
}
