//! What does this message say, where does it end, and which route does it take? HTTP/1.1 without I/O, clock or threads.
//!
//! ```text
//! head ── what a request or a response says
//!   ├─ name     which field this is
//!   ├─ framing  where its body ends
//!   ├─ target   what it is about
//!   └─ scan     where runs of usual bytes end
//! chunked ── where a chunked body ends, byte by byte
//! write ── heads towards backends and clients, and the proxy's own answers
//!   ├─ forwarded  who the client is
//!   ├─ cookie     a cookie's value
//!   ├─ date       what time it is
//!   └─ status     a status' reason
//! cause ── why the proxy answers by itself
//! routes ── which route does a request take, and why
//!   ├─ spec    conditions and actions, as configured
//!   ├─ table   the same, indexed
//!   └─ explain the reasons
//! ```
#![forbid(unsafe_code)]

pub mod cause;
pub mod chunked;
pub mod cookie;
pub mod date;
mod forwarded;
mod framing;
pub mod fuzz;
pub mod head;
pub mod name;
pub mod routes;
mod scan;
pub mod status;
pub mod target;
pub mod write;
