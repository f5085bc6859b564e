//! DPDK as owned, safe Rust: which types hold which part of the NIC and its memory?
//!
//! ```text
//!   Eal ──────────── the process-wide environment, started once
//!    ├─ PacketPool ─ where packet buffers come from
//!    ├─ Ring ─────── Producer and Consumer: packets from one worker to another
//!    └─ Port ─────── one NIC or virtual device
//!        ├─ RxQueue ─ moved to a worker: burst in
//!        └─ TxQueue ─ moved to a worker: burst out
//!   Mbuf ─────────── one packet, owned: dropping it gives it back to its pool
//!   SharedMbuf ───── one of several owners, none of whom changes it
//! ```
//!
//! Everything that needs the environment holds an [`EalHandle`], so the environment outlives it. A packet is
//! owned by exactly one [`Mbuf`]; safe code can neither lose one without counting it (see [`mbuf::ledger`])
//! nor free one twice. This crate is the only caller of `dpdk-sys`; the packet path above it has no `unsafe`.

pub mod device;
pub mod eal;
pub mod lcore;
pub mod mbuf;
pub mod mempool;
pub mod port;
pub mod ring;

mod ethtool;
mod offload;
mod shared;
mod text;

pub use arrayvec::ArrayVec;
pub use device::DeviceSpec;
pub use eal::{Eal, EalConfig, EalHandle};
pub use mbuf::Mbuf;
pub use mempool::PacketPool;
pub use port::{Port, RxQueue, TxQueue};
pub use shared::SharedMbuf;
pub use text::Errno;

/// The burst size that DPDK's drivers and its own examples are tuned for.
pub const BURST: usize = 32;

/// A burst of packets on a worker's stack.
pub type Burst = ArrayVec<Mbuf, BURST>;
