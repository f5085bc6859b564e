//! What is asked of a device, and what does it grant?
//!
//! Every wish is clamped to what the driver reports; the answer says what was granted. Only what traffic can't do
//! without (a queue each way, room for the MTU) is an error.

use std::ffi::CStr;
use std::sync::Arc;

use dpdk_sys as sys;

use super::xdp_socket::Watch;
use super::{DeviceSpec, Port, PortError, State, TxLimit};
use crate::mempool::PacketPool;
use crate::text::Errno;

/// Ethernet header (14) and frame check sequence (4): what DPDK adds to an MTU where the driver does not say.
const ETHERNET_OVERHEAD: u32 = 18;

/// The smallest Ethernet frame, without its frame check sequence (IEEE 802.3 §3.2.8).
const MIN_FRAME: u32 = 60;

/// Longest hash key of any driver.
const KEY_LIMIT: usize = u8::MAX as usize;

/// Checksum work of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checks IPv4 header checksums on receipt.
    pub rx_ipv4: bool,
    /// Checks TCP and UDP checksums on receipt.
    pub rx_l4: bool,
    /// Fills in IPv4 header checksums.
    pub tx_ipv4: bool,
    /// Fills in TCP checksums.
    pub tx_tcp: bool,
    /// Fills in UDP checksums.
    pub tx_udp: bool,
}

impl Offloads {
    /// All of them.
    pub const ALL: Self = Self { rx_ipv4: true, rx_l4: true, tx_ipv4: true, tx_tcp: true, tx_udp: true };
}

/// What a port is asked for.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Receive queues wanted, at least one.
    pub rx_queues: u16,
    /// Transmit queues wanted, at least one.
    pub tx_queues: u16,
    /// Packets that each receive queue holds.
    pub rx_descriptors: u16,
    /// Packets that each transmit queue holds.
    pub tx_descriptors: u16,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Spread packets over the receive queues by a hash of their addresses and ports.
    pub rss: bool,
    /// The hash key; without one, or where its length is not the device's, the driver's own. See
    /// [`Capabilities::rss`] for the one that is used.
    pub rss_key: Option<Vec<u8>>,
    /// Checksum work wanted.
    pub offloads: Offloads,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: 1500,
            rss: true,
            rss_key: None,
            offloads: Offloads::ALL,
        }
    }
}

/// How the device spreads packets over its receive queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rss {
    /// The Toeplitz key; empty where the driver won't tell.
    pub key: Vec<u8>,
    /// The queue of each hash bucket (hash modulo length); empty where the driver won't tell.
    pub reta: Vec<u16>,
    /// The hashed fields, as DPDK's `RTE_ETH_RSS_*` bits.
    pub fields: u64,
}

/// What a port was granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// DPDK's driver.
    pub driver: String,
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Packets that each receive queue holds.
    pub rx_descriptors: u16,
    /// Packets that each transmit queue holds.
    pub tx_descriptors: u16,
    /// Spreading over the queues; `None` where there is one queue or the device can't.
    pub rss: Option<Rss>,
    /// Checksum work granted.
    pub offloads: Offloads,
    /// Largest IP packet that is received and sent, in bytes.
    pub mtu: u16,
    /// Largest IP packet that the device could be configured for.
    pub max_mtu: u16,
    /// Smallest frame, without its frame check sequence.
    pub min_frame: u32,
    /// Largest frame that the device could be configured for.
    pub max_frame: u32,
    /// Whether it sends packets of several segments.
    pub multi_segment_tx: bool,
    /// Whether received packets may have several segments.
    pub multi_segment_rx: bool,
    /// NUMA node of the device.
    pub numa_node: Option<u32>,
}

