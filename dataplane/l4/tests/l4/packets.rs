//! How do packets look? Written out by hand and summed the slow way, so that no code under test takes part; read back by smoltcp.

use std::net::{IpAddr, SocketAddr};

use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;
/// Length of an Ethernet header without a tag.
pub const LINK: usize = 14;

/// A whole TCP or UDP packet.
#[derive(Clone, Debug)]
pub struct Packet {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub protocol: u8,
    pub ttl: u8,
    pub tos: u8,
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub mss: Option<u16>,
    pub payload: Vec<u8>,
    pub checksum: bool,
    pub dont_fragment: bool,
    pub identification: u16,
}

impl Packet {
    pub fn new(protocol: u8, src: &str, dst: &str) -> Self {
        Self {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            protocol,
            ttl: 64,
            tos: 0,
            flags: ACK,
            sequence: 0x0102_0304,
            acknowledgment: 0x0506_0708,
            mss: None,
            payload: b"payload".to_vec(),
            checksum: true,
            dont_fragment: true,
            identification: 0x4321,
        }
    }

    pub fn tcp(src: &str, dst: &str, flags: u8) -> Self {
        let payload = if flags & (SYN | FIN | RST) == 0 { b"payload".to_vec() } else { Vec::new() };
        Self { flags, payload, ..Self::new(TCP, src, dst) }
    }

    pub fn udp(src: &str, dst: &str) -> Self {
        Self::new(UDP, src, dst)
    }

    /// The same packet with other flags.
    pub fn with(&self, flags: u8) -> Self {
        Self { flags, ..self.clone() }
    }

    /// A packet the other way.
    pub fn answer(&self, flags: u8) -> Self {
        Self { src: self.dst, dst: self.src, flags, ..self.clone() }
    }

    pub fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src.port().to_be_bytes());
        bytes.extend(self.dst.port().to_be_bytes());
        let at = if self.protocol == TCP {
            bytes.extend(self.sequence.to_be_bytes());
            bytes.extend(self.acknowledgment.to_be_bytes());
            let options = if self.mss.is_some() { 4 } else { 0 };
            bytes.extend([(5 + options / 4) << 4, self.flags, 0x20, 0, 0, 0, 0, 0]);
            if let Some(mss) = self.mss {
                bytes.extend([2, 4]);
                bytes.extend(mss.to_be_bytes());
            }
            16
        } else {
            bytes.extend((self.payload.len() as u16 + 8).to_be_bytes());
            bytes.extend([0, 0]);
            6
        };
        bytes.extend(&self.payload);
        if self.checksum {
            let sum = transport_checksum(self.src.ip(), self.dst.ip(), self.protocol, &bytes);
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }

    /// From the IP header on.
    pub fn datagram(&self) -> Vec<u8> {
        let flags = if self.dont_fragment { 0x4000 } else { 0 };
        let head = Ip {
            ttl: self.ttl,
            tos: self.tos,
            identification: self.identification,
            fragment: flags,
            label: 0,
        };
        head.packet(self.src.ip(), self.dst.ip(), self.protocol, &self.segment())
    }

    pub fn frame(&self) -> Vec<u8> {
        framed(&self.datagram())
    }

    /// The frames of this packet cut into pieces of `size` bytes of IP payload.
    pub fn fragments(&self, size: usize) -> Vec<Vec<u8>> {
        let segment = self.segment();
        let count = segment.len().div_ceil(size);
        let pieces = segment.chunks(size).enumerate().map(|(at, piece)| {
            let more = at + 1 < count;
            framed(&self.fragment(at * size, more, piece))
        });
        pieces.collect()
    }

    /// One fragment, from the IP header on.
    pub fn fragment(&self, offset: usize, more: bool, piece: &[u8]) -> Vec<u8> {
        let mut head =
            Ip { ttl: self.ttl, tos: self.tos, identification: self.identification, ..Ip::default() };
        if self.src.is_ipv4() {
            head.fragment = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            return head.packet(self.src.ip(), self.dst.ip(), self.protocol, piece);
        }
        let mut payload = vec![self.protocol, 0];
        payload.extend((offset as u16 | u16::from(more)).to_be_bytes());
        payload.extend(u32::from(self.identification).to_be_bytes());
        payload.extend(piece);
        head.packet(self.src.ip(), self.dst.ip(), 44, &payload)
    }
}

/// What an IP header holds beside addresses, protocol and length; `label` is IPv6's flow label, `fragment` IPv4's word.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ip {
    pub ttl: u8,
    pub tos: u8,
    pub identification: u16,
    pub fragment: u16,
    pub label: u32,
}

