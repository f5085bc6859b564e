//! A clean end: with nothing left, dropping the environment ends DPDK, in a process of its own.

use dpdk::port::PortConfig;
use dpdk::{Burst, Eal, EalConfig, PacketPool, Port, mbuf};

#[test]
fn dropping_the_last_part_ends_dpdk() {
    let config = EalConfig {
        file_prefix: "weir-test".to_owned(),
        no_huge: true,
        no_pci: true,
        memory_mb: Some(64),
        ..EalConfig::default()
    };
    let eal = Eal::init(&config).unwrap();
    let pool = PacketPool::new(&eal, "ending", 256, 32, 2048, None).unwrap();
    let mut port = Port::open(&eal, &"ring:ending".parse().unwrap(), 1).unwrap();
    port.configure(&PortConfig::default(), std::slice::from_ref(&pool)).unwrap();
    port.start().unwrap();
    let (rx, mut tx) = port.take_queues().unwrap();
    let mut batch = Burst::new();
    pool.alloc_bulk(&mut batch);
    assert_eq!(tx[0].burst(&mut batch), 32);
    pool.alloc_bulk(&mut batch);
    drop((rx, port, tx));
    assert_eq!(pool.in_use(), 32, "the batch's");
    drop((pool, batch));
    assert_eq!(mbuf::ledger_total(), 0);
    assert_eq!(eal.end(), Ok(()));
}
