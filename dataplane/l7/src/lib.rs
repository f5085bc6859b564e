//! What happens between a client's connection and a backend's? The proxy of one worker, without I/O, clock or threads.
#![forbid(unsafe_code)]

mod crc32c;
pub mod fuzz;
pub mod limits;
pub mod proxy_protocol;
