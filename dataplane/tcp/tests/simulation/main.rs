//! Two engines, and an engine against another stack, over links that lose, reorder, duplicate, corrupt and delay: every byte
//! arrives once and in order, or the connection says why not, and nothing is left behind. Seeds are printed and replay.

mod link;
mod pair;

use pair::{Pair, Plan};
use link::{Quality, Random};
use weir_tcp::{ConnectionConfig, Ended};

fn plan(seed: u64) -> Plan {
    Plan {
        seed,
        quality: Quality { delay_us: 5_000, ..Quality::default() },
        config: ConnectionConfig::default(),
        bytes: [100_000, 300_000],
        is_v4: true,
        write: 4_000,
        reads_every_us: 0,
        deadline_s: 600,
    }
}

#[test]
fn a_clean_link_carries_both_ways_and_nothing_is_left() {
    for is_v4 in [true, false] {
        let mut pair = Pair::new(Plan { is_v4, ..plan(1) });
        let report = pair.run();
        assert_eq!(report.received, [300_000, 100_000], "{report:?} {pair:#?}");
        assert_eq!(report.ended, [Some(Ended::Finished); 2], "{report:?}");
        assert!(report.took_us < 1_000_000, "{report:?}");
        for host in &pair.hosts {
            assert_eq!(host.engine.counters().retransmitted, 0);
            assert_eq!(host.engine.counters().resets_no_connection, 0);
        }
        pair.assert_nothing_left();
    }
}

#[test]
fn bad_links_lose_nothing() {
    let seeds = std::env::var("WEIR_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(300);
    let first = std::env::var("WEIR_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1u64);
    for seed in first..first + seeds {
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut chance = |most: u64| if random.below(3) == 0 { 0 } else { random.below(most) as u32 };
        let quality = Quality {
            loss: chance(80_000),
            duplicate: chance(50_000),
            corrupt: chance(20_000),
            reorder: chance(200_000),
            delay_us: 100 + u64::from(chance(50_000)),
            jitter_us: u64::from(chance(10_000)),
            rate: u64::from(chance(20_000_000)),
            queue: 3_000 + u64::from(chance(300_000)),
        };
        let defaults = ConnectionConfig::default();
        let config = ConnectionConfig {
            no_delay: chance(3) != 1,
            timestamps: chance(4) != 1,
            sack: chance(4) != 1,
            window_scaling: chance(4) != 1,
            ecn_request: chance(2) == 1,
            receive_buffer: 2_000 + chance(1 << 20),
            send_buffer: 1_000 + chance(1 << 19),
            mss: (chance(2) == 1).then(|| 100 + chance(1_300) as u16),
            data_retries: 100,
            syn_retries: 30,
            rto_max_ms: 10_000,
            ..defaults
        };
        let plan = Plan {
            seed,
            quality,
            config,
            bytes: [u64::from(chance(300_000)), u64::from(chance(300_000))],
            is_v4: chance(2) == 0,
            write: 50 + u64::from(chance(20_000)),
            reads_every_us: u64::from(chance(20_000)),
            deadline_s: 3_600,
        };
        let mut pair = Pair::new(plan);
        let report = pair.run();
        if report.received != [plan.bytes[1], plan.bytes[0]] {
            println!("{}", pair.describe());
        }
        assert_eq!(report.received, [plan.bytes[1], plan.bytes[0]], "seed {seed}: {report:?}\n{plan:?}");
        assert_eq!(report.ended, [Some(Ended::Finished); 2], "seed {seed}: {report:?}\n{plan:?}");
        pair.assert_nothing_left();
    }
}
