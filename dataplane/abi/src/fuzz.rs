//! The bodies of the fuzz targets of this crate: arbitrary bytes in, no panic out.

use crate::counters::Reader;
use crate::image::{ListenersTable, NodeTable, PoolTable, Root, TableKind, TableRef};
use crate::proxy::{AcceptProxy, Congestion, SendProxy};
use crate::record::Mode;
use std::sync::atomic::AtomicU64;

/// Feeds `data` to every parser, once as it is and once resealed with right lengths and checksums,
/// so that the checks behind the checksum are reached too.
pub fn snapshot(data: &[u8]) {
    let generation = data.get(32..40).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let _ = Root::parse(generation, data);
    let resealed = crate::image::reseal_root(data);
    if let Ok(root) = Root::parse(crate::image::generation_of(&resealed), &resealed) {
        assert_eq!(root.encode(), resealed, "a root that parses encodes to the same bytes");
    }
    for kind in [TableKind::Node, TableKind::Listeners, TableKind::Pool] {
        let image = crate::image::seal_raw(kind, data);
        if let Ok(table) = NodeTable::parse(&image.reference, &image.bytes) {
            assert_eq!(table.encode(), image, "a node table that parses encodes to the same bytes");
        }
        if let Ok(table) = ListenersTable::parse(&image.reference, &image.bytes) {
            assert_eq!(table.encode(), image, "a listeners table that parses encodes to the same bytes");
            proxies(&table);
        }
        if let Ok(table) = PoolTable::parse(&image.reference, &image.bytes) {
            assert_eq!(table.encode(), image, "a pool table that parses encodes to the same bytes");
            assert!(SendProxy::from_u8(table.pool.send_proxy).is_some());
        }
        let wild = TableRef { id: 0, length: data.len() as u64, checksum: 0, kind: kind as u32, reserved: 0 };
        let _ = PoolTable::parse(&wild, data);
    }
}

/// What a reader relies on without looking: references lead somewhere, and settings are ones that it knows.
fn proxies(table: &ListenersTable) {
    for listener in &table.listeners {
        let proxy = table.proxies.get(listener.proxy as usize);
        assert_eq!(proxy.is_some(), listener.mode == Mode::Proxy as u8);
    }
    for proxy in &table.proxies {
        let trusted =
            table.trusted.get(proxy.trusted_first as usize..).and_then(|t| t.get(..proxy.trusted as usize));
        assert_eq!(trusted.is_some_and(<[_]>::is_empty), proxy.accept_proxy() == AcceptProxy::Off);
        assert!(trusted.is_some_and(|prefixes| prefixes.iter().all(|prefix| prefix.ip().is_some())));
        assert!(Congestion::from_u8(proxy.client.congestion).is_some() && proxy.client.buffer_bytes > 0);
    }
}

/// Feeds `data` to the reader of the counters segment.
pub fn counters(data: &[u8]) {
    let words: Vec<AtomicU64> = data
        .chunks_exact(8)
        .filter_map(|chunk| chunk.try_into().ok())
        .map(|chunk| AtomicU64::new(u64::from_ne_bytes(chunk)))
        .collect();
    if let Ok(reader) = Reader::open(words.as_slice()) {
        for group in reader.groups() {
            for row in 0..group.rows().min(4) {
                let _ = group.sum(row, 0);
            }
            let _ = group.columns().count();
        }
    }
}
