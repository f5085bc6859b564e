//! `testbed/slow-attack`: how long real requests take, first alone, then beside clients that take their time by the thousand.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use socket2::{Domain, Socket, Type};

use super::super::Context;
use super::super::result::Figure;
use super::beside::{CONNECTIONS, ask, figure, race, setup};
use super::rivals::{LARGE, LARGE_BYTES, OTHERS, Rival, Stage, UPLOAD};
use crate::topology::namespace::Namespace;
use crate::traffic::exchange::get;
use crate::traffic::rate::Outcome;

/// Who is attacked, Weir first.
const ATTACKED: [Rival; 3] = [Rival::Weir, Rival::Haproxy, Rival::Nginx];
/// Name of the case.
pub(super) const CASE: &str = "testbed/slow-attack";
/// Real requests per second.
const RATE: u32 = 5_000;
/// Attackers of each kind.
const EACH: usize = 300;
/// Each sends or reads a little so often. All that is sent in a window stays below what makes a body too slow for Weir, whose least
/// rate holds from the sixth second on.
const PERIOD: Duration = Duration::from_millis(250);
/// What one who reads takes at a time.
const SIP: usize = 64;
/// Receive buffer of attackers: what they do not read is to stay in the proxy.
const RECEIVE: usize = 4_096;
/// Requests that don't count, after a proxy was stopped: its connections to backends may have ended meanwhile.
const WARM_UP: Duration = Duration::from_millis(50);
/// For the proxy and the backends to be done with what all attackers begin with, which comes at once and is not slow.
const SETTLE: Duration = Duration::from_millis(300);
/// For the proxy to see that all attackers have left, before it is stopped.
const FAREWELL: Duration = Duration::from_millis(50);

/// What an attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A head byte by byte.
    Head,
    /// A body byte by byte.
    Body,
    /// A large answer, read in sips.
    Read,
    /// Nothing.
    Idle,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Head, Self::Body, Self::Read, Self::Idle];

    /// What it begins with.
    fn first(self) -> String {
        match self {
            Self::Head => "GET / HTTP/1.1\r\nHost: weir.test\r\nX-Slow: ".to_owned(),
            Self::Body => {
                format!("POST {UPLOAD} HTTP/1.1\r\nHost: weir.test\r\nContent-Length: 1000000\r\n\r\n")
            }
            Self::Read => get(LARGE, ""),
            Self::Idle => String::new(),
        }
    }
}

/// One slow client.
struct Attacker {
    kind: Kind,
    stream: TcpStream,
}

impl Attacker {
    fn open(kind: Kind, target: SocketAddr) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        // before it connects, so that no larger window is ever offered
        socket.set_recv_buffer_size(RECEIVE)?;
        socket.connect_timeout(&target.into(), Duration::from_secs(5))?;
        socket.set_nonblocking(true)?;
        let mut stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.write_all(kind.first().as_bytes())?;
        Ok(Self { kind, stream })
    }

    /// The little that it does now and then.
    fn act(&mut self) -> Result<()> {
        match self.kind {
            Kind::Head | Kind::Body => self.stream.write_all(b"x").context("send a byte"),
            Kind::Read => self.listen(),
            Kind::Idle => Ok(()),
        }
    }

    /// Takes a sip of what came. An end, and any answer to those that still ask, is an error.
    fn listen(&mut self) -> Result<()> {
        let mut buffer = [0u8; SIP];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(anyhow!("the connection was ended")),
            Ok(count) => {
                let words = String::from_utf8_lossy(&buffer[..count]);
                ensure!(self.kind == Kind::Read, "it was answered {words:?}");
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error).context("read"),
        }
    }
}

/// Runs `work` while all attackers are connected to `target` and do what they do, on the CPU of clients. That one of them was
/// ended or answered meanwhile is an error: `work` would not have been beside all of them.
fn beside<T>(from: &Namespace, target: SocketAddr, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    let (opened, open) = channel();
    std::thread::scope(|scope| {
        let attack = scope.spawn(|| attack(from, target, opened, &stop));
        // where it could not open all, its own error says why
        let result = open.recv().map_err(|_| anyhow!("no attack")).and_then(|()| {
            std::thread::sleep(SETTLE);
            work()
        });
        stop.store(true, Ordering::Relaxed);
        attack.join().map_err(|_| anyhow!("the attackers panicked"))?.context("attack")?;
        std::thread::sleep(FAREWELL);
        result
    })
}

