//! What does a packet of an established flow cost? Each mode, both families, 1,000 to 4 million flows.
//!
//! A first pass makes the flows in one order and its output is compared with what the mode must make of a packet. Then
//! Weir is started again for each mode in turn, takes the flows over, and is measured on another order, window by window
//! in turn with testpmd. Modes that made no flows themselves are compared in a pass of their own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};

use super::capture::{BACKENDS, Content, OWN, Traffic, backend};
use super::check;
use super::instance::{Counters, Instance, window};
use super::result::{Figure, median};
use super::testpmd::Testpmd;
use super::{Bench, Context, Laps};
use crate::config::Mode;
use crate::interrupt::{self, pause, wait_for};
use crate::run::{Run, SHM};
use crate::setup::Pages;
use crate::topology::lab::{Family, vip};
use crate::traffic::servers::{SERVER_PORT, VIP_PORT};

/// Numbers of flows by their name.
const SIZES: [(&str, u32); 4] = [("1k", 1_000), ("100k", 100_000), ("1m", 1_000_000), ("4m", 4_000_000)];
/// Buffers beside those that hold the capture.
const SPARE: u32 = 16_384;
/// Bytes of a hugepage.
const PAGE: u64 = 2 << 20;
/// Flows of the pass that is compared where the mode did not make the flows itself.
const COMPARED: u32 = 100_000;
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

/// Pages that Weir and testpmd need together.
fn pages_of(flows: u32) -> u64 {
    let (buffers, bytes) = (flows + u32::from(BACKENDS) + SPARE, room_for(flows).0);
    pages_for(buffers, bytes, 0) + pages_for(buffers, bytes, entries_for(flows))
}

/// Data room per buffer, and the MTU that fits it: small where four million buffers have to fit twice, and large
/// enough for IPv6's least MTU inside every tunnel.
pub(crate) fn room_for(flows: u32) -> (u32, u16) {
    if flows > 1_500_000 { (1_408, 1_360) } else { (2_048, 1_500) }
}

fn case(mode: Mode, family: Family, size: &str) -> String {
    format!("{}/{}/{size}", mode.name(), family.name())
}

/// What was compared to the byte so far: mode, family, and in words.
type Compared = Vec<(Mode, Family, String)>;

/// Runs the cases that are wanted. The pages that the largest needed are for who comes next: a virtual machine gives
/// what it frees back to its host, and is slow to get it again.
pub(crate) fn run(bench: &mut Bench<'_>) -> Option<Pages> {
    let mut compared = Compared::new();
    let most = SIZES
        .into_iter()
        .filter(|(size, _)| {
            let mut cases = Mode::ALL.into_iter().flat_map(|mode| Family::BOTH.map(|family| (mode, family)));
            cases.any(|(mode, family)| bench.wants(&case(mode, family, size)))
        })
        .map(|(_, flows)| pages_of(flows))
        .max();
    // where they can't be had, the cases that need them say so
    let pages = most.and_then(|most| Pages::reserve(most).ok());
    if let Some(Err(error)) = pages.as_ref().map(Pages::touch) {
        println!("  the pages are as they are: {error:#}");
    }
    for (size, flows) in SIZES {
        for family in Family::BOTH {
            for content in [Content::Ack, Content::Datagram] {
                let fits = |mode: &Mode| (*mode == Mode::Fullnat) == (content == Content::Datagram);
                let modes: Vec<Mode> = Mode::ALL
                    .into_iter()
                    .filter(fits)
                    .filter(|mode| bench.wants(&case(*mode, family, size)))
                    .collect();
                if modes.is_empty() || interrupt::arrived() {
                    continue;
                }
                let traffic = Traffic { family, content, flows };
                group(bench, size, traffic, &modes, &mut compared);
            }
        }
    }
    pages
}

