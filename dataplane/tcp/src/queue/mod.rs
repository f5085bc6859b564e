//! Which bytes of a stream wait, and for what? To be sent, to be acknowledged, to be read, or for the gap before them.
//!
//! The queues are plain data that a connection's record embeds; their pieces lie in one slab per worker ([`Nodes`]),
//! which each call is handed. Called by the connection's input and output; nothing here knows of timers, windows,
//! congestion, SYN or FIN.
mod nodes;
mod receive;
#[cfg(test)]
mod receive_model;
mod send;
#[cfg(test)]
mod send_model;

pub use nodes::Nodes;
pub use receive::{Inserted, MAX_GAPS, MAX_PIECES, ReceiveQueue};
pub use send::{Delivered, Gather, GatherKind, Losses, MAX_SLICES, SendQueue, Slices};
