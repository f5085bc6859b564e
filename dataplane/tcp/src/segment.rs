//! What does a segment say, and may the engine look at it at all?
//!
//! Called once per segment, after [`weir_net::parse`]. The header and the timestamps are read at once, since every segment
//! needs them; other options only when somebody asks, which is for a SYN and for an acknowledgment with SACK blocks.

use weir_net::{Parsed, Protocol, checksum, tcp};

use crate::options::{self, Options, SackBlocks, TIMESTAMPS_LEN, Timestamps};
use crate::seq::SeqNumber;

/// Why a segment is dropped before any connection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// The packet carries another protocol.
    NotTcp,
    /// A fragment: whoever feeds the engine puts packets together or drops them.
    Fragment,
    /// The frame ends before the IP packet does.
    Truncated,
    /// The data offset is below 5 words or beyond the segment (RFC 9293 §3.1).
    DataOffset,
    /// No flag at all, or more than one of SYN, FIN and RST.
    Flags,
    /// The checksum is wrong (RFC 9293 §3.1, MUST-3).
    Checksum,
}

/// The congestion experienced codepoint, RFC 3168 §5.
const CONGESTION_EXPERIENCED: u8 = 0b11;

/// A received segment. Its data stay in the frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Sequence number of its first byte, or of SYN.
    pub seq: SeqNumber,
    /// The next sequence number that the sender expects; means something only with ACK set.
    pub ack: SeqNumber,
    /// Timestamps, wherever among the options they stand.
    pub timestamps: Option<Timestamps>,
    /// The window as it stands there, not scaled.
    pub window: u16,
    /// Where its data begin, from the start of the frame.
    pub payload_offset: u16,
    /// Length of its data.
    pub payload_len: u16,
    /// Flags, as [`weir_net::tcp`] names them.
    pub flags: u8,
    /// Length of all its options, padding included; they stand before the data.
    pub options_len: u8,
    /// A router has marked the packet (RFC 3168 §5).
    pub ecn_ce: bool,
    /// There are options besides timestamps.
    pub has_more_options: bool,
}

impl Segment {
    /// Reads the segment of a frame. `checksum_is_verified` says that the NIC did so.
    #[inline(always)]
    pub fn read(frame: &[u8], parsed: &Parsed, checksum_is_verified: bool) -> Result<Self, Refused> {
        let mut segment = Self::default();
        segment.read_again(frame, parsed, checksum_is_verified).map(|()| segment)
    }

    /// As [`Segment::read`], into a place that the caller has: a `Result` of this size would be copied right after its narrow
    /// parts were stored, and wait for them. After an error it holds nothing of use.
    #[inline(always)]
    pub fn read_again(
        &mut self,
        frame: &[u8],
        parsed: &Parsed,
        checksum_is_verified: bool,
    ) -> Result<(), Refused> {
        if (parsed.protocol != Protocol::TCP) | parsed.is_fragment() {
            return Err(if parsed.is_fragment() { Refused::Fragment } else { Refused::NotTcp });
        }
        let segment = frame.get(parsed.l4_offset()..parsed.end()).ok_or(Refused::Truncated)?;
        let (header, rest) = segment.split_first_chunk::<{ tcp::HEADER_LEN }>().ok_or(Refused::DataOffset)?;
        let words = usize::from(header[tcp::field::DATA_OFFSET] >> 4);
        let options_len = words.checked_sub(tcp::HEADER_LEN / 4).ok_or(Refused::DataOffset)? * 4;
        let (options, payload) = rest.split_at_checked(options_len).ok_or(Refused::DataOffset)?;
        let header_len = (tcp::HEADER_LEN + options_len) as u16;
        let payload_offset = parsed.l4.checked_add(header_len).ok_or(Refused::DataOffset)?;
        let flags = header[tcp::field::FLAGS];
        if tcp::flags_are_bad(flags) {
            return Err(Refused::Flags);
        }
        if !checksum_is_verified && !checksum::l4_is_valid(frame, parsed) {
            return Err(Refused::Checksum);
        }
        let (timestamps, has_more_options) = match Timestamps::aligned(options) {
            Some(timestamps) => (Some(timestamps), options_len > TIMESTAMPS_LEN),
            None if options.is_empty() => (None, false),
            None => (Timestamps::find(options), true),
        };
        let word = |a: u8, b: u8, c: u8, d: u8| SeqNumber(u32::from_be_bytes([a, b, c, d]));
        self.seq = word(header[4], header[5], header[6], header[7]);
        self.ack = word(header[8], header[9], header[10], header[11]);
        self.timestamps = timestamps;
        self.window = u16::from_be_bytes([header[14], header[15]]);
        self.payload_offset = payload_offset;
        self.payload_len = payload.len() as u16;
        self.flags = flags;
        self.options_len = options_len as u8;
        self.ecn_ce = parsed.tos & 0b11 == CONGESTION_EXPERIENCED;
        self.has_more_options = has_more_options;
        Ok(())
    }

