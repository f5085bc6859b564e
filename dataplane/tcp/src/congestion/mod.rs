//! How much may be outstanding on the path? The congestion window of one connection, in bytes.
//!
//! ```text
//! HyStart++ ──────────────┐ delay grows                     enter_recovery ─▶ Recovery (PRR) ─ leave_recovery ─┐
//!                         ├─▶ Avoidance (CUBIC) / Linear (NewReno) ◀─────────── window ≥ threshold ── SlowStart ◀┤
//!                         └──────────────────────────────── on_timeout, on_idle, on_explicit_congestion ─────────┘
//! ```
//! The connection calls one method per event and reads [`Congestion::window`]; which segments are lost, when recovery
//! begins and ends, and whether a retransmission was spurious are its business. Nothing here reads a clock.

mod cubic;
mod recovery;
mod reno;
mod slow_start;
#[cfg(test)]
mod tests;

use crate::seq::SeqNumber;
use crate::time::Instant;
use cubic::Epoch;
use recovery::Reduction;
use slow_start::HyStart;

/// A window never passes what RFC 7323 §2.2 lets a peer offer.
const LARGEST_WINDOW: u32 = 1 << 30;
/// RFC 5681 §3.1: "ssthresh SHOULD be set arbitrarily high" at first.
const UNLIMITED: u32 = u32::MAX;
/// RFC 6928 §2 bounds ten segments by 14,600 bytes: a segment counts as 1,460 bytes at most.
const INITIAL_SEGMENT: u32 = 1_460;

/// How the window grows without loss, and how much of it loss takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 5681 with RFC 3465; the recovery of RFC 6582 is replaced by RFC 9937's.
    NewReno,
}

/// One acknowledgement of new data, outside recovery.
#[derive(Clone, Copy, Debug)]
pub struct AckSample {
    /// When it arrived.
    pub now: Instant,
    /// Bytes that it acknowledged, selectively or cumulatively, for the first time.
    pub acked_bytes: u32,
    /// Bytes outstanding before it.
    pub in_flight_before: u32,
    /// A valid round trip, if it gave one.
    pub rtt_us: Option<u32>,
    /// The smoothed round trip; 0 if unknown.
    pub srtt_us: u32,
    /// SND.UNA after it.
    pub snd_una: SeqNumber,
    /// SND.NXT.
    pub snd_nxt: SeqNumber,
    /// Whether the window, and not the application or the peer, limited what was sent.
    pub is_window_limited: bool,
}

/// What the window is doing. Which it is stands in the first byte.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Phase {
    /// The first slow start, watched for growing delay.
    HyStart(HyStart),
    /// Any later one, and the moment between a reduction and the first growth after it.
    SlowStart { is_after_timeout: bool },
    /// CUBIC's congestion avoidance.
    Avoidance(Epoch),
    /// NewReno's.
    Linear,
    /// Between loss and the acknowledgement of all that was outstanding then.
    Recovery(Reduction),
}

/// What a reduction replaced.
#[derive(Clone, Copy, Debug)]
struct Undo {
    window: u32,
    threshold: u32,
    plateau: u32,
    /// The epoch of CUBIC, valid with [`UNDO_HAS_EPOCH`].
    origin_us: u32,
    epoch_started: u32,
    reno_window: u32,
}

/// The window was reduced for data up to `reduced_until`: once is enough.
const REDUCED: u8 = 1;
/// The retransmission timer expired, and nothing was acknowledged since.
const TIMED_OUT: u8 = 2;
/// `undo` describes the last reduction.
const CAN_UNDO: u8 = 4;
/// `undo` holds an epoch of CUBIC.
const UNDO_HAS_EPOCH: u8 = 8;
/// Nothing was acknowledged yet: the initial window still follows the MSS.
const PRISTINE: u8 = 16;
/// NewReno, not CUBIC.
const NEW_RENO: u8 = 32;

/// Congestion control of one connection. What an acknowledgement asks that finds the window wide enough comes first.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Congestion {
    window: u32,
    threshold: u32,
    mss: u16,
    initial_window_segments: u8,
    flags: u8,
    phase: Phase,
    /// Bytes acknowledged towards the next segment of growth in congestion avoidance.
    credit: u32,
    /// With [`REDUCED`]: SND.NXT at the last reduction.
    reduced_until: SeqNumber,
    /// RFC 9438 W_max: the window before the last reduction, less if that one came early (§4.7).
    plateau: u32,
    /// `undo.window` is also RFC 9438's cwnd_prior, whatever [`CAN_UNDO`] says.
    undo: Undo,
}

