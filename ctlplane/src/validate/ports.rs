//! Do the ports make sense: devices, MTUs, next hops, networks?

use std::collections::HashMap;
use std::net::IpAddr;

use weir_abi::record::MAX_PORTS;

use super::{DEFAULT_MTU, IPV6_MINIMUM_MTU, Rules, on_link};
use crate::diagnostic::{Diagnostic, Located, Span};
use crate::schema;
use crate::units::{covers, family_name, network};

impl Rules<'_> {
    pub(super) fn ports(&mut self) {
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
                && device.value != "null:"
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
        for own in &port.addresses {
            let (address, length) = own.value;
            let taken = match address {
                IpAddr::V4(_) if length > 30 => None,
                IpAddr::V4(_) if network(address, length) == address => Some("network"),
                IpAddr::V4(v4) => {
                    let last = u32::from(v4) | (u32::MAX >> length);
                    (last == u32::from(v4)).then_some("broadcast")
                }
                IpAddr::V6(_) => None,
            };
            if let Some(taken) = taken {
                self.push(
                    Diagnostic::error(
                        own.span,
                        format!("{address} is the {taken} address of {address}/{length}"),
                    )
                    .help("use the address of a host in it"),
                );
            }
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
            self.is_network(prefix);
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
}

fn on_link_help(port: &schema::Port, address: IpAddr) -> String {
    let mut networks: Vec<String> = port
        .addresses
        .iter()
        .filter(|own| own.value.0.is_ipv4() == address.is_ipv4())
        .map(|own| format!("{}/{}", network(own.value.0, own.value.1), own.value.1))
        .collect();
    networks.dedup();
    if networks.is_empty() {
        format!("add an {} address of its network to the port's addresses", family_name(address))
    } else {
        format!("on-link here: {}", networks.join(", "))
    }
}
