//! What does a prefix list of 100,000 prefixes cost a new flow? Look-ups in tables as the workers have them.
//!
//! A figure is of independent look-ups, as those of a burst's SYNs are: the next begins while the misses of the one before are
//! under way. `cold` pushes the table out of the caches before each burst of 32.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use anyhow::{Result, ensure};
use weir_access::{List, Prefix};

use crate::bench::result::Figure;
use crate::bench::{Bench, Context};
use crate::random::Random;

/// Prefixes of a list.
const PREFIXES: usize = 100_000;
/// Sources that are looked up; more than caches hold.
const SOURCES: usize = 1 << 20;
/// Look-ups of a cold burst.
const BURST: usize = 32;
/// Bytes that push everything else out of the caches that a core has for itself.
const COLD_BYTES: usize = 16 << 20;

/// What prefixes and sources are like.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Of all lengths, anywhere; sources too.
    Random,
    /// As in a routing table: most of /24 or /48, in clusters; sources anywhere in what is in use.
    Routes,
    /// The same; every source is in a prefix.
    RoutesHit,
    /// Single hosts.
    Hosts,
}

pub(super) fn run(bench: &mut Bench<'_>) {
    for (family, is_v4) in [("ipv4", true), ("ipv6", false)] {
        for (name, kind) in [
            ("random", Kind::Random),
            ("routes", Kind::Routes),
            ("routes-hit", Kind::RoutesHit),
            ("hosts", Kind::Hosts),
        ] {
            let case = format!("acl-100k/{family}/{name}");
            bench.case(&case, |context| measure(context, &case, is_v4, kind));
        }
    }
}

fn measure(context: &Context, case: &str, is_v4: bool, kind: Kind) -> Result<Vec<Figure>> {
    let mut random = Random::new(context.seed, "acl-100k");
    let prefixes = prefixes(&mut random, is_v4, kind);
    let start = Instant::now();
    let list = List::build(&prefixes, false)?;
    let built = start.elapsed();
    let sources = sources(&mut random, &prefixes, is_v4, kind);
    check(&list, &prefixes, &sources)?;
    let mut warm = Vec::new();
    for _ in 0..context.windows {
        let start = Instant::now();
        let denied = sources.iter().filter(|source| list.denies(**source)).count();
        black_box(denied);
        warm.push(start.elapsed().as_secs_f64() * 1e9 / sources.len() as f64);
    }
    let denied = sources.iter().filter(|source| list.denies(**source)).count();
    let cold: Vec<f64> = (0..context.windows).map(|_| cold(&list, &sources)).collect();
    println!(
        "      {} KiB, built in {:.1} ms; {:.0} % of the sources denied",
        list.bytes() >> 10,
        built.as_secs_f64() * 1e3,
        100.0 * denied as f64 / sources.len() as f64
    );
    let figure = |case: String, metric, unit, values, setup: &str| Figure {
        case,
        implementation: "weir",
        metric,
        unit,
        values,
        setup: setup.to_owned(),
    };
    let setup = "independent look-ups of 2^20 sources in one table; no packets";
    Ok(vec![
        figure(case.to_owned(), "ns_per_lookup", "ns", warm, setup),
        figure(
            case.to_owned(),
            "cold_ns_per_lookup",
            "ns",
            cold,
            "as above, in bursts of 32, 16 MiB of other memory read before each",
        ),
        figure(
            case.to_owned(),
            "bytes_per_prefix",
            "B",
            vec![list.bytes() as f64 / PREFIXES as f64],
            "the table, both families",
        ),
        figure(
            case.to_owned(),
            "build_ms",
            "ms",
            vec![built.as_secs_f64() * 1e3],
            "from prefixes to a table, once",
        ),
    ])
}

/// Some answers against what the longest prefix says.
fn check(list: &List, prefixes: &[(Prefix, bool)], sources: &[u128]) -> Result<()> {
    for source in sources.iter().take(50) {
        let address = Ipv6Addr::from_bits(*source).to_canonical();
        let longest = prefixes
            .iter()
            .filter(|(prefix, _)| prefix.contains(address))
            .max_by_key(|(prefix, _)| prefix.length);
        // of two for one prefix the later decides
        let expected = longest.is_some_and(|(longest, _)| {
            prefixes.iter().rev().find(|(prefix, _)| prefix == longest).is_some_and(|(_, deny)| *deny)
        });
        ensure!(list.denies(*source) == expected, "{address}: the table is wrong");
    }
    Ok(())
}

