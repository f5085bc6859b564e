//! What does a user of a proxied listener notice?

mod balancing;
mod bounds;
mod ends;
mod engines;
mod fake;
mod generations;
mod headers;
mod queueing;
mod retries;
mod world;
