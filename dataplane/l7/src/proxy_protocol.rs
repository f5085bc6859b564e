//! Who is the client behind the proxy before us, and how does the backend behind us learn who ours is?
//!
//! The PROXY protocol, versions 1 and 2, as <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt> has it: a header
//! before the first byte of the stream. [`parse`] reads one from the beginning of what has arrived, [`Parser`] collects
//! one that arrives in pieces, [`write`] makes one.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;
use weir_tcp::Endpoint;

use crate::crc32c::Crc32c;

/// §2.1: the longest line of version 1, its CRLF included.
pub const V1_MAX: usize = 107;
/// The longest header of version 2 that is read. The spec allows 64 KiB; certificates and names fit in this.
pub const V2_MAX: usize = 4_096;
/// The longest header that [`write`] makes.
pub const WRITTEN_MAX: usize = V1_MAX;

/// §2.2: what no other protocol begins with.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// §2.2: signature, version and command, family and transport, length.
const V2_FIXED: usize = 16;
/// §2.1: what a line of version 1 begins with.
const V1_BEGINNING: &[u8] = b"PROXY ";
/// §2.2.4: PP2_TYPE_CRC32C.
const TLV_CRC32C: u8 = 0x03;

/// Which header a peer must send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expects {
    /// A line of text.
    V1,
    /// A binary one.
    V2,
    /// Either.
    Any,
}

/// Which header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// A binary one.
    V2,
}

/// The two ends of the connection that a header tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub source: Endpoint,
    /// What the client connected to.
    pub destination: Endpoint,
}

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The ends; `None` (command LOCAL, UNKNOWN, UNSPEC, AF_UNIX, datagrams) means those of the connection itself.
    pub ends: Option<Ends>,
    /// Its length in bytes: the stream begins behind it.
    pub len: u16,
}

/// How far a header has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// What has arrived may be the beginning of one.
    Incomplete,
    /// It is whole.
    Done(Header),
}

/// Why there is no header in what a peer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// The client probably speaks to us without a proxy between, or in the other version.
    #[error("byte {at} is {byte:#04x}, which begins no PROXY header of the expected version")]
    NotAHeader {
        /// Place of the byte.
        at: u8,
        /// The byte.
        byte: u8,
    },
    /// A line without its end.
    #[error("a PROXY line has no CRLF within {V1_MAX} bytes")]
    LineTooLong,
    /// A line whose words are not what they must be.
    #[error("the {0} of a PROXY line is malformed")]
    Line(Word),
    /// §2.2: "versions other than 2 must be refused".
    #[error("PROXY version {0} is unknown")]
    Version(u8),
    /// §2.2: "other values are unassigned and must not be emitted… receivers must drop connections".
    #[error("PROXY command {0} is unknown")]
    Command(u8),
    /// An address family or transport that is not assigned.
    #[error("PROXY family and transport {0:#04x} are unknown")]
    Family(u8),
    /// The length leaves no room for the addresses of the family.
    #[error("a PROXY header of {0} bytes behind its first 16 has no room for its addresses")]
    TooShort(u16),
    /// The length is beyond what is read.
    #[error("a PROXY header of {0} bytes behind its first 16 exceeds the {V2_MAX} bytes that are read")]
    TooLong(u16),
    /// A TLV goes beyond the header.
    #[error("a TLV of a PROXY header goes beyond the header's end")]
    Tlv,
    /// §2.2.4: the checksum does not match.
    #[error("a PROXY header's CRC32C is {found:#010x} instead of {computed:#010x}")]
    Checksum {
        /// What it says.
        found: u32,
        /// What it should say.
        computed: u32,
    },
}

/// A word of a version 1 line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// TCP4, TCP6, UNKNOWN.
    Protocol,
    /// The first address.
    SourceAddress,
    /// The second address.
    DestinationAddress,
    /// The first port.
    SourcePort,
    /// The second port.
    DestinationPort,
    /// CRLF.
    End,
}

