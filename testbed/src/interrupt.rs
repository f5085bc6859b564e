//! What happens on ctrl-C, and how anything here waits.
//!
//! A signal only sets a flag. Every wait looks at it and returns an error, so that the stack unwinds and each guard
//! cleans up what it made. A second signal ends the process at once; `cargo testbed clean` then sweeps.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Installs the handlers; once, at start.
pub(crate) fn install() -> Result<()> {
    let flag = Arc::clone(FLAG.get_or_init(Arc::default));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(())
}

/// Whether a signal has arrived.
pub(crate) fn arrived() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// An error once a signal has arrived.
pub(crate) fn check() -> Result<()> {
    if arrived() {
        bail!("interrupted; cleaning up");
    }
    Ok(())
}

/// A pause that a signal ends early.
pub(crate) fn pause(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}

/// Asks `condition` until it answers `Some`; an error that names `what` after `deadline`.
pub(crate) fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut step = Duration::from_millis(2);
    loop {
        check()?;
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            bail!("waited {:.1} s for {what}", deadline.as_secs_f64());
        }
        std::thread::sleep(step);
        step = (step * 3 / 2).min(Duration::from_millis(50));
    }
}
