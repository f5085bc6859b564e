//! Where do the records of connections lie, and which are free? A slab with generations, so that a stale handle is refused.

use crate::connection::Connection;
use crate::event::Handle;
use crate::wheel::{Entries, Link, NONE};

/// Records of connections. The memory for all is set aside at the start and taken as they are first used.
#[derive(Debug)]
pub(crate) struct Slab {
    records: Vec<Connection>,
    capacity: usize,
    /// First free record, linked by `token`.
    free: u32,
    live: usize,
}

impl Slab {
    pub(crate) fn new(capacity: usize) -> Self {
        let mut records = Vec::with_capacity(capacity);
        hugepages::advise::huge(records.spare_capacity_mut());
        Self { records, capacity, free: NONE, live: 0 }
    }

    /// Records in use.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    pub(crate) fn is_full(&self) -> bool {
        self.live >= self.capacity
    }

    /// The records, to ask for their lines.
    #[inline(always)]
    pub(crate) fn records(&self) -> &[Connection] {
        &self.records
    }

    #[inline(always)]
    pub(crate) fn at(&self, slot: u32) -> Option<&Connection> {
        self.records.get(slot as usize)
    }

    #[inline(always)]
    pub(crate) fn at_mut(&mut self, slot: u32) -> Option<&mut Connection> {
        self.records.get_mut(slot as usize)
    }

    /// The record of a handle that is not stale.
    #[inline(always)]
    pub(crate) fn of(&self, handle: Handle) -> Option<&Connection> {
        self.at(handle.slot).filter(|record| record.generation == handle.generation)
    }

    /// The record of a handle that is not stale.
    #[inline(always)]
    pub(crate) fn of_mut(&mut self, handle: Handle) -> Option<&mut Connection> {
        self.at_mut(handle.slot).filter(|record| record.generation == handle.generation)
    }

    pub(crate) fn handle(&self, slot: u32) -> Option<Handle> {
        self.at(slot).map(|record| Handle { slot, generation: record.generation })
    }

    /// Takes a record, which is made in its place; `None` where all are in use.
    #[inline(always)]
    pub(crate) fn insert(&mut self, make: impl FnOnce(u32) -> Connection) -> Option<u32> {
        let slot = self.free;
        if let Some(place) = self.records.get_mut(slot as usize) {
            self.free = place.token;
            *place = make(place.generation);
            self.live += 1;
            return Some(slot);
        }
        if self.records.len() >= self.capacity {
            return None;
        }
        self.records.push(make(1));
        self.live += 1;
        Some(self.records.len() as u32 - 1)
    }

    /// Gives a record back: handles of it are stale from here on. Its queues must be empty and its link idle.
    pub(crate) fn remove(&mut self, slot: u32) {
        let free = self.free;
        let Some(record) = self.at_mut(slot) else { return };
        record.generation = record.generation.wrapping_add(1);
        record.token = free;
        self.free = slot;
        self.live -= 1;
    }
}

impl Entries for Slab {
    #[inline(always)]
    fn link(&self, slot: u32) -> Option<&Link> {
        self.at(slot).map(|record| &record.link)
    }

    #[inline(always)]
    fn link_mut(&mut self, slot: u32) -> Option<&mut Link> {
        self.at_mut(slot).map(|record| &mut record.link)
    }

    #[inline(always)]
    fn prefetch(&self, slot: u32) {
        if let Some(record) = self.at(slot) {
            record.prefetch();
        }
    }
}
