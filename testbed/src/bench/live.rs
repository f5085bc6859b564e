//! What does a running system add to a round trip while it is half busy, and how long is it gone after a crash?
//!
//! Both over AF_XDP in a lab of namespaces: sender, links, peers and Weir share the machine's CPUs, and the figures hold
//! all of them.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::result::{Figure, percentile};
use super::{Bench, Context};
use crate::config::{Config, Mode, Protocol, Service};
use crate::interrupt;
use crate::run::Run;
use crate::topology::lab::{BACKENDS, CLIENT, Family, Io, Lab, backend, vip};
use crate::topology::namespace::link;
use crate::traffic::datagram::{self, Servers};
use crate::traffic::frames::{Ip, Link};
use crate::traffic::probe::{Probe, mac_of};
use crate::traffic::servers::{SERVER_PORT, VIP_PORT};
use crate::traffic::tunnel::Decapsulator;
use crate::weir::Weir;

/// Number of the backend that swallows the load: 198.18.1.190, a name that only the router knows.
const SINK: usize = 180;
/// VIP of the load.
const SINK_VIP: u8 = 9;
/// Sources of the load.
const SOURCES: u16 = 1_000;
/// Requests before the first that counts.
const WARM_UP: usize = 200;
/// Patience of a client that asks a restarted Weir.
const ASK: Duration = Duration::from_millis(2);

/// A lab that carries one mode. Fields are dropped in this order.
struct Rig {
    weir: Weir,
    _decapsulators: Vec<Decapsulator>,
    _servers: Servers,
    lab: Lab,
    _run: Run,
}

impl Rig {
    fn start(context: &Context, mode: Mode) -> Result<Self> {
        let run = Run::new()?;
        let lab = Lab::build(run.name(), Io::AfXdp)?;
        let service = Service::new(mode, Protocol::Udp, Family::Ipv4);
        let sink = Service {
            backends: vec![(SINK, 100)],
            ..Service::new(mode, Protocol::Udp, Family::Ipv4).on_vip(SINK_VIP)
        };
        let (sink_vip, sink_address) = (vip(Family::Ipv4, SINK_VIP), backend(Family::Ipv4, SINK));
        // the router answers for the sink and sends what it gets into a link whose other end nobody listens at
        link(&lab.router, "sink", &lab.router, "sink-end", 1_500)?;
        lab.router.ip(&format!(
            "route add {sink_address}/32 dev sink\nroute add {sink_vip}/32 dev sink\n\
             neigh add {sink_address} lladdr 02:00:00:00:00:fe dev sink\n\
             neigh add {sink_vip} lladdr 02:00:00:00:00:fe dev sink\n\
             neigh add proxy {sink_address} dev lan\n"
        ))?;
        if !mode.rewrites() {
            lab.accept_vip(service.address())?;
        }
        let (place, port) =
            if mode.rewrites() { (None, SERVER_PORT) } else { (Some(service.address()), VIP_PORT) };
        let places: Vec<Vec<_>> = (1..=BACKENDS)
            .map(|number| vec![place.unwrap_or_else(|| backend(Family::Ipv4, number))])
            .collect();
        let servers = Servers::start(&lab, &places, port)?;
        let decapsulators = if mode.is_tunnel() {
            lab.backends.iter().map(Decapsulator::start).collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        let config = Config::new([lab.device("wan"), lab.device("lan")], vec![service, sink]);
        let weir = Weir::start(&run, &lab, &context.binaries, &config.toml())?;
        Ok(Self { weir, _decapsulators: decapsulators, _servers: servers, lab, _run: run })
    }

    fn question(&self) -> Result<UdpSocket> {
        datagram::socket(&self.lab.client, (vip(Family::Ipv4, 1), VIP_PORT).into())
    }
}

/// Runs `latency/MODE` where it is wanted.
pub(crate) fn latency(bench: &mut Bench<'_>) {
    for mode in Mode::ALL {
        let name = format!("latency/{}", mode.name());
        bench.case(&name, |context| round_trips(context, &name, mode));
    }
}

fn round_trips(context: &Context, case: &str, mode: Mode) -> Result<Vec<Figure>> {
    let mut rig = Rig::start(context, mode)?;
    let probe = Probe::open(&rig.lab.client, "eth0")?;
    let frames = load_frames(&rig)?;
    let socket = rig.question()?;
    ask_often(&socket, WARM_UP)?;
    let alone = ask_often(&socket, context.requests / 4)?;
    let ceiling = ceiling(context.ceiling, &rig, &probe, &frames)?;
    let stop = AtomicBool::new(false);
    let loaded = std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_at(&probe, &frames, ceiling / 2, &stop));
        let outcome = ask_often(&socket, WARM_UP).and_then(|_| ask_often(&socket, context.requests));
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        outcome
    })?;
    rig.weir.settle()?;
    let setup = |load: &str| {
        format!(
            "UDP request and answer through AF_XDP on veths, {BACKENDS} backends, 1 adaptive worker; kernel, client, server \
             and load on the same {} CPUs; {load}",
            std::thread::available_parallelism().map_or(0, usize::from)
        )
    };
    let half = setup(&format!(
        "load of {} packets per second, half of the {ceiling} that arrive at most",
        ceiling / 2
    ));
    let none = setup("no load");
    println!(
        "      half of {ceiling} packets per second: p50 {:.0} µs, p99.9 {:.0} µs; no load: p50 {:.0} µs",
        percentile(&loaded, 0.5),
        percentile(&loaded, 0.999),
        percentile(&alone, 0.5)
    );
    let mut figures = Vec::new();
    for (case, values, setup) in [(case.to_owned(), &loaded, &half), (format!("{case}/idle"), &alone, &none)]
    {
        for (metric, share) in [("p50_us", 0.5), ("p999_us", 0.999)] {
            let parts = values.chunks(values.len().div_ceil(5).max(1));
            figures.push(Figure {
                case: case.clone(),
                implementation: "weir",
                metric,
                unit: "us",
                values: parts.map(|part| percentile(part, share)).collect(),
                setup: setup.clone(),
            });
        }
    }
    Ok(figures)
}

