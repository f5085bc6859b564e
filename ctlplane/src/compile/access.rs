//! The tables of access: lists as the workers look up in them, and what listeners ask.

use std::sync::Arc;

use weir_abi::access::{AccessList, AccessTable, FlowRateRecord, NodeRecord, PartTable, PolicyRecord};
use weir_abi::image::TableImage;
use weir_abi::record::Address as AddressRecord;
use weir_access::table::Address;
use weir_access::{List, Per, Rate, Table, TableV6};

use crate::model::{self, Model};

/// Lists by what they were made of.
#[derive(Clone, Debug, Default)]
pub struct ListCache {
    lists: Vec<(Arc<model::AccessList>, Arc<TableImage>)>,
}

impl ListCache {
    /// The image of a list: that of an equal one, where there is one.
    fn image(&self, list: &Arc<model::AccessList>) -> Arc<TableImage> {
        let same = self.lists.iter().find(|(cached, _)| Arc::ptr_eq(cached, list) || cached == list);
        same.map_or_else(|| Arc::new(table(&list.built).encode()), |(_, image)| Arc::clone(image))
    }

    /// What listeners ask, then the lists that they name; nothing where no listener asks anything. `indices` are those of the listeners.
    pub fn tables(&mut self, model: &Model, indices: &[u32]) -> Vec<Arc<TableImage>> {
        let asks = |listener: &&model::Listener| listener.access != model::Access::default();
        if !model.listeners.iter().any(|listener| asks(&listener)) {
            self.lists.clear();
            return Vec::new();
        }
        let images: Vec<Arc<TableImage>> = model.access_lists.iter().map(|list| self.image(list)).collect();
        self.lists = model.access_lists.iter().cloned().zip(images.iter().cloned()).collect();
        let mut access = AccessTable::default();
        let mut named: Vec<Arc<TableImage>> = Vec::new();
        for (listener, index) in model.listeners.iter().zip(indices) {
            if !asks(&listener) {
                continue;
            }
            let model::Access { list, rates, connections_per_source } = &listener.access;
            let image = list.and_then(|list| images.get(list));
            if let Some(image) = image
                && !named.iter().any(|other| other.reference.id == image.reference.id)
            {
                named.push(Arc::clone(image));
            }
            access.policies.push(PolicyRecord {
                list: image.map_or(0, |image| image.reference.id),
                listener: *index,
                connections_per_source: *connections_per_source,
                rate_first: access.rates.len() as u32,
                rates: rates.len() as u32,
            });
            access.rates.extend(rates.iter().map(rate_record));
        }
        let mut tables = vec![Arc::new(access.encode())];
        tables.extend(named);
        tables
    }
}

fn rate_record(rate: &Rate) -> FlowRateRecord {
    FlowRateRecord {
        prefix: AddressRecord::prefix(rate.prefix.network, rate.prefix.length),
        per_second: rate.per_second,
        burst: rate.burst,
        per_prefix: u32::from(rate.per == Per::Prefix),
    }
}

fn table(list: &List) -> AccessList {
    let (v6, whole_v6) = match &list.v6 {
        TableV6::Halves(table) => {
            (part(table, |least| [least, 0], |key| [key as u32, (key >> 32) as u32]), false)
        }
        TableV6::Whole(table) => {
            let least = |least: u128| [least as u64, (least >> 64) as u64];
            (part(table, least, |key| [0, 32, 64, 96].map(|from| (key >> from) as u32)), true)
        }
    };
    let v4 = part(&list.v4, |least| [least.into(), 0], |key| [key]);
    AccessList { default_deny: list.default_deny(), whole_v6, v4, v6 }
}

fn part<A: Address, const WORDS: usize>(
    table: &Table<A>,
    least: impl Fn(A) -> [u64; 2],
    words: impl Fn(A) -> [u32; WORDS],
) -> PartTable {
    let parts = table.parts();
    let node = |node: &weir_access::Node<A>| NodeRecord {
        least: least(node.least),
        first_slot: node.first_slot,
        slots: node.slots,
        shift: node.shift,
        reserved: 0,
    };
    PartTable {
        nodes: parts.nodes.iter().map(node).collect(),
        slots: parts.slots,
        keys: parts.keys.iter().flat_map(|key| words(*key)).collect(),
    }
}
