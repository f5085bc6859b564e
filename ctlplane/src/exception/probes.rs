//! How does a health check reach one backend by its vip? Its local port is written down, and the dataplane sends what the kernel sends
//! from that port to that backend.
//!
//! The socket is bound to the interface of the port that leads to the backend (SO_BINDTODEVICE), to that port's own address, and to the
//! local port that was written down first; ports from [`weir_abi::probes::FIRST_PORT`] on are never Weir's own.

use std::sync::atomic::Ordering;

use hugepages::segment::{Access, AtomicWords, SegmentDir, SegmentError};
use weir_abi::probes::{NAME, Probe, WORDS};

/// The ports that are written down. One writer: the daemon.
#[derive(Debug)]
pub struct Probes {
    words: AtomicWords,
}

impl Probes {
    /// Opens the instance's, without what an earlier daemon has left in it.
    pub fn open(directory: &SegmentDir) -> Result<Self, SegmentError> {
        let words = directory.map_atomics(NAME, WORDS, Access::Create)?;
        for word in words.iter() {
            word.store(0, Ordering::Release);
        }
        Ok(Self { words })
    }

    /// Packets that the kernel sends to a vip from this local port go to that backend, from now on.
    pub fn set(&self, port: u16, probe: Probe) {
        self.store(port, probe.word());
    }

    /// They go nowhere any more.
    pub fn clear(&self, port: u16) {
        self.store(port, 0);
    }

    fn store(&self, port: u16, value: u64) {
        if let Some(word) = self.words.get(usize::from(port)) {
            word.store(value, Ordering::Release);
        }
    }
}