/// Round trips in microseconds, one after the other.
fn ask_often(socket: &UdpSocket, times: usize) -> Result<Vec<f64>> {
    let mut times_us = Vec::with_capacity(times);
    for number in 0..times {
        let question = (number as u64).to_be_bytes();
        let start = Instant::now();
        datagram::ask(socket, &question)?;
        times_us.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times_us)
}

fn load_frames(rig: &Rig) -> Result<Vec<Vec<u8>>> {
    let link = Link::new(mac_of(&rig.lab.client, "eth0")?, mac_of(&rig.lab.lb, "wan")?);
    let ip = Ip::new(CLIENT.0, vip(Family::Ipv4, SINK_VIP));
    Ok((0..SOURCES).map(|number| link.ip(&ip.udp((20_000 + number, VIP_PORT), &[0; 18]))).collect())
}

/// Packets per second that the port takes in when it is sent as many as possible.
fn ceiling(length: Duration, rig: &Rig, probe: &Probe, frames: &[Vec<u8>]) -> Result<u64> {
    let received = || Ok::<u64, anyhow::Error>(rig.weir.status()?.port("wan", "rx_packets"));
    let before = received()?;
    let start = Instant::now();
    for frame in frames.iter().cycle() {
        // a full queue is what is looked for
        let _ = probe.send(frame);
        if start.elapsed() >= length {
            break;
        }
    }
    let took = start.elapsed().as_secs_f64();
    interrupt::pause(Duration::from_millis(50))?;
    let rate = ((received()? - before) as f64 / took) as u64;
    ensure!(rate > 1_000, "only {rate} packets per second arrive");
    Ok(rate)
}

fn send_at(probe: &Probe, frames: &[Vec<u8>], rate: u64, stop: &AtomicBool) {
    let start = Instant::now();
    for (count, frame) in frames.iter().cycle().enumerate() {
        if stop.load(Ordering::Relaxed) || interrupt::arrived() {
            break;
        }
        let _ = probe.send(frame);
        let due = Duration::from_secs_f64(count as f64 / rate as f64);
        if count.is_multiple_of(16)
            && let Some(early) = due.checked_sub(start.elapsed())
        {
            std::thread::sleep(early);
        }
    }
}

/// Runs `restart` where it is wanted.
pub(crate) fn restart(bench: &mut Bench<'_>) {
    bench.case("restart", restarts);
}

fn restarts(context: &Context) -> Result<Vec<Figure>> {
    let mut rig = Rig::start(context, Mode::Nat)?;
    let socket = rig.question()?;
    ask_often(&socket, WARM_UP)?;
    let mut values = Vec::new();
    for _ in 0..context.runs {
        let start = Instant::now();
        rig.weir.kill_dataplane()?;
        rig.weir.restart_dataplane(&rig.lab)?;
        await_answer(&socket, &mut rig.weir)?;
        values.push(start.elapsed().as_secs_f64() * 1e3);
        // late answers to what was asked meanwhile must not be taken for the next round's
        interrupt::pause(Duration::from_millis(100))?;
        drain(&socket)?;
    }
    println!("      {:.0} ms", percentile(&values, 0.5));
    Ok(vec![Figure {
        case: "restart".to_owned(),
        implementation: "weir",
        metric: "ms",
        unit: "ms",
        values,
        setup: "kill -9 of weir-dataplane under a supervisor that starts it again at once, until a UDP flow from before \
                is answered again; nat over AF_XDP, 1 adaptive worker, tables of 65,536 flows"
            .to_owned(),
    }])
}

/// Asks every two milliseconds until there is an answer.
fn await_answer(socket: &UdpSocket, weir: &mut Weir) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut buffer = [0u8; 256];
    socket.set_read_timeout(Some(ASK))?;
    while Instant::now() < end {
        interrupt::check()?;
        // refused while nobody answers for the VIP
        let _ = socket.send(b"back?");
        if socket.recv(&mut buffer).is_ok() {
            return Ok(());
        }
    }
    weir.must_run()?;
    bail!("no answer within 20 s of a restart")
}

fn drain(socket: &UdpSocket) -> Result<()> {
    let mut buffer = [0u8; 256];
    socket.set_read_timeout(Some(ASK)).context("set a timeout")?;
    while socket.recv(&mut buffer).is_ok() {}
    Ok(())
}
