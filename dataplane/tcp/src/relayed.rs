//! What does an application ask that only moves data from one connection to another?

use crate::buffer::Buffer;
use crate::connection::Flags;
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
        if record.window_opened() {
            record.flags.set(Flags::ACK_NOW);
            self.mark_ready(handle.slot());
        }
    }
}
