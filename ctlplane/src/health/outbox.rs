//! How do verdicts come from the probing thread to the engine? The latest of each backend waits here; bounded by the number of backends.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use super::check::BackendName;
use crate::engine::HealthChange;

/// Verdicts that the engine has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<BTreeMap<BackendName, (bool, String)>>,
    news: Notify,
}

impl Outbox {
    /// Says what a backend is; what was said of it before and not taken is forgotten.
    pub(super) fn put(&self, name: BackendName, down: bool, reason: String) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(name, (down, reason));
        self.news.notify_one();
    }

    /// Gives back what could not be put in force, unless there is newer.
    pub(super) fn give_back(&self, changes: Vec<HealthChange>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for HealthChange { pool, backend, down, reason } in changes {
            let name = BackendName { pool: pool.into(), backend: backend.into() };
            waiting.entry(name).or_insert((down, reason));
        }
        drop(waiting);
        self.news.notify_one();
    }

    /// All that waits, without waiting.
    pub(super) fn take(&self) -> Vec<HealthChange> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let change = |(name, (down, reason)): (BackendName, (bool, String))| HealthChange {
            pool: name.pool.to_string(),
            backend: name.backend.to_string(),
            down,
            reason,
        };
        waiting.into_iter().map(change).collect()
    }

    /// Ends when something was put since this was last asked.
    pub(super) async fn wait(&self) {
        self.news.notified().await;
    }
}
