//! TCP for one worker, without I/O, clock or threads: a million connections, fed in bursts.
//!
//! ```text
//! frame ─ segment (checks, options) ─▶ engine ─ look-up ─┬─ connection ─▶ input ─┬─ receive queue ─▶ application
//!                                                        ├─ time_wait            ├─ send queue, recovery (RACK-TLP)
//!                                                        └─ listen (SYN, cookie) └─ rtt, congestion (CUBIC)
//! timers (wheel) ─▶ output ─▶ header + payload slices ─▶ the caller's `Transmit`
//! ```
#![forbid(unsafe_code)]

mod acknowledge;
mod application;
pub mod buffer;
pub mod config;
pub mod congestion;
mod connection;
pub mod counters;
mod data;
pub mod engine;
pub mod event;
mod footprint;
pub mod fuzz;
pub mod header;
pub mod icmp;
mod input;
mod limit;
mod listen;
pub mod options;
mod output;
pub mod queue;
mod quiet;
pub mod rack;
mod relayed;
pub mod rtt;
pub mod secret;
pub mod segment;
pub mod seq;
mod slab;
mod steady;
pub mod time;
mod time_wait;
mod timers;
pub mod transmit;
pub mod wheel;

pub use application::Info;
pub use buffer::{Buffer, Chunk, Endpoint};
pub use config::{ConnectionConfig, EngineConfig, KeepAlive, SynCookies};
pub use congestion::Algorithm;
pub use connection::State;
pub use counters::Counters;
pub use engine::{Census, ConnectError, Engine, Handled, Lookup};
pub use event::{Ended, Events, Handle};
pub use footprint::Footprint;
pub use header::Header;
pub use seq::SeqNumber;
pub use time::Instant;
pub use transmit::{Payload, Transmit};
