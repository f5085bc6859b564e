//! Does the file make sense as a whole? Consumes the schema and gives the model, or findings.
//!
//! All rules run even after errors: a rule skips what an earlier stage could not read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use weir_abi::record::{AdminState, Algorithm, MAX_POOL_BACKENDS, MAX_PORTS, Mode, OnDown};
use weir_balance::maglev::{DEFAULT_SLOTS, is_prime, next_prime};
use weir_balance::round_robin::DEFAULT_MAX_LEN;

use crate::diagnostic::{Diagnostic, Diagnostics, Located, Source, Span, closest};
use crate::machine::Machine;
use crate::model::{self, Model, format_ports};
use crate::schema::{self, Schema, Workers};
use crate::units::{covers, family_name, network};

const DEFAULT_TIMEOUTS_MS: [u32; 6] = [10_000, 900_000, 30_000, 60_000, 2_000, 30_000];
const DEFAULT_MTU: u32 = 1_500;
const DEFAULT_WEIGHT: u32 = 100;
/// RFC 8200 §5: every link of IPv6 carries packets of 1280 bytes.
const IPV6_MINIMUM_MTU: u32 = 1_280;
/// RFC 791 §3.1: what every IPv4 host accepts.
const IPV4_MINIMUM_MTU: u32 = 576;

/// Reads and checks a file. The model is there unless there are errors; warnings may be there with it.
pub fn load(source: Source<'_>, machine: &Machine) -> (Option<Model>, Diagnostics) {
    let mut diagnostics = Diagnostics::default();
    let schema = schema::parse(source.text, &mut diagnostics);
    let model = validate(schema, machine, &mut diagnostics);
    let usable = diagnostics.errors() == 0;
    (model.filter(|_| usable), diagnostics)
}

