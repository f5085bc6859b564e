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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    #[inline]
    pub fn read(frame: &[u8], parsed: &Parsed, checksum_is_verified: bool) -> Result<Self, Refused> {
        if (parsed.protocol != Protocol::TCP) | parsed.is_fragment() {
            return Err(if parsed.is_fragment() { Refused::Fragment } else { Refused::NotTcp });
        }
        let segment = frame.get(parsed.l4_offset()..parsed.end()).ok_or(Refused::Truncated)?;
        let (header, rest) = segment.split_first_chunk::<{ tcp::HEADER_LEN }>().ok_or(Refused::DataOffset)?;
        let words = usize::from(header[tcp::field::DATA_OFFSET] >> 4);
        let options_len = words.checked_sub(tcp::HEADER_LEN / 4).ok_or(Refused::DataOffset)? * 4;
        let (options, payload) = rest.split_at_checked(options_len).ok_or(Refused::DataOffset)?;
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
        Ok(Self {
            seq: word(header[4], header[5], header[6], header[7]),
            ack: word(header[8], header[9], header[10], header[11]),
            timestamps,
            window: u16::from_be_bytes([header[14], header[15]]),
            payload_offset: parsed.l4 + (tcp::HEADER_LEN + options_len) as u16,
            payload_len: payload.len() as u16,
            flags,
            options_len: options_len as u8,
            ecn_ce: parsed.tos & 0b11 == CONGESTION_EXPERIENCED,
            has_more_options,
        })
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
