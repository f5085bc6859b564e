//! Which bytes are a PROXY header, which are not, and does what is written read the same?

use super::*;
use proptest::prelude::*;

fn end(address: &str, port: u16) -> Endpoint {
    let address: std::net::IpAddr = address.parse().unwrap();
    Endpoint { address: weir_l4::bits_of(address), port }
}

fn ends(source: (&str, u16), destination: (&str, u16)) -> Ends {
    Ends { source: end(source.0, source.1), destination: end(destination.0, destination.1) }
}

fn done(bytes: &[u8]) -> Header {
    match parse(bytes, Expects::Any) {
        Ok(Progress::Done(header)) => header,
        other => panic!("{other:?}"),
    }
}

fn written(version: Version, ends: Option<Ends>) -> Vec<u8> {
    let mut out = [0; WRITTEN_MAX];
    let len = write(version, ends, &mut out);
    out[..len].to_vec()
}

/// A header of version 2 with everything given.
fn v2(version_command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend([version_command, family]);
    bytes.extend((block.len() as u16).to_be_bytes());
    bytes.extend(block);
    bytes
}

const BLOCK_V4: [u8; 12] = [198, 18, 0, 1, 198, 18, 0, 2, 0xdc, 0x04, 1, 0xbb];

#[test]
fn lines_of_the_specification() {
    let header = done(b"PROXY TCP4 198.18.0.1 198.18.0.11 56324 443\r\nGET / HTTP/1.1\r\n");
    assert_eq!(header.ends, Some(ends(("198.18.0.1", 56_324), ("198.18.0.11", 443))));
    assert_eq!(header.len, 45);
    let worst = b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff \
        ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n";
    assert_eq!(usize::from(done(worst).len), worst.len());
    assert_eq!(done(b"PROXY UNKNOWN\r\n"), Header { ends: None, len: 15 });
    let unknown = b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n";
    assert_eq!(done(unknown).ends, None);
    let longest = [b"PROXY UNKNOWN ".as_slice(), &[0xfe; 91], b"\r\n"].concat();
    assert_eq!((longest.len(), usize::from(done(&longest).len)), (V1_MAX, V1_MAX));
    assert_eq!(done(b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 0 1\r\n").ends, {
        Some(ends(("2001:db8::1", 0), ("2001:db8::2", 1)))
    });
}

#[test]
fn malformed_lines_are_refused_by_the_word() {
    let line = |words: &str| parse(format!("PROXY {words}\r\n").as_bytes(), Expects::Any);
    for (words, wrong) in [
        ("TCP5 1.2.3.4 1.2.3.4 1 2", Word::Protocol),
        ("UNKNOWNS", Word::Protocol),
        ("tcp4 1.2.3.4 1.2.3.4 1 2", Word::Protocol),
        ("TCP4", Word::SourceAddress),
        ("TCP4  1.2.3.4 1.2.3.4 1 2", Word::SourceAddress),
        ("TCP4 01.2.3.4 1.2.3.4 1 2", Word::SourceAddress),
        ("TCP4 ::1 ::1 1 2", Word::SourceAddress),
        ("TCP4 1.2.3.4 1.2.3 1 2", Word::DestinationAddress),
        ("TCP6 fe80::1%eth0 ::1 1 2", Word::SourceAddress),
        ("TCP6 ::1 1.2.3.4 1 2", Word::DestinationAddress),
        ("TCP4 1.2.3.4 1.2.3.4 01 2", Word::SourcePort),
        ("TCP4 1.2.3.4 1.2.3.4 +1 2", Word::SourcePort),
        ("TCP4 1.2.3.4 1.2.3.4 1 65536", Word::DestinationPort),
        ("TCP4 1.2.3.4 1.2.3.4 1 ", Word::DestinationPort),
        ("TCP4 1.2.3.4 1.2.3.4 1", Word::DestinationPort),
        ("TCP4 1.2.3.4 1.2.3.4 1 2 ", Word::End),
        ("TCP4 1.2.3.4 1.2.3.4 1 2 3", Word::End),
    ] {
        assert_eq!(line(words), Err(Refused::Line(wrong)), "{words}");
    }
    assert_eq!(parse(b"PROXY UNKNOWN\n", Expects::V1), Err(Refused::Line(Word::End)));
    assert_eq!(parse(b"PROXY UNKNOWN\r\r\n", Expects::V1), Err(Refused::Line(Word::End)));
}

