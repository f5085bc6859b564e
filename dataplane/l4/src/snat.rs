//! Which source address and port does a `fullnat` flow leave with?
//!
//! Unique per (source address, port, backend, backend's port, protocol), so that a few addresses serve many flows; and only
//! such that the reply comes back to this worker ([`ReplyOwner`]). Source addresses are interned: a record holds a
//! number that stays valid when the configuration's list changes, and across processes.

use std::cell::Cell;
use std::net::IpAddr;

use weir_net::hash::{Toeplitz, reta_index};

use crate::entry::Address;
use crate::services::{Services, address_of};

/// Most source addresses that a table can ever have seen.
pub const MAX_ADDRESSES: usize = 256;
/// Ports that are tried before a flow is refused.
const TRIES: u32 = 64;

/// Which worker a reply to (address, port) comes back to.
pub enum ReplyOwner {
    /// The only worker.
    Alone,
    /// Workers share ports by their remainder: software steering.
    Remainder {
        /// This worker.
        worker: u16,
        /// All workers.
        workers: u16,
    },
    /// The NIC decides by Toeplitz hash and indirection table.
    Rss {
        /// This worker's queue.
        queue: u16,
        /// The NIC's hash.
        toeplitz: Box<Toeplitz>,
        /// Queue by the hash's low bits.
        indirection: Box<[u16]>,
    },
}

impl std::fmt::Debug for ReplyOwner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Alone => "Alone",
            Self::Remainder { .. } => "Remainder",
            Self::Rss { .. } => "Rss",
        })
    }
}

impl ReplyOwner {
    /// Whether a packet from `backend` to (`address`, `port`) comes to this worker.
    #[inline]
    pub fn owns(&self, backend: (u128, u16), address: u128, port: u16) -> bool {
        match self {
            Self::Alone => true,
            Self::Remainder { worker, workers } => port.checked_rem(*workers).unwrap_or(0) == *worker,
            Self::Rss { queue, toeplitz, indirection } => {
                let hash = match (address_of(backend.0), address_of(address)) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        toeplitz.hash_v4(src.into(), dst.into(), backend.1, port)
                    }
                    (src, dst) => {
                        let octets = |address: IpAddr| match address {
                            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                            IpAddr::V6(v6) => v6.octets(),
                        };
                        toeplitz.hash_v6(&octets(src), &octets(dst), backend.1, port)
                    }
                };
                indirection.get(usize::from(reta_index(hash, indirection.len() as u16))) == Some(queue)
            }
        }
    }
}

/// Whose source ports they are. Where both kinds exist, flows have the lower half of the configured ports and connections the
/// upper one, since neither looks into the other's table for each choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Flows,
    Connections,
}

impl User {
    fn share(self, (first, last): (u16, u16)) -> (u16, u16) {
        let middle = first + (last.saturating_sub(first)) / 2;
        match self {
            Self::Flows => (first, middle),
            Self::Connections => ((middle + 1).min(last), last),
        }
    }
}

/// Source addresses and the next port to try.
#[derive(Debug)]
pub struct Snat {
    interned: Vec<u128>,
    /// For backends behind a port without addresses of its own.
    active: Vec<u16>,
    /// By the index of the port that leads to the backend.
    by_egress: Vec<Vec<u16>>,
    owner: ReplyOwner,
    user: User,
    ports: (u16, u16),
    next: u32,
    /// Where [`Snat::foresee`] goes on; at `next` again with each choice.
    ahead: Cell<u32>,
}

impl Snat {
    /// Starts with the addresses that the records of a previous process may name, in order.
    pub fn new(interned: Vec<u128>, owner: ReplyOwner) -> Self {
        let (active, by_egress, ahead) = (Vec::new(), Vec::new(), Cell::new(0));
        let user = User::Flows;
        Self { interned, active, by_egress, owner, user, ports: (1_024, u16::MAX), next: 0, ahead }
    }

    /// For connections that a proxy opens.
    pub fn for_connections(owner: ReplyOwner) -> Self {
        Self { user: User::Connections, ..Self::new(Vec::new(), owner) }
    }

