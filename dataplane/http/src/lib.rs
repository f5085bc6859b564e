//! What does this message say, where does it end, and which route does it take? HTTP/1.1 without I/O, clock or threads.
//!
//! ```text
//! cause ── why the proxy answers by itself
//! routes ── which route does a request take, and why
//!   ├─ spec    conditions and actions, as configured
//!   ├─ table   the same, indexed
//!   └─ explain the reasons
//! ```
#![forbid(unsafe_code)]

pub mod cause;
pub mod routes;
