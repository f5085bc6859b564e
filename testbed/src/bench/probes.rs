//! What do health checks cost, and how soon do workers know what they found?
//!
//! Probes go to servers of the kernel in a namespace of their own, over its loopback: what the kernel does for both ends of a connection
//! is in the figures of the probing thread.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hugepages::generation::ControlPage;
use hugepages::segment::SegmentDir;
use serde::Deserialize;

use super::instance::Instance;
use super::result::{Figure, percentile};
use super::{Bench, Context};
use crate::interrupt;
use crate::run::{Run, SHM};
use crate::topology::namespace::Namespace;

const POOLS: usize = 500;
const BACKENDS: usize = 20;
/// All of them are probed once a second.
const PER_SECOND: usize = POOLS * BACKENDS;
/// Where the servers listen.
const PORT: u16 = 8_080;
/// Where nobody does.
const DEAD_PORT: u16 = 8_081;
/// Every so many backends are dead in the convergence case.
const DEAD_EVERY: usize = 10;
/// Patience with anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// Width of the bins in which arrivals are counted.
const BIN: Duration = Duration::from_millis(10);

pub(super) fn run(bench: &mut Bench<'_>) {
    for kind in ["tcp", "http"] {
        let name = format!("probes/{kind}");
        bench.case(&name, |context| probes(context, &name, kind));
    }
    bench.case("verdict-to-ack", verdicts);
    bench.case("converge", converge);
}

fn address(number: usize) -> String {
    format!("198.19.{}.{}", number / 250, 1 + number % 250)
}

/// `check` is for a pool, by its number; `dead` says who listens nowhere.
fn configuration(check: impl Fn(usize) -> String, dead: impl Fn(usize) -> bool) -> String {
    let mut text = format!(
        "[dataplane]\nworkers = 1\nidle = \"adaptive\"\nflow_table = {{ ipv4 = 65536, ipv6 = 1024 }}\n\
         buffers = 4096\nmax_backends = {}\n\
         [[port]]\nname = \"wan\"\ndevice = \"null:sink\"\naddresses = [\"198.18.0.254/16\"]\n\
         gateways = [\"198.18.0.1\"]\n",
        POOLS * BACKENDS + 1_024
    );
    for pool in 0..POOLS {
        let (high, low) = (100 + pool / 250, 1 + pool % 250);
        text += &format!(
            "[[vip]]\nname = \"v{pool}\"\naddress = \"198.18.{high}.{low}\"\n\
             [[listener]]\nname = \"l{pool}\"\nvip = \"v{pool}\"\nprotocol = \"tcp\"\nport = 80\nmode = \"nat\"\n\
             pool = \"p{pool}\"\n[[pool]]\nname = \"p{pool}\"\nhealth_check = {{ {} }}\n",
            check(pool)
        );
        for backend in 0..BACKENDS {
            let number = pool * BACKENDS + backend;
            let port = if dead(number) { DEAD_PORT } else { PORT };
            let address = address(number);
            text += &format!("[[pool.backend]]\nname = \"b{backend}\"\naddress = \"{address}:{port}\"\n");
        }
    }
    text
}

/// A namespace in which all backends' addresses are local.
fn namespace(run: &Run) -> Result<Namespace> {
    let namespace = Namespace::create(run.name(), "probes")?;
    namespace.ip("link set lo up\nroute add local 198.18.0.0/15 dev lo\n")?;
    Ok(namespace)
}

