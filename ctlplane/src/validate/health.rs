//! Can the backends of each pool be probed as the file says?

use std::fs;
use std::time::Duration;

use weir_abi::record::Mode;

use super::{Files, Reach, Rules};
use crate::diagnostic::{Diagnostic, Located};
use crate::health::check::{Kind, Through};
use crate::schema::health::HealthCheck;
use crate::schema::{Backend, Listener, Pool};

/// Between two probes.
pub(super) const DEFAULT_INTERVAL: Duration = Duration::from_secs(2);
/// Shortest default of the interval while in doubt, and of the timeout.
const SHORTEST: Duration = Duration::from_millis(100);
/// Longest default of the timeout.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1);

/// While in doubt: a quarter of the interval.
pub(super) fn default_fast(interval: Duration) -> Duration {
    (interval / 4).max(SHORTEST)
}

/// A second, or a shorter interval.
pub(super) fn default_timeout(interval: Duration) -> Duration {
    interval.min(LONGEST_TIMEOUT)
}

impl Rules<'_> {
    pub(super) fn health_checks(&mut self, files: &Files) {
        let schema = self.schema;
        for pool in &schema.pools {
            let Some(check) = &pool.health_check else {
                if let Some(slow_start) = &pool.slow_start
                    && slow_start.value > Duration::ZERO
                {
                    let message = "slow_start has no effect: nothing finds out that a backend is up again";
                    self.push(Diagnostic::warning(slow_start.span, message).help("add [pool.health_check]"));
                }
                continue;
            };
            self.check_times(check);
            self.check_slow_start(pool);
            self.check_addresses(pool, check);
            self.check_way(pool, check);
            if !files.is_kept() {
                self.check_files(check);
            }
        }
    }

    fn check_times(&mut self, check: &HealthCheck) {
        let interval = check.interval.as_ref().map_or(DEFAULT_INTERVAL, |interval| interval.value);
        if let Some(fast) = check.fast_interval.as_ref().filter(|fast| fast.value > interval) {
            let message = "fast_interval is longer than the interval";
            let help = format!("use at most {}", crate::units::format_duration(interval));
            self.push(Diagnostic::error(fast.span, message).help(help));
        }
    }

    /// One weight can't grow in two ways at once.
    fn check_slow_start(&mut self, pool: &Pool) {
        let is_set = pool.slow_start.as_ref().filter(|slow_start| slow_start.value > Duration::ZERO);
        if let Some(slow_start) = is_set
            && pool.upstream.http.rules.slow_start_ms > 0
        {
            let place = pool.upstream.http.span.unwrap_or(slow_start.span);
            let message = "the pool has slow_start, and its [pool.http] too";
            self.push(
                Diagnostic::error(slow_start.span, message)
                    .related(place, "here")
                    .help("keep the one of the pool, which is for all listeners; that of [pool.http] also follows breakers"),
            );
        }
    }

    fn check_addresses(&mut self, pool: &Pool, check: &HealthCheck) {
        let is_exec = check.kind.as_ref().is_some_and(|kind| matches!(kind.value, Kind::Exec(_)));
        let listeners: Vec<&Listener> = self.listeners_of(pool).collect();
        let ports: Vec<_> = listeners.iter().filter_map(|listener| listener.ports.as_ref()).collect();
        let is_one = ports.first().is_some_and(|first| {
            ports.iter().all(|port| port.value.0 == port.value.1 && port.value == first.value)
        });
        let without_port = |backend: &&Backend| backend.address.as_ref().is_some_and(|a| a.value.1 == 0);
        if check.port.is_none()
            && !is_exec
            && !is_one
            && self.uses_are_known()
            && let Some(backend) = pool.backends.iter().find(without_port)
        {
            let name = backend.name.as_ref().map_or("", |name| name.value.as_str());
            let message = format!(
                "no port to probe: backend \"{name}\" has none, nor do the pool's listeners agree on one"
            );
            self.push(Diagnostic::error(check.span, message).help("add: port = 80 (the port to probe)"));
        }
        if let Some(source) = &check.source {
            let own = self.schema.ports.iter().flat_map(|port| &port.addresses);
            if !own.into_iter().any(|own| own.value.0 == source.value) {
                let message = format!("source = {} is not an address of a port", source.value);
                self.push(Diagnostic::error(source.span, message).help("use one of a [[port]]'s addresses"));
            }
            let to = check.address.as_ref().map(|address| address.value);
            let backends = pool.backends.iter().filter_map(|backend| Some(backend.address.as_ref()?.value.0));
            let mut probed = backends.map(|backend| to.unwrap_or(backend));
            if !is_exec && probed.any(|address| address.is_ipv4() != source.value.is_ipv4()) {
                let message = format!("source = {} is not of the family that is probed", source.value);
                let help = "leave it out: each probe's source is of its own family then";
                self.push(Diagnostic::error(source.span, message).help(help));
            }
        }
        if let Some(address) = &check.address {
            if !super::is_host(address.value) {
                let message = format!("{} cannot be probed", address.value);
                self.push(Diagnostic::error(address.span, message).help("use a unicast address of a host"));
            } else if !is_exec && matches!(self.reach(address.value), Reach::Nowhere) {
                let message =
                    format!("no port reaches {}: probes leave by the kernel's routes", address.value);
                self.push(
                    Diagnostic::warning(address.span, message)
                        .help("add a route or an address to a [[port]]"),
                );
            }
        }
    }

    fn listeners_of(&self, pool: &Pool) -> impl Iterator<Item = &Listener> {
        let name = pool.name.as_ref().map(|name| name.value.as_str());
        let listeners = self.schema.listeners.iter();
        listeners.filter(move |listener| {
            name.is_some() && listener.pool.as_ref().map(|pool| pool.value.as_str()) == name
        })
    }

    /// Probes through a tunnel need one.
    fn check_way(&mut self, pool: &Pool, check: &HealthCheck) {
        let Some(through) = check.through.as_ref().filter(|through| through.value == Through::Tunnel) else {
            return;
        };
        let is_of_mode = |listener: &Listener| {
            let mode = listener.mode.as_ref().map(|mode| mode.value);
            matches!(mode, Some(Mode::Dsr | Mode::Ipip | Mode::Gue))
        };
        if !self.listeners_of(pool).any(is_of_mode) && self.uses_are_known() {
            let message = "through = \"tunnel\", but no listener of mode dsr, ipip or gue uses the pool";
            self.push(Diagnostic::error(through.span, message).help("remove it: probes go directly then"));
        }
        if let Some(address) = &check.address {
            let message = "probes through the tunnel are addressed to the vip";
            self.push(
                Diagnostic::error(address.span, message)
                    .related(through.span, "here")
                    .help("remove address, or use through = \"direct\""),
            );
        }
        if let Some(kind) = check.kind.as_ref().filter(|kind| matches!(kind.value, Kind::Exec(_))) {
            let message = "a command finds its own way: it does not go through a tunnel";
            self.push(Diagnostic::error(kind.span, message).help("remove through"));
        }
    }

    /// They are read by the probes; a name that is wrong is better known now.
    fn check_files(&mut self, check: &HealthCheck) {
        let unreadable = |path: &Located<String>| match fs::File::open(&path.value).and_then(|f| f.metadata())
        {
            Ok(metadata) if metadata.is_file() => None,
            Ok(_) => Some("it is not a file".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        for (name, path) in &check.files {
            if let Some(reason) = unreadable(path) {
                let message = format!("cannot read {}: {reason}", path.value);
                let help = format!("name a PEM file as {name} that weir-ctlplane may read");
                self.push(Diagnostic::error(path.span, message).help(help));
            }
        }
    }
}
