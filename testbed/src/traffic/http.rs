//! A small HTTP/1.1 client over the kernel's TCP: enough to count who answered and to keep a connection open.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::interrupt;
use crate::topology::namespace::Namespace;

/// How long one connection may take for each step before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most failures of one load that are kept to be shown.
const SHOWN_FAILURES: usize = 5;
/// A load with so many failures ends early: each may have taken the whole of its patience.
const HOPELESS: u64 = 10;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// The body.
    pub(crate) body: Vec<u8>,
}

/// One connection, kept open.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Connection {
    /// Connects, from the namespace that the calling thread is in.
    pub(crate) fn open(target: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect_timeout(&target, PATIENCE).with_context(|| format!("connect to {target}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, received: Vec::new() })
    }

    /// Asks for a path and reads the whole answer.
    pub(crate) fn get(&mut self, path: &str, close: bool) -> Result<Answer> {
        let token = if close { "close" } else { "keep-alive" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: weir.test\r\nConnection: {token}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).context("send the request")?;
        let head = loop {
            if let Some(end) = find(&self.received, b"\r\n\r\n") {
                break end;
            }
            self.read_more()?;
        };
        let text = String::from_utf8_lossy(&self.received[..head]).into_owned();
        let status = text
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .ok_or_else(|| anyhow!("not an HTTP answer: {:?}", text.lines().next()))?;
        let length: usize = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse().ok())
            .ok_or_else(|| anyhow!("an answer without Content-Length"))?;
        let start = head + 4;
        while self.received.len() < start + length {
            self.read_more()?;
        }
        let body = self.received[start..start + length].to_vec();
        self.received.drain(..start + length);
        Ok(Answer { status, body })
    }

    fn read_more(&mut self) -> Result<()> {
        let mut buffer = [0u8; 16_384];
        match self.stream.read(&mut buffer).context("read the answer")? {
            0 => bail!("the connection ended in the middle of an answer"),
            count => self.received.extend_from_slice(&buffer[..count]),
        }
        Ok(())
    }
}

fn find(within: &[u8], what: &[u8]) -> Option<usize> {
    within.windows(what.len()).position(|window| window == what)
}

/// One request on a connection of its own; the body as text.
pub(crate) fn fetch(target: SocketAddr, path: &str) -> Result<String> {
    let answer = Connection::open(target)?.get(path, true)?;
    if answer.status != 200 {
        bail!("{target} answered {}", answer.status);
    }
    Ok(String::from_utf8_lossy(&answer.body).trim().to_owned())
}

/// What a load found.
#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    /// Answers by body: who answered.
    pub(crate) answers: BTreeMap<String, u64>,
    /// Failed requests.
    pub(crate) failures: u64,
    /// The first of them, in words.
    pub(crate) first_failures: Vec<String>,
    /// Time of each successful request, connect to last byte.
    pub(crate) times: Vec<Duration>,
}

impl Tally {
    /// Answers in all.
    pub(crate) fn answered(&self) -> u64 {
        self.answers.values().sum()
    }

    /// Answers of one backend.
    pub(crate) fn of(&self, backend: &str) -> u64 {
        self.answers.get(backend).copied().unwrap_or(0)
    }

    /// Whether there is no point in going on.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.failures >= HOPELESS
    }

    /// Counts one request.
    pub(crate) fn record(&mut self, outcome: Result<String>, time: Duration) {
        match outcome {
            Ok(body) => {
                *self.answers.entry(body).or_default() += 1;
                self.times.push(time);
            }
            Err(error) => {
                self.failures += 1;
                if self.first_failures.len() < SHOWN_FAILURES {
                    self.first_failures.push(format!("{error:#}"));
                }
            }
        }
    }

    /// An error that shows the first failures, if there were any.
    pub(crate) fn must_be_clean(&self) -> Result<()> {
        if self.failures > 0 {
            bail!(
                "{} of {} requests failed, first: {}",
                self.failures,
                self.failures + self.answered(),
                self.first_failures.join("; ")
            );
        }
        Ok(())
    }
}