/// All modes that play one capture, and testpmd beside them.
fn group(bench: &mut Bench<'_>, size: &str, traffic: Traffic, modes: &[Mode], compared: &mut Compared) {
    let name = |mode: Mode| case(mode, traffic.family, size);
    let Some(&first) = modes.first() else { return };
    let mut stage = match Stage::set(&bench.context, traffic, first, compared) {
        Ok(stage) => stage,
        Err(error) => {
            modes.iter().for_each(|mode| bench.failed(&name(*mode), &error));
            return;
        }
    };
    for &mode in modes {
        bench.case(&name(mode), |context| {
            let words = words_for(context, mode, traffic.family, compared)?;
            let Stage { testpmd, capture, flows, .. } = &mut stage;
            measure(context, flows, (mode, traffic, capture), testpmd, (&name(mode), &words))
        });
    }
}

/// What was compared of a mode; compares it now where no group did.
fn words_for(context: &Context, mode: Mode, family: Family, compared: &mut Compared) -> Result<String> {
    if let Some((_, _, words)) = compared.iter().find(|(other, of, _)| (*other, *of) == (mode, family)) {
        return Ok(words.clone());
    }
    let content = if mode == Mode::Fullnat { Content::Datagram } else { Content::Ack };
    let run = Run::new()?;
    let traffic = Traffic { family, content, flows: COMPARED };
    let captures = Captures::of(&run)?;
    let input = captures.path("first.pcap");
    let frames = traffic.write(&input, context.seed, "first order", FIRST_PASS.div_ceil(COMPARED))?;
    let words = establish(context, &run, mode, traffic, (&input, frames), Output::Compared)?;
    compared.push((mode, family, words.clone()));
    Ok(words)
}

/// A directory for captures, in memory: nothing must be written to a disk meanwhile. Removed with the value, or by the
/// sweep, which knows it by its name.
struct Captures(PathBuf);

