//! Where do segments go? The caller's side of the engine's output.

use crate::buffer::Buffer;
use crate::header::Header;
use crate::queue::{Gather, Nodes, Slices};

/// Takes segments for the network.
pub trait Transmit<B> {
    /// Sends a segment. `false`: it can't be taken now; the engine offers it again at the next call.
    fn transmit(&mut self, header: &Header, payload: Payload<'_, B>) -> bool;
    /// A small buffer with a copy of these bytes, so that they don't keep a large one from other use; `None` where there is none.
    fn copy(&mut self, bytes: &[u8]) -> Option<B>;
}

/// The data of a segment, in up to [`crate::queue::MAX_SLICES`] pieces: [`Iterator`] over buffer, offset and length.
#[derive(Debug)]
pub struct Payload<'a, B> {
    slices: Option<Slices<'a, B>>,
    len: u32,
}

impl<'a, B: Buffer> Payload<'a, B> {
    /// No data.
    #[inline(always)]
    pub const fn empty() -> Self {
        Self { slices: None, len: 0 }
    }

    #[inline(always)]
    pub(crate) fn of(gather: &Gather, nodes: &'a Nodes<B>) -> Self {
        Self { slices: Some(gather.slices(nodes)), len: gather.len }
    }

    /// Bytes of what is left.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<'a, B: Buffer> Iterator for Payload<'a, B> {
    type Item = (&'a B, u16, u16);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let piece = self.slices.as_mut()?.next()?;
        self.len = self.len.saturating_sub(u32::from(piece.2));
        Some(piece)
    }
}
