//! HTTP between clients and backends.
//!
//! ```text
//! rules ── what the configuration says
//! site  ── a listener's rules with its routes indexed
//! event ── what is told and counted
//! ```

pub mod breaker;
pub mod budget;
pub mod buffers;
pub mod event;
pub mod rules;
pub mod site;
