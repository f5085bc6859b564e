//! Where do runs of usual bytes end? Eight bytes at a time.
//!
//! The functions mark, in the high bit of each byte of a word, the bytes that end a run. Additions are of seven bits, so that
//! none carries into its neighbour.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x80 * ONES;
const LOW: u64 = 0x7f * ONES;

/// High bits of the bytes that are at least this, of words without high bits.
#[inline(always)]
const fn at_least(word: u64, byte: u8) -> u64 {
    word + (0x80 - byte as u64) * ONES
}

/// High bits of the bytes that are something else, of words without high bits.
#[inline(always)]
const fn differs(word: u64, byte: u8) -> u64 {
    (word ^ (byte as u64 * ONES)) + LOW
}

/// Letters, digits, `-`, and one byte more.
#[inline(always)]
const fn is_name(word: u64, also: u8) -> u64 {
    let low = word & LOW;
    let lower = low | (0x20 * ONES);
    let letter = at_least(lower, b'a') & !at_least(lower, b'z' + 1);
    let digit = at_least(low, b'0') & !at_least(low, b'9' + 1);
    (letter | digit | !(differs(low, b'-') & differs(low, also))) & !word
}

/// Visible ASCII but `"`, `#`, `<`, `>`, `?` and `\\`.
#[inline(always)]
const fn is_target(word: u64) -> u64 {
    let low = word & LOW;
    let visible = at_least(low, b'!') & !at_least(low, 0x7f);
    let quotes = differs(low | ONES, b'#');
    let angles = differs(low | (2 * ONES), b'>');
    visible & quotes & angles & differs(low, b'?') & differs(low, b'\\') & !word
}

/// Everything but controls; HTAB is one here.
#[inline(always)]
const fn is_text(word: u64) -> u64 {
    let low = word & LOW;
    (at_least(low, b' ') & !at_least(low, 0x7f)) | word
}

/// The offset of the first byte from `at` on that isn't marked; `None` where fewer than eight bytes are left before it shows, with the offset that was
/// reached.
#[inline(always)]
fn first(bytes: &[u8], mut at: usize, is_usual: impl Fn(u64) -> u64) -> Result<usize, usize> {
    while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let others = !is_usual(u64::from_le_bytes(*word)) & HIGH;
        if others != 0 {
            return Ok(at + others.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    Err(at)
}

/// The end of the letters, digits and `-` from `at` on, or an offset before it.
#[inline(always)]
pub(crate) fn name(bytes: &[u8], at: usize) -> usize {
    first(bytes, at, |word| is_name(word, b'-')).unwrap_or_else(|at| at)
}

/// The end of the letters, digits, `-` and `.` from `at` on, or an offset before it.
#[inline(always)]
pub(crate) fn host(bytes: &[u8], at: usize) -> usize {
    first(bytes, at, |word| is_name(word, b'.')).unwrap_or_else(|at| at)
}

/// The end of the usual bytes of a target from `at` on, or an offset before it.
#[inline(always)]
pub(crate) fn target(bytes: &[u8], at: usize) -> usize {
    first(bytes, at, is_target).unwrap_or_else(|at| at)
}

/// The offset of the first control character, from `at` on; HTAB is none.
#[inline(always)]
pub(crate) fn control(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match first(bytes, at, is_text) {
            Ok(place) if bytes.get(place) == Some(&b'\t') => at = place + 1,
            Ok(place) => return Some(place),
            Err(place) => {
                let rest = bytes.get(place..)?;
                return rest.iter().position(|&byte| is_control(byte)).map(|offset| place + offset);
            }
        }
    }
}

/// Whether a byte ends a value or spoils it.
const fn is_control(byte: u8) -> bool {
    (byte < 0x20 && byte != b'\t') || byte == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_at_every_place() {
        for length in 1..40 {
            for at in 0..length {
                for byte in 0..=255_u8 {
                    for filler in [b'a', 0x80, 0xff, b'\t', b' '] {
                        let mut bytes = vec![filler; length];
                        bytes[at] = byte;
                        let expected = is_control(byte).then_some(at);
                        assert_eq!(control(&bytes, 0), expected, "{byte:#x} at {at} of {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn runs_end_where_they_should() {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let is_host = |byte: u8| is_name(byte) || byte == b'.';
        let is_target = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>?\\".contains(&byte);
        for at in 0..16 {
            for byte in 0..=255_u8 {
                for filler in [b'a', b'Z', b'0', b'9', b'-'] {
                    let mut bytes = vec![filler; 16];
                    bytes[at] = byte;
                    let end = |is_usual: bool| if is_usual { 16 } else { at };
                    assert_eq!(name(&bytes, 0), end(is_name(byte)), "{byte:#x}");
                    assert_eq!(host(&bytes, 0), end(is_host(byte)), "{byte:#x}");
                    assert_eq!(target(&bytes, 0), end(is_target(byte)), "{byte:#x}");
                }
            }
        }
        assert_eq!((name(b"abc", 0), name(b"12345678 abc", 0)), (0, 8), "the end is looked at elsewhere");
    }
}
