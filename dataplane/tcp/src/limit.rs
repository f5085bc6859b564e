//! How many answers may strangers make us send? RFC 5961 §7, with a budget that can't be used as a side channel.

/// Between two answers to segments without data that are out of place, on one connection: milliseconds (as Linux).
pub(crate) const OUT_OF_PLACE_MS: u32 = 500;

/// Challenge acknowledgements per second, over all connections. The budget of a second is random (between half and one and a half
/// of the configured one), so that nobody can count the answers to others (CVE-2016-5696).
#[derive(Debug)]
pub(crate) struct ChallengeLimit {
    per_second: u32,
    second: u32,
    left: u32,
    random: u64,
}

impl ChallengeLimit {
    pub(crate) fn new(per_second: u32, seed: u64) -> Self {
        Self { per_second, second: u32::MAX, left: 0, random: seed | 1 }
    }

    /// Whether one more may leave.
    pub(crate) fn take(&mut self, now_ms: u32) -> bool {
        let second = now_ms / 1_000;
        if second != self.second {
            self.second = second;
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let spread = ((self.random >> 32) * u64::from(self.per_second)) >> 32;
            self.left = self.per_second.div_ceil(2).saturating_add(spread as u32);
        }
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_second_has_a_bounded_random_budget() {
        let mut limit = ChallengeLimit::new(100, 7);
        let mut seen = std::collections::BTreeSet::new();
        for second in 0..50 {
            let taken = (0..1_000).filter(|_| limit.take(second * 1_000)).count();
            assert!((50..=150).contains(&taken), "{taken}");
            seen.insert(taken);
        }
        assert!(seen.len() > 10);
    }
}
