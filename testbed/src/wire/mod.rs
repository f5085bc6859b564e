//! The TCP engine against the kernel's, in real time: a TAP in a namespace on one side, an engine (or another TAP) on the
//! other, and between them a link of our own that delays, loses, reorders, duplicates and queues.
//!
//! ```text
//! kernel sockets ─ tap0 ─┤                     ├─ engine + talks (engine)
//!   in a namespace       ├── link ⇄ link ──────┤
//!   (kernel)             │  (crossing, link)   └─ tap0 of another namespace, for figures beside it
//! ```
//! Addresses: the kernel's side 198.18.0.1 and 2001:db8::1, the other side .2 and ::2; neighbours are static.

mod crossing;
mod engine;
mod kernel;
mod link;
mod talk;

pub(crate) use crossing::Crossing;
pub(crate) use engine::{EngineHost, Outcome, Role};
pub(crate) use kernel::Kernel;
pub(crate) use link::Quality;
pub(crate) use talk::{Talk, Turn, exchange};

use std::net::IpAddr;

use crate::topology::lab::Family;

/// The address of a side: 1 the kernel's, 2 the other's.
pub(crate) fn address(family: Family, side: u8) -> IpAddr {
    match family {
        Family::Ipv4 => [198, 18, 0, side].into(),
        Family::Ipv6 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(side)].into(),
    }
}

/// The Ethernet address of a side.
fn mac(side: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, side]
}