const _: () = assert!(size_of::<Congestion>() <= 76);
const _: () = assert!(std::mem::offset_of!(Congestion, phase) + 4 == Congestion::OFTEN);

impl Congestion {
    /// Of so many bytes an acknowledgement asks that finds the window wide enough.
    pub(crate) const OFTEN: usize = 16;

    /// A connection that has sent nothing (RFC 6928 §2: the initial window).
    pub fn new(algorithm: Algorithm, mss: u16, initial_window_segments: u8) -> Self {
        let mss = mss.max(1);
        let window = initial_window(mss, initial_window_segments);
        Self {
            window,
            threshold: UNLIMITED,
            credit: 0,
            reduced_until: SeqNumber(0),
            plateau: 0,
            undo: Undo {
                window,
                threshold: UNLIMITED,
                plateau: 0,
                origin_us: 0,
                epoch_started: 0,
                reno_window: 0,
            },
            phase: Phase::HyStart(HyStart::new()),
            mss,
            initial_window_segments,
            flags: PRISTINE
                | match algorithm {
                    Algorithm::Cubic => 0,
                    Algorithm::NewReno => NEW_RENO,
                },
        }
    }

    /// Bytes that may be outstanding.
    #[inline]
    pub const fn window(&self) -> u32 {
        self.window
    }

    /// Bytes below which the window grows by slow start; `u32::MAX` before the first reduction.
    #[inline]
    pub const fn slow_start_threshold(&self) -> u32 {
        self.threshold
    }

    /// Which algorithm this is.
    #[inline]
    pub const fn algorithm(&self) -> Algorithm {
        if self.flags & NEW_RENO == 0 { Algorithm::Cubic } else { Algorithm::NewReno }
    }

    /// Whether the window grows by slow start.
    #[inline]
    pub const fn is_in_slow_start(&self) -> bool {
        self.window < self.threshold && !self.is_recovering()
    }

    /// Between [`Self::enter_recovery`] and its end.
    #[inline]
    pub const fn is_recovering(&self) -> bool {
        matches!(self.phase, Phase::Recovery(_))
    }

    /// Whether [`Self::undo`] has something to restore.
    #[inline]
    pub const fn can_undo(&self) -> bool {
        self.flags & CAN_UNDO != 0
    }

    /// New data was acknowledged outside recovery. The window grows only where it was what limited the sender (RFC 9438
    /// §5.8); in slow start, as in Linux, also while more than half of it was in use.
    #[inline]
    pub fn on_ack(&mut self, ack: &AckSample) {
        let (in_flight, is_limited) = (ack.in_flight_before, ack.is_window_limited);
        self.acknowledged(ack.snd_una, in_flight, is_limited, ack.now, || *ack);
    }

    /// As [`Self::on_ack`], which makes the sample only where the window may grow.
    #[inline(always)]
    pub(crate) fn acknowledged(
        &mut self,
        snd_una: SeqNumber,
        in_flight_before: u32,
        is_window_limited: bool,
        now: Instant,
        sample: impl FnOnce() -> AckSample,
    ) {
        self.flags &= !(PRISTINE | TIMED_OUT);
        if self.flags & REDUCED != 0 && !snd_una.is_before(self.reduced_until) {
            self.flags &= !REDUCED;
            if let Phase::SlowStart { is_after_timeout } = &mut self.phase {
                *is_after_timeout = false;
            }
        }
        let is_limited =
            is_window_limited || (self.window < self.threshold && self.window / 2 < in_flight_before);
        if is_limited {
            self.grow(&sample());
        } else if let Phase::Avoidance(epoch) = &mut self.phase {
            epoch.pause(now.low());
        }
    }

