//! Which addresses, families, protocols and prefixes does everyone mean by the same name?

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

/// An Ethernet address, in transmission order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
    /// No address.
    pub const ZERO: Mac = Mac([0; 6]);

    /// Whether the group bit is set (multicast and broadcast), IEEE 802.3 §3.2.3.
    #[inline]
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether a single station can own this address.
    #[inline]
    pub const fn is_unicast(self) -> bool {
        !self.is_multicast() && !self.is_zero()
    }

    /// Whether all bytes are zero.
    #[inline]
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// The group address that carries an IPv6 multicast destination, RFC 2464 §7.
    #[inline]
    pub const fn of_ipv6_multicast(address: [u8; 16]) -> Mac {
        Mac([0x33, 0x33, address[12], address[13], address[14], address[15]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// A text that is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is not an Ethernet address; write six hexadecimal bytes such as 02:00:00:00:00:01")]
pub struct MacError(pub String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let refused = || MacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refused)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(refused());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
        }
        if parts.next().is_some() { Err(refused()) } else { Ok(Mac(bytes)) }
    }
}

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Family {
    /// IPv4.
    V4 = 4,
    /// IPv6.
    V6 = 6,
}

impl Family {
    /// The family of an address.
    #[inline]
    pub const fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Bits in an address.
    #[inline]
    pub const fn address_bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// An IP protocol number (IANA "Assigned Internet Protocol Numbers"), also an IPv6 next header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// IPv6 hop-by-hop options, RFC 8200 §4.3.
    pub const HOP_BY_HOP: Protocol = Protocol(0);
    /// ICMP, RFC 792.
    pub const ICMP: Protocol = Protocol(1);
    /// IPv4 in IP, RFC 2003.
    pub const IPIP: Protocol = Protocol(4);
    /// TCP, RFC 9293.
    pub const TCP: Protocol = Protocol(6);
    /// UDP, RFC 768.
    pub const UDP: Protocol = Protocol(17);
    /// IPv6 in IP, RFC 2473.
    pub const IPV6: Protocol = Protocol(41);
    /// IPv6 routing header, RFC 8200 §4.4.
    pub const ROUTING: Protocol = Protocol(43);
    /// IPv6 fragment header, RFC 8200 §4.5.
    pub const FRAGMENT: Protocol = Protocol(44);
    /// ESP, RFC 4303.
    pub const ESP: Protocol = Protocol(50);
    /// AH, RFC 4302.
    pub const AUTHENTICATION: Protocol = Protocol(51);
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: Protocol = Protocol(58);
    /// No next header, RFC 8200 §4.7.
    pub const NO_NEXT: Protocol = Protocol(59);
    /// IPv6 destination options, RFC 8200 §4.6.
    pub const DESTINATION_OPTIONS: Protocol = Protocol(60);
    /// Mobility header, RFC 6275 §6.1.
    pub const MOBILITY: Protocol = Protocol(135);
    /// Host identity protocol, RFC 7401.
    pub const HIP: Protocol = Protocol(139);
    /// Shim6, RFC 5533.
    pub const SHIM6: Protocol = Protocol(140);
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Protocol::ICMP => out.write_str("icmp"),
            Protocol::TCP => out.write_str("tcp"),
            Protocol::UDP => out.write_str("udp"),
            Protocol::ICMPV6 => out.write_str("icmpv6"),
            Protocol::IPIP => out.write_str("ipip"),
            Protocol::IPV6 => out.write_str("ipv6"),
            Protocol(number) => write!(out, "protocol {number}"),
        }
    }
}

/// An address and the length of its network part, such as `198.18.0.254/24`. The host bits are kept: the same form
/// names an interface's address and, through [`Prefix::network`], a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    /// The address, host bits included.
    pub addr: IpAddr,
    /// Length of the network part in bits.
    pub len: u8,
}

/// Why a text is no prefix.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PrefixError {
    /// There is no `/`.
    #[error("`{0}` has no prefix length; write it as ADDRESS/LENGTH, such as 198.18.0.0/24")]
    NoLength(String),
    /// The part before the `/` is no address.
    #[error("`{address}` in `{text}` is not an IPv4 or IPv6 address")]
    BadAddress {
        /// The whole text.
        text: String,
        /// Its part before the slash.
        address: String,
    },
    /// The part after the `/` is no number.
    #[error("`{length}` in `{text}` is not a prefix length; write a number such as 24")]
    BadLength {
        /// The whole text.
        text: String,
        /// Its part after the slash.
        length: String,
    },
    /// The length exceeds the address.
    #[error("prefix length {len} is too long for {addr}; an {family} prefix has at most {most} bits", family = Family::of(*addr), most = Family::of(*addr).address_bits())]
    TooLong {
        /// The address.
        addr: IpAddr,
        /// The refused length.
        len: u8,
    },
}

