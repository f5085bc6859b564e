//! Two engines, and an engine against another stack, over links that lose, reorder, duplicate, corrupt, delay, narrow and go
//! dark: every byte arrives once and in order, or the connection says why not, and nothing is left behind.
//!
//! A failure prints its seed and the command that replays it. `WEIR_SEEDS` sets how many seeds run, `WEIR_SEED` the first;
//! `WEIR_TRACE` shows all segments.
#![cfg(test)]

mod host;
mod link;
mod other;
mod plan;
mod stream;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use plan::{Conversation, Plan, conversation, quiet};
use weir_tcp::Ended;
use world::{Peer, World};

/// Runs a test for many seeds.
fn each_seed(test: &str, count: u64, body: impl Fn(u64)) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("WEIR_SEED").unwrap_or(1);
    for seed in first..first + number("WEIR_SEEDS").unwrap_or(count) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(seed))) {
            println!(
                "seed {seed} failed; replay it with\n  WEIR_SEED={seed} WEIR_SEEDS=1 cargo test -p weir-tcp --test simulation -- --exact {test}"
            );
            resume_unwind(panic);
        }
    }
}

/// Seeds of plans that once found a fault: a retransmission timer that the peer's keep-alive put off for ever; data that overtook
/// the first, taken for it by a cookie of too few bits.
const FAULTS: [u64; 2] = [102_143, 106_204];

/// Runs a plan, and checks what must hold after any.
fn prove(plan: Plan) -> World<host::Host, host::Host> {
    let mut world = World::new(plan);
    world.run();
    for number in 0..world.plan.conversations.len() {
        let talk = world.plan.conversations[number];
        let find = |host: &host::Host| host.streams.iter().position(|stream| stream.number == number);
        let (client, server) = (find(&world.client), find(&world.server));
        let client = &world.client.streams[client.expect("begun")];
        if talk.broken.is_some() {
            assert!(client.ended.is_some());
            continue;
        }
        let server = &world.server.streams[server.unwrap_or_else(|| panic!("{}", world.describe()))];
        let received = [server.received, client.received];
        assert_eq!(received, talk.bytes, "{}", world.describe());
        assert_eq!(
            [client.ended, server.ended],
            [Some(Ended::Finished); 2],
            "{number}: {}",
            world.describe()
        );
    }
    for (host, link) in [(&world.client, &world.links[0]), (&world.server, &world.links[1])] {
        let allowed = 2_000 + 8 * (link.carried + world.took_us / 1_000_000);
        assert!(host.idle_turns < allowed, "{} idle turns: {}", host.idle_turns, world.describe());
    }
    world.assert_nothing_left();
    world
}

#[test]
fn a_clean_link_carries_both_ways_and_nothing_is_left() {
    for is_v4 in [true, false] {
        let conversations = vec![Conversation { is_v4, ..conversation([100_000, 300_000]) }];
        let world = prove(Plan { conversations, ..quiet(1) });
        assert!(world.took_us < 1_000_000, "{} µs: {}", world.took_us, world.describe());
        for host in [&world.client, &world.server] {
            assert_eq!(host.engine.counters().retransmitted, 0);
            assert_eq!(host.engine.counters().resets_no_connection, 0);
        }
    }
}

#[test]
fn bad_links_lose_nothing() {
    each_seed("bad_links_lose_nothing", 500, |seed| drop(prove(plan::bad_link(seed))));
}

#[test]
fn anything_may_happen_at_once() {
    for seed in FAULTS {
        prove(plan::anything(seed));
    }
    each_seed("anything_may_happen_at_once", 700, |seed| drop(prove(plan::anything(seed))));
}

/// Runs a plan's first conversation with the short way of usual segments or without; all that left and how all stood.
fn traced(plan: Plan, is_steady: bool) -> Vec<String> {
    let conversations = plan.conversations.first().copied().into_iter().collect();
    let mut world = World::new(Plan { conversations, ..plan });
    world.client.engine.set_steady(is_steady);
    world.server.engine.set_steady(is_steady);
    world.trace = Some(Vec::new());
    world.run();
    world.trace.unwrap_or_default()
}

#[test]
fn the_short_way_does_what_the_long_one_does() {
    each_seed("the_short_way_does_what_the_long_one_does", 60, |seed| {
        for plan in [quiet, plan::bad_link, plan::anything] {
            let (short, long) = (traced(plan(seed), true), traced(plan(seed), false));
            let differs = short.iter().zip(&long).position(|(short, long)| short != long);
            if let Some(at) = differs {
                let before = &short[at.saturating_sub(6)..at];
                panic!("after\n{}\nshort {}\nlong  {}", before.join("\n"), short[at], long[at]);
            }
            assert_eq!(short.len(), long.len());
        }
    });
}

/// Both ends have heard all. An engine whose last acknowledgement of all was lost may be told by a RST, since the other stack
/// forgets a connection after ten seconds.
fn prove_with_other<C: Peer, S: Peer>(
    world: &mut World<C, S>,
    look: impl Fn(&World<C, S>) -> ([u64; 2], Option<Ended>),
) {
    world.run();
    let talk = world.plan.conversations[0];
    let (received, ended) = look(world);
    assert_eq!(received, talk.bytes, "{}", world.describe());
    assert!(matches!(ended, Some(Ended::Finished | Ended::Reset)), "{}", world.describe());
    world.assert_nothing_left();
}

#[test]
fn smoltcp_as_server_is_understood() {
    each_seed("smoltcp_as_server_is_understood", 200, |seed| {
        let mut world = World::with(
            plan::with_other(seed),
            |plan, random, now| host::Host::new(plan, 0, random, now),
            |plan, random, now| other::Other::new(plan, 1, random, now),
        );
        prove_with_other(&mut world, |world| {
            let client = &world.client.streams[0];
            ([world.server.received, client.received], client.ended)
        });
    });
}

#[test]
fn smoltcp_as_client_is_understood() {
    each_seed("smoltcp_as_client_is_understood", 200, |seed| {
        let mut world = World::with(
            plan::with_other(seed),
            |plan, random, now| other::Other::new(plan, 0, random, now),
            |plan, random, now| host::Host::new(plan, 1, random, now),
        );
        prove_with_other(&mut world, |world| {
            let server = world.server.streams.first();
            let received = server.map_or(0, |stream| stream.received);
            ([received, world.client.received], server.and_then(|stream| stream.ended))
        });
    });
}
