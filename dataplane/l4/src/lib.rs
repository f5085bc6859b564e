//! Which backend gets this packet, and how must it look to arrive there? L4 balancing of one worker, sans-IO.
//!
//! ```text
//! engine ── generations, tables and the three steps of a burst
//!   ├─ lane       the way of a packet: look-up, state, rewrite, verdict
//!   ├─ steady     the same for nearly every packet, shorter
//!   ├─ identity   what a record stands for in a generation
//!   ├─ services   listeners, pools, backends of one generation
//!   ├─ table      flow records and their life; entry: one record (weir-index finds it by hash)
//!   ├─ select     the slot that a flow falls on
//!   ├─ snat       source addresses and ports of fullnat
//!   ├─ tunnel     outer headers of ipip and gue
//!   ├─ icmp       errors follow the flow that they are about
//!   ├─ fragment   later fragments follow their first
//!   └─ rate       how many answers a second
//! steer ── which worker owns a packet
//! ```
//!
//! Nothing here does I/O, reads a clock, allocates per packet or panics on what a peer sends.
#![forbid(unsafe_code)]

pub mod engine;
pub mod entry;
pub mod footprint;
pub mod fragment;
pub mod fuzz;
mod icmp;
mod identity;
mod lane;
pub mod rate;
pub mod select;
pub mod services;
pub mod snat;
mod steady;
pub mod steer;
pub mod table;
mod tunnel;
pub mod verdict;

pub use engine::{Accounts, Ended, Engine, HeapMemory, Lookup, Memory, Tables};
pub use services::{Backend, Drain, Listener, Mode, OnDown, Parts, Pool, Services, address_of, bits_of};
pub use steer::{Owner, Spread};
pub use verdict::{Delivery, DropReason, NO_LISTENER, Verdict};
