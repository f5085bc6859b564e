//! Who may begin flows: prefix lists, ready to be looked up in, and what each listener asks of new flows.
//!
//! A list is a table of its own, named by its content like all: listeners share it, and one that did not change costs nothing in a
//! new generation. What its arrays mean is `weir-access`'s, which proves them before use: no slot leads outside or back.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::check::{check_address, ensure};
use crate::image::{
    SnapshotError, TableImage, TableKind, TableRef, records, table_name, unseal, wrong_length,
};
use crate::record::{Address, MAX_LISTENERS};

/// Most lists of a node.
pub const MAX_LISTS: usize = 1_024;
/// Most rates of one listener.
pub const MAX_RATES: u32 = 64;
/// Most flows at once of a source, where there is a limit.
pub const MAX_CONNECTIONS_PER_SOURCE: u32 = 1_000_000;

/// A part of a list's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct NodeRecord {
    /// Lowest key, the lower half first; of IPv4 and of halves, the second is zero.
    pub least: [u64; 2],
    /// First of its slots.
    pub first_slot: u32,
    /// How many.
    pub slots: u32,
    /// Width of a slot, as a power of two.
    pub shift: u32,
    /// Zero.
    pub reserved: u32,
}

/// One family's part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartTable {
    /// Nodes, the root first.
    pub nodes: Vec<NodeRecord>,
    /// Slots of the nodes.
    pub slots: Vec<u32>,
    /// Keys as 32-bit words, the lowest first: one of IPv4, two of halves, four of whole addresses of IPv6.
    pub keys: Vec<u32>,
}

/// A prefix list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessList {
    /// Addresses without a prefix are denied.
    pub default_deny: bool,
    /// Keys of IPv6 are whole addresses, not their first halves.
    pub whole_v6: bool,
    /// IPv4.
    pub v4: PartTable,
    /// IPv6.
    pub v6: PartTable,
}

/// Head of a list: flags, then nodes, slots and words of keys of both families.
const LIST_WORDS: usize = 8;

impl AccessList {
    /// The table's bytes.
    pub fn encode(&self) -> TableImage {
        let counts = |part: &PartTable| [part.nodes.len(), part.slots.len(), part.keys.len()];
        let mut content = Vec::new();
        content.extend_from_slice(&u32::from(self.default_deny).to_ne_bytes());
        content.extend_from_slice(&u32::from(self.whole_v6).to_ne_bytes());
        for count in [counts(&self.v4), counts(&self.v6)].as_flattened() {
            content.extend_from_slice(&(*count as u32).to_ne_bytes());
        }
        for part in [&self.v4, &self.v6] {
            content.extend_from_slice(part.nodes.as_bytes());
            content.extend_from_slice(part.slots.as_bytes());
            content.extend_from_slice(part.keys.as_bytes());
        }
        TableImage::seal(TableKind::AccessList, &content)
    }

    /// Verifies a private copy; what its arrays mean is proved by who looks up in them.
    pub fn parse(reference: &TableRef, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let content = unseal(TableKind::AccessList, reference, bytes)?;
        let what = table_name(reference.id);
        let length = || wrong_length(reference, bytes);
        let (head, rest) = records::<u32>(content, LIST_WORDS).ok_or_else(length)?;
        let [deny, whole, n4, s4, k4, n6, s6, k6] = head.as_slice() else { return Err(length()) };
        ensure(*deny <= 1, &what, "default_deny", u64::from(*deny), "must be 0 or 1")?;
        ensure(*whole <= 1, &what, "whole_v6", u64::from(*whole), "must be 0 or 1")?;
        let (v4, rest) = part(rest, [*n4, *s4, *k4]).ok_or_else(length)?;
        let (v6, rest) = part(rest, [*n6, *s6, *k6]).ok_or_else(length)?;
        if !rest.is_empty() {
            return Err(length());
        }
        let words = if *whole == 1 { 4 } else { 2 };
        ensure(k6 % words == 0, &what, "keys", u64::from(*k6), "must be whole keys")?;
        let list = Self { default_deny: *deny == 1, whole_v6: *whole == 1, v4, v6 };
        for node in list.v4.nodes.iter().chain(&list.v6.nodes) {
            ensure(node.shift < 128, &what, "shift", u64::from(node.shift), "must be below 128")?;
        }
        Ok(list)
    }
}

