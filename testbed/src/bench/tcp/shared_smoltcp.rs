//! smoltcp as one would use it for many connections: one `Interface`, and for each connection a `SocketSet` of one socket, found by
//! a map of our own. No timers are run for it, and it uses no timestamps: both in its favour.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use anyhow::{Context as _, Result, anyhow};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, TcpPacket};
use weir_net::{ParseOptions, Parsed, parse};
use weir_tcp::{Buffer as _, Endpoint};

use super::packet::{Packet, pattern};
use super::peer::{SERVER, Writer, number};
use super::stack::{ANSWER, BURST, REQUEST, Role, STEP_US, Setup, Stack, Work};
use super::wire::{SENT_FROM, Wire};

/// Bytes of an Ethernet header, which smoltcp does not see.
const ETHERNET: usize = 14;
/// Longest IP packet.
const MTU: usize = 1_500;
/// Every so many pieces one is compared.
const SAMPLE: u64 = 509;
/// Packets that left and were not overwritten yet: 8 MiB.
const RING: usize = 4_096;

/// Hashes one 64-bit key by a multiplication.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, key: u64) {
        let product = u128::from(self.0 ^ key) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

/// The port: one packet waits, and what leaves goes to the wire.
struct Port {
    waiting: Option<Packet>,
    wire: Wire,
    ring: Vec<[u8; MTU]>,
    next: usize,
}

struct Receive(Packet);
struct Send<'a>(&'a mut Port);

impl RxToken for Receive {
    #[inline]
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.bytes().get(ETHERNET..).unwrap_or_default())
    }
}

impl TxToken for Send<'_> {
    #[inline]
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let port = self.0;
        let at = port.next;
        port.next = (at + 1) % RING;
        let out = &mut port.ring[at][..len];
        let result = f(out);
        let segment = TcpPacket::new_unchecked(&out[20..]);
        let (seq, header) = (segment.seq_number().0 as u32, usize::from(segment.header_len()));
        let address = u32::from_be_bytes([out[16], out[17], out[18], out[19]]);
        let peer =
            number(Endpoint { address: 0xffff_0000_0000 | u128::from(address), port: segment.dst_port() });
        let is_syn = segment.syn();
        let data = out.get(20 + header..).unwrap_or_default();
        if port.wire.count(peer, seq, data.len()) {
            port.wire.compare(peer, seq, data);
        }
        if is_syn {
            port.wire.answered(peer, seq, 0);
        }
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Receive;
    type TxToken<'a> = Send<'a>;

    #[inline]
    fn receive(&mut self, _: Instant) -> Option<(Receive, Send<'_>)> {
        let packet = self.waiting.take()?;
        Some((Receive(packet), Send(self)))
    }

    #[inline]
    fn transmit(&mut self, _: Instant) -> Option<Send<'_>> {
        Some(Send(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}

/// A connection.
struct Connection {
    set: SocketSet<'static>,
    handle: SocketHandle,
    key: u64,
    is_open: bool,
    /// Bytes that were read.
    read: u64,
}

/// Sockets, their application and their port.
pub(super) struct Smoltcp {
    interface: Interface,
    port: Port,
    connections: Vec<Connection>,
    by_key: HashMap<u64, u32, BuildHasherDefault<Multiply>>,
    free: Vec<u32>,
    touched: Vec<u32>,
    /// What the application sends again and again.
    unit: Vec<u8>,
    /// Bytes after which what arrives begins anew.
    arriving: usize,
    role: Role,
    work: Work,
    pieces: u64,
    now: u64,
    /// The peer of each slot.
    peers: Vec<u32>,
    /// The slot of each peer's neighbour.
    neighbours: Vec<u32>,
}

fn socket(buffer: u32) -> Result<tcp::Socket<'static>> {
    // not zero, so that the memory is there before anything is measured
    let room = || tcp::SocketBuffer::new(vec![1; buffer as usize]);
    let mut socket = tcp::Socket::new(room(), room());
    socket.set_congestion_control(tcp::CongestionControl::Cubic);
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(Some(Duration::from_millis(40)));
    socket.listen(SERVER.port).map_err(|error| anyhow!("smoltcp does not listen: {error}"))?;
    Ok(socket)
}

impl Smoltcp {
    fn instant(&self) -> Instant {
        Instant::from_micros(self.now as i64)
    }

