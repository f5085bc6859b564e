//! What is the Internet checksum of these bytes, and what does it become when some of them change?
//!
//! RFC 1071 for the sum, RFC 1624 for the change. Sums are partial one's complement sums in host order, at most 0xffff
//! once folded, so that they can be added freely in a `u32` or `u64`.

use crate::bytes::{be16, chunk};
use crate::parse::{Kind, Parsed};
use crate::types::{Family, Protocol};

/// Folds a one's complement sum to 16 bits. A sum that is not zero never folds to zero.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Whether a sum of at most 2^16 32-bit words folds to 0xffff, as that of a header with a right checksum does: two folds
/// leave at most 0x1ffff, and of the multiples of 0xffff up to there only 0 does not come from a sum that folds to 0xffff.
#[inline(always)]
pub(crate) const fn is_all_ones(sum: u64) -> bool {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum == 0xffff) | (sum == 0x1_fffe)
}

/// The folded sum of `bytes` as big-endian 16-bit words; an odd last byte counts as the high one (RFC 1071 §4.1).
///
/// Adds 32-bit words of the machine's own order into 64 bits (RFC 1071 §2 B: the sum doesn't depend on byte order but
/// for one swap at the end), which the compiler turns into vector additions.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = words.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum::<u64>();
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    total += u64::from(u32::from_ne_bytes(last));
    u16::from_be(fold(total))
}

/// The folded sum of a 20-byte IPv4 header; 0xffff where its checksum is right.
#[inline(always)]
pub(crate) fn sum_20(bytes: &[u8; 20]) -> u16 {
    let mut total = 0;
    for word in bytes.as_chunks::<4>().0 {
        total += u64::from(u32::from_ne_bytes(*word));
    }
    u16::from_be(fold(total))
}

/// The checksum of `bytes`, whose own checksum field must be zero.
#[inline]
pub fn of(bytes: &[u8]) -> u16 {
    !sum(bytes)
}

/// The sum of the pseudo-header of RFC 9293 §3.1 and RFC 768; `len` is that of the transport header and data.
#[inline]
pub const fn pseudo_v4(src: u32, dst: u32, protocol: Protocol, len: u16) -> u16 {
    fold(src as u64 + dst as u64 + protocol.0 as u64 + len as u64)
}

/// The sum of the pseudo-header of RFC 8200 §8.1; `len` is that of the upper-layer header and data.
#[inline]
pub fn pseudo_v6(src: &[u8; 16], dst: &[u8; 16], protocol: Protocol, len: u32) -> u16 {
    fold(u64::from(sum(src)) + u64::from(sum(dst)) + u64::from(protocol.0) + u64::from(len))
}

/// The UDP checksum as it is sent: one that computes to zero is sent as all ones (RFC 768; RFC 8200 §8.1), since zero
/// means that there is none.
#[inline(always)]
pub const fn udp_transmit(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

/// Changes to checksummed words, collected once and then applied to every checksum that covers them.
///
/// RFC 1624 §3 equation 3: HC' = ~(~HC + ~m + m').
#[derive(Clone, Copy, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    /// Nothing changed.
    pub const fn new() -> Delta {
        Delta(0)
    }

    /// A 16-bit word at an even offset changed.
    #[inline(always)]
    pub const fn u16(&mut self, old: u16, new: u16) {
        self.0 += !old as u64 + new as u64;
    }

    /// A 32-bit number at an even offset changed.
    #[inline(always)]
    pub const fn u32(&mut self, old: u32, new: u32) {
        // 2^16 ≡ 1 modulo 0xffff: a 32-bit word folds to the sum of its halves.
        self.0 += !old as u64 + new as u64;
    }

    /// Sixteen bytes at an even offset changed.
    #[inline(always)]
    pub fn bytes_16(&mut self, old: &[u8; 16], new: &[u8; 16]) {
        for (old, new) in old.as_chunks::<4>().0.iter().zip(new.as_chunks::<4>().0) {
            self.u32(u32::from_be_bytes(*old), u32::from_be_bytes(*new));
        }
    }

    /// The checksum after the changes.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !fold(!checksum as u64 + self.0)
    }

    /// The UDP checksum after the changes: none (zero) stays none, and a sum of zero is sent as all ones (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 { 0 } else { udp_transmit(self.apply(checksum)) }
    }
}

/// The checksum after a 16-bit word changed.
#[inline]
pub const fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    let mut delta = Delta::new();
    delta.u16(old, new);
    delta.apply(checksum)
}

/// The checksum after a 32-bit number changed.
#[inline]
pub const fn update_u32(checksum: u16, old: u32, new: u32) -> u16 {
    let mut delta = Delta::new();
    delta.u32(old, new);
    delta.apply(checksum)
}

/// The checksum after sixteen bytes changed.
#[inline]
pub fn update_bytes_16(checksum: u16, old: &[u8; 16], new: &[u8; 16]) -> u16 {
    let mut delta = Delta::new();
    delta.bytes_16(old, new);
    delta.apply(checksum)
}

