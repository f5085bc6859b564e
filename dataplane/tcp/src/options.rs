//! Which options does a TCP header carry (RFC 9293 §3.2), and how are ours laid out?
//!
//! Reading never fails as a whole: what is unknown, misplaced or of a wrong length is left out, and a length that leads
//! nowhere ends the list, as RFC 9293 §3.2 (MUST-6, MUST-7) wants. Where an option comes twice, the first counts.

use arrayvec::ArrayVec;
use weir_net::tcp::{OPTION_END, OPTION_MSS, OPTION_NOP};

use crate::seq::SeqNumber;

/// RFC 7323 §2.2: window scale.
pub const OPTION_WINDOW_SCALE: u8 = 3;
/// RFC 2018 §2: SACK permitted.
pub const OPTION_SACK_PERMITTED: u8 = 4;
/// RFC 2018 §3: SACK.
pub const OPTION_SACK: u8 = 5;
/// RFC 7323 §3.2: timestamps.
pub const OPTION_TIMESTAMPS: u8 = 8;
/// RFC 7413 §4.1.1: fast open.
pub const OPTION_FAST_OPEN: u8 = 34;
/// RFC 9293 §3.1: the data offset counts to 15 words, five of which are the header.
pub const OPTIONS_MAX: usize = 40;
/// What timestamps take, their padding included (RFC 7323 appendix A).
pub const TIMESTAMPS_LEN: usize = 12;
/// RFC 7323 §2.3: the largest shift; a larger one is taken as this.
pub const WINDOW_SCALE_MAX: u8 = 14;

/// NOP, NOP, timestamps, 10: how RFC 7323 appendix A lays timestamps out, as a number.
pub(crate) const ALIGNED_TIMESTAMPS: u32 =
    u32::from_be_bytes([OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMPS, 10]);

/// Blocks of a SACK option: first sequence number, and the one after the last (RFC 2018 §3).
pub type SackBlocks = ArrayVec<(SeqNumber, SeqNumber), 4>;

/// A timestamps option, RFC 7323 §3.2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the clock of the receiver, echoed; means something only with ACK set.
    pub echo: u32,
}

impl Timestamps {
    /// The timestamps that options begin with, where they begin as nearly all do: NOP, NOP, timestamps.
    #[inline(always)]
    pub fn aligned(options: &[u8]) -> Option<Self> {
        let raw = options.first_chunk::<TIMESTAMPS_LEN>()?;
        let word = |at: [u8; 4]| u32::from_be_bytes(at);
        if word([raw[0], raw[1], raw[2], raw[3]]) != ALIGNED_TIMESTAMPS {
            return None;
        }
        Some(Self {
            value: word([raw[4], raw[5], raw[6], raw[7]]),
            echo: word([raw[8], raw[9], raw[10], raw[11]]),
        })
    }

    /// The timestamps among options of any order.
    pub fn find(options: &[u8]) -> Option<Self> {
        if let Some((.., timestamps, _)) = usual_syn(options) {
            return Some(timestamps);
        }
        Walk(options).find_map(|(kind, data)| (kind == OPTION_TIMESTAMPS).then(|| Self::of(data)).flatten())
    }

    /// Of an option's data.
    fn of(data: &[u8]) -> Option<Self> {
        let [value, echo] = words::<8, 2>(data)?;
        Some(Self { value, echo })
    }

    /// As RFC 7323 appendix A recommends it.
    #[inline(always)]
    fn bytes(self) -> [u8; TIMESTAMPS_LEN] {
        let ([a, b, c, d], [e, f, g, h]) = (self.value.to_be_bytes(), self.echo.to_be_bytes());
        [OPTION_NOP, OPTION_NOP, OPTION_TIMESTAMPS, 10, a, b, c, d, e, f, g, h]
    }
}

/// A fast open cookie: 4 to 16 bytes, an even number of them (RFC 7413 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastOpenCookie {
    len: u8,
    bytes: [u8; 16],
}

