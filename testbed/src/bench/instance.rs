//! Weir on captures instead of links: both processes without a lab, and its counters read as fast as a window needs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hugepages::segment::{Access, AtomicWords, SegmentDir};
use rustix::process::{Pid, Signal, kill_process};
use weir_abi::columns::{PortColumn, WorkerColumn};
use weir_abi::counters::Reader;

use crate::interrupt;
use crate::run::{Run, SHM};
use crate::setup::Binaries;
use crate::status::Status;
use crate::supervisor::{Process, Program};
use crate::topology::namespace::Namespace;
use crate::weir::ctlplane_program;

/// Gigabytes of buffers are zeroed by the kernel and a capture is read into them before the first packet.
const START: Duration = Duration::from_secs(90);
/// Largest counters segment.
const MOST_WORDS: usize = 1 << 27;
/// CPU of the one worker.
pub(crate) const WORKER_CPU: &str = "1";
/// Priority of what is measured, Weir and its peers alike: before anything ordinary that the machine has to do.
pub(crate) const NICE: &str = "-19";
/// CPU of everything else.
const OTHER_CPU: &str = "0";

/// Both processes.
#[derive(Debug)]
pub(crate) struct Instance {
    ctlplane: Process,
    /// The packet process.
    pub(crate) dataplane: Process,
    binaries: Binaries,
    name: String,
    sockets: PathBuf,
    state: PathBuf,
}

impl Instance {
    /// Starts both, everything but the worker kept off the worker's CPU, and waits until the configuration is in force.
    /// An instance of the same run that was stopped before leaves its flows to this one, and nothing else.
    pub(crate) fn start(run: &Run, binaries: &Binaries, config: &str) -> Result<Self> {
        let mut instance = Self::launch(run, binaries, config)?;
        instance.await_serving()?;
        Ok(instance)
    }

    /// The same, the control process in a namespace.
    pub(crate) fn start_within(
        run: &Run,
        binaries: &Binaries,
        config: &str,
        namespace: &Namespace,
    ) -> Result<Self> {
        let mut instance = Self::launch_as(run, binaries, config, |ctlplane| ctlplane.within(namespace))?;
        instance.await_serving()?;
        Ok(instance)
    }

    /// The same without waiting for anything.
    pub(crate) fn launch(run: &Run, binaries: &Binaries, config: &str) -> Result<Self> {
        Self::launch_as(run, binaries, config, |ctlplane| ctlplane)
    }

    fn launch_as(
        run: &Run,
        binaries: &Binaries,
        config: &str,
        change: impl FnOnce(Program) -> Program,
    ) -> Result<Self> {
        let path = run.path("weir.toml");
        std::fs::write(&path, config).with_context(|| format!("could not write {}", path.display()))?;
        let (sockets, state) = (run.path("run"), run.path("state"));
        let ctlplane = change(ctlplane_program(run, binaries, &path)).on_cpus(OTHER_CPU);
        let dataplane = Program::new(
            "weir-dataplane",
            "nice",
            &[
                "-n",
                NICE,
                &binaries.dataplane.display().to_string(),
                "--instance",
                run.name(),
                "--shm-dir",
                SHM,
            ],
        )
        .on_cpus(OTHER_CPU);
        Ok(Self {
            ctlplane: Process::start(ctlplane, &run.logs())?,
            dataplane: Process::start(dataplane, &run.logs())?,
            binaries: binaries.clone(),
            name: run.name().to_owned(),
            sockets,
            state,
        })
    }

