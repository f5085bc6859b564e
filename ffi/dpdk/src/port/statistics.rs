//! What does a port say about itself: address, link, counters?

use dpdk_sys as sys;

use super::Port;
use crate::text::from_array;

/// The link as the driver last saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether packets can pass.
    pub up: bool,
    /// In Mbit/s; 0 where unknown.
    pub speed_mbps: u32,
    /// Whether both directions may be used at once.
    pub full_duplex: bool,
}

/// The device's own counters since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received; whether the frame check sequence counts is up to the driver.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Lost in the device because its queues were full: the workers are too slow.
    pub rx_missed: u64,
    /// Received in error.
    pub rx_errors: u64,
    /// Failed to be sent.
    pub tx_errors: u64,
    /// Lost because the pool was exhausted.
    pub rx_no_buffer: u64,
}

impl Port {
    /// The device's own Ethernet address; `None` where it has none.
    pub fn mac(&self) -> Option<[u8; 6]> {
        // SAFETY: an all-zero address is valid.
        let mut address: sys::rte_ether_addr = unsafe { std::mem::zeroed() };
        // SAFETY: writes one address; the port exists while `self` does.
        let code = unsafe { sys::rte_eth_macaddr_get(self.inner.id, &raw mut address) };
        (code == 0).then_some(address.addr_bytes)
    }

    /// The link; `None` where the driver can't tell.
    pub fn link(&self) -> Option<Link> {
        // SAFETY: an all-zero rte_eth_link is valid: down, speed unknown.
        let mut link: sys::rte_eth_link = unsafe { std::mem::zeroed() };
        // SAFETY: writes one rte_eth_link and does not wait.
        let code = unsafe { sys::rte_eth_link_get_nowait(self.inner.id, &raw mut link) };
        (code == 0).then(|| Link {
            up: link.link_status() == 1,
            // RTE_ETH_SPEED_NUM_UNKNOWN is all ones.
            speed_mbps: if link.link_speed == u32::MAX { 0 } else { link.link_speed },
            full_duplex: link.link_duplex() == 1,
        })
    }

    /// The device's counters; zero where the driver has none.
    pub fn stats(&self) -> Stats {
        // SAFETY: an all-zero rte_eth_stats is valid.
        let mut stats: sys::rte_eth_stats = unsafe { std::mem::zeroed() };
        // SAFETY: writes one rte_eth_stats; may run beside bursts.
        if unsafe { sys::rte_eth_stats_get(self.inner.id, &raw mut stats) } != 0 {
            return Stats::default();
        }
        Stats {
            rx_packets: stats.ipackets,
            tx_packets: stats.opackets,
            rx_bytes: stats.ibytes,
            tx_bytes: stats.obytes,
            rx_missed: stats.imissed,
            rx_errors: stats.ierrors,
            tx_errors: stats.oerrors,
            rx_no_buffer: stats.rx_nombuf,
        }
    }

    /// All of the driver's counters, under its own names.
    pub fn xstats(&self) -> Vec<(String, u64)> {
        let id = self.inner.id;
        // SAFETY: without room, rte_eth_xstats_get_names only returns how much is needed.
        let count = unsafe { sys::rte_eth_xstats_get_names(id, std::ptr::null_mut(), 0) };
        let Ok(count) = u32::try_from(count) else { return Vec::new() };
        // SAFETY: all-zero names are empty strings.
        let mut names = vec![unsafe { std::mem::zeroed::<sys::rte_eth_xstat_name>() }; count as usize];
        // SAFETY: all-zero values are valid.
        let mut values = vec![unsafe { std::mem::zeroed::<sys::rte_eth_xstat>() }; count as usize];
        // SAFETY: each writes at most `count` elements of a vector that has as many.
        let (named, valued) = unsafe {
            (
                sys::rte_eth_xstats_get_names(id, names.as_mut_ptr(), count),
                sys::rte_eth_xstats_get(id, values.as_mut_ptr(), count),
            )
        };
        // More than there is room for means that the set has just grown, and nothing was written.
        if named < 0 || valued < 0 || named.cast_unsigned() > count || valued.cast_unsigned() > count {
            return Vec::new();
        }
        let valued = usize::try_from(valued).unwrap_or(0);
        let name_of = |id: u64| names.get(usize::try_from(id).ok()?).map(|name| from_array(&name.name));
        values.iter().take(valued).filter_map(|stat| Some((name_of(stat.id)?, stat.value))).collect()
    }
}
