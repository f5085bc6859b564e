//! What both benches' workers send by: headers are written as a NIC wants them, data held until it has sent them.

use weir_tcp::Header;

use super::packet::{Packet, Pool};

/// Headers of a ring: together half a megabyte.
const HEADERS: usize = 4_096;
/// Room before a header, for Ethernet.
const ETHERNET: usize = 14;

/// The sending side of a port, as far as a stack feels it.
#[derive(Debug)]
pub(in crate::bench) struct Nic {
    headers: Vec<[u8; 128]>,
    next: usize,
    /// Data of segments that were not sent yet.
    held: Vec<Packet>,
    copies: Pool,
}

impl Nic {
    pub(in crate::bench) fn new() -> Self {
        Self {
            headers: vec![[0; 128]; HEADERS],
            next: 0,
            held: Vec::with_capacity(1 << 12),
            copies: Pool::new(),
        }
    }

    /// Writes the next segment's headers.
    #[inline(always)]
    pub(in crate::bench) fn write(&mut self, header: &Header, len: usize) {
        let at = self.next;
        self.next = if at + 1 == HEADERS { 0 } else { at + 1 };
        if let Some(out) = self.headers.get_mut(at) {
            out[12..ETHERNET].copy_from_slice(&[8, 0]);
            header.write_without_checksum(len, &mut out[ETHERNET..]);
        }
    }

    /// Keeps data until it is sent.
    #[inline(always)]
    pub(in crate::bench) fn hold(&mut self, buffer: &Packet) {
        self.held.push(buffer.clone());
    }

    /// All is sent.
    #[inline(always)]
    pub(in crate::bench) fn flush(&mut self) {
        self.held.clear();
    }

    /// A packet with these bytes.
    #[inline]
    pub(in crate::bench) fn copy(&mut self, bytes: &[u8]) -> Option<Packet> {
        self.copies.copy(bytes)
    }
}
