//! Where do heads and answers lie that outlast a call? In pooled buffers, within a budget.

/// A buffer that somebody holds. It must be given back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Held(u32);

/// Least bytes of a buffer.
const LEAST: usize = 1 << 10;

/// The buffers of a worker.
#[derive(Debug)]
pub(crate) struct Store {
    buffers: Vec<Vec<u8>>,
    free: Vec<u32>,
    used: u64,
    ceiling: u64,
}

impl Store {
    pub(crate) fn new(ceiling: u64) -> Self {
        Self { buffers: Vec::new(), free: Vec::new(), used: 0, ceiling }
    }

    /// Sets the budget.
    pub(crate) fn set_ceiling(&mut self, bytes: u64) {
        self.ceiling = bytes;
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The budget.
    pub(crate) fn ceiling(&self) -> u64 {
        self.ceiling
    }

    /// Whether no new connection should come: seven eighths are in use, the rest is for those that are there.
    pub(crate) fn is_full(&self) -> bool {
        self.used > self.ceiling - self.ceiling / 8
    }

    /// A buffer with these bytes; `None`: the budget is spent.
    #[inline]
    pub(crate) fn hold(&mut self, bytes: &[u8]) -> Option<Held> {
        if self.used + (bytes.len().max(LEAST) as u64) > self.ceiling {
            return None;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.buffers.push(Vec::with_capacity(LEAST));
            self.buffers.len() as u32 - 1
        });
        let buffer = self.buffers.get_mut(at as usize)?;
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.used += buffer.capacity() as u64;
        Some(Held(at))
    }

    /// Puts bytes behind those that are there; false: the budget is spent.
    pub(crate) fn append(&mut self, held: &Held, bytes: &[u8]) -> bool {
        let Some(buffer) = self.buffers.get_mut(held.0 as usize) else { return false };
        let before = buffer.capacity() as u64;
        if self.used + bytes.len() as u64 > self.ceiling {
            return false;
        }
        buffer.extend_from_slice(bytes);
        self.used += buffer.capacity() as u64 - before;
        true
    }

    /// Lets go of what is behind so many bytes.
    pub(crate) fn truncate(&mut self, held: &Held, len: usize) {
        if let Some(buffer) = self.buffers.get_mut(held.0 as usize) {
            buffer.truncate(len);
        }
    }

    /// The bytes.
    #[inline]
    pub(crate) fn bytes(&self, held: &Held) -> &[u8] {
        self.buffers.get(held.0 as usize).map_or(&[], |buffer| buffer)
    }

    /// Takes a buffer back.
    #[inline]
    pub(crate) fn give(&mut self, held: Held) {
        let Some(buffer) = self.buffers.get_mut(held.0 as usize) else { return };
        self.used = self.used.saturating_sub(buffer.capacity() as u64);
        self.free.push(held.0);
    }
}
