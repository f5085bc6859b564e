//! How does a text, or an edit of the running one, come into force?

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{BackendChanges, prune};
use super::restart::static_differences;
use super::{BackendChange, Change, Engine, EngineError, Plan, check};
use crate::changes::edit::{self, Edit, Editor, Kind, Operation};
use crate::changes::{Origin, blast, difference, unix_ms};
use crate::compile;
use crate::counters::Counters;
use crate::diagnostic::{Report, Severity, Source};
use crate::drain;
use crate::health::targets::begin_down;
use crate::model::Model;
use crate::publish::Published;
use crate::state::{Admin, Bodies, Confirm, Overrides, State, reconcile_overrides};
use crate::validate::{self, Files};

/// How a change is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// Only say what it would do.
    pub dry_run: bool,
    /// Also where a pool loses the last backend that takes new flows.
    pub force: bool,
    /// It is taken back after so long, unless somebody confirms it.
    pub confirm: Option<Duration>,
    /// Only if this is still the last change in history.
    pub expect: Option<u64>,
}

/// What would be in force.
pub(super) struct Candidate {
    pub(super) state: State,
    pub(super) model: Arc<Model>,
    pub(super) warnings: Vec<Report>,
}

impl Engine {
    /// Says who asks for the next change, and how: history tells it.
    pub fn attribute(&mut self, origin: Origin) {
        self.origin = Some(origin);
    }

    /// Checks `text` and puts it in force.
    pub fn apply(&mut self, text: &str, name: &str) -> Result<Change, EngineError> {
        self.apply_as(text, name, &Manner::default())
    }

    /// What [`Self::apply`] would do, without doing it.
    pub fn dry_run(&mut self, text: &str, name: &str) -> Result<Change, EngineError> {
        self.apply_as(text, name, &Manner { dry_run: true, ..Manner::default() })
    }

    /// As [`Self::apply`], with conditions.
    pub fn apply_as(&mut self, text: &str, name: &str, manner: &Manner) -> Result<Change, EngineError> {
        self.expect(manner)?;
        let mut files = Files::default();
        let (model, warnings) = check(text, name, &self.options.machine, &mut files)?;
        let mut state = self.state.clone();
        state.config = self.shared(text);
        state.applied = state.config.clone();
        state.bodies = self.shared_bodies(files.into_bodies());
        reconcile_overrides(&mut state.overrides, Some(&self.model), &model);
        self.settle(Candidate { state, model, warnings }, manner)
    }

    /// Makes these edits of the running configuration, all or none.
    pub fn edit(&mut self, edits: &[Edit], manner: &Manner) -> Result<Change, EngineError> {
        self.expect(manner)?;
        if !manner.dry_run
            && manner.confirm.is_none()
            && let Some(list) = as_overrides(edits)
        {
            return self.set_backends(&list, manner.force);
        }
        let mut editor = Editor::new(&self.state.config)?;
        editor.apply(edits)?;
        let text = editor.text();
        drop(editor);
        let mut files = Files::kept(&self.state.bodies);
        let (model, warnings) = self.check_edited(&text, edits, &mut files)?;
        let mut state = self.state.clone();
        state.config = self.shared(&text);
        state.bodies = self.shared_bodies(files.into_bodies());
        reconcile_overrides(&mut state.overrides, Some(&self.model), &model);
        drop_edited(&mut state.overrides, edits);
        if !manner.force {
            let pools = edits.iter().filter(|edit| matches!(edit.kind, Kind::Backend | Kind::Pool));
            let pools: BTreeSet<&str> = pools
                .map(|edit| edit.name.split_once('/').map_or(edit.name.as_str(), |(pool, _)| pool))
                .collect();
            self.leaves_somebody(&model, &state.overrides, &pools)?;
        }
        self.settle(Candidate { state, model, warnings }, manner)
    }

    /// A change is refused where somebody else was faster.
    pub(super) fn expect(&self, manner: &Manner) -> Result<(), EngineError> {
        match manner.expect {
            Some(expected) if expected != self.state.number => {
                Err(EngineError::Outpaced { expected, found: self.state.number })
            }
            _ => Ok(()),
        }
    }

    /// The text, as the one in force where it is the same.
    pub(super) fn shared(&self, text: &str) -> Arc<str> {
        let known = [&self.state.config, &self.state.applied];
        known.into_iter().find(|known| ***known == *text).map_or_else(|| text.into(), Arc::clone)
    }

    fn shared_bodies(&self, bodies: Bodies) -> Arc<Bodies> {
        if bodies == *self.state.bodies { self.state.bodies.clone() } else { bodies.into() }
    }

    /// As [`check`]; what is wrong with a field that was given is told by its argument.
    fn check_edited(
        &self,
        text: &str,
        edits: &[Edit],
        files: &mut Files,
    ) -> Result<(Arc<Model>, Vec<Report>), EngineError> {
        let name = "the running configuration with this change".to_owned();
        let source = Source { name: &name, text };
        let (model, diagnostics) = validate::load_with(source, &self.options.machine, files);
        let reports = source.reports(&diagnostics);
        if let Some(model) = model {
            // those of the whole file were told when it was applied
            let places = edit::places(text, edits);
            let sorted = diagnostics.sorted();
            let here = |at: usize| places.iter().any(|(range, _)| range.contains(&at));
            let messages: BTreeSet<&str> =
                sorted.iter().filter(|d| here(d.span.start)).map(|d| d.message.as_str()).collect();
            let warnings =
                reports.into_iter().filter(|report| messages.contains(report.message.as_str())).collect();
            return Ok((model.into(), warnings));
        }
        let places = edit::places(text, edits);
        for diagnostic in diagnostics.sorted() {
            let place = places.iter().find(|(range, _)| range.contains(&diagnostic.span.start));
            if let (Severity::Error, Some((_, argument))) = (diagnostic.severity, place) {
                let parts = [diagnostic.message.as_str(), &diagnostic.label];
                let parts =
                    parts.into_iter().chain(diagnostic.help.as_deref()).filter(|part| !part.is_empty());
                let message = parts.collect::<Vec<_>>().join("; ");
                return Err(EngineError::Argument { argument: argument.clone(), message, reports });
            }
        }
        Err(EngineError::Config { name, reports })
    }

