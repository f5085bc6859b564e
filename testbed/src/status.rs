//! `weir status --json` as the testbed reads it: the fields that tests rely on, everything else ignored.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Counters by name.
pub(crate) type Counters = BTreeMap<String, u64>;

/// The whole.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Status {
    /// Published generation.
    pub(crate) generation: u64,
    /// Generation that each worker acknowledged.
    pub(crate) acked: Vec<u64>,
    /// The packet process.
    pub(crate) dataplane: ProcessStatus,
    /// The control process.
    pub(crate) ctlplane: ProcessStatus,
    /// Ports.
    #[serde(default)]
    pub(crate) ports: Vec<Counted>,
    /// Listeners.
    #[serde(default)]
    pub(crate) listeners: Vec<Counted>,
    /// Pools.
    #[serde(default)]
    pub(crate) pools: Vec<Pool>,
    /// Terminated TCP of all workers.
    #[serde(default)]
    pub(crate) tcp: Option<Tcp>,
    /// HTTP of all workers.
    #[serde(default)]
    pub(crate) http: Option<Http>,
    /// Workers.
    #[serde(default)]
    pub(crate) workers: Vec<Worker>,
    /// Dropped packets by reason.
    #[serde(default)]
    pub(crate) drops: Counters,
}

/// Terminated TCP.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Tcp {
    /// Its counters and gauges.
    pub(crate) counters: Counters,
    /// Bytes that connections may hold.
    pub(crate) memory_ceiling: u64,
}

/// HTTP: of the instance or of a listener, with causes, or of a backend, with its breaker.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Http {
    /// Its counters and gauges.
    #[serde(default)]
    pub(crate) counters: Counters,
    /// Responses and ends of Weir's own making, by cause.
    #[serde(default)]
    pub(crate) causes: Counters,
    /// `closed`, `open` or `half-open`.
    #[serde(default)]
    pub(crate) breaker: String,
}

/// One process.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ProcessStatus {
    /// State in a word.
    pub(crate) state: String,
    /// Why the dataplane refused what was published.
    #[serde(default)]
    pub(crate) refusal: Option<String>,
    /// Which generation that was.
    #[serde(default)]
    pub(crate) refused_generation: Option<u64>,
}

/// Something with a name and counters.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Counted {
    /// Its name.
    pub(crate) name: String,
    /// Its counters.
    #[serde(default)]
    pub(crate) counters: Counters,
    /// Of a listener: what is counted of proxied connections.
    #[serde(default)]
    pub(crate) proxy: Counters,
    /// Of a listener: HTTP.
    #[serde(default)]
    pub(crate) http: Option<Http>,
    /// Of a port: its way to the kernel.
    #[serde(default)]
    pub(crate) exception: Option<Exception>,
}

/// A port's way to the kernel.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Exception {
    /// Whether the dataplane has the interface.
    pub(crate) attached: bool,
    /// What the control process says of its addresses and routes.
    #[serde(default)]
    pub(crate) kernel: Option<String>,
    /// Its counters.
    #[serde(default)]
    pub(crate) counters: Counters,
}

impl Exception {
    /// A counter.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

/// A pool.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Pool {
    /// Its name.
    pub(crate) name: String,
    /// Its backends.
    pub(crate) backends: Vec<Backend>,
}

/// A backend.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Backend {
    /// Its name.
    pub(crate) name: String,
    /// Its weight.
    pub(crate) weight: u64,
    /// ready, drain, maint or removed.
    #[serde(default)]
    pub(crate) state: String,
    /// Its counters.
    #[serde(default)]
    pub(crate) counters: Counters,
    /// What is counted of proxied connections to it.
    #[serde(default)]
    pub(crate) upstream: Counters,
    /// HTTP.
    #[serde(default)]
    pub(crate) http: Option<Http>,
}

/// A worker.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Worker {
    /// Its number.
    pub(crate) index: u64,
    /// Its counters.
    #[serde(default)]
    pub(crate) counters: Counters,
    /// Its terminated TCP.
    #[serde(default)]
    pub(crate) tcp: Counters,
    /// Left side minus right side of the conservation law: zero when nothing is in flight.
    #[serde(default)]
    pub(crate) balance: i64,
}

