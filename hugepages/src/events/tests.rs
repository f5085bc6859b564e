//! Rings on a tmpfs or whatever /tmp is; two processes are in `tests/events.rs`.

use super::*;

fn directory() -> (tempfile::TempDir, SegmentDir) {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    (parent, directory)
}

fn pair() -> (tempfile::TempDir, SegmentDir, Producer, Consumer) {
    let (parent, directory) = directory();
    let producer = Producer::open(&directory, "events-0", 1).unwrap();
    let consumer = Consumer::open(&directory, "events-0").unwrap();
    (parent, directory, producer, consumer)
}

/// A record that tells its number by its length and each byte.
fn record(number: usize) -> Vec<u8> {
    let length = number.wrapping_mul(2_654_435_761) % (RECORD_LIMIT + 1);
    (0..length).map(|at| (at * 31 + number) as u8).collect()
}

#[test]
fn records_of_all_lengths_come_out_as_they_went_in() {
    let (_parent, _directory, mut producer, mut consumer) = pair();
    for length in (0..100).chain([RECORD_LIMIT - 1, RECORD_LIMIT]) {
        let record: Vec<u8> = (0..length).map(|at| at as u8 ^ 0x5a).collect();
        assert!(producer.push(&record));
        assert_eq!(consumer.take(), Ok(Some(record.as_slice())), "{length}");
        assert_eq!(consumer.take(), Ok(None));
    }
    assert!(!producer.push(&vec![0; RECORD_LIMIT + 1]), "longer than any");
    assert_eq!(producer.counts(), Counts { epoch: 1, written: 102, refused: 1 });
    assert_eq!(consumer.counts(), producer.counts());
}

#[test]
fn records_go_round_the_end_and_a_full_ring_refuses() {
    let (_parent, _directory, mut producer, mut consumer) = pair();
    let (mut written, mut read, mut refused) = (0, 0, 0);
    while read < 3_000 {
        // fill, then empty a part: the end of the data is met at every offset
        loop {
            if !producer.push(&record(written)) {
                refused += 1;
                break;
            }
            written += 1;
        }
        for _ in 0..1 + read % 5 {
            match consumer.take().unwrap() {
                Some(found) => {
                    assert_eq!(found, record(read), "{read}");
                    read += 1;
                }
                None => break,
            }
        }
    }
    assert_eq!(producer.counts(), Counts { epoch: 1, written: written as u64, refused });
    assert!(refused > 0 && consumer.fill() > 0.5);
}

#[test]
fn two_threads_lose_nothing_and_keep_the_order() {
    let (_parent, _directory, mut producer, mut consumer) = pair();
    let total = 20_000;
    let thread = std::thread::spawn(move || {
        let mut next = 0;
        while next < total {
            if producer.push(&record(next)) {
                next += 1;
            } else {
                std::thread::yield_now();
            }
        }
    });
    let mut expected = 0;
    while expected < total {
        match consumer.take().unwrap() {
            Some(found) => {
                assert_eq!(found, record(expected), "{expected}");
                expected += 1;
            }
            None => std::thread::yield_now(),
        }
    }
    thread.join().unwrap();
    assert_eq!(consumer.take(), Ok(None));
}

#[test]
fn either_side_comes_back_and_nothing_is_lost() {
    let (_parent, directory, mut producer, consumer) = pair();
    drop(consumer);
    assert!(producer.push(b"one") && producer.push(b"two"));
    drop(producer);
    let mut producer = Producer::open(&directory, "events-0", 1).unwrap();
    assert!(producer.push(b"three"));
    let mut consumer = Consumer::open(&directory, "events-0").unwrap();
    assert_eq!(consumer.take(), Ok(Some(&b"one"[..])));
    drop(consumer);
    let mut consumer = Consumer::open(&directory, "events-0").unwrap();
    assert_eq!(consumer.take(), Ok(Some(&b"two"[..])));
    assert_eq!(consumer.take(), Ok(Some(&b"three"[..])));
    assert_eq!(consumer.take(), Ok(None));
    assert_eq!(consumer.counts(), Counts { epoch: 2, written: 3, refused: 0 });
    drop(producer);
    assert!(consumer.is_current(&directory));
}

#[test]
fn each_end_is_had_once() {
    let (_parent, directory, _producer, _consumer) = pair();
    let again = Producer::open(&directory, "events-0", 1).unwrap_err();
    assert!(matches!(again, EventsError::Taken { end: "producing end", .. }), "{again}");
    let again = Consumer::open(&directory, "events-0").unwrap_err();
    assert!(matches!(again, EventsError::Taken { end: "consuming end", .. }), "{again}");
}

