//! An event ring between two processes: one is killed in the middle, and comes back.
//!
//! A child is this very test program, told by the environment which part to play; it is always killed and awaited.

mod support;

use std::time::{Duration, Instant};

use hugepages::events::{Consumer, Producer};
use hugepages::segment::SegmentDir;
use support::{Role, directory_of_child};

/// Writes numbers until it is killed.
#[test]
fn child_produces() {
    let Some(directory) = directory_of_child() else { return };
    let mut producer = Producer::open(&directory, "events-0", 1).unwrap();
    let epoch = producer.counts().epoch;
    println!("ready");
    for number in 0u64.. {
        let mut record = [0; 100];
        record[..8].copy_from_slice(&epoch.to_le_bytes());
        record[8..16].copy_from_slice(&number.to_le_bytes());
        if !producer.push(&record) {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

fn number(record: &[u8], at: usize) -> u64 {
    record.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes)
}

#[test]
fn a_killed_producer_leaves_whole_records_and_its_successor_goes_on() {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    let mut previous = Role::start("child_produces", directory.path());
    let mut consumer = Consumer::open(&directory, "events-0").unwrap();
    let (mut epoch, mut last, mut records) = (1, None, 0u64);
    for round in 1..=4u64 {
        let until = Instant::now() + Duration::from_millis(100);
        let mut check = |record: &[u8]| {
            assert_eq!(record.len(), 100);
            let (found, value) = (number(record, 0), number(record, 8));
            if found != epoch {
                assert_eq!(found, epoch + 1, "epochs follow each other");
                (epoch, last) = (found, None);
            }
            assert!(last.is_none_or(|last| value > last), "{value} after {last:?}");
            last = Some(value);
            records += 1;
        };
        while Instant::now() < until {
            match consumer.take().unwrap() {
                Some(record) => check(record),
                None => std::thread::yield_now(),
            }
        }
        // the next process starts while records of the killed one still wait
        drop(previous);
        previous = Role::start("child_produces", directory.path());
        assert_eq!(consumer.counts().epoch, round + 1);
    }
    assert!(epoch >= 4 && records > 1_000, "{records} records, epoch {epoch}");
}
