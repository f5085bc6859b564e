//! What does an application ask that only moves data from one connection to another?

use crate::buffer::{Buffer, Chunk};
use crate::connection::{Flags, State};
use crate::engine::Engine;
use crate::event::Handle;

impl<B: Buffer> Engine<B> {
    /// Asks for [`crate::Events::WRITABLE`] once there is room to send again, without offering anything: the caller leaves its data
    /// in another connection's receive queue.
    #[inline]
    pub fn await_room(&mut self, handle: Handle) {
        let is_starved = self.nodes.left_to_send() == 0;
        let Some(record) = self.slab.of_mut(handle) else { return };
        record.flags.set(Flags::WANTS_ROOM);
        // no acknowledgement tells that others have let pieces go
        if is_starved && !record.flags.has(Flags::STARVED) {
            record.flags.set(Flags::STARVED);
            self.starved.push_back(handle.slot());
        }
    }

    /// The index of the listener whose connection it is, or the profile with which the application opened it.
    pub fn profile_of(&self, handle: Handle) -> Option<u16> {
        self.slab.of(handle).map(|record| record.profile)
    }

    /// The first piece of what waits to be received; it stays there.
    pub fn peek(&self, handle: Handle) -> Option<&[u8]> {
        self.slab.of(handle).and_then(|record| record.receive.peek(&self.nodes))
    }

    /// Takes bytes away from the beginning of what waits to be received.
    pub fn consume(&mut self, handle: Handle, bytes: u32) {
        let Some(record) = self.slab.of_mut(handle) else { return };
        record.receive.consume(&mut self.nodes, bytes);
        if record.was_read(&self.nodes, self.config.memory, self.clock) {
            self.mark_ready(handle.slot());
        }
    }

    /// As [`Engine::receive`], but at most so many bytes; 0 takes none.
    #[inline]
    pub fn receive_part(&mut self, handle: Handle, most: u32) -> Option<Chunk<B>> {
        let record = self.slab.of_mut(handle).filter(|_| most > 0)?;
        let chunk = record.receive.take(&mut self.nodes, most)?;
        if record.was_read(&self.nodes, self.config.memory, self.clock) {
            self.mark_ready(handle.slot());
        }
        Some(chunk)
    }

    /// Bytes that wait to be sent or acknowledged.
    #[inline]
    pub fn queued(&self, handle: Handle) -> u32 {
        self.slab.of(handle).map_or(0, |record| record.send.len())
    }

    /// All pieces of what waits to be received, in order; they stay there.
    pub fn waiting(&self, handle: Handle) -> impl Iterator<Item = &[u8]> {
        self.slab.of(handle).into_iter().flat_map(|record| record.receive.pieces(&self.nodes))
    }

    /// How far the peer has acknowledged, modulo 2^32: the difference of two calls is a number of bytes. It stays when the connection
    /// ends.
    #[inline]
    pub fn acknowledged(&self, handle: Handle) -> u32 {
        self.slab.of(handle).map_or(0, |record| record.snd_una.0)
    }

    /// Whether the connection is open both ways and nothing is on its way or waits, as far as has arrived.
    #[inline]
    pub fn is_quiet(&self, handle: Handle) -> bool {
        self.slab.of(handle).is_some_and(|record| {
            record.state == State::Established && record.receive.is_empty() && record.send.is_empty()
        })
    }
}
