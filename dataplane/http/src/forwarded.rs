//! How is a client told of in `Forwarded`? RFC 7239 §4.

use core::net::IpAddr;

use crate::name::is_token;

/// Bytes that an element takes beside its host.
pub(crate) const BOUND: usize = 96;

/// Writes one element: who asked, for which host (none where it is empty), and how. What isn't a token is quoted; so is an IPv6 address, in brackets
/// (§6).
pub(crate) fn element(client: IpAddr, host: &[u8], is_tls: bool, mut put: impl FnMut(Piece<'_>)) {
    put(Piece::Bytes(b"for="));
    match client {
        IpAddr::V4(_) => put(Piece::Address(client)),
        IpAddr::V6(_) => {
            put(Piece::Bytes(b"\"["));
            put(Piece::Address(client));
            put(Piece::Bytes(b"]\""));
        }
    }
    if is_token(host) {
        put(Piece::Bytes(b";host="));
        put(Piece::Bytes(host));
    } else if !host.is_empty() {
        // A checked host has neither quotes nor backslashes.
        put(Piece::Bytes(b";host=\""));
        put(Piece::Bytes(host));
        put(Piece::Bytes(b"\""));
    }
    put(Piece::Bytes(if is_tls { b";proto=https" } else { b";proto=http" }));
}

/// A piece of an element.
pub(crate) enum Piece<'a> {
    /// Bytes.
    Bytes(&'a [u8]),
    /// An address.
    Address(IpAddr),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(client: &str, host: &str, is_tls: bool) -> String {
        let mut text = String::new();
        element(client.parse().unwrap(), host.as_bytes(), is_tls, |piece| match piece {
            Piece::Bytes(bytes) => text.push_str(core::str::from_utf8(bytes).unwrap()),
            Piece::Address(address) => text.push_str(&address.to_string()),
        });
        assert!(text.len() <= BOUND + host.len());
        text
    }

    #[test]
    fn elements_are_quoted_as_rfc_7239_wants() {
        assert_eq!(text("192.0.2.60", "a.example", false), "for=192.0.2.60;host=a.example;proto=http");
        assert_eq!(
            text("2001:db8:cafe::17", "a:8080", true),
            "for=\"[2001:db8:cafe::17]\";host=\"a:8080\";proto=https"
        );
        let long = "1111:2222:3333:4444:5555:6666:7777:8888";
        assert_eq!(text(long, "", true), format!("for=\"[{long}]\";proto=https"));
    }
}
