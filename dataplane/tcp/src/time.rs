//! What time is it? Microseconds of a clock that the caller owns.

/// Microseconds since a start that the caller chose; never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The low 32 bits, as records keep them: differences hold for 71 minutes.
    #[inline(always)]
    pub const fn low(self) -> u32 {
        self.0 as u32
    }

    /// That much later.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, microseconds: u64) -> Self {
        Self(self.0.saturating_add(microseconds))
    }

    /// Microseconds since the earlier one; 0 where it is later.
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The clock in milliseconds, modulo 2^32: what timestamps (RFC 7323) count in.
    #[inline(always)]
    pub const fn milliseconds(self) -> u32 {
        (self.0 / 1_000) as u32
    }
}
