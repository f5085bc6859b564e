//! What a case asks of a TCP stack, be it Weir's or another.

use anyhow::{Result, ensure};

use super::packet::Packet;
use super::wire::Wire;

/// Packets of a burst.
pub(super) const BURST: usize = 32;
/// Time from one burst to the next, µs; it is virtual, so that timers come at their time whatever the machine.
pub(super) const STEP_US: u64 = 5;
/// Bytes of an echo's request.
pub(super) const REQUEST: u32 = 128;
/// Bytes of an echo's answer.
pub(super) const ANSWER: u32 = 1_024;

/// What the application does with its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Reads what arrives and sends an answer of [`ANSWER`] bytes.
    Echo,
    /// Reads what arrives.
    Receive,
    /// Sends as much as it may.
    Send,
    /// Sends what arrives to the neighbour: from 0 to 1, from 2 to 3.
    Relay,
    /// Ends its side when the peer does.
    Close,
}

/// What a stack is made for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// Connections that stay open.
    pub(super) connections: u32,
    /// Others that come and go, at once.
    pub(super) passing: u32,
    /// Bytes that may wait in a connection, each way.
    pub(super) buffer: u32,
    /// The application.
    pub(super) role: Role,
}

/// What happened inside the stack, and what the application saw.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// Segments that were taken in.
    pub(super) segments: u64,
    /// Connections that were accepted.
    pub(super) accepted: u64,
    /// Connections whose end the application saw.
    pub(super) closed: u64,
    /// Bytes that the application read.
    pub(super) read: u64,
    /// Pieces that the application compared, and those that were wrong.
    pub(super) compared: (u64, u64),
    /// What should never happen.
    pub(super) wrong: u64,
}

/// A TCP stack with its application.
pub(super) trait Stack: Sized {
    /// Its name in results.
    const NAME: &'static str;
    /// Whether it uses RFC 7323 timestamps.
    const TIMESTAMPS: bool;

    /// Without connections.
    fn start(setup: Setup) -> Result<Self>;
    /// Takes a burst in, lets the application react, and sends.
    fn burst(&mut self, packets: &mut Vec<Packet>);
    /// The virtual time at which the next burst is taken in, µs.
    fn next_us(&self) -> u64;
    /// Lets the application begin, where it does without being asked.
    fn begin(&mut self);
    /// What left.
    fn wire(&mut self) -> &mut Wire;
    /// What happened.
    fn work(&self) -> Work;
    /// Connections that are open.
    fn open(&self) -> u64;

    /// Fails where anything was wrong.
    fn check(&mut self) -> Result<()> {
        let (work, sent) = (self.work(), self.wire().compared);
        ensure!(work.wrong == 0, "{}: {} things that should not happen: {work:?}", Self::NAME, work.wrong);
        ensure!(
            work.compared.1 == 0,
            "{}: {} of {} pieces arrived wrong",
            Self::NAME,
            work.compared.1,
            work.compared.0
        );
        ensure!(sent.1 == 0, "{}: {} of {} segments left wrong", Self::NAME, sent.1, sent.0);
        Ok(())
    }
}
