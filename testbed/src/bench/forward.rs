//! What does a packet of an established flow cost? Each mode, both families, 1,000 to 4 million flows.
//!
//! A first pass makes the flows in one order and its output is compared with what each mode must make of a packet. Then
//! Weir is started again, takes the flows over, and is measured on another order, window by window in turn with testpmd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::capture::{BACKENDS, Content, OWN, Traffic, backend};
use super::check;
use super::instance::{Counters, Instance, window};
use super::result::{Figure, median};
use super::testpmd::Testpmd;
use super::{Bench, Context};
use crate::config::Mode;
use crate::interrupt::{pause, wait_for};
use crate::run::Run;
use crate::setup::Pages;
use crate::topology::lab::{Family, vip};
use crate::traffic::servers::{SERVER_PORT, VIP_PORT};

/// Numbers of flows by their name.
const SIZES: [(&str, u32); 4] = [("1k", 1_000), ("100k", 100_000), ("1m", 1_000_000), ("4m", 4_000_000)];
/// Buffers beside those that hold the capture.
const SPARE: u32 = 16_384;
/// Bytes of a hugepage.
const PAGE: u64 = 2 << 20;
/// For a process to get going again after it was stopped.
const THAW: Duration = Duration::from_millis(40);
/// Packets of the first pass, at least: the backends' neighbours must be known before the last of them.
const FIRST_PASS: u32 = 400_000;
/// A configuration on one capture port.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Mode of the listener.
    pub(crate) mode: Mode,
    /// Packets.
    pub(crate) traffic: Traffic,
    /// Entries of the flow table.
    pub(crate) entries: u32,
    /// The port's device.
    pub(crate) device: String,
    /// Buffers of the port.
    pub(crate) buffers: u32,
    /// Bytes of each, and the port's MTU.
    pub(crate) room: (u32, u16),
}

impl Plan {
    /// As TOML.
    pub(crate) fn toml(&self) -> String {
        let family = self.traffic.family;
        let (v4, v6) = match family {
            Family::Ipv4 => (self.entries, 1_024),
            Family::Ipv6 => (1_024, self.entries),
        };
        let snat =
            if self.mode == Mode::Fullnat { format!("snat = [{}]\n", self.snat()) } else { String::new() };
        let mut text = format!(
            "[dataplane]\nworkers = \"{}\"\nidle = \"spin\"\nflow_table = {{ ipv4 = {v4}, ipv6 = {v6} }}\n\
             buffers = {}\nbuffer_bytes = {}\n\
             [timeouts]\ntcp_embryonic = \"2h\"\ntcp_established = \"2h\"\nudp = \"2h\"\n\
             [[port]]\nname = \"wan\"\ndevice = \"{}\"\naddresses = [\"{}/16\", \"{}/64\"]\nmtu = {}\n{snat}\
             [[vip]]\nname = \"vip\"\naddress = \"{}\"\n\
             [[listener]]\nname = \"bench\"\nvip = \"vip\"\nprotocol = \"{}\"\nport = {VIP_PORT}\nmode = \"{}\"\n\
             pool = \"bench\"\n[[pool]]\nname = \"bench\"\n",
            super::instance::WORKER_CPU,
            self.buffers,
            self.room.0,
            self.device,
            OWN.0,
            OWN.1,
            self.room.1,
            vip(family, 1),
            self.traffic.content.protocol().name(),
            self.mode.name(),
        );
        for number in 0..BACKENDS {
            let address = backend(family, number);
            let address = if self.mode.rewrites() {
                std::net::SocketAddr::new(address, SERVER_PORT).to_string()
            } else {
                address.to_string()
            };
            text += &format!("[[pool.backend]]\nname = \"app-{number}\"\naddress = \"{address}\"\n");
        }
        text
    }

    /// Enough source addresses that a free port is found at once.
    fn snat(&self) -> String {
        let count = self.entries.div_ceil(60_000).max(1);
        let address = |number: u32| match self.traffic.family {
            Family::Ipv4 => format!("\"198.18.2.{}\"", 1 + number),
            Family::Ipv6 => format!("\"2001:db8:19::2:{:x}\"", 1 + number),
        };
        (0..count).map(address).collect::<Vec<_>>().join(", ")
    }
}

/// Entries for so many flows: an eighth of air.
pub(crate) fn entries_for(flows: u32) -> u32 {
    flows + flows / 8 + 1_024
}

