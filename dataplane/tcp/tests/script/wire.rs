//! What does a segment look like in bytes? An encoder and a decoder of the tests' own, so that a mistake of the engine's
//! wire code does not cancel itself out.

use weir_net::types::{Family, Protocol};
use weir_net::{ParseOptions, Parsed, checksum, eth, ipv4, ipv6, parse};

/// One TCP option as it stands in a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opt {
    Nop,
    Mss(u16),
    WindowScale(u8),
    SackPermitted,
    Timestamps {
        value: u32,
        echo: u32,
    },
    Sack(Vec<(u32, u32)>),
    /// RFC 7413: empty as a request.
    FastOpen(Vec<u8>),
    /// Bytes exactly as a script gives them, well-formed or not.
    Raw(Vec<u8>),
}

/// A segment with absolute numbers.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) src: (u128, u16),
    pub(crate) dst: (u128, u16),
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) ecn: u8,
    pub(crate) options: Vec<Opt>,
    pub(crate) payload: Vec<u8>,
    pub(crate) hop_limit: u8,
    pub(crate) dont_fragment: bool,
    /// As received; 0 in what is still to be written.
    pub(crate) options_len: usize,
}

const FRAME_HEADER: usize = 14;

/// An IPv4-mapped address (RFC 4291 §2.5.5.2) stands for its IPv4 address.
pub(crate) fn is_v4(address: u128) -> bool {
    address >> 32 == 0xffff
}

impl Packet {
    /// The Ethernet frame; `spoil` breaks the TCP checksum.
    pub(crate) fn frame(&self, spoil: bool) -> Vec<u8> {
        let mut segment = self.segment();
        let pseudo = pseudo(self.src.0, self.dst.0, segment.len());
        let sum = checksum::fold(u64::from(checksum::sum(&segment)) + u64::from(pseudo));
        let checksum = !sum ^ if spoil { 0x5555 } else { 0 };
        segment[16..18].copy_from_slice(&checksum.to_be_bytes());
        frame(self.src.0, self.dst.0, Protocol::TCP, self.ecn, self.hop_limit, &segment)
    }

