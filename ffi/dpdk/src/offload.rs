//! What did the NIC find out about checksums, and how is it asked to fill them in?

use dpdk_sys as sys;

/// What the NIC says about one checksum of a received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It did not look: check in software.
    Unknown,
    /// Right.
    Good,
    /// Wrong.
    Bad,
    /// The data are sound, but the field in the packet is not filled in (virtual devices).
    Absent,
}

/// Which checksums to fill in on transmit. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxChecksum {
    /// Ethernet header with VLAN tags.
    pub l2_len: u8,
    /// IP header with options or extension headers.
    pub l3_len: u16,
    /// IPv6, which has no header checksum, rather than IPv4.
    pub ipv6: bool,
    /// The IPv4 header checksum.
    pub ip: bool,
    /// The transport's.
    pub l4: TxL4,
}

/// Which transport checksum to fill in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxL4 {
    /// None.
    None,
    /// TCP's.
    Tcp,
    /// UDP's.
    Udp,
}

/// The flags that a request replaces.
pub(crate) const TX_MASK: u64 = sys::WEIR_RTE_MBUF_F_TX_IPV4
    | sys::WEIR_RTE_MBUF_F_TX_IPV6
    | sys::WEIR_RTE_MBUF_F_TX_IP_CKSUM
    | sys::WEIR_RTE_MBUF_F_TX_L4_MASK;

/// Whether one of the checksums is wrong: what is asked of every packet, without a branch for each answer.
#[inline(always)]
pub(crate) fn is_corrupt(flags: u64) -> bool {
    let ip = flags & sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_MASK == sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_BAD;
    let l4 = flags & sys::WEIR_RTE_MBUF_F_RX_L4_CKSUM_MASK == sys::WEIR_RTE_MBUF_F_RX_L4_CKSUM_BAD;
    ip | l4
}

/// Whether the IPv4 header checksum is right.
#[inline(always)]
pub(crate) fn is_ip_checked(flags: u64) -> bool {
    flags & sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_MASK == sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_GOOD
}

pub(crate) fn ip_checksum(flags: u64) -> Checksum {
    match flags & sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_MASK {
        0 => Checksum::Unknown,
        sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_GOOD => Checksum::Good,
        sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_BAD => Checksum::Bad,
        _ => Checksum::Absent,
    }
}

pub(crate) fn l4_checksum(flags: u64) -> Checksum {
    match flags & sys::WEIR_RTE_MBUF_F_RX_L4_CKSUM_MASK {
        0 => Checksum::Unknown,
        sys::WEIR_RTE_MBUF_F_RX_L4_CKSUM_GOOD => Checksum::Good,
        sys::WEIR_RTE_MBUF_F_RX_L4_CKSUM_BAD => Checksum::Bad,
        _ => Checksum::Absent,
    }
}

/// The flags and the packed header lengths of a request; `None` where a length does not fit.
pub(crate) fn tx_request(request: TxChecksum) -> Option<(u64, u64)> {
    let l2_len = u64::from(request.l2_len);
    let l3_len = u64::from(request.l3_len);
    if l2_len >> sys::WEIR_RTE_MBUF_L2_LEN_BITS != 0 || l3_len >> sys::WEIR_RTE_MBUF_L3_LEN_BITS != 0 {
        return None;
    }
    let family = if request.ipv6 { sys::WEIR_RTE_MBUF_F_TX_IPV6 } else { sys::WEIR_RTE_MBUF_F_TX_IPV4 };
    let header = if request.ip && !request.ipv6 { sys::WEIR_RTE_MBUF_F_TX_IP_CKSUM } else { 0 };
    let transport = match request.l4 {
        TxL4::None => 0,
        TxL4::Tcp => sys::WEIR_RTE_MBUF_F_TX_TCP_CKSUM,
        TxL4::Udp => sys::WEIR_RTE_MBUF_F_TX_UDP_CKSUM,
    };
    Some((family | header | transport, l2_len | l3_len << sys::WEIR_RTE_MBUF_L2_LEN_BITS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receive_flags_have_four_meanings() {
        let (good, bad) = (sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_GOOD, sys::WEIR_RTE_MBUF_F_RX_IP_CKSUM_BAD);
        assert_eq!(ip_checksum(0), Checksum::Unknown);
        assert_eq!(ip_checksum(good), Checksum::Good);
        assert_eq!(ip_checksum(bad), Checksum::Bad);
        assert_eq!(ip_checksum(good | bad), Checksum::Absent);
        assert_eq!(l4_checksum(good | bad), Checksum::Unknown, "the IP flags say nothing about L4");
        assert_eq!(l4_checksum(sys::WEIR_RTE_MBUF_F_RX_L4_CKSUM_BAD), Checksum::Bad);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let request = TxChecksum { l2_len: 14, l3_len: 20, ipv6: false, ip: true, l4: TxL4::Tcp };
        assert_eq!(tx_request(request).map(|(_, lengths)| lengths), Some(14 | 20 << 7));
        assert_eq!(tx_request(TxChecksum { l2_len: 128, ..request }), None);
        assert_eq!(tx_request(TxChecksum { l3_len: 512, ..request }), None);
    }

    #[test]
    fn ipv6_never_asks_for_a_header_checksum() {
        let request = TxChecksum { l2_len: 14, l3_len: 40, ipv6: true, ip: true, l4: TxL4::Udp };
        let flags = tx_request(request).unwrap().0;
        assert_eq!(flags & sys::WEIR_RTE_MBUF_F_TX_IP_CKSUM, 0);
        assert_eq!(flags & sys::WEIR_RTE_MBUF_F_TX_L4_MASK, sys::WEIR_RTE_MBUF_F_TX_UDP_CKSUM);
    }
}
