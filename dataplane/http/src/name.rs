//! Which field is this, and which bytes may stand where? Names are compared without case.

/// Classes of bytes, as bits.
pub(crate) mod class {
    /// Of a token (RFC 9110 §5.6.2).
    pub(crate) const TOKEN: u8 = 1;
    /// Of a request target, as [`crate::target`] describes.
    pub(crate) const TARGET: u8 = 2;
    /// `_`, which gateways take for `-`.
    pub(crate) const UNDERSCORE: u8 = 4;
    /// `?`.
    pub(crate) const QUERY: u8 = 8;
    /// `\`.
    pub(crate) const BACKSLASH: u8 = 16;
    /// Of a host's name: letters, digits, `-`, `.`, `_`, `~`.
    pub(crate) const HOST: u8 = 32;
    /// Never percent-encoded (RFC 3986 §2.3).
    pub(crate) const UNRESERVED: u8 = 64;
    /// `"`, `<` and `>`: browsers and others send them in queries as they are.
    pub(crate) const QUERY_ONLY: u8 = 128;
}

static CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "256 places, and the index counts to 255")]
const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        let byte = at as u8;
        let mut bits = 0;
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            bits |= class::TOKEN;
        }
        if byte.is_ascii_graphic() && !matches!(byte, b'#' | b'"' | b'<' | b'>') {
            bits |= class::TARGET;
        }
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            bits |= class::HOST | class::UNRESERVED;
        }
        bits |= match byte {
            b'_' => class::UNDERSCORE,
            b'?' => class::QUERY,
            b'\\' => class::BACKSLASH,
            b'"' | b'<' | b'>' => class::QUERY_ONLY,
            _ => 0,
        };
        table[at] = bits;
        at += 1;
    }
    table
}

/// The classes of a byte.
#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "the table has a place for each value of a byte")]
pub(crate) fn class_of(byte: u8) -> u8 {
    CLASSES[byte as usize]
}

/// Whether all bytes are of a class, and there is one.
pub(crate) fn is_all(bytes: &[u8], class: u8) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| class_of(byte) & class != 0)
}

/// Whether this is a token (RFC 9110 §5.6.2).
pub fn is_token(bytes: &[u8]) -> bool {
    is_all(bytes, class::TOKEN)
}

