//! A worker's copy of the neighbour cache, and the packets that wait for an answer.
//!
//! Bounded: [`HELD_LIMIT`] packets wait in all, [`HELD_PER_HOP`] per next hop (RFC 1122 §2.3.2.2 asks for at least one), none longer
//! than until the management thread gives the next hop up.

use std::collections::HashMap;

use weir_l4::services::FoldState;
use weir_l4::{address_of, bits_of};
use weir_net::Mac;

use crate::neighbour::{NeighbourId, Update};
use crate::packet::Packet;

/// Most packets that wait.
pub const HELD_LIMIT: usize = 512;
/// Most packets that wait for one next hop.
pub const HELD_PER_HOP: usize = 64;

/// A packet without a link address to go to.
#[derive(Debug)]
pub struct Held {
    packet: Packet,
    l3: u16,
    port: u16,
    address: u128,
}

/// What became of a packet that had to wait.
#[derive(Debug, PartialEq, Eq)]
pub enum Hold {
    /// It waits, and the next hop was asked for before.
    Waits,
    /// It waits, and is the first: ask for the next hop.
    First,
    /// Too many wait for this next hop already.
    Full,
}

/// Link addresses by id and by address.
#[derive(Debug, Default)]
pub struct Links {
    by_id: Vec<Option<Mac>>,
    by_address: HashMap<(u16, u128), Mac, FoldState>,
    held: Vec<Held>,
}

impl Links {
    /// The link address of a next hop that the configuration names.
    #[inline(always)]
    pub fn of_id(&self, id: NeighbourId) -> Option<Mac> {
        *self.by_id.get(id.0 as usize)?
    }

    /// The link address of an address on a port's link.
    #[inline]
    pub fn of_address(&self, port: u16, address: u128) -> Option<Mac> {
        self.by_address.get(&(port, address)).copied()
    }

    /// Packets that wait.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Keeps a packet until [`Links::update`] brings its next hop's link address. What comes back is to be dropped: with
    /// [`Hold::Full`] the packet itself, else the one that has waited longest, where there was no room: so next hops
    /// that never answer can't keep others from being asked for.
    pub fn hold(&mut self, packet: Packet, l3: u16, port: u16, address: u128) -> (Hold, Option<Packet>) {
        let waiting = self.held.iter().filter(|held| held.port == port && held.address == address).count();
        if waiting >= HELD_PER_HOP {
            return (Hold::Full, Some(packet));
        }
        let displaced = if self.held.len() >= HELD_LIMIT { Some(self.held.remove(0).packet) } else { None };
        self.held.push(Held { packet, l3, port, address });
        (if waiting == 0 { Hold::First } else { Hold::Waits }, displaced)
    }

    /// Takes a change over. `release` gets each packet that waited for it, with the link address or `None` where the next hop does not answer.
    pub fn update(&mut self, update: &Update, mut release: impl FnMut(Packet, u16, u16, Option<Mac>)) {
        let at = update.id.0 as usize;
        if self.by_id.len() <= at {
            self.by_id.resize(at + 1, None);
        }
        if let Some(place) = self.by_id.get_mut(at) {
            *place = update.mac;
        }
        let address = bits_of(update.address);
        match update.mac {
            Some(mac) => {
                self.by_address.insert((update.port, address), mac);
            }
            None => {
                self.by_address.remove(&(update.port, address));
            }
        }
        if self.held.is_empty() {
            return;
        }
        let ours = |held: &mut Held| held.port == update.port && held.address == address;
        for held in self.held.extract_if(.., ours) {
            release(held.packet, held.l3, held.port, update.mac);
        }
    }

    /// All packets that wait, at the end.
    pub fn take_held(&mut self) -> Vec<Packet> {
        self.held.drain(..).map(|held| held.packet).collect()
    }

