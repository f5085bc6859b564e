//! What does nearly every segment want, and nearly every call of [`Engine::transmit`]? Header prediction: the short way through.
//!
//! In: a connection that is open both ways and repairs nothing, a segment that begins with the byte that is expected next, with
//! timestamps and no other option, that acknowledges whole pieces which were sent once, or nothing. Out: data within the
//! windows, or an acknowledgement, of such a connection. All questions come first; where an answer is not the usual one,
//! nothing has been changed, and `input`, `acknowledge`, `data` and `output` do the same and the rest. The steps are theirs, in
//! their order: RFC 9293 §3.10.7.4, RFC 7323 §4.3 and §5.2, RFC 5961 §5, RFC 6298, RFC 8985, RFC 5681, RFC 9438.
//!
//! Flags are read once and written once: a word that was changed in one byte and is read whole waits for the store.

use weir_index::{Bucket, Direction, Index};
use weir_net::{Parsed, Protocol, tcp};

use crate::buffer::{Buffer, Chunk};
use crate::config::ConnectionConfig;
use crate::congestion::AckSample;
use crate::connection::{Connection, Flags, State, Waiting};
use crate::engine::{Engine, Lookup, endpoints, tick};
use crate::event::Events;
use crate::header::{ECT_0, Header, NOT_ECT};
use crate::options::{ALIGNED_TIMESTAMPS, TIMESTAMPS_LEN, Timestamps};
use crate::queue::Nodes;
use crate::rack::DeliveredSegments;
use crate::rtt::Bounds;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::transmit::{Payload, Transmit};

/// Bytes of a TCP header with timestamps alone.
const HEADER_LEN: usize = tcp::HEADER_LEN + TIMESTAMPS_LEN;
/// Data offset and flags of an acknowledgement with such a header.
const OFFSET_AND_FLAGS: u16 = (HEADER_LEN as u16 / 4) << 12 | tcp::ACK as u16;
/// RFC 3168 §5.
const CONGESTION_EXPERIENCED: u8 = 0b11;

/// A FIN of either side, a repair, or what is seldom due.
const UNUSUAL: Flags = Flags::FIN_QUEUED
    .and(Flags::FIN_SENT)
    .and(Flags::FIN_RECEIVED)
    .and(Flags::FIN_PENDING)
    .and(Flags::RECOVERY)
    .and(Flags::TIMED_OUT)
    .and(Flags::CUT)
    .and(Flags::SYN_DUE)
    .and(Flags::PROBE_DUE)
    .and(Flags::RST_DUE)
    .and(Flags::RELEASED);
/// Flags that decide whether a segment may take the short way in, and how they have to be.
const IN: Flags = UNUSUAL.and(IN_WANTED);
const IN_WANTED: Flags = Flags::TIMESTAMPS.and(Flags::OWNED);
/// The same for the way out.
const OUT: Flags =
    UNUSUAL.and(Flags::DUPLICATE).and(Flags::ECN_ECHO).and(Flags::ECN_CWR).and(Flags::TIMESTAMPS);
const OUT_WANTED: Flags = Flags::TIMESTAMPS;

/// What such a segment says.
struct Said {
    seq: SeqNumber,
    ack: SeqNumber,
    window: u32,
    value: u32,
    offset: u16,
    len: u16,
}

impl Said {
    /// `None` where it says more, or less.
    #[inline(always)]
    fn read(frame: &[u8], parsed: &Parsed) -> Option<Self> {
        if (parsed.protocol != Protocol::TCP)
            | parsed.is_fragment()
            | (parsed.tos & 0b11 == CONGESTION_EXPERIENCED)
        {
            return None;
        }
        let segment = frame.get(parsed.l4_offset()..parsed.end())?;
        let (header, payload) = segment.split_first_chunk::<HEADER_LEN>()?;
        let word = |at: [u8; 4]| u32::from_be_bytes(at);
        let is_usual = (u16::from_be_bytes([header[12], header[13]]) & !u16::from(tcp::PSH)
            == OFFSET_AND_FLAGS)
            & (word([header[20], header[21], header[22], header[23]]) == ALIGNED_TIMESTAMPS);
        if !is_usual {
            return None;
        }
        Some(Self {
            seq: SeqNumber(word([header[4], header[5], header[6], header[7]])),
            ack: SeqNumber(word([header[8], header[9], header[10], header[11]])),
            window: u32::from(u16::from_be_bytes([header[14], header[15]])),
            value: word([header[24], header[25], header[26], header[27]]),
            offset: parsed.l4.checked_add(HEADER_LEN as u16)?,
            len: payload.len() as u16,
        })
    }
}

