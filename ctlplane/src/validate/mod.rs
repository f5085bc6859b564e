//! Does the file make sense as a whole? Consumes the schema and gives the model, or findings.
//!
//! All rules run even after errors: a rule skips what an earlier stage could not read.

mod access;
mod build;
mod exception;
mod files;
mod health;
mod http;
mod listeners;
mod memory;
mod pools;
mod ports;
mod proxies;
mod remedies;
mod route_effects;
mod routes;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

pub use self::files::{Files, differences};
use crate::diagnostic::{Diagnostic, Diagnostics, Located, Source, Span};
use crate::machine::Machine;
use crate::model::Model;
use crate::schema::{self, Schema, Workers};
use crate::units::{covers, network};

const DEFAULT_MTU: u32 = 1_500;
/// RFC 8200 §5: every link of IPv6 carries packets of 1280 bytes.
const IPV6_MINIMUM_MTU: u32 = 1_280;
/// RFC 791 §3.1: what every IPv4 host accepts.
const IPV4_MINIMUM_MTU: u32 = 576;

/// Reads and checks a file. The model is there unless there are errors; warnings may be there with it.
pub fn load(source: Source<'_>, machine: &Machine) -> (Option<Model>, Diagnostics) {
    load_with(source, machine, &mut Files::default())
}

/// The same, with files of which some were read before.
pub fn load_with(source: Source<'_>, machine: &Machine, files: &mut Files) -> (Option<Model>, Diagnostics) {
    let mut diagnostics = Diagnostics::default();
    // after a syntax error the rest of the file is guesswork: findings about it would mislead
    let Some(schema) = schema::parse(source.text, &mut diagnostics) else { return (None, diagnostics) };
    let model = validate(schema, machine, files, &mut diagnostics);
    let usable = diagnostics.errors() == 0;
    (model.filter(|_| usable), diagnostics)
}

/// Applies all rules.
fn validate(
    schema: Schema,
    machine: &Machine,
    files: &mut Files,
    diagnostics: &mut Diagnostics,
) -> Option<Model> {
    let mut rules = Rules { schema: &schema, diagnostics };
    rules.names();
    rules.addresses();
    rules.ports();
    rules.exceptions();
    rules.pools();
    rules.listeners();
    rules.health_checks(files);
    rules.proxied_pools();
    rules.http_pools(&routes::pools_of_http(&schema));
    let http = rules.http(files);
    let access_log = rules.access_log();
    rules.proxy_mtu();
    let workers = rules.workers(machine);
    rules.proxy_capacity(workers.len());
    rules.data_fits(workers.len());
    let access = rules.access(files);
    let model = build::build(&schema, workers, &http, access_log, access)?;
    rules.machine_suffices(&model, machine);
    Some(model)
}

struct Rules<'a> {
    schema: &'a Schema,
    diagnostics: &'a mut Diagnostics,
}

