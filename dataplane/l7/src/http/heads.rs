//! What do heads need that neither client nor backend has sent? Texts, and the view of a head that routes ask.

use std::fmt::Write as _;
use std::net::IpAddr;

use arrayvec::ArrayString;
use weir_http::head::Request;
use weir_http::name::Known;
use weir_http::routes::Fields;
use weir_l4::{Backend, address_of};

/// A request's fields, for routes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadFields<'a> {
    pub(crate) request: &'a Request,
    pub(crate) head: &'a [u8],
}

impl Fields for HeadFields<'_> {
    fn any(&self, name: &str, test: impl FnMut(&[u8]) -> bool) -> bool {
        let known = Known::of(name.as_bytes());
        if known != Known::Other && !self.request.fields.has(known) {
            return false;
        }
        self.request.fields.named(self.head, name.as_bytes()).any(test)
    }
}

/// The longest address with a port.
const AUTHORITY: usize = 56;

/// A backend's address and port, as a `Host` has them.
pub(crate) fn authority(backend: &Backend, vip_port: u16) -> ArrayString<AUTHORITY> {
    let mut text = ArrayString::new();
    let port = backend.serves(vip_port);
    // both forms are shorter than the text
    let _fits = match address_of(backend.address) {
        IpAddr::V4(address) => write!(text, "{address}:{port}"),
        IpAddr::V6(address) => write!(text, "[{address}]:{port}"),
    };
    text
}

/// A request's id as 32 hexadecimal digits.
#[inline]
pub(crate) fn hex_id(id: u128, out: &mut [u8; 32]) -> &[u8] {
    for (byte, place) in id.to_be_bytes().into_iter().zip(out.as_chunks_mut::<2>().0) {
        *place = [digit(byte >> 4), digit(byte & 15)];
    }
    out
}

#[inline]
const fn digit(value: u8) -> u8 {
    if value < 10 { b'0' + value } else { b'a' + value - 10 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_digits() {
        let mut out = [0; 32];
        assert_eq!(
            hex_id(0x0123_4567_89ab_cdef_0011_2233_4455_66ff, &mut out),
            b"0123456789abcdef00112233445566ff"
        );
    }
}
