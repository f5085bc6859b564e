//! What a backend of mode `ipip` or `gue` needs and this kernel may lack: a decapsulator in user space.
//!
//! Raw sockets take IPIP (protocol 4) and IPv6-in-IP (41), a UDP socket takes GUE; the inner packet goes into a TUN of
//! the backend's namespace, where the VIP is a local address. Answers leave by themselves, straight to the client.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use weir_os::tun::{Layer, Tun};

use crate::topology::namespace::Namespace;

/// Port of GUE where nothing else is said (IANA, draft-ietf-intarea-gue).
pub(crate) const GUE_PORT: u16 = 6080;
/// Name of the TUN.
const TUNNEL: &str = "decap0";
/// Protocol number of IPv4 in IP (RFC 2003).
const IPV4_IN_IP: i32 = 4;
/// Protocol number of IPv6 in IP (RFC 4213).
const IPV6_IN_IP: i32 = 41;

/// What a decapsulator has seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Packets unwrapped from IP in IP.
    pub(crate) ipip: AtomicU64,
    /// Packets unwrapped from GUE.
    pub(crate) gue: AtomicU64,
    /// Packets that made no sense.
    pub(crate) bad: AtomicU64,
    /// Outer UDP source ports.
    pub(crate) source_ports: Mutex<BTreeSet<u16>>,
}

/// A backend's decapsulator; ends when dropped.
#[derive(Debug)]
pub(crate) struct Decapsulator {
    /// What it has seen.
    pub(crate) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Decapsulator {
    /// Starts it in a backend's namespace.
    pub(crate) fn start(namespace: &Namespace) -> Result<Self> {
        let tun = namespace.run(|| Tun::open(TUNNEL, Layer::Ip, false))??;
        namespace.ip(&format!("link set {TUNNEL} mtu 1500\nlink set {TUNNEL} up\n"))?;
        namespace.sysctl(&[("net.ipv4.conf.decap0.rp_filter", "0")])?;
        let tun = Arc::new(tun);
        let mut sockets = Vec::new();
        for (domain, protocol) in [
            (Domain::IPV4, IPV4_IN_IP),
            (Domain::IPV4, IPV6_IN_IP),
            (Domain::IPV6, IPV4_IN_IP),
            (Domain::IPV6, IPV6_IN_IP),
        ] {
            let socket = namespace
                .run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))))?
                .with_context(|| format!("open a raw socket of protocol {protocol}"))?;
            // a raw IPv4 socket hands the outer header along, a raw IPv6 socket doesn't (RFC 3542 §3)
            sockets.push((socket, if domain == Domain::IPV4 { Wrapping::Ipv4 } else { Wrapping::None }));
        }
        for place in [
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), GUE_PORT),
            SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), GUE_PORT),
        ] {
            sockets.push((namespace.run(|| gue_socket(place))??, Wrapping::Gue));
        }
        let mut decapsulator = Self { seen: Arc::default(), stop: Arc::default(), threads: Vec::new() };
        for (socket, wrapping) in sockets {
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            let (seen, stop) = (Arc::clone(&decapsulator.seen), Arc::clone(&decapsulator.stop));
            let tun = Arc::clone(&tun);
            decapsulator
                .threads
                .push(std::thread::spawn(move || unwrap_all(socket, wrapping, &tun, &seen, &stop)));
        }
        Ok(decapsulator)
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gue_socket(place: SocketAddr) -> Result<Socket> {
    let socket = Socket::new(Domain::for_address(place), Type::DGRAM, Some(Protocol::UDP))?;
    if place.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(place)).with_context(|| format!("bind {place}"))?;
    Ok(socket)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrapping {
    None,
    Ipv4,
    Gue,
}

fn unwrap_all(socket: Socket, wrapping: Wrapping, tun: &Tun, seen: &Seen, stop: &AtomicBool) {
    let mut buffer = vec![0u8; 65_536];
    let mut socket = socket;
    while !stop.load(Ordering::Relaxed) {
        let length = if wrapping == Wrapping::Gue {
            receive_gue(&socket, &mut buffer, seen)
        } else {
            socket.read(&mut buffer).ok()
        };
        let Some(length) = length else { continue };
        let inner = inner_packet(&buffer[..length], wrapping);
        match inner.map(|packet| tun.write(packet)) {
            Some(Ok(true)) if wrapping == Wrapping::Gue => seen.gue.fetch_add(1, Ordering::Relaxed),
            Some(Ok(true)) => seen.ipip.fetch_add(1, Ordering::Relaxed),
            _ => seen.bad.fetch_add(1, Ordering::Relaxed),
        };
    }
}

fn receive_gue(socket: &Socket, buffer: &mut [u8], seen: &Seen) -> Option<usize> {
    let mut peek = [std::mem::MaybeUninit::<u8>::uninit(); 1];
    // the address comes with a peek, the bytes with a plain read: no uninitialised memory to vouch for
    let (_, from) = socket.peek_from(&mut peek).ok()?;
    if let (Some(port), Ok(mut ports)) = (from.as_socket().map(|from| from.port()), seen.source_ports.lock())
    {
        ports.insert(port);
    }
    let mut reader: &Socket = socket;
    reader.read(buffer).ok()
}

