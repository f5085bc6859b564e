//! Which reset tells the sender of a segment that its connection is gone (RFC 9293 §3.5.2)?

use crate::buffer::PacketBuf;
use crate::bytes::put;
use crate::checksum;
use crate::eth;
use crate::ipv4;
use crate::ipv6;
use crate::parse::Parsed;
use crate::tcp::{self, ACK, RST};
use crate::types::{Family, Protocol};

/// Turns a TCP segment into the reset that answers it, from the address and port that it was sent to. The link header's
/// addresses are swapped and a VLAN tag is kept.
///
/// False, and no change, where there must be no answer: no TCP, a fragment, a reset, a group address.
pub fn reply<B: PacketBuf>(packet: &mut B, parsed: &Parsed) -> bool {
    let frame = packet.data();
    let (Some(family), Protocol::TCP) = (parsed.family(), parsed.protocol) else { return false };
    if parsed.is_fragment() || parsed.tcp_flags & RST != 0 || parsed.dst_is_group(frame) {
        return false;
    }
    let segment = parsed.segment(frame);
    let (sequence, acknowledgment, flags) = if parsed.tcp_flags & ACK != 0 {
        (tcp::acknowledgment(segment), 0, RST)
    } else {
        (0, tcp::sequence(segment).wrapping_add(tcp::sequence_len(segment)), RST | ACK)
    };
    let header = tcp::Header {
        src_port: parsed.dst_port,
        dst_port: parsed.src_port,
        sequence,
        acknowledgment,
        flags,
        window: 0,
    };
    let l3 = parsed.l3_offset();
    const LEN: u16 = tcp::HEADER_LEN as u16;
    match family {
        Family::V4 => {
            let (src, dst) = (parsed.dst_v4(frame), parsed.src_v4(frame));
            let ip = ipv4::Header {
                tos: 0,
                total_len: ipv4::HEADER_LEN as u16 + LEN,
                identification: 0,
                dont_fragment: true,
                ttl: ipv4::DEFAULT_TTL,
                protocol: Protocol::TCP,
                src,
                dst,
            };
            let tcp = header.bytes(checksum::pseudo_v4(src, dst, Protocol::TCP, LEN));
            finish(packet, l3, ip.bytes(), tcp)
        }
        Family::V6 => {
            let (src, dst) = (parsed.dst_v6(frame), parsed.src_v6(frame));
            let ip = ipv6::Header {
                traffic_class: 0,
                flow_label: 0,
                payload_len: LEN,
                next_header: Protocol::TCP,
                hop_limit: ipv6::DEFAULT_HOP_LIMIT,
                src,
                dst,
            };
            let tcp = header.bytes(checksum::pseudo_v6(&src, &dst, Protocol::TCP, u32::from(LEN)));
            finish(packet, l3, ip.bytes(), tcp)
        }
    }
}

/// Cuts the frame behind the new headers, which are never longer than the old ones, and writes them.
fn finish<B: PacketBuf, const N: usize>(
    packet: &mut B,
    l3: usize,
    ip: [u8; N],
    tcp: [u8; tcp::HEADER_LEN],
) -> bool {
    if !packet.truncate(l3 + N + tcp::HEADER_LEN) {
        return false;
    }
    let frame = packet.data_mut();
    eth::swap_addresses(frame) && put(frame, l3, ip).and_then(|()| put(frame, l3 + N, tcp)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::VecBuf;
    use crate::sample::{self, client, parsed, smoltcp_accepts, vip};
    use smoltcp::wire::{IpProtocol, TcpControl};

    #[test]
    fn resets_fit_what_they_answer() {
        for family in [Family::V4, Family::V6] {
            // RFC 9293 §3.5.2: with an acknowledgment its number is taken; without, what was sent is acknowledged
            for (control, ack, data, sequence, acknowledgment, flags) in [
                (TcpControl::Syn, None, 0, 0, 1001, RST | ACK),
                (TcpControl::None, Some(77), 30, 77, 0, RST),
                (TcpControl::Fin, None, 30, 0, 1031, RST | ACK),
            ] {
                let frame = sample::tcp(family, control, ack, &vec![1; data]);
                let mut packet = VecBuf::new(&frame);
                assert!(reply(&mut packet, &parsed(&frame)));
                let answer = packet.data();
                let shape = parsed(answer);
                assert!(smoltcp_accepts(answer));
                assert_eq!((shape.src(answer), shape.dst(answer)), (Some(vip(family)), Some(client(family))));
                assert_eq!((shape.src_port, shape.dst_port), (sample::VIP_PORT, sample::CLIENT_PORT));
                assert_eq!(shape.tcp_flags, flags);
                assert_eq!(tcp::sequence(shape.segment(answer)), sequence);
                assert_eq!(tcp::acknowledgment(shape.segment(answer)), acknowledgment);
                assert_eq!(eth::destination(answer), sample::CLIENT_MAC);
                assert_eq!(shape.end(), answer.len());
            }
        }
    }

    #[test]
    fn resets_and_others_are_not_answered() {
        let frame = sample::tcp(Family::V4, TcpControl::Rst, Some(7), b"");
        assert!(!reply(&mut VecBuf::new(&frame), &parsed(&frame)));
        let frame = sample::udp(Family::V4, b"some datagram that is long enough");
        assert!(!reply(&mut VecBuf::new(&frame), &parsed(&frame)));
        let segment = sample::tcp(Family::V4, TcpControl::Syn, None, b"")[34..].to_vec();
        let group = std::net::Ipv4Addr::new(224, 0, 0, 5).into();
        let frame = sample::ip_between(client(Family::V4), group, IpProtocol::Tcp, &segment);
        assert!(!reply(&mut VecBuf::new(&frame), &parsed(&frame)));
    }
}
