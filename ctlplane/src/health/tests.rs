//! The thread against real sockets of this machine.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use super::check::{BackendName, Check, Exec, Http, Kind, Through, Udp};
use super::*;

pub(super) fn check(kind: Kind) -> Check {
    Check {
        kind,
        interval: Duration::from_millis(100),
        jitter_percent: 10,
        fast_interval: Duration::from_millis(20),
        timeout: Duration::from_millis(200),
        rise: 2,
        fall: 3,
        port: None,
        address: None,
        source: None,
        initially_down: false,
        through: Through::Auto,
    }
}

pub(super) fn target() -> Target {
    named("a", "127.0.0.1:80", check(Kind::Tcp))
}

pub(super) fn named(backend: &str, to: &str, check: Check) -> Target {
    Target {
        name: BackendName { pool: "p".into(), backend: backend.into() },
        to: to.parse().unwrap(),
        source: None,
        interface: None,
        tunnel: None,
        check: Arc::new(check),
    }
}

/// Verdicts until `wanted` are there, as (backend, down, reason).
fn verdicts(health: &Health, wanted: usize) -> Vec<(String, bool, String)> {
    let started = Instant::now();
    let mut list = Vec::new();
    while list.len() < wanted && started.elapsed() < Duration::from_secs(10) {
        list.extend(health.verdicts().take().into_iter().map(|c| (c.backend, c.down, c.reason)));
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(list.len(), wanted, "{list:?}");
    list
}

pub(super) fn listing(health: &Health) -> Vec<Row> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(health.listing())
}

#[test]
fn a_backend_that_stops_listening_is_down_until_it_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let health = Health::start(vec![named("a", &address, check(Kind::Tcp))], &Down::default(), None).unwrap();
    let started = Instant::now();
    while listing(&health)[0].state != "up" {
        assert!(started.elapsed() < Duration::from_secs(5));
        thread::sleep(Duration::from_millis(5));
    }
    drop(listener);
    let down = verdicts(&health, 1).remove(0);
    assert_eq!(down, ("a".to_owned(), true, "tcp check failed 3 times: connection refused".to_owned()));
    let row = listing(&health).remove(0);
    assert_eq!((row.state.as_str(), row.last_result.as_str()), ("down", "connection refused"));
    let _listener = TcpListener::bind(&address).unwrap();
    assert_eq!(verdicts(&health, 1), [("a".to_owned(), false, "tcp check passed 2 times".to_owned())]);
}

#[test]
fn what_hangs_is_down_by_the_first_probe_and_what_was_believed_stays_until_probed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let http = Http {
        method: "GET".to_owned(),
        path: "/health".to_owned(),
        host: None,
        statuses: vec![(200, 200)],
        headers: Vec::new(),
        body: String::new(),
    };
    let mut down = Down::default();
    down.set_down("p", "good", "as before");
    down.set_down("p", "gone", "as before");
    // accepted by the kernel, never answered
    let hangs = named("hangs", &address, check(Kind::Http(http.clone())));
    let answering = TcpListener::bind("127.0.0.1:0").unwrap();
    let good = named("good", &answering.local_addr().unwrap().to_string(), check(Kind::Http(http)));
    let (requests, first) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in answering.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 512];
            let length = stream.read(&mut request).unwrap_or(0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok();
            requests.send(String::from_utf8_lossy(&request[..length]).into_owned()).ok();
        }
    });
    let health = Health::start(vec![hangs, good], &down, None).unwrap();
    let mut list = verdicts(&health, 3);
    list.sort();
    assert_eq!(list[0], ("gone".to_owned(), false, "no longer checked".to_owned()));
    assert_eq!(list[1], ("good".to_owned(), false, "http check passed".to_owned()));
    assert_eq!(list[2], ("hangs".to_owned(), true, "http check: no answer within 200ms".to_owned()));
    let request = first.recv().unwrap();
    assert!(request.starts_with("GET /health HTTP/1.1\r\nhost: 127.0.0.1:"), "{request}");
    drop(listener);
}

#[test]
fn datagrams_and_commands() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(b"pong 7", from).unwrap();
        }
    });
    let udp = |expect: &str| Kind::Udp(Udp { payload: b"ping".to_vec(), expect: expect.into() });
    let run =
        |script: &str| Kind::Exec(Exec { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec() });
    let directory = tempfile::tempdir().unwrap();
    let left = directory.path().join("left");
    let hangs = format!("/bin/sh -c 'echo $$ > {}; exec sleep 600' & wait", left.display());
    let environment = "test \"$WEIR_POOL/$WEIR_BACKEND $WEIR_ADDRESS $WEIR_PORT\" = 'p/exec-good 127.0.0.1 9' && test -z \"$HOME\"";
    let targets = vec![
        named("udp-good", &address, check(udp("pong"))),
        named("udp-bad", &address, check(udp("pang"))),
        named("exec-good", "127.0.0.1:9", check(run(environment))),
        named("exec-bad", "127.0.0.1:9", check(run("exit 3"))),
        named(
            "exec-hangs",
            "127.0.0.1:9",
            Check {
                interval: Duration::from_secs(60),
                fast_interval: Duration::from_secs(60),
                timeout: Duration::from_secs(2),
                ..check(run(&hangs))
            },
        ),
    ];
    let health = Health::start(targets, &Down::default(), None).unwrap();
    let mut list = verdicts(&health, 3);
    list.sort();
    assert_eq!(list[0].2, "exec check: /bin/sh: exit status: 3");
    assert_eq!((list[1].0.as_str(), list[1].2.as_str()), ("exec-hangs", "exec check: no answer within 2s"));
    assert_eq!(list[2].2, "udp check: the answer, \"pong 7\", does not contain what is expected");
    let process = std::fs::read_to_string(&left).unwrap();
    let stat = format!("/proc/{}/stat", process.trim());
    let started = Instant::now();
    // gone, or dead and not yet buried
    while std::fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z ")) {
        assert!(started.elapsed() < Duration::from_secs(10), "what the command started outlives it");
        thread::sleep(Duration::from_millis(2));
    }
    assert!(listing(&health).iter().filter(|row| row.backend.ends_with("good")).all(|row| row.state == "up"));
}

#[test]
fn what_may_not_serve_before_it_was_probed() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut down = Down::default();
    let cautious = named("a", &address, Check { initially_down: true, ..check(Kind::Tcp) });
    // as the engine does, so that there is no moment in between
    down.set_down("p", "a", "not probed yet");
    let health = Health::start(vec![cautious], &down, None).unwrap();
    assert_eq!(verdicts(&health, 1), [("a".to_owned(), false, "tcp check passed".to_owned())]);
}
