//! Who has this IPv6 address (RFC 4861 §7.2)? Whole Ethernet frames in and out, for the slow path.

use std::net::Ipv6Addr;

use smoltcp::wire::{Icmpv6Packet, NdiscNeighborFlags, NdiscRepr, RawHardwareAddress};
use thiserror::Error;

use crate::arp::NeighborFrame;
use crate::bytes::{chunk, put};
use crate::checksum;
use crate::eth;
use crate::icmpv6;
use crate::ipv6;
use crate::parse::{Kind, Parsed};
use crate::types::{Mac, Protocol};

/// RFC 4861 §7.1: a packet with this hop limit was not forwarded.
const HOP_LIMIT: u8 = 255;
/// Length of a solicitation or advertisement before its options, RFC 4861 §4.3, §4.4.
const MESSAGE_LEN: usize = 24;
/// Length of a link-layer address option for Ethernet, RFC 4861 §4.6.1 and RFC 2464 §6.
const OPTION_LEN: usize = 8;
/// RFC 4861 §4.6.1.
const OPTION_SOURCE_LINK: u8 = 1;
/// RFC 4861 §4.6.1.
const OPTION_TARGET_LINK: u8 = 2;
/// ff02::1, all nodes of the link.
const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// A valid neighbour discovery message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Who has `target`?
    Solicitation {
        /// Who asks; unspecified while it checks for duplicates (RFC 4862 §5.4.2).
        source: Ipv6Addr,
        /// The address that is asked for.
        target: Ipv6Addr,
        /// The asker's link address, if it told.
        source_mac: Option<Mac>,
    },
    /// `target` is here.
    Advertisement {
        /// The address that is told about.
        target: Ipv6Addr,
        /// Its link address, if it told.
        target_mac: Option<Mac>,
        /// The sender routes.
        router: bool,
        /// This answers a solicitation.
        solicited: bool,
        /// An entry with another link address shall be replaced.
        override_entry: bool,
    },
}

/// Why a message is silently discarded, RFC 4861 §7.1.1 and §7.1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NdpError {
    /// It is neither solicitation nor advertisement, or a fragment (RFC 6980 §5).
    #[error("neither a neighbor solicitation nor an advertisement")]
    NotNeighbor,
    /// It was forwarded, so it may come from off the link.
    #[error("hop limit {0} is not 255")]
    HopLimit(u8),
    /// Its checksum is wrong.
    #[error("wrong ICMPv6 checksum")]
    Checksum,
    /// Its code is not zero.
    #[error("ICMPv6 code {0} is not 0")]
    Code(u8),
    /// It is shorter than 24 bytes.
    #[error("{0} bytes are too short for a neighbor message")]
    Length(usize),
    /// The target is a group.
    #[error("target {0} is a multicast address")]
    Target(Ipv6Addr),
    /// An option has no length or leaves the message.
    #[error("broken option at byte {0} of the message")]
    Option(usize),
    /// A solicitation from the unspecified address went elsewhere than to the target's group, or names a link address.
    #[error("duplicate address detection with destination {0} or a link-layer address")]
    Unspecified(Ipv6Addr),
    /// An advertisement to a group claims to be solicited.
    #[error("a solicited advertisement was sent to the group {0}")]
    SolicitedGroup(Ipv6Addr),
    /// The link address is a group's or zero.
    #[error("link-layer address {0} is not a station's")]
    LinkAddress(Mac),
}

