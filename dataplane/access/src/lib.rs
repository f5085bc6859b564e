//! May this client begin a flow? Prefix lists, rates and limits per source, asked once for each new flow.
//!
//! Sans-IO: the time is an argument, and nothing here blocks or allocates once it is made. Called by L4 before it makes a flow
//! and by the terminator for a SYN; `weir explain access` and `weir plan` ask the same code.
//!
//! ```text
//! new flow ─▶ Policy::admit ─▶ Table (allow or deny, longest match)    immutable, of a snapshot
//!                           ─▶ Counts (flows of this source)          ┐ shared by all workers,
//!                           ─▶ Rates and Buckets (new flows a second) ┘ one atomic word each
//! ```
//!
//! What the workers share is atomic words that only new flows of listeners with a limit touch, so a limit is one number of the
//! node, whichever workers a client's flows come to.
#![forbid(unsafe_code)]

pub mod build;
pub mod counts;
pub mod file;
pub mod hash;
pub mod list;
pub mod policy;
pub mod rate;
pub mod table;

pub use build::{Prefix, Rule};
pub use list::{List, TableV6};
pub use policy::{Per, Policy, Rate, Refusal, Shared};
pub use table::{Address, Node, Parts, Table, TableError};
