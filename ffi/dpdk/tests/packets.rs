//! Packets through pools, rings and DPDK's software devices, in one environment without hugepages or root.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops where it goes wrong")]

use std::fs;
use std::sync::OnceLock;
use std::thread;

use dpdk::lcore::{self, RegisterError};
use dpdk::mbuf::{self, Checksum};
use dpdk::mempool::{HEADROOM, PoolError};
use dpdk::port::{ConfigureError, OpenError, PortConfig, PortError};
use dpdk::ring::Ring;
use dpdk::{
    ArrayVec, Burst, Eal, EalConfig, EalHandle, Mbuf, PacketPool, Port, RxQueue, SharedMbuf, TxQueue,
};

/// The process's one environment, started by whichever test comes first and kept until the process ends.
fn environment() -> &'static EalHandle {
    static ENVIRONMENT: OnceLock<EalHandle> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| {
        let config = EalConfig {
            file_prefix: "weir-test".to_owned(),
            no_huge: true,
            no_pci: true,
            memory_mb: Some(256),
            ..EalConfig::default()
        };
        let before = cpus_allowed();
        let eal = Eal::init(&config).unwrap();
        assert_eq!(cpus_allowed(), before, "EAL must leave the caller's affinity alone");
        assert!(matches!(Eal::init(&config), Err(dpdk::eal::EalError::Again)));
        eal.handle()
    })
}

fn cpus_allowed() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap().to_owned()
}

fn pool(count: u32) -> PacketPool {
    PacketPool::new(environment(), "test", count, 0, 2048, None).unwrap()
}

fn packet(pool: &PacketPool, bytes: &[u8]) -> Mbuf {
    let mut packet = pool.alloc().unwrap();
    assert!(packet.fill(bytes));
    packet
}

fn numbered(pool: &PacketPool, numbers: std::ops::Range<u64>) -> Burst {
    numbers
        .map(|number| {
            let mut packet = packet(pool, &number.to_be_bytes());
            packet.set_user(number);
            packet
        })
        .collect()
}

fn numbers<const N: usize>(batch: &ArrayVec<Mbuf, N>) -> Vec<u64> {
    batch.iter().map(Mbuf::user).collect()
}

fn running(device: &str, config: &PortConfig, pool: &PacketPool) -> (Port, Vec<RxQueue>, Vec<TxQueue>) {
    let mut port = Port::open(environment(), &device.parse().unwrap(), config.rx_queues).unwrap();
    port.configure(config, std::slice::from_ref(pool)).unwrap();
    port.start().unwrap();
    let (rx, tx) = port.take_queues().unwrap();
    (port, rx, tx)
}

#[test]
fn a_packet_grows_and_shrinks_at_both_ends() {
    let pool = pool(8);
    let mut packet = packet(&pool, b"payload");
    assert_eq!(packet.headroom(), usize::from(HEADROOM));

    packet.prepend(3).unwrap().copy_from_slice(b"hdr");
    packet.append(2).unwrap().copy_from_slice(b"!!");
    assert_eq!(packet.data(), b"hdrpayload!!");
    assert_eq!(packet.packet_len(), 12);
    assert_eq!(packet.tailroom(), 2048 - 9);

    assert!(packet.trim_front(3));
    assert!(packet.truncate(7));
    assert_eq!(packet.data(), b"payload");
    assert_eq!(packet.headroom(), usize::from(HEADROOM));

    assert!(packet.prepend(usize::from(HEADROOM) + 1).is_none());
    assert!(packet.append(packet.tailroom() + 1).is_none());
    assert!(!packet.trim_front(8));
    assert!(!packet.truncate(8));
    assert!(packet.reframe(1, 8).is_none());
    assert!(packet.reframe(usize::from(HEADROOM) + 1, 7).is_none());
    assert_eq!(packet.data(), b"payload", "a refused change changes nothing");

    packet.append(2).unwrap().copy_from_slice(b"!!");
    packet.reframe(3, 7).unwrap()[..3].copy_from_slice(b"hdr");
    assert_eq!((packet.data(), packet.packet_len()), (&b"hdrpayload"[..], 10));
    assert!(packet.trim_front(3));

    let tailroom = packet.tailroom();
    assert_eq!(packet.append(tailroom).unwrap().iter().map(|&byte| u64::from(byte)).sum::<u64>(), 0);
    assert_eq!((packet.tailroom(), packet.packet_len()), (0, 2048));
}