/// Reads and checks a neighbour discovery message.
pub fn parse(frame: &[u8], parsed: &Parsed) -> Result<Message, NdpError> {
    let solicitation = match (parsed.kind, parsed.protocol, parsed.icmp_type) {
        (Kind::Ipv6, Protocol::ICMPV6, icmpv6::NEIGHBOR_SOLICITATION) => true,
        (Kind::Ipv6, Protocol::ICMPV6, icmpv6::NEIGHBOR_ADVERTISEMENT) => false,
        _ => return Err(NdpError::NotNeighbor),
    };
    if parsed.is_fragment() {
        return Err(NdpError::NotNeighbor);
    }
    if parsed.ttl != HOP_LIMIT {
        return Err(NdpError::HopLimit(parsed.ttl));
    }
    if !checksum::l4_is_valid(frame, parsed) {
        return Err(NdpError::Checksum);
    }
    if parsed.icmp_code != 0 {
        return Err(NdpError::Code(parsed.icmp_code));
    }
    let message = parsed.segment(frame);
    let head = chunk::<MESSAGE_LEN>(message, 0).ok_or(NdpError::Length(message.len()))?;
    let target = chunk::<16>(head, 8).copied().map(Ipv6Addr::from).ok_or(NdpError::Length(message.len()))?;
    if target.is_multicast() {
        return Err(NdpError::Target(target));
    }
    let wanted = if solicitation { OPTION_SOURCE_LINK } else { OPTION_TARGET_LINK };
    let link = link_address(message, wanted)?;
    let dst = parsed.dst_v6(frame);
    if solicitation {
        let source = parsed.src_v6(frame);
        let to_group = dst == ipv6::solicited_node(&target.octets());
        if ipv6::is_unspecified(&source) && (link.is_some() || !to_group) {
            return Err(NdpError::Unspecified(dst.into()));
        }
        return Ok(Message::Solicitation { source: source.into(), target, source_mac: link });
    }
    let flags = head[4];
    let solicited = flags & 0x40 != 0;
    if solicited && ipv6::is_multicast(&dst) {
        return Err(NdpError::SolicitedGroup(dst.into()));
    }
    Ok(Message::Advertisement {
        target,
        target_mac: link,
        router: flags & 0x80 != 0,
        solicited,
        override_entry: flags & 0x20 != 0,
    })
}

/// The link address in the first option of kind `wanted`, after all options were checked.
fn link_address(message: &[u8], wanted: u8) -> Result<Option<Mac>, NdpError> {
    let mut at = MESSAGE_LEN;
    let mut found = None;
    while at < message.len() {
        let head = chunk::<OPTION_LEN>(message, at).ok_or(NdpError::Option(at))?;
        let len = usize::from(head[1]) * OPTION_LEN;
        if len == 0 || at + len > message.len() {
            return Err(NdpError::Option(at));
        }
        if head[0] == wanted && len == OPTION_LEN && found.is_none() {
            let mac = Mac([head[2], head[3], head[4], head[5], head[6], head[7]]);
            if !mac.is_unicast() {
                return Err(NdpError::LinkAddress(mac));
            }
            found = Some(mac);
        }
        at += len;
    }
    Ok(found)
}

/// Asks the target's group who has `target`.
pub fn solicit(mac: Mac, ip: Ipv6Addr, target: Ipv6Addr, vlan: Option<u16>) -> NeighborFrame {
    let group = ipv6::solicited_node(&target.octets());
    solicitation(mac, ip, Mac::of_ipv6_multicast(group), group.into(), target, vlan)
}

/// Asks one station whether it still has `target` (RFC 4861 §7.3.3, probe).
pub fn solicit_unicast(
    mac: Mac,
    ip: Ipv6Addr,
    target_mac: Mac,
    target: Ipv6Addr,
    vlan: Option<u16>,
) -> NeighborFrame {
    solicitation(mac, ip, target_mac, target, target, vlan)
}

fn solicitation(
    mac: Mac,
    ip: Ipv6Addr,
    destination: Mac,
    dst: Ipv6Addr,
    target: Ipv6Addr,
    vlan: Option<u16>,
) -> NeighborFrame {
    let lladdr = Some(RawHardwareAddress::from_bytes(&mac.0));
    frame((mac, ip), (destination, dst), vlan, &NdiscRepr::NeighborSolicit { target_addr: target, lladdr })
}

