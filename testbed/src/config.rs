//! Configurations for scenarios, written as the TOML that a user would write.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::topology::lab::{BACKENDS, Family, LAN, SNAT, WAN, backend, backend_name, vip};
use crate::traffic::servers::{SERVER_PORT, VIP_PORT};

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Ethernet address rewritten.
    Dsr,
    /// IP in IP.
    Ipip,
    /// Generic UDP encapsulation.
    Gue,
    /// Destination rewritten.
    Nat,
    /// Both ends rewritten.
    Fullnat,
    /// TCP ends in Weir.
    Proxy,
}

impl Mode {
    /// Those that forward packets.
    pub(crate) const ALL: [Self; 5] = [Self::Dsr, Self::Ipip, Self::Gue, Self::Nat, Self::Fullnat];

    /// As configurations write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
            Self::Gue => "gue",
            Self::Nat => "nat",
            Self::Fullnat => "fullnat",
            Self::Proxy => "proxy",
        }
    }

    /// Whether the backend sees its own address as the destination, so that the backend needs no VIP and may listen elsewhere.
    pub(crate) fn rewrites(self) -> bool {
        matches!(self, Self::Nat | Self::Fullnat | Self::Proxy)
    }

    /// Whether the backend must unwrap what it gets.
    pub(crate) fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue)
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// As configurations write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// One listener with a pool of its own.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    /// Name of the listener and of its pool.
    pub(crate) name: String,
    /// Mode.
    pub(crate) mode: Mode,
    /// Protocol.
    pub(crate) protocol: Protocol,
    /// Family of the VIP and of the backends' addresses.
    pub(crate) family: Family,
    /// Number of the VIP in [`vip`].
    pub(crate) vip: u8,
    /// Port or range, as TOML.
    pub(crate) port: String,
    /// Port of the backends; `None` keeps the client's.
    pub(crate) backend_port: Option<u16>,
    /// Family of the backends' addresses, where a tunnel's or a proxy's differs from the VIP's.
    pub(crate) outer: Option<Family>,
    /// Backends by number in the lab, with their weights.
    pub(crate) backends: Vec<(usize, u32)>,
    /// More lines of the listener.
    pub(crate) listener_lines: String,
    /// More lines of the pool.
    pub(crate) pool_lines: String,
    /// More lines of each backend.
    pub(crate) backend_lines: String,
}

impl Service {
    /// A listener on VIP 1, all backends with weight 100.
    pub(crate) fn new(mode: Mode, protocol: Protocol, family: Family) -> Self {
        Self {
            name: format!("{}-{}-{}", mode.name(), protocol.name(), family.name()),
            mode,
            protocol,
            family,
            vip: 1,
            port: VIP_PORT.to_string(),
            backend_port: mode.rewrites().then_some(SERVER_PORT),
            outer: None,
            backends: (1..=BACKENDS).map(|number| (number, 100)).collect(),
            listener_lines: String::new(),
            pool_lines: String::new(),
            backend_lines: String::new(),
        }
    }

    /// Its VIP.
    pub(crate) fn address(&self) -> IpAddr {
        vip(self.family, self.vip)
    }

    /// Where clients connect.
    pub(crate) fn target(&self) -> std::net::SocketAddr {
        let first = self.port.trim_matches('"').split('-').next().and_then(|port| port.parse().ok());
        std::net::SocketAddr::new(self.address(), first.unwrap_or(VIP_PORT))
    }

    /// On another VIP.
    pub(crate) fn on_vip(mut self, number: u8) -> Self {
        self.vip = number;
        self.name = format!("{}-{number}", self.name);
        self
    }

    fn vip_name(&self) -> String {
        format!("{}-{}", self.family.name(), self.vip)
    }

