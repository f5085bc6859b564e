//! What do workers tell the control process, record by record? The bytes in an event ring (`hugepages::events`).
//!
//! ```text
//! exchange   [`ExchangeHead`], then its texts one after the other      an HTTP exchange is over
//! breaker    [`BreakerHead`]                                           a breaker has changed
//! ```
//!
//! A worker encodes without allocating; texts longer than their limit are cut and marked so. Who decodes treats the bytes as hostile.

use std::net::IpAddr;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::record::Address;

/// Names of rings: this and the worker's number.
pub const RING_PREFIX: &str = "events-";
/// Longest record, in bytes.
pub const MOST_BYTES: usize = size_of::<ExchangeHead>() + TEXT_BYTES;
/// Longest texts, in the order of [`Texts`]: method, target, host, user agent, referer, request id.
pub const TEXT_LIMITS: [u16; 6] = [32, 4_096, 256, 1_024, 1_024, 128];
/// Bytes of all texts.
const TEXT_BYTES: usize = {
    let [a, b, c, d, e, f] = TEXT_LIMITS;
    a as usize + b as usize + c as usize + d as usize + e as usize + f as usize
};
/// No route.
pub const NO_ROUTE: u16 = u16::MAX;
/// No pool, no backend.
pub const NONE: u32 = u32::MAX;
/// A time that did not come.
pub const NEVER: u32 = u32::MAX;

const EXCHANGE: u16 = 1;
const BREAKER: u16 = 2;
const REUSED: u8 = 1;

/// When and where something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Microseconds since 1970, of the wall clock.
    pub unix_us: u64,
    /// The generation that the worker ran.
    pub generation: u64,
    /// Which worker.
    pub worker: u16,
}

/// The texts of an exchange, as the client has sent them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Texts<'a> {
    /// The method; empty where the head was refused.
    pub method: &'a [u8],
    /// The request's target.
    pub target: &'a [u8],
    /// The host with its port.
    pub host: &'a [u8],
    /// `User-Agent`.
    pub user_agent: &'a [u8],
    /// `Referer`.
    pub referer: &'a [u8],
    /// The request's id.
    pub request_id: &'a [u8],
}

impl<'a> Texts<'a> {
    fn all(&self) -> [&'a [u8]; 6] {
        [self.method, self.target, self.host, self.user_agent, self.referer, self.request_id]
    }
}

/// Times of an exchange, microseconds; [`NEVER`]: it didn't come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the first byte of the request to the end of its head.
    pub head_us: u32,
    /// In the queue.
    pub queue_us: u32,
    /// Until the last attempt's connection was there.
    pub connect_us: u32,
    /// From passing the request on to the response's head.
    pub response_us: u32,
    /// From the first byte of the request to the end of the response.
    pub total_us: u32,
}

/// An HTTP exchange that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange<'a> {
    /// When it ended, and where.
    pub stamp: Stamp,
    /// Index of the listener.
    pub listener: u16,
    /// The route by its place, or [`NO_ROUTE`].
    pub route: u16,
    /// Index of the pool, or [`NONE`].
    pub pool: u32,
    /// Index of the last backend, or [`NONE`].
    pub backend: u32,
    /// Who asked.
    pub client: IpAddr,
    /// From which port.
    pub client_port: u16,
    /// 10 or 11; 0 where the head was refused.
    pub version: u8,
    /// The status that the client got; 0: none.
    pub status: u16,
    /// Number of the cause why the proxy answered itself; 0: it didn't.
    pub cause: u8,
    /// Attempts made.
    pub attempts: u8,
    /// Whether an idle connection was used.
    pub is_reused: bool,
    /// Bytes of the request's body.
    pub bytes_in: u64,
    /// Bytes of the response's body.
    pub bytes_out: u64,
    /// How long what took.
    pub times: Times,
    /// Texts.
    pub texts: Texts<'a>,
    /// Texts that were longer than their limit and are cut: a bit each, in the order of [`TEXT_LIMITS`]. Set by encoding.
    pub cut: u8,
}

