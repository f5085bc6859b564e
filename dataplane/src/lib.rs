//! The packet process as a library: what `weir-dataplane` is made of.
//!
//! ```text
//! management ── adopts generations (snapshot → view), neighbours, statistics
//!   └ launch ─▶ worker × n ── the loop: classify, engine (weir-l4), output
//!                  ├ terminate  connections that end here: TCP (weir-tcp) and the proxy (weir-l7)
//!                  ├ local   answers to ARP, NDP, echo
//!                  ├ punt    to the kernel and back: what is Weir's own
//!                  ├ links   next hops' addresses, packets that wait for one
//!                  ├ events  what the control process is told: exchanges, breakers
//!                  └ books   counters; drops: every reason
//! ```
#![forbid(unsafe_code)]

pub mod access;
pub mod books;
pub mod drops;
pub mod events;
pub mod launch;
pub mod links;
pub mod local;
pub mod management;
pub mod memory;
pub mod messages;
pub mod neighbour;
pub mod output;
pub mod packet;
pub mod proxied;
pub mod punt;
pub mod reach;
#[cfg(test)]
mod sample;
pub mod snapshot;
mod supervisor;
pub mod terminate;
pub mod view;
pub mod worker;
