//! `fuzz`: the fuzz targets of the sans-IO crates, run without nightly: seeds built here, inputs kept in
//! `testbed/corpus/TARGET/`, and mutations of both from a seed that is printed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use weir_abi::counters::{GroupSpec, Layout};
use weir_abi::http::HttpPoolRecord;
use weir_abi::proxy::{AcceptProxy, ProxyRecord, TcpRecord};
use weir_abi::record::{
    Address, BackendRecord, ListenerRecord, Mode, NO_INDEX, NodeRecord, OnDown, PoolRecord, PortRecord,
    VipRecord,
};
use weir_abi::text::Text;
use weir_abi::{ListenersTable, NodeTable, PoolTable, Root};
use zerocopy::FromZeros as _;

use crate::console::grouped;
use crate::interrupt;
use crate::random::Random;
use crate::traffic::frames::{Ip, Link, Tcp, arp_reply, flag, neighbour_advertisement};

/// An input that takes longer than this is a finding.
const SLOWEST: Duration = Duration::from_secs(2);
/// A table file's header, which the target puts on by itself.
const TABLE_HEADER: usize = 32;

/// One target.
pub(crate) struct Target {
    /// Its name, also of its corpus directory.
    pub(crate) name: &'static str,
    body: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub(crate) static TARGETS: [Target; 13] = [
    Target { name: "abi-snapshot", body: weir_abi::fuzz::snapshot, seeds: snapshot_seeds },
    Target { name: "abi-counters", body: weir_abi::fuzz::counters, seeds: counters_seeds },
    Target { name: "abi-events", body: weir_abi::events::fuzz, seeds: weir_abi::events::seeds },
    Target { name: "access-list", body: weir_access::file::fuzz, seeds: weir_access::file::seeds },
    Target {
        name: "control-requests",
        body: weir_ctlplane::fuzz::requests,
        seeds: weir_ctlplane::fuzz::request_seeds,
    },
    Target { name: "net-parse", body: weir_net::fuzz::fuzz_parse, seeds: frame_seeds },
    Target { name: "l4-engine", body: weir_l4::fuzz::l4, seeds: conversation_seeds },
    Target { name: "tcp-segments", body: weir_tcp::fuzz::segments, seeds: weir_tcp::fuzz::seeds },
    Target { name: "l7-proxy-protocol", body: weir_l7::fuzz::fuzz_proxy_protocol, seeds: header_seeds },
    Target { name: "http-request", body: weir_http::fuzz::request, seeds: weir_http::fuzz::request_seeds },
    Target { name: "http-response", body: weir_http::fuzz::response, seeds: weir_http::fuzz::response_seeds },
    Target { name: "http-chunked", body: weir_http::fuzz::chunked, seeds: weir_http::fuzz::chunked_seeds },
    Target {
        name: "http-routes",
        body: weir_http::routes::fuzz::fuzz_routes,
        seeds: weir_http::routes::fuzz::seeds,
    },
];

/// What the user may choose.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// Seconds per target.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seed of the mutations; the clock's when not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Only targets whose name contains this.
    #[arg(long)]
    only: Option<String>,
}

/// The command.
pub(crate) fn run(choice: &Choice) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = choice.seed.unwrap_or_else(|| clock.map_or(1, |now| now.as_secs()));
    println!("  seed {seed}");
    let wanted =
        |target: &&Target| choice.only.as_ref().is_none_or(|part| target.name.contains(part.as_str()));
    for target in TARGETS.iter().filter(wanted) {
        let count = one(target, Duration::from_secs(choice.seconds), seed)?;
        println!("  {:<17} {} inputs, no finding", target.name, grouped(count));
    }
    Ok(())
}

/// Runs one target for a while; an error that names the kept input when it panics or takes too long.
pub(crate) fn one(target: &Target, length: Duration, seed: u64) -> Result<u64> {
    // the default hook would print a page per finding
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|info| {
        *MESSAGE.lock().unwrap_or_else(PoisonError::into_inner) = info.to_string();
    }));
    let outcome = hammer(target, length, seed);
    std::panic::set_hook(before);
    outcome
}

/// What the last panic said.
static MESSAGE: Mutex<String> = Mutex::new(String::new());

fn hammer(target: &Target, length: Duration, seed: u64) -> Result<u64> {
    let mut inputs = (target.seeds)();
    inputs.extend(kept(target)?);
    let mut random = Random::new(seed, target.name);
    let end = Instant::now() + length;
    let mut count = 0;
    // as they are first, then broken ones until the time is up
    for input in &inputs {
        try_one(target, input, seed)?;
        count += 1;
    }
    while Instant::now() < end {
        interrupt::check()?;
        for _ in 0..64 {
            let mut input = random.pick(&inputs).clone();
            if random.below(8) == 0 {
                let other = random.pick(&inputs);
                let (cut, from) = (random.below(input.len() + 1), random.below(other.len() + 1));
                input.truncate(cut);
                input.extend_from_slice(&other[from..]);
            }
            random.mutate(&mut input, 0);
            try_one(target, &input, seed)?;
            count += 1;
        }
    }
    Ok(count)
}

