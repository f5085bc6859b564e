//! Which numbers must a stranger not guess, and how are they made again without being kept?
//!
//! Initial sequence numbers, timestamp offsets, SYN cookies and fast open cookies: all of them SipHash-2-4 of addresses
//! and ports under keys that come from one random seed.

use siphasher::sip::SipHasher24;
use siphasher::sip128;

use crate::buffer::Endpoint;
use crate::options::FastOpenCookie;
use crate::seq::SeqNumber;
use crate::time::Instant;

/// RFC 4987 §3.6 leaves the counter's step open; 64 s as Linux has it: a cookie is good for 64 to 128 s.
pub const COOKIE_PERIOD_S: u64 = 64;
/// How many microseconds a cookie's counter stands still.
const COOKIE_PERIOD_US: u64 = COOKIE_PERIOD_S * 1_000_000;
/// The MSS values that a cookie can keep: the largest of them that is not above the peer's is used. The tiny one, Linux's
/// `TCP_MIN_MSS`, serves a peer below 536; then come the defaults of RFC 9293 §3.7.1, and Ethernet with and without tunnels.
pub const COOKIE_MSS: [u16; 8] = [88, 536, 1220, 1360, 1400, 1440, 1460, 8940];
/// How many low bits of a timestamp keep options.
const OPTION_BITS: u32 = 6;
/// The window scale in those bits where the peer sent none: no shift is that large (RFC 7323 §2.3).
const NO_WINDOW_SCALE: u32 = 0xf;
/// SACK permitted, in those bits.
const SACK_BIT: u32 = 1 << 4;
/// ECN asked for, in those bits.
const ECN_BIT: u32 = 1 << 5;
/// Below the bits of the counter's parity and the MSS: what a cookie holds of its hash.
const HASH_MASK: u32 = (1 << 28) - 1;
/// The lower part of it, which knows the peer's ISN: so many that data which overtook the cookie's segment is not taken for the
/// first. The upper part does not know it.
const ISN_HASH_BITS: u32 = 22;

/// What a SYN asked for, to be kept in a cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its MSS, or the default where it named none (RFC 9293 §3.7.1).
    pub mss: u16,
    /// Its window scale.
    pub window_scale: Option<u8>,
    /// It permits SACK.
    pub sack: bool,
    /// It asks for ECN, and so do we grant it (RFC 3168 §6.1.1).
    pub ecn: bool,
    /// It carries timestamps, and we use them.
    pub timestamps: bool,
}

/// What a SYN-ACK carries instead of our remembering the SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Our initial sequence number.
    pub iss: SeqNumber,
    /// Our timestamp, if the SYN carried one. Without it the answer must offer neither window scale nor SACK nor ECN:
    /// there is nowhere to keep them.
    pub timestamp: Option<u32>,
}

/// What came back in an acknowledgment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restored {
    /// The largest value of [`COOKIE_MSS`] that is not above what the peer asked for.
    pub mss: u16,
    /// The peer's window scale; ours is the listener's, if there is one.
    pub window_scale: Option<u8>,
    /// SACK is in use.
    pub sack: bool,
    /// ECN is in use.
    pub ecn: bool,
    /// Timestamps are in use, with this offset from our clock in milliseconds.
    pub timestamp_offset: Option<u32>,
}

/// Whether a fast open cookie is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastOpenCheck {
    /// It is.
    Valid,
    /// It is, of the time before the last rotation: accept it and send a new one.
    Outdated,
    /// It is not: acknowledge the SYN alone and send a valid one (RFC 7413 §4.2.2).
    Invalid,
}

/// What keys are derived for; each has a key of its own.
#[derive(Clone, Copy)]
enum Purpose {
    Connection = 1,
    SynCookie = 2,
    FastOpen = 3,
}

/// All secrets of an engine.
#[derive(Clone)]
pub struct Secrets {
    seed: [u8; 32],
    connection: SipHasher24,
    /// The key for cookies whose counter is at least `cookie_since`.
    cookie: SipHasher24,
    cookie_since: u64,
    cookie_before: SipHasher24,
    cookie_rotations: u64,
    fast_open: SipHasher24,
    fast_open_before: SipHasher24,
    fast_open_rotations: u64,
}

impl std::fmt::Debug for Secrets {
    /// Tells nothing.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Secrets").finish_non_exhaustive()
    }
}

