//! Interfaces, sockets and namespaces of the real kernel, inside namespaces that the tests make.
//!
//! They need root; without it each says so and passes, like the rest of this crate on a laptop.

#![expect(clippy::unwrap_used, reason = "a test stops where it goes wrong")]

use std::process::Command;
use std::time::Duration;

use weir_os::namespace::NetworkNamespace;
use weir_os::packet_socket::PacketSocket;
use weir_os::tun::{Layer, Tun};
use weir_os::{interface, namespace, spawn};

const WAIT: Duration = Duration::from_secs(5);

/// Runs the test in a named namespace, which is gone afterwards, also after a failure.
fn in_fresh_namespace(name: &str, test: impl FnOnce(&NetworkNamespace) + Send) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: network namespaces need root");
        return;
    }
    struct Cleanup(String);
    impl Drop for Cleanup {
        fn drop(&mut self) {
            let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
        }
    }
    let name = format!("weir-os-{name}-{}", std::process::id());
    ip(&["netns", "add", &name]);
    let _cleanup = Cleanup(name.clone());
    let namespace = NetworkNamespace::open(&name).unwrap();
    namespace.run(|| test(&namespace)).unwrap();
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}");
}

fn veth() {
    ip(&["link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b"]);
    for name in ["veth-a", "veth-b"] {
        // Nothing but the test's own frames: no neighbour discovery.
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1").unwrap();
        interface::set_up(name, true).unwrap();
    }
}

fn frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.extend(payload);
    frame
}

#[test]
fn a_thread_enters_a_namespace_alone() {
    in_fresh_namespace("enter", |namespace| {
        let here = || std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let inside = here();
        let outside = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert_ne!(inside, outside);
        assert_eq!(namespace.run(here).unwrap(), inside);

        // By name, from a thread of the process's own namespace.
        let name = format!("weir-os-enter-{}", std::process::id());
        let home = NetworkNamespace::open(&name).unwrap();
        let (joined, back) = std::thread::spawn(move || {
            let before = NetworkNamespace::current().unwrap();
            namespace::enter(&name).unwrap();
            let joined = here();
            before.enter().unwrap();
            (joined, here())
        })
        .join()
        .unwrap();
        assert_eq!((joined, &back), (inside.clone(), &inside), "a thread starts where its maker is");

        let mut command = Command::new("readlink");
        command.arg("/proc/self/ns/net");
        let name = format!("weir-os-enter-{}", std::process::id());
        let output = spawn::in_namespace(&mut command, &name).unwrap().output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), inside.to_string_lossy());
        drop(home);
    });
}

#[test]
fn an_interface_changes_as_it_is_told() {
    in_fresh_namespace("link", |_| {
        ip(&["link", "add", "veth-a", "type", "veth", "peer", "name", "veth-b"]);
        assert!(!interface::is_up("veth-a").unwrap());
        interface::set_up("veth-a", true).unwrap();
        assert!(interface::is_up("veth-a").unwrap());
        interface::set_mtu("veth-a", 1400).unwrap();
        assert_eq!(interface::mtu("veth-a").unwrap(), 1400);
        interface::set_mac("veth-a", [2, 0, 0, 0, 0, 7]).unwrap();
        assert_eq!(interface::mac("veth-a").unwrap(), [2, 0, 0, 0, 0, 7]);
        let error = interface::set_mtu("veth-a", 1_000_000).unwrap_err().to_string();
        assert!(error.contains("veth-a") && error.contains("1000000"), "{error}");
        interface::set_up("veth-a", false).unwrap();
        assert!(!interface::is_up("veth-a").unwrap());
        assert_ne!(interface::index("veth-a").unwrap(), interface::index("veth-b").unwrap());
    });
}

