//! What is a network interface's state, and how is it changed?
//!
//! Interfaces are looked up in the network namespace of the calling thread.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use crate::OsError;

/// The longest interface name (IFNAMSIZ is 16 with the NUL).
pub const NAME_LIMIT: usize = 15;

/// The kernel's index of the interface.
///
/// # Errors
/// When there is none of that name in this namespace.
pub fn index(name: &str) -> Result<u32, OsError> {
    let socket = control_socket()?;
    rustix::net::netdevice::name_to_index(&socket, name)
        .map_err(|errno| OsError::new(format!("find interface {name}"), errno))
}

/// The name of the interface of an index; `None`: there is none in this namespace.
///
/// # Errors
/// Without a socket to ask with.
pub fn name(index: u32) -> Result<Option<String>, OsError> {
    let socket = control_socket()?;
    match rustix::net::netdevice::index_to_name(&socket, index) {
        Ok(name) => Ok(Some(name)),
        Err(rustix::io::Errno::NODEV | rustix::io::Errno::NXIO) => Ok(None),
        Err(errno) => Err(OsError::new(format!("find the interface of index {index}"), errno)),
    }
}

/// Whether the interface is administratively up.
///
/// # Errors
/// When there is none of that name.
pub fn is_up(name: &str) -> Result<bool, OsError> {
    Ok(flags(name)? & libc::IFF_UP != 0)
}

/// Sets the interface up or down.
///
/// # Errors
/// When there is none of that name, or without CAP_NET_ADMIN.
pub fn set_up(name: &str, up: bool) -> Result<(), OsError> {
    let wanted = if up { libc::IFF_UP } else { 0 };
    let mut request = request(name)?;
    // The kernel's flags in this call are 16 bits wide.
    request.ifr_ifru.ifru_flags = (flags(name)? & !libc::IFF_UP | wanted) as i16;
    let word = if up { "up" } else { "down" };
    call(libc::SIOCSIFFLAGS, &mut request, || format!("set interface {name} {word}"))
}

/// Largest packet in bytes, without the Ethernet header.
///
/// # Errors
/// When there is none of that name.
pub fn mtu(name: &str) -> Result<u32, OsError> {
    let mut request = request(name)?;
    call(libc::SIOCGIFMTU, &mut request, || format!("read the MTU of interface {name}"))?;
    // SAFETY: SIOCGIFMTU filled in ifru_mtu.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    Ok(u32::try_from(mtu).unwrap_or(0))
}

/// Sets [`mtu`].
///
/// # Errors
/// When there is none of that name, its driver can't, or without CAP_NET_ADMIN.
pub fn set_mtu(name: &str, mtu: u32) -> Result<(), OsError> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = i32::try_from(mtu).unwrap_or(i32::MAX);
    call(libc::SIOCSIFMTU, &mut request, || format!("set the MTU of interface {name} to {mtu}"))
}

/// The Ethernet address.
///
/// # Errors
/// When there is none of that name.
pub fn mac(name: &str) -> Result<[u8; 6], OsError> {
    let mut request = request(name)?;
    call(libc::SIOCGIFHWADDR, &mut request, || format!("read the address of interface {name}"))?;
    // SAFETY: SIOCGIFHWADDR filled in ifru_hwaddr.
    let data = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    let mut address = [0; 6];
    for (byte, &from) in address.iter_mut().zip(&data) {
        *byte = from.cast_unsigned();
    }
    Ok(address)
}

/// Sets [`mac`].
///
/// # Errors
/// When there is none of that name, the address is not a unicast one, or without CAP_NET_ADMIN.
pub fn set_mac(name: &str, address: [u8; 6]) -> Result<(), OsError> {
    let mut request = request(name)?;
    // SAFETY: an all-zero sockaddr is valid.
    let mut hardware: libc::sockaddr = unsafe { std::mem::zeroed() };
    hardware.sa_family = libc::ARPHRD_ETHER;
    for (to, byte) in hardware.sa_data.iter_mut().zip(address) {
        *to = byte.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = hardware;
    call(libc::SIOCSIFHWADDR, &mut request, || {
        format!("set the address of interface {name} to {address:02x?}")
    })
}

fn flags(name: &str) -> Result<i32, OsError> {
    let mut request = request(name)?;
    call(libc::SIOCGIFFLAGS, &mut request, || format!("read the state of interface {name}"))?;
    // SAFETY: SIOCGIFFLAGS filled in ifru_flags.
    Ok(i32::from(unsafe { request.ifr_ifru.ifru_flags }))
}

/// A request that names the interface and is zero otherwise.
pub(crate) fn request(name: &str) -> Result<libc::ifreq, OsError> {
    if name.is_empty() || name.len() > NAME_LIMIT || name.contains('\0') {
        let reason = std::io::Error::new(std::io::ErrorKind::InvalidInput, "a name has 1 to 15 bytes");
        return Err(OsError::new(format!("use interface {name:?}"), reason));
    }
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = byte.cast_signed();
    }
    Ok(request)
}

fn control_socket() -> Result<OwnedFd, OsError> {
    socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| OsError::new("open a control socket", errno))
}

fn call(
    number: libc::c_ulong,
    request: &mut libc::ifreq,
    operation: impl FnOnce() -> String,
) -> Result<(), OsError> {
    let socket = control_socket()?;
    // SAFETY: the callers pass SIOC[GS]IF* numbers, which read and write one struct ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number as _, &raw mut *request) } < 0 {
        return Err(OsError::last(operation()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_tells_about_itself() {
        assert!(index("lo").unwrap() > 0);
        assert_eq!(name(index("lo").unwrap()).unwrap().as_deref(), Some("lo"));
        assert_eq!(name(u32::MAX >> 1).unwrap(), None);
        assert!(mtu("lo").unwrap() >= 1500);
        assert_eq!(mac("lo").unwrap(), [0; 6]);
    }

    #[test]
    fn a_missing_interface_is_named() {
        for error in
            [index("weir-none0").map(|_| ()), is_up("weir-none0").map(|_| ()), mtu("weir-none0").map(|_| ())]
        {
            let error = error.unwrap_err();
            assert!(error.to_string().contains("weir-none0"), "{error}");
        }
        assert!(mtu("a-name-that-is-too-long").is_err());
    }
}
