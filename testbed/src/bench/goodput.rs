//! How much arrives over a lossy path? The engine's sender beside the kernel's, both to a kernel sink, over the same link in
//! real time: 100 Mbit/s, a queue of one bandwidth-delay product.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use weir_tcp::ConnectionConfig;

use super::result::{Figure, median};
use super::{Bench, Context};
use crate::run::Run;
use crate::topology::lab::Family;
use crate::wire::{Crossing, EngineHost, Kernel, Quality, Role, Talk, Turn};

const PORT: u16 = 5_001;
/// The bottleneck, bytes per second.
const RATE: u64 = 12_500_000;
const SEEDS: u64 = 5;

/// A path: its name, losses and held-back frames per million.
const PATHS: [(&str, usize, usize); 5] = [
    ("loss-0", 0, 0),
    ("loss-0.1", 1_000, 0),
    ("loss-1", 10_000, 0),
    ("loss-3", 30_000, 0),
    ("reorder-1", 0, 10_000),
];
const ROUND_TRIPS_MS: [u64; 2] = [20, 100];

/// Runs `goodput/PATH/RTT` where it is wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    for round_trip_ms in ROUND_TRIPS_MS {
        for (path, loss, reorder) in PATHS {
            let name = format!("goodput/{path}/{round_trip_ms}ms");
            bench.case(&name, |context| both(context, &name, round_trip_ms, loss, reorder));
        }
    }
}

fn both(
    context: &Context,
    case: &str,
    round_trip_ms: u64,
    loss: usize,
    reorder: usize,
) -> Result<Vec<Figure>> {
    let forth = Quality {
        delay_us: round_trip_ms * 500,
        loss,
        duplicate: 0,
        reorder,
        rate: RATE,
        queue: RATE * round_trip_ms / 1_000,
    };
    let back = Quality { delay_us: forth.delay_us, ..Quality::default() };
    let length = context.window * if round_trip_ms > 50 { 10 } else { 5 };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for seed in context.seed..context.seed + SEEDS {
        // at the same time on links of their own, so that a busy machine hits both
        let (our, their) = std::thread::scope(|scope| {
            let our = scope.spawn(|| from_engine(forth, back, seed, length));
            let their = from_kernel(forth, back, seed, length);
            (our.join().map_err(|_| anyhow!("the engine's side panicked")), their)
        });
        ours.push(our??);
        theirs.push(their?);
    }
    let setup = format!(
        "100 Mbit/s, queue of one bandwidth-delay product, {} s of one connection to a kernel's socket, CUBIC, in real time \
         through TAPs; Mbit/s of data that the receiving application read, {SEEDS} seeds",
        length.as_secs_f64()
    );
    let ratio = median(&ours) / median(&theirs).max(1e-9);
    println!("      weir {:.2}, kernel {:.2} Mbit/s: {ratio:.2}", median(&ours), median(&theirs));
    let figure = |implementation, metric, unit, values| Figure {
        case: case.to_owned(),
        implementation,
        metric,
        unit,
        values,
        setup: setup.clone(),
    };
    Ok(vec![
        figure("weir", "goodput", "Mbit/s", ours),
        figure("kernel", "goodput", "Mbit/s", theirs),
        figure("weir", "goodput_of_kernel", "ratio", vec![ratio]),
    ])
}

/// The engine sends to the kernel's sink.
fn from_engine(forth: Quality, back: Quality, seed: u64, length: Duration) -> Result<f64> {
    let run = Run::new()?;
    let (kernel, tap) = Kernel::create(run.name(), 1)?;
    let listener = kernel.listen(Family::Ipv4, PORT)?;
    let config = ConnectionConfig { send_buffer: 16 << 20, ..ConnectionConfig::default() };
    let role = Role::Client { family: Family::Ipv4, port: PORT, connections: 1, at_once: 1 };
    let talk = Talk { seed, bytes: [u64::MAX, 0], turn: Turn::Together };
    let crossing = Crossing::to_engine(tap, [back, forth], seed, 1, move |now| {
        EngineHost::new(role, talk, config, now).careless()
    });
    let (stream, _) = listener.accept().context("the engine did not connect")?;
    let goodput = sink(stream, length)?;
    let report = crossing.end()?;
    if std::env::var_os("WEIR_TRACE").is_some() {
        println!("      engine {goodput:.2} Mbit/s {:?}", report.counters);
    }
    Ok(goodput)
}

/// A kernel sends to the kernel's sink.
fn from_kernel(forth: Quality, back: Quality, seed: u64, length: Duration) -> Result<f64> {
    let run = Run::new()?;
    let (kernel, tap) = Kernel::create(run.name(), 1)?;
    let (other, other_tap) = Kernel::create(run.name(), 2)?;
    let listener = kernel.listen(Family::Ipv4, PORT)?;
    let crossing = Crossing::between([tap, other_tap], [back, forth], seed);
    let mut sender =
        other.run(|| TcpStream::connect(SocketAddr::new(kernel.address(Family::Ipv4), PORT)))??;
    let (stream, _) = listener.accept().context("the other kernel did not connect")?;
    // the namespace's default may be another
    socket2::SockRef::from(&sender).set_tcp_congestion(b"cubic").context("the kernel has no CUBIC")?;
    std::thread::scope(|scope| {
        sender.set_write_timeout(Some(Duration::from_secs(5)))?;
        scope.spawn(move || {
            let filler = vec![0x5a; 60_000];
            // until the sink closes
            while sender.write_all(&filler).is_ok() {}
        });
        let goodput = sink(stream, length);
        // what still flies does so until the sender hears of the end
        std::thread::sleep(Duration::from_millis(300));
        crossing.end()?;
        goodput
    })
}

/// Mbit/s that the application reads within a time.
fn sink(mut stream: TcpStream, length: Duration) -> Result<f64> {
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (mut total, mut buffer) = (0u64, vec![0; 256 << 10]);
    let start = Instant::now();
    while start.elapsed() < length {
        crate::interrupt::check()?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => total += len as u64,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the sink's connection"),
        }
    }
    // a RST ends the sender at once
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(total as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e6)
}
