//! HTTP between clients and backends.
//!
//! ```text
//! rules ── what the configuration says
//! event ── what is told and counted
//! ```

pub mod event;
pub mod rules;
