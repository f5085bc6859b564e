//! Frames for tests, made by smoltcp so that a mistake of ours can't cancel itself out.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    UdpPacket, UdpRepr,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::eth;
use crate::parse::{ParseOptions, Parsed, parse};
use crate::types::{Family, Mac};

pub(crate) const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xc]);
pub(crate) const OUR_MAC: Mac = Mac([2, 0, 0, 0, 0, 0x1]);
pub(crate) const CLIENT_PORT: u16 = 40_000;
pub(crate) const VIP_PORT: u16 = 80;

pub(crate) fn client(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, 0, 2).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into(),
    }
}

pub(crate) fn vip(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(198, 18, 100, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0x100, 0, 0, 0, 1).into(),
    }
}

/// A frame with an IP packet from client to VIP that carries `payload`.
pub(crate) fn ip(family: Family, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    ip_between(client(family), vip(family), protocol, payload)
}

pub(crate) fn ip_between(src: IpAddr, dst: IpAddr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14];
    match (src, dst) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            eth::write(&mut frame, OUR_MAC, CLIENT_MAC, None, eth::IPV4).unwrap();
            frame.resize(14 + 20 + payload.len(), 0);
            let repr = Ipv4Repr {
                src_addr,
                dst_addr,
                next_header: protocol,
                payload_len: payload.len(),
                hop_limit: 61,
            };
            let mut packet = Ipv4Packet::new_unchecked(&mut frame[14..]);
            repr.emit(&mut packet, &ChecksumCapabilities::default());
            packet.payload_mut().copy_from_slice(payload);
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            eth::write(&mut frame, OUR_MAC, CLIENT_MAC, None, eth::IPV6).unwrap();
            frame.resize(14 + 40 + payload.len(), 0);
            let repr = Ipv6Repr {
                src_addr,
                dst_addr,
                next_header: protocol,
                payload_len: payload.len(),
                hop_limit: 61,
            };
            let mut packet = Ipv6Packet::new_unchecked(&mut frame[14..]);
            repr.emit(&mut packet);
            packet.payload_mut().copy_from_slice(payload);
        }
        _ => unreachable!("one family"),
    }
    frame
}

/// A TCP segment from client to VIP.
pub(crate) fn tcp(family: Family, control: TcpControl, ack: Option<u32>, payload: &[u8]) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: CLIENT_PORT,
        dst_port: VIP_PORT,
        control,
        seq_number: TcpSeqNumber(1000),
        ack_number: ack.map(|number| TcpSeqNumber(number as i32)),
        window_len: 512,
        window_scale: None,
        max_seg_size: (control == TcpControl::Syn).then_some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload,
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(
        &mut TcpPacket::new_unchecked(&mut bytes),
        &client(family).into(),
        &vip(family).into(),
        &ChecksumCapabilities::default(),
    );
    ip(family, IpProtocol::Tcp, &bytes)
}

/// A UDP datagram from client to VIP.
pub(crate) fn udp(family: Family, payload: &[u8]) -> Vec<u8> {
    let repr = UdpRepr { src_port: CLIENT_PORT, dst_port: VIP_PORT };
    let mut bytes = vec![0; 8 + payload.len()];
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut bytes),
        &client(family).into(),
        &vip(family).into(),
        payload.len(),
        |body| body.copy_from_slice(payload),
        &ChecksumCapabilities::default(),
    );
    ip(family, IpProtocol::Udp, &bytes)
}

/// Changes an IPv4 frame's header and mends its checksum.
pub(crate) fn edit_v4(mut frame: Vec<u8>, edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    edit(&mut frame[14..]);
    let len = (usize::from(frame[14] & 15) * 4).clamp(20, frame.len() - 14);
    frame[24..26].fill(0);
    let sum = !smoltcp::wire::checksum::data(&frame[14..14 + len]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

pub(crate) fn parsed(frame: &[u8]) -> Parsed {
    parse(frame, &ParseOptions::default()).unwrap()
}

/// Whether smoltcp finds the IP and transport checksums of a TCP or UDP frame right.
pub(crate) fn smoltcp_accepts(frame: &[u8]) -> bool {
    let (protocol, src, dst, payload) = match frame[14] >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
            if !packet.verify_checksum() {
                return false;
            }
            (
                packet.next_header(),
                packet.src_addr().into(),
                packet.dst_addr().into(),
                packet.payload().to_vec(),
            )
        }
        _ => {
            let packet = Ipv6Packet::new_checked(&frame[14..]).unwrap();
            (
                packet.next_header(),
                packet.src_addr().into(),
                packet.dst_addr().into(),
                packet.payload().to_vec(),
            )
        }
    };
    match protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(&payload[..]).unwrap().verify_checksum(&src, &dst),
        IpProtocol::Udp => UdpPacket::new_checked(&payload[..]).unwrap().verify_checksum(&src, &dst),
        _ => true,
    }
}
