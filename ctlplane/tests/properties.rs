//! What holds for any configuration and any order of changes.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use support::{FakeDataplane, HEAD, Instance};
use weir_abi::proxy::{AcceptProxy, ProxyRecord, SendProxy, TcpRecord};
use weir_abi::record::{AdminState, Algorithm, Mode, NO_POSITION, OnDown};
use weir_ctlplane::engine::{BackendChange, Engine};
use weir_ctlplane::state::Admin;
use weir_ctlplane::units::{format_duration, parse_duration};

/// Pools by number: backends by number with their weight. Pool 0 is the one that the listener names.
type Pools = BTreeMap<u8, BTreeMap<u8, u16>>;

fn config(pools: &Pools) -> String {
    let mut text = HEAD.to_owned();
    for (number, backends) in pools {
        let name = if *number == 0 { "app".to_owned() } else { format!("p{number}") };
        let _ = write!(text, "[[pool]]\nname = \"{name}\"\nslots = 251\n");
        for (backend, weight) in backends {
            let _ = write!(
                text,
                "[[pool.backend]]\nname = \"b{backend}\"\naddress = \"198.18.{}.{}\"\nweight = {weight}\n",
                number + 1,
                backend + 1
            );
        }
    }
    text
}

fn pools() -> impl Strategy<Value = Pools> {
    let backends = prop::collection::btree_map(0u8..8, 0u16..300, 0..6);
    prop::collection::btree_map(1u8..4, backends.clone(), 0..3)
        .prop_flat_map(move |others| (Just(others), backends.clone()))
        .prop_map(|(mut pools, first)| {
            pools.insert(0, first);
            pools
        })
}

/// What the dataplane would do with new flows: per pool and slot, the backend's address.
fn behaviour(instance: &Instance, generation: u64) -> BTreeMap<String, Vec<String>> {
    let tables = instance.read(generation);
    tables
        .pools
        .iter()
        .filter(|pool| {
            pool.backends.iter().any(|b| b.admin != AdminState::Removed as u8) || pool.slots.len() > 1
        })
        .map(|pool| {
            let slot = |slot: &u16| match *slot {
                NO_POSITION => "none".to_owned(),
                position => pool.backends[usize::from(position)].address.ip().unwrap().to_string(),
            };
            (pool.pool.name.to_string(), pool.slots.iter().map(slot).collect())
        })
        .collect()
}

