//! The access log of a real instance: names by the generation of an event, and what `weir status` tells.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use hugepages::events::Producer;
use support::{Instance, one_pool};
use weir_abi::events::{Exchange, MOST_BYTES, NEVER, NO_ROUTE, Stamp, Texts, Times};
use weir_ctlplane::access_log::{AccessLog, Format, Settings, Target};

const TWO: &[(&str, u8, u16)] = &[("one", 1, 100), ("two", 2, 50)];

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn tell(ring: &mut Producer, generation: u64, backend: u32) {
    let exchange = Exchange {
        stamp: Stamp { unix_us: 1_700_000_000_000_000, generation, worker: 0 },
        listener: 0,
        route: NO_ROUTE,
        pool: 0,
        backend,
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
        texts: Texts { method: b"GET", target: b"/", ..Texts::default() },
        cut: 0,
    };
    let mut record = [0; MOST_BYTES];
    let length = exchange.encode(&mut record);
    assert!(ring.push(&record[..length]));
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn names_are_those_of_the_generation_that_an_event_carries() {
    let instance = Instance::new(&one_pool(TWO));
    let mut engine = instance.start();
    let first = engine.generation();
    let segments = instance.segments();
    let mut ring = Producer::open(&segments, "events-0", 1 << 20).unwrap();
    let mut log = AccessLog::start(segments.path().to_owned()).unwrap();
    let path = instance.directory.path().join("access.log");
    let format = Format::parse("%{generation} %{listener} %{pool}/%{backend}").unwrap();
    log.set(Some(&Settings { target: Target::File(path.clone()), format }));
    until("set", || log.report().target.is_some());
    tell(&mut ring, first, 0);
    tell(&mut ring, first, 1);
    // an index that no table has
    tell(&mut ring, first, 77);
    until("three lines", || log.report().written == 3);
    // a backend of another name gets another index; the first generation's names stay known
    engine.apply(&one_pool(&[("one", 1, 100), ("three", 3, 50)]), "weir.toml").unwrap();
    let second = engine.generation();
    assert_ne!(first, second);
    let three =
        instance.read(second).pool("app").backends.iter().find(|b| b.name.as_str() == "three").unwrap().index;
    tell(&mut ring, second, three);
    tell(&mut ring, first, 1);
    // one that never was: answered by the nearest
    tell(&mut ring, second + 9, three);
    until("six lines", || log.report().written == 6);
    log.stop();
    let expected = [
        format!("{first} web-http app/one"),
        format!("{first} web-http app/two"),
        format!("{first} web-http app/77"),
        format!("{second} web-http app/three"),
        format!("{first} web-http app/two"),
        format!("{} web-http app/three", second + 9),
    ];
    assert_eq!(lines(&path), expected);
}
