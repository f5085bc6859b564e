//! Both sides in one process: locks are per open file, so the two exclude each other as two processes would.

use std::sync::atomic::AtomicBool;

use super::*;

fn directory() -> (tempfile::TempDir, SegmentDir) {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    (parent, directory)
}

#[test]
fn either_side_may_start_first() {
    for publisher_first in [true, false] {
        let (_parent, directory) = directory();
        assert!(ControlPage::open_read_only(&directory).is_err());
        let (publisher, mut adopter) = if publisher_first {
            let publisher = Publisher::open(&directory).unwrap();
            assert!(!publisher.dataplane().is_alive);
            assert_eq!(publisher.dataplane().state, None);
            (publisher, Adopter::open(&directory).unwrap())
        } else {
            let adopter = Adopter::open(&directory).unwrap();
            assert!(!adopter.control().ctlplane().is_alive);
            (Publisher::open(&directory).unwrap(), adopter)
        };
        assert_eq!(adopter.published(), 0);
        publisher.publish(7);
        assert_eq!(adopter.published(), 7);
        adopter.set_state(RunState::Running);
        adopter.adopted(7);
        adopter.beat(123);
        let dataplane = publisher.dataplane();
        assert!(dataplane.is_alive);
        assert_eq!(dataplane.state, Some(RunState::Running));
        assert_eq!(dataplane.adopted_generation, 7);
        assert_eq!(dataplane.pid, u64::from(std::process::id()));
        assert_eq!(dataplane.heartbeat_ns, 123);
        assert!(publisher.control().ctlplane().is_alive, "it knows of itself");
        let onlooker = ControlPage::open_read_only(&directory).unwrap();
        assert_eq!(onlooker.dataplane(), dataplane);
        assert!(onlooker.ctlplane().is_alive);
        assert_eq!(onlooker.ctlplane().published_generation, 7);
    }
}

#[test]
fn each_role_is_held_once() {
    let (_parent, directory) = directory();
    let _publisher = Publisher::open(&directory).unwrap();
    let adopter = Adopter::open(&directory).unwrap();
    let error = Publisher::open(&directory).unwrap_err();
    assert!(matches!(error, ControlError::AlreadyRunning { role: "ctlplane", .. }), "{error}");
    let error = Adopter::open(&directory).unwrap_err();
    assert!(matches!(error, ControlError::AlreadyRunning { role: "dataplane", .. }), "{error}");
    drop(adopter);
    assert!(Adopter::open(&directory).is_ok());
}

#[test]
fn the_slowest_worker_decides_what_all_have_acked() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    assert_eq!(publisher.acked_by_all(), None, "no dataplane");
    let mut adopter = Adopter::open(&directory).unwrap();
    assert_eq!(publisher.acked_by_all(), None, "no workers");
    let mut first = adopter.worker(0).unwrap();
    let mut second = adopter.worker(1).unwrap();
    adopter.set_workers(2);
    assert_eq!(publisher.acked_by_all(), Some(0));
    first.ack(5);
    assert_eq!(publisher.acked_by_all(), Some(0));
    second.ack(4);
    second.beat(1_000);
    assert_eq!(publisher.acked_by_all(), Some(4));
    let workers = publisher.dataplane().workers;
    assert_eq!(workers.len(), 2);
    assert_eq!(workers[1], WorkerState { acked_generation: 4, heartbeat_ns: 1_000 });
    assert!(workers[1].is_silent(3_000, 1_999));
    assert!(!workers[1].is_silent(3_000, 2_000));
    assert!(adopter.worker(WORKERS_LIMIT - 1).is_some());
    assert!(adopter.worker(WORKERS_LIMIT).is_none());
    // the page stays while a worker still has its line, and the role with it
    drop((adopter, first, second));
    assert_eq!(publisher.acked_by_all(), None, "a dead dataplane acks nothing");
}

#[test]
fn a_restart_forgets_acks_and_refusals_but_not_the_published_generation() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    publisher.publish(9);
    drop(publisher);
    let mut adopter = Adopter::open(&directory).unwrap();
    adopter.set_workers(1);
    adopter.worker(0).unwrap().ack(9);
    adopter.adopted(8);
    adopter.refuse(9, 3, "checksum of table-00ff is wrong");
    drop(adopter);
    let publisher = Publisher::open(&directory).unwrap();
    assert_eq!(publisher.published(), 9);
    assert_eq!(publisher.dataplane().start_epoch, 1);
    let left = publisher.dataplane().refusal.unwrap();
    assert_eq!((left.generation, left.code), (9, 3));
    assert_eq!(left.text, "checksum of table-00ff is wrong");
    let adopter = Adopter::open(&directory).unwrap();
    let state = publisher.dataplane();
    assert_eq!(state.start_epoch, 2);
    assert_eq!(state.adopted_generation, 0);
    assert_eq!(state.refusal, None);
    assert!(state.workers.is_empty());
    assert_eq!(state.state, Some(RunState::Starting));
    assert_eq!(adopter.published(), 9);
    assert_eq!(adopter.control().dataplane().workers.len(), 0);
}

#[test]
fn a_refusal_lasts_until_a_later_generation_is_adopted() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    let mut adopter = Adopter::open(&directory).unwrap();
    adopter.refuse(5, 1, "bad");
    adopter.adopted(4);
    assert_eq!(publisher.dataplane().refusal.unwrap().generation, 5);
    adopter.adopted(6);
    assert_eq!(publisher.dataplane().refusal, None);
}

