//! The state directory is empty, but shared memory is not: who has which index there?
//!
//! Flow entries of a running dataplane pin those indices, so a daemon that lost its state takes them over.

use std::collections::HashSet;
use std::sync::Arc;

use weir_abi::image::MAX_TABLE_BYTES;
use weir_abi::record::{AdminState, BackendRecord, Mode};
use weir_abi::{ListenersTable, PoolTable, Root, TableKind, table_name};

use crate::compile::down::Down;
use crate::health::targets::begin_down;
use crate::model::Model;
use crate::publish::Snapshots;
use crate::state::{BackendEntry, ListenerEntry, Phase, PoolEntry, State};

/// Fills empty indices from the published generation, as far as its tables can be read.
pub(crate) fn take_over_indices(snapshots: &Snapshots, state: &mut State) {
    let Some(root) = snapshots.current() else { return };
    let indices = Arc::make_mut(&mut state.indices);
    tracing::warn!(
        "no kept state: indices are taken over from generation {} in shared memory; runtime overrides are lost",
        root.generation
    );
    for (reference, table) in pools(snapshots, &root) {
        let backends = table.backends.iter().filter_map(|b| backend(b, root.generation)).collect();
        let entry = PoolEntry { index: table.pool.index, phase: Phase::Active, backends, revision: 0 };
        if indices.pools.insert(table.pool.name.as_str().to_owned(), entry).is_some() {
            tracing::warn!("{}: a second pool of that name is ignored", table_name(reference));
        }
    }
    for (listener, vip) in listeners(snapshots, &root) {
        let Some(mode) = Mode::from_u8(listener.mode) else { continue };
        indices.listeners.push(ListenerEntry {
            name: listener.name.as_str().to_owned(),
            vip,
            protocol: listener.protocol,
            mode: mode.name().to_owned(),
            index: listener.index,
            phase: Phase::Active,
        });
    }
    indices.revision += 1;
}

/// What the published generation says of health, of pools that are probed: true until they are probed again.
pub(crate) fn take_over_health(snapshots: &Snapshots, model: &Model) -> Down {
    let mut down = Down::default();
    let tables = snapshots.current().map_or_else(Vec::new, |root| pools(snapshots, &root));
    let probed = |name: &str| model.pools.iter().any(|pool| pool.name == name && pool.health.is_some());
    let mut known: HashSet<(&str, &str)> = HashSet::new();
    for (_, table) in tables.iter().filter(|(_, table)| probed(table.pool.name.as_str())) {
        let pool = table.pool.name.as_str();
        for backend in &table.backends {
            known.insert((pool, backend.name.as_str()));
            if backend.down != 0 {
                down.set_down(pool, backend.name.as_str(), "was down when weir-ctlplane started");
            }
        }
    }
    begin_down(&mut down, model, |pool, backend| known.contains(&(pool, backend)));
    down
}

fn backend(record: &BackendRecord, generation: u64) -> Option<BackendEntry> {
    let removed = AdminState::from_u8(record.admin) == Some(AdminState::Removed);
    Some(BackendEntry {
        name: record.name.as_str().to_owned(),
        address: record.address.ip()?,
        port: record.address.port,
        index: record.index,
        phase: if removed { Phase::Removed(generation) } else { Phase::Active },
    })
}

fn pools(snapshots: &Snapshots, root: &Root) -> Vec<(u64, PoolTable)> {
    let read = |reference: &weir_abi::TableRef| {
        let bytes = snapshots.directory().read(&table_name(reference.id), MAX_TABLE_BYTES).ok()?;
        PoolTable::parse(reference, &bytes).ok().map(|table| (reference.id, table))
    };
    root.of_kind(TableKind::Pool).filter_map(read).collect()
}

fn listeners(
    snapshots: &Snapshots,
    root: &Root,
) -> Vec<(weir_abi::record::ListenerRecord, std::net::IpAddr)> {
    let Some(reference) = root.tables.get(1) else { return Vec::new() };
    let Ok(bytes) = snapshots.directory().read(&table_name(reference.id), MAX_TABLE_BYTES) else {
        return Vec::new();
    };
    let Ok(table) = ListenersTable::parse(reference, &bytes) else { return Vec::new() };
    let vip_of = |position: u32| table.vips.get(position as usize).and_then(|vip| vip.address.ip());
    table.listeners.iter().filter_map(|l| vip_of(l.vip).map(|vip| (*l, vip))).collect()
}