impl Secrets {
    /// All secrets from a random seed. Engines that serve the same fast open clients need the same one.
    pub fn new(seed: [u8; 32]) -> Self {
        let key = |purpose| SipHasher24::new_with_key(&derive(&seed, purpose, 0));
        Self {
            connection: key(Purpose::Connection),
            cookie: key(Purpose::SynCookie),
            cookie_since: 0,
            cookie_before: key(Purpose::SynCookie),
            cookie_rotations: 0,
            fast_open: key(Purpose::FastOpen),
            fast_open_before: key(Purpose::FastOpen),
            fast_open_rotations: 0,
            seed,
        }
    }

    /// The initial sequence number of a new connection and the offset of its timestamps from our clock in milliseconds.
    ///
    /// RFC 6528 §3: ISN = M + F(addresses, ports, secret), M a clock of 4 µs (RFC 9293 §3.4.1). RFC 7323 §7.1: an offset per
    /// connection; the same addresses and ports get the same one, so that a successor's timestamps are later.
    #[inline]
    pub fn connection(&self, local: Endpoint, remote: Endpoint, now: Instant) -> (SeqNumber, u32) {
        let (isn, offset) = self.connection_hash(local, remote);
        (SeqNumber(isn.wrapping_add((now.0 >> 2) as u32)), offset)
    }

    /// For the initial sequence number, and for the offset: halves of one hash, of which neither tells the other.
    #[inline]
    fn connection_hash(&self, local: Endpoint, remote: Endpoint) -> (u32, u32) {
        let hash = if local.is_v4() {
            self.connection.hash(&tuple_v4(local, remote))
        } else {
            self.connection.hash(&tuple_v6(local, remote))
        };
        (hash as u32, (hash >> 32) as u32)
    }

    /// A cookie for a SYN of `peer_isn` (RFC 4987 §3.6). The number does not grow with time as RFC 6528 wants it: a
    /// cookie must hold its own proof, and that is all the room there is.
    pub fn cookie(
        &self,
        local: Endpoint,
        remote: Endpoint,
        peer_isn: SeqNumber,
        asked: &Asked,
        now: Instant,
    ) -> Cookie {
        let counter = now.0 / COOKIE_PERIOD_US;
        let kept = asked.timestamps.then(|| option_bits(asked));
        let timestamp = kept.map(|bits| {
            let clock = now.milliseconds().wrapping_add(self.connection_hash(local, remote).1);
            let timestamp = clock & !((1 << OPTION_BITS) - 1) | bits;
            // Never ahead of the clock: the connection's next timestamp must not be earlier.
            if timestamp.wrapping_sub(clock) as i32 > 0 {
                timestamp.wrapping_sub(1 << OPTION_BITS)
            } else {
                timestamp
            }
        });
        let mss = mss_index(asked.mss);
        let hash = self.cookie_hash(local, remote, peer_isn, counter, mss, kept);
        Cookie { iss: SeqNumber((counter as u32 & 1) << 31 | mss << 28 | hash), timestamp }
    }

    /// What the SYN asked for, if an acknowledgment shows one of our cookies that is still good. `peer_isn` is its
    /// sequence number minus 1, `iss` its acknowledgment number minus 1, `echo` the timestamp that it echoes.
    pub fn check(
        &self,
        local: Endpoint,
        remote: Endpoint,
        peer_isn: SeqNumber,
        iss: SeqNumber,
        echo: Option<u32>,
        now: Instant,
    ) -> Option<Restored> {
        let (counter, mss, kept) = shown(iss, echo, now)?;
        if self.cookie_hash(local, remote, peer_isn, counter, mss, kept) != iss.0 & HASH_MASK {
            return None;
        }
        let mss = *COOKIE_MSS.get(mss as usize)?;
        let bits = kept.unwrap_or(NO_WINDOW_SCALE);
        let shift = bits & 0xf;
        Some(Restored {
            mss,
            window_scale: (shift != NO_WINDOW_SCALE).then_some(shift as u8),
            sack: bits & SACK_BIT != 0,
            ecn: bits & ECN_BIT != 0,
            timestamp_offset: kept.map(|_| self.connection_hash(local, remote).1),
        })
    }

