//! What do these bytes say, and how are they changed without touching the rest?
//!
//! Views, parsers and writers over Ethernet frames, for the packet path (`parse`, `rewrite`, `encap`, `hash`: raw
//! offsets, no allocation, a few nanoseconds) and for the slow path (`arp`, `ndp`, `icmp_reply`). Nothing here does I/O,
//! keeps state, or reads a clock. Input from the network never panics: it is refused with a [`Malformed`] reason.
//!
//! ```text
//! frame ─ parse ─▶ Parsed (offsets, ports, flags) ─┬─ rewrite  addresses, ports, TTL in place
//!                                                  ├─ encap    outer IPv4/IPv6, UDP, GUE
//!                                                  ├─ icmp     the quoted flow of an ICMP error
//!                                                  ├─ hash     flow, stable and Toeplitz hashes
//!                                                  └─ icmp_reply, tcp_reset   answers
//! ```
//!
//! Numbers are in host order unless a name or a comment says otherwise; byte arrays are in network order.
#![forbid(unsafe_code)]

pub mod arp;
pub mod buffer;
mod bytes;
pub mod checksum;
pub mod encap;
pub mod eth;
mod extension;
pub mod fuzz;
pub mod hash;
pub mod icmp;
pub mod icmp_reply;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
mod malformed;
pub mod ndp;
pub mod parse;
pub mod rewrite;
#[cfg(test)]
mod sample;
pub mod tcp;
pub mod tcp_reset;
pub mod types;
pub mod udp;

pub use buffer::{PacketBuf, VecBuf};
pub use icmp::InnerFlow;
pub use malformed::Malformed;
pub use parse::{Kind, ParseOptions, Parsed, Usual, parse, parse_into, usual_v4, usual_v6};
pub use types::{Family, Mac, Prefix, Protocol};
