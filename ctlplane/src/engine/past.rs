//! What was in force before, and how does it come back?

use std::collections::BTreeMap;
use std::sync::Arc;

use super::apply::{Candidate, Manner};
use super::{Change, Engine, EngineError, check};
use crate::changes::difference::{self, Differences};
use crate::changes::{Origin, unix_ms};
use crate::history::{Entry, History, override_changes};
use crate::state::{Bodies, Confirm, Overrides, State};
use crate::validate::Files;

/// Most changes that wait for history's own file.
const MOST_PENDING: usize = 64;
/// How long until a change that could not be taken back is tried again.
const TRY_AGAIN_MS: u64 = 10_000;

impl Engine {
    /// What is remembered.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Brings history and state together: either may be lost or damaged, and neither stops the daemon.
    pub(super) fn take_over_history(&mut self, is_first: bool) {
        for entry in &self.state.pending {
            self.history.push(entry.clone());
        }
        if self.history.last() == self.state.number && self.state.number > 0 {
            return;
        }
        let how = if is_first { "first start" } else { "history begins anew" };
        let last = self.history.last();
        let number = self.state.number.max(last) + 1;
        let origin = Origin::daemon(&format!("{how} with {}", self.options.config.display()));
        // the very first is about to be published
        let generation = self.state.generation.max(self.snapshots.published()).max(1);
        let mut entry = Entry::new(number, generation, unix_ms(), origin);
        entry.config = self.store.hash_of(&self.state.config);
        entry.config_bytes = self.state.config.len() as u64;
        // an error is met again, and told, where the state is saved
        entry.bodies = self.store.keep_bodies(&self.state.bodies).unwrap_or_default();
        entry.all = Some(self.state.overrides.clone());
        let entry = Arc::new(entry);
        self.state.number = number;
        self.state.pending = vec![entry.clone()];
        if last + 1 == number {
            self.history.push(entry);
        } else {
            self.history.replace([entry]);
        }
    }

    /// Adds what `state` changes to what waits for history.
    pub(super) fn record(&mut self, state: &mut State) -> Result<(), EngineError> {
        let synced = self.history.synced();
        state.pending.retain(|entry| entry.number > synced);
        let old = &self.state;
        let is_same =
            state.config == old.config && state.bodies == old.bodies && state.overrides == old.overrides;
        if is_same && !self.restored {
            return Ok(());
        }
        if state.pending.len() >= MOST_PENDING {
            self.history.sync();
            let synced = self.history.synced();
            // history that can't be written is told in the status; what waits for it stays bounded
            let over = state.pending.len() + 1 - MOST_PENDING;
            state.pending.drain(..over);
            state.pending.retain(|entry| entry.number > synced);
        }
        let origin = self.origin.take().unwrap_or_else(|| Origin::daemon("weir-ctlplane"));
        state.number += 1;
        let mut entry = Entry::new(state.number, state.generation, unix_ms(), origin);
        entry.config = self.store.hash_of(&state.config);
        entry.config_bytes = state.config.len() as u64;
        entry.bodies = self.store.keep_bodies(&state.bodies)?;
        if self.restored {
            entry.all = Some(state.overrides.clone());
        } else {
            entry.overrides = override_changes(&self.state.overrides, &state.overrides);
        }
        let comment = entry.comment.as_ref().map_or(String::new(), |comment| format!(" ({comment})"));
        tracing::info!("change {} by {}: {}{comment}", entry.number, entry.who.name, entry.how);
        state.pending.push(Arc::new(entry));
        Ok(())
    }

    /// What no change waits for: history on disk, files that nobody needs.
    pub(super) fn tidy(&mut self) {
        self.history.sync();
        if self.store.is_untidy() {
            self.store.tidy(&self.state, &self.history);
        }
    }

    fn unknown_change(&self, number: u64) -> EngineError {
        let first = self.history.entries().next().map_or(0, |entry| entry.number);
        EngineError::UnknownChange { number, first, last: self.history.last() }
    }