/// A backend or next hop as seen from the ports.
enum Reach<'a> {
    OnLink(&'a schema::Port),
    Routed(&'a schema::Port),
    Nowhere,
}

impl<'a> Rules<'a> {
    fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Whether which listeners use a pool is known: names of pools are right, and so is what says what a listener is. Else "nobody uses
    /// it" would be said of the pool that was meant.
    fn uses_are_known(&self) -> bool {
        let known: HashSet<&str> =
            self.schema.pools.iter().filter_map(|pool| Some(pool.name.as_ref()?.value.as_str())).collect();
        let of_listeners = self.schema.listeners.iter().filter_map(|listener| listener.pool.as_ref());
        let mut named = of_listeners.chain(self.schema.routes.iter().flat_map(routes::pools_of));
        named.all(|name| known.contains(name.value.as_str()))
            && self
                .schema
                .listeners
                .iter()
                .all(|listener| listener.protocol.is_some() && listener.mode.is_some())
    }

    fn unique_names<'n>(&mut self, what: &str, names: impl Iterator<Item = &'n Located<String>>) {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for name in names {
            if let Some(first) = seen.insert(&name.value, name.span) {
                self.push(
                    Diagnostic::error(name.span, format!("two {what} are named \"{}\"", name.value))
                        .related(first, "first here")
                        .help("rename one of them"),
                );
            }
        }
    }

    fn names(&mut self) {
        let schema = self.schema;
        self.unique_names("ports", schema.ports.iter().filter_map(|p| p.name.as_ref()));
        self.unique_names("vips", schema.vips.iter().filter_map(|v| v.name.as_ref()));
        self.unique_names("listeners", schema.listeners.iter().filter_map(|l| l.name.as_ref()));
        self.unique_names("pools", schema.pools.iter().filter_map(|p| p.name.as_ref()));
        for pool in &schema.pools {
            self.unique_names("backends of this pool", pool.backends.iter().filter_map(|b| b.name.as_ref()));
        }
    }

    /// Every address has one meaning.
    fn addresses(&mut self) {
        let schema = self.schema;
        let mut seen: HashMap<IpAddr, (Span, &str)> = HashMap::new();
        let owned = schema
            .ports
            .iter()
            .flat_map(|p| p.addresses.iter().map(|a| (a.value.0, a.span, "a port's own address")))
            .chain(
                schema.ports.iter().flat_map(|p| p.snat.iter().map(|a| (a.value, a.span, "a snat address"))),
            )
            .chain(schema.vips.iter().filter_map(|v| v.address.as_ref().map(|a| (a.value, a.span, "a vip"))));
        for (address, span, role) in owned {
            if !is_host(address) {
                self.push(
                    Diagnostic::error(span, format!("{address} cannot be {role}"))
                        .help("use a unicast address of a host"),
                );
            }
            if let Some((first, first_role)) = seen.insert(address, (span, role)) {
                let twice = if first_role == role {
                    format!("{address} is used twice")
                } else {
                    format!("{address} is used twice: {first_role} and {role}")
                };
                let mut finding =
                    Diagnostic::error(span, twice).related(first, format!("first here, as {first_role}"));
                if role == "a snat address" && first_role == "a port's own address" {
                    finding = finding
                        .help("remove it from snat: without snat, fullnat uses the port's own addresses");
                } else {
                    finding = finding.help("give each its own address");
                }
                self.push(finding);
            }
        }
        let servers = schema
            .pools
            .iter()
            .flat_map(|p| p.backends.iter().filter_map(|b| b.address.as_ref()))
            .map(|a| (a.value.0, a.span, "a backend"))
            .chain(
                schema.ports.iter().flat_map(|p| p.gateways.iter().map(|g| (g.value, g.span, "a gateway"))),
            );
        for (address, span, role) in servers {
            if !is_host(address) {
                self.push(
                    Diagnostic::error(span, format!("{address} cannot be {role}"))
                        .help("use a unicast address of a host"),
                );
            }
            if let Some((first, first_role)) = seen.get(&address).copied() {
                self.push(
                    Diagnostic::error(
                        span,
                        format!("{address} is {first_role} of this node, so it cannot be {role}"),
                    )
                    .related(first, format!("here, as {first_role}"))
                    .help("use the other machine's own address"),
                );
            }
        }
    }

    /// No bits after the length.
    fn is_network(&mut self, prefix: &Located<(IpAddr, u8)>) {
        let (address, length) = prefix.value;
        if network(address, length) != address {
            let message = format!("{address}/{length} has bits set after its prefix length");
            let help = format!("write {}/{length}", network(address, length));
            self.push(Diagnostic::error(prefix.span, message).help(help));
        }
    }

    fn reach(&self, address: IpAddr) -> Reach<'a> {
        if let Some(port) = self.schema.ports.iter().find(|port| on_link(port, address)) {
            return Reach::OnLink(port);
        }
        let routed = self.schema.ports.iter().find(|port| {
            let by_route = port
                .routes
                .iter()
                .filter_map(|r| r.prefix.as_ref())
                .any(|prefix| covers(prefix.value.0, prefix.value.1, address));
            by_route || port.gateways.iter().any(|g| g.value.is_ipv4() == address.is_ipv4())
        });
        routed.map_or(Reach::Nowhere, Reach::Routed)
    }

    fn workers(&mut self, machine: &Machine) -> Vec<u16> {
        let adaptive = self.schema.dataplane.adaptive.as_ref().is_some_and(|adaptive| adaptive.value);
        let online = machine.cpus.len();
        let pinned = !adaptive || online >= 3;
        let Some(workers) = &self.schema.dataplane.workers else { return machine.spare_cpus(pinned) };
        match &workers.value {
            Workers::Auto => machine.spare_cpus(pinned),
            Workers::Cpus(cpus) => {
                if let Some(cpu) = cpus.iter().find(|cpu| !machine.cpus.contains(cpu)) {
                    self.diagnostics.push(
                        Diagnostic::error(workers.span, format!("workers: CPU {cpu} is not online"))
                            .help(format!("online are {}", machine.describe())),
                    );
                }
                cpus.clone()
            }
            Workers::Count(count) => {
                let count = *count as usize;
                if count > online && !adaptive {
                    self.diagnostics.push(
                        Diagnostic::error(
                            workers.span,
                            format!("{count} spinning workers need {count} CPUs, {online} are online"),
                        )
                        .help("use fewer workers, or idle = \"adaptive\""),
                    );
                }
                machine.worker_cpus(count, pinned)
            }
        }
    }
}

fn on_link(port: &schema::Port, address: IpAddr) -> bool {
    port.addresses.iter().any(|own| covers(own.value.0, own.value.1, address))
}

fn is_host(address: IpAddr) -> bool {
    let reserved = match address {
        IpAddr::V4(v4) => {
            v4.is_broadcast() || v4.octets().first().is_some_and(|first| *first == 0 || *first >= 240)
        }
        IpAddr::V6(v6) => v6.to_ipv4_mapped().is_some(),
    };
    !(reserved || address.is_unspecified() || address.is_loopback() || address.is_multicast())
}
