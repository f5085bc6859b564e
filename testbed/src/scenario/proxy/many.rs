//! Ten thousand connections at once, all with data, and what they cost.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::{of, service, until};
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{Family, Io};

/// Clients are processes, since one may have 20,000 descriptors here and shares them with its servers.
const PROCESSES: usize = 4;
const EACH: usize = 2_500;

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![Scenario::new("proxy/many", many)]
}

/// A client process that holds connections.
pub(in crate::scenario) struct Holder {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Holder {
    /// Starts one with so many.
    pub(in crate::scenario) fn start(rig: &Rig, target: &str, connections: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut command = rig.lab.client.command(&program.display().to_string());
        command.args(["peer", "hold", target, &connections.to_string()]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start a client")?;
        let output = child.stdout.take().context("no standard output")?;
        Ok(Self { input: child.stdin.take(), output: BufReader::new(output), child })
    }

    /// Has it ask on each connection.
    pub(in crate::scenario) fn ask(&mut self) -> Result<()> {
        let Some(input) = &mut self.input else { bail!("the client has no input") };
        writeln!(input, "ask").context("a client has ended")
    }

    /// Waits until it says so.
    pub(in crate::scenario) fn expect(&mut self, word: &str) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == word, "a client said {line:?} instead of {word:?}; its error is above");
        Ok(())
    }

    /// Has it end.
    pub(in crate::scenario) fn end(&mut self) -> Result<()> {
        self.input = None;
        let status = self.child.wait()?;
        ensure!(status.success(), "a client ended with {status}");
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // its input's end ends it, unless it hangs
        if self.input.is_some() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn many(context: &Context) -> Result<()> {
    const ALL: u64 = (PROCESSES * EACH) as u64;
    let service = service(Family::Ipv4);
    let mut rig = Rig::start(context, Io::AfXdp, vec![service.clone()])?;
    let resident = |rig: &Rig| -> Result<u64> {
        let id = rig.weir.dataplane.id().context("the dataplane does not run")?;
        crate::scenario::flood::resident_kib(id)
    };
    let before = resident(&rig)?;
    let target = service.target().to_string();
    let mut holders =
        (0..PROCESSES).map(|_| Holder::start(&rig, &target, EACH)).collect::<Result<Vec<_>>>()?;
    holders.iter_mut().try_for_each(|holder| holder.expect("open"))?;
    for _ in 0..2 {
        holders.iter_mut().try_for_each(Holder::ask)?;
        holders.iter_mut().try_for_each(|holder| holder.expect("answered"))?;
    }
    let active = of(&rig, &service, "connections_active")?;
    ensure!(active == ALL, "{active} connections are active");
    let status = rig.weir.status()?;
    let upstream = status.upstream(&service.name, "active", |_| true);
    ensure!(upstream == ALL, "{upstream} connections to backends");
    ensure!(status.tcp("established") == 2 * ALL, "{} are established", status.tcp("established"));
    let (pinned, grown) = (status.tcp("memory_pinned"), resident(&rig)?.saturating_sub(before));
    let ceiling = status.tcp.as_ref().map_or(0, |tcp| tcp.memory_ceiling);
    println!(
        "      {ALL} clients: data held {} KiB of {} KiB, resident memory grew by {grown} KiB, {} bytes per session",
        pinned >> 10,
        ceiling >> 10,
        (grown << 10) / ALL
    );
    // everything is acknowledged and read: nothing is held, whatever the number
    ensure!(pinned < 1 << 20, "{pinned} bytes are held by silent connections");
    // two connections of at most 400 bytes, the session, and pages touched for the first time
    ensure!((grown << 10) / ALL < 2_048, "a session costs {} bytes", (grown << 10) / ALL);
    holders.iter_mut().try_for_each(Holder::end)?;
    until(&rig, &service, "connections_active", Duration::from_secs(5), |active| active == 0)?;
    let status = rig.emptied()?;
    for counter in ["connections_refused_limit", "no_backend", "client_resets", "idle_timeouts"] {
        let count = status.proxy(&service.name, counter);
        ensure!(count == 0, "{counter} {count}");
    }
    rig.finish()
}
