//! Which ICMPv6 messages does a balancer meet (RFC 4443), and what is their checksum?

use crate::checksum;
use crate::types::Protocol;

/// RFC 4443 §3.1.
pub const DESTINATION_UNREACHABLE: u8 = 1;
/// RFC 4443 §3.2.
pub const PACKET_TOO_BIG: u8 = 2;
/// RFC 4443 §3.3.
pub const TIME_EXCEEDED: u8 = 3;
/// RFC 4443 §3.4.
pub const PARAMETER_PROBLEM: u8 = 4;
/// RFC 4443 §4.1.
pub const ECHO_REQUEST: u8 = 128;
/// RFC 4443 §4.2.
pub const ECHO_REPLY: u8 = 129;
/// RFC 2710 §3: multicast listener query; reports and done follow up to 132.
pub const LISTENER_QUERY: u8 = 130;
/// RFC 2710 §3: multicast listener done.
pub const LISTENER_DONE: u8 = 132;
/// RFC 4861 §4.1.
pub const ROUTER_SOLICITATION: u8 = 133;
/// RFC 4861 §4.2.
pub const ROUTER_ADVERTISEMENT: u8 = 134;
/// RFC 4861 §4.3.
pub const NEIGHBOR_SOLICITATION: u8 = 135;
/// RFC 4861 §4.4.
pub const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// RFC 4861 §4.5.
pub const REDIRECT: u8 = 137;
/// RFC 3810 §5.2: version 2 multicast listener report.
pub const LISTENER_REPORT_V2: u8 = 143;

/// RFC 4443 §2.1: error messages have types below 128.
#[inline(always)]
pub const fn is_error(kind: u8) -> bool {
    kind < 128
}

/// Whether a node without an address may send this type from the unspecified one: duplicate address detection and
/// router solicitation (RFC 4861 §4.1, §4.3), and listener reports (RFC 3590 §3, RFC 3810 §5.2.13).
#[inline]
pub const fn may_be_unspecified(kind: u8) -> bool {
    matches!(kind, 131 | LISTENER_DONE | LISTENER_REPORT_V2 | ROUTER_SOLICITATION | NEIGHBOR_SOLICITATION)
}

/// The checksum of a message whose own checksum field is zero, RFC 4443 §2.3.
pub fn checksum(src: &[u8; 16], dst: &[u8; 16], message: &[u8]) -> u16 {
    let len = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let pseudo = checksum::pseudo_v6(src, dst, Protocol::ICMPV6, len);
    !checksum::fold(u64::from(pseudo) + u64::from(checksum::sum(message)))
}