    /// The connection of a packet; a new one of a SYN.
    fn find(&mut self, packet: &Packet, parsed: &Parsed) -> Option<u32> {
        let (src, _) = parsed.addresses_v4(packet.bytes());
        let key = u64::from(src) << 16 | u64::from(parsed.src_port);
        if let Some(&slot) = self.by_key.get(&key) {
            return Some(slot);
        }
        let slot = self.free.pop()?;
        self.by_key.insert(key, slot);
        let connection = self.connections.get_mut(slot as usize)?;
        connection.key = key;
        let address = 0xffff_0000_0000 | u128::from(src);
        let peer = number(Endpoint { address, port: parsed.src_port });
        if let Some(place) = self.neighbours.get_mut((peer ^ 1) as usize) {
            *place = slot;
        }
        if let Some(place) = self.peers.get_mut(slot as usize) {
            *place = peer;
        }
        Some(slot)
    }

    /// Sends: one packet, or with bulk data as many as there are.
    #[inline(always)]
    fn egress(&mut self, slot: u32) {
        let now = self.instant();
        let is_bulk = matches!(self.role, Role::Send | Role::Relay);
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        loop {
            let result = self.interface.poll_egress(now, &mut self.port, &mut connection.set);
            if !is_bulk || result == PollResult::None {
                break;
            }
        }
    }

    /// The application's part of a connection; whether it has to be polled for what it sends.
    fn react(&mut self, slot: u32) -> bool {
        let role = self.role;
        let Some(connection) = self.connections.get_mut(slot as usize) else { return false };
        let socket = connection.set.get_mut::<tcp::Socket>(connection.handle);
        if !connection.is_open && socket.state() == tcp::State::Established {
            connection.is_open = true;
            self.work.accepted += 1;
        }
        let mut read = 0;
        while socket.can_recv() && role != Role::Relay {
            let pieces = &mut self.pieces;
            let compared = &mut self.work.compared;
            let place = (connection.read + read) as usize;
            let taken = socket.recv(|data| {
                *pieces += 1;
                if pieces.is_multiple_of(SAMPLE) {
                    let (from, unit) = (Writer::data_offset(false), self.arriving);
                    let is_right = |(at, byte): (usize, &u8)| *byte == pattern(from + (place + at) % unit);
                    compared.0 += 1;
                    compared.1 += u64::from(!data.iter().enumerate().all(is_right));
                }
                (data.len(), data.len())
            });
            read += taken.unwrap_or(0) as u64;
        }
        connection.read += read;
        self.work.read += read;
        match role {
            Role::Echo if read > 0 => {
                let sent = socket.send_slice(&self.unit);
                self.work.wrong += u64::from(sent != Ok(self.unit.len()));
                true
            }
            Role::Send => {
                self.fill(slot);
                true
            }
            Role::Relay => {
                self.relay(slot);
                true
            }
            Role::Close => self.close(slot),
            _ => read > 0,
        }
    }

    fn fill(&mut self, slot: u32) {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        let socket = connection.set.get_mut::<tcp::Socket>(connection.handle);
        while socket.may_send() && socket.send_capacity() - socket.send_queue() >= self.unit.len() {
            if socket.send_slice(&self.unit) != Ok(self.unit.len()) {
                self.work.wrong += 1;
            }
        }
    }

    /// The slot of the neighbour: of peers 2n and 2n + 1 the other.
    fn neighbour(&self, slot: u32) -> Option<u32> {
        let peer = *self.peers.get(slot as usize)?;
        self.neighbours.get(peer as usize).copied()
    }

    /// Moves what arrived to the neighbour.
    fn relay(&mut self, slot: u32) {
        let Some(to) = self.neighbour(slot) else { return };
        let Ok([from, to]) = self.connections.get_disjoint_mut([slot as usize, to as usize]) else { return };
        let source = from.set.get_mut::<tcp::Socket>(from.handle);
        let sink = to.set.get_mut::<tcp::Socket>(to.handle);
        let mut moved = 0;
        while source.can_recv() {
            let taken = source.recv(|data| {
                let sent = sink.send_slice(data).unwrap_or(0);
                (sent, sent)
            });
            match taken {
                Ok(0) | Err(_) => break,
                Ok(bytes) => moved += bytes,
            }
        }
        self.work.read += moved as u64;
    }

