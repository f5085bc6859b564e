//! How long does a look-up take, and how large is the table? `cargo run --release -p weir-access --example lookup_time`.
#![allow(clippy::indexing_slicing, reason = "positions are taken modulo the length")]

use std::hint::black_box;
use std::time::Instant;

use weir_access::build::Rule;
use weir_access::table::{Address, Table};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn measure<A: Address>(what: &str, rules: &[Rule<A>], addresses: &[A]) {
    let began = Instant::now();
    let Ok(table) = Table::build(rules, false) else { return };
    let built = began.elapsed();
    let mut best = f64::MAX;
    let mut denied = 0;
    for _ in 0..7 {
        let began = Instant::now();
        denied = addresses.iter().filter(|address| table.denies(**address)).count();
        black_box(denied);
        best = best.min(began.elapsed().as_nanos() as f64 / addresses.len() as f64);
    }
    let mut chained = f64::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        let mut at = 0usize;
        for _ in 0..addresses.len() {
            // the next address is known only once this one was looked up
            let denied = addresses.get(at).is_some_and(|address| table.denies(*address));
            at = (at + 1 + usize::from(denied)) % addresses.len();
        }
        black_box(at);
        chained = chained.min(began.elapsed().as_nanos() as f64 / addresses.len() as f64);
    }
    println!(
        "{what:<22} {best:6.1} ns a look-up, {chained:6.1} one after the other; {} KiB, {} nodes, built in {:.1} ms; {:.0}% denied",
        table.bytes() / 1_024,
        table.parts().nodes.len(),
        built.as_secs_f64() * 1e3,
        denied as f64 * 100.0 / addresses.len() as f64
    );
}

fn main() {
    let mut random = Random(7);
    let mut addresses_v4: Vec<u32> = (0..1 << 20).map(|_| random.next() as u32).collect();
    let random_v4: Vec<Rule<u32>> = (0..100_000)
        .map(|_| Rule {
            network: random.next() as u32,
            length: 8 + (random.next() % 25) as u8,
            deny: !random.next().is_multiple_of(4),
        })
        .collect();
    measure("ipv4, random", &random_v4, &addresses_v4);
    let hosts: Vec<Rule<u32>> =
        (0..100_000).map(|_| Rule { network: random.next() as u32, length: 32, deny: true }).collect();
    measure("ipv4, hosts", &hosts, &addresses_v4);
    let mut near = 0x0100_0000u32;
    let routes: Vec<Rule<u32>> = (0..100_000)
        .map(|_| {
            let draw = random.next() % 100;
            near =
                if draw < 4 { random.next() as u32 } else { near.wrapping_add(256 * (1 + draw as u32 % 8)) };
            let length = if draw < 60 { 24 } else { 16 + (random.next() % 8) as u8 };
            Rule { network: near, length, deny: random.next().is_multiple_of(2) }
        })
        .collect();
    measure("ipv4, like routes", &routes, &addresses_v4);
    for (at, address) in addresses_v4.iter_mut().enumerate() {
        *address = routes[(at * 7_919) % routes.len()].network ^ random.next() as u32 & 0xff;
    }
    measure("ipv4, routes, hits", &routes, &addresses_v4);

    let tops: Vec<u128> = (0..3_000)
        .map(|_| {
            (0x2001 + u128::from(random.next() % 0xc00)) << 112 | u128::from(random.next() % 0x1_0000) << 96
        })
        .collect();
    let draw = |random: &mut Random, bits: u32| {
        let top = tops[random.next() as usize % tops.len()];
        let rest = u128::from(random.next()) << 32 | u128::from(random.next()) << 64 >> 32;
        top | rest & (u128::MAX >> 32) & !(u128::MAX.checked_shr(bits).unwrap_or(0))
    };
    let like: Vec<Rule<u128>> = (0..100_000)
        .map(|_| {
            let length = [32, 36, 40, 44, 48, 48, 48, 56, 64][random.next() as usize % 9];
            Rule {
                network: draw(&mut random, length),
                length: length as u8,
                deny: random.next().is_multiple_of(2),
            }
        })
        .collect();
    let mut addresses_v6: Vec<u128> = (0..1 << 20).map(|_| draw(&mut random, 128)).collect();
    measure("ipv6, like routes", &like, &addresses_v6);
    for (at, address) in addresses_v6.iter_mut().enumerate() {
        *address = like[(at * 7_919) % like.len()].network | u128::from(random.next());
    }
    measure("ipv6, routes, hits", &like, &addresses_v6);
    let half: Vec<Rule<u64>> = like
        .iter()
        .map(|rule| Rule { network: (rule.network >> 64) as u64, length: rule.length, deny: rule.deny })
        .collect();
    let addresses: Vec<u64> = addresses_v6.iter().map(|address| (address >> 64) as u64).collect();
    measure("ipv6, routes, halves", &half, &addresses);
    let hosts: Vec<Rule<u128>> =
        (0..100_000).map(|_| Rule { network: draw(&mut random, 128), length: 128, deny: true }).collect();
    measure("ipv6, hosts", &hosts, &addresses_v6);
}
