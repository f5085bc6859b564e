//! A DPDK packet as the sans-IO crates want it.

use dpdk::Mbuf;
use weir_net::PacketBuf;

/// An mbuf of one segment (the worker linearises or drops others before it looks inside).
#[derive(Debug)]
#[repr(transparent)]
pub struct Packet(pub Mbuf);

impl PacketBuf for Packet {
    #[inline]
    fn data(&self) -> &[u8] {
        self.0.data()
    }
    #[inline]
    fn data_mut(&mut self) -> &mut [u8] {
        self.0.data_mut()
    }
    #[inline]
    fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        self.0.prepend(count)
    }
    #[inline]
    fn trim_front(&mut self, count: usize) -> bool {
        self.0.trim_front(count)
    }
    #[inline]
    fn truncate(&mut self, len: usize) -> bool {
        self.0.truncate(len)
    }
    #[inline(always)]
    fn reframe(&mut self, count: usize, len: usize) -> Option<&mut [u8]> {
        self.0.reframe(count, len)
    }
    #[inline]
    fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        self.0.append(count)
    }
}

/// DPDK in a test's process: one environment without hugepages, started by whichever test comes first.
#[cfg(test)]
pub(crate) mod tests {
    use super::Packet;
    use dpdk::{Eal, EalConfig, EalHandle, PacketPool};
    use std::sync::OnceLock;

    pub(crate) fn environment() -> &'static EalHandle {
        static ENVIRONMENT: OnceLock<EalHandle> = OnceLock::new();
        ENVIRONMENT.get_or_init(|| {
            let config = EalConfig {
                file_prefix: "weir-test".to_owned(),
                no_huge: true,
                no_pci: true,
                memory_mb: Some(256),
                ..EalConfig::default()
            };
            Eal::init(&config).unwrap().handle()
        })
    }

    pub(crate) fn pool() -> &'static PacketPool {
        static POOL: OnceLock<PacketPool> = OnceLock::new();
        POOL.get_or_init(|| PacketPool::new(environment(), "test", 4_095, 0, 2_048, None).unwrap())
    }

    pub(crate) fn packet(bytes: &[u8]) -> Packet {
        let mut packet = pool().alloc().unwrap();
        assert!(packet.fill(bytes));
        Packet(packet)
    }
}
