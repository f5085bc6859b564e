//! What is done with a segment of no connection: a SYN to a listener, the answer to a cookie, or a RST.
//!
//! Also the other way to begin: [`Engine::connect`].

use weir_index::Direction;
use weir_net::{Parsed, tcp};

use crate::buffer::{Buffer, Endpoint};
use crate::config::{ConnectionConfig, SynCookies};
use crate::congestion::Congestion;
use crate::connection::{Connection, Flags, State};
use crate::engine::{ConnectError, Engine, endpoints, is_due, tick};
use crate::event::{Events, Handle};
use crate::header::{Header, NOT_ECT};
use crate::options::{FastOpen, OptionBytes, Options, Timestamps};
use crate::queue::SendQueue;
use crate::secret::{Asked, FastOpenCheck, Restored};
use crate::segment::Segment;
use crate::seq::SeqNumber;
use crate::time::Instant;
use crate::transmit::{Payload, Transmit};

/// RFC 9293 §3.7.1: what a peer takes that says nothing of its MSS, by family.
fn default_mss(is_v4: bool) -> u16 {
    if is_v4 { tcp::DEFAULT_MSS_V4 } else { tcp::DEFAULT_MSS_V6 }
}

/// Headers without options, by family.
pub(crate) fn header_bytes(is_v4: bool) -> u16 {
    if is_v4 { 40 } else { 60 }
}

/// Below this a segment is mostly header; a peer that asks for less gets this (as Linux).
const MIN_MSS: u16 = 48;
/// The window that a connection begins with, where the ceiling allows it.
const FIRST_SPACE: u32 = 65_535;
/// Acknowledgements without delay at the start.
pub(crate) const QUICK_ACKS: u8 = 16;
/// Cookies that were sent may come back for so long, ms.
const COOKIE_LIFE_MS: u32 = 128_000;

/// The shift that lets a window of `space` bytes be announced (RFC 7323 §2.3).
fn scale_for(space: u32) -> u8 {
    (0..14).find(|shift| space >> shift <= 0xffff).unwrap_or(14)
}

/// The MSS that we announce: what a datagram of the MTU leaves (RFC 6691), or less where the user wants it.
pub(crate) fn our_mss(config: &ConnectionConfig, is_v4: bool) -> u16 {
    let most = config.mtu.saturating_sub(header_bytes(is_v4));
    config.mss.map_or(most, |mss| mss.min(most)).max(MIN_MSS)
}

/// What an acknowledgement of no connection says of the cookies that were sent.
enum Cookie {
    /// Nothing.
    None,
    /// It brings one back.
    Shown(Restored),
    /// It may have overtaken the segment that does: it is dropped, since a RST would end what the peer holds for an open
    /// connection. It comes again.
    Overtaken,
}

impl<B: Buffer> Engine<B> {
    /// A fresh record with its word; all else is the caller's to say.
    fn open(
        &mut self,
        (local, remote): (Endpoint, Endpoint),
        profile: u16,
        hash: u32,
        state: State,
        now: Instant,
    ) -> Option<u32> {
        let first_share = self.first_share();
        let config = &self.profiles.get(usize::from(profile))?.as_ref()?.config;
        let numbers = self.secrets.connection(local, remote, now);
        let mss = our_mss(config, local.is_v4()).min(default_mss(local.is_v4()));
        let congestion = Congestion::new(config.algorithm, mss, config.initial_window);
        let receive_space = config.receive_buffer.min(FIRST_SPACE).min(first_share);
        let slot = self.slab.insert(|generation| {
            Connection::new((local, remote), generation, numbers, profile, congestion, now)
        })?;
        if !self.index.insert(hash, slot, Direction::Forward) {
            self.slab.remove(slot);
            return None;
        }
        let record = self.slab.at_mut(slot)?;
        record.state = state;
        record.receive_space = receive_space;
        self.states.moves(None, Some(state));
        Some(slot)
    }

    /// Opens a connection with the configuration of a profile ([`Engine::set_listener`]); [`Events::CONNECTED`] or
    /// [`Events::CLOSED`] follows. Data may be given to [`Engine::send`] at once.
    pub fn connect(
        &mut self,
        local: Endpoint,
        remote: Endpoint,
        profile: u16,
        token: u32,
        now: Instant,
    ) -> Result<Handle, ConnectError> {
        let Some(config) = self.profile(profile).map(|profile| profile.config) else {
            return Err(ConnectError::NoProfile);
        };
        let hash = self.hash(remote, local);
        let old = self.vacancy(hash, remote, local)?;
        let least_iss = old.and_then(|old| self.succeed(old));
        let slot =
            self.open((local, remote), profile, hash, State::SynSent, now).ok_or(ConnectError::Full)?;
        let record = self.slab.at_mut(slot).ok_or(ConnectError::Full)?;
        if let Some(least) = least_iss.filter(|least| record.snd_nxt.is_before(*least)) {
            record.number_from(least);
        }
        record.token = token;
        record.flags.set(Flags::OWNED.and(Flags::SYN_DUE));
        record.flags.put(Flags::TIMESTAMPS, config.timestamps);
        record.flags.put(Flags::SACK, config.sack);
        record.flags.put(Flags::ECN, config.ecn_request);
        record.receive_scale = if config.window_scaling { scale_for(config.receive_buffer) } else { 0 };
        self.mark_ready(slot);
        self.slab.handle(slot).ok_or(ConnectError::Full)
    }

