//! From a device's name to an open port with its queues, which no other Weir has.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use dpdk::port::{Capabilities, PortConfig};
use dpdk::{DeviceSpec, EalHandle, PacketPool, Port, RxQueue, TxQueue};
use weir_abi::buffers::Buffers;
use weir_net::Mac;
use weir_net::hash::SYMMETRIC_KEY;

use super::{LaunchError, POOL_CACHE, failed};

/// Checks a device string, for errors before anything is opened.
pub(super) fn device_of(text: &str) -> Result<DeviceSpec, LaunchError> {
    text.parse().map_err(|error: dpdk::device::DeviceError| failed("device")(&error))
}

/// Makes sure that no other Weir has this kernel interface, before a driver touches it: the AF_XDP driver takes the interface's XDP program
/// off when it fails, and with it the running process's traffic.
///
/// The lock is a name in the abstract socket space of the network namespace, as the interface itself is; the kernel
/// lets go of it with the process.
pub(super) fn lock_interface(device: &DeviceSpec) -> Result<Option<UnixListener>, LaunchError> {
    let interface = match device {
        DeviceSpec::AfXdp(name) | DeviceSpec::AfPacket(name) | DeviceSpec::Tap(name) => name,
        _ => return Ok(None),
    };
    let lock = SocketAddr::from_abstract_name(format!("weir/interface/{interface}"))
        .and_then(|name| UnixListener::bind_addr(&name));
    match lock {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(failed(device.to_string())(
            &"another weir-dataplane uses this interface; stop it, or give this instance another one",
        )),
        Err(error) => Err(failed(device.to_string())(&error)),
    }
}

/// An opened port and its queues.
pub(super) struct OpenPort {
    pub(super) port: Port,
    pub(super) pool: PacketPool,
    pub(super) rx: Vec<RxQueue>,
    pub(super) tx: Vec<TxQueue>,
    pub(super) capabilities: Capabilities,
    pub(super) mac: Mac,
    pub(super) mtu: u16,
    pub(super) vlan: Option<u16>,
    pub(super) filter: bool,
}

pub(super) fn open_port(
    environment: &EalHandle,
    record: &weir_abi::record::PortRecord,
    device: &DeviceSpec,
    workers: u16,
    buffers: Buffers,
) -> Result<OpenPort, LaunchError> {
    let name = record.name.as_str();
    let what = || format!("port {name:?}");
    let pool_name: String = format!("port-{name}").chars().map(plain).take(16).collect();
    let Buffers { count, bytes } = buffers;
    let cache = POOL_CACHE.min(count / 2);
    let pool = PacketPool::new(environment, &pool_name, count, cache, bytes as u16, None)
        .map_err(|error| failed(what())(&error))?;
    let wanted = if record.queues == 0 { workers } else { record.queues.min(workers) };
    let mut port = Port::open(environment, device, wanted).map_err(|error| failed(what())(&error))?;
    let descriptors = if record.descriptors == 0 { 1_024 } else { record.descriptors };
    let wish = PortConfig {
        rx_queues: wanted,
        tx_queues: workers,
        rx_descriptors: descriptors,
        tx_descriptors: descriptors,
        mtu: record.mtu,
        rss_key: Some(SYMMETRIC_KEY.to_vec()),
        ..PortConfig::default()
    };
    let mut capabilities =
        port.configure(&wish, std::slice::from_ref(&pool)).map_err(|error| failed(what())(&error))?;
    if capabilities.mtu < record.mtu {
        let why = format!(
            "the device carries IP packets of at most {} bytes, mtu is {}; set mtu = {}",
            capabilities.mtu, record.mtu, capabilities.mtu
        );
        return Err(failed(what())(&why));
    }
    port.start().map_err(|error| failed(what())(&error))?;
    if let Some(now) = port.capabilities() {
        capabilities = now.clone();
    }
    let (rx, tx) = port.take_queues().map_err(|error| failed(what())(&error))?;
    let mac = port.mac().map(Mac).ok_or_else(|| failed(what())(&"the device tells no link address"))?;
    tracing::info!(
        "port {name:?}: {device}, driver {}, {mac}, {} receive and {} transmit queues, RSS {}",
        capabilities.driver,
        rx.len(),
        tx.len(),
        if capabilities.rss.is_some() { "yes" } else { "no" },
    );
    let filter = !matches!(device, DeviceSpec::Pcap { .. } | DeviceSpec::Null { .. } | DeviceSpec::Ring(_));
    let vlan = (record.vlan != 0).then_some(record.vlan);
    Ok(OpenPort { port, pool, rx, tx, capabilities, mac, mtu: record.mtu, vlan, filter })
}

fn plain(character: char) -> char {
    if character.is_ascii_alphanumeric() { character } else { '-' }
}
