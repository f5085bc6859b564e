//! How packets leave a worker: link headers, transmit batches, and the worker that owns a port's queue.
//!
//! A port with fewer transmit queues than workers lends them: a worker without one passes its packets over a ring to
//! the worker that has it. What a queue refuses is tried again within [`TRANSMIT_PATIENCE`], then dropped and counted.

use std::time::{Duration, Instant};

use dpdk::ring::Producer;
use dpdk::{Burst, Mbuf, TxQueue, mbuf};
use weir_abi::columns::{PortColumn, WorkerColumn};
use weir_net::{Mac, PacketBuf, eth};

use crate::books::Books;
use crate::drops::WorkerReason;
use crate::packet::Packet;

/// How long a transmit queue may take nothing before packets are dropped. A queue of 2,048 that drains at 10 Mpps empties
/// in 200 µs; a try that gets nowhere lets go of the CPU, so that a virtual port's peer on the same core can run.
const TRANSMIT_PATIENCE: Duration = Duration::from_millis(1);

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
    #[inline(always)]
    pub fn forward(&mut self, port: u16, mut packet: Packet, l3: u16, next_hop: Mac, books: &Books) {
        let Some(out) = self.ports.get_mut(usize::from(port)) else {
            books.dropped(WorkerReason::NoRoute, 1);
            return;
        };
        if !write_link(&mut packet, l3, next_hop, out.mac, out.vlan) {
            no_headroom(books);
            return;
        }
        out.push(usize::from(port), packet.0, books);
    }

    /// As [`Output::forward`], for a frame whose link header is right but for the addresses where the port has no tag.
    #[inline(always)]
    pub fn readdress(&mut self, port: u16, mut packet: Packet, l3: u16, next_hop: Mac, books: &Books) {
        match self.ports.get_mut(usize::from(port)) {
            Some(out) if out.vlan.is_none() && eth::set_addresses(packet.data_mut(), next_hop, out.mac) => {
                out.push(usize::from(port), packet.0, books);
            }
            _ => self.forward(port, packet, l3, next_hop, books),
        }
    }

    /// The link address of a port whose frames have no tag.
    #[inline]
    pub fn untagged(&self, port: u16) -> Option<Mac> {
        self.ports.get(usize::from(port)).filter(|out| out.vlan.is_none()).map(|out| out.mac)
    }

    /// Sends a burst of finished frames.
    #[inline]
    pub fn send_all(&mut self, port: u16, packets: impl ExactSizeIterator<Item = Mbuf>, books: &Books) {
        let Some(out) = self.ports.get_mut(usize::from(port)) else {
            books.dropped(WorkerReason::NoRoute, packets.len() as u64);
            return;
        };
        if packets.len() > out.batch.remaining_capacity() {
            out.flush(usize::from(port), books);
        }
        out.batch.extend(packets);
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
    #[inline(always)]
    fn push(&mut self, port: usize, packet: Mbuf, books: &Books) {
        if self.batch.is_full() {
            self.flush(port, books);
        }
        self.batch.push(packet);
    }

    #[inline(never)]
    fn flush(&mut self, port: usize, books: &Books) {
        match &mut self.way {
            Way::Own(queue) => {
                let mut bytes: u64 = self.batch.iter().map(|packet| packet.packet_len() as u64).sum();
                let mut sent = queue.burst(&mut self.batch);
                if !self.batch.is_empty() {
                    sent += send_rest(queue, &mut self.batch, &mut bytes, books);
                }
                books.add(WorkerColumn::TxPackets, sent as u64);
                books.port(port, PortColumn::TxPackets, sent as u64);
                books.port(port, PortColumn::TxBytes, bytes);
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

/// Sends what the queue refused at first. Where it takes nothing for [`TRANSMIT_PATIENCE`], its first packet, which may be one
/// that it can't send at all, is dropped; where it still takes nothing, so are the others. Returns how many were sent.
#[cold]
fn send_rest(queue: &mut TxQueue, batch: &mut Burst, bytes: &mut u64, books: &Books) -> usize {
    let mut sent = 0;
    let mut since = Instant::now();
    let mut last_chance = false;
    while !batch.is_empty() {
        let progress = queue.burst(batch);
        sent += progress;
        if progress > 0 {
            since = Instant::now();
            last_chance = false;
        } else if since.elapsed() < TRANSMIT_PATIENCE {
            std::thread::yield_now();
        } else if last_chance {
            *bytes -= batch.iter().map(|packet| packet.packet_len() as u64).sum::<u64>();
            drop_rest(batch, WorkerReason::TransmitFull, books);
        } else if let Some(first) = batch.pop_at(0) {
            *bytes -= first.packet_len() as u64;
            books.dropped(WorkerReason::TransmitFull, 1);
            last_chance = true;
        }
    }
    sent
}

#[inline]
fn drop_rest(batch: &mut Burst, reason: WorkerReason, books: &Books) {
    if !batch.is_empty() {
        books.dropped(reason, batch.len() as u64);
        mbuf::free_bulk(batch);
    }
}

#[cold]
fn no_headroom(books: &Books) {
    books.dropped(WorkerReason::NoHeadroom, 1);
}

/// Makes the bytes before `l3` the link header of the way out, longer or shorter by a VLAN tag where need be.
#[inline(always)]
fn write_link(packet: &mut Packet, l3: u16, destination: Mac, source: Mac, vlan: Option<u16>) -> bool {
    let wanted = if vlan.is_some() { eth::HEADER_LEN + eth::TAG_LEN } else { eth::HEADER_LEN };
    let present = usize::from(l3);
    if wanted != present && !move_start(packet, present, wanted) {
        return false;
    }
    let frame = packet.data_mut();
    let Some(&version) = frame.get(wanted) else { return false };
    let ether_type = if version >> 4 == 4 { eth::IPV4 } else { eth::IPV6 };
    eth::write(frame, destination, source, vlan, ether_type).is_some()
}

/// Makes room for a header of `wanted` bytes where one of `present` bytes is.
#[inline(never)]
fn move_start(packet: &mut Packet, present: usize, wanted: usize) -> bool {
    if wanted > present {
        packet.prepend(wanted - present).is_some()
    } else {
        packet.trim_front(present - wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::Words;
    use crate::books::tests::books;
    use crate::packet::tests::{environment, packet, pool};
    use dpdk::port::PortConfig;
    use dpdk::ring::{Consumer, Ring};
    use dpdk::{Port, RxQueue};
    use weir_abi::counters::Reader;

    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const NEXT: Mac = Mac([2, 0, 0, 0, 0, 2]);
    /// The beginnings of an IPv4 and of an IPv6 header.
    const BODIES: [(&[u8], u16); 2] = [(&[0x45, 1, 2, 3, 4], eth::IPV4), (&[0x60, 1, 2, 3, 4], eth::IPV6)];

    fn port_out(way: Way, vlan: Option<u16>) -> PortOut {
        PortOut { mac: OURS, vlan, mtu: 1_500, way, batch: Burst::new() }
    }

    fn lent(size: u32, vlan: Option<u16>) -> (PortOut, Consumer) {
        let (producer, consumer) = Ring::new(environment(), "test", size).unwrap();
        (port_out(Way::Lent(producer), vlan), consumer)
    }

    /// A port that receives what it sends.
    fn loopback(name: &str) -> (Port, PortOut, RxQueue) {
        let mut port = Port::open(environment(), &format!("ring:{name}").parse().unwrap(), 1).unwrap();
        port.configure(&PortConfig::default(), std::slice::from_ref(pool())).unwrap();
        port.start().unwrap();
        let (mut rx, mut tx) = port.take_queues().unwrap();
        (port, port_out(Way::Own(tx.remove(0)), None), rx.remove(0))
    }

    fn frame(tag: Option<u16>, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xee; eth::header_len(tag)];
        eth::write(&mut frame, Mac::BROADCAST, Mac::BROADCAST, tag, 0).unwrap();
        frame.extend(body);
        frame
    }

    fn expected(tag: Option<u16>, ether_type: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; eth::header_len(tag)];
        eth::write(&mut frame, NEXT, OURS, tag, ether_type).unwrap();
        frame.extend(body);
        frame
    }

    fn popped(ring: &mut Consumer) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        let mut frames = vec![];
        while ring.pop_burst(&mut burst) > 0 {
            frames.extend(burst.drain(..).map(|packet| packet.data().to_vec()));
        }
        frames
    }

    fn worker(reader: &Reader<Words>, column: &str) -> u64 {
        reader.group("worker").unwrap().sum_of(0, column)
    }

    fn drops(reader: &Reader<Words>, column: &str) -> u64 {
        assert!(reader.group("drop").unwrap().column(column).is_some());
        reader.group("drop").unwrap().sum_of(0, column)
    }

    #[test]
    fn the_link_header_is_the_way_outs_whatever_came_before() {
        let (_parent, [books, ..], reader) = books();
        for vlan in [None, Some(42)] {
            let (out, mut ring) = lent(64, vlan);
            let mut output = Output { ports: vec![out] };
            let mut wanted = vec![];
            for (body, ether_type) in BODIES {
                for tag in [None, Some(7)] {
                    let frame = frame(tag, body);
                    let l3 = (frame.len() - body.len()) as u16;
                    output.forward(0, packet(&frame), l3, NEXT, &books);
                    wanted.push(expected(vlan, ether_type, body));
                }
                // no link header at all, as a decapsulated packet; and more than one tag before it
                output.forward(0, packet(body), 0, NEXT, &books);
                output.forward(0, packet(&[&[0xee; 40][..], body].concat()), 40, NEXT, &books);
                wanted.extend([expected(vlan, ether_type, body), expected(vlan, ether_type, body)]);
            }
            output.flush(&books);
            assert_eq!(popped(&mut ring), wanted, "{vlan:?}");
        }
        assert_eq!((worker(&reader, "steered_out"), worker(&reader, "dropped")), (16, 0));
    }

    #[test]
    fn what_can_not_have_a_link_header_is_a_counted_drop() {
        let (_parent, [books, ..], reader) = books();
        let (out, mut ring) = lent(64, Some(42));
        let mut output = Output { ports: vec![out] };
        let mut full = packet(BODIES[0].0);
        let headroom = full.0.headroom();
        full.prepend(headroom).unwrap().fill(0);
        output.forward(0, full, 0, NEXT, &books);
        // the header is all there is
        output.forward(0, packet(&[0; 18]), 18, NEXT, &books);
        output.forward(0, packet(&[0; 10]), 30, NEXT, &books);
        assert_eq!(drops(&reader, "no_headroom"), 3);
        output.forward(1, packet(BODIES[0].0), 0, NEXT, &books);
        output.send(7, packet(BODIES[0].0).0, &books);
        assert_eq!((drops(&reader, "no_route"), worker(&reader, "dropped")), (2, 5));
        output.flush(&books);
        assert_eq!(popped(&mut ring), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn an_own_queue_sends_in_order_and_counts_packets_and_bytes() {
        let (_parent, [books, ..], reader) = books();
        let (mut port, out, mut rx) = loopback("order");
        let (other, _ring) = lent(4, None);
        let mut output = Output { ports: vec![other, out] };
        // more than a batch: what is full goes on its own
        for number in 0..100u8 {
            output.send(1, packet(&[number; 60]).0, &books);
        }
        assert_eq!(worker(&reader, "tx_packets"), 100 / dpdk::BURST as u64 * dpdk::BURST as u64);
        output.flush(&books);
        output.flush(&books);
        output.reclaim();
        let ports = reader.group("port").unwrap();
        assert_eq!((worker(&reader, "tx_packets"), worker(&reader, "dropped")), (100, 0));
        assert_eq!((ports.sum_of(1, "tx_packets"), ports.sum_of(1, "tx_bytes")), (100, 6_000));
        assert_eq!((ports.sum_of(0, "tx_packets"), worker(&reader, "steered_out")), (0, 0));
        let mut seen = vec![];
        let mut burst = Burst::new();
        while rx.burst(&mut burst) > 0 {
            seen.extend(burst.drain(..).map(|packet| packet.data()[0]));
        }
        assert_eq!(seen, (0..100).collect::<Vec<u8>>());
        drop((output, rx));
        port.stop().unwrap();
    }

    #[test]
    fn a_queue_that_stays_full_costs_counted_drops_and_no_buffers() {
        let (_parent, [books, ..], reader) = books();
        let before = mbuf::ledger();
        let (mut port, out, mut rx) = loopback("full");
        let mut output = Output { ports: vec![out] };
        // the queue holds 1,023; each batch beyond lets go of the CPU many times
        let total = 1_100;
        for _ in 0..total {
            output.send(0, packet(&[0; 60]).0, &books);
        }
        output.flush(&books);
        let (sent, dropped) = (worker(&reader, "tx_packets"), drops(&reader, "transmit_full"));
        assert!(dropped > 0 && sent > 0, "{sent} sent, {dropped} dropped");
        assert_eq!((sent + dropped, worker(&reader, "dropped")), (total, dropped));
        assert_eq!(reader.group("port").unwrap().sum_of(0, "tx_bytes"), sent * 60);
        assert_eq!(mbuf::ledger(), before, "the queue has them, or nobody");
        let mut burst = Burst::new();
        let mut received = 0;
        while rx.burst(&mut burst) > 0 {
            received += burst.drain(..).count() as u64;
        }
        assert_eq!(received, sent);
        // and goes on when there is room again
        output.send(0, packet(&[0; 60]).0, &books);
        output.flush(&books);
        assert_eq!(worker(&reader, "tx_packets"), sent + 1);
        assert_eq!(rx.burst(&mut burst), 1);
        drop((burst, output, rx));
        port.stop().unwrap();
    }

    #[test]
    fn a_full_ring_to_the_queues_owner_costs_counted_drops_and_no_buffers() {
        let (_parent, [books, ..], reader) = books();
        let before = mbuf::ledger();
        let (out, mut ring) = lent(16, None);
        let (first, _other) = lent(16, None);
        let mut output = Output { ports: vec![first, out] };
        for number in 0..20u8 {
            output.send(1, packet(&[number; 60]).0, &books);
        }
        output.flush(&books);
        assert_eq!((worker(&reader, "steered_out"), worker(&reader, "tx_packets")), (16, 0));
        assert_eq!((drops(&reader, "transmit_ring_full"), worker(&reader, "dropped")), (4, 4));
        let mut burst = Burst::new();
        assert_eq!(ring.pop_burst(&mut burst), 16);
        for (number, packet) in (0..).zip(&burst) {
            assert_eq!((packet.data()[0], packet.user()), (number, 1), "the owner is told the port");
        }
        drop(burst);
        assert_eq!(mbuf::ledger(), before);
    }
}