/// A state of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BreakerState {
    /// The backend is used.
    Closed = 0,
    /// It isn't.
    Open = 1,
    /// One request at a time tests it.
    HalfOpen = 2,
}

impl BreakerState {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The state of a number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Why a breaker has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BreakerReason {
    /// Failures in a row.
    Consecutive = 0,
    /// Too many failures of a window's requests.
    Ratio = 1,
    /// Too slow.
    Latency = 2,
    /// It was open for its time.
    Elapsed = 3,
    /// The test succeeded.
    TestSucceeded = 4,
    /// The test failed.
    TestFailed = 5,
}

impl BreakerReason {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::Consecutive, Self::Ratio, Self::Latency, Self::Elapsed, Self::TestSucceeded, Self::TestFailed];

    /// The reason of a number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Consecutive => "failures in a row",
            Self::Ratio => "failure ratio",
            Self::Latency => "latency",
            Self::Elapsed => "open time elapsed",
            Self::TestSucceeded => "test succeeded",
            Self::TestFailed => "test failed",
        }
    }
}

/// A breaker has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// When, and at which worker: each has its own.
    pub stamp: Stamp,
    /// Index of the backend.
    pub backend: u32,
    /// The state that it has now.
    pub state: BreakerState,
    /// Why.
    pub reason: BreakerReason,
    /// Failures in a row.
    pub consecutive: u32,
    /// Requests of the window.
    pub requests: u32,
    /// Failures of the window.
    pub failures: u32,
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record<'a> {
    /// An HTTP exchange is over.
    Exchange(Exchange<'a>),
    /// A breaker has changed.
    Breaker(Breaker),
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Fewer bytes than the shortest of its kind.
    #[error("an event of {0} bytes is too short")]
    Short(usize),
    /// Likely cause: a dataplane of a later release.
    #[error("an event of kind {0} is unknown")]
    Kind(u16),
    /// A field is out of its range.
    #[error("{field} of an event is {value}")]
    Value {
        /// Which.
        field: &'static str,
        /// What it says.
        value: u64,
    },
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct StampBytes {
    kind: u16,
    worker: u16,
    reserved: u32,
    generation: u64,
    unix_us: u64,
}

impl StampBytes {
    fn new(kind: u16, stamp: Stamp) -> Self {
        let Stamp { unix_us, generation, worker } = stamp;
        Self { kind, worker, reserved: 0, generation, unix_us }
    }

    fn stamp(&self) -> Result<Stamp, EventError> {
        ensure(self.reserved == 0, "reserved", u64::from(self.reserved))?;
        Ok(Stamp { unix_us: self.unix_us, generation: self.generation, worker: self.worker })
    }
}

/// The fixed part of an exchange.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ExchangeHead {
    stamp: StampBytes,
    bytes_in: u64,
    bytes_out: u64,
    pool: u32,
    backend: u32,
    times: [u32; 5],
    client: Address,
    listener: u16,
    route: u16,
    status: u16,
    lengths: [u16; 6],
    version: u8,
    cause: u8,
    attempts: u8,
    flags: u8,
    cut: u8,
    reserved: [u8; 9],
}

/// The fixed part of a breaker's change, which is all of it.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct BreakerHead {
    stamp: StampBytes,
    backend: u32,
    consecutive: u32,
    requests: u32,
    failures: u32,
    state: u8,
    reason: u8,
    reserved: [u8; 6],
}

fn ensure(holds: bool, field: &'static str, value: u64) -> Result<(), EventError> {
    if holds { Ok(()) } else { Err(EventError::Value { field, value }) }
}

