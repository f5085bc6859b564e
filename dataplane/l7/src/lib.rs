//! What happens between a client's connection and a backend's? The proxy of one worker, without I/O, clock or threads.
//!
//! ```text
//! proxy ── sessions, generations, the worker's calls
//!   ├─ accept          limits of the listener, PROXY header of the client
//!   ├─ connect         a backend: selection, limits, source port, retries, the queue
//!   ├─ relay           data, FIN and RST from side to side; timeouts
//!   ├─ session         records and queues
//!   ├─ rules           what the configuration says, beside the services of L4
//!   ├─ limits          leases of workers and the ledger of the management thread
//!   ├─ proxy_protocol  headers of versions 1 and 2
//!   └─ connections     what the proxy needs: a TCP engine, buffers, and who counts
//! ```
//!
//! Everything is bounded: sessions by their slab, queues by the configuration, headers by the protocol; data waits in the
//! engine's queues, whose windows close.
#![forbid(unsafe_code)]

mod accept;
mod admission;
mod connect;
pub mod connections;
mod crc32c;
pub mod fuzz;
pub mod http;
pub mod limits;
pub mod proxy;
pub mod proxy_protocol;
mod relay;
pub mod rules;
mod session;

pub use connections::{Accounts, BackendCount, Cause, Connections, ListenerCount, Surroundings};
pub use http::HttpConfig;
pub use http::rate::RateMessage;
pub use limits::{Key, Ledger, ToLedger, ToWorker};
pub use proxy::{Proxy, ProxyConfig};
pub use rules::{Counted, ListenerRules, PoolRules, Rules};
