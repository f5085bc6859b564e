//! What is known of one connection: a fixed-size record, the variables of RFC 9293 §3.3.1 and what later RFCs added.
//!
//! No logic but what reads as a definition; `input`, `output` and `timers` change it.

use crate::buffer::Endpoint;
use crate::congestion::Congestion;
use crate::event::{Ended, Events};
use crate::listen::QUICK_ACKS;
use crate::queue::{ReceiveQueue, SendQueue};
use crate::rack::{DeliveredSegments, Rack};
use crate::rtt::RttEstimator;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::wheel::Link;

/// RFC 9293 §3.3.2. LISTEN is a row of the listener table, TIME_WAIT a table of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Over; the record waits until the application lets go of it.
    #[default]
    Closed,
    /// We have sent a SYN.
    SynSent,
    /// We have sent a SYN+ACK.
    SynReceived,
    /// Open both ways.
    Established,
    /// We have sent a FIN.
    FinWait1,
    /// Our FIN is acknowledged, the peer goes on.
    FinWait2,
    /// The peer has sent a FIN, we go on.
    CloseWait,
    /// Both have sent a FIN, ours is not acknowledged.
    Closing,
    /// We have sent our FIN after the peer's.
    LastAck,
}

impl State {
    /// How many there are.
    pub const COUNT: usize = Self::LastAck as usize + 1;

    /// Whether the handshake is over and the connection is not.
    #[inline(always)]
    pub const fn is_synchronized(self) -> bool {
        !matches!(self, Self::Closed | Self::SynSent | Self::SynReceived)
    }

    /// Whether the peer may still send data.
    #[inline(always)]
    pub const fn receives(self) -> bool {
        matches!(self, Self::Established | Self::FinWait1 | Self::FinWait2)
    }

    /// Whether data and our FIN may be sent or sent again.
    #[inline(always)]
    pub const fn sends(self) -> bool {
        matches!(self, Self::Established | Self::CloseWait | Self::FinWait1 | Self::Closing | Self::LastAck)
    }
}

/// Yes or no, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Flags { $($(#[$doc])* pub(crate) const $name: Flags = Flags(1 << $bit);)* }
    };
}

flags! {
    /// The application holds a handle.
    OWNED = 0;
    /// The application has ended its side: a FIN follows the data.
    FIN_QUEUED = 1;
    /// The FIN was sent.
    FIN_SENT = 2;
    /// The peer's FIN has arrived in order.
    FIN_RECEIVED = 3;
    /// An acknowledgement leaves with this round.
    ACK_NOW = 4;
    /// An acknowledgement waits for company.
    ACK_DELAYED = 5;
    /// RFC 7323 timestamps are in use.
    TIMESTAMPS = 6;
    /// RFC 2018 is in use.
    SACK = 7;
    /// RFC 3168 is in use.
    ECN = 8;
    /// The peer is told of congestion until it says CWR.
    ECN_ECHO = 9;
    /// The peer is told that the window was reduced.
    ECN_CWR = 10;
    /// In the list of those that may have something to send.
    READY = 11;
    /// In the list of those that have news.
    NEWS = 12;
    /// The application was refused room to send.
    WANTS_ROOM = 13;
    /// Losses are being repaired; until `recover` is acknowledged.
    RECOVERY = 14;
    /// The repair was begun by a time-out.
    TIMED_OUT = 15;
    /// The first of this repair may turn out to have been needless (RFC 3522).
    UNDOABLE = 16;
    /// The peer's FIN is known but data before it is missing: `remote_fin`.
    FIN_PENDING = 17;
    /// The SYN+ACK or SYN has to be sent (again).
    SYN_DUE = 18;
    /// Opened by the peer.
    PASSIVE = 19;
    /// Nothing but the window kept us from sending.
    WINDOW_LIMITED = 20;
    /// The window cut the segment off: its FIN does not count.
    CUT = 21;
    /// A segment before the window is due: a probe of the peer.
    PROBE_DUE = 22;
    /// The SYN had valid fast open data.
    FAST_OPEN = 23;
    /// The peer asked for a fast open cookie.
    COOKIE_WANTED = 24;
    /// What the record was lost for is told by a RST that is due.
    RST_DUE = 25;
    /// A D-SACK is due: `duplicate` holds its block.
    DUPLICATE = 26;
    /// In the list of those that wait for pieces to send.
    STARVED = 27;
    /// The SYN or SYN+ACK was sent more than once.
    SYN_REPEATED = 28;
    /// The retransmission timer has to be set anew.
    REARM = 29;
    /// When the SYN+ACK was sent is not known (a cookie's).
    SYN_UNTIMED = 30;
    /// The application has just let go.
    RELEASED = 31;
}