impl Exchange<'_> {
    /// Writes the record's bytes; their number. `out` has at least [`MOST_BYTES`], else nothing is written.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        let Times { head_us, queue_us, connect_us, response_us, total_us } = self.times;
        let mut head = ExchangeHead {
            stamp: StampBytes::new(EXCHANGE, self.stamp),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            pool: self.pool,
            backend: self.backend,
            times: [head_us, queue_us, connect_us, response_us, total_us],
            client: Address::host(self.client).with_port(self.client_port),
            listener: self.listener,
            route: self.route,
            status: self.status,
            lengths: [0; 6],
            version: self.version,
            cause: self.cause,
            attempts: self.attempts,
            flags: if self.is_reused { REUSED } else { 0 },
            cut: self.cut,
            reserved: [0; 9],
        };
        if out.len() < MOST_BYTES {
            return 0;
        }
        let Some((first, mut rest)) = out.split_at_mut_checked(size_of::<ExchangeHead>()) else { return 0 };
        let mut total = first.len();
        let places = head.lengths.iter_mut().zip(TEXT_LIMITS);
        for (at, ((length, limit), text)) in places.zip(self.texts.all()).enumerate() {
            let kept = text.get(..usize::from(limit)).unwrap_or(text);
            if kept.len() < text.len() {
                head.cut |= 1 << at;
            }
            let Some((place, after)) = rest.split_at_mut_checked(kept.len()) else { return 0 };
            place.copy_from_slice(kept);
            // at most the limit
            *length = kept.len() as u16;
            total += kept.len();
            rest = after;
        }
        first.copy_from_slice(head.as_bytes());
        total
    }
}

impl Breaker {
    /// Writes the record's bytes; their number. `out` has at least [`MOST_BYTES`], else nothing is written.
    pub fn encode(&self, out: &mut [u8]) -> usize {
        let head = BreakerHead {
            stamp: StampBytes::new(BREAKER, self.stamp),
            backend: self.backend,
            consecutive: self.consecutive,
            requests: self.requests,
            failures: self.failures,
            state: self.state as u8,
            reason: self.reason as u8,
            reserved: [0; 6],
        };
        let Some(place) = out.get_mut(..size_of::<BreakerHead>()) else { return 0 };
        place.copy_from_slice(head.as_bytes());
        place.len()
    }
}

impl<'a> Record<'a> {
    /// Reads a record.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EventError> {
        let short = EventError::Short(bytes.len());
        let (stamp, _) = StampBytes::read_from_prefix(bytes).map_err(|_| short)?;
        match stamp.kind {
            EXCHANGE => {
                let (head, texts) = ExchangeHead::read_from_prefix(bytes).map_err(|_| short)?;
                Ok(Self::Exchange(exchange(&head, texts)?))
            }
            BREAKER => {
                let (head, rest) = BreakerHead::read_from_prefix(bytes).map_err(|_| short)?;
                ensure(rest.is_empty(), "length", bytes.len() as u64)?;
                Ok(Self::Breaker(breaker(&head)?))
            }
            kind => Err(EventError::Kind(kind)),
        }
    }
}

fn exchange<'a>(head: &ExchangeHead, mut rest: &'a [u8]) -> Result<Exchange<'a>, EventError> {
    let mut texts: [&[u8]; 6] = Default::default();
    for (text, (length, limit)) in texts.iter_mut().zip(head.lengths.iter().zip(TEXT_LIMITS)) {
        ensure(*length <= limit, "length of a text", u64::from(*length))?;
        let split = rest.split_at_checked(usize::from(*length));
        (*text, rest) =
            split.ok_or(EventError::Value { field: "length of a text", value: u64::from(*length) })?;
    }
    ensure(rest.is_empty(), "bytes behind the texts", rest.len() as u64)?;
    let client = head.client.ip().ok_or(EventError::Value {
        field: "address family of the client",
        value: u64::from(head.client.family),
    })?;
    ensure(Address::host(client).with_port(head.client.port) == head.client, "client", 0)?;
    ensure(head.flags & !REUSED == 0, "flags", u64::from(head.flags))?;
    ensure(head.cut < 1 << TEXT_LIMITS.len(), "cut texts", u64::from(head.cut))?;
    ensure(head.reserved == [0; 9], "reserved", 1)?;
    let [method, target, host, user_agent, referer, request_id] = texts;
    let [head_us, queue_us, connect_us, response_us, total_us] = head.times;
    Ok(Exchange {
        stamp: head.stamp.stamp()?,
        listener: head.listener,
        route: head.route,
        pool: head.pool,
        backend: head.backend,
        client,
        client_port: head.client.port,
        version: head.version,
        status: head.status,
        cause: head.cause,
        attempts: head.attempts,
        is_reused: head.flags & REUSED != 0,
        bytes_in: head.bytes_in,
        bytes_out: head.bytes_out,
        times: Times { head_us, queue_us, connect_us, response_us, total_us },
        texts: Texts { method, target, host, user_agent, referer, request_id },
        cut: head.cut,
    })
}

