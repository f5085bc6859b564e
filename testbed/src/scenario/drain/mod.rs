//! Out of service in order: backends, listeners and the node are drained under load. What is in use finishes, what is idle ends, what is
//! new goes elsewhere, and `--wait` ends when nothing is left.

mod cut;
mod http;
mod l4;
mod node;

use std::io::ErrorKind;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::Scenario;
use super::http::Site;
use crate::topology::namespace::Namespace;
use crate::traffic::exchange::{Client, get};
use crate::traffic::stream::End;

/// Port of the listener that is drained.
const WEB: u16 = 80;
/// How long what is ended at once may take on a busy machine: far less than any timeout here.
const AT_ONCE: Duration = Duration::from_millis(900);
/// How long a drain may take in all.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn scenarios() -> Vec<Scenario> {
    [http::scenarios(), node::scenarios(), cut::scenarios(), l4::scenarios()].into_iter().flatten().collect()
}

/// `weir …` that runs beside a test.
struct Waiting {
    child: std::process::Child,
    shown: String,
}

impl Waiting {
    fn start(mut command: Command) -> Result<Self> {
        let shown = crate::command::show(&command);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("could not start `{shown}`"))?;
        Ok(Self { child, shown })
    }

    /// Whether it still waits.
    fn waits(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Its end, which must come within [`PATIENCE`]: exit code and words.
    fn end(mut self) -> Result<(i32, String)> {
        let shown = self.shown.clone();
        crate::interrupt::wait_for(&format!("`{shown}` to end"), PATIENCE, || {
            Ok(self.child.try_wait()?.map(drop))
        })?;
        // emptied here: what it prints is far less than a pipe holds
        let mut output = Output { status: self.child.wait()?, stdout: Vec::new(), stderr: Vec::new() };
        for (from, to) in [
            (self.child.stdout.as_mut().map(|pipe| pipe as &mut dyn std::io::Read), &mut output.stdout),
            (self.child.stderr.as_mut().map(|pipe| pipe as &mut dyn std::io::Read), &mut output.stderr),
        ] {
            from.context("no pipe")?.read_to_end(to)?;
        }
        Ok((output.status.code().unwrap_or(-1), said(&output)))
    }

    /// The same, with exit code 0; its words.
    fn good(self) -> Result<String> {
        let shown = self.shown.clone();
        let (code, text) = self.end()?;
        ensure!(code == 0, "`{shown}` ended with {code}: {text}");
        Ok(text)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Sends a request that is answered late, on a connection of its own, and waits until a backend has it.
fn slow(site: &Site, ms: u32) -> Result<Client> {
    let mut client = site.client(WEB)?;
    let path = format!("/wait/{ms}");
    let before = site.backends.seen_of(&path).len();
    client.send(get(&path, ""))?;
    crate::interrupt::wait_for("a slow request to arrive", Duration::from_secs(2), || {
        Ok((site.backends.seen_of(&path).len() > before).then_some(()))
    })?;
    Ok(client)
}

/// The answer to a request that was under way when its listener was drained: whole, the last, and followed by a FIN.
fn finishes(client: &mut Client) -> Result<()> {
    let answer = client.response("GET").context("a request in flight")?;
    ensure!(answer.status == 200, "a request in flight got {} {:?}", answer.status, answer.cause());
    ensure!(answer.field("connection") == Some("close"), "not told that it is the last: {:?}", answer.fields);
    ensure!(client.ended(AT_ONCE)? == End::Finished, "a RST after the last answer");
    Ok(())
}

/// New connections to that port are refused, and at once.
fn refused(site: &Site, port: u16) -> Result<()> {
    refuses(&site.rig.lab.client, site.place(port))
}

fn refuses(client: &Namespace, target: std::net::SocketAddr) -> Result<()> {
    let start = Instant::now();
    match client.run(|| std::net::TcpStream::connect_timeout(&target, Duration::from_secs(3)))? {
        Ok(_) => bail!("{target} is drained and took a connection"),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) => return Err(error).with_context(|| format!("{target} should refuse by a RST")),
    }
    ensure!(start.elapsed() < AT_ONCE, "{target} refused after {:?}", start.elapsed());
    Ok(())
}

/// What became of clients that ask without a pause while their listener is drained.
#[derive(Debug, Default)]
struct Asked {
    /// Whole answers.
    answered: u64,
    /// Connections whose last answer said so.
    told: u64,
    /// Connections that ended between two answers, which a client of HTTP repeats.
    between: u64,
}

/// Asks for `path` on one connection until Weir ends it, which must be between answers and without a part of one.
fn ask_until_ended(mut client: Client, path: &str, stop: &AtomicBool) -> Result<Asked> {
    let mut asked = Asked::default();
    let is_end = |kind: ErrorKind| {
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted)
    };
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = client.send(get(path, "")) {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind.is_some_and(is_end), "{error:#}");
            asked.between += 1;
            return Ok(asked);
        }
        match client.stream.peek(&mut [0]) {
            Ok(0) => asked.between += 1,
            Err(error) if is_end(error.kind()) => asked.between += 1,
            Err(error) => return Err(error).context("no answer and no end"),
            Ok(_) => {
                let answer = client.response("GET")?;
                ensure!(answer.status == 200, "{} {:?}", answer.status, answer.cause());
                asked.answered += 1;
                if answer.field("connection") != Some("close") {
                    continue;
                }
                asked.told += 1;
                ensure!(client.ended(AT_ONCE)? == End::Finished, "a RST after the last answer");
            }
        }
        return Ok(asked);
    }
    bail!("the connection was never ended, after {} answers", asked.answered)
}

/// Runs `work` while so many clients ask for `path` until they are ended; what became of them in all.
fn asking<T>(
    site: &mut Site,
    path: &str,
    clients: usize,
    work: impl FnOnce(&mut Site) -> Result<T>,
) -> Result<(Asked, T)> {
    let open = (0..clients).map(|_| site.client(WEB)).collect::<Result<Vec<_>>>()?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            open.into_iter().map(|client| scope.spawn(|| ask_until_ended(client, path, &stop))).collect();
        let outcome = work(site);
        // they end by themselves, or the drain did not reach them
        let end = Instant::now() + Duration::from_secs(2);
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        let mut all = Asked::default();
        for thread in threads {
            let asked = thread.join().map_err(|_| anyhow!("a client panicked"))?;
            // why the work failed tells more than what became of its clients
            match (asked, &outcome) {
                (Ok(asked), _) => {
                    all.answered += asked.answered;
                    all.told += asked.told;
                    all.between += asked.between;
                }
                (Err(error), Ok(_)) => return Err(error),
                (Err(_), Err(_)) => {}
            }
        }
        Ok((all, outcome?))
    })
}
