//! How are raw Ethernet frames put into and taken out of a kernel interface?
//!
//! For tests and tools: the packet path uses DPDK. Frames are complete, from the destination address on, without the
//! frame check sequence; a VLAN tag that the kernel took off is put back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{OsError, interface};

/// linux/if_ether.h: every protocol.
const ETH_P_ALL: u16 = 0x0003;
/// linux/if_ether.h: 802.1Q, for tags whose protocol the kernel does not tell.
const ETH_P_8021Q: u16 = 0x8100;
// linux/if_packet.h
const PACKET_AUXDATA: libc::c_int = 8;
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
/// Bytes of the two Ethernet addresses, after which a tag stands (IEEE 802.1Q §9.3).
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// linux/if_packet.h: struct tpacket_auxdata.
#[repr(C)]
#[derive(Clone, Copy)]
struct AuxiliaryData {
    status: u32,
    length: u32,
    captured: u32,
    mac: u16,
    net: u16,
    vlan_tci: u16,
    vlan_tpid: u16,
}

/// A raw socket on one interface.
#[derive(Debug)]
pub struct PacketSocket {
    file: OwnedFd,
    interface: String,
}

/// A received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in the buffer.
    pub length: usize,
    /// Whether the frame was longer than the buffer and lost its end.
    pub truncated: bool,
    /// Whether the host itself sent the frame, which it did before this socket saw it.
    pub outgoing: bool,
}

