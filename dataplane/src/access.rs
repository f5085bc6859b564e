//! Who may begin flows in a generation: from the snapshot's tables to policies that the workers ask.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use weir_abi::access::{NodeRecord, PartTable};
use weir_abi::{AccessList, AccessTable, Root, TableKind, TableRef, table_name};
use weir_access::table::Address;
use weir_access::{List, Node, Parts, Per, Policy, Prefix, Rate, Shared, Table, TableError, TableV6};
use weir_l4::Services;

use crate::snapshot::LoadError;

/// What a snapshot has about access.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// With the id of its table.
    table: Option<(u64, Arc<AccessTable>)>,
    /// By the id of their table, proved.
    lists: HashMap<u64, Arc<List>>,
}

impl Access {
    /// Reads and proves the tables; those that `previous` has are taken from it.
    pub fn load(
        root: &Root,
        previous: Option<&Self>,
        mut read: impl FnMut(&TableRef) -> Result<Vec<u8>, LoadError>,
    ) -> Result<Self, LoadError> {
        let mut access = Self::default();
        for reference in root.of_kind(TableKind::Access) {
            let known = previous.and_then(|previous| previous.table.as_ref());
            let table = match known.filter(|(id, _)| *id == reference.id) {
                Some((_, table)) => Arc::clone(table),
                None => Arc::new(AccessTable::parse(reference, &read(reference)?)?),
            };
            access.table = Some((reference.id, table));
        }
        for reference in root.of_kind(TableKind::AccessList) {
            let list = match previous.and_then(|previous| previous.lists.get(&reference.id)) {
                Some(list) => Arc::clone(list),
                None => {
                    let list = list_of(AccessList::parse(reference, &read(reference)?)?);
                    let name = || table_name(reference.id);
                    Arc::new(list.map_err(|source| LoadError::List { name: name(), source })?)
                }
            };
            access.lists.insert(reference.id, list);
        }
        Ok(access)
    }

    /// A listener that a policy is for and that is not there, or that two policies are for.
    pub fn unknown_listener(&self, is_known: impl Fn(u32) -> bool) -> Option<u32> {
        let mut seen = HashSet::new();
        let (_, table) = self.table.as_ref()?;
        let listeners = table.policies.iter().map(|policy| policy.listener);
        listeners.into_iter().find(|listener| !is_known(*listener) || !seen.insert(*listener))
    }

    /// A list that a policy names and that is not there.
    pub fn unknown_list(&self) -> Option<u64> {
        let (_, table) = self.table.as_ref()?;
        let lists = table.policies.iter().map(|policy| policy.list).filter(|list| *list != 0);
        lists.into_iter().find(|list| !self.lists.contains_key(list))
    }

    /// The policies by index of their listener, and what they share. Listeners that only `previous` has, whose flows go on, keep what they
    /// asked. `flows` is how many there can be.
    pub fn policies(
        &self,
        previous: Option<&Services>,
        flows: u64,
        is_listener: impl Fn(u16) -> bool,
    ) -> (Vec<(u16, Policy)>, Option<Arc<Shared>>) {
        let records = self.table.as_ref().map_or(&[][..], |(_, table)| &table.policies);
        let gone = || {
            let policies = previous.into_iter().flat_map(Services::policies);
            policies.filter(|(index, _)| !is_listener(*index))
        };
        let before = previous.and_then(Services::access);
        if records.is_empty() && gone().next().is_none() && before.is_none() {
            return (Vec::new(), None);
        }
        let limited = records.iter().filter(|record| record.connections_per_source != 0);
        let mut counted: Vec<u16> = limited.map(|record| record.listener as u16).collect();
        counted.extend(gone().filter(|(_, policy)| policy.counts_flows()).map(|(index, _)| index));
        let mut shared = Shared::new(counted, flows, before.map(Arc::as_ref));
        if self.table.as_ref().is_some_and(|(_, table)| table.rates.iter().any(|rate| rate.per_prefix == 0)) {
            shared = shared.with_buckets();
        }
        let shared = Arc::new(shared);
        let mut policies: Vec<(u16, Policy)> =
            gone().map(|(index, policy)| (index, policy.with_shared(Arc::clone(&shared)))).collect();
        for record in records {
            let Some((_, table)) = &self.table else { break };
            let rates: Vec<Rate> = table.rates_of(record).iter().filter_map(rate_of).collect();
            let list = self.lists.get(&record.list).map(|list| (record.list, Arc::clone(list)));
            let index = record.listener as u16;
            let old = previous.and_then(|previous| previous.policy(index));
            let most = record.connections_per_source;
            policies.push((index, Policy::new(index, list, &rates, most, Arc::clone(&shared), old)));
        }
        (policies, Some(shared))
    }
}

fn rate_of(record: &weir_abi::access::FlowRateRecord) -> Option<Rate> {
    Some(Rate {
        prefix: Prefix::new(record.prefix.ip()?, record.prefix.prefix_length),
        per_second: record.per_second,
        burst: record.burst,
        per: if record.per_prefix == 1 { Per::Prefix } else { Per::Source },
    })
}

/// A list that can be looked up in, of one whose bytes are whole.
fn list_of(list: AccessList) -> Result<List, TableError> {
    let deny = list.default_deny;
    let low = |node: &NodeRecord| node.least.first().copied().unwrap_or(0);
    let v4 = table(&list.v4, deny, |node| low(node) as u32, |words: &[u32; 1]| words[0])?;
    let half = |words: &[u32; 2]| u64::from(words[0]) | u64::from(words[1]) << 32;
    let v6 = if list.whole_v6 {
        let least = |node: &NodeRecord| {
            u128::from(low(node)) | u128::from(node.least.last().copied().unwrap_or(0)) << 64
        };
        let whole = |words: &[u32; 4]| {
            let [a, b, c, d] = words.map(u128::from);
            a | b << 32 | c << 64 | d << 96
        };
        TableV6::Whole(table(&list.v6, deny, least, whole)?)
    } else {
        TableV6::Halves(table(&list.v6, deny, low, half)?)
    };
    Ok(List { v4, v6 })
}

fn table<A: Address, const WORDS: usize>(
    part: &PartTable,
    deny: bool,
    least: impl Fn(&NodeRecord) -> A,
    key: impl Fn(&[u32; WORDS]) -> A,
) -> Result<Table<A>, TableError> {
    let node = |node: &NodeRecord| Node {
        least: least(node),
        first_slot: node.first_slot,
        slots: node.slots,
        shift: node.shift,
    };
    let (keys, _) = part.keys.as_chunks::<WORDS>();
    let parts = Parts {
        nodes: part.nodes.iter().map(node).collect(),
        slots: part.slots.clone(),
        keys: keys.iter().map(key).collect(),
    };
    Table::new(parts, deny)
}
