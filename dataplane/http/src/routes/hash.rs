//! Which number stands for a host or a path, and for each of the path's beginnings?
//!
//! Whoever finds a route by its number compares the text: a collision costs time, never the wrong route.

/// Most segments of a prefix.
pub(super) const DEPTH: usize = 31;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const FACTOR: u64 = 0xa076_1d64_78bd_642f;

#[inline(always)]
const fn fold(left: u64, right: u64) -> u64 {
    let product = (left as u128).wrapping_mul(right as u128);
    product as u64 ^ (product >> 64) as u64
}

/// A number for these two.
#[inline(always)]
pub(super) const fn mix(left: u64, right: u64) -> u64 {
    fold(left ^ SEED, right ^ FACTOR)
}

/// Bytes with `lower` applied to eight at a time.
#[inline(always)]
fn hash(mut state: u64, bytes: &[u8], lower: impl Fn(u64) -> u64) -> u64 {
    let mut rest = bytes;
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        state = fold(state ^ lower(u64::from_le_bytes(*word)), FACTOR);
        rest = tail;
    }
    let mut last = 0;
    for byte in rest {
        last = last << 8 | u64::from(*byte);
    }
    // the length tells "a", "" from "", "a" and "a" from "\0a"
    fold(state ^ lower(last), FACTOR ^ bytes.len() as u64)
}

/// A host's number, whatever its case.
#[inline]
pub(super) fn host(name: &[u8]) -> u64 {
    // bit 5 of all bytes makes letters lower case; what else it makes equal, the comparison tells apart
    hash(SEED, name, |word| word | 0x2020_2020_2020_2020)
}

/// Numbers of a path.
#[derive(Debug)]
pub(super) struct Steps {
    /// Of the path as a whole.
    pub(super) whole: u64,
    /// By number of segments: the number of the beginning that has so many.
    prefixes: [u64; DEPTH + 1],
    /// How many of them there are.
    count: usize,
}

impl Steps {
    /// Of a path, and of its beginnings with at most `deepest` segments. Paths longer than `longest` have no number as a whole.
    #[inline]
    pub(super) fn new(path: &[u8], deepest: usize, longest: usize) -> Self {
        let mut steps = Self { whole: SEED, prefixes: [SEED; DEPTH + 1], count: 0 };
        let Some(mut rest) = path.strip_prefix(b"/") else {
            steps.whole = hash(FACTOR, path.get(..path.len().min(longest)).unwrap_or_default(), |word| word);
            return steps;
        };
        steps.count = 1;
        let deepest = deepest.min(DEPTH);
        let is_short = path.len() <= longest;
        while steps.count <= deepest || is_short {
            let end = rest.iter().position(|byte| *byte == b'/');
            let segment = end.map_or(rest, |end| rest.get(..end).unwrap_or_default());
            steps.whole = hash(steps.whole, segment, |word| word);
            if steps.count <= deepest
                && let Some(prefix) = steps.prefixes.get_mut(steps.count)
            {
                *prefix = steps.whole;
                steps.count += 1;
            }
            match end.and_then(|end| rest.get(end + 1..)) {
                Some(tail) => rest = tail,
                None => break,
            }
        }
        steps
    }

    /// The number of the beginning with `depth` segments.
    #[inline]
    pub(super) fn prefix(&self, depth: usize) -> Option<u64> {
        if depth < self.count { self.prefixes.get(depth).copied() } else { None }
    }

    /// The depths that there are, one bit each.
    #[inline]
    pub(super) const fn depths(&self) -> u32 {
        ((1u64 << self.count) - 1) as u32
    }
}

/// No entry.
pub(super) const NONE: u32 = u32::MAX;

/// Places for so many entries: a power of two, at least a third of them free.
pub(super) fn places(entries: usize) -> usize {
    (entries + entries / 2 + 1).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_no_case() {
        assert_eq!(host(b"Shop.Example.COM"), host(b"shop.example.com"));
        assert_ne!(host(b"shop.example.com"), host(b"shop.example.co"));
        assert_ne!(host(b""), host(b"a"));
    }

    #[test]
    fn a_third_of_the_places_is_free() {
        assert_eq!([0, 1, 2, 5, 6, 10_000].map(places), [1, 2, 4, 8, 16, 16_384]);
        assert!((0..5_000).all(|entries| places(entries) * 2 >= entries * 3));
    }

    #[test]
    fn beginnings_are_told_at_each_segment() {
        let steps = |path: &str| Steps::new(path.as_bytes(), DEPTH, 8_192);
        let long = steps("/v1/users/7/");
        assert_eq!(long.depths(), 0b11111);
        assert_eq!(long.prefix(1), steps("/v1").prefix(1));
        assert_eq!(long.prefix(2), steps("/v1/users/").prefix(2));
        assert_eq!(long.prefix(0), steps("/").prefix(0));
        assert_eq!(long.prefix(5), None);
        assert_eq!(steps("*").depths(), 0);
        for (one, other) in
            [("/a", "/a/"), ("/a/b", "/ab"), ("/", "/a"), ("//a", "/a/"), ("*", "/*"), ("/", "")]
        {
            assert_ne!(steps(one).whole, steps(other).whole, "{one} {other}");
        }
        let many = "/x".repeat(4_000);
        let steps = Steps::new(many.as_bytes(), DEPTH, 100);
        assert_eq!(steps.depths(), u32::MAX);
        assert_eq!(Steps::new(many.as_bytes(), 2, 0).depths(), 0b111);
    }
}