    /// The window may grow.
    #[inline(never)]
    fn grow(&mut self, ack: &AckSample) {
        match &mut self.phase {
            Phase::HyStart(rounds) => {
                let step = rounds.on_ack(ack, self.mss);
                self.window = (self.window + step.growth).min(LARGEST_WINDOW);
                if step.is_last {
                    self.leave_slow_start(ack.now);
                }
            }
            Phase::SlowStart { .. } if self.window >= self.threshold => {
                self.begin_avoidance(ack.now);
                self.grow_in_avoidance(ack);
            }
            Phase::SlowStart { is_after_timeout } => {
                let growth = slow_start::growth(ack.acked_bytes, self.mss, *is_after_timeout);
                self.window = (self.window + growth).min(self.threshold).min(LARGEST_WINDOW);
            }
            Phase::Avoidance(_) | Phase::Linear => self.grow_in_avoidance(ack),
            Phase::Recovery(_) => {}
        }
    }

    #[inline]
    fn grow_in_avoidance(&mut self, ack: &AckSample) {
        let growth = match &mut self.phase {
            Phase::Avoidance(epoch) => {
                epoch.growth(ack, self.mss, self.window, self.plateau, self.undo.window, &mut self.credit)
            }
            _ => reno::growth(ack.acked_bytes, self.mss, self.window, &mut self.credit),
        };
        self.window = (self.window + growth).min(LARGEST_WINDOW);
    }

    /// HyStart++ saw delay grow: slow start ends without loss (RFC 9406 §4.2, RFC 9438 §4.10).
    fn leave_slow_start(&mut self, now: Instant) {
        self.threshold = self.window;
        self.plateau = 0;
        self.undo.window = self.window;
        self.flags &= !CAN_UNDO;
        self.begin_avoidance(now);
    }

    /// The window reached the threshold: a stage of congestion avoidance begins.
    fn begin_avoidance(&mut self, now: Instant) {
        self.credit = 0;
        self.phase = match self.algorithm() {
            Algorithm::NewReno => Phase::Linear,
            Algorithm::Cubic => {
                // RFC 9438 §4.8, §4.10: without a higher window to return to, K is 0 and W_max the window.
                self.plateau = self.plateau.max(self.window);
                Phase::Avoidance(Epoch::new(now.low(), self.window, self.plateau, self.mss))
            }
        };
    }

    /// Loss was detected: begins fast recovery and returns the new threshold (RFC 9438 §4.6, RFC 5681 §3.2). To be
    /// followed by [`Self::on_recovery_ack`] for the very acknowledgement that showed the loss.
    ///
    /// `flight_size` is what was outstanding before that acknowledgement: SND.NXT - SND.UNA, less what was selectively
    /// acknowledged by then (RFC 9937: RecoverFS). One window is reduced once, by whatever signal came first
    /// (RFC 3168 §6.1.2).
    pub fn enter_recovery(&mut self, flight_size: u32, snd_nxt: SeqNumber, now: Instant) -> u32 {
        if self.flags & REDUCED == 0 {
            self.keep_for_undo(now);
            let (base, kept) = match self.algorithm() {
                Algorithm::Cubic => (self.window, cubic::KEPT_AFTER_LOSS),
                Algorithm::NewReno => (self.window.min(flight_size), reno::KEPT_AFTER_LOSS),
            };
            self.lower_threshold(base, kept, snd_nxt);
        }
        self.flags &= !(PRISTINE | TIMED_OUT);
        self.credit = 0;
        self.phase = Phase::Recovery(Reduction::new(flight_size));
        self.threshold
    }

    /// An acknowledgement during fast recovery: bytes that may be sent now, retransmissions first. `delivered` is newly
    /// acknowledged data, selectively or cumulatively; `in_flight` RFC 6675's pipe (or RACK's) after it; it is safe if
    /// SND.UNA advanced and no further loss showed. The window becomes what is in flight and the allowance.
    pub fn on_recovery_ack(&mut self, delivered: u32, in_flight: u32, is_safe: bool) -> u32 {
        let Phase::Recovery(reduction) = &mut self.phase else {
            return self.window.saturating_sub(in_flight);
        };
        let allowance = reduction.allowance(delivered, in_flight, is_safe, self.threshold, self.mss);
        self.window = in_flight.saturating_add(allowance).min(LARGEST_WINDOW);
        allowance
    }

    /// That many bytes, new or again, were sent; counts during fast recovery only (RFC 9937: prr_out).
    #[inline(always)]
    pub fn on_transmit(&mut self, bytes: u32) {
        if let Phase::Recovery(reduction) = &mut self.phase {
            reduction.sent(bytes);
        }
    }

