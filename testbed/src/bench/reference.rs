//! How fast is this machine beside the one that the targets were set for? Two reference points that contain nothing of
//! Weir: what a packet costs testpmd on a driver that only copies, and what a random line of memory costs.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hugepages::prefetch;
use hugepages::segment::{Access, SegmentDir, SharedSlice};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::result::{Figure, median};
use super::testpmd::Testpmd;
use super::{Bench, Context};
use crate::interrupt;
use crate::random::Random;
use crate::run::{Run, hugetlb_mounts};
use crate::setup::Pages;

/// testpmd 5tswap on two net_null ports with copy, on the reference machine (Zen 5 class).
pub(crate) const TESTPMD_NS: f64 = 10.7;
/// A line of a prefetched burst there: 10 to 11 ns.
pub(crate) const LINE_NS: f64 = 10.5;
/// A line that the one before it leads to there: 160 to 170 ns.
pub(crate) const DEPENDENT_NS: f64 = 165.0;
/// Memory of the random lines.
const BYTES: usize = 128 << 20;
/// Lines in it.
const LINES: usize = BYTES / 64;
/// Lines that are asked for before the first is read.
const BURST: usize = 32;
/// Lines between two looks at the clock.
const BATCH: usize = 1 << 15;
/// Pages of 2 MiB that testpmd needs for its buffers.
const TESTPMD_PAGES: u64 = 128;
/// CPU of the loop; the worker's.
const CPU: usize = 1;

/// A line of memory: the first word leads to another line.
type Line = [u64; 8];

/// Runs the cases that are wanted.
pub(crate) fn run(bench: &mut Bench<'_>) {
    bench.case("reference/testpmd-null", testpmd);
    bench.case("reference/random-lines", lines);
}

fn figure(
    case: &str,
    implementation: &'static str,
    metric: &'static str,
    values: Vec<f64>,
    how: &str,
) -> Figure {
    println!("      {metric} {:.1}", median(&values));
    Figure { case: case.to_owned(), implementation, metric, unit: "ns", values, setup: how.to_owned() }
}

fn testpmd(context: &Context) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let _pages = Pages::reserve(TESTPMD_PAGES)?;
    let mut testpmd = Testpmd::on_null(run.name())?;
    interrupt::pause(context.thaw)?;
    let mut values = Vec::new();
    for _ in 0..context.windows {
        values.push(testpmd.window_of_both(context.window)?.ns);
    }
    let how = format!(
        "5tswap on CPU 1 at nice -19 between two net_null ports with size=64, copy=1, burst 32; both ports' packets; \
         {TESTPMD_NS} ns on the reference machine"
    );
    Ok(vec![figure("reference/testpmd-null", "testpmd", "ns_per_packet", values, &how)])
}