    /// Whether an acknowledgment number looks like one of our cookies that is still good, whatever the peer's ISN was: so
    /// does that of a segment which has overtaken the one that shows the cookie. One in 64 other numbers does, too.
    pub fn resembles_cookie(
        &self,
        local: Endpoint,
        remote: Endpoint,
        iss: SeqNumber,
        echo: Option<u32>,
        now: Instant,
    ) -> bool {
        shown(iss, echo, now).is_some_and(|(counter, mss, kept)| {
            let hash = self.part_hash(local, remote, None, counter, mss, kept);
            hash == (iss.0 & HASH_MASK) >> ISN_HASH_BITS
        })
    }

    /// A small part without the peer's ISN, the rest with it.
    fn cookie_hash(
        &self,
        local: Endpoint,
        remote: Endpoint,
        peer_isn: SeqNumber,
        counter: u64,
        mss: u32,
        kept: Option<u32>,
    ) -> u32 {
        self.part_hash(local, remote, None, counter, mss, kept) << ISN_HASH_BITS
            | self.part_hash(local, remote, Some(peer_isn), counter, mss, kept)
    }

    fn part_hash(
        &self,
        local: Endpoint,
        remote: Endpoint,
        peer_isn: Option<SeqNumber>,
        counter: u64,
        mss: u32,
        kept: Option<u32>,
    ) -> u32 {
        let key = if counter >= self.cookie_since { &self.cookie } else { &self.cookie_before };
        // Bit 6 tells no timestamps from timestamps that keep nothing.
        let options = kept.map_or(0, |bits| bits | 1 << OPTION_BITS) << 3 | mss;
        let (isn, part, mask) = peer_isn
            .map_or((0, 1 << 31, HASH_MASK >> ISN_HASH_BITS), |isn| (isn.0, 0, (1 << ISN_HASH_BITS) - 1));
        let mut rest = [0; 16];
        rest[..8].copy_from_slice(&counter.to_le_bytes());
        rest[8..12].copy_from_slice(&isn.to_le_bytes());
        rest[12..].copy_from_slice(&(options | part).to_le_bytes());
        let hash = if local.is_v4() {
            let mut input = [0; 28];
            input[..12].copy_from_slice(&tuple_v4(local, remote));
            input[12..].copy_from_slice(&rest);
            key.hash(&input)
        } else {
            let mut input = [0; 52];
            input[..36].copy_from_slice(&tuple_v6(local, remote));
            input[36..].copy_from_slice(&rest);
            key.hash(&input)
        };
        hash as u32 & mask
    }

    /// Puts a new secret under SYN cookies, from the next counter on, so that every counter has one key and cookies under
    /// the old one stay good for their time. False, and nothing changed, where the last rotation is so fresh that cookies
    /// of the secret before it are still good: less than two periods ago.
    pub fn rotate(&mut self, now: Instant) -> bool {
        let counter = now.0 / COOKIE_PERIOD_US;
        if self.cookie_rotations != 0 && counter <= self.cookie_since {
            return false;
        }
        self.cookie_rotations += 1;
        let key = derive(&self.seed, Purpose::SynCookie, self.cookie_rotations);
        self.cookie_before = std::mem::replace(&mut self.cookie, SipHasher24::new_with_key(&key));
        self.cookie_since = counter + 1;
        true
    }

    /// The fast open cookie of a client (RFC 7413 §4.1.2): a function of its address alone, so that it holds for all of
    /// its connections.
    pub fn fast_open_cookie(&self, client: u128) -> Option<FastOpenCookie> {
        FastOpenCookie::new(&self.fast_open.hash(&client.to_be_bytes()).to_be_bytes())
    }

    /// Whether a client shows the cookie that it was given.
    pub fn check_fast_open(&self, client: u128, shown: &FastOpenCookie) -> FastOpenCheck {
        let Ok(shown) = <[u8; 8]>::try_from(shown.as_bytes()) else { return FastOpenCheck::Invalid };
        let (shown, client) = (u64::from_be_bytes(shown), client.to_be_bytes());
        if self.fast_open.hash(&client) == shown {
            FastOpenCheck::Valid
        } else if self.fast_open_before.hash(&client) == shown {
            FastOpenCheck::Outdated
        } else {
            FastOpenCheck::Invalid
        }
    }

    /// Puts a new secret under fast open cookies; the one before stays good until the next rotation (RFC 7413 §4.1.2).
    /// Engines of one seed that have rotated equally often give the same cookies.
    pub fn rotate_fast_open(&mut self) {
        self.fast_open_rotations += 1;
        let key = derive(&self.seed, Purpose::FastOpen, self.fast_open_rotations);
        self.fast_open_before = std::mem::replace(&mut self.fast_open, SipHasher24::new_with_key(&key));
    }
}

