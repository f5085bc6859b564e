//! What do packet buffers take, and how much of it may TCP's queues hold?
//!
//! The dataplane makes its pools by these numbers and ctlplane checks files by them, so that what one says the other does.

/// Packet buffers of a port, as a configuration sizes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Of the port, for all workers together.
    pub count: u32,
    /// Data room of each in bytes, without headroom.
    pub bytes: u32,
}

impl Buffers {
    /// Unless the configuration says otherwise: AF_XDP holds 4,096 of them per queue, the rest is for rings, batches and bursts.
    pub const DEFAULT_COUNT: u32 = 16_383;
    /// Unless the configuration says otherwise: an Ethernet frame of 1,518 bytes, and DPDK's usual size.
    pub const DEFAULT_BYTES: u32 = 2_048;
    /// Bytes that DPDK keeps free before each packet.
    pub const HEADROOM: u32 = 128;
    /// Bytes of DPDK's header of a buffer.
    pub const HEADER: u32 = 128;
    /// Bytes that a pool adds to each for itself and for alignment.
    const OF_POOL: u32 = 64;

    /// The pool for small pieces of data: one for all workers and ports.
    pub const SMALL: Self = Self { count: 16_383, bytes: 512 };

    /// As a [`crate::record::NodeRecord`] has them: 0 is the default.
    pub fn new(count: u32, bytes: u32) -> Self {
        let or = |given: u32, default: u32| if given == 0 { default } else { given };
        Self { count: or(count, Self::DEFAULT_COUNT), bytes: or(bytes, Self::DEFAULT_BYTES) }
    }

    /// Bytes that a packet keeps from other use.
    pub fn each(self) -> u64 {
        u64::from(self.bytes) + u64::from(Self::HEADROOM + Self::HEADER)
    }

    /// Bytes of a pool of them, as each port has one.
    pub fn of_port(self) -> u64 {
        u64::from(self.count) * (self.each() + u64::from(Self::OF_POOL))
    }

    /// Bytes of them that the queues of one worker's connections may hold: half may wait in queues, the rest is for
    /// receiving and sending.
    pub fn of_queues(self, workers: u32) -> u64 {
        u64::from(self.count / 2) * self.each() / u64::from(workers.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_buffers_is_for_queues_and_workers_share_it() {
        let buffers = Buffers::new(0, 0);
        assert_eq!((buffers.count, buffers.bytes), (16_383, 2_048));
        assert_eq!(buffers.of_queues(1), 8_191 * 2_304);
        assert_eq!(Buffers::new(1_000, 1_024).of_queues(4), 500 * 1_280 / 4);
        assert_eq!(Buffers::new(1 << 24, 65_000).of_port(), (1 << 24) * 65_320);
    }
}
