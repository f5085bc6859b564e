//! What does the system's DPDK look like from Rust?
//!
//! Raw declarations, generated at build time from the installed headers, and the wrappers of `shim.c` for
//! what DPDK defines as `static inline`. No logic, no safety: the `dpdk` crate is the only caller.

#![allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::indexing_slicing
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
