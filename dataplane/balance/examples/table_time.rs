//! How long does a table take to build? `cargo run --release --package weir-balance --example table_time`

use std::time::Instant;

use weir_balance::maglev::{DEFAULT_SLOTS, Table};
use weir_balance::round_robin::{DEFAULT_MAX_LEN, schedule};

fn main() {
    let even: Vec<(String, u32)> = (0..100).map(|index| (format!("app-{index}"), 100)).collect();
    let uneven: Vec<(String, u32)> =
        (0..100).map(|index| (format!("app-{index}"), 1 + index * index)).collect();
    for (name, backends) in [("equal weights", even), ("1 to 9,802", uneven)] {
        let mut best = u128::MAX;
        for _ in 0..20 {
            let start = Instant::now();
            let table = Table::build(&backends, DEFAULT_SLOTS);
            best = best.min(start.elapsed().as_micros());
            assert!(table.is_ok_and(|table| table.len() == DEFAULT_SLOTS as usize));
        }
        let weights: Vec<u32> = backends.iter().map(|(_, weight)| *weight).collect();
        let start = Instant::now();
        let turns = schedule(&weights, DEFAULT_MAX_LEN).len();
        let scheduled = start.elapsed().as_micros();
        println!(
            "100 backends, {name}: Maglev {DEFAULT_SLOTS} slots {best} µs; round-robin {turns} turns {scheduled} µs"
        );
    }
}
