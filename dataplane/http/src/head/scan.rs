//! Where does a value end? Eight bytes at a time.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The offset of the first control character, from `at` on; HTAB is none.
#[inline]
pub(super) fn control(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = bytes.get(at..)?;
        let Some(word) = rest.first_chunk::<8>() else {
            return rest.iter().position(|&byte| is_control(byte)).map(|offset| at + offset);
        };
        let word = u64::from_le_bytes(*word);
        // A borrow can only mark bytes above the first that is marked rightly.
        let below = word.wrapping_sub(0x20 * ONES) & !word;
        let delete = word ^ (0x7f * ONES);
        let marks = (below | (delete.wrapping_sub(ONES) & !delete)) & HIGH;
        if marks == 0 {
            at += 8;
            continue;
        }
        at += marks.trailing_zeros() as usize / 8;
        if bytes.get(at) != Some(&b'\t') {
            return Some(at);
        }
        at += 1;
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
}