#[test]
fn a_shared_packet_lives_until_its_last_owner_lets_go() {
    let pool = pool(15);
    let before = mbuf::ledger();
    let first = SharedMbuf::new(packet(&pool, b"shared"));
    assert!(first.cost() > 2_048);
    let second = first.share();
    assert_eq!((second.data(), mbuf::ledger() - before, pool.in_use()), (&b"shared"[..], 2, 1));
    let first = first.into_unique().unwrap_err();
    drop(second);
    assert_eq!((mbuf::ledger() - before, pool.in_use()), (1, 1));
    let mut only = first.into_unique().unwrap();
    only.data_mut()[0] = b'S';
    assert_eq!(only.data(), b"Shared");
    drop(only);
    assert_eq!((mbuf::ledger(), pool.in_use()), (before, 0));
}

#[test]
fn stale_bytes_are_the_callers_to_write() {
    let pool = pool(15);
    let mut packet = packet(&pool, b"head");
    let room = packet.tailroom();
    assert!(packet.append_stale(room + 1).is_none());
    packet.append_stale(4).unwrap().copy_from_slice(b"tail");
    assert_eq!((packet.data(), packet.packet_len(), packet.tailroom()), (&b"headtail"[..], 8, room - 4));
    assert_eq!(packet.append_stale(room - 4).unwrap().len(), room - 4);
    assert!(packet.append_stale(1).is_none());
}

#[test]
fn appended_bytes_are_zero_where_an_older_packet_was() {
    let pool = pool(1);
    drop(packet(&pool, &[0xff; 64]));
    let mut again = pool.alloc().unwrap();
    assert_eq!(again.append(64).unwrap(), [0; 64]);
}

#[test]
fn metadata_stays_with_the_packet() {
    let pool = pool(4);
    let mut packet = packet(&pool, b"x");
    packet.set_user(u64::MAX - 1);
    packet.set_port(7);
    assert_eq!((packet.user(), packet.port()), (u64::MAX - 1, 7));
    assert_eq!(packet.rss_hash(), None);
    assert_eq!(packet.vlan_tci(), None);
    assert_eq!((packet.ip_checksum(), packet.l4_checksum()), (Checksum::Unknown, Checksum::Unknown));
}

#[test]
fn a_chain_is_cut_gathered_and_freed_whole() {
    let pool = pool(8);
    let before = mbuf::ledger();
    let chained = |parts: &[&[u8]]| {
        let mut head = packet(&pool, parts[0]);
        for part in &parts[1..] {
            head.chain(packet(&pool, part)).unwrap();
        }
        head
    };
    let mut head = chained(&[b"first", b"second", b"third"]);
    assert_eq!(mbuf::ledger() - before, 1, "a chain is one packet");
    assert_eq!(pool.in_use(), 3);
    assert_eq!(head.segments().collect::<Vec<_>>(), [&b"first"[..], b"second", b"third"]);
    assert_eq!((head.packet_len(), head.segment_count()), (16, 3));

    head.append(1).unwrap()[0] = b'!';
    assert_eq!(head.segments().last(), Some(&b"third!"[..]));

    assert!(head.truncate(8));
    assert_eq!(pool.in_use(), 2, "segments that are cut off go home");
    assert_eq!((head.packet_len(), head.segment_count()), (8, 2));
    assert!(head.linearize());
    assert_eq!((head.data(), head.segment_count(), pool.in_use()), (&b"firstsec"[..], 1, 1));
    drop(head);

    let head = chained(&[b"one", b"two"]);
    let copy = head.copy_into(&pool).unwrap();
    assert_eq!(copy.data(), b"onetwo");
    let mut empty = chained(&[b"one", b"two"]);
    assert!(empty.truncate(0));
    assert_eq!((empty.packet_len(), empty.segment_count()), (0, 1));
    drop((head, copy, empty));
    assert_eq!((pool.in_use(), mbuf::ledger() - before), (0, 0));
}

#[test]
fn an_exhausted_pool_gives_nothing_and_recovers() {
    let pool = pool(40);
    let before = mbuf::ledger();
    let mut first = Burst::new();
    assert_eq!(pool.alloc_bulk(&mut first), 32);
    let mut second = Burst::new();
    assert_eq!(pool.alloc_bulk(&mut second), 0, "a bulk is all or nothing");
    assert_eq!((pool.available(), pool.in_use(), pool.capacity()), (8, 32, 40));
    let singles: Vec<_> = std::iter::from_fn(|| pool.alloc()).collect();
    assert_eq!((singles.len(), mbuf::ledger() - before), (8, 40));
    mbuf::free_bulk(&mut first);
    assert_eq!((mbuf::ledger() - before, pool.available()), (8, 32));
    assert_eq!(pool.alloc_bulk(&mut second), 32);
    drop((singles, second));
    assert_eq!((mbuf::ledger() - before, pool.in_use()), (0, 0));
}