impl<B: Buffer> Engine<B> {
    /// Takes a segment in whose checksum is right; gives it back untouched where it is not one of the usual.
    #[inline(always)]
    pub(crate) fn steady(
        &mut self,
        buffer: B,
        parsed: &Parsed,
        lookup: Lookup,
        now: Instant,
    ) -> Result<(), B> {
        let frame = buffer.bytes();
        let Some(said) = Said::read(frame, parsed) else { return Err(buffer) };
        let Some(candidate) = Index::<Vec<Bucket>>::candidate(lookup.guess) else { return Err(buffer) };
        let slot = candidate.slot;
        let (remote, local) = endpoints(frame, parsed);
        let Self { slab, nodes, profiles, counters, config, ready, news, .. } = self;
        let Some(c) = slab.at_mut(slot) else { return Err(buffer) };
        let is_its = (candidate.direction == Direction::Forward) & c.is_between(remote, local);
        let Some(Some(profile)) = profiles.get(usize::from(c.profile)) else { return Err(buffer) };
        let mut flags = c.flags;
        let (acked, outstanding) = (said.ack.since(c.snd_una), c.snd_nxt.since(c.snd_una));
        let is_usual = is_its
            & (c.state == State::Established)
            & flags.are(IN_WANTED, IN)
            & (c.waiting != Waiting::Window)
            & (said.seq == c.rcv_nxt)
            & (said.value.wrapping_sub(c.ts_recent) as i32 >= 0)
            & (acked <= outstanding);
        if !is_usual {
            return Err(buffer);
        }
        let len = u32::from(said.len);
        if len != 0 {
            // no memory is short, nothing has to be cut, put in order or copied
            let is_plain = !(said.seq + len).is_after(c.rcv_edge)
                & (nodes.pinned() <= config.memory / 4)
                & !nodes.is_scarce()
                & !c.receive.has_out_of_order()
                && (c.receive.is_empty() || !crate::data::is_small(len, buffer.cost()));
            if !is_plain {
                return Err(buffer);
            }
        }
        if acked != 0 {
            let is_plain = !c.is_probing() & (c.send.sacked() == 0) & (c.send.first() == c.snd_una)
                && c.send.is_original_up_to(nodes, acked);
            if !is_plain {
                return Err(buffer);
            }
        } else if outstanding != 0 && len == 0 {
            // a duplicate acknowledgement, perhaps
            return Err(buffer);
        }

        let ticks = tick(now);
        counters.segments_in += 1;
        c.heard_at = ticks;
        c.keep_alives = 0;
        if !said.seq.is_after(c.last_ack) {
            c.ts_recent = said.value;
            c.ts_recent_at = ticks;
        }
        if !said.seq.is_before(c.snd_wl1) {
            c.snd_wl1 = said.seq;
            let window = said.window << c.send_scale;
            if window != c.snd_wnd {
                c.snd_wnd = window;
                c.max_window = c.max_window.max(window);
            }
        }
        let settings = &profile.config;
        if acked != 0 {
            c.acknowledged(nodes, said.ack, flags, now);
            flags.set(Flags::REARM);
            if flags.has(Flags::WANTS_ROOM) && c.send.len() <= settings.send_buffer / 2 {
                flags.clear(Flags::WANTS_ROOM);
                c.events |= Events::WRITABLE;
            }
        }
        if len != 0 {
            c.receive.append_anyway(nodes, Chunk { buffer, offset: said.offset, len: said.len });
            counters.bytes_in += u64::from(len);
            c.rcv_nxt += len;
            c.events |= Events::READABLE;
            flags = c.acknowledge_later(flags, len, settings.delayed_ack_ms, now);
            c.adapt_space(settings.receive_buffer, nodes.pinned(), config.memory, now);
        } else {
            drop(buffer);
            if c.is_at_rest(flags, settings) {
                // what `output` would find to do
                flags.clear(Flags::REARM);
                c.waiting = Waiting::Nothing;
                flags = note(news, c, flags, slot);
                c.flags = flags;
                return Ok(());
            }
        }
        flags = note(news, c, flags, slot);
        if !flags.has(Flags::READY) {
            flags.set(Flags::READY);
            ready.push(slot);
        }
        c.flags = flags;
        Ok(())
    }

