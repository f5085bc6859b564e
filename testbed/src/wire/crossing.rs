//! Carries frames between two ends in real time, on a thread of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Result, anyhow};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use weir_os::tun::Tun;
use weir_tcp::Counters;

use super::engine::{EngineHost, Outcome};
use super::link::{Link, Quality};
use crate::random::Random;

/// Longest sleep, so that the end of a scenario is noticed.
const NAP_US: u64 = 2_000;
/// The clock does not begin at 0, as the engine's would not.
const EPOCH_US: u64 = 1_000_000_000;
/// Frames that are read from an interface before others get their turn.
const BATCH: usize = 64;
const LONGEST_FRAME: usize = 9_216;

/// What is at an end.
enum End {
    Tap(Tun),
    Engine(Box<EngineHost>),
}

/// What the engine's side has to tell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Connections that are over.
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) counters: Counters,
    /// Records still in use.
    pub(crate) live: usize,
}

/// What a crossing's owner wants of it.
#[derive(Debug, Default)]
struct Wanted {
    /// An end as soon as its connections are over. Not before: a kernel whose copy of the last segment was lost asks again,
    /// and somebody has to answer.
    finish: AtomicBool,
    stop: AtomicBool,
}

/// A crossing that runs until it is ended.
#[derive(Debug)]
pub(crate) struct Crossing {
    wanted: Arc<Wanted>,
    thread: Option<JoinHandle<Result<Report>>>,
}

impl Crossing {
    /// Between the kernel and an engine that `host` makes; [`Self::finish`] waits for `connections`.
    /// The first quality is that of what the kernel sends, the second the engine's.
    pub(crate) fn to_engine(
        tap: Tun,
        qualities: [Quality; 2],
        seed: u64,
        connections: usize,
        host: impl FnOnce(u64) -> EngineHost + Send + 'static,
    ) -> Self {
        Self::start(move |wanted| {
            let ends = [End::Tap(tap), End::Engine(Box::new(host(EPOCH_US)))];
            carry(ends, qualities, seed, connections, wanted)
        })
    }

    /// Between two kernels.
    pub(crate) fn between(taps: [Tun; 2], qualities: [Quality; 2], seed: u64) -> Self {
        Self::start(move |wanted| carry(taps.map(End::Tap), qualities, seed, usize::MAX, wanted))
    }

    fn start(work: impl FnOnce(&Wanted) -> Result<Report> + Send + 'static) -> Self {
        let wanted = Arc::new(Wanted::default());
        let shared = Arc::clone(&wanted);
        Self { wanted, thread: Some(std::thread::spawn(move || work(&shared))) }
    }

    /// Nothing more is asked of it: waits until its connections are over.
    pub(crate) fn finish(mut self) -> Result<Report> {
        self.wanted.finish.store(true, Ordering::Relaxed);
        self.join()
    }

    /// Ends it now.
    pub(crate) fn end(mut self) -> Result<Report> {
        self.wanted.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> Result<Report> {
        let thread = self.thread.take().ok_or_else(|| anyhow!("ended twice"))?;
        thread.join().map_err(|_| anyhow!("the crossing panicked"))?
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        self.wanted.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(
    mut ends: [End; 2],
    qualities: [Quality; 2],
    seed: u64,
    connections: usize,
    wanted: &Wanted,
) -> Result<Report> {
    let mut links = [
        Link::new(qualities[0], Random::new(seed, "there")),
        Link::new(qualities[1], Random::new(seed, "back")),
    ];
    let start = Instant::now();
    let mut buffer = vec![0; LONGEST_FRAME];
    while !wanted.stop.load(Ordering::Relaxed) && !crate::interrupt::arrived() {
        let mut next = u64::MAX;
        let now = EPOCH_US + start.elapsed().as_micros() as u64;
        for side in 0..2 {
            let (link, other) = match &mut links {
                [first, second] if side == 0 => (first, second),
                [first, second] => (second, first),
            };
            match &mut ends[side] {
                End::Tap(tap) => {
                    while let Some(frame) = other.arrived(now) {
                        // a full queue loses the frame, as a link may
                        tap.write(&frame)?;
                    }
                    for _ in 0..BATCH {
                        let Some(len) = tap.read(&mut buffer)? else { break };
                        link.send(buffer[..len].to_vec(), now);
                    }
                }
                End::Engine(host) => {
                    while let Some(frame) = other.arrived(now) {
                        host.take(&frame, now);
                    }
                    for frame in host.turn(now) {
                        link.send(frame, now);
                    }
                    let may_end = wanted.finish.load(Ordering::Relaxed);
                    if may_end && host.is_over(connections) && link.next().is_none() {
                        return Ok(report(&mut ends));
                    }
                    next = host.next(now).unwrap_or(next);
                }
            }
        }
        let next = links.iter().filter_map(Link::next).min().unwrap_or(u64::MAX).min(next);
        let now = EPOCH_US + start.elapsed().as_micros() as u64;
        wait(&ends, next.saturating_sub(now).min(NAP_US))?;
    }
    Ok(report(&mut ends))
}

fn wait(ends: &[End; 2], microseconds: u64) -> Result<()> {
    let mut polled: Vec<PollFd<'_>> = ends
        .iter()
        .filter_map(|end| match end {
            End::Tap(tap) => Some(PollFd::new(tap, PollFlags::IN)),
            End::Engine(_) => None,
        })
        .collect();
    let length = Timespec { tv_sec: 0, tv_nsec: (microseconds * 1_000) as i64 };
    match poll(&mut polled, Some(&length)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn report(ends: &mut [End; 2]) -> Report {
    let mut all = Report::default();
    for end in ends {
        if let End::Engine(host) = end {
            (all.outcomes, all.counters, all.live) = host.report();
        }
    }
    all
}
