//! GETs over kept connections, without a pause, while something else happens.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::Site;
use crate::interrupt;
use crate::topology::namespace::Namespace;
use crate::traffic::exchange::Client;
use crate::traffic::http::Progress;

/// What became of a load.
pub(in crate::scenario) struct Outcome {
    /// Answers.
    pub(in crate::scenario) answered: u64,
    /// The slowest.
    pub(in crate::scenario) slowest: Duration,
}

/// Asks for `path` on `clients` connections, each a thread's, while `work` runs. Any answer but 200, and any connection that ends
/// or says that it will, is an error.
pub(in crate::scenario) fn beside<T>(
    site: &mut Site,
    (port, path): (u16, &str),
    clients: usize,
    work: impl FnOnce(&mut Site, &Progress<'_>) -> Result<T>,
) -> Result<(Outcome, T)> {
    let (stop, answered, failures) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    let slowest = AtomicU64::new(0);
    let target = site.place(port);
    let name = site.rig.lab.client.name().to_owned();
    let result = std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let ask = || -> Result<()> {
                    let mut client = Client::open(&Namespace::existing(&name), target)?;
                    while !stop.load(Ordering::Relaxed) && !interrupt::arrived() {
                        let start = Instant::now();
                        let answer = client.get(path)?;
                        ensure!(answer.status == 200, "{} {:?}", answer.status, answer.cause());
                        ensure!(answer.field("connection") != Some("close"), "a connection is to be closed");
                        slowest.fetch_max(start.elapsed().as_micros() as u64, Ordering::Relaxed);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                };
                if let Err(error) = ask()
                    && let Ok(mut failures) = failures.lock()
                {
                    failures.push(format!("{error:#}"));
                }
            });
        }
        let result = work(site, &Progress { count: &answered });
        stop.store(true, Ordering::Relaxed);
        result
    });
    let failures = failures.into_inner().map_err(|_| anyhow!("a client panicked"))?;
    let answered = answered.into_inner();
    ensure!(
        failures.is_empty(),
        "{} of {clients} clients failed after {answered} answers: {}",
        failures.len(),
        failures.join("; ")
    );
    interrupt::check()?;
    Ok((Outcome { answered, slowest: Duration::from_micros(slowest.into_inner()) }, result?))
}
