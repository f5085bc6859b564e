//! What a worker tells the control process: from the proxy's events to records in the worker's ring.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use hugepages::events::{Counts, EventsError, Producer};
use hugepages::segment::{SegmentDir, SegmentError};
use weir_abi::events::{self, Breaker, BreakerReason, BreakerState, Exchange, Stamp, Texts, Times};
use weir_l7::http::event::{self, Event};
use weir_tcp::Instant;

/// Bytes of a worker's ring: ten thousand usual exchanges, and more than comes between two looks of the control process.
const RING_BYTES: usize = 4 << 20;
/// How often the wall clock is looked at, µs: a step of it is noticed so late.
const CLOCK_US: u64 = 1_000_000;

/// The worker's end of its ring.
#[derive(Debug)]
pub struct Events {
    /// `None`: it could not be made; all is counted as refused.
    ring: Option<Producer>,
    refused_without_ring: u64,
    record: Box<[u8]>,
    worker: u16,
    generation: u64,
    /// Microseconds from the worker's clock to the wall clock; wraps.
    clock: u64,
    clock_due: Instant,
}

impl Events {
    /// The ring of a worker in the instance's directory in shared memory. Without one nothing is told, and that is said and counted.
    pub fn open(shared: &Path, worker: u16, generation: u64, now: Instant) -> Self {
        let ring = match open_ring(shared, worker) {
            Ok(ring) => Some(ring),
            Err(error) => {
                tracing::error!("worker {worker}: no access log and no changes of breakers: {error}");
                None
            }
        };
        Self::on(ring, worker, generation, now)
    }

    fn on(ring: Option<Producer>, worker: u16, generation: u64, now: Instant) -> Self {
        let record = vec![0; events::MOST_BYTES].into_boxed_slice();
        let mut events =
            Self { ring, refused_without_ring: 0, record, worker, generation, clock: 0, clock_due: now };
        events.look_at_clock(now);
        events
    }

    /// What follows happens under this generation.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Follows the wall clock. To be called now and then.
    pub fn look_at_clock(&mut self, now: Instant) {
        if now < self.clock_due {
            return;
        }
        self.clock_due = now.after(CLOCK_US);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH);
        let unix_us = unix.map_or(0, |since| since.as_micros() as u64);
        self.clock = unix_us.wrapping_sub(now.0);
    }

    /// Tells. Never waits: what does not fit is counted.
    #[inline]
    pub fn tell(&mut self, event: Event<'_>, now: Instant) {
        let Some(ring) = &mut self.ring else {
            self.refused_without_ring += 1;
            return;
        };
        let unix_us = now.0.wrapping_add(self.clock);
        let stamp = Stamp { unix_us, generation: self.generation, worker: self.worker };
        let length = match event {
            Event::Exchange(exchange) => {
                let stamp = Stamp { generation: exchange.generation, ..stamp };
                exchange_of(exchange, stamp).encode(&mut self.record)
            }
            Event::Breaker(change) => breaker_of(&change, stamp).encode(&mut self.record),
        };
        if let Some(record) = self.record.get(..length) {
            ring.push(record);
        }
    }

    /// Seconds since the beginning of 1970; 0 before the clock was looked at.
    #[inline]
    pub fn unix_s(&self, now: Instant) -> u64 {
        now.0.wrapping_add(self.clock) / 1_000_000
    }

    /// What was told and what was not.
    pub fn counts(&self) -> Counts {
        let mut counts = self.ring.as_ref().map(Producer::counts).unwrap_or_default();
        counts.refused = counts.refused.wrapping_add(self.refused_without_ring);
        counts
    }
}

/// A name that the control process looks for.
fn ring_name(worker: u16) -> String {
    format!("{}{worker}", events::RING_PREFIX)
}

fn open_ring(shared: &Path, worker: u16) -> Result<Producer, EventsError> {
    Producer::open(&SegmentDir::open(shared)?, &ring_name(worker), RING_BYTES)
}

/// Removes the rings of workers that there are no more.
pub fn remove_others(shared: &SegmentDir, workers: u16) -> Result<(), SegmentError> {
    for name in shared.list()? {
        let worker = name.strip_prefix(events::RING_PREFIX).and_then(|number| number.parse::<u16>().ok());
        if worker.is_some_and(|worker| worker >= workers) {
            shared.remove(&name)?;
        }
    }
    Ok(())
}

fn exchange_of<'a>(exchange: &event::Exchange<'a>, stamp: Stamp) -> Exchange<'a> {
    Exchange {
        stamp,
        listener: exchange.listener,
        route: exchange.route,
        pool: exchange.pool,
        backend: exchange.backend,
        client: exchange.client.address,
        client_port: exchange.client.port,
        version: exchange.version,
        status: exchange.status,
        cause: exchange.cause.map_or(0, |cause| cause as u8),
        attempts: exchange.attempts,
        is_reused: exchange.is_reused,
        bytes_in: exchange.bytes_in,
        bytes_out: exchange.bytes_out,
        times: Times {
            head_us: exchange.head_us,
            queue_us: exchange.queue_us,
            connect_us: exchange.connect_us,
            response_us: exchange.response_us,
            total_us: exchange.total_us,
        },
        texts: Texts {
            method: exchange.method,
            target: exchange.target,
            host: exchange.host,
            user_agent: exchange.user_agent,
            referer: exchange.referer,
            request_id: exchange.request_id,
        },
        cut: 0,
    }
}

