//! How is one backend changed at run time? Without a text: a weight costs a record, a slot table and a root.

use std::collections::BTreeSet;

use weir_abi::record::AdminState;

use super::{BackendChange, Change, Engine, EngineError};
use crate::compile;
use crate::model::{Backend, Model, Pool};
use crate::state::{Override, Overrides};

/// A backend by its pool and name, and what to set.
pub(super) type BackendChanges = (String, String, Vec<BackendChange>);

impl Engine {
    /// Changes one backend at run time.
    pub fn set_backend(
        &mut self,
        pool: &str,
        backend: &str,
        changes: &[BackendChange],
        force: bool,
    ) -> Result<Change, EngineError> {
        self.set_backends(&[(pool.to_owned(), backend.to_owned(), changes.to_vec())], force)
    }

    /// Changes some backends at run time, all at once.
    pub(super) fn set_backends(
        &mut self,
        list: &[BackendChanges],
        force: bool,
    ) -> Result<Change, EngineError> {
        let mut state = self.state.clone();
        for (pool, backend, changes) in list {
            let configured = find(&self.model, pool, backend);
            let configured = configured.ok_or_else(|| self.unknown_backend(pool, backend))?;
            let entry = state.overrides.entry(pool.clone()).or_default().entry(backend.clone()).or_default();
            for change in changes {
                match *change {
                    BackendChange::Weight(weight) => {
                        entry.weight = Some(weight).filter(|weight| *weight != configured.weight);
                    }
                    BackendChange::State(admin) => {
                        entry.state =
                            Some(admin).filter(|admin| AdminState::from(*admin) != configured.state);
                    }
                }
            }
            prune(&mut state.overrides, pool);
        }
        if !force {
            let touched: BTreeSet<&str> = list.iter().map(|(pool, ..)| pool.as_str()).collect();
            self.leaves_somebody(&self.model, &state.overrides, &touched)?;
        }
        let compiled =
            compile::compile(&self.model, &state.overrides, &self.down, &state.indices, &mut self.cache)?;
        let published = self.put_in_force(state, self.model.clone(), &compiled)?;
        Ok(self.changed(published))
    }

    /// Refuses where a pool of these would lose the last backend that takes new flows.
    pub(super) fn leaves_somebody(
        &self,
        model: &Model,
        overrides: &Overrides,
        pools: &BTreeSet<&str>,
    ) -> Result<(), EngineError> {
        for pool in pools {
            let before = takers(&self.model, &self.state.overrides, pool);
            if takers(model, overrides, pool).is_empty()
                && let Some(last) = before.first()
                && model.pools.iter().any(|left| left.name == *pool)
            {
                let backend = (*last).to_owned();
                return Err(EngineError::LastUsable { pool: (*pool).to_owned(), backend });
            }
        }
        Ok(())
    }

    fn unknown_backend(&self, pool: &str, backend: &str) -> EngineError {
        let wanted = format!("{pool}/{backend}");
        let all: Vec<String> = self
            .model
            .pools
            .iter()
            .flat_map(|p| p.backends.iter().map(move |b| format!("{}/{}", p.name, b.name)))
            .collect();
        let suggestion = crate::diagnostic::closest(&wanted, all.iter().map(String::as_str));
        EngineError::UnknownBackend {
            pool: pool.to_owned(),
            backend: backend.to_owned(),
            suggestion: suggestion.map(str::to_owned),
        }
    }
}

fn pool_of<'a>(model: &'a Model, pool: &str) -> Option<&'a Pool> {
    model.pools.iter().find(|p| p.name == pool).map(AsRef::as_ref)
}

fn find<'a>(model: &'a Model, pool: &str, backend: &str) -> Option<&'a Backend> {
    pool_of(model, pool)?.backends.iter().find(|b| b.name == backend)
}

/// Backends of a pool that take new flows, as far as the operator decides.
fn takers<'a>(model: &'a Model, overrides: &Overrides, pool: &str) -> Vec<&'a str> {
    let set = overrides.get(pool);
    let all = pool_of(model, pool).map_or(&[][..], |pool| &pool.backends);
    let takes = |backend: &&Backend| {
        let (weight, admin) = compile::effective(backend, set.and_then(|set| set.get(&backend.name)));
        weight > 0 && admin == AdminState::Ready
    };
    all.iter().filter(takes).map(|backend| backend.name.as_str()).collect()
}

pub(super) fn prune(overrides: &mut Overrides, pool: &str) {
    if let Some(backends) = overrides.get_mut(pool) {
        backends.retain(|_, entry| *entry != Override::default());
        if backends.is_empty() {
            overrides.remove(pool);
        }
    }
}