/// Answers a solicitation by `asker`: `mac` has `ip`. Where the asker is the unspecified address, all nodes are told
/// (RFC 4861 §7.2.4).
pub fn advertise(
    mac: Mac,
    ip: Ipv6Addr,
    asker_mac: Mac,
    asker: Ipv6Addr,
    vlan: Option<u16>,
) -> NeighborFrame {
    if asker.is_unspecified() {
        return unsolicited(mac, ip, vlan);
    }
    let flags = NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE;
    advertisement(mac, ip, asker_mac, asker, flags, vlan)
}

/// Tells all nodes that `mac` has `ip` (RFC 4861 §7.2.6).
pub fn unsolicited(mac: Mac, ip: Ipv6Addr, vlan: Option<u16>) -> NeighborFrame {
    let destination = Mac::of_ipv6_multicast(ALL_NODES);
    advertisement(mac, ip, destination, ALL_NODES.into(), NdiscNeighborFlags::OVERRIDE, vlan)
}

fn advertisement(
    mac: Mac,
    ip: Ipv6Addr,
    destination: Mac,
    dst: Ipv6Addr,
    flags: NdiscNeighborFlags,
    vlan: Option<u16>,
) -> NeighborFrame {
    let lladdr = Some(RawHardwareAddress::from_bytes(&mac.0));
    frame((mac, ip), (destination, dst), vlan, &NdiscRepr::NeighborAdvert { flags, target_addr: ip, lladdr })
}

