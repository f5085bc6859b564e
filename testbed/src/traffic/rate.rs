//! GETs at a fixed rate, whether the last ones were answered or not: a request's time counts from when it was due, so that a stall is
//! seen by all who would have come meanwhile.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use serde::{Deserialize, Serialize};

use crate::bench::percentile;

/// How long answers may take after the last request was due.
const LATE: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Answers.
    pub(crate) answered: u64,
    /// Requests that were due and had no answer at the end.
    pub(crate) missing: u64,
    /// Microseconds.
    pub(crate) p50_us: f64,
    /// Microseconds.
    pub(crate) p99_us: f64,
    /// Microseconds.
    pub(crate) p999_us: f64,
}

/// A connection with at most one request.
struct Slot {
    stream: TcpStream,
    due: Option<Instant>,
    /// Bytes of the answer that came; its length, once it is known.
    came: usize,
    length: Option<usize>,
    head: Vec<u8>,
}

/// Sends `rate` requests a second for `length`, over so many connections.
pub(crate) fn run(target: SocketAddr, rate: u32, connections: usize, length: Duration) -> Result<Outcome> {
    run_while(target, rate, connections, |_, passed| passed < length)
}

/// The same while `goes_on`, which is told how many were answered and for how long it has been asked. Any answer but 200 and any connection that ends is an error.
pub(crate) fn run_while(
    target: SocketAddr,
    rate: u32,
    connections: usize,
    goes_on: impl Fn(u64, Duration) -> bool,
) -> Result<Outcome> {
    let request = format!("GET / HTTP/1.1\r\nHost: {target}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n");
    let events = epoll::create(CreateFlags::CLOEXEC)?;
    let mut slots = Vec::new();
    for number in 0..connections {
        let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))
            .with_context(|| format!("connection {number} to {target}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(&events, &stream, EventData::new_u64(number as u64), EventFlags::IN)?;
        slots.push(Slot { stream, due: None, came: 0, length: None, head: Vec::new() });
    }
    let mut free: VecDeque<usize> = (0..connections).collect();
    let mut times = Vec::with_capacity(rate as usize);
    let mut ready = Vec::with_capacity(256);
    let step = Duration::from_secs_f64(1.0 / f64::from(rate));
    let start = Instant::now();
    // how many are due in all, once it is over
    let (mut begun, mut all, mut end) = (0u32, None, None);
    while all.is_none_or(|all| begun < all || times.len() < begun as usize) {
        let now = Instant::now();
        let passed = now.duration_since(start);
        if all.is_none() && !goes_on(times.len() as u64, passed) {
            all = Some(((passed.as_secs_f64() * f64::from(rate)) as u32).max(begun));
            end = Some(now + LATE);
        }
        if end.is_some_and(|end| now >= end) {
            break;
        }
        while all.is_none_or(|all| begun < all) && start + step * begun <= now {
            let Some(number) = free.pop_front() else { break };
            let slot = &mut slots[number];
            slot.due = Some(start + step * begun);
            slot.stream.write_all(request.as_bytes()).context("send a request")?;
            begun += 1;
        }
        let next = (start + step * begun).saturating_duration_since(Instant::now());
        // who has no free connection waits for an answer
        let wait = if free.is_empty() || all.is_some_and(|all| begun >= all) {
            Duration::from_millis(20)
        } else {
            next
        };
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos().min(100_000_000) as i64 };
        ready.clear();
        match epoll::wait(&events, rustix::buffer::spare_capacity(&mut ready), Some(&wait)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("epoll"),
        }
        for event in &ready {
            let number = event.data.u64() as usize;
            let Some(slot) = slots.get_mut(number) else { continue };
            if slot.read()? {
                let due = slot.due.take().context("an answer that nobody asked for")?;
                times.push(due.elapsed().as_secs_f64() * 1e6);
                free.push_back(number);
            }
        }
    }
    ensure!(!times.is_empty(), "nothing was answered");
    Ok(Outcome {
        answered: times.len() as u64,
        missing: u64::from(all.unwrap_or(begun)).saturating_sub(times.len() as u64),
        p50_us: percentile(&times, 0.5),
        p99_us: percentile(&times, 0.99),
        p999_us: percentile(&times, 0.999),
    })
}

impl Slot {
    /// Reads what is there; whether the answer is whole.
    fn read(&mut self) -> Result<bool> {
        let mut buffer = [0u8; 8_192];
        loop {
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => bail!("a connection ended"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("read an answer"),
            };
            self.came += count;
            if self.length.is_none() {
                self.head.extend_from_slice(&buffer[..count]);
                self.length = length(&self.head)?;
            }
            if self.length.is_some_and(|length| self.came >= length) {
                ensure!(self.length == Some(self.came), "more came than the answer");
                (self.came, self.length) = (0, None);
                self.head.clear();
                return Ok(true);
            }
        }
    }
}

/// Bytes of an answer whose beginning this is, once its head is there.
fn length(head: &[u8]) -> Result<Option<usize>> {
    let Some(end) = head.windows(4).position(|part| part == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&head[..end]).context("a head that is no text")?;
    ensure!(text.starts_with("HTTP/1.1 200 "), "{:?}", text.lines().next());
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let value = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let body: usize = value.context("no Content-Length")?.1.trim().parse()?;
    Ok(Some(end + 4 + body))
}