    /// Sends what is due on a connection; `None`, and nothing has been changed, where that is not what is usual. Else whether
    /// the network takes more.
    #[inline(always)]
    pub(crate) fn steady_output(
        &mut self,
        slot: u32,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) -> Option<bool> {
        let Self { slab, nodes, profiles, counters, config, header, wheel, identification, .. } = self;
        let c = slab.at_mut(slot)?;
        let settings = &profiles.get(usize::from(c.profile))?.as_ref()?.config;
        let mut flags = c.flags;
        let is_usual = (c.state == State::Established)
            & flags.are(OUT_WANTED, OUT)
            & (c.send.lost() == 0)
            & (c.duplicate_acks == 0)
            & !c.receive.has_out_of_order()
            & !settings.slow_start_after_idle
            & (nodes.pinned() <= config.memory / 4)
            & !nodes.is_scarce();
        if !is_usual {
            return None;
        }
        let mss = u32::from(c.mss);
        let mut went = true;
        if !c.send.is_empty() {
            let mut is_limited = false;
            while c.send.unsent() > 0 {
                let unsent = c.send.unsent();
                let len = unsent.min(mss).min(c.usable_window());
                if len == 0 {
                    break;
                }
                let in_flight = c.send.in_flight();
                if in_flight > 0 && c.congestion.window() < in_flight + len {
                    is_limited = true;
                    break;
                }
                if len < mss && !c.may_send_small(len, unsent, settings.no_delay) {
                    break;
                }
                let Some(gather) = c.send.fresh(nodes, len, now) else { break };
                let end = gather.end();
                let push = if end == c.send.end() { tcp::PSH } else { 0 };
                let is_ecn = flags.has(Flags::ECN) & (gather.seq == c.snd_nxt);
                // pieces may have become scarce by this one's being cut
                let space = c.space(nodes, config.memory, u32::MAX, tick(now));
                c.write(header, gather.seq, tcp::ACK | push, space, now);
                header.identification = *identification;
                header.ecn = if is_ecn { ECT_0 } else { NOT_ECT };
                header.hop_limit = settings.hop_limit;
                flags.clear(Flags::ACK_NOW.and(Flags::ACK_DELAYED));
                if !tx.transmit(header, Payload::of(&gather, nodes)) {
                    flags.set(Flags::ACK_NOW);
                    c.send.unsend(nodes, gather);
                    went = false;
                    break;
                }
                *identification = identification.wrapping_add(1);
                counters.segments_out += 1;
                counters.bytes_out += u64::from(gather.len);
                c.congestion.on_transmit(gather.len);
                c.snd_nxt = c.snd_nxt.max(end);
                flags.set(Flags::REARM);
            }
            if went {
                flags.put(Flags::WINDOW_LIMITED, is_limited);
                if c.send.unsent() > 0 && c.waiting == Waiting::Nothing {
                    flags.set(Flags::REARM);
                }
            }
        }
        if went && flags.has(Flags::ACK_NOW) {
            let seq = c.snd_nxt;
            let space = c.space(nodes, config.memory, u32::MAX, tick(now));
            c.write(header, seq, tcp::ACK, space, now);
            header.identification = *identification;
            header.ecn = NOT_ECT;
            header.hop_limit = settings.hop_limit;
            flags.clear(Flags::ACK_NOW.and(Flags::ACK_DELAYED));
            went = tx.transmit(header, Payload::empty());
            flags.put(Flags::ACK_NOW, !went);
            counters.segments_out += u64::from(went);
        }
        if went && flags.has(Flags::REARM) {
            flags.clear(Flags::REARM);
            c.flags = flags;
            c.rearm(&Bounds::new(settings.rto_min_ms, settings.rto_max_ms), now);
        } else {
            c.flags = flags;
        }
        if let Some(at) = c.deadline(settings)
            && !c.link.is_armed_by(at)
        {
            wheel.arm(slab, slot, at);
        }
        Some(went)
    }
}

