//! The control plane: from `weir.toml` to a published generation.
//!
//! ```text
//! weir.toml ─ schema ─ validate ─▶ model ─ compile (+ state) ─▶ tables ─ publish ─▶ shared memory ─▶ dataplane
//!                                            ▲                                │
//!                       overrides, indices ──┘     counters, acks ◀───────────┘
//! ```
#![forbid(unsafe_code)]

pub mod access_log;
pub mod announcements;
pub mod api;
pub mod changes;
pub mod cli;
pub mod client;
pub mod compile;
pub mod counters;
pub mod daemon;
pub mod diagnostic;
pub mod drain;
pub mod engine;
pub mod exception;
pub mod explain;
pub mod fuzz;
mod git;
pub mod health;
pub mod history;
pub mod machine;
pub mod model;
pub mod plan;
pub mod publish;
mod reader;
mod recover;
mod retirement;
pub mod schema;
pub mod slots;
pub mod socket;
pub mod state;
pub mod status;
pub mod store;
mod supervisor;
pub mod units;
pub mod validate;
