//! What does systemd learn of the dataplane? Readiness, a line of status, and that every worker moves (sd_notify(3)).
//!
//! A process whose management thread lives while a worker hangs is not alive: it stops telling so, and systemd's watchdog
//! starts it again. Without a supervisor that listens (`NOTIFY_SOCKET` is not set) nothing is sent.

use hugepages::generation::DataplaneState;
use sd_notify::NotifyState;

/// How often it is told. Half of systemd's `WatchdogSec=` at most.
const INTERVAL_MS: u64 = 1_000;
/// A worker that was not round its loop for so long hangs. Building its view takes it milliseconds.
const SILENT_NS: u64 = 3_000_000_000;

/// Tells the supervisor now and then.
#[derive(Debug, Default)]
pub(crate) struct Supervisor {
    next_ms: u64,
    is_ready: bool,
    /// When workers began to be watched: they get as long for their first round as for any.
    since_ns: u64,
    hung: Option<usize>,
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the supervisor could not be told: {error}");
    }
}

impl Supervisor {
    /// The process has started and does what it can: with or without a configuration.
    pub(crate) fn waiting(&mut self, now_ms: u64) {
        self.say(now_ms, true, "waiting for weir-ctlplane to publish a configuration");
    }

    /// It forwards packets by `generation`.
    pub(crate) fn running(
        &mut self,
        now_ms: u64,
        now_ns: u64,
        generation: u64,
        state: impl FnOnce() -> DataplaneState,
    ) {
        if now_ms < self.next_ms && self.is_ready {
            return;
        }
        if self.since_ns == 0 {
            self.since_ns = now_ns;
        }
        let workers = state().workers;
        let is_watched = now_ns - self.since_ns > SILENT_NS;
        let hung = workers.iter().position(|worker| is_watched && worker.is_silent(now_ns, SILENT_NS));
        if let Some(worker) = hung.filter(|_| hung != self.hung) {
            let seconds = SILENT_NS / 1_000_000_000;
            tracing::error!("worker {worker} was not round its loop for {seconds} s: it hangs or has no CPU");
        }
        self.hung = hung;
        let text = match hung {
            Some(worker) => format!("worker {worker} hangs"),
            None => format!("generation {generation}, {} workers", workers.len()),
        };
        self.say(now_ms, hung.is_none(), &text);
    }

    fn say(&mut self, now_ms: u64, is_alive: bool, text: &str) {
        if now_ms < self.next_ms && self.is_ready {
            return;
        }
        self.next_ms = now_ms + INTERVAL_MS;
        let status = NotifyState::Status(text);
        if !self.is_ready {
            self.is_ready = true;
            tell(&[NotifyState::Ready, status]);
        } else if is_alive {
            tell(&[NotifyState::Watchdog, status]);
        } else {
            tell(&[status]);
        }
    }

    /// The process ends by its own will.
    pub(crate) fn stopping() {
        tell(&[NotifyState::Stopping]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::generation::WorkerState;

    fn state(heartbeats: &[u64]) -> DataplaneState {
        let workers =
            heartbeats.iter().map(|&heartbeat_ns| WorkerState { acked_generation: 1, heartbeat_ns });
        DataplaneState {
            is_alive: true,
            state: None,
            pid: 1,
            start_epoch: 1,
            heartbeat_ns: 0,
            adopted_generation: 1,
            refusal: None,
            workers: workers.collect(),
        }
    }

    #[test]
    fn a_silent_worker_is_found_after_its_time_and_forgiven_when_it_moves() {
        let mut supervisor = Supervisor::default();
        let second = 1_000_000_000;
        let hung = |supervisor: &mut Supervisor, at: u64, beats: &[u64]| {
            supervisor.running(at * 1_000, at * second, 1, || state(beats));
            supervisor.hung
        };
        assert_eq!(hung(&mut supervisor, 10, &[0, 0]), None, "they have just started");
        assert_eq!(hung(&mut supervisor, 12, &[12 * second, 0]), None);
        assert_eq!(hung(&mut supervisor, 14, &[14 * second, 0]), Some(1), "its first round is overdue");
        assert_eq!(hung(&mut supervisor, 16, &[16 * second, 15 * second]), None);
        assert_eq!(hung(&mut supervisor, 20, &[16 * second, 20 * second]), Some(0));
    }

    #[test]
    fn it_is_looked_at_once_a_second() {
        let mut supervisor = Supervisor::default();
        let mut looks = 0;
        for at_ms in 0..2_500 {
            supervisor.running(at_ms, (at_ms + 1) * 1_000_000, 1, || {
                looks += 1;
                state(&[at_ms * 1_000_000])
            });
        }
        assert_eq!(looks, 3);
    }
}
