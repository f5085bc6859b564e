//! What does a TCP header hold (RFC 9293 §3.1), which options follow it, and how is its MSS clamped?

use crate::bytes::{be16, chunk, put, u16_at, u32_at};
use crate::checksum::Delta;

/// Length of a header without options.
pub const HEADER_LEN: usize = 20;
/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push function.
pub const PSH: u8 = 0x08;
/// The acknowledgment field is significant.
pub const ACK: u8 = 0x10;
/// The urgent pointer is significant.
pub const URG: u8 = 0x20;
/// ECN echo, RFC 3168 §6.1.
pub const ECE: u8 = 0x40;
/// Congestion window reduced, RFC 3168 §6.1.
pub const CWR: u8 = 0x80;
/// RFC 9293 §3.2: end of option list.
pub const OPTION_END: u8 = 0;
/// RFC 9293 §3.2: no operation.
pub const OPTION_NOP: u8 = 1;
/// RFC 9293 §3.2: maximum segment size.
pub const OPTION_MSS: u8 = 2;
/// RFC 9293 §3.7.1: the MSS of a peer over IPv4 that names none.
pub const DEFAULT_MSS_V4: u16 = 536;
/// RFC 9293 §3.7.1: the MSS of a peer over IPv6 that names none.
pub const DEFAULT_MSS_V6: u16 = 1220;

/// The offset of fields in the header.
pub mod field {
    /// Source port.
    pub const SRC_PORT: usize = 0;
    /// Destination port.
    pub const DST_PORT: usize = 2;
    /// Sequence number.
    pub const SEQUENCE: usize = 4;
    /// Acknowledgment number.
    pub const ACKNOWLEDGMENT: usize = 8;
    /// Data offset in its upper half.
    pub const DATA_OFFSET: usize = 12;
    /// Flags.
    pub const FLAGS: usize = 13;
    /// Window.
    pub const WINDOW: usize = 14;
    /// Checksum.
    pub const CHECKSUM: usize = 16;
}

/// The sequence number of a segment; zero where it is too short.
#[inline(always)]
pub fn sequence(segment: &[u8]) -> u32 {
    u32_at(segment, field::SEQUENCE).unwrap_or(0)
}

/// The acknowledgment number of a segment; zero where it is too short.
#[inline(always)]
pub fn acknowledgment(segment: &[u8]) -> u32 {
    u32_at(segment, field::ACKNOWLEDGMENT).unwrap_or(0)
}

/// The length of header and options in bytes; zero where the segment is too short.
#[inline(always)]
pub fn header_len(segment: &[u8]) -> usize {
    segment.get(field::DATA_OFFSET).map_or(0, |byte| usize::from(byte >> 4) * 4)
}

/// One option of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOption<'a> {
    /// Its kind, never end of list nor no operation.
    pub kind: u8,
    /// Where its data starts, from the start of the segment.
    pub offset: usize,
    /// Its data, without kind and length.
    pub data: &'a [u8],
}

/// The options of a segment. Ends at the end of list, at the header's end, or at the first broken option.
#[inline]
pub fn options(segment: &[u8]) -> Options<'_> {
    let header = segment.get(..header_len(segment)).unwrap_or_default();
    Options { header, at: HEADER_LEN }
}

/// See [`options`].
#[derive(Clone, Debug)]
pub struct Options<'a> {
    header: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Options<'a> {
    type Item = TcpOption<'a>;

    #[inline]
    fn next(&mut self) -> Option<TcpOption<'a>> {
        loop {
            let kind = *self.header.get(self.at)?;
            match kind {
                OPTION_END => return None,
                OPTION_NOP => self.at += 1,
                _ => {
                    let len = usize::from(*self.header.get(self.at + 1)?);
                    let offset = self.at + 2;
                    // A length below two makes an empty or reversed range, which `get` refuses too.
                    let data = self.header.get(offset..self.at + len)?;
                    self.at += len;
                    return Some(TcpOption { kind, offset, data });
                }
            }
        }
    }
}

/// The MSS that a SYN names.
#[inline]
pub fn mss(segment: &[u8]) -> Option<u16> {
    options(segment)
        .find(|option| option.kind == OPTION_MSS && option.data.len() == 2)
        .and_then(|option| u16_at(option.data, 0))
}

/// Lowers the MSS option of a SYN to `max` and mends the checksum. True where it was changed; a segment without the
/// option, or with a smaller one, stays as it is. `segment` starts at the TCP header.
#[inline]
pub fn clamp_mss(segment: &mut [u8], max: u16) -> bool {
    let Some((offset, old)) = options(segment)
        .find(|option| option.kind == OPTION_MSS && option.data.len() == 2)
        .and_then(|option| Some((option.offset, u16_at(option.data, 0)?)))
    else {
        return false;
    };
    if old <= max {
        return false;
    }
    let Some(checksum) = u16_at(segment, field::CHECKSUM) else { return false };
    let mut delta = Delta::new();
    if offset % 2 == 0 {
        delta.u16(old, max);
    } else {
        // The number straddles two words of the sum; swapping its bytes is the same sum (RFC 1071 §2 B).
        delta.u16(old.swap_bytes(), max.swap_bytes());
    }
    put(segment, offset, max.to_be_bytes())
        .and_then(|()| put(segment, field::CHECKSUM, delta.apply(checksum).to_be_bytes()))
        .is_some()
}

