//! The standard lab: one client, one balancer, one router, some backends.
//!
//! ```text
//!                          ┌──────────┐ wan                lan ┌──────────┐
//!   client ──── br-wan ────┤    lb    ├──── br-lan ─────┬──────┤ backend1 │ 198.18.1.11  2001:db8:19::11
//!   198.18.0.1    │        │  (Weir)  │       │         ├──────┤ backend2 │ 198.18.1.12  2001:db8:19::12
//!   2001:db8:18::1│        └──────────┘       │         └──────┤ backend3 │ 198.18.1.13  2001:db8:19::13
//!                 │  198.18.0.254  198.18.1.254                └──────────┘
//!                 └──────── router ───────────┘    the way back of dsr, ipip and gue: it never sees Weir
//!                     .0.253    .1.253
//! ```
//!
//! A backend answers from its own address through Weir (`nat`), and from a VIP through the router (`dsr` and the
//! tunnels). The balancer's namespace gives its interfaces no address: the kernel there stays silent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::namespace::{Namespace, link};

/// Number of backends of the standard lab.
pub(crate) const BACKENDS: usize = 3;
/// The client's addresses.
pub(crate) const CLIENT: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 0, 1), Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1));
/// Weir's addresses on the client's side.
pub(crate) const WAN: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 0, 254), Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 0x254));
/// Weir's addresses on the backends' side.
pub(crate) const LAN: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 1, 254), Ipv6Addr::new(0x2001, 0xdb8, 0x19, 0, 0, 0, 0, 0x254));
/// Where `fullnat` connects from, unless a scenario says otherwise.
pub(crate) const SNAT: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 1, 200), Ipv6Addr::new(0x2001, 0xdb8, 0x19, 0, 0, 0, 0, 0x200));

/// Address of the nth VIP, counted from 1.
pub(crate) fn vip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(198, 18, 100, number).into(),
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, number.into()).into(),
    }
}

/// Address of the nth backend, counted from 1.
pub(crate) fn backend(family: Family, number: usize) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::new(198, 18, 1, 10 + number as u8).into(),
        // written as in IPv4: backend 2 is ::12
        Family::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0x19, 0, 0, 0, 0, 0x10 + number as u16).into(),
    }
}

/// Name of the nth backend, in configurations and in what its server answers.
pub(crate) fn backend_name(number: usize) -> String {
    format!("app-{number}")
}

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl Family {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// `ipv4` or `ipv6`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// Through what Weir's ports reach the lab's links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Io {
    /// XSK on a veth.
    AfXdp,
    /// Packet socket on a veth.
    AfPacket,
    /// A TAP that the driver makes, put on the same bridge.
    Tap,
}

impl Io {
    /// All, fastest first.
    pub(crate) const ALL: [Self; 3] = [Self::AfXdp, Self::AfPacket, Self::Tap];

    /// As configurations write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AfXdp => "af_xdp",
            Self::AfPacket => "af_packet",
            Self::Tap => "tap",
        }
    }
}

/// The namespaces of one run, wired.
#[derive(Debug)]
pub(crate) struct Lab {
    /// Where clients run.
    pub(crate) client: Namespace,
    /// Where Weir runs.
    pub(crate) lb: Namespace,
    /// Where servers run.
    pub(crate) backends: Vec<Namespace>,
    /// The way back of `dsr` and the tunnels.
    pub(crate) router: Namespace,
    /// Holds the two bridges.
    pub(crate) switch: Namespace,
    io: Io,
}

/// The two segments; also the names of Weir's interfaces.
pub(crate) const SEGMENTS: [&str; 2] = ["wan", "lan"];

