//! The bodies of the fuzz targets of this crate: arbitrary bytes in, no panic out.

use crate::counters::Reader;
use crate::http::{ConditionKind, HttpTable};
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
    for kind in [TableKind::Node, TableKind::Listeners, TableKind::Pool, TableKind::Http] {
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
        if let Ok(table) = HttpTable::parse(&image.reference, &image.bytes) {
            assert_eq!(table.encode(), image, "an HTTP table that parses encodes to the same bytes");
            http(&table);
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

/// What a reader relies on without looking: each stretch is inside.
fn http(table: &HttpTable) {
    let full = |stretch: crate::http::Stretch, length: usize| assert_eq!(stretch.count as usize, length);
    for route in &table.routes {
        for text in [route.name, route.host, route.path, route.first, route.request_path, route.request_host]
        {
            full(text, table.text(text).len());
        }
        full(route.second, table.bytes(route.second).len());
        full(route.conditions, route.conditions.of(&table.conditions).len());
        full(route.pools, route.pools.of(&table.splits).len());
        full(route.request_fields, route.request_fields.of(&table.edits).len());
        full(route.response_fields, route.response_fields.of(&table.edits).len());
        let numbers = route.rate_limits.of(&table.numbers);
        full(route.rate_limits, numbers.len());
        assert!(numbers.iter().all(|number| usize::from(*number) < table.rates.len()));
    }
    for condition in &table.conditions {
        full(condition.name, table.text(condition.name).len());
        match ConditionKind::from_u8(condition.kind) {
            Some(ConditionKind::Method) => full(condition.value, condition.value.of(&table.words).len()),
            Some(ConditionKind::Source) => full(condition.value, condition.value.of(&table.prefixes).len()),
            _ => full(condition.value, table.text(condition.value).len()),
        }
    }
    for edit in &table.edits {
        let value = table.text(edit.value);
        assert!(!value.contains(['\r', '\n', '\0']) && !table.text(edit.name).is_empty());
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