/// Why a port could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// A call out of order.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Receive queues need packets to fill.
    #[error("port {0}: no packet pool was given")]
    NoPool(DeviceSpec),
    /// Likely a jumbo MTU on a device without scattered receipt.
    #[error(
        "port {device}: pool {pool} holds {data_room} bytes per packet, an MTU of {mtu} needs {needed}, and the device \
         can't spread a packet over several; make the pool's packets larger or the MTU smaller"
    )]
    PoolTooSmall {
        /// The port.
        device: DeviceSpec,
        /// The pool.
        pool: String,
        /// Its room.
        data_room: u16,
        /// The MTU asked for.
        mtu: u16,
        /// Bytes of the largest frame.
        needed: u32,
    },
    /// The driver's refusal.
    #[error("port {device}: {operation}: {errno}{}", hint(.device))]
    Driver {
        /// The port.
        device: DeviceSpec,
        /// What was asked for.
        operation: String,
        /// What DPDK reported.
        errno: Errno,
    },
}

/// What the driver's error number hides.
fn hint(device: &DeviceSpec) -> &'static str {
    match device {
        DeviceSpec::AfXdp(_) => {
            "; has the pool 4,096 packets or more per queue, has the process CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and \
             CAP_SYS_ADMIN (or root), and is no other process, or one that has just ended, receiving from this interface \
             through AF_XDP?"
        }
        _ => "",
    }
}

impl Capabilities {
    /// Reads the hash key and the indirection table from the device again.
    pub(super) fn refresh_rss(&mut self, port: u16, reta_size: u16) {
        if let Some(rss) = self.rss.as_mut() {
            *rss = read_rss(port, reta_size, std::mem::take(rss));
        }
    }
}

impl Port {
    /// Sets the device up and says what was granted. Receive queue `n` fills itself from pool `n` modulo their
    /// number. A stopped port can be configured again.
    ///
    /// # Errors
    /// When the port runs, a pool is missing or too small, or the driver refuses.
    pub fn configure(
        &mut self,
        wish: &PortConfig,
        pools: &[PacketPool],
    ) -> Result<Capabilities, ConfigureError> {
        if !matches!(self.state, State::Opened | State::Configured) {
            return Err(self.order("configure").into());
        }
        let info = self.info()?;
        let plan = Plan::new(&self.inner.spec, &info, wish, pools)?;
        let spec = self.inner.spec.clone();
        let device = Arc::get_mut(&mut self.inner).ok_or_else(|| PortError::QueuesInUse(spec.clone()))?;
        // Kept before the device may use them, and until it is closed.
        device.pools.extend_from_slice(pools);
        device.rx_queues = plan.rx_queues;
        self.state = State::Opened;
        let watch = matches!(spec, DeviceSpec::AfXdp(_)).then(Watch::start);
        let granted = self.apply(&info, wish, plan, pools);
        if let (Some(watch), Some(device)) = (watch, Arc::get_mut(&mut self.inner)) {
            watch.finish(&mut device.xdp_sockets);
        }
        let granted = granted?;
        let limit = tx_limit(&spec, &granted, pools);
        Arc::get_mut(&mut self.inner).ok_or(PortError::QueuesInUse(spec))?.tx_limit = limit;
        self.state = State::Configured;
        self.reta_size = info.reta_size;
        self.capabilities = Some(granted.clone());
        Ok(granted)
    }

    fn info(&self) -> Result<sys::rte_eth_dev_info, ConfigureError> {
        // SAFETY: an all-zero rte_eth_dev_info is valid (integers, null pointers, and an enum as an integer).
        let mut info: sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
        // SAFETY: writes one rte_eth_dev_info.
        let code = unsafe { sys::rte_eth_dev_info_get(self.inner.id, &raw mut info) };
        self.granted(code, || "read the device's limits".to_owned())?;
        Ok(info)
    }

    fn granted(&self, code: i32, operation: impl Fn() -> String) -> Result<(), ConfigureError> {
        let device = || self.inner.spec.clone();
        let refused = |errno| ConfigureError::Driver { device: device(), operation: operation(), errno };
        Errno::check(code).map(|_| ()).map_err(refused)
    }