/// Pages of 2 MiB that a process needs for so many buffers and flows.
pub(crate) fn pages_for(buffers: u32, buffer_bytes: u32, entries: u32) -> u64 {
    // beside the data: headroom, mbuf, mempool header, alignment
    let buffer = u64::from(buffer_bytes) + 128 + 128 + 128;
    let ring = u64::from(buffers).next_power_of_two() * 8;
    let rest = 96 << 20;
    (u64::from(buffers) * buffer + ring + u64::from(entries) * 112 + rest).div_ceil(PAGE)
}

/// Data room per buffer, and the MTU that fits it: small where four million buffers have to fit twice, and large
/// enough for IPv6's least MTU inside every tunnel.
pub(crate) fn room_for(flows: u32) -> (u32, u16) {
    if flows > 1_500_000 { (1_408, 1_360) } else { (2_048, 1_500) }
}

fn case(mode: Mode, family: Family, size: &str) -> String {
    format!("{}/{}/{size}", mode.name(), family.name())
}

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    for (size, flows) in SIZES {
        for family in Family::BOTH {
            for content in [Content::Ack, Content::Datagram] {
                let fits = |mode: &Mode| (*mode == Mode::Fullnat) == (content == Content::Datagram);
                let modes: Vec<Mode> = Mode::ALL
                    .into_iter()
                    .filter(fits)
                    .filter(|mode| bench.wants(&case(*mode, family, size)))
                    .collect();
                if modes.is_empty() {
                    continue;
                }
                let traffic = Traffic { family, content, flows };
                group(bench, size, traffic, &modes);
            }
        }
    }
}

/// All modes that play one capture, and testpmd beside them.
fn group(bench: &mut Bench<'_>, size: &str, traffic: Traffic, modes: &[Mode]) {
    let name = |mode: Mode| case(mode, traffic.family, size);
    let stage = match Stage::set(&bench.context, traffic) {
        Ok(stage) => stage,
        Err(error) => {
            modes.iter().for_each(|mode| bench.failed(&name(*mode), &error));
            return;
        }
    };
    let Stage { mut testpmd, capture, run, .. } = stage;
    for &mode in modes {
        bench.case(&name(mode), |context| {
            measure(context, &name(mode), mode, traffic, &capture, &mut testpmd)
        });
    }
    drop(testpmd);
    drop(run);
}

/// What the modes share.
struct Stage {
    testpmd: Testpmd,
    capture: PathBuf,
    run: Run,
    _pages: Pages,
}

impl Stage {
    fn set(context: &Context, traffic: Traffic) -> Result<Self> {
        let run = Run::new()?;
        let capture = run.path("order.pcap");
        let frames = traffic.write(&capture, context.seed, "measured order", 1)?;
        let (buffers, bytes) = (frames + SPARE, room_for(traffic.flows).0);
        let pages = pages_for(buffers, bytes, 0) + pages_for(buffers, bytes, entries_for(traffic.flows));
        let pages = Pages::reserve(pages)?;
        let testpmd = Testpmd::start(run.name(), &capture, buffers, bytes)?;
        Ok(Self { testpmd, capture, run, _pages: pages })
    }
}

fn measure(
    context: &Context,
    case: &str,
    mode: Mode,
    traffic: Traffic,
    capture: &Path,
    testpmd: &mut Testpmd,
) -> Result<Vec<Figure>> {
    let mut frozen = Some(testpmd.freeze()?);
    let run = Run::new()?;
    let compared = establish(context, &run, mode, traffic)?;
    let frames = traffic.flows + u32::from(BACKENDS);
    let plan = Plan {
        mode,
        traffic,
        entries: entries_for(traffic.flows),
        device: format!("pcap:{},,infinite", capture.display()),
        buffers: frames + SPARE,
        room: room_for(traffic.flows),
    };
    let weir = Instance::start(&run, &context.binaries, &plan.toml())?;
    let counters = weir.counters()?;
    await_established(&counters, traffic.flows).with_context(|| format!("drops: {}", counters.drops()))?;
    let start = counters.now();
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for _ in 0..context.windows {
        own.push(window(&weir, &counters, context.window)?);
        let paused = weir.freeze()?;
        drop(frozen.take());
        pause(THAW)?;
        others.push(testpmd.window(context.window)?);
        frozen = Some(testpmd.freeze()?);
        drop(paused);
        pause(THAW)?;
    }
    let end = counters.now();
    let hertz = (end.cycles - start.cycles) as f64 / (end.at - start.at).as_secs_f64();
    weir.stop()?;
    let least = own.iter().chain(&others).map(|window| window.share).fold(1.0, f64::min);
    let others_took = if least < 1.0 {
        format!("; others took up to {:.0} % of CPU 1, which is taken out", (1.0 - least) * 100.0)
    } else {
        String::new()
    };
    let setup = format!(
        "1 worker on CPU 1 at nice -19, {} B {} in buffers of {} B, net_pcap infinite_rx (its copy included), \
         tx discarded, burst 32, {BACKENDS} backends, flows in random order, made in another; {compared}{others_took}",
        traffic.frame_bytes(),
        traffic.content.name(),
        plan.room.0,
    );
    let [own, others] =
        [own, others].map(|windows| windows.iter().map(|window| window.ns).collect::<Vec<_>>());
    Ok(figures(case, &own, &others, hertz, &setup))
}

