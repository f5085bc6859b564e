//! Which value has a cookie? RFC 6265 §5.4, read as servers do.

/// The value of the first cookie of this name in a `Cookie` field's value. Names are compared with case; quotes around the value stay.
pub fn find<'a>(value: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    value.split(|&byte| byte == b';').find_map(|pair| {
        let pair = pair.trim_ascii();
        let rest = pair.strip_prefix(name)?.trim_ascii_start();
        rest.strip_prefix(b"=").map(<[u8]>::trim_ascii_start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_found_by_their_whole_name() {
        let value = b"a=1; bb=2;b=3; c = 4 ;d=\"5\"; e; f=; b=6";
        for (name, expected) in [
            ("a", Some("1")),
            ("b", Some("3")),
            ("bb", Some("2")),
            ("c", Some("4")),
            ("d", Some("\"5\"")),
            ("e", None),
            ("f", Some("")),
            ("g", None),
            ("A", None),
        ] {
            assert_eq!(find(value, name.as_bytes()), expected.map(str::as_bytes), "{name}");
        }
        assert_eq!(find(b"", b"a"), None);
        assert_eq!(find(b"=x", b"a"), None);
    }
}
