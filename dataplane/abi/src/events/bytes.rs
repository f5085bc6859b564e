//! How does a record lie in memory? A head of fixed size, and texts behind it.

use std::net::IpAddr;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{
    Breaker, BreakerReason, BreakerState, EventError, Exchange, MOST_BYTES, NEVER, NO_ROUTE, NONE, Record,
    Stamp, TEXT_LIMITS, Texts, Times,
};
use crate::record::Address;

const EXCHANGE: u16 = 1;
const BREAKER: u16 = 2;
const REUSED: u8 = 1;

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