    fn toml(&self) -> String {
        let mut text = String::new();
        let (name, mode, protocol) = (&self.name, self.mode.name(), self.protocol.name());
        let (vip, port) = (self.vip_name(), &self.port);
        let _ = write!(
            text,
            "\n[[listener]]\nname = \"{name}\"\nvip = \"{vip}\"\nprotocol = \"{protocol}\"\nport = {port}\n\
             mode = \"{mode}\"\npool = \"{name}\"\n{}\n[[pool]]\nname = \"{name}\"\n{}",
            self.listener_lines, self.pool_lines
        );
        for &(number, weight) in &self.backends {
            let address = backend(self.outer.unwrap_or(self.family), number);
            let address = match self.backend_port {
                Some(port) => std::net::SocketAddr::new(address, port).to_string(),
                None => address.to_string(),
            };
            let _ = write!(
                text,
                "\n[[pool.backend]]\nname = \"{}\"\naddress = \"{address}\"\nweight = {weight}\n{}",
                backend_name(number),
                self.backend_lines
            );
        }
        text
    }
}

/// A whole configuration.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Lines of `[dataplane]`.
    pub(crate) dataplane: String,
    /// Lines of `[timeouts]`.
    pub(crate) timeouts: String,
    /// More lines of port `wan`.
    pub(crate) wan: String,
    /// More lines of port `lan`.
    pub(crate) lan: String,
    /// Device strings of the two ports.
    pub(crate) devices: [String; 2],
    /// Listeners with their pools.
    pub(crate) services: Vec<Service>,
    /// More sections, as they are.
    pub(crate) more: String,
}

impl Config {
    /// One adaptive worker on the lab's ports.
    pub(crate) fn new(devices: [String; 2], services: Vec<Service>) -> Self {
        Self {
            dataplane: "workers = 1\nidle = \"adaptive\"\nflow_table = { ipv4 = 65536, ipv6 = 65536 }\n\
                        buffers = 16384\n"
                .to_owned(),
            timeouts: String::new(),
            wan: String::new(),
            lan: String::new(),
            devices,
            services,
            more: String::new(),
        }
    }

    /// As text.
    pub(crate) fn toml(&self) -> String {
        let mut text = format!("[dataplane]\n{}", self.dataplane);
        if !self.timeouts.is_empty() {
            let _ = write!(text, "\n[timeouts]\n{}", self.timeouts);
        }
        let mut lan = self.lan.clone();
        if self.services.iter().any(|service| service.mode == Mode::Fullnat) && !lan.contains("snat") {
            let _ = writeln!(lan, "snat = [\"{}\", \"{}\"]", SNAT.0, SNAT.1);
        }
        let ports = [("wan", WAN, &self.wan), ("lan", LAN, &lan)];
        for ((name, (v4, v6), more), device) in ports.into_iter().zip(&self.devices) {
            let _ = write!(
                text,
                "\n[[port]]\nname = \"{name}\"\ndevice = \"{device}\"\naddresses = [\"{v4}/24\", \"{v6}/64\"]\n{more}"
            );
        }
        let mut seen = Vec::new();
        for service in &self.services {
            let name = service.vip_name();
            if !seen.contains(&name) {
                let _ = write!(text, "\n[[vip]]\nname = \"{name}\"\naddress = \"{}\"\n", service.address());
                seen.push(name);
            }
        }
        for service in &self.services {
            text += &service.toml();
        }
        text += &self.more;
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vip_is_declared_once_and_ports_follow_the_mode() {
        let services = vec![
            Service::new(Mode::Nat, Protocol::Tcp, Family::Ipv6),
            Service::new(Mode::Dsr, Protocol::Udp, Family::Ipv6),
            Service::new(Mode::Ipip, Protocol::Tcp, Family::Ipv4).on_vip(2),
        ];
        let text = Config::new(["af_xdp:wan".into(), "af_xdp:lan".into()], services).toml();
        assert_eq!(text.matches("[[vip]]").count(), 2);
        assert!(text.contains("address = \"[2001:db8:19::11]:8080\""), "{text}");
        assert!(text.contains("address = \"198.18.1.13\""), "{text}");
        assert!(text.contains("name = \"ipip-tcp-ipv4-2\""), "{text}");
    }
}
