//! UDP: servers that answer with their backend's name, and a client that asks from a new port each time.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::interrupt;
use crate::topology::lab::{Lab, backend_name};
use crate::topology::namespace::Namespace;
use crate::traffic::http::Tally;

/// Time after which a datagram counts as lost and is sent again.
const PATIENCE: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 4;

/// Threads that answer; they end when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// One server per backend and address of it, at that port. An answer holds the backend's name, a space, and what
    /// was asked.
    pub(crate) fn start(lab: &Lab, addresses: &[Vec<IpAddr>], port: u16) -> Result<Self> {
        let mut servers = Self::default();
        for (position, (namespace, addresses)) in lab.backends.iter().zip(addresses).enumerate() {
            for &address in addresses {
                let place = SocketAddr::new(address, port);
                let socket =
                    namespace.run(|| UdpSocket::bind(place))?.with_context(|| format!("bind {place}"))?;
                socket.set_read_timeout(Some(Duration::from_millis(100)))?;
                let (stop, name) = (Arc::clone(&servers.stop), backend_name(position + 1));
                servers.threads.push(std::thread::spawn(move || answer(&socket, &name, &stop)));
            }
        }
        Ok(servers)
    }
}

fn answer(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut buffer = vec![0u8; 65_536];
    let lead = format!("{name} ");
    while !stop.load(Ordering::Relaxed) {
        // a timeout, or an ICMP error about an earlier answer: both are none of this server's business
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut reply = lead.clone().into_bytes();
        reply.extend_from_slice(&buffer[..length]);
        let _ = socket.send_to(&reply, from);
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Asks on one socket; the answering backend's name. Checks that the rest of the answer is what was asked.
pub(crate) fn ask(socket: &UdpSocket, question: &[u8]) -> Result<String> {
    let mut buffer = vec![0u8; 65_536];
    socket.set_read_timeout(Some(PATIENCE))?;
    for _ in 0..ATTEMPTS {
        interrupt::check()?;
        socket.send(question).context("send")?;
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let reply = &buffer[..length];
        let space = reply.iter().position(|&byte| byte == b' ').unwrap_or(length);
        let (name, echo) = reply.split_at(space);
        if echo.get(1..) != Some(question) {
            bail!("{} bytes asked, {} bytes came back changed", question.len(), echo.len());
        }
        return Ok(String::from_utf8_lossy(name).into_owned());
    }
    bail!("no answer to {ATTEMPTS} datagrams")
}

/// A socket in the namespace, connected to the target.
pub(crate) fn socket(from: &Namespace, target: SocketAddr) -> Result<UdpSocket> {
    from.run(|| -> Result<UdpSocket> {
        let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(target).with_context(|| format!("connect to {target}"))?;
        Ok(socket)
    })?
}

/// Asks `requests` times, each time from a new port.
pub(crate) fn load(from: &Namespace, target: SocketAddr, requests: u64) -> Result<Tally> {
    let mut tally = Tally::default();
    // kept open until the end, so that no port is drawn twice
    let mut sockets = Vec::new();
    for number in 0..requests {
        let start = Instant::now();
        let outcome = socket(from, target).and_then(|socket| {
            let answer = ask(&socket, format!("question {number}").as_bytes());
            sockets.push(socket);
            answer
        });
        interrupt::check()?;
        tally.record(outcome, start.elapsed());
        if tally.is_hopeless() {
            break;
        }
    }
    Ok(tally)
}
