//! What does a script know of one connection? Numbers that others are relative to, windows and options of both sides, and what
//! holds for every segment.

use weir_net::tcp;
use weir_tcp::Endpoint;

use super::language::{Number, OptionShape, Shape};
use super::wire::{Opt, Packet, is_v4};

/// An MSS below this is not kept to (as Linux, CVE-2019-11479).
const LEAST_MSS: usize = 48;
/// What the clock of a peer with `peer timestamps run` shows at the start of a case.
const PEER_CLOCK_MS: u64 = 1_000;

/// The bytes of a stream by their place in it: what went missing, twice or astray shows.
pub(crate) fn pattern(outward: bool, position: i64) -> u8 {
    let position = position as u64;
    (position ^ (position >> 8) ^ (position >> 16)) as u8 ^ if outward { 0x5a } else { 0 }
}

/// One connection as the script sees it.
pub(crate) struct Talk {
    pub(crate) local: Endpoint,
    pub(crate) remote: Endpoint,
    pub(crate) peer_isn: u32,
    pub(crate) our_isn: Option<u32>,
    /// Timestamps of the peer are added where a segment has no options.
    pub(crate) timestamps_run: bool,
    pub(crate) first_timestamp: Option<u32>,
    pub(crate) last_timestamp: u32,
    /// What the peer takes in a segment, options included (RFC 6691).
    pub(crate) peer_mss: usize,
    pub(crate) peer_scale: Option<u8>,
    pub(crate) our_scale: Option<u8>,
    /// Right edge of the window that the peer has granted, relative.
    pub(crate) edge: i64,
    /// Right edge of the window that the stack has granted, relative.
    pub(crate) our_edge: i64,
    pub(crate) sent: i64,
    pub(crate) read: i64,
    pub(crate) frames: Vec<(i64, Vec<u8>)>,
    pub(crate) news: Vec<String>,
    pub(crate) cookie: Option<Vec<u8>>,
}

impl Talk {
    pub(crate) fn new(label: char, ipv6: bool) -> Talk {
        let network = if ipv6 { 0x2001_0db8_u128 << 96 } else { 0xffff_c612_0000 };
        let port = 40_000 + label as u16 - 'a' as u16;
        Talk {
            local: Endpoint { address: network | 1, port: 80 },
            remote: Endpoint { address: network | 2, port },
            peer_isn: 5_000_000,
            our_isn: None,
            timestamps_run: false,
            first_timestamp: None,
            last_timestamp: 0,
            peer_mss: usize::MAX,
            peer_scale: None,
            our_scale: None,
            edge: 0,
            our_edge: 0,
            sent: 0,
            read: 0,
            frames: Vec::new(),
            news: Vec::new(),
            cookie: None,
        }
    }

    /// A new incarnation on the same ports.
    pub(crate) fn begin_again(&mut self, peer_isn: u32) {
        let fresh = Talk::new('a', false);
        *self = Talk {
            local: self.local,
            remote: self.remote,
            peer_isn,
            cookie: self.cookie.take(),
            news: std::mem::take(&mut self.news),
            ..fresh
        };
    }

    pub(crate) fn ours(&self, absolute: u32) -> i64 {
        i64::from(absolute.wrapping_sub(self.our_isn.unwrap_or(0)) as i32)
    }

    pub(crate) fn peers(&self, absolute: u32) -> i64 {
        i64::from(absolute.wrapping_sub(self.peer_isn) as i32)
    }

    /// What an arriving segment tells of the peer: MSS, scale, window.
    pub(crate) fn hear(&mut self, packet: &Packet) {
        if packet.flags & tcp::SYN != 0 {
            self.peer_scale = packet.options.iter().find_map(|option| match option {
                Opt::WindowScale(shift) => Some((*shift).min(14)),
                _ => None,
            });
            let mss = packet.options.iter().find_map(|option| match option {
                Opt::Mss(mss) if *mss > 0 => Some(usize::from(*mss)),
                _ => None,
            });
            let default = if is_v4(self.remote.address) { tcp::DEFAULT_MSS_V4 } else { tcp::DEFAULT_MSS_V6 };
            self.peer_mss = mss.unwrap_or(usize::from(default)).max(LEAST_MSS);
            self.edge = self.edge.max(1 + i64::from(packet.window));
        }
        if packet.flags & tcp::ACK != 0 {
            let scale = match (self.our_scale, self.peer_scale, packet.flags & tcp::SYN) {
                (Some(_), Some(scale), 0) => scale,
                _ => 0,
            };
            let edge = self.ours(packet.ack) + (i64::from(packet.window) << scale);
            self.edge = self.edge.max(edge);
        }
    }

    /// Takes from a segment that left what later ones are relative to.
    pub(crate) fn learn(&mut self, packet: &Packet, frame: Vec<u8>) {
        if packet.flags & tcp::SYN != 0 {
            self.our_isn.get_or_insert(packet.seq);
            self.our_scale = packet.options.iter().find_map(|option| match option {
                Opt::WindowScale(shift) => Some(*shift),
                _ => None,
            });
        }
        if let Some((value, _)) = packet.timestamps() {
            self.first_timestamp.get_or_insert(value);
            self.last_timestamp = value;
        }
        for option in &packet.options {
            if let Opt::FastOpen(cookie) = option
                && !cookie.is_empty()
            {
                self.cookie = Some(cookie.clone());
            }
        }
        let seq = self.ours(packet.seq);
        self.frames.push((seq, frame));
    }