impl Flags {
    #[inline(always)]
    pub(crate) const fn has(self, those: Flags) -> bool {
        self.0 & those.0 != 0
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, those: Flags) {
        self.0 |= those.0;
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self, those: Flags) {
        self.0 &= !those.0;
    }

    #[inline(always)]
    pub(crate) fn put(&mut self, those: Flags, value: bool) {
        if value { self.set(those) } else { self.clear(those) }
    }

    /// Whether those of a mask are as wanted, all of them.
    #[inline(always)]
    pub(crate) const fn are(self, wanted: Flags, mask: Flags) -> bool {
        self.0 & mask.0 == wanted.0
    }

    #[inline(always)]
    pub(crate) const fn and(self, those: Flags) -> Flags {
        Flags(self.0 | those.0)
    }
}

/// What the retransmission timer waits for; one of them at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Waiting {
    /// Nothing.
    #[default]
    Nothing,
    /// RFC 6298: an acknowledgement.
    Retransmit,
    /// RFC 8985 §7.2: an acknowledgement, to send a probe instead of a time-out.
    TailProbe,
    /// RFC 8985 §6.3: a segment that may only be late.
    Reordering,
    /// RFC 9293 §3.8.6.1: the peer's window to open.
    Window,
}

/// A connection: four cache lines that usual segments need, and two that losses and the like do.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Connection {
    // line 0, who and receiving: the look-up compares the first
    pub(crate) remote: u128,
    pub(crate) local: u128,
    pub(crate) remote_port: u16,
    pub(crate) local_port: u16,
    pub(crate) generation: u32,
    pub(crate) flags: Flags,
    pub(crate) state: State,
    pub(crate) waiting: Waiting,
    pub(crate) send_scale: u8,
    pub(crate) receive_scale: u8,
    pub(crate) rcv_nxt: SeqNumber,
    /// Right edge of the window that was announced.
    pub(crate) rcv_edge: SeqNumber,
    /// The acknowledgement that was sent last.
    pub(crate) last_ack: SeqNumber,
    pub(crate) ts_recent: u32,
    // line 1, the variables of RFC 9293 §3.3.1 and the timers; SND.WL2 is not among them: it is never after SND.UNA
    /// Milliseconds at which `ts_recent` was taken.
    pub(crate) ts_recent_at: u32,
    pub(crate) ts_offset: u32,
    pub(crate) snd_una: SeqNumber,
    pub(crate) snd_nxt: SeqNumber,
    pub(crate) snd_wnd: u32,
    pub(crate) snd_wl1: SeqNumber,
    /// Data bytes of a full segment without options other than timestamps.
    pub(crate) mss: u16,
    pub(crate) profile: u16,
    /// Acknowledgements without delay that are left (as Linux, so that slow start of the peer gets on).
    pub(crate) quick_acks: u8,
    pub(crate) retries: u8,
    pub(crate) duplicate_acks: u8,
    pub(crate) events: Events,
    pub(crate) keep_alives: u8,
    /// Whether `rack` may hold what the next acknowledgement is compared with.
    has_rack: bool,
    /// With [`Flags::DUPLICATE`]: length of the block that has arrived twice (RFC 2883).
    pub(crate) duplicate_len: u16,
    /// When the peer was heard last.
    pub(crate) heard_at: u32,
    /// Full segments since the last acknowledgement.
    pub(crate) unacked_bytes: u32,
    /// Ticks (milliseconds): when each timer is due.
    pub(crate) retransmit_at: u32,
    pub(crate) acknowledge_at: u32,
    /// Most bytes that may wait for the application now; grows to the ceiling.
    pub(crate) receive_space: u32,
    pub(crate) rate_at: u32,
    /// Where the measure of the reading rate began (sequence number of what was read).
    pub(crate) rate_from: SeqNumber,
    // line 2
    pub(crate) receive: ReceiveQueue,
    pub(crate) rtt: RttEstimator,
    pub(crate) link: Link,
    /// The application's own number.
    pub(crate) token: u32,
    // line 3; of the path what an ordinary acknowledgement needs comes first
    pub(crate) send: SendQueue,
    pub(crate) congestion: Congestion,
    // lines 4 and 5
    rack: Rack,
    /// The largest window that the peer ever announced.
    pub(crate) max_window: u32,
    /// Microseconds of the last SYN or data segment; of data only where slow start after idle asks for it.
    pub(crate) sent_at: u32,
    /// Losses up to here are one repair.
    pub(crate) recover: SeqNumber,
    /// When data that waits for its acknowledgement was first sent again, or the SYN.
    pub(crate) trouble_since: u32,
    /// Ticks: when the application has taken data last, kept only while memory is short.
    pub(crate) read_at: u32,
    /// RFC 5961: when something out of place was answered last.
    pub(crate) challenged_at: u32,
    /// RFC 3522: our timestamp of the first segment that was sent again.
    pub(crate) undo_before: u32,
    /// With [`Flags::DUPLICATE`]: where that block begins.
    pub(crate) duplicate: SeqNumber,
    /// With [`Flags::FIN_PENDING`]: where the peer's FIN stands.
    pub(crate) remote_fin: SeqNumber,
    pub(crate) ended: Ended,
}