#[test]
fn bounds_of_lines_are_exact() {
    let mut line = b"PROXY UNKNOWN ".to_vec();
    line.resize(V1_MAX - 1, b'x');
    assert_eq!(parse(&line, Expects::Any), Ok(Progress::Incomplete));
    line.push(b'x');
    assert_eq!(parse(&line, Expects::Any), Err(Refused::LineTooLong));
    // a CR as the 107th byte leaves no room for the LF
    line[V1_MAX - 1] = b'\r';
    assert_eq!(parse(&line, Expects::Any), Err(Refused::LineTooLong));
    line[V1_MAX - 2] = b'\r';
    line[V1_MAX - 1] = b'\n';
    assert_eq!(usize::from(done(&line).len), V1_MAX);
}

#[test]
fn who_sends_no_header_is_refused_at_once() {
    for (bytes, at, byte) in
        [(b"GET".as_slice(), 0, b'G'), (b"PROPFIND", 3, b'P'), (b"\r\n\r\nG", 4, b'G'), (&[0x16], 0, 0x16)]
    {
        assert_eq!(parse(bytes, Expects::Any), Err(Refused::NotAHeader { at, byte }));
    }
    assert_eq!(parse(b"PROX", Expects::Any), Ok(Progress::Incomplete));
    assert_eq!(parse(b"PROX", Expects::V2), Err(Refused::NotAHeader { at: 0, byte: b'P' }));
    assert_eq!(parse(&SIGNATURE, Expects::V1), Err(Refused::NotAHeader { at: 0, byte: b'\r' }));
    assert_eq!(parse(&SIGNATURE, Expects::V2), Ok(Progress::Incomplete));
}

#[test]
fn binary_headers() {
    let told = ends(("198.18.0.1", 56_324), ("198.18.0.2", 443));
    assert_eq!(done(&v2(0x21, 0x11, &BLOCK_V4)), Header { ends: Some(told), len: 28 });
    let mut block = [0u8; 36];
    block[0] = 0x20;
    block[15] = 1;
    block[31] = 2;
    block[33] = 80;
    let told = ends(("2000::1", 80), ("::2", 0));
    assert_eq!(done(&v2(0x21, 0x21, &block)), Header { ends: Some(told), len: 52 });
    // what holds no TCP addresses
    for (command, family, len) in
        [(0x20, 0x11, 0), (0x20, 0xff, 7), (0x21, 0, 0), (0x21, 0, 5), (0x21, 0x31, 216), (0x21, 0x12, 12)]
    {
        let bytes = v2(command, family, &vec![0; len]);
        assert_eq!(usize::from(done(&bytes).len), bytes.len());
        assert_eq!(done(&bytes).ends, None, "{command:#x} {family:#x}");
    }
}

#[test]
fn malformed_binary_headers_are_refused() {
    let refused = |bytes: &[u8]| parse(bytes, Expects::Any).unwrap_err();
    assert_eq!(refused(&v2(0x11, 0x11, &BLOCK_V4)), Refused::Version(1));
    assert_eq!(refused(&v2(0x22, 0x11, &BLOCK_V4)), Refused::Command(2));
    assert_eq!(refused(&v2(0x21, 0x41, &BLOCK_V4)), Refused::Family(0x41));
    assert_eq!(refused(&v2(0x21, 0x13, &BLOCK_V4)), Refused::Family(0x13));
    assert_eq!(refused(&v2(0x21, 0x11, &BLOCK_V4[..11])), Refused::TooShort(11));
    assert_eq!(refused(&v2(0x21, 0x21, &BLOCK_V4)), Refused::TooShort(12));
    // refused with the length, before the bytes come
    let mut long = v2(0x21, 0x11, &[]);
    long[14..].copy_from_slice(&((V2_MAX - V2_FIXED + 1) as u16).to_be_bytes());
    assert_eq!(refused(&long), Refused::TooLong(4_081));
    let mut longest = v2(0x20, 0, &[]);
    longest[14..].copy_from_slice(&((V2_MAX - V2_FIXED) as u16).to_be_bytes());
    assert_eq!(parse(&longest, Expects::Any), Ok(Progress::Incomplete));
    longest.resize(V2_MAX, 0);
    assert_eq!(usize::from(done(&longest).len), V2_MAX);
    for tlv in [[4, 0].as_slice(), &[4, 0, 1], &[4, 0, 0, 1], &[3, 0, 2, 0, 0]] {
        assert_eq!(refused(&v2(0x21, 0x11, &[&BLOCK_V4, tlv].concat())), Refused::Tlv);
    }
}