    /// Addresses that packets wait for: asked for again where an answer was lost between the threads.
    pub fn waiting_for(&self) -> impl Iterator<Item = (u16, std::net::IpAddr)> {
        self.held.iter().map(|held| (held.port, address_of(held.address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::tests::packet;
    use std::net::IpAddr;
    use weir_net::PacketBuf;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn address(host: u8) -> IpAddr {
        IpAddr::from([198, 18, 0, host])
    }

    fn update(id: u32, port: u16, host: u8, mac: Option<Mac>) -> Update {
        Update { id: NeighbourId(id), port, address: address(host), mac, forgotten: false }
    }

    fn hold(links: &mut Links, number: u16, port: u16, host: u8) -> Hold {
        let before = links.held();
        let (hold, back) = links.hold(packet(&number.to_be_bytes()), number, port, bits_of(address(host)));
        assert_eq!(back.is_some(), hold == Hold::Full || before == HELD_LIMIT);
        if hold == Hold::Full {
            assert_eq!(back.unwrap().data(), number.to_be_bytes());
        }
        hold
    }

    /// Packets that an update lets go: their number, port and link address.
    fn released(links: &mut Links, update: &Update) -> Vec<(u16, u16, Option<Mac>)> {
        let mut out = vec![];
        links.update(update, |packet, l3, port, mac| {
            assert_eq!(packet.data(), l3.to_be_bytes());
            out.push((l3, port, mac));
        });
        out
    }

    #[test]
    fn an_update_is_found_by_id_and_by_address_until_it_is_taken_back() {
        let mut links = Links::default();
        assert_eq!((links.of_id(NeighbourId(3)), links.of_id(NeighbourId(u32::MAX))), (None, None));
        assert_eq!(released(&mut links, &update(3, 1, 5, Some(MAC))), []);
        assert_eq!(links.of_id(NeighbourId(3)), Some(MAC));
        assert_eq!(links.of_address(1, bits_of(address(5))), Some(MAC));
        assert_eq!(links.of_address(0, bits_of(address(5))), None, "another port is another link");
        assert_eq!((links.of_id(NeighbourId(2)), links.of_id(NeighbourId(4))), (None, None));
        assert_eq!(released(&mut links, &update(3, 1, 5, None)), []);
        assert_eq!((links.of_id(NeighbourId(3)), links.of_address(1, bits_of(address(5)))), (None, None));
    }

    #[test]
    fn packets_leave_in_their_order_and_only_those_that_waited_for_it() {
        let mut links = Links::default();
        assert_eq!(hold(&mut links, 1, 0, 5), Hold::First);
        assert_eq!(hold(&mut links, 2, 0, 6), Hold::First);
        assert_eq!(hold(&mut links, 3, 1, 5), Hold::First);
        assert_eq!(hold(&mut links, 4, 0, 5), Hold::Waits);
        assert_eq!(hold(&mut links, 5, 0, 5), Hold::Waits);
        let mut waiting: Vec<_> = links.waiting_for().collect();
        waiting.sort();
        waiting.dedup();
        assert_eq!(waiting, [(0, address(5)), (0, address(6)), (1, address(5))]);
        let mac = Some(MAC);
        assert_eq!(released(&mut links, &update(0, 0, 5, mac)), [(1, 0, mac), (4, 0, mac), (5, 0, mac)]);
        assert_eq!(links.held(), 2);
        // one that does not answer lets its packets go without an address
        assert_eq!(released(&mut links, &update(1, 0, 6, None)), [(2, 0, None)]);
        assert_eq!(links.take_held().len(), 1);
        assert_eq!((links.held(), links.waiting_for().count()), (0, 0));
    }

    #[test]
    fn few_packets_wait_for_one_and_not_many_in_all() {
        let mut links = Links::default();
        for number in 0..HELD_PER_HOP as u16 {
            assert_ne!(hold(&mut links, number, 0, 1), Hold::Full);
        }
        assert_eq!(hold(&mut links, 0, 0, 1), Hold::Full);
        assert_eq!(hold(&mut links, 0, 1, 1), Hold::First, "another has room");
        for number in 0..(HELD_LIMIT - HELD_PER_HOP - 1) as u16 {
            assert_eq!(hold(&mut links, number, 2 + number, 1), Hold::First);
        }
        assert_eq!(links.held(), HELD_LIMIT);
        // a stranger is asked for all the same, in place of the one that has waited longest
        assert_eq!(hold(&mut links, 0, 1, 2), Hold::First);
        assert_eq!(links.held(), HELD_LIMIT);
        assert_eq!(released(&mut links, &update(0, 0, 1, Some(MAC))).len(), HELD_PER_HOP - 1);
    }
}