#[test]
fn a_packet_outlives_the_last_handle_of_its_pool() {
    let pool = pool(4);
    let survivor = packet(&pool, b"still here");
    drop(pool);
    assert_eq!(survivor.data(), b"still here");
}

#[test]
fn a_pool_that_cannot_be_says_why() {
    let make = |name: &str, count, cache| PacketPool::new(environment(), name, count, cache, 2048, None);
    assert!(matches!(make("", 8, 0), Err(PoolError::BadName(_))));
    assert!(matches!(make("seventeen-letters", 8, 0), Err(PoolError::BadName(_))));
    assert!(matches!(make("cache", 8, 8), Err(PoolError::BadCache { .. })));
    let error = make("huge", 50_000_000, 0).unwrap_err().to_string();
    assert!(error.contains("huge") && error.contains("50000000") && error.contains("hugepages"), "{error}");
    let same = (make("same", 8, 0).unwrap(), make("same", 8, 0).unwrap());
    assert_eq!(same.0.name(), same.1.name());
}

#[test]
fn a_ring_keeps_order_and_leaves_what_does_not_fit() {
    let pool = pool(128);
    let before = mbuf::ledger();
    let (mut producer, mut consumer) = Ring::new(environment(), "order", 40).unwrap();
    let mut first = numbered(&pool, 0..32);
    assert_eq!(producer.push_burst(&mut first), 32);
    assert!(first.is_empty());
    let mut second = numbered(&pool, 32..64);
    assert_eq!(producer.push_burst(&mut second), 8, "the ring holds exactly its size");
    assert_eq!(numbers(&second), (40..64).collect::<Vec<_>>(), "the rest stays, in order");
    assert_eq!(producer.push_burst(&mut second), 0);
    assert_eq!(mbuf::ledger() - before, 24, "what is in the ring is nobody's");

    let mut out: ArrayVec<Mbuf, 34> = numbered(&pool, 100..101).into_iter().collect();
    assert_eq!(consumer.pop_burst(&mut out), 33);
    assert_eq!(numbers(&out)[1..], (0..33).collect::<Vec<_>>(), "after what the batch held");
    assert_eq!(consumer.len(), 7);
    drop((producer, second, out));
    assert_eq!(pool.in_use(), 7);
    drop(consumer);
    assert_eq!((pool.in_use(), mbuf::ledger() - before), (0, 0), "what was inside is freed with the ring");
}

#[test]
fn workers_hand_packets_over_and_every_ledger_adds_up() {
    const PACKETS: u64 = 100_000;
    let pool = PacketPool::new(environment(), "workers", 2047, 64, 256, None).unwrap();
    let (mut producer, mut consumer) = Ring::new(environment(), "workers", 256).unwrap();
    let source = pool.clone();
    let sender = thread::spawn(move || {
        let guard = lcore::register_current_thread(environment()).unwrap();
        assert!(matches!(lcore::register_current_thread(environment()), Err(RegisterError::Already(_))));
        let mut next = 0;
        let mut batch = Burst::new();
        while next < PACKETS || !batch.is_empty() {
            while next < PACKETS && !batch.is_full() {
                let Some(mut packet) = source.alloc() else { break };
                packet.set_user(next);
                batch.push(packet);
                next += 1;
            }
            if producer.push_burst(&mut batch) == 0 {
                thread::yield_now();
            }
        }
        (guard.id(), mbuf::ledger())
    });
    let receiver = thread::spawn(move || {
        let guard = lcore::register_current_thread(environment()).unwrap();
        let mut expected = 0;
        let mut batch = Burst::new();
        while expected < PACKETS {
            if consumer.pop_burst(&mut batch) == 0 {
                thread::yield_now();
            }
            for packet in batch.drain(..) {
                assert_eq!(packet.user(), expected);
                expected += 1;
            }
        }
        (guard.id(), mbuf::ledger())
    });
    let (sender, receiver) = (sender.join().unwrap(), receiver.join().unwrap());
    assert_eq!((sender.1, receiver.1), (0, 0));
    assert_ne!(sender.0, receiver.0, "each worker has its own lcore id");
    assert_eq!(pool.in_use(), 0);
}

