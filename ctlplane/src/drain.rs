//! Which listeners take no new flows, and does the whole node? What operators set of it at run time is kept among the overrides,
//! under names that no pool can have, so that history, rollback and backups know it like any other.

use std::time::Duration;

use crate::model::{Listener, Model};
use crate::state::{Admin, Override, Overrides};

/// Below this are listeners, by name.
pub const LISTENERS: &str = "@listeners";
/// Below this is the node, under [`SELF`].
const NODE: &str = "@node";
const SELF: &str = "state";

/// How long proxied connections may take to end in order when weir-dataplane is told to end.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// The longest such time.
pub const MOST_GRACE: Duration = Duration::from_secs(60);

/// Whether an override is of a pool's backends.
pub fn is_pool(name: &str) -> bool {
    !name.starts_with('@')
}

/// What was set of a listener.
pub fn listener(overrides: &Overrides, name: &str) -> Option<Admin> {
    overrides.get(LISTENERS)?.get(name)?.state
}

/// What was set of the node.
pub fn node(overrides: &Overrides) -> Admin {
    overrides.get(NODE).and_then(|node| node.get(SELF)?.state).unwrap_or(Admin::Ready)
}

/// The state of a listener: its own, or the node's where that is stricter.
pub fn effective(configured: &Listener, overrides: &Overrides) -> Admin {
    let own = listener(overrides, &configured.name).unwrap_or(configured.state);
    own.max(node(overrides))
}

/// Sets a listener's state over the file's.
pub fn set_listener(overrides: &mut Overrides, configured: &Listener, admin: Admin) {
    let state = Some(admin).filter(|admin| *admin != configured.state);
    set(overrides, LISTENERS, &configured.name, state);
}

/// Sets the node's state.
pub fn set_node(overrides: &mut Overrides, admin: Admin) {
    set(overrides, NODE, SELF, Some(admin).filter(|admin| *admin != Admin::Ready));
}

fn set(overrides: &mut Overrides, kind: &str, name: &str, state: Option<Admin>) {
    let entries = overrides.entry(kind.to_owned()).or_default();
    match state {
        Some(state) => entries.insert(name.to_owned(), Override { weight: None, state: Some(state) }),
        None => entries.remove(name),
    };
    if entries.is_empty() {
        overrides.remove(kind);
    }
}

/// The overrides of another time, with the node as it is now: no rollback takes a drained node back into service.
#[must_use]
pub fn with_node_of(mut overrides: Overrides, now: &Overrides) -> Overrides {
    set_node(&mut overrides, node(now));
    overrides
}

/// Drops what was set of listeners that are gone, or whose state the new file changed: the file is newer.
pub(crate) fn reconcile(overrides: &mut Overrides, old: Option<&Model>, new: &Model) {
    let Some(entries) = overrides.get_mut(LISTENERS) else { return };
    let state = |model: &Model, name: &str| {
        model.listeners.iter().find(|listener| listener.name == name).map(|listener| listener.state)
    };
    entries.retain(|name, entry| {
        let Some(now) = state(new, name) else { return false };
        let before = old.and_then(|old| state(old, name));
        before.is_none_or(|before| before == now) && entry.state != Some(now)
    });
    if entries.is_empty() {
        overrides.remove(LISTENERS);
    }
}

/// One line for each, as the status tells drift.
pub(crate) fn told(overrides: &Overrides) -> Vec<String> {
    let mut lines = Vec::new();
    if node(overrides) != Admin::Ready {
        lines.push(format!("the node was set to {}: weir ready takes it back", node(overrides).name()));
    }
    for (name, entry) in overrides.get(LISTENERS).into_iter().flatten() {
        if let Some(state) = entry.state {
            lines.push(format!("listener {name} was set to state {} at run time", state.name()));
        }
    }
    lines
}
