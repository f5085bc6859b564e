//! What do workers tell the control process, record by record? The bytes in an event ring (`hugepages::events`).
//!
//! ```text
//! exchange   [`ExchangeHead`], then its texts one after the other      an HTTP exchange is over
//! breaker    [`BreakerHead`]                                           a breaker has changed
//! ```
//!
//! A worker encodes without allocating; texts longer than their limit are cut and marked so. Who decodes treats the bytes as hostile.

mod bytes;

use std::net::IpAddr;

pub use self::bytes::{BreakerHead, ExchangeHead, fuzz, seeds};

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