fn cold(list: &List, sources: &[u128]) -> f64 {
    let other = vec![1u8; COLD_BYTES];
    let mut time = 0.0;
    let bursts = 64;
    for burst in sources.chunks(BURST).take(bursts) {
        let sum: u64 = other.iter().step_by(64).map(|byte| u64::from(*byte)).sum();
        black_box(sum);
        let start = Instant::now();
        let denied = burst.iter().filter(|source| list.denies(**source)).count();
        black_box(denied);
        time += start.elapsed().as_secs_f64();
    }
    time * 1e9 / (bursts * BURST) as f64
}

fn number(random: &mut Random, below: u64) -> u64 {
    random.next() % below.max(1)
}

fn wide(random: &mut Random) -> u128 {
    u128::from(random.next()) << 64 | u128::from(random.next())
}

/// An IPv6 address of one of 3,000 networks of 32 bits, as registries give them out.
fn of_registry(random: &mut Random) -> u128 {
    let network = number(random, 3_000).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let top = (0x2001 + (network >> 8) % 0xc00) << 16 | network >> 40 & 0xffff;
    u128::from(top) << 96 | wide(random) >> 32
}

fn prefixes(random: &mut Random, is_v4: bool, kind: Kind) -> Vec<(Prefix, bool)> {
    let mut near = 0x0100_0000u32;
    let one = |random: &mut Random, near: &mut u32| {
        let deny = number(random, 4) != 0;
        let (address, length): (IpAddr, u64) = match (is_v4, kind) {
            (true, Kind::Random) => {
                (Ipv4Addr::from_bits(random.next() as u32).into(), 8 + number(random, 25))
            }
            (true, Kind::Hosts) => (Ipv4Addr::from_bits(random.next() as u32).into(), 32),
            (true, Kind::Routes | Kind::RoutesHit) => {
                let draw = number(random, 100) as u32;
                *near = if draw < 4 { random.next() as u32 } else { near.wrapping_add(256 * (1 + draw % 8)) };
                let length = if draw < 60 { 24 } else { 16 + number(random, 8) };
                (Ipv4Addr::from_bits(*near).into(), length)
            }
            (false, Kind::Random) => {
                let address = wide(random) >> 3 | 0x2000 << 112;
                (Ipv6Addr::from_bits(address).into(), 16 + number(random, 49))
            }
            (false, Kind::Hosts) => (Ipv6Addr::from_bits(of_registry(random)).into(), 128),
            (false, Kind::Routes | Kind::RoutesHit) => {
                let lengths = [32, 36, 40, 44, 48, 48, 48, 56, 64];
                let length = lengths.get(number(random, 9) as usize).copied().unwrap_or(48);
                (Ipv6Addr::from_bits(of_registry(random)).into(), length)
            }
        };
        (Prefix::new(address, length as u8), deny)
    };
    (0..PREFIXES).map(|_| one(random, &mut near)).collect()
}

fn sources(random: &mut Random, prefixes: &[(Prefix, bool)], is_v4: bool, kind: Kind) -> Vec<u128> {
    let mapped = |address: u32| 0xffff_0000_0000 | u128::from(address);
    let one = |at: usize, random: &mut Random| {
        if kind == Kind::RoutesHit {
            let prefix =
                prefixes.get(at.wrapping_mul(7_919) % PREFIXES.max(1)).map(|(prefix, _)| prefix.network);
            return match prefix {
                Some(IpAddr::V4(network)) => mapped(network.to_bits() | random.next() as u32 & 0xff),
                Some(IpAddr::V6(network)) => network.to_bits() | u128::from(random.next()),
                None => 0,
            };
        }
        match (is_v4, kind) {
            (true, _) => mapped(random.next() as u32),
            (false, Kind::Random) => wide(random) >> 3 | 0x2000 << 112,
            (false, _) => of_registry(random),
        }
    };
    (0..SOURCES).map(|at| one(at, random)).collect()
}