    fn apply(
        &self,
        info: &sys::rte_eth_dev_info,
        wish: &PortConfig,
        plan: Plan,
        pools: &[PacketPool],
    ) -> Result<Capabilities, ConfigureError> {
        let id = self.inner.id;
        let mut key = plan.key.clone();
        // SAFETY: an all-zero rte_eth_conf is the default configuration.
        let mut conf: sys::rte_eth_conf = unsafe { std::mem::zeroed() };
        conf.rxmode.mtu = u32::from(plan.mtu);
        conf.rxmode.offloads = plan.rx_offloads;
        conf.rxmode.mq_mode =
            (if plan.rss_fields == 0 { sys::WEIR_RTE_ETH_MQ_RX_NONE } else { sys::WEIR_RTE_ETH_MQ_RX_RSS })
                as _;
        conf.txmode.offloads = plan.tx_offloads;
        if plan.rss_fields != 0 {
            conf.rx_adv_conf.rss_conf.rss_hf = plan.rss_fields;
            if let Some(key) = key.as_mut() {
                conf.rx_adv_conf.rss_conf.rss_key = key.as_mut_ptr();
                conf.rx_adv_conf.rss_conf.rss_key_len = key.len() as u8;
            }
        }
        let (rx_queues, tx_queues) = (plan.rx_queues, plan.tx_queues);
        // SAFETY: the port is stopped; the configuration and its key outlive the call, which copies them.
        let code = unsafe { sys::rte_eth_dev_configure(id, rx_queues, tx_queues, &raw const conf) };
        self.granted(code, || format!("configure {rx_queues} receive and {tx_queues} transmit queues"))?;

        let (mut rx_descriptors, mut tx_descriptors) = (wish.rx_descriptors, wish.tx_descriptors);
        // SAFETY: reads and writes the two integers.
        let code = unsafe {
            sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &raw mut rx_descriptors, &raw mut tx_descriptors)
        };
        self.granted(code, || format!("{rx_descriptors} receive and {tx_descriptors} transmit descriptors"))?;

        // SAFETY: the port exists. -1 means that it is on no node.
        let node = unsafe { sys::rte_eth_dev_socket_id(id) };
        for (queue, pool) in (0..rx_queues).zip(pools.iter().cycle()) {
            let mut settings = info.default_rxconf;
            settings.offloads = plan.rx_offloads;
            // SAFETY: the queue is below the configured number, the port is stopped, and the pool lives as long as the
            // device, which holds a clone.
            let code = unsafe {
                let settings = &raw const settings;
                sys::rte_eth_rx_queue_setup(
                    id,
                    queue,
                    rx_descriptors,
                    node.cast_unsigned(),
                    settings,
                    pool.raw(),
                )
            };
            self.granted(code, || format!("set up receive queue {queue} with {rx_descriptors} descriptors"))?;
        }
        for queue in 0..tx_queues {
            let mut settings = info.default_txconf;
            settings.offloads = plan.tx_offloads;
            // SAFETY: as above.
            let code = unsafe {
                sys::rte_eth_tx_queue_setup(
                    id,
                    queue,
                    tx_descriptors,
                    node.cast_unsigned(),
                    &raw const settings,
                )
            };
            self.granted(code, || {
                format!("set up transmit queue {queue} with {tx_descriptors} descriptors")
            })?;
        }

        let rss = (plan.rss_fields != 0).then(|| {
            let asked = Rss { key: key.unwrap_or_default(), reta: Vec::new(), fields: plan.rss_fields };
            read_rss(id, info.reta_size, asked)
        });
        Ok(Capabilities {
            driver: driver_name(info),
            rx_queues,
            tx_queues,
            rx_descriptors,
            tx_descriptors,
            rss,
            offloads: plan.offloads,
            mtu: plan.mtu,
            max_mtu: plan.max_mtu,
            min_frame: MIN_FRAME,
            max_frame: u32::from(plan.max_mtu).saturating_add(plan.overhead),
            multi_segment_tx: plan.tx_offloads & sys::WEIR_RTE_ETH_TX_OFFLOAD_MULTI_SEGS != 0,
            multi_segment_rx: plan.rx_offloads & sys::WEIR_RTE_ETH_RX_OFFLOAD_SCATTER != 0,
            numa_node: u32::try_from(node).ok(),
        })
    }
}

