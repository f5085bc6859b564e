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
    #[inline]
    fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        self.0.append(count)
    }
}
