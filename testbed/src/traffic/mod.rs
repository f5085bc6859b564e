//! Clients, servers and frames: what flows through Weir while it is watched.

pub(crate) mod http;
pub(crate) mod servers;
