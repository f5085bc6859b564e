//! What must a packet buffer offer so that headers can be put before it and bytes taken off it?
//!
//! The dataplane implements [`PacketBuf`] for mbufs; tests and `weir explain` use [`VecBuf`].

/// One packet in one contiguous piece of memory, with room before and after it.
pub trait PacketBuf {
    /// The frame, from its first Ethernet byte.
    fn data(&self) -> &[u8];

    /// The frame, to be changed in place.
    fn data_mut(&mut self) -> &mut [u8];

    /// Makes `count` bytes of headroom the new start of the frame and returns them; their contents are arbitrary.
    /// `None`, and no change, where the headroom is smaller.
    fn prepend(&mut self, count: usize) -> Option<&mut [u8]>;

    /// Takes `count` bytes off the front; false, and no change, where the frame is shorter.
    fn trim_front(&mut self, count: usize) -> bool;

    /// Cuts the frame to `len` bytes; false, and no change, where it is shorter already.
    fn truncate(&mut self, len: usize) -> bool;

    /// Cuts the frame to `len` bytes, makes `count` bytes of headroom its new start, and returns all of it. `None` where the frame
    /// is shorter or the headroom smaller; then nothing has changed but perhaps its length.
    #[inline(always)]
    fn reframe(&mut self, count: usize, len: usize) -> Option<&mut [u8]> {
        if !self.truncate(len) {
            return None;
        }
        self.prepend(count)?;
        Some(self.data_mut())
    }

    /// Makes `count` bytes of tailroom the new end of the frame and returns them; their contents are arbitrary.
    /// `None`, and no change, where the tailroom is smaller.
    fn append(&mut self, count: usize) -> Option<&mut [u8]>;
}

/// A packet in a vector: for tests, replay and explanations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VecBuf {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl VecBuf {
    /// What DPDK leaves before a packet by default (RTE_PKTMBUF_HEADROOM).
    pub const HEADROOM: usize = 128;
    /// Room after the packet.
    pub const TAILROOM: usize = 128;

    /// A copy of `frame` with the usual room around it.
    pub fn new(frame: &[u8]) -> VecBuf {
        VecBuf::with_room(frame, VecBuf::HEADROOM, VecBuf::TAILROOM)
    }

    /// A copy of `frame` with the given room around it, in bytes.
    pub fn with_room(frame: &[u8], headroom: usize, tailroom: usize) -> VecBuf {
        let mut bytes = vec![0; headroom];
        bytes.extend_from_slice(frame);
        bytes.resize(headroom + frame.len() + tailroom, 0);
        VecBuf { bytes, start: headroom, end: headroom + frame.len() }
    }
}

impl PacketBuf for VecBuf {
    fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn data_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    fn prepend(&mut self, count: usize) -> Option<&mut [u8]> {
        self.start = self.start.checked_sub(count)?;
        self.bytes.get_mut(self.start..self.start + count)
    }

    fn trim_front(&mut self, count: usize) -> bool {
        let fits = count <= self.end - self.start;
        if fits {
            self.start += count;
        }
        fits
    }

    fn truncate(&mut self, len: usize) -> bool {
        let fits = len <= self.end - self.start;
        if fits {
            self.end = self.start + len;
        }
        fits
    }

    fn append(&mut self, count: usize) -> Option<&mut [u8]> {
        let end = self.end.checked_add(count).filter(|end| *end <= self.bytes.len())?;
        let old = std::mem::replace(&mut self.end, end);
        self.bytes.get_mut(old..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_taken_and_given_back_exactly() {
        let mut packet = VecBuf::with_room(&[1, 2, 3, 4], 2, 1);
        assert!(packet.prepend(3).is_none());
        assert_eq!(packet.data(), [1, 2, 3, 4]);
        packet.prepend(2).unwrap().copy_from_slice(&[8, 9]);
        assert_eq!(packet.data(), [8, 9, 1, 2, 3, 4]);
        assert!(!packet.trim_front(7));
        assert!(packet.trim_front(3));
        assert!(!packet.truncate(4));
        assert!(packet.truncate(2));
        assert_eq!(packet.data(), [2, 3]);
        packet.append(1).unwrap()[0] = 7;
        assert_eq!(packet.data(), [2, 3, 7]);
        assert!(packet.append(3).is_none());
        assert_eq!(packet.data(), [2, 3, 7]);
        assert_eq!(packet.reframe(3, 2).unwrap()[3..], [2, 3]);
        assert!(packet.reframe(1, 5).is_none() && packet.reframe(1, 6).is_none());
    }
}
