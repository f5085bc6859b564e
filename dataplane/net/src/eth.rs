//! Where does an Ethernet header keep its addresses, type and VLAN tag, and how is one written or changed?

use crate::buffer::PacketBuf;
use crate::bytes::{chunk, chunk_mut, put};
use crate::types::Mac;

/// Length of a header without a tag.
pub const HEADER_LEN: usize = 14;
/// Length of one 802.1Q tag.
pub const TAG_LEN: usize = 4;
/// Ether type of IPv4, RFC 894.
pub const IPV4: u16 = 0x0800;
/// Ether type of ARP, RFC 826.
pub const ARP: u16 = 0x0806;
/// Ether type of a VLAN tag, IEEE 802.1Q.
pub const VLAN: u16 = 0x8100;
/// Ether type of IPv6, RFC 2464 §3.
pub const IPV6: u16 = 0x86dd;
/// The bits of a tag that hold the VLAN identifier; the rest are priority and drop eligibility.
pub const VLAN_ID: u16 = 0x0fff;

/// Length of a header with or without a tag.
#[inline(always)]
pub const fn header_len(vlan: Option<u16>) -> usize {
    if vlan.is_some() { HEADER_LEN + TAG_LEN } else { HEADER_LEN }
}

/// The destination address; zero where the frame is shorter than an address.
#[inline(always)]
pub fn destination(frame: &[u8]) -> Mac {
    chunk(frame, 0).map_or(Mac::ZERO, |raw| Mac(*raw))
}

/// The source address; zero where the frame is shorter than two addresses.
#[inline(always)]
pub fn source(frame: &[u8]) -> Mac {
    chunk(frame, 6).map_or(Mac::ZERO, |raw| Mac(*raw))
}

/// Writes both addresses; false where the frame is shorter.
#[inline(always)]
pub fn set_addresses(frame: &mut [u8], destination: Mac, source: Mac) -> bool {
    let Some(raw) = chunk_mut::<12>(frame, 0) else { return false };
    raw[..6].copy_from_slice(&destination.0);
    raw[6..].copy_from_slice(&source.0);
    true
}

/// Sends a frame back where it came from.
#[inline]
pub fn swap_addresses(frame: &mut [u8]) -> bool {
    let (to, from) = (source(frame), destination(frame));
    set_addresses(frame, to, from)
}

/// Writes a whole header, tagged where `vlan` is given (priority 0), to the start of `out`. Returns its length, or `None`
/// where it does not fit.
#[inline(always)]
pub fn write(
    out: &mut [u8],
    destination: Mac,
    source: Mac,
    vlan: Option<u16>,
    ether_type: u16,
) -> Option<usize> {
    let len = header_len(vlan);
    let header = out.get_mut(..len)?;
    if !set_addresses(header, destination, source) {
        return None;
    }
    match vlan {
        None => put(header, 12, ether_type.to_be_bytes())?,
        Some(identifier) => {
            put(header, 12, VLAN.to_be_bytes())?;
            put(header, 14, (identifier & VLAN_ID).to_be_bytes())?;
            put(header, 16, ether_type.to_be_bytes())?;
        }
    }
    Some(len)
}

/// Puts an 802.1Q tag with priority 0 into an untagged frame; false where there is no headroom.
#[inline]
pub fn push_vlan<B: PacketBuf>(packet: &mut B, identifier: u16) -> bool {
    let Some(addresses) = chunk::<12>(packet.data(), 0).copied() else { return false };
    let Some(tag) = packet.prepend(TAG_LEN) else { return false };
    // `prepend` may hand out the new bytes only; the addresses move over the whole frame.
    let _ = tag;
    let frame = packet.data_mut();
    put(frame, 0, addresses)
        .and_then(|()| put(frame, 12, VLAN.to_be_bytes()))
        .and_then(|()| put(frame, 14, (identifier & VLAN_ID).to_be_bytes()))
        .is_some()
}

/// Takes the 802.1Q tag out of a tagged frame; false, and no change, where there is none.
#[inline]
pub fn pop_vlan<B: PacketBuf>(packet: &mut B) -> bool {
    let Some(header) = chunk::<18>(packet.data(), 0).copied() else { return false };
    let [addresses @ .., high, low, _, _, _, _] = header;
    if u16::from_be_bytes([high, low]) != VLAN || !packet.trim_front(TAG_LEN) {
        return false;
    }
    put::<12>(packet.data_mut(), 0, addresses).is_some()
}

/// Overwrites the VLAN identifier of a tagged frame and keeps its priority; false, and no change, where there is no tag.
#[inline]
pub fn set_vlan(frame: &mut [u8], identifier: u16) -> bool {
    let Some(raw) = chunk_mut::<4>(frame, 12) else { return false };
    let [high, low, tag @ ..] = *raw;
    if u16::from_be_bytes([high, low]) != VLAN {
        return false;
    }
    let tag = u16::from_be_bytes(tag) & !VLAN_ID | identifier & VLAN_ID;
    raw[2..].copy_from_slice(&tag.to_be_bytes());
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::VecBuf;
    use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};

    const TO: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const FROM: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn headers_read_as_smoltcp_reads_them() {
        let mut frame = [0; 20];
        assert_eq!(write(&mut frame, TO, FROM, None, IPV6), Some(14));
        let view = EthernetFrame::new_checked(&frame[..]).unwrap();
        assert_eq!(view.dst_addr(), EthernetAddress(TO.0));
        assert_eq!(view.src_addr(), EthernetAddress(FROM.0));
        assert_eq!(view.ethertype(), EthernetProtocol::Ipv6);
        assert!(swap_addresses(&mut frame));
        assert_eq!((destination(&frame), source(&frame)), (FROM, TO));
        assert_eq!(write(&mut frame[..17], TO, FROM, Some(5), IPV6), None);
    }

    #[test]
    fn tags_are_pushed_changed_and_popped() {
        let mut frame = vec![0; 30];
        write(&mut frame, TO, FROM, None, IPV4);
        frame[14..].fill(7);
        let mut packet = VecBuf::new(&frame);
        assert!(!pop_vlan(&mut packet));
        assert!(!set_vlan(packet.data_mut(), 3));
        assert!(push_vlan(&mut packet, 0x0123));
        assert_eq!(packet.data()[12..18], [0x81, 0, 1, 0x23, 8, 0]);
        packet.data_mut()[14] |= 0xa0;
        assert!(set_vlan(packet.data_mut(), 0x0fff));
        assert_eq!(packet.data()[12..18], [0x81, 0, 0xaf, 0xff, 8, 0]);
        assert!(pop_vlan(&mut packet));
        assert_eq!(packet.data(), frame);
    }
}