/// A server: one thread, a short answer to whoever sends something.
struct Server {
    stop: Arc<AtomicBool>,
    arrivals: Arc<Mutex<Vec<Instant>>>,
    /// Answers 503 from now on.
    fails: Arc<AtomicBool>,
    /// When it last answered 503, in nanoseconds since `origin`; 0 = not since it was told to fail.
    failed_ns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(namespace: &Namespace, at: IpAddr, origin: Instant) -> Result<Self> {
        let place = SocketAddr::new(at, PORT);
        let listener = namespace.run(|| -> std::io::Result<TcpListener> {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            // a server of one address listens beside that of all
            socket.set_reuse_port(true)?;
            socket.bind(&place.into())?;
            socket.listen(4_096)?;
            Ok(socket.into())
        })??;
        let mut server = Self {
            stop: Arc::default(),
            arrivals: Arc::default(),
            fails: Arc::default(),
            failed_ns: Arc::default(),
            thread: None,
        };
        let (stop, arrivals) = (Arc::clone(&server.stop), Arc::clone(&server.arrivals));
        let (fails, failed_ns) = (Arc::clone(&server.fails), Arc::clone(&server.failed_ns));
        server.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else { continue };
                arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                let is_bad = fails.load(Ordering::Relaxed);
                // a check of type tcp resets at once
                if answer(&mut stream, is_bad).is_ok() && is_bad {
                    let _ = failed_ns.compare_exchange(
                        0,
                        origin.elapsed().as_nanos() as u64,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                }
            }
        }));
        Ok(server)
    }

    fn take_arrivals(&self) -> Vec<Instant> {
        std::mem::take(&mut *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn answer(stream: &mut TcpStream, is_bad: bool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut request = [0; 512];
    if stream.read(&mut request)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let status = if is_bad { "503 Busy" } else { "200 OK" };
    stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").as_bytes())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // the thread waits in accept: the namespace's end does not wake it, so it is left to end with this program
        drop(self.thread.take());
    }
}

#[derive(Debug, Deserialize)]
struct Listing {
    backends: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Row {
    state: String,
    probes: u64,
    failures: u64,
}

fn listing(socket: &Path) -> Result<Listing> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /v1/health HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{body}");
    Ok(serde_json::from_str(body)?)
}

/// Waits until all backends are known.
fn known(weir: &mut Instance) -> Result<Listing> {
    let began = Instant::now();
    let socket = weir.socket();
    loop {
        interrupt::check()?;
        let listing = listing(&socket)?;
        if listing.backends.iter().all(|row| row.state != "unknown") {
            return Ok(listing);
        }
        ensure!(began.elapsed() < PATIENCE, "backends are not known after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until all backends are up and nothing changes: what two CPUs do at the start makes probes late.
fn all_up(weir: &mut Instance, control: &ControlPage) -> Result<()> {
    let began = Instant::now();
    let (mut last, mut since) = (control.published(), Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        interrupt::check()?;
        let is_up = listing(&weir.socket())?.backends.iter().all(|row| row.state == "up");
        if !is_up || control.published() != last {
            (last, since) = (control.published(), Instant::now());
        }
        ensure!(began.elapsed() < PATIENCE, "some backends are not up after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// CPU time of the probing thread of a process.
fn cpu_time(process: u32) -> Result<Duration> {
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm"))?.trim() == "weir-health" {
            let text = std::fs::read_to_string(task.join("schedstat"))?;
            let ns = text.split_whitespace().next().and_then(|word| word.parse().ok());
            return Ok(Duration::from_nanos(ns.context("no time in schedstat")?));
        }
    }
    bail!("the control process has no thread that probes")
}

fn probes(context: &Context, case: &str, kind: &str) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let namespace = namespace(&run)?;
    let server = Server::start(&namespace, "0.0.0.0".parse()?, Instant::now())?;
    let check = format!("type = \"{kind}\", interval = \"1s\", timeout = \"900ms\"");
    let text = configuration(|_| check.clone(), |_| false);
    let mut weir = Instance::start_within(&run, &context.binaries, &text, &namespace)?;
    known(&mut weir)?;
    let process = weir.ctlplane_id().context("the control process has ended")?;
    let sum = |listing: &Listing| listing.backends.iter().map(|row| row.probes).sum::<u64>();
    let (mut shares, mut most, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..context.windows.min(5) {
        interrupt::check()?;
        let first = sum(&listing(&weir.socket())?);
        let (cpu, began) = (cpu_time(process)?, Instant::now());
        server.take_arrivals();
        interrupt::pause(Duration::from_secs(3))?;
        let arrivals = server.take_arrivals();
        let (used, window) = (cpu_time(process)? - cpu, began.elapsed());
        let listing = listing(&weir.socket())?;
        let failures: u64 = listing.backends.iter().map(|row| row.failures).sum();
        // the servers share two CPUs with everything else: a handful of late answers is theirs
        ensure!(failures * 1_000 < sum(&listing), "{failures} probes failed");
        rates.push((sum(&listing) - first) as f64 / window.as_secs_f64());
        shares.push(used.as_secs_f64() / window.as_secs_f64());
        let mut bins = vec![0u32; (window.as_nanos() / BIN.as_nanos()) as usize + 1];
        for at in arrivals {
            let bin = at.saturating_duration_since(began).as_nanos() / BIN.as_nanos();
            if let Some(bin) = bins.get_mut(bin as usize) {
                *bin += 1;
            }
        }
        most.push(f64::from(bins.into_iter().max().unwrap_or(0)));
    }
    weir.stop()?;
    let rate = percentile(&rates, 0.5);
    ensure!(rate > 0.9 * PER_SECOND as f64, "only {rate:.0} probes per second were made");
    println!("      {rate:.0} probes/s, {:.2} of a core", percentile(&shares, 0.5));
    let setup = format!(
        "{PER_SECOND} backends probed once a second ({kind}), {rate:.0} probes/s as told by the daemon: CPU time of the probing thread, \
         the kernel's work for both ends of each connection over loopback included"
    );
    let figure = |metric, unit, values, setup: String| Figure {
        case: case.to_owned(),
        implementation: "weir",
        metric,
        unit,
        values,
        setup,
    };
    let mean = PER_SECOND as f64 * BIN.as_secs_f64();
    let burst = format!("most connections that the servers accepted in any 10 ms; {mean:.0} is even");
    Ok(vec![figure("cpu_share", "cores", shares, setup), figure("most_in_10_ms", "probes", most, burst)])
}

/// Waits until every worker has acknowledged a generation above `before`; gives that generation.
fn acked_above(control: &ControlPage, before: u64) -> Result<u64> {
    let began = Instant::now();
    loop {
        let published = control.published();
        let workers = control.dataplane().workers;
        if published > before && workers.iter().all(|worker| worker.acked_generation >= published) {
            return Ok(published);
        }
        if began.elapsed() > PATIENCE {
            bail!("generation {} was not followed by another that was acked", before);
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

fn verdicts(context: &Context) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let namespace = namespace(&run)?;
    let origin = Instant::now();
    let _others = Server::start(&namespace, "0.0.0.0".parse()?, origin)?;
    // a place of its own is preferred to the one for any address
    let patient = Server::start(&namespace, address(0).parse()?, origin)?;
    let check = |pool: usize| match pool {
        0 => "type = \"http\", interval = \"100ms\", fall = 1, rise = 1".to_owned(),
        _ => "type = \"http\", interval = \"5s\"".to_owned(),
    };
    let text = configuration(check, |_| false);
    let mut weir = Instance::start_within(&run, &context.binaries, &text, &namespace)?;
    known(&mut weir)?;
    let directory = SegmentDir::open_existing(Path::new(SHM).join(format!("weir-{}", run.name())))?;
    let control = ControlPage::open_read_only(&directory)?;
    all_up(&mut weir, &control)?;
    let mut times = Vec::new();
    for _ in 0..context.changes / 4 {
        interrupt::check()?;
        let generation = control.published();
        patient.failed_ns.store(0, Ordering::Relaxed);
        patient.fails.store(true, Ordering::Relaxed);
        let down = acked_above(&control, generation)?;
        let acked = origin.elapsed();
        let failed = Duration::from_nanos(patient.failed_ns.load(Ordering::Relaxed));
        ensure!(!failed.is_zero(), "a generation came without a failed check");
        times.push(acked.saturating_sub(failed).as_secs_f64() * 1e3);
        patient.fails.store(false, Ordering::Relaxed);
        acked_above(&control, down)?;
    }
    weir.dataplane.must_run()?;
    weir.stop()?;
    println!("      p50 {:.2} ms, p99 {:.2} ms", percentile(&times, 0.5), percentile(&times, 0.99));
    let setup = format!(
        "{POOLS} pools of {BACKENDS} backends (65,537 Maglev slots per pool), one adaptive worker, 2,000 other probes/s: from the \
         backend's sending of a 503 to the acknowledgement of the last worker, {} times",
        times.len()
    );
    let figure = |metric, values| Figure {
        case: "verdict-to-ack".to_owned(),
        implementation: "weir",
        metric,
        unit: "ms",
        values,
        setup: setup.clone(),
    };
    let fifths = times.chunks(times.len().div_ceil(5).max(1)).map(|part| percentile(part, 0.5)).collect();
    Ok(vec![figure("p50_ms", fifths), figure("p99_ms", vec![percentile(&times, 0.99)])])
}

fn converge(context: &Context) -> Result<Vec<Figure>> {
    let text = configuration(|_| "type = \"tcp\"".to_owned(), |number| number % DEAD_EVERY == 0);
    let dead = (0..POOLS * BACKENDS).filter(|number| number % DEAD_EVERY == 0).count();
    let mut times = Vec::new();
    for _ in 0..context.runs {
        interrupt::check()?;
        let run = Run::new()?;
        let namespace = namespace(&run)?;
        let _server = Server::start(&namespace, "0.0.0.0".parse()?, Instant::now())?;
        let began = Instant::now();
        let mut weir = Instance::start_within(&run, &context.binaries, &text, &namespace)?;
        let served = began.elapsed();
        let directory = SegmentDir::open_existing(Path::new(SHM).join(format!("weir-{}", run.name())))?;
        let control = ControlPage::open_read_only(&directory)?;
        loop {
            interrupt::check()?;
            let down = listing(&weir.socket())?.backends.iter().filter(|row| row.state == "down").count();
            if down == dead {
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "{down} of {dead} dead backends were found");
            std::thread::sleep(Duration::from_millis(10));
        }
        // the last verdicts may be on their way to the workers
        let mut last = control.published();
        let mut since = Instant::now();
        let mut done = began.elapsed();
        while since.elapsed() < Duration::from_millis(200) {
            let workers = control.dataplane().workers;
            if control.published() != last || workers.iter().any(|worker| worker.acked_generation < last) {
                last = control.published();
                since = Instant::now();
                done = began.elapsed();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        weir.dataplane.must_run()?;
        println!(
            "      served after {:.2} s, all known after {:.2} s",
            served.as_secs_f64(),
            done.as_secs_f64()
        );
        times.push(done.as_secs_f64() * 1e3);
        weir.stop()?;
    }
    let setup = format!(
        "{POOLS} pools of {BACKENDS} backends with the default tcp check, {dead} of them dead: from the start of both processes to the last \
         worker's acknowledgement of the last verdict"
    );
    Ok(vec![Figure {
        case: "converge".to_owned(),
        implementation: "weir",
        metric: "ms",
        unit: "ms",
        values: times,
        setup,
    }])
}
