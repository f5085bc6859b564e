//! Which bytes go before the data of a segment? IP and TCP headers, written in one go with their checksums.
//!
//! Sums are taken over the numbers before they are stored: reading bytes back that were just written narrowly would stall.

use weir_net::{Protocol, checksum, ipv4, ipv6, tcp};

use crate::buffer::Endpoint;
pub use crate::options::OptionBytes;
use crate::options::TIMESTAMPS_LEN;
use crate::seq::SeqNumber;

/// RFC 3168 §5: the sender does not take part in ECN.
pub const NOT_ECT: u8 = 0b00;
/// RFC 3168 §5: ECN-capable transport.
pub const ECT_0: u8 = 0b10;
/// The longest header that is written: IPv6, TCP, 40 bytes of options.
pub const HEADER_MAX: usize = ipv6::HEADER_LEN + tcp::HEADER_LEN + crate::options::OPTIONS_MAX;

/// All that a segment says but its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Our address and port; its family decides which IP header is written.
    pub local: Endpoint,
    /// The peer's address and port, of the same family.
    pub remote: Endpoint,
    /// Sequence number.
    pub seq: SeqNumber,
    /// Acknowledgment number.
    pub ack: SeqNumber,
    /// Window, as it stands in the header (scaled already).
    pub window: u16,
    /// IPv4 identification; arbitrary, since no router may fragment (RFC 6864 §4.1). IPv6 has none.
    pub identification: u16,
    /// Flags, as [`weir_net::tcp`] names them.
    pub flags: u8,
    /// [`NOT_ECT`] or [`ECT_0`].
    pub ecn: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Options.
    pub options: OptionBytes,
}

impl Default for Header {
    fn default() -> Self {
        Self {
            local: Endpoint::default(),
            remote: Endpoint::default(),
            seq: SeqNumber::default(),
            ack: SeqNumber::default(),
            window: 0,
            identification: 0,
            flags: 0,
            ecn: NOT_ECT,
            hop_limit: ipv4::DEFAULT_TTL,
            options: OptionBytes::NONE,
        }
    }
}

/// What becomes of the TCP checksum.
#[derive(Clone, Copy)]
enum Checksum {
    /// Complete; this is the sum of the data.
    Complete(u16),
    /// The sum of the pseudo-header: the NIC adds the rest.
    Pseudo,
    /// The sum of the pseudo-header without a length: the NIC cuts the data into segments and adds the rest.
    Segmentation,
}