impl FastOpenCookie {
    /// A cookie of that many bytes; none of another length.
    pub fn new(cookie: &[u8]) -> Option<Self> {
        if !(4..=16).contains(&cookie.len()) || !cookie.len().is_multiple_of(2) {
            return None;
        }
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(cookie) {
            *to = *from;
        }
        Some(Self { len: cookie.len() as u8, bytes })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// A fast open option, RFC 7413 §4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastOpen {
    /// The client asks for a cookie.
    Request,
    /// The client shows one, or the server gives one.
    Cookie(FastOpenCookie),
}

/// The options that the engine knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The largest segment that the sender takes (RFC 9293 §3.7.1); a peer's zero is no MSS.
    pub mss: Option<u16>,
    /// The shift of the sender's windows, at most [`WINDOW_SCALE_MAX`] (RFC 7323 §2).
    pub window_scale: Option<u8>,
    /// The sender takes SACK (RFC 2018 §2).
    pub sack_permitted: bool,
    /// Timestamps (RFC 7323 §3).
    pub timestamps: Option<Timestamps>,
    /// Blocks that the sender holds beyond what it acknowledges (RFC 2018 §3), the newest first. Blocks that end before
    /// they begin are left out.
    pub sack: SackBlocks,
    /// Fast open (RFC 7413 §2).
    pub fast_open: Option<FastOpen>,
}

impl Options {
    /// Reads what stands between header and data.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut options = Self::default();
        if bytes.len() == TIMESTAMPS_LEN
            && let Some(timestamps) = Timestamps::aligned(bytes)
        {
            options.timestamps = Some(timestamps);
            return options;
        }
        if let Some((mss, timestamps, shift)) = usual_syn(bytes) {
            options.mss = Some(mss);
            options.window_scale = Some(shift);
            options.sack_permitted = true;
            options.timestamps = Some(timestamps);
            return options;
        }
        for (kind, data) in Walk(bytes) {
            options.take(kind, data);
        }
        options
    }

    /// Takes an option in, where it is well-formed and the first of its kind.
    fn take(&mut self, kind: u8, data: &[u8]) {
        match (kind, data) {
            (OPTION_MSS, &[high, low]) => {
                let mss = u16::from_be_bytes([high, low]);
                self.mss = self.mss.or((mss != 0).then_some(mss));
            }
            (OPTION_WINDOW_SCALE, &[shift]) => {
                self.window_scale = self.window_scale.or(Some(shift.min(WINDOW_SCALE_MAX)));
            }
            (OPTION_SACK_PERMITTED, []) => self.sack_permitted = true,
            (OPTION_TIMESTAMPS, _) => self.timestamps = self.timestamps.or_else(|| Timestamps::of(data)),
            (OPTION_SACK, _) if self.sack.is_empty() => self.sack = blocks(data),
            (OPTION_FAST_OPEN, []) => self.fast_open = self.fast_open.or(Some(FastOpen::Request)),
            (OPTION_FAST_OPEN, _) => {
                // RFC 7413 §4.1.1: options of an invalid length are ignored.
                self.fast_open = self.fast_open.or_else(|| FastOpenCookie::new(data).map(FastOpen::Cookie));
            }
            _ => {}
        }
    }

    /// Writes them, aligned to words with NOPs, and returns their length, a multiple of 4. The order is Linux's: MSS,
    /// SACK permitted or NOPs with timestamps, window scale, SACK, fast open. SACK blocks that don't fit are left out from
    /// the oldest on, a cookie that doesn't fit altogether.
    pub fn write(&self, out: &mut [u8; OPTIONS_MAX]) -> usize {
        if let (Some(mss), Some(shift), true, Some(timestamps), None) =
            (self.mss, self.window_scale, self.sack_permitted, self.timestamps, &self.fast_open)
            && self.sack.is_empty()
        {
            return write_usual_syn(mss, timestamps, shift.min(WINDOW_SCALE_MAX), out);
        }
        let mut writer = Writer { out, len: 0 };
        if let Some(mss) = self.mss {
            let [high, low] = mss.to_be_bytes();
            writer.put(&[OPTION_MSS, 4, high, low]);
        }
        match self.timestamps {
            Some(timestamps) => {
                let mut bytes = timestamps.bytes();
                if self.sack_permitted {
                    [bytes[0], bytes[1]] = [OPTION_SACK_PERMITTED, 2];
                }
                writer.put(&bytes);
            }
            None if self.sack_permitted => {
                writer.put(&[OPTION_NOP, OPTION_NOP, OPTION_SACK_PERMITTED, 2]);
            }
            None => {}
        }
        if let Some(shift) = self.window_scale {
            writer.put(&[OPTION_NOP, OPTION_WINDOW_SCALE, 3, shift.min(WINDOW_SCALE_MAX)]);
        }
        writer.put_sack(&self.sack);
        if let Some(fast_open) = &self.fast_open {
            writer.put_fast_open(fast_open);
        }
        writer.len
    }
}