impl Status {
    /// Whether every worker runs what was published.
    pub(crate) fn serving(&self) -> bool {
        self.dataplane.state.eq_ignore_ascii_case("running")
            && self.generation > 0
            && !self.acked.is_empty()
            && self.acked.iter().all(|&acked| acked == self.generation)
    }

    /// Why the dataplane does not take what is published now; an older refusal is history.
    pub(crate) fn refusal(&self) -> Option<&str> {
        let current = self.dataplane.refused_generation.is_none_or(|refused| refused == self.generation);
        self.dataplane.refusal.as_deref().filter(|_| current)
    }

    /// One line for error messages.
    pub(crate) fn summary(&self) -> String {
        format!(
            "dataplane {}, ctlplane {}, generation {} acked {:?}",
            self.dataplane.state, self.ctlplane.state, self.generation, self.acked
        )
    }

    /// What is not at rest, in words; `None` when everything is.
    pub(crate) fn imbalance(&self) -> Option<String> {
        for worker in &self.workers {
            let held = worker.counters.get("held").copied().unwrap_or(0);
            if worker.balance != 0 {
                return Some(format!(
                    "worker {}: balance {} ({})",
                    worker.index,
                    worker.balance,
                    nonzero(&worker.counters)
                ));
            }
            let owned = worker.counters.get("buffers_owned").copied().unwrap_or(0) as i64;
            if owned != 0 || held != 0 {
                return Some(format!("worker {}: {owned} buffers owned, {held} held", worker.index));
            }
        }
        None
    }

    /// A counter summed over the workers.
    pub(crate) fn worker_sum(&self, name: &str) -> u64 {
        self.workers
            .iter()
            .filter_map(|worker| worker.counters.get(name))
            .fold(0, |sum, &value| sum.wrapping_add(value))
    }

    /// A counter of one port; 0 where there is none.
    pub(crate) fn port(&self, name: &str, counter: &str) -> u64 {
        counter_of(&self.ports, name, counter)
    }

    /// A counter of one listener; 0 where there is none.
    pub(crate) fn listener(&self, name: &str, counter: &str) -> u64 {
        counter_of(&self.listeners, name, counter)
    }

    /// A counter of terminated TCP, all workers; 0 where there is none.
    pub(crate) fn tcp(&self, counter: &str) -> u64 {
        self.tcp.as_ref().and_then(|tcp| tcp.counters.get(counter)).copied().unwrap_or(0)
    }

    /// A counter of a listener's proxied connections; 0 where there is none.
    pub(crate) fn proxy(&self, listener: &str, counter: &str) -> u64 {
        let row = self.listeners.iter().find(|row| row.name == listener);
        row.and_then(|row| row.proxy.get(counter)).copied().unwrap_or(0)
    }

    /// A counter of proxied connections to a pool's backends, summed over those whose name is taken.
    pub(crate) fn upstream(&self, pool: &str, counter: &str, takes: impl Fn(&str) -> bool) -> u64 {
        let pool = self.pools.iter().find(|other| other.name == pool);
        let backends =
            pool.into_iter().flat_map(|pool| &pool.backends).filter(|backend| takes(&backend.name));
        backends.filter_map(|backend| backend.upstream.get(counter)).sum()
    }

    /// A counter or gauge of a listener's HTTP; 0 where there is none.
    pub(crate) fn http(&self, listener: &str, counter: &str) -> u64 {
        self.http_of(listener).and_then(|http| http.counters.get(counter)).copied().unwrap_or(0)
    }

    /// How often Weir answered by itself, or ended an exchange, for a cause.
    pub(crate) fn cause(&self, listener: &str, cause: &str) -> u64 {
        self.http_of(listener).and_then(|http| http.causes.get(cause)).copied().unwrap_or(0)
    }

    /// All causes of a listener that there were, in words.
    pub(crate) fn causes_in_words(&self, listener: &str) -> String {
        self.http_of(listener).map_or_else(String::new, |http| nonzero(&http.causes))
    }

    fn http_of(&self, listener: &str) -> Option<&Http> {
        self.listeners.iter().find(|row| row.name == listener)?.http.as_ref()
    }

    /// A counter or gauge of HTTP of a pool's backends, summed over those whose name is taken.
    pub(crate) fn backend_http(&self, pool: &str, counter: &str, takes: impl Fn(&str) -> bool) -> u64 {
        let pool = self.pools.iter().find(|other| other.name == pool);
        let backends =
            pool.into_iter().flat_map(|pool| &pool.backends).filter(|backend| takes(&backend.name));
        backends.filter_map(|backend| backend.http.as_ref()?.counters.get(counter)).sum()
    }

