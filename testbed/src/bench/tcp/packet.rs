//! Packet buffers as a driver would give them: of a pool that is used in turn and larger than the second-level cache, counted by
//! owners, never allocated while anything is measured.

use std::rc::Rc;

use anyhow::{Context as _, Result};
use weir_tcp::Buffer;

/// Bytes of a frame at most.
const ROOM: usize = 2_048;
/// Buffers of a pool: 8,192 of 2 KiB are 16 MiB.
const FRAMES: usize = 8_192;

/// Byte of every buffer at a place: what arrives and leaves is compared with it.
pub(in crate::bench) const fn pattern(at: usize) -> u8 {
    (((at * 167) >> 3) ^ at) as u8
}

/// What a buffer holds: its length beside its first bytes, as a driver finds it in a line that it needs anyway.
#[derive(Debug)]
#[repr(C)]
pub(in crate::bench) struct Frame {
    len: u16,
    bytes: [u8; ROOM],
}

impl Frame {
    /// Sets its length and lets its first bytes be written.
    #[inline(always)]
    pub(in crate::bench) fn start(&mut self, len: usize) -> &mut [u8] {
        self.len = len.min(ROOM) as u16;
        &mut self.bytes
    }
}

/// An owner of a buffer.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Packet(Rc<Frame>);

impl Buffer for Packet {
    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        self.0.bytes.get(..usize::from(self.0.len)).unwrap_or_default()
    }

    #[inline(always)]
    fn share(&self) -> Self {
        self.clone()
    }

    #[inline(always)]
    fn cost(&self) -> u32 {
        ROOM as u32
    }
}

/// Buffers that are given out in turn.
#[derive(Debug)]
pub(in crate::bench) struct Pool {
    frames: Vec<Rc<Frame>>,
    next: usize,
}

impl Pool {
    /// Buffers full of the pattern.
    pub(in crate::bench) fn new() -> Self {
        let frame = || Rc::new(Frame { len: 0, bytes: std::array::from_fn(pattern) });
        Self { frames: std::iter::repeat_with(frame).take(FRAMES).collect(), next: 0 }
    }

    /// The same, something written over the pattern of each.
    pub(in crate::bench) fn filled(mut fill: impl FnMut(&mut [u8])) -> Self {
        let mut pool = Self::new();
        for frame in &mut pool.frames {
            if let Some(frame) = Rc::get_mut(frame) {
                fill(&mut frame.bytes);
            }
        }
        pool
    }

    /// The next buffer that nobody owns, and what is done to it first.
    #[inline(always)]
    pub(in crate::bench) fn take(&mut self, fill: impl FnOnce(&mut Frame)) -> Option<Packet> {
        for _ in 0..FRAMES {
            let at = self.next;
            self.next = if at + 1 == FRAMES { 0 } else { at + 1 };
            let place = self.frames.get_mut(at)?;
            if let Some(frame) = Rc::get_mut(place) {
                fill(frame);
                return Some(Packet(Rc::clone(place)));
            }
        }
        None
    }

    /// A packet with these bytes.
    #[inline]
    pub(in crate::bench) fn copy(&mut self, bytes: &[u8]) -> Option<Packet> {
        self.take(|frame| {
            if let Some(out) = frame.start(bytes.len()).get_mut(..bytes.len()) {
                out.copy_from_slice(bytes);
            }
        })
    }

    /// As [`Pool::take`]; an error where all are in use.
    #[inline(always)]
    pub(in crate::bench) fn fill(&mut self, fill: impl FnOnce(&mut Frame)) -> Result<Packet> {
        self.take(fill).context("all packet buffers are in use")
    }

    /// Buffers that somebody owns.
    #[cfg(test)]
    pub(in crate::bench) fn owned(&self) -> usize {
        self.frames.iter().filter(|frame| Rc::strong_count(frame) > 1).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_given_out_again_once_nobody_owns_it() {
        let mut pool = Pool::new();
        let all: Vec<Packet> = (0..FRAMES).filter_map(|_| pool.take(|frame| frame.start(9)[0] = 7)).collect();
        assert_eq!((all.len(), pool.owned()), (FRAMES, FRAMES));
        assert!(pool.fill(|_| ()).is_err());
        let shared = all[3].share();
        drop(all);
        assert_eq!(pool.owned(), 1);
        assert_eq!((shared.bytes()[0], shared.bytes()[8], shared.bytes().len()), (7, pattern(8), 9));
    }
}
