//! Memory that outlives a process or is shared between two of them, and the small machinery around it.
//!
//! ```text
//!  reserve     how many hugepages does this machine have, and may Weir have them?   (sysfs, mounts, NUMA)
//!  segment     named memory in a directory: immutable files, owned tables, words that two processes share
//!  generation  which snapshot is published, adopted, refused: the control page of one instance
//!  spsc        one producer, one consumer, inside one process
//!  events      the same between two processes, for records of bytes, in a named segment
//!  prefetch    ask the cache for a line without touching it
//!  advise      ask the kernel for huge pages under private memory
//! ```
//!
//! This is one of the few places where `unsafe` is allowed; what it exports is safe to call. Everything that another
//! process can write is read as atomics or copied before anyone looks at it.

pub mod advise;
pub mod events;
pub mod generation;
pub mod prefetch;
pub mod reserve;
pub mod segment;
pub mod spsc;