/// A checksum between two other TLVs; the checksum's own known answers are beside it.
#[test]
fn a_checksum_is_checked() {
    let tlvs = [[0x04, 0, 2, 9, 9].as_slice(), &[0x03, 0, 4, 0, 0, 0, 0], &[0x05, 0, 1, 7]].concat();
    let mut bytes = v2(0x21, 0x11, &[&BLOCK_V4, tlvs.as_slice()].concat());
    let at = 16 + 12 + 5 + 3;
    let crc = Crc32c::default().add(&bytes).value();
    bytes[at..at + 4].copy_from_slice(&crc.to_be_bytes());
    assert!(done(&bytes).ends.is_some());
    for bit in 0..bytes.len() * 8 {
        let mut bytes = bytes.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let outcome = parse(&bytes, Expects::Any);
        let is_tlv_kind = bit / 8 == at - 3;
        let is_local = bit / 8 == 12 && outcome.is_ok();
        let is_unspec = bit / 8 == 13 && bytes[13] >> 4 == 0;
        let is_longer = bit / 8 == 14 || bit / 8 == 15;
        let spared = is_tlv_kind || is_local || is_unspec || is_longer;
        assert!(spared || outcome.is_err(), "bit {bit}: {outcome:?}");
    }
}

#[test]
fn what_is_written_is_golden() {
    let v4 = ends(("198.18.0.1", 56_324), ("198.18.0.2", 443));
    assert_eq!(written(Version::V1, Some(v4)), b"PROXY TCP4 198.18.0.1 198.18.0.2 56324 443\r\n");
    assert_eq!(written(Version::V2, Some(v4)), v2(0x21, 0x11, &BLOCK_V4));
    assert_eq!(written(Version::V1, None), b"PROXY UNKNOWN\r\n");
    assert_eq!(written(Version::V2, None), v2(0x20, 0, &[]));
    let v6 = ends(("2001:db8::1", 1), ("2001:db8::2", 65_535));
    assert_eq!(written(Version::V1, Some(v6)), b"PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n");
    let mixed = ends(("2001:db8::1", 1), ("198.18.0.2", 80));
    assert_eq!(written(Version::V1, Some(mixed)), b"PROXY TCP6 2001:db8::1 ::ffff:c612:2 1 80\r\n");
    let binary = written(Version::V2, Some(mixed));
    assert_eq!((binary.len(), &binary[12..16]), (52, [0x21, 0x21, 0, 36].as_slice()));
    assert_eq!(done(&binary).ends, Some(mixed));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        source in any::<(u128, u16)>(), destination in any::<(u128, u16)>(), families in 0u8..4, v1 in any::<bool>(),
    ) {
        let end = |(address, port): (u128, u16), is_v4| {
            let address = if is_v4 { 0xffff << 32 | u128::from(address as u32) } else { address };
            Endpoint { address, port }
        };
        let ends = Ends { source: end(source, families & 1 == 0), destination: end(destination, families & 2 == 0) };
        let bytes = written(if v1 { Version::V1 } else { Version::V2 }, Some(ends));
        let header = done(&bytes);
        prop_assert_eq!(header, Header { ends: Some(ends), len: bytes.len() as u16 });
        for len in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes[..len], Expects::Any), Ok(Progress::Incomplete));
        }
    }

    #[test]
    fn arbitrary_bytes_in_arbitrary_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in any::<u64>()) {
        crate::fuzz::fuzz_proxy_protocol(&[&cut.to_le_bytes(), bytes.as_slice()].concat());
    }

    #[test]
    fn mutated_headers_in_arbitrary_pieces(seed in 0usize..20, at in any::<usize>(), to in any::<u8>(), cut in any::<u64>()) {
        let seeds = crate::fuzz::seeds();
        let mut bytes = seeds[seed % seeds.len()].clone();
        let at = at % bytes.len();
        bytes[at] = to;
        crate::fuzz::fuzz_proxy_protocol(&[&cut.to_le_bytes(), bytes.as_slice()].concat());
    }
}