#[test]
fn transmit_takes_exactly_what_the_device_accepted() {
    let pool = pool(2047);
    let before = mbuf::ledger();
    let (mut port, mut rx, mut tx) = running("ring:exact", &PortConfig::default(), &pool);
    let baseline = pool.in_use();
    let (rx, tx) = (&mut rx[0], &mut tx[0]);

    let mut sent = 0_u64;
    let mut batch = loop {
        let mut batch = numbered(&pool, sent..sent + 32);
        sent += tx.burst(&mut batch) as u64;
        if !batch.is_empty() {
            break batch;
        }
    };
    assert_eq!(numbers(&batch).first(), Some(&sent), "the first refused packet is the next to be sent");
    assert_eq!(numbers(&batch), (sent..sent + batch.len() as u64).collect::<Vec<_>>());
    assert_eq!(pool.in_use() - baseline, sent as u32 + batch.len() as u32);
    assert_eq!(mbuf::ledger() - before, batch.len() as i64);

    let mut received = Vec::new();
    let mut inbound = ArrayVec::<Mbuf, 8>::new();
    while rx.burst(&mut inbound) > 0 {
        received.extend(numbers(&inbound));
        mbuf::free_bulk(&mut inbound);
    }
    assert_eq!(received, (0..sent).collect::<Vec<_>>());
    let held = batch.len();
    assert_eq!(tx.burst(&mut batch), held, "there is room again");
    assert_eq!(mbuf::ledger() - before, 0);

    let stats = port.stats();
    assert_eq!(stats.rx_packets, sent);
    assert!(stats.tx_packets >= sent);
    assert!(port.xstats().iter().any(|(name, value)| name == "rx_good_packets" && *value == sent));
    assert!(port.link().is_some_and(|link| link.up));
    assert!(matches!(port.stop(), Err(PortError::QueuesInUse(_))));
}

#[test]
fn a_closed_loopback_gives_back_what_was_inside() {
    let pool = pool(256);
    let before = mbuf::ledger();
    let config = PortConfig { rx_queues: 2, tx_queues: 2, ..PortConfig::default() };
    let (mut port, rx, mut tx) = running("ring:inside", &config, &pool);
    assert_eq!(tx[0].burst(&mut numbered(&pool, 0..32)), 32);
    assert_eq!(tx[1].burst(&mut numbered(&pool, 0..16)), 16);
    assert_eq!(pool.in_use(), 48);
    drop((rx, tx));
    port.stop().unwrap();
    assert_eq!(pool.in_use(), 0, "stopping empties the loopback");

    port.start().unwrap();
    let (rx, mut tx) = port.take_queues().unwrap();
    assert_eq!(tx[1].burst(&mut numbered(&pool, 0..32)), 32);
    drop(port);
    assert_eq!(pool.in_use(), 32, "queues keep their port alive");
    drop((rx, tx));
    assert_eq!((pool.in_use(), mbuf::ledger() - before), (0, 0));

    let (port, ..) = running("ring:inside", &config, &pool);
    assert_eq!(port.capabilities().unwrap().tx_queues, 2, "a closed device can be opened again");
}

#[test]
fn calls_out_of_order_are_refused() {
    let pool = pool(64);
    let spec = "ring:order".parse().unwrap();
    let mut port = Port::open(environment(), &spec, 1).unwrap();
    assert!(matches!(Port::open(environment(), &spec, 1), Err(OpenError::AlreadyOpen(_))));
    assert!(matches!(port.start(), Err(PortError::Order { .. })));
    assert!(matches!(port.configure(&PortConfig::default(), &[]), Err(ConfigureError::NoPool(_))));
    port.configure(&PortConfig::default(), std::slice::from_ref(&pool)).unwrap();
    assert!(matches!(port.take_queues(), Err(PortError::Order { .. })));
    port.start().unwrap();
    let queues = port.take_queues().unwrap();
    let error = port.take_queues().unwrap_err().to_string();
    assert!(error.contains("ring:order"), "{error}");
    assert!(matches!(
        port.configure(&PortConfig::default(), std::slice::from_ref(&pool)),
        Err(ConfigureError::Port(PortError::Order { .. }))
    ));
    drop(queues);
    port.stop().unwrap();
    port.configure(&PortConfig::default(), std::slice::from_ref(&pool)).unwrap();
}

