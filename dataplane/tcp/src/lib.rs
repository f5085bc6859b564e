//! TCP for one worker, without I/O, clock or threads: a million connections, fed in bursts.
//!
//! ```text
//! frame ─ segment (checks, options) ─▶ engine ─ look-up ─┬─ connection ─▶ input ─┬─ receive queue ─▶ application
//!                                                        ├─ time_wait            ├─ send queue, recovery (RACK-TLP)
//!                                                        └─ listen (SYN, cookie) └─ rtt, congestion (CUBIC)
//! timers (wheel) ─▶ output ─▶ header + payload slices ─▶ the caller's `Transmit`
//! ```
#![forbid(unsafe_code)]

pub mod buffer;
pub mod congestion;
pub mod header;
pub mod options;
pub mod rtt;
pub mod secret;
pub mod segment;
pub mod queue;
pub mod rack;
pub mod seq;
pub mod time;

pub use buffer::{Buffer, Chunk, Endpoint};
pub use seq::SeqNumber;
pub use time::Instant;
