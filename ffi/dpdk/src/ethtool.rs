//! How many receive queues does a kernel interface have?

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::text::{Errno, into_array};

/// linux/ethtool.h: ETHTOOL_GCHANNELS.
const GET_CHANNELS: u32 = 0x3c;
/// linux/sockios.h: SIOCETHTOOL.
const ETHTOOL: libc::c_ulong = 0x8946;

/// linux/ethtool.h: struct ethtool_channels.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Queues of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Queues {
    /// How many of them receive.
    pub(crate) receive: u32,
    /// How many net_af_xdp can bind: it counts combined queues and takes a driver without any for one queue.
    pub(crate) bindable: u32,
}

/// Asks the driver; one that can't tell has one queue.
pub(crate) fn queues(interface: &str) -> Result<Queues, Errno> {
    // SAFETY: socket creates a descriptor or fails.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is fresh, valid and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    into_array(interface, &mut request.ifr_name);
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    // SAFETY: SIOCETHTOOL with ETHTOOL_GCHANNELS writes one struct ethtool_channels, which outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL as _, &raw mut request) } < 0 {
        let error = last_error();
        return if error.0 == libc::EOPNOTSUPP { Ok(Queues { receive: 1, bindable: 1 }) } else { Err(error) };
    }
    let bindable = if channels.max_combined == 0 { 1 } else { channels.combined.max(1) };
    Ok(Queues { receive: (channels.combined + channels.rx).max(1), bindable })
}

fn last_error() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}