fn lines(context: &Context) -> Result<Vec<Figure>> {
    let run = Run::new()?;
    let pages = BYTES.div_ceil(2 << 20) as u64 + 1;
    let _pages = Pages::reserve(pages)?;
    let mount = hugetlb_mounts().into_iter().next().context("no hugetlbfs is mounted")?;
    let directory = SegmentDir::open(mount.join(format!("weir-{}", run.name())))?;
    let (seed, window, windows) = (context.seed, context.window, context.windows);
    // a thread of its own, so that only it is pinned
    let (batched, dependent) = std::thread::spawn(move || {
        let mut cpus = CpuSet::new();
        cpus.set(CPU);
        sched_setaffinity(None, &cpus).context("run on CPU 1")?;
        let mut memory: SharedSlice<u64, Line> = directory.map_shared("lines", LINES, Access::Create)?;
        link(&mut memory, seed);
        let (mut batched, mut dependent) = (Vec::new(), Vec::new());
        let mut place = Place { random: seed | 1, line: 0 };
        for _ in 0..windows {
            interrupt::check()?;
            batched.push(timed(window, || place.burst(&memory)));
            dependent.push(timed(window, || place.walk(&memory)));
        }
        Ok::<_, anyhow::Error>((batched, dependent))
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the loop panicked"))??;
    let how = format!(
        "one thread on CPU 1, lines of 64 B at random in 128 MiB of 2 MiB hugepages; ns_per_line: {BURST} at a time, \
         asked for before the first is read, {LINE_NS} ns on the reference machine; ns_per_dependent_line: each names \
         the next, {DEPENDENT_NS} ns there"
    );
    let case = "reference/random-lines";
    Ok(vec![
        figure(case, "memory", "ns_per_line", batched, &how),
        figure(case, "memory", "ns_per_dependent_line", dependent, &how),
    ])
}

/// Makes one circle through all lines, in random order.
fn link(memory: &mut [Line], seed: u64) {
    let mut order: Vec<u32> = (0..memory.len() as u32).collect();
    Random::new(seed, "lines").shuffle(&mut order);
    let next = order.iter().skip(1).chain(order.first());
    for (&from, &to) in order.iter().zip(next) {
        if let Some(line) = memory.get_mut(from as usize) {
            line[0] = u64::from(to);
        }
    }
}

/// Nanoseconds per line of a batch that is repeated for so long.
fn timed(length: Duration, mut batch: impl FnMut() -> u64) -> f64 {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < length {
        black_box(batch());
        count += BATCH;
    }
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Where the loop is.
struct Place {
    random: u64,
    line: usize,
}

impl Place {
    /// Some line, without a look at memory (xorshift).
    #[inline(always)]
    fn any(&mut self, lines: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // the high half times the count: as good as a remainder, and no division
        ((self.random >> 32) as usize * lines) >> 32
    }

    #[inline(never)]
    fn burst(&mut self, memory: &[Line]) -> u64 {
        let mut sum = 0u64;
        let mut wanted = [0usize; BURST];
        for _ in 0..BATCH / BURST {
            for slot in &mut wanted {
                *slot = self.any(memory.len());
                prefetch::read_slice_at(memory, *slot);
            }
            for &slot in &wanted {
                sum = sum.wrapping_add(memory.get(slot).map_or(0, |line| line[0]));
            }
        }
        sum
    }

    #[inline(never)]
    fn walk(&mut self, memory: &[Line]) -> u64 {
        for _ in 0..BATCH {
            self.line = memory.get(self.line).map_or(0, |line| line[0] as usize);
        }
        self.line as u64
    }
}

/// How many times the reference machine's time this one needs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Factors {
    /// For testpmd on net_null.
    pub(crate) packet: Option<f64>,
    /// For prefetched lines.
    pub(crate) line: Option<f64>,
    /// For dependent lines.
    pub(crate) dependent: Option<f64>,
}

impl Factors {
    /// From the figures of the reference cases, where they ran.
    pub(crate) fn of(figures: &[Figure]) -> Self {
        let factor = |metric: &str, reference: f64| {
            let measured = figures
                .iter()
                .find(|figure| figure.case.starts_with("reference/") && figure.metric == metric);
            measured.map(|figure| figure.median() / reference)
        };
        Self {
            packet: factor("ns_per_packet", TESTPMD_NS),
            line: factor("ns_per_line", LINE_NS),
            dependent: factor("ns_per_dependent_line", DEPENDENT_NS),
        }
    }

    /// The factor by which a missed time is scaled: that of a packet where the flows fit into a cache, and the smaller
    /// of both where each look-up waits for memory, so that the machine is never blamed for more than it can be shown
    /// to be slower. `None` where it is no slower, or where it is not known.
    pub(crate) fn scale(&self, in_cache: bool) -> Option<f64> {
        let packet = self.packet?;
        let factor = if in_cache { packet } else { packet.min(self.line?) };
        Some(factor).filter(|factor| *factor > 1.0)
    }

    /// On a line of its own.
    pub(crate) fn words(&self) -> Option<String> {
        let part =
            |factor: Option<f64>, what: &str| factor.map(|factor| format!("{factor:.2} times for {what}"));
        let parts: Vec<String> = [
            part(self.packet, "a packet of testpmd on net_null"),
            part(self.line, "a prefetched random line"),
            part(self.dependent, "a dependent random line"),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!parts.is_empty())
            .then(|| format!("this machine needs the reference machine's time {}", parts.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_circle_visits_every_line() {
        let mut memory = vec![[0u64; 8]; 1_000];
        link(&mut memory, 7);
        let mut seen = std::collections::HashSet::new();
        let mut line = 0;
        while seen.insert(line) {
            line = memory[line][0] as usize;
        }
        assert_eq!((seen.len(), line), (1_000, 0));
    }

    #[test]
    fn random_lines_are_in_range_and_spread() {
        let mut place = Place { random: 1, line: 0 };
        let mut tenths = [0u32; 10];
        for _ in 0..100_000 {
            tenths[place.any(1_000) / 100] += 1;
        }
        assert!(tenths.iter().all(|&count| (9_000..11_000).contains(&count)), "{tenths:?}");
    }

    #[test]
    fn factors_come_from_the_reference_cases_alone() {
        let reference = |case: &str, metric, value| Figure {
            case: case.to_owned(),
            implementation: "testpmd",
            metric,
            unit: "ns",
            values: vec![value],
            setup: String::new(),
        };
        let other = reference("dsr/ipv4/1k", "ns_per_packet", 99.0);
        assert_eq!(Factors::of(std::slice::from_ref(&other)), Factors::default());
        let both = [
            other,
            reference("reference/testpmd-null", "ns_per_packet", 21.4),
            reference("reference/random-lines", "ns_per_line", 15.75),
        ];
        let factors = Factors::of(&both);
        assert_eq!((factors.scale(true), factors.scale(false)), (Some(2.0), Some(1.5)));
        let no_slower = Factors { line: Some(0.97), ..factors };
        assert_eq!((no_slower.scale(true), no_slower.scale(false)), (Some(2.0), None));
        assert!(factors.words().unwrap().contains("2.00 times for a packet"));
    }
}
