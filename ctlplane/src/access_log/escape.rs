//! How does text from a client get into a line without ending it, or its field?

/// Quotes, backslashes, control characters and bytes outside of ASCII become `\"`, `\\` and `\xHH`.
pub(super) fn text(bytes: &[u8], line: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => line.push(byte),
            _ => {
                let digit = |at: u8| DIGITS.get(usize::from(at & 15)).copied().unwrap_or(b'?');
                line.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte)]);
            }
        }
    }
}

/// A JSON string (RFC 8259 §7). Bytes that are no UTF-8 become U+FFFD; whatever some reader may take for the end of a line is escaped:
/// controls of C0 and C1, U+2028, U+2029.
pub(super) fn json(bytes: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => line.extend_from_slice(b"\\\""),
                '\\' => line.extend_from_slice(b"\\\\"),
                '\n' => line.extend_from_slice(b"\\n"),
                '\r' => line.extend_from_slice(b"\\r"),
                '\t' => line.extend_from_slice(b"\\t"),
                '\u{2028}' | '\u{2029}' => push_escaped(character, line),
                _ if character.is_control() => push_escaped(character, line),
                _ => line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            line.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    line.push(b'"');
}

fn push_escaped(character: char, line: &mut Vec<u8>) {
    line.extend_from_slice(format!("\\u{:04x}", u32::from(character)).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(escape: fn(&[u8], &mut Vec<u8>), bytes: &[u8]) -> String {
        let mut line = Vec::new();
        escape(bytes, &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn every_byte_stays_in_its_field() {
        for byte in 0..=u8::MAX {
            let line = of(text, &[byte]);
            assert!(line.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
            assert!(line != "\"" && line != "\\");
            let line = of(json, &[b'a', byte, b'b']);
            assert!(line.chars().all(|character| !character.is_control()), "{line:?}");
            let back: String = serde_json::from_str(&line).unwrap();
            assert_eq!(back.chars().count(), 3);
            assert!(byte >= 0x80 || back.as_bytes()[1] == byte);
        }
        assert_eq!(of(text, b"\"\\\r\n\x1b[31m\xc3\xa9"), r#"\"\\\x0d\x0a\x1b[31m\xc3\xa9"#);
        assert_eq!(of(json, "\u{85}\u{2028}\u{e9}\r".as_bytes()), "\"\\u0085\\u2028\u{e9}\\r\"");
        assert_eq!(of(json, b"\xff\xfe"), "\"\u{fffd}\u{fffd}\"");
    }
}
