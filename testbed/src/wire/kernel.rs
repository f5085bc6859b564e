//! A namespace with a TAP: ordinary sockets of the kernel on one end of a crossing.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use weir_os::tun::{Layer, Tun};

use super::{address, mac};
use crate::topology::lab::Family;
use crate::topology::namespace::Namespace;

/// Patience with a handshake.
const CONNECT: Duration = Duration::from_secs(20);
/// Patience with a peer that says nothing.
const SILENCE: Duration = Duration::from_secs(30);

/// The namespace, and which side it is.
#[derive(Debug)]
pub(crate) struct Kernel {
    namespace: Namespace,
    side: u8,
}

impl Kernel {
    /// Makes it, and the other end of its interface.
    pub(crate) fn create(run: &str, side: u8) -> Result<(Self, Tun)> {
        let namespace = Namespace::create(run, &format!("tap{side}"))?;
        let tap = namespace.run(|| Tun::open("tap0", Layer::Ethernet, true))??;
        namespace.sysctl(&[
            ("net.ipv4.tcp_rmem", "4096 131072 33554432"),
            ("net.ipv4.tcp_wmem", "4096 131072 33554432"),
        ])?;
        let bytes = |side: u8| mac(side).map(|byte| format!("{byte:02x}")).join(":");
        let other = 3 - side;
        let mut lines = format!("link set tap0 address {} txqueuelen 10000\nlink set tap0 up\n", bytes(side));
        for (family, length) in [(Family::Ipv4, 24), (Family::Ipv6, 64)] {
            let nodad = if family == Family::Ipv6 { " nodad" } else { "" };
            lines += &format!("addr add {}/{length} dev tap0{nodad}\n", address(family, side));
            lines += &format!(
                "neigh add {} lladdr {} dev tap0 nud permanent\n",
                address(family, other),
                bytes(other)
            );
        }
        namespace.ip(&lines)?;
        Ok((Self { namespace, side }, tap))
    }

    /// Its address.
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        address(family, self.side)
    }

    /// Runs `work` inside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.run(work)
    }

    /// A connection to the other side.
    pub(crate) fn connect(&self, family: Family, port: u16) -> Result<TcpStream> {
        let to = SocketAddr::new(address(family, 3 - self.side), port);
        let stream = self
            .run(|| TcpStream::connect_timeout(&to, CONNECT))?
            .with_context(|| format!("could not connect to {to}"))?;
        patient(&stream)?;
        Ok(stream)
    }

    /// A listener for the other side.
    pub(crate) fn listen(&self, family: Family, port: u16) -> Result<TcpListener> {
        let at = SocketAddr::new(self.address(family), port);
        self.run(|| TcpListener::bind(at))?.with_context(|| format!("could not listen at {at}"))
    }
}

/// Lets reads and writes end.
pub(crate) fn patient(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok(())
}