/// Sends `requests` requests, each on a new connection, from `at_once` threads inside `from`.
pub(crate) fn load(from: &Namespace, target: SocketAddr, requests: u64, at_once: usize) -> Result<Tally> {
    let left = AtomicU64::new(requests);
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    let tally = run_threads(from, target, at_once, &take)?;
    interrupt::check()?;
    Ok(tally)
}

fn run_threads(
    from: &Namespace,
    target: SocketAddr,
    at_once: usize,
    more: &(dyn Fn() -> bool + Sync),
) -> Result<Tally> {
    let tally = Mutex::new(Tally::default());
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    from.enter()?;
                    while !interrupt::arrived() && !lock(&tally)?.is_hopeless() && more() {
                        let start = Instant::now();
                        let outcome = fetch(target, "/");
                        let time = start.elapsed();
                        lock(&tally)?.record(outcome, time);
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a load thread panicked"))?)
    })?;
    tally.into_inner().map_err(|_| anyhow!("a load thread panicked"))
}

fn lock(tally: &Mutex<Tally>) -> Result<MutexGuard<'_, Tally>> {
    tally.lock().map_err(|_| anyhow!("a load thread panicked"))
}

/// Keeps sending requests while `work` runs; the tally, and what `work` returned.
pub(crate) fn load_while<T>(
    from: &Namespace,
    target: SocketAddr,
    at_once: usize,
    work: impl FnOnce(&Progress<'_>) -> Result<T>,
) -> Result<(Tally, T)> {
    let stop = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let more = || {
                count.fetch_add(1, Ordering::Relaxed);
                !stop.load(Ordering::Relaxed)
            };
            run_threads(from, target, at_once, &more)
        });
        let outcome = work(&Progress { count: &count });
        stop.store(true, Ordering::Relaxed);
        let tally = load.join().map_err(|_| anyhow!("the load panicked"))??;
        Ok((tally, outcome?))
    })
}

/// How far a load that runs beside something has come.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    /// Requests so far.
    pub(crate) count: &'a AtomicU64,
}

impl Progress<'_> {
    /// Waits until that many more requests were counted.
    pub(crate) fn more(&self, requests: u64) -> Result<()> {
        let goal = self.count.load(Ordering::Relaxed) + requests;
        interrupt::wait_for("the load to go on", Duration::from_secs(30), || {
            Ok((self.count.load(Ordering::Relaxed) >= goal).then_some(()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Answers each accepted connection with the parts, one write each.
    fn serve(parts: Vec<&'static [u8]>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0u8; 1_024];
            let _ = stream.read(&mut request).unwrap();
            for part in parts {
                stream.write_all(part).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        address
    }

    #[test]
    fn an_answer_in_pieces_is_read_whole() {
        let address = serve(vec![b"HTTP/1.1 200 OK\r\nconte", b"nt-length: 5\r\n\r\nap", b"p-1"]);
        assert_eq!(fetch(address, "/").unwrap(), "app-1");
    }

    #[test]
    fn half_an_answer_and_an_error_status_are_failures() {
        let address = serve(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\napp"]);
        assert!(fetch(address, "/").unwrap_err().to_string().contains("middle of an answer"));
        let address = serve(vec![b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"]);
        assert!(fetch(address, "/").unwrap_err().to_string().contains("502"));
    }

    #[test]
    fn a_tally_keeps_the_first_failures() {
        let mut tally = Tally::default();
        tally.record(Ok("app-1".into()), Duration::ZERO);
        for _ in 0..9 {
            tally.record(Err(anyhow!("refused")), Duration::ZERO);
        }
        assert_eq!((tally.answered(), tally.failures, tally.first_failures.len()), (1, 9, SHOWN_FAILURES));
        assert!(tally.must_be_clean().unwrap_err().to_string().starts_with("9 of 10"));
    }
}
