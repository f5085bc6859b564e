//! What lies between an IPv6 header and its transport header (RFC 8200 §4)?
//!
//! A walk bounded by [`MAX_EXTENSION_HEADERS`], used for packets and for the packets that ICMPv6 errors quote.

use crate::bytes::{be16, chunk};
use crate::malformed::Malformed;
use crate::parse::MAX_EXTENSION_HEADERS;
use crate::types::Protocol;

/// RFC 2675 §2: the jumbo payload option.
const OPTION_JUMBO: u8 = 0xc2;
/// RFC 8200 §4.2: one byte of padding, the only option without a length.
const OPTION_PAD1: u8 = 0;
/// RFC 5095: the routing header that lets a sender bounce packets.
const ROUTING_TYPE_SOURCE_ROUTE: u8 = 0;

/// Where a chain of extension headers ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    /// The protocol after the chain.
    pub(crate) protocol: Protocol,
    /// Its offset from the start of the IPv6 header.
    pub(crate) offset: usize,
    /// Offset in bytes of this fragment, zero for a whole packet or a first fragment.
    pub(crate) fragment_offset: u16,
    /// Whether fragments follow.
    pub(crate) more_fragments: bool,
    /// Identification of the fragmented packet, zero without a fragment header.
    pub(crate) identification: u32,
}

/// Walks the chain that starts `offset` bytes into `packet` with a header of type `next`. Stops at the first header that
/// is no extension, and after the fragment header of a later fragment, whose data continues another packet.
pub(crate) fn walk(packet: &[u8], offset: usize, next: Protocol) -> Result<Chain, Malformed> {
    let mut chain =
        Chain { protocol: next, offset, fragment_offset: 0, more_fragments: false, identification: 0 };
    for count in 0..=MAX_EXTENSION_HEADERS {
        let known = matches!(
            chain.protocol,
            Protocol::HOP_BY_HOP
                | Protocol::ROUTING
                | Protocol::FRAGMENT
                | Protocol::DESTINATION_OPTIONS
                | Protocol::AUTHENTICATION
                | Protocol::MOBILITY
                | Protocol::HIP
                | Protocol::SHIM6
        );
        if !known {
            return Ok(chain);
        }
        if count == MAX_EXTENSION_HEADERS {
            break;
        }
        let head = chunk::<8>(packet, chain.offset).ok_or_else(|| short(&chain))?;
        let len = match chain.protocol {
            Protocol::FRAGMENT => 8,
            // RFC 4302 §2.2: in 32-bit words, minus two.
            Protocol::AUTHENTICATION => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        let header = packet.get(chain.offset..chain.offset + len).ok_or_else(|| short(&chain))?;
        match chain.protocol {
            // RFC 8200 §4.1: hop-by-hop options only come first.
            Protocol::HOP_BY_HOP if count > 0 => return Err(Malformed::BadExtensionHeader),
            Protocol::HOP_BY_HOP | Protocol::DESTINATION_OPTIONS => options(header)?,
            Protocol::ROUTING if head[2] == ROUTING_TYPE_SOURCE_ROUTE => return Err(Malformed::SourceRoute),
            // RFC 8200 §4.4: a type that the node does not know, with segments left, is discarded.
            Protocol::ROUTING if head[3] != 0 => return Err(Malformed::BadExtensionHeader),
            Protocol::FRAGMENT => {
                // A second fragment header would hide the first.
                if chain.more_fragments || chain.fragment_offset != 0 {
                    return Err(Malformed::BadExtensionHeader);
                }
                let word = be16(head[2], head[3]);
                chain.fragment_offset = word & 0xfff8;
                chain.more_fragments = word & 1 != 0;
                chain.identification = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
            }
            _ => {}
        }
        chain.protocol = Protocol(head[0]);
        chain.offset += len;
        if chain.fragment_offset != 0 {
            return Ok(chain);
        }
    }
    Err(Malformed::TooManyExtensionHeaders)
}

/// RFC 7112 §5: a first fragment holds the whole chain; a whole packet that ends within it is broken.
fn short(chain: &Chain) -> Malformed {
    if chain.more_fragments { Malformed::TinyFragment } else { Malformed::BadExtensionHeader }
}

/// Checks that the options of a header fill it exactly, RFC 8200 §4.2. Bounded by the header's 2,048 bytes.
fn options(header: &[u8]) -> Result<(), Malformed> {
    let mut at = 2;
    while let Some(kind) = header.get(at) {
        match *kind {
            OPTION_PAD1 => at += 1,
            OPTION_JUMBO => return Err(Malformed::JumboPayload),
            _ => at += 2 + usize::from(*header.get(at + 1).ok_or(Malformed::BadExtensionHeader)?),
        }
    }
    if at == header.len() { Ok(()) } else { Err(Malformed::BadExtensionHeader) }
}
