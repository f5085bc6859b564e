//! WebSockets (RFC 6455), as far as an echo needs them: frames of at most 125 bytes, and the sample key of the RFC.

/// RFC 6455 §1.3: the sample key.
pub(crate) const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// RFC 6455 §1.3: the answer to it.
pub(crate) const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Opcode of a text frame, with FIN.
const TEXT: u8 = 0x81;
/// Opcode of a closing frame, with FIN.
const CLOSE: u8 = 0x88;
/// Bit of masked frames.
const MASKED: u8 = 0x80;

/// A frame of a client.
pub(crate) fn frame(text: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![TEXT, MASKED | text.len().min(125) as u8];
    frame.extend(mask);
    frame.extend(text.iter().take(125).zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// The frame that a server sends back.
pub(crate) fn plain(text: &[u8]) -> Vec<u8> {
    [&[TEXT, text.len().min(125) as u8], &text[..text.len().min(125)]].concat()
}

/// A server's answers to all whole frames, which are taken away; a frame that is not masked ends it.
pub(crate) fn answer(received: &mut Vec<u8>) -> Vec<u8> {
    let mut answers = Vec::new();
    while let [opcode, length, ..] = received[..] {
        let length = usize::from(length & !MASKED);
        let end = 6 + length;
        if received.len() < end {
            break;
        }
        let frame: Vec<u8> = received.drain(..end).collect();
        let mask = [frame[2], frame[3], frame[4], frame[5]];
        let text: Vec<u8> =
            frame[6..].iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        if opcode == TEXT {
            answers.extend(plain(&text));
        } else {
            answers.extend([CLOSE, 0]);
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_unmasked() {
        let mut received = frame(b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        // RFC 6455 §5.7
        assert_eq!(received, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        received.extend([TEXT, MASKED | 5, 1]);
        assert_eq!(answer(&mut received), plain(b"Hello"));
        assert_eq!(received.len(), 3);
    }
}
