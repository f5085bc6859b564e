//! Frames in and out, by smoltcp: a mistake of Weir's own parser can't hide here.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet,
    Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};
use weir_net::{Mac, eth};

use crate::rig::ANY_MAC;

pub(crate) const TTL: u8 = 61;

pub(crate) const fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, last])
}

/// An address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End(pub(crate) IpAddr, pub(crate) u16);

impl From<(&str, u16)> for End {
    fn from((address, port): (&str, u16)) -> Self {
        Self(address.parse().unwrap(), port)
    }
}

/// A packet as it left, its checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    pub(crate) ttl: u8,
    pub(crate) protocol: u8,
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) flags: String,
    pub(crate) payload: Vec<u8>,
}

fn v4(address: &str) -> Ipv4Addr {
    address.parse().unwrap()
}

fn ip(from: Mac, src_addr: Ipv4Addr, dst_addr: Ipv4Addr, next_header: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + payload.len()];
    eth::write(&mut frame, ANY_MAC, from, None, eth::IPV4).unwrap();
    let repr = Ipv4Repr { src_addr, dst_addr, next_header, payload_len: payload.len(), hop_limit: TTL };
    let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    frame
}

/// A TCP segment with the flags of `flags`: S, A, P.
pub(crate) fn tcp(from: Mac, source: (&str, u16), destination: (&str, u16), flags: &str) -> Vec<u8> {
    let (src, dst) = (v4(source.0), v4(destination.0));
    let control = match flags.trim_end_matches('A') {
        "S" => TcpControl::Syn,
        "P" => TcpControl::Psh,
        _ => TcpControl::None,
    };
    let repr = TcpRepr {
        src_port: source.1,
        dst_port: destination.1,
        control,
        seq_number: TcpSeqNumber(1_000),
        ack_number: flags.contains('A').then_some(TcpSeqNumber(2_000)),
        window_len: 512,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: if control == TcpControl::Psh { b"data" } else { b"" },
    };
    let mut bytes = vec![0; repr.buffer_len()];
    let checksums = ChecksumCapabilities::default();
    repr.emit(&mut TcpPacket::new_unchecked(&mut bytes), &src.into(), &dst.into(), &checksums);
    ip(from, src, dst, IpProtocol::Tcp, &bytes)
}

/// A UDP datagram.
pub(crate) fn udp(from: Mac, source: (&str, u16), destination: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let (src, dst) = (v4(source.0), v4(destination.0));
    let repr = UdpRepr { src_port: source.1, dst_port: destination.1 };
    let mut bytes = vec![0; 8 + payload.len()];
    let mut packet = UdpPacket::new_unchecked(&mut bytes);
    let fill = |body: &mut [u8]| body.copy_from_slice(payload);
    repr.emit(&mut packet, &src.into(), &dst.into(), payload.len(), fill, &ChecksumCapabilities::default());
    ip(from, src, dst, IpProtocol::Udp, &bytes)
}

/// An echo request.
pub(crate) fn echo(from: Mac, source: &str, destination: &str) -> Vec<u8> {
    let repr = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: b"hello" };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &ChecksumCapabilities::default());
    ip(from, v4(source), v4(destination), IpProtocol::Icmp, &bytes)
}

/// An IPv4 packet's fields; `None` for ARP and NDP. Wrong checksums end the test.
pub(crate) fn seen(frame: &[u8]) -> Option<Seen> {
    let link = EthernetFrame::new_checked(frame).unwrap();
    if link.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(link.payload()).unwrap();
    assert!(packet.verify_checksum(), "{frame:02x?}");
    let (src, dst) = (packet.src_addr(), packet.dst_addr());
    let (ports, flags, payload) = match packet.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
            assert!(tcp.verify_checksum(&src.into(), &dst.into()), "{frame:02x?}");
            let flags = [(tcp.syn(), 'S'), (tcp.psh(), 'P'), (tcp.rst(), 'R'), (tcp.ack(), 'A')];
            let flags = flags.iter().filter(|(set, _)| *set).map(|(_, flag)| *flag).collect();
            ((tcp.src_port(), tcp.dst_port()), flags, tcp.payload().to_vec())
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(packet.payload()).unwrap();
            assert!(udp.verify_checksum(&src.into(), &dst.into()), "{frame:02x?}");
            ((udp.src_port(), udp.dst_port()), String::new(), udp.payload().to_vec())
        }
        IpProtocol::Icmp => {
            let icmp = Icmpv4Packet::new_checked(packet.payload()).unwrap();
            assert!(icmp.verify_checksum(), "{frame:02x?}");
            ((0, 0), icmp.msg_type().to_string(), icmp.data().to_vec())
        }
        other => panic!("{other} left Weir"),
    };
    Some(Seen {
        to: Mac(link.dst_addr().0),
        from: Mac(link.src_addr().0),
        ttl: packet.hop_limit(),
        protocol: packet.next_header().into(),
        source: End(src.into(), ports.0),
        destination: End(dst.into(), ports.1),
        flags,
        payload,
    })
}

/// Whom ARP messages went to, and which address they told to be here. Questions (from an address to another) are told too.
pub(crate) fn arp_senders(frames: &[Vec<u8>]) -> Vec<(Mac, Ipv4Addr)> {
    let sender = |frame: &Vec<u8>| {
        let link = EthernetFrame::new_checked(frame).unwrap();
        if link.ethertype() != EthernetProtocol::Arp {
            return None;
        }
        let ArpRepr::EthernetIpv4 { source_protocol_addr, source_hardware_addr, .. } =
            ArpRepr::parse(&ArpPacket::new_checked(link.payload()).unwrap()).unwrap()
        else {
            return None;
        };
        assert_eq!(source_hardware_addr, link.src_addr());
        Some((Mac(link.dst_addr().0), source_protocol_addr))
    };
    frames.iter().filter_map(sender).collect()
}

/// Writes a classic capture file.
pub(crate) fn write_capture(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes = [0xa1b2_c3d4_u32.to_ne_bytes().to_vec(), vec![2, 0, 4, 0]].concat();
    for word in [0u32, 0, 65_535, 1] {
        bytes.extend(word.to_ne_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(frame);
    }
    std::fs::write(path, bytes).unwrap();
}

/// Reads a classic capture file.
pub(crate) fn read_capture(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let mut rest = &bytes[24..];
    let mut frames = vec![];
    while let Some((head, body)) = rest.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]) as usize;
        frames.push(body[..length].to_vec());
        rest = &body[length..];
    }
    frames
}
