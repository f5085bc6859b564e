//! How is one probe made, and what does its end say about the backend?

mod exec;
mod http;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::check::{Kind, Target, Udp};
use super::interfaces::Interfaces;
use super::tunnels::{Registered, Tunnels};
pub(super) use tls::Connectors;

/// Largest datagram that is looked at.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// What a probe told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All as expected.
    Good,
    /// The backend does not do what it should.
    Bad(String),
    /// The probe could not be made, and not for a reason that is the backend's.
    Untold(String),
}

/// A probe's way to its end: with `?` the first obstacle is the outcome.
type Steps<T> = Result<T, Outcome>;

/// What probes share.
pub(super) struct Tools {
    pub(super) interfaces: Interfaces,
    pub(super) tunnels: Rc<Tunnels>,
    /// Commands at once.
    pub(super) commands: Semaphore,
}

/// Makes a probe; the caller ends it at its deadline by dropping it.
pub(super) async fn probe(
    target: &Target,
    tls: Option<&Result<TlsConnector, String>>,
    tools: &Rc<Tools>,
) -> Outcome {
    let steps = async {
        match &target.check.kind {
            Kind::Tcp => connect(target, tools).await.map(drop),
            Kind::Http(expected) => {
                let mut stream = connect(target, tools).await?;
                http::exchange(&mut stream, expected, target, 80).await
            }
            Kind::Https(expected, tls_rules) => {
                let connector = match tls {
                    Some(Ok(connector)) => connector,
                    Some(Err(error)) => return Err(Outcome::Untold(error.clone())),
                    None => return Err(Outcome::Untold("TLS is not set up".to_owned())),
                };
                let name = tls::server_name(tls_rules, expected, target.to.ip())?;
                let stream = connect(target, tools).await?;
                let mut stream = connector
                    .connect(name.clone(), stream)
                    .await
                    .map_err(|error| tls::failed(&error, &name))?;
                http::exchange(&mut stream, expected, target, 443).await
            }
            Kind::Udp(expected) => datagrams(target, tools, expected).await,
            Kind::Exec(command) => exec::run(target, tools, command).await,
        }
    };
    steps.await.err().unwrap_or(Outcome::Good)
}

/// A connection that is reset when it is dropped: it leaves nothing in TIME-WAIT here.
struct Connection {
    stream: TcpStream,
    _registered: Option<Registered>,
}

fn unspecified(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

async fn connect(target: &Target, tools: &Tools) -> Steps<Connection> {
    let here = |error: io::Error| Outcome::Untold(format!("no socket for a probe: {error}"));
    let socket = match target.to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(here)?;
    socket.set_zero_linger().map_err(here)?;
    // probes to different backends may leave from one port
    socket.set_reuseaddr(true).map_err(here)?;
    let way = Way::of(target, tools)?;
    if let Some(interface) = way.interface {
        socket.bind_device(Some(interface.as_bytes())).map_err(|error| no_interface(interface, &error))?;
    }
    if let Some(source) = way.source {
        socket.bind(source).map_err(|error| no_source(source, &error))?;
    }
    let stream = socket.connect(target.to).await.map_err(|error| failed("connect", &error))?;
    Ok(Connection { stream, _registered: way.registered })
}

/// How a probe leaves.
struct Way<'a> {
    /// The kernel's interface of the NIC, where it is there.
    interface: Option<&'a str>,
    /// What to bind; none where the kernel shall choose.
    source: Option<SocketAddr>,
    registered: Option<Registered>,
}

impl<'a> Way<'a> {
    fn of(target: &'a Target, tools: &Tools) -> Steps<Self> {
        let interface = target.interface.as_deref().filter(|name| tools.interfaces.exists(name));
        if let Some(tunnel) = target.tunnel {
            if interface.is_none() {
                let name = target.interface.as_deref().unwrap_or("the port's exception interface");
                let text = format!("{name} is not there: probes through the tunnel need it");
                return Err(Outcome::Untold(text));
            }
            let source = target.source.ok_or_else(|| {
                Outcome::Untold(format!("no port has an address of the family of {}", target.to.ip()))
            })?;
            let registered = tools.tunnels.register(tunnel).map_err(Outcome::Untold)?;
            let source = SocketAddr::new(source, registered.port);
            return Ok(Self { interface, source: Some(source), registered: Some(registered) });
        }
        // ports of the dataplane's own flows from the same address must not be met
        let port = if interface.is_some() { tools.tunnels.port() } else { 0 };
        let source = target.check.source.or(target.source.filter(|_| interface.is_some()));
        let source = source.map(|source| SocketAddr::new(source, port));
        Ok(Self { interface, source, registered: None })
    }
}

fn no_interface(interface: &str, error: &io::Error) -> Outcome {
    Outcome::Untold(format!("cannot send probes through {interface}: {error}"))
}

fn no_source(source: SocketAddr, error: &io::Error) -> Outcome {
    Outcome::Untold(format!("cannot send probes from {}: {error}", source.ip()))
}

/// What an error of the network says.
fn failed(action: &str, error: &io::Error) -> Outcome {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, OutOfMemory, PermissionDenied};
    /// Linux: too many open files (in the system, in the process), no buffer space.
    const EXHAUSTED: [i32; 3] = [23, 24, 105];
    let is_ours = matches!(error.kind(), AddrInUse | AddrNotAvailable | OutOfMemory | PermissionDenied)
        || error.raw_os_error().is_some_and(|code| EXHAUSTED.contains(&code));
    let text = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => format!("{action}: connection reset"),
        io::ErrorKind::HostUnreachable => "no route to the host, or no neighbour".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network unreachable".to_owned(),
        _ => format!("{action}: {error}"),
    };
    if is_ours { Outcome::Untold(text) } else { Outcome::Bad(text) }
}

async fn datagrams(target: &Target, tools: &Tools, rules: &Udp) -> Steps<()> {
    let here = |error: io::Error| Outcome::Untold(format!("no socket for a probe: {error}"));
    let way = Way::of(target, tools)?;
    let source = way.source.unwrap_or_else(|| unspecified(target.to));
    let socket = UdpSocket::bind(source).await.map_err(|error| no_source(source, &error))?;
    if let Some(interface) = way.interface {
        socket.bind_device(Some(interface.as_bytes())).map_err(|error| no_interface(interface, &error))?;
    }
    socket.connect(target.to).await.map_err(here)?;
    socket.send(&rules.payload).await.map_err(|error| failed("send", &error))?;
    let mut answer = vec![0; MAX_DATAGRAM_BYTES];
    let length = socket.recv(&mut answer).await.map_err(|error| failed("receive", &error))?;
    let answer = answer.get(..length).unwrap_or_default();
    if contains(answer, &rules.expect) {
        return Ok(());
    }
    Err(Outcome::Bad(format!("the answer, \"{}\", does not contain what is expected", shown(answer))))
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || memchr::memmem::find(text, part).is_some()
}

/// The beginning of what a peer sent, fit for a log.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 60;
    let text = bytes.get(..bytes.len().min(MOST)).unwrap_or_default().escape_ascii().to_string();
    if bytes.len() > MOST { format!("{text}...") } else { text }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
