//! Who has this IPv4 address (RFC 826)? Whole Ethernet frames in and out, for the slow path.

use std::net::Ipv4Addr;

use arrayvec::ArrayVec;
use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};
use thiserror::Error;

use crate::eth;
use crate::ipv4;
use crate::parse::{Kind, Parsed};
use crate::types::Mac;

/// Length of an ARP packet for Ethernet and IPv4.
const LEN: usize = 28;

/// A frame of neighbour discovery, ARP or NDP. Not padded: drivers pad to the minimum of Ethernet.
pub type NeighborFrame = ArrayVec<u8, 128>;

/// What a message wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
}

/// An ARP message for Ethernet and IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it wants.
    pub operation: Operation,
    /// Who speaks.
    pub sender_mac: Mac,
    /// The address that the sender owns; 0.0.0.0 in a probe (RFC 5227 §2.1.1).
    pub sender_ip: Ipv4Addr,
    /// Who is asked or answered; zero in a request.
    pub target_mac: Mac,
    /// The address that is asked for.
    pub target_ip: Ipv4Addr,
}

/// Why an ARP message is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ArpError {
    /// It is not ARP for Ethernet and IPv4, or ends early.
    #[error("not an ARP message for Ethernet and IPv4")]
    NotArp,
    /// The operation is neither request nor reply.
    #[error("ARP operation {0} is neither request nor reply")]
    Operation(u16),
    /// The sender's hardware address is a group's or zero.
    #[error("ARP sender address {0} is not a station's")]
    SenderMac(Mac),
    /// The sender's address in the message is not the one that the frame came from.
    #[error("ARP sender address {inside} differs from the frame's source {outside}")]
    SenderMismatch {
        /// In the message.
        inside: Mac,
        /// In the Ethernet header.
        outside: Mac,
    },
    /// The sender's protocol address can't be a host's.
    #[error("ARP sender address {0} is not a host's")]
    SenderIp(Ipv4Addr),
}

/// Reads and checks an ARP message of a frame that was parsed as [`Kind::Arp`].
pub fn parse(frame: &[u8], parsed: &Parsed) -> Result<Message, ArpError> {
    if parsed.kind != Kind::Arp {
        return Err(ArpError::NotArp);
    }
    let bytes = frame.get(parsed.l3_offset()..).ok_or(ArpError::NotArp)?;
    let packet = ArpPacket::new_checked(bytes).map_err(|_| ArpError::NotArp)?;
    let ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_hardware_addr,
        target_protocol_addr,
    } = ArpRepr::parse(&packet).map_err(|_| ArpError::NotArp)?
    else {
        return Err(ArpError::NotArp);
    };
    let operation = match operation {
        ArpOperation::Request => Operation::Request,
        ArpOperation::Reply => Operation::Reply,
        ArpOperation::Unknown(number) => return Err(ArpError::Operation(number)),
    };
    let sender_mac = Mac(source_hardware_addr.0);
    if !sender_mac.is_unicast() {
        return Err(ArpError::SenderMac(sender_mac));
    }
    let outside = eth::source(frame);
    if sender_mac != outside {
        return Err(ArpError::SenderMismatch { inside: sender_mac, outside });
    }
    let probe = source_protocol_addr.is_unspecified() && operation == Operation::Request;
    if !ipv4::is_source(source_protocol_addr.into()) && !probe {
        return Err(ArpError::SenderIp(source_protocol_addr));
    }
    Ok(Message {
        operation,
        sender_mac,
        sender_ip: source_protocol_addr,
        target_mac: Mac(target_hardware_addr.0),
        target_ip: target_protocol_addr,
    })
}

/// Asks everyone who has `target`.
pub fn request(mac: Mac, ip: Ipv4Addr, target: Ipv4Addr, vlan: Option<u16>) -> NeighborFrame {
    frame(Mac::BROADCAST, vlan, Operation::Request, (mac, ip), (Mac::ZERO, target))
}

/// Asks one station whether it still has `target` (RFC 1122 §2.3.2.1, unicast poll).
pub fn request_unicast(
    mac: Mac,
    ip: Ipv4Addr,
    target_mac: Mac,
    target: Ipv4Addr,
    vlan: Option<u16>,
) -> NeighborFrame {
    frame(target_mac, vlan, Operation::Request, (mac, ip), (Mac::ZERO, target))
}