/// The key for a purpose and a number of rotations.
fn derive(seed: &[u8; 32], purpose: Purpose, rotations: u64) -> [u8; 16] {
    let (mut key, mut input) = ([0; 16], [0; 32]);
    key.copy_from_slice(&seed[..16]);
    input[..16].copy_from_slice(&seed[16..]);
    input[16..24].copy_from_slice(&(purpose as u64).to_le_bytes());
    input[24..].copy_from_slice(&rotations.to_le_bytes());
    sip128::SipHasher24::new_with_key(&key).hash(&input).as_bytes()
}

/// Addresses and ports of an IPv4 connection. Shorter than IPv6's: the length tells them apart.
#[inline(always)]
fn tuple_v4(local: Endpoint, remote: Endpoint) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&(local.address as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(remote.address as u32).to_le_bytes());
    bytes[8..10].copy_from_slice(&local.port.to_le_bytes());
    bytes[10..].copy_from_slice(&remote.port.to_le_bytes());
    bytes
}

/// Addresses and ports of an IPv6 connection.
#[inline(always)]
fn tuple_v6(local: Endpoint, remote: Endpoint) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..16].copy_from_slice(&local.address.to_le_bytes());
    bytes[16..32].copy_from_slice(&remote.address.to_le_bytes());
    bytes[32..34].copy_from_slice(&local.port.to_le_bytes());
    bytes[34..].copy_from_slice(&remote.port.to_le_bytes());
    bytes
}

/// The counter, the MSS and the options that an acknowledgment's cookie and echoed timestamp would have.
fn shown(iss: SeqNumber, echo: Option<u32>, now: Instant) -> Option<(u64, u32, Option<u32>)> {
    let current = now.0 / COOKIE_PERIOD_US;
    let is_current = iss.0 >> 31 == current as u32 & 1;
    let counter = if is_current { current } else { current.checked_sub(1)? };
    let kept = echo.map(|echo| echo & ((1 << OPTION_BITS) - 1));
    Some((counter, iss.0 >> 28 & 0b111, kept))
}

/// The options in the low bits of a timestamp.
fn option_bits(asked: &Asked) -> u32 {
    let shift = asked.window_scale.map_or(NO_WINDOW_SCALE, |shift| u32::from(shift.min(14)));
    shift | if asked.sack { SACK_BIT } else { 0 } | if asked.ecn { ECN_BIT } else { 0 }
}