impl Lab {
    /// Builds it. With [`Io::Tap`] the balancer's interfaces appear only when Weir starts; see [`Lab::attach_taps`].
    pub(crate) fn build(run: &str, io: Io) -> Result<Self> {
        let switch = Namespace::create(run, "switch")?;
        switch.sysctl(&[("net.ipv6.conf.default.disable_ipv6", "1")])?;
        let lb = Namespace::create(run, "lb")?;
        lb.sysctl(&[
            ("net.ipv6.conf.default.disable_ipv6", "1"),
            ("net.ipv4.ip_forward", "0"),
            // nothing here may answer for Weir
            ("net.ipv4.conf.default.arp_ignore", "8"),
        ])?;
        let client = Namespace::create(run, "client")?;
        let router = Namespace::create(run, "router")?;
        let backends = (1..=BACKENDS)
            .map(|number| Namespace::create(run, &format!("backend{number}")))
            .collect::<Result<Vec<_>>>()?;
        let lab = Self { client, lb, backends, router, switch, io };
        lab.wire()?;
        lab.address()?;
        Ok(lab)
    }

    fn wire(&self) -> Result<()> {
        let mut bridges = String::new();
        for segment in SEGMENTS {
            bridges += &format!(
                "link add br-{segment} type bridge forward_delay 0 mcast_snooping 0\nlink set br-{segment} up\n"
            );
        }
        self.switch.ip(&bridges)?;
        self.plug(&self.client, "eth0", "wan", "client")?;
        self.plug(&self.router, "wan", "wan", "router-wan")?;
        self.plug(&self.router, "lan", "lan", "router-lan")?;
        for (position, backend) in self.backends.iter().enumerate() {
            self.plug(backend, "eth0", "lan", &format!("backend{}", position + 1))?;
        }
        for segment in SEGMENTS {
            match self.io {
                Io::AfXdp | Io::AfPacket => {
                    self.plug(&self.lb, segment, segment, &format!("lb-{segment}"))?
                }
                // a TAP dies with its process, so it sits behind a bridge of its own whose uplink stays
                Io::Tap => {
                    let uplink = format!("{segment}-up");
                    self.lb.ip(&format!(
                        "link add br-{segment} type bridge forward_delay 0 mcast_snooping 0\nlink set br-{segment} up\n"
                    ))?;
                    self.plug(&self.lb, &uplink, segment, &format!("lb-{segment}"))?;
                    self.lb.ip(&format!("link set {uplink} master br-{segment}\n"))?;
                }
            }
        }
        Ok(())
    }

    /// A veth from `host` to a segment's bridge, frames as on a wire.
    fn plug(&self, host: &Namespace, interface: &str, segment: &str, port: &str) -> Result<()> {
        link(host, interface, &self.switch, port, 1500)?;
        self.switch.ip(&format!("link set {port} master br-{segment}\n"))?;
        host.plain_frames(&[interface])?;
        self.switch.plain_frames(&[port])
    }