impl Ip {
    pub fn packet(&self, src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                bytes.extend([0x45, self.tos]);
                bytes.extend((payload.len() as u16 + 20).to_be_bytes());
                bytes.extend(self.identification.to_be_bytes());
                bytes.extend(self.fragment.to_be_bytes());
                bytes.extend([self.ttl, protocol, 0, 0]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
                let sum = !ones_sum(&bytes);
                bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend((6 << 28 | u32::from(self.tos) << 20 | self.label).to_be_bytes());
                bytes.extend((payload.len() as u16).to_be_bytes());
                bytes.extend([protocol, self.ttl]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            _ => panic!("{src} and {dst} are of two families"),
        }
        bytes.extend(payload);
        bytes
    }
}

/// RFC 1071, the slow way.
pub fn ones_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of TCP, UDP or ICMPv6 bytes whose own field is zero.
pub fn transport_checksum(src: IpAddr, dst: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => bytes.extend([src.octets(), dst.octets()].concat()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => bytes.extend([src.octets(), dst.octets()].concat()),
        _ => panic!("{src} and {dst} are of two families"),
    }
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes.extend(segment);
    match !ones_sum(&bytes) {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    }
}

/// A datagram in an Ethernet frame.
pub fn framed(datagram: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if datagram[0] >> 4 == 4 { [0x08, 0] } else { [0x86, 0xdd] });
    frame.extend(datagram);
    frame
}

/// An ICMP error of the addresses' family; `rest` is the second word. From the IP header on.
pub fn icmp_error(src: &str, dst: &str, kind: u8, code: u8, rest: u32, quote: &[u8]) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    let mut message = vec![kind, code, 0, 0];
    message.extend(rest.to_be_bytes());
    message.extend(quote);
    let (protocol, sum) = match src {
        IpAddr::V4(_) => (1, !ones_sum(&message)),
        IpAddr::V6(_) => (58, transport_checksum(src, dst, 58, &message)),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Ip { ttl: 64, identification: 7, ..Ip::default() }.packet(src, dst, protocol, &message)
}

/// The same datagram one router further.
pub fn aged(datagram: &[u8]) -> Vec<u8> {
    let mut datagram = datagram.to_vec();
    if datagram[0] >> 4 == 4 {
        datagram[8] -= 1;
        datagram[10..12].fill(0);
        let sum = !ones_sum(&datagram[..20]);
        datagram[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        datagram[7] -= 1;
    }
    datagram
}

/// Has smoltcp verify every checksum of a datagram, those of carried packets included. Fragments end at the IP header.
pub fn verify(datagram: &[u8]) {
    let (src, dst, protocol, payload): (IpAddr, IpAddr, IpProtocol, &[u8]) = if datagram[0] >> 4 == 4 {
        let packet = Ipv4Packet::new_checked(datagram).unwrap();
        assert!(packet.verify_checksum(), "IPv4 checksum of {datagram:02x?}");
        assert_eq!(usize::from(packet.total_len()), datagram.len());
        if packet.more_frags() || packet.frag_offset() != 0 {
            return;
        }
        (packet.src_addr().into(), packet.dst_addr().into(), packet.next_header(), packet.payload())
    } else {
        let packet = Ipv6Packet::new_checked(datagram).unwrap();
        assert_eq!(packet.total_len(), datagram.len());
        (packet.src_addr().into(), packet.dst_addr().into(), packet.next_header(), packet.payload())
    };
    let (from, to) = (src.into(), dst.into());
    match protocol {
        IpProtocol::Tcp => {
            assert!(TcpPacket::new_checked(payload).unwrap().verify_checksum(&from, &to), "TCP checksum");
        }
        IpProtocol::Udp => {
            let segment = UdpPacket::new_checked(payload).unwrap();
            assert!(segment.verify_checksum(&from, &to), "UDP checksum");
            assert!(src.is_ipv4() || segment.checksum() != 0, "RFC 8200 §8.1");
        }
        IpProtocol::Icmp => {
            assert!(Icmpv4Packet::new_checked(payload).unwrap().verify_checksum(), "ICMP checksum")
        }
        IpProtocol::Icmpv6 => {
            let (IpAddr::V6(src), IpAddr::V6(dst)) = (src, dst) else { panic!("ICMPv6 over {src}") };
            assert!(
                Icmpv6Packet::new_checked(payload).unwrap().verify_checksum(&src, &dst),
                "ICMPv6 checksum"
            );
        }
        IpProtocol::Ipv6Frag => {}
        other => match u8::from(other) {
            4 | 41 => verify(payload),
            _ => panic!("unexpected protocol {other}"),
        },
    }
}