    /// Puts a candidate in force, or says what that would do.
    pub(super) fn settle(&mut self, candidate: Candidate, manner: &Manner) -> Result<Change, EngineError> {
        let Candidate { mut state, model, warnings } = candidate;
        state.indices.assign(&model, self.snapshots.published().max(state.generation) + 1)?;
        let needs_restart = if self.snapshots.dataplane().is_alive {
            static_differences(&self.model.node, &model.node)
        } else {
            Vec::new()
        };
        if manner.dry_run {
            let plan = Some(self.plan(&state, &model)?);
            return Ok(Change { warnings, needs_restart, plan, ..self.changed(None) });
        }
        let mut down = self.down.clone();
        begin_down(&mut down, &model, |pool, backend| {
            let of_pool = self.model.pools.iter().find(|of| of.name == pool && of.health.is_some());
            of_pool.is_some_and(|of_pool| of_pool.backends.iter().any(|known| known.name == backend))
        });
        let compiled = compile::compile(&model, &state.overrides, &down, &state.indices, &mut self.cache)?;
        if let Some(limit) = manner.confirm {
            let back = state.confirm.take().unwrap_or_else(|| Confirm {
                deadline_unix_ms: 0,
                number: self.state.number,
                config: self.state.config.clone(),
                bodies: self.state.bodies.clone(),
                overrides: self.state.overrides.clone(),
            });
            let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            let deadline_unix_ms = unix_ms().saturating_add(limit);
            let is_change = back.config != state.config
                || back.overrides != state.overrides
                || back.bodies != state.bodies;
            state.confirm = is_change.then_some(Confirm { deadline_unix_ms, ..back });
        }
        let published = self.put_in_force(state, model, &compiled)?;
        self.down = down;
        self.is_swollen = true;
        Ok(Change { warnings, needs_restart, ..self.changed(published) })
    }

    /// What was done.
    pub(super) fn changed(&self, published: Option<Published>) -> Change {
        Change {
            generation: self.state.generation,
            published,
            number: self.state.number,
            confirm_by_unix_ms: self.state.confirm.as_ref().map(|confirm| confirm.deadline_unix_ms),
            ..Change::default()
        }
    }

    fn plan(&mut self, state: &State, model: &Model) -> Result<Plan, EngineError> {
        let State { overrides, indices, config, .. } = &self.state;
        let old = compile::compile(&self.model, overrides, &self.down, indices, &mut self.cache)?;
        let mut tried = self.cache.clone();
        let new = compile::compile(model, &state.overrides, &self.down, &state.indices, &mut tried)?;
        let counters = Counters::open(self.snapshots.directory()).ok();
        let blast = blast::radius(
            blast::Side { model: &self.model, indices, compiled: &old },
            blast::Side { model, indices: &state.indices, compiled: &new },
            counters.as_ref(),
        );
        let before = difference::table(config, overrides);
        let differences = difference::between(&before, &difference::table(&state.config, &state.overrides));
        Ok(Plan { differences, blast })
    }
}

/// Edits of weights and states alone, which need no text.
fn as_overrides(edits: &[Edit]) -> Option<Vec<BackendChanges>> {
    let change = |(field, value): (&String, &serde_json::Value)| match field.as_str() {
        "weight" => Some(BackendChange::Weight(u16::try_from(value.as_u64()?).ok()?)),
        "state" => serde_json::from_value::<Admin>(value.clone()).ok().map(BackendChange::State),
        _ => None,
    };
    let one = |edit: &Edit| {
        let (pool, backend) = edit.name.split_once('/')?;
        let fits = edit.kind == Kind::Backend && edit.op == Operation::Set && !edit.fields.is_empty();
        let changes = edit.fields.iter().map(change).collect::<Option<Vec<_>>>()?;
        fits.then(|| (pool.to_owned(), backend.to_owned(), changes))
    };
    edits.iter().map(one).collect()
}

/// What an edit wrote into the text is not to be overridden by what was set before.
fn drop_edited(overrides: &mut Overrides, edits: &[Edit]) {
    for edit in edits.iter().filter(|edit| edit.kind == Kind::Listener) {
        if edit.fields.contains_key("state")
            && let Some(listeners) = overrides.get_mut(drain::LISTENERS)
        {
            listeners.remove(&edit.name);
            prune(overrides, drain::LISTENERS);
        }
    }
    for edit in edits.iter().filter(|edit| edit.kind == Kind::Backend) {
        let Some((pool, backend)) = edit.name.split_once('/') else { continue };
        let Some(entry) = overrides.get_mut(pool).and_then(|set| set.get_mut(backend)) else { continue };
        if edit.fields.contains_key("weight") {
            entry.weight = None;
        }
        if edit.fields.contains_key("state") {
            entry.state = None;
        }
        prune(overrides, pool);
    }
}
