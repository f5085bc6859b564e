//! Does any sequence of bytes make this crate panic, or break what it promises?
//!
//! The body of a fuzz target: a runner feeds it arbitrary bytes; a failed promise is a panic there.

use crate::proxy_protocol::{Expects, Parser, Progress, V1_MAX, V2_MAX, Version, WRITTEN_MAX, parse, write};

/// Reads a PROXY header from arbitrary bytes, whole and in pieces, whose lengths the first eight bytes decide.
pub fn fuzz_proxy_protocol(data: &[u8]) {
    let Some((cuts, stream)) = data.split_first_chunk::<8>() else { return };
    for expects in [Expects::V1, Expects::V2, Expects::Any] {
        let whole = parse(stream, expects);
        let mut parser = Parser::new(expects);
        let mut fed = 0;
        let mut in_pieces = Ok(Progress::Incomplete);
        let mut cut = cuts.iter().cycle();
        while fed < stream.len() {
            let len = usize::from(cut.next().copied().unwrap_or(1)).max(1);
            let piece = stream.get(fed..(fed + len).min(stream.len())).unwrap_or_default();
            in_pieces = parser.feed(piece);
            match in_pieces {
                Ok(Progress::Incomplete) => fed += piece.len(),
                Ok(Progress::Done(ref mut header)) => {
                    assert!(usize::from(header.len) <= piece.len(), "more than the piece was taken");
                    header.len += fed as u16;
                    break;
                }
                Err(_) => break,
            }
        }
        assert_eq!(in_pieces, whole, "the header reads differently in pieces");
        match whole {
            Ok(Progress::Incomplete) => assert!(stream.len() < V2_MAX, "waits beyond the bound"),
            Ok(Progress::Done(header)) => {
                let len = usize::from(header.len);
                assert!(len <= stream.len() && len <= V2_MAX, "{len} bytes");
                assert!(stream.first() != Some(&b'P') || len <= V1_MAX, "{len} bytes in a line");
                if header.ends.is_some() {
                    for version in [Version::V1, Version::V2] {
                        let mut out = [0; WRITTEN_MAX];
                        let len = write(version, header.ends, &mut out);
                        let again = parse(out.get(..len).unwrap_or_default(), Expects::Any);
                        assert!(
                            matches!(again, Ok(Progress::Done(again)) if again.ends == header.ends),
                            "{again:?}"
                        );
                    }
                }
            }
            Err(_) => {}
        }
    }
}

/// Valid headers of every kind, for a runner to mutate (behind eight bytes of cuts).
pub fn seeds() -> Vec<Vec<u8>> {
    let v2 = |command: u8, family: u8, block: &[u8]| {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        bytes.extend([command, family]);
        bytes.extend((block.len() as u16).to_be_bytes());
        bytes.extend(block);
        bytes
    };
    vec![
        b"PROXY TCP4 198.18.0.1 198.18.0.11 56324 443\r\nGET".to_vec(),
        b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 0\r\n".to_vec(),
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN whatever this is\r\n".to_vec(),
        v2(0x20, 0, &[]),
        v2(0x21, 0x11, &[7; 12]),
        v2(0x21, 0x11, &[&[7; 12], [4, 0, 1, 0].as_slice()].concat()),
        v2(0x21, 0x21, &[7; 36]),
        v2(0x21, 0x31, &[7; 216]),
    ]
}