/// Bytes of the options of a SYN as Linux and this engine write them.
const USUAL_SYN_LEN: usize = 20;
/// Its words: MSS; SACK permitted and the head of timestamps; and, behind those, window scale.
const USUAL_SYN: [u32; 3] = [
    u32::from_be_bytes([OPTION_MSS, 4, 0, 0]),
    u32::from_be_bytes([OPTION_SACK_PERMITTED, 2, OPTION_TIMESTAMPS, 10]),
    u32::from_be_bytes([OPTION_NOP, OPTION_WINDOW_SCALE, 3, 0]),
];

/// MSS, timestamps and window scale of such a SYN, which also permits SACK.
#[inline]
fn usual_syn(options: &[u8]) -> Option<(u16, Timestamps, u8)> {
    let options: &[u8; USUAL_SYN_LEN] = options.try_into().ok()?;
    let [mss, head, value, echo, scale] = words::<USUAL_SYN_LEN, 5>(options)?;
    let is_usual = (mss & 0xffff_0000 == USUAL_SYN[0])
        & (mss & 0xffff != 0)
        & (head == USUAL_SYN[1])
        & (scale & 0xffff_ff00 == USUAL_SYN[2]);
    is_usual.then_some((mss as u16, Timestamps { value, echo }, (scale as u8).min(WINDOW_SCALE_MAX)))
}

/// Writes them; returns their length.
#[inline]
fn write_usual_syn(mss: u16, timestamps: Timestamps, shift: u8, out: &mut [u8; OPTIONS_MAX]) -> usize {
    let words = [
        USUAL_SYN[0] | u32::from(mss),
        USUAL_SYN[1],
        timestamps.value,
        timestamps.echo,
        USUAL_SYN[2] | u32::from(shift),
    ];
    for (to, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_be_bytes();
    }
    USUAL_SYN_LEN
}

/// The blocks of SACK options; empty where there are none or the option is malformed.
pub fn sack_blocks(options: &[u8]) -> SackBlocks {
    // NOP, NOP, timestamps first, as nearly always: the walk begins behind them.
    let rest = match Timestamps::aligned(options) {
        Some(_) => options.get(TIMESTAMPS_LEN..).unwrap_or_default(),
        None => options,
    };
    Walk(rest)
        .filter(|(kind, _)| *kind == OPTION_SACK)
        .map(|(_, data)| blocks(data))
        .find(|blocks| !blocks.is_empty())
        .unwrap_or_default()
}

/// The blocks in a SACK option's data, RFC 2018 §3.
fn blocks(data: &[u8]) -> SackBlocks {
    let (raw, rest) = data.as_chunks::<8>();
    if !rest.is_empty() {
        return SackBlocks::new();
    }
    raw.iter()
        .filter_map(|block| words::<8, 2>(block))
        .map(|[left, right]| (SeqNumber(left), SeqNumber(right)))
        .filter(|(left, right)| left.is_before(*right))
        .take(4)
        .collect()
}

/// `N` bytes as `W` numbers; none where there are fewer or more bytes.
#[inline(always)]
fn words<const N: usize, const W: usize>(data: &[u8]) -> Option<[u32; W]> {
    let data: &[u8; N] = data.try_into().ok()?;
    let mut numbers = [0; W];
    for (number, word) in numbers.iter_mut().zip(data.as_chunks::<4>().0) {
        *number = u32::from_be_bytes(*word);
    }
    Some(numbers)
}

/// Options one by one: kind, and data without kind and length. Ends at the end of list, at the end of the bytes, or at a
/// length that leads before or behind them.
struct Walk<'a>(&'a [u8]);

impl<'a> Iterator for Walk<'a> {
    type Item = (u8, &'a [u8]);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0 {
                [] | [OPTION_END, ..] => return None,
                [OPTION_NOP, rest @ ..] => self.0 = rest,
                [kind, len, ..] => {
                    let (option, rest) = self.0.split_at_checked(usize::from(*len))?;
                    self.0 = rest;
                    return Some((*kind, option.get(2..)?));
                }
                [_] => return None,
            }
        }
    }
}

/// Writes whole words of options.
struct Writer<'a> {
    out: &'a mut [u8; OPTIONS_MAX],
    len: usize,
}