    /// What holds for every segment that leaves.
    pub(crate) fn check(&mut self, packet: &Packet) -> Result<(), String> {
        if packet.flags & (tcp::ACK | tcp::RST) == tcp::ACK {
            let scale = match (self.our_scale, self.peer_scale, packet.flags & tcp::SYN) {
                (Some(scale), Some(_), 0) => scale,
                _ => 0,
            };
            let edge = self.peers(packet.ack) + (i64::from(packet.window) << scale);
            if edge < self.our_edge {
                return Err(format!(
                    "took back window (RFC 9293 §3.8.6): its end was {}, is {edge}",
                    self.our_edge
                ));
            }
            self.our_edge = edge;
        }
        let with_options = packet.payload.len() + packet.options_len();
        if !packet.payload.is_empty() && with_options > self.peer_mss {
            return Err(format!(
                "sent {with_options} bytes of options and data, but the peer's MSS is {} (RFC 6691)",
                self.peer_mss
            ));
        }
        if !packet.dont_fragment {
            return Err("sent a packet that may be fragmented: RFC 1191 §3 needs don't-fragment".into());
        }
        let syn = packet.flags & tcp::SYN != 0;
        let seq = self.ours(packet.seq);
        let first = if syn { seq } else { seq - 1 };
        for (index, byte) in packet.payload.iter().enumerate() {
            let position = first + index as i64;
            if *byte != pattern(true, position) && position >= 0 {
                return Err(format!("sent a wrong byte at {} of the stream: {byte:#04x}", position));
            }
        }
        let end = seq + packet.payload.len() as i64;
        let is_probe = packet.payload.len() <= 1;
        if !syn && packet.flags & tcp::RST == 0 && end > self.edge + i64::from(is_probe) {
            return Err(format!("sent up to {end}, beyond the peer's window, which ends at {}", self.edge));
        }
        Ok(())
    }

    /// The segment that a script lets arrive; the peer's timestamps count from the start of the case.
    pub(crate) fn packet(&self, shape: &Shape, since_start_us: u64) -> Result<Packet, String> {
        let clock = (PEER_CLOCK_MS + since_start_us / 1_000) as u32;
        let exactly = |number: Number, what: &str| match number {
            Number::Between(value, most) if value == most => Ok(value),
            _ => Err(format!("the {what} of an injected segment must be one number")),
        };
        let (seq, end) = (exactly(shape.seq, "sequence number")?, exactly(shape.end, "end")?);
        let ack = match shape.ack {
            Number::Any => 0,
            ack => self.our_isn.unwrap_or(0).wrapping_add(exactly(ack, "acknowledgment")? as u32),
        };
        let window = match shape.window {
            Number::Any => 65_535,
            window => exactly(window, "window")? as u16,
        };
        let mut options = Vec::new();
        for option in shape.options.iter().flatten() {
            options.push(match option {
                OptionShape::Exact(option) => option.clone(),
                OptionShape::Timestamps { value, echo } => Opt::Timestamps {
                    value: exactly(*value, "timestamp")? as u32,
                    echo: self
                        .first_timestamp
                        .unwrap_or(0)
                        .wrapping_add(exactly(*echo, "echoed timestamp")? as u32),
                },
                OptionShape::Sack(blocks) => {
                    let base = self.our_isn.unwrap_or(0);
                    let edge = |relative: i64| base.wrapping_add(relative as u32);
                    Opt::Sack(blocks.iter().map(|(left, right)| (edge(*left), edge(*right))).collect())
                }
                OptionShape::AnyMss => return Err("the MSS of an injected segment must be one number".into()),
                OptionShape::Cookie { spoilt } => {
                    let mut cookie = self.cookie.clone().ok_or("no fast open cookie was given before")?;
                    cookie[0] ^= u8::from(*spoilt);
                    Opt::FastOpen(cookie)
                }
            });
        }
        let says_others =
            shape.options.iter().flatten().any(|option| !matches!(option, OptionShape::Sack(_)));
        if self.timestamps_run && !says_others && shape.flags & tcp::RST == 0 {
            options.insert(0, Opt::Timestamps { value: clock, echo: self.last_timestamp });
        }
        let first = if shape.flags & tcp::SYN != 0 { seq } else { seq - 1 };
        let flip = if shape.other_bytes { 0xff } else { 0 };
        Ok(Packet {
            src: (self.remote.address, self.remote.port),
            dst: (self.local.address, self.local.port),
            seq: self.peer_isn.wrapping_add(seq as u32),
            ack,
            flags: shape.flags,
            window,
            urgent: shape.urgent,
            ecn: shape.ecn.unwrap_or(0),
            options,
            payload: (0..end - seq).map(|index| pattern(false, first + index) ^ flip).collect(),
            hop_limit: shape.hop_limit.unwrap_or(64),
            dont_fragment: true,
            options_len: 0,
        })
    }
}