impl Prefix {
    /// An address and a length that fits its family.
    pub fn new(addr: IpAddr, len: u8) -> Result<Prefix, PrefixError> {
        if len > Family::of(addr).address_bits() {
            return Err(PrefixError::TooLong { addr, len });
        }
        Ok(Prefix { addr, len })
    }

    /// The prefix that holds only `addr`.
    pub fn host(addr: IpAddr) -> Prefix {
        Prefix { addr, len: Family::of(addr).address_bits() }
    }

    /// The family of the address.
    pub const fn family(&self) -> Family {
        Family::of(self.addr)
    }

    /// Whether `address` lies in the network. An address of the other family never does.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.addr, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                (u32::from(ours) ^ u32::from(theirs)) & mask_v4(self.len) == 0
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                (u128::from(ours) ^ u128::from(theirs)) & mask_v6(self.len) == 0
            }
            _ => false,
        }
    }

    /// The same network with the host bits cleared.
    pub fn network(&self) -> Prefix {
        let addr = match self.addr {
            IpAddr::V4(addr) => IpAddr::V4((u32::from(addr) & mask_v4(self.len)).into()),
            IpAddr::V6(addr) => IpAddr::V6((u128::from(addr) & mask_v6(self.len)).into()),
        };
        Prefix { addr, len: self.len }
    }

    /// Whether a bit outside the network part is set.
    pub fn has_host_bits(&self) -> bool {
        self.network().addr != self.addr
    }
}

/// The network mask of an IPv4 prefix; lengths above 32 count as 32.
#[inline]
pub const fn mask_v4(len: u8) -> u32 {
    if len == 0 {
        0
    } else if len >= 32 {
        u32::MAX
    } else {
        u32::MAX << (32 - len)
    }
}

/// The network mask of an IPv6 prefix; lengths above 128 count as 128.
#[inline]
pub const fn mask_v6(len: u8) -> u128 {
    if len == 0 {
        0
    } else if len >= 128 {
        u128::MAX
    } else {
        u128::MAX << (128 - len)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let (address, length) = text.split_once('/').ok_or_else(|| PrefixError::NoLength(text.to_owned()))?;
        let addr = address
            .parse()
            .map_err(|_| PrefixError::BadAddress { text: text.to_owned(), address: address.to_owned() })?;
        let bad_length = || PrefixError::BadLength { text: text.to_owned(), length: length.to_owned() };
        // `u8::from_str` also takes "+24", which no one means.
        if !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(bad_length());
        }
        Prefix::new(addr, length.parse().map_err(|_| bad_length())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_text_round_trips_and_nonsense_is_named() {
        let mac: Mac = "02:00:5e:10:00:ff".parse().unwrap();
        assert_eq!(mac, Mac([2, 0, 0x5e, 0x10, 0, 0xff]));
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        for text in
            ["", "02:00", "02:00:5e:10:00:ff:00", "0:0:0:0:0:0", "zz:00:00:00:00:00", "+1:00:00:00:00:00"]
        {
            assert_eq!(text.parse::<Mac>(), Err(MacError(text.to_owned())));
        }
    }

    #[test]
    fn prefixes_contain_their_network_only() {
        let prefix: Prefix = "198.18.0.254/24".parse().unwrap();
        assert!(prefix.contains("198.18.0.1".parse().unwrap()));
        assert!(!prefix.contains("198.18.1.1".parse().unwrap()));
        assert!(!prefix.contains("2001:db8::1".parse().unwrap()));
        assert!(prefix.has_host_bits());
        assert_eq!(prefix.network().to_string(), "198.18.0.0/24");
        let all: Prefix = "::/0".parse().unwrap();
        assert!(all.contains("2001:db8::1".parse().unwrap()));
        let one: Prefix = "2001:db8::1/128".parse().unwrap();
        assert!(
            one.contains("2001:db8::1".parse().unwrap()) && !one.contains("2001:db8::2".parse().unwrap())
        );
        assert_eq!(Prefix::host("2001:db8::1".parse().unwrap()), one);
    }

    #[test]
    fn prefix_errors_name_the_value() {
        let text = |prefix: &str| prefix.parse::<Prefix>().unwrap_err().to_string();
        assert!(text("198.18.0.0").contains("`198.18.0.0` has no prefix length"));
        assert!(text("198.18.0/24").contains("`198.18.0` in `198.18.0/24`"));
        assert!(text("198.18.0.0/x").contains("`x`"));
        assert!(text("198.18.0.0/+8").contains("`+8`"));
        assert_eq!(
            text("198.18.0.0/33"),
            "prefix length 33 is too long for 198.18.0.0; an IPv4 prefix has at most 32 bits"
        );
    }
}