    /// Waits until the configuration is in force.
    pub(crate) fn await_serving(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            self.ctlplane.must_run()?;
            self.dataplane.must_run()?;
            let status = self.status()?;
            if let Some(status) = &status {
                if let Some(refusal) = &status.dataplane.refusal {
                    bail!("the dataplane refused the configuration: {refusal}");
                }
                if status.serving() {
                    return Ok(());
                }
            }
            if start.elapsed() > START {
                bail!(
                    "waited {} s for Weir to serve; status: {}\n  dataplane:\n{}  ctlplane:\n{}",
                    START.as_secs(),
                    status.map_or("none".to_owned(), |status| status.summary()),
                    self.dataplane.last_words(10),
                    self.ctlplane.last_words(10)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `weir status --json` says; `None` when it says nothing yet.
    pub(crate) fn status(&self) -> Result<Option<Status>> {
        let mut command = Command::new(&self.binaries.weir);
        command.args(["--instance", &self.name, "--run-dir"]).arg(&self.sockets);
        let output = command.args(["--shm-dir", SHM, "status", "--json"]).output()?;
        if output.stdout.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&output.stdout).map(Some).context("weir status --json")
    }

    /// Socket of the control process.
    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.join(format!("{}.sock", self.name))
    }

    /// The control process's id; `None` where it has ended.
    pub(crate) fn ctlplane_id(&self) -> Option<u32> {
        self.ctlplane.id()
    }

    /// Counters of the process that runs now.
    pub(crate) fn counters(&self) -> Result<Counters> {
        let directory = SegmentDir::open_existing(Path::new(SHM).join(format!("weir-{}", self.name)))?;
        let words = directory.map_atomics("counters", MOST_WORDS, Access::ReadOnly)?;
        Ok(Counters { reader: Reader::open(words)? })
    }

    /// Ends both in the ordinary way, so that captures are complete, and forgets what was published: the next start must
    /// not find this one's ports. Flow tables stay.
    pub(crate) fn stop(mut self) -> Result<()> {
        for process in [&mut self.dataplane, &mut self.ctlplane] {
            let name = process.name().to_owned();
            if let Some(status) = process.stop()? {
                ensure!(status.success(), "{name} ended with {status}:\n{}", process.last_words(10));
            }
        }
        for directory in [Path::new(SHM).join(format!("weir-{}", self.name)), self.state.clone()] {
            std::fs::remove_dir_all(&directory)
                .with_context(|| format!("could not remove {}", directory.display()))?;
        }
        Ok(())
    }

    /// Stops the dataplane until the value is dropped.
    pub(crate) fn freeze(&self) -> Result<Frozen> {
        Frozen::new(self.dataplane.id())
    }
}

/// A process that is stopped meanwhile.
#[derive(Debug)]
pub(crate) struct Frozen(Pid);

impl Frozen {
    /// Stops it.
    pub(crate) fn new(id: Option<u32>) -> Result<Self> {
        let pid = id.and_then(|id| Pid::from_raw(id as i32)).context("the process does not run")?;
        kill_process(pid, Signal::STOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // a child of ours that was not waited for: its id can't have changed hands
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The one worker's counters.
#[derive(Debug)]
pub(crate) struct Counters {
    reader: Reader<AtomicWords>,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// When.
    pub(crate) at: Instant,
    /// Received.
    pub(crate) rx: u64,
    /// Sent.
    pub(crate) tx: u64,
    /// Consumed minus generated: what entered and left without being sent on.
    pub(crate) own: u64,
    /// Waiting for a neighbour.
    pub(crate) held: u64,
    /// Dropped.
    pub(crate) dropped: u64,
    /// Balanced without a flow.
    pub(crate) fallback: u64,
    /// Flows ever made.
    pub(crate) created: u64,
    /// Flows ended to make room.
    pub(crate) evicted: u64,
    /// Live flows of both families.
    pub(crate) flows: u64,
    /// TSC cycles since the worker's start, told every millisecond.
    pub(crate) cycles: u64,
}

impl Counters {
    /// Now.
    pub(crate) fn now(&self) -> Moment {
        let group = self.reader.group(WorkerColumn::GROUP);
        let value = |column: WorkerColumn| group.as_ref().map_or(0, |group| group.sum_of(0, column.name()));
        Moment {
            at: Instant::now(),
            rx: value(WorkerColumn::RxPackets),
            tx: value(WorkerColumn::TxPackets),
            own: value(WorkerColumn::Consumed).wrapping_sub(value(WorkerColumn::Generated)),
            held: value(WorkerColumn::Held),
            dropped: value(WorkerColumn::Dropped),
            fallback: value(WorkerColumn::HashFallback),
            created: value(WorkerColumn::FlowsCreated),
            evicted: value(WorkerColumn::FlowsEvicted),
            flows: value(WorkerColumn::FlowsIpv4) + value(WorkerColumn::FlowsIpv6),
            cycles: value(WorkerColumn::TotalCycles),
        }
    }

    /// Packets that the first port received.
    pub(crate) fn received(&self) -> u64 {
        self.reader.group(PortColumn::GROUP).map_or(0, |group| group.sum_of(0, PortColumn::RxPackets.name()))
    }

    /// Drop reasons that counted something, in words.
    pub(crate) fn drops(&self) -> String {
        let Some(group) = self.reader.group(weir_abi::columns::DROP_GROUP) else { return String::new() };
        let words: Vec<String> = group
            .columns()
            .map(|column| (column, group.sum_of(0, column)))
            .filter(|(_, count)| *count > 0)
            .map(|(column, count)| format!("{column} {count}"))
            .collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    }
}

/// How much of its CPU a thread that never sleeps was given: on a machine with other work, less than all.
#[derive(Debug)]
pub(crate) struct Share {
    path: Option<PathBuf>,
    start: (Instant, u64),
}

/// Below this share the time that others took is taken out of a figure; above it the scheduler's clock, which may be a
/// tick late, would add more noise than it removes.
const WHOLE: f64 = 0.98;

impl Share {
    /// Starts to look at the thread of that name.
    pub(crate) fn of(process: Option<u32>, thread: &str) -> Self {
        let path = process.and_then(|id| {
            let threads = std::fs::read_dir(format!("/proc/{id}/task")).ok()?;
            threads
                .filter_map(|entry| Some(entry.ok()?.path()))
                .find(|path| {
                    std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim().ends_with(thread))
                })
                .map(|path| path.join("schedstat"))
        });
        let start = (Instant::now(), ran_ns(path.as_deref()));
        Self { path, start }
    }

    /// The share since then, or 1 where it was as good as all, or where the kernel doesn't tell.
    pub(crate) fn end(self) -> f64 {
        let wall = self.start.0.elapsed().as_nanos() as f64;
        let ran = ran_ns(self.path.as_deref()).saturating_sub(self.start.1) as f64;
        let share = ran / wall;
        if self.path.is_none() || share >= WHOLE { 1.0 } else { share }
    }
}

/// Nanoseconds that a thread has run: the first figure of its schedstat.
fn ran_ns(path: Option<&Path>) -> u64 {
    path.and_then(|path| std::fs::read_to_string(path).ok())
        .and_then(|text| text.split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// What happened between two moments of a steady state.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Nanoseconds per packet, without what others took.
    pub(crate) ns: f64,
    /// Share of the CPU that was left.
    pub(crate) share: f64,
}

/// Measures a window and checks that every packet of it was sent on.
pub(crate) fn window(weir: &Instance, counters: &Counters, length: Duration) -> Result<Window> {
    /// Packets that a burst or two hold while the counters are read.
    const IN_FLIGHT: u64 = 256;
    let share = Share::of(weir.dataplane.id(), "worker-0");
    let before = counters.now();
    interrupt::pause(length)?;
    let after = counters.now();
    let share = share.end();
    let (rx, tx) = (after.rx - before.rx, after.tx - before.tx);
    ensure!(rx > 10_000, "only {rx} packets came in {length:?}");
    let own = after.own.wrapping_sub(before.own) as i64;
    let dropped = after.dropped - before.dropped;
    ensure!(
        dropped == 0,
        "{dropped} of {rx} packets were dropped in a window; all drops: {}",
        counters.drops()
    );
    let lost = rx as i64 - tx as i64 - own;
    ensure!(lost.unsigned_abs() <= IN_FLIGHT, "{rx} packets came and {tx} left: {lost} are missing");
    ensure!(after.fallback == before.fallback, "packets were balanced without a flow");
    ensure!(after.created == before.created, "flows were made in a window that should only look them up");
    let ns = (after.at - before.at).as_nanos() as f64 / rx as f64 * share;
    Ok(Window { ns, share })
}
