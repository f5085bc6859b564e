//! What does `weir status` tell of health checks? Only the daemon knows.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Status;
use crate::health::listing::Row;
use crate::units::about_time;

/// Most backends that are complained of one by one.
const MOST_TOLD: usize = 10;

/// What the checks say of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendHealth {
    /// up, down or unknown: what the checks say, whether or not it has an effect ([`super::Backend::down`]).
    pub state: String,
    /// Why.
    pub reason: String,
    /// Since when, in Unix milliseconds.
    pub since_unix_ms: u64,
}

impl Status {
    /// Adds what the probing thread told.
    pub(crate) fn add_health(&mut self, rows: Vec<Row>) {
        let mut by_name: HashMap<(String, String), BackendHealth> = rows
            .into_iter()
            .map(|row| {
                let Row { state, reason, since_unix_ms, .. } = row;
                ((row.pool, row.backend), BackendHealth { state, reason, since_unix_ms })
            })
            .collect();
        for pool in &mut self.pools {
            for backend in pool.backends.iter_mut().filter(|backend| backend.state != "removed") {
                backend.health = by_name.remove(&(pool.name.clone(), backend.name.clone()));
            }
        }
    }

    pub(super) fn health_complaints(&self, list: &mut Vec<String>) {
        let mut down = Vec::new();
        for pool in &self.pools {
            for backend in &pool.backends {
                let name = format!("{}/{}", pool.name, backend.name);
                match &backend.health {
                    Some(health) if health.state == "down" => {
                        let since = about_time(self.unix_ms.saturating_sub(health.since_unix_ms));
                        let used = if backend.down { "" } else { ", but used: too many of its pool are" };
                        down.push(format!("{name} is down for {since}: {}{used}", health.reason));
                    }
                    None if backend.down => down.push(format!("{name} is down")),
                    _ => {}
                }
            }
        }
        let more = down.len().saturating_sub(MOST_TOLD);
        list.extend(down.into_iter().take(MOST_TOLD));
        if more > 0 {
            list.push(format!("{more} more backends are down: see weir health"));
        }
    }
}