fn part(bytes: &[u8], [nodes, slots, keys]: [u32; 3]) -> Option<(PartTable, &[u8])> {
    let (nodes, rest) = records(bytes, nodes as usize)?;
    let (slots, rest) = records(rest, slots as usize)?;
    let (keys, rest) = records(rest, keys as usize)?;
    Some((PartTable { nodes, slots, keys }, rest))
}

/// What a listener asks of new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct PolicyRecord {
    /// Id of its list's table; 0 = none.
    pub list: u64,
    /// Index of the listener.
    pub listener: u32,
    /// Flows at once of a source; 0 = unlimited.
    pub connections_per_source: u32,
    /// First of its rates.
    pub rate_first: u32,
    /// How many, at most [`MAX_RATES`].
    pub rates: u32,
}

/// How fast flows may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct FlowRateRecord {
    /// From these sources.
    pub prefix: Address,
    /// Per second, at least 1.
    pub per_second: u32,
    /// At once, at least 1.
    pub burst: u32,
    /// 0: each source of the prefix has its own; 1: all of it have one.
    pub per_prefix: u32,
}

const _: () = {
    assert!(size_of::<NodeRecord>() == 32);
    assert!(size_of::<PolicyRecord>() == 24);
    assert!(size_of::<FlowRateRecord>() == 32);
};

/// What all listeners ask that ask something; at most one table of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessTable {
    /// A listener has one at most.
    pub policies: Vec<PolicyRecord>,
    /// Their rates.
    pub rates: Vec<FlowRateRecord>,
}

impl AccessTable {
    /// The table's bytes.
    pub fn encode(&self) -> TableImage {
        let mut content = Vec::new();
        content.extend_from_slice((self.policies.len() as u32).as_bytes());
        content.extend_from_slice((self.rates.len() as u32).as_bytes());
        content.extend_from_slice(self.policies.as_bytes());
        content.extend_from_slice(self.rates.as_bytes());
        TableImage::seal(TableKind::Access, &content)
    }

    /// Verifies a private copy. That listeners and lists exist is checked by the reader of the whole root.
    pub fn parse(reference: &TableRef, bytes: &[u8]) -> Result<Self, SnapshotError> {
        let content = unseal(TableKind::Access, reference, bytes)?;
        let what = table_name(reference.id);
        let length = || wrong_length(reference, bytes);
        let (counts, rest) = records::<u32>(content, 2).ok_or_else(length)?;
        let [policies, rates] = counts.as_slice() else { return Err(length()) };
        let (policies, rest) = records::<PolicyRecord>(rest, *policies as usize).ok_or_else(length)?;
        let (rates, rest) = records::<FlowRateRecord>(rest, *rates as usize).ok_or_else(length)?;
        if !rest.is_empty() {
            return Err(length());
        }
        let table = Self { policies, rates };
        table.check(&what)?;
        Ok(table)
    }

    fn check(&self, what: &str) -> Result<(), SnapshotError> {
        for policy in &self.policies {
            let listener = policy.listener;
            let fits = (listener as usize) < MAX_LISTENERS;
            ensure(fits, what, "policy.listener", listener.into(), "must be below 65,535")?;
            let most = policy.connections_per_source;
            let fits = most <= MAX_CONNECTIONS_PER_SOURCE;
            ensure(fits, what, "connections_per_source", most.into(), "must be at most 1,000,000")?;
            ensure(policy.rates <= MAX_RATES, what, "rates", policy.rates.into(), "must be at most 64")?;
            let end = u64::from(policy.rate_first) + u64::from(policy.rates);
            ensure(end <= self.rates.len() as u64, what, "rate_first", end, "must be a rate")?;
        }
        for rate in &self.rates {
            check_address(&rate.prefix, what, "rate.prefix")?;
            ensure(rate.per_second >= 1, what, "per_second", 0, "must be at least 1")?;
            ensure(rate.burst >= 1, what, "burst", 0, "must be at least 1")?;
            let per_prefix = rate.per_prefix;
            ensure(per_prefix <= 1, what, "per_prefix", per_prefix.into(), "must be 0 or 1")?;
        }
        Ok(())
    }