    fn close(&mut self, slot: u32) -> bool {
        let Some(connection) = self.connections.get_mut(slot as usize) else { return false };
        let socket = connection.set.get_mut::<tcp::Socket>(connection.handle);
        match socket.state() {
            tcp::State::CloseWait => {
                socket.close();
                true
            }
            tcp::State::Closed => {
                connection.is_open = false;
                self.by_key.remove(&connection.key);
                self.work.closed += 1;
                self.work.wrong += u64::from(socket.listen(SERVER.port).is_err());
                self.free.push(slot);
                false
            }
            _ => false,
        }
    }
}

impl Stack for Smoltcp {
    const NAME: &'static str = "smoltcp";
    const TIMESTAMPS: bool = false;

    fn start(setup: Setup) -> Result<Self> {
        let unit = match setup.role {
            Role::Echo => ANSWER,
            _ => Writer::full(false),
        } as usize;
        let remembers = matches!(setup.role, Role::Send | Role::Relay);
        let from = if setup.role == Role::Relay { Writer::data_offset(false) } else { SENT_FROM };
        let wire = Wire::new(setup.connections as usize, (from, unit), remembers);
        let mut port = Port { waiting: None, wire, ring: vec![[0; MTU]; RING], next: 0 };
        let now = 1_000_000_000;
        let mut interface =
            Interface::new(Config::new(HardwareAddress::Ip), &mut port, Instant::from_micros(now));
        let mut is_added = false;
        interface.update_ip_addrs(|addresses| {
            is_added = addresses.push(IpCidr::new(IpAddress::v4(198, 19, 0, 1), 15)).is_ok();
        });
        is_added.then_some(()).context("smoltcp takes no address")?;
        let count = setup.connections + setup.passing;
        let mut connections = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let mut set = SocketSet::new(Vec::with_capacity(1));
            let handle = set.add(socket(setup.buffer)?);
            connections.push(Connection { set, handle, key: 0, is_open: false, read: 0 });
        }
        Ok(Self {
            interface,
            port,
            connections,
            by_key: HashMap::with_capacity_and_hasher(count as usize * 2, BuildHasherDefault::default()),
            free: (0..count).rev().collect(),
            touched: Vec::with_capacity(BURST),
            unit: (0..unit).map(|at| pattern(SENT_FROM + at)).collect(),
            arriving: if setup.role == Role::Echo { REQUEST } else { Writer::full(false) } as usize,
            role: setup.role,
            work: Work::default(),
            pieces: 0,
            now: now as u64,
            peers: vec![u32::MAX; count as usize],
            neighbours: vec![u32::MAX; setup.connections as usize],
        })
    }

    #[inline(never)]
    fn burst(&mut self, packets: &mut Vec<Packet>) {
        self.now += STEP_US;
        let now = self.instant();
        let mut parsed = Parsed::default();
        let options = ParseOptions { l3_checksum_ok: true };
        for packet in packets.drain(..) {
            self.work.segments += 1;
            if parse::parse_into(packet.bytes(), &options, &mut parsed).is_err() {
                self.work.wrong += 1;
                continue;
            }
            let Some(slot) = self.find(&packet, &parsed) else {
                self.work.wrong += 1;
                continue;
            };
            self.port.waiting = Some(packet);
            let connection = &mut self.connections[slot as usize];
            self.interface.poll_ingress_single(now, &mut self.port, &mut connection.set);
            // a SYN is answered by a poll, data by one after the application has spoken
            let is_syn = parsed.tcp_flags & weir_net::tcp::SYN != 0;
            if is_syn || self.touched.last() != Some(&slot) {
                self.touched.push(slot);
            }
        }
        let mut touched = std::mem::take(&mut self.touched);
        for &slot in &touched {
            let has_to_send = self.react(slot);
            let connection = &self.connections[slot as usize];
            if has_to_send || !connection.is_open {
                self.egress(slot);
            }
            if self.role == Role::Relay
                && let Some(to) = self.neighbour(slot)
            {
                self.egress(to);
            }
        }
        touched.clear();
        self.touched = touched;
    }

    fn next_us(&self) -> u64 {
        self.now + STEP_US
    }

    fn begin(&mut self) {
        if self.role == Role::Send {
            for slot in 0..self.connections.len() {
                self.fill(slot as u32);
                self.egress(slot as u32);
            }
        }
    }

    fn wire(&mut self) -> &mut Wire {
        &mut self.port.wire
    }

    fn work(&self) -> Work {
        self.work
    }

    fn open(&self) -> u64 {
        self.connections.iter().filter(|connection| connection.is_open).count() as u64
    }
}
