//! Weir under test: both of its processes on one lab, and its command line.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::command;
use crate::interrupt::{self, wait_for};
use crate::run::{Run, SHM};
use crate::setup::Binaries;
use crate::status::Status;
use crate::supervisor::{Process, Program};
use crate::topology::lab::Lab;

/// How long the dataplane may take from its start to its first packet.
const START: Duration = Duration::from_secs(20);
/// How long counters may take to settle after the last packet: longest hold is an unanswered neighbour query.
const QUIET: Duration = Duration::from_secs(8);

/// How Weir is to be run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Leaves the processes running when the testbed ends.
    pub(crate) stays: bool,
    /// More arguments for the dataplane.
    pub(crate) dataplane_arguments: Vec<String>,
}

/// Both processes.
#[derive(Debug)]
pub(crate) struct Weir {
    instance: String,
    binaries: Binaries,
    run_directory: PathBuf,
    config: PathBuf,
    /// The control process.
    pub(crate) ctlplane: Process,
    /// The packet process.
    pub(crate) dataplane: Process,
}

/// The control process of a run, with its directories and the configuration at `config`.
pub(crate) fn ctlplane_program(run: &Run, binaries: &Binaries, config: &Path) -> Program {
    Program::new(
        "weir-ctlplane",
        &binaries.ctlplane,
        &[
            "--config",
            &config.display().to_string(),
            "--instance",
            run.name(),
            "--state-dir",
            &run.path("state").display().to_string(),
            "--run-dir",
            &run.path("run").display().to_string(),
            "--shm-dir",
            SHM,
        ],
    )
}

impl Weir {
    /// Starts both with that configuration and waits until packets are carried.
    pub(crate) fn start(run: &Run, lab: &Lab, binaries: &Binaries, config: &str) -> Result<Self> {
        Self::start_with(run, lab, binaries, config, &Options::default())
    }

    /// The same, with options.
    pub(crate) fn start_with(
        run: &Run,
        lab: &Lab,
        binaries: &Binaries,
        config: &str,
        options: &Options,
    ) -> Result<Self> {
        let path = run.path("weir.toml");
        std::fs::write(&path, config).with_context(|| format!("could not write {}", path.display()))?;
        // the kernel's interfaces are in the dataplane's namespace
        let mut ctlplane = ctlplane_program(run, binaries, &path).within(&lab.lb);
        ctlplane.stays = options.stays;
        let mut dataplane = Program::new(
            "weir-dataplane",
            &binaries.dataplane,
            &["--instance", run.name(), "--shm-dir", SHM],
        )
        .within(&lab.lb);
        dataplane.arguments.extend(options.dataplane_arguments.iter().cloned());
        dataplane.stays = options.stays;
        let ctlplane = Process::start(ctlplane, &run.logs())?;
        let dataplane = Process::start(dataplane, &run.logs())?;
        let mut weir = Self {
            instance: run.name().to_owned(),
            binaries: binaries.clone(),
            run_directory: run.path("run"),
            config: path,
            ctlplane,
            dataplane,
        };
        weir.wait_until_serving(lab)?;
        Ok(weir)
    }

    /// Waits until every worker runs the published generation; an error with the reason when it was refused or a
    /// process ended.
    pub(crate) fn wait_until_serving(&mut self, lab: &Lab) -> Result<()> {
        let start = Instant::now();
        loop {
            interrupt::check()?;
            self.must_run()?;
            let attached = lab.attach_taps()?;
            let status = self.try_status()?;
            if let Some(status) = &status {
                if let Some(refusal) = status.refusal() {
                    bail!("the dataplane refused the configuration: {refusal}");
                }
                if attached && status.serving() {
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

    /// An error with its last words when one of the two has ended by itself.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        self.ctlplane.must_run()?;
        self.dataplane.must_run()
    }

    /// Its directory of shared segments.
    pub(crate) fn segments(&self) -> PathBuf {
        Path::new(SHM).join(format!("weir-{}", self.instance))
    }

    /// `weir …` for this instance.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binaries.weir);
        command.args(["--instance", &self.instance, "--run-dir"]).arg(&self.run_directory);
        command.args(["--shm-dir", SHM]).args(arguments);
        command
    }

    /// Runs `weir …`, which must succeed.
    pub(crate) fn weir(&self, arguments: &[&str]) -> Result<String> {
        command::run(&mut self.cli(arguments))
    }

    /// Puts another configuration in force.
    pub(crate) fn apply(&self, config: &str) -> Result<String> {
        let path = self.config.with_extension("next.toml");
        std::fs::write(&path, config)?;
        self.weir(&["apply", &path.display().to_string()])
    }

    /// What `weir status --json` says; `None` when it says nothing yet.
    pub(crate) fn try_status(&self) -> Result<Option<Status>> {
        let output = self.cli(&["status", "--json"]).output().context("could not run weir status")?;
        if output.stdout.is_empty() {
            return Ok(None);
        }
        let status = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("weir status --json printed {}", String::from_utf8_lossy(&output.stdout).trim())
        })?;
        Ok(Some(status))
    }

    /// What `weir status --json` says.
    pub(crate) fn status(&self) -> Result<Status> {
        self.try_status()?.ok_or_else(|| anyhow!("weir status --json printed nothing"))
    }

    /// Waits until nothing is in flight, then checks what must hold after every test: both processes live, each
    /// worker's books balance, and no packet buffer is owned by Weir's code.
    pub(crate) fn settle(&mut self) -> Result<Status> {
        self.must_run()?;
        let mut last = String::new();
        let settled = wait_for("Weir's books to balance", QUIET, || {
            let status = self.status()?;
            last = status.imbalance().unwrap_or_default();
            Ok(last.is_empty().then_some(status))
        });
        settled.with_context(|| format!("after the test: {last}"))
    }

    /// Kills the dataplane as `kill -9` does.
    pub(crate) fn kill_dataplane(&mut self) -> Result<()> {
        self.dataplane.kill()
    }

    /// Starts the dataplane again, stale XDP programs removed first.
    pub(crate) fn restart_dataplane(&mut self, lab: &Lab) -> Result<()> {
        lab.remove_stale_xdp()?;
        self.dataplane.start_again()
    }

    /// Leaves both running when this value is dropped; their ids.
    pub(crate) fn let_go(&mut self) -> Vec<u32> {
        let ids = [self.ctlplane.id(), self.dataplane.id()].into_iter().flatten().collect();
        self.ctlplane.let_go();
        self.dataplane.let_go();
        ids
    }
}
