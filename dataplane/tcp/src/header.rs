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
