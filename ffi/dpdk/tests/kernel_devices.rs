//! Frames through AF_XDP, packet sockets and a TAP: the devices that kernel interfaces are behind.
//!
//! Needs root for a network namespace; without it the test says so and passes.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test stops where it goes wrong")]

use std::process::Command;
use std::time::{Duration, Instant};

use dpdk::mbuf;
use dpdk::port::{OpenError, PortConfig};
use dpdk::{Burst, Eal, EalConfig, Mbuf, PacketPool, Port};
use weir_os::interface;
use weir_os::namespace::NetworkNamespace;
use weir_os::packet_socket::PacketSocket;

const FRAMES: usize = 200;
const WAIT: Duration = Duration::from_secs(5);

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn quiet(interface: &str) {
    // Nothing but the test's own frames: no neighbour discovery.
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1").unwrap();
    interface::set_up(interface, true).unwrap();
}

/// A veth pair whose far end DPDK gets: without offloads, which an XDP socket would not see.
fn veth(near: &str, far: &str) {
    run(
        "ip",
        &["link", "add", near, "numrxqueues", "1", "type", "veth", "peer", "name", far, "numrxqueues", "1"],
    );
    for name in [near, far] {
        run("ethtool", &["-K", name, "tx", "off", "tso", "off", "gso", "off", "gro", "off"]);
        quiet(name);
    }
}

fn frame(number: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.resize(60 + number * 7, 0xaa);
    frame[14..22].copy_from_slice(&(number as u64).to_be_bytes());
    frame
}

fn packet(pool: &PacketPool, bytes: &[u8]) -> Mbuf {
    let mut packet = pool.alloc().unwrap();
    assert!(packet.fill(bytes));
    packet
}

/// Sends frames into the port and back out of it again; each comes back exactly as it went in.
fn echo(eal: &Eal, device: &str, far: impl FnOnce() -> PacketSocket) {
    let pool = PacketPool::new(eal, "echo", 8191, 64, 2048, None).unwrap();
    let before = mbuf::ledger();
    let spec = device.parse().unwrap();
    let mut port = Port::open(eal, &spec, 1).unwrap();
    assert!(matches!(Port::open(eal, &spec, 1), Err(OpenError::AlreadyOpen(_))));
    let granted = port.configure(&PortConfig::default(), std::slice::from_ref(&pool)).unwrap();
    eprintln!("{device}: {granted:?}");
    assert_eq!((granted.rx_queues, granted.tx_queues), (1, 1), "{device}");
    assert!(granted.mtu >= 1500, "{device}: {granted:?}");
    port.start().unwrap();
    assert!(port.mac().is_some_and(|mac| mac != [0; 6]), "{device}");
    let (mut rx, mut tx) = port.take_queues().unwrap();
    let socket = far();
    socket.ignore_outgoing(true).unwrap();

    let mut buffer = [0; 4096];
    for number in 0..FRAMES {
        let sent = frame(number);
        socket.send(&sent).unwrap();
        let mut batch = Burst::new();
        let deadline = Instant::now() + WAIT;
        while rx[0].burst(&mut batch) == 0 {
            assert!(Instant::now() < deadline, "{device}: frame {number} did not arrive");
            std::thread::yield_now();
        }
        assert_eq!((batch.len(), batch[0].data()), (1, &sent[..]), "{device}: frame {number}");
        while tx[0].burst(&mut batch) == 0 {
            assert!(Instant::now() < deadline, "{device}: frame {number} was not sent");
        }
        let received = socket.receive(&mut buffer, WAIT).unwrap();
        let received = received.unwrap_or_else(|| unreachable!("{device}: frame {number} did not come back"));
        assert_eq!(&buffer[..received.length], sent, "{device}: frame {number}");
    }
    // In segments, and with a buffer that the device's own pool does not have room for.
    let mut head = packet(&pool, &frame(1)[..40]);
    head.chain(packet(&pool, &frame(1)[40..])).unwrap();
    let mut batch = Burst::from_iter([head]);
    assert_eq!(tx[0].burst(&mut batch), 1, "{device}: segments are gathered where they must be");
    let received = socket.receive(&mut buffer, WAIT).unwrap().unwrap();
    assert_eq!(&buffer[..received.length], frame(1), "{device}");
    if device.starts_with("af_xdp:") {
        let large = PacketPool::new(eal, "large", 8, 0, 4096, None).unwrap();
        batch.push(packet(&pool, &frame(2)));
        batch.push(packet(&large, &[0xff; 4096]));
        assert_eq!(tx[0].burst(&mut batch), 1, "{device}");
        assert_eq!((batch.len(), tx[0].burst(&mut batch)), (1, 0), "{device}: what can't be sent stays");
    }
    batch.clear();
    let sent = FRAMES as u64 + if device.starts_with("af_xdp:") { 2 } else { 1 };
    let stats = port.stats();
    assert_eq!((stats.rx_packets, stats.tx_packets), (FRAMES as u64, sent), "{device}");
    assert_eq!(mbuf::ledger() - before, 0, "{device}");
    drop((port, rx, tx, socket));
    // net_af_xdp never gives back its fill ring, nor what its completion ring holds: 2,048 each.
    let kept = if device.starts_with("af_xdp:") { 2 * 2048 } else { 0 };
    assert!(pool.in_use() <= kept, "{device}: {} packets are missing once the port is closed", pool.in_use());
}

fn all_devices(eal: &Eal) {
    veth("near-packet", "far-packet");
    echo(eal, "af_packet:far-packet", || PacketSocket::open("near-packet").unwrap());
    veth("near-xdp", "far-xdp");
    echo(eal, "af_xdp:far-xdp", || PacketSocket::open("near-xdp").unwrap());
    echo(eal, "af_xdp:far-xdp", || PacketSocket::open("near-xdp").unwrap());
    echo(eal, "tap:weir-tap", || {
        quiet("weir-tap");
        PacketSocket::open("weir-tap").unwrap()
    });

    let two = ["numrxqueues", "2", "numtxqueues", "2"];
    run(
        "ip",
        &[&["link", "add", "two-a"], &two[..], &["type", "veth", "peer", "name", "two-b"], &two[..]].concat(),
    );
    let error = Port::open(eal, &"af_xdp:two-b".parse().unwrap(), 2).unwrap_err().to_string();
    assert!(
        error.contains("two-b") && error.contains("2 receive queues") && error.contains("ethtool"),
        "{error}"
    );
}

#[test]
fn kernel_devices_echo_every_frame() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: network namespaces need root");
        return;
    }
    let namespace = Namespace(format!("weir-dpdk-{}", std::process::id()));
    run("ip", &["netns", "add", &namespace.0]);
    let config = EalConfig {
        file_prefix: "weir-test".to_owned(),
        no_huge: true,
        no_pci: true,
        memory_mb: Some(256),
        ..EalConfig::default()
    };
    NetworkNamespace::open(&namespace.0)
        .unwrap()
        .run(|| {
            let eal = Eal::init(&config).unwrap();
            all_devices(&eal);
            assert_eq!(eal.end(), Ok(()));
        })
        .unwrap();
}