#[test]
fn wishes_are_clamped_to_the_device() {
    let pool = pool(64);
    let mut port = Port::open(environment(), &"null:".parse().unwrap(), 1).unwrap();
    let wish = PortConfig {
        rx_queues: u16::MAX,
        tx_queues: u16::MAX,
        rx_descriptors: 5,
        mtu: 1500,
        ..PortConfig::default()
    };
    let granted = port.configure(&wish, std::slice::from_ref(&pool)).unwrap();
    assert_eq!(granted.driver, "net_null");
    assert!((1..=1024).contains(&granted.rx_queues), "{granted:?}");
    assert!(granted.max_mtu >= 1500 && granted.max_frame > u32::from(granted.max_mtu));
    assert!(!granted.offloads.tx_tcp);

    let jumbo = PortConfig { mtu: 9000, ..PortConfig::default() };
    let error = port.configure(&jumbo, std::slice::from_ref(&pool)).unwrap_err().to_string();
    assert!(error.contains("9000") && error.contains("2048"), "{error}");
}

#[test]
fn null_delivers_frames_or_none() {
    let pool = pool(256);
    let before = mbuf::ledger();
    let (_source, mut rx, _) = running("null:", &PortConfig::default(), &pool);
    let (_sink, mut nothing, mut tx) = running("null:sink", &PortConfig::default(), &pool);
    let mut batch = Burst::new();
    assert_eq!(rx[0].burst(&mut batch), 32);
    assert_eq!(batch[0].packet_len(), 64);
    assert_eq!(tx[0].burst(&mut batch), 32);
    assert!(batch.is_empty());
    assert_eq!(nothing[0].burst(&mut batch), 0);
    assert_eq!((pool.in_use(), mbuf::ledger() - before), (0, 0));
}

#[test]
fn a_missing_interface_is_named() {
    for device in ["af_xdp:weir-none0", "af_packet:weir-none0"] {
        let error = Port::open(environment(), &device.parse().unwrap(), 1).unwrap_err().to_string();
        assert!(error.contains(device) && error.contains("No such device"), "{error}");
    }
    let error =
        Port::open(environment(), &"pcap:/nonexistent/in.pcap,".parse().unwrap(), 1).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/in.pcap"), "{error}");
}

/// A capture file: magic, version 2.4, zone, accuracy, snap length, Ethernet; then each packet.
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file: Vec<u8> =
        [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1].iter().flat_map(|word| word.to_le_bytes()).collect();
    for frame in frames {
        let length = frame.len() as u32;
        file.extend([0, 0, length, length].iter().flat_map(|word: &u32| word.to_le_bytes()));
        file.extend(frame);
    }
    file
}

fn frames_of(file: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = &file[24..];
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..16 + length].to_vec());
        rest = &rest[16 + length..];
    }
    frames
}

#[test]
fn captures_go_in_and_out_unchanged() {
    let directory = std::env::temp_dir().join(format!("weir-dpdk-pcap-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let (input, output) = (directory.join("in.pcap"), directory.join("out.pcap"));
    let frames: Vec<Vec<u8>> = (0..50_u8).map(|number| vec![number; 60 + usize::from(number) * 28]).collect();
    fs::write(&input, capture(&frames)).unwrap();

    let pool = pool(1024);
    let before = mbuf::ledger();
    let device = format!("pcap:{},{}", input.display(), output.display());
    let (port, mut rx, mut tx) = running(&device, &PortConfig::default(), &pool);
    let mut batch = Burst::new();
    let mut count = 0;
    loop {
        let received = rx[0].burst(&mut batch);
        if received == 0 {
            break;
        }
        assert_eq!(tx[0].burst(&mut batch), received);
        count += received;
    }
    assert_eq!(count, frames.len());
    drop((rx, tx, port));
    assert_eq!(frames_of(&fs::read(&output).unwrap()), frames);

    let endless = format!("pcap:{},,infinite", input.display());
    let (port, mut rx, tx) = running(&endless, &PortConfig::default(), &pool);
    let baseline = pool.in_use();
    for round in 0..10_000_usize {
        let taken = rx[0].burst(&mut batch);
        assert!(taken > 0, "round {round}");
        mbuf::free_bulk(&mut batch);
    }
    assert_eq!(pool.in_use(), baseline);
    drop((port, rx, tx));
    assert_eq!((pool.in_use(), mbuf::ledger() - before), (0, 0));
    fs::remove_dir_all(&directory).unwrap();
}
