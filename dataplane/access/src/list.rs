//! Which addresses of both families does a list deny?

use std::net::IpAddr;

use crate::build::{Prefix, Rule};
use crate::policy::{is_v4, number};
use crate::table::{Table, TableError};

/// Prefixes of both families, the longest of which decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List {
    /// IPv4.
    pub v4: Table<u32>,
    /// IPv6.
    pub v6: TableV6,
}

/// IPv6 addresses. Comparing their first halves alone takes half the time and memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableV6 {
    /// No prefix is longer than 64 bits.
    Halves(Table<u64>),
    /// Some is.
    Whole(Table<u128>),
}

impl TableV6 {
    /// Whether an address is denied.
    #[inline]
    pub fn denies(&self, address: u128) -> bool {
        match self {
            Self::Halves(table) => table.denies((address >> 64) as u64),
            Self::Whole(table) => table.denies(address),
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Halves(table) => table.bytes(),
            Self::Whole(table) => table.bytes(),
        }
    }
}

impl List {
    /// The list of these prefixes and whether each is denied; of two for one prefix, the later. What none has gets the default.
    pub fn build(prefixes: &[(Prefix, bool)], default_deny: bool) -> Result<Self, TableError> {
        let mut v4 = Vec::new();
        let mut v6 = Vec::new();
        for (Prefix { network, length }, deny) in prefixes {
            let (length, deny) = (*length, *deny);
            match network {
                IpAddr::V4(network) => v4.push(Rule { network: network.to_bits(), length, deny }),
                IpAddr::V6(network) => v6.push(Rule { network: network.to_bits(), length, deny }),
            }
        }
        let half = |rule: &Rule<u128>| Rule {
            network: (rule.network >> 64) as u64,
            length: rule.length,
            deny: rule.deny,
        };
        let v6 = if v6.iter().all(|rule| rule.length <= 64) {
            let halves: Vec<_> = v6.iter().map(half).collect();
            TableV6::Halves(Table::build(&halves, default_deny)?)
        } else {
            TableV6::Whole(Table::build(&v6, default_deny)?)
        };
        Ok(Self { v4: Table::build(&v4, default_deny)?, v6 })
    }

    /// Whether an address is denied; IPv4 ones in their IPv4-mapped form.
    #[inline]
    pub fn denies(&self, source: u128) -> bool {
        if is_v4(source) { self.v4.denies(source as u32) } else { self.v6.denies(source) }
    }

    /// Whether an address is denied.
    pub fn denies_address(&self, source: IpAddr) -> bool {
        self.denies(number(source))
    }

    /// What an address gets that no prefix has.
    pub fn default_deny(&self) -> bool {
        self.v4.default_deny()
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        self.v4.bytes() + self.v6.bytes()
    }
}