impl Writer<'_> {
    /// Appends bytes where all of them fit.
    fn put(&mut self, bytes: &[u8]) -> bool {
        let Some(place) = self.out.get_mut(self.len..self.len + bytes.len()) else { return false };
        place.copy_from_slice(bytes);
        self.len += bytes.len();
        true
    }

    /// Appends as many blocks as fit.
    fn put_sack(&mut self, blocks: &[(SeqNumber, SeqNumber)]) {
        let room = (OPTIONS_MAX - self.len).saturating_sub(4) / 8;
        let count = blocks.len().min(room);
        if count == 0 {
            return;
        }
        self.put(&[OPTION_NOP, OPTION_NOP, OPTION_SACK, 2 + 8 * count as u8]);
        for (left, right) in blocks.iter().take(count) {
            self.put(&left.0.to_be_bytes());
            self.put(&right.0.to_be_bytes());
        }
    }

    /// Appends a fast open option where it fits, then NOPs up to a whole word.
    fn put_fast_open(&mut self, fast_open: &FastOpen) {
        let cookie = match fast_open {
            FastOpen::Request => &[][..],
            FastOpen::Cookie(cookie) => cookie.as_bytes(),
        };
        let padded = (2 + cookie.len()).next_multiple_of(4);
        if self.len + padded > OPTIONS_MAX {
            return;
        }
        let end = self.len + padded;
        self.put(&[OPTION_FAST_OPEN, 2 + cookie.len() as u8]);
        self.put(cookie);
        while self.len < end {
            self.put(&[OPTION_NOP]);
        }
    }
}

/// Options as they are sent: 0 to 40 bytes, whole words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionBytes {
    bytes: [u8; OPTIONS_MAX],
    len: u8,
}

impl OptionBytes {
    /// No options.
    pub const NONE: Self = Self { bytes: [0; OPTIONS_MAX], len: 0 };

    /// Timestamps alone: what an established connection sends.
    #[inline(always)]
    pub fn timestamps(timestamps: Timestamps) -> Self {
        let mut bytes = [0; OPTIONS_MAX];
        bytes[..TIMESTAMPS_LEN].copy_from_slice(&timestamps.bytes());
        Self { bytes, len: TIMESTAMPS_LEN as u8 }
    }

    /// Becomes timestamps alone, in place: what a header that is used again and again is given.
    #[inline(always)]
    pub fn set_timestamps(&mut self, timestamps: Timestamps) {
        // two wide stores, so that the copy into the packet that follows need not wait for narrow ones
        let first = u64::from(ALIGNED_TIMESTAMPS) << 32 | u64::from(timestamps.value);
        self.bytes[..8].copy_from_slice(&first.to_be_bytes());
        self.bytes[8..TIMESTAMPS_LEN].copy_from_slice(&timestamps.echo.to_be_bytes());
        self.len = TIMESTAMPS_LEN as u8;
    }

    /// Becomes none, in place.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// What an acknowledgment carries: timestamps where they are in use, and as many SACK blocks as fit (three beside
    /// timestamps, four without).
    pub fn acknowledgment(timestamps: Option<Timestamps>, sack: &[(SeqNumber, SeqNumber)]) -> Self {
        let mut bytes = [0; OPTIONS_MAX];
        let mut writer = Writer { out: &mut bytes, len: 0 };
        if let Some(timestamps) = timestamps {
            writer.put(&timestamps.bytes());
        }
        writer.put_sack(sack);
        let len = writer.len as u8;
        Self { bytes, len }
    }

    /// Their length, a multiple of 4.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    #[inline(always)]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl Default for OptionBytes {
    fn default() -> Self {
        Self::NONE
    }
}

impl From<&Options> for OptionBytes {
    fn from(options: &Options) -> Self {
        let mut bytes = [0; OPTIONS_MAX];
        let len = options.write(&mut bytes) as u8;
        Self { bytes, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMESTAMPS: Timestamps = Timestamps { value: 0x0102_0304, echo: 0xf1f2_f3f4 };

    fn written(options: &Options) -> Vec<u8> {
        OptionBytes::from(options).as_bytes().to_vec()
    }

    fn block(left: u32, right: u32) -> (SeqNumber, SeqNumber) {
        (SeqNumber(left), SeqNumber(right))
    }

    #[test]
    fn a_syn_of_linux_reads_and_is_written_alike() {
        let bytes = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0xf1, 0xf2, 0xf3, 0xf4, 1, 3, 3, 7];
        let options = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(TIMESTAMPS),
            ..Options::default()
        };
        assert_eq!(Options::parse(&bytes), options);
        assert_eq!(written(&options), bytes);
    }

