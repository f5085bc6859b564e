//! The packets that a bench plays: many flows, in an order that a seed decides, behind the answers of the backends'
//! neighbours, who can't be asked on a capture.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::Result;

use crate::config::Protocol;
use crate::random::Random;
use crate::topology::lab::{Family, vip};
use crate::traffic::frames::{
    Ip, Link, Mac, Tcp, arp_reply, checksum, flag, neighbour_advertisement, padded,
};
use crate::traffic::pcap;
use crate::traffic::servers::VIP_PORT;

/// Backends of a bench.
pub(crate) const BACKENDS: u16 = 8;
/// What net_pcap gives its first port.
pub(crate) const WEIR_MAC: Mac = [2, 0x70, 0x63, 0x61, 0x70, 0];
/// Weir's own addresses.
pub(crate) const OWN: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 1, 254), Ipv6Addr::new(0x2001, 0xdb8, 0x19, 0, 0, 0, 0, 0x254));
const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// A 64-byte frame without its frame check sequence.
const SHORTEST: usize = 60;

/// Address of a backend, counted from 0.
pub(crate) fn backend(family: Family, number: u16) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(198, 18, 1, 11 + number as u8).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0x19, 0, 0, 0, 0, 0x11 + number).into(),
    }
}

/// Link address of a backend.
pub(crate) fn backend_mac(number: u16) -> Mac {
    [2, 0, 0, 0, 1, number as u8]
}

/// What the packets of a capture are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// TCP, ACK: taken for the middle of a connection.
    Ack,
    /// TCP, SYN with an MSS.
    Syn,
    /// UDP.
    Datagram,
}

impl Content {
    /// Of which protocol.
    pub(crate) fn protocol(self) -> Protocol {
        if self == Self::Datagram { Protocol::Udp } else { Protocol::Tcp }
    }

    /// In words, for setups.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ack => "TCP ACK",
            Self::Syn => "TCP SYN",
            Self::Datagram => "UDP",
        }
    }
}

/// The packets of a bench: one per flow, all to one VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Family.
    pub(crate) family: Family,
    /// Content.
    pub(crate) content: Content,
    /// Number of flows.
    pub(crate) flows: u32,
}

impl Traffic {
    /// A frame of flow 0.
    fn template(&self) -> Vec<u8> {
        let link = Link::new(CLIENT_MAC, WEIR_MAC);
        let from: IpAddr = match self.family {
            Family::Ipv4 => Ipv4Addr::new(198, 19, 0, 0).into(),
            Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 5, 0, 0, 0, 0, 0).into(),
        };
        let ip = Ip::new(from, vip(self.family, 1));
        let ports = (1_024, VIP_PORT);
        let tcp_data: &[u8] = if self.family == Family::Ipv4 { &[0; 6] } else { &[] };
        let udp_data: &[u8] = if self.family == Family::Ipv4 { &[0; 18] } else { &[0; 12] };
        let packet = match self.content {
            Content::Ack => ip.tcp(&Tcp::new(ports, flag::ACK).data(tcp_data)),
            Content::Syn => ip.tcp(&Tcp::new(ports, flag::SYN).options(&[2, 4, 5, 0x78])),
            Content::Datagram => ip.udp(ports, udp_data),
        };
        padded(link.ip(&packet), SHORTEST)
    }

    /// Bytes of a frame, its check sequence included.
    pub(crate) fn frame_bytes(&self) -> usize {
        self.template().len() + 4
    }

    /// The frame of a flow.
    pub(crate) fn frame(&self, flow: u32) -> Vec<u8> {
        let mut frame = self.template();
        self.dress(&mut frame, flow);
        frame
    }

    /// Makes any flow's frame this flow's. The flow's number is in the TCP sequence number, or in the first data of UDP.
    fn dress(&self, frame: &mut [u8], flow: u32) {
        let spread = flow.wrapping_mul(0x9e37_79b1);
        let (port, l4) = match self.family {
            Family::Ipv4 => {
                // an odd factor permutes the 65,536 addresses; each further round of them has ports of its own
                let host = (flow as u16).wrapping_mul(40_503);
                frame[28..30].copy_from_slice(&host.to_be_bytes());
                (1_024 + (flow >> 16) * 64 + (spread >> 26), 34)
            }
            Family::Ipv6 => {
                frame[34..38].copy_from_slice(&spread.to_be_bytes());
                (1_024 + spread % 60_000, 54)
            }
        };
        frame[l4..l4 + 2].copy_from_slice(&(port as u16).to_be_bytes());
        let mark = if self.content == Content::Datagram { l4 + 8 } else { l4 + 4 };
        frame[mark..mark + 4].copy_from_slice(&flow.to_be_bytes());
        seal(&mut frame[14..]);
    }

    /// Writes a capture: the backends' neighbour answers, then every flow once per pass, in the order of `purpose`.
    /// Returns the number of its frames.
    pub(crate) fn write(&self, path: &Path, seed: u64, purpose: &str, passes: u32) -> Result<u32> {
        let mut order: Vec<u32> = (0..self.flows).collect();
        Random::new(seed, purpose).shuffle(&mut order);
        let mut writer = pcap::Writer::create(path)?;
        let neighbours = neighbours(self.family);
        neighbours.iter().try_for_each(|frame| writer.frame(frame))?;
        let mut frame = self.template();
        for _ in 0..passes {
            for &flow in &order {
                self.dress(&mut frame, flow);
                writer.frame(&frame)?;
            }
        }
        writer.finish()?;
        Ok(neighbours.len() as u32 + passes * self.flows)
    }
}