fn frame(
    from: (Mac, Ipv6Addr),
    to: (Mac, Ipv6Addr),
    vlan: Option<u16>,
    message: &NdiscRepr<'_>,
) -> NeighborFrame {
    const LEN: usize = MESSAGE_LEN + OPTION_LEN;
    let mut bytes = [0; 128];
    let l3 = eth::write(&mut bytes, to.0, from.0, vlan, eth::IPV6).unwrap_or(0);
    let header = ipv6::Header {
        traffic_class: 0,
        flow_label: 0,
        payload_len: LEN as u16,
        next_header: Protocol::ICMPV6,
        hop_limit: HOP_LIMIT,
        src: from.1.octets(),
        dst: to.1.octets(),
    };
    let l4 = l3 + ipv6::HEADER_LEN;
    let _ = put(&mut bytes, l3, header.bytes());
    if let Some(body) = bytes.get_mut(l4..l4 + LEN) {
        message.emit(&mut Icmpv6Packet::new_unchecked(&mut *body));
        let checksum = icmpv6::checksum(&header.src, &header.dst, body);
        let _ = put(body, 2, checksum.to_be_bytes());
    }
    let mut out = NeighborFrame::from(bytes);
    out.truncate(l4 + LEN);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse::{ParseOptions, parse as parse_frame};
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{EthernetFrame, Icmpv6Repr, Ipv6Packet};

    const US: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEM: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn ours() -> Ipv6Addr {
        "2001:db8::1".parse().unwrap()
    }

    fn theirs() -> Ipv6Addr {
        "2001:db8::2".parse().unwrap()
    }

    fn read(frame: &[u8]) -> Result<Message, NdpError> {
        parse(frame, &parse_frame(frame, &ParseOptions::default()).unwrap())
    }

    /// The frame with bytes changed from the IPv6 header on, and its checksum mended.
    fn changed(frame: &[u8], edit: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut frame = frame.to_vec();
        edit(&mut frame[14..]);
        frame[56..58].fill(0);
        let (src, dst) = (frame[22..38].try_into().unwrap(), frame[38..54].try_into().unwrap());
        let sum = icmpv6::checksum(&src, &dst, &frame[54..]);
        frame[56..58].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    #[test]
    fn solicitations_are_valid_for_smoltcp() {
        let frame = solicit(US, ours(), theirs(), None);
        let ethernet = EthernetFrame::new_checked(&frame[..]).unwrap();
        assert_eq!(ethernet.dst_addr().0, [0x33, 0x33, 0xff, 0, 0, 2]);
        let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
        assert_eq!(ip.hop_limit(), 255);
        assert_eq!(ip.dst_addr(), "ff02::1:ff00:2".parse::<Ipv6Addr>().unwrap());
        let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
        assert!(icmp.verify_checksum(&ip.src_addr(), &ip.dst_addr()));
        let message =
            Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &icmp, &ChecksumCapabilities::default());
        let expected = NdiscRepr::NeighborSolicit {
            target_addr: theirs(),
            lladdr: Some(RawHardwareAddress::from_bytes(&US.0)),
        };
        assert_eq!(message, Ok(Icmpv6Repr::Ndisc(expected)));
    }

    #[test]
    fn messages_read_back_with_and_without_a_tag() {
        for vlan in [None, Some(7)] {
            assert_eq!(
                read(&solicit(US, ours(), theirs(), vlan)),
                Ok(Message::Solicitation { source: ours(), target: theirs(), source_mac: Some(US) })
            );
            let probe = solicit_unicast(US, ours(), THEM, theirs(), vlan);
            assert_eq!(eth::destination(&probe), THEM);
            assert!(read(&probe).is_ok());
            let told = |solicited| Message::Advertisement {
                target: ours(),
                target_mac: Some(US),
                router: false,
                solicited,
                override_entry: true,
            };
            assert_eq!(read(&advertise(US, ours(), THEM, theirs(), vlan)), Ok(told(true)));
            assert_eq!(read(&unsolicited(US, ours(), vlan)), Ok(told(false)));
            // duplicate address detection is answered to all nodes
            assert_eq!(
                advertise(US, ours(), THEM, Ipv6Addr::UNSPECIFIED, vlan),
                unsolicited(US, ours(), vlan)
            );
        }
    }

    #[test]
    fn every_validity_check_of_rfc_4861_7_1() {
        let asked = solicit(US, ours(), theirs(), None);
        let told = advertise(US, ours(), THEM, theirs(), None);
        assert_eq!(read(&changed(&asked, |ip| ip[7] = 254)), Err(NdpError::HopLimit(254)));
        assert_eq!(read(&changed(&asked, |ip| ip[41] = 3)), Err(NdpError::Code(3)));
        assert!(matches!(read(&changed(&asked, |ip| ip[48] = 0xff)), Err(NdpError::Target(_))));
        assert_eq!(read(&changed(&asked, |ip| ip[65] = 0)), Err(NdpError::Option(24)));
        assert_eq!(read(&changed(&asked, |ip| ip[65] = 2)), Err(NdpError::Option(24)));
        assert!(matches!(read(&changed(&asked, |ip| ip[66] = 1)), Err(NdpError::LinkAddress(_))));
        assert!(matches!(read(&changed(&asked, |ip| ip[8..24].fill(0))), Err(NdpError::Unspecified(_))));
        let group = changed(&told, |ip| ip[24..40].copy_from_slice(&ALL_NODES));
        assert!(matches!(read(&group), Err(NdpError::SolicitedGroup(_))));
        let mut corrupt = asked.to_vec();
        corrupt[60] ^= 1;
        assert_eq!(read(&corrupt), Err(NdpError::Checksum));
        let mut short = asked[..14 + 40 + 16].to_vec();
        short[18..20].copy_from_slice(&16u16.to_be_bytes());
        assert_eq!(read(&changed(&short, |_| ())), Err(NdpError::Length(16)));
        // duplicate address detection: no address, no link address, to the target's group
        let mut probe = asked[..14 + 40 + 24].to_vec();
        probe[18..20].copy_from_slice(&24u16.to_be_bytes());
        let probe = changed(&probe, |ip| ip[8..24].fill(0));
        let expected =
            Message::Solicitation { source: Ipv6Addr::UNSPECIFIED, target: theirs(), source_mac: None };
        assert_eq!(read(&probe), Ok(expected));
    }
}