/// The wish, clamped to the device.
struct Plan {
    rx_queues: u16,
    tx_queues: u16,
    mtu: u16,
    max_mtu: u16,
    overhead: u32,
    rx_offloads: u64,
    tx_offloads: u64,
    rss_fields: u64,
    key: Option<Vec<u8>>,
    offloads: Offloads,
}

impl Plan {
    fn new(
        spec: &DeviceSpec,
        info: &sys::rte_eth_dev_info,
        wish: &PortConfig,
        pools: &[PacketPool],
    ) -> Result<Self, ConfigureError> {
        let rx_queues = wish.rx_queues.clamp(1, info.max_rx_queues.max(1));
        let mut tx_queues = wish.tx_queues.clamp(1, info.max_tx_queues.max(1));
        if matches!(spec, DeviceSpec::Ring(_)) {
            // What is sent on a queue that nobody receives from would never be freed.
            tx_queues = tx_queues.min(rx_queues);
        }
        let overhead = overhead(info);
        let max_mtu = info.max_rx_pktlen.saturating_sub(overhead).min(u32::from(info.max_mtu)) as u16;
        let mtu = wish.mtu.clamp(info.min_mtu, max_mtu.max(info.min_mtu));

        let smallest = pools.iter().min_by_key(|pool| pool.data_room());
        let smallest = smallest.ok_or_else(|| ConfigureError::NoPool(spec.clone()))?;
        let needed = u32::from(mtu).saturating_add(overhead);
        let scatter = sys::WEIR_RTE_ETH_RX_OFFLOAD_SCATTER;
        let mut rx_offloads = 0;
        if u32::from(smallest.data_room()) < needed {
            if info.rx_offload_capa & scatter == 0 {
                let (pool, data_room) = (smallest.name().to_owned(), smallest.data_room());
                return Err(ConfigureError::PoolTooSmall {
                    device: spec.clone(),
                    pool,
                    data_room,
                    mtu,
                    needed,
                });
            }
            rx_offloads |= scatter;
        }

        let rx = |wanted: bool, bits: u64| wanted && info.rx_offload_capa & bits == bits;
        let tx = |wanted: bool, bits: u64| wanted && info.tx_offload_capa & bits == bits;
        let rx_l4_bits = sys::WEIR_RTE_ETH_RX_OFFLOAD_TCP_CKSUM | sys::WEIR_RTE_ETH_RX_OFFLOAD_UDP_CKSUM;
        let offloads = Offloads {
            rx_ipv4: rx(wish.offloads.rx_ipv4, sys::WEIR_RTE_ETH_RX_OFFLOAD_IPV4_CKSUM),
            rx_l4: rx(wish.offloads.rx_l4, rx_l4_bits),
            tx_ipv4: tx(wish.offloads.tx_ipv4, sys::WEIR_RTE_ETH_TX_OFFLOAD_IPV4_CKSUM),
            tx_tcp: tx(wish.offloads.tx_tcp, sys::WEIR_RTE_ETH_TX_OFFLOAD_TCP_CKSUM),
            tx_udp: tx(wish.offloads.tx_udp, sys::WEIR_RTE_ETH_TX_OFFLOAD_UDP_CKSUM),
        };
        let any =
            |pairs: &[(bool, u64)]| pairs.iter().filter(|(on, _)| *on).fold(0, |sum, (_, bits)| sum | bits);
        let fields = sys::WEIR_RTE_ETH_RSS_IP | sys::WEIR_RTE_ETH_RSS_TCP | sys::WEIR_RTE_ETH_RSS_UDP;
        let rss_fields = if wish.rss && rx_queues > 1 { fields & info.flow_type_rss_offloads } else { 0 };
        rx_offloads |= any(&[
            (offloads.rx_ipv4, sys::WEIR_RTE_ETH_RX_OFFLOAD_IPV4_CKSUM),
            (offloads.rx_l4, rx_l4_bits),
            (
                rx(rss_fields != 0, sys::WEIR_RTE_ETH_RX_OFFLOAD_RSS_HASH),
                sys::WEIR_RTE_ETH_RX_OFFLOAD_RSS_HASH,
            ),
        ]);
        let multi_segment = sys::WEIR_RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
        let tx_offloads = any(&[
            (offloads.tx_ipv4, sys::WEIR_RTE_ETH_TX_OFFLOAD_IPV4_CKSUM),
            (offloads.tx_tcp, sys::WEIR_RTE_ETH_TX_OFFLOAD_TCP_CKSUM),
            (offloads.tx_udp, sys::WEIR_RTE_ETH_TX_OFFLOAD_UDP_CKSUM),
            (tx(true, multi_segment), multi_segment),
        ]);
        let key = wish.rss_key.clone().filter(|key| key.len() == usize::from(info.hash_key_size));
        Ok(Self {
            rx_queues,
            tx_queues,
            mtu,
            max_mtu,
            overhead,
            rx_offloads,
            tx_offloads,
            rss_fields,
            key,
            offloads,
        })
    }
}