#[test]
fn frames_pass_between_packet_sockets() {
    in_fresh_namespace("packet", |_| {
        veth();
        let (a, b) = (PacketSocket::open("veth-a").unwrap(), PacketSocket::open("veth-b").unwrap());
        a.ignore_outgoing(true).unwrap();
        b.set_receive_buffer(1 << 20).unwrap();
        let mut buffer = [0; 2048];
        assert_eq!(b.receive(&mut buffer, Duration::from_millis(20)).unwrap(), None);

        let plain = frame(&[7; 100]);
        a.send(&plain).unwrap();
        let received = b.receive(&mut buffer, WAIT).unwrap().unwrap();
        assert_eq!(&buffer[..received.length], plain);
        assert!(!received.outgoing && !received.truncated);

        let mut tagged = frame(&[9; 64]);
        tagged.splice(12..12, [0x81, 0x00, 0x60, 0x64]);
        a.send(&tagged).unwrap();
        let received = b.receive(&mut buffer, WAIT).unwrap().unwrap();
        assert_eq!(&buffer[..received.length], tagged, "with its tag");

        let mut short = [0; 60];
        a.send(&plain).unwrap();
        let received = b.receive(&mut short, WAIT).unwrap().unwrap();
        assert!(received.truncated && received.length == 60);
        assert_eq!(short, plain[..60]);
        assert_eq!(
            a.receive(&mut buffer, Duration::from_millis(20)).unwrap(),
            None,
            "its own frames are hidden"
        );

        interface::set_up("veth-b", false).unwrap();
        let error = b.send(&plain).unwrap_err().to_string();
        assert!(error.contains("veth-b"), "{error}");
    });
}

#[test]
fn a_tap_carries_frames_and_a_persistent_one_stays() {
    in_fresh_namespace("tap", |_| {
        let tap = Tun::open("weir-tap0", Layer::Ethernet, true).unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/weir-tap0/disable_ipv6", "1").unwrap();
        let mut buffer = [0; 2048];
        assert!(tap.write(&frame(&[0; 60])).is_err(), "it is down");
        interface::set_up("weir-tap0", true).unwrap();
        let socket = PacketSocket::open("weir-tap0").unwrap();
        socket.ignore_outgoing(true).unwrap();
        assert_eq!(tap.read(&mut buffer).unwrap(), None);

        let inbound = frame(b"to the kernel, through the TAP, sixty bytes or so of payload");
        assert!(tap.write(&inbound).unwrap());
        let received = socket.receive(&mut buffer, WAIT).unwrap().unwrap();
        assert_eq!(&buffer[..received.length], inbound);

        let outbound = frame(b"from the kernel, through the TAP, sixty bytes or so of it");
        socket.send(&outbound).unwrap();
        let length = tap.read(&mut buffer).unwrap().unwrap();
        assert_eq!(&buffer[..length], outbound);

        assert!(Tun::open("weir-tap0", Layer::Ethernet, true).is_err(), "one owner at a time");
        tap.set_persistent(true).unwrap();
        drop(tap);
        assert!(interface::index("weir-tap0").is_ok());
        let tap = Tun::open("weir-tap0", Layer::Ethernet, true).unwrap();
        tap.set_persistent(false).unwrap();
        drop(tap);
        assert!(interface::index("weir-tap0").is_err());
    });
}

#[test]
fn a_tun_carries_packets() {
    in_fresh_namespace("tun", |_| {
        let tun = Tun::open("weir-tun0", Layer::Ip, false).unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/weir-tun0/disable_ipv6", "1").unwrap();
        ip(&["addr", "add", "198.18.0.1/24", "dev", "weir-tun0"]);
        interface::set_up("weir-tun0", true).unwrap();
        let socket = std::net::UdpSocket::bind("198.18.0.1:0").unwrap();
        socket.send_to(b"hello", "198.18.0.2:7").unwrap();
        let mut buffer = [0; 2048];
        let Some(length) = tun.read(&mut buffer).unwrap() else { panic!("a blocking read found nothing") };
        assert_eq!(length, 20 + 8 + 5);
        assert_eq!((buffer[0] >> 4, &buffer[16..20]), (4, &[198, 18, 0, 2][..]));
    });
}
