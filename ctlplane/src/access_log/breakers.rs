//! In which state are the breakers of each backend, since when and why? As their workers told last.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use weir_abi::events::{Breaker, BreakerReason, BreakerState};

use super::names::Names;

/// Most breakers that are kept: what tells more is no dataplane.
const MOST: usize = 1 << 18;

/// A backend's breakers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendBreaker {
    /// closed, half-open or open: the worst of its workers'.
    pub state: String,
    /// Why the last change happened to that state.
    pub reason: String,
    /// When, in Unix milliseconds.
    pub since_unix_ms: u64,
    /// Each worker's.
    pub workers: Vec<WorkerBreaker>,
}

/// A worker's breaker of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerBreaker {
    /// Which worker.
    pub worker: u16,
    /// closed, half-open or open.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Since when, in Unix milliseconds.
    pub since_unix_ms: u64,
    /// Changes that were told since the daemon's start.
    pub changes: u64,
    /// Failures in a row at the change.
    pub consecutive: u32,
    /// Requests of the window at the change.
    pub requests: u32,
    /// Failures of it.
    pub failures: u32,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    change: Breaker,
    changes: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Breakers {
    /// By backend, then by worker.
    all: BTreeMap<(u32, u16), Last>,
}

impl Breakers {
    /// Takes a change in, and logs it.
    pub(super) fn changed(&mut self, change: Breaker, names: &Names) {
        let Breaker { stamp, backend, state, .. } = change;
        let worker = stamp.worker;
        let named = names.backend(backend);
        let name = named.map_or_else(|| backend.to_string(), |(pool, backend)| format!("{pool}/{backend}"));
        let text = format!("breaker of {name} at worker {worker}: {}: {}", state.name(), why(&change));
        match state {
            BreakerState::Open => tracing::warn!("{text}"),
            BreakerState::Closed | BreakerState::HalfOpen => tracing::info!("{text}"),
        }
        let is_known = self.all.contains_key(&(backend, worker));
        if is_known || self.all.len() < MOST {
            let last = self.all.entry((backend, worker)).or_insert(Last { change, changes: 0 });
            *last = Last { change, changes: last.changes + 1 };
        }
    }

    /// The worker's process is another: its breakers are closed and have no history.
    pub(super) fn forget(&mut self, worker: u16) {
        self.all.retain(|(_, of), _| *of != worker);
    }

    /// A backend's.
    pub(super) fn of(&self, backend: u32) -> Option<BackendBreaker> {
        let all = self.all.range((backend, 0)..=(backend, u16::MAX)).map(|(_, last)| last);
        let badness = |state: BreakerState| match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open => 2,
        };
        let workers = all.clone().map(|Last { change, changes }| WorkerBreaker {
            worker: change.stamp.worker,
            state: change.state.name().to_owned(),
            reason: change.reason.name().to_owned(),
            since_unix_ms: change.stamp.unix_us / 1_000,
            changes: *changes,
            consecutive: change.consecutive,
            requests: change.requests,
            failures: change.failures,
        });
        // of several in the worst state the one that is longest in it
        let worst = all
            .clone()
            .max_by_key(|last| (badness(last.change.state), std::cmp::Reverse(last.change.stamp.unix_us)))?;
        Some(BackendBreaker {
            state: worst.change.state.name().to_owned(),
            reason: worst.change.reason.name().to_owned(),
            since_unix_ms: worst.change.stamp.unix_us / 1_000,
            workers: workers.collect(),
        })
    }
}

/// Why a breaker has changed, with the counts that made it: others say nothing, and where no rule has a window there are none.
fn why(change: &Breaker) -> String {
    let Breaker { reason, consecutive, requests, failures, .. } = change;
    let name = reason.name();
    match reason {
        BreakerReason::Consecutive => format!("{name} ({consecutive})"),
        BreakerReason::Ratio => {
            format!("{name} ({failures} of the {requests} requests of the window failed)")
        }
        BreakerReason::Latency => {
            format!("{name} (on average, {} answers of the window)", requests.saturating_sub(*failures))
        }
        BreakerReason::TestFailed if *consecutive > 0 => format!("{name} ({consecutive} failures in a row)"),
        BreakerReason::Elapsed | BreakerReason::TestSucceeded | BreakerReason::TestFailed => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_abi::events::Stamp;

    fn change(worker: u16, backend: u32, state: BreakerState, unix_us: u64) -> Breaker {
        let stamp = Stamp { unix_us, generation: 1, worker };
        let reason = BreakerReason::Consecutive;
        Breaker { stamp, backend, state, reason, consecutive: 5, requests: 9, failures: 6 }
    }

    #[test]
    fn only_counts_that_count_are_told() {
        let of = |reason| why(&Breaker { reason, ..change(0, 3, BreakerState::Open, 1) });
        assert_eq!(of(BreakerReason::Consecutive), "failures in a row (5)");
        assert!(of(BreakerReason::Ratio).ends_with("(6 of the 9 requests of the window failed)"));
        assert!(of(BreakerReason::Latency).ends_with("(on average, 3 answers of the window)"));
        assert!(of(BreakerReason::TestFailed).ends_with("(5 failures in a row)"));
        for reason in [BreakerReason::Elapsed, BreakerReason::TestSucceeded] {
            assert_eq!(of(reason), reason.name());
        }
    }

    #[test]
    fn the_worst_of_the_workers_is_the_backends() {
        let (mut breakers, names) = (Breakers::default(), Names::sample());
        breakers.changed(change(0, 3, BreakerState::Open, 5_000), &names);
        breakers.changed(change(1, 3, BreakerState::Open, 4_000), &names);
        breakers.changed(change(2, 3, BreakerState::Closed, 1_000), &names);
        breakers.changed(change(0, 4, BreakerState::HalfOpen, 9_000), &names);
        let found = breakers.of(3).unwrap();
        assert_eq!((found.state.as_str(), found.since_unix_ms, found.workers.len()), ("open", 4, 3));
        assert_eq!(found.reason, "failures in a row");
        assert_eq!(breakers.of(4).unwrap().state, "half-open");
        assert_eq!(breakers.of(5), None);
        breakers.changed(change(0, 3, BreakerState::Closed, 6_000), &names);
        assert_eq!(breakers.of(3).unwrap().workers[0].changes, 2);
        breakers.forget(1);
        let found = breakers.of(3).unwrap();
        assert_eq!((found.state.as_str(), found.workers.len()), ("closed", 2));
    }
}
