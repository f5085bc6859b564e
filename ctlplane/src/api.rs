//! What can a client ask of the daemon? HTTP/1.1 and JSON on a Unix socket, under `/v1/`.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | | [`crate::status::Status`] |
//! | `POST /v1/check?name=FILE` | text of a file | [`Applied`] without effect |
//! | `POST /v1/apply?name=FILE` | text of a file | [`Applied`] |
//! | `POST /v1/apply?name=FILE&dry_run=true` | text of a file | [`Applied`] without effect |
//! | `POST /v1/explain` | [`crate::explain::Request`] | [`crate::explain::Explanation`] |
//! | `GET /v1/backends` | | [`Backends`] |
//! | `POST /v1/backends/POOL/NAME` | [`BackendRequest`] | [`Applied`] |
//!
//! Errors are [`Failure`] with a status of 4xx (the request) or 5xx (the daemon).

use serde::{Deserialize, Serialize};

use crate::diagnostic::Report;
use crate::state::Admin;
use crate::status::Pool;

/// Version of every answer.
pub const SCHEMA: u32 = 1;
/// Largest configuration file.
pub const MAX_BODY_BYTES: usize = 32 << 20;

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
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
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
        for text in ["%", "%4", "%zz", "%ff"] {
            assert_eq!(percent_decode(text), None);
        }
    }
}