macro_rules! known {
    ($($(#[$doc:meta])* $known:ident = $name:literal;)+) => {
        /// Fields that mean something to a proxy.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Known {
            /// None of the others.
            Other,
            $($(#[$doc])* $known),+
        }

        const ALL: &[Known] = &[Known::Other, $(Known::$known),+];
        const NAMES: &[&str] = &["", $($name),+];

        impl Known {
            /// The field's name in lower case; empty for [`Self::Other`].
            pub const fn name(self) -> &'static str {
                match self { Self::Other => "", $(Self::$known => $name),+ }
            }
        }
    };
}

known! {
    /// RFC 9110 §7.2.
    Host = "host";
    /// RFC 9110 §7.6.1.
    Connection = "connection";
    /// RFC 9110 §8.6.
    ContentLength = "content-length";
    /// RFC 9112 §6.1.
    TransferEncoding = "transfer-encoding";
    /// RFC 9110 §10.1.4.
    Te = "te";
    /// RFC 9110 §6.6.2.
    Trailer = "trailer";
    /// RFC 9110 §7.8.
    Upgrade = "upgrade";
    /// RFC 9110 §10.1.1.
    Expect = "expect";
    /// RFC 2068 §19.7.1.1.
    KeepAlive = "keep-alive";
    /// RFC 9112 appendix C.2.2: never forwarded.
    ProxyConnection = "proxy-connection";
    /// RFC 9110 §11.7.1.
    ProxyAuthenticate = "proxy-authenticate";
    /// RFC 9110 §11.7.2.
    ProxyAuthorization = "proxy-authorization";
    /// No field of HTTP: gateways make `HTTP_PROXY` of it. Never forwarded.
    Proxy = "proxy";
    /// RFC 7540 §3.2.1: HTTP/2 by upgrade, which RFC 9113 has taken back. Never forwarded.
    Http2Settings = "http2-settings";
    /// RFC 9110 §7.6.3.
    Via = "via";
    /// RFC 7239.
    Forwarded = "forwarded";
    /// The client's address.
    XForwardedFor = "x-forwarded-for";
    /// The client's scheme.
    XForwardedProto = "x-forwarded-proto";
    /// The client's `Host`.
    XForwardedHost = "x-forwarded-host";
    /// The port that the client has asked.
    XForwardedPort = "x-forwarded-port";
    /// RFC 6265 §4.2.
    Cookie = "cookie";
    /// RFC 6265 §4.1.
    SetCookie = "set-cookie";
    /// RFC 9110 §10.2.2.
    Location = "location";
    /// RFC 9110 §10.1.5.
    UserAgent = "user-agent";
    /// RFC 9110 §10.1.3.
    Referer = "referer";
    /// RFC 9110 §8.3.
    ContentType = "content-type";
    /// RFC 9110 §8.4.
    ContentEncoding = "content-encoding";
    /// RFC 9110 §14.4.
    ContentRange = "content-range";
    /// RFC 9110 §6.6.1.
    Date = "date";
    /// RFC 9110 §10.2.4.
    Server = "server";
    /// RFC 9110 §10.2.3.
    RetryAfter = "retry-after";
    /// RFC 9110 §11.6.2.
    Authorization = "authorization";
    /// RFC 9110 §11.6.1.
    WwwAuthenticate = "www-authenticate";
    /// RFC 9110 §14.2.
    Range = "range";
    /// RFC 9110 §7.6.2.
    MaxForwards = "max-forwards";
    /// RFC 9111 §5.2.
    CacheControl = "cache-control";
    /// RFC 9110 §10.2.1.
    Allow = "allow";
    /// RFC 6455 §11.3.1.
    SecWebSocketKey = "sec-websocket-key";
    /// RFC 6455 §11.3.3.
    SecWebSocketAccept = "sec-websocket-accept";
    /// RFC 6455 §11.3.5.
    SecWebSocketVersion = "sec-websocket-version";
    /// A request's id, by its usual name.
    XRequestId = "x-request-id";
    /// The proxy's own word about its failures.
    WeirCause = "weir-cause";
}

/// How many there are; below 64, so that a word holds a set of them.
pub(crate) const COUNT: usize = ALL.len();
const _: () = assert!(COUNT <= 64);

const SLOTS: usize = 256;
const SEED: u32 = seed();
static TABLE: [u8; SLOTS] = match table(SEED) {
    Some(table) => table,
    None => panic!("the seed was found with this table"),
};

/// A multiplier under which no two names share a slot.
const fn seed() -> u32 {
    let mut seed = 0x9e37_79b1_u32;
    while table(seed).is_none() {
        seed = seed.wrapping_mul(0x2c1b_3c6d).wrapping_add(0x1234_5678) | 1;
    }
    seed
}

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which refuses what is out of range")]
const fn table(seed: u32) -> Option<[u8; SLOTS]> {
    let mut table = [0; SLOTS];
    let mut at = 1;
    while at < NAMES.len() {
        let name = NAMES[at].as_bytes();
        let slot = slot(name[0], name[name.len().saturating_sub(4)], name[name.len() - 1], name.len(), seed);
        if table[slot] != 0 {
            return None;
        }
        table[slot] = at as u8;
        at += 1;
    }
    Some(table)
}

const fn slot(first: u8, middle: u8, last: u8, length: usize, seed: u32) -> usize {
    let word = u32::from_le_bytes([first | 0x20, middle | 0x20, last | 0x20, length as u8]);
    (word.wrapping_mul(seed) >> 24) as usize
}

impl Known {
    /// The field of a name, which must be a token.
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        let (Some(&first), Some(&middle), Some(&last)) =
            (name.first(), name.get(name.len().saturating_sub(4)), name.last())
        else {
            return Self::Other;
        };
        let index = TABLE.get(slot(first, middle, last, name.len(), SEED)).map_or(0, |&index| index as usize);
        if index == 0 {
            return Self::Other;
        }
        match (NAMES.get(index), ALL.get(index)) {
            (Some(known), Some(&field)) if equals(name, known.as_bytes()) => field,
            _ => Self::Other,
        }
    }

    /// As a bit of a set.
    #[inline(always)]
    pub(crate) const fn bit(self) -> u64 {
        1 << self as u8
    }

    /// Fields that say where a message ends, or how its connection goes on: only the proxy itself writes them.
    pub const fn is_structural(self) -> bool {
        const SET: u64 = Known::Host.bit()
            | Known::Connection.bit()
            | Known::ContentLength.bit()
            | Known::TransferEncoding.bit()
            | Known::Te.bit()
            | Known::Trailer.bit()
            | Known::Upgrade.bit()
            | Known::Expect.bit()
            | Known::KeepAlive.bit()
            | Known::ProxyConnection.bit()
            | Known::Http2Settings.bit();
        self.bit() & SET != 0
    }

    /// Fields that must not come in trailers: framing, routing, authentication, and what says how to process the content (RFC 9110
    /// §6.5.1).
    pub const fn is_forbidden_in_trailers(self) -> bool {
        const ALLOWED: u64 = Known::Other.bit()
            | Known::Via.bit()
            | Known::Date.bit()
            | Known::Server.bit()
            | Known::UserAgent.bit()
            | Known::Referer.bit()
            | Known::XRequestId.bit();
        self.bit() & ALLOWED == 0
    }
}

/// Whether a token equals a name of lower case letters, digits and `-`. Setting bit 5 makes no byte of a token one of those but its
/// capital.
#[inline]
fn equals(token: &[u8], lower: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    if token.len() != lower.len() {
        return false;
    }
    let (left, right) = (token.as_chunks::<8>(), lower.as_chunks::<8>());
    left.0
        .iter()
        .zip(right.0)
        .all(|(left, right)| u64::from_le_bytes(*left) | CASE == u64::from_le_bytes(*right) | CASE)
        && left.1.iter().zip(right.1).all(|(left, right)| left | 0x20 == *right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_whatever_its_case() {
        for (&known, name) in ALL.iter().zip(NAMES).skip(1) {
            assert_eq!(Known::of(name.as_bytes()), known);
            assert_eq!(Known::of(name.to_ascii_uppercase().as_bytes()), known, "{name}");
            assert_eq!(known.name(), *name);
            assert_eq!(Known::of(format!("{name}x").as_bytes()), Known::Other);
            assert_eq!(Known::of(&name.as_bytes()[1..]), Known::Other);
        }
    }

    #[test]
    fn neighbours_of_names_are_others() {
        for name in
            ["", "a", "content_length", "transfer-encodinh", "hosu", "Content-Lengt\u{68}x", "x-forwarded-fo"]
        {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
        // each byte of each name replaced by each other byte of a token
        for name in &NAMES[1..] {
            for at in 0..name.len() {
                for byte in (0..=255_u8).filter(|&byte| class_of(byte) & class::TOKEN != 0) {
                    let mut other = name.as_bytes().to_vec();
                    other[at] = byte;
                    let same = other.eq_ignore_ascii_case(name.as_bytes());
                    assert_eq!(Known::of(&other).name() == *name, same, "{}", other.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn tokens_are_those_of_rfc_9110() {
        let tokens: Vec<u8> = (0..=255).filter(|&byte| is_token(&[byte])).collect();
        assert_eq!(tokens, b"!#$%&'*+-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ^_`abcdefghijklmnopqrstuvwxyz|~");
        assert!(!is_token(b""));
    }
}
