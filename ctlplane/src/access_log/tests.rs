//! From synthetic rings to files: rotation, a full disk, a target that nobody reads, damaged rings.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use hugepages::events::Producer;
use hugepages::segment::SegmentDir;
use weir_abi::events::{
    Breaker, BreakerReason, BreakerState, Exchange, MOST_BYTES, NEVER, NO_ROUTE, NONE, Stamp, Texts, Times,
};

use super::*;

struct World {
    parent: tempfile::TempDir,
    ring: Producer,
    log: AccessLog,
}

impl World {
    fn new(bytes: usize) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
        let ring = Producer::open(&directory, "events-0", bytes).unwrap();
        let log = AccessLog::start(directory.path().to_owned()).unwrap();
        Self { parent, ring, log }
    }

    fn path(&self) -> std::path::PathBuf {
        self.parent.path().join("access.log")
    }

    fn set(&mut self, path: &Path, format: &str) {
        let settings =
            Settings { target: Target::File(path.to_owned()), format: Format::parse(format).unwrap() };
        self.log.set(Some(&settings));
        // orders are taken between two looks
        self.until(|report| report.target.as_deref() == Some(path.to_str().unwrap()));
    }

    fn tell(&mut self, target: &[u8]) -> bool {
        let mut record = [0; MOST_BYTES];
        let length = exchange(target).encode(&mut record);
        self.ring.push(&record[..length])
    }

    fn tell_breaker(&mut self, backend: u32, state: BreakerState) -> bool {
        let (mut record, reason) = ([0; MOST_BYTES], BreakerReason::Ratio);
        let breaker =
            Breaker { stamp: stamp(), backend, state, reason, consecutive: 1, requests: 2, failures: 1 };
        let length = breaker.encode(&mut record);
        self.ring.push(&record[..length])
    }

    fn until(&self, done: impl Fn(&Report) -> bool) -> Report {
        until("report", || Some(self.log.report()).filter(&done).ok_or_else(|| self.log.report()))
    }
}