    fn address(&self) -> Result<()> {
        let (wan4, wan6) = WAN;
        let (lan4, lan6) = LAN;
        self.client.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n\
             route add 198.18.100.0/24 via {wan4}\nroute add 2001:db8:100::/64 via {wan6}\n",
            CLIENT.0, CLIENT.1
        ))?;
        self.router.sysctl(&[("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")])?;
        self.router.ip("addr add 198.18.0.253/24 dev wan\naddr add 2001:db8:18::253/64 dev wan nodad\n\
             addr add 198.18.1.253/24 dev lan\naddr add 2001:db8:19::253/64 dev lan nodad\n")?;
        for (position, namespace) in self.backends.iter().enumerate() {
            namespace
                .sysctl(&[("net.ipv4.conf.all.arp_ignore", "1"), ("net.ipv4.conf.all.arp_announce", "2")])?;
            let (v4, v6) = (backend(Family::Ipv4, position + 1), backend(Family::Ipv6, position + 1));
            namespace.ip(&format!(
                "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
                 route add 198.18.0.0/15 via {lan4}\nroute add 2001:db8::/32 via {lan6}\n\
                 route add 198.18.0.0/15 via 198.18.1.253 table 100\n\
                 route add 2001:db8::/32 via 2001:db8:19::253 table 100\n\
                 rule add from 198.18.100.0/24 table 100\n"
            ))?;
            namespace.ip6("rule add from 2001:db8:100::/64 table 100\n")?;
        }
        Ok(())
    }

    /// Gives every backend the VIP, as `dsr` and the tunnels ask.
    pub(crate) fn accept_vip(&self, address: IpAddr) -> Result<()> {
        for namespace in &self.backends {
            match address {
                IpAddr::V4(address) => namespace.ip(&format!("addr replace {address}/32 dev lo\n"))?,
                IpAddr::V6(address) => namespace.ip(&format!("addr replace {address}/128 dev lo nodad\n"))?,
            };
        }
        Ok(())
    }

    /// The device string of one of Weir's ports.
    pub(crate) fn device(&self, segment: &str) -> String {
        format!("{}:{segment}", self.io.name())
    }

    /// After Weir's start: puts the TAPs that the driver made on their bridges. `false` while they aren't there yet.
    pub(crate) fn attach_taps(&self) -> Result<bool> {
        if self.io != Io::Tap {
            return Ok(true);
        }
        for (segment, last) in SEGMENTS.into_iter().zip([0xa1, 0xa2]) {
            // a bridge keeps frames for its ports' own addresses to itself, and this one's is Weir's: the kernel's end
            // gets another
            let lines = format!(
                "link set {segment} address 02:00:00:00:00:{last:x}\n\
                 link set {segment} master br-{segment}\nlink set {segment} up\n"
            );
            if self.lb.ip(&lines).is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Removes the XDP programs that a killed dataplane left on its interfaces.
    pub(crate) fn remove_stale_xdp(&self) -> Result<()> {
        if self.io == Io::AfXdp {
            for segment in SEGMENTS {
                self.lb.ip(&format!("link set dev {segment} xdp off\n"))?;
            }
        }
        Ok(())
    }

    /// Leaves everything behind when this value is dropped.
    pub(crate) fn keep(&mut self) {
        for namespace in [&mut self.client, &mut self.lb, &mut self.router, &mut self.switch]
            .into_iter()
            .chain(&mut self.backends)
        {
            namespace.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    /// Every device of the lab must reach its neighbours before Weir is blamed for anything.
    #[test]
    fn the_lab_is_wired() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: namespaces need root");
            return;
        }
        let lab = Lab::build(&format!("t{}n9000", std::process::id()), Io::AfXdp).unwrap();
        let ping = |from: &Namespace, extra: &[&str], to: &str| {
            let mut command = from.command("ping");
            command.args(["-c", "1", "-W", "2"]).args(extra).arg(to);
            command::run(&mut command).map(drop)
        };
        ping(&lab.client, &[], "198.18.0.253").unwrap();
        ping(&lab.client, &[], "2001:db8:18::253").unwrap();
        for family in Family::BOTH {
            lab.accept_vip(vip(family, 1)).unwrap();
        }
        for namespace in &lab.backends {
            ping(namespace, &[], "198.18.1.253").unwrap();
            ping(namespace, &[], "2001:db8:19::253").unwrap();
            // a VIP speaks to the client through the router, never through Weir
            let route = namespace.ip("route get 198.18.0.1 from 198.18.100.1\n").unwrap();
            assert!(route.contains("via 198.18.1.253"), "{route}");
            let route = namespace.ip("route get 2001:db8:18::1 from 2001:db8:100::1\n").unwrap();
            assert!(route.contains("via 2001:db8:19::253"), "{route}");
            let route = namespace.ip("route get 198.18.0.1\n").unwrap();
            assert!(route.contains("via 198.18.1.254"), "{route}");
        }
        // nobody answers for Weir
        assert!(ping(&lab.client, &[], "198.18.0.254").is_err());
    }
}