    /// All that was outstanding when recovery began, or when the timer expired, is acknowledged.
    pub fn leave_recovery(&mut self) {
        match &mut self.phase {
            Phase::Recovery(_) => {
                self.window = self.threshold;
                self.phase = Phase::SlowStart { is_after_timeout: false };
            }
            Phase::SlowStart { is_after_timeout } => *is_after_timeout = false,
            Phase::HyStart(_) | Phase::Avoidance(_) | Phase::Linear => {}
        }
        self.flags &= !(REDUCED | TIMED_OUT);
    }

    /// The retransmission timer expired: one segment (RFC 5681 §3.1), and slow start up to a lower threshold. The
    /// threshold stays when the same data timed out before (RFC 5681 §3.1), or was reduced for this window already.
    pub fn on_timeout(&mut self, flight_size: u32, snd_nxt: SeqNumber, now: Instant) {
        let was_after_timeout = matches!(self.phase, Phase::SlowStart { is_after_timeout: true });
        let is_repeated = self.flags & TIMED_OUT != 0 || (self.flags & REDUCED != 0 && !was_after_timeout);
        if !is_repeated {
            self.keep_for_undo(now);
            let (base, kept) = match self.algorithm() {
                Algorithm::Cubic => (self.window, cubic::KEPT_AFTER_LOSS),
                Algorithm::NewReno => (self.window.min(flight_size), reno::KEPT_AFTER_LOSS),
            };
            self.lower_threshold(base, kept, snd_nxt);
        }
        // RFC 9438 §4.8: the next congestion avoidance starts from its own window, not below an old plateau.
        self.plateau = 0;
        self.credit = 0;
        self.window = u32::from(self.mss);
        self.reduced_until = snd_nxt;
        self.flags = (self.flags & !PRISTINE) | REDUCED | TIMED_OUT;
        self.phase = Phase::SlowStart { is_after_timeout: true };
    }

    /// The peer echoed a congestion mark (RFC 3168 §6.1.2); false if this window of data was reduced already. In
    /// congestion avoidance the reduction is RFC 8511's, in slow start that of a loss. There is no undo.
    pub fn on_explicit_congestion(
        &mut self,
        flight_size: u32,
        snd_una: SeqNumber,
        snd_nxt: SeqNumber,
        now: Instant,
    ) -> bool {
        if self.is_recovering() || (self.flags & REDUCED != 0 && snd_una.is_before(self.reduced_until)) {
            return false;
        }
        let is_in_slow_start = self.is_in_slow_start();
        self.keep_for_undo(now);
        let (base, kept) = match (self.algorithm(), is_in_slow_start) {
            (Algorithm::Cubic, true) => (self.window, cubic::KEPT_AFTER_LOSS),
            (Algorithm::Cubic, false) => (self.window, cubic::KEPT_AFTER_MARK),
            (Algorithm::NewReno, true) => (self.window.min(flight_size), reno::KEPT_AFTER_LOSS),
            (Algorithm::NewReno, false) => (self.window.min(flight_size), reno::KEPT_AFTER_MARK),
        };
        let reduced = self.lower_threshold(base, kept, snd_nxt);
        // RFC 9438 §4.6: a mark may take the window down to one segment.
        self.window = reduced.max(u32::from(self.mss)).min(self.window);
        self.flags &= !(CAN_UNDO | PRISTINE | TIMED_OUT);
        self.credit = 0;
        self.phase = Phase::SlowStart { is_after_timeout: false };
        true
    }

    /// The last reduction was for nothing: nothing was lost (RFC 9438 §4.9, RFC 5682 and RFC 4015 for timeouts, RFC
    /// 3708 by D-SACK). Restores window, threshold and CUBIC's curve, and ends recovery; false, and nothing changes, if the
    /// last reduction was for a mark or was undone already.
    pub fn undo(&mut self) -> bool {
        if self.flags & CAN_UNDO == 0 {
            return false;
        }
        self.window = self.window.max(self.undo.window);
        self.threshold = self.undo.threshold;
        self.plateau = self.undo.plateau;
        self.credit = 0;
        self.phase = if self.flags & UNDO_HAS_EPOCH != 0 {
            Phase::Avoidance(Epoch::restore(
                self.undo.epoch_started,
                self.undo.origin_us,
                self.undo.reno_window,
            ))
        } else if self.threshold == UNLIMITED {
            Phase::HyStart(HyStart::new())
        } else {
            Phase::SlowStart { is_after_timeout: false }
        };
        self.flags &= !(CAN_UNDO | UNDO_HAS_EPOCH | REDUCED | TIMED_OUT);
        true
    }

