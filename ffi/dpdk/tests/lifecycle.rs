//! The environment's own life, in a process of its own: one start, one end.

use std::sync::mpsc;
use std::thread;

use dpdk::eal::{EalError, EndError};
use dpdk::{Burst, Eal, EalConfig, PacketPool, lcore};

#[test]
fn the_environment_ends_after_everything_in_it_and_never_starts_again() {
    let config = EalConfig {
        file_prefix: "weir-test".to_owned(),
        no_huge: true,
        no_pci: true,
        memory_mb: Some(64),
        ..EalConfig::default()
    };
    let bad = EalConfig { extra: vec!["with\0nul".to_owned()], ..config.clone() };
    assert!(matches!(Eal::init(&bad), Err(EalError::BadArgument(_))));

    let eal = Eal::init(&config).unwrap();
    assert!(eal.version().starts_with("DPDK "), "{}", eal.version());
    assert!(eal.no_huge());
    let handle = eal.handle();
    let hz = lcore::tsc_hz(&eal);
    assert!(hz > 100_000_000, "{hz}");
    let start = lcore::tsc();
    assert!(lcore::tsc() > start);

    // A worker that goes on while the starting thread lets go of the environment.
    let (release, wait) = mpsc::channel::<()>();
    let (ready, is_ready) = mpsc::channel();
    let worker = thread::spawn(move || {
        let guard = lcore::register_current_thread(&handle).unwrap();
        let pool = PacketPool::new(&handle, "survivor", 64, 0, 256, None).unwrap();
        let mut batch = Burst::new();
        pool.alloc_bulk(&mut batch);
        ready.send(()).unwrap();
        wait.recv().unwrap();
        batch.iter_mut().for_each(|packet| packet.set_user(1));
        drop(batch);
        (guard.id(), pool.in_use())
    });
    is_ready.recv().unwrap();
    assert_eq!(eal.end(), Err(EndError::InUse(3)), "the handle, the guard and the pool");
    release.send(()).unwrap();
    let (id, in_use) = worker.join().unwrap();
    assert!(id > 0 && in_use == 0);
    assert!(matches!(Eal::init(&config), Err(EalError::Again)));
}
