//! What does health do to what is in force?

use std::time::{Duration, Instant};

use super::{Change, Engine, EngineError, HealthChange};
use crate::compile;
use crate::compile::down::Down;
use crate::state::State;

impl Engine {
    /// Takes over what health found, all of it as one generation. It is in force until the daemon ends and is never kept;
    /// what is said of a backend that is not configured has no effect.
    pub fn set_health(&mut self, changes: &[HealthChange]) -> Result<Change, EngineError> {
        let now = Instant::now();
        let before = self.down.clone();
        for HealthChange { pool, backend, down, reason } in changes {
            let has_changed = if *down {
                self.down.set_down(pool, backend, reason)
            } else {
                let of_pool = self.model.pools.iter().find(|of| of.name == *pool);
                let slow_start = of_pool.map_or(0, |of_pool| of_pool.slow_start_ms);
                self.down.set_up(pool, backend, Duration::from_millis(slow_start.into()), now)
            };
            if has_changed {
                let word = if *down { "down" } else { "up" };
                tracing::info!("{pool}/{backend} is {word}: {reason}");
            }
        }
        self.publish_again().inspect_err(|_| self.down = before)
    }

    /// What health found.
    pub fn down(&self) -> &Down {
        &self.down
    }

    /// Compiles the state as it is and puts that in force where it differs.
    pub(super) fn publish_again(&mut self) -> Result<Change, EngineError> {
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
