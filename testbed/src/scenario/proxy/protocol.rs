//! PROXY headers: told to backends byte by byte, believed from those who are trusted.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{connect, finish, of, serve_everywhere, streams, ways};
use crate::config::Service;
use crate::scenario::rig::Rig;
use crate::scenario::{Context, Scenario};
use crate::topology::lab::{CLIENT, Family, Io};
use crate::traffic::servers::PROXIED_PORT;
use crate::traffic::stream::{self, End, end_of};

/// What a v2 header begins with (PROXY protocol §2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

pub(super) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("proxy/protocol/send/v1", |context| send(context, "v1")),
        Scenario::new("proxy/protocol/send/v2", |context| send(context, "v2")),
        Scenario::new("proxy/protocol/nginx", nginx),
        Scenario::new("proxy/protocol/accept", accept),
        Scenario::new("proxy/protocol/refuse", refuse),
    ]
}

/// The header of a version, built from the specification's text.
fn header(version: &str, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    if version == "v1" {
        let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
        let (from, to) = (source.ip(), destination.ip());
        return format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port())
            .into_bytes();
    }
    let mut header = SIGNATURE.to_vec();
    let mut addresses = Vec::new();
    for end in [source, destination] {
        match end.ip() {
            IpAddr::V4(address) => addresses.extend(address.octets()),
            IpAddr::V6(address) => addresses.extend(address.octets()),
        }
    }
    // version 2, command PROXY; family and STREAM; length
    header.extend([0x21, if source.is_ipv4() { 0x11 } else { 0x21 }]);
    header.extend((addresses.len() as u16 + 4).to_be_bytes());
    header.extend(addresses);
    header.extend(source.port().to_be_bytes());
    header.extend(destination.port().to_be_bytes());
    header
}

/// What the echo of a backend begins with: the header that it was sent.
fn expect(connection: &TcpStream, header: &[u8]) -> Result<()> {
    let mut seen = vec![0u8; header.len()];
    (&mut &*connection).read_exact(&mut seen).context("read the header's echo")?;
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    ensure!(
        seen == header,
        "the backend got {seen:02x?} {}, not {header:02x?} {}",
        shown(&seen),
        shown(header)
    );
    stream::echo(connection, b"and then data")
}

fn send(context: &Context, version: &str) -> Result<()> {
    let services = ways(streams)
        .map(|service| Service { pool_lines: format!("send_proxy = \"{version}\"\n"), ..service });
    let rig = Rig::start(context, Io::AfXdp, services.to_vec())?;
    let servers = Family::BOTH
        .map(|family| serve_everywhere(&rig, family, stream::serve_echo))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    for service in &services {
        for word in [&b""[..], b"with data already there"] {
            let connection = connect(&rig, service)?;
            (&connection).write_all(word)?;
            let header = header(version, connection.local_addr()?, service.target());
            expect(&connection, &[&header, word].concat()).with_context(|| service.name.clone())?;
        }
    }
    drop(servers);
    finish(rig)
}

/// A server of others understands both versions.
fn nginx(context: &Context) -> Result<()> {
    let of = |(version, number): (&str, u8)| {
        ways(super::service).map(|service| Service {
            name: format!("{}-{version}", service.name),
            vip: service.vip + number,
            backend_port: Some(PROXIED_PORT),
            pool_lines: format!("send_proxy = \"{version}\"\n"),
            ..service
        })
    };
    let services: Vec<Service> = [("v1", 0), ("v2", 2)].into_iter().flat_map(of).collect();
    let rig = Rig::start(context, Io::AfXdp, services.clone())?;
    for service in &services {
        let mut command = rig.lab.client.command("curl");
        let url = format!("http://{}/", service.target());
        let shown = "%{local_ip} %{local_port}";
        command.args([
            "--silent",
            "--show-error",
            "--fail",
            "--globoff",
            "--max-time",
            "5",
            "-w",
            shown,
            &url,
        ]);
        let said = crate::command::run(&mut command).with_context(|| service.name.clone())?;
        let (told, own) = said.trim().split_once('\n').context("nginx said too little")?;
        ensure!(told == own, "{}: the client was {own}, nginx was told {told}", service.name);
    }
    finish(rig)
}