    /// Whether a connection with these ends can't be opened now.
    pub fn is_taken(&self, local: Endpoint, remote: Endpoint) -> bool {
        self.vacancy(self.hash(remote, local), remote, local).is_err()
    }

    /// Whether a connection with these ends may be opened, and the one in TIME-WAIT whose place it takes.
    fn vacancy(&self, hash: u32, remote: Endpoint, local: Endpoint) -> Result<Option<u32>, ConnectError> {
        let old = self.find_time_wait(hash, remote, local);
        if self.look_up(hash, remote, local).is_some() || old.is_some_and(|old| !self.may_succeed(old)) {
            return Err(ConnectError::InUse);
        }
        Ok(old)
    }

    /// A segment that [`Engine::segment`] did not know (it has verified the checksum): for the listener, if its destination
    /// has one, else refused with a RST (RFC 9293 §3.10.7.1).
    pub fn unknown(
        &mut self,
        buffer: B,
        parsed: &Parsed,
        listener: Option<u16>,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        self.counters.segments_in += 1;
        let Ok(segment) = Segment::read(buffer.bytes(), parsed, true) else {
            self.counters.malformed += 1;
            return;
        };
        let (remote, local) = endpoints(buffer.bytes(), parsed);
        let known = listener.filter(|index| self.profile(*index).is_some());
        if segment.has(tcp::RST) {
            return;
        }
        if let Some(listener) = known {
            if segment.has(tcp::SYN) && !segment.has(tcp::ACK) {
                return self.begin(buffer, &segment, (local, remote), listener, now, tx);
            }
            match self.check_cookie(&segment, (local, remote), listener, now) {
                Cookie::None => {}
                Cookie::Overtaken => return,
                Cookie::Shown(restored) => {
                    let opened = self.accept_cookie(&segment, (local, remote), listener, &restored, now);
                    if let Some(slot) = opened {
                        return self.arrived(slot, buffer, &segment, now, tx);
                    }
                }
            }
        }
        self.counters.resets_no_connection += 1;
        self.refuse(&segment, (local, remote), tx);
    }

    /// RFC 9293 §3.10.7.1: the RST that a segment without a connection gets.
    pub(crate) fn refuse(
        &mut self,
        segment: &Segment,
        (local, remote): (Endpoint, Endpoint),
        tx: &mut impl Transmit<B>,
    ) {
        let has_ack = segment.has(tcp::ACK);
        let header = Header {
            local,
            remote,
            seq: if has_ack { segment.ack } else { SeqNumber(0) },
            ack: if has_ack { SeqNumber(0) } else { segment.end() },
            window: 0,
            identification: self.next_identification(),
            flags: if has_ack { tcp::RST } else { tcp::RST | tcp::ACK },
            ecn: NOT_ECT,
            hop_limit: 64,
            options: OptionBytes::NONE,
        };
        self.counters.segments_out += u64::from(tx.transmit(&header, Payload::empty()));
    }

    /// A SYN to a listener.
    fn begin(
        &mut self,
        buffer: B,
        segment: &Segment,
        (local, remote): (Endpoint, Endpoint),
        listener: u16,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        // what waits in TIME_WAIT under these addresses has let the SYN pass
        let hash = self.hash(remote, local);
        let old = self.find_time_wait(hash, remote, local);
        let least_iss = old.and_then(|slot| self.succeed(slot));
        let Some(profile) = self.profile(listener) else { return };
        let config = profile.config;
        let options = segment.options(buffer.bytes());
        let is_full = profile.half_open >= config.backlog || self.slab.is_full();
        let wants_cookie = match config.syn_cookies {
            SynCookies::Always => true,
            SynCookies::Auto => is_full,
            SynCookies::Never => false,
        };
        if wants_cookie {
            return self.answer_with_cookie(segment, &options, (local, remote), listener, now, tx);
        }
        if is_full {
            self.counters.syn_dropped += 1;
            return;
        }
        let Some(slot) = self.open((local, remote), listener, hash, State::SynReceived, now) else {
            self.counters.syn_dropped += 1;
            return;
        };
        let Some(record) = self.slab.at_mut(slot) else { return };
        if let Some(least) = least_iss.filter(|least| record.snd_nxt.is_before(*least)) {
            record.number_from(least);
        }
        record.flags.set(Flags::PASSIVE.and(Flags::SYN_DUE));
        record.take_syn(segment, &options, &config, now);
        // RFC 3168 §6.1.1: an ECN-setup SYN has both bits
        let asks_ecn = segment.flags & (tcp::ECE | tcp::CWR) == tcp::ECE | tcp::CWR;
        record.flags.put(Flags::ECN, config.ecn && asks_ecn);
        let opened = config.fast_open && self.check_fast_open(segment, &options, slot);
        if let Some(profile) = self.profile_mut(listener) {
            profile.half_open += 1;
        }
        if opened {
            self.counters.fast_open_accepted += 1;
            self.accept_early(slot, buffer, segment, now, tx);
            // the application may have an answer to go with it
            return self.mark_ready(slot);
        }
        self.answer_syn(slot, now, tx);
    }