/// Puts a connection among those that have news, where it has.
#[inline(always)]
fn note(news: &mut std::collections::VecDeque<u32>, c: &Connection, mut flags: Flags, slot: u32) -> Flags {
    if !c.events.is_empty() && !flags.has(Flags::NEWS) {
        flags.set(Flags::NEWS);
        news.push_back(slot);
    }
    flags
}

impl Connection {
    /// A cumulative acknowledgement of whole pieces that were sent once: [`crate::input::Work::plain_acknowledgement`] less what
    /// flags say.
    #[inline(always)]
    fn acknowledged<B: Buffer>(&mut self, nodes: &mut Nodes<B>, ack: SeqNumber, flags: Flags, now: Instant) {
        let in_flight_before = self.send.in_flight();
        self.snd_una = ack;
        self.retries = 0;
        self.duplicate_acks = 0;
        let originals = self.send.acknowledge_originals(nodes, ack);
        let rtt_us = now.low().wrapping_sub(originals.sent_at);
        self.rtt.sample(now, rtt_us, in_flight_before, self.mss);
        let segments = DeliveredSegments {
            original: Some((originals.sent_at, ack)),
            retransmitted: None,
            lowest_original_end: Some(originals.first_end),
            highest_end: Some(ack),
        };
        self.originals_delivered(&segments, now);
        let is_window_limited = flags.has(Flags::WINDOW_LIMITED);
        let (snd_nxt, srtt_us) = (self.snd_nxt, self.rtt.smoothed_us());
        let sample = || AckSample {
            now,
            acked_bytes: originals.bytes,
            in_flight_before,
            rtt_us: Some(rtt_us),
            srtt_us,
            snd_una: ack,
            snd_nxt,
            is_window_limited,
        };
        self.congestion.acknowledged(ack, in_flight_before, is_window_limited, now, sample);
    }

    /// Whether [`Engine::transmit`] would find nothing to do after an acknowledgement but to stop the retransmission timer.
    #[inline(always)]
    fn is_at_rest(&self, flags: Flags, config: &ConnectionConfig) -> bool {
        let is_idle = self.send.is_empty() & (self.snd_una == self.snd_nxt);
        let is_due = flags.has(Flags::ACK_NOW.and(Flags::ACK_DELAYED).and(Flags::READY));
        is_idle
            && !is_due
            && self
                .patience_ms(config)
                .is_none_or(|patience| self.link.is_armed_by(self.heard_at.wrapping_add(patience)))
    }

    /// Writes what every segment of an established connection says; it acknowledges all that has arrived.
    #[inline(always)]
    fn write(&mut self, header: &mut Header, seq: SeqNumber, flags: u8, space: u32, now: Instant) {
        let window = self.announce(space);
        let value = self.ts_now(now);
        header.options.set_timestamps(Timestamps { value, echo: self.ts_recent });
        self.unacked_bytes = 0;
        self.last_ack = self.rcv_nxt;
        header.local = self.local();
        header.remote = self.remote();
        header.seq = seq;
        header.ack = self.rcv_nxt;
        header.window = window;
        header.flags = flags;
    }
}