#[test]
fn refusal_text_is_cut_at_a_character_and_shown_harmlessly() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    let mut adopter = Adopter::open(&directory).unwrap();
    adopter.refuse(1, 1, &"ä€".repeat(100));
    let text = publisher.dataplane().refusal.unwrap().text;
    assert_eq!(text, "ä€".repeat(48));
    adopter.refuse(1, 1, &"x".repeat(239));
    assert_eq!(publisher.dataplane().refusal.unwrap().text, "x".repeat(239));
    adopter.refuse(1, 1, "a\x1b[31mb\nc");
    assert_eq!(publisher.dataplane().refusal.unwrap().text, "a\u{fffd}[31mb\u{fffd}c");
}

#[test]
fn a_hostile_page_is_bounded() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    let _adopter = Adopter::open(&directory).unwrap();
    let raw = directory.map_atomics(CONTROL_SEGMENT, PAGE_WORDS, Access::Create).unwrap();
    for word in raw.iter().skip(8) {
        word.store(u64::MAX, Ordering::Relaxed);
    }
    let state = publisher.dataplane();
    assert_eq!(state.workers.len(), WORKERS_LIMIT);
    assert_eq!(state.state, None);
    assert_eq!(state.refusal, None, "a sequence that stays odd");
    raw[24].store(2, Ordering::Relaxed);
    let refusal = publisher.dataplane().refusal.unwrap();
    assert_eq!(refusal.generation, u64::MAX);
    assert!(refusal.text.chars().count() <= REFUSAL_TEXT_LIMIT);
    assert!(refusal.text.chars().all(|letter| letter == '\u{fffd}'), "not UTF-8");
    raw[27].store(3, Ordering::Relaxed);
    raw[28].store(u64::from_le_bytes(*b"odd\0\0\0\0\0"), Ordering::Relaxed);
    assert_eq!(publisher.dataplane().refusal.unwrap().text, "odd");
}

#[test]
fn a_writer_that_died_in_mid_refusal_is_survived() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    let raw = directory.map_atomics(CONTROL_SEGMENT, PAGE_WORDS, Access::Create).unwrap();
    raw[24].store(5, Ordering::Relaxed);
    let mut adopter = Adopter::open(&directory).unwrap();
    assert_eq!(publisher.dataplane().refusal, None);
    adopter.refuse(3, 1, "readable again");
    assert_eq!(publisher.dataplane().refusal.unwrap().text, "readable again");
}

#[test]
fn another_magic_or_version_is_an_error() {
    let (_parent, directory) = directory();
    drop(Publisher::open(&directory).unwrap());
    let raw = directory.map_atomics(CONTROL_SEGMENT, PAGE_WORDS, Access::Create).unwrap();
    raw[0].store(MAGIC | 2, Ordering::Relaxed);
    let error = Adopter::open(&directory).unwrap_err();
    assert!(matches!(error, ControlError::WrongVersion { found: 2, .. }), "{error}");
    raw[0].store(0x1234, Ordering::Relaxed);
    let error = Publisher::open(&directory).unwrap_err();
    assert!(matches!(error, ControlError::WrongMagic { found: 0x1234, .. }), "{error}");
    assert!(ControlPage::open_read_only(&directory).is_err());
    directory.remove(CONTROL_SEGMENT).unwrap();
    std::fs::write(directory.path().join(CONTROL_SEGMENT), [0; 4096]).unwrap();
    assert!(Adopter::open(&directory).is_err(), "too small");
    assert!(ControlPage::open_read_only(&directory).is_err(), "too small");
}

#[test]
fn a_refusal_is_never_seen_half_written() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    let mut adopter = Adopter::open(&directory).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=20_000_u64 {
                let letter = char::from(b'a' + (round % 26) as u8);
                adopter.refuse(round, round % 26, &letter.to_string().repeat(REFUSAL_TEXT_LIMIT));
            }
            done.store(true, Ordering::Release);
        });
        let mut seen = 0;
        while !done.load(Ordering::Acquire) || seen == 0 {
            let Some(refusal) = publisher.dataplane().refusal else { continue };
            seen += 1;
            let letter = char::from(b'a' + (refusal.generation % 26) as u8);
            assert_eq!(refusal.code, refusal.generation % 26);
            assert_eq!(refusal.text, letter.to_string().repeat(REFUSAL_TEXT_LIMIT));
        }
    });
}

#[test]
fn workers_ack_from_their_threads() {
    let (_parent, directory) = directory();
    let publisher = Publisher::open(&directory).unwrap();
    let mut adopter = Adopter::open(&directory).unwrap();
    adopter.set_workers(4);
    let adopter = adopter;
    std::thread::scope(|scope| {
        for index in 0..4 {
            let mut line = adopter.worker(index).unwrap();
            let control = adopter.control();
            scope.spawn(move || {
                while control.published() < 1_000 {
                    line.ack(control.published());
                    line.beat(monotonic_ns());
                    std::thread::yield_now();
                }
                line.ack(1_000);
            });
        }
        let mut last = 0;
        for generation in 1..=1_000 {
            publisher.publish(generation);
            let acked = publisher.acked_by_all().unwrap();
            assert!(acked >= last && acked <= generation, "{last} {acked} {generation}");
            last = acked;
        }
    });
    assert_eq!(publisher.acked_by_all(), Some(1_000));
}