fn attack(from: &Namespace, target: SocketAddr, opened: Sender<()>, stop: &AtomicBool) -> Result<()> {
    from.enter()?;
    let mut cpus = CpuSet::new();
    cpus.set(OTHERS);
    sched_setaffinity(None, &cpus).with_context(|| format!("run on CPU {OTHERS}"))?;
    let mut attackers = Vec::with_capacity(EACH * Kind::ALL.len());
    for number in 0..EACH {
        for kind in Kind::ALL {
            let attacker = Attacker::open(kind, target).with_context(|| format!("{kind:?} {number}"))?;
            attackers.push(attacker);
        }
    }
    opened.send(())?;
    // in even steps: all at once would be a burst that real clients, on the same CPU, wait for
    let (start, mut done) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() / PERIOD.as_secs_f64() * attackers.len() as f64) as usize;
        for number in done..due {
            let number = number % attackers.len();
            let attacker = &mut attackers[number];
            attacker.act().with_context(|| format!("{:?} {}", attacker.kind, number / Kind::ALL.len()))?;
        }
        done = due;
        std::thread::sleep(Duration::from_millis(1));
    }
    for (number, attacker) in attackers.iter_mut().enumerate() {
        attacker.listen().with_context(|| format!("{:?} {}", attacker.kind, number / Kind::ALL.len()))?;
    }
    Ok(())
}

/// Measures it.
pub(super) fn slow(context: &Context, stage: &Stage) -> Result<Vec<Figure>> {
    let quick = context.windows <= 3;
    // an attack may not last until bodies become too slow
    let length = if quick { Duration::from_millis(250) } else { Duration::from_secs(3) };
    let context = &Context { runs: if quick { 2 } else { context.runs }, ..context.clone() };
    let runs = race(context, &ATTACKED, |rival| {
        stage.only(rival)?;
        ask(stage, rival, RATE, WARM_UP).context("warm up")?;
        let alone = ask(stage, rival, RATE, length).context("without the attack")?;
        let attacked = beside(stage.client(), rival.place(), || ask(stage, rival, RATE, length))
            .context("with the attack")?;
        for (which, outcome) in [("without", &alone), ("with", &attacked)] {
            ensure!(
                outcome.missing == 0 || rival != Rival::Weir,
                "{} of {} requests were not answered {which} the attack",
                outcome.missing,
                outcome.answered + outcome.missing
            );
        }
        Ok([alone, attacked])
    })?;
    let load = format!(
        "{RATE} GETs a second over {CONNECTIONS} kept connections, due in even steps, times from when they were due; errors: requests \
         without an answer; any answer but 200 and any connection that ends fail the case"
    );
    let attackers = format!(
        "{} slow clients, {EACH} each that send a head or a body by one byte, read {SIP} B of an answer of {LARGE_BYTES} B, every {} ms, \
         or say nothing",
        EACH * Kind::ALL.len(),
        PERIOD.as_millis()
    );
    let setups = [
        format!("{load}; without the attack; {}", setup()),
        format!(
            "{load}; with the attack: {attackers}, on the CPU of clients, whose time they take as well, all of them connected {} ms \
             before the first request and still after the last; of alone: p99 of the same run with the attack by that without; {}",
            SETTLE.as_millis(),
            setup()
        ),
    ];
    let mut figures = Vec::new();
    for (rival, runs) in &runs {
        for (at, (which, setup)) in ["without", "with"].iter().zip(&setups).enumerate() {
            let case = format!("{CASE}/{which}");
            let mut push = |metric, unit, value: &dyn Fn(&[Outcome; 2]) -> f64| {
                figures.push(figure(&case, *rival, metric, unit, runs.iter().map(value).collect(), setup));
            };
            push("p50_us", "us", &|run| run[at].p50_us);
            push("p99_us", "us", &|run| run[at].p99_us);
            push("p999_us", "us", &|run| run[at].p999_us);
            push("errors", "", &|run| run[at].missing as f64);
            if at == 1 {
                push("p99_of_alone", "", &|[alone, attacked]| attacked.p99_us / alone.p99_us);
            }
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attackers_never_complete_what_they_begin() {
        let ended = |kind: Kind| kind.first().contains("\r\n\r\n");
        assert_eq!(Kind::ALL.map(ended), [false, true, true, false]);
        assert!(
            Kind::Body.first().starts_with("POST /upload ") && Kind::Read.first().starts_with("GET /large ")
        );
        // ten seconds, more than an attack lasts, of a byte each period and of a sip each period
        let periods = (10_000 / PERIOD.as_millis()) as usize;
        assert!(periods < 1_000_000 && periods * SIP < LARGE_BYTES / 4);
        assert!(EACH * Kind::ALL.len() >= 1_000);
    }
}