#[test]
fn another_size_or_version_is_replaced_and_the_consumer_notices() {
    let (_parent, directory, producer, consumer) = pair();
    drop(producer);
    let mut producer = Producer::open(&directory, "events-0", 1 << 20).unwrap();
    assert!(producer.push(b"new"));
    assert!(!consumer.is_current(&directory));
    let mut consumer = Consumer::open(&directory, "events-0").unwrap();
    assert_eq!(consumer.take(), Ok(Some(&b"new"[..])));
    for word in 0..3 {
        consumer.ring.store(word, 77, Ordering::Relaxed);
        drop((producer, consumer));
        let foreign = Consumer::open(&directory, "events-0").unwrap_err();
        assert!(matches!(foreign, EventsError::Foreign { .. }), "{foreign}");
        producer = Producer::open(&directory, "events-0", 1 << 20).unwrap();
        consumer = Consumer::open(&directory, "events-0").unwrap();
        assert_eq!(producer.counts(), Counts { epoch: 1, ..Counts::default() });
    }
    assert!(Consumer::open(&directory, "events-1").is_err());
}

#[test]
fn impossible_positions_end_at_the_newest_and_both_go_on() {
    for place in [TAIL, HEAD] {
        for value in [u64::MAX, 1 << 40, 1] {
            let (_parent, directory, mut producer, mut consumer) = pair();
            assert!(producer.push(b"one"));
            assert_eq!(consumer.take(), Ok(Some(&b"one"[..])));
            assert!(producer.push(b"two"));
            consumer.ring.store(place, value, Ordering::Relaxed);
            if place == HEAD {
                // an attached consumer does not ask the header where it is
                assert_eq!(consumer.take(), Ok(Some(&b"two"[..])));
                consumer.ring.store(place, value, Ordering::Relaxed);
                drop(consumer);
                consumer = Consumer::open(&directory, "events-0").unwrap();
            }
            let lost = consumer.take().unwrap_err();
            assert!(matches!(lost, Lost::Positions { .. } | Lost::Header { .. }), "{lost}");
            // the producer repairs its own position with the next record, the consumer after that
            assert!(producer.push(b"three"));
            let after = consumer.take();
            assert!(matches!(after, Ok(Some(b"three")) | Err(_)), "{after:?}");
            assert_eq!(consumer.take(), Ok(None));
            assert!(producer.push(b"four"));
            assert_eq!(consumer.take(), Ok(Some(&b"four"[..])));
        }
    }
}

#[test]
fn a_head_from_nowhere_never_lets_the_producer_overwrite() {
    let (_parent, _directory, mut producer, mut consumer) = pair();
    while producer.push(&[7; 1_000]) {}
    while producer.push(b"x") {}
    let full = producer.counts();
    for head in [u64::MAX, 1 << 50] {
        consumer.ring.store(HEAD, head, Ordering::Relaxed);
        assert!(!producer.push(b"more"));
    }
    for _ in 0..full.written {
        assert!(consumer.take().unwrap().is_some_and(|record| matches!(record.len(), 1 | 1_000)));
    }
    assert_eq!(consumer.take(), Ok(None));
    assert!(producer.push(b"more"));
    assert_eq!(producer.counts().refused, full.refused + 2);
}

#[test]
fn garbage_is_never_more_than_garbage() {
    let (_parent, _directory, mut producer, mut consumer) = pair();
    let mut random = 1u64;
    let mut draw = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 16
    };
    let (mut taken, mut lost) = (0, 0);
    for number in 0..20_000 {
        producer.push(&record(number)[..64.min(record(number).len())]);
        match draw() % 8 {
            0 => {
                let words = consumer.ring.words.len() as u64;
                let at = EPOCH + (draw() % (words - EPOCH as u64)) as usize;
                consumer.ring.store(at, draw(), Ordering::Relaxed);
            }
            1 => consumer.ring.store(TAIL, draw() % 100_000, Ordering::Relaxed),
            _ => {}
        }
        match consumer.take() {
            Ok(Some(found)) => {
                assert!(found.len() <= RECORD_LIMIT);
                taken += 1;
            }
            Ok(None) => {}
            Err(_) => lost += 1,
        }
    }
    assert!(taken > 5_000 && lost > 100, "{taken} taken, {lost} times lost");
    // and it works again once nobody interferes
    producer.push(b"sane");
    while consumer.take() != Ok(None) {}
    producer.push(b"sane");
    while consumer.take() != Ok(None) {}
    for _ in 0..1_000 {
        assert!(producer.push(b"sane"));
        assert_eq!(consumer.take(), Ok(Some(&b"sane"[..])));
    }
}

#[test]
fn a_header_that_is_too_long_for_what_waits_is_refused() {
    let (_parent, _directory, mut producer, mut consumer) = pair();
    assert!(producer.push(b"short"));
    consumer.ring.store(HEADER_WORDS, header_of(0, 64), Ordering::Relaxed);
    assert_eq!(consumer.take(), Err(Lost::Header { position: 0 }));
    assert!(producer.push(b"next"));
    assert_eq!(consumer.take(), Ok(Some(&b"next"[..])));
}