    /// The state of a backend's breaker.
    pub(crate) fn breaker(&self, pool: &str, name: &str) -> &str {
        let http = self.backend(pool, name).and_then(|backend| backend.http.as_ref());
        http.map_or("", |http| http.breaker.as_str())
    }

    /// What is left of terminated connections, in words; `None` when nothing is but TIME-WAIT, which holds no memory.
    pub(crate) fn connections_left(&self) -> Option<String> {
        const STATES: [&str; 9] = [
            "syn_sent",
            "half_open",
            "established",
            "fin_wait_1",
            "fin_wait_2",
            "close_wait",
            "closing",
            "last_ack",
            "memory_pinned",
        ];
        let mut left: Vec<String> = STATES
            .into_iter()
            .filter(|state| self.tcp(state) > 0)
            .map(|state| format!("{state} {}", self.tcp(state)))
            .collect();
        for listener in &self.listeners {
            for gauge in ["connections_active", "queued"] {
                let value = self.proxy(&listener.name, gauge);
                if value > 0 {
                    left.push(format!("{} {gauge} {value}", listener.name));
                }
            }
            for gauge in ["exchanges", "idle_clients", "tunnels"] {
                let value = self.http(&listener.name, gauge);
                if value > 0 {
                    left.push(format!("{} {gauge} {value}", listener.name));
                }
            }
        }
        for backend in self.pools.iter().flat_map(|pool| &pool.backends) {
            let active = backend.upstream.get("active").copied().unwrap_or(0);
            if active > 0 {
                left.push(format!("{} active {active}", backend.name));
            }
        }
        (!left.is_empty()).then(|| left.join(", "))
    }

    /// One backend.
    pub(crate) fn backend(&self, pool: &str, name: &str) -> Option<&Backend> {
        self.pools.iter().find(|other| other.name == pool)?.backends.iter().find(|other| other.name == name)
    }

    /// Dropped packets of one reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.drops.get(reason).copied().unwrap_or(0)
    }

    /// Drop reasons that counted something, as words.
    pub(crate) fn drops_in_words(&self) -> String {
        nonzero(&self.drops)
    }
}

fn counter_of(rows: &[Counted], name: &str, counter: &str) -> u64 {
    rows.iter().find(|row| row.name == name).and_then(|row| row.counters.get(counter)).copied().unwrap_or(0)
}

fn nonzero(counters: &Counters) -> String {
    let words: Vec<String> = counters
        .iter()
        .filter(|(_, value)| **value != 0)
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"schema":1,"instance":"x","generation":3,"acked":[3,3],
        "dataplane":{"state":"running","pid":1,"workers":2},"ctlplane":{"state":"running","pid":2},
        "ports":[{"name":"wan","device":"af_xdp:wan","counters":{"rx_packets":7}}],
        "listeners":[],"pools":[{"name":"app","algorithm":"maglev","backends":[{"name":"app-1","index":4,
        "address":"198.18.1.11:8080","weight":100,"state":"ready","down":false,"slot_share":1.0,"counters":{}}]}],
        "workers":[{"index":0,"counters":{"rx_packets":7,"held":0},"balance":0},
        {"index":1,"counters":{"rx_packets":2},"balance":-1}],"drops":{"ttl":0,"no_listener":2},"drift":false}"#;

    #[test]
    fn the_agreed_shape_is_read() {
        let mut status: Status = serde_json::from_str(TEXT).unwrap();
        assert!(status.serving());
        assert_eq!((status.worker_sum("rx_packets"), status.port("wan", "rx_packets")), (9, 7));
        assert_eq!(status.backend("app", "app-1").unwrap().weight, 100);
        assert_eq!(status.drops_in_words(), "no_listener 2");
        assert!(status.imbalance().unwrap().contains("balance -1"));
        status.workers[1].balance = 0;
        assert_eq!(status.imbalance(), None);
        status.workers[0].counters.insert("buffers_owned".into(), 2);
        assert!(status.imbalance().unwrap().contains("2 buffers"));
        status.acked[1] = 2;
        assert!(!status.serving());
    }
}
