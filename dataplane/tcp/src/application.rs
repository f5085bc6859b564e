//! What does the application ask of its connections? To read, to send, to end, and how they stand.

use crate::buffer::{Buffer, Chunk, Endpoint};
use crate::connection::{Connection, Flags, State};
use crate::engine::{Engine, share_of};
use crate::event::{Ended, Handle};
use crate::queue::Nodes;
use crate::rtt::Bounds;

/// A connection as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Our end.
    pub local: Endpoint,
    /// The peer's end.
    pub remote: Endpoint,
    /// RFC 9293 state.
    pub state: State,
    /// How it ended, if it has.
    pub ended: Ended,
    /// Congestion window, bytes.
    pub congestion_window: u32,
    /// Slow start threshold, bytes.
    pub slow_start_threshold: u32,
    /// Smoothed round trip, µs; 0 before the first measurement.
    pub round_trip_us: u32,
    /// Retransmission time-out, µs, back-off included.
    pub retransmission_timeout_us: u32,
    /// The peer's window, bytes.
    pub send_window: u32,
    /// Bytes that are on their way.
    pub in_flight: u32,
    /// Bytes that wait to be sent or acknowledged.
    pub send_queue: u32,
    /// Bytes that wait for the application.
    pub receive_queue: u32,
    /// Data bytes of a full segment.
    pub mss: u16,
    /// Whether the peer has finished.
    pub is_finished: bool,
    /// The application's number.
    pub token: u32,
}

impl<B: Buffer> Engine<B> {
    /// The next piece of data, in order.
    #[inline]
    pub fn receive(&mut self, handle: Handle) -> Option<Chunk<B>> {
        let record = self.slab.of_mut(handle)?;
        let chunk = record.receive.pop(&mut self.nodes)?;
        if record.was_read(&self.nodes, self.config.memory, self.clock) {
            self.mark_ready(handle.slot);
        }
        Some(chunk)
    }

    /// Bytes that wait to be received.
    #[inline]
    pub fn receivable(&self, handle: Handle) -> u32 {
        self.slab.of(handle).map_or(0, |record| record.receive.len())
    }

    /// Bytes that may be sent before the send buffer is full. While memory is short a connection has only its share of it:
    /// so those that are never read can't keep all of it from the others.
    #[inline]
    pub fn room(&self, handle: Handle) -> u32 {
        let Some(record) = self.slab.of(handle) else { return 0 };
        let limit = self.profile(record.profile).map_or(0, |profile| profile.config.send_buffer);
        room_of(record, &self.nodes, self.config.memory, self.slab.live(), limit)
    }

    /// Sends a piece of data, whole or not at all: it comes back where the connection can't send, or where its send
    /// buffer is full ([`Events::WRITABLE`] follows).
    #[inline]
    pub fn send(&mut self, handle: Handle, chunk: Chunk<B>) -> Result<(), Chunk<B>> {
        let live = self.slab.live();
        let Self { slab, nodes, profiles, config, ready, .. } = self;
        let Some(record) = slab.of_mut(handle) else { return Err(chunk) };
        let may_send = matches!(
            record.state,
            State::Established | State::CloseWait | State::SynSent | State::SynReceived
        );
        if !may_send || record.flags.has(Flags::FIN_QUEUED) {
            return Err(chunk);
        }
        let limit = profiles.get(usize::from(record.profile)).and_then(Option::as_ref);
        let limit = limit.map_or(0, |profile| profile.config.send_buffer);
        if nodes.left_to_send() > 0 && room_of(record, nodes, config.memory, live, limit) == 0 {
            record.flags.set(Flags::WANTS_ROOM);
            return Err(chunk);
        }
        if chunk.len == 0 {
            return Ok(());
        }
        if let Err(chunk) = record.send.push(nodes, chunk) {
            self.await_room(handle);
            return Err(chunk);
        }
        if !record.flags.has(Flags::READY) {
            record.flags.set(Flags::READY);
            ready.push(handle.slot);
        }
        Ok(())
    }

    /// Ends our side: a FIN follows the data that waits.
    pub fn shutdown(&mut self, handle: Handle) {
        if let Some(record) = self.slab.of_mut(handle)
            && !record.flags.has(Flags::FIN_QUEUED)
        {
            record.flags.set(Flags::FIN_QUEUED);
            self.mark_ready(handle.slot);
        }
    }

    /// Ends the connection at once, with a RST (RFC 9293 §3.10.5). The handle stays until it is released.
    pub fn abort(&mut self, handle: Handle) {
        let Some(record) = self.slab.of(handle) else { return };
        match record.state {
            State::Closed => {}
            State::SynSent => self.finish(handle.slot, Ended::Aborted),
            _ => {
                self.counters.resets_aborted += 1;
                self.reset(handle.slot, Ended::Aborted);
            }
        }
    }

    /// Lets go of a connection: what is sent and the FIN still leave, unread data makes it a RST (RFC 2525 §2.17).
    pub fn release(&mut self, handle: Handle) {
        let Some(record) = self.slab.of_mut(handle) else { return };
        if !record.flags.has(Flags::OWNED) {
            return;
        }
        if record.state == State::Closed {
            record.flags.clear(Flags::OWNED);
            if !record.flags.has(Flags::RST_DUE) {
                self.free(handle.slot);
            }
            return;
        }
        let unread = !record.receive.is_empty() || record.state == State::SynSent;
        if unread {
            self.abort(handle);
            return self.release(handle);
        }
        record.flags.clear(Flags::OWNED);
        record.flags.set(Flags::FIN_QUEUED.and(Flags::RELEASED));
        self.mark_ready(handle.slot);
    }

    /// How a connection stands.
    pub fn info(&self, handle: Handle) -> Option<Info> {
        let record = self.slab.of(handle)?;
        let config = &self.profile(record.profile)?.config;
        let bounds = Bounds::new(config.rto_min_ms, config.rto_max_ms);
        Some(Info {
            local: record.local(),
            remote: record.remote(),
            state: record.state,
            ended: record.ended,
            congestion_window: record.congestion.window(),
            slow_start_threshold: record.congestion.slow_start_threshold(),
            round_trip_us: record.rtt.smoothed_us(),
            retransmission_timeout_us: record.rtt.timeout_us(&bounds),
            send_window: record.snd_wnd,
            in_flight: record.send.in_flight(),
            send_queue: record.send.len(),
            receive_queue: record.receive.len(),
            mss: record.mss,
            is_finished: record.flags.has(Flags::FIN_RECEIVED),
            token: record.token,
        })
    }

    /// Sets the application's number of a connection.
    pub fn set_token(&mut self, handle: Handle, token: u32) {
        if let Some(record) = self.slab.of_mut(handle) {
            record.token = token;
        }
    }

    /// The application's number of a connection.
    #[inline]
    pub fn token(&self, handle: Handle) -> Option<u32> {
        self.slab.of(handle).map(|record| record.token)
    }
}

/// [`Engine::room`] of a record whose listener lets so much wait.
#[inline(always)]
fn room_of<B: Buffer>(record: &Connection, nodes: &Nodes<B>, memory: u64, live: usize, limit: u32) -> u32 {
    if nodes.left_to_send() == 0 {
        return 0;
    }
    limit.min(share_of(nodes.pinned(), memory, live)).saturating_sub(record.send.len())
}
