//! What does `weir health` tell of a backend?

use serde::{Deserialize, Serialize};

/// Answer to `GET /v1/health`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Listing {
    /// Version of the form.
    pub schema: u32,
    /// Backends that are probed, by name.
    pub backends: Vec<Row>,
}

/// A backend that is probed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its pool.
    pub pool: String,
    /// Its name.
    pub backend: String,
    /// tcp, http, https, udp or exec.
    pub check: String,
    /// Where probes go.
    pub address: String,
    /// direct, or tunnel.
    pub through: String,
    /// up, down or unknown.
    pub state: String,
    /// Why, in words.
    pub reason: String,
    /// Since when, in Unix milliseconds.
    pub since_unix_ms: u64,
    /// Whether the last results contradict the state.
    pub in_doubt: bool,
    /// What the last probe found: `good`, or what was wrong; empty before the first.
    pub last_result: String,
    /// When it ended, in Unix milliseconds; 0 before the first.
    pub last_unix_ms: u64,
    /// How long it took.
    pub last_us: u64,
    /// Until the next one; 0 while one is under way.
    pub next_ms: u64,
    /// Probes that ended.
    pub probes: u64,
    /// Of them, those that were not good.
    pub failures: u64,
}