    fn segment(&self) -> Vec<u8> {
        let mut options = Vec::new();
        for option in &self.options {
            option.write(&mut options);
        }
        while !options.len().is_multiple_of(4) {
            options.push(1);
        }
        assert!(options.len() <= 40, "{} bytes of options do not fit a TCP header (40)", options.len());
        let mut out = Vec::new();
        out.extend(self.src.1.to_be_bytes());
        out.extend(self.dst.1.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        out.push(((20 + options.len()) as u8 / 4) << 4);
        out.push(self.flags);
        out.extend(self.window.to_be_bytes());
        out.extend([0, 0]);
        out.extend(self.urgent.to_be_bytes());
        out.extend(options);
        out.extend(&self.payload);
        out
    }

    /// Bytes of options, padding included.
    pub(crate) fn options_len(&self) -> usize {
        self.options_len
    }

    /// Reads a frame, and refuses one that no stack may send.
    pub(crate) fn read(frame: &[u8]) -> Result<Packet, String> {
        let parsed = parse(frame, &ParseOptions { l3_checksum_ok: false })
            .map_err(|malformed| format!("the packet is malformed: {malformed:?}"))?;
        if parsed.protocol != Protocol::TCP {
            return Err(format!("a packet of protocol {} instead of TCP", parsed.protocol.0));
        }
        if parsed.l3_offset() + usize::from(parsed.l3_len) != frame.len() {
            return Err(format!(
                "the IP length {} is not that of the packet, {}",
                parsed.l3_len,
                frame.len() - FRAME_HEADER
            ));
        }
        if !checksum::l4_is_valid(frame, &parsed) {
            return Err("the TCP checksum is wrong".into());
        }
        let segment = &frame[parsed.l4_offset()..];
        let header_len = usize::from(segment[12] >> 4) * 4;
        let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_be_bytes(segment[at..at + 2].try_into().unwrap());
        let (src, dst) = addresses(frame, &parsed);
        Ok(Packet {
            src: (src, half(0)),
            dst: (dst, half(2)),
            seq: word(4),
            ack: word(8),
            flags: segment[13],
            window: half(14),
            urgent: half(18),
            ecn: parsed.tos & 3,
            options: read_options(&segment[20..header_len])?,
            payload: segment[header_len..].to_vec(),
            hop_limit: parsed.ttl,
            dont_fragment: parsed.dont_fragment,
            options_len: header_len - 20,
        })
    }

    pub(crate) fn timestamps(&self) -> Option<(u32, u32)> {
        self.options.iter().find_map(|option| match option {
            Opt::Timestamps { value, echo } => Some((*value, *echo)),
            _ => None,
        })
    }
}

impl Opt {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Opt::Nop => out.push(1),
            Opt::Mss(mss) => {
                out.extend([2, 4]);
                out.extend(mss.to_be_bytes());
            }
            Opt::WindowScale(shift) => out.extend([3, 3, *shift]),
            Opt::SackPermitted => out.extend([4, 2]),
            Opt::Timestamps { value, echo } => {
                out.extend([8, 10]);
                out.extend(value.to_be_bytes());
                out.extend(echo.to_be_bytes());
            }
            Opt::Sack(blocks) => {
                out.extend([5, 2 + 8 * blocks.len() as u8]);
                for (left, right) in blocks {
                    out.extend(left.to_be_bytes());
                    out.extend(right.to_be_bytes());
                }
            }
            Opt::FastOpen(cookie) => {
                out.extend([34, 2 + cookie.len() as u8]);
                out.extend(cookie);
            }
            Opt::Raw(bytes) => out.extend(bytes),
        }
    }
}

