//! Which words of the shared tables are a source's? A keyed hash: nobody outside can choose sources that meet.

use std::hash::{BuildHasher, Hasher};

/// A secret of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed([u64; 2]);

impl Seed {
    /// A seed for tests.
    pub const fn fixed(seed: [u64; 2]) -> Self {
        Self(seed)
    }

    /// One that nobody knows.
    pub fn random() -> Self {
        let word = || std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self([word(), word()])
    }

    /// Hash of a source and what is limited.
    #[inline]
    pub fn hash(self, what: u64, source: u128) -> u64 {
        let [first, second] = self.0;
        let inner = fold(
            source as u64 ^ first ^ 0x243f_6a88_85a3_08d3,
            (source >> 64) as u64 ^ second ^ 0x1319_8a2e_0370_7344,
        );
        fold(inner ^ what ^ 0x9e37_79b9_7f4a_7c15, first ^ 0xa409_3822_299f_31d1)
    }
}

/// Both halves of the product.
#[inline]
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    product as u64 ^ (product >> 64) as u64
}
