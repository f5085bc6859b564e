//! May another answer be made now? A token bucket that counts in ticks.

/// Ticks per second: the engine's clock.
pub const TICKS_PER_SECOND: u32 = 4;

/// At most `rate` answers a second, in bursts of at most a second's worth.
#[derive(Debug)]
pub struct RateLimit {
    rate: u32,
    tokens: u32,
    last: u32,
}

impl RateLimit {
    /// A full bucket.
    pub fn new(rate: u32) -> Self {
        Self { rate, tokens: rate, last: 0 }
    }

    /// Changes the rate; a fuller bucket than the new rate allows is cut.
    pub fn set_rate(&mut self, rate: u32) {
        self.rate = rate;
        self.tokens = self.tokens.min(rate);
    }

    /// Takes a token, or says no.
    #[inline]
    pub fn take(&mut self, now: u32) -> bool {
        if now != self.last {
            let earned = u64::from(now.saturating_sub(self.last)) * u64::from(self.rate);
            let earned = (earned / u64::from(TICKS_PER_SECOND)).max(1).min(u64::from(self.rate));
            self.tokens = self.tokens.saturating_add(earned as u32).min(self.rate);
            self.last = now;
        }
        if self.tokens == 0 {
            return false;
        }
        self.tokens -= 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_brings_a_seconds_worth() {
        let mut limit = RateLimit::new(100);
        let take_all = |limit: &mut RateLimit, now| (0..1_000).filter(|_| limit.take(now)).count();
        assert_eq!(take_all(&mut limit, 0), 100);
        assert_eq!(take_all(&mut limit, 1), 25);
        assert_eq!(take_all(&mut limit, 1), 0);
        assert_eq!(take_all(&mut limit, 1_000), 100);
        limit.set_rate(0);
        assert_eq!(take_all(&mut limit, 2_000), 0);
    }
}
