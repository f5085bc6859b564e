//! What does an engine set aside? For who plans memory; what queues hold comes on top, up to [`EngineConfig::memory`].

use weir_index::{Bucket, buckets_for};

use crate::config::EngineConfig;
use crate::connection::Connection;
use crate::time_wait::TimeWait;

/// Bytes that an engine sets aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Of a connection, whatever its state, less its share of the index.
    pub connection: u64,
    /// Of a connection in TIME-WAIT.
    pub time_wait: u64,
    /// All of it, the index of connections and TIME-WAIT included.
    pub total: u64,
}

impl EngineConfig {
    /// Buckets of the index: a word for each connection and for each that is in TIME-WAIT.
    pub(crate) fn index_buckets(&self) -> usize {
        buckets_for((self.connections + self.time_waits).div_ceil(2))
    }

    /// What an engine of this configuration sets aside.
    pub fn footprint(&self) -> Footprint {
        let connection = size_of::<Connection>() as u64;
        let time_wait = size_of::<Option<TimeWait>>() as u64;
        let index = (self.index_buckets() * size_of::<Bucket>()) as u64;
        let total = self.connections as u64 * connection + self.time_waits as u64 * time_wait + index;
        Footprint { connection, time_wait, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_footprint_grows_with_connections() {
        let small =
            EngineConfig { connections: 1_000, time_waits: 1_000, ..EngineConfig::default() }.footprint();
        let large =
            EngineConfig { connections: 2_000, time_waits: 1_000, ..EngineConfig::default() }.footprint();
        assert!(large.total >= small.total + 1_000 * small.connection);
        assert!((64..4_096).contains(&small.connection) && small.time_wait < small.connection);
    }
}
