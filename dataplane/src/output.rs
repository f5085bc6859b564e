//! How packets leave a worker: link headers, transmit batches, and the worker that owns a port's queue.
//!
//! A port with fewer transmit queues than workers lends them: a worker without one passes its packets over a ring to
//! the worker that has it. What a queue refuses is tried again within [`TRANSMIT_TRIES`], then dropped and counted.

use dpdk::ring::Producer;
use dpdk::{Burst, Mbuf, TxQueue, mbuf};
use weir_abi::columns::{PortColumn, WorkerColumn};
use weir_net::{Mac, PacketBuf, eth};

use crate::books::Books;
use crate::drops::WorkerReason;
use crate::packet::Packet;

/// How often a full transmit queue is tried before its packets are dropped. A queue of 2,048 that drains at 10 Mpps empties in 200 µs;
/// each try that gets nowhere lets go of the CPU, so that a virtual port's peer on the same core can run.
const TRANSMIT_TRIES: u32 = 64;

/// A worker's way out of one port.
#[derive(Debug)]
pub struct PortOut {
    /// The port's link address.
    pub mac: Mac,
    /// Tag of all its frames.
    pub vlan: Option<u16>,
    /// Largest IP packet.
    pub mtu: u16,
    /// Own queue or somebody else's.
    pub way: Way,
    /// Packets to be sent at the end of the round.
    pub batch: Burst,
}

/// Who sends.
#[derive(Debug)]
pub enum Way {
    /// This worker's queue.
    Own(TxQueue),
    /// A ring to the worker that owns one.
    Lent(Producer),
}

/// All ports of one worker.
#[derive(Debug)]
pub struct Output {
    /// By port index.
    pub ports: Vec<PortOut>,
}

impl Output {
    /// Gives the packet its link header and sends it with the next batch. `l3` is where the IP header stands now.
    #[inline]
    pub fn forward(&mut self, port: u16, mut packet: Packet, l3: u16, next_hop: Mac, books: &Books) {
        let Some(out) = self.ports.get_mut(usize::from(port)) else {
            books.dropped(WorkerReason::NoRoute, 1);
            return;
        };
        if !write_link(&mut packet, l3, next_hop, out.mac, out.vlan) {
            books.dropped(WorkerReason::NoHeadroom, 1);
            return;
        }
        out.push(usize::from(port), packet.0, books);
    }

    /// Sends a finished frame with the next batch.
    #[inline]
    pub fn send(&mut self, port: u16, packet: Mbuf, books: &Books) {
        match self.ports.get_mut(usize::from(port)) {
            Some(out) => out.push(usize::from(port), packet, books),
            None => books.dropped(WorkerReason::NoRoute, 1),
        }
    }

    /// Sends what waits.
    #[inline]
    pub fn flush(&mut self, books: &Books) {
        for (port, out) in self.ports.iter_mut().enumerate() {
            if !out.batch.is_empty() {
                out.flush(port, books);
            }
        }
    }

    /// Lets drivers that complete transmissions lazily take their buffers back.
    pub fn reclaim(&mut self) {
        for out in &mut self.ports {
            if let Way::Own(queue) = &mut out.way {
                queue.flush();
            }
        }
    }
}

impl PortOut {
    #[inline]
    fn push(&mut self, port: usize, packet: Mbuf, books: &Books) {
        if self.batch.is_full() {
            self.flush(port, books);
        }
        self.batch.push(packet);
    }

    fn flush(&mut self, port: usize, books: &Books) {
        match &mut self.way {
            Way::Own(queue) => {
                let mut bytes: u64 = self.batch.iter().map(|packet| packet.packet_len() as u64).sum();
                let mut sent = 0;
                for attempt in 0..TRANSMIT_TRIES {
                    sent += queue.burst(&mut self.batch);
                    if self.batch.is_empty() {
                        break;
                    }
                    if attempt > 2 {
                        std::thread::yield_now();
                    }
                }
                bytes -= self.batch.iter().map(|packet| packet.packet_len() as u64).sum::<u64>();
                books.add(WorkerColumn::TxPackets, sent as u64);
                books.port(port, PortColumn::TxPackets, sent as u64);
                books.port(port, PortColumn::TxBytes, bytes);
                drop_rest(&mut self.batch, WorkerReason::TransmitFull, books);
            }
            Way::Lent(ring) => {
                for packet in &mut self.batch {
                    packet.set_user(port as u64);
                }
                let handed = ring.push_burst(&mut self.batch);
                books.add(WorkerColumn::SteeredOut, handed as u64);
                drop_rest(&mut self.batch, WorkerReason::TransmitRingFull, books);
            }
        }
    }
}

#[inline]
fn drop_rest(batch: &mut Burst, reason: WorkerReason, books: &Books) {
    if !batch.is_empty() {
        books.dropped(reason, batch.len() as u64);
        mbuf::free_bulk(batch);
    }
}

/// Makes the bytes before `l3` the link header of the way out, longer or shorter by a VLAN tag where need be.
#[inline]
fn write_link(packet: &mut Packet, l3: u16, destination: Mac, source: Mac, vlan: Option<u16>) -> bool {
    let wanted = if vlan.is_some() { eth::HEADER_LEN + eth::TAG_LEN } else { eth::HEADER_LEN };
    let present = usize::from(l3);
    let fits = if wanted > present {
        packet.prepend(wanted - present).is_some()
    } else {
        wanted == present || packet.trim_front(present - wanted)
    };
    if !fits {
        return false;
    }
    let frame = packet.data_mut();
    let Some(&version) = frame.get(wanted) else { return false };
    let ether_type = if version >> 4 == 4 { eth::IPV4 } else { eth::IPV6 };
    eth::write(frame, destination, source, vlan, ether_type).is_some()
}
