//! What does the application hear of its connections?

use std::ops::{BitOr, BitOrAssign};

/// A connection, as the application names it. Stale ones are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Handle {
    /// The place of its record: unique among open connections, small, reused.
    pub const fn slot(self) -> u32 {
        self.slot
    }
}

/// News of one connection; several may have gathered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u8);

impl Events {
    /// A listener has a new connection: the application owns it from here on.
    pub const ACCEPTED: Self = Self(1);
    /// The connection that the application opened is there.
    pub const CONNECTED: Self = Self(2);
    /// Data waits.
    pub const READABLE: Self = Self(4);
    /// After a refusal: there is room to send.
    pub const WRITABLE: Self = Self(8);
    /// The peer has sent all that it will; what waits can still be read.
    pub const FINISHED: Self = Self(16);
    /// The connection is no more; [`crate::engine::Info::ended`] tells why.
    pub const CLOSED: Self = Self(32);
    /// All that was sent, and the FIN, is acknowledged.
    pub const FLUSHED: Self = Self(64);

    /// Whether any of those are among these.
    #[inline]
    pub const fn has(self, those: Self) -> bool {
        self.0 & those.0 != 0
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Events {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Events {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Ended {
    /// It has not.
    #[default]
    No,
    /// Both sides have closed it.
    Finished,
    /// The peer has reset it.
    Reset,
    /// The peer has refused it: a RST in answer to the SYN.
    Refused,
    /// Nothing was acknowledged for too long, or probes went unanswered.
    TimedOut,
    /// RFC 1122 §4.2.3.9: ICMP said that the peer can't be reached.
    Unreachable,
    /// The application has aborted it.
    Aborted,
    /// RFC 9293 §3.10.7.4: the peer has sent data that nobody will read any more.
    DataAfterClose,
}