fn figures(case: &str, own: &[f64], others: &[f64], hertz: f64, setup: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |implementation, metric, unit, values: Vec<f64>| {
        figures.push(Figure {
            case: case.to_owned(),
            implementation,
            metric,
            unit,
            values,
            setup: setup.to_owned(),
        });
    };
    for (implementation, values) in [("weir", own), ("testpmd", others)] {
        let each = |make: &dyn Fn(f64) -> f64| values.iter().map(|&ns| make(ns)).collect::<Vec<_>>();
        add(implementation, "ns_per_packet", "ns", values.to_vec());
        add(implementation, "tsc_cycles_per_packet", "cycles", each(&|ns| ns * hertz / 1e9));
        add(implementation, "mpps", "Mpps", each(&|ns| 1e3 / ns));
    }
    let ratios = own.iter().zip(others).map(|(own, other)| own / other).collect();
    add("weir", "ratio_to_testpmd", "x", ratios);
    println!("      {:.1} ns, testpmd {:.1} ns", median(own), median(others));
    figures
}

/// Makes all flows in an order of their own and compares what comes out. In words: what was compared.
fn establish(context: &Context, run: &Run, mode: Mode, traffic: Traffic) -> Result<String> {
    let input = run.path("first.pcap");
    let passes = FIRST_PASS.div_ceil(traffic.flows);
    let frames = traffic.write(&input, context.seed, "first order", passes)?;
    let output = run.path("out.pcap");
    let plan = Plan {
        mode,
        traffic,
        entries: entries_for(traffic.flows),
        device: format!("pcap:{},{}", input.display(), output.display()),
        buffers: SPARE,
        room: room_for(0),
    };
    let mut weir = Instance::start(run, &context.binaries, &plan.toml())?;
    let counters = weir.counters()?;
    wait_for("the first pass to be read", Duration::from_secs(60), || {
        weir.dataplane.must_run()?;
        Ok((counters.received() >= u64::from(frames)).then_some(()))
    })?;
    pause(Duration::from_millis(20))?;
    let moment = counters.now();
    ensure!(
        moment.flows >= u64::from(traffic.flows) * 99 / 100,
        "the first pass made {} of {} flows; drops: {}",
        moment.flows,
        traffic.flows,
        counters.drops()
    );
    weir.stop()?;
    let words = check::output(&output, mode, traffic)?;
    // gigabytes of captures would pile up otherwise
    std::fs::remove_file(&input)?;
    std::fs::remove_file(&output)?;
    Ok(words)
}

/// All flows are there, and a whole pass made none, dropped nothing and was held up by nothing.
fn await_established(counters: &Counters, flows: u32) -> Result<()> {
    wait_for("every flow to be established", Duration::from_secs(60), || {
        let before = counters.now();
        pause(Duration::from_millis(30))?;
        let after = counters.now();
        let quiet = after.created == before.created
            && after.dropped == before.dropped
            && after.held == 0
            && after.fallback == before.fallback;
        // twice: the first pass makes what is missing, and the second packet of a connection establishes it
        let passed = after.rx >= 3 * u64::from(flows);
        Ok((quiet && passed && after.flows == u64::from(flows)).then_some(()))
    })
    .with_context(|| format!("{} of {flows} flows are there", counters.now().flows))
}