fn try_one(target: &Target, input: &[u8], seed: u64) -> Result<()> {
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.body)(input)));
    let took = start.elapsed();
    let finding = match outcome {
        Err(_) => MESSAGE.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        Ok(()) if took > SLOWEST => format!("took {took:?}"),
        Ok(()) => return Ok(()),
    };
    let directory = corpus(target);
    std::fs::create_dir_all(&directory)?;
    let sum = input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let path = directory.join(format!("finding-{sum:016x}"));
    std::fs::write(&path, input).with_context(|| format!("could not keep {}", path.display()))?;
    bail!("{}: {finding}\nthe input is kept as {} (seed {seed})", target.name, path.display())
}

fn corpus(target: &Target) -> PathBuf {
    crate::setup::repository().join("testbed/corpus").join(target.name)
}

fn kept(target: &Target) -> Result<Vec<Vec<u8>>> {
    let Ok(entries) = std::fs::read_dir(corpus(target)) else { return Ok(Vec::new()) };
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).with_context(|| format!("could not read {}", path.display())))
        .collect()
}

/// A root, and the contents of one table of each kind.
fn snapshot_seeds() -> Vec<Vec<u8>> {
    let mut node = NodeRecord::new_zeroed();
    (node.worker_count, node.flows_ipv4, node.flows_ipv6) = (1, 1_024, 1_024);
    (node.backend_capacity, node.snat_port_first, node.snat_port_last) = (64, 1_024, 65_535);
    (node.tcp_connections, node.tcp_memory_bytes, node.http_memory_bytes) = (1_024, 1 << 20, 1 << 20);
    node.timeouts_ms = [0, 0, 0, 0, 0, 0, 60_000, 60_000, 60_000, 200];
    let mut port = PortRecord::new_zeroed();
    port.mtu = 1_500;
    port.device = Text::new("null:");
    let node = NodeTable { node, ports: vec![port; 2], addresses: vec![], routes: vec![] }.encode();
    let mut listener = ListenerRecord::new_zeroed();
    (listener.port_first, listener.port_last, listener.protocol, listener.gue_port) = (80, 89, 6, 6_080);
    listener.proxy = NO_INDEX;
    let mut proxied =
        ListenerRecord { proxy: 0, mode: Mode::Proxy as u8, on_down: OnDown::Reset as u8, ..listener };
    (proxied.port_first, proxied.port_last) = (90, 90);
    let mut vip = VipRecord::new_zeroed();
    vip.address = Address::host([198, 18, 100, 1].into());
    let proxy = ProxyRecord { accept_proxy: AcceptProxy::Any as u8, trusted: 1, ..ProxyRecord::DEFAULT };
    let listeners = ListenersTable {
        vips: vec![vip; 2],
        listeners: vec![listener, proxied],
        proxies: vec![proxy],
        trusted: vec![Address::prefix([198, 18, 0, 0].into(), 24)],
    }
    .encode();
    let mut backend = BackendRecord::new_zeroed();
    backend.weight = 1;
    backend.address = vip.address;
    let mut pool = PoolRecord::new_zeroed();
    pool.upstream = TcpRecord::POOL;
    pool.http = HttpPoolRecord::DEFAULT;
    let pool = PoolTable { pool, backends: vec![backend; 2], slots: vec![0, 1, u16::MAX] }.encode();
    let tables = vec![node.reference, listeners.reference, pool.reference];
    let mut seeds = vec![Root { generation: 7, created_unix_ms: 0, tables }.encode()];
    for image in [node, listeners, pool] {
        seeds.push(image.bytes[TABLE_HEADER..].to_vec());
        seeds.push(image.bytes);
    }
    seeds
}

fn counters_seeds() -> Vec<Vec<u8>> {
    let layout = Layout::new(
        3,
        vec![
            GroupSpec { name: "worker", rows: 1, columns: vec!["rx_packets", "tx_packets"] },
            GroupSpec {
                name: "backend",
                rows: 4,
                columns: vec!["a", "b", "c", "d", "e", "f", "g", "h", "i"],
            },
        ],
    );
    let words: Vec<AtomicU64> = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
    layout.describe(&words, 1);
    vec![
        words.iter().flat_map(|word| word.load(std::sync::atomic::Ordering::Relaxed).to_ne_bytes()).collect(),
    ]
}