impl std::fmt::Display for Word {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Protocol => "protocol",
            Self::SourceAddress => "source address",
            Self::DestinationAddress => "destination address",
            Self::SourcePort => "source port",
            Self::DestinationPort => "destination port",
            Self::End => "end",
        })
    }
}

/// Reads the header at the beginning of a stream of which `bytes` is what has arrived so far.
///
/// Refuses as soon as no continuation can be a header, so that a peer that sends none isn't waited for.
pub fn parse(bytes: &[u8], expects: Expects) -> Result<Progress, Refused> {
    match bytes.first() {
        None => Ok(Progress::Incomplete),
        Some(b'P') if expects != Expects::V2 => parse_v1(bytes),
        Some(b'\r') if expects != Expects::V1 => parse_v2(bytes),
        Some(byte) => Err(Refused::NotAHeader { at: 0, byte: *byte }),
    }
}

/// The first byte in which what has arrived differs from what it must begin with.
fn begins_with(bytes: &[u8], beginning: &[u8]) -> Result<(), Refused> {
    let wrong = (0u8..).zip(bytes.iter().zip(beginning)).find(|(_, (is, should))| is != should);
    wrong.map_or(Ok(()), |(at, (byte, _))| Err(Refused::NotAHeader { at, byte: *byte }))
}

/// §2.1.
fn parse_v1(bytes: &[u8]) -> Result<Progress, Refused> {
    begins_with(bytes, V1_BEGINNING)?;
    let window = bytes.get(..V1_MAX).unwrap_or(bytes);
    let Some(at) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if window.len() == V1_MAX { Err(Refused::LineTooLong) } else { Ok(Progress::Incomplete) };
    };
    match (window.get(at), window.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => {}
        (Some(b'\r'), None) if window.len() < V1_MAX => return Ok(Progress::Incomplete),
        (Some(b'\r'), None) => return Err(Refused::LineTooLong),
        _ => return Err(Refused::Line(Word::End)),
    }
    let line = window.get(V1_BEGINNING.len()..at).unwrap_or_default();
    let ends = parse_line(line)?;
    Ok(Progress::Done(Header { ends, len: at as u16 + 2 }))
}

/// What stands between `PROXY ` and CRLF.
fn parse_line(line: &[u8]) -> Result<Option<Ends>, Refused> {
    // §2.1: with UNKNOWN "the receiver must ignore anything presented before the CRLF", which need not be text
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(None);
    }
    let text = std::str::from_utf8(line).map_err(|_| Refused::Line(Word::Protocol))?;
    let mut words = text.split(' ');
    let address: fn(&str) -> Option<u128> = match words.next() {
        Some("TCP4") => |word| word.parse().ok().map(|v4: Ipv4Addr| v4.to_ipv6_mapped().to_bits()),
        Some("TCP6") => |word| word.parse().ok().map(Ipv6Addr::to_bits),
        _ => return Err(Refused::Line(Word::Protocol)),
    };
    let mut next = |word| words.next().ok_or(Refused::Line(word));
    let mut next_address = |word| address(next(word)?).ok_or(Refused::Line(word));
    let source = next_address(Word::SourceAddress)?;
    let destination = next_address(Word::DestinationAddress)?;
    let mut next_port = |word| parse_port(next(word)?).ok_or(Refused::Line(word));
    let source = Endpoint { address: source, port: next_port(Word::SourcePort)? };
    let destination = Endpoint { address: destination, port: next_port(Word::DestinationPort)? };
    if words.next().is_some() {
        return Err(Refused::Line(Word::End));
    }
    Ok(Some(Ends { source, destination }))
}

/// §2.1: decimal, 0 to 65535, "heading zeroes are not permitted".
fn parse_port(word: &str) -> Option<u16> {
    let is_number = word.bytes().all(|digit| digit.is_ascii_digit());
    if !is_number || (word.len() > 1 && word.starts_with('0')) {
        return None;
    }
    word.parse().ok()
}

