//! A host with smoltcp's sockets: a stack that others have written, in either role.

use std::collections::VecDeque;
use std::rc::Rc;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{CongestionControl, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};
use weir_tcp::Endpoint;

use crate::host::ends;
use crate::link::Random;
use crate::plan::Plan;
use crate::stream::{byte, stream_seed};
use crate::world::Peer;

/// Bytes of each of its buffers.
const BUFFER: usize = 65_535;

#[derive(Debug, Default)]
struct Port {
    arrived: VecDeque<Vec<u8>>,
    leaving: Vec<Vec<u8>>,
}

struct Take(Vec<u8>);
struct Give<'a>(&'a mut Vec<Vec<u8>>);

impl RxToken for Take {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Give<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; 14 + len];
        let result = f(&mut frame[14..]);
        let is_v4 = frame[14] >> 4 == 4;
        frame[12..14].copy_from_slice(if is_v4 { &[0x08, 0x00] } else { &[0x86, 0xdd] });
        self.0.push(frame);
        result
    }
}

impl Device for Port {
    type RxToken<'a> = Take;
    type TxToken<'a> = Give<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Take, Give<'_>)> {
        let frame = self.arrived.pop_front()?;
        Some((Take(frame), Give(&mut self.leaving)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Give<'_>> {
        Some(Give(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1_500;
        capabilities
    }
}

/// The host of the first conversation.
pub(crate) struct Other {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    port: Port,
    plan: Rc<Plan>,
    side: usize,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    is_shut: bool,
}

fn address(end: Endpoint) -> IpAddress {
    if end.is_v4() {
        IpAddress::Ipv4((end.address as u32).into())
    } else {
        IpAddress::Ipv6(end.address.into())
    }
}

impl Other {
    pub(crate) fn new(plan: &Rc<Plan>, side: usize, mut random: Random, now: u64) -> Self {
        let now = Instant::from_micros(now as i64);
        let mut port = Port::default();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random.next();
        let mut interface = Interface::new(config, &mut port, now);
        let (client, server) = ends(plan, 0);
        let own = address(if side == 0 { client } else { server });
        let length = if client.is_v4() { 24 } else { 64 };
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(own, length)).expect("room for one address");
        });
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_congestion_control(CongestionControl::Cubic);
        if side == 0 {
            let to = IpEndpoint::new(address(server), server.port);
            socket.connect(interface.context(), to, client.port).expect("a good endpoint");
        } else {
            socket.listen(server.port).expect("a good port");
        }
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(socket);
        Self {
            interface,
            sockets,
            socket,
            port,
            plan: Rc::clone(plan),
            side,
            sent: 0,
            received: 0,
            is_shut: false,
        }
    }

    fn work(&mut self) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.socket);
        let into = stream_seed(&self.plan, 0, 1 - self.side);
        let received = &mut self.received;
        while socket.can_recv() {
            let count = socket
                .recv(|bytes| {
                    for &got in bytes.iter() {
                        assert_eq!(got, byte(into, *received), "byte {received}");
                        *received += 1;
                    }
                    (bytes.len(), bytes.len())
                })
                .expect("it can be received from");
            if count == 0 {
                break;
            }
        }
        let talk = &self.plan.conversations[0];
        let out = stream_seed(&self.plan, 0, self.side);
        let has_heard_all = matches!(socket.state(), State::CloseWait);
        if self.is_shut || !socket.may_send() || (talk.order.waits(self.side) && !has_heard_all) {
            return;
        }
        let total = talk.bytes[self.side];
        while self.sent < total && socket.can_send() {
            let len = (total - self.sent).min(self.plan.write);
            let bytes: Vec<u8> = (0..len).map(|at| byte(out, self.sent + at)).collect();
            let taken = socket.send_slice(&bytes).expect("it may send");
            self.sent += taken as u64;
            if taken == 0 {
                break;
            }
        }
        if self.sent == total {
            self.is_shut = true;
            socket.close();
        }
    }
}

impl Peer for Other {
    fn turn(&mut self, arrived: &[Vec<u8>], now: u64, out: &mut Vec<Vec<u8>>) {
        let now = Instant::from_micros(now as i64);
        self.port.arrived.extend(arrived.iter().map(|frame| frame[14..].to_vec()));
        self.interface.poll(now, &mut self.port, &mut self.sockets);
        self.work();
        self.interface.poll(now, &mut self.port, &mut self.sockets);
        self.work();
        out.append(&mut self.port.leaving);
    }

    fn next(&mut self, now: u64) -> Option<u64> {
        let now = Instant::from_micros(now as i64);
        self.interface.poll_at(now, &self.sockets).map(|at| at.total_micros() as u64)
    }

    fn is_over(&self) -> bool {
        let state = self.sockets.get::<Socket<'_>>(self.socket).state();
        matches!(state, State::Closed | State::TimeWait)
    }

    fn assert_nothing_left(&mut self, _: u64) {}

    fn describe(&self) -> String {
        let state = self.sockets.get::<Socket<'_>>(self.socket).state();
        format!("smoltcp {state}: sent {}, received {}", self.sent, self.received)
    }
}
