//! What was written and has not found room yet?

use weir_tcp::Chunk;

use super::buffers::{Buffers, Held};
use crate::connections::{Connections, Surroundings};

/// Bytes that wait to be sent, before anything else is.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    held: Option<Held>,
    sent: u32,
}

/// What became of bytes that were to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// They are on their way.
    All,
    /// Some wait for room, which was asked for.
    Some,
    /// There is no memory for them, or the connection takes nothing more.
    Refused,
}

impl Outbox {
    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    /// Sends bytes, and keeps what finds no room. Nothing may wait before.
    #[inline]
    pub(crate) fn send<C: Connections>(
        &mut self,
        bytes: &[u8],
        handle: C::Handle,
        connections: &mut C,
        surroundings: &mut impl Surroundings<C::Buffer>,
        store: &mut Buffers,
    ) -> Sent {
        let sent = match send(bytes, handle, connections, surroundings) {
            Ok(sent) => sent,
            Err(Refused) => return Sent::Refused,
        };
        let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) else { return Sent::All };
        connections.await_room(handle);
        self.held = store.hold(rest);
        self.sent = 0;
        if self.held.is_some() { Sent::Some } else { Sent::Refused }
    }

    /// Keeps bytes for a connection that doesn't stand yet. Nothing may wait before.
    pub(crate) fn wait(&mut self, bytes: &[u8], store: &mut Buffers) -> Sent {
        self.held = store.hold(bytes);
        self.sent = 0;
        if self.held.is_some() { Sent::Some } else { Sent::Refused }
    }

    /// Sends what waits, as far as there is room.
    pub(crate) fn flush<C: Connections>(
        &mut self,
        handle: C::Handle,
        connections: &mut C,
        surroundings: &mut impl Surroundings<C::Buffer>,
        store: &mut Buffers,
    ) -> Sent {
        let Some(held) = &self.held else { return Sent::All };
        let rest = store.bytes(held).get(self.sent as usize..).unwrap_or_default();
        let len = rest.len();
        match send(rest, handle, connections, surroundings) {
            Ok(sent) if sent < len => {
                self.sent += sent as u32;
                connections.await_room(handle);
                Sent::Some
            }
            Ok(_) => {
                self.clear(store);
                Sent::All
            }
            Err(Refused) => Sent::Refused,
        }
    }

    /// Lets go of what waits.
    pub(crate) fn clear(&mut self, store: &mut Buffers) {
        self.sent = 0;
        if let Some(held) = self.held.take() {
            store.give(held);
        }
    }
}

/// Nothing can be sent any more.
struct Refused;

/// Sends as many of the bytes as find room.
#[inline]
fn send<C: Connections>(
    bytes: &[u8],
    handle: C::Handle,
    connections: &mut C,
    surroundings: &mut impl Surroundings<C::Buffer>,
) -> Result<usize, Refused> {
    let longest = surroundings.longest().max(1);
    let mut sent = 0;
    for piece in bytes.chunks(longest) {
        if connections.room(handle) == 0 {
            break;
        }
        let buffer = surroundings.copy(piece).ok_or(Refused)?;
        connections.send(handle, Chunk::whole(buffer)).map_err(|_| Refused)?;
        sent += piece.len();
    }
    Ok(sent)
}
