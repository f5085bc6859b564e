//! May this request be tried once more? Retries are a share of what a pool is asked, so that a pool that fails isn't asked even more.
//!
//! Of the requests of the last [`SECONDS`] seconds so many percent may be retries; so many retries per second are allowed in any case.
//! Counted by each worker for itself.

use weir_tcp::Instant;

use super::rules::Retry;

/// Seconds that are looked back on.
pub const SECONDS: usize = 10;

/// What happened in one second.
#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    requests: u32,
    retries: u32,
}

/// The budget of a pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    seconds: [Second; SECONDS],
}

impl Budget {
    fn second(&mut self, number: u64) -> Option<&mut Second> {
        let second = self.seconds.get_mut((number % SECONDS as u64) as usize)?;
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        Some(second)
    }

    /// A request begins, its first attempt.
    #[inline]
    pub fn request(&mut self, now: Instant) {
        if let Some(second) = self.second(number_of(now)) {
            second.requests = second.requests.saturating_add(1);
        }
    }

    /// Whether a retry is allowed; it counts if it is.
    pub fn retry(&mut self, rules: &Retry, now: Instant) -> bool {
        let number = number_of(now);
        let recent = self.seconds.iter().filter(|second| second.number + SECONDS as u64 > number);
        let (requests, retries) = recent.fold((0u64, 0u64), |(requests, retries), second| {
            (requests + u64::from(second.requests), retries + u64::from(second.retries))
        });
        let Some(second) = self.second(number) else { return false };
        let is_allowed = second.retries < u32::from(rules.budget_floor)
            || (retries + 1) * 100 <= requests * u64::from(rules.budget_percent);
        second.retries = second.retries.saturating_add(u32::from(is_allowed));
        is_allowed
    }
}

/// Seconds begin with [`SECONDS`], so that what was never used is past.
const fn number_of(now: Instant) -> u64 {
    now.0 / 1_000_000 + SECONDS as u64
}

/// The budgets of all pools, by index.
#[derive(Debug, Default)]
pub struct Budgets {
    pools: Vec<Budget>,
}

impl Budgets {
    /// Makes room for so many pools, so that none has to be made for a request.
    pub fn adopt(&mut self, pools: usize) {
        if self.pools.len() < pools {
            self.pools.resize(pools, Budget::default());
        }
    }

    /// A request begins, its first attempt.
    #[inline]
    pub fn request(&mut self, pool: u32, now: Instant) {
        if let Some(budget) = self.pools.get_mut(pool as usize) {
            budget.request(now);
        }
    }

    /// Whether a retry is allowed; it counts if it is. Never for pools that were not announced.
    pub fn retry(&mut self, pool: u32, rules: &Retry, now: Instant) -> bool {
        self.pools.get_mut(pool as usize).is_some_and(|budget| budget.retry(rules, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(milliseconds: u64) -> Instant {
        Instant(milliseconds * 1_000)
    }

    fn rules(budget_percent: u8, budget_floor: u16) -> Retry {
        Retry { budget_percent, budget_floor, ..Retry::default() }
    }

    #[test]
    fn a_share_of_the_last_seconds_may_be_retries() {
        let mut budget = Budget::default();
        for _ in 0..100 {
            budget.request(at(0));
        }
        let rules = rules(20, 0);
        assert_eq!((0..50).filter(|_| budget.retry(&rules, at(9_999))).count(), 20);
        // the second of the requests is past, that of the retries is not
        assert!(!budget.retry(&rules, at(10_000)));
        for _ in 0..200 {
            budget.request(at(10_000));
        }
        assert_eq!((0..50).filter(|_| budget.retry(&rules, at(10_500))).count(), 20);
    }

    #[test]
    fn a_few_are_always_allowed() {
        let mut budgets = Budgets::default();
        budgets.adopt(3);
        let rules = rules(0, 3);
        assert_eq!((0..9).filter(|_| budgets.retry(2, &rules, at(500))).count(), 3);
        assert_eq!((0..9).filter(|_| budgets.retry(2, &rules, at(1_000))).count(), 3);
        assert_eq!((0..9).filter(|_| budgets.retry(1, &rules, at(1_000))).count(), 3);
        assert!(!budgets.retry(3, &rules, at(0)));
        budgets.adopt(2);
        assert!(!budgets.retry(2, &rules, at(1_000)));
    }

    proptest! {
        /// Whatever comes when: within ten seconds no more than the share of requests and the floor of each second.
        #[test]
        fn no_more_than_allowed(
            steps in proptest::collection::vec((any::<bool>(), 0u64..400), 0..500),
            percent in 0u8..=100,
            floor in 0u16..4,
        ) {
            let mut budget = Budget::default();
            let mut now = 0;
            let (mut requests, mut retries): (Vec<u64>, Vec<u64>) = Default::default();
            for (is_request, wait) in steps {
                now += wait;
                if is_request {
                    budget.request(at(now));
                    requests.push(now);
                } else if budget.retry(&rules(percent, floor), at(now)) {
                    retries.push(now);
                    let within = |times: &[u64]| times.iter().filter(|time| **time / 1_000 + 10 > now / 1_000).count();
                    let second = retries.iter().filter(|time| **time / 1_000 == now / 1_000).count();
                    let share = within(&requests) * usize::from(percent) / 100;
                    prop_assert!(within(&retries) <= share || second <= usize::from(floor));
                }
            }
        }
    }
}
