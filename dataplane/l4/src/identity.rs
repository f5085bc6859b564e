//! What does a record stand for in a generation: which tuples, and is it still what it was?

use std::ops::DerefMut;

use crate::engine::{Accounts, Ended};
use crate::entry::{Address, Entry, Flow, NO_SNAT, Tuple};
use crate::services::{Backend, Drain, Listener, Mode, Services};
use crate::snat::Snat;
use crate::table::{FlowTable, Recovery};
use weir_index::Bucket;

pub(crate) fn recover<A, E, B>(
    services: &Services,
    snat: &Snat,
    entries: E,
    buckets: B,
    seed: [u64; 2],
    now: u32,
    accounts: &mut impl Accounts,
) -> (FlowTable<A, E, B>, Recovery)
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    let (table, recovery) = FlowTable::recover(entries, buckets, seed, |flow| {
        // a clock that ran on without us, or a torn tick: both would make the flow immortal or dead at once
        if flow.last_seen > now { None } else { hashes_of(services, snat, flow, seed) }
    });
    for (_, flow) in table.flows() {
        accounts.flow_created(flow.listener, flow.backend);
    }
    count_sources(services, &table);
    (table, recovery)
}

/// Counts all flows of listeners with a limit per source, where none of them is counted yet.
pub(crate) fn count_sources<A, E, B>(services: &Services, table: &FlowTable<A, E, B>)
where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    if !services.policies().any(|(_, policy)| policy.counts_flows()) {
        return;
    }
    for (_, flow) in table.flows() {
        if let Some(policy) = services.policy(flow.listener) {
            policy.opened(flow.client.bits());
        }
    }
}

/// Hash of a flow's forward tuple and, where replies are seen, of its reverse one.
fn hashes_of<A: Address>(
    services: &Services,
    snat: &Snat,
    flow: &Flow<A>,
    seed: [u64; 2],
) -> Option<(u32, Option<u32>)> {
    let listener = services.listener(flow.listener)?;
    let in_range = (listener.port_first..=listener.port_last).contains(&flow.vip_port);
    let is_cut = services.drain(flow.listener) == Drain::Cut;
    if is_cut
        || listener.protocol != flow.protocol
        || !in_range
        || (listener.vip >> 32 == 0xffff) != (A::FAMILY == 4)
    {
        return None;
    }
    let backend = services.backend(flow.backend)?;
    let forward = forward_tuple(listener, flow).hash(seed);
    if !listener.mode.sees_replies() {
        return Some((forward, None));
    }
    if (listener.mode == Mode::Fullnat) != (flow.snat != NO_SNAT) {
        return None;
    }
    let (dst, dst_port) = match flow.snat {
        NO_SNAT => (flow.client, flow.client_port),
        index => (A::from_bits(snat.address(index)?), flow.snat_port),
    };
    Some((forward, Some(reverse_hash(backend, flow.vip_port, dst, dst_port, flow.protocol, seed))))
}

pub(crate) fn forward_tuple<A: Address>(listener: &Listener, flow: &Flow<A>) -> Tuple<A> {
    Tuple {
        src: flow.client,
        dst: A::from_bits(listener.vip),
        src_port: flow.client_port,
        dst_port: flow.vip_port,
        protocol: flow.protocol,
    }
}

/// Never 0, which stands for "no reverse tuple" in a record.
pub(crate) fn reverse_hash<A: Address>(
    backend: &Backend,
    vip_port: u16,
    dst: A,
    dst_port: u16,
    protocol: u8,
    seed: [u64; 2],
) -> u32 {
    let src = A::from_bits(backend.address);
    reverse_of(Tuple { src, dst, src_port: backend.serves(vip_port), dst_port, protocol }.hash(seed))
}

pub(crate) fn reverse_of(hash: u32) -> u32 {
    hash.max(1)
}

pub(crate) fn purge<A, E, B>(
    old: &Services,
    new: &Services,
    table: &mut FlowTable<A, E, B>,
    accounts: &mut impl Accounts,
) where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    let stale = |flow: &Flow<A>| {
        let listener = old.listener(flow.listener).map(Listener::identity);
        let backend = old.backend(flow.backend).map(Backend::identity);
        listener != new.listener(flow.listener).map(Listener::identity)
            || backend != new.backend(flow.backend).map(Backend::identity)
            || new.drain(flow.listener) == Drain::Cut
    };
    let slots: Vec<u32> = table.flows().filter(|(_, flow)| stale(flow)).map(|(slot, _)| slot).collect();
    for slot in slots {
        end(old, table, slot, Ended::Replaced, accounts);
    }
}

pub(crate) fn end<A, E, B>(
    services: &Services,
    table: &mut FlowTable<A, E, B>,
    slot: u32,
    why: Ended,
    accounts: &mut impl Accounts,
) where
    A: Address,
    E: DerefMut<Target = [A::Entry]>,
    B: DerefMut<Target = [Bucket]>,
{
    let Some(flow) = table.entry(slot).map(Entry::flow) else { return };
    // the listener outlives its flows: a generation without it is adopted only after `purge`
    let Some(listener) = services.listener(flow.listener) else { return };
    let forward = forward_tuple(listener, &flow).hash(table.seed());
    if table.remove(slot, forward).is_some() {
        accounts.flow_ended(flow.listener, flow.backend, why);
        if let Some(policy) = services.policy(flow.listener) {
            policy.closed(flow.client.bits());
        }
    }
}
