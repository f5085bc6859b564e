//! How a name travels: a fixed array of UTF-8, padded with zeroes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A name of at most `N` bytes of UTF-8, zero-padded; content after the first zero is ignored.
#[derive(Clone, Copy, PartialEq, Eq, Hash, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Text<const N: usize>([u8; N]);

/// Names of listeners, pools, vips, ports: longest 63 bytes.
pub type Name = Text<64>;

impl<const N: usize> Text<N> {
    /// No text.
    pub const EMPTY: Self = Self([0; N]);

    /// Copies as much of `text` as fits (cut at a character boundary).
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        for (to, from) in bytes.iter_mut().zip(text.as_bytes().iter().take(end)) {
            *to = *from;
        }
        Self(bytes)
    }

    /// The text up to the first zero, or up to the first byte that is not UTF-8.
    pub fn as_str(&self) -> &str {
        let length = self.0.iter().position(|&byte| byte == 0).unwrap_or(N);
        let bytes = self.0.get(..length).unwrap_or(&[]);
        match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(bytes.get(..error.valid_up_to()).unwrap_or(&[])).unwrap_or(""),
        }
    }

    /// Whether no byte is set.
    pub fn is_empty(&self) -> bool {
        self.0.first().is_none_or(|&byte| byte == 0)
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> std::fmt::Debug for Text<N> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), formatter)
    }
}

impl<const N: usize> std::fmt::Display for Text<N> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_a_character_boundary() {
        assert_eq!(Text::<4>::new("aéé").as_str(), "aé");
        assert_eq!(Text::<4>::new("ab").as_str(), "ab");
        assert!(Text::<4>::default().is_empty());
    }

    #[test]
    fn foreign_bytes_never_panic() {
        assert_eq!(Text::<4>([b'a', 0xff, b'b', 0]).as_str(), "a");
        assert_eq!(Text::<4>([b'a'; 4]).as_str(), "aaaa");
    }
}
