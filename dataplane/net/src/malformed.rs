//! Why is a frame refused before anyone looks at what it wants?

use std::fmt;

macro_rules! malformed {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// The reason why a frame was refused. Each is counted on its own; the number is the counter's index.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Malformed { $($(#[$doc])* $variant,)* }

        impl Malformed {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Malformed] = &[$(Malformed::$variant,)*];

            /// The name used in counters and by the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Malformed::$variant => $name,)* }
            }
        }
    };
}

malformed! {
    /// The frame ends before its Ethernet, VLAN or fixed IP header does.
    ShortFrame = "short_frame",
    /// The IP version disagrees with the ether type.
    BadVersion = "bad_version",
    /// The IPv4 header length is below 20 bytes or beyond the frame.
    BadHeaderLength = "bad_header_length",
    /// The IP length is below its header or beyond the frame.
    BadTotalLength = "bad_total_length",
    /// The IPv4 header checksum is wrong.
    BadHeaderChecksum = "bad_header_checksum",
    /// An IPv4 option has no length, or one that leaves the header.
    BadOptions = "bad_options",
    /// IPv4 source routing (RFC 7126 §4.3, §4.4) or the IPv6 routing header of type 0 (RFC 5095).
    SourceRoute = "source_route",
    /// The source address can not be a sender's (RFC 1122 §3.2.1.3, RFC 6890).
    MartianSource = "martian_source",
    /// The destination address never appears on a wire (RFC 1122 §3.2.1.3, RFC 6890).
    MartianDestination = "martian_destination",
    /// Source and destination address are the same ("land").
    Land = "land",
    /// TTL or hop limit is zero (RFC 1122 §3.2.1.7).
    TtlZero = "ttl_zero",
    /// A fragment that is not the last has a length that is no multiple of 8 (RFC 791 §3.2, RFC 8200 §4.5), or is empty.
    BadFragment = "bad_fragment",
    /// A fragment reaches beyond byte 65,535 of its packet ("ping of death").
    FragmentTooLong = "fragment_too_long",
    /// A first fragment without ports and flags, or a second one that would overwrite them (RFC 1858 §3, RFC 7112 §5).
    TinyFragment = "tiny_fragment",
    /// More than [`MAX_EXTENSION_HEADERS`](crate::parse::MAX_EXTENSION_HEADERS) IPv6 extension headers.
    TooManyExtensionHeaders = "too_many_extension_headers",
    /// An IPv6 extension header leaves the packet, comes at a wrong place or holds a broken option.
    BadExtensionHeader = "bad_extension_header",
    /// An IPv6 jumbogram (RFC 2675); no port carries one.
    JumboPayload = "jumbo_payload",
    /// The packet ends before its TCP, UDP or ICMP header does.
    ShortL4 = "short_l4",
    /// The TCP data offset is below 20 bytes or beyond the segment.
    BadTcpOffset = "bad_tcp_offset",
    /// TCP flags that no stack sends: none, SYN with FIN, SYN with RST, FIN with RST.
    BadTcpFlags = "bad_tcp_flags",
    /// The UDP length is below 8 or beyond the packet.
    BadUdpLength = "bad_udp_length",
    /// The packet that an ICMP error quotes can not be told.
    BadIcmpQuote = "bad_icmp_quote",
    /// The checksum of an ICMP message is wrong.
    BadIcmpChecksum = "bad_icmp_checksum",
}

impl Malformed {
    /// How many reasons there are.
    pub const COUNT: usize = Malformed::ALL.len();
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indices_and_names_are_unique() {
        let mut names = std::collections::BTreeSet::new();
        for (index, reason) in Malformed::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(names.insert(reason.name()));
        }
    }
}