fn read_options(mut bytes: &[u8]) -> Result<Vec<Opt>, String> {
    let mut options = Vec::new();
    while let Some(kind) = bytes.first() {
        match kind {
            0 => break,
            1 => {
                bytes = &bytes[1..];
                continue;
            }
            _ => {}
        }
        let len = usize::from(*bytes.get(1).ok_or("an option without its length")?);
        let body = bytes.get(2..len).ok_or_else(|| format!("an option of kind {kind} and length {len}"))?;
        let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        options.push(match (kind, body.len()) {
            (2, 2) => Opt::Mss(u16::from_be_bytes([body[0], body[1]])),
            (3, 1) => Opt::WindowScale(body[0]),
            (4, 0) => Opt::SackPermitted,
            (8, 8) => Opt::Timestamps { value: word(0), echo: word(4) },
            (5, 8 | 16 | 24 | 32) => {
                Opt::Sack((0..body.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect())
            }
            (34, _) => Opt::FastOpen(body.to_vec()),
            _ => return Err(format!("an option of kind {kind} with {} bytes", body.len())),
        });
        bytes = &bytes[len..];
    }
    Ok(options)
}

fn addresses(frame: &[u8], parsed: &Parsed) -> (u128, u128) {
    let l3 = &frame[parsed.l3_offset()..];
    let v4 =
        |at: usize| u128::from(u32::from_be_bytes(l3[at..at + 4].try_into().unwrap())) | 0xffff_0000_0000;
    let v6 = |at: usize| u128::from_be_bytes(l3[at..at + 16].try_into().unwrap());
    match parsed.family() {
        Some(Family::V4) => (v4(12), v4(16)),
        _ => (v6(8), v6(24)),
    }
}

fn pseudo(src: u128, dst: u128, len: usize) -> u16 {
    if is_v4(src) {
        checksum::pseudo_v4(src as u32, dst as u32, Protocol::TCP, len as u16)
    } else {
        checksum::pseudo_v6(&src.to_be_bytes(), &dst.to_be_bytes(), Protocol::TCP, len as u32)
    }
}

/// An Ethernet frame around an IP payload.
pub(crate) fn frame(
    src: u128,
    dst: u128,
    protocol: Protocol,
    ecn: u8,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut out = ethernet(is_v4(src)).to_vec();
    if is_v4(src) {
        let header = ipv4::Header {
            tos: ecn,
            total_len: (ipv4::HEADER_LEN + payload.len()) as u16,
            identification: 7,
            dont_fragment: true,
            ttl: hop_limit,
            protocol,
            src: src as u32,
            dst: dst as u32,
        };
        out.extend(header.bytes());
    } else {
        let header = ipv6::Header {
            traffic_class: ecn,
            flow_label: 0,
            payload_len: payload.len() as u16,
            next_header: protocol,
            hop_limit,
            src: src.to_be_bytes(),
            dst: dst.to_be_bytes(),
        };
        out.extend(header.bytes());
    }
    out.extend(payload);
    out
}

/// An Ethernet header before an IP packet.
pub(crate) fn ethernet(v4: bool) -> [u8; FRAME_HEADER] {
    let mut out = [0x02; FRAME_HEADER];
    let kind = if v4 { eth::IPV4 } else { eth::IPV6 };
    out[12..].copy_from_slice(&kind.to_be_bytes());
    out
}

/// An ICMP or ICMPv6 error from a router, that quotes `quoted`, a frame that was sent before.
pub(crate) fn icmp_error(from: u128, quoted: &[u8], kind: u8, code: u8, rest: u32) -> Vec<u8> {
    let parsed = parse(quoted, &ParseOptions { l3_checksum_ok: false }).unwrap();
    let (to, _) = addresses(quoted, &parsed);
    let packet = &quoted[FRAME_HEADER..];
    let mut body = vec![kind, code, 0, 0];
    body.extend(rest.to_be_bytes());
    // RFC 792 promises no more than 8 bytes of the transport header; most routers quote more: RFC 1812 §4.3.2.3
    let quote = if is_v4(to) { packet.len().min(28) } else { packet.len().min(1232) };
    body.extend(&packet[..quote]);
    let sum = if is_v4(to) {
        u64::from(checksum::sum(&body))
    } else {
        let pseudo =
            checksum::pseudo_v6(&from.to_be_bytes(), &to.to_be_bytes(), Protocol::ICMPV6, body.len() as u32);
        u64::from(checksum::sum(&body)) + u64::from(pseudo)
    };
    body[2..4].copy_from_slice(&(!checksum::fold(sum)).to_be_bytes());
    let protocol = if is_v4(to) { Protocol::ICMP } else { Protocol::ICMPV6 };
    frame(from, to, protocol, 0, 64, &body)
}

/// RFC 792 and RFC 4443 numbers by the names that scripts use.
pub(crate) fn icmp_code(kind: &str, v4: bool) -> Result<(u8, u8), String> {
    Ok(match (kind, v4) {
        ("net-unreachable", true) => (3, 0),
        ("host-unreachable", true) => (3, 1),
        ("protocol-unreachable", true) => (3, 2),
        ("port-unreachable", true) => (3, 3),
        ("frag-needed", true) => (3, 4),
        ("admin-prohibited", true) => (3, 13),
        ("source-quench", true) => (4, 0),
        ("redirect", true) => (5, 1),
        ("time-exceeded", true) => (11, 0),
        ("parameter-problem", true) => (12, 0),
        ("no-route", false) => (1, 0),
        ("admin-prohibited", false) => (1, 1),
        ("address-unreachable", false) => (1, 3),
        ("port-unreachable", false) => (1, 4),
        ("too-big", false) => (2, 0),
        ("time-exceeded", false) => (3, 0),
        _ => return Err(format!("`{kind}` is no ICMP error of IPv{}", if v4 { 4 } else { 6 })),
    })
}