/// Applies all rules.
fn validate(schema: Schema, machine: &Machine, diagnostics: &mut Diagnostics) -> Option<Model> {
    let mut rules = Rules { schema: &schema, diagnostics };
    rules.names();
    rules.addresses();
    rules.ports();
    rules.pools();
    rules.listeners();
    let workers = rules.workers(machine);
    build(&schema, workers)
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

    fn unique_names<'n>(&mut self, what: &str, names: impl Iterator<Item = &'n Located<String>>) {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        for name in names {
            if let Some(first) = seen.insert(&name.value, name.span) {
                self.push(
                    Diagnostic::error(name.span, format!("two {what}s are named \"{}\"", name.value))
                        .related(first, "first here")
                        .help("rename one of them"),
                );
            }
        }
    }

    fn names(&mut self) {
        let schema = self.schema;
        self.unique_names("port", schema.ports.iter().filter_map(|p| p.name.as_ref()));
        self.unique_names("vip", schema.vips.iter().filter_map(|v| v.name.as_ref()));
        self.unique_names("listener", schema.listeners.iter().filter_map(|l| l.name.as_ref()));
        self.unique_names("pool", schema.pools.iter().filter_map(|p| p.name.as_ref()));
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
                let mut finding =
                    Diagnostic::error(span, format!("{address} is used twice: {first_role} and {role}"))
                        .related(first, format!("first here, as {first_role}"));
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

    fn ports(&mut self) {
        let schema = self.schema;
        if schema.ports.is_empty() {
            self.push(
                Diagnostic::error(
                    Span::default(),
                    "there is no port: Weir has nothing to receive packets from",
                )
                .help("add [[port]] with a name, a device and addresses"),
            );
        }
        if let Some(port) = schema.ports.get(MAX_PORTS) {
            self.push(
                Diagnostic::error(port.span, format!("{} ports are too many", schema.ports.len()))
                    .help(format!("use at most {MAX_PORTS}")),
            );
        }
        let mut devices: HashMap<&str, Span> = HashMap::new();
        for port in &schema.ports {
            if let Some(device) = &port.device
                && let Some(first) = devices.insert(&device.value, device.span)
            {
                self.push(
                    Diagnostic::error(device.span, format!("two ports use the device {}", device.value))
                        .related(first, "first here")
                        .help("give each port its own device"),
                );
            }
            self.port(port);
        }
        self.overlapping_networks();
    }

    fn port(&mut self, port: &schema::Port) {
        let mtu = port.mtu.as_ref().map_or(DEFAULT_MTU, |mtu| mtu.value);
        if let Some(v6) = port.addresses.iter().find(|a| a.value.0.is_ipv6())
            && mtu < IPV6_MINIMUM_MTU
        {
            let span = port.mtu.as_ref().map_or(port.span, |mtu| mtu.span);
            self.push(
                Diagnostic::error(span, format!("mtu = {mtu} is too small for the port's IPv6 address"))
                    .related(v6.span, "IPv6 address here")
                    .help(format!("use at least {IPV6_MINIMUM_MTU} bytes (RFC 8200, section 5)")),
            );
        }
        let hops = port.gateways.iter().map(|g| (g.value, g.span, "gateway"));
        let vias = port.routes.iter().filter_map(|r| r.via.as_ref()).map(|g| (g.value, g.span, "next hop"));
        for (hop, span, role) in hops.chain(vias) {
            if !on_link(port, hop) {
                self.push(
                    Diagnostic::error(span, format!("the {role} {hop} is not on-link on this port"))
                        .help(on_link_help(port, hop)),
                );
            }
        }
        for (position, gateway) in port.gateways.iter().enumerate() {
            let same = |other: &&Located<IpAddr>| other.value.is_ipv4() == gateway.value.is_ipv4();
            if let Some(first) = port.gateways.iter().take(position).find(same) {
                let family = family_name(gateway.value);
                self.push(
                    Diagnostic::error(gateway.span, format!("a second {family} gateway on this port"))
                        .related(first.span, "first here")
                        .help("keep one per family; use [[port.route]] for more specific next hops"),
                );
            }
        }
        let mut seen: HashMap<(IpAddr, u8), Span> = HashMap::new();
        for route in &port.routes {
            let (Some(prefix), Some(via)) = (&route.prefix, &route.via) else { continue };
            let (address, length) = prefix.value;
            if address.is_ipv4() != via.value.is_ipv4() {
                self.push(
                    Diagnostic::error(
                        via.span,
                        format!(
                            "an {} next hop for an {} prefix",
                            family_name(via.value),
                            family_name(address)
                        ),
                    )
                    .related(prefix.span, "prefix here")
                    .help("use a next hop of the prefix's family"),
                );
            }
            if network(address, length) != address {
                self.push(
                    Diagnostic::error(
                        prefix.span,
                        format!("{address}/{length} has bits set after its prefix length"),
                    )
                    .help(format!("write {}/{length}", network(address, length))),
                );
            }
            if let Some(first) = seen.insert((network(address, length), length), prefix.span) {
                self.push(
                    Diagnostic::error(prefix.span, format!("two routes for {address}/{length}"))
                        .related(first, "first here")
                        .help("remove one of them"),
                );
            }
        }
    }

    fn overlapping_networks(&mut self) {
        let schema = self.schema;
        let all: Vec<_> = schema
            .ports
            .iter()
            .enumerate()
            .flat_map(|(at, port)| port.addresses.iter().map(move |address| (at, address)))
            .collect();
        for (position, (port, address)) in all.iter().enumerate() {
            let (ip, length) = address.value;
            let other = all.iter().take(position).find(|(first_port, first)| {
                let (first_ip, first_length) = first.value;
                first_port != port && covers(ip, length.min(first_length), first_ip)
            });
            if let Some((_, first)) = other {
                self.push(
                    Diagnostic::warning(
                        address.span,
                        format!("the network of {ip}/{length} is on-link on two ports"),
                    )
                    .related(first.span, "also here")
                    .help(
                        "packets leave by the first port whose network matches best; use different networks",
                    ),
                );
            }
        }
    }

    fn pools(&mut self) {
        let schema = self.schema;
        let most = schema.dataplane.max_backends.as_ref().map_or(65_536, |most| most.value);
        let total: usize = schema.pools.iter().map(|pool| pool.backends.len()).sum();
        if total as u64 > u64::from(most) {
            let span = schema.dataplane.max_backends.as_ref().map_or(Span::default(), |m| m.span);
            self.push(
                Diagnostic::error(span, format!("{total} backends are more than max_backends = {most}"))
                    .help(format!(
                        "set [dataplane] max_backends to {total} or more, with room for removed ones"
                    )),
            );
        }
        for pool in &schema.pools {
            self.pool(pool);
        }
    }

    fn pool(&mut self, pool: &schema::Pool) {
        let algorithm = pool.algorithm.as_ref().map_or(Algorithm::Maglev, |a| a.value);
        if let Some(slots) = &pool.slots {
            if algorithm != Algorithm::RoundRobin && !is_prime(slots.value) {
                self.push(
                    Diagnostic::error(slots.span, format!("slots = {} is not a prime number", slots.value))
                        .help(format!("use {} (the default is {DEFAULT_SLOTS})", next_prime(slots.value))),
                );
            } else if (slots.value as usize) < pool.backends.len() {
                self.push(
                    Diagnostic::error(
                        slots.span,
                        format!(
                            "slots = {} is less than the pool's {} backends",
                            slots.value,
                            pool.backends.len()
                        ),
                    )
                    .help("use at least 100 slots per backend for even shares"),
                );
            }
        }
        if pool.backends.len() > MAX_POOL_BACKENDS {
            let message = format!("{} backends in one pool are too many", pool.backends.len());
            self.push(Diagnostic::error(pool.span, message).help(format!("use at most {MAX_POOL_BACKENDS}")));
        }
        if pool.backends.is_empty() {
            self.push(
                Diagnostic::warning(pool.span, "the pool has no backends: its flows will be dropped")
                    .help("add [[pool.backend]] with a name and an address"),
            );
        }
        let mut seen: HashMap<(IpAddr, u16), Span> = HashMap::new();
        for address in pool.backends.iter().filter_map(|b| b.address.as_ref()) {
            if let Some(first) = seen.insert(address.value, address.span) {
                let text = crate::units::format_backend_address(address.value.0, address.value.1);
                self.push(
                    Diagnostic::error(
                        address.span,
                        format!("two backends of this pool have the address {text}"),
                    )
                    .related(first, "first here")
                    .help("remove one, and give the other the weight of both"),
                );
            }
            let ip = address.value.0;
            if is_host(ip) && matches!(self.reach(ip), Reach::Nowhere) && !self.schema.ports.is_empty() {
                self.push(
                    Diagnostic::error(address.span, format!("no port reaches {ip}"))
                        .label("not on-link, and no route or gateway covers it")
                        .help(format!(
                            "add an {} gateway or a [[port.route]] for it, or an address of its network to a port",
                            family_name(ip)
                        )),
                );
            }
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

    fn listeners(&mut self) {
        let schema = self.schema;
        if let Some(listener) = schema.listeners.get(weir_abi::record::MAX_LISTENERS) {
            self.push(Diagnostic::error(listener.span, "too many listeners").help("use at most 65,535"));
        }
        let vips: HashMap<&str, &schema::Vip> = schema
            .vips
            .iter()
            .filter_map(|vip| vip.name.as_ref().map(|name| (name.value.as_str(), vip)))
            .collect();
        let pools: HashMap<&str, &schema::Pool> = schema
            .pools
            .iter()
            .filter_map(|pool| pool.name.as_ref().map(|name| (name.value.as_str(), pool)))
            .collect();
        for listener in &schema.listeners {
            let vip = listener.vip.as_ref().and_then(|name| self.lookup("vip", name, &vips, "vip"));
            let pool = listener.pool.as_ref().and_then(|name| self.lookup("pool", name, &pools, "pool"));
            self.gue_fields(listener);
            if let (Some(vip), Some(pool)) = (vip, pool) {
                self.mode_fits(listener, vip, pool);
            }
        }
        self.overlapping_listeners();
    }

    fn lookup<T: Copy>(
        &mut self,
        what: &str,
        name: &Located<String>,
        all: &HashMap<&str, T>,
        section: &str,
    ) -> Option<T> {
        let found = all.get(name.value.as_str()).copied();
        if found.is_none() {
            let mut known: Vec<&str> = all.keys().copied().collect();
            known.sort_unstable();
            let mut finding =
                Diagnostic::error(name.span, format!("there is no {what} named \"{}\"", name.value));
            if let Some(near) = closest(&name.value, known.iter().copied()) {
                finding = finding.label(format!("did you mean \"{near}\"?"));
            }
            self.push(
                finding.help(format!(
                    "add [[{section}]] with name = \"{}\", or use an existing one",
                    name.value
                )),
            );
        }
        found
    }

    fn gue_fields(&mut self, listener: &schema::Listener) {
        if listener.mode.as_ref().is_some_and(|mode| mode.value != Mode::Gue) {
            let fields =
                [("gue_port", listener.gue_port.as_ref()), ("gue_variant", listener.gue_variant.as_ref())];
            for (name, field) in fields {
                if let Some(field) = field {
                    self.push(
                        Diagnostic::error(
                            field.span,
                            format!("{name} has no meaning here: the mode is not gue"),
                        )
                        .help("remove it, or set mode = \"gue\""),
                    );
                }
            }
        }
    }

    fn mode_fits(&mut self, listener: &schema::Listener, vip: &schema::Vip, pool: &schema::Pool) {
        let Some(mode) = &listener.mode else { return };
        let Some(vip_address) = vip.address.as_ref() else { return };
        for backend in &pool.backends {
            let Some(address) = &backend.address else { continue };
            let (ip, port) = address.value;
            let rewrites = matches!(mode.value, Mode::Nat | Mode::Fullnat);
            if (rewrites || mode.value == Mode::Dsr) && ip.is_ipv4() != vip_address.value.is_ipv4() {
                self.push(
                    Diagnostic::error(
                        mode.span,
                        format!(
                            "mode \"{}\" cannot carry {} to the {} backend {ip}",
                            mode.value.name(),
                            family_name(vip_address.value),
                            family_name(ip)
                        ),
                    )
                    .related(address.span, "backend here")
                    .help("use backends of the vip's family, or ipip or gue, which carry either in either"),
                );
                break;
            }
            if !rewrites
                && port != 0
                && listener.ports.as_ref().is_some_and(|ports| ports.value != (port, port))
            {
                let ports = listener.ports.as_ref().map_or((0, 0), |ports| ports.value);
                self.push(
                    Diagnostic::error(
                        address.span,
                        format!(
                            "mode \"{}\" cannot rewrite port {} to {port}",
                            mode.value.name(),
                            format_ports(ports)
                        ),
                    )
                    .related(mode.span, "mode here")
                    .help("leave the port out of the backend's address, or use nat or fullnat"),
                );
            }
            if mode.value == Mode::Dsr && matches!(self.reach(ip), Reach::Routed(_)) {
                self.push(
                    Diagnostic::error(address.span, format!("mode \"dsr\" needs the backend {ip} on-link"))
                        .related(mode.span, "mode here")
                        .help("put a port into the backend's network, or use ipip or gue"),
                );
            }
            if matches!(mode.value, Mode::Ipip | Mode::Gue) {
                self.tunnel_fits(listener, mode, vip_address.value, address);
            }
        }
        if mode.value == Mode::Fullnat {
            self.source_exists(mode, vip_address.value);
        }
    }

    fn tunnel_fits(
        &mut self,
        listener: &schema::Listener,
        mode: &Located<Mode>,
        vip: IpAddr,
        backend: &Located<(IpAddr, u16)>,
    ) {
        let ip = backend.value.0;
        let (Reach::OnLink(port) | Reach::Routed(port)) = self.reach(ip) else { return };
        if !port.addresses.iter().any(|a| a.value.0.is_ipv4() == ip.is_ipv4()) {
            self.push(
                Diagnostic::error(
                    mode.span,
                    format!("the tunnel to {ip} has no source: its port has no {} address", family_name(ip)),
                )
                .related(port.span, "port here")
                .help(format!("add an {} address to the port's addresses", family_name(ip))),
            );
        }
        let variant = listener.gue_variant.as_ref().map_or(1, |variant| variant.value);
        let outer = if ip.is_ipv4() { 20 } else { 40 };
        let overhead = outer
            + match (mode.value, variant) {
                (Mode::Gue, 0) => 12,
                (Mode::Gue, _) => 8,
                _ => 0,
            };
        let least = overhead + if vip.is_ipv4() { IPV4_MINIMUM_MTU } else { IPV6_MINIMUM_MTU };
        let mtu = port.mtu.as_ref().map_or(DEFAULT_MTU, |mtu| mtu.value);
        if mtu < least {
            let span = port.mtu.as_ref().map_or(port.span, |mtu| mtu.span);
            self.push(
                Diagnostic::error(
                    span,
                    format!(
                        "mtu = {mtu} leaves {} bytes inside the tunnel to {ip}",
                        mtu.saturating_sub(overhead)
                    ),
                )
                .related(mode.span, "tunnel of this listener")
                .help(format!(
                    "use at least {least}: {overhead} bytes of tunnel headers and {} of packet",
                    least - overhead
                )),
            );
        }
    }

    fn source_exists(&mut self, mode: &Located<Mode>, vip: IpAddr) {
        let has = self.schema.ports.iter().any(|port| {
            port.snat
                .iter()
                .map(|a| a.value)
                .chain(port.addresses.iter().map(|a| a.value.0))
                .any(|a| a.is_ipv4() == vip.is_ipv4())
        });
        if !has {
            let family = family_name(vip);
            self.push(
                Diagnostic::error(mode.span, format!("mode \"fullnat\" has no {family} source address"))
                    .help(format!("add an {family} address to a port's snat or addresses")),
            );
        }
    }

    fn overlapping_listeners(&mut self) {
        let mut seen: HashMap<(&str, u8), Vec<&Located<(u16, u16)>>> = HashMap::new();
        for listener in &self.schema.listeners {
            let (Some(vip), Some(protocol), Some(ports)) =
                (&listener.vip, &listener.protocol, &listener.ports)
            else {
                continue;
            };
            let others = seen.entry((vip.value.as_str(), protocol.value)).or_default();
            let (first, last) = ports.value;
            if let Some(other) = others.iter().find(|o| o.value.0 <= last && first <= o.value.1) {
                self.diagnostics.push(
                    Diagnostic::error(
                        ports.span,
                        format!(
                            "{} port {} of vip \"{}\" belongs to another listener",
                            model::protocol_name(protocol.value),
                            format_ports((first.max(other.value.0), last.min(other.value.1))),
                            vip.value
                        ),
                    )
                    .related(other.span, "first here")
                    .help("give each listener its own ports"),
                );
            }
            others.push(ports);
        }
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

fn on_link_help(port: &schema::Port, address: IpAddr) -> String {
    let networks: Vec<String> = port
        .addresses
        .iter()
        .filter(|own| own.value.0.is_ipv4() == address.is_ipv4())
        .map(|own| format!("{}/{}", network(own.value.0, own.value.1), own.value.1))
        .collect();
    if networks.is_empty() {
        format!("add an {} address of its network to the port's addresses", family_name(address))
    } else {
        format!("on-link here: {}", networks.join(", "))
    }
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

/// The model of what was understood; `None` where something needed is missing (and was reported).
fn build(schema: &Schema, worker_cpus: Vec<u16>) -> Option<Model> {
    let dataplane = &schema.dataplane;
    let or = |field: &Option<Located<u32>>, default: u32| field.as_ref().map_or(default, |f| f.value);
    let mut timeouts_ms = DEFAULT_TIMEOUTS_MS;
    for (slot, given) in timeouts_ms.iter_mut().zip(&schema.timeouts) {
        if let Some(given) = given {
            *slot = given.value.as_millis() as u32;
        }
    }
    let node = model::Node {
        worker_cpus,
        adaptive: dataplane.adaptive.as_ref().is_some_and(|adaptive| adaptive.value),
        flows_ipv4: or(&dataplane.flows_ipv4, 1_048_576),
        flows_ipv6: or(&dataplane.flows_ipv6, 262_144),
        buffers: or(&dataplane.buffers, 0),
        buffer_bytes: or(&dataplane.buffer_bytes, 0),
        hash_key: dataplane.hash_key.as_ref().map(|key| key.value),
        icmp_rate: or(&dataplane.icmp_rate, 1_000),
        max_backends: or(&dataplane.max_backends, 65_536),
        snat_ports: dataplane.snat_ports.as_ref().map_or((1_024, 65_535), |ports| ports.value),
        timeouts_ms,
        ports: schema.ports.iter().map(build_port).collect::<Option<_>>()?,
    };
    let vips = schema
        .vips
        .iter()
        .map(|vip| {
            Some(model::Vip { name: vip.name.as_ref()?.value.clone(), address: vip.address.as_ref()?.value })
        })
        .collect::<Option<_>>()?;
    let listeners = schema.listeners.iter().map(|l| build_listener(schema, l)).collect::<Option<_>>()?;
    let pools = schema.pools.iter().map(build_pool).collect::<Option<_>>()?;
    Some(Model { node, vips, listeners, pools })
}

fn build_port(port: &schema::Port) -> Option<model::Port> {
    let or = |field: &Option<Located<u32>>, default: u32| field.as_ref().map_or(default, |f| f.value) as u16;
    let routes = port.routes.iter().filter_map(|route| {
        let (prefix, length) = route.prefix.as_ref()?.value;
        Some(model::Route { prefix, length, gateway: route.via.as_ref()?.value })
    });
    let gateways = port.gateways.iter().map(|gateway| model::Route {
        prefix: network(gateway.value, 0),
        length: 0,
        gateway: gateway.value,
    });
    Some(model::Port {
        name: port.name.as_ref()?.value.clone(),
        device: port.device.as_ref()?.value.clone(),
        mtu: or(&port.mtu, DEFAULT_MTU),
        vlan: or(&port.vlan, 0),
        queues: or(&port.queues, 0),
        descriptors: or(&port.descriptors, 0),
        addresses: port.addresses.iter().map(|a| a.value).collect(),
        snat: port.snat.iter().map(|a| a.value).collect(),
        routes: gateways.chain(routes).collect(),
    })
}

fn build_listener(schema: &Schema, listener: &schema::Listener) -> Option<model::Listener> {
    let is = |name: &Option<Located<String>>, wanted: &Located<String>| {
        name.as_ref().is_some_and(|name| name.value == wanted.value)
    };
    let vip = listener.vip.as_ref()?;
    let pool_name = listener.pool.as_ref()?;
    let pool = schema.pools.iter().position(|p| is(&p.name, pool_name))?;
    let mode = listener.mode.as_ref()?.value;
    let protocol = listener.protocol.as_ref()?.value;
    let by_mode = match mode {
        Mode::Nat | Mode::Fullnat if protocol == 6 => OnDown::Reset,
        _ => OnDown::Reselect,
    };
    let of_pool = schema.pools.get(pool).and_then(|pool| pool.on_down.as_ref());
    let on_down = listener.on_down.as_ref().or(of_pool).map_or(by_mode, |on_down| on_down.value);
    Some(model::Listener {
        name: listener.name.as_ref()?.value.clone(),
        vip: schema.vips.iter().position(|v| is(&v.name, vip))?,
        ports: listener.ports.as_ref()?.value,
        protocol,
        mode,
        pool,
        gue_port: listener.gue_port.as_ref().map_or(6_080, |port| port.value as u16),
        gue_variant: listener.gue_variant.as_ref().map_or(1, |variant| variant.value as u8),
        on_down,
    })
}

fn build_pool(pool: &schema::Pool) -> Option<Arc<model::Pool>> {
    let backends = pool
        .backends
        .iter()
        .map(|backend| {
            let (address, port) = backend.address.as_ref()?.value;
            Some(model::Backend {
                name: backend.name.as_ref()?.value.clone(),
                address,
                port,
                weight: backend.weight.as_ref().map_or(DEFAULT_WEIGHT, |weight| weight.value) as u16,
                state: backend.state.as_ref().map_or(AdminState::Ready, |state| state.value),
            })
        })
        .collect::<Option<_>>()?;
    let algorithm = pool.algorithm.as_ref().map_or(Algorithm::Maglev, |algorithm| algorithm.value);
    let default_slots = match algorithm {
        Algorithm::RoundRobin => DEFAULT_MAX_LEN as u32,
        Algorithm::Maglev | Algorithm::SourceHash => DEFAULT_SLOTS,
    };
    Some(Arc::new(model::Pool {
        name: pool.name.as_ref()?.value.clone(),
        algorithm,
        slots: pool.slots.as_ref().map_or(default_slots, |slots| slots.value),
        backends,
    }))
}
