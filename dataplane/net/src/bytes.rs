//! How is a big-endian number read from, or written to, a place that may not exist?
//!
//! The only place that turns offsets into slices: every access is checked, once, and none can panic.

/// The `N` bytes that start at `at`.
#[inline(always)]
pub(crate) fn chunk<const N: usize>(bytes: &[u8], at: usize) -> Option<&[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.first_chunk::<N>()
}

/// The `N` bytes that start at `at`, to be changed.
#[inline(always)]
pub(crate) fn chunk_mut<const N: usize>(bytes: &mut [u8], at: usize) -> Option<&mut [u8; N]> {
    bytes.get_mut(at..at.checked_add(N)?)?.first_chunk_mut::<N>()
}

/// The 16-bit number at `at`.
#[inline(always)]
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    chunk(bytes, at).map(|raw| u16::from_be_bytes(*raw))
}

/// The 32-bit number at `at`.
#[inline(always)]
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    chunk(bytes, at).map(|raw| u32::from_be_bytes(*raw))
}

/// Writes `value` at `at`; `None` and no change where it does not fit.
#[inline(always)]
pub(crate) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) -> Option<()> {
    *chunk_mut(bytes, at)? = value;
    Some(())
}

/// Two bytes as a number.
#[inline(always)]
pub(crate) fn be16(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}