impl Header {
    /// Length of what is written: IP and TCP headers with options.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        let ip = if self.local.is_v4() { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        ip + tcp::HEADER_LEN + self.options.len()
    }

    /// Never: a header has bytes.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the headers for `payload_len` bytes of data, whose sum is `payload_sum` ([`PayloadSum`], or
    /// [`checksum::sum`] of data in one piece), checksums included. Returns their length; 0, and nothing of use written,
    /// where `out` is shorter than that or the packet would be longer than IP can say.
    #[inline]
    pub fn write(&self, payload_len: usize, payload_sum: u16, out: &mut [u8]) -> usize {
        self.emit(payload_len, Checksum::Complete(payload_sum), out).unwrap_or(0)
    }

    /// As [`Header::write`], for a NIC that completes the TCP checksum: the field holds the sum of the pseudo-header.
    #[inline]
    pub fn write_without_checksum(&self, payload_len: usize, out: &mut [u8]) -> usize {
        self.emit(payload_len, Checksum::Pseudo, out).unwrap_or(0)
    }

    /// As [`Header::write_without_checksum`], for a NIC that cuts the data into segments (TSO): the sum of the
    /// pseudo-header has no length in it, and IPv4's checksum is zero, as DPDK's `RTE_MBUF_F_TX_TCP_SEG` wants it.
    #[inline]
    pub fn write_for_segmentation(&self, payload_len: usize, out: &mut [u8]) -> usize {
        self.emit(payload_len, Checksum::Segmentation, out).unwrap_or(0)
    }

    #[inline(always)]
    fn emit(&self, payload_len: usize, checksum: Checksum, out: &mut [u8]) -> Option<usize> {
        let tcp_len = u16::try_from(tcp::HEADER_LEN + self.options.len() + payload_len).ok()?;
        let (pseudo, rest) = if self.local.is_v4() {
            let (ip, rest) = out.split_first_chunk_mut::<{ ipv4::HEADER_LEN }>()?;
            (self.emit_v4(tcp_len, checksum, ip)?, rest)
        } else {
            let (ip, rest) = out.split_first_chunk_mut::<{ ipv6::HEADER_LEN }>()?;
            (self.emit_v6(ip, tcp_len), rest)
        };
        self.emit_tcp(tcp_len, pseudo, checksum, rest)?;
        Some(self.len())
    }

    /// Writes an IPv4 header; returns the sum of both addresses.
    #[inline(always)]
    fn emit_v4(&self, tcp_len: u16, checksum: Checksum, out: &mut [u8; ipv4::HEADER_LEN]) -> Option<u64> {
        let total_len = tcp_len.checked_add(ipv4::HEADER_LEN as u16)?;
        let (src, dst) = (self.local.address as u32, self.remote.address as u32);
        let first = 0x4500_0000 | u32::from(self.ecn & 0b11) << 16 | u32::from(total_len);
        // RFC 1191 §3: don't fragment, so that the path's MTU is learnt.
        let second = u32::from(self.identification) << 16 | u32::from(ipv4::DONT_FRAGMENT);
        let third = u32::from(self.hop_limit) << 24 | u32::from(Protocol::TCP.0) << 16;
        let addresses = u64::from(src) + u64::from(dst);
        let sum = u64::from(first) + u64::from(second) + u64::from(third) + addresses;
        let complete = match checksum {
            Checksum::Complete(_) | Checksum::Pseudo => !checksum::fold(sum),
            Checksum::Segmentation => 0,
        };
        out[..4].copy_from_slice(&first.to_be_bytes());
        out[4..8].copy_from_slice(&second.to_be_bytes());
        out[8..12].copy_from_slice(&(third | u32::from(complete)).to_be_bytes());
        out[12..16].copy_from_slice(&src.to_be_bytes());
        out[16..].copy_from_slice(&dst.to_be_bytes());
        Some(addresses)
    }

    /// Writes an IPv6 header; returns the sum of both addresses.
    #[inline(always)]
    fn emit_v6(&self, out: &mut [u8; ipv6::HEADER_LEN], tcp_len: u16) -> u64 {
        let (src, dst) = (self.local.address, self.remote.address);
        let first = 6 << 28 | u32::from(self.ecn & 0b11) << 20 | self.flow_label();
        let second = u32::from(tcp_len) << 16 | u32::from(Protocol::TCP.0) << 8 | u32::from(self.hop_limit);
        out[..4].copy_from_slice(&first.to_be_bytes());
        out[4..8].copy_from_slice(&second.to_be_bytes());
        out[8..24].copy_from_slice(&src.to_be_bytes());
        out[24..].copy_from_slice(&dst.to_be_bytes());
        words_of(src) + words_of(dst)
    }

    /// RFC 6437 §3: one label per connection, well spread, never zero. It is not keyed: who sees the packet sees the
    /// addresses and ports that it is made of.
    #[inline(always)]
    fn flow_label(&self) -> u32 {
        let addresses = self.local.address ^ self.remote.address.rotate_left(1);
        let ports = u64::from(self.local.port) << 16 | u64::from(self.remote.port);
        let mixed = ((addresses >> 64) as u64 ^ addresses as u64 ^ ports << 32).wrapping_add(ports);
        // 2^64 divided by the golden ratio: the upper bits of the product depend on all of the lower ones (Knuth,
        // volume 3, §6.4); the upper bits of the number come down first.
        let spread = (mixed ^ mixed >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (spread >> 44) as u32 | 1
    }

    /// Writes a TCP header with options.
    #[inline(always)]
    fn emit_tcp(&self, tcp_len: u16, addresses: u64, checksum: Checksum, out: &mut [u8]) -> Option<()> {
        let (out, after) = out.split_first_chunk_mut::<{ tcp::HEADER_LEN }>()?;
        let options_sum = self.emit_options(after)?;
        let ports = u32::from(self.local.port) << 16 | u32::from(self.remote.port);
        let words = (tcp::HEADER_LEN + self.options.len()) as u32 / 4;
        let fourth = words << 28 | u32::from(self.flags) << 16 | u32::from(self.window);
        let pseudo = addresses + u64::from(Protocol::TCP.0);
        let field = match checksum {
            Checksum::Complete(payload_sum) => {
                let numbers =
                    u64::from(ports) + u64::from(self.seq.0) + u64::from(self.ack.0) + u64::from(fourth);
                !checksum::fold(pseudo + u64::from(tcp_len) + numbers + options_sum + u64::from(payload_sum))
            }
            Checksum::Pseudo => checksum::fold(pseudo + u64::from(tcp_len)),
            Checksum::Segmentation => checksum::fold(pseudo),
        };
        out[..4].copy_from_slice(&ports.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        out[12..16].copy_from_slice(&fourth.to_be_bytes());
        // The urgent pointer is zero: RFC 6093 §5 advises against sending urgent data.
        out[16..].copy_from_slice(&(u32::from(field) << 16).to_be_bytes());
        Some(())
    }

    /// Writes the options; returns their sum.
    #[inline(always)]
    fn emit_options(&self, out: &mut [u8]) -> Option<u64> {
        let options = self.options.as_bytes();
        let sum = |words: &[[u8; 4]]| words.iter().map(|word| u64::from(u32::from_be_bytes(*word))).sum();
        // Timestamps alone are the common case: a fixed length spares the copy and the sum their loops.
        if options.len() == TIMESTAMPS_LEN
            && let (Some(from), Some(to)) =
                (options.first_chunk::<TIMESTAMPS_LEN>(), out.first_chunk_mut::<TIMESTAMPS_LEN>())
        {
            *to = *from;
            return Some(sum(from.as_chunks::<4>().0));
        }
        out.get_mut(..options.len())?.copy_from_slice(options);
        Some(sum(options.as_chunks::<4>().0))
    }
}

/// An address as four numbers, added.
#[inline(always)]
const fn words_of(address: u128) -> u64 {
    let (high, low) = ((address >> 64) as u64, address as u64);
    (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff)
}

/// The sum of data that lie in several pieces, for [`Header::write`].
#[derive(Clone, Copy, Debug, Default)]
pub struct PayloadSum {
    sum: u64,
    is_odd: bool,
}

impl PayloadSum {
    /// Of no data.
    pub const fn new() -> Self {
        Self { sum: 0, is_odd: false }
    }

    /// Adds the next piece.
    #[inline]
    pub fn add(&mut self, piece: &[u8]) {
        let sum = checksum::sum(piece);
        // RFC 1071 §2 B: a piece that begins at an odd byte has the same sum with its bytes swapped.
        self.sum += u64::from(if self.is_odd { sum.swap_bytes() } else { sum });
        self.is_odd ^= piece.len() % 2 == 1;
    }

    /// The sum, folded.
    #[inline]
    pub const fn finish(self) -> u16 {
        checksum::fold(self.sum)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::options::{Options, Timestamps};
    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket};

    pub(crate) const V4: (Endpoint, Endpoint) = (
        Endpoint { address: 0xffff_c612_6401, port: 80 },
        Endpoint { address: 0xffff_c612_0002, port: 40_000 },
    );
    pub(crate) const V6: (Endpoint, Endpoint) = (
        Endpoint { address: 0x2001_0db8_0000_0100_0000_0000_0000_0001, port: 443 },
        Endpoint { address: 0x2001_0db8_0000_0000_0000_0000_0000_0002, port: 40_001 },
    );

    pub(crate) fn header((local, remote): (Endpoint, Endpoint)) -> Header {
        Header {
            local,
            remote,
            seq: SeqNumber(0xfffe_dcba),
            ack: SeqNumber(0x89ab_cdef),
            flags: tcp::ACK | tcp::PSH,
            window: 0xfedc,
            ecn: ECT_0,
            hop_limit: 63,
            identification: 0xbeef,
            options: OptionBytes::timestamps(Timestamps { value: 0xffff_fff0, echo: 0x1234_5678 }),
        }
    }

    /// The whole packet, from its IP header on.
    pub(crate) fn packet(header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0xaa; header.len()];
        assert_eq!(header.write(payload.len(), checksum::sum(payload), &mut out), header.len());
        out.extend(payload);
        out
    }

    fn check_tcp(header: &Header, segment: &[u8], src: IpAddress, dst: IpAddress, payload: &[u8]) {
        let view = TcpPacket::new_checked(segment).unwrap();
        assert!(view.verify_checksum(&src, &dst));
        assert_eq!((view.src_port(), view.dst_port()), (header.local.port, header.remote.port));
        assert_eq!(view.seq_number().0 as u32, header.seq.0);
        assert_eq!(view.ack_number().0 as u32, header.ack.0);
        assert_eq!(view.window_len(), header.window);
        assert_eq!(usize::from(view.header_len()), 20 + header.options.len());
        assert_eq!(segment[13], header.flags);
        assert_eq!((view.urgent_at(), view.options()), (0, header.options.as_bytes()));
        assert_eq!(view.payload(), payload);
    }

    /// Reads a packet as smoltcp reads it, checksums included.
    fn check(header: &Header, payload: &[u8]) {
        let packet = packet(header, payload);
        if header.local.is_v4() {
            let view = Ipv4Packet::new_checked(&packet[..]).unwrap();
            assert!(view.verify_checksum() && view.dont_frag() && !view.more_frags());
            assert_eq!((view.dscp(), view.ecn(), view.hop_limit()), (0, header.ecn, header.hop_limit));
            assert_eq!((view.ident(), view.frag_offset()), (header.identification, 0));
            let (src, dst) = (view.src_addr(), view.dst_addr());
            assert_eq!(
                (src.to_bits(), dst.to_bits()),
                (header.local.address as u32, header.remote.address as u32)
            );
            check_tcp(header, view.payload(), src.into(), dst.into(), payload);
        } else {
            let view = Ipv6Packet::new_checked(&packet[..]).unwrap();
            assert_eq!(
                (view.version(), view.traffic_class(), view.hop_limit()),
                (6, header.ecn, header.hop_limit)
            );
            assert_ne!(view.flow_label(), 0);
            let (src, dst) = (view.src_addr(), view.dst_addr());
            assert_eq!((src.to_bits(), dst.to_bits()), (header.local.address, header.remote.address));
            check_tcp(header, view.payload(), src.into(), dst.into(), payload);
        }
    }

    #[test]
    fn a_header_is_a_known_packet() {
        // From RFC 791 and RFC 9293 by hand: 198.18.100.1:80 → 198.18.0.2:40000, SYN-ACK with MSS 1460.
        let header = Header {
            seq: SeqNumber(1),
            ack: SeqNumber(2),
            flags: tcp::SYN | tcp::ACK,
            window: 0xffff,
            options: (&Options { mss: Some(1460), ..Options::default() }).into(),
            local: V4.0,
            remote: V4.1,
            ..Header::default()
        };
        let expected = [
            0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0x4a, 0xa4, 198, 18, 100, 1, 198, 18, 0, 2, 0, 80, 0x9c,
            0x40, 0, 0, 0, 1, 0, 0, 0, 2, 0x60, 0x12, 0xff, 0xff, 0x0b, 0x5b, 0, 0, 2, 4, 5, 0xb4,
        ];
        assert_eq!(packet(&header, &[]), expected);
    }

    #[test]
    fn smoltcp_reads_what_is_written() {
        for endpoints in [V4, V6] {
            for payload in [&b""[..], b"a", b"odd", b"even", &[0xff; 1447]] {
                let established = header(endpoints);
                check(&established, payload);
                let syn = Options {
                    mss: Some(1460),
                    window_scale: Some(7),
                    sack_permitted: true,
                    ..Options::default()
                };
                for options in [OptionBytes::NONE, OptionBytes::from(&syn)] {
                    check(&Header { options, ecn: NOT_ECT, flags: tcp::SYN, ..established }, payload);
                }
            }
        }
    }

    #[test]
    fn a_nic_completes_what_is_left_to_it() {
        for endpoints in [V4, V6] {
            let header = header(endpoints);
            let payload = b"some data";
            let whole = packet(&header, payload);
            let field = header.len() - header.options.len() - 4;
            let complete = |mut packet: Vec<u8>, extra: u64| {
                packet.extend(payload);
                let transport = field - 16;
                let sum = checksum::fold(u64::from(checksum::sum(&packet[transport..])) + extra);
                packet[field..field + 2].copy_from_slice(&(!sum).to_be_bytes());
                packet
            };
            let mut out = vec![0; header.len()];
            assert_eq!(header.write_without_checksum(payload.len(), &mut out), header.len());
            assert_eq!(complete(out.clone(), 0), whole);
            // With segmentation the NIC adds each segment's own length, and fills in IPv4's checksum.
            assert_eq!(header.write_for_segmentation(payload.len(), &mut out), header.len());
            if header.local.is_v4() {
                assert_eq!(out[10..12], [0, 0]);
                out[10..12].copy_from_slice(&whole[10..12]);
            }
            let tcp_len = 20 + header.options.len() + payload.len();
            assert_eq!(complete(out, tcp_len as u64), whole);
        }
    }

    #[test]
    fn what_does_not_fit_is_not_written() {
        for endpoints in [V4, V6] {
            let header = header(endpoints);
            for len in 0..header.len() {
                assert_eq!(header.write(0, 0, &mut vec![0; len]), 0, "{len}");
            }
            let ip = if header.local.is_v4() { 20 } else { 0 };
            let most = usize::from(u16::MAX) - ip - 32;
            assert_eq!(header.write(most, 0, &mut [0; HEADER_MAX]), header.len());
            assert_eq!(header.write(most + 1, 0, &mut [0; HEADER_MAX]), 0);
            assert_eq!(header.write(usize::MAX - 100, 0, &mut [0; HEADER_MAX]), 0);
        }
    }

    #[test]
    fn flow_labels_stay_with_a_connection_and_spread() {
        let label = |port: u16, host: u128| {
            let remote = Endpoint { port, address: V6.1.address + host };
            header((V6.0, remote)).flow_label()
        };
        assert_eq!(label(5, 0), label(5, 0));
        for by_host in [false, true] {
            let labels = (0..4096).map(|i| if by_host { label(5, i) } else { label(i as u16, 0) });
            let labels: std::collections::HashSet<u32> = labels.collect();
            assert!(labels.len() > 4000, "{}", labels.len());
            assert!(labels.iter().all(|label| (1..1 << 20).contains(label)));
        }
    }

    proptest! {
        #[test]
        fn any_header_is_right(v6: bool, seq: u32, ack: u32, flags: u8, window: u16, ecn in 0..4u8, hop_limit: u8,
                               identification: u16, local: (u128, u16), remote: (u128, u16),
                               timestamps: Option<(u32, u32)>, sack in proptest::collection::vec(any::<(u32, u32)>(), 0..4),
                               payload in proptest::collection::vec(any::<u8>(), 0..100)) {
            let endpoint = |(address, port): (u128, u16)| Endpoint {
                address: if v6 { address | 1 << 127 } else { address & 0xffff_ffff | 0xffff << 32 },
                port,
            };
            let sack: Vec<_> = sack.iter().map(|(left, right)| (SeqNumber(*left), SeqNumber(*right))).collect();
            let timestamps = timestamps.map(|(value, echo)| Timestamps { value, echo });
            let header = Header {
                local: endpoint(local),
                remote: endpoint(remote),
                seq: SeqNumber(seq),
                ack: SeqNumber(ack),
                flags, window, ecn, hop_limit, identification,
                options: OptionBytes::acknowledgment(timestamps, &sack),
            };
            // smoltcp takes port 0 for malformed.
            prop_assume!(header.local.port != 0 && header.remote.port != 0);
            check(&header, &payload);
        }

        #[test]
        fn the_sum_of_pieces_is_that_of_the_whole(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 0..8)
        ) {
            let mut sum = PayloadSum::new();
            for piece in &pieces {
                sum.add(piece);
            }
            prop_assert_eq!(sum.finish(), checksum::sum(&pieces.concat()));
        }
    }
}
