//! What can a client ask of the daemon? HTTP/1.1 and JSON on a Unix socket, under `/v1/`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`crate::status::Status`] |
//! | `POST /v1/check?name=FILE` | text of a file | [`Applied`] without effect |
//! | `POST /v1/apply?name=FILE` | text of a file | [`Applied`] |
//! | `POST /v1/apply?name=FILE&dry_run=true` | text of a file | [`Applied`] without effect |
//! | `GET /v1/explain/access/LISTENER/ADDRESS` | | [`crate::explain::AccessExplanation`] |
//! | `POST /v1/explain` | [`crate::explain::Request`] | [`crate::explain::Explanation`] |
//! | `GET /v1/backends` | | [`Backends`] |
//! | `POST /v1/backends/POOL/NAME` | [`BackendRequest`] | [`Applied`] |
//! | `POST /v1/listeners/NAME` | [`StateRequest`] | [`Applied`] |
//! | `POST /v1/node` | [`StateRequest`] | [`Applied`] |
//!
//! | `POST /v1/changes` | [`ChangeRequest`] | [`Applied`]: all of them or none |
//! | `POST /v1/confirm`, `/v1/discard`, `/v1/save?force=true` | | [`Applied`] |
//! | `GET /v1/history` | | [`HistoryAnswer`], newest first |
//! | `GET /v1/diff?from=N&to=M` | | [`DiffAnswer`]; without numbers from the operator's file to what is in force |
//! | `POST /v1/rollback?to=N` | | [`Applied`] |
//! | `POST /v1/backup` | | [`crate::engine::Backup`] |
//! | `POST /v1/restore` | [`crate::engine::Backup`] | [`Applied`] |
//!
//! Changes take `dry_run=true`, `confirm=5m` (they are taken back unless `/v1/confirm` comes in time), `expect=N` (only if N is still
//! the last change) and `force=true`; the header `weir-comment` is kept with them and `weir-command` says how they were asked for.
//! Both are percent-encoded. `POST /v1/apply?revision=REV` takes the operator's file from its git work tree.
//!
//! Errors are [`Failure`] with a status of 4xx (the request) or 5xx (the daemon).

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::changes::difference::Differences;
use crate::changes::edit::Edit;
use crate::diagnostic::Report;
use crate::engine::Plan;
use crate::history::Entry;
use crate::state::Admin;
use crate::status::Pool;

/// Version of every answer.
pub const SCHEMA: u32 = 1;
/// Largest configuration file.
pub const MAX_BODY_BYTES: usize = 32 << 20;

/// Largest backup.
pub const MAX_BACKUP_BYTES: usize = 128 << 20;
/// How a change was asked for, percent-encoded.
pub const COMMAND_HEADER: &str = "weir-command";
/// The operator's words, percent-encoded.
pub const COMMENT_HEADER: &str = "weir-comment";
/// How long a change may wait to be confirmed.
pub const CONFIRM: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

/// Answer to a change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Applied {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The generation in force.
    pub generation: u64,
    /// Whether anything was published.
    pub changed: bool,
    /// Tables that had to be written.
    pub tables_written: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// Warnings.
    pub diagnostics: Vec<Report>,
    /// Changes that need a restart of weir-dataplane.
    pub needs_restart: Vec<String>,
    /// What else went wrong, without keeping the change from being made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Number of the last change in history.
    #[serde(default)]
    pub number: u64,
    /// When what is in force is taken back unless it is confirmed, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_by_unix_ms: Option<u64>,
    /// What it would do, where it was only tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
}

/// Body of `POST /v1/changes`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// In this order; all of them or none.
    pub changes: Vec<Edit>,
    /// Also where a pool loses the last backend that takes new flows.
    #[serde(default)]
    pub force: bool,
}

/// Answer to `GET /v1/history`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistoryAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Newest first.
    pub changes: Vec<Past>,
    /// What is wrong with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One change of the past.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    /// From 1.
    pub number: u64,
    /// The generation that it was put in force with.
    pub generation: u64,
    /// When.
    pub unix_ms: u64,
    /// Whose process asked; absent where the daemon acted by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// That user's name.
    pub user: String,
    /// The command.
    pub how: String,
    /// The operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

impl Past {
    /// As it is told.
    pub fn of(entry: &Entry) -> Self {
        Self {
            number: entry.number,
            generation: entry.generation,
            unix_ms: entry.unix_ms,
            uid: entry.who.uid,
            user: entry.who.name.clone(),
            how: entry.how.clone(),
            comment: entry.comment.clone(),
        }
    }
}

/// Answer to `GET /v1/diff`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiffAnswer {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What is otherwise in the second one.
    pub differences: Differences,
}

/// Reads a JSON object: serde alone would read an array as the fields in order.
pub fn understand<T: DeserializeOwned>(body: &[u8]) -> Result<T, serde_json::Error> {
    #[derive(Deserialize)]
    #[serde(transparent)]
    struct Object(serde_json::Map<String, serde_json::Value>);
    let Object(map) = serde_json::from_slice(body)?;
    serde_json::from_value(map.into())
}

/// What became of a published generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Outcome {
    /// It was only tried.
    DryRun,
    /// Nothing had to be published.
    Unchanged,
    /// Every worker runs it.
    Acked {
        /// How many.
        workers: usize,
        /// Since publication.
        microseconds: u64,
    },
    /// There is no dataplane now.
    NoDataplane,
    /// The dataplane would not take it.
    Refused {
        /// Its words.
        text: String,
    },
    /// Not all workers have acked it yet.
    Pending {
        /// How many have.
        acked: usize,
        /// How many there are.
        workers: usize,
    },
}

/// Body of `POST /v1/backends/POOL/NAME`: one field or both.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendRequest {
    /// 0 to 65535.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
    /// ready, drain or maint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Admin>,
    /// Also for the last backend of a pool that takes new flows.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /v1/listeners/NAME` and of `POST /v1/node`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateRequest {
    /// ready, drain or maint.
    pub state: Admin,
}

/// Answer to `GET /v1/backends`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backends {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Pools with their backends.
    pub pools: Vec<Pool>,
    /// What could not be read, and why.
    pub missing: Vec<String>,
}

/// Answer to a request that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What is wrong and what to do.
    pub error: String,
    /// Findings in the file, where it is about a file.
    #[serde(default)]
    pub diagnostics: Vec<Report>,
}

/// Percent-decodes a path segment or query value; `None` where it is malformed.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
        bytes.push(u8::try_from(high << 4 | low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// Percent-encodes everything that is not unreserved (RFC 3986 §2.3).
pub fn percent_encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_coding_round_trips() {
        for text in ["a/b c.toml", "\u{e9}%", ""] {
            assert_eq!(percent_decode(&percent_encode(text)).as_deref(), Some(text));
        }
        for text in ["%", "%4", "%zz", "%ff", "%+f", "%-1", "% 4"] {
            assert_eq!(percent_decode(text), None);
        }
    }
}