    #[test]
    fn a_syn_without_timestamps_pads_sack_permitted() {
        let options = Options { mss: Some(536), sack_permitted: true, ..Options::default() };
        assert_eq!(written(&options), [2, 4, 2, 0x18, 1, 1, 4, 2]);
    }

    #[test]
    fn established_segments_have_the_layout_of_appendix_a() {
        let bytes = [1, 1, 8, 10, 1, 2, 3, 4, 0xf1, 0xf2, 0xf3, 0xf4];
        let options = Options { timestamps: Some(TIMESTAMPS), ..Options::default() };
        assert_eq!(Options::parse(&bytes), options);
        assert_eq!(written(&options), bytes);
        assert_eq!(OptionBytes::timestamps(TIMESTAMPS).as_bytes(), bytes);
        assert_eq!(Timestamps::aligned(&bytes), Some(TIMESTAMPS));

        let mut with_sack = bytes.to_vec();
        with_sack.extend([1, 1, 5, 10, 0, 0, 0, 9, 0, 0, 0, 12]);
        let acknowledgment = OptionBytes::acknowledgment(Some(TIMESTAMPS), &[block(9, 12)]);
        assert_eq!(acknowledgment.as_bytes(), with_sack);
        assert_eq!(sack_blocks(&with_sack).as_slice(), [block(9, 12)]);
        assert_eq!(OptionBytes::acknowledgment(None, &[]), OptionBytes::NONE);
    }

    #[test]
    fn the_oldest_blocks_give_way() {
        let four = [block(70, 80), block(50, 60), block(30, 40), block(u32::MAX, 20)];
        let with_timestamps = OptionBytes::acknowledgment(Some(TIMESTAMPS), &four);
        assert_eq!(with_timestamps.len(), 40);
        assert_eq!(sack_blocks(with_timestamps.as_bytes()).as_slice(), &four[..3]);
        let alone = OptionBytes::acknowledgment(None, &four);
        assert_eq!(alone.len(), 36);
        assert_eq!(sack_blocks(alone.as_bytes()).as_slice(), four);
    }

    #[test]
    fn a_syn_with_everything_fits_and_is_aligned() {
        for len in [4, 8, 14, 16] {
            let cookie = FastOpenCookie::new(&[7; 16][..len]).unwrap();
            let options = Options {
                mss: Some(1460),
                window_scale: Some(14),
                sack_permitted: true,
                timestamps: Some(TIMESTAMPS),
                fast_open: Some(FastOpen::Cookie(cookie)),
                ..Options::default()
            };
            let bytes = written(&options);
            assert_eq!(bytes.len(), 20 + (2 + len).next_multiple_of(4));
            assert_eq!(Options::parse(&bytes), options);
        }
        let request = Options { fast_open: Some(FastOpen::Request), ..Options::default() };
        assert_eq!(written(&request), [34, 2, 1, 1]);
        assert_eq!(Options::parse(&[34, 2, 1, 1]), request);
    }

    #[test]
    fn cookies_have_an_even_length_of_4_to_16() {
        for len in 0..=18 {
            let valid = (4..=16).contains(&len) && len % 2 == 0;
            assert_eq!(FastOpenCookie::new(&[1; 18][..len]).is_some(), valid, "{len}");
            let mut bytes = vec![34, 2 + len as u8];
            bytes.extend(vec![1; len]);
            let read = Options::parse(&bytes).fast_open;
            assert_eq!(matches!(read, Some(FastOpen::Cookie(_))), valid, "{len}");
            assert_eq!(read == Some(FastOpen::Request), len == 0, "{len}");
        }
    }

