//! `dpdk-testpmd` on the same capture: what rx, a touch of the headers and tx cost without a balancer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::instance::{Frozen, NICE, Share, Window};
use crate::command::show;
use crate::interrupt;

/// How long it may take to read the capture into buffers.
const START: Duration = Duration::from_secs(90);

/// Buffers where no capture needs them.
const NULL_BUFFERS: u32 = 32_768;

/// A running testpmd that forwards.
#[derive(Debug)]
pub(crate) struct Testpmd {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Testpmd {
    /// Starts it on a capture with so many buffers of that data room, forwarding on CPU 1.
    pub(crate) fn start(name: &str, capture: &Path, buffers: u32, buffer_bytes: u32) -> Result<Self> {
        let device = format!("net_pcap0,rx_pcap={},infinite_rx=1", capture.display());
        // testpmd's figure includes the headroom
        let bytes = format!("--mbuf-size={}", buffer_bytes + 128);
        Self::launch(name, &[device], buffers, &["--port-topology=loop", &bytes])
    }

    /// Starts it between two ports of a driver that makes packets of 64 bytes by a copy.
    pub(crate) fn on_null(name: &str) -> Result<Self> {
        let devices = [0, 1].map(|port| format!("net_null{port},size=64,copy=1"));
        Self::launch(name, &devices, NULL_BUFFERS, &[])
    }

    fn launch(name: &str, devices: &[String], buffers: u32, more: &[&str]) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nice", "-n", NICE, "stdbuf", "-oL", "dpdk-testpmd"]);
        command.args([
            "--in-memory",
            "--single-file-segments",
            "--no-pci",
            "--file-prefix",
            &format!("weir-{name}-testpmd"),
            "-l",
            "0,1",
        ]);
        for device in devices {
            command.args(["--vdev", device]);
        }
        command.args([
            "--",
            "-i",
            "--forward-mode=5tswap",
            "--no-lsc-interrupt",
            "--nb-cores=1",
            "--burst=32",
        ]);
        command.arg(format!("--total-num-mbufs={buffers}")).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("could not start `{}`", show(&command)))?;
        let (sender, lines) = channel();
        let output = child.stdout.take().context("no output")?;
        let errors = child.stderr.take().context("no errors")?;
        let other = sender.clone();
        // each thread ends with its pipe, and the pipe with the process
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        std::thread::spawn(move || {
            BufReader::new(errors).lines().map_while(Result::ok).try_for_each(|line| other.send(line))
        });
        let input = child.stdin.take();
        let mut testpmd = Self { child, input, lines, said: Vec::new() };
        testpmd.say("start")?;
        testpmd.expect(START, |line| line.contains("packet forwarding - ports").then_some(()))?;
        Ok(testpmd)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("testpmd was told to end")?;
        writeln!(input, "{line}").and_then(|()| input.flush()).with_context(|| {
            format!("could not tell testpmd to {line}; its last words:\n{}", self.said.join("\n"))
        })
    }

    fn expect<T>(&mut self, deadline: Duration, mut pick: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let end = Instant::now() + deadline;
        loop {
            interrupt::check()?;
            match self.lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    let value = pick(&line);
                    self.said.push(line);
                    if self.said.len() > 40 {
                        self.said.remove(0);
                    }
                    if let Some(value) = value {
                        return Ok(value);
                    }
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(_) => {
                    let state = self.child.try_wait()?;
                    let state = state.map_or("still runs".to_owned(), |status| format!("ended: {status}"));
                    bail!(
                        "testpmd did not say what was expected ({state}); its last words:\n{}",
                        self.said.join("\n")
                    )
                }
            }
        }
    }

    /// Packets per second that a port received and sent since it was asked last.
    fn rates(&mut self, port: u16) -> Result<(f64, f64)> {
        self.say(&format!("show port stats {port}"))?;
        let rate = |line: &str, label: &str| -> Option<f64> {
            line.split_once(label)?.1.split_whitespace().next()?.parse().ok()
        };
        let wait = Duration::from_secs(5);
        let received = self.expect(wait, |line| rate(line, "Rx-pps:"))?;
        let sent = self.expect(wait, |line| rate(line, "Tx-pps:"))?;
        Ok((received, sent))
    }

    /// A window, as of Weir.
    pub(crate) fn window(&mut self, length: Duration) -> Result<Window> {
        self.window_of(&[0], length)
    }

    /// A window of two ports that forward to each other: nanoseconds per packet, whichever port it came from.
    pub(crate) fn window_of_both(&mut self, length: Duration) -> Result<Window> {
        self.window_of(&[0, 1], length)
    }

    fn window_of(&mut self, ports: &[u16], length: Duration) -> Result<Window> {
        for &port in ports {
            self.rates(port)?;
        }
        let share = Share::of(Some(self.child.id()), "worker-1");
        interrupt::pause(length)?;
        let share = share.end();
        let (mut received, mut sent) = (0.0, 0.0);
        for &port in ports {
            let rates = self.rates(port)?;
            received += rates.0;
            sent += rates.1;
        }
        ensure!(
            received > 0.0 && (received - sent).abs() / received < 0.01,
            "testpmd received {received} and sent {sent} packets per second"
        );
        Ok(Window { ns: 1e9 / received * share, share })
    }

    /// Stops it until the value is dropped.
    pub(crate) fn freeze(&self) -> Result<Frozen> {
        Frozen::new(Some(self.child.id()))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
