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
    /// There is no room.
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
    #[inline]
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

    /// Keeps a packet until [`Links::update`] brings its next hop's link address. With [`Hold::Full`] it comes back.
    pub fn hold(&mut self, packet: Packet, l3: u16, port: u16, address: u128) -> (Hold, Option<Packet>) {
        let waiting = self.held.iter().filter(|held| held.port == port && held.address == address).count();
        if self.held.len() >= HELD_LIMIT || waiting >= HELD_PER_HOP {
            return (Hold::Full, Some(packet));
        }
        self.held.push(Held { packet, l3, port, address });
        (if waiting == 0 { Hold::First } else { Hold::Waits }, None)
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
