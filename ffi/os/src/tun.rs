//! How does the program get a TUN or TAP interface of its own?
//!
//! A TUN carries IP packets, a TAP Ethernet frames, one per read and write, without any prefix. A persistent one stays,
//! with its addresses and routes, when the process ends.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};

use crate::{OsError, interface};

/// The device that makes them.
const DEVICE: &str = "/dev/net/tun";

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;

/// What an interface carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IP packets (TUN).
    Ip,
    /// Ethernet frames (TAP).
    Ethernet,
}

/// The program's end of a TUN or TAP interface. The interface goes when it is dropped, unless it is persistent.
#[derive(Debug)]
pub struct Tun {
    file: OwnedFd,
    name: String,
}

impl Tun {
    /// Makes the interface in the calling thread's network namespace, or attaches to a persistent one of that name.
    /// Reads don't wait where `nonblocking`.
    ///
    /// # Errors
    /// When the name is taken, or without CAP_NET_ADMIN or the device.
    pub fn open(name: &str, layer: Layer, nonblocking: bool) -> Result<Self, OsError> {
        let mut request = interface::request(name)?;
        let mode = if nonblocking { OFlags::NONBLOCK } else { OFlags::empty() };
        let file = open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC | mode, Mode::empty())
            .map_err(|errno| OsError::new(format!("open {DEVICE} for interface {name}"), errno))?;
        let layer_flag = match layer {
            Layer::Ip => libc::IFF_TUN,
            Layer::Ethernet => libc::IFF_TAP,
        };
        request.ifr_ifru.ifru_flags = (layer_flag | libc::IFF_NO_PI) as i16;
        // SAFETY: TUNSETIFF reads and writes one struct ifreq.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF as _, &raw mut request) } < 0 {
            return Err(OsError::last(format!("make interface {name}")));
        }
        Ok(Self { file, name: name.to_owned() })
    }

    /// Lets the interface outlive the process, or not any more.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn set_persistent(&self, persistent: bool) -> Result<(), OsError> {
        // SAFETY: TUNSETPERSIST takes an integer instead of a pointer.
        if unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETPERSIST as _, libc::c_ulong::from(persistent)) }
            < 0
        {
            return Err(OsError::last(format!("change the persistence of interface {}", self.name)));
        }
        Ok(())
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads one packet that the kernel sends out of the interface; `None` where there is none and reads don't wait.
    ///
    /// # Errors
    /// When the interface is gone.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>, OsError> {
        loop {
            match rustix::io::read(&self.file, &mut *buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(OsError::new(format!("read from interface {}", self.name), errno)),
            }
        }
    }

    /// Writes one packet, which the kernel receives on the interface. False where its queue is full and writes don't wait.
    ///
    /// # Errors
    /// When the interface is down, or the packet is no packet.
    pub fn write(&self, packet: &[u8]) -> Result<bool, OsError> {
        loop {
            match rustix::io::write(&self.file, packet) {
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => return Ok(false),
                Err(errno) => {
                    let operation = format!("write {} bytes to interface {}", packet.len(), self.name);
                    return Err(OsError::new(operation, errno));
                }
            }
        }
    }
}

/// Waits until one of the interfaces has a packet to be read, or for so long. An interface that is gone ends the wait too.
///
/// # Errors
/// When the kernel can't wait.
pub fn wait<'a>(interfaces: impl Iterator<Item = &'a Tun>, most: Duration) -> Result<(), OsError> {
    let mut fds: Vec<PollFd<'_>> = interfaces.map(|tun| PollFd::new(tun, PollFlags::IN)).collect();
    let timeout = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: most.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(OsError::new("wait for TUN and TAP interfaces", errno)),
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
