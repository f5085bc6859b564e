//! Which ports do the later fragments of a datagram belong to?
//!
//! Only a datagram's first fragment carries ports. One worker (the fragments' home, chosen by addresses and
//! identification) remembers them for a moment and gives them to those that follow; a fragment that comes before its first is
//! dropped and counted, because holding it would let anyone fill memory. Bounded: a fixed number of places, four to a set,
//! the oldest of a set makes room.

/// Sets of places; with four places each this remembers 4,096 datagrams in flight.
const SETS: usize = 1_024;
const WAYS: usize = 4;

/// What all fragments of a datagram share (RFC 791 §3.2, RFC 8200 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Source address.
    pub src: u128,
    /// Destination address.
    pub dst: u128,
    /// Identification.
    pub identification: u32,
    /// IP protocol.
    pub protocol: u8,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    datagram: Datagram,
    ports: (u16, u16),
    seen: u32,
}

/// The home worker's memory of first fragments.
#[derive(Debug)]
pub struct Fragments {
    places: Vec<[Option<Place>; WAYS]>,
    seed: u64,
}

impl Datagram {
    /// A hash for choosing the home worker and the set.
    #[inline]
    pub fn hash(&self, seed: u64) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = crate::services::FoldState.build_hasher();
        hasher.write_u64(seed);
        hasher.write_u128(self.src);
        hasher.write_u128(self.dst);
        hasher.write_u64((u64::from(self.identification) << 8) | u64::from(self.protocol));
        hasher.finish()
    }
}

impl Fragments {
    /// An empty memory.
    pub fn new(seed: u64) -> Self {
        Self { places: vec![[None; WAYS]; SETS], seed }
    }

    /// Remembers the ports (source, destination) of a first fragment.
    pub fn first(&mut self, datagram: Datagram, ports: (u16, u16), now: u32) {
        let Some(set) = self.set(&datagram) else { return };
        let at = set
            .iter()
            .position(|place| place.as_ref().is_some_and(|place| place.datagram == datagram))
            .or_else(|| set.iter().position(Option::is_none))
            .or_else(|| {
                let oldest =
                    set.iter().enumerate().min_by_key(|(_, place)| place.as_ref().map_or(0, |p| p.seen));
                oldest.map(|(at, _)| at)
            });
        if let Some(place) = at.and_then(|at| set.get_mut(at)) {
            *place = Some(Place { datagram, ports, seen: now });
        }
    }

    /// The ports of a later fragment's first, if it came at most `lifetime` ticks ago.
    pub fn later(&mut self, datagram: &Datagram, now: u32, lifetime: u32) -> Option<(u16, u16)> {
        let set = self.set(datagram)?;
        let place = set.iter().flatten().find(|place| place.datagram == *datagram)?;
        (now.saturating_sub(place.seen) <= lifetime).then_some(place.ports)
    }

    fn set(&mut self, datagram: &Datagram) -> Option<&mut [Option<Place>; WAYS]> {
        let at = (datagram.hash(self.seed) >> 32) as usize % SETS;
        self.places.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(identification: u32) -> Datagram {
        Datagram { src: 1, dst: 2, identification, protocol: 17 }
    }

    #[test]
    fn later_fragments_get_the_ports_of_their_first() {
        let mut fragments = Fragments::new(7);
        assert_eq!(fragments.later(&datagram(1), 0, 8), None);
        fragments.first(datagram(1), (1000, 53), 0);
        assert_eq!(fragments.later(&datagram(1), 8, 8), Some((1000, 53)));
        assert_eq!(fragments.later(&datagram(1), 9, 8), None);
        assert_eq!(fragments.later(&Datagram { protocol: 6, ..datagram(1) }, 0, 8), None);
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_of_a_set_makes_room() {
        let mut fragments = Fragments::new(7);
        for identification in 0..100_000 {
            fragments.first(datagram(identification), (1, 2), identification);
        }
        let kept =
            (0..100_000).filter(|&id| fragments.later(&datagram(id), 100_000, 100_000).is_some()).count();
        assert!(kept <= SETS * WAYS && kept > SETS * WAYS * 9 / 10, "{kept}");
        assert!(fragments.later(&datagram(99_999), 100_000, 100_000).is_some());
    }
}