    #[test]
    fn malformed_options_are_left_out_and_the_rest_is_read() {
        let mss = |mss| Options { mss: Some(mss), ..Options::default() };
        let nothing = Options::default();
        for (bytes, expected, why) in [
            (&[2, 3, 9, 2, 4, 1, 0][..], mss(256), "an MSS of one byte"),
            (&[2, 5, 9, 9, 9, 2, 4, 1, 0], mss(256), "an MSS of three bytes"),
            (&[2, 4, 0, 0], nothing.clone(), "an MSS of zero"),
            (&[254, 6, 1, 2, 3, 4, 2, 4, 1, 0], mss(256), "an unknown option (MUST-6)"),
            (&[253, 2, 2, 4, 1, 0], mss(256), "an unknown option without data"),
            (&[9, 0, 2, 4, 1, 0], nothing.clone(), "a length of zero (MUST-7)"),
            (&[9, 1, 2, 4, 1, 0], nothing.clone(), "a length of one"),
            (&[2, 4, 1, 0, 9, 200, 1], mss(256), "a length beyond the header"),
            (&[2, 4, 1, 0, 9], mss(256), "a kind without length"),
            (&[2, 4, 1, 0, 0, 2, 4, 1, 1], mss(256), "options after the end of list"),
            (&[2, 4, 1, 0, 2, 4, 2, 0], mss(256), "an option twice: the first counts"),
            (&[4, 3, 1, 2, 4, 1, 0], mss(256), "SACK permitted with data"),
            (&[8, 9, 1, 2, 3, 4, 5, 6, 7, 2, 4, 1, 0], mss(256), "short timestamps"),
            (&[5, 9, 0, 0, 0, 1, 0, 0, 0, 2, 4, 1, 0], mss(256), "SACK of less than a block"),
            (&[5, 2, 2, 4, 1, 0], mss(256), "SACK without a block"),
            (&[5, 10, 0, 0, 0, 9, 0, 0, 0, 9, 2, 4, 1, 0], mss(256), "an empty block"),
            (&[5, 10, 0, 0, 0, 9, 0, 0, 0, 3, 2, 4, 1, 0], mss(256), "a reversed block"),
            (&[3, 4, 1, 1, 2, 4, 1, 0], mss(256), "a window scale of two bytes"),
        ] {
            assert_eq!(Options::parse(bytes), expected, "{why}");
        }
    }

    #[test]
    fn the_window_scale_is_capped() {
        for (sent, taken) in [(0, 0), (14, 14), (15, 14), (255, 14)] {
            assert_eq!(Options::parse(&[3, 3, sent]).window_scale, Some(taken));
        }
    }

    fn any_options() -> impl Strategy<Value = Options> {
        let sack = proptest::collection::vec((any::<u32>(), 1..0x7fff_ffffu32), 0..=4);
        let fast_open = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=8));
        let timestamps = proptest::option::of(any::<(u32, u32)>());
        let mss = proptest::option::of(1..=u16::MAX);
        (mss, proptest::option::of(0..=14u8), any::<bool>(), timestamps, sack, fast_open).prop_map(
            |(mss, window_scale, sack_permitted, timestamps, sack, fast_open)| Options {
                mss,
                window_scale,
                sack_permitted,
                timestamps: timestamps.map(|(value, echo)| Timestamps { value, echo }),
                sack: sack.into_iter().map(|(left, len)| (SeqNumber(left), SeqNumber(left) + len)).collect(),
                fast_open: fast_open.map(|half| {
                    let cookie = [half.as_slice(), half.as_slice()].concat();
                    FastOpenCookie::new(&cookie).map_or(FastOpen::Request, FastOpen::Cookie)
                }),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(options in any_options()) {
            let bytes = written(&options);
            prop_assert!(bytes.len() <= OPTIONS_MAX && bytes.len().is_multiple_of(4));
            let read = Options::parse(&bytes);
            // Only SACK blocks and a cookie may have had no room.
            let kept = read.sack.len();
            prop_assert_eq!(&read.sack[..], &options.sack[..kept]);
            prop_assert!(read.fast_open == options.fast_open || read.fast_open.is_none());
            let used = bytes.len();
            prop_assert!(kept == options.sack.len() || used + 8 > OPTIONS_MAX || options.fast_open.is_some());
            prop_assert_eq!(
                Options { sack: SackBlocks::new(), fast_open: None, ..read },
                Options { sack: SackBlocks::new(), fast_open: None, ..options }
            );
        }

        #[test]
        fn arbitrary_bytes_read_alike_in_every_way(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0..12u8, Just(34)], 0..=40)
        ) {
            let options = Options::parse(&bytes);
            prop_assert_eq!(options.timestamps, Timestamps::aligned(&bytes).or_else(|| Timestamps::find(&bytes)));
            prop_assert_eq!(options.sack, sack_blocks(&bytes));
            prop_assert!(options.window_scale.is_none_or(|shift| shift <= WINDOW_SCALE_MAX));
            prop_assert!(options.mss != Some(0));
        }
    }
}
