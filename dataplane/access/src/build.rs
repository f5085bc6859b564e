//! From allowed and denied prefixes to the addresses where the answer changes.

use std::fmt;
use std::net::IpAddr;

use crate::table::{Address, Table, TableError};

/// A prefix of either family, without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// Its first address.
    pub network: IpAddr,
    /// 0 to 32, or 128.
    pub length: u8,
}

impl Prefix {
    /// The prefix of these many bits that has the address; a length that is too long is cut.
    pub fn new(address: IpAddr, length: u8) -> Self {
        match address {
            IpAddr::V4(v4) => {
                let length = length.min(32);
                let network = v4.to_bits() & !<u32 as Address>::host_mask(length);
                Self { network: std::net::Ipv4Addr::from_bits(network).into(), length }
            }
            IpAddr::V6(v6) => {
                let length = length.min(128);
                let network = v6.to_bits() & !<u128 as Address>::host_mask(length);
                Self { network: std::net::Ipv6Addr::from_bits(network).into(), length }
            }
        }
    }

    /// Whether it has the address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.network.is_ipv4() == address.is_ipv4() && Self::new(address, self.length) == *self
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.network, self.length)
    }
}

/// What a prefix of one family gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<A> {
    /// Its first address; what is set below the length is ignored.
    pub network: A,
    /// Bits of it that count.
    pub length: u8,
    /// Denied, or allowed.
    pub deny: bool,
}

impl<A: Address> Table<A> {
    /// The table of these rules, the longest of which decides; of two for one prefix, the later. The rest gets the default.
    pub fn build(rules: &[Rule<A>], default_deny: bool) -> Result<Self, TableError> {
        Self::of_keys(changes(rules, default_deny), default_deny)
    }
}

/// A stretch of addresses, both ends included.
#[derive(Clone, Copy)]
struct Stretch<A> {
    first: A,
    last: A,
    deny: bool,
}

/// Where the answer changes from allow to deny or back; before the first, the default holds.
fn changes<A: Address>(rules: &[Rule<A>], default_deny: bool) -> Vec<A> {
    let stretch = |rule: &Rule<A>| {
        let host = A::host_mask(rule.length);
        let last = rule.network.or(host);
        Stretch { first: last - host, last, deny: rule.deny }
    };
    let mut stretches: Vec<_> = rules.iter().map(stretch).collect();
    // outer before inner, and of equals the later last: what comes later is on top. The sort is stable.
    stretches.sort_by(|a, b| a.first.cmp(&b.first).then(b.last.cmp(&a.last)));
    let mut runs: Vec<(A, bool)> = Vec::with_capacity(2 * stretches.len());
    let mut open: Vec<Stretch<A>> = Vec::new();
    for next in stretches {
        close(&mut open, &mut runs, Some(next.first), default_deny);
        put(&mut runs, next.first, next.deny);
        open.push(next);
    }
    close(&mut open, &mut runs, None, default_deny);
    let mut now = default_deny;
    let changed = |(at, deny): (A, bool)| {
        let changes = deny != now;
        now = deny;
        changes.then_some(at)
    };
    runs.into_iter().filter_map(changed).collect()
}

/// Ends what ends before `until`: behind it, what is around it holds again.
fn close<A: Address>(
    open: &mut Vec<Stretch<A>>,
    runs: &mut Vec<(A, bool)>,
    until: Option<A>,
    default_deny: bool,
) {
    while let Some(top) = open.last().copied().filter(|top| until.is_none_or(|until| top.last < until)) {
        open.pop();
        // what follows the highest address is nothing
        let Some(behind) = top.last.next() else { continue };
        put(runs, behind, open.last().map_or(default_deny, |around| around.deny));
    }
}

/// From here on it is so; what was said of the same place before is void.
fn put<A: Address>(runs: &mut Vec<(A, bool)>, at: A, deny: bool) {
    match runs.last_mut() {
        Some(last) if last.0 == at => last.1 = deny,
        _ => runs.push((at, deny)),
    }
}