impl Captures {
    fn of(run: &Run) -> Result<Self> {
        // another name than the run's own segments have, which a stopped instance takes away
        let directory = Path::new(SHM).join(format!("weir-{}-captures", run.name()));
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("could not create {}", directory.display()))?;
        Ok(Self(directory))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Captures {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What the modes share: one capture, one testpmd, and the flows, which each mode takes over from the one before.
struct Stage {
    testpmd: Testpmd,
    capture: PathBuf,
    _captures: Captures,
    flows: Run,
    _pages: Pages,
}

impl Stage {
    fn set(context: &Context, traffic: Traffic, mode: Mode, compared: &mut Compared) -> Result<Self> {
        let mut laps = Laps::start();
        let (run, flows) = (Run::new()?, Run::new()?);
        let captures = Captures::of(&run)?;
        let (capture, first) = (captures.path("order.pcap"), captures.path("first.pcap"));
        let passes = FIRST_PASS.div_ceil(traffic.flows);
        let (frames, first_frames) = std::thread::scope(|scope| {
            let other = scope.spawn(|| traffic.write(&first, context.seed, "first order", passes));
            let frames = traffic.write(&capture, context.seed, "measured order", 1)?;
            let first_frames = other.join().map_err(|_| anyhow!("writing a capture panicked"))??;
            Ok::<_, anyhow::Error>((frames, first_frames))
        })?;
        laps.lap("captures");
        let (buffers, bytes) = (frames + SPARE, room_for(traffic.flows).0);
        let pages = Pages::reserve(pages_of(traffic.flows))?;
        let known = compared.iter().any(|(other, family, _)| (*other, *family) == (mode, traffic.family));
        let output = if known { Output::Discarded } else { Output::Compared };
        let (testpmd, words) = std::thread::scope(|scope| {
            let pass =
                scope.spawn(|| establish(context, &flows, mode, traffic, (&first, first_frames), output));
            // not the other way round: testpmd is killed when the thread that started it ends
            let testpmd = Testpmd::start(run.name(), &capture, buffers, bytes);
            let frozen = testpmd.as_ref().ok().and_then(|testpmd| testpmd.freeze().ok());
            let words = pass.join().map_err(|_| anyhow!("the first pass panicked"))?;
            drop(frozen);
            Ok::<_, anyhow::Error>((testpmd?, words?))
        })?;
        if output == Output::Compared {
            compared.push((mode, traffic.family, words));
        }
        laps.lap("first pass and testpmd's start");
        println!("  {} {} flows: {laps}", traffic.flows, traffic.family.name());
        Ok(Self { testpmd, capture, _captures: captures, flows, _pages: pages })
    }
}

fn measure(
    context: &Context,
    flows: &Run,
    (mode, traffic, capture): (Mode, Traffic, &Path),
    testpmd: &mut Testpmd,
    (case, compared): (&str, &str),
) -> Result<Vec<Figure>> {
    let mut laps = Laps::start();
    let mut frozen = Some(testpmd.freeze()?);
    let frames = traffic.flows + u32::from(BACKENDS);
    let plan = Plan {
        mode,
        traffic,
        entries: entries_for(traffic.flows),
        device: format!("pcap:{},,infinite", capture.display()),
        buffers: frames + SPARE,
        room: room_for(traffic.flows),
    };
    let weir = Instance::start(flows, &context.binaries, &plan.toml())?;
    laps.lap("start");
    let counters = weir.counters()?;
    await_established(&counters, traffic.flows).with_context(|| format!("drops: {}", counters.drops()))?;
    laps.lap("warm-up");
    let start = counters.now();
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for _ in 0..context.windows {
        own.push(window(&weir, &counters, context.window)?);
        let paused = weir.freeze()?;
        drop(frozen.take());
        pause(context.thaw)?;
        others.push(testpmd.window(context.window)?);
        frozen = Some(testpmd.freeze()?);
        drop(paused);
        pause(context.thaw)?;
    }
    laps.lap("windows");
    let end = counters.now();
    let hertz = (end.cycles - start.cycles) as f64 / (end.at - start.at).as_secs_f64();
    weir.stop()?;
    laps.lap("stop");
    println!("      {laps}");
    let least = own.iter().chain(&others).map(|window| window.share).fold(1.0, f64::min);
    let others_took = if least < 1.0 {
        format!("; others took up to {:.0} % of CPU 1, which is taken out", (1.0 - least) * 100.0)
    } else {
        String::new()
    };
    let setup = format!(
        "1 worker on CPU 1 at nice -19, {} B {} in buffers of {} B, net_pcap infinite_rx (its copy included), \
         tx discarded, burst 32, {BACKENDS} backends, flows in random order, made in another; {compared}; what all windows sent is counted{others_took}",
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

/// What becomes of the packets of a first pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    /// Written to a capture, and a sample of it compared with what the mode must make of a packet.
    Compared,
    /// Thrown away: the same mode was compared on fewer flows.
    Discarded,
}

/// Makes all flows in an order of their own. In words: what was compared.
fn establish(
    context: &Context,
    run: &Run,
    mode: Mode,
    traffic: Traffic,
    (input, frames): (&Path, u32),
    output: Output,
) -> Result<String> {
    let written = input.with_file_name("out.pcap");
    let place = if output == Output::Compared { written.display().to_string() } else { String::new() };
    let plan = Plan {
        mode,
        traffic,
        entries: entries_for(traffic.flows),
        device: format!("pcap:{},{place}", input.display()),
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
    // gigabytes of captures would pile up otherwise
    std::fs::remove_file(input)?;
    if output == Output::Discarded {
        return Ok(String::new());
    }
    let words = check::output(&written, mode, traffic)?;
    std::fs::remove_file(&written)?;
    Ok(format!("{words} in a pass over {} flows", traffic.flows))
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
        // the first pass made them; in this one each packet found its own
        let passed = after.rx >= u64::from(flows) + u64::from(BACKENDS);
        Ok((quiet && passed && after.flows == u64::from(flows)).then_some(()))
    })
    .with_context(|| format!("{} of {flows} flows are there", counters.now().flows))
}