/// Tells `target` that `mac` has `ip`.
pub fn reply(mac: Mac, ip: Ipv4Addr, target_mac: Mac, target: Ipv4Addr, vlan: Option<u16>) -> NeighborFrame {
    frame(target_mac, vlan, Operation::Reply, (mac, ip), (target_mac, target))
}

/// Tells everyone that `mac` has `ip`: an announcement in the form of a request (RFC 5227 §2.3, RFC 5944 §4.6).
pub fn gratuitous(mac: Mac, ip: Ipv4Addr, vlan: Option<u16>) -> NeighborFrame {
    frame(Mac::BROADCAST, vlan, Operation::Request, (mac, ip), (Mac::ZERO, ip))
}

fn frame(
    destination: Mac,
    vlan: Option<u16>,
    operation: Operation,
    sender: (Mac, Ipv4Addr),
    target: (Mac, Ipv4Addr),
) -> NeighborFrame {
    let mut bytes = [0; 128];
    let len = eth::write(&mut bytes, destination, sender.0, vlan, eth::ARP).unwrap_or(0);
    if let Some(body) = bytes.get_mut(len..len + LEN) {
        ArpRepr::EthernetIpv4 {
            operation: match operation {
                Operation::Request => ArpOperation::Request,
                Operation::Reply => ArpOperation::Reply,
            },
            source_hardware_addr: EthernetAddress(sender.0.0),
            source_protocol_addr: sender.1,
            target_hardware_addr: EthernetAddress(target.0.0),
            target_protocol_addr: target.1,
        }
        .emit(&mut ArpPacket::new_unchecked(body));
    }
    let mut out = NeighborFrame::from(bytes);
    out.truncate(len + LEN);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{ParseOptions, parse as parse_frame};

    const US: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEM: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn read(frame: &[u8]) -> Result<Message, ArpError> {
        parse(frame, &parse_frame(frame, &ParseOptions::default()).unwrap())
    }

    #[test]
    fn a_request_is_the_bytes_of_rfc_826() {
        let frame = request(US, Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2), None);
        let mut expected = vec![0xff; 6];
        expected.extend([2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        expected.extend([2, 0, 0, 0, 0, 1, 198, 18, 0, 1, 0, 0, 0, 0, 0, 0, 198, 18, 0, 2]);
        assert_eq!(frame.as_slice(), expected);
    }

    #[test]
    fn messages_read_back_with_and_without_a_tag() {
        let (ours, theirs) = (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2));
        for vlan in [None, Some(100)] {
            let frame = reply(US, ours, THEM, theirs, vlan);
            assert_eq!(frame.len(), 42 + if vlan.is_some() { 4 } else { 0 });
            let message = read(&frame).unwrap();
            assert_eq!(
                message,
                Message {
                    operation: Operation::Reply,
                    sender_mac: US,
                    sender_ip: ours,
                    target_mac: THEM,
                    target_ip: theirs
                }
            );
            let message = read(&gratuitous(US, ours, vlan)).unwrap();
            assert_eq!(
                (message.operation, message.sender_ip, message.target_ip),
                (Operation::Request, ours, ours)
            );
            assert_eq!(eth::destination(&request_unicast(US, ours, THEM, theirs, vlan)), THEM);
        }
    }

    #[test]
    fn what_no_host_says_is_not_believed() {
        let (ours, theirs) = (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2));
        let good = request(US, ours, theirs, None);
        let changed = |at: usize, bytes: &[u8]| {
            let mut frame = good.to_vec();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            read(&frame)
        };
        assert_eq!(changed(20, &[0, 9]), Err(ArpError::Operation(9)));
        assert_eq!(changed(14, &[0, 6]), Err(ArpError::NotArp));
        assert_eq!(changed(18, &[8, 4]), Err(ArpError::NotArp));
        assert!(matches!(changed(22, &[3]), Err(ArpError::SenderMac(_))));
        assert!(matches!(changed(22, &THEM.0), Err(ArpError::SenderMismatch { .. })));
        assert!(matches!(changed(28, &[224]), Err(ArpError::SenderIp(_))));
        assert_eq!(changed(28, &[0, 0, 0, 0]).unwrap().sender_ip, Ipv4Addr::UNSPECIFIED);
        for len in 14..42 {
            assert_eq!(read(&good[..len]), Err(ArpError::NotArp), "{len}");
        }
    }
}