/// §2.2.
fn parse_v2(bytes: &[u8]) -> Result<Progress, Refused> {
    begins_with(bytes, &SIGNATURE)?;
    // each byte is judged when it is there
    let Some(&version_command) = bytes.get(12) else { return Ok(Progress::Incomplete) };
    if version_command >> 4 != 2 {
        return Err(Refused::Version(version_command >> 4));
    }
    let is_local = match version_command & 0xf {
        0 => true,
        1 => false,
        other => return Err(Refused::Command(other)),
    };
    let Some(&family) = bytes.get(13) else { return Ok(Progress::Incomplete) };
    let addresses_len = match (is_local, family >> 4, family & 0xf) {
        // §2.2: "discard the protocol block including the family which is ignored"
        (true, ..) | (false, 0, 0..=2) => 0,
        (false, 1, 0..=2) => 12,
        (false, 2, 0..=2) => 36,
        (false, 3, 0..=2) => 216,
        _ => return Err(Refused::Family(family)),
    };
    let Some(&[high, low]) = bytes.get(14..V2_FIXED) else { return Ok(Progress::Incomplete) };
    let len = u16::from_be_bytes([high, low]);
    if len < addresses_len {
        return Err(Refused::TooShort(len));
    }
    let total = V2_FIXED + usize::from(len);
    if total > V2_MAX {
        return Err(Refused::TooLong(len));
    }
    let Some(header) = bytes.get(..total) else { return Ok(Progress::Incomplete) };
    let block = header.get(V2_FIXED..).unwrap_or_default();
    let is_opaque = is_local || family >> 4 == 0;
    if !is_opaque {
        check_tlvs(header, V2_FIXED + usize::from(addresses_len))?;
    }
    let ends = match family {
        0x11 if !is_local => ends_v4(block),
        0x21 if !is_local => ends_v6(block),
        // what connects by TCP is not what these tell of: its own addresses hold
        _ => None,
    };
    Ok(Progress::Done(Header { ends, len: total as u16 }))
}

fn ends_v4(block: &[u8]) -> Option<Ends> {
    let (addresses, ports) = block.split_first_chunk::<8>()?;
    let (ports, _) = ports.split_first_chunk::<4>()?;
    let [a, b, c, d, e, f, g, h] = *addresses;
    let end = |octets: [u8; 4], port: [u8; 2]| Endpoint {
        address: Ipv4Addr::from(octets).to_ipv6_mapped().to_bits(),
        port: u16::from_be_bytes(port),
    };
    let [s, t, u, v] = *ports;
    Some(Ends { source: end([a, b, c, d], [s, t]), destination: end([e, f, g, h], [u, v]) })
}

fn ends_v6(block: &[u8]) -> Option<Ends> {
    let (source, rest) = block.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let ([s, t, u, v], _) = rest.split_first_chunk::<4>()?;
    let end = |octets: &[u8; 16], port| Endpoint {
        address: u128::from_be_bytes(*octets),
        port: u16::from_be_bytes(port),
    };
    Some(Ends { source: end(source, [*s, *t]), destination: end(destination, [*u, *v]) })
}

/// §2.2.4: TLVs fill the rest exactly; where there is a checksum it must match, computed with its own field zero.
fn check_tlvs(header: &[u8], begin: usize) -> Result<(), Refused> {
    let mut at = begin;
    while at < header.len() {
        let Some(&[kind, high, low]) = header.get(at..at + 3) else { return Err(Refused::Tlv) };
        let value = at + 3;
        let end = value + usize::from(u16::from_be_bytes([high, low]));
        let Some(bytes) = header.get(value..end) else { return Err(Refused::Tlv) };
        if kind == TLV_CRC32C {
            let Ok(found) = <[u8; 4]>::try_from(bytes) else { return Err(Refused::Tlv) };
            let found = u32::from_be_bytes(found);
            let computed = Crc32c::default()
                .add(header.get(..value).unwrap_or_default())
                .add(&[0; 4])
                .add(header.get(end..).unwrap_or_default())
                .value();
            if found != computed {
                return Err(Refused::Checksum { found, computed });
            }
        }
        at = end;
    }
    Ok(())
}