    /// Takes the configured addresses over. Returns how many did not fit ([`MAX_ADDRESSES`]).
    pub fn adopt(&mut self, services: &Services) -> usize {
        self.active.clear();
        self.by_egress.clear();
        self.ports = services.snat_ports;
        if services.shares_sources() {
            self.ports = self.user.share(self.ports);
        }
        let mut refused = 0;
        for &address in &services.snat {
            let known = self.interned.iter().position(|&known| known == address);
            let index = known.or_else(|| {
                if self.interned.len() >= MAX_ADDRESSES {
                    return None;
                }
                self.interned.push(address);
                Some(self.interned.len() - 1)
            });
            match index {
                Some(index) => self.active.push(index as u16),
                None => refused += 1,
            }
        }
        for &(address, egress) in &services.snat_egress {
            let Some(index) = self.interned.iter().position(|&known| known == address) else { continue };
            let egress = usize::from(egress);
            if self.by_egress.len() <= egress {
                self.by_egress.resize(egress + 1, Vec::new());
            }
            if let Some(list) = self.by_egress.get_mut(egress) {
                list.push(index as u16);
            }
        }
        refused
    }

    /// The address of a record's number.
    #[inline]
    pub fn address(&self, index: u16) -> Option<u128> {
        self.interned.get(usize::from(index)).copied()
    }

    /// All addresses by number, to be kept with the records.
    pub fn interned(&self) -> &[u128] {
        &self.interned
    }

    /// Finds a free (index, port) for a flow to `backend` behind port `egress`, where `taken` tells of the reply's tuple.
    pub fn choose<A: Address>(
        &mut self,
        egress: u16,
        backend: (u128, u16),
        mut taken: impl FnMut(A, u16) -> bool,
    ) -> Option<(u16, u16)> {
        let mut tries = TRIES;
        // a worker owns one port in `workers`: strangers cost a step, not a try
        for _ in 0..TRIES * 64 {
            let step = self.next;
            self.next = self.next.wrapping_add(1);
            let (index, address, port) = self.at(egress, step)?;
            if !self.fits::<A>(backend, address, port) {
                continue;
            }
            if !taken(A::from_bits(address), port) {
                self.ahead.set(self.next);
                return Some((index, port));
            }
            tries -= 1;
            if tries == 0 {
                return None;
            }
        }
        None
    }

    /// The address and port that [`Snat::choose`] will probably choose for the flow after those foreseen since its last choice.
    pub fn foresee<A: Address>(&self, egress: u16, backend: (u128, u16)) -> Option<(A, u16)> {
        for _ in 0..TRIES {
            let step = self.ahead.get();
            self.ahead.set(step.wrapping_add(1));
            let (_, address, port) = self.at(egress, step)?;
            if self.fits::<A>(backend, address, port) {
                return Some((A::from_bits(address), port));
            }
        }
        None
    }

    /// The source of a step: all addresses with the first port, then with the next one.
    #[inline]
    fn at(&self, egress: u16, step: u32) -> Option<(u16, u128, u16)> {
        let own = self.by_egress.get(usize::from(egress)).filter(|list| !list.is_empty());
        let active = own.unwrap_or(&self.active);
        let (first, last) = self.ports;
        let span = u32::from(last).checked_sub(u32::from(first))? + 1;
        let count = (active.len() as u32).max(1);
        let index = *active.get((step % count) as usize)?;
        Some((index, self.address(index)?, first + ((step / count) % span) as u16))
    }