const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 1];
const WEIR: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The two ends of the l4 target's services, by family: client, VIP, backend.
fn ends(family: usize) -> [std::net::IpAddr; 3] {
    const TEXTS: [[&str; 3]; 2] =
        [["198.18.0.9", "198.18.0.100", "198.18.1.1"], ["2001:db8::9", "2001:db8::100", "2001:db8:1::1"]];
    TEXTS[family].map(|text| text.parse().unwrap_or(std::net::IpAddr::from([198, 18, 0, 9])))
}

/// Frames of every kind that the parser tells apart.
pub(crate) fn frame_seeds() -> Vec<Vec<u8>> {
    let link = Link::new(CLIENT, WEIR);
    let tagged = Link { vlan: Some(100), ..link };
    let mut seeds = vec![arp_reply(&link, [198, 18, 0, 9].into(), [198, 18, 0, 1].into())];
    if let ([std::net::IpAddr::V6(from), std::net::IpAddr::V6(to), _], true) = (ends(1), true) {
        seeds.push(neighbour_advertisement(&link, from, to));
    }
    for family in 0..2 {
        let [client, vip, backend] = ends(family);
        let (out, back) = (Ip::new(client, vip), Ip::new(vip, client));
        let echo = if family == 0 { 8 } else { 128 };
        let (unreachable, too_big) = if family == 0 { ((3, 3), (3, 4)) } else { ((1, 4), (2, 0)) };
        let inner = back.tcp(&Tcp::new((1_003, 40_000), flag::ACK).data(&[7; 64]));
        let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        for packet in [
            out.tcp(&Tcp::new((40_000, 1_003), flag::SYN).options(&options)),
            out.tcp(&Tcp::new((40_000, 1_003), flag::ACK | flag::PSH).data(b"GET / HTTP/1.1\r\n\r\n")),
            out.tcp(&Tcp::new((40_000, 1_000), flag::FIN | flag::ACK)),
            Ip::new(backend, client).tcp(&Tcp::new((8_080, 40_000), flag::RST)),
            out.udp((40_000, 1_001), b"question"),
            out.udp((40_000, 1_002), b""),
            out.icmp(echo, 0, [0, 1, 0, 1], b"ping"),
            out.icmp(unreachable.0, unreachable.1, [0; 4], &inner),
            out.icmp(too_big.0, too_big.1, [0, 0, 5, 0], &inner[..48]),
            Ip { fragment: Some((0, true)), id: 77, ..out }
                .packet(17, &out.udp_datagram((40_000, 1_003), &[1; 56])),
            Ip { fragment: Some((64, false)), id: 77, ..out }.packet(17, &[2; 40]),
            out.ttl(1).udp((40_000, 1_003), b"last hop"),
        ] {
            seeds.push(link.ip(&packet));
            seeds.push(tagged.ip(&packet));
        }
    }
    // a chain of extension headers: hop-by-hop, destination options, then UDP
    let [client, vip, _] = ends(1);
    let ip = Ip::new(client, vip);
    let mut chain = vec![60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0];
    chain.extend(ip.udp_datagram((40_000, 1_003), b"chained"));
    seeds.push(link.ip(&ip.packet(0, &chain)));
    seeds
}

/// Whole conversations: each frame behind two bytes of length.
fn conversation_seeds() -> Vec<Vec<u8>> {
    let frames = frame_seeds();
    let pack = |frames: &[Vec<u8>]| {
        frames.iter().flat_map(|frame| [&(frame.len() as u16).to_be_bytes()[..], frame].concat()).collect()
    };
    let mut seeds: Vec<Vec<u8>> = frames.chunks(6).map(pack).collect();
    seeds.push(pack(&frames));
    seeds
}

/// PROXY headers, alone and before data, each behind the lengths of the pieces that it comes in.
fn header_seeds() -> Vec<Vec<u8>> {
    const CUTS: [[u8; 8]; 3] = [[1; 8], [255; 8], [3, 9, 1, 28, 107, 2, 64, 16]];
    let headers = weir_l7::fuzz::seeds();
    let behind = |cuts: [u8; 8]| headers.iter().map(move |header| [&cuts[..], header, b"hello"].concat());
    CUTS.into_iter().flat_map(behind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_takes_its_seeds() {
        for target in &TARGETS {
            assert!(one(target, Duration::from_millis(200), 1).unwrap() > 0, "{}", target.name);
        }
    }

    #[test]
    fn header_seeds_are_headers() {
        use weir_l7::proxy_protocol::{Expects, Progress, parse};
        for seed in header_seeds() {
            let header = parse(&seed[8..], Expects::Any);
            assert!(matches!(header, Ok(Progress::Done(_))), "{header:?} of {:02x?}", &seed[8..]);
        }
    }

    #[test]
    fn most_frame_seeds_are_good_frames() {
        let seeds = frame_seeds();
        let options = weir_net::parse::ParseOptions::default();
        let good = seeds.iter().filter(|frame| weir_net::parse::parse(frame, &options).is_ok()).count();
        assert_eq!(good, seeds.len());
    }
}