fn breaker(head: &BreakerHead) -> Result<Breaker, EventError> {
    let value = |field, value: u8| EventError::Value { field, value: u64::from(value) };
    ensure(head.reserved == [0; 6], "reserved", 1)?;
    Ok(Breaker {
        stamp: head.stamp.stamp()?,
        backend: head.backend,
        state: BreakerState::from_u8(head.state).ok_or(value("state of a breaker", head.state))?,
        reason: BreakerReason::from_u8(head.reason).ok_or(value("reason of a breaker", head.reason))?,
        consecutive: head.consecutive,
        requests: head.requests,
        failures: head.failures,
    })
}

/// The body of the fuzz target: bytes that decode encode to the same bytes.
pub fn fuzz(data: &[u8]) {
    let mut out = [0; MOST_BYTES];
    let mut again = |data: &[u8]| {
        let length = match Record::decode(data) {
            Ok(Record::Exchange(exchange)) => exchange.encode(&mut out),
            Ok(Record::Breaker(breaker)) => breaker.encode(&mut out),
            Err(_) => return,
        };
        assert_eq!(out.get(..length), Some(data), "a record that decodes encodes to the same bytes");
    };
    again(data);
    // with a head that is right but for its lengths, so that the texts are reached
    let mut head = ExchangeHead::new_zeroed();
    head.stamp.kind = EXCHANGE;
    head.client = Address::host(IpAddr::from([198, 18, 0, 1]));
    let mut left = data.len();
    for (length, limit) in head.lengths.iter_mut().zip(TEXT_LIMITS) {
        *length = left.min(usize::from(limit)) as u16;
        left -= usize::from(*length);
    }
    again(&[head.as_bytes(), data].concat());
}