/// What the backends would answer if they could be asked.
fn neighbours(family: Family) -> Vec<Vec<u8>> {
    (0..BACKENDS)
        .map(|number| {
            let link = Link::new(backend_mac(number), WEIR_MAC);
            match backend(family, number) {
                IpAddr::V4(from) => arp_reply(&link, from, OWN.0),
                IpAddr::V6(from) => neighbour_advertisement(&link, from, OWN.1),
            }
        })
        .collect()
}

/// Computes the checksums of an IP packet (no options, no extension headers) and its TCP or UDP anew.
pub(crate) fn seal(packet: &mut [u8]) {
    let (protocol, header, end, addresses) = if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        (packet[9], 20, usize::from(u16::from_be_bytes([packet[2], packet[3]])), 12..20)
    } else {
        (packet[6], 40, 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])), 8..40)
    };
    let place = header + if protocol == 6 { 16 } else { 6 };
    packet[place..place + 2].fill(0);
    let mut pseudo = [0u8; 4];
    pseudo[..2].copy_from_slice(&((end - header) as u16).to_be_bytes());
    pseudo[3] = protocol;
    let sum = match checksum(&[&packet[addresses], &pseudo, &packet[header..end]]) {
        0 if protocol == 17 => 0xffff,
        sum => sum,
    };
    packet[place..place + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn all() -> Vec<Traffic> {
        Family::BOTH
            .into_iter()
            .flat_map(|family| {
                [Content::Ack, Content::Syn, Content::Datagram].map(|content| Traffic {
                    family,
                    content,
                    flows: 200_000,
                })
            })
            .collect()
    }

    #[test]
    fn frames_are_short_and_valid() {
        for traffic in all() {
            let v4 = traffic.family == Family::Ipv4;
            let bytes = if v4 {
                64
            } else if traffic.content == Content::Syn {
                82
            } else {
                78
            };
            assert_eq!(traffic.frame_bytes(), bytes, "{traffic:?}");
            for flow in [0, 1, 65_536, 4_194_303] {
                let frame = traffic.frame(flow);
                let parsed =
                    weir_net::parse::parse(&frame, &weir_net::parse::ParseOptions::default()).unwrap();
                assert!(weir_net::checksum::l4_is_valid(&frame, &parsed), "{traffic:?} {flow}");
            }
        }
    }

    #[test]
    fn every_flow_has_a_source_of_its_own() {
        for traffic in all() {
            let source = |flow| {
                let frame = traffic.frame(flow);
                if traffic.family == Family::Ipv4 {
                    [&frame[26..30], &frame[34..36]].concat()
                } else {
                    [&frame[22..38], &frame[54..56]].concat()
                }
            };
            let sources: HashSet<Vec<u8>> = (0..traffic.flows).map(source).collect();
            assert_eq!(sources.len(), traffic.flows as usize, "{traffic:?}");
        }
    }

    #[test]
    fn a_capture_repeats_with_its_seed() {
        let path = std::env::temp_dir().join(format!("weir-bench-{}.pcap", std::process::id()));
        let traffic = Traffic { family: Family::Ipv4, content: Content::Ack, flows: 100 };
        let read = |seed, purpose: &str| {
            assert_eq!(traffic.write(&path, seed, purpose, 2).unwrap(), 208);
            pcap::read(&path).unwrap()
        };
        let first = read(1, "a");
        assert_eq!(first, read(1, "a"));
        assert_ne!(first, read(1, "b"));
        assert_eq!(first[8..108], first[108..]);
        std::fs::remove_file(&path).unwrap();
    }
}