/// Cache lines of a record; an idle connection costs little else.
pub(crate) const LINES: usize = 6;
const _: () = assert!(size_of::<Connection>() == LINES * 64);
const _: () = assert!(std::mem::offset_of!(Connection, ts_recent_at) == 64);
const _: () = assert!(std::mem::offset_of!(Connection, receive) == 128);
const _: () = assert!(std::mem::offset_of!(Connection, send) == 192);
const _: () = assert!(std::mem::offset_of!(Connection, congestion) + Congestion::OFTEN == 256);

impl Connection {
    /// A connection between two ends, of which nothing else is known.
    #[inline(always)]
    pub(crate) fn new(
        (local, remote): (Endpoint, Endpoint),
        generation: u32,
        (iss, ts_offset): (SeqNumber, u32),
        profile: u16,
        congestion: Congestion,
        now: Instant,
    ) -> Self {
        let ticks = now.milliseconds();
        Self {
            remote: remote.address,
            local: local.address,
            remote_port: remote.port,
            local_port: local.port,
            generation,
            flags: Flags::default(),
            state: State::SynSent,
            waiting: Waiting::Nothing,
            send_scale: 0,
            receive_scale: 0,
            rcv_nxt: SeqNumber(0),
            rcv_edge: SeqNumber(0),
            last_ack: SeqNumber(0),
            ts_recent: 0,
            ts_recent_at: ticks,
            ts_offset,
            snd_una: iss,
            snd_nxt: iss,
            snd_wnd: 0,
            snd_wl1: SeqNumber(0),
            mss: congestion.mss(),
            profile,
            quick_acks: QUICK_ACKS,
            retries: 0,
            duplicate_acks: 0,
            events: Events::default(),
            keep_alives: 0,
            has_rack: false,
            duplicate_len: 0,
            heard_at: ticks,
            unacked_bytes: 0,
            retransmit_at: 0,
            acknowledge_at: 0,
            receive_space: 0,
            rate_at: now.low(),
            rate_from: SeqNumber(0),
            receive: ReceiveQueue::default(),
            rtt: RttEstimator::new(),
            link: Link::IDLE,
            token: 0,
            send: SendQueue::new(iss + 1),
            congestion,
            rack: Rack::default(),
            max_window: 0,
            sent_at: now.low(),
            recover: iss,
            trouble_since: 0,
            read_at: ticks,
            challenged_at: ticks.wrapping_sub(60_000),
            undo_before: 0,
            duplicate: SeqNumber(0),
            remote_fin: SeqNumber(0),
            ended: Ended::No,
        }
    }

