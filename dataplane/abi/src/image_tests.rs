//! Round trips, and every way in which bytes can be wrong.
#![allow(clippy::indexing_slicing, reason = "tests")]

use super::*;
use crate::text::{Name, Text};
use zerocopy::FromZeros;

fn node() -> NodeTable {
    let mut node = NodeRecord::new_zeroed();
    node.worker_count = 1;
    node.flows_ipv4 = 1024;
    node.flows_ipv6 = 1024;
    node.backend_capacity = 64;
    node.snat_port_first = 1024;
    node.snat_port_last = 65_535;
    let mut port = PortRecord::new_zeroed();
    port.name = Name::new("wan");
    port.device = Text::new("null:");
    port.mtu = 1500;
    NodeTable { node, ports: vec![port], addresses: vec![], routes: vec![] }
}

fn pool() -> PoolTable {
    let mut record = PoolRecord::new_zeroed();
    record.name = Name::new("app");
    let mut backend = BackendRecord::new_zeroed();
    backend.address = Address::host([198, 18, 1, 11].into()).with_port(80);
    backend.weight = 1;
    PoolTable { pool: record, backends: vec![backend], slots: vec![0, NO_POSITION, 0] }
}

fn listeners() -> ListenersTable {
    let mut vip = VipRecord::new_zeroed();
    vip.address = Address::host([198, 18, 100, 1].into());
    let mut listener = ListenerRecord::new_zeroed();
    listener.port_first = 80;
    listener.port_last = 80;
    listener.protocol = 6;
    listener.gue_port = 6080;
    ListenersTable { vips: vec![vip], listeners: vec![listener] }
}

#[test]
fn tables_round_trip_and_equal_tables_share_an_id() {
    let image = pool().encode();
    let parsed = PoolTable::parse(&image.reference, &image.bytes).unwrap();
    assert_eq!(parsed.slots, vec![0, NO_POSITION, 0]);
    assert_eq!(parsed.encode(), image);
    let mut other = pool();
    other.slots[0] = NO_POSITION;
    assert_ne!(other.encode().reference.id, image.reference.id);
    let image = node().encode();
    assert_eq!(NodeTable::parse(&image.reference, &image.bytes).unwrap().ports[0].name.as_str(), "wan");
    let image = listeners().encode();
    assert_eq!(ListenersTable::parse(&image.reference, &image.bytes).unwrap().listeners.len(), 1);
}

#[test]
fn each_flipped_bit_and_each_cut_is_refused() {
    let image = pool().encode();
    for at in 0..image.bytes.len() {
        let mut bytes = image.bytes.clone();
        bytes[at] ^= 1;
        assert!(PoolTable::parse(&image.reference, &bytes).is_err(), "flipped byte {at}");
        assert!(PoolTable::parse(&image.reference, &image.bytes[..at]).is_err(), "cut at {at}");
    }
    let root = Root {
        generation: 7,
        created_unix_ms: 1,
        tables: vec![node().encode().reference, listeners().encode().reference, image.reference],
    };
    let bytes = root.encode();
    assert_eq!(Root::parse(7, &bytes).unwrap(), root);
    assert!(Root::parse(8, &bytes).is_err());
    for at in 0..bytes.len() {
        let mut copy = bytes.clone();
        copy[at] ^= 1;
        assert!(Root::parse(7, &copy).is_err(), "flipped byte {at}");
        assert!(Root::parse(7, &bytes[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn another_version_is_named_in_the_error() {
    let mut bytes = Root { generation: 1, created_unix_ms: 0, tables: vec![] }.encode();
    bytes[8] = 9;
    let error = Root::parse(1, &bytes).unwrap_err().to_string();
    assert_eq!(error, "root-1 has layout version 9, this program reads version 1");
}

#[test]
fn well_sealed_nonsense_is_refused() {
    let mut bad = pool();
    bad.slots[0] = 1;
    let image = bad.encode();
    let error = PoolTable::parse(&image.reference, &image.bytes).unwrap_err();
    assert!(matches!(error, SnapshotError::Value { field: "slot", value: 1, .. }), "{error}");
    let mut bad = node();
    bad.node.worker_count = 65;
    let image = bad.encode();
    assert!(NodeTable::parse(&image.reference, &image.bytes).is_err());
    let mut bad = listeners();
    bad.listeners[0].vip = 1;
    let image = bad.encode();
    assert!(ListenersTable::parse(&image.reference, &image.bytes).is_err());
    let root = Root { generation: 1, created_unix_ms: 0, tables: vec![pool().encode().reference] };
    assert!(Root::parse(1, &root.encode()).is_err());
}
