//! Frames built byte by byte, straight from the RFCs and on purpose without Weir's own parsers and writers: what a
//! test expects must not come from the code under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// TCP flags (RFC 9293 §3.1).
pub(crate) mod flag {
    /// No more data.
    pub(crate) const FIN: u8 = 0x01;
    /// Synchronise.
    pub(crate) const SYN: u8 = 0x02;
    /// Reset.
    pub(crate) const RST: u8 = 0x04;
    /// Push.
    pub(crate) const PSH: u8 = 0x08;
    /// Acknowledgment.
    pub(crate) const ACK: u8 = 0x10;
}

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];
/// To everybody.
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// Ends of an Ethernet frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Sender.
    pub(crate) from: Mac,
    /// Receiver.
    pub(crate) to: Mac,
    /// 802.1Q tag.
    pub(crate) vlan: Option<u16>,
}

impl Link {
    /// Without a tag.
    pub(crate) fn new(from: Mac, to: Mac) -> Self {
        Self { from, to, vlan: None }
    }

    /// The frame that carries `payload`.
    pub(crate) fn frame(&self, ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(18 + payload.len());
        frame.extend(self.to);
        frame.extend(self.from);
        if let Some(vlan) = self.vlan {
            frame.extend([0x81, 0x00]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend(ether_type.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// The frame of an IP packet.
    pub(crate) fn ip(&self, packet: &[u8]) -> Vec<u8> {
        let ether_type = if packet.first().is_some_and(|first| first >> 4 == 6) { 0x86dd } else { 0x0800 };
        self.frame(ether_type, packet)
    }
}

/// The Internet checksum (RFC 1071) over several pieces, each of even length but the last.
pub(crate) fn checksum(pieces: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for piece in pieces {
        for pair in piece.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// An IP header's choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    /// Source.
    pub(crate) from: IpAddr,
    /// Destination.
    pub(crate) to: IpAddr,
    /// Time to live or hop limit.
    pub(crate) ttl: u8,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    /// Identification (IPv4).
    pub(crate) id: u16,
    /// Don't fragment (IPv4).
    pub(crate) df: bool,
    /// Fragment: offset in bytes, and whether more follow.
    pub(crate) fragment: Option<(u16, bool)>,
}

impl Ip {
    /// TTL 64, not fragmented, DF set.
    pub(crate) fn new(from: impl Into<IpAddr>, to: impl Into<IpAddr>) -> Self {
        Self { from: from.into(), to: to.into(), ttl: 64, tos: 0, id: 0, df: true, fragment: None }
    }

    /// With another TTL.
    pub(crate) fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    /// The packet that carries `payload` of `protocol`.
    ///
    /// # Panics
    /// When the two addresses are of different families.
    pub(crate) fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => self.packet_v4(from, to, protocol, payload),
            (IpAddr::V6(from), IpAddr::V6(to)) => self.packet_v6(from, to, protocol, payload),
            _ => unreachable!("one packet has one family: {} → {}", self.from, self.to),
        }
    }

    fn packet_v4(&self, from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x45, self.tos];
        header.extend((20 + payload.len() as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        let mut offset = if self.df { 0x4000 } else { 0 };
        if let Some((bytes, more)) = self.fragment {
            offset = (bytes / 8) | if more { 0x2000 } else { 0 };
        }
        header.extend(offset.to_be_bytes());
        header.extend([self.ttl, protocol, 0, 0]);
        header.extend(from.octets());
        header.extend(to.octets());
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header.extend(payload);
        header
    }

    fn packet_v6(&self, from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let extra = if self.fragment.is_some() { 8 } else { 0 };
        let mut header = (6u32 << 28 | u32::from(self.tos) << 20).to_be_bytes().to_vec();
        header.extend((payload.len() as u16 + extra).to_be_bytes());
        header.extend([if extra > 0 { 44 } else { protocol }, self.ttl]);
        header.extend(from.octets());
        header.extend(to.octets());
        if let Some((bytes, more)) = self.fragment {
            header.extend([protocol, 0]);
            header.extend((bytes | u16::from(more)).to_be_bytes());
            header.extend(u32::from(self.id).to_be_bytes());
        }
        header.extend(payload);
        header
    }

    /// The pseudo header that L4 checksums cover.
    fn pseudo(&self, protocol: u8, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend([0, protocol]);
                bytes.extend((length as u16).to_be_bytes());
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                bytes.extend((length as u32).to_be_bytes());
                bytes.extend([0, 0, 0, protocol]);
            }
            _ => {}
        }
        bytes
    }

    /// A UDP packet.
    pub(crate) fn udp(&self, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        self.packet(17, &self.udp_datagram(ports, data))
    }

    /// Only the datagram, its checksum right for these addresses.
    pub(crate) fn udp_datagram(&self, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let mut segment = Vec::with_capacity(8 + data.len());
        segment.extend(ports.0.to_be_bytes());
        segment.extend(ports.1.to_be_bytes());
        segment.extend((8 + data.len() as u16).to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(data);
        let sum = match checksum(&[&self.pseudo(17, segment.len()), &segment]) {
            // RFC 768: a computed zero goes out as all ones
            0 => 0xffff,
            sum => sum,
        };
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    /// A TCP packet.
    pub(crate) fn tcp(&self, segment: &Tcp<'_>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(20 + segment.options.len() + segment.data.len());
        bytes.extend(segment.ports.0.to_be_bytes());
        bytes.extend(segment.ports.1.to_be_bytes());
        bytes.extend(segment.sequence.to_be_bytes());
        bytes.extend(segment.acknowledgment.to_be_bytes());
        bytes.extend([(((20 + segment.options.len()) / 4) << 4) as u8, segment.flags]);
        bytes.extend(segment.window.to_be_bytes());
        bytes.extend([0, 0, 0, 0]);
        bytes.extend(segment.options);
        bytes.extend(segment.data);
        let sum = checksum(&[&self.pseudo(6, bytes.len()), &bytes]);
        bytes[16..18].copy_from_slice(&sum.to_be_bytes());
        self.packet(6, &bytes)
    }

    /// An ICMP or ICMPv6 message, by the family of the addresses.
    pub(crate) fn icmp(&self, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
        let mut message = vec![kind, code, 0, 0];
        message.extend(rest);
        message.extend(data);
        let sum = match self.from {
            IpAddr::V4(_) => checksum(&[&message]),
            IpAddr::V6(_) => checksum(&[&self.pseudo(58, message.len()), &message]),
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.packet(if self.from.is_ipv4() { 1 } else { 58 }, &message)
    }
}

/// A TCP segment's choices.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tcp<'a> {
    /// Source and destination port.
    pub(crate) ports: (u16, u16),
    /// Sequence number.
    pub(crate) sequence: u32,
    /// Acknowledgment number.
    pub(crate) acknowledgment: u32,
    /// See [`flag`].
    pub(crate) flags: u8,
    /// Window.
    pub(crate) window: u16,
    /// Options, a multiple of four bytes.
    pub(crate) options: &'a [u8],
    /// Payload.
    pub(crate) data: &'a [u8],
}

impl<'a> Tcp<'a> {
    /// Flags and ports, the rest plausible.
    pub(crate) fn new(ports: (u16, u16), flags: u8) -> Self {
        Self { ports, sequence: 1_000, acknowledgment: 0, flags, window: 64_240, options: &[], data: &[] }
    }

    /// With data.
    pub(crate) fn data(mut self, data: &'a [u8]) -> Self {
        self.data = data;
        self
    }

    /// With options.
    pub(crate) fn options(mut self, options: &'a [u8]) -> Self {
        self.options = options;
        self
    }
}

/// An ARP answer (RFC 826) from one station to another.
pub(crate) fn arp_reply(link: &Link, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4, 0, 2];
    body.extend(link.from);
    body.extend(from.octets());
    body.extend(link.to);
    body.extend(to.octets());
    link.frame(0x0806, &body)
}

/// A solicited neighbour advertisement (RFC 4861 §4.4) from one station to another.
pub(crate) fn neighbour_advertisement(link: &Link, from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    // target, then option 2: target link-layer address
    let mut body = from.octets().to_vec();
    body.extend([2, 1]);
    body.extend(link.from);
    // flags: solicited and override
    link.ip(&Ip::new(from, to).ttl(255).icmp(136, 0, [0x60, 0, 0, 0], &body))
}

/// Fills a frame up to `length` bytes with zeroes, as Ethernet pads.
pub(crate) fn padded(mut frame: Vec<u8>, length: usize) -> Vec<u8> {
    if frame.len() < length {
        frame.resize(length, 0);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_known_from_rfc_1071_lore() {
        // the example of RFC 1071 §3: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn weirs_parser_accepts_what_is_built_here() {
        let link = Link::new([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let v4 = Ip::new(Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 100, 1));
        let v6 = Ip::new(
            "2001:db8:18::1".parse::<Ipv6Addr>().unwrap(),
            "2001:db8:100::1".parse::<Ipv6Addr>().unwrap(),
        );
        for ip in [v4, v6] {
            for packet in [
                ip.udp((1_000, 53), b"odd"),
                ip.tcp(&Tcp::new((1_000, 80), flag::SYN).options(&[2, 4, 5, 180])),
                ip.icmp(if ip.from.is_ipv4() { 8 } else { 128 }, 0, [0, 1, 0, 1], b"ping"),
            ] {
                let frame = link.ip(&packet);
                let parsed =
                    weir_net::parse::parse(&frame, &weir_net::parse::ParseOptions::default()).unwrap();
                assert!(weir_net::checksum::l4_is_valid(&frame, &parsed), "{frame:02x?}");
            }
        }
    }
}
