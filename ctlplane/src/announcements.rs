//! Who tells the network that this node takes traffic, and that it takes none any more?
//!
//! The node is withdrawn before its listeners refuse new connections, and announced after they take them again. Both may be asked
//! for again when they are done already: after a restart of the daemon it is not known how far the last one came.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::Model;

/// Longest that a command may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at a command that runs.
const POLL: Duration = Duration::from_millis(5);

/// Why the network could not be told.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The command did not start.
    #[error("{command} could not be started: {source}; correct [drain] {field}")]
    Start {
        /// Which.
        command: String,
        /// Where it is configured.
        field: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// It failed.
    #[error("{command} ([drain] {field}) ended with {status}")]
    Failed {
        /// Which.
        command: String,
        /// Where it is configured.
        field: &'static str,
        /// How.
        status: ExitStatus,
    },
    /// It took too long.
    #[error("{command} ([drain] {field}) was killed: it had not ended after {} s", LIMIT.as_secs())]
    Late {
        /// Which.
        command: String,
        /// Where it is configured.
        field: &'static str,
    },
}

/// Tells the network. Calls may take [`LIMIT`]; no two are made at once.
pub trait Announcements: Send + Sync {
    /// No traffic shall come here.
    fn withdraw(&self) -> Result<(), AnnounceError>;
    /// Traffic may come.
    fn announce(&self) -> Result<(), AnnounceError>;
}

/// What a configuration wants.
pub fn of(model: &Model, instance: &str) -> Arc<dyn Announcements> {
    let (on_drain, on_ready) = (model.on_drain.clone(), model.on_ready.clone());
    Arc::new(Commands { instance: instance.to_owned(), on_drain, on_ready })
}

/// Programs of the operator's.
#[derive(Debug)]
struct Commands {
    instance: String,
    on_drain: Option<Vec<String>>,
    on_ready: Option<Vec<String>>,
}

impl Announcements for Commands {
    fn withdraw(&self) -> Result<(), AnnounceError> {
        self.run("on_drain", self.on_drain.as_deref())
    }

    fn announce(&self) -> Result<(), AnnounceError> {
        self.run("on_ready", self.on_ready.as_deref())
    }
}

impl Commands {
    fn run(&self, field: &'static str, words: Option<&[String]>) -> Result<(), AnnounceError> {
        let Some((program, arguments)) = words.and_then(<[String]>::split_first) else { return Ok(()) };
        let command = program.clone();
        let started = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .env("WEIR_INSTANCE", &self.instance)
            .stdin(Stdio::null())
            // what it starts is ended with it
            .process_group(0)
            .spawn()
            .map_err(|source| AnnounceError::Start { command: command.clone(), field, source })?;
        let Some(status) = wait(&mut child, started) else {
            return Err(AnnounceError::Late { command, field });
        };
        if !status.success() {
            return Err(AnnounceError::Failed { command, field, status });
        }
        tracing::info!("{command} ([drain] {field}) ended after {} ms", started.elapsed().as_millis());
        Ok(())
    }
}

/// How it ended; `None`: not in time, and it was killed.
fn wait(child: &mut Child, started: Instant) -> Option<ExitStatus> {
    while started.elapsed() < LIMIT {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => std::thread::sleep(POLL),
            Err(_) => break,
        }
    }
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        // it may just have ended
        let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let _reaped = child.wait();
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands(on_drain: &[&str]) -> Commands {
        let words = on_drain.iter().map(|word| (*word).to_owned()).collect();
        Commands { instance: "test".to_owned(), on_drain: Some(words), on_ready: None }
    }

    #[test]
    fn commands_are_run_and_their_failures_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("told");
        let script = format!("echo $WEIR_INSTANCE $0 > {}", file.display());
        commands(&["/bin/sh", "-c", &script, "word"]).withdraw().unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), "test word\n");
        assert!(commands(&["/bin/false"]).announce().is_ok(), "there is none for it");
        let error = commands(&["/bin/sh", "-c", "exit 3"]).withdraw().unwrap_err().to_string();
        assert!(error.contains("on_drain") && error.contains('3'), "{error}");
        let error = commands(&["/nonexistent"]).withdraw().unwrap_err().to_string();
        assert!(error.contains("/nonexistent could not be started"), "{error}");
    }
}