/// Which of [`COOKIE_MSS`] is the largest that is not above `mss`.
fn mss_index(mss: u16) -> u32 {
    COOKIE_MSS.iter().skip(1).take_while(|kept| **kept <= mss).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::tests::{V4, V6};
    use proptest::prelude::*;

    const PEER_ISN: SeqNumber = SeqNumber(0x0102_0304);
    const ASKED: Asked = Asked { mss: 1460, window_scale: Some(7), sack: true, ecn: false, timestamps: true };
    const PERIOD: u64 = COOKIE_PERIOD_US;

    fn seed() -> [u8; 32] {
        std::array::from_fn(|i| i as u8)
    }

    fn secrets() -> Secrets {
        Secrets::new(seed())
    }

    fn give(secrets: &Secrets, asked: &Asked, now: u64) -> Cookie {
        secrets.cookie(V4.0, V4.1, PEER_ISN, asked, Instant(now))
    }

    fn check(secrets: &Secrets, cookie: Cookie, now: u64) -> Option<Restored> {
        secrets.check(V4.0, V4.1, PEER_ISN, cookie.iss, cookie.timestamp, Instant(now))
    }

    #[test]
    fn the_hash_is_siphash_2_4() {
        // Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), appendix A; the authors' vectors for 128 bits.
        let key = std::array::from_fn(|i| i as u8);
        let input: [u8; 15] = std::array::from_fn(|i| i as u8);
        assert_eq!(SipHasher24::new_with_key(&key).hash(&input), 0xa129_ca61_49be_45e5);
        let wide = sip128::SipHasher24::new_with_key(&key).hash(&[]).as_bytes();
        assert_eq!(u128::from_be_bytes(wide), 0xa381_7f04_ba25_a8e6_6df6_7214_c755_0293);
    }

    /// The numbers come from another implementation, of SipHash and of what is hashed.
    #[test]
    fn known_answers() {
        let (secrets, now) = (secrets(), Instant(1_000_000_000));
        let without = Asked { timestamps: false, ..ASKED };
        for (endpoints, iss, offset, plain, cookie, timestamp) in [
            (V4, 0x8ab6_ea26, 0xfb36_fec7, 0xe1ab_16e7, 0xe68f_ca07, 0xfb46_40d7),
            (V6, 0xbf16_9856, 0xfc7d_5eb4, 0xeb5e_8867, 0xed49_eadb, 0xfc8c_a0d7),
        ] {
            let (local, remote) = endpoints;
            assert_eq!(secrets.connection(local, remote, now), (SeqNumber(iss), offset));
            let plain = Cookie { iss: SeqNumber(plain), timestamp: None };
            assert_eq!(secrets.cookie(local, remote, PEER_ISN, &without, now), plain);
            let cookie = Cookie { iss: SeqNumber(cookie), timestamp: Some(timestamp) };
            assert_eq!(secrets.cookie(local, remote, PEER_ISN, &ASKED, now), cookie);
        }
        let cookie = secrets.fast_open_cookie(V4.1.address).unwrap();
        assert_eq!(cookie.as_bytes(), 0x80a4_5e3e_2c2f_c949u64.to_be_bytes());
    }

    #[test]
    fn initial_sequence_numbers_tick_every_4_us_and_differ_by_every_part() {
        let secrets = secrets();
        for (local, remote) in [V4, V6] {
            let at = |local, remote, now| secrets.connection(local, remote, Instant(now));
            let (first, offset) = at(local, remote, 0);
            assert_eq!(at(local, remote, 3), (first, offset));
            assert_eq!(at(local, remote, 4), (first + 1, offset));
            assert_eq!(at(local, remote, 4 << 32), (first, offset), "the clock wraps");
            let port = |end: Endpoint| Endpoint { port: end.port ^ 1, ..end };
            let host = |end: Endpoint| Endpoint { address: end.address ^ 1, ..end };
            for (l, r) in [
                (port(local), remote),
                (host(local), remote),
                (local, port(remote)),
                (local, host(remote)),
                (remote, local),
            ] {
                let (other, other_offset) = at(l, r, 0);
                assert!(other != first && other_offset != offset);
            }
            let mut another = seed();
            another[31] ^= 1;
            assert_ne!(Secrets::new(another).connection(local, remote, Instant(0)).0, first);
        }
    }

    #[test]
    fn cookies_keep_what_was_asked() {
        let secrets = secrets();
        for (mss, kept) in [
            (0, 88),
            (87, 88),
            (500, 88),
            (536, 536),
            (1219, 536),
            (1452, 1440),
            (1460, 1460),
            (9000, 8940),
            (65535, 8940),
        ] {
            for window_scale in [None, Some(0), Some(7), Some(14)] {
                for (sack, ecn) in [(false, false), (true, false), (false, true), (true, true)] {
                    let asked = Asked { mss, window_scale, sack, ecn, timestamps: true };
                    let cookie = give(&secrets, &asked, 5_000);
                    let offset = secrets.connection(V4.0, V4.1, Instant(0)).1;
                    let restored =
                        Restored { mss: kept, window_scale, sack, ecn, timestamp_offset: Some(offset) };
                    assert_eq!(check(&secrets, cookie, 5_000), Some(restored));
                    // Without timestamps there is room for the MSS alone.
                    let cookie = give(&secrets, &Asked { timestamps: false, ..asked }, 5_000);
                    let restored = Restored {
                        mss: kept,
                        window_scale: None,
                        sack: false,
                        ecn: false,
                        timestamp_offset: None,
                    };
                    assert_eq!(cookie.timestamp, None);
                    assert_eq!(check(&secrets, cookie, 5_000), Some(restored));
                }
            }
        }
    }

    #[test]
    fn a_cookie_shown_with_anything_changed_is_refused() {
        let (secrets, now) = (secrets(), 7 * PERIOD);
        let cookie = give(&secrets, &ASKED, now);
        let at = Instant(now);
        assert!(check(&secrets, cookie, now).is_some());
        for bit in 0..32 {
            let flip = |number: SeqNumber| SeqNumber(number.0 ^ 1 << bit);
            let iss = Cookie { iss: flip(cookie.iss), ..cookie };
            assert_eq!(check(&secrets, iss, now), None, "bit {bit} of the ISN");
            let (local, remote) = V4;
            let isn = secrets.check(local, remote, flip(PEER_ISN), cookie.iss, cookie.timestamp, at);
            assert_eq!(isn, None, "bit {bit} of the peer's ISN");
            let echo = Cookie { timestamp: cookie.timestamp.map(|echo| echo ^ 1 << bit), ..cookie };
            // Above the options the echo is only a time.
            assert_eq!(check(&secrets, echo, now).is_some(), bit >= 6, "bit {bit} of the echo");
            for (local, remote) in [
                (Endpoint { address: local.address ^ 1 << bit, ..local }, remote),
                (local, Endpoint { address: remote.address ^ 1 << bit, ..remote }),
                (Endpoint { port: local.port ^ 1 << (bit % 16), ..local }, remote),
                (local, Endpoint { port: remote.port ^ 1 << (bit % 16), ..remote }),
            ] {
                assert_eq!(secrets.check(local, remote, PEER_ISN, cookie.iss, cookie.timestamp, at), None);
            }
        }
        assert_eq!(check(&secrets, Cookie { timestamp: None, ..cookie }, now), None);
        let without = give(&secrets, &Asked { timestamps: false, ..ASKED }, now);
        assert_eq!(check(&secrets, Cookie { timestamp: Some(0), ..without }, now), None);
    }

    #[test]
    fn data_that_overtook_a_cookie_is_told_from_strangers() {
        let (secrets, now) = (secrets(), 5_000);
        for asked in [ASKED, Asked { timestamps: false, ..ASKED }] {
            let cookie = give(&secrets, &asked, now);
            let resembles = |(local, remote): (Endpoint, Endpoint), iss, at| {
                secrets.resembles_cookie(local, remote, iss, cookie.timestamp, Instant(at))
            };
            assert!(resembles(V4, cookie.iss, now));
            let others = (0..100_000).filter(|&add| resembles(V4, cookie.iss + (1 << 24) + add * 7_919, now));
            assert!(others.count() < 3_000);
            let later = (1..10_000).filter(|&add| {
                let (local, remote) = V4;
                let at = Instant(now);
                secrets.check(local, remote, PEER_ISN + add, cookie.iss, cookie.timestamp, at).is_some()
            });
            assert_eq!(later.count(), 0, "data that overtook is never taken for the first");
        }
    }

    #[test]
    fn cookies_live_one_period_to_two() {
        let secrets = secrets();
        for given in [10 * PERIOD, 11 * PERIOD - 1, 11 * PERIOD, 11 * PERIOD + PERIOD / 2] {
            let cookie = give(&secrets, &ASKED, given);
            let end = (given / PERIOD + 2) * PERIOD;
            for now in [given, given + PERIOD, end - 1] {
                assert!(check(&secrets, cookie, now).is_some(), "{given} at {now}");
            }
            for now in [end, end + PERIOD, end + 2 * PERIOD, end + 63 * PERIOD, given - PERIOD] {
                assert_eq!(check(&secrets, cookie, now), None, "{given} at {now}");
            }
        }
        let odd = Cookie { iss: SeqNumber(1 << 31), timestamp: None };
        assert_eq!(check(&secrets, odd, 0), None, "there was no period before the first");
    }

    #[test]
    fn a_rotation_changes_the_secret_and_keeps_old_cookies_good() {
        let (mut secrets, now) = (secrets(), 20 * PERIOD + 5);
        let unrotated = secrets.clone();
        let before = give(&secrets, &ASKED, now);
        assert!(secrets.rotate(Instant(now)));
        let same_period = give(&secrets, &ASKED, now + 1);
        assert_eq!(same_period.iss, before.iss, "the old secret serves its counter to the end");
        let later = now + PERIOD;
        let after = give(&secrets, &ASKED, later);
        assert_ne!(after.iss, give(&unrotated, &ASKED, later).iss);
        assert!(check(&secrets, before, later).is_some() && check(&secrets, after, later).is_some());
        assert_eq!(check(&unrotated, after, later), None);
        // Too early: cookies of the secret that would be dropped are still good.
        assert!(!secrets.rotate(Instant(now)) && !secrets.rotate(Instant(later)));
        assert!(check(&secrets, before, later).is_some());
        assert!(secrets.rotate(Instant(later + PERIOD)));
        assert!(check(&secrets, after, later + PERIOD).is_some());
        let newest = give(&secrets, &ASKED, later + 2 * PERIOD);
        assert!(check(&secrets, newest, later + 2 * PERIOD).is_some());
    }

    #[test]
    fn the_first_rotation_may_be_at_once() {
        let mut secrets = secrets();
        let cookie = give(&secrets, &ASKED, 0);
        assert!(secrets.rotate(Instant(0)));
        assert!(check(&secrets, cookie, PERIOD).is_some());
    }

    #[test]
    fn fast_open_cookies_outlive_one_rotation() {
        let mut secrets = secrets();
        let (client, other) = (V4.1.address, V6.1.address);
        let cookie = secrets.fast_open_cookie(client).unwrap();
        assert_eq!(secrets.check_fast_open(client, &cookie), FastOpenCheck::Valid);
        assert_eq!(secrets.check_fast_open(other, &cookie), FastOpenCheck::Invalid);
        for bit in 0..64 {
            let mut bytes = cookie.as_bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = FastOpenCookie::new(&bytes).unwrap();
            assert_eq!(secrets.check_fast_open(client, &forged), FastOpenCheck::Invalid);
        }
        for bytes in [&cookie.as_bytes()[..6], &[cookie.as_bytes(), &[0, 0]].concat()] {
            let cut = FastOpenCookie::new(bytes).unwrap();
            assert_eq!(secrets.check_fast_open(client, &cut), FastOpenCheck::Invalid);
        }
        secrets.rotate_fast_open();
        assert_eq!(secrets.check_fast_open(client, &cookie), FastOpenCheck::Outdated);
        let renewed = secrets.fast_open_cookie(client).unwrap();
        assert_eq!(secrets.check_fast_open(client, &renewed), FastOpenCheck::Valid);
        secrets.rotate_fast_open();
        assert_eq!(secrets.check_fast_open(client, &cookie), FastOpenCheck::Invalid);
        assert_eq!(secrets.check_fast_open(client, &renewed), FastOpenCheck::Outdated);
        // Another worker with the same seed agrees.
        let mut sibling = Secrets::new(seed());
        sibling.rotate_fast_open();
        assert_eq!(sibling.fast_open_cookie(client), Some(renewed));
    }

    #[test]
    fn secrets_do_not_print() {
        assert_eq!(format!("{:?}", secrets()), "Secrets { .. }");
    }

    proptest! {
        #[test]
        fn cookies_come_back(seed: [u8; 32], local: (u128, u16), remote: (u128, u16), v4: bool, isn: u32, mss: u16,
                             window_scale in proptest::option::of(0..=14u8), sack: bool, ecn: bool,
                             given in 0..u64::MAX / 2, age in 0..PERIOD, rotate: bool) {
            let endpoint = |(address, port): (u128, u16)| Endpoint {
                address: if v4 { address & 0xffff_ffff | 0xffff << 32 } else { address },
                port,
            };
            let (local, remote) = (endpoint(local), endpoint(remote));
            let mut secrets = Secrets::new(seed);
            let asked = Asked { mss, window_scale, sack, ecn, timestamps: true };
            let cookie = secrets.cookie(local, remote, SeqNumber(isn), &asked, Instant(given));
            // Our timestamp is at most 64 ms behind the clock, never ahead.
            let offset = secrets.connection(local, remote, Instant(given)).1;
            let clock = Instant(given).milliseconds().wrapping_add(offset);
            prop_assert!(clock.wrapping_sub(cookie.timestamp.unwrap()) < 64);
            if rotate {
                prop_assert!(secrets.rotate(Instant(given)));
            }
            let now = Instant(given + age);
            let restored = secrets.check(local, remote, SeqNumber(isn), cookie.iss, cookie.timestamp, now).unwrap();
            prop_assert!(restored.mss <= mss.max(88));
            let got = (restored.window_scale, restored.sack, restored.ecn, restored.timestamp_offset);
            prop_assert_eq!(got, (window_scale, sack, ecn, Some(offset)));
        }

        #[test]
        fn guesses_are_refused(iss: u32, isn: u32, echo: Option<u32>, now in 0..u64::MAX / 2) {
            let restored = secrets().check(V6.0, V6.1, SeqNumber(isn), SeqNumber(iss), echo, Instant(now));
            prop_assert_eq!(restored, None);
        }
    }
}