    /// Sends the SYN+ACK at once, since nothing can come to go with it.
    fn answer_syn(&mut self, slot: u32, now: Instant, tx: &mut impl Transmit<B>) {
        let identification = self.next_identification();
        let Some(mut work) = self.work(slot, now) else { return };
        if !work.send_syn(identification, tx) {
            return self.mark_ready(slot);
        }
        let at = work.c.retransmit_at;
        self.arm(slot, at);
    }

    /// RFC 7413 §4.2: whether the data of a SYN may be taken. A client that asks gets a cookie.
    fn check_fast_open(&mut self, segment: &Segment, options: &Options, slot: u32) -> bool {
        let Some(record) = self.slab.at_mut(slot) else { return false };
        match &options.fast_open {
            None => false,
            Some(FastOpen::Request) => {
                record.flags.set(Flags::COOKIE_WANTED);
                false
            }
            Some(FastOpen::Cookie(shown)) => match self.secrets.check_fast_open(record.remote, shown) {
                FastOpenCheck::Valid => segment.payload_len > 0,
                FastOpenCheck::Outdated => {
                    record.flags.set(Flags::COOKIE_WANTED);
                    segment.payload_len > 0
                }
                FastOpenCheck::Invalid => {
                    self.counters.fast_open_refused += 1;
                    record.flags.set(Flags::COOKIE_WANTED);
                    false
                }
            },
        }
    }

    fn answer_with_cookie(
        &mut self,
        segment: &Segment,
        options: &Options,
        (local, remote): (Endpoint, Endpoint),
        listener: u16,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        let Some(profile) = self.profile_mut(listener) else { return };
        let config = profile.config;
        profile.cookies_until = Some(tick(now).wrapping_add(COOKIE_LIFE_MS));
        let timestamps = options.timestamps.filter(|_| config.timestamps);
        let asked = Asked {
            mss: options.mss.unwrap_or(default_mss(local.is_v4())),
            window_scale: options.window_scale.filter(|_| config.window_scaling),
            sack: options.sack_permitted && config.sack,
            ecn: config.ecn && segment.flags & (tcp::ECE | tcp::CWR) == tcp::ECE | tcp::CWR,
            timestamps: timestamps.is_some(),
        };
        let cookie = self.secrets.cookie(local, remote, segment.seq, &asked, now);
        let has_room = cookie.timestamp.is_some();
        let offer = Options {
            mss: Some(our_mss(&config, local.is_v4())),
            window_scale: asked.window_scale.filter(|_| has_room).map(|_| scale_for(config.receive_buffer)),
            sack_permitted: asked.sack && has_room,
            timestamps: cookie
                .timestamp
                .zip(timestamps)
                .map(|(value, theirs)| Timestamps { value, echo: theirs.value }),
            ..Options::default()
        };
        let ecn = if asked.ecn && has_room { tcp::ECE } else { 0 };
        let header = Header {
            local,
            remote,
            seq: cookie.iss,
            ack: segment.seq + 1,
            window: config.receive_buffer.min(FIRST_SPACE) as u16,
            identification: self.next_identification(),
            flags: tcp::SYN | tcp::ACK | ecn,
            ecn: NOT_ECT,
            hop_limit: config.hop_limit,
            options: OptionBytes::from(&offer),
        };
        if tx.transmit(&header, Payload::empty()) {
            self.counters.segments_out += 1;
            self.counters.syn_cookies_sent += 1;
        }
    }

