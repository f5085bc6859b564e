//! What do the records of a worker's proxy take? For who plans memory; heads and collected bodies come on top, within their budget.

use super::buffers::CLASSES;
use super::client::Client;
use super::rate::Rates;
use super::slab::Slab;
use super::upstream::Upstream;
use crate::session::Session;

/// Keys of rate limits that a worker of the node remembers: buckets of clients that come seldom are full before they are forgotten.
pub const RATE_KEYS: usize = 1 << 16;

/// Bytes of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Of a TCP session: both sides.
    pub session: u64,
    /// Of a client's connection of HTTP, its exchange included.
    pub client: u64,
    /// Of a connection to a backend of HTTP.
    pub upstream: u64,
    /// Of [`RATE_KEYS`] and their buckets, whether there are limits or not.
    pub rates: u64,
    /// Bytes of the smallest and the largest buffer of a head.
    pub buffers: (u64, u64),
}

/// What records take whose connections are named by `H`, at one of so many workers.
pub fn footprint<H>(workers: u16) -> Footprint {
    let [small, .., large] = CLASSES;
    Footprint {
        session: size_of::<Session<H>>() as u64,
        client: Slab::<Client<H>>::BYTES as u64,
        upstream: Slab::<Upstream<H>>::BYTES as u64,
        rates: Rates::bytes(RATE_KEYS, workers),
        buffers: (small as u64, large as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_small() {
        let footprint = footprint::<weir_tcp::Handle>(1);
        for bytes in [footprint.session, footprint.client, footprint.upstream] {
            assert!((32..2_048).contains(&bytes), "{footprint:?}");
        }
        assert!(footprint.rates > 16 * RATE_KEYS as u64, "{footprint:?}");
    }
}