fn breaker_of(change: &event::BreakerChange, stamp: Stamp) -> Breaker {
    let state = match change.state {
        event::BreakerState::Closed => BreakerState::Closed,
        event::BreakerState::Open => BreakerState::Open,
        event::BreakerState::HalfOpen => BreakerState::HalfOpen,
    };
    let reason = match change.reason {
        event::BreakerReason::Consecutive => BreakerReason::Consecutive,
        event::BreakerReason::Ratio => BreakerReason::Ratio,
        event::BreakerReason::Latency => BreakerReason::Latency,
        event::BreakerReason::Elapsed => BreakerReason::Elapsed,
        event::BreakerReason::TestSucceeded => BreakerReason::TestSucceeded,
        event::BreakerReason::TestFailed => BreakerReason::TestFailed,
    };
    let event::BreakerChange { backend, consecutive, requests, failures, .. } = *change;
    Breaker { stamp, backend, state, reason, consecutive, requests, failures }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::events::Consumer;
    use std::net::IpAddr;
    use weir_abi::events::{NEVER, NONE, Record};
    use weir_l7::http::rules::Client;

    fn exchange(target: &[u8]) -> event::Exchange<'_> {
        event::Exchange {
            generation: 6,
            listener: 4,
            route: u16::MAX,
            pool: u32::MAX,
            backend: u32::MAX,
            client: Client { address: IpAddr::from([198, 18, 0, 7]), port: 5_000 },
            method: b"GET",
            target,
            host: b"example.org",
            user_agent: b"",
            referer: b"",
            request_id: b"77",
            version: 11,
            status: 404,
            cause: Some(weir_http::cause::Cause::NoRoute),
            bytes_in: 0,
            bytes_out: 10,
            attempts: 0,
            is_reused: false,
            head_us: 3,
            queue_us: u32::MAX,
            connect_us: u32::MAX,
            response_us: u32::MAX,
            total_us: 9,
        }
    }

    #[test]
    fn what_is_told_can_be_read_with_its_time_and_generation() {
        let parent = tempfile::tempdir().unwrap();
        let shared = parent.path().join("weir-test");
        let mut events = Events::open(&shared, 3, 7, Instant(1_000));
        events.set_generation(8);
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
        events.tell(Event::Exchange(&exchange(b"/x")), Instant(2_000));
        let change = event::BreakerChange {
            backend: 5,
            state: event::BreakerState::Open,
            reason: event::BreakerReason::Consecutive,
            consecutive: 5,
            requests: 9,
            failures: 6,
        };
        events.tell(Event::Breaker(change), Instant(2_000));
        assert_eq!((events.counts().written, events.counts().refused), (2, 0));
        let directory = SegmentDir::open_existing(&shared).unwrap();
        let mut consumer = Consumer::open(&directory, "events-3").unwrap();
        let Ok(Record::Exchange(found)) = Record::decode(consumer.take().unwrap().unwrap()) else {
            panic!("no exchange")
        };
        assert_eq!((found.listener, found.route, found.pool, found.backend), (4, u16::MAX, NONE, NONE));
        assert_eq!((found.texts.target, found.texts.request_id, found.cause), (&b"/x"[..], &b"77"[..], 16));
        assert_eq!((found.times.queue_us, found.times.total_us), (NEVER, 9));
        assert_eq!((found.stamp.generation, found.stamp.worker), (6, 3), "the one that it began with");
        assert!(found.stamp.unix_us.abs_diff(before) < 2_000_000, "{} {before}", found.stamp.unix_us);
        let Ok(Record::Breaker(found)) = Record::decode(consumer.take().unwrap().unwrap()) else {
            panic!("no breaker")
        };
        assert_eq!(
            (found.backend, found.state, found.reason),
            (5, BreakerState::Open, BreakerReason::Consecutive)
        );
        assert_eq!((found.consecutive, found.requests, found.failures), (5, 9, 6));
        drop(events);
        remove_others(&directory, 4).unwrap();
        assert!(directory.exists("events-3"));
        remove_others(&directory, 3).unwrap();
        assert!(!directory.exists("events-3"));
    }

    #[test]
    fn numbers_of_both_sides_mean_the_same() {
        for (ours, theirs) in [
            (BreakerState::Closed as u8, event::BreakerState::Closed as u8),
            (BreakerState::Open as u8, event::BreakerState::Open as u8),
            (BreakerState::HalfOpen as u8, event::BreakerState::HalfOpen as u8),
            (BreakerReason::TestFailed as u8, event::BreakerReason::TestFailed as u8),
        ] {
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn without_a_ring_all_is_counted() {
        let mut events = Events::on(None, 0, 1, Instant(0));
        events.tell(Event::Exchange(&exchange(b"/")), Instant(5));
        assert_eq!(events.counts(), Counts { refused: 1, ..Counts::default() });
    }

    #[test]
    fn a_ring_that_nobody_reads_fills_and_then_counts() {
        let parent = tempfile::tempdir().unwrap();
        let mut events = Events::open(&parent.path().join("weir-test"), 0, 1, Instant(0));
        let target = vec![b'a'; 9_000];
        for _ in 0..2_000 {
            events.tell(Event::Exchange(&exchange(&target)), Instant(1));
        }
        let Counts { written, refused, .. } = events.counts();
        assert!(written > 900 && refused > 900 && written + refused == 2_000, "{written} {refused}");
    }
}