    /// What a segment of no connection has to do with the cookies that a listener has sent.
    fn check_cookie(
        &mut self,
        segment: &Segment,
        (local, remote): (Endpoint, Endpoint),
        listener: u16,
        now: Instant,
    ) -> Cookie {
        let until = self.profile(listener).and_then(|profile| profile.cookies_until);
        let is_answer = segment.flags & (tcp::SYN | tcp::ACK) == tcp::ACK;
        if !is_answer || until.is_none_or(|until| is_due(until, tick(now))) {
            return Cookie::None;
        }
        let iss = segment.ack - 1;
        let echo = segment.timestamps.map(|timestamps| timestamps.echo);
        if let Some(restored) = self.secrets.check(local, remote, segment.seq - 1, iss, echo, now) {
            return Cookie::Shown(restored);
        }
        if self.secrets.resembles_cookie(local, remote, iss, echo, now) {
            return Cookie::Overtaken;
        }
        self.counters.syn_cookies_refused += 1;
        Cookie::None
    }

    /// Makes the connection that a cookie stands for, half open; the segment that showed it completes it. `None`: there is no room.
    fn accept_cookie(
        &mut self,
        segment: &Segment,
        (local, remote): (Endpoint, Endpoint),
        listener: u16,
        restored: &Restored,
        now: Instant,
    ) -> Option<u32> {
        let config = self.profile(listener)?.config;
        let iss = segment.ack - 1;
        let hash = self.hash(remote, local);
        let Some(slot) = self.open((local, remote), listener, hash, State::SynReceived, now) else {
            self.counters.syn_dropped += 1;
            return None;
        };
        let record = self.slab.at_mut(slot)?;
        record.flags.set(Flags::PASSIVE);
        let options = Options {
            mss: Some(restored.mss),
            window_scale: restored.window_scale,
            sack_permitted: restored.sack,
            timestamps: segment.timestamps.filter(|_| restored.timestamp_offset.is_some()),
            ..Options::default()
        };
        let syn = Segment { seq: segment.seq - 1, window: segment.window, ..*segment };
        record.take_syn(&syn, &options, &config, now);
        record.ts_offset = restored.timestamp_offset.unwrap_or(0);
        record.flags.put(Flags::ECN, restored.ecn);
        record.number_from(iss);
        record.snd_nxt = iss + 1;
        // the round trip of the handshake is not known
        record.flags.set(Flags::SYN_UNTIMED);
        if let Some(profile) = self.profile_mut(listener) {
            profile.half_open += 1;
        }
        self.counters.syn_cookies_accepted += 1;
        Some(slot)
    }

    /// RFC 7413 §4.2: the application gets the connection with the SYN's data, before the handshake ends.
    fn accept_early(
        &mut self,
        slot: u32,
        buffer: B,
        segment: &Segment,
        now: Instant,
        tx: &mut impl Transmit<B>,
    ) {
        self.counters.accepted += 1;
        if let Some(record) = self.slab.at_mut(slot) {
            record.flags.set(Flags::OWNED.and(Flags::FAST_OPEN));
        }
        self.announce(slot, Events::ACCEPTED);
        self.take_data(slot, buffer, segment, now, tx);
    }
}

impl Connection {
    /// Chooses the initial sequence number; nothing was sent.
    fn number_from(&mut self, iss: SeqNumber) {
        self.snd_una = iss;
        self.snd_nxt = iss;
        self.recover = iss;
        self.send = SendQueue::new(iss + 1);
    }

    /// Takes over what a peer's SYN says (RFC 9293 §3.10.7.2): sequence numbers, window and options that both want.
    pub(crate) fn take_syn(
        &mut self,
        segment: &Segment,
        options: &Options,
        config: &ConnectionConfig,
        now: Instant,
    ) {
        self.rcv_nxt = segment.seq + 1;
        self.rcv_edge = self.rcv_nxt + self.receive_space.min(FIRST_SPACE);
        self.last_ack = self.rcv_nxt;
        self.rate_from = self.rcv_nxt;
        // RFC 7323 §2.2: the window of a SYN is never scaled
        self.snd_wnd = u32::from(segment.window);
        self.max_window = self.snd_wnd;
        self.snd_wl1 = segment.seq;
        match options.window_scale.filter(|_| config.window_scaling) {
            Some(scale) => {
                self.send_scale = scale;
                self.receive_scale = scale_for(config.receive_buffer);
            }
            None => {
                self.send_scale = 0;
                self.receive_scale = 0;
            }
        }
        self.flags.put(Flags::SACK, options.sack_permitted && config.sack);
        let timestamps = options.timestamps.filter(|_| config.timestamps);
        self.flags.put(Flags::TIMESTAMPS, timestamps.is_some());
        if let Some(timestamps) = timestamps {
            self.ts_recent = timestamps.value;
            self.ts_recent_at = tick(now);
        }
        let is_v4 = self.local().is_v4();
        // RFC 6691: the MSS doesn't count options, the segments do
        let theirs = options.mss.unwrap_or(default_mss(is_v4)).max(MIN_MSS);
        let timestamps_len = if timestamps.is_some() { 12 } else { 0 };
        self.mss = theirs.min(our_mss(config, is_v4)) - timestamps_len;
        self.congestion = Congestion::new(config.algorithm, self.mss, config.initial_window);
    }
}
