//! Requests that change something, and what becomes of them.

use std::sync::Arc;
use std::time::Instant;

use hyper::StatusCode;
use tokio::sync::Mutex;

use super::requests::{Answer, Query, Refused, json};
use super::{ACK_POLL, Daemon};
use crate::api::{
    Applied, BackendRequest, ChangeRequest, DiffAnswer, HistoryAnswer, Outcome, Past, SCHEMA, StateRequest,
};
use crate::changes::Origin;
use crate::engine::{ACK_LIMIT, BackendChange, Backup, Change, Engine, EngineError, Manner};
use crate::git;
use crate::state::Admin;

/// Asks the engine, and does what follows from a new configuration.
async fn change(
    daemon: &Daemon,
    origin: Origin,
    with: impl FnOnce(&mut Engine) -> Result<Change, EngineError>,
) -> Result<Change, Refused> {
    let mut engine = daemon.engine.lock().await;
    engine.attribute(origin);
    let (model, indices) = (Arc::clone(engine.model()), Arc::clone(&engine.state().indices));
    let change = with(&mut engine)?;
    // a weight, a state: what else runs by the configuration goes on
    if !Arc::ptr_eq(&model, engine.model()) || !Arc::ptr_eq(&indices, &engine.state().indices) {
        daemon.set_log(&engine);
    }
    Ok(change)
}

pub(super) async fn apply(
    daemon: &Daemon,
    text: &str,
    query: &Query,
    manner: &Manner,
    origin: Origin,
) -> Result<Answer, Refused> {
    let (file, asked) = (daemon.config.clone(), origin.clone());
    let of_revision = match &query.revision {
        Some(revision) if text.is_empty() => {
            let (file, revision) = (file.clone(), revision.clone());
            let read = tokio::task::spawn_blocking(move || git::show(&file, &revision)).await;
            let read =
                read.map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
            Some(read.map_err(|error| Refused::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()))?)
        }
        Some(_) => return Err(Refused::new(StatusCode::BAD_REQUEST, "send a revision or a text, not both")),
        None => None,
    };
    let name = match &query.revision {
        Some(revision) => format!("{} of {revision}", file.display()),
        None => query.name.clone(),
    };
    let text = of_revision.as_deref().unwrap_or(text);
    let change = change(daemon, origin, |engine| engine.apply_as(text, &name, manner)).await?;
    if !manner.dry_run && query.revision.is_none() {
        daemon.commit_file(asked).await;
    }
    finish(&daemon.engine, change, manner.dry_run).await
}

pub(super) async fn set_backend(
    daemon: &Daemon,
    pool: &str,
    backend: &str,
    request: &BackendRequest,
    origin: Origin,
) -> Result<Answer, Refused> {
    let changes: Vec<BackendChange> = request
        .weight
        .map(BackendChange::Weight)
        .into_iter()
        .chain(request.state.map(BackendChange::State))
        .collect();
    if changes.is_empty() {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "the body changes nothing; send weight, state or both",
        ));
    }
    let set = |engine: &mut Engine| engine.set_backend(pool, backend, &changes, request.force);
    let change = change(daemon, origin, set).await?;
    finish(&daemon.engine, change, false).await
}

pub(super) async fn set_listener(
    daemon: &Daemon,
    name: &str,
    request: StateRequest,
    origin: Origin,
) -> Result<Answer, Refused> {
    let change = change(daemon, origin, |engine| engine.set_listener(name, request.state)).await?;
    finish(&daemon.engine, change, false).await
}

/// The network is told before the node takes nothing any more, and after it takes new connections again.
pub(super) async fn set_node(
    daemon: &Daemon,
    request: StateRequest,
    origin: Origin,
) -> Result<Answer, Refused> {
    let _alone = daemon.node.lock().await;
    let was = daemon.engine.lock().await.node();
    let mut notes = Vec::new();
    if was == Admin::Ready && request.state != Admin::Ready {
        notes.extend(daemon.tell(false).await);
    }
    let mut change = change(daemon, origin, |engine| engine.set_node(request.state)).await?;
    if was != Admin::Ready && request.state == Admin::Ready {
        notes.extend(daemon.tell(true).await);
    }
    change.notes = notes;
    finish(&daemon.engine, change, false).await
}

pub(super) async fn edit(
    daemon: &Daemon,
    request: &ChangeRequest,
    manner: &Manner,
    origin: Origin,
) -> Result<Answer, Refused> {
    if request.changes.is_empty() {
        return Err(Refused::new(
            StatusCode::BAD_REQUEST,
            "the body changes nothing; send at least one change",
        ));
    }
    let manner = Manner { force: manner.force || request.force, ..*manner };
    let change = change(daemon, origin, |engine| engine.edit(&request.changes, &manner)).await?;
    finish(&daemon.engine, change, manner.dry_run).await
}

