//! What does health do to what is in force?

use super::{Change, Engine, EngineError, HealthChange};
use crate::compile;
use crate::compile::down::Down;
use crate::state::State;

impl Engine {
    /// Takes over what health found, all of it as one generation. It is in force until the daemon ends and is never kept;
    /// what is said of a backend that is not configured has no effect.
    pub fn set_health(&mut self, changes: &[HealthChange]) -> Result<Change, EngineError> {
        let before = self.down.clone();
        for HealthChange { pool, backend, down, reason } in changes {
            let of_pool = self.down.entry(pool.clone()).or_default();
            let was = if *down {
                of_pool.insert(backend.clone(), reason.clone()).is_some()
            } else {
                of_pool.remove(backend).is_some()
            };
            if was != *down {
                let word = if *down { "down" } else { "up" };
                tracing::info!("{pool}/{backend} is {word}: {reason}");
            }
        }
        self.down.retain(|_, backends| !backends.is_empty());
        self.publish_again().inspect_err(|_| self.down = before)
    }

    /// What health found: reasons by pool and backend.
    pub fn down(&self) -> &Down {
        &self.down
    }

    /// Compiles the state as it is and puts that in force where it differs.
    fn publish_again(&mut self) -> Result<Change, EngineError> {
        let State { overrides, indices, .. } = &self.state;
        let compiled = compile::compile(&self.model, overrides, &self.down, indices, &mut self.cache)?;
        let published = if self.snapshots.needs_nothing(&compiled) {
            None
        } else {
            // nothing of it has to survive: no disk is waited for
            let generation = self.state.generation.max(self.snapshots.published()) + 1;
            let published = self.snapshots.publish(&compiled, generation)?;
            self.state.generation = generation;
            Some(published)
        };
        Ok(Change { generation: self.generation(), published, ..Change::default() })
    }
}
