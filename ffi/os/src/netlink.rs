//! How does the program ask the kernel about addresses, routes and rules, and change them? Netlink of the family ROUTE.
//!
//! Bodies are written and read by the caller, attribute by attribute; this module frames them. All in the network namespace of the
//! thread that opened the socket.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

use crate::OsError;

// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Fail where it is there already.
pub const EXCLUSIVE: u16 = 0x200;
/// Put in the place of what is there.
pub const REPLACE: u16 = 0x100;
/// Make it where it is not there.
pub const CREATE: u16 = 0x400;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
const ALIGNMENT: usize = 4;
/// The kernel's longest part of a dump.
const RECEIVE: usize = 64 << 10;

/// A request's body: a fixed header, then attributes.
#[derive(Clone, Debug, Default)]
pub struct Body(Vec<u8>);

impl Body {
    /// A body that starts with these bytes.
    pub fn new(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// Adds an attribute. What is longer than an attribute can be is left out.
    #[must_use]
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        if let Ok(length) = u16::try_from(ATTRIBUTE_HEADER + value.len()) {
            self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
            self.0.extend(length.to_ne_bytes());
            self.0.extend(kind.to_ne_bytes());
            self.0.extend(value);
        }
        self
    }
}

/// One message of an answer.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its type.
    pub kind: u16,
    /// Fixed header and attributes.
    pub body: Vec<u8>,
}

/// The attributes after a fixed header of so many bytes; ends at the first that is broken.
pub fn attributes(body: &[u8], header: usize) -> impl Iterator<Item = (u16, &[u8])> {
    /// Nested and byte order flags.
    const FLAGS: u16 = 0xc000;
    let mut rest = body.get(header.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    std::iter::from_fn(move || {
        let &[a, b, c, d] = rest.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !FLAGS, value))
    })
}

/// A socket to the kernel's tables.
#[derive(Debug)]
pub struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// Without netlink.
    pub fn open() -> Result<Self, OsError> {
        // its protocol is 0, ROUTE, when none is named
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(|errno| OsError::new("open a netlink socket", errno))?;
        let on: libc::c_int = 1;
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option's value is one int, which outlives the call.
        let strict = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                NETLINK_GET_STRICT_CHK,
                (&raw const on).cast(),
                length,
            )
        };
        if strict < 0 {
            return Err(OsError::last("have netlink filter what it dumps (Linux 4.20)"));
        }
        Ok(Self { socket, sequence: 0, buffer: vec![0; RECEIVE] })
    }

    /// Asks for all objects that match the body's filter.
    ///
    /// # Errors
    /// The kernel's reason, with `what`.
    pub fn dump(&mut self, kind: u16, body: &Body, what: &str) -> Result<Vec<Message>, OsError> {
        self.request(kind, NLM_F_DUMP, body, what)
    }

    /// Makes, changes or deletes an object. `flags`: [`CREATE`], [`REPLACE`], [`EXCLUSIVE`].
    ///
    /// # Errors
    /// The kernel's reason, with `what`.
    pub fn change(&mut self, kind: u16, flags: u16, body: &Body, what: &str) -> Result<(), OsError> {
        self.request(kind, NLM_F_ACK | flags, body, what).map(drop)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &Body, what: &str) -> Result<Vec<Message>, OsError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(HEADER + body.0.len());
        bytes.extend(((HEADER + body.0.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(&body.0);
        send(&self.socket, &bytes, SendFlags::empty()).map_err(|errno| OsError::new(what, errno))?;
        let mut messages = Vec::new();
        loop {
            let (length, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())
                .map_err(|errno| OsError::new(what, errno))?;
            let received = self.buffer.get(..length).unwrap_or_default();
            match take(received, self.sequence, &mut messages) {
                Taken::More => {}
                Taken::Done => return Ok(messages),
                Taken::Error(0) => return Ok(messages),
                Taken::Error(code) => {
                    return Err(OsError::new(what, std::io::Error::from_raw_os_error(-code)));
                }
            }
        }
    }
}

enum Taken {
    More,
    Done,
    Error(i32),
}

/// The messages of one datagram that answer request `sequence`.
fn take(mut bytes: &[u8], sequence: u32, messages: &mut Vec<Message>) -> Taken {
    let word = |bytes: &[u8], at: usize| {
        bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_ne_bytes(*word))
    };
    while bytes.len() >= HEADER {
        let length = word(bytes, 0) as usize;
        let Some(body) = bytes.get(HEADER..length) else { return Taken::Done };
        let kind = (word(bytes, 4) & 0xffff) as u16;
        if word(bytes, 8) == sequence {
            match kind {
                NLMSG_DONE => return Taken::Done,
                NLMSG_ERROR => return Taken::Error(word(body, 0).cast_signed()),
                _ => messages.push(Message { kind, body: body.to_vec() }),
            }
        }
        bytes = bytes.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Taken::More
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTM_GETADDR: u16 = 22;
    const IFA_ADDRESS: u16 = 1;

    #[test]
    fn attributes_come_back_as_written_and_broken_ones_end_them() {
        let body = Body::new(&[1, 2, 3, 4]).with(7, &[9]).with(0x8008, b"four").with(9, &[]);
        let read: Vec<_> = attributes(&body.0, 4).collect();
        assert_eq!(read, [(7, &[9][..]), (8, &b"four"[..]), (9, &[][..])]);
        for cut in 0..body.0.len() {
            assert!(attributes(&body.0[..cut], 4).count() <= 3);
        }
        assert_eq!(attributes(&[3, 0, 1, 0], 0).count(), 0, "shorter than its own header");
    }

    #[test]
    fn the_loopback_address_is_in_a_dump() {
        // a namespace of its own may have its loopback down: then there is no address, and no error either
        let mut netlink = Netlink::open().unwrap();
        let body = Body::new(&[0; 8]);
        let messages = netlink.dump(RTM_GETADDR, &body, "list addresses").unwrap();
        let is_loopback = |message: &Message| {
            attributes(&message.body, 8).any(|(kind, value)| kind == IFA_ADDRESS && value == [127, 0, 0, 1])
        };
        if crate::interface::is_up("lo").unwrap() {
            assert!(messages.iter().any(is_loopback));
        }
        // an answer that did not end would be taken for the next one's
        let again = netlink.dump(RTM_GETADDR, &body, "list addresses").unwrap();
        assert_eq!(again.len(), messages.len());
    }

    #[test]
    fn a_refusal_says_what_was_wanted() {
        let mut netlink = Netlink::open().unwrap();
        let error = netlink.change(9_999, 0, &Body::new(&[0; 8]), "do the impossible").unwrap_err();
        assert!(error.to_string().starts_with("cannot do the impossible: "), "{error}");
    }
}