impl PacketSocket {
    /// Opens a socket that sees every frame which comes in on the interface, for whatever address.
    ///
    /// # Errors
    /// When there is no such interface in this namespace, or without CAP_NET_RAW.
    pub fn open(interface: &str) -> Result<Self, OsError> {
        let index = interface::index(interface)?;
        let operation = || format!("open a packet socket on interface {interface}");
        // Protocol 0: nothing is received before the socket is bound, so no other interface's frames are.
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket creates a descriptor or fails.
        let file = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if file < 0 {
            return Err(OsError::last(operation()));
        }
        // SAFETY: the descriptor is fresh, valid and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        let socket = Self { file, interface: interface.to_owned() };
        socket.set_option(PACKET_AUXDATA, &1_i32, "ask for VLAN tags")?;
        // SAFETY: an all-zero packet_mreq is valid.
        let mut membership: libc::packet_mreq = unsafe { std::mem::zeroed() };
        membership.mr_ifindex = i32::try_from(index).unwrap_or(0);
        membership.mr_type = libc::PACKET_MR_PROMISC as u16;
        socket.set_option(libc::PACKET_ADD_MEMBERSHIP, &membership, "be promiscuous")?;
        // SAFETY: an all-zero sockaddr_ll is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ETH_P_ALL.to_be();
        address.sll_ifindex = membership.mr_ifindex;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: bind reads one sockaddr_ll of that length.
        if unsafe { libc::bind(socket.file.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
            return Err(OsError::last(operation()));
        }
        Ok(socket)
    }

    /// Whether frames that this host sends out of the interface are hidden. They are seen at first.
    ///
    /// # Errors
    /// Before Linux 4.20.
    pub fn ignore_outgoing(&self, ignore: bool) -> Result<(), OsError> {
        self.set_option(PACKET_IGNORE_OUTGOING, &i32::from(ignore), "ignore outgoing frames")
    }

    /// How many bytes the kernel keeps until they are received. It may grant less without CAP_NET_ADMIN.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<(), OsError> {
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&self.file, bytes)
            .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&self.file, bytes))
            .map_err(|errno| {
                OsError::new(format!("keep {bytes} bytes for interface {}", self.interface), errno)
            })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// When the interface is down, or the frame too long or too short.
    pub fn send(&self, frame: &[u8]) -> Result<(), OsError> {
        loop {
            match rustix::net::send(&self.file, frame, rustix::net::SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    let operation = format!("send {} bytes on interface {}", frame.len(), self.interface);
                    return Err(OsError::new(operation, errno));
                }
            }
        }
    }

    /// Receives one frame, waiting no longer than that; `None` when none came.
    ///
    /// # Errors
    /// When the interface goes down or away.
    pub fn receive(&self, buffer: &mut [u8], timeout: Duration) -> Result<Option<Received>, OsError> {
        let failed =
            |error: std::io::Error| OsError::new(format!("receive from interface {}", self.interface), error);
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(received) = self.try_receive(buffer).map_err(failed)? {
                return Ok(Some(received));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&self.file, PollFlags::IN)], Some(&wait)) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    fn try_receive(&self, buffer: &mut [u8]) -> std::io::Result<Option<Received>> {
        // A control message with the auxiliary data, aligned as its header wants.
        let mut control = [0_u64; 16];
        // SAFETY: an all-zero sockaddr_ll is valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut room = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = (&raw mut address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        message.msg_iov = &raw mut room;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        // SAFETY: every pointer of the message covers the length beside it and outlives the call.
        let length = unsafe { libc::recvmsg(self.file.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(length) = usize::try_from(length) else {
            let error = std::io::Error::last_os_error();
            let again =
                matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted);
            return if again { Ok(None) } else { Err(error) };
        };
        let mut received = Received {
            length,
            truncated: message.msg_flags & libc::MSG_TRUNC != 0,
            outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
        };
        if let Some(tag) = vlan_tag(&message) {
            insert_tag(buffer, &mut received, tag);
        }
        Ok(Some(received))
    }

    fn set_option<T>(&self, option: libc::c_int, value: &T, purpose: &str) -> Result<(), OsError> {
        let length = size_of::<T>() as libc::socklen_t;
        // SAFETY: the kernel reads `length` bytes of the value.
        let code = unsafe {
            libc::setsockopt(
                self.file.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(value).cast(),
                length,
            )
        };
        if code < 0 {
            return Err(OsError::last(format!("{purpose} on interface {}", self.interface)));
        }
        Ok(())
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The tag that the kernel took off, as it stood in the frame.
fn vlan_tag(message: &libc::msghdr) -> Option<[u8; TAG]> {
    // SAFETY: recvmsg has filled in the message and its control buffer.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not NULL, so it is a whole header inside the control buffer.
        let (level, kind, length) =
            unsafe { ((*header).cmsg_level, (*header).cmsg_type, (*header).cmsg_len as usize) };
        // SAFETY: CMSG_LEN only computes.
        let whole = unsafe { libc::CMSG_LEN(size_of::<AuxiliaryData>() as u32) } as usize;
        if level == libc::SOL_PACKET && kind == PACKET_AUXDATA && length >= whole {
            // SAFETY: the length says that all of the data are there.
            let data = unsafe { libc::CMSG_DATA(header).cast::<AuxiliaryData>().read_unaligned() };
            if data.status & TP_STATUS_VLAN_VALID == 0 {
                return None;
            }
            let told = data.status & TP_STATUS_VLAN_TPID_VALID != 0;
            let [high, low] = if told { data.vlan_tpid } else { ETH_P_8021Q }.to_be_bytes();
            let [tci_high, tci_low] = data.vlan_tci.to_be_bytes();
            return Some([high, low, tci_high, tci_low]);
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

fn insert_tag(buffer: &mut [u8], received: &mut Received, tag: [u8; TAG]) {
    if received.length < ADDRESSES {
        return;
    }
    let longer = received.length + TAG;
    let length = longer.min(buffer.len());
    received.truncated |= length < longer;
    let Some(rest) = buffer.get_mut(ADDRESSES..length) else { return };
    let moved = rest.len().saturating_sub(TAG);
    rest.copy_within(..moved, rest.len() - moved);
    for (to, byte) in rest.iter_mut().zip(tag) {
        *to = byte;
    }
    received.length = length;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_goes_back_behind_the_addresses() {
        let mut buffer = [0; 24];
        for (at, byte) in buffer.iter_mut().enumerate().take(16) {
            *byte = at as u8;
        }
        let mut received = Received { length: 16, truncated: false, outgoing: false };
        insert_tag(&mut buffer, &mut received, [0x81, 0, 0, 100]);
        assert_eq!(received, Received { length: 20, truncated: false, outgoing: false });
        assert_eq!(buffer[..20], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x81, 0, 0, 100, 12, 13, 14, 15]);
    }

    #[test]
    fn a_tag_that_does_not_fit_cuts_the_frame() {
        for room in 12..20 {
            let mut buffer: Vec<u8> = (0..room).collect();
            let mut received =
                Received { length: usize::from(room).min(16), truncated: false, outgoing: false };
            insert_tag(&mut buffer, &mut received, [0x81, 0, 0, 100]);
            assert_eq!((received.length, received.truncated), (usize::from(room), true), "room {room}");
        }
    }
}