/// Records of each kind, for the fuzz target to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let stamp = Stamp { unix_us: 1_700_000_000_000_000, generation: 1, worker: 0 };
    let exchange = Exchange {
        stamp,
        listener: 0,
        route: NO_ROUTE,
        pool: 0,
        backend: NONE,
        client: IpAddr::from([198, 18, 0, 1]),
        client_port: 1_024,
        version: 11,
        status: 200,
        cause: 0,
        attempts: 1,
        is_reused: true,
        bytes_in: 1,
        bytes_out: 2,
        times: Times { head_us: 1, queue_us: NEVER, connect_us: 2, response_us: 3, total_us: 4 },
        texts: Texts {
            method: b"GET",
            target: b"/",
            host: b"a",
            user_agent: b"b",
            referer: b"c",
            request_id: b"d",
        },
        cut: 0,
    };
    let (state, reason) = (BreakerState::Open, BreakerReason::Ratio);
    let breaker = Breaker { stamp, backend: 1, state, reason, consecutive: 1, requests: 3, failures: 2 };
    let mut out = [0; MOST_BYTES];
    let length = exchange.encode(&mut out);
    let first = out.get(..length).unwrap_or_default().to_vec();
    let length = breaker.encode(&mut out);
    vec![first, out.get(..length).unwrap_or_default().to_vec()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> Exchange<'static> {
        Exchange {
            stamp: Stamp { unix_us: 1_700_000_000_123_456, generation: 42, worker: 3 },
            listener: 7,
            route: 2,
            pool: 1,
            backend: 9,
            client: IpAddr::from([198, 18, 0, 7]),
            client_port: 50_123,
            version: 11,
            status: 200,
            cause: 0,
            attempts: 1,
            is_reused: true,
            bytes_in: 5,
            bytes_out: 1 << 40,
            times: Times { head_us: 1, queue_us: NEVER, connect_us: 3, response_us: 4, total_us: 5 },
            texts: Texts {
                method: b"GET",
                target: b"/a?b=c",
                host: b"example.org:8080",
                user_agent: b"curl/8",
                referer: b"",
                request_id: b"0123456789abcdef",
            },
            cut: 0,
        }
    }

    fn encoded(exchange: &Exchange<'_>) -> Vec<u8> {
        let mut out = vec![0xff; MOST_BYTES];
        let length = exchange.encode(&mut out);
        assert!(length > 0);
        out.truncate(length);
        out
    }

    #[test]
    fn an_exchange_comes_back_as_it_was() {
        let v6: IpAddr = "2001:db8::7".parse().unwrap();
        let texts = Texts::default();
        for exchange in [whole(), Exchange { client: v6, is_reused: false, texts, ..whole() }] {
            assert_eq!(Record::decode(&encoded(&exchange)), Ok(Record::Exchange(exchange)));
        }
        let mut small = [0; MOST_BYTES - 1];
        assert_eq!((whole().encode(&mut small), small), (0, [0; MOST_BYTES - 1]));
    }

    #[test]
    fn long_texts_are_cut_and_marked() {
        let long = vec![b'x'; 9_000];
        let texts = Texts { target: &long, request_id: &long, ..whole().texts };
        let bytes = encoded(&Exchange { texts, ..whole() });
        let Ok(Record::Exchange(found)) = Record::decode(&bytes) else { panic!("not an exchange") };
        assert_eq!((found.texts.target.len(), found.texts.request_id.len()), (4_096, 128));
        assert_eq!((found.cut, found.texts.host), (0b10_0010, whole().texts.host));
        let all = Texts { method: &long, host: &long, user_agent: &long, referer: &long, ..texts };
        assert_eq!(encoded(&Exchange { texts: all, ..whole() }).len(), MOST_BYTES);
        // a ring takes no longer records
        const { assert!(MOST_BYTES <= 8 << 10) };
    }

    #[test]
    fn a_breaker_comes_back_as_it_was() {
        for state in BreakerState::ALL {
            for reason in BreakerReason::ALL {
                let stamp = whole().stamp;
                let breaker =
                    Breaker { stamp, backend: 9, state, reason, consecutive: 5, requests: 20, failures: 6 };
                let mut out = [0; MOST_BYTES];
                let length = breaker.encode(&mut out);
                assert_eq!(Record::decode(&out[..length]), Ok(Record::Breaker(breaker)));
                assert!(Record::decode(&out[..=length]).is_err());
                assert!(Record::decode(&out[..length - 1]).is_err());
            }
        }
    }

    #[test]
    fn every_cut_and_every_changed_byte_is_an_error_or_another_record() {
        let bytes = encoded(&whole());
        for length in 0..bytes.len() {
            assert!(Record::decode(&bytes[..length]).is_err(), "{length}");
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                fuzz(&changed);
                match Record::decode(&changed) {
                    Ok(found) => assert_eq!(found == Record::Exchange(whole()), changed == bytes, "{at}"),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        assert_eq!(Record::decode(&[9; 200]), Err(EventError::Kind(0x0909)));
    }

    #[test]
    fn the_fuzz_target_begins_with_records() {
        assert!(seeds().iter().all(|seed| Record::decode(seed).is_ok()));
        seeds().iter().for_each(|seed| fuzz(seed));
    }

    #[test]
    fn numbers_of_states_and_reasons_are_their_places() {
        assert!(BreakerState::ALL.iter().enumerate().all(|(at, state)| *state as usize == at));
        assert!(BreakerReason::ALL.iter().enumerate().all(|(at, reason)| *reason as usize == at));
        assert_eq!((BreakerState::from_u8(3), BreakerReason::from_u8(6)), (None, None));
    }
}
