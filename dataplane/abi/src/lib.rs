//! What the two processes share: the snapshot (ctlplane → dataplane) and the counters (dataplane → anyone).
//!
//! Everything here is pointer-free and `#[repr(C)]`, in host byte order unless a field says otherwise, and read only
//! after magic, version, length and checksum were verified on a private copy: the other side is treated as hostile.
//! This crate opens no files and maps no memory; `hugepages` does.
//!
//! ```text
//! root-<generation>      RootHeader, then one TableRef per table      immutable
//! table-<id>             TableHeader, then the table's records        immutable, content-addressed
//! counters               see [`counters`]                             one writer per column
//! events-<worker>        records, see [`events`]                      one ring per worker
//! probes                 see [`probes`]                               one writer, ctlplane
//! ```
#![forbid(unsafe_code)]

pub mod access;
pub mod buffers;
mod check;
pub mod columns;
pub mod counters;
pub mod events;
pub mod fuzz;
pub mod http;
pub mod image;
pub mod probes;
pub mod proxy;
pub mod record;
pub mod text;

pub use access::{AccessList, AccessTable};
pub use http::HttpTable;
pub use image::{
    ListenersTable, NodeTable, PoolTable, Root, SnapshotError, TableImage, TableKind, TableRef,
    root_generation, root_name, table_name,
};
