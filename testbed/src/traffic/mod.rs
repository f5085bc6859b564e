//! Clients, servers and frames: what flows through Weir while it is watched.

pub(crate) mod backend;
pub(crate) mod datagram;
pub(crate) mod exchange;
pub(crate) mod frames;
pub(crate) mod http;
pub(crate) mod pcap;
pub(crate) mod peer;
pub(crate) mod probe;
pub(crate) mod rate;
pub(crate) mod servers;
pub(crate) mod stream;
pub(crate) mod tunnel;
pub(crate) mod websocket;