/// How many sequence numbers a segment takes: its data, and one each for SYN and FIN (RFC 9293 §3.4).
/// `segment` starts at the TCP header and ends with the packet.
#[inline]
pub fn sequence_len(segment: &[u8]) -> u32 {
    let Some(header) = chunk::<HEADER_LEN>(segment, 0) else { return 0 };
    let data = segment.len().saturating_sub(header_len(segment));
    let flags = header[field::FLAGS];
    u32::try_from(data).unwrap_or(u32::MAX) + u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0)
}

/// Whether no stack sends these flags together: none at all, SYN with FIN or RST, FIN with RST.
#[inline(always)]
pub const fn flags_are_bad(flags: u8) -> bool {
    // At most one of SYN, FIN and RST may be set, and at least one flag of the six of RFC 793.
    let control = flags & (SYN | FIN | RST);
    (control & control.wrapping_sub(1) != 0) | (flags & (SYN | FIN | RST | ACK | PSH | URG) == 0)
}

/// A header without options, whose checksum is filled in by [`Header::bytes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Flags.
    pub flags: u8,
    /// Window, not scaled.
    pub window: u16,
}

impl Header {
    /// The bytes of a segment without data; `pseudo` is the sum of its pseudo-header, length 20.
    pub fn bytes(&self, pseudo: u16) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        out[8..12].copy_from_slice(&self.acknowledgment.to_be_bytes());
        out[field::DATA_OFFSET] = 5 << 4;
        out[field::FLAGS] = self.flags;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        let sum = u64::from(crate::checksum::sum(&out)) + u64::from(pseudo);
        let checksum = !crate::checksum::fold(sum);
        out[16..18].copy_from_slice(&checksum.to_be_bytes());
        out
    }
}

/// Ports of a TCP or UDP header: source and destination.
#[inline(always)]
pub(crate) fn ports(header: &[u8; 4]) -> (u16, u16) {
    (be16(header[0], header[1]), be16(header[2], header[3]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum;

    /// A SYN with `options`, checksummed without a pseudo-header.
    fn syn(options: &[u8]) -> Vec<u8> {
        let mut segment = vec![0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0, SYN, 0xff, 0xff, 0, 0, 0, 0];
        segment.extend(options);
        segment[12] = ((segment.len() / 4) as u8) << 4;
        let sum = checksum::of(&segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }

    #[test]
    fn mss_is_lowered_never_raised_and_the_checksum_stays_right() {
        for options in [
            &[2, 4, 5, 0xb4][..],
            // at an odd offset, after a no-operation
            &[1, 2, 4, 5, 0xb4, 0, 0, 0],
            &[4, 2, 1, 2, 4, 5, 0xb4, 0],
        ] {
            let mut segment = syn(options);
            assert!(!clamp_mss(&mut segment, 1460));
            assert_eq!(segment, syn(options));
            assert!(clamp_mss(&mut segment, 1400));
            assert_eq!(mss(&segment), Some(1400));
            assert_eq!(checksum::sum(&segment), 0xffff);
        }
    }

    #[test]
    fn broken_options_end_the_walk() {
        for options in
            [&[2, 4, 5][..], &[2, 0, 0, 0], &[2, 1, 0, 0], &[8, 200, 0, 0], &[0, 2, 4, 9], &[2, 3, 9, 0]]
        {
            let mut segment = syn(options);
            let before = segment.clone();
            assert!(!clamp_mss(&mut segment, 1));
            assert_eq!(segment, before);
        }
        assert!(!clamp_mss(&mut [], 1));
    }

    #[test]
    fn flags_that_no_stack_sends() {
        for flags in [0, ECE, SYN | FIN, SYN | RST, FIN | RST, SYN | FIN | RST | ACK] {
            assert!(flags_are_bad(flags), "{flags:#x}");
        }
        for flags in
            [SYN, SYN | ACK, ACK, RST, RST | ACK, FIN | ACK, FIN | PSH | ACK, SYN | ECE | CWR, PSH | ACK]
        {
            assert!(!flags_are_bad(flags), "{flags:#x}");
        }
    }

    #[test]
    fn sequence_numbers_count_data_syn_and_fin() {
        let mut segment = syn(&[]);
        assert_eq!(sequence_len(&segment), 1);
        segment.extend([0; 7]);
        assert_eq!(sequence_len(&segment), 8);
        segment[13] = ACK | FIN;
        assert_eq!(sequence_len(&segment), 8);
        segment[13] = ACK;
        assert_eq!(sequence_len(&segment), 7);
    }
}