fn until<T, E: std::fmt::Debug>(what: &str, mut done: impl FnMut() -> Result<T, E>) -> T {
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        match done() {
            Ok(value) => return value,
            Err(state) => assert!(Instant::now() < limit, "{what}: {state:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stamp() -> Stamp {
    Stamp { unix_us: 1_700_000_000_000_000, generation: 1, worker: 0 }
}

fn exchange(target: &[u8]) -> Exchange<'_> {
    Exchange {
        stamp: stamp(),
        listener: 5,
        route: NO_ROUTE,
        pool: NONE,
        backend: NONE,
        client: IpAddr::from([198, 18, 0, 7]),
        client_port: 1,
        version: 11,
        status: 200,
        cause: 0,
        attempts: 1,
        is_reused: false,
        bytes_in: 0,
        bytes_out: 0,
        times: Times { head_us: 1, queue_us: NEVER, connect_us: NEVER, response_us: NEVER, total_us: 1 },
        texts: Texts { target, method: b"GET", ..Texts::default() },
        cut: 0,
    }
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn exchanges_become_lines_and_the_last_ones_are_written_at_the_end() {
    let mut world = World::new(1 << 20);
    let path = world.path();
    world.set(&path, "%{listener} %{target}");
    for number in 0..1_000 {
        assert!(world.tell(format!("/{number}").as_bytes()));
    }
    world.until(|report| report.written == 1_000);
    assert!(world.tell(b"/last"));
    let report = world.log.report();
    world.log.stop();
    // index 5 has no name: no snapshot is there
    let expected = (0..1_000).map(|number| format!("5 /{number}")).chain(["5 /last".to_owned()]);
    assert_eq!(lines(&path), expected.collect::<Vec<_>>());
    assert_eq!((report.dropped_slow, report.dropped_error, report.damaged, report.error), (0, 0, 0, None));
}

#[test]
fn a_file_that_was_moved_away_is_made_again() {
    let mut world = World::new(1 << 20);
    let (path, old) = (world.path(), world.parent.path().join("access.log.1"));
    world.set(&path, "%{target}");
    world.tell(b"/one");
    world.until(|report| report.written == 1);
    // noticed by itself: the path names another file, or none
    fs::rename(&path, &old).unwrap();
    world.until(|report| report.reopened == 1);
    world.tell(b"/two");
    world.until(|report| report.written == 2);
    assert_eq!((lines(&old), lines(&path)), (vec!["/one".to_owned()], vec!["/two".to_owned()]));
    // asked for: also where the file is the same
    world.log.reopen();
    world.until(|report| report.reopened == 2);
    world.tell(b"/three");
    world.until(|report| report.written == 3);
    assert_eq!(lines(&path), ["/two", "/three"]);
}

#[test]
fn another_target_begins_with_the_next_line_and_none_writes_nothing() {
    let mut world = World::new(1 << 20);
    let (path, other) = (world.path(), world.parent.path().join("other.log"));
    world.set(&path, "%{target}");
    world.tell(b"/one");
    world.until(|report| report.written == 1);
    world.set(&other, "json");
    world.tell(b"/two");
    world.until(|report| report.written == 2);
    world.log.set(None);
    world.until(|report| report.target.is_none());
    world.tell(b"/three");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(lines(&path), ["/one"]);
    assert!(lines(&other).len() == 1 && lines(&other)[0].contains("\"target\":\"/two\""));
    let report = world.log.report();
    assert_eq!((report.dropped_slow, report.dropped_error), (0, 0), "unwanted lines are not lost ones");
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_and_nothing_else() {
    let mut world = World::new(1 << 20);
    world.set(Path::new("/dev/full"), "%{target}");
    for _ in 0..100 {
        world.tell(b"/lost");
    }
    let report = world.until(|report| report.dropped_error == 100);
    assert!(report.error.is_some_and(|text| text.contains("/dev/full")) && report.written == 0);
    let path = world.path();
    world.set(&path, "%{target}");
    world.tell(b"/kept");
    world.until(|report| report.written == 1 && report.error.is_none());
    assert_eq!(lines(&path), ["/kept"]);
}

#[test]
fn a_target_that_can_not_be_opened_is_tried_again() {
    let mut world = World::new(1 << 20);
    let path = world.parent.path().join("later/access.log");
    world.set(&path, "%{target}");
    world.tell(b"/lost");
    let report = world.until(|report| report.dropped_error == 1);
    assert!(report.error.is_some_and(|text| text.starts_with("cannot open ")));
    fs::create_dir(path.parent().unwrap()).unwrap();
    until("written", || {
        world.tell(b"/kept");
        std::thread::sleep(Duration::from_millis(50));
        if world.log.report().written > 0 { Ok(()) } else { Err(world.log.report()) }
    });
    assert!(lines(&path).iter().all(|line| line == "/kept"));
    assert_eq!(world.log.report().error, None);
}

#[test]
fn a_target_that_nobody_reads_costs_lines_and_breakers_are_heard_all_the_same() {
    let mut world = World::new(1 << 20);
    let pipe = world.parent.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if !made.is_ok_and(|status| status.success()) {
        return println!("skipped: mkfifo is not installed");
    }
    // opened, so that the sink's opening does not block, and never read
    let _reader = fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    world.set(&pipe, "%{target}");
    let target = vec![b'a'; 4_000];
    until("dropped", || {
        while world.tell(&target) {}
        let report = world.log.report();
        if report.dropped_slow > 0 { Ok(()) } else { Err(report) }
    });
    until("breaker", || {
        world.tell_breaker(7, BreakerState::Open);
        world.log.breaker(7).ok_or(())
    });
    let started = Instant::now();
    world.log.stop();
    assert!(started.elapsed() < STOP_LIMIT * 2, "a blocked target does not keep the daemon");
}

#[test]
fn breakers_are_kept_until_their_worker_begins_anew() {
    let mut world = World::new(1 << 20);
    assert!(world.tell_breaker(7, BreakerState::Open));
    let found = until("breaker", || world.log.breaker(7).ok_or(()));
    assert_eq!((found.state.as_str(), found.reason.as_str()), ("open", "failure ratio"));
    assert_eq!(found.since_unix_ms, 1_700_000_000_000);
    assert!(world.tell_breaker(7, BreakerState::HalfOpen));
    until("half-open", || {
        world.log.breaker(7).filter(|found| found.state == "half-open").ok_or(world.log.breaker(7))
    });
    // the worker's process is another
    let directory = SegmentDir::open(world.parent.path().join("weir-test")).unwrap();
    drop(world.ring);
    world.ring = Producer::open(&directory, "events-0", 1 << 20).unwrap();
    until("forgotten", || if world.log.breaker(7).is_none() { Ok(()) } else { Err(()) });
    // and its ring may be a new one
    drop(world.ring);
    world.ring = Producer::open(&directory, "events-0", 2 << 20).unwrap();
    assert!(world.tell_breaker(8, BreakerState::Open));
    until("the new ring's", || world.log.breaker(8).ok_or(()));
}

#[test]
fn what_makes_no_sense_is_counted_and_passed_over() {
    let mut world = World::new(1 << 20);
    let path = world.path();
    world.set(&path, "%{target}");
    world.ring.push(b"no record");
    world.ring.push(&[]);
    world.tell(b"/sane");
    world.until(|report| report.damaged == 2 && report.written == 1);
    assert_eq!(lines(&path), ["/sane"]);
}

#[test]
fn a_ring_that_overflowed_tells_how_much_is_missing() {
    let parent = tempfile::tempdir().unwrap();
    let directory = SegmentDir::open(parent.path().join("weir-test")).unwrap();
    let mut ring = Producer::open(&directory, "events-3", 1).unwrap();
    while ring.push(&[0; 1_000]) {}
    for _ in 0..9 {
        ring.push(&[0; 1_000]);
    }
    let log = AccessLog::start(directory.path().to_owned()).unwrap();
    let report = until("refused", || {
        let report = log.report();
        if report.refused == 10 { Ok(report) } else { Err(report) }
    });
    assert!(report.target.is_none());
}
