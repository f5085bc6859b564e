//! How may several owners hold one packet? As [`SharedMbuf`]s, none of which can change it.

use std::mem::ManuallyDrop;

use dpdk_sys as sys;

use crate::mbuf::{self, Mbuf};

/// One of several owners of a packet, whose bytes nobody changes any more. The packet returns to its pool with the last of
/// them; each counts in the ledger.
#[derive(Debug)]
#[repr(transparent)]
pub struct SharedMbuf(Mbuf);

impl SharedMbuf {
    /// Gives up the right to change the packet.
    #[inline]
    pub fn new(packet: Mbuf) -> Self {
        Self(packet)
    }

    /// Bytes of the first segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.0.data()
    }

    /// Bytes of memory that the packet keeps from other use: its buffer and its header.
    #[inline]
    pub fn cost(&self) -> u32 {
        self.0.room() + size_of::<sys::rte_mbuf>() as u32
    }

    /// Another owner of the same packet.
    #[inline]
    #[must_use]
    pub fn share(&self) -> Self {
        // SAFETY: the packet is valid while this handle owns it; rte_pktmbuf_refcnt_update counts one more owner, whose handle is
        // the one returned: rte_pktmbuf_free of each takes one back.
        let another = unsafe {
            sys::weir_mbuf_share(self.0.raw());
            Mbuf::from_raw(self.0.raw_nonnull())
        };
        mbuf::count(1);
        Self(another)
    }

    /// The packet, to be changed again; the owner as it was, where there are others.
    ///
    /// # Errors
    /// There are others.
    pub fn into_unique(self) -> Result<Mbuf, Self> {
        let this = ManuallyDrop::new(self);
        // SAFETY: the handle is valid and is not used or dropped after being read out here.
        let packet = unsafe { std::ptr::read(&raw const this.0) };
        // SAFETY: reads the count of owners of a valid packet.
        if unsafe { sys::weir_mbuf_owners(packet.raw()) } == 1 { Ok(packet) } else { Err(Self(packet)) }
    }
}
