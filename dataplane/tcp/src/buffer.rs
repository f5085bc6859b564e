//! Where do the bytes of a stream lie? In the caller's packet buffers; the engine holds pieces of them.

/// A packet buffer that may have several owners, none of whom changes it.
pub trait Buffer: Sized {
    /// All its bytes.
    fn bytes(&self) -> &[u8];
    /// Another owner of the same memory.
    fn share(&self) -> Self;
    /// Bytes of memory that it keeps from other use, shared or not.
    fn cost(&self) -> u32;
}

/// A piece of a buffer: bytes of a stream.
#[derive(Debug)]
pub struct Chunk<B> {
    /// The buffer.
    pub buffer: B,
    /// Where the piece begins.
    pub offset: u16,
    /// Its length; never 0 in a queue.
    pub len: u16,
}

impl<B: Buffer> Chunk<B> {
    /// All of a buffer, its first 65,535 bytes at most.
    pub fn whole(buffer: B) -> Self {
        let len = buffer.bytes().len().min(usize::from(u16::MAX)) as u16;
        Self { buffer, offset: 0, len }
    }

    /// The bytes; empty where the piece does not lie within its buffer.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let start = usize::from(self.offset);
        self.buffer.bytes().get(start..start + usize::from(self.len)).unwrap_or_default()
    }
}

/// An address and a port. IPv4 addresses are IPv4-mapped (RFC 4291 §2.5.5.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Address, in host order.
    pub address: u128,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Whether the address is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.address >> 32 == 0xffff
    }
}

/// Buffers on the heap, for tests, simulations and benches of the engine alone.
#[derive(Clone, Debug)]
pub struct HeapBuffer(std::rc::Rc<[u8]>);

impl From<&[u8]> for HeapBuffer {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl Buffer for HeapBuffer {
    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    #[inline]
    fn share(&self) -> Self {
        self.clone()
    }

    #[inline]
    fn cost(&self) -> u32 {
        self.0.len() as u32
    }
}
