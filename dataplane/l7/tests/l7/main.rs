//! What does a user of a proxied listener notice?
//!
//! [`fake`] holds connections that the test plays, [`world`] a proxy between them; [`engines`] has real TCP on all sides.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test stops where it goes wrong"
)]

mod balancing;
mod bounds;
mod ends;
mod engines;
mod fake;
mod generations;
mod headers;
mod http;
mod queueing;
mod retries;
mod world;