/// A header that arrives in pieces.
#[derive(Debug)]
pub struct Parser {
    expects: Expects,
    /// What has arrived while it was incomplete: at most [`V2_MAX`] bytes, nothing for one that arrives whole.
    begun: Vec<u8>,
}

impl Parser {
    /// Nothing has arrived.
    pub const fn new(expects: Expects) -> Self {
        Self { expects, begun: Vec::new() }
    }

    /// Takes the next piece of the stream. Where the header is done, [`Header::len`] is how much of **this piece**
    /// belonged to it.
    pub fn feed(&mut self, piece: &[u8]) -> Result<Progress, Refused> {
        if self.begun.is_empty() {
            let progress = parse(piece, self.expects)?;
            if progress == Progress::Incomplete {
                self.begun.extend_from_slice(piece);
            }
            return Ok(progress);
        }
        let before = self.begun.len();
        // an incomplete header is shorter than the bound, so what is kept never exceeds it
        let taken = piece.get(..V2_MAX.saturating_sub(before)).unwrap_or(piece);
        self.begun.extend_from_slice(taken);
        match parse(&self.begun, self.expects)? {
            Progress::Incomplete => Ok(Progress::Incomplete),
            Progress::Done(header) => {
                self.begun = Vec::new();
                let len = usize::from(header.len).saturating_sub(before) as u16;
                Ok(Progress::Done(Header { len, ..header }))
            }
        }
    }
}

/// Writes the header of a connection between these ends; `None` says that there is no client (LOCAL, UNKNOWN). Returns
/// its length. Ends of two families are both told as IPv6, the IPv4 one IPv4-mapped.
pub fn write(version: Version, ends: Option<Ends>, out: &mut [u8; WRITTEN_MAX]) -> usize {
    let capacity = out.len();
    let mut left: &mut [u8] = out.as_mut_slice();
    let written = match version {
        Version::V1 => write_v1(ends, &mut left),
        Version::V2 => write_v2(ends, &mut left),
    };
    // the longest of both fit, as the tests show
    debug_assert!(written.is_ok(), "{ends:?}");
    capacity - left.len()
}

fn write_v1(ends: Option<Ends>, out: &mut &mut [u8]) -> std::io::Result<()> {
    let Some(Ends { source, destination }) = ends else { return out.write_all(b"PROXY UNKNOWN\r\n") };
    let (source_port, destination_port) = (source.port, destination.port);
    if source.is_v4() && destination.is_v4() {
        let [source, destination] = [source, destination].map(|end| Ipv4Addr::from(end.address as u32));
        return write!(out, "PROXY TCP4 {source} {destination} {source_port} {destination_port}\r\n");
    }
    out.write_all(b"PROXY TCP6")?;
    for end in [source, destination] {
        if end.is_v4() {
            // §2.1 knows only groups of hexadecimal digits
            let (high, low) = ((end.address >> 16) as u16, end.address as u16);
            write!(out, " ::ffff:{high:x}:{low:x}")?;
        } else {
            write!(out, " {}", Ipv6Addr::from_bits(end.address))?;
        }
    }
    write!(out, " {source_port} {destination_port}\r\n")
}

fn write_v2(ends: Option<Ends>, out: &mut &mut [u8]) -> std::io::Result<()> {
    out.write_all(&SIGNATURE)?;
    let Some(Ends { source, destination }) = ends else { return out.write_all(&[0x20, 0, 0, 0]) };
    if source.is_v4() && destination.is_v4() {
        out.write_all(&[0x21, 0x11, 0, 12])?;
        out.write_all(&(source.address as u32).to_be_bytes())?;
        out.write_all(&(destination.address as u32).to_be_bytes())?;
    } else {
        out.write_all(&[0x21, 0x21, 0, 36])?;
        out.write_all(&source.address.to_be_bytes())?;
        out.write_all(&destination.address.to_be_bytes())?;
    }
    out.write_all(&source.port.to_be_bytes())?;
    out.write_all(&destination.port.to_be_bytes())
}

#[cfg(test)]
mod tests;