/// The sum of the pseudo-header of a parsed packet, for an upper-layer length of `len`. ICMP for IPv4 has none: zero.
#[inline]
pub fn pseudo(frame: &[u8], parsed: &Parsed, len: u16) -> u16 {
    match parsed.family() {
        _ if parsed.protocol == Protocol::ICMP => 0,
        Some(Family::V4) => pseudo_v4(parsed.src_v4(frame), parsed.dst_v4(frame), parsed.protocol, len),
        Some(Family::V6) => {
            pseudo_v6(&parsed.src_v6(frame), &parsed.dst_v6(frame), parsed.protocol, u32::from(len))
        }
        None => 0,
    }
}

/// Whether the TCP, UDP, ICMP or ICMPv6 checksum of an unfragmented packet is right. UDP over IPv4 without a checksum is
/// right, over IPv6 it is not (RFC 8200 §8.1). A packet of another protocol, or a fragment, can not be checked: true.
pub fn l4_is_valid(frame: &[u8], parsed: &Parsed) -> bool {
    if parsed.is_fragment() {
        return true;
    }
    let Some(mut segment) = frame.get(parsed.l4_offset()..parsed.end()) else { return false };
    match parsed.protocol {
        Protocol::UDP => {
            let Some(header) = chunk::<8>(segment, 0) else { return false };
            if header[6] == 0 && header[7] == 0 {
                return parsed.family() == Some(Family::V4);
            }
            let Some(datagram) = segment.get(..usize::from(be16(header[4], header[5]))) else { return false };
            segment = datagram;
        }
        Protocol::TCP => {}
        Protocol::ICMP if parsed.kind == Kind::Ipv4 => {}
        Protocol::ICMPV6 if parsed.kind == Kind::Ipv6 => {}
        _ => return true,
    }
    let len = u16::try_from(segment.len()).unwrap_or(u16::MAX);
    fold(u64::from(pseudo(frame, parsed, len)) + u64::from(sum(segment))) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as its pseudo-code says it, slowly.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(be16(pair[0], pair.get(1).copied().unwrap_or(0)));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // RFC 1624 §4: HC = 0xdd2f, m = 0x5555, m' = 0x3285 gives 0x0000, where equation 2 gave 0xffff.
        assert_eq!(update_u16(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn udp_zero_rule() {
        assert_eq!(udp_transmit(0), 0xffff);
        let mut delta = Delta::new();
        delta.u16(0x5555, 0x3285);
        assert_eq!(delta.apply_udp(0), 0);
        assert_eq!(delta.apply_udp(0xdd2f), 0xffff);
    }

    proptest! {
        #[test]
        fn sum_is_rfc_1071_and_smoltcp(bytes in proptest::collection::vec(any::<u8>(), 0..1600)) {
            prop_assert_eq!(sum(&bytes), slow(&bytes));
            prop_assert_eq!(sum(&bytes), smoltcp::wire::checksum::data(&bytes));
        }

        #[test]
        fn all_ones_do_not_overflow(len in 0usize..70_000) {
            prop_assert_eq!(sum(&vec![0xff; len]), slow(&vec![0xff; len]));
        }

        #[test]
        fn incremental_is_full(mut bytes in proptest::collection::vec(any::<u8>(), 40..80),
                               word in any::<u16>(), number in any::<u32>(), block in any::<[u8; 16]>()) {
            bytes.truncate(bytes.len() & !1);
            // A header is never all zero; then both ways give the same representative of zero.
            bytes[39] |= 1;
            let before = of(&bytes);
            let old_word = be16(bytes[0], bytes[1]);
            bytes[..2].copy_from_slice(&word.to_be_bytes());
            let after_word = update_u16(before, old_word, word);
            prop_assert_eq!(after_word, of(&bytes));
            let old_number = u32::from_be_bytes(bytes[6..10].try_into().unwrap());
            bytes[6..10].copy_from_slice(&number.to_be_bytes());
            let after_number = update_u32(after_word, old_number, number);
            prop_assert_eq!(after_number, of(&bytes));
            let old_block: [u8; 16] = bytes[12..28].try_into().unwrap();
            bytes[12..28].copy_from_slice(&block);
            prop_assert_eq!(update_bytes_16(after_number, &old_block, &block), of(&bytes));
        }

        #[test]
        fn pseudo_headers_are_sums_of_their_bytes(src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), protocol in any::<u8>(), len in any::<u16>()) {
            let mut bytes = src.to_vec();
            bytes.extend(dst);
            bytes.extend(u32::from(len).to_be_bytes());
            bytes.extend([0, 0, 0, protocol]);
            prop_assert_eq!(pseudo_v6(&src, &dst, Protocol(protocol), u32::from(len)), slow(&bytes));
            let (src4, dst4): ([u8; 4], [u8; 4]) = (src[..4].try_into().unwrap(), dst[..4].try_into().unwrap());
            let mut bytes = src4.to_vec();
            bytes.extend(dst4);
            bytes.extend([0, protocol]);
            bytes.extend(len.to_be_bytes());
            prop_assert_eq!(pseudo_v4(u32::from_be_bytes(src4), u32::from_be_bytes(dst4), Protocol(protocol), len), slow(&bytes));
        }
    }
}