    /// The connection was silent for so long, and its caller wants slow start after idle (RFC 5681 §4.1). As RFC 2861
    /// §3 and Linux do, the window halves per timeout of silence, not below the restart window, and the threshold
    /// remembers three quarters of it.
    pub fn on_idle(&mut self, idle_us: u64, rto_us: u32) {
        let rto_us = u64::from(rto_us.max(1));
        if idle_us <= rto_us || self.is_recovering() {
            return;
        }
        let halvings = (idle_us / rto_us).min(31) as u32;
        let restart = self.window.min(initial_window(self.mss, self.initial_window_segments));
        let before = self.window;
        self.window = (before >> halvings).max(restart);
        if self.threshold != UNLIMITED {
            self.threshold = self.threshold.max(before / 4 * 3);
        }
        if self.window < before && !matches!(self.phase, Phase::HyStart(_)) {
            self.credit = 0;
            self.phase = Phase::SlowStart { is_after_timeout: false };
        }
    }

    /// More than one SYN or SYN-ACK was lost: the first window is one segment (RFC 5681 §3.1; after one loss RFC 6928
    /// §2 keeps the larger one).
    pub fn on_handshake_loss(&mut self) {
        self.window = self.window.min(u32::from(self.mss));
        self.flags &= !PRISTINE;
    }

    /// The path takes another segment size. Before the first acknowledgement the initial window follows; later a
    /// smaller one shrinks the window in proportion, so that it holds no more segments than before (RFC 5681 §3.1).
    pub fn set_mss(&mut self, mss: u16) {
        let mss = mss.max(1);
        if self.flags & PRISTINE != 0 {
            self.window = initial_window(mss, self.initial_window_segments);
        } else if mss < self.mss {
            let segments = u64::from(self.window) * u64::from(mss) / u64::from(self.mss);
            self.window = (segments as u32).max(u32::from(mss));
        }
        self.mss = mss;
    }

    /// The segment size that growth counts in.
    #[inline]
    pub const fn mss(&self) -> u16 {
        self.mss
    }

    /// Remembers window, threshold and curve as they are.
    fn keep_for_undo(&mut self, now: Instant) {
        self.undo.window = self.window;
        self.undo.threshold = self.threshold;
        self.undo.plateau = self.plateau;
        self.flags = (self.flags | CAN_UNDO) & !UNDO_HAS_EPOCH;
        if let Phase::Avoidance(epoch) = &mut self.phase {
            epoch.resume(now.low());
            (self.undo.epoch_started, self.undo.origin_us, self.undo.reno_window) = epoch.kept();
            self.flags |= UNDO_HAS_EPOCH;
        }
    }

    /// Keeps that many thousandths of `base` as the threshold and returns them, which may be less than the threshold's
    /// least (RFC 5681 §3.1 (4): two segments). Moves the plateau (RFC 9438 §4.7: lower where the last was not reached).
    fn lower_threshold(&mut self, base: u32, kept: u32, snd_nxt: SeqNumber) -> u32 {
        let share = |bytes: u32, thousandths: u32| (u64::from(bytes) * u64::from(thousandths) / 1_000) as u32;
        let reduced = share(base, kept);
        self.plateau = if self.window < self.plateau {
            share(self.window, u32::midpoint(1_000, kept))
        } else {
            self.window
        };
        self.threshold = reduced.max(2 * u32::from(self.mss));
        self.reduced_until = snd_nxt;
        self.flags |= REDUCED;
        reduced
    }
}

/// RFC 6928 §2, for any number of segments.
fn initial_window(mss: u16, segments: u8) -> u32 {
    let mss = u32::from(mss);
    let segments = u32::from(segments.max(1));
    (segments * mss).min((2 * mss).max(segments * INITIAL_SEGMENT))
}
