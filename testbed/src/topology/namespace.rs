//! One network namespace and the links that lead out of it.
//!
//! Names start with `weir-t<pid>n<number>-`, so that what a crashed run left behind can be told from what a live one
//! uses. Dropping a [`Namespace`] deletes it, and with it its interfaces.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::command;

/// What every name that the testbed gives starts with.
pub(crate) const PREFIX: &str = "weir-t";

/// A namespace that this process made.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    kept: bool,
}

impl Namespace {
    /// Makes it, with its loopback up; IPv6 without duplicate-address detection and router solicitations.
    pub(crate) fn create(run: &str, role: &str) -> Result<Self> {
        let name = format!("weir-{run}-{role}");
        command::call("ip", &["netns", "add", &name])?;
        let namespace = Self { name, kept: false };
        namespace.sysctl(&[
            ("net.ipv6.conf.default.accept_dad", "0"),
            ("net.ipv6.conf.default.dad_transmits", "0"),
            ("net.ipv6.conf.all.accept_ra", "0"),
            ("net.ipv6.conf.default.accept_ra", "0"),
            ("net.ipv6.conf.default.router_solicitations", "0"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.default.rp_filter", "0"),
            ("net.ipv4.icmp_ratelimit", "0"),
            ("net.ipv6.icmp.ratelimit", "0"),
            ("net.ipv4.tcp_no_metrics_save", "1"),
        ])?;
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// One that exists already and is not this process's to delete.
    pub(crate) fn existing(name: &str) -> Self {
        Self { name: name.to_owned(), kept: true }
    }

    /// Its full name, as `ip netns` shows it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it behind when this value is dropped.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }

    /// Runs lines of `ip` in it, in one go.
    pub(crate) fn ip(&self, lines: &str) -> Result<String> {
        command::run_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), Some(lines))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// The same with `ip -6`, for the few commands that don't infer the family from their addresses.
    pub(crate) fn ip6(&self, lines: &str) -> Result<String> {
        command::run_with_input(Command::new("ip").args(["-6", "-n", &self.name, "-batch", "-"]), Some(lines))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Sets kernel parameters in it.
    pub(crate) fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (name, value) in values {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                std::fs::write(&path, value).with_context(|| format!("could not write {value} to {path}"))?;
            }
            Ok(())
        })?
    }

    /// A command that will run inside it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` on a thread of its own inside the namespace and waits for it. Sockets that it opens stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Moves the calling thread into it, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        enter(&self.name)
    }

    /// Turns off what an XSK can't take: checksum and segmentation offloads, merging, VLAN acceleration.
    pub(crate) fn plain_frames(&self, interfaces: &[&str]) -> Result<()> {
        let script: Vec<String> = interfaces
            .iter()
            .map(|name| {
                format!("ethtool -K {name} tx off tso off gso off gro off txvlan off rxvlan off >/dev/null")
            })
            .collect();
        command::run(self.command("sh").args(["-ec", &script.join("\n")])).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.kept {
            // best effort: `cargo testbed clean` finds what is left
            let _ = command::call("ip", &["netns", "del", &self.name]);
        }
    }
}

/// Moves the calling thread into the namespace of that name, for good.
pub(crate) fn enter(name: &str) -> Result<()> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| format!("could not open {path}"))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("could not enter namespace {name}"))
}

/// Lays a veth pair with one queue per direction between two namespaces; both ends are up, without addresses.
pub(crate) fn link(from: &Namespace, from_name: &str, to: &Namespace, to_name: &str, mtu: u16) -> Result<()> {
    command::call(
        "ip",
        &[
            "-n",
            from.name(),
            "link",
            "add",
            from_name,
            "mtu",
            &mtu.to_string(),
            "numtxqueues",
            "1",
            "numrxqueues",
            "1",
            "type",
            "veth",
            "peer",
            "name",
            to_name,
            "netns",
            to.name(),
            "mtu",
            &mtu.to_string(),
            "numtxqueues",
            "1",
            "numrxqueues",
            "1",
        ],
    )?;
    // link-local addresses are needed: a host that sends from a VIP on its loopback solicits neighbours from one
    from.ip(&format!("link set {from_name} up\n"))?;
    to.ip(&format!("link set {to_name} up\n"))?;
    Ok(())
}

/// The process that made the namespace, segment or directory of that name: the number after the prefix.
pub(crate) fn owner_of(name: &str) -> Option<u32> {
    let digits: String = name.strip_prefix(PREFIX)?.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_read_from_the_name() {
        assert_eq!(owner_of("weir-t123n4-client"), Some(123));
        assert_eq!(owner_of("weir-t77"), Some(77));
        assert_eq!([owner_of("weir-web"), owner_of("weir-tx"), owner_of("t12")], [None; 3]);
    }
}