    /// The rates of a policy.
    pub fn rates_of(&self, policy: &PolicyRecord) -> &[FlowRateRecord] {
        let first = policy.rate_first as usize;
        self.rates.get(first..first + policy.rates as usize).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> AccessList {
        let node = NodeRecord { least: [7, 0], first_slot: 0, slots: 2, shift: 3, reserved: 0 };
        AccessList {
            default_deny: true,
            whole_v6: false,
            v4: PartTable { nodes: vec![node], slots: vec![0, 1], keys: vec![7, 15] },
            v6: PartTable::default(),
        }
    }

    fn table() -> AccessTable {
        let rate = FlowRateRecord {
            prefix: Address::prefix("198.18.0.0".parse().unwrap(), 16),
            per_second: 10,
            burst: 20,
            per_prefix: 1,
        };
        let policy =
            PolicyRecord { list: 5, listener: 3, connections_per_source: 7, rate_first: 0, rates: 1 };
        AccessTable { policies: vec![policy], rates: vec![rate] }
    }

    fn refused(change: impl FnOnce(&mut AccessTable)) -> String {
        let mut table = table();
        change(&mut table);
        let image = table.encode();
        AccessTable::parse(&image.reference, &image.bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_read() {
        let image = list().encode();
        assert_eq!(AccessList::parse(&image.reference, &image.bytes), Ok(list()));
        assert_eq!(list().encode().reference, image.reference, "named by content");
        let image = table().encode();
        let read = AccessTable::parse(&image.reference, &image.bytes).unwrap();
        assert_eq!(read, table());
        assert_eq!(read.rates_of(&read.policies[0]), table().rates);
    }

    #[test]
    fn values_out_of_bounds_are_named() {
        for (change, field) in [
            (&(|t: &mut AccessTable| t.policies[0].rates = 65) as &dyn Fn(&mut AccessTable), "rates is 65"),
            (&|t| t.policies[0].rate_first = 1, "rate_first is 2"),
            (&|t| t.policies[0].rate_first = u32::MAX, "rate_first is"),
            (&|t| t.policies[0].listener = 65_535, "policy.listener"),
            (&|t| t.policies[0].connections_per_source = 1_000_001, "connections_per_source"),
            (&|t| t.rates[0].per_second = 0, "per_second"),
            (&|t| t.rates[0].burst = 0, "burst"),
            (&|t| t.rates[0].per_prefix = 2, "per_prefix"),
            (&|t| t.rates[0].prefix.prefix_length = 33, "rate.prefix"),
            (&|t| t.rates[0].prefix.family = 5, "rate.prefix"),
        ] {
            let text = refused(change);
            assert!(text.contains(field), "{text}");
        }
    }

    #[test]
    fn lists_of_the_wrong_size_are_refused() {
        let mut long = list();
        long.v6.keys = vec![1];
        let image = long.encode();
        let text = AccessList::parse(&image.reference, &image.bytes).unwrap_err().to_string();
        assert!(text.contains("whole keys"), "{text}");
        let mut wide = list();
        wide.v4.nodes[0].shift = 128;
        let image = wide.encode();
        assert!(AccessList::parse(&image.reference, &image.bytes).is_err());
        let good = list().encode();
        let cut = good.bytes.len() - 4;
        assert!(AccessList::parse(&good.reference, &good.bytes[..cut]).is_err());
    }
}