/// What must be checked of each packet before this device's driver sees it.
fn tx_limit(spec: &DeviceSpec, granted: &Capabilities, pools: &[PacketPool]) -> Option<TxLimit> {
    let gather = !granted.multi_segment_tx;
    match spec {
        // They free, pass on or read packets of any form.
        DeviceSpec::Null { .. } | DeviceSpec::Ring(_) | DeviceSpec::Pcap { .. } => None,
        DeviceSpec::AfXdp(_) => {
            let room = pools.iter().map(PacketPool::data_room).min().unwrap_or(0);
            Some(TxLimit { gather, packet_len: usize::from(room) })
        }
        _ => gather.then_some(TxLimit { gather, packet_len: usize::MAX }),
    }
}

/// Bytes around an MTU, by the rule of DPDK's own check (eth_dev_get_overhead_len).
fn overhead(info: &sys::rte_eth_dev_info) -> u32 {
    if info.max_mtu != u16::MAX && info.max_rx_pktlen > u32::from(info.max_mtu) {
        info.max_rx_pktlen - u32::from(info.max_mtu)
    } else {
        ETHERNET_OVERHEAD
    }
}

fn driver_name(info: &sys::rte_eth_dev_info) -> String {
    if info.driver_name.is_null() {
        return String::new();
    }
    // SAFETY: not NULL, so it is the driver's NUL-terminated name in static storage.
    unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
}

/// What the device tells of its spreading; what it does not tell stays as asked for.
fn read_rss(port: u16, reta_size: u16, asked: Rss) -> Rss {
    let mut rss = asked;
    let mut key = [0_u8; KEY_LIMIT];
    let mut conf = sys::rte_eth_rss_conf { rss_key: key.as_mut_ptr(), rss_key_len: u8::MAX, rss_hf: 0 };
    // SAFETY: the key has room for the length given, and the longest that a driver can have.
    if unsafe { sys::rte_eth_dev_rss_hash_conf_get(port, &raw mut conf) } == 0 && conf.rss_hf != 0 {
        rss.fields = conf.rss_hf;
        if conf.rss_key_len != u8::MAX {
            rss.key = key.iter().copied().take(usize::from(conf.rss_key_len)).collect();
        }
    }
    let group = sys::WEIR_RTE_ETH_RETA_GROUP_SIZE as usize;
    let asked_for = sys::rte_eth_rss_reta_entry64 { mask: u64::MAX, reta: [0; 64] };
    let mut table = vec![asked_for; usize::from(reta_size).div_ceil(group)];
    // SAFETY: the table has an entry for each 64 buckets of the size that the driver reported.
    if reta_size > 0 && unsafe { sys::rte_eth_dev_rss_reta_query(port, table.as_mut_ptr(), reta_size) } == 0 {
        rss.reta = table.iter().flat_map(|entry| entry.reta).take(usize::from(reta_size)).collect();
    }
    rss
}
