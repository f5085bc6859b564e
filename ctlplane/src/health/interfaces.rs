//! Which of the kernel's interfaces are there? Looked up at most once a second: probes ask often.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

const FRESH: Duration = Duration::from_secs(1);

/// Interfaces of the daemon's network namespace.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    known: RefCell<HashMap<String, (bool, Instant)>>,
}

impl Interfaces {
    /// Whether there is one of that name; names come from the configuration, so there are few.
    pub(super) fn exists(&self, name: &str) -> bool {
        let now = Instant::now();
        let mut known = self.known.borrow_mut();
        if let Some((exists, at)) = known.get(name)
            && now.duration_since(*at) < FRESH
        {
            return *exists;
        }
        let exists = Path::new("/proc/sys/net/ipv4/conf").join(name).exists();
        known.insert(name.to_owned(), (exists, now));
        exists
    }
}
