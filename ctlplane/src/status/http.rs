//! What is there to tell of HTTP? Listeners and backends as they count, breakers and the access log as the daemon knows them.

use serde::{Deserialize, Serialize};
use weir_abi::columns::{CAUSE_GROUP, HttpBackendColumn, HttpColumn, HttpWorkerColumn};
use weir_abi::events::BreakerState;
use weir_abi::record::{Application, ListenerRecord};

use super::{Backend, Columns, Status, row};
use crate::access_log::{AccessLog, BackendBreaker, Report};
use crate::counters::Counters;

/// HTTP of the whole instance.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Http {
    /// [`HttpWorkerColumn`]s, all workers: memory, and what was told to the daemon.
    pub counters: Columns,
    /// The access log; absent while ctlplane, which writes it, is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log: Option<Report>,
}

/// What a listener counts of HTTP.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListenerHttp {
    /// [`HttpColumn`]s.
    pub counters: Columns,
    /// Responses and ends of the proxy's own making by their cause; those that there were.
    pub causes: Columns,
}

/// What a backend counts of HTTP.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct BackendHttp {
    /// [`HttpBackendColumn`]s.
    pub counters: Columns,
    /// open, half-open or closed: the worst of its workers' breakers.
    pub breaker: String,
    /// Its workers' breakers that have changed since ctlplane's start, which alone knows why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<BackendBreaker>,
}

fn of(columns: &Columns, name: &str) -> u64 {
    columns.get(name).copied().unwrap_or(0)
}

fn is_used(columns: &Columns) -> bool {
    columns.values().any(|value| *value != 0)
}

/// HTTP of a listener; `None` where it speaks none.
pub(super) fn listener(record: &ListenerRecord, counters: Option<&Counters>) -> Option<ListenerHttp> {
    if record.application != Application::Http as u8 {
        return None;
    }
    let mut causes = row(counters, CAUSE_GROUP, record.index);
    causes.retain(|_, count| *count > 0);
    Some(ListenerHttp { counters: row(counters, HttpColumn::GROUP, record.index), causes })
}

/// HTTP of a backend, by its counters.
pub(super) fn backend(counters: Columns) -> BackendHttp {
    let breaker = if of(&counters, HttpBackendColumn::BreakerOpen.name()) > 0 {
        BreakerState::Open
    } else if of(&counters, HttpBackendColumn::BreakerHalfOpen.name()) > 0 {
        BreakerState::HalfOpen
    } else {
        BreakerState::Closed
    };
    BackendHttp { counters, breaker: breaker.name().to_owned(), changes: None }
}

impl Status {
    /// What the counters of all workers say; nothing where no listener speaks HTTP and nothing is left of one.
    pub(super) fn read_http(&mut self, counters: Option<&Counters>) {
        let row = row(counters, HttpWorkerColumn::GROUP, 0);
        let speaks = self.listeners.iter().any(|listener| listener.http.is_some());
        if speaks || of(&row, HttpWorkerColumn::EventsWritten.name()) > 0 {
            self.http = Some(Http { counters: row, access_log: None });
        }
        // pools that only other listeners use
        for backend in self.pools.iter_mut().flat_map(|pool| &mut pool.backends) {
            backend.http = backend.http.take().filter(|http| speaks || is_used(&http.counters));
        }
    }

    /// Adds what only the daemon knows.
    pub fn add_events(&mut self, log: &AccessLog) {
        let report = log.report();
        if self.http.is_some() || report.target.is_some() {
            self.http.get_or_insert_default().access_log = Some(report);
        }
        let backends = self.pools.iter_mut().flat_map(|pool| &mut pool.backends);
        for Backend { http, index, .. } in backends {
            if let Some(http) = http {
                http.changes = log.breaker(*index);
            }
        }
    }

    /// What is wrong with HTTP, each with what to do.
    pub(super) fn http_complaints(&self, list: &mut Vec<String>) {
        let Some(report) = self.http.as_ref().and_then(|http| http.access_log.as_ref()) else { return };
        if let Some(error) = &report.error {
            list.push(format!(
                "access log: {error}: make room or mend the path; lines are dropped until then"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_state_of_any_worker_is_told() {
        let with = |open: u64, half: u64| {
            let columns = [("breaker_open".to_owned(), open), ("breaker_half_open".to_owned(), half)];
            backend(columns.into_iter().collect()).breaker
        };
        assert_eq!([with(0, 0), with(1, 1), with(0, 2)], ["closed", "open", "half-open"]);
    }

    #[test]
    fn a_log_that_can_not_be_written_is_a_complaint() {
        let mut status = Status::default();
        let mut list = Vec::new();
        status.http_complaints(&mut list);
        let error = Some("cannot write /x: no space".to_owned());
        status.http =
            Some(Http { access_log: Some(Report { error, ..Report::default() }), ..Http::default() });
        status.http_complaints(&mut list);
        assert!(matches!(list.as_slice(), [text] if text.contains("cannot write /x")), "{list:?}");
    }
}
