//! Do the listeners make sense: names, ports, modes and families?

use std::collections::HashMap;
use std::net::IpAddr;

use weir_abi::record::Mode;

use super::{DEFAULT_MTU, IPV4_MINIMUM_MTU, IPV6_MINIMUM_MTU, Reach, Rules, routes};
use crate::diagnostic::{Diagnostic, Located, closest};
use crate::model::{self, format_ports};
use crate::schema;
use crate::units::family_name;

impl Rules<'_> {
    pub(super) fn listeners(&mut self) {
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
            self.proxy_fields(listener);
            self.http_fields(listener);
            match (vip, pool) {
                (Some(vip), Some(pool)) => self.mode_fits(listener, vip, pool),
                (Some(vip), None) if listener.of_http.is_some() => {
                    self.trusted_can_be_clients(listener, vip);
                    self.client_mss_fits(listener, vip);
                }
                _ => {}
            }
        }
        for (listener, pool) in routes::routed_pools(schema) {
            if let (Some(mode), Some(pool)) = (&listener.mode, pools.get(pool))
                && listener.pool.as_ref().map(|pool| &pool.value)
                    != pool.name.as_ref().map(|name| &name.value)
            {
                self.backends_fit(listener, mode, pool);
            }
        }
        self.overlapping_listeners();
    }

    pub(super) fn lookup<T: Copy>(
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
        if mode.value == Mode::Proxy {
            return self.proxy_fits(listener, mode, vip, pool);
        }
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
        type Taken<'a> = Vec<&'a Located<(u16, u16)>>;
        let mut seen: HashMap<(&str, u8), Taken<'_>> = HashMap::new();
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
}
