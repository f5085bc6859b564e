//! Starts processes, keeps their logs, ends them by their own id, and says what they last said when something fails.
//!
//! Each process is the head of a process group of its own (ctrl-C reaches only the testbed, which then ends them in
//! order) and is killed by the kernel when the testbed dies, unless it was started to stay.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::interrupt::wait_for;
use crate::topology::namespace::Namespace;

/// How to start a process, as often as it takes.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Name in messages and of the log file.
    pub(crate) name: String,
    /// Path or name of the executable.
    pub(crate) program: PathBuf,
    /// Arguments.
    pub(crate) arguments: Vec<String>,
    /// Namespace to run it in.
    pub(crate) namespace: Option<String>,
    /// CPUs to keep it on, as `taskset -c` takes them.
    pub(crate) cpus: Option<String>,
    /// Whether it stays when the testbed ends.
    pub(crate) stays: bool,
}

impl Program {
    /// A program with its arguments.
    pub(crate) fn new(name: &str, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            namespace: None,
            cpus: None,
            stays: false,
        }
    }

    /// In that namespace.
    pub(crate) fn within(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.name().to_owned());
        self
    }

    /// On those CPUs.
    pub(crate) fn on_cpus(mut self, cpus: &str) -> Self {
        self.cpus = Some(cpus.to_owned());
        self
    }

    fn command(&self) -> Command {
        let mut words: Vec<String> = Vec::new();
        if let Some(namespace) = &self.namespace {
            words.extend(["ip", "netns", "exec", namespace].map(str::to_owned));
        }
        if !self.stays {
            words.extend(["setpriv", "--pdeathsig", "KILL", "--"].map(str::to_owned));
        }
        if let Some(cpus) = &self.cpus {
            words.extend(["taskset", "-c", cpus].map(str::to_owned));
        }
        words.push(self.program.display().to_string());
        words.extend(self.arguments.iter().cloned());
        let mut words = words.into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}

/// A process under supervision.
#[derive(Debug)]
pub(crate) struct Process {
    program: Program,
    log: PathBuf,
    child: Option<Child>,
    handle: Option<OwnedFd>,
    starts: u32,
}

impl Process {
    /// Starts it, its output in `logs/<name>.log`.
    pub(crate) fn start(program: Program, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{}.log", program.name));
        let mut process = Self { program, log, child: None, handle: None, starts: 0 };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it again after it ended.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        if self.exited()?.is_none() && self.child.is_some() {
            bail!("{} is still running", self.program.name);
        }
        let log = self.open_log()?;
        let mut command = self.program.command();
        command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("could not start `{}`", crate::command::show(&command)))?;
        let pid = Pid::from_raw(child.id() as i32).ok_or_else(|| anyhow!("a child with pid 0"))?;
        self.handle = Some(pidfd_open(pid, PidfdFlags::empty()).context("could not open a pidfd")?);
        self.child = Some(child);
        self.starts += 1;
        Ok(())
    }

    fn open_log(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("could not open {}", self.log.display()))
    }

    /// Its process id, which `ip netns exec` and `setpriv` hand on.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.program.name
    }

    /// How it ended, if it did.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// An error with its last words when it has ended by itself.
    pub(crate) fn must_run(&mut self) -> Result<()> {
        if let Some(status) = self.exited()? {
            bail!("{} ended ({status}); its last words:\n{}", self.program.name, self.last_words(15));
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(handle) = &self.handle else { return Ok(()) };
        match pidfd_send_signal(handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("could not signal {}", self.program.name)),
        }
    }

    /// Stops it where it is, until [`Process::thaw`].
    pub(crate) fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks it to end, and does not wait.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Kills it, as `kill -9` does, and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.reap()
    }

    fn reap(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.wait()?;
        }
        self.handle = None;
        Ok(())
    }

    /// Asks it to end and waits; kills it after ten seconds and says so with an error.
    pub(crate) fn stop(&mut self) -> Result<Option<ExitStatus>> {
        if self.child.is_none() {
            return Ok(None);
        }
        self.signal(Signal::TERM)?;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.exited()? {
                self.child = None;
                self.handle = None;
                return Ok(Some(status));
            }
            if std::time::Instant::now() > deadline {
                self.kill()?;
                bail!("{} did not end within 10 s of SIGTERM and was killed", self.program.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The last lines of its log, indented.
    pub(crate) fn last_words(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Leaves it running when this value is dropped.
    pub(crate) fn let_go(&mut self) {
        self.child = None;
        self.handle = None;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.stop().is_err() {
            let _ = self.kill();
        }
    }
}

/// The last lines of a file, indented; says so when there is nothing.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    if all.is_empty() {
        return format!("    (nothing in {})", path.display());
    }
    let from = all.len().saturating_sub(lines);
    all[from..].iter().map(|line| format!("    {line}\n")).collect()
}

/// Ends a process of an earlier run by its id, if it is still the process that was started then.
pub(crate) fn end_by_id(id: u32, started: u64) -> Result<()> {
    let Some(pid) = Pid::from_raw(id as i32) else { return Ok(()) };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if start_time(id) != Some(started) {
        return Ok(());
    }
    // the handle pins the process, so the number can't have changed hands between the check and the signal
    for (signal, patience) in [(Signal::TERM, 3_000), (Signal::KILL, 2_000)] {
        let _ = pidfd_send_signal(&handle, signal);
        let gone = wait_for("a process to end", Duration::from_millis(patience), || {
            Ok((start_time(id) != Some(started)).then_some(()))
        });
        if gone.is_ok() {
            return Ok(());
        }
    }
    bail!("process {id} does not end")
}

/// When a process started, in ticks since boot: with its id it names it for good. `None` when there is none, or a
/// zombie.
pub(crate) fn start_time(id: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // field 2 is the name in brackets and may hold anything; the rest follows its last bracket
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    if *fields.first()? == "Z" {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_started_killed_and_started_again() {
        let logs = std::env::temp_dir().join(format!("weir-supervisor-{}", std::process::id()));
        std::fs::create_dir_all(&logs).unwrap();
        let program = Program { stays: true, ..Program::new("sleeper", "sleep", &["60"]) };
        let mut process = Process::start(program, &logs).unwrap();
        assert!(process.start_again().is_err());
        let id = process.id().unwrap();
        assert!(start_time(id).is_some());
        process.kill().unwrap();
        assert_eq!(start_time(id), None);
        process.start_again().unwrap();
        process.must_run().unwrap();
        assert!(process.stop().unwrap().is_some());
        std::fs::remove_dir_all(&logs).unwrap();
    }

    #[test]
    fn last_words_are_shown() {
        let logs = std::env::temp_dir().join(format!("weir-words-{}", std::process::id()));
        std::fs::create_dir_all(&logs).unwrap();
        let program = Program {
            stays: true,
            ..Program::new("talker", "sh", &["-c", "echo a; echo b; echo c; exit 3"])
        };
        let mut process = Process::start(program, &logs).unwrap();
        let status = wait_for("its end", Duration::from_secs(5), || process.exited()).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(process.last_words(2), "    b\n    c\n");
        assert!(process.must_run().unwrap_err().to_string().contains("exit status: 3"));
        std::fs::remove_dir_all(&logs).unwrap();
    }
}