pub(super) async fn confirm(daemon: &Daemon, origin: Origin) -> Result<Answer, Refused> {
    let change = change(daemon, origin, Engine::confirm).await?;
    finish(&daemon.engine, change, false).await
}

pub(super) async fn save(daemon: &Daemon, force: bool, origin: Origin) -> Result<Answer, Refused> {
    let asked = origin.clone();
    let change = change(daemon, origin, |engine| engine.save(force)).await?;
    daemon.commit_file(asked).await;
    finish(&daemon.engine, change, false).await
}

pub(super) async fn discard(daemon: &Daemon, manner: &Manner, origin: Origin) -> Result<Answer, Refused> {
    let change = change(daemon, origin, |engine| engine.discard(manner)).await?;
    finish(&daemon.engine, change, manner.dry_run).await
}

pub(super) async fn rollback(
    daemon: &Daemon,
    number: u64,
    manner: &Manner,
    origin: Origin,
) -> Result<Answer, Refused> {
    let change = change(daemon, origin, |engine| engine.rollback(number, manner)).await?;
    finish(&daemon.engine, change, manner.dry_run).await
}

pub(super) async fn history(daemon: &Daemon) -> Result<Answer, Refused> {
    let engine = daemon.engine.lock().await;
    let changes = engine.history().entries().rev().map(|entry| Past::of(entry)).collect();
    let note = engine.history().trouble().map(str::to_owned);
    Ok(json(StatusCode::OK, &HistoryAnswer { schema: SCHEMA, changes, note }))
}

pub(super) async fn differences(
    daemon: &Daemon,
    from: Option<u64>,
    to: Option<u64>,
) -> Result<Answer, Refused> {
    let mut engine = daemon.engine.lock().await;
    let differences = match (from, to) {
        (None, None) => engine.differences_from_file()?,
        (Some(from), to) => {
            let to = to.unwrap_or(engine.state().number);
            engine.differences(from, to)?
        }
        (None, Some(_)) => {
            return Err(Refused::new(
                StatusCode::BAD_REQUEST,
                "to= needs from=; without both, the file is compared",
            ));
        }
    };
    Ok(json(StatusCode::OK, &DiffAnswer { schema: SCHEMA, differences }))
}

pub(super) async fn backup(daemon: &Daemon) -> Result<Answer, Refused> {
    Ok(json(StatusCode::OK, &daemon.engine.lock().await.backup()?))
}

pub(super) async fn restore(daemon: &Daemon, backup: Backup, origin: Origin) -> Result<Answer, Refused> {
    let change = change(daemon, origin, |engine| engine.restore(backup)).await?;
    finish(&daemon.engine, change, false).await
}

/// Waits for the dataplane and tells what became of the change.
pub(super) async fn finish(engine: &Mutex<Engine>, change: Change, dry_run: bool) -> Result<Answer, Refused> {
    let outcome = match (dry_run, &change.published) {
        (true, _) => Outcome::DryRun,
        (false, None) => unchanged(engine, change.generation).await,
        (false, Some(_)) => wait_for_acks(engine, change.generation).await,
    };
    let applied = Applied {
        schema: SCHEMA,
        generation: change.generation,
        changed: change.published.is_some(),
        tables_written: change.published.map_or(0, |published| published.tables_written),
        outcome,
        diagnostics: change.warnings,
        needs_restart: change.needs_restart,
        notes: change.notes,
        number: change.number,
        confirm_by_unix_ms: change.confirm_by_unix_ms,
        plan: change.plan,
    };
    Ok(json(StatusCode::OK, &applied))
}

/// A generation that stands refused is not in force, changed or not.
async fn unchanged(engine: &Mutex<Engine>, generation: u64) -> Outcome {
    let dataplane = engine.lock().await.snapshots().dataplane();
    match dataplane.refusal.filter(|refusal| refusal.generation >= generation) {
        None => Outcome::Unchanged,
        Some(refusal) if dataplane.is_alive => Outcome::Refused { text: refusal.text },
        Some(_) => Outcome::NoDataplane,
    }
}

async fn wait_for_acks(engine: &Mutex<Engine>, generation: u64) -> Outcome {
    let started = Instant::now();
    loop {
        let dataplane = engine.lock().await.snapshots().dataplane();
        if !dataplane.is_alive {
            return Outcome::NoDataplane;
        }
        let workers = dataplane.workers.len();
        let acked = dataplane.workers.iter().filter(|worker| worker.acked_generation >= generation).count();
        if workers > 0 && acked == workers {
            let microseconds = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            return Outcome::Acked { workers, microseconds };
        }
        if let Some(refusal) = dataplane.refusal
            && refusal.generation >= generation
        {
            return Outcome::Refused { text: refusal.text };
        }
        if started.elapsed() > ACK_LIMIT {
            return Outcome::Pending { acked, workers };
        }
        tokio::time::sleep(ACK_POLL).await;
    }
}