    #[inline]
    fn fits<A: Address>(&self, backend: (u128, u16), address: u128, port: u16) -> bool {
        (address >> 32 == 0xffff) == (A::FAMILY == 4) && self.owner.owns(backend, address, port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Parts, bits_of};
    use std::collections::HashSet;

    fn services(snat: &[&str], ports: (u16, u16)) -> Services {
        let snat = snat.iter().map(|text| bits_of(text.parse().unwrap())).collect();
        Services::new(Parts { snat, snat_ports: ports, ..Parts::default() })
    }

    #[test]
    fn all_ports_of_all_addresses_are_used_before_exhaustion() {
        let mut snat = Snat::new(vec![], ReplyOwner::Alone);
        assert_eq!(snat.adopt(&services(&["198.18.0.1", "198.18.0.2", "2001:db8::1"], (2000, 2009))), 0);
        let mut used = HashSet::new();
        while let Some((index, port)) = snat.choose::<u32>(0, (1, 80), |a, p| used.contains(&(a.bits(), p))) {
            assert!((2000..=2009).contains(&port));
            assert!(used.insert((snat.address(index).unwrap(), port)));
        }
        assert_eq!(used.len(), 20);
    }

    #[test]
    fn flows_and_connections_never_choose_the_same_port() {
        for (first, last) in [(1024, 65535), (1024, 1025), (7, 7)] {
            let (lower, upper) = (User::Flows.share((first, last)), User::Connections.share((first, last)));
            assert_eq!((lower.0, upper.1), (first, last));
            assert!(lower.0 <= lower.1 && upper.0 <= upper.1);
            assert!(lower.1 < upper.0 || first == last);
        }
    }

    #[test]
    fn two_workers_never_choose_the_same_port() {
        let choose = |worker| {
            let mut snat = Snat::new(vec![], ReplyOwner::Remainder { worker, workers: 2 });
            snat.adopt(&services(&["198.18.0.1"], (1024, 65535)));
            (0..500)
                .map(|_| snat.choose::<u32>(0, (1, 80), |_, _| false).unwrap().1)
                .collect::<HashSet<u16>>()
        };
        assert!(choose(0).is_disjoint(&choose(1)));
    }

    #[test]
    fn what_is_foreseen_is_chosen() {
        let mut snat = Snat::new(vec![], ReplyOwner::Remainder { worker: 1, workers: 3 });
        snat.adopt(&services(&["198.18.0.1", "2001:db8::1"], (2000, 2999)));
        for burst in 0..40 {
            let foreseen: Vec<_> = (0..burst).map(|_| snat.foresee::<u32>(0, (1, 80)).unwrap()).collect();
            for (address, port) in foreseen {
                let (index, chosen) = snat.choose::<u32>(0, (1, 80), |_, _| false).unwrap();
                assert_eq!((snat.address(index), chosen), (Some(address.bits()), port));
            }
        }
    }

    #[test]
    fn numbers_stay_when_the_list_changes() {
        let mut snat = Snat::new(vec![bits_of("198.18.0.9".parse().unwrap())], ReplyOwner::Alone);
        snat.adopt(&services(&["198.18.0.1"], (1, 2)));
        assert_eq!(snat.address(0), Some(bits_of("198.18.0.9".parse().unwrap())));
        assert_eq!(snat.choose::<u32>(0, (1, 80), |_, _| false), Some((1, 1)));
        assert_eq!(snat.choose::<u128>(0, (1, 80), |_, _| false), None);
    }

    #[test]
    fn a_backend_gets_an_address_of_the_port_that_leads_to_it() {
        let [wan, lan, any] = ["198.18.0.1", "198.18.1.1", "198.18.2.1"].map(|a| bits_of(a.parse().unwrap()));
        let (snat, snat_egress) = (vec![wan, lan, any], vec![(wan, 0), (lan, 1)]);
        let services = Services::new(Parts { snat, snat_egress, snat_ports: (1, 9), ..Parts::default() });
        let mut snat = Snat::new(vec![], ReplyOwner::Alone);
        snat.adopt(&services);
        let mut chosen = |egress| -> HashSet<u128> {
            let index = (0..20).map(|_| snat.choose::<u32>(egress, (1, 80), |_, _| false).unwrap().0);
            index.collect::<Vec<_>>().into_iter().filter_map(|index| snat.address(index)).collect()
        };
        assert_eq!(chosen(0), HashSet::from([wan]));
        assert_eq!(chosen(1), HashSet::from([lan]));
        assert_eq!(chosen(2), HashSet::from([wan, lan, any]));
    }
}