/// Index of each backend by pool, name and address; all different.
fn indices(instance: &Instance, generation: u64) -> BTreeMap<(String, String, String), u32> {
    let tables = instance.read(generation);
    let mut all = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for pool in &tables.pools {
        for backend in &pool.backends {
            let address = backend.address.ip().unwrap().to_string();
            assert!(seen.insert(backend.index), "index {} twice", backend.index);
            all.insert((pool.pool.name.to_string(), backend.name.to_string(), address), backend.index);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_way_to_a_configuration_ends_in_the_same_tables(steps in prop::collection::vec(pools(), 1..6)) {
        let instance = Instance::new(&config(&steps[0]));
        let mut engine = instance.start();
        let mut dataplane = FakeDataplane::start(&instance.segments(), 2);
        let mut now = Instant::now();
        for (step, pools) in steps.iter().enumerate().skip(1) {
            engine.apply(&config(pools), "f").unwrap();
            if step % 2 == 0 {
                dataplane.ack(dataplane.published());
                now += Duration::from_secs(1);
                engine.tick(now).unwrap();
            }
            if step == 3 {
                drop(engine);
                engine = instance.start();
            }
        }
        let last = steps.last().unwrap();
        let fresh = Instance::new(&config(last));
        let fresh_engine = fresh.start();
        prop_assert_eq!(
            behaviour(&instance, engine.generation()),
            behaviour(&fresh, fresh_engine.generation())
        );
        // and once no flow is left, nothing of the past remains but the numbers
        for _ in 0..12 {
            dataplane.ack(dataplane.published());
            now += Duration::from_secs(1);
            engine.tick(now).unwrap();
        }
        let (left, right) = (indices(&instance, engine.generation()), indices(&fresh, 1));
        prop_assert_eq!(left.keys().collect::<Vec<_>>(), right.keys().collect::<Vec<_>>());
        let known: usize = engine.state().indices.pools.values().map(|pool| pool.backends.len()).sum();
        prop_assert_eq!(known, right.len());
    }

    #[test]
    fn an_index_means_one_backend_while_flows_may_hold_it(steps in prop::collection::vec(pools(), 2..8)) {
        let instance = Instance::new(&config(&steps[0]));
        let mut engine = instance.start();
        let mut owners: BTreeMap<u32, (String, String, String)> = BTreeMap::new();
        for pools in &steps {
            engine.apply(&config(pools), "f").unwrap();
            for (backend, index) in indices(&instance, engine.generation()) {
                let owner = owners.entry(index).or_insert_with(|| backend.clone());
                prop_assert_eq!(&*owner, &backend, "no worker acked anything: nothing may be reused");
            }
            drop(engine);
            engine = instance.start();
        }
    }

    #[test]
    fn runtime_changes_equal_the_same_values_in_the_file(
        changes in prop::collection::vec((0u8..4, 0u16..200, 0u8..4), 0..12)
    ) {
        let start: Pools = [(0, (0..4).map(|b| (b, 100)).collect())].into();
        let instance = Instance::new(&config(&start));
        let mut engine = instance.start();
        let mut expected: BTreeMap<u8, (u16, Admin)> = (0..4).map(|b| (b, (100, Admin::Ready))).collect();
        for (backend, weight, what) in changes {
            let (change, entry) = (
                match what {
                    0 => BackendChange::State(Admin::Drain),
                    1 => BackendChange::State(Admin::Ready),
                    2 => BackendChange::State(Admin::Maint),
                    _ => BackendChange::Weight(weight),
                },
                expected.get_mut(&backend).unwrap(),
            );
            match change {
                BackendChange::Weight(weight) => entry.0 = weight,
                BackendChange::State(admin) => entry.1 = admin,
            }
            engine.set_backend("app", &format!("b{backend}"), &[change], true).unwrap();
        }
        let mut text = HEAD.to_owned();
        text.push_str("[[pool]]\nname = \"app\"\nslots = 251\n");
        for (backend, (weight, admin)) in &expected {
            let _ = write!(
                text,
                "[[pool.backend]]\nname = \"b{backend}\"\naddress = \"198.18.1.{}\"\nweight = {weight}\nstate = \"{}\"\n",
                backend + 1,
                admin.name()
            );
        }
        let fresh = Instance::new(&text);
        let fresh_engine = fresh.start();
        prop_assert_eq!(
            instance.read(engine.generation()).root.tables,
            fresh.read(fresh_engine.generation()).root.tables
        );
    }

    #[test]
    fn what_the_file_says_is_what_the_dataplane_reads(random in listener_config()) {
        let instance = Instance::new(&random.text);
        let engine = instance.start();
        let tables = instance.read(engine.generation());
        let node = &tables.node.node;
        prop_assert_eq!((node.flows_ipv4, node.flows_ipv6), random.flows);
        prop_assert_eq!(node.timeouts_ms[3], random.udp_ms);
        prop_assert_eq!((tables.node.ports[0].mtu, tables.node.ports[0].vlan), (random.mtu, random.vlan));
        prop_assert_eq!((node.snat_port_first, node.snat_port_last), random.snat);
        prop_assert_eq!(node.hash_key, random.key);
        let listener = &tables.listeners.listeners[0];
        prop_assert_eq!((listener.port_first, listener.port_last), random.ports);
        prop_assert_eq!((listener.mode, listener.protocol), (random.mode as u8, random.protocol));
        let default = match random.mode {
            Mode::Nat | Mode::Fullnat if random.protocol == 6 => OnDown::Reset,
            _ => OnDown::Reselect,
        };
        prop_assert_eq!(listener.on_down, random.on_down.unwrap_or(default) as u8);
        let vip = &tables.listeners.vips[listener.vip as usize];
        prop_assert_eq!(vip.address.ip().unwrap().to_string(), "198.18.100.1");
        prop_assert_eq!(tables.pools[0].pool.index, listener.pool);
        prop_assert_eq!(tables.pools[0].backends[0].weight, u32::from(random.weight));
        prop_assert_eq!(tables.pools[0].backends[0].address.port, 0);
    }

    #[test]
    fn what_the_file_says_of_a_proxy_is_what_the_dataplane_reads(random in proxy_config()) {
        let instance = Instance::new(&random.text);
        let engine = instance.start();
        let tables = instance.read(engine.generation());
        let node = &tables.node.node;
        prop_assert_eq!((node.tcp_connections, node.tcp_memory_bytes), random.engine);
        prop_assert_eq!(&node.timeouts_ms[6..], &random.times_ms[..]);
        let listener = &tables.listeners.listeners[0];
        prop_assert_eq!((listener.mode, listener.protocol), (Mode::Proxy as u8, 6));
        prop_assert_eq!(listener.on_down, OnDown::Reset as u8);
        let proxy = tables.listeners.proxies[listener.proxy as usize];
        // the first listener's prefixes come first, those of the other after them
        prop_assert_eq!(proxy, ProxyRecord { trusted_first: 0, ..random.proxy });
        let trusted: Vec<String> = tables.listeners.trusted.iter()
            .map(|prefix| format!("{}/{}", prefix.ip().unwrap(), prefix.prefix_length)).collect();
        prop_assert_eq!(&trusted[..random.trusted.len()], &random.trusted[..]);
        let other = tables.listeners.proxies[tables.listeners.listeners[1].proxy as usize];
        prop_assert_eq!((other.trusted_first as usize, other.trusted), (random.trusted.len(), 1));
        prop_assert_eq!(trusted.len(), random.trusted.len() + 1);
        let pool = &tables.pools[0];
        prop_assert_eq!((pool.pool.algorithm, pool.pool.send_proxy), (random.algorithm as u8, random.send_proxy));
        prop_assert_eq!(pool.pool.upstream, random.upstream);
        prop_assert_eq!(pool.backends[0].max_connections, random.backend_limit);
        prop_assert!(pool.slots.contains(&0) && pool.slots.contains(&1));
    }

    #[test]
    fn durations_round_trip(milliseconds in 0u64..100_000_000) {
        let duration = Duration::from_millis(milliseconds);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
}

#[derive(Debug)]
struct Random {
    text: String,
    flows: (u32, u32),
    udp_ms: u32,
    mtu: u16,
    vlan: u16,
    snat: (u16, u16),
    key: [u8; 16],
    ports: (u16, u16),
    mode: Mode,
    protocol: u8,
    on_down: Option<OnDown>,
    weight: u16,
}

fn listener_config() -> impl Strategy<Value = Random> {
    let numbers = ((1u32..1 << 24, 1u32..1 << 24), 100u32..86_400_000, 1_280u16..9_216, 0u16..4_095);
    let ranges = ((1u16..=65_535, 1u16..=65_535), (1u16..=65_535, 1u16..=65_535), any::<[u8; 16]>());
    let words = (0u8..5, any::<bool>(), prop::option::of(0u8..3), any::<u16>());
    (numbers, ranges, words).prop_map(|((flows, udp_ms, mtu, vlan), (snat, ports, key), (mode, tcp, on_down, weight))| {
        let order = |(a, b): (u16, u16)| (a.min(b), a.max(b));
        let (snat, ports) = (order(snat), order(ports));
        let mode = Mode::from_u8(mode).unwrap();
        let on_down = on_down.and_then(OnDown::from_u8);
        let protocol = if tcp { 6 } else { 17 };
        let hex: String = key.iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let vlan_line = if vlan == 0 { String::new() } else { format!("vlan = {vlan}\n") };
        let on_down_line = match on_down {
            None => "",
            Some(OnDown::Reselect) => "on_down = \"reselect\"\n",
            Some(OnDown::Reset) => "on_down = \"reset\"\n",
            Some(OnDown::Keep) => "on_down = \"keep\"\n",
        };
        let text = format!(
            "[dataplane]\nworkers = 1\nidle = \"adaptive\"\nflow_table = {{ ipv4 = {}, ipv6 = {} }}\nhash_key = \"{hex}\"\n\
             snat_ports = \"{}-{}\"\n[timeouts]\nudp = \"{udp_ms}ms\"\n[[port]]\nname = \"wan\"\ndevice = \"null:\"\n\
             addresses = [\"198.18.0.254/24\"]\nmtu = {mtu}\n{vlan_line}[[vip]]\nname = \"v\"\naddress = \"198.18.100.1\"\n\
             [[listener]]\nname = \"l\"\nvip = \"v\"\nport = \"{}-{}\"\nprotocol = \"{}\"\nmode = \"{}\"\npool = \"p\"\n\
             {on_down_line}[[pool]]\nname = \"p\"\nslots = 251\n[[pool.backend]]\nname = \"b\"\naddress = \"198.18.0.1\"\n\
             weight = {weight}\n",
            flows.0, flows.1, snat.0, snat.1, ports.0, ports.1, if tcp { "tcp" } else { "udp" }, mode.name()
        );
        Random { text, flows, udp_ms, mtu, vlan, snat, key, ports, mode, protocol, on_down, weight }
    })
}

#[derive(Debug)]
struct RandomProxy {
    text: String,
    engine: (u32, u64),
    times_ms: [u32; 4],
    proxy: ProxyRecord,
    trusted: Vec<String>,
    algorithm: Algorithm,
    send_proxy: u8,
    upstream: TcpRecord,
    backend_limit: u32,
}

/// Settings of one side, as a record and as the inside of an inline table. A default is left out at times.
fn tcp_settings(of_listener: bool) -> impl Strategy<Value = (TcpRecord, String)> {
    let numbers = (4u32..=1 << 20, 1u32..=1 << 20, 536u16..=1_440, 1u16..=100, 0u8..3);
    let alive = prop::option::of((100u32..3_600_000, 100u32..=86_400_000, 1u8..=100));
    (numbers, alive, any::<[bool; 6]>()).prop_map(
        move |((kib, backlog, mss, window, cookies), alive, flags)| {
            let [nodelay, fast_open, slow_start, ecn, newreno, sparse] = flags;
            let base = if of_listener { TcpRecord::LISTENER } else { TcpRecord::POOL };
            let (idle, interval, probes) = alive.unwrap_or_default();
            if sparse {
                return (TcpRecord { nodelay: nodelay.into(), ..base }, format!("nodelay = {nodelay}"));
            }
            let mut record = TcpRecord {
                buffer_bytes: kib << 10,
                keep_alive_idle_ms: idle,
                keep_alive_interval_ms: interval,
                keep_alive_probes: probes,
                mss,
                initial_window: window,
                congestion: newreno.into(),
                nodelay: nodelay.into(),
                slow_start_after_idle: slow_start.into(),
                ecn: ecn.into(),
                ..base
            };
            let keep_alive = match alive {
                None => "\"off\"".to_owned(),
                Some(_) => {
                    format!("{{ idle = \"{idle}ms\", interval = \"{interval}ms\", probes = {probes} }}")
                }
            };
            let mut text = format!(
                "buffer = \"{kib}KiB\", keep_alive = {keep_alive}, mss = {mss}, initial_window = {window}, \
             congestion = \"{}\", nodelay = {nodelay}, slow_start_after_idle = {slow_start}, ecn = {ecn}",
                if newreno { "newreno" } else { "cubic" }
            );
            if of_listener {
                (record.backlog, record.fast_open, record.syn_cookies) = (backlog, fast_open.into(), cookies);
                let cookies = ["auto", "always", "never"][usize::from(cookies)];
                let _ = write!(
                    text,
                    ", backlog = {backlog}, fast_open = {fast_open}, syn_cookies = \"{cookies}\""
                );
            }
            (record, text)
        },
    )
}

fn proxy_config() -> impl Strategy<Value = RandomProxy> {
    let time = || 100u32..=86_400_000;
    let engine = (2u32..=1 << 24, 1u64..=1 << 20, (time(), time(), time(), 10u32..=10_000));
    let times = (time(), time(), time(), time());
    let queue = prop::option::of((1u32..=1 << 20, time()));
    let numbers = (any::<u32>(), any::<u32>(), 0u8..=10, 0u8..4, 0u8..3, 0u8..5);
    let trusted = prop::collection::vec((any::<u32>(), 1u8..=32), 1..4);
    let sides = (tcp_settings(true), tcp_settings(false));
    (engine, times, queue, numbers, trusted, sides).prop_map(
        |((connections, gib, more), times, queue, numbers, trusted, ((client, client_text), (upstream, upstream_text)))| {
            let (most, backend_limit, retries, accept, send, algorithm) = numbers;
            // above any buffer: what is wrong together has its own tests
            let memory = gib.clamp(1, 1 << 10) << 30;
            let (time_wait, fin_wait, user, rto) = more;
            let (connect, idle, half_close, handshake) = times;
            let accept_word = ["off", "v1", "v2", "any"][usize::from(accept)];
            let trusted: Vec<String> = if AcceptProxy::from_u8(accept) == Some(AcceptProxy::Off) {
                Vec::new()
            } else {
                let network = |(bits, length): (u32, u8)| {
                    let mask = u32::MAX << (32 - u32::from(length));
                    format!("{}/{length}", std::net::Ipv6Addr::from(u128::from(bits & mask) << 96))
                };
                trusted.into_iter().map(network).collect()
            };
            let trusted_line = if trusted.is_empty() { String::new() } else { format!("trusted = {trusted:?}\n") };
            let queue_line = queue.map_or(String::new(), |(size, timeout)| {
                format!("queue = {{ size = {size}, timeout = \"{timeout}ms\" }}\n")
            });
            let (queue, queue_ms) = queue.unwrap_or_default();
            let algorithm = Algorithm::from_u8(algorithm).unwrap();
            let text = format!(
                "[dataplane]\nworkers = 1\nidle = \"adaptive\"\ntcp_connections = {connections}\n\
                 tcp_memory = \"{}KiB\"\n[timeouts]\ntcp_time_wait = \"{time_wait}ms\"\ntcp_fin_wait = \"{fin_wait}ms\"\n\
                 tcp_user = \"{user}ms\"\ntcp_min_rto = \"{rto}ms\"\n\
                 [[port]]\nname = \"wan\"\ndevice = \"null:\"\naddresses = [\"198.18.0.254/24\", \"2001:db8::fe/64\"]\n\
                 [[vip]]\nname = \"v\"\naddress = \"2001:db8:100::1\"\n\
                 [[vip]]\nname = \"w\"\naddress = \"198.18.100.1\"\n\
                 [[listener]]\nname = \"l\"\nvip = \"v\"\nport = 80\nprotocol = \"tcp\"\nmode = \"proxy\"\npool = \"p\"\n\
                 timeouts = {{ connect = \"{connect}ms\", idle = \"{idle}ms\", half_close = \"{half_close}ms\", \
                 handshake = \"{handshake}ms\" }}\n{queue_line}max_connections = {most}\nretries = {retries}\n\
                 accept_proxy = \"{accept_word}\"\n{trusted_line}tcp = {{ {client_text} }}\n\
                 [[listener]]\nname = \"other\"\nvip = \"w\"\nport = 81\nprotocol = \"tcp\"\nmode = \"proxy\"\npool = \"p\"\n\
                 accept_proxy = \"any\"\ntrusted = [\"198.18.0.0/24\"]\n\
                 [[pool]]\nname = \"p\"\nslots = 251\nalgorithm = \"{}\"\nsend_proxy = \"{}\"\ntcp = {{ {upstream_text} }}\n\
                 [[pool.backend]]\nname = \"four\"\naddress = \"198.18.0.1\"\nmax_connections = {backend_limit}\n\
                 [[pool.backend]]\nname = \"six\"\naddress = \"[2001:db8::1]:80\"\n",
                memory >> 10,
                weir_ctlplane::model::algorithm_name(algorithm),
                ["off", "v1", "v2"][usize::from(send)],
            );
            let proxy = ProxyRecord {
                client,
                connect_ms: connect,
                idle_ms: idle,
                half_close_ms: half_close,
                handshake_ms: handshake,
                queue,
                queue_ms,
                max_connections: most,
                trusted: trusted.len() as u32,
                retries,
                accept_proxy: accept,
                ..ProxyRecord::DEFAULT
            };
            RandomProxy {
                text,
                engine: (connections, memory),
                times_ms: [time_wait, fin_wait, user, rto],
                proxy,
                trusted,
                algorithm,
                send_proxy: SendProxy::from_u8(send).unwrap() as u8,
                upstream,
                backend_limit,
            }
        },
    )
}

#[test]
fn the_example_of_a_proxy_starts() {
    let instance = Instance::new(include_str!("../../docs/weir.proxy.example.toml"));
    let engine: Engine = instance.start();
    let tables = instance.read(engine.generation());
    assert_eq!(tables.listeners.proxies.len(), tables.listeners.listeners.len());
    assert!(tables.listeners.proxies.len() >= 2);
}

#[test]
fn the_example_file_starts() {
    let text = include_str!("../../docs/weir.example.toml");
    let instance = Instance::new(text);
    let engine: Engine = instance.start();
    assert_eq!(engine.generation(), 1);
    assert_eq!(engine.model().listeners.len(), 5);
}
