//! One end of a link as a packet socket sees it: sends frames as they are, shows what arrives.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use weir_os::packet_socket::PacketSocket;

use crate::interrupt;
use crate::topology::namespace::Namespace;
use crate::traffic::frames::Mac;

/// A packet socket in a namespace.
#[derive(Debug)]
pub(crate) struct Probe {
    socket: PacketSocket,
    mac: Mac,
}

/// The Ethernet address of an interface.
pub(crate) fn mac_of(namespace: &Namespace, interface: &str) -> Result<Mac> {
    Ok(namespace.run(|| weir_os::interface::mac(interface))??)
}

impl Probe {
    /// On that interface; frames that the host itself sends are not shown.
    pub(crate) fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let socket = namespace.run(|| PacketSocket::open(interface))??;
        socket.ignore_outgoing(true)?;
        socket.set_receive_buffer(8 << 20)?;
        Ok(Self { socket, mac: mac_of(namespace, interface)? })
    }

    /// The interface's own address.
    pub(crate) fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends a frame.
    pub(crate) fn send(&self, frame: &[u8]) -> Result<()> {
        Ok(self.socket.send(frame)?)
    }

    /// Waits for a frame of which `pick` makes something.
    pub(crate) fn expect<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut pick: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + deadline;
        let mut buffer = vec![0u8; 65_536];
        while Instant::now() < end {
            interrupt::check()?;
            if let Some(received) = self.socket.receive(&mut buffer, Duration::from_millis(50))?
                && let Some(value) = pick(&buffer[..received.length])
            {
                return Ok(value);
            }
        }
        bail!("waited {:.1} s for {what}", deadline.as_secs_f64())
    }
}

/// Views of a frame for predicates: offsets by hand, nothing checked but lengths.
pub(crate) mod view {
    /// Ether type and what follows it, a VLAN tag skipped but told.
    pub(crate) fn network(frame: &[u8]) -> Option<(u16, Option<u16>, &[u8])> {
        let kind = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        if kind == 0x8100 {
            let tag = u16::from_be_bytes(frame.get(14..16)?.try_into().ok()?) & 0xfff;
            return Some((
                u16::from_be_bytes(frame.get(16..18)?.try_into().ok()?),
                Some(tag),
                frame.get(18..)?,
            ));
        }
        Some((kind, None, frame.get(14..)?))
    }

    /// Protocol and payload of an IP packet without extension headers.
    pub(crate) fn transport(packet: &[u8]) -> Option<(u8, &[u8])> {
        match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet.first()? & 0xf) * 4;
                let total = usize::from(u16::from_be_bytes(packet.get(2..4)?.try_into().ok()?));
                Some((*packet.get(9)?, packet.get(header..total.min(packet.len()))?))
            }
            6 => Some((*packet.get(6)?, packet.get(40..)?)),
            _ => None,
        }
    }

    /// Source and destination port.
    pub(crate) fn ports(segment: &[u8]) -> Option<(u16, u16)> {
        let word = |at: usize| Some(u16::from_be_bytes(segment.get(at..at + 2)?.try_into().ok()?));
        Some((word(0)?, word(2)?))
    }

    /// The MSS option of a TCP segment (RFC 9293 §3.2: kind 2, length 4).
    pub(crate) fn mss(segment: &[u8]) -> Option<u16> {
        let end = usize::from(segment.get(12)? >> 4) * 4;
        let mut at = 20;
        while at < end {
            match segment.get(at)? {
                0 => return None,
                1 => at += 1,
                2 => return Some(u16::from_be_bytes(segment.get(at + 2..at + 4)?.try_into().ok()?)),
                _ => at += usize::from(*segment.get(at + 1)?).max(2),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::view;
    use crate::traffic::frames::{Ip, Link, Tcp, flag};

    #[test]
    fn the_mss_is_found_behind_other_options() {
        let ip = Ip::new(std::net::Ipv4Addr::new(198, 18, 0, 1), std::net::Ipv4Addr::new(198, 18, 0, 2));
        let packet = ip.tcp(&Tcp::new((7, 8), flag::SYN).options(&[1, 1, 4, 2, 2, 4, 5, 180]));
        let frame = Link { vlan: Some(9), ..Link::new([2; 6], [4; 6]) }.ip(&packet);
        let (kind, tag, packet) = view::network(&frame).unwrap();
        let (protocol, segment) = view::transport(packet).unwrap();
        assert_eq!((kind, tag, protocol), (0x0800, Some(9), 6));
        assert_eq!((view::ports(segment), view::mss(segment)), (Some((7, 8)), Some(1_460)));
    }
}