/// The inner packet, or `None` when the bytes are not what they should be.
fn inner_packet(bytes: &[u8], wrapping: Wrapping) -> Option<&[u8]> {
    let first = *bytes.first()?;
    match wrapping {
        Wrapping::None => is_ip(bytes),
        Wrapping::Ipv4 => is_ip(bytes.get(usize::from(first & 0x0f) * 4..)?),
        // variant 1 has no header: the first bits of the payload are IP's own version
        Wrapping::Gue if first >> 6 == 1 => is_ip(bytes),
        // variant 0: version 0, no control message, header length in words after the first, protocol, flags
        Wrapping::Gue => {
            let length = 4 + usize::from(first & 0x1f) * 4;
            let data_message = first & 0x20 == 0 && matches!(bytes.get(1), Some(4 | 41));
            if first >> 6 == 0 && data_message { is_ip(bytes.get(length..)?) } else { None }
        }
    }
}

fn is_ip(bytes: &[u8]) -> Option<&[u8]> {
    matches!(bytes.first()? >> 4, 4 | 6).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::wait_for;
    use crate::topology::lab::{Family, Io, Lab, backend, vip};
    use crate::traffic::datagram::Servers;
    use crate::traffic::frames::Ip;
    use std::net::{IpAddr, UdpSocket};

    #[test]
    fn gue_headers_are_understood() {
        let packet = [0x45, 0, 0, 20];
        assert_eq!(inner_packet(&packet, Wrapping::Gue), Some(&packet[..]));
        assert_eq!(inner_packet(&[0x00, 4, 0, 0, 0x45, 0, 0, 20], Wrapping::Gue), Some(&packet[..]));
        assert_eq!(
            inner_packet(&[0x01, 4, 0, 0, 9, 9, 9, 9, 0x45, 0, 0, 20], Wrapping::Gue),
            Some(&packet[..])
        );
        assert_eq!(inner_packet(&[0x20, 4, 0, 0, 0x45], Wrapping::Gue), None);
        assert_eq!(inner_packet(&[0x00, 6, 0, 0, 0x45], Wrapping::Gue), None);
        assert_eq!(inner_packet(&[0xff], Wrapping::Gue), None);
    }

    /// The router plays Weir's part: wrapped questions go to backend 1, answers come from the VIP.
    #[test]
    fn wrapped_packets_reach_a_server_on_the_vip() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: namespaces need root");
            return;
        }
        let lab = Lab::build(&format!("t{}n9001", std::process::id()), Io::AfXdp).unwrap();
        for family in Family::BOTH {
            lab.accept_vip(vip(family, 1)).unwrap();
        }
        let vips: Vec<IpAddr> = Family::BOTH.map(|family| vip(family, 1)).to_vec();
        let _servers = Servers::start(&lab, &[vips], 7).unwrap();
        let decapsulator = Decapsulator::start(&lab.backends[0]).unwrap();
        for inner in Family::BOTH {
            let from: IpAddr = match inner {
                Family::Ipv4 => Ipv4Addr::new(198, 18, 0, 253).into(),
                Family::Ipv6 => "2001:db8:18::253".parse().unwrap(),
            };
            let asker = lab.router.run(|| UdpSocket::bind((from, 7_777))).unwrap().unwrap();
            asker.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let packet = Ip::new(from, vip(inner, 1)).udp((7_777, 7), b"hello");
            for outer in Family::BOTH {
                let target = backend(outer, 1);
                let protocol = if inner == Family::Ipv4 { IPV4_IN_IP } else { IPV6_IN_IP };
                let raw = lab
                    .router
                    .run(|| {
                        Socket::new(
                            Domain::for_address((target, 0).into()),
                            Type::RAW,
                            Some(Protocol::from(protocol)),
                        )
                    })
                    .unwrap()
                    .unwrap();
                let any: IpAddr = if target.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                let gue = lab.router.run(|| UdpSocket::bind((any, 0))).unwrap().unwrap();
                let mut variant_0 = vec![0, protocol as u8, 0, 0];
                variant_0.extend(&packet);
                for way in ["ipip", "gue 1", "gue 0"] {
                    let answer = wait_for("an answer", Duration::from_secs(3), || {
                        match way {
                            "ipip" => raw.send_to(&packet, &SockAddr::from(SocketAddr::new(target, 0)))?,
                            "gue 1" => gue.send_to(&packet, (target, GUE_PORT))?,
                            _ => gue.send_to(&variant_0, (target, GUE_PORT))?,
                        };
                        let mut buffer = [0u8; 64];
                        Ok(asker
                            .recv_from(&mut buffer)
                            .ok()
                            .map(|(length, from)| (buffer[..length].to_vec(), from)))
                    })
                    .unwrap_or_else(|error| panic!("{way} {inner:?} in {outer:?}: {error}"));
                    assert_eq!(answer, (b"app-1 hello".to_vec(), SocketAddr::new(vip(inner, 1), 7)));
                }
            }
        }
        assert!(decapsulator.seen.ipip.load(Ordering::Relaxed) >= 4);
        assert!(decapsulator.seen.gue.load(Ordering::Relaxed) >= 8);
    }
}