    /// Asks for the lines that usual segments need.
    #[inline(always)]
    pub(crate) fn prefetch(&self) {
        hugepages::prefetch::read(&self.remote);
        hugepages::prefetch::read(&self.ts_recent_at);
        hugepages::prefetch::read(&self.receive);
        hugepages::prefetch::read(&self.send);
    }

    /// RFC 8985: RACK-TLP's state.
    #[inline(always)]
    pub(crate) fn rack(&self) -> &Rack {
        &self.rack
    }

    /// The same, to change.
    #[inline(always)]
    pub(crate) fn rack_mut(&mut self) -> &mut Rack {
        self.has_rack = true;
        &mut self.rack
    }

    /// Whether a tail loss probe is outstanding.
    #[inline(always)]
    pub(crate) fn is_probing(&self) -> bool {
        self.has_rack && self.rack.is_probing()
    }

    /// Tells RACK what was delivered of data that were sent once. Where nothing was known before and nothing is outstanding after,
    /// nothing is left of it: in a conversation its lines are never read.
    #[inline(always)]
    pub(crate) fn originals_delivered(&mut self, segments: &DeliveredSegments, now: Instant) {
        let is_idle = self.send.sent() == 0;
        if self.has_rack || !is_idle {
            self.rack.on_delivered(segments, now, 0, None, is_idle);
            self.has_rack = !self.rack.is_blank();
        }
    }

    /// Whether these are its ends.
    #[inline(always)]
    pub(crate) fn is_between(&self, remote: Endpoint, local: Endpoint) -> bool {
        (self.remote == remote.address)
            & (self.local == local.address)
            & (self.remote_port == remote.port)
            & (self.local_port == local.port)
    }

    #[inline(always)]
    pub(crate) fn local(&self) -> Endpoint {
        Endpoint { address: self.local, port: self.local_port }
    }

    #[inline(always)]
    pub(crate) fn remote(&self) -> Endpoint {
        Endpoint { address: self.remote, port: self.remote_port }
    }

    /// RFC 9293 §3.3.1: initial send sequence number, while the SYN is unacknowledged.
    #[inline(always)]
    pub(crate) fn iss(&self) -> SeqNumber {
        self.send.first() - 1
    }

    /// The sequence number behind the last byte of data.
    #[inline(always)]
    pub(crate) fn fin_seq(&self) -> SeqNumber {
        self.send.end()
    }

    /// Whether our FIN was sent and is acknowledged.
    #[inline(always)]
    pub(crate) fn is_fin_acknowledged(&self) -> bool {
        self.flags.has(Flags::FIN_SENT) && self.send.is_empty() && self.snd_una == self.snd_nxt
    }

    /// Whether the application has read so much that the peer should hear of it: twice what was announced, and two segments
    /// more. A peer that has to wait hears of one segment or half the space (RFC 9293 §3.8.6.2.2).
    #[inline(always)]
    pub(crate) fn window_opened(&self) -> bool {
        let announced = self.rcv_edge.since(self.rcv_nxt);
        let free = self.receive_space.saturating_sub(self.receive.len());
        let mss = u32::from(self.mss);
        let step = (if announced < mss { mss } else { 2 * mss }).min(self.receive_space / 2);
        self.state.receives() && free >= announced.saturating_mul(2).max(announced + step)
    }

    /// Bytes that the peer's window leaves for what was never sent.
    #[inline(always)]
    pub(crate) fn usable_window(&self) -> u32 {
        let edge = self.snd_una + self.snd_wnd;
        if edge.is_after(self.snd_nxt) { edge.since(self.snd_nxt) } else { 0 }
    }

    /// Whether something that was sent takes sequence space and is not acknowledged.
    #[inline(always)]
    pub(crate) fn is_outstanding(&self) -> bool {
        self.snd_una != self.snd_nxt
    }

    /// Our clock for timestamps (RFC 7323 §5.4: a tick of a millisecond).
    #[inline(always)]
    pub(crate) fn ts_now(&self, now: Instant) -> u32 {
        now.milliseconds().wrapping_add(self.ts_offset)
    }
}