fn behind_edge(name: &str, accept: &str, trusted: &str) -> Service {
    Service {
        name: name.into(),
        listener_lines: format!("accept_proxy = \"{accept}\"\ntrusted = [\"{trusted}\"]\n"),
        pool_lines: "send_proxy = \"v2\"\n".into(),
        ..streams(Family::Ipv4)
    }
}

/// What a trusted client tells is believed and passed on, in one piece or byte by byte.
fn accept(context: &Context) -> Result<()> {
    let trusted = "198.18.0.0/24";
    let v1 = behind_edge("v1", "v1", trusted);
    let v2 = Service { vip: 2, ..behind_edge("v2", "v2", trusted) };
    let any = Service { vip: 3, ..behind_edge("any", "any", trusted) };
    let rig = Rig::start(context, Io::AfXdp, vec![v1.clone(), v2.clone(), any.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let told4: (SocketAddr, SocketAddr) = (([203, 0, 113, 7], 4_711).into(), ([192, 0, 2, 1], 443).into());
    let six =
        |last| SocketAddr::new(Ipv6Addr::new(0x2001, 0xdb8, 0xbeef, 0, 0, 0, 0, last).into(), 5_000 + last);
    let told6 = (six(1), six(2));
    for (service, version) in [(&v1, "v1"), (&v2, "v2"), (&any, "v1"), (&any, "v2")] {
        for (source, destination) in [told4, told6] {
            for pieces in [1usize, 200] {
                let connection = connect(&rig, service)?;
                let said = header(version, source, destination);
                for piece in said.chunks(said.len().div_ceil(pieces)) {
                    (&connection).write_all(piece)?;
                    if pieces > 1 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                expect(&connection, &header("v2", source, destination))
                    .with_context(|| format!("{version} to {} in {pieces} pieces", service.name))?;
            }
        }
    }
    // who says that there is nobody to tell of is told of as itself
    for said in [&b"PROXY UNKNOWN\r\n"[..], &[&SIGNATURE[..], &[0x20, 0, 0, 0]].concat()] {
        let connection = connect(&rig, &any)?;
        (&connection).write_all(said)?;
        let own = header("v2", connection.local_addr()?, any.target());
        expect(&connection, &own).context("LOCAL or UNKNOWN")?;
    }
    ensure!(of(&rig, &any, "proxy_header_refused")? == 0, "some were refused");
    drop(servers);
    finish(rig)
}

/// Others, and what is no header, are refused, and no backend hears of it.
fn refuse(context: &Context) -> Result<()> {
    let stranger = behind_edge("strangers", "any", "203.0.113.0/24");
    let v2 = Service { vip: 2, ..behind_edge("v2", "v2", &format!("{}/32", CLIENT.0)) };
    let rig = Rig::start(context, Io::AfXdp, vec![stranger.clone(), v2.clone()])?;
    let servers = serve_everywhere(&rig, Family::Ipv4, stream::serve_echo)?;
    let told: (SocketAddr, SocketAddr) = (([203, 0, 113, 7], 4_711).into(), ([192, 0, 2, 1], 443).into());
    let right = header("v2", told.0, told.1);
    let mut wrong_version = right.clone();
    wrong_version[12] = 0x11;
    let said: [(&Service, &[u8]); 5] = [
        (&stranger, &right),
        (&v2, b"GET / HTTP/1.1\r\n\r\n"),
        (&v2, &header("v1", told.0, told.1)),
        (&v2, &wrong_version),
        (&v2, &[&SIGNATURE[..11], b"X"].concat()),
    ];
    for (number, (service, said)) in said.into_iter().enumerate() {
        let Ok(connection) = connect(&rig, service) else { continue };
        // refused while it writes is refused as well
        if (&connection).write_all(said).is_err() {
            continue;
        }
        ensure!(
            end_of(&connection, Duration::from_secs(2))? == End::Reset,
            "header {number} was not refused"
        );
    }
    let counted = [of(&rig, &stranger, "proxy_header_refused")?, of(&rig, &v2, "proxy_header_refused")?];
    ensure!(counted == [1, 4], "proxy_header_refused {counted:?}");
    ensure!(servers.iter().all(|server| server.accepted() == 0), "a backend heard of one that was refused");
    drop(servers);
    finish(rig)
}