    /// How many sequence numbers it takes: its data, and one each for SYN and FIN (RFC 9293 §3.4).
    #[inline(always)]
    pub const fn len(&self) -> u32 {
        self.payload_len as u32 + (self.flags & tcp::SYN != 0) as u32 + (self.flags & tcp::FIN != 0) as u32
    }

    /// Whether it takes no sequence number.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sequence number after its last.
    #[inline(always)]
    pub fn end(&self) -> SeqNumber {
        self.seq + self.len()
    }

    /// Whether any of these flags is set.
    #[inline(always)]
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// The sequence number of its first byte of data: SYN takes one before it.
    #[inline(always)]
    pub fn payload_seq(&self) -> SeqNumber {
        self.seq + u32::from(self.has(tcp::SYN))
    }

    /// Its data; `frame` must be the one that was read.
    #[inline(always)]
    pub fn payload<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let start = usize::from(self.payload_offset);
        frame.get(start..start + usize::from(self.payload_len)).unwrap_or_default()
    }

    /// Its options as bytes; `frame` must be the one that was read.
    #[inline]
    pub fn option_bytes<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        let end = usize::from(self.payload_offset);
        frame.get(end.wrapping_sub(usize::from(self.options_len))..end).unwrap_or_default()
    }

    /// All its options; `frame` must be the one that was read. What only a SYN may carry is left out elsewhere: MSS
    /// (RFC 9293 §3.2), window scale (RFC 7323 §2.2), SACK permitted (RFC 2018 §2), fast open (RFC 7413 §4.1.1).
    pub fn options(&self, frame: &[u8]) -> Options {
        let options = Options::parse(self.option_bytes(frame));
        if self.has(tcp::SYN) {
            return options;
        }
        Options { timestamps: options.timestamps, sack: options.sack, ..Options::default() }
    }

    /// The blocks of its SACK option, the newest first; `frame` must be the one that was read.
    #[inline]
    pub fn sack_blocks(&self, frame: &[u8]) -> SackBlocks {
        if !self.has_more_options {
            return SackBlocks::new();
        }
        options::sack_blocks(self.option_bytes(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::tests::{V4, V6, header, packet};
    use crate::header::{Header, OptionBytes};
    use crate::options::{FastOpen, FastOpenCookie};
    use proptest::prelude::*;
    use weir_net::{ParseOptions, parse};

    /// A frame with that packet.
    fn frame(header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        frame.extend(if header.local.is_v4() { [8, 0] } else { [0x86, 0xdd] });
        frame.extend(packet(header, payload));
        frame
    }

    fn parsed(frame: &[u8]) -> Parsed {
        parse(frame, &ParseOptions::default()).unwrap()
    }

    fn read(frame: &[u8]) -> Segment {
        Segment::read(frame, &parsed(frame), false).unwrap()
    }

    #[test]
    fn a_segment_says_what_its_header_said() {
        for endpoints in [V4, V6] {
            let header = header(endpoints);
            let mut frame = frame(&header, b"hello");
            let end = frame.len();
            // Ethernet padding is no data.
            frame.resize(end + 9, 0x55);
            let segment = read(&frame);
            assert_eq!((segment.seq, segment.ack), (header.seq, header.ack));
            assert_eq!((segment.flags, segment.window), (header.flags, header.window));
            assert_eq!(segment.payload(&frame), b"hello");
            assert_eq!(usize::from(segment.payload_offset), end - 5);
            assert_eq!((segment.len(), segment.end()), (5, header.seq + 5));
            assert_eq!(segment.timestamps, Some(Timestamps { value: 0xffff_fff0, echo: 0x1234_5678 }));
            assert!(!segment.has_more_options && !segment.ecn_ce);
            assert_eq!(segment.option_bytes(&frame), header.options.as_bytes());
        }
    }

    #[test]
    fn syn_and_fin_take_a_number_each() {
        for (flags, len) in
            [(tcp::SYN, 4), (tcp::FIN | tcp::ACK, 4), (tcp::ACK, 3), (tcp::RST, 3), (tcp::SYN | tcp::ACK, 4)]
        {
            let segment = read(&frame(&Header { flags, ..header(V4) }, b"abc"));
            assert_eq!(segment.len(), len);
            assert_eq!(segment.payload_seq().since(segment.seq), u32::from(flags & tcp::SYN != 0));
            assert!(!segment.is_empty() && segment.has(flags) && !segment.has(tcp::URG));
        }
        assert!(read(&frame(&header(V4), b"")).is_empty());
    }

    #[test]
    fn options_of_a_syn_count_on_a_syn_only() {
        let cookie = FastOpenCookie::new(&[1, 2, 3, 4]).map(FastOpen::Cookie);
        let options = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 1, echo: 0 }),
            fast_open: cookie,
            ..Options::default()
        };
        let syn = Header { flags: tcp::SYN, options: (&options).into(), ..header(V6) };
        let bytes = frame(&syn, b"");
        let segment = read(&bytes);
        // SACK permitted stands where the NOPs would: the timestamps are found all the same.
        assert_eq!(segment.timestamps, options.timestamps);
        assert!(segment.has_more_options);
        assert_eq!(segment.options(&bytes), options);
        let bytes = frame(&Header { flags: tcp::ACK, ..syn }, b"");
        let only_timestamps = Options { timestamps: options.timestamps, ..Options::default() };
        assert_eq!(read(&bytes).options(&bytes), only_timestamps);
    }

    #[test]
    fn sack_blocks_are_read_with_and_without_timestamps() {
        let blocks = [(SeqNumber(9), SeqNumber(12)), (SeqNumber(u32::MAX), SeqNumber(3))];
        for timestamps in [None, Some(Timestamps { value: 1, echo: 2 })] {
            let options = OptionBytes::acknowledgment(timestamps, &blocks);
            let bytes = frame(&Header { options, ..header(V4) }, b"data");
            let segment = read(&bytes);
            assert_eq!(segment.timestamps, timestamps);
            assert!(segment.has_more_options);
            assert_eq!(segment.sack_blocks(&bytes).as_slice(), blocks);
            assert_eq!(segment.options(&bytes).sack.as_slice(), blocks);
            assert_eq!(segment.payload(&bytes), b"data");
        }
        let bytes = frame(&header(V4), b"");
        assert!(read(&bytes).sack_blocks(&bytes).is_empty());
    }

    #[test]
    fn every_flipped_bit_of_the_segment_is_noticed() {
        for endpoints in [V4, V6] {
            let bytes = frame(&header(endpoints), b"odd");
            let parsed = parsed(&bytes);
            for bit in parsed.l4_offset() * 8..bytes.len() * 8 {
                let mut broken = bytes.clone();
                broken[bit / 8] ^= 0x80 >> (bit % 8);
                let refused = Segment::read(&broken, &parsed, false).unwrap_err();
                assert!(matches!(refused, Refused::Checksum | Refused::DataOffset | Refused::Flags), "{bit}");
            }
            let mut broken = bytes.clone();
            *broken.last_mut().unwrap() ^= 1;
            assert_eq!(Segment::read(&broken, &parsed, false), Err(Refused::Checksum));
            assert!(Segment::read(&broken, &parsed, true).is_ok(), "the NIC has the last word");
        }
    }

    #[test]
    fn what_no_connection_should_see_is_refused() {
        let bytes = frame(&header(V4), b"data");
        let good = parsed(&bytes);
        let data_offset = good.l4_offset() + 12;
        let with = |at: usize, value: u8| {
            let mut changed = bytes.clone();
            changed[at] = value;
            Segment::read(&changed, &good, true).unwrap_err()
        };
        assert_eq!(with(data_offset, 4 << 4), Refused::DataOffset);
        assert_eq!(with(data_offset, 10 << 4), Refused::DataOffset);
        assert_eq!(with(data_offset + 1, tcp::SYN | tcp::FIN), Refused::Flags);
        assert_eq!(with(data_offset + 1, tcp::SYN | tcp::RST), Refused::Flags);
        assert_eq!(with(data_offset + 1, 0), Refused::Flags);
        let refuse = |parsed: Parsed| Segment::read(&bytes, &parsed, true).unwrap_err();
        assert_eq!(refuse(Parsed { protocol: Protocol::UDP, ..good }), Refused::NotTcp);
        assert_eq!(refuse(Parsed { more_fragments: true, ..good }), Refused::Fragment);
        assert_eq!(refuse(Parsed { fragment_offset: 8, ..good }), Refused::Fragment);
        assert_eq!(refuse(Parsed { l3_len: good.l3_len + 1, ..good }), Refused::Truncated);
        assert_eq!(refuse(Parsed { l3_len: 39, ..good }), Refused::DataOffset);
    }

    #[test]
    fn only_ce_is_a_mark_of_congestion() {
        for ecn in 0..4 {
            assert_eq!(read(&frame(&Header { ecn, ..header(V6) }, b"")).ecn_ce, ecn == 3);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(v6: bool, seq: u32, ack: u32, window: u16, fin: bool,
                                   timestamps: Option<(u32, u32)>, blocks in proptest::collection::vec((any::<u32>(), 1..9u32), 0..4),
                                   payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let blocks: SackBlocks =
                blocks.iter().map(|(left, len)| (SeqNumber(*left), SeqNumber(*left) + *len)).collect();
            let timestamps = timestamps.map(|(value, echo)| Timestamps { value, echo });
            let header = Header {
                seq: SeqNumber(seq),
                ack: SeqNumber(ack),
                window,
                flags: if fin { tcp::FIN | tcp::ACK } else { tcp::ACK },
                options: OptionBytes::acknowledgment(timestamps, &blocks),
                ..header(if v6 { V6 } else { V4 })
            };
            let bytes = frame(&header, &payload);
            let segment = read(&bytes);
            prop_assert_eq!((segment.seq, segment.ack, segment.window), (header.seq, header.ack, window));
            prop_assert_eq!(segment.flags, header.flags);
            prop_assert_eq!(segment.timestamps, timestamps);
            prop_assert_eq!(segment.sack_blocks(&bytes), blocks);
            prop_assert_eq!(segment.payload(&bytes), &payload[..]);
            prop_assert_eq!(segment.len(), payload.len() as u32 + u32::from(fin));
        }

        #[test]
        fn arbitrary_segments_never_panic_and_read_alike(
            bytes in proptest::collection::vec(any::<u8>(), 0..120), words in 0..16u8, cut in 0..140u16, v6: bool,
            flags in prop_oneof![Just(tcp::ACK), Just(tcp::SYN), any::<u8>()]
        ) {
            let mut frame = frame(&header(if v6 { V6 } else { V4 }), b"");
            let good = parsed(&frame);
            frame.truncate(good.l4_offset());
            frame.extend(&bytes);
            if let Some(place) = frame.get_mut(good.l4_offset() + 12..good.l4_offset() + 14) {
                place.copy_from_slice(&[words << 4, flags]);
            }
            let parsed = Parsed { l3_len: cut, ..good };
            if let Ok(segment) = Segment::read(&frame, &parsed, true) {
                let end = parsed.end();
                prop_assert_eq!(usize::from(segment.payload_offset) + segment.payload(&frame).len(), end);
                let options = segment.options(&frame);
                prop_assert_eq!(segment.timestamps, options.timestamps);
                prop_assert_eq!(segment.sack_blocks(&frame), options.sack);
                prop_assert_eq!(segment.option_bytes(&frame).len(), usize::from(segment.options_len));
            }
            let _ = Segment::read(&frame, &parsed, false);
        }
    }
}