    /// Text, bodies and overrides after a change.
    fn recall(&mut self, number: u64) -> Result<(Arc<str>, Arc<Bodies>, Overrides), EngineError> {
        let entry = self.history.entry(number).cloned();
        let (Some(entry), Some(overrides)) = (entry, self.history.overrides(number)) else {
            return Err(self.unknown_change(number));
        };
        Ok((self.store.text(&entry.config)?, self.store.bodies(&entry.bodies)?, overrides))
    }

    /// Puts in force what a change left.
    pub fn rollback(&mut self, number: u64, manner: &Manner) -> Result<Change, EngineError> {
        self.expect(manner)?;
        let (config, bodies, overrides) = self.recall(number)?;
        let mut candidate = self.candidate(&config, &bodies, overrides, &format!("change {number}"))?;
        if candidate.state.confirm.as_ref().is_some_and(|confirm| confirm.number == number) {
            candidate.state.confirm = None;
        }
        self.settle(candidate, manner)
    }

    /// What was in force once, to be so again.
    pub(super) fn candidate(
        &self,
        config: &Arc<str>,
        bodies: &Arc<Bodies>,
        overrides: Overrides,
        name: &str,
    ) -> Result<Candidate, EngineError> {
        let mut files = Files::kept(bodies);
        let (model, warnings) = check(config, name, &self.options.machine, &mut files)?;
        let mut state = self.state.clone();
        state.config = self.shared(config);
        if state.bodies != *bodies {
            state.bodies = bodies.clone();
        }
        state.overrides = crate::drain::with_node_of(overrides, &self.state.overrides);
        Ok(Candidate { state, model, warnings })
    }

    /// What waits to be confirmed.
    pub fn waiting(&self) -> Option<&Confirm> {
        self.state.confirm.as_ref()
    }

    /// What is in force stays so.
    pub fn confirm(&mut self) -> Result<Change, EngineError> {
        if self.state.confirm.is_none() {
            return Err(EngineError::NothingToConfirm);
        }
        let mut state = self.state.clone();
        state.confirm = None;
        self.store.save(&state)?;
        self.state = state;
        if let Some(origin) = self.origin.take() {
            tracing::info!("change {} was confirmed by {}", self.state.number, origin.who.name);
        }
        Ok(self.changed(None))
    }

    /// Takes back what nobody confirmed in time.
    pub fn expire(&mut self, now_unix_ms: u64) -> Result<(), EngineError> {
        let Some(confirm) = self.state.confirm.clone().filter(|c| c.deadline_unix_ms <= now_unix_ms) else {
            return Ok(());
        };
        let how = format!("not confirmed in time: back to change {}", confirm.number);
        tracing::warn!("{how}");
        self.origin = Some(Origin::daemon(&how));
        let back = self.candidate(&confirm.config, &confirm.bodies, confirm.overrides, &how);
        let done = back.and_then(|mut candidate| {
            candidate.state.confirm = None;
            self.settle(candidate, &Manner::default())
        });
        if let Err(error) = done {
            if let Some(confirm) = &mut self.state.confirm {
                confirm.deadline_unix_ms = now_unix_ms.saturating_add(TRY_AGAIN_MS);
            }
            return Err(error);
        }
        Ok(())
    }

    /// How what is in force after a change differs from what was after another; the newest change is what is in force.
    pub fn differences(&mut self, from: u64, to: u64) -> Result<Differences, EngineError> {
        let (old, _, old_overrides) = self.recall(from)?;
        let (new, _, new_overrides) = self.recall(to)?;
        let before = difference::table(&old, &old_overrides);
        Ok(difference::between(&before, &difference::table(&new, &new_overrides)))
    }

    /// Overrides by backend, for those who only look.
    pub fn overrides(&self) -> &BTreeMap<String, BTreeMap<String, crate::state::Override>> {
        &self.state.overrides
    }
}
